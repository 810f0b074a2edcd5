"""Pooling and resizing of images."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import Cx, Ref, Refuse
from . import emits


def symmetric(node: Node) -> list[int]:
    if any(low != high for low, high in node.attrs["padding"]):
        raise Refuse("padding that differs at the two ends of a dim")
    return [low for low, _ in node.attrs["padding"]]


@emits("max_pool")
def max_pool(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    nd = x.rank - 2
    args = (list(a["kernel"]), list(a["stride"]), symmetric(node), list(a["dilation"]), a["ceil_mode"])
    if not a["indices"]:
        return cx.aten(f"max_pool{nd}d", x, *args, out=node.types[0])
    if nd == 1:
        raise Refuse("places of maxima in one dim")
    return cx.aten(f"max_pool{nd}d_with_indices", x, *args, out=node.types)


@emits("avg_pool")
def avg_pool(cx: Cx, node: Node, x: Ref) -> Any:
    a = node.attrs
    nd = x.rank - 2
    if x.dtype.is_int:
        raise Refuse(f"ATen has no means of {x.dtype}")
    args: list[Any] = [list(a["kernel"]), list(a["stride"]), symmetric(node), a["ceil_mode"], a["count_include_pad"]]
    if nd > 1:
        return cx.aten(f"avg_pool{nd}d", x, *args, a["divisor"] or None, out=node.types[0])
    if a["divisor"]:
        raise Refuse("a divisor of its own in one dim")
    return cx.aten("avg_pool1d", x, *args, out=node.types[0])


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
    if x.dtype.is_complex:
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
