"""Matrix products, convolutions and pooling. Short floats accumulate in f32, integers modulo 2^bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Expr, Tensor, at, cast, const, every
from . import emits
from .reduce import least, reducer


def _rounded(cx: Cx, node: Node, y: Tensor, work: DType) -> Tensor:
    d = node.types[0].dtype
    return y if work is d else cx.compute(node.types[0].shape, lambda *i: cast(y(*i), work, d))


@emits("matmul")
def matmul(cx: Cx, node: Node, a: Tensor, b: Tensor) -> Tensor:
    d = node.types[0].dtype
    work = d.compute
    if node.operands[0].shape[-1] == 0:
        return cx.compute(node.types[0].shape, lambda *i: const(0, d))
    (k,) = cx.axes(node.operands[0].shape[-1])

    def element(*i: Expr) -> Expr:
        x, y = at(a, [*i[:-1], k.var]), at(b, [*i[:-2], k.var, i[-1]])
        return te.sum(cast(x, d, work) * cast(y, d, work), axis=k)

    return _rounded(cx, node, cx.compute(node.types[0].shape, element), work)


@emits("conv")
def conv(cx: Cx, node: Node, x: Tensor, w: Tensor) -> Tensor:
    a, d = node.attrs, node.types[0].dtype
    work, (xt, wt) = d.compute, (v.type for v in node.operands)
    c, *taps = cx.axes(wt.shape[1], *wt.shape[2:])
    per_group = cx.dim(wt.shape[0] // a["groups"])
    sizes = cx.dims(xt.shape[2:])

    def element(n: Expr, o: Expr, *p: Expr) -> Expr:
        place = [
            q * s + t.var * dl - lo
            for q, t, s, (lo, _), dl in zip(p, taps, a["stride"], a["padding"], a["dilation"], strict=True)
        ]
        channel = c.var if a["groups"] == 1 else tirx.floordiv(o, per_group) * cx.dim(wt.shape[1]) + c.var
        value = cast(x(n, channel, *place), d, work)
        if any(p != (0, 0) for p in a["padding"]):
            inside = [t for q, m in zip(place, sizes, strict=True) for t in (q >= 0, q < m)]
            value = tirx.if_then_else(every(inside), value, const(0, work))
        return te.sum(value * cast(w(o, c.var, *(t.var for t in taps)), d, work), axis=[c, *taps])

    return _rounded(cx, node, cx.compute(node.types[0].shape, element), work)


@emits("conv_transpose")
def conv_transpose(cx: Cx, node: Node, x: Tensor, w: Tensor) -> Tensor:
    """Each result gathers the taps that reach it."""
    a, d = node.attrs, node.types[0].dtype
    work, (xt, wt) = d.compute, (v.type for v in node.operands)
    per_group = wt.shape[0] // a["groups"]
    c, *taps = cx.axes(per_group, *wt.shape[2:])
    sizes, outs = cx.dims(xt.shape[2:]), cx.dim(wt.shape[1])

    def element(n: Expr, o: Expr, *p: Expr) -> Expr:
        inside: list[Expr] = []
        place: list[Expr] = []
        for q, t, s, (lo, _), dl, m in zip(p, taps, a["stride"], a["padding"], a["dilation"], sizes, strict=True):
            far, step = q + lo - t.var * dl, tirx.const(s, "int64")
            at_ = tirx.floordiv(far, step)
            inside += [far >= 0, tirx.floormod(far, step) == 0, at_ < m]
            place.append(at_)
        channel = tirx.floordiv(o, outs) * cx.dim(per_group) + c.var
        value = tirx.if_then_else(every(inside), cast(x(n, channel, *place), d, work), const(0, work))
        weight = cast(w(channel, tirx.floormod(o, outs), *(t.var for t in taps)), d, work)
        return te.sum(value * weight, axis=[c, *taps])

    return _rounded(cx, node, cx.compute(node.types[0].shape, element), work)


def _windows(cx: Cx, node: Node, p: Sequence[Expr], taps: Sequence[Any], dilation: Any) -> tuple[list[Expr], Expr]:
    """Where the taps of the window at ``p`` lie, and whether that is inside the image."""
    a, sizes = node.attrs, cx.dims(node.operands[0].shape[2:])
    place = [
        q * s + t.var * dl - lo
        for q, t, s, (lo, _), dl in zip(p, taps, a["stride"], a["padding"], dilation, strict=True)
    ]
    return place, every([c for q, m in zip(place, sizes, strict=True) for c in (q >= 0, q < m)])


@emits("max_pool", unless=lambda n: "the places of the maxima" if n.attrs["indices"] else None)
def max_pool(cx: Cx, node: Node, x: Tensor) -> Tensor:
    d = node.types[0].dtype
    work, taps = d.compute, cx.axes(*node.attrs["kernel"])

    def element(n: Expr, c: Expr, *p: Expr) -> Expr:
        place, inside = _windows(cx, node, p, taps, node.attrs["dilation"])
        value = tirx.if_then_else(inside, cast(x(n, c, *place), d, work), const(least(work), work))
        return reducer("max", work)(value, axis=taps)

    return _rounded(cx, node, cx.compute(node.types[0].shape, element), work)


@emits("avg_pool", unless=lambda n: f"means of {n.types[0].dtype}" if n.types[0].dtype.is_int else None)
def avg_pool(cx: Cx, node: Node, x: Tensor) -> Tensor:
    a, d, shape = node.attrs, node.types[0].dtype, node.types[0].shape
    work, taps, one = d.compute, cx.axes(*a["kernel"]), (1,) * len(a["kernel"])

    def element(n: Expr, c: Expr, *p: Expr) -> Expr:
        place, inside = _windows(cx, node, p, taps, one)
        return te.sum(tirx.if_then_else(inside, cast(x(n, c, *place), d, work), const(0, work)), axis=taps)

    total = cx.compute(shape, element)

    def count(p: Sequence[Expr]) -> Expr:
        if a["divisor"]:
            return tirx.const(a["divisor"], "int64")
        out, zero = tirx.const(1, "int64"), tirx.const(0, "int64")
        sizes = cx.dims(node.operands[0].shape[2:])
        for q, k, s, (lo, hi), n in zip(p, a["kernel"], a["stride"], a["padding"], sizes, strict=True):
            start = q * s - lo
            stop = start + k
            if a["count_include_pad"]:
                out = out * (tirx.min(stop, n + hi) - start)
            else:
                out = out * (tirx.min(stop, n) - tirx.max(start, zero))
        return tirx.max(out, tirx.const(1, "int64"))

    return cx.compute(shape, lambda *i: cast(total(*i) / cast(count(i[2:]), DType.i64, work), work, d))
