"""Quantization, and arithmetic on quantized operands.

Sums of products are taken in i32, modulo 2^32, as the standard asks; what is scaled afterwards is f32, as in the
operators' own formulas, and rounded half to even before a zero point is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..dtypes import dtype_of
from ..registry import Unsupported, onnx_op
from .elementwise import cast
from .reduce import extreme

_SHORT = {"i4": (-8, 7), "u4": (0, 15), "i2": (-2, 1), "u2": (0, 3)}


def limits(dtype: DType) -> tuple[int, int]:
    """The least and the greatest value of an integer dtype."""
    if dtype.value in _SHORT:
        return _SHORT[dtype.value]
    info = np.iinfo(dtype.np)
    return int(info.min), int(info.max)


def scalar_or_axis(cx: Context, v: Value, rank: int, axis: int) -> Value:
    """A per-tensor or per-axis parameter in a shape that broadcasts to an operand of this rank."""
    if v.rank == 0:
        return v
    if v.type.numel == 1:
        return cx.reshape(v, ())
    if v.rank != 1:
        raise Unsupported(f"a parameter of shape {v.shape} for each element")
    shape: list[Dim] = [1] * rank
    shape[axis] = v.shape[0]
    return cx.reshape(v, shape)


class Granularity:
    """How scales and zero points meet a tensor: one for all, one per index of an axis, or one per block along it.

    Blocks that divide the axis get a dim of their own, in which parameters broadcast; otherwise parameters are
    repeated. ``split`` prepares the tensor, ``spread`` a parameter, ``join`` undoes ``split``.
    """

    def __init__(self, cx: Context, x: Value, scale: Value, axis: int, block: int) -> None:
        self.cx, self.shape, self.block = cx, x.shape, 0
        self.axis = axis + x.rank if axis < 0 else axis
        if block and scale.rank == x.rank and scale.rank:
            if block < 0:
                raise Unsupported(f"block_size {block}")
            self.block = block
        elif block and scale.type.numel != 1:
            raise Unsupported(f"a scale of rank {scale.rank} for blocks of an operand of rank {x.rank}")
        n = x.shape[self.axis] if self.block else 0
        blocks = scale.shape[self.axis] if self.block else 0
        self.even = bool(self.block) and blocks * self.block == n
        if self.block and not self.even:
            cx.require(blocks * self.block, ">=", n, f"blocks of {self.block} must cover dim {self.axis}")

    def split(self, x: Value) -> Value:
        if not self.even:
            return x
        a, s = self.axis, x.shape
        return self.cx.reshape(x, (*s[:a], D.floordiv(s[a], self.block), self.block, *s[a + 1 :]))

    def join(self, y: Value) -> Value:
        return self.cx.reshape(y, self.shape) if self.even else y

    def spread(self, v: Value) -> Value:
        cx, a = self.cx, self.axis
        if not self.block:
            return scalar_or_axis(cx, v, len(self.shape), a)
        s = v.shape
        if len(s) != len(self.shape):
            raise Unsupported(f"a parameter of shape {s} for blocks of shape {self.shape}")
        tall = cx.reshape(v, (*s[: a + 1], 1, *s[a + 1 :]))
        if self.even:
            return tall
        tall = cx.broadcast(tall, (*s[: a + 1], self.block, *s[a + 1 :]))
        flat = cx.reshape(tall, (*s[:a], s[a] * self.block, *s[a + 1 :]))
        return cx.slice(flat, a, 0, self.shape[a])


def rounded(cx: Context, q: Value, zero: Value | None, dtype: DType) -> Value:
    """round(q) + zero within the range of an integer dtype; ``q`` is f32 or f64, ``zero`` broadcasts to it. Sums are
    exact wherever the result is not at a limit.
    """
    low, high = limits(dtype)
    y = cx.op("round", q)
    if zero is not None:
        y = cx.op("add", y, cx.convert(zero, q.dtype))
    y = cx.op("minimum", cx.op("maximum", y, low), high)
    return cx.convert(cx.convert(y, DType.i32) if dtype.value in _SHORT else y, dtype)


def quantize(
    cx: Context, x: Value, scale: Value, zero: Value | None = None, *, axis: int = 1, saturate: int = 1,
    block_size: int = 0, output_dtype: int = 0, precision: int = 0,
) -> Value:  # fmt: skip
    """round(x / scale) + zero, saturated. The scale's dtype, or ``precision``, is that of the division."""
    dtype = zero.dtype if zero is not None else dtype_of(output_dtype) if output_dtype else DType.u8
    work = dtype_of(precision) if precision else scale.dtype
    if work.value not in ("f16", "bf16", "f32", "f64"):
        work = DType.f32
    g = Granularity(cx, x, scale, axis, block_size)
    q = cx.elementwise("div", g.split(cx.convert(x, work)), g.spread(cx.convert(scale, work)))
    if dtype.is_int:
        wide = cx.opmath(q)
        shift = None if zero is None else g.spread(cx.convert(zero, wide.dtype))
        return g.join(rounded(cx, wide, shift, dtype))
    if zero is not None and dtype.value == "f4e2m1":  # floats of 8 bits have a zero point of 0
        q = cx.op("add", q, g.spread(cx.convert(zero, work)))
    return g.join(cast(cx, q, dtype, bool(saturate)))


def dequantize(
    cx: Context, x: Value, scale: Value, zero: Value | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0,
) -> Value:  # fmt: skip
    """(x - zero) * scale: the difference exact, the product rounded once."""
    dtype = dtype_of(output_dtype) if output_dtype else scale.dtype
    work = DType.f64 if dtype is DType.f64 else DType.f32
    g = Granularity(cx, x, scale, axis, block_size)
    v = g.split(x)
    if zero is not None and x.dtype.is_int:
        wide = DType.i64 if x.dtype.itemsize >= 4 else DType.i32
        v = cx.elementwise("sub", cx.convert(v, wide), g.spread(cx.convert(zero, wide)))
    y = cx.elementwise("mul", cx.convert(v, work), g.spread(cx.convert(scale, work)))
    return cx.convert(g.join(y), dtype)


onnx_op("QuantizeLinear")(quantize)
onnx_op("DequantizeLinear")(dequantize)


@onnx_op("DynamicQuantizeLinear")
def dynamic_quantize(cx: Context, x: Value) -> tuple[Value, Value, Value]:
    """(quantized, scale, zero point) of u8 for the range of ``x``, 0 included. Where the range is nothing but 0 the
    scale is 1: the standard's text leaves it open.
    """
    every = tuple(range(x.rank))
    high = cx.op("maximum", extreme(cx, "max", x, every, False), 0)
    low = cx.op("minimum", extreme(cx, "min", x, every, False), 0)
    span = cx.op("sub", high, low)
    scale = cx.where(cx.op("eq", span, 0), 1, cx.op("div", span, cx.const(255, x.dtype)))
    zero = rounded(cx, cx.op("neg", cx.op("div", low, scale)), None, DType.u8)
    return rounded(cx, cx.op("div", x, scale), zero, DType.u8), scale, zero


# Sums of products of integers -----------------------------------------------------------------------------------------


def centred(cx: Context, x: Value, zero: Value | None, axis: int) -> Value:
    """x - zero in i32. A zero point of rank 1 runs along ``axis``; one of the operand's rank broadcasts."""
    v = cx.convert(x, DType.i32)
    if zero is None:
        return v
    z = cx.convert(zero, DType.i32)
    c = cx.content(zero)
    if c is not None and c.dtype != object and not c.any():
        return v
    z = z if z.rank == x.rank and z.rank > 1 else scalar_or_axis(cx, z, x.rank, axis)
    return cx.elementwise("sub", v, z)


def product(cx: Context, a: Value, b: Value) -> Value:
    """numpy.matmul of operands of one dtype."""
    from_left, from_right = a.rank == 1, b.rank == 1
    x = cx.unsqueeze(a, 0) if from_left else a
    y = cx.unsqueeze(b, 1) if from_right else b
    cx.require(x.shape[-1], "==", y.shape[-2], "inner sizes of a matrix product must be equal")
    out = cx.b.op("matmul", x, y)
    if from_right:
        out = cx.squeeze(out, -1)
    if from_left:
        out = cx.squeeze(out, -1 if from_right else -2)
    return out  # type: ignore[no-any-return]


@onnx_op("MatMulInteger")
def matmul_integer(cx: Context, a: Value, b: Value, a_zero: Value | None = None, b_zero: Value | None = None) -> Value:
    return product(cx, centred(cx, a, a_zero, -2 if a.rank > 1 else 0), centred(cx, b, b_zero, -1))


def requantized(cx: Context, acc: Value, factor: Value, zero: Value | None, dtype: DType) -> Value:
    """round(acc * factor) + zero of i32 sums."""
    return rounded(cx, cx.elementwise("mul", cx.convert(acc, DType.f32), factor), zero, dtype)


def _along(cx: Context, v: Value, rank: int, axis: int) -> Value:
    """A scale in f32, as ``centred`` takes zero points."""
    v = cx.convert(v, DType.f32)
    return v if v.rank == rank and rank > 1 else scalar_or_axis(cx, v, rank, axis)


@onnx_op("QLinearMatMul")
def _qlinear_matmul(
    cx: Context, a: Value, a_scale: Value, a_zero: Value, b: Value, b_scale: Value, b_zero: Value, y_scale: Value,
    y_zero: Value,
) -> Value:  # fmt: skip
    rows, columns = _along(cx, a_scale, a.rank, -2), _along(cx, b_scale, b.rank, -1)
    acc = matmul_integer(cx, a, b, a_zero, b_zero)
    factor = cx.elementwise("div", cx.elementwise("mul", rows, columns), _along(cx, y_scale, acc.rank, -2))
    zero = _along(cx, y_zero, acc.rank, -2)
    return requantized(cx, acc, factor, zero, y_zero.dtype)


# Convolutions ---------------------------------------------------------------------------------------------------------


def window_pads(
    cx: Context, sizes: Sequence[Dim], kernel: Sequence[int], auto_pad: str, pads: Any, strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[tuple[Dim, Dim], ...]:  # fmt: skip
    """One (low, high) pair for each spatial dim. SAME: ceil(size / stride) windows, the odd one of an uneven padding
    after (UPPER) or before (LOWER).
    """
    n = len(sizes)
    if auto_pad in ("NOTSET", ""):
        pads = tuple(pads or (0,) * (2 * n))
        if len(pads) != 2 * n:
            raise Unsupported(f"{len(pads)} pads for {n} spatial dims")
        return tuple(zip(pads[:n], pads[n:]))
    if auto_pad == "VALID":
        return ((0, 0),) * n
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad {auto_pad}")
    out: list[tuple[Dim, Dim]] = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = cx.most((D.ceildiv(size, s) - 1) * s + (k - 1) * d + 1 - size, 0)
        less = D.floordiv(total, 2)
        out.append((less, total - less) if auto_pad == "SAME_UPPER" else (total - less, less))
    return tuple(out)


def conv_integer(
    cx: Context, x: Value, w: Value, x_zero: Value | None, w_zero: Value | None, *, auto_pad: str, dilations: Any,
    group: int, kernel_shape: Any, pads: Any, strides: Any,
) -> Value:  # fmt: skip
    """The i32 sums; padding stands for real zeros."""
    n = x.rank - 2
    kernel = list(w.shape[2:])
    if not all(isinstance(k, int) for k in kernel):
        raise Unsupported("a window whose size is not constant")
    if kernel_shape is not None and tuple(kernel_shape) != tuple(kernel):
        raise Unsupported(f"kernel_shape {kernel_shape} for weights of shape {w.shape}")
    strides, dilations = tuple(strides or (1,) * n), tuple(dilations or (1,) * n)
    padding = window_pads(cx, x.shape[2:], kernel, auto_pad, pads, strides, dilations)  # type: ignore[arg-type]
    return cx.b.op(  # type: ignore[no-any-return]
        "conv", centred(cx, x, x_zero, 1), centred(cx, w, w_zero, 0), stride=strides, padding=padding,
        dilation=dilations, groups=group,
    )  # fmt: skip


@onnx_op("ConvInteger")
def _conv_integer(
    cx: Context, x: Value, w: Value, x_zero: Value | None = None, w_zero: Value | None = None, *,
    auto_pad: str = "NOTSET", dilations: Any = None, group: int = 1, kernel_shape: Any = None, pads: Any = None,
    strides: Any = None,
) -> Value:  # fmt: skip
    return conv_integer(
        cx, x, w, x_zero, w_zero, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        pads=pads, strides=strides,
    )  # fmt: skip


@onnx_op("QLinearConv")
def qlinear_conv(
    cx: Context, x: Value, x_scale: Value, x_zero: Value, w: Value, w_scale: Value, w_zero: Value, y_scale: Value,
    y_zero: Value, bias: Value | None = None, *, auto_pad: str = "NOTSET", dilations: Any = None, group: int = 1,
    kernel_shape: Any = None, pads: Any = None, strides: Any = None,
) -> Value:  # fmt: skip
    """``bias`` is i32 in units of x_scale * w_scale."""
    acc = conv_integer(
        cx, x, w, x_zero, w_zero, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        pads=pads, strides=strides,
    )  # fmt: skip
    if bias is not None:
        acc = cx.elementwise("add", acc, scalar_or_axis(cx, bias, acc.rank, 1))
    factor = cx.elementwise("mul", cx.reshape(x_scale, ()), scalar_or_axis(cx, w_scale, acc.rank, 1))
    factor = cx.op("div", factor, cx.reshape(y_scale, ()))
    zero = scalar_or_axis(cx, y_zero, acc.rank, 1)
    return requantized(cx, acc, factor, zero, y_zero.dtype)
