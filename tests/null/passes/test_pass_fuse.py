"""Fusion: which regions are formed, that they mean the same, and why borders are borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pass_helpers import check_pass, graph_of, same_values

from effc.ir.dims import symbol
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph
from effc.ir.op import broadcast_shapes
from effc.ir.text import to_text
from effc.ir.types import TensorType
from effc.ir.verify import verify
from effc.passes.canonical import Canonicalise
from effc.passes.cleanup import Cse, Dce
from effc.passes.fuse.regions import FuseRegions, fits_in
from effc.passes.fuse.views import PrepareFusion, inserted_ones, merged_groups
from effc.passes.manager import PassReport, Pipeline

PASSES = (Canonicalise(), Cse(), PrepareFusion(), Canonicalise(), Cse(), Dce())


def fuse(body: str, params: str, passes: Any = None) -> tuple[Graph, PassReport]:
    lines = "".join(f"  {s.strip()}\n" for s in body.strip().split("\n"))
    g = graph_of(f"graph main({params}) {{\n  symbol s0 in 1..64\n{lines}}}")
    report = PassReport()
    out = Pipeline((*PASSES, FuseRegions()), verify=True).run(g, report)
    for seed in range(2):
        same_values(g, out, seed)
    check_forms(out)
    return out, report


def check_forms(g: Graph) -> None:
    """The regions have one of the two forms that the generator takes."""
    for n in g.nodes:
        if n.op != "fused":
            continue
        body = n.attrs["body"]
        assert len(body.inputs) <= 12
        reductions = [m for m in body.nodes if m.op == "reduce"]
        shapes = {v.shape for v in body.outputs}
        for m in body.nodes:
            assert m.op != "constant" or m.attrs["data"].size == 1
        if reductions:
            full, dims = reductions[0].operands[0].shape, reductions[0].attrs["dims"]
            assert all(
                m.attrs["keepdims"] and m.attrs["dims"] == dims and m.operands[0].shape == full for m in reductions
            )
            low = tuple(1 if i in dims else d for i, d in enumerate(full))
            assert shapes <= {full, low}
        else:
            full = broadcast_shapes(*shapes)
            assert shapes == {full}
        assert all(fits_in(m.types[0].shape, full) for m in (*body.inputs, *body.nodes))


def kernels(g: Graph) -> list[str]:
    return [n.op for n in g.nodes if n.op not in ("constant", "reshape", "permute", "slice", "full")]


SOFTMAX = """
  %m = reduce(%x) {kind="max", dims=[1], keepdims=true}
  %d = sub(%x, %m)
  %e = exp(%d)
  %s = reduce(%e) {kind="sum", dims=[1], keepdims=true}
  %r = div(%e, %s)
  return %r
"""
LAYER_NORM = """
  %h = add(%x, %y)
  %n = constant() {data=array(f32[], [9.0])}
  %eps = constant() {data=array(f32[], [1e-05])}
  %s = reduce(%h) {kind="sum", dims=[1], keepdims=true}
  %mean = div(%s, %n)
  %d = sub(%h, %mean)
  %q = mul(%d, %d)
  %v = reduce(%q) {kind="sum", dims=[1], keepdims=true}
  %var = div(%v, %n)
  %ve = add(%var, %eps)
  %rs = rsqrt(%ve)
  %o = mul(%d, %rs)
  %ow = mul(%o, %w)
  %ob = add(%ow, %b)
  return %ob, %h
"""


def test_softmax_is_one_kernel() -> None:
    out, report = fuse(SOFTMAX, "%x: f32[s0, 7]")
    assert kernels(out) == ["fused"] and report.stats["fuse.rows"] == 1
    text = to_text(out)
    assert text.count("reduce(") == 2 and text.count("exp(") == 1


def test_residual_and_layer_norm_are_one_kernel_with_two_results() -> None:
    out, report = fuse(LAYER_NORM, "%x: f32[s0, 9], %y: f32[s0, 9], %w: f32[9], %b: f32[9]")
    assert kernels(out) == ["fused"] and len(out.nodes[-1].types) == 2
    assert report.stats["fuse.nodes"] == 12


def test_log_softmax_and_logsumexp_of_dropped_dims() -> None:
    out, _ = fuse(
        """
        %m = reduce(%x) {kind="max", dims=[1]}
        %mk = reshape(%m) {shape=[<s0>, 1]}
        %d = sub(%x, %mk)
        %e = exp(%d)
        %s = reduce(%e) {kind="sum", dims=[1]}
        %l = log(%s)
        %a = add(%l, %m)
        %lk = reshape(%l) {shape=[<s0>, 1]}
        %r = sub(%d, %lk)
        return %r, %a
        """,
        "%x: f32[s0, 7]",
    )
    assert kernels(out) == ["fused"]
    assert [str(v.type) for v in out.outputs] == ["f32[s0, 7]", "f32[s0]"]


def test_map_with_several_results_and_broadcast_operands() -> None:
    out, report = fuse(
        """
        %0 = mul(%x, %w)
        %1 = add(%0, %b)
        %2 = tanh(%1)
        %3 = sub(%1, %2)
        return %1, %3
        """,
        "%x: f32[s0, 5], %w: f32[5], %b: f32[1, 1]",
    )
    assert kernels(out) == ["fused"] and report.stats["fuse.maps"] == 1


def test_no_cycle_through_another_kernel() -> None:
    """exp(x) is used by the last op directly and through a sort between them."""
    out, report = fuse(
        """
        %e = exp(%x)
        %v, %i = sort(%e) {dim=1}
        %n = neg(%v)
        %r = add(%n, %e)
        return %r
        """,
        "%x: f32[4, 5]",
    )
    assert kernels(out) == ["exp", "sort", "sub"]
    assert "another kernel between them needs the value first" in report.reasons("fuse")
    assert "sort is not elementwise" in report.reasons("fuse")


def test_no_cycle_through_a_region_formed_before() -> None:
    out, _ = fuse(
        """
        %a = exp(%x)
        %b = neg(%x)
        %s1, %i1 = sort(%a) {dim=1}
        %c = add(%s1, %b)
        %s2, %i2 = sort(%b) {dim=1}
        %d = add(%s2, %a)
        %s3, %i3 = sort(%c) {dim=1}
        %e = mul(%s3, %d)
        %f = mul(%e, %a)
        return %f, %c
        """,
        "%x: f32[4, 5]",
    )
    verify(out)


def test_an_expensive_value_is_not_computed_again_per_element() -> None:
    out, report = fuse(
        """
        %e = exp(%y)
        %r = mul(%x, %e)
        return %r
        """,
        "%x: f32[64, 5], %y: f32[5]",
    )
    assert kernels(out) == ["exp", "mul"]
    assert any("expensive" in r for r in report.reasons("fuse"))


def test_cheap_small_values_are_computed_again() -> None:
    out, _ = fuse("%e = add(%y, %y)\n%r = mul(%x, %e)\nreturn %r", "%x: f32[64, 5], %y: f32[5]")
    assert kernels(out) == ["fused"]


def test_reductions_over_different_dims_are_apart() -> None:
    out, report = fuse(
        """
        %a = reduce(%x) {kind="sum", dims=[0], keepdims=true}
        %b = reduce(%x) {kind="sum", dims=[1], keepdims=true}
        %0 = sub(%x, %a)
        %1 = sub(%0, %b)
        return %1
        """,
        "%x: f32[s0, 5]",
    )
    assert len(kernels(out)) == 2
    assert "reductions over different dims" in report.reasons("fuse")


def test_row_value_at_a_third_shape() -> None:
    out, report = fuse(
        """
        %a = reduce(%x) {kind="sum", dims=[1], keepdims=true}
        %1 = mul(%y, %a)
        return %1
        """,
        "%x: f32[6, 5], %y: f32[6, 7]",
    )
    assert kernels(out) == ["reduce", "mul"]
    assert "a result has neither the full nor the reduced shape" in report.reasons("fuse")


def test_argmax_is_a_border() -> None:
    out, report = fuse(
        """
        %e = exp(%x)
        %i = reduce(%e) {kind="argmax", dims=[1]}
        %j = add(%i, %i)
        return %j
        """,
        "%x: f32[6, 5]",
    )
    assert kernels(out) == ["exp", "reduce", "add"]
    assert "reduce is not elementwise" in report.reasons("fuse")


def test_permute_moves_out_of_an_elementwise_chain() -> None:
    out, report = fuse(
        """
        %0 = mul(%x, %y)
        %1 = tanh(%0)
        %2 = add(%1, %w)
        %p = permute(%2) {dims=[1, 0, 2]}
        %3 = exp(%p)
        %4 = add(%3, %z)
        return %4
        """,
        "%x: f32[3, s0, 5], %y: f32[s0, 1], %w: f32[5], %z: f32[s0, 3, 5]",
    )
    assert kernels(out) == ["fused"]
    assert report.stats["prepare_fusion.hoisted_permute"] == 1


def test_slice_and_unit_reshape_move_too() -> None:
    out, report = fuse(
        """
        %0 = mul(%x, %y)
        %s = slice(%0) {starts=[0, 1, 0], stops=[3, 4, 3], steps=[1, 2, 1]}
        %1 = exp(%s)
        %u = reshape(%1) {shape=[3, 1, 2, 1, 3]}
        %2 = neg(%u)
        return %2
        """,
        "%x: f32[3, 6, 5], %y: f32[6, 1]",
    )
    assert kernels(out) == ["fused"]
    assert report.stats["prepare_fusion.hoisted_slice"] >= 1 and report.stats["prepare_fusion.hoisted_reshape"] >= 1


def test_views_of_what_others_use_stay() -> None:
    out, report = fuse(
        """
        %0 = exp(%x)
        %p = permute(%0) {dims=[1, 0]}
        %1 = neg(%p)
        return %1, %0
        """,
        "%x: f32[3, 6]",
    )
    assert kernels(out) == ["exp", "neg"]
    assert "prepare_fusion.hoisted_permute" not in report.stats


def test_reshapes_that_merge_and_that_regroup() -> None:
    """A reshape that merges dims moves behind; one that regroups them is a border."""
    body = "%0 = exp(%x)\n%p = reshape(%0) {shape=[SHAPE]}\n%1 = neg(%p)\nreturn %1"
    out, report = fuse(body.replace("SHAPE", "24"), "%x: f32[4, 6]")
    assert kernels(out) == ["fused"] and report.stats["prepare_fusion.sunk_merge"] == 1
    out, report = fuse(body.replace("SHAPE", "3, 8"), "%x: f32[4, 6]")
    assert kernels(out) == ["exp", "neg"] and "reshape is not elementwise" in report.reasons("fuse")


def test_limits() -> None:
    b = Builder()
    xs = [b.input(f"x{i}", TensorType(DType.f32, (4,))) for i in range(20)]
    v = xs[0]
    for x in xs[1:]:
        v = b.op("add", v, x)
    g = b.graph([v])
    report = PassReport()
    out = FuseRegions().run(g, report)
    check_forms(out)
    same_values(g, out)
    assert kernels(out) == ["fused", "fused"] and "the region would have too many operands" in report.reasons("fuse")


def test_macro_ops_are_decomposed_and_mixed_dtypes_fuse() -> None:
    out, report = fuse(
        """
        %l = logaddexp(%x, %y)
        %g = gt(%l, %y)
        %i = convert(%g) {dtype=i32}
        %a = reduce(%g) {kind="any", dims=[1], keepdims=true}
        %w = where(%a, %i, %k)
        return %w
        """,
        "%x: f32[3, 6], %y: f32[3, 6], %k: i32[6]",
    )
    assert report.stats["prepare_fusion.decomposed"] == 1
    assert "= logaddexp" not in to_text(out) and kernels(out) == ["fused"]


def test_inserted_ones() -> None:
    assert inserted_ones((3, 5), (3, 1, 5, 1)) == [0, None, 1, None]
    assert inserted_ones((3, 1, 5), (3, 5)) == [0, 2]
    assert inserted_ones((3, 1, 5), (1, 3, 5, 1)) == [None, 0, 2, None]
    assert inserted_ones((3, 4), (12,)) is None and inserted_ones((3, 4), (4, 3)) is None
    assert inserted_ones((), (1, 1)) == [None, None] and inserted_ones((1,), ()) == []
    assert inserted_ones((0, 1), (0,)) == [0]


GROUP_NORM = """
  %g = reshape(%x) {shape=[<s0>, 2, 3, 4, 5]}
  %s = reduce(%g) {kind="sum", dims=[2, 3, 4], keepdims=true}
  %n = constant() {data=array(f32[], [60.0])}
  %mean = div(%s, %n)
  %d = sub(%g, %mean)
  %q = mul(%d, %d)
  %v = reduce(%q) {kind="sum", dims=[2, 3, 4], keepdims=true}
  %rs = rsqrt(%v)
  %z = mul(%d, %rs)
  %y = reshape(%z) {shape=[<s0>, 6, 4, 5]}
  %yw = mul(%y, %w)
  %yb = add(%yw, %b)
  %a = sigmoid(%yb)
  %o = mul(%yb, %a)
  return %o
"""


def test_group_norm_with_its_affine_and_activation_is_one_kernel() -> None:
    """The reshape back to channels moves behind what follows."""
    out, report = fuse(GROUP_NORM, "%x: f32[s0, 6, 4, 5], %w: f32[6, 1, 1], %b: f32[1, 6, 1, 1]")
    assert kernels(out) == ["fused"] and report.stats["prepare_fusion.sunk_merge"] == 4


def test_merged_groups() -> None:
    assert merged_groups((2, 3, 4), (6, 4)) == [(0, 2), (2, 3)]
    assert merged_groups((2, 3, 4), (24,)) == [(0, 3)]
    assert merged_groups((2, 3, 4), (2, 12)) == [(0, 1), (1, 3)]
    assert (
        merged_groups((2, 3), (3, 2)) is None
        and merged_groups((4, 3), (2, 6)) is None
        and merged_groups((6,), (2, 3)) is None
    )
    assert merged_groups((0, 3), (0,)) in (None, [(0, 2)])
    s = symbol("s0")
    assert merged_groups((s, 2, 3), (2 * s, 3)) == [(0, 2), (2, 3)] and merged_groups((s, 2), (s, 2)) == [
        (0, 1),
        (1, 2),
    ]


def random_graph(rng: np.random.Generator, size: int) -> Graph:
    """A random program of elementwise ops, reductions, views and kernels between them."""
    b = Builder()
    shape = (3, 4, 5)
    pool = [
        b.input("x", TensorType(DType.f32, shape)),
        b.input("y", TensorType(DType.f32, shape)),
        b.input("w", TensorType(DType.f32, (5,))),
    ]

    def pick(full: bool = False) -> Any:
        some = [v for v in pool[-6:] + pool[:3] if not full or v.shape == shape]
        return some[rng.integers(len(some))] if some else pool[0]

    for _ in range(size):
        kind = rng.integers(12)
        if kind < 5:
            v = b.op(["add", "sub", "mul", "maximum", "minimum"][kind], pick(), pick())
        elif kind < 8:
            v = b.op(["tanh", "sigmoid", "neg"][kind - 5], pick())
        elif kind == 8:
            v = b.op(
                "reduce", pick(True), kind=["sum", "max"][rng.integers(2)], dims=(int(rng.integers(3)),), keepdims=True
            )
            v = b.op("tanh", v)
        elif kind == 9:
            x = b.op("permute", pick(True), dims=(1, 0, 2))
            v = b.op("permute", b.op("sigmoid", x), dims=(1, 0, 2))
        elif kind == 10:
            v, _ = b.op("sort", pick(True), dim=2)
        else:
            r = b.op("reduce", pick(True), kind="sum", dims=(2,), keepdims=False)
            v = b.op("tanh", b.op("reshape", r, shape=(3, 4, 1)))
        if all(isinstance(d, int) for d in v.shape) and len(v.shape) <= 3:
            pool.append(v)
    outs = [v for v in dict.fromkeys([pool[-1], pick(), pick()]) if v.node.op != "input"] or [b.op("neg", pool[0])]
    return b.graph(outs)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    g = random_graph(rng, int(rng.integers(4, 40)))
    verify(g)
    out = Pipeline((*PASSES, FuseRegions()), verify=True).run(g)
    check_forms(out)
    same_values(g, out, seed, factor=4)
    again = Pipeline((*PASSES, FuseRegions())).run(g)
    assert to_text(again) == to_text(out), "fusion is deterministic"


def test_fused_regions_are_left_alone_by_a_second_run() -> None:
    out, _ = fuse(SOFTMAX, "%x: f32[s0, 7]")
    check_pass(FuseRegions(), out, to_text(out))
