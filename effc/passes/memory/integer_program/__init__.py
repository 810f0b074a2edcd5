"""The integer program: for what the searches cannot say, and to check them.

Time is a row of steps. At each, a node runs; each tensor is resident or not; a resident one was resident the step
before, or is made, or comes back from the far memory:

    run[n,k], resident[t,k], refill[t,k], copied[t], over[n,t,k] (in place), part[t,n,k] (made in n's result)
    run[n,k] <= resident[t,k]                                         operands, results
    resident[t,k] <= resident[t,k-1] + run[maker of t,k] + refill[t,k]
    sum of bytes[t] resident[t,k] + workspaces - bytes taken over <= peak, or the capacity
    resident[t,k] + resident[u,k] <= 1 + below[t,u] + below[u,t]      offsets, where they are asked for

A copy is made when a tensor is new, which costs what it would cost later, so one variable says whether there is any.
Steps at which a node cannot run, or a tensor not be needed, have no variables: between two nodes that all others
precede or follow (articulation points) only what lies there does, so orders fall into pieces by themselves. With
traffic every tensor could be anywhere at any time, and a large graph is cut at these nodes (``pieces``), each piece
beginning with what the one before left (divide and conquer, as COSMA has it). What is asked is

- an order, with rewrites and offsets if wanted, of least peak or arena (``least_arena``);
- actions within a capacity that move and recompute least (``within``; spilling and refilling are COSMA's, Li et al.
  2023; recomputation is Checkmate's, Jain et al. 2020);
- offsets of buffers whose times are given (``place``), as boxes;
- which tensors lie in the small fast space and which in the large slow one (``two_spaces``).

All begin with a plan of the searches, return nothing worse, and say what the solver proved. Every plan is verified.
"""

from .arena import least_arena
from .capacity import furthest, within
from .outcome import BYTE_FLOPS, Outcome, cost, flops
from .pieces import gates
from .placement import densest, in_spaces, place, traffic, two_spaces

__all__ = [
    "BYTE_FLOPS",
    "Outcome",
    "cost",
    "densest",
    "flops",
    "furthest",
    "gates",
    "in_spaces",
    "least_arena",
    "place",
    "traffic",
    "two_spaces",
    "within",
]
