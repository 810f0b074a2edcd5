"""Running sums, extrema and recurrences. Kernels: cumulative.cpp."""

from __future__ import annotations

from ....ir import dims
from ....ir.graph import Node
from . import Lowering, lowers
from .movement import own_storage

LINE = 16384  # block of a long line (kLine)


@lowers("cumsum", "cumprod")
def lower_sums(cx: Lowering, node: Node) -> None:
    x, dim = cx.dense(node.operands[0]), node.attrs["dim"]
    scratch = dims.ceildiv(x.shape[dim], LINE) * 16
    cx.call(f"effc_{node.op}", [x], [cx.out(node)], attrs=[dim], scratch=scratch, inplace=[(0, 0)])


@lowers("cummax", "cummin")
def lower_extrema(cx: Lowering, node: Node) -> None:
    x = cx.dense(node.operands[0])
    cx.call(f"effc_{node.op}", [x], [cx.out(node, 0), cx.out(node, 1)], attrs=[node.attrs["dim"]], inplace=[(0, 0)])


@lowers("logcumsumexp")
def lower_logcumsumexp(cx: Lowering, node: Node) -> None:
    cx.call(
        "effc_logcumsumexp", [cx.dense(node.operands[0])], [cx.out(node)], attrs=[node.attrs["dim"]], inplace=[(0, 0)]
    )


@lowers("linear_recurrence")
def lower_linear_recurrence(cx: Lowering, node: Node) -> None:
    ins = [None if v is None else cx.dense(v) for v in (*node.inputs, None)[:3]]
    inplace = [(0, 1)] if own_storage([ins[1], ins[0], ins[2]]) else []
    cx.call(
        "effc_linear_recurrence",
        ins,
        [cx.out(node)],
        attrs=[node.attrs["dim"], int(node.attrs["reverse"])],
        inplace=inplace,
    )
