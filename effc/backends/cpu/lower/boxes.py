"""Selection among boxes. Kernel: boxes.cpp."""

from __future__ import annotations

from ....ir.dims import product
from ....ir.graph import Node
from . import Lowering, lowers
from .indexing import open_size


@lowers("nms")
def lower_nms(cx: Lowering, node: Node) -> None:
    ins = [None if v is None else cx.dense(v) for v in (*node.inputs, None)[:5]]
    scores = node.operands[1]
    dyn, size, bind = open_size(cx, node)
    b, c, n = scores.shape
    cx.call(
        "effc_nms", ins, [cx.out(node, dyn=dyn)], attrs=[int(node.attrs["center"]), size],
        scratch=b * c * 8 + product(scores.shape) * 4, thread_scratch=n * 4, bind=bind,
    )  # fmt: skip
