"""Views and movement: reshape, permute, slices, strided windows, concat, fills, triangles, scatters into views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Node
from ....ir.op import eval_attrs
from ..context import Cx, Pair, Refuse, is_open
from . import emits

INDEX_LIMIT = 1 << 14  # larger index tables are computed in the graph instead of being stored


@emits("constant", complex=True)
def constant(cx: Cx, node: Node) -> Any:
    data, dtype = node.attrs["data"], node.attrs["dtype"]
    if dtype.is_complex:
        return Pair(cx.const(np.array(data.real), dtype.real), cx.const(np.array(data.imag), dtype.real))
    return cx.const(data, None if data.dtype == dtype.np else dtype, node.name)


@emits("dim_value")
def dim_value(cx: Cx, node: Node) -> str:
    return cx.scalar(node.attrs["value"], node.attrs["dtype"])


@emits("copy", parts=True)
def copy(cx: Cx, node: Node, x: str) -> str:
    return x


@emits("reshape", parts=True)
def reshape(cx: Cx, node: Node, x: str) -> str:
    return cx.reshape(x, node.operands[0].shape, node.attrs["shape"])


@emits("permute", parts=True)
def permute(cx: Cx, node: Node, x: str) -> str:
    return cx.transpose(x, node.attrs["dims"])


@emits("broadcast_to", parts=True)
def broadcast_to(cx: Cx, node: Node, x: str) -> str:
    shape = node.attrs["shape"]
    if 0 in shape:  # onnxruntime drops an Expand to a size of 0
        return cx.fill(0, shape, cx.dtype(x))
    return x if node.operands[0].shape == tuple(shape) else cx.expand(x, shape)


@emits("slice", parts=True)
def slice_(cx: Cx, node: Node, x: str) -> str:
    shape = node.operands[0].shape
    a = node.attrs
    rows = [
        (d, lo, hi, step)
        for d, (lo, hi, step, size) in enumerate(zip(a["starts"], a["stops"], a["steps"], shape, strict=True))
        if (lo, hi, step) != (0, size, 1)
    ]
    if not rows or (len(rows) == 1 and cx.shared.cuts.get(node.operands[0]) == rows[0][2]):
        return x
    axes, lows, highs, steps = zip(*rows, strict=True)
    return cx.op("Slice", x, cx.shape(lows), cx.shape(highs), cx.ints(*axes), cx.ints(*steps))


@emits("flip", parts=True)
def flip(cx: Cx, node: Node, x: str) -> str:
    for d in node.attrs["dims"]:
        x = cx.reverse(x, d)
    return x


@emits("concat", parts=True)
def concat(cx: Cx, node: Node, *xs: str) -> str:
    return cx.concat(xs, node.attrs["dim"])


@emits("iota")
def iota(cx: Cx, node: Node) -> str:
    a = node.attrs
    shape, dim, dtype = a["shape"], a["dim"], a["dtype"]
    wide = DType.f64 if dtype.is_float else DType.i64
    line = cx.range(shape[dim], wide)

    def number(v: Any) -> str:
        return cx.scalar(v, wide) if is_open(v) else cx.const(np.asarray(v), wide)

    if a["step"] != 1:
        line = cx.op("Mul", line, number(a["step"]))
    if is_open(a["start"]) or a["start"] != 0:
        line = cx.op("Add", line, number(a["start"]))
    line = cx.cast(line, dtype)
    if len(shape) == 1:
        return line
    line = cx.reshape(line, (shape[dim],), [n if i == dim else 1 for i, n in enumerate(shape)])
    return line if all(n == 1 for i, n in enumerate(shape) if i != dim) else cx.expand(line, shape)


@emits("full", complex=True)
def full(cx: Cx, node: Node, fill: Any = None) -> Any:
    a = node.attrs
    shape, dtype = a["shape"], a["dtype"]
    if fill is not None:
        if isinstance(fill, Pair):
            return Pair(cx.expand(fill.re, shape), cx.expand(fill.im, shape)) if shape else fill
        return cx.expand(fill, shape) if shape else fill
    value = a["value"]
    if dtype.is_complex:
        value = complex(value)
        return Pair(*(cx.fill(v, shape, dtype.real) for v in (value.real, value.imag)))
    if is_open(value):
        one = cx.scalar(value, dtype)
        return cx.expand(one, shape) if shape else one
    return cx.fill(value, shape, dtype)


@emits("tril", "triu", parts=True)
def triangle(cx: Cx, node: Node, x: str) -> str:
    return cx.op("Trilu", x, cx.scalar(node.attrs["diagonal"]), upper=int(node.op == "triu"))


# Strided windows: gathers through the row-major positions of the elements ---------------------------------------------


def positions(cx: Cx, shape: Sequence[Dim], strides: Sequence[Dim], offset: Dim) -> str:
    """i64 positions offset + sum(i_d * stride_d), of shape ``shape``."""
    known = [*shape, *strides, offset]
    if all(isinstance(d, int) for d in known) and int(np.prod([1, *shape])) <= INDEX_LIMIT:
        at: Any = np.asarray(offset, np.int64)
        for d, (n, s) in enumerate(zip(shape, strides, strict=True)):
            line = np.arange(n, dtype=np.int64) * s
            at = at + line.reshape([-1 if i == d else 1 for i in range(len(shape))])
        return cx.const(np.broadcast_to(at, tuple(shape)).copy())
    total = cx.scalar(offset)
    for d, (n, s) in enumerate(zip(shape, strides, strict=True)):
        line = cx.op("Mul", cx.range(n), cx.scalar(s))
        line = cx.unsqueeze(line, *range(1, len(shape) - d)) if d < len(shape) - 1 else line
        total = cx.op("Add", total, line)
    return total


def row_major(shape: Sequence[Dim]) -> list[Dim]:
    """The strides of a row-major tensor, in elements."""
    strides: list[Dim] = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * shape[d + 1]
    return strides


def window(node: Node) -> tuple[tuple[Dim, ...], list[Dim], Dim]:
    """(shape, strides, offset) of what a view, or the view that a scatter writes, takes from row-major storage."""
    a, shape = node.attrs, node.operands[0].shape
    strides = row_major(shape)
    op = node.op.removesuffix("_scatter")
    if op == "as_strided":
        return tuple(a["shape"]), list(a["strides"]), a["offset"]
    if op == "slice":
        sizes = node.operands[1].shape
        offset: Dim = 0
        for lo, s in zip(a["starts"], strides, strict=True):
            offset = offset + lo * s
        return sizes, [s * k for s, k in zip(strides, a["steps"], strict=True)], offset
    if op == "select":
        d = a["dim"]
        return shape[:d] + shape[d + 1 :], strides[:d] + strides[d + 1 :], a["index"] * strides[d]
    if op == "diagonal":
        i, j, k = a["dim1"], a["dim2"], a["offset"]
        rest = [d for d in range(len(shape)) if d not in (i, j)]
        from ....ir.ops.movement import diagonal_length

        size = diagonal_length(shape[i], shape[j], k)
        start = k * strides[j] if k >= 0 else -k * strides[i]
        return (
            (*(shape[d] for d in rest), size),
            [*(strides[d] for d in rest), strides[i] + strides[j]],
            0 if size == 0 else start,
        )
    raise AssertionError(node.op)


def flat(cx: Cx, x: str, rank: int) -> str:
    return x if rank == 1 else cx.op("Reshape", x, cx.ints(-1))


@emits("as_strided", "diagonal", parts=True)
def strided(cx: Cx, node: Node, x: str) -> str:
    shape, strides, offset = window(node)
    if 0 in shape:
        return cx.fill(0, shape, cx.dtype(x))
    return cx.op("Gather", flat(cx, x, node.operands[0].rank), positions(cx, shape, strides, offset), axis=0)


@emits("slice_scatter", "select_scatter", "as_strided_scatter", "diagonal_scatter", parts=True)
def scatter_view(cx: Cx, node: Node, x: str, src: str) -> str:
    shape = node.operands[0].shape
    if 0 in node.operands[1].shape or 0 in shape:
        return x
    dim = _one_dim(node)
    if dim is not None:  # before, src, after
        d, lo, hi = dim
        src = src if node.op == "slice_scatter" else cx.unsqueeze(src, d)
        parts = [] if lo == 0 else [cx.slice(x, d, 0, lo)]
        parts.append(src)
        if hi != shape[d]:
            parts.append(cx.slice(x, d, hi, shape[d]))
        return cx.concat(parts, d)
    at = positions(cx, *window(node))
    given = flat(cx, src, node.operands[1].rank)
    out = cx.op("ScatterElements", flat(cx, x, len(shape)), cx.op("Reshape", at, cx.ints(-1)), given, axis=0)
    return cx.reshape(out, None, shape)


def _one_dim(node: Node) -> tuple[int, Dim, Dim] | None:
    """(dim, start, stop) where a scatter replaces whole slices of consecutive places of one dim."""
    a, shape = node.attrs, node.operands[0].shape
    if node.op == "select_scatter":
        return a["dim"], a["index"], a["index"] + 1
    if node.op != "slice_scatter":
        return None
    part = [d for d, n in enumerate(shape) if (a["starts"][d], a["stops"][d], a["steps"][d]) != (0, n, 1)]
    if len(part) > 1 or any(a["steps"][d] != 1 for d in part):
        return None
    d = part[0] if part else 0
    return d, a["starts"][d], a["stops"][d]


@emits("unfold", parts=True)
def unfold(cx: Cx, node: Node, x: str) -> str:
    dim, size, step = (node.attrs[k] for k in ("dim", "size", "step"))
    count = node.types[0].shape[dim]
    rank = node.operands[0].rank
    got = cx.op("Gather", x, positions(cx, (count, size), (step, 1), 0), axis=dim)  # [.., count, size, ..]
    return cx.transpose(got, [*range(dim + 1), *range(dim + 2, rank + 1), dim + 1])


# Padding --------------------------------------------------------------------------------------------------------------

MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad_dims(cx: Cx, x: str, padding: Sequence[tuple[Dim, Dim]], mode: str = "constant", value: Any = 0) -> str:
    """Grows each dim by a (low, high) pair of sizes that are not negative."""
    if all(p == (0, 0) for p in padding):
        return x
    pads = cx.shape([lo for lo, _ in padding] + [hi for _, hi in padding])
    fill = cx.like(value, x) if mode == "constant" else None
    return cx.op("Pad", x, pads, fill, mode=MODES[mode])


@emits("pad", complex=True)
def pad(cx: Cx, node: Node, x: Any) -> Any:
    a = node.attrs
    if isinstance(x, Pair):
        v = complex(a["value"])
        return Pair(_pad(cx, node, x.re, v.real), _pad(cx, node, x.im, v.imag))
    return _pad(cx, node, x, a["value"])


def _pad(cx: Cx, node: Node, x: str, value: Any) -> str:
    padding, mode = node.attrs["padding"], node.attrs["mode"]
    grown = [(D.maximum(lo, 0), D.maximum(hi, 0)) for lo, hi in padding]
    x = pad_dims(cx, x, grown, mode, value)
    for d, (lo, hi) in enumerate(padding):
        if cx.low(lo) < 0 or cx.low(hi) < 0:
            cut, size = D.maximum(-lo, 0), node.operands[0].shape[d] + grown[d][0] + grown[d][1]
            x = cx.slice(x, d, cut, D.maximum(size - D.maximum(-hi, 0), 0))
    return x


@emits("col2im", parts=True)
def col2im(cx: Cx, node: Node, x: str) -> str:
    a = node.attrs
    size, kernel = a["size"], a["kernel"]
    if cx.dtype(x).compute is DType.f32 and node.operands[0].shape[0] != 0:
        pads = [p[0] for p in a["padding"]] + [p[1] for p in a["padding"]]
        return cx.op(
            "Col2Im", x, cx.shape(size), cx.ints(*kernel), strides=list(a["stride"]), pads=pads,
            dilations=list(a["dilation"]),
        )  # fmt: skip
    n, rows, _ = node.operands[0].shape
    if 0 in node.operands[0].shape:
        return cx.fill(0, node.types[0].shape, cx.dtype(x))
    counts = [
        D.floordiv(size[d] + sum(a["padding"][d]) - a["dilation"][d] * (kernel[d] - 1) - 1, a["stride"][d]) + 1
        for d in range(2)
    ]
    channels = D.floordiv(rows, kernel[0] * kernel[1])
    x = cx.reshape(x, None, (n, channels, kernel[0], kernel[1], *counts))
    canvas: str | None = None
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            tap = cx.squeeze(cx.slice(cx.slice(x, 2, i, i + 1), 3, j, j + 1), 2, 3)
            padding: list[tuple[Dim, Dim]] = [(0, 0), (0, 0)]
            for d, t in enumerate((i, j)):
                tap = spread(cx, tap, 2 + d, counts[d], a["stride"][d])
                low = t * a["dilation"][d]
                reach = (counts[d] - 1) * a["stride"][d] + 1
                padding.append((low, size[d] + sum(a["padding"][d]) - low - reach))
            tap = pad_dims(cx, tap, padding)
            canvas = tap if canvas is None else cx.op("Add", canvas, tap)
    if canvas is None:
        raise Refuse("the window is empty")
    for d in range(2):
        canvas = cx.slice(canvas, 2 + d, a["padding"][d][0], a["padding"][d][0] + size[d])
    return canvas


def spread(cx: Cx, x: str, dim: int, size: Dim, stride: int) -> str:
    """Puts stride - 1 zeros between the elements of a dim."""
    if stride == 1:
        return x
    x = cx.unsqueeze(x, dim + 1)
    pads = cx.const(np.asarray([0, stride - 1], np.int64))
    x = cx.op("Pad", x, pads, cx.like(0, x), cx.ints(dim + 1))
    return cx.slice(_merge(cx, x, dim), dim, 0, (size - 1) * stride + 1)


def _merge(cx: Cx, x: str, dim: int) -> str:
    """Joins dim with the next one."""
    spec = cx.const(np.asarray([0] * dim + [-1], np.int64))
    shape = cx.raw("Shape", [x], [DType.i64])[0]
    rest = cx.op("Slice", shape, cx.ints(dim + 2), cx.ints(1 << 62), cx.ints(0))
    return cx.op("Reshape", x, cx.op("Concat", spec, rest, axis=0))


__all__ = ["eval_attrs", "pad_dims", "positions", "row_major", "spread"]
