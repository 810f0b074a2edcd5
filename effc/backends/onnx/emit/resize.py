"""Interpolation.

ONNX's Resize where onnxruntime's agrees with the op's definition; otherwise each dim is a product with the matrix of
its weights, which the op's reference computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Node
from ....ir.ops.resize import _nearest_index, _positions, weights
from ..context import Cx, Refuse
from . import emits
from .pool import product_along

MATRIX_LIMIT = 1 << 24  # elements of one dim's weights


@emits("resize", parts=True)
def resize(cx: Cx, node: Node, x: str) -> str:
    a, v = node.attrs, node.operands[0]
    dtype = cx.dtype(x)
    if 0 in node.types[0].shape:
        return cx.fill(0, node.types[0].shape, dtype)
    if _as_resize(node, dtype):
        mode = {"linear": "linear", "cubic": "cubic", "nearest": "nearest"}[a["mode"]]
        sizes = cx.shape((*v.shape[:2], *a["size"]))
        extra = {"cubic_coeff_a": a["cubic_a"]} if mode == "cubic" else {}
        if mode == "nearest":
            extra = {"nearest_mode": a["nearest"]}
        return cx.op("Resize", x, None, None, sizes, mode=mode, coordinate_transformation_mode=a["coords"], **extra)
    if not all(isinstance(n, int) for n in (*v.shape[2:], *a["size"])):
        raise Refuse(f"resizing in mode {a['mode']}, {a['coords']} between sizes that are not constant")
    real: Any = np.float64 if dtype is DType.f64 else np.float32
    beyond: Any = np.zeros((), bool)
    y = x if a["mode"] == "nearest" else cx.cast(x, dtype.compute)
    for d, out in enumerate(a["size"]):
        n: Any = v.shape[2 + d]
        scale = a["scales"][d] if a["scales"] is not None else None
        roi = a["roi"][d] if a["roi"] is not None else None
        position, ratio = _positions(n, out, a["coords"], scale, roi, real)
        if a["mode"] == "nearest":
            at = _nearest_index(position, n, out, a["nearest"], a["coords"], ratio, real)
            y = cx.op("Gather", y, cx.const(at), axis=2 + d)
            outside = (position < 0) | (position > n - 1)
        else:
            if n * out > MATRIX_LIMIT:
                raise Refuse(f"resizing from {n} to {out} in mode {a['mode']}, {a['coords']}")
            matrix, outside = weights(
                n, out, a["mode"], a["coords"], scale, a["antialias"], a["cubic_a"], a["nearest"],
                a["exclude_outside"], roi, real,
            )  # fmt: skip
            y = product_along(cx, y, v.rank, 2 + d, matrix.T)
        beyond = beyond | outside.reshape([-1 if i == d else 1 for i in range(len(a["size"]))])
    y = cx.cast(y, dtype)
    if a["coords"] == "tf_crop_and_resize":
        y = cx.op("Where", cx.const(np.asarray(beyond)), cx.const(np.asarray(a["extrapolation"]), dtype), y)
    return y


def _as_resize(node: Node, dtype: DType) -> bool:
    """Whether ONNX's Resize, as onnxruntime runs it, is the op: f32, 2-d, the ratio of the sizes as scale."""
    a = node.attrs
    plain = not a["antialias"] and not a["exclude_outside"] and a["scales"] is None and a["roi"] is None
    if not plain or dtype is not DType.f32 or len(a["size"]) != 2:
        return False
    if a["mode"] == "nearest":
        return a["coords"] == "asymmetric" and a["nearest"] == "floor"
    if a["mode"] == "linear":
        return a["coords"] in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    return False


@emits("grid_sample", wide=True)
def grid_sample(cx: Cx, node: Node, x: str, grid: str) -> str:
    a, v = node.attrs, node.operands[0]
    if 0 in node.types[0].shape:
        return cx.fill(0, node.types[0].shape, cx.dtype(x))
    align = a["align_corners"]
    if a["pixels"]:
        sizes = v.shape[2:][::-1]
        if not all(isinstance(n, int) for n in sizes):
            raise Refuse("sampling at pixels of an image of unknown size")
        n = np.asarray(sizes, np.float64)
        grid = cx.cast(grid, DType.f64)
        if a["mode"] == "nearest":  # rounded here: a half would not survive the way through [-1, 1] and back
            if a["border"] == "reflection":
                grid = _reflected(cx, grid, n, align)
            grid = cx.op("Round", grid)
        if align:
            grid = cx.op("Sub", cx.op("Mul", grid, cx.const(2 / np.maximum(n - 1, 1))), cx.const(np.asarray(1.0)))
        else:
            shifted = cx.op("Add", cx.op("Mul", grid, cx.const(np.asarray(2.0))), cx.const(np.asarray(1.0)))
            grid = cx.op("Sub", cx.op("Div", shifted, cx.const(n)), cx.const(np.asarray(1.0)))
        x64 = cx.cast(x, DType.f64)
        return cx.cast(_sample(cx, a, x64, grid), cx.dtype(x))
    return _sample(cx, a, x, grid)


def _reflected(cx: Cx, p: str, n: Any, align: bool) -> str:
    """Positions outside [0, n - 1], or without ``align`` [-1/2, n - 1/2], mirrored at its ends, then clipped."""
    low = 0.0 if align else -0.5
    span = np.maximum(n - 1, 1e-300) if align else n
    q = cx.op("Abs", cx.op("Sub", p, cx.const(np.asarray(low))))
    flips = cx.op("Floor", cx.op("Div", q, cx.const(span)))
    extra = cx.op("Sub", q, cx.op("Mul", flips, cx.const(span)))
    two = cx.const(np.asarray(2.0))
    odd = cx.op("Equal", cx.op("Mod", flips, two, fmod=1), cx.const(np.asarray(1.0)))
    p = cx.op("Add", cx.op("Where", odd, cx.op("Sub", cx.const(span), extra), extra), cx.const(np.asarray(low)))
    return cx.op("Max", cx.op("Min", p, cx.const(n - 1)), cx.const(np.asarray(0.0)))


def _sample(cx: Cx, a: Any, x: str, grid: str) -> str:
    mode = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}[a["mode"]]
    return cx.op("GridSample", x, grid, mode=mode, padding_mode=a["border"], align_corners=int(a["align_corners"]))
