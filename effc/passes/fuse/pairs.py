"""A pointwise convolution and a depthwise one of its result become ``conv_pair``: the first two convolutions of an
inverted bottleneck whose images are small and whose channels are many.

There the weights are what is large. A chain of all three convolutions would have each core read all of them; apart,
each core fetches from the other one what that made, and waits for it. A pair deals channels: a core makes a few of a
whole image, and the depthwise convolution of them while they are in its first cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.dtypes import DType
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import OPS
from ..manager import Pass, PassReport, in_subgraphs
from .chains import CACHE, constant_sizes, is_depthwise, is_pointwise, operands_of
from .regions import body_of
from .steps import steps_of

PIXELS = 400  # of an image whose panel of channels stays in a core's first cache
CHANNELS = 256  # from here on there are panels of channels enough for many cores


@dataclass(frozen=True)
class FusePairs(Pass):
    """Forms ``conv_pair`` of what :class:`~effc.passes.fuse.chains.FuseChains` left apart."""

    name: ClassVar[str] = "fuse_pairs"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        if "conv_pair" not in OPS:
            return graph
        uses = graph.uses()

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
            if not is_depthwise(n) or not is_pointwise(n.operands[0].node):
                return None
            reason = self.why_not(n.operands[0].node, n, uses)
            if reason is not None:
                report.decline(self.name, reason, n)
                return None
            deep = replace(n, inputs=ins)  # the same nodes as the rebuilt graph has them
            made = [deep.operands[0].node, deep]
            operands = operands_of(made)
            report.count(f"{self.name}.formed")
            pair: Value = b.op("conv_pair", *operands, body=body_of(made, operands, [deep[0]]), loc=n.loc, name=n.name)
            return pair

        return graph.rebuild(rule)

    def fits(self, first: Node, deep: Node, uses: Mapping[Value, list[Node | None]]) -> bool:
        """Whether these two are a pair."""
        return "conv_pair" in OPS and is_pointwise(first) and self.why_not(first, deep, uses) is None

    def why_not(self, first: Node, deep: Node, uses: Mapping[Value, list[Node | None]]) -> str | None:
        """Why these two stay apart, or None."""
        if len(uses[first[0]]) != 1:
            return "the first result is used elsewhere, too"
        for n in (first, deep):
            if n.types[0].dtype is not DType.f32:
                return f"a pair of {n.types[0].dtype}"
            if n.operands[1].node.op != "constant":
                return "weights that are not constant"
            steps = steps_of(n.attrs["body"], n.operands[2:], activations=True) if n.op == "conv_fused" else None
            if n.op == "conv_fused" and (steps is None or steps.residual is not None):
                return "its epilogue is more than a bias, a clamp and a function of what that is"
        made, source = constant_sizes(first.types[0].shape[1:]), constant_sizes(first.operands[0].shape[1:])
        if made is None or source is None or constant_sizes(deep.types[0].shape[1:]) is None:
            return "sizes of its images are not constant"
        if (pixels := made[1] * made[2]) > PIXELS or 4 * math.prod(source) > CACHE:
            return f"images of {pixels} pixels and {source[0]} channels leave a core's caches"
        if made[0] < CHANNELS:
            return f"only {made[0]} channels to deal to the cores"
        return None
