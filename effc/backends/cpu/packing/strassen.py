"""Sizes of the kernel that multiplies by Strassen's algorithm (kernels/gemm_strassen.hpp), and where it is taken."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir.dims import Dim, ceildiv, minimum
from ....ir.dtypes import DType
from .gemm import TILE

# kHalf, kTiles, kFewPairs, kLeastRows
HALF, TILES, FEW_PAIRS, LEAST_ROWS = 288, 17, 12, 96
LEAST_STEPS, LEAST_COLUMNS, MOST_ROWS, MOST_SCRATCH = 256, 256, 256, 768 << 10  # as measured: docs/kernels.md


def thread_scratch(rows: Dim, k: int, n: int, nr: int) -> Dim:
    """Bytes per thread for float32: results of a pair of panels, or of a task where the reduction has several blocks;
    S1..S4 and copies of A11, A12, A22; T1..T4. Product::bytes of the kernel."""
    pairs, blocks = ceildiv(n, nr) // 2, max(1, ceildiv(k, 2 * HALF))
    half = ceildiv(ceildiv(k, blocks), 2)
    lda = (ceildiv(half * 4, 64) | 1) * 16
    columns = 2 * (min(pairs, FEW_PAIRS) if blocks > 1 else 1) * nr + 16
    high = minimum(ceildiv(ceildiv(rows, 2), TILE), TILES) * TILE
    return 4 * (2 * high * columns + 7 * high * lda + 4 * half * nr)


def why_not(
    dtype: DType, shape: Sequence[Dim], strides: Sequence[Dim], k: int, n: int, target: tuple[int, int, int | None]
) -> str | None:
    """Why a product of A, (1, 1, M, K) as the kernel sees it, and a packed constant (K, N) stays ordinary, or None.
    ``target``: bytes of a vector, columns of a panel, threads. The class is where a gain of 3 % was measured."""
    m, (vlen, nr, threads) = shape[2], target
    if dtype is not DType.f32 or vlen != 32 or threads != 1:
        return "not f32, or vectors or threads for which no gain was measured"
    if tuple(shape[:2]) != (1, 1) or strides[3] != 1 or not isinstance(m, int):
        return "batches, rows of A that are not contiguous, or a dynamic number of them"
    if m % 2 or -(-n // nr) % 2:
        return "an odd number of rows or panels"
    if k < LEAST_STEPS or n < LEAST_COLUMNS or not LEAST_ROWS <= m <= MOST_ROWS:
        return f"other than {LEAST_ROWS} to {MOST_ROWS} rows, {LEAST_STEPS} steps and {LEAST_COLUMNS} columns"
    if k % 1024 == 0 or n % 1024 == 0:
        return "rows whole pages apart"
    scratch = thread_scratch(m, k, n, nr)
    assert isinstance(scratch, int)
    return None if scratch <= MOST_SCRATCH else "sums that would not stay in the second level of the cache"


def flops(m: int, k: int, n: int) -> int:
    """Operations of the seven products."""
    return 7 * m * k * n // 4
