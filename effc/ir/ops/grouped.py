"""Grouped matrix products: each block of consecutive rows has a matrix of its own (mixtures of experts)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dims import product
from ..dtypes import DType
from ..op import Cost, Sample, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array

Array = np.ndarray[Any, Any]


def _infer(x: TensorType, w: TensorType, ends: TensorType) -> TensorType:
    require(x.rank == 2 and w.rank == 3, f"x must be a matrix and w three-dimensional, not {x}, {w}")
    require(x.dtype is w.dtype and not x.dtype.is_bool, f"operands have dtypes {x.dtype} and {w.dtype}")
    require(ends.rank == 1 and ends.dtype in (DType.i32, DType.i64), f"ends must be 1-d i32 or i64, not {ends}")
    require(same_dim(x.shape[1], w.shape[1]), f"x has {x.shape[1]} columns, the matrices take {w.shape[1]}")
    require(same_dim(w.shape[0], ends.shape[0]), f"{w.shape[0]} matrices for {ends.shape[0]} ends")
    return x.with_shape((x.shape[0], w.shape[2]))


def _numpy(x: Array, w: Array, ends: Array) -> Array:
    wide = np.complex128 if x.dtype.kind == "c" else x.dtype if x.dtype.kind in "iu" else np.float64
    out = np.zeros((x.shape[0], w.shape[2]), wide)
    start = 0
    for matrix, end in zip(w, ends, strict=True):
        out[start:end] = x[start:end].astype(wide) @ matrix.astype(wide)
        start = max(start, int(end))
    return out.astype(x.dtype)


def _decompose(b: Any, x: Any, w: Any, ends: Any) -> Any:
    """One product per matrix over all rows; each row takes its own. Rows behind the last end are zero."""
    from ..graph import Builder

    rows, groups, (k, n) = x.shape[0], w.shape[0], w.shape[1:]
    row = b.op("iota", shape=(rows, 1), dim=0, dtype=DType.i64)
    last = ends if ends.dtype is DType.i64 else b.op("convert", ends, dtype=DType.i64)
    out = b.op("full", value=0, shape=(rows, n), dtype=x.dtype)
    # From the last matrix to the first: a row before `end` belongs to the first group whose end is beyond it.
    if isinstance(groups, int) and groups <= 64:
        for g in range(groups - 1, -1, -1):
            matrix = b.op(
                "reshape", b.op("slice", w, starts=(g, 0, 0), stops=(g + 1, k, n), steps=(1, 1, 1)), shape=(k, n)
            )
            end = b.op("slice", last, starts=(g,), stops=(g + 1,), steps=(1,))
            out = b.op("where", b.op("lt", row, end), b.op("matmul", x, matrix), out)
        return out
    inner = Builder(b.symbols)
    carry, matrix = inner.input("out", out.type), inner.input("w", w.type.with_shape((k, n)))
    end, whole, line = (
        inner.input("end", last.type.with_shape(())),
        inner.input("x", x.type),
        inner.input("row", row.type),
    )
    mine = inner.op("lt", line, end)
    body = inner.graph([inner.op("where", mine, inner.op("matmul", whole, matrix), carry)])
    attrs = {"carries": 1, "scanned": 2, "length": groups, "reverse": True, "body": body}
    return b.node("scan", [out, w, last, x, row], attrs)[0]


def _cost(ins: Any, outs: Any, attrs: Any) -> Cost:
    moved = sum((t.nbytes for t in [*ins, *outs]), 0)
    return Cost(product(ins[0].shape) * ins[1].shape[2] * 2, moved)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64, DType.bf16.np, np.int64):
        for ends in ([3, 3, 9], [0, 0, 0], [2, 5, 7], [9, 9, 9]):
            yield Sample(
                (random_array(rng, (9, 5), dt), random_array(rng, (3, 5, 7), dt), np.asarray(ends)),
                {},
                "empty groups, rows left over",
            )
    many = np.sort(rng.integers(0, 40, 70))
    yield Sample(
        (random_array(rng, (40, 4), np.float32), random_array(rng, (70, 4, 3), np.float32), many.astype(np.int32)),
        {},
        "many groups",
    )
    yield Sample(
        (random_array(rng, (0, 4), np.float32), random_array(rng, (2, 4, 3), np.float32), np.zeros(2, np.int64)),
        {},
        "no rows",
    )


op(
    "grouped_matmul",
    "x w ends",
    infer=_infer,
    numpy=_numpy,
    category="contraction",
    level="macro",
    decompose=_decompose,
    cost=_cost,
    samples=_samples,
    doc="x[S, K], w[G, K, N], ends[G] ascending -> [S, N]: rows ends[g-1]..ends[g] times w[g]; rows behind "
    "the last end are zero.",
)
