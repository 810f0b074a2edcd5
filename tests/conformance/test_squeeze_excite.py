"""Inverted bottlenecks with squeeze and excite (Hu et al., 2018): expanding and depthwise convolution as one kernel
that makes the mean's sums too, the scale in the last convolution's weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import effc
from effc.passes.fuse import chains, pairs
from tests.conformance.test_conv_chain import stats


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains are formed for small images too; the rule decides, not the cost model. No pairs unless a test has them."""
    monkeypatch.setenv("EFFC_COST_MODEL", "0")
    monkeypatch.setattr(chains, "LARGE", 0)
    monkeypatch.setattr(pairs, "PIXELS", 0)


class Block(nn.Module):
    """``first``: kernel and stride of the first convolution; ``after``: what follows the last one."""

    def __init__(
        self, c: int, e: int, o: int, k: int, stride: int, act: Callable[[Any], Any] = F.silu, residual: bool = False,
        first: tuple[int, int] = (1, 1), gate: Callable[[Any], Any] = torch.sigmoid,
        after: Callable[[Any], Any] = lambda x: x,
    ) -> None:  # fmt: skip
        super().__init__()
        self.expand = nn.Conv2d(c, e, first[0], first[1], first[0] // 2)
        self.deep = nn.Conv2d(e, e, k, stride, k // 2, groups=e)
        self.squeeze, self.excite = nn.Conv2d(e, max(1, e // 6), 1), nn.Conv2d(max(1, e // 6), e, 1)
        self.narrow = nn.Conv2d(e, o, 1)
        self.act, self.gate, self.after, self.residual = act, gate, after, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.deep(self.act(self.expand(x))))
        s = self.gate(self.excite(self.act(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.narrow(s * y)
        return self.after(x + y if self.residual else y)


CASES = {
    "silu, stride 2": (Block(16, 96, 24, 3, 2), (1, 16, 31, 29)),
    "5x5, residual, three images": (Block(20, 72, 20, 5, 1, residual=True), (3, 20, 13, 11)),
    "hard swish, channels that are no vectors": (Block(5, 13, 7, 3, 1, F.hardswish, gate=F.hardsigmoid), (2, 5, 10, 9)),
    "blocks of channels": (Block(8, 91, 24, 5, 2, F.relu), (1, 8, 11, 122)),
    "stem, an epilogue after the last": (Block(3, 32, 40, 3, 1, first=(3, 2), after=F.silu), (2, 3, 33, 31)),
}  # fmt: skip


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def kernels(m: Any) -> dict[str, int]:
    found: dict[str, int] = m.report["entries"]["main"]["kernels"]
    return found


@pytest.mark.parametrize("pair", [False, True], ids=["chain", "pair"])
@pytest.mark.parametrize("name", CASES)
def test_a_block(name: str, pair: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kernels beside the two small convolutions: expanding and depthwise, the sums' sum, the last."""
    net, shape = CASES[name]
    pair = pair and net.expand.kernel_size == (1, 1)
    if pair:
        monkeypatch.setattr(pairs, "PIXELS", 1 << 20)
        monkeypatch.setattr(pairs, "CHANNELS", 1)
    torch.manual_seed(len(name) + 100 * pair)
    x = torch.randn(shape) * 2
    net = copy.deepcopy(net).eval()
    for p in net.parameters():  # new weights: nothing comes from a cache of models
        nn.init.uniform_(p, -0.4, 0.4)
    with torch.no_grad():
        want = net(x)
    one = None
    for threads in (1, 2, 5):
        m = effc.compile(net, (x,), num_threads=threads)
        joined = "fuse_pairs.formed" if pair else "fuse_chains.formed"
        assert [stats(m).get(k) for k in (joined, "fuse_sums.formed", "fuse_scales.formed")] == [1, 1, 1]
        ran = kernels(m)
        assert ran["effc_conv_pair_f32" if pair else "effc_conv_chain_f32"] == 1 and ran["effc_conv_f32"] == 3
        assert sum(ran.values()) - ran.get("effc_copy", 0) == 5, ran
        one = m(x) if one is None else one
        assert torch.equal(m(x), one) and error(one, want) <= 1e-5


def test_the_depthwise_result_keeps_its_bits() -> None:
    """Without the sums and the scale a chain that ends in the depthwise convolution is what it replaces."""
    others = ("fuse_sums", "fuse_scales")
    for net, shape in CASES.values():
        x = torch.randn(shape)
        apart = effc.compile(net.eval(), (x,), disable_passes=(*others, "fuse_chains"))
        m = effc.compile(net, (x,), disable_passes=others)
        assert stats(m)["fuse_chains.convs"] == 2 and "fuse_chains.formed" not in stats(apart)
        assert "fuse_sums.formed" not in stats(m) and "fuse_scales.formed" not in stats(m)
        assert torch.equal(m(x), apart(x))


def test_images_of_any_size() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Block(3, 32, 16, 3, 1, first=(3, 2)), Block(16, 72, 24, 5, 2), Block(24, 60, 24, 3, 1)).eval()
    n, h, w = (torch.export.Dim(s, min=1 if s == "n" else 8, max=512) for s in "nhw")
    m = effc.compile(net, (torch.randn(2, 3, 37, 29),), dynamic_shapes=({0: n, 2: h, 3: w},), num_threads=2)
    assert stats(m)["fuse_chains.formed"] == stats(m)["fuse_sums.formed"] == stats(m)["fuse_scales.formed"] == 3
    for shape in ((1, 3, 8, 9), (3, 3, 37, 64), (1, 3, 201, 143), (5, 3, 11, 500)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert error(m(x), net(x)) <= 1e-5


class Elsewhere(nn.Module):
    """What is scaled has another reader too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.Conv2d(24, 8, 1)
        self.d = nn.Conv2d(24, 24, 1)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.b(self.a(x))
        z = y * torch.sigmoid(self.d(y.mean((2, 3), keepdim=True)))
        return self.c(z), z


def test_what_is_read_elsewhere_stays() -> None:
    net, x = Elsewhere().eval(), torch.randn(2, 8, 7, 9)
    m = effc.compile(net, (x,))
    assert "fuse_scales.formed" not in stats(m)
    assert "scaled image" in str(m.report["entries"]["main"]["passes"]["declined"])
    with torch.no_grad():
        for got, want in zip(m(x), net(x), strict=True):
            assert error(got, want) <= 1e-5


@pytest.mark.parametrize("side", [3, 4])
def test_small_images_are_scaled_apart(side: int) -> None:
    net, x = Block(8, 24, 8, 3, 1).eval(), torch.randn(1, 8, side, side)
    m = effc.compile(net, (x,))
    assert stats(m).get("fuse_scales.formed", 0) == (side == 4)
    with torch.no_grad():
        assert error(m(x), net(x)) <= 1e-5
