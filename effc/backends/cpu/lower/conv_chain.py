"""``conv_chain``: a convolution, a depthwise and a pointwise one as one kernel; ``conv_pair``: the first two as one
(kernels/conv_chain.hpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....ir import dims
from ....ir.dims import Dim, product
from ....ir.dtypes import DType
from ....ir.graph import Graph, Node, Value
from ....passes.fuse.chains import Plan, plan
from ....passes.fuse.steps import Steps, steps_of
from .. import codegen
from ..packing import conv as packing
from . import Buf, Lowering, lowers
from .conv import as_rows, channels_last, geometry, innermost, is_pointwise, one_line, readable, step_operands


@dataclass
class _Stage:
    """One convolution of the chain: its node in the body, its weights and steps as values of the outer graph."""

    node: Node
    weights: Value
    steps: Steps


def _stages(cx: Lowering, node: Node) -> list[_Stage]:
    body: Graph = node.attrs["body"]
    outer = {n[0]: v for n, v in zip(body.inputs, node.operands, strict=True)}
    stages = []
    for n in body.nodes:
        if n.op not in ("conv", "conv_fused"):
            continue  # a scalar that a body holds
        extras = [outer.get(v, v) for v in n.operands[2:]]
        steps = steps_of(n.attrs["body"], extras, activations=True) if n.op == "conv_fused" else Steps()
        assert steps is not None  # the pass took nothing else
        stages.append(_Stage(n, outer[n.operands[1]], steps))
    return stages


def _activations(cx: Lowering, stages: Sequence[_Stage]) -> dict[str, Any]:
    """What a call needs for the activations of its convolutions."""
    bodies = [s.steps.activation for s in stages]
    made = [
        None if b is None else codegen.map_kernel(cx.generated, b, (1, 1), DType.f32, epilogue=True) for b in bodies
    ]
    symbols = {s[0] for s in made if s is not None}
    if not symbols:
        return {}
    cx.kernels.update(symbols)
    return {"epilogue": codegen.activations(cx.generated, made)}


def _results(cx: Lowering, node: Node) -> list[Buf]:
    """The image, and where it is asked for the sums of its rows, as the kernels make them."""
    return [as_rows(cx, cx.out(node, i, order=channels_last(4))) for i in range(len(node.types))]


NEAR = 20 << 10  # bytes of a pair's first result that are made and read at a time


def _blocks(node: Node, w: packing.Array, x: Buf | None, vlen: int) -> packing.Blocks:
    """The blocking of a convolution whose results are stored as they come. ``x``: what it reads; None: pixels that
    follow each other."""
    oc, cg = w.shape[:2]
    t, taps = node.types[0], w[0, 0].size
    lines = is_pointwise(node, taps) and all(s == 1 for s in node.attrs["stride"])
    pixels = t.shape[0] * product(t.shape[2:])
    return packing.Shape(
        oc, cg, 1, taps, t.dtype.itemsize, vlen, x is None or innermost(x), True,
        pixels=pixels if isinstance(pixels, int) else None, direct=True, lines=lines and (x is None or one_line(x)),
    ).rule()  # fmt: skip


@lowers("conv_pair")
def lower_conv_pair(cx: Lowering, node: Node) -> None:
    first, deep = _stages(cx, node)
    weights = [cx.constant_of(s.weights) for s in (first, deep)]
    x = cx.strided(node.operands[0])
    w, w_deep = weights
    if w is None or w_deep is None:
        cx.note(node, "weights that are no constants")
        cx.lower_decomposed(node)
        return
    x = readable(cx, x, w.shape[1], True)
    vlen, itemsize = cx.target.vlen, DType.f32.itemsize
    oc, spatial = w.shape[0], first.node.types[0].shape[2:]
    blocks = _blocks(first.node, w, x, vlen)
    deep_blocks = packing.depthwise_blocks(oc, w_deep[0, 0].size, itemsize, packed=True)
    described: list[Dim] = []
    own: list[Buf | None] = [x]
    limits: list[float] = []
    for s, a, b, packed in (
        (first, w, blocks, packing.pack_conv(w, 1, vlen)),
        (deep, w_deep, deep_blocks, packing.pack_depthwise(w_deep)),
    ):
        shape = s.node.types[0].shape[2:]
        described += [True, False, False, *geometry(s.node.attrs, a.shape, oc, shape), *b.attrs, s.steps.bits]
        own += [cx.const(packed), *step_operands(cx, s.steps, oc, 4)]
        limits += s.steps.clamp or ()
    pixels = math.prod(d for d in spatial if isinstance(d, int))  # constant: the pass takes no others
    work, panel = dims.ceildiv(blocks.thread_scratch, 64) * 64, blocks.nv * vlen // itemsize
    cols = max(1, min(NEAR // (itemsize * pixels), oc) // panel) * panel
    cx.call(
        "effc_conv_pair_f32", own, _results(cx, node), [cols, work, *described], limits,
        scratch=blocks.scratch, thread_scratch=work + itemsize * pixels * cols, **_activations(cx, (first, deep)),
    )  # fmt: skip


@lowers("conv_chain")
def lower_conv_chain(cx: Lowering, node: Node) -> None:
    stages = _stages(cx, node)
    weights = [cx.constant_of(s.weights) for s in stages]
    chosen = plan([s.node for s in stages])
    x = cx.strided(node.operands[0])
    first = stages[0].node.attrs["groups"] == 1
    if any(w is None for w in weights) or isinstance(chosen, str) or (not first and not innermost(x)):
        cx.note(node, chosen if isinstance(chosen, str) else "weights that are no constants, or channels not innermost")
        cx.lower_decomposed(node)
        return
    if first:
        w = weights[0]
        assert w is not None
        taps = w[0, 0].size
        x = readable(cx, x, w.shape[1], is_pointwise(stages[0].node, taps))
    _emit(cx, stages, [w for w in weights if w is not None], x, _results(cx, node), chosen)


def _emit(
    cx: Lowering, stages: Sequence[_Stage], weights: Sequence[packing.Array], x: Buf, outs: list[Buf], chosen: Plan
) -> None:
    vlen, itemsize = cx.target.vlen, DType.f32.itemsize
    own: list[Buf | None] = [x]
    limits: list[float] = []
    scratch: Dim = 64 * 256  # a Kept of conv_chain.hpp for each thread that a pool may have
    work: Dim = 0
    described: list[Dim] = []
    panel = 2 * vlen // itemsize  # channels that are made together
    for s, w in zip(stages, weights, strict=True):
        oc = w.shape[0]
        spatial = s.node.types[0].shape[2:]
        depthwise = s.node.attrs["groups"] > 1
        if depthwise:
            blocks = packing.depthwise_blocks(oc, w[0, 0].size, itemsize, packed=True)
            packed = packing.pack_depthwise(w)
        else:
            blocks = _blocks(s.node, w, x if s is stages[0] else None, vlen)
            packed = packing.pack_conv(w, 1, vlen)
            work = dims.maximum(work, dims.ceildiv(blocks.thread_scratch, 64) * 64)
            if s is stages[0]:
                panel = blocks.nv * vlen // itemsize
            scratch = scratch + blocks.scratch
        described += [True, False, False, *geometry(s.node.attrs, w.shape, oc, spatial), *blocks.attrs, s.steps.bits]
        own += [cx.const(packed), *step_operands(cx, s.steps, oc, 4)]
        limits += s.steps.clamp or ()
    cols = dims.maximum(1, chosen.cols // panel) * panel
    first, last = (s.node.attrs["groups"] == 1 for s in (stages[0], stages[-1]))
    buffers = chosen.buffers
    if not last:  # a block's channels: the last one has those that are left, too
        buffers = buffers * dims.minimum(weights[-1].shape[0], 2 * cols)
    attrs: list[Dim] = [first, chosen.rows, chosen.kept, cols, work, chosen.part, last, *described]
    cx.call(
        "effc_conv_chain_f32", own, outs, attrs, limits, scratch=scratch,
        thread_scratch=work + buffers, **_activations(cx, stages),
    )  # fmt: skip
