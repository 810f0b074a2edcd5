"""Plans within a capacity: against exhaustion, against page replacement, and by the checker, which plays each."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bench import graphs
from bench.paging import page
from effc.passes.memory import budget, library, order, scratchpad
from effc.passes.memory.budget import BudgetError, Rules, minimum, own_bytes, within
from effc.passes.memory.problem import ARENA, Node, Problem, Tensor, steps_from_dict, steps_to_dict
from effc.passes.memory.verify import MemoryPlanError, verify_steps
from tests.null.budget_cases import least_cost
from tests.null.memory_cases import random_graph

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
FAST: dict[str, Any] = {"work": 300_000, "seconds": 20.0, "prove": 0.0}


def verified(p: Problem, b: budget.Budgeted, capacity: int) -> None:
    """Again and from scratch, with the capacity as the arena's; and what the planner says of it."""
    seen = verify_steps(dataclasses.replace(p, spaces={**p.spaces, ARENA: capacity}), b.steps)
    assert b.steps.offsets is not None and seen.arena[ARENA] <= capacity
    assert b.moved == seen.moved and b.reruns == seen.reruns
    assert steps_from_dict(steps_to_dict(b.steps)) == b.steps


def capacities(p: Problem) -> list[int]:
    low, high = minimum(p).bytes, order.order(p).peak
    return sorted({low - p.align, low - 1, low, *(low + (high - low) * k // 10 for k in (3, 7, 10)), low + 13} - {0})


@pytest.mark.parametrize("flop_per_byte", [2.0, 64.0])
@pytest.mark.parametrize("seed", range(18))
def test_against_exhaustion(seed: int, flop_per_byte: float) -> None:
    """Infeasible exactly where there is no plan at all; never cheaper than the best; as cheap, on these."""
    p = random_graph(seed, 3 + seed % 4, inplace=0.6 if seed % 2 else 0.0, wide=[0.1, 0.3, 0.5][seed % 3])
    rules = Rules(flop_per_byte=flop_per_byte)
    for capacity in [c for c in capacities(p) if c > 0]:
        usable = capacity // p.align * p.align
        least = least_cost(p, usable, budget.Model(p, capacity, rules).rerun)
        assert least is not False
        if least is None:
            with pytest.raises(BudgetError) as e:
                within(p, capacity, rules=rules, **FAST)
            assert e.value.proven and e.value.minimum == minimum(p).bytes > usable
            continue
        b = within(p, capacity, rules=rules, **FAST)
        verified(p, b, capacity)
        assert b.cost == least


def test_the_gap_to_exhaustion_over_many() -> None:
    """Of 120 more, all but a few are best, and no plan is below."""
    worse = 0
    for seed in range(100, 160):
        p = random_graph(seed, 3 + seed % 3, inplace=0.5 if seed % 2 else 0.0, wide=0.3)
        low, high = minimum(p).bytes, order.order(p).peak
        for capacity in (low, (low + high) // 2):
            rules = Rules(flop_per_byte=2.0)
            least = least_cost(p, capacity // 64 * 64, budget.Model(p, capacity, rules).rerun)
            assert isinstance(least, int) and least is not False
            got = within(p, capacity, rules=rules, **FAST).cost
            assert got >= least
            worse += got > least
    assert worse <= 3


@pytest.mark.parametrize("seed", range(14))
def test_random_graphs_at_all_capacities(seed: int) -> None:
    """Larger ones with concatenations, several results and outputs, workspaces, orders beside the data."""
    p = random_graph(seed, 8 + seed, inplace=0.4, concat=0.15, wide=0.3)
    low, high = minimum(p).bytes, order.order(p).peak
    costs = []
    for capacity in (low, low + 1 + (high - low) // 3, high - 1, high):
        if capacity < low:
            continue
        b = within(p, capacity, **FAST)
        verified(p, b, capacity)
        costs.append(b.cost)
    assert costs[-1] == 0, "the order of least peak fits its peak"
    bound = minimum(p).bound
    with pytest.raises(BudgetError, match=str(bound)) as e:
        within(p, min(low, bound) - 1)
    assert e.value.minimum == bound <= low and e.value.proven
    if e.value.node is not None:
        assert own_bytes(p, p.node()[e.value.node]) == low or low - own_bytes(p, p.node()[e.value.node]) < p.align


def test_refusal_says_what_needs_how_much() -> None:
    t = {
        0: Tensor(0, 64, "input"),
        1: Tensor(1, 640),
        2: Tensor(2, 1280, "output"),
        3: Tensor(3, 1280, "output"),
    }
    p = Problem((Node(7, (0,), (1,), "a"), Node(8, (1,), (2,), "conv", "big"), Node(9, (1,), (3,), "b")), t, name="g")
    with pytest.raises(BudgetError, match="outputs") as e:
        within(p, 2559)
    assert e.value.minimum == 2560 and e.value.node is None and "outputs together need 2560" in str(e.value)
    assert within(p, 2560, **FAST).arena == 2560  # the operand cannot stay with both: out, or made again
    one = dataclasses.replace(p, tensors={**t, 3: dataclasses.replace(t[3], kind="intermediate")})
    with pytest.raises(BudgetError) as e:
        within(one, 1919)
    assert e.value.minimum == 1920 and e.value.node == 8
    assert (
        "node 8 (big) needs 1920" in str(e.value) and "try: a budget of 1920" in str(e.value) and e.value.op == "conv"
    )


def test_what_a_concatenation_holds_is_no_proof_against_a_plan() -> None:
    """Node 5 reads a tensor, what it was joined into, and what that was joined into: all of it may lie in the last."""
    sizes = {1: 1024, 2: 64, 3: 1088, 4: 128, 5: 1216, 6: 64}
    t = {
        0: Tensor(0, 64, "input"),
        **{k: Tensor(k, n, "output" if k == 6 else "intermediate") for k, n in sizes.items()},
    }
    inner, outer = ((1, 0), (2, 1024)), ((3, 0), (4, 1088))
    nodes = (
        Node(0, (0,), (1,)), Node(1, (0,), (2,)), Node(2, (0,), (4,)), Node(3, (1, 2), (3,), "cat", concat=inner),
        Node(4, (3, 4), (5,), "cat", concat=outer), Node(5, (1, 3, 5), (6,), "conv"),
    )  # fmt: skip
    p = Problem(nodes, t, name="joined")
    least = minimum(p)
    assert (least.bytes, least.node, least.bound) == (1024 + 1088 + 1216 + 64, 5, 1216 + 64)
    for capacity in (least.bound, least.bytes - 64, least.bytes):
        b = within(p, capacity, **FAST)
        verified(p, b, capacity)
        assert b.cost == 0
    with pytest.raises(BudgetError, match="node 5") as e:
        within(p, least.bound - 64, **FAST)
    assert e.value.proven and e.value.minimum == least.bound


def test_without_a_far_memory() -> None:
    """Recomputation alone: nothing is copied, or none is found and that is not called a proof."""
    found = 0
    for seed in range(12):
        p = random_graph(seed, 8, wide=0.3)
        low, high = minimum(p).bytes, order.order(p).peak
        rules = Rules(spill=False, flop_per_byte=2.0)
        try:
            b = within(p, (low + high) // 2, rules=rules, **FAST)
        except BudgetError as e:
            assert not e.proven and "was found" in str(e)
            continue
        verified(p, b, (low + high) // 2)
        assert b.moved == 0 and all(a != "spill" for a, _ in b.steps.actions)
        found += b.reruns > 0
    assert found >= 2


def test_what_may_not_run_again_does_not() -> None:
    p = graphs.train_unet(4, 16, 3)
    capacity = (minimum(p).bytes + order.order(p).peak) // 2
    b = within(p, capacity, **FAST)
    assert b.reruns > 0
    once = dataclasses.replace(p, nodes=tuple(dataclasses.replace(n, once=True) for n in p.nodes))
    b = within(once, capacity, **FAST)
    verified(once, b, capacity)
    assert b.reruns == 0 and b.moved > 0
    assert within(p, capacity, rules=Rules(recompute=False), **FAST).reruns == 0


def test_changed_tensors_are_copied_anew() -> None:
    """A copy from before a node changed the tensor is no good; who reads the changed tensor gets that."""
    t = {
        0: Tensor(0, 64, "input"),
        1: Tensor(1, 1024),
        2: Tensor(2, 2048),
        3: Tensor(3, 64),
        4: Tensor(4, 2048),
        5: Tensor(5, 64, "output"),
    }
    nodes = (
        Node(0, (0,), (1,)),
        Node(1, (0,), (2,)),
        Node(2, (2,), (3,)),
        Node(3, (1, 3), (), after=(0, 2), writes=(1,)),
        Node(4, (3,), (4,), after=(3,)),
        Node(5, (4, 1), (5,), after=(4,)),
    )
    p = Problem(nodes, t, name="changes")
    b = within(p, minimum(p).bytes, **FAST)
    verified(p, b, minimum(p).bytes)


def test_concatenation_within_less_than_its_operands() -> None:
    """At the minimum the largest concatenation has no room for operands beside its result: they are made, or brought
    back, at their places in it."""
    p = graphs.unet(8, 32, 4)
    low = minimum(p)
    assert low.bytes < minimum(p, rewrite=False).bytes
    b = within(p, low.bytes, **FAST)
    verified(p, b, low.bytes)
    assert b.steps.concat
    plain = within(p, minimum(p, rewrite=False).bytes, rules=Rules(rewrite=False), **FAST)
    verified(p, plain, minimum(p, rewrite=False).bytes)
    assert not plain.steps.concat and not plain.steps.inplace


def test_other_spaces_are_left_alone() -> None:
    p = random_graph(3, 14, wide=0.3)
    tensors = {t: dataclasses.replace(x, space="host") if t % 3 == 0 and t else x for t, x in p.tensors.items()}
    p = dataclasses.replace(p, tensors=tensors, spaces={ARENA: None, "host": None})
    low = minimum(p).bytes
    b = within(p, low, **FAST)
    verified(p, b, low)
    moved = {x for a, x in b.steps.actions if a == "spill"}
    assert all(p.tensors[t].space == ARENA for t in moved)


def test_plans_are_reproducible_and_broken_ones_noticed() -> None:
    p = graphs.train_resnet(3, 8, 16)
    capacity = (3 * minimum(p).bytes + order.order(p).peak) // 4
    a, b = (within(p, capacity, **FAST) for _ in range(2))
    assert a.steps == b.steps and a.cost > 0
    spills = [k for k, (what, _) in enumerate(a.steps.actions) if what == "refill"]
    if spills:
        actions = tuple(x for k, x in enumerate(a.steps.actions) if k != spills[0])
        with pytest.raises(MemoryPlanError):
            verify_steps(p, dataclasses.replace(a.steps, actions=actions, offsets=None))


@pytest.mark.parametrize("make", [lambda: graphs.train_unet(4, 32, 3), lambda: graphs.randwire(10, 16, 8, 1, 1)])
def test_cheaper_than_eviction(make) -> None:  # type: ignore[no-untyped-def]
    p = make()
    o = order.order(p)
    low = max(own_bytes(p, n, rewrite=False) for n in p.nodes)
    for part in (1, 2, 3):
        capacity = low + (o.peak - low) * part // 4
        base = page(p, o.order, capacity, "belady")
        assert base is not None and within(p, capacity, **FAST).cost < base


# Scratchpads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_scratchpads(seed: int, inputs: bool) -> None:
    p = random_graph(seed, 14, wide=0.3)
    node = scratchpad.largest_node(p, inputs=inputs)
    for times in (1.0, 1.25, 2.0):
        capacity = int(node * times)
        s = scratchpad.scratchpad(p, capacity, inputs=inputs, **FAST)
        q = dataclasses.replace(s.problem, spaces={ARENA: capacity})
        seen = verify_steps(q, s.plan.steps)
        spilled = {x for a, x in s.plan.steps.actions if a == "spill"}
        assert {t.id for t in p.tensors.values() if t.kind == "output"} <= spilled, "every result leaves"
        assert not s.plan.steps.inplace
        loads = [x for a, x in s.plan.steps.actions if a == "run" and s.problem.node()[x].op == "load"]
        loaded = sum(q.tensors[q.node()[x].outs[0]].raw for x in loads)
        assert seen.moved + loaded == s.compulsory + s.extra
        belady = page(p, p.given, capacity, "belady", outputs_far=True, inputs=inputs)
        lru = page(p, p.given, capacity, "lru", outputs_far=True, inputs=inputs)
        assert belady is not None and lru is not None and s.extra <= min(belady, lru)
    with pytest.raises(BudgetError):
        scratchpad.scratchpad(p, node - 1, inputs=inputs)


def test_page_replacement_by_hand() -> None:
    """Three of 64 in room for two, read in turn: least recently used misses always."""
    t = {0: Tensor(0, 64, "input"), **{k: Tensor(k, 64) for k in (1, 2, 3)}}
    makes = tuple(Node(k, (0,), (k,)) for k in (1, 2, 3))
    reads = tuple(Node(10 + k, (1 + k % 3,), ()) for k in range(6))
    p = Problem((*makes, *reads), t)
    assert page(p, p.given, 192, "lru") == 0
    assert page(p, p.given, 63, "lru") is None
    # Copies of 1, 2, 3; reads all of them, then 1 and 2 again, after which 3 is still there: dead ones make no room.
    assert page(p, p.given, 128, "lru") == 3 * 64 + 5 * 64
    # Out for another: 2, then 1, then 3, each once.
    assert page(p, p.given, 128, "belady") == 3 * 64 + 3 * 64
