"""Folding of scales into weights, merged products, epilogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pass_helpers import check_pass, same_values

from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph, Value
from effc.ir.op import OPS
from effc.ir.text import to_text
from effc.ir.types import TensorType
from effc.ir.verify import verify
from effc.passes.canonical import Canonicalise
from effc.passes.cleanup import Cse, Dce, Fold
from effc.passes.fuse.epilogue import FuseEpilogues
from effc.passes.manager import PassReport, Pipeline
from effc.passes.weights import FoldAffine, MergeMatmuls, UnflattenMatmuls

F32 = DType.f32
RNG = np.random.default_rng(11)
needs_matmul = pytest.mark.skipif("matmul" not in OPS, reason="op matmul is not declared")


def c(b: Builder, *shape: int, name: str = "", low: float = -1.0) -> Value:
    return b.constant(RNG.uniform(low, 1, shape).astype(np.float32), name=name)


def ops(g: Graph) -> list[str]:
    return [n.op for n in g.nodes if n.op != "constant"]


CONVS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ("conv", (2, 3, 7, 5), (4, 3, 3, 3), {}),
    "depthwise": ("conv", (1, 6, 5, 5), (6, 1, 3, 3), {"groups": 6}),
    "grouped": ("conv", (1, 6, 5, 5), (4, 3, 1, 1), {"groups": 2}),
    "transposed": ("conv_transpose", (1, 6, 4, 5), (6, 2, 3, 3), {"groups": 3, "output_padding": (0, 0)}),
}


@pytest.mark.parametrize("kind", CONVS)
def test_batch_norm_goes_into_the_weights(kind: str) -> None:
    op, xs, ws, attrs = CONVS[kind]
    b = Builder()
    x = b.input("x", TensorType(F32, xs))
    y = b.op(op, x, c(b, *ws, name="w"), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), **attrs)
    o = y.shape[1]
    assert isinstance(o, int)
    mean, gamma, beta = c(b, o, 1, 1), c(b, 1, o, 1, 1, low=0.5), c(b, o, 1, 1)
    flat = b.op("reshape", c(b, o, low=0.5), shape=(o, 1, 1))
    y = b.op("add", b.op("mul", b.op("div", b.op("sub", y, mean), flat), gamma), beta)
    g = b.graph([b.op("tanh", y)])
    out, report = check_pass(FoldAffine(), g, factor=4)
    assert ops(out) == [op, "add", "tanh"] and report.stats[f"fold_affine.{op}"] == 1


def test_reversed_subtraction_and_plain_scale() -> None:
    b = Builder()
    x = b.input("x", TensorType(F32, (1, 3, 5, 5)))
    w = c(b, 4, 3, 1, 1)
    args: dict[str, Any] = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    y = b.op("sub", c(b, 4, 1, 1), b.op("mul", b.op("conv", x, w, **args), c(b)))
    out, _ = check_pass(FoldAffine(), b.graph([y]), factor=4)
    assert ops(out) == ["conv", "add"]


def test_fold_affine_declines() -> None:
    args: dict[str, Any] = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}

    def build(kind: str) -> Graph:
        b = Builder()
        x = b.input("x", TensorType(F32, (1, 3, 5, 5)))
        w = c(b, 4, 3, 1, 1)
        y = b.op("conv", x, w, **args)
        if kind == "shared":
            return b.graph([b.op("mul", y, c(b, 4, 1, 1)), b.op("conv", b.op("neg", x), w, **args)])
        if kind == "infinite":
            return b.graph([b.op("mul", y, b.constant(np.full((4, 1, 1), np.inf, np.float32)))])
        if kind == "pixels":
            return b.graph([b.op("mul", y, c(b, 5, 5))])
        return b.graph([b.op("mul", y, c(b, 4, 1, 1)), y])

    for kind, reason in [
        ("shared", "the weights are used elsewhere too"),
        ("infinite", "a scale or shift is not finite"),
        ("used twice", ""),
    ]:
        g = build(kind)
        report = PassReport()
        assert to_text(FoldAffine().run(g, report)) == to_text(g)
        assert not reason or report.reasons("fold_affine") == {reason}
    assert ops(FoldAffine().run(build("pixels"))) == ["conv", "mul"]


def test_conv_epilogue() -> None:
    """bias, x * sigmoid(x), and a residual become one body; the extra operands keep their order."""
    b = Builder()
    s = b.symbol("s0", 1, 8)
    x = b.input("x", TensorType(F32, (s, 3, 5, 5)))
    r = b.input("r", TensorType(F32, (s, 4, 5, 5)))
    y = b.op("conv", x, c(b, 4, 3, 3, 3), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), name="the conv")
    y = b.op("add", y, c(b, 4, 1, 1))
    y = b.op("mul", y, b.op("sigmoid", y))
    y = b.op("add", r, y)
    z = b.op("reduce", y, kind="sum", dims=(2, 3), keepdims=False)
    out, report = check_pass(FuseEpilogues(), b.graph([z, y]))
    assert ops(out) == ["conv_fused", "reduce"]
    assert report.stats == {"fuse_epilogues.conv": 1, "fuse_epilogues.nodes": 4}
    assert [n.name for n in out.nodes if n.op == "conv_fused"] == ["the conv"]
    assert len(next(n for n in out.nodes if n.op == "conv_fused").operands) == 4


def test_conv_epilogue_stops_where_a_value_escapes() -> None:
    b = Builder()
    x = b.input("x", TensorType(F32, (1, 3, 5, 5)))
    y = b.op("conv", x, c(b, 4, 3, 1, 1), stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1))
    y = b.op("add", y, c(b, 4, 1, 1))
    m = b.op("reduce", y, kind="max", dims=(1,), keepdims=True)
    z = b.op("sub", y, m)
    out, report = check_pass(FuseEpilogues(), b.graph([z]))
    assert ops(out) == ["conv_fused", "reduce", "sub"]
    assert report.stats["fuse_epilogues.nodes"] == 1


def test_two_contractions_share_one_sum() -> None:
    b = Builder()
    x = b.input("x", TensorType(F32, (1, 3, 5, 5)))
    args: dict[str, Any] = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    p = b.op("conv", x, c(b, 4, 3, 1, 1), **args)
    q = b.op("conv_transpose", x, c(b, 3, 4, 1, 1), output_padding=(0, 0), **args)
    z = b.op("mul", b.op("tanh", p), q)
    out, _report = check_pass(FuseEpilogues(), b.graph([z]))
    assert ops(out) == ["conv_transpose", "conv_fused"]


def test_epilogue_declines() -> None:
    b = Builder()
    x = b.input("x", TensorType(DType.i32, (1, 3, 5, 5)))
    w = b.input("w", TensorType(DType.i32, (2, 3, 1, 1)))
    args: dict[str, Any] = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    g = b.graph([b.op("neg", b.op("conv", x, w, **args))])
    _out, report = check_pass(FuseEpilogues(), g, to_text(g))
    assert report.reasons("fuse_epilogues") == {"no epilogues on i32 contractions"}
    b = Builder()
    x = b.input("x", TensorType(F32, (1, 3, 5, 5)))
    big = b.input("big", TensorType(F32, (2, 4, 5, 5)))
    g = b.graph([b.op("add", b.op("conv", x, c(b, 4, 3, 1, 1), **args), big)])
    _, report = check_pass(FuseEpilogues(), g)
    assert report.reasons("fuse_epilogues") == {"its user has another shape"}


def linear(b: Builder, x: Value, n: int, bias: bool = True, name: str = "") -> Value:
    k = x.shape[-1]
    assert isinstance(k, int)
    y: Value = b.op("matmul", x, b.op("permute", c(b, n, k, name=name), dims=(1, 0)))
    return b.op("add", y, c(b, n)) if bias else y


@needs_matmul
def test_qkv_products_are_merged() -> None:
    b = Builder()
    s = b.symbol("s0", 1, 9)
    x = b.input("x", TensorType(F32, (2, s, 8)))
    q, k, v = linear(b, x, 8, name="q"), linear(b, x, 4, bias=False, name="k"), linear(b, x, 4, name="v")
    outs = [b.op("permute", b.op("reshape", t, shape=(2, s, t.shape[2] // 4, 4)), dims=(0, 2, 1, 3)) for t in (q, k, v)]
    out, report = check_pass(MergeMatmuls(), b.graph(outs))
    assert ops(out).count("matmul") == 1 and ops(out).count("slice") == 3
    assert report.stats == {"merge_matmuls.merged": 1, "merge_matmuls.products": 3}
    assert any(n.name == "q+k+v" for n in out.nodes)


@needs_matmul
def test_gated_products_are_not_merged() -> None:
    b = Builder()
    x = b.input("x", TensorType(F32, (5, 8)))
    gate, up = linear(b, x, 6, bias=False), linear(b, x, 6, bias=False)
    g = b.graph([b.op("mul", b.op("mul", gate, b.op("sigmoid", gate)), up)])
    out, report = check_pass(MergeMatmuls(), g, None)
    assert ops(out).count("matmul") == 2
    assert report.reasons("merge_matmuls") == {
        "a result goes into something else than views or attention; an epilogue serves it better"
    }
    out, report = check_pass(FuseEpilogues(), out)
    assert sorted(o for o in ops(out) if o != "permute") == ["matmul", "matmul_fused"]


@needs_matmul
def test_flattened_linear_layers_come_back() -> None:
    b = Builder()
    s = b.symbol("s0", 1, 9)
    x = b.input("x", TensorType(F32, (2, s, 8)))
    r = b.input("r", TensorType(F32, (2, s, 6)))
    flat = b.op("reshape", x, shape=(s * 2, 8))
    y = b.op("add", b.op("matmul", flat, b.op("permute", c(b, 6, 8), dims=(1, 0))), c(b, 6))
    y = b.op("reshape", b.op("tanh", y), shape=(2, s, 6))
    g = b.graph([b.op("add", y, r)])
    out = Pipeline((UnflattenMatmuls(), Canonicalise(), Dce(), FuseEpilogues()), verify=True).run(g)
    same_values(g, out)
    assert [o for o in ops(out) if o != "permute"] == ["matmul_fused"]


@needs_matmul
def test_flattened_output_projection_comes_back() -> None:
    """Heads are joined and flattened by one reshape: the leading dims are those that the result gets."""
    b = Builder()
    s = b.symbol("s0", 1, 9)
    x, r = b.input("x", TensorType(F32, (2, 3, s, 4))), b.input("r", TensorType(F32, (2, s, 6)))
    flat = b.op("reshape", b.op("permute", x, dims=(0, 2, 1, 3)), shape=(s * 2, 12))
    y = b.op("add", b.op("matmul", flat, b.op("permute", c(b, 6, 12), dims=(1, 0))), c(b, 6))
    g = b.graph([b.op("add", b.op("reshape", y, shape=(2, s, 6)), r)])
    out = Pipeline((UnflattenMatmuls(), Canonicalise(), Dce(), FuseEpilogues()), verify=True).run(g)
    same_values(g, out)
    assert [o for o in ops(out) if o not in ("permute", "reshape")] == ["matmul_fused"]


@needs_matmul
def test_matmul_scale_folds() -> None:
    b = Builder()
    x = b.input("x", TensorType(F32, (2, 5, 8)))
    y = b.op("mul", linear(b, x, 6), b.constant(np.float32(0.125)))
    out, report = check_pass(FoldAffine(), b.graph([y]), factor=4)
    assert [o for o in ops(out) if o != "permute"] == ["matmul", "add"] and report.stats["fold_affine.matmul"] == 1


def test_all_together_on_a_convolution_block() -> None:
    b = Builder()
    x = b.input("x", TensorType(F32, (1, 3, 9, 9)))
    y = x
    for k in range(3):
        w = c(b, 4, 3 if k == 0 else 4, 3, 3)
        y = b.op("conv", y, w, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1))
        inv = b.op("rsqrt", b.op("add", c(b, 4, low=0.5), b.constant(np.float32(1e-3))))
        y = b.op(
            "mul", b.op("sub", y, b.op("reshape", c(b, 4), shape=(4, 1, 1))), b.op("reshape", inv, shape=(4, 1, 1))
        )
        y = b.op("add", b.op("mul", y, c(b, 4, 1, 1)), c(b, 4, 1, 1))
        y = b.op("minimum", b.op("maximum", y, b.constant(np.float32(0))), b.constant(np.float32(6)))
    g = b.graph([y])
    verify(g)
    out = Pipeline((Canonicalise(), Fold(), Cse(), FoldAffine(), FuseEpilogues(), Dce()), verify=True).run(g)
    same_values(g, out, factor=10)
    assert ops(out) == ["conv_fused"] * 3
