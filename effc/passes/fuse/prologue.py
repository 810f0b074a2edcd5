"""Attention computes elementwise ops on its queries (rotary embeddings, scales, biases), as it loads
them:
``attention`` -> ``attention_fused``.

Each row of queries is loaded once, by the task that multiplies it. Keys stay as they are: every block of queries reads
all of them and would compute them again, and a cache keeps them as they are after these ops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import OPS
from ..manager import Pass, PassReport, in_subgraphs
from .kinds import DEAR, is_map, is_scalar
from .regions import body_of
from .views import view_of


@dataclass(frozen=True)
class FusePrologues(Pass):
    """Forms ``attention_fused``. Limit: operands of a prologue."""

    name: ClassVar[str] = "fuse_prologues"
    max_operands: int = 8

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        if "attention_fused" not in OPS:
            return graph
        uses = graph.uses()

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
            if n.op != "attention":
                return None
            maker, views = _made_by(n.operands[0])
            if not (maker.op == "fused" or is_map(maker)):
                if maker.op == "concat":
                    report.decline(self.name, "its queries are put together of parts", maker)
                return None
            reason = self.why_not(n, maker, views, uses)
            if reason is not None:
                report.decline(self.name, reason, maker)
                return None
            q = ins[0]
            assert q is not None
            new, _ = _made_by(q)  # as the rebuilt graph has it
            b.loc = n.loc
            body, operands = _seen_through(b, new, views)
            mask = ins[3:4] if len(ins) > 3 and ins[3] is not None else ()
            report.count(f"{self.name}.formed")
            made = b.node(
                "attention_fused", [ins[1], ins[2], *mask, *operands],
                {**n.attrs, "body": body, "masked": bool(mask)}, n.loc, n.name,
            )  # fmt: skip
            return made[0]

        return graph.rebuild(rule)

    def why_not(self, n: Node, maker: Node, views: list[Node], uses: Mapping[Value, list[Node | None]]) -> str | None:
        """Why these ops cannot be the prologue of ``n``, or None."""
        for v in (n.operands[0], *(x.operands[0] for x in views)):
            if len(uses[v]) > 1:
                return "something else reads the queries too"
        nodes = maker.attrs["body"].nodes if maker.op == "fused" else (maker,)
        if len(maker.types) > 1:
            return "it has another result"
        for m in nodes:
            if m.op == "reduce":
                return "it reduces, which a prologue does not"
            if m.op == "take":
                return "it looks up rows, which a prologue does not"
            if m.op in DEAR:
                return f"{m.op} is dear, and parts of the keys would compute it again"
        if len(maker.operands) > self.max_operands:
            return "the prologue would have too many operands"
        return None


def _made_by(q: Value) -> tuple[Node, list[Node]]:
    """The node that makes q [B, H, L, E], and the views after it, last first: reshapes that make E of several dims, and
    permutations of the dims before it."""
    views: list[Node] = []
    v = q
    while True:
        n = v.node
        if n.op == "reshape" and n.operands[0].rank >= v.rank and n.operands[0].shape[: v.rank - 1] == v.shape[:-1]:
            pass
        elif n.op == "permute" and v.rank == 4 and n.attrs["dims"][3:] == (3,):
            pass
        else:
            return n, views
        views.append(n)
        v = n.operands[0]


def _seen_through(b: Builder, maker: Node, views: list[Node]) -> tuple[Graph, list[Value]]:
    """The body that makes what ``views`` show of the maker's result, but for reshapes, and its operands."""
    if maker.op == "fused":
        body, operands = maker.attrs["body"], list(maker.operands)
    else:
        operands = list(dict.fromkeys(v for v in maker.operands if not is_scalar(v)))
        body = body_of([maker], operands, [maker[0]])
    permutes = [n for n in reversed(views) if n.op == "permute"]
    if not permutes:
        return body, operands
    for n in permutes:
        shape = body.outputs[0].shape
        order = (*n.attrs["dims"][:3], *range(3, len(shape)))
        shown = Node("permute", (body.outputs[0],), {**n.attrs, "dims": order}, (), n.loc)
        operands = [view_of(b, shown, v, shape) for v in operands]
        body = retyped(body, operands)
    return body, operands


def retyped(body: Graph, operands: list[Value]) -> Graph:
    """The body on operands of other shapes."""
    b = Builder()
    env: dict[Value, Value] = {}
    for n, v in zip(body.inputs, operands, strict=True):
        env[n[0]] = b.input(n.name, v.type)
    for n in body.nodes:
        if not n.operands:
            b.nodes.append(n)
            env[n[0]] = n[0]
            continue
        env[n[0]] = b.op(n.op, *(env[v] for v in n.operands), loc=n.loc, name=n.name, **n.attrs)
    return b.graph([env[v] for v in body.outputs])
