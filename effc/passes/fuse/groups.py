"""Groups of nodes that become one node each: which may be one, and the graph with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...ir.dims import symbols
from ...ir.graph import Graph, GraphCopy, Node, Value
from ...ir.op import get
from ...ir.verify import attr_symbols
from .kinds import is_scalar, looks_up

# Nodes of a group in order, its operands, its results -> op and attributes of the node that it becomes.
Made = tuple[str, Mapping[str, Any]]
Make = Callable[[Sequence[Node], Sequence[Value], Sequence[Value]], Made]


class Groups:
    """A graph's nodes by their indices, and the groups formed so far."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = graph.nodes
        self.index = {id(n): i for i, n in enumerate(self.nodes)}
        self.uses = graph.uses()
        self.group = [-1] * len(self.nodes)  # node -> its group's name, -1 for none
        self.members: dict[int, list[int]] = {}
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

    def of(self, i: int) -> list[int]:
        """The group of a node, or the node alone."""
        return self.members[self.group[i]] if self.group[i] >= 0 else [i]

    def results(self, region: set[int]) -> list[Value]:
        """Values that something outside the region uses."""
        out = []
        for i in sorted(region):
            for v in self.nodes[i].values:
                users = self.uses.get(v, [])
                unused = not users and len(self.nodes[i].types) == 1
                if unused or any(u is None or self.index[id(u)] not in region for u in users):
                    out.append(v)
        return out

    def operands(self, nodes: Sequence[Node], region: set[int]) -> list[Value]:
        """Values from outside, in order of first use; scalars are part of the body."""
        out: dict[Value, None] = {}
        for n in nodes:
            for v in n.operands:
                if self.index.get(id(v.node), -1) not in region and not is_scalar(v):
                    out[v] = None
        return list(out)

    def leaves_and_returns(self, region: set[int], more: set[int], last: int) -> bool:
        """Whether a path leads from ``more`` through something outside back into the region, groups formed so far
        contracted. Beyond node ``last`` nothing leads back."""
        seen: set[int] = set()
        todo = [
            self.index[id(u)]
            for p in more
            for v in self.nodes[p].values
            for u in self.uses.get(v, [])
            if u is not None and self.index[id(u)] not in region
        ]
        while todo:
            i = todo.pop()
            if i in seen or i > last:
                continue
            group = self.of(i)
            seen.update(group)
            for j in group:
                users = [self.index[id(u)] for v in self.nodes[j].values for u in self.uses.get(v, []) if u is not None]
                after = [*users, *self.bound.get(j, ())]
                if any(k in region for k in after):
                    return True
                todo.extend(after)
        return False

    def rebuilt(self, groups: Sequence[Sequence[int]], make: Make) -> Graph:
        """The graph with one node for each of these groups."""
        of = {i: group for group in groups for i in group}
        copy = GraphCopy(self.graph)
        done: set[int] = set()
        for start in range(len(self.nodes)):
            todo = [start]
            while todo:
                i = todo[-1]
                group = sorted(of.get(i, [i]))
                inside = set(group)
                need = [] if i in done else [
                    k for j in group for k in (
                        *(self.index.get(id(v.node), -1) for v in self.nodes[j].operands),
                        *sorted(self.binders.get(j, ())),
                    ) if k >= 0 and k not in inside and k not in done
                ]  # fmt: skip
                if need:
                    todo.extend(reversed(need))
                    continue
                todo.pop()
                if i in done:
                    continue
                done.update(inside)
                if i not in of:
                    copy.keep(self.nodes[i])
                    continue
                nodes = [self.nodes[j] for j in group]
                operands, results = self.operands(nodes, inside), self.results(inside)
                op, attrs = make(nodes, operands, results)
                # What can fail names the line: an index out of range is the data's fault.
                loc = next((n.loc for n in nodes if looks_up(n)), nodes[-1].loc)
                made = copy.builder.node(op, [copy.values[v] for v in operands], attrs, loc=loc)
                copy.values.update(zip(results, made.values, strict=True))
        return copy.graph()
