"""Models whose memory has something to plan, for test_memory.py: ``tests.product.memory_models:NAME``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def block(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    """Two levels: skips that live long, upsampled parts that are joined to them."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b, self.c = block(3, c), block(c, 2 * c), block(2 * c, 4 * c)
        self.up1, self.d = nn.ConvTranspose2d(4 * c, 2 * c, 2, 2), block(4 * c, 2 * c)
        self.up2, self.e = nn.ConvTranspose2d(2 * c, c, 2, 2), block(2 * c, c)
        self.out, self.pool = nn.Conv2d(c, 2, 1), nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        b = self.b(self.pool(a))
        d = self.d(torch.cat([b, self.up1(self.c(self.pool(b)))], 1))
        return self.out(self.e(torch.cat([a, self.up2(d)], 1)))


class Dense(nn.Module):
    """Each layer reads all before it, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(block(8 + 8 * i, 8) for i in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Inception(nn.Module):
    """Branches of several kinds joined, results among them, a join along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 5, padding=2)
        self.d = nn.Conv2d(36, 8, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for _ in range(3):
            pooled = nn.functional.avg_pool2d(x, 3, 1, 1)
            y = torch.cat([self.a(x).relu(), self.b(x).sigmoid(), self.c(x), pooled], 1)
            x = self.d(y)
        return torch.cat([x * 2, y.tanh()], 1), torch.cat([x, -x], 0)


class Wide(nn.Module):
    """Branches that a bad order holds all at once: each is made first and reduced last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        long = [(x * k).sin().cumsum(0) for k in range(1, 7)]
        return torch.stack([(y @ y.transpose(0, 1)).sum(0)[:8] for y in long])


class Looping(nn.Module):
    """A while loop, a scan, and branches: nested programs, whose arenas lie in the outer one."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from torch._higher_order_ops.scan import scan
        from torch._higher_order_ops.while_loop import while_loop

        i = torch.zeros((), dtype=torch.int64)
        _, y = while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, (y @ y.T @ y).tanh() + i), (i, x))
        last, ys = scan(lambda c, r: (c * 0.5 + r.softmax(0), (c + r).cumsum(0)), torch.zeros_like(x[0]), y, dim=0)
        z = torch.cond(ys.sum() > 1e9, lambda y: (y * 2).sum(1), lambda y: y.sin().softmax(-1).sum(1), (ys,))
        return last, ys, z


class State(nn.Module):
    """Buffers that change: one is read before and after it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(6, 6))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.total.softmax(-1)
        self.total.add_(x @ x.T)
        self.steps.add_(1)
        return before + self.total.tanh() * self.steps


class Layer(nn.Module):
    """Of a transformer's encoder: all from one attention to the next works on rows."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.first, self.second = nn.LayerNorm(c), nn.LayerNorm(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.into(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = self.first(x + self.out(y.transpose(1, 2).flatten(2)))
        return self.second(x + self.down(nn.functional.gelu(self.up(x))))


class Deep(nn.Module):
    """Many channels on few pixels: transformed inputs that all threads share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = block(3, 192), nn.Sequential(block(192, 192), block(192, 192))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(nn.functional.max_pool2d(self.first(x), 4))


def _dims(**bounds: tuple[int, int]) -> Any:
    return (torch.export.Dim(n, min=a, max=b) for n, (a, b) in bounds.items())


def unet() -> tuple[Any, ...]:
    torch.manual_seed(0)
    n, h, w = _dims(n=(1, 16), h=(1, 256), w=(1, 256))
    return UNet(8).eval(), (torch.randn(2, 3, 24, 32),), ({0: n, 2: 4 * h, 3: 4 * w},)


def large_unet() -> tuple[Any, ...]:
    torch.manual_seed(0)
    n, h, w = _dims(n=(1, 16), h=(1, 256), w=(1, 256))
    return UNet(32).eval(), (torch.randn(1, 3, 64, 64),), ({0: n, 2: 4 * h, 3: 4 * w},)


def dense() -> tuple[Any, ...]:
    torch.manual_seed(0)
    n, h = _dims(n=(1, 16), h=(4, 128))
    return Dense().eval(), (torch.randn(2, 3, 17, 16),), ({0: n, 2: h},)


def inception() -> tuple[Any, ...]:
    torch.manual_seed(0)
    n, h = _dims(n=(1, 16), h=(1, 64))
    return Inception().eval(), (torch.randn(2, 8, 20, 21),), ({0: n, 2: h},)


def wide() -> tuple[Any, ...]:
    n, m = _dims(n=(8, 512), m=(1, 512))
    return Wide(), (torch.randn(300, 400),), ({0: n, 1: m},)


def looping() -> tuple[Any, ...]:
    return Looping(), (torch.randn(7, 9),), ({0: next(_dims(n=(2, 64)))},)


def state() -> tuple[Any, ...]:
    return State().eval(), (torch.randn(6, 11),), ({1: next(_dims(m=(1, 64)))},)


def encoder() -> tuple[Any, ...]:
    torch.manual_seed(0)
    b, n = _dims(b=(1, 64), n=(1, 512))
    return nn.Sequential(*(Layer(32) for _ in range(3))).eval(), (torch.randn(2, 24, 32),), ({0: b, 1: n},)


def deep() -> tuple[Any, ...]:
    torch.manual_seed(0)
    n, h, w = _dims(n=(1, 64), h=(8, 1024), w=(8, 1024))
    return Deep().eval(), (torch.randn(2, 3, 64, 48),), ({0: n, 2: h, 3: w},)


def mobile() -> tuple[Any, ...]:
    """A stem and inverted bottlenecks (MobileNetV2), of images of any size."""

    def block(c: int, e: int, o: int, stride: int, first: tuple[int, int] = (1, 1)) -> list[nn.Module]:
        expand = nn.Conv2d(c, e, first[0], first[1], first[0] // 2)
        return [expand, nn.ReLU6(), nn.Conv2d(e, e, 3, stride, 1, groups=e), nn.ReLU6(), nn.Conv2d(e, o, 1)]

    torch.manual_seed(0)
    n, h, w = _dims(n=(1, 64), h=(32, 1024), w=(32, 1024))
    layers = [*block(3, 32, 16, 1, (3, 2)), *block(16, 96, 24, 2), *block(24, 144, 24, 1), *block(24, 144, 32, 2)]
    return nn.Sequential(*layers).eval(), (torch.randn(2, 3, 64, 48),), ({0: n, 2: h, 3: w},)


MODELS = {f.__name__: f for f in (unet, dense, inception, wide, looping, state)}


class Strided(nn.Module):
    """3x3 convolutions of stride 1 and 2 with a residual and parts that are joined: few pixels are summed directly."""

    def __init__(self) -> None:
        super().__init__()
        self.first = block(3, 64)
        self.a, self.b = block(64, 64), nn.Conv2d(64, 128, 3, 2, 1)
        self.skip, self.c = nn.Conv2d(64, 128, 1, 2), block(128, 128)
        self.head = nn.Conv2d(256, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(self.first(x))
        x = (self.b(x) + self.skip(x)).relu()
        return self.head(torch.cat([x, self.c(x).sigmoid()], 1))


def strided() -> tuple[nn.Module, tuple[Any, ...], Any]:
    torch.manual_seed(0)
    sides = {2: torch.export.Dim("height", min=2, max=512), 3: torch.export.Dim("width", min=2, max=512)}
    dynamic = ({0: torch.export.Dim("batch", min=1, max=16), **sides},)
    return Strided().eval(), (torch.randn(2, 3, 12, 20),), dynamic
