"""Forms ``fused`` regions: elementwise ops and reductions that one generated loop nest computes.

Rows of a table that an index chooses (``take``) are an operand of a region: they are looked up where they are read.

Two forms. A *map*: all results have one shape, to which every value broadcasts. *Rows*: every reduction reduces the
same dims of values of one full shape and keeps them as ones; results have the full or the reduced shape. Regions grow
greedily from a consumer back to its producers (McKinley et al. call the legality condition "fusion preserving": no path
leaves a region and comes back).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.dims import Dim
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import broadcast_shapes
from ..manager import Pass, PassReport, in_subgraphs
from ..rewrite import is_one
from .groups import Groups, Made
from .kinds import DEAR, fusible, is_lookup, is_map, is_reduction, is_scalar, why_no_lookup


@dataclass(frozen=True)
class FuseRegions(Pass):
    """Greedy producer-consumer fusion. Limits: operands, nodes and results of a region, ops computed again per
    element. ``lookups``: rows of tables are looked up within regions; a table that may stream is read by itself."""

    name: ClassVar[str] = "fuse_regions"
    max_operands: int = 12
    max_nodes: int = 96
    max_results: int = 4
    max_recomputed: int = 8
    lookups: bool = True

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        plan = _Plan(graph, self)
        plan.form()
        out = plan.build(report)
        plan.explain(report)
        return out


Shape = tuple[Dim, ...]


def fits_in(small: Shape, full: Shape) -> bool:
    """Broadcasts to ``full`` without making it larger, dims equal by form."""
    pad = len(full) - len(small)
    return pad >= 0 and all(d == full[pad + i] or is_one(d) for i, d in enumerate(small))


def reduced(full: Shape, dims: Iterable[int]) -> Shape:
    inside = set(dims)
    return tuple(1 if i in inside else d for i, d in enumerate(full))


class _Plan(Groups):
    def __init__(self, graph: Graph, limits: FuseRegions) -> None:
        super().__init__(graph)
        self.limits = limits
        self.can = [
            (limits.lookups and is_lookup(n)) or (fusible(n) and (not is_reduction(n) or n.attrs["keepdims"]))
            for n in self.nodes
        ]

    def sources(self, region: Iterable[int]) -> set[int]:
        """The nodes that make what the region reads element by element: not tables and indices."""
        return {
            self.index.get(id(v.node), -1) for i in region if self.nodes[i].op != "take" for v in self.nodes[i].operands
        }

    # Formation

    def form(self) -> None:
        for seed in range(len(self.nodes) - 1, -1, -1):
            if not self.can[seed] or self.group[seed] >= 0:
                continue
            region = {seed}
            changed = True
            while changed:
                changed = False
                for p in self.candidates(region):
                    for more in ({p}, self.row_chain(p)):
                        if p not in region and self.why_not(region, more) is None:
                            region |= more
                            changed = True
            self.join(seed, region)

    def join(self, seed: int, region: set[int]) -> None:
        """Records a grown region, within a region it takes values from where the two can be one."""
        for p in sorted(self.sources(region) - region):
            if p < 0 or not self.can[p] or self.group[p] < 0:
                continue
            other = self.group[p]
            if self.why_not(set(self.members[other]), region, both_ways=True) is None:
                seed, region = other, region | set(self.members[other])
                break
        for p in region:
            self.group[p] = seed
        self.members[seed] = sorted(region)

    def candidates(self, region: set[int]) -> list[int]:
        """Fusible producers that no region has taken, the nearest first."""
        return sorted(
            (p for p in self.sources(region) - region if p >= 0 and self.can[p] and self.group[p] < 0), reverse=True
        )

    def row_chain(self, p: int) -> set[int]:
        """``p`` with the elementwise ops of its shape that lead up to it, and the reductions that these start from."""
        chain = {p}
        todo = [p] if is_map(self.nodes[p]) else []
        while todo:
            n = self.nodes[todo.pop()]
            for v in n.operands:
                k = self.index.get(id(v.node), -1)
                if k >= 0 and k not in chain and self.can[k] and self.group[k] < 0 and v.shape == n.types[0].shape:
                    chain.add(k)
                    if is_map(v.node):
                        todo.append(k)
        return chain

    def why_not(self, region: set[int], more: set[int], both_ways: bool = False) -> str | None:
        """Why these producers cannot join the region, or None."""
        both = region | more
        if len(both) > self.limits.max_nodes:
            return "the region would have too many nodes"
        nodes = [self.nodes[i] for i in sorted(both)]
        if any(n.op == "take" and self.index.get(id(v.node), -1) in both for n in nodes for v in n.operands):
            return "it makes the table or the indices of a lookup in the region"
        results = self.results(both)
        if len(results) > self.limits.max_results:
            return "the region would have too many results"
        if len(self.operands(nodes, both)) > self.limits.max_operands:
            return "the region would have too many operands"
        reason = self.form_of(nodes, results)
        if reason is None and self.leaves_and_returns(both, both if both_ways else more, self.last(max(both))):
            return "another kernel between them needs the value first"
        return reason

    def form_of(self, nodes: Sequence[Node], results: Sequence[Value]) -> str | None:
        """Why these nodes are neither a map nor rows, or None."""
        reductions = [n for n in nodes if is_reduction(n)]
        if not reductions:
            full: Shape = broadcast_shapes(*(v.shape for v in results))
            if any(v.shape != full for v in results):
                return "results of different shapes"
            return self.recomputed(nodes, full, None)
        full, dims = reductions[0].operands[0].shape, tuple(sorted(reductions[0].attrs["dims"]))
        for r in reductions:
            if r.operands[0].shape != full:
                return "reductions of values of different shapes"
            if tuple(sorted(r.attrs["dims"])) != dims:
                return "reductions over different dims"
        low = reduced(full, dims)
        for v in results:
            if v.shape not in (full, low):
                return "a result has neither the full nor the reduced shape"
        return self.recomputed(nodes, full, low)

    def recomputed(self, nodes: Sequence[Node], full: Shape, low: Shape | None) -> str | None:
        """Why values smaller than ``full`` cannot be computed again per element; row values are computed once a row."""
        per_row: set[Value] = set()
        again = 0
        for n in nodes:
            shape = n.types[0].shape
            if not fits_in(shape, full):
                return "a value's shape does not broadcast to the region's"
            if is_reduction(n):
                per_row.add(n[0])
            elif low is not None and shape == low and low != full and any(v in per_row for v in n.operands):
                per_row.add(n[0])
            elif shape != full:
                if any(v in per_row for v in n.operands):
                    return "a row's value is used at a third shape"
                if n.op in DEAR and shape:
                    return "an expensive value would be computed again for every element it is broadcast to"
                again += bool(shape)
        return "too many values would be computed again" if again > self.limits.max_recomputed else None

    def last(self, seed: int) -> int:
        """The node beyond which nothing leads back to a region that grows from ``seed``: ungrouped nodes only lead
        onwards, and no group reaches across it."""
        return max((s for s, group in self.members.items() if len(group) > 1 and group[0] < seed), default=seed)

    # Construction

    def build(self, report: PassReport) -> Graph:
        """The graph with a ``fused`` node for every region of two or more nodes."""

        def make(nodes: Sequence[Node], operands: Sequence[Value], results: Sequence[Value]) -> Made:
            report.count("fuse.regions")
            report.count("fuse.rows" if any(is_reduction(n) for n in nodes) else "fuse.maps")
            report.count("fuse.nodes", len(nodes))
            lookups = sum(n.op == "take" for n in nodes)
            if lookups:
                report.count("fuse.lookups", lookups)
            return "fused", {"body": body_of(nodes, operands, results)}

        return self.rebuilt([g for g in self.members.values() if len(g) > 1], make)

    def explain(self, report: PassReport) -> None:
        """For every edge between fusible nodes of different kernels: why it is a border."""
        for i, n in enumerate(self.nodes):
            if not self.can[i] or n.op == "take":
                continue
            for v in n.operands:
                p = self.index.get(id(v.node), -1)
                if p < 0 or self.group[p] == self.group[i]:
                    continue
                if self.can[p]:
                    region = set(self.members[self.group[i]])
                    mine = self.members[self.group[p]]
                    reason = (
                        self.why_not(region, {p})
                        if len(mine) == 1
                        else self.why_not(region, {p}) or "its producer is in another region"
                    )
                    report.decline("fuse", reason or "its producer was taken by another region", self.nodes[p])
                elif v.node.op == "take":
                    report.decline("fuse", why_no_lookup(v.node) or "its table may stream from the artifact", v.node)
                elif v.node.op not in ("constant", "dim_value", "full", "state"):
                    report.decline("fuse", f"{v.node.op} is not elementwise", n)


def body_of(
    nodes: Sequence[Node], operands: Sequence[Value], results: Sequence[Value], names: Sequence[str] = ()
) -> Graph:
    """A subgraph of ``nodes`` (in order) over ``operands``; scalars outside are copied into it."""
    b = Builder()
    env: dict[Value, Value] = {}
    for k, v in enumerate(operands):
        env[v] = b.input(names[k] if k < len(names) else f"x{k}", v.type)
    for n in nodes:
        for v in n.operands:
            if v not in env and is_scalar(v):
                b.nodes.append(v.node)
                env[v] = v
        made = replace(n, inputs=tuple(env[v] for v in n.operands))
        b.nodes.append(made)
        env.update(zip(n.values, made.values, strict=True))
    return b.graph([env[v] for v in results])


__all__ = ["FuseRegions", "body_of", "fits_in", "is_map"]
