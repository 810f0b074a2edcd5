"""Pooling over 1 to 3 trailing spatial dims of x[N, C, *S], plain and adaptive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import dims
from ..dims import Dim
from ..dtypes import DType
from ..op import DimsAttr, Sample, op, require
from ..types import TensorType
from .conv import trailing
from .elementwise import random_array

Array = np.ndarray[Any, Any]

_WINDOW: dict[str, Any] = {"kernel": tuple, "stride": tuple, "padding": tuple}


def pool_size(size: Dim, kernel: int, stride: int, pad: Any, dilation: int, ceil_mode: bool) -> Dim:
    """Output size along one dim. With ceil_mode the last window may hang over the end, but must start inside x or
    its low padding."""
    room = size + pad[0] + pad[1] - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return dims.floordiv(room, stride) + 1
    return dims.minimum(dims.ceildiv(room, stride) + 1, dims.ceildiv(size + pad[0], stride))


def _out_shape(
    x: TensorType, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Dim, ...]:
    nd = x.rank - 2
    require(1 <= nd <= 3, f"x must have rank 3 to 5, not {x.rank}")
    require(
        len(kernel) == len(stride) == len(padding) == len(dilation) == nd,
        f"kernel, stride and padding need {nd} entries",
    )
    require(all(s > 0 for s in stride) and all(k > 0 for k in kernel), "kernel and stride must be positive")
    out = [pool_size(x.shape[2 + d], kernel[d], stride[d], padding[d], dilation[d], ceil_mode) for d in range(nd)]
    require(
        all(not isinstance(s, int) or s > 0 for s in out), f"the window is larger than the padded input {x.shape[2:]}"
    )
    return (*x.shape[:2], *out)


def _max_pool(
    x: TensorType, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, indices: bool
) -> Any:
    require(x.dtype.is_float or x.dtype.is_int, f"not defined for {x.dtype}")
    y = x.with_shape(_out_shape(x, kernel, stride, padding, dilation, ceil_mode))
    return (y, y.with_dtype(DType.i64)) if indices else y


def _windows(x: Array, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, fill: Any) -> Array:
    """[N, C, *out, taps]: the elements of every window, ``fill`` outside x."""
    nd = x.ndim - 2
    out = [
        dims.evaluate(pool_size(x.shape[2 + d], kernel[d], stride[d], padding[d], dilation[d], ceil_mode), {})
        for d in range(nd)
    ]
    reach = [dilation[d] * (kernel[d] - 1) + 1 for d in range(nd)]
    pads = [
        (padding[d][0], max(0, (out[d] - 1) * stride[d] + reach[d] - x.shape[2 + d] - padding[d][0])) for d in range(nd)
    ]
    padded = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + nd)))
    view = view[
        trailing(
            *(slice(0, (o - 1) * s + 1, s) for o, s in zip(out, stride, strict=True)),
            *(slice(None, None, d) for d in dilation),
        )
    ]
    result: Array = view.reshape(*view.shape[: 2 + nd], int(np.prod(kernel)))
    return result


def _best(values: Array, valid: Array) -> tuple[Array, Array]:
    """Maximum over the last axis and the tap that gives it: the first maximum, or the last NaN."""
    if values.dtype.kind in "iu":
        low: Any = np.iinfo(values.dtype).min
        nan = np.zeros(values.shape, bool)
    else:
        low = -np.inf
        nan = np.isnan(values) & valid
    masked = np.where(valid, values, np.asarray(low, values.dtype))
    top = masked.max(axis=-1) if values.dtype.kind in "iu" else np.fmax.reduce(masked, axis=-1)
    first = ((masked == top[..., None]) & valid).argmax(axis=-1)
    any_nan = nan.any(axis=-1)
    last = values.shape[-1] - 1 - nan[..., ::-1].argmax(axis=-1)
    at = np.where(any_nan, last, first)
    return np.take_along_axis(values, at[..., None], -1)[..., 0], at


def _max_pool_np(
    x: Array, *, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, indices: bool
) -> Any:
    window = (kernel, stride, padding, dilation, ceil_mode)
    values = _windows(x, *window, fill=0)
    flat = np.arange(int(np.prod(x.shape[2:])), dtype=np.int64).reshape(1, 1, *x.shape[2:])
    places = np.broadcast_to(_windows(flat, *window, fill=-1), values.shape)
    best, at = _best(values, places >= 0)
    if not indices:
        return best
    return best, np.take_along_axis(places, at[..., None], -1)[..., 0]


def _avg_pool(
    x: TensorType, *, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool, divisor: int
) -> TensorType:
    require(x.dtype.is_float or x.dtype.is_int, f"not defined for {x.dtype}")
    return x.with_shape(_out_shape(x, kernel, stride, padding, (1,) * (x.rank - 2), ceil_mode))


def _mean(total: Array, count: Array, dtype: np.dtype[Any]) -> Array:
    count = np.maximum(count, 1)
    if dtype.kind in "iu":  # C's division: towards zero
        return np.asarray(np.sign(total) * (np.abs(total) // count)).astype(dtype)
    return np.asarray(total / count).astype(dtype)


def _avg_pool_np(
    x: Array, *, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool, divisor: int
) -> Array:
    window = (kernel, stride, padding, (1,) * (x.ndim - 2), ceil_mode)
    wide = np.dtype(np.int64) if x.dtype.kind in "iu" else np.dtype(np.float64)
    total = _windows(x.astype(wide), *window, fill=0).sum(axis=-1)
    ones = np.ones((1, 1, *x.shape[2:]), np.int64)
    if divisor:
        count = np.full((1,), divisor, np.int64)
    elif count_include_pad:
        padded = np.pad(ones, [(0, 0), (0, 0), *padding], constant_values=1)
        none = tuple((0, 0) for _ in padding)
        # The same windows over an image that already holds its padding; what ceil_mode adds does not count.
        sizes = [
            dims.evaluate(pool_size(x.shape[2 + d], kernel[d], stride[d], padding[d], 1, ceil_mode), {})
            for d in range(x.ndim - 2)
        ]
        count = _windows(padded, kernel, stride, none, window[3], ceil_mode, fill=0).sum(axis=-1)
        count = count[trailing(*(slice(0, s) for s in sizes))]
    else:
        count = _windows(ones, *window, fill=0).sum(axis=-1)
    return _mean(total, count, x.dtype)


def _pairs(*values: int) -> tuple[tuple[int, int], ...]:
    return tuple((v, v) for v in values)


_POOL_CASES: list[tuple[Any, ...]] = [
    ((2, 5, 9, 8), (3, 3), (2, 2), _pairs(1, 1), False, "as after a first convolution"),
    ((1, 70, 7, 6), (2, 3), (1, 2), _pairs(0, 1), False, "more channels than a vector block"),
    ((1, 3, 7, 7), (2, 2), (2, 2), _pairs(0, 0), True, "ceil mode, odd size"),
    ((1, 2, 5, 6), (3, 3), (3, 3), _pairs(1, 1), True, "ceil mode, last window starts in the padding"),
    ((2, 3, 21), (5,), (3,), _pairs(2), False, "1-d"),
    ((1, 2, 5, 4, 6), (2, 2, 3), (2, 1, 2), _pairs(1, 0, 1), False, "3-d"),
    ((0, 3, 4, 4), (2, 2), (2, 2), _pairs(0, 0), False, "empty batch"),
]


def _max_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, kernel, stride, padding, ceil_mode, why in _POOL_CASES:
        attrs = {
            "kernel": kernel,
            "stride": stride,
            "padding": padding,
            "dilation": (1,) * len(kernel),
            "ceil_mode": ceil_mode,
        }
        for indices in (False, True):
            x = random_array(rng, shape, np.float32)
            yield Sample((x,), {**attrs, "indices": indices}, why)
            if x.size:
                nan = x.copy()
                nan.reshape(-1)[rng.integers(0, x.size, 4)] = np.nan
                nan.reshape(-1)[rng.integers(0, x.size, 4)] = -np.inf
                yield Sample((nan,), {**attrs, "indices": indices}, "NaN and -inf")
            for dt in (np.float64, DType.bf16.np, np.int64, np.uint8):
                yield Sample(
                    (random_array(rng, shape, dt),), {**attrs, "indices": indices}, "equal values, other dtypes"
                )
    attrs = {
        "kernel": (2, 3),
        "stride": (1, 2),
        "padding": _pairs(1, 1),
        "dilation": (2, 3),
        "ceil_mode": False,
        "indices": True,
    }
    yield Sample((random_array(rng, (1, 3, 9, 11), np.float32),), attrs, "dilated")


def _avg_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, kernel, stride, padding, ceil_mode, why in _POOL_CASES:
        for include in (False, True):
            attrs = {
                "kernel": kernel,
                "stride": stride,
                "padding": padding,
                "ceil_mode": ceil_mode,
                "count_include_pad": include,
            }
            for dt in (np.float32, np.float64, DType.f16.np, np.int64):
                yield Sample((random_array(rng, shape, dt),), {**attrs, "divisor": 0}, why)
        yield Sample((random_array(rng, shape, np.float32),), {**attrs, "divisor": 3}, "own divisor")


op(
    "max_pool",
    "x",
    {**_WINDOW, "dilation": tuple, "ceil_mode": (bool, False), "indices": (bool, False)},
    infer=_max_pool,
    numpy=_max_pool_np,
    category="pool",
    samples=_max_samples,
    doc="Maximum of each window; NaN wins. With ``indices`` also the winner's flat position in its image (first "
    "maximum, last NaN).",
)
op(
    "avg_pool",
    "x",
    {**_WINDOW, "ceil_mode": (bool, False), "count_include_pad": (bool, True), "divisor": (int, 0)},
    infer=_avg_pool,
    numpy=_avg_pool_np,
    category="pool",
    samples=_avg_samples,
    doc="Mean of each window over its elements, over the padding too with count_include_pad, or the sum over "
    "``divisor`` if nonzero.",
)


def _adaptive(x: TensorType, *, size: Sequence[Dim]) -> TensorType:
    require(
        1 <= x.rank - 2 <= 3 and len(size) == x.rank - 2,
        f"x must have {len(size)} spatial dims and rank 3 to 5, not {x.rank}",
    )
    require(x.dtype.is_float or x.dtype.is_int, f"not defined for {x.dtype}")
    require(all(d != 0 for d in x.shape[2:]) or 0 in size, "adaptive pooling of an empty image")
    return x.with_shape((*x.shape[:2], *size))


def _adaptive_max(x: TensorType, *, size: Sequence[Dim], indices: bool) -> Any:
    y = _adaptive(x, size=size)
    return (y, y.with_dtype(DType.i64)) if indices else y


def _cells(shape: Sequence[int], size: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Output positions and their windows: [floor(i * n / out), ceil((i + 1) * n / out))."""
    for at in np.ndindex(*size):
        yield at, tuple(slice(i * n // o, -(-((i + 1) * n) // o)) for i, n, o in zip(at, shape, size, strict=True))


def _adaptive_avg_np(x: Array, *, size: Sequence[int]) -> Array:
    wide = np.dtype(np.int64) if x.dtype.kind in "iu" else np.dtype(np.float64)
    y = np.zeros((*x.shape[:2], *size), x.dtype)
    for at, window in _cells(x.shape[2:], size):
        part = x[trailing(*window)].astype(wide)
        count = int(np.prod(part.shape[2:]))
        y[trailing(*at)] = _mean(part.sum(axis=tuple(range(2, x.ndim))), np.asarray(count), x.dtype)
    return y


def _adaptive_max_np(x: Array, *, size: Sequence[int], indices: bool) -> Any:
    y = np.zeros((*x.shape[:2], *size), x.dtype)
    index = np.zeros(y.shape, np.int64)
    flat = np.arange(int(np.prod(x.shape[2:])), dtype=np.int64).reshape(x.shape[2:])
    for at, window in _cells(x.shape[2:], size):
        part, places = x[trailing(*window)], flat[trailing(*window)].reshape(-1)
        part = part.reshape(*x.shape[:2], places.size)
        best, tap = _best(part, np.ones(part.shape, bool))
        y[trailing(*at)], index[trailing(*at)] = best, places[tap]
    return (y, index) if indices else y


def _adaptive_samples(rng: np.random.Generator, indices: Sequence[bool]) -> Iterator[Sample]:
    for shape, size in [
        ((2, 5, 7, 7), (1, 1)),
        ((1, 65, 9, 10), (4, 3)),
        ((1, 3, 5), (8,)),
        ((1, 2, 4, 5, 6), (2, 5, 3)),
        ((0, 2, 4), (2,)),
        ((2, 3, 40, 33), (1, 1)),
    ]:
        for flag in indices:
            attrs = {"size": size, **({"indices": flag} if len(indices) > 1 else {})}
            for dt in (np.float32, np.float64, DType.bf16.np):
                yield Sample((random_array(rng, shape, dt),), attrs)


op(
    "adaptive_avg_pool",
    "x",
    {"size": DimsAttr},
    infer=_adaptive,
    numpy=_adaptive_avg_np,
    category="pool",
    samples=lambda rng: _adaptive_samples(rng, (False,)),
    doc="Mean over windows [floor(i * n / out), ceil((i + 1) * n / out)) so that the result has spatial ``size``.",
)
op(
    "adaptive_max_pool",
    "x",
    {"size": DimsAttr, "indices": (bool, False)},
    infer=_adaptive_max,
    numpy=_adaptive_max_np,
    category="pool",
    samples=lambda rng: _adaptive_samples(rng, (False, True)),
    doc="Maximum over the windows of adaptive_avg_pool; with ``indices`` as max_pool.",
)
