"""Elementwise ops: one ATen operator each."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Ref
from . import emits

SAME = (
    "neg abs sign ceil floor round trunc exp exp2 expm1 sin cos tan atan sinh cosh tanh asinh erf erfc reciprocal log "
    "log1p log2 log10 sqrt rsqrt asin acos acosh atanh erfinv lgamma digamma sigmoid sgn angle isnan isinf isfinite "
    "signbit logical_not bitwise_not i0 maximum minimum fmax fmin atan2 hypot nextafter logical_and logical_or "
    "logical_xor gcd lcm logaddexp igamma igammac"
)  # ops that are called as their ATen operators
TENSOR = "sub mul div fmod remainder copysign eq ne lt le gt ge bitwise_and bitwise_or bitwise_xor"
SPECIAL = (
    "airy_ai bessel_j0 bessel_j1 bessel_y0 bessel_y1 erfcx i0e i1 i1e log_ndtr modified_bessel_i0 modified_bessel_i1 "
    "modified_bessel_k0 modified_bessel_k1 ndtri scaled_modified_bessel_k0 scaled_modified_bessel_k1 "
    "spherical_bessel_j0 zeta chebyshev_polynomial_t chebyshev_polynomial_u chebyshev_polynomial_v "
    "chebyshev_polynomial_w hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l legendre_polynomial_p "
    "shifted_chebyshev_polynomial_t shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v "
    "shifted_chebyshev_polynomial_w"
)
ATEN: dict[str, str] = {
    **{n: n for n in SAME.split()},
    **{n: f"{n}.Tensor" for n in ("add", *TENSOR.split())},
    **{n: f"special_{n}" for n in SPECIAL.split()},
    "cabs": "abs", "pow": "pow.Tensor_Tensor", "shl": "bitwise_left_shift.Tensor",
    "shr": "bitwise_right_shift.Tensor",
}  # fmt: skip


@emits(*ATEN)
def elementwise(cx: Cx, node: Node, *xs: Ref) -> Any:
    return cx.aten(ATEN[node.op], *xs, out=node.types[0])


@emits("conj")
def conj(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.conjugate(x)


@emits("floor_div", "trunc_div")
def rounded_division(cx: Cx, node: Node, x: Ref, y: Ref) -> Any:
    mode = "floor" if node.op == "floor_div" else "trunc"
    return cx.aten("div.Tensor_mode", x, y, rounding_mode=mode, out=node.types[0])


@emits("polygamma")
def polygamma(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten("polygamma", node.attrs["n"], x, out=node.types[0])


@emits("where")
def where(cx: Cx, node: Node, c: Ref, x: Ref, y: Ref) -> Any:
    return cx.aten("where.self", c, x, y, out=node.types[0])


@emits("complex")
def complex_(cx: Cx, node: Node, re: Ref, im: Ref) -> Any:
    return cx.aten("complex", re, im, out=node.types[0])


@emits("convert")
def convert(cx: Cx, node: Node, x: Ref) -> Any:
    dtype = node.attrs["dtype"]
    if x.dtype.is_complex and not dtype.is_complex:
        if dtype.is_bool:
            return cx.binary("ne.Tensor", x, 0)
        x = cx.unary("real", x, x.dtype.real)
    if x.dtype.is_float and dtype.is_int:  # C leaves open what is out of the range of the narrower type
        x = cx.convert(x, DType.i64)
    if dtype is DType.f8e4m3 and x.dtype is not DType.f8e4m3:  # what is too large becomes the largest value
        x = cx.convert(x, DType.f32)
        x = cx.aten("clamp", x, -448.0, 448.0, out=x.type)
    elif dtype is DType.f8e5m2:
        x = cx.convert(x, DType.f32)
    return cx.aten("clone", x, out=x.type) if x.dtype is dtype else cx.convert(x, dtype)


@emits("bitcast")
def bitcast(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten("view.dtype", x, node.attrs["dtype"], out=node.types[0])
