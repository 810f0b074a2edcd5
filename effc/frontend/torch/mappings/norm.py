"""Layer, group, batch and instance norms, as reductions and elementwise ops in the op-math dtype."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ..context import Context
from ..registry import aten


def standardise(cx: Context, x: Value, dims: tuple[int, ...], eps: float) -> tuple[Value, Value, Value]:
    """((x - mean) * rstd, mean, rstd) over dims, kept as sizes 1."""
    mean = cx.mean(x, dims, True)
    d = cx.sub(x, mean)
    var = cx.mean(cx.mul(d, d), dims, True)
    rstd = cx.op("rsqrt", cx.add(var, eps))
    return cx.mul(d, rstd), mean, rstd


def affine(cx: Context, x: Value, weight: Value | None, bias: Value | None) -> Value:
    if weight is not None:
        x = cx.mul(x, cx.convert(weight, x.dtype))
    return x if bias is None else cx.add(x, cx.convert(bias, x.dtype))


def _stat(cx: Context, v: Value, index: int) -> Value | None:
    t = cx.expected[index] if index < len(cx.expected) else None
    return None if t is None else cx.reshape(cx.convert(v, t.dtype), t.shape)


@aten("native_layer_norm")
def _layer_norm(
    cx: Context, x: Value, normalized_shape: Any, weight: Value | None, bias: Value | None, eps: float
) -> Any:
    dims = tuple(range(x.rank - len(normalized_shape), x.rank))
    z, mean, rstd = standardise(cx, cx.opmath(x), dims, eps)
    return cx.convert(affine(cx, z, weight, bias), x.dtype), _stat(cx, mean, 1), _stat(cx, rstd, 2)


@aten("rms_norm", "_fused_rms_norm")
def _rms_norm(
    cx: Context, x: Value, normalized_shape: Any, weight: Value | None = None, eps: float | None = None
) -> Any:
    dims = tuple(range(x.rank - len(normalized_shape), x.rank))
    v = cx.opmath(x)
    if eps is None:
        eps = {"f64": 2.220446049250313e-16}.get(v.dtype.value, 1.1920928955078125e-07)
    rstd = cx.op("rsqrt", cx.add(cx.mean(cx.mul(v, v), dims, True), eps))
    y = cx.convert(affine(cx, cx.mul(v, rstd), weight, None), cx.out.dtype)
    return y if len(cx.expected) == 1 else (y, _stat(cx, rstd, 1))


@aten("native_group_norm")
def _group_norm(
    cx: Context, x: Value, weight: Value | None, bias: Value | None, N: Any, C: Any, HxW: Any, group: int, eps: float
) -> Any:
    n, c, *rest = x.shape
    # Channels stay a dim of their own, so that weight, bias and what follows can be part of the same loop.
    v = cx.reshape(cx.opmath(x), (n, group, c // group, *rest))
    z, mean, rstd = standardise(cx, v, tuple(range(2, v.rank)), eps)
    shape = (group, c // group, *(1 for _ in rest))
    w = None if weight is None else cx.reshape(weight, shape)
    b = None if bias is None else cx.reshape(bias, shape)
    y = cx.reshape(affine(cx, z, w, b), x.shape)
    return cx.convert(y, x.dtype), _stat(cx, mean, 1), _stat(cx, rstd, 2)


def _channel(cx: Context, v: Value | None, rank: int) -> Value | None:
    return None if v is None else cx.reshape(v, (v.shape[0], *(1 for _ in range(rank - 2))))


def _batch(
    cx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Value, Value | None, Value | None, Value | None, Value | None]:
    """(y, batch mean, batch rstd, next running mean, next running var)."""
    v = cx.opmath(x)
    if not training:
        assert mean is not None and var is not None
        rstd = cx.op("rsqrt", cx.add(cx.convert(var, v.dtype), eps))
        scale = rstd if weight is None else cx.mul(rstd, cx.convert(weight, v.dtype))
        m = _channel(cx, cx.convert(mean, v.dtype), x.rank)
        y = cx.mul(cx.sub(v, m), _channel(cx, scale, x.rank))
        if bias is not None:
            y = cx.add(y, _channel(cx, cx.convert(bias, v.dtype), x.rank))
        return cx.convert(y, x.dtype), None, None, mean, var
    dims = (0, *range(2, x.rank))
    z, m1, rstd1 = standardise(cx, v, dims, eps)
    w = None if weight is None else _channel(cx, weight, x.rank)
    y = affine(cx, z, w, None if bias is None else _channel(cx, bias, x.rank))
    c = x.shape[1]
    bm, br = cx.reshape(m1, (c,)), cx.reshape(rstd1, (c,))
    next_mean, next_var = mean, var
    if mean is not None:
        next_mean = _blend(cx, mean, bm, momentum)
    if var is not None:
        n = cx.count(x, dims)
        d = cx.sub(v, m1)
        total = cx.reduce("sum", cx.mul(d, d), dims)
        unbiased = cx.div(total, cx.sub(cx.scalar(n, v.dtype), cx.const(1.0, v.dtype)))
        next_var = _blend(cx, var, unbiased, momentum)
    return cx.convert(y, x.dtype), bm, br, next_mean, next_var


def _blend(cx: Context, old: Value, new: Value, momentum: float) -> Value:
    work = old.dtype.compute
    y = cx.add(cx.mul(cx.convert(new, work), momentum), cx.mul(cx.convert(old, work), 1 - momentum))
    return cx.convert(y, old.dtype)


def _running(cx: Context, v: Value | None, index: int) -> Value | None:
    t = cx.expected[index]
    return v if v is None or t is None else cx.convert(v, t.dtype)


def _saved(cx: Context, v: Value | None, index: int) -> Value | None:
    t = cx.expected[index] if index < len(cx.expected) else None
    if t is None:
        return None
    return (
        cx.full(0.0, t.shape, t.dtype) if v is None or t.shape == (0,) else cx.reshape(cx.convert(v, t.dtype), t.shape)
    )


@aten("_batch_norm_with_update_functional")
def _with_update(
    cx: Context, x: Value, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Any:
    y, bm, br, nm, nv = _batch(cx, x, weight, bias, mean, var, True, momentum, eps)
    return y, _saved(cx, bm, 1), _saved(cx, br, 2), _saved(cx, None, 3), _running(cx, nm, 4), _running(cx, nv, 5)


@aten("_native_batch_norm_legit_functional")
def _legit_functional(
    cx: Context, x: Value, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    y, bm, br, nm, nv = _batch(cx, x, weight, bias, mean, var, training, momentum, eps)
    return y, _saved(cx, bm, 1), _saved(cx, br, 2), _running(cx, nm, 3), _running(cx, nv, 4)


@aten("_native_batch_norm_legit_no_training")
def _no_training(
    cx: Context, x: Value, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Any:
    y = _batch(cx, x, weight, bias, mean, var, False, momentum, eps)[0]
    return y, _saved(cx, None, 1), _saved(cx, None, 2)


@aten("_native_batch_norm_legit.no_stats")
def _no_stats(cx: Context, x: Value, weight: Any, bias: Any, training: bool, momentum: float, eps: float) -> Any:
    y, bm, br, _, _ = _batch(cx, x, weight, bias, None, None, True, momentum, eps)
    return y, _saved(cx, bm, 1), _saved(cx, br, 2)


@aten("native_batch_norm", "_native_batch_norm_legit")
def _native(
    cx: Context, x: Value, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    y, bm, br, _, _ = _batch(cx, x, weight, bias, mean, var, training or mean is None, momentum, eps)
    return y, _saved(cx, bm, 1), _saved(cx, br, 2)


@aten("batch_norm_update_stats")
def _update_stats(cx: Context, x: Value, mean: Any, var: Any, momentum: float) -> Any:
    _, bm, _, _, _ = _batch(cx, x, None, None, mean, var, True, momentum, 0.0)
    v = cx.opmath(x)
    dims = (0, *range(2, x.rank))
    m = cx.mean(v, dims, True)
    d = cx.sub(v, m)
    return _saved(cx, bm, 0), _saved(cx, cx.mean(cx.mul(d, d), dims), 1)
