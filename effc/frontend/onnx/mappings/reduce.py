"""Reductions, arg-reductions, softmax, cumulative operators and norms over axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, onnx_op


def _axes(cx: Context, x: Value, axes: Any, noop: int) -> tuple[int, ...] | None:
    """The axes of a reduction; None where there is nothing to reduce."""
    if isinstance(axes, Value):
        axes = cx.ints(axes, "axes")
    if not axes:
        return None if noop else tuple(range(x.rank))
    return tuple(sorted({cx.axis(int(a), x.rank) for a in axes}))


def extreme(cx: Context, kind: str, x: Value, dims: tuple[int, ...], keep: bool) -> Value:
    """The ``max`` or ``min`` over dims, of which some may be empty: then the least, or greatest, value of the dtype."""
    if x.dtype.is_bool:
        return cx.reduce("any" if kind == "max" else "all", x, dims, keep)
    if all(x.shape[d] != 0 for d in dims):
        return cx.reduce(kind, x, dims, keep)
    shape = [1 if i in dims else d for i, d in enumerate(x.shape) if keep or i not in dims]
    if x.dtype.is_float:
        return cx.full(-math.inf if kind == "max" else math.inf, shape, x.dtype)
    limits = np.iinfo(x.dtype.np)
    return cx.full(int(limits.min if kind == "max" else limits.max), shape, x.dtype)


def _sum(cx: Context, x: Value, dims: tuple[int, ...], keep: bool) -> Value:
    return cx.reduce("sum", x, dims, keep)


def _mean(cx: Context, x: Value, dims: tuple[int, ...], keep: bool) -> Value:
    total = cx.reduce("sum", x, dims, keep)
    n = cx.scalar(cx.count(x, dims), x.dtype)
    return cx.op("trunc_div" if x.dtype.is_int else "div", total, n)  # type: ignore[no-any-return]


def _l2(cx: Context, x: Value, dims: tuple[int, ...], keep: bool) -> Value:
    total = cx.reduce("sum", cx.mul(x, x), dims, keep)
    if x.dtype.is_float:
        return cx.op("sqrt", total)  # type: ignore[no-any-return]
    return cx.convert(cx.op("sqrt", cx.convert(total, DType.f64)), x.dtype)


def _log_sum(cx: Context, x: Value, dims: tuple[int, ...], keep: bool) -> Value:
    total = cx.reduce("sum", x, dims, keep)
    return cx.op("log", total if x.dtype.is_float else cx.convert(total, DType.f64))  # type: ignore[no-any-return]


def _log_sum_exp(cx: Context, x: Value, dims: tuple[int, ...], keep: bool) -> Value:
    """log(sum(exp(x - max))) + max; an infinite maximum is left out of the difference."""
    if not x.dtype.is_float:
        x = cx.convert(x, DType.f64)
    top = extreme(cx, "max", x, dims, True) if dims else x
    safe = cx.where(cx.op("isfinite", top), top, 0)
    total = cx.op("log", cx.reduce("sum", cx.op("exp", cx.op("sub", x, safe)), dims, True))
    y = cx.op("add", total, safe)
    return y if keep else cx.squeeze(y, *dims)  # type: ignore[no-any-return]


_KINDS: dict[str, Any] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": lambda cx, x, d, k: extreme(cx, "max", x, d, k),
    "ReduceMin": lambda cx, x, d, k: extreme(cx, "min", x, d, k),
    "ReduceProd": lambda cx, x, d, k: cx.reduce("prod", x, d, k),
    "ReduceL1": lambda cx, x, d, k: _sum(cx, cx.op("abs", x) if x.dtype.is_signed else x, d, k),
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": lambda cx, x, d, k: _sum(cx, cx.mul(x, x), d, k),
}


def _finish(kind: Any, name: str, cx: Context, x: Value, dims: tuple[int, ...], keepdims: int) -> Value:
    if name in ("ReduceMax", "ReduceMin"):
        return kind(cx, x, dims, keepdims == 1) if dims else x  # type: ignore[no-any-return]
    return cx.convert(kind(cx, cx.opmath(x), dims, keepdims == 1), x.dtype)


def _register(name: str, kind: Any) -> None:
    @onnx_op(name)
    def by_attribute(cx: Context, x: Value, *, axes: Any = None, keepdims: int = 1) -> Value:
        return _finish(kind, name, cx, x, _axes(cx, x, axes, 0) or (), keepdims)

    @onnx_op(name, since=13 if name == "ReduceSum" else 18)
    def by_operand(
        cx: Context, x: Value, axes: Value | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Value:
        dims = _axes(cx, x, axes, noop_with_empty_axes)
        if dims is None:  # every element is reduced alone
            return x if name in ("ReduceMax", "ReduceMin") else _finish(kind, name, cx, x, (), 1)
        return _finish(kind, name, cx, x, dims, keepdims)


for _name, _kind in _KINDS.items():
    _register(_name, _kind)


def _arg(kind: str) -> Any:
    def f(cx: Context, x: Value, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Value:
        d = cx.axis(axis, x.rank)
        if select_last_index:
            last = cx.reduce(kind, cx.b.op("flip", x, dims=(d,)), (d,), keepdims == 1)
            return cx.sub(cx.scalar(x.shape[d] - 1, DType.i64), last)
        return cx.reduce(kind, x, (d,), keepdims == 1)

    return f


onnx_op("ArgMax")(_arg("argmax"))
onnx_op("ArgMin")(_arg("argmin"))


def softmax_over(cx: Context, x: Value, dims: tuple[int, ...]) -> Value:
    """The standard's own function body in the operand's type: halves are rounded after each step. Passes raise that to
    f32 and one rounding (``passes/softmax.py``)."""
    e = cx.op("exp", cx.op("sub", x, extreme(cx, "max", x, dims, True)))
    return cx.op("div", e, cx.reduce("sum", e, dims, True))  # type: ignore[no-any-return]


def log_softmax_over(cx: Context, x: Value, dims: tuple[int, ...]) -> Value:
    v = cx.opmath(x)
    shifted = cx.op("sub", v, extreme(cx, "max", v, dims, True))
    total = cx.reduce("sum", cx.op("exp", shifted), dims, True)
    return cx.convert(cx.op("sub", shifted, cx.op("log", total)), x.dtype)


def hardmax_over(cx: Context, x: Value, dims: tuple[int, ...]) -> Value:
    """1 at the first maximum. Over several dims they are taken as one."""
    shape = x.shape
    flat = cx.reshape(x, (*shape[: dims[0]], cx.count(x, dims), *shape[dims[-1] + 1 :]))
    best = cx.unsqueeze(cx.reduce("argmax", flat, (dims[0],)), dims[0])
    place = cx.b.op("iota", shape=flat.shape, dim=dims[0], dtype=DType.i64)
    return cx.reshape(cx.convert(cx.op("eq", place, best), x.dtype), shape)


for _name, _f in (("Softmax", softmax_over), ("LogSoftmax", log_softmax_over), ("Hardmax", hardmax_over)):

    def _flat(cx: Context, x: Value, *, axis: int = 1, _f: Any = _f) -> Value:
        """Before operator set 13: all axes from ``axis`` on."""
        return _f(cx, x, tuple(range(cx.axis(axis, x.rank), x.rank)))  # type: ignore[no-any-return]

    def _one(cx: Context, x: Value, *, axis: int = -1, _f: Any = _f) -> Value:
        return _f(cx, x, (cx.axis(axis, x.rank),))  # type: ignore[no-any-return]

    onnx_op(_name)(_flat)
    onnx_op(_name, since=13)(_one)


def _cumulative(ir: str, neutral: int) -> Any:
    def f(cx: Context, x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0) -> Value:
        d = cx.axis(int(cx.number(axis, "the axis")), x.rank)
        y = cx.b.op("flip", x, dims=(d,)) if reverse else x
        y = cx.convert(cx.b.op(ir, y, dim=d), x.dtype)
        if exclusive:
            first = cx.full(neutral, (*x.shape[:d], 1, *x.shape[d + 1 :]), x.dtype)
            y = cx.slice(cx.concat([first, y], d), d, 0, x.shape[d])
        return cx.b.op("flip", y, dims=(d,)) if reverse else y  # type: ignore[no-any-return]

    return f


onnx_op("CumSum")(_cumulative("cumsum", 0))
onnx_op("CumProd")(_cumulative("cumprod", 1))


@onnx_op("LpNormalization")
def _lp_normalization(cx: Context, x: Value, *, axis: int = -1, p: int = 2) -> Value:
    d = (cx.axis(axis, x.rank),)
    v = cx.opmath(x)
    if p == 1:
        norm = cx.reduce("sum", cx.op("abs", v), d, True)
    elif p == 2:
        norm = cx.op("sqrt", cx.reduce("sum", cx.mul(v, v), d, True))
    else:
        raise Unsupported(f"p={p}")
    return cx.convert(cx.where(cx.op("eq", norm, 0), 0, cx.op("div", v, norm)), x.dtype)


@onnx_op("GlobalAveragePool")
def _global_average(cx: Context, x: Value) -> Value:
    return cx.convert(cx.mean(cx.opmath(x), tuple(range(2, x.rank)), True), x.dtype)


@onnx_op("GlobalMaxPool")
def _global_max(cx: Context, x: Value) -> Value:
    return extreme(cx, "max", x, tuple(range(2, x.rank)), True)


@onnx_op("GlobalLpPool")
def _global_lp(cx: Context, x: Value, *, p: int = 2) -> Value:
    v = cx.opmath(x)
    total = cx.reduce("sum", cx.op("pow", cx.op("abs", v), float(p)), tuple(range(2, x.rank)), True)
    return cx.convert(cx.op("pow", total, 1.0 / p), x.dtype)


@onnx_op("MeanVarianceNormalization")
def _mvn(cx: Context, x: Value, *, axes: Any = (0, 2, 3)) -> Value:
    """(x - mean) / (std + 1e-9) over ``axes``."""
    dims = cx.axes(axes, x.rank)
    v = cx.opmath(x)
    centred = cx.op("sub", v, cx.mean(v, dims, True))
    std = cx.op("sqrt", cx.mean(cx.mul(centred, centred), dims, True))
    return cx.convert(cx.op("div", centred, cx.add(std, 1e-9)), x.dtype)


__all__ = ["extreme", "hardmax_over", "log_softmax_over", "math", "softmax_over"]
