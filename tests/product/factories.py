"""Small models for the command line's tests: ``tests.product.factories:NAME``."""

from __future__ import annotations

from typing import Any

import torch


class Small(torch.nn.Module):
    """A convolution, a softmax and a dict of results; every size of x may vary but the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(8, 4, 3)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.conv(x)) + bias[:, None]
        return {"p": y.softmax(-1), "total": y.sum()}


def small() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return Small().eval(), (torch.randn(3, 8, 12), torch.randn(4))


class Deep(torch.nn.Module):
    """Enough different fused loops that its compilation takes seconds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(5):
            x = torch.tanh(x * (1 + i / 8)) + x.flip(i % 2).sin() * 0.01
            x = x - x.mean(i % 2, keepdim=True) * x.abs().amax(1 - i % 2, keepdim=True) / (i + 2)
        return x


def deep() -> tuple[Any, ...]:
    return Deep(), (torch.randn(7, 9),)


class Undecided(torch.nn.Module):
    """Branches in Python on its data, which torch.export refuses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def not_a_pair() -> Any:
    return 3
