"""Modules of the torch dialect, in memory and as text, against eager PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import effc
from effc.conformance.compare import difference
from tests.models import zoo

fx = pytest.importorskip("torch_mlir.fx")
ONE = {"x": {0: Dim("n", min=1, max=64)}}


class Mixed(nn.Module):
    """Weights, lists, several results, sizes as numbers, and a cast given by number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.register_buffer("offsets", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b = torch.split(self.inner(x), [1, 2], dim=-1)
        best, at = x.max(dim=1)
        return torch.cat([b, a], -1) + self.offsets, best.reshape(x.shape[0], -1) * x.shape[0], at.to(torch.int32)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.first(x)))
        return nn.functional.max_pool2d(y, 2).mean((2, 3))


class Masked(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        scores = (x @ x.transpose(1, 2)).masked_fill(~mask, float("-inf"))
        return torch.softmax(scores, -1) @ x


def lowered(model: nn.Module, args: tuple[Any, ...], **options: Any) -> Any:
    return fx.export_and_import(model.eval(), *args, output_type="torch", **options)


def check(compiled: Any, model: nn.Module, args: tuple[Any, ...]) -> None:
    with torch.no_grad():
        got = torch.utils._pytree.tree_leaves(compiled(*args))
        want = torch.utils._pytree.tree_leaves(model.eval()(*args))
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        problem = difference(a.numpy(), b.numpy(), 1e-4)
        assert not problem, problem


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(
    "model,shape",
    [(Mixed(), (2, 4)), (Convolutions(), (2, 3, 17, 18)), (Masked(), (2, 5, 4))],
    ids=["mixed", "conv", "masked"],
)
def test_modules(model: nn.Module, shape: tuple[int, ...], target: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    check(effc.compile(lowered(model, (x,)), target=target), model, (x,))


@pytest.mark.parametrize("model,shape", [(Mixed(), (4,)), (Masked(), (5, 4))], ids=["mixed", "masked"])
def test_dynamic_batch(model: nn.Module, shape: tuple[int, ...]) -> None:
    m = effc.compile(lowered(model, (torch.randn(2, *shape),), dynamic_shapes=ONE), target="reference")
    for n in (1, 2, 7):
        check(m, model, (torch.randn(n, *shape),))


def test_text(tmp_path: Path) -> None:
    model, x = Mixed(), torch.randn(2, 4)
    path = tmp_path / "model.mlir"
    path.write_text(str(lowered(model, (x,), dynamic_shapes=ONE)))
    check(effc.compile(path, target="reference"), model, (x,))


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "model.mlir"
    path.write_text("func.func @main() { this is not MLIR }")
    with pytest.raises(effc.EffcError, match="not a module of the torch dialect"):
        effc.compile(path, target="reference")


def test_minilm() -> None:
    loaded = zoo.load("minilm")
    args = zoo.minilm_inputs(2, 24)

    class Leaves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded.module

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = self.model(ids, mask)
            return out["last_hidden_state"], out["embedding"]

    model = Leaves()
    for m in model.modules():  # torch-mlir reads buffers from the state dict alone
        m._non_persistent_buffers_set.clear()
    check(effc.compile(lowered(model, args)), model, args)
