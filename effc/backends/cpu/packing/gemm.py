"""Right-hand sides of matrix multiplications in panels (kernels/gemm.hpp).

Packed buffer: 64 bytes of header, then the data.

    header   magic "EFFCPACK", format id 1, version, dtype code, panel width nr (4 x u32), batches, k, n (3 x i64),
             64-bit BLAKE2b of the data, steps kr (u32), 4 bytes zero
    panels   [batch][panel][k / kr][nr][kr]: columns panel * nr ... of B (batch, k, n), kr steps of the reduction side
             by side; what is beyond k or n is 0

The data keeps the dtype of B. What nr and kr a target's micro-kernel wants is in ``microkernels.py``.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from ....ir.dims import Dim, ceildiv, minimum
from ....ir.dtypes import DType
from .conv import PackingError

Array = np.ndarray[Any, Any]

MAGIC = b"EFFCPACK"
FORMAT, VERSION = 1, 2
HEADER = struct.Struct("<8s4I3qQI4x")
assert HEADER.size == 64
PACKABLE = (DType.f32, DType.f64, DType.f16, DType.bf16)


def panel_width(dtype: DType, vlen: int) -> int:
    """kNR of gemm.hpp: columns of a panel for vectors of ``vlen`` bytes. Short floats are multiplied as f32."""
    lanes = vlen // max(4, dtype.itemsize)
    return lanes * (4 if vlen >= 64 else 2)


def packed_bytes(batches: int, k: int, n: int, dtype: DType, nr: int, kr: int = 1) -> int:
    """Size of the packed buffer."""
    return HEADER.size + batches * -(-n // nr) * -(-k // kr) * kr * nr * dtype.itemsize


def pack_gemm_b(b: Array, nr: int, kr: int = 1) -> Array:
    """B (k, n) or (batches, k, n), to panels of ``nr`` columns, ``kr`` steps side by side; a uint8 vector."""
    if b.ndim not in (2, 3):
        raise PackingError(f"B must have rank 2 or 3, not {b.ndim}")
    b3 = b if b.ndim == 3 else b[None]
    batches, k, n = b3.shape
    panels, steps = -(-n // nr), -(-k // kr) * kr
    data = np.zeros((batches, panels, steps, nr), b.dtype)
    full = n // nr
    data[:, :full, :k] = b3[:, :, : full * nr].reshape(batches, k, full, nr).transpose(0, 2, 1, 3)
    if n % nr:
        data[:, full, :k, : n % nr] = b3[:, :, full * nr :]
    if kr > 1:
        data = np.ascontiguousarray(data.reshape(batches, panels, steps // kr, kr, nr).swapaxes(3, 4))
    raw = data.reshape(-1).view(np.uint8)
    digest = digest_of(raw)
    head = HEADER.pack(MAGIC, FORMAT, VERSION, DType.from_np(b.dtype).code, nr, batches, k, n, digest, kr)
    return np.concatenate([np.frombuffer(head, np.uint8), raw])


def digest_of(raw: Array) -> int:
    """The header's checksum of the data, a uint8 vector."""
    return int.from_bytes(hashlib.blake2b(raw.data if raw.size else b"", digest_size=8).digest(), "little")


def unpack_gemm_b(packed: Array) -> Array:
    """B (batches, k, n); PackingError if magic, version, size or checksum do not fit."""
    raw = packed.tobytes()
    if len(raw) < HEADER.size:
        raise PackingError("shorter than a header")
    magic, fmt, version, code, nr, batches, k, n, digest, kr = HEADER.unpack(raw[: HEADER.size])
    if magic != MAGIC or fmt != FORMAT or version != VERSION:
        raise PackingError("not a packed matrix of a known version")
    body = raw[HEADER.size :]
    dtype = next((d for d in DType if d.code == code), None)
    if dtype is None or min(nr, kr) <= 0 or min(batches, k, n) < 0:
        raise PackingError("not the header of a packed matrix")
    if len(raw) != packed_bytes(batches, k, n, dtype, nr, kr):
        raise PackingError("size does not match the header")
    if int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little") != digest:
        raise PackingError("checksum does not match")
    panels, groups = -(-n // nr), -(-k // kr)
    data = np.frombuffer(body, dtype.np).reshape(batches, panels, groups, nr, kr).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(data.reshape(batches, groups * kr, panels * nr)[:, :k, :n])


# Built-in sizes of gemm.hpp: rows of a tile, rows and columns of a task, steps of a block, the shortest split.
TILE, ROWS, COLS, STEPS, SPLIT_STEPS = 6, 72, 512, 1024, 4096
MAX_TILES = 96  # kMaxTilesMC


@dataclass(frozen=True)
class Blocking:
    """The sizes of a block, which are the last attributes of effc_matmul_* but an epilogue's: steps of the reduction,
    tiles of rows, columns of a task. 0 is the kernel's own size. ``steps`` alone changes the order of additions."""

    steps: int = 0
    tiles: int = 0
    cols: int = 0

    @property
    def attrs(self) -> list[int]:
        return [self.steps, self.tiles, self.cols]

    @property
    def label(self) -> str:
        """For reports."""
        return f"steps {self.steps or STEPS}, rows {self.rows}, cols {self.cols or COLS}"

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return (self.tiles or ROWS // TILE) * TILE


def candidates(rows: int, k: int, n: int, acc: DType, vlen: int) -> list[Blocking]:
    """The built-in sizes (no block is longer than the operands), then all others worth a look: a block of A takes at
    most 384 KiB (L2), a block of a panel of B at most 96 KiB, results of a task at most 512 KiB."""
    nr, size = panel_width(acc, vlen), acc.itemsize
    own = Blocking()
    seen = {_effective(own, rows, k, n, nr)}
    found = [own]
    for steps in (256, 512, 768, 1024, 1536):
        for tiles in (4, 8, 12, 16, 24, 48):
            for cols in (64, 128, 256, 512):
                b = Blocking(steps, tiles, cols)
                real = _effective(b, rows, k, n, nr)
                height, depth, width = real[1] * TILE, -(-k // real[0]), real[2] * nr
                fits = height * depth * size <= 384 << 10 and depth * nr * size <= 96 << 10
                if fits and height * width * size <= 512 << 10 and real not in seen:
                    seen.add(real)
                    found.append(b)
    return found


def _effective(b: Blocking, rows: int, k: int, n: int, nr: int) -> tuple[int, int, int]:
    """What a blocking comes to: blocks of the reduction, tiles of a block of rows, panels of a task."""
    tiles, panels = max(1, -(-rows // TILE)), max(1, -(-n // nr))
    return (
        max(1, -(-k // (b.steps or STEPS))),
        -(-tiles // -(-tiles // (b.tiles or ROWS // TILE))),
        min(panels, max(1, (b.cols or COLS) // nr)),
    )


@overload
def thread_scratch(acc: DType, vlen: int, blocking: Blocking = ...) -> int: ...
@overload
def thread_scratch(acc: DType, vlen: int, blocking: Blocking = ..., *, rows: Dim, k: Dim, n: Dim, mr: int) -> Dim: ...
def thread_scratch(
    acc: DType, vlen: int, blocking: Blocking = Blocking(), *,
    rows: Dim | None = None, k: Dim | None = None, n: Dim | None = None, mr: int = TILE,
) -> Dim:  # fmt: skip
    """Bytes per thread for accumulators of this dtype; ThreadScratch of gemm.hpp. With the product's sizes (at most:
    rows of all batches, steps, columns; ``mr`` rows of a tile) no more than these need."""
    nr = vlen // acc.itemsize * (4 if vlen >= 64 else 2)
    steps, height, cols = blocking.steps or STEPS, blocking.rows, max(blocking.cols or COLS, nr)
    if rows is None or k is None or n is None:
        return acc.itemsize * (height * cols + height * steps + steps * nr)
    line = 64 // acc.itemsize
    all_rows, depth = ceildiv(rows, mr) * mr, (ceildiv(k, line) + 1) * line
    results = minimum(height * cols, all_rows * (ceildiv(n, nr) * nr))
    return acc.itemsize * (results + minimum(height * steps, all_rows * depth) + minimum(steps, depth) * nr)
