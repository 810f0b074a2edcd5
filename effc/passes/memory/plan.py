"""Placement of buffers with known lifetimes in one arena.

Offline dynamic storage allocation is NP-hard; a portfolio of greedy orders is usually within a few per cent of the live
lower bound (Sekiyama et al. 2018, "Profile-guided memory optimization"; Pisarchyk and Lee 2020, "Efficient memory
management for deep neural net inference"). The best of the portfolio is kept, improved by moving buffers that reach the
top to the front of its order, and checked over all pairs.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ALIGN = 64


@dataclass(frozen=True)
class Interval:
    """A buffer of ``bytes`` that is live from instruction ``start`` to ``stop``, both included."""

    id: int
    start: int
    stop: int
    bytes: int


@dataclass(frozen=True)
class Placement:
    """Byte offsets by id, the arena's size, and the live lower bound that no placement can beat."""

    offsets: dict[int, int]
    total: int
    lower_bound: int
    strategy: str = ""

    @property
    def gap(self) -> float:
        """How far the arena is above the lower bound, as a fraction."""
        return self.total / self.lower_bound - 1 if self.lower_bound else 0.0


def aligned(n: int) -> int:
    """``n`` rounded up to the alignment of buffers."""
    return -(-n // ALIGN) * ALIGN


def lower_bound(intervals: Sequence[Interval]) -> int:
    """The most bytes live at once."""
    events: dict[int, int] = {}
    for i in intervals:
        events[i.start] = events.get(i.start, 0) + aligned(i.bytes)
        events[i.stop + 1] = events.get(i.stop + 1, 0) - aligned(i.bytes)
    live = peak = 0
    for t in sorted(events):
        live += events[t]
        peak = max(peak, live)
    return peak


def overlaps(a: Interval, b: Interval) -> bool:
    """Live at the same time."""
    return a.start <= b.stop and b.start <= a.stop


def place(order: Iterable[Interval], best_fit: bool = False) -> dict[int, int]:
    """Buffers one by one, each in the lowest (or, ``best_fit``, the tightest) gap that is free for its whole life."""
    placed: list[tuple[int, int, Interval]] = []  # by offset
    offsets: dict[int, int] = {}
    for i in order:
        need = aligned(i.bytes)
        at, end = 0, 0
        tightest: tuple[int, int] | None = None
        for off, top, o in placed:
            if not overlaps(i, o):
                continue
            if off - end >= need:
                if not best_fit:
                    break
                if tightest is None or off - end < tightest[0]:
                    tightest = (off - end, end)
            end = max(end, top)
        at = end if tightest is None else tightest[1]
        offsets[i.id] = at
        bisect.insort(placed, (at, at + need, i), key=lambda p: p[:2])
    return offsets


def by_breadth(intervals: Sequence[Interval]) -> list[Interval]:
    """Instructions in order of the bytes live there, largest first; within one, buffers by size (Pisarchyk and Lee)."""
    times = sorted({i.start for i in intervals})
    live = {t: [i for i in intervals if i.start <= t <= i.stop] for t in times}
    out: dict[int, Interval] = {}
    for t in sorted(times, key=lambda t: (-sum(aligned(i.bytes) for i in live[t]), t)):
        for i in sorted(live[t], key=lambda i: (-i.bytes, i.start, i.id)):
            out.setdefault(i.id, i)
    return list(out.values())


def strategies(intervals: Sequence[Interval]) -> dict[str, list[Interval]]:
    """The portfolio: orders in which to place the buffers."""
    return {
        "size": sorted(intervals, key=lambda i: (-i.bytes, i.start, i.id)),
        "area": sorted(intervals, key=lambda i: (-(i.stop - i.start + 1) * i.bytes, i.start, i.id)),
        "length": sorted(intervals, key=lambda i: (-(i.stop - i.start), -i.bytes, i.id)),
        "time": sorted(intervals, key=lambda i: (i.start, -i.bytes, i.id)),
        "breadth": by_breadth(intervals),
    }


def height(intervals: Sequence[Interval], offsets: dict[int, int]) -> int:
    return max((offsets[i.id] + aligned(i.bytes) for i in intervals), default=0)


def plan(intervals: Sequence[Interval], effort: int = 24) -> Placement:
    """Offsets for all buffers: the best of the portfolio, with up to ``effort`` attempts to improve it."""
    bound = lower_bound(intervals)
    best: tuple[int, str, dict[int, int], list[Interval]] | None = None
    for name, order in strategies(intervals).items():
        for best_fit in (False, True):
            offsets = place(order, best_fit)
            total = height(intervals, offsets)
            if best is None or total < best[0]:
                best = (total, name + (", best fit" if best_fit else ""), offsets, order)
            if total == bound:
                break
    assert best is not None
    total, name, offsets, order = best
    for _ in range(effort):
        if total == bound:
            break
        top = [i for i in order if offsets[i.id] + aligned(i.bytes) == total]
        moved = [*top, *(i for i in order if i not in top)]
        if moved == order:
            break
        order = moved
        trial = place(order)
        reached = height(intervals, trial)
        if reached < total:
            total, offsets, name = reached, trial, name.removesuffix(", improved") + ", improved"
        elif reached > total * 5 // 4:
            break
    check(intervals, offsets)
    return Placement(offsets, total, bound, name)


def check(intervals: Sequence[Interval], offsets: dict[int, int]) -> None:
    """Independent of how it was made: every buffer is placed and aligned, and no two that live together share a
    byte."""
    for i in intervals:
        if offsets[i.id] < 0 or offsets[i.id] % ALIGN:
            raise AssertionError(f"buffer {i.id} at {offsets[i.id]} is not aligned to {ALIGN}")
    by_start = sorted(intervals, key=lambda i: i.start)
    for k, a in enumerate(by_start):
        for b in by_start[k + 1 :]:
            if b.start > a.stop:
                break
            lo, hi = offsets[a.id], offsets[b.id]
            if lo < hi + b.bytes and hi < lo + a.bytes:
                raise AssertionError(f"buffers {a.id} and {b.id} overlap in the arena while both are live")
