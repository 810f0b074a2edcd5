"""What an ONNX mapping works with: the vocabulary of IR idioms, the contents of small tensors, and the standard's rules
of broadcasting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir import dims as D
from ...ir.contents import Contents, Ratio, Unknown, ratio
from ...ir.dims import Dim, SymExpr
from ...ir.dtypes import DType
from ...ir.graph import Builder, Check, Graph, Node, Value
from ...ir.op import get
from ..imported import Unsupported
from ..vocabulary import Vocabulary
from .dtypes import Array

if TYPE_CHECKING:
    import onnx

    from .convert import Importer

NEGATIVE = 1 << 40  # x // NEGATIVE is -1 for a negative size and 0 for another
MANY = 64  # sizes that one tensor may hold


class Context(Vocabulary):
    """State of one graph's import. ``version`` is the current node's operator set. ``node`` is the node itself,
    ``expected`` how many results it names (an unwanted trailing one is not counted).
    """

    def __init__(self, builder: Builder, importer: Importer, checks: list[Check], known: set[str]) -> None:
        super().__init__(builder)
        self.importer = importer
        self.contents = Contents(builder.symbols)
        self.checks, self.known = checks, known
        self.examples: Mapping[Value, Array] = {}
        self.version = 0
        self.node: onnx.NodeProto | None = None
        self.expected = 1
        self._looked = 0

    # contents ---------------------------------------------------------------------------------------------------------

    def content(self, v: Value) -> Array | None:
        """What a value holds, if that is known: numbers, or dims and Ratios in an array of objects."""
        nodes = self.b.nodes
        while self._looked < len(nodes):
            self.contents.look(nodes[self._looked])
            self._looked += 1
        return self.contents.of(v)

    def array(self, v: Value, what: str) -> Array:
        """The numbers that a value holds. A value that depends on inputs with example values is taken to be what it is
        for those, which an assertion checks at run time; Unsupported otherwise.
        """
        c = self.content(v)
        if c is None or c.dtype == object:
            c = self._by_example(v, what)
        return c

    def ints(self, v: Value, what: str) -> list[int]:
        return [int(x) for x in self.array(v, what).reshape(-1).tolist()]

    def number(self, v: Value, what: str) -> Any:
        a = self.array(v, what)
        if a.size != 1:
            raise Unsupported(f"{what} of {a.size} elements")
        return a.reshape(-1)[0].item()

    def _by_example(self, v: Value, what: str) -> Array:
        needed: list[Node] = []
        inputs: dict[Node, None] = {}
        stack, seen = [v.node], set()
        while stack:
            n = stack.pop()
            if n in seen:
                continue
            seen.add(n)
            if n.op == "input":
                if n[0] not in self.examples:
                    raise Unsupported(f"{what} that is computed while running")
                inputs[n] = None
            elif get(n.op).effects or n.subgraphs:
                raise Unsupported(f"{what} that is computed while running")
            stack.extend(x.node for x in n.operands)
        needed = [n for n in self.b.nodes if n in seen]
        if not inputs or any(D.symbols(d) for n in needed for t in n.types for d in t.shape):
            raise Unsupported(f"{what} that is computed while running")
        from ...ir.interp import Interpreter

        names = sorted(inputs, key=self.b.inputs.index)
        part = Graph(tuple(names), tuple(needed), (v,), dict(self.b.symbols))
        found = np.asarray(Interpreter({}).run(part, [self.examples[n[0]] for n in names])[0])
        same = self.b.op("eq", v, self.b.constant(found, v.dtype))
        self.b.op(
            "assert",
            self.reduce("all", same, range(same.rank)) if same.rank else same,
            message=f"{what} must be {found.tolist()}, as in the example that the model was compiled with",
        )
        self.contents.set(v, found)
        return found

    def dims(self, v: Value, what: str, lo: int = 0) -> list[Dim]:
        """The sizes that an integer tensor of rank 0 or 1 holds; those that are computed while running become symbols
        that are bound then.
        """
        c = self.content(v)
        if c is not None:
            return [self._dim(x, what) for x in c.reshape(-1).tolist()]
        flat = self.reshape(v, (v.type.numel,))
        n = flat.shape[0]
        if not isinstance(n, int) or n > MANY:
            raise Unsupported(f"{what} in a tensor of {n} elements that is computed while running")
        out: list[Dim] = []
        source = v.node
        if source.op == "concat":  # its parts may be known
            out = [d for x in source.operands for d in self.dims(x, what, lo)]
        elif source.op in ("reshape", "convert") and source.operands[0].dtype.is_int:
            out = self.dims(source.operands[0], what, lo)
        else:
            for i in range(n):
                s = self.new_symbol(lo)
                self.b.op("item", self.convert(self.select(flat, 0, i), DType.i64), value=s)
                out.append(s)
        self.contents.set(v, np.array([*out, None], object)[:-1].reshape(v.type.evaluate({})))
        return out

    def dim(self, v: Value, what: str, lo: int = 0) -> Dim:
        found = self.dims(v, what, lo)
        if len(found) != 1:
            raise Unsupported(f"{what} of {len(found)} elements")
        return found[0]

    @staticmethod
    def _dim(x: Any, what: str) -> Dim:
        if isinstance(x, Ratio):
            raise Unsupported(f"{what} {x.num}/{x.den}")
        return x if isinstance(x, SymExpr) else int(x)

    def ratios(self, v: Value, what: str) -> list[Ratio]:
        """Float factors as quotients of dims; Unsupported where that is not exact."""
        c = self.content(v)
        try:
            return [ratio(x) for x in (self.array(v, what) if c is None else c).reshape(-1).tolist()]
        except Unknown:
            raise Unsupported(f"{what} that is no simple fraction, for a size that is not constant") from None

    def new_symbol(self, lo: int = 0, hi: int | None = None) -> SymExpr:
        """A fresh size that is known only while running."""
        taken = self.importer.taken
        k = len(taken)
        while f"u{k}" in taken:
            k += 1
        taken.add(f"u{k}")
        return self.b.symbol(f"u{k}", lo, hi)

    # axes -------------------------------------------------------------------------------------------------------------

    def axis(self, dim: int, rank: int) -> int:
        """An axis counted from the front; Unsupported for one that the tensor lacks, which the IR's idioms would wrap
        around. A 0-d tensor has axis 0.
        """
        if not -max(rank, 1) <= dim < max(rank, 1):
            raise Unsupported(f"axis {dim} of a tensor of rank {rank}")
        return super().axis(dim, rank)

    def unsqueeze(self, x: Value, *dims: int) -> Value:
        rank = x.rank + len(dims)
        if len({self.axis(d, rank) for d in dims}) < len(dims):
            raise Unsupported(f"axes {list(dims)} that repeat one")
        return super().unsqueeze(x, *dims)

    # sizes ------------------------------------------------------------------------------------------------------------

    def least(self, a: Dim, b: Dim) -> Dim:
        """min of dims, decided by their bounds where possible."""
        lo, hi = D.bounds(a - b, self.b.symbols)
        return a if hi <= 0 else b if lo >= 0 else D.minimum(a, b)

    def most(self, a: Dim, b: Dim) -> Dim:
        lo, hi = D.bounds(a - b, self.b.symbols)
        return a if lo >= 0 else b if hi <= 0 else D.maximum(a, b)

    def named(self, d: Dim) -> Dim:
        """A size known only while running as one symbol: expressions over expressions would grow without end."""
        if isinstance(d, int) or D.symbols(d) <= self.known or str(d).isidentifier():
            return d
        lo = D.bounds(d, self.b.symbols)[0]
        s = self.new_symbol(int(lo) if 0 <= lo < NEGATIVE else 0)
        self.b.op("item", self.scalar(d, DType.i64), value=s)
        return s

    def from_end(self, d: Dim, size: Dim) -> Dim:
        """An index that counts from the end if it is negative."""
        lo, hi = D.bounds(d, self.b.symbols)
        if hi < 0:
            return d + size
        return d if lo >= 0 else d - size * D.floordiv(d, NEGATIVE)

    def shape_value(self, dims: Sequence[Dim], dtype: DType = DType.i64) -> Value:
        """A 1-d tensor of sizes."""
        if all(isinstance(d, int) for d in dims):
            return self.b.constant(np.array(dims, dtype.np).reshape(len(dims)), dtype)
        return self.concat([self.reshape(self.scalar(d, dtype), (1,)) for d in dims], 0)

    def require(self, a: Dim, op: str, b: Dim, message: str) -> None:
        """A relation between sizes that must hold: checked now, with the inputs, or while running."""
        lo, hi = D.bounds(a - b, self.b.symbols)
        holds = {"==": lo == hi == 0, "!=": lo > 0 or hi < 0, "<=": hi <= 0, ">=": lo >= 0}[op]
        fails = {"==": lo > 0 or hi < 0, "!=": lo == hi == 0, "<=": lo > 0, ">=": hi < 0}[op]
        if holds:
            return
        if fails:
            raise Unsupported(f"{message}: {a} {op} {b} does not hold")
        if (
            D.symbols(a - b) <= self.known and self.importer.outer is None
        ):  # a branch's relation holds where it is taken
            check = Check(a, op, b, message)
            if check not in self.checks:
                self.checks.append(check)
            return
        name = {"==": "eq", "!=": "ne", "<=": "le", ">=": "ge"}[op]
        self.b.op("assert", self.b.op(name, self.scalar(a, DType.i64), self.scalar(b, DType.i64)), message=message)

    # broadcasting -----------------------------------------------------------------------------------------------------

    def aligned(self, *xs: Value) -> None:
        """Requires that shapes broadcast. A size known only while running must equal the one it meets: that one of them
        is 1 for some calls has no form in the IR.
        """
        rank = max(x.rank for x in xs)
        for k in range(1, rank + 1):
            sizes = [x.shape[-k] for x in xs if x.rank >= k and x.shape[-k] != 1]
            for d in sizes[1:]:
                if d != sizes[0] and not (isinstance(d, int) and isinstance(sizes[0], int)):
                    self.require(sizes[0], "==", d, f"sizes {sizes[0]} and {d} of operands must be equal")

    def elementwise(self, op: str, *xs: Any) -> Value:
        """An elementwise IR op over broadcast operands."""
        self.aligned(*(x for x in xs if isinstance(x, Value)))
        return self.op(op, *xs)  # type: ignore[no-any-return]

    def broadcast_shape(self, *shapes: Sequence[Dim]) -> tuple[Dim, ...]:
        from ...ir.op import broadcast_shapes

        return broadcast_shapes(*shapes)

    # other mappings ---------------------------------------------------------------------------------------------------

    def call(self, name: str, *inputs: Any, domain: str = "", results: int = 1, **attrs: Any) -> Any:
        """What another operator's mapping makes of these operands."""
        return self.importer.apply(domain, name, list(inputs), attrs, results)
