"""kernels/gemm_strassen.hpp against float64, called alone, and chosen by the compiler."""

from __future__ import annotations

from typing import Any

import kernel_harness as h
import numpy as np
import pytest
import torch

import effc
from effc.backends.cpu.packing import strassen
from effc.backends.cpu.packing.gemm import pack_gemm_b, panel_width, thread_scratch
from effc.ir.dtypes import DType

KERNEL = "effc_matmul_strassen_f32"
EPILOGUE = r"""
#include "effc_kernel.h"
/* C += relu(acc + bias) + residual. */
extern "C" __attribute__((visibility("default"))) void strassen_epilogue(
    const effc_call* call, int64_t b0, int64_t b1, int64_t m0, int64_t m1, int64_t n0, int64_t n1, const void* acc,
    int64_t ld) {
  const effc_tensor &bias = call->in[2], &rest = call->in[3], &out = call->out[0];
  (void)b0, (void)b1;
  for (int64_t i = m0; i < m1; ++i)
    for (int64_t j = n0; j < n1; ++j) {
      const float x = ((const float*)acc)[(i - m0) * ld + j - n0] + ((const float*)bias.data)[j];
      float* to = (float*)out.data + i * out.strides[2] + j;
      *to += (x > 0 ? x : 0) + ((const float*)rest.data)[i * rest.strides[2] + j];
    }
}
"""


@pytest.fixture(scope="module", params=h.available_isas())
def lib(request: Any, tmp_path_factory: Any) -> h.KernelLibrary:
    source = tmp_path_factory.mktemp("strassen") / "epilogue.cpp"
    source.write_text(EPILOGUE)
    return h.KernelLibrary(["gemm_strassen.cpp", "gemm_f32.cpp"], request.param, [source])


def run(lib: h.KernelLibrary, kernel: str, a: Any, b: Any, out: Any, more: Any = (), **options: Any) -> None:
    (k, n), nr = b.shape, panel_width(DType.f32, lib.vlen)
    own = strassen.thread_scratch(a.shape[2], k, n, nr)
    assert isinstance(own, int)
    room = max(own, thread_scratch(DType.f32, lib.vlen))
    lib.call(kernel, [a, pack_gemm_b(b, nr), *more], [out], [1, k, n, 0, 0, 0], n_own=2, thread_scratch=room, **options)


def operands(m: int, k: int, n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(m + k + n)
    return rng.standard_normal((1, 1, m, k), np.float32), rng.standard_normal((k, n), np.float32)


# Even and odd rows and steps, one block of the reduction and several, a last panel that is not full, several blocks of
# rows, rows whole pages apart, one step of a half, a number of panels that leaves the product to the ordinary kernel.
SHAPES = [
    (96, 64, 64), (97, 65, 128), (130, 576, 128), (131, 577, 120), (230, 1153, 192), (333, 2, 320), (451, 385, 896),
    (128, 1024, 1024), (98, 3, 31), (100, 70, 96), (50, 64, 64), (100, 300, 40),
]  # fmt: skip


@pytest.mark.parametrize("m,k,n", SHAPES)
def test_product_and_threads(lib: h.KernelLibrary, m: int, k: int, n: int) -> None:
    a, b = operands(m, k, n)
    want = a.astype(np.float64) @ b
    results = []
    for threads, mode in ((1, "serial"), (2, "threads"), (3, "reverse")):
        out = np.full((1, 1, m, n), np.nan, np.float32)
        run(lib, KERNEL, a, b, out, threads=threads, mode=mode)
        results.append(out)
    assert np.abs(results[0] - want).max() <= 4e-6 * np.abs(want).max()
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    ordinary = np.empty_like(results[0])
    run(lib, "effc_matmul_packed_f32", a, b, ordinary)
    fits = m >= strassen.LEAST_ROWS and -(-n // panel_width(DType.f32, lib.vlen)) % 2 == 0
    assert (results[0].tobytes() != ordinary.tobytes()) == fits  # it ran: sums round differently


@pytest.mark.parametrize("m,k,n", [(128, 384, 256), (131, 700, 250), (300, 1300, 512)])
def test_epilogue_and_strides(lib: h.KernelLibrary, m: int, k: int, n: int) -> None:
    a, b = operands(m, k, n)
    rng = np.random.default_rng(1)
    bias, rest = rng.standard_normal((1, 1, 1, n), np.float32), rng.standard_normal((1, 1, m, n), np.float32)
    wide = np.zeros((1, 1, m, k + 5), np.float32)[..., :k]
    wide[:] = a
    columns = np.ascontiguousarray(a.swapaxes(2, 3)).swapaxes(2, 3)
    product = a.astype(np.float64) @ b
    want = np.maximum(product + bias, 0) + rest
    for left in (a, wide, columns):
        results = []
        for threads, mode in ((1, "serial"), (3, "reverse")):
            out = np.zeros((1, 1, m, n + 3), np.float32)[..., :n]  # each result is asked for once: they are added to it
            run(lib, KERNEL, left, b, out, [bias, rest], epilogue="strassen_epilogue", threads=threads, mode=mode)
            assert np.abs(out - want).max() <= 4e-6 * np.abs(product).max()
            results.append(out.copy())
        assert results[0].tobytes() == results[1].tobytes()
        plain = np.zeros((1, 1, m, 2 * n), np.float32)[..., ::2]  # columns that are not contiguous
        run(lib, KERNEL, left, b, plain)
        assert np.abs(plain - product).max() <= 4e-6 * np.abs(product).max()


def test_bad_calls(lib: h.KernelLibrary) -> None:
    a, b = operands(128, 384, 256)
    out = np.zeros((1, 1, 128, 256), np.float32)
    packed = pack_gemm_b(b, panel_width(DType.f32, lib.vlen))
    with pytest.raises(h.KernelError, match="scratch"):
        lib.call(KERNEL, [a, packed], [out], [1, 384, 256, 0, 0, 0], n_own=2)
    packed[0] ^= 1
    with pytest.raises(h.KernelError, match="layout"):
        lib.call(KERNEL, [a, packed], [out], [1, 384, 256, 0, 0, 0], n_own=2, thread_scratch=1 << 21)


@pytest.mark.parametrize("rows,taken", [(128, True), (129, False), (90, False), (300, False)])
def test_chosen_by_rule(rows: int, taken: bool) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(384, 768), torch.nn.GELU()).eval()
    x = torch.randn(rows, 384, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = net.double()(x.double()).numpy()
    net = net.float()
    for options, on in (({"num_threads": 1}, True), ({"num_threads": 2}, False),
                        ({"num_threads": 1, "disable_passes": ("strassen",)}, False)):  # fmt: skip
        c = effc.compile(net, (x,), target="cpu:x86-64-v3", **options)
        main = c.report["entries"]["main"]
        assert main["kernels"].get(KERNEL, 0) == int(on and taken)
        chosen = [d for d in main["decisions"] if d["kernel"] == KERNEL]
        assert [d["chosen"] for d in chosen] == ["Strassen-Winograd, one level"] * int(on and taken)
        assert np.abs(c(x).numpy() - want).max() <= 1e-5 * np.abs(want).max()
