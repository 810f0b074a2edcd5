"""Bounds on the cost of plans within a capacity: against exhaustion, and never above a plan that was verified."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest

from bench import graphs
from effc.passes.memory import bound, library, order
from effc.passes.memory.budget import Model, Rules, minimum, within
from effc.passes.memory.problem import Node, Problem, Tensor
from effc.passes.memory.scratchpad import largest_node, scratchpad
from tests.null.budget_cases import least_cost
from tests.null.memory_cases import random_graph

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
FAST: dict[str, Any] = {"work": 300_000, "seconds": 20.0, "prove": 2.0}


@pytest.mark.parametrize(("recompute", "rewrite"), [(False, False), (False, True), (True, False), (True, True)])
def test_against_exhaustion(recompute: bool, rewrite: bool) -> None:
    """Asked about a plan that costs more than the best, so that nothing but the relaxation speaks. Copies alone: as
    tight as can be on these; with repeated runs on most."""
    cases = tight = 0
    for seed in range(30):
        wide = [0.1, 0.3, 0.5][seed % 3]
        p = random_graph(seed, 3 + seed % 4, inplace=0.5 if seed % 2 else 0.0, wide=wide)
        low, high = minimum(p, rewrite=rewrite).bytes, order.order(p).peak
        for capacity in {low, (low + high) // 2 // 64 * 64}:
            m = Model(
                p, capacity, Rules(flop_per_byte=64.0 if seed % 4 > 1 else 2.0, recompute=recompute, rewrite=rewrite)
            )
            least = least_cost(p, capacity, m.rerun, rewrite=rewrite)
            assert least is None or (isinstance(least, int) and least is not False)
            if not least:
                continue
            found = bound.below(m, least + 6400, seconds=10.0)
            assert found.cost <= least, seed
            assert bound.below(m, least, seconds=10.0).cost <= least
            cases += 1
            tight += found.cost == least
    assert cases >= 14 and tight >= cases * (0.8 if recompute else 1.0), (tight, cases)


@pytest.mark.parametrize("seed", range(6))
def test_never_above_a_plan(seed: int) -> None:
    """With concatenations made in place, orders beside the data, several outputs, and from larger graphs."""
    p = random_graph(seed, 8 + seed, inplace=0.4, concat=0.3, wide=0.3)
    low, high = minimum(p).bytes, order.order(p).peak
    for capacity in {low, (2 * low + high) // 3}:
        for rules in (Rules(), Rules(recompute=False, rewrite=False), Rules(flop_per_byte=1.0)):
            if capacity < minimum(p, rewrite=rules.rewrite).bytes:
                continue
            b = within(p, capacity, rules=rules, **FAST)
            # The plan itself bounds nothing when a dearer one is asked about.
            found = bound.below(Model(p, capacity, rules), 10 * b.cost + 64, seconds=2.0)
            assert found.cost <= b.cost and b.bound <= b.cost
            assert b.optimal == (b.gap == 0.0) == (b.bound == b.cost)


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_scratchpads(seed: int, inputs: bool) -> None:
    p = random_graph(seed, 12, wide=0.3)
    node = largest_node(p, inputs=inputs)
    for times in (1.0, 1.25):
        s = scratchpad(p, int(node * times), inputs=inputs, **FAST)
        assert s.bound <= s.extra
        assert s.plan.bound_ended in ("proven", "time")


def residual() -> Problem:
    """A residual of 640 beside a node that needs all but 320 of 2880 bytes: it must leave, in every order."""
    sizes = {1: 640, 2: 1280, 3: 1280, 4: 640, 5: 640}
    t = {
        0: Tensor(0, 64, "input"),
        **{k: Tensor(k, b, "output" if k == 5 else "intermediate") for k, b in sizes.items()},
    }
    nodes = (
        Node(0, (0,), (1,), once=True),
        Node(1, (1,), (2,)),
        Node(2, (2,), (3,)),
        Node(3, (3,), (4,)),
        Node(4, (4, 1), (5,)),
    )
    return Problem(nodes, t, name="residual")


def test_a_forced_copy_is_proven() -> None:
    b = within(residual(), 2880, **FAST)
    assert (b.moved, b.bound, b.optimal, b.gap, b.bound_ended) == (1280, 1280, True, 0.0, "proven")
    assert within(residual(), 3200, **FAST).bound_ended == "proven"


def test_several_gaps_are_paid_several_times() -> None:
    """A value read again and again between nodes that leave it no room comes back each time."""
    t = {0: Tensor(0, 64, "input"), 1: Tensor(1, 640)}
    nodes = [Node(0, (0,), (1,), once=True)]
    last = 1
    for k in range(3):
        a = 10 * (k + 1)
        t |= {a: Tensor(a, 128), a + 1: Tensor(a + 1, 2048), a + 2: Tensor(a + 2, 128)}
        nodes += [
            Node(len(nodes), (1, last) if last != 1 else (1,), (a,), once=True),
            Node(len(nodes) + 1, (a,), (a + 1,), once=True),
            Node(len(nodes) + 2, (a + 1,), (a + 2,), once=True),
        ]
        last = a + 2
    t[99] = Tensor(99, 64, "output")
    nodes.append(Node(len(nodes), (1, last), (99,)))
    b = within(Problem(tuple(nodes), t), 2304, **FAST)
    assert b.moved == b.bound == 640 * 4 and b.optimal


def test_training_by_copies_alone() -> None:
    p = graphs.train_unet(4, 32, 3)
    low, high = minimum(p, rewrite=False).bytes, order.order(p).peak
    for part in (1, 2):
        b = within(p, low + (high - low) * part // 3, rules=Rules(recompute=False, rewrite=False), **FAST)
        assert 0.9 * b.cost <= b.bound <= b.cost and b.cost > 0


def test_what_is_not_proven_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    b = within(residual(), 2880, **{**FAST, "prove": 0.0})
    assert (b.bound, b.bound_ended, b.optimal, b.gap) == (0, "not asked for", False, math.inf)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else find(name))
    b = within(residual(), 2880, **FAST)
    assert b.bound == 0 and "effc[compile]" in b.bound_ended
