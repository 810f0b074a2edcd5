"""Discrete Fourier transforms, unnormalised but for an explicit factor: aten._fft_c2c, _fft_r2c and _fft_c2r."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..dims import Dim, product
from ..dtypes import DType
from ..op import Cost, DimAttr, Sample, normalise_dim, op, require
from ..types import TensorType
from .elementwise import random_array

Array = np.ndarray[Any, Any]
_COMPLEX = {DType.f32: DType.c64, DType.f64: DType.c128}
_REAL = {DType.c64: DType.f32, DType.c128: DType.f64}


def _dims(rank: int, dims: Sequence[int]) -> tuple[int, ...]:
    out = tuple(normalise_dim(d, rank) for d in dims)
    require(rank > 0 and len(out) > 0, "needs at least one dim")
    require(len(set(out)) == len(out), f"repeated dims in {tuple(dims)}")
    return out


def _fft_infer(x: TensorType, *, dims: tuple[int, ...], inverse: bool, scale: float) -> TensorType:
    require(x.dtype in _REAL, f"needs c64 or c128, got {x.dtype}")
    _dims(x.rank, dims)
    return x


def _rfft_infer(x: TensorType, *, dims: tuple[int, ...], scale: float) -> TensorType:
    require(x.dtype in _COMPLEX, f"needs f32 or f64, got {x.dtype}")
    last = _dims(x.rank, dims)[-1]
    shape: list[Dim] = list(x.shape)
    shape[last] = shape[last] // 2 + 1
    return TensorType(_COMPLEX[x.dtype], tuple(shape))


def _irfft_infer(x: TensorType, *, dims: tuple[int, ...], last_size: Dim, scale: float) -> TensorType:
    require(x.dtype in _REAL, f"needs c64 or c128, got {x.dtype}")
    last = _dims(x.rank, dims)[-1]
    shape = list(x.shape)
    half = last_size // 2 + 1
    have = shape[last]
    if isinstance(half, int) and isinstance(have, int):
        require(have == half, f"a real length of {last_size} needs {half} values along dim {last}, got {have}")
    shape[last] = last_size
    return TensorType(_REAL[x.dtype], tuple(shape))


def _fft(x: Array, *, dims: tuple[int, ...], inverse: bool, scale: float) -> Array:
    if x.size == 0:
        return x.copy()
    y: Array = x
    rest = scale
    for d in dims:
        if inverse:  # numpy's own factor included: without one it computes in double precision, and rounds otherwise
            y, rest = np.fft.ifft(y, axis=d), rest * x.shape[d]
        else:
            y = np.fft.fft(y, axis=d)
    done: Array = y * x.real.dtype.type(rest)
    return done.astype(x.dtype)


def _rfft(x: Array, *, dims: tuple[int, ...], scale: float) -> Array:
    out = np.complex64 if x.dtype == np.float32 else np.complex128
    if x.size == 0:
        shape = list(x.shape)
        shape[dims[-1]] = shape[dims[-1]] // 2 + 1
        return np.zeros(shape, out)
    y = np.fft.rfft(x.astype(np.float64), axis=dims[-1])
    for d in dims[:-1]:
        y = np.fft.fft(y, axis=d)
    return (y * scale).astype(out)


def _irfft(x: Array, *, dims: tuple[int, ...], last_size: int, scale: float) -> Array:
    out = np.float32 if x.dtype == np.complex64 else np.float64
    y = x.astype(np.complex128)
    for d in dims[:-1]:
        y = np.fft.ifft(y, axis=d, norm="forward") if y.size else y
    if y.size == 0:
        shape = list(x.shape)
        shape[dims[-1]] = last_size
        return np.zeros(shape, out)
    return (np.fft.irfft(y, last_size, axis=dims[-1], norm="forward") * scale).astype(out)


def _cost(half: bool) -> Any:
    def cost(ins: Sequence[TensorType], outs: Sequence[TensorType], attrs: Any) -> Cost:
        """5 n log2 n a line; half of it for real data."""
        n: Dim = 1
        for d in attrs["dims"]:
            big = outs[0].shape[d] if attrs.get("last_size") is not None else ins[0].shape[d]
            n = n * big
        steps = max(1, math.ceil(math.log2(n))) if isinstance(n, int) and n > 0 else 10
        numel = product(ins[0].shape)
        return Cost(numel * steps * (3 if half else 5), ins[0].nbytes + outs[0].nbytes)

    return cost


def _fft_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.complex64, np.complex128):
        for n in (1, 2, 12, 31, 37, 64, 202):
            yield Sample((random_array(rng, (3, n), dt),), {"dims": (1,), "inverse": n % 2 == 0, "scale": 0.5})
        yield Sample((random_array(rng, (6, 5, 11), dt),), {"dims": (0, -1), "inverse": True, "scale": 1.0})
        yield Sample((random_array(rng, (0, 5), dt),), {"dims": (1,), "inverse": False, "scale": 1.0})


def _rfft_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.float32, np.float64):
        for n in (1, 2, 15, 34, 64, 74):
            yield Sample((random_array(rng, (3, n), dt),), {"dims": (1,), "scale": 2.0})
        yield Sample((random_array(rng, (6, 5, 12), dt),), {"dims": (2, 0), "scale": 1.0})


def _irfft_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for dt in (np.complex64, np.complex128):
        for n in (1, 2, 15, 34, 64, 74):
            attrs = {"dims": (1,), "last_size": n, "scale": 2.0}
            yield Sample((random_array(rng, (3, n // 2 + 1), dt),), attrs)
        yield Sample((random_array(rng, (6, 5, 7), dt),), {"dims": (0, 2), "last_size": 12, "scale": 1.0})


op(
    "fft",
    "x",
    {"dims": tuple, "inverse": (bool, False), "scale": (float, 1.0)},
    infer=_fft_infer,
    numpy=_fft,
    category="spectral",
    cost=_cost(False),
    samples=_fft_samples,
    doc="Complex transform over dims, times scale; inverse: e^(+2 pi i jk/n).",
)
op(
    "rfft",
    "x",
    {"dims": tuple, "scale": (float, 1.0)},
    infer=_rfft_infer,
    numpy=_rfft,
    category="spectral",
    cost=_cost(True),
    samples=_rfft_samples,
    doc="Forward transform of real data; the last of dims keeps its n // 2 + 1 non-redundant values.",
)
op(
    "irfft",
    "x",
    {"dims": tuple, "last_size": DimAttr, "scale": (float, 1.0)},
    infer=_irfft_infer,
    numpy=_irfft,
    category="spectral",
    cost=_cost(True),
    samples=_irfft_samples,
    doc="Inverse transform of a spectrum whose last dim holds last_size // 2 + 1 values of a Hermitian one; real.",
)
