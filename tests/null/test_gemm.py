"""Matrix multiplication kernels against numpy, at odd and empty sizes, any strides, any order of chunks."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_harness as h

from effc.backends.cpu.packing.conv import PackingError
from effc.backends.cpu.packing.gemm import TILE, Blocking, pack_gemm_b, panel_width, thread_scratch, unpack_gemm_b
from effc.backends.cpu.packing.gemm import candidates as gemm_candidates
from effc.ir.dtypes import DType

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
UNITS = ["gemm_f32.cpp", "gemm_f64.cpp", "gemm_half.cpp", "gemm_int.cpp", "gemm_complex.cpp"]
KERNEL = {"f4": "f32", "f8": "f64", "f2": "f16", "c8": "c64", "c16": "c128"}
TOLERANCE = {"f4": 1e-5, "f8": 1e-12, "f2": 1e-3, "c8": 1e-5, "c16": 1e-12}
EPILOGUE = Path(__file__).parent / "gemm_epilogue.cpp"


@pytest.fixture(scope="module", params=h.available_isas())
def lib(request: Any) -> h.KernelLibrary:
    return h.KernelLibrary(UNITS, request.param, [EPILOGUE])


def kernel_name(dtype: np.dtype[Any]) -> str:
    if dtype == BF16:
        return "bf16"
    return "int" if dtype.kind in "iu" else KERNEL[dtype.str[1:]]


def accumulator(dtype: np.dtype[Any]) -> DType:
    if dtype.kind in "iu":
        return DType.i64 if dtype.itemsize == 8 else DType.i32
    return DType.from_np(dtype).real.compute


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if dtype.kind == "c" else x).astype(dtype)


def expected(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":
        return np.matmul(a, b)
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    return np.matmul(a.astype(wide), b.astype(wide))


def check(out: Array, want: Array) -> None:
    if out.dtype.kind in "iu":
        np.testing.assert_array_equal(out, want)
        return
    limit = 1e-2 if out.dtype == BF16 else TOLERANCE[out.dtype.str[1:]]
    assert np.isfinite(out.astype(np.complex128)).all()
    if out.size:
        scale = np.abs(want).max()
        assert np.abs(out.astype(want.dtype) - want).max() <= limit * max(scale, 1e-30)


def run(lib: h.KernelLibrary, a: Array, b: Array, out: Array, **kw: Any) -> None:
    kw.setdefault("scratch", 1 << 20)
    lib.call(
        f"effc_matmul_{kernel_name(a.dtype)}", [a, b], [out], [0, 0, 0], thread_scratch=room(lib, a, b), **kw,
    )  # fmt: skip


def room(lib: h.KernelLibrary, a: Array, b: Array, sizes: Blocking | None = None) -> int:
    """A thread's scratch for these operands, no more: the harness sees what is written behind it."""
    unit, sizes = 2 if a.dtype.kind == "c" else 1, sizes or Blocking()
    rows = unit * a.shape[2] * math.prod(np.broadcast_shapes(a.shape[:2], b.shape[:2]))
    need = thread_scratch(
        accumulator(a.dtype), lib.vlen, sizes, rows=rows, k=unit * a.shape[3], n=b.shape[3], mr=TILE
    )  # fmt: skip
    assert isinstance(need, int) and need <= thread_scratch(accumulator(a.dtype), lib.vlen, sizes)
    return need


def strange(rng: np.random.Generator, x: Array) -> Array:
    """The same values under random strides."""
    choice = rng.integers(5)
    if choice == 1:
        return np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)
    if choice == 2:
        return np.ascontiguousarray(x[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    if choice == 3:
        wide = np.repeat(np.repeat(x, 2, axis=3), 3, axis=2)
        return wide[:, :, ::3, ::2]
    if choice == 4:
        return np.ascontiguousarray(x.transpose(2, 0, 3, 1)).transpose(1, 3, 0, 2)
    return x


SIZES = [0, 1, 2, 3, 5, 6, 7, 12, 13, 17, 31, 63, 65, 100, 130]


@pytest.mark.parametrize("seed", range(60))
def test_random_shapes(lib: h.KernelLibrary, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtypes = ["f4", "f4", "f8", "f2", BF16, "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "c8", "c16"]
    dtype = np.dtype(dtypes[seed % len(dtypes)])  # type: ignore[arg-type]
    for _ in range(6):
        m, k, n = (int(rng.choice(SIZES)) for _ in range(3))
        if rng.random() < 0.15:
            m, k, n = [(700, 40, 9), (9, 1300, 70), (330, 17, 300), (3, 40, 1500)][rng.integers(4)]
        b0, b1 = (int(rng.integers(1, 4)) for _ in range(2))
        a, b = random(rng, (b0, b1, m, k), dtype), random(rng, (b0, b1, k, n), dtype)
        if rng.random() < 0.4:
            b = b[:, :1] if rng.random() < 0.5 else b[:1, :1]
        elif rng.random() < 0.2:
            a = a[:1]
        a, b = strange(rng, a), strange(rng, b)
        out = strange(rng, np.full((b0, b1, m, n), 77).astype(dtype))
        threads, mode = int(rng.integers(1, 5)), str(rng.choice(["serial", "reverse", "threads"]))
        run(lib, a, b, out, threads=threads, mode=mode, scratch=int(rng.choice([0, 100_000, 8_000_000])))
        check(out, expected(a, b))


@pytest.mark.parametrize("m,n", [(4, 5), (1, 1), (17, 70)])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "c8"])
def test_long_reduction(lib: h.KernelLibrary, dtype: str, m: int, n: int) -> None:
    rng = np.random.default_rng(m)
    a, b = random(rng, (1, 1, m, 10_007), np.dtype(dtype)), random(rng, (1, 1, 10_007, n), np.dtype(dtype))
    results = []
    for threads, mode in [(1, "serial"), (2, "threads"), (5, "reverse")]:
        out = np.zeros((1, 1, m, n), dtype)
        run(lib, a, b, out, threads=threads, mode=mode, scratch=32 << 20)
        results.append(out)
        if dtype == "i4":
            np.testing.assert_array_equal(out, expected(a, b))
        else:  # sums of 10007 terms: relative to the size of the terms, not of their sum
            assert np.abs(out - expected(a, b)).max() <= (1e-12 if dtype == "f8" else 1e-5) * 10_007**0.5 * 4
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_threads_do_not_change_results(lib: h.KernelLibrary, packed: bool) -> None:
    rng = np.random.default_rng(5)
    a, b = random(rng, (1, 1, 301, 777), np.dtype("f4")), random(rng, (1, 1, 777, 523), np.dtype("f4"))
    results = set()
    for threads, mode in [(1, "serial"), (2, "threads"), (3, "reverse"), (16, "reverse")]:
        out = np.zeros((1, 1, 301, 523), np.float32)
        if packed:
            p = pack_gemm_b(b[0, 0], panel_width(DType.f32, lib.vlen))
            lib.call("effc_matmul_packed_f32", [a, p], [out], [1, 777, 523, 0, 0, 0], threads=threads, mode=mode,
                     thread_scratch=thread_scratch(DType.f32, lib.vlen))  # fmt: skip
        else:
            run(lib, a, b, out, threads=threads, mode=mode, scratch=8 << 20)
        results.add(out.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", BF16])
@pytest.mark.parametrize("m", [1, 2, 3, 5, 11, 160])
def test_packed(lib: h.KernelLibrary, dtype: Any, m: int) -> None:
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(m)
    for k, n, batches in [(0, 5, 1), (1, 1, 1), (700, 257, 1), (33, 400, 1), (64, 64, 1), (20, 70, 6)]:
        a = strange(rng, random(rng, (2, 3, m, k), dtype))
        b = random(rng, (batches, k, n), dtype)
        packed = pack_gemm_b(b, panel_width(DType.from_np(dtype), lib.vlen), 2 if dtype == BF16 else 1)
        out = np.full((2, m, 3, n), 9).astype(dtype).swapaxes(1, 2)
        lib.call(
            f"effc_matmul_packed_{kernel_name(dtype)}", [a, packed], [out], [batches, k, n, 0, 0, 0],
            threads=3, mode="reverse", thread_scratch=thread_scratch(accumulator(dtype), lib.vlen),
        )  # fmt: skip
        check(out, expected(a, b if batches == 1 else b.reshape(2, 3, k, n)))


def test_packed_header_is_checked(lib: h.KernelLibrary) -> None:
    b = np.ones((8, 9), np.float32)
    a, out = np.ones((1, 1, 2, 8), np.float32), np.zeros((1, 1, 2, 9), np.float32)
    good = pack_gemm_b(b, panel_width(DType.f32, lib.vlen))
    for at in (0, 8, 12, 16, 20, 24, 32, 40, 56):
        bad = good.copy()
        bad[at] ^= 1
        with pytest.raises(h.KernelError, match="layout"):
            lib.call("effc_matmul_packed_f32", [a, bad], [out], [1, 8, 9, 0, 0, 0],
                     thread_scratch=thread_scratch(DType.f32, lib.vlen))  # fmt: skip
    with pytest.raises(h.KernelError, match="scratch"):
        lib.call("effc_matmul_packed_f32", [a, good], [out], [1, 8, 9, 0, 0, 0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 70, 40, 130), (2, 3, 7, 600, 33), (2, 1, 9, 8, 7), (1, 3, 9, 8, 7), (1, 1, 1, 64, 300), (1, 1, 3, 5000, 4)],
)
def test_epilogue(lib: h.KernelLibrary, shape: tuple[int, ...], packed: bool) -> None:
    """relu(acc * 0.5 + bias[n] + residual[b0, b1, m, n]) as a hand-written epilogue; a bias shared by the batches."""
    b0, b1, m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = random(rng, (b0, b1, m, k), np.dtype("f4")), random(rng, (1, 1, k, n), np.dtype("f4"))
    bias = np.broadcast_to(random(rng, (n,), np.dtype("f4")), (b0, b1, m, n))
    residual = random(rng, (b0, b1, m, n), np.dtype("f4"))
    want = np.maximum(expected(a, b) * 0.5 + bias + residual, 0)
    out = np.full((b0, b1, m, n), np.nan, np.float32)
    other = pack_gemm_b(b[0, 0], panel_width(DType.f32, lib.vlen)) if packed else b
    lib.call(
        "effc_matmul_packed_f32" if packed else "effc_matmul_f32", [a, other, bias, residual], [out],
        [1, k, n, 0, 0, 0] if packed else [0, 0, 0], n_own=2, epilogue="test_epilogue_bias_relu", threads=3,
        mode="reverse", scratch=8 << 20, thread_scratch=thread_scratch(DType.f32, lib.vlen),
    )  # fmt: skip
    check(out, want)


def test_nan_and_inf(lib: h.KernelLibrary) -> None:
    """Padding never meets the data: a NaN spreads along its row or column and nowhere else."""
    a, b = np.ones((1, 1, 9, 20), np.float32), np.ones((1, 1, 20, 70), np.float32)
    a[0, 0, 3, 5], b[0, 0, 7, 69], a[0, 0, 8, 19] = np.nan, np.inf, -np.inf
    out = np.zeros((1, 1, 9, 70), np.float32)
    run(lib, a, b, out)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(out, np.matmul(a, b))


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", BF16])
@pytest.mark.parametrize("kr", [1, 2, 4])
@pytest.mark.parametrize("nr", [16, 64])
def test_unpack_inverts_pack(dtype: Any, nr: int, kr: int) -> None:
    rng = np.random.default_rng(nr)
    for shape in [(5, 7), (1, 1), (3, 0), (0, 3), (3, 64), (2, 9, 130), (33, 16)]:
        b = random(rng, shape, np.dtype(dtype))
        back = unpack_gemm_b(pack_gemm_b(b, nr, kr))
        assert back.dtype == b.dtype
        assert back.tobytes() == b.tobytes() and back.shape == (b.shape if b.ndim == 3 else (1, *b.shape))
    packed = pack_gemm_b(random(rng, (5, 7), np.dtype(dtype)), nr, kr)
    for damaged in (packed[:10], packed[:-1], np.concatenate([packed[:-1], packed[-1:] ^ 1]), packed[::-1].copy()):
        with pytest.raises(PackingError):
            unpack_gemm_b(damaged)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", BF16, "i4", "i8", "c8"])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_few_rows_against_rows(lib: h.KernelLibrary, dtype: Any, m: int) -> None:
    """The right-hand side's k is contiguous (x @ w.T of weights that were not packed): dot products."""
    rng = np.random.default_rng(m)
    for k, n in [(64, 1), (65, 3), (700, 70), (1031, 9)]:
        a = random(rng, (1, 2, m, k), np.dtype(dtype))
        b = random(rng, (1, 2, n, k), np.dtype(dtype)).swapaxes(2, 3)
        out = np.full((1, 2, m, n), 9).astype(dtype)
        run(lib, a, b, out, threads=3, mode="reverse")
        check(out, expected(a, b))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("m", [13, 55, 200])
@pytest.mark.parametrize("n", [1024, 1030])
def test_rows_of_whole_pages(lib: h.KernelLibrary, dtype: str, m: int, n: int) -> None:
    """Several blocks of the reduction, B's k contiguous: sums stay in scratch where rows of C lie whole pages apart,
    with the same result bit for bit; nothing is written between the rows."""
    rng = np.random.default_rng(3)
    a, b = random(rng, (1, 1, m, 1100), np.dtype(dtype)), random(rng, (1, 1, n, 1100), np.dtype(dtype)).swapaxes(2, 3)
    results = []
    for row in (2048, 2048 + 16):
        whole = np.full((1, 1, m, row), 7, dtype)
        run(lib, a, b, whole[..., :n], mode="threads", threads=2)
        assert (whole[..., n:] == 7).all()
        results.append(whole[..., :n])
    check(results[0], expected(a, b))
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("blocking", [(1, 1, 1), (7, 2, 40), (64, 1, 16), (100, 3, 48), (9000, 96, 1000), (0, 5, 0)])
@pytest.mark.parametrize("shape", [(1, 1, 61, 777, 71), (1, 2, 40, 130, 33), (1, 1, 1, 300, 50), (1, 1, 5, 4200, 9)])
def test_any_sizes_of_blocks(
    lib: h.KernelLibrary, shape: tuple[int, ...], blocking: tuple[int, int, int], packed: bool
) -> None:
    """Sizes that the cost model may choose, and odd ones: the product is the same, whatever the threads."""
    b0, b1, m, k, n = shape
    rng = np.random.default_rng(1)
    a, b = random(rng, (b0, b1, m, k), np.dtype("f4")), random(rng, (1, 1, k, n), np.dtype("f4"))
    sizes = Blocking(*blocking)
    other = pack_gemm_b(b[0, 0], panel_width(DType.f32, lib.vlen)) if packed else b
    results = set()
    for threads, mode in ((1, "serial"), (3, "reverse"), (2, "threads")):
        out = np.full((b0, b1, m, n), np.nan, np.float32)
        lib.call(
            "effc_matmul_packed_f32" if packed else "effc_matmul_f32", [a, other], [out],
            [1, k, n, *sizes.attrs] if packed else sizes.attrs, threads=threads, mode=mode, scratch=8 << 20,
            thread_scratch=room(lib, a, b, sizes),
        )  # fmt: skip
        check(out, expected(a, b))
        results.add(out.tobytes())
    assert len(results) == 1


def test_sizes_of_blocks_that_are_none(lib: h.KernelLibrary) -> None:
    a, b, out = np.ones((1, 1, 2, 3), np.float32), np.ones((1, 1, 3, 4), np.float32), np.zeros((1, 1, 2, 4), np.float32)
    for bad in ([-1, 0, 0], [0, 97, 0], [0, 0, -5], [0, 0]):
        with pytest.raises(h.KernelError, match="sizes of a block"):
            lib.call("effc_matmul_f32", [a, b], [out], bad, thread_scratch=thread_scratch(DType.f32, lib.vlen))
    big = Blocking(4096, 96, 4096)
    need = room(lib, a, b, big)
    assert need < thread_scratch(DType.f32, lib.vlen) < thread_scratch(DType.f32, lib.vlen, big)
    lib.call("effc_matmul_f32", [a, b], [out], big.attrs, thread_scratch=need)
    check(out, expected(a, b))
    with pytest.raises(h.KernelError, match="scratch"):
        lib.call("effc_matmul_f32", [a, b], [out], big.attrs, thread_scratch=need - 64)


def test_candidates_fit_their_limits_and_differ() -> None:
    for rows, k, n in ((1, 64, 32000), (128, 384, 1536), (3000, 96, 70), (7, 5000, 9)):
        ways = gemm_candidates(rows, k, n, DType.f32, 32)
        assert ways[0] == Blocking() and len(set(ways)) == len(ways)
        for w in ways[1:]:
            depth = -(-k // -(-k // w.steps))
            assert depth * 16 * 4 <= 96 << 10 and min(w.rows, rows) * depth * 4 <= 2 * (384 << 10)
