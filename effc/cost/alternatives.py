"""Alternatives of a rewrite: what a pass asks the cost model, and what it does without one.

A set of alternatives is declared once, here: its ways by name, way 0 being the graph left as it is. A pass that could
rewrite a region describes it as a :class:`Call` whose kernel is the set's name: operands, results and weights of the
region, and as attributes whatever :mod:`.features` (a ``@family`` of the same name) and :mod:`.space` (a ``@sampler``
that draws graphs with one such region) want to know of it. :func:`ways_of` adds which way the pass's fixed rule takes,
and which one the call stands for; these are the last two attributes. A way is measured by compiling the sampler's graph
with the pass's answer forced, so that nothing but the pass says how a way is made.

Answers hold for one and for all threads of the measured machine: a rewrite may change the order of additions, and
results must not depend on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .calls import Call
from .decide import Decision

if TYPE_CHECKING:
    from ..ir.graph import Node
    from ..passes.manager import PassReport
    from .model import CostModel


@dataclass(frozen=True)
class Alternatives:
    """A set of ways to treat a region, and the pass that chooses among them. ``least``: what another way than the
    rule's must gain (log), however sure that is."""

    name: str
    ways: tuple[str, ...]
    asks: str
    least: float = 0.0


SETS: dict[str, Alternatives] = {
    a.name: a
    for a in (
        # Winograd's weights lie in the artifact beside the direct sum's, and the larger the tile, the larger they are.
        Alternatives("conv_algorithm", ("direct", "F(2x2, 3x3)", "F(4x4, 3x3)"), "form_winograd", least=0.05),
        Alternatives(
            "strided_conv_algorithm",
            ("direct", "F(2x2, 3x3) of stride 2", "F(4x4, 3x3) of stride 2"),
            "form_winograd",
            least=0.05,
        ),
        Alternatives("conv_or_chain", ("apart", "chain"), "fuse_chains"),
        Alternatives("rows_or_chain", ("apart", "chain"), "fuse_rows"),
    )
}

DYNAMIC = "as its sizes are dynamic"
# What answers: the ways of one region -> which of them.
Ask = Callable[[Sequence[Call]], Decision]


def ways_of(region: Call, rule: int, flops: Mapping[int, int] | None = None) -> list[Call]:
    """A region's ways as calls. ``rule``: the one that the pass's fixed rule takes; ``flops`` of ways that take
    another number of operations than the region has."""
    known = flops or {}
    return [
        replace(region, attrs=(*region.attrs, rule, i), flops=known.get(i, region.flops))
        for i in range(len(SETS[region.kernel].ways))
    ]


def rule_of(call: Call) -> int:
    """The way that the fixed rule takes among the ways that this one is of; 0 for a kernel's call."""
    return call.attrs[-2] if call.kernel in SETS else 0


def way_of(call: Call) -> int:
    """The way of its region that a call stands for."""
    return call.attrs[-1]


def decide(
    ask: Ask | None, ways: Sequence[Call] | str, rule: int, name: str, why: str, node: Node, report: PassReport
) -> int:
    """The way that a pass takes, and an entry in its report: which of both decided, rule or cost model, and what was
    predicted. ``ways``: why there is nothing to ask, for a region that is left to the rule; ``why``: the rule's own
    reason."""
    if ask is None or isinstance(ways, str):
        made = Decision(rule, why=f"by rule{'' if ask is None else f', {ways}'}: {why}", rule=rule)
    else:
        made = ask(ways)
        if not made.seconds:
            made = replace(made, why=f"by rule, {made.why}: {why}")
    entry: dict[str, Any] = {"op": node.op, "name": node.name or node.op, "loc": str(node.loc or ""), "kernel": name}
    if made.seconds and not isinstance(ways, str):
        entry["region"] = ways[0].as_json()  # for effc explain --measure
    report.decisions.append({**entry, **made.as_json(SETS[name].ways)})
    return made.index


@dataclass
class Forced:
    """Answers with one way of a set, and with the rule of any other; remembers what it was asked."""

    name: str
    index: int
    regions: list[Sequence[Call]] = field(default_factory=list)

    def __call__(self, ways: Sequence[Call]) -> Decision:
        rule = rule_of(ways[0])
        if ways[0].kernel != self.name:
            return Decision(rule, why="not in question", rule=rule)
        self.regions.append(ways)
        return Decision(self.index, why="forced", rule=rule)


def asker(target: str, between: int) -> Ask | None:
    """What passes ask; None where there is no model for the target. ``between``: bytes that a run touches."""
    from .model import shipped

    model: CostModel | None = shipped(target)
    if model is None:
        return None
    known: dict[Call, Decision] = {}
    counts = sorted({1, model.machine.cores})

    def ask(ways: Sequence[Call]) -> Decision:
        if ways[0] not in known:
            known[ways[0]] = model.choose_region(ways, [model.context(n, between) for n in counts])
        return known[ways[0]]

    return ask
