"""Pooling: the result's order in memory follows the operand's."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir.dims import Dim
from ....ir.graph import Node
from . import Lowering, lowers
from .conv import channels_last


def _three(values: Sequence[Dim], fill: int) -> list[Dim]:
    return [fill] * (3 - len(values)) + list(values)


@lowers("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
def lower_pool(cx: Lowering, node: Node) -> None:
    a = node.attrs
    x = cx.strided(node.operands[0])
    order = channels_last(x.rank) if x.strides[1] == 1 and x.shape[1] != 1 else None
    outs = [cx.out(node, i, order=order) for i in range(len(node.types))]
    is_max, adaptive = "max" in node.op, "adaptive" in node.op
    nd = x.rank - 2
    one, none = (1,) * nd, ((0, 0),) * nd
    padding = a.get("padding", none)
    attrs: list[Dim] = [int(is_max), int(adaptive), int(a.get("count_include_pad", False)), a.get("divisor", 0)]
    kernel = [
        min(k, max(1, n + sum(p))) if isinstance(n, int) and d == 1 else k  # what lies beyond the padding is no work
        for k, n, p, d in zip(a.get("kernel", one), x.shape[2:], padding, a.get("dilation", one), strict=True)
    ]
    attrs += _three(kernel, 1) + _three(a.get("stride", one), 1)
    attrs += _three([p[0] for p in padding], 0) + _three([p[1] for p in padding], 0)
    attrs += _three(a.get("dilation", one), 1) + _three(outs[0].shape[2:], 1)
    cx.call(f"effc_pool_{x.dtype}", [x], outs, attrs)
