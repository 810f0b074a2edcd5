"""Sorting and selection, with TopK.

TopK keeps the order of equal elements but has no place for NaN. Floats are therefore ordered by integers: the bits of
a float, with the lower ones turned round where it is negative, increase as it does; NaN gets the largest.
"""

from __future__ import annotations

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Refuse
from . import emits
from .elementwise import bitcast


def keys(cx: Cx, x: str) -> str:
    """Integers in the order of x, NaN the largest."""
    dtype = cx.dtype(x)
    if dtype.is_float:
        x = cx.cast(x, dtype.compute)
        kind = DType.i32 if cx.dtype(x) is DType.f32 else DType.i64
        top = cx.const(np.asarray(np.iinfo(kind.np).max), kind)
        bits = bitcast(cx, cx.op("Add", x, cx.like(0, x)), kind)  # -0 becomes 0
        turned = cx.op("BitwiseXor", bits, top)
        key = cx.op("Where", cx.op("Less", bits, cx.like(0, bits)), turned, bits)
        return cx.op("Where", cx.op("IsNaN", x), top, key)
    if dtype.is_bool:
        return cx.cast(x, DType.u8)
    if dtype is DType.u64:
        return cx.cast(cx.op("BitwiseXor", x, cx.like(1 << 63, x)), DType.i64)
    if dtype in (DType.u16, DType.u32):
        return cx.cast(x, DType.i64)
    return x


def ordered(cx: Cx, x: str, dim: int, count: str, largest: bool) -> str:
    """Indices of the first ``count`` (0-d i64) elements in order along dim."""
    k = keys(cx, x)
    return cx.many("TopK", [k, cx.unsqueeze(count, 0)], 2, axis=dim, largest=int(largest), sorted=1)[1]


def _select(cx: Cx, x: str, at: str, dim: int) -> str:
    return cx.op("GatherElements", x, at, axis=dim)


def _empty(cx: Cx, node: Node) -> tuple[str, str]:
    return tuple(cx.fill(0, t.shape, t.dtype) for t in node.types)  # type: ignore[return-value]


@emits("sort")
def sort(cx: Cx, node: Node, x: str) -> tuple[str, str]:
    v, dim = node.operands[0], node.attrs["dim"]
    if 0 in v.shape:
        return _empty(cx, node)
    at = ordered(cx, x, dim, cx.scalar(v.shape[dim]), node.attrs["descending"])
    return _select(cx, x, at, dim), at


@emits("topk")
def topk(cx: Cx, node: Node, x: str) -> tuple[str, str]:
    dim = node.attrs["dim"]
    if 0 in node.types[0].shape:
        return _empty(cx, node)
    at = ordered(cx, x, dim, cx.scalar(node.attrs["k"]), node.attrs["largest"])
    return _select(cx, x, at, dim), at


def _pick(cx: Cx, node: Node, x: str, at: str) -> tuple[str, str]:
    dim = node.attrs["dim"]
    values = _select(cx, x, at, dim)
    if node.attrs["keepdim"]:
        return values, at
    return cx.squeeze(values, dim), cx.squeeze(at, dim)


@emits("kthvalue")
def kthvalue(cx: Cx, node: Node, x: str) -> tuple[str, str]:
    v, dim, k = node.operands[0], node.attrs["dim"], node.attrs["k"]
    if 0 in v.shape:
        return _empty(cx, node)
    at = ordered(cx, x, dim, cx.scalar(k), False)
    return _pick(cx, node, x, cx.slice(at, dim, k - 1, k))


@emits("median")
def median(cx: Cx, node: Node, x: str) -> tuple[str, str]:
    v, dim = node.operands[0], node.attrs["dim"]
    if 0 in v.shape:
        return _empty(cx, node)
    n = v.shape[dim]
    at = ordered(cx, x, dim, cx.scalar(n), False)
    if not cx.dtype(x).is_float:
        middle = (n - 1) // 2
        return _pick(cx, node, x, cx.slice(at, dim, middle, middle + 1))
    nan = cx.op("IsNaN", x)
    missing = cx.op("ReduceSum", cx.cast(nan, DType.i64), cx.ints(dim), keepdims=1)
    if node.attrs["ignore_nan"]:
        last = cx.op("Sub", cx.op("Sub", cx.scalar(n), missing), cx.like(1, missing))
        middle_at = cx.op("Div", cx.op("Max", last, cx.like(0, last)), cx.like(2, last))
        return _pick(cx, node, x, cx.op("GatherElements", at, middle_at, axis=dim))
    middle = (n - 1) // 2
    plain = cx.slice(at, dim, middle, middle + 1)
    first = cx.op("ArgMax", cx.cast(nan, DType.u8), axis=dim, keepdims=1)
    return _pick(cx, node, x, cx.op("Where", cx.op("Greater", missing, cx.like(0, missing)), first, plain))


@emits("mode")
def mode(cx: Cx, node: Node, x: str) -> tuple[str, str]:
    """In sorted order, the first run of the greatest length; its last element."""
    v, dim = node.operands[0], node.attrs["dim"]
    n = v.shape[dim]
    if 0 in v.shape:
        return _empty(cx, node)
    if not isinstance(n, int):
        raise Refuse("the mode of lines of unknown length")
    at = ordered(cx, x, dim, cx.scalar(n), False)
    line = _select(cx, x, at, dim)
    place = cx.range(n)
    others = list(range(1, v.rank - dim))
    place = cx.unsqueeze(place, *others) if others else place
    first = cx.slice(cx.op("Mul", at, cx.like(0, at)), dim, 0, 1)
    start = first
    if n > 1:
        same = cx.op("Equal", cx.slice(line, dim, 1, n), cx.slice(line, dim, 0, n - 1))
        rest = cx.slice(place, 0, 1, n) if n > 1 else place
        begins = cx.op("Where", same, cx.like(0, at), rest)
        from .cumulative import running

        start = cx.op("Concat", first, begins, axis=dim)
        start = running(cx, start, dim, n, "Max")
    length = cx.op("Sub", place, start)
    best = cx.op("ArgMax", length, axis=dim, keepdims=1)
    return _pick(cx, node, x, cx.op("GatherElements", at, best, axis=dim))
