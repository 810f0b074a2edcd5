"""Joins and pools of convolutional models: lists that grow by one share what they have, parts are made inside the
result; a window larger than the image costs what the image does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import effc
from effc.runtime.artifact import ArtifactReader


class Dense(nn.Module):
    """Each layer joins the results of all before it, in a list, as DenseNet-121 is written."""

    def __init__(self, layers: int = 5) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * i) for i in range(layers))
        self.layers = nn.ModuleList(nn.Conv2d(16 + 8 * i, 8, 3, padding=1) for i in range(layers))
        self.first = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.first(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            parts.append(layer(norm(torch.cat(parts, 1)).relu()))
        return torch.cat(parts, 1).mean((2, 3))


class Parts(nn.Module):
    """A join of an image enlarged (by bilinear and nearest neighbours) and of an inverted bottleneck's result."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.a, self.b = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(48, 8, 1)
        self.wide, self.deep, self.narrow = (
            nn.Conv2d(3, 96, 1),
            nn.Conv2d(96, 96, 3, 1, 1, groups=96),
            nn.Conv2d(96, 32, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = nn.functional.interpolate(self.a(x).tanh(), scale_factor=2, mode=self.mode)
        chain = self.narrow(self.deep(self.wide(x).relu()).relu())
        return self.b(torch.cat([up, chain], 1))


def compiled(model: nn.Module, *shape: int, **more: Any) -> tuple[Any, torch.Tensor]:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        m = effc.compile(model, (x,), selftest=False, **more)
        torch.testing.assert_close(m(x), model(x), rtol=2e-4, atol=2e-5)
    return m, m(x)


def test_a_list_that_grows_is_joined_in_place() -> None:
    torch.manual_seed(0)
    model = Dense().eval()
    m, got = compiled(model, 1, 3, 20, 23)
    entry = m.report["entries"]["main"]
    assert entry["passes"]["stats"]["share_concats.shared"] == 4  # the first has one operand, the second two
    joins = entry["memory"]["concat"]
    assert joins == {"instructions": 5, "operands": 10, "in_place": 10}
    _, want = compiled(model, 1, 3, 20, 23, disable_passes=["memory"])
    assert torch.equal(got, want)
    apart, want = compiled(model, 1, 3, 20, 23, disable_passes=["share_concats"])
    assert torch.equal(got, want)
    assert "share_concats.shared" not in apart.report["entries"]["main"]["passes"]["stats"]
    copied = apart.report["entries"]["main"]["memory"]["concat"]
    assert copied["operands"] == 20 and copied["in_place"] < 10  # a part lies in one join, the others copy it


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_images_enlarged_and_chains_are_made_in_place(mode: str) -> None:
    torch.manual_seed(0)
    model = Parts(mode).eval()
    m, got = compiled(model, 1, 3, 96, 112)
    entry = m.report["entries"]["main"]
    assert entry["passes"]["stats"]["fuse_chains.formed"] == 1
    assert entry["memory"]["concat"] == {"instructions": 1, "operands": 2, "in_place": 2}
    _, want = compiled(model, 1, 3, 96, 112, disable_passes=["memory"])
    assert torch.equal(got, want)


@pytest.mark.parametrize("kind", [nn.AvgPool2d, nn.MaxPool2d])
def test_a_window_larger_than_the_image_is_cut(kind: type[nn.Module], tmp_path: Any) -> None:
    """As transformers' EfficientNet pools, with as many pixels as it has features."""
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), kind(100, padding=1, ceil_mode=True))
    m, _ = compiled(model, 2, 3, 7, 9)
    m.save(tmp_path / "m.effc")
    with ArtifactReader(tmp_path / "m.effc") as r:
        code = r.manifest["entries"]["main"]["program"]["code"]
    (pool,) = (ins for ins in code if ins.get("kernel") == "effc_pool_f32")
    assert pool["attrs"][4:7] == [1, 9, 11]
