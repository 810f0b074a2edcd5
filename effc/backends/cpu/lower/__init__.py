"""Lowering for the CPU: a graph becomes a program (docs/architecture.md) and a list of kernels.

Every IR value is bound to a :class:`Buf`, a strided view of a storage. A lowering rule, one per op, binds the results
of its node: views bind a Buf over the operand's storage, everything else takes fresh storage from ``cx.out`` and emits
calls.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....cost.calls import Call, Tensor
from ....cost.decide import Decision
from ....ir import dims
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Graph, Node, Value
from ....ir.interp import decomposed
from ....ir.op import get
from ....runtime.errors import EffcError
from ..target import CpuTarget

Array = np.ndarray[Any, Any]
Rule = Callable[["Lowering", Node], None]
RULES: dict[str, Rule] = {}


def lowers(*ops: str) -> Callable[[Rule], Rule]:
    """Registers a lowering rule for these ops."""

    def register(f: Rule) -> Rule:
        for o in ops:
            if o in RULES:
                raise ValueError(f"op {o} has two lowering rules")
            RULES[o] = f
        return f

    return register


def row_major(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Strides, in elements, of a dense array with the last dim innermost."""
    out: list[Dim] = []
    step: Dim = 1
    for d in reversed(shape):
        out.append(step)
        step = step * d
    return tuple(reversed(out))


def strides_in_order(shape: Sequence[Dim], order: Sequence[int]) -> tuple[Dim, ...]:
    """Strides of a dense array whose dims lie in memory in ``order``, outermost first."""
    inner = row_major([shape[i] for i in order])
    out: list[Dim] = [0] * len(shape)
    for i, s in zip(order, inner, strict=True):
        out[i] = s
    return tuple(out)


@dataclass(frozen=True)
class Buf:
    """A strided view of storage ``root`` (a value id): ``id`` is the program value that describes exactly this view."""

    id: int
    root: int
    dtype: DType
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim = 0

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        return dims.product(self.shape)

    @property
    def is_row_major(self) -> bool:
        want: Dim = 1
        for d, s in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if d == 1:
                continue
            if s != want:
                return any(x == 0 for x in self.shape)
            want = want * d
        return True

    @property
    def order(self) -> tuple[int, ...]:
        """Dims from outermost to innermost in memory, when the view is dense in some order; else row-major order.

        Symbolic strides are compared by construction: the order is the one that reproduces them."""
        guess = sorted(range(self.rank), key=lambda i: (-_size_hint(self.strides[i]), -_size_hint(self.shape[i]), i))
        known = [i for i in guess if self.shape[i] != 1]
        want: Dim = 1
        for i in reversed(known):
            if self.strides[i] != want:
                return tuple(range(self.rank))
            want = want * self.shape[i]
        return tuple(guess)


def _size_hint(d: Dim) -> int:
    return d if isinstance(d, int) else dims.evaluate(d, _Hint())


class _Hint(dict[str, int]):
    """Stands for typical sizes where an order of magnitude is enough."""

    def __missing__(self, key: str) -> int:
        return 37 + sum(map(ord, key)) % 11


@dataclass
class Constants:
    """Constant data of an artifact, shared by its entry points; equal content is stored once."""

    arrays: list[Array] = field(default_factory=list)
    index: dict[tuple[str, tuple[int, ...], bytes], int] = field(default_factory=dict)
    by_id: dict[int, int] = field(default_factory=dict)

    def add(self, a: Array) -> int:
        """Index of the data, which is kept row-major."""
        if id(a) in self.by_id:
            return self.by_id[id(a)]
        dense = np.ascontiguousarray(a).reshape(a.shape)
        digest = hashlib.blake2b(dense.reshape(-1).view(np.uint8).data if dense.size else b"", digest_size=16).digest()
        key = (str(a.dtype), a.shape, digest)
        if key not in self.index:
            self.index[key] = len(self.arrays)
            self.arrays.append(dense)
        self.by_id[id(a)] = self.index[key]
        self._keep = [*getattr(self, "_keep", ()), a]  # ids stay valid while the arrays live
        return self.index[key]


@dataclass
class Options:
    """What lowering needs to know besides the graph."""

    target: CpuTarget
    num_threads: int | None = None
    memory: bool = True  # False: instructions as they come, nothing in place, each buffer apart
    others: bool = False  # also the program's other ways to concatenate (``finish``), for a budget to choose from
    winograd: bool = True  # False: convolutions of bytes stay direct, as the pass form_winograd is left out for floats
    regions: Mapping[Node, int] = field(default_factory=dict)  # of the graph: numbers for instructions to keep
    # Picks one of several ways to make the same call; None: the first, which is the backend's own rule.
    decide: Callable[[Sequence[Call]], Decision] | None = None


class Lowering:
    """The state of one program being written, and the services that rules use."""

    def __init__(
        self, graph: Graph, options: Options, constants: Constants, generated: Any, parent: Lowering | None = None
    ) -> None:
        self.graph, self.options, self.constants, self.generated, self.parent = (
            graph,
            options,
            constants,
            generated,
            parent,
        )
        self.values: list[dict[str, Any]] = []
        self.code: list[dict[str, Any]] = []
        self.kernels: set[str] = set() if parent is None else parent.kernels
        self.bufs: dict[Value, Buf] = {}
        self.order: dict[Value, tuple[int, ...]] = {}
        self.origin: dict[Value | None, Value] = {}  # input of a decomposition -> the value it stands for
        self.node: Node | None = None
        self._dense: dict[tuple[int, Any], Buf] = {}
        self._consts: dict[tuple[int, DType], Buf] = {}
        self.uses = graph.uses()
        self.notes: list[dict[str, Any]] = [] if parent is None else parent.notes
        self.decisions: list[dict[str, Any]] = [] if parent is None else parent.decisions
        self._undecided: dict[str, Any] | None = None
        self.memory: dict[str, Any] = {}  # what planning did, for the report
        self.others: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}  # values and code, see Options

    @property
    def target(self) -> CpuTarget:
        return self.options.target

    # Values -----------------------------------------------------------------------------------------------------------

    def _value(self, dtype: DType, shape: Sequence[Dim], kind: str, **fields: Any) -> int:
        self.values.append({"d": dtype.value, "shape": tuple(shape), "k": kind, **fields})
        return len(self.values) - 1

    def storage(
        self, dtype: DType, shape: Sequence[Dim], kind: str, order: Sequence[int] | None = None, **fields: Any
    ) -> Buf:
        """Fresh storage of a program value kind, row-major or in ``order``."""
        shape = tuple(shape)
        strides = row_major(shape) if order is None else strides_in_order(shape, order)
        if order is not None and tuple(order) != tuple(range(len(shape))):
            fields["strides"] = strides
        i = self._value(dtype, shape, kind, **fields)
        return Buf(i, i, dtype, shape, strides)

    def temp(self, dtype: DType, shape: Sequence[Dim], order: Sequence[int] | None = None) -> Buf:
        """Fresh storage in the arena, for results and intermediates of a rule."""
        return self.storage(dtype, shape, "temp", order)

    def out(self, node: Node, index: int = 0, *, order: Sequence[int] | None = None, dyn: bool = False) -> Buf:
        """Fresh storage for a result of ``node``, bound to it. ``order``: physical dim order, outermost first."""
        t = node.types[index]
        buf = self.storage(t.dtype, t.shape, "temp", order, dyn=True) if dyn else self.temp(t.dtype, t.shape, order)
        self.bufs[Value(node, index)] = buf
        return buf

    def bind(self, node: Node, buf: Buf, index: int = 0) -> None:
        """Binds a result of ``node`` to a view; the shape must be the result's."""
        t = node.types[index]
        if buf.dtype is not t.dtype or len(buf.shape) != t.rank:
            raise AssertionError(f"{node.op} bound to {buf}, its type is {t}")
        self.bufs[Value(node, index)] = buf

    def view(
        self, buf: Buf, shape: Sequence[Dim], strides: Sequence[Dim], offset: Dim = 0, dtype: DType | None = None
    ) -> Buf:
        """A view of ``buf``: ``offset`` (elements of the result's dtype) is added to the buffer's own."""
        dtype = dtype or buf.dtype
        if dtype is not buf.dtype:  # offsets count elements of the new dtype
            base = buf.offset * buf.dtype.itemsize
            own = dims.floordiv(base, dtype.itemsize)
        else:
            own = buf.offset
        total = own + offset
        shape, strides = tuple(shape), tuple(strides)
        if (dtype, shape, strides, total) == (buf.dtype, buf.shape, buf.strides, buf.offset):
            return buf
        i = self._value(dtype, shape, "view", base=buf.root, offset=total, strides=strides)
        return Buf(i, buf.root, dtype, shape, strides, total)

    def strided(self, v: Value) -> Buf:
        """The Buf of a value, whatever its strides. Constants get storage only when somebody asks, so that a weight
        that is packed is not also kept dense."""
        if v not in self.bufs and v.node.op == "constant":
            self.bufs[v] = self.const(v.node.attrs["data"], v.dtype)
        return self.bufs[v]

    def dense(self, v: Value) -> Buf:
        """A row-major Buf of a value; a copy is emitted (once) if it is not row-major already."""
        return self.in_order(self.strided(v), None)

    def in_order(self, buf: Buf, order: Sequence[int] | None) -> Buf:
        """``buf`` itself if it is dense in this physical order (None: row-major), else a copy that is."""
        want = row_major(buf.shape) if order is None else strides_in_order(buf.shape, order)
        if all(a == b or d == 1 for a, b, d in zip(buf.strides, want, buf.shape, strict=True)):
            return buf
        key = (buf.id, want)
        if key not in self._dense:
            new = self.temp(buf.dtype, buf.shape, order)
            self.call("effc_copy", [buf], [new], name="copy")
            self._dense[key] = new
        return self._dense[key]

    def const(self, a: Array, dtype: DType | None = None) -> Buf:
        """Constant data as a Buf; equal content is stored once in the artifact."""
        i = self.constants.add(a)
        dt = dtype or DType.from_np(a.dtype)
        if (i, dt) not in self._consts:
            self._consts[i, dt] = self.storage(dt, a.shape, "const", data=i)
        return self._consts[i, dt]

    def constant_of(self, v: Value | None) -> Array | None:
        """The data of a value that is a constant, else None."""
        while v in self.origin:
            v = self.origin[v]
        return v.node.attrs["data"] if v is not None and v.node.op == "constant" else None

    # Instructions -----------------------------------------------------------------------------------------------------

    def call(
        self,
        kernel: str,
        ins: Sequence[Buf | None],
        outs: Sequence[Buf],
        attrs: Sequence[Dim | bool] = (),
        fattrs: Sequence[float] = (),
        *,
        scratch: Dim = 0,
        thread_scratch: Dim = 0,
        n_own: int | None = None,
        epilogue: str | None = None,
        bind: Sequence[str] = (),
        inplace: Sequence[tuple[int, int]] = (),
        name: str | None = None,
        flops: Dim | None = None,
        body: str = "",
        reads: Mapping[int, Dim] | None = None,
    ) -> None:
        """Emits a kernel call. ``reads``: how many elements of an operand are read, for those of which it is not each
        one of the view. ``inplace`` lists (output, input) pairs that may share storage if the input dies
        here; ``body`` counts the ops of a generated loop or epilogue (``codegen.counts``)."""
        self.kernels.add(kernel)
        if epilogue:
            self.kernels.add(epilogue)
        if self._undecided is not None and self._undecided["kernel"] == kernel:
            self._undecided["at"] = len(self.code)  # the instruction that the decision was about
            self._undecided = None
        node = self.node
        moved: Dim = 0
        some = reads or {}
        for dtype, _, _, shape in {
            _touched(b): None for k, b in enumerate([*ins, *outs]) if b is not None and k not in some
        }:
            moved = moved + dims.product(d for d, _ in shape) * dtype.itemsize
        for k, elements in some.items():
            moved = moved + elements * (ins[k] or outs[0]).dtype.itemsize
        work: Dim = 0
        if flops is not None:
            work = flops
        elif node is not None and name != "copy":
            work = _work(node)
        self.code.append(
            {
                "op": "call",
                "kernel": kernel,
                "in": [-1 if b is None else b.id for b in ins],
                "n_own": len(ins) if n_own is None else n_own,
                "out": [b.id for b in outs],
                "attrs": [int(a) if isinstance(a, (bool, np.integer)) else a for a in attrs],
                "fattrs": [float(f) for f in fattrs],
                "scratch": scratch,
                "thread_scratch": thread_scratch,
                "epilogue": epilogue,
                "bind": list(bind),
                "inplace": list(inplace),
                **({"effect": get(node.op).effects} if node is not None and get(node.op).effects else {}),
                "name": name or (node.name or node.op if node is not None else kernel),
                "loc": str(node.loc) if node is not None and node.loc else "",
                "flops": work,
                "bytes": moved,
                **({"body": body} if body else {}),
            }
        )

    def decide(
        self,
        kernel: str,
        ins: Sequence[Buf | Tensor | None],
        outs: Sequence[Buf],
        ways: Sequence[Sequence[Dim | bool]],
        labels: Sequence[str],
        **call: Any,
    ) -> int:
        """Which of several ways (attributes) to make a call is best: an index; 0, the backend's own rule, where no
        cost model was given or a size is dynamic. What was decided, and the losers, go to the report under
        ``labels``. ``call``: further fields of :class:`Call`."""
        node, decider = self.node, self.options.decide
        if decider is None or len(ways) < 2 or node is None:
            return 0
        entry: dict[str, Any] = {"op": node.op, "name": node.name or node.op, "loc": str(node.loc or "")}
        tensors = [b if b is None or isinstance(b, Tensor) else _tensor(b) for b in [*ins, *outs]]
        work = _work(node)
        dynamic = any(t is None and b is not None for t, b in zip(tensors, [*ins, *outs]))
        if dynamic or not all(isinstance(a, int) for a in [work, *ways[0]]):
            self.decisions.append({**entry, "kernel": kernel, "chosen": labels[0], "why": "its sizes are dynamic"})
            return 0
        n = len(ins)
        results = tuple(t for t in tensors[n:] if t is not None)
        base = Call(kernel, tuple(tensors[:n]), results, flops=int(work), **call)  # type: ignore[call-overload]
        made: Decision = decider([base.with_attrs([int(a) for a in w]) for w in ways])  # type: ignore[call-overload]
        self.decisions.append({**entry, "kernel": kernel, **made.as_json(labels)})
        self._undecided = self.decisions[-1] if self.parent is None else None
        return made.index

    def decided(self, kernel: str, label: str, why: str) -> None:
        """Puts a choice that was made by rule, with its reason, into the report beside those of :meth:`decide`."""
        n = self.node
        assert n is not None
        entry = {"op": n.op, "name": n.name or n.op, "loc": str(n.loc or ""), "kernel": kernel}
        self.decisions.append({**entry, "chosen": label, "why": why})

    def epilogue(
        self, body: Graph, acc: DType, extras: Sequence[Buf], outs: Sequence[Buf], table: bool = False
    ) -> tuple[str, list[Dim]]:
        """The symbol of a fused epilogue over tiles of ``acc``, for ``call(epilogue=...)``, and the dims that must be
        appended, last, to the call's attrs. ``extras`` (the body's inputs after the accumulator) and ``outs`` are rank
        4 (b0, b1,
        m, n)."""
        from .fused import epilogue

        return epilogue(self, body, acc, extras, outs, table)

    def note(self, node: Node, reason: str) -> None:
        """Puts into the report that ``node`` missed a fast path, and why."""
        self.notes.append({"op": node.op, "name": node.name, "loc": str(node.loc or ""), "reason": reason})

    # Graphs -----------------------------------------------------------------------------------------------------------

    def subprogram(self, g: Graph) -> dict[str, Any]:
        """Lowers a subgraph of a control-flow node to a nested program."""
        inner = Lowering(g, self.options, self.constants, self.generated, self)
        return inner.run()

    def lower_node(self, n: Node) -> None:
        """Applies the op's rule; without one, lowers its decomposition."""
        outer, self.node = self.node, n
        rule = RULES.get(n.op)
        if rule is not None:
            rule(self, n)
        elif get(n.op).decompose is not None:
            self.lower_decomposed(n)
        else:
            raise EffcError(
                f"target cpu has no kernel for op {n.op}",
                op=n.op,
                loc=n.loc,
                shapes=", ".join(str(v.type) for v in n.operands),
                pass_name="lower",
                hint='use target="reference" for this model, or rewrite this line with other ops',
            )
        self.node = outer

    def lower_decomposed(self, n: Node) -> None:
        """Lowers the node as its decomposition, op by op: what the legalising pass left over."""
        g = decomposed(n)
        for inner, v in zip(g.inputs, n.operands, strict=True):
            self.origin[inner[0]] = v
            self.bufs[inner[0]] = self.strided(v)
        for m in g.nodes:
            self.lower_node(m)
        for i, v in enumerate(g.outputs):
            self.bufs[Value(n, i)] = self.strided(v)

    def run(self) -> dict[str, Any]:
        """Lowers the graph; returns the program with dims still symbolic objects (see ``finish.to_json``)."""
        from . import finish

        for i, n in enumerate(self.graph.inputs):
            t = n.types[0]
            self.bufs[n[0]] = self.storage(t.dtype, t.shape, "input", i=i)
        for n in self.graph.nodes:
            if self.parent is None and finish.is_argument(self.graph, n):
                self.bufs[n[0]] = self.bufs[n.operands[0]]
                continue
            first = len(self.code)
            self.lower_node(n)
            if n in self.options.regions:
                for ins in self.code[first:]:
                    ins["region"] = self.options.regions[n]
        return finish.finish(self)


def _work(node: Node) -> Dim:
    """Operations of a node, as the op table declares them."""
    return get(node.op).cost_of([None if v is None else v.type for v in node.inputs], node.types, node.attrs).flops


def _touched(b: Buf) -> tuple[DType, int, Dim, tuple[tuple[Dim, Dim], ...]]:
    """What elements a kernel reads or writes through a view, each once: equal for two views of the same ones."""
    real = ((d, s) for d, s in zip(b.shape, b.strides, strict=True) if d != 1 and s != 0)
    return b.dtype, b.root, b.offset, tuple(real)


def _tensor(b: Buf) -> Tensor | None:
    """The operand as the cost model sees it; None if a size is dynamic."""
    shape = tuple(d for d in b.shape if isinstance(d, int))
    strides = tuple(d for d in b.strides if isinstance(d, int))
    if len(shape) < b.rank or len(strides) < b.rank:
        return None
    return Tensor(b.dtype.value, shape, strides)


def load_rules() -> None:
    """Imports every rule file of this package."""
    for m in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{m}")


def native(op: str) -> bool:
    """Whether the CPU backend has a lowering rule for this op."""
    load_rules()
    return op in RULES


def why_not(node: Node) -> str | None:
    """Why the CPU backend cannot run this node itself, or None."""
    load_rules()
    if node.op in RULES or get(node.op).decompose is not None:
        return None
    return f"no kernel and no decomposition for {node.op}"


Attrs = Mapping[str, Any]
