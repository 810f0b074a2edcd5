"""Shapes, views, movement, creation, gathering and scattering."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import NEGATIVE, Context
from ..dtypes import Array, dtype_of
from ..registry import Unsupported, onnx_op

# Shapes ---------------------------------------------------------------------------------------------------------------


@onnx_op("Shape")
def _shape(cx: Context, x: Value, *, start: int = 0, end: int | None = None) -> Value:
    return cx.shape_value(x.shape[slice(start, end)])


@onnx_op("Size")
def _size(cx: Context, x: Value) -> Value:
    return cx.scalar(x.type.numel, DType.i64)


def resolved(cx: Context, x: Value, wanted: list[Dim], allowzero: int) -> tuple[Dim, ...]:
    """The result shape of Reshape: 0 keeps a size, one -1 takes what is left."""
    shape: list[Dim] = []
    open_at: list[int] = []
    late = False
    for k, d in enumerate(wanted):
        lo, hi = D.bounds(d, cx.b.symbols)
        if lo == hi == 0 and not allowzero:
            if k >= x.rank:
                raise Unsupported(f"shape {wanted} that keeps dim {k} of rank {x.rank}")
            shape.append(x.shape[k])
        elif lo == hi == -1:
            open_at.append(k)
            shape.append(-1)
        else:
            # Arithmetic on the inputs' own sizes gives sizes, though its bounds may not show it.
            late = late or (lo < 0 and not D.symbols(d) <= cx.known)
            shape.append(d)
    if late:
        return _resolved_late(cx, x, wanted, allowzero)
    if len(open_at) > 1:
        raise Unsupported(f"shape {wanted} with more than one -1")
    rest = D.product(d for k, d in enumerate(shape) if k not in open_at)
    if open_at:
        if isinstance(rest, int) and rest == 0:
            raise Unsupported(f"shape {wanted}: -1 beside a size of 0")
        shape[open_at[0]] = D.floordiv(x.type.numel, rest)
        cx.require(shape[open_at[0]] * rest, "==", x.type.numel, f"{x.type.numel} elements must fit shape {wanted}")
    else:
        cx.require(rest, "==", x.type.numel, f"{x.type.numel} elements must fit shape {wanted}")
    return tuple(shape)


def _resolved_late(cx: Context, x: Value, wanted: list[Dim], allowzero: int) -> tuple[Dim, ...]:
    """The same where sizes are known only while running: -1 and 0 are told apart by arithmetic."""
    known: list[Dim] = []
    minus: list[Dim] = []
    for k, d in enumerate(wanted):
        negative = 0 - D.floordiv(d, NEGATIVE)  # 1 for -1
        size = d + negative  # -1 becomes 0
        if not allowzero and k < x.rank:
            zero = (1 - cx.least(size, 1)) * (1 - negative)
            size = size + zero * x.shape[k]
        known.append(size)
        minus.append(negative)
    rest = D.product(s + m for s, m in zip(known, minus))
    left = D.floordiv(x.type.numel, D.maximum(cx.named(rest), 1))
    shape = tuple(cx.named(s + m * left) for s, m in zip(known, minus))
    cx.require(D.product(shape), "==", x.type.numel, f"{x.type.numel} elements must fit the shape")
    return shape


@onnx_op("Reshape")
def _reshape(cx: Context, x: Value, shape: Value | None = None, *, allowzero: int = 0) -> Value:
    assert shape is not None
    if shape.rank != 1:
        raise Unsupported(f"a shape of rank {shape.rank}")
    return cx.reshape(x, resolved(cx, x, cx.dims(shape, "the shape", lo=-1), allowzero))


@onnx_op("Flatten")
def _flatten(cx: Context, x: Value, *, axis: int = 1) -> Value:
    a = axis + x.rank if axis < 0 else axis
    return cx.reshape(x, (D.product(x.shape[:a]), D.product(x.shape[a:])))


def _axes_of(cx: Context, axes: Any) -> list[int] | None:
    if axes is None:
        return None
    return cx.ints(axes, "axes") if isinstance(axes, Value) else [int(a) for a in axes]


@onnx_op("Squeeze")
def _squeeze_attribute(cx: Context, x: Value, *, axes: Any = None) -> Value:
    return _squeeze(cx, x, axes)


@onnx_op("Squeeze", since=13)
def _squeeze(cx: Context, x: Value, axes: Any = None) -> Value:
    found = _axes_of(cx, axes)
    dims = {cx.axis(a, x.rank) for a in found} if found is not None else {k for k, d in enumerate(x.shape) if d == 1}
    for d in dims:
        cx.require(x.shape[d], "==", 1, f"dim {d} is squeezed and must be 1")
    return cx.reshape(x, [s for k, s in enumerate(x.shape) if k not in dims])


@onnx_op("Unsqueeze")
def _unsqueeze_attribute(cx: Context, x: Value, *, axes: Any) -> Value:
    return cx.unsqueeze(x, *axes)


@onnx_op("Unsqueeze", since=13)
def _unsqueeze(cx: Context, x: Value, axes: Value) -> Value:
    return cx.unsqueeze(x, *cx.ints(axes, "axes"))


@onnx_op("Transpose")
def _transpose(cx: Context, x: Value, *, perm: Any = None) -> Value:
    return cx.permute(x, tuple(reversed(range(x.rank))) if perm is None else perm)


@onnx_op("Expand")
def _expand(cx: Context, x: Value, shape: Value) -> Value:
    wanted = cx.dims(shape, "the shape")
    full = list(cx.broadcast_shape(x.shape, wanted))
    lead = len(full) - x.rank
    for k, d in enumerate(x.shape):
        want = wanted[k + lead - (len(full) - len(wanted))] if k + lead >= len(full) - len(wanted) else 1
        if d == 1 or want == 1 or d == want:
            continue
        if not isinstance(want, int) and D.bounds(want, cx.b.symbols)[0] <= 1 and not cx.known >= D.symbols(want):
            full[k + lead] = D.maximum(d, want)  # a late 1 keeps the size
        cx.require(full[k + lead], "==", d, f"size {d} must broadcast to {want}")
    return cx.broadcast(x, full)


@onnx_op("Tile")
def _tile(cx: Context, x: Value, repeats: Value) -> Value:
    counts = cx.dims(repeats, "repeats")
    if len(counts) != x.rank:
        raise Unsupported(f"{len(counts)} repeats for rank {x.rank}")
    if all(c == 1 for c in counts):
        return x
    spread = cx.reshape(x, [d for s in x.shape for d in (1, s)])
    wide = cx.broadcast(spread, [d for c, s in zip(counts, x.shape) for d in (c, s)])
    return cx.reshape(wide, [c * s for c, s in zip(counts, x.shape)])


@onnx_op("Concat")
def _concat(cx: Context, *xs: Value, axis: int) -> Value:
    d = cx.axis(axis, xs[0].rank)
    for x in xs[1:]:
        for k in range(xs[0].rank):
            if k != d:
                cx.require(xs[0].shape[k], "==", x.shape[k], f"sizes of joined tensors must agree in dim {k}")
    return cx.concat(xs, d)


def split_sizes(cx: Context, size: Dim, split: Any, parts: int | None) -> list[Dim]:
    if split is not None:
        return cx.dims(split, "split") if isinstance(split, Value) else list(split)
    assert parts is not None
    chunk = D.ceildiv(size, parts)
    return [chunk] * (parts - 1) + [size - chunk * (parts - 1)]


@onnx_op("Split")
def _split_attribute(cx: Context, x: Value, *, axis: int = 0, split: Any = None) -> Any:
    return _split(cx, x, split, axis=axis)


@onnx_op("Split", since=13)
def _split(cx: Context, x: Value, split: Any = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    d = cx.axis(axis, x.rank)
    sizes = split_sizes(cx, x.shape[d], split, num_outputs or cx.expected)
    cx.require(D.product([1]) * sum(sizes[1:], sizes[0]), "==", x.shape[d], f"split {sizes} must cover dim {d}")
    out, at = [], 0
    for s in sizes:
        out.append(cx.slice(x, d, at, at + s))
        at = at + s
    return tuple(out)


def _bound(cx: Context, d: Dim, size: Dim, low: Dim, high: Dim) -> Dim:
    """A bound of Slice within its dim: negative counts from the end, then it is clamped."""
    if isinstance(d, int) and d >= 1 << 31:
        return high
    if isinstance(d, int) and d <= -(1 << 31):
        return low
    return cx.least(cx.most(cx.from_end(d, size), low), high)


def sliced(cx: Context, x: Value, starts: list[Dim], ends: list[Dim], axes: list[int], steps: list[int]) -> Value:
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        d = cx.axis(axis, x.rank)
        size = x.shape[d]
        if step > 0:
            lo = cx.named(_bound(cx, start, size, 0, size))
            hi = cx.most(cx.named(_bound(cx, end, size, 0, size)), lo)
            x = cx.slice(x, d, lo, hi, step)
        elif step < 0:  # the reversed tensor, sliced forward
            first, last = _bound(cx, start, size, -1, size - 1), _bound(cx, end, size, -1, size - 1)
            flipped = cx.b.op("flip", x, dims=(d,))
            lo = size - 1 - first
            x = cx.slice(flipped, d, lo, cx.most(size - 1 - last, lo), -step)
        else:
            raise Unsupported("a step of 0")
    return x


@onnx_op("Slice")
def _slice_attributes(cx: Context, x: Value, *, starts: Any, ends: Any, axes: Any = None) -> Value:
    axes = list(range(len(starts))) if axes is None else list(axes)
    return sliced(cx, x, list(starts), list(ends), axes, [1] * len(axes))


@onnx_op("Slice", since=10)
def _slice(
    cx: Context, x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None
) -> Value:
    low, high = cx.dims(starts, "starts", lo=-(1 << 62)), cx.dims(ends, "ends", lo=-(1 << 62))
    at = list(range(len(low))) if axes is None else cx.ints(axes, "axes")
    return sliced(cx, x, low, high, at, [1] * len(at) if steps is None else cx.ints(steps, "steps"))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def padded(cx: Context, x: Value, pads: list[Dim], mode: str, value: Any) -> Value:
    """``pads``: what goes before each dim, then what goes after each; negative cuts."""
    n = x.rank
    before, after = pads[:n], pads[n:]
    for d in range(n):
        cut_low, cut_high = (0 - b if isinstance(b, int) and b < 0 else 0 for b in (before[d], after[d]))
        if cut_low or cut_high:
            x = cx.slice(x, d, cut_low, x.shape[d] - cut_high)
    grow = [
        (max(b, 0) if isinstance(b, int) else b, max(a, 0) if isinstance(a, int) else a) for b, a in zip(before, after)
    ]
    if mode not in _PAD_MODES:
        raise Unsupported(f"mode {mode}")
    if mode != "constant":
        for d, (b, a) in enumerate(grow):
            if (b, a) != (0, 0):
                x = _gathered_pad(cx, x, d, b, a, mode)
        return x
    fill = value if isinstance(value, Value) else cx.const(value, x.dtype)
    for d, (b, a) in enumerate(grow):
        parts = []
        for size in (b, None, a):
            if size is None:
                parts.append(x)
            elif size != 0:
                parts.append(cx.full(fill, (*x.shape[:d], size, *x.shape[d + 1 :]), x.dtype))
        x = cx.concat(parts, d)
    return x


def _gathered_pad(cx: Context, x: Value, d: int, before: Dim, after: Dim, mode: str) -> Value:
    """Padding by an index for each result position."""
    n = x.shape[d]
    at = cx.sub(cx.iota(n + before + after), before)
    last = cx.scalar(n - 1, DType.i64)
    if mode == "edge":
        at = cx.op("minimum", cx.op("maximum", at, 0), last)
    elif mode == "wrap":
        at = cx.op("remainder", at, cx.scalar(n, DType.i64))
    else:  # 0 1 2 1 0 1 2 ...: a wave of period 2(n - 1)
        period = cx.scalar(cx.most(2 * (n - 1), 1), DType.i64)
        at = cx.op("remainder", at, period)
        at = cx.op("minimum", at, cx.op("sub", period, at)) if n != 1 else cx.mul(at, 0)
    return cx.b.op("take", x, at, dim=d)  # type: ignore[no-any-return]


@onnx_op("Pad")
def _pad_attributes(cx: Context, x: Value, *, pads: Any, mode: str = "constant", value: float = 0.0) -> Value:
    return padded(cx, x, list(pads), mode, value)


@onnx_op("Pad", since=11)
def _pad(
    cx: Context, x: Value, pads: Value, value: Value | None = None, axes: Value | None = None, *, mode: str = "constant"
) -> Value:
    given = cx.dims(pads, "pads", lo=0)
    full: list[Dim] = [0] * (2 * x.rank)
    at = list(range(x.rank)) if axes is None else [cx.axis(a, x.rank) for a in cx.ints(axes, "axes")]
    if len(given) != 2 * len(at):
        raise Unsupported(f"{len(given)} pads for {len(at)} dims")
    for k, a in enumerate(at):
        full[a], full[a + x.rank] = given[k], given[k + len(at)]
    return padded(cx, x, full, mode, 0 if value is None else cx.reshape(value, ()))


@onnx_op("CenterCropPad")
def _center_crop_pad(cx: Context, x: Value, shape: Value, *, axes: Any = None) -> Value:
    at = list(range(x.rank)) if axes is None else [cx.axis(a, x.rank) for a in axes]
    for d, want in zip(at, cx.dims(shape, "the shape"), strict=True):
        have = x.shape[d]
        kept = cx.least(have, want)
        start = D.floordiv(have - kept, 2)
        x = cx.slice(x, d, start, start + kept)
        pads: list[Dim] = [0] * (2 * x.rank)
        pads[d] = D.floordiv(want - kept, 2)
        pads[d + x.rank] = want - kept - pads[d]
        y = padded(cx, x, pads, "constant", 0)
        x = cx.reshape(y, [want if k == d else s for k, s in enumerate(y.shape)])
    return x


# Creation -------------------------------------------------------------------------------------------------------------


@onnx_op("ConstantOfShape")
def _constant_of_shape(cx: Context, shape: Value, *, value: Array | None = None) -> Value:
    data = np.zeros(1, np.float32) if value is None else value
    dtype = DType.from_np(data.dtype)
    return cx.full(cx.const(data.reshape(-1)[0].item(), dtype), cx.dims(shape, "the shape"), dtype)


@onnx_op("EyeLike")
def _eye_like(cx: Context, x: Value, *, dtype: int | None = None, k: int = 0) -> Value:
    rows = cx.b.op("iota", shape=x.shape, dim=0, dtype=DType.i64)
    cols = cx.b.op("iota", shape=x.shape, dim=1, dtype=DType.i64)
    return cx.convert(cx.op("eq", cx.add(rows, k), cols), x.dtype if dtype is None else dtype_of(dtype))


@onnx_op("Range")
def _range(cx: Context, start: Value, limit: Value, delta: Value) -> Value:
    dtype = start.dtype
    a, b, c = (cx.content(v) for v in (start, limit, delta))
    if dtype.is_int and c is not None and c.dtype != object:
        step = int(c.reshape(()).item())
        if step == 0:
            raise Unsupported("a step of 0")
        if a is not None and b is not None:
            lo, hi = cx.dim(start, "start", -(1 << 62)), cx.dim(limit, "limit", -(1 << 62))
            n = cx.most(D.ceildiv(hi - lo, step) if step > 0 else D.ceildiv(lo - hi, -step), 0)
            if isinstance(lo, int):
                return cx.b.op("iota", shape=(n,), dim=0, start=lo, step=step, dtype=dtype)  # type: ignore[no-any-return]
            return cx.add(cx.b.op("iota", shape=(n,), dim=0, step=step, dtype=dtype), cx.scalar(lo, dtype))
    x, y, d = (cx.convert(cx.reshape(v, ()), DType.f64) for v in (start, limit, delta))
    count = cx.op("maximum", cx.op("ceil", cx.op("div", cx.op("sub", y, x), d)), 0)
    if all(v is not None and v.dtype != object for v in (a, b, c)):
        n = max(int(np.ceil((b.item() - a.item()) / c.item())), 0)  # type: ignore[union-attr]
    else:
        n = cx.dim(cx.convert(count, DType.i64), "the number of elements")
    steps = cx.b.op("iota", shape=(n,), dim=0, dtype=DType.i64)
    work = dtype if dtype.is_int else dtype.compute
    first, by = cx.convert(cx.reshape(start, ()), work), cx.convert(cx.reshape(delta, ()), work)
    return cx.convert(cx.op("add", cx.op("mul", cx.convert(steps, work), by), first), dtype)


@onnx_op("Trilu")
def _trilu(cx: Context, x: Value, k: Value | None = None, *, upper: int = 1) -> Value:
    diagonal = 0 if k is None else cx.dim(k, "the diagonal", -(1 << 62))
    return cx.b.op("triu" if upper else "tril", x, diagonal=diagonal)  # type: ignore[no-any-return]


@onnx_op("OneHot")
def _one_hot(cx: Context, indices: Value, depth: Value, values: Value, *, axis: int = -1) -> Value:
    n = cx.dim(cx.convert(cx.reshape(depth, ()), DType.i64), "depth")
    at = cx.convert(indices, DType.i64)
    at = cx.where(cx.op("lt", at, 0), cx.op("add", at, cx.scalar(n, DType.i64)), at)
    d = axis + at.rank + 1 if axis < 0 else axis
    spread = cx.unsqueeze(at, d)
    shape = (*at.shape[:d], n, *at.shape[d:])
    hit = cx.op("eq", cx.b.op("iota", shape=shape, dim=d, dtype=DType.i64), spread)
    return cx.b.op("where", hit, cx.select(values, 0, 1), cx.select(values, 0, 0))  # type: ignore[no-any-return]


# Gathering and scattering ---------------------------------------------------------------------------------------------


def wrapped(cx: Context, index: Value, size: Dim) -> Value:
    """Indices that count from the end where they are negative."""
    at = cx.convert(index, DType.i64)
    c = cx.content(at)
    if c is not None and c.dtype != object and (c >= 0).all():
        return at
    return cx.where(cx.op("lt", at, 0), cx.op("add", at, cx.scalar(size, DType.i64)), at)


@onnx_op("Gather")
def _gather(cx: Context, x: Value, index: Value, *, axis: int = 0) -> Value:
    d = cx.axis(axis, x.rank)
    c = cx.content(index)
    if c is not None and c.ndim == 0:
        at = cx.from_end(cx.dim(index, "the index", -(1 << 62)), x.shape[d])
        if not (isinstance(at, int) and isinstance(x.shape[d], int) and not 0 <= at < x.shape[d]):
            return cx.select(x, d, at)
        raise Unsupported(f"index {at} outside size {x.shape[d]}")
    return cx.b.op("take", x, index, dim=d)  # type: ignore[no-any-return]


@onnx_op("GatherElements")
def _gather_elements(cx: Context, x: Value, index: Value, *, axis: int = 0) -> Value:
    d = cx.axis(axis, x.rank)
    return cx.b.op("gather", x, index, dim=d)  # type: ignore[no-any-return]


def _coordinates(cx: Context, index: Value, batch: int) -> tuple[list[Value], tuple[int, ...]]:
    """One index tensor for each of the dims that the last dim of ``index`` names, batch dims first."""
    n = index.shape[-1]
    if not isinstance(n, int):
        raise Unsupported("coordinates whose number is not constant")
    shape = index.shape[:-1]
    out = []
    for d in range(batch):
        out.append(cx.b.op("iota", shape=shape, dim=d, dtype=DType.i64))
    for k in range(n):
        out.append(cx.select(index, -1, k))
    return out, tuple(range(batch + n))


@onnx_op("GatherND")
def _gather_nd(cx: Context, x: Value, index: Value, *, batch_dims: int = 0) -> Value:
    at, dims = _coordinates(cx, index, batch_dims)
    return cx.b.op("index", x, *at, dims=dims)  # type: ignore[no-any-return]


_REDUCTIONS = {"none": "none", "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@onnx_op("ScatterElements", "Scatter")
def _scatter_elements(
    cx: Context, x: Value, index: Value, src: Value, *, axis: int = 0, reduction: str = "none"
) -> Value:
    d = cx.axis(axis, x.rank)
    kind = _REDUCTIONS[reduction]
    return cx.b.op("scatter", x, index, src, dim=d, reduce=kind)  # type: ignore[no-any-return]


@onnx_op("ScatterND")
def _scatter_nd(cx: Context, x: Value, index: Value, src: Value, *, reduction: str = "none") -> Value:
    at, dims = _coordinates(cx, index, 0)
    if reduction in ("none", "add"):
        return cx.b.op("index_put", x, src, *at, dims=dims, accumulate=reduction == "add")  # type: ignore[no-any-return]
    # the named dims as one, and an index for every element of a slice
    k = len(dims)
    flat = wrapped(cx, at[0], x.shape[0])
    for a, size in zip(at[1:], x.shape[1:k]):
        flat = cx.op("add", cx.op("mul", flat, cx.scalar(size, DType.i64)), wrapped(cx, a, size))
    rest = x.shape[k:]
    rows, wide = flat.type.numel, D.product(rest)
    data = cx.reshape(x, (D.product(x.shape[:k]), wide))
    places = cx.broadcast(cx.reshape(flat, (rows, 1)), (rows, wide))
    out = cx.b.op("scatter", data, places, cx.reshape(src, (rows, wide)), dim=0, reduce=_REDUCTIONS[reduction])
    return cx.reshape(out, x.shape)


@onnx_op("TensorScatter")
def _tensor_scatter(
    cx: Context, past: Value, update: Value, write: Value | None = None, *, axis: int = -2, mode: str = "linear"
) -> Value:
    """Writes ``update`` into ``past`` along ``axis``, for each batch at its own place; circular goes round the end."""
    d = cx.axis(axis, past.rank)
    n, total = update.shape[d], past.shape[d]
    at = cx.b.op("iota", shape=update.shape, dim=d, dtype=DType.i64)
    if write is not None:
        at = cx.op("add", at, cx.reshape(cx.convert(write, DType.i64), (past.shape[0], *[1] * (past.rank - 1))))
    if mode == "circular":
        at = cx.op("remainder", at, cx.scalar(total, DType.i64))
    del n
    return cx.b.op("scatter", past, at, update, dim=d)  # type: ignore[no-any-return]


@onnx_op("NonZero")
def _nonzero(cx: Context, x: Value) -> Value:
    if x.rank == 0:
        x = cx.reshape(x, (1,))
    return cx.permute(cx.b.op("nonzero", x, size=cx.new_symbol()), (1, 0))


@onnx_op("Compress")
def _compress(cx: Context, x: Value, condition: Value, *, axis: int | None = None) -> Value:
    if axis is None:
        x, d = cx.reshape(x, (x.type.numel,)), 0
    else:
        d = cx.axis(axis, x.rank)
    at = cx.b.op("nonzero", condition, size=cx.new_symbol())
    return cx.b.op("take", x, cx.reshape(at, (at.shape[0],)), dim=d)  # type: ignore[no-any-return]


@onnx_op("TopK")
def _topk_attribute(cx: Context, x: Value, *, k: int, axis: int = -1) -> Any:
    return cx.b.op("topk", x, k=k, dim=cx.axis(axis, x.rank))


@onnx_op("TopK", since=10)
def _topk(cx: Context, x: Value, k: Value, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:
    """Equal elements in the order of their indices, as the standard says: a stable sort."""
    d = cx.axis(axis, x.rank)
    count = cx.dim(k, "k")
    values, at = cx.b.op("sort", x, dim=d, descending=bool(largest), stable=True)
    cx.require(count, "<=", x.shape[d], f"k must not exceed the size of dim {d}")
    return cx.slice(values, d, 0, count), cx.slice(at, d, 0, count)


@onnx_op("DepthToSpace")
def _depth_to_space(cx: Context, x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    n, c, h, w = x.shape
    b = blocksize
    deep = D.floordiv(c, b * b)
    if mode == "DCR":
        y = cx.permute(cx.reshape(x, (n, b, b, deep, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        y = cx.permute(cx.reshape(x, (n, deep, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return cx.reshape(y, (n, deep, h * b, w * b))


@onnx_op("SpaceToDepth")
def _space_to_depth(cx: Context, x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    n, c, h, w = x.shape
    b = blocksize
    rows, cols = D.floordiv(h, b), D.floordiv(w, b)
    y = cx.reshape(x, (n, c, rows, b, cols, b))
    y = cx.permute(y, (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return cx.reshape(y, (n, c * b * b, rows, cols))


@onnx_op("ReverseSequence")
def _reverse_sequence(cx: Context, x: Value, lengths: Value, *, batch_axis: int = 1, time_axis: int = 0) -> Value:
    shape = [1] * x.rank
    shape[batch_axis] = x.shape[batch_axis]  # type: ignore[call-overload]
    n = cx.reshape(cx.convert(lengths, DType.i64), shape)
    at = cx.b.op("iota", shape=x.shape, dim=time_axis, dtype=DType.i64)
    back = cx.op("sub", cx.op("sub", n, 1), at)
    return cx.b.op("gather", x, cx.b.op("where", cx.op("lt", at, n), back, at), dim=time_axis)  # type: ignore[no-any-return]


@onnx_op("Unique")
def _unique(cx: Context, x: Value, *, axis: int | None = None, sorted: int = 1) -> Any:
    """(values, first places, places in the result, counts)."""
    if axis is None:
        x, d = cx.reshape(x, (x.type.numel,)), 0
    else:
        d = cx.axis(axis, x.rank)
    size = cx.new_symbol()
    values, inverse, counts = cx.b.op("unique_dim", x, dim=d, size=size)
    n = x.shape[d]
    start = cx.full(cx.scalar(n, DType.i64), (size,), DType.i64)
    first = cx.b.op("scatter", start, inverse, cx.iota(n), dim=0, reduce="amin")
    if not sorted:
        _, order = cx.b.op("sort", first, dim=0, descending=False, stable=True)
        rank = cx.b.op("scatter", cx.full(0, (size,), DType.i64), order, cx.iota(size), dim=0)
        values, counts, first = (cx.b.op("take", v, order, dim=k) for v, k in ((values, d), (counts, 0), (first, 0)))
        inverse = cx.b.op("take", rank, inverse, dim=0)
    return values, first, inverse, counts
