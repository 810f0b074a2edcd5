"""Rewrites of constant weights: per-channel scales folded in, products that share an operand merged.

These are exact up to rounding: the new weights are computed in f64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ..ir.dims import Dim
from ..ir.graph import Builder, Graph, Node, Value
from .fuse.kinds import is_map
from .manager import Pass, PassReport, in_subgraphs
from .rewrite import known

Array = np.ndarray[Any, Any]
Uses = Mapping[Value, list[Node | None]]


def sole_user(v: Value, uses: Uses) -> Node | None:
    users = uses.get(v, [])
    return users[0] if len(users) == 1 else None


def used_once(v: Value, uses: Uses) -> bool:
    """Nothing else uses these constant data, looking through views."""
    while len(uses.get(v, [])) == 1:
        if v.node.op not in ("permute", "reshape"):
            return True
        v = v.node.operands[0]
    return False


def _name(v: Value) -> str:
    """The name of the constant under the views."""
    while v.node.op in ("permute", "reshape"):
        v = v.node.operands[0]
    return v.node.name


def channel_axis(n: Node) -> int | None:
    """The dim of the result along which the weights' columns lie."""
    if n.op == "matmul":
        return n.types[0].rank - 1
    return 1 if n.op in ("conv", "conv_transpose") else None


def per_channel(v: Value, rank: int, axis: int, size: int) -> Array | None:
    """A constant that varies along ``axis`` only (or not at all) as an f64 array of ``size``, else None."""
    a = known(v)
    if a is None or a.dtype.kind in "cb" or a.ndim > rank:
        return None
    shape = (1,) * (rank - a.ndim) + a.shape
    if any(d != 1 for i, d in enumerate(shape) if i != axis) or shape[axis] not in (1, size):
        return None
    return np.broadcast_to(a.astype(np.float64).reshape(-1), (size,))


@dataclass
class _Chain:
    """y = scale * contraction + shift; ``nodes`` in order."""

    scale: Array
    shift: Array
    nodes: list[Node] = field(default_factory=list)
    scaled: bool = False


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Batch norm and scales after a convolution or product with constant weights: the scale goes into the weights, the
    shifts become one addition."""

    name: ClassVar[str] = "fold_affine"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        uses = graph.uses()
        plan: dict[int, tuple[Node, _Chain]] = {}
        for n in graph.nodes:
            axis = channel_axis(n)
            if axis is None:
                continue
            chain, reason = self.chain(n, axis, uses)
            if chain is not None:
                plan[id(chain.nodes[-1])] = (n, chain)
            elif reason:
                report.decline(self.name, reason, n)
        if not plan:
            return graph
        now: dict[int, Node] = {}  # the contractions with their operands rewritten
        roots = {id(n) for n, _ in plan.values()}

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Any:
            if id(n) in roots:
                now[id(n)] = replace(n, inputs=ins)
                b.nodes.append(now[id(n)])
                return now[id(n)].values
            if id(n) not in plan:
                return None
            root, chain = plan[id(n)]
            b.loc = n.loc
            report.count(f"{self.name}.{root.op}")
            return self.folded(b, now[id(root)], chain)

        return graph.rebuild(rule)

    def chain(self, n: Node, axis: int, uses: Uses) -> tuple[_Chain | None, str | None]:
        w = known(n.operands[1])
        size = n.types[0].shape[axis]
        if (
            w is None
            or not isinstance(size, int)
            or not n.types[0].dtype.is_float
            or (n.op == "matmul" and w.ndim != 2)
        ):
            return None, None
        c = _Chain(np.ones(size), np.zeros(size))
        v = n[0]
        reason: str | None = None
        while (
            (u := sole_user(v, uses)) is not None and u.op in ("add", "sub", "mul", "div") and u.types[0] == n.types[0]
        ):
            x, y = u.operands
            other = y if x == v else x
            if x == y:
                break
            a = per_channel(other, n.types[0].rank, axis, size)
            if a is None or (u.op == "div" and x != v):
                reason = "an operand after it is not a constant per channel"
                break
            with np.errstate(all="ignore"):
                if u.op == "mul":
                    c.scale, c.shift, c.scaled = c.scale * a, c.shift * a, True
                elif u.op == "div":
                    c.scale, c.shift, c.scaled = c.scale / a, c.shift / a, True
                elif u.op == "add":
                    c.shift = c.shift + a
                elif x == v:
                    c.shift = c.shift - a
                else:  # a - v
                    c.scale, c.shift, c.scaled = -c.scale, a - c.shift, True
            c.nodes.append(u)
            v = u[0]
        if not c.scaled:
            return None, reason if c.nodes else None
        if not used_once(n.operands[1], uses):
            return None, "the weights are used elsewhere too"
        if not (np.isfinite(c.scale).all() and np.isfinite(c.shift).all()):
            return None, "a scale or shift is not finite"
        return c, None

    def folded(self, b: Builder, n: Node, c: _Chain) -> Value:
        w = known(n.operands[1])
        assert w is not None
        dtype = n.types[0].dtype
        if n.op == "matmul":
            scaled = w.astype(np.float64) * c.scale
        elif n.op == "conv":
            scaled = w.astype(np.float64) * c.scale.reshape(-1, *[1] * (w.ndim - 1))
        else:  # conv_transpose: w[C, O/groups, *K], groups along C
            g = n.attrs["groups"]
            by_group = c.scale.reshape(g, 1, w.shape[1], *[1] * (w.ndim - 2))
            scaled = (w.astype(np.float64).reshape(g, w.shape[0] // g, *w.shape[1:]) * by_group).reshape(w.shape)
        if n.op == "matmul" and n.operands[1].node.op == "permute":
            flat = b.constant(np.ascontiguousarray(scaled.T), dtype, _name(n.operands[1]))
            weights: Value = b.op("permute", flat, dims=(1, 0))
        else:
            weights = b.constant(scaled, dtype, _name(n.operands[1]))
        y: Value = b.op(n.op, n.operands[0], weights, loc=n.loc, name=n.name, **n.attrs)
        if not np.any(c.shift):
            return y
        axis = channel_axis(n)
        assert axis is not None
        shape = [1] * (n.types[0].rank - axis)
        shape[0] = -1
        out: Value = b.op("add", y, b.constant(c.shift.reshape(shape), dtype))
        return out


# Merging --------------------------------------------------------------------------------------------------------------

_VIEWS = frozenset({"reshape", "permute", "slice", "broadcast_to"})


@dataclass(frozen=True)
class _Linear:
    """A product with constant weights, its bias if it has one, and the value that carries the result."""

    node: Node
    bias: Array | None
    result: Value


@dataclass(frozen=True)
class MergeMatmuls(Pass):
    """Products x @ W1, x @ W2, ... with constant weights become one product whose result is sliced (query, key and
    value).

    Only where every result goes into views or attention next: elsewhere an epilogue does more good.
    """

    name: ClassVar[str] = "merge_matmuls"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        uses = graph.uses()
        groups: dict[Any, list[_Linear]] = {}
        for n in graph.nodes:
            if n.op != "matmul":
                continue
            found, reason = self.linear(n, uses)
            if found is not None:
                groups.setdefault((n.operands[0], n.operands[1].node.op == "permute"), []).append(found)
            elif reason and len([u for u in uses[n.operands[0]] if u is not None and u.op == "matmul"]) > 1:
                report.decline(self.name, reason, n)
        members: dict[int, tuple[int, list[_Linear]]] = {}  # by the node that gives a member's result
        for group in groups.values():
            if len(group) > 1:
                for k, one in enumerate(group):
                    members[id(one.result.node)] = (k, group)
        if not members:
            return graph
        made: dict[int, list[Value]] = {}

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Any:
            if id(n) in starts:
                b.loc = n.loc
                group = starts[id(n)]
                made[id(group[0].node)] = self.merged(b, group, ins[0])
                report.count(f"{self.name}.merged")
                report.count(f"{self.name}.products", len(group))
            if id(n) in members:
                k, group = members[id(n)]
                return made[id(group[0].node)][k]
            return None

        starts = {id(group[0].node): group for _, group in members.values()}
        return graph.rebuild(rule)

    def linear(self, n: Node, uses: Uses) -> tuple[_Linear | None, str | None]:
        w = known(n.operands[1])
        if w is None or w.ndim != 2 or n.types[0].rank < 2:
            return None, None
        if not used_once(n.operands[1], uses):
            return None, "the weights are used elsewhere too"
        result, bias = n[0], None
        u = sole_user(n[0], uses)
        if u is not None and u.op == "add" and u.types[0] == n.types[0] and u.operands[0] != u.operands[1]:
            other = u.operands[1] if u.operands[0] == n[0] else u.operands[0]
            bias = per_channel(other, n.types[0].rank, n.types[0].rank - 1, w.shape[1])
            if bias is not None:
                result = u[0]
        users = uses.get(result, [])
        if not users or any(x is None or (x.op not in _VIEWS and x.op != "attention") for x in users):
            return None, "a result goes into something else than views or attention; an epilogue serves it better"
        return _Linear(n, bias, result), None

    def merged(self, b: Builder, group: Sequence[_Linear], x: Value | None) -> list[Value]:
        arrays = [known(one.node.operands[1]) for one in group]
        dtype = group[0].node.types[0].dtype
        widths = [a.shape[1] for a in arrays if a is not None]
        name = "+".join(filter(None, (_name(one.node.operands[1]) for one in group)))
        weights: Value
        if group[0].node.operands[1].node.op == "permute":
            weights = b.op(
                "permute",
                b.constant(np.concatenate([a.T for a in arrays if a is not None], 0), dtype, name),
                dims=(1, 0),
            )
        else:
            weights = b.constant(np.concatenate([a for a in arrays if a is not None], 1), dtype, name)
        y: Value = b.op("matmul", x, weights)
        if any(one.bias is not None for one in group):
            parts = [np.zeros(w) if one.bias is None else one.bias for one, w in zip(group, widths, strict=True)]
            y = b.op("add", y, b.constant(np.concatenate(parts), dtype))
        out: list[Value] = []
        at = 0
        for w in widths:
            starts = (*[0] * (y.rank - 1), at)
            stops = (*y.shape[:-1], at + w)
            out.append(b.op("slice", y, starts=starts, stops=stops, steps=(1,) * y.rank))
            at += w
        return out


@dataclass(frozen=True)
class UnflattenMatmuls(Pass):
    """reshape(matmul(reshape(x, [B*L, K]), w), [B, L, N]) -> matmul(x, w): the batch dims that tracing flattened come
    back.

    The reshape of the result may stand behind elementwise ops whose other operands vary along N only.
    """

    name: ClassVar[str] = "unflatten_matmuls"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        uses = graph.uses()

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Any:
            b.loc = n.loc
            if n.op == "matmul":
                x, w = ins
                if x is None or w is None or x.node.op != "reshape" or w.rank != 2 or x.rank != 2:
                    return None
                source = x.node.operands[0]
                if source.rank < 3 or source.shape[-1] != x.shape[1]:
                    lead = _lead(n, uses)
                    if lead is None:
                        return None
                    source = b.op("reshape", source, shape=(*lead, x.shape[1]))
                y = b.op("matmul", source, w, name=n.name)
                if y.dtype is not n.types[0].dtype:
                    return None
                report.count(f"{self.name}.matmul")
                return b.op("reshape", y, shape=n.types[0].shape)
            if len(n.types) == 1 and n.types[0].rank == 2 and is_map(n):
                return self.sink(b, n, ins, report)
            return None

        return graph.rebuild(rule)

    def sink(self, b: Builder, n: Node, ins: tuple[Value | None, ...], report: PassReport) -> Value | None:
        """op(reshape(y), z) -> reshape(op(y, z)) for a flattening reshape of a product and z of shape [N], [1, N] or
        scalar."""
        shape = n.types[0].shape
        flat = [v for v in ins if v is not None and _flattens(v) and v.shape == shape]
        if not flat:
            return None
        source = flat[0].node.operands[0].shape
        args: list[Value] = []
        for v in ins:
            if v is None:
                return None
            if _flattens(v) and v.node.operands[0].shape == source:
                args.append(v.node.operands[0])
            elif v.rank == 0 or (v.rank == 1 and v.shape[0] == shape[1]) or v.shape == (1,):
                args.append(v)
            elif v.rank == 2 and v.shape[0] == 1:
                args.append(b.op("reshape", v, shape=(v.shape[1],)))
            elif v.node.op == "reshape" and v.node.operands[0].shape == source:
                args.append(v.node.operands[0])
            else:
                return None
        y = b.op(n.op, *args, name=n.name, **n.attrs)
        if y.shape != source:
            return None
        report.count(f"{self.name}.elementwise")
        out: Value = b.op("reshape", y, shape=shape)
        return out


def _lead(n: Node, uses: Uses) -> tuple[Dim, ...] | None:
    """The leading dims that a reshape gives the result, directly or behind elementwise ops of one user each."""
    v = n[0]
    while (u := sole_user(v, uses)) is not None:
        if u.op == "reshape":
            shape = u.types[0].shape
            return shape[:-1] if len(shape) >= 3 and shape[-1] == v.shape[1] else None
        if not is_map(u) or u.types[0].shape != v.shape:
            return None
        v = u[0]
    return None


def _flattens(v: Value) -> bool:
    """A reshape that merges all leading dims, right behind a product or elementwise ops on one."""
    if v.node.op != "reshape" or v.rank != 2:
        return False
    x = v.node.operands[0]
    return x.rank > 2 and x.shape[-1] == v.shape[1] and (x.node.op == "matmul" or is_map(x.node))
