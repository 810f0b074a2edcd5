"""The graph: immutable nodes in topological order, and the builder that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from . import dims
from .dims import Bounds, Dim
from .dtypes import DType
from .types import TensorType

EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Loc:
    """Where in the user's source a node comes from, innermost frame of the user's code; ``module`` is the module
    path."""

    file: str = ""
    line: int = 0
    code: str = ""
    module: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else self.module
        return f"{where}: {self.code}" if self.code else where


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. Nodes are immutable and compared by identity; ``types`` are its results' types."""

    op: str
    inputs: tuple[Value | None, ...]
    attrs: Mapping[str, Any]
    types: tuple[TensorType, ...]
    loc: Loc | None = None
    name: str = ""

    def __getitem__(self, index: int) -> Value:
        return Value(self, index)

    @property
    def values(self) -> tuple[Value, ...]:
        return tuple(Value(self, i) for i in range(len(self.types)))

    @property
    def operands(self) -> tuple[Value, ...]:
        """The inputs that are present."""
        return tuple(v for v in self.inputs if v is not None)

    @property
    def subgraphs(self) -> tuple[Graph, ...]:
        return tuple(a for a in self.attrs.values() if isinstance(a, Graph))

    def __repr__(self) -> str:
        return f"<{self.op} {self.name} -> {', '.join(map(str, self.types))}>"


@dataclass(frozen=True, eq=False)
class Value:
    """Result ``index`` of ``node``."""

    node: Node
    index: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and other.node is self.node and other.index == self.index

    def __hash__(self) -> int:
        return hash((id(self.node), self.index))

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    def __repr__(self) -> str:
        return f"<{self.node.op}#{self.index} {self.type}>"


@dataclass(frozen=True)
class Commit:
    """After a run, ``value`` is written to the session's buffer ``state``, or back to the caller's ``input``."""

    value: Value
    state: str | None = None
    input: int | None = None


@dataclass(frozen=True)
class Check:
    """A relation between dims that must hold for a call's sizes; ``op`` is one of == != <= >= < >."""

    lhs: Dim
    op: str
    rhs: Dim
    message: str = ""


@dataclass(frozen=True)
class State:
    """A buffer that lives in a session: its type and first content (None: zeros)."""

    type: TensorType
    init: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """A function: ``inputs`` (nodes of op ``input``), ``nodes`` in topological order (inputs not listed), ``outputs``.

    ``symbols`` gives each symbol's inclusive bounds. A subgraph sees the symbols of the graph that carries it and no
    values but its own inputs.
    """

    inputs: tuple[Node, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    symbols: Mapping[str, Bounds] = field(default_factory=dict)
    commits: tuple[Commit, ...] = ()
    states: Mapping[str, State] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    name: str = "main"
    output_names: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[Value, ...]:
        """Everything that must be computed: outputs, then committed values."""
        return self.outputs + tuple(c.value for c in self.commits)

    def uses(self) -> dict[Value, list[Node | None]]:
        """Users of each value in order; None stands for the graph's own results."""
        out: dict[Value, list[Node | None]] = {}
        for n in self.nodes:
            for v in n.operands:
                out.setdefault(v, []).append(n)
        for v in self.results:
            out.setdefault(v, []).append(None)
        return out

    def bound(self) -> set[str]:
        """The symbols that this graph's own nodes bind while it runs, and those of a branch's result that only the
        branches know. Subgraphs' other symbols are their own: each run of a loop's body binds them anew.
        """
        from .op import get

        out: set[str] = set()
        for n in self.nodes:
            for attr in get(n.op).binds:
                out |= dims.symbols(n.attrs[attr])
            if n.op == "if":
                inside = n.attrs["then"].bound()
                out |= {s for t in n.types for d in t.shape for s in dims.symbols(d)} & inside
        return out

    def walk(self) -> Iterator[Node]:
        """All nodes, subgraphs' included, depth first."""
        for n in self.nodes:
            yield n
            for g in n.subgraphs:
                yield from g.walk()

    def rebuild(
        self, rule: Callable[[Builder, Node, tuple[Value | None, ...]], Sequence[Value] | Value | None], **changes: Any
    ) -> Graph:
        """A copy in which ``rule(builder, node, new_inputs)`` may replace a node by other values; None keeps it.

        Nodes that nothing needs any more are dropped. Results that are replaced must keep their types.
        """
        copy = GraphCopy(self)
        for n in self.nodes:
            out = rule(copy.builder, n, copy.inputs_of(n))
            if out is None:
                copy.keep(n)
            else:
                copy.values.update(zip(n.values, (out,) if isinstance(out, Value) else out, strict=True))
        return copy.graph(**changes)

    def without_dead(self) -> Graph:
        """Drops nodes whose results nobody needs (random ones too: their numbers are unobservable). Nodes that bind a
        symbol stay: sizes elsewhere may depend on it."""
        from .op import get

        live: set[int] = {id(v.node) for v in self.results}
        keep: list[Node] = []
        for n in reversed(self.nodes):
            if id(n) in live or n.op in KEEP_ALIVE or get(n.op).binds:
                keep.append(n)
                live.update(id(v.node) for v in n.operands)
        return self if len(keep) == len(self.nodes) else replace(self, nodes=tuple(reversed(keep)))

    def inline(self, b: Builder, args: Sequence[Value]) -> tuple[Value, ...]:
        """Copies this graph's nodes into ``b`` with its inputs bound to ``args``; returns its outputs there."""
        env: dict[Value, Value] = {n[0]: a for n, a in zip(self.inputs, args, strict=True)}
        for n in self.nodes:
            ins = tuple(None if v is None else env[v] for v in n.inputs)
            new = n if ins == n.inputs else replace(n, inputs=ins)
            b.nodes.append(new)
            env.update(zip(n.values, new.values, strict=True))
        return tuple(env[v] for v in self.outputs)

    def __str__(self) -> str:
        from .text import to_text

        return to_text(self)


KEEP_ALIVE = frozenset({"assert"})  # ops kept for their effect though nothing uses their results


class Builder:
    """Appends nodes whose types it infers from the op table."""

    def __init__(self, symbols: Mapping[str, Bounds] | None = None) -> None:
        self.symbols: dict[str, Bounds] = dict(symbols or {})
        self.inputs: list[Node] = []
        self.nodes: list[Node] = []
        self.loc: Loc | None = None  # given to nodes made without one

    def symbol(self, name: str, lo: int = 0, hi: int | None = None) -> dims.SymExpr:
        self.symbols[name] = (lo, hi)
        return dims.symbol(name)

    def input(self, name: str, type: TensorType) -> Value:
        n = Node("input", (), MappingProxyType({"index": len(self.inputs)}), (type,), self.loc, name)
        self.inputs.append(n)
        return n[0]

    def constant(self, data: Any, dtype: DType | None = None, name: str = "") -> Value:
        """A constant tensor holding ``data`` (anything numpy takes)."""
        a = np.asarray(data) if dtype is None else np.asarray(data).astype(dtype.np)
        if not a.flags.c_contiguous:
            a = np.ascontiguousarray(a)
        return self._one(self.node("constant", (), {"data": a, "dtype": dtype or DType.from_np(a.dtype)}, name=name))

    def node(
        self, op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any], loc: Loc | None = None, name: str = ""
    ) -> Node:
        """Appends a node; raises EffcError from the type rule if the operands do not fit."""
        from .op import get

        definition = get(op)
        full = definition.complete(attrs)
        types = definition.infer_types(inputs, full, loc or self.loc)
        n = Node(op, tuple(inputs), MappingProxyType(full), types, loc or self.loc, name)
        self.nodes.append(n)
        return n

    def op(self, op: str, *inputs: Value | None, loc: Loc | None = None, name: str = "", **attrs: Any) -> Any:
        """Appends a node and returns its result, or the tuple of its results when the op has not exactly one."""
        n = self.node(op, inputs, attrs, loc, name)
        return n[0] if len(n.types) == 1 else n.values

    @staticmethod
    def _one(n: Node) -> Value:
        return n[0]

    def graph(self, outputs: Iterable[Value], **fields: Any) -> Graph:
        return Graph(tuple(self.inputs), tuple(self.nodes), tuple(outputs), dict(self.symbols), **fields)


ValueOrScalar = Value | int | float | bool | complex


class GraphCopy:
    """A copy of a graph in the making: ``values`` maps its values to the copy's, ``builder`` takes nodes."""

    def __init__(self, graph: Graph) -> None:
        self._old = graph
        self.builder = Builder(graph.symbols)
        self.builder.inputs.extend(graph.inputs)
        self.values: dict[Value, Value] = {n[0]: n[0] for n in graph.inputs}

    def inputs_of(self, node: Node) -> tuple[Value | None, ...]:
        return tuple(None if v is None else self.values[v] for v in node.inputs)

    def keep(self, node: Node) -> None:
        """The same node over the copy's values."""
        inputs = self.inputs_of(node)
        kept = node if inputs == node.inputs else replace(node, inputs=inputs)
        self.builder.nodes.append(kept)
        self.values.update(zip(node.values, kept.values, strict=True))

    def graph(self, **changes: Any) -> Graph:
        """What was made, without nodes that nothing needs. ``changes``: other fields of the graph."""
        return replace(
            self._old,
            nodes=tuple(self.builder.nodes),
            outputs=tuple(self.values[v] for v in self._old.outputs),
            commits=tuple(replace(c, value=self.values[c.value]) for c in self._old.commits),
            **changes,
        ).without_dead()
