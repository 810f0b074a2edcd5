"""Fourier transforms: one kernel call a dim, with the table of roots as a constant where the length is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dims
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Node
from . import Buf, Lowering, lowers

MAX_PRIME = 31  # kernels/fft.cpp has a generic butterfly up to this radix
LANE_BUDGET = 512 * 1024
FORWARD, INVERSE, REAL_FORWARD, REAL_INVERSE = range(4)
Array = np.ndarray[Any, Any]


def complex_length(n: int, real: bool) -> int:
    return n // 2 if real and n % 2 == 0 else n


def chirp_length(c: int) -> int:
    """The power of two on which Bluestein's algorithm runs for length c; 0 where the factors of c are small."""
    rest = c
    for p in range(2, MAX_PRIME + 1):
        while rest % p == 0:
            rest //= p
    return 0 if rest == 1 else 1 << (2 * c - 2).bit_length()


def _roots(n: int) -> Array:
    return np.exp(-2j * np.pi * np.arange(n) / n)


def table(n: int, real: bool, double: bool) -> Array:
    """The constant operand of effc_fft (see kernels/fft.cpp), as floats of shape [entries, 2]."""
    c = complex_length(n, real)
    m = chirp_length(c)
    parts = [_roots(n)]
    if m:
        k = np.arange(c)
        chirp = np.exp(-1j * np.pi * ((k * k) % (2 * c)) / c)
        b = np.zeros(m, np.complex128)
        b[:c] = chirp.conj()
        b[m - c + 1 :] = chirp[:0:-1].conj()
        parts += [chirp, np.fft.fft(b) / m, _roots(m)]
    z = np.concatenate(parts)
    return np.stack([z.real, z.imag], -1).astype(np.float64 if double else np.float32)


def scratch_sizes(n: Dim, real: bool, double: bool) -> tuple[Dim, Dim]:
    """(scratch for a table computed at run time, thread scratch), in bytes; n may be symbolic."""
    size = 8 if double else 4
    if isinstance(n, int):
        c = complex_length(n, real)
        room: Dim = chirp_length(c) or c
        entries: Dim = n + (c + 2 * room if room != c else 0)
    else:
        room = n * 4  # a power of two of at least 2 n - 1
        entries = n * 10
    return (entries * 2 + room * 4) * size, dims.maximum(room * 4 * size, LANE_BUDGET)


def _transform(cx: Lowering, x: Buf, y: Buf, dim: int, kind: int, n: Dim, scale: float) -> None:
    double = DType.f64 in (x.dtype.real, y.dtype.real)
    real = kind in (REAL_FORWARD, REAL_INVERSE)
    scratch, thread_scratch = scratch_sizes(n, real, double)
    ins: list[Buf | None] = [x]
    if isinstance(n, int) and n > 0:
        ins.append(cx.const(table(n, real, double)))
        scratch = 0
    cx.call("effc_fft", ins, [y], attrs=[dim, kind, n], fattrs=[scale], scratch=scratch, thread_scratch=thread_scratch)


@lowers("fft")
def lower_fft(cx: Lowering, node: Node) -> None:
    x, y = cx.strided(node.inputs[0]), cx.out(node)
    rank, kind = x.rank, INVERSE if node.attrs["inverse"] else FORWARD
    over = [d % rank for d in node.attrs["dims"]]
    for i, d in enumerate(reversed(over)):
        scale = node.attrs["scale"] if i == len(over) - 1 else 1.0
        _transform(cx, x if i == 0 else y, y, d, kind, x.shape[d], scale)


@lowers("rfft")
def lower_rfft(cx: Lowering, node: Node) -> None:
    x, y = cx.strided(node.inputs[0]), cx.out(node)
    *others, last = (d % x.rank for d in node.attrs["dims"])
    _transform(cx, x, y, last, REAL_FORWARD, x.shape[last], node.attrs["scale"])
    for d in others:
        _transform(cx, y, y, d, FORWARD, y.shape[d], 1.0)


@lowers("irfft")
def lower_irfft(cx: Lowering, node: Node) -> None:
    x, y = cx.strided(node.inputs[0]), cx.out(node)
    *others, last = (d % x.rank for d in node.attrs["dims"])
    for i, d in enumerate(others):
        z = cx.temp(x.dtype, x.shape) if i == 0 else x
        _transform(cx, x, z, d, INVERSE, x.shape[d], 1.0)
        x = z
    _transform(cx, x, y, last, REAL_INVERSE, node.attrs["last_size"], node.attrs["scale"])
