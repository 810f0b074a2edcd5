"""Attention written out by hand, as five families of models do, becomes one exact kernel that never forms the score
matrix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import effc

H, D = 4, 8


class Projected(nn.Module):
    """Query, key, value and output projections around ``scores``."""

    kv_heads = H

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(H * D, H * D), nn.Linear(H * D, H * D)
        self.k, self.v = nn.Linear(H * D, self.kv_heads * D), nn.Linear(H * D, self.kv_heads * D)

    def split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(x.shape[0], x.shape[1], heads, D).transpose(1, 2)

    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.q(x), H), self.split(self.k(x), self.kv_heads), self.split(self.v(x), self.kv_heads)
        y = self.attend(q, k, v, *rest)
        return self.o(y.transpose(1, 2).reshape(x.shape))

    def attend(self, q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
        raise NotImplementedError


class Bert(Projected):
    """Scores over sqrt(d), plus an additive mask of padded keys."""

    def attend(self, q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(D)
        gone = (1.0 - rest[0][:, None, None, :].to(q.dtype)) * torch.finfo(q.dtype).min
        return torch.matmul(nn.functional.softmax(scores + gone, dim=-1), v)


class Gpt2(Projected):
    """A buffer's lower triangle picks between scores and the lowest number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tril(torch.ones(64, 64, dtype=torch.bool)).view(1, 1, 64, 64))

    def attend(self, q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
        scores = torch.matmul(q, k.transpose(-1, -2)) / torch.full([], D**0.5)
        n, m = q.size(-2), k.size(-2)
        lowest = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
        scores = torch.where(self.bias[:, :, m - n : m, :m], scores, lowest)
        return torch.matmul(scores.softmax(-1).type(v.dtype), v)


class Llama(Projected):
    """Rotary positions, repeated key heads, an additive causal mask, softmax in f32."""

    kv_heads = 2

    def attend(self, q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
        n = q.shape[2]
        angle = torch.arange(n)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)

        def rotate(x: Any) -> Any:
            return x * cos + torch.cat((-x[..., D // 2 :], x[..., : D // 2]), -1) * sin

        def repeat(x: Any) -> Any:
            b, h, length, d = x.shape
            return x[:, :, None].expand(b, h, H // h, length, d).reshape(b, H, length, d)

        q, k, v = rotate(q), repeat(rotate(k)), repeat(v)
        mask = torch.full((n, n), torch.finfo(q.dtype).min).triu(1)
        scores = torch.matmul(q, k.transpose(2, 3)) * D**-0.5 + mask[None, None]
        return torch.matmul(nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)


class T5(Projected):
    """No scale, a learned bias per relative position and head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(127, H)

    def attend(self, q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
        n = q.shape[2]
        relative = torch.arange(n)[None, :] - torch.arange(n)[:, None] + 63
        bias = self.table(relative).permute(2, 0, 1).unsqueeze(0)
        return torch.matmul(
            nn.functional.softmax((torch.matmul(q, k.transpose(3, 2)) + bias).float(), dim=-1).type_as(q), v
        )


class Vit(Projected):
    """No mask, q scaled before the product, written with bmm over merged batch and heads."""

    def attend(self, q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
        b, h, n, d = q.shape
        q, k, v = (t.reshape(b * h, n, d) for t in (q * d**-0.5, k, v))
        return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).view(b, h, n, d)


class Sdpa(Projected):
    def attend(self, q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


SPELLINGS = [Bert, Gpt2, Llama, T5, Vit, Sdpa]


def inputs(kind: type, batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, H * D, generator=g)
    if kind is not Bert:
        return (x,)
    lengths = torch.randint(1, length + 1, (batch, 1), generator=g)
    return x, torch.arange(length)[None] < lengths


@pytest.mark.parametrize("kind", SPELLINGS, ids=lambda k: k.__name__)
def test_spelling(kind: type) -> None:
    """One kernel for attention, the projections of q, k and v merged, right at every size, one artifact."""
    torch.manual_seed(0)
    model = kind().eval()
    args = inputs(kind, 2, 13)
    names = ("x", "mask")[: len(args)]
    dims = {0: Dim("batch", min=1, max=8), 1: Dim("length", min=2, max=64)}
    shapes = (dims, (dims,)) if kind is Bert else (dims,)
    with torch.no_grad():
        compiled = effc.compile(model, args, dynamic_shapes=shapes)
        entry = compiled.report["entries"]["main"]
        kernels = entry["kernels"]
        assert sum(n for k, n in kernels.items() if k.startswith("effc_attention")) == 1, kernels
        assert sum(n for k, n in kernels.items() if k.startswith("effc_matmul")) == 2, kernels
        stats = entry["passes"]["stats"]
        if kind is not Sdpa:
            assert stats["attention.formed"] == 1
        if kind in (Gpt2, Llama, Sdpa):
            causal = {k: v for k, v in stats.items() if "causal" in k}
            assert causal or kind is Sdpa
        assert stats["merge_matmuls.products"] == 3
        for batch, length in ((2, 13), (1, 2), (1, 7), (3, 64), (8, 33)):
            case = inputs(kind, batch, length, seed=length)
            got, want = compiled(*case), model(*case)
            assert got.shape == want.shape and got.dtype == want.dtype
            error = float((got - want).abs().max() / want.abs().max())
            assert error <= 1e-4, (names, batch, length, error)


class Guarded(nn.Module):
    """The body of ONNX's Attention: rows whose mask is -inf throughout get zeros, whatever the guard asks."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, other: torch.Tensor
    ) -> Any:
        blind = (mask if self.own else other).amax(-1, keepdim=True) == -math.inf
        weights = torch.softmax(q @ k.transpose(-1, -2) * D**-0.5 + mask, -1)
        return torch.where(blind, 0.0, weights) @ v


@pytest.mark.parametrize("own", [True, False])
def test_rows_that_see_no_key(own: bool) -> None:
    """A guard on the scores' mask is part of the kernel; one on another mask is not, and both are right."""
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, H, n, D, generator=g) for n in (9, 17, 17))
    mask, other = (torch.where(torch.rand(9, 17, generator=g) < 0.4, -math.inf, 0.0) for _ in range(2))
    mask[:, 0] = other[:, 0] = 0.0
    (mask if own else other)[3] = -math.inf
    compiled = effc.compile(Guarded(own).eval(), (q, k, v, mask, other))
    stats = compiled.report["entries"]["main"]["passes"]["stats"]
    assert stats.get("attention.formed", 0) == int(own)
    got, want = compiled(q, k, v, mask, other), Guarded(own)(q, k, v, mask, other)
    assert not want[:, :, 3].any() and bool(want.isfinite().all())
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
