"""Padding moves into the convolution that reads it: the kernels treat borders themselves, so no padded copy is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir.dims import SymExpr
from ..ir.graph import Builder, Graph, Node, Value
from .manager import Pass, PassReport, in_subgraphs


@dataclass(frozen=True)
class FoldPads(Pass):
    """``conv(pad(x, 0))`` becomes a convolution with more padding. Exact: the same zeros are multiplied."""

    name: ClassVar[str] = "fold_pads"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
            if n.op != "conv" or ins[0] is None or ins[0].node.op != "pad":
                return None
            pad = ins[0].node
            reason = self.why_not(pad)
            if reason is not None:
                report.decline(self.name, reason, n)
                return None
            spatial = pad.attrs["padding"][2:]
            both = tuple((lo + pl, hi + ph) for (lo, hi), (pl, ph) in zip(n.attrs["padding"], spatial, strict=True))
            report.count("fold_pads.conv")
            made = b.node("conv", [pad.inputs[0], *ins[1:]], {**n.attrs, "padding": both}, n.loc, n.name)
            return made.values

        return graph.rebuild(rule)

    @staticmethod
    def why_not(pad: Node) -> str | None:
        """Why this pad cannot be a convolution's own padding, or None."""
        if pad.attrs["mode"] != "constant" or pad.attrs["value"] != 0:
            return f"padding of mode {pad.attrs['mode']} is not zeros"
        pairs = pad.attrs["padding"]
        if any(p != (0, 0) for p in map(tuple, pairs[:2])):
            return "batch or channels are padded"
        for lo, hi in pairs[2:]:
            if any(not isinstance(p, SymExpr) and p < 0 for p in (lo, hi)):
                return "negative padding crops"
            if any(isinstance(p, SymExpr) for p in (lo, hi)):
                return "the padding is not constant, and may crop"
        return None
