"""Attention is recognised in the spellings of common models, masks keep their meaning, and near misses are left
alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pass_helpers import close, random_inputs, same_values

from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph, Value
from effc.ir.interp import run
from effc.ir.op import OPS
from effc.ir.types import TensorType
from effc.ir.verify import verify
from effc.passes.attention import FormAttention
from effc.passes.canonical import Canonicalise
from effc.passes.cleanup import Cse, Dce, Fold
from effc.passes.manager import PassReport, Pipeline
from effc.passes.masks import Position, bounds, causal_offset, position

pytestmark = pytest.mark.skipif("attention" not in OPS, reason="op attention is not declared")
F32 = DType.f32
MIN = float(np.finfo(np.float32).min)


class Net(Builder):
    """A builder with the vocabulary of attention modules."""

    def tensor(self, name: str, *shape: Any, dtype: DType = F32) -> Value:
        return self.input(name, TensorType(dtype, shape))

    def number(self, x: float, dtype: DType = F32) -> Value:
        return self.constant(x, dtype)

    def softmax(self, x: Value, style: str = "torch") -> Value:
        d = (x.rank - 1,)
        if style == "plain":
            e = self.op("exp", x)
            return self.op("div", e, self.op("reduce", e, kind="sum", dims=d, keepdims=True))
        if style == "lse":
            m = self.op("reduce", x, kind="max", dims=d, keepdims=True)
            total = self.op("reduce", self.op("exp", self.op("sub", x, m)), kind="sum", dims=d, keepdims=True)
            return self.op("exp", self.op("sub", x, self.op("add", self.op("log", total), m)))
        if style == "log":
            z = self.op("sub", x, self.op("reduce", x, kind="max", dims=d, keepdims=True))
            total = self.op("reduce", self.op("exp", z), kind="sum", dims=d, keepdims=True)
            return self.op("exp", self.op("sub", z, self.op("log", total)))
        keep = style != "dropped"
        m = self.op("reduce", x, kind="max", dims=d, keepdims=keep)
        m = m if keep else self.op("reshape", m, shape=(*x.shape[:-1], 1))
        e = self.op("exp", self.op("sub", x, m))
        s = self.op("reduce", e, kind="sum", dims=d, keepdims=keep)
        s = s if keep else self.op("reshape", s, shape=(*x.shape[:-1], 1))
        return self.op("mul", e, self.op("reciprocal", s)) if style == "reciprocal" else self.op("div", e, s)

    def t(self, x: Value) -> Value:
        return self.op("permute", x, dims=(*range(x.rank - 2), x.rank - 1, x.rank - 2))

    def heads(self, x: Value, h: int) -> Value:
        b, length, e = x.shape
        assert isinstance(e, int)
        return self.op("permute", self.op("reshape", x, shape=(b, length, h, e // h)), dims=(0, 2, 1, 3))

    def repeat(self, x: Value, times: int) -> Value:
        b, h, length, e = x.shape
        y = self.op("broadcast_to", self.op("reshape", x, shape=(b, h, 1, length, e)), shape=(b, h, times, length, e))
        return self.op("reshape", y, shape=(b, h * times, length, e))

    def causal(self, rows: Any, cols: Any, offset: Any = 0) -> Value:
        i = self.op(
            "add",
            self.op("reshape", self.op("iota", shape=(rows,)), shape=(rows, 1)),
            self.op("dim_value", value=offset),
        )
        return self.op("le", self.op("reshape", self.op("iota", shape=(cols,)), shape=(1, cols)), i)


def form(g: Graph, formed: int = 1, sizes: dict[str, int] | None = None, factor: float = 4) -> tuple[Graph, PassReport]:
    verify(g)
    report = PassReport()
    passes = (Canonicalise(), Fold(), Cse(), FormAttention(), Canonicalise(), Fold(), Cse(), Dce())
    out = Pipeline(passes, verify=True).run(g, report)
    for seed in range(2):
        same_values(g, out, seed, sizes, factor)
    assert report.stats.get("attention.formed", 0) == formed, report.declined
    assert sum(n.op == "attention" for n in out.nodes) == formed
    if formed:
        assert not any(n.op == "matmul" for n in out.nodes) and not any(n.op == "exp" for n in out.nodes)
    return out, report


def attention_of(g: Graph) -> Any:
    return next(n for n in g.nodes if n.op == "attention")


def bert(b: Net, style: str = "torch") -> Value:
    s = b.symbol("s0", 1, 64)
    x, mask = b.tensor("x", 2, s, 12), b.tensor("mask", 2, s, dtype=DType.bool)
    q, k, v = (b.heads(b.op("mul", x, b.number(f)), 3) for f in (1.0, 0.5, 2.0))
    scores = b.op("div", b.op("matmul", q, b.t(k)), b.number(2.0))
    gone = b.op("sub", b.number(1.0), b.op("convert", b.op("reshape", mask, shape=(2, 1, 1, s)), dtype=F32))
    scores = b.op("add", scores, b.op("mul", gone, b.number(MIN)))
    return b.op("matmul", b.softmax(scores, style), v)


def gpt2(b: Net, style: str = "torch") -> Value:
    """Causal where with a slice of a constant triangle, as in GPT-2's buffer; division by a full tensor."""
    s = b.symbol("s0", 1, 16)
    x = b.tensor("x", 2, s, 12)
    q, k, v = (b.heads(b.op("mul", x, b.number(f)), 3) for f in (1.0, 0.5, 2.0))
    scores = b.op("div", b.op("matmul", q, b.t(k)), b.op("full", value=math.sqrt(4), shape=(), dtype=F32))
    keep = b.op(
        "slice",
        b.constant(np.tril(np.ones((1, 1, 16, 16), bool))),
        starts=(0, 0, 0, 0),
        stops=(1, 1, s, s),
        steps=(1, 1, 1, 1),
    )
    return b.op(
        "matmul", b.softmax(b.op("where", keep, scores, b.op("full", value=MIN, shape=(), dtype=F32)), style), v
    )


def llama(b: Net, style: str = "torch") -> Value:
    """Grouped heads repeated, rotary outside, a causal additive mask, softmax in f32."""
    s = b.symbol("s0", 1, 64)
    x, cos = b.tensor("x", 2, s, 24), b.tensor("cos", s, 4)
    q = b.op("mul", b.heads(x, 6), cos)
    k0 = b.op("mul", b.heads(b.op("slice", x, starts=(0, 0, 0), stops=(2, s, 8), steps=(1, 1, 1)), 2), cos)
    v0 = b.heads(b.op("slice", x, starts=(0, 0, 8), stops=(2, s, 16), steps=(1, 1, 1)), 2)
    k, v = b.repeat(k0, 3), b.repeat(v0, 3)
    scores = b.op("mul", b.op("matmul", q, b.t(k)), b.number(0.5))
    mask = b.op("where", b.op("reshape", b.causal(s, s), shape=(1, 1, s, s)), b.number(0.0), b.number(MIN))
    p = b.softmax(b.op("convert", b.op("add", scores, mask), dtype=F32), style)
    return b.op("matmul", b.op("convert", p, dtype=F32), v)


def t5(b: Net, style: str = "torch") -> Value:
    """No scale, position bias [1, H, Lq, Lk]."""
    q, k, v = b.tensor("q", 2, 3, 5, 4), b.tensor("k", 2, 3, 7, 4), b.tensor("v", 2, 3, 7, 6)
    bias = b.tensor("bias", 1, 3, 5, 7)
    return b.op("matmul", b.softmax(b.op("add", b.op("matmul", q, b.t(k)), bias), style), v)


def vit(b: Net, style: str = "torch") -> Value:
    """No mask; q scaled before the product, k given transposed."""
    n = b.symbol("n", 1, 64)
    x = b.tensor("x", n, 5, 12)
    q, v = b.op("mul", b.heads(x, 3), b.number(0.37)), b.heads(x, 3)
    kt = b.op("permute", b.op("reshape", b.op("tanh", x), shape=(n, 5, 3, 4)), dims=(0, 2, 3, 1))
    return b.op("matmul", b.softmax(b.op("matmul", q, kt), style), v)


SPELLINGS: dict[str, Callable[..., Value]] = {"bert": bert, "gpt2": gpt2, "llama": llama, "t5": t5, "vit": vit}


@pytest.mark.parametrize("style", ["torch", "dropped", "plain", "lse", "log", "reciprocal"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str, style: str) -> None:
    b = Net()
    g = b.graph([SPELLINGS[name](b, style)])
    out, report = form(g)
    n = attention_of(out)
    if name == "bert":
        assert (
            n.attrs["scale"] == 0.25 and not n.attrs["causal"] and n.inputs[3] is not None
        )  # k's factor is taken in too
        assert "attention.empty_nan" not in report.stats, "finite masks need no guard"
    if name == "gpt2":
        assert n.attrs["causal"] and n.attrs["causal_offset"] == 0 and len(n.operands) == 3
    if name == "llama":
        assert (
            n.attrs["causal"] and n.operands[1].shape[1] == 2 and n.operands[0].shape[1] == 6 and len(n.operands) == 3
        )
    if name == "t5":
        assert n.attrs["scale"] == 1.0 and n.operands[3].shape == (1, 3, 5, 7)
        assert report.stats["attention.empty_nan"] == 1, "a mask from outside may be -inf along a row"
    if name == "vit":
        assert math.isclose(n.attrs["scale"], 0.37, rel_tol=1e-6) and len(n.operands) == 3
        assert not any(m.op == "mul" for m in out.nodes)


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("size", [1, 2, 16])
def test_sizes(name: str, size: int) -> None:
    b = Net()
    form(b.graph([SPELLINGS[name](b)]), sizes={"s0": size, "n": size})


def test_text_before_and_after() -> None:
    from pass_helpers import check_pass

    before = """graph main(%q: f32[2, 3, 5, 4], %k: f32[2, 3, 7, 4], %v: f32[2, 3, 7, 6]) {
      %kt = permute(%k) {dims=[0, 1, 3, 2]}
      %s = matmul(%q, %kt)
      %c = constant() {data=array(f32[], [0.5])}
      %x = mul(%s, %c)
      %m = reduce(%x) {kind="max", dims=[3], keepdims=true}
      %d = sub(%x, %m)
      %e = exp(%d)
      %t = reduce(%e) {kind="sum", dims=[3], keepdims=true}
      %p = div(%e, %t)
      %o = matmul(%p, %v)
      return %o
    }"""
    after = """graph main(%q: f32[2, 3, 5, 4], %k: f32[2, 3, 7, 4], %v: f32[2, 3, 7, 6]) {
      %o = attention(%q, %k, %v) {scale=0.5}
      return %o
    }"""
    check_pass(FormAttention(), before, after)


def frontend_sdpa(b: Net, q: Value, k: Value, v: Value, keep: Value | None, bias: Value | None) -> Value:
    """What the torch frontend writes for scaled_dot_product_attention."""
    s = b.op("mul", b.op("matmul", q, b.t(k)), b.number(0.5))
    if bias is not None:
        s = b.op("add", s, bias)
    if keep is not None:
        s = b.op("where", keep, s, b.number(-math.inf))
    p = b.softmax(s)
    if keep is not None or bias is not None:
        blind = b.op("reduce", b.op("eq", s, b.number(-math.inf)), kind="all", dims=(3,), keepdims=True)
        p = b.op("where", blind, b.number(0.0), p)
    return b.op("matmul", p, v)


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float", "both", "padded causal"])
def test_sdpa(kind: str) -> None:
    b = Net()
    q, k, v = b.tensor("q", 2, 3, 5, 4), b.tensor("k", 2, 3, 7, 4), b.tensor("v", 2, 3, 7, 6)
    keep = (
        b.causal(5, 7)
        if "causal" in kind
        else b.tensor("keep", 2, 1, 5, 7, dtype=DType.bool)
        if kind in ("bool", "both")
        else None
    )
    if kind == "padded causal":
        keep = b.op("logical_and", keep, b.tensor("pad", 2, 1, 1, 7, dtype=DType.bool))
    bias = b.tensor("bias", 3, 5, 7) if kind in ("float", "both") else None
    g = b.graph([frontend_sdpa(b, q, k, v, keep, bias)])
    out, report = form(g)
    n = attention_of(out)
    assert n.attrs["causal"] == ("causal" in kind)
    assert "attention.empty_nan" not in report.stats
    assert (len(n.operands) == 4) == (kind not in ("none", "causal"))


def test_empty_rows_of_sdpa_give_zeros_and_of_softmax_nan() -> None:
    rng = np.random.default_rng(0)
    for safe, dt in ((True, F32), (False, F32), (False, DType.f64)):
        b = Net()
        q, k, v = (b.tensor(n, 1, 1, length, 4, dtype=dt) for n, length in (("q", 3), ("k", 5), ("v", 5)))
        keep, bias = b.tensor("keep", 1, 1, 3, 5, dtype=DType.bool), b.tensor("bias", 1, 1, 1, 5, dtype=dt)
        if safe:
            y = frontend_sdpa(b, q, k, v, keep, bias)
        else:
            s = b.op("where", keep, b.op("add", b.op("matmul", q, b.t(k)), bias), b.number(-math.inf, dt))
            y = b.op("matmul", b.softmax(s), v)
        g = b.graph([y])
        out, _report = form(g)
        arrays = random_inputs(g, rng)
        arrays[3][...] = True
        arrays[3][0, 0, 1] = False
        arrays[4][...] = [[[[1, -np.inf, 0, -np.inf, 2]]]]
        want, got = run(g, arrays)[0], run(out, arrays)[0]
        close(got, want, dt, 4)
        assert np.isnan(want[0, 0, 1]).all() if not safe else (want[0, 0, 1] == 0).all()
        arrays[4][...] = -np.inf
        close(run(out, arrays)[0], run(g, arrays)[0], dt, 4)


def test_causal_with_offset_of_a_cache() -> None:
    """Rows are the last s0 of p + s0 positions."""
    b = Net()
    s, p = b.symbol("s0", 1, 8), b.symbol("p", 0, 8)
    q, k, v = b.tensor("q", 1, 2, s, 4), b.tensor("k", 1, 2, s + p, 4), b.tensor("v", 1, 2, s + p, 4)
    scores = b.op("where", b.causal(s, s + p, p), b.op("matmul", q, b.t(k)), b.number(-math.inf))
    out, _ = form(b.graph([b.op("matmul", b.softmax(scores), v)]), sizes={"s0": 3, "p": 4})
    n = attention_of(out)
    assert n.attrs["causal"] and n.attrs["causal_offset"] == p


def test_causal_that_empties_rows_says_so() -> None:
    b = Net()
    q, k, v = b.tensor("q", 1, 2, 5, 4), b.tensor("k", 1, 2, 5, 4), b.tensor("v", 1, 2, 5, 4)
    scores = b.op("where", b.causal(5, 5, -1), b.op("matmul", q, b.t(k)), b.number(-math.inf))
    g = b.graph([b.op("matmul", b.softmax(scores), v)])
    out, _report = form(g)
    n = attention_of(out)
    assert n.attrs["causal"] and n.attrs["causal_offset"] == -1 and n.attrs["empty_nan"]
    assert np.isnan(run(out, random_inputs(g, np.random.default_rng(0)))[0][0, 0, 0]).all()


def test_causal_beside_padding_stays_a_mask() -> None:
    """With finite fills, rows whose keys are all padded weigh the masked ones: causal=True would change them."""
    b = Net()
    q, k, v = b.tensor("q", 2, 2, 5, 4), b.tensor("k", 2, 2, 5, 4), b.tensor("v", 2, 2, 5, 4)
    pad = b.tensor("pad", 2, 1, 1, 5, dtype=DType.bool)
    both = b.op("logical_and", b.causal(5, 5), pad)
    scores = b.op("add", b.op("matmul", q, b.t(k)), b.op("where", both, b.number(0.0), b.number(MIN)))
    g = b.graph([b.op("matmul", b.softmax(scores), v)])
    out, report = form(g)
    assert not attention_of(out).attrs["causal"] and "attention.empty_nan" not in report.stats
    arrays = random_inputs(g, np.random.default_rng(0))
    arrays[3][...] = [[[[False, False, False, True, True]]]]
    close(run(out, arrays)[0], run(g, arrays)[0], F32, 4)


def test_alibi_beside_causal() -> None:
    b = Net()
    s = b.symbol("s0", 1, 64)
    q, k, v = b.tensor("q", 2, 2, s, 4), b.tensor("k", 2, 2, s, 4), b.tensor("v", 2, 2, s, 4)
    slopes = b.op("tanh", b.tensor("slopes", 2, 1, 1))
    scores = b.op("add", b.op("matmul", q, b.t(k)), slopes)
    scores = b.op("where", b.causal(s, s), scores, b.number(MIN))
    out, _ = form(b.graph([b.op("matmul", b.softmax(scores), v)]))
    assert attention_of(out).attrs["causal"] and attention_of(out).operands[3].shape == (1, 2, 1, 1)


def test_softcap() -> None:
    b = Net()
    q, k, v = b.tensor("q", 1, 2, 5, 4), b.tensor("k", 1, 2, 5, 4), b.tensor("v", 1, 2, 5, 4)
    s = b.op("mul", b.op("matmul", q, b.t(k)), b.number(0.5))
    s = b.op("mul", b.op("tanh", b.op("div", s, b.number(3.0))), b.number(3.0))
    s = b.op("add", s, b.op("where", b.causal(5, 5), b.number(0.0), b.number(-math.inf)))
    out, _ = form(b.graph([b.op("matmul", b.softmax(s), v)]))
    n = attention_of(out)
    assert n.attrs["softcap"] == 3.0 and math.isclose(n.attrs["scale"], 0.5) and n.attrs["causal"]


def test_merged_batch_and_heads() -> None:
    """bmm spelling: q, k, v of rank 3, the mask added in rank 4, softmax and second product in rank 3."""
    b = Net()
    s = b.symbol("s0", 1, 64)
    x, mask = b.tensor("x", 2, s, 12), b.tensor("mask", 2, 1, s, s)
    q, k, v = (b.op("reshape", b.heads(b.op("mul", x, b.number(f)), 3), shape=(6, s, 4)) for f in (0.3, 0.5, 2.0))
    scores = b.op("reshape", b.op("matmul", q, b.t(k)), shape=(2, 3, s, s))
    p = b.softmax(b.op("reshape", b.op("add", scores, b.op("tanh", mask)), shape=(6, s, s)))
    y = b.op("reshape", b.op("matmul", p, v), shape=(2, 3, s, 4))
    out, _ = form(b.graph([y]))
    n = attention_of(out)
    assert n.operands[0].shape == (2, 3, s, 4) and n.operands[3].shape == (2, 1, s, s)
    assert math.isclose(n.attrs["scale"], 0.15, rel_tol=1e-6)


def test_alibi_over_merged_heads() -> None:
    """Bloom: a bias [B*H, 1, Lk] is added to the product of rank 3, a mask [B, 1, Lq, Lk] to the scores of rank 4."""
    b = Net()
    n, s = b.symbol("n", 1, 9), b.symbol("s0", 1, 64)
    x, alibi = b.tensor("x", n, s, 12), b.op("tanh", b.tensor("alibi", n * 3, 1, s))
    pad = b.tensor("pad", n, 1, 1, s, dtype=DType.bool)
    q, k, v = (b.op("reshape", b.heads(b.op("mul", x, b.number(f)), 3), shape=(n * 3, s, 4)) for f in (0.3, 0.5, 2.0))
    scores = b.op("add", alibi, b.op("mul", b.op("matmul", q, b.t(k)), b.number(0.5)))
    scores = b.op("reshape", scores, shape=(n, 3, s, s))
    scores = b.op("add", scores, b.op("where", pad, b.number(0.0), b.number(MIN)))
    p = b.op("reshape", b.softmax(scores), shape=(n * 3, s, s))
    g = b.graph([b.op("reshape", b.op("matmul", p, v), shape=(n, 3, s, 4))])
    for sizes in ({"n": 1, "s0": 1}, {"n": 2, "s0": 5}, {"n": 3, "s0": 3}):
        out, report = form(g, sizes=sizes)
    assert attention_of(out).operands[3].shape == (n, 3, 1, s) and "attention.empty_nan" not in report.stats


def test_single_head_of_rank_three_and_two() -> None:
    for lead in ((3,), ()):
        b = Net()
        q, k, v = b.tensor("q", *lead, 5, 4), b.tensor("k", *lead, 7, 4), b.tensor("v", *lead, 7, 6)
        out, _ = form(b.graph([b.op("matmul", b.softmax(b.op("matmul", q, b.t(k))), v)]))
        assert attention_of(out).operands[0].rank == 4


def test_multi_query() -> None:
    b = Net()
    q, k, v = b.tensor("q", 2, 6, 5, 4), b.tensor("k", 2, 1, 7, 4), b.tensor("v", 2, 1, 7, 4)
    out, _ = form(b.graph([b.op("matmul", b.softmax(b.op("matmul", q, b.t(k))), v)]))
    assert attention_of(out).operands[1].shape[1] == 1


def test_temperature_per_head() -> None:
    b = Net()
    q, k, v, t = b.tensor("q", 2, 6, 5, 4), b.tensor("k", 2, 6, 7, 4), b.tensor("v", 2, 6, 7, 4), b.tensor("t", 6, 1, 1)
    out, _ = form(b.graph([b.op("matmul", b.softmax(b.op("mul", b.op("matmul", q, b.t(k)), t)), v)]))
    assert any(n.op == "mul" for n in out.nodes)


@pytest.mark.parametrize("dtype", [DType.f16, DType.bf16])
def test_short_floats(dtype: DType) -> None:
    """SDPA upcasts q, k, v to f32: the op takes the short operands themselves."""
    b = Net()
    q, k, v = (b.tensor(n, 2, 3, 5, 4, dtype=dtype) for n in "qkv")
    wide = [b.op("convert", t, dtype=F32) for t in (q, k, v)]
    y = b.op("convert", frontend_sdpa(b, *wide, b.causal(5, 5), None), dtype=dtype)
    out, _ = form(b.graph([y]))
    n = attention_of(out)
    assert n.operands[0].dtype is dtype and [m.op for m in out.nodes] == ["attention"]


@pytest.mark.parametrize("dtype", [DType.f16, DType.bf16])
def test_wide_masks_on_short_products(dtype: DType) -> None:
    """f16 scores, widened, masked with f32's lowest number: in f16 that would be -inf, and padded rows NaN."""
    b = Net()
    q, k, v = (b.tensor(n, 2, 2, 5, 4, dtype=dtype) for n in "qkv")
    pad = b.tensor("pad", 2, 1, 1, 5, dtype=DType.bool)
    s = b.op("convert", b.op("matmul", q, b.t(k)), dtype=F32)
    s = b.op("add", s, b.op("where", pad, b.number(0.0), b.number(MIN)))
    y = b.op("matmul", b.op("convert", b.softmax(s), dtype=dtype), v)
    g = b.graph([y])
    out, report = form(g)
    assert attention_of(out).operands[0].dtype is F32 and "attention.empty_nan" not in report.stats
    arrays = random_inputs(g, np.random.default_rng(0))
    arrays[3][...] = False
    close(run(out, arrays)[0], run(g, arrays)[0], dtype, 2)


@pytest.mark.parametrize(
    ("dtype", "fill"), [(F32, -10000.0), (DType.f16, -65504.0), (DType.bf16, -3.38e38), (DType.f64, -1e300)]
)
@pytest.mark.parametrize("added", [False, True])
def test_finite_causal_fills(dtype: DType, fill: float, added: bool) -> None:
    b = Net()
    q, k, v = (b.tensor(n, 2, 2, 5, 4, dtype=dtype) for n in "qkv")
    s = b.op("matmul", q, b.t(k))
    if added:
        s = b.op("add", s, b.op("where", b.causal(5, 5), b.number(0.0, dtype), b.number(fill, dtype)))
    else:
        s = b.op("where", b.causal(5, 5), s, b.number(fill, dtype))
    out, _ = form(b.graph([b.op("matmul", b.softmax(s), v)]))
    assert attention_of(out).attrs["causal"] and len(attention_of(out).operands) == 3


def test_a_bias_as_large_as_the_fill_keeps_the_causal_mask() -> None:
    b = Net()
    q, k, v = b.tensor("q", 2, 2, 5, 4), b.tensor("k", 2, 2, 5, 4), b.tensor("v", 2, 2, 5, 4)
    bias = b.op("mul", b.op("tanh", b.tensor("bias", 1, 2, 5, 5)), b.number(20000.0))
    s = b.op("add", b.op("matmul", q, b.t(k)), b.op("where", b.causal(5, 5), b.number(0.0), b.number(-10000.0)))
    out, _ = form(b.graph([b.op("matmul", b.softmax(b.op("add", s, bias)), v)]))
    assert not attention_of(out).attrs["causal"]


def test_declines() -> None:
    def case(kind: str) -> tuple[Graph, str]:
        b = Net()
        q, k, v = b.tensor("q", 1, 2, 5, 4), b.tensor("k", 1, 2, 5, 4), b.tensor("v", 1, 2, 5, 4)
        s = b.op("matmul", q, b.t(k))
        if kind == "weights out":
            p = b.softmax(s)
            return b.graph([b.op("matmul", p, v), p]), "the scores or weights are used elsewhere"
        if kind == "scores out":
            return b.graph(
                [b.op("matmul", b.softmax(s), v), b.op("tanh", s)]
            ), "the scores or weights are used elsewhere"
        if kind == "finite fill":
            s = b.op("where", b.tensor("m", 5, 5, dtype=DType.bool), s, b.number(-10000.0))
            return b.graph(
                [b.op("matmul", b.softmax(s), v)]
            ), "masked scores are -10000, which a row without other keys would show"
        if kind == "key scale":
            s = b.op("mul", s, b.tensor("m", 5))
            return b.graph([b.op("matmul", b.softmax(s), v)]), "the scores are scaled by a tensor that varies over keys"
        if kind == "relu":
            s = b.op("maximum", s, b.number(0.0))
            return b.graph(
                [b.op("matmul", b.softmax(s), v)]
            ), "the scores come from maximum, not from a product of queries and keys"
        w = b.constant(np.ones((4, 5), np.float32))
        s = b.op("matmul", q, w)
        return b.graph([b.op("matmul", b.softmax(s), v)]), "the keys are constant weights"

    for kind in ("weights out", "scores out", "finite fill", "key scale", "relu", "constant keys"):
        g, reason = case(kind)
        report = PassReport()
        out = Pipeline((Canonicalise(), FormAttention()), verify=True).run(g, report)
        assert not any(n.op == "attention" for n in out.nodes), kind
        assert report.reasons("attention") == {reason}


def test_a_softmax_over_other_dims_is_no_attention() -> None:
    b = Net()
    q, k, v = b.tensor("q", 1, 2, 5, 4), b.tensor("k", 1, 2, 5, 4), b.tensor("v", 1, 2, 5, 4)
    s = b.op("matmul", q, b.t(k))
    m = b.op("reduce", s, kind="max", dims=(2,), keepdims=True)
    e = b.op("exp", b.op("sub", s, m))
    p = b.op("div", e, b.op("reduce", e, kind="sum", dims=(2,), keepdims=True))
    g = b.graph([b.op("matmul", p, v)])
    assert not any(n.op == "attention" for n in FormAttention().run(g).nodes)


# Mask analysis --------------------------------------------------------------------------------------------------------


def test_causal_offsets() -> None:
    b = Net()
    s, p = b.symbol("s0", 1, 16), b.symbol("p", 0, 9)
    b.tensor("sizes", s, p)
    i = b.op("reshape", b.op("iota", shape=(s,)), shape=(s, 1))
    j = b.op("reshape", b.op("iota", shape=(s,)), shape=(1, s))
    ones = b.op("full", value=True, shape=(s, s), dtype="bool")
    one = b.constant(np.int64(1))
    cases: list[tuple[Value, Any]] = [
        (b.op("le", j, i), 0),
        (b.op("lt", j, i), -1),
        (b.op("ge", i, j), 0),
        (b.op("gt", b.op("add", i, one), j), 0),
        (b.op("le", b.op("sub", j, i), b.op("mul", one, b.constant(np.int64(3)))), 3),
        (b.op("logical_not", b.op("gt", j, i)), 0),
        (b.op("logical_not", b.op("lt", i, j)), 0),
        (b.op("le", j, b.op("add", i, b.op("dim_value", value=p))), p),
        (b.op("tril", ones, diagonal=2), 2),
        (b.op("logical_not", b.op("triu", ones, diagonal=1)), 0),
        (b.op("slice", b.constant(np.tril(np.ones((16, 16), bool))), starts=(p, 0), stops=(p + s, s), steps=(1, 1)), p),
        (b.constant(np.tril(np.ones((4, 6), bool), -1)), -1),
        (b.constant(np.tril(np.ones((1, 1, 4, 6), bool), 3)), 3),
        (b.op("le", i, j), None),
        (b.op("eq", i, j), None),
        (b.op("le", b.op("mul", j, b.constant(np.int64(2))), i), None),
        (b.constant(np.eye(4, dtype=bool)), None),
        (b.constant(np.zeros((4, 4), bool)), None),
        (b.tensor("keep", s, s, dtype=DType.bool), None),
    ]
    for v, want in cases:
        assert causal_offset(v) == want, (v.node.op, causal_offset(v), want)
    arrays = [np.zeros((7, 2), np.float32), np.zeros((7, 7), bool)]
    for v, want in cases:
        if want is None:
            continue
        g = Graph(tuple(b.inputs), tuple(b.nodes), (v,), b.symbols).without_dead()
        keep = run(g, arrays)[0]
        rows, cols = keep.shape[-2:]
        o = want if isinstance(want, int) else 2
        np.testing.assert_array_equal(keep.reshape(-1, rows, cols)[0], np.tri(rows, cols, o, bool))


def test_positions() -> None:
    b = Net()
    a = b.constant(np.arange(3, 12, 2))
    assert position(a) == Position(0, 2, 3)
    col = b.op("reshape", a, shape=(5, 1))
    assert (position(col).rows, position(col).cols) == (2, 0)  # type: ignore[union-attr]
    t = b.op("permute", b.op("broadcast_to", col, shape=(5, 7)), dims=(1, 0))
    assert (position(t).rows, position(t).cols) == (0, 2)  # type: ignore[union-attr]
    assert position(b.constant(np.array([1, 2, 4]))) is None
    assert position(b.constant(np.arange(8).reshape(2, 2, 2))) is None


def test_bounds_hold_on_random_masks() -> None:
    rng = np.random.default_rng(5)
    for seed in range(40):
        b = Net()
        keep, n = b.tensor("keep", 4, 4, dtype=DType.bool), b.tensor("n", 4, 4)
        v: Any = b.op("convert", keep, dtype=F32)
        for _ in range(int(rng.integers(1, 6))):
            c = b.number(float(rng.normal() * 10.0 ** rng.integers(-2, 39)))
            kind = rng.integers(8)
            if kind == 2:
                v = b.op("where", keep, v, c)
            elif kind in (3, 6):
                v = b.op("neg" if kind == 3 else "triu", v)
            elif kind == 5:
                v = b.op("minimum", v, b.op("tanh", n))
            else:
                v = b.op({0: "sub", 1: "mul", 4: "maximum", 7: "add"}[int(kind)], c, v)
        g = b.graph([v])
        low, high = bounds(v)
        for k in range(3):
            y = run(g, random_inputs(g, np.random.default_rng(seed * 7 + k)))[0].astype(np.float64)
            y = y[~np.isnan(y)]
            assert y.size == 0 or (y.min() >= low - 1e-6 * abs(low) and y.max() <= high + 1e-6 * abs(high)), (
                low,
                high,
                y,
            )
