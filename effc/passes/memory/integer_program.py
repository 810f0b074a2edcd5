"""The integer program: for what the searches cannot say, and to check them.

Time is a row of steps. At each, a node runs; each tensor is resident or not; a resident one was resident the step
before, or is made, or comes back from the far memory:

    run[n,k], resident[t,k], refill[t,k], copied[t], over[n,t,k] (in place), part[t,n,k] (made in n's result)
    run[n,k] <= resident[t,k]                                         operands, results
    resident[t,k] <= resident[t,k-1] + run[maker of t,k] + refill[t,k]
    sum of bytes[t] resident[t,k] + workspaces - bytes taken over <= peak, or the capacity
    resident[t,k] + resident[u,k] <= 1 + below[t,u] + below[u,t]      offsets, where they are asked for

A copy is made when a tensor is new, which costs what it would cost later, so one variable says whether there is any.
Steps at which a node cannot run, or a tensor not be needed, have no variables: between two nodes that all others
precede or follow (articulation points) only what lies there does, so orders fall into pieces by themselves. With
traffic every tensor could be anywhere at any time, and a large graph is cut at these nodes (``pieces``), each piece
beginning with what the one before left (divide and conquer, as COSMA has it). What is asked is

- an order, with rewrites and offsets if wanted, of least peak or arena (``least_arena``);
- actions within a capacity that move and recompute least (``within``; spilling and refilling are COSMA's, Yang et al.
  2023; recomputation is Checkmate's, Jain et al. 2020);
- offsets of buffers whose times are given (``place``), as boxes;
- which tensors lie in the small fast space and which in the large slow one (``two_spaces``).

All begin with a plan of the searches, return nothing worse, and say what the solver proved. Every plan is verified.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...runtime.errors import EffcError
from . import solver as solving
from .plan import Interval, Placement, lower_bound
from .plan import place as greedily
from .problem import ARENA, Action, Choices, Node, Plan, Problem, Steps, boxes, lifetimes, with_drops
from .schedule import Layout, lay_out, place_steps
from .solver import Box, Model, Solution, Term
from .verify import MemoryPlanError, verify, verify_placement, verify_steps

BYTE_FLOPS = 16  # FLOPs that cost as much as a byte to or from the far memory


@dataclass(frozen=True)
class Outcome:
    """``objective`` is that of the plan returned, ``start`` that of the searches' (None without one), ``bound`` what
    the solver proved that none is below. ``ended``: ``proven``, ``time``, ``infeasible``. ``pieces`` is more than 1
    where the graph was cut: then the bound is the sum of those of the pieces, each begun as it likes (0 with
    recomputation and rewrites, which reach across)."""

    objective: int
    bound: int
    start: int | None
    ended: str
    seconds: float
    layout: Layout | None = None  # of least_arena, two_spaces
    steps: Steps | None = None  # of within
    placement: Placement | None = None  # of place
    variables: int = 0
    rows: int = 0
    pieces: int = 1

    @property
    def gap(self) -> float:
        """How far the objective may be above the optimum, as a fraction of it; inf where nothing is proven."""
        if self.objective <= self.bound:
            return 0.0
        return (self.objective - self.bound) / self.bound if self.bound > 0 else math.inf


@dataclass
class _Graph:
    """Makers, readers, and what must come before and after each node."""

    maker: dict[int, int]
    readers: dict[int, list[int]]
    needs: dict[int, set[int]]
    before: dict[int, int]  # how many nodes must
    behind: dict[int, int]

    @staticmethod
    def of(p: Problem) -> _Graph:
        maker = {t: n.id for n in p.nodes for t in n.outs}
        readers: dict[int, list[int]] = {}
        for n in p.nodes:
            for t in dict.fromkeys(n.ins):
                readers.setdefault(t, []).append(n.id)
        needs = {n.id: {maker[t] for t in n.ins if t in maker} | set(n.after) for n in p.nodes}
        ancestors = _closure([n.id for n in p.nodes], needs)
        behind = dict.fromkeys(needs, 0)
        for up in ancestors.values():
            for u in up:
                behind[u] += 1
        return _Graph(maker, readers, needs, {n: len(a) for n, a in ancestors.items()}, behind)


def _closure(ids: Sequence[int], needs: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """All that must come before each node; ``ids`` in an order that suits ``needs``."""
    out: dict[int, set[int]] = {}
    for n in ids:
        out[n] = set().union(*(out[u] | {u} for u in needs[n] if u in out)) if needs[n] else set()
    return out


@dataclass
class _Border:
    """What a piece begins with and leaves: tensors made before that are resident, or copied; tensors needed later."""

    resident: set[int] = field(default_factory=set)
    copied: set[int] = field(default_factory=set)
    later: set[int] = field(default_factory=set)
    free: bool = False  # for bounds: whatever suits it at the beginning, nothing paid for the end


class _Program:
    """Variables and rows for one problem, or a piece of one."""

    def __init__(
        self,
        p: Problem,
        *,
        steps: int,
        capacity: Mapping[str, int] | None,
        fixed: Sequence[int] | None,
        rewrite: bool,
        offsets: bool,
        spill: bool,
        recompute: bool,
        byte_flops: int,
        ceiling: int,
        border: _Border | None = None,
    ) -> None:
        self.p, self.m, self.g = p, Model(), _Graph.of(p)
        # With traffic there is a last step at which nothing runs: outputs may come back to where operands were.
        self.runs, self.count = steps, steps + spill
        self.capacity, self.rewrite, self.spill, self.recompute = capacity, rewrite, spill, recompute
        self.border = border or _Border()
        self.node = p.node()
        changed = {t for n in p.nodes for t in n.writes}
        self.again = {n.id for n in p.nodes if recompute and n.repeatable and not changed & {*n.ins, *n.outs}}
        self.unspilled = changed
        tensors = {t for n in p.nodes for t in (*n.ins, *n.outs) if p.tensors[t].kind != "input"}
        self.tensors = sorted(tensors | self.border.later)
        sizes = [p.tensors[t].bytes for t in self.tensors] + [n.workspace for n in p.nodes]
        if offsets and rewrite:
            sizes += [z for n in p.nodes for t, at in n.concat for z in (at, p.tensors[t].raw)]
        self.unit = math.gcd(p.align, *sizes)
        self.one = self.m.integer(1, 1)
        self.run: dict[tuple[int, int], int] = {}
        self.ran: dict[tuple[int, int], int] = {}
        self.near: dict[tuple[int, int], int] = {}
        self.refill: dict[tuple[int, int], int] = {}
        self.copied: dict[int, int] = {}
        self.over: dict[tuple[int, int, int], int] = {}
        self.part: dict[tuple[int, int, int], int] = {}  # tensor, concatenation, step
        self.held: dict[tuple[int, int, int], int] = {}
        self.inside: dict[tuple[int, int, int], int] = {}
        self.view: dict[int, int] = {}  # result -> whether it lies in an operand
        self.through: dict[tuple[int, int], int] = {}  # view, step: is readable
        self.offset: dict[int, int] = {}
        self.rest: dict[int, int] = {}
        self.below: dict[tuple[int, int], int] = {}
        self.peak: dict[str, int] = {}
        self._nodes(fixed)
        self.holders: dict[int, list[Node]] = {}
        for n in p.nodes:
            for t in self._parts(n):
                self.holders.setdefault(t, []).append(n)
        # Plans have views, actions have not; a tensor that is changed is neither a view nor seen through one.
        self.seen_in: dict[int, int] = {}
        if rewrite and not spill and not recompute:
            self.seen_in = {
                t: u
                for n in p.nodes
                for t, u, _ in n.views
                if p.tensors[u].kind != "input" and not {t, u} & changed and p.tensors[t].space == p.tensors[u].space
            }
        self._residency()
        if rewrite:
            self._rewrites()
            self._views()
        self._operands()
        self._room(ceiling)
        if offsets:
            self._offsets(ceiling)
        self._objective(byte_flops)

    # Nodes ------------------------------------------------------------------------------------------------------------

    def first(self, n: int) -> int:
        return self.g.before[n]

    def final(self, n: int) -> int:
        return self.runs - 1 if n in self.again else self.runs - 1 - self.g.behind[n]

    def _nodes(self, fixed: Sequence[int] | None) -> None:
        m, count = self.m, self.count
        place = {n: k for k, n in enumerate(fixed)} if fixed is not None and not self.recompute else None
        for n in self.node:
            window = range(self.first(n), self.final(n) + 1)
            if place is not None:
                window = range(place[n], place[n] + 1)
            for k in window:
                self.run[n, k] = self.one if len(window) == 1 and n not in self.again else m.boolean()
            if len(window) == 1 and n not in self.again:
                for k in range(window[0], count):
                    self.ran[n, k] = self.one
                continue
            once = n not in self.again
            m.row([(1, self.run[n, k]) for k in window], 1, 1 if once else None)
            for k in range(window[0], count if once else self.runs):
                if once and k >= window[-1]:
                    self.ran[n, k] = self.one
                    continue
                self.ran[n, k] = m.boolean()
                terms: list[Term] = [(1, self.ran[n, k]), (-1, self.ran.get((n, k - 1))), (-1, self.run[n, k])]
                m.row(terms, 0 if once else None, 0)
                if not once:
                    m.row([(1, self.ran[n, k]), (-1, self.run[n, k])], 0)
        for k in range(self.runs):
            here = [(1, self.run.get((n, k))) for n in self.node]
            m.row(here, None if self.recompute else 1, 1)
            if self.recompute and k:  # idle steps come last
                m.row([*here, *((-1, self.run.get((n, k - 1))) for n in self.node)], None, 0)
        edges = [(u, v) for v, us in self.g.needs.items() for u in us if u in self.node]
        if fixed is not None and self.recompute:  # first runs in the order given
            edges += list(itertools.pairwise(fixed))
        for u, v in edges:
            for k in range(self.first(v), count):
                each = self.ran if v not in self.again else self.run
                if (v, k) in each:
                    m.row([(1, each[v, k]), (-1, self.ran.get((u, k - 1)))], None, 0)

    # Tensors ----------------------------------------------------------------------------------------------------------

    def _parts(self, n: Node) -> tuple[int, ...]:
        """Operands that may be made in the result."""
        if not self.rewrite or n.op != "cat" or len(n.outs) != 1:
            return ()
        space = self.p.tensors[n.outs[0]].space
        return tuple(
            t
            for t, _ in n.concat
            if self.p.tensors[t].kind == "intermediate" and self.p.tensors[t].space == space and t in self.g.maker
        )

    def _until(self, t: int) -> int:
        """The last step at which a tensor can be of use."""
        if self.p.tensors[t].kind == "output" or t in self.border.later:
            return self.count - 1
        users: set[int] = set()
        todo = [t]
        while todo:
            u = todo.pop()
            users.update(self.g.readers.get(u, ()))
            todo += [part for part, by in self.holders.items() if any(n.outs[0] == u for n in by)]
            todo += [view for view, base in self.seen_in.items() if base == u]
            if any(self.p.tensors[v].kind == "output" for v in todo):
                return self.count - 1
        return max((max(k for _, k in self._windows[n]) for n in users), default=-1)

    def _residency(self) -> None:
        m = self.m
        self._windows: dict[int, list[tuple[int, int]]] = {n: [] for n in self.node}
        for n, k in self.run:
            self._windows[n].append((n, k))
        for t in self.tensors:
            maker = self.g.maker.get(t)
            begin = min(k for _, k in self._windows[maker]) if maker is not None else 0
            end = max(self._until(t), max((k for _, k in self._windows[maker]), default=0) if maker is not None else 0)
            early = maker is None
            traffic = self.spill and t not in self.unspilled
            if traffic:
                self.copied[t] = self.one if t in self.border.copied else m.boolean()
            for k in range(begin, end + 1):
                self.near[t, k] = m.boolean()
                since: list[Term] = [(1, self.near[t, k]), (-1, self.near.get((t, k - 1)))]
                if maker is not None:
                    since.append((-1, self.run.get((maker, k))))
                if traffic and (k > begin or early):
                    self.refill[t, k] = m.boolean()
                    m.row([(1, self.refill[t, k]), (-1, self.copied[t])], None, 0)
                    if maker is not None:
                        m.row([(1, self.refill[t, k]), (-1, self.ran.get((maker, k - 1)))], None, 0)
                    since.append((-1, self.refill[t, k]))
                there = k == 0 and (t in self.border.resident or (self.border.free and maker is None))
                m.row(since, None, 1 if there else 0)
            plain = not (self.spill or self.recompute or self.rewrite)
            if t in self.seen_in:
                self.view[t] = m.boolean()
                for k in range(begin, end + 1):
                    m.row([(1, self.view[t]), (1, self.near[t, k])], None, 1)
            if self.p.tensors[t].kind == "output" and t not in self.border.later:
                m.row([(1, self.near[t, self.count - 1]), (1, self.view.get(t))], 1)
                if not self.spill and not self.recompute and maker is not None:
                    for k in range(begin, end + 1):
                        m.row([(1, self.near[t, k]), (1, self.view.get(t)), (-1, self.ran.get((maker, k)))], 0)
            elif t in self.border.later:
                m.row([(1, self.near[t, self.count - 1]), (1, self.copied.get(t))], 1)
            if plain and maker is not None:
                for r in self.g.readers.get(t, ()):
                    for k in range(begin, end + 1):
                        terms: list[Term] = [(1, self.near[t, k]), (-1, self.ran.get((maker, k)))]
                        m.row([*terms, (1, self.ran.get((r, k - 1)))], 0)

    def _renewed(self, t: int, k: int) -> list[Term]:
        """What begins a residency of a tensor at a step."""
        maker = self.g.maker.get(t)
        made = self.run.get((maker, k)) if maker is not None else None
        return [(-1, made), (-1, self.refill.get((t, k)))]

    def _rewrites(self) -> None:
        m = self.m
        taken: dict[int, list[Term]] = {}
        for n in self.p.nodes:
            ways = [
                t
                for t in n.inplace_ok
                if len(n.outs) == 1
                and t in n.ins
                and t not in n.writes
                and self.p.tensors[t].kind == "intermediate"
                and self.p.tensors[t].space == self.p.tensors[n.outs[0]].space
            ]
            for _, k in self._windows[n.id]:
                for t in ways:
                    v = self.over[n.id, t, k] = m.boolean()
                    taken.setdefault(t, []).append((1, v))
                    m.row([(1, v), (-1, self.near.get((t, k)))], None, 0)
                    m.row([(1, v), (1, self.near.get((t, k + 1))), *self._renewed(t, k + 1)], None, 1)
                if ways:
                    total: list[Term] = [(1, self.over[n.id, t, k]) for t in ways]
                    m.row([*total, (-1, self.run[n.id, k])], None, 0)
        for t, cat in ((t, n) for t, by in self.holders.items() for n in by):
            for _, k in self._windows[cat.id]:
                v = self.part[t, cat.id, k] = m.boolean()
                m.row([(1, v), (-1, self.run[cat.id, k])], None, 0)
                m.row([(1, v), (-1, self.near.get((t, k)))], None, 0)
                m.row([(1, v), (1, self.near.get((t, k + 1))), *self._renewed(t, k + 1)], None, 1)
                taken.setdefault(t, []).append((1, v))
            others = [k for r in self.g.readers[t] if r != cat.id for _, k in self._windows[r]]
            # Whether what holds it was made around it, and it was not made or refilled by itself since.
            start = min(k for _, k in self._windows[cat.id]) + 1
            for k in range(start, max(others, default=-1) + 1):
                v = self.held[t, cat.id, k] = m.boolean()
                joined = self.part.get((t, cat.id, k - 1))
                m.row([(1, v), (-1, self.held.get((t, cat.id, k - 1))), (-1, joined)], None, 0)
                for _, renewed in self._renewed(t, k):
                    m.row([(1, v), (1, renewed)], None, 1)
                m.row([(1, v), (1, self.run.get((cat.id, k - 1))), (-1, joined)], None, 1)
        if not self.spill and not self.recompute:
            for terms in taken.values():
                m.row(terms, None, 1)
        for t, by in self.holders.items():
            joins: list[Term] = [(1, v) for (u, _, _), v in self.part.items() if u == t]
            for n in by:  # what is overwritten for a part must lie where the part does, and not reach beyond it
                if dict(n.concat)[t] % self.p.align or self._largest(t) > self.p.tensors[t].raw:
                    overs: list[Term] = [(1, v) for (r, _, _), v in self.over.items() if r == self.g.maker[t]]
                    if overs:
                        m.row([*joins, *overs], None, 1)

    def _views(self) -> None:
        """A view is readable where what it lies in is; that is no part of another, and not overwritten meanwhile."""
        m = self.m
        for t, u in self.seen_in.items():
            for (part, _, _), v in self.part.items():
                if part == u:
                    m.row([(1, self.view[t]), (1, v)], None, 1)
            if self.p.tensors[t].kind == "output":
                m.row([(1, self.view[t]), *((-c, v) for c, v in self._where(u, self.count - 1))], None, 0)
            for (n, over, _), v in self.over.items():
                if (over == u and t in self.node[n].ins) or t in self.node[n].outs:
                    m.row([(1, self.view[t]), (1, v)], None, 1)
        for (n, over, _), v in self.over.items():  # through a view of a view
            for t in self.node[n].ins:
                chain = [t]
                while chain[-1] in self.seen_in and chain[-1] != over:
                    chain.append(self.seen_in[chain[-1]])
                if len(chain) > 2 and chain[-1] == over:
                    m.row([*((1, self.view[x]) for x in chain[:-1]), (1, v)], None, len(chain) - 1)

    def _where(self, t: int, k: int) -> list[Term]:
        """Where a tensor is at a step if no concatenation holds it: by itself, or in what it is a view of."""
        out: list[Term] = [(1, self.near.get((t, k)))]
        if t in self.seen_in:
            if (t, k) not in self.through:
                v = self.through[t, k] = self.m.boolean()
                self.m.row([(1, v), (-1, self.view[t])], None, 0)
                self.m.row([(1, v), *((-c, w) for c, w in self._where(self.seen_in[t], k))], None, 0)
            out.append((1, self.through[t, k]))
        return out

    def _largest(self, t: int) -> int:
        """Bytes of the largest tensor that may be overwritten to make this one, one after another."""
        seen: set[int] = set()
        todo = [t]
        while todo:
            n = self.g.maker.get(todo.pop())
            for u in self.node[n].inplace_ok if n is not None else ():
                if u not in seen:
                    seen.add(u)
                    todo.append(u)
        return max((self.p.tensors[u].bytes for u in seen), default=0)

    def _operands(self) -> None:
        m = self.m
        for n in self.p.nodes:
            for _, k in self._windows[n.id]:
                for t in n.outs:
                    m.row([(1, self.run[n.id, k]), (-1, self.near[t, k]), (-1, self.view.get(t))], None, 0)
                for t in dict.fromkeys(n.ins):
                    if self.p.tensors[t].kind == "input":
                        continue
                    there = self._readable(t, k) if t not in n.writes else [(1, self.near.get((t, k)))]
                    m.row([(1, self.run[n.id, k]), *((-c, v) for c, v in there)], None, 0)

    def _readable(self, t: int, k: int) -> list[Term]:
        """Where a tensor is at a step: by itself, or in what holds it."""
        m = self.m
        out = self._where(t, k)
        for cat in self.holders.get(t, ()):
            held, key = self.held.get((t, cat.id, k)), (t, cat.id, k)
            if held is None:
                continue
            if key not in self.inside:
                v = self.inside[key] = m.boolean()
                whole = cat.outs[0]
                m.row([(1, v), (-1, held)], None, 0)
                m.row([(1, v), *((-c, w) for c, w in self._readable(whole, k))], None, 0)
                if not self.spill and not self.recompute and self.p.tensors[whole].kind != "output":
                    # A plan's lifetimes are those of the graph: what holds it does not outlive its own readers for it.
                    left = self.g.readers.get(whole, [])
                    ran: list[Term] = [(1, self.ran.get((r, k - 1))) for r in left]
                    m.row([(1, v), *ran], None, len(left))
            out.append((1, self.inside[key]))
        return out

    # Space ------------------------------------------------------------------------------------------------------------

    def _room(self, ceiling: int) -> None:
        m, unit = self.m, self.unit
        if self.capacity is None:
            least = max((self._own(n) for n in self.p.nodes), default=0)
            if len(self.p.spaces) == 1:
                self.peak = {s: m.integer(least // unit, ceiling // unit) for s in self.p.spaces}
            else:
                self.peak = {s: m.integer(0, ceiling // unit) for s in self.p.spaces}
        rows: dict[tuple[str, int], list[Term]] = {(s, k): [] for s in self.p.spaces for k in range(self.count)}
        for (t, k), v in self.near.items():
            rows[self.p.tensors[t].space, k].append((self.p.tensors[t].bytes // unit, v))
        for (n, k), v in self.run.items():
            if self.node[n].workspace:
                rows[ARENA, k].append((self.node[n].workspace // unit, v))
        for (_, t, k), v in self.over.items():
            rows[self.p.tensors[t].space, k].append((-(self.p.tensors[t].bytes // unit), v))
        for (t, _, k), v in self.part.items():
            rows[self.p.tensors[t].space, k].append((-(self.p.tensors[t].bytes // unit), v))
        for (s, _), terms in rows.items():
            if self.capacity is None:
                m.row([*terms, (-1, self.peak[s])], None, 0)
            elif s in self.capacity:
                m.row(terms, None, self.capacity[s] // unit)

    def _own(self, n: Node) -> int:
        touched = {t for t in (*n.ins, *n.outs) if self.p.tensors[t].kind != "input"}
        touched -= {
            t for t in touched if any(c.outs[0] in touched for c in self.holders.get(t, ()))
        }  # may be its parts
        touched -= self.seen_in.keys()
        over = max((self.p.tensors[t].bytes for t in n.inplace_ok), default=0) if self.rewrite else 0
        return max(0, n.workspace + sum(self.p.tensors[t].bytes for t in touched) - over)

    def _offsets(self, ceiling: int) -> None:
        """One place for each tensor and workspace; whatever is there at the same step is apart.

        A place is ``stride`` times a variable; for what becomes a part in between, it is that and a rest, and what it
        takes has no padding.
        """
        m, unit, p = self.m, self.unit, self.p
        self.stride = p.align // unit
        size = {t: p.tensors[t].bytes // unit for t in self.tensors}
        space = {t: p.tensors[t].space for t in self.tensors}
        for n in p.nodes:
            if n.workspace:
                size[-1 - n.id] = n.workspace // unit
                space[-1 - n.id] = ARENA
        joined: dict[int, list[int]] = {}
        for (t, _, _), v in self.part.items():
            joined.setdefault(t, []).append(v)
        for t in joined:
            if self.stride > 1:
                rest = self.rest[t] = m.integer(0, self.stride - 1)
                m.row([(1, rest), *((1 - self.stride, v) for v in joined[t])], None, 0)

        def at(t: int, sign: int = 1) -> list[Term]:
            return [(sign * self.stride, self.offset[t]), (sign, self.rest.get(t))]

        def padding(t: int) -> list[Term]:
            spare = (p.tensors[t].bytes - p.tensors[t].raw) // unit if t in joined else 0
            return [(-spare, v) for v in joined.get(t, ())]

        for t, bytes_ in size.items():
            pinned = p.tensors[t].pinned if t >= 0 else None
            most = max(0, (ceiling // unit - bytes_) // self.stride + (t in joined))
            low, high = (0, most) if pinned is None else (pinned // p.align, pinned // p.align)
            self.offset[t] = m.integer(low, high)
            end = [*at(t), *padding(t)]
            if self.capacity is None:
                m.row([*end, (-1, self.peak[space[t]])], None, -bytes_)
            elif space[t] in self.capacity:
                m.row(end, None, self.capacity[space[t]] // unit - bytes_)
        there: dict[int, dict[int, int]] = {t: {} for t in size}
        for (t, k), v in self.near.items():
            there[t][k] = v
        for (r, k), v in self.run.items():
            if self.node[r].workspace:
                there[-1 - r][k] = v
        shared: dict[tuple[int, int, int], int] = {}
        for (r, t, k), v in self.over.items():
            out = self.node[r].outs[0]
            shared[min(t, out), max(t, out), k] = v
            m.row([*at(t), *at(out, -1)], 0, 0, (v,))
        for (t, r, k), v in self.part.items():
            out = self.node[r].outs[0]
            shared[min(t, out), max(t, out), k] = v
            place = dict(self.node[r].concat)[t] // unit
            m.row([*at(t), *at(out, -1)], place, place, (v,))
        ids = sorted(size)
        for i, t in enumerate(ids):
            for u in ids[i + 1 :]:
                both = there[t].keys() & there[u].keys()
                if space[t] != space[u] or not both or not size[t] or not size[u]:
                    continue
                for a, b in ((t, u), (u, t)):
                    v = self.below[a, b] = m.boolean()
                    m.row([*at(a), *padding(a), *at(b, -1)], None, -size[a], (v,))
                for k in both:
                    here: list[Term] = [(1, there[t][k]), (1, there[u][k])]
                    choice: list[Term] = [(-1, self.below[t, u]), (-1, self.below[u, t])]
                    m.row([*here, *choice, (-1, shared.get((t, u, k)))], None, 1)

    def _objective(self, byte_flops: int) -> None:
        m, p = self.m, self.p
        if self.capacity is None:
            m.minimise((1, v) for v in self.peak.values())
            self.scale, self.constant = self.unit, 0
            return
        terms: list[Term] = []
        constant = 0
        for t, v in self.copied.items():
            if t not in self.border.copied and not (self.border.free and t not in self.g.maker):
                terms.append((p.tensors[t].raw * byte_flops, v))
        terms += [(p.tensors[t].raw * byte_flops, v) for (t, _), v in self.refill.items()]
        for n in self.again:
            terms += [(flops(self.node[n], p), v) for _, k in self._windows[n] for v in (self.run[n, k],)]
            constant -= flops(self.node[n], p)
        if not self.border.free:
            for t in self.border.later:  # it will have to come back
                if p.tensors[t].raw:
                    constant += p.tensors[t].raw * byte_flops
                    terms.append((-p.tensors[t].raw * byte_flops, self.near[t, self.count - 1]))
        self.scale = math.gcd(*(c for c, _ in terms)) or 1 if terms else 1
        self.constant = constant
        m.minimise((c // self.scale, v) for c, v in terms)

    def value(self, objective: int) -> int:
        """Of the solver's objective, in bytes or FLOPs."""
        return objective * self.scale + self.constant

    # From and to plans ------------------------------------------------------------------------------------------------

    def begin_with(self, runs: Sequence[int], near: Sequence[Collection[int]], plan: Mapping[str, Any]) -> None:
        """Hints: nodes and what is resident by step; ``over``, ``part``, ``refill`` as sets of keys, ``copied``,
        ``offsets`` in bytes, ``peak`` in bytes by space."""
        hint = self.m.hint

        def tell(table: Mapping[Any, int], on: Collection[Any]) -> None:
            hint.update((v, int(key in on)) for key, v in table.items())

        tell(self.run, {(n, k) for k, n in enumerate(runs)})
        first = {n: k for k, n in reversed(list(enumerate(runs)))}
        tell(self.ran, {(n, k) for n, k in self.ran if n in first and first[n] <= k})
        tell(self.near, {(t, k) for k, ts in enumerate(near) for t in ts})
        for name in ("over", "part", "refill", "copied", "view", "through"):
            tell(getattr(self, name), plan.get(name, ()))
        for t, v in self.offset.items():
            if t in plan.get("offsets", {}):
                hint[v] = plan["offsets"][t] // self.p.align
                if t in self.rest:
                    hint[self.rest[t]] = plan["offsets"][t] % self.p.align // self.unit
        for s, v in self.peak.items():
            if s in plan.get("peak", {}):
                hint[v] = plan["peak"][s] // self.unit
        hint[self.one] = 1

    def solve(self, solver: str, seconds: float, workers: int, seed: int) -> Solution:
        return solving.solve(self.m, solver=solver, seconds=seconds, workers=workers, seed=seed)

    def order(self, x: Sequence[int]) -> list[int]:
        at = sorted((k, n) for (n, k), v in self.run.items() if x[v])
        return [n for _, n in at]

    def actions(self, x: Sequence[int], done: _Actions) -> None:
        """Adds what a solution does, without drops."""
        out = done.actions
        runs = {k: n for (n, k), v in self.run.items() if x[v]}
        wanted: list[set[int]] = [set() for _ in range(self.count)]
        for (t, k), v in self.near.items():
            if x[v]:
                wanted[k].add(t)

        def copy(ts: Iterable[int]) -> None:
            for t in sorted(ts):
                if t in self.copied and x[self.copied[t]] and t not in done.copied:
                    out.append(("spill", t))
                    done.copied.add(t)

        state = set(done.resident)
        copy(state & set(self.tensors))
        for k in range(self.count):
            n = runs.get(k)
            takes = {t for (by, t, at), v in self.over.items() if x[v] and at == k and by == n}
            joins = {t for (t, by, at), v in self.part.items() if x[v] and at == k and by == n}
            makes = set(self.node[n].outs) if n is not None else set()
            for t in sorted(wanted[k] - state - makes):
                out.append(("refill", t))
            state = wanted[k] - takes - joins
            if n is not None:
                if takes:
                    done.inplace[len(out)] = next(iter(takes))
                if joins:
                    done.concat[len(out)] = tuple(t for t in self.node[n].ins if t in joins)
                out.append(("run", n))
                copy(makes)
        done.resident = state


@dataclass
class _Actions:
    actions: list[Action] = field(default_factory=list)
    inplace: dict[int, int] = field(default_factory=dict)
    concat: dict[int, tuple[int, ...]] = field(default_factory=dict)
    resident: set[int] = field(default_factory=set)
    copied: set[int] = field(default_factory=set)

    def steps(self, p: Problem) -> Steps:
        dropped = with_drops(p, self.actions, inplace=self.inplace, concat=self.concat)
        now = [k for k, (action, _) in enumerate(dropped) if action != "drop"]
        inplace = {now[k]: t for k, t in self.inplace.items()}
        return Steps(dropped, None, {}, inplace, {now[k]: ts for k, ts in self.concat.items()})


def flops(n: Node, p: Problem) -> int:
    """What running a node again is taken to cost: its FLOPs, or where these are not known one for each byte touched."""
    return n.flops or max(1, sum(p.tensors[t].raw for t in {*n.ins, *n.outs}))


def cost(p: Problem, steps: Steps, byte_flops: int = BYTE_FLOPS) -> int:
    """Of a valid plan, in FLOPs: bytes moved, at ``byte_flops`` each, and what is run again."""
    seen: set[int] = set()
    node = p.node()
    total = 0
    for action, x in steps.actions:
        if action == "run":
            total += flops(node[x], p) if x in seen else 0
            seen.add(x)
        elif action != "drop":
            total += p.tensors[x].raw * byte_flops
    return total


# Least arena ----------------------------------------------------------------------------------------------------------


def least_arena(
    p: Problem,
    start: Layout | None = None,
    *,
    reorder: bool = True,
    rewrite: bool = False,
    offsets: bool = False,
    solver: str = "cp-sat",
    seconds: float = 60.0,
    workers: int = 2,
    seed: int = 1,
) -> Outcome:
    """The order of least peak, with ``offsets`` of least arena; ``rewrite`` chooses what is overwritten and made in
    place with it, ``reorder=False`` keeps the order given.

    ``start`` is a plan to begin with, by default the order given as it is; it is returned where nothing better is
    found. Without ``offsets`` the objective is the peak of live bytes, and offsets are searched for afterwards.
    EffcError where the solver is not installed.
    """
    began = time.perf_counter()
    start = start or lay_out(p, p.given)
    least = start.arena if offsets else start.live
    x = _Program(
        p,
        steps=len(p.nodes),
        capacity=None,
        fixed=None if reorder else p.given,
        rewrite=rewrite,
        offsets=offsets,
        spill=False,
        recompute=False,
        byte_flops=0,
        ceiling=least,
    )
    if reorder or list(start.plan.order) == p.given:
        _begin_with_plan(x, start, offsets)
    got = x.solve(solver, seconds - (time.perf_counter() - began), workers, seed)
    bound, ended, layout = x.value(got.bound), got.ended, start
    if got.values is not None and x.value(got.objective) < least:
        layout = _layout(p, x, got.values, offsets)
        if (layout.arena if offsets else layout.live) > x.value(got.objective):
            raise MemoryPlanError("the integer program and the checker do not agree")
    found = layout.arena if offsets else layout.live
    if ended == "infeasible":  # no plan within the ceiling, which the start's is
        raise MemoryPlanError("the integer program has no plan, but there is one")
    took = time.perf_counter() - began
    sizes = len(x.m.lower), len(x.m.rows)
    return Outcome(found, min(bound, found), least, ended, took, layout, variables=sizes[0], rows=sizes[1])


def _layout(p: Problem, x: _Program, values: Sequence[int], offsets: bool) -> Layout:
    order = x.order(values)
    inplace = {n: t for (n, t, _), v in x.over.items() if values[v]}
    parts: dict[int, set[int]] = {}
    for (t, n, _), v in x.part.items():
        if values[v]:
            parts.setdefault(n, set()).add(t)
    seen = {n.id: tuple(t for t in n.outs if t in x.view and values[x.view[t]]) for n in p.nodes}
    joined = {n: tuple(t for t in x.node[n].ins if t in ts) for n, ts in parts.items()}
    choices = Choices(inplace, joined, {n: ts for n, ts in seen.items() if ts})
    if not offsets:
        return lay_out(p, order, choices)
    at = {t: values[v] * p.align for t, v in x.offset.items()}
    for t, v in x.rest.items():
        at[t] += values[v] * x.unit
    for giver in p.nodes:  # makers come before the readers that see into what they made
        for t, u, by in giver.views:
            if t in choices.views.get(giver.id, ()):
                at[t] = at[u] + by
    made = Plan(
        tuple(order),
        {t: o for t, o in at.items() if t >= 0},
        choices,
        {-1 - t: o for t, o in at.items() if t < 0},
    )
    return Layout(made, {}, verify(p, made))


def _begin_with_plan(x: _Program, start: Layout, offsets: bool) -> None:
    p, plan = x.p, start.plan
    at = {n: k for k, n in enumerate(plan.order)}
    if not x.rewrite and (plan.choices.inplace or plan.choices.concat or plan.choices.views):
        return
    life = dict(lifetimes(p, plan.order))
    over = {(n, t, at[n]) for n, t in plan.choices.inplace.items()}
    part = {(t, n, at[n]) for n, ts in plan.choices.concat.items() for t in ts}
    for n, ts in plan.choices.concat.items():
        for t in ts:
            life[t] = life[t][0], at[n]
    seen = {t for ts in plan.choices.views.values() for t in ts}
    for n in reversed(plan.order):  # what is seen through a view stays for its readers
        for t in plan.choices.views.get(n, ()):
            u = next(u for v, u, _ in x.node[n].views if v == t)
            life[u] = life[u][0], max(life[u][1], life[t][1])
    near: list[set[int]] = [set() for _ in plan.order]
    through: set[tuple[int, int]] = set()
    for t, (first, last) in life.items():
        for k in range(first, last + 1):
            if t in seen:
                through.add((t, k))
            else:
                near[k].add(t)
    more: dict[str, Any] = {"over": over, "part": part, "view": seen, "through": through}
    if plan.offsets is not None and offsets:
        more["offsets"] = {**plan.offsets, **{-1 - n: o for n, o in plan.workspaces.items()}}
    if len(p.spaces) == 1:
        more["peak"] = dict.fromkeys(p.spaces, start.arena if offsets else start.live)
    x.begin_with(plan.order, near, more)


# Within a capacity ----------------------------------------------------------------------------------------------------


def furthest(p: Problem, order: Sequence[int], capacity: int) -> Steps | None:
    """Belady's rule for an order: what is read again furthest ahead leaves. Spills and refills, no recomputation, no
    rewrites, one memory space; None where a node does not fit."""
    node = p.node()
    changed = {t for n in p.nodes for t in n.writes}
    uses: dict[int, list[int]] = {}
    for k, n in enumerate(order):
        for t in node[n].ins:
            uses.setdefault(t, []).append(k)
    for t, x in p.tensors.items():
        if x.kind == "output":
            uses.setdefault(t, []).append(len(order))

    def following(t: int, k: int) -> int:
        return next((u for u in uses.get(t, ()) if u > k), -1)

    actions: list[Action] = []
    resident: set[int] = set()
    copied: set[int] = set()
    outputs = {t for n in p.nodes for t in n.outs if p.tensors[t].kind == "output"}
    for k, n in enumerate([*order, -1]):
        if k == len(order):
            ins, outs, workspace = outputs, set(), 0
        else:
            ins = {t for t in node[n].ins if p.tensors[t].kind != "input"}
            outs, workspace = set(node[n].outs), node[n].workspace
        held = ins | outs
        total = sum(p.tensors[t].bytes for t in resident | held) + workspace
        for t in sorted(resident - held, key=lambda t: (-following(t, k), -p.tensors[t].bytes, t)):
            if total <= capacity or t in changed:
                continue
            total -= p.tensors[t].bytes
            resident.discard(t)
            if t not in copied:
                actions.append(("spill", t))
                copied.add(t)
        if total > capacity:
            return None
        actions += [("refill", t) for t in sorted(ins - resident)]
        if k < len(order):
            actions.append(("run", n))
        resident = {t for t in resident | held if following(t, k) >= 0}
    return Steps(with_drops(p, actions))


def within(
    p: Problem,
    capacity: int,
    start: Steps | None = None,
    *,
    reorder: bool = True,
    rewrite: bool = False,
    spill: bool = True,
    recompute: bool = False,
    extra: int | None = None,
    byte_flops: int = BYTE_FLOPS,
    most: int = 48,
    solver: str = "cp-sat",
    seconds: float = 60.0,
    workers: int = 2,
    seed: int = 1,
) -> Outcome:
    """Actions that keep the arena within ``capacity`` bytes and cost least: bytes moved times ``byte_flops``, and the
    FLOPs of what is run again, at most ``extra`` runs (as many as there are nodes, 8 at most).

    ``start``: a plan to begin with; by default Belady's on the order given, where spilling is allowed. Graphs of more
    than ``most`` nodes are cut. The program keeps the live bytes within the capacity; where the search for offsets then
    needs more, it is run again with that much less room, and the bound stays that of the first. ``ended`` is
    ``infeasible`` where there is no plan (with these means: an order may be fixed, a recomputation not counted on).
    """
    began = time.perf_counter()
    until = began + seconds
    best, best_cost = None, None
    missing = solving.why_not(solver)
    if missing:
        raise EffcError(f"the integer program for memory plans cannot run: {missing}")
    if start is None and spill:
        start = furthest(p, p.given, capacity)
    if start is not None:
        placed = _fits(p, start, capacity)
        if placed is not None:
            best, best_cost = placed, cost(p, placed, byte_flops)
    opened = best_cost
    pieces = _pieces(p, most) if len(p.nodes) > most else [p]
    spare = min(8, len(p.nodes)) if extra is None else extra
    options = {
        "rewrite": rewrite,
        "spill": spill,
        "recompute": recompute,
        "byte_flops": byte_flops,
        "offsets": False,
    }
    sizes = [0, 0]

    def one(piece: Problem, room: int, border: _Border, left: float) -> tuple[_Program, Solution]:
        reruns = spare if recompute else 0
        if start is not None and len(pieces) == 1 and recompute:
            reruns = max(reruns, sum(a == "run" for a, _ in start.actions) - len(p.nodes))
        x = _Program(
            piece,
            steps=len(piece.nodes) + reruns,
            capacity=dict.fromkeys(p.spaces, room),
            fixed=None if reorder else piece.given,
            ceiling=room,
            border=border,
            **options,  # type: ignore[arg-type]
        )
        sizes[0], sizes[1] = sizes[0] + len(x.m.lower), sizes[1] + len(x.m.rows)
        if len(pieces) == 1 and best is not None and (reorder or _order_of(best) == p.given):
            _begin_with_steps(x, best)
        return x, x.solve(solver, left, workers, seed)

    bound, ended, room = 0, "proven", capacity
    if len(pieces) > 1 and not recompute and not rewrite:  # what every plan must pay in each piece
        for k, piece in enumerate(pieces):
            later = _later(p, pieces, k)
            share = (until - time.perf_counter()) / (2 * (len(pieces) - k) + len(pieces))
            x, got = one(piece, capacity, _Border(later=later, free=True), share)
            if got.ended == "infeasible":
                return Outcome(0, 0, None, "infeasible", time.perf_counter() - began, pieces=len(pieces))
            bound += max(0, x.value(got.bound))
    elif len(pieces) > 1:
        ended = "time"
    for attempt in range(4):
        done = _Actions()
        solved = True
        for k, piece in enumerate(pieces):
            later = _later(p, pieces, k)
            border = _Border(done.resident & _carried(p, pieces, k), done.copied & _carried(p, pieces, k), later)
            left = (until - time.perf_counter()) / (len(pieces) - k)
            x, got = one(piece, room, border, left)
            if len(pieces) == 1 and not attempt:
                bound, ended = max(0, x.value(got.bound)), got.ended
                if got.ended == "infeasible" and best is None:
                    return Outcome(0, 0, None, "infeasible", time.perf_counter() - began)
            elif got.ended != "proven":
                ended = "time"
            if got.values is None:
                solved = False
                break
            x.actions(got.values, done)
        if not solved:
            ended = "time" if best is None or ended == "infeasible" else ended
            break
        steps = done.steps(p)
        if best_cost is not None and cost(p, steps, byte_flops) >= best_cost:
            break
        placed, needs = _placed(p, steps)
        if needs <= capacity:
            best, best_cost = placed, cost(p, placed, byte_flops)
            break
        ended = "time"
        room -= needs - capacity
        if time.perf_counter() > until:
            break
    took = time.perf_counter() - began
    if best is None or best_cost is None:
        return Outcome(0, bound, None, "time", took, variables=sizes[0], rows=sizes[1], pieces=len(pieces))
    bound = min(bound, best_cost)
    if len(pieces) > 1:
        ended = "proven" if bound == best_cost else "time"
    elif ended == "proven" and bound < best_cost:
        ended = "time"  # proven of live bytes, not of offsets
    return Outcome(best_cost, bound, opened, ended, took, None, best, None, sizes[0], sizes[1], len(pieces))


def _placed(p: Problem, steps: Steps) -> tuple[Steps, int]:
    free = dataclasses.replace(p, spaces=dict.fromkeys(p.spaces))
    placed, _ = place_steps(p, steps, budget=200_000_000)
    return placed, sum(verify_steps(free, placed).arena.values())


def _fits(p: Problem, steps: Steps, capacity: int) -> Steps | None:
    placed, needs = _placed(p, steps) if steps.offsets is None else (steps, 0)
    return placed if needs <= capacity else None


def _order_of(steps: Steps) -> list[int]:
    return list(dict.fromkeys(x for action, x in steps.actions if action == "run"))


def _begin_with_steps(x: _Program, steps: Steps) -> None:
    runs: list[int] = []
    near: list[set[int]] = []
    state: set[int] = set()
    refill: set[tuple[int, int]] = set()
    over: set[tuple[int, int, int]] = set()
    part: set[tuple[int, int, int]] = set()
    copied: set[int] = set()
    gone: set[int] = set()
    for k, (action, t) in enumerate(steps.actions):
        if action == "run":
            state |= set(x.node[t].outs)
            near.append(set(state))
            runs.append(t)
            if k in steps.inplace:
                over.add((t, steps.inplace[k], len(runs) - 1))
                state.discard(steps.inplace[k])
            for u in steps.concat.get(k, ()):
                part.add((u, t, len(runs) - 1))
                state.discard(u)
        elif action == "refill":
            state.add(t)
            if len(runs) == x.count:  # behind the last run: there all the while
                gone.add(t)
            refill.add((t, len(runs)))
        elif action == "spill":
            copied.add(t)
        else:
            state.discard(t)
    if len(runs) > x.count or gone:
        return
    near += [set(state) for _ in range(x.count - len(runs))]
    x.begin_with(runs, near, {"refill": refill, "over": over, "part": part, "copied": copied})


# Pieces ---------------------------------------------------------------------------------------------------------------


def gates(p: Problem) -> list[int]:
    """Articulation points of the order: nodes that all others must precede or follow, in order."""
    g = _Graph.of(p)
    return [n for n in p.given if g.before[n] + g.behind[n] == len(p.nodes) - 1]


def _pieces(p: Problem, most: int) -> list[Problem]:
    """The nodes in pieces of up to ``most`` that end at articulation points; longer where these are far apart."""
    g = _Graph.of(p)
    rank = {n: k for k, n in enumerate(p.given)}
    # Between two such points, nodes stand in the order given; each is before the next point that it precedes.
    ends = [g.before[n] for n in gates(p)]
    order = sorted(p.given, key=lambda n: (sum(g.before[n] > e for e in ends), rank[n]))
    node = p.node()
    out: list[list[Node]] = [[]]
    last = set(gates(p))
    stretch: list[Node] = []
    for n in order:
        stretch.append(node[n])
        if n in last or n == order[-1]:
            if out[-1] and len(out[-1]) + len(stretch) > most:
                out.append([])
            out[-1] += stretch
            stretch = []
    return [dataclasses.replace(p, nodes=tuple(ns)) for ns in out if ns]


def _carried(p: Problem, pieces: Sequence[Problem], k: int) -> set[int]:
    """Tensors made before piece ``k`` and needed in it or later."""
    made = {t for x in pieces[:k] for n in x.nodes for t in n.outs}
    needed = {t for x in pieces[k:] for n in x.nodes for t in n.ins}
    return {t for t in made if t in needed or p.tensors[t].kind == "output"}


def _later(p: Problem, pieces: Sequence[Problem], k: int) -> set[int]:
    return _carried(p, pieces, k + 1) if k + 1 < len(pieces) else set()


# Placement, and two spaces --------------------------------------------------------------------------------------------


def place(
    intervals: Sequence[Interval],
    start: Mapping[int, int] | None = None,
    *,
    solver: str = "cp-sat",
    seconds: float = 60.0,
    workers: int = 2,
    seed: int = 1,
) -> Outcome:
    """Offsets for buffers whose times are given. ``start``: offsets to begin with, by default greedy ones by size.

    Asked first is whether there are any in the live lower bound, which is easier than the least arena; that only where
    there are none.
    """
    began = time.perf_counter()
    offsets = dict(start or greedily(sorted(intervals, key=lambda i: (-i.bytes, i.start, i.id))))
    total, least = verify_placement(intervals, offsets), lower_bound(intervals)
    unit = math.gcd(*(z for i in intervals for z in (i.align, *(e for b in i.boxes for e in b[2:]))))
    tops = [max(b[3] for b in i.boxes) for i in intervals]

    def model(ceiling: int) -> tuple[Model, dict[int, int]]:
        m = Model()
        arena = m.integer(-(-least // unit), ceiling // unit)
        at: dict[int, int] = {}
        for i, high in zip(intervals, tops):
            most = max(0, (ceiling - high) // i.align)
            at[i.id] = m.integer(0, most) if i.offset is None else m.integer(i.offset // i.align, i.offset // i.align)
            m.row([(i.align // unit, at[i.id]), (-1, arena)], None, -(high // unit))
            m.boxes += [
                Box(a, b, i.align // unit, at[i.id], lo // unit, (hi - lo) // unit)
                for a, b, lo, hi in i.boxes
                if a <= b and lo < hi
            ]
            m.hint[at[i.id]] = min(offsets[i.id] // i.align, most)
        if ceiling > least:
            m.minimise([(1, arena)])
            m.hint[arena] = ceiling // unit
        return m, at

    best, ended, bound = total, "time", least
    for ceiling in (least, total):
        m, at = model(ceiling)
        left = seconds - (time.perf_counter() - began)
        got = solving.solve(m, solver=solver, seconds=left, workers=workers, seed=seed)
        if got.values is not None:
            trial = {i.id: got.values[at[i.id]] * i.align for i in intervals}
            reached = verify_placement(intervals, trial)
            if reached < best:
                offsets, best = trial, reached
        if ceiling == least:
            if got.ended != "infeasible":
                break
            bound = least + unit
        else:
            bound = max(bound, min(got.bound * unit, best))
    bound = min(bound, best)
    ended = "proven" if bound == best else ended
    placement = Placement(offsets, best, least, "integer program", ended, proven_bound=bound)
    took = time.perf_counter() - began
    sizes = len(m.lower), len(m.rows) + len(m.boxes)
    return Outcome(best, bound, total, ended, took, placement=placement, variables=sizes[0], rows=sizes[1])


def traffic(p: Problem, space: str) -> int:
    """Bytes written to and read from a space: each tensor there once by its maker and once by each reader."""
    reads: dict[int, int] = {}
    for n in p.nodes:
        for t in {*n.ins, *n.outs}:
            reads[t] = reads.get(t, 0) + 1
    return sum(x.raw * reads.get(t, 0) for t, x in p.tensors.items() if x.kind != "input" and x.space == space)


def in_spaces(p: Problem, where: Mapping[int, str]) -> Problem:
    """The problem with tensors in other spaces."""
    tensors = {t: dataclasses.replace(x, space=where.get(t, x.space)) for t, x in p.tensors.items()}
    spaces = {**p.spaces, **{s: None for s in where.values() if s not in p.spaces}}
    return dataclasses.replace(p, tensors=tensors, spaces=spaces)


def densest(p: Problem, order: Sequence[int], capacity: int, slow: str) -> Problem:
    """A greedy choice of spaces: what is touched most for its bytes and steps comes first into the fast one."""
    life = lifetimes(p, order)
    touched: dict[int, int] = {}
    for n in p.nodes:
        for t in {*n.ins, *n.outs}:
            touched[t] = touched.get(t, 0) + 1
    rank = sorted(life, key=lambda t: (-touched[t] / (life[t][1] - life[t][0] + 1), p.tensors[t].bytes, t))
    node = p.node()
    used = [node[n].workspace for n in order]
    where: dict[int, str] = {}
    for t in rank:
        a, b = life[t]
        if max(used[a : b + 1]) + p.tensors[t].bytes > capacity:
            where[t] = slow
            continue
        for k in range(a, b + 1):
            used[k] += p.tensors[t].bytes
    return in_spaces(p, where)


def two_spaces(
    p: Problem,
    capacity: int,
    slow: str = "slow",
    *,
    solver: str = "cp-sat",
    seconds: float = 60.0,
    workers: int = 2,
    seed: int = 1,
) -> tuple[Outcome, Problem]:
    """Which tensors lie in the arena, of ``capacity`` bytes, and which in the space ``slow``, which has no limit: the
    least traffic with that (``traffic``), for the order given, with offsets. The problem returned has the spaces.

    Begins with ``densest``; a choice of it that has no offsets loses its largest tensor until it does. ValueError where
    a workspace alone is more than the capacity.
    """
    began = time.perf_counter()
    order = p.given
    if max((n.workspace for n in p.nodes), default=0) > capacity:
        raise ValueError("a workspace is larger than the fast space")

    def laid(q: Problem) -> Layout:
        return lay_out(dataclasses.replace(q, spaces=dict.fromkeys(q.spaces)), order, budget=200_000_000)

    best = densest(p, order, capacity, slow)
    layout = laid(best)
    while layout.seen.arena.get(ARENA, 0) > capacity:
        fast = [t for t in lifetimes(p, order) if best.tensors[t].space == ARENA]
        best = in_spaces(best, {max(fast, key=lambda t: p.tensors[t].bytes): slow})
        layout = laid(best)
    opened = traffic(best, slow)
    life = lifetimes(p, order)
    intervals, _ = boxes(p, order, Choices())
    unit = math.gcd(p.align, *(i.bytes for i in intervals))
    m = Model()
    away: dict[int, int] = {}
    at: dict[int, int] = {}
    cells: dict[int, list[Term]] = {}
    for i in intervals:
        bytes_ = -(-i.bytes // unit)
        at[i.id] = m.integer(0, max(0, (capacity - i.bytes) // p.align))
        there = None
        if i.id >= 0:
            away[i.id] = m.boolean() if i.bytes <= capacity else m.integer(1, 1)
            there = ~away[i.id]
            m.hint[away[i.id]] = int(best.tensors[i.id].space == slow)
        if i.bytes <= capacity:
            m.boxes.append(Box(i.start, i.stop, p.align // unit, at[i.id], 0, bytes_, there))
        for k in range(i.start, i.stop + 1):
            cells.setdefault(k, []).append((bytes_, away.get(i.id)))
    for terms in cells.values():  # live bytes: what is away makes room
        m.row([(c, v) for c, v in terms], sum(c for c, _ in terms) - capacity // unit)
    touched = {t: traffic(in_spaces(p, {t: slow}), slow) for t in life}
    scale = math.gcd(*touched.values()) or 1 if touched else 1
    m.minimise((touched[t] // scale, v) for t, v in away.items())
    got = solving.solve(m, solver=solver, seconds=seconds, workers=workers, seed=seed)
    found, ended = opened, got.ended
    if got.values is not None and got.objective * scale < opened:
        values = got.values
        trial = in_spaces(p, {t: slow for t, v in away.items() if values[v]})
        placed = laid(trial)
        fast_at = {t: values[v] * p.align for t, v in at.items()}
        mixed = Plan(
            tuple(order),
            {t: o if trial.tensors[t].space == slow else fast_at[t] for t, o in (placed.plan.offsets or {}).items()},
            Choices(),
            {-1 - t: o for t, o in fast_at.items() if t < 0},
        )
        limited = dataclasses.replace(trial, spaces={**trial.spaces, ARENA: capacity})
        best, layout = trial, Layout(mixed, {}, verify(limited, mixed))
        found = traffic(trial, slow)
    best = dataclasses.replace(best, spaces={**best.spaces, ARENA: capacity})
    bound = min(found, got.bound * scale)
    ended = "proven" if bound == found else got.ended
    took = time.perf_counter() - began
    sizes = len(m.lower), len(m.rows) + len(m.boxes)
    return Outcome(found, bound, opened, ended, took, layout, variables=sizes[0], rows=sizes[1]), best
