"""``conv_winograd``: convolutions of windows of 3x3 and D x 3x3 by Winograd's algorithm (kernels/conv_winograd.hpp)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dims
from ....ir.dims import Dim, product
from ....ir.dtypes import DType
from ....ir.graph import Node
from ....ir.ops.conv import winograd_window
from ....passes import winograd as choice
from ....passes.fuse.steps import Steps, steps_of
from .. import codegen
from ..packing import winograd as packing
from . import Lowering, fused, lowers, views
from .conv import as_rows, channels_last, geometry, innermost, step_operands

KERNEL = "effc_conv_winograd_f32"


def _constant_tiles(node: Node, tile: int) -> int | None:
    """Tiles of all images, None if that is dynamic."""
    shape = node.types[0].shape
    count: Dim = product(shape[2:-2]) * shape[0] * product(dims.floordiv(d + tile - 1, tile) for d in shape[-2:])
    return count if isinstance(count, int) else None


def _no_more_than(blocks: packing.Blocks, c: int, o: int, vlen: int, shape: tuple[Dim, ...]) -> packing.Blocks:
    """Blocks of no more tiles than all images have, for images of any size: scratch is for so many tiles."""
    count: Dim = product(shape[2:-2]) * shape[0] * product(dims.ceildiv(d, blocks.tile) for d in shape[-2:])
    if isinstance(count, int):
        return blocks
    tiles = dims.minimum(blocks.tiles, dims.maximum(1, count))
    b = blocks
    return packing.blocks(c, o, b.tile, vlen, b.nv, tiles, b.cols, b.k, b.shared, b.stride, b.depth)


@lowers("conv_winograd")
def lower_conv_winograd(cx: Lowering, node: Node) -> None:
    a, shape = node.attrs, node.types[0].shape
    weights, tile, stride, body = cx.constant_of(node.operands[1]), a["tile"], a["stride"], a["body"]
    declined = (
        "weights that are not constant" if weights is None
        else f"no kernel for {node.types[0].dtype}" if node.operands[0].type.dtype is not DType.f32
        else f"no kernel for tiles of {tile} x {tile}, stride {stride}" if (tile, stride) not in packing.POINTS
        else "a result of another shape than the convolution's" if any(t.shape != shape for t in node.types)
        else None
    )  # fmt: skip
    if weights is None or declined is not None:
        cx.note(node, str(declined))
        cx.lower_decomposed(node)
        return
    order = channels_last(len(shape))
    x = cx.strided(node.operands[0])
    x = x if innermost(x) else cx.in_order(x, order)
    o, c = weights.shape[:2]
    steps: Steps | None = steps_of(body, node.operands[2:])
    outs = [as_rows(cx, cx.out(node, i, order=order)) for i in range(len(node.types))]
    symbol, values, count = None, [], ""
    extras: list[Any] = []
    if steps is None:
        extras = [as_rows(cx, views.broadcast(cx, cx.strided(v), shape)) for v in node.operands[2:]]
        symbol, values = fused.epilogue(cx, body, DType.f32, extras, outs)
        steps, count = Steps(), codegen.counts(body)
    plain = winograd_window(len(shape) - 2, stride, a["depth_stride"])
    along = plain["stride"][:-2]  # the depth's, if there is one
    depth = packing.Depth(int(np.prod(weights.shape[2:-2])), *along, size=product(shape[2:-2]))
    blocks = packing.rule(c, o, tile, cx.target.vlen, _constant_tiles(node, tile), stride, depth)
    packed = cx.const(packing.pack(weights, tile, cx.target.vlen, blocks.nv, stride))
    own = [x, packed, *step_operands(cx, steps, o, len(shape))]
    image = choice.image_of(node, cx.graph.symbols, tuple(weights.shape), a["padding"], a["depth_stride"])
    cx.decided(KERNEL, blocks.label, choice.explain(c, o, image, stride))
    common = [True, False, False, *geometry({**a, **plain}, weights.shape, o, shape[2:])]
    blocks = _no_more_than(blocks, c, o, cx.target.vlen, shape)
    cx.call(
        KERNEL,
        [*own, *extras],
        outs,
        [*common, *blocks.attrs, steps.bits, *blocks.more, *values],
        steps.clamp or (),
        n_own=len(own),
        epilogue=symbol,
        scratch=blocks.scratch,
        thread_scratch=blocks.thread_scratch,
        body=count,
    )
