"""The order of the nodes with the least peak of live bytes: an exact search (``native/order.cpp``), with a bound.

Never worse than the order given; of orders with the same peak, one near the given one. The given order itself where
it has the least peak.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass

from . import library
from .problem import Choices, Problem


@dataclass(frozen=True)
class Order:
    """``peak`` and ``given_peak`` in bytes; no order has less than ``bound``. ``ended``: ``proven`` (peak == bound),
    ``budget`` (of states: reproducible), ``time`` (the outer guard), or why there was no search."""

    order: tuple[int, ...]
    peak: int
    given_peak: int
    bound: int
    ended: str
    states: int = 0
    cut_bound: int = 0  # what minimum cuts alone prove
    seconds: float = 0.0

    @property
    def proven(self) -> bool:
        return self.peak == self.bound


def steps(p: Problem, order: Sequence[int], choices: Choices | None = None) -> list[int]:
    """Live bytes during each step. With ``choices`` None nodes overwrite what they may; that is for the search."""
    node = p.node()
    _, stays, readers, absorbed = _tensors(p, choices)
    left = {t: len(r) for t, r in readers.items()}
    over = _over(p, choices)
    live, out = 0, []
    for n in order:
        made = sum(p.tensors[t].bytes for t in node[n].outs)
        gain = max((p.tensors[t].bytes for t in over[n] if left[t] == 1), default=0)
        out.append(live + made + node[n].workspace - absorbed[n] - gain)
        live += made
        reads = {t for t in left if n in readers[t]} if absorbed[n] else {t for t in node[n].ins if n in readers.get(t, ())}
        for t in reads:
            left[t] -= 1
            if not left[t] and not stays[t]:
                live -= p.tensors[t].bytes
        live -= sum(p.tensors[t].bytes for t in node[n].outs if not readers[t] and not stays[t])
    return out


def _over(p: Problem, choices: Choices | None) -> dict[int, tuple[int, ...]]:
    if choices is not None:
        return {n.id: ((choices.inplace[n.id],) if n.id in choices.inplace else ()) for n in p.nodes}
    return {
        n.id: tuple(t for t in n.inplace_ok if p.tensors[t].kind == "intermediate") if len(n.outs) == 1 else ()
        for n in p.nodes
    }


def _tensors(
    p: Problem, choices: Choices | None
) -> tuple[dict[int, int], dict[int, bool], dict[int, list[int]], dict[int, int]]:
    """Producers, whether they stay, readers that count for liveness, and bytes of parts that lie in each node's result:
    a part is dead once its concatenation has run, which then holds it."""
    producer = {t: n.id for n in p.nodes for t in n.outs}
    stays = {t: p.tensors[t].kind == "output" for t in producer}
    readers: dict[int, list[int]] = {t: [] for t in producer}
    for n in p.nodes:
        for t in dict.fromkeys(n.ins):
            if t in readers:
                readers[t].append(n.id)
    absorbed = {n.id: 0 for n in p.nodes}
    for n_id, parts in (choices.concat if choices else {}).items():
        out = p.node()[n_id].outs[0]
        for t in parts:
            readers[out] += [r for r in readers[t] if r != n_id and r not in readers[out]]
            readers[t] = [n_id]
            absorbed[n_id] += p.tensors[t].bytes
    return producer, stays, readers, absorbed


def order(
    p: Problem, choices: Choices | None = None, *, inplace: bool = False, budget: int = 2_000_000, seconds: float = 60.0
) -> Order:
    """``choices``: rewrites to count on; ``inplace``: any node may overwrite what it is allowed to, if that dies there.

    Which readers of a part come after its concatenation is not limited; a plan with such a part is checked later.
    """
    began = time.perf_counter()
    choices = choices or Choices()
    ids = p.given
    at = {n: k for k, n in enumerate(ids)}
    given_steps = steps(p, ids, None if inplace and not choices.concat else choices)
    given_peak = max(given_steps, default=0)
    missing = library.why_not()
    if missing or not ids:
        bound = max((_own(p, n.id) for n in p.nodes), default=0) if not (choices.inplace or choices.concat or inplace) else 0
        ended = "proven" if bound == given_peak else str(missing)
        return Order(tuple(ids), given_peak, given_peak, bound, ended)
    producer, stays, readers, absorbed = _tensors(p, choices)
    names = list(producer)
    index = {t: k for k, t in enumerate(names)}
    over = _over(p, None if inplace else choices)
    array, ragged = library.array, library.ragged
    use_first, use = ragged([[at[n] for n in readers[t]] for t in names])
    # An order between nodes that pass no tensor (any more): a part's later readers still follow its producer.
    extra = [
        sorted({at[a] for a in n.after} | {at[producer[t]] for t in n.ins if t in producer and n.id not in readers[t]})
        for n in p.nodes
    ]
    after_first, after = ragged(extra)
    held = {t for ts in choices.concat.values() for t in ts}
    over_first, over_flat = ragged([[index[t] for t in over[n] if t not in held] for n in ids])
    into = array([0] * len(ids))
    question = library.OrderIn(
        len(ids),
        len(names),
        array([p.tensors[t].bytes for t in names]),
        array([at[producer[t]] for t in names]),
        (ctypes.c_uint8 * max(1, len(names)))(*[stays[t] for t in names]),
        use_first,
        use,
        after_first,
        after,
        array([n.workspace for n in p.nodes]),
        over_first,
        over_flat,
        array([absorbed[n] for n in ids]),
        array(list(range(len(ids)))),
        budget,
        seconds,
    )
    answer = library.OrderOut(order=into)
    if library.handle().effc_mem_order(ctypes.byref(question), ctypes.byref(answer)):
        raise MemoryError("the order search had no memory left")
    return Order(
        tuple(ids[into[k]] for k in range(len(ids))),
        answer.peak,
        given_peak,
        answer.bound,
        library.ENDED[answer.ended],
        answer.states,
        answer.cut_bound,
        time.perf_counter() - began,
    )


def _own(p: Problem, n: int) -> int:
    node = p.node()[n]
    touched = {t for t in (*node.ins, *node.outs) if p.tensors[t].kind != "input"}
    return node.workspace + sum(p.tensors[t].bytes for t in touched)
