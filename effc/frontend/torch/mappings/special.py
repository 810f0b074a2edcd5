"""Special functions: one IR op each."""

from __future__ import annotations

import math
from typing import Any

from ....ir.graph import Value
from ..context import Context
from ..registry import aten


def _unary(ir: str) -> Any:
    def f(cx: Context, x: Value) -> Value:
        return cx.op(ir, cx.convert(x, cx.out.dtype))

    return f


def _binary(ir: str) -> Any:
    def f(cx: Context, x: Any, y: Any) -> Value:
        out = cx.out.dtype
        return cx.op(ir, cx.scalar(x, out), cx.scalar(y, out))

    return f


for _ir, *_names in [
    ("i0", "i0", "special_i0"),
    ("i0e", "special_i0e"),
    ("i1", "special_i1"),
    ("i1e", "special_i1e"),
    ("bessel_j0", "special_bessel_j0"),
    ("bessel_j1", "special_bessel_j1"),
    ("bessel_y0", "special_bessel_y0"),
    ("bessel_y1", "special_bessel_y1"),
    ("modified_bessel_i0", "special_modified_bessel_i0"),
    ("modified_bessel_i1", "special_modified_bessel_i1"),
    ("modified_bessel_k0", "special_modified_bessel_k0"),
    ("modified_bessel_k1", "special_modified_bessel_k1"),
    ("scaled_modified_bessel_k0", "special_scaled_modified_bessel_k0"),
    ("scaled_modified_bessel_k1", "special_scaled_modified_bessel_k1"),
    ("spherical_bessel_j0", "special_spherical_bessel_j0"),
    ("airy_ai", "special_airy_ai"),
    ("ndtri", "special_ndtri"),
    ("log_ndtr", "special_log_ndtr"),
]:
    aten(*_names)(_unary(_ir))
for _ir, *_names in [
    ("igamma", "igamma"),
    ("igammac", "igammac"),
    ("zeta", "special_zeta"),
    *(
        (f"{_p}chebyshev_polynomial_{_k}", f"special_{_p}chebyshev_polynomial_{_k}")
        for _p in ("", "shifted_")
        for _k in "tuvw"
    ),
    ("hermite_polynomial_h", "special_hermite_polynomial_h"),
    ("hermite_polynomial_he", "special_hermite_polynomial_he"),
    ("laguerre_polynomial_l", "special_laguerre_polynomial_l"),
    ("legendre_polynomial_p", "special_legendre_polynomial_p"),
]:
    aten(*_names)(_binary(_ir))


@aten("polygamma")
def _polygamma(cx: Context, n: int, x: Value) -> Value:
    return cx.op("polygamma", cx.convert(x, cx.out.dtype), n=n)


@aten("special_entr")
def _entr(cx: Context, x: Value) -> Value:
    v = cx.opmath(cx.convert(x, cx.out.dtype))
    inside = cx.op("neg", cx.mul(v, cx.op("log", v)))
    y = cx.where(cx.op("gt", v, 0.0), inside, cx.where(cx.op("eq", v, 0.0), cx.const(0.0, v.dtype), -math.inf))
    return cx.convert(cx.where(cx.op("isnan", v), v, y), cx.out.dtype)


@aten("special_ndtr")
def _ndtr(cx: Context, x: Value) -> Value:
    v = cx.opmath(cx.convert(x, cx.out.dtype))
    return cx.convert(cx.mul(cx.add(cx.op("erf", cx.mul(v, math.sqrt(0.5))), 1.0), 0.5), cx.out.dtype)


@aten("mvlgamma")
def _mvlgamma(cx: Context, x: Value, p: int) -> Value:
    v = cx.opmath(cx.convert(x, cx.out.dtype))
    total: Any = None
    for j in range(p):
        t = cx.op("lgamma", cx.add(v, -j / 2)) if j else cx.op("lgamma", v)
        total = t if total is None else cx.add(total, t)
    return cx.convert(cx.add(total, p * (p - 1) / 4 * math.log(math.pi)), cx.out.dtype)
