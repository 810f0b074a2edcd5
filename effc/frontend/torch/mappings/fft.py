"""Discrete Fourier transforms."""

from __future__ import annotations

import math
from typing import Any

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.graph import Value
from ..context import Context
from ..registry import aten


def _scaled(cx: Context, n: Dim, normalization: int) -> tuple[float, Any]:
    """(factor known now, 0-d f64 factor to multiply with or None); normalization: 0 none, 1 by sqrt(n), 2 by n."""
    if normalization == 0:
        return 1.0, None
    if isinstance(n, int):
        return 1.0 / (math.sqrt(n) if normalization == 1 else n) if n else 1.0, None
    from ....ir.dtypes import DType

    size = cx.scalar(n, DType.f64)
    return 1.0, cx.op("rsqrt" if normalization == 1 else "reciprocal", size)


def _finish(cx: Context, y: Value, late: Any) -> Value:
    return y if late is None else cx.mul(y, cx.convert(late, y.dtype))


def _dims(cx: Context, x: Value, dim: Any) -> tuple[int, ...]:
    return tuple(cx.axis(d, x.rank) for d in dim)


@aten("_fft_c2c")
def _c2c(cx: Context, x: Value, dim: Any, normalization: int, forward: bool) -> Value:
    dims = _dims(cx, x, dim)
    if not dims:
        return x
    scale, late = _scaled(cx, cx.count(x, dims), normalization)
    return _finish(cx, cx.op("fft", x, dims=dims, inverse=not forward, scale=scale), late)


@aten("_fft_r2c")
def _r2c(cx: Context, x: Value, dim: Any, normalization: int, onesided: bool) -> Value:
    dims = _dims(cx, x, dim)
    scale, late = _scaled(cx, cx.count(x, dims), normalization)
    if onesided:
        return _finish(cx, cx.op("rfft", x, dims=dims, scale=scale), late)
    full = cx.op("complex", x, cx.full(0.0, x.shape, x.dtype))
    return _finish(cx, cx.op("fft", full, dims=dims, inverse=False, scale=scale), late)


@aten("_fft_c2r")
def _c2r(cx: Context, x: Value, dim: Any, normalization: int, last_dim_size: Any) -> Value:
    dims = _dims(cx, x, dim)
    last = cx.dim(last_dim_size)
    n = D.product([x.shape[d] for d in dims[:-1]] + [last])
    scale, late = _scaled(cx, n, normalization)
    return _finish(cx, cx.op("irfft", x, dims=dims, last_size=last, scale=scale), late)
