"""Random numbers: dtype, shape and distribution are the standard's; the bits are the session's, not ``seed``'s."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..dtypes import dtype_of
from ..registry import Unsupported, onnx_op


def _draw(cx: Context, kind: str, shape: Sequence[Dim], dtype: DType, **parameters: float) -> Value:
    if not dtype.is_float:
        raise Unsupported(f"random numbers of {dtype}")
    y = cx.b.op(kind, shape=tuple(shape), dtype=dtype.compute, **parameters)
    return cx.convert(y, dtype)


@onnx_op("RandomNormal")
def _normal(
    cx: Context, *, shape: Sequence[int], dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float = 0.0
) -> Value:
    return _draw(cx, "rand_normal", shape, dtype_of(dtype), mean=mean, std=scale)


@onnx_op("RandomUniform")
def _uniform(
    cx: Context, *, shape: Sequence[int], dtype: int = 1, low: float = 0.0, high: float = 1.0, seed: float = 0.0
) -> Value:
    return _draw(cx, "rand_uniform", shape, dtype_of(dtype), lo=low, hi=high)


@onnx_op("RandomNormalLike")
def _normal_like(
    cx: Context, x: Value, *, dtype: int = 0, mean: float = 0.0, scale: float = 1.0, seed: float = 0.0
) -> Value:
    return _draw(cx, "rand_normal", x.shape, dtype_of(dtype) if dtype else x.dtype, mean=mean, std=scale)


@onnx_op("RandomUniformLike")
def _uniform_like(
    cx: Context, x: Value, *, dtype: int = 0, low: float = 0.0, high: float = 1.0, seed: float = 0.0
) -> Value:
    return _draw(cx, "rand_uniform", x.shape, dtype_of(dtype) if dtype else x.dtype, lo=low, hi=high)


@onnx_op("Bernoulli", since=15)
def _bernoulli(cx: Context, p: Value, *, dtype: int = 0, seed: float = 0.0) -> Value:
    y = cx.op("bernoulli", cx.opmath(p), dtype=DType.bool)
    return cx.convert(y, dtype_of(dtype) if dtype else p.dtype)


@onnx_op("Multinomial", since=7)
def _multinomial(cx: Context, x: Value, *, sample_size: int = 1, dtype: int = 6, seed: float = 0.0) -> Value:
    """Draws with replacement; ``x`` holds logarithms of weights."""
    v = cx.opmath(x)
    weights = cx.op("exp", cx.op("sub", v, cx.reduce("max", v, (v.rank - 1,), True)))
    y = cx.op("multinomial", weights, samples=sample_size, replacement=True)
    return cx.convert(y, dtype_of(dtype))
