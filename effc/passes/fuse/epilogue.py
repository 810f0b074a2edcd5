"""Contractions take the elementwise ops that follow them as an epilogue: ``matmul`` -> ``matmul_fused``, ``conv`` ->
``conv_fused``.

The epilogue is the largest set of elementwise nodes that (with the contraction) has one result and no user of anything
else in it: then no operand from outside can depend on the contraction, and the fused node can stand where the last of
them stood.

Between quantized layers, bytes are what is written and read: an epilogue ends where its result is a byte, though
elementwise users make a float of it, and one that reads such a float makes it of the byte itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...ir.dtypes import DType
from ...ir.graph import Builder, Graph, GraphCopy, Node, Value
from ...ir.op import OPS, get
from ..manager import Pass, PassReport, in_subgraphs
from .kinds import is_map, is_scalar
from .regions import body_of, fits_in

FUSED = {
    "matmul": "matmul_fused", "conv": "conv_fused", "conv_transpose": "conv_fused", "qmatmul": "qmatmul_fused",
    "qconv": "qconv_fused",
}  # fmt: skip
QUANTIZED = ("qmatmul", "qconv")
BYTES = (DType.u8, DType.i8)


@dataclass(frozen=True)
class FuseEpilogues(Pass):
    """Forms epilogues. Limits: extra operands and nodes of one."""

    name: ClassVar[str] = "fuse_epilogues"
    max_extras: int = 8
    max_nodes: int = 32

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        get("add")
        uses = graph.uses()
        position = {id(n): i for i, n in enumerate(graph.nodes)}
        taken: set[int] = set()
        plan: dict[int, tuple[Node, list[Node]]] = {}  # by the last node: contraction, its epilogue in order
        for n in graph.nodes:
            if n.op not in FUSED or FUSED[n.op] not in OPS:
                continue
            if n.op not in QUANTIZED and n.types[0].dtype.compute not in (DType.f32, DType.f64):
                report.decline(self.name, f"no epilogues on {n.types[0].dtype} contractions", n)
                continue
            chain, reason = self.chain(n, uses, position, taken)
            if chain:
                plan[id(chain[-1])] = (n, chain)
                taken.update(id(m) for m in chain)
                taken.add(id(n))
            elif reason:
                report.decline(self.name, reason, n)
        if not plan:
            return graph
        skip = {id(m) for n, chain in plan.values() for m in (n, *chain[:-1])}
        for key, (n, chain) in plan.items():
            if n.op in QUANTIZED:
                plan[key] = (n, self.from_bytes(n, chain, skip, position, report))
        copy = GraphCopy(graph)
        for n in graph.nodes:
            if id(n) in skip:
                continue
            if id(n) in plan:
                copy.values[n[0]] = self.fused(copy.builder, *plan[id(n)], copy.values)
                report.count(f"{self.name}.{plan[id(n)][0].op}")
                report.count(f"{self.name}.nodes", len(plan[id(n)][1]))
                continue
            copy.keep(n)
        return copy.graph()

    def chain(
        self, n: Node, uses: Mapping[Value, list[Node | None]], position: Mapping[int, int], taken: set[int]
    ) -> tuple[list[Node], str | None]:
        """The epilogue of ``n`` in topological order, empty with a reason where there is none."""
        shape = n.types[0].shape
        after: dict[int, Node] = {}
        todo = [n]
        reason: str | None = None
        while todo and len(after) < 4 * self.max_nodes:
            for u in uses.get(todo.pop()[0], []):
                if u is None or id(u) in after or id(u) in taken:
                    continue
                if not is_map(u) or get(u.op).level != "core":
                    reason = f"its user {u.op} is not elementwise"
                elif u.types[0].shape != shape:
                    reason = "its user has another shape"
                else:
                    after[id(u)] = u
                    todo.append(u)
        for last in sorted(after.values(), key=lambda m: -position[id(m)]):
            inside = _between(n, last, after)
            chain = sorted(inside.values(), key=lambda m: position[id(m)])
            if any(u is None or (id(u) not in inside) for m in (n, *chain[:-1]) for u in uses[m[0]]):
                reason = "a value between it and the end is used elsewhere"
                continue
            if n.op in QUANTIZED and _ends_in_float(last, inside, uses):
                continue
            if len(chain) > self.max_nodes:
                reason = "the epilogue would have too many nodes"
                continue
            extras = _extras(n, chain)
            if len(extras) > self.max_extras:
                reason = "the epilogue would have too many operands"
                continue
            if not all(fits_in(v.shape, shape) for v in extras):
                reason = "an operand does not broadcast to the result"
                continue
            return chain, None
        return [], reason

    def from_bytes(
        self, n: Node, chain: list[Node], skip: set[int], position: Mapping[int, int], report: PassReport
    ) -> list[Node]:
        """The epilogue, which computes operands from outside that are made of bytes itself."""
        more: dict[int, Node] = {}
        for v in _extras(n, chain):
            found = _made_of_bytes(v)
            if found is not None and id(found[0].node) not in skip:
                more.update((id(m), m) for m in found[1])
                report.count(f"{self.name}.from_bytes")
        return sorted([*more.values(), *chain], key=lambda m: position[id(m)])

    def fused(self, b: Builder, n: Node, chain: Sequence[Node], env: Mapping[Value, Value]) -> Value:
        extras = _extras(n, chain)
        body = body_of(chain, [n[0], *extras], [chain[-1][0]], ["acc"])
        attrs: dict[str, Any] = {**n.attrs, "body": body}
        loc = n.loc or chain[-1].loc
        made = b.node(FUSED[n.op], [*(env[v] for v in n.operands), *(env[v] for v in extras)], attrs, loc, n.name)
        return made[0]


def _between(n: Node, last: Node, after: Mapping[int, Node]) -> dict[int, Node]:
    """The nodes on paths from ``n`` to ``last``, ``last`` included and ``n`` not."""
    out = {id(last): last}
    todo = [last]
    while todo:
        for v in todo.pop().operands:
            if id(v.node) in after and id(v.node) not in out:
                out[id(v.node)] = v.node
                todo.append(v.node)
    return out


def _made_of_bytes(v: Value) -> tuple[Value, list[Node]] | None:
    """The bytes of which ``v``, of another type, is made by conversions and ops with scalars, and the nodes that do it,
    (byte - zero) * scale above all."""
    nodes: list[Node] = []
    shape = v.shape
    while v.dtype not in BYTES:
        n = v.node
        wider = [x for x in n.operands if not is_scalar(x)]
        if n.op not in ("convert", "sub", "mul") or len(wider) != 1 or wider[0].shape != shape:
            return None
        nodes.append(n)
        v = wider[0]
    return (v, nodes[::-1]) if nodes else None


def _ends_in_float(last: Node, inside: Mapping[int, Node], uses: Mapping[Value, list[Node | None]]) -> bool:
    """Whether an epilogue's result is made of bytes that are made in it, and users can make it of them as well."""
    found = _made_of_bytes(last[0])
    if found is None or id(found[0].node) not in inside:
        return False
    return all(u is not None and is_map(u) for u in uses[last[0]])


def _extras(n: Node, chain: Sequence[Node]) -> list[Value]:
    inside = {id(n), *(id(m) for m in chain)}
    out: dict[Value, None] = {}
    for m in chain:
        for v in m.operands:
            if id(v.node) not in inside and not is_scalar(v):
                out[v] = None
    return list(out)
