"""Fused regions taken apart again: the nodes that such a region runs as one kernel, each by itself.

A chain needs its operands, all its results and its buffers together, and all its results are there before anything
reads one of them. Where memory is limited that may be too much for what it saves (``backends/cpu/budgets.py``).
Results keep their bits: these regions run the kernels of their nodes, on rows or channels at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from types import MappingProxyType

from ...ir.graph import Builder, Graph, GraphCopy, Node, Value
from ..manager import CONTROL

MADE_BY = {"row_chain": "fuse_rows", "conv_chain": "fuse_chains", "conv_pair": "fuse_pairs"}  # op -> its pass


def regions(graph: Graph) -> dict[int, list[Node]]:
    """Fused regions by the graph's node, by number, that is one; control flow has all those in its bodies."""
    out: dict[int, list[Node]] = {}
    for i, n in enumerate(graph.nodes):
        if n.op in MADE_BY:
            out[i] = [n]
        elif n.op in CONTROL and (inside := [m for g in n.subgraphs for m in g.walk() if m.op in MADE_BY]):
            out[i] = inside
    return out


def take_apart(graph: Graph, which: Collection[int]) -> tuple[Graph, dict[Node, int]]:
    """The graph without these of its :func:`regions`; and of every region, the nodes that it now is, each with the
    region's number."""
    copy, part_of = GraphCopy(graph), {}
    found = regions(graph)
    for i, n in enumerate(graph.nodes):
        before = len(copy.builder.nodes)
        if i in which and i in found:
            copy.values.update(zip(n.values, _apart(copy.builder, n, copy.inputs_of(n)), strict=True))
        else:
            copy.keep(n)
        if i in found:
            part_of.update(dict.fromkeys(copy.builder.nodes[before:], i))
    return copy.graph(), part_of


def _apart(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value]:
    if n.op in MADE_BY:
        body: Graph = n.attrs["body"]
        return body.inline(b, [v for v in ins if v is not None])
    new = {}
    for key, g in n.attrs.items():
        if isinstance(g, Graph):
            inner = replace(g, symbols={**b.symbols, **g.symbols})
            new[key] = replace(take_apart(inner, regions(inner))[0], symbols=g.symbols)
    b.nodes.append(Node(n.op, ins, MappingProxyType({**n.attrs, **new}), n.types, n.loc, n.name))
    return b.nodes[-1].values


__all__ = ["MADE_BY", "regions", "take_apart"]
