"""``quantized_decomposed``: what PyTorch's export quantization puts around operators."""

from __future__ import annotations

from typing import Any

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import aten


def _along(cx: Context, v: Any, rank: int, axis: int | None, dtype: DType) -> Value:
    """A scale or zero point, a number or a tensor, in a shape that broadcasts."""
    if not isinstance(v, Value):
        return cx.b.constant(v, dtype)
    v = cx.convert(v, dtype)
    if axis is None:
        return v if v.rank == 0 else cx.op("reshape", v, shape=())
    shape: list[Any] = [1] * rank
    shape[axis] = v.shape[0]
    return cx.op("reshape", v, shape=tuple(shape))


def _quantize(cx: Context, x: Value, scale: Any, zero: Any, axis: int | None, low: int, high: int) -> Value:
    """As PyTorch: round(x * (1 / scale)) + zero, in f32."""
    s = cx.op("reciprocal", _along(cx, scale, x.rank, axis, DType.f32))
    y = cx.op("round", cx.op("mul", cx.convert(x, DType.f32), s))
    y = cx.op("add", y, _along(cx, zero, x.rank, axis, DType.f32))
    return cx.convert(cx.op("minimum", cx.op("maximum", y, low), high), cx.out.dtype)


def _dequantize(cx: Context, x: Value, scale: Any, zero: Any, axis: int | None) -> Value:
    """(x - zero) * scale: the difference exact, the product rounded once."""
    difference = cx.convert(x, DType.i32)
    if zero is not None:
        difference = cx.op("sub", difference, _along(cx, zero, x.rank, axis, DType.i32))
    y = cx.op("mul", cx.convert(difference, DType.f32), _along(cx, scale, x.rank, axis, DType.f32))
    return cx.convert(y, cx.out.dtype)


@aten("quantized_decomposed::quantize_per_tensor")
def _quantize_tensor(cx: Context, x: Value, scale: Any, zero: Any, low: int, high: int, dtype: Any) -> Value:
    return _quantize(cx, x, scale, zero, None, low, high)


@aten("quantized_decomposed::dequantize_per_tensor")
def _dequantize_tensor(
    cx: Context, x: Value, scale: Any, zero: Any, low: int, high: int, dtype: Any, *, out_dtype: Any = None
) -> Value:
    return _dequantize(cx, x, scale, zero, None)


@aten("quantized_decomposed::quantize_per_channel")
def _quantize_channel(
    cx: Context, x: Value, scale: Value, zero: Value, axis: int, low: int, high: int, dtype: Any
) -> Value:
    return _quantize(cx, x, scale, zero, axis, low, high)


@aten("quantized_decomposed::dequantize_per_channel")
def _dequantize_channel(
    cx: Context, x: Value, scale: Value, zero: Value | None, axis: int, low: int, high: int, dtype: Any, *,
    out_dtype: Any = None,
) -> Value:  # fmt: skip
    return _dequantize(cx, x, scale, zero, axis)
