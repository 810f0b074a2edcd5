"""Gather, scatter, indexing, and operators whose result size depends on the data."""

from __future__ import annotations

import builtins
from typing import Any

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, aten


def ranked(cx: Context, *xs: Value) -> list[Value]:
    """0-d operands as 1-d ones."""
    return [cx.reshape(x, (1,)) if x.rank == 0 else x for x in xs]


@aten("gather")
def _gather(cx: Context, x: Value, dim: int, index: Value, *, sparse_grad: bool = False) -> Value:
    d = cx.axis(dim, x.rank)
    if D.product(index.shape) == 0:
        return cx.full(0 if not x.dtype.is_bool else False, cx.out.shape, x.dtype)
    a, i = ranked(cx, x, cx.index(index))
    return cx.reshape(cx.op("gather", a, i, dim=d), cx.out.shape)


@aten("take_along_dim")
def _take_along_dim(cx: Context, x: Value, index: Value, dim: int | None = None) -> Value:
    if dim is None:
        return cx.op(
            "gather",
            cx.reshape(x, (D.product(x.shape),)),
            cx.reshape(cx.index(index), (D.product(index.shape),)),
            dim=0,
        )
    d = cx.axis(dim, x.rank)
    out = cx.out.shape
    wide = tuple(s if i == d else o for i, (s, o) in enumerate(zip(x.shape, out, strict=True)))
    return cx.op("gather", cx.broadcast(x, wide), cx.broadcast(cx.index(index), out), dim=d)


@aten("index_select")
def _index_select(cx: Context, x: Value, dim: int, index: Value) -> Value:
    if x.rank == 0:
        return x
    (i,) = ranked(cx, cx.index(index))
    return cx.op("take", x, i, dim=cx.axis(dim, x.rank))


@aten("take")
def _take(cx: Context, x: Value, index: Value) -> Value:
    return cx.op("take", cx.reshape(x, (D.product(x.shape),)), cx.index(index), dim=0)


@aten("embedding")
def _embedding(
    cx: Context, weight: Value, indices: Value, padding_idx: int = -1, scale: bool = False, sparse: bool = False
) -> Value:
    return cx.op("take", weight, cx.index(indices), dim=0)


@aten("embedding_renorm")
def _embedding_renorm(cx: Context, weight: Value, indices: Value, max_norm: float, norm_type: float) -> Value:
    """The table with the rows that are looked up scaled down to a p-norm of max_norm."""
    work = cx.opmath(weight)
    size = cx.op("abs", work)
    p = float(norm_type)
    if p == float("inf"):
        norm = cx.reduce("max", size, (1,), True)
    elif p == 1:
        norm = cx.reduce("sum", size, (1,), True)
    else:
        power = cx.reduce("sum", cx.op("pow", size, cx.const(p, work.dtype)), (1,), True)
        norm = cx.op("pow", power, cx.const(1 / p, work.dtype))
    n = D.product(indices.shape)
    false, true = cx.full(False, (weight.shape[0],), DType.bool), cx.full(True, (n,), DType.bool)
    used = cx.op("scatter", false, cx.reshape(cx.index(indices), (n,)), true, dim=0)
    limit = float(max_norm)
    large = cx.op("logical_and", cx.op("gt", norm, cx.const(limit, work.dtype)), cx.unsqueeze(used, -1))
    scaled = cx.mul(work, cx.div(cx.const(limit, work.dtype), cx.add(norm, cx.const(1e-7, work.dtype))))
    return cx.convert(cx.where(large, scaled, work), weight.dtype)


def _nonzeros(cx: Context, mask: Value) -> list[Value]:
    """The coordinates of a mask's true elements, one 1-d index per dim."""
    table = cx.op("nonzero", mask, size=cx.new_symbol())
    return [cx.select(table, 1, i) for i in range(mask.rank)]


def _integer_indices(cx: Context, x: Value, indices: Any) -> list[tuple[int, Value]]:
    """(dim, index) pairs; a bool mask becomes one index per dim it covers."""
    out: list[tuple[int, Value]] = []
    at = 0
    for i in indices:
        if i is None:
            at += 1
        elif i.dtype.is_bool or i.dtype is DType.u8:
            mask = i if i.dtype.is_bool else cx.op("ne", i, 0)
            for part in _nonzeros(cx, mask):
                out.append((at, part))
                at += 1
        else:
            out.append((at, cx.index(i)))
            at += 1
    return out


@aten("index", "_unsafe_index", "index.Tensor")
def _index(cx: Context, x: Value, indices: Any) -> Value:
    given = [i for i in indices if i is not None]
    if len(given) == 1 and given[0].dtype.is_bool and given[0].rank == x.rank and x.rank:
        fresh = cx.out.shape[0]
        return cx.op("masked_select", x, given[0], size=fresh)
    if any(i.dtype.is_bool and i.rank == 0 for i in given):
        raise Unsupported("a 0-d bool index")
    masks = [i for i in given if i.dtype.is_bool or i.dtype is DType.u8]
    if len(masks) == 1 and len(given) == 1:
        mask = masks[0] if masks[0].dtype.is_bool else cx.op("ne", masks[0], 0)
        at = next(k for k, i in enumerate(indices) if i is not None)
        rank = masks[0].rank
        size = cx.out.shape[at]
        table = cx.op("nonzero", mask, size=size)
        return cx.op("index", x, *(cx.select(table, 1, k) for k in range(rank)), dims=tuple(range(at, at + rank)))
    pairs = _integer_indices(cx, x, indices)
    if len(pairs) == 1:
        return cx.op("take", x, pairs[0][1], dim=pairs[0][0])
    return cx.op("index", x, *(i for _, i in pairs), dims=tuple(d for d, _ in pairs))


@aten("index_put", "_unsafe_index_put", "_index_put_impl")
def _index_put(
    cx: Context, x: Value, indices: Any, values: Value, accumulate: bool = False, unsafe: bool = False
) -> Value:
    given = [i for i in indices if i is not None]
    v = cx.convert(values, x.dtype)
    if len(given) == 1 and given[0].dtype.is_bool and not accumulate and _is_one(v):
        mask = given[0]
        at = next(k for k, i in enumerate(indices) if i is not None)
        lead, tail = x.shape[:at], x.shape[at + mask.rank :]
        wide = cx.reshape(mask, (*(1 for _ in lead), *mask.shape, *(1 for _ in tail)))
        return cx.where(wide, cx.reshape(v, ()), x)
    if any(i.dtype.is_bool and i.rank == 0 for i in given):
        raise Unsupported("a 0-d bool index")
    pairs = _integer_indices(cx, x, indices)
    if not pairs:
        return cx.broadcast(v, x.shape) if not accumulate else cx.add(x, v)
    return cx.op("index_put", x, v, *(i for _, i in pairs), dims=tuple(d for d, _ in pairs), accumulate=accumulate)


def _is_one(v: Value) -> bool:
    return all(s == 1 for s in v.shape)


def _scatter_into(
    cx: Context, x: Value, dim: int, index: Value, src: Value, reduce: str, include_self: bool = True
) -> Value:
    d = cx.axis(dim, x.rank)
    if D.product(index.shape) == 0:
        return x
    a, i, s = ranked(cx, x, cx.index(index), cx.convert(src, x.dtype))
    return cx.reshape(cx.op("scatter", a, i, s, dim=d, reduce=reduce, include_self=include_self), x.shape)


_REDUCE = {
    None: "none",
    "add": "sum",
    "multiply": "prod",
    "sum": "sum",
    "prod": "prod",
    "amax": "amax",
    "amin": "amin",
    "mean": "mean",
}


@aten("scatter")
def _scatter(cx: Context, x: Value, dim: int, index: Value, src: Any, *, reduce: str | None = None) -> Value:
    s = src if isinstance(src, Value) and src.rank == index.rank else cx.broadcast(cx.scalar(src, x.dtype), index.shape)
    return _scatter_into(cx, x, dim, index, s, _REDUCE[reduce])


@aten("scatter_add")
def _scatter_add(cx: Context, x: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter_into(cx, x, dim, index, src, "sum")


@aten("scatter_reduce")
def _scatter_reduce(
    cx: Context, x: Value, dim: int, index: Value, src: Value, reduce: str, *, include_self: bool = True
) -> Value:
    return _scatter_into(cx, x, dim, index, src, _REDUCE[reduce], include_self)


def _rows(cx: Context, x: Value, dim: int, index: Value, src: Value) -> tuple[Value, int, Value, Value]:
    """Operands of index_add and its kind with rank 1 or more and a source that has the shape it must have."""
    d = cx.axis(dim, x.rank)
    a, i, s = ranked(cx, x, cx.index(index), cx.convert(src, x.dtype))
    want = tuple(i.shape[0] if k == d else n for k, n in enumerate(a.shape))
    return a, d, i, cx.reshape(s, want) if s.rank != a.rank else s


@aten("index_add")
def _index_add(cx: Context, x: Value, dim: int, index: Value, source: Value, *, alpha: Any = 1) -> Value:
    a, d, i, s = _rows(cx, x, dim, index, source)
    if alpha != 1:
        s = cx.mul(s, alpha)
    return cx.reshape(cx.op("index_add", a, i, s, dim=d), x.shape)


@aten("index_copy")
def _index_copy(cx: Context, x: Value, dim: int, index: Value, source: Value) -> Value:
    a, d, i, s = _rows(cx, x, dim, index, source)
    return cx.reshape(cx.op("index_copy", a, i, s, dim=d), x.shape)


@aten("index_reduce")
def _index_reduce(
    cx: Context, x: Value, dim: int, index: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Value:
    a, d, i, s = _rows(cx, x, dim, index, source)
    return cx.reshape(cx.op("index_reduce", a, i, s, dim=d, reduce=_REDUCE[reduce], include_self=include_self), x.shape)


@aten("index_fill")
def _index_fill(cx: Context, x: Value, dim: int, index: Value, value: Any) -> Value:
    a, i = ranked(cx, x, cx.index(index))
    v = cx.reshape(cx.scalar(value, x.dtype), ())
    return cx.reshape(cx.op("index_fill", a, i, v, dim=cx.axis(dim, x.rank)), x.shape)


@aten("put")
def _put(cx: Context, x: Value, index: Value, source: Value, accumulate: bool = False) -> Value:
    n = D.product(index.shape)
    flat = cx.reshape(x, (D.product(x.shape),))
    i, s = cx.reshape(cx.index(index), (n,)), cx.reshape(source, (n,))
    return cx.reshape(cx.op("index_put", flat, s, i, dims=(0,), accumulate=accumulate), x.shape)


@aten("masked_scatter")
def _masked_scatter(cx: Context, x: Value, mask: Value, source: Value) -> Value:
    shape = cx.out.shape
    return cx.op("masked_scatter", cx.broadcast(x, shape), cx.broadcast(mask, shape), cx.convert(source, x.dtype))


@aten("masked_select")
def _masked_select(cx: Context, x: Value, mask: Value) -> Value:
    from ....ir.op import broadcast_shapes

    shape = broadcast_shapes(x.shape, mask.shape)
    return cx.op("masked_select", cx.broadcast(x, shape), cx.broadcast(mask, shape), size=cx.out.shape[0])


@aten("nonzero")
def _nonzero(cx: Context, x: Value) -> Value:
    return cx.op("nonzero", x, size=cx.out.shape[0])


@aten("bincount")
def _bincount(cx: Context, x: Value, weights: Value | None = None, minlength: Any = 0) -> Value:
    v = cx.convert(x, DType.i64)
    if weights is not None and weights.dtype is not DType.f32:
        weights = cx.convert(weights, DType.f64)
    y = cx.op("bincount", v, weights, minlength=cx.dim(minlength), size=cx.out.shape[0])
    return cx.convert(y, cx.out.dtype)


@aten("histc")
def _histc(cx: Context, x: Value, bins: int = 100, min: Any = 0, max: Any = 0) -> Value:
    return cx.convert(cx.op("histc", cx.opmath(x), bins=bins, lo=float(min), hi=float(max)), cx.out.dtype)


@aten("repeat_interleave.Tensor")
def _repeat_interleave(cx: Context, repeats: Value, *, output_size: Any = None) -> Value:
    return cx.op("repeat_interleave", cx.index(repeats), size=cx.out.shape[0])


def _fresh_size(cx: Context, *results: int) -> Dim:
    for r in results:
        t = cx.expected[r]
        if t is not None and t.rank and not isinstance(t.shape[0], int):
            return t.shape[0]
    return cx.out.shape[0]


@aten("_unique2", "_unique")
def _unique2(
    cx: Context, x: Value, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> Any:
    values, inverse, counts = cx.op("unique", x, size=cx.out.shape[0])
    empty = cx.full(0, (0,), DType.i64)
    parts = (values, inverse if return_inverse or return_counts else empty, counts if return_counts else empty)
    return _trimmed(cx, parts)


def _trimmed(cx: Context, parts: tuple[Value, ...]) -> tuple[Value, ...]:
    """Results that were not asked for are empty in torch."""
    out = []
    for v, t in zip(parts, cx.expected, strict=False):
        assert t is not None
        out.append(cx.full(0, (0,), DType.i64) if t.shape == (0,) and v.shape != (0,) else v)
    return tuple(out)


@aten("unique_consecutive")
def _unique_consecutive(
    cx: Context, x: Value, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    if dim is not None:
        d = cx.axis(dim, x.rank)
        size = cx.out.shape[d]
        if dim == -1:  # torch's own shape function does not wrap it and gives the result too many dims
            cx.expected[0] = x.type.with_shape((*x.shape[:d], size))
        return _trimmed(cx, cx.op("unique_dim", x, dim=d, consecutive=True, size=size))
    return _trimmed(cx, cx.op("unique_consecutive", x, size=cx.out.shape[0]))


@aten("unique_dim", "unique_dim_consecutive")
def _unique_dim(cx: Context, x: Value, dim: int, *flags: Any, **_: Any) -> Any:
    d = cx.axis(dim, x.rank)
    consecutive = "consecutive" in str(cx.fx.target)
    return _trimmed(cx, cx.op("unique_dim", x, dim=d, consecutive=consecutive, size=cx.out.shape[d]))


@aten("searchsorted")
def _searchsorted(
    cx: Context,
    sorted_sequence: Value,
    values: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Value | None = None,
) -> Value:
    if not isinstance(values, Value):
        values = cx.const(values, sorted_sequence.dtype)
    dt = cx.result_type(sorted_sequence, values) if values.rank else sorted_sequence.dtype
    shape = cx.out.shape
    v = cx.convert(values, dt)
    if v.rank == 0 and sorted_sequence.rank != 1:
        raise Unsupported("a scalar in a batch of sequences")
    y = cx.op(
        "searchsorted",
        cx.convert(sorted_sequence, dt),
        v,
        None if sorter is None else cx.index(sorter),
        right=right or side == "right",
        dtype=cx.out.dtype,
    )
    return cx.reshape(y, shape)


@aten("bucketize")
def _bucketize(cx: Context, x: Any, boundaries: Value, *, out_int32: bool = False, right: bool = False) -> Value:
    return _searchsorted(cx, boundaries, x, out_int32=out_int32, right=right)


@aten("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(
    cx: Context,
    weight: Value,
    indices: Value,
    offsets: Value,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Value | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Any:
    if padding_idx is None:
        padding_idx = -1
    elif padding_idx < 0 and str(cx.fx.target).startswith(
        "aten.embedding_bag"
    ):  # the underscored forms mean "none" by -1
        rows = weight.shape[0]
        if not isinstance(rows, int):
            raise Unsupported("a negative padding index in a table of symbolic size")
        padding_idx += rows
    y = cx.op(
        "embedding_bag",
        weight,
        cx.index(indices),
        cx.index(offsets),
        per_sample_weights,
        mode=("sum", "mean", "max")[mode],
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
    )
    used = {n.args[1] for n in cx.fx.users if len(n.args) > 1 and n.users}
    if used - {0}:
        raise Unsupported("the bookkeeping results of embedding_bag")
    rest = [None if t is None else cx.full(0, t.shape, t.dtype) for t in cx.expected[1:]]
    return (y, *rest)


# Histograms and segments ---------------------------------------------------------------------------------------------


def _edges(cx: Context, x: Value, bins: int, limits: Any) -> Value:
    """bins + 1 equal edges over the given range, or the data's; a range of one point is widened by a half to both
    sides.
    """
    work = x.dtype
    if limits is not None:
        lo, hi = float(limits[0]), float(limits[1])
        if lo == hi:
            lo, hi = lo - 0.5, hi + 0.5
        a, b = cx.const(lo, work), cx.const(hi, work)
    elif D.product(x.shape) == 0:
        a, b = cx.const(0.0, work), cx.const(1.0, work)
    else:
        dims = tuple(range(x.rank))
        a, b = cx.reduce("min", x, dims), cx.reduce("max", x, dims)
        same = cx.op("eq", a, b)
        a, b = cx.where(same, cx.sub(a, cx.const(0.5, work)), a), cx.where(same, cx.add(b, 0.5), b)
    i = cx.iota(bins + 1)
    step = cx.div(cx.sub(b, a), float(bins))
    low = cx.add(cx.mul(cx.convert(i, work), step), a)
    high = cx.sub(b, cx.mul(cx.convert(cx.sub(bins, i), work), step))
    return cx.where(cx.op("lt", i, (bins + 1) // 2), low, high)


def _density(cx: Context, counts: Value, edges: list[Value]) -> Value:
    y = cx.div(counts, cx.reduce("sum", counts, tuple(range(counts.rank))))
    for d, e in enumerate(edges):
        n = e.shape[0]
        width = cx.sub(cx.slice(e, 0, 1, n), cx.slice(e, 0, 0, n - 1))
        y = cx.div(y, cx.reshape(width, tuple(n - 1 if k == d else 1 for k in range(counts.rank))))
    return y


@aten("histogram.bin_ct", "histogram.bins_tensor")
def _histogram(
    cx: Context, x: Value, bins: Any, *, range: Any = None, weight: Value | None = None, density: bool = False
) -> Any:
    edges = bins if isinstance(bins, Value) else _edges(cx, x, bins, range)
    points = cx.reshape(x, (D.product(x.shape), 1))
    w = None if weight is None else cx.reshape(weight, (D.product(weight.shape),))
    counts = cx.op("histogram", points, w, edges)
    return (_density(cx, counts, [edges]) if density else counts), edges


@aten("_histogramdd_bin_edges")
def _histogramdd_edges(
    cx: Context, x: Value, bins: Any, *, range: Any = None, weight: Any = None, density: bool = False
) -> Any:
    n = x.shape[-1]
    flat = cx.reshape(x, (D.product(x.shape[:-1]), n))
    limits = [None if range is None else (range[2 * k], range[2 * k + 1]) for k in builtins.range(len(bins))]
    return [_edges(cx, cx.select(flat, 1, k), b, limits[k]) for k, b in enumerate(bins)]


@aten("_histogramdd_from_bin_cts", "_histogramdd_from_bin_tensors")
def _histogramdd(
    cx: Context, x: Value, bins: Any, *, range: Any = None, weight: Value | None = None, density: bool = False
) -> Value:
    edges = bins if isinstance(bins[0], Value) else _histogramdd_edges(cx, x, bins, range=range)
    points = cx.reshape(x, (D.product(x.shape[:-1]), x.shape[-1]))
    w = None if weight is None else cx.reshape(weight, (D.product(weight.shape),))
    counts = cx.op("histogram", points, w, *edges)
    return _density(cx, counts, list(edges)) if density else counts


@aten("segment_reduce")
def _segment_reduce(
    cx: Context,
    data: Value,
    reduce: str,
    *,
    lengths: Value | None = None,
    indices: Any = None,
    offsets: Value | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Any = None,
) -> Value:
    """Rows are added (multiplied, ...) into their segment's row, which starts as the initial value."""
    given = lengths if lengths is not None else offsets
    if given is None or given.rank != 1 or axis not in (0, -data.rank):
        raise Unsupported("segments along a dim that is not the first")
    index = cx.index(given)
    if lengths is None:
        n = index.shape[0]
        index = cx.sub(cx.slice(index, 0, 1, n), cx.slice(index, 0, 0, n - 1))
    segments = index.shape[0]
    rows = data.shape[0]
    place = cx.op("repeat_interleave", index, size=rows)
    start = (
        {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -float("inf"), "min": float("inf")}[reduce]
        if initial is None
        else initial
    )
    base = cx.full(start, (segments, *data.shape[1:]), data.dtype)
    wide = cx.broadcast(cx.reshape(place, (rows, *(1 for _ in data.shape[1:]))), data.shape)
    kind = {"sum": "sum", "mean": "sum", "prod": "prod", "max": "amax", "min": "amin"}[reduce]
    y = cx.op("scatter", base, wide, data, dim=0, reduce=kind, include_self=True)
    count = cx.reshape(index, (segments, *(1 for _ in data.shape[1:])))
    if reduce == "mean":
        mean = cx.div(y, cx.convert(count, y.dtype))
        y = mean if initial is None else cx.where(cx.op("eq", count, 0), y, mean)
    return y
