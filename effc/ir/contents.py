"""What small tensors hold, as dims: the shape arithmetic of a graph becomes the dims of its types.

A graph that was written as tensor operations (ONNX) computes sizes by tensors: Shape, Gather, Concat, Reshape. Each
node that is added is looked at once, and where its operands' contents are known, so are its results': numbers by the
op's own numpy reference, symbolic sizes by rules on arrays of dims. A float that is a quotient of sizes is a
:class:`Ratio`, so that ``floor(size * (wanted / size))`` is ``wanted`` again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import dims as D
from .dims import Bounds, Dim, SymExpr
from .graph import Node, Value
from .op import get

Array = np.ndarray[Any, Any]
LIMIT = 4096  # elements; a longer tensor is data, not sizes
EXACT = 1 << 12  # a float constant with a larger denominator is no exact factor of a size


@dataclass(frozen=True)
class Ratio:
    """The float ``num / den`` of two sizes."""

    num: Dim
    den: Dim

    def __mul__(self, other: Any) -> Ratio:
        o = ratio(other)
        return Ratio(self.num * o.num, self.den * o.den).reduced()

    def __truediv__(self, other: Any) -> Ratio:
        o = ratio(other)
        return Ratio(self.num * o.den, self.den * o.num).reduced()

    def __add__(self, other: Any) -> Ratio:
        o = ratio(other)
        return Ratio(self.num * o.den + o.num * self.den, self.den * o.den).reduced()

    def __sub__(self, other: Any) -> Ratio:
        o = ratio(other)
        return Ratio(self.num * o.den - o.num * self.den, self.den * o.den).reduced()

    def __neg__(self) -> Ratio:
        return Ratio(-self.num, self.den)

    def reduced(self) -> Ratio:
        if isinstance(self.den, int) and isinstance(self.num, int) and self.den == 0:
            raise Unknown
        whole = D.exact_div(self.num, self.den)
        if whole is not None:
            return Ratio(whole, 1)
        inverse = D.exact_div(self.den, self.num)
        return self if inverse is None else Ratio(1, inverse)


class Unknown(Exception):
    """The content has no form that the rules can write."""


def ratio(x: Any) -> Ratio:
    """A number as a quotient; Unknown for a float that is no short fraction."""
    if isinstance(x, Ratio):
        return x
    if isinstance(x, (int, np.integer, SymExpr)):
        return Ratio(int(x) if not isinstance(x, SymExpr) else x, 1)
    try:
        num, den = float(x).as_integer_ratio()
    except (OverflowError, ValueError):
        raise Unknown from None
    if den > EXACT:
        raise Unknown
    return Ratio(num, den)


class Contents:
    """The known contents of the values of one builder. ``symbols`` gives the bounds that comparisons use."""

    def __init__(self, symbols: Mapping[str, Bounds]) -> None:
        self.symbols = symbols
        self._known: dict[Value, Array] = {}

    def of(self, v: Value) -> Array | None:
        """The content: a numpy array of numbers, or of dims and Ratios (dtype object); None if it is not known."""
        return self._known.get(v)

    def set(self, v: Value, content: Array) -> None:
        self._known[v] = content

    def look(self, n: Node) -> None:
        """Works out what the node's results hold."""
        if n.op == "constant":
            self._known[n[0]] = n.attrs["data"]
            return
        if n.op == "dim_value":
            value = n.attrs["value"]
            self._known[n[0]] = _object(_as(n.types[0].dtype, value))
            return
        ins = [None if v is None else self._known.get(v) for v in n.inputs]
        if any(c is None and v is not None for c, v in zip(ins, n.inputs, strict=True)):
            return
        if any(c is not None and c.size > LIMIT for c in ins):
            return
        if not all(t.is_static and int(t.numel) <= LIMIT for t in n.types):
            return
        definition = get(n.op)
        if definition.effects or definition.binds or n.subgraphs:
            return
        try:
            if any(c is not None and c.dtype == object for c in ins):
                out = (self._symbolic(n, ins),)
            elif definition.numpy is None or any(isinstance(a, SymExpr) for a in n.attrs.values()):
                return
            else:
                found = definition.numpy(*ins, **n.attrs)
                out = found if isinstance(found, tuple) else (found,)
        except (Unknown, ArithmeticError, ValueError, TypeError, IndexError):
            return  # such a node fails, or not, when it runs
        for v, a in zip(n.values, out, strict=True):
            if a is not None:
                a = np.asarray(a)
                self._known[v] = a if a.dtype == object else a.astype(v.dtype.np, copy=False)

    # rules ------------------------------------------------------------------------------------------------------------

    def _symbolic(self, n: Node, ins: Sequence[Array | None]) -> Array:
        given = [c for c in ins if c is not None]
        if n.op in _MOVES:
            numpy = get(n.op).numpy
            assert numpy is not None
            return np.asarray(numpy(*(c if i else c.astype(object) for i, c in enumerate(given)), **n.attrs), object)
        if n.op == "concat":
            return np.concatenate([c.astype(object) for c in given], axis=n.attrs["dim"])
        if n.op == "convert":
            dtype = n.attrs["dtype"]
            return self._each(lambda x: self._convert(x, dtype), given[0])
        if n.op == "where":
            cond, x, y = given
            if cond.dtype == object:
                raise Unknown
            return np.where(cond, x.astype(object), y.astype(object))
        if n.op == "reduce":
            kinds: dict[str, Callable[[Any, Any], Any]] = {
                "sum": lambda a, b: a + b, "prod": lambda a, b: a * b, "max": self._most, "min": self._least,
            }  # fmt: skip
            if n.attrs["kind"] not in kinds:
                raise Unknown
            return _reduced(kinds[n.attrs["kind"]], given[0], n.attrs["dims"], n.attrs["keepdims"])
        rule = _BINARY.get(n.op) or _UNARY.get(n.op)
        if rule is None:
            raise Unknown
        return self._each(lambda *xs: rule(self, *xs), *given)

    @staticmethod
    def _each(f: Callable[..., Any], *arrays: Array) -> Array:
        both = np.broadcast_arrays(*arrays)
        out = np.empty(both[0].shape, object)
        for i in np.ndindex(out.shape):
            out[i] = f(*(x[i] if isinstance(x[i], (SymExpr, Ratio)) else x[i].item() if hasattr(x[i], "item") else x[i]
                         for x in both))  # fmt: skip
        return out if any(isinstance(x, (SymExpr, Ratio)) for x in out.flat) else _plain(out)

    def _convert(self, x: Any, dtype: Any) -> Any:
        if dtype.is_float:
            return _as(dtype, x)
        if not dtype.is_int:
            raise Unknown
        return self._trunc(x) if isinstance(x, (Ratio, float)) else x

    def _floor(self, x: Any) -> Dim:
        r = ratio(x)
        return D.floordiv(r.num, r.den)

    def _trunc(self, x: Any) -> Dim:
        r = ratio(x)
        self._not_negative(r.num)
        self._not_negative(r.den)
        return D.floordiv(r.num, r.den)

    def _not_negative(self, x: Any) -> None:
        r = ratio(x)
        if any(D.bounds(d, self.symbols)[0] < 0 for d in (r.num, r.den)):
            raise Unknown

    def _trunc_div(self, a: Any, b: Any) -> Any:
        self._not_negative(a)
        self._not_negative(b)
        return D.floordiv(_whole(a), _whole(b))

    def _most(self, a: Any, b: Any) -> Any:
        if isinstance(a, (Ratio, float)) or isinstance(b, (Ratio, float)):
            return self._whole(self._most, a, b)
        lo, hi = self._difference(a, b)
        return a if lo >= 0 else b if hi <= 0 else D.maximum(a, b)

    def _least(self, a: Any, b: Any) -> Any:
        if isinstance(a, (Ratio, float)) or isinstance(b, (Ratio, float)):
            return self._whole(self._least, a, b)
        lo, hi = self._difference(a, b)
        return a if hi <= 0 else b if lo >= 0 else D.minimum(a, b)

    @staticmethod
    def _whole(f: Callable[[Any, Any], Dim], a: Any, b: Any) -> Ratio:
        """A comparison of floats that are sizes."""
        x, y = ratio(a), ratio(b)
        if x.den != 1 or y.den != 1:
            raise Unknown
        return Ratio(f(x.num, y.num), 1)

    def _difference(self, a: Any, b: Any) -> tuple[float, float]:
        if isinstance(a, (Ratio, float)) or isinstance(b, (Ratio, float)):
            raise Unknown
        return D.bounds(a - b, self.symbols)

    def _compare(self, op: str, a: Any, b: Any) -> bool:
        lo, hi = self._difference(a, b)
        truth, lie = {
            "lt": (hi < 0, lo >= 0),
            "le": (hi <= 0, lo > 0),
            "gt": (lo > 0, hi <= 0),
            "ge": (lo >= 0, hi < 0),
            "eq": (lo == hi == 0, lo > 0 or hi < 0),
            "ne": (lo > 0 or hi < 0, lo == hi == 0),
        }[op]
        if truth or lie:
            return bool(truth)
        raise Unknown


def _whole(x: Any) -> Dim:
    """A number of integers as a dim; Unknown for a float, whose remainders and quotients are no dims."""
    if isinstance(x, (Ratio, float)):
        raise Unknown
    return x  # type: ignore[no-any-return]


def _as(dtype: Any, x: Any) -> Any:
    return ratio(x) if dtype.is_float else x


def _object(x: Any) -> Array:
    out = np.empty((), object)
    out[()] = x
    return out if isinstance(x, (SymExpr, Ratio)) and not _is_number(x) else np.asarray(_number(x))


def _is_number(x: Any) -> bool:
    return isinstance(x, Ratio) and isinstance(x.num, int) and isinstance(x.den, int)


def _number(x: Any) -> Any:
    return int(x.num) / int(x.den) if isinstance(x, Ratio) else x


def _plain(a: Array) -> Array:
    """An object array without symbols as one of numbers."""
    return np.array(a.tolist()).reshape(a.shape) if a.size else a.astype(np.int64)


def _reduced(f: Callable[[Any, Any], Any], x: Array, dims: Sequence[int], keepdims: bool) -> Array:
    rest = [d for d in range(x.ndim) if d not in dims]
    flat = x.astype(object).transpose([*rest, *dims]).reshape(*(x.shape[d] for d in rest), -1)
    out = np.empty(flat.shape[:-1], object)
    for i in np.ndindex(out.shape):
        items = list(flat[i])
        if not items:
            raise Unknown
        total = items[0]
        for y in items[1:]:
            total = f(total, y)
        out[i] = total
    return out.reshape([1 if d in dims else s for d, s in enumerate(x.shape)]) if keepdims else out


_MOVES = ("reshape", "permute", "broadcast_to", "slice", "flip", "take", "gather", "index", "copy", "diagonal")
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": lambda c, x: -x,
    "floor": lambda c, x: ratio(c._floor(x)),
    "ceil": lambda c, x: ratio(-D.floordiv(-ratio(x).num, ratio(x).den)),
    "trunc": lambda c, x: ratio(c._trunc(x)),
    "abs": lambda c, x: c._not_negative(x) or x,
}


def _div(c: Contents, a: Any, b: Any) -> Any:
    if isinstance(a, (Ratio, float)) or isinstance(b, (Ratio, float)):
        return ratio(a) / b
    raise Unknown


def _add(c: Contents, a: Any, b: Any) -> Any:
    return ratio(a) + b if isinstance(a, (Ratio, float)) or isinstance(b, (Ratio, float)) else a + b


def _sub(c: Contents, a: Any, b: Any) -> Any:
    return ratio(a) - b if isinstance(a, (Ratio, float)) or isinstance(b, (Ratio, float)) else a - b


def _mul(c: Contents, a: Any, b: Any) -> Any:
    return ratio(a) * b if isinstance(a, (Ratio, float)) or isinstance(b, (Ratio, float)) else a * b


_BINARY: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "floor_div": lambda c, a, b: D.floordiv(_whole(a), _whole(b)),
    "trunc_div": Contents._trunc_div,
    "remainder": lambda c, a, b: D.mod(_whole(a), _whole(b)),
    "fmod": lambda c, a, b: c._not_negative(a) or c._not_negative(b) or D.mod(_whole(a), _whole(b)),
    "maximum": Contents._most,
    "minimum": Contents._least,
    **{op: (lambda c, a, b, op=op: c._compare(op, a, b)) for op in ("lt", "le", "gt", "ge", "eq", "ne")},
}

__all__ = ["Contents", "Ratio", "Unknown", "ratio"]
