"""Weights of 3x3 convolutions for Winograd's algorithm, and the blocking of its kernel (kernels/conv_winograd.hpp).

The transforms are those of Toom and Cook for a set of points (Lavin and Gray, "Fast algorithms for convolutional neural
networks", 2015). Points decide about the error (Barabasz et al., "Error analysis and improving the accuracy of Winograd
convolution for deep neural networks", 2020): with 0, 1, -1, 2, -2 that of F(4x4, 3x3) in single precision reaches 1e-5
of the largest output, with 0, 1/a, -1/a, a, -a for a = sqrt(2) it stays below 2.5e-6 (docs/passes.md has a table).

With stride 2 the even pixels of a row meet the outer two weights, F(tile, 2), and the odd ones the middle one: the
positions of the former come first.

A window of three dims is a sum over its depth (kernels/conv_winograd.hpp): D windows of 3x3, whose channels follow each
other in the transformed weights.

Packed buffer: 64 bytes of header as in packing/conv.py, format id 5, D in place of the groups, the stride in place of a
depth, its last field the tile size; then in the compute dtype

    transformed  [position][panel][D][c][nv * lanes]; the last panel of a position has ceil(rest / lanes) vectors
    plain        from the next multiple of 64 bytes on, the weights themselves as packing/conv.py packs them for the
                 same panels, header included: for outputs that are not finite, and for images of few pixels

Positions are in row-major order; unused lanes are 0. Weights are transformed in f64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import Any

import numpy as np

from ....ir import dims
from ....ir.dims import Dim
from ....ir.dtypes import DType
from ....ir.ops.conv import winograd_name, winograd_side
from . import conv
from .conv import HEADER, MAGIC, PackingError, Shape, _digest, _with_header, choose_nv, compute_dtype, max_rows

Array = np.ndarray[Any, Any]

FORMAT = 5
# Points besides infinity, by tile size and stride, in the order of Minimal of conv_winograd.hpp.
POINTS: dict[tuple[int, int], tuple[float, ...]] = {
    (2, 1): (0, 1, -1),
    (4, 1): (0, sqrt(0.5), -sqrt(0.5), sqrt(2), -sqrt(2)),
    (2, 2): (0, 1),
    (4, 2): (0.5, -0.5, 1.5, -1.5),
}
LINE = 64  # bytes between rows besides what they hold: kernels/conv_winograd.hpp


@cache
def matrices(tile: int, stride: int = 1) -> tuple[Array, Array, Array]:
    """(A, B, G) in f64 for F(tile, 3): the outputs are A ((G g) * (B d)) for three weights g and inputs d, as many as
    :func:`winograd_side` says, in two dims A (G g G^T * B d B^T) A^T."""
    if stride == 1:
        return _toom_cook(POINTS[tile, 1], tile, 3)
    even, n = _toom_cook(POINTS[tile, 2], tile, 2), winograd_side(tile, 2)
    a, b, g = np.zeros((tile, n)), np.zeros((n, n)), np.zeros((n, 3))
    a[:, : tile + 1], b[: tile + 1, ::2], g[: tile + 1, ::2] = even
    a[:, tile + 1 :], b[tile + 1 :, 1::2], g[tile + 1 :, 1] = np.eye(tile), np.eye(tile), 1
    return a, b, g


def _toom_cook(points: tuple[float, ...], tile: int, weights: int) -> tuple[Array, Array, Array]:
    """The matrices of F(tile, weights) with stride 1, for these points and infinity."""
    n = len(points) + 1
    a, b, g = np.zeros((tile, n)), np.zeros((n, n)), np.zeros((n, weights))
    for i, x in enumerate(points):
        rest = [y for y in points if y != x]
        a[:, i] = x ** np.arange(tile)
        g[i] = x ** np.arange(weights) / np.prod([x - y for y in rest])
        b[i, : n - 1] = np.poly(rest)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    return a, b, g


def transform(w: Array, tile: int, stride: int = 1) -> Array:
    """Weights [O, C, (D,) 3, 3] to [positions, D * C, O], in f64."""
    g = matrices(tile, stride)[2]
    out = np.einsum("ik,ocdkl,jl->ijdco", g, _deep(w).astype(np.float64), g, optimize=True)
    return out.reshape(len(g) ** 2, -1, w.shape[0])


def _deep(w: Array) -> Array:
    """Weights as [O, C, D, 3, 3]."""
    return w.reshape(*w.shape[:2], -1, 3, 3)


def _in_panels(matrix: Array, wide: int, lanes: int) -> Array:
    """[positions, C, O] to panels, one after the other."""
    positions, c, o = matrix.shape
    padded = np.zeros((positions, c, -(-o // lanes) * lanes), matrix.dtype)
    padded[:, :, :o] = matrix
    whole = padded.shape[2] // wide * wide
    body = padded[:, :, :whole].reshape(positions, c, -1, wide).transpose(0, 2, 1, 3).reshape(positions, -1)
    return np.concatenate([body, padded[:, :, whole:].reshape(positions, -1)], axis=1)


def pack(w: Array, tile: int, vlen: int, nv: int, stride: int = 1) -> Array:
    """Weights [O, C, (D,) 3, 3] of a float dtype for tiles of tile x tile outputs and panels of nv vectors; a uint8
    vector. OverflowError if a transformed weight is not finite."""
    dtype = compute_dtype(w.dtype)
    lanes = vlen // dtype.itemsize
    o, c, depth = _deep(w).shape[:3]
    with np.errstate(over="ignore"):
        transformed = transform(w, tile, stride).astype(dtype)
    if not np.isfinite(transformed).all():
        raise OverflowError("a transformed weight is not finite")
    data = _in_panels(transformed, nv * lanes, lanes).reshape(-1).view(np.uint8)
    gap = np.zeros(plain_at(c, o, tile, vlen, stride, depth) - HEADER.size - data.size, np.uint8)
    whole = np.concatenate([data, gap, conv.pack_conv(w, 1, vlen, nv=nv)])
    return _with_header(FORMAT, whole.view(dtype), (lanes, nv, depth, c, o, stride, 3, 3, tile))


def plain_at(c: int, o: int, tile: int, vlen: int, stride: int = 1, depth: int = 1) -> int:
    """Where the weights themselves begin in a packed buffer of f32, in bytes."""
    padded = -(-4 * o // vlen) * vlen
    return HEADER.size + -(-(winograd_side(tile, stride) ** 2 * depth * c * padded) // LINE) * LINE


def _parts(packed: Array) -> tuple[Array, Array, tuple[int, ...]]:
    """Transformed data, the packed weights themselves, and (lanes, nv, D, C, O, positions)."""
    raw = packed.tobytes()
    if len(raw) < HEADER.size:
        raise PackingError("shorter than a header")
    magic, fmt, version, code, lanes, nv, depth, c, o, stride, _, _, tile, digest = HEADER.unpack(raw[: HEADER.size])
    if magic != MAGIC or version != 1 or fmt != FORMAT:
        raise PackingError("not weights for Winograd's algorithm of a known version")
    if _digest(raw[HEADER.size :]) != digest:
        raise PackingError("checksum does not match")
    dtype = next(d for d in DType if d.code == code).np
    positions = winograd_side(tile, stride) ** 2
    values = depth * c * -(-o // lanes) * lanes  # of a position
    at = plain_at(c, o, tile, lanes * dtype.itemsize, stride, depth)
    if len(raw) != at + HEADER.size + 9 * values * dtype.itemsize:
        raise PackingError("size does not match the header")
    data = np.frombuffer(raw, dtype, positions * values, HEADER.size)
    return data, np.frombuffer(raw[at:], np.uint8), (lanes, nv, depth, c, o, positions)


def unpack(packed: Array) -> Array:
    """The weights [O, C, D, 3, 3] in the compute dtype; PackingError if magic, version, size or checksum do not fit."""
    w: Array = conv.unpack(_parts(packed)[1])
    return w


def unpack_transformed(packed: Array) -> Array:
    """The transformed weights [positions, D * C, O]; PackingError as :func:`unpack`."""
    data, _, (lanes, nv, depth, c, o, positions) = _parts(packed)
    c *= depth
    padded, wide = -(-o // lanes) * lanes, nv * lanes
    data = data.reshape(positions, -1)
    whole = padded // wide * wide
    body = data[:, : c * whole].reshape(positions, -1, c, wide).transpose(0, 2, 1, 3).reshape(positions, c, whole)
    return np.concatenate([body, data[:, c * whole :].reshape(positions, c, padded - whole)], axis=2)[:, :, :o]


@dataclass(frozen=True)
class Depth:
    """Of a window of three dims: its size and stride along the first one, and that of the result."""

    taps: int = 1
    stride: int = 1
    size: Dim = 1

    def slices(self, tiles: Dim) -> Dim:
        """The most slices of the image that so many tiles need, one after the other: kernels/conv_winograd.hpp."""
        columns = dims.minimum(tiles, dims.ceildiv(tiles - 1, self.size) + 1)
        out: Dim = tiles * self.stride + columns * (self.taps - self.stride)
        return out


FLAT = Depth()


@dataclass(frozen=True)
class Blocks:
    """Attributes 20..23 and 25, 26 of effc_conv_winograd_*, and its scratch sizes in bytes. ``tiles``, ``cols``: of a
    block; ``k``: channels that are summed before the next; ``shared``: see kernels/conv_winograd.hpp."""

    tile: int
    nv: int
    tiles: Dim
    cols: int
    k: int
    shared: Dim
    scratch: Dim
    thread_scratch: Dim
    stride: int = 1
    depth: Depth = FLAT

    @property
    def attrs(self) -> list[Dim]:
        """kNv to kBlockK."""
        return [self.nv, self.tiles, self.cols, self.k]

    @property
    def more(self) -> list[Dim]:
        """kTile and kShared."""
        return [self.tile, int(self.shared) if isinstance(self.shared, bool) else self.shared]

    @property
    def label(self) -> str:
        """For reports."""
        size, where = winograd_name(self.tile, self.stride), "shared" if self.shared else "own"
        return f"{size}, nv {self.nv}, tiles {self.tiles}, cols {self.cols}, k {self.k}, {where}"


def blocks(
    c: int,
    o: int,
    tile: int,
    vlen: int,
    nv: int,
    tiles: Dim,
    cols: int,
    k: int,
    shared: Dim,
    stride: int = 1,
    depth: Depth = FLAT,
) -> Blocks:
    """This blocking with the scratch that it needs, for f32. ``cols`` must be a multiple of a panel's width."""
    line, positions, slices = LINE // 4, winograd_side(tile, stride) ** 2, depth.slices(tiles)
    v = positions * slices * (-(-c // line) * line + line) * 4 + 8 * tiles + 16 * slices  # with the list of rows
    m = positions * tiles * (-(-cols // line) * line + line) * 4
    base = Shape(o, c, 1, 9 * depth.taps, 4, vlen, True, True).rule().scratch
    return Blocks(tile, nv, tiles, cols, k, shared, base + v * shared, m + v * (1 - shared), stride, depth)


# The rule's limits, by measurement (docs/kernels.md). Weights of more bytes are read once for all threads and many
# tiles rather than by each thread for few; from FEW bytes on also where all tiles are one block.
MANY, FEW = 4 << 20, 2 << 20
MOST_TILES = 96  # of a block whose transformed input is shared
MOST_POSITIONS = 36  # for which these limits are; with more of them, a block has fewer tiles and more columns
# Channels that are summed before the next, by tile size: shorter sums err less, and 4 x 4 has the error to mind.
SUMMED = {2: 512, 4: 128}


def rule(c: int, o: int, tile: int, vlen: int, tiles: int | None, stride: int = 1, depth: Depth = FLAT) -> Blocks:
    """The built-in blocking for ``tiles`` tiles of all images (None: not known)."""
    lanes = vlen // 4
    nv = choose_nv(o, lanes, vlen)
    wide, mr = nv * lanes, max_rows(nv, vlen)
    positions = winograd_side(tile, stride) ** 2
    more = max(1.0, positions / MOST_POSITIONS)
    cols = min(-(-o // wide), max(1, int(64 * more) // wide)) * wide
    total = depth.taps * c
    k = -(-total // max(1, -(-total // SUMMED[tile])))
    weights = 4 * positions * total * o / more
    shared = weights >= MANY or (weights >= FEW and tiles is not None and tiles <= MOST_TILES)
    block = MOST_TILES if shared else max(1, round(24 / more / mr)) * mr
    if tiles is not None:
        block = max(1, min(block, tiles))
    return blocks(c, o, tile, vlen, nv, block, cols, k, shared, stride, depth)
