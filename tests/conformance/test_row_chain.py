"""Products and norms on blocks of rows as one kernel: equal, bit for bit, to the kernels it replaces, right against
eager and against numpy in double precision."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import effc
from effc.passes.fuse import rows
from effc.runtime.artifact import ArtifactReader


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains are formed, and run in blocks, for few rows too; the rule decides, not the cost model."""
    monkeypatch.setenv("EFFC_COST_MODEL", "0")
    monkeypatch.setattr(rows, "LARGE", 0)
    monkeypatch.setenv("EFFC_MODEL_CACHE", "0")  # which knows no such changes


class PreNorm(nn.Module):
    """The feed-forward half of a pre-norm layer and the next one's projection: norm, two products, residual, norm,
    product. The residual stream is a result too."""

    def __init__(self, d: int, h: int, o: int, act: Any = nn.functional.gelu, bias: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d, bias=bias), nn.LayerNorm(d)
        self.up, self.down, self.out = nn.Linear(d, h, bias), nn.Linear(h, d, bias), nn.Linear(d, o, bias)
        self.act = act

    def forward(self, x: torch.Tensor) -> Any:
        y = x + self.down(self.act(self.up(self.norm1(x))))
        return y, self.out(self.norm2(y))


class PostNorm(nn.Module):
    """What follows the attention of BERT."""

    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.proj, self.up, self.down = nn.Linear(d, d), nn.Linear(d, h), nn.Linear(h, d)

    def forward(self, a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x + self.proj(a))
        z: torch.Tensor = self.norm2(y + self.down(nn.functional.gelu(self.up(y))))
        return z


class Gated(nn.Module):
    """RMS norm and the gated feed-forward part of Llama."""

    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d, eps=1e-5)
        self.gate, self.up, self.down = nn.Linear(d, h, False), nn.Linear(d, h, False), nn.Linear(h, d, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        z: torch.Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return z


class Scaled(nn.Module):
    """A result of one element a row, which later stages broadcast."""

    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d, h), nn.Linear(h, d)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.up(x)
        top = y.abs().amax(-1, keepdim=True)
        return self.down(y / top) * top, top


# name: module, shapes of its inputs, products and fused regions of its chain
CASES: dict[str, tuple[nn.Module, list[tuple[int, ...]], int, int]] = {
    "pre-norm": (PreNorm(96, 384, 288), [(2, 67, 96)], 3, 2),
    "pre-norm, odd sizes": (PreNorm(37, 131, 45), [(1, 101, 37)], 3, 2),
    "pre-norm, no bias": (PreNorm(40, 100, 33, nn.functional.relu, False), [(3, 2, 29, 40)], 3, 2),
    "rows of rank 2": (PreNorm(64, 200, 64, torch.tanh), [(157, 64)], 3, 2),
    "few rows": (PreNorm(24, 50, 10), [(5, 24)], 3, 2),
    "one row": (PreNorm(24, 50, 10), [(1, 24)], 3, 2),
    "several blocks of the reduction": (PreNorm(600, 1100, 520), [(70, 600)], 3, 2),
    "post-norm": (PostNorm(72, 288), [(2, 50, 72), (2, 50, 72)], 3, 2),
    "post-norm, odd sizes": (PostNorm(31, 67), [(1, 33, 31), (1, 33, 31)], 3, 2),
    "gated": (Gated(48, 130), [(1, 129, 48)], 3, 1),
    "gated, odd sizes": (Gated(33, 77), [(4, 17, 33)], 3, 1),
    "one element a row": (Scaled(32, 57), [(3, 40, 32)], 2, 1),
}  # fmt: skip


def stats(m: Any) -> dict[str, int]:
    found: dict[str, int] = m.report["entries"]["main"]["passes"]["stats"]
    return {k.removeprefix("fuse_rows."): v for k, v in found.items() if k.startswith("fuse_rows.")}


def kinds(m: Any) -> dict[str, int]:
    """How many kernels of each kind the program calls."""
    found: dict[str, int] = {}
    for name, count in m.report["entries"]["main"]["kernels"].items():
        kind = name.partition("_")[0]
        found[kind] = found.get(kind, 0) + count
    return found


def results(x: Any) -> tuple[torch.Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def exact(net: nn.Module, xs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The same model in double precision."""
    try:
        with torch.no_grad():
            return results(net.double()(*(x.double() for x in xs)))
    finally:
        net.float()


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_kernels_it_replaces(name: str) -> None:
    net, shapes, products, regions = CASES[name]
    torch.manual_seed(len(name))
    net.eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape) / (p.shape[-1] ** 0.5 if p.ndim > 1 else 1))
    xs = [torch.randn(s) for s in shapes]
    apart = effc.compile(net, tuple(xs), disable_passes=("fuse_rows",))
    want = results(apart(*xs))
    assert "formed" not in stats(apart)
    for a, b in zip(want, exact(net, xs), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    for threads in (1, 2, 5):
        m = effc.compile(net, tuple(xs), num_threads=threads)
        assert stats(m) == {"formed": 1, "products": products, "regions": regions}
        assert kinds(m) == {"chain": 1}
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(results(m(*xs)), want, strict=True)), threads
    # Rows that lie further apart than they are long, and not in order
    m = effc.compile(net, tuple(xs))
    for change in (lambda x: torch.randn(*x.shape[:-1], x.shape[-1] + 3)[..., 1:-2], lambda x: x.flip(0)):
        ys = [change(x) for x in xs]
        assert all(torch.equal(a, b) for a, b in zip(results(m(*ys)), results(apart(*ys)), strict=True))


@pytest.mark.parametrize("large", [0, 1 << 16, 1 << 30])
@pytest.mark.parametrize("both", [False, True])
def test_dynamic_rows(both: bool, large: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Below ``large`` by its nodes, or, within a budget, stage by stage on all rows; from there on in blocks."""
    monkeypatch.setattr(rows, "LARGE", large)
    net, x = PreNorm(40, 96, 56).eval(), torch.randn(2, 9, 40)
    sizes = ({0: torch.export.Dim("b", min=1, max=8), 1: torch.export.Dim("n", min=1, max=512)},)
    for threads in (1, 3):
        budget = None if both else "1GiB"
        m = effc.compile(net, (x,), dynamic_shapes=sizes, num_threads=threads, arena_budget=budget)
        split = {"split": 1} if both and large else {}
        assert stats(m) == {"formed": 1, "products": 3, "regions": 2, **split}
        m.save(tmp_path / "m.effc")
        with ArtifactReader(tmp_path / "m.effc") as reader:
            code = reader.manifest["entries"]["main"]["program"]["code"]
        (call,) = [c for c in code if c["kernel"].startswith("chain")]
        assert len(code) == (6 if split else 1) and not any("concat" in c["kernel"] for c in code)
        floats = call["attrs"][4]
        assert floats >= 96 + 40 and call["attrs"][2] == (1 if split else -(-large // (4 * floats)))
        apart = effc.compile(net, (x,), dynamic_shapes=sizes, disable_passes=("fuse_rows",))
        for b, n in ((1, 1), (2, 9), (1, 37), (3, 65), (8, 31), (1, 512), (4, 200)):
            x = torch.randn(b, n, 40)
            got, want = m(x), apart(x)
            if not os.environ.get(
                "EFFC_SANITIZE"
            ):  # at -O1 products and sums are contracted where functions were inlined
                assert all(torch.equal(p, q) for p, q in zip(got, want, strict=True)), (b, n)
            with torch.no_grad():
                for p, q in zip(got, net(x), strict=True):
                    assert (p - q).abs().max() <= 1e-5 * q.abs().max()


@pytest.mark.parametrize("threads", [1, 2])
def test_dynamic_rows_need_what_static_ones_do(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arena is at most 1.05 times that of a program for the size, on both sides of the border."""
    monkeypatch.setattr(rows, "LARGE", 1 << 17)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = PreNorm(48, 192, 96), PreNorm(96, 192, 48)

        def forward(self, x: torch.Tensor) -> Any:
            y, z = self.a(x)
            return self.b(torch.flip(z, (0,)) + z)[1], y

    net = Two().eval()
    sizes = ({0: torch.export.Dim("b", min=1, max=8), 1: torch.export.Dim("n", min=1, max=512)},)
    m = effc.compile(net, (torch.randn(2, 9, 48),), dynamic_shapes=sizes, num_threads=threads)
    apart = effc.compile(net, (torch.randn(2, 9, 48),), dynamic_shapes=sizes, disable_passes=("fuse_rows",))
    assert stats(m)["split"] == 2
    formed = set()
    for b, n in ((1, 1), (3, 7), (2, 50), (8, 512), (3, 77)):
        x = torch.randn(b, n, 48)
        own = effc.compile(net, (x,), num_threads=threads)
        formed.add(stats(own).get("formed", 0))
        assert m.arena(x)[0] <= 1.05 * own.arena(x)[0], (b, n)
        if not os.environ.get("EFFC_SANITIZE"):
            assert all(torch.equal(p, q) for p, q in zip(m(x), apart(x), strict=True)), (b, n)
    assert {0, 2} <= formed


def test_no_rows() -> None:
    net = PreNorm(24, 50, 10).eval()
    m = effc.compile(net, (torch.randn(3, 24),), dynamic_shapes=({0: torch.export.Dim("n", min=0, max=64)},))
    assert stats(m)["formed"] == 1
    assert [tuple(y.shape) for y in m(torch.randn(0, 24))] == [(0, 24), (0, 10)]


def test_nan_and_infinity_stay_in_their_rows() -> None:
    net, x = PreNorm(40, 96, 56).eval(), torch.randn(2, 60, 40)
    x[0, 13, 5], x[1, 47, 2] = float("nan"), float("inf")
    m = effc.compile(net, (x,))
    with torch.no_grad():
        want = net(x)
    assert stats(m)["formed"] == 1 and want[1].isnan().any(-1).sum() == 2
    for p, q in zip(m(x), want, strict=True):
        np.testing.assert_array_equal(p.isnan(), q.isnan())


class Layer(nn.Module):
    """An encoder layer; ``first`` is the dim order in which its attention works, batch or length first."""

    def __init__(self, d: int, heads: int, first: str) -> None:
        super().__init__()
        self.qkv, self.rest, self.heads, self.first = nn.Linear(d, 3 * d), PostNorm(d, 4 * d), heads, first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.first == "batch" else x.transpose(0, 1).contiguous()
        parts = self.qkv(y).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4) if self.first == "batch" else parts.permute(2, 1, 3, 0, 4)
        z = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: torch.Tensor = self.rest(z, x)
        return out


@pytest.mark.parametrize("first", ["batch", "length"])
def test_encoder(first: str) -> None:
    """Attention stands between chains: what it reads and what it makes are borders."""
    net, x = nn.Sequential(*(Layer(48, 4, first) for _ in range(3))).eval(), torch.randn(2, 45, 48)
    m = effc.compile(net, (x,))
    apart = effc.compile(net, (x,), disable_passes=("fuse_rows",))
    if first == "batch":  # one chain a layer, and its attention; the first product stands alone
        assert stats(m) == {"formed": 3, "products": 11, "regions": 6}
        assert kinds(m) == {"chain": 3, "effc": 4}
    else:  # where attention has its own order of rows, its projection is no part
        assert stats(m)["formed"] == 3 and kinds(m)["chain"] == 3
    with torch.no_grad():
        want = net(x)
    assert torch.equal(m(x), apart(x)) and (m(x) - want).abs().max() <= 1e-5 * want.abs().max()


def test_rows_in_another_order_are_said() -> None:
    """An operand whose rows cannot be seen as one sequence: the nodes are lowered one by one, with a note."""
    net, x = PreNorm(40, 96, 56).eval(), torch.randn(7, 5, 40)
    m = effc.compile(Turned(net), (x,))
    assert stats(m)["formed"] == 1 and "chain" not in kinds(m)
    assert any("do not lie at equal distances" in n["reason"] for n in m.report["notes"])
    with torch.no_grad():
        for p, q in zip(m(x), Turned(net)(x), strict=True):
            assert (p - q).abs().max() <= 1e-5 * q.abs().max()


class Turned(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x.transpose(0, 1))


def reasons(m: Any) -> str:
    return " ".join(
        str(d) for d in m.report["entries"]["main"]["passes"]["declined"] if "fuse_rows" in str(d)
    )  # fmt: skip


class Tied(nn.Module):
    """A product with a table that is also looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.proj = nn.Embedding(60, 32), nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(self.table(i))) @ self.table.weight.T


def test_what_is_left_apart_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 40)
    m = effc.compile(nn.Linear(40, 60).eval(), (x,))
    assert not stats(m) and "nothing beside it works on the same rows" in reasons(m)
    m = effc.compile(Tied().eval(), (torch.randint(0, 60, (2, 30)),))
    assert stats(m) == {"formed": 1, "products": 1, "regions": 1} and "read by other ops too" in reasons(m)
    m = effc.compile(PreNorm(40, 96, 56).double().eval(), (x.double(),))
    assert not stats(m) and "results of f64" in reasons(m)
    m = effc.compile(PreNorm(40, 5000, 56).eval(), (x,))
    assert stats(m)["formed"] == 1 and "order of additions depends on the number of rows" in reasons(m)
    monkeypatch.setattr(rows, "CACHE", 1 << 15)
    m = effc.compile(PreNorm(40, 1000, 56).eval(), (x,))
    assert "would fit a core's cache" in reasons(m)
    monkeypatch.setattr(rows, "CACHE", 384 << 10)
    monkeypatch.setattr(rows, "WEIGHTS", 40 * 96 * 4)
    m = effc.compile(PreNorm(40, 96, 56).eval(), (x,))
    assert stats(m)["products"] == 2 and "would not stay in the last cache" in reasons(m)
    monkeypatch.setattr(rows, "LARGE", 1 << 20)
    m = effc.compile(PreNorm(40, 96, 56).eval(), (x,))
    assert not stats(m) and "KiB are between the kernels" in reasons(m)
