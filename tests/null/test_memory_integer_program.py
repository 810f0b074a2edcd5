"""The integer program against exhaustion, for each kind of problem and both solvers; starts; what is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator

import pytest

from effc.passes.memory import integer_program as program
from effc.passes.memory import schedule, solver
from effc.passes.memory.plan import lower_bound
from effc.passes.memory.problem import (
    Choices,
    Node,
    Plan,
    Problem,
    Tensor,
    boxes,
    from_dict,
    plan_from_dict,
    plan_to_dict,
    to_dict,
)
from effc.passes.memory.verify import MemoryPlanError, verify, verify_placement, verify_steps
from effc.runtime.errors import EffcError
from tests.null.memory_cases import (
    all_orders,
    least_arena,
    least_cost,
    least_coupled,
    least_peak,
    least_rewritten,
    random_graph,
    random_intervals,
    with_views,
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
@pytest.mark.parametrize("seed", range(16))
def test_views_inside(which: str, seed: int) -> None:
    """A slice lies in its operand, which then stays, or is a copy, so that the operand may go."""
    p = with_views(random_graph(seed, 5 + seed % 2, inplace=0.6, concat=0.4, wide=0.3), seed)
    o = program.least_arena(p, rewrite=True, solver=which)
    assert o.ended == "proven" and o.layout is not None
    assert o.objective == o.bound == least_rewritten(p) == verify(p, o.layout.plan).peak
    assert plan_from_dict(plan_to_dict(o.layout.plan)) == o.layout.plan
    assert from_dict(to_dict(p)).nodes == p.nodes


@cp_sat
def test_views_are_used_and_copies_too() -> None:
    """Of the graphs above some are better for views; and one for a copy: a small slice of what is large and dead."""
    better = 0
    for seed in range(16):
        p = with_views(random_graph(seed, 5 + seed % 2, inplace=0.6, concat=0.4, wide=0.3), seed)
        without = dataclasses.replace(p, nodes=tuple(dataclasses.replace(n, views=()) for n in p.nodes))
        a, b = (program.least_arena(x, rewrite=True, offsets=True) for x in (p, without))
        assert a.layout is not None and a.objective <= b.objective
        assert sum(verify(p, a.layout.plan).arena.values()) == a.objective
        better += a.objective < b.objective
    assert better >= 3
    sizes = {1: 1024, 2: 64, 3: 1024, 4: 64}
    t = {
        0: Tensor(0, 64, "input"),
        **{k: Tensor(k, b, "output" if k == 4 else "intermediate") for k, b in sizes.items()},
    }
    nodes = (
        Node(0, (0,), (1,)),
        Node(1, (1,), (2,), "slice", views=((2, 1, 128),)),
        Node(2, (0,), (3,), after=(1,)),
        Node(3, (2, 3), (4,)),
    )
    o = program.least_arena(Problem(nodes, t), rewrite=True)
    assert o.objective == 1152 and o.layout is not None and not o.layout.plan.choices.views
    o = program.least_arena(
        Problem(nodes[:2] + (dataclasses.replace(nodes[3], ins=(2, 1)),), {k: t[k] for k in (0, 1, 2, 4)}), rewrite=True
    )
    assert o.objective == 1088 and o.layout is not None and o.layout.plan.choices.views == {1: (2,)}


def test_broken_views_are_noticed() -> None:
    t = {0: Tensor(0, 64, "input"), 1: Tensor(1, 256), 2: Tensor(2, 128), 3: Tensor(3, 256, "output")}
    nodes = (
        Node(0, (0,), (1,)),
        Node(1, (1,), (2,), "slice", views=((2, 1, 128),)),
        Node(2, (1, 2), (3,), "add", inplace_ok=(1,)),
    )
    p = Problem(nodes, t)
    good = Choices({}, {}, {1: (2,)})
    assert verify(p, Plan((0, 1, 2), {1: 0, 2: 128, 3: 256}, good)).peak == 512
    broken = [
        (Choices({2: 1}, {}, {1: (2,)}), {1: 0, 2: 128, 3: 0}, "through a view"),
        (good, {1: 0, 2: 64, 3: 256}, "not at its place"),
        (good, {1: 0, 2: 128, 3: 128}, "share bytes"),
        (Choices({}, {}, {0: (1,)}), {1: 0, 2: 128, 3: 256}, "no view"),
    ]
    for choices, offsets, said in broken:
        with pytest.raises(MemoryPlanError, match=said):
            verify(p, Plan((0, 1, 2), offsets, choices))
    with pytest.raises(ValueError, match="seen through another"):
        boxes(p, (0, 1, 2), Choices({2: 1}, {}, {1: (2,)}))
    made = {"id": 0, "name": "", "op": "add", "ins": [0], "outs": [1], "inplace_ok": []}
    split = {"id": 1, "name": "", "op": "split", "ins": [1], "outs": [2, 4], "inplace_ok": []}
    g = to_dict(Problem((), {0: t[0], 1: t[1], 2: t[2], 4: Tensor(4, 128)})) | {"nodes": [made, split]}
    assert from_dict(g).nodes[1].views == ((2, 1, 0), (4, 1, 128))


@both
@pytest.mark.parametrize("seed", [0, 2, 3, 4, 6, 7, 8, 9])
def test_order_and_offsets(which: str, seed: int) -> None:
    p = random_graph(seed, 4 + seed % 2, wide=0.4)
    assert sum(1 for _ in all_orders(p)) <= 12  # few enough to place them all
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
    for seed in range(10):
        p = random_graph(seed, 7, wide=0.5)
        own = max(sum(p.tensors[t].bytes for t in {*n.ins, *n.outs} - {0}) + n.workspace for n in p.nodes)
        o = program.within(p, own, recompute=True, extra=3)
        if o.steps is not None:
            verify_steps(within(p, own), o.steps)
            start = program.furthest(p, p.given, own)
            assert o.start is None or start is None or o.objective <= o.start
        ended.append((o.ended, o.objective > 0))
    assert sum(e == "proven" for e, _ in ended) >= 7 and sum(c for _, c in ended) >= 4, ended


@cp_sat
@pytest.mark.parametrize("seed", range(6))
def test_a_start_is_never_made_worse(seed: int) -> None:
    """With no time to solve anything, the start comes back, with a bound that holds; so it does where it is best."""
    p = random_graph(seed, 12, inplace=0.5, concat=0.3)
    found = schedule.schedule(p, rewrite=True).layout
    for seconds in (0.0, 20.0):
        o = program.least_arena(p, found, rewrite=True, offsets=True, seconds=seconds)
        assert o.layout is not None and o.start == found.arena
        assert o.bound <= o.objective == sum(verify(p, o.layout.plan).arena.values()) <= found.arena
    capacity = sum(t.bytes for t in p.tensors.values())
    free = program.within(p, capacity)
    assert free.ended == "proven" and free.objective == 0 and free.steps is not None
    intervals = random_intervals(seed, 9)
    best = program.place(intervals).placement
    assert best is not None
    assert program.place(intervals, best.offsets, seconds=0.0).objective == best.total


@cp_sat
@pytest.mark.parametrize("seed", range(8))
def test_two_spaces(seed: int) -> None:
    """Against all choices of what lies in the fast one."""
    p = random_graph(seed, 6, workspace=0.0)
    made = [t for n in p.nodes for t in n.outs]
    capacity = max(64, order_peak(p) // 2 // 64 * 64)
    best = None
    for away in subsets(made):
        q = program.in_spaces(p, dict.fromkeys(away, "slow"))
        fast = schedule.lay_out(q, p.given).seen.arena.get("arena", 0)
        if fast <= capacity:
            cost = program.traffic(q, "slow")
            best = cost if best is None else min(best, cost)
    o, q = program.two_spaces(p, capacity)
    assert o.ended == "proven" and o.objective == o.bound == best == program.traffic(q, "slow")
    assert o.layout is not None and q.spaces["arena"] == capacity
    assert verify(q, o.layout.plan).arena["arena"] <= capacity


def order_peak(p: Problem) -> int:
    return verify(p, Plan(tuple(p.given))).peak


def subsets(items: list[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(items, k) for k in range(len(items) + 1))


@cp_sat
def test_a_large_graph_is_cut() -> None:
    """Blocks of four nodes in a row: in pieces it costs what it does as a whole, and no less than the bound."""
    nodes, tensors = [Node(0, (), (1,))], {1: Tensor(1, 128)}
    for k in range(6):
        x, a, b, c = (4 * k + i for i in (1, 2, 3, 4))
        tensors |= {a: Tensor(a, 512), b: Tensor(b, 128), c: Tensor(c, 256), c + 1: Tensor(c + 1, 128)}
        made = [((x,), a), ((a,), b), ((b,), c), ((c, x), c + 1)]
        nodes += [Node(len(nodes) + i, ins, (out,)) for i, (ins, out) in enumerate(made)]
    tensors[25] = dataclasses.replace(tensors[25], kind="output")
    p = Problem(tuple(nodes), tensors)
    assert len(program.gates(p)) == len(nodes)
    whole = program.within(p, 768, most=100)
    cut = program.within(p, 640, most=8)
    assert whole.pieces == 1 and whole.objective == 0
    again = program.within(p, 640, most=100)
    assert cut.pieces > 2 and again.pieces == 1 and cut.steps is not None
    assert again.ended == "proven" and cut.bound <= again.objective <= cut.objective
    assert cut.objective == again.objective > 0
    assert verify_steps(within(p, 640), cut.steps).moved * 16 == cut.objective
    assert program.within(p, 576, most=8).ended == "infeasible"


def test_without_or_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ortools" else find(name))
    p = random_graph(0, 4)
    assert "effc[memory]" in str(solver.why_not())
    asked = (
        lambda: program.least_arena(p),
        lambda: program.within(p, 1 << 20),
        lambda: program.place(random_intervals(0, 3)),
        lambda: program.two_spaces(p, 1 << 20),
    )
    for ask in asked:
        with pytest.raises(EffcError, match=r"pip install 'effc\[memory\]'"):
            ask()
    with pytest.raises(EffcError, match="no solver 'gurobi'"):
        program.least_arena(p, solver="gurobi")
