"""Convolution weights in panels, and the blocking of the convolution kernels (kernels/conv.hpp, kernels/conv_dw.cpp).

Packed buffer: 64 bytes of header, then the data in the compute dtype.

    header   magic "EFCW", format id, version, dtype code, lanes, nv, groups, cg (input channels per group),
             og (output channels per group), kernel depth, height, width, transposed (13 x u32), 4 bytes zero,
             64-bit BLAKE2b of the data
    panels   [group][panel][tap][c][nv * lanes]; the last panel of a group has ceil(rest / lanes) vectors; unused
    lanes are 0
    depthwise  [tap][channel]

Taps are the kernel's positions in row-major order.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ....ir import dims
from ....ir.dims import Dim
from ....ir.dtypes import DType

Array = np.ndarray[Any, Any]

MAGIC = b"EFCW"
VERSION = 1
PANELS, DEPTHWISE = 1, 2
HEADER = struct.Struct("<4s12I4xQ")
assert HEADER.size == 64
MOST_SHARED = 256  # steps of a sum, so that any blocking has them in one range
L1_PANEL = 24 * 1024  # bytes of a panel that are worked on at a time
_COMPUTE = {np.dtype(np.float16): np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16): np.dtype(np.float32)}


class PackingError(ValueError):
    """A buffer that is not what its header says, or has no header."""


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which weights of this storage dtype are packed: f32 for f16, bf16 and fp8, else itself."""
    return np.dtype(np.float32) if dtype.itemsize == 1 and dtype.kind not in "iub" else _COMPUTE.get(dtype, dtype)


def max_rows(nv: int, vlen: int) -> int:
    """Rows of a tile that is nv vectors wide; max_rows() of conv.hpp."""
    return {1: 12, 2: 12, 3: 8, 4: 6}[nv] if vlen >= 64 else {1: 10, 2: 6, 3: 4, 4: 3}[nv]


def choose_nv(og: int, lanes: int, vlen: int) -> int:
    """Vectors per panel for og output channels: few panels, and no last panel so narrow that its accumulators are
    too few to
    hide the latency of a multiply-add."""
    v = max(1, -(-og // lanes))
    if vlen >= 64:
        if v <= 4:
            return v
        return min((4, 3), key=lambda nv: ((v % nv or nv) == 1, -(v % nv or nv)))
    if v <= 3:
        return v
    return 2 if v % 2 == 0 or v % 3 == 1 else 3


def sharing(groups: int, cg: int, og: int, taps: int, lanes: int) -> int:
    """How many groups of ``cg`` channels in and ``og`` out share a vector in micro_groups() of conv_micro.hpp: as many
    as it has room for, or 1. Their weights are packed as one group's are."""
    fits = cg == og and cg in (2, 4, 8) and cg < lanes and cg * taps <= MOST_SHARED
    return lanes // cg if fits and groups % (lanes // cg) == 0 else 1


def _digest(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _spatial(w: Array) -> Array:
    """Weights with three kernel dims."""
    return w.reshape(w.shape[:2] + (1,) * (5 - w.ndim) + w.shape[2:])


def _with_header(fmt: int, data: Array, fields: tuple[int, ...]) -> Array:
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    head = HEADER.pack(MAGIC, fmt, VERSION, DType.from_np(data.dtype).code, *fields, _digest(raw.tobytes()))
    return np.concatenate([np.frombuffer(head, np.uint8), raw])


def pack_conv(w: Array, groups: int, vlen: int, *, transposed: bool = False, nv: int | None = None) -> Array:
    """Weights [O, C/groups, *K] (transposed: [C, O/groups, *K]) to panels; a uint8 vector."""
    dtype = compute_dtype(w.dtype)
    lanes = vlen // dtype.itemsize
    w5 = _spatial(w).astype(dtype)
    if transposed:  # [G, cg, og, K] -> [G, og, cg, K]
        cg, og = w.shape[0] // groups, w.shape[1]
        grouped = w5.reshape(groups, cg, og, *w5.shape[2:]).transpose(0, 2, 1, 3, 4, 5)
    else:
        cg, og = w.shape[1], w.shape[0] // groups
        grouped = w5.reshape(groups, og, cg, *w5.shape[2:])
    kernel = w5.shape[2:]
    nv = nv or choose_nv(og, lanes, vlen)
    k = cg * int(np.prod(kernel))
    matrix = grouped.transpose(0, 3, 4, 5, 2, 1).reshape(groups, k, og)  # [G, (tap, c), og]
    padded = np.zeros((groups, k, -(-og // lanes) * lanes), dtype)
    padded[:, :, :og] = matrix
    wide = nv * lanes
    parts = [
        np.ascontiguousarray(padded[g, :, n : n + wide]).reshape(-1)
        for g in range(groups)
        for n in range(0, padded.shape[2], wide)
    ]
    data = np.concatenate(parts) if parts else np.zeros(0, dtype)
    return _with_header(PANELS, data, (lanes, nv, groups, cg, og, *kernel, int(transposed)))


def pack_depthwise(w: Array) -> Array:
    """Weights [C, 1, *K] to [tap][channel]; a uint8 vector."""
    w5 = _spatial(w).astype(compute_dtype(w.dtype))
    data = w5[:, 0].transpose(1, 2, 3, 0)
    return _with_header(DEPTHWISE, data, (1, 1, w.shape[0], 1, 1, *w5.shape[2:], 0))


def unpack(packed: Array) -> Array:
    """The weights with three kernel dims, in the compute dtype; PackingError if magic, version, size or checksum
    do not fit."""
    raw = packed.tobytes()
    if len(raw) < HEADER.size:
        raise PackingError("shorter than a header")
    magic, fmt, version, code, lanes, nv, groups, cg, og, kd, kh, kw, transposed, digest = HEADER.unpack(
        raw[: HEADER.size]
    )
    if magic != MAGIC or version != VERSION or fmt not in (PANELS, DEPTHWISE):
        raise PackingError("not a packed convolution weight of a known version")
    body = raw[HEADER.size :]
    if _digest(body) != digest:
        raise PackingError("checksum does not match")
    data = np.frombuffer(body, next(d for d in DType if d.code == code).np)
    k = kd * kh * kw * cg
    if fmt == DEPTHWISE:
        return data.reshape(kd, kh, kw, groups).transpose(3, 0, 1, 2)[:, None]
    padded = -(-og // lanes) * lanes
    wide = nv * lanes
    if data.size != groups * k * padded:
        raise PackingError("size does not match the header")
    out = np.empty((groups, k, padded), data.dtype)
    at = 0
    for g in range(groups):
        for n in range(0, padded, wide):
            width = min(wide, padded - n)
            out[g, :, n : n + width] = data[at : at + k * width].reshape(k, width)
            at += k * width
    w = out[:, :, :og].reshape(groups, kd, kh, kw, cg, og)
    if transposed:
        return w.transpose(0, 4, 5, 1, 2, 3).reshape(groups * cg, og, kd, kh, kw)
    return w.transpose(0, 5, 4, 1, 2, 3).reshape(groups * og, cg, kd, kh, kw)


def _align(n: Dim) -> Dim:
    return dims.floordiv(n + 63, 64) * 64


@dataclass(frozen=True)
class Blocks:
    """Blocking of effc_conv_*: attributes 20..23 of the kernel, and its scratch sizes in bytes."""

    nv: int
    rows: int
    cols: int
    k: int
    scratch: Dim
    thread_scratch: Dim

    @property
    def attrs(self) -> list[int]:
        return [self.nv, self.rows, self.cols, self.k]

    @property
    def label(self) -> str:
        """For reports."""
        return f"nv {self.nv}, rows {self.rows}, cols {self.cols}, k {self.k}"


@dataclass(frozen=True)
class Shape:
    """What the blocking of effc_conv_* depends on. ``og``, ``cg``: output and input channels of a group; ``innermost``:
    x has its channels innermost; ``copy_elems``: elements of x where the kernel copies it so first. And what its
    scratch does: ``pixels`` of all results (None: any number); ``direct``: sums are stored where they belong, without
    an epilogue or a conversion; ``lines``: a pointwise convolution whose pixels follow each other in x; ``scaled``: a
    panel's weights are scaled as x's channels are to be. ``share``: how many groups share a vector, of which ``groups``
    and ``og`` then count the vectors and their channels."""

    og: int
    cg: int
    groups: int
    taps: int
    itemsize: int
    vlen: int
    innermost: bool
    packed: bool
    copy_elems: Dim = 0
    pixels: Dim | None = None
    direct: bool = False
    lines: bool = False
    scaled: bool = False
    share: int = 1

    @property
    def grouped(self) -> bool:
        """Groups that may be taken with one list of rows: take_scratch() of conv.hpp, for a plain convolution."""
        return self.innermost and (self.share > 1 or (self.groups > 1 and self.cg >= 4 and not self.lines))

    @property
    def k(self) -> int:
        """Steps of the reduction."""
        return self.cg * self.taps

    def blocks(self, nv: int, rows: int, cols: int, block_k: int) -> Blocks:
        """This blocking with the scratch that it needs. ``rows`` must be a multiple of a tile's, ``cols`` of a
        panel's width."""
        lanes, mr = self.vlen // self.itemsize, max_rows(nv, self.vlen)
        tiles: Dim = rows // mr
        if self.pixels is not None:
            tiles = dims.minimum(tiles, dims.ceildiv(self.pixels, mr))
        unit = 8 if self.cg < 8 and not self.grouped else self.cg
        segs = min(self.taps, (min(block_k, max(1, self.k)) + unit - 2) // unit + 1)
        thread: Dim = 0
        if not self.direct:  # acc_bytes() of conv.hpp
            thread = tiles * mr * cols * self.itemsize
        if self.scaled:  # scaled_bytes()
            thread = thread + min(block_k, max(1, self.k)) * nv * self.vlen
        if not self.lines or self.share > 1:  # list_bytes()
            patch = _align(mr * self.k * self.itemsize) if self.cg < 8 or not self.innermost else 0
            thread = thread + (tiles + 2) * (40 + 16 * segs) + tiles * mr * (40 + 8 * segs) + patch
        thread = _align(thread) if self.scaled else thread  # vectors of each thread's panel begin where vectors may
        scratch = (
            _align(self.taps * 24) + _align(self.cg * self.share * self.groups * self.itemsize) + _align(self.k * 8)
        )
        scratch = scratch + _align(self.copy_elems * self.itemsize)
        if not self.packed:
            scratch = scratch + _align(-(-self.og // lanes) * lanes * self.k * self.groups * self.itemsize)
        return Blocks(nv, rows, cols, block_k, scratch, thread)

    def rule(self) -> Blocks:
        """The built-in blocking: a panel's part of the range of k in L1, a block's accumulators and rows of x in L2."""
        nv = choose_nv(self.og, self.vlen // self.itemsize, self.vlen)
        wide = nv * self.vlen // self.itemsize
        cols = max(1, min(128 * 4 // self.itemsize // wide, -(-self.og // wide))) * wide
        mr = max_rows(nv, self.vlen)
        rows = max(1, min(256, 64 * 1024 // self.itemsize // cols) // mr) * mr
        return self.blocks(nv, rows, cols, self._equal_parts(L1_PANEL // (wide * self.itemsize)))

    def _equal_parts(self, block_k: int) -> int:
        block_k = max(1, block_k)
        return max(1, -(-self.k // max(1, round(self.k / block_k))))

    def candidates(self) -> list[Blocks]:
        """The built-in blocking, then others worth a look: a panel's part of k takes 16 or 48 KiB (L1), a block's
        accumulators at most 256 KiB (L2), rows and columns are whole tiles and panels. Twice as many values of each
        dim gained another half percent, and took four times as long to choose from."""
        lanes, found = self.vlen // self.itemsize, {}
        vectors = max(1, -(-self.og // lanes))
        for nv in range(1, min(4, vectors) + 1):
            wide, mr = nv * lanes, max_rows(nv, self.vlen)
            panels = -(-self.og // wide)
            for block_k in sorted({self._equal_parts(kib * 1024 // (wide * self.itemsize)) for kib in (16, 48)}):
                for part in sorted({min(p, panels) for p in (1, 2, 4, 8)}):
                    for rows in (32, 128):
                        b = (nv, max(1, rows // mr) * mr, part * wide, block_k)
                        if b[1] * b[2] * self.itemsize <= 256 * 1024:
                            found[b] = None
        own = self.rule()
        return [own, *(self.blocks(*b) for b in found if list(b) != own.attrs)]


def depthwise_blocks(
    out_channels: int, taps: int, itemsize: int, *, packed: bool, copy_elems: Dim = 0, direct: bool = False
) -> Blocks:
    """Attributes and scratch of effc_conv_dw_*. ``copy_elems``: elements of x times filters per channel where the
    kernel copies it; ``direct``: as of :class:`Shape`."""
    cols = 8192  # elements of a thread's accumulators: 8 pixels of the widest block of channels and more
    scratch = _align(copy_elems * itemsize)
    if not packed:
        scratch = scratch + _align(out_channels * taps * itemsize)
    return Blocks(1, 0, cols, 0, scratch, 0 if direct else cols * itemsize)
