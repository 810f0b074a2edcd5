"""What is asked of the integer program and what comes of it; what plans cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..plan import Placement
from ..problem import Node, Problem, Steps
from ..schedule import Layout

BYTE_FLOPS = 16  # FLOPs that cost as much as a byte to or from the far memory


@dataclass(frozen=True)
class Outcome:
    """``objective`` is that of the plan returned, ``start`` that of the searches' (None without one), ``bound`` what
    the solver proved that none is below. ``ended``: ``proven``, ``time``, ``infeasible``. ``pieces`` is more than 1
    where the graph was cut: then the bound is the sum of those of the pieces, each begun as it likes (0 with
    recomputation and rewrites, which reach across)."""

    objective: int
    bound: int
    start: int | None
    ended: str
    seconds: float
    layout: Layout | None = None  # of least_arena, two_spaces
    steps: Steps | None = None  # of within
    placement: Placement | None = None  # of place
    variables: int = 0
    rows: int = 0
    pieces: int = 1

    @property
    def gap(self) -> float:
        """How far the objective may be above the optimum, as a fraction of it; inf where nothing is proven."""
        if self.objective <= self.bound:
            return 0.0
        return (self.objective - self.bound) / self.bound if self.bound > 0 else math.inf


def flops(n: Node, p: Problem) -> int:
    """What running a node again is taken to cost: its FLOPs, or where these are not known one for each byte touched."""
    return n.flops or max(1, sum(p.tensors[t].raw for t in {*n.ins, *n.outs}))


def cost(p: Problem, steps: Steps, byte_flops: int = BYTE_FLOPS) -> int:
    """Of a valid plan, in FLOPs: bytes moved, at ``byte_flops`` each, and what is run again."""
    seen: set[int] = set()
    node = p.node()
    total = 0
    for action, x in steps.actions:
        if action == "run":
            total += flops(node[x], p) if x in seen else 0
            seen.add(x)
        elif action != "drop":
            total += p.tensors[x].raw * byte_flops
    return total
