"""Normalizations, as means and elementwise ops; halves in f32, rounded once."""

from __future__ import annotations

from typing import Any

from ....ir import dims as D
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..dtypes import dtype_of
from ..registry import Unsupported, onnx_op


def standardise(cx: Context, x: Value, dims: tuple[int, ...], eps: float) -> tuple[Value, Value, Value]:
    """((x - mean) * rstd, mean, rstd) over dims, kept as sizes 1."""
    mean = cx.mean(x, dims, True)
    d = cx.op("sub", x, mean)
    rstd = cx.op("rsqrt", cx.add(cx.mean(cx.mul(d, d), dims, True), eps))
    return cx.op("mul", d, rstd), mean, rstd


def affine(cx: Context, x: Value, weight: Value | None, bias: Value | None) -> Value:
    if weight is not None:
        x = cx.elementwise("mul", x, cx.convert(weight, x.dtype))
    return x if bias is None else cx.elementwise("add", x, cx.convert(bias, x.dtype))


def wide(x: Value, stash_type: int) -> tuple[DType, DType]:
    """(the type to compute in, the type of saved statistics): never narrower than x."""
    stash = dtype_of(stash_type)
    return (DType.f64 if DType.f64 in (x.dtype, stash) else DType.f32), stash


# Batch normalization --------------------------------------------------------------------------------------------------


def _channel(cx: Context, v: Value, rank: int, dtype: DType) -> Value:
    """A number per channel, or one for each element of an image, to meet x."""
    v = cx.convert(v, dtype)
    return v if v.rank > 1 else cx.reshape(v, (v.shape[0], *[1] * (rank - 2)))


def _inference(
    cx: Context, x: Value, scale: Value, bias: Value, mean: Value, var: Value, eps: float
) -> Value:  # fmt: skip
    if x.rank < 2:
        raise Unsupported(f"operand of rank {x.rank}")
    v = cx.convert(x, DType.f64 if var.dtype is DType.f64 else x.dtype.compute)
    rstd = cx.op("rsqrt", cx.add(cx.convert(var, v.dtype), eps))
    factor = _channel(cx, cx.op("mul", rstd, cx.convert(scale, v.dtype)), x.rank, v.dtype)
    centred = cx.op("sub", v, _channel(cx, mean, x.rank, v.dtype))
    return cx.convert(cx.op("add", cx.op("mul", centred, factor), _channel(cx, bias, x.rank, v.dtype)), x.dtype)


def _training(
    cx: Context, x: Value, scale: Value, bias: Value, mean: Value, var: Value, eps: float, momentum: float,
    per_element: bool,
) -> tuple[Value, ...]:  # fmt: skip
    """(y, next running mean, next running variance, the batch's mean, the batch's variance); the variance is that of
    the population.
    """
    v = cx.convert(x, DType.f64 if var.dtype is DType.f64 else x.dtype.compute)
    dims = (0,) if per_element else (0, *range(2, x.rank))
    m = cx.mean(v, dims, True)
    d = cx.op("sub", v, m)
    s = cx.mean(cx.mul(d, d), dims, True)
    z = cx.op("mul", d, cx.op("rsqrt", cx.add(s, eps)))
    y = affine(cx, z, _channel(cx, scale, x.rank, v.dtype), _channel(cx, bias, x.rank, v.dtype))

    def running(old: Value, new: Value) -> Value:
        next_one = cx.op("add", cx.mul(cx.convert(old, v.dtype), momentum), cx.mul(new, 1 - momentum))
        return cx.convert(next_one, old.dtype)

    m, s = (cx.reshape(t, mean.shape) for t in (m, s))
    return (
        cx.convert(y, x.dtype), running(mean, m), running(var, s), cx.convert(m, mean.dtype), cx.convert(s, var.dtype),
    )  # fmt: skip


@onnx_op("BatchNormalization")
def _batch_by_outputs(
    cx: Context, x: Value, scale: Value, bias: Value, mean: Value, var: Value, *, epsilon: float = 1e-5,
    momentum: float = 0.9, spatial: int = 1, is_test: int = 1,
) -> Any:  # fmt: skip
    """Before operator set 14 a node with more than one result is one for training. spatial=0: statistics for every
    element of an image.
    """
    if cx.expected > 1:
        return _training(cx, x, scale, bias, mean, var, epsilon, momentum, not spatial)
    return _inference(cx, x, scale, bias, mean, var, epsilon)


@onnx_op("BatchNormalization", since=14)
def _batch(
    cx: Context, x: Value, scale: Value, bias: Value, mean: Value, var: Value, *, epsilon: float = 1e-5,
    momentum: float = 0.9, training_mode: int = 0,
) -> Any:  # fmt: skip
    if training_mode:
        return _training(cx, x, scale, bias, mean, var, epsilon, momentum, False)[:3]
    if cx.expected > 1:
        raise Unsupported("running statistics without training_mode")
    return _inference(cx, x, scale, bias, mean, var, epsilon)


# The others -----------------------------------------------------------------------------------------------------------


@onnx_op("InstanceNormalization")
def _instance(cx: Context, x: Value, scale: Value, bias: Value, *, epsilon: float = 1e-5) -> Value:
    v = cx.opmath(x)
    z = standardise(cx, v, tuple(range(2, x.rank)), epsilon)[0]
    y = affine(cx, z, _channel(cx, scale, x.rank, v.dtype), _channel(cx, bias, x.rank, v.dtype))
    return cx.convert(y, x.dtype)


@onnx_op("LayerNormalization")
def _layer(
    cx: Context, x: Value, scale: Value, bias: Value | None = None, *, axis: int = -1, epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Any:  # fmt: skip
    work, stash = wide(x, stash_type)
    z, mean, rstd = standardise(cx, cx.convert(x, work), tuple(range(cx.axis(axis, x.rank), x.rank)), epsilon)
    y = cx.convert(affine(cx, z, scale, bias), x.dtype)
    return y, cx.convert(mean, stash), cx.convert(rstd, stash)


@onnx_op("RMSNormalization")
def _rms(cx: Context, x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Value:
    work, _ = wide(x, stash_type)
    v = cx.convert(x, work)
    dims = tuple(range(cx.axis(axis, x.rank), x.rank))
    rstd = cx.op("rsqrt", cx.add(cx.mean(cx.mul(v, v), dims, True), epsilon))
    return cx.convert(affine(cx, cx.op("mul", v, rstd), scale, None), scale.dtype)


def _groups(
    cx: Context, x: Value, scale: Value, bias: Value, num_groups: int, epsilon: float, work: DType, per_group: bool
) -> Value:
    n, c, *rest = x.shape
    deep = D.floordiv(c, num_groups)
    v = cx.reshape(cx.convert(x, work), (n, num_groups, deep, *rest))
    z = standardise(cx, v, tuple(range(2, v.rank)), epsilon)[0]
    shape = (num_groups, 1 if per_group else deep, *[1] * len(rest))
    y = affine(cx, z, cx.reshape(scale, shape), cx.reshape(bias, shape))
    return cx.convert(cx.reshape(y, x.shape), x.dtype)


@onnx_op("GroupNormalization", since=18)
def _group_first(
    cx: Context, x: Value, scale: Value, bias: Value, *, num_groups: int, epsilon: float = 1e-5
) -> Value:  # fmt: skip
    """The first form has one scale for each group."""
    return _groups(cx, x, scale, bias, num_groups, epsilon, x.dtype.compute, True)


@onnx_op("GroupNormalization", since=21)
def _group(
    cx: Context, x: Value, scale: Value, bias: Value, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Value:
    return _groups(cx, x, scale, bias, num_groups, epsilon, wide(x, stash_type)[0], False)


@onnx_op("LRN")
def _lrn(
    cx: Context, x: Value, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Value:  # fmt: skip
    """x / (bias + alpha / size * sum of squares over ``size`` neighbouring channels) ** beta."""
    v = cx.opmath(x)
    n, c, area = x.shape[0], x.shape[1], D.product(x.shape[2:])
    squares = cx.reshape(cx.mul(v, v), (n, 1, c, area))
    low = (size - 1) // 2
    total = cx.b.op(
        "avg_pool", squares, kernel=(size, 1), stride=(1, 1), padding=((low, size - 1 - low), (0, 0)), ceil_mode=False,
        count_include_pad=False, divisor=1,
    )  # fmt: skip
    norm = cx.add(cx.mul(cx.reshape(total, x.shape), alpha / size), bias)
    y = cx.op("mul", v, cx.op("pow", norm, -beta))
    return cx.convert(y, x.dtype)


# Dropout --------------------------------------------------------------------------------------------------------------


@onnx_op("Dropout")
def _dropout_first(cx: Context, x: Value, *, ratio: float = 0.5, is_test: int = 1) -> Any:
    """Nothing is dropped, but before operator set 7 where is_test says so. The mask has the operand's type."""
    if not is_test and ratio:
        y, kept = _dropped(cx, x, cx.const(ratio, DType.f32))
        return y, cx.convert(kept, x.dtype)
    return x, cx.full(1, x.shape, x.dtype)


@onnx_op("Dropout", since=10)
def _dropout_mask(cx: Context, x: Value, *, ratio: float = 0.5) -> Any:
    return x, cx.full(True, x.shape, DType.bool)


@onnx_op("Dropout", since=12)
def _dropout(
    cx: Context, x: Value, ratio: Value | None = None, training: Value | None = None, *, seed: int | None = None
) -> Any:
    """An element stays with probability 1 - ratio and is divided by that; all stay where it is not for training, which
    may be known only while running. The seed names no generator, and is not used.
    """
    known = None if training is None else cx.content(training)
    share = cx.const(0.5, DType.f32) if ratio is None else cx.convert(cx.reshape(ratio, ()), DType.f32)
    content = cx.content(share)
    if training is None or (known is not None and not known.reshape(-1)[0]) or (content is not None and content == 0):
        return x, cx.full(True, x.shape, DType.bool)
    return _dropped(cx, x, share if known is not None else cx.where(cx.reshape(training, ()), share, 0.0))


def _dropped(cx: Context, x: Value, share: Value) -> tuple[Value, Value]:
    work = x.dtype.compute
    kept = cx.op("ge", cx.b.op("rand_uniform", lo=0.0, hi=1.0, shape=x.shape, dtype=DType.f32), share)
    factor = cx.op("reciprocal", cx.sub(1.0, cx.convert(share, work)))
    return cx.convert(cx.where(kept, cx.op("mul", cx.convert(x, work), factor), 0.0), x.dtype), kept


__all__ = ["affine", "standardise"]
