"""Choices in the compiler: what they change, what they must not change, what the report and the commands say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cost_calls import MACHINE, made_up

from effc import builtin_backends  # noqa: F401  (registers them)
from effc.backends import cpu
from effc.backends.cpu.target import parse
from effc.compiler import write_artifact
from effc.cost import command, estimating, measure, records, space, train, tune
from effc.cost.calls import calls
from effc.cost.decide import Decision
from effc.cost.model import CostModel
from effc.cost.roofline import Context
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph
from effc.ir.types import TensorType
from effc.runtime.errors import EffcError
from effc.runtime.loader import load

TARGET = parse("cpu:x86-64-v3")


def network(batch: Any = 1) -> Graph:
    """A convolution and a product by a constant."""
    rng = np.random.default_rng(0)
    b = Builder()
    if batch == "n":
        batch = b.symbol("n", 1, 8)
    x = b.op("permute", b.input("x", TensorType(DType.f32, (batch, 12, 12, 24))), dims=(0, 3, 1, 2))
    w = b.constant(rng.standard_normal((40, 24, 3, 3), np.float32))
    y = b.op("conv", x, w, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
    z = b.op("reduce", y, kind="max", dims=(3,), keepdims=False)
    v = b.op("matmul", z, b.constant(rng.standard_normal((12, 500), np.float32)))
    return b.graph([v])


def build(g: Graph, decide: Any, folder: Path, name: str = "m") -> tuple[Any, Any]:
    parts = cpu.compile_graphs({"main": g}, TARGET, None, None if decide is None else lambda _: decide)
    path = folder / f"{name}.effc"
    io = SimpleNamespace(
        input_names=["x"], output_names=[f"y{i}" for i in range(len(g.outputs))], in_tree=None, out_tree=None
    )
    report = {"entries": {"main": {"decisions": parts.decisions["main"]}}}
    write_artifact(path, TARGET, {"main": io}, {"main": g}, parts, report)
    return parts, path


@pytest.mark.isa("x86-64-v3")
def test_a_choice_changes_the_blocking_and_not_the_result(tmp_path: Path) -> None:
    g = network()
    x = np.random.default_rng(1).standard_normal((1, 12, 12, 24), np.float32)
    _, rule = build(g, None, tmp_path, "rule")
    want = load(rule).run({"x": x})["y0"]
    for index in (1, 17, 40):
        parts, path = build(g, measure.Forced(index), tmp_path, f"w{index}")
        made = {d["kernel"]: d for d in parts.decisions["main"]}
        code = parts.programs["main"]["code"]
        conv = code[made["effc_conv_f32"]["at"]]
        assert conv["kernel"] == "effc_conv_f32"
        nv, rows, cols, k = conv["attrs"][20:24]
        assert made["effc_conv_f32"]["chosen"] == f"nv {nv}, rows {rows}, cols {cols}, k {k}"
        assert "effc_matmul_packed_f32" in made
        results = [load(path, num_threads=t).run({"x": x})["y0"] for t in (1, 2)]
        np.testing.assert_array_equal(results[0], results[1])
        assert np.abs(results[0] - want).max() <= 1e-5 * np.abs(want).max()


def test_dynamic_sizes_are_left_to_the_rule(tmp_path: Path) -> None:
    def never(ways: Any) -> Decision:
        raise AssertionError("asked about a dynamic size")

    parts, _ = build(network("n"), never, tmp_path)
    assert {d["why"] for d in parts.decisions["main"]} == {"its sizes are dynamic"}
    plain, _ = build(network("n"), None, tmp_path)
    assert [c["attrs"] for c in parts.programs["main"]["code"]] == [c["attrs"] for c in plain.programs["main"]["code"]]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lightgbm")
    path = tmp_path_factory.mktemp("cost") / "m.npz"
    train.fit(made_up(), rounds=40).save(path)
    return path


def test_report_explain_and_estimate(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from effc.cli import main

    monkeypatch.setenv("EFFC_COST_MODEL", str(model_file))
    from effc.compiler import chooser

    g = network()
    _, path = build(g, chooser(TARGET.name, 1, g), tmp_path)
    assert main(["explain", str(path)]) == 0
    text = capsys.readouterr().out
    assert "effc_conv_f32: nv" in text and "predicted" in text
    assert "no model of family matmul" in text
    monkeypatch.setattr(estimating, "this_machine", lambda: MACHINE)
    assert main(["estimate", str(path), "--json", "--threads", "1"]) == 0
    out = json.loads(capsys.readouterr().out)
    by = {c["kernel"]: c for c in out["calls"]}
    assert by["effc_conv_f32"]["source"] == "model" and by["effc_matmul_packed_f32"]["source"] == "roofline"
    assert by["effc_matmul_packed_f32"]["why"] == "no model of family matmul"
    total = sum(c["us"] * c["times"] for c in out["calls"]) * 1e-3 + estimating.RUN * 1e3
    assert out["ms"] == pytest.approx(total)
    assert all(c["us"] >= c["floor_us"] * (1 - 1e-9) for c in out["calls"])
    assert main(["estimate", str(path), "--top", "1", "--threads", "1"]) == 0
    assert "in " in capsys.readouterr().out


def test_shipped_model_loads_and_its_records_are_there() -> None:
    from effc.cost.model import DATA

    model, data = DATA / "x86-64-v3.npz", DATA / "x86-64-v3.jsonl.xz"
    shipped = CostModel.load(model)
    found = records.read([data])
    assert train.digest(found) == shipped.info["data"] and len(found) == shipped.info["records"]
    assert model.stat().st_size + data.stat().st_size < 8 << 20
    assert {"conv", "matmul", "depthwise", "attention", "map", "red", "copy"} <= shipped.families.keys()
    wide, own = CostModel.load(DATA / "x86-64-v4.npz"), records.read([DATA / "x86-64-v4.jsonl.xz"])
    assert (
        wide.machine.vector_bytes == 64
        and wide.machine == own[-1].machine
        and {"conv", "matmul"} <= wide.families.keys()
    )
    assert wide.info["machines"][wide.machine.id] == sum(r.machine.id == wide.machine.id for r in own)


# Measuring ------------------------------------------------------------------------------------------------------------


@pytest.mark.isa("x86-64-v3")
def test_measures_the_call_that_was_meant(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    g = network()
    conv = next(c for c in calls(cpu.compile_graphs({"main": g}, TARGET).programs["main"], {}) if "conv" in c.kernel)
    case = space.like(conv)
    assert case is not None and measure.ways_of(measure.graph_of(case), TARGET) > 20
    found = measure.measure(case, rng, "g", 1, 1 << 20, TARGET, MACHINE, tmp_path, most=3, blocks=(2, 2))
    assert found[0].way == 0 and len({r.way for r in found}) == 3
    assert len({r.call.attrs[20:24] for r in found}) == 3
    for r in found:
        assert r.call.kernel == "effc_conv_f32" and r.call.attrs[:20] == conv.attrs[:20]
        assert r.seconds > 0 and r.yard > 0 and r.between == 1 << 20 and r.call.flops == conv.flops
    assert list(tmp_path.iterdir()) == []


@pytest.mark.isa("x86-64-v3")
def test_measures_what_is_repeated_and_needs_scratch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    case = next(c for c in (space.SAMPLERS["rnn"](rng) for _ in range(100)) if "lstm_layer" in c.spec)
    found = measure.measure(case, rng, "g", 2, 0, TARGET, MACHINE, tmp_path, blocks=(2, 2))
    assert [r.call.kernel for r in found] == ["effc_lstm_f32"] and found[0].seconds > 0


@pytest.mark.isa("x86-64-v3")
def test_measures_pairs_of_convolutions(tmp_path: Path) -> None:
    """A call that is made of another's description is that call, and its features say how channels are dealt."""
    from effc.cost.features import FAMILIES

    for shape in ((1, 24, 7, 9, 264, (264, 3, 1, 1)), (3, 16, 8, 5, 520, (520, 5, 2, 2))):
        case = space.pair(*shape)
        assert case is not None
        (r,) = measure.measure(case, np.random.default_rng(0), "g", 2, 0, TARGET, MACHINE, tmp_path, blocks=(2, 2))
        assert (r.call.kernel, r.family) == ("effc_conv_pair_f32", "conv_pair")
        assert r.seconds > 0 and r.kernels == measure.kernels_digest()
        again = space.like(r.call)
        assert again is not None and again.spec == case.spec
        f = {n: FAMILIES["conv_pair"].features(r.call, Context(MACHINE, 32, n, 1 << 20)) for n in (1, 2)}
        assert all(np.isfinite(v) for x in f.values() for v in x.values()) and set(f[1]) == set(f[2])
        assert f[1]["wide"] == pytest.approx(np.log2(shape[4])) and f[1]["even"] >= 1 and f[2]["even"] >= 1
    for shape in ((1, 24, 7, 9, 128, (128, 3, 1, 1)), (1, 24, 21, 21, 264, (264, 3, 1, 1))):
        assert space.pair(*shape) is None  # that the pass leaves apart


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measuring that takes no time; the groups it was asked for."""
    asked: list[str] = []
    template = made_up(1)[0]

    def one(case: Any, rng: Any, group: str, threads: int, *rest: Any, **more: Any) -> list[records.Record]:
        from dataclasses import replace

        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(group)
        return [replace(template, group=group, threads=threads)]

    monkeypatch.setattr(measure, "measure", one)
    return asked


def test_tune_goes_on_where_it_was_interrupted(fake: list[str], tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        tune.tune(out, TARGET, seconds=60, machine=MACHINE, calm=2)
    first = list(fake)
    assert [r.group for r in records.read([out])] == first and len(first) == 5
    fake.clear()
    with pytest.raises(KeyboardInterrupt):
        tune.tune(out, TARGET, seconds=60, machine=MACHINE, calm=2)
    assert not set(first) & set(fake) and len(records.read([out])) == 10
    # the same sequence in a new file
    again = tmp_path / "again.jsonl"
    fake.clear()
    with pytest.raises(KeyboardInterrupt):
        tune.tune(again, TARGET, seconds=60, machine=MACHINE, calm=2)
    assert fake == first
    fake.clear()
    assert tune.tune(again, TARGET, seconds=0, machine=MACHINE) == dict.fromkeys(tune.turns(()), 0) and not fake


def test_tune_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    from effc.cli import main

    with pytest.raises(EffcError, match="no sampler 'fft'"):
        tune.turns(["conv", "fft"])
    assert set(tune.turns([])) == set(space.SAMPLERS)
    assert sorted(tune.turns(["copy:3", "conv_pair"])) == ["conv_pair", "copy", "copy", "copy"]
    for text in ("copy:", "copy:0", "copy:x"):
        with pytest.raises(EffcError, match="how often"):
            tune.turns([text])
    (tmp_path / "r.jsonl").write_text("")
    assert main(["tune", "--out", str(tmp_path / "r.jsonl"), "--seconds", "1"]) == 1
    assert main(["tune", "--out", str(tmp_path / "no.jsonl"), "--seconds", "0", "--train", "m.npz"]) == 1


def test_cases_are_a_fixed_sequence_within_their_limits() -> None:
    for kind in space.SAMPLERS:
        for i in range(12):
            case, threads, sweep, _ = tune.case_of(kind, i, 3, 4)
            again = tune.case_of(kind, i, 3, 4)
            assert (case.spec, threads, sweep) == (again[0].spec, again[1], again[2])
            assert 1 <= threads <= 4 and (sweep == 0 or tune.SWEEPS[0] <= sweep <= tune.SWEEPS[1])
            b = Builder()
            g = b.graph([case.build(b)])
            assert all(isinstance(d, int) for n in g.inputs for d in n.types[0].shape)


def test_bar_writes_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    bar = command.Bar()
    bar({"spent": 5.0, "of": 10.0, "records": 7, "disturbed": 1, "spec": "conv"})
    bar.end()
    assert capsys.readouterr().err == "[############............] 5 of 10 s, 7 records, 1 measured again\n"


def test_floor_is_below_every_shipped_record() -> None:
    """All but one in a hundred, which a burst of the clock can explain, and those by little."""
    from effc.cost.model import DATA
    from effc.cost.roofline import floor

    found = records.read([DATA / "x86-64-v3.jsonl.xz"])[::7]
    ratio = np.array([r.seconds / floor(r.call, train.context_of(r)) for r in found])
    assert ratio.min() > 0.8 and (ratio < 1).mean() < 1e-2
