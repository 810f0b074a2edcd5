"""Rewrite rules: a pattern, a check that may decline with a reason, and a rewrite; and the pass that applies them.

A rule's pattern selects candidates silently; what a candidate may still fail on is said by ``check`` and ends in the
report. Patterns match against operands that were rewritten already. Rules may not change a result's type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..ir.dims import Dim
from ..ir.dtypes import DType
from ..ir.graph import Builder, Graph, Node, Value
from ..ir.types import TensorType
from .manager import Pass, PassReport, in_subgraphs

Array = np.ndarray[Any, Any]
COMMUTATIVE = frozenset(
    (
        "add mul maximum minimum fmax fmin eq ne logical_and logical_or logical_xor bitwise_and bitwise_or "
        "bitwise_xor gcd lcm hypot logaddexp "
    ).split()
)


# Constants ------------------------------------------------------------------------------------------------------------


def const(v: Value | None) -> Array | None:
    """The array of a value that is a constant, else None."""
    return v.node.attrs["data"] if v is not None and v.node.op == "constant" else None


def known(v: Value) -> Array | None:
    """The array of a constant seen through reshape and permute, else None."""
    if v.node.op in ("reshape", "permute"):
        a = known(v.node.operands[0])
        if a is None or not v.type.is_static:
            return None
        return a.transpose(v.node.attrs["dims"]) if v.node.op == "permute" else a.reshape(v.type.evaluate({}))
    return const(v)


def uniform(v: Value | None, limit: int = 1 << 16) -> Any:
    """The numpy scalar that every element of ``v`` equals (bit for bit), or None when that is not known."""
    while (
        v is not None
        and v.node.op in ("broadcast_to", "reshape", "permute", "copy", "full")
        and v.node.operands
        and v.dtype == v.node.operands[0].dtype
        and 0 not in v.node.operands[0].shape
    ):
        v = v.node.inputs[0]
    if v is None:
        return None
    n = v.node
    if n.op == "full" and not n.operands and isinstance(n.attrs["value"], (bool, int, float, complex)):
        return np.asarray(n.attrs["value"]).astype(v.dtype.np)[()]
    a = const(v)
    if a is None or not 0 < a.size <= limit:
        return None
    first = a.reshape(-1)[:1]
    return first[0] if a.size == 1 or a.tobytes() == first.tobytes() * a.size else None


def scalar(b: Builder, value: Any, dtype: DType) -> Value:
    """A 0-d constant."""
    return b.constant(np.asarray(value).astype(dtype.np), dtype)


def fit(b: Builder, v: Value, type: TensorType) -> Value:
    """``v`` broadcast to the shape of ``type`` where it is smaller."""
    if v.shape == type.shape:
        return v
    out: Value = b.op("broadcast_to", v, shape=type.shape)
    return out


# Patterns -------------------------------------------------------------------------------------------------------------


@dataclass
class Match:
    """A matched candidate: values by the names in the pattern, the root node, and how often values are used."""

    root: Node
    values: dict[str, Value] = field(default_factory=dict)
    uses: Mapping[Value, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def node(self, name: str) -> Node:
        return self.values[name].node

    def single_use(self, v: Value) -> bool:
        return self.uses.get(v, 0) <= 1


class Pattern:
    """Matches a value and binds names."""

    def match(self, v: Value | None, m: dict[str, Value]) -> Iterator[dict[str, Value]]:
        raise NotImplementedError


@dataclass(frozen=True)
class Var(Pattern):
    """Any value; a name that is bound already must be the same value again. ``where`` restricts it silently."""

    name: str
    where: Callable[[Value], bool] | None = None

    def match(self, v: Value | None, m: dict[str, Value]) -> Iterator[dict[str, Value]]:
        if v is None or (self.name in m and m[self.name] != v) or (self.where is not None and not self.where(v)):
            return
        yield {**m, self.name: v}


def Const(name: str, where: Callable[[Array], bool] | None = None) -> Var:
    """A constant whose array passes ``where``."""
    return Var(name, lambda v: (a := const(v)) is not None and (where is None or where(a)))


def Uniform(name: str, where: Callable[[Any], bool] | None = None) -> Var:
    """A value all of whose elements are one known number that passes ``where``."""
    return Var(name, lambda v: (u := uniform(v)) is not None and (where is None or bool(where(u))))


@dataclass(frozen=True)
class Op(Pattern):
    """A result of one of the ops ``ops`` (names separated by spaces). Commutative ops match in both orders.

    Without operand patterns, any operands match. ``name`` binds the value; ``attrs`` restricts attributes.
    """

    ops: str
    operands: tuple[Pattern, ...] = ()
    name: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def match(self, v: Value | None, m: dict[str, Value]) -> Iterator[dict[str, Value]]:
        if v is None or v.node.op not in self.ops.split():
            return
        n = v.node
        if any(n.attrs.get(k) != want for k, want in self.attrs.items()):
            return
        if self.name:
            if self.name in m and m[self.name] != v:
                return
            m = {**m, self.name: v}
        if not self.operands:
            yield m
            return
        if len(n.inputs) != len(self.operands):
            return
        yield from _match_all(self.operands, n.inputs, m)
        if n.op in COMMUTATIVE and len(n.inputs) == 2:
            yield from _match_all(self.operands, n.inputs[::-1], m)


def _match_all(ps: Sequence[Pattern], vs: Sequence[Value | None], m: dict[str, Value]) -> Iterator[dict[str, Value]]:
    if not ps:
        yield m
        return
    for m2 in ps[0].match(vs[0], m):
        yield from _match_all(ps[1:], vs[1:], m2)


def P(ops: str, *operands: Pattern, name: str = "", **attrs: Any) -> Op:
    return Op(ops, operands, name, attrs)


class Rule:
    """One rewrite. ``pattern`` is matched at the result of a node with one result."""

    name: ClassVar[str]
    pattern: ClassVar[Op]

    def check(self, m: Match) -> str | None:
        """Why the rule declines this candidate, or None."""
        return None

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        """The value that replaces the root's result; None leaves it silently."""
        raise NotImplementedError


# The pass -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rewrite(Pass):
    """Applies rules in sweeps from inputs to outputs until nothing changes, in subgraphs of control flow too."""

    rules: tuple[Rule, ...] = ()
    max_sweeps: int = 12

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.sweeps(in_subgraphs(graph, lambda g: self.sweeps(g, report)), report)

    def sweeps(self, graph: Graph, report: PassReport) -> Graph:
        by_op: dict[str, list[Rule]] = {}
        for r in self.rules:
            for op in r.pattern.ops.split():
                by_op.setdefault(op, []).append(r)
        for _ in range(self.max_sweeps):
            once = PassReport()
            sweep = _Sweep(graph, by_op, once, self.name)
            after = graph.rebuild(sweep.rule)
            for k, n in once.stats.items():
                report.count(k, n)
            if not sweep.changed:
                for d, n in once.declined.items():
                    report.declined[d] = report.declined.get(d, 0) + n
                return graph
            graph = after
        report.count(f"{self.name}.sweeps_exhausted")
        return graph


class _Sweep:
    def __init__(self, graph: Graph, by_op: Mapping[str, list[Rule]], report: PassReport, pass_name: str) -> None:
        self.by_op, self.report, self.pass_name, self.changed = by_op, report, pass_name, False
        self.old_uses = {v: len(us) for v, us in graph.uses().items()}
        self.uses: dict[Value, int] = {}
        for n in graph.inputs:
            self.uses[n[0]] = self.old_uses.get(n[0], 0)

    def rule(self, b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Sequence[Value] | None:
        now = n if ins == n.inputs else dataclasses.replace(n, inputs=ins)
        out = self.first(b, now) if len(n.types) == 1 and n.op in self.by_op else None
        if out is None:
            if now is not n:
                b.nodes.append(now)
            result: tuple[Value, ...] = now.values
        else:
            self.changed = True
            result = (out,)
        for old, new in zip(n.values, result, strict=True):
            self.uses[new] = self.uses.get(new, 0) + self.old_uses.get(old, 0)
        return None if now is n and out is None else result

    def first(self, b: Builder, n: Node) -> Value | None:
        """The first rule's result that applies to this node; its new nodes are in ``b``."""
        for r in self.by_op[n.op]:
            reason: str | None = None
            for values in r.pattern.match(n[0], {}):
                m = Match(n, values, self.uses)
                reason = r.check(m)
                if reason is not None:
                    continue
                mark, b.loc = len(b.nodes), n.loc
                out = r.rewrite(b, m)
                b.loc = None
                if out is None or out == n[0]:
                    del b.nodes[mark:]
                    continue
                if out.type != n.types[0]:
                    del b.nodes[mark:]
                    reason = f"the result would be {out.type} instead of {n.types[0]}"
                    continue
                self.report.count(f"{self.pass_name}.{r.name}")
                return out
            if reason is not None:
                self.report.decline(r.name, reason, n)
        return None


def is_one(d: Dim) -> bool:
    return isinstance(d, int) and d == 1
