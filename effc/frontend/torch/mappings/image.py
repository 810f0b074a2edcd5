"""Padding, resizing, sampling and column images."""

from __future__ import annotations

from typing import Any

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, aten
from .conv import _tuple


def padded(cx: Context, x: Value, pad: Any, mode: str, value: Any = 0) -> Value:
    """torch's order: (low, high) of the last dim first."""
    pairs: list[tuple[Dim, Dim]] = [(0, 0)] * x.rank
    for k in range(len(pad) // 2):
        pairs[x.rank - 1 - k] = (cx.dim(pad[2 * k]), cx.dim(pad[2 * k + 1]))
    if all(p == (0, 0) for p in pairs):
        return x
    if mode == "constant" and x.dtype.is_bool:
        value = bool(value)
    return cx.op("pad", x, padding=tuple(pairs), mode=mode, value=value)


@aten("constant_pad_nd")
def _constant_pad(cx: Context, x: Value, pad: Any, value: Any = 0) -> Value:
    return padded(cx, x, pad, "constant", value)


@aten("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def _reflection(cx: Context, x: Value, pad: Any) -> Value:
    return padded(cx, x, pad, "reflect")


@aten("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _replication(cx: Context, x: Value, pad: Any) -> Value:
    return padded(cx, x, pad, "replicate")


@aten("pad")
def _pad(cx: Context, x: Value, pad: Any, mode: str = "constant", value: Any = None) -> Value:
    kind = {"constant": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}[mode]
    if mode == "circular":  # torch crops first, and wraps what is left
        pad = [cx.dim(p) for p in pad]
        for k in range(len(pad) // 2):
            d = x.rank - 1 - k
            low, high = (max(-p, 0) if isinstance(p, int) else 0 for p in pad[2 * k : 2 * k + 2])
            x = cx.slice(x, d, low, x.shape[d] - high)
        pad = [max(p, 0) if isinstance(p, int) else p for p in pad]
    return padded(cx, x, pad, kind, 0 if value is None else value)


def _resize(cx: Context, x: Value, size: Any, scales: Any, mode: str, coords: str, **attrs: Any) -> Value:
    n = x.rank - 2
    given = list(scales or [])
    entries = tuple(given) if len(given) == n and any(s is not None for s in given) else None
    if entries is not None and not all(s is None or isinstance(s, (int, float)) for s in entries):
        raise Unsupported("a scale that depends on sizes")
    if 0 in cx.out.shape or 0 in x.shape:
        return cx.full(0, cx.out.shape, x.dtype)
    return cx.op("resize", x, size=cx.out.shape[2:], mode=mode, coords=coords, scales=entries, **attrs)


def _nearest(exact: bool) -> Any:
    def f(cx: Context, x: Value, size: Any, *scales: Any) -> Value:
        flat = [s for k in scales for s in (k if isinstance(k, (list, tuple)) else [k])]
        if exact:
            return _resize(cx, x, size, flat, "nearest", "half_pixel", nearest="exact")
        return _resize(cx, x, size, flat, "nearest", "asymmetric", nearest="floor")

    return f


def _smooth(mode: str, antialias: bool, a: float) -> Any:
    def f(cx: Context, x: Value, size: Any, align_corners: bool, *scales: Any) -> Value:
        flat = [s for k in scales for s in (k if isinstance(k, (list, tuple)) else [k])]
        coords = "align_corners" if align_corners else "half_pixel"
        return _resize(cx, x, size, flat, mode, coords, antialias=antialias, cubic_a=a)

    return f


for _n in (1, 2, 3):
    aten(f"upsample_nearest{_n}d")(_nearest(False))
    aten(f"_upsample_nearest_exact{_n}d")(_nearest(True))
for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"):
    aten(_name)(_smooth("linear", False, -0.75))
aten("upsample_bicubic2d")(_smooth("cubic", False, -0.75))
aten("_upsample_bilinear2d_aa")(_smooth("linear", True, -0.75))
aten("_upsample_bicubic2d_aa")(_smooth("cubic", True, -0.5))


def _rounded_pixels(cx: Context, grid: Value, sizes: Any, align: bool) -> Value:
    """Positions in pixels, as torch computes those of half types: in that type, with its roundings."""
    parts = []
    for k, n in enumerate(reversed(sizes)):
        c = cx.add(cx.slice(grid, grid.rank - 1, k, k + 1), 1.0)
        if align:
            pixel = cx.mul(cx.div(c, 2.0), cx.scalar(n - 1, grid.dtype))
        else:
            pixel = cx.div(cx.sub(cx.mul(c, cx.scalar(n, grid.dtype)), cx.const(1.0, grid.dtype)), 2.0)
        parts.append(cx.opmath(pixel))
    return cx.concat(parts, grid.rank - 1)


@aten("grid_sampler_2d", "grid_sampler_3d", "grid_sampler")
def _grid_sampler(cx: Context, x: Value, grid: Value, mode: int, padding: int, align_corners: bool) -> Value:
    if 0 in cx.out.shape:
        return cx.full(0, cx.out.shape, x.dtype)
    half = x.dtype.compute is not x.dtype
    # Nearest and bilinear sampling follow eager's roundings of coordinates. Bicubic sampling in eager rounds weights
    # and partial sums to the half type, too: rounding the coordinates alone is nearer to neither eager nor the truth.
    rounded = half and mode != 2
    points = _rounded_pixels(cx, grid, x.shape[2:], align_corners) if rounded else cx.opmath(cx.convert(grid, x.dtype))
    y = cx.op(
        "grid_sample",
        cx.opmath(x),
        points,
        mode=("bilinear", "nearest", "bicubic")[mode],
        border=("zeros", "border", "reflection")[padding],
        align_corners=bool(align_corners),
        pixels=rounded,
    )
    return cx.convert(y, x.dtype)


@aten("col2im")
def _col2im(cx: Context, x: Value, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Value:
    y = cx.op(
        "col2im",
        x if x.rank == 3 else cx.unsqueeze(x, 0),
        size=tuple(cx.dim(s) for s in size),
        kernel=_tuple(kernel, 2),
        stride=_tuple(stride, 2),
        padding=tuple((p, p) for p in _tuple(padding, 2)),
        dilation=_tuple(dilation, 2),
    )
    return cx.reshape(y, cx.out.shape)


@aten("im2col")
def _im2col(cx: Context, x: Value, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Value:
    """[N, C, H, W] -> [N, C*kh*kw, L]: one strided slice of the padded image per tap."""
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = (_tuple(t, 2) for t in (kernel, dilation, padding, stride))
    v = x if x.rank == 4 else cx.unsqueeze(x, 0)
    n, c, h, w = v.shape
    v = padded(cx, v, (pw, pw, ph, ph), "constant")
    rows = D.floordiv(h + 2 * ph - dh * (kh - 1) - 1, sh) + 1
    cols = D.floordiv(w + 2 * pw - dw * (kw - 1) - 1, sw) + 1
    taps = []
    for i in range(kh):
        for j in range(kw):
            t = cx.slice(v, 2, i * dh, i * dh + (rows - 1) * sh + 1, sh)
            t = cx.slice(t, 3, j * dw, j * dw + (cols - 1) * sw + 1, sw)
            taps.append(cx.reshape(t, (n, c, 1, rows * cols)))
    return cx.reshape(cx.concat(taps, 2), cx.out.shape)
