"""Convolution, depthwise and pointwise convolution as one kernel: equal, bit for bit, to the three it replaces, and
right against eager."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import effc
from effc.ir import dims
from effc.passes.fuse import chains, pairs


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains are formed for small images too; the rule decides, not the cost model."""
    monkeypatch.setenv("EFFC_COST_MODEL", "0")
    monkeypatch.setattr(chains, "LARGE", 0)


class Block(torch.nn.Module):
    """An inverted bottleneck; ``first`` is the kernel and stride of its first convolution, None for a block without."""

    def __init__(
        self, c: int, e: int, o: int, k: int, stride: int, first: tuple[int, int] | None = (1, 1), dilation: int = 1,
        padding: int | None = None, act: Callable[[Any], Any] = torch.nn.functional.relu6, residual: bool = False,
        bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        k1, s1 = first or (1, 1)
        self.expand = torch.nn.Conv2d(c, e, k1, s1, k1 // 2, bias=bias) if first else None
        pad = (k - 1) * dilation // 2 if padding is None else padding
        self.deep = torch.nn.Conv2d(e, e, k, stride, pad, dilation, groups=e, bias=bias)
        self.narrow = torch.nn.Conv2d(e, o, 1, bias=bias)
        self.act, self.residual = act, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else self.act(self.expand(x))
        y = self.narrow(self.act(self.deep(y)))
        return x + y if self.residual else y


def slopes(channels: int) -> torch.nn.PReLU:
    """An activation with an operand of its own."""
    act = torch.nn.PReLU(channels)
    torch.nn.init.uniform_(act.weight)
    return act


def scaled(x: torch.Tensor) -> torch.Tensor:
    """A clamp, of which the function that follows reads more than its result."""
    return x * torch.clamp(x * 0.3 + 0.45, 0, 1) * 0.7 - 0.25


CASES = {
    "expand, 3x3": (Block(8, 48, 12, 3, 1), (2, 8, 14, 17)),
    "stride 2": (Block(16, 96, 24, 3, 2), (1, 16, 31, 29)),
    "5x5, stride 2": (Block(24, 72, 40, 5, 2), (3, 24, 13, 18)),
    "residual": (Block(20, 60, 20, 3, 1, residual=True), (2, 20, 9, 11)),
    "channels that are no vectors": (Block(5, 13, 7, 3, 1), (2, 5, 10, 9)),
    "many output channels": (Block(9, 33, 300, 3, 1), (1, 9, 8, 7)),
    "dilation": (Block(8, 24, 8, 3, 1, dilation=2), (1, 8, 15, 12)),
    "7x7": (Block(8, 16, 8, 7, 1), (1, 8, 11, 13)),
    "no padding": (Block(8, 24, 8, 3, 1, padding=0), (2, 8, 12, 9)),
    "much padding": (Block(8, 24, 8, 3, 2, padding=4), (1, 8, 6, 5)),
    "window larger than the image": (Block(8, 24, 8, 5, 1), (2, 8, 2, 3)),
    "one pixel": (Block(8, 24, 8, 3, 1), (1, 8, 1, 1)),
    "no bias, no clamp": (Block(8, 24, 8, 3, 1, act=lambda x: x, bias=False), (1, 8, 12, 12)),
    "stem before it": (Block(3, 32, 16, 3, 1, first=(3, 2)), (2, 3, 33, 31)),
    "wide stem": (Block(3, 32, 16, 3, 1, first=(3, 2)), (2, 3, 18, 225)),
    "stem of a large window, one channel": (Block(1, 24, 8, 3, 2, first=(7, 1)), (2, 1, 5, 6)),
    "stem of odd panels": (Block(4, 43, 8, 5, 1, first=(5, 2)), (1, 4, 23, 120)),
    "large first window": (Block(12, 32, 16, 3, 2, first=(5, 1)), (1, 12, 17, 16)),
    "blocks of channels": (Block(8, 72, 12, 3, 1), (2, 8, 9, 119)),
    "blocks of channels, stride 2": (Block(8, 91, 24, 5, 2), (1, 8, 11, 122)),
    "hard swish": (Block(16, 80, 24, 5, 2, act=F.hardswish), (2, 16, 15, 13)),
    "hard swish, blocks of channels": (Block(8, 77, 12, 3, 1, act=F.hardswish), (1, 8, 9, 119)),
    "hard swish, stem before it": (Block(3, 16, 16, 3, 1, first=(3, 2), act=F.hardswish), (2, 3, 33, 31)),
    "silu, residual": (Block(20, 60, 20, 3, 1, residual=True, act=F.silu), (2, 20, 9, 11)),
    "scaled hard swish, no first": (Block(40, 40, 24, 5, 1, first=None, bias=False, act=scaled), (1, 40, 7, 13)),
    "no first": (Block(32, 32, 16, 3, 1, first=None), (2, 32, 14, 13)),
    "no first, stride 2": (Block(40, 40, 24, 5, 2, first=None), (1, 40, 15, 13)),
}  # fmt: skip


def stats(m: Any) -> dict[str, int]:
    found: dict[str, int] = m.report["entries"]["main"]["passes"]["stats"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_kernels_it_replaces(name: str) -> None:
    net, shape = CASES[name]
    torch.manual_seed(len(name))
    net.eval()
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    apart = effc.compile(net, (x,), disable_passes=("fuse_chains",))
    want = apart(x)
    with torch.no_grad():
        real = net(x)
    assert "fuse_chains.formed" not in stats(apart)
    assert (want - real).abs().max() <= 1e-5 * real.abs().max()
    for threads in (1, 2, 5):
        m = effc.compile(net, (x,), num_threads=threads)
        assert stats(m)["fuse_chains.formed"] == 1 and stats(m)["fuse_chains.convs"] == 2 + (net.expand is not None)
        for _ in range(2):
            assert torch.equal(m(x), want), threads
    # not channels-last, and a slice of something larger
    m = effc.compile(net, (x,))
    wide = torch.randn((shape[0], shape[1] + 2, shape[2], shape[3] + 3))
    for y in (x.contiguous(), wide[:, 1:-1, :, 2:-1]):
        assert torch.equal(m(y), apart(y))


@pytest.mark.parametrize(("name", "want"), [("blocks of channels", 24), ("blocks of channels, stride 2", 16),
                                            ("stem before it", 32)])  # fmt: skip
def test_channels_of_a_block(name: str, want: int, tmp_path: Path) -> None:
    """Wide rows are made for whole panels of channels at a time."""
    net, shape = CASES[name]
    target = "cpu:x86-64-v3"
    effc.compile(net.eval(), (torch.zeros(shape),), selftest=False, target=target).save(tmp_path / "m.effc")
    with zipfile.ZipFile(tmp_path / "m.effc") as z:
        manifest = json.loads(z.read("manifest.json"))
    (call,) = (c for c in manifest["entries"]["main"]["program"]["code"] if c.get("kernel") == "effc_conv_chain_f32")
    assert call["attrs"][3] == want


def test_dynamic_batch() -> None:
    net = Block(16, 64, 24, 3, 2).eval()
    x = torch.randn(3, 16, 20, 23)
    m = effc.compile(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    assert stats(m)["fuse_chains.formed"] == 1
    for n in (1, 2, 7, 64):
        x = torch.randn(n, 16, 20, 23)
        with torch.no_grad():
            want = net(x)
        assert (m(x) - want).abs().max() <= 1e-5 * want.abs().max()


class Stack(torch.nn.Module):
    """The first layers of MobileNetV2: a stem and blocks with and without stride and residual."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(
            Block(3, 32, 16, 3, 1, first=(3, 2)), Block(16, 96, 24, 3, 2), Block(24, 144, 24, 3, 1, residual=True),
            Block(24, 144, 40, 5, 2, act=F.hardswish),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> Any:
        return self.blocks(x)


def any_image(low: int = 16, high: int = 1024) -> Any:
    dim = torch.export.Dim
    return ({0: dim("n", min=1, max=64), 2: dim("h", min=low, max=high), 3: dim("w", min=low, max=high)},)


@pytest.mark.parametrize("large", [0, 384 << 10])
def test_images_of_any_size(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains whose plan is made of the sizes of a run: the bits of the convolutions apart, also where a step of one row
    does not fit a core's cache (the last two sizes)."""
    monkeypatch.setattr(chains, "LARGE", large)
    torch.manual_seed(0)
    net = Stack().eval()
    x = torch.randn(2, 3, 64, 48)
    apart = effc.compile(net, (x,), dynamic_shapes=any_image(), disable_passes=("fuse_chains",))
    made = [effc.compile(net, (x,), dynamic_shapes=any_image(), num_threads=t) for t in (1, 2)]
    for m in made:
        assert stats(m)["fuse_chains.formed"] == 4 and stats(m)["fuse_chains.convs"] == 12
        assert m.report["entries"]["main"]["kernels"]["effc_conv_chain_f32"] == 4
        assert "effc_conv_dw_f32" not in m.report["entries"]["main"]["kernels"]
    for n, h, w in ((1, 33, 47), (2, 224, 224), (3, 65, 96), (1, 16, 16), (1, 17, 1024), (1, 40, 1023)):
        x = torch.randn(n, 3, h, w)
        want = apart(x)
        with torch.no_grad():
            real = net(x)
        assert (want - real).abs().max() <= 1e-5 * real.abs().max()
        for m in made:
            assert torch.equal(m(x), want), (n, h, w)


def searched(
    first: bool, room: int, channels: int, size: tuple[int, int], source: tuple[int, int], stride: int, reach: int
) -> tuple[int, ...] | None:
    """Rows, part, kept, cols and buffers of a plan by trying all heights of a part."""
    (height, width), (rows_in, width_in) = size, source
    line, out_line, near = 4 * channels * width_in, 4 * channels * width, chains.NEAR // (4 * chains.PANEL * width_in)
    best = None
    least = min(rows_in, max(reach, min(near, reach + stride))) if first else 0
    for most in range(1, height + 1) if room - least * line >= out_line else ():
        part = -(-height // -(-height // most))
        need = (part - 1) * stride + reach
        kept = min(rows_in, need) if first else 0
        rows = (room - kept * line) // out_line
        if rows < part or (best and need > near):
            break
        rows = min(rows, height, max(part, -(-height // 8), -(-chains.STEP // out_line))) // part * part
        best = (rows, part, kept, max(1, chains.NEAR // (4 * (kept or need) * width_in)), kept * line + rows * out_line)
        if part * stride * width_in >= chains.PIXELS or not first:
            break
    return best


def test_the_plan_is_the_best_of_all_heights_of_a_part() -> None:
    """In closed form, of numbers and of symbols. (Here :data:`LARGE` is 0, so that symbols get all the room.)"""
    rng = random.Random(0)
    symbols = dims.symbol("h"), dims.symbol("w")
    found = 0
    for k in range(4000):
        first, stride, channels = rng.random() < 0.8, rng.choice((1, 1, 2, 3)), rng.choice((3, 16, 32, 96, 240, 576))
        reach, limit = rng.choice((1, 2)) * (rng.choice((1, 3, 5, 7)) - 1) + 1, rng.choice((30, 300))
        pad, room = rng.choice((0, reach // 2, reach)), chains.CACHE - rng.choice((0, 1000, 100000, 300000, 600000))
        source = rng.randint(reach, limit), rng.randint(reach, limit)
        rest = source, stride, reach
        size = tuple((d + 2 * pad - reach) // stride + 1 for d in source)
        want = searched(first, room, channels, (size[0], size[1]), *rest)
        made = [chains.plan_of(first, room, channels, (size[0], size[1]), *rest)]
        if k % 50 == 0:
            h, w = ((d + 2 * pad - reach) // stride + 1 for d in symbols)
            made.append(chains.plan_of(first, room, channels, (h, w), symbols, stride, reach))
        for p in made:
            env = dict(zip("hw", source, strict=True))
            got = [dims.evaluate(d, env) for d in (p.rows, p.part, p.kept, p.cols, p.buffers, p.spare)]
            assert (got[5] >= 0) == (want is not None)
            if want is not None:
                assert tuple(got[:5]) == want
                found += 1
    assert found > 2000


def test_nan_and_infinity_stay_where_they_are() -> None:
    net = Block(8, 24, 8, 3, 1).eval()
    x = torch.randn(1, 8, 12, 12)
    x[0, 3, 5, 6], x[0, 1, 9, 2] = float("nan"), float("inf")
    m = effc.compile(net, (x,))
    with torch.no_grad():
        want = net(x)
    assert stats(m)["fuse_chains.formed"] == 1 and want.isnan().any()
    np.testing.assert_array_equal(m(x).isnan(), want.isnan())


def reasons(m: Any) -> str:
    return " ".join(str(d) for d in m.report["entries"]["main"]["passes"]["declined"])


def test_what_is_left_apart_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 8, 12, 12)
    m = effc.compile(Block(8, 24, 8, 3, 1, act=slopes(24)).eval(), (x,))
    assert "fuse_chains.formed" not in stats(m) and "more than a bias, a residual, a clamp and a func" in reasons(m)
    monkeypatch.setattr(chains, "LARGE", 1 << 20)
    m = effc.compile(Block(8, 24, 8, 3, 1).eval(), (x,), dynamic_shapes=({2: torch.export.Dim("h", min=4, max=64)},))
    assert "fuse_chains.formed" not in stats(m) and "no image has 1024 KiB between" in reasons(m)
    m = effc.compile(Block(8, 24, 8, 3, 1).eval(), (x,))
    assert "fuse_chains.formed" not in stats(m) and "13 KiB are between the convolutions" in reasons(m)
    monkeypatch.setattr(chains, "CACHE", 1 << 10)
    m = effc.compile(Block(8, 24, 8, 3, 1).eval(), (x,))
    assert "fuse_chains.formed" not in stats(m) and "does not fit a core's cache" in reasons(m)


class Basic(torch.nn.Module):
    """The convolutions of a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(torch.relu(self.a(x)))


def test_residual_blocks_stay_apart() -> None:
    """What a chain would save of them is small beside their arithmetic, and the report says how small."""
    x = torch.randn(1, 8, 12, 10)
    net = Basic().eval()
    m = effc.compile(net, (x,))
    flops, moved = 2 * 2 * 120 * 8 * 8 * 9, 2 * 4 * 8 * 120
    assert "fuse_chains.formed" not in stats(m) and f": {flops // moved} operations for each byte" in reasons(m)
    with torch.no_grad():
        want = net(x)
    assert (m(x) - want).abs().max() <= 1e-5 * want.abs().max()


class Twice(Block):
    """The first result is used once more: only depthwise and pointwise convolution are joined."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.act(self.expand(x))  # type: ignore[misc]
        return self.narrow(self.act(self.deep(y))), y


@pytest.mark.parametrize(
    ("net", "shape"), [(Twice(8, 24, 8, 3, 1), (2, 8, 12, 12)), (Twice(8, 43, 16, 3, 2), (1, 8, 12, 125))]
)
def test_a_result_that_is_used_elsewhere(net: Twice, shape: tuple[int, ...]) -> None:
    """The second has two blocks of channels, of 16 and 27."""
    net.eval()
    x = torch.randn(shape)
    m = effc.compile(net, (x,))
    assert stats(m)["fuse_chains.convs"] == 2
    assert m.report["entries"]["main"]["kernels"]["effc_conv_chain_f32"] == 1
    apart = effc.compile(net, (x,), disable_passes=("fuse_chains",))
    for a, b in zip(m(x), apart(x), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        want = net(x)
    for a, b in zip(m(x), want, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("act", [F.relu6, F.hardswish])
def test_depthwise_and_pointwise_in_turn(act: Callable[[Any], Any]) -> None:
    """As in MobileNet (Howard et al., 2017): a convolution that a chain ends in begins no other one."""
    torch.manual_seed(5)
    sizes = [(8, 24), (24, 40), (40, 40), (40, 24)]
    deep = [torch.nn.Conv2d(c, c, 3, 1, 1, groups=c) for c, _ in sizes]
    narrow = [torch.nn.Conv2d(c, o, 1) for c, o in sizes]

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(8, 8, 1)
            self.deep, self.narrow = torch.nn.ModuleList(deep), torch.nn.ModuleList(narrow)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = act(self.first(x))
            for d, n in zip(self.deep, self.narrow, strict=True):
                x = act(n(act(d(x))))
            return x

    net, x = Net().eval(), torch.randn(2, 8, 13, 11)
    m = effc.compile(net, (x,))
    assert (stats(m)["fuse_chains.formed"], stats(m)["fuse_chains.convs"]) == (1, 3)
    assert m.report["entries"]["main"]["kernels"]["effc_conv_chain_f32"] == 1 and "in turn" in reasons(m)
    apart = effc.compile(net, (x,), disable_passes=("fuse_chains", "fuse_pairs"))
    with torch.no_grad():
        want = net(x)
    assert torch.equal(m(x), apart(x)) and (m(x) - want).abs().max() <= 1e-5 * want.abs().max()


class Mobile(torch.nn.Module):
    """Blocks of MobileNetV3 (Howard et al., 2019): hard swish after each convolution but a block's last; one with a
    residual, one with squeeze and excite, which needs all of its depthwise result, and a convolution after them."""

    def __init__(self) -> None:
        super().__init__()
        nn, act = torch.nn, F.hardswish
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.plain = Block(16, 72, 16, 5, 1, act=act, residual=True)
        self.expand, self.deep = nn.Conv2d(16, 56, 1), nn.Conv2d(56, 56, 3, 2, 1, groups=56)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(56, 14, 1), nn.ReLU(), nn.Conv2d(14, 56, 1), nn.Hardsigmoid()
        )
        self.narrow = nn.Conv2d(56, 24, 1)
        self.light = nn.Sequential(  # of PP-LCNet: depthwise and pointwise, each with its activation
            nn.Conv2d(24, 24, 5, 1, 2, groups=24), nn.Hardswish(), nn.Conv2d(24, 40, 1), nn.Hardswish()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        act = F.hardswish
        y = act(self.deep(act(self.expand(self.plain(act(self.stem(x)))))))
        result: torch.Tensor = self.light(self.narrow(y * self.squeeze(y)))
        return result


def test_blocks_of_mobilenet_v3(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no squeeze and excite is a chain of three, the rest of an inverted bottleneck a pair, or with images of
    any size a chain of two; what is scaled first begins no chain."""
    monkeypatch.setattr(pairs, "CHANNELS", 1)
    torch.manual_seed(3)
    net = Mobile().eval()
    x = torch.randn(2, 3, 37, 29)
    batch = torch.export.Dim("n", min=1, max=16)
    for sizes in (None, ({0: batch},)):
        m = effc.compile(net, (x,), dynamic_shapes=sizes)
        kernels = m.report["entries"]["main"]["kernels"]
        assert (stats(m)["fuse_chains.formed"], stats(m)["fuse_chains.convs"]) == (2, 5)
        assert (kernels["effc_conv_chain_f32"], kernels["effc_conv_pair_f32"]) == (2, 1)
        assert not any(k.startswith("effc_conv_dw") for k in kernels)
        for n in (2,) if sizes is None else (1, 2, 7):
            y = torch.randn(n, 3, 37, 29) * 3
            with torch.no_grad():
                want = net(y)
            assert (m(y) - want).abs().max() <= 1e-5 * want.abs().max()
    h, w = torch.export.Dim("h", min=8, max=64), torch.export.Dim("w", min=8, max=64)
    m = effc.compile(net, (x,), dynamic_shapes=({2: h, 3: w},))
    kernels = m.report["entries"]["main"]["kernels"]
    assert stats(m)["fuse_chains.formed"] == 3 and kernels["effc_conv_chain_f32"] == 3
    assert "effc_conv_pair_f32" not in kernels, "a pair is for images of constant size"
    for height, width in ((37, 29), (8, 9), (51, 64)):
        y = torch.randn(2, 3, height, width) * 3
        with torch.no_grad():
            want = net(y)
        assert (m(y) - want).abs().max() <= 1e-5 * want.abs().max()
