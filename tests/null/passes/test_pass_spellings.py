"""Attention and norms of models that nobody tuned for, from torch to results: formed, and right."""

from __future__ import annotations

import pytest
import torch

import effc


class Windows(torch.nn.Module):
    """Cosine attention within windows, as Swin Transformer V2 writes it: the windows' mask is added to scores of five
    dims. ``bias``: one for each head first."""

    def __init__(self, windows: int, heads: int, length: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.scale = torch.nn.Parameter(torch.rand(heads, 1, 1, generator=g) * 3)
        self.bias = torch.nn.Parameter(torch.randn(heads, length, length, generator=g))
        hidden = torch.rand(windows, length, length, generator=g) < 0.3
        self.mask = torch.nn.Buffer(torch.zeros(windows, length, length).masked_fill(hidden, -100.0))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
        scores = (q @ k.transpose(-2, -1)) * self.scale + self.bias.unsqueeze(0)
        w, (_, h, n, _) = self.mask.shape[0], scores.shape
        scores = scores.view(-1, w, h, n, n) + self.mask.unsqueeze(1).unsqueeze(0)
        return torch.softmax(scores.view(-1, h, n, n), -1) @ v


@pytest.mark.parametrize("images", [1, 2])
def test_masks_of_windows(images: int) -> None:
    module, args = Windows(4, 3, 9), tuple(torch.randn(images * 4, 3, 9, 8) for _ in range(3))
    want = module(*args)
    m = effc.compile(module, args)
    stats = m.report["entries"]["main"]["passes"]["stats"]
    assert stats["attention.formed"] == 1 and "attention.empty_nan" not in stats
    torch.testing.assert_close(m(*args), want, rtol=1e-5, atol=1e-5)


def test_windows_of_any_number_of_images() -> None:
    module, args = Windows(4, 3, 9), tuple(torch.randn(8, 3, 9, 8) for _ in range(3))
    images = torch.export.Dim("images", min=2, max=8)
    m = effc.compile(module, args, dynamic_shapes=({0: 4 * images},) * 3)
    assert m.report["entries"]["main"]["passes"]["stats"]["attention.formed"] == 1
    for n in (2, 3):
        some = tuple(torch.randn(4 * n, 3, 9, 8) for _ in range(3))
        torch.testing.assert_close(m(*some), module(*some), rtol=1e-5, atol=1e-5)


class Axial(torch.nn.Module):
    """Attention along the last but one of five dims, with a mask for each frame."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("bfhie,bfhje->bfhij", q, k) * 0.3
        return torch.softmax(scores.masked_fill(~mask[:, :, None, None], -1e30), -1) @ v


@pytest.mark.parametrize("batch", [1, 3])
def test_five_dims(batch: int) -> None:
    args = (*(torch.randn(batch, 4, 3, n, 8) for n in (9, 11, 11)), torch.rand(batch, 4, 11) < 0.7)
    m = effc.compile(Axial(), args)
    assert m.report["entries"]["main"]["passes"]["stats"]["attention.formed"] == 1
    torch.testing.assert_close(m(*args), Axial()(*args), rtol=1e-5, atol=1e-5)
