"""Decomposes what a backend does not run itself, so that later passes (fusion above all) see the simpler ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir.graph import Builder, Graph, Node, Value
from ..ir.op import get
from .manager import Pass, PassReport, in_subgraphs


def everything_core(op: str) -> bool:
    """The default notion of what a backend runs: core ops."""
    return get(op).level == "core"


@dataclass(frozen=True)
class Legalise(Pass):
    """Replaces nodes for whose op ``native`` is False by their decomposition, again and again until none is left that
    has one."""

    name: ClassVar[str] = "legalise"
    native: Callable[[str], bool] = everything_core

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
            definition = get(n.op)
            if n.op == "fused" or definition.decompose is None or self.native(n.op):
                return None
            report.count(f"legalise.{n.op}")
            return self.expand(b, n, ins)

        return graph.rebuild(rule)

    def expand(self, b: Builder, n: Node, ins: Sequence[Value | None]) -> tuple[Value, ...]:
        """The decomposition of ``n`` over ``ins``, its own nodes legalised too, every node at ``n``'s source line."""
        definition = get(n.op)
        assert definition.decompose is not None
        inner = Builder(b.symbols)
        inner.loc = n.loc
        out = definition.decompose(inner, *ins, **n.attrs)
        outs = (out,) if isinstance(out, Value) else tuple(out)
        env: dict[Value, Value] = {}
        for m in inner.nodes:
            args = tuple(None if v is None else env.get(v, v) for v in m.inputs)
            if get(m.op).decompose is not None and m.op != "fused" and not self.native(m.op):
                made = self.expand(b, m, args)
            else:
                new = m if args == m.inputs else Node(m.op, args, m.attrs, m.types, m.loc, m.name)
                b.nodes.append(new)
                made = new.values
            env.update(zip(m.values, made, strict=True))
        return tuple(env.get(v, v) for v in outs)
