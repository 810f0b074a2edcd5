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


LEAST_ROW = 16  # elements of a row from which on a lookup pays as part of a loop, which looks up once a row


def why_no_lookup(n: Node) -> str | None:
    """Why this ``take`` cannot be an operand that a region looks up while it runs, or None."""
    table, index = n.operands
    if is_scalar(table) or is_scalar(index):
        return "a lookup of a scalar"
    if n.attrs["dim"] == table.rank - 1:
        return "it takes elements, not rows"
    width = table.shape[-1]
    if not isinstance(width, int):
        return "it takes rows of no constant length"
    return None if width >= LEAST_ROW else f"it takes rows of {width} elements, a loop for each would cost more"


def is_lookup(n: Node) -> bool:
    """Rows of a table that an index chooses: an embedding."""
    return n.op == "take" and why_no_lookup(n) is None


def looks_up(n: Node) -> bool:
    """The node, or its body, takes by an index, which may be out of range."""
    return n.op == "take" or any(looks_up(m) for g in n.subgraphs for m in g.nodes)


def is_scalar(v: Value) -> bool:
    """A value that a region's body holds itself: a constant of one element, or a size."""
    return v.node.op == "dim_value" or (v.node.op == "constant" and v.node.attrs["data"].size == 1)
