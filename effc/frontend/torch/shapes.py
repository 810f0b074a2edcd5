"""sympy expressions of SymInts to dims, and to IR values where a dim cannot express them.

A dim is an integer polynomial with //, %, max and min. Everything else that torch can write (float arithmetic on
sizes, square roots, comparisons) is computed by 0-d tensors; when such a number is used as a size again, an ``item``
node binds it to a symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch.utils._sympy import functions as F

from ...ir import dims
from ...ir.dims import Dim
from ...ir.dtypes import DType

if TYPE_CHECKING:
    from ...ir.graph import Builder, Value

EXACT = 1 << 20  # numerators and denominators up to this keep size*ratio exact in a double


class NotADim(Exception):
    """The expression has no dim form."""


class SymNumber:
    """A number that depends on sizes and has no dim form: a float, bool or unusual integer expression. ``kind``: its
    Python type.
    """

    def __init__(self, expr: Any, kind: type) -> None:
        self.expr, self.kind = expr, kind

    def __repr__(self) -> str:
        return f"SymNumber({self.expr})"


def sym_expr(x: Any) -> Any:
    """The sympy expression of a SymInt, SymFloat or SymBool with all replacements applied."""
    return x.node.expr


def to_dim(e: Any, known: Mapping[str, Dim] | None = None) -> Dim:
    """The dim of a sympy integer expression; NotADim if it has none. ``known`` substitutes symbols."""
    if isinstance(e, int) and not isinstance(e, bool):
        return e
    if e.is_Integer:
        return int(e)
    if e.is_Symbol:
        name = str(e)
        return known[name] if known and name in known else dims.symbol(name)

    def sub(x: Any) -> Dim:
        return to_dim(x, known)

    if isinstance(e, sympy.Add):
        total: Dim = 0
        for a in e.args:
            total = total + sub(a)
        return total
    if isinstance(e, sympy.Mul):
        return dims.product(sub(a) for a in e.args)
    if isinstance(e, (sympy.Pow, F.PowByNatural)) and e.args[1].is_Integer and 0 <= int(e.args[1]) <= 8:
        return dims.product([sub(e.args[0])] * int(e.args[1]))
    if isinstance(e, (F.FloorDiv, F.CleanDiv)):
        return dims.floordiv(sub(e.args[0]), sub(e.args[1]))
    if isinstance(e, F.ModularIndexing):
        return dims.mod(dims.floordiv(sub(e.args[0]), sub(e.args[1])), sub(e.args[2]))
    if isinstance(e, (F.Mod, F.PythonMod, sympy.Mod)):
        return dims.mod(sub(e.args[0]), sub(e.args[1]))
    if isinstance(e, (F.Max, sympy.Max)):
        return _fold(dims.maximum, [sub(a) for a in e.args])
    if isinstance(e, (F.Min, sympy.Min)):
        return _fold(dims.minimum, [sub(a) for a in e.args])
    if isinstance(e, F.Identity):
        return sub(e.args[0])
    if isinstance(e, (F.CeilToInt, F.FloorToInt, F.TruncToInt, sympy.floor, sympy.ceiling)):
        n, d = _ratio(e.args[0], sub)
        if isinstance(e, (F.CeilToInt, sympy.ceiling)):
            return dims.ceildiv(n, d)
        low = dims.bounds(n, {})[0] if isinstance(e, F.TruncToInt) else 0
        if low >= 0 and (not isinstance(d, int) or d > 0):
            return dims.floordiv(n, d)
    raise NotADim(str(e))


def _fold(f: Callable[[Dim, Dim], Dim], items: list[Dim]) -> Dim:
    out = items[0]
    for d in items[1:]:
        out = f(out, d)
    return out


def _ratio(e: Any, sub: Callable[[Any], Dim]) -> tuple[Dim, Dim]:
    """A float expression as an exact quotient of dims; NotADim where double rounding could show."""
    if isinstance(e, (F.IntTrueDiv, F.FloatTrueDiv)):
        (n, d), (n2, d2) = _ratio(e.args[0], sub), _ratio(e.args[1], sub)
        return n * d2, d * n2
    if isinstance(e, F.ToFloat):
        return _ratio(e.args[0], sub)
    if e.is_Float or e.is_Rational:
        n, d = float(e).as_integer_ratio()
        if abs(n) > EXACT or d > EXACT:
            raise NotADim(str(e))
        return n, d
    if isinstance(e, sympy.Mul):
        top: Dim = 1
        low: Dim = 1
        for a in e.args:
            n, d = _ratio(a, sub)
            top, low = top * n, low * d
        return top, low
    return sub(e), 1


_COMPARE = {sympy.Eq: "eq", sympy.Ne: "ne", sympy.Lt: "lt", sympy.Le: "le", sympy.Gt: "gt", sympy.Ge: "ge"}
RELATIONS = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Lt: "<", sympy.Le: "<=", sympy.Gt: ">", sympy.Ge: ">="}
_UNARY = {
    "sqrt": "sqrt",
    "exp": "exp",
    "log": "log",
    "sin": "sin",
    "cos": "cos",
    "tan": "tan",
    "tanh": "tanh",
    "atan": "atan",
    "sinh": "sinh",
    "cosh": "cosh",
    "asin": "asin",
    "acos": "acos",
    "log2": "log2",
    "log10": "log10",
}


class Evaluator:
    """Computes sympy expressions as 0-d values: integers in i64, floats in f64, relations in bool."""

    def __init__(self, b: Builder, known: Mapping[str, Dim], values: Mapping[str, Value]) -> None:
        self.b, self.known, self.values = b, known, values
        self.cache: dict[tuple[Any, DType], Value] = {}

    def value(self, e: Any, dtype: DType) -> Value:
        """A 0-d value of ``dtype`` (bool, i64 or f64)."""
        key = (e, dtype)
        if key not in self.cache:
            self.cache[key] = self._make(e, dtype)
        return self.cache[key]

    def _convert(self, v: Value, dtype: DType) -> Value:
        return v if v.dtype is dtype else self.b.op("convert", v, dtype=dtype)

    def _make(self, e: Any, dtype: DType) -> Value:
        b = self.b
        if e is True or e is False or e in (sympy.true, sympy.false):
            return b.constant(bool(e), dtype)
        if isinstance(e, (int, float)) or e.is_number:
            return b.constant(int(e) if dtype is DType.i64 else float(e), dtype)
        if e.is_Symbol and str(e) in self.values:
            return self._convert(self.values[str(e)], dtype)
        try:
            return self._convert(b.op("dim_value", value=to_dim(e, self.known)), dtype)
        except NotADim:
            pass
        for kind, op in _COMPARE.items():
            if isinstance(e, kind):
                side = DType.i64 if all(a.is_integer for a in e.args) else DType.f64
                return self._convert(b.op(op, self.value(e.args[0], side), self.value(e.args[1], side)), dtype)
        if isinstance(e, (sympy.And, sympy.Or)):
            name = "logical_and" if isinstance(e, sympy.And) else "logical_or"
            return self._convert(self._chain(name, e.args, DType.bool), dtype)
        if isinstance(e, sympy.Not):
            return self._convert(b.op("logical_not", self.value(e.args[0], DType.bool)), dtype)
        if isinstance(e, (F.Where, sympy.Piecewise)):
            c, x, y = e.args if isinstance(e, F.Where) else (e.args[0][1], e.args[0][0], e.args[1][0])
            return b.op("where", self.value(c, DType.bool), self.value(x, dtype), self.value(y, dtype))
        rounding = {
            F.TruncToInt: "trunc",
            F.TruncToFloat: "trunc",
            F.FloorToInt: "floor",
            F.CeilToInt: "ceil",
            F.RoundToInt: "round",
            sympy.floor: "floor",
            sympy.ceiling: "ceil",
        }
        for kind, op in rounding.items():
            if isinstance(e, kind):
                return self._convert(b.op(op, self.value(e.args[0], DType.f64)), dtype)
        integral = bool(e.is_integer)
        work = DType.i64 if integral and dtype is not DType.f64 else DType.f64
        if isinstance(e, sympy.Add):
            return self._convert(self._chain("add", e.args, work), dtype)
        if isinstance(e, sympy.Mul):
            return self._convert(self._chain("mul", e.args, work), dtype)
        if isinstance(e, (F.Max, sympy.Max)):
            return self._convert(self._chain("maximum", e.args, work), dtype)
        if isinstance(e, (F.Min, sympy.Min)):
            return self._convert(self._chain("minimum", e.args, work), dtype)
        binary = {
            F.FloorDiv: "floor_div",
            F.CleanDiv: "floor_div",
            F.PythonMod: "remainder",
            F.Mod: "remainder",
            sympy.Mod: "remainder",
            F.PowByNatural: "pow",
        }
        for kind, op in binary.items():
            if isinstance(e, kind):
                return self._convert(
                    b.op(op, self.value(e.args[0], DType.i64), self.value(e.args[1], DType.i64)), dtype
                )
        if isinstance(e, (F.IntTrueDiv, F.FloatTrueDiv)):
            return self._convert(b.op("div", self.value(e.args[0], DType.f64), self.value(e.args[1], DType.f64)), dtype)
        if isinstance(e, (F.FloatPow, sympy.Pow)):
            return self._convert(b.op("pow", self.value(e.args[0], DType.f64), self.value(e.args[1], DType.f64)), dtype)
        if isinstance(e, (F.ToFloat, F.Identity)):
            return self._convert(self.value(e.args[0], DType.f64 if isinstance(e, F.ToFloat) else dtype), dtype)
        if isinstance(e, sympy.Abs):
            return self._convert(b.op("abs", self.value(e.args[0], work)), dtype)
        name = type(e).__name__.removeprefix("OpaqueUnaryFn_")
        if name in _UNARY:
            return self._convert(b.op(_UNARY[name], self.value(e.args[0], DType.f64)), dtype)
        raise NotADim(f"{type(e).__name__}: {e}")

    def _chain(self, op: str, args: Any, dtype: DType) -> Value:
        out = self.value(args[0], dtype)
        for a in args[1:]:
            out = self.b.op(op, out, self.value(a, dtype))
        return out


def is_sym(x: Any) -> bool:
    return isinstance(x, (torch.SymInt, torch.SymFloat, torch.SymBool))
