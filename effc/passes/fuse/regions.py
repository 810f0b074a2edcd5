"""Forms ``fused`` regions: elementwise ops and reductions that one generated loop nest computes.

Two forms. A *map*: all results have one shape, to which every value broadcasts. *Rows*: every reduction reduces the
same dims of values of one full shape and keeps them as ones; results have the full or the reduced shape. Regions grow
greedily from a consumer back to its producers (McKinley et al. call the legality condition "fusion preserving": no path
leaves a region and comes back).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.dims import Dim, symbols
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import broadcast_shapes, get
from ...ir.verify import attr_symbols
from ..manager import Pass, PassReport, in_subgraphs
from ..rewrite import is_one
from .kinds import DEAR, fusible, is_map, is_reduction, is_scalar


@dataclass(frozen=True)
class FuseRegions(Pass):
    """Greedy producer-consumer fusion. Limits: operands, nodes and results of a region, ops computed again per
    element."""

    name: ClassVar[str] = "fuse_regions"
    max_operands: int = 12
    max_nodes: int = 96
    max_results: int = 4
    max_recomputed: int = 8

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


class _Plan:
    def __init__(self, graph: Graph, limits: FuseRegions) -> None:
        self.graph, self.limits = graph, limits
        self.nodes = graph.nodes
        self.index = {id(n): i for i, n in enumerate(self.nodes)}
        self.uses = graph.uses()
        self.can = [fusible(n) and (not is_reduction(n) or n.attrs["keepdims"]) for n in self.nodes]
        self.group = list(range(len(self.nodes)))  # node -> its group, named by the group's seed
        self.members: dict[int, list[int]] = {}
        self.taken = [False] * len(self.nodes)
        self.binders: dict[int, set[int]] = {}  # node -> the nodes that define sizes which it uses
        self.bound: dict[int, list[int]] = {}  # and the other way round
        self.late_sizes()

    def late_sizes(self) -> None:
        """Finds the order that sizes known only while running ask for: no operand tells it."""
        binder = {s: i for i, n in enumerate(self.nodes) for a in get(n.op).binds for s in attr_symbols(n.attrs.get(a))}
        for i, n in enumerate(self.nodes if binder else ()):
            used = {s for t in n.types for d in t.shape for s in symbols(d)} | attr_symbols(tuple(n.attrs.values()))
            found = {binder[s] for s in used if s in binder} - {i}
            if found:
                self.binders[i] = found
                for k in found:
                    self.bound.setdefault(k, []).append(i)

    # Formation

    def form(self) -> None:
        for seed in range(len(self.nodes) - 1, -1, -1):
            if not self.can[seed] or self.taken[seed]:
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
        for p in sorted({self.index.get(id(v.node), -1) for i in region for v in self.nodes[i].operands} - region):
            if p < 0 or not self.can[p] or not self.taken[p]:
                continue
            other = self.group[p]
            if self.why_not(set(self.members[other]), region, both_ways=True) is None:
                seed, region = other, region | set(self.members[other])
                break
        for p in region:
            self.group[p] = seed
            self.taken[p] = True
        self.members[seed] = sorted(region)

    def candidates(self, region: set[int]) -> list[int]:
        """Fusible producers that no region has taken, the nearest first."""
        found = {self.index.get(id(v.node), -1) for i in region for v in self.nodes[i].operands}
        return sorted((p for p in found - region if p >= 0 and self.can[p] and not self.taken[p]), reverse=True)

    def row_chain(self, p: int) -> set[int]:
        """``p`` with the elementwise ops of its shape that lead up to it, and the reductions that these start from."""
        chain = {p}
        todo = [p] if is_map(self.nodes[p]) else []
        while todo:
            n = self.nodes[todo.pop()]
            for v in n.operands:
                k = self.index.get(id(v.node), -1)
                if k >= 0 and k not in chain and self.can[k] and not self.taken[k] and v.shape == n.types[0].shape:
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
        results = self.results(both)
        if len(results) > self.limits.max_results:
            return "the region would have too many results"
        if len(self.operands(nodes, both)) > self.limits.max_operands:
            return "the region would have too many operands"
        reason = self.form_of(nodes, results)
        if reason is None and self.leaves_and_returns(both, both if both_ways else more, max(both)):
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

    def results(self, region: set[int]) -> list[Value]:
        """Values that something outside the region uses."""
        out = []
        for i in sorted(region):
            users = self.uses.get(self.nodes[i][0], [])
            if not users or any(u is None or self.index[id(u)] not in region for u in users):
                out.append(self.nodes[i][0])
        return out

    def operands(self, nodes: Sequence[Node], region: set[int]) -> list[Value]:
        """Values from outside, in order of first use; scalars are part of the body."""
        out: dict[Value, None] = {}
        for n in nodes:
            for v in n.operands:
                if self.index.get(id(v.node), -1) not in region and not is_scalar(v):
                    out[v] = None
        return list(out)

    def leaves_and_returns(self, region: set[int], more: set[int], seed: int) -> bool:
        """Whether a path leads from ``more`` through something outside back into the region, regions formed so far
        contracted."""
        # Beyond this index nothing leads back: ungrouped nodes only lead onwards, and no group reaches across it.
        last = max((s for s, group in self.members.items() if len(group) > 1 and group[0] < seed), default=seed)
        last = max(last, seed)
        seen: set[int] = set()
        todo = [
            self.index[id(u)]
            for p in more
            for u in self.uses.get(self.nodes[p][0], [])
            if u is not None and self.index[id(u)] not in region
        ]
        while todo:
            i = todo.pop()
            if i in seen:
                continue
            group = self.members.get(self.group[i], [i]) if self.taken[i] else [i]
            seen.update(group)
            for j in group:
                for v in self.nodes[j].values:
                    for u in self.uses.get(v, []):
                        if u is None:
                            continue
                        k = self.index[id(u)]
                        if k in region:
                            return True
                        if k <= last:
                            todo.append(k)
                for k in self.bound.get(j, ()):
                    if k in region:
                        return True
                    if k <= last:
                        todo.append(k)
        return False

    # Construction

    def build(self, report: PassReport) -> Graph:
        """The graph with a ``fused`` node for every region of two or more nodes."""
        b = Builder(self.graph.symbols)
        env: dict[Value, Value] = {i[0]: i[0] for i in self.graph.inputs}
        done: set[int] = set()
        for i in range(len(self.nodes)):
            self.emit(i, b, env, done, report)
        return replace(
            self.graph, nodes=tuple(b.nodes), outputs=tuple(env[v] for v in self.graph.outputs),
            commits=tuple(replace(c, value=env[c.value]) for c in self.graph.commits),
        ).without_dead()  # fmt: skip

    def emit(self, start: int, b: Builder, env: dict[Value, Value], done: set[int], report: PassReport) -> None:
        """Emits node ``start``'s group after everything it needs."""
        todo = [start]
        while todo:
            i = todo[-1]
            if i in done:
                todo.pop()
                continue
            group = self.members.get(self.group[i], [i]) if self.taken[i] else [i]
            inside = set(group)
            need = []
            for j in group:
                for v in self.nodes[j].operands:
                    k = self.index.get(id(v.node), -1)
                    if k >= 0 and k not in inside and k not in done:
                        need.append(k)
                need.extend(sorted(self.binders.get(j, set()) - inside - done))
            if need:
                todo.extend(reversed(need))
                continue
            todo.pop()
            done.update(inside)
            if len(group) == 1:
                n = self.nodes[i]
                ins = tuple(None if v is None else env[v] for v in n.inputs)
                kept = n if ins == n.inputs else replace(n, inputs=ins)
                b.nodes.append(kept)
                env.update(zip(n.values, kept.values, strict=True))
            else:
                self.region(group, b, env, report)

    def region(self, group: list[int], b: Builder, env: dict[Value, Value], report: PassReport) -> None:
        nodes = [self.nodes[i] for i in group]
        region = set(group)
        operands, results = self.operands(nodes, region), self.results(region)
        body = body_of(nodes, operands, results)
        report.count("fuse.regions")
        report.count("fuse.rows" if any(is_reduction(n) for n in nodes) else "fuse.maps")
        report.count("fuse.nodes", len(nodes))
        made = b.node("fused", [env[v] for v in operands], {"body": body}, loc=nodes[-1].loc)
        env.update(zip(results, made.values, strict=True))

    def explain(self, report: PassReport) -> None:
        """For every edge between fusible nodes of different kernels: why it is a border."""
        for i, n in enumerate(self.nodes):
            if not self.can[i]:
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
        env[n[0]] = made[0]
    return b.graph([env[v] for v in results])


__all__ = ["FuseRegions", "body_of", "fits_in", "is_map"]
