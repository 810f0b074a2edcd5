"""Placement against exhaustion and packings that are known to fit; the greedy fallback; the library's build."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from effc.passes.memory import library
from effc.passes.memory.plan import Interval, greedy, lower_bound, plan
from effc.passes.memory.problem import intervals_from_csv
from effc.passes.memory.verify import MemoryPlanError, verify_placement
from effc.runtime.errors import EffcError
from tests.null.memory_cases import least_arena, random_intervals

needs_search = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))


@needs_search
@pytest.mark.parametrize("seed", range(150))
def test_against_all_placements(seed: int) -> None:
    intervals = random_intervals(seed, 2 + seed % 6, 5, align=[1, 64][seed % 2], pinned=0.3)
    p = plan(intervals)
    assert p.total == least_arena(intervals) and p.ended == "proven"
    assert verify_placement(intervals, p.offsets) <= p.total and plan(intervals) == p


def packing(seed: int, cuts: int, steps: int = 4000, height: int = 1 << 16, step: int = 1) -> list[Interval]:
    """A rectangle of steps x bytes cut at random into boxes: a placement without any waste exists."""
    rng = np.random.default_rng(seed)
    boxes = [(0, steps, 0, height // step)]
    for _ in range(cuts):
        k = int(np.argmax([(b - a) * (d - c) * (0.3 + rng.random()) for a, b, c, d in boxes]))
        a, b, c, d = boxes.pop(k)
        wide = b - a > 1 and (d - c < 2 or rng.random() < 0.5)
        if wide:
            at = int(rng.integers(a + 1, b))
            boxes += [(a, at, c, d), (at, b, c, d)]
        elif d - c > 1:
            at = int(rng.integers(c + 1, d))
            boxes += [(a, b, c, at), (a, b, at, d)]
        else:
            boxes.append((a, b, c, d))
    order = rng.permutation(len(boxes))
    return [
        Interval(i, boxes[k][0], boxes[k][1] - 1, (boxes[k][3] - boxes[k][2]) * step, step) for i, k in enumerate(order)
    ]


@needs_search
@pytest.mark.parametrize("cuts", [60, 100, 200])
def test_packings_without_waste(cuts: int) -> None:
    searched = 0
    for seed in range(8):
        intervals = packing(seed, cuts, step=64 if seed % 2 else 1)
        assert lower_bound(intervals) == 1 << 16
        p = plan(intervals, budget=3_000_000_000, seconds=60)
        assert p.total == p.lower_bound == verify_placement(intervals, p.offsets), (seed, p.total)
        searched += p.strategy == "searched"
        assert greedy(intervals)[1] >= p.total
    assert searched >= 6, "greedy orders do not solve these"


@needs_search
def test_budgets_are_reproducible_and_bounds_hold() -> None:
    intervals = packing(5, 300)
    short = plan(intervals, budget=100_000, seconds=60)
    assert short.ended == "budget" and short.total > short.lower_bound == short.proven_bound
    assert plan(intervals, budget=100_000, seconds=60) == short
    guarded = plan(intervals, budget=10**12, seconds=0.0)
    assert guarded.ended == "time" and guarded.total >= short.lower_bound


@needs_search
def test_an_arena_above_the_bound_can_be_proven() -> None:
    """What is pinned in the middle leaves two gaps that a larger buffer does not fit."""
    pair = [Interval(0, 0, 1, 64, offset=64), Interval(1, 0, 1, 128)]
    p = plan(pair)
    assert (p.lower_bound, p.total, p.proven_bound, p.ended, p.offsets[1]) == (192, 256, 256, "proven", 128)
    found = 0
    for seed in range(100):
        intervals = random_intervals(seed, 6, 6, pinned=1.0)
        p = plan(intervals)
        if p.total > p.lower_bound:
            assert p.ended == "proven" and p.proven_bound == p.total == least_arena(intervals)
            found += 1
    assert found >= 5


def pieces(seed: int, n: int, pin: bool) -> list[Interval]:
    """Boxes, some of several parts with hollows, some pinned above each other."""
    rng = np.random.default_rng(seed)
    out: list[Interval] = []
    end = 0
    for k in range(n):
        a = int(rng.integers(0, 30))
        b = a + int(rng.integers(0, 8))
        size = 64 * int(rng.integers(1, 9))
        parts: tuple[tuple[int, int, int, int], ...] = ()
        if rng.random() < 0.3:
            cut = size // 128 * 64
            parts = ((a, b, cut, size), (b + 1, b + 3, 0, size))
            if cut:
                parts = ((max(0, a - 2), b, 0, cut), *parts)
        offset = None
        if pin and rng.random() < 0.15:
            offset, end = end, end + size
        start = min([a, *(x[0] for x in parts)])
        out.append(Interval(k, start, b + 3 if parts else b, size, 64, offset, parts))
    return out


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_parts_and_pins(seed: int, pin: bool) -> None:
    intervals = pieces(seed, 6 + seed, pin)
    p = plan(intervals, budget=1_000_000)
    assert verify_placement(intervals, p.offsets) <= p.total and p.total >= p.lower_bound
    offsets, total, _ = greedy(intervals)
    assert verify_placement(intervals, offsets) <= total and p.total <= total


def test_hollows_are_used() -> None:
    """A buffer under the overhang of another: the arena is the live bytes."""
    parts = ((0, 1, 128, 192), (2, 3, 0, 192))
    intervals = [Interval(0, 0, 3, 192, parts=parts), Interval(1, 0, 1, 128)]
    p = plan(intervals)
    assert p.total == p.lower_bound == 192 and p.offsets == {0: 0, 1: 0}


def test_verifier_of_placements() -> None:
    pair = [Interval(0, 0, 2, 100), Interval(1, 2, 3, 100), Interval(2, 3, 4, 100, offset=64)]
    good = {0: 256, 1: 192, 2: 64}
    with pytest.raises(MemoryPlanError, match="overlap"):
        verify_placement(pair, good)
    good = {0: 0, 1: 192, 2: 64}
    assert verify_placement(pair, good) == 292
    for bad, message in (
        ({0: 0, 1: 192}, "no offset"),
        ({0: 8, 1: 192, 2: 64}, "not aligned"),
        ({0: -64, 1: 192, 2: 64}, "not aligned"),
        ({0: 0, 1: 192, 2: 0}, "pinned"),
        ({0: 0, 1: 64, 2: 64}, "overlap"),
        ({0: 128, 1: 192, 2: 64}, "overlap"),
    ):
        with pytest.raises(MemoryPlanError, match=message):
            verify_placement(pair, bad)


def test_without_a_compiler_it_is_greedy_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_load", lambda: "no C++ compiler was found")
    intervals = packing(1, 60)
    p = plan(intervals)
    assert p.total > p.lower_bound and p.ended == "no C++ compiler was found"
    assert p.strategy != "searched" and p.nodes == 0
    with pytest.raises(EffcError, match="no C"):
        library.handle()


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,lower,upper,size\n7,0,2,5\n9,2,4,6\n")
    assert intervals_from_csv(tmp_path / "x.csv") == [Interval(7, 0, 1, 5, 1), Interval(9, 2, 3, 6, 1)]
    assert plan(intervals_from_csv(tmp_path / "x.csv")).total == 6


def test_build_is_used_by_the_wheel(tmp_path: Path) -> None:
    before = os.environ.get("CXX")
    os.environ["CXX"] = "false"
    try:
        with pytest.raises(EffcError, match="building effc_memory failed"):
            library.build(tmp_path)
    finally:
        del os.environ["CXX"]
        if before is not None:
            os.environ["CXX"] = before
    assert list(tmp_path.iterdir()) == []
