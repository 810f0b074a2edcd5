"""Pointwise and depthwise convolution as one kernel, dealt by channels: equal, bit for bit, to the two it replaces,
and right against eager."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import effc
from effc.passes.fuse import pairs
from tests.conformance.test_conv_chain import Block, Twice, slopes, stats

BOTH = ("fuse_chains", "fuse_pairs")


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs are formed for few channels too; the rules decide, not the cost model."""
    monkeypatch.setenv("EFFC_COST_MODEL", "0")
    monkeypatch.setattr(pairs, "CHANNELS", 1)


CASES = {
    "3x3": (Block(16, 96, 24, 3, 1, residual=False), (1, 16, 14, 14)),
    "5x5, stride 2, three images": (Block(24, 70, 40, 5, 2), (3, 24, 13, 18)),
    "channels that are no vectors": (Block(5, 13, 7, 3, 1), (2, 5, 7, 9)),
    "dilation, no bias, no clamp": (Block(8, 40, 8, 3, 1, dilation=2, act=lambda x: x, bias=False), (1, 8, 15, 12)),
    "hard swish": (Block(12, 70, 24, 3, 1, act=torch.nn.functional.hardswish), (2, 12, 9, 11)),
    "silu, stride 2": (Block(12, 96, 24, 5, 2, act=torch.nn.functional.silu), (1, 12, 14, 13)),
    "window larger than the image": (Block(8, 24, 8, 5, 1), (2, 8, 2, 3)),
    "much padding": (Block(8, 24, 8, 3, 2, padding=4), (1, 8, 6, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_kernels_it_replaces(name: str) -> None:
    net, shape = CASES[name]
    torch.manual_seed(len(name))
    net.eval()
    x = torch.randn(shape)
    x[0, 1, shape[2] // 2, 1] = float("nan") if "vectors" in name else 40.0
    apart = effc.compile(net, (x,), disable_passes=BOTH)
    want = apart(x)
    assert "effc_conv_pair_f32" not in apart.report["entries"]["main"]["kernels"]
    with torch.no_grad():
        real = net(x)
    np.testing.assert_array_equal(want.isnan(), real.isnan())
    fine = ~real.isnan()
    assert (want - real)[fine].abs().max() <= 1e-5 * real[fine].abs().max()
    for threads in (1, 2, 5):
        m = effc.compile(net, (x,), num_threads=threads)
        assert stats(m)["fuse_pairs.formed"] == 1 and "fuse_chains.formed" not in stats(m)
        assert m.report["entries"]["main"]["kernels"]["effc_conv_pair_f32"] == 1
        for y in (x, x.to(memory_format=torch.channels_last)):
            np.testing.assert_array_equal(m(y).numpy(), want.numpy())


def test_dynamic_batch() -> None:
    net = Block(16, 64, 24, 3, 2).eval()
    m = effc.compile(net, (torch.randn(3, 16, 9, 10),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    assert stats(m)["fuse_pairs.formed"] == 1
    for n in (1, 7, 64):
        x = torch.randn(n, 16, 9, 10)
        with torch.no_grad():
            want = net(x)
        assert (m(x) - want).abs().max() <= 1e-5 * want.abs().max()


def test_what_is_left_apart_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def reasons(net: torch.nn.Module, x: torch.Tensor, **options: Any) -> str:
        m = effc.compile(net.eval(), (x,), selftest=False, **options)
        assert "fuse_pairs.formed" not in stats(m)
        return " ".join(str(d) for d in m.report["entries"]["main"]["passes"]["declined"])

    def block() -> Block:  # new weights: nothing comes from a cache of models
        return Block(8, 24, 8, 3, 1)

    x = torch.randn(1, 8, 12, 12)
    prelu = Block(8, 24, 8, 3, 1, act=slopes(24))
    assert "its epilogue is more than a bias, a clamp and a function" in reasons(prelu, x)
    height = {2: torch.export.Dim("h", min=4, max=64)}
    assert "sizes of its images are not constant" in reasons(block(), x, dynamic_shapes=(height,))
    assert "used elsewhere" in reasons(Twice(8, 24, 8, 3, 1), x)
    monkeypatch.setattr(pairs, "PIXELS", 100)
    assert "images of 144 pixels and 8 channels" in reasons(block(), x)
    monkeypatch.setattr(pairs, "PIXELS", 400)
    monkeypatch.setattr(pairs, "CHANNELS", 32)
    assert "only 24 channels to deal" in reasons(block(), x)
