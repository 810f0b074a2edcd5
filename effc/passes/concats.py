"""Concatenations that repeat operands of an earlier one read its result: concat(a, b, c) -> concat(concat(a, b), c).

Layers that read all before them (DenseNet) join a list that grows by one. Each join then has its predecessor among its
operands, so that all of them can be made inside the last, and nothing is copied (``backends/cpu/lower/concat.py``);
where they are copied, the bytes are the same, in fewer runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..ir.graph import Builder, Graph, Node, Value
from .manager import Pass, PassReport, in_subgraphs


@dataclass(frozen=True)
class ShareConcats(Pass):
    """Of several earlier concatenations whose operands a later one has side by side, the longest is taken."""

    name: ClassVar[str] = "share_concats"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        earlier: dict[tuple[int, Value], list[tuple[tuple[Value, ...], Value]]] = {}  # by dim and first operand

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Any:
            if n.op != "concat" or len(ins) < 2:
                return None
            d, parts = n.attrs["dim"], [v for v in ins if v is not None]
            whole = tuple(parts)
            at = 0
            while at < len(parts):
                found = [
                    (len(operands), result)
                    for operands, result in earlier.get((d, parts[at]), ())
                    if len(operands) < len(whole) and tuple(parts[at : at + len(operands)]) == operands
                ]
                if found:
                    count, result = max(found, key=lambda f: f[0])
                    parts[at : at + count] = [result]
                    report.count(f"{self.name}.shared")
                at += 1
            kept = n if ins == n.inputs and len(parts) == len(ins) else replace(n, inputs=tuple(parts))
            b.nodes.append(kept)
            earlier.setdefault((d, whole[0]), []).append((whole, kept[0]))
            return kept[0]

        return graph.rebuild(rule)
