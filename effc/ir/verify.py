"""The verifier: a graph is well formed, every type follows from the op table, every symbol is bound before it is
used."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from ..runtime.errors import EffcError
from . import dims
from .dims import Bounds, Dim, SymExpr
from .dtypes import DType
from .graph import Check, Graph, Node
from .op import DimAttr, DimsAttr, OpDef, get
from .types import TensorType

_SCALARS: dict[Any, type] = {k: k for k in (int, float, bool, str, tuple, DType, Graph, TensorType)}


def verify(graph: Graph) -> None:
    """EffcError naming node and source line for the first thing that is wrong; None for a well-formed graph.

    Checked: unique nodes in topological order, declared ops, complete and well-typed attributes, result types equal to
    what the type rules infer, symbols declared with bounds and defined before use, subgraph signatures, states,
    commits.
    """
    _Verifier(dict(graph.symbols), graph.checks).graph(graph, set(), top=True)


class _Verifier:
    def __init__(self, symbols: dict[str, Bounds], checks: tuple[Check, ...]) -> None:
        self.symbols, self.checks = symbols, checks
        self.samples: list[dict[str, int]] = []

    def fail(self, n: Node | None, message: str) -> None:
        if n is None:
            raise EffcError(f"malformed graph: {message}")
        name = f" {n.name!r}" if n.name else ""
        shapes = ", ".join("none" if v is None else str(v.type) for v in n.inputs)
        raise EffcError(f"malformed graph: node {n.op}{name}: {message}", op=n.op, loc=n.loc, shapes=shapes)

    def graph(self, g: Graph, bound: set[str], top: bool) -> None:
        """``bound``: the symbols that have a value when the graph starts."""
        for name, (lo, hi) in g.symbols.items():
            if hi is not None and lo > hi:
                self.fail(None, f"symbol {name} has empty bounds {lo}..{hi}")
            self.symbols.setdefault(name, (lo, hi))
        self.samples = list(_assignments(self.symbols, self.checks))
        bound = set(bound)
        late = {s for n in g.nodes for s in self.binds(n)}
        defined: set[int] = set()
        for i, n in enumerate(g.inputs):
            if n.op != "input" or n.inputs or len(n.types) != 1:
                self.fail(n, "an entry of Graph.inputs must be an input node with one result")
            if n.attrs.get("index") != i:
                self.fail(n, f"input {i} has index {n.attrs.get('index')}")
            if id(n) in defined:
                self.fail(n, "is listed twice among the inputs")
            defined.add(id(n))
            for s in type_symbols(n.types[0]):
                self.declared(n, s)
                bound.add(s)
        # A symbol that neither an input nor a node defines is an argument of the call (an integer scalar).
        bound |= set(g.symbols) - late
        for n in g.nodes:
            self.node(n, defined, bound)
            defined.add(id(n))
        for kind, values in (("output", g.outputs), ("commit", [c.value for c in g.commits])):
            for k, v in enumerate(values):
                if id(v.node) not in defined or not 0 <= v.index < len(v.node.types):
                    self.fail(None, f"{kind} {k} ({v!r}) is not computed by this graph")
        if g.output_names and len(g.output_names) != len(g.outputs):
            self.fail(None, f"{len(g.output_names)} output names for {len(g.outputs)} outputs")
        self.state(g, top)

    def state(self, g: Graph, top: bool) -> None:
        if not top and (g.commits or g.states):
            self.fail(None, "a subgraph cannot hold states or commits")
        for key, st in g.states.items():
            if st.init is not None and (tuple(st.init.shape) != st.type.shape or st.init.dtype != st.type.dtype.np):
                self.fail(
                    None,
                    f"state {key} is declared {st.type}, its first content is {st.init.dtype}{list(st.init.shape)}",
                )
        for n in g.nodes:
            if n.op == "state" and (n.attrs["name"] not in g.states or g.states[n.attrs["name"]].type != n.types[0]):
                self.fail(n, f"reads state {n.attrs['name']!r}, which the graph does not declare as {n.types[0]}")
        for c in g.commits:
            if (c.state is None) == (c.input is None):
                self.fail(None, "a commit names one state or one input")
            if c.state is not None and c.state not in g.states:
                self.fail(None, f"a commit writes unknown state {c.state!r}")
            if c.input is not None and not 0 <= c.input < len(g.inputs):
                self.fail(None, f"a commit writes input {c.input} of {len(g.inputs)}")
            target = g.states[c.state].type if c.state is not None else g.inputs[c.input or 0].types[0]
            if not self.same_type(target, c.value.type):
                self.fail(c.value.node, f"is committed to a buffer of type {target}, its type is {c.value.type}")
        for check in g.checks:
            for s in dims.symbols(check.lhs) | dims.symbols(check.rhs):
                self.declared(None, s)

    def declared(self, n: Node | None, s: str) -> None:
        if s not in self.symbols:
            self.fail(n, f"symbol {s} has no bounds; Graph.symbols declares {sorted(self.symbols)}")

    @staticmethod
    def binds(n: Node) -> set[str]:
        return {s for a in get(n.op).binds for s in attr_symbols(n.attrs.get(a))}

    def node(self, n: Node, defined: set[int], bound: set[str]) -> None:
        if n.op == "input":
            self.fail(n, "an input node stands among the nodes")
        try:
            definition = get(n.op)
        except EffcError as e:
            raise EffcError(e.message, op=n.op, loc=n.loc, hint=e.hint) from None
        if id(n) in defined:
            self.fail(n, "stands twice in the graph")
        for k, v in enumerate(n.inputs):
            if v is None:
                continue
            if id(v.node) not in defined:
                self.fail(n, f"operand {k} ({v!r}) is not defined before it")
            if not 0 <= v.index < len(v.node.types):
                self.fail(n, f"operand {k} is result {v.index} of a node with {len(v.node.types)}")
        self.attrs(n, definition)
        self.operands(n, definition)
        bound |= self.binds(n)
        for s in {s for t in n.types for s in type_symbols(t)} | {s for a in n.attrs.values() for s in attr_symbols(a)}:
            self.declared(n, s)
            if s not in bound:
                self.fail(n, f"symbol {s} is used before the node that defines it")
        inferred = definition.infer_types(n.inputs, n.attrs, n.loc)
        if len(inferred) != len(n.types):
            self.fail(n, f"has {len(n.types)} results, its type rule gives {len(inferred)}")
        for k, (have, want) in enumerate(zip(n.types, inferred, strict=True)):
            if not self.same_type(have, want):
                self.fail(n, f"result {k} is {have}, its type rule gives {want}")
        self.signatures(n)
        for g in n.subgraphs:
            inner = _Verifier(dict(self.symbols), self.checks)
            inner.graph(g, bound, top=False)

    def operands(self, n: Node, definition: OpDef) -> None:
        """Only operands declared optional may be missing."""
        for k, v in enumerate(n.inputs):
            spec = definition.operands[min(k, len(definition.operands) - 1)] if definition.operands else ""
            if v is None and not spec.endswith(("?", "*")):
                self.fail(n, f"operand {spec} is missing")

    def attrs(self, n: Node, definition: OpDef) -> None:
        if set(n.attrs) != set(definition.attrs):
            self.fail(n, f"has attributes {sorted(n.attrs)}, its declaration {sorted(definition.attrs)}")
        for key, (kind, default) in definition.attrs.items():
            value = n.attrs[key]
            if value is None and default is None:
                continue
            if not _fits(value, kind):
                self.fail(n, f"attribute {key} is {value!r}, which is not of type {getattr(kind, '__name__', kind)}")

    def same_type(self, a: TensorType, b: TensorType) -> bool:
        """Equal dtype, rank and encoding; dims equal in form, or in value for every size tried within bounds and
        checks."""
        if a.dtype is not b.dtype or a.rank != b.rank or a.encoding != b.encoding:
            return False
        return all(self.same_dim(x, y) for x, y in zip(a.shape, b.shape, strict=True))

    def same_dim(self, a: Dim, b: Dim) -> bool:
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        if a == b:
            return True
        try:
            return all(dims.evaluate(a, env) == dims.evaluate(b, env) for env in self.samples)
        except (KeyError, ZeroDivisionError):
            return False

    def signatures(self, n: Node) -> None:
        """The operands of a node that carries subgraphs fit the subgraphs' inputs."""
        types = [v.type for v in n.inputs if v is not None]
        if n.op == "if":
            self.signature(n, "then", types[1:])
            self.signature(n, "orelse", types[1:])
        elif n.op == "while":
            self.signature(n, "cond", types)
            self.signature(n, "body", types)
            outs = n.attrs["cond"].outputs
            if len(outs) != 1 or not outs[0].dtype.is_bool or outs[0].rank:
                self.fail(n, "the condition must give one bool scalar")
        elif n.op == "scan":
            k, m = n.attrs["carries"], n.attrs["scanned"]
            if k + m > len(types) or any(t.rank == 0 for t in types[k : k + m]):
                self.fail(n, f"{k} carries and {m} scanned operands of rank 1 or more do not fit {len(types)} operands")
            slices = [t.with_shape(t.shape[1:]) for t in types[k : k + m]]
            self.signature(n, "body", [*types[:k], *slices, *types[k + m :]])
        elif n.op in ("fused", "conv_chain", "conv_pair", "conv_scaled", "row_chain"):
            self.signature(n, "body", types, exact=True)

    def signature(self, n: Node, key: str, types: list[TensorType], exact: bool = False) -> None:
        g: Graph = n.attrs[key]
        if len(g.inputs) != len(types):
            self.fail(n, f"{key} takes {len(g.inputs)} values, {len(types)} are given")
        for k, (i, t) in enumerate(zip(g.inputs, types, strict=True)):
            have = i.types[0]
            fits = self.same_type(have, t) if exact else have.dtype is t.dtype and have.rank == t.rank
            if not fits:
                self.fail(n, f"input {k} of {key} is {have}, {t} is given")


def _fits(value: Any, kind: Any) -> bool:
    if kind is object:
        return True
    if kind is DimAttr:
        return _is_dim(value)
    if kind is DimsAttr:
        return isinstance(value, tuple) and all(map(_is_dim, value))
    if kind is int and isinstance(value, bool):
        return False
    want = _SCALARS.get(kind)
    return isinstance(value, want) if want is not None else (not isinstance(kind, type) or isinstance(value, kind))


def _is_dim(v: Any) -> bool:
    return isinstance(v, SymExpr) or (isinstance(v, (int, np.integer)) and not isinstance(v, bool))


def type_symbols(t: TensorType) -> set[str]:
    return {s for d in t.shape for s in dims.symbols(d)}


def attr_symbols(v: Any) -> AbstractSet[str]:
    """The symbols in an attribute; a subgraph's are its own business."""
    if isinstance(v, SymExpr):
        return dims.symbols(v)
    if isinstance(v, tuple):
        return {s for x in v for s in attr_symbols(x)}
    return type_symbols(v) if isinstance(v, TensorType) else set()


def _assignments(symbols: Mapping[str, Bounds], checks: tuple[Check, ...]) -> Iterator[dict[str, int]]:
    """Sizes to compare dims under: random ones within bounds that satisfy the ``==`` checks between symbols."""
    rng = random.Random(7)
    for _ in range(6):
        env = {s: rng.randint(lo, min(lo + 97, hi) if hi is not None else lo + 97) for s, (lo, hi) in symbols.items()}
        for c in checks:
            if c.op != "==":
                continue
            for lhs, rhs in ((c.lhs, c.rhs), (c.rhs, c.lhs)):
                if str(lhs) in env:
                    env[str(lhs)] = dims.evaluate(rhs, env)
                    break
        yield env
