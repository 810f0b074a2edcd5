"""Data movement: concatenation, fills, triangles, scatters into views. Kernels: copy.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dims
from ....ir.dims import Dim, SymExpr
from ....ir.graph import Node
from ....runtime.errors import EffcError
from . import Buf, Lowering, lowers, row_major
from .views import broadcast


def own_storage(bufs: Sequence[Buf | None]) -> list[tuple[int, int]]:
    """In-place pair (output 0, operand 0), unless another operand looks at the same storage: a scatter reads its other
    operands while it writes."""
    first = bufs[0]
    assert first is not None
    return [] if any(b is not None and b.root == first.root for b in bufs[1:]) else [(0, 0)]


@lowers("copy")
def lower_copy(cx: Lowering, node: Node) -> None:
    cx.call("effc_copy", [cx.strided(node.operands[0])], [cx.out(node)])


@lowers("concat")
def lower_concat(cx: Lowering, node: Node) -> None:
    xs = [cx.strided(v) for v in node.operands]
    orders = {x.order for x in xs}
    out = cx.out(node, order=orders.pop() if len(orders) == 1 else None)
    cx.call("effc_concat", xs, [out], attrs=[node.attrs["dim"]])


def _whole(v: Any) -> bool:
    return isinstance(v, (int, np.integer, SymExpr)) and not isinstance(v, bool)


@lowers("iota")
def lower_iota(cx: Lowering, node: Node) -> None:
    start, step, dim = node.attrs["start"], node.attrs["step"], node.attrs["dim"]
    out = cx.out(node)
    if _whole(start) and _whole(step):
        cx.call("effc_iota", [], [out], attrs=[dim, start, step, 0])
    elif isinstance(start, SymExpr) or isinstance(step, SymExpr):
        raise EffcError("iota: a symbolic start or step needs the other to be an integer", op="iota", loc=node.loc)
    else:
        cx.call("effc_iota", [], [out], attrs=[dim, 0, 0, 1], fattrs=[float(start), float(step)])


@lowers("full")
def lower_full(cx: Lowering, node: Node) -> None:
    """A fill is its value seen with zero strides; whoever needs it dense makes the copy."""
    t = node.types[0]
    value = node.attrs["value"]
    if node.operands:
        one = cx.strided(node.operands[0])
    elif isinstance(value, SymExpr):
        one = cx.temp(t.dtype, ())
        cx.call("effc_fill_int", [], [one], attrs=[value])
    else:
        one = cx.const(np.asarray(value).astype(t.dtype.np), t.dtype)
    cx.bind(node, broadcast(cx, one, t.shape))


@lowers("tril", "triu")
def lower_triangle(cx: Lowering, node: Node) -> None:
    x = cx.dense(node.operands[0])
    cx.call("effc_triangle", [x], [cx.out(node)], attrs=[node.op == "triu", node.attrs["diagonal"]], inplace=[(0, 0)])


def _copy_into(cx: Lowering, node: Node, offset: Dim, strides: Sequence[Dim]) -> None:
    x, src = cx.dense(node.operands[0]), cx.strided(node.operands[1])
    cx.call("effc_copy_into", [x, src], [cx.out(node)], attrs=[offset, *strides], inplace=own_storage([x, src]))


@lowers("slice_scatter")
def lower_slice_scatter(cx: Lowering, node: Node) -> None:
    strides = row_major(node.types[0].shape)
    offset: Dim = 0
    for start, s in zip(node.attrs["starts"], strides, strict=True):
        offset = offset + s * start
    _copy_into(cx, node, offset, [s * k for s, k in zip(strides, node.attrs["steps"], strict=True)])


@lowers("select_scatter")
def lower_select_scatter(cx: Lowering, node: Node) -> None:
    strides, dim = row_major(node.types[0].shape), node.attrs["dim"]
    _copy_into(cx, node, strides[dim] * node.attrs["index"], strides[:dim] + strides[dim + 1 :])


@lowers("diagonal_scatter")
def lower_diagonal_scatter(cx: Lowering, node: Node) -> None:
    strides = row_major(node.types[0].shape)
    offset, a, b = node.attrs["offset"], node.attrs["dim1"], node.attrs["dim2"]
    start = strides[a] * dims.maximum(-offset, 0) + strides[b] * dims.maximum(offset, 0)
    _copy_into(cx, node, start, [s for i, s in enumerate(strides) if i not in (a, b)] + [strides[a] + strides[b]])


@lowers("as_strided_scatter")
def lower_as_strided_scatter(cx: Lowering, node: Node) -> None:
    _copy_into(cx, node, node.attrs["offset"], node.attrs["strides"])
