"""The model cache: found again only if model, inputs, options and sizes are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import effc

SCALE = 2.0


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)
        self.power = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) ** self.power * SCALE


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFC_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("EFFC_MODEL_CACHE", "1")


def compiled(net: torch.nn.Module, x: torch.Tensor, **options: Any) -> tuple[Any, bool]:
    m = effc.compile(net, (x,), **options)
    torch.testing.assert_close(m(x), net(x), rtol=1e-5, atol=1e-5)
    return m, m.report["model_cache"] == "hit"


def test_hits_and_misses(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    net, x = Net().eval(), torch.randn(3, 8)
    assert not compiled(net, x)[1]
    again, hit = compiled(net, x)
    assert hit
    again.save(tmp_path / "again.effc")
    torch.testing.assert_close(effc.load(tmp_path / "again.effc")(x), net(x), rtol=1e-5, atol=1e-5)
    assert compiled(net, torch.randn(3, 8))[1]  # the values of the example do not matter
    assert not compiled(net, torch.randn(5, 8))[1]  # its shape does
    with torch.no_grad():
        net.linear.weight[0, 0] += 1
    assert not compiled(net, x)[1]  # a weight
    net.power = 3
    assert not compiled(net, x)[1]  # an attribute
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert not compiled(net, x)[1]  # a global that forward names
    assert not compiled(net, x, disable_passes=("fold",))[1]  # an option
    assert not compiled(net, x, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=9)},))[1]
    monkeypatch.setattr(Net, "forward", lambda self, x: self.linear(x) - SCALE)
    assert not compiled(net, x)[1]  # the code
    assert compiled(net, x)[1]


def test_what_is_not_understood_is_not_cached() -> None:
    net, x = Net().eval(), torch.randn(3, 8)
    net.register_forward_hook(lambda module, args, out: out + 1)
    m = effc.compile(net, (x,))
    assert "hooks" in m.report["model_cache"]
    torch.testing.assert_close(m(x), net(x), rtol=1e-5, atol=1e-5)
    net = Net().eval()
    net.handle = open("/dev/null")
    m = effc.compile(net, (x,))
    assert m.report["model_cache"].startswith("not cached")


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFC_MODEL_CACHE", "0")
    net, x = Net().eval(), torch.randn(3, 8)
    for _ in range(2):
        assert effc.compile(net, (x,)).report["model_cache"] == "off"
