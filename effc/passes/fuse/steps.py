"""Epilogues that are no more than a bias, a residual and a clamp: kernels do those without generated code. A function
of one value may follow (an activation): generated, it runs in place on what a kernel has just made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...ir.graph import Builder, Graph, Node, Value
from .kinds import is_map


@dataclass(frozen=True)
class Steps:
    """What the kernel itself does after the sum: bias per channel, residual, clamp (Step in conv.hpp); then
    ``activation``, a body of one input and one output."""

    bias: Value | None = None
    residual: Value | None = None
    clamp: tuple[float, float] | None = None
    activation: Graph | None = None

    @property
    def bits(self) -> int:
        kernel = (self.bias is not None) + 2 * (self.residual is not None) + 4 * (self.clamp is not None)
        return kernel + 8 * (self.activation is not None)


def _scalar(v: Value) -> float | None:
    if v.node.op == "constant" and v.node.attrs["data"].size == 1:
        return float(v.node.attrs["data"].reshape(-1)[0])
    return None


def _activation(body: Graph, value: Value, rest: Sequence[Node]) -> Graph | None:
    """``rest`` of the body's nodes as a function of ``value`` alone, else None."""
    b = Builder()
    env = {value: b.input("x", value.type)}
    for n in body.nodes:
        if n.op == "constant" and n.attrs["data"].size == 1:
            b.nodes.append(n)
            env[n[0]] = n[0]
    for n in rest:
        if not is_map(n) or len(n.types) != 1 or any(v is None or v not in env for v in n.inputs):
            return None
        made = replace(n, inputs=tuple(None if v is None else env[v] for v in n.inputs))
        b.nodes.append(made)
        env[n[0]] = made[0]
    return b.graph([env[body.outputs[0]]])


def steps_of(body: Graph, operands: Sequence[Value], *, activations: bool = False) -> Steps | None:
    """``body`` as steps: acc, plus at most one operand per channel and one of the result's shape, then limits; with
    ``activations`` then a function of what that is; else None.

    ``operands``: the fused node's extra operands, in the order of the body's inputs after the accumulator."""
    acc = body.inputs[0][0]
    full = acc.type
    if len(body.outputs) != 1 or body.outputs[0].type != full:
        return None
    outer = {n[0]: v for n, v in zip(body.inputs[1:], operands, strict=True)}
    nodes = [n for n in body.nodes if n.op != "constant"]
    found, value = Steps(), acc
    reached = [(found, value, 0)]  # after each step
    for i, n in enumerate(nodes):
        step = _step(n, value, found, outer)
        if step is None:
            break
        found, value = step, n[0]
        reached.append((found, value, i + 1))
    if value == body.outputs[0]:
        return found
    while activations and reached:  # a value that is read once more can be no step
        found, value, at = reached.pop()
        if (rest := _activation(body, value, nodes[at:])) is not None:
            return replace(found, activation=rest)
    return None


def _step(n: Node, value: Value, before: Steps, outer: Mapping[Value, Value]) -> Steps | None:
    """``before`` and what ``n`` does to ``value``, or None where that is no step."""
    full = value.type
    if len(n.operands) != 2 or value not in n.operands or n[0].type != full:
        return None
    other = n.operands[1] if n.operands[0] == value else n.operands[0]
    limit = _scalar(other)
    lo, hi = before.clamp or (-math.inf, math.inf)
    if n.op == "add" and other in outer and before.clamp is None:
        shape = (1,) * (full.rank - other.type.rank) + other.type.shape
        per_channel = all(d == 1 for i, d in enumerate(shape) if i != 1) and shape[1] == full.shape[1]
        if before.bias is None and per_channel:
            return replace(before, bias=outer[other])
        if before.residual is None and shape == full.shape:
            return replace(before, residual=outer[other])
    elif n.op == "maximum" and limit is not None and limit <= hi:
        return replace(before, clamp=(max(lo, limit), hi))
    elif n.op == "minimum" and limit is not None and limit >= lo:
        return replace(before, clamp=(lo, min(hi, limit)))
    return None
