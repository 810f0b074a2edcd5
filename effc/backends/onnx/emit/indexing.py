"""Indexing, scattering, searching, and results whose size depends on the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Node, Value
from ....ir.ops.indexing import _index_place
from ..context import Cx, Refuse
from . import emits
from .movement import flat, row_major


def shape_of(cx: Cx, x: str) -> str:
    return cx.raw("Shape", [x], [DType.i64])[0]


def size_of(cx: Cx, x: str, dim: int = 0) -> str:
    """One size of x as a 0-d i64."""
    return cx.squeeze(cx.raw("Shape", [x], [DType.i64], start=dim, end=dim + 1)[0], 0)


@emits("gather", parts=True)
def gather(cx: Cx, node: Node, x: str, index: str) -> str:
    if 0 in node.types[0].shape:
        return cx.fill(0, node.types[0].shape, cx.dtype(x))
    return cx.op("GatherElements", x, index, axis=node.attrs["dim"])


@emits("take", parts=True)
def take(cx: Cx, node: Node, x: str, index: str) -> str:
    return cx.op("Gather", x, index, axis=node.attrs["dim"])


def linear(cx: Cx, node: Node, indices: Sequence[str], values: Sequence[Value], dims: Sequence[int]) -> str:
    """Several index tensors for the joined dim of the indexed ones, in order; negative ones wrapped."""
    shape = node.operands[0].shape
    total: str | None = None
    for d, i in zip(dims, indices, strict=True):
        i = cx.cast(i, DType.i64)
        size = cx.scalar(shape[d])
        i = cx.op("Where", cx.op("Less", i, cx.like(0, i)), cx.op("Add", i, size), i)
        total = i if total is None else cx.op("Add", cx.op("Mul", total, size), i)
    assert total is not None
    return total


def _front(rank: int, dims: Sequence[int]) -> list[int]:
    return [*dims, *(d for d in range(rank) if d not in dims)]


def _common(node: Node, dims: Sequence[int]) -> int:
    """The rank of the broadcast indices."""
    return node.types[0].rank - (node.operands[0].rank - len(dims))


@emits("index", parts=True)
def index(cx: Cx, node: Node, x: str, *indices: str) -> str:
    dims = node.attrs["dims"]
    v = node.operands[0]
    if 0 in node.types[0].shape:
        return cx.fill(0, node.types[0].shape, cx.dtype(x))
    if len(dims) == 1:
        return cx.op("Gather", x, indices[0], axis=dims[0])
    rest = [d for d in range(v.rank) if d not in dims]
    y = cx.transpose(x, _front(v.rank, dims))
    joined = (_product([v.shape[d] for d in dims]), *(v.shape[d] for d in rest))
    y = cx.reshape(y, None, joined)
    y = cx.op("Gather", y, linear(cx, node, indices, node.operands[1:], dims), axis=0)
    at, common = _index_place(dims), _common(node, dims)
    # [common, rest] -> [rest before, common, rest behind]
    perm = [*range(common, common + at), *range(common), *range(common + at, common + len(rest))]
    return cx.transpose(y, perm)


def _product(shape: Sequence[Dim]) -> Dim:
    n: Dim = 1
    for d in shape:
        n = n * d
    return n


@emits("index_put", parts=True)
def index_put(cx: Cx, node: Node, x: str, values: str, *indices: str) -> str:
    """A scatter of elements at their row-major places: onnxruntime's runs in order, so the last write stays."""
    a, v = node.attrs, node.operands[0]
    dims = a["dims"]
    if 0 in v.shape:
        return x
    strides = row_major(v.shape)
    rest = [d for d in range(v.rank) if d not in dims]
    at = _index_place(dims)
    common = max(i.rank for i in node.operands[2:])
    total: str | None = None
    for d, i in zip(dims, indices, strict=True):
        i = cx.cast(i, DType.i64)
        i = cx.op("Where", cx.op("Less", i, cx.like(0, i)), cx.op("Add", i, cx.scalar(v.shape[d])), i)
        i = cx.op("Mul", i, cx.scalar(strides[d]))
        total = i if total is None else cx.op("Add", total, i)
    assert total is not None
    behind = len(rest) - at
    if behind:
        total = cx.unsqueeze(total, *range(-behind, 0))
    rank = common + len(rest)
    for k, d in enumerate(rest):
        line = cx.op("Mul", cx.range(v.shape[d]), cx.scalar(strides[d]))
        place = k if k < at else common + k
        others = [j for j in range(rank) if j != place]
        if others:
            line = cx.unsqueeze(line, *others)
        total = cx.op("Add", total, line)
    values = cx.op("Expand", values, shape_of(cx, total))
    return scattered(cx, x, v, total, values, "add" if a["accumulate"] else "none")


def scattered(cx: Cx, x: str, v: Value, places: str, values: str, reduction: str) -> str:
    """x with values written, or combined, at row-major places."""
    line = flat(cx, x, v.rank) if v.rank else cx.unsqueeze(x, 0)
    places, values = (cx.op("Reshape", y, cx.ints(-1)) for y in (places, values))
    out = reduce_elements(cx, line, places, values, 0, reduction)
    return cx.reshape(out, None, v.shape)


def reduce_elements(cx: Cx, x: str, at: str, src: str, axis: int, reduction: str) -> str:
    """ScatterElements; types that its reductions lack go through wider ones, bools through integers."""
    dtype = cx.dtype(x)
    if reduction != "none":
        if dtype.is_bool:
            reduction = {"add": "max", "mul": "min"}.get(reduction, reduction)
            x, src = cx.cast(x, DType.i32), cx.cast(src, DType.i32)
        elif dtype.compute is not dtype:
            x, src = cx.cast(x, dtype.compute), cx.cast(src, dtype.compute)
    out = cx.op("ScatterElements", x, at, src, axis=axis, reduction=reduction)
    return cx.cast(out, dtype)


@emits("scatter", complex=True)
def scatter(cx: Cx, node: Node, x: Any, at: str, src: Any) -> Any:
    from ..context import Pair

    if isinstance(x, Pair):
        if node.attrs["reduce"] == "prod":
            raise Refuse("a product of complex numbers")
        return Pair(_scatter(cx, node, x.re, at, src.re), _scatter(cx, node, x.im, at, src.im))
    return _scatter(cx, node, x, at, src)


def _scatter(cx: Cx, node: Node, x: str, at: str, src: str) -> str:
    dim, how, own = (node.attrs[k] for k in ("dim", "reduce", "include_self"))
    index_v, src_v = node.operands[1], node.operands[2]
    if 0 in index_v.shape:
        return x
    rows = [d for d in range(src_v.rank) if src_v.shape[d] != index_v.shape[d]]
    for d in rows:
        src = cx.slice(src, d, 0, index_v.shape[d])
    dtype = cx.dtype(x)
    if how == "none":
        return cx.op("ScatterElements", x, at, src, axis=dim)
    from ....ir.ops.indexing import identity

    if not own:
        neutral = cx.const(np.asarray(identity(how, dtype.np if dtype is not DType.bf16 else np.float32)), dtype)
        blank = cx.op("Expand", neutral, shape_of(cx, src))
        x = cx.op("ScatterElements", x, at, blank, axis=dim)
    name = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}[how]
    if how != "mean":
        out = reduce_elements(cx, x, at, src, dim, name)
        if how in ("amax", "amin") and dtype.is_float:  # comparisons overlook NaN
            flags = [cx.cast(cx.op("IsNaN", v), DType.i32) for v in (x, src)]
            bad = cx.op("ScatterElements", flags[0], at, flags[1], axis=dim, reduction="max")
            out = cx.op("Where", cx.cast(bad, DType.bool), cx.like(np.nan, out), out)
        return out
    wide = dtype.compute if dtype.is_float else DType.i64
    total = cx.op("ScatterElements", cx.cast(x, wide), at, cx.cast(src, wide), axis=dim, reduction="add")
    start = cx.op("Expand", cx.const(np.asarray(int(own)), wide), shape_of(cx, x))
    ones = cx.op("Expand", cx.const(np.asarray(1), wide), shape_of(cx, src))
    count = cx.op("ScatterElements", start, at, ones, axis=dim, reduction="add")
    count = cx.op("Max", count, cx.like(1, count))
    if dtype.is_float:
        return cx.cast(cx.op("Div", total, count), dtype)
    from .elementwise import floor_div

    return cx.cast(floor_div(cx, total, count), dtype)


@emits("masked_scatter", parts=True)
def masked_scatter(cx: Cx, node: Node, x: str, mask: str, source: str) -> str:
    v, given = node.operands[0], node.operands[2]
    if 0 in v.shape or 0 in given.shape:
        return x
    m = cx.op("Reshape", mask, cx.ints(-1))
    at = cx.op("CumSum", cx.cast(m, DType.i64), cx.const(np.asarray(0, np.int64)))
    at = cx.op("Max", cx.op("Sub", at, cx.ints(1)), cx.ints(0))
    cx.shared.notes["masked_scatter: that the source has enough elements is not checked by ONNX"] += 1
    got = cx.op("Gather", flat(cx, source, given.rank) if given.rank else cx.unsqueeze(source, 0), at, axis=0)
    return cx.reshape(cx.op("Where", m, got, cx.op("Reshape", x, cx.ints(-1))), None, v.shape)


# Sizes that depend on the data ----------------------------------------------------------------------------------------


@emits("masked_select", parts=True)
def masked_select(cx: Cx, node: Node, x: str, mask: str) -> str:
    one = cx.ints(-1)
    return cx.op("Compress", cx.op("Reshape", x, one), cx.op("Reshape", mask, one), axis=0)


@emits("nonzero", complex=True)
def nonzero(cx: Cx, node: Node, x: Any) -> str:
    from .elementwise import nonzero as flag

    rank = node.operands[0].rank
    if 0 in node.operands[0].shape:
        return cx.fill(0, (0, rank), DType.i64)
    at = cx.op("NonZero", flag(cx, x) if rank else cx.unsqueeze(flag(cx, x), 0))
    rows = cx.transpose(at, (1, 0))
    return rows if rank else cx.op("Slice", rows, cx.ints(0), cx.ints(0), cx.ints(1))


@emits("nms")
def nms(cx: Cx, node: Node, boxes: str, scores: str, limit: str, iou: str, threshold: str | None = None) -> str:
    operands = [
        boxes,
        scores,
        *(cx.unsqueeze(v, 0) for v in (limit, iou)),
        *([cx.unsqueeze(threshold, 0)] if threshold else []),
    ]
    center = {"center_point_box": int(node.attrs["center"])}
    return cx.raw("NonMaxSuppression", operands, [DType.i64], **center)[0]


@emits("item")
def item(cx: Cx, node: Node, x: str) -> str:
    x = cx.cast(x, DType.i64)
    return x if node.operands[0].rank == 0 else cx.op("Reshape", x, cx.const(np.zeros(0, np.int64)))


@emits("repeat_interleave")
def repeat_interleave(cx: Cx, node: Node, repeats: str) -> str:
    """Ones at the places where the next index begins, summed up."""
    r = cx.cast(repeats, DType.i64)
    ends = cx.op("CumSum", r, cx.const(np.asarray(0, np.int64)))
    total = cx.op("ReduceSum", r, cx.ints(0), keepdims=1)
    steps = cx.op("Expand", cx.const(np.asarray(0, np.int64)), cx.op("Add", total, cx.ints(1)))
    ones = cx.op("Expand", cx.const(np.asarray(1, np.int64)), shape_of(cx, r))
    steps = cx.op("ScatterElements", steps, ends, ones, axis=0, reduction="add")
    at = cx.op("CumSum", steps, cx.const(np.asarray(0, np.int64)))
    return cx.op("Slice", at, cx.ints(0), total, cx.ints(0))


@emits("bincount")
def bincount(cx: Cx, node: Node, x: str, weights: str | None = None) -> str:
    at = cx.cast(x, DType.i64)
    top = cx.op("ReduceMax", cx.op("Concat", at, cx.ints(-1), axis=0), cx.ints(0), keepdims=1)
    size = cx.op("Max", cx.op("Add", top, cx.ints(1)), cx.dim(node.attrs["minlength"]))
    dtype = DType.i64 if weights is None else cx.dtype(weights)
    wide = DType.f64 if dtype is DType.f32 else dtype
    zeros = cx.op("Expand", cx.const(np.asarray(0), wide), size)
    given = cx.op("Expand", cx.const(np.asarray(1), wide), shape_of(cx, at)) if weights is None else weights
    return cx.cast(cx.op("ScatterElements", zeros, at, cx.cast(given, wide), axis=0, reduction="add"), dtype)


@emits("unique_consecutive", "unique")
def unique(cx: Cx, node: Node, x: str) -> tuple[str, ...]:
    """Sorted first unless consecutive; then flags at the first of each run, and their running sum."""
    v, dtype = node.operands[0], cx.dtype(x)
    line = cx.op("Reshape", x, cx.ints(-1)) if v.rank != 1 else x
    n = cx.squeeze(shape_of(cx, line), 0)
    order: str | None = None
    if node.op == "unique":
        from .sorting import ordered

        order = ordered(cx, line, 0, n, largest=False)
        line = cx.op("Gather", line, order, axis=0)
    return runs(cx, line, _fresh(cx, line), order, v.shape, dtype)


def _fresh(cx: Cx, line: str) -> str:
    """True where an element differs from the one before it."""
    end = cx.ints(1 << 62)
    a, b = cx.op("Slice", line, cx.ints(1), end), cx.op("Slice", line, cx.ints(0), cx.ints(-1))
    differs = cx.op("Not", cx.op("Equal", a, b))
    first = cx.op("Slice", cx.op("Equal", line, line), cx.ints(0), cx.ints(1))
    return cx.op("Concat", cx.op("Or", first, cx.op("Not", first)), differs, axis=0)


def runs(
    cx: Cx, line: str, fresh: str, order: str | None, shape: Sequence[Dim], dtype: DType, rows: str | None = None
) -> tuple[str, ...]:  # fmt: skip
    """(first of each run, each element's run, lengths of the runs)."""
    zero = cx.const(np.asarray(0, np.int64))
    number = cx.op("Sub", cx.op("CumSum", cx.cast(fresh, DType.i64), zero), cx.ints(1))
    values = cx.op("Compress", line if rows is None else rows, fresh, axis=0)
    size = cx.op("ReduceSum", cx.cast(fresh, DType.i64), cx.ints(0), keepdims=1)
    ones = cx.op("Expand", cx.const(np.asarray(1, np.int64)), shape_of(cx, number))
    counts = cx.op("ScatterElements", cx.op("Expand", zero, size), number, ones, axis=0, reduction="add")
    inverse = number
    if order is not None:
        inverse = cx.op("ScatterElements", cx.op("Mul", number, zero), order, number, axis=0)
    return values, cx.reshape(inverse, None, shape), counts


@emits("unique_dim")
def unique_dim(cx: Cx, node: Node, x: str) -> tuple[str, ...]:
    v, dim = node.operands[0], node.attrs["dim"]
    rest = [d for d in range(v.rank) if d != dim]
    perm = [dim, *rest]
    rows = cx.transpose(x, perm)
    width = _product([v.shape[d] for d in rest])
    if not isinstance(width, int):
        raise Refuse("slices of unknown size")
    table = cx.reshape(rows, None, (v.shape[dim], width))
    n = cx.squeeze(cx.dim(v.shape[dim]), 0)
    order: str | None = None
    if not node.attrs["consecutive"]:
        from .sorting import ordered

        if width > 64:
            raise Refuse(f"sorting slices of {width} elements")
        order = cx.range(v.shape[dim])
        for c in range(width - 1, -1, -1):  # stable sorts, the last key first
            column = cx.op("Gather", table, cx.const(np.asarray(c, np.int64)), axis=1)
            order = cx.op("Gather", order, ordered(cx, cx.op("Gather", column, order, axis=0), 0, n, False), axis=0)
        table, rows = cx.op("Gather", table, order, axis=0), cx.op("Gather", rows, order, axis=0)
    end = cx.ints(1 << 62)
    a = cx.op("Slice", table, cx.ints(1), end, cx.ints(0))
    b = cx.op("Slice", table, cx.ints(0), cx.ints(-1), cx.ints(0))
    differs = cx.op("ReduceMax", cx.op("Not", cx.op("Equal", a, b)), cx.ints(1), keepdims=0)
    one = cx.op("Slice", cx.op("Expand", cx.const(np.asarray(True)), cx.dim(v.shape[dim])), cx.ints(0), cx.ints(1))
    fresh = cx.op("Concat", one, differs, axis=0)
    values, inverse, counts = runs(cx, table, fresh, order, (v.shape[dim],), cx.dtype(x), rows)
    return cx.transpose(values, [perm.index(d) for d in range(v.rank)]), inverse, counts


# Searching ------------------------------------------------------------------------------------------------------------


@emits("searchsorted")
def searchsorted(cx: Cx, node: Node, seq: str, values: str, sorter: str | None = None) -> str:
    """Counts the elements that come before each value: all are compared with all."""
    right, dtype = node.attrs["right"], node.attrs["dtype"]
    s, v = node.operands[0], node.operands[1]
    if 0 in s.shape or 0 in v.shape:
        return cx.fill(0, v.shape, dtype)
    if sorter is not None:
        seq = cx.op("GatherElements", seq, sorter, axis=-1)
    seq = seq if s.rank == 1 else cx.unsqueeze(seq, s.rank - 1)
    behind = cx.op("Greater" if right else "GreaterOrEqual", seq, cx.unsqueeze(values, v.rank))
    before = cx.cast(cx.op("Not", behind), DType.i64)
    return cx.cast(cx.op("ReduceSum", before, cx.ints(-1), keepdims=0), dtype)


@emits("histc")
def histc(cx: Cx, node: Node, x: str) -> str:
    bins, lo, hi = (node.attrs[k] for k in ("bins", "lo", "hi"))
    if 0 in node.operands[0].shape:
        return cx.fill(0, (bins,), cx.dtype(x))
    line = cx.op("Reshape", x, cx.ints(-1))
    low, high = cx.like(lo, x), cx.like(hi, x)
    if lo == hi:
        low, high = (cx.op(op, line, cx.ints(0), keepdims=0) for op in ("ReduceMin", "ReduceMax"))
    same, one = cx.op("Equal", low, high), cx.like(1, x)
    low = cx.op("Where", same, cx.op("Sub", low, one), low)
    high = cx.op("Where", same, cx.op("Add", high, one), high)
    inside = cx.op("And", cx.op("GreaterOrEqual", line, low), cx.op("LessOrEqual", line, high))
    share = cx.op("Div", cx.op("Mul", cx.op("Sub", line, low), cx.like(bins, x)), cx.op("Sub", high, low))
    at = cx.cast(cx.op("Where", inside, share, cx.like(0, x)), DType.i64)
    at = cx.op("Min", at, cx.const(np.asarray(bins - 1, np.int64)))
    zeros = cx.const(np.zeros(bins, cx.dtype(x).np))
    return cx.op("ScatterElements", zeros, at, cx.cast(inside, cx.dtype(x)), axis=0, reduction="add")


@emits("histogram")
def histogram(cx: Cx, node: Node, x: str, weights: str | None = None, *edges: str) -> str:
    shape = node.types[0].shape
    if not all(isinstance(n, int) for n in shape) or node.operands[0].shape[0] == 0:
        if node.operands[0].shape[0] == 0:
            return cx.fill(0, shape, cx.dtype(x))
        raise Refuse("a histogram with an unknown number of bins")
    total = inside = None
    for k, (e, n) in enumerate(zip(edges, shape, strict=True)):
        column = cx.op("Gather", x, cx.const(np.asarray(k, np.int64)), axis=1)
        above = cx.cast(cx.op("GreaterOrEqual", cx.unsqueeze(column, 1), e), DType.i64)
        at = cx.op("Sub", cx.op("ReduceSum", above, cx.ints(1), keepdims=0), cx.ints(1))
        last = cx.op("Slice", e, cx.ints(-1), cx.ints(1 << 62))
        first = cx.op("Slice", e, cx.ints(0), cx.ints(1))
        ok = cx.op("And", cx.op("GreaterOrEqual", column, first), cx.op("LessOrEqual", column, last))
        at = cx.op("Max", cx.op("Min", at, cx.dim(n - 1)), cx.ints(0))  # the last bin is closed
        total = at if total is None else cx.op("Add", cx.op("Mul", total, cx.dim(n)), at)
        inside = ok if inside is None else cx.op("And", inside, ok)
    assert total is not None and inside is not None
    given = cx.cast(inside, DType.f64)
    if weights is not None:
        given = cx.op("Where", inside, cx.cast(weights, DType.f64), cx.const(np.asarray(0.0)))
    zeros = cx.const(np.zeros(int(np.prod(shape)), np.float64))
    out = cx.op("ScatterElements", zeros, total, given, axis=0, reduction="add")
    return cx.cast(cx.reshape(out, None, shape), cx.dtype(x))


@emits("embedding_bag")
def embedding_bag(cx: Cx, node: Node, weight: str, indices: str, offsets: str, scales: str | None = None) -> str:
    """Rows scattered into their bags. Bags that begin at the same place are empty but for the last of them."""
    a, dtype = node.attrs, cx.dtype(weight)
    mode, pad = a["mode"], a["padding_idx"]
    bags, width = node.types[0].shape
    acc = DType.f64 if dtype in (DType.f32, DType.f64) else DType.f32
    at, starts = cx.cast(indices, DType.i64), cx.cast(offsets, DType.i64)
    rows = cx.cast(cx.op("Gather", weight, at, axis=0), acc)
    if scales is not None:
        rows = cx.op("Mul", rows, cx.unsqueeze(cx.cast(scales, acc), 1))
    place = cx.range(node.operands[1].shape[0])
    begun = cx.cast(cx.op("LessOrEqual", starts, cx.unsqueeze(place, 1)), DType.i64)
    bag = cx.op("Sub", cx.op("ReduceSum", begun, cx.ints(1), keepdims=0), cx.ints(1))
    # Elements before the first bag, behind the last, or padding, go to a bag of their own that is dropped.
    out_of = cx.op("Or", cx.op("Less", bag, cx.ints(0)), cx.op("GreaterOrEqual", bag, cx.dim(bags)))
    if pad >= 0:
        out_of = cx.op("Or", out_of, cx.op("Equal", at, cx.ints(pad)))
    bag = cx.op("Where", out_of, cx.dim(bags), bag)
    ones = cx.op("Expand", cx.const(np.asarray(1), acc), shape_of(cx, bag))
    counts = cx.op("ScatterElements", cx.fill(0, (bags + 1,), acc), bag, ones, axis=0, reduction="add")
    start = -np.inf if mode == "max" else 0
    wide = cx.op("Expand", cx.unsqueeze(bag, 1), shape_of(cx, rows))
    out = cx.op("ScatterElements", cx.fill(start, (bags + 1, width), acc), wide, rows, axis=0,
                reduction="max" if mode == "max" else "add")  # fmt: skip
    counts = cx.unsqueeze(counts, 1)
    if mode == "mean":
        out = cx.op("Div", out, cx.op("Max", counts, cx.like(1, counts)))
    if mode == "max":
        out = cx.op("Where", cx.op("Greater", counts, cx.like(0, counts)), out, cx.like(0, out))
    return cx.cast(cx.slice(out, 0, 0, bags), dtype)
