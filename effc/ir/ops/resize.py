"""Interpolation: resize along spatial dims, and grid_sample.

The position in x that an output index samples follows ``coords``; with r = input size / output size, or 1 / scale
where ``scales``
has an entry, o the output index:

    half_pixel            r * (o + 0.5) - 0.5
    pytorch_half_pixel    the same, 0 where the output has size 1
    asymmetric            r * o
    align_corners         o * (in - 1) / (out - 1), 0 where the output has size 1
    half_pixel_symmetric  ONNX: half_pixel about the centre when out is not scale * in
    tf_crop_and_resize    ONNX: from roi[d][0] to roi[d][1] of the input; samples outside give ``extrapolation``

Positions and weights are computed in the compute dtype of x (f32 for f32 and shorter), as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..dims import Dim
from ..dtypes import DType
from ..op import DimsAttr, Sample, op, require, same_dim
from ..types import TensorType
from .elementwise import random_array

Array = np.ndarray[Any, Any]

MODES = ("nearest", "linear", "cubic")
COORDS = (
    "half_pixel",
    "pytorch_half_pixel",
    "asymmetric",
    "align_corners",
    "half_pixel_symmetric",
    "tf_crop_and_resize",
)
NEAREST = ("floor", "round_prefer_floor", "round_prefer_ceil", "ceil", "exact")


def _resize(
    x: TensorType,
    *,
    size: Sequence[Dim],
    mode: str,
    coords: str,
    scales: Any,
    antialias: bool,
    cubic_a: float,
    nearest: str,
    exclude_outside: bool,
    roi: Any,
    extrapolation: float,
) -> TensorType:
    require(mode in MODES, f"unknown mode {mode}; one of {', '.join(MODES)}")
    require(coords in COORDS, f"unknown coords {coords}; one of {', '.join(COORDS)}")
    require(nearest in NEAREST, f"unknown nearest {nearest}; one of {', '.join(NEAREST)}")
    require(
        1 <= x.rank - 2 <= 3 and len(size) == x.rank - 2,
        f"x must have {len(size)} spatial dims and rank 3 to 5, not {x.rank}",
    )
    require(mode == "nearest" or x.dtype.is_float, f"{mode} interpolation is not defined for {x.dtype}")
    require(coords != "tf_crop_and_resize" or x.dtype.is_float, f"tf_crop_and_resize is not defined for {x.dtype}")
    require(scales is None or len(scales) == len(size), "scales needs one entry per spatial dim")
    require(
        coords != "tf_crop_and_resize" or (roi is not None and len(roi) == len(size)),
        "roi needs one pair per spatial dim",
    )
    require(not antialias or mode != "nearest", "antialias needs linear or cubic")
    return x.with_shape((*x.shape[:2], *size))


def _positions(n: int, out: int, coords: str, scale: float | None, roi: Any, real: Any) -> tuple[Array, Any]:
    """Positions of the output indices, and input elements per output element."""
    o = np.arange(out, dtype=real)
    ratio = real(1.0 / scale) if scale else real(n) / real(max(out, 1))
    half = ratio * (o + real(0.5)) - real(0.5)
    if coords == "align_corners":
        ratio = real(n - 1) / real(out - 1) if out > 1 else real(0)
        return ratio * o, ratio
    if coords == "asymmetric":
        return ratio * o, ratio
    if coords == "pytorch_half_pixel":
        return (half if out > 1 else np.zeros(out, real)), ratio
    if coords == "half_pixel_symmetric":
        full = real(n) / ratio
        offset = real(n) / real(2) * (real(1) - real(out) / full)
        return offset + half, ratio
    if coords == "tf_crop_and_resize":
        start, end = real(roi[0]), real(roi[1])
        if out > 1:
            return start * real(n - 1) + o * ((end - start) * real(n - 1) / real(out - 1)), ratio
        return np.full(out, real(0.5) * (start + end) * real(n - 1), real), ratio
    return half, ratio


def _linear(t: Array) -> Array:
    w: Array = np.maximum(1 - np.abs(t), 0)
    return w


def _cubic(t: Array, a: Any) -> Array:
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _nearest_index(p: Array, n: int, out: int, nearest: str, coords: str, ratio: Any, real: Any) -> Array:
    if nearest == "exact":  # half a pixel up, then down: what torch calls nearest-exact
        index = np.floor((np.arange(out, dtype=real) + real(0.5)) * ratio)
    elif nearest == "floor":
        index = np.floor(p)
    elif nearest == "ceil":
        index = np.ceil(p)
    elif nearest == "round_prefer_floor":
        index = np.ceil(p - real(0.5))
    else:
        index = np.floor(p + real(0.5))
    clipped: Array = np.clip(index, 0, n - 1).astype(np.int64)
    return clipped


def weights(
    n: int,
    out: int,
    mode: str,
    coords: str,
    scale: float | None,
    antialias: bool,
    cubic_a: float,
    nearest: str,
    exclude_outside: bool,
    roi: Any,
    real: Any,
) -> tuple[Array, Array]:
    """The dense [out, n] interpolation matrix of one dim, and which outputs sample outside x."""
    p, ratio = _positions(n, out, coords, scale, roi, real)
    matrix = np.zeros((out, n), np.float64)
    rows = np.arange(out)
    outside = (p < 0) | (p > n - 1)
    if n == 0 or out == 0:
        return matrix, outside
    if mode == "nearest":
        matrix[rows, _nearest_index(p, n, out, nearest, coords, ratio, real)] = 1
        return matrix, outside
    a = real(-0.5 if antialias and cubic_a == -0.75 else cubic_a)
    taps = 2 if mode == "linear" else 4
    if antialias:
        stretch = max(ratio, real(1))
        support = real(taps / 2) * stretch
        center = ratio * (rows.astype(real) + real(0.5))
        first = np.maximum((center - support + real(0.5)).astype(np.int64), 0)
        last = np.minimum((center + support + real(0.5)).astype(np.int64), n)
        for o in range(out):
            j = np.arange(first[o], last[o])
            t = (j.astype(real) - center[o] + real(0.5)) * (real(1) / stretch)
            w = _linear(t) if mode == "linear" else _cubic(t, a)
            total = w.sum()
            matrix[o, j] = w / total if total != 0 else w
        return matrix, outside
    if mode == "linear":
        p = np.clip(p, 0, n - 1)
    base = np.floor(p)
    if mode == "cubic" and not exclude_outside:
        base = np.minimum(base, n - 1)
    frac = np.clip(p - base, 0, 1)
    for k in range(taps):
        index = base.astype(np.int64) + k - (taps // 2 - 1)
        distance = np.abs(frac - real(k - (taps // 2 - 1)))
        w = _linear(distance) if mode == "linear" else _cubic(distance, a)
        if exclude_outside:
            w = np.where((index < 0) | (index >= n), 0, w)
        np.add.at(matrix, (rows, np.clip(index, 0, n - 1)), w)
    if exclude_outside:
        matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix, outside


def _apply(y: Array, matrix: Array) -> Array:
    """y @ matrix.T, where a weight of zero does not spread NaN and Inf."""
    if np.isfinite(y).all():
        dense: Array = y @ matrix.T
        return dense
    with np.errstate(invalid="ignore"):
        return np.stack([(y[..., row != 0] * row[row != 0]).sum(-1) for row in matrix], -1)


def _resize_np(
    x: Array,
    *,
    size: Sequence[int],
    mode: str,
    coords: str,
    scales: Any,
    antialias: bool,
    cubic_a: float,
    nearest: str,
    exclude_outside: bool,
    roi: Any,
    extrapolation: float,
) -> Array:
    real = np.float64 if x.dtype == np.float64 else np.float32
    y: Any = x
    beyond: Any = np.zeros((), bool)
    for d, out in enumerate(size):
        scale = scales[d] if scales is not None else None
        matrix, outside = weights(
            x.shape[2 + d],
            out,
            mode,
            coords,
            scale,
            antialias,
            cubic_a,
            nearest,
            exclude_outside,
            roi[d] if roi is not None else None,
            real,
        )
        if mode == "nearest":
            y = np.take(y, matrix.argmax(axis=1), axis=2 + d)
        else:
            y = np.moveaxis(_apply(np.moveaxis(y.astype(np.float64), 2 + d, -1), matrix), -1, 2 + d)
        if coords == "tf_crop_and_resize":
            beyond = beyond | outside.reshape([-1 if i == d else 1 for i in range(len(size))])
    y = y.astype(x.dtype)
    return np.where(beyond, np.asarray(extrapolation, x.dtype), y) if coords == "tf_crop_and_resize" else y


def _resize_samples(rng: np.random.Generator) -> Iterator[Sample]:
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((2, 3, 5, 7), (10, 14)),
        ((1, 5, 9, 8), (4, 13)),
        ((1, 2, 6, 6), (6, 6)),
        ((1, 3, 5), (12,)),
        ((1, 2, 3, 4, 5), (5, 3, 9)),
        ((1, 2, 4, 4), (1, 1)),
        ((1, 2, 1, 1), (3, 4)),
    ]
    for shape, size in shapes:
        x = random_array(rng, shape, np.float32)
        for coords in ("asymmetric", "half_pixel"):
            yield Sample(
                (x,),
                {
                    "size": size,
                    "mode": "nearest",
                    "coords": coords,
                    "nearest": "floor" if coords == "asymmetric" else "exact",
                },
            )
        for mode in ("linear", "cubic") if len(size) == 2 else ("linear",):
            for coords in ("half_pixel", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"):
                yield Sample((x,), {"size": size, "mode": mode, "coords": coords})
    x = random_array(rng, (1, 2, 7, 9), np.float32)
    for mode in ("linear", "cubic"):
        for size in ((3, 4), (14, 5)):
            yield Sample((x,), {"size": size, "mode": mode, "antialias": True})
            yield Sample((x,), {"size": size, "mode": mode, "antialias": True, "coords": "align_corners"})
        yield Sample((x,), {"size": (9, 11), "mode": mode, "scales": (1.3, 1.25)}, "scales other than the sizes' ratio")
        for dt in (np.float64, DType.bf16.np, DType.f16.np):
            yield Sample((x.astype(dt),), {"size": (13, 5), "mode": mode})
        yield Sample(
            (x,),
            {
                "size": (5, 6),
                "mode": mode,
                "coords": "tf_crop_and_resize",
                "roi": ((0.2, 0.7), (-0.1, 1.2)),
                "extrapolation": 3.5,
            },
        )
    yield Sample((x,), {"size": (12, 5), "mode": "cubic", "exclude_outside": True, "cubic_a": -0.5}, "ONNX")
    for nearest in NEAREST[:4]:
        yield Sample((x,), {"size": (10, 6), "mode": "nearest", "nearest": nearest, "coords": "half_pixel"}, "ONNX")
    plain: tuple[Any, ...] = (np.uint8, np.int64, np.float64, DType.bf16.np, np.complex64)
    for dt in plain:
        yield Sample(
            (random_array(rng, (1, 2, 4, 5), dt),),
            {"size": (7, 3), "mode": "nearest", "coords": "asymmetric", "nearest": "floor"},
        )
    yield Sample((random_array(rng, (0, 2, 4, 5), np.float32),), {"size": (7, 3)}, "empty batch")


op(
    "resize",
    "x",
    {
        "size": DimsAttr,
        "mode": (str, "linear"),
        "coords": (str, "half_pixel"),
        "scales": (object, None),
        "antialias": (bool, False),
        "cubic_a": (float, -0.75),
        "nearest": (str, "round_prefer_floor"),
        "exclude_outside": (bool, False),
        "roi": (object, None),
        "extrapolation": (float, 0.0),
    },
    infer=_resize,
    numpy=_resize_np,
    category="resize",
    samples=_resize_samples,
    doc="x[N, C, *S] -> [N, C, *size]. nearest 'exact' is torch's nearest-exact. antialias stretches the filter "
    "when shrinking; its "
    "cubic has a = -0.5 unless cubic_a is given. exclude_outside: taps outside x count nothing, and weights are "
    "rescaled.",
)


SAMPLE_MODES = ("bilinear", "nearest", "bicubic")
BORDERS = ("zeros", "border", "reflection")


def _grid_sample(
    x: TensorType, grid: TensorType, *, mode: str, border: str, align_corners: bool, pixels: bool
) -> TensorType:
    nd = x.rank - 2
    require(
        nd in (2, 3) and grid.rank == x.rank,
        f"x and grid must have the same rank, 4 or 5, not {x.rank} and {grid.rank}",
    )
    require(
        x.dtype is grid.dtype and x.dtype.is_float,
        f"x and grid must have the same float dtype, not {x.dtype} and {grid.dtype}",
    )
    require(
        same_dim(x.shape[0], grid.shape[0]) and same_dim(grid.shape[-1], nd), "grid must be [N, *out, spatial dims]"
    )
    require(mode in SAMPLE_MODES and border in BORDERS, f"unknown mode {mode} or border {border}")
    require(mode != "bicubic" or nd == 2, "bicubic sampling needs two spatial dims")
    require(all(d != 0 for d in x.shape[2:]), "x must not be empty along a spatial dim")
    return x.with_shape((x.shape[0], x.shape[1], *grid.shape[1:-1]))


def _fold(p: Array, n: int, border: str, align_corners: bool) -> Array:
    """Positions outside x brought inside (border, reflection)."""
    if border == "reflection":
        low, high = (0.0, 2.0 * (n - 1)) if align_corners else (-1.0, 2.0 * n - 1)
        if low == high:
            p = np.zeros_like(p)
        else:
            low, span = low / 2, (high - low) / 2
            q = np.abs(p - low)
            extra, flips = np.fmod(q, span), np.floor(q / span)
            p = np.where(flips % 2 == 0, extra + low, span - extra + low)
    if border in ("border", "reflection"):
        p = np.minimum(n - 1, np.maximum(p, 0))
        p = np.where(np.isnan(p), 0, p)
    return p


def _take(x: Array, where: Sequence[Array]) -> Array:
    """x[n, :, where...] for index arrays [N, P]: [N, C, P], zero outside."""
    ok = np.ones(where[0].shape, bool)
    at = []
    for i, n in zip(where, x.shape[2:], strict=True):
        good = (i >= 0) & (i < n)
        ok &= good
        at.append(np.where(good, i, 0).astype(np.int64))
    batch = np.arange(x.shape[0])[:, None]
    index: Any = (batch, slice(None), *at)
    got = x[index]  # [N, P, C]
    return np.where(ok[..., None], got, 0).transpose(0, 2, 1)


def _grid_sample_np(x: Array, grid: Array, *, mode: str, border: str, align_corners: bool, pixels: bool) -> Array:
    nd = x.ndim - 2
    wide = np.float64
    points = grid.astype(wide).reshape(x.shape[0], int(np.prod(grid.shape[1:-1])), nd)[
        ..., ::-1
    ]  # last coordinate first: d, h, w
    xw = x.astype(wide)
    pos = []
    for d in range(nd):
        n = x.shape[2 + d]
        g = points[..., d]
        pos.append(g if pixels else (g + 1) / 2 * (n - 1) if align_corners else ((g + 1) * n - 1) / 2)
    y: Any = 0.0
    if mode == "nearest":
        y = _take(xw, [np.rint(_fold(p, n, border, align_corners)) for p, n in zip(pos, x.shape[2:], strict=True)])
    elif mode == "bilinear":
        pos = [_fold(p, n, border, align_corners) for p, n in zip(pos, x.shape[2:], strict=True)]
        for corner in np.ndindex(*(2,) * nd):
            index = [np.floor(p) + c for p, c in zip(pos, corner, strict=True)]
            w = np.ones(pos[0].shape)
            for p, i in zip(pos, index, strict=True):
                w = w * (1 - np.abs(p - i))
            y = y + _take(xw, index) * w[:, None]
    else:
        for i in range(-1, 3):
            for j in range(-1, 3):
                index, w = [], np.ones(pos[0].shape)
                for p, k, n in zip(pos, (i, j), x.shape[2:], strict=True):
                    base = np.floor(p)
                    w = w * _cubic(p - base - k, -0.75)
                    index.append(np.trunc(_fold(base + k, n, border, align_corners)))
                y = y + _take(xw, index) * w[:, None]
    return np.asarray(y).reshape(x.shape[0], x.shape[1], *grid.shape[1:-1]).astype(x.dtype)


def _grid_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for mode in SAMPLE_MODES:
        for border in BORDERS:
            for align in (False, True):
                attrs = {"mode": mode, "border": border, "align_corners": align}
                x = random_array(rng, (2, 5, 6, 7), np.float32)
                yield Sample((x, random_array(rng, (2, 4, 9, 2), np.float32, -1.6, 1.6)), attrs)
                yield Sample((x.astype(np.float64), random_array(rng, (2, 3, 3, 2), np.float64, -3, 3)), attrs)
                halves = np.rint(random_array(rng, (2, 4, 5, 2), np.float32, -6, 20)) / 2
                yield Sample((x, halves.astype(np.float32)), {**attrs, "pixels": True}, "pixels and halves of them")
                if mode != "bicubic":
                    x = random_array(rng, (1, 3, 4, 3, 5), np.float32)
                    yield Sample((x, random_array(rng, (1, 2, 4, 5, 3), np.float32, -1.4, 1.4)), attrs)
    attrs = {"mode": "bilinear", "border": "border", "align_corners": True}
    yield Sample(
        (random_array(rng, (1, 2, 1, 1), np.float32), random_array(rng, (1, 3, 2, 2), np.float32, -1, 1)),
        attrs,
        "one pixel",
    )
    yield Sample(
        (random_array(rng, (0, 2, 3, 3), np.float32), random_array(rng, (0, 3, 2, 2), np.float32)), attrs, "empty batch"
    )


op(
    "grid_sample",
    "x grid",
    {"mode": (str, "bilinear"), "border": (str, "zeros"), "align_corners": (bool, False), "pixels": (bool, False)},
    infer=_grid_sample,
    numpy=_grid_sample_np,
    category="resize",
    samples=_grid_samples,
    doc="x[N, C, *S] sampled at grid[N, *out, nd]: coordinates in [-1, 1], or with pixels in units of x's pixels, the "
    "last spatial dim's first. 2-d and 3-d.",
)
