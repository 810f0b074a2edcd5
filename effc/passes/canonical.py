"""Canonical forms: exact algebraic identities, conversions and views.

"Exact" means equal results bit for bit, except that a zero may change its sign where said.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..ir import dims
from ..ir.dtypes import DType
from ..ir.graph import Builder, Node, Value
from ..ir.op import broadcast_shapes, get
from ..ir.ops import elementwise
from .masks import ends
from .rewrite import Const, Match, P, Rewrite, Rule, Uniform, Var, const, fit, is_one, scalar, uniform

X, Y = Var("x"), Var("y")


# Identities of arithmetic ---------------------------------------------------------------------------------------------

# op -> the right operand c for which op(x, c) == x, per kind of dtype (float, complex, int, bool)
NEUTRAL: dict[str, dict[str, Any]] = {
    "add": {"f": -0.0, "i": 0},
    "sub": {"f": 0.0, "i": 0},
    "mul": {"f": 1.0, "i": 1, "b": True},
    "div": {"f": 1.0},
    "pow": {"f": 1.0, "i": 1},
    "maximum": {"f": -math.inf, "b": False},
    "minimum": {"f": math.inf, "b": True},
    "floor_div": {"i": 1},
    "trunc_div": {"i": 1},
    "logical_and": {"b": True},
    "logical_or": {"b": False},
    "logical_xor": {"b": False},
    "bitwise_and": {"i": -1, "b": True},
    "bitwise_or": {"i": 0, "b": False},
    "bitwise_xor": {"i": 0, "b": False},
    "shl": {"i": 0},
    "shr": {"i": 0},
}
# op -> the operand c for which op(x, c) == c
ABSORBING: dict[str, dict[str, Any]] = {
    "mul": {"i": 0, "b": False},
    "logical_and": {"b": False},
    "logical_or": {"b": True},
    "bitwise_and": {"i": 0, "b": False},
    "bitwise_or": {"b": True},
}


def _is(u: Any, table: dict[str, Any]) -> bool:
    """The scalar ``u`` is the table's entry for its kind, the sign of zero included."""
    kind = elementwise.kind(DType.from_np(np.asarray(u).dtype))
    if kind not in table:
        return False
    want = np.asarray(table[kind] if kind != "i" or table[kind] >= 0 else ~np.zeros((), np.asarray(u).dtype))
    want = want.astype(np.asarray(u).dtype)
    return bool(np.asarray(u).tobytes() == want.tobytes())


class Neutral(Rule):
    """x op c -> x."""

    name = "neutral"
    pattern = P(" ".join(NEUTRAL), X, Uniform("c"))

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        if not _is(uniform(m["c"]), NEUTRAL[m.root.op]):
            return None
        return fit(b, m["x"], m.root.types[0])


class AddZero(Rule):
    """x + 0.0 -> x where x is known not to be -0.0 (otherwise -0.0 + 0.0 gives +0.0)."""

    name = "add_zero"
    pattern = P("add", X, Uniform("c", lambda u: u.dtype.kind != "c" and u == 0 and not np.signbit(np.float64(u))))

    def check(self, m: Match) -> str | None:
        return None if not m["x"].dtype.is_float or nonnegative(m["x"]) else "x may be -0.0, and -0.0 + 0.0 is 0.0"

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        return fit(b, m["x"], m.root.types[0])


class Absorb(Rule):
    """x op c -> c."""

    name = "absorb"
    pattern = P(" ".join(ABSORBING), X, Uniform("c"))

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        u = uniform(m["c"])
        if not _is(u, ABSORBING[m.root.op]) or m["c"].dtype is not m.root.types[0].dtype:
            return None
        t = m.root.types[0]
        out: Value = b.op("full", value=u.item(), shape=t.shape, dtype=t.dtype)
        return out


class Involution(Rule):
    """neg(neg(x)) and the like -> x."""

    name = "involution"
    pattern = P("neg bitwise_not conj logical_not", P("neg bitwise_not conj logical_not", X, name="inner"))

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        if m.node("inner").op != m.root.op or m["x"].dtype is not m.root.types[0].dtype:
            return None
        return m["x"]


class Idempotent(Rule):
    """floor(floor(x)) -> floor(x); the same for rounding, abs, sign."""

    name = "idempotent"
    pattern = P("floor ceil round trunc", P("floor ceil round trunc", name="inner"))

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        return m["inner"]


class AbsAbs(Rule):
    """abs of what is never negative -> itself (abs(-0.0), which nothing here gives, aside)."""

    name = "abs"
    pattern = P("abs", P("abs exp exp2 sigmoid", Var("x", lambda v: not v.dtype.is_complex), name="inner"))

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        return m["inner"]


class NegIntoAdd(Rule):
    """x + (-y) -> x - y, x - (-y) -> x + y."""

    name = "neg_into_add"
    pattern = P("add sub", X, P("neg", Y))

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        out: Value = b.op("sub" if m.root.op == "add" else "add", m["x"], m["y"])
        return out


class ConstantRight(Rule):
    """c op x -> x op c for commutative ops."""

    name = "constant_right"
    pattern = P(
        "add mul maximum minimum eq ne logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor", name="r"
    )

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        x, y = m.root.inputs
        if const(x) is None or const(y) is not None or y is None:
            return None
        out: Value = b.op(m.root.op, y, x)
        return out


def _power_of_two(a: np.ndarray[Any, Any]) -> bool:
    """Every element is a power of two (or its negative) with a normal reciprocal, so that x / c == x * (1/c)."""
    if (a.dtype.kind != "f" and a.dtype.name not in ("bfloat16",)) or a.size == 0:
        return False
    wide = a.astype(np.float64)
    if not np.all(np.isfinite(wide)) or np.any(wide == 0):
        return False
    mantissa, _ = np.frexp(wide)
    back = (1 / wide).astype(a.dtype).astype(np.float64)
    tiny = 2.0**-14 if a.dtype == np.float16 else 2.0**-126 if a.dtype != np.float64 else 2.0**-1022
    return bool(np.all(np.abs(mantissa) == 0.5) and np.all(back == 1 / wide) and np.all(np.abs(back) >= tiny))


class DivByPowerOfTwo(Rule):
    """x / c -> x * (1/c) for powers of two."""

    name = "div_by_power_of_two"
    pattern = P("div", X, Const("c"))

    def check(self, m: Match) -> str | None:
        c = const(m["c"])
        assert c is not None
        return None if _power_of_two(c) else "the divisor is no power of two; its reciprocal would round"

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        c = const(m["c"])
        assert c is not None
        inverse = (1 / c.astype(np.float64)).astype(c.dtype)
        out: Value = b.op("mul", m["x"], b.constant(inverse, m["c"].dtype))
        return out


def nonnegative(v: Value, depth: int = 6) -> bool:
    """True when no element of ``v`` can be negative or -0.0 (NaN is possible)."""
    n = v.node
    if depth == 0 or not v.dtype.is_float:
        return False
    if n.op in ("abs", "exp", "exp2", "sigmoid"):
        return True
    if n.op == "mul":
        return n.inputs[0] == n.inputs[1] or all(nonnegative(x, depth - 1) for x in n.operands)
    if n.op in ("add", "div", "minimum", "sqrt", "reshape", "permute", "slice", "broadcast_to", "concat"):
        return all(nonnegative(x, depth - 1) for x in n.operands)
    if n.op == "maximum":
        return any(nonnegative(x, depth - 1) and _positive(x) for x in n.operands)
    if n.op == "reduce" and n.attrs["kind"] in ("sum", "max", "min", "prod"):
        return nonnegative(n.operands[0], depth - 1)
    a = const(v)
    return a is not None and a.size <= 4096 and not np.any(np.signbit(a.astype(np.float64)))


def _positive(v: Value) -> bool:
    a = const(v)
    return a is not None and a.size <= 4096 and bool(np.all(a > 0))


class CompareEnds(Rule):
    """A comparison of integers that holds for all of them, or for none, such as positions >= 0."""

    name = "compare_ends"
    pattern = P("lt le gt ge", Var("x", lambda v: v.dtype.is_int), Uniform("c", lambda u: u.dtype.kind == "i"))

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        low, high = ends(m["x"])
        c, op = int(uniform(m["c"])), m.root.op
        more = op in ("gt", "ge")
        if isinstance(low, int) and (low > c or (low == c and op in ("ge", "lt"))):
            value = more
        elif isinstance(high, int) and (high < c or (high == c and op in ("le", "gt"))):
            value = not more
        else:
            return None
        t = m.root.types[0]
        out: Value = b.op("full", value=value, shape=t.shape, dtype=t.dtype)
        return out


class PowConst(Rule):
    """pow with a constant exponent as products, a reciprocal or a root."""

    name = "pow"
    pattern = P("pow", X, Uniform("c"))

    def check(self, m: Match) -> str | None:
        c = float(np.real(uniform(m["c"])))
        if c not in (2, 3, 0.5, -0.5, -1) or m["c"].dtype.is_complex:
            return "the exponent has no exact form"
        if m["x"].dtype.is_int and c not in (2, 3):
            return "an integer power"
        if c in (0.5, -0.5) and not nonnegative(m["x"]):
            return "the base may be negative: a root would give NaN where pow(-inf, 0.5) is inf"
        return None

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        x, c = m["x"], float(uniform(m["c"]))
        if c in (2, 3):
            square: Value = b.op("mul", x, x)
            x = b.op("mul", square, x) if c == 3 else square
        else:
            x = b.op({0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}[c], x)
        return fit(b, x, m.root.types[0])


class WhereConst(Rule):
    """where over a constant condition, or with equal branches."""

    name = "where"
    pattern = P("where", Var("c"), X, Y)

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        t = m.root.types[0]
        if m["x"] == m["y"]:
            return fit(b, m["x"], t)
        u = uniform(m["c"])
        if u is not None:
            return fit(b, m["x"] if u else m["y"], t)
        if m.node("c").op == "logical_not" and (inner := m.node("c").operands[0]).dtype.is_bool:
            out: Value = b.op("where", inner, m["y"], m["x"])
            return out
        return None


# Conversions ----------------------------------------------------------------------------------------------------------

_BITS = {
    DType.f8e4m3: (3, 4),
    DType.f8e5m2: (2, 5),
    DType.f16: (10, 5),
    DType.bf16: (7, 8),
    DType.f32: (23, 8),
    DType.f64: (52, 11),
}


def lossless(a: DType, b: DType) -> bool:
    """Every value of ``a`` has exactly one counterpart in ``b``, so that a -> b -> c is a -> c."""
    if a is b:
        return True
    if b.is_bool:
        return False
    if a.is_complex:
        return b.is_complex and lossless(a.real, b.real)
    if b.is_complex:
        return lossless(a, b.real)
    if a.is_storage or b.is_storage:
        return a.bits <= 8 and _keeps_values(a, b)
    if a.is_bool:
        return True
    if a.is_float:
        return b.is_float and _BITS[a][0] <= _BITS[b][0] and _BITS[a][1] <= _BITS[b][1]
    bits = a.bits - a.is_signed
    if b.is_int:
        return (b.is_signed or not a.is_signed) and bits <= b.bits - b.is_signed
    # the exponent's range must do as well: f16 ends at 65504
    mantissa, exponent = _BITS[b]
    return bits <= mantissa + 1 and bits < int(2 ** (exponent - 1))


@functools.cache
def _keeps_values(a: DType, b: DType) -> bool:
    """Whether every value of ``a``, of 8 bits or less, is one of ``b``: the same number with the same sign, or NaN."""
    convert = get("convert").numpy
    assert convert is not None
    values = np.arange(2**a.bits).astype(np.uint8).view(a.np)
    was, is_ = convert(values, dtype=DType.f64), convert(convert(values, dtype=b), dtype=DType.f64)
    signs = (np.signbit(was) == np.signbit(is_)) | np.isnan(was)
    return bool(np.array_equal(was, is_, equal_nan=True) and np.all(signs))


class Convert(Rule):
    """convert to the same dtype -> x; convert(convert(x)) -> one conversion where the inner one loses nothing."""

    name = "convert"
    pattern = P("convert", X)

    def check(self, m: Match) -> str | None:
        inner = m.node("x")
        if m.root.attrs["dtype"] is m["x"].dtype or inner.op != "convert":
            return None
        return None if lossless(inner.operands[0].dtype, m["x"].dtype) else "the inner conversion loses values"

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        if m.root.attrs["dtype"] is m["x"].dtype:
            return m["x"]
        if m.node("x").op != "convert":
            return None
        source = m.node("x").operands[0]
        if source.dtype is m.root.attrs["dtype"]:
            return source
        out: Value = b.op("convert", source, dtype=m.root.attrs["dtype"])
        return out


# Views ----------------------------------------------------------------------------------------------------------------


class Reshape(Rule):
    """reshape to the own shape -> x; reshape(reshape(x)) -> one reshape."""

    name = "reshape"
    pattern = P("reshape", X)

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        if m["x"].shape == m.root.types[0].shape:
            return m["x"]
        if m.node("x").op != "reshape":
            return None
        source = m.node("x").operands[0]
        if source.shape == m.root.types[0].shape:
            return source
        out: Value = b.op("reshape", source, shape=m.root.attrs["shape"])
        return out


class Permute(Rule):
    """permute by the identity -> x; permute(permute(x)) -> one permute; permute that moves only ones -> reshape."""

    name = "permute"
    pattern = P("permute", X)

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        order = m.root.attrs["dims"]
        if order == tuple(range(len(order))):
            return m["x"]
        out: Value
        moved = [d for d in order if not is_one(m["x"].shape[d])]
        if moved == sorted(moved):
            out = b.op("reshape", m["x"], shape=m.root.types[0].shape)
            return out
        if m.node("x").op == "permute":
            both = tuple(m.node("x").attrs["dims"][d] for d in order)
            if both == tuple(range(len(both))):
                return m.node("x").operands[0]
            out = b.op("permute", m.node("x").operands[0], dims=both)
            return out
        return None


class BroadcastTo(Rule):
    """broadcast_to the own shape -> x; of a broadcast -> one; that only adds leading ones -> reshape."""

    name = "broadcast_to"
    pattern = P("broadcast_to", X)

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        x, shape = m["x"], m.root.types[0].shape
        if x.shape == shape:
            return x
        out: Value
        lead = len(shape) - x.rank
        if x.shape == shape[lead:] and all(is_one(d) for d in shape[:lead]):
            out = b.op("reshape", x, shape=shape)
            return out
        if x.node.op == "broadcast_to":
            out = b.op("broadcast_to", x.node.operands[0], shape=shape)
            return out
        return None


class Slice(Rule):
    """slice of everything -> x; slice(slice(x)) -> one slice."""

    name = "slice"
    pattern = P("slice", X)

    def check(self, m: Match) -> str | None:
        inner = m.node("x")
        if inner.op != "slice" or _whole(m.root) or all(k == 1 for k in inner.attrs["steps"]):
            return None
        static = all(isinstance(d, int) for n in (inner, m.root) for key in ("starts", "stops") for d in n.attrs[key])
        return None if static else "symbolic bounds under a step"

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        if _whole(m.root):
            return m["x"]
        inner = m.node("x")
        if inner.op != "slice":
            return None
        starts, stops, steps = [], [], []
        for i in range(m["x"].rank):
            a1, k1 = inner.attrs["starts"][i], inner.attrs["steps"][i]
            a2, b2, k2 = (m.root.attrs[key][i] for key in ("starts", "stops", "steps"))
            size = m.root.types[0].shape[i]
            starts.append(a1 + a2 * k1)
            if k1 == 1:
                stops.append(a1 + b2)
            else:
                stops.append(starts[-1] + ((size - 1) * k1 * k2 + 1 if size else 0))
            steps.append(k1 * k2)
        if any(
            isinstance(s, int) and isinstance(d, int) and s > d
            for s, d in zip(stops, inner.operands[0].shape, strict=True)
        ):
            return None
        out: Value = b.op("slice", inner.operands[0], starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
        return out


def _whole(n: Node) -> bool:
    a = n.attrs
    whole = all(isinstance(s, int) and s == 0 for s in a["starts"]) and all(k == 1 for k in a["steps"])
    return bool(whole and tuple(a["stops"]) == n.operands[0].shape)


class SliceOfConcat(Rule):
    """A slice that lies within one operand of a concat -> a slice of that operand."""

    name = "slice_of_concat"
    pattern = P("slice", P("concat", name="c"))

    def check(self, m: Match) -> str | None:
        return None if self.find(m) else "the slice does not lie within one operand"

    def find(self, m: Match) -> tuple[Value, dims.Dim] | None:
        d = m.node("c").attrs["dim"]
        start, stop = m.root.attrs["starts"][d], m.root.attrs["stops"][d]
        at: dims.Dim = 0
        for v in m.node("c").operands:
            low, high = start - at, at + v.shape[d] - stop
            if isinstance(low, int) and isinstance(high, int) and low >= 0 and high >= 0:
                return v, at
            at = at + v.shape[d]
        return None

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        found = self.find(m)
        assert found is not None
        v, at = found
        d = m.node("c").attrs["dim"]
        starts, stops = list(m.root.attrs["starts"]), list(m.root.attrs["stops"])
        starts[d], stops[d] = starts[d] - at, stops[d] - at
        out: Value = b.op("slice", v, starts=tuple(starts), stops=tuple(stops), steps=m.root.attrs["steps"])
        return out


class Concat(Rule):
    """concat of one operand -> it; empty operands are dropped; concat within a concat along the same dim is
    flattened."""

    name = "concat"
    pattern = P("concat", name="r")

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        d = m.root.attrs["dim"]
        parts: list[Value] = []
        for v in m.root.operands:
            if v.node.op == "concat" and v.node.attrs["dim"] == d and m.single_use(v):
                parts += v.node.operands
            elif not (isinstance(v.shape[d], int) and v.shape[d] == 0):
                parts.append(v)
        if len(parts) == len(m.root.operands):
            return parts[0] if len(parts) == 1 else None
        if not parts:
            return m.root.operands[0]
        if len(parts) == 1:
            return parts[0]
        out: Value = b.op("concat", *parts, dim=d)
        return out


class Copy(Rule):
    """copy -> x: values are never written to, storage is the backend's business."""

    name = "copy"
    pattern = P("copy", X)

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        return m["x"]


class Flip(Rule):
    """flip of nothing or of dims of size 1 -> x; flip(flip(x)) along the same dims -> x."""

    name = "flip"
    pattern = P("flip", X)

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        along = {d for d in m.root.attrs["dims"] if not is_one(m["x"].shape[d])}
        if not along:
            return m["x"]
        if m.node("x").op == "flip" and {d for d in m.node("x").attrs["dims"] if not is_one(m["x"].shape[d])} == along:
            return m.node("x").operands[0]
        return None


class ReduceTrivial(Rule):
    """A reduction over dims of size 1, or over none -> reshape."""

    name = "reduce_trivial"
    pattern = P("reduce", X)

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        if m.root.attrs["kind"] in ("argmax", "argmin") or not all(
            is_one(m["x"].shape[d]) for d in m.root.attrs["dims"]
        ):
            return None
        if m["x"].shape == m.root.types[0].shape:
            return m["x"]
        out: Value = b.op("reshape", m["x"], shape=m.root.types[0].shape)
        return out


# Elementwise operands -------------------------------------------------------------------------------------------------


def _elementwise_ops() -> str:
    from ..ir.op import OPS

    get("add")
    return " ".join(sorted(n for n, d in OPS.items() if d.category == "elementwise" and len(d.operands) > 1))


class ImplicitBroadcast(Rule):
    """Elementwise ops broadcast by themselves: broadcast_to, full and uniform constants become small operands."""

    name = "implicit_broadcast"
    pattern = P(_elementwise_ops(), name="r")

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        ins: list[Value] = list(m.root.operands)
        changed = False
        for i, v in enumerate(ins):
            for small in self.smaller(b, v):
                shapes = [small.shape if j == i else u.shape for j, u in enumerate(ins)]
                if broadcast_shapes(*shapes) == m.root.types[0].shape:
                    ins[i], changed = small, True
                    break
        if not changed:
            return None
        out: Value = b.op(m.root.op, *ins, **m.root.attrs)
        return out

    def smaller(self, b: Builder, v: Value) -> list[Value]:
        n = v.node
        if n.op == "reshape":  # leading ones say nothing to broadcasting
            x = n.operands[0]
            lead = v.rank - x.rank
            if lead > 0 and all(is_one(d) for d in v.shape[:lead]) and v.shape[lead:] == x.shape:
                return [x]
        if n.op not in ("broadcast_to", "full", "constant"):
            return []
        if v.rank and (u := uniform(v)) is not None:
            return [scalar(b, u, v.dtype)]
        if n.op == "broadcast_to":
            return [n.operands[0]]
        return [n.operands[0]] if n.op == "full" and n.operands else []


class BroadcastOfUnary(Rule):
    """op(broadcast_to(x)) -> broadcast_to(op(x)): unary ops work on the small operand."""

    name = "broadcast_of_unary"
    pattern = P(
        " ".join("neg abs exp log sqrt rsqrt reciprocal tanh sigmoid sin cos convert logical_not floor erf".split()),
        P("broadcast_to", X),
    )

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        out: Value = b.op("broadcast_to", b.op(m.root.op, m["x"], **m.root.attrs), shape=m.root.types[0].shape)
        return out


RULES: tuple[Rule, ...] = (
    ImplicitBroadcast(), ConstantRight(), Neutral(), AddZero(), Absorb(), Involution(), Idempotent(), AbsAbs(),
    NegIntoAdd(), DivByPowerOfTwo(), CompareEnds(), PowConst(), WhereConst(), Convert(), Reshape(), Permute(),
    BroadcastTo(), Slice(), SliceOfConcat(), Concat(), Copy(), Flip(), ReduceTrivial(), BroadcastOfUnary(),
)  # fmt: skip


class Canonicalise(Rewrite):
    name = "canonicalise"

    def __init__(self, rules: tuple[Rule, ...] = RULES) -> None:
        super().__init__(rules)
