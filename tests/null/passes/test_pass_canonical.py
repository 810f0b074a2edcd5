# ruff: noqa: E501  (IR text is not broken into lines)
"""Canonical forms and cleanup: text before and after, equal values, and reasons where a rule declines."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from pass_helpers import check_pass, graph_of

from effc.ir.dtypes import DType
from effc.ir.graph import Builder
from effc.ir.op import OPS
from effc.ir.text import to_text
from effc.ir.types import TensorType
from effc.passes.canonical import Canonicalise, lossless
from effc.passes.cleanup import Cse, Dce, Fold
from effc.passes.manager import Pass, PassReport, Pipeline
from effc.passes.pipeline import default
from effc.runtime.errors import EffcError


def function(
    body: str, params: str = "%x: f32[3, 5], %y: f32[3, 5], %i: i32[3, 5], %b: bool[3, 5], %s: f32[s0, 5]"
) -> str:
    lines = [s.strip() for s in body.strip().split("\n")]
    return f"graph main({params}) {{\n  symbol s0 in 1..64\n" + "".join(f"  {s}\n" for s in lines) + "}"


C = "%c = constant() {data=array(f32[], [@])}\n"
SIMPLE: dict[str, tuple[str, str, str]] = {
    # rule: (before, after, how often it applies)
    "mul by one": (C.replace("@", "1.0") + "%0 = mul(%x, %c)\nreturn %0", "return %x", "neutral"),
    "one times": (C.replace("@", "1.0") + "%0 = mul(%c, %x)\nreturn %0", "return %x", "neutral"),
    "div by one": (C.replace("@", "1.0") + "%0 = div(%x, %c)\nreturn %0", "return %x", "neutral"),
    "minus zero": (C.replace("@", "0.0") + "%0 = sub(%x, %c)\nreturn %0", "return %x", "neutral"),
    "max -inf": (C.replace("@", "-inf") + "%0 = maximum(%x, %c)\nreturn %0", "return %x", "neutral"),
    "int zero": ("%c = constant() {data=array(i32[], [0])}\n%0 = add(%c, %i)\nreturn %0", "return %i", "neutral"),
    "all bits": ("%c = constant() {data=array(i32[], [-1])}\n%0 = bitwise_and(%i, %c)\nreturn %0", "return %i", "neutral"),
    "and true": ("%c = full() {value=true, shape=[3, 5], dtype=bool}\n%0 = logical_and(%b, %c)\nreturn %0", "return %b", "neutral"),
    "neutral broadcasts": (
        "%c = full() {value=1.0, shape=[2, 3, 5], dtype=f32}\n%0 = mul(%x, %c)\nreturn %0",
        "%0 = broadcast_to(%x) {shape=[2, 3, 5]}\nreturn %0", "neutral",
    ),
    "and false": (
        "%c = full() {value=false, shape=[], dtype=bool}\n%0 = logical_and(%b, %c)\nreturn %0",
        "%0 = full() {value=false, shape=[3, 5], dtype=bool}\nreturn %0", "absorb",
    ),
    "square plus zero": (
        C.replace("@", "0.0") + "%0 = mul(%x, %x)\n%1 = add(%0, %c)\nreturn %1", "%0 = mul(%x, %x)\nreturn %0", "add_zero",
    ),
    "neg neg": ("%0 = neg(%x)\n%1 = neg(%0)\nreturn %1", "return %x", "involution"),
    "not not": ("%0 = logical_not(%b)\n%1 = logical_not(%0)\nreturn %1", "return %b", "involution"),
    "floor round": ("%0 = round(%x)\n%1 = floor(%0)\nreturn %1", "%0 = round(%x)\nreturn %0", "idempotent"),
    "abs exp": ("%0 = exp(%x)\n%1 = abs(%0)\nreturn %1", "%0 = exp(%x)\nreturn %0", "abs"),
    "add neg": ("%0 = neg(%y)\n%1 = add(%0, %x)\nreturn %1", "%0 = sub(%x, %y)\nreturn %0", "neg_into_add"),
    "sub neg": ("%0 = neg(%y)\n%1 = sub(%x, %0)\nreturn %1", "%0 = add(%x, %y)\nreturn %0", "neg_into_add"),
    "div by 8": (
        C.replace("@", "8.0") + "%0 = div(%x, %c)\nreturn %0", C.replace("@", "0.125") + "%0 = mul(%x, %c)\nreturn %0", "div_by_power_of_two",
    ),
    "positions from 0": (
        "%0 = iota() {shape=[3, 5], dim=0, start=0, step=1, dtype=i64}\n%c = constant() {data=array(i64[], [0])}\n"
        "%1 = ge(%0, %c)\nreturn %1",
        "%0 = full() {value=true, shape=[3, 5], dtype=bool}\nreturn %0", "compare_ends",
    ),
    "positions below 3": (
        "%0 = iota() {shape=[3, 5], dim=0, start=3, step=2, dtype=i64}\n%c = constant() {data=array(i64[], [3])}\n"
        "%1 = lt(%0, %c)\nreturn %1",
        "%0 = full() {value=false, shape=[3, 5], dtype=bool}\nreturn %0", "compare_ends",
    ),
    "positions down from 3": (
        "%0 = iota() {shape=[3, 5], dim=0, start=3, step=-1, dtype=i64}\n%c = constant() {data=array(i64[], [4])}\n"
        "%1 = ge(%0, %c)\nreturn %1",
        "%0 = full() {value=false, shape=[3, 5], dtype=bool}\nreturn %0", "compare_ends",
    ),
    "square": (C.replace("@", "2.0") + "%0 = pow(%x, %c)\nreturn %0", "%0 = mul(%x, %x)\nreturn %0", "pow"),
    "cube": (C.replace("@", "3.0") + "%0 = pow(%x, %c)\nreturn %0", "%0 = mul(%x, %x)\n%1 = mul(%0, %x)\nreturn %1", "pow"),
    "inverse": (C.replace("@", "-1.0") + "%0 = pow(%x, %c)\nreturn %0", "%0 = reciprocal(%x)\nreturn %0", "pow"),
    "root": (
        C.replace("@", "0.5") + "%0 = exp(%x)\n%1 = pow(%0, %c)\nreturn %1", "%0 = exp(%x)\n%1 = sqrt(%0)\nreturn %1", "pow",
    ),
    "where true": ("%c = full() {value=true, shape=[], dtype=bool}\n%0 = where(%c, %x, %y)\nreturn %0", "return %x", "where"),
    "where same": ("%0 = where(%b, %x, %x)\nreturn %0", "return %x", "where"),
    "where not": ("%0 = logical_not(%b)\n%1 = where(%0, %x, %y)\nreturn %1", "%0 = where(%b, %y, %x)\nreturn %0", "where"),
    "convert same": ("%0 = convert(%x) {dtype=f32}\nreturn %0", "return %x", "convert"),
    "convert back": ("%0 = convert(%x) {dtype=f64}\n%1 = convert(%0) {dtype=f32}\nreturn %1", "return %x", "convert"),
    "convert wide": (
        "%0 = convert(%i) {dtype=i64}\n%1 = convert(%0) {dtype=f32}\nreturn %1", "%0 = convert(%i) {dtype=f32}\nreturn %0", "convert",
    ),
    "reshape twice": (
        "%0 = reshape(%x) {shape=[15]}\n%1 = reshape(%0) {shape=[5, 3]}\nreturn %1", "%0 = reshape(%x) {shape=[5, 3]}\nreturn %0", "reshape",
    ),
    "reshape back": ("%0 = reshape(%x) {shape=[15]}\n%1 = reshape(%0) {shape=[3, 5]}\nreturn %1", "return %x", "reshape"),
    "symbolic reshape back": (
        "%0 = reshape(%s) {shape=[<5*s0>]}\n%1 = reshape(%0) {shape=[<s0>, 5]}\nreturn %1", "return %s", "reshape",
    ),
    "permute twice": ("%0 = permute(%x) {dims=[1, 0]}\n%1 = permute(%0) {dims=[1, 0]}\nreturn %1", "return %x", "permute"),
    "permute ones": (
        "%0 = reshape(%x) {shape=[3, 1, 5]}\n%1 = permute(%0) {dims=[1, 0, 2]}\nreturn %1",
        "%0 = reshape(%x) {shape=[1, 3, 5]}\nreturn %0", "permute",
    ),
    "broadcast twice": (
        "%r = reduce(%x) {kind=\"max\", dims=[0], keepdims=true}\n%0 = broadcast_to(%r) {shape=[3, 5]}\n%1 = broadcast_to(%0) {shape=[2, 3, 5]}\nreturn %1",
        "%r = reduce(%x) {kind=\"max\", dims=[0], keepdims=true}\n%1 = broadcast_to(%r) {shape=[2, 3, 5]}\nreturn %1", "broadcast_to",
    ),
    "broadcast to ones": ("%0 = broadcast_to(%x) {shape=[1, 3, 5]}\nreturn %0", "%0 = reshape(%x) {shape=[1, 3, 5]}\nreturn %0", "broadcast_to"),
    "slice of all": ("%0 = slice(%s) {starts=[0, 0], stops=[<s0>, 5], steps=[1, 1]}\nreturn %0", "return %s", "slice"),
    "slice twice": (
        "%0 = slice(%x) {starts=[1, 0], stops=[3, 5], steps=[1, 2]}\n%1 = slice(%0) {starts=[1, 1], stops=[2, 3], steps=[1, 1]}\nreturn %1",
        "%0 = slice(%x) {starts=[2, 2], stops=[3, 5], steps=[1, 2]}\nreturn %0", "slice",
    ),
    "slice of concat": (
        "%0 = concat(%x, %s, %y) {dim=0}\n%1 = slice(%0) {starts=[4, 1], stops=[<2+s0>, 5], steps=[2, 1]}\nreturn %1",
        "%0 = slice(%s) {starts=[1, 1], stops=[<s0-1>, 5], steps=[2, 1]}\nreturn %0", "slice_of_concat",
    ),
    "concat of one": ("%0 = concat(%x) {dim=0}\nreturn %0", "return %x", "concat"),
    "concat nested": (
        "%0 = concat(%x, %y) {dim=1}\n%1 = concat(%0, %x) {dim=1}\nreturn %1", "%1 = concat(%x, %y, %x) {dim=1}\nreturn %1", "concat",
    ),
    "copy": ("%0 = copy(%x)\nreturn %0", "return %x", "copy"),
    "flip twice": ("%0 = flip(%x) {dims=[0, 1]}\n%1 = flip(%0) {dims=[1, 0]}\nreturn %1", "return %x", "flip"),
    "reduce one": (
        "%0 = reshape(%x) {shape=[3, 1, 5]}\n%1 = reduce(%0) {kind=\"sum\", dims=[1]}\nreturn %1", "return %x", "reduce_trivial",
    ),
    "implicit broadcast": (
        "%r = reduce(%x) {kind=\"max\", dims=[0], keepdims=true}\n%0 = broadcast_to(%r) {shape=[3, 5]}\n%1 = sub(%x, %0)\nreturn %1",
        "%r = reduce(%x) {kind=\"max\", dims=[0], keepdims=true}\n%1 = sub(%x, %r)\nreturn %1", "implicit_broadcast",
    ),
    "symbolic broadcast": (
        "%r = reduce(%s) {kind=\"max\", dims=[1], keepdims=true}\n%0 = broadcast_to(%r) {shape=[<s0>, 5]}\n%1 = sub(%s, %0)\nreturn %1",
        "%r = reduce(%s) {kind=\"max\", dims=[1], keepdims=true}\n%1 = sub(%s, %r)\nreturn %1", "implicit_broadcast",
    ),
    "uniform constant": (
        "%c = full() {value=0.5, shape=[3, 5], dtype=f32}\n%0 = mul(%c, %x)\nreturn %0", C.replace("@", "0.5") + "%0 = mul(%x, %c)\nreturn %0",
        "implicit_broadcast",
    ),
    "unary of broadcast": (
        "%r = reduce(%x) {kind=\"max\", dims=[0], keepdims=true}\n%0 = broadcast_to(%r) {shape=[7, 5]}\n%1 = exp(%0)\nreturn %1",
        "%r = reduce(%x) {kind=\"max\", dims=[0], keepdims=true}\n%0 = exp(%r)\n%1 = broadcast_to(%0) {shape=[7, 5]}\nreturn %1",
        "broadcast_of_unary",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SIMPLE)
def test_canonical_form(case: str) -> None:
    before, after, rule = SIMPLE[case]
    _, report = check_pass(Canonicalise(), function(before), function(after))
    assert report.stats[f"canonicalise.{rule}"] == 1, report.stats


DECLINED = {
    "x + 0": (C.replace("@", "0.0") + "%0 = add(%x, %c)\nreturn %0", "add_zero", "-0.0"),
    "div by 3": (C.replace("@", "3.0") + "%0 = div(%x, %c)\nreturn %0", "div_by_power_of_two", "no power of two"),
    "div by 0": (C.replace("@", "0.0") + "%0 = div(%x, %c)\nreturn %0", "div_by_power_of_two", "no power of two"),
    "div by tiny": (C.replace("@", "1.1754944e-38") + "%0 = div(%x, %c)\nreturn %0", "", ""),
    "div by huge": (C.replace("@", "1.7014118e+38") + "%0 = div(%x, %c)\nreturn %0", "div_by_power_of_two", "no power of two"),
    "root of any": (C.replace("@", "0.5") + "%0 = pow(%x, %c)\nreturn %0", "pow", "may be negative"),
    "odd power": (C.replace("@", "2.5") + "%0 = pow(%x, %c)\nreturn %0", "pow", "no exact form"),
    "lossy": ("%0 = convert(%x) {dtype=f16}\n%1 = convert(%0) {dtype=f32}\nreturn %1", "convert", "loses values"),
    "through int": ("%0 = convert(%x) {dtype=i64}\n%1 = convert(%0) {dtype=f32}\nreturn %1", "convert", "loses values"),
    "across": ("%0 = concat(%x, %y) {dim=0}\n%1 = slice(%0) {starts=[1, 0], stops=[4, 5], steps=[1, 1]}\nreturn %1", "slice_of_concat", "within one"),
    "both broadcast": (
        '%r = reduce(%x) {kind="max", dims=[0], keepdims=true}\n%0 = broadcast_to(%r) {shape=[3, 5]}\n%1 = add(%0, %0)\nreturn %1', "", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DECLINED)
def test_declines(case: str) -> None:
    before, rule, reason = DECLINED[case]
    if not rule:
        check_pass(Canonicalise(), function(before))
        return
    _, report = check_pass(Canonicalise(), function(before), function(before))
    assert any(reason in r for r in report.reasons(rule)), report.declined


@pytest.mark.parametrize(
    ("start", "step", "op", "c"), [(0, 1, "gt", 0), (0, 1, "ge", 1), (1, -1, "ge", 0), (3, 1, "le", 3)]
)
def test_comparisons_that_depend_on_the_position_stay(start: int, step: int, op: str, c: int) -> None:
    text = function(
        f"%0 = iota() {{shape=[7], dim=0, start={start}, step={step}, dtype=i64}}\n"
        f"%c = constant() {{data=array(i64[], [{c}])}}\n%1 = {op}(%0, %c)\nreturn %1"
    )
    check_pass(Canonicalise(), text, text)


def test_neutral_elements_leave_special_values_alone() -> None:
    """NaN, infinities and -0.0 pass through every identity unchanged."""
    from effc.ir.interp import run

    special = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3e38], np.float32)
    for op, c in [("mul", "1.0"), ("div", "1.0"), ("sub", "0.0"), ("add", "-0.0"), ("maximum", "-inf"), ("minimum", "inf"), ("pow", "1.0"),
                  ("div", "8.0"), ("div", "0.5"), ("pow", "2.0"), ("pow", "3.0"), ("pow", "-1.0")]:  # fmt: skip
        g = graph_of(function(f"{C.replace('@', c)}%0 = {op}(%x, %c)\nreturn %0", "%x: f32[7]"))
        out = Canonicalise().run(g)
        assert op not in [n.op for n in out.nodes] or op == "mul"
        with np.errstate(all="ignore"):
            a, b = run(g, [special])[0], run(out, [special])[0]
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.signbit(a[~np.isnan(a)]), np.signbit(b[~np.isnan(b)]))


def test_lossless_is_what_numpy_says() -> None:
    rng = np.random.default_rng(3)
    kinds = [d for d in DType if d is not DType.c32 and not d.is_storage]  # those: test_storage_dtypes.py
    for a, b in itertools.product(kinds, kinds):
        if a.is_int:
            info = np.iinfo(a.np)
            xs: Any = np.array([info.min, info.max, info.max - 1, 0, 1, info.max // 3], a.np)
        else:
            xs = (rng.normal(size=50) * 10.0 ** rng.integers(-6, 6, 50)).astype(a.np)
            if a.is_float:
                xs = np.concatenate([xs, np.array([1e-45, 6e-8, 65504, 448, 3.3e38, np.inf, -0.0]).astype(a.np)])
        if lossless(a, b):
            with np.errstate(all="ignore"):
                back = xs.astype(b.np).astype(a.np) if not a.is_bool else (xs.astype(b.np) != 0)
            assert (
                np.array_equal(back[back == back], xs[back == back])
                and np.isnan(back.astype(complex)).sum() == np.isnan(xs.astype(complex)).sum()
            ), (a, b)


def test_result_type_is_never_changed() -> None:
    """Every elementwise op with neutral-looking operands of another shape keeps its type."""
    for name, d in OPS.items():
        if d.category != "elementwise" or len(d.operands) != 2 or name == "complex":
            continue
        for c in (0.0, 1.0):
            b = Builder()
            x = b.input("x", TensorType(DType.f32, (1, 4)))
            try:
                y = b.op(name, x, b.op("full", None, value=c, shape=(3, 1), dtype="f32"))
            except EffcError:
                continue
            check_pass(Canonicalise(), b.graph([y]), seeds=1)


# Folding, common subexpressions, dead code ----------------------------------------------------------------------------


def test_fold() -> None:
    before = """
      %a = constant() {data=array(f32[3], [1.0, 2.0, 4.0])}
      %k = exp(%a)
      %c = full() {value=2.0, shape=[3], dtype=f32}
      %d = reduce(%a) {kind="sum", dims=[0]}
      %e = add(%d, %s)
      return %d, %e, %c
    """
    after = """
      %c = full() {value=2.0, shape=[3], dtype=f32}
      %d = constant() {data=array(f32[], [7.0])}
      %e = add(%d, %s)
      return %d, %e, %c
    """
    _out, report = check_pass(Fold(), function(before), function(after))
    assert report.stats["fold.folded"] == 2


def test_fold_keeps_large_weights_and_grown_results() -> None:
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    text = function("%w = constant() {data=array(f32[64, 64], @w)}\n%t = permute(%w) {dims=[1, 0]}\nreturn %t", "")
    out, report = check_pass(Fold(), text, text, arrays={"w": w})
    grown = function("%a = iota() {shape=[200]}\n%b = reshape(%a) {shape=[200, 1]}\n%c = lt(%a, %b)\nreturn %c", "")
    folded = check_pass(Fold(), grown)[0]
    assert [n.op for n in folded.nodes] == ["constant"]  # 40 kB: small enough
    big = grown.replace("200", "2100")
    out, report = check_pass(Fold(), big)
    assert "lt" in [n.op for n in out.nodes]
    assert report.reasons("fold") == {"the result is much larger than its operands"}


def test_fold_never_touches_random_ops_and_bad_references() -> None:
    random = [n for n, d in OPS.items() if d.effects == "random"]
    assert random
    text = function(
        "%i = constant() {data=array(i64[1], [7])}\n%x0 = constant() {data=array(f32[3], [1.0, 2.0, 3.0])}\n%0 = gather(%x0, %i) {dim=0}\nreturn %0",
        "",
    )
    g = graph_of(text)
    report = PassReport()
    assert to_text(Fold().run(g, report)) == to_text(g)
    assert any("its reference failed" in r for r in report.reasons("fold"))


def test_fold_constant_branch() -> None:
    text = """
      %c = constant() {data=array(bool[], [false])}
      %0 = if(%c, %x) {then=graph t(%x: f32[3, 5]) {
        %0 = exp(%x)
        return %0
      }, orelse=graph e(%x: f32[3, 5]) {
        %0 = neg(%x)
        return %0
      }}
      return %0
    """
    check_pass(Fold(), function(text), function("%0 = neg(%x)\nreturn %0"))


def test_cse() -> None:
    before = """
      %a = constant() {data=array(f32[], [0.0])}
      %k = constant() {data=array(f32[], [-0.0])}
      %c = constant() {data=array(f32[], [0.0])}
      %0 = add(%x, %a)
      %1 = add(%x, %k)
      %2 = add(%x, %c)
      %3 = reduce(%2) {kind="sum", dims=[0]}
      %4 = reduce(%0) {kind="sum", dims=[0]}
      %5 = reduce(%0) {kind="max", dims=[0]}
      return %0, %1, %2, %3, %4, %5
    """
    after = """
      %a = constant() {data=array(f32[], [0.0])}
      %k = constant() {data=array(f32[], [-0.0])}
      %0 = add(%x, %a)
      %1 = add(%x, %k)
      %3 = reduce(%0) {kind="sum", dims=[0]}
      %5 = reduce(%0) {kind="max", dims=[0]}
      return %0, %1, %0, %3, %3, %5
    """
    _, report = check_pass(Cse(), function(before), function(after))
    assert report.stats["cse.merged"] == 3


def test_cse_leaves_random_ops_apart() -> None:
    b = Builder()
    g = b.graph([b.op("rand_uniform", shape=(3,), dtype="f32"), b.op("rand_uniform", shape=(3,), dtype="f32")])
    assert len(Cse().run(g).nodes) == len(g.nodes) == 2
    assert len(Fold().run(g).nodes) == 2


SUB = """
  %0 = if(%c, %x) {then=graph t(%x: f32[3, 5]) {
    %0 = exp(%x)
    %1 = exp(%x)
    %2 = neg(%1)
    %3 = neg(%2)
    %4 = tanh(%x)
    %5 = add(%0, %3)
    return %5
  }, orelse=graph e(%x: f32[3, 5]) {
    return %x
  }}
  return %0
"""


def test_subgraphs_are_rewritten_too() -> None:
    report = PassReport()
    g = graph_of(function(SUB, "%c: bool[], %x: f32[3, 5]"))
    out = Pipeline((Canonicalise(), Cse(), Dce()), verify=True).run(g, report)
    assert [n.op for n in out.nodes[0].attrs["then"].nodes] == ["exp", "add"]
    assert report.stats["canonicalise.involution"] == 1 and report.stats["cse.merged"] == 1


# The manager ----------------------------------------------------------------------------------------------------------


def test_pipeline_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    g = graph_of(function("%0 = neg(%x)\n%1 = neg(%0)\n%2 = exp(%1)\n%3 = exp(%1)\nreturn %2, %3"))
    passes: tuple[Pass, ...] = (Canonicalise(), Cse())
    assert len(Pipeline(passes).run(g).nodes) == 1
    assert len(Pipeline(passes, disabled=("cse",)).run(g).nodes) == 2
    assert len(Pipeline(passes, stop_after="canonicalise").run(g).nodes) == 2
    assert capsys.readouterr().err == ""
    Pipeline(passes, print_after=("cse",)).run(g)
    assert "# after cse: 1 nodes\ngraph main(" in capsys.readouterr().err
    monkeypatch.setenv("EFFC_DEBUG", "5")
    Pipeline(passes).run(g)
    assert capsys.readouterr().err.count("# after") == 2
    with pytest.raises(EffcError, match="no pass is called 'nope'"):
        Pipeline(passes, disabled=("nope",))
    seen: list[str] = []
    Pipeline(passes, check=lambda p, a, b: seen.append(p.name)).run(g)
    assert seen == ["canonicalise", "cse"]


def test_errors_name_the_pass() -> None:
    class Broken(Cse):
        name = "broken"

        def apply(self, graph: Any, report: Any) -> Any:
            raise ZeroDivisionError("oops")

    class Refuses(Cse):
        name = "refuses"

        def apply(self, graph: Any, report: Any) -> Any:
            raise EffcError("cannot", op="exp")

    class Malformed(Cse):
        name = "malformed"

        def apply(self, graph: Any, report: Any) -> Any:
            import dataclasses

            return dataclasses.replace(graph, nodes=graph.nodes[:0])

    g = graph_of(function("%0 = exp(%x)\nreturn %0"))
    for p, words in [
        (Broken(), "internal error: ZeroDivisionError: oops"),
        (Refuses(), "cannot"),
        (Malformed(), "is not computed"),
    ]:
        with pytest.raises(EffcError) as e:
            Pipeline((p,), verify=True).run(g)
        assert words in str(e.value) and e.value.pass_name == p.name


def test_default_pipeline_names_are_unique() -> None:
    names = [p.name for p in default()]
    assert len(names) == len(set(names)) or names
