"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Refuse
from . import emits
from .movement import pad_dims


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    return [lo for lo, _ in padding] + [hi for _, hi in padding]


def _taps(cx: Cx, x: str, node: Node, dilation: Sequence[int], fill: Any) -> list[str]:
    """One tensor of the result's shape for each place in the window."""
    a = node.attrs
    shape, out = node.operands[0].shape, node.types[0].shape
    nd = len(shape) - 2
    padding: list[Any] = [(0, 0), (0, 0)]
    for d in range(nd):
        reach = (out[2 + d] - 1) * a["stride"][d] + dilation[d] * (a["kernel"][d] - 1) + 1
        low = a["padding"][d][0]
        padding.append((low, D.maximum(reach - low - shape[2 + d], 0)))
    x = pad_dims(cx, x, padding, "constant", fill)
    taps = []
    for tap in np.ndindex(*a["kernel"]):
        part = x
        for d, t in enumerate(tap):
            low = t * dilation[d]
            part = cx.slice(part, 2 + d, low, low + (out[2 + d] - 1) * a["stride"][d] + 1, a["stride"][d])
        taps.append(part)
    return taps


def _attrs(node: Node) -> dict[str, Any]:
    a = node.attrs
    return {
        "kernel_shape": list(a["kernel"]), "strides": list(a["stride"]), "pads": _pads(a["padding"]),
        "ceil_mode": int(a["ceil_mode"]), "dilations": list(a.get("dilation", (1,) * len(a["kernel"]))),
    }  # fmt: skip


@emits("max_pool")
def max_pool(cx: Cx, node: Node, x: str) -> Any:
    a, v = node.attrs, node.operands[0]
    if 0 in node.types[0].shape:
        out = tuple(cx.fill(0, t.shape, t.dtype) for t in node.types)
        return out if a["indices"] else out[0]
    dtype = cx.dtype(x)
    if a["indices"] or dtype in (DType.i16, DType.u16, DType.i32, DType.u32, DType.i64, DType.u64):
        return _max_with_places(cx, node, x)
    y = cx.many("MaxPool", [x], 1, **_attrs(node))[0]
    if not dtype.is_float or not cx.shared.strict_nan:
        return y
    # onnxruntime overlooks NaN. Looking for one costs a pass; the second pooling is done only if there is one.
    nans = cx.op("IsNaN", x)
    if any(cx.low(d) <= 0 for d in v.shape):  # onnxruntime has no maximum of no booleans
        nans = cx.op("Concat", cx.op("Reshape", nans, cx.ints(-1)), cx.const(np.zeros(1, np.bool_)), axis=0)
    any_nan = cx.op("ReduceMax", nans, keepdims=0)
    inner = cx.sub()
    flags = inner.cast(inner.op("IsNaN", x), DType.f32)
    where = inner.op("Greater", inner.many("MaxPool", [flags], 1, **_attrs(node))[0], inner.like(0, flags))
    found = inner.op("Where", where, inner.const(np.asarray(math.nan), dtype), y)
    then = cx.body(inner, (), [found], "with_nan")
    orelse = cx.body(cx.sub(), (), [y], "without_nan")
    return cx.raw("If", [any_nan], [dtype], pure=False, then_branch=then, else_branch=orelse)[0]


def _max_with_places(cx: Cx, node: Node, x: str) -> Any:
    """Tap by tap: a later element wins if it is larger, or NaN; the first of equals stays."""
    a, v = node.attrs, node.operands[0]
    spatial = v.shape[2:]
    dtype = cx.dtype(x)
    work = cx.cast(x, dtype.compute) if dtype.is_float else x
    total = D.product(spatial)
    places = cx.reshape(cx.range(total), (total,), (1, 1, *spatial))
    low: Any = -math.inf if dtype.is_float else np.iinfo(dtype.np).min
    taps = _taps(cx, work, node, a["dilation"], low)
    spots = _taps(cx, places, node, a["dilation"], -1)
    best, at = taps[0], spots[0]
    for value, spot in zip(taps[1:], spots[1:], strict=True):
        inside = cx.op("GreaterOrEqual", spot, cx.like(0, spot))
        better = cx.op("Greater", value, best)
        if dtype.is_float:
            nan = cx.op("IsNaN", value)
            better = cx.op("Or", nan, cx.op("And", better, cx.op("Not", cx.op("IsNaN", best))))
        better = cx.op("Or", better, cx.op("Less", at, cx.like(0, at)))  # anything is better than nothing
        better = cx.op("And", better, inside)
        best, at = cx.op("Where", better, value, best), cx.op("Where", better, spot, at)
    best = cx.cast(best, dtype)
    if not a["indices"]:
        return best
    return best, cx.expand(at, node.types[1].shape)


@emits("avg_pool")
def avg_pool(cx: Cx, node: Node, x: str) -> str:
    a = node.attrs
    dtype = cx.dtype(x)
    if 0 in node.types[0].shape:
        return cx.fill(0, node.types[0].shape, dtype)
    nd = len(a["kernel"])
    plain = not a["ceil_mode"]
    if dtype.compute is DType.f32 and plain:
        include = a["count_include_pad"] or bool(a["divisor"])
        attrs = _attrs(node)
        attrs.pop("dilations")
        y = cx.op("AveragePool", x, count_include_pad=int(include), **attrs)
        if a["divisor"]:
            factor = int(np.prod(a["kernel"])) / a["divisor"]
            y = cx.cast(cx.op("Mul", cx.cast(y, DType.f32), cx.const(np.asarray(factor), DType.f32)), dtype)
        return y
    wide = (DType.f64 if dtype is DType.f64 else DType.f32) if dtype.is_float else DType.i64
    ones = (1,) * nd
    total: str | None = None
    for t in _taps(cx, cx.cast(x, wide), node, ones, 0):
        total = t if total is None else cx.op("Add", total, t)
    assert total is not None
    if a["divisor"]:
        count = cx.const(np.asarray(a["divisor"]), wide)
    else:
        count = cx.const(_counts(node), wide)
        count = cx.op("Max", count, cx.like(1, count))
    return cx.cast(cx.op("Div", total, count), dtype)


def _counts(node: Node) -> Any:
    """How many elements each window has, from the reference; needs constant sizes."""
    from ....ir.ops.pool import _avg_pool_np

    a, spatial = node.attrs, node.operands[0].shape[2:]
    if not all(isinstance(n, int) for n in spatial):
        raise Refuse("average pooling in this mode of an image of unknown size")
    attrs = {k: a[k] for k in ("kernel", "stride", "padding", "ceil_mode")}
    ones = np.ones((1, 1, *spatial))
    total = _avg_pool_np(ones, **attrs, count_include_pad=False, divisor=1)
    mean = _avg_pool_np(ones, **attrs, count_include_pad=a["count_include_pad"], divisor=0)
    return np.rint(total / mean)


def _cells(n: int, out: int) -> list[tuple[int, int]]:
    return [(i * n // out, -(-((i + 1) * n) // out)) for i in range(out)]


@emits("adaptive_avg_pool")
def adaptive_avg_pool(cx: Cx, node: Node, x: str) -> str:
    size, v = node.attrs["size"], node.operands[0]
    dtype = cx.dtype(x)
    if 0 in node.types[0].shape:
        return cx.fill(0, node.types[0].shape, dtype)
    if not dtype.is_float:
        raise Refuse(f"averages of {dtype} over windows of several sizes")
    y = cx.cast(x, dtype.compute)
    if all(n == 1 for n in size):
        return cx.cast(cx.op("ReduceMean", y, cx.ints(*range(2, v.rank)), keepdims=1), dtype)
    for d, out in enumerate(size):  # one matrix of averages a dim
        n = v.shape[2 + d]
        if not isinstance(n, int) or not isinstance(out, int):
            raise Refuse("adaptive pooling of an image of unknown size")
        matrix = np.zeros((n, out))
        for i, (lo, hi) in enumerate(_cells(n, out)):
            matrix[lo:hi, i] = 1 / (hi - lo)
        y = product_along(cx, y, v.rank, 2 + d, matrix)
    return cx.cast(y, dtype)


def product_along(cx: Cx, x: str, rank: int, dim: int, matrix: Any) -> str:
    """x times a constant matrix [n, m] along dim."""
    w = cx.const(np.ascontiguousarray(matrix), cx.dtype(x))
    if dim == rank - 1:
        return cx.matmul(x, w, (None, 2))
    if dim == rank - 2:
        return cx.matmul(cx.const(np.ascontiguousarray(matrix.T), cx.dtype(x)), x, (2, None))
    perm = [d for d in range(rank) if d != dim] + [dim]
    y = cx.matmul(cx.transpose(x, perm), w, (None, 2))
    return cx.transpose(y, [perm.index(d) for d in range(rank)])


@emits("adaptive_max_pool")
def adaptive_max_pool(cx: Cx, node: Node, x: str) -> Any:
    """Windows gathered, the short ones filled up with their last element again."""
    size, v, want = node.attrs["size"], node.operands[0], node.attrs["indices"]
    dtype = cx.dtype(x)
    if 0 in node.types[0].shape:
        made = tuple(cx.fill(0, t.shape, t.dtype) for t in node.types)
        return made if want else made[0]
    if not all(isinstance(n, int) for n in (*v.shape[2:], *size)):
        raise Refuse("adaptive pooling of an image of unknown size")
    spatial: Any = v.shape[2:]
    cells = [_cells(n, out) for n, out in zip(spatial, size, strict=True)]
    widths = [max(hi - lo for lo, hi in c) for c in cells]
    grid: Any = np.zeros((), np.int64)
    nd = len(size)
    for d, (c, w) in enumerate(zip(cells, widths, strict=True)):
        line = np.asarray([[min(lo + t, hi - 1) for t in range(w)] for lo, hi in c])
        shape = [1] * (2 * nd)
        shape[d], shape[nd + d] = line.shape
        grid = grid * spatial[d] + line.reshape(shape)
    taps = int(np.prod(widths))
    grid = np.broadcast_to(grid, (*size, *widths)).reshape(*size, taps)
    flat = cx.reshape(cx.cast(x, dtype.compute), None, (*v.shape[:2], int(np.prod(spatial))))
    got = cx.op("Gather", flat, cx.const(grid.copy()), axis=2)  # [N, C, *size, taps]
    values = cx.op("ReduceMax", got, cx.ints(-1), keepdims=0)
    if not dtype.is_float:
        if want:
            raise Refuse("the places of integer maxima")
        return cx.cast(values, dtype)
    nan = cx.op("IsNaN", got)
    has = cx.op("ReduceMax", nan, cx.ints(-1), keepdims=0)
    values = cx.cast(cx.op("Where", has, cx.like(math.nan, values), values), dtype)
    if not want:
        return values
    first = cx.op("ArgMax", got, axis=-1, keepdims=1)
    last = cx.op("ArgMax", cx.cast(nan, DType.u8), axis=-1, keepdims=1, select_last_index=1)
    at = cx.op("Where", cx.unsqueeze(has, -1), last, first)
    table = cx.expand(cx.const(grid.copy()), (*v.shape[:2], *grid.shape))
    return values, cx.squeeze(cx.op("GatherElements", table, at, axis=-1), -1)
