"""Matrix products, convolutions and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Pair, Refuse
from . import emits
from .movement import pad_dims, spread


@emits("matmul", wide=True, complex=True)
def matmul(cx: Cx, node: Node, a: Any, b: Any) -> Any:
    ranks = (node.operands[0].rank, node.operands[1].rank)
    if isinstance(a, Pair):
        rr, ii, ri, ir = (cx.matmul(p, q, ranks) for p, q in ((a.re, b.re), (a.im, b.im), (a.re, b.im), (a.im, b.re)))
        return Pair(cx.op("Sub", rr, ii), cx.op("Add", ri, ir))
    if node.operands[0].shape[-1] == 0 or 0 in node.types[0].shape:  # not left to fusions that take no size of 0
        return cx.fill(0, node.types[0].shape, cx.dtype(a))
    return _or_zero(cx, cx.matmul(a, b, ranks), node.operands[0].shape[-1])


def _or_zero(cx: Cx, y: str, inner: Dim) -> str:
    """A product whose inner size may be 0: the products that onnxruntime forms with transpositions and factors leave
    such a result unwritten."""
    if cx.low(inner) > 0:
        return y
    none = cx.op("Equal", cx.scalar(inner), cx.const(np.asarray(0, np.int64)))
    return cx.op("Where", none, cx.like(0, y), y)


# Convolutions ---------------------------------------------------------------------------------------------------------


def _bilinear(cx: Cx, f: Any, x: Any, w: Any) -> Any:
    """A bilinear map of complex operands from the real one."""
    if not isinstance(x, Pair):
        return f(x, w)
    return Pair(
        cx.op("Sub", f(x.re, w.re), f(x.im, w.im)),
        cx.op("Add", f(x.re, w.im), f(x.im, w.re)),
    )


def _constant_pads(padding: Sequence[Any]) -> list[int] | None:
    """ONNX's pads attribute, if all are constants and none crops."""
    if any(not isinstance(p, int) or p < 0 for pair in padding for p in pair):
        return None
    return [lo for lo, _ in padding] + [hi for _, hi in padding]


def _explicit_padding(cx: Cx, x: str, shape: Sequence[Dim], padding: Sequence[Any]) -> tuple[str, list[Dim]]:
    """x grown and cropped along its spatial dims, and its new shape."""
    grown = [(0, 0), (0, 0), *((D.maximum(lo, 0), D.maximum(hi, 0)) for lo, hi in padding)]
    x = pad_dims(cx, x, grown)
    new = [n + lo + hi for n, (lo, hi) in zip(shape, grown, strict=True)]
    for d, (lo, hi) in enumerate(padding):
        if cx.low(lo) < 0 or cx.low(hi) < 0:
            cut = D.maximum(-lo, 0)
            stop = new[2 + d] - D.maximum(-hi, 0)
            x = cx.slice(x, 2 + d, cut, stop)
            new[2 + d] = stop - cut
    return x, new


@emits("conv", wide=True, complex=True)
def conv(cx: Cx, node: Node, x: Any, w: Any, bias: str | None = None) -> Any:
    """``bias``: f32 [channels], for f32 alone; given by the pattern that found one behind the convolution."""
    a = node.attrs
    shape, kernel = node.operands[0].shape, node.operands[1].shape

    def one(xv: str, wv: str) -> str:
        if 0 in node.types[0].shape:
            return cx.fill(0, node.types[0].shape, cx.dtype(xv))
        pads = _constant_pads(a["padding"])
        if cx.dtype(xv) is DType.f32:
            if pads is None:
                xv, _ = _explicit_padding(cx, xv, shape, a["padding"])
                pads = [0] * (2 * len(a["padding"]))
            return cx.op(
                "Conv", xv, wv, *_given(bias), strides=list(a["stride"]), dilations=list(a["dilation"]),
                group=a["groups"], pads=pads, **_window(kernel[2:]),
            )  # fmt: skip
        padded, size = _explicit_padding(cx, xv, shape, a["padding"])
        return windows_product(cx, padded, size, wv, kernel, a["stride"], a["dilation"], a["groups"],
                               node.types[0].shape)  # fmt: skip

    return _bilinear(cx, one, x, w)


def _given(bias: str | None) -> tuple[str, ...]:
    return () if bias is None else (bias,)


def _window(taps: Sequence[Dim]) -> dict[str, list[int]]:
    """The attribute that may be left out, and that every exporter writes, where the window's size is known."""
    sizes = [k for k in taps if isinstance(k, int)]
    return {"kernel_shape": sizes} if len(sizes) == len(taps) else {}


def windows_product(
    cx: Cx, x: str, size: Sequence[Dim], w: str, kernel: Sequence[Dim], stride: Sequence[int], dilation: Sequence[int],
    groups: int, result: Sequence[Dim],
) -> str:  # fmt: skip
    """A convolution without padding as one matrix product over gathered windows, for types that Conv lacks."""
    taps = kernel[2:]
    if not all(isinstance(k, int) for k in taps):
        raise Refuse("a convolution in this type with a window of unknown size")
    out = list(result[2:])
    columns = []
    for tap in np.ndindex(*taps):
        part = x
        for d, t in enumerate(tap):
            low = t * dilation[d]
            part = cx.slice(part, 2 + d, low, low + (out[d] - 1) * stride[d] + 1, stride[d])
        columns.append(cx.unsqueeze(part, 2))
    n, o, per = result[0], result[1], kernel[1]
    count = int(np.prod(taps))
    pixels = D.product(out)
    # [N, G, C/G * taps, pixels] and [G, O/G, C/G * taps]
    stacked = cx.reshape(cx.concat(columns, 2), None, (n, groups, per * count, pixels))
    rows = D.floordiv(o, groups)
    matrix = cx.reshape(w, kernel, (groups, rows, per * count))
    return cx.reshape(cx.matmul(matrix, stacked, (3, 4)), None, tuple(result))


@emits("conv_transpose", wide=True, complex=True)
def conv_transpose(cx: Cx, node: Node, x: Any, w: Any, bias: str | None = None) -> Any:
    """``bias`` as in :func:`conv`."""
    a = node.attrs
    shape, kernel = node.operands[0].shape, node.operands[1].shape
    nd, groups = len(shape) - 2, a["groups"]

    def one(xv: str, wv: str) -> str:
        if 0 in node.types[0].shape:
            return cx.fill(0, node.types[0].shape, cx.dtype(xv))
        pads = _constant_pads(a["padding"])
        extra = a["output_padding"]
        plain = all(isinstance(e, int) and e < s for e, s in zip(extra, a["stride"], strict=True))
        if cx.dtype(xv) is DType.f32 and pads is not None and plain:
            return cx.op(
                "ConvTranspose", xv, wv, *_given(bias), strides=list(a["stride"]), dilations=list(a["dilation"]),
                group=groups, pads=pads, output_padding=list(extra), **_window(kernel[2:]),
            )  # fmt: skip
        size = list(shape)
        for d in range(nd):  # zeros between the elements, then a convolution with the mirrored window
            xv = spread(cx, xv, 2 + d, size[2 + d], a["stride"][d])
            size[2 + d] = (size[2 + d] - 1) * a["stride"][d] + 1
        padding = []
        for d in range(nd):
            reach = a["dilation"][d] * (kernel[2 + d] - 1)
            padding.append((reach - a["padding"][d][0], reach - a["padding"][d][1] + extra[d]))
        xv, size = _explicit_padding(cx, xv, size, padding)
        per, taps = kernel[1], kernel[2:]
        group_in = D.floordiv(shape[1], groups)
        wv = cx.reshape(wv, kernel, (groups, group_in, per, *taps))
        wv = cx.transpose(wv, [0, 2, 1, *range(3, 3 + nd)])
        for d in range(nd):
            wv = cx.reverse(wv, 3 + d)
        mirrored = (groups * per, group_in, *taps)
        wv = cx.reshape(wv, None, mirrored)
        if cx.dtype(xv) is DType.f32:
            return cx.op("Conv", xv, wv, *_given(bias), dilations=list(a["dilation"]), group=groups)
        return windows_product(cx, xv, size, wv, mirrored, (1,) * nd, a["dilation"], groups, node.types[0].shape)

    return _bilinear(cx, one, x, w)


# Attention ------------------------------------------------------------------------------------------------------------


@emits("attention", wide=True)
def attention(cx: Cx, node: Node, q: str, k: str, v: str, mask: str | None = None) -> str:
    """Written out: the scale on the smaller operand, masks combined before they meet the scores, one Softmax."""
    a = node.attrs
    (n, h, lq, e), (_, hk, lk, ev) = node.operands[0].shape, node.operands[2].shape
    dtype = cx.dtype(q)
    if lk == 0:
        return cx.fill(0, node.types[0].shape, dtype)
    k_t = cx.transpose(k, (0, 1, 3, 2))
    grouped = h != hk
    if grouped:  # heads that share a key become rows of one product
        group = D.floordiv(h, hk)
        q = cx.reshape(q, (n, h, lq, e), (n, hk, group, lq, e))
        k_t, v = cx.unsqueeze(k_t, 2), cx.unsqueeze(v, 2)
    scale = a["scale"]
    if scale is None and isinstance(e, int):
        scale = 1 / math.sqrt(e) if e else 1.0
    fused = cx.shared.contributed and scale is not None and dtype is DType.f32
    if fused:
        pass  # the scale is an attribute of the product
    elif scale is not None:
        q = cx.op("Mul", q, cx.const(np.asarray(scale), dtype))
    else:
        q = cx.op("Div", q, cx.op("Sqrt", cx.scalar(e, dtype)))
    rank = 5 if grouped else 4
    if fused:
        domain = {"domain": "com.microsoft", "alpha": float(scale)}
        s = cx.raw("FusedMatMul", [q, k_t], [dtype], **domain)[0]
    else:
        s = cx.matmul(q, k_t, (rank, rank))
    if a["softcap"]:
        cap = cx.const(np.asarray(a["softcap"]), dtype)
        s = cx.op("Mul", cx.op("Tanh", cx.op("Div", s, cap)), cap)
    seen: str | None = None
    if a["causal"]:
        last = cx.op("Add", cx.unsqueeze(cx.range(lq), 1), cx.scalar(a["causal_offset"]))
        seen = cx.op("LessOrEqual", cx.unsqueeze(cx.range(lk), 0), last)
    bias: str | None = None
    if mask is not None and cx.dtype(mask).is_bool:
        seen = mask if seen is None else cx.op("And", seen, mask)
    elif mask is not None:
        bias = mask
    low, zero = cx.const(np.asarray(-math.inf), dtype), cx.const(np.asarray(0), dtype)
    empty: str | None = None
    if seen is not None:
        bias = cx.op("Where", seen, zero if bias is None else bias, low)
    may_be_empty = mask is not None or (a["causal"] and cx.low(a["causal_offset"]) < 0)
    if bias is not None:
        rank4 = 4 if mask is not None else 2
        if may_be_empty:
            top = cx.op("ReduceMax", bias, cx.ints(-1), keepdims=1)
            empty = cx.op("Equal", top, low)
        if grouped and rank4 == 4:
            bias, empty = _by_group(cx, node, bias, hk), None if empty is None else _by_group(cx, node, empty, hk)
        s = cx.op("Add", s, bias)
    p = cx.op("Softmax", s, axis=-1)
    out = cx.matmul(p, v, (rank, rank))
    if empty is not None:
        out = cx.op("Where", empty, cx.const(np.asarray(math.nan if a["empty_nan"] else 0), dtype), out)
    return cx.reshape(out, None, (n, h, lq, ev)) if grouped else out


def _by_group(cx: Cx, node: Node, x: str, hk: Dim) -> str:
    """A mask [B, H or 1, Lq or 1, Lk] for scores [B, Hk, H / Hk, Lq, Lk]."""
    heads = node.operands[3].shape[1]
    if heads == 1:
        return cx.unsqueeze(x, 2)
    group = D.floordiv(heads, hk)
    shape = cx.raw("Shape", [x], [DType.i64])[0]
    parts = [cx.op("Slice", shape, cx.ints(lo), cx.ints(hi), cx.ints(0)) for lo, hi in ((0, 1), (2, 4))]
    return cx.op("Reshape", x, cx.op("Concat", parts[0], cx.shape((hk, group)), parts[1], axis=0))
