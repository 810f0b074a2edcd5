"""Sigmoid in generated loops, as an op of its own or as frontends spell it, 1 / (1 + exp(-x)): one function whose
limits are set before the loop (kernels/math.hpp, ``Sigmoid``)."""

from __future__ import annotations

from ...ir.dtypes import DType
from ...ir.graph import Graph, Node, Value
from .bytes import number, with_constant


def _negated(v: Value) -> Value | None:
    """x where ``v`` is -x."""
    if v.node.op == "neg":
        return v.node.operands[0]
    found = with_constant(v, "mul")
    return found[0] if found is not None and found[1] == -1.0 else None


def _divisor(v: Value) -> Value | None:
    """x where ``v`` is 1 + exp(-x)."""
    found = with_constant(v, "add")
    if found is None or found[1] != 1.0 or found[0].node.op != "exp":
        return None
    return _negated(found[0].node.operands[0])


def sigmoid(n: Node) -> tuple[Value | None, Value] | None:
    """(a, x) where ``n`` is a * sigmoid(x), spelled as a quotient; a is None where it is 1, or ``n`` the op."""
    dtype = n.types[0].dtype
    if n.op == "sigmoid":
        return (None, n.operands[0]) if dtype.compute is DType.f32 else None
    if n.op not in ("div", "reciprocal") or dtype is not DType.f32:
        return None
    x = _divisor(n.operands[-1])
    if x is None:
        return None
    return (None if n.op == "reciprocal" or number(n.operands[0]) == 1.0 else n.operands[0], x)


def sigmoids(body: Graph) -> dict[Node, tuple[Value | None, Value]]:
    """Nodes that are a sigmoid or a product with one: the other factor, and what it is of."""
    return {n: found for n in body.nodes if (found := sigmoid(n)) is not None}
