"""The pooling kernel against PyTorch: numbers of channels that blocks leave over, and channels that are part of a wider
tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conv_cases import channels_last
from kernel_harness import KernelLibrary, available_isas

torch = pytest.importorskip("torch")
F = torch.nn.functional


@pytest.fixture(scope="module", params=available_isas())
def lib(request: Any) -> KernelLibrary:
    return KernelLibrary(["pool_f32.cpp", "pool_f64.cpp"], request.param)


@pytest.mark.parametrize("channels", [2, 8, 16, 24, 27, 32, 59, 64, 123])
@pytest.mark.parametrize("kind", ["max", "indices", "avg"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_channels_innermost(lib: KernelLibrary, channels: int, kind: str, dtype: Any) -> None:
    rng = np.random.default_rng(channels)
    for n, (h, w), kernel, stride, pad in (
        (2, (12, 70), 2, 2, 0), (1, (7, 9), 3, 2, 1), (1, (5, 40), 3, 1, 1), (1, (1, 1), 3, 1, 1),
        (1, (5, 7), 100, 100, 50),
    ):  # fmt: skip
        wide = channels_last(rng.standard_normal((n, channels + 5, h, w)).astype(dtype))
        if kind != "avg":
            wide[rng.random(wide.shape) < 0.01] = np.nan
        x = wide[:, 3 : 3 + channels]  # memory ends with the last pixel's: no read may go beyond
        t = torch.from_numpy(np.ascontiguousarray(x))
        if kind == "avg":
            want = [F.avg_pool2d(t.double(), kernel, stride, pad, count_include_pad=False).to(t.dtype)]
        else:
            want = list(F.max_pool2d(t, kernel, stride, pad, return_indices=True))[: 1 + (kind == "indices")]
        outs = [channels_last(np.zeros(tuple(y.shape), y.numpy().dtype)) for y in want]
        three = [(1, kernel, kernel), (1, stride, stride), (0, pad, pad), (0, pad, pad), (1, 1, 1)]
        attrs = [int(kind != "avg"), 0, 0, 0, *(v for t3 in three for v in t3), 1, *want[0].shape[2:]]
        for threads in (1, 3):
            lib.call(
                f"effc_pool_f{8 * np.dtype(dtype).itemsize}", [x], outs, attrs=attrs, threads=threads, mode="threads"
            )
            for got, expected in zip(outs, want, strict=True):
                np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6, atol=1e-6)
