"""Epilogues of depthwise convolutions, whose rows are a block of channels: two vectors (a loop of their own), and any
other number of channels; a hardswish with a scale and a shift, as PP-LCNet has it, SiLU in two spellings, and a tanh,
which stays a general loop.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import effc


class Net(nn.Module):
    def __init__(self, channels: int, kernel: int, kind: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 1)
        self.deep = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.deep(self.first(x)) * 3
        if self.kind == "tanh":
            return y * torch.tanh(y) * 0.7 - 0.25
        if self.kind == "silu":
            return y * torch.sigmoid(y) * 0.7 - 0.25
        if self.kind == "silu, divided":
            return y / (1 + torch.exp(-y)) * 0.7 - 0.25
        return y * torch.clamp(y + 3, 0, 6) / 6 * 0.7 - 0.25


CASES = [
    (16, 3, "hardswish"),
    (64, 5, "hardswish"),
    (41, 3, "hardswish"),
    (64, 3, "silu"),
    (41, 3, "silu, divided"),
    (16, 3, "tanh"),
]


@pytest.mark.parametrize(("channels", "kernel", "kind"), CASES)
def test_depthwise_epilogue(channels: int, kernel: int, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(channels)
    net = Net(channels, kernel, kind).eval()
    path = tmp_path / "net.effc"
    x = torch.randn(2, 3, 11, 90)
    effc.compile(net, (x,)).save(path)
    with torch.no_grad():
        want = net.double()(x.double()).numpy()
    one, two = (effc.load(path, num_threads=n)(x).numpy() for n in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - want).max() <= 2e-6 * np.abs(want).max()
    with zipfile.ZipFile(path) as z:
        text = z.read("sources/generated.cpp").decode()
    assert ("n % PAIR == 0" in text) == (kind != "tanh")
    assert ("op::Quotient" in text) == (kind == "hardswish")
    assert ("op::Sigmoid" in text) == kind.startswith("silu")
    assert "op::div(" not in text and "op::exp(" not in text
