"""Products of bfloat16 and float16 (gemm_half.cpp, dot_bf16.hpp) in every variant against numpy in f64: AVX2 as it is,
AVX512-BF16 and AMX-BF16 through their software twins (twin_x86.hpp)."""

from __future__ import annotations

import itertools
import sys
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_harness as h

from effc.backends.cpu import microkernels
from effc.backends.cpu.packing.gemm import pack_gemm_b, thread_scratch
from effc.backends.cpu.target import CpuTarget
from effc.ir.dtypes import DType

Array = np.ndarray[Any, Any]
BF16, F16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
TWIN = Path(__file__).parent / "twin_x86.hpp"
EPILOGUE = Path(__file__).parent / "gemm_epilogue.cpp"
VARIANTS = {  # name: the twin that makes it, the target whose layouts it takes
    "fma": ("", CpuTarget("x86-64-v3")),
    "avx512-bf16": ("BF16", CpuTarget("x86-64-v4", ("avx512bf16",))),
    "amx-bf16": ("AMX_BF16", CpuTarget("x86-64-v4", ("amx_tile", "amx_bf16"))),
}
UNIT = {BF16: 2.0**-8, F16: 2.0**-11}  # of a rounding


class Variant:
    def __init__(self, name: str) -> None:
        twin, self.target = VARIANTS[name]
        self.micro = microkernels.choose(self.target, "matmul", DType.bf16)
        assert self.micro.name == name
        flags = []
        if twin:  # the library's vectors of 64 bytes, which the compiler makes of two
            flags = ["-include", str(TWIN), f"-DEFFC_TWIN_{twin}", "-Wno-psabi", "-UEFFC_VLEN", "-DEFFC_VLEN=64"]
            flags += ["-O1", f"-DTWIN_VERSION={zlib.crc32(TWIN.read_bytes())}"]
        self.lib = h.KernelLibrary(["gemm_half.cpp"], "v3", [EPILOGUE], flags)

    def pack(self, b: Array) -> Array:
        dtype = DType.from_np(b.dtype)
        micro = microkernels.choose(self.target, "matmul", dtype)
        return pack_gemm_b(b, micro.nr(dtype, self.target.vlen), micro.kr)

    def packed(self, a: Array, b: Array, **kw: Any) -> Array:
        """a [b0, b1, M, K], b [batches, K, N]."""
        (batches, k, n), dtype = b.shape, DType.from_np(a.dtype)
        out = np.full((*a.shape[:3], n), 77).astype(a.dtype)
        self.lib.call(f"effc_matmul_packed_{dtype}", [a, self.pack(b)], [out], [batches, k, n, 0, 0, 0],
                      thread_scratch=thread_scratch(DType.f32, self.target.vlen), **kw)  # fmt: skip
        return out

    def plain(self, a: Array, b: Array, **kw: Any) -> Array:
        out = np.full((*np.broadcast_shapes(a.shape[:2], b.shape[:2]), a.shape[2], b.shape[3]), 77).astype(a.dtype)
        kw.setdefault("scratch", 1 << 20)
        self.lib.call(f"effc_matmul_{DType.from_np(a.dtype)}", [a, b], [out], [0, 0, 0],
                      thread_scratch=thread_scratch(DType.f32, self.target.vlen), **kw)  # fmt: skip
        return out


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: Any) -> Variant:
    return Variant(request.param)


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return rng.standard_normal(shape).astype(dtype)


def check(out: Array, a: Array, b: Array, where: str = "") -> None:
    """One rounding of the result, and f32 roundings of a sum of k terms."""
    want = microkernels.reference(a, b)
    size = microkernels.reference(np.abs(a), np.abs(b))
    limit = UNIT[out.dtype] * np.abs(want) + 2.0**-23 * max(4, a.shape[-1] ** 0.5) * size
    assert (np.abs(out.astype(np.float64) - want) <= limit).all(), where


def test_every_tile_remainder(variant: Variant) -> None:
    """Rows of up to two tiles, columns of up to two panels, steps around multiples of 2, 4 and 32; float16 where it is
    the variant that this machine runs."""
    rng = np.random.default_rng(1)
    mr, nr = variant.micro.mr, variant.micro.nr(DType.bf16, variant.target.vlen)
    sizes = [(1, 1), (15, 3), (16, 64), (17, 65), (33, 130), (48, 5), (63, 32), (65, 7), (129, 31)]
    for dtype in (BF16, F16) if variant.micro.name == "fma" else (BF16,):
        cases = [*itertools.product([*range(1, 2 * mr + 2), 144, 145], sizes)]
        cases += [(m, (n, k)) for m, k in ((1, 6), (mr, 5), (mr + 1, 3)) for n in range(1, 2 * nr + 2)]
        for m, (n, k) in cases:
            a, b = random(rng, (1, 1, m, k), dtype), random(rng, (1, k, n), dtype)
            check(variant.packed(a, b), a, b, f"{m} {k} {n}")


def test_every_step_of_a_reduction(variant: Variant) -> None:
    rng = np.random.default_rng(2)
    for k in [*range(1, 70), 511, 512, 513, 1023, 1024, 1025, 1026, 2051]:
        a, b = random(rng, (1, 1, 5, k), BF16), random(rng, (1, k, 35), BF16)
        check(variant.packed(a, b), a, b, f"{k}")
        check(variant.plain(a, b[None]), a, b, f"{k}")


def _views(rng: np.random.Generator, x: Array) -> list[Array]:
    """The same values: as they are, columns side by side, backwards, with odd strides, at an odd address."""
    apart = np.zeros((*x.shape[:2], x.shape[2], x.shape[3] + 1), x.dtype)
    apart[..., 1:] = x
    return [
        x,
        np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3),
        np.ascontiguousarray(x[:, :, ::-1, ::-1])[:, :, ::-1, ::-1],
        np.repeat(x, 3, axis=3)[..., ::3],
        apart[..., 1:],
    ]


@pytest.mark.parametrize("m", [1, 3, 4, 5, 17])
def test_strides_and_computed_right_sides(variant: Variant, m: int) -> None:
    rng = np.random.default_rng(m)
    for k, n in [(64, 5), (128, 65), (129, 17), (6, 33), *([(700, 70)] if m < 4 else [])]:
        x, y = random(rng, (2, 3, m, k), BF16), random(rng, (2, 3, k, n), BF16)
        for a, b in itertools.product(_views(rng, x), _views(rng, y)):
            check(variant.plain(a, b, threads=3, mode="reverse", scratch=int(rng.choice([0, 8_000_000]))), x, y)
        for a in _views(rng, x):
            check(variant.packed(a, y.reshape(6, k, n), threads=2, mode="threads"), x, y)
        once = y[:1, :1]
        for b in _views(rng, once):
            check(variant.plain(x, b), x, once)


def test_shared_right_sides(variant: Variant) -> None:
    """Enough rows that B is packed once, for all tasks."""
    rng = np.random.default_rng(7)
    for k, n in [(64, 200), (65, 70)]:
        a, b = random(rng, (1, 1, 500, k), BF16), random(rng, (1, 1, k, n), BF16)
        for x in _views(rng, b):
            check(variant.plain(a, x, scratch=8 << 20, threads=3, mode="threads"), a, b)


def test_split_reductions_and_threads(variant: Variant) -> None:
    """A tiny result of a huge reduction; results do not depend on threads."""
    rng = np.random.default_rng(8)
    for m, k, n in [(1, 20_001, 5), (4, 9000, 40), (130, 777, 300)]:
        a, b = random(rng, (1, 1, m, k), BF16), random(rng, (1, k, n), BF16)
        outs = set()
        for threads, mode in [(1, "serial"), (2, "threads"), (5, "reverse")]:
            for out in (
                variant.packed(a, b, threads=threads, mode=mode, scratch=32 << 20),
                variant.plain(a, b[None], threads=threads, mode=mode, scratch=32 << 20),
            ):
                check(out, a, b)
            outs.add(out.tobytes())
        assert len(outs) == 1


def test_nan_and_inf_stay_in_their_rows_and_columns(variant: Variant) -> None:
    """Zeros that fill up odd reductions and panels never meet the data."""
    for k in (20, 21, 33):
        a, b = np.ones((1, 1, 19, k), BF16), np.ones((1, k, 70), BF16)
        a[0, 0, 3, 5], b[0, 7, 69], a[0, 0, 18, k - 1] = np.nan, np.inf, -np.inf
        want = np.full((19, 70), float(k))
        want[3], want[:, 69], want[18] = np.nan, np.inf, -np.inf
        want[3, 69] = want[18, 69] = np.nan
        for out in (variant.packed(a, b), variant.plain(a, b[None])):
            np.testing.assert_array_equal(out[0, 0].astype(np.float64), want)
    a = np.full((1, 1, 4, 3), np.inf, BF16)  # beyond the odd end lies the next row, or nothing
    np.testing.assert_array_equal(variant.packed(a, np.ones((1, 3, 2), BF16)).astype(float), np.inf)


def test_denormals_are_values_or_zeros(variant: Variant) -> None:
    """The instructions for pairs take denormals as zeros; the loss is below the smallest normal number a term."""
    tiny = np.array(2.0**-130, BF16)
    a, b = np.full((1, 1, 3, 8), tiny), np.full((1, 8, 5), 2.0**20, BF16)
    got = variant.packed(a, b).astype(np.float64)
    np.testing.assert_array_equal(got, 8 * 2.0**-110 if variant.micro.name == "fma" else 0.0)


def test_epilogue(variant: Variant) -> None:
    rng = np.random.default_rng(9)
    for m, k, n in [(1, 64, 300), (37, 600, 33), (70, 41, 130)]:
        a, b = random(rng, (1, 1, m, k), BF16), random(rng, (1, k, n), BF16)
        bias, residual = (rng.standard_normal((1, 1, m, n)).astype(np.float32) for _ in range(2))
        out = np.full((1, 1, m, n), np.nan, np.float32)
        variant.lib.call("effc_matmul_packed_bf16", [a, variant.pack(b), bias, residual], [out], [1, k, n, 0, 0, 0],
                         n_own=2, epilogue="test_epilogue_bias_relu", threads=3, mode="reverse",
                         thread_scratch=thread_scratch(DType.f32, variant.target.vlen))  # fmt: skip
        want = np.maximum(microkernels.reference(a, b) * 0.5 + bias + residual, 0)
        assert np.abs(out - want).max() <= 1e-5 * np.abs(want).max()


def test_other_layouts_are_refused(variant: Variant) -> None:
    a, out = np.ones((1, 1, 2, 8), BF16), np.zeros((1, 1, 2, 9), BF16)
    for nr, kr in ((16, 1), (variant.micro.nr(DType.bf16, variant.target.vlen), 1), (8, 2)):
        with pytest.raises(h.KernelError, match="layout"):
            variant.lib.call("effc_matmul_packed_bf16", [a, pack_gemm_b(np.ones((8, 9), BF16), nr, kr)], [out],
                             [1, 8, 9, 0, 0, 0], thread_scratch=1 << 22)  # fmt: skip


def test_halves_are_converted_exactly_and_rounded_to_even() -> None:
    """Every finite f16 comes through a product with 1 as it was, on either side; every product of two with 17 bits
    between them is rounded as numpy does, to denormals and infinities as well."""
    v = Variant("fma")
    bits = np.arange(65536, dtype=np.uint16).view(F16)
    finite, one = bits[np.isfinite(bits)], np.ones((1, 1, 1), F16)
    np.testing.assert_array_equal(v.packed(one[None], finite[None, None])[0, 0, 0], finite)
    np.testing.assert_array_equal(v.packed(finite.reshape(1, 1, -1, 1), one)[0, 0, :, 0], finite)
    for scale in (1.5 + 2.0**-10, 2.0**-9, 2.0**-14 * 1.25, 3.0):
        factor = np.full((1, 1, 1, 1), scale, F16)
        with np.errstate(over="ignore"):
            want = (finite.astype(np.float32) * factor[0, 0, 0, 0].astype(np.float32)).astype(F16)
        np.testing.assert_array_equal(v.packed(factor, finite[None, None])[0, 0, 0], want)
    assert np.isinf(want).any()
    np.testing.assert_array_equal(np.isnan(v.packed(one[None], bits[None, None])[0, 0, 0]), np.isnan(bits))
