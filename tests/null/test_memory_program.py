"""The integer program against exhaustion, for each kind of problem and both solvers; starts; what is missing."""

from __future__ import annotations

import dataclasses

import pytest

from effc.passes.memory import program, schedule, solver
from effc.passes.memory.plan import lower_bound
from effc.passes.memory.problem import Problem
from effc.passes.memory.verify import verify, verify_placement, verify_steps
from tests.null.memory_cases import (
    all_orders,
    least_arena,
    least_cost,
    least_coupled,
    least_peak,
    least_rewritten,
    random_graph,
    random_intervals,
)

SOLVERS = [
    pytest.param(s, marks=pytest.mark.skipif(solver.why_not(s) is not None, reason=str(solver.why_not(s))))
    for s in ("cp-sat", "highs")
]
cp_sat = pytest.mark.skipif(solver.why_not() is not None, reason=str(solver.why_not()))
both = pytest.mark.parametrize("which", SOLVERS)


@both
@pytest.mark.parametrize("seed", range(12))
def test_orders(which: str, seed: int) -> None:
    p = random_graph(seed, 4 + seed % 5)
    o = program.least_arena(p, solver=which)
    assert o.ended == "proven" and o.layout is not None
    assert o.objective == o.bound == least_peak(p) == verify(p, o.layout.plan).peak


@both
@pytest.mark.parametrize("seed", range(14))
def test_rewrites_inside(which: str, seed: int) -> None:
    p = random_graph(seed, 5 + seed % 2, inplace=0.7, concat=0.6, wide=0.3)
    o = program.least_arena(p, rewrite=True, solver=which)
    assert o.ended == "proven" and o.layout is not None
    assert o.objective == o.bound == least_rewritten(p) == verify(p, o.layout.plan).peak


@both
@pytest.mark.parametrize("seed", range(10))
def test_order_and_offsets(which: str, seed: int) -> None:
    p = random_graph(seed, 4 + seed % 2, wide=0.4)
    p = dataclasses.replace(p, nodes=p.nodes)
    if sum(1 for _ in all_orders(p)) > 60:
        pytest.skip("too many orders to place them all")
    o = program.least_arena(p, offsets=True, solver=which)
    assert o.ended == "proven" and o.layout is not None
    assert o.objective == o.bound == least_coupled(p) == sum(verify(p, o.layout.plan).arena.values())


@cp_sat
@pytest.mark.parametrize("seed", range(8))
def test_rewrites_and_offsets(seed: int) -> None:
    """Between the peak, which no arena is below, and what the searches reach one after the other."""
    p = random_graph(seed, 7, inplace=0.7, concat=0.6, wide=0.3)
    start = schedule.schedule(p, rewrite=True).layout
    peak = program.least_arena(p, start, rewrite=True)
    o = program.least_arena(p, start, rewrite=True, offsets=True)
    assert o.layout is not None and peak.bound <= o.bound <= o.objective <= start.arena
    assert sum(verify(p, o.layout.plan).arena.values()) == o.objective


@both
@pytest.mark.parametrize("seed", range(20))
def test_placement(which: str, seed: int) -> None:
    intervals = random_intervals(seed, 5, align=[1, 4][seed % 2], pinned=0.5)
    o = program.place(intervals, solver=which)
    assert o.placement is not None and o.ended == "proven"
    assert o.objective == least_arena(intervals) == verify_placement(intervals, o.placement.offsets)
    assert o.bound == o.objective >= lower_bound(intervals)


MEANS = [(True, False), (False, True), (True, True)]


@both
@pytest.mark.parametrize(("spill", "recompute"), MEANS)
@pytest.mark.parametrize("seed", range(6))
def test_least_cost_within_a_capacity(which: str, seed: int, spill: bool, recompute: bool) -> None:
    """Between the largest node and the least peak. The bound is of live bytes, as what it is compared with."""
    p = random_graph(seed, 5, wide=0.4)
    own = max(sum(p.tensors[t].bytes for t in {*n.ins, *n.outs} - {0}) + n.workspace for n in p.nodes)
    peak = least_peak(p)
    capacity = (own + (peak - own) // 2) // 64 * 64
    again = {n.id: program.flops(n, p) for n in p.nodes}
    best = least_cost(p, capacity, 16, spill=spill, recompute=recompute, cost=again)
    o = program.within(p, capacity, spill=spill, recompute=recompute, extra=4, solver=which)
    if best < 0:
        assert o.ended == "infeasible"
        return
    assert o.bound == best <= o.objective
    if o.steps is not None:
        seen = verify_steps(within(p, capacity), o.steps)
        assert program.cost(p, o.steps) == o.objective and seen.moved * 16 <= o.objective
        assert o.ended != "proven" or o.objective == best


def within(p: Problem, capacity: int) -> Problem:
    return dataclasses.replace(p, spaces={"arena": capacity})


@cp_sat
def test_cost_matters_and_offsets_are_found() -> None:
    """Over many graphs: plans exist, some cost something, most are proven with their offsets."""
    ended = []
    for seed in range(12):
        p = random_graph(seed, 7, wide=0.5)
        own = max(sum(p.tensors[t].bytes for t in {*n.ins, *n.outs} - {0}) + n.workspace for n in p.nodes)
        o = program.within(p, own, recompute=True, extra=3)
        if o.steps is not None:
            verify_steps(within(p, own), o.steps)
            start = program.furthest(p, p.given, own)
            assert o.start is None or start is None or o.objective <= o.start
        ended.append((o.ended, o.objective > 0))
    assert sum(e == "proven" for e, _ in ended) >= 8 and sum(c for _, c in ended) >= 4, ended
