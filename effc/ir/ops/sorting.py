"""Sorting and selection along one dim. Indices are i64. NaN counts as the largest value, as in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dims import Dim
from ..dtypes import DType
from ..op import Cost, DimAttr, Sample, op, require
from ..types import TensorType
from .elementwise import random_array
from .movement import Array, check_dim, replaced


def _ordered(x: TensorType, dim: int) -> None:
    require(not x.dtype.is_complex, f"{x.dtype} has no order")
    check_dim(dim, x.rank)


def sort_cost(inputs: Any, outputs: Any, attrs: Any) -> Cost:
    """About 20 comparisons per element; a read and a write of everything."""
    return Cost(inputs[0].numel * 20, inputs[0].nbytes + sum((t.nbytes for t in outputs), 0))


def order(x: Array, dim: int, descending: bool = False) -> Array:
    """Stable argsort along dim with NaN as the largest value, in either direction."""
    if not descending:
        return np.argsort(x, axis=dim, kind="stable").astype(np.int64)
    back = np.flip(x, dim)
    behind = np.flip(np.argsort(back, axis=dim, kind="stable"), dim).astype(np.int64)
    return np.asarray(x.shape[dim] - 1 - behind)


def _pick(x: Array, index: Array, dim: int) -> tuple[Array, Array]:
    return np.take_along_axis(x, index, dim), np.ascontiguousarray(index)


def _plain(x: Array) -> Array:
    """bfloat16 and fp8 widened: numpy sorts those without regard to NaN."""
    return x.astype(np.float32) if x.dtype.kind == "V" or (x.dtype.itemsize == 1 and x.dtype.kind == "f") else x


def _sort(x: TensorType, *, dim: int, descending: bool, stable: bool) -> tuple[TensorType, TensorType]:
    _ordered(x, dim)
    return x, x.with_dtype(DType.i64)


SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((40,), 0),
    ((5, 33), 1),
    ((33, 5), 0),
    ((2, 7, 3), 1),
    ((1,), 0),
    ((4, 1), 1),
    ((0,), 0),
    ((0, 3), 1),
    ((700,), 0),
)
DTYPES: tuple[Any, ...] = (np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_, np.int8, np.float16)


def _with_nan(rng: np.random.Generator, x: Array) -> Array:
    if x.dtype.kind == "f":
        x[rng.random(x.shape) < 0.1] = np.nan
        x[rng.random(x.shape) < 0.05] = -np.inf
    return x


def _sort_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for shape, dim in SHAPES:
            for descending in (False, True):
                x = _with_nan(rng, random_array(rng, shape, dt))
                yield Sample((x,), {"dim": dim, "descending": descending}, "ties and NaN")


op(
    "sort",
    "x",
    {"dim": int, "descending": (bool, False), "stable": (bool, True)},
    infer=_sort,
    category="sort",
    cost=sort_cost,
    numpy=lambda x, *, dim, descending, stable: _pick(x, order(_plain(x), dim, descending), dim),
    samples=_sort_samples,
    doc="Values and indices in order along dim. Without `stable` the indices of equal elements may come in any order "
    "(the CPU "
    "backend gives PyTorch's); the reference is always stable.",
)


def _topk(x: TensorType, *, k: Dim, dim: int, largest: bool, sorted: bool) -> tuple[TensorType, TensorType]:
    _ordered(x, dim)
    size = x.shape[dim]
    require(not (isinstance(k, int) and isinstance(size, int)) or 0 <= k <= size, f"k={k} does not fit size {size}")
    out = x.with_shape(replaced(x.shape, dim, k))
    return out, out.with_dtype(DType.i64)


def _topk_np(x: Array, *, k: int, dim: int, largest: bool, sorted: bool) -> tuple[Array, Array]:
    index = order(_plain(x), dim, largest)
    return _pick(x, index[(slice(None),) * dim + (slice(0, k),)], dim)


def distinct(rng: np.random.Generator, shape: tuple[int, ...], dt: Any) -> Array:
    """Random order without ties."""
    n = int(np.prod(shape))
    return (rng.permutation(n).reshape(shape) - n // 2).astype(dt)


def _topk_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64, np.int64, np.int32, np.float16):
        for shape, dim in SHAPES:
            for k in {0, 1, shape[dim] // 2, shape[dim]}:
                if k <= shape[dim]:
                    for largest in (True, False):
                        yield Sample(
                            (distinct(rng, shape, dt),),
                            {"k": k, "dim": dim, "largest": largest},
                            "indices of ties are open",
                        )


op(
    "topk",
    "x",
    {"k": DimAttr, "dim": int, "largest": (bool, True), "sorted": (bool, True)},
    infer=_topk,
    numpy=_topk_np,
    category="sort",
    cost=sort_cost,
    samples=_topk_samples,
    doc="The k largest (or smallest) values in order, and their indices. Which of several equal elements is taken is "
    "up to the backend (the CPU's are PyTorch's); the reference takes the first.",
)


def _kth(x: TensorType, *, k: Dim, dim: int, keepdim: bool) -> tuple[TensorType, TensorType]:
    _ordered(x, dim)
    size = x.shape[dim]
    require(not (isinstance(k, int) and isinstance(size, int)) or 1 <= k <= size, f"k={k} does not fit size {size}")
    return _one(x, dim, keepdim)


def _one(x: TensorType, dim: int, keepdim: bool) -> tuple[TensorType, TensorType]:
    out = x.with_shape(x.shape[:dim] + ((1,) if keepdim else ()) + x.shape[dim + 1 :])
    return out, out.with_dtype(DType.i64)


def _chosen(x: Array, index: Array, dim: int, keepdim: bool) -> tuple[Array, Array]:
    """Values and indices where ``index`` has size 1 in dim."""
    values, index = _pick(x, index, dim)
    return (values, index) if keepdim else (values.squeeze(dim), index.squeeze(dim))


def _kth_np(x: Array, *, k: int, dim: int, keepdim: bool) -> tuple[Array, Array]:
    index = order(_plain(x), dim)
    return _chosen(x, index[(slice(None),) * dim + (slice(k - 1, k),)], dim, keepdim)


_NONEMPTY = tuple((s, d) for s, d in SHAPES if s[d])


def _kth_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64, np.int64):
        for shape, dim in _NONEMPTY:
            for k in {1, (shape[dim] + 1) // 2, shape[dim]}:
                yield Sample(
                    (distinct(rng, shape, dt),), {"k": k, "dim": dim, "keepdim": k == 1}, "indices of ties are open"
                )


op(
    "kthvalue",
    "x",
    {"k": DimAttr, "dim": int, "keepdim": (bool, False)},
    infer=_kth,
    numpy=_kth_np,
    category="sort",
    cost=sort_cost,
    samples=_kth_samples,
    doc="The k-th smallest value (k counts from 1) and an index of it.",
)


def _median(x: TensorType, *, dim: int, keepdim: bool, ignore_nan: bool) -> tuple[TensorType, TensorType]:
    _ordered(x, dim)
    require(x.shape[dim] != 0, "the median of nothing")
    return _one(x, dim, keepdim)


def _median_np(x: Array, *, dim: int, keepdim: bool, ignore_nan: bool) -> tuple[Array, Array]:
    wide = _plain(x)
    nan = np.isnan(wide) if wide.dtype.kind == "f" else np.zeros(x.shape, bool)
    count = (
        x.shape[dim] - nan.sum(axis=dim, keepdims=True)
        if ignore_nan
        else np.full(nan.any(dim, keepdims=True).shape, x.shape[dim])
    )
    index = np.take_along_axis(order(wide, dim), np.maximum(count - 1, 0) // 2, dim)
    if not ignore_nan:
        index = np.where(nan.any(dim, keepdims=True), np.argmax(nan, axis=dim, keepdims=True), index)
    return _chosen(x, index, dim, keepdim)


def _median_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64, np.int64):
        for shape, dim in _NONEMPTY:
            for ignore in (False, True):
                x = distinct(rng, shape, dt)
                yield Sample((x,), {"dim": dim, "ignore_nan": ignore})
                if dt != np.int64:
                    x = x.copy()
                    x[(slice(None),) * dim + (0,)] = np.nan
                    yield Sample((x,), {"dim": dim, "keepdim": True, "ignore_nan": ignore}, "NaN in every line")


op(
    "median",
    "x",
    {"dim": int, "keepdim": (bool, False), "ignore_nan": (bool, False)},
    infer=_median,
    numpy=_median_np,
    category="sort",
    cost=sort_cost,
    samples=_median_samples,
    doc="The lower median and an index of it. A NaN in the line is the result (its first index), unless ignored.",
)


def _mode(x: TensorType, *, dim: int, keepdim: bool) -> tuple[TensorType, TensorType]:
    _ordered(x, dim)
    require(x.shape[dim] != 0, "the mode of nothing")
    return _one(x, dim, keepdim)


def _mode_np(x: Array, *, dim: int, keepdim: bool) -> tuple[Array, Array]:
    index = np.moveaxis(order(_plain(x), dim), dim, -1)
    lines = np.take_along_axis(np.moveaxis(x, dim, -1), index, -1)
    best = np.zeros(index.shape[:-1], np.int64)
    longest = np.zeros(index.shape[:-1], np.int64)
    run = np.zeros(index.shape[:-1], np.int64)
    for i in range(lines.shape[-1]):
        run = np.where(lines[..., i] == lines[..., i - 1], run + 1, 1) if i else run + 1
        better = run > longest
        longest, best = np.where(better, run, longest), np.where(better, index[..., i], best)
    return _chosen(x, np.expand_dims(best, dim), dim, keepdim)


op(
    "mode",
    "x",
    {"dim": int, "keepdim": (bool, False)},
    infer=_mode,
    numpy=_mode_np,
    category="sort",
    cost=sort_cost,
    samples=lambda rng: (
        Sample((random_array(rng, s, dt) if s[d] <= 16 else distinct(rng, s, dt),), {"dim": d, "keepdim": keep})
        for dt in (np.int64, np.int32, np.float64, np.float32)
        for s, d in (*_NONEMPTY, ((6, 16), 1), ((9, 20), 0))
        for keep in (False, True)
    ),
    doc="The most frequent value (the smallest of several) and an index of it, the last one in lines of up to 16 "
    "elements. NaNs "
    "are distinct.",
)
