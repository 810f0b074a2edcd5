"""Of orders with the same peak, one in which what is made is read soon.

What an order costs is estimated as bytes read that have left the cache: a tensor whose last touch lies d bytes of other
tensors back is read from farther away with a share of min(1, d / CACHE) (reuse distance: Mattson et al. 1970,
"Evaluation techniques for storage hierarchies").
"""

from __future__ import annotations

from collections.abc import Sequence

from .order import steps
from .problem import Choices, Problem

CACHE = 1 << 20  # bytes: a core's second level
LARGEST = 1500  # nodes: beyond, orders are left as they are


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


def improve(p: Problem, order: Sequence[int], choices: Choices | None = None) -> tuple[int, ...]:
    """Nodes moved down to just before their first reader where that brings data nearer and no step of the way comes to
    hold more than the peak; the order itself unless ``far_bytes`` falls."""
    node = p.node()
    size = {t: x.bytes for t, x in p.tensors.items()}
    held = steps(p, order, choices)
    peak = max(held, default=0)
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
    out = list(order)
    at = {n: k for k, n in enumerate(out)}
    for v in reversed(order):
        i = at[v]
        j = min((at[u] for u in followers[v]), default=len(out)) - 1
        if not node[v].outs or j <= i:
            continue
        dying = [t for t in node[v].ins if p.tensors[t].kind != "output" and max(at[u] for u in readers[t]) == i]
        change = sum(size[t] for t in dying) - sum(size[t] for t in node[v].outs)
        if change > 0 or (change == 0 and not dying):
            continue  # it would carry more, or nothing
        between = held[i + 1 : j + 1]
        if any(h + change > peak for h in between):
            continue
        out[i : j + 1] = [*out[i + 1 : j + 1], v]
        held[i : j + 1] = [*(h + change for h in between), held[i]]
        for k in range(i, j + 1):
            at[out[k]] = k
    return tuple(out) if out != list(order) and far_bytes(p, out) < far_bytes(p, order) else tuple(order)
