"""Losses of class scores."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, onnx_op
from .reduce import log_softmax_over


def _picked(
    cx: Context, logs: Value, target: Value, weight: Value | None, reduction: str, ignore_index: int | None
) -> Value:
    """-logs at each target times its class's weight, 0 for the ignored class; the mean is over the weights."""
    if reduction not in ("none", "sum", "mean"):
        raise Unsupported(f"reduction {reduction}")
    at = cx.convert(target, DType.i64)
    cx.aligned(cx.select(logs, 1, 0), at)
    ignored = None
    if ignore_index is not None:  # which may be no class at all
        ignored = cx.op("eq", at, ignore_index)
        at = cx.where(ignored, 0, at)
    loss = cx.op("neg", cx.squeeze(cx.b.op("gather", logs, cx.unsqueeze(at, 1), dim=1), 1))
    w = None
    if weight is not None:
        w = cx.b.op("take", cx.convert(weight, logs.dtype), at, dim=0)
        loss = cx.op("mul", loss, w)
    if ignored is not None:
        zero = cx.const(0.0, logs.dtype)
        loss = cx.where(ignored, zero, loss)
        w = cx.b.op("where", ignored, zero, cx.const(1.0, logs.dtype) if w is None else w)
    if reduction == "none":
        return loss
    dims = tuple(range(loss.rank))
    total = cx.reduce("sum", loss, dims)
    if reduction == "sum":
        return total
    count = cx.scalar(loss.type.numel, logs.dtype) if w is None else cx.reduce("sum", w, dims)
    return cx.op("div", total, count)  # type: ignore[no-any-return]


@onnx_op("NegativeLogLikelihoodLoss")
def _nll(
    cx: Context, x: Value, target: Value, weight: Value | None = None, *, ignore_index: int | None = None,
    reduction: str = "mean",
) -> Value:  # fmt: skip
    return cx.convert(_picked(cx, cx.opmath(x), target, weight, reduction, ignore_index), x.dtype)


@onnx_op("SoftmaxCrossEntropyLoss")
def _softmax_cross_entropy(
    cx: Context, x: Value, target: Value, weight: Value | None = None, *, ignore_index: int | None = None,
    reduction: str = "mean",
) -> Any:  # fmt: skip
    logs = log_softmax_over(cx, cx.opmath(x), (1,))
    loss = _picked(cx, logs, target, weight, reduction, ignore_index)
    return cx.convert(loss, x.dtype), cx.convert(logs, x.dtype)
