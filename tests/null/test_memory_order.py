"""Orders of least peak against exhaustion, bounds, ties, rewrites."""

from __future__ import annotations

import pytest

from effc.passes.memory import library, order, schedule
from effc.passes.memory.problem import Choices, Node, Plan, Problem, Tensor
from effc.passes.memory.verify import verify
from tests.null.memory_cases import has_order_below, least_peak, random_graph

needs_search = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))


@needs_search
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_against_all_orders(seed: int, inplace: bool) -> None:
    p = random_graph(seed, 3 + seed % 8, inplace=0.6 if inplace else 0.0, concat=0.2)
    o = order.order(p, inplace=inplace)
    assert o.peak == o.bound == least_peak(p, inplace) <= o.given_peak
    assert o.ended == "proven" and o.proven
    assert max(order.steps(p, o.order, inplace=inplace)) == o.peak
    assert inplace or verify(p, Plan(o.order)).peak == o.peak
    assert order.order(p, inplace=inplace).order == o.order, "orders are deterministic"


@needs_search
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("seed", [*range(40), 78, 79, 277, 311])
def test_proofs_against_all_sets(seed: int, inplace: bool) -> None:
    """Larger graphs: no set of executed nodes leads below a peak that was proven. The last four have commitments to a
    part of a way, which once left states behind that were taken for failed."""
    p = random_graph(seed, 12 + seed % 16, inplace=0.6 if inplace else 0.0, wide=[0.1, 0.2, 0.3, 0.5][seed % 4])
    o = order.order(p, inplace=inplace)
    assert o.proven and has_order_below(p, o.peak, inplace) is False


@needs_search
def test_the_search_is_needed_and_used() -> None:
    """Graphs on which cuts and greedy orders do not meet: states were searched."""
    searched = [order.order(random_graph(seed, 24, wide=0.4)) for seed in range(30)]
    assert all(o.proven for o in searched)
    assert sum(o.states > 0 and o.cut_bound < o.peak for o in searched) >= 3


@needs_search
def test_a_budget_ends_it_with_a_bound() -> None:
    cases = [random_graph(seed, 60, wide=0.4) for seed in range(12)]
    hard = [(p, o) for p in cases if (o := order.order(p)).states > 1000]
    assert hard
    for p, full in hard:
        short = order.order(p, budget=50)
        assert short.bound <= full.bound <= full.peak <= short.peak <= short.given_peak
        assert short == order.order(p, budget=50) or short.order == order.order(p, budget=50).order
        assert short.ended == ("proven" if short.proven else "budget")
        late = order.order(p, seconds=0.0)
        assert late.bound <= full.peak <= late.peak <= late.given_peak and late.ended in ("proven", "time")


def branches(sizes: list[list[int]]) -> Problem:
    """Chains from one input to one sum; sizes in units of 64 bytes."""
    tensors = {0: Tensor(0, 64, "input")}
    nodes: list[Node] = []
    ends = []
    for chain in sizes:
        last = 0
        for size in chain:
            t = len(tensors)
            tensors[t] = Tensor(t, 64 * size)
            nodes.append(Node(len(nodes), (last,), (t,)))
            last = t
        ends.append(last)
    t = len(tensors)
    tensors[t] = Tensor(t, 64, "output")
    nodes.append(Node(len(nodes), tuple(ends), (t,)))
    return Problem(tuple(nodes), tensors)


@needs_search
def test_known_order() -> None:
    """Hills first where what they leave is small: 100 + 1, then 1 + 60 + 2, then 3 + ...; given, the hill of 100 stands
    on 2 + 60."""
    p = branches([[60, 2], [100, 1]])
    o = order.order(p)
    assert o.given_peak == (2 + 101) * 64 and o.peak == 101 * 64 and o.order == (2, 3, 0, 1, 4)


@needs_search
def test_an_order_that_is_best_is_kept() -> None:
    for seed in range(40):
        p = random_graph(seed, 20)
        o = order.order(p)
        if o.peak == o.given_peak:
            assert list(o.order) == p.given
    p = branches([[5, 5], [1, 1], [1, 1]])
    assert list(order.order(p).order) == p.given


@needs_search
def test_a_thousand_nodes() -> None:
    """Cells of four branches each, one after another, as networks are."""
    tensors = {0: Tensor(0, 64, "input")}
    nodes: list[Node] = []

    def node(ins: tuple[int, ...], size: int) -> int:
        t = len(tensors)
        tensors[t] = Tensor(t, 64 * size)
        nodes.append(Node(len(nodes), ins, (t,)))
        return t

    last = 0
    for cell in range(50):
        ends = []
        for branch in range(4):
            at = last
            for k in range(5):
                at = node((at,), 1 + (3 * k + 5 * branch + 7 * cell) % 13)
            ends.append(at)
        last = node(tuple(ends), 4)
    p = Problem(tuple(nodes), tensors)
    o = order.order(p)
    assert len(p.nodes) == 1050 and o.proven and o.peak < o.given_peak and o.states > 0


@needs_search
@pytest.mark.parametrize("count, length", [(3, 5), (4, 4), (5, 3), (16, 3)])
def test_branches_that_leave_something_behind(count: int, length: int) -> None:
    """What adds up is short to search from its end, where each branch taken back leaves less; forwards no set of
    branches comes back to as few bytes."""
    for seed in range(5):
        sizes = [[3 + (k * 7 + j + seed) % 11 for j in range(length)] + [1 + (k + seed) % 3] for k in range(count)]
        p = branches(sizes)
        o = order.order(p)
        assert o.proven and o.peak <= o.given_peak
        if count < 10:
            assert has_order_below(p, o.peak) is False


@needs_search
def test_edges() -> None:
    empty = order.order(Problem((), {}))
    assert empty.order == () and empty.peak == empty.bound == 0
    one = Problem((Node(7, (), (3,), workspace=64),), {3: Tensor(3, 128, "output")})
    assert order.order(one).peak == 192
    loop = Problem((Node(0, (), (), after=(1,)), Node(1, (), (), after=(0,))), {})
    with pytest.raises(ValueError, match="no order"):
        order.order(loop)


def skip_connection() -> Problem:
    """x -> a (8) -> b (1) -> c (8); cat(c, a) (16) -> y (1): 32 + 1 live at the concatenation, 17 if it is in place."""
    size = {1: 8, 2: 1, 3: 8, 4: 16, 5: 1}
    tensors = {0: Tensor(0, 64, "input")} | {
        t: Tensor(t, 64 * s, "output" if t == 5 else "intermediate") for t, s in size.items()
    }
    nodes = (
        Node(0, (0,), (1,)),
        Node(1, (1,), (2,)),
        Node(2, (2,), (3,)),
        Node(3, (3, 1), (4,), "cat", concat=((3, 0), (1, 8 * 64))),
        Node(4, (4,), (5,)),
    )
    return Problem(nodes, tensors)


@needs_search
def test_concatenation_in_place() -> None:
    p = skip_connection()
    assert order.order(p).peak == 32 * 64
    choices = Choices({}, {3: (3, 1)})
    o = order.order(p, choices)
    assert o.peak == o.bound == 17 * 64
    layout = schedule.lay_out(p, o.order, choices)
    assert layout.arena == layout.live == 17 * 64
    assert schedule.schedule(p, rewrite=True).layout.arena == 17 * 64
    assert schedule.schedule(p).layout.arena == 32 * 64


@needs_search
def test_overwriting() -> None:
    """A chain of elementwise nodes needs one buffer instead of two."""
    n = 6
    tensors = {k: Tensor(k, 640, "input" if k == 0 else "output" if k == n else "intermediate") for k in range(n + 1)}
    nodes = tuple(Node(k, (k,), (k + 1,), inplace_ok=(k,) if k else ()) for k in range(n))
    p = Problem(nodes, tensors)
    s = schedule.schedule(p, rewrite=True)
    assert s.given.arena == 1280 and s.layout.arena == 640 and len(s.layout.plan.choices.inplace) == n - 1


@needs_search
@pytest.mark.parametrize("seed", range(60))
def test_schedules_are_valid_and_never_worse(seed: int) -> None:
    p = random_graph(seed, 5 + seed % 40, inplace=0.5, concat=0.4, wide=0.3)
    s = schedule.schedule(p, rewrite=True, states=20_000, work=300_000)
    plain = schedule.schedule(p, states=20_000, work=300_000)
    assert s.layout.arena <= plain.layout.arena <= s.given.arena == plain.given.arena
    assert s.layout.plan == schedule.schedule(p, rewrite=True, states=20_000, work=300_000).layout.plan


@needs_search
def test_rewrites_are_used_on_random_graphs() -> None:
    """The test above would pass if nothing was ever rewritten."""
    better = both = 0
    for seed in range(60):
        p = random_graph(seed, 5 + seed % 40, inplace=0.5, concat=0.4, wide=0.3)
        s = schedule.schedule(p, rewrite=True, states=20_000, work=300_000)
        better += s.layout.arena < schedule.schedule(p, states=20_000, work=300_000).layout.arena
        both += bool(s.layout.plan.choices.inplace) and bool(s.layout.plan.choices.concat)
    assert better >= 10 and both >= 1


def test_without_a_compiler_the_given_order_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_load", lambda: "no C++ compiler was found")
    p = branches([[60, 2], [100, 1]])
    o = order.order(p)
    assert list(o.order) == p.given and o.peak == o.given_peak and o.bound == 101 * 64
    assert o.ended == "no C++ compiler was found"
    assert schedule.schedule(p, rewrite=True).layout.live == o.peak
