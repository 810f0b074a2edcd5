"""Chains of a number of rows that is known only when they run: as nodes where the rows are few, else in blocks.

Where the number of rows is known, the cost model chooses. Where it is not, the graph gets both: the first rows go to
the chain's nodes, the others to the chain, and one of the two has none. Each is what it would be in a program compiled
for that number of rows, in time and memory; kernels without rows return at once and take no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ...ir.dims import Dim, maximum, minimum, product
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.types import TensorType

Shape = tuple[Dim, ...]


def split(b: Builder, n: Node, ins: Sequence[Value], few: int) -> tuple[Value, ...]:
    """The results of chain ``n`` over ``ins``: by its nodes where there are fewer than ``few`` rows, else by itself."""
    body: Graph = n.attrs["body"]
    lead: Shape = body.outputs[0].shape[:-1]
    dim = next(d for d, size in enumerate(lead) if not isinstance(size, int))
    are_few = minimum(1, maximum(0, few - product(lead)))
    border = lead[dim] * are_few
    first, rest = ((*lead[:dim], size, *lead[dim + 1 :]) for size in (border, lead[dim] - border))

    def part(v: Value, low: Dim, high: Dim) -> Value:
        if v.shape[: len(lead)] != lead:
            return v  # one row for all
        at: list[tuple[Dim, Dim]] = [(0, size) for size in v.shape]
        at[dim] = (low, high)
        starts, stops = zip(*at, strict=True)
        out: Value = b.op("slice", v, starts=starts, stops=stops, steps=(1,) * v.rank)
        return out

    apart = _at(body, lead, first).inline(b, [part(v, 0, border) for v in ins])
    chained = b.node(
        n.op, [part(v, border, lead[dim]) for v in ins], {**n.attrs, "body": _at(body, lead, rest), "blocks_from": 1},
        loc=n.loc, name=n.name,
    )  # fmt: skip
    return tuple(b.op("concat", x, y, dim=dim) for x, y in zip(apart, chained.values, strict=True))


def _at(graph: Graph, old: Shape, new: Shape) -> Graph:
    """A body over other rows: shapes that begin with ``old`` begin with ``new``."""
    k = len(old)

    def shape(x: Any) -> Any:
        return (*new, *x[k:]) if isinstance(x, tuple) and x[:k] == old else x

    def types(ts: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return tuple(t.with_shape(shape(tuple(t.shape))) for t in ts)

    def attrs(a: Mapping[str, Any]) -> Mapping[str, Any]:
        return MappingProxyType({key: _at(x, old, new) if isinstance(x, Graph) else shape(x) for key, x in a.items()})

    known: dict[Value, Value] = {}
    made: list[Node] = []
    for n in (*graph.inputs, *graph.nodes):
        ins = tuple(None if v is None else known[v] for v in n.inputs)
        m = replace(n, inputs=ins, types=types(n.types), attrs=attrs(n.attrs))
        known.update(zip(n.values, m.values, strict=True))
        made.append(m)
    i = len(graph.inputs)
    return replace(graph, inputs=tuple(made[:i]), nodes=tuple(made[i:]), outputs=tuple(known[v] for v in graph.outputs))


__all__ = ["split"]
