"""Epilogues that are no more than a bias, a residual and a clamp: kernels do those without generated code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.graph import Graph, Value


@dataclass(frozen=True)
class Steps:
    """What the kernel itself does after the sum: bias per channel, residual, clamp (Step in conv.hpp)."""

    bias: Value | None = None
    residual: Value | None = None
    clamp: tuple[float, float] | None = None

    @property
    def bits(self) -> int:
        return (self.bias is not None) + 2 * (self.residual is not None) + 4 * (self.clamp is not None)


def _scalar(v: Value) -> float | None:
    if v.node.op == "constant" and v.node.attrs["data"].size == 1:
        return float(v.node.attrs["data"].reshape(-1)[0])
    return None


def steps_of(body: Graph, operands: Sequence[Value]) -> Steps | None:
    """``body`` as steps: acc, plus at most one operand per channel and one of the result's shape, then limits;
    else None.

    ``operands``: the fused node's extra operands, in the order of the body's inputs after the accumulator."""
    acc = body.inputs[0][0]
    full = acc.type
    if len(body.outputs) != 1 or body.outputs[0].type != full:
        return None
    outer = {n[0]: v for n, v in zip(body.inputs[1:], operands, strict=True)}
    bias: Value | None = None
    residual: Value | None = None
    lo, hi = -math.inf, math.inf
    clamped, value = False, acc
    for n in body.nodes:
        if n.op == "constant":
            continue
        if len(n.operands) != 2 or value not in n.operands or n[0].type != full:
            return None
        other = n.operands[1] if n.operands[0] == value else n.operands[0]
        limit = _scalar(other)
        if n.op == "add" and other in outer and not clamped:
            shape = (1,) * (full.rank - other.type.rank) + other.type.shape
            if bias is None and all(d == 1 for i, d in enumerate(shape) if i != 1) and shape[1] == full.shape[1]:
                bias = outer[other]
            elif residual is None and shape == full.shape:
                residual = outer[other]
            else:
                return None
        elif n.op == "maximum" and limit is not None and limit <= hi:
            lo, clamped = max(lo, limit), True
        elif n.op == "minimum" and limit is not None and limit >= lo:
            hi, clamped = min(hi, limit), True
        else:
            return None
        value = n[0]
    if value != body.outputs[0]:
        return None
    return Steps(bias, residual, (lo, hi) if clamped else None)
