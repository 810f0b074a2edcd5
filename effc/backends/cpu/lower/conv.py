"""Convolutions: results have their channels innermost; constant weights are packed; a body of elementwise ops
becomes an epilogue.

The kernels' rows are output pixels, their columns output channels: an epilogue sees rank 4 (batch, 1, pixels,
channels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....ir.dims import Dim, product
from ....ir.dtypes import DType
from ....ir.graph import Graph, Node, Value
from ....runtime.errors import EffcError
from ..packing import conv as packing
from . import Buf, Lowering, fused, lowers, views


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


@dataclass(frozen=True)
class Steps:
    """What the kernel itself does after the sum: bias per channel, residual, clamp (Step in conv.hpp)."""

    bias: Value | None = None
    residual: Value | None = None
    clamp: tuple[float, float] | None = None

    @property
    def bits(self) -> int:
        return (self.bias is not None) + 2 * (self.residual is not None) + 4 * (self.clamp is not None)


def _scalar(v: Value) -> float | None:
    if v.node.op == "constant" and v.node.attrs["data"].size == 1:
        return float(v.node.attrs["data"].reshape(-1)[0])
    return None


def steps_of(body: Graph, operands: Sequence[Value]) -> Steps | None:
    """``body`` as steps: acc, plus at most one operand per channel and one of the result's shape, then limits;
    else None.

    ``operands``: the fused node's extra operands, in the order of the body's inputs after the accumulator."""
    acc = body.inputs[0][0]
    full = acc.type
    if len(body.outputs) != 1 or body.outputs[0].type != full:
        return None
    outer = {n[0]: v for n, v in zip(body.inputs[1:], operands, strict=True)}
    bias: Value | None = None
    residual: Value | None = None
    lo, hi = -math.inf, math.inf
    clamped, value = False, acc
    for n in body.nodes:
        if n.op == "constant":
            continue
        if len(n.operands) != 2 or value not in n.operands or n[0].type != full:
            return None
        other = n.operands[1] if n.operands[0] == value else n.operands[0]
        limit = _scalar(other)
        if n.op == "add" and other in outer and not clamped:
            shape = (1,) * (full.rank - other.type.rank) + other.type.shape
            if bias is None and all(d == 1 for i, d in enumerate(shape) if i != 1) and shape[1] == full.shape[1]:
                bias = outer[other]
            elif residual is None and shape == full.shape:
                residual = outer[other]
            else:
                return None
        elif n.op == "maximum" and limit is not None and limit <= hi:
            lo, clamped = max(lo, limit), True
        elif n.op == "minimum" and limit is not None and limit >= lo:
            hi, clamped = min(hi, limit), True
        else:
            return None
        value = n[0]
    if value != body.outputs[0]:
        return None
    return Steps(bias, residual, (lo, hi) if clamped else None)


def _emit(
    cx: Lowering,
    node: Node,
    outs: list[Buf],
    spatial: Sequence[Dim],
    body: Graph | None,
    extras: list[Buf],
    steps: Steps | None = None,
) -> None:
    attrs = node.attrs
    x, w = cx.strided(node.operands[0]), cx.strided(node.operands[1])
    transposed = node.op == "conv_transpose" or attrs.get("output_padding") is not None
    sizes = _constant_sizes(node, w)
    groups, kernel = attrs["groups"], sizes[2:]
    taps = int(product(kernel))  # type: ignore[arg-type]
    oc = sizes[1] * groups if transposed else sizes[0]
    cg = sizes[0] // groups if transposed else sizes[1]
    compute = x.dtype.compute
    common = [groups, oc, *_three(kernel, 1), *_three(attrs["stride"], 1), *_three([p[0] for p in attrs["padding"]], 0)]
    common += [*_three(attrs["dilation"], 1), *_three(spatial, 1)]
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
    pointwise = taps == 1 and not transposed and all(p == 0 for lo_hi in attrs["padding"] for p in lo_hi)
    if depthwise and oc != groups:
        convert = True
    elif not convert and not innermost(x) and not (not depthwise and not transposed and (cg < 8 or pointwise)):
        x = cx.in_order(x, channels_last(x.rank))
    elems = x.numel * (oc // groups if depthwise else 1) if convert else 0
    vlen = cx.target.vlen
    if depthwise:
        blocks = packing.depthwise_blocks(oc, taps, compute.itemsize, packed=packed, copy_elems=elems)
        name = f"effc_conv_dw_{compute}"
    else:
        blocks = packing.choose_blocks(
            oc // groups,
            cg,
            groups,
            taps,
            compute.itemsize,
            vlen,
            innermost=convert or innermost(x),
            packed=packed,
            copy_elems=elems,
        )
        name = f"effc_conv_{compute}"
    if weights is not None:
        w = cx.const(
            packing.pack_depthwise(weights)
            if depthwise
            else packing.pack_conv(weights, groups, vlen, transposed=transposed)
        )
    steps = steps or Steps()
    symbol, values = fused.epilogue(cx, body, compute, extras, outs) if body is not None else (None, [])
    own: list[Buf | None] = [x, w]
    if steps.bias is not None:
        own.append(views.reshape(cx, cx.strided(steps.bias), (oc,)))
        if own[2] is not None and own[2].strides[0] != 1:
            own[2] = cx.in_order(own[2], None)
    if steps.residual is not None:
        own.append(as_rows(cx, cx.in_order(cx.strided(steps.residual), channels_last(x.rank))))
    cx.call(
        name,
        [*own, *extras],
        outs,
        [packed, transposed, convert, *common, *blocks.attrs, steps.bits, *values],
        steps.clamp or (),
        n_own=len(own),
        epilogue=symbol,
        scratch=blocks.scratch,
        thread_scratch=blocks.thread_scratch,
    )


@lowers("conv", "conv_transpose")
def lower_conv(cx: Lowering, node: Node) -> None:
    out = cx.out(node, order=channels_last(node.types[0].rank))
    _emit(cx, node, [as_rows(cx, out)], out.shape[2:], None, [])


@lowers("conv_fused")
def lower_conv_fused(cx: Lowering, node: Node) -> None:
    body: Any = node.attrs["body"]
    shape = body.inputs[0].types[0].shape
    fits = all(t.shape == shape for t in node.types)
    if not fits or node.operands[0].type.dtype.compute not in (DType.f32, DType.f64):
        cx.note(
            node,
            "a result of another shape than the convolution's"
            if not fits
            else f"no epilogue for {node.operands[0].type.dtype}",
        )
        cx.lower_decomposed(node)
        return
    depthwise = node.operands[1].shape[1] == 1 and node.attrs["output_padding"] is None and node.attrs["groups"] > 1
    steps = steps_of(body, node.operands[2:]) if node.operands[0].type.dtype in (DType.f32, DType.f64) else None
    if steps is not None and not (depthwise and steps.residual is not None):
        out = cx.out(node, order=channels_last(len(shape)))
        _emit(cx, node, [as_rows(cx, out)], shape[2:], None, [], steps)
        return
    extras = [as_rows(cx, views.broadcast(cx, cx.strided(v), shape)) for v in node.operands[2:]]
    outs = [as_rows(cx, cx.out(node, i, order=channels_last(len(shape)))) for i in range(len(node.types))]
    _emit(cx, node, outs, shape[2:], body, extras)
