"""A softmax written in halves is computed in f32 and rounded once: exp, sum and quotient stay unrounded.

Frameworks define softmax of f16 and bf16 so; ONNX defines it by a function whose steps are each rounded. A kernel needs
no roundings between, and attention is recognised in one form only.
"""

from __future__ import annotations

from ..ir.graph import Builder, Value
from .rewrite import Match, P, Rewrite, Rule, Var

_HALF = Var("d", lambda v: v.dtype.is_float and v.dtype.compute is not v.dtype)


def _reduced(v: Value, kind: str, of: Value) -> list[Value] | None:
    """The steps from ``of`` to ``v``: a reduction of this kind, then views that give its dims back. None: not so."""
    steps = [v]
    while v.node.op in ("reshape", "broadcast_to"):
        v = v.node.operands[0]
        steps.append(v)
    if v.node.op != "reduce" or v.node.attrs["kind"] != kind or v.node.operands[0] != of:
        return None
    return steps[::-1]


def _again(b: Builder, steps: list[Value], x: Value) -> Value:
    """The same steps from ``x``."""
    for s in steps:
        x = b.op(s.node.op, x, **s.node.attrs)
    return x


class SoftmaxOfHalves(Rule):
    """exp(d) / sum(exp(d)) in halves; d = x - max(x) is not rounded either."""

    name = "of_halves"
    pattern = P("div", P("exp", _HALF, name="e"), Var("total"))

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        d = m["d"]
        sums = _reduced(m["total"], "sum", m["e"])
        if sums is None:
            return None
        centred = _reduced(d.node.operands[1], "max", d.node.operands[0]) if d.node.op == "sub" else None
        wide = b.op("convert", d if centred is None else d.node.operands[0], dtype=d.dtype.compute)
        if centred is not None:
            wide = b.op("sub", wide, _again(b, centred, wide))
        e = b.op("exp", wide)
        out: Value = b.op("convert", b.op("div", e, _again(b, sums, e)), dtype=m.root.types[0].dtype)
        return out


class RaiseSoftmax(Rewrite):
    name = "softmax"

    def __init__(self) -> None:
        super().__init__((SoftmaxOfHalves(),))
