"""Before regions are formed: reductions keep their dims, macro ops are decomposed, views move out of elementwise
chains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...ir.dims import Dim
from ...ir.graph import Builder, Graph, GraphCopy, Node, Value
from ...ir.op import get
from ..manager import Pass, PassReport, in_subgraphs
from ..rewrite import is_one
from .kinds import fusible, is_map, is_reduction


def inserted_ones(old: tuple[Dim, ...], new: tuple[Dim, ...]) -> list[int | None] | None:
    """For a reshape that only adds or drops dims of size 1: per new dim, the old dim it comes from (None: a new
    one)."""
    out: list[int | None] = []
    i = 0
    for d in new:
        while i < len(old) and is_one(old[i]) and not is_one(d):
            i += 1
        if i < len(old) and old[i] == d:
            out.append(i)
            i += 1
        elif is_one(d):
            out.append(None)
        else:
            return None
    return out if all(is_one(d) for d in old[i:]) else None


@dataclass(frozen=True)
class PrepareFusion(Pass):
    """Makes reductions keep their dims (a reshape drops them), decomposes elementwise macro ops, and moves permute,
    slice and reshapes that only add or drop ones from between elementwise ops to the operands of the first of them."""

    name: ClassVar[str] = "prepare_fusion"
    rounds: int = 8

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        low: set[Value] = set()
        graph = graph.rebuild(lambda b, n, ins: _normal(b, n, ins, low, report))
        for _ in range(self.rounds):
            after = _hoist(graph, report)
            if after is graph:
                break
            graph = after
        return graph


def _normal(b: Builder, n: Node, ins: tuple[Value | None, ...], low: set[Value], report: PassReport) -> Any:
    """``low``: results of reductions, and of elementwise ops on them, that have kept their dims."""
    b.loc = n.loc
    if is_reduction(n) and not n.attrs["keepdims"]:
        kept = b.op("reduce", *ins, kind=n.attrs["kind"], dims=n.attrs["dims"], keepdims=True)
        low.add(kept)
        return b.op("reshape", kept, shape=n.types[0].shape)
    if n.op == "reshape" and ins[0] is not None and ins[0].node.op == "reshape":
        source = ins[0].node.operands[0]
        return source if source.shape == n.types[0].shape else b.op("reshape", source, shape=n.types[0].shape)
    d = get(n.op)
    if d.category == "elementwise" and d.decompose is not None:
        out = d.decompose(b, *ins, **n.attrs)
        if isinstance(out, Value) and out.type == n.types[0]:
            report.count("prepare_fusion.decomposed")
            return out
    if not is_map(n):
        return None
    out = _sink(b, n, ins, low, report)
    return _sink_merge(b, n, ins, report) if out is None else out


def _sink(b: Builder, n: Node, ins: tuple[Value | None, ...], low: set[Value], report: PassReport) -> Value | None:
    """op(reshape(r), y) -> reshape(op(r, y)) where the reshape drops the ones that a reduction kept and y can be given
    them."""
    shape = n.types[0].shape
    for v in ins:
        if v is None or v.node.op != "reshape" or v.shape != shape or v.node.operands[0] not in low:
            continue
        kept = v.node.operands[0].shape
        origin = inserted_ones(shape, kept)
        if origin is None:
            continue
        wide = [
            None if x is None else (x.node.operands[0] if _drops(x, kept) else reshaped(b, x, origin, len(shape)))
            for x in ins
        ]
        out = b.op(n.op, *wide, name=n.name, **n.attrs)
        if out.shape != kept:
            continue
        low.add(out)
        report.count("prepare_fusion.sunk_reshape")
        dropped: Value = b.op("reshape", out, shape=shape)
        return dropped
    return None


def merged_groups(old: tuple[Dim, ...], new: tuple[Dim, ...]) -> list[tuple[int, int]] | None:
    """For a reshape that only merges neighbouring dims: per new dim, the range of old dims it is made of."""
    out: list[tuple[int, int]] = []
    i = 0
    for d in new:
        start, size = i, 1
        while i < len(old) and (i == start or size != d):
            size = size * old[i]  # type: ignore[assignment]
            i += 1
        if i == start or size != d:
            return None
        out.append((start, i))
    return out if i == len(old) else None


def _sink_merge(b: Builder, n: Node, ins: tuple[Value | None, ...], report: PassReport) -> Value | None:
    """op(reshape(y), z) -> reshape(op(y, z)) for elementwise y whose dims the reshape merges; splitting z is a view."""
    shape = n.types[0].shape
    for v in ins:
        if v is None or v.node.op != "reshape" or v.shape != shape or not fusible(v.node.operands[0].node):
            continue
        full = v.node.operands[0].shape
        groups = merged_groups(full, shape)
        if groups is None or len(full) == len(shape):
            continue
        args = [None if x is None else _split_dims(b, x, full, shape, groups) for x in ins]
        out = b.op(n.op, *args, name=n.name, **n.attrs)
        if out.shape != full:
            continue
        report.count("prepare_fusion.sunk_merge")
        merged: Value = b.op("reshape", out, shape=shape)
        return merged
    return None


def _split_dims(
    b: Builder, x: Value, full: tuple[Dim, ...], shape: tuple[Dim, ...], groups: list[tuple[int, int]]
) -> Value:
    """``x``, which broadcasts to ``shape``, with its dims split into those of ``full``; sizes of 1 become ones."""
    if x.rank == 0:
        return x
    if x.node.op == "reshape" and x.shape == shape and x.node.operands[0].shape == full:
        return x.node.operands[0]
    sizes: list[Dim] = []
    for d, (start, stop) in zip(x.shape, groups[len(shape) - x.rank :], strict=True):
        sizes += [1] * (stop - start) if is_one(d) else full[start:stop]
    out: Value = b.op("reshape", x, shape=tuple(sizes))
    return out


def _drops(v: Value, kept: tuple[Dim, ...]) -> bool:
    return v.node.op == "reshape" and v.node.operands[0].shape == kept


def _hoist(graph: Graph, report: PassReport) -> Graph:
    """One round: each view whose operand and users are elementwise moves above the cone of elementwise ops that only it
    uses."""
    uses = graph.uses()
    cones: dict[int, list[Node]] = {}
    position = {id(n): i for i, n in enumerate(graph.nodes)}
    for n in graph.nodes:
        if n.op not in ("permute", "slice", "reshape") or not _movable(n):
            continue
        users = uses.get(n[0], [])
        if not users or any(u is None or not fusible(u) for u in users):
            continue
        producer = n.operands[0].node
        if not is_map(producer) or any(u is not n for u in uses[producer[0]]):
            continue
        cones[id(n)] = _cone(producer, n, uses, position)
    if not cones:
        return graph
    copy = GraphCopy(graph)
    for n in graph.nodes:
        if id(n) in cones:
            copy.builder.loc = n.loc
            copy.values[n[0]] = _moved(copy.builder, n, cones[id(n)], copy.values)
            report.count(f"prepare_fusion.hoisted_{n.op}")
        else:
            copy.keep(n)
    return copy.graph()


def _movable(n: Node) -> bool:
    if n.op != "reshape":
        return True
    old, new = n.operands[0].shape, n.types[0].shape
    return inserted_ones(old, new) is not None or splits_last(old, new)


def splits_last(old: tuple[Dim, ...], new: tuple[Dim, ...]) -> bool:
    """A reshape that sees the last dim as two."""
    return len(new) == len(old) + 1 and len(old) > 0 and new[:-2] == old[:-1] and new[-2] * new[-1] == old[-1]


def _cone(top: Node, view: Node, uses: Mapping[Value, list[Node | None]], position: Mapping[int, int]) -> list[Node]:
    """The elementwise nodes that nothing but ``view`` depends on, in topological order."""
    cone = {id(top): top}
    todo = [top]
    while todo:
        n = todo.pop()
        for v in n.operands:
            p = v.node
            if id(p) in cone or id(p) not in position or not is_map(p) or v.rank == 0:
                continue
            if all(u is not None and id(u) in cone for u in uses[p[0]]):
                cone[id(p)] = p
                todo.append(p)
    return sorted(cone.values(), key=lambda n: position[id(n)])


def _moved(b: Builder, view: Node, cone: list[Node], env: Mapping[Value, Value]) -> Value:
    """The cone's last value as ``view`` shows it, computed from viewed operands."""
    inside: dict[Value, Value] = {}
    seen: dict[Value, Value] = {}
    shape = view.operands[0].shape
    for n in cone:
        ins = []
        for v in n.operands:
            if v in inside:
                ins.append(inside[v])
                continue
            if v not in seen:
                seen[v] = view_of(b, view, env[v], shape)
            ins.append(seen[v])
        inside[n[0]] = b.op(n.op, *ins, loc=n.loc, name=n.name, **n.attrs)
    return inside[cone[-1][0]]


def view_of(b: Builder, view: Node, v: Value, shape: tuple[Dim, ...]) -> Value:
    """``v``, which broadcasts to ``shape``, seen through ``view`` (a view of a value of that shape); sizes of 1 stay
    1."""
    if v.rank == 0:
        return v
    pad = len(shape) - v.rank
    out: Value
    if view.op == "reshape":
        origin = inserted_ones(shape, view.types[0].shape)
        if origin is None:  # the last dim is split
            return split_last(b, v, *view.types[0].shape[-2:])
        return reshaped(b, v, origin, len(shape))
    full = v if pad == 0 else b.op("reshape", v, shape=(*[1] * pad, *v.shape))
    if view.op == "permute":
        out = b.op("permute", full, dims=view.attrs["dims"])
        return out
    starts, stops, steps = [], [], []
    for i, d in enumerate(full.shape):
        small = is_one(d) and not is_one(shape[i])
        starts.append(0 if small else view.attrs["starts"][i])
        stops.append(1 if small else view.attrs["stops"][i])
        steps.append(1 if small else view.attrs["steps"][i])
    out = b.op("slice", full, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
    return out


def reshaped(b: Builder, v: Value, origin: list[int | None], rank: int) -> Value:
    """``v``, which broadcasts to a shape of this rank, with ones dropped and added as ``origin`` (of inserted_ones)
    says."""
    if v.rank == 0:
        return v
    pad = rank - v.rank
    sizes: tuple[Dim, ...] = tuple(1 if i is None or i < pad else v.shape[i - pad] for i in origin)
    if sizes == v.shape:
        return v
    out: Value = b.op("reshape", v, shape=sizes)
    return out


def split_last(b: Builder, x: Value, two: Dim, h: Dim) -> Value:
    """``x`` with its last dim seen as two dims (ones if it is one)."""
    if x.rank == 0:
        return x
    shape = (*x.shape[:-1], *((1, 1) if is_one(x.shape[-1]) else (two, h)))
    if x.node.op == "reshape" and x.node.operands[0].shape == shape:
        return x.node.operands[0]
    out: Value = b.op("reshape", x, shape=shape)
    return out
