"""Constant folding, common subexpressions, dead code."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir.graph import Builder, Graph, Node, Value
from ..ir.interp import Interpreter
from ..ir.op import get
from ..runtime.errors import EffcError
from .fuse.kinds import is_lookup
from .manager import CONTROL, Pass, PassReport, in_subgraphs
from .rewrite import const

SMALL = 1 << 12  # views of constants up to this many bytes are folded; larger ones stay views of the one stored weight
TABLE = 1 << 22  # results up to this many bytes are folded though their operands are much smaller: position tables


@dataclass(frozen=True)
class Fold(Pass):
    """Replaces nodes whose operands are constants by their value, computed by the ops' numpy references.

    ``limit``: the largest result in bytes. ``growth``: results above ``TABLE`` (4 MiB) may be at most this many times
    their operands. Distances between positions, the buckets that they fall into, and the biases that are looked up by
    them grow out of two vectors, and would else be computed again in each run.
    """

    name: ClassVar[str] = "fold"
    limit: int = 1 << 28
    growth: int = 2

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Any:
            if n.op in ("constant", "full") or not n.types or not all(_known(v) for v in ins):
                if n.op == "if" and ins[0] is not None and const(ins[0]) is not None:
                    return self.branch(b, n, ins, report)
                return None
            reason = self.declines(n, ins)
            if reason:
                if reason != "silent":
                    report.decline("fold", reason, n)
                return None
            try:
                arrays = _evaluate(replace(n, inputs=ins))
            except EffcError as e:
                report.decline("fold", f"its reference failed: {e.message}", n)
                return None
            report.count("fold.folded")
            b.loc = n.loc
            out = []
            for v, a in zip(n.values, arrays, strict=True):
                if a.shape != v.shape or a.dtype != v.dtype.np:
                    raise EffcError(f"folding {n.op} gave {a.dtype}{list(a.shape)} for {v.type}", op=n.op, loc=n.loc)
                out.append(b.constant(a, v.dtype, n.name))
            return out

        return graph.rebuild(rule)

    def declines(self, n: Node, ins: tuple[Value | None, ...]) -> str | None:
        d = get(n.op)
        if d.effects or d.category in ("state", "random") or (n.op in ("assert", "dim_value") and _symbolic(n)):
            return "silent" if not d.effects else f"has the effect {d.effects!r}"
        if n.op in CONTROL or d.binds:
            return "silent"
        if _symbolic(n):
            return "silent"
        size = sum(_nbytes(v) for v in n.values)
        given = sum(_nbytes(v) for v in ins if v is not None)
        if d.category == "view" and size > SMALL and n.op != "bitcast":
            return "silent"
        if size > self.limit:
            return f"the result is larger than {self.limit} bytes"
        table = 1 << 16 if is_lookup(n) else TABLE  # a loop looks such rows up as it reads them: fewer bytes
        if size > max(table, self.growth * given):
            return "the result is much larger than its operands"
        return None

    def branch(self, b: Builder, n: Node, ins: tuple[Value | None, ...], report: PassReport) -> Any:
        taken: Graph = n.attrs["then" if bool(const(ins[0])) else "orelse"]
        outs = taken.inline(b, [v for v in ins[1:] if v is not None])
        if tuple(v.type for v in outs) != n.types:
            report.decline("fold", "the branch's types are written differently", n)
            return None
        report.count("fold.branches")
        return outs


def _known(v: Value | None) -> bool:
    """A constant, a small ``full``, or views of these."""
    if v is None or v.node.op == "constant":
        return True
    if v.node.op == "full":
        return not v.node.operands and not _symbolic(v.node) and _nbytes(v) <= TABLE
    if v.node.op == "input":
        return False
    return get(v.node.op).category == "view" and not _symbolic(v.node) and all(map(_known, v.node.operands))


def _symbolic(n: Node) -> bool:
    return not all(t.is_static for t in n.types) or any(_has_symbol(a) for a in n.attrs.values())


def _has_symbol(a: Any) -> bool:
    from ..ir.verify import attr_symbols

    return bool(attr_symbols(a))


def _nbytes(v: Value) -> int:
    n = v.type.nbytes
    return n if isinstance(n, int) else 1 << 62


def _evaluate(n: Node) -> list[np.ndarray[Any, Any]]:
    nodes: list[Node] = []

    def visit(at: Node) -> None:
        if not any(at is x for x in nodes):
            for v in at.operands:
                visit(v.node)
            nodes.append(at)

    visit(n)
    return Interpreter().run(Graph((), tuple(nodes), n.values), [])


# Common subexpressions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cse(Pass):
    """Merges nodes that compute the same; random ops and control flow never, constants by content."""

    name: ClassVar[str] = "cse"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        seen: dict[Any, Node] = {}
        alike = Counter(_glance(n.attrs["data"]) for n in graph.nodes if n.op == "constant")

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Any:
            d = get(n.op)
            if (d.effects and n.op != "state") or n.subgraphs or not n.types:
                return None
            if n.op == "constant" and alike[_glance(n.attrs["data"])] == 1:
                return None
            key = (n.op, ins, tuple(sorted((k, attr_key(v)) for k, v in n.attrs.items())), n.types)
            if key in seen:
                report.count("cse.merged")
                return seen[key].values
            kept = n if ins == n.inputs else replace(n, inputs=ins)
            b.nodes.append(kept)
            seen[key] = kept
            return kept.values

        return graph.rebuild(rule)


def _glance(a: np.ndarray[Any, Any]) -> Any:
    """A key that differs for most different arrays, cheap enough to spare large ones from being hashed."""
    flat = a.reshape(-1)
    return str(a.dtype), a.shape, flat[:: max(a.size // 32, 1)][:40].tobytes()


def attr_key(v: Any) -> Any:
    """A hashable key; equal keys mean equal attributes, -0.0 and NaN and arrays told apart by their bits."""
    if isinstance(v, np.ndarray):
        flat = np.ascontiguousarray(v).reshape(-1)
        digest = hashlib.blake2b(flat.view(np.uint8).data if v.size else b"", digest_size=16).digest()
        return ("array", str(v.dtype), v.shape, digest)
    if isinstance(v, tuple):
        return ("tuple", *(attr_key(x) for x in v))
    return (type(v).__name__, repr(v))


@dataclass(frozen=True)
class Dce(Pass):
    """Drops nodes that nothing needs, in subgraphs too."""

    name: ClassVar[str] = "dce"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        before = sum(1 for _ in graph.walk())
        out = in_subgraphs(graph, lambda g: g.without_dead()).without_dead()
        report.count("dce.removed", before - sum(1 for _ in out.walk()))
        return out
