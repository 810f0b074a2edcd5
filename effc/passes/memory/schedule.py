"""Order, rewrites and placement of a problem together: the searches as evaluators of each other's choices.

``lay_out`` places what an order and its rewrites ask for; ``schedule`` chooses them. The order with the least peak
comes first; rewrites are kept only if they make the arena smaller; whatever is returned has been verified, and takes no
more than the order given, as it is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import order as ordering
from .order import Order
from .plan import Interval, Placement, plan
from .problem import ARENA, Choices, Plan, Problem, Steps, boxes, lifetimes
from .verify import Seen, verify


@dataclass(frozen=True)
class Layout:
    """A verified plan with offsets. ``live`` is its peak of live bytes, ``arena`` what it takes, of all spaces."""

    plan: Plan
    placements: Mapping[str, Placement]
    seen: Seen
    seconds: float = 0.0

    @property
    def arena(self) -> int:
        return sum(self.seen.arena.values())

    @property
    def live(self) -> int:
        return self.seen.peak

    @property
    def ended(self) -> str:
        return next((x.ended for x in self.placements.values() if x.ended != "proven"), "proven")


@dataclass(frozen=True)
class Schedule:
    layout: Layout
    order: Order  # of the search that made the plan's order
    given: Layout  # the order given, nothing rewritten


def lay_out(
    p: Problem,
    order: Sequence[int],
    choices: Choices | None = None,
    *,
    budget: int = 2_000_000_000,
    seconds: float = 20.0,
) -> Layout:
    """Offsets for everything, each memory space by itself. ValueError for rewrites that do not suit the order."""
    began = time.perf_counter()
    choices = choices or Choices()
    intervals, where = boxes(p, order, choices)
    spaces: dict[str, list[Interval]] = {}
    for i in intervals:
        spaces.setdefault(p.tensors[i.id].space if i.id >= 0 else ARENA, []).append(i)
    placements = {s: plan(members, budget=budget, seconds=seconds) for s, members in spaces.items()}
    at = {i: o for x in placements.values() for i, o in x.offsets.items()}
    made = Plan(
        tuple(order),
        {t: at[root] + by for t, (root, by) in where.items()},
        choices,
        {n.id: at[-1 - n.id] for n in p.nodes if n.workspace},
    )
    return Layout(made, placements, verify(p, made), time.perf_counter() - began)


def lay_out_found(
    p: Problem, o: Order, choices: Choices | None = None, *, budget: int = 2_000_000_000, seconds: float = 20.0
) -> Layout:
    """The smaller arena of the two orders that a search found. Both are tried with a part of the work first.

    ValueError for rewrites that do not suit ``o.order``."""
    until = time.perf_counter() + seconds
    best: Layout | None = None
    for part in (budget // 40, budget):
        for sequence in dict.fromkeys((o.order, o.loose or o.order)):
            left = max(0.1, until - time.perf_counter())
            try:
                trial = lay_out(p, sequence, choices, budget=part, seconds=left)
            except ValueError:
                if best is None:
                    raise
                continue
            if best is None or trial.arena < best.arena:
                best = trial
            if trial.arena <= trial.live <= best.live:
                return best
    assert best is not None
    return best


def place_steps(
    p: Problem, steps: Steps, *, budget: int = 2_000_000_000, seconds: float = 20.0
) -> tuple[Steps, dict[str, Placement]]:
    """Offsets for every residency of a plan of actions, each memory space by itself. Not verified yet."""
    node = p.node()
    since: dict[int, int] = {}
    ends: dict[tuple[int, int], int] = {}
    inside: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}  # residency -> what takes it over, and where
    joined: set[tuple[int, int]] = set()
    for k, (action, x) in enumerate(steps.actions):
        if action == "refill":
            since[x] = k
        elif action == "drop":
            ends[since.pop(x), x] = k
        elif action == "run":
            over = steps.inplace.get(k)
            if over is not None:
                r = since.pop(over), over
                ends[r], inside[r] = k - 1, ((k, node[x].outs[0]), 0)
            places = dict(node[x].concat)
            for t in steps.concat.get(k, ()):
                r = since.pop(t), t
                ends[r], inside[r] = k - 1, ((k, node[x].outs[0]), places[t])
                joined.add(r)
            for t in node[x].outs:
                since.setdefault(t, k)
    ends.update(((k, t), len(steps.actions) - 1) for t, k in since.items())

    def root(r: tuple[int, int]) -> tuple[tuple[int, int], int]:
        at = 0
        while r in inside:
            r, by = inside[r]
            at += by
        return r, at

    groups: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    pins: dict[tuple[int, int], int] = {}
    for r, end in ends.items():
        top, at = root(r)
        size = p.tensors[r[1]].raw if r in joined else p.tensors[r[1]].bytes
        groups.setdefault(top, []).append((r[0], end, at, at + size))
        pinned = p.tensors[r[1]].pinned
        if pinned is not None:
            pins[top] = pinned - at
    spaces: dict[str, list[Interval]] = {}
    names = list(groups)
    for i, top in enumerate(names):
        pieces = tuple(sorted(x for x in groups[top] if x[0] <= x[1]))
        start, stop = min(x[0] for x in pieces), max(x[1] for x in pieces)
        high = max(x[3] for x in pieces)
        parts = pieces if len(pieces) > 1 else ()
        interval = Interval(i, start, stop, high, p.align, pins.get(top), parts)
        spaces.setdefault(p.tensors[top[1]].space, []).append(interval)
    for k, (action, x) in enumerate(steps.actions):
        if action == "run" and node[x].workspace:
            spaces.setdefault(ARENA, []).append(Interval(-1 - k, k, k, node[x].workspace, p.align))
    placements = {s: plan(members, budget=budget, seconds=seconds) for s, members in spaces.items()}
    found = {i: o for x in placements.values() for i, o in x.offsets.items()}
    where = {top: found[i] for i, top in enumerate(names)}
    offsets = {r: where[top] + by for r in ends for top, by in (root(r),)}
    workspaces = {-1 - i: o for i, o in found.items() if i < 0}
    return Steps(steps.actions, offsets, workspaces, steps.inplace, steps.concat), placements


def schedule(
    p: Problem,
    *,
    rewrite: bool = False,
    states: int = 2_000_000,
    work: int = 100_000_000,
    seconds: float = 60.0,
) -> Schedule:
    """``states`` limits each search for an order, ``work`` each for offsets, ``seconds`` all (an outer guard)."""
    until = time.perf_counter() + seconds
    given = lay_out(p, p.given, budget=work)
    best = given
    found = ordering.order(p, budget=states, seconds=seconds)
    if found.order != given.plan.order:
        trial = lay_out_found(p, found, budget=work)
        if trial.arena < best.arena:
            best = trial
    if rewrite:
        # Fewest rewrites first, so that equal arenas keep them few.
        for choices, inplace in _candidates(p, states, until):
            if time.perf_counter() > until:
                break
            trial_order = _evaluate(p, choices, inplace, states, until)
            if trial_order is None or trial_order[0].peak >= best.arena:
                continue
            o, kept = trial_order
            for picked in (_needed(p, o, kept), kept):
                try:
                    trial = lay_out_found(p, o, picked, budget=work)
                except ValueError:
                    continue
                if trial.arena < best.arena:
                    best, found = trial, o
    return Schedule(best, found, given)


def _evaluate(p: Problem, choices: Choices, inplace: bool, states: int, until: float) -> tuple[Order, Choices] | None:
    """The best order for these rewrites, without the parts that would outlive what holds them, and with the operands
    that can be overwritten in it."""
    for _ in range(8):
        left = max(0.1, until - time.perf_counter())
        try:
            found = ordering.order(p, choices, inplace=inplace, budget=states, seconds=left)
        except ValueError:
            return None
        life = lifetimes(p, found.order)
        out = {n.id: n.outs[0] for n in p.nodes if n.outs}
        valid = {
            n: kept
            for n, parts in choices.concat.items()
            if (kept := tuple(t for t in parts if life[t][1] <= life[out[n]][1]))
        }
        if valid == choices.concat:
            break
        choices = Choices(choices.inplace, valid)
    else:
        return None
    if not inplace:
        return found, choices
    at = {n: k for k, n in enumerate(found.order)}
    held = {t for parts in choices.concat.values() for t in parts}
    over = {}
    for n in p.nodes:
        dying = [
            t
            for t in n.inplace_ok
            if len(n.outs) == 1 and p.tensors[t].kind == "intermediate" and life[t][1] == at[n.id] and t not in held
            if n.outs[0] not in held or p.tensors[t].bytes <= p.tensors[n.outs[0]].raw
        ]
        if dying:
            over[n.id] = max(dying, key=lambda t: p.tensors[t].bytes)
    return found, Choices(over, choices.concat)


def _needed(p: Problem, o: Order, choices: Choices) -> Choices:
    """Only what is overwritten in steps that would otherwise exceed the peak."""
    plain = ordering.steps(p, o.order, Choices({}, choices.concat))
    above = {n for n, b in zip(o.order, plain) if b > o.peak}
    return Choices({n: t for n, t in choices.inplace.items() if n in above}, choices.concat)


def _candidates(p: Problem, states: int, until: float) -> list[tuple[Choices, bool]]:
    """Sets of concatenations made in place, with and without overwriting: all sets if there are few, else those that a
    greedy search by peak goes through."""
    cats = {n.id: tuple(t for t, _ in n.concat) for n in p.nodes if n.concat}
    over = any(n.inplace_ok for n in p.nodes)
    sets: list[tuple[int, ...]] = []
    if len(cats) <= 4:
        for k in range(len(cats) + 1):
            sets += itertools.combinations(cats, k)
    else:
        sets = [(), tuple(cats)]
        chosen: tuple[int, ...] = ()
        peak = None
        for n in sorted(cats, key=lambda n: -sum(p.tensors[t].bytes for t in cats[n])):
            if time.perf_counter() > until:
                break
            trial = (*chosen, n)
            got = _evaluate(p, Choices({}, {k: cats[k] for k in trial}), over, states // 10, until)
            if got is not None and (peak is None or got[0].peak <= peak):
                chosen, peak = trial, got[0].peak
                sets.append(chosen)
    out = []
    for s in sets:
        choices = Choices({}, {n: cats[n] for n in s})
        out += [(choices, flag) for flag in ((False, True) if over else (False,)) if s or flag]
    return out
