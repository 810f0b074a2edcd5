"""Convolutions: results have their channels innermost; constant weights are packed; a body of elementwise ops
becomes an epilogue.

The kernels' rows are output pixels, their columns output channels: an epilogue sees rank 4 (batch, 1, pixels,
channels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....cost.calls import Tensor
from ....ir.dims import Dim, product
from ....ir.dtypes import DType
from ....ir.graph import Graph, Node
from ....passes.fuse.steps import Steps, steps_of
from ....runtime.errors import EffcError
from .. import codegen
from ..packing import conv as packing
from . import Buf, Lowering, fused, lowers, views

SCALE = 16  # kScale of conv.hpp


def channels_last(rank: int) -> tuple[int, ...]:
    """Physical order with dim 1 innermost."""
    return (0, *range(2, rank), 1)


def innermost(x: Buf) -> bool:
    """The channels are the innermost dim in memory."""
    return x.shape[1] == 1 or x.strides[1] == 1


def as_rows(cx: Lowering, buf: Buf) -> Buf:
    """[N, C, *S] seen as (N, 1, pixels, C)."""
    order = channels_last(buf.rank)
    moved = cx.view(buf, [buf.shape[i] for i in order], [buf.strides[i] for i in order])
    return views.reshape(cx, moved, (buf.shape[0], 1, product(buf.shape[2:]), buf.shape[1]))


def _three(values: Sequence[Dim], fill: int) -> list[Dim]:
    return [fill] * (3 - len(values)) + list(values)


def _constant_sizes(node: Node, w: Buf) -> tuple[int, ...]:
    sizes = tuple(d for d in w.shape if isinstance(d, int))
    if len(sizes) != w.rank:
        raise EffcError(
            f"{node.op}: the weights' shape {w.shape} must be constant",
            op=node.op,
            loc=node.loc,
            pass_name="lower",
            hint="fix the sizes of the weights; only batch and image may be dynamic",
        )
    return sizes


def geometry(a: Mapping[str, Any], sizes: Sequence[int], channels: int, spatial: Sequence[Dim]) -> list[Dim]:
    """Attributes kGroups to kSpatial of conv.hpp, for a convolution's attributes, weights of ``sizes`` and a result of
    ``channels``."""
    low = [p[0] for p in a["padding"]]
    sides = ((sizes[2:], 1), (a["stride"], 1), (low, 0), (a["dilation"], 1), (spatial, 1))
    return [a["groups"], channels, *(d for values, fill in sides for d in _three(values, fill))]


def readable(cx: Lowering, x: Buf, cg: int, pointwise: bool) -> Buf:
    """``x`` as the kernel for ``cg`` channels a group reads it: channels innermost, unless they are few, or it is
    pointwise."""
    return x if innermost(x) or cg < 8 or pointwise else cx.in_order(x, channels_last(x.rank))


def is_pointwise(node: Node, taps: int) -> bool:
    """Each result comes from one pixel."""
    return taps == 1 and all(p == 0 for both in node.attrs["padding"] for p in both)


def one_line(x: Buf) -> bool:
    """The pixels of each image follow each other at equal distances, channels innermost, and the images do."""
    want = x.strides[-1]
    for i in (*range(x.rank - 1, 1, -1), 0):
        if x.shape[i] != 1 and x.strides[i] != want:
            return False
        want = want * x.shape[i]
    return innermost(x)


def step_operands(cx: Lowering, steps: Steps, channels: int, rank: int) -> list[Buf | None]:
    """Bias and residual as the kernels take them (take_steps of conv.hpp)."""
    own: list[Buf | None] = []
    if steps.bias is not None:
        bias = views.reshape(cx, cx.strided(steps.bias), (channels,))
        own.append(bias if bias.strides[0] == 1 else cx.in_order(bias, None))
    if steps.residual is not None:
        own.append(as_rows(cx, cx.in_order(cx.strided(steps.residual), channels_last(rank))))
    return own


def _emit(
    cx: Lowering,
    node: Node,
    outs: list[Buf],
    spatial: Sequence[Dim],
    body: Graph | None,
    extras: list[Buf],
    steps: Steps | None = None,
    scale: Buf | None = None,
) -> None:
    """``scale`` [N or 1, C]: of x's channels, for a pointwise convolution of images with their channels innermost."""
    attrs = node.attrs
    x, w = cx.strided(node.operands[0]), cx.strided(node.operands[1])
    transposed = node.op == "conv_transpose" or attrs.get("output_padding") is not None
    sizes = _constant_sizes(node, w)
    groups, kernel = attrs["groups"], sizes[2:]
    taps = int(product(kernel))  # type: ignore[arg-type]
    oc = sizes[1] * groups if transposed else sizes[0]
    cg = sizes[0] // groups if transposed else sizes[1]
    compute = x.dtype.compute
    common = geometry(attrs, sizes, oc, spatial)
    if compute not in (DType.f32, DType.f64):
        scratch = groups * taps * cg * (oc // groups) * compute.itemsize
        cx.call(
            "effc_conv_plain",
            [x, w],
            outs,
            [0, transposed, 0, *common, 0, 0, 0, 0, 0],
            scratch=scratch,
            thread_scratch=oc * compute.itemsize,
        )
        return
    weights = cx.constant_of(node.operands[1])
    packed = weights is not None
    depthwise = cg == 1 and groups > 1 and not transposed
    convert = x.dtype is not compute
    if depthwise and oc != groups:
        convert = True
    vlen = cx.target.vlen
    plain, share = not depthwise and not transposed, 1
    if packed and plain:
        share = packing.sharing(groups, cg, oc // groups, taps, vlen // compute.itemsize)
    if not convert:
        few = plain and share == 1  # those that need not have their channels innermost
        x = readable(cx, x, cg if few else 8, few and is_pointwise(node, taps))
    elems = x.numel * (oc // groups if depthwise else 1) if convert else 0
    direct = body is None and outs[0].dtype is compute
    if depthwise:
        ways = [packing.depthwise_blocks(oc, taps, compute.itemsize, packed=packed, copy_elems=elems, direct=direct)]
        name = f"effc_conv_dw_{compute}"
    else:
        lines = is_pointwise(node, taps) and not transposed and all(s == 1 for s in attrs["stride"])
        shape = packing.Shape(
            oc // groups * share, cg, groups // share, taps, compute.itemsize, vlen, convert or innermost(x), packed,
            elems, pixels=x.shape[0] * product(spatial), direct=direct, lines=lines and (convert or one_line(x)),
            scaled=scale is not None, share=share,
        )  # fmt: skip
        choose = cx.options.decide is not None and (transposed or not shape.grouped)
        ways = shape.candidates() if choose else [shape.rule()]
        name = f"effc_conv_{compute}"
    steps = steps or Steps()
    bits = steps.bits + (SCALE if scale is not None else 0)
    scales = [] if scale is None else [scale]
    body = body or steps.activation
    symbol, values = fused.epilogue(cx, body, compute, extras, outs) if body is not None else (None, [])
    count = "" if body is None else codegen.counts(body)
    before = [packed, transposed, convert, *common]
    size = 64 + -(-(oc // groups) // (vlen // compute.itemsize)) * vlen * groups * cg * taps
    seen = Tensor("u8", (size,), (1,)) if packed else w  # the weights as the kernel will get them
    chosen = cx.decide(
        name,
        [x, seen, *_operands_of(cx, steps, oc), *scales, *extras],
        outs,
        [[*before, *b.attrs, bits] for b in ways],
        [b.label for b in ways],
        n_own=2 + (steps.bias is not None) + (steps.residual is not None) + len(scales),
        epilogue=symbol is not None,
        body=count,
    )
    blocks = ways[chosen]
    if weights is not None:
        w = cx.const(
            packing.pack_depthwise(weights)
            if depthwise
            else packing.pack_conv(weights, groups // share, vlen, transposed=transposed, nv=blocks.nv)
        )
    own = [x, w, *step_operands(cx, steps, oc, x.rank), *scales]
    cx.call(
        name,
        [*own, *extras],
        outs,
        [*before, *blocks.attrs, bits, *values],
        steps.clamp or (),
        n_own=len(own),
        epilogue=symbol,
        scratch=blocks.scratch,
        thread_scratch=blocks.thread_scratch,
        body=count,
    )


def _operands_of(cx: Lowering, steps: Steps, channels: int) -> list[Tensor | Buf]:
    """The operands of ``steps``, as a decision sees them: before any copy is made."""
    out: list[Tensor | Buf] = []
    if steps.bias is not None:
        out.append(Tensor(steps.bias.dtype.value, (channels,), (1,)))
    if steps.residual is not None:
        out.append(cx.strided(steps.residual))
    return out


@lowers("conv", "conv_transpose")
def lower_conv(cx: Lowering, node: Node) -> None:
    out = cx.out(node, order=channels_last(node.types[0].rank))
    _emit(cx, node, [as_rows(cx, out)], out.shape[2:], None, [])


@lowers("conv_fused")
def lower_conv_fused(cx: Lowering, node: Node) -> None:
    _fused(cx, node, node, None)


def _fused(cx: Lowering, node: Node, conv: Node, scale: Buf | None) -> None:
    """A ``conv`` or ``conv_fused`` of values of the graph, which makes what ``node`` does."""
    if conv.op == "conv":
        out = cx.out(node, order=channels_last(node.types[0].rank))
        _emit(cx, conv, [as_rows(cx, out)], out.shape[2:], None, [], scale=scale)
        return
    node, made = conv, node
    body: Any = node.attrs["body"]
    shape = body.inputs[0].types[0].shape
    fits = all(t.shape == shape for t in node.types)
    if not fits or node.operands[0].type.dtype.compute not in (DType.f32, DType.f64):
        cx.note(
            made,
            "a result of another shape than the convolution's"
            if not fits
            else f"no epilogue for {node.operands[0].type.dtype}",
        )
        cx.lower_decomposed(made)
        return
    depthwise = node.operands[1].shape[1] == 1 and node.attrs["output_padding"] is None and node.attrs["groups"] > 1
    plain = node.operands[0].type.dtype in (DType.f32, DType.f64)
    steps = steps_of(body, node.operands[2:], activations=depthwise) if plain else None
    if steps is not None and not (depthwise and steps.residual is not None):
        out = cx.out(made, order=channels_last(len(shape)))
        _emit(cx, node, [as_rows(cx, out)], shape[2:], None, [], steps, scale)
        return
    extras = [as_rows(cx, views.broadcast(cx, cx.strided(v), shape)) for v in node.operands[2:]]
    outs = [as_rows(cx, cx.out(made, i, order=channels_last(len(shape)))) for i in range(len(node.types))]
    _emit(cx, node, outs, shape[2:], body, extras, scale=scale)


@lowers("conv_scaled")
def lower_conv_scaled(cx: Lowering, node: Node) -> None:
    body: Graph = node.attrs["body"]
    outer = {n[0]: v for n, v in zip(body.inputs, node.operands, strict=True)}
    scaling, conv = (n for n in body.nodes if n.op in ("mul", "conv", "conv_fused"))
    x, scale = node.operands[:2]
    image, by = cx.strided(x), cx.strided(scale)
    if not innermost(image) or cx.constant_of(outer[conv.operands[1]]) is None:
        cx.note(node, "weights that are no constants, or channels not innermost")
        cx.lower_decomposed(node)
        return
    by = views.reshape(cx, by, by.shape[:2])
    if by.strides[1] != 1 and by.shape[1] != 1:
        by = cx.in_order(by, None)
    plain = replace(conv, inputs=tuple(x if v == scaling[0] else outer.get(v, v) for v in conv.operands))
    _fused(cx, node, plain, by)
