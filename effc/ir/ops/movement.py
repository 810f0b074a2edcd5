"""Views and movement: reshape, permute, slice, strided views, concat, iota, full, triangles and scatters into views.

A view is a pure function of its operand here; that it costs nothing is the backend's business. Dims in attributes are
non-negative and normalised by the frontend.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..dims import Dim, SymExpr, ceildiv, floordiv, minimum, product
from ..dtypes import DType
from ..op import Cost, DimAttr, DimsAttr, Sample, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array

Array = np.ndarray[Any, Any]
DTYPES: tuple[Any, ...] = (np.float32, np.int64, np.uint8, np.complex64, np.bool_, np.float16)


def free(inputs: Any, outputs: Any, attrs: Any) -> Cost:
    """The cost of a view."""
    return Cost(0, 0)


def moved(inputs: Any, outputs: Any, attrs: Any) -> Cost:
    """The cost of writing the results once and reading as much."""
    total: Dim = 0
    for t in outputs:
        total = total + t.nbytes
    return Cost(0, total * 2)


def replaced(shape: tuple[Dim, ...], dim: int, size: Dim) -> tuple[Dim, ...]:
    return shape[:dim] + (size,) + shape[dim + 1 :]


def check_dim(dim: int, rank: int) -> None:
    require(0 <= dim < rank, f"dim {dim} does not fit rank {rank}")


# reshape, permute, broadcast_to
# ----------------------------------------------------------------------------------------


def _reshape(x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
    a, b = x.numel, product(shape)
    require(same_dim(a, b), f"{a} elements do not fit shape {tuple(shape)}")
    return x.with_shape(shape)


def _reshape_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for old, new in [
            ((4, 6), (3, 8)),
            ((2, 3, 4), (24,)),
            ((5,), (1, 5, 1)),
            ((0, 3), (3, 0)),
            ((), (1, 1)),
            ((1,), ()),
        ]:
            yield Sample((random_array(rng, old, dt),), {"shape": new})


op(
    "reshape",
    "x",
    {"shape": DimsAttr},
    infer=_reshape,
    numpy=lambda x, *, shape: x.reshape(shape),
    category="view",
    cost=free,
    samples=_reshape_samples,
    doc="The elements of x in row-major order under another shape.",
)


def _permute(x: TensorType, *, dims: tuple[int, ...]) -> TensorType:
    require(sorted(dims) == list(range(x.rank)), f"dims {dims} is no permutation of rank {x.rank}")
    return x.with_shape(tuple(x.shape[d] for d in dims))


def _permute_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for shape in [(3, 37), (2, 3, 5), (70, 35), (1, 4, 2, 3), (0, 2)]:
            for dims in list(itertools.permutations(range(len(shape))))[:8]:
                yield Sample((random_array(rng, shape, dt),), {"dims": dims})
    yield Sample((random_array(rng, (), np.float32),), {"dims": ()})


op(
    "permute",
    "x",
    {"dims": tuple},
    infer=_permute,
    numpy=lambda x, *, dims: x.transpose(dims),
    category="view",
    cost=free,
    samples=_permute_samples,
    doc="Result dim i is x's dim dims[i].",
)


def _broadcast_to(x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
    require(len(shape) >= x.rank, f"rank {len(shape)} is below the operand's {x.rank}")
    for have, want in zip(x.shape, shape[len(shape) - x.rank :], strict=True):
        require(have == 1 or same_dim(have, want), f"size {have} does not broadcast to {want}")
    return x.with_shape(shape)


op(
    "broadcast_to",
    "x",
    {"shape": DimsAttr},
    infer=_broadcast_to,
    numpy=lambda x, *, shape: np.broadcast_to(x, shape),
    category="view",
    cost=free,
    samples=lambda rng: (
        Sample((random_array(rng, old, dt),), {"shape": new})
        for dt in DTYPES
        for old, new in [
            ((1, 3), (4, 3)),
            ((3, 1), (2, 3, 5)),
            ((), (2, 2)),
            ((1,), (0,)),
            ((2, 1), (2, 1)),
            ((5,), (3, 5)),
        ]
    ),
    doc="numpy's broadcasting to a given shape.",
)


# slice, flip, strided views
# --------------------------------------------------------------------------------------------


def _length(start: Dim, stop: Dim, step: int) -> Dim:
    n = ceildiv(stop - start, step)
    return max(n, 0) if isinstance(n, int) else n


def slice_shape(
    x: TensorType, starts: tuple[Dim, ...], stops: tuple[Dim, ...], steps: tuple[int, ...]
) -> tuple[Dim, ...]:
    """The result shape of ``slice``; one entry per dim, 0 <= start <= stop <= size, step > 0."""
    require(len(starts) == len(stops) == len(steps) == x.rank, f"one entry per dim of rank {x.rank} is needed")
    for start, stop, step, size in zip(starts, stops, steps, x.shape, strict=True):
        require(isinstance(step, int) and step > 0, f"step {step} is not positive")
        require(not isinstance(start, int) or start >= 0, f"start {start} is negative")
        if isinstance(stop, int) and isinstance(size, int):
            require(stop <= size, f"stop {stop} is beyond size {size}")
    return tuple(_length(a, b, s) for a, b, s in zip(starts, stops, steps, strict=True))


def _slices(starts: tuple[int, ...], stops: tuple[int, ...], steps: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a, max(a, b), s) for a, b, s in zip(starts, stops, steps, strict=True))


_SLICES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((7, 9), {"starts": (1, 0), "stops": (6, 9), "steps": (1, 1)}),
    ((7, 9), {"starts": (0, 2), "stops": (7, 9), "steps": (3, 2)}),
    ((4, 3, 5), {"starts": (1, 1, 1), "stops": (2, 3, 5), "steps": (1, 1, 4)}),
    ((5,), {"starts": (3,), "stops": (3,), "steps": (1,)}),
    ((0, 4), {"starts": (0, 1), "stops": (0, 3), "steps": (1, 1)}),
]
op(
    "slice",
    "x",
    {"starts": DimsAttr, "stops": DimsAttr, "steps": tuple},
    category="view",
    cost=free,
    infer=lambda x, *, starts, stops, steps: x.with_shape(slice_shape(x, starts, stops, steps)),
    numpy=lambda x, *, starts, stops, steps: x[_slices(starts, stops, steps)],
    samples=lambda rng: (Sample((random_array(rng, s, dt),), a) for dt in DTYPES for s, a in _SLICES),
    doc="x[starts:stops:steps], one entry per dim; bounds are normalised, steps are positive.",
)


def _flip(x: TensorType, *, dims: tuple[int, ...]) -> TensorType:
    for d in dims:
        check_dim(d, x.rank)
    return x


op(
    "flip",
    "x",
    {"dims": tuple},
    infer=_flip,
    numpy=lambda x, *, dims: np.flip(x, dims),
    category="view",
    cost=free,
    samples=lambda rng: (
        Sample((random_array(rng, s, dt),), {"dims": d})
        for dt in DTYPES
        for s, d in [((3, 37), (1,)), ((4, 5), (0, 1)), ((2, 3, 4), (0, 2)), ((0, 2), (0,)), ((3,), ()), ((9, 1), (0,))]
    ),
    doc="Reverses the order of elements along dims.",
)


def _as_strided(x: TensorType, *, shape: tuple[Dim, ...], strides: tuple[Dim, ...], offset: Dim) -> TensorType:
    require(len(shape) == len(strides), "shape and strides have different lengths")
    _in_storage(x, shape, strides, offset)
    return x.with_shape(shape)


def _in_storage(x: TensorType, shape: tuple[Dim, ...], strides: tuple[Dim, ...], offset: Dim) -> None:
    known = [x.numel, offset, *shape, *strides]
    if all(isinstance(d, int) for d in known) and 0 not in shape:
        low: Any = offset
        high: Any = offset
        for n, s in zip(shape, strides, strict=True):
            reach: Any = (n - 1) * s
            low, high = low + min(reach, 0), high + max(reach, 0)
        require(low >= 0 and high < x.numel, f"elements {low}..{high} are outside the operand's {x.numel}")


def strided(x: Array, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Array:
    """The view of x's row-major storage; x must be contiguous for writes to reach it."""
    flat = x.reshape(-1)
    if 0 in shape:
        return np.empty(shape, x.dtype)
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, tuple(s * x.itemsize for s in strides))


_STRIDED: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((5, 6), {"shape": (3, 4), "strides": (6, 1), "offset": 7}),
    ((20,), {"shape": (4, 3), "strides": (2, 1), "offset": 1}),
    ((12,), {"shape": (2, 0), "strides": (1, 1), "offset": 0}),
    ((4, 5), {"shape": (4,), "strides": (6,), "offset": 0}),
    ((4, 5), {"shape": (), "strides": (), "offset": 3}),
]
op(
    "as_strided",
    "x",
    {"shape": DimsAttr, "strides": DimsAttr, "offset": (DimAttr, 0)},
    infer=_as_strided,
    numpy=lambda x, *, shape, strides, offset: strided(np.ascontiguousarray(x), shape, strides, offset).copy(),
    category="view",
    cost=free,
    samples=lambda rng: (Sample((random_array(rng, s, dt),), a) for dt in DTYPES for s, a in _STRIDED),
    doc="A strided window on the row-major storage of x; strides and offset count elements.",
)


def diagonal_length(rows: Dim, cols: Dim, offset: int) -> Dim:
    n = minimum(rows, cols - offset) if offset >= 0 else minimum(rows + offset, cols)
    return max(n, 0) if isinstance(n, int) else n


def _diagonal(x: TensorType, *, offset: int, dim1: int, dim2: int) -> TensorType:
    check_dim(dim1, x.rank)
    check_dim(dim2, x.rank)
    require(dim1 != dim2, "dim1 and dim2 are the same")
    rest = tuple(s for i, s in enumerate(x.shape) if i not in (dim1, dim2))
    return x.with_shape((*rest, diagonal_length(x.shape[dim1], x.shape[dim2], offset)))


_DIAGONALS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((4, 6), {"offset": 0, "dim1": 0, "dim2": 1}),
    ((4, 6), {"offset": 2, "dim1": 1, "dim2": 0}),
    ((3, 4, 5), {"offset": -1, "dim1": 0, "dim2": 2}),
    ((2, 3), {"offset": 3, "dim1": 0, "dim2": 1}),
    ((0, 3), {"offset": 0, "dim1": 0, "dim2": 1}),
]
_DIAGONAL_ATTRS = {"offset": (int, 0), "dim1": (int, 0), "dim2": (int, 1)}
op(
    "diagonal",
    "x",
    _DIAGONAL_ATTRS,
    infer=_diagonal,
    category="view",
    cost=free,
    numpy=lambda x, *, offset, dim1, dim2: np.diagonal(x, offset, dim1, dim2),
    samples=lambda rng: (Sample((random_array(rng, s, dt),), a) for dt in DTYPES for s, a in _DIAGONALS),
    doc="The diagonal of the planes (dim1, dim2) as the last dim.",
)


def _unfold(x: TensorType, *, dim: int, size: int, step: int) -> TensorType:
    check_dim(dim, x.rank)
    require(size >= 0 and step > 0, "size must be non-negative and step positive")
    have = x.shape[dim]
    require(not isinstance(have, int) or size <= have, f"window {size} is larger than {have}")
    return x.with_shape((*replaced(x.shape, dim, floordiv(have - size, step) + 1), size))


def _unfold_np(x: Array, *, dim: int, size: int, step: int) -> Array:
    count = (x.shape[dim] - size) // step + 1
    parts = [np.moveaxis(x.take(np.arange(i * step, i * step + size), axis=dim), dim, -1) for i in range(count)]
    return np.stack(parts, axis=dim)


op(
    "unfold",
    "x",
    {"dim": int, "size": int, "step": int},
    infer=_unfold,
    numpy=_unfold_np,
    category="view",
    cost=free,
    samples=lambda rng: (
        Sample((random_array(rng, s, dt),), {"dim": d, "size": n, "step": k})
        for dt in DTYPES
        for s, d, n, k in [((10,), 0, 3, 2), ((4, 9), 1, 4, 1), ((4, 9), 0, 2, 2), ((5,), 0, 1, 1), ((5,), 0, 5, 3)]
    ),
    doc="torch.Tensor.unfold: windows of `size` along dim, `step` apart, as a new last dim.",
)


# Components of complex numbers
# -----------------------------------------------------------------------------------------

COMPLEX = {DType.f16: DType.c32, DType.f32: DType.c64, DType.f64: DType.c128}


def _part(x: TensorType) -> TensorType:
    require(x.dtype.is_complex, f"needs a complex operand, not {x.dtype}")
    return x.with_dtype(x.dtype.real)


def _as_real(x: TensorType) -> TensorType:
    return _part(x).with_shape((*x.shape, 2))


def _as_complex(x: TensorType) -> TensorType:
    require(x.dtype in COMPLEX, f"no complex type is made of {x.dtype}")
    require(x.rank > 0 and same_dim(x.shape[-1], 2), "the last dim must have size 2")
    return TensorType(COMPLEX[x.dtype], x.shape[:-1])


def _pairs(x: Array) -> Array:
    out = np.empty(x.shape[:-1], np.complex128 if x.dtype == np.float64 else np.complex64)
    out.real, out.imag = x[..., 0], x[..., 1]
    return out


_COMPLEX_SHAPES: tuple[tuple[int, ...], ...] = ((3, 5), (), (0, 2), (33,))


def _complex_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.complex64, np.complex128):
        for s in _COMPLEX_SHAPES:
            yield Sample((random_array(rng, s, dt),))


op("real", "x", infer=_part, numpy=lambda x: x.real, category="view", cost=free, samples=_complex_samples)
op("imag", "x", infer=_part, numpy=lambda x: x.imag, category="view", cost=free, samples=_complex_samples)
op(
    "view_as_real",
    "x",
    infer=_as_real,
    numpy=lambda x: np.stack([x.real, x.imag], -1),
    category="view",
    cost=free,
    samples=_complex_samples,
    doc="Complex numbers as pairs (real, imaginary) in a new last dim.",
)
op(
    "view_as_complex",
    "x",
    infer=_as_complex,
    category="view",
    cost=free,
    numpy=_pairs,
    samples=lambda rng: (
        Sample((random_array(rng, (*s, 2), dt),)) for dt in (np.float32, np.float64) for s in _COMPLEX_SHAPES
    ),
    doc="The inverse of view_as_real.",
)


# Producers of fresh data
# -----------------------------------------------------------------------------------------------


def _copy_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for s in [(3, 37), (), (0, 2)]:
            yield Sample((random_array(rng, s, dt),))


op(
    "copy",
    "x",
    infer=lambda x: x,
    numpy=lambda x: x.copy(),
    category="movement",
    cost=moved,
    samples=_copy_samples,
    doc="The same tensor in storage of its own.",
)


def _concat(*xs: TensorType, dim: int) -> TensorType:
    require(len(xs) > 0, "nothing to concatenate")
    first = xs[0]
    check_dim(dim, first.rank)
    total: Dim = 0
    for x in xs:
        require(x.dtype is first.dtype, f"operands have dtypes {first.dtype} and {x.dtype}")
        require(x.rank == first.rank, f"operands have ranks {first.rank} and {x.rank}")
        for i, (a, b) in enumerate(zip(first.shape, x.shape, strict=True)):
            require(i == dim or same_dim(a, b), f"sizes {a} and {b} of dim {i} differ")
        total = total + x.shape[dim]
    return first.with_shape(replaced(first.shape, dim, total))


def _concat_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for shapes, dim in [
            (((3, 4), (3, 1), (3, 6)), 1),
            (((2, 5), (0, 5), (4, 5)), 0),
            (((2, 3, 4), (2, 1, 4)), 1),
            (((7,),), 0),
            (((0,), (0,)), 0),
        ]:
            yield Sample(tuple(random_array(rng, s, dt) for s in shapes), {"dim": dim})


op(
    "concat",
    "xs*",
    {"dim": int},
    infer=_concat,
    numpy=lambda *xs, dim: np.concatenate(xs, axis=dim),
    category="movement",
    cost=moved,
    samples=_concat_samples,
    doc="Operands of one dtype joined along an existing dim.",
)


def _iota(*, shape: tuple[Dim, ...], dim: int, start: Any, step: Any, dtype: DType) -> TensorType:
    check_dim(dim, len(shape))
    require(not dtype.is_bool and not dtype.is_complex, f"not defined for {dtype}")
    return TensorType(dtype, shape)


def _iota_np(*, shape: tuple[int, ...], dim: int, start: Any, step: Any, dtype: DType) -> Array:
    i = np.arange(shape[dim], dtype=np.float64 if dtype.is_float else np.int64)
    line = (start + i * step).astype(dtype.np)
    return np.broadcast_to(line.reshape([-1 if d == dim else 1 for d in range(len(shape))]), shape).copy()


op(
    "iota",
    "",
    {"shape": DimsAttr, "dim": (int, 0), "start": (object, 0), "step": (object, 1), "dtype": (DType, DType.i64)},
    infer=_iota,
    numpy=_iota_np,
    category="movement",
    moves=False,
    cost=moved,
    samples=lambda rng: (
        Sample((), {"shape": s, "dim": d, "start": a, "step": k, "dtype": t})
        for s, d in [((11,), 0), ((3, 70), 1), ((3, 70), 0), ((0,), 0), ((2, 3, 4), 1)]
        for a, k, t in [
            (0, 1, DType.i64),
            (-5, 3, DType.i32),
            (0.5, 0.25, DType.f32),
            (1, 2, DType.f64),
            (7, -1, DType.f16),
        ]
    ),
    doc="start + i*step along one dim of the given shape (torch.arange for a 1-d shape). start and step: numbers or "
    "Dims; "
    "float results are computed in f64 and rounded once.",
)


def _full(operand: TensorType | None = None, /, *, value: Any, shape: tuple[Dim, ...], dtype: DType) -> TensorType:
    if operand is not None:
        require(operand.rank == 0 and operand.dtype is dtype, f"the value must be a 0-d {dtype}, not {operand}")
    else:
        require(value is not None, "needs a value, as operand or attribute")
    return TensorType(dtype, shape)


def _full_np(operand: Array | None = None, /, *, value: Any, shape: tuple[int, ...], dtype: DType) -> Array:
    return np.full(shape, value if operand is None else operand, dtype.np)


def _full_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for s in [(3, 37), (), (0, 2), (1,)]:
        for v, t in [
            (1.5, DType.f32),
            (-3, DType.i64),
            (True, DType.bool),
            (float("inf"), DType.f16),
            (1 + 2j, DType.c64),
            (2, DType.u8),
        ]:
            yield Sample((None,), {"value": v, "shape": s, "dtype": t})
        yield Sample((random_array(rng, (), np.float32),), {"shape": s, "dtype": DType.f32})


op(
    "full",
    "fill?",
    {"value": (object, None), "shape": DimsAttr, "dtype": DType},
    infer=_full,
    numpy=_full_np,
    category="movement",
    cost=moved,
    samples=_full_samples,
    doc="A tensor filled with one value: a 0-d operand of the result's dtype, or the attribute (a number or a Dim).",
)


def _triangle(x: TensorType, *, diagonal: Dim) -> TensorType:
    require(x.rank >= 2, f"needs rank 2 or more, not {x.rank}")
    return x


def _triangle_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in DTYPES:
        for s in [(5, 5), (3, 7), (2, 6, 4), (0, 3), (1, 1), (3, 33)]:
            for k in (0, 1, -2, 9):
                yield Sample((random_array(rng, s, dt),), {"diagonal": k})


for _name, _triangle_np in (
    ("tril", lambda x, *, diagonal: np.tril(x, diagonal)),
    ("triu", lambda x, *, diagonal: np.triu(x, diagonal)),
):
    op(
        _name,
        "x",
        {"diagonal": (DimAttr, 0)},
        infer=_triangle,
        numpy=_triangle_np,
        category="movement",
        cost=moved,
        samples=_triangle_samples,
        doc="The triangle of the last two dims on and on one side of a diagonal; zeros elsewhere.",
    )

# Scatters into views
# ---------------------------------------------------------------------------------------------------


def _into(view: Callable[..., TensorType]) -> Callable[..., TensorType]:
    """The type rule of a scatter: src must have the shape that the view of x has."""

    def infer(x: TensorType, src: TensorType, **attrs: Any) -> TensorType:
        require(x.dtype is src.dtype, f"operands have dtypes {x.dtype} and {src.dtype}")
        want = view(x, **attrs)
        ok = want.rank == src.rank and all(same_dim(a, b) for a, b in zip(want.shape, src.shape, strict=True))
        require(ok, f"the source must have shape {want.shape}, not {src.shape}")
        return x

    return infer


def _into_np(view: Callable[..., Array]) -> Callable[..., Array]:
    def run(x: Array, src: Array, **attrs: Any) -> Array:
        out = np.array(x, order="C")
        if src.size:
            view(out, **attrs)[...] = src
        return out

    return run


def _into_samples(cases: Any, view: Callable[..., TensorType]) -> Callable[[np.random.Generator], Iterator[Sample]]:
    def make(rng: np.random.Generator) -> Iterator[Sample]:
        for dt in DTYPES:
            for s, a in cases:
                shape: Any = view(TensorType(DType.f32, s), **a).shape
                yield Sample((random_array(rng, s, dt), random_array(rng, shape, dt)), a)

    return make


def _select(x: TensorType, *, dim: int, index: Dim) -> TensorType:
    check_dim(dim, x.rank)
    size = x.shape[dim]
    require(
        not (isinstance(index, int) and isinstance(size, int)) or 0 <= index < size, f"index {index} is out of range"
    )
    return x.with_shape(x.shape[:dim] + x.shape[dim + 1 :])


def _writable_diagonal(x: Array, *, offset: int, dim1: int, dim2: int) -> Array:
    d = np.diagonal(x, offset, dim1, dim2)
    d.flags.writeable = True
    return d


_SELECTS = [
    ((4, 6), {"dim": 0, "index": 2}),
    ((4, 6), {"dim": 1, "index": 0}),
    ((2, 3, 4), {"dim": 1, "index": 2}),
    ((3,), {"dim": 0, "index": 1}),
    ((0, 2), {"dim": 1, "index": 1}),
]
_DISTINCT = [(s, a) for s, a in _STRIDED if a["strides"] != (2, 1)]  # overlapping windows have no defined scatter

for _name, _attrs, _view, _np_view, _cases in (
    (
        "slice_scatter",
        {"starts": DimsAttr, "stops": DimsAttr, "steps": tuple},
        lambda x, *, starts, stops, steps: x.with_shape(slice_shape(x, starts, stops, steps)),
        lambda x, *, starts, stops, steps: x[_slices(starts, stops, steps)],
        _SLICES,
    ),
    (
        "select_scatter",
        {"dim": int, "index": DimAttr},
        _select,
        lambda x, *, dim, index: x[(slice(None),) * dim + (index, ...)],
        _SELECTS,
    ),
    (
        "as_strided_scatter",
        {"shape": DimsAttr, "strides": DimsAttr, "offset": (DimAttr, 0)},
        _as_strided,
        lambda x, *, shape, strides, offset: strided(x, shape, strides, offset),
        _DISTINCT,
    ),
    ("diagonal_scatter", _DIAGONAL_ATTRS, _diagonal, _writable_diagonal, _DIAGONALS),
):
    op(
        _name,
        "x src",
        _attrs,
        infer=_into(_view),
        numpy=_into_np(_np_view),
        category="movement",
        cost=moved,
        samples=_into_samples(_cases, _view),
        doc=f"x with src written over what {_name.removesuffix('_scatter')} would view.",
    )


def symbol_name(d: Dim) -> str | None:
    """The name of a dim that is exactly one symbol, else None."""
    if isinstance(d, SymExpr) and len(d.terms) == 1:
        ((monomial, factor),) = d.terms
        if factor == 1 and len(monomial) == 1 and hasattr(monomial[0], "name"):
            return str(monomial[0].name)
    return None
