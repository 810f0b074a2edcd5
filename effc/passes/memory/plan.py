"""Placement of buffers with known lifetimes in one arena.

Offline dynamic storage allocation is NP-hard; a portfolio of greedy orders is usually within a few per cent of the live
lower bound (Sekiyama et al. 2018, "Profile-guided memory optimization"; Pisarchyk and Lee 2020, "Efficient memory
management for deep neural net inference"), and a search (``native/place.cpp``) nearly always reaches it. Where the
first greedy order does not, the search is asked, which has a portfolio of its own; without a compiler it is the
portfolio here, the best of it improved by moving buffers that reach the top to the front of its order. All plans are
checked by ``verify.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ALIGN = 64


@dataclass(frozen=True)
class Interval:
    """A buffer of ``bytes`` that is live from instruction ``start`` to ``stop``, both included.

    ``offset``: where it must lie. ``parts``: boxes (start, stop, low, high) with fixed places in the buffer, for one
    that is made piece by piece; else it is one box.
    """

    id: int
    start: int
    stop: int
    bytes: int
    align: int = ALIGN
    offset: int | None = None
    parts: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def boxes(self) -> tuple[tuple[int, int, int, int], ...]:
        return self.parts or ((self.start, self.stop, 0, self.bytes),)


@dataclass(frozen=True)
class Placement:
    """Byte offsets by id, the arena's size, and the live lower bound that no placement can beat.

    ``ended`` says why the search for a smaller arena stopped: ``proven`` (none is smaller), ``budget`` (of
    work: reproducible), ``time`` (the outer guard), or why there was no search.
    """

    offsets: dict[int, int]
    total: int
    lower_bound: int
    strategy: str = ""
    ended: str = "proven"
    nodes: int = 0
    proven_bound: int = 0  # at least lower_bound: capacities below were searched without a solution

    @property
    def gap(self) -> float:
        """How far the arena is above the lower bound, as a fraction."""
        return self.total / self.lower_bound - 1 if self.lower_bound else 0.0


def aligned(n: int, align: int = ALIGN) -> int:
    """``n`` rounded up to the alignment of buffers."""
    return -(-n // align) * align


def lower_bound(intervals: Sequence[Interval]) -> int:
    """The most bytes live at once, with the padding that alignment costs where it is the same for all, and at least the
    end of what is pinned highest."""
    uniform = len({i.align for i in intervals}) <= 1 and not any(i.parts for i in intervals)
    events: dict[int, int] = {}
    for i in intervals:
        for start, stop, low, high in i.boxes:
            if start <= stop:
                size = aligned(high - low, i.align) if uniform else high - low
                events[start] = events.get(start, 0) + size
                events[stop + 1] = events.get(stop + 1, 0) - size
    live = peak = 0
    for t in sorted(events):
        live += events[t]
        peak = max(peak, live)
    return max(peak, max((i.offset + i.bytes for i in intervals if i.offset is not None), default=0))


def overlaps(a: Interval, b: Interval) -> bool:
    """Live at the same time."""
    return a.start <= b.stop and b.start <= a.stop


def _meet(a: Interval, at: int, b: Interval) -> tuple[tuple[int, int], ...]:
    """Offsets of ``b`` at which it meets ``a``, which lies at ``at``: open intervals."""
    if not a.parts and not b.parts:
        return ((at - b.bytes, at + a.bytes),) if overlaps(a, b) else ()
    return tuple(
        (at + lo - high, at + hi - low)
        for s, e, lo, hi in a.boxes
        for start, stop, low, high in b.boxes
        if s <= stop and start <= e and low < high and lo < hi
    )


def place(order: Iterable[Interval], best_fit: bool = False) -> dict[int, int]:
    """Buffers one by one, each in the lowest (or, ``best_fit``, the tightest) gap that is free for its whole life;
    pinned ones first."""
    items = list(order)
    done = [(i, i.offset) for i in items if i.offset is not None]
    offsets = {i.id: at for i, at in done}
    for i in items:
        if i.offset is not None:
            continue
        at, tightest, room = 0, -1, -1
        start, stop = i.start, i.stop
        near = [(o, x) for o, x in done if start <= o.stop and o.start <= stop]
        for low, high in sorted(z for o, x in near for z in _meet(o, x, i)):
            if low >= at:  # from ``at`` to ``low`` it fits
                if not best_fit:
                    break
                if tightest < 0 or low - at < room:
                    tightest, room = at, low - at
            at = max(at, aligned(high, i.align))
        offsets[i.id] = at if tightest < 0 else tightest
        done.append((i, offsets[i.id]))
    return offsets


def by_breadth(intervals: Sequence[Interval]) -> list[Interval]:
    """Instructions in order of the bytes live there, largest first; within one, buffers by size (Pisarchyk and Lee)."""
    times = sorted({i.start for i in intervals})
    live = {t: [i for i in intervals if i.start <= t <= i.stop] for t in times}
    out: dict[int, Interval] = {}
    for t in sorted(times, key=lambda t: (-sum(aligned(i.bytes, i.align) for i in live[t]), t)):
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
    return max((offsets[i.id] + aligned(i.bytes, i.align) for i in intervals), default=0)


def greedy(intervals: Sequence[Interval], effort: int = 24) -> tuple[dict[int, int], int, str]:
    """Offsets, the arena's size and the name of the order: the best of the portfolio, with up to ``effort`` attempts to
    improve it."""
    bound = lower_bound(intervals)
    best: tuple[int, str, dict[int, int], list[Interval]] | None = None
    for name, order in strategies(intervals).items():
        for best_fit in (False, True):
            offsets = place(order, best_fit)
            total = height(intervals, offsets)
            if best is None or total < best[0]:
                best = (total, name + (", best fit" if best_fit else ""), offsets, order)
            if best[0] == bound:
                return offsets, total, best[1]
    assert best is not None
    total, name, offsets, order = best
    for _ in range(effort):
        top = [i for i in order if offsets[i.id] + aligned(i.bytes, i.align) == total]
        moved = [*top, *(i for i in order if i not in top)]
        if moved == order or total == bound:
            break
        order = moved
        trial = place(order)
        reached = height(intervals, trial)
        if reached < total:
            total, offsets, name = reached, trial, name.removesuffix(", improved") + ", improved"
        elif reached > total * 5 // 4:
            break
    return offsets, total, name


def plan(
    intervals: Sequence[Interval],
    effort: int = 24,
    budget: int = 500_000_000,
    seconds: float = 8.0,
) -> Placement:
    """Offsets for all buffers, checked. ``budget`` is the search's work for one capacity (visits to buffers, some
    10^9 a second), ``seconds`` an outer guard. The arena's size is a multiple of the alignment."""
    from .verify import verify_placement

    bound = lower_bound(intervals)
    result = None
    if len(intervals) <= 128:  # usually enough, and then no library is needed
        offsets = place(sorted(intervals, key=lambda i: (-i.bytes, i.start, i.id)))
        result = Placement(offsets, height(intervals, offsets), bound, "size", proven_bound=bound)
    if result is None or result.total > bound:
        result = _search(intervals, bound, budget, seconds, effort)
    verify_placement(intervals, result.offsets)
    return result


def _search(intervals: Sequence[Interval], bound: int, budget: int, seconds: float, effort: int) -> Placement:
    import ctypes

    from . import library

    missing = library.why_not()
    if missing:
        offsets, total, name = greedy(intervals, effort)
        return Placement(offsets, total, bound, name, "proven" if total == bound else missing, 0, bound)
    boxes = [(s, e, lo, hi if i.parts else aligned(hi, i.align)) for i in intervals for s, e, lo, hi in i.boxes]
    first = [0]
    for i in intervals:
        first.append(first[-1] + len(i.boxes))
    array = library.array
    into = array([0] * len(intervals))
    question = library.PlacementIn(
        len(intervals),
        array([i.align for i in intervals]),
        array([-1 if i.offset is None else i.offset for i in intervals]),
        array(first),
        array([b[0] for b in boxes]),
        array([b[1] for b in boxes]),
        array([b[2] for b in boxes]),
        array([b[3] for b in boxes]),
        bound,
        budget,
        seconds,
    )
    answer = library.PlacementOut(offset=into)
    if library.handle().effc_mem_place(ctypes.byref(question), ctypes.byref(answer)):
        raise MemoryError("the placement search had no memory left")
    how = "searched" if answer.how >= 60 else "greedy, improved" if answer.how >= 50 else "greedy"
    return Placement(
        {i.id: into[k] for k, i in enumerate(intervals)},
        answer.total,
        bound,
        how,
        library.ENDED[answer.ended],
        answer.nodes,
        answer.bound,
    )


def check(intervals: Sequence[Interval], offsets: dict[int, int]) -> None:
    """Every buffer is placed and aligned, and no two that live together share a byte; else an AssertionError."""
    from .verify import verify_placement

    verify_placement(intervals, offsets)
