"""The order of the nodes with the least peak of live bytes: an exact search (``native/order.cpp``), with a bound.

Never worse than the order given; of orders with the same peak, one near the given one. The given order itself where
it has the least peak.
"""

from __future__ import annotations

import ctypes
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass

from . import library
from .problem import Choices, Problem


@dataclass(frozen=True)
class Order:
    """``peak`` and ``given_peak`` in bytes; no order has less than ``bound``. ``ended``: ``proven`` (peak == bound),
    ``budget`` (of states: reproducible), ``time`` (the outer guard), or why there was no search. ``loose``: another
    order with this peak, as the search left it. ``order`` has every node as near its given place as the peak allows,
    so many steps come close to the peak; ``loose`` has fewer of these, and offsets are found for it more easily."""

    order: tuple[int, ...]
    peak: int
    given_peak: int
    bound: int
    ended: str
    states: int = 0
    cut_bound: int = 0  # what minimum cuts alone prove
    seconds: float = 0.0
    loose: tuple[int, ...] = ()

    @property
    def proven(self) -> bool:
        return self.peak == self.bound


@dataclass
class _Model:
    """What the search sees: liveness by readers, and an order between nodes, for given rewrites.

    A part of a concatenation is dead once that has run, which then holds it. Of the part's other readers, those that
    must follow the concatenation keep its result alive; the rest come before it (``after``), some by choice.
    """

    producer: dict[int, int]
    stays: dict[int, bool]
    readers: dict[int, list[int]]
    absorbed: dict[int, int]
    after: dict[int, set[int]]
    over: dict[int, tuple[int, ...]]


def _model(p: Problem, choices: Choices, inplace: bool) -> _Model:
    node = p.node()
    producer = {t: n.id for n in p.nodes for t in n.outs}
    readers: dict[int, list[int]] = {t: [] for t in producer}
    for n in p.nodes:
        for t in dict.fromkeys(n.ins):
            if t in readers:
                readers[t].append(n.id)
    after = {n.id: set(n.after) for n in p.nodes}
    absorbed = {n.id: 0 for n in p.nodes}
    held = {t for ts in choices.concat.values() for t in ts}
    for cat, parts in choices.concat.items():
        out = node[cat].outs[0]
        for t in parts:
            others = [r for r in readers[t] if r != cat]
            following = _reach(p, after, cat)
            readers[out] += [r for r in others if r in following and r not in readers[out]]
            after[cat].update(r for r in others if r not in following)
            for r in others:
                after[r].add(producer[t])
            readers[t] = [cat]
            absorbed[cat] += p.tensors[t].bytes
    if inplace:
        over = {
            n.id: tuple(t for t in n.inplace_ok if p.tensors[t].kind == "intermediate" and t not in held)
            if len(n.outs) == 1
            else ()
            for n in p.nodes
        }
    else:
        over = {n.id: (choices.inplace[n.id],) if n.id in choices.inplace else () for n in p.nodes}
    stays = {t: p.tensors[t].kind == "output" for t in producer}
    return _Model(producer, stays, readers, absorbed, after, over)


def _reach(p: Problem, after: dict[int, set[int]], start: int) -> set[int]:
    """Nodes that must follow ``start``."""
    readers: dict[int, list[int]] = {}
    for n in p.nodes:
        for t in n.ins:
            readers.setdefault(t, []).append(n.id)
    follows: dict[int, list[int]] = {}
    for v, us in after.items():
        for u in us:
            follows.setdefault(u, []).append(v)
    node = p.node()
    seen: set[int] = set()
    todo = [start]
    while todo:
        u = todo.pop()
        for v in [r for t in node[u].outs for r in readers.get(t, ())] + follows.get(u, []):
            if v not in seen:
                seen.add(v)
                todo.append(v)
    return seen


def _start(p: Problem, m: _Model) -> list[int]:
    """The order given, with nodes delayed where rewrites demand that others come first."""
    ids = p.given
    at = {n: k for k, n in enumerate(ids)}
    needs = {n.id: {m.producer[t] for t in n.ins if t in m.producer} | m.after[n.id] for n in p.nodes}
    followers: dict[int, list[int]] = {n: [] for n in ids}
    for n, us in needs.items():
        for u in us:
            followers[u].append(n)
    waits = {n: len(us) for n, us in needs.items()}
    ready = [at[n] for n in ids if not waits[n]]
    heapq.heapify(ready)
    out = []
    while ready:
        n = ids[heapq.heappop(ready)]
        out.append(n)
        for v in followers[n]:
            waits[v] -= 1
            if not waits[v]:
                heapq.heappush(ready, at[v])
    if len(out) != len(ids):
        raise ValueError("these rewrites leave no order")
    return out


def steps(p: Problem, order: Sequence[int], choices: Choices | None = None, inplace: bool = False) -> list[int]:
    """Live bytes during each step, with rewrites; ``inplace``: nodes overwrite what they may wherever it dies there."""
    return _steps(p, order, _model(p, choices or Choices(), inplace))


def _steps(p: Problem, order: Sequence[int], m: _Model) -> list[int]:
    node = p.node()
    left = {t: len(r) for t, r in m.readers.items()}
    reads: dict[int, list[int]] = {n: [] for n in node}
    for t, rs in m.readers.items():
        for r in rs:
            reads[r].append(t)
    size = {t: p.tensors[t].bytes for t in m.producer}
    live, out = 0, []
    for n in order:
        made = sum(size[t] for t in node[n].outs)
        gain = max((size[t] for t in m.over[n] if left[t] == 1 and not m.stays[t]), default=0)
        out.append(live + made + node[n].workspace - m.absorbed[n] - gain)
        live += sum(size[t] for t in node[n].outs if m.readers[t] or m.stays[t])
        for t in reads[n]:
            left[t] -= 1
            if not left[t] and not m.stays[t]:
                live -= size[t]
    return out


def order(
    p: Problem, choices: Choices | None = None, *, inplace: bool = False, budget: int = 2_000_000, seconds: float = 60.0
) -> Order:
    """``choices``: rewrites to count on; ``inplace``: any node may overwrite what it is allowed to, if that dies there.

    ``budget`` is the number of states; the given order is the plan's start, with what rewrites forbid put right.
    ValueError if no order suits the rewrites.
    """
    began = time.perf_counter()
    m = _model(p, choices or Choices(), inplace)
    node = p.node()
    ids = _start(p, m)
    given_peak = max(_steps(p, ids, m), default=0)
    missing = library.why_not()
    if missing or not ids:
        bound = 0 if any(m.absorbed.values()) else max((_own(p, n, m) for n in ids), default=0)
        return Order(tuple(ids), given_peak, given_peak, bound, "proven" if bound == given_peak else str(missing))
    at = {n: k for k, n in enumerate(ids)}
    names = list(m.producer)
    index = {t: k for k, t in enumerate(names)}
    array, ragged = library.array, library.ragged
    use_first, use = ragged([[at[n] for n in m.readers[t]] for t in names])
    after_first, after = ragged([sorted(at[a] for a in m.after[n]) for n in ids])
    over_first, over = ragged([[index[t] for t in m.over[n]] for n in ids])
    into, loose = array([0] * len(ids)), array([0] * len(ids))
    question = library.OrderIn(
        len(ids),
        len(names),
        array([p.tensors[t].bytes for t in names]),
        array([at[m.producer[t]] for t in names]),
        (ctypes.c_uint8 * max(1, len(names)))(*[m.stays[t] for t in names]),
        use_first,
        use,
        after_first,
        after,
        array([node[n].workspace for n in ids]),
        over_first,
        over,
        array([m.absorbed[n] for n in ids]),
        array(list(range(len(ids)))),
        budget,
        seconds,
    )
    answer = library.OrderOut(order=into, loose=loose)
    status = library.handle().effc_mem_order(ctypes.byref(question), ctypes.byref(answer))
    if status == 1:
        raise MemoryError("the order search had no memory left")
    assert status == 0
    return Order(
        tuple(ids[into[k]] for k in range(len(ids))),
        answer.peak,
        given_peak,
        answer.bound,
        library.ENDED[answer.ended],
        answer.states,
        answer.cut_bound,
        time.perf_counter() - began,
        tuple(ids[loose[k]] for k in range(len(ids))),
    )


def _own(p: Problem, n: int, m: _Model) -> int:
    """Bytes that a node needs in any order."""
    node = p.node()[n]
    touched = {t for t in (*node.ins, *node.outs) if t in m.producer}
    over = max((p.tensors[t].bytes for t in m.over[n]), default=0)
    return node.workspace + sum(p.tensors[t].bytes for t in touched) - over
