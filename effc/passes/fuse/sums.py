"""Sums of a whole image begin where the image is made: ``conv_chain`` and ``conv_pair`` that end in a depthwise
convolution have a second result, the sums of its rows' pixels, and what summed the image (squeeze and excite's mean)
sums those.

A mean reads as much as a block's last convolution, and gives one number for each channel. A row's pixels are summed in
one order, and the rows in one order: the mean does not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.graph import Builder, Graph, Node, Value
from ..manager import Pass, PassReport, in_subgraphs
from ..rewrite import is_one
from .chains import is_depthwise
from .prologue import retyped

MAKERS = ("conv_chain", "conv_pair")


@dataclass(frozen=True)
class FuseSums(Pass):
    """Gives ``conv_chain`` and ``conv_pair`` a second result, [N, C, H, 1], for sums over images [N, C, H, W]."""

    name: ClassVar[str] = "fuse_sums"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        wanted = {v for n in graph.nodes if (v := summed(n)) is not None}
        if not wanted:
            return graph
        sums: dict[Value, Value] = {}

        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
            if n.op in MAKERS and n[0] in wanted:
                made = b.node(n.op, ins, {**n.attrs, "body": _with_sums(n.attrs["body"])}, n.loc, n.name)
                sums[n[0]] = made[1]
                report.count(f"{self.name}.formed")
                return made.values[:1]
            if (image := summed(n)) is None:
                return None
            new = [sums[image] if v == image else i for v, i in zip(n.inputs, ins, strict=True)]
            attrs = dict(n.attrs)
            if n.op == "fused":
                attrs["body"] = retyped(n.attrs["body"], [v for v in new if v is not None])
            return b.node(n.op, new, attrs, n.loc, n.name).values

        return graph.rebuild(rule)


def summed(n: Node) -> Value | None:
    """The image that ``n`` reads for its sums alone, where these can begin as it is made."""
    if n.op == "reduce":
        v = n.operands[0]
        return v if _is_sum(n) and _makes_rows(v) else None
    if n.op != "fused":
        return None
    body: Graph = n.attrs["body"]
    images = [(v, i[0]) for v, i in zip(n.operands, body.inputs, strict=True) if v.rank == 4 and _makes_rows(v)]
    if len(images) != 1 or any(v is not images[0][0] and not _is_small(v) for v in n.operands):
        return None
    image, inner = images[0]
    for m in body.nodes:
        if inner in m.operands and not _is_sum(m):
            return None
        if m.op == "reduce" and m.operands[0] != inner:
            return None
    return image if inner not in body.outputs else None


def _is_sum(n: Node) -> bool:
    return n.op == "reduce" and n.attrs["kind"] == "sum" and sorted(n.attrs["dims"]) == [2, 3] and n.attrs["keepdims"]


def _is_small(v: Value) -> bool:
    return v.rank == 0 or (v.rank == 4 and is_one(v.shape[2]) and is_one(v.shape[3]))


def _makes_rows(v: Value) -> bool:
    """Whether it is made by a kernel that ends in a depthwise convolution and has no other result."""
    n = v.node
    return n.op in MAKERS and len(n.types) == 1 and is_depthwise(n.attrs["body"].outputs[0].node)


def _with_sums(body: Graph) -> Graph:
    b = Builder()
    made = body.inline(b, [b.input(n.name, n.types[0]) for n in body.inputs])
    return b.graph([*made, b.op("reduce", made[0], kind="sum", dims=(3,), keepdims=True)])
