"""Unary and binary arithmetic, comparisons, logic, bits, casts and copies."""

from __future__ import annotations

import math
from typing import Any

import torch

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context, is_number
from ..registry import Unsupported, aten

# Unary ---------------------------------------------------------------------------------------------------------------


def _float_unary(ir: str) -> Any:
    def f(cx: Context, x: Value) -> Value:
        return cx.b.op(ir, cx.convert(x, cx.out.dtype))  # type: ignore[no-any-return]

    return f


for _name in (
    "acos acosh asin asinh atan atanh cos cosh digamma erf erfc erfinv exp lgamma log log10 log2 reciprocal "
    "rsqrt sigmoid sin sinh "
    "sqrt tan tanh"
).split():
    aten(_name)(_float_unary(_name))
aten("special_erfcx")(_float_unary("erfcx"))


@aten("expm1")
def _expm1(cx: Context, x: Value) -> Value:
    x = cx.convert(x, cx.out.dtype)
    return cx.op("sub", cx.op("exp", x), 1) if x.dtype.is_complex else cx.op("expm1", x)


@aten("log1p")
def _log1p(cx: Context, x: Value) -> Value:
    x = cx.convert(x, cx.out.dtype)
    return cx.op("log", cx.add(x, 1)) if x.dtype.is_complex else cx.op("log1p", x)


@aten("exp2")
def _exp2(cx: Context, x: Value) -> Value:
    x = cx.convert(x, cx.out.dtype)
    return cx.op("exp", cx.mul(x, math.log(2))) if x.dtype.is_complex else cx.op("exp2", x)


def _rounding(ir: str) -> Any:
    def f(cx: Context, x: Value) -> Value:
        return cx.b.op(ir, x) if x.dtype.is_float else x

    return f


for _name in ("ceil", "floor", "round", "trunc", "fix"):
    aten(_name)(_rounding("trunc" if _name == "fix" else _name))


@aten("round.decimals")
def _round_decimals(cx: Context, x: Value, *, decimals: int) -> Value:
    if not x.dtype.is_float or decimals == 0:
        return cx.b.op("round", x) if x.dtype.is_float else x  # type: ignore[no-any-return]
    v = cx.opmath(x)
    ten = 10.0 ** abs(decimals)
    y = cx.div(cx.op("round", cx.mul(v, ten)), ten) if decimals > 0 else cx.mul(cx.op("round", cx.div(v, ten)), ten)
    return cx.convert(y, x.dtype)


@aten("abs")
def _abs(cx: Context, x: Value) -> Value:
    if x.dtype.is_complex:
        return cx.convert(cx.op("cabs", x), cx.out.dtype)
    return cx.op("abs", x) if x.dtype.is_signed else x


@aten("neg", "_neg_view")
def _neg(cx: Context, x: Value) -> Value:
    return cx.op("neg", x)


@aten("sign")
def _sign(cx: Context, x: Value) -> Value:
    return x if x.dtype.is_bool else cx.op("sign", x)


@aten("sgn")
def _sgn(cx: Context, x: Value) -> Value:
    return cx.op("sgn", x) if x.dtype.is_complex else _sign(cx, x)


@aten(
    "positive",
    "clone",
    "detach",
    "alias",
    "lift_fresh_copy",
    "lift_fresh",
    "lift",
    "contiguous",
    "resolve_conj",
    "resolve_neg",
    "prims::view_of",
    "detach_copy",
    "alias_copy",
)
def _identity(cx: Context, x: Value, **_: Any) -> Value:
    return x


@aten("square")
def _square(cx: Context, x: Value) -> Value:
    x = cx.convert(x, cx.out.dtype)
    return cx.mul(x, x)


@aten("frac")
def _frac(cx: Context, x: Value) -> Value:
    return cx.sub(x, cx.op("trunc", x))


@aten("logical_not")
def _logical_not(cx: Context, x: Value) -> Value:
    return cx.op("logical_not", x)


@aten("bitwise_not")
def _bitwise_not(cx: Context, x: Value) -> Value:
    return cx.op("bitwise_not", x)


def _class_of(ir: str, for_ints: bool) -> Any:
    def f(cx: Context, x: Value) -> Value:
        if x.dtype.is_float or x.dtype.is_complex:
            return cx.op(ir, x)
        return cx.full(for_ints, x.shape, DType.bool)

    return f


aten("isnan")(_class_of("isnan", False))
aten("isinf")(_class_of("isinf", False))
aten("isfinite")(_class_of("isfinite", True))


@aten("isposinf")
def _isposinf(cx: Context, x: Value) -> Value:
    return cx.op("eq", x, math.inf) if x.dtype.is_float else cx.full(False, x.shape, DType.bool)


@aten("isneginf")
def _isneginf(cx: Context, x: Value) -> Value:
    return cx.op("eq", x, -math.inf) if x.dtype.is_float else cx.full(False, x.shape, DType.bool)


@aten("isreal")
def _isreal(cx: Context, x: Value) -> Value:
    return cx.op("eq", cx.op("imag", x), 0) if x.dtype.is_complex else cx.full(True, x.shape, DType.bool)


@aten("signbit")
def _signbit(cx: Context, x: Value) -> Value:
    if x.dtype.is_float:
        return cx.op("signbit", x)
    return cx.op("lt", x, 0) if x.dtype.is_signed and x.dtype.is_int else cx.full(False, x.shape, DType.bool)


@aten("conj", "_conj", "conj_physical", "_conj_physical", "_conj_copy")
def _conj(cx: Context, x: Value) -> Value:
    return cx.op("conj", x) if x.dtype.is_complex else x


@aten("real")
def _real(cx: Context, x: Value) -> Value:
    return cx.op("real", x) if x.dtype.is_complex else x


@aten("imag")
def _imag(cx: Context, x: Value) -> Value:
    return cx.op("imag", x)


@aten("angle")
def _angle(cx: Context, x: Value) -> Value:
    if x.dtype.is_complex:
        return cx.op("angle", x)
    x = cx.convert(x, cx.out.dtype)
    y = cx.where(cx.op("lt", x, 0), cx.const(math.pi, x.dtype), 0.0)
    return cx.where(cx.op("isnan", x), x, y)


@aten("deg2rad")
def _deg2rad(cx: Context, x: Value) -> Value:
    return cx.mul(cx.convert(x, cx.out.dtype), math.pi / 180)


@aten("rad2deg")
def _rad2deg(cx: Context, x: Value) -> Value:
    return cx.mul(cx.convert(x, cx.out.dtype), 180 / math.pi)


@aten("sinc", "special_sinc")
def _sinc(cx: Context, x: Value) -> Value:
    v = cx.opmath(cx.convert(x, cx.out.dtype))
    a = cx.mul(v, math.pi)
    zero = cx.op("eq", a, 0)
    y = cx.where(zero, cx.const(1, v.dtype), cx.div(cx.op("sin", a), a))
    return cx.convert(y, cx.out.dtype)


@aten("nan_to_num")
def _nan_to_num(cx: Context, x: Value, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Value:
    if x.dtype.is_complex:
        parts = [_nan_to_num(cx, cx.op(p, x), nan, posinf, neginf) for p in ("real", "imag")]
        return cx.op("complex", *parts)
    if not x.dtype.is_float:
        return x
    info = torch.finfo(
        getattr(torch, {"f16": "float16", "bf16": "bfloat16", "f64": "float64"}.get(x.dtype.value, "float32"))
    )
    y = cx.where(cx.op("isnan", x), cx.const(nan or 0.0, x.dtype), x)
    y = cx.where(cx.op("eq", x, math.inf), cx.const(info.max if posinf is None else posinf, x.dtype), y)
    return cx.where(cx.op("eq", x, -math.inf), cx.const(info.min if neginf is None else neginf, x.dtype), y)


# Binary --------------------------------------------------------------------------------------------------------------


def exact_pair(cx: Context, x: Any, y: Any, dtype: DType) -> tuple[Value, Value]:
    """Operands of arithmetic in ``dtype``: in f32 where a Python number would be rounded by a half type first."""
    halves = dtype.compute is not dtype
    if halves and any(is_number(v) and not cx.exact(v, dtype) for v in (x, y)):
        work = dtype.compute
    else:
        work = dtype
    return cx.scalar(_first(cx, x, dtype), work), cx.scalar(_first(cx, y, dtype), work)


def _first(cx: Context, x: Any, dtype: DType) -> Any:
    """A tensor operand takes the common dtype before anything else."""
    return cx.convert(x, dtype) if isinstance(x, Value) else x


def arithmetic(cx: Context, ir: str, x: Any, y: Any) -> Value:
    out = cx.out.dtype
    a, b = exact_pair(cx, x, y, out)
    return cx.convert(cx.op(ir, a, b), out)


@aten("add")
def _add(cx: Context, x: Any, y: Any, alpha: Any = 1) -> Value:
    out = cx.out.dtype
    if out.is_bool:
        return cx.op("logical_or", cx.scalar(x, out), cx.scalar(_scaled(cx, y, alpha, out), out))
    return arithmetic(cx, "add", x, _scaled(cx, y, alpha, out))


def _scaled(cx: Context, y: Any, alpha: Any, out: DType) -> Any:
    if isinstance(alpha, (int, float, complex)) and alpha == 1:
        return y
    if not isinstance(y, Value):
        return y * alpha
    if out.is_bool:
        return y if alpha else cx.broadcast(cx.const(False, out), y.shape)
    return cx.mul(cx.opmath(cx.convert(y, out)), alpha) if out.compute is out else _half_scaled(cx, y, alpha, out)


def _half_scaled(cx: Context, y: Value, alpha: Any, out: DType) -> Value:
    return cx.convert(cx.mul(cx.convert(y, out.compute), alpha), out)


@aten("sub", "subtract")
def _sub(cx: Context, x: Any, y: Any, alpha: Any = 1) -> Value:
    return arithmetic(cx, "sub", x, _scaled(cx, y, alpha, cx.out.dtype))


@aten("rsub")
def _rsub(cx: Context, x: Any, y: Any, alpha: Any = 1) -> Value:
    return arithmetic(cx, "sub", y, _scaled(cx, x, alpha, cx.out.dtype))


@aten("mul", "multiply")
def _mul(cx: Context, x: Any, y: Any) -> Value:
    return arithmetic(cx, "mul", x, y)


@aten("div", "true_divide", "divide")
def _div(cx: Context, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return arithmetic(cx, "div", x, y)
    return arithmetic(cx, "floor_div" if rounding_mode == "floor" else "trunc_div", x, y)


@aten("floor_divide")
def _floor_divide(cx: Context, x: Any, y: Any) -> Value:
    return arithmetic(cx, "floor_div", x, y)


def _same_binary(ir: str, logical: str | None = None) -> Any:
    def f(cx: Context, x: Any, y: Any) -> Value:
        a, b = cx.same(x, y, dtype=cx.out.dtype)
        return cx.op(logical if logical and a.dtype.is_bool else ir, a, b)

    return f


for _name, _ir in [
    ("remainder", "remainder"),
    ("fmod", "fmod"),
    ("maximum", "maximum"),
    ("minimum", "minimum"),
    ("atan2", "atan2"),
    ("hypot", "hypot"),
    ("copysign", "copysign"),
    ("nextafter", "nextafter"),
    ("bitwise_and", "bitwise_and"),
    ("bitwise_or", "bitwise_or"),
    ("bitwise_xor", "bitwise_xor"),
    ("__and__", "bitwise_and"),
    ("__or__", "bitwise_or"),
    ("__xor__", "bitwise_xor"),
    ("bitwise_left_shift", "shl"),
    ("bitwise_right_shift", "shr"),
    ("__lshift__", "shl"),
    ("__rshift__", "shr"),
    ("gcd", "gcd"),
    ("lcm", "lcm"),
    ("max.other", "maximum"),
    ("min.other", "minimum"),
]:
    aten(_name)(_same_binary(_ir))


def _fmax(float_op: str, other: str) -> Any:
    def f(cx: Context, x: Value, y: Value) -> Value:
        a, b = cx.same(x, y, dtype=cx.out.dtype)
        return cx.op(float_op if a.dtype.is_float else other, a, b)

    return f


aten("fmax")(_fmax("fmax", "maximum"))
aten("fmin")(_fmax("fmin", "minimum"))


def _comparison(ir: str) -> Any:
    def f(cx: Context, x: Any, y: Any) -> Value:
        return cx.op(ir, *cx.same(x, y))

    return f


for _name in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"):
    aten(_name)(_comparison(_name))


def _power(cx: Context, x: Any, y: Any) -> Value:
    out = cx.out.dtype
    if out.is_bool:  # x ** y on bools is (not y) or x
        a, b = cx.same(x, y, dtype=out)
        return cx.op("logical_or", cx.op("logical_not", b), a)
    if isinstance(x, Value) and isinstance(y, (int, float)):
        v = cx.convert(x, out)
        if y == 1:
            return v
        if y == 0:
            return cx.broadcast(cx.const(1, out), v.shape)
        if y == 2:
            return cx.mul(v, v)
        w = cx.opmath(v)
        if y == 3:
            return cx.convert(cx.mul(cx.mul(w, w), w), out)
        if out.is_float and y in (0.5, -0.5, -1):
            return cx.op({0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}[float(y)], v)
    return arithmetic(cx, "pow", x, y)


aten("pow", "float_power")(_power)


@aten("logaddexp")
def _logaddexp(cx: Context, x: Value, y: Value) -> Value:
    a, b = cx.same(x, y, dtype=cx.out.dtype)
    if a.dtype.is_complex:
        return _complex_logaddexp(cx, a, b)
    return cx.op("logaddexp", a, b)


def _complex_logaddexp(cx: Context, x: Value, y: Value) -> Value:
    """torch's order: the operand with the larger real part outside; NaN as the sum."""
    rx, ry = cx.op("real", x), cx.op("real", y)
    first = cx.op("ge", rx, ry)
    hi, lo = cx.where(first, x, y), cx.where(first, y, x)
    body = cx.add(hi, _complex_log1p(cx, cx.op("exp", cx.sub(lo, hi))))
    same_inf = cx.op("logical_and", cx.op("eq", rx, ry), cx.op("isinf", rx))
    negative = cx.op("lt", cx.op("real", lo), 0)
    return cx.where(same_inf, cx.where(negative, lo, cx.op("log", cx.add(cx.op("exp", lo), cx.op("exp", hi)))), body)


def _complex_log1p(cx: Context, z: Value) -> Value:
    """log(1+z) without cancellation: log1p(x*(x+2) + y*y)/2 and atan2(y, x+1)."""
    x, y = cx.op("real", z), cx.op("imag", z)
    re = cx.mul(cx.op("log1p", cx.add(cx.mul(x, cx.add(x, 2.0)), cx.mul(y, y))), 0.5)
    return cx.op("complex", re, cx.op("atan2", y, cx.add(x, 1.0)))


@aten("logaddexp2")
def _logaddexp2(cx: Context, x: Value, y: Value) -> Value:
    a, b = (cx.opmath(v) for v in cx.same(x, y, dtype=cx.out.dtype))
    if a.dtype.is_complex:
        raise Unsupported("complex operands")
    m = cx.op("maximum", a, b)
    tail = cx.mul(cx.op("log1p", cx.op("exp2", cx.op("neg", cx.op("abs", cx.sub(a, b))))), 1 / math.log(2))
    same = cx.op("logical_and", cx.op("eq", a, b), cx.op("isinf", a))
    return cx.convert(cx.where(same, a, cx.add(m, tail)), cx.out.dtype)


def _xlog(ir: str) -> Any:
    def f(cx: Context, x: Any, y: Any) -> Value:
        out = cx.out.dtype
        a, b = (cx.scalar(v, out) for v in (x, y))
        a, b = cx.opmath(a), cx.opmath(b)
        y2 = cx.where(cx.op("eq", a, 0), cx.const(0, a.dtype), cx.mul(a, cx.op(ir, b)))
        return cx.convert(cx.where(cx.op("isnan", b), b, y2), out)

    return f


aten("xlogy", "special_xlogy")(_xlog("log"))
aten("special_xlog1py")(_xlog("log1p"))


@aten("heaviside")
def _heaviside(cx: Context, x: Value, values: Value) -> Value:
    a, b = cx.same(x, values, dtype=cx.out.dtype)
    if a.dtype.is_bool:
        return cx.op("logical_or", a, b)
    step = cx.convert(cx.op("gt", a, 0), a.dtype)
    return cx.where(cx.op("eq", a, 0), b, step)


@aten("ldexp.Tensor")
def _ldexp(cx: Context, x: Value, other: Value) -> Value:
    out = cx.out.dtype
    power = cx.convert(other, out.compute)
    two = cx.op("exp", cx.mul(power, math.log(2))) if out.is_complex else cx.op("exp2", power)
    return cx.convert(cx.mul(cx.convert(x, out.compute), two), out)


@aten("lerp")
def _lerp(cx: Context, start: Value, end: Value, weight: Any) -> Value:
    out = cx.out.dtype
    work = out.compute
    s, e, w = cx.convert(start, work), cx.convert(end, work), cx.scalar(weight, work)
    size = cx.op("cabs", w) if work.is_complex else cx.op("abs", w)
    diff = cx.sub(e, s)
    near = cx.add(s, cx.mul(w, diff))
    far = cx.sub(e, cx.mul(diff, cx.sub(1, w)))
    return cx.convert(cx.where(cx.op("lt", size, 0.5), near, far), out)


@aten("addcmul")
def _addcmul(cx: Context, x: Value, a: Value, b: Value, value: Any = 1) -> Value:
    out = cx.out.dtype
    v, p, q = (cx.convert(t, out.compute) for t in (x, a, b))
    return cx.convert(cx.add(v, cx.scale(cx.mul(p, q), value)), out)


@aten("addcdiv")
def _addcdiv(cx: Context, x: Value, a: Value, b: Value, value: Any = 1) -> Value:
    out = cx.out.dtype
    v, p, q = (cx.convert(t, out.compute) for t in (x, a, b))
    return cx.convert(cx.add(v, cx.scale(cx.div(p, q), value)), out)


@aten("complex")
def _complex(cx: Context, re: Value, im: Value) -> Value:
    return cx.op("complex", re, im)


@aten("polar")
def _polar(cx: Context, radius: Value, angle: Value) -> Value:
    return cx.op("complex", cx.mul(radius, cx.op("cos", angle)), cx.mul(radius, cx.op("sin", angle)))


# Choosing ------------------------------------------------------------------------------------------------------------


@aten("clamp", "clip")
def _clamp(cx: Context, x: Value, min: Any = None, max: Any = None) -> Value:
    out = cx.out.dtype
    y = cx.convert(x, out)
    if min is not None:
        y = cx.op("maximum", y, cx.scalar(min, out))
    if max is not None:
        y = cx.op("minimum", y, cx.scalar(max, out))
    return y


@aten("clamp_min")
def _clamp_min(cx: Context, x: Value, min: Any) -> Value:
    return _clamp(cx, x, min)


@aten("clamp_max")
def _clamp_max(cx: Context, x: Value, max: Any) -> Value:
    return _clamp(cx, x, None, max)


@aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(cx: Context, condition: Value, x: Any, y: Any) -> Value:
    out = cx.out.dtype
    c = condition if condition.dtype.is_bool else cx.op("ne", condition, 0)
    return cx.where(c, cx.scalar(x, out), cx.scalar(y, out))


@aten("masked_fill")
def _masked_fill(cx: Context, x: Value, mask: Value, value: Any) -> Value:
    return cx.where(mask, cx.scalar(value, x.dtype), x)


@aten("_to_copy")
def _to_copy(cx: Context, x: Value, **_: Any) -> Value:
    return cx.convert(x, cx.out.dtype)


@aten("prims::convert_element_type", "to.dtype")
def _convert(cx: Context, x: Value, dtype: Any, *_: Any, **__: Any) -> Value:
    return cx.convert(x, cx.out.dtype)


@aten("copy")
def _copy(cx: Context, x: Value, src: Any, non_blocking: bool = False) -> Value:
    return cx.broadcast(cx.scalar(src, x.dtype), x.shape)


@aten("fill")
def _fill(cx: Context, x: Value, value: Any) -> Value:
    return cx.full(value, x.shape, x.dtype)


@aten("isclose")
def _isclose(cx: Context, x: Value, y: Value, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Value:
    dt = cx.result_type(x, y)
    a, b = cx.convert(x, dt), cx.convert(y, dt)
    near = cx.op("eq", a, b)
    if equal_nan and (dt.is_float or dt.is_complex):
        near = cx.op("logical_or", near, cx.op("logical_and", cx.op("isnan", a), cx.op("isnan", b)))
    if rtol == 0 and atol == 0:
        return near
    work = dt if dt.is_float or dt.is_complex else DType.f64
    p, q = cx.convert(a, work.compute), cx.convert(b, work.compute)
    size = "cabs" if work.is_complex else "abs"
    allowed = cx.add(cx.mul(cx.op(size, q), rtol), atol)
    actual = cx.op(size, cx.sub(p, q))
    close = cx.op("logical_and", cx.op("isfinite", actual), cx.op("le", actual, allowed))
    return cx.op("logical_or", near, close)


@aten("view.dtype", "prims::bitcast")
def _view_dtype(cx: Context, x: Value, dtype: Any) -> Value:
    """Reinterprets the bytes; the last dim shrinks or grows with the element size."""
    out = cx.out.dtype
    if out is x.dtype:
        return x
    a, b = x.dtype.itemsize, out.itemsize
    if a == b and not x.dtype.is_complex and not out.is_complex:
        return cx.op("bitcast", x, dtype=out)
    if x.dtype.is_complex and out is x.dtype.real:
        y = cx.op("view_as_real", x)
        return cx.reshape(y, (*x.shape[:-1], x.shape[-1] * 2))
    if out.is_complex and x.dtype is out.real:
        return cx.op("view_as_complex", cx.reshape(x, (*x.shape[:-1], x.shape[-1] // 2, 2)))
    return _resized_bits(cx, x, out)


def _resized_bits(cx: Context, x: Value, out: DType) -> Value:
    unsigned = {1: DType.u8, 2: DType.u16, 4: DType.u32, 8: DType.u64}
    a, b = x.dtype.itemsize, out.itemsize
    if x.dtype.is_complex:
        return _resized_bits(cx, cx.reshape(cx.op("view_as_real", x), (*x.shape[:-1], x.shape[-1] * 2)), out)
    if out.is_complex:
        y = _resized_bits(cx, x, out.real)
        return cx.op("view_as_complex", cx.reshape(y, (*y.shape[:-1], y.shape[-1] // 2, 2)))
    if a not in unsigned or b not in unsigned:
        raise Unsupported(f"reinterpreting {x.dtype} as {out}")
    bits = cx.op("bitcast", x, dtype=unsigned[a]) if x.dtype is not unsigned[a] else x
    wide = cx.convert(bits, DType.i64)
    if a > b:  # split, little end first
        shifts = cx.op("mul", cx.iota(a // b), 8 * b)
        parts = cx.op("bitwise_and", cx.op("shr", cx.unsqueeze(wide, -1), shifts), (1 << 8 * b) - 1)
        y = cx.convert(cx.reshape(parts, (*x.shape[:-1], x.shape[-1] * (a // b))), unsigned[b])
    elif a < b:
        k = b // a
        parts = cx.reshape(wide, (*x.shape[:-1], x.shape[-1] // k, k))
        shifts = cx.op("mul", cx.iota(k), 8 * a)
        y = cx.convert(cx.reduce("sum", cx.op("shl", parts, shifts), (parts.rank - 1,)), unsigned[b])
    else:
        y = bits
    return cx.op("bitcast", y, dtype=out) if out is not unsigned[b] else y


@aten("frexp", "prims::frexp")
def _frexp(cx: Context, x: Value) -> tuple[Value, Value]:
    """Mantissa in [0.5, 1) and exponent, by the exponent bits; subnormals are scaled up first."""
    wide = cx.convert(x, DType.f64)
    tiny = cx.op("lt", cx.op("abs", wide), 2.0**-1022)
    scaled = cx.where(tiny, cx.mul(wide, 2.0**54), wide)
    bits = cx.op("bitcast", scaled, dtype=DType.i64)
    exponent = cx.sub(cx.op("bitwise_and", cx.op("shr", bits, 52), 0x7FF), cx.const(1022, DType.i64))
    exponent = cx.where(tiny, cx.sub(exponent, cx.const(54, DType.i64)), exponent)
    kept = cx.op("bitwise_or", cx.op("bitwise_and", bits, ~(0x7FF << 52)), 1022 << 52)
    mantissa = cx.op("bitcast", kept, dtype=DType.f64)
    plain = cx.op("logical_or", cx.op("eq", wide, 0.0), cx.op("logical_not", cx.op("isfinite", wide)))
    first = cx.convert(cx.where(plain, wide, mantissa), x.dtype)
    return first, cx.convert(cx.where(plain, cx.const(0, DType.i64), exponent), DType.i32)
