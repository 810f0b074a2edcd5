"""Models that work in the frequency domain, in the form of tests/models/zoo.py's entries, with seeded weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.models.zoo import Entry, Loaded


class LongConvolution(nn.Module):
    """A gated convolution as long as its input, through the spectrum (as in Hyena)."""

    def __init__(self, dims: int = 64, length: int = 8192) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(dims, length) / length**0.5)
        self.skip = nn.Parameter(torch.randn(dims))
        self.into, self.out = nn.Linear(dims, 2 * dims), nn.Linear(dims, dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, gate = self.into(x).transpose(1, 2).chunk(2, 1)
        n = u.shape[-1]
        spectrum = torch.fft.rfft(u, n=2 * n) * torch.fft.rfft(self.taps, n=2 * n)
        y = torch.fft.irfft(spectrum, n=2 * n)[..., :n] + u * self.skip[:, None]
        return self.out((y * nn.functional.silu(gate)).transpose(1, 2))


class LogMel(nn.Module):
    """A speech recogniser's front end."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(400))
        self.register_buffer("mel", torch.rand(80, 201))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = torch.view_as_real(torch.stft(x, 400, 160, window=self.window, return_complex=True))
        return torch.log(torch.clamp(self.mel @ s.pow(2).sum(-1), min=1e-10))


class SpectralFilter(nn.Module):
    """A two-dimensional filter in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 33, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * self.w, s=x.shape[-2:], norm="ortho")


def seeded(name: str, module: Callable[[], nn.Module], *shape: int) -> Entry:
    """A model with seeded weights and one random f32 input of this shape."""

    def inputs() -> tuple[Any, ...]:
        return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)),)

    def load() -> Loaded:
        torch.manual_seed(0)
        return Loaded(module().eval(), inputs(), None, [inputs()])

    return Entry(name, load, inputs)


SPECTRAL: dict[str, Entry] = {
    e.name: e
    for e in (
        seeded("longconv", LongConvolution, 1, 8192, 64),
        seeded("stft", LogMel, 1, 160000),
        seeded("irfft2", SpectralFilter, 8, 16, 64, 64),
    )
}
