"""Constant right-hand sides of products of bytes, and filters of byte convolutions (kernels/dot_i8.hpp, gemm_i8.hpp).

Packed buffer: 64 bytes of header, then sections that each start at a multiple of 64 bytes. The values are those of
``b`` as signed bytes: unsigned ones minus 128, and their zero points with them.

    header   magic "EFFCPACK", format id 3, version, columns of a panel (16), split, has_zeros, extras (6 x u32),
             groups, k, n (3 x i32), 4 bytes zero, 64-bit BLAKE2b of what follows
    sums     i32 [group][panel * 16]: sum of b - zero of each column, modulo 2^32
    zeros    i32 [group][panel * 16]
    data     i8 [group][panel][steps / 4][16][4]; steps is k rounded up to 64, what is beyond k or n is 0
    form     u8 [group][panel]: the depth and a kind, below (if split)
    shifts   i32 [group][panel * 16]: what the sums of panels of magnitudes lack (if split)
    starts   u32 [group][panel][2], and the end: where the extras of each vector of 8 columns start (if split)
    where    u32 [extras]: their groups of 4 steps, ascending for each vector
    extra    i8 [extras][8][4]

``split`` is for machines whose instruction multiplies unsigned by signed bytes and adds two products in 16 bits with
saturation (AVX2's vpmaddubsw). There are two kinds of panels:

- A unsigned, weights signed. For two neighbouring steps (k, k + 1 with k even) of a column, 255 times the sum of the
  positive weights, or of the negative ones, must fit in 16 bits: ``LIMIT``.
- Magnitudes: |w| unsigned, and for A the signed a - 128, or -(a - 128) - 1 where w is negative, which is an exclusive
  or of a's bits. 128 times the sum of the magnitudes must fit: ``MAGNITUDES``, and any two do. The data are the weights
  themselves; the shift of a column is 128 times their sum plus the sum of the magnitudes of the negative ones.

The sums of several groups of 4 steps may be added in 16 bits as well, if the same holds for all their weights in the
same lane (2 for each group). A panel of depth 2 or 4 promises that for every 2 or 4 groups: pairs that do not fit
beside those before them are in extra blocks instead, and 0 in the data. The form that takes the least time is chosen
for each panel; all are exact.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....ir.dims import Dim, ceildiv
from .conv import PackingError

Array = np.ndarray[Any, Any]

MAGIC = b"EFFCPACK"
FORMAT, VERSION = 3, 4
HEADER = struct.Struct("<8s6I3i4xQ8x")
assert HEADER.size == 64
PANEL, GROUP, STEPS, VECTOR = 16, 4, 64, 8  # kNR, kGroup, kAlign of dot_i8.hpp; columns of 32 bytes
LIMIT, MAGNITUDES = 128, 256  # 255 * 128 <= 32767, -128 * 256 >= -32768
BY_MAGNITUDE = 8  # of Form of dot_i8.hpp: a panel of magnitudes
# A form's depth, and cycles of a row, measured on one core of Zen 4: of a group of 8 columns, and of an extra block.
FORMS: dict[int, tuple[int, float, float]] = {
    0: (1, 1.05, 0.0),
    2: (2, 0.84, 1.7),
    4: (4, 0.74, 1.7),
    BY_MAGNITUDE + 1: (1, 1.14, 0.0),
    BY_MAGNITUDE + 2: (2, 1.06, 1.7),
}
_ROWS, _COLS, _BLOCK = 96, 256, 512  # kMC, kNC, kKC of gemm_i8.hpp
THREAD_SCRATCH = _ROWS * _COLS * 4 + _ROWS * (_BLOCK + 64) + 2 * _BLOCK * PANEL + _ROWS * 4


def scratch(batches: Dim, k: Dim, n: Dim) -> Dim:
    """Bytes in which Packer of pack_i8.hpp lays out [batches, k, n]."""
    panels, steps = batches * ceildiv(n, PANEL), ceildiv(k, STEPS) * STEPS
    return panels * (3 * PANEL * 4 + steps * PANEL + 1) + 5 * 64


def signed(b: Array, zero: Array) -> tuple[Array, Array]:
    """u8 or i8 values and their zero points as i8 values and i32 zero points with equal differences."""
    if b.dtype == np.int8:
        return b, zero.astype(np.int32)
    if b.dtype != np.uint8:
        raise PackingError(f"only u8 and i8 can be packed, not {b.dtype}")
    return (b ^ 0x80).view(np.int8), zero.astype(np.int32) - 128


def _layout(b: Array) -> Array:
    """[groups, k, n] to [groups, panels, steps / 4, 16, 4], zero padded."""
    groups, k, n = b.shape
    panels, steps = -(-n // PANEL), -(-k // STEPS) * STEPS
    padded = np.zeros((groups, steps, panels * PANEL), np.int8)
    padded[:, :k, :n] = b
    split = padded.reshape(groups, steps // GROUP, GROUP, panels, PANEL)
    return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2))


def _parts(data: Array, depth: int, form: int) -> tuple[Array, Array]:
    """``data`` [..., steps / 4, 16, 4] as a sum of two arrays: in the first, every ``depth`` groups can be added
    in 16 bits as ``form`` adds them; the second has the pairs for which there is no room."""
    shape = data.shape
    pairs = data.reshape(*shape[:-3], shape[-3] // depth, depth, PANEL, 2, 2).astype(np.int16)
    if form & BY_MAGNITUDE:
        limit, sums = MAGNITUDES, [np.abs(pairs).sum(-1)]
    else:
        limit, sums = LIMIT, [np.maximum(pairs, 0).sum(-1), -np.minimum(pairs, 0).sum(-1)]
    main = pairs.copy()
    used = [np.zeros_like(s[..., 0, :, :]) for s in sums]
    for d in range(depth):
        fits = np.logical_and.reduce([u + s[..., d, :, :] <= limit for u, s in zip(used, sums, strict=True)])
        used = [u + np.where(fits, s[..., d, :, :], 0) for u, s in zip(used, sums, strict=True)]
        main[..., d, :, :, :] *= fits[..., None]
    return main.astype(np.int8).reshape(shape), (pairs - main).astype(np.int8).reshape(shape)


def _blocks(data: Array) -> Array:
    """[..., steps / 4, 16, 4] as [..., vector, steps / 4, 8, 4], the order of the extras."""
    split = data.reshape(*data.shape[:-2], 2, VECTOR, GROUP)
    return np.moveaxis(split, -3, -4)


def _choose(data: Array) -> tuple[Array, Array, Array]:
    """For each panel of ``data`` [groups, panels, steps / 4, 16, 4] the form that takes the least time; what stays in
    the data, and what is extras."""
    form = np.zeros(data.shape[:2], np.uint8)
    best = np.full(form.shape, np.inf)
    main, second = data.copy(), np.zeros_like(data)
    groups = 2 * data.shape[-3]  # of both vectors
    safe = np.ones(form.shape, bool)
    for f, (depth, time, extra) in FORMS.items():
        first, rest = _parts(data, depth, f)
        cost = groups * time + extra * _blocks(rest).any((-1, -2)).sum((-1, -2))
        if f == 0:  # a pair that is not safe by itself fits in no extra block either
            safe = ~rest.any((-1, -2, -3))
        better = (cost < best) & (safe | bool(f & BY_MAGNITUDE))
        best = np.where(better, cost, best)
        form[better] = f
        main[better], second[better] = first[better], rest[better]
    return form, main, second


def _shifts(values: Array, form: Array) -> Array:
    """[groups, panels * 16]: 128 times the sum of a column's weights and the sum of the magnitudes of negative ones, in
    panels of magnitudes."""
    groups, _, n = values.shape
    out = np.zeros((groups, form.shape[1] * PANEL), np.int64)
    wide = values.astype(np.int64)
    out[:, :n] = 128 * wide.sum(1) - np.minimum(wide, 0).sum(1)
    out *= np.repeat((form & BY_MAGNITUDE) != 0, PANEL, axis=1)
    return (out & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def pack(b: Array, zero: Array, *, split: bool) -> Array:
    """``b`` [groups, k, n] u8 or i8 and ``zero`` of the same dtype, [groups, n] or what broadcasts to it, as a uint8
    vector. ``split``: for instructions that saturate."""
    if b.ndim != 3:
        raise PackingError(f"b must have rank 3, not {b.ndim}")
    values, zeros = signed(b, np.asarray(zero))
    groups, k, n = b.shape
    columns = -(-n // PANEL) * PANEL
    zeros = np.broadcast_to(zeros, (groups, n))
    padded = np.zeros((2, groups, columns), np.int32)
    sums = values.sum(1, dtype=np.int64) - k * zeros.astype(np.int64)
    padded[0, :, :n] = (sums & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    padded[1, :, :n] = zeros
    data = _layout(values)
    sections: list[Array] = [padded[0], padded[1], data]
    extras = 0
    if split:
        form, sections[2], second = _choose(data)
        blocks = _blocks(second)  # [group, panel, vector, steps / 4, 8, 4]
        used = blocks.any((-1, -2))
        counts = used.sum(-1).reshape(-1)
        extras = int(counts.sum())
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
        sections += [form, _shifts(values, form), starts, np.nonzero(used)[-1].astype(np.uint32), blocks[used]]
    raw = b"".join(_padded(s) for s in sections)
    digest = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
    head = HEADER.pack(MAGIC, FORMAT, VERSION, PANEL, int(split), int(zeros.any()), extras, groups, k, n, digest)
    return np.frombuffer(head + raw, np.uint8)


def _padded(section: Array) -> bytes:
    raw = np.ascontiguousarray(section).tobytes()
    return raw + bytes(-len(raw) % 64)


@dataclass(frozen=True)
class Unpacked:
    """What a packed buffer holds: signed values [groups, k, n], zero points, sums and shifts of columns [groups, n]
    (i32), the share of blocks that are extras, and of panels by their form: of magnitudes, or of bytes with a depth."""

    values: Array
    zeros: Array
    sums: Array
    shifts: Array
    extra_share: float
    magnitude_share: float
    deep_share: float


def unpack(packed: Array) -> Unpacked:
    """PackingError if magic, version, size or checksum do not fit."""
    raw = packed.tobytes()
    if len(raw) < HEADER.size:
        raise PackingError("shorter than a header")
    magic, fmt, version, nr, split, _, extras, groups, k, n, digest = HEADER.unpack(raw[: HEADER.size])
    if magic != MAGIC or fmt != FORMAT or version != VERSION or nr != PANEL or min(groups, k, n) < 0:
        raise PackingError("not packed bytes of a known version")
    body = raw[HEADER.size :]
    panels, steps = -(-n // PANEL), -(-k // STEPS) * STEPS
    vectors = groups * panels * 2
    shapes: list[tuple[Any, tuple[int, ...]]] = [
        (np.int32, (groups, panels * PANEL)),
        (np.int32, (groups, panels * PANEL)),
        (np.int8, (groups, panels, steps // GROUP, PANEL, GROUP)),
    ]
    if split:
        shapes += [(np.uint8, (groups, panels)), (np.int32, (groups, panels * PANEL))]
        shapes += [(np.uint32, (vectors + 1,)), (np.uint32, (extras,)), (np.int8, (extras, VECTOR, GROUP))]
    sizes = [-(-int(np.prod(s)) * np.dtype(d).itemsize // 64) * 64 for d, s in shapes]
    if len(body) != sum(sizes):
        raise PackingError("size does not match the header")
    if int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little") != digest:
        raise PackingError("checksum does not match")
    parts, at = [], 0
    for (dtype, shape), size in zip(shapes, sizes, strict=True):
        count = int(np.prod(shape))
        parts.append(np.frombuffer(body, dtype, count, at).reshape(shape))
        at += size
    data, shifts = parts[2].astype(np.int16), np.zeros_like(parts[0])
    if split:
        _, shifts, starts, where, blocks = parts[3:]
        vector = np.repeat(np.arange(vectors), np.diff(starts.astype(np.int64)))
        view = data.reshape(groups * panels, steps // GROUP, 2, VECTOR, GROUP)
        view[vector // 2, where, vector % 2] += blocks
    values = data.transpose(0, 2, 4, 1, 3).reshape(groups, steps, panels * PANEL)[:, :k, :n].astype(np.int8)
    return Unpacked(values, parts[1][:, :n], parts[0][:, :n], shifts[:, :n], *shares(packed))


def filters(w: Array, groups: int) -> Array:
    """Weights [O, C / groups, *K] of a convolution as [groups, (tap, channel), O / groups]."""
    out, channels = w.shape[:2]
    taps = int(np.prod(w.shape[2:]))
    grouped = w.reshape(groups, out // groups, channels, taps)
    return grouped.transpose(0, 3, 2, 1).reshape(groups, taps * channels, out // groups)


def shares(packed: Array) -> tuple[float, float, float]:
    """The share of blocks of 4 steps by 8 columns that are extras, of panels of magnitudes, of others with a depth."""
    *_, split, _, extras, groups, k, n, _ = HEADER.unpack(packed[: HEADER.size].tobytes())
    panels, steps = groups * -(-n // PANEL), -(-k // STEPS) * STEPS
    at = HEADER.size + 2 * -(-panels * PANEL * 4 // 64) * 64 + -(-panels * steps * PANEL // 64) * 64
    form = packed[at : at + panels] if split else np.zeros(panels, np.uint8)
    some = max(1, panels)
    by_magnitude = (form & BY_MAGNITUDE) != 0
    deep = int(((form > 0) & ~by_magnitude).sum())
    return float(extras / max(1, panels * 2 * -(-k // GROUP))), int(by_magnitude.sum()) / some, deep / some
