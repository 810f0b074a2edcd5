"""Convolutions with windows of 3x3 in the last two dims that take fewer multiplications by Winograd's algorithm become
``conv_winograd`` (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015).

A tile of m x m results takes n^2 multiplications for each pair of channels instead of 9 m^2, transforms of input and
result, and n^2 / 9 times the weights, where n is m + 2, or 2 m + 1 with stride 2. An image whose size is no multiple
of m has tiles of m - 1 too, narrow ones, which take the same weights but those of the last position
(:func:`~..ir.ops.conv.winograd_positions`). :func:`costs` weighs these against each other. In three dims the first
one's taps are summed before sums are transformed, as so many times the channels would be (kernels/conv_winograd.hpp).
Tiles larger than 4 x 4 are left out for their error: the contract is 1e-5 of the largest result for an op in f32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..cost.alternatives import DYNAMIC, Ask, decide, ways_of
from ..cost.calls import Call, Tensor, dense_tensor
from ..ir import dims
from ..ir.dims import Dim
from ..ir.dtypes import DType
from ..ir.graph import Builder, Graph, Node, Value
from ..ir.ops.conv import winograd_name, winograd_positions, winograd_side
from .manager import Pass, PassReport, in_subgraphs

TILES = (2, 4)
DIRECT = 0  # stands for no tiles
WAYS = (DIRECT, *TILES)  # of both sets of alternatives (effc/cost/alternatives.py)
SETS = {1: "conv_algorithm", 2: "strided_conv_algorithm"}  # by stride
# What things cost in operations at a core's peak, as measured on AVX2 (docs/kernels.md): an operation of the direct
# sum, one of the transformed products, a value of the transformed input or of the sums, and a byte of the weights: they
# come from memory once a run, while products are made of those that came before. The last is set by two choices that
# were measured, not by itself (docs/passes.md).
DIRECT_OPERATION, PER_OPERATION, PER_VALUE, PER_BYTE = 1.05, 1.1, 23.0, 8.2
GAIN = 1.1  # what a larger tile, or any at all, must win by: the larger the tile, the larger the weights
LEAST_CHANNELS = 8  # input and output: fewer leave the products' vectors empty
RUN = 24  # tiles along the depth in a block: packing/winograd.py
TYPICAL = 32  # side of an image of unknown size
SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 12)  # of images for which it is asked where the direct sum ends to be better
LARGEST = 1e30  # of a weight: beyond that a transformed one might overflow


@dataclass(frozen=True)
class Image:
    """Batch and size of the result. ``depth``: that along the first of three dims, where windows have ``taps``, a share
    of ``inside`` of which lies within the image, and a ``step``."""

    batch: int
    height: int
    width: int
    depth: int = 1
    taps: int = 1
    step: int = 1
    inside: float = 1.0

    def tiles(self, m: int) -> int:
        """Tiles of m x m results in all images."""
        return self.batch * self.depth * -(-self.height // m) * -(-self.width // m)

    def positions(self, m: int, stride: int) -> int:
        """Sums for a channel of the result with tiles of m x m results."""
        sides = (winograd_positions(d, m, stride) for d in (self.height, self.width))
        return int(self.batch * self.depth * dims.product(sides))

    def products(self, m: int, stride: int) -> int:
        """Multiplications for a pair of channels with tiles of m x m results."""
        return self.taps * self.positions(m, stride)

    @property
    def slices(self) -> float:
        """Of the image that are transformed for each of the result: blocks of tiles share them."""
        run = max(1, min(self.depth, RUN))
        return self.step + (self.taps - self.step) / run


def costs(c: int, o: int, image: Image, stride: int = 1) -> dict[int, float]:
    """Estimated cost by tile size, DIRECT included, for c input and o output channels."""
    pixels = image.batch * image.depth * image.height * image.width
    weights = 4 * c * o * image.taps
    inner = image.inside * image.taps  # the direct sum skips what lies outside
    out = {DIRECT: max(DIRECT_OPERATION * 18 * inner * pixels * c * o, PER_BYTE * 9 * weights)}
    for m in TILES:
        each = PER_OPERATION * 2 * image.taps * c * o + PER_VALUE * (image.slices * c + o)
        work = image.positions(m, stride) * each
        out[m] = max(work, PER_BYTE * winograd_side(m, stride) ** 2 * weights)
    return out


def choose(c: int, o: int, image: Image, stride: int = 1) -> int:
    """The tile size for a convolution, or DIRECT."""
    cost = costs(c, o, image, stride)
    best = DIRECT
    for m in TILES if min(c, o) >= LEAST_CHANNELS else ():
        best = m if GAIN * cost[m] <= cost[best] else best
    return best


def image_of(
    n: Node, symbols: Mapping[str, Any], window: tuple[int, ...] = (), padding: Any = (), step: int = 1
) -> Image:
    """The size of a convolution's result and of its ``window``, shaped as weights are; where it is dynamic, one image
    of a typical size within the bounds. ``step``: the stride along the first of three dims."""

    def size(d: Dim, typical: int) -> int:
        low, high = dims.bounds(d, symbols)
        return int(min(max(low, typical), high))

    batch, _, *deep, height, width = n.types[0].shape
    image = Image(size(batch, 1), size(height, TYPICAL), size(width, TYPICAL))
    if not deep:
        return image
    depth, taps, low = size(deep[0], TYPICAL), window[2], int(padding[0][0])
    slices = size(n.operands[0].shape[2], TYPICAL)
    inside = sum(0 <= z * step - low + tap < slices for z in range(depth) for tap in range(taps))
    return replace(image, depth=depth, taps=taps, step=step, inside=inside / max(1, depth * taps))


def why_not(n: Node) -> str | None:
    """Why Winograd's algorithm does not apply to a convolution with a window of 3x3 in the last two dims, or None."""
    a, w = n.attrs, n.operands[1]
    if a["groups"] != 1 or a.get("output_padding") is not None:
        return "groups, or transposed"
    *deep, down, across = a["stride"]
    if down != across or across > 2 or set(a["dilation"]) != {1}:
        return "stride or dilation"
    if n.operands[0].type.dtype is not DType.f32 or any(t.shape != n.types[0].shape for t in n.types):
        return "not f32, or an epilogue with a result of another shape"
    if w.node.op != "constant":
        return "weights that are not constant"
    data = w.node.attrs["data"]
    if deep and deep[0] > data.shape[2]:
        return "a stride that passes over slices"
    if data.size and not np.abs(data).max() <= LARGEST:  # false for NaN too
        return f"weights that are not finite, or larger than {LARGEST:g}"
    return None


def alternatives(n: Node, image: Image, rule: int, x: tuple[int, ...] | None = None) -> list[Call] | str:
    """The convolution in two dims as a region of its set of alternatives, or why it is none. Attributes: those of
    effc_conv_* up to the result's size, extra operands, whether there is an epilogue. ``rule``: the index of the rule's
    own way; ``x``: the operand's shape, where that is not the node's."""
    if n.types[0].rank != 4:
        return "as it has three dims, which the cost model was not asked about"
    shape = x or n.operands[0].shape
    if not all(isinstance(d, int) for d in (*shape, *(() if x else n.types[0].shape))):
        return DYNAMIC
    b, c, h, w = (int(d) for d in shape)
    o = int(n.operands[1].shape[0])
    if min(c, o) < LEAST_CHANNELS:
        return f"with fewer than {LEAST_CHANNELS} channels"
    pads, stride = [p[0] for p in n.attrs["padding"]], n.attrs["stride"][0]
    x4 = Tensor("f32", (b, c, h, w), (h * w * c, 1, w * c, c))
    out = dense_tensor("f32", (b, 1, image.height * image.width, o))
    attrs = (1, 0, 0, 1, o, 1, 3, 3, 1, stride, stride, 0, *pads, 1, 1, 1, 1, image.height, image.width)
    more = (len(n.operands) - 2, int(n.op == "conv_fused"))
    direct = 18 * image.batch * image.height * image.width * c * o
    region = Call(SETS[stride], (x4, dense_tensor("f32", (o, c, 3, 3))), (out,), (*attrs, *more), 2, flops=direct)
    return ways_of(region, rule, {i: 2 * image.products(m, stride) * c * o for i, m in enumerate(WAYS) if m})


def few_pixels(n: Node, ask: Ask | None) -> int:
    """Pixels of a result up to which a convolution of dynamic size is better summed directly, as it would be in a
    program compiled for one square image of so many; 0 if it never is, its size is constant, or it has three dims."""
    if n.types[0].rank != 4 or all(isinstance(d, int) for d in n.types[0].shape):
        return 0
    o, c = (int(d) for d in n.operands[1].shape[:2])
    stride, few = n.attrs["stride"][0], 0
    least = [sum(p) for p in n.attrs["padding"]]
    for side in SIDES:
        image = Image(1, side, side)
        rule = WAYS.index(choose(c, o, image, stride))
        h, w = (max(1, (side - 1) * stride + 3 - p) for p in least)
        ways = alternatives(n, image, rule, (1, c, h, w))
        if WAYS[rule if ask is None or isinstance(ways, str) else ask(ways).index] != DIRECT:
            break
        few = side * side
    return few


@dataclass(frozen=True)
class FormWinograd(Pass):
    """Forms ``conv_winograd`` from ``conv`` and ``conv_fused``. ``ask``: the cost model, which chooses where it can;
    else :func:`choose` does."""

    ask: Ask | None = None
    name: ClassVar[str] = "form_winograd"

    def apply(self, graph: Graph, report: PassReport) -> Graph:
        return self.one(in_subgraphs(graph, lambda g: self.one(g, report)), report)

    def one(self, graph: Graph, report: PassReport) -> Graph:
        def rule(b: Builder, n: Node, ins: tuple[Value | None, ...]) -> Any:
            if n.op not in ("conv", "conv_fused") or tuple(n.operands[1].shape[2:][-2:]) != (3, 3):
                return None
            reason = why_not(n)
            if reason is None:
                o, c, *_ = window = n.operands[1].node.attrs["data"].shape
                image = image_of(n, graph.symbols, window, n.attrs["padding"], n.attrs["stride"][0])
                stride = n.attrs["stride"][-1]
                base, why = WAYS.index(choose(c, o, image, stride)), explain(c, o, image, stride)
                ways = alternatives(n, image, base)
                tile = WAYS[decide(self.ask, ways, base, SETS[stride], why, n, report)]
                if tile != DIRECT:
                    report.count(f"{self.name}.tile{tile}" + (f".stride{stride}" if stride != 1 else ""))
                    report.count(f"{self.name}.formed")
                    return _formed(b, n, ins, tile, few_pixels(n, self.ask))
                reason = f"direct is the better choice: {why}"
            report.decline(self.name, reason, n)
            return None

        return graph.rebuild(rule)


def explain(c: int, o: int, image: Image, stride: int = 1) -> str:
    """The estimates in words."""
    names = {m: winograd_name(m, stride) for m in TILES}
    parts = (f"{names.get(m, 'direct')} {cost / 1e6:.3g}" for m, cost in costs(c, o, image, stride).items())
    return "estimated Mflop of peak: " + ", ".join(parts)


def _formed(b: Builder, n: Node, ins: tuple[Value | None, ...], tile: int, few: int) -> Any:
    body = n.attrs.get("body")
    if body is None:
        inner = Builder(b.symbols)
        body = inner.graph([inner.input("acc", n.types[0])])
    *deep, stride = n.attrs["stride"][1:]
    a = {"padding": n.attrs["padding"], "tile": tile, "stride": stride, "few": few, "body": body}
    if deep:
        a["depth_stride"] = n.attrs["stride"][0]
    return b.op("conv_winograd", *ins, **a, loc=n.loc, name=n.name)
