"""``effc conformance``: the runner on suites that misbehave, the shared suites on a few cases, foreign backends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import effc
from effc import cli
from effc.backends import registry
from effc.conformance import report
from effc.conformance.command import main
from effc.conformance.ops import judged, samples
from effc.conformance.suite import Result, resolve
from effc.ir import OPS

ROOT = Path(__file__).resolve().parents[2]
SUITES = "tests.product.conformance_suites"


def command(*args: Any, code: int = 0, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    places = [str(p) for p in (path, ROOT) if p]
    done = subprocess.run(
        [sys.executable, "-m", "effc.cli", "conformance", *map(str, args)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def statuses(file: Path) -> dict[str, list[str]]:
    return {c: [s["status"] for s in r.values()] for c, r in json.loads(file.read_text())["results"].items()}


# The runner -----------------------------------------------------------------------------------------------------------


def test_every_way_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A crash or a hang costs one sample, and says how it came about."""
    out = tmp_path / "odd.json"
    assert main(f"{SUITES}:Odd", ["--backend", "reference", "--json", str(out)]) == 1
    found = json.loads(out.read_text())
    assert (found["suite"], found["target"]) == (f"{SUITES}:Odd", "reference")
    odd = {"drawn": "random", "refused": "refused", "wrong": "wrong", "exit": "crash", "segfault": "crash",
           "hang": "hang", "skipped": "skip"}  # fmt: skip
    assert statuses(out) == {
        **{c: ["right", odd.get(c, "right"), "right"] for c in ("right", "last", *odd)}, "unmakeable": ["crash"]
    }  # fmt: skip
    results = found["results"]
    assert results["exit"]["1"]["reason"] == "the process ended with 3: a last word"
    assert "SIGSEGV" in results["segfault"]["1"]["reason"] and "1 s" in results["hang"]["1"]["reason"]
    table = capsys.readouterr().out
    assert f"| {SUITES}:Odd | reference | 10 | 27 | 20 | 1 | 1 | 1 | 4 | 1 |" in table
    assert f"| {SUITES}:Odd | reference | refused | 1 | because it is refused |" in table
    assert "wrong sample 1: wrong: because it is wrong" in table and "hang sample 1: hang: no answer" in table


def test_a_crash_in_a_batch(tmp_path: Path) -> None:
    out = tmp_path / "together.json"
    assert main(f"{SUITES}:Together", ["--backend", "reference", "--json", str(out)]) == 1
    found = statuses(out)
    assert found["exit"] == found["segfault"] == ["right", "crash", "right"] and found["last"] == ["right"] * 3


def test_selecting_and_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "r.json")
    odd = f"{SUITES}:Odd"
    assert main(odd, ["--backend", "reference", "--only", "^(right|drawn|refused|wrong)$", "--json", out]) == 1
    assert main(odd, ["--backend", "reference", "--resume", out, "--only", "^(right|last)$", "--retry", "wrong"]) == 0
    assert set(statuses(Path(out))) == {"right", "drawn", "refused", "last"}
    args = ["--backend", "reference", "--only", "right|drawn|refused|skipped|last"]
    assert main(odd, [*args, "--shard", "2/2", "--json", out]) == 0
    assert set(statuses(Path(out))) == {"drawn", "skipped"}
    assert main(odd, [*args, "--limit", "2", "--json", out]) == 0
    assert set(statuses(Path(out))) == {"right", "drawn"}
    capsys.readouterr()
    for wrong, words in ((["--shard", "3/2"], "--shard"), (["--limit", "0"], "--limit"), (["--only", "("], "regular"),
                         (["--resume", "nowhere.json"], "nowhere.json"), (["--resume", "pyproject.toml"], "no results"),
                         (["--suite", "nothing"], "no suite 'nothing'"), (["--backend", "abacus"], "abacus"),
                         (["--page", out], "no page in common")):  # fmt: skip
        assert main(odd, ["--backend", "reference", *wrong]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and words in said


def test_shards_are_put_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [str(tmp_path / f"{i}.json") for i in (1, 2)]
    odd, args = f"{SUITES}:Odd", ["--backend", "reference", "--only", "right|drawn|refused|skipped|last"]
    for i, part in enumerate(parts):
        assert main(odd, [*args, "--shard", f"{i + 1}/2", "--json", part]) == 0
    each = [set(statuses(Path(p))) for p in parts]
    whole = tmp_path / "whole.json"
    capsys.readouterr()
    assert main(odd, [*args, "--resume", *parts, "--json", str(whole)]) == 0
    assert "of 0 cases" in capsys.readouterr().err
    assert set(statuses(whole)) == each[0] | each[1] and not each[0] & each[1]
    assert main(odd, [*args, "--resume", *parts]) == 1
    assert "--json" in capsys.readouterr().err


def test_interrupt_keeps_what_was_done(tmp_path: Path) -> None:
    out = tmp_path / "slow.json"
    args = [sys.executable, "-m", "effc.cli", "conformance", "--suite", f"{SUITES}:Slow", "--backend", "reference"]
    process = subprocess.Popen(
        [*args, "--json", str(out)], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not _children(process.pid):
        time.sleep(0.1)
    (worker,) = _children(process.pid)
    time.sleep(6)  # of 20 that all cases take
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and f"--resume {out}" in stderr, stderr
    assert not Path(f"/proc/{worker}").exists()
    done = statuses(out)
    assert 0 < len(done) < 100 and f"| {len(done)} |" in stdout
    again = command("--suite", f"{SUITES}:Slow", "--backend", "reference", "--resume", out, "--limit", len(done) + 2)
    assert set(done) < set(statuses(out)) and len(statuses(out)) == len(done) + 2
    assert "2 of" in again.stderr


def _children(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"{SUITES}:NeedsMore", ["--backend", "reference"]) == 1
    said = capsys.readouterr().err
    assert "needs no_such_package" in said and "pip install 'effc[everything]'" in said
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    for suite, backend, words in (("torch", "reference", "effc[torch]"), ("onnx", "reference", "effc[onnx]"),
                                  ("ops", "onnx", "effc[torch,onnx]"), ("ops", "tvm", "effc[torch,tvm]")):  # fmt: skip
        with pytest.raises(effc.EffcError, match="not installed") as e:
            resolve(suite)().check(backend)
        assert words in str(e.value)


def test_the_command_line_imports_no_framework() -> None:
    code = "import sys; from effc.cli import parser; parser(); print({'torch', 'onnx', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Suites ---------------------------------------------------------------------------------------------------------------


def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    """The command in this process, which has imported what suites need: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["effc", "conformance", *map(str, args)])
    capsys.readouterr()
    return cli.main(sys.argv[1:]), *capsys.readouterr()


def test_shared_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One command, two suites, two backends; one table, on stdout and in a page; one file, which is taken up."""
    pytest.importorskip("onnxruntime")
    page, out = tmp_path / "page.md", tmp_path / "all.json"
    page.write_text("before\n<!-- table of effc conformance -->\nold\n<!-- end of table -->\nafter\n")
    args = ("--suite", "ops,onnx-models", "--backend", "reference,onnx", "--only", "^(neg|matmul|erf|test_sign_model|"
            "test_gradient_of_add|test_Linear)$")  # fmt: skip
    code, table, _ = here(monkeypatch, capsys, *args, "--json", out, "--table", page)
    assert code == 0
    rows = [line.strip("| ").split(" | ") for line in table.split("\n") if line.startswith("| ")]
    counts = {tuple(r[:2]): r[2:] for r in rows if len(r) == 10}
    for backend in ("reference", "onnx"):
        assert counts["ops", backend][0] == "3" and counts["ops", backend][1] == counts["ops", backend][2]
        assert counts["onnx-models simple", backend] == ["2", "2", "1", "0", "1", "0", "0", "0"]
        assert counts["onnx-models pytorch-converted", backend] == ["1", "1", "1", "0", "0", "0", "0", "0"]
    assert "| onnx-models | onnx | simple | 1 | " in table and "Gradient" in table
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and table in text and "old" not in text
    runs = json.loads(out.read_text())["runs"]
    assert [(r["suite"], r["target"]) for r in runs] == [
        (s, b) for s in ("ops", "onnx-models") for b in ("reference", "onnx")
    ]
    code, again, said = here(monkeypatch, capsys, *args, "--resume", out)
    assert (code, again) == (0, table) and "of 0 cases" in said


def test_peers_and_the_page_of_the_onnx_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    page = tmp_path / "onnx.md"
    code, table, _ = here(
        monkeypatch, capsys, "--suite", "onnx-models", "--backend", "onnxruntime,onnx-evaluator", "--only",
        "^(test_gradient_of_add|test_sign_model)$", "--page", page,
    )  # fmt: skip
    assert code == 0 and "| onnx-models simple | onnxruntime | 2 | 2 | 1 | 0 | 1 |" in table
    text = page.read_text()
    assert "| simple | 2 | 1 | 0 | 1 |" in text and "## Refused" in text and "| simple | 1 | " in text
    assert "    effc conformance --suite onnx-models" in text
    code, _, said = here(monkeypatch, capsys, "--suite", "onnx", "--backend", "tensorrt")
    assert code == 1 and "also onnxruntime, onnx-evaluator" in said


def test_torch_samples_resume_an_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run is kept as itself: target, samples, results by operator and dtype."""
    pytest.importorskip("torch")
    out, page = tmp_path / "opdb.json", tmp_path / "torch.md"
    kept = {"add@float32": {"0": {"status": "right"}, "1": {"status": "wrong", "reason": "planted"}}}
    out.write_text(json.dumps({"target": "reference", "samples": 2, "results": kept}))
    args = ("--suite", "torch", "--backend", "reference", "--only", "^(add|neg|bernoulli)@", "--resume", out)
    code, table, _ = here(
        monkeypatch, capsys, *args, "--samples", 2, "--dtypes", "float32,int64", "--json", out, "--page", page
    )
    assert code == 1 and "| torch float32 | reference | 3 |" in table and "| torch int64 | reference | 2 |" in table
    found = json.loads(out.read_text())
    assert {k: v for k, v in found.items() if k != "results"} == {"suite": "torch", "target": "reference", "samples": 2}
    assert found["results"]["add@float32"] == kept["add@float32"] and len(found["results"]) == 5
    text = page.read_text()
    assert "| add | wrong | 1 of 2 | planted |" in text and "| int64 | 2 of " in text
    assert "    effc conformance --suite torch" in text
    code, _, said = here(monkeypatch, capsys, *args, "--samples", 3)
    assert code == 1 and "made with samples 2, not 3" in said
    code, _, said = here(monkeypatch, capsys, *args, "--dtypes", "float23")
    assert code == 1 and "no dtype 'float23'" in said


# Backends of others ---------------------------------------------------------------------------------------------------

TINY = """
import numpy as np
from effc.backends.reference import ReferenceModel
from effc.backends.registry import Backend
from effc.ir.interp import Interpreter
from effc.runtime.errors import EffcError

WRONG = {wrong!r}

def run_graph(graph, target):
    for n in graph.nodes:
        if n.op == "erf":
            raise EffcError("tiny has no erf", op="erf")
    def run(arrays):
        outs = Interpreter().run(graph, arrays)
        ops = [v.node.op for v in graph.outputs]
        return [x + 1 if op == WRONG and x.dtype == np.float32 else x for x, op in zip(outs, ops, strict=True)]
    return run

backend = Backend("tiny", lambda entries, o: ReferenceModel({{n: e.imported() for n, e in entries.items()}}), run_graph)
"""


def installed(folder: Path, wrong: str = "", text: str = TINY) -> Path:
    """A package that registers a backend, as pip would leave it."""
    info = folder / "tiny_effc-1.dist-info"
    info.mkdir(parents=True)
    (folder / "tiny_effc.py").write_text(textwrap.dedent(text).format(wrong=wrong))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-effc\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[effc.backends]\ntiny = tiny_effc:backend\n")
    return folder


def test_a_foreign_backend(tmp_path: Path) -> None:
    """It is run, what it refuses is listed, and a kernel that is wrong is found."""
    args = ("--suite", "ops", "--backend", "tiny", "--only", "^(add|exp|erf|sum_to|matmul)$")
    right = command(*args, path=installed(tmp_path / "right"))
    assert "| ops | tiny | erf |" in right.stdout and "tiny has no erf" in right.stdout
    wrong = command(*args, path=installed(tmp_path / "wrong", "exp"), code=1)
    assert "- ops, tiny: exp sample" in wrong.stdout and ": wrong: exp(float32" in wrong.stdout
    assert "tiny: add" not in wrong.stdout and "tiny: matmul" not in wrong.stdout
    code = "import effc; print([t['name'] for t in effc.targets()])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "right"), str(ROOT)])}
    listed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "'tiny'" in listed.stdout


def test_a_foreign_backend_that_does_not_work(tmp_path: Path) -> None:
    broken = installed(tmp_path / "broken", text="import no_such_module\n")
    assert "no_such_module" in command("--suite", "ops", "--backend", "tiny", path=broken, code=1).stderr
    other = installed(tmp_path / "other", text="backend = 1\n")
    assert "is not a Backend" in command("--suite", "ops", "--backend", "tiny", path=other, code=1).stderr


def test_registering_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    reference = registry.find("reference")
    registry.register(registry.Backend("mine", reference.compile, reference.run_graph))
    registry.register(registry.Backend("few", reference.compile, lambda graph, target: lambda arrays: []))
    with pytest.raises(effc.EffcError, match="already"):
        registry.register(registry.Backend("mine", reference.compile, lambda graph, target: lambda arrays: []))
    with pytest.raises(effc.EffcError, match="'mine:other' is not available"):
        registry.find("mine:other")  # it lists no targets, so it has one
    chosen = [(OPS["tanh"], s) for s in samples(OPS["tanh"])]
    assert {r.status for r in judged(chosen, "mine")} == {"right"}
    (result,) = judged(chosen[:1], "few")
    assert result.status == "crash" and "0 results" in result.reason
    torch = pytest.importorskip("torch")
    m = effc.compile(torch.nn.ReLU(), (torch.ones(3),), target="mine")
    assert torch.equal(m(-torch.ones(3)), torch.zeros(3))


def test_a_table_escapes_and_shortens() -> None:
    run = report.Run("ops", resolve("ops")(), "cpu")
    run.results = {"x": {"0": Result("refused", "a | b " + "c " * 200).as_json()}}
    (row,) = [line for line in report.table([run]).split("\n") if line.startswith("| ops | cpu | x")]
    assert "a \\| b" in row and len(row) < 200 and row.endswith("... |")


def test_differences_are_seen() -> None:
    from effc.conformance.compare import difference

    x = np.array([1.0, -2.0, np.nan, np.inf])
    for dtype in (np.float32, np.float64, np.float16, np.complex64):
        a = x.astype(dtype)
        assert not difference(a, a) and difference(a + dtype(0.01), a)
        assert difference(a[:3], a) and difference(np.zeros(4, np.int64), a)
    assert "NaN" in difference(np.nan_to_num(x, posinf=np.inf), x)
    assert "first at 1: 2, expected 3" in difference(np.array([1, 2]), np.array([1, 3]))
    assert not difference(np.zeros((0, 3)), np.zeros((0, 3)))
