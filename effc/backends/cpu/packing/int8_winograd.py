"""Weights of 3x3 byte convolutions for Winograd's algorithm in integers (kernels/conv_i8_winograd.cpp), the proof that
it is exact for them, and when it is used.

Packed buffer: 64 bytes of header, then the data.

    header   magic "EFFCPACK", format id 4, version, tile size, c, o (5 x u32), 20 bytes zero, 64-bit BLAKE2b of what
             follows, 8 bytes zero
    data     i16 [panel][position][ceil(c / 2)][16][2]: G (w - zero) G^T, positions in row-major order; what is beyond
             c or o is 0

The transforms are those of Toom and Cook (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015)
for the points 0, 1, -1 (and 2, -2), with the rows of G scaled to integers; :data:`MATRICES`. A sum of products T comes
out as odd 2^s T modulo 2^32 with s up to :data:`SHIFT`, and is found again if |T| < 2^(31 - s). For bytes x and their
zero point, x - zx is within [-z, 255 - z] for some z in [0, 255], so |T| is at most 255 times the larger of the sum of
the positive weights and that of the magnitudes of the negative ones: :func:`bits`.

Which way a convolution goes, :func:`choose` decides from an estimate (:func:`costs`). Where a target's instruction for
bytes does not saturate (VNNI, AMX), it multiplies four or more times as many values as the one for 16 bits: there all
are direct.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....passes.winograd import Image
from .conv import PackingError
from .int8 import MAGIC, PANEL, signed

Array = np.ndarray[Any, Any]

FORMAT, VERSION = 4, 1
HEADER = struct.Struct("<8s5I20xQ8x")
assert HEADER.size == 64
# Integer A, B, G by tile size, and what the results are multiplied by: A ((G g) * (B d)) is SCALE times the M sums.
A = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    4: np.array([[1, 4, 4, 1, 1, 0], [0, 2, -2, 1, -1, 0], [0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 1]]),
}
B = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    4: np.array(
        [
            [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
        ]
    ),
}  # fmt: skip
G = {
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]),
    4: np.array([[6, 0, 0], [-1, -1, -1], [-1, 1, -1], [1, 2, 4], [1, -2, 4], [0, 0, 6]]),
}
SCALE = {2: (2, 2), 4: (24, 12, 6, 6)}
SHIFT = {2: 2, 4: 6}  # the power of two in the largest product of two scales


def _difference(w: Array, zero: Array) -> Array:
    """Weights [O, C, 3, 3] less their zero points (rank 0 or [O]), as i16."""
    values, zeros = signed(w, np.asarray(zero))
    return values.astype(np.int16) - np.broadcast_to(zeros, (len(w),)).astype(np.int16).reshape(-1, 1, 1, 1)


def bits(w: Array, zero: Array) -> int:
    """Bits besides the sign that hold any sum of products of bytes, less any zero point, with these weights
    [O, C, 3, 3] less their own zero points."""
    d = _difference(w, zero).reshape(len(w), -1).astype(np.int64)
    largest = max(np.maximum(d, 0).sum(1).max(initial=0), np.maximum(-d, 0).sum(1).max(initial=0))
    return int(255 * largest).bit_length()


def exact(w: Array, zero: Array, tile: int) -> bool:
    """Whether F(tile x tile, 3x3) is exact for these weights and any data."""
    return bits(w, zero) <= 31 - SHIFT[tile]


def transform(w: Array, zero: Array, tile: int) -> Array:
    """Weights [O, C, 3, 3] to [positions, C, O], i16."""
    g = G[tile]
    t = np.einsum("ia,ocab,jb->ijco", g, _difference(w, zero).astype(np.int64), g).reshape(-1, w.shape[1], w.shape[0])
    assert np.abs(t).max(initial=0) < 1 << 15
    return t.astype(np.int16)


def pack(w: Array, zero: Array, tile: int) -> Array:
    """Weights [O, C, 3, 3] u8 or i8 with their zero points (rank 0 or [O]), as a uint8 vector; PackingError where the
    sums are not proven to come out exact."""
    if w.ndim != 4 or w.shape[2:] != (3, 3):
        raise PackingError(f"weights must be [O, C, 3, 3], not {list(w.shape)}")
    if not exact(w, zero, tile):
        raise PackingError(f"sums of {bits(w, zero)} bits are not exact by F({tile}x{tile}, 3x3)")
    o, c = w.shape[:2]
    positions, panels, pairs = (tile + 2) ** 2, -(-o // PANEL), -(-c // 2)
    padded = np.zeros((positions, 2 * pairs, panels * PANEL), np.int16)
    padded[:, :c, :o] = transform(w, zero, tile)
    data = padded.reshape(positions, pairs, 2, panels, PANEL).transpose(3, 0, 1, 4, 2)
    raw = np.ascontiguousarray(data).tobytes()
    digest = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
    return np.frombuffer(HEADER.pack(MAGIC, FORMAT, VERSION, tile, c, o, digest) + raw, np.uint8)


def unpack(packed: Array) -> tuple[Array, int]:
    """The weights less their zero points, [O, C, 3, 3] i16, and the tile size; PackingError if magic, version, size or
    checksum do not fit."""
    raw = packed.tobytes()
    if len(raw) < HEADER.size:
        raise PackingError("shorter than a header")
    magic, fmt, version, tile, c, o, digest = HEADER.unpack(raw[: HEADER.size])
    if magic != MAGIC or fmt != FORMAT or version != VERSION or tile not in G:
        raise PackingError("not byte weights for Winograd's algorithm of a known version")
    body = raw[HEADER.size :]
    positions, panels, pairs = (tile + 2) ** 2, -(-o // PANEL), -(-c // 2)
    if len(body) != 2 * positions * panels * pairs * PANEL * 2:
        raise PackingError("size does not match the header")
    if int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little") != digest:
        raise PackingError("checksum does not match")
    data = np.frombuffer(body, np.int16).reshape(panels, tile + 2, tile + 2, pairs, PANEL, 2)
    t = data.transpose(1, 2, 3, 5, 0, 4).reshape(tile + 2, tile + 2, 2 * pairs, panels * PANEL)[:, :, :c, :o]
    # G' times its pseudoinverse is 1 on weights; both are small whole numbers over a common denominator.
    back = np.linalg.pinv(G[tile].astype(np.float64))
    w = np.einsum("ai,ijco,bj->ocab", back, t.astype(np.float64), back)
    return np.rint(w).astype(np.int16), tile


@dataclass(frozen=True)
class Blocks:
    """The last attributes of effc_qconv_winograd, and its scratch sizes in bytes. ``tiles``, ``cols``: of a block;
    ``shared``: the transformed image is."""

    tile: int
    tiles: int
    cols: int
    shared: bool
    scratch: int
    thread_scratch: int

    @property
    def attrs(self) -> list[int]:
        """kTiles to kShared."""
        return [self.tiles, self.cols, int(self.shared)]

    @property
    def label(self) -> str:
        """For reports."""
        size, where = f"F({self.tile}x{self.tile}, 3x3)", "shared" if self.shared else "own"
        return f"{size} in integers, tiles {self.tiles}, cols {self.cols}, {where}"


def blocks(c: int, tile: int, tiles: int, cols: int, shared: bool) -> Blocks:
    """This blocking with the scratch that it needs. ``cols`` must be a multiple of a panel's width."""
    positions = (tile + 2) ** 2
    image = positions * tiles * (-(-c // 32) * 32 + 32) * 2
    sums = positions * tiles * (cols + 16) * 4
    return Blocks(tile, tiles, cols, shared, -(-c // 64) * 64 + image * shared, sums + image * (not shared))


# The rule -------------------------------------------------------------------------------------------------------------

TILES = (2, 4)
DIRECT = 0  # stands for no tiles
# Nanoseconds of a core with AVX2 at 2.8 GHz (docs/kernels.md): an operation of the direct sum, in ordered panels and in
# those of magnitudes (int8.py), one of the transformed products, a transformed value or sum, and a byte of the weights,
# which come from memory once a run. Only their ratios matter.
ORDERED, MAGNITUDES, PER_OPERATION, PER_VALUE, PER_BYTE = 1 / 235, 1 / 160, 1 / 135, 0.115, 1 / 20
GAIN = 1.1  # direct stays where it is no more than this factor slower: Winograd's weights are larger
LEAST_CHANNELS = 16  # input and output: fewer leave vectors and panels empty


def costs(c: int, o: int, image: Image, plain: float) -> dict[int, float]:
    """Estimated nanoseconds by tile size, DIRECT included; ``plain``: the share of ordered direct panels."""
    direct = 18 * image.batch * image.height * image.width * c * o
    out = {DIRECT: max(direct * (plain * ORDERED + (1 - plain) * MAGNITUDES), PER_BYTE * 9 * c * o)}
    for m in TILES:
        tiles, positions = image.tiles(m), (m + 2) ** 2
        work = tiles * positions * (PER_OPERATION * 2 * c * o + PER_VALUE * (c + o))
        out[m] = max(work, PER_BYTE * positions * 2 * c * o)
    return out


def choose(w: Array, zero: Array, image: Image, plain: float) -> tuple[int, str]:
    """The tile size for a convolution with weights [O, C, 3, 3], or DIRECT, and why."""
    o, c = w.shape[:2]
    if min(c, o) < LEAST_CHANNELS:
        return DIRECT, f"fewer than {LEAST_CHANNELS} channels"
    cost, width = costs(c, o, image, plain), bits(w, zero)
    proven = [m for m in TILES if exact(w, zero, m)]
    names = {DIRECT: "direct", **{m: f"F({m}x{m}, 3x3)" for m in TILES}}
    why = "estimated us: " + ", ".join(f"{names[m]} {x / 1e3:.3g}" for m, x in cost.items())
    why += f"; sums have up to {width} bits"
    why += "".join(f", {names[m]} is not exact beyond {31 - SHIFT[m]}" for m in TILES if m not in proven)
    best = min(proven, key=lambda m: cost[m], default=DIRECT)
    return (best if GAIN * cost[best] <= cost[DIRECT] else DIRECT), why


# Weights of more bytes are read once for all threads and many tiles rather than by each thread for few; from FEW bytes
# on also where all tiles are one block.
MANY, FEW = 4 << 20, 1 << 20
MOST_TILES = 96  # of a block whose transformed image is shared


def rule(c: int, o: int, tile: int, tiles: int | None) -> Blocks:
    """The blocking for ``tiles`` tiles of all images (None: not known)."""
    cols = min(64, -(-o // PANEL) * PANEL)
    weights = 2 * (tile + 2) ** 2 * c * o
    shared = weights >= MANY or (weights >= FEW and tiles is not None and tiles <= MOST_TILES)
    block = MOST_TILES if shared else 24
    return blocks(c, tile, block if tiles is None else max(1, min(block, tiles)), cols, shared)
