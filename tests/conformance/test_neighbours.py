"""Small kernels inside their neighbours: rows of tables that regions look up (embeddings), elementwise ops on queries
that attention computes as it loads them (rotary embeddings). Right against eager; equal, bit for bit, to the kernels
apart; indices are checked as they were; what is declined has its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

import effc
from effc.passes.fuse import kinds, rows
from effc.runtime.artifact import ArtifactReader

VOCABULARY = 50


@pytest.fixture(autouse=True)
def by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFC_COST_MODEL", "0")
    monkeypatch.setenv("EFFC_MODEL_CACHE", "0")  # which knows no changed limits


def report(model: Any) -> dict[str, Any]:
    passes: dict[str, Any] = model.report["entries"]["main"]["passes"]
    return passes


def reasons(model: Any, rule: str) -> set[str]:
    return {d["reason"] for d in report(model)["declined"] if d["rule"] == rule}


def kernels(model: Any, tmp_path: Any) -> list[str]:
    model.save(tmp_path / "m.effc")
    with ArtifactReader(tmp_path / "m.effc") as reader:
        return [i["kernel"] for i in reader.manifest["entries"]["main"]["program"]["code"]]


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    if want.numel():
        scale = float(want.detach().double().abs().max()) or 1.0
        assert float((got.detach().double() - want.detach().double()).abs().max()) <= tolerance * scale


def ids(*shape: int, seed: int = 0, most: int = VOCABULARY) -> torch.Tensor:
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(seed))


class Bert(nn.Module):
    """Word, position and token-type embeddings, their sum and its norm."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.word, self.position, self.kind = (nn.Embedding(n, width) for n in (VOCABULARY, 70, 2))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        at = torch.arange(x.shape[1], device=x.device)[None]
        y: torch.Tensor = self.norm(self.word(x) + self.kind(kind) + self.position(at))
        return y


@pytest.fixture
def no_lookups(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compiles with all lookups apart."""

    def compile(*args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as m:
            m.setattr(kinds, "LEAST_ROW", 1 << 30)
            return effc.compile(*args, **kwargs)

    return compile


def test_embeddings_and_their_norm_are_one_kernel(tmp_path: Any, no_lookups: Any) -> None:
    m, args = Bert().eval(), (ids(2, 9), ids(2, 9, seed=1, most=2))
    b, n = Dim("b", min=1, max=8), Dim("n", min=1, max=70)
    dynamic = ({0: b, 1: n}, {0: b, 1: n})
    fused = effc.compile(m, args, dynamic_shapes=dynamic)
    apart = no_lookups(m, args, dynamic_shapes=dynamic)
    assert report(fused)["stats"]["fuse.lookups"] == 3 and "fuse.lookups" not in report(apart)["stats"]
    assert "effc_take" not in kernels(fused, tmp_path) and kernels(apart, tmp_path).count("effc_take") == 3
    for batch, length in ((2, 9), (1, 1), (3, 37), (8, 70), (1, 64)):
        x = ids(batch, length, seed=length), ids(batch, length, seed=2, most=2)
        got = fused(*x)
        close(got, m(*x))
        assert torch.equal(got, apart(*x))
    x = ids(4, 18)[:, ::2], ids(9, 4, most=2).t()  # neither is contiguous
    assert torch.equal(fused(*x), apart(*x))
    static = effc.compile(m, args)
    assert report(static)["stats"]["fuse.lookups"] == 2  # positions are constant rows
    close(static(*args), m(*args))


@pytest.mark.parametrize("chained", [False, True])
def test_indices_out_of_range_are_refused(chained: bool, monkeypatch: pytest.MonkeyPatch, no_lookups: Any) -> None:
    if chained:
        monkeypatch.setattr(rows, "LARGE", 0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.word, self.norm, self.out = nn.Embedding(VOCABULARY, 32), nn.RMSNorm(32), nn.Linear(32, 40)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.word(x)
            y: torch.Tensor = self.out(self.norm(h))
            return y

    m, x = Model().eval(), ids(4, 60)
    fused, apart = effc.compile(m, (x,)), no_lookups(m, (x,))
    assert report(fused)["stats"]["fuse.lookups"] == 1
    assert report(fused)["stats"].get("fuse_rows.formed", 0) == int(chained)
    close(fused(x), m(x))
    assert torch.equal(fused(x), apart(x))
    for bad in (VOCABULARY, -VOCABULARY - 1, 1 << 40):
        wrong = x.clone()
        wrong[3, 59] = bad
        said = []
        for f in (fused, apart):
            with pytest.raises(effc.EffcError) as e:
                f(wrong)
            said.append(str(e.value).split(" [")[0])
            assert "h = self.word(x)" in str(e.value)
        assert said == [f"take: index {bad} is out of range for dim 0 of size {VOCABULARY}"] * 2
        close(fused(x), m(x))  # what was refused leaves nothing behind
    below = x.clone()
    below[0, 0] = -VOCABULARY  # counts from the end
    assert torch.equal(fused(below), apart(below)) and torch.equal(fused(below)[0, 0], fused(x * 0)[0, 0])


class Lookup(nn.Module):
    def __init__(self, f: Any, *tables: torch.Tensor) -> None:
        super().__init__()
        self.f = f
        for k, t in enumerate(tables):
            self.register_buffer(f"t{k}", t)

    def forward(self, *args: torch.Tensor) -> Any:
        return self.f(*self.buffers(), *args)


TABLE = torch.randn(VOCABULARY, 24, generator=torch.Generator().manual_seed(3))
CASES = {
    "i32 indices": (lambda t, i: F.embedding(i, t) * 2 + 1, (TABLE,), (ids(3, 5).int(),), 1),
    "f64": (lambda t, i: torch.softmax(F.embedding(i, t), -1), (TABLE.double(),), (ids(3, 5),), 1),
    "bf16": (lambda t, i: F.embedding(i, t).float() * 3, (TABLE.bfloat16(),), (ids(3, 5),), 1),
    "f16 norm": (lambda t, i: F.layer_norm(F.embedding(i, t), (24,)), (TABLE.half(),), (ids(3, 5),), 1),
    "bytes": (lambda t, i: F.embedding(i, t).float() * 0.1, ((TABLE * 9).to(torch.uint8),), (ids(3, 5),), 1),
    "a table of rank 3": (lambda t, i: t.index_select(0, i).exp(), (TABLE.reshape(10, 5, 24),), (ids(7, most=10),), 1),
    "along dim 1": (lambda t, i: t.index_select(1, i).tanh(), (TABLE.reshape(5, 10, 24),), (ids(7, most=10),), 1),
    "a table that is an operand": (lambda t, i: F.embedding(i, t.t()).sin(), (), (torch.randn(24, 9), ids(3, most=9)),
                                   1),
    "one table twice": (lambda t, i, j: F.embedding(i, t) - F.embedding(j, t), (TABLE,),
                        (ids(3, 5), ids(3, 5, seed=1)), 2),
    "the rows are a result": (lambda t, i: (F.embedding(i, t), F.rms_norm(F.embedding(i, t), (24,))), (TABLE,),
                              (ids(2, 5),), 1),
    "the indices are read too": (lambda t, i: F.embedding(i, t) * i[..., None], (TABLE,), (ids(2, 5),), 1),
    "rows for a whole batch": (lambda t, x: x + F.embedding(torch.arange(5), t), (TABLE,), (torch.randn(3, 5, 24),), 0),
    "summed along the rows": (lambda t, i: F.embedding(i, t).sum(-1), (TABLE,), (ids(3, 5),), 1),
    "summed across rows": (lambda t, i: F.embedding(i, t).sum(1), (TABLE,), (ids(3, 5),), 1),
    "nothing": (lambda t, i: F.embedding(i, t) + 1, (TABLE,), (ids(0, 5),), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_lookups(name: str, no_lookups: Any) -> None:
    f, tables, args, count = CASES[name]
    m = Lookup(f, *tables).eval()
    fused, apart = effc.compile(m, args), no_lookups(m, args)
    assert report(fused)["stats"].get("fuse.lookups", 0) == count
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 2e-2}
    for got, same, want in zip(*(torch.utils._pytree.tree_leaves(g(*args)) for g in (fused, apart, m)), strict=True):
        close(got, want, tolerance.get(want.dtype, 1e-5))
        assert torch.equal(got, same)


DECLINED = {
    "it takes rows of 8 elements, a loop for each would cost more": (
        lambda t, i: F.embedding(i, t[:, :8].clone()).exp()
    ),
    "it takes elements, not rows": lambda t, i: t.index_select(1, i).exp(),
    "it makes the table or the indices of a lookup in the region": lambda t, i: F.embedding(i * 2, t) * (i * 2),
}  # fmt: skip


@pytest.mark.parametrize("reason", DECLINED)
def test_why_rows_are_not_looked_up(reason: str) -> None:
    m, args = Lookup(DECLINED[reason], TABLE).eval(), (ids(24, most=24),)
    model = effc.compile(m, args)
    assert reason in reasons(model, "fuse")
    close(model(*args), m(*args))


# Prologues ------------------------------------------------------------------------------------------------------------


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Rotary(nn.Module):
    """Attention as Llama has it: grouped heads, rotary embeddings after (or before) the heads are moved outwards."""

    def __init__(self, heads: int = 4, kv: int = 2, head: int = 16, before: bool = False, causal: bool = True) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.heads, self.kv, self.head, self.before, self.causal = heads, kv, head, before, causal
        self.q, self.k, self.v = (nn.Linear(32, n * head) for n in (heads, kv, kv))
        self.register_buffer("speed", 10000 ** -(torch.arange(head // 2) / (head // 2)))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        b, n, _ = x.shape
        angles = torch.arange(n)[:, None] * self.speed
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q, k, v = (w(x).view(b, n, -1, self.head) for w in (self.q, self.k, self.v))
        if self.before:
            q, k = (rotated(t, cos[:, None], sin[:, None]).transpose(1, 2) for t in (q, k))
        else:
            q, k = (rotated(t.transpose(1, 2), cos, sin) for t in (q, k))
        return F.scaled_dot_product_attention(
            q, k, v.transpose(1, 2), mask, is_causal=self.causal and mask is None, enable_gqa=True
        )


@pytest.mark.parametrize("before", [False, True])
def test_rotary_queries(before: bool, tmp_path: Any) -> None:
    m = Rotary(before=before).eval()
    b, n = Dim("b", min=1, max=8), Dim("n", min=1, max=400)
    args, dynamic = (torch.randn(2, 9, 32),), ({0: b, 1: n},)
    for shapes in (None, dynamic):
        fused = effc.compile(m, args, dynamic_shapes=shapes)
        apart = effc.compile(m, args, dynamic_shapes=shapes, disable_passes=("fuse_prologues",))
        assert report(fused)["stats"]["fuse_prologues.formed"] == 1
        assert len(kernels(apart, tmp_path)) - len(kernels(fused, tmp_path)) == 1
        for size in ((2, 9), (1, 1), (1, 65), (3, 64), (8, 33), (1, 300)) if shapes else ((2, 9),):
            x = torch.randn(*size, 32)
            got = fused(x)
            close(got, m(x))
            assert torch.equal(got, apart(x))


PROLOGUES = {
    "scale and bias": lambda q, k, v: F.scaled_dot_product_attention(q * 0.3 + 1, k, v),
    "one op": lambda q, k, v: F.scaled_dot_product_attention(q.relu(), k, v),
    "another head": lambda q, k, v: F.scaled_dot_product_attention(q - k[:, :1, :1], k, v),
    "moved heads": lambda q, k, v: F.scaled_dot_product_attention(
        (q.transpose(1, 2).contiguous() * 2 + 1).transpose(1, 2), k, v
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((n, torch.float32) for n in PROLOGUES),
        *(("scale and bias", t) for t in (torch.float64, torch.float16, torch.bfloat16)),
    ],
)
def test_prologues(name: str, dtype: torch.dtype) -> None:
    m = Lookup(PROLOGUES[name]).eval()
    args = tuple(torch.randn(2, 3, n, 20).to(dtype) for n in (21, 300, 300))
    fused, apart = effc.compile(m, args), effc.compile(m, args, disable_passes=("fuse_prologues",))
    assert report(fused)["stats"]["fuse_prologues.formed"] == 1
    got = fused(*args)
    close(got, m(*args), {torch.float16: 4e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-5))
    assert torch.equal(got, apart(*args))


def test_a_masked_prologue_with_few_queries() -> None:
    """Keys are split into parts, each of which makes the queries anew; the mask hides keys and, of one row, all."""
    m = Rotary(causal=False).eval()
    x = torch.randn(1, 600, 32)
    mask = torch.rand(1, 1, 600, 600) < 0.7
    mask[..., 5, :] = False
    fused = effc.compile(m, (x, mask))
    assert report(fused)["stats"]["fuse_prologues.formed"] == 1
    close(fused(x, mask), m(x, mask))
    one = Lookup(lambda q, k, v: F.scaled_dot_product_attention(q * 0.5 + 2, k, v, enable_gqa=True)).eval()
    args = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 3000, 16), torch.randn(1, 2, 3000, 16)
    fused = effc.compile(one, args)
    assert report(fused)["stats"]["fuse_prologues.formed"] == 1
    close(fused(*args), one(*args))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


LEFT = {
    "something else reads the queries too": lambda q, k, v: (attend(q2 := q * 2 + 1, k, v), q2),
    "it reduces, which a prologue does not": lambda q, k, v: attend(F.rms_norm(q, (20,)), k, v),
    "its queries are put together of parts": lambda q, k, v: attend(torch.cat((q[..., :4] * 2, q[..., 4:]), -1), k, v),
    "exp is dear, and parts of the keys would compute it again": lambda q, k, v: attend(q.exp(), k, v),
}


@pytest.mark.parametrize("reason", LEFT)
def test_why_queries_are_made_apart(reason: str) -> None:
    m = Lookup(LEFT[reason]).eval()
    args = tuple(torch.randn(2, 3, n, 20) for n in (21, 30, 30))
    model = effc.compile(m, args)
    assert reason in reasons(model, "fuse_prologues") and "fuse_prologues.formed" not in report(model)["stats"]
    for got, want in zip(*(torch.utils._pytree.tree_leaves(g(*args)) for g in (model, m)), strict=True):
        close(got, want)


def test_reference_agrees() -> None:
    """Numpy's meaning of both, from their decompositions."""
    m, x = Rotary().eval(), torch.randn(2, 9, 32)
    np.testing.assert_allclose(
        effc.compile(m, (x,))(x).numpy(), effc.compile(m, (x,), target="reference")(x).numpy(), rtol=1e-4, atol=1e-5
    )
