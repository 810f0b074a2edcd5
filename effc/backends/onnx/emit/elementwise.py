"""Elementwise ops: a table where ONNX has the op, compositions in terms of those where it has not.

Float compositions run in the operands' compute type. Where onnxruntime's kernel is f32 only, f64 has a formula of its
own; the identities are the textbook ones that keep relative accuracy near zero (Kahan's log1p and expm1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Pair, Refuse
from . import emits

# ONNX's op for float and integer operands alike; bool operands have their own table.
UNARY = {
    "abs": "Abs", "sign": "Sign", "ceil": "Ceil", "floor": "Floor", "round": "Round",
    "sigmoid": "Sigmoid", "tanh": "Tanh", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "sin": "Sin", "cos": "Cos",
    "exp": "Exp", "log": "Log", "isnan": "IsNaN", "isinf": "IsInf", "bitwise_not": "BitwiseNot",
}  # fmt: skip
BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min", "eq": "Equal",
    "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "bitwise_and": "BitwiseAnd",
    "bitwise_or": "BitwiseOr", "bitwise_xor": "BitwiseXor", "trunc_div": "Div",
}  # fmt: skip
ON_BOOLS = {
    "sign": "Identity", "bitwise_not": "Not", "mul": "And", "maximum": "Or", "minimum": "And", "eq": "Equal",
    "bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor",
}  # fmt: skip


def is_float(cx: Cx, x: str) -> bool:
    return cx.dtype(x).is_float


def where(cx: Cx, c: str, x: str, y: str) -> str:
    return cx.op("Where", c, x, y)


def both(cx: Cx, a: str, b: str) -> str:
    return cx.op("And", a, b)


def negative(cx: Cx, x: str) -> str:
    return cx.op("Less", x, cx.like(0, x))


def arithmetic(cx: Cx, op: str, x: str, y: float | str) -> str:
    return cx.op(op, x, cx.like(y, x) if not isinstance(y, str) else y)


def add(cx: Cx, x: str, y: float | str) -> str:
    return arithmetic(cx, "Add", x, y)


def sub(cx: Cx, x: str, y: float | str) -> str:
    return arithmetic(cx, "Sub", x, y)


def mul(cx: Cx, x: str, y: float | str) -> str:
    return arithmetic(cx, "Mul", x, y)


def div(cx: Cx, x: str, y: float | str) -> str:
    return arithmetic(cx, "Div", x, y)


def neg(cx: Cx, x: str) -> str:
    if cx.dtype(x).is_int and not cx.dtype(x).is_signed:
        return cx.op("Sub", cx.like(0, x), x)
    return cx.op("Neg", x)


def nonzero(cx: Cx, x: Any) -> str:
    """x != 0 as bool."""
    if isinstance(x, Pair):
        return cx.op("Or", nonzero(cx, x.re), nonzero(cx, x.im))
    if cx.dtype(x) is DType.bool:
        return x
    return cx.op("Not", cx.op("Equal", x, cx.like(0, x)))


# Real functions -------------------------------------------------------------------------------------------------------


def expm1(cx: Cx, x: str) -> str:
    u = cx.op("Exp", x)
    d = sub(cx, u, 1)
    near = div(cx, mul(cx, d, x), cx.op("Log", u))
    plain = cx.op("Or", cx.op("Equal", d, cx.like(-1, x)), cx.op("IsInf", u))
    return where(cx, cx.op("Equal", d, cx.like(0, x)), x, where(cx, plain, d, near))


def log1p(cx: Cx, x: str) -> str:
    u = add(cx, x, 1)
    d = sub(cx, u, 1)
    near = div(cx, mul(cx, cx.op("Log", u), x), d)
    exact = cx.op("Equal", d, cx.like(0, x))
    return where(cx, exact, x, where(cx, cx.op("IsInf", x), cx.op("Log", u), near))


def trunc(cx: Cx, x: str) -> str:
    return where(cx, negative(cx, x), cx.op("Ceil", x), cx.op("Floor", x))


def signbit(cx: Cx, x: str) -> str:
    bits = {DType.f32: DType.i32, DType.f64: DType.i64}[cx.dtype(x)]
    return negative(cx, bitcast(cx, x, bits))


def bitcast(cx: Cx, x: str, dtype: DType) -> str:
    from ..context import ONNX_TYPE

    for t in (dtype, cx.dtype(x)):
        if t not in ONNX_TYPE or t in (DType.f8e4m3, DType.f8e5m2):
            raise Refuse(f"onnxruntime has no kernels for {t}")
    return x if cx.dtype(x) is dtype else cx.raw("BitCast", [x], [dtype], to=ONNX_TYPE[dtype])[0]


def copysign(cx: Cx, x: str, y: str) -> str:
    a = cx.op("Abs", x)
    return where(cx, signbit(cx, y), cx.op("Neg", a), a)


def sinh(cx: Cx, x: str) -> str:
    if cx.dtype(x) is DType.f32:
        return cx.op("Sinh", x)
    a = cx.op("Abs", x)
    e = expm1(cx, a)
    small = mul(cx, add(cx, e, div(cx, e, add(cx, e, 1))), 0.5)
    half = cx.op("Exp", mul(cx, a, 0.5))  # exp(a) / 2 without overflow before its time
    return copysign(cx, where(cx, cx.op("Less", a, cx.like(22, x)), small, mul(cx, mul(cx, half, 0.5), half)), x)


def cosh(cx: Cx, x: str) -> str:
    if cx.dtype(x) is DType.f32:
        return cx.op("Cosh", x)
    half = cx.op("Exp", mul(cx, cx.op("Abs", x), 0.5))
    return add(cx, mul(cx, mul(cx, half, 0.5), half), div(cx, div(cx, cx.like(0.5, x), half), half))


def tan(cx: Cx, x: str) -> str:
    return cx.op("Tan", x) if cx.dtype(x) is DType.f32 else div(cx, cx.op("Sin", x), cx.op("Cos", x))


def _refined(cx: Cx, op: str, x: str) -> tuple[str, str, str]:
    """(y, sin y, cos y) for y = op(x) of onnxruntime's f32 kernel, in f64: what one correction step starts from."""
    y = cx.cast(cx.op(op, cx.cast(x, DType.f32)), DType.f64)
    return y, cx.op("Sin", y), cx.op("Cos", y)


def atan(cx: Cx, x: str) -> str:
    if cx.dtype(x) is DType.f32:
        return cx.op("Atan", x)
    y, s, c = _refined(cx, "Atan", x)
    step = div(cx, sub(cx, mul(cx, x, c), s), add(cx, c, mul(cx, x, s)))  # tan of the error
    limit = copysign(cx, cx.op("Expand", cx.like(math.pi / 2, x), cx.raw("Shape", [x], [DType.i64])[0]), x)
    return where(cx, cx.op("IsInf", x), limit, add(cx, y, step))


def _cosine_of_asin(cx: Cx, x: str) -> str:
    return cx.op("Sqrt", mul(cx, sub(cx, cx.like(1, x), x), add(cx, x, 1)))


def _cubic_step(cx: Cx, y: str, d: str) -> str:
    """y + asin(d) for a small d."""
    return add(cx, y, add(cx, d, div(cx, mul(cx, mul(cx, d, d), d), 6.0)))


def asin(cx: Cx, x: str) -> str:
    if cx.dtype(x) is DType.f32:
        return cx.op("Asin", x)
    y, s, c = _refined(cx, "Asin", x)
    return _cubic_step(cx, y, sub(cx, mul(cx, x, c), mul(cx, _cosine_of_asin(cx, x), s)))


def acos(cx: Cx, x: str) -> str:
    if cx.dtype(x) is DType.f32:
        return cx.op("Acos", x)
    y, s, c = _refined(cx, "Acos", x)
    return _cubic_step(cx, y, sub(cx, mul(cx, _cosine_of_asin(cx, x), c), mul(cx, x, s)))


def asinh(cx: Cx, x: str) -> str:
    if cx.dtype(x) is DType.f32:
        return cx.op("Asinh", x)
    a = cx.op("Abs", x)
    q = mul(cx, a, a)
    y = log1p(cx, add(cx, a, div(cx, q, add(cx, cx.op("Sqrt", add(cx, q, 1)), 1))))
    large = add(cx, cx.op("Log", a), math.log(2))
    return copysign(cx, where(cx, cx.op("Greater", a, cx.like(1e150, x)), large, y), x)


def acosh(cx: Cx, x: str) -> str:
    if cx.dtype(x) is DType.f32:
        return cx.op("Acosh", x)
    t = sub(cx, x, 1)
    y = log1p(cx, add(cx, t, cx.op("Sqrt", add(cx, mul(cx, t, 2), mul(cx, t, t)))))
    return where(cx, cx.op("Greater", x, cx.like(1e150, x)), add(cx, cx.op("Log", x), math.log(2)), y)


def atanh(cx: Cx, x: str) -> str:
    if cx.dtype(x) is DType.f32:
        return cx.op("Atanh", x)
    return mul(cx, log1p(cx, div(cx, mul(cx, x, 2), sub(cx, cx.like(1, x), x))), 0.5)


def chebyshev(cx: Cx, s: str, coefficients: Any) -> str:
    """A Chebyshev series at s in [-1, 1], by Clenshaw's recurrence."""
    twice = mul(cx, s, 2)
    b1, b2 = mul(cx, s, 0), mul(cx, s, 0)
    for c in coefficients[:0:-1]:
        b1, b2 = add(cx, sub(cx, mul(cx, twice, b1), b2), float(c)), b1
    return add(cx, sub(cx, mul(cx, s, b1), b2), float(coefficients[0]))


_SERIES: dict[str, Any] = {}


def _fit(name: str, f: Callable[[Any], Any], degree: int) -> Any:
    """Chebyshev coefficients of f on [-1, 1], interpolated in double."""
    if name not in _SERIES:
        _SERIES[name] = np.polynomial.chebyshev.chebinterpolate(f, degree)
    return _SERIES[name]


def _erfcx_series() -> Any:
    """erfcx(z) / t as a function of s = 2 t - 1, t = 2 / (2 + z), which is smooth on all of z >= 0."""
    import scipy.special

    def f(s: Any) -> Any:
        t = (s + 1) / 2
        return scipy.special.erfcx(2 / t - 2) / t

    return _fit("erfcx", f, 30)


def erfc(cx: Cx, x: str) -> str:
    dtype = cx.dtype(x)
    x = cx.cast(x, DType.f64)
    z = cx.op("Abs", x)
    t = div(cx, cx.like(2, x), add(cx, z, 2))
    half = cx.op("Exp", mul(cx, mul(cx, z, z), -1))
    y = mul(cx, half, mul(cx, t, chebyshev(cx, sub(cx, mul(cx, t, 2), 1), _erfcx_series())))
    return cx.cast(where(cx, negative(cx, x), sub(cx, cx.like(2, x), y), y), dtype)


def erf(cx: Cx, x: str) -> str:
    if cx.dtype(x) is DType.f32:
        return cx.op("Erf", x)
    import scipy.special

    def small(s: Any) -> Any:  # erf(x) / x for x^2 in [0, 1]
        v = np.sqrt(np.maximum((s + 1) / 2, 1e-300))
        return scipy.special.erf(v) / v

    z = cx.op("Min", cx.op("Abs", x), cx.like(1, x))
    near = mul(cx, x, chebyshev(cx, sub(cx, mul(cx, mul(cx, z, z), 2), 1), _fit("erf", small, 20)))
    return where(cx, cx.op("Less", cx.op("Abs", x), cx.like(1, x)), near, sub(cx, cx.like(1, x), erfc(cx, x)))


def erfinv(cx: Cx, x: str) -> str:
    """Giles' single precision approximation, then Newton steps in f64."""
    dtype = cx.dtype(x)
    x = cx.cast(x, DType.f64)
    one = cx.like(1, x)
    w = cx.op("Neg", cx.op("Log", mul(cx, sub(cx, one, x), add(cx, x, 1))))

    def horner(v: str, cs: list[float]) -> str:
        p = cx.like(cs[0], x)
        for c in cs[1:]:
            p = add(cx, mul(cx, v, p), c)
        return p

    near = horner(
        sub(cx, w, 2.5),
        [2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
         0.246640727, 1.50140941],
    )  # fmt: skip
    far = horner(
        sub(cx, cx.op("Sqrt", w), 3),
        [-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
         1.00167406, 2.83297682],
    )  # fmt: skip
    y = mul(cx, x, where(cx, cx.op("Less", w, cx.like(5, x)), near, far))
    for _ in range(2):
        error = sub(cx, erf(cx, y), x)
        y = sub(cx, y, mul(cx, error, mul(cx, cx.op("Exp", mul(cx, y, y)), math.sqrt(math.pi) / 2)))
    edge = cx.op("Equal", cx.op("Abs", x), one)
    return cx.cast(where(cx, edge, mul(cx, x, math.inf), y), dtype)


_LANCZOS = (
    0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
)  # fmt: skip


def lgamma(cx: Cx, x: str) -> str:
    """Lanczos (g = 7, 9 terms), reflected below 1/2; f64 throughout."""
    dtype = cx.dtype(x)
    x = cx.cast(x, DType.f64)
    low = cx.op("Less", x, cx.like(0.5, x))
    z = sub(cx, where(cx, low, sub(cx, cx.like(1, x), x), x), 1)
    total = cx.like(_LANCZOS[0], x)
    for i, c in enumerate(_LANCZOS[1:]):
        total = add(cx, total, div(cx, cx.like(c, x), add(cx, z, i + 1)))
    t = add(cx, z, 7.5)
    y = add(cx, sub(cx, mul(cx, add(cx, z, 0.5), cx.op("Log", t)), t), 0.5 * math.log(2 * math.pi))
    y = add(cx, y, cx.op("Log", total))
    sine = cx.op("Abs", cx.op("Sin", mul(cx, sub(cx, x, cx.op("Floor", x)), math.pi)))
    mirrored = sub(cx, sub(cx, cx.like(math.log(math.pi), x), cx.op("Log", sine)), y)
    infinite = cx.op("IsInf", x)
    return cx.cast(where(cx, infinite, cx.like(math.inf, x), where(cx, low, mirrored, y)), dtype)


def digamma(cx: Cx, x: str) -> str:
    """Reflected below 0, moved up by six steps of the recurrence, then the asymptotic series; f64 throughout."""
    dtype = cx.dtype(x)
    x = cx.cast(x, DType.f64)
    low = negative(cx, x)
    z = where(cx, low, sub(cx, cx.like(1, x), x), x)
    total = cx.like(0, x)
    steps = 10
    for i in range(steps):
        total = sub(cx, total, div(cx, cx.like(1, x), add(cx, z, float(i))))
    z = add(cx, z, float(steps))
    inv = div(cx, cx.like(1, x), mul(cx, z, z))
    series = cx.like(0, x)
    for c in (1 / 12, -691 / 32760, 1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12):
        series = mul(cx, add(cx, series, c), inv)
    y = sub(cx, sub(cx, add(cx, total, cx.op("Log", z)), div(cx, cx.like(0.5, x), z)), series)
    cot = div(cx, cx.like(math.pi, x), tan(cx, mul(cx, sub(cx, x, cx.op("Floor", x)), math.pi)))
    y = where(cx, low, sub(cx, y, cot), y)
    return cx.cast(y, dtype)


COMPOSED: dict[str, Callable[[Cx, str], str]] = {
    "neg": neg, "trunc": trunc, "expm1": expm1, "log1p": log1p, "tan": tan, "atan": atan, "sinh": sinh, "cosh": cosh,
    "asinh": asinh, "acosh": acosh, "atanh": atanh, "asin": asin, "acos": acos, "erf": erf, "erfc": erfc,
    "erfinv": erfinv, "lgamma": lgamma, "digamma": digamma, "signbit": signbit, "logical_not": lambda cx, x: cx.op(
        "Not", nonzero(cx, x)),
    "exp2": lambda cx, x: cx.op("Pow", cx.like(2, x), x),
    "log2": lambda cx, x: mul(cx, cx.op("Log", x), 1 / math.log(2)),
    "log10": lambda cx, x: mul(cx, cx.op("Log", x), 1 / math.log(10)),
    "rsqrt": lambda cx, x: cx.op("Reciprocal", cx.op("Sqrt", x)),
    "isfinite": lambda cx, x: cx.op("Not", cx.op("Or", cx.op("IsNaN", x), cx.op("IsInf", x))),
}  # fmt: skip


@emits(*(set(UNARY) | set(COMPOSED)), wide=True, complex=True)
def unary(cx: Cx, node: Node, x: Any) -> Any:
    if isinstance(x, Pair):
        return _complex_unary(cx, node, x)
    if cx.dtype(x).is_bool and node.op in ON_BOOLS:
        return cx.op(ON_BOOLS[node.op], x)
    if node.op == "sign" and is_float(cx, x):  # ONNX passes NaN on, PyTorch does not
        return where(cx, cx.op("IsNaN", x), cx.like(0, x), cx.op("Sign", x))
    if node.op in COMPOSED:
        return COMPOSED[node.op](cx, x)
    return cx.op(UNARY[node.op], x)


# Two operands ---------------------------------------------------------------------------------------------------------


def _signs_differ(cx: Cx, x: str, y: str) -> str:
    return cx.op("Xor", negative(cx, x), negative(cx, y))


def floor_div(cx: Cx, x: str, y: str) -> str:
    if not is_float(cx, x):
        q = cx.op("Div", x, y)
        if not cx.dtype(x).is_signed:
            return q
        off = both(cx, cx.op("Not", cx.op("Equal", cx.op("Mul", q, y), x)), _signs_differ(cx, x, y))
        return cx.op("Sub", q, cx.cast(off, cx.dtype(x)))
    m = cx.op("Mod", x, y, fmod=1)
    d = cx.op("Div", cx.op("Sub", x, m), y)
    off = both(cx, nonzero(cx, m), _signs_differ(cx, m, y))
    d = where(cx, off, sub(cx, d, 1), d)
    f = cx.op("Floor", d)
    f = where(cx, cx.op("Greater", cx.op("Sub", d, f), cx.like(0.5, x)), add(cx, f, 1), f)
    q = cx.op("Div", x, y)
    f = where(cx, cx.op("Equal", d, cx.like(0, x)), copysign(cx, mul(cx, d, 0), q), f)
    return where(cx, cx.op("Equal", y, cx.like(0, y)), q, f)


def remainder(cx: Cx, x: str, y: str) -> str:
    if not is_float(cx, x):
        return cx.op("Mod", x, y)
    m = cx.op("Mod", x, y, fmod=1)
    off = both(cx, nonzero(cx, m), _signs_differ(cx, m, y))
    return where(cx, off, cx.op("Add", m, y), m)


def power(cx: Cx, x: str, y: str) -> str:
    known = cx.known(y)
    if known is not None and known.size == 1 and not cx.dtype(x).is_float:
        n = int(known.reshape(-1)[0])
        if 1 <= n <= 64:  # exact, and wraps as integers do
            return _repeated(cx, x, n)
    if known is not None and known.size == 1 and float(known.reshape(-1)[0]) == 2.0:
        return cx.op("Mul", x, x)
    if not cx.dtype(x).is_int:
        return cx.op("Pow", x, y)
    return _integer_power(cx, x, y)


def _repeated(cx: Cx, x: str, n: int) -> str:
    out: str | None = None
    while n:
        if n & 1:
            out = x if out is None else cx.op("Mul", out, x)
        n >>= 1
        if n:
            x = cx.op("Mul", x, x)
    assert out is not None
    return out


def _integer_power(cx: Cx, x: str, y: str) -> str:
    """Square and multiply over the bits of the exponent, in i64: wraps as integers do."""
    dtype = cx.dtype(x)
    x, y = cx.cast(x, DType.i64), cx.cast(y, DType.i64)
    one, two, zero = (cx.const(np.asarray(i, np.int64)) for i in (1, 2, 0))
    bits = cx.op("Max", y, zero)
    shape = cx.raw("Shape", [cx.op("Add", x, y)], [DType.i64])[0]
    start = [cx.op("Expand", v, shape) for v in (one, x, bits)]

    def step(inner: Cx, i: str, carry: list[str]) -> list[str]:
        out, base, left = carry
        odd = inner.op("Equal", inner.op("Mod", left, two), one)
        return [
            inner.op("Where", odd, inner.op("Mul", out, base), out), inner.op("Mul", base, base),
            inner.op("Div", left, two),
        ]  # fmt: skip

    out = cx.loop(cx.const(np.asarray(63, np.int64)), start, step)[0]
    if dtype.is_signed:
        unit = cx.op("Equal", cx.op("Abs", x), one)
        sign = cx.op("Where", both(cx, negative(cx, x), nonzero(cx, cx.op("Mod", y, two))), neg(cx, one), one)
        out = cx.op("Where", negative(cx, y), cx.op("Where", unit, sign, zero), out)
    return cx.cast(out, dtype)


def atan2(cx: Cx, y: str, x: str) -> str:
    ax, ay = cx.op("Abs", x), cx.op("Abs", y)
    big, small = cx.op("Max", ax, ay), cx.op("Min", ax, ay)
    same = cx.op("Equal", big, small)  # covers 0/0 and inf/inf
    none = cx.op("Equal", big, cx.like(0, x))
    ratio = where(cx, same, where(cx, none, cx.like(0, x), cx.like(1, x)), cx.op("Div", small, big))
    a = atan(cx, ratio)
    a = where(cx, cx.op("Greater", ay, ax), sub(cx, cx.like(math.pi / 2, x), a), a)
    a = where(cx, signbit(cx, x), sub(cx, cx.like(math.pi, x), a), a)
    return copysign(cx, a, y)


def hypot(cx: Cx, x: str, y: str) -> str:
    ax, ay = cx.op("Abs", x), cx.op("Abs", y)
    big, small = cx.op("Max", ax, ay), cx.op("Min", ax, ay)
    safe = where(cx, cx.op("Equal", big, cx.like(0, x)), cx.like(1, x), big)
    r = cx.op("Div", small, safe)
    out = cx.op("Mul", big, cx.op("Sqrt", add(cx, cx.op("Mul", r, r), 1)))
    infinite = cx.op("Or", cx.op("IsInf", x), cx.op("IsInf", y))
    return where(cx, infinite, cx.like(math.inf, x), out)


def fextreme(op: str) -> Callable[[Cx, str, str], str]:
    """fmax and fmin: a NaN loses."""

    def run(cx: Cx, x: str, y: str) -> str:
        return where(cx, cx.op("IsNaN", x), y, where(cx, cx.op("IsNaN", y), x, cx.op(op, x, y)))

    return run


def nextafter(cx: Cx, x: str, y: str) -> str:
    """One step in the integers that order floats."""
    bits = {DType.f32: DType.i32, DType.f64: DType.i64}[cx.dtype(x)]
    i = bitcast(cx, x, bits)
    up = cx.op("Equal", cx.op("Greater", y, x), cx.op("Greater", x, cx.like(0, x)))  # away from zero
    one = cx.like(1, i)
    stepped = bitcast(cx, where(cx, up, cx.op("Add", i, one), cx.op("Sub", i, one)), cx.dtype(x))
    tiny = copysign(cx, mul(cx, add(cx, mul(cx, y, 0), 1), float(np.finfo(cx.dtype(x).np).smallest_subnormal)), y)
    out = where(cx, cx.op("Equal", x, cx.like(0, x)), tiny, stepped)
    out = where(cx, cx.op("Equal", x, y), y, out)
    nan = cx.op("Or", cx.op("IsNaN", x), cx.op("IsNaN", y))
    return where(cx, nan, cx.like(math.nan, x), out)


def shift(direction: str) -> Callable[[Cx, str, str], str]:
    """Shifts in u64, where bits that fall out are gone; amounts outside [0, bits) give all zeros, or the sign."""

    def run(cx: Cx, x: str, y: str) -> str:
        dtype = cx.dtype(x)
        wide, amount = cx.cast(x, DType.i64), cx.cast(y, DType.i64)
        if dtype is DType.u64:
            ok = cx.op("Less", y, cx.like(64, y))
        else:
            ok = both(cx, cx.op("GreaterOrEqual", amount, cx.like(0, amount)),
                      cx.op("Less", amount, cx.like(dtype.itemsize * 8, amount)))  # fmt: skip
        by = cx.cast(where(cx, ok, amount, cx.like(0, amount)), DType.u64)
        minus = cx.op("And", negative(cx, wide), cx.const(np.asarray(dtype.is_signed)))
        if direction == "RIGHT":
            wide = where(cx, minus, cx.op("BitwiseNot", wide), wide)
        out = cx.cast(cx.op("BitShift", cx.cast(wide, DType.u64), by, direction=direction), DType.i64)
        fill = cx.like(0, out)
        if direction == "RIGHT":
            out = where(cx, minus, cx.op("BitwiseNot", out), out)
            fill = where(cx, minus, cx.like(-1, out), fill)
        return cx.cast(where(cx, ok, out, fill), dtype)

    return run


def gcd(cx: Cx, x: str, y: str) -> str:
    """Euclid's algorithm; 92 steps are enough for 64 bits, and once a remainder is 0 nothing changes."""
    dtype = cx.dtype(x)
    steps = {1: 13, 2: 24, 4: 47, 8: 93}[dtype.itemsize]
    a, b = (cx.cast(v, DType.i64) for v in (x, y))
    zero = cx.like(0, a)
    shape = cx.raw("Shape", [cx.op("Add", a, b)], [DType.i64])[0]
    start = [cx.op("Expand", cx.op("Abs", v), shape) for v in (a, b)]

    def step(inner: Cx, i: str, carry: list[str]) -> list[str]:
        p, q = carry
        done = inner.op("Equal", q, zero)
        rest = inner.op("Mod", p, inner.op("Where", done, inner.like(1, p), q))
        return [inner.op("Where", done, p, q), inner.op("Where", done, zero, rest)]

    return cx.cast(cx.loop(cx.const(np.asarray(steps, np.int64)), start, step)[0], dtype)


def lcm(cx: Cx, x: str, y: str) -> str:
    g = gcd(cx, x, y)
    safe = where(cx, cx.op("Equal", g, cx.like(0, g)), cx.like(1, g), g)
    return cx.op("Abs", cx.op("Mul", cx.op("Div", x, safe), y))


COMPOSED_2: dict[str, Callable[[Cx, str, str], str]] = {
    "floor_div": floor_div, "remainder": remainder, "fmod": lambda cx, x, y: cx.op("Mod", x, y, fmod=1), "pow": power,
    "atan2": atan2, "hypot": hypot, "copysign": copysign, "nextafter": nextafter, "fmax": fextreme("Max"),
    "fmin": fextreme("Min"), "shl": shift("LEFT"), "shr": shift("RIGHT"), "gcd": gcd, "lcm": lcm,
    "ne": lambda cx, x, y: cx.op("Not", cx.op("Equal", x, y)),
    "logical_and": lambda cx, x, y: cx.op("And", nonzero(cx, x), nonzero(cx, y)),
    "logical_or": lambda cx, x, y: cx.op("Or", nonzero(cx, x), nonzero(cx, y)),
    "logical_xor": lambda cx, x, y: cx.op("Xor", nonzero(cx, x), nonzero(cx, y)),
}  # fmt: skip


@emits(*(set(BINARY) | set(COMPOSED_2)), wide=True, complex=True)
def binary(cx: Cx, node: Node, x: Any, y: Any) -> Any:
    op = node.op
    if isinstance(x, Pair):
        return _complex_binary(cx, op, x, y)
    if cx.dtype(x).is_bool and op in ("lt", "le", "gt", "ge"):
        low, high = (x, y) if op in ("lt", "le") else (y, x)
        return cx.op("Less" if op in ("lt", "gt") else "LessOrEqual", cx.cast(low, DType.u8), cx.cast(high, DType.u8))
    if cx.dtype(x).is_bool and op in ON_BOOLS:
        return cx.op(ON_BOOLS[op], x, y)
    if op == "trunc_div" and is_float(cx, x):
        return trunc(cx, cx.op("Div", x, y))
    if op == "maximum" and is_float(cx, x) and (zero := cx.known(y)) is not None and zero.size == 1 and zero == 0:
        return cx.op("Relu", x)
    if op in COMPOSED_2:
        return COMPOSED_2[op](cx, x, y)
    return cx.op(BINARY[op], x, y)


@emits("where", complex=True)
def where_(cx: Cx, node: Node, c: str, x: Any, y: Any) -> Any:
    if isinstance(x, Pair):
        return Pair(where(cx, c, x.re, y.re), where(cx, c, x.im, y.im))
    return where(cx, c, x, y)


@emits("convert", complex=True)
def convert(cx: Cx, node: Node, x: Any) -> Any:
    dtype = node.attrs["dtype"]
    if dtype.is_complex:
        if isinstance(x, Pair):
            return Pair(cx.cast(x.re, dtype.real), cx.cast(x.im, dtype.real))
        re = cx.cast(x, dtype.real)
        return Pair(re, mul(cx, re, 0))
    if dtype.is_bool:
        return nonzero(cx, x)
    if isinstance(x, Pair):
        x = x.re
    if dtype.is_int and cx.dtype(x).is_float:
        x = cx.cast(x, DType.i64)  # a float beyond a short integer's range has no defined cast
    return cx.cast(x, dtype)


@emits("bitcast")
def bitcast_(cx: Cx, node: Node, x: str) -> str:
    dtype = node.attrs["dtype"]
    if dtype.is_bool or cx.dtype(x).is_bool:
        raise Refuse("ONNX's BitCast takes no bool")
    return bitcast(cx, x, dtype)


# Complex numbers ------------------------------------------------------------------------------------------------------


@emits("complex", complex=True)
def complex_(cx: Cx, node: Node, re: str, im: str) -> Pair:
    if node.operands[0].shape != node.operands[1].shape:
        zero = cx.op("Mul", cx.op("Add", re, im), cx.like(0, re))
        shape = cx.raw("Shape", [zero], [DType.i64])[0]
        re, im = cx.op("Expand", re, shape), cx.op("Expand", im, shape)
    return Pair(re, im)


@emits("real", "imag", "view_as_real", "view_as_complex", "conj", "cabs", "angle", "sgn", complex=True)
def component(cx: Cx, node: Node, x: Any) -> Any:
    op = node.op
    if op == "view_as_complex":
        return cx.split(x)
    if op == "real":
        return x.re
    if op == "imag":
        return x.im
    if op == "view_as_real":
        return cx.join(x)
    if op == "conj":
        return Pair(x.re, cx.op("Neg", x.im))
    if op == "cabs":
        return cabs(cx, x)
    if op == "angle":
        return atan2(cx, x.im, x.re)
    r = cabs(cx, x)
    zero = cx.op("Equal", r, cx.like(0, r))
    safe = where(cx, zero, cx.like(1, r), r)
    return Pair(*(where(cx, zero, cx.like(0, r), cx.op("Div", v, safe)) for v in (x.re, x.im)))


def cabs(cx: Cx, z: Pair) -> str:
    return hypot(cx, z.re, z.im)


def cadd(cx: Cx, x: Pair, y: Pair) -> Pair:
    return Pair(cx.op("Add", x.re, y.re), cx.op("Add", x.im, y.im))


def csub(cx: Cx, x: Pair, y: Pair) -> Pair:
    return Pair(cx.op("Sub", x.re, y.re), cx.op("Sub", x.im, y.im))


def cmul(cx: Cx, x: Pair, y: Pair) -> Pair:
    return Pair(
        cx.op("Sub", cx.op("Mul", x.re, y.re), cx.op("Mul", x.im, y.im)),
        cx.op("Add", cx.op("Mul", x.re, y.im), cx.op("Mul", x.im, y.re)),
    )


def cscale(cx: Cx, z: Pair, k: float) -> Pair:
    return Pair(mul(cx, z.re, k), mul(cx, z.im, k))


def cdiv(cx: Cx, x: Pair, y: Pair) -> Pair:
    """Smith's way: no square of the divisor, so nothing overflows."""
    big = cx.op("GreaterOrEqual", cx.op("Abs", y.re), cx.op("Abs", y.im))
    p, q = where(cx, big, y.re, y.im), where(cx, big, y.im, y.re)
    r = cx.op("Div", q, p)
    d = cx.op("Add", p, cx.op("Mul", q, r))
    a, b = where(cx, big, x.re, x.im), where(cx, big, x.im, x.re)
    re = cx.op("Div", cx.op("Add", a, cx.op("Mul", b, r)), d)
    im = cx.op("Div", cx.op("Sub", b, cx.op("Mul", a, r)), d)
    return Pair(re, where(cx, big, im, cx.op("Neg", im)))


def cexp(cx: Cx, z: Pair) -> Pair:
    e = cx.op("Exp", z.re)
    return Pair(cx.op("Mul", e, cx.op("Cos", z.im)), cx.op("Mul", e, cx.op("Sin", z.im)))


def clog(cx: Cx, z: Pair) -> Pair:
    return Pair(cx.op("Log", cabs(cx, z)), atan2(cx, z.im, z.re))


def csqrt(cx: Cx, z: Pair) -> Pair:
    a = cx.op("Abs", z.re)
    t = cx.op("Sqrt", mul(cx, add(cx, a, cabs(cx, z)), 0.5))
    none = cx.op("Equal", t, cx.like(0, t))
    half = where(cx, none, cx.like(0, t), div(cx, cx.op("Abs", z.im), mul(cx, where(cx, none, cx.like(1, t), t), 2)))
    left = negative(cx, z.re)
    return Pair(where(cx, left, half, t), copysign(cx, where(cx, left, t, half), z.im))


def times_i(cx: Cx, z: Pair, sign: int = 1) -> Pair:
    return Pair(cx.op("Neg", z.im), z.re) if sign > 0 else Pair(z.im, cx.op("Neg", z.re))


def csinh(cx: Cx, z: Pair) -> Pair:
    return Pair(cx.op("Mul", sinh(cx, z.re), cx.op("Cos", z.im)), cx.op("Mul", cosh(cx, z.re), cx.op("Sin", z.im)))


def ccosh(cx: Cx, z: Pair) -> Pair:
    return Pair(cx.op("Mul", cosh(cx, z.re), cx.op("Cos", z.im)), cx.op("Mul", sinh(cx, z.re), cx.op("Sin", z.im)))


def ctanh(cx: Cx, z: Pair) -> Pair:
    """tanh(a + ib) = (t (1 + tan^2 b) + i tan b / cosh^2 a) / (1 + t^2 tan^2 b), written without overflow in a."""
    t, s, c = cx.op("Tanh", z.re), cx.op("Sin", z.im), cx.op("Cos", z.im)
    sech2 = sub(cx, cx.like(1, t), cx.op("Mul", t, t))
    d = cx.op("Add", cx.op("Mul", c, c), cx.op("Mul", cx.op("Mul", t, t), cx.op("Mul", s, s)))
    return Pair(cx.op("Div", t, d), cx.op("Div", cx.op("Mul", sech2, cx.op("Mul", s, c)), d))


def casinh(cx: Cx, z: Pair) -> Pair:
    """log(z + sqrt(z^2 + 1)), of -z in the left half plane, where the sum would cancel."""
    flip = negative(cx, z.re)
    w = Pair(*(where(cx, flip, cx.op("Neg", v), v) for v in (z.re, z.im)))
    q = cmul(cx, w, w)
    y = clog(cx, cadd(cx, w, csqrt(cx, Pair(add(cx, q.re, 1), q.im))))
    return Pair(*(where(cx, flip, cx.op("Neg", v), v) for v in (y.re, y.im)))


def casin(cx: Cx, z: Pair) -> Pair:
    return times_i(cx, casinh(cx, times_i(cx, z)), -1)


def cacos(cx: Cx, z: Pair) -> Pair:
    y = casin(cx, z)
    return Pair(sub(cx, cx.like(math.pi / 2, y.re), y.re), cx.op("Neg", y.im))


def cacosh(cx: Cx, z: Pair) -> Pair:
    """log(z + sqrt(z + 1) sqrt(z - 1))."""
    root = cmul(cx, csqrt(cx, Pair(add(cx, z.re, 1), z.im)), csqrt(cx, Pair(sub(cx, z.re, 1), z.im)))
    return clog(cx, cadd(cx, z, root))


def catanh(cx: Cx, z: Pair) -> Pair:
    one = cx.like(1, z.re)
    a = clog(cx, Pair(add(cx, z.re, 1), z.im))
    b = clog(cx, Pair(sub(cx, one, z.re), cx.op("Neg", z.im)))
    return cscale(cx, csub(cx, a, b), 0.5)


def creciprocal(cx: Cx, z: Pair) -> Pair:
    return cdiv(cx, Pair(add(cx, mul(cx, z.re, 0), 1), mul(cx, z.re, 0)), z)


COMPLEX: dict[str, Callable[[Cx, Pair], Any]] = {
    "neg": lambda cx, z: Pair(cx.op("Neg", z.re), cx.op("Neg", z.im)),
    "exp": cexp, "log": clog, "sqrt": csqrt, "sinh": csinh, "cosh": ccosh, "tanh": ctanh, "asinh": casinh,
    "acosh": cacosh, "asin": casin, "acos": cacos, "atanh": catanh, "reciprocal": creciprocal,
    "sin": lambda cx, z: times_i(cx, csinh(cx, times_i(cx, z)), -1),
    "cos": lambda cx, z: ccosh(cx, times_i(cx, z)),
    "tan": lambda cx, z: times_i(cx, ctanh(cx, times_i(cx, z)), -1),
    "atan": lambda cx, z: times_i(cx, catanh(cx, times_i(cx, z)), -1),
    "log2": lambda cx, z: cscale(cx, clog(cx, z), 1 / math.log(2)),
    "log10": lambda cx, z: cscale(cx, clog(cx, z), 1 / math.log(10)),
    "rsqrt": lambda cx, z: creciprocal(cx, csqrt(cx, z)),
    "sigmoid": lambda cx, z: _csigmoid(cx, z),
    "isnan": lambda cx, z: cx.op("Or", cx.op("IsNaN", z.re), cx.op("IsNaN", z.im)),
    "isinf": lambda cx, z: cx.op("Or", cx.op("IsInf", z.re), cx.op("IsInf", z.im)),
    "isfinite": lambda cx, z: cx.op("Not", cx.op("Or", _beyond(cx, z.re), _beyond(cx, z.im))),
    "logical_not": lambda cx, z: cx.op("Not", nonzero(cx, z)),
}  # fmt: skip


def _beyond(cx: Cx, x: str) -> str:
    return cx.op("Or", cx.op("IsNaN", x), cx.op("IsInf", x))


def _csigmoid(cx: Cx, z: Pair) -> Pair:
    e = cexp(cx, Pair(cx.op("Neg", z.re), cx.op("Neg", z.im)))
    return creciprocal(cx, Pair(add(cx, e.re, 1), e.im))


CHEAP = {"neg", "isnan", "isinf", "isfinite", "logical_not"}


def _complex_unary(cx: Cx, node: Node, z: Pair) -> Any:
    f = COMPLEX.get(node.op)
    if f is None:
        raise Refuse("not written for complex numbers")
    if node.op in CHEAP:
        return f(cx, z)
    # Formulas for complex functions cancel here and there: f64 leaves f32 results right.
    return f(cx, Pair(cx.cast(z.re, DType.f64), cx.cast(z.im, DType.f64)))


def _complex_binary(cx: Cx, op: str, x: Pair, y: Pair) -> Any:
    if op in ("add", "sub"):
        return (cadd if op == "add" else csub)(cx, x, y)
    if op == "mul":
        return cmul(cx, x, y)
    if op == "div":
        return cdiv(cx, x, y)
    if op in ("eq", "ne"):
        same = cx.op("And", cx.op("Equal", x.re, y.re), cx.op("Equal", x.im, y.im))
        return same if op == "eq" else cx.op("Not", same)
    if op.startswith("logical_"):
        return COMPOSED_2[op](cx, nonzero(cx, x), nonzero(cx, y))
    if op == "pow":
        wide = [Pair(cx.cast(z.re, DType.f64), cx.cast(z.im, DType.f64)) for z in (x, y)]
        return cexp(cx, cmul(cx, wide[1], clog(cx, wide[0])))
    raise Refuse("not written for complex numbers")
