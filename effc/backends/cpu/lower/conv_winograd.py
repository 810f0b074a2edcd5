"""``conv_winograd``: convolutions of windows of 3x3 and D x 3x3 by Winograd's algorithm (kernels/conv_winograd.hpp).

Where sizes are dynamic, few pixels are summed directly."""

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
from ..packing import conv as direct
from ..packing import winograd as packing
from . import Buf, Lowering, fused, lowers, views
from .conv import as_rows, channels_last, geometry, innermost, step_operands

KERNEL, DIRECT = "effc_conv_winograd_f32", "effc_conv_f32"


def _constant_tiles(node: Node, tile: int) -> int | None:
    """Tiles of all images, None if that is dynamic."""
    shape = node.types[0].shape
    count: Dim = product(shape[2:-2]) * shape[0] * product(dims.floordiv(d + tile - 1, tile) for d in shape[-2:])
    return count if isinstance(count, int) else None


def _for_any_size(
    c: int, o: int, tile: int, vlen: int, stride: int, depth: packing.Depth, shape: tuple[Dim, ...]
) -> packing.Blocks:
    """The blocking for images whose size is dynamic: that of so many tiles, as an expression of it."""
    tiles: Dim = shape[0] * product(shape[2:-2]) * product(dims.ceildiv(d, tile) for d in shape[-2:])
    count = dims.maximum(1, tiles)
    blocks = packing.rule(c, o, tile, vlen, None, stride, depth)
    shared: Dim = int(blocks.shared)
    most = int(blocks.tiles)
    if packing.rule(c, o, tile, vlen, most, stride, depth).shared and not shared:
        shared = dims.minimum(1, dims.maximum(0, most + 1 - count))  # threads would have one block between them
    tiles = dims.minimum(most, dims.ceildiv(count, dims.ceildiv(count, most)))  # the kernel divides them evenly
    return packing.blocks(c, o, tile, vlen, blocks.nv, tiles, blocks.cols, blocks.k, shared, stride, depth)


def _directly(c: int, o: int, vlen: int, nv: int, pixels: Dim, plain: bool) -> direct.Blocks:
    """The blocking of the direct sum for at most so many pixels, with the weights of Winograd's ``nv``, of 3x3."""
    shape = direct.Shape(o, c, 1, 9, 4, vlen, True, True, pixels=pixels, direct=plain)
    own = shape.rule()
    return own if own.nv == nv else shape.blocks(nv, direct.max_rows(nv, vlen), nv * vlen // 4, own.k)


def _images(cx: Lowering, x: Buf | None, low: Dim, high: Dim) -> Buf | None:
    """Images [low, high)."""
    if x is None:
        return None
    return cx.view(x, (high - low, *x.shape[1:]), x.strides, x.strides[0] * low)


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
    symbol, count = None, ""
    values: list[Any] = []
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
    more = step_operands(cx, steps, o, len(shape))
    image = choice.image_of(node, cx.graph.symbols, tuple(weights.shape), a["padding"], a["depth_stride"])
    cx.decided(KERNEL, blocks.label, choice.explain(c, o, image, stride))
    common = [True, False, False, *geometry({**a, **plain}, weights.shape, o, shape[2:])]
    if _constant_tiles(node, tile) is None:
        blocks = _for_any_size(c, o, tile, cx.target.vlen, stride, depth, shape)
    n_own, images = 2 + len(more), shape[0]
    are_few: Dim = 0

    def emit(kernel: str, w: Buf, low: Dim, high: Dim, attrs: list[Any], scratch: Dim, thread_scratch: Dim) -> None:
        def part(b: Buf | None) -> Buf | None:
            return b if (low, high) == (0, images) else _images(cx, b, low, high)

        whole = [b for b in more if b is not None and b.rank < 4]
        own = [part(x), w, *(b if b in whole else part(b) for b in more)]
        cx.call(
            kernel,
            [*own, *(part(b) for b in extras)],
            [b for out in outs if (b := part(out)) is not None],
            [*common, *attrs, *values],
            steps.clamp or (),
            n_own=n_own,
            epilogue=symbol,
            scratch=scratch,
            thread_scratch=thread_scratch,
            body=count,
            **({} if (low, high) == (0, images) else {"flops": product((high - low, *shape[1:])) * 18 * c}),
        )

    border: Dim = 0
    if a["few"]:
        # Both ways are there, and one of them has no images: it returns at once and takes no memory.
        pixels = images * product(shape[2:])
        are_few = dims.minimum(1, dims.maximum(0, a["few"] + 1 - pixels))
        border = images * are_few
        way = _directly(c, o, cx.target.vlen, blocks.nv, dims.minimum(pixels, a["few"]), symbol is None)
        at = packing.plain_at(c, o, tile, cx.target.vlen, stride)
        emit(
            DIRECT, cx.view(packed, (packed.shape[0] - at,), (1,), at), 0, border, [*way.attrs, steps.bits],
            are_few * way.scratch, are_few * way.thread_scratch,
        )  # fmt: skip
    emit(
        KERNEL, packed, border, images, [*blocks.attrs, steps.bits, *blocks.more],
        (1 - are_few) * blocks.scratch, (1 - are_few) * blocks.thread_scratch,
    )  # fmt: skip
