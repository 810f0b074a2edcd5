"""Sequences and optionals. Their structure is known while compiling: a sequence is a list of values, an empty optional
is None.
"""

from __future__ import annotations

from typing import Any

import onnx

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, onnx_op
from .tensor import split_sizes


@onnx_op("SequenceEmpty")
def _empty(cx: Context, *, dtype: int = 1) -> Any:
    return []


@onnx_op("SequenceConstruct")
def _construct(cx: Context, *xs: Value) -> Any:
    return list(xs)


def _place(cx: Context, position: Value, n: int) -> int:
    at = int(cx.number(position, "a position in a sequence"))
    at += n if at < 0 else 0
    if not 0 <= at <= n:
        raise Unsupported(f"position {at} in a sequence of {n}")
    return at


@onnx_op("SequenceInsert")
def _insert(cx: Context, seq: Any, x: Value, position: Value | None = None) -> Any:
    at = len(seq) if position is None else _place(cx, position, len(seq))
    return [*seq[:at], x, *seq[at:]]


@onnx_op("SequenceErase")
def _erase(cx: Context, seq: Any, position: Value | None = None) -> Any:
    at = len(seq) - 1 if position is None else _place(cx, position, len(seq))
    return [*seq[:at], *seq[at + 1 :]]


@onnx_op("SequenceAt")
def _at(cx: Context, seq: Any, position: Value) -> Any:
    return seq[_place(cx, position, len(seq))]


@onnx_op("SequenceLength")
def _length(cx: Context, seq: Any) -> Value:
    return cx.const(len(seq), DType.i64)


@onnx_op("SplitToSequence")
def _split(cx: Context, x: Value, split: Value | None = None, *, axis: int = 0, keepdims: int = 1) -> Any:
    d = cx.axis(axis, x.rank)
    size = x.shape[d]
    if split is None:
        if not isinstance(size, int):
            raise Unsupported("a dim whose size is not constant")
        parts = [cx.slice(x, d, i, i + 1) for i in range(size)]
        return parts if keepdims else [cx.squeeze(p, d) for p in parts]
    if split.rank == 0:
        chunk = int(cx.number(split, "split"))
        if not isinstance(size, int):
            raise Unsupported("a dim whose size is not constant")
        return [cx.slice(x, d, i, min(i + chunk, size)) for i in range(0, size, chunk)]
    out, at = [], 0
    for s in split_sizes(cx, size, split, None):
        out.append(cx.slice(x, d, at, at + s))
        at = at + s
    return out


@onnx_op("ConcatFromSequence")
def _concat(cx: Context, seq: Any, *, axis: int, new_axis: int = 0) -> Value:
    if new_axis:
        d = axis + seq[0].rank + 1 if axis < 0 else axis
        return cx.concat([cx.unsqueeze(x, d) for x in seq], d)
    return cx.call("Concat", *seq, axis=axis)  # type: ignore[no-any-return]


@onnx_op("SequenceMap")
def _map(cx: Context, seq: Any, *more: Any, body: onnx.GraphProto) -> Any:
    rows = []
    for k, x in enumerate(seq):
        given = [x, *(m[k] if isinstance(m, list) else m for m in more)]
        rows.append(cx.importer.inlined(body, given))
    return tuple([r[j] for r in rows] for j in range(len(body.output)))


@onnx_op("Optional")
def _optional(cx: Context, x: Any = None, *, type: onnx.TypeProto | None = None) -> Any:
    return x


@onnx_op("OptionalHasElement")
def _has(cx: Context, x: Any = None) -> Value:
    return cx.const(x is not None, DType.bool)


@onnx_op("OptionalGetElement")
def _get(cx: Context, x: Any) -> Any:
    if x is None:
        raise Unsupported("an empty optional")
    return x
