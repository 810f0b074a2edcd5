"""Placement of buffers with known lifetimes in one arena."""

from __future__ import annotations

from collections.abc import Sequence
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

    @property
    def gap(self) -> float:
        return self.total / self.lower_bound - 1 if self.lower_bound else 0.0


def _round(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


def lower_bound(intervals: Sequence[Interval]) -> int:
    """The most bytes live at once."""
    events: dict[int, int] = {}
    for i in intervals:
        events[i.start] = events.get(i.start, 0) + _round(i.bytes)
        events[i.stop + 1] = events.get(i.stop + 1, 0) - _round(i.bytes)
    live = peak = 0
    for t in sorted(events):
        live += events[t]
        peak = max(peak, live)
    return peak


def first_fit(order: Sequence[Interval]) -> dict[int, int]:
    """Each buffer at the lowest address that is free for its whole life."""
    placed: list[tuple[int, Interval]] = []
    offsets: dict[int, int] = {}
    for i in order:
        at = 0
        for off, o in sorted(
            ((off, o) for off, o in placed if o.start <= i.stop and i.start <= o.stop), key=lambda p: p[0]
        ):
            if off - at >= _round(i.bytes):
                break
            at = max(at, off + _round(o.bytes))
        offsets[i.id] = at
        placed.append((at, i))
    return offsets


def plan(intervals: Sequence[Interval]) -> Placement:
    """The best of several greedy orders; checked over all pairs."""
    orders = [
        sorted(intervals, key=lambda i: (-i.bytes, i.start)),
        sorted(intervals, key=lambda i: (-(i.stop - i.start + 1) * i.bytes, i.start)),
        sorted(intervals, key=lambda i: (i.start, -i.bytes)),
        sorted(intervals, key=lambda i: (-(i.stop - i.start), -i.bytes)),
    ]
    best: tuple[int, dict[int, int]] | None = None
    for o in orders:
        offsets = first_fit(o)
        total = max((offsets[i.id] + _round(i.bytes) for i in intervals), default=0)
        if best is None or total < best[0]:
            best = (total, offsets)
    assert best is not None
    return Placement(best[1], best[0], lower_bound(intervals))
