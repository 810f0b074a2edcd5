"""Attention nodes that a frontend made: repeated key heads, causal masks and scales move into the op."""

from __future__ import annotations

import math
from typing import Any

from ..ir.graph import Builder, Value
from ..runtime.errors import EffcError
from . import attention as spelled
from .rewrite import Match, P, Rewrite, Rule


def _again(b: Builder, m: Match, q: Value, k: Value, v: Value, mask: Value | None, **attrs: Any) -> Value | None:
    try:
        out: Value = b.op(
            "attention", q, k, v, *([] if mask is None else [mask]), name=m.root.name, **{**m.root.attrs, **attrs}
        )
    except EffcError:
        return None
    return out


def _operands(m: Match) -> tuple[Value, Value, Value, Value | None]:
    q, k, v = m.root.operands[:3]
    return q, k, v, m.root.inputs[3] if len(m.root.inputs) > 3 else None


class Ungroup(Rule):
    """attention(q, repeat(k), repeat(v)) -> attention(q, k, v): heads are grouped by the op."""

    name = "ungroup"
    pattern = P("attention")

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        q, k, v, mask = _operands(m)
        x, y = spelled.ungrouped(b, k, v)
        return None if x is k else _again(b, m, q, x, y, mask)


class CausalMask(Rule):
    """A mask that is a comparison of positions, or a conjunction with one -> causal."""

    name = "causal_mask"
    pattern = P("attention")

    def check(self, m: Match) -> str | None:
        mask = _operands(m)[3]
        if mask is None or m.root.attrs["causal"]:
            return None
        return None if mask.dtype.is_bool or mask.dtype.is_float else "the mask is neither bool nor float"

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        q, k, v, mask = _operands(m)
        if mask is None or m.root.attrs["causal"]:
            return None
        rest, offset = spelled.without_causal(b, mask, q, k)
        return None if offset is None else _again(b, m, q, k, v, rest, causal=True, causal_offset=offset)


class ScaleOnOperand(Rule):
    """A constant factor on q or k -> scale."""

    name = "scale_on_operand"
    pattern = P("attention")

    def rewrite(self, b: Builder, m: Match) -> Value | None:
        q, k, v, mask = _operands(m)
        x, f = spelled.scaled(b, q)
        y, g = spelled.scaled(b, k)
        if f == 1.0 and g == 1.0:
            return None
        scale, e = m.root.attrs["scale"], q.shape[-1]
        if scale is None and not (isinstance(e, int) and e > 0):
            return None
        base = 1.0 / math.sqrt(e) if scale is None else scale
        return _again(b, m, x, y, v, mask, scale=base * f * g)


class RefineAttention(Rewrite):
    name = "refine_attention"

    def __init__(self) -> None:
        super().__init__((Ungroup(), CausalMask(), ScaleOnOperand()))
