"""Symbolic dimensions: integers and canonical polynomials over named symbols.

A dimension is a Python ``int`` or a :class:`SymExpr`. A SymExpr is a sum of monomials with integer coefficients; the
factors of a monomial are atoms: a :class:`Symbol`, or one of ``//``, ``%``, ``max``, ``min`` over two dims. Because the
form is canonical, ``==`` on expressions means equal for all values whenever the difference expands to zero.
Division and modulo floor, as in Python.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from typing import Union

Dim = Union[int, "SymExpr"]
Bounds = tuple[int, int | None]  # inclusive; None: unbounded above


class Symbol:
    """A named size."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def key(self) -> tuple[object, ...]:
        return ("s", self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Symbol) and other.name == self.name

    def __hash__(self) -> int:
        return hash(("s", self.name))

    def __str__(self) -> str:
        return self.name


class Apply:
    """``op(lhs, rhs)`` for op in ``//``, ``%``, ``max``, ``min``: an opaque factor of a monomial."""

    __slots__ = ("_hash", "lhs", "op", "rhs")

    def __init__(self, op: str, lhs: Dim, rhs: Dim) -> None:
        self.op, self.lhs, self.rhs = op, lhs, rhs
        self._hash = hash((op, lhs, rhs))

    def key(self) -> tuple[object, ...]:
        return ("z", self.op, str(self.lhs), str(self.rhs))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Apply) and (self.op, self.lhs, self.rhs) == (other.op, other.lhs, other.rhs)

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        if self.op in ("max", "min"):
            return f"{self.op}({self.lhs}, {self.rhs})"
        return f"({self.lhs}){self.op}({self.rhs})"


Atom = Symbol | Apply
Monomial = tuple[Atom, ...]  # sorted; repeated for powers; () is the constant term


class SymExpr:
    """A canonical integer expression that is not a constant."""

    __slots__ = ("_hash", "_names", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._names: frozenset[str] | None = None  # asked for again and again by the memory planner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymExpr) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim) -> Dim:
        return _combine(self, other, 1)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _make({m: -c for m, c in self.terms})

    def __sub__(self, other: Dim) -> Dim:
        return _combine(self, other, -1)

    def __rsub__(self, other: Dim) -> Dim:
        return (-self) + other

    def __mul__(self, other: Dim) -> Dim:
        out: dict[Monomial, int] = {}
        for m, c in self.terms:
            for m2, c2 in _terms(other):
                key = tuple(sorted(m + m2, key=lambda a: str(a.key())))
                out[key] = out.get(key, 0) + c * c2
        return _make(out)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return mod(other, self)

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of symbolic dim {self} is not known at compile time")

    def __index__(self) -> int:
        raise TypeError(f"symbolic dim {self} used where a constant is needed")

    def __str__(self) -> str:
        parts: list[str] = []
        for m, c in self.terms:
            body = "*".join(map(str, m))
            if not m:
                text = str(abs(c))
            elif abs(c) == 1:
                text = body
            else:
                text = f"{abs(c)}*{body}"
            sign = "-" if c < 0 else ("+" if parts else "")
            parts.append(sign + text)
        return "".join(parts)

    __repr__ = __str__


def _terms(d: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(d, SymExpr):
        return d.terms
    return (((), int(d)),) if d else ()


def _make(terms: Mapping[Monomial, int]) -> Dim:
    live = [(m, c) for m, c in terms.items() if c]
    if not live:
        return 0
    if len(live) == 1 and not live[0][0]:
        return live[0][1]
    live.sort(key=lambda t: (not t[0], [str(a.key()) for a in t[0]]))
    return SymExpr(tuple(live))


def _combine(a: Dim, b: Dim, sign: int) -> Dim:
    out = dict(_terms(a))
    for m, c in _terms(b):
        out[m] = out.get(m, 0) + sign * c
    return _make(out)


def symbol(name: str) -> SymExpr:
    """The dim that is the symbol of this name."""
    return SymExpr((((Symbol(name),), 1),))


def exact_div(a: Dim, b: Dim) -> Dim | None:
    """a / b when it divides for all values by form alone, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    bt = _terms(b)
    if len(bt) != 1:
        return 1 if a == b else None
    bm, bc = bt[0]
    out: dict[Monomial, int] = {}
    for m, c in _terms(a):
        rest = list(m)
        for atom in bm:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % bc:
            return None
        out[tuple(rest)] = c // bc
    return _make(out)


def floordiv(a: Dim, b: Dim) -> Dim:
    """Floor division; ZeroDivisionError for a constant zero divisor."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if isinstance(b, int):
        if b == 0:
            raise ZeroDivisionError("symbolic dim divided by zero")
        if b == 1:
            return a
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    if isinstance(b, int) and b > 0:  # (q*b + r) // b == q + r // b
        whole = {m: c // b for m, c in _terms(a) if c % b == 0}
        rest = _make({m: c for m, c in _terms(a) if c % b})
        if whole:
            return _make(whole) + floordiv(rest, b)
        if isinstance(rest, SymExpr) and len(rest.terms) == 1 and len(rest.terms[0][0]) == 1 and rest.terms[0][1] == 1:
            atom = rest.terms[0][0][0]  # (x // c) // b == x // (c*b)
            if isinstance(atom, Apply) and atom.op == "//" and isinstance(atom.rhs, int) and atom.rhs > 0:
                return floordiv(atom.lhs, atom.rhs * b)
    return SymExpr((((Apply("//", a, b),), 1),))


def mod(a: Dim, b: Dim) -> Dim:
    """a - b*floor(a/b)."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if b == 1 or exact_div(a, b) is not None:
        return 0
    if isinstance(b, int) and b > 0:
        rest = _make({m: c % b for m, c in _terms(a)})
        if isinstance(rest, int):
            return rest % b
        a = rest
    return SymExpr((((Apply("%", a, b),), 1),))


def ceildiv(a: Dim, b: Dim) -> Dim:
    return -floordiv(-a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    diff = a - b
    if isinstance(diff, int):
        return a if diff >= 0 else b
    a, b = sorted((a, b), key=str)
    return SymExpr((((Apply("max", a, b),), 1),))


def minimum(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    diff = a - b
    if isinstance(diff, int):
        return b if diff >= 0 else a
    a, b = sorted((a, b), key=str)
    return SymExpr((((Apply("min", a, b),), 1),))


def product(items: Iterable[Dim]) -> Dim:
    out: Dim = 1
    for d in items:
        out = out * d
    return out


def is_static(d: Dim) -> bool:
    return isinstance(d, int)


def evaluate(d: Dim, env: Mapping[str, int]) -> int:
    """The value under ``env`` (symbol name -> size); KeyError names a symbol without a value."""
    if isinstance(d, int):
        return d
    total = 0
    for m, c in d.terms:
        for atom in m:
            c *= (
                env[atom.name]
                if isinstance(atom, Symbol)
                else _apply(atom.op, evaluate(atom.lhs, env), evaluate(atom.rhs, env))
            )
        total += c
    return total


def _apply(op: str, a: int, b: int) -> int:
    if op == "//":
        return a // b
    if op == "%":
        return a % b
    return max(a, b) if op == "max" else min(a, b)


def substitute(d: Dim, env: Mapping[str, Dim]) -> Dim:
    """Replaces symbols by dims."""
    if isinstance(d, int):
        return d
    total: Dim = 0
    for m, c in d.terms:
        term: Dim = c
        for atom in m:
            if isinstance(atom, Symbol):
                factor: Dim = env.get(atom.name, symbol(atom.name))
            else:
                factor = apply(atom.op, substitute(atom.lhs, env), substitute(atom.rhs, env))
            term = term * factor
        total = total + term
    return total


def apply(op: str, a: Dim, b: Dim) -> Dim:
    """Builds ``a op b`` for any operator of the artifact's DIM form."""
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    return {"//": floordiv, "%": mod, "max": maximum, "min": minimum}[op](a, b)


NO_NAMES: frozenset[str] = frozenset()


def symbols(d: Dim) -> frozenset[str]:
    """Names of the symbols in d."""
    if isinstance(d, int):
        return NO_NAMES
    if d._names is None:
        out: set[str] = set()
        for m, _ in d.terms:
            for atom in m:
                out |= {atom.name} if isinstance(atom, Symbol) else symbols(atom.lhs) | symbols(atom.rhs)
        d._names = frozenset(out)
    return d._names


def bounds(d: Dim, ranges: Mapping[str, Bounds]) -> tuple[float, float]:
    """Interval of d's values by interval arithmetic (inf for unbounded); symbols without a range are in [0, inf)."""
    if isinstance(d, int):
        return d, d
    lo_sum, hi_sum = 0.0, 0.0
    for m, c in d.terms:
        lo, hi = float(c), float(c)
        for atom in m:
            alo, ahi = _atom_bounds(atom, ranges)
            corners = [_mul(x, y) for x in (lo, hi) for y in (alo, ahi)]
            lo, hi = min(corners), max(corners)
        lo_sum, hi_sum = lo_sum + lo, hi_sum + hi
    return lo_sum, hi_sum


def _mul(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def _atom_bounds(atom: Atom, ranges: Mapping[str, Bounds]) -> tuple[float, float]:
    if isinstance(atom, Symbol):
        lo, hi = ranges.get(atom.name, (0, None))
        return lo, math.inf if hi is None else hi
    (alo, ahi), (blo, bhi) = bounds(atom.lhs, ranges), bounds(atom.rhs, ranges)
    if atom.op == "max":
        return max(alo, blo), max(ahi, bhi)
    if atom.op == "min":
        return min(alo, blo), min(ahi, bhi)
    if atom.op == "%":
        return (0, min(bhi - 1, ahi) if alo >= 0 else bhi - 1) if blo > 0 else (-math.inf, math.inf)
    if blo > 0:
        q = [_floor(x, y) for x in (alo, ahi) for y in (blo, bhi)]
        return min(q), max(q)
    return -math.inf, math.inf


def _floor(x: float, y: float) -> float:
    if math.isinf(x):
        return x
    if math.isinf(y):
        return 0.0 if x >= 0 else -1.0
    return math.floor(x / y)


def to_json(d: Dim) -> object:
    """The artifact's DIM form (see docs/architecture.md)."""
    if isinstance(d, int):
        return d
    total: object = None
    for m, c in d.terms:
        term: object = None
        for atom in m:
            a: object = atom.name if isinstance(atom, Symbol) else [atom.op, to_json(atom.lhs), to_json(atom.rhs)]
            term = a if term is None else ["*", term, a]
        if term is None:
            term = c
        elif c != 1:
            term = ["*", c, term]
        total = term if total is None else ["+", total, term]
    return total


def from_json(j: object) -> Dim:
    if isinstance(j, bool) or not isinstance(j, (int, str, list)):
        raise ValueError(f"not a dim: {j!r}")
    if isinstance(j, int):
        return j
    if isinstance(j, str):
        return symbol(j)
    return apply(str(j[0]), from_json(j[1]), from_json(j[2]))


def parse(text: str) -> Dim:
    """Reads the text form: integers, names, + - * // %, max(a, b), min(a, b), parentheses."""
    return _from_ast(ast.parse(text, mode="eval").body)


_AST_OPS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}


def _from_ast(e: ast.expr) -> Dim:
    if isinstance(e, ast.Constant) and type(e.value) is int:
        return e.value
    if isinstance(e, ast.Name):
        return symbol(e.id)
    if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
        return -_from_ast(e.operand)
    if isinstance(e, ast.BinOp) and type(e.op) in _AST_OPS:
        return apply(_AST_OPS[type(e.op)], _from_ast(e.left), _from_ast(e.right))
    if isinstance(e, ast.Call) and isinstance(e.func, ast.Name) and e.func.id in ("max", "min") and len(e.args) == 2:
        return apply(e.func.id, _from_ast(e.args[0]), _from_ast(e.args[1]))
    raise ValueError(f"not a dim: {ast.unparse(e)}")
