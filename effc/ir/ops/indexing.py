"""Indexing, scattering and ops whose result size depends on the data.

Index operands are i64 or i32; an index i of a dim of size n must lie in [-n, n) and wraps when negative. Anything
else is
an error of the data, reported at run time. A data-dependent size is an attribute that holds a symbol (``binds``),
defined by
the node when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dims import Dim, symbol
from ..dtypes import DType
from ..op import DimAttr, Sample, broadcast_shapes, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array
from .movement import Array, check_dim, moved, replaced

REDUCES = ("none", "sum", "prod", "amax", "amin", "mean")
INDEX = (DType.i64, DType.i32)
DTYPES: tuple[Any, ...] = (np.float32, np.int64, np.float64, np.int32, np.uint8, np.bool_, np.complex64)


def check_index(t: TensorType) -> None:
    require(t.dtype in INDEX, f"indices must be i64 or i32, not {t.dtype}")


def wrapped(index: Array, size: int) -> Array:
    """Indices in [0, size); IndexError names the first that is out of range."""
    bad = index[(index < -size) | (index >= size)]
    if bad.size:
        raise IndexError(f"index {bad.flat[0]} is out of range for a dim of size {size}")
    out: Array = np.where(index < 0, index + size, index).astype(np.int64)
    return out


def _widened(x: Array) -> Array:
    """A copy in a type that numpy's ufunc.at takes."""
    return x.astype(np.float32) if x.dtype.kind == "V" or x.dtype == np.float16 else np.array(x)


# gather, take, index
# ---------------------------------------------------------------------------------------------------


def _gather(x: TensorType, index: TensorType, *, dim: int) -> TensorType:
    check_index(index)
    require(x.rank == index.rank, f"operand and index have ranks {x.rank} and {index.rank}")
    check_dim(dim, x.rank)
    for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)):
        require(
            i == dim or not (isinstance(a, int) and isinstance(b, int)) or b <= a,
            f"index size {b} exceeds {a} in dim {i}",
        )
    return x.with_shape(index.shape)


def _grid(index: Array, dim: int, size: int) -> tuple[Array, ...]:
    grid: list[Array] = list(np.indices(index.shape, sparse=True))
    grid[dim] = wrapped(index, size)
    return tuple(grid)


def _gather_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for xs, ix, dim in [
            ((7, 33), (5, 20), 0),
            ((7, 33), (7, 40), 1),
            ((3, 4, 5), (2, 6, 5), 1),
            ((4,), (0,), 0),
            ((1, 1), (1, 3), 1),
        ]:
            index = rng.integers(0, xs[dim], ix)
            yield Sample((random_array(rng, xs, dt), index), {"dim": dim})
    yield Sample(
        (random_array(rng, (6, 3), np.float32), rng.integers(-6, 6, (6, 3)).astype(np.int32)),
        {"dim": 0},
        "negative i32",
    )


op(
    "gather",
    "x index",
    {"dim": int},
    infer=_gather,
    category="indexing",
    moves=True,
    cost=moved,
    samples=_gather_samples,
    numpy=lambda x, index, *, dim: x[_grid(index, dim, x.shape[dim])],
    doc="torch.gather: result[i.., j, ..] = x[i.., index[i.., j, ..], ..]; the index may be smaller than x in other "
    "dims.",
)


def _take(x: TensorType, index: TensorType, *, dim: int) -> TensorType:
    check_index(index)
    check_dim(dim, x.rank)
    return x.with_shape(x.shape[:dim] + index.shape + x.shape[dim + 1 :])


def _take_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for xs, ix, dim in [
            ((9, 17), (4,), 0),
            ((9, 17), (2, 3), 0),
            ((9, 17), (30,), 1),
            ((3, 4, 5), (2, 3), 1),
            ((5,), (), 0),
            ((5,), (0,), 0),
            ((4, 0), (3,), 0),
        ]:
            yield Sample((random_array(rng, xs, dt), np.asarray(rng.integers(-xs[dim], xs[dim], ix))), {"dim": dim})


op(
    "take",
    "x index",
    {"dim": (int, 0)},
    infer=_take,
    category="indexing",
    moves=True,
    cost=moved,
    samples=_take_samples,
    numpy=lambda x, index, *, dim: np.take(x, wrapped(index, x.shape[dim]), axis=dim),
    doc="numpy.take along one dim with an index of any rank: index_select, embedding.",
)


def _index_place(dims: tuple[int, ...]) -> int:
    """Where the indices' dims go in the result: the first indexed dim if they are adjacent, else the front."""
    return dims[0] if dims and dims[-1] - dims[0] == len(dims) - 1 else 0


def index_shape(x: TensorType, indices: tuple[TensorType, ...], dims: tuple[int, ...]) -> tuple[Dim, ...]:
    """The result shape of advanced indexing of x at ``dims``."""
    require(len(indices) == len(dims) > 0, f"{len(indices)} indices for dims {dims}")
    require(list(dims) == sorted(set(dims)), f"dims {dims} are not increasing")
    for t in indices:
        check_index(t)
    for d in dims:
        check_dim(d, x.rank)
    common = broadcast_shapes(*(t.shape for t in indices))
    rest = tuple(s for i, s in enumerate(x.shape) if i not in dims)
    at = _index_place(dims)
    return rest[:at] + common + rest[at:]


def index_key(x: Array, indices: tuple[Array, ...], dims: tuple[int, ...]) -> tuple[Any, ...]:
    key: list[Any] = [slice(None)] * x.ndim
    for d, i in zip(dims, indices, strict=True):
        key[d] = wrapped(i, x.shape[d])
    return tuple(key)


_INDEX_CASES: list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[int, ...]]] = [
    ((6, 7), ((4,),), (0,)),
    ((6, 7), ((3, 2),), (1,)),
    ((6, 7), ((5,), (5,)), (0, 1)),
    ((6, 7, 4), ((3, 1), (5,)), (0, 1)),
    ((6, 7, 4), ((3, 1), (5,)), (0, 2)),
    ((6, 7, 4), ((3, 1), (5,)), (1, 2)),
    ((2, 3, 4, 5), ((2, 2), (2,)), (1, 3)),
    ((2, 3, 4, 5), ((), (4,)), (1, 2)),
    ((6, 7), ((0,),), (0,)),
    ((3, 0), ((2,),), (0,)),
    ((5,), ((),), (0,)),
]


def _indices(rng: np.random.Generator, case: Any) -> tuple[Array, ...]:
    shape, ix, dims = case
    return tuple(np.asarray(rng.integers(-shape[d], shape[d], s)) for d, s in zip(dims, ix, strict=True))


op(
    "index",
    "x indices*",
    {"dims": tuple},
    category="indexing",
    moves=True,
    cost=moved,
    infer=lambda x, *indices, dims: x.with_shape(index_shape(x, indices, dims)),
    numpy=lambda x, *indices, dims: x[index_key(x, indices, dims)],
    samples=lambda rng: (
        Sample((random_array(rng, c[0], dt), *_indices(rng, c)), {"dims": c[2]}) for dt in DTYPES for c in _INDEX_CASES
    ),
    doc="Advanced indexing: integer tensors, broadcast together, at the listed dims. Their dims stand where the "
    "first indexed "
    "dim was if the indexed dims are adjacent, else in front.",
)


def _index_put(
    x: TensorType, values: TensorType, *indices: TensorType, dims: tuple[int, ...], accumulate: bool
) -> TensorType:
    want = index_shape(x, indices, dims)
    require(values.dtype is x.dtype, f"operands have dtypes {x.dtype} and {values.dtype}")
    require(not accumulate or not x.dtype.is_storage, f"{x.dtype} values cannot be added: convert them first")
    require(values.rank <= len(want), f"values of rank {values.rank} do not fit {want}")
    for have, size in zip(values.shape, want[len(want) - values.rank :], strict=True):
        require(have == 1 or same_dim(have, size), f"values of shape {values.shape} do not broadcast to {want}")
    return x


def _index_put_np(x: Array, values: Array, *indices: Array, dims: tuple[int, ...], accumulate: bool) -> Array:
    out = _widened(x)
    key = index_key(x, indices, dims)
    if not accumulate:
        out[key] = values
    elif x.dtype == np.bool_:
        np.logical_or.at(out, key, values)
    else:
        np.add.at(out, key, values.astype(out.dtype))
    return out.astype(x.dtype)


def _index_put_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for case in _INDEX_CASES:
            x, ix = random_array(rng, case[0], dt), _indices(rng, case)
            shape = x[index_key(x, ix, case[2])].shape
            for accumulate in (False, True):
                yield Sample((x, random_array(rng, shape, dt), *ix), {"dims": case[2], "accumulate": accumulate})
            yield Sample(
                (x, random_array(rng, shape[1:] if shape else (), dt), *ix), {"dims": case[2]}, "values broadcast"
            )


op(
    "index_put",
    "x values indices*",
    {"dims": tuple, "accumulate": (bool, False)},
    infer=_index_put,
    numpy=_index_put_np,
    category="indexing",
    moves=True,
    cost=moved,
    samples=_index_put_samples,
    doc="x with values written (or added) where ``index`` would read. Values broadcast. Of several writes to one "
    "element the "
    "last in row-major order of the indices stays.",
)


# scatter
# ---------------------------------------------------------------------------------------------------------------


def _scatter(
    x: TensorType, index: TensorType, src: TensorType, *, dim: int, reduce: str, include_self: bool
) -> TensorType:
    check_index(index)
    require(reduce in REDUCES, f"unknown reduction {reduce}; one of {', '.join(REDUCES)}")
    require(x.dtype is src.dtype, f"operands have dtypes {x.dtype} and {src.dtype}")
    require(x.rank == index.rank == src.rank, f"ranks {x.rank}, {index.rank}, {src.rank} differ")
    require(not x.dtype.is_storage or reduce == "none", f"{reduce} is not defined for {x.dtype}: convert it first")
    require(not x.dtype.is_complex or reduce in ("none", "sum", "prod"), f"{reduce} is not defined for {x.dtype}")
    check_dim(dim, x.rank)
    for i, (a, b, c) in enumerate(zip(x.shape, index.shape, src.shape, strict=True)):
        if isinstance(b, int):
            require(i == dim or not isinstance(a, int) or b <= a, f"index size {b} exceeds {a} in dim {i}")
            require(not isinstance(c, int) or b <= c, f"index size {b} exceeds the source's {c} in dim {i}")
    return x


def _scatter_np(x: Array, index: Array, src: Array, *, dim: int, reduce: str, include_self: bool) -> Array:
    out = _widened(x)
    grid = _grid(index, dim, x.shape[dim])
    given = src[tuple(slice(n) for n in index.shape)].astype(out.dtype)
    if reduce == "none":
        out[grid] = given
        return out.astype(x.dtype)
    if not include_self:
        out[grid] = identity(reduce, out.dtype)
    if x.dtype == np.bool_:
        {"sum": np.logical_or, "prod": np.logical_and, "amax": np.logical_or, "amin": np.logical_and}[reduce].at(
            out, grid, given
        )
        return out
    {"sum": np.add, "mean": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}[reduce].at(
        out, grid, given
    )
    if reduce == "mean":
        count = np.full(x.shape, int(include_self), np.int64)
        np.add.at(count, grid, 1)
        count = np.maximum(count, 1).astype(out.dtype)
        out = np.floor_divide(out, count) if out.dtype.kind in "iu" else out / count
    return out.astype(x.dtype)


def identity(reduce: str, dtype: Any) -> Any:
    """The neutral element of a reduction in a numpy dtype."""
    dt = np.dtype(dtype)
    if reduce in ("sum", "mean"):
        return dt.type(0)
    if reduce == "prod":
        return dt.type(1)
    if dt.kind == "b":
        return reduce == "amin"
    if dt.kind in "iu":
        return np.iinfo(dt).min if reduce == "amax" else np.iinfo(dt).max
    return dt.type(-np.inf if reduce == "amax" else np.inf)


def _scatter_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for reduce in REDUCES:
            if (dt == np.complex64 and reduce not in ("none", "sum", "prod")) or (dt == np.bool_ and reduce == "mean"):
                continue
            for xs, ix, ss, dim in [
                ((5, 9), (7, 9), (7, 9), 0),
                ((5, 9), (4, 20), (6, 21), 1),
                ((3, 4, 5), (3, 2, 5), (3, 2, 5), 1),
                ((4,), (0,), (3,), 0),
            ]:
                for own in (True, False):
                    x, src = random_array(rng, xs, dt, -2, 2), random_array(rng, ss, dt, -2, 2)
                    yield Sample(
                        (x, rng.integers(-xs[dim], xs[dim], ix), src),
                        {"dim": dim, "reduce": reduce, "include_self": own},
                    )


op(
    "scatter",
    "x index src",
    {"dim": int, "reduce": (str, "none"), "include_self": (bool, True)},
    infer=_scatter,
    numpy=_scatter_np,
    category="indexing",
    moves=True,
    cost=moved,
    samples=_scatter_samples,
    doc="torch.scatter / scatter_reduce: out[i.., index[i.., j, ..], ..] (reduce)= src[i.., j, ..]. Applied in order "
    "of j, so "
    "results do not depend on threads; with 'none' the last write stays. amax and amin propagate NaN; an integer "
    "mean floors.",
)


def _spread(b: Any, x: Any, index: Any, dim: int, shape: tuple[Dim, ...]) -> Any:
    """A 1-d index as one of x's rank that repeats over the other dims."""
    n = index.shape[0]
    line = b.op("reshape", index, shape=tuple(n if i == dim else 1 for i in range(x.rank)))
    return b.op("broadcast_to", line, shape=replaced(shape, dim, n))


def _rows(x: TensorType, index: TensorType, src: TensorType, *, dim: int, **attrs: Any) -> TensorType:
    check_index(index)
    check_dim(dim, x.rank)
    require(index.rank == 1, f"the index must be 1-d, not {index}")
    require(x.dtype is src.dtype, f"operands have dtypes {x.dtype} and {src.dtype}")
    want = replaced(x.shape, dim, index.shape[0])
    ok = src.rank == len(want) and all(same_dim(a, b) for a, b in zip(src.shape, want, strict=True))
    require(ok, f"the source must have shape {want}, not {src.shape}")
    return x


def _rows_samples(reduces: tuple[str, ...] | None) -> Any:
    def make(rng: np.random.Generator) -> Iterator[Sample]:
        for dt in (np.float32, np.int64):
            for xs, n, dim in [((5, 9), 7, 0), ((5, 9), 4, 1), ((3, 4, 5), 6, 1), ((4,), 0, 0)]:
                x, src = random_array(rng, xs, dt), random_array(rng, replaced(xs, dim, n), dt)  # type: ignore[arg-type]
                index = rng.integers(0, xs[dim], n)
                for r in reduces or ("",):
                    yield Sample((x, index, src), {"dim": dim, "reduce": r} if reduces else {"dim": dim})

    return make


op(
    "index_add",
    "x index src",
    {"dim": int},
    infer=_rows,
    category="indexing",
    level="macro",
    samples=_rows_samples(None),
    decompose=lambda b, x, index, src, *, dim: b.op(
        "scatter", x, _spread(b, x, index, dim, src.shape), src, dim=dim, reduce="sum"
    ),
    doc="Adds slice j of src to slice index[j] of x.",
)
op(
    "index_copy",
    "x index src",
    {"dim": int},
    infer=_rows,
    category="indexing",
    moves=True,
    level="macro",
    samples=_rows_samples(None),
    decompose=lambda b, x, index, src, *, dim: b.op("scatter", x, _spread(b, x, index, dim, src.shape), src, dim=dim),
    doc="Writes slice j of src over slice index[j] of x.",
)
op(
    "index_reduce",
    "x index src",
    {"dim": int, "reduce": str, "include_self": (bool, True)},
    infer=_rows,
    category="indexing",
    level="macro",
    samples=_rows_samples(REDUCES),
    decompose=lambda b, x, index, src, *, dim, reduce, include_self: b.op(
        "scatter", x, _spread(b, x, index, dim, src.shape), src, dim=dim, reduce=reduce, include_self=include_self
    ),
    doc="Combines slice j of src with slice index[j] of x; reduce as in ``scatter``.",
)


def _index_fill(x: TensorType, index: TensorType, value: TensorType, *, dim: int) -> TensorType:
    check_index(index)
    check_dim(dim, x.rank)
    require(index.rank == 1 and value.rank == 0, f"needs a 1-d index and a 0-d value, not {index} and {value}")
    require(x.dtype is value.dtype, f"operands have dtypes {x.dtype} and {value.dtype}")
    return x


def _index_fill_lower(b: Any, x: Any, index: Any, value: Any, *, dim: int) -> Any:
    shape = replaced(x.shape, dim, index.shape[0])
    return b.op("scatter", x, _spread(b, x, index, dim, shape), b.op("broadcast_to", value, shape=shape), dim=dim)


op(
    "index_fill",
    "x index value",
    {"dim": int},
    infer=_index_fill,
    category="indexing",
    moves=True,
    level="macro",
    decompose=_index_fill_lower,
    samples=lambda rng: (
        Sample((random_array(rng, s, dt), rng.integers(0, s[d], n), random_array(rng, (), dt)), {"dim": d})
        for dt in (np.float32, np.int64)
        for s, d, n in [((5, 9), 1, 4), ((5, 9), 0, 2), ((4,), 0, 0)]
    ),
    doc="Writes one value over the slices index[j] of x.",
)


def _masked_scatter(x: TensorType, mask: TensorType, source: TensorType) -> TensorType:
    require(mask.dtype.is_bool, f"the mask must be bool, not {mask.dtype}")
    require(x.dtype is source.dtype, f"operands have dtypes {x.dtype} and {source.dtype}")
    require(
        x.rank == mask.rank and all(same_dim(a, b) for a, b in zip(x.shape, mask.shape, strict=True)),
        "mask and operand differ in shape",
    )
    return x


def _masked_scatter_np(x: Array, mask: Array, source: Array) -> Array:
    n = int(mask.sum())
    if n > source.size:
        raise IndexError(f"the mask selects {n} elements, the source has {source.size}")
    out = np.array(x)
    out[mask] = source.reshape(-1)[:n]
    return out


op(
    "masked_scatter",
    "x mask source",
    infer=_masked_scatter,
    numpy=_masked_scatter_np,
    category="indexing",
    moves=True,
    cost=moved,
    samples=lambda rng: (
        Sample((random_array(rng, s, dt), rng.random(s) < 0.4, random_array(rng, (n,), dt)))
        for dt in DTYPES
        for s, n in [((5, 9), 50), ((), 1), ((0, 3), 0), ((3000,), 3000)]
    ),
    doc="Where the mask is true, elements of source in order; error if there are too few.",
)


# Sizes that depend on the data
# -----------------------------------------------------------------------------------------

SIZE = symbol("u0")  # the samples' unknown size
_SPARSE: tuple[tuple[int, ...], ...] = ((5, 9), (0, 3), (), (7,), (3, 4, 5), (4099,))


def _thinned(rng: np.random.Generator, shape: tuple[int, ...], dt: Any) -> Array:
    x = random_array(rng, shape, dt)
    return np.where(rng.random(shape) < 0.5, x, x.dtype.type(0)).astype(x.dtype)


def _masked_select(x: TensorType, mask: TensorType, *, size: Dim) -> TensorType:
    require(mask.dtype.is_bool, f"the mask must be bool, not {mask.dtype}")
    require(
        x.rank == mask.rank and all(same_dim(a, b) for a, b in zip(x.shape, mask.shape, strict=True)),
        "mask and operand differ in shape",
    )
    return x.with_shape((size,))


op(
    "masked_select",
    "x mask",
    {"size": DimAttr},
    infer=_masked_select,
    numpy=lambda x, mask: x[mask],
    category="indexing",
    moves=True,
    binds=("size",),
    cost=moved,
    samples=lambda rng: (
        Sample((random_array(rng, s, dt), rng.random(s) < 0.4), {"size": SIZE}) for dt in DTYPES for s in _SPARSE
    ),
    doc="The elements of x where the mask is true, in row-major order.",
)
op(
    "nonzero",
    "x",
    {"size": DimAttr},
    infer=lambda x, *, size: TensorType(DType.i64, (size, x.rank)),
    category="indexing",
    numpy=lambda x: np.argwhere(x).astype(np.int64),
    binds=("size",),
    cost=moved,
    samples=lambda rng: (Sample((_thinned(rng, s, dt),), {"size": SIZE}) for dt in DTYPES for s in _SPARSE),
    doc="The coordinates of the nonzero elements in row-major order, one row each.",
)


def _item_np(x: Array) -> Array:
    return np.asarray(x).astype(np.int64).reshape(())


def _item(x: TensorType, *, value: Dim) -> TensorType:
    require(x.dtype.is_int or x.dtype.is_bool, f"needs an integer or bool, not {x.dtype}")
    require(same_dim(x.numel, 1), f"needs one element, not {x}")
    return TensorType(DType.i64, ())


op(
    "item",
    "x",
    {"value": DimAttr},
    infer=_item,
    numpy=_item_np,
    category="indexing",
    binds=("value",),
    samples=lambda rng: (
        Sample((random_array(rng, s, dt),), {"value": SIZE})
        for dt in (np.int64, np.int32, np.bool_)
        for s in [(), (1,)]
    ),
    doc="Binds a symbol to the value of a one-element integer tensor; the result is that value.",
)


def _repeats_np(repeats: Array) -> Array:
    if (repeats < 0).any():
        raise ValueError(f"a repeat count is negative: {int(repeats.min())}")
    return np.repeat(np.arange(repeats.size, dtype=np.int64), repeats)


def _repeats(repeats: TensorType, *, size: Dim) -> TensorType:
    check_index(repeats)
    require(repeats.rank == 1, f"needs a 1-d tensor, not {repeats}")
    return TensorType(DType.i64, (size,))


op(
    "repeat_interleave",
    "repeats",
    {"size": DimAttr},
    infer=_repeats,
    numpy=_repeats_np,
    category="indexing",
    binds=("size",),
    cost=moved,
    samples=lambda rng: (
        Sample((rng.integers(0, 4, n).astype(dt),), {"size": SIZE}) for n in (0, 1, 37) for dt in (np.int64, np.int32)
    ),
    doc="Index i repeated repeats[i] times: what ``take`` needs to repeat slices. size: a fresh symbol, or a known "
    "size to check.",
)


def _bincount(x: TensorType, weights: TensorType | None = None, *, minlength: Dim, size: Dim) -> TensorType:
    require(x.dtype.is_int and x.rank == 1, f"needs a 1-d integer tensor, not {x}")
    if weights is not None:
        require(weights.dtype in (DType.f32, DType.f64), f"weights must be f32 or f64, not {weights.dtype}")
        require(weights.rank == 1 and same_dim(x.shape[0], weights.shape[0]), "weights and operand differ in shape")
    return TensorType(DType.i64 if weights is None else weights.dtype, (size,))


def _bincount_np(x: Array, weights: Array | None = None, *, minlength: int) -> Array:
    out = np.bincount(x, weights, minlength)
    return out.astype(np.int64 if weights is None else weights.dtype)


def _bincount_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.int64, np.int32, np.uint8):
        for n in (0, 1, 200):
            x = rng.integers(0, 23, n).astype(dt)
            yield Sample((x, None), {"minlength": 3, "size": SIZE})
            yield Sample((x, random_array(rng, (n,), np.float32)), {"minlength": 40, "size": SIZE})
            yield Sample((x, random_array(rng, (n,), np.float64)), {"size": SIZE})


op(
    "bincount",
    "x weights?",
    {"minlength": (DimAttr, 0), "size": DimAttr},
    infer=_bincount,
    numpy=_bincount_np,
    category="indexing",
    binds=("size",),
    samples=_bincount_samples,
    doc="How often each value occurs (or the sum of its weights).",
)


def _unique_types(x: TensorType, *, size: Dim) -> tuple[TensorType, ...]:
    require(not x.dtype.is_complex, f"not defined for {x.dtype}")
    return x.with_shape((size,)), TensorType(DType.i64, x.shape), TensorType(DType.i64, (size,))


def _runs(fresh: Array) -> tuple[Array, Array]:
    """From flags 'first of its run': each element's run number, and the run lengths."""
    number = np.cumsum(fresh) - 1
    return number.astype(np.int64), np.bincount(number, minlength=0).astype(np.int64)


def _unique_consecutive_np(x: Array) -> tuple[Array, ...]:
    flat = x.reshape(-1)
    fresh = np.ones(flat.size, bool)
    fresh[1:] = flat[1:] != flat[:-1]
    number, counts = _runs(fresh)
    return flat[fresh], number.reshape(x.shape), counts


def _unique_np(x: Array) -> tuple[Array, ...]:
    flat = x.reshape(-1)
    order = np.argsort(flat, kind="stable")
    values, number, counts = _unique_consecutive_np(flat[order])
    inverse = np.empty(flat.size, np.int64)
    inverse[order] = number
    return values, inverse.reshape(x.shape), counts


def _unique_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.int64, np.uint8, np.bool_):
        for s in [(40,), (6, 7), (0,), (), (1,), (3000,)]:
            yield Sample((np.asarray(rng.integers(0, 9, s)).astype(dt),), {"size": SIZE})


op(
    "unique",
    "x",
    {"size": DimAttr},
    infer=_unique_types,
    numpy=_unique_np,
    category="indexing",
    binds=("size",),
    samples=_unique_samples,
    doc="Sorted distinct elements; for each element its place among them; how often each occurs. NaNs are all "
    "distinct.",
)
op(
    "unique_consecutive",
    "x",
    {"size": DimAttr},
    infer=_unique_types,
    numpy=_unique_consecutive_np,
    category="indexing",
    binds=("size",),
    samples=_unique_samples,
    doc="``unique`` without sorting: merges runs of equal elements in row-major order.",
)


def _unique_dim(x: TensorType, *, dim: int, consecutive: bool, size: Dim) -> tuple[TensorType, ...]:
    require(not x.dtype.is_complex, f"not defined for {x.dtype}")
    check_dim(dim, x.rank)
    return (
        x.with_shape(replaced(x.shape, dim, size)),
        TensorType(DType.i64, (x.shape[dim],)),
        TensorType(DType.i64, (size,)),
    )


def _unique_dim_np(x: Array, *, dim: int, consecutive: bool) -> tuple[Array, ...]:
    rows = np.moveaxis(x, dim, 0)
    flat = rows.reshape(rows.shape[0], -1 if rows.size else 0)
    order = np.arange(len(flat))
    if not consecutive and flat.shape[1]:
        order = np.lexsort(flat.T[::-1])
    fresh = np.ones(len(flat), bool)
    fresh[1:] = (flat[order][1:] != flat[order][:-1]).any(1)
    number, counts = _runs(fresh)
    inverse = np.empty(len(flat), np.int64)
    inverse[order] = number
    return np.moveaxis(rows[order[fresh]], 0, dim).copy(), inverse, counts


def _unique_dim_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.int64, np.uint8, np.bool_):
        for s, d in [((40, 2), 0), ((3, 30), 1), ((12, 1, 2), 0), ((2, 9, 2), 1), ((7,), 0), ((0, 3), 0)]:
            for consecutive in (False, True):
                yield Sample((rng.integers(0, 3, s).astype(dt),), {"dim": d, "consecutive": consecutive, "size": SIZE})


op(
    "unique_dim",
    "x",
    {"dim": int, "consecutive": (bool, False), "size": DimAttr},
    infer=_unique_dim,
    numpy=_unique_dim_np,
    category="indexing",
    binds=("size",),
    samples=_unique_dim_samples,
    doc="Distinct slices along dim (in lexicographic order unless consecutive), each slice's place among them, their "
    "counts.",
)
