"""Losses that torch keeps as operators of their own."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import aten
from .reduce import softmax


def _rows(
    cx: Context,
    x: Value,
    matrix: Value,
    target: Value,
    bias: Value | None,
    weight: Value | None,
    ignore: int,
    smoothing: float,
) -> tuple[Value, Value]:
    """(loss, weight) of each row of log_softmax(x matrix^T + bias) against its class."""
    logits = cx.op("matmul", cx.opmath(x), cx.transpose(cx.opmath(matrix)))
    if bias is not None:
        logits = cx.add(logits, cx.convert(bias, logits.dtype))
    log = softmax(cx, logits, 1, log=True)
    classes = log.shape[1]
    valid = cx.op("ne", target, ignore)
    at = cx.unsqueeze(cx.where(valid, target, cx.const(0, target.dtype)), 1)
    table = cx.convert(weight, log.dtype) if weight is not None else cx.broadcast(cx.const(1.0, log.dtype), (classes,))
    w = cx.op("take", table, cx.squeeze(at, 1), dim=0)
    w = cx.where(valid, w, cx.const(0.0, log.dtype))
    picked = cx.squeeze(cx.op("gather", log, at, dim=1), 1)
    loss = cx.where(valid, cx.op("neg", cx.mul(picked, w)), cx.const(0.0, log.dtype))
    if smoothing:
        smooth = cx.op("neg", cx.reduce("sum", cx.mul(log, table), (1,)))
        smooth = cx.where(valid, smooth, cx.const(0.0, log.dtype))
        spread = cx.div(cx.mul(smooth, smoothing), cx.scalar(classes, log.dtype))
        loss = cx.add(cx.mul(loss, 1 - smoothing), spread)
    return loss, w


def _with_empty_gradients(cx: Context, loss: Value) -> tuple[Value, ...]:
    first = cx.expected[0]
    assert first is not None
    rest = [cx.full(0.0, t.shape, t.dtype) for t in cx.expected[1:] if t is not None]
    return (cx.reshape(cx.convert(loss, first.dtype), first.shape), *rest)


@aten("torch_nn::_linear_cross_entropy_batch_chunked")
def _chunked(
    cx: Context,
    x: Value,
    matrix: Value,
    target: Value,
    bias: Any,
    weight: Any,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    *_: Any,
) -> Any:
    loss, w = _rows(cx, x, matrix, cx.convert(target, DType.i64), bias, weight, ignore_index, label_smoothing)
    total = cx.reduce("sum", loss, (0,))
    if reduction == "mean":
        total = cx.div(total, cx.reduce("sum", w, (0,)))
    return _with_empty_gradients(cx, total)


@aten("torch_nn::_linear_cross_entropy_batch_chunked_no_reduction")
def _chunked_rows(
    cx: Context, x: Value, matrix: Value, target: Value, bias: Any, weight: Any, ignore_index: int, *_: Any
) -> Any:
    loss, _w = _rows(cx, x, matrix, cx.convert(target, DType.i64), bias, weight, ignore_index, 0.0)
    out = _with_empty_gradients(cx, loss)
    return out if len(cx.expected) > 1 else out[0]
