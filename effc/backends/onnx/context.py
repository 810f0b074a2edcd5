"""What emitters write with: ONNX nodes, initializers, sizes computed in the graph, casts where a kernel is missing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...ir import dims as D
from ...ir.dims import Bounds, Dim, Symbol, SymExpr
from ...ir.dtypes import DType
from ...ir.graph import Node, Value
from ...ir.op import get
from .kernels import OPSET, RESULTS, SINCE, TYPED, compute_type

Array = np.ndarray[Any, Any]

ONNX_TYPE: dict[DType, int] = {
    DType.bool: TensorProto.BOOL,
    DType.u8: TensorProto.UINT8,
    DType.i8: TensorProto.INT8,
    DType.u16: TensorProto.UINT16,
    DType.i16: TensorProto.INT16,
    DType.u32: TensorProto.UINT32,
    DType.i32: TensorProto.INT32,
    DType.u64: TensorProto.UINT64,
    DType.i64: TensorProto.INT64,
    DType.f16: TensorProto.FLOAT16,
    DType.bf16: TensorProto.BFLOAT16,
    DType.f32: TensorProto.FLOAT,
    DType.f64: TensorProto.DOUBLE,
    DType.f8e4m3: TensorProto.FLOAT8E4M3FN,
    DType.f8e5m2: TensorProto.FLOAT8E5M2,
}
MAX = (1 << 63) - 1
HASH_LIMIT = 1 << 26  # larger constants are the same only if they are the same array


class Refuse(Exception):
    """An emitter's reason for not taking a node; all of a graph's are collected into one EffcError."""


@dataclass(frozen=True)
class Pair:
    """A complex tensor: its real and imaginary parts as two ONNX tensors. Only at the edges of a graph do they
    become one real tensor with a last dim of 2."""

    re: str
    im: str


Ref = str | Pair


@dataclass
class Shared:
    """What the scopes of one model share."""

    ranges: Mapping[str, Bounds]
    dtypes: dict[str, DType] = field(default_factory=dict)
    initializers: dict[str, Array] = field(default_factory=dict)
    constants: dict[Any, str] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)  # small constants by name, to look into
    taken: set[str] = field(default_factory=set)
    casts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[Node, str]] = field(default_factory=list)
    opset: int = OPSET
    contributed: bool = False  # whether onnxruntime's own ops (domain com.microsoft) may be written
    # Whether the maximum of values with a NaN among them, and the mean of nothing, are NaN, as in torch. ONNX does not
    # say, and a file that came as ONNX keeps what its own MaxPool, ReduceMax and ReduceMean do in onnxruntime.
    strict_nan: bool = True
    users: Mapping[Value, Sequence[Node | None]] = field(default_factory=dict)  # in the main graph
    form: bool = True  # whether groups of ops become one op of ONNX
    cuts: dict[Value, int] = field(default_factory=dict)  # of what is only read in part along its last dim, that part
    states: dict[str, Ref] = field(default_factory=dict)
    state_names: dict[str, str] = field(default_factory=dict)
    internal: set[str] = field(default_factory=set)  # results of nodes that emitters wrote
    number: int = 0


class Cx:
    """One scope: a graph, or the body of If, Loop or Scan, which sees the names of the scopes around it."""

    def __init__(self, shared: Shared, parent: Cx | None = None) -> None:
        self.shared, self.parent = shared, parent
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[Any, list[str]] = {}  # nodes by what they compute, so that none is written twice
        self.symbols: dict[str, str] = {}  # symbol -> i64[1]
        self.values: dict[Value, Ref] = {}
        self.rank = 0  # of what the emitter at work accumulates along a dim

    # Names and nodes --------------------------------------------------------------------------------------------------

    def name(self, base: str = "v") -> str:
        """A name that no other tensor has."""
        if base != "v" and base not in self.shared.taken:
            self.shared.taken.add(base)
            return base
        while True:
            self.shared.number += 1
            name = f"{base}_{self.shared.number}"
            if name not in self.shared.taken:
                self.shared.taken.add(name)
                return name

    def dtype(self, x: str) -> DType:
        return self.shared.dtypes[x]

    def raw(
        self,
        op: str,
        ins: Sequence[str | None],
        dtypes: Sequence[DType],
        pure: bool = True,
        domain: str = "",
        **attrs: Any,
    ) -> list[str]:
        """A node as it stands, without casts; an equal one made before in this scope or around it is used again."""
        key = (domain, op, tuple(ins), tuple(sorted((k, str(v)) for k, v in attrs.items())), len(dtypes))
        if pure:
            scope: Cx | None = self
            while scope is not None:
                if key in scope.made:
                    return scope.made[key]
                scope = scope.parent
        if not domain and SINCE.get(op, 0) > self.shared.opset:
            raise Refuse(f"{op} is not in opset {self.shared.opset}, in which onnxruntime draws random numbers")
        outs = [self.name(op.lower()) for _ in dtypes]
        args = ["" if x is None else x for x in ins]
        while args and not args[-1]:
            args.pop()
        self.nodes.append(helper.make_node(op, args, outs, domain=domain, **attrs))
        for o, t in zip(outs, dtypes, strict=True):
            self.shared.dtypes[o] = t
            self.shared.internal.add(o)
        if pure:
            self.made[key] = outs
        return outs

    def op(self, op: str, *ins: str | None, **attrs: Any) -> str:
        """A node with one result, in a type that has a kernel; casts around it keep the operands' type outside."""
        return self.many(op, ins, 1, **attrs)[0]

    def many(self, op: str, ins: Sequence[str | None], results: int, **attrs: Any) -> list[str]:
        """:meth:`op` for any number of results."""
        at = TYPED.get(op, tuple(range(len(ins))))
        have = [self.dtype(x) for i in at if i < len(ins) and (x := ins[i]) is not None]
        dtype = have[0]
        run = compute_type(op, dtype)
        if run is None:
            raise Refuse(f"onnxruntime has no kernel for {op} on {dtype}, nor on a wider type")
        if run is not dtype:
            ins = [self.cast(x, run, op) if x is not None and i in at else x for i, x in enumerate(ins)]
        kinds = RESULTS.get(op, (None,) * results)[:results]
        outs = self.raw(op, ins, [run if k is None else k for k in kinds], **attrs)
        return [self.cast(o, dtype, op) if k is None else o for o, k in zip(outs, kinds, strict=True)]

    def cast(self, x: str, dtype: DType, why: str = "") -> str:
        """x in another type; ``why`` names the op that needs it, for the report."""
        if self.dtype(x) is dtype:
            return x
        if why:
            self.shared.casts[why] += 1
        if x in self.shared.values:
            with np.errstate(all="ignore"):
                return self.const(self.shared.values[x].astype(dtype.np), dtype)
        if dtype not in ONNX_TYPE:
            raise Refuse(f"onnxruntime has no kernels for {dtype}")
        # The IR's convert saturates to f8e4m3, which has no infinity, and overflows to f8e5m2's.
        saturate = {"saturate": 0} if dtype is DType.f8e5m2 else {}
        return self.raw("Cast", [x], [dtype], to=ONNX_TYPE[dtype], **saturate)[0]

    # Constants --------------------------------------------------------------------------------------------------------

    def const(self, data: Any, dtype: DType | None = None, name: str = "") -> str:
        """An initializer; equal ones are held once."""
        a = np.asarray(data) if dtype is None else np.asarray(data).astype(dtype.np)
        dtype = dtype or DType.from_np(a.dtype)
        if dtype not in ONNX_TYPE:
            raise Refuse(f"onnxruntime has no kernels for {dtype}")
        small = a.nbytes <= 4096
        content: Any = a.tobytes() if small else id(a)
        if not small and a.nbytes <= HASH_LIMIT:
            content = hashlib.blake2b(np.ascontiguousarray(a).data).digest()
        key = (dtype, a.shape, content)
        if key in self.shared.constants:
            return self.shared.constants[key]
        n = self.name(name or "c")
        self.shared.constants[key] = n
        self.shared.dtypes[n] = dtype
        self.shared.initializers[n] = a
        if small:
            self.shared.values[n] = a
        return n

    def ints(self, *values: int) -> str:
        """A 1-d i64 constant."""
        return self.const(np.asarray(values, np.int64))

    def like(self, value: Any, x: str) -> str:
        """A 0-d constant of x's type."""
        return self.const(np.asarray(value), self.dtype(x))

    def known(self, x: str) -> Array | None:
        """The content of a constant, if x is a small one."""
        return self.shared.values.get(x)

    # Sizes ------------------------------------------------------------------------------------------------------------

    def symbol(self, name: str) -> str:
        scope: Cx | None = self
        while scope is not None:
            if name in scope.symbols:
                return scope.symbols[name]
            scope = scope.parent
        raise Refuse(f"the size {name} is not known where it is used")

    def dim(self, d: Dim) -> str:
        """A size as i64[1]: a constant, or computed from the inputs' shapes."""
        if isinstance(d, int):
            return self.ints(d)
        total: str | None = None
        for monomial, factor in d.terms:
            term: str | None = None
            for atom in monomial:
                a = self.symbol(atom.name) if isinstance(atom, Symbol) else self._apply(atom.op, atom.lhs, atom.rhs)
                term = a if term is None else self.op("Mul", term, a)
            if term is None:
                term = self.ints(factor)
            elif factor != 1:
                term = self.op("Mul", term, self.ints(factor))
            total = term if total is None else self.op("Add", total, term)
        assert total is not None
        return total

    def _apply(self, op: str, lhs: Dim, rhs: Dim) -> str:
        a, b = self.dim(lhs), self.dim(rhs)
        if op in ("max", "min"):
            return self.op("Max" if op == "max" else "Min", a, b)
        if op == "%":
            return self.op("Mod", a, b)  # the sign of the divisor, as in Python
        if self.low(lhs) < 0 or self.low(rhs) < 0:  # ONNX divides towards zero
            a = self.op("Sub", a, self.op("Mod", a, b))
        return self.op("Div", a, b)

    def low(self, d: Dim) -> float:
        """A lower bound of a size."""
        return D.bounds(d, self.shared.ranges)[0]

    def scalar(self, d: Dim, dtype: DType = DType.i64) -> str:
        """A size as a 0-d tensor."""
        if isinstance(d, int):
            return self.const(np.asarray(d, np.int64), dtype)
        return self.cast(self.op("Squeeze", self.dim(d), self.ints(0)), dtype)

    def shape(self, shape: Sequence[Dim]) -> str:
        """A 1-d i64 tensor of sizes."""
        if all(isinstance(d, int) for d in shape):
            return self.const(np.asarray(tuple(shape), np.int64))
        parts: list[str] = []
        run: list[int] = []
        for d in shape:
            if isinstance(d, int):
                run.append(d)
                continue
            if run:
                parts.append(self.ints(*run))
                run = []
            parts.append(self.dim(d))
        if run:
            parts.append(self.ints(*run))
        return parts[0] if len(parts) == 1 else self.raw("Concat", parts, [DType.i64], axis=0)[0]

    # Movement that emitters build on ----------------------------------------------------------------------------------

    def reshape(self, x: str, old: Sequence[Dim] | None, new: Sequence[Dim]) -> str:
        """x of shape ``old`` (None: unknown) under another shape. At most one size that is not a constant is left to
        ONNX (-1); sizes that stay in place are copied (0), unless they may be 0 next to a -1."""
        if old is not None and tuple(old) == tuple(new):
            return x
        open_ = [i for i, d in enumerate(new) if not isinstance(d, int)]
        copied = [i for i in open_ if old is not None and i < len(old) and old[i] == new[i]]
        rest = [i for i in open_ if i not in copied]
        if 0 not in new and len(rest) <= 1 and (not rest or all(self.low(new[i]) > 0 for i in copied)):
            spec = [0 if i in copied else -1 if i in rest else d for i, d in enumerate(new)]
            return self.op("Reshape", x, self.const(np.asarray(spec, np.int64)))
        zero = 0 in new or any(self.low(d) <= 0 for d in new)
        return self.op("Reshape", x, self.shape(new), **({"allowzero": 1} if zero else {}))

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return x if list(perm) == list(range(len(perm))) else self.op("Transpose", x, perm=list(perm))

    def expand(self, x: str, shape: Sequence[Dim]) -> str:
        return self.op("Expand", x, self.shape(shape))

    def slice(self, x: str, axis: int, start: Dim, stop: Dim, step: int = 1) -> str:
        return self.op("Slice", x, self.dim(start), self.dim(stop), self.ints(axis), self.ints(step))

    def reverse(self, x: str, axis: int) -> str:
        return self.op("Slice", x, self.ints(-1), self.ints(-MAX - 1), self.ints(axis), self.ints(-1))

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self.op("Unsqueeze", x, self.ints(*axes))

    def squeeze(self, x: str, *axes: int) -> str:
        return self.op("Squeeze", x, self.ints(*axes))

    def concat(self, xs: Sequence[str], axis: int) -> str:
        return xs[0] if len(xs) == 1 else self.op("Concat", *xs, axis=axis)

    def range(self, n: Dim, dtype: DType = DType.i64) -> str:
        """0, 1, ... n - 1."""
        if isinstance(n, int) and n <= 1 << 20:
            return self.const(np.arange(n, dtype=np.int64), dtype)
        zero, one = self.const(np.asarray(0, np.int64)), self.const(np.asarray(1, np.int64))
        return self.cast(self.raw("Range", [zero, self.scalar(n), one], [DType.i64])[0], dtype)

    def fill(self, value: Any, shape: Sequence[Dim], dtype: DType) -> str:
        """A tensor of one value."""
        one = self.const(np.asarray(value), dtype)
        return one if not shape else self.expand(one, shape)

    def matmul(self, a: str, b: str, ranks: tuple[int | None, int | None]) -> str:
        """A matrix product over broadcast leading dims; ``ranks`` of the operands, one of them None (and the other 2)
        where it does not matter. onnxruntime folds scalar factors around an f64 MatMul into an attribute of single
        precision; it leaves Einsum alone."""
        if self.dtype(a) is not DType.f64:
            return self.op("MatMul", a, b)
        ra, rb = ranks
        if rb == 2:
            return self.op("Einsum", a, b, equation="...ij,jk->...ik")
        if ra == 2:
            return self.op("Einsum", a, b, equation="ij,...jk->...ik")
        assert ra is not None and rb is not None
        if ra < rb:
            a = self.unsqueeze(a, *range(rb - ra))
        elif rb < ra:
            b = self.unsqueeze(b, *range(ra - rb))
        return self.op("Einsum", a, b, equation="...ij,...jk->...ik")

    # Complex numbers --------------------------------------------------------------------------------------------------

    def split(self, x: str) -> Pair:
        """From pairs in the last dim to two tensors."""
        zero, one = (self.const(np.asarray(i, np.int64)) for i in (0, 1))
        return Pair(self.op("Gather", x, zero, axis=-1), self.op("Gather", x, one, axis=-1))

    def join(self, z: Pair) -> str:
        """From two tensors to pairs in the last dim."""
        return self.op("Concat", self.unsqueeze(z.re, -1), self.unsqueeze(z.im, -1), axis=-1)

    # Values of the IR -------------------------------------------------------------------------------------------------

    def find(self, v: Value) -> Ref | None:
        """What a value of the IR is here, or in a scope around this one."""
        scope: Cx | None = self
        while scope is not None:
            if v in scope.values:
                return scope.values[v]
            scope = scope.parent
        return None

    def walk(self, nodes: Sequence[Node]) -> None:
        """Writes nodes in order. A refused one is noted, and stands-in take the place of its results, so that all
        reasons are found at once."""
        from .emit import emit
        from .patterns import formed

        for n in nodes:
            ins = [None if v is None else self.find(v) for v in n.inputs]
            try:
                if self.shared.form and (whole := formed(self, n)) is not None:
                    self.values[n[0]] = whole
                    continue
                outs = emit(self, n, ins)
            except Refuse as e:
                self.shared.refused.append((n, str(e)))
                outs = tuple(self._stand_in(t.dtype) for t in n.types)
            self.values.update(zip(n.values, outs, strict=True))
            self._bind(n)

    def _stand_in(self, dtype: DType) -> Ref:
        if dtype.is_complex:
            return Pair(self.stand_in(dtype.real), self.stand_in(dtype.real))
        return self.stand_in(dtype)

    def stand_in(self, dtype: DType) -> str:
        """A name with a type and nothing behind it."""
        name = self.name("none")
        self.shared.dtypes[name] = dtype
        return name

    def _bind(self, n: Node) -> None:
        """Symbols that n defines: the sizes of its results, or the result itself."""
        for attr in get(n.op).binds:
            d = n.attrs[attr]
            if isinstance(d, int) or str(d) in self.symbols:
                continue
            for v in n.values:
                x = self.values[v]
                if d in v.shape:
                    at = v.shape.index(d)
                    name = x.re if isinstance(x, Pair) else x
                    self.symbols[str(d)] = self.raw("Shape", [name], [DType.i64], start=at, end=at + 1)[0]
                    break
            else:
                self.symbols[str(d)] = self.unsqueeze(str(self.values[n[0]]), 0)

    # Control flow -----------------------------------------------------------------------------------------------------

    def sub(self) -> Cx:
        """A scope for a body."""
        return Cx(self.shared, self)

    def body(
        self, inner: Cx, inputs: Sequence[tuple[str, DType, int | None]], outputs: Sequence[str], name: str
    ) -> Any:
        """The GraphProto of a body; inputs as (name, dtype, rank). Results are copied under names of their own, since
        a body may return what it was given or something from around it."""
        outs = [inner.raw("Identity", [o], [inner.dtype(o)], pure=False)[0] for o in outputs]
        given = [
            helper.make_tensor_value_info(n, ONNX_TYPE[t], None if r is None else [None] * r) for n, t, r in inputs
        ]
        made = [helper.make_tensor_value_info(o, ONNX_TYPE[inner.dtype(o)], None) for o in outs]
        return helper.make_graph(inner.nodes, self.name(name), given, made)

    def loop(
        self, trips: str | None, carries: Sequence[str], step: Callable[[Cx, str, list[str]], Sequence[str]]
    ) -> list[str]:
        """ONNX Loop with a trip count; ``step(scope, i, carries)`` gives the next carries."""
        inner = self.sub()
        i, go = inner.name("i"), inner.name("go")
        self.shared.dtypes[i], self.shared.dtypes[go] = DType.i64, DType.bool
        args = [inner.name("carry") for _ in carries]
        for a, c in zip(args, carries, strict=True):
            self.shared.dtypes[a] = self.dtype(c)
        new = list(step(inner, i, list(args)))
        ins = [(i, DType.i64, 0), (go, DType.bool, 0), *((a, self.dtype(a), None) for a in args)]
        graph = self.body(inner, ins, [go, *new], "step")
        return self.raw("Loop", [trips, None, *carries], [self.dtype(c) for c in carries], pure=False, body=graph)


def is_open(d: Dim) -> bool:
    """Whether a size is not a constant."""
    return isinstance(d, SymExpr)
