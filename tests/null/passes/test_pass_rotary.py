"""Rotary embeddings in one loop, and refinement of attention nodes that a frontend made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pass_helpers import check_pass, same_values

from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph, Value
from effc.ir.text import to_text
from effc.ir.types import TensorType
from effc.ir.verify import verify
from effc.passes.attention_refine import RefineAttention
from effc.passes.canonical import Canonicalise
from effc.passes.cleanup import Cse, Dce
from effc.passes.fuse.regions import FuseRegions
from effc.passes.fuse.views import PrepareFusion
from effc.passes.manager import PassReport, Pipeline
from effc.passes.rotary import RotateHalf

F32 = DType.f32
FUSE = (Canonicalise(), RotateHalf(), PrepareFusion(), Canonicalise(), Cse(), FuseRegions(), Dce())


def part(b: Builder, x: Value, low: Any, high: Any) -> Value:
    out: Value = b.op("slice", x, starts=(*[0] * (x.rank - 1), low), stops=(*x.shape[:-1], high), steps=(1,) * x.rank)
    return out


def rotate_half(b: Builder, x: Value) -> Value:
    d = x.shape[-1]
    assert isinstance(d, int)
    out: Value = b.op("concat", b.op("neg", part(b, x, d // 2, d)), part(b, x, 0, d // 2), dim=x.rank - 1)
    return out


def kinds(g: Graph) -> list[str]:
    return [n.op for n in g.nodes if n.op not in ("constant", "reshape", "permute", "slice", "flip")]


@pytest.mark.parametrize("table", ["vector", "per head"])
def test_rotary_is_one_kernel(table: str) -> None:
    b = Builder()
    s = b.symbol("s0", 1, 64)
    x = b.input("x", TensorType(F32, (2, s, 24)))
    shape: tuple[Any, ...] = (s, 8) if table == "vector" else (2, 1, s, 8)
    cos, sin = b.input("cos", TensorType(F32, shape)), b.input("sin", TensorType(F32, shape))
    q = b.op("permute", b.op("reshape", x, shape=(2, s, 3, 8)), dims=(0, 2, 1, 3))
    y = b.op("add", b.op("mul", q, cos), b.op("mul", rotate_half(b, q), sin))
    g = b.graph([y])
    report = PassReport()
    out = Pipeline(FUSE, verify=True).run(g, report)
    for seed, size in enumerate((1, 5)):
        same_values(g, out, seed, {"s0": size})
    assert (
        kinds(out) == ["fused"] and report.stats["rotate_half.rotated"] == 1 and report.stats["rotate_half.sunk"] == 2
    )


def test_partial_rotary_of_a_merged_projection() -> None:
    """The halves are slices of a wider tensor."""
    b = Builder()
    x = b.input("x", TensorType(F32, (2, 5, 30)))
    table = b.input("t", TensorType(F32, (5, 8)))
    q = part(b, x, 10, 18)
    y = b.op("concat", b.op("add", b.op("mul", q, table), rotate_half(b, q)), part(b, x, 18, 20), dim=2)
    g = b.graph([y])
    out = Pipeline(FUSE, verify=True).run(g)
    same_values(g, out)
    assert kinds(out) == ["fused", "concat"]


def test_other_concatenations_stay() -> None:
    b = Builder()
    x = b.input("x", TensorType(F32, (2, 8)))
    same = b.op("concat", b.op("neg", part(b, x, 0, 4)), part(b, x, 4, 8), dim=1)
    uneven = b.op("concat", b.op("neg", part(b, x, 3, 8)), part(b, x, 0, 3), dim=1)
    plain = b.op("concat", part(b, x, 4, 8), part(b, x, 0, 4), dim=1)
    g = b.graph([same, uneven, plain])
    check_pass(RotateHalf(), g, to_text(g))


def attention(b: Builder, mask: Value | None = None, heads: int = 6, repeat: bool = False, **attrs: Any) -> Graph:
    q = b.input("q", TensorType(F32, (2, 6, 5, 4)))
    k, v = b.input("k", TensorType(F32, (2, heads, 5, 4))), b.input("v", TensorType(F32, (2, heads, 5, 4)))
    if repeat:
        shape = (2, heads, 6 // heads, 5, 4)
        k, v = (
            b.op(
                "reshape",
                b.op("broadcast_to", b.op("reshape", t, shape=(2, heads, 1, 5, 4)), shape=shape),
                shape=(2, 6, 5, 4),
            )
            for t in (k, v)
        )
    return b.graph([b.op("attention", q, k, v, *([] if mask is None else [mask]), **attrs)])


def refine(g: Graph) -> tuple[Any, PassReport]:
    verify(g)
    out, report = check_pass(RefineAttention(), g, factor=4)
    return next(n for n in out.nodes if n.op == "attention"), report


def test_repeated_heads_are_grouped() -> None:
    n, report = refine(attention(Builder(), heads=2, repeat=True))
    assert n.operands[1].shape[1] == 2 and report.stats == {"refine_attention.ungroup": 1}


def test_causal_masks() -> None:
    for kind in ("bool", "and", "added", "added sum", "finite"):
        b = Builder()
        i, j = b.op("iota", shape=(5, 1), dim=0), b.op("iota", shape=(1, 5), dim=1)
        m = b.op("reshape", b.op("le", j, i), shape=(1, 1, 5, 5))
        if kind == "and":
            m = b.op("logical_and", m, b.input("pad", TensorType(DType.bool, (2, 1, 1, 5))))
        if kind in ("added", "added sum", "finite"):
            fill = -np.inf if kind != "finite" else -1e38
            m = b.op("where", m, b.constant(np.float32(0)), b.constant(np.float32(fill)))
        if kind == "added sum":
            m = b.op("add", m, b.input("bias", TensorType(F32, (1, 6, 5, 5))))
        n, _report = refine(attention(b, m))
        assert n.attrs["causal"] and n.attrs["causal_offset"] == 0
        assert (len(n.operands) == 4) == (kind in ("and", "added sum"))


def test_scale_moves_into_the_op() -> None:
    b = Builder()
    q, k = b.input("q", TensorType(F32, (2, 3, 5, 4))), b.input("k", TensorType(F32, (2, 3, 5, 4)))
    half = b.constant(np.float32(0.5))
    y = b.op(
        "attention",
        b.op("mul", q, half),
        b.op("permute", b.op("mul", b.op("permute", k, dims=(0, 2, 1, 3)), half), dims=(0, 2, 1, 3)),
        k,
    )
    n, _report = refine(b.graph([y]))
    assert n.attrs["scale"] == 0.125 and n.operands[0] == q


def test_an_ordinary_mask_stays() -> None:
    b = Builder()
    n, report = refine(attention(b, b.input("m", TensorType(DType.bool, (2, 1, 5, 5)))))
    assert not n.attrs["causal"] and len(n.operands) == 4 and report.stats == {}
