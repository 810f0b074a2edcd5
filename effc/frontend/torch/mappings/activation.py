"""Activation functions, as elementwise ops in the op-math dtype with one rounding at the end."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from ....ir.graph import Value
from ..context import Context
from ..registry import aten


def rounded_once(*names: str) -> Callable[[Any], Any]:
    """Registers an activation that computes on the op-math type; tensor operands are converted before, the result
    after.
    """

    def wrap(f: Any) -> Any:
        @functools.wraps(f)
        def run(cx: Context, x: Value, *args: Any, **kwargs: Any) -> Value:
            out = cx.out.dtype
            y: Value = f(cx, cx.convert(x, out.compute), *args, **kwargs)
            return cx.convert(y, out)

        return aten(*names)(run)

    return wrap


@aten("relu")
def _relu(cx: Context, x: Value) -> Value:
    return cx.op("maximum", x, 0)


@aten("relu6")
def _relu6(cx: Context, x: Value) -> Value:
    return cx.op("minimum", cx.op("maximum", x, 0), 6)


@aten("hardtanh")
def _hardtanh(cx: Context, x: Value, min_val: Any = -1, max_val: Any = 1) -> Value:
    return cx.op("minimum", cx.op("maximum", x, min_val), max_val)


@rounded_once("elu")
def _elu(cx: Context, x: Value, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Value:
    negative = cx.scale(cx.op("expm1", cx.scale(x, input_scale)), alpha * scale)
    return cx.where(cx.op("gt", x, 0), cx.scale(x, scale), negative)


@rounded_once("selu")
def _selu(cx: Context, x: Value) -> Value:
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return cx.where(cx.op("gt", x, 0), cx.mul(x, scale), cx.mul(cx.op("expm1", x), alpha * scale))


@rounded_once("celu")
def _celu(cx: Context, x: Value, alpha: Any = 1.0) -> Value:
    return cx.where(cx.op("gt", x, 0), x, cx.mul(cx.op("expm1", cx.div(x, alpha)), alpha))


@rounded_once("leaky_relu")
def _leaky_relu(cx: Context, x: Value, negative_slope: Any = 0.01) -> Value:
    return cx.where(cx.op("gt", x, 0), x, cx.mul(x, negative_slope))


@aten("_prelu_kernel")
def _prelu(cx: Context, x: Value, weight: Value) -> Value:
    return cx.where(cx.op("gt", x, 0), x, cx.mul(x, weight))


@rounded_once("hardswish")
def _hardswish(cx: Context, x: Value) -> Value:
    gate = cx.op("minimum", cx.op("maximum", cx.add(x, 3.0), 0.0), 6.0)
    return cx.div(cx.mul(x, gate), 6.0)


@rounded_once("hardsigmoid")
def _hardsigmoid(cx: Context, x: Value) -> Value:
    return cx.div(cx.op("minimum", cx.op("maximum", cx.add(x, 3.0), 0.0), 6.0), 6.0)


@aten("hardshrink")
def _hardshrink(cx: Context, x: Value, lambd: Any = 0.5) -> Value:
    inside = cx.op("logical_and", cx.op("ge", x, -lambd), cx.op("le", x, lambd))
    return cx.where(inside, cx.const(0, x.dtype), x)


@rounded_once("softshrink")
def _softshrink(cx: Context, x: Value, lambd: Any = 0.5) -> Value:
    y = cx.where(
        cx.op("gt", x, lambd),
        cx.sub(x, cx.const(lambd, x.dtype)),
        cx.where(cx.op("lt", x, -lambd), cx.add(x, lambd), cx.mul(x, 0.0)),
    )
    return y


@aten("threshold")
def _threshold(cx: Context, x: Value, threshold: Any, value: Any) -> Value:
    return cx.where(cx.op("le", x, threshold), cx.const(value, x.dtype), x)


@rounded_once("softplus")
def _softplus(cx: Context, x: Value, beta: Any = 1, threshold: Any = 20) -> Value:
    z = cx.scale(x, beta)
    y = cx.op("log1p", cx.op("exp", z))
    return cx.where(cx.op("gt", z, threshold), x, cx.div(y, beta) if beta != 1 else y)


@rounded_once("gelu")
def _gelu(cx: Context, x: Value, *, approximate: str = "none") -> Value:
    if approximate == "none":
        return cx.mul(cx.mul(x, 0.5), cx.add(cx.op("erf", cx.mul(x, 1 / math.sqrt(2))), 1.0))
    inner = cx.mul(cx.add(x, cx.mul(cx.mul(cx.mul(x, x), x), 0.044715)), math.sqrt(2 / math.pi))
    return cx.mul(cx.mul(x, 0.5), cx.add(cx.op("tanh", inner), 1.0))


@rounded_once("silu")
def _silu(cx: Context, x: Value) -> Value:
    return cx.mul(x, cx.op("sigmoid", x))


@rounded_once("mish")
def _mish(cx: Context, x: Value) -> Value:
    return cx.mul(x, cx.op("tanh", cx.op("log1p", cx.op("exp", x))))


def logsigmoid(cx: Context, x: Value) -> Value:
    return cx.sub(cx.op("minimum", x, 0.0), cx.op("log1p", cx.op("exp", cx.op("neg", cx.op("abs", x)))))


@aten("log_sigmoid_forward")
def _log_sigmoid(cx: Context, x: Value) -> tuple[Value, Value | None]:
    y = cx.convert(logsigmoid(cx, cx.opmath(x)), x.dtype)
    buffer = cx.expected[1]
    return y, None if buffer is None else cx.full(0.0, buffer.shape, buffer.dtype)


@aten("glu")
def _glu(cx: Context, x: Value, dim: int = -1) -> Value:
    dim = cx.axis(dim, x.rank)
    half = x.shape[dim] // 2
    a, g = cx.slice(x, dim, 0, half), cx.slice(x, dim, half, x.shape[dim])
    return cx.convert(cx.mul(cx.opmath(a), cx.op("sigmoid", cx.opmath(g))), x.dtype)


@rounded_once("logit", "special_logit")
def _logit(cx: Context, x: Value, eps: float | None = None) -> Value:
    if eps is not None:
        x = cx.op("minimum", cx.op("maximum", x, eps), 1 - eps)
    return cx.op("log", cx.div(x, cx.sub(1.0, x)))
