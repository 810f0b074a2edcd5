"""Discrete Fourier transforms as matrix products.

onnxruntime's DFT is a double loop for most lengths; its matrix products are fast. A transform of length n = n1 n2 is
done in four steps (Bailey, FFTs in external or hierarchical memory, 1990): with j = j1 n2 + j2 and k = k1 + n1 k2,

    X[k] = sum_j2 w_n2^(j2 k2)  w_n^(j2 k1)  sum_j1 w_n1^(j1 k1) x[j1, j2]

a product from the left, an elementwise product with a table, a transform of length n2 in the same way, and a
transposition. Of real data only the k1 up to n1 / 2 are computed, the others are their conjugates. Lengths without such
factors are done by Bluestein's algorithm. Tables are computed in double and rounded once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.graph import Node
from ..context import MAX, Cx, Pair, Refuse
from . import emits
from .elementwise import cadd, cmul

DENSE = 96  # up to here one product with the whole matrix is the fastest
FACTOR = 512  # a left factor may be this large
RADIX = 32  # about the size of the factors that lengths are split into


def root(numerator: Any, n: int) -> Any:
    """exp(-2 pi i numerator / n), the angle reduced in integers first."""
    angle = (np.asarray(numerator, np.int64) % n) * (2 * math.pi / n)
    re, im = np.cos(angle), -np.sin(angle)
    quarter = np.asarray(numerator, np.int64) * 4 % n == 0  # multiples of a right angle are exact
    return np.where(quarter, np.rint(re), re) + 1j * np.where(quarter, np.rint(im), im)


def table(rows: int, cols: int, n: int, sign: int) -> Any:
    """w_n^(sign r c), complex128."""
    w = root(np.outer(np.arange(rows), np.arange(cols)), n)
    return w if sign < 0 else w.conj()


def split_length(n: int) -> tuple[int, int] | None:
    """n = n1 n2 with n1 <= FACTOR as near to the root as there is; None for lengths that do not divide."""
    divisors = [d for d in range(2, min(FACTOR, n // 2) + 1) if n % d == 0]
    if not divisors:
        return None
    # Work grows with the sum of the factors, the number of passes over the data with their number.
    parts = max(2, math.ceil(math.log(n) / math.log(RADIX)))
    target = n ** (1 / parts)
    n1 = min(divisors, key=lambda d: abs(math.log(d / target)))
    return n1, n // n1


def mirrored(half: int, n: int) -> Any:
    """How often each of the first values of a Hermitian spectrum of length n counts."""
    counts = np.full(half, 2.0)
    counts[0] = 1
    if n % 2 == 0:
        counts[n // 2 :] = 1
    return counts


class Transform:
    """Transforms along the last dim of tensors whose leading dims are never looked at."""

    def __init__(self, cx: Cx, dtype: DType) -> None:
        self.cx, self.dtype = cx, dtype

    def const(self, a: Any) -> str:
        return self.cx.const(np.ascontiguousarray(a).astype(self.dtype.np), self.dtype)

    def pair(self, a: Any) -> Pair:
        return Pair(self.const(a.real), self.const(a.imag))

    def tail(self, x: str, *sizes: int) -> str:
        """x with its last dim split into ``sizes``, or its last dims joined to one; leading dims stay."""
        shape = self.cx.raw("Shape", [x], [DType.i64], end=-1 if len(sizes) > 1 else -2)[0]
        return self.cx.op("Reshape", x, self.cx.op("Concat", shape, self.cx.ints(*sizes), axis=0), allowzero=1)

    def swap(self, x: str, rank: int) -> str:
        return self.cx.transpose(x, [*range(rank - 2), rank - 1, rank - 2])

    def right(self, z: Pair, w: Any) -> Pair:
        """z @ w."""
        cx, re, im = self.cx, self.const(w.real), self.const(w.imag)
        rr, ii, ri, ir = (cx.matmul(p, q, (None, 2)) for p, q in ((z.re, re), (z.im, im), (z.re, im), (z.im, re)))
        return Pair(cx.op("Sub", rr, ii), cx.op("Add", ri, ir))

    def left(self, w: Any, z: Pair) -> Pair:
        """w @ z."""
        cx, re, im = self.cx, self.const(w.real), self.const(w.imag)
        rr, ii, ri, ir = (cx.matmul(p, q, (2, None)) for p, q in ((re, z.re), (im, z.im), (re, z.im), (im, z.re)))
        return Pair(cx.op("Sub", rr, ii), cx.op("Add", ri, ir))

    def halves(self, x: str, axis: int, n: int) -> Pair:
        """The two halves of a dim, each of size n."""
        a, b = self.cx.raw("Split", [x], [self.dtype, self.dtype], axis=axis, num_outputs=2)
        return Pair(a, b)

    # Complex ----------------------------------------------------------------------------------------------------------

    def complex(self, z: Pair, n: int, sign: int, rank: int) -> Pair:
        """sum_j z_j exp(sign 2 pi i j k / n)."""
        if n <= DENSE:
            return z if n == 1 else self.right(z, table(n, n, n, sign))
        factors = split_length(n)
        if factors is None:
            return self.right(z, table(n, n, n, sign)) if n <= 2 * FACTOR else self.bluestein(z, n, sign, rank)
        n1, n2 = factors
        y = Pair(*(self.tail(v, n1, n2) for v in (z.re, z.im)))
        y = self.left(table(n1, n1, n1, sign), y)
        y = cmul(self.cx, y, self.pair(table(n1, n2, n, sign)))
        y = self.complex(y, n2, sign, rank + 1)
        return Pair(*(self.tail(self.swap(v, rank + 1), n) for v in (y.re, y.im)))

    def bluestein(self, z: Pair, n: int, sign: int, rank: int) -> Pair:
        """j k = (j^2 + k^2 - (k - j)^2) / 2 makes any transform a convolution, of a length that divides well."""
        m = 1 << (2 * n - 2).bit_length()
        j = np.arange(n, dtype=np.int64)
        chirp = root(j * j % (2 * n), 2 * n)  # exp(-pi i j^2 / n)
        chirp = chirp if sign < 0 else chirp.conj()
        kernel = np.zeros(m, np.complex128)
        kernel[:n] = chirp.conj()
        kernel[m - n + 1 :] = chirp[1:][::-1].conj()
        y = cmul(self.cx, z, self.pair(chirp))
        pads = self.cx.ints(0, m - n)
        y = Pair(*(self.cx.op("Pad", v, pads, self.cx.like(0, v), self.cx.ints(-1)) for v in (y.re, y.im)))
        y = cmul(self.cx, self.complex(y, m, -1, rank), self.pair(np.fft.fft(kernel) / m))
        y = self.complex(y, m, +1, rank)
        y = Pair(*(self.cx.slice(v, -1, 0, n) for v in (y.re, y.im)))
        return cmul(self.cx, y, self.pair(chirp))

    # Real -------------------------------------------------------------------------------------------------------------

    def forward_real(self, x: str, n: int, have: int, rank: int) -> Pair:
        """The first n // 2 + 1 values of the transform of a real x, of which only ``have`` <= n values are given
        (the rest is zero)."""
        cx, half = self.cx, n // 2 + 1
        factors = split_length(n) if n > DENSE else None
        if n <= DENSE or (factors is None and n <= 2 * FACTOR):
            w = table(n, half, n, -1)[:have]
            return self.halves(cx.matmul(x, self.const(np.concatenate([w.real, w.imag], 1)), (None, 2)), -1, half)
        if factors is None:
            x = self.padded(x, n, have)
            y = self.bluestein(Pair(x, cx.op("Mul", x, cx.like(0, x))), n, -1, rank)
            return Pair(*(cx.slice(v, -1, 0, half) for v in (y.re, y.im)))
        n1, n2 = factors
        used, h = min(n1, -(-have // n2)), n1 // 2 + 1  # rows of zeros take no part; k1 and n1 - k1 are conjugates
        x = self.tail(self.padded(x, used * n2, have), used, n2)
        w = table(h, used, n1, -1)
        y = self.halves(cx.matmul(self.const(np.concatenate([w.real, w.imag], 0)), x, (2, None)), -2, h)
        y = cmul(cx, y, self.pair(table(h, n2, n, -1)))
        y = self.complex(y, n2, -1, rank + 1)  # [k1, k2] for k1 < h
        cols = n2 // 2 + 1
        parts = []
        for v, sign in ((y.re, 1), (y.im, -1)):
            first = v if cols == n2 else cx.slice(v, -1, 0, cols)
            if n1 > h:  # X[n - k] = conj X[k]: both dims backwards
                lows, highs = cx.ints(n1 - h, n2 - 1), cx.ints(0, n2 - 1 - cols if n2 > cols else -MAX - 1)
                rest = cx.op("Slice", v, lows, highs, cx.ints(-2, -1), cx.ints(-1, -1))
                first = cx.op("Concat", first, rest if sign > 0 else cx.op("Neg", rest), axis=-2)
            parts.append(cx.slice(self.tail(self.swap(first, rank + 1), cols * n1), -1, 0, half))
        return Pair(*parts)

    def inverse_real(self, z: Pair, n: int, want: int, rank: int) -> str:
        """The first ``want`` values of the unnormalised inverse of a half spectrum."""
        cx, half = self.cx, n // 2 + 1
        factors = split_length(n) if n > DENSE else None
        if n <= DENSE or (factors is None and n <= 2 * FACTOR):
            w = table(half, want, n, -1) * mirrored(half, n)[:, None]
            both = np.concatenate([w.real, w.imag], 0)
            return cx.matmul(cx.op("Concat", z.re, z.im, axis=-1), self.const(both), (None, 2))
        y = self.whole(z, n)
        if factors is None:
            return cx.slice(self.complex(y, n, +1, rank).re, -1, 0, want)
        n1, n2 = factors
        h = n1 // 2 + 1
        parts = [cx.slice(self.tail(v, n2, n1), -1, 0, h) for v in (y.re, y.im)]
        y = self.complex(Pair(*(self.swap(v, rank + 1) for v in parts)), n2, +1, rank + 1)  # [k1, j2]
        y = cmul(cx, y, self.pair(table(h, n2, n, +1)))
        used = min(n1, -(-want // n2))
        w1 = table(used, h, n1, +1) * mirrored(h, n1)
        stacked = cx.op("Concat", y.re, y.im, axis=-2)
        out = cx.matmul(self.const(np.concatenate([w1.real, -w1.imag], 1)), stacked, (2, None))
        out = self.tail(out, used * n2)
        return out if used * n2 == want else cx.slice(out, -1, 0, want)

    def whole(self, z: Pair, n: int) -> Pair:
        """The Hermitian spectrum of length n from its first half."""
        cx, half = self.cx, n // 2 + 1
        count = n - half
        if count == 0:
            return z
        rest = [cx.reverse(cx.slice(v, -1, 1, 1 + count), -1) for v in (z.re, z.im)]
        keep = np.ones(half)
        keep[0] = 0
        if n % 2 == 0:
            keep[-1] = 0
        im = cx.op("Mul", z.im, self.const(keep))
        return Pair(cx.op("Concat", z.re, rest[0], axis=-1), cx.op("Concat", im, cx.op("Neg", rest[1]), axis=-1))

    def padded(self, x: str, n: int, have: int) -> str:
        if n == have:
            return x
        return self.cx.op("Pad", x, self.cx.ints(0, n - have), self.cx.like(0, x), self.cx.ints(-1))


def _along(cx: Cx, rank: int, dim: int, z: Any, f: Any) -> Any:
    """f along ``dim``, which is brought to the end and back."""
    perm = [d for d in range(rank) if d != dim] + [dim]
    back = [perm.index(d) for d in range(rank)]

    def move(v: Any, p: list[int]) -> Any:
        return Pair(cx.transpose(v.re, p), cx.transpose(v.im, p)) if isinstance(v, Pair) else cx.transpose(v, p)

    return move(f(move(z, perm)), back)


def _scaled(cx: Cx, z: Any, scale: float) -> Any:
    if scale == 1.0:
        return z
    if isinstance(z, Pair):
        return Pair(cx.op("Mul", z.re, cx.like(scale, z.re)), cx.op("Mul", z.im, cx.like(scale, z.im)))
    return cx.op("Mul", z, cx.like(scale, z))


def _dft(cx: Cx, z: Any, axis: int, length: str | None, **attrs: Any) -> Pair:
    """ONNX's own DFT, for lengths that are known at run time only."""
    cx.shared.notes["DFT of a length that is not constant: ONNX's DFT, which onnxruntime runs in O(n^2)"] += 1
    x = cx.join(z) if isinstance(z, Pair) else cx.unsqueeze(z, -1)
    return cx.split(cx.op("DFT", x, length, cx.const(np.asarray(axis, np.int64)), **attrs))


def _complex_dim(cx: Cx, z: Pair, rank: int, dim: int, n: Dim, inverse: bool) -> Pair:
    if not isinstance(n, int):
        y = _dft(cx, z, dim, None, inverse=int(inverse))
        if not inverse:
            return y
        size = cx.scalar(n, cx.dtype(y.re))  # ONNX divides by n
        return Pair(cx.op("Mul", y.re, size), cx.op("Mul", y.im, size))
    t = Transform(cx, cx.dtype(z.re))
    return _along(cx, rank, dim, z, lambda v: t.complex(v, n, 1 if inverse else -1, rank))


def _empty(cx: Cx, node: Node) -> Any:
    shape, dtype = node.types[0].shape, node.types[0].dtype
    zero = cx.fill(0, shape, dtype.real)
    return Pair(zero, zero) if dtype.is_complex else zero


@emits("fft", complex=True)
def fft(cx: Cx, node: Node, z: Pair) -> Any:
    shape = node.operands[0].shape
    if 0 in shape:
        return z
    for d in node.attrs["dims"]:
        d %= len(shape)
        z = _complex_dim(cx, z, len(shape), d, shape[d], node.attrs["inverse"])
    return _scaled(cx, z, node.attrs["scale"])


@emits("rfft", complex=True)
def rfft(cx: Cx, node: Node, x: str) -> Any:
    shape, dims = node.operands[0].shape, node.attrs["dims"]
    rank, last = len(shape), dims[-1] % len(shape)
    if 0 in shape:
        return _empty(cx, node)
    n = shape[last]
    if isinstance(n, int):
        x, have = _unpadded(cx, node, x, last)
        t = Transform(cx, cx.dtype(x))
        z = _along(cx, rank, last, x, lambda v: t.forward_real(v, n, have, rank))
    else:
        z = _dft(cx, x, last, None, onesided=1)
    for d in dims[:-1]:
        z = _complex_dim(cx, z, rank, d % rank, shape[d % rank], False)
    return _scaled(cx, z, node.attrs["scale"])


def _unpadded(cx: Cx, node: Node, x: str, dim: int) -> tuple[str, int]:
    """What a zero padding at the end of ``dim`` padded, and its length: zeros need no transforming."""
    pad, n = node.operands[0].node, node.operands[0].shape[dim]
    if pad.op == "pad" and pad.attrs["mode"] == "constant" and pad.attrs["value"] == 0:
        at = pad.attrs["padding"]
        source = pad.operands[0]
        have = source.shape[dim]
        plain = all(p == (0, 0) for d, p in enumerate(at) if d != dim) and at[dim][0] == 0
        if plain and isinstance(have, int) and 0 < have < n and (given := cx.find(source)) is not None:
            return str(given), have
    return x, n


@emits("irfft", complex=True)
def irfft(cx: Cx, node: Node, z: Pair) -> Any:
    shape, dims, n = node.operands[0].shape, node.attrs["dims"], node.attrs["last_size"]
    rank, last = len(shape), dims[-1] % len(shape)
    if 0 in shape or n == 0:
        return _empty(cx, node)
    for d in dims[:-1]:
        z = _complex_dim(cx, z, rank, d % rank, shape[d % rank], True)
    if not isinstance(n, int):
        raise Refuse("an inverse real transform of a length that is not constant")
    t = Transform(cx, cx.dtype(z.re))
    z = _scaled(cx, z, node.attrs["scale"])
    want = cx.shared.cuts.get(node[0], n)
    return _along(cx, rank, last, z, lambda v: t.inverse_real(v, n, want, rank))


__all__ = ["Transform", "cadd"]
