"""3x3 convolutions by Winograd's algorithm in whole graphs: right against eager, chosen where it pays, nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import effc
from effc.passes.winograd import DIRECT, GAIN, Image, choose, costs

NAME = "form_winograd"


class Net(torch.nn.Module):
    """Three convolutions: bias and clamp, a residual, an activation that needs generated code."""

    def __init__(self, a: int, b: int, padding: Any = 1, activation: Any = torch.nn.functional.silu) -> None:
        super().__init__()
        self.one = torch.nn.Conv2d(a, b, 3, padding=padding)
        self.two = torch.nn.Conv2d(b, b, 3, padding=1)
        self.three = torch.nn.Conv2d(b, a, 3, padding=1, bias=False)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.relu6(self.one(x))
        z = torch.relu(self.two(y) + y)
        return self.activation(self.three(z))


@pytest.fixture(autouse=True)
def by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule decides, not the cost model."""
    monkeypatch.setenv("EFFC_COST_MODEL", "0")


def stats(m: Any) -> dict[str, int]:
    found: dict[str, int] = m.report["entries"]["main"]["passes"]["stats"]
    return found


def kernels(m: Any) -> dict[str, int]:
    found: dict[str, int] = m.report["entries"]["main"]["kernels"]
    return found


def declined(m: Any) -> str:
    return " ".join(str(d) for d in m.report["entries"]["main"]["passes"]["declined"])


def close(got: torch.Tensor, want: torch.Tensor, bound: float = 1e-5) -> None:
    assert got.shape == want.shape and (got - want).abs().max() <= bound * want.abs().max()


@pytest.mark.parametrize(
    "channels, shape, padding",
    [
        ((16, 32), (1, 37, 29), 1),
        ((24, 17), (2, 16, 50), (2, 0)),
        ((70, 40), (3, 21, 18), 0),
        ((64, 130), (1, 9, 31), 1),
    ],
    ids=str,
)
def test_right_and_equal_for_any_number_of_threads(channels: Any, shape: Any, padding: Any) -> None:
    torch.manual_seed(channels[0])
    net = Net(*channels, padding=padding).eval()
    n, h, w = shape
    x = torch.randn(n, channels[0], h, w)
    plain = effc.compile(net, (x,), disable_passes=[NAME])
    assert f"{NAME}.formed" not in stats(plain) and "effc_conv_winograd_f32" not in kernels(plain)
    results = []
    for threads in (1, 2, 3):
        m = effc.compile(net, (x,), num_threads=threads)
        assert stats(m)[f"{NAME}.formed"] == 3 and kernels(m)["effc_conv_winograd_f32"] == 3
        results.append(m(x))
    with torch.no_grad():
        want = net.double()(x.double())
    for y in results:
        assert torch.equal(y, results[0])
    close(results[0], want)
    for y in (x.to(memory_format=torch.channels_last), torch.cat([x, x], 1)[:, channels[0] :]):
        assert torch.equal(m(y), results[0])


class Strided(torch.nn.Module):
    """Two convolutions of stride 2 beside each other, the second one added to the first, and a third after them."""

    def __init__(self, a: int, b: int, padding: Any = 1) -> None:
        super().__init__()
        self.one = torch.nn.Conv2d(a, b, 3, stride=2, padding=padding)
        self.two = torch.nn.Conv2d(a, b, 3, stride=2, padding=padding)
        self.three = torch.nn.Conv2d(b, a, 3, stride=2, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.two(x) + torch.nn.functional.relu6(self.one(x)))
        return torch.nn.functional.silu(self.three(y))


@pytest.mark.parametrize(
    "channels, shape, padding",
    [((80, 128), (1, 57, 63), 1), ((100, 130), (2, 41, 33), (2, 0)), ((128, 96), (3, 34, 49), 0)],
    ids=str,
)
def test_stride_2(channels: Any, shape: Any, padding: Any) -> None:
    torch.manual_seed(channels[0])
    net = Strided(*channels, padding=padding).eval()
    n, h, w = shape
    x = torch.randn(n, channels[0], h, w)
    results = []
    for threads in (1, 2):
        m = effc.compile(net, (x,), num_threads=threads)
        made = {k: v for k, v in stats(m).items() if k.startswith(NAME)}
        assert made[f"{NAME}.formed"] == kernels(m)["effc_conv_winograd_f32"] >= 2
        assert sum(v for k, v in made.items() if k.endswith(".stride2")) == made[f"{NAME}.formed"]
        results.append(m(x))
    with torch.no_grad():
        want = net.double()(x.double())
    assert torch.equal(*results)
    close(results[0], want)


class Deep(torch.nn.Module):
    """Convolutions of three dims: bias and clamp, a residual, a stride of 2 along the depth, an activation that needs
    generated code, a window of one slice."""

    def __init__(self, a: int, b: int, padding: Any = 1) -> None:
        super().__init__()
        self.one = torch.nn.Conv3d(a, b, 3, padding=padding)
        self.two = torch.nn.Conv3d(b, b, (5, 3, 3), padding=(2, 1, 1))
        self.three = torch.nn.Conv3d(b, a, 3, stride=(2, 1, 1), padding=1, bias=False)
        self.four = torch.nn.Conv3d(a, b, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.relu6(self.one(x))
        z = torch.relu(self.two(y) + y)
        return torch.relu(self.four(torch.nn.functional.silu(self.three(z))))


@pytest.mark.parametrize(
    "channels, shape, padding", [((16, 32), (1, 6, 25, 22), 1), ((40, 27), (2, 5, 14, 19), (0, 1, 2))], ids=str
)
def test_three_dims(channels: Any, shape: Any, padding: Any) -> None:
    torch.manual_seed(channels[0])
    net = Deep(*channels, padding=padding).eval()
    n, *size = shape
    x = torch.randn(n, channels[0], *size)
    results = []
    for threads in (1, 2, 3):
        m = effc.compile(net, (x,), num_threads=threads)
        assert stats(m)[f"{NAME}.formed"] == 4 and kernels(m)["effc_conv_winograd_f32"] == 4
        results.append(m(x))
    with torch.no_grad():
        want = net.double()(x.double())
    for y in results:
        assert torch.equal(y, results[0])
    close(results[0], want)
    for y in (x.to(memory_format=torch.channels_last_3d), torch.cat([x, x], 1)[:, channels[0] :]):
        assert torch.equal(m(y), results[0])


def test_three_dims_stride_2_and_joined_results() -> None:
    """Parts of a join that are made in place, stride 2 in all dims."""

    class Joined(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Conv3d(80, 96, 3, stride=2, padding=1)
            self.two = torch.nn.Conv3d(80, 64, 3, stride=2, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.relu(self.one(x)), self.two(x)], 1).exp()

    torch.manual_seed(5)
    net, x = Joined().eval(), torch.randn(1, 80, 7, 31, 34) / 10
    results = []
    for threads in (1, 2):
        m = effc.compile(net, (x,), num_threads=threads)
        assert kernels(m)["effc_conv_winograd_f32"] == stats(m)[f"{NAME}.formed"] == 2
        results.append(m(x))
    assert torch.equal(*results)
    with torch.no_grad():
        close(results[0], net(x))


def test_three_dims_dynamic() -> None:
    torch.manual_seed(4)
    net = Deep(16, 24).eval()
    n, d, h, w = (torch.export.Dim(k, min=1, max=100) for k in "ndhw")
    m = effc.compile(net, (torch.randn(2, 16, 6, 20, 30),), dynamic_shapes=({0: n, 2: d, 3: h, 4: w},))
    assert stats(m)[f"{NAME}.formed"] == 4
    for size in ((1, 1, 1, 1), (2, 6, 20, 30), (3, 4, 7, 5), (1, 50, 2, 3), (2, 2, 3, 71)):
        x = torch.randn(size[0], 16, *size[1:])
        with torch.no_grad():
            close(m(x), net(x), 2e-5)


def test_stride_2_with_dynamic_batch_and_image() -> None:
    torch.manual_seed(3)
    net = Strided(80, 96).eval()
    n, h, w = (torch.export.Dim(d, min=1, max=200) for d in "nhw")
    m = effc.compile(net, (torch.randn(2, 80, 60, 64),), dynamic_shapes=({0: n, 2: h, 3: w},))
    assert stats(m)[f"{NAME}.formed"] == 3
    for size in ((1, 1, 1), (2, 60, 64), (3, 7, 5), (1, 65, 2), (2, 3, 101)):
        x = torch.randn(size[0], 80, *size[1:])
        with torch.no_grad():
            close(m(x), net(x), 2e-5)


def test_dynamic_batch_and_image() -> None:
    torch.manual_seed(1)
    net = Net(24, 40).eval()
    n, h, w = (torch.export.Dim(d, min=1, max=200) for d in "nhw")
    m = effc.compile(net, (torch.randn(2, 24, 20, 30),), dynamic_shapes=({0: n, 2: h, 3: w},))
    assert stats(m)[f"{NAME}.formed"] == 3
    for size in ((1, 1, 1), (2, 20, 30), (3, 7, 5), (1, 65, 2), (2, 3, 101)):
        x = torch.randn(size[0], 24, *size[1:])
        with torch.no_grad():
            close(m(x), net(x), 2e-5)


def test_not_finite_in_the_same_places() -> None:
    torch.manual_seed(2)
    net = torch.nn.Conv2d(32, 48, 3, padding=1).eval()
    x = torch.randn(2, 32, 28, 27)
    x[0, 3, 5, 6], x[0, 1, 20, 2], x[1, 7, 0, 0], x[1, 31, 27, 26] = float("nan"), float("inf"), -float("inf"), 1e37
    m = effc.compile(net, (x,))
    assert kernels(m)["effc_conv_winograd_f32"] == 1
    got = m(x)
    with torch.no_grad():
        want = net(x)
    assert want.isnan().any() and want.isinf().any() and want[want.isfinite()].abs().max() > 1e35
    np.testing.assert_array_equal(got.isnan(), want.isnan())
    np.testing.assert_array_equal(got.isinf(), want.isinf())
    assert torch.equal(got.sign()[want.isinf()], want.sign()[want.isinf()])
    for image in got[:, :, 10:16, 10:20] - want[:, :, 10:16, 10:20]:  # far from those
        assert image.abs().max() <= 1e-5 * want[:, :, 10:16, 10:20].abs().max()


@pytest.mark.parametrize(
    "conv, reason",
    [
        (torch.nn.Conv2d(32, 32, 3, stride=3, padding=1), "stride or dilation"),
        (torch.nn.Conv2d(32, 32, 3, stride=(1, 2), padding=1), "stride or dilation"),
        (torch.nn.Conv2d(32, 32, 3, stride=2, dilation=2), "stride or dilation"),
        (torch.nn.Conv2d(32, 32, 3, stride=2, groups=2), "groups"),
        (torch.nn.Conv2d(16, 32, 3, stride=2, padding=1), "direct is the better choice"),
        (torch.nn.Conv2d(32, 32, 3, dilation=2), "stride or dilation"),
        (torch.nn.Conv2d(32, 32, 3, groups=2), "groups"),
        (torch.nn.Conv2d(3, 32, 3), "direct is the better choice"),
        (torch.nn.Conv2d(32, 32, 3, dtype=torch.float64), "not f32"),
        (torch.nn.Conv3d(32, 32, 3, stride=(1, 2, 1)), "stride or dilation"),
        (torch.nn.Conv3d(32, 32, 3, dilation=(2, 1, 1)), "stride or dilation"),
        (torch.nn.Conv3d(32, 32, 3, groups=2, padding=1), "groups"),
        (torch.nn.Conv3d(32, 32, 3, stride=(4, 1, 1), padding=1), "passes over slices"),
        (torch.nn.Conv3d(3, 32, 3, padding=1), "direct is the better choice"),
    ],
    ids=str,
)
def test_declines_and_says_why(conv: torch.nn.Conv2d | torch.nn.Conv3d, reason: str) -> None:
    size = (6, 30, 31)[-(conv.weight.ndim - 2) :]
    x = torch.randn(1, conv.in_channels, *size, dtype=conv.weight.dtype)
    m = effc.compile(conv.eval(), (x,))
    assert f"{NAME}.formed" not in stats(m) and "effc_conv_winograd_f32" not in kernels(m)
    assert reason in declined(m)
    with torch.no_grad():
        close(m(x), conv(x))


def test_weights_that_are_not_finite_or_huge_stay_direct() -> None:
    for value in (float("nan"), float("inf"), 3e38):
        conv = torch.nn.Conv2d(32, 32, 3).eval()
        with torch.no_grad():
            conv.weight[3, 4, 1, 1] = value
        m = effc.compile(conv, (torch.randn(1, 32, 30, 30),))
        assert f"{NAME}.formed" not in stats(m) and "weights that are not finite" in declined(m)


def test_computed_weights_stay_direct() -> None:
    class Computed(torch.nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(x, w, padding=1)

    m = effc.compile(Computed(), (torch.randn(1, 32, 28, 28), torch.randn(32, 32, 3, 3)))
    assert f"{NAME}.formed" not in stats(m) and "weights that are not constant" in declined(m)


def test_the_report_says_what_was_chosen_and_why() -> None:
    m = effc.compile(torch.nn.Conv2d(64, 64, 3, padding=1).eval(), (torch.randn(1, 64, 56, 56),))
    (made,) = (d for d in m.report["entries"]["main"]["decisions"] if d["kernel"] == "effc_conv_winograd_f32")
    assert made["chosen"].startswith("F(4x4, 3x3)") and "direct" in made["why"]


def test_compiles_for_avx512_too(tmp_path: Any) -> None:
    m = effc.compile(Net(16, 40).eval(), (torch.randn(1, 16, 28, 28),), target="cpu:x86-64-v4")
    assert kernels(m)["effc_conv_winograd_f32"] == 3
    m.save(tmp_path / "m.effc")


@pytest.mark.parametrize(
    "c, o, image, stride, tile",
    [
        (64, 64, Image(1, 56, 56), 1, 4),
        (256, 256, Image(1, 14, 14), 1, 4),
        (512, 512, Image(1, 7, 7), 1, 2),  # tiles of 4 x 4 would read twice the weights
        (512, 512, Image(16, 7, 7), 1, 4),
        (512, 512, Image(1, 3, 3), 1, DIRECT),  # all is reading weights
        (3, 64, Image(1, 224, 224), 1, DIRECT),
        (512, 4, Image(1, 64, 64), 1, DIRECT),
        (128, 128, Image(1, 28, 28), 2, 4),
        (256, 256, Image(1, 14, 14), 2, 2),
        (256, 256, Image(4, 14, 14), 2, 4),
        (512, 512, Image(1, 7, 7), 2, 2),  # a narrow tile in each dim: 324 products, not 400
        (512, 512, Image(1, 4, 4), 2, DIRECT),
        (16, 32, Image(1, 80, 80), 2, DIRECT),
        (16, 16, Image(1, 64, 64, depth=48, taps=3, inside=0.986), 1, 4),
        (128, 128, Image(1, 14, 14, depth=2, taps=3, inside=0.667), 1, 4),
        (512, 512, Image(1, 7, 7, depth=1, taps=3, inside=0.333), 1, DIRECT),  # two taps of three are zeros
    ],
    ids=str,
)
def test_the_rule(c: int, o: int, image: Image, stride: int, tile: int) -> None:
    assert choose(c, o, image, stride) == tile
    cost = costs(c, o, image, stride)
    assert tile == DIRECT or (cost[tile] <= GAIN * min(cost.values()) and GAIN * cost[tile] <= cost[DIRECT])
