"""The FFT kernel against numpy.fft, every kind of length, stride and thread mode, with and without a constant table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_harness import KernelError, KernelLibrary, available_isas

from effc.backends.cpu.lower.fft import FORWARD, INVERSE, REAL_FORWARD, REAL_INVERSE, scratch_sizes, table

Array = np.ndarray[Any, Any]
MODES = [{"mode": "serial"}, {"mode": "reverse", "threads": 3}, {"mode": "threads", "threads": 2}]
LENGTHS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15, 16, 17, 29, 30, 31, 32, 37, 41, 48, 60, 62, 64, 74, 77, 97, 100]
LONG = [128, 210, 243, 257, 331, 400, 512, 625, 662, 961, 1000, 1021, 1024, 2048, 4099]


@pytest.fixture(scope="module", params=available_isas())
def lib(request: Any) -> KernelLibrary:
    return KernelLibrary(["fft.cpp"], request.param)


def run(
    lib: KernelLibrary, x: Array, out: Array, dim: int, kind: int, n: int, scale: float, const: bool, **kw: Any
) -> Array:
    double = out.dtype in (np.float64, np.complex128)
    real = kind in (REAL_FORWARD, REAL_INVERSE)
    scratch, thread_scratch = scratch_sizes(n, real, double)
    ins = [x, table(n, real, double)] if const else [x]
    lib.call(
        "effc_fft", ins, [out], [dim, kind, n], [scale],
        scratch=0 if const else int(scratch), thread_scratch=int(thread_scratch), **kw,
    )  # fmt: skip
    return out


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    x = rng.normal(size=shape)
    return (x + 1j * rng.normal(size=shape) if np.dtype(dtype).kind == "c" else x).astype(dtype)


def close(got: Array, want: Array) -> None:
    tol = 1e-6 if got.dtype in (np.float32, np.complex64) else 2e-14
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= tol * np.abs(want).max(initial=0), (
        np.abs(got - want).max() / np.abs(want).max()
    )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("lines", [1, 3, 19])
def test_lengths(lib: KernelLibrary, double: bool, lines: int) -> None:
    rng = np.random.default_rng(lines)
    c, r = (np.complex128, np.float64) if double else (np.complex64, np.float32)
    for n in LENGTHS + LONG:
        const = bool(n % 3)
        x = random(rng, (lines, n), c)
        wide = x.astype(np.complex128)
        close(run(lib, x, np.empty_like(x), 1, FORWARD, n, 0.5, const), np.fft.fft(wide) * 0.5)
        close(run(lib, x, np.empty_like(x), 1, INVERSE, n, 1 / n, const), np.fft.ifft(wide))
        x = random(rng, (lines, n), r)
        y = run(lib, x, np.empty((lines, n // 2 + 1), c), 1, REAL_FORWARD, n, 1.0, const)
        close(y, np.fft.rfft(x.astype(np.float64)))
        z = random(rng, (lines, n // 2 + 1), c)
        y = run(lib, z, np.empty((lines, n), r), 1, REAL_INVERSE, n, 1 / n, not const)
        close(y, np.fft.irfft(z.astype(np.complex128), n))


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m["mode"])
def test_strides_and_dims(lib: KernelLibrary, mode: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    base = random(rng, (6, 40, 35), np.complex64)
    for x in (base, base[::-1, ::2, 1::3], base.transpose(2, 0, 1), np.broadcast_to(base[:, :1], (6, 14, 35))):
        for dim in range(3):
            want = np.fft.fft(x.astype(np.complex128), axis=dim)
            out = np.empty(x.shape[::-1], np.complex64).transpose(2, 1, 0)
            close(run(lib, x, out, dim, FORWARD, x.shape[dim], 1.0, True, **mode), want)
            inplace = x.copy()
            close(run(lib, inplace, inplace, dim, FORWARD, x.shape[dim], 1.0, True, **mode), want)
            real = x.real
            out = np.empty(np.fft.rfft(real, axis=dim).shape[::-1], np.complex64).transpose(2, 1, 0)
            got = run(lib, real, out, dim, REAL_FORWARD, x.shape[dim], 1.0, True, **mode)
            close(got, np.fft.rfft(real.astype(np.float64), axis=dim))


def test_empty_and_refused(lib: KernelLibrary) -> None:
    x = np.empty((0, 8), np.complex64)
    assert run(lib, x, np.empty_like(x), 1, FORWARD, 8, 1.0, True).shape == (0, 8)
    with pytest.raises(KernelError, match="number of data points"):
        lib.call("effc_fft", [np.empty((2, 0), np.complex64)], [np.empty((2, 0), np.complex64)], [1, 0, 0], [1.0])
    with pytest.raises(KernelError, match="does not fit"):
        run(lib, np.ones((2, 4), np.complex64), np.empty((2, 8), np.float32), 1, REAL_INVERSE, 8, 1.0, True)


def test_nan_stays_in_its_line(lib: KernelLibrary) -> None:
    x = np.ones((9, 12), np.complex64)
    x[4, 3] = np.nan
    y = run(lib, x, np.empty_like(x), 1, FORWARD, 12, 1.0, True)
    assert np.isnan(y[4]).all() and np.isfinite(np.delete(y, 4, 0)).all()
