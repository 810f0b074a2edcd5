"""What emitters write with: sizes and elements as TVM's expressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from ...ir.dims import Dim, Symbol
from ...ir.dtypes import DType

Expr = Any  # tirx.PrimExpr
Tensor = Any  # te.Tensor
Index = Sequence[Expr]

TVM_TYPE: dict[DType, str] = {
    DType.bool: "bool", DType.u8: "uint8", DType.i8: "int8", DType.u16: "uint16", DType.i16: "int16",
    DType.u32: "uint32", DType.i32: "int32", DType.u64: "uint64", DType.i64: "int64", DType.f16: "float16",
    DType.bf16: "bfloat16", DType.f32: "float32", DType.f64: "float64",
}  # fmt: skip


class Refuse(Exception):
    """Why TVM cannot say what a node computes."""


class Cx:
    """The scope of one function: the variables of its symbols."""

    def __init__(self) -> None:
        self.symbols: dict[str, Expr] = {}

    def dim(self, d: Dim) -> Expr:
        """A size as an i64 expression; Refuse for a symbol that no input's shape gives."""
        if isinstance(d, int):
            return tirx.const(d, "int64")
        total: Expr = None
        for monomial, factor in d.terms:
            term: Expr = tirx.const(factor, "int64")
            for atom in monomial:
                if isinstance(atom, Symbol):
                    if atom.name not in self.symbols:
                        raise Refuse(f"the size {atom.name} is not known where it is used")
                    term = term * self.symbols[atom.name]
                else:
                    f = {"//": tirx.floordiv, "%": tirx.floormod, "max": tirx.max, "min": tirx.min}[atom.op]
                    term = term * f(self.dim(atom.lhs), self.dim(atom.rhs))
            total = term if total is None else total + term
        return total

    def dims(self, shape: Sequence[Dim]) -> tuple[Expr, ...]:
        return tuple(self.dim(d) for d in shape)

    def compute(self, shape: Sequence[Dim], f: Callable[..., Expr]) -> Tensor:
        """The tensor of ``shape`` whose element at ``i`` is ``f(*i)``."""
        return te.compute(self.dims(shape), f)

    def axes(self, *sizes: Dim) -> list[Any]:
        """Reduction axes from 0."""
        return [te.reduce_axis((tirx.const(0, "int64"), self.dim(s)), f"k{i}") for i, s in enumerate(sizes)]


def const(value: Any, dtype: DType) -> Expr:
    return tirx.const(bool(value) if dtype.is_bool else value, TVM_TYPE[dtype])


def cast(x: Expr, src: DType, dst: DType) -> Expr:
    """A number in another type, as ``convert`` has it: floats to integers by way of i64, anything to bool is != 0."""
    if src is dst:
        return x
    if src.is_bool:
        return tirx.Select(x, const(1, dst), const(0, dst))
    if dst.is_bool:
        wide = src.compute
        return cast(x, src, wide) != const(0, wide)
    if src.is_float and src.bits < 32 and dst is not DType.f32:
        return cast(cast(x, src, DType.f32), DType.f32, dst)
    if src.is_float and dst.is_int and dst is not DType.i64:
        return tirx.Cast(TVM_TYPE[dst], cast(x, src, DType.i64))
    if src.is_float and dst.is_int:
        x = tirx.Select(tirx.isnan(x), const(0, src), x)
    return tirx.Cast(TVM_TYPE[dst], x)


def at(x: Tensor, index: Index) -> Expr:
    """The element of ``x``, broadcast, at an index of the result."""
    rank = len(x.shape)
    index = index[len(index) - rank :]
    zero = tirx.const(0, "int64")
    return x(*(zero if isinstance(n, tirx.IntImm) and n.value == 1 else i for n, i in zip(x.shape, index, strict=True)))


def every(conditions: Sequence[Expr]) -> Expr:
    """Whether all hold."""
    out: Expr = tirx.const(True, "bool")
    for c in conditions:
        out = tirx.And(out, c)
    return out


def flat(index: Index, shape: Index) -> Expr:
    """The row-major place of an index."""
    out: Expr = tirx.const(0, "int64")
    for i, n in zip(index, shape, strict=True):
        out = out * n + i
    return out


def unflat(place: Expr, shape: Index) -> list[Expr]:
    """The index of a row-major place."""
    out: list[Expr] = []
    for n in reversed(list(shape)):
        out.append(tirx.floormod(place, n))
        place = tirx.floordiv(place, n)
    return out[::-1]
