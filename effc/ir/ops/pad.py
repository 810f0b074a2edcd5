"""Padding of any rank, and its relatives: fold (col2im)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dims import Dim
from ..dtypes import DType
from ..op import DimsAttr, Sample, op, require
from ..types import TensorType
from .elementwise import random_array

Array = np.ndarray[Any, Any]

MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # ours -> numpy's


def _pad(x: TensorType, *, padding: Any, mode: str, value: Any) -> TensorType:
    require(mode in MODES, f"unknown mode {mode}; one of {', '.join(MODES)}")
    require(len(padding) == x.rank, f"padding needs one pair per dim, {x.rank} of them")
    shape: list[Dim] = []
    for n, (lo, hi) in zip(x.shape, padding, strict=True):
        size = n + lo + hi
        require(not isinstance(size, int) or size >= 0, f"padding ({lo}, {hi}) crops more than the dim's size {n}")
        if mode != "constant" and (lo, hi) != (0, 0):
            require(n != 0, f"{mode} padding of an empty dim")
            if mode == "reflect" and isinstance(n, int):
                fits = all(not isinstance(p, int) or p < n for p in (lo, hi))
                require(fits, f"reflect padding ({lo}, {hi}) must be smaller than the dim's size {n}")
        shape.append(size)
    return x.with_shape(tuple(shape))


def _pad_np(x: Array, *, padding: Any, mode: str, value: Any) -> Array:
    grown = [(max(lo, 0), max(hi, 0)) for lo, hi in padding]
    if mode == "constant":
        y = np.pad(x, grown, constant_values=np.asarray(value).astype(x.dtype))
    else:
        y = x if not any(map(any, grown)) else np.pad(x, grown, mode=MODES[mode])  # type: ignore[call-overload]
    crop = tuple(
        slice(max(-lo, 0), y.shape[d] - max(-hi, 0) if y.shape[d] > max(-hi, 0) else 0)
        for d, (lo, hi) in enumerate(padding)
    )
    result: Array = y[crop]
    return result


def _pad_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, padding in [
        ((2, 3, 5, 7), ((0, 0), (0, 0), (1, 2), (3, 1))),
        ((5, 4), ((2, 3), (1, 0))),
        ((9,), ((4, 4),)),
        ((3, 6, 8), ((0, 0), (0, 0), (-2, 3))),
        ((2, 6, 8), ((0, 0), (-1, -2), (2, -3))),
        ((1, 2, 3, 4, 5), ((0, 0), (0, 0), (1, 1), (2, 0), (0, 2))),
    ]:
        for mode in MODES:
            x = random_array(rng, shape, np.float32)
            yield Sample((x,), {"padding": padding, "mode": mode, "value": 1.5 if mode == "constant" else 0})
    for dt in (np.bool_, np.uint8, DType.bf16.np, np.int64, np.complex64, np.complex128):
        yield Sample(
            (random_array(rng, (3, 5), dt),),
            {"padding": ((1, 2), (2, 1)), "mode": "constant", "value": 1},
            "element sizes",
        )
        yield Sample(
            (random_array(rng, (3, 5), dt),), {"padding": ((1, 2), (2, 1)), "mode": "reflect"}, "element sizes"
        )
    yield Sample(
        (random_array(rng, (0, 4), np.float32),), {"padding": ((1, 2), (0, 0)), "value": -np.inf}, "empty operand"
    )
    yield Sample((random_array(rng, (3, 4), np.float32),), {"padding": ((-1, -2), (0, 0))}, "empty result")


op(
    "pad",
    "x",
    {"padding": tuple, "mode": (str, "constant"), "value": (object, 0)},
    infer=_pad,
    numpy=_pad_np,
    category="movement",
    samples=_pad_samples,
    doc="Grows (or, where negative, crops) each dim by a (low, high) pair, which may be symbolic. What lies "
    "outside is ``value`` or, "
    "by mode, x continued: reflect (edge not repeated), replicate, circular.",
)


def _col2im(x: TensorType, *, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> TensorType:
    require(
        x.rank == 3 and len(size) == len(kernel) == len(stride) == len(padding) == len(dilation) == 2,
        "x must be [N, C * kh * kw, L]",
    )
    require(x.dtype.is_float or x.dtype.is_complex or x.dtype.is_int, f"not defined for {x.dtype}")
    rows, taps = x.shape[1], kernel[0] * kernel[1]
    require(not isinstance(rows, int) or rows % taps == 0, f"{rows} rows do not divide into windows of {taps}")
    return x.with_shape((x.shape[0], rows // taps, *size))


def _col2im_np(x: Array, *, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Array:
    kh, kw = kernel
    n, c = x.shape[0], x.shape[1] // (kh * kw)
    counts = [(size[d] + sum(padding[d]) - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2)]
    wide = {"f": np.float64, "c": np.complex128, "V": np.float64}.get(x.dtype.kind, x.dtype)
    canvas = np.zeros((n, c, size[0] + sum(padding[0]), size[1] + sum(padding[1])), wide)
    columns = x.astype(wide).reshape(n, c, kh, kw, *counts)
    for i in range(kh):
        for j in range(kw):
            a, b = i * dilation[0], j * dilation[1]
            canvas[
                :,
                :,
                a : a + (counts[0] - 1) * stride[0] + 1 : stride[0],
                b : b + (counts[1] - 1) * stride[1] + 1 : stride[1],
            ] += columns[:, :, i, j]
    top, left = padding[0][0], padding[1][0]
    return canvas[:, :, top : top + size[0], left : left + size[1]].astype(x.dtype)


def _col2im_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64, DType.bf16.np, np.complex64):
        for size, kernel, stride, pad, dilation, n, c in [
            ((6, 7), (3, 2), (1, 1), (0, 0), (1, 1), 2, 3),
            ((9, 8), (3, 3), (2, 3), (1, 2), (2, 1), 1, 5),
            ((4, 4), (2, 2), (2, 2), (0, 0), (1, 1), 0, 2),
        ]:
            count = 1
            for d in range(2):
                count *= (size[d] + 2 * pad[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
            x = random_array(rng, (n, c * kernel[0] * kernel[1], count), dt)
            attrs = {
                "size": size,
                "kernel": kernel,
                "stride": stride,
                "padding": tuple((p, p) for p in pad),
                "dilation": dilation,
            }
            yield Sample((x,), attrs)


op(
    "col2im",
    "x",
    {"size": DimsAttr, "kernel": tuple, "stride": tuple, "padding": tuple, "dilation": tuple},
    infer=_col2im,
    numpy=_col2im_np,
    category="movement",
    moves=False,
    samples=_col2im_samples,
    doc="x[N, C * kh * kw, L] -> [N, C, *size]: adds every column back to the window of the image that it came "
    "from (torch's fold). "
    "Its inverse needs no op: pad, then a strided view.",
)
