"""Binary search, histograms, and sums of table rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dtypes import DType
from ..op import Cost, Sample, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array
from .indexing import INDEX, check_index, wrapped
from .movement import Array

# ----------------------------------------------------------------------------------------------


def _searchsorted(
    sorted: TensorType, values: TensorType, sorter: TensorType | None = None, *, right: bool, dtype: DType
) -> TensorType:
    require(dtype in INDEX, f"the result must be i64 or i32, not {dtype}")
    require(sorted.dtype is values.dtype, f"operands have dtypes {sorted.dtype} and {values.dtype}")
    require(not sorted.dtype.is_complex, f"not defined for {sorted.dtype}")
    require(sorted.rank >= 1, "needs a sorted sequence of rank 1 or more")
    if sorted.rank > 1:
        ok = sorted.rank == values.rank and all(
            same_dim(a, b) for a, b in zip(sorted.shape[:-1], values.shape[:-1], strict=True)
        )
        require(ok, f"leading dims of {sorted.shape} and {values.shape} differ")
    if sorter is not None:
        require(
            sorter.dtype is DType.i64 and sorter.rank == sorted.rank,
            f"the sorter must be i64 of rank {sorted.rank}, not {sorter}",
        )
    return TensorType(dtype, values.shape)


def _searchsorted_np(sorted: Array, values: Array, sorter: Array | None = None, *, right: bool, dtype: DType) -> Array:
    if sorter is not None:
        sorted = np.take_along_axis(sorted, sorter, -1)
    side: Any = "right" if right else "left"
    if sorted.ndim == 1:
        return np.asarray(np.searchsorted(sorted, values, side)).astype(dtype.np)
    n, m = sorted.shape[-1], values.shape[-1]
    lines = zip(
        sorted.reshape(-1, n) if n else np.empty((int(np.prod(sorted.shape[:-1])), 0)),
        values.reshape(-1, m) if m else [],
        strict=False,
    )
    out = [np.searchsorted(a, v, side) for a, v in lines]
    return np.asarray(out, dtype.np).reshape(values.shape)


def _searchsorted_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.int64, np.uint8, np.float64):
        for ss, vs in [
            ((13,), (5, 7)),
            ((13,), ()),
            ((3, 8), (3, 11)),
            ((0,), (4,)),
            ((1,), (3,)),
            ((2, 3, 1), (2, 3, 2)),
        ]:
            seq = np.sort(random_array(rng, ss, dt, -9, 9), -1)
            for right in (False, True):
                yield Sample((seq, random_array(rng, vs, dt, -9, 9), None), {"right": right})
            yield Sample((seq, random_array(rng, vs, dt, -9, 9), None), {"dtype": DType.i32})
            mixed = random_array(rng, ss, dt, -9, 9)
            yield Sample((mixed, random_array(rng, vs, dt, -9, 9), np.argsort(mixed, -1).astype(np.int64)), {})


op(
    "searchsorted",
    "sorted values sorter?",
    {"right": (bool, False), "dtype": (DType, DType.i64)},
    infer=_searchsorted,
    numpy=_searchsorted_np,
    category="indexing",
    samples=_searchsorted_samples,
    doc="Where values would be inserted in the last dim of `sorted` (a 1-d one serves values of any shape: "
    "bucketize): before "
    "equal elements, or behind them with `right`. A NaN value lands behind everything.",
)


def _histc(x: TensorType, *, bins: int, lo: float, hi: float) -> TensorType:
    require(bins > 0, "needs at least one bin")
    require(x.dtype in (DType.f32, DType.f64), f"not defined for {x.dtype}")
    return x.with_shape((bins,))


def _histc_np(x: Array, *, bins: int, lo: float, hi: float) -> Array:
    flat, t = x.reshape(-1), x.dtype.type
    low, high = t(lo), t(hi)
    if lo == hi and flat.size:
        low, high = flat.min(), flat.max()
    if low == high:
        low, high = low - t(1), high + t(1)
    inside = flat[(flat >= low) & (flat <= high)]
    place = ((inside - low) * t(bins) / (high - low)).astype(np.int64)
    return np.bincount(np.minimum(place, bins - 1), minlength=bins).astype(x.dtype)


op(
    "histc",
    "x",
    {"bins": int, "lo": float, "hi": float},
    infer=_histc,
    numpy=_histc_np,
    category="indexing",
    samples=lambda rng: (
        Sample((random_array(rng, s, dt),), {"bins": n, "lo": a, "hi": b})
        for dt in (np.float32, np.float64)
        for s in [(300,), (5, 9), ()]
        for n, a, b in [(10, 0.0, 0.0), (7, -2.0, 3.0), (1, -1.0, 1.0)]
    ),
    doc="Counts in equal bins over [lo, hi], or over the data's range if lo == hi; values outside (and NaN) are not "
    "counted.",
)


def _histogram(x: TensorType, weights: TensorType | None = None, *edges: TensorType) -> TensorType:
    require(x.dtype in (DType.f32, DType.f64), f"not defined for {x.dtype}")
    require(x.rank == 2 and same_dim(x.shape[1], len(edges)), f"needs points [n, {len(edges)}], not {x}")
    require(all(e.rank == 1 and e.dtype is x.dtype for e in edges), "edges must be 1-d and of the operand's dtype")
    require(
        weights is None or (weights.rank == 1 and weights.dtype is x.dtype),
        "weights must be 1-d and of the operand's dtype",
    )
    return x.with_shape(tuple(e.shape[0] - 1 for e in edges))


def _histogram_np(x: Array, weights: Array | None = None, *edges: Array) -> Array:
    h, _ = np.histogramdd(x.astype(np.float64), [e.astype(np.float64) for e in edges], weights=weights)
    return h.astype(x.dtype)


def _histogram_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64):
        for n, sizes in [(200, (8,)), (150, (5, 3)), (0, (4,)), (50, (2, 3, 4)), (1, (2,))]:
            edges = [np.sort(random_array(rng, (k,), dt)) for k in sizes]
            for weighted in (False, True):
                weights = random_array(rng, (n,), dt) if weighted else None
                yield Sample((random_array(rng, (n, len(sizes)), dt), weights, *edges))


op(
    "histogram",
    "x weights? edges*",
    infer=_histogram,
    numpy=_histogram_np,
    category="indexing",
    samples=_histogram_samples,
    doc="Counts (or summed weights) of the points x [n, d] in the cells of d ascending edge sequences; bins are half "
    "open, the last closed.",
)


def _bag(
    weight: TensorType, indices: TensorType, offsets: TensorType, scales: TensorType | None = None, **attrs: Any
) -> TensorType:
    check_index(indices)
    check_index(offsets)
    require(attrs["mode"] in ("sum", "mean", "max"), f"unknown mode {attrs['mode']}")
    require(weight.rank == 2 and weight.dtype.is_float, f"the table must be a float matrix, not {weight}")
    require(indices.rank == 1 and offsets.rank == 1, "indices and offsets must be 1-d")
    require(
        scales is None or (attrs["mode"] == "sum" and scales.dtype is weight.dtype),
        "per-sample weights need mode sum and the table's dtype",
    )
    bags = offsets.shape[0] - 1 if attrs["include_last_offset"] else offsets.shape[0]
    return weight.with_shape((bags, weight.shape[1]))


def _bag_np(
    weight: Array,
    indices: Array,
    offsets: Array,
    scales: Array | None = None,
    *,
    mode: str,
    include_last_offset: bool,
    padding_idx: int,
) -> Array:
    ends = [*offsets[1:]] if include_last_offset else [*offsets[1:], indices.size]
    out = np.zeros((len(ends), weight.shape[1]), np.float64)
    index = wrapped(indices, weight.shape[0])
    fold: Any = {"sum": np.sum, "mean": np.mean, "max": np.max}[mode]
    for row, (a, e) in enumerate(zip(offsets, ends, strict=False)):
        keep = np.arange(a, e)[index[a:e] != padding_idx]
        rows = weight[index[keep]].astype(np.float64)
        if len(keep) == 0:
            continue
        if scales is not None:
            rows *= scales[keep].astype(np.float64)[:, None]
        out[row] = fold(rows, axis=0)
    return out.astype(weight.dtype)


def _bag_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64, np.float16):
        table = random_array(rng, (11, 37), dt)
        index = rng.integers(0, 11, 20)
        for mode in ("sum", "mean", "max"):
            for offsets, last in [([0, 4, 4, 15], False), ([0, 7, 20], True), ([0], False)]:
                for pad in (-1, 3):
                    attrs = {"mode": mode, "include_last_offset": last, "padding_idx": pad}
                    yield Sample((table, index, np.asarray(offsets, np.int64), None), attrs)
        yield Sample((table, index, np.asarray([0, 4, 9], np.int64), random_array(rng, (20,), dt)), {"mode": "sum"})


op(
    "embedding_bag",
    "weight indices offsets scales?",
    {"mode": (str, "sum"), "include_last_offset": (bool, False), "padding_idx": (int, -1)},
    infer=_bag,
    numpy=_bag_np,
    category="indexing",
    samples=_bag_samples,
    cost=lambda ins, outs, attrs: Cost(
        ins[1].numel * outs[0].shape[1], ins[1].numel * outs[0].shape[1] * outs[0].dtype.itemsize
    ),
    doc="Sums, means or maxima of table rows over bags indices[offsets[i]:offsets[i+1]]; padding_idx is left out; an "
    "empty bag gives 0.",
)
