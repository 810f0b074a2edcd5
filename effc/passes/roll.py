"""Loops that tracing unrolled become ops on whole tensors again.

A model that steps through a sequence in Python (a selective scan, a gated recurrence, a cell's own loop) is traced as
one copy of the step for each position. Two things are recognised:

- ``h[t] = a[t] * h[t-1] + x[t]``, a chain of sums, is one ``linear_recurrence``;
- ``concat`` (or stack) of results of the same ops, on the steps' own slices or on what all steps share, is those ops
  once, on the tensors that were sliced.

Both rest on :meth:`_Roll.stack`: many values of one type become one value with a dim more, without a copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..ir.dims import Dim
from ..ir.graph import Builder, Graph, Node, Value
from .fuse.kinds import is_map
from .fuse.views import inserted_ones
from .manager import Pass, PassReport, in_subgraphs
from .rewrite import is_one, uniform

LEAST = 6  # steps from which on a chain or a concatenation is taken for a loop
SMALL = 4096  # elements of a step's own constant that may be stacked


@dataclass(frozen=True)
class Stacked:
    """Values of one type as one: step t is ``value`` at t of ``axis``. Without an axis all steps are ``value``."""

    value: Value
    axis: int | None = None


@dataclass
class _Chain:
    """h[t] = a[t] * h[t-1] + x[t]."""

    sums: list[Node]  # h, in order
    steps: list[tuple[Value, Value]]  # a and x, from the second on
    starts: list[tuple[Value, Value, Value]]  # what h[-1], a[0] and x[0] may be


@dataclass(frozen=True)
class RollLoops(Pass):
    """Rolls up unrolled loops of ``LEAST`` steps or more."""

    name: ClassVar[str] = "roll"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        if not any(n.op == "concat" and len(n.inputs) >= LEAST for n in graph.nodes) and len(graph.nodes) < 2 * LEAST:
            return graph
        chains = _chains(graph)
        left: set[int] = set()  # ids of nodes that were tried, and whose steps something else needs, too
        while True:
            roll = _Roll(graph, [c for c in chains if id(c.sums[-1]) not in left], left)
            out = roll.run()
            live = {id(n) for n in out.nodes}
            again = [(old, why) for old, steps, why in roll.made if any(id(v.node) in live for v in steps)]
            if not again:
                for key, n in roll.counts.items():
                    report.count(f"{self.name}.{key}", n)
                for node, reason in roll.declined:
                    report.decline(self.name, reason, node)
                return out if roll.made else graph
            for node, reason in again:
                left.add(id(node))
                report.decline(self.name, reason, node)


def _chains(graph: Graph) -> list[_Chain]:
    """Chains of sums, each one a factor times the one before plus a term."""
    before: dict[int, tuple[Node, Value, Value]] = {}  # by sum: the sum before, the factor on it, the term
    first: dict[int, list[tuple[Value, Value, Value]]] = {}  # by sum: what could be state, factor and term
    taken: set[int] = set()  # sums that are the state of a next step
    sums = [n for n in graph.nodes if n.op == "add" and n.types[0].dtype.is_float]
    for n in sums:
        options = first[id(n)] = []
        for m, x in (n.operands, n.operands[::-1]):
            if m.node.op == "mul" and m.shape == n.types[0].shape:
                options += [(h, a, x) for h, a in (m.node.operands, m.node.operands[::-1])]
        for h, a, x in options:
            if id(h.node) in first and h.type == n.types[0] and id(h.node) not in taken:
                before[id(n)] = h.node, a, x
                taken.add(id(h.node))
                break
    out: list[_Chain] = []
    for n in sums:
        if id(n) in taken or id(n) not in before:
            continue
        chain, steps = [n], []
        while id(chain[-1]) in before:
            one_before, a, x = before[id(chain[-1])]
            chain.append(one_before)
            steps.append((a, x))
        if len(chain) >= LEAST:
            out.append(_Chain(chain[::-1], steps[::-1], first[id(chain[-1])]))
    return out


class _Roll:
    def __init__(self, graph: Graph, chains: Sequence[_Chain], left: set[int]) -> None:
        self.graph, self.left = graph, left
        self.ends = {id(c.sums[-1]): c for c in chains}
        self.env: dict[Value, Value] = {}
        self.step: dict[Value, tuple[Stacked, int]] = {}  # states of rolled chains: which step of what
        self.memo: dict[tuple[Value, ...], Stacked | None] = {}
        self.made: list[tuple[Node, list[Value], str]] = []  # what was rolled, and what should have died of it
        self.counts: dict[str, int] = {}
        self.declined: list[tuple[Node, str]] = []

    def run(self) -> Graph:
        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
            for old, new in zip(n.inputs, ins, strict=True):
                if old is not None and new is not None:
                    self.env[old] = new
            self.b = b
            b.loc = n.loc
            mark = len(b.nodes)
            if id(n) in self.ends:
                out = self.recurrence(n, self.ends[id(n)])
            elif n.op == "concat" and len(ins) >= LEAST and id(n) not in self.left:
                out = self.concatenated(n, [v for v in ins if v is not None])
            else:
                return None
            if out is None or out.type != n.types[0]:
                del b.nodes[mark:]
                self.memo.clear()
                return None
            return out

        return self.graph.rebuild(rule)

    def count(self, key: str, n: int = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + n

    # The two forms

    def recurrence(self, n: Node, c: _Chain) -> Value | None:
        t = n.types[0]
        factors, terms = ([self.env[s[k]] for s in c.steps] for k in (0, 1))
        a = x = start = None
        for h, f, v in c.starts:  # the first step is like the others, or its result is where they start from
            a, x = self.stack([self.env[f], *factors]), self.stack([self.env[v], *terms])
            if a is not None and x is not None:
                start = self.env[h]
                break
        sums = c.sums
        if start is None:
            start, sums = self.env[sums[0][0]], sums[1:]
            a, x = self.stack(factors), self.stack(terms)
        if a is None or x is None:
            self.declined.append((n, "the steps of a recurrence are not slices of whole tensors"))
            return None
        axis = next((s.axis for s in (x, a) if s.axis is not None and s.value.rank == t.rank + 1), 0)
        steps = len(sums)
        full = (*t.shape[:axis], steps, *t.shape[axis:])
        a_all, x_all = (self.wide(self.lifted(s, axis, t.rank), full) for s in (a, x))
        u = uniform(start)
        init = [] if u is not None and u == 0 else [self.wide(start, t.shape)]
        y = self.b.op("linear_recurrence", a_all, x_all, *init, dim=axis)
        out = self.at(y, axis, steps - 1)
        whole = Stacked(y, axis)
        states = [self.env[s[0]] for s in sums[:-1]]
        for k, h in enumerate([*states, out]):
            self.step[h] = whole, k
        self.memo.clear()
        self.count("recurrences")
        self.count("steps", steps)
        self.made.append((n, states, "a state within a recurrence is used in another way than by all steps alike"))
        return out

    def concatenated(self, n: Node, ins: list[Value]) -> Value | None:
        d = n.attrs["dim"]
        head = 0
        while head < 2 and ins[head].type != ins[-1].type:
            head += 1
        tail = ins[head:]
        if any(v.type != tail[0].type for v in tail) or not all(isinstance(v.shape[d], int) for v in tail):
            return None
        s = self.stack(tail)
        if s is None and head == 0:
            head, tail = 1, ins[1:]
            s = self.stack(tail)
        if s is None or s.axis is None:
            return None
        v = self.moved(s, d)
        shape = tail[0].shape
        joined = self.reshaped(v, (*shape[:d], len(tail) * shape[d], *shape[d + 1 :]))
        self.count("concats")
        dead = [v for v in map(_behind_views, tail) if v.node.op != "constant"]
        own = [v for v in dead if v not in self.step and not _shared(v, s)]
        self.made.append((n, own, "a step of what is concatenated is used elsewhere, too"))
        if head == 0:
            return joined
        out: Value = self.b.op("concat", *ins[:head], joined, dim=d)
        return out

    # Stacks

    def stack(self, values: Sequence[Value], depth: int = 24) -> Stacked | None:
        """Values of one type, one for each step, as one value; None where they are not computed alike."""
        key = tuple(values)
        if key not in self.memo:
            self.memo[key] = self.stacked(key, depth) if depth else None
        return self.memo[key]

    def stacked(self, values: tuple[Value, ...], depth: int) -> Stacked | None:
        first = values[0]
        if all(v == first for v in values):
            return Stacked(first)
        if first in self.step:
            return self.states(values)
        n = first.node
        nodes = [v.node for v in values]
        if len(n.types) != 1 or any(m.op != n.op or m.types != n.types for m in nodes):
            return None
        if n.op == "constant":
            if n.attrs["data"].size > SMALL:
                return None
            data = np.stack([m.attrs["data"] for m in nodes])
            return Stacked(self.b.constant(data, first.dtype), 0)
        if n.op == "slice" and all(m.operands[0] == n.operands[0] for m in nodes):
            return self.slices(nodes)
        if any(m.attrs != n.attrs or len(m.inputs) != len(n.inputs) for m in nodes) or n.subgraphs:
            return None
        if n.op not in ("reshape", "permute", "matmul", "slice", "broadcast_to", "reduce") and not is_map(n):
            return None
        parts = [self.stack([m.operands[k] for m in nodes], depth - 1) for k in range(len(n.operands))]
        found = [p for p in parts if p is not None]
        if len(found) < len(parts) or any(len({m.operands[k].type for m in nodes}) > 1 for k in range(len(parts))):
            return None
        return self.applied(n, found)

    def applied(self, n: Node, parts: list[Stacked]) -> Stacked:
        """The op of one step, on all."""
        b, rank, shape = self.b, n.types[0].rank, n.types[0].shape
        s = next(p for p in parts if p.axis is not None)
        assert s.axis is not None
        steps = s.value.shape[s.axis]
        if n.op == "reshape":
            old = n.operands[0].shape
            if inserted_ones(old, shape) is not None:
                axis = _place(old, shape, s.axis)
                return Stacked(b.op("reshape", s.value, shape=(*shape[:axis], steps, *shape[axis:])), axis)
            return Stacked(b.op("reshape", self.moved(s, 0), shape=(steps, *shape)), 0)
        if n.op == "permute":
            dims = (0, *(d + 1 for d in n.attrs["dims"]))
            return Stacked(b.op("permute", self.moved(s, 0), dims=dims), 0)
        if n.op == "broadcast_to":
            return Stacked(b.op("broadcast_to", self.lifted(s, 0, rank), shape=(steps, *shape)), 0)
        if n.op == "slice":
            a, v = n.attrs, self.moved(s, 0)
            starts, stops, by = (0, *a["starts"]), (steps, *a["stops"]), (1, *a["steps"])
            return Stacked(b.op("slice", v, starts=starts, stops=stops, steps=by), 0)
        if n.op == "reduce":
            dims = tuple(d + 1 for d in n.attrs["dims"])
            return Stacked(b.op("reduce", self.moved(s, 0), **{**n.attrs, "dims": dims}), 0)
        if n.op == "matmul":
            x, w = parts
            if w.axis is None and w.value.rank == 2 and x.axis is not None:  # the steps become rows of one product
                axis = min(x.axis, rank - 1) if x.value.rank == rank + 1 else rank - 2
                return Stacked(b.op("matmul", self.lifted(x, axis, rank), w.value), axis)
            axis = rank - 2
            return Stacked(b.op("matmul", self.lifted(x, axis, rank), self.lifted(w, axis, rank)), axis)
        axis = next((p.axis for p in parts if p.axis is not None and p.value.rank == rank + 1), 0)
        return Stacked(b.op(n.op, *(self.lifted(p, axis, rank) for p in parts), **n.attrs), axis)

    def slices(self, nodes: Sequence[Node]) -> Stacked | None:
        """Neighbouring or equally distant slices of one tensor along one dim."""
        attrs = [m.attrs for m in nodes]
        a = attrs[0]
        if any(x["steps"] != a["steps"] for x in attrs) or any(k != 1 for k in a["steps"]):
            return None
        moving = [d for d in range(len(a["starts"])) if any(x["starts"][d] != a["starts"][d] for x in attrs)]
        if len(moving) != 1:
            return None
        d = moving[0]
        at = [x["starts"][d] for x in attrs]
        width = nodes[0].types[0].shape[d]
        if not all(isinstance(x, int) for x in (*at, width)) or any(
            x["stops"][k] != a["stops"][k] for x in attrs for k in range(len(a["stops"])) if k != d
        ):
            return None
        by = at[1] - at[0]
        if any(q - p != by for p, q in itertools.pairwise(at)) or (width != 1 and by != width):
            return None
        source = nodes[0].operands[0]
        starts, stops, steps = list(a["starts"]), list(a["stops"]), [1] * len(a["steps"])
        starts[d], stops[d], steps[d] = min(at), max(at) + width, 1 if width != 1 else abs(by)
        v: Value = self.b.op("slice", source, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
        if by < 0:
            v = self.b.op("flip", v, dims=(d,))
        shape = nodes[0].types[0].shape
        return Stacked(self.b.op("reshape", v, shape=(*shape[:d], len(at), *shape[d:])), d)

    def states(self, values: tuple[Value, ...]) -> Stacked | None:
        """States of one rolled recurrence."""
        whole, first = self.step[values[0]]
        at = [self.step[v] for v in values if v in self.step]
        if len(at) < len(values) or any(w is not whole for w, _ in at) or len(at) < 2:
            return None
        by = at[1][1] - first
        if by < 1 or any(k != first + by * i for i, (_, k) in enumerate(at)):
            return None
        v, d = whole.value, whole.axis
        assert d is not None
        starts, stops, steps = [0] * v.rank, list(v.shape), [1] * v.rank
        starts[d], stops[d], steps[d] = first, at[-1][1] + 1, by
        return Stacked(self.b.op("slice", v, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps)), d)

    # Shapes

    def moved(self, s: Stacked, axis: int) -> Value:
        """The stack with the steps along ``axis``."""
        assert s.axis is not None
        if s.axis == axis:
            return s.value
        dims = [d for d in range(s.value.rank) if d != s.axis]
        dims.insert(axis, s.axis)
        out: Value = self.b.op("permute", s.value, dims=tuple(dims))
        return out

    def lifted(self, s: Stacked, axis: int, rank: int) -> Value:
        """The stack as one of values of ``rank`` dims, ones in front, with the steps (or a one) along ``axis``."""
        v = s.value
        if s.axis is None:
            shape = [*[1] * (rank - v.rank), *v.shape]
            shape.insert(axis, 1)
            return v if v.rank == 0 else self.reshaped(v, shape)
        if v.rank == rank + 1:
            return self.moved(s, axis)
        v = self.moved(s, 0)
        return self.moved(Stacked(self.reshaped(v, [v.shape[0], *[1] * (rank + 1 - v.rank), *v.shape[1:]]), 0), axis)

    def reshaped(self, v: Value, shape: Sequence[Dim]) -> Value:
        out: Value = self.b.op("reshape", v, shape=tuple(shape))
        return out

    def wide(self, v: Value, shape: tuple[Dim, ...]) -> Value:
        return v if v.shape == shape else self.b.op("broadcast_to", v, shape=shape)

    def at(self, v: Value, axis: int, k: int) -> Value:
        starts, stops = [0] * v.rank, list(v.shape)
        starts[axis], stops[axis] = k, k + 1
        one = self.b.op("slice", v, starts=tuple(starts), stops=tuple(stops), steps=(1,) * v.rank)
        return self.reshaped(one, (*v.shape[:axis], *v.shape[axis + 1 :]))


def _place(old: tuple[Dim, ...], new: tuple[Dim, ...], axis: int) -> int:
    """Where ``axis`` comes to lie when ones are dropped or inserted around it."""
    before = sum(not is_one(d) for d in old[:axis])
    at = 0
    while at < len(new) and (before or (is_one(new[at]) and at < axis)):
        before -= not is_one(new[at])
        at += 1
    return at


def _behind_views(v: Value) -> Value:
    """What a value shows."""
    while v.node.op in ("reshape", "permute", "slice", "broadcast_to"):
        v = v.node.operands[0]
    return v


def _shared(v: Value, s: Stacked) -> bool:
    """``v`` is the tensor that steps were slices of, which stays."""
    return _behind_views(s.value) == v
