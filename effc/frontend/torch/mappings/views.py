"""Views, movement and creation."""

from __future__ import annotations

from typing import Any

import torch

from ....ir import dims as D
from ....ir.dims import Dim, SymExpr
from ....ir.dtypes import DType
from ....ir.graph import Value
from .. import dtypes as T
from ..context import BIG, Context
from ..registry import Unsupported, aten
from ..shapes import SymNumber


@aten("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias", "reshape_copy", "prims::reshape")
def _view(cx: Context, x: Value, shape: Any, *_: Any) -> Value:
    return cx.reshape(x, cx.out.shape)


@aten(
    "squeeze",
    "unsqueeze",
    "flatten",
    "unflatten",
    "squeeze_copy",
    "unsqueeze_copy",
    "prims::collapse_view",
    "prims::split_dim",
    "prims::squeeze",
)
def _by_shape(cx: Context, x: Value, *_: Any, **__: Any) -> Value:
    return cx.reshape(x, cx.out.shape)


@aten("expand", "expand_copy", "broadcast_to")
def _expand(cx: Context, x: Value, shape: Any, *, implicit: bool = False) -> Value:
    return cx.broadcast(x, cx.out.shape)


@aten("prims::broadcast_in_dim")
def _broadcast_in_dim(cx: Context, x: Value, shape: Any, dims: Any) -> Value:
    full: list[Dim] = [1] * cx.out.rank
    for d, s in zip(dims, x.shape, strict=True):
        full[d] = s
    return cx.broadcast(cx.reshape(x, full), cx.out.shape)


@aten("permute", "permute_copy", "prims::transpose")
def _permute(cx: Context, x: Value, dims: Any) -> Value:
    return cx.permute(x, [cx.axis(d, x.rank) for d in dims]) if x.rank else x


@aten("transpose", "transpose_copy", "swapaxes", "swapdims")
def _transpose(cx: Context, x: Value, a: int, b: int) -> Value:
    return cx.transpose(x, a, b) if x.rank else x


@aten("t", "t_copy")
def _t(cx: Context, x: Value) -> Value:
    return cx.transpose(x) if x.rank == 2 else x


NEGATIVE = 1 << 40  # x // NEGATIVE is -1 for a negative size and 0 for another


def least(cx: Context, a: Dim, b: Dim) -> Dim:
    """min of dims, decided by their bounds where possible."""
    lo, hi = D.bounds(a - b, cx.b.symbols)
    return a if hi <= 0 else b if lo >= 0 else D.minimum(a, b)


def most(cx: Context, a: Dim, b: Dim) -> Dim:
    lo, hi = D.bounds(a - b, cx.b.symbols)
    return a if lo >= 0 else b if hi <= 0 else D.maximum(a, b)


def _clamped(cx: Context, x: Any, size: Dim, default: Dim) -> Dim:
    """A slice bound as torch normalises it: negative counts from the end, then clamped to [0, size]."""
    if x is None:
        return default
    d = cx.dim(x)
    if isinstance(d, int) and d >= BIG:
        return size
    lo, hi = D.bounds(d, cx.b.symbols)
    if hi < 0:
        d = d + size
    elif lo < 0:
        d = d - size * D.floordiv(d, NEGATIVE)
    return least(cx, most(cx, d, 0), size)


@aten("slice", "slice_copy")
def _slice(cx: Context, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    d = cx.axis(dim, x.rank)
    size = x.shape[d]
    lo, hi = _clamped(cx, start, size, 0), _clamped(cx, end, size, size)
    if cx.fresh:  # torch gave the length a symbol of its own
        hi = most(cx, hi, lo)
        cx.define(D.ceildiv(hi - lo, step))
        return cx.slice(x, d, lo, hi, step)
    want = cx.out.shape[d]
    if isinstance(lo, int) and isinstance(hi, int) and hi < lo:
        hi = lo
    elif step == 1 and hi - lo != want:
        if isinstance(want, int) or not D.symbols(want) - D.symbols(lo) - D.symbols(hi) - D.symbols(size):
            hi = lo + want  # torch's own result size: it knows which bounds cannot cross
    return cx.slice(x, d, lo, hi, step)


@aten("narrow", "narrow_copy")
def _narrow(cx: Context, x: Value, dim: int, start: Any, length: Any) -> Value:
    d = cx.axis(dim, x.rank)
    if isinstance(start, Value):
        raise Unsupported("a start given as a tensor")
    lo = _clamped(cx, start, x.shape[d], 0)
    return cx.slice(x, d, lo, lo + cx.dim(length))


@aten("select", "select_copy")
def _select(cx: Context, x: Value, dim: int, index: Any) -> Value:
    d = cx.axis(dim, x.rank)
    i = cx.dim(index) if not isinstance(index, int) else index
    if isinstance(i, int):
        return cx.select(x, d, i + x.shape[d] if i < 0 else i)
    lo, hi = D.bounds(i, cx.b.symbols)
    if lo >= 0 or hi < 0:
        return cx.select(x, d, i + x.shape[d] if hi < 0 else i)
    return cx.op("take", x, cx.scalar(i, DType.i64), dim=d)  # takes either sign


@aten("slice_scatter")
def _slice_scatter(
    cx: Context, x: Value, src: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    d = cx.axis(dim, x.rank)
    size = x.shape[d]
    lo, hi = _clamped(cx, start, size, 0), _clamped(cx, end, size, size)
    if isinstance(lo, int) and isinstance(hi, int):
        hi = max(lo, hi)
    elif step == 1:
        hi = lo + src.shape[d]
    starts, stops, steps = [0] * x.rank, list(x.shape), [1] * x.rank
    starts[d], stops[d], steps[d] = lo, hi, step  # type: ignore[call-overload]
    if lo == 0 and hi == size and step == 1:
        return cx.convert(cx.broadcast(src, x.shape), x.dtype)
    return cx.op(
        "slice_scatter", x, cx.convert(src, x.dtype), starts=tuple(starts), stops=tuple(stops), steps=tuple(steps)
    )


@aten("select_scatter")
def _select_scatter(cx: Context, x: Value, src: Value, dim: int, index: Any) -> Value:
    d = cx.axis(dim, x.rank)
    i = cx.dim(index)
    if D.bounds(i, cx.b.symbols)[0] < 0:
        i = i + x.shape[d]
    return cx.op("select_scatter", x, cx.convert(src, x.dtype), dim=d, index=i)


@aten("diagonal", "diagonal_copy")
def _diagonal(cx: Context, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    return cx.op("diagonal", x, offset=offset, dim1=cx.axis(dim1, x.rank), dim2=cx.axis(dim2, x.rank))


@aten("diagonal_scatter")
def _diagonal_scatter(cx: Context, x: Value, src: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    return cx.op("diagonal_scatter", x, src, offset=offset, dim1=cx.axis(dim1, x.rank), dim2=cx.axis(dim2, x.rank))


@aten("as_strided", "as_strided_copy")
def _as_strided(cx: Context, x: Value, size: Any, stride: Any, storage_offset: Any = None) -> Value:
    base, offset = _storage(cx, x)
    at = offset if storage_offset is None else cx.dim(storage_offset)
    return cx.op("as_strided", base, shape=cx.out.shape, strides=tuple(cx.dim(s) for s in stride), offset=at)


def _storage(cx: Context, x: Value) -> tuple[Value, Dim]:
    """The operand in its storage's order, where torch's strides say that it is a dense permutation."""
    fake = cx.fx.args[0].meta["val"]
    strides = [s if isinstance(s, int) else None for s in fake.stride()]
    if None in strides or fake.storage_offset() != 0:
        if fake.is_contiguous() and fake.storage_offset() == 0:
            return x, 0
        raise Unsupported("as_strided of a view whose storage is not its own elements")
    order = sorted(range(x.rank), key=lambda d: (-strides[d], d))  # type: ignore[operator]
    if not fake.permute(order).is_contiguous():
        raise Unsupported("as_strided of a view whose storage is not its own elements")
    return cx.permute(x, order), 0


@aten("as_strided_scatter")
def _as_strided_scatter(cx: Context, x: Value, src: Value, size: Any, stride: Any, storage_offset: Any = None) -> Value:
    base, offset = _storage(cx, x)
    if base is not x:
        raise Unsupported("a permuted operand")
    at = offset if storage_offset is None else cx.dim(storage_offset)
    shape = tuple(cx.dim(s) for s in size)
    return cx.op(
        "as_strided_scatter",
        x,
        cx.convert(src, x.dtype),
        shape=shape,
        strides=tuple(cx.dim(s) for s in stride),
        offset=at,
    )


@aten("unfold", "unfold_copy")
def _unfold(cx: Context, x: Value, dimension: int, size: int, step: int) -> Value:
    if x.rank == 0:
        return cx.reshape(x, cx.out.shape) if cx.out.shape != (0,) else cx.full(0, (0,), x.dtype)
    return cx.op("unfold", x, dim=cx.axis(dimension, x.rank), size=size, step=step)


@aten("view_as_real", "view_as_real_copy")
def _view_as_real(cx: Context, x: Value) -> Value:
    return cx.op("view_as_real", x)


@aten("view_as_complex", "view_as_complex_copy")
def _view_as_complex(cx: Context, x: Value) -> Value:
    return cx.op("view_as_complex", x)


@aten("flip", "prims::rev")
def _flip(cx: Context, x: Value, dims: Any) -> Value:
    return cx.op("flip", x, dims=cx.axes(list(dims), x.rank)) if x.rank and dims else x


@aten("cat", "concat", "prims::cat")
def _cat(cx: Context, xs: Any, dim: int = 0) -> Value:
    out = cx.out
    kept = [x for x in xs if not (x.rank == 1 and x.shape[0] == 0 and out.rank != 1)]
    if not kept:
        return cx.convert(xs[0], out.dtype)
    return cx.concat([cx.convert(x, out.dtype) for x in kept], cx.axis(dim, out.rank))


@aten("stack")
def _stack(cx: Context, xs: Any, dim: int = 0) -> Value:
    d = cx.axis(dim, cx.out.rank)
    return cx.concat([cx.unsqueeze(cx.convert(x, cx.out.dtype), d) for x in xs], d)


@aten(
    "split",
    "split_with_sizes",
    "split_copy",
    "split_with_sizes_copy",
    "chunk",
    "tensor_split.sections",
    "tensor_split.indices",
)
def _split(cx: Context, x: Value, sizes: Any, dim: int = 0) -> tuple[Value, ...]:
    d = cx.axis(dim, x.rank)
    out: list[Value] = []
    at: Dim = 0
    for t in cx.expected:
        assert t is not None
        out.append(cx.slice(x, d, at, at + t.shape[d]))
        at = at + t.shape[d]
    return tuple(out)


@aten("unbind", "unbind_copy")
def _unbind(cx: Context, x: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(cx.select(x, dim, i) for i in range(len(cx.expected)))


@aten("repeat")
def _repeat(cx: Context, x: Value, repeats: Any) -> Value:
    reps = [cx.dim(r) for r in repeats]
    shape = (1,) * (len(reps) - x.rank) + x.shape
    if all(r == 1 for r in reps):
        return cx.reshape(x, shape)
    paired: list[Dim] = []
    wide: list[Dim] = []
    for r, s in zip(reps, shape, strict=True):
        paired += [1, s]
        wide += [r, s]
    return cx.reshape(cx.broadcast(cx.reshape(x, paired), wide), [r * s for r, s in zip(reps, shape, strict=True)])


@aten("roll")
def _roll(cx: Context, x: Value, shifts: Any, dims: Any = ()) -> Value:
    shifts = [shifts] if isinstance(shifts, (int, SymExpr)) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims:
        flat = cx.reshape(x, (D.product(x.shape),))
        return cx.reshape(_roll(cx, flat, shifts, [0]), x.shape)
    for s, d in zip(shifts, dims, strict=True):
        d = cx.axis(d, x.rank)
        n = x.shape[d]
        if n == 0:
            continue
        cut = D.mod(-cx.dim(s), n)
        if cut != 0:
            x = cx.concat([cx.slice(x, d, cut, n), cx.slice(x, d, 0, cut)], d)
    return x


@aten("rot90")
def _rot90(cx: Context, x: Value, k: int = 1, dims: Any = (0, 1)) -> Value:
    a, b = (cx.axis(d, x.rank) for d in dims)
    k %= 4
    if k == 0:
        return x
    if k == 2:
        return cx.op("flip", x, dims=tuple(sorted((a, b))))
    if k == 1:
        return cx.transpose(cx.op("flip", x, dims=(b,)), a, b)
    return cx.op("flip", cx.transpose(x, a, b), dims=(b,))


def _triangle(name: str) -> Any:
    def f(cx: Context, x: Value, diagonal: Any = 0) -> Value:
        return cx.op(name, x, diagonal=cx.dim(diagonal))

    return f


aten("tril")(_triangle("tril"))
aten("triu")(_triangle("triu"))


def _triangle_indices(lower: bool) -> Any:
    def f(cx: Context, row: int, col: int, offset: int = 0, **_: Any) -> Value:
        import numpy as np

        g = np.tril_indices(row, offset, col) if lower else np.triu_indices(row, offset, col)
        return cx.b.constant(np.stack(g).astype(cx.out.dtype.np))

    return f


aten("tril_indices")(_triangle_indices(True))
aten("triu_indices")(_triangle_indices(False))


@aten("diag_embed")
def _diag_embed(cx: Context, x: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
    out = cx.out
    base = cx.full(0 if not out.dtype.is_bool else False, out.shape, out.dtype)
    return cx.op("diagonal_scatter", base, x, offset=offset, dim1=cx.axis(dim1, out.rank), dim2=cx.axis(dim2, out.rank))


@aten("trace")
def _trace(cx: Context, x: Value) -> Value:
    d = cx.op("diagonal", x, offset=0, dim1=0, dim2=1)
    return cx.reduce("sum", cx.convert(d, cx.out.dtype), (0,))


@aten("pixel_shuffle")
def _pixel_shuffle(cx: Context, x: Value, factor: int) -> Value:
    *lead, c, h, w = x.shape
    k = len(lead)
    y = cx.reshape(x, [*lead, c // (factor * factor), factor, factor, h, w])
    order = [*range(k), k, k + 3, k + 1, k + 4, k + 2]
    return cx.reshape(cx.permute(y, order), cx.out.shape)


@aten("pixel_unshuffle")
def _pixel_unshuffle(cx: Context, x: Value, factor: int) -> Value:
    *lead, c, h, w = x.shape
    k = len(lead)
    y = cx.reshape(x, [*lead, c, h // factor, factor, w // factor, factor])
    order = [*range(k), k, k + 2, k + 4, k + 1, k + 3]
    return cx.reshape(cx.permute(y, order), cx.out.shape)


@aten("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(cx: Context, x: Value, groups: int) -> Value:
    n, c, *rest = x.shape
    y = cx.reshape(x, [n, groups, c // groups, *rest])
    return cx.reshape(cx.transpose(y, 1, 2), x.shape)


# Creation ------------------------------------------------------------------------------------------------------------


@aten("full", "full_like", "new_full", "prims::full_like", "prims::full")
def _full(cx: Context, x: Any, *args: Any, **kwargs: Any) -> Value:
    value = kwargs.get("fill_value", args[-1] if args else None)
    if isinstance(value, torch.dtype) or value is None:
        raise Unsupported("an unusual signature")
    return cx.full(value, cx.out.shape, cx.out.dtype)


def _filled(value: int) -> Any:
    def f(cx: Context, *_: Any, **__: Any) -> Value:
        return cx.full(bool(value) if cx.out.dtype.is_bool else value, cx.out.shape, cx.out.dtype)

    return f


aten(
    "zeros",
    "zeros_like",
    "new_zeros",
    "_efficientzerotensor",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "empty_permuted",
    "empty.memory_format",
    "prims::empty_strided",
)(_filled(0))
aten("ones", "ones_like", "new_ones")(_filled(1))


@aten("scalar_tensor")
def _scalar_tensor(cx: Context, value: Any, **_: Any) -> Value:
    return cx.scalar(value, cx.out.dtype)


@aten("eye")
def _eye(cx: Context, n: Any, m: Any = None, **_: Any) -> Value:
    rows, cols = cx.out.shape
    i, j = cx.unsqueeze(cx.iota(rows), -1), cx.unsqueeze(cx.iota(cols), 0)
    return cx.convert(cx.op("eq", i, j), cx.out.dtype)


@aten("arange")
def _arange(cx: Context, *args: Any, **_: Any) -> Value:
    start, step = 0, 1
    if len(args) == 2:
        start = args[0]
    elif len(args) >= 3:
        start, step = args[0], args[2]
    return _ramp(cx, start, step)


@aten("arange.start_step")
def _arange_step(cx: Context, start: Any, end: Any, step: Any = 1, **_: Any) -> Value:
    return _ramp(cx, start, step)


@aten("prims::iota")
def _prims_iota(cx: Context, length: Any, *, start: Any = 0, step: Any = 1, **_: Any) -> Value:
    return _ramp(cx, start, step)


def _ramp(cx: Context, start: Any, step: Any) -> Value:
    out = cx.out
    if isinstance(start, (SymNumber,)) or isinstance(step, SymNumber):
        work = DType.f64 if out.dtype.is_float else DType.i64
        line = cx.convert(cx.iota(out.shape[0]), work)
        return cx.convert(cx.add(cx.mul(line, cx.scalar(step, work)), cx.scalar(start, work)), out.dtype)
    if out.dtype.is_int:
        start, step = (int(v) if isinstance(v, float) else v for v in (start, step))
    if out.dtype.is_bool or out.dtype.is_complex:
        return cx.convert(cx.b.op("iota", shape=out.shape, dim=0, start=start, step=step, dtype=DType.i64), out.dtype)
    return cx.b.op("iota", shape=out.shape, dim=0, start=start, step=step, dtype=out.dtype)  # type: ignore[no-any-return]


def _number(cx: Context, x: Any, work: DType) -> Value:
    return cx.reshape(cx.scalar(x, work), ())


@aten("linspace")
def _linspace(cx: Context, start: Any, end: Any, steps: Any, **_: Any) -> Value:
    return cx.convert(_line(cx, start, end), cx.out.dtype)


def _line(cx: Context, start: Any, end: Any) -> Value:
    """Points from both ends towards the middle, as torch computes them; in double (complex for complex)."""
    out = cx.out
    n = out.shape[0]
    work = DType.c128 if out.dtype.is_complex else DType.f64
    a, b = _number(cx, start, work), _number(cx, end, work)
    if out.dtype.is_int:  # torch converts the ends first
        a, b = (cx.convert(cx.convert(v, out.dtype), work) for v in (a, b))
    if n == 0:
        return cx.full(0.0, out.shape, work)
    if n == 1:
        return cx.reshape(a, (1,))
    i = cx.iota(n)
    step = cx.div(cx.sub(b, a), cx.scalar(n - 1, work) if isinstance(n, int) else cx.scalar(D.maximum(n - 1, 1), work))
    if out.dtype.is_float:
        step = cx.convert(cx.convert(step, out.dtype.compute), work)
    low = cx.add(a, cx.mul(cx.convert(i, work), step))
    high = cx.sub(b, cx.mul(cx.convert(cx.sub(n - 1, i), work), step))
    return cx.where(cx.op("lt", i, D.floordiv(n, 2)), low, high)


@aten("logspace")
def _logspace(cx: Context, start: Any, end: Any, steps: Any, base: float = 10.0, **_: Any) -> Value:
    line = _line(cx, start, end)
    if isinstance(base, Value):
        b: Any = cx.convert(base, line.dtype)
    else:
        b = cx.const(float(base), line.dtype)
    return cx.convert(cx.op("pow", b, line), cx.out.dtype)


def _signal(name: str) -> Any:
    def f(cx: Context, n: Any, *args: Any, **kwargs: Any) -> Value:
        """Window functions of constant length are constants."""
        if not isinstance(n, int):
            raise Unsupported("a dynamic window length")
        keep = {k: v for k, v in kwargs.items() if k in ("periodic", "alpha", "beta")}
        w = getattr(torch, name)(n, *args, dtype=T.torch_dtype(cx.out.dtype), **keep)
        return cx.b.constant(T.to_numpy(w), cx.out.dtype)

    return f


for _name in ("hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window"):
    aten(_name)(_signal(_name))


@aten("vander", "linalg_vander")
def _vander(cx: Context, x: Value, N: Any = None, **_: Any) -> Value:
    n = cx.out.shape[-1]
    if not isinstance(n, int):
        raise Unsupported("a dynamic number of columns")
    v = cx.convert(x, cx.out.dtype)
    cols = [cx.broadcast(cx.const(1, v.dtype), v.shape)]
    for _i in range(1, n):
        cols.append(cx.mul(cols[-1], v))
    return (
        cx.reshape(cx.concat([cx.unsqueeze(c, -1) for c in cols], -1), cx.out.shape)
        if n
        else cx.full(0, cx.out.shape, v.dtype)
    )


@aten("nonzero_static")
def _nonzero_static(cx: Context, x: Value, *, size: Any, fill_value: int = -1) -> Value:
    """nonzero cut or filled up to a given number of rows, without a data-dependent size."""
    n = cx.dim(size)
    flat = cx.reshape(x if x.dtype.is_bool else cx.op("ne", x, 0), (D.product(x.shape),))
    place = cx.sub(cx.op("cumsum", cx.convert(flat, DType.i64), dim=0), 1)
    slot = cx.where(flat, cx.op("minimum", place, cx.scalar(n, DType.i64)), cx.scalar(n, DType.i64))
    spread = cx.full(-1, (n + 1,), DType.i64)
    at = cx.op("scatter", spread, slot, cx.iota(flat.shape[0]), dim=0)
    at = cx.slice(at, 0, 0, n)
    filled = cx.op("lt", at, 0)
    cols: list[Value] = []
    rest = at
    for s in reversed(x.shape):
        cols.append(cx.op("remainder", rest, cx.scalar(s, DType.i64)))
        rest = cx.op("floor_div", rest, cx.scalar(s, DType.i64))
    if not cols:
        return cx.full(0, cx.out.shape, DType.i64)
    table = cx.concat([cx.unsqueeze(c, -1) for c in reversed(cols)], -1)
    return cx.where(cx.unsqueeze(filled, -1), cx.const(fill_value, DType.i64), table)


@aten("_chunk_cat")
def _chunk_cat(cx: Context, tensors: Any, dim: int, num_chunks: int) -> Value:
    """Each tensor is padded to a multiple of the chunk count, flattened behind ``dim``; chunk i of all of them makes
    row i.
    """
    rows = []
    for x in tensors:
        d = cx.axis(dim, x.rank)
        n = x.shape[d]
        per = -D.floordiv(-n, num_chunks)
        pads = tuple((0, per * num_chunks - n) if i == d else (0, 0) for i in range(x.rank))
        y = cx.op("pad", x, padding=pads, mode="constant", value=0) if pads[d] != (0, 0) else x
        lead = y.shape[:d]
        rows.append(cx.reshape(y, (*lead, num_chunks, per * D.product(y.shape[d + 1 :]))))
    out = cx.concat([cx.convert(r, cx.out.dtype) for r in rows], rows[0].rank - 1)
    return cx.reshape(out, cx.out.shape)


@aten("resize")
def _resize(cx: Context, x: Value, size: Any, **_: Any) -> Value:
    """The elements in order under another size; what torch leaves uninitialised is zero."""
    have, want = D.product(x.shape), D.product(cx.out.shape)
    flat = cx.reshape(x, (have,))
    if isinstance(have, int) and isinstance(want, int):
        if want <= have:
            flat = cx.slice(flat, 0, 0, want)
        else:
            flat = cx.op(
                "pad", flat, padding=((0, want - have),), mode="constant", value=0 if not x.dtype.is_bool else False
            )
    elif have != want:
        raise Unsupported("dynamic sizes")
    return cx.reshape(flat, cx.out.shape)
