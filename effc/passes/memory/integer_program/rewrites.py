"""Rows for operands that are overwritten, made inside a concatenation, or seen through a view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..solver import Term

if TYPE_CHECKING:
    from .program import Program


def add(x: Program) -> None:
    m = x.m
    taken: dict[int, list[Term]] = {}
    for n in x.p.nodes:
        ways = [
            t
            for t in n.inplace_ok
            if len(n.outs) == 1
            and t in n.ins
            and t not in n.writes
            and x.p.tensors[t].kind == "intermediate"
            and x.p.tensors[t].space == x.p.tensors[n.outs[0]].space
        ]
        for _, k in x._windows[n.id]:
            for t in ways:
                v = x.over[n.id, t, k] = m.boolean()
                taken.setdefault(t, []).append((1, v))
                m.row([(1, v), (-1, x.near.get((t, k)))], None, 0)
                m.row([(1, v), (1, x.near.get((t, k + 1))), *x.renewed(t, k + 1)], None, 1)
            if ways:
                total: list[Term] = [(1, x.over[n.id, t, k]) for t in ways]
                m.row([*total, (-1, x.run[n.id, k])], None, 0)
    for t, cat in ((t, n) for t, by in x.holders.items() for n in by):
        for _, k in x._windows[cat.id]:
            v = x.part[t, cat.id, k] = m.boolean()
            m.row([(1, v), (-1, x.run[cat.id, k])], None, 0)
            m.row([(1, v), (-1, x.near.get((t, k)))], None, 0)
            m.row([(1, v), (1, x.near.get((t, k + 1))), *x.renewed(t, k + 1)], None, 1)
            taken.setdefault(t, []).append((1, v))
        others = [k for r in x.g.readers[t] if r != cat.id for _, k in x._windows[r]]
        # Whether what holds it was made around it, and it was not made or refilled by itself since.
        start = min(k for _, k in x._windows[cat.id]) + 1
        for k in range(start, max(others, default=-1) + 1):
            v = x.held[t, cat.id, k] = m.boolean()
            joined = x.part.get((t, cat.id, k - 1))
            m.row([(1, v), (-1, x.held.get((t, cat.id, k - 1))), (-1, joined)], None, 0)
            for _, renewed in x.renewed(t, k):
                m.row([(1, v), (1, renewed)], None, 1)
            m.row([(1, v), (1, x.run.get((cat.id, k - 1))), (-1, joined)], None, 1)
    if not x.spill and not x.recompute:
        for terms in taken.values():
            m.row(terms, None, 1)
    for t, by in x.holders.items():
        joins: list[Term] = [(1, v) for (u, _, _), v in x.part.items() if u == t]
        for n in by:  # what is overwritten for a part must lie where the part does, and not reach beyond it
            if dict(n.concat)[t] % x.p.align or _largest(x, t) > x.p.tensors[t].raw:
                overs: list[Term] = [(1, v) for (r, _, _), v in x.over.items() if r == x.g.maker[t]]
                if overs:
                    m.row([*joins, *overs], None, 1)


def add_views(x: Program) -> None:
    """A view is readable where what it lies in is; that is no part of another, and not overwritten meanwhile."""
    m = x.m
    for t, u in x.seen_in.items():
        for (part, _, _), v in x.part.items():
            if part == u:
                m.row([(1, x.view[t]), (1, v)], None, 1)
        if x.p.tensors[t].kind == "output":
            m.row([(1, x.view[t]), *((-c, v) for c, v in x.where(u, x.count - 1))], None, 0)
        for (n, over, _), v in x.over.items():
            if (over == u and t in x.node[n].ins) or t in x.node[n].outs:
                m.row([(1, x.view[t]), (1, v)], None, 1)
    for (n, over, _), v in x.over.items():  # through a view of a view
        for t in x.node[n].ins:
            chain = [t]
            while chain[-1] in x.seen_in and chain[-1] != over:
                chain.append(x.seen_in[chain[-1]])
            if len(chain) > 2 and chain[-1] == over:
                m.row([*((1, x.view[w]) for w in chain[:-1]), (1, v)], None, len(chain) - 1)


def _largest(x: Program, t: int) -> int:
    """Bytes of the largest tensor that may be overwritten to make this one, one after another."""
    seen: set[int] = set()
    todo = [t]
    while todo:
        n = x.g.maker.get(todo.pop())
        for u in x.node[n].inplace_ok if n is not None else ():
            if u not in seen:
                seen.add(u)
                todo.append(u)
    return max((x.p.tensors[u].bytes for u in seen), default=0)
