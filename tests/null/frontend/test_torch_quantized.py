"""PyTorch's quantized_decomposed operators: as eager computes them, and products of bytes where they surround one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines the operators

import effc

Q = torch.ops.quantized_decomposed


class Linear(torch.nn.Module):
    """A linear layer between quantized tensors; its weights are i8 with a scale for each row."""

    def __init__(self, inner: int = 70, outer: int = 33) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.register_buffer("w", torch.randint(-128, 128, (outer, inner), generator=g).to(torch.int8))
        self.register_buffer("s", torch.rand(outer, generator=g) * 0.01 + 0.001)
        self.register_buffer("z", torch.zeros(outer, dtype=torch.int64))
        self.register_buffer("b", torch.randn(outer, generator=g))

    def forward(self, x: Any) -> Any:
        q = Q.quantize_per_tensor(x, 0.02, 120, 0, 255, torch.uint8)
        d = Q.dequantize_per_tensor(q, 0.02, 120, 0, 255, torch.uint8)
        w = Q.dequantize_per_channel(self.w, self.s, self.z, 0, -128, 127, torch.int8)
        y = torch.nn.functional.relu(torch.nn.functional.linear(d, w, self.b))
        return Q.quantize_per_tensor(y, 0.05, -100, -128, 127, torch.int8)


@pytest.mark.parametrize("shape", [(5, 70), (2, 9, 70)])
def test_linear(shape: tuple[int, ...]) -> None:
    model = Linear()
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 2
    m = effc.compile(model, (x,))
    stats = m.report["entries"]["main"]["passes"]["stats"]
    assert stats["form_quantized.matmul"] == 1 and stats["fuse_epilogues.qmatmul"] == 1
    got, want = m(x), model(x)
    assert got.dtype == want.dtype and want.to(torch.int32).unique().numel() > 20
    assert (got.to(torch.int32) - want.to(torch.int32)).abs().max() <= 1


def test_alone() -> None:
    """Each operator without a product is eager's, bit for bit."""

    class All(torch.nn.Module):
        def forward(self, x: Any, s: Any, z: Any, ss: Any, zz: Any) -> Any:
            a = Q.quantize_per_tensor(x, s, z, -128, 127, torch.int8)
            b = Q.quantize_per_channel(x, ss, zz, 1, 0, 255, torch.uint8)
            return (
                a,
                b,
                Q.dequantize_per_tensor(a, s, z, -128, 127, torch.int8),
                Q.dequantize_per_channel(b, ss, zz, 1, 0, 255, torch.uint8),
            )

    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)) * 3
    args = (x, torch.tensor(0.05), torch.tensor(3), torch.rand(6) * 0.1 + 0.01, torch.arange(6) * 40)
    m = effc.compile(All(), args)
    for got, want in zip(m(*args), All()(*args), strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want)
