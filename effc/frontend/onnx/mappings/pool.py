"""Pooling over windows and over regions of interest."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ....ir.ops.pool import pool_size
from ..context import Context
from ..registry import onnx_op
from .conv import Pads, each, pairs, spatial, window_pads
from .tensor import padded


class Windows:
    """The windows of one pooling node."""

    def __init__(
        self, cx: Context, x: Value, kernel: Any, strides: Any, dilations: Any, pads: Any, auto_pad: str, ceil: int
    ) -> None:
        self.sizes = spatial(x)
        n = len(self.sizes)
        self.kernel = each(kernel, n)
        self.stride, self.dilation = each(strides, n), each(dilations, n)
        self.padding: Pads = window_pads(cx, self.sizes, self.kernel, self.stride, self.dilation, pads, auto_pad)
        # with auto_pad the standard's two formulas of the result's size are the same number
        self.ceil = bool(ceil) and auto_pad in ("NOTSET", "")
        self.plain = all(d == 1 for d in self.dilation)

    def out(self, d: int) -> Dim:
        return pool_size(
            self.sizes[d], self.kernel[d], self.stride[d], self.padding[d], self.dilation[d], self.ceil
        )

    def total(self, cx: Context, x: Value) -> Value:
        """The sum of every window, of nothing outside x."""
        if self.plain:
            return cx.b.op(  # type: ignore[no-any-return]
                "avg_pool", x, kernel=self.kernel, stride=self.stride, padding=self.padding, ceil_mode=self.ceil,
                count_include_pad=False, divisor=1,
            )  # fmt: skip
        # a convolution with ones, one image for each channel
        n = len(self.sizes)
        padding, cut = [], []
        for d, (low, high) in enumerate(self.padding):
            reach = (self.kernel[d] - 1) * self.dilation[d] + 1
            if self.ceil:  # as far as the last window reaches
                high = cx.most(high, (self.out(d) - 1) * self.stride[d] + reach - self.sizes[d] - low)
            padding.append((low, high))
            cut.append(self.out(d))
        ones = cx.b.constant(np.ones((1, 1, *self.kernel), x.dtype.np), x.dtype)
        flat = cx.reshape(x, (x.shape[0] * x.shape[1], 1, *self.sizes))
        y = cx.b.op("conv", flat, ones, stride=self.stride, padding=tuple(padding), dilation=self.dilation, groups=1)
        for d in range(n):
            y = cx.slice(y, 2 + d, 0, cut[d])
        return cx.reshape(y, (*x.shape[:2], *cut))

    def counts(self, cx: Context, include_pad: bool, dtype: DType) -> Value:
        """How many elements every window has, as a tensor of the spatial dims: a product over the dims. What ceil_mode
        adds behind the padding is never counted.
        """
        out: Any = None
        n = len(self.sizes)
        for d in range(n):
            low, high = self.padding[d] if include_pad else (0, 0)
            start = cx.sub(cx.iota(self.out(d), DType.i64, 0, self.stride[d]), self.padding[d][0])
            step = cx.const(self.dilation[d], DType.i64)
            # taps t with -low <= start + t * step < size + high
            before = cx.op("neg", cx.op("floor_div", cx.add(start, low), step))
            last = cx.op("floor_div", cx.sub(cx.scalar(self.sizes[d] + high - 1, DType.i64), start), step)
            first = cx.op("maximum", before, 0)
            count = cx.add(cx.sub(cx.op("minimum", last, self.kernel[d] - 1), first), 1)
            count = cx.reshape(cx.op("maximum", count, 0), [self.out(d) if i == d else 1 for i in range(n)])
            out = count if out is None else cx.op("mul", out, count)
        return cx.convert(out, dtype)


@onnx_op("MaxPool")
def _max_pool(
    cx: Context, x: Value, *, kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Any = None,
    pads: Any = None, storage_order: int = 0, strides: Any = None,
) -> Any:  # fmt: skip
    w = Windows(cx, x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    wanted = cx.expected > 1
    found = cx.b.op(
        "max_pool", x, kernel=w.kernel, stride=w.stride, padding=w.padding, dilation=w.dilation, ceil_mode=w.ceil,
        indices=wanted,
    )  # fmt: skip
    if not wanted:
        return found
    y, at = found
    area = D.product(w.sizes)
    if storage_order:  # the first spatial dim runs fastest
        rest, place, stride = at, None, D.product(w.sizes[:-1])
        for d in reversed(range(len(w.sizes))):
            size = cx.scalar(w.sizes[d], DType.i64)
            term = cx.mul(cx.op("remainder", rest, size), cx.scalar(stride, DType.i64))
            place = term if place is None else cx.add(place, term)
            rest = cx.op("floor_div", rest, size)
            stride = D.product(w.sizes[: d - 1]) if d > 0 else 1
        at = place
    image = cx.reshape(cx.iota(x.shape[0] * x.shape[1]), (*x.shape[:2], *[1] * len(w.sizes)))
    return y, cx.op("add", at, cx.mul(image, cx.scalar(area, DType.i64)))


@onnx_op("AveragePool")
def _average_pool(
    cx: Context, x: Value, *, kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0,
    count_include_pad: int = 0, dilations: Any = None, pads: Any = None, strides: Any = None,
) -> Value:  # fmt: skip
    w = Windows(cx, x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if w.plain:
        return cx.b.op(  # type: ignore[no-any-return]
            "avg_pool", x, kernel=w.kernel, stride=w.stride, padding=w.padding, ceil_mode=w.ceil,
            count_include_pad=bool(count_include_pad), divisor=0,
        )  # fmt: skip
    v = cx.opmath(x)
    count = cx.op("maximum", w.counts(cx, bool(count_include_pad), v.dtype), 1)
    return cx.convert(cx.op("div", w.total(cx, v), count), x.dtype)


@onnx_op("LpPool")
def _lp_pool(
    cx: Context, x: Value, *, kernel_shape: Any, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Any = None,
    p: int = 2, pads: Any = None, strides: Any = None,
) -> Value:  # fmt: skip
    """The p-norm of every window."""
    w = Windows(cx, x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    v = cx.opmath(x)
    powers = cx.op("abs", v) if p == 1 else cx.mul(v, v) if p == 2 else cx.op("pow", cx.op("abs", v), float(p))
    total = w.total(cx, powers)
    y = total if p == 1 else cx.op("sqrt", total) if p == 2 else cx.op("pow", total, 1.0 / p)
    return cx.convert(y, x.dtype)


@onnx_op("MaxUnpool")
def _max_unpool(
    cx: Context, x: Value, index: Value, output_shape: Value | None = None, *, kernel_shape: Any, pads: Any = None,
    strides: Any = None,
) -> Value:  # fmt: skip
    """The indices are places in the whole tensor of the shape that windows and pads imply; a wanted shape that is
    larger has zeros behind it, as in the standard's reference.
    """
    n = x.rank - 2
    kernel, stride, padding = each(kernel_shape, n), each(strides, n), pairs(pads, n)
    sizes = [
        (s - 1) * st - lo - hi + k for s, st, (lo, hi), k in zip(x.shape[2:], stride, padding, kernel, strict=True)
    ]
    shape = (*x.shape[:2], *sizes)
    base = cx.full(0, (D.product(shape),), x.dtype)
    count = x.type.numel
    y = cx.b.op("scatter", base, cx.reshape(cx.index(index), (count,)), cx.reshape(x, (count,)), dim=0)
    y = cx.reshape(y, shape)
    if output_shape is None:
        return y
    wanted = cx.dims(output_shape, "output_shape")
    return cx.reshape(padded(cx, y, [0] * x.rank + [w - s for w, s in zip(wanted, shape, strict=True)], "constant", 0),
                      wanted)  # fmt: skip


# Regions --------------------------------------------------------------------------------------------------------------


def _bins(cx: Context, v: Value) -> Value:
    """[R] -> [R, 1, 1], to meet [pooled, samples]."""
    return cx.reshape(v, (v.shape[0], 1, 1))


def _most_of(cx: Context, counts: Value, what: str) -> Dim:
    """The largest of integers, 1 at least, as a size."""
    all_of = cx.concat([cx.convert(counts, DType.i64), cx.b.constant(np.ones(1, np.int64))], 0)
    return cx.dim(cx.reduce("max", all_of, (0,)), what, 1)


@onnx_op("RoiAlign")
def _roi_align_first(
    cx: Context, x: Value, rois: Value, batch: Value, *, mode: str = "avg", output_height: int = 1,
    output_width: int = 1, sampling_ratio: int = 0, spatial_scale: float = 1.0,
) -> Value:  # fmt: skip
    return _roi_align(
        cx, x, rois, batch, coordinate_transformation_mode="output_half_pixel", mode=mode,
        output_height=output_height, output_width=output_width, sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )  # fmt: skip


@onnx_op("RoiAlign", since=16)
def _roi_align(
    cx: Context, x: Value, rois: Value, batch: Value, *, coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg", output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Value:  # fmt: skip
    """He et al. 2017, Mask R-CNN: every bin of a region is the mean of bilinear samples (of their corners' shares the
    largest, for mode max, as the standard's reference has it). Without a sampling ratio the number of samples is each
    region's own; the largest one's are laid out, and those that a region has not are masked.
    """
    half = coordinate_transformation_mode == "half_pixel"
    n, c, height, width = x.shape
    r = rois.shape[0]
    v = cx.opmath(x)
    work = v.dtype
    box = cx.mul(cx.convert(rois, work), spatial_scale)
    if half:
        box = cx.sub(box, cx.const(0.5, work))
    low_of, high_of, part_of, use_of, samples = [], [], [], [], []
    ratio = max(int(sampling_ratio), 0)
    count: Any = None
    for axis, (pooled, size) in enumerate(((output_height, height), (output_width, width))):
        start, end = cx.select(box, 1, 1 - axis), cx.select(box, 1, 3 - axis)
        extent = cx.op("sub", end, start)
        if not half:
            extent = cx.op("maximum", extent, 1.0)
        part = cx.div(extent, float(pooled))  # the height of a bin
        if ratio:
            many: Dim = ratio
            own = cx.full(float(ratio), (r,), work)
            used = None
        else:
            own = cx.op("maximum", cx.op("ceil", part), 0.0)
            many = _most_of(cx, own, "the number of samples")
            used = cx.op("lt", cx.reshape(cx.iota(many, work), (1, many)), cx.reshape(own, (r, 1)))
        count = own if count is None else cx.op("mul", count, own)
        # [R, pooled, samples]
        middle = cx.op(
            "div",
            cx.op("mul", cx.reshape(cx.add(cx.iota(many, work), 0.5), (1, 1, many)), _bins(cx, part)),
            _bins(cx, own if ratio else cx.op("maximum", own, 1.0)),
        )
        bins = cx.op("mul", cx.reshape(cx.iota(pooled, work), (1, pooled, 1)), _bins(cx, part))
        p = cx.op("add", cx.op("add", _bins(cx, start), bins), middle)
        last = cx.scalar(size - 1, work)
        inside = cx.op("logical_and", cx.op("ge", p, -1.0), cx.op("le", p, cx.scalar(size, work)))
        if used is not None:
            inside = cx.op("logical_and", inside, cx.reshape(used, (r, 1, many)))
        p = cx.op("minimum", cx.op("maximum", p, 0.0), last)
        # A place that is no number would index anything.
        p = cx.where(inside, p, 0.0)
        low = cx.op("floor", p)
        high = cx.op("minimum", cx.add(low, 1.0), last)
        low_of.append(cx.convert(low, DType.i64))
        high_of.append(cx.convert(high, DType.i64))
        part_of.append(cx.op("sub", p, low))
        use_of.append((inside, used))
        samples.append(many)
    shape = (r, output_height, output_width, *samples)

    def spread(a: Value, axis: int) -> Value:
        """[R, pooled, samples] of one axis among [R, height, width, samples down, samples across]."""
        return cx.reshape(a, (r, a.shape[1], 1, a.shape[2], 1) if axis == 0 else (r, 1, a.shape[1], 1, a.shape[2]))

    rows = cx.reshape(cx.permute(v, (0, 2, 3, 1)), (n * height * width, c))
    image = cx.reshape(cx.mul(cx.convert(batch, DType.i64), cx.scalar(height * width, DType.i64)), (r, 1, 1, 1, 1))
    good = cx.op("logical_and", spread(use_of[0][0], 0), spread(use_of[1][0], 1))
    one = cx.const(1.0, work)
    shares = []
    for down in (low_of, high_of):
        for across in (low_of, high_of):
            line = cx.mul(spread(down[0], 0), cx.scalar(width, DType.i64))
            at = cx.broadcast(cx.op("add", cx.op("add", image, line), spread(across[1], 1)), shape)
            wy = part_of[0] if down is high_of else cx.op("sub", one, part_of[0])
            wx = part_of[1] if across is high_of else cx.op("sub", one, part_of[1])
            weight = cx.where(good, cx.op("mul", spread(wy, 0), spread(wx, 1)), 0.0)
            corner = cx.b.op("take", rows, cx.reshape(at, (D.product(shape),)), dim=0)
            shares.append(cx.op("mul", cx.reshape(corner, (*shape, c)), cx.unsqueeze(cx.broadcast(weight, shape), -1)))
    if mode == "avg":
        total = cx.op("add", cx.op("add", shares[0], shares[1]), cx.op("add", shares[2], shares[3]))
        y = cx.reduce("sum", total, (3, 4))
        y = cx.op("div", y, cx.reshape(cx.op("maximum", count, 1.0), (r, 1, 1, 1)))
    else:
        best = cx.op("maximum", cx.op("maximum", shares[0], shares[1]), cx.op("maximum", shares[2], shares[3]))
        if not ratio:
            has = cx.op("logical_and", *(cx.reshape(u, (r, 1, 1, m, 1) if a == 0 else (r, 1, 1, 1, m))
                                         for a, ((_, u), m) in enumerate(zip(use_of, samples))))  # fmt: skip
            best = cx.where(cx.unsqueeze(cx.broadcast(has, shape), -1), best, -float("inf"))
        y = cx.reduce("max", best, (3, 4))
        if not ratio:
            y = cx.where(cx.op("gt", cx.reshape(count, (r, 1, 1, 1)), 0.0), y, 0.0)
    return cx.convert(cx.permute(y, (0, 3, 1, 2)), x.dtype)


@onnx_op("MaxRoiPool")
def _max_roi_pool(cx: Context, x: Value, rois: Value, *, pooled_shape: Any, spatial_scale: float = 1.0) -> Value:
    """Girshick 2015, Fast R-CNN: the largest element of each of ph x pw bins of a region (image, x1, y1, x2, y2), whose
    corners are rounded; 0 for a bin without elements. All bins are laid out as large as the largest one.
    """
    n, c, height, width = x.shape
    r = rois.shape[0]
    work = rois.dtype.compute
    box = cx.convert(rois, work)
    rows = cx.reshape(cx.permute(x, (0, 2, 3, 1)), (n * height * width, c))
    places, uses, pooled_sizes, samples = [], [], [], []
    for axis, (pooled, size) in enumerate(zip(pooled_shape, (height, width))):
        # half away from zero, as C's round
        low, high = (cx.mul(cx.select(box, 1, k), spatial_scale) for k in (2 - axis, 4 - axis))
        low, high = (cx.op("mul", cx.op("sign", e), cx.op("floor", cx.add(cx.op("abs", e), 0.5))) for e in (low, high))
        extent = cx.op("maximum", cx.add(cx.op("sub", high, low), 1.0), 1.0)
        part = cx.reshape(cx.div(extent, float(pooled)), (r, 1))
        k = cx.reshape(cx.iota(pooled, work), (1, pooled))
        first = cx.op("add", cx.op("floor", cx.op("mul", k, part)), cx.reshape(low, (r, 1)))
        last = cx.op("add", cx.op("ceil", cx.op("mul", cx.add(k, 1.0), part)), cx.reshape(low, (r, 1)))
        top = cx.scalar(size, work)
        first, last = (cx.op("minimum", cx.op("maximum", e, 0.0), top) for e in (first, last))
        span = cx.op("maximum", cx.op("sub", last, first), 0.0)
        many = _most_of(cx, cx.reshape(span, (r * pooled,)), "the size of a bin")
        i = cx.reshape(cx.iota(many, work), (1, 1, many))
        at = cx.op("add", cx.reshape(first, (r, pooled, 1)), i)
        places.append(cx.convert(cx.op("minimum", at, cx.scalar(size - 1, work)), DType.i64))
        uses.append(cx.op("lt", i, cx.reshape(span, (r, pooled, 1))))
        pooled_sizes.append(pooled)
        samples.append(many)
    shape = (r, *pooled_sizes, *samples)

    def spread(a: Value, axis: int) -> Value:
        return cx.reshape(a, (r, a.shape[1], 1, a.shape[2], 1) if axis == 0 else (r, 1, a.shape[1], 1, a.shape[2]))

    image = cx.reshape(cx.convert(cx.select(box, 1, 0), DType.i64), (r, 1, 1, 1, 1))
    image = cx.mul(image, cx.scalar(height * width, DType.i64))
    line = cx.mul(spread(places[0], 0), cx.scalar(width, DType.i64))
    at = cx.broadcast(cx.op("add", cx.op("add", image, line), spread(places[1], 1)), shape)
    found = cx.reshape(cx.b.op("take", rows, cx.reshape(at, (D.product(shape),)), dim=0), (*shape, c))
    good = cx.broadcast(cx.op("logical_and", spread(uses[0], 0), spread(uses[1], 1)), shape)
    y = cx.reduce("max", cx.where(cx.unsqueeze(good, -1), found, -float("inf")), (3, 4))
    filled = cx.reduce("any", good, (3, 4))
    y = cx.where(cx.unsqueeze(filled, -1), y, 0.0)
    return cx.permute(y, (0, 3, 1, 2))
