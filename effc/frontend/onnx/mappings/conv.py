"""Convolutions: plain, transposed, deformable, and columns to an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.graph import Value
from ..context import Context
from ..registry import Unsupported, onnx_op

Pads = tuple[tuple[Dim, Dim], ...]


def each(given: Any, n: int, default: int = 1) -> tuple[int, ...]:
    """A number for every spatial dim."""
    if not given:
        return (default,) * n
    if len(given) != n:
        raise Unsupported(f"{len(given)} numbers {tuple(given)} for {n} spatial dims")
    return tuple(given)


def spatial(x: Value) -> tuple[Dim, ...]:
    if not 3 <= x.rank <= 5:
        raise Unsupported(f"{x.rank - 2} spatial dims; 1 to 3 are supported")
    return x.shape[2:]


def pairs(pads: Any, n: int) -> Pads:
    """ONNX's pads (all that go before, then all that go after) as a (low, high) pair for every dim."""
    flat = each(pads, 2 * n, 0)
    return tuple(zip(flat[:n], flat[n:]))


def window_pads(
    cx: Context, sizes: Sequence[Dim], kernel: Sequence[Dim], stride: Sequence[int], dilation: Sequence[int],
    pads: Any, auto_pad: str,
) -> Pads:  # fmt: skip
    """The padding of windows. SAME: as many results as there are strides in the input, ceil(size / stride); what is left
    over of an odd number goes to the end (SAME_UPPER) or before the start.
    """
    if auto_pad in ("NOTSET", ""):
        return pairs(pads, len(sizes))
    if auto_pad == "VALID":
        return ((0, 0),) * len(sizes)
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad {auto_pad}")
    out: list[tuple[Dim, Dim]] = []
    for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        reach = (k - 1) * d + 1
        total: Dim = (D.ceildiv(n, s) - 1) * s + reach - n
        if not isinstance(reach, int) or reach < s:  # else it is never negative, and sums with n to a simple size
            total = cx.most(total, 0)
        small = D.floordiv(total, 2)
        out.append((small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small))
    return tuple(out)


def check_kernel(w: Value, kernel_shape: Any) -> None:
    sizes = w.shape[2:]
    if kernel_shape and any(isinstance(k, int) and k != g for k, g in zip(sizes, each(kernel_shape, len(sizes)))):
        raise Unsupported(f"kernel_shape {tuple(kernel_shape)} for weights of {sizes}")


def with_bias(cx: Context, y: Value, bias: Value | None) -> Value:
    return y if bias is None else cx.add(y, cx.reshape(bias, (bias.shape[0], *[1] * (y.rank - 2))))


@onnx_op("Conv")
def _conv(
    cx: Context, x: Value, w: Value, bias: Value | None = None, *, auto_pad: str = "NOTSET", dilations: Any = None,
    group: int = 1, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
) -> Value:  # fmt: skip
    sizes = spatial(x)
    n = len(sizes)
    check_kernel(w, kernel_shape)
    stride, dilation = each(strides, n), each(dilations, n)
    padding = window_pads(cx, sizes, w.shape[2:], stride, dilation, pads, auto_pad)
    y = cx.b.op("conv", x, w, stride=stride, padding=padding, dilation=dilation, groups=group)
    return with_bias(cx, y, bias)


@onnx_op("ConvTranspose")
def _conv_transpose(
    cx: Context, x: Value, w: Value, bias: Value | None = None, *, auto_pad: str = "NOTSET", dilations: Any = None,
    group: int = 1, kernel_shape: Any = None, output_padding: Any = None, output_shape: Any = None, pads: Any = None,
    strides: Any = None,
) -> Value:  # fmt: skip
    """A wanted size decides about the padding: what is too much is cropped, half at each end; what lacks is zeros at
    the end.
    """
    sizes = spatial(x)
    n = len(sizes)
    check_kernel(w, kernel_shape)
    stride, dilation, extra = each(strides, n), each(dilations, n), list(each(output_padding, n, 0))
    wanted: list[Dim] | None = None
    if output_shape:
        wanted = list(output_shape[-n:])  # the first form may name the batch and channels, too
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * s for size, s in zip(sizes, stride)]
    elif auto_pad not in ("NOTSET", "VALID", ""):
        raise Unsupported(f"auto_pad {auto_pad}")
    padding: list[tuple[Dim, Dim]] = list(pairs(pads if auto_pad in ("NOTSET", "") else None, n))
    grow: list[Dim] = list(extra)
    if wanted is not None:
        for d in range(n):
            total = (sizes[d] - 1) * stride[d] + extra[d] + (w.shape[2 + d] - 1) * dilation[d] + 1 - wanted[d]
            crop = cx.most(total, 0)
            grow[d] = extra[d] + crop - total
            small = D.floordiv(crop, 2)
            padding[d] = (small, crop - small) if auto_pad == "SAME_UPPER" else (crop - small, small)
    y = cx.b.op(
        "conv_transpose", x, w, stride=stride, padding=tuple(padding), dilation=dilation, groups=group,
        output_padding=tuple(grow),
    )  # fmt: skip
    if wanted is not None:
        y = cx.reshape(y, (*y.shape[:2], *wanted))
    return with_bias(cx, y, bias)


@onnx_op("DeformConv")
def _deform_conv(
    cx: Context, x: Value, w: Value, offset: Value, bias: Value | None = None, mask: Value | None = None, *,
    dilations: Any = None, group: int = 1, kernel_shape: Any = None, offset_group: int = 1, pads: Any = None,
    strides: Any = None,
) -> Value:  # fmt: skip
    """Every tap of every window is a bilinear sample at its place plus its offset; the samples are the columns of a
    matrix product (Zhu et al. 2018, Deformable ConvNets v2).
    """
    sizes = spatial(x)
    n = len(sizes)
    kernel = tuple(w.shape[2:])
    check_kernel(w, kernel_shape)
    if not all(isinstance(k, int) for k in kernel):
        raise Unsupported("weights whose window is not constant")
    stride, dilation, padding = each(strides, n), each(dilations, n), pairs(pads, n)
    out = offset.shape[2:]
    taps, pixels = D.product(kernel), D.product(out)
    v, moved = cx.opmath(x), cx.reshape(cx.opmath(offset), (x.shape[0], offset_group, taps, n, *out))
    coordinates = []
    for d in reversed(range(n)):  # the sampler wants the last spatial dim's coordinate first
        step = np.arange(kernel[d]) * dilation[d] - np.asarray(padding[d][0])  # type: ignore[arg-type]
        tap = np.broadcast_to(step.reshape([-1 if i == d else 1 for i in range(n)]), kernel).reshape(-1, *[1] * n)  # type: ignore[arg-type]
        place = cx.reshape(cx.iota(out[d], v.dtype, 0, stride[d]), [out[d] if i == d else 1 for i in range(n)])
        at = cx.add(cx.add(cx.select(moved, 3, d), place), cx.b.constant(tap.astype(v.dtype.np), v.dtype))
        coordinates.append(cx.unsqueeze(at, -1))
    batch, channels = x.shape[0] * offset_group, D.floordiv(x.shape[1], offset_group)
    grid = cx.concat(coordinates, -1)  # [N, offset groups, taps, *out, n]
    if n == 1:  # one coordinate: the sampler has two dims at least
        grid = cx.concat([grid, cx.full(0.0, grid.shape, grid.dtype)], -1)
        v = cx.unsqueeze(v, 2)
    grid = cx.reshape(grid, (batch, taps, pixels, *[1] * (v.rank - 4), v.rank - 2))
    v = cx.reshape(v, (batch, channels, *v.shape[2:]))
    y = cx.b.op("grid_sample", v, grid, mode="bilinear", border="zeros", align_corners=False, pixels=True)
    y = cx.reshape(y, (batch, channels, taps, pixels))
    if mask is not None:
        y = cx.op("mul", y, cx.reshape(cx.opmath(mask), (batch, 1, taps, pixels)))
    rows = D.floordiv(x.shape[1], group) * taps
    columns = cx.reshape(y, (x.shape[0], group, rows, pixels))
    weights = cx.reshape(cx.convert(w, y.dtype), (group, D.floordiv(w.shape[0], group), rows))
    z = cx.reshape(cx.b.op("matmul", cx.broadcast(weights, (x.shape[0], *weights.shape)), columns),
                   (x.shape[0], w.shape[0], *out))  # fmt: skip
    return cx.convert(with_bias(cx, z, None if bias is None else cx.convert(bias, z.dtype)), x.dtype)


@onnx_op("Col2Im")
def _col2im(
    cx: Context, x: Value, image_shape: Value, block_shape: Value, *, dilations: Any = None, pads: Any = None,
    strides: Any = None,
) -> Value:  # fmt: skip
    """Adds columns back into an image, two dims at a time from the last one on: the taps and places of the others are
    part of the batch then.
    """
    size, kernel = cx.dims(image_shape, "image_shape"), cx.ints(block_shape, "block_shape")
    n = len(size)
    stride, dilation, padding = each(strides, n), each(dilations, n), pairs(pads, n)
    counts = [
        D.floordiv(s + lo + hi - (k - 1) * d - 1, st) + 1
        for s, (lo, hi), k, d, st in zip(size, padding, kernel, dilation, stride, strict=True)
    ]
    channels = D.floordiv(x.shape[1], D.product(kernel))
    cx.require(x.shape[2], "==", D.product(counts), "there must be a column for each place of the block")
    y = cx.reshape(x, (x.shape[0], channels, *kernel, *counts))
    done: list[Dim] = []  # dims of y: N, C, taps that are left, places that are left, done sizes
    for high in range(n, 0, -2):
        low = max(high - 2, 0)
        two = list(range(low, high))
        rest = [*range(2 + low), *range(2 + high, 2 + high + low), *range(2 + 2 * high, y.rank)]
        y = cx.permute(y, [*rest, *(2 + d for d in two), *(2 + high + d for d in two)])
        lead = y.shape[: len(rest)]
        fill = 2 - len(two)
        folded = cx.b.op(
            "col2im",
            cx.reshape(y, (D.product(lead), D.product(kernel[low:high]), D.product(counts[low:high]))),
            size=(*[1] * fill, *(size[d] for d in two)),
            kernel=(*[1] * fill, *(kernel[d] for d in two)),
            stride=(*[1] * fill, *(stride[d] for d in two)),
            padding=(*[(0, 0)] * fill, *(padding[d] for d in two)),
            dilation=(*[1] * fill, *(dilation[d] for d in two)),
        )
        y = cx.reshape(folded, (*lead, *(size[d] for d in two)))
        # the sizes that were done before stand between the places that are left and the new ones
        before = list(range(2 + 2 * low, 2 + 2 * low + len(done)))
        new = list(range(2 + 2 * low + len(done), y.rank))
        y = cx.permute(y, [*range(2 + 2 * low), *new, *before])
        done = [*(size[d] for d in two), *done]
    return y


__all__ = ["check_kernel", "each", "pairs", "spatial", "window_pads", "with_bias"]
