"""A pointwise convolution of an image whose channels are scaled becomes ``conv_scaled``: what squeeze and excite (Hu et
al., 2018) does before a block's last convolution.

The scaled image is as large as what the block expands, and would be read and written once more, with several threads
from core to core: for what is a scale of some of the weights' rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.dtypes import DType
from ...ir.graph import Builder, Graph, Node, Value
from ...ir.op import OPS
from ..manager import Pass, PassReport, in_subgraphs
from ..rewrite import is_one
from .chains import is_pointwise
from .regions import body_of

PIXELS = 16  # of an image: with fewer the weights are what is large


@dataclass(frozen=True)
class FuseScales(Pass):
    """Forms ``conv_scaled``."""

    name: ClassVar[str] = "fuse_scales"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        if "conv_scaled" not in OPS:
            return graph
        uses = graph.uses()

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Value | None:
            if not is_pointwise(n) or (found := scaled_by(n.operands[0].node)) is None:
                return None
            reason = self.why_not(n, uses)
            if reason is not None:
                report.decline(self.name, reason, n)
                return None
            conv = replace(n, inputs=ins)  # the same nodes as the rebuilt graph has them
            scaling = conv.operands[0].node
            x, scale = (scaling.operands[i] for i in found)
            operands = list(dict.fromkeys((x, scale, *conv.operands[1:])))
            report.count(f"{self.name}.formed")
            made: Value = b.op(
                "conv_scaled", *operands, body=body_of([scaling, conv], operands, [conv[0]]), loc=n.loc, name=n.name
            )
            return made

        return graph.rebuild(rule)

    def why_not(self, n: Node, uses: Mapping[Value, list[Node | None]]) -> str | None:
        """Why the scale stays a kernel of its own, or None."""
        image = n.operands[0]
        if len(uses[image]) != 1 or image in n.operands[2:]:
            return "something else reads the scaled image, too"
        if n.operands[1].node.op != "constant":
            return "weights that are not constant"
        if image.type.dtype not in (DType.f32, DType.f64):
            return f"an image of {image.type.dtype}"
        height, width = image.shape[2:]
        if isinstance(height, int) and isinstance(width, int) and height * width < PIXELS:
            return f"images of {height * width} pixels: the weights are larger"
        return None


def scaled_by(n: Node) -> tuple[int, int] | None:
    """Which operands of a product are an image [N, C, H, W] and the scale [N or 1, C, 1, 1] of its channels."""
    if n.op != "mul" or len(n.operands) != 2 or n.types[0].rank != 4:
        return None
    for image, scale in ((0, 1), (1, 0)):
        x, s = n.operands[image].type, n.operands[scale].type
        if (
            x.shape == n.types[0].shape and x.dtype is s.dtype and s.rank == 4 and s.shape[1] == x.shape[1]
            and is_one(s.shape[2]) and is_one(s.shape[3]) and (is_one(s.shape[0]) or s.shape[0] == x.shape[0])
        ):  # fmt: skip
            return image, scale
    return None
