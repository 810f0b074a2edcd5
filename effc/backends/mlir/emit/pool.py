"""Pooling and resizing of images."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Node
from ....ir.types import TensorType
from ..context import Cx, Ref, Refuse
from . import emits


def symmetric(node: Node) -> list[int]:
    if any(low != high for low, high in node.attrs["padding"]):
        raise Refuse("padding that differs at the two ends of a dim")
    return [low for low, _ in node.attrs["padding"]]


def windows(node: Node, *names: str) -> list[list[int]]:
    """Kernel, stride, padding, then the named ones, in two dims at least: ATen's pools of one dim do less."""
    a = node.attrs
    lists = [list(a["kernel"]), list(a["stride"]), symmetric(node), *(list(a[n]) for n in names)]
    if len(lists[0]) == 1:
        lists = [[0 if i == 2 else 1, *v] for i, v in enumerate(lists)]
    return lists


def as_image(cx: Cx, x: Ref) -> Ref:
    """A line as an image of one row."""
    return cx.reshape(x, (*x.shape[:2], 1, x.shape[2])) if x.rank == 3 else x


def image(t: TensorType) -> TensorType:
    return t.with_shape((*t.shape[:2], 1, t.shape[2])) if t.rank == 3 else t


@emits("max_pool")
def max_pool(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    nd = max(x.rank - 2, 2)
    name = f"max_pool{nd}d_with_indices" if a["indices"] else f"max_pool{nd}d"
    types = [image(t) for t in node.types]
    made = cx.aten(name, as_image(cx, x), *windows(node, "dilation"), a["ceil_mode"], out=types)
    return tuple(cx.reshape(y, t.shape) for y, t in zip(made, node.types, strict=True))


@emits("avg_pool")
def avg_pool(cx: Cx, node: Node, x: Ref) -> Any:
    a, out = node.attrs, node.types[0]
    nd = max(x.rank - 2, 2)
    if x.dtype.is_int:
        raise Refuse(f"ATen has no means of {x.dtype}")
    work = x.dtype.compute if nd == 3 else x.dtype  # PyTorch has no kernel for short floats in three dims
    args = (*windows(node), a["ceil_mode"], a["count_include_pad"], a["divisor"] or None)
    y = cx.aten(f"avg_pool{nd}d", as_image(cx, cx.convert(x, work)), *args, out=image(out).with_dtype(work))
    return cx.convert(cx.reshape(y, out.shape), out.dtype)


@emits("adaptive_avg_pool")
def adaptive_avg_pool(cx: Cx, node: Node, x: Ref) -> Any:
    return cx.aten(f"adaptive_avg_pool{x.rank - 2}d", x, list(node.attrs["size"]), out=node.types[0])


@emits("adaptive_max_pool")
def adaptive_max_pool(cx: Cx, node: Node, x: Ref) -> Any:
    y = node.types[0]
    types = [y, y.with_dtype(DType.i64)]
    made = cx.aten(f"adaptive_max_pool{x.rank - 2}d", x, list(node.attrs["size"]), out=types)
    return made if node.attrs["indices"] else made[0]


LINEAR = {1: "upsample_linear1d", 2: "upsample_bilinear2d", 3: "upsample_trilinear3d"}


@emits("resize")
def resize(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    nd, mode, coords = x.rank - 2, a["mode"], a["coords"]
    scales = list(a["scales"] or [None] * nd)
    if a["exclude_outside"] or coords == "tf_crop_and_resize":
        raise Refuse("a resize as ONNX alone has it")
    if not x.dtype.is_float and x.dtype is not DType.u8:
        raise Refuse(f"ATen resizes no {x.dtype}")
    size = list(a["size"])
    if mode == "nearest":
        exact = a["nearest"] == "exact"
        if not exact and (coords, a["nearest"]) != ("asymmetric", "floor"):
            raise Refuse("nearest neighbours that ATen rounds in another way")
        name = f"_upsample_nearest_exact{nd}d" if exact else f"upsample_nearest{nd}d"
        return cx.aten(name, x, size, *scales, out=node.types[0])
    if coords not in ("half_pixel", "align_corners"):
        raise Refuse(f"coordinates {coords}")
    align = coords == "align_corners"
    cubic = -0.5 if a["antialias"] else -0.75
    if mode == "cubic" and (nd != 2 or a["cubic_a"] not in (cubic, -0.75)):
        raise Refuse("cubic interpolation other than in two dims with ATen's coefficient")
    if a["antialias"] and nd != 2:
        raise Refuse("antialiasing other than in two dims")
    name = "upsample_bicubic2d" if mode == "cubic" else LINEAR[nd]
    if a["antialias"]:
        name = f"_{name}_aa"
    return cx.aten(name, x, size, align, *scales, out=node.types[0])


@emits("grid_sample")
def grid_sample(cx: Cx, node: Node, x: Ref, grid: Ref) -> Any:
    a = node.attrs
    if a["pixels"]:
        raise Refuse("coordinates in pixels")
    mode = ("bilinear", "nearest", "bicubic").index(a["mode"])
    border = ("zeros", "border", "reflection").index(a["border"])
    return cx.aten("grid_sampler", x, grid, mode, border, a["align_corners"], out=node.types[0])
