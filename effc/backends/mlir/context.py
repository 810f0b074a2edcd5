"""What emitters write with: ATen operators by name, arguments as PyTorch's schemas have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch_mlir import ir

from ...ir import dims as D
from ...ir.dims import Dim, Symbol, SymExpr
from ...ir.dtypes import DType
from ...ir.graph import Graph, Node, Value
from ...ir.op import broadcast_shapes, get
from ...ir.torch_types import ELEMENT_NAME, SCALAR_CODE
from ...ir.types import TensorType

Array = np.ndarray[Any, Any]


class Refuse(Exception):
    """Why the torch dialect cannot say what a node computes."""


@dataclass(frozen=True, eq=False)
class Ref:
    """A tensor in the module."""

    value: Any  # ir.Value
    type: TensorType

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def rank(self) -> int:
        return self.type.rank


def schema(name: str) -> Any:
    """PyTorch's schema of an operator named as in the dialect, without ``torch.``: ``aten.add.Tensor``."""
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")._schema


class Shared:
    """What all scopes of one module know: the literals' attributes, and operators that torch-mlir lacks."""

    def __init__(self) -> None:
        self.literals: dict[int, tuple[Array, Any]] = {}  # id of the data -> the data and its attribute
        self.data: dict[str, Array] = {}  # the text of a literal's attribute -> its content
        self.opaque: dict[str, int] = {}
        self.notes: list[str] = []
        self.refused: list[tuple[Node, str]] = []


class Cx:
    """A scope: the block that is written to, and what is known there of values, sizes and constants."""

    def __init__(self, shared: Shared, outer: Cx | None = None) -> None:
        self.shared, self.outer = shared, outer
        self.values: dict[Value, Ref] = {} if outer is None else dict(outer.values)
        self.sizes: dict[Dim, Any] = {} if outer is None else dict(outer.sizes)  # as values of type !torch.int
        self.constants: dict[Any, Any] = {} if outer is None else dict(outer.constants)
        self.states: dict[str, Ref] = {} if outer is None else outer.states
        self.symbolic: dict[str, Any] = {} if outer is None else outer.symbolic  # torch.symbolic_int of symbols
        self.loc: Any = ir.Location.unknown() if outer is None else outer.loc

    # Types ------------------------------------------------------------------------------------------------------------

    @staticmethod
    def kind(name: str) -> Any:
        return ir.Type.parse(f"!torch.{name}")

    def tensor(self, t: TensorType) -> Any:
        """The value tensor type; Refuse for elements that the dialect lacks."""
        if t.dtype not in ELEMENT_NAME:
            raise Refuse(f"the torch dialect has no tensors of {t.dtype}")
        sizes = ",".join(str(d) if isinstance(d, int) else "?" for d in t.shape)
        return self.kind(f"vtensor<[{sizes}],{ELEMENT_NAME[t.dtype]}>")

    # Operations -------------------------------------------------------------------------------------------------------

    def op(self, name: str, operands: Sequence[Any], results: Sequence[Any], /, **attributes: Any) -> Any:
        """One operation ``torch.NAME``, as it is."""
        return ir.Operation.create(
            f"torch.{name}", results=list(results), operands=list(operands), attributes=attributes, loc=self.loc
        )

    def aten(self, name: str, *args: Any, out: TensorType | Sequence[TensorType], **keywords: Any) -> Any:
        """An ATen operator, such as ``add.Tensor``; what is not given is the schema's default. An operator that
        torch-mlir has no operation for becomes a ``torch.operator``, as its own importer has it. Gives one Ref, or a
        tuple of them if ``out`` is several types."""
        full = f"aten.{name}"
        operands = []
        for i, a in enumerate(schema(full).arguments):
            given = args[i] if i < len(args) else keywords.get(a.name, a.default_value)
            operands.append(self.argument(given, str(a.type)))
        types = (out,) if isinstance(out, TensorType) else tuple(out)
        kinds = [self.tensor(t) for t in types]
        if self.loc.context.is_registered_operation(f"torch.{full}"):
            made = self.op(full, operands, kinds)
        else:
            self.shared.opaque[full] = self.shared.opaque.get(full, 0) + 1
            made = self.op("operator", operands, kinds, name=ir.StringAttr.get(f"torch.{full}"))
        refs = tuple(Ref(v, t) for v, t in zip(made.results, types, strict=True))
        for r in refs:
            self.name_sizes(r)
        return refs[0] if isinstance(out, TensorType) else refs

    def argument(self, x: Any, kind: str) -> Any:
        """An operand for a parameter of PyTorch's type ``kind``."""
        if isinstance(x, Ref):
            return x.value
        if isinstance(x, ir.Value):
            return x
        if isinstance(x, DType):
            return self.number(SCALAR_CODE[x])
        if x is None:
            return self.constant("none", None)
        if isinstance(x, SymExpr):
            return self.size(x)
        if isinstance(x, (tuple, list)):
            inner = kind.removeprefix("Optional[").removeprefix("List[").rstrip("]")
            optional = "List[Optional[" in kind
            element = {"int": "int", "Tensor": "vtensor", "float": "float", "bool": "bool"}[
                inner.removeprefix("Optional[")
            ]
            if optional:
                element = f"optional<{element}>"
            return self.list([self.argument(v, inner) for v in x], element)
        if isinstance(x, str):
            return self.constant("str", x)
        if "float" in kind:
            x = float(x)
        elif "number" in kind and isinstance(x, (bool, np.bool_)):
            x = int(x)
        return self.number(x)

    def list(self, values: Sequence[Any], element: str) -> Any:
        return self.op("prim.ListConstruct", values, [self.kind(f"list<{element}>")]).results[0]

    def number(self, x: Any) -> Any:
        if isinstance(x, (bool, np.bool_)):
            return self.constant("bool", bool(x))
        if isinstance(x, (int, np.integer)):
            return self.constant("int", int(x))
        if isinstance(x, (float, np.floating)):
            return self.constant("float", float(x))
        raise Refuse(f"the torch dialect has no number {x}")

    def constant(self, kind: str, x: Any) -> Any:
        key = (kind, repr(x))
        if key not in self.constants:
            attributes: dict[str, Any] = {}
            if kind == "int":
                attributes["value"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), x)
            elif kind == "float":
                attributes["value"] = ir.FloatAttr.get_f64(x)
            elif kind == "bool":
                attributes["value"] = ir.BoolAttr.get(x)
            elif kind == "str":
                attributes["value"] = ir.StringAttr.get(x)
            self.constants[key] = self.op(f"constant.{kind}", [], [self.kind(kind)], **attributes).results[0]
        return self.constants[key]

    # Sizes ------------------------------------------------------------------------------------------------------------

    def size(self, d: Dim) -> Any:
        """A size as a value of type ``!torch.int``; Refuse for a symbol that is not known here."""
        if isinstance(d, int):
            return self.number(d)
        if d not in self.sizes:
            total: Any = None
            for monomial, factor in d.terms:
                term = None if factor == 1 and monomial else self.number(factor)
                for atom in monomial:
                    term = self._times(term, self._atom(atom))
                total = term if total is None else self.int_op("aten.add.int", total, term)
            self.sizes[d] = total
        return self.sizes[d]

    def _times(self, x: Any, y: Any) -> Any:
        return y if x is None else self.int_op("aten.mul.int", x, y)

    def _atom(self, atom: Any) -> Any:
        if isinstance(atom, Symbol):
            d = D.symbol(atom.name)
            if d not in self.sizes:
                raise Refuse(f"the size {atom.name} is not known where it is used")
            return self.sizes[d]
        names = {"//": "aten.floordiv.int", "%": "aten.remainder.int", "max": "prim.max.int", "min": "prim.min.int"}
        return self.int_op(names[atom.op], self.size(atom.lhs), self.size(atom.rhs))

    def name_sizes(self, x: Ref) -> bool:
        """Writes which sizes of x are which symbols of the inputs (``torch.bind_symbolic_shape``), or says False where
        the dialect has no expression for them."""
        names = sorted({s for d in x.shape for s in D.symbols(d)})
        if not set(names) <= self.symbolic.keys():
            return False
        if names:
            local = {s: ir.AffineSymbolExpr.get(i) for i, s in enumerate(names)}
            try:
                sizes = [affine(d, local) for d in x.shape]
            except Refuse:
                return False
            attr = ir.AffineMapAttr.get(ir.AffineMap.get(0, len(names), sizes))
            operands = [x.value, *(self.symbolic[s] for s in names)]
            self.op("bind_symbolic_shape", operands, [], shape_expressions=attr)
        return True

    def int_op(self, name: str, *operands: Any, kind: str = "int") -> Any:
        return self.op(name, operands, [self.kind(kind)]).results[0]

    def size_of(self, x: Ref, dim: int) -> Any:
        return self.int_op("aten.size.int", x.value, self.number(dim))

    def bind(self, d: Dim, value: Any) -> None:
        """Makes ``value`` the meaning of a symbol."""
        self.sizes.setdefault(d, value)

    def unknown(self) -> Dim:
        """A size that nobody needs to know."""
        return D.symbol("unknown")

    # Idioms -----------------------------------------------------------------------------------------------------------

    def literal(self, data: Any, dtype: DType) -> Ref:
        """A constant tensor: one element is a splat, more are a resource."""
        dense: Array = np.ascontiguousarray(data).reshape(np.shape(data)).astype(dtype.np, copy=False)
        t = TensorType(dtype, dense.shape)
        kind = self.tensor(t)
        if dense.size == 0:
            return self.full(0, t)
        if dtype.is_complex and dense.size == 1:  # torch-mlir's bindings have no attribute for it
            parts = [self.literal(part, dtype.real) for part in (dense.real, dense.imag)]
            return self.aten("complex", *parts, out=t)
        key = id(data)
        if key not in self.shared.literals or self.shared.literals[key][0] is not data:
            self.shared.literals[key] = (data, self._elements(dense, t))
        attr = self.shared.literals[key][1]
        return Ref(self.op("vtensor.literal", [], [kind], value=attr).results[0], t)

    def _elements(self, a: Array, t: TensorType) -> Any:
        shape = "".join(f"{n}x" for n in a.shape)
        kind = f"tensor<{shape}{ELEMENT_NAME[t.dtype]}>"
        if a.size == 1:
            attr = ir.Attribute.parse(f"dense<{_element(a.reshape(-1)[0], t.dtype)}> : {kind}")
            self.shared.data[str(attr)] = a
            return attr
        raw = np.packbits(a.reshape(-1), bitorder="little") if t.dtype.is_bool else a.reshape(-1).view(np.uint8)
        label = f"literal_{'x'.join(map(str, a.shape))}_{t.dtype.value}"
        attr = ir.DenseResourceElementsAttr.get_from_buffer(
            memoryview(raw), label, ir.Type.parse(kind), t.dtype.itemsize
        )
        self.shared.data[str(attr)] = a
        return attr

    def scalar(self, x: Any, dtype: DType) -> Ref:
        """A 0-d constant."""
        key = ("scalar", repr(x), dtype)
        if key not in self.constants:
            with np.errstate(all="ignore"):
                data = np.asarray(x).astype(dtype.np)
            self.constants[key] = self.literal(data, dtype)
        return self.constants[key]

    def full(self, x: Any, t: TensorType) -> Ref:
        """A tensor of one number or size everywhere."""
        if t.dtype.is_complex or t.dtype in (DType.f8e4m3, DType.f8e5m2):  # numbers of the dialect are int and float
            return self.broadcast(self.scalar(x, t.dtype), t.shape)
        return self.aten("full", list(t.shape), x, dtype=t.dtype, out=t)

    def convert(self, x: Ref, dtype: DType) -> Ref:
        if x.dtype is dtype:
            return x
        return self.aten("to.dtype", x, dtype, out=x.type.with_dtype(dtype))

    def reshape(self, x: Ref, shape: Sequence[Dim]) -> Ref:
        if tuple(shape) == x.shape:
            return x
        return self.aten("reshape", x, list(shape), out=x.type.with_shape(tuple(shape)))

    def broadcast(self, x: Ref, shape: Sequence[Dim]) -> Ref:
        if tuple(shape) == x.shape:
            return x
        return self.aten("broadcast_to", x, list(shape), out=x.type.with_shape(tuple(shape)))

    def permute(self, x: Ref, dims: Sequence[int]) -> Ref:
        shape = tuple(x.shape[d] for d in dims)
        return self.aten("permute", x, list(dims), out=x.type.with_shape(shape))

    def slice(self, x: Ref, dim: int, start: Dim, stop: Dim, step: int = 1) -> Ref:
        shape = list(x.shape)
        shape[dim] = D.ceildiv(stop - start, step)
        return self.aten("slice.Tensor", x, dim, start, stop, step, out=x.type.with_shape(tuple(shape)))

    def cat(self, xs: Sequence[Ref], dim: int) -> Ref:
        shape = list(xs[0].shape)
        for x in xs[1:]:
            shape[dim] = shape[dim] + x.shape[dim]
        return self.aten("cat", list(xs), dim, out=xs[0].type.with_shape(tuple(shape)))

    def flip(self, x: Ref, dims: Sequence[int]) -> Ref:
        return self.aten("flip", x, list(dims), out=x.type)

    def binary(self, name: str, x: Ref, y: Any) -> Ref:
        """An elementwise operator of two tensors, or of one and a number of its type."""
        other = y if isinstance(y, Ref) else self.scalar(y, x.dtype)
        out = DType.bool if name.partition(".")[0] in COMPARISONS else x.dtype
        shape = broadcast_shapes(x.shape, other.shape)
        return self.aten(name, x, other, out=TensorType(out, shape))

    def unary(self, name: str, x: Ref, out: DType | None = None) -> Ref:
        return self.aten(name, x, out=x.type.with_dtype(out or x.dtype))

    def conjugate(self, x: Ref) -> Ref:
        """Of a complex tensor, by its parts: the dialect lacks the operator."""
        re, im = (self.unary(n, x, x.dtype.real) for n in ("real", "imag"))
        return self.aten("complex", re, self.unary("neg", im), out=x.type)

    def where(self, c: Ref, x: Ref, y: Ref) -> Ref:
        shape = broadcast_shapes(c.shape, x.shape, y.shape)
        return self.aten("where.self", c, x, y, out=TensorType(x.dtype, shape))

    def arange(self, n: Dim) -> Ref:
        """0, 1, ... n - 1 as i64."""
        return self.aten("arange.start_step", 0, n, 1, dtype=DType.i64, out=TensorType(DType.i64, (n,)))

    # Walking ----------------------------------------------------------------------------------------------------------

    def walk(self, nodes: Sequence[Node]) -> None:
        """Writes nodes in order. A refused one is noted, and something of its type takes its place, so that all reasons
        are found at once."""
        from .emit import emit

        for n in nodes:
            if n.op == "input":
                continue
            self.loc = _location(n)
            refs = [None if v is None else self.values[v] for v in n.inputs]
            try:
                outs = emit(self, n, refs)
            except Refuse as e:
                self.shared.refused.append((n, str(e)))
                outs = tuple(self.stand_in(t) for t in n.types)
            self.values.update(zip(n.values, outs, strict=True))
            self._bind(n)

    def stand_in(self, t: TensorType) -> Ref:
        """A value of a type with nothing behind it, in a module that is thrown away."""
        known = t if t.dtype in ELEMENT_NAME else t.with_dtype(DType.f32)
        return Ref(self.op("operator", [], [self.tensor(known)], name=ir.StringAttr.get("none")).results[0], t)

    def _bind(self, n: Node) -> None:
        """Symbols that n defines: the sizes of its results."""
        for attr in get(n.op).binds:
            d = n.attrs[attr]
            if isinstance(d, int) or d in self.sizes:
                continue
            for v in n.values:
                if d in v.shape:
                    self.bind(d, self.size_of(self.values[v], v.shape.index(d)))
                    break

    def sub(self) -> Cx:
        """A scope for a body."""
        return Cx(self.shared, self)


COMPARISONS = frozenset("eq ne lt le gt ge logical_and logical_or logical_xor".split())


def affine(d: Dim, local: Mapping[str, Any]) -> Any:
    """A size as an affine expression of symbols; Refuse where it is none."""
    if isinstance(d, int):
        return ir.AffineConstantExpr.get(d)
    total: Any = None
    for monomial, factor in d.terms:
        if len(monomial) > 1:
            raise Refuse("a product of sizes")
        term: Any = ir.AffineConstantExpr.get(factor)
        for atom in monomial:
            if isinstance(atom, Symbol):
                inner = local[atom.name]
            elif atom.op in ("//", "%") and isinstance(atom.rhs, int):
                f = ir.AffineFloorDivExpr if atom.op == "//" else ir.AffineModExpr
                inner = f.get(affine(atom.lhs, local), ir.AffineConstantExpr.get(atom.rhs))
            else:
                raise Refuse("an expression that is not affine")
            term = inner if factor == 1 else ir.AffineMulExpr.get(inner, term)
        total = term if total is None else ir.AffineAddExpr.get(total, term)
    return total


def _element(x: Any, dtype: DType) -> str:
    """A number as MLIR's text has it, exactly."""
    if dtype.is_complex:
        return f"({_element(x.real, dtype.real)}, {_element(x.imag, dtype.real)})"
    if dtype.is_bool:
        return "true" if x else "false"
    if dtype.is_int:
        return str(int(x))
    raw = np.asarray(x, dtype.np).reshape(1).view(np.uint8)[::-1].tobytes().hex()
    return f"0x{raw.upper()}"


def _location(n: Node) -> Any:
    """The user's line."""
    if n.loc is None or not n.loc.file:
        return ir.Location.unknown()
    return ir.Location.file(n.loc.file, n.loc.line, 0)


__all__ = ["Array", "Cx", "Graph", "Ref", "Refuse", "Shared", "schema"]
