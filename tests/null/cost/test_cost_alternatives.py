"""Alternatives of a rewrite: what passes ask, who answers, how ways are measured, and what the report says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cost_calls import MACHINE

import effc
from effc.backends import cpu
from effc.backends.cpu.target import parse
from effc.cost import alternatives, measure, space, train
from effc.cost import model as cost_model
from effc.cost.alternatives import SETS, Forced, rule_of, way_of
from effc.cost.calls import Call, calls
from effc.cost.decide import Decision
from effc.cost.features import FAMILIES, family_of
from effc.cost.model import NEVER, CostModel
from effc.cost.records import Record
from effc.cost.roofline import Context
from effc.ir.graph import Builder, Graph
from effc.passes.manager import PassReport, Pipeline
from effc.passes.pipeline import default
from effc.passes.winograd import SIDES

TARGET = parse("cpu:x86-64-v3")
OPS = {
    "conv_algorithm": {0: "conv_fused", 1: "conv_winograd", 2: "conv_winograd"},
    "strided_conv_algorithm": {0: "conv_fused", 1: "conv_winograd", 2: "conv_winograd"},
    "conv_or_chain": {0: "conv_fused", 1: "conv_chain"},
    "rows_or_chain": {0: "matmul_fused", 1: "row_chain"},
}


def small(kind: str) -> space.Case:
    """A small case of each set."""
    case = {
        "conv_algorithm": lambda: space.three(9, 17, 11, 13, 1, "relu"),
        "strided_conv_algorithm": lambda: space.three(9, 17, 22, 25, 1, "relu", stride=2),
        "conv_or_chain": lambda: space.bottleneck(1, 5, 13, 11, ((20, 1, 1, 0),), (20, 3, 1, 1), 5, residual=True),
        "rows_or_chain": lambda: space.transformer_rows(37, 64, 96, 64, post=True),
    }[kind]()
    assert case is not None
    return case


def pipeline(ask: Any) -> Pipeline:
    from effc import builtin_backends  # noqa: F401  (registers them)
    from effc.backends.registry import find

    return Pipeline(default(replace(find("cpu").passes(), ask=ask)))


def graph(kind: str) -> Graph:
    b = Builder()
    return b.graph([small(kind).build(b)])


def test_every_set_has_features_a_sampler_and_a_pass_that_asks() -> None:
    passes = {p.name for p in pipeline(None).passes}
    for name, a in SETS.items():
        assert name in FAMILIES and name in space.SAMPLERS and a.asks in passes and len(set(a.ways)) == len(a.ways)
    assert set(OPS) == set(SETS)


@pytest.mark.parametrize("kind", SETS)
def test_the_answer_is_what_is_done(kind: str) -> None:
    """Of each way: the ops that it stands for, and an entry in the report. Without an answer the rule decides."""
    g = graph(kind)
    for way, op in OPS[kind].items():
        asked, report = Forced(kind, way), PassReport()
        made = pipeline(asked).run(g, report)
        assert len(asked.regions) == 1
        assert op in {n.op for n in made.nodes}
        assert (way > 0) == any(n.op in ("conv_winograd", "conv_chain", "row_chain") for n in made.nodes)
        if kind.endswith("conv_algorithm") and way:
            stride = 2 if kind.startswith("strided") else 1
            found = [(n.attrs["tile"], n.attrs["stride"]) for n in made.nodes if n.op == "conv_winograd"]
            assert found == [(2 * way, stride)]
        (entry,) = [d for d in report.decisions if d["kernel"] == kind]
        assert entry["chosen"] == SETS[kind].ways[way] and "forced" in entry["why"]
        ways = asked.regions[0]
        assert [way_of(w) for w in ways] == list(range(len(SETS[kind].ways)))
        assert {rule_of(w) for w in ways} == {entry["rule"]} and family_of(ways[0]) == kind
        assert Call.from_json(json.loads(json.dumps(ways[way].as_json()))).attrs == ways[way].attrs
    report = PassReport()
    pipeline(None).run(g, report)
    (entry,) = [d for d in report.decisions if d["kernel"] == kind]
    assert entry["chosen"] == SETS[kind].ways[entry["rule"]] and entry["why"].startswith("by rule: ")


def test_dynamic_sizes_are_left_to_the_rule() -> None:
    import torch
    from torch import nn

    asked = []

    def small(ways: Sequence[Call]) -> Decision:
        """What is asked is for how few pixels the direct sum would be chosen: constant sizes."""
        asked.append(ways[0].outs[0].shape)
        return Decision(0)

    model = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()).eval()
    from effc.frontend.torch import import_model

    n = torch.export.Dim("n", min=1, max=8)
    im = import_model(model, (torch.randn(2, 16, 20, 20),), {}, {"input": {0: n}})
    report = PassReport()
    pipeline(small).run(im.graph, report)
    assert len(asked) == len(SIDES) and all(isinstance(d, int) for shape in asked for d in shape)
    (entry,) = report.decisions
    assert "sizes are dynamic" in entry["why"]


@pytest.mark.parametrize("kind", SETS)
def test_features_are_finite_and_tell_ways_and_sizes_apart(kind: str) -> None:
    seen = set()
    for i in range(8):
        case = None
        rng = np.random.default_rng(i)
        while case is None:
            case = space.SAMPLERS[kind](rng)
        asked = Forced(kind, 0)
        measure.graph_of(case, asked)
        (ways,) = asked.regions
        for w in ways:
            f = FAMILIES[kind].features(w, Context(MACHINE, 32, 2, w.bytes))
            assert all(np.isfinite(v) for v in f.values()), f
            seen.add(tuple(f.values()))
    assert len(seen) == 8 * len(SETS[kind].ways)


@pytest.mark.parametrize(
    "made",
    [
        *(small(kind) for kind in SETS), space.transformer_rows(50, 64, 96, 0, post=True),
        space.transformer_rows(50, 64, 96, 0, post=False), space.transformer_rows(30, 64, 128, 192, post=False),
    ],
    ids=lambda c: c.spec,
)  # fmt: skip
def test_a_case_like_a_region_has_that_region(made: space.Case) -> None:
    kind = made.family
    asked = Forced(kind, 0)
    measure.graph_of(made, asked)
    case = space.like(asked.regions[0][0])
    assert case is not None
    again = Forced(kind, 0)
    measure.graph_of(case, again)
    assert again.regions[0] == asked.regions[0]


@pytest.mark.parametrize(
    "case",
    [
        space.heads(2, 3, 5, 9, 8, False), space.heads(1, 2, 17, 17, 4, True), space.layer("lstm_layer", 5, 2, 9, 20),
        space.layer("gru_layer", 3, 1, 4, 12), space.layer("rnn_layer", 4, 3, 8, 10),
        space.three(8, 9, 7, 6, 2, "relu"), space.three(8, 9, 7, 6, 2, "relu", stride=2),
    ],
    ids=lambda c: c.spec,
)  # fmt: skip
def test_a_case_like_a_call_makes_that_call(case: space.Case) -> None:
    def made(c: space.Case) -> Call:
        g = measure.graph_of(c, Forced(c.family if c.family in SETS else "conv_algorithm", 1))
        found = [x for x in calls(cpu.compile_graphs({"main": g}, TARGET).programs["main"], {}) if fits(x, c)]
        assert len(found) == 1
        return replace(found[0], name="", loc="")

    def fits(x: Call, c: space.Case) -> bool:
        return x.kernel.startswith(c.kernels)

    again = space.like(made(case))
    assert again is not None and made(again) == made(case)


@pytest.mark.isa("x86-64-v3")
@pytest.mark.parametrize("kind", SETS)
def test_measures_all_ways_and_what_they_are_made_of(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = measure.measure(small(kind), rng, "g", 1, 1 << 18, TARGET, MACHINE, tmp_path, blocks=(2, 2))
    whole = {r.way: r for r in found if r.group == "g"}
    assert sorted(whole) == list(range(len(SETS[kind].ways)))
    assert all(r.family == kind and way_of(r.call) == way and r.seconds > 0 for way, r in whole.items())
    parts = [r for r in found if r.group != "g"]
    assert {r.group.split("/")[1] for r in parts} == {str(w) for w in whole} and all(r.way == 0 for r in parts)
    fused = {r.family for r in parts if r.group.startswith("g/1/")}
    kinds = {"conv_algorithm": "winograd", "strided_conv_algorithm": "winograd", "conv_or_chain": "conv_chain"}
    assert fused == {kinds.get(kind, "row_chain")}
    apart = [r.family for r in parts if r.group.startswith("g/0/")]
    several = {"conv_algorithm": 1, "strided_conv_algorithm": 1, "conv_or_chain": 3, "rows_or_chain": 6}
    assert len(apart) == several[kind]


def test_the_rule_decides_about_regions_without_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a model that was trained before a set was added."""
    now = cost_model.shipped(TARGET.name)
    assert now is not None and "strided_conv_algorithm" in now.families
    families = {k: v for k, v in now.families.items() if k != "strided_conv_algorithm"}
    before = CostModel(families, now.machine, now.target, now.info)
    monkeypatch.setattr(cost_model, "shipped", lambda target: before)
    ask = alternatives.asker(TARGET.name, 1 << 22)
    assert ask is not None
    b, report = Builder(), PassReport()
    case = space.three(64, 128, 56, 56, 1, "relu", stride=2)
    assert case is not None
    pipeline(ask).run(b.graph([case.build(b)]), report)
    (entry,) = [d for d in report.decisions if d["kernel"] == "strided_conv_algorithm"]
    assert entry["rule"] == 2 and entry["chosen"] == SETS["strided_conv_algorithm"].ways[2]
    assert entry["why"].startswith("by rule, no model of family")


# A model of made-up records -------------------------------------------------------------------------------------------


def made_up(gain: float) -> list[Record]:
    """Convolutions of which F(4x4) takes ``1 - gain`` of the direct one's time and F(2x2) a little more than it,
    whatever the rule says."""
    rng, out = np.random.default_rng(0), []
    for g in range(80):
        case = None
        while case is None:
            c, o, side = (int(v) for v in rng.integers(8, 64, 3))
            case = space.three(c, o, side, side, 1, "relu")
        asked = Forced("conv_algorithm", 0)
        measure.graph_of(case, asked)
        region = asked.regions[0][0]
        for way, call in enumerate(alternatives.ways_of(replace(region, attrs=region.attrs[:-2]), g % 3)):
            for threads in (1, 2):
                seconds = region.flops / 50e9 / threads * (1, 1.04, 1 - gain)[way]
                seconds *= float(np.exp(0.005 * rng.standard_normal()))
                out.append(
                    Record(call, "conv_algorithm", threads, call.bytes, seconds, 0.01, 1e-4, 0.0, f"g{g}-{threads}",
                           way, "space", TARGET.name, MACHINE)
                )  # fmt: skip
    return out


@pytest.fixture(scope="module", params=[0.5, -0.6])
def learned(request: pytest.FixtureRequest) -> tuple[float, CostModel]:
    pytest.importorskip("lightgbm")
    return request.param, train.fit(made_up(request.param), rounds=120)


def test_the_model_overrules_the_rule_where_that_paid_off(learned: tuple[float, CostModel]) -> None:
    gain, model = learned
    family = model.families["conv_algorithm"]
    assert family.rank_error < NEVER
    asked = Forced("conv_algorithm", 0)
    measure.graph_of(small("conv_algorithm"), asked)
    contexts = [model.context(n, 1 << 20) for n in (1, 2)]
    for rule in range(3):
        ways = alternatives.ways_of(replace(asked.regions[0][0], attrs=asked.regions[0][0].attrs[:-2]), rule)
        made = model.choose_region(ways, contexts)
        assert made.index == (2 if gain > 0 else 0 if rule == 2 else rule) and made.rule == rule
        text = made.as_json(SETS["conv_algorithm"].ways)
        assert rule in {w["index"] for w in (text["predicted"], *text["losers"])}
        predicted = {w["index"]: w["us"] for w in (text["predicted"], *text["losers"])}
        assert predicted[2] / predicted[0] == pytest.approx(1 - gain, rel=0.1)


@pytest.mark.isa("x86-64-v3")
def test_explain_shows_predicted_and_measured(
    learned: tuple[float, CostModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """End to end: compiled with a model of one's own, explained, each way measured, and right."""
    import torch
    from torch import nn

    from effc.cli import main

    gain, model = learned
    model.save(tmp_path / "m.npz")
    monkeypatch.setenv("EFFC_COST_MODEL", str(tmp_path / "m.npz"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(24, 40, 3, padding=1), nn.ReLU()).eval()
    x = torch.randn(1, 24, 21, 19)
    compiled = effc.compile(net, (x,))
    want = net(x).detach()
    assert (compiled(x) - want).abs().max() <= 1e-5 * want.abs().max()
    assert compiled.report["entries"]["main"]["passes"]["stats"].get("form_winograd.tile4", 0) == (gain > 0)
    path = tmp_path / "net.effc"
    compiled.save(path)
    assert main(["explain", str(path), "--measure", "--threads", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (d,) = [d for d in report["entries"]["main"]["decisions"] if d["kernel"] == "conv_algorithm"]
    lines = [d["predicted"], *d["losers"]]
    assert d["chosen"] == lines[0]["way"] and {w["index"] for w in lines} == {0, 1, 2}
    assert all(w["us"] > 0 and w["measured_us"] > 0 for w in lines)
    assert main(["explain", str(path), "--measure", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert f"conv_algorithm: {SETS['conv_algorithm'].ways[2 if gain > 0 else 0]}" in text
    assert all(f"us  {way}" in text for way in SETS["conv_algorithm"].ways) and text.count("measured") >= 3
