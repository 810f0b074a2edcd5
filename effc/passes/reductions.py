"""Reductions of reductions become one: a mean over columns and then over rows is a mean over both.

The inner result is not written and read again, and a loop over one pixel's neighbours in memory is not cut into short
ones. Sums are added in another order: exact for integers, maxima and minima; for f32 and f64 as close as any order is,
while sums of all elements stay below the dtype's largest number (a mean over both dims at once has that limit, too).
"""

from __future__ import annotations

import math

from ..ir.graph import Builder, Value
from .rewrite import Match, P, Rewrite, Rule, Var, scalar, uniform

_X = Var("x", lambda v: v.node.op in ("reduce", "div", "mul"))


def _scaled(v: Value) -> tuple[Value, Value | None]:
    """A reduction and the operand that its result is multiplied with or divided by (or None)."""
    if v.node.op in ("div", "mul") and len(v.node.operands) == 2:
        return v.node.operands[0], v.node.operands[1]
    return v, None


class MergeReductions(Rule):
    """reduce(reduce(x)) -> reduce(x); of sums also with a number between: sum(sum(x) / c) -> sum(x) / c."""

    name = "merged"
    pattern = P("reduce", _X)

    def check(self, m: Match) -> str | None:
        inner, scale = _scaled(m["x"])
        kind = m.root.attrs["kind"]
        if inner.node.op != "reduce" or inner.node.attrs["kind"] != kind or inner.dtype != m["x"].dtype:
            return None  # no candidate: rewrite leaves it
        if not (m.single_use(inner) and m.single_use(m["x"])):
            return "the inner reduction's result is used elsewhere, too"
        if kind not in ("sum", "max", "min"):
            return f"{kind} of {kind}"
        if kind == "sum" and inner.dtype.is_float and inner.dtype.compute is not inner.dtype:
            return f"a sum of {inner.dtype} is rounded before it is summed again"
        if scale is None:
            return None
        c = uniform(scale)
        if kind != "sum" or not inner.dtype.is_float or inner.shape != m["x"].shape:
            return "what is between two reductions is no scale of a sum of floats"
        if c is None or not math.isfinite(c) or c == 0:
            return "the scale between two sums is no known number"
        return None

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        inner, scale = _scaled(m["x"])
        n = inner.node
        if n.op != "reduce" or n.attrs["kind"] != m.root.attrs["kind"] or inner.dtype != m["x"].dtype:
            return None
        x = n.operands[0]
        first, keep = n.attrs["dims"], n.attrs["keepdims"]
        left = [d for d in range(x.rank) if keep or d not in first]  # the dims of x that the outer one counts
        both = tuple(sorted({*first, *(left[d] for d in m.root.attrs["dims"])}))
        same = keep == m.root.attrs["keepdims"]
        out: Value = b.op("reduce", x, kind=n.attrs["kind"], dims=both, keepdims=keep and same)
        if scale is not None:
            out = b.op(m["x"].node.op, out, scalar(b, uniform(scale), out.dtype))
        if not same:
            out = b.op("reshape", out, shape=m.root.types[0].shape)
        return out


class Reductions(Rewrite):
    name = "reductions"

    def __init__(self) -> None:
        super().__init__((MergeReductions(),))
