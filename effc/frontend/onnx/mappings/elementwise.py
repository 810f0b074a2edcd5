"""Arithmetic, comparisons, logic, bits, casts and activations: one result element from one element of each operand."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ....ir import casts
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..dtypes import Array, dtype_of
from ..registry import Unsupported, onnx_op

# ONNX operator -> IR op of the same meaning
UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan", "Atanh": "atanh",
    "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor", "IsNaN": "isnan",
    "Log": "log", "Neg": "neg", "Not": "logical_not", "Reciprocal": "reciprocal", "Round": "round", "Sign": "sign",
    "Sigmoid": "sigmoid", "Sin": "sin", "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh",
    "BitwiseNot": "bitwise_not",
}  # fmt: skip
BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt",
    "LessOrEqual": "le", "And": "logical_and", "Or": "logical_or", "Xor": "logical_xor", "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor",
}  # fmt: skip


def _unary(ir: str) -> Any:
    def f(cx: Context, x: Value) -> Value:
        if x.dtype.is_int and ir == "abs" and not x.dtype.is_signed:
            return x
        return cx.op(ir, x)  # type: ignore[no-any-return]

    return f


def _binary(ir: str) -> Any:
    def f(cx: Context, x: Value, y: Value) -> Value:
        return cx.elementwise(ir, x, y)

    return f


for _name, _ir in UNARY.items():
    onnx_op(_name)(_unary(_ir))
for _name, _ir in BINARY.items():
    onnx_op(_name)(_binary(_ir))


@onnx_op("Identity")
def _identity(cx: Context, x: Any) -> Any:
    return x


@onnx_op("Div")
def _div(cx: Context, x: Value, y: Value) -> Value:
    """Integers: towards zero, as C and numpy's reference of the standard do."""
    return cx.elementwise("trunc_div" if x.dtype.is_int else "div", x, y)


@onnx_op("Pow")
def _pow(cx: Context, x: Value, y: Value) -> Value:
    """The result has the base's type; the exponent may have another."""
    cx.aligned(x, y)
    if x.dtype is y.dtype:
        return cx.op("pow", x, y)  # type: ignore[no-any-return]
    if x.dtype.is_float:
        return cx.op("pow", x, cx.convert(y, x.dtype))  # type: ignore[no-any-return]
    if y.dtype.is_int:
        return cx.convert(cx.op("pow", cx.convert(x, DType.i64), cx.convert(y, DType.i64)), x.dtype)
    work = DType.f64
    return cx.convert(cx.op("pow", cx.convert(x, work), cx.convert(y, work)), x.dtype)


@onnx_op("Mod")
def _mod(cx: Context, x: Value, y: Value, *, fmod: int = 0) -> Value:
    if fmod:
        return cx.elementwise("fmod", x, y)
    r = cx.elementwise("remainder", x, y)
    if x.dtype.is_float:  # a zero has the divisor's sign
        r = cx.b.op("where", cx.op("eq", r, 0), cx.op("copysign", cx.const(0, x.dtype), y), r)
    return r


@onnx_op("BitShift")
def _shift(cx: Context, x: Value, y: Value, *, direction: str) -> Value:
    return cx.elementwise("shl" if direction == "LEFT" else "shr", x, y)


def _variadic(ir: str) -> Any:
    def f(cx: Context, *xs: Value) -> Value:
        cx.aligned(*xs)
        out = xs[0]
        for x in xs[1:]:
            out = cx.op(ir, out, x)
        return out

    return f


for _name, _ir in (("Max", "maximum"), ("Min", "minimum"), ("Sum", "add")):
    onnx_op(_name)(_variadic(_ir))


@onnx_op("Mean")
def _mean(cx: Context, *xs: Value) -> Value:
    return cx.convert(cx.div(_variadic("add")(cx, *map(cx.opmath, xs)), len(xs)), xs[0].dtype)


@onnx_op("Where")
def _where(cx: Context, c: Value, x: Value, y: Value) -> Value:
    return cx.elementwise("where", c, x, y)


@onnx_op("Clip")
def _clip_attributes(
    cx: Context, x: Value, *, min: float = -3.4028234663852886e38, max: float = 3.4028234663852886e38
) -> Value:
    wide = x.dtype is DType.f16  # whose own range is narrower than the default bounds
    if not (wide and min < -65504):
        x = cx.op("maximum", x, min)
    return x if wide and max > 65504 else cx.op("minimum", x, max)


@onnx_op("Clip", since=11)
def _clip(cx: Context, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    if low is not None:
        x = cx.op("maximum", x, cx.reshape(low, ()))
    if high is not None:
        x = cx.op("minimum", x, cx.reshape(high, ()))
    return x


@onnx_op("IsInf")
def _isinf(cx: Context, x: Value, *, detect_negative: int = 1, detect_positive: int = 1) -> Value:
    if detect_negative and detect_positive:
        return cx.op("isinf", x)  # type: ignore[no-any-return]
    if not detect_negative and not detect_positive:
        return cx.full(False, x.shape, DType.bool)
    return cx.op("eq", x, math.inf if detect_positive else -math.inf)  # type: ignore[no-any-return]


def cast(cx: Context, x: Value, dtype: DType, saturate: bool = True, round_mode: str = "up") -> Value:
    """Cast as the standard has it: to bool by comparison with zero, from floats to integers towards zero, to floats of
    8 bits as ``saturate`` and ``round_mode`` say.
    """
    if round_mode not in casts.ROUND:
        raise Unsupported(f"round_mode {round_mode}")
    return casts.cast(cx.b, x, dtype, saturate=saturate, round_mode=round_mode)


@onnx_op("Cast")
def _cast(cx: Context, x: Value, *, to: int, saturate: int = 1, round_mode: str = "up") -> Value:
    return cast(cx, x, dtype_of(to), bool(saturate), round_mode)


@onnx_op("CastLike")
def _cast_like(cx: Context, x: Value, like: Value, *, saturate: int = 1, round_mode: str = "up") -> Value:
    return cast(cx, x, like.dtype, bool(saturate), round_mode)


@onnx_op("BitCast")
def _bitcast(cx: Context, x: Value, *, to: int) -> Value:
    return cx.op("bitcast", x, dtype=dtype_of(to))  # type: ignore[no-any-return]


@onnx_op("Constant")
def _constant(
    cx: Context, *, value: Array | None = None, value_float: float | None = None, value_floats: Any = None,
    value_int: int | None = None, value_ints: Any = None, value_string: Any = None, value_strings: Any = None,
    sparse_value: Array | None = None,
) -> Value:  # fmt: skip
    if value_string is not None or value_strings is not None:
        raise Unsupported("strings")
    data = value if value is not None else sparse_value
    if data is None:
        if value_float is not None or value_floats is not None:
            data = np.asarray(value_float if value_floats is None else value_floats, np.float32)
        else:
            data = np.asarray(value_int if value_ints is None else value_ints, np.int64)
    return cx.b.constant(data, DType.from_np(data.dtype))


# Activations ----------------------------------------------------------------------------------------------------------


def in_opmath(f: Any) -> Any:
    """Halves are computed in f32 and rounded once."""

    @functools.wraps(f)
    def run(cx: Context, x: Value, **attrs: Any) -> Value:
        return cx.convert(f(cx, cx.opmath(x), **attrs), x.dtype)

    return run


@onnx_op("Relu")
def relu(cx: Context, x: Value) -> Value:
    return cx.op("maximum", x, 0)  # type: ignore[no-any-return]


@onnx_op("LeakyRelu")
@in_opmath
def leaky_relu(cx: Context, x: Value, *, alpha: float = 0.01) -> Value:
    return cx.where(cx.op("lt", x, 0), cx.mul(x, alpha), x)


@onnx_op("PRelu")
def _prelu(cx: Context, x: Value, slope: Value) -> Value:
    cx.aligned(x, slope)
    return cx.b.op("where", cx.op("lt", x, 0), cx.op("mul", slope, x), x)  # type: ignore[no-any-return]


@onnx_op("ThresholdedRelu")
def thresholded_relu(cx: Context, x: Value, *, alpha: float = 1.0) -> Value:
    return cx.where(cx.op("gt", x, alpha), x, 0)


@onnx_op("Elu")
@in_opmath
def elu(cx: Context, x: Value, *, alpha: float = 1.0) -> Value:
    return cx.where(cx.op("lt", x, 0), cx.scale(cx.op("expm1", x), alpha), x)


@onnx_op("Selu")
@in_opmath
def selu(
    cx: Context, x: Value, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Value:
    return cx.mul(elu(cx, x, alpha=alpha), gamma)


@onnx_op("Celu")
@in_opmath
def celu(cx: Context, x: Value, *, alpha: float = 1.0) -> Value:
    negative = cx.scale(cx.op("expm1", cx.div(x, alpha)), alpha)
    return cx.op("add", cx.op("maximum", x, 0), cx.op("minimum", negative, 0))  # type: ignore[no-any-return]


@onnx_op("HardSigmoid")
@in_opmath
def hard_sigmoid(cx: Context, x: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    y = cx.add(cx.mul(x, alpha), beta)
    return cx.op("minimum", cx.op("maximum", y, 0), 1)  # type: ignore[no-any-return]


@onnx_op("HardSwish")
@in_opmath
def _hard_swish(cx: Context, x: Value) -> Value:
    return cx.mul(x, hard_sigmoid(cx, x, alpha=1 / 6, beta=0.5))


@onnx_op("Softplus")
@in_opmath
def softplus(cx: Context, x: Value) -> Value:
    """max(x, 0) + log1p(exp(-|x|)): the same number without overflow."""
    return cx.add(cx.op("maximum", x, 0), cx.op("log1p", cx.op("exp", cx.op("neg", cx.op("abs", x)))))


@onnx_op("Softsign")
@in_opmath
def softsign(cx: Context, x: Value) -> Value:
    return cx.div(x, cx.add(cx.op("abs", x), 1))


@onnx_op("Swish")
@in_opmath
def _swish(cx: Context, x: Value, *, alpha: float = 1.0) -> Value:
    return cx.mul(x, cx.op("sigmoid", cx.scale(x, alpha)))


@onnx_op("Mish")
@in_opmath
def _mish(cx: Context, x: Value) -> Value:
    return cx.mul(x, cx.op("tanh", softplus(cx, x)))


@onnx_op("Gelu")
@in_opmath
def _gelu(cx: Context, x: Value, *, approximate: str = "none") -> Value:
    if approximate == "tanh":
        inner = cx.mul(cx.add(x, cx.mul(cx.mul(cx.mul(x, x), x), 0.044715)), math.sqrt(2 / math.pi))
        return cx.mul(cx.mul(x, 0.5), cx.add(cx.op("tanh", inner), 1))
    return cx.mul(cx.mul(x, 0.5), cx.add(cx.op("erf", cx.mul(x, math.sqrt(0.5))), 1))


@onnx_op("Shrink")
def _shrink(cx: Context, x: Value, *, bias: float = 0.0, lambd: float = 0.5) -> Value:
    """x + bias below -lambd, x - bias above lambd, 0 between; integers by way of floats where these are fractions."""
    work = x.dtype.compute
    if x.dtype.is_int:
        bias, lambd = (int(v) if v == int(v) else v for v in (bias, lambd))
        work = DType.f64 if isinstance(bias, float) or isinstance(lambd, float) else x.dtype
    v = cx.convert(x, work)
    low = cx.where(cx.op("lt", v, -lambd), cx.add(v, bias), 0)
    return cx.convert(cx.where(cx.op("gt", v, lambd), cx.sub(v, bias), low), x.dtype)
