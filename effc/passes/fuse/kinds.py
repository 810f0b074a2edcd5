"""What can be fused, and what it costs to compute a value again."""

from __future__ import annotations

from ...ir.graph import Node, Value
from ...ir.op import get

REDUCTIONS = frozenset({"sum", "prod", "max", "min", "any", "all"})

# Ops that cost so much more than a load that computing them again per broadcast element never pays.
DEAR = frozenset(
    (
        "exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf "
        "erfc erfinv lgamma digamma sigmoid pow atan2 hypot div floor_div trunc_div remainder fmod sqrt rsqrt "
        "reciprocal gcd lcm nextafter sgn angle cabs logaddexp "
    ).split()
)


def is_map(n: Node) -> bool:
    """One result element from the operands' elements at the same place."""
    if n.op in ("real", "imag"):
        return True
    return n.op not in ("input",) and get(n.op).category == "elementwise"


def is_reduction(n: Node) -> bool:
    return n.op == "reduce" and n.attrs["kind"] in REDUCTIONS and len(n.attrs["dims"]) > 0


def fusible(n: Node) -> bool:
    return is_map(n) or is_reduction(n)


def is_scalar(v: Value) -> bool:
    """A value that a region's body holds itself: a constant of one element, or a size."""
    return v.node.op == "dim_value" or (v.node.op == "constant" and v.node.attrs["data"].size == 1)
