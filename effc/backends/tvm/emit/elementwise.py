"""Elementwise ops. Float functions are the C library's; short floats are computed in f32 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import TVM_TYPE, Cx, Expr, Tensor, at, cast, const
from . import emits

Elements = Callable[..., Expr]  # (dtype, *elements of that dtype) -> element

# The C function of each op on floats; it has a variant ending in f for f32.
LIBM = {
    **{n: n for n in (
        "exp exp2 expm1 sin cos tan atan sinh cosh tanh asinh erf erfc log log1p log2 log10 asin acos acosh atanh "
        "lgamma fmin fmax atan2 hypot copysign nextafter fmod pow sqrt ceil floor trunc"
    ).split()},
    "round": "rint", "bessel_j0": "j0", "bessel_j1": "j1", "bessel_y0": "y0", "bessel_y1": "y1",
}  # fmt: skip
COMPARISONS: dict[str, Callable[[Expr, Expr], Expr]] = {
    "eq": lambda x, y: x == y, "ne": lambda x, y: x != y, "lt": lambda x, y: x < y, "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
}  # fmt: skip


def _plain(d: DType, x: Expr) -> Expr:
    """A number to compare: bools as integers."""
    return cast(x, d, DType.i32) if d.is_bool else x


def libm(name: str, d: DType, *xs: Expr) -> Expr:
    return tirx.call_pure_extern(TVM_TYPE[d], LIBM[name] + ("f" if d is DType.f32 else ""), *xs)


def nonzero(d: DType, x: Expr) -> Expr:
    return x if d.is_bool else x != const(0, d)


def differ(x: Expr, y: Expr) -> Expr:
    """x != y of two bools, which LLVM cannot compare as TVM writes it."""
    return tirx.Or(tirx.And(x, tirx.Not(y)), tirx.And(tirx.Not(x), y))


def isnan(d: DType, x: Expr) -> Expr:
    return tirx.isnan(x) if d.is_float else const(False, DType.bool)


def isinf(d: DType, x: Expr) -> Expr:
    return tirx.Or(x == const(math.inf, d), x == const(-math.inf, d))


def maximum(d: DType, x: Expr, y: Expr) -> Expr:
    """The larger one, NaN if there is one."""
    if d.is_bool:
        return tirx.Or(x, y)
    return tirx.Select(tirx.Or(x > y, isnan(d, x)), x, y)


def minimum(d: DType, x: Expr, y: Expr) -> Expr:
    if d.is_bool:
        return tirx.And(x, y)
    return tirx.Select(tirx.Or(x < y, isnan(d, x)), x, y)


def _absolute(d: DType, x: Expr) -> Expr:
    if d.is_float:
        return tirx.call_pure_extern(TVM_TYPE[d], "fabsf" if d is DType.f32 else "fabs", x)
    return tirx.Select(x < const(0, d), const(0, d) - x, x) if d.is_signed else x


def _sign(d: DType, x: Expr) -> Expr:
    if d.is_bool:
        return x
    low = const(-1, d) if d.is_signed else const(0, d)
    return tirx.Select(x > const(0, d), const(1, d), tirx.Select(x < const(0, d), low, const(0, d)))


def _signbit(d: DType, x: Expr) -> Expr:
    bits = DType.i64 if d is DType.f64 else DType.i32
    return tirx.reinterpret(TVM_TYPE[bits], x) < const(0, bits)


def _floor_div(d: DType, x: Expr, y: Expr) -> Expr:
    """The quotient as PyTorch rounds it down."""
    if d.is_int:
        return tirx.floordiv(x, y) if d.is_signed else tirx.truncdiv(x, y)
    zero, one = const(0, d), const(1, d)
    m = libm("fmod", d, x, y)
    q = (x - m) / y
    q = tirx.Select(tirx.And(m != zero, differ(y < zero, m < zero)), q - one, q)
    f = libm("floor", d, q)
    f = tirx.Select(q - f > const(0.5, d), f + one, f)
    f = tirx.Select(q == zero, libm("copysign", d, zero, x / y), f)
    return tirx.Select(y == zero, x / y, f)


def _remainder(d: DType, x: Expr, y: Expr) -> Expr:
    if d.is_int:
        return tirx.floormod(x, y) if d.is_signed else tirx.truncmod(x, y)
    zero, m = const(0, d), libm("fmod", d, x, y)
    return tirx.Select(tirx.And(m != zero, differ(y < zero, m < zero)), m + y, m)


def _shift(left: bool) -> Elements:
    def run(d: DType, x: Expr, y: Expr) -> Expr:
        zero = const(0, d)
        ok = y < const(d.bits, d)
        if d.is_signed:
            ok = tirx.And(y >= zero, ok)
        by = tirx.Select(ok, y, zero)
        fill = tirx.Select(x < zero, const(-1, d), zero) if d.is_signed and not left else zero
        return tirx.Select(ok, x << by if left else x >> by, fill)

    return run


UNARY: dict[str, Elements] = {
    "neg": lambda d, x: const(-0.0, d) - x if d.is_float else const(0, d) - x,
    "abs": _absolute,
    "sign": _sign,
    "reciprocal": lambda d, x: const(1, d) / x,
    "rsqrt": lambda d, x: const(1, d) / libm("sqrt", d, x),
    "sigmoid": lambda d, x: const(1, d) / (const(1, d) + libm("exp", d, const(0, d) - x)),
    "isnan": isnan,
    "isinf": isinf,
    "isfinite": lambda d, x: tirx.Not(tirx.Or(isnan(d, x), isinf(d, x))),
    "signbit": _signbit,
    "logical_not": lambda d, x: tirx.Not(nonzero(d, x)),
    "bitwise_not": lambda d, x: tirx.Not(x) if d.is_bool else ~x,
}
BINARY: dict[str, Elements] = {
    "add": lambda d, x, y: x + y,
    "sub": lambda d, x, y: x - y,
    "mul": lambda d, x, y: tirx.And(x, y) if d.is_bool else x * y,
    "div": lambda d, x, y: x / y,
    "floor_div": _floor_div,
    "trunc_div": lambda d, x, y: tirx.truncdiv(x, y) if d.is_int else libm("trunc", d, x / y),
    "fmod": lambda d, x, y: tirx.truncmod(x, y) if d.is_int else libm("fmod", d, x, y),
    "remainder": _remainder,
    "maximum": maximum,
    "minimum": minimum,
    "logical_and": lambda d, x, y: tirx.And(nonzero(d, x), nonzero(d, y)),
    "logical_or": lambda d, x, y: tirx.Or(nonzero(d, x), nonzero(d, y)),
    "logical_xor": lambda d, x, y: differ(nonzero(d, x), nonzero(d, y)),
    "bitwise_and": lambda d, x, y: tirx.And(x, y) if d.is_bool else x & y,
    "bitwise_or": lambda d, x, y: tirx.Or(x, y) if d.is_bool else x | y,
    "bitwise_xor": lambda d, x, y: differ(x, y) if d.is_bool else x ^ y,
    "shl": _shift(True),
    "shr": _shift(False),
    **{n: (lambda d, x, y, f=f: f(_plain(d, x), _plain(d, y))) for n, f in COMPARISONS.items()},
}
ELEMENTS: dict[str, Elements] = {
    **{n: (lambda d, *xs, n=n: libm(n, d, *xs)) for n in LIBM},
    **UNARY,
    **BINARY,
}


def _whole_power(node: Node) -> str | None:
    return "powers of integers" if node.op == "pow" and node.types[0].dtype.is_int else None


@emits(*ELEMENTS, unless=_whole_power)
def elementwise(cx: Cx, node: Node, *xs: Tensor) -> Tensor:
    f, d = ELEMENTS[node.op], node.operands[0].dtype
    wide, out = d.compute, node.types[0].dtype
    work = out if out.is_bool else wide

    def element(*i: Expr) -> Expr:
        return cast(f(wide, *(cast(at(x, i), d, wide) for x in xs)), work, out)

    return cx.compute(node.types[0].shape, element)


@emits("where")
def where(cx: Cx, node: Node, c: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return cx.compute(node.types[0].shape, lambda *i: tirx.Select(at(c, i), at(x, i), at(y, i)))


@emits("convert")
def convert(cx: Cx, node: Node, x: Tensor) -> Tensor:
    src, dst = node.operands[0].dtype, node.attrs["dtype"]
    return cx.compute(node.types[0].shape, lambda *i: cast(at(x, i), src, dst))


@emits("bitcast")
def bitcast(cx: Cx, node: Node, x: Tensor) -> Any:
    dtype = TVM_TYPE[node.attrs["dtype"]]
    return cx.compute(node.types[0].shape, lambda *i: tirx.reinterpret(dtype, x(*i)))
