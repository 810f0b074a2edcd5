"""A graph cut where all other nodes come before or after one (divide and conquer, as COSMA has it)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..problem import Node, Problem


@dataclass
class Graph:
    """Makers, readers, and what must come before and after each node."""

    maker: dict[int, int]
    readers: dict[int, list[int]]
    needs: dict[int, set[int]]
    before: dict[int, int]  # how many nodes must
    behind: dict[int, int]

    @staticmethod
    def of(p: Problem) -> Graph:
        maker = {t: n.id for n in p.nodes for t in n.outs}
        readers: dict[int, list[int]] = {}
        for n in p.nodes:
            for t in dict.fromkeys(n.ins):
                readers.setdefault(t, []).append(n.id)
        needs = {n.id: {maker[t] for t in n.ins if t in maker} | set(n.after) for n in p.nodes}
        ancestors = closure([n.id for n in p.nodes], needs)
        behind = dict.fromkeys(needs, 0)
        for up in ancestors.values():
            for u in up:
                behind[u] += 1
        return Graph(maker, readers, needs, {n: len(a) for n, a in ancestors.items()}, behind)


def closure(ids: Sequence[int], needs: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """All that must come before each node; ``ids`` in an order that suits ``needs``."""
    out: dict[int, set[int]] = {}
    for n in ids:
        out[n] = set().union(*(out[u] | {u} for u in needs[n] if u in out)) if needs[n] else set()
    return out


@dataclass
class Border:
    """What a piece begins with and leaves: tensors made before that are resident, or copied; tensors needed later."""

    resident: set[int] = field(default_factory=set)
    copied: set[int] = field(default_factory=set)
    later: set[int] = field(default_factory=set)
    free: bool = False  # for bounds: whatever suits it at the beginning, nothing paid for the end


def gates(p: Problem) -> list[int]:
    """Articulation points of the order: nodes that all others must precede or follow, in order."""
    g = Graph.of(p)
    return [n for n in p.given if g.before[n] + g.behind[n] == len(p.nodes) - 1]


def cut(p: Problem, most: int) -> list[Problem]:
    """The nodes in pieces of up to ``most`` that end at articulation points; longer where these are far apart."""
    g = Graph.of(p)
    rank = {n: k for k, n in enumerate(p.given)}
    # Between two such points, nodes stand in the order given; each is before the next point that it precedes.
    ends = [g.before[n] for n in gates(p)]
    order = sorted(p.given, key=lambda n: (sum(g.before[n] > e for e in ends), rank[n]))
    node = p.node()
    out: list[list[Node]] = [[]]
    last = set(gates(p))
    stretch: list[Node] = []
    for n in order:
        stretch.append(node[n])
        if n in last or n == order[-1]:
            if out[-1] and len(out[-1]) + len(stretch) > most:
                out.append([])
            out[-1] += stretch
            stretch = []
    return [dataclasses.replace(p, nodes=tuple(ns)) for ns in out if ns]


def carried(p: Problem, pieces: Sequence[Problem], k: int) -> set[int]:
    """Tensors made before piece ``k`` and needed in it or later."""
    made = {t for x in pieces[:k] for n in x.nodes for t in n.outs}
    needed = {t for x in pieces[k:] for n in x.nodes for t in n.ins}
    return {t for t in made if t in needed or p.tensors[t].kind == "output"}


def needed_later(p: Problem, pieces: Sequence[Problem], k: int) -> set[int]:
    return carried(p, pieces, k + 1) if k + 1 < len(pieces) else set()
