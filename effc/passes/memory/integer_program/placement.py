"""Offsets of buffers whose times are given, and which tensors lie in the fast one of two spaces."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

from .. import solver as solving
from ..plan import Interval, Placement, lower_bound
from ..plan import place as greedily
from ..problem import ARENA, Choices, Plan, Problem, boxes, lifetimes
from ..schedule import Layout, lay_out
from ..solver import Box, Model, Term
from ..verify import verify, verify_placement
from .outcome import Outcome


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
