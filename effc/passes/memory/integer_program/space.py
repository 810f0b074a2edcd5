"""Rows for bytes: what is resident at a step within the peak or the capacity, and offsets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..problem import ARENA, Node
from ..solver import Term

if TYPE_CHECKING:
    from .program import Program


def add_room(x: Program, ceiling: int) -> None:
    m, unit = x.m, x.unit
    if x.capacity is None:
        least = max((_own(x, n) for n in x.p.nodes), default=0)
        if len(x.p.spaces) == 1:
            x.peak = {s: m.integer(least // unit, ceiling // unit) for s in x.p.spaces}
        else:
            x.peak = {s: m.integer(0, ceiling // unit) for s in x.p.spaces}
    rows: dict[tuple[str, int], list[Term]] = {(s, k): [] for s in x.p.spaces for k in range(x.count)}
    for (t, k), v in x.near.items():
        rows[x.p.tensors[t].space, k].append((x.p.tensors[t].bytes // unit, v))
    for (n, k), v in x.run.items():
        if x.node[n].workspace:
            rows[ARENA, k].append((x.node[n].workspace // unit, v))
    for (_, t, k), v in x.over.items():
        rows[x.p.tensors[t].space, k].append((-(x.p.tensors[t].bytes // unit), v))
    for (t, _, k), v in x.part.items():
        rows[x.p.tensors[t].space, k].append((-(x.p.tensors[t].bytes // unit), v))
    for (s, _), terms in rows.items():
        if x.capacity is None:
            m.row([*terms, (-1, x.peak[s])], None, 0)
        elif s in x.capacity:
            m.row(terms, None, x.capacity[s] // unit)


def _own(x: Program, n: Node) -> int:
    touched = {t for t in (*n.ins, *n.outs) if x.p.tensors[t].kind != "input"}
    touched -= {t for t in touched if any(c.outs[0] in touched for c in x.holders.get(t, ()))}  # may be its parts
    touched -= x.seen_in.keys()
    over = max((x.p.tensors[t].bytes for t in n.inplace_ok), default=0) if x.rewrite else 0
    return max(0, n.workspace + sum(x.p.tensors[t].bytes for t in touched) - over)


def add_offsets(x: Program, ceiling: int) -> None:
    """One place for each tensor and workspace; whatever is there at the same step is apart.

    A place is ``stride`` times a variable; for what becomes a part in between, it is that and a rest, and what it
    takes has no padding.
    """
    m, unit, p = x.m, x.unit, x.p
    stride = p.align // unit
    size = {t: p.tensors[t].bytes // unit for t in x.tensors}
    space = {t: p.tensors[t].space for t in x.tensors}
    for n in p.nodes:
        if n.workspace:
            size[-1 - n.id] = n.workspace // unit
            space[-1 - n.id] = ARENA
    joined: dict[int, list[int]] = {}
    for (t, _, _), v in x.part.items():
        joined.setdefault(t, []).append(v)
    for t in joined:
        if stride > 1:
            rest = x.rest[t] = m.integer(0, stride - 1)
            m.row([(1, rest), *((1 - stride, v) for v in joined[t])], None, 0)

    def at(t: int, sign: int = 1) -> list[Term]:
        return [(sign * stride, x.offset[t]), (sign, x.rest.get(t))]

    def padding(t: int) -> list[Term]:
        spare = (p.tensors[t].bytes - p.tensors[t].raw) // unit if t in joined else 0
        return [(-spare, v) for v in joined.get(t, ())]

    for t, bytes_ in size.items():
        pinned = p.tensors[t].pinned if t >= 0 else None
        most = max(0, (ceiling // unit - bytes_) // stride + (t in joined))
        low, high = (0, most) if pinned is None else (pinned // p.align, pinned // p.align)
        x.offset[t] = m.integer(low, high)
        end = [*at(t), *padding(t)]
        if x.capacity is None:
            m.row([*end, (-1, x.peak[space[t]])], None, -bytes_)
        elif space[t] in x.capacity:
            m.row(end, None, x.capacity[space[t]] // unit - bytes_)
    there: dict[int, dict[int, int]] = {t: {} for t in size}
    for (t, k), v in x.near.items():
        there[t][k] = v
    for (r, k), v in x.run.items():
        if x.node[r].workspace:
            there[-1 - r][k] = v
    shared: dict[tuple[int, int, int], int] = {}
    for (r, t, k), v in x.over.items():
        out = x.node[r].outs[0]
        shared[min(t, out), max(t, out), k] = v
        m.row([*at(t), *at(out, -1)], 0, 0, (v,))
    for (t, r, k), v in x.part.items():
        out = x.node[r].outs[0]
        shared[min(t, out), max(t, out), k] = v
        place = dict(x.node[r].concat)[t] // unit
        m.row([*at(t), *at(out, -1)], place, place, (v,))
    ids = sorted(size)
    for i, t in enumerate(ids):
        for u in ids[i + 1 :]:
            both = there[t].keys() & there[u].keys()
            if space[t] != space[u] or not both or not size[t] or not size[u]:
                continue
            for a, b in ((t, u), (u, t)):
                v = x.below[a, b] = m.boolean()
                m.row([*at(a), *padding(a), *at(b, -1)], None, -size[a], (v,))
            for k in both:
                here: list[Term] = [(1, there[t][k]), (1, there[u][k])]
                choice: list[Term] = [(-1, x.below[t, u]), (-1, x.below[u, t])]
                m.row([*here, *choice, (-1, shared.get((t, u, k)))], None, 1)
