"""Reductions and running sums."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Node
from ....ir.ops.reduce import reduced_shape
from ..context import Cx, Ref, Refuse
from . import emits


@emits("reduce")
def reduce(cx: Cx, node: Node, x: Ref) -> Any:
    a, out = node.attrs, node.types[0]
    kind, dims, keep = a["kind"], list(a["dims"]), a["keepdims"]
    if kind in ("argmax", "argmin"):
        return cx.aten(kind, x, dims[0], keep, out=out)
    if not dims:  # to ATen no dims are all of them
        return x
    if kind == "sum":
        return cx.aten("sum.dim_IntList", x, dims, keep, dtype=x.dtype, out=out)
    if kind in ("max", "min"):
        return cx.aten(f"a{kind}", x, dims, keep, out=out)
    for d in sorted(dims, reverse=True):  # these take one dim at a time
        t = x.type.with_shape(reduced_shape(x.shape, (d,), keep))
        if kind == "prod":
            x = cx.aten("prod.dim_int", x, d, keep, dtype=x.dtype, out=t)
        else:
            x = cx.aten(f"{kind}.dim", x, d, keep, out=t)
    return x


@emits("cumsum", "cumprod")
def cumulative(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten(node.op, x, node.attrs["dim"], dtype=x.dtype, out=node.types[0])


@emits("logcumsumexp")
def logcumsumexp(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten("logcumsumexp", x, node.attrs["dim"], out=node.types[0])


@emits("cummax", "cummin")
def running_extreme(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten(node.op, x, node.attrs["dim"], out=node.types)


@emits("linear_recurrence")
def linear_recurrence(cx: Cx, node: Node, a: Ref, x: Ref, init: Ref | None = None) -> Any:
    """By doubling: after step k, each place holds the combination of the 2^k steps that end there."""
    dim, reverse = node.attrs["dim"], node.attrs["reverse"]
    n = x.shape[dim]
    if not isinstance(n, int):
        raise Refuse("a recurrence over a size that is not constant")
    a = cx.broadcast(a, x.shape)
    if reverse:
        a, x = cx.flip(a, [dim]), cx.flip(x, [dim])
    if init is not None and n > 0:
        first = cx.reshape(init, (*x.shape[:dim], 1, *x.shape[dim + 1 :]))
        begin = cx.binary("mul.Tensor", cx.slice(a, dim, 0, 1), first)
        begin = cx.aten("add.Tensor", cx.slice(x, dim, 0, 1), begin, out=begin.type)
        x = cx.cat([begin, cx.slice(x, dim, 1, n)], dim) if n > 1 else begin
    k = 1
    while k < n:
        late, rate = cx.slice(x, dim, k, n), cx.slice(a, dim, k, n)
        carried = cx.binary("mul.Tensor", rate, cx.slice(x, dim, 0, n - k))
        x = cx.cat([cx.slice(x, dim, 0, k), cx.aten("add.Tensor", late, carried, out=late.type)], dim)
        if 2 * k < n:
            a = cx.cat([cx.slice(a, dim, 0, k), cx.binary("mul.Tensor", rate, cx.slice(a, dim, 0, n - k))], dim)
        k *= 2
    return cx.flip(x, [dim]) if reverse else x
