"""Special functions that a series or a recurrence gives: orthogonal polynomials, modified Bessel functions I, scaled
error functions. All in f64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx
from . import emits
from .elementwise import (
    _erfcx_series,
    _fit,
    add,
    chebyshev,
    copysign,
    div,
    erfc,
    log1p,
    mul,
    negative,
    sub,
    where,
)

# name -> (first degree from x, next from (k, x, q, p)), for p, q of degrees k - 1, k
Step = Callable[[Cx, str, str, str, str], str]


def _chebyshev_step(cx: Cx, k: str, x: str, q: str, p: str) -> str:
    return cx.op("Sub", cx.op("Mul", mul(cx, x, 2), q), p)


def _hermite_step(factor: float) -> Step:
    def step(cx: Cx, k: str, x: str, q: str, p: str) -> str:
        return mul(cx, cx.op("Sub", cx.op("Mul", x, q), cx.op("Mul", k, p)), factor)

    return step


def _laguerre_step(cx: Cx, k: str, x: str, q: str, p: str) -> str:
    a = cx.op("Sub", add(cx, mul(cx, k, 2), 1), x)
    return cx.op("Div", cx.op("Sub", cx.op("Mul", a, q), cx.op("Mul", k, p)), add(cx, k, 1))


def _legendre_step(cx: Cx, k: str, x: str, q: str, p: str) -> str:
    a = cx.op("Mul", add(cx, mul(cx, k, 2), 1), x)
    return cx.op("Div", cx.op("Sub", cx.op("Mul", a, q), cx.op("Mul", k, p)), add(cx, k, 1))


POLYNOMIALS: dict[str, tuple[Callable[[Cx, str], str], Step]] = {
    "chebyshev_polynomial_t": (lambda cx, x: x, _chebyshev_step),
    "chebyshev_polynomial_u": (lambda cx, x: mul(cx, x, 2), _chebyshev_step),
    "chebyshev_polynomial_v": (lambda cx, x: sub(cx, mul(cx, x, 2), 1), _chebyshev_step),
    "chebyshev_polynomial_w": (lambda cx, x: add(cx, mul(cx, x, 2), 1), _chebyshev_step),
    "hermite_polynomial_h": (lambda cx, x: mul(cx, x, 2), _hermite_step(2)),
    "hermite_polynomial_he": (lambda cx, x: x, _hermite_step(1)),
    "laguerre_polynomial_l": (lambda cx, x: sub(cx, cx.like(1, x), x), _laguerre_step),
    "legendre_polynomial_p": (lambda cx, x: x, _legendre_step),
}
LONGEST = {"hermite_polynomial_h": 512, "hermite_polynomial_he": 512}  # beyond that the op gives NaN


@emits(*POLYNOMIALS, *(f"shifted_{n}" for n in POLYNOMIALS if n.startswith("chebyshev")), wide=True)
def polynomial(cx: Cx, node: Node, x: str, degree: str) -> str:
    """The three-term recurrence, as often as the largest degree asks; each element keeps the value of its own."""
    name = node.op.removeprefix("shifted_")
    if 0 in node.types[0].shape:
        return cx.fill(0, node.types[0].shape, cx.dtype(x))
    x, n = cx.cast(x, DType.f64), cx.cast(cx.cast(cx.cast(degree, DType.f64), DType.i64), DType.f64)
    if node.op != name:
        x = sub(cx, mul(cx, x, 2), 1)
    zero = cx.op("Mul", cx.op("Add", mul(cx, x, 0), mul(cx, n, 0)), cx.like(0, x))
    x = cx.op("Add", x, zero)
    first, step = POLYNOMIALS[name]
    one = add(cx, zero, 1)
    top = cx.cast(cx.op("ReduceMax", n, keepdims=0), DType.i64)
    trips = cx.op("Max", cx.op("Sub", top, cx.like(1, top)), cx.like(0, top))

    def again(inner: Cx, i: str, carry: list[str]) -> list[str]:
        q, p = carry
        k = inner.cast(inner.op("Add", i, inner.like(1, i)), DType.f64)
        more = inner.op("Greater", n, k)
        new = step(inner, k, x, q, p)
        return [inner.op("Where", more, new, q), inner.op("Where", more, q, p)]

    y = cx.loop(trips, [first(cx, x), one], again)[0]
    y = where(cx, cx.op("Less", n, cx.like(1, n)), one, y)
    if name in LONGEST:
        y = where(cx, cx.op("Greater", n, cx.like(LONGEST[name], n)), cx.like(math.nan, n), y)
    return where(cx, negative(cx, n), cx.like(0, n), y)


def _scaled_bessel(cx: Cx, x: str, order: int) -> str:
    """exp(-|x|) I_order(|x|): one series below 8, one in 1 / x above, where it is that times sqrt(x)."""
    import scipy.special

    f: Any = scipy.special.i0e if order == 0 else scipy.special.i1e
    a = cx.op("Abs", x)
    low = chebyshev(
        cx, sub(cx, mul(cx, cx.op("Min", a, cx.like(8, a)), 0.25), 1), _fit(f"i{order}e", lambda s: f(4 * (s + 1)), 40)
    )

    def far(s: Any) -> Any:
        v = 16 / np.maximum(s + 1, 1e-290)
        return np.where(v > 1e200, 1 / math.sqrt(2 * math.pi), f(v) * np.sqrt(v))

    large = cx.op("Max", a, cx.like(8, a))
    high = chebyshev(cx, sub(cx, div(cx, cx.like(16, a), large), 1), _fit(f"i{order}e_far", far, 40))
    high = cx.op("Div", high, cx.op("Sqrt", large))
    return where(cx, cx.op("Less", a, cx.like(8, a)), low, high)


@emits("i0", "i0e", "i1", "i1e", "modified_bessel_i0", "modified_bessel_i1", wide=True)
def bessel_i(cx: Cx, node: Node, x: str) -> str:
    x = cx.cast(x, DType.f64)
    order = 1 if "1" in node.op else 0
    y = _scaled_bessel(cx, x, order)
    if not node.op.endswith("e"):
        y = cx.op("Mul", y, cx.op("Exp", cx.op("Abs", x)))
    return copysign(cx, y, x) if order else y


def _erfcx(cx: Cx, x: str) -> str:
    z = cx.op("Abs", x)
    t = div(cx, cx.like(2, x), add(cx, z, 2))
    y = cx.op("Mul", t, chebyshev(cx, sub(cx, mul(cx, t, 2), 1), _erfcx_series()))
    return where(cx, negative(cx, x), sub(cx, mul(cx, cx.op("Exp", cx.op("Mul", x, x)), 2), y), y)


@emits("erfcx", wide=True)
def erfcx(cx: Cx, node: Node, x: str) -> str:
    return _erfcx(cx, cx.cast(x, DType.f64))


@emits("log_ndtr", wide=True)
def log_ndtr(cx: Cx, node: Node, x: str) -> str:
    """log of the normal distribution function: through erfcx in the left tail, where the function itself vanishes."""
    x = cx.cast(x, DType.f64)
    v = mul(cx, x, math.sqrt(0.5))
    tail = cx.op("Sub", cx.op("Log", mul(cx, _erfcx(cx, cx.op("Neg", v)), 0.5)), cx.op("Mul", v, v))
    rest = log1p(cx, mul(cx, erfc(cx, v), -0.5))
    return where(cx, cx.op("Less", x, cx.like(-1, x)), tail, rest)


_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798)


@emits("zeta", wide=True)
def zeta(cx: Cx, node: Node, x: str, q: str) -> str:
    """Hurwitz' zeta function by Euler and Maclaurin's formula after twelve terms."""
    x, q = cx.cast(x, DType.f64), cx.cast(q, DType.f64)
    minus = cx.op("Neg", x)
    total = mul(cx, cx.op("Add", x, q), 0)
    for k in range(12):
        total = cx.op("Add", total, cx.op("Pow", add(cx, q, float(k)), minus))
    a = add(cx, q, 12.0)
    power = cx.op("Pow", a, minus)
    total = cx.op("Add", total, cx.op("Mul", power, cx.op("Div", a, sub(cx, x, 1))))
    total = cx.op("Add", total, mul(cx, power, 0.5))
    rising, term = x, cx.op("Div", power, a)
    for j, b in enumerate(_BERNOULLI, 1):
        total = cx.op("Add", total, mul(cx, cx.op("Mul", rising, term), b / math.factorial(2 * j)))
        rising = cx.op("Mul", rising, cx.op("Mul", add(cx, x, 2.0 * j - 1), add(cx, x, 2.0 * j)))
        term = cx.op("Div", term, cx.op("Mul", a, a))
    pole = cx.op("Equal", q, cx.op("Floor", q))
    left = where(cx, pole, cx.like(math.inf, x), cx.like(math.nan, x))
    integer = cx.op("Equal", x, cx.op("Floor", x))
    left = where(cx, cx.op("And", cx.op("Not", pole), integer), total, left)
    y = where(cx, cx.op("LessOrEqual", q, cx.like(0, q)), left, total)
    y = where(cx, cx.op("Equal", x, cx.like(1, x)), cx.like(math.inf, x), y)
    return where(cx, cx.op("Less", x, cx.like(1, x)), cx.like(math.nan, x), y)


@emits("spherical_bessel_j0", wide=True)
def spherical_bessel_j0(cx: Cx, node: Node, x: str) -> str:
    """sin(x) / x, near 0 its series."""
    x = cx.cast(x, DType.f64)
    near = cx.op("Less", cx.op("Abs", x), cx.like(0.5, x))
    q = cx.op("Mul", x, x)
    series = cx.like(0, x)
    for k in range(8, -1, -1):
        series = add(cx, cx.op("Mul", series, q), (-1.0) ** k / math.factorial(2 * k + 1))
    safe = where(cx, near, cx.like(1, x), x)
    far = cx.op("Div", cx.op("Sin", safe), safe)
    return where(cx, near, series, where(cx, cx.op("IsInf", x), cx.like(0, x), far))
