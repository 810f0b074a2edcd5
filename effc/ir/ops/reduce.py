"""Reductions: one op, its kind an attribute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dims import Dim
from ..dtypes import DType
from ..op import Sample, op, require
from ..types import TensorType
from .elementwise import random_array

KINDS = ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin")


def reduced_shape(shape: tuple[Dim, ...], dims: tuple[int, ...], keepdims: bool) -> tuple[Dim, ...]:
    return tuple(1 if i in dims else d for i, d in enumerate(shape) if keepdims or i not in dims)


def _infer(x: TensorType, *, kind: str, dims: tuple[int, ...], keepdims: bool) -> TensorType:
    require(kind in KINDS, f"unknown reduction {kind}; one of {', '.join(KINDS)}")
    require(all(0 <= d < x.rank for d in dims) and len(set(dims)) == len(dims), f"dims {dims} do not fit rank {x.rank}")
    shape = reduced_shape(x.shape, dims, keepdims)
    if kind in ("argmax", "argmin"):
        require(len(dims) == 1, "argmax and argmin reduce exactly one dim")
        return TensorType(DType.i64, shape)
    if kind in ("any", "all"):
        require(x.dtype.is_bool, f"any and all reduce bool, not {x.dtype}")
    if kind in ("max", "min"):
        require(not x.dtype.is_complex, f"{kind} is not defined for {x.dtype}")
        for d in dims:
            require(x.shape[d] != 0, f"{kind} over an empty dim")
    if kind in ("sum", "prod"):
        require(not x.dtype.is_bool, "convert bool to an integer before summing")
    return TensorType(x.dtype, shape)


def _numpy(x: np.ndarray[Any, Any], *, kind: str, dims: tuple[int, ...], keepdims: bool) -> Any:
    if kind in ("argmax", "argmin"):
        return getattr(np, kind)(x, axis=dims[0], keepdims=keepdims).astype(np.int64)
    if not dims:
        return x.copy()
    f: Any = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min, "any": np.any, "all": np.all}[kind]
    if kind in ("sum", "prod"):
        wide = {np.dtype(np.float32): np.float64, np.dtype(np.complex64): np.complex128}.get(x.dtype, x.dtype)
        return f(x, axis=dims, keepdims=keepdims, dtype=wide).astype(x.dtype)
    if kind in ("max", "min") and any(x.shape[d] == 0 for d in dims):
        return f(x, axis=dims, keepdims=keepdims, initial=_outermost(kind, x.dtype))
    return f(x, axis=dims, keepdims=keepdims)


def _outermost(kind: str, dtype: np.dtype[Any]) -> Any:
    """The value that leaves a max or min as it is."""
    if dtype.kind == "b":
        return kind == "min"
    if dtype.kind in "iu":
        return np.iinfo(dtype).min if kind == "max" else np.iinfo(dtype).max
    return dtype.type(-np.inf if kind == "max" else np.inf)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for kind in KINDS:
        one = kind.startswith("arg")
        logical = kind in ("any", "all")
        dtypes: list[Any] = [np.bool_] if logical else [np.float32, np.float64, np.int64, np.int32]
        if kind in ("sum", "prod"):
            dtypes.append(np.complex64)
        for dt in dtypes:
            span = 1.3 if kind == "prod" else 4
            for shape, dims in [
                ((7, 33), (1,)),
                ((7, 33), (0,)),
                ((3, 4, 5), (1,)),
                ((3, 5, 6, 2), (0, 2)),
                ((2, 3), (0, 1)),
                ((1, 1), (0,)),
                ((9,), (0,)),
                ((2, 257), (1,)),
            ]:
                if one and len(dims) != 1:
                    continue
                for keep in (False, True):
                    yield Sample(
                        (random_array(rng, shape, dt, -span, span),), {"kind": kind, "dims": dims, "keepdims": keep}
                    )
        if kind in ("sum", "prod"):
            yield Sample(
                (random_array(rng, (3, 0), np.float32),),
                {"kind": kind, "dims": (1,)},
                "empty reduction gives the identity",
            )


op(
    "reduce",
    "x",
    {"kind": str, "dims": tuple, "keepdims": (bool, False)},
    infer=_infer,
    numpy=_numpy,
    category="reduction",
    samples=_samples,
    doc="Reduces over dims. sum and prod accumulate at least in the operand's compute dtype; "
    "max and min propagate NaN, over a dim that turns out to be empty they are the dtype's least or greatest value; "
    "argmax and argmin give the first index (the first NaN's where there is one).",
)
