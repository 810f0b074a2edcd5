"""Plans for a scratchpad beside a far memory that holds everything else (COSMA, Li et al. 2023).

Each result that leaves the graph is written once, and each input, where ``inputs`` counts them, is read once: that
traffic is compulsory. The rest is what a plan can save: what had to make room and comes back, and inputs read again.
It is the problem of ``budget.py`` with outputs that need not stay, and inputs that are made by loading them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .budget import Budgeted, Rules, own_bytes, within
from .problem import ARENA, Node, Problem


@dataclass(frozen=True)
class Scratchpad:
    """``extra`` bytes moved beyond the ``compulsory`` ones. ``problem`` is the one that ``plan`` solves: every output
    has a ``spill`` in it, and every input, if they count, a node ``load``."""

    plan: Budgeted
    problem: Problem
    compulsory: int

    @property
    def extra(self) -> int:
        return self.plan.moved

    @property
    def bound(self) -> int:
        """Of ``extra``, where nothing is repeated."""
        return self.plan.bound


def of(p: Problem, *, inputs: bool = False) -> tuple[Problem, Rules]:
    """The problem as a scratchpad has it, and what counts. Outputs that a node changes after they are made stay."""
    changed = {t for n in p.nodes for t in n.writes}
    tensors = dict(p.tensors)
    written = frozenset(
        t.id for t in p.tensors.values() if t.kind == "output" and t.space == ARENA and t.id not in changed
    )
    for t in written:
        tensors[t] = dataclasses.replace(tensors[t], kind="intermediate")
    nodes = list(p.nodes)
    sources: list[int] = []
    if inputs:
        read = {t for n in p.nodes for t in n.ins}
        free = max((n.id for n in nodes), default=0) + 1
        for x in [x for x in p.tensors.values() if x.kind == "input" and x.id in read]:
            size = -(-max(x.bytes, 1) // p.align) * p.align
            tensors[x.id] = dataclasses.replace(x, kind="intermediate", bytes=size, raw_bytes=x.raw)
            nodes.insert(len(sources), Node(free, (), (x.id,), "load", x.name))
            sources.append(free)
            free += 1
    q = dataclasses.replace(p, nodes=tuple(nodes), tensors=tensors)
    return q, Rules(recompute=False, rewrite=False, sources=frozenset(sources), written=written)


def largest_node(p: Problem, *, inputs: bool = False) -> int:
    """Bytes of the neediest step: operands, results, workspace."""
    q, _ = of(p, inputs=inputs)
    return max((own_bytes(q, n, rewrite=False) for n in q.nodes), default=0)


def scratchpad(
    p: Problem,
    capacity: int,
    *,
    inputs: bool = False,
    recompute: bool = False,
    rewrite: bool = False,
    work: int = 24_000_000,
    seconds: float = 9.0,
    prove: float = 2.0,
) -> Scratchpad:
    """A verified plan with offsets in ``capacity`` bytes that moves few bytes beyond the compulsory. BudgetError, a
    proof, where the neediest step does not fit. Without ``rewrite`` operands and results of a step never share bytes,
    and without ``recompute`` nothing runs twice, as in COSMA. ``inputs``: they take space and are read from afar; else
    they are the caller's and at hand. ``prove`` as in ``within``."""
    q, rules = of(p, inputs=inputs)
    rules = dataclasses.replace(rules, recompute=recompute, rewrite=rewrite)
    made = within(q, capacity, rules=rules, work=work, seconds=seconds, prove=prove)
    compulsory = sum(p.tensors[t].raw for t in rules.written)
    compulsory += sum(p.tensors[t].raw for n in q.nodes if n.id in rules.sources for t in n.outs)
    return Scratchpad(made, q, compulsory)
