"""Variables and rows: which node runs when, what is resident and what moves; solutions as orders and actions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import solver as solving
from ..problem import Action, Node, Problem, Steps, with_drops
from ..solver import Model, Solution, Term
from . import rewrites, space
from .outcome import flops
from .pieces import Border, Graph


class Program:
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
        border: Border | None = None,
    ) -> None:
        self.p, self.m, self.g = p, Model(), Graph.of(p)
        # With traffic there is a last step at which nothing runs: outputs may come back to where operands were.
        self.runs, self.count = steps, steps + spill
        self.capacity, self.rewrite, self.spill, self.recompute = capacity, rewrite, spill, recompute
        self.border = border or Border()
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
            rewrites.add(self)
            rewrites.add_views(self)
        self._operands()
        space.add_room(self, ceiling)
        if offsets:
            space.add_offsets(self, ceiling)
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

    def renewed(self, t: int, k: int) -> list[Term]:
        """What begins a residency of a tensor at a step."""
        maker = self.g.maker.get(t)
        made = self.run.get((maker, k)) if maker is not None else None
        return [(-1, made), (-1, self.refill.get((t, k)))]

    def where(self, t: int, k: int) -> list[Term]:
        """Where a tensor is at a step if no concatenation holds it: by itself, or in what it is a view of."""
        out: list[Term] = [(1, self.near.get((t, k)))]
        if t in self.seen_in:
            if (t, k) not in self.through:
                v = self.through[t, k] = self.m.boolean()
                self.m.row([(1, v), (-1, self.view[t])], None, 0)
                self.m.row([(1, v), *((-c, w) for c, w in self.where(self.seen_in[t], k))], None, 0)
            out.append((1, self.through[t, k]))
        return out

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
        out = self.where(t, k)
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

    def actions(self, x: Sequence[int], done: Actions) -> None:
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
class Actions:
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
