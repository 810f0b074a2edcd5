"""Rotary embeddings: concat(-x2, x1) of the halves of x becomes a flipped view, so that x*cos + rotate_half(x)*sin is
one loop.

With x seen as [..., 2, h], concat(-x2, x1) is flip(x, -2) * [[-1], [1]]. The reshape back to [..., 2h] then moves
behind the elementwise ops that follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir.dims import Dim
from ..ir.graph import Builder, Graph, Node, Value
from .fuse.kinds import is_map
from .fuse.views import split_last
from .manager import Pass, PassReport, in_subgraphs


@dataclass(frozen=True)
class RotateHalf(Pass):
    """Rewrites rotate_half and moves its reshape behind elementwise consumers."""

    name: ClassVar[str] = "rotate_half"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        split: set[Value] = set()  # values of rank r + 1 whose last two dims were one

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Any:
            b.loc = n.loc
            if n.op == "concat" and len(ins) == 2 and n.attrs["dim"] == n.types[0].rank - 1:
                return self.rotated(b, n, ins, split, report)
            return self.sunk(b, n, ins, split, report) if is_map(n) else None

        return graph.rebuild(rule)

    def rotated(
        self, b: Builder, n: Node, ins: tuple[Value | None, ...], split: set[Value], report: PassReport
    ) -> Value | None:
        first, second = ins
        if first is None or second is None or first.node.op != "neg" or not first.dtype.is_float:
            return None
        whole = _halves(first.node.operands[0], second)
        if whole is None:
            return None
        y, low, high = whole
        h = second.shape[-1]
        if not isinstance(h, int) or h < 2:
            report.decline(self.name, "the halves have no constant size", n)
            return None
        a = second.node.attrs
        x = y
        if y.shape[-1] != 2 * h:
            x = b.op("slice", y, starts=(*a["starts"][:-1], low), stops=(*a["stops"][:-1], high), steps=a["steps"])
        elif second.shape[:-1] != y.shape[:-1]:
            x = b.op("slice", y, starts=(*a["starts"][:-1], 0), stops=(*a["stops"][:-1], 2 * h), steps=a["steps"])
        pairs = b.op("reshape", x, shape=(*x.shape[:-1], 2, h))
        sign = b.constant(np.array([[-1], [1]]).astype(x.dtype.np), x.dtype)
        out: Value = b.op("mul", b.op("flip", pairs, dims=(x.rank - 1,)), sign)
        split.add(out)
        report.count(f"{self.name}.rotated")
        merged: Value = b.op("reshape", out, shape=n.types[0].shape)
        return merged

    def sunk(
        self, b: Builder, n: Node, ins: tuple[Value | None, ...], split: set[Value], report: PassReport
    ) -> Value | None:
        shape = n.types[0].shape
        for v in ins:
            if v is None or v.node.op != "reshape" or v.shape != shape or v.node.operands[0] not in split:
                continue
            two, h = v.node.operands[0].shape[-2:]
            args = [None if x is None else split_last(b, x, two, h) for x in ins]
            out: Value = b.op(n.op, *args, name=n.name, **n.attrs)
            if out.shape != v.node.operands[0].shape:
                continue
            split.add(out)
            report.count(f"{self.name}.sunk")
            merged: Value = b.op("reshape", out, shape=shape)
            return merged
        return None


def _halves(upper: Value, lower: Value) -> tuple[Value, Dim, Dim] | None:
    """(y, p, p + 2h) when ``lower`` is y[..., p:p+h] and ``upper`` y[..., p+h:p+2h]."""
    u, w = upper.node, lower.node
    if u.op != "slice" or w.op != "slice" or u.operands[0] != w.operands[0] or upper.shape != lower.shape:
        return None
    a, c = u.attrs, w.attrs
    if a["steps"] != c["steps"] or a["steps"][-1] != 1:
        return None
    if a["starts"][:-1] != c["starts"][:-1] or a["stops"][:-1] != c["stops"][:-1] or a["starts"][-1] != c["stops"][-1]:
        return None
    return u.operands[0], c["starts"][-1], a["stops"][-1]
