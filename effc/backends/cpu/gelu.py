"""GELU in generated loops: x / 2 * (1 + erf(x / sqrt 2)), as frontends write it, by an approximation of the whole
function (kernels/math.hpp, ``Gelu``), in half the time of its parts."""

from __future__ import annotations

import numpy as np

from ...ir.dtypes import DType
from ...ir.graph import Graph, Node, Value
from .bytes import number, with_constant

ROOT = 0.5**0.5


def _near(value: float, wanted: float) -> bool:
    """Whether two roundings of one number are at most a float apart."""
    return bool(abs(np.float32(value) - np.float32(wanted)) <= np.spacing(np.float32(wanted)))


def _argument(v: Value) -> tuple[Value, Value] | None:
    """(x, erf + 1) where ``v`` is 1 + erf(x / sqrt 2)."""
    found = with_constant(v, "add")
    if found is None or found[1] != 1.0 or found[0].node.op != "erf":
        return None
    inner = found[0].node.operands[0]
    scaled = with_constant(inner, "mul")
    if scaled is not None:
        return (scaled[0], v) if _near(scaled[1], ROOT) else None
    if inner.node.op != "div" or inner.dtype is not DType.f32:
        return None
    divisor = number(inner.node.operands[1])
    return (inner.node.operands[0], v) if divisor is not None and _near(float(divisor), 1 / ROOT) else None


def gelu(n: Node) -> Value | None:
    """x if ``n`` is its GELU: the product of x, 1/2 and 1 + erf(x / sqrt 2), in any order."""
    if n.op != "mul" or n.types[0].dtype is not DType.f32:
        return None
    products = [n, *(v.node for v in n.operands if v.node.op == "mul")]
    found = next((f for m in products for v in m.operands if (f := _argument(v)) is not None), None)
    if found is None:
        return None
    x, factor = found

    def factors(v: Value) -> list[Value]:
        if v.node.op != "mul" or v in found:
            return [v]
        return [f for w in v.node.operands for f in factors(w)]

    rest = factors(n[0])
    for v in (x, factor):
        if v not in rest:
            return None
        rest.remove(v)
    return x if len(rest) == 1 and number(rest[0]) == 0.5 else None


def gelus(body: Graph) -> dict[Node, Value]:
    """Nodes that are a GELU, with what it is of."""
    return {n: x for n in body.nodes if (x := gelu(n)) is not None}
