"""Fourier transforms and the weights that go with them. A complex number is a last dim of 2 in ONNX, a dtype here."""

from __future__ import annotations

import math

import numpy as np

from ....ir import dims as D
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..dtypes import dtype_of
from ..registry import Unsupported, onnx_op


def _numbers(cx: Context, x: Value) -> Value:
    """[..., 1] as real numbers, [..., 2] as complex ones."""
    last = x.shape[-1]
    if last not in (1, 2):
        raise Unsupported(f"a last size of {last}: 1 means real numbers, 2 complex ones")
    v = cx.opmath(x)
    return cx.squeeze(v, -1) if last == 1 else cx.b.op("view_as_complex", v)


def _pairs(cx: Context, x: Value, dtype: DType) -> Value:
    return cx.convert(cx.b.op("view_as_real", x), dtype)


def _complex(cx: Context, x: Value) -> Value:
    return x if x.dtype.is_complex else cx.op("complex", x, cx.full(0.0, x.shape, x.dtype))


def _fitted(cx: Context, x: Value, d: int, n: Dim) -> Value:
    """Cut to n values along d, or continued with zeros."""
    have = x.shape[d]
    if have == n:
        return x
    if not (isinstance(have, int) and isinstance(n, int)):
        padding = tuple((0, n - have if k == d else 0) for k in range(x.rank))
    elif have > n:
        return cx.slice(x, d, 0, n)
    else:
        padding = tuple((0, n - have if k == d else 0) for k in range(x.rank))
    if x.dtype.is_complex:
        parts = [cx.b.op("pad", cx.b.op(p, x), padding=padding) for p in ("real", "imag")]
        return cx.op("complex", *parts)  # type: ignore[no-any-return]
    return cx.b.op("pad", x, padding=padding)  # type: ignore[no-any-return]


def _fft(cx: Context, x: Value, d: int) -> Value:
    """The transform along d. That of real numbers is half of it and the conjugate of that half in reverse."""
    if x.dtype.is_complex:
        return cx.op("fft", x, dims=(d,), inverse=False, scale=1.0)  # type: ignore[no-any-return]
    half = cx.op("rfft", x, dims=(d,), scale=1.0)
    n = x.shape[d]
    rest = cx.b.op("flip", cx.slice(half, d, 1, n - D.floordiv(n, 2)), dims=(d,))
    return cx.concat([half, cx.op("conj", rest)], d)


def _dft(cx: Context, x: Value, length: Value | None, axis: int, inverse: int, onesided: int) -> Value:
    d = cx.axis(axis, x.rank)
    if not 0 <= d < x.rank - 1:
        raise Unsupported(f"axis {axis} of an operand of rank {x.rank}, whose last dim holds the parts of a number")
    v = _numbers(cx, x)
    have = x.shape[d]
    if length is not None:
        n = cx.dim(cx.reshape(length, ()), "dft_length")
    else:
        n = 2 * (have - 1) if inverse and onesided else have
    if not inverse:
        v = _fitted(cx, v, d, n)
        if onesided and not v.dtype.is_complex:
            return _pairs(cx, cx.op("rfft", v, dims=(d,), scale=1.0), x.dtype)
        y = _pairs(cx, _fft(cx, v, d), x.dtype)
        return cx.slice(y, d, 0, D.floordiv(n, 2) + 1) if onesided else y
    scale = (1.0 / n if n else 1.0) if isinstance(n, int) else 1.0
    v = _complex(cx, v)
    if onesided:
        v = _fitted(cx, v, d, D.floordiv(n, 2) + 1)
        y = cx.unsqueeze(cx.op("irfft", v, dims=(d,), last_size=n, scale=scale), -1)
    else:
        y = cx.b.op("view_as_real", cx.op("fft", _fitted(cx, v, d, n), dims=(d,), inverse=True, scale=scale))
    if not isinstance(n, int):
        y = cx.div(y, n)
    return cx.convert(y, x.dtype)


@onnx_op("DFT", since=17)
def _dft_attribute(
    cx: Context, x: Value, length: Value | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Value:
    return _dft(cx, x, length, axis, inverse, onesided)


@onnx_op("DFT", since=20)
def _dft_operand(
    cx: Context,
    x: Value,
    length: Value | None = None,
    axis: Value | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Value:
    return _dft(cx, x, length, -2 if axis is None else int(cx.number(axis, "the axis")), inverse, onesided)


@onnx_op("STFT", since=17)
def _stft(
    cx: Context, x: Value, step: Value, window: Value | None = None, length: Value | None = None, *, onesided: int = 1
) -> Value:
    """Transforms of the frames that lie wholly in the signal, each times the window."""
    if x.rank not in (2, 3):
        raise Unsupported(f"a signal of rank {x.rank}")
    v = cx.opmath(x) if x.rank == 2 else _numbers(cx, x)
    if length is not None:
        n = int(cx.number(length, "frame_length"))
    elif window is not None and isinstance(window.shape[0], int):
        n = window.shape[0]
    else:
        raise Unsupported("frames without a constant length")
    hop = int(cx.number(step, "frame_step"))
    if n < 1 or hop < 1:
        raise Unsupported(f"frame_length {n} and frame_step {hop}")
    cx.require(v.shape[1], ">=", n, "a signal must be at least as long as a frame")
    frames = cx.b.op("unfold", v, dim=1, size=n, step=hop)
    if window is not None:
        cx.require(window.shape[0], "==", n, "the window must be as long as a frame")
        w = cx.convert(window, x.dtype.compute)
        if frames.dtype.is_complex:
            w = cx.op("complex", w, cx.full(0.0, w.shape, w.dtype))
        frames = cx.op("mul", frames, w)
    if onesided and not frames.dtype.is_complex:
        return _pairs(cx, cx.op("rfft", frames, dims=(2,), scale=1.0), x.dtype)
    y = _fft(cx, frames, 2)
    return _pairs(cx, cx.slice(y, 2, 0, n // 2 + 1) if onesided else y, x.dtype)


@onnx_op("MelWeightMatrix", since=17)
def _mel(
    cx: Context, bins: Value, length: Value, rate: Value, low: Value, high: Value, *, output_datatype: int = 1
) -> Value:
    """Triangles that are evenly spaced on the mel scale, mel = 2595 log10(1 + f / 700), over the bins of a spectrum."""
    m, n, fs = (
        int(cx.number(v, w)) for v, w in ((bins, "num_mel_bins"), (length, "dft_length"), (rate, "sample_rate"))
    )
    first, last = (
        2595 * math.log10(1 + float(cx.number(v, w)) / 700)
        for v, w in ((low, "lower_edge_hertz"), (high, "upper_edge_hertz"))
    )
    mels = first + np.arange(m + 2) * (last - first) / (m + 2)
    edges = np.floor((n + 1) * 700 * (10 ** (mels / 2595) - 1) / fs).astype(np.int64)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    at = np.arange(n // 2 + 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = np.where(middle > left, (at - left) / (middle - left), 1.0)
        fall = (right - at) / (right - middle)
    w = np.where((at >= left) & (at <= middle), rise, np.where((at > middle) & (at < right), fall, 0.0))
    dtype = dtype_of(output_datatype)
    return cx.b.constant(w.astype(dtype.np), dtype)


def _window(cx: Context, size: Value, dtype: int, periodic: int, *coefficients: float) -> Value:
    """The sum of c[k] cos(2 pi k i / N), N the size or, for a symmetric window, one less."""
    n = cx.dim(cx.reshape(size, ()), "the size of a window")
    out = dtype_of(dtype)
    work = out.compute if out.is_float else DType.f32
    at = cx.convert(cx.iota(n), work)
    angle = cx.div(cx.mul(at, 2 * math.pi), cx.scalar(n if periodic else n - 1, work))
    y = cx.full(coefficients[0], (n,), work)
    for k, c in enumerate(coefficients[1:], 1):
        y = cx.add(y, cx.mul(cx.op("cos", cx.scale(angle, k)), c))
    return cx.convert(y, out)


@onnx_op("HannWindow", since=17)
def _hann(cx: Context, size: Value, *, output_datatype: int = 1, periodic: int = 1) -> Value:
    return _window(cx, size, output_datatype, periodic, 0.5, -0.5)


@onnx_op("HammingWindow", since=17)
def _hamming(cx: Context, size: Value, *, output_datatype: int = 1, periodic: int = 1) -> Value:
    return _window(cx, size, output_datatype, periodic, 25 / 46, -21 / 46)


@onnx_op("BlackmanWindow", since=17)
def _blackman(cx: Context, size: Value, *, output_datatype: int = 1, periodic: int = 1) -> Value:
    return _window(cx, size, output_datatype, periodic, 0.42, -0.5, 0.08)
