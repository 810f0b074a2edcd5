"""Running sums, products, extrema and linear recurrences along one dim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..dtypes import DType
from ..op import Cost, Sample, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array
from .movement import Array, check_dim

CASES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((37,), 0),
    ((5, 33), 1),
    ((33, 5), 0),
    ((2, 7, 19), 1),
    ((1,), 0),
    ((0,), 0),
    ((3, 0), 0),
    ((4, 1), 1),
    ((5000,), 0),
)


def wide(x: Array) -> Array:
    """x in the type that the accumulation is carried out in: f64 for f32, f32 for the short floats."""
    if x.dtype in (np.float32, np.complex64):
        return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
    return x.astype(np.float32) if x.dtype.kind == "V" or x.dtype == np.float16 else x


def _same(x: TensorType, *, dim: int) -> TensorType:
    check_dim(dim, x.rank)
    require(not x.dtype.is_bool, "convert bool to an integer before accumulating")
    return x


def _samples(dtypes: tuple[Any, ...], span: float) -> Callable[[np.random.Generator], Iterator[Sample]]:
    def make(rng: np.random.Generator) -> Iterator[Sample]:
        for dt in dtypes:
            for shape, dim in CASES:
                yield Sample((random_array(rng, shape, dt, -span, span),), {"dim": dim})

    return make


_ARITHMETIC = (np.float32, np.float64, np.int64, np.int32, np.uint8, np.complex64, np.complex128, np.float16)
op(
    "cumsum",
    "x",
    {"dim": int},
    infer=_same,
    category="cumulative",
    samples=_samples(_ARITHMETIC, 2),
    numpy=lambda x, *, dim: np.cumsum(wide(x), axis=dim, dtype=wide(x).dtype).astype(x.dtype),
    doc="Running sum in x's dtype; f32 accumulates in f64, the short floats in f32, integers wrap.",
)
op(
    "cumprod",
    "x",
    {"dim": int},
    infer=_same,
    category="cumulative",
    samples=_samples(_ARITHMETIC, 1.5),
    numpy=lambda x, *, dim: np.cumprod(wide(x), axis=dim, dtype=wide(x).dtype).astype(x.dtype),
    doc="Running product; accumulation as in cumsum.",
)


def _extreme(x: TensorType, *, dim: int) -> tuple[TensorType, TensorType]:
    check_dim(dim, x.rank)
    require(not x.dtype.is_complex, f"{x.dtype} has no order")
    return x, x.with_dtype(DType.i64)


def _nan(x: Array) -> Array:
    return np.asarray(np.isnan(x.astype(np.float64))) if x.dtype.kind in "fV" else np.zeros(x.shape, bool)


def _extreme_np(better: Callable[[Array, Array], Array]) -> Callable[..., tuple[Array, Array]]:
    def run(x: Array, *, dim: int) -> tuple[Array, Array]:
        lines = np.moveaxis(x, dim, 0)
        values, index = np.empty_like(lines), np.zeros(lines.shape, np.int64)
        for i in range(lines.shape[0]):
            if i == 0:
                values[0] = lines[0]
                continue
            new, old = lines[i], values[i - 1]
            take = _nan(new) | (~_nan(old) & better(new, old))
            values[i], index[i] = np.where(take, new, old), np.where(take, i, index[i - 1])
        return np.ascontiguousarray(np.moveaxis(values, 0, dim)), np.ascontiguousarray(np.moveaxis(index, 0, dim))

    return run


def _extreme_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64, np.int64, np.uint8, np.bool_, np.float16):
        for shape, dim in CASES:
            x = random_array(rng, shape, dt)
            if np.dtype(dt).kind == "f":
                x[rng.random(shape) < 0.02] = np.nan
            yield Sample((x,), {"dim": dim})


for _name, _better in (("cummax", np.greater_equal), ("cummin", np.less_equal)):
    op(
        _name,
        "x",
        {"dim": int},
        infer=_extreme,
        numpy=_extreme_np(_better),
        category="cumulative",
        samples=_extreme_samples,
        doc="Running extremum and the last index at which it was met; a NaN stays from where it appears.",
    )


def _lse(x: TensorType, *, dim: int) -> TensorType:
    check_dim(dim, x.rank)
    require(x.dtype.is_float or x.dtype.is_complex, f"not defined for {x.dtype}")
    return x


def _lse_np(x: Array, *, dim: int) -> Array:
    out = wide(x)
    if x.dtype.kind != "c":
        return np.logaddexp.accumulate(out, axis=dim).astype(x.dtype) if x.size else x.copy()
    lines = np.moveaxis(out.copy(), dim, 0)
    for i in range(1, lines.shape[0]):
        a, b = lines[i - 1], lines[i]
        swap = a.real > b.real
        low, high = np.where(swap, b, a), np.where(swap, a, b)
        lines[i] = high + np.log1p(np.exp(low - high))
    return np.ascontiguousarray(np.moveaxis(lines, 0, dim)).astype(x.dtype)


op(
    "logcumsumexp",
    "x",
    {"dim": int},
    infer=_lse,
    numpy=_lse_np,
    category="cumulative",
    samples=_samples((np.float32, np.float64, np.float16), 40),
    cost=lambda i, o, a: Cost(o[0].numel * 20, o[0].nbytes * 2),
    doc="log(cumsum(exp(x))) without overflow.",
)


def _recurrence(a: TensorType, x: TensorType, init: TensorType | None = None, *, dim: int, reverse: bool) -> TensorType:
    check_dim(dim, x.rank)
    require(
        a.dtype is x.dtype and (x.dtype.is_float or x.dtype.is_complex),
        f"needs two operands of one float dtype, not {a.dtype}, {x.dtype}",
    )
    require(
        a.rank == x.rank and all(same_dim(p, q) for p, q in zip(a.shape, x.shape, strict=True)),
        f"shapes {a.shape} and {x.shape} differ",
    )
    if init is not None:
        want = x.shape[:dim] + x.shape[dim + 1 :]
        require(init.dtype is x.dtype, f"the first state has dtype {init.dtype}")
        ok = init.rank == len(want) and all(same_dim(p, q) for p, q in zip(init.shape, want, strict=True))
        require(ok, f"the first state must have shape {want}, not {init.shape}")
    return x


def _recurrence_np(a: Array, x: Array, init: Array | None = None, *, dim: int, reverse: bool) -> Array:
    aa, xx = np.moveaxis(wide(a), dim, 0), np.moveaxis(wide(x), dim, 0)
    out = np.empty_like(xx)
    h = np.zeros(xx.shape[1:], xx.dtype) if init is None else wide(init)
    for i in range(len(xx))[:: -1 if reverse else 1]:
        h = aa[i] * h + xx[i]
        out[i] = h
    return np.ascontiguousarray(np.moveaxis(out, 0, dim)).astype(x.dtype)


def _recurrence_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64, np.complex64):
        for shape, dim in CASES:
            for reverse in (False, True):
                a, x = random_array(rng, shape, dt, -0.9, 0.9), random_array(rng, shape, dt)
                first = random_array(rng, shape[:dim] + shape[dim + 1 :], dt)
                yield Sample((a, x, None), {"dim": dim, "reverse": reverse})
                yield Sample((a, x, first), {"dim": dim, "reverse": reverse})


op(
    "linear_recurrence",
    "a x init?",
    {"dim": int, "reverse": (bool, False)},
    infer=_recurrence,
    numpy=_recurrence_np,
    category="cumulative",
    samples=_recurrence_samples,
    cost=lambda i, o, a: Cost(o[0].numel * 2, o[0].nbytes * 3),
    doc="h[t] = a[t]*h[t-1] + x[t] along dim (from the end with reverse), h before the first step being init or 0; "
    "returns all h. "
    "What associative scans with that operator and diagonal state-space models compute.",
)
