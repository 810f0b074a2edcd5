"""Of orders with the same peak, one in which what is made is read soon.

What an order costs is estimated as bytes read that have left the cache: a tensor whose last touch lies d bytes of other
tensors back is read from farther away with a share of min(1, d / CACHE) (reuse distance: Mattson et al. 1970,
"Evaluation techniques for storage hierarchies").
"""

from __future__ import annotations

from collections.abc import Sequence

from .order import steps
from .problem import Problem

CACHE = 1 << 20  # bytes: a core's second level
LARGEST = 600  # nodes: beyond, orders are left as they are
TRIES = 100  # moves


def far_bytes(p: Problem, order: Sequence[int]) -> float:
    """Bytes expected from beyond the cache in this order."""
    node = p.node()
    size = {t: x.bytes for t, x in p.tensors.items()}
    touched, total = 0, 0.0
    last: dict[int, int] = {}
    for n in order:
        before = touched
        for t in node[n].ins:
            if t in last:
                total += size[t] * min(1.0, (before - last[t]) / CACHE)
        for t in (*node[n].ins, *node[n].outs):
            touched += size[t]
        for t in (*node[n].ins, *node[n].outs):
            last[t] = touched
    return total


def improve(p: Problem, order: Sequence[int]) -> tuple[int, ...]:
    """Nodes moved down to just before their first reader where that brings data nearer and the peak does not grow,
    rewrites left aside; the order itself unless ``far_bytes`` falls."""
    node = p.node()
    size = {t: x.bytes for t, x in p.tensors.items()}
    followers: dict[int, set[int]] = {n: set() for n in order}
    maker = {t: n.id for n in p.nodes for t in n.outs}
    readers: dict[int, set[int]] = {}
    for n in p.nodes:
        for u in n.after:
            followers[u].add(n.id)
        for t in n.ins:
            readers.setdefault(t, set()).add(n.id)
            if t in maker:
                followers[maker[t]].add(n.id)
    peak = max(steps(p, order), default=0)
    out = list(order)
    at = {n: k for k, n in enumerate(out)}
    tries = TRIES
    for v in reversed(order):
        i = at[v]
        j = min((at[u] for u in followers[v]), default=len(out)) - 1
        if j <= i or not any(t in readers for t in node[v].outs) or not tries:
            continue
        kept = sum(size[t] for t in node[v].ins if t in maker and max(at[u] for u in readers[t]) == i)
        if kept >= sum(size[t] for t in node[v].outs):
            continue  # it would carry no less
        tries -= 1
        trial = [*out[:i], *out[i + 1 : j + 1], v, *out[j + 1 :]]
        if max(steps(p, trial)) <= peak:
            out = trial
            for k in range(i, j + 1):
                at[out[k]] = k
    return tuple(out) if out != list(order) and far_bytes(p, out) < far_bytes(p, order) else tuple(order)
