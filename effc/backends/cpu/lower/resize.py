"""Interpolation. The result's order in memory follows x's."""

from __future__ import annotations

import math

from ....ir import dims
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Node
from ....ir.ops.resize import BORDERS, COORDS, MODES, NEAREST, SAMPLE_MODES
from . import Buf, Lowering, lowers
from .conv import channels_last


def _order(x: Buf) -> tuple[int, ...] | None:
    return channels_last(x.rank) if x.strides[1] == 1 and x.shape[1] != 1 else None


def _align(n: Dim) -> Dim:
    return dims.floordiv(n + 63, 64) * 64


@lowers("resize")
def lower_resize(cx: Lowering, node: Node) -> None:
    a = node.attrs
    x = cx.strided(node.operands[0])
    out = cx.out(node, order=_order(x))
    nd = x.rank - 2
    real = DType.f64 if x.dtype is DType.f64 else DType.f32
    taps: list[Dim] = [1] * (3 - nd)
    scratch: Dim = 3 * _align(64)
    for d in range(nd):
        base = {"nearest": 1, "linear": 2, "cubic": 4}[a["mode"]]
        room: Dim = base
        if a["antialias"]:  # twice the support, and one more at either end
            scale = a["scales"][d] if a["scales"] is not None else None
            shrink: Dim = (
                math.ceil(1 / scale) if scale else dims.ceildiv(x.shape[2 + d], dims.maximum(out.shape[2 + d], 1))
            )
            if a["coords"] == "align_corners":
                shrink = dims.ceildiv(x.shape[2 + d], dims.maximum(out.shape[2 + d] - 1, 1))
            room = dims.maximum(shrink, 1) * base + 2
        taps.append(room)
    sizes = [1] * (3 - nd) + list(out.shape[2:])
    for n, t in zip(sizes, taps, strict=True):
        scratch = scratch + _align(n * t * 8) + _align(n * t * real.itemsize) + _align(n * 4) + _align(n)
    line = x.shape[-1] * (x.shape[1] if x.strides[1] == 1 else 1) * real.itemsize
    attrs: list[Dim] = [*taps, MODES.index(a["mode"]), COORDS.index(a["coords"]), int(a["antialias"])]
    attrs += [NEAREST.index(a["nearest"]), int(a["exclude_outside"]), nd]
    scales = [0.0] * (3 - nd) + [float(s or 0.0) for s in a["scales"] or (0.0,) * nd]
    roi = [0.0, 1.0] * (3 - nd) + [float(v) for pair in a["roi"] or ((0.0, 1.0),) * nd for v in pair]
    cx.call(
        "effc_resize",
        [x],
        [out],
        attrs,
        [*scales, *roi, a["cubic_a"], a["extrapolation"]],
        scratch=scratch,
        thread_scratch=line,
    )


@lowers("grid_sample")
def lower_grid_sample(cx: Lowering, node: Node) -> None:
    a = node.attrs
    x, grid = cx.strided(node.operands[0]), cx.strided(node.operands[1])
    out = cx.out(node, order=_order(x))
    cx.call(
        "effc_grid_sample",
        [x, grid],
        [out],
        [SAMPLE_MODES.index(a["mode"]), BORDERS.index(a["border"]), int(a["align_corners"]), int(a["pixels"])],
    )
