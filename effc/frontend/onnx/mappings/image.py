"""Resizing and sampling of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir.contents import Ratio, Unknown, ratio
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, onnx_op, refuse

refuse("pictures in files are not decoded", "ImageDecoder")

Scales = list[float | None]  # None: the quotient of the sizes


def _scaled(cx: Context, x: Value, axes: Sequence[int], scales: Value) -> tuple[list[Dim], Scales]:
    """Sizes floor(size * scale), and the scales. Sizes that are not constant take scales that are simple fractions of
    sizes; for others the result's size is worked out while running.
    """
    c = cx.content(scales)
    if c is None:
        c = cx.array(scales, "scales")
    given = c.reshape(-1).tolist()
    if len(given) != len(axes):
        raise Unsupported(f"{len(given)} scales for {len(axes)} dims")
    sizes: list[Dim] = []
    factors: Scales = []
    for axis, s in zip(axes, given):
        n = x.shape[axis]
        if isinstance(n, int) and not isinstance(s, Ratio):  # in single precision, as shape inference does
            size = math.floor(np.float32(n) * np.float32(s))
            sizes.append(size)
            factors.append(None if n * s == size else float(s))
            continue
        try:
            r = ratio(s)
        except Unknown:
            wanted = cx.op("floor", cx.mul(cx.scalar(n, DType.f32), float(s)))
            sizes.append(cx.dim(cx.convert(wanted, DType.i64), "a size"))
            factors.append(float(s))
            continue
        whole = (r * n).reduced()
        sizes.append(D.floordiv(whole.num, whole.den))
        if whole.den == 1:
            factors.append(None)
        elif isinstance(s, Ratio):
            raise Unsupported(f"the scale {s.num}/{s.den} of a size {n}")
        else:
            factors.append(float(s))
    return sizes, factors


def _kept_ratio(cx: Context, x: Value, axes: Sequence[int], sizes: list[Dim], policy: str) -> tuple[list[Dim], Scales]:
    """One scale for all axes: the least or the largest that the sizes ask for."""
    have = [x.shape[a] for a in axes]
    if policy not in ("not_larger", "not_smaller"):
        raise Unsupported(f"keep_aspect_ratio_policy {policy}")
    if not all(isinstance(d, int) for d in (*have, *sizes)):
        raise Unsupported(f"keep_aspect_ratio_policy {policy} for sizes that are not constant")
    quotients = [float(np.float32(w) / np.float32(h)) for w, h in zip(sizes, have)]  # type: ignore[arg-type]
    scale = min(quotients) if policy == "not_larger" else max(quotients)
    return [math.floor(scale * h + 0.5) for h in have], [scale] * len(have)  # type: ignore[operator]


def resized(
    cx: Context, x: Value, axes: Sequence[int], sizes: Sequence[Dim], scales: Scales, roi: Any = None, **attrs: Any
) -> Value:
    """x with new sizes along axes, which come last for the IR's op. An axis that keeps its size is left out: every
    mode gives it back as it is. More than three are done one after another.
    """
    shape = list(x.shape)
    crop = attrs.get("coords") == "tf_crop_and_resize"
    todo = [
        (a, s, k, None if roi is None else roi[i])
        for i, (a, s, k) in enumerate(zip(axes, sizes, scales, strict=True))
        if shape[a] != s or (k is not None and k != 1) or (crop and tuple(roi[i]) != (0.0, 1.0))
    ]
    for a, s, _, _ in todo:
        shape[a] = s
    if 0 in shape or 0 in x.shape:
        return cx.full(0, shape, x.dtype)
    if crop and len(todo) > 3:
        raise Unsupported("more than three dims that are cropped")
    todo.sort(key=lambda t: t[0])
    y = x
    for first in range(0, len(todo), 3):
        part = todo[first : first + 3]
        at = [a for a, _, _, _ in part]
        rest = [d for d in range(x.rank) if d not in at]
        moved = cx.permute(y, [*rest, *at])
        lead = moved.shape[: len(rest)]
        # N and C as they are where those are all
        flat = moved if len(rest) == 2 else cx.reshape(moved, (1, D.product(lead), *moved.shape[len(rest) :]))
        factors = tuple(k for _, _, k, _ in part)
        flat = cx.b.op(
            "resize", flat, size=tuple(s for _, s, _, _ in part), scales=factors if any(factors) else None,
            roi=tuple(tuple(r) for _, _, _, r in part) if crop else None, **attrs,
        )  # fmt: skip
        moved = cx.reshape(flat, (*lead, *(s for _, s, _, _ in part)))
        back = [*rest, *at]
        y = cx.permute(moved, [back.index(d) for d in range(x.rank)])
    return y


def _places(cx: Context, n: Dim, out: Dim, scale: float | None, coords: str) -> tuple[Value, Value]:
    """Where in the input each output lies, and the scale, in f64: the standard's formulas with its own notion of the
    output's length, scale * n, which need not be whole.
    """
    f = DType.f64
    size, many = cx.scalar(n, f), cx.scalar(out, f)
    s = cx.op("div", many, size) if scale is None else cx.const(scale, f)
    length = many if scale is None else cx.op("mul", s, size)
    o = cx.iota(out, f)
    one = cx.const(1.0, f)
    half = cx.sub(cx.op("div", cx.add(o, 0.5), s), cx.const(0.5, f))
    if coords == "half_pixel":
        return half, s
    if coords == "pytorch_half_pixel":
        return cx.where(cx.op("gt", length, 1.0), half, 0.0), s
    if coords == "half_pixel_symmetric":
        lost = cx.op("sub", one, cx.op("div", many, length))
        return cx.op("add", half, cx.mul(cx.op("mul", size, lost), 0.5)), s
    if coords == "asymmetric":
        return cx.op("div", o, s), s
    if coords == "align_corners":
        gaps = cx.op("sub", length, one)
        step = cx.op("div", cx.op("sub", size, one), cx.where(cx.op("eq", gaps, 0.0), 1.0, gaps))
        return cx.where(cx.op("eq", gaps, 0.0), 0.0, cx.op("mul", o, step)), s
    raise Unsupported(f"antialias with {coords}")


def _tent(cx: Context, t: Value) -> Value:
    return cx.op("maximum", cx.sub(1.0, t), 0.0)  # type: ignore[no-any-return]


def _cubic(cx: Context, t: Value, a: float) -> Value:
    """Keys 1981, Cubic convolution interpolation, at distances t >= 0."""
    near = cx.add(cx.op("mul", cx.op("mul", cx.add(cx.mul(t, a + 2), -(a + 3)), t), t), 1.0)
    far = cx.add(cx.op("mul", cx.add(cx.op("mul", cx.add(cx.mul(t, a), -5 * a), t), 8 * a), t), -4 * a)
    return cx.where(cx.op("le", t, 1.0), near, cx.where(cx.op("lt", t, 2.0), far, 0.0))


def _by_positions(
    cx: Context, x: Value, axis: int, out: Dim, scale: float | None, coords: str, kind: str, nearest: str, a: float,
    smooth: bool, exclude_outside: bool,
) -> Value:  # fmt: skip
    """One axis by a product with its interpolation matrix (for nearest by an index). What the IR's own op has not: the
    antialiasing filter of the standard, which continues the image by its edge where torch's leaves out what is outside,
    and align_corners with a length that is not whole.
    """
    n = x.shape[axis]
    p, s = _places(cx, n, out, scale, coords)
    if kind == "nearest":
        half = cx.const(0.5, p.dtype)
        rounded = {
            "floor": lambda: cx.op("floor", p), "ceil": lambda: cx.op("ceil", p),
            "round_prefer_floor": lambda: cx.op("ceil", cx.op("sub", p, half)),
            "round_prefer_ceil": lambda: cx.op("floor", cx.op("add", p, half)),
        }[nearest]()  # fmt: skip
        last = cx.scalar(n - 1, p.dtype)
        at = cx.convert(cx.op("minimum", cx.op("maximum", rounded, 0.0), last), DType.i64)
        return cx.b.op("take", x, at, dim=axis)  # type: ignore[no-any-return]
    support = 1 if kind == "linear" else 2
    beyond: Dim = 0  # places outside that a filter reaches
    if not exclude_outside:
        one = 1 if not smooth else math.ceil(1 / min(scale, 1.0)) if scale is not None else D.ceildiv(n, out)
        beyond = (one if isinstance(one, int) else cx.most(one, 1)) * (support + 1) + 1
    j = cx.sub(cx.iota(n + 2 * beyond, p.dtype), cx.scalar(beyond, p.dtype))
    if kind == "linear" and not exclude_outside and not smooth:
        p = cx.op("minimum", cx.op("maximum", p, 0.0), cx.scalar(n - 1, p.dtype))
    t = cx.op("abs", cx.op("sub", cx.unsqueeze(j, 0), cx.unsqueeze(p, 1)))
    if smooth:
        t = cx.op("mul", t, cx.op("minimum", s, 1.0))
    matrix = _tent(cx, t) if kind == "linear" else _cubic(cx, t, a)
    matrix = cx.op("div", matrix, cx.reduce("sum", matrix, (1,), True))
    if not exclude_outside:  # what falls outside goes to the first and the last element
        before = cx.reduce("sum", cx.slice(matrix, 1, 0, beyond), (1,), True)
        after = cx.reduce("sum", cx.slice(matrix, 1, n + beyond, n + 2 * beyond), (1,), True)
        place = cx.reshape(cx.iota(n), (1, n))
        matrix = cx.slice(matrix, 1, beyond, n + beyond)
        matrix = cx.op("add", matrix, cx.where(cx.op("eq", place, 0), before, 0.0))
        matrix = cx.op("add", matrix, cx.where(cx.op("eq", place, cx.scalar(n - 1, DType.i64)), after, 0.0))
    v = cx.opmath(x)
    y = cx.moveaxis(v, axis, -1)
    rows = cx.reshape(y, (D.product(y.shape[:-1]), n))
    z = cx.b.op("matmul", rows, cx.transpose(cx.convert(matrix, v.dtype)))
    return cx.convert(cx.moveaxis(cx.reshape(z, (*y.shape[:-1], out)), -1, axis), x.dtype)


def _resize(
    cx: Context, x: Value, roi: Value | None, scales: Value | None, sizes: Value | None, *, antialias: int = 0,
    axes: Any = None, coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Value:  # fmt: skip
    at = list(range(x.rank)) if axes is None else [cx.axis(a, x.rank) for a in axes]
    coords, kind, nearest = coordinate_transformation_mode, mode, nearest_mode
    if kind not in ("nearest", "linear", "cubic"):
        raise Unsupported(f"mode {mode}")
    if sizes is not None and sizes.shape != (0,):
        fixed = coords == "tf_crop_and_resize" or keep_aspect_ratio_policy != "stretch"
        wanted: list[Dim] = [*cx.ints(sizes, "sizes")] if fixed else cx.dims(sizes, "sizes", 1)
        if len(wanted) != len(at):
            raise Unsupported(f"{len(wanted)} sizes for {len(at)} dims")
        factors: Scales = [None] * len(at)
        if keep_aspect_ratio_policy != "stretch":
            wanted, factors = _kept_ratio(cx, x, at, wanted, keep_aspect_ratio_policy)
    elif scales is None or scales.shape == (0,):
        raise Unsupported("neither scales nor sizes")
    else:
        wanted, factors = _scaled(cx, x, at, scales)
    bounds = None
    if coords == "tf_crop_and_resize":
        if roi is None:
            raise Unsupported("tf_crop_and_resize without a roi")
        flat = [float(v) for v in cx.array(roi, "the roi").reshape(-1)]
        if len(flat) != 2 * len(at):
            raise Unsupported(f"a roi of {len(flat)} numbers for {len(at)} dims")
        bounds = list(zip(flat[: len(at)], flat[len(at) :]))
    smooth = bool(antialias) and kind != "nearest"
    if coords == "tf_half_pixel_for_nn":  # (o + 0.5) / scale
        if kind != "nearest" or nearest != "floor":
            raise Unsupported(f"tf_half_pixel_for_nn with mode {kind}, nearest_mode {nearest}")
        coords, nearest = "half_pixel", "exact"
    v = x
    if kind != "nearest" or coords == "tf_crop_and_resize":
        v = cx.convert(x, DType.f64) if x.dtype in (DType.i64, DType.u64, DType.i32, DType.u32) else (
            x if x.dtype.is_float else cx.convert(x, DType.f32)
        )  # fmt: skip
    plain = []
    for i, (a, out, k) in enumerate(zip(at, wanted, factors)):
        grows = k >= 1 if k is not None else D.bounds(out - x.shape[a], cx.b.symbols)[0] >= 0
        shrinks = smooth and not grows
        if shrinks or (coords == "align_corners" and k is not None):
            v = _by_positions(cx, v, a, out, k, coords, kind, nearest, cubic_coeff_a, smooth, bool(exclude_outside))
        else:
            plain.append(i)
    y = resized(
        cx, v, [at[i] for i in plain], [wanted[i] for i in plain], [factors[i] for i in plain],
        None if bounds is None else [bounds[i] for i in plain], mode=kind, coords=coords, cubic_a=cubic_coeff_a,
        nearest=nearest, exclude_outside=bool(exclude_outside), extrapolation=extrapolation_value,
    )  # fmt: skip
    return _back(cx, y, x.dtype)


def _back(cx: Context, y: Value, dtype: DType) -> Value:
    """Interpolated numbers in an integer type: rounded, within its range."""
    if y.dtype is dtype or dtype.is_float or dtype.is_bool:
        return cx.convert(y, dtype)
    return cx.call("Cast", _within(cx, y, dtype), to=_code(dtype))  # type: ignore[no-any-return]


def _within(cx: Context, y: Value, dtype: DType) -> Value:
    info = np.iinfo(dtype.np)
    return cx.op("minimum", cx.op("maximum", y, float(info.min)), float(info.max))  # type: ignore[no-any-return]


def _code(dtype: DType) -> int:
    from ..dtypes import code_of

    return code_of(dtype)


@onnx_op("Resize")
def _resize_first(cx: Context, x: Value, scales: Value, *, mode: str = "nearest") -> Value:
    return _resize(
        cx, x, None, scales, None, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


@onnx_op("Resize", since=11)
def _resize_roi(
    cx: Context, x: Value, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None,
    **attrs: Any,
) -> Value:  # fmt: skip
    return _resize(cx, x, roi, scales, sizes, **attrs)


@onnx_op("Upsample")
def _upsample_first(cx: Context, x: Value, *, height_scale: float, width_scale: float, mode: str = "nearest") -> Value:
    return _upsample_attribute(cx, x, scales=(1.0, 1.0, height_scale, width_scale), mode=mode)


@onnx_op("Upsample", since=7)
def _upsample_attribute(cx: Context, x: Value, *, scales: Any, mode: str = "nearest") -> Value:
    given = cx.b.constant(np.asarray(scales, np.float32), DType.f32)
    return _upsample(cx, x, given, mode=mode)


@onnx_op("Upsample", since=9)
def _upsample(cx: Context, x: Value, scales: Value, *, mode: str = "nearest") -> Value:
    kind = {"nearest": "nearest", "linear": "linear", "bilinear": "linear"}.get(mode, mode)
    return _resize(
        cx, x, None, scales, None, mode=kind, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


# Sampling at given places ---------------------------------------------------------------------------------------------


@onnx_op("GridSample")
def _grid_sample(
    cx: Context, x: Value, grid: Value, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> Value:
    kind = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    if not 4 <= x.rank <= 5:
        raise Unsupported(f"{x.rank - 2} spatial dims; 2 and 3 are supported")
    if kind == "bicubic" and x.rank != 4:
        raise Unsupported(f"mode {mode} in {x.rank - 2} spatial dims")
    wide = DType.f64 in (x.dtype, grid.dtype) or (x.dtype.is_int and x.dtype.itemsize > 2)
    work = DType.f64 if wide else DType.f32
    y = cx.b.op(
        "grid_sample", cx.convert(x, work), cx.convert(grid, work), mode=kind, border=padding_mode,
        align_corners=bool(align_corners), pixels=False,
    )  # fmt: skip
    return _back(cx, y, x.dtype)


@onnx_op("AffineGrid")
def _affine_grid(cx: Context, theta: Value, size: Value, *, align_corners: int = 0) -> Value:
    """theta[N, n, n + 1] times each place (x, y, .., 1) of an image of the size, in [-1, 1]: [N, *size, n]. With
    align_corners -1 and 1 are the middles of the outermost pixels, else the image's edges.
    """
    wanted = cx.dims(size, "the size")
    n = len(wanted) - 2
    v = cx.opmath(theta)
    sizes = wanted[2:]
    total: Any = None
    for k, d in enumerate(reversed(range(n))):  # theta's first column belongs to the last dim
        count = sizes[d]
        i = cx.iota(count, v.dtype)
        if align_corners:
            last = cx.scalar(count - 1, v.dtype)
            place = cx.add(cx.op("div", cx.mul(i, 2.0), cx.op("maximum", last, 1.0)), -1.0)
            place = cx.where(cx.op("gt", last, 0.0), place, 0.0)  # one pixel lies in the middle
        else:
            place = cx.add(cx.op("div", cx.add(cx.mul(i, 2.0), 1.0), cx.scalar(count, v.dtype)), -1.0)
        place = cx.reshape(place, [1, *(count if j == d else 1 for j in range(n)), 1])
        column = cx.reshape(cx.select(v, 2, k), (v.shape[0], *[1] * n, n))
        term = cx.op("mul", column, place)
        total = term if total is None else cx.op("add", total, term)
    moved = cx.reshape(cx.select(v, 2, n), (v.shape[0], *[1] * n, n))
    return cx.convert(cx.op("add", total, moved), theta.dtype)
