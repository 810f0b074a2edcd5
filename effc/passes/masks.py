"""What is known of attention masks: causal comparisons of positions, and lower bounds of additive masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ..ir import dims
from ..ir.dims import Bounds, Dim, SymExpr
from ..ir.dtypes import DType
from ..ir.graph import Value
from .rewrite import const, is_one, uniform

_FLIP = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


@dataclass(frozen=True)
class Position:
    """rows*i + cols*j + offset at place [..., i, j] of an integer tensor of rank 2 or more."""

    rows: int
    cols: int
    offset: Dim

    def __sub__(self, other: Position) -> Position:
        return Position(self.rows - other.rows, self.cols - other.cols, self.offset - other.offset)

    def __add__(self, other: Position) -> Position:
        return Position(self.rows + other.rows, self.cols + other.cols, self.offset + other.offset)


def position(v: Value, depth: int = 16) -> Position | None:
    """``v`` as an affine function of its place in the last two dims, or None. Vectors run along j."""
    if depth == 0 or v.dtype.is_complex or v.dtype.is_bool:
        return None
    found = _lines(v, depth)
    if found is None:
        return None
    steps, offset = [0] * (2 - v.rank) + found[0], found[1]
    return None if any(steps[:-2]) else Position(steps[-2], steps[-1], offset)


def ends(v: Value) -> tuple[Dim | None, Dim | None]:
    """What no element of an integer tensor is below, and above: where it is affine in its indices."""
    found = _lines(v, 16) if v.dtype.is_int else None
    if found is None:
        return None, None
    steps, offset = found
    return offset if all(s >= 0 for s in steps) else None, offset if all(s <= 0 for s in steps) else None


def _lines(v: Value, depth: int) -> tuple[list[int], Dim] | None:
    """(step per dim, offset) of a tensor that is affine in its indices; steps of dims of size 1 are 0."""
    if depth == 0:
        return None
    n = v.node
    rank = v.rank
    if n.op == "dim_value":
        return [], n.attrs["value"]
    if n.op == "iota":
        start, step = n.attrs["start"], n.attrs["step"]
        if not isinstance(step, int) or isinstance(step, bool) or not isinstance(start, (int, SymExpr)):
            return None
        return [step if d == n.attrs["dim"] and not is_one(v.shape[d]) else 0 for d in range(rank)], start
    if n.op == "full" and isinstance(n.attrs["value"], (int, SymExpr)) and not isinstance(n.attrs["value"], bool):
        return [0] * rank, n.attrs["value"]
    a = const(v)
    if a is not None:
        return _array_lines(a)
    if not n.operands or n.operands[0].dtype.is_bool or n.operands[0].dtype.is_complex:
        return None
    x = _lines(n.operands[0], depth - 1)
    if x is None:
        return None
    steps, offset = x
    source = n.operands[0]
    if n.op == "convert":
        return x if v.dtype.itemsize >= 4 else None
    if n.op in ("reshape", "broadcast_to"):
        return _reshaped(source, v, steps, offset)
    if n.op == "permute":
        return [steps[d] for d in n.attrs["dims"]], offset
    if n.op == "slice":
        starts, by = n.attrs["starts"], n.attrs["steps"]
        total: Dim = offset
        for s, k in zip(starts, steps, strict=True):
            total = total + s * k
        return [0 if is_one(v.shape[d]) else k * by[d] for d, k in enumerate(steps)], total
    if n.op == "neg":
        return [-k for k in steps], 0 - offset
    if n.op in ("add", "sub", "mul") and len(n.operands) == 2:
        y = _lines(n.operands[1], depth - 1)
        return None if y is None else _combined(n.op, rank, x, y)
    return None


def _combined(op: str, rank: int, x: tuple[list[int], Dim], y: tuple[list[int], Dim]) -> tuple[list[int], Dim] | None:
    xs = [0] * (rank - len(x[0])) + x[0]
    ys = [0] * (rank - len(y[0])) + y[0]
    if op == "add":
        return [a + b for a, b in zip(xs, ys, strict=True)], x[1] + y[1]
    if op == "sub":
        return [a - b for a, b in zip(xs, ys, strict=True)], x[1] - y[1]
    for (ks, o), (ls, f) in (((xs, x[1]), (ys, y[1])), ((ys, y[1]), (xs, x[1]))):
        if not any(ls) and isinstance(f, int):
            return [k * f for k in ks], o * f
    return None


def _reshaped(x: Value, v: Value, steps: list[int], offset: Dim) -> tuple[list[int], Dim] | None:
    """Steps after a reshape that only moves ones about, or a broadcast."""
    from .fuse.views import inserted_ones

    if v.node.op == "broadcast_to":
        pad = v.rank - x.rank
        return [0] * pad + [k if x.shape[d] == v.shape[pad + d] else 0 for d, k in enumerate(steps)], offset
    origin = inserted_ones(x.shape, v.shape)
    return None if origin is None else ([0 if i is None else steps[i] for i in origin], offset)


def _array_lines(a: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> tuple[list[int], Dim] | None:
    if a.dtype.kind not in "iuf" or not 0 < a.size <= 1 << 22:
        return None
    w = a.astype(np.float64)
    if a.dtype.kind == "f" and not np.array_equal(w, np.round(w)):
        return None
    first = w.reshape(-1)[0]
    steps: list[int] = []
    want = np.full(a.shape, first)
    for d in range(a.ndim):
        if a.shape[d] == 1:
            steps.append(0)
            continue
        at = [0] * a.ndim
        at[d] = 1
        step = w[tuple(at)] - first
        steps.append(int(step))
        want = want + step * np.arange(a.shape[d]).reshape([-1 if i == d else 1 for i in range(a.ndim)])
    return (steps, int(first)) if np.array_equal(want, w) else None


def causal_offset(keep: Value) -> Dim | None:
    """o such that ``keep`` is true exactly where j <= i + o in the last two dims, for all sizes; None if that is not
    known."""
    n = keep.node
    if n.op in ("reshape", "broadcast_to", "copy"):
        x = n.operands[0]
        return causal_offset(x) if x.shape[-2:] == keep.shape[-2:] else None
    if n.op == "logical_not":
        x = n.operands[0]
        o = anti_causal_offset(x)
        return None if o is None else o - 1
    if n.op in _FLIP:
        return _compared(n.op, n.operands[0], n.operands[1])
    if n.op == "ne" or (n.op == "convert" and keep.dtype.is_bool):
        if n.op == "ne" and uniform(n.operands[1]) != 0:
            return None
        return _lower_triangle(n.operands[0])
    return _lower_triangle(keep)


def anti_causal_offset(v: Value) -> Dim | None:
    """o such that v is true exactly where j >= i + o."""
    n = v.node
    if n.op in ("reshape", "broadcast_to", "copy"):
        x = n.operands[0]
        return anti_causal_offset(x) if x.shape[-2:] == v.shape[-2:] else None
    if n.op in _FLIP:
        negated = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[n.op]
        o = _compared(negated, n.operands[0], n.operands[1])
        return None if o is None else o + 1
    if n.op in ("ne", "convert"):
        return anti_causal_offset(n.operands[0]) if n.op == "convert" else None
    if n.op == "triu" and uniform(n.operands[0]) is not None and uniform(n.operands[0]) != 0:
        diagonal: Dim = n.attrs["diagonal"]
        return diagonal
    a = const(v)
    if a is not None and a.ndim >= 2 and a.size:
        b = a != 0
        k = diagonal_of(~b)
        return None if k is None else k + 1
    return None


def _compared(op: str, x: Value, y: Value) -> Dim | None:
    a, b = position(x), position(y)
    if a is None or b is None:
        return None
    d = a - b if op in ("gt", "ge") else b - a  # true where d > 0 or d >= 0
    if (d.rows, d.cols) != (1, -1):
        return None
    return d.offset - (1 if op in ("gt", "lt") else 0)


def _lower_triangle(v: Value) -> Dim | None:
    """The diagonal of tril(ones), of a constant lower triangle, or of a slice of one."""
    n = v.node
    if n.op == "tril" and (u := uniform(n.operands[0])) is not None and u != 0:
        o: Dim = n.attrs["diagonal"]
        return o
    if n.op in ("reshape", "broadcast_to", "convert", "copy"):
        x = n.operands[0]
        return _lower_triangle(x) if x.rank >= 2 and x.shape[-2:] == v.shape[-2:] else None
    if n.op == "slice" and all(k == 1 for k in n.attrs["steps"][-2:]):
        inner = _lower_triangle(n.operands[0])
        if inner is None:
            return None
        moved: Dim = inner + n.attrs["starts"][-2] - n.attrs["starts"][-1]
        return moved
    a = const(v)
    return None if a is None or a.ndim < 2 or not a.size or a.size > 1 << 26 else diagonal_of(a != 0)


def diagonal_of(keep: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> int | None:
    """k with keep == tril(k) in every matrix of a stack; a matrix that a range of k fits takes the one nearest 0."""
    flat = keep.reshape(-1, *keep.shape[-2:])
    rows, cols = keep.shape[-2:]
    row = flat[0, 0]
    k = int(row.sum()) - 1  # row 0 keeps j <= k
    if k == cols - 1:  # row 0 keeps everything
        k = max(k, 0)
    if k < 0:  # row 0 keeps nothing: the first row that does tells
        kept = flat[0].any(axis=1)
        if not kept.any():
            return None
        first = int(np.argmax(kept))
        k = int(flat[0, first].sum()) - 1 - first
    want = np.arange(cols)[None, :] <= np.arange(rows)[:, None] + k
    return k if np.array_equal(flat, np.broadcast_to(want, flat.shape)) else None


def never_empty(offset: Dim, symbols: Mapping[str, Bounds]) -> bool:
    """A causal mask of this offset lets every row see its first key."""
    return dims.bounds(offset, symbols)[0] >= 0


def largest(dtype: DType) -> float:
    """The largest finite number of a float dtype (of f64 for others)."""
    return float(ml_dtypes.finfo((dtype if dtype.is_float else DType.f64).np).max)  # type: ignore[no-untyped-call]


def bounds(v: Value, depth: int = 24) -> tuple[float, float]:
    """An interval that holds every element of a real value, NaN aside; infinite where nothing is known."""
    unknown = (-math.inf, math.inf)
    n = v.node
    if v.dtype.is_bool:
        return 0.0, 1.0
    if depth == 0 or v.dtype.is_complex:
        return unknown
    u = uniform(v)
    if u is not None:
        return float(u), float(u)
    a = const(v)
    if a is not None:
        if not a.size or a.size > 1 << 26:
            return unknown
        w = a.astype(np.float64) if a.dtype.kind not in "iu" else a
        return (float(w.min()), float(w.max())) if np.isfinite(w).all() else (float(np.nanmin(w)), float(np.nanmax(w)))
    if n.op in _SAME and n.operands:
        return bounds(n.operands[0], depth - 1)
    if n.op == "convert":
        low, high = bounds(n.operands[0], depth - 1)
        if v.dtype.is_float and v.dtype.itemsize < n.operands[0].dtype.itemsize:  # may overflow to infinity
            limit = largest(v.dtype)
            return (low if low >= -limit else -math.inf, high if high <= limit else math.inf)
        return low, high
    if n.op in ("gather", "take", "index", "index_select", "embedding") and n.operands:
        return bounds(n.operands[0], depth - 1)
    if n.op == "where":
        return _hull(bounds(n.operands[1], depth - 1), bounds(n.operands[2], depth - 1))
    if n.op == "concat":
        out = bounds(n.operands[0], depth - 1)
        for x in n.operands[1:]:
            out = _hull(out, bounds(x, depth - 1))
        return out
    return _arithmetic(v, depth)


_SAME = frozenset({"reshape", "permute", "broadcast_to", "slice", "copy", "flip"})


def _hull(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return min(a[0], b[0]), max(a[1], b[1])


def _arithmetic(v: Value, depth: int) -> tuple[float, float]:
    n = v.node
    limit = largest(v.dtype)
    out = (-math.inf, math.inf)
    if n.op in ("tril", "triu"):
        low, high = bounds(n.operands[0], depth - 1)
        out = (min(low, 0.0), max(high, 0.0))
    elif n.op == "neg":
        low, high = bounds(n.operands[0], depth - 1)
        out = (-high, -low)
    elif n.op in ("tanh", "sin", "cos", "sign", "erf"):
        out = (-1.0, 1.0)
    elif n.op == "sigmoid":
        out = (0.0, 1.0)
    elif n.op in ("add", "sub", "mul", "maximum", "minimum"):
        (a, b), (c, d) = (bounds(x, depth - 1) for x in n.operands)
        if n.op == "add":
            out = (a + c, b + d)
        elif n.op == "sub":
            out = (a - d, b - c)
        elif n.op == "mul":
            corners = [0.0 if x == 0 or y == 0 else x * y for x in (a, b) for y in (c, d)]
            if all(math.isfinite(x) for x in (a, b, c, d)):
                out = (min(corners), max(corners))
        else:
            pick = max if n.op == "maximum" else min
            out = (pick(a, c), pick(b, d))
    if any(map(math.isnan, out)):
        return -math.inf, math.inf
    if v.dtype.is_int:  # integers wrap
        top = 2.0 ** (v.dtype.itemsize * 8 - v.dtype.is_signed)
        return out if -top * v.dtype.is_signed <= out[0] and out[1] < top else (-math.inf, math.inf)
    return (out[0] if out[0] >= -limit else -math.inf, out[1] if out[1] <= limit else math.inf)
