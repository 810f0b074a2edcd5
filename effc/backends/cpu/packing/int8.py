"""Constant right-hand sides of products of bytes, and filters of byte convolutions (kernels/dot_i8.hpp, gemm_i8.hpp).

Packed buffer: 64 bytes of header, then sections that each start at a multiple of 64 bytes. The values are those of
``b`` as signed bytes: unsigned ones minus 128, and their zero points with them.

    header   magic "EFFCPACK", format id 3, version, columns of a panel (16), split, has_zeros, extras (6 x u32),
             groups, k, n (3 x i32), 4 bytes zero, 64-bit BLAKE2b of what follows
    sums     i32 [group][panel * 16]: sum of b - zero of each column, modulo 2^32
    zeros    i32 [group][panel * 16]
    data     i8 [group][panel][steps / 4][16][4]; steps is k rounded up to 64, what is beyond k or n is 0
    form     u8 [group][panel]: how it is multiplied, below (if split)
    shifts   i32 [group][panel * 16]: what the sums of panels of magnitudes lack (if split)
    order    u16 [group][panel][steps / 4]: of ordered panels, which four steps of a block the data's are: 4 times their
             place (if split)
    counts   u8 [group][panel][block][2]: quads and pairs of an ordered panel, which come first (if split)
    starts   u32 [group][panel][2], and the end: where the extras of each vector of 8 columns start (if split)
    where    u32 [extras]: their groups of 4 steps, ascending for each vector
    extra    i8 [extras][8][4]

``split`` is for machines whose instruction multiplies unsigned by signed bytes and adds two products in 16 bits with
saturation (AVX2's vpmaddubsw). There are two kinds of panels:

- A unsigned, weights signed: ordered. For two neighbouring steps (k, k + 1 with k even) of a column, 255 times the sum
  of the positive weights, or of the negative ones, must fit in 16 bits: ``LIMIT``.
- Magnitudes: |w| unsigned, and for A the signed a - 128, or -(a - 128) - 1 where w is negative, which is an exclusive
  or of a's bits. 128 times the sum of the magnitudes must fit: ``MAGNITUDES``, and any two do. The data are the weights
  themselves; the shift of a column is 128 times their sum plus the sum of the magnitudes of the negative ones.

The sums of several groups of 4 steps may be added in 16 bits as well, if the same holds for all their weights in the
same lane (2 for each group). Which groups those are is free within a block of steps: an ordered panel has groups
whose weights fit together side by side (:func:`arrange`), first by four ("quads"), then by two ("pairs"), then alone.
A panel of magnitudes may have depth 2 for every two neighbours: pairs of weights that do not fit beside those before
them are in extra blocks instead, and 0 in the data. The form that takes the least time is chosen for each panel; all
are exact.
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
FORMAT, VERSION = 3, 5
HEADER = struct.Struct("<8s6I3i4xQ8x")
assert HEADER.size == 64
PANEL, GROUP, STEPS, VECTOR = 16, 4, 64, 8  # kNR, kGroup, kAlign of dot_i8.hpp; columns of 32 bytes
LIMIT, MAGNITUDES = 128, 256  # 255 * 128 <= 32767, -128 * 256 >= -32768
ORDERED, BY_MAGNITUDE = 4, 8  # of Form of dot_i8.hpp: the latter plus a depth of 1 or 2
# Cycles of a row and a group of 8 columns, measured on one core of Zen 4: of ordered panels by the groups that are
# added in 16 bits, of magnitudes by their depth; and those of an extra block.
SETS = {4: 0.75, 2: 0.85, 1: 1.08}
DEPTHS = {1: 1.14, 2: 1.06}
EXTRA = 1.7
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


def blocks(steps: int) -> list[tuple[int, int]]:
    """The blocks of ``steps`` steps (a multiple of 64) that gemm_i8.hpp multiplies one after the other."""
    count, lines = -(-steps // _BLOCK), steps // STEPS
    return [(lines * i // count * STEPS, lines * (i + 1) // count * STEPS) for i in range(count)]


def _signs(data: Array) -> Array:
    """``data`` [..., 16, 4] as sums of lanes, [..., 64]: of the positive weights of each pair, and of the others."""
    pairs = data.reshape(*data.shape[:-2], 2 * PANEL, 2).astype(np.int16)
    return np.concatenate([np.maximum(pairs, 0).sum(-1), -np.minimum(pairs, 0).sum(-1)], -1)


def plain(b: Array) -> float:
    """The share of the panels of ``b`` [groups, k, n] i8 or u8 that need no magnitudes."""
    lanes = _signs(_layout(signed(b, np.zeros(1, b.dtype))[0]))
    return float((lanes <= LIMIT).all((-1, -2)).mean()) if lanes.size else 1.0


def _sets(lanes: Array, free: Array, depth: int) -> Array:
    """For each panel of ``lanes`` [panels, groups, 64] sets of ``depth`` of the groups that are ``free`` [panels,
    groups], whose lanes come to LIMIT at most: the number of each group's set, or -1. Greedy: the group with the
    largest lanes goes first, with those beside which lanes stay smallest, by the sum of their fourth powers. One for
    which that does not fit stays alone."""
    panels, groups, _ = lanes.shape
    out, every = np.full((panels, groups), -1), np.arange(panels)
    w = lanes.astype(np.float32) / LIMIT
    # (load + w)^4, less what is the same for all candidates, as a product of matrices.
    turned = np.ascontiguousarray(w.swapaxes(1, 2))
    hard = (turned**4).sum(1)
    powers = np.concatenate([turned, turned**2, turned**3, hard[:, None]], 1)
    free = free.copy()
    last = np.where(free, 0, np.float32(1e9))
    count = np.zeros(panels, int)
    while True:
        able = free.sum(1) >= depth
        if not able.any():
            return out
        first = np.where(free, hard, -1).argmax(1)
        picks, load = [first], w[every, first]
        free[every, first] = False
        last[every, first] = 1e9
        for _ in range(1, depth):
            factors = np.concatenate([4 * load**3, 6 * load * load, 4 * load, np.ones((panels, 1), np.float32)], -1)
            score = np.matmul(factors[:, None], powers)[:, 0] + last
            pick = score.argmin(1)
            load = load + w[every, pick]
            picks.append(pick)
            last[every, pick] = 1e9
        fits = able & (sum(lanes[every, p] for p in picks) <= LIMIT).all(-1)
        for p in picks:
            out[every[fits], p[fits]] = count[fits]
        for p in picks[1:]:  # what did not fit is left for the others
            free[every[fits], p[fits]] = False
            last[every[~fits], p[~fits]] = np.where(free[every[~fits], p[~fits]], 0, 1e9)
        count += fits


def arrange(data: Array, k: int) -> tuple[Array, Array]:
    """For panels [panels, steps / 4, 16, 4] in which every pair fits: the order of the groups within each block of
    steps, [panels, steps / 4], and how many quads and pairs come first there, [panels, blocks, 2]. Of the steps
    beyond k only those up to the next multiple of 16 are multiplied, and the others stay where they are."""
    panels, total = data.shape[:2]
    used = min(total, -(-k // 16) * 16 // GROUP)
    spans = blocks(total * GROUP)
    order = np.broadcast_to(np.arange(total), (panels, total)).copy()
    counts = np.zeros((panels, len(spans), 2), np.uint8)
    for i, (start, stop) in enumerate(spans):
        lo, hi = start // GROUP, min(stop // GROUP, used)
        for at in range(0, panels, 16):  # what 16 take stays in a cache
            lanes = _signs(data[at : at + 16, lo:hi])
            free = np.ones(lanes.shape[:2], bool)
            key = np.full(lanes.shape[:2], 2 * total)
            for j, depth in enumerate((4, 2)):
                found = _sets(lanes, free, depth)
                key = np.where(found >= 0, j * total + found, key)
                free &= found < 0
                counts[at : at + 16, i, j] = found.max(1, initial=-1) + 1
            order[at : at + 16, lo:hi] = lo + np.argsort(key, axis=1, kind="stable")
    return order, counts


def _parts(data: Array, depth: int) -> tuple[Array, Array]:
    """``data`` [..., steps / 4, 16, 4] as a sum of two arrays: in the first, the magnitudes of every ``depth`` groups
    can be added in 16 bits; the second has the pairs for which there is no room."""
    shape = data.shape
    pairs = data.reshape(*shape[:-3], shape[-3] // depth, depth, PANEL, 2, 2).astype(np.int16)
    sums = np.abs(pairs).sum(-1)
    main = pairs.copy()
    used = np.zeros_like(sums[..., 0, :, :])
    for d in range(depth):
        fits = used + sums[..., d, :, :] <= MAGNITUDES
        used = used + np.where(fits, sums[..., d, :, :], 0)
        main[..., d, :, :, :] *= fits[..., None]
    return main.astype(np.int8).reshape(shape), (pairs - main).astype(np.int8).reshape(shape)


def _blocks(data: Array) -> Array:
    """[..., steps / 4, 16, 4] as [..., vector, steps / 4, 8, 4], the order of the extras."""
    split = data.reshape(*data.shape[:-2], 2, VECTOR, GROUP)
    return np.moveaxis(split, -3, -4)


@dataclass(frozen=True)
class Chosen:
    """Forms of panels, [groups, panels]; what their data are, and what is extras, [groups, panels, steps / 4, 16, 4];
    the order of their groups and the counts of their sets, as :func:`arrange` gives them."""

    form: Array
    main: Array
    extras: Array
    order: Array
    counts: Array


def _choose(data: Array, k: int) -> Chosen:
    """For each panel of ``data`` [groups, panels, steps / 4, 16, 4] the form that takes the least time."""
    shape, total = data.shape, data.shape[2]
    panels = shape[0] * shape[1]
    flat = data.reshape(panels, *shape[2:])
    used = min(total, -(-k // 16) * 16 // GROUP)
    form = np.zeros(panels, np.uint8)
    order = np.broadcast_to(np.arange(total), (panels, total)).copy()
    counts = np.zeros((panels, len(blocks(total * GROUP)), 2), np.uint8)
    main, extras = flat.copy(), np.zeros_like(flat)
    best = np.full(panels, np.inf)
    safe = np.flatnonzero((_signs(flat) <= LIMIT).all((-1, -2)))
    if safe.size:
        order[safe], counts[safe] = arrange(flat[safe], k)
        quads, pairs = counts[safe].sum(1, dtype=np.int64).T
        best[safe] = 2 * (4 * quads * SETS[4] + 2 * pairs * SETS[2] + (used - 4 * quads - 2 * pairs) * SETS[1])
        form[safe] = ORDERED
    left = np.flatnonzero(best > 2 * used * min(DEPTHS.values()))
    for depth, time in DEPTHS.items():
        first, rest = _parts(flat[left], depth)
        cost = 2 * used * time + EXTRA * _blocks(rest).any((-1, -2)).sum((-1, -2))
        better = cost < best[left]
        at = left[better]
        best[at], form[at] = cost[better], BY_MAGNITUDE + depth
        main[at], extras[at] = first[better], rest[better]
    ordered = form == ORDERED
    order[~ordered], counts[~ordered] = np.arange(total), 0
    main[ordered] = np.take_along_axis(flat[ordered], order[ordered][:, :, None, None], 1)
    return Chosen(
        form.reshape(shape[:2]), main.reshape(shape), extras.reshape(shape), order.reshape(shape[:3]),
        counts.reshape(*shape[:2], *counts.shape[1:]),
    )  # fmt: skip


def _places(order: Array) -> Array:
    """An order [..., steps / 4] as steps within its blocks."""
    first = np.zeros(order.shape[-1], np.int64)
    for start, stop in blocks(order.shape[-1] * GROUP):
        first[start // GROUP : stop // GROUP] = start // GROUP
    return ((order - first) * GROUP).astype(np.uint16)


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
        chosen = _choose(data, k)
        sections[2] = chosen.main
        extra = _blocks(chosen.extras)  # [group, panel, vector, steps / 4, 8, 4]
        used = extra.any((-1, -2))
        counts = used.sum(-1).reshape(-1)
        extras = int(counts.sum())
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
        sections += [chosen.form, _shifts(values, chosen.form), _places(chosen.order), chosen.counts]
        sections += [starts, np.nonzero(used)[-1].astype(np.uint32), extra[used]]
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
    (i32), the share of blocks that are extras, of panels that are of magnitudes, and of groups that are in quads."""

    values: Array
    zeros: Array
    sums: Array
    shifts: Array
    extra_share: float
    magnitude_share: float
    quad_share: float


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
        shapes += [(np.uint16, (groups, panels, steps // GROUP)), (np.uint8, (groups, panels, len(blocks(steps)), 2))]
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
        _, shifts, order, _, starts, where, extra = parts[3:]
        vector = np.repeat(np.arange(vectors), np.diff(starts.astype(np.int64)))
        view = data.reshape(groups * panels, steps // GROUP, 2, VECTOR, GROUP)
        view[vector // 2, where, vector % 2] += extra
        first = np.zeros(steps // GROUP, np.int64)
        for start, stop in blocks(steps):
            first[start // GROUP : stop // GROUP] = start // GROUP
        ordered = np.empty_like(data)
        np.put_along_axis(ordered, (first + order // GROUP)[..., None, None], data, 2)
        data = ordered
    values = data.transpose(0, 2, 4, 1, 3).reshape(groups, steps, panels * PANEL)[:, :k, :n].astype(np.int8)
    return Unpacked(values, parts[1][:, :n], parts[0][:, :n], shifts[:, :n], *shares(packed))


def filters(w: Array, groups: int) -> Array:
    """Weights [O, C / groups, *K] of a convolution as [groups, (tap, channel), O / groups]."""
    out, channels = w.shape[:2]
    taps = int(np.prod(w.shape[2:]))
    grouped = w.reshape(groups, out // groups, channels, taps)
    return grouped.transpose(0, 3, 2, 1).reshape(groups, taps * channels, out // groups)


def shares(packed: Array) -> tuple[float, float, float]:
    """The share of blocks of 4 steps by 8 columns that are extras, of panels of magnitudes, of groups in quads."""
    *_, split, _, extras, groups, k, n, _ = HEADER.unpack(packed[: HEADER.size].tobytes())
    panels, steps = groups * -(-n // PANEL), -(-k // STEPS) * STEPS
    if not split:
        return 0.0, 0.0, 0.0
    at = HEADER.size
    found: list[Array] = []
    for size in (panels * PANEL * 4, panels * PANEL * 4, panels * steps * PANEL, panels, panels * PANEL * 4,
                 panels * (steps // GROUP) * 2, panels * len(blocks(steps)) * 2):  # fmt: skip
        found.append(packed[at : at + size])
        at += -(-size // 64) * 64
    some, multiplied = max(1, panels), max(1, panels * -(-k // GROUP))
    magnitudes, quads = int(((found[3] & BY_MAGNITUDE) != 0).sum()), int(found[6][::2].sum(dtype=np.int64))
    return extras / (2 * multiplied), magnitudes / some, min(1.0, 4 * quads / multiplied)
