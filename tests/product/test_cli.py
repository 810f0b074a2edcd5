"""The ``effc`` command as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from .factories import small

ROOT = Path(__file__).resolve().parents[2]
SRC = "tests.product.factories:small"


def effc(*args: object, code: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "effc.cli", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=300,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "small.effc"
    out = effc("compile", SRC, "-o", path, "--dynamic", "x.0=batch:1:64", "--dynamic", "x.2=length:3:100").stdout
    assert str(path) in out and path.exists()
    return path


def test_run_on_given_and_made_up_inputs(artifact: Path, tmp_path: Path) -> None:
    model, _ = small()
    x, bias = torch.randn(5, 8, 31), torch.randn(4)
    np.savez(tmp_path / "in.npz", x=x.numpy())
    np.save(tmp_path / "bias.npy", bias.numpy())
    effc("run", artifact, tmp_path / "in.npz", f"bias={tmp_path / 'bias.npy'}", "-o", tmp_path / "out.npz")
    with torch.no_grad():
        want = list(model(x, bias).values())
    with np.load(tmp_path / "out.npz") as got:
        for name, w in zip(got.files, want, strict=True):
            np.testing.assert_allclose(got[name], w.numpy(), rtol=1e-4, atol=1e-5)
    first, second = (effc("run", artifact, "--seed", s, "--size", "x.0=2", "--size", "x.2=9").stdout for s in (1, 2))
    assert first != second and "float32[2, 4, 7]" in first
    assert first == effc("run", artifact, "--seed", 1, "--size", "x.0=2", "--size", "x.2=9").stdout


def test_verify(artifact: Path, tmp_path: Path) -> None:
    out = effc("verify", artifact, "--source", SRC, "--size", "x.2=17").stdout
    assert "SHA-256" in out and "against torch" in out and "against reference" in out and out.endswith("ok\n")
    out = effc("verify", artifact).stdout
    assert "not compared with the model" in out
    data = bytearray(artifact.read_bytes())
    at = data.index(b"graph main")
    data[at + 40] ^= 1
    (tmp_path / "bad.effc").write_bytes(data)
    assert "graph/main.txt" in effc("verify", tmp_path / "bad.effc", code=1).stderr


def test_verify_against_another_model_fails(artifact: Path) -> None:
    code = (
        "from tests.product.factories import small\nm, a = small()\nm.conv.weight.data += 0.1\nmade = lambda: (m, a)\n"
    )
    (ROOT / ".cache").mkdir(exist_ok=True)
    folder = ROOT / ".cache" / f"other_{os.getpid()}"
    folder.mkdir(exist_ok=True)
    try:
        (folder / "other_model.py").write_text(code)
        done = effc("verify", artifact, "--source", "other_model:made", code=1, env={"PYTHONPATH": f"{folder}:{ROOT}"})
        assert "against torch" in done.stderr
    finally:
        (folder / "other_model.py").unlink()
        for f in folder.rglob("*.pyc"):
            f.unlink()


def test_bench(artifact: Path) -> None:
    out = json.loads(effc("bench", artifact, "--seconds", 0.2, "--against", SRC, "--profile", "--json").stdout)
    assert out["effc"]["median_ms"] > 0 and out["eager"]["runs"] > 0
    assert out["effc"]["p10_ms"] <= out["effc"]["median_ms"] <= out["effc"]["p90_ms"]
    assert any("conv" in k["kernel"] for k in out["kernels"])
    assert "eager / effc" in effc("bench", artifact, "--seconds", 0.2, "--against", SRC).stdout


def test_inspect_explain_targets(artifact: Path) -> None:
    out = effc("inspect", artifact, "--plan", "--memory", "--size", "x.0=3").stdout
    assert "weights/0.bin" in out and "in   x: f32[" in out and "effc_conv" in out and "lower bound" in out
    assert effc("inspect", artifact, "--graph").stdout.startswith("graph main(")
    assert json.loads(effc("inspect", artifact, "--json").stdout)["format"] == 1
    assert "entry main" in effc("explain", artifact).stdout
    assert "cpu:x86-64-v3" in effc("targets").stdout
    assert any(t["name"] == "reference" for t in json.loads(effc("targets", "--json").stdout))


def test_exported_program_file(tmp_path: Path) -> None:
    model, args = small()
    torch.export.save(torch.export.export(model, args), tmp_path / "m.pt2")
    effc("compile", tmp_path / "m.pt2", "-o", tmp_path / "m.effc")
    assert (
        "against torch" in effc("verify", tmp_path / "m.effc", "--source", tmp_path / "m.pt2", "--no-reference").stdout
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("compile", "nowhere.pt2"), "there is no file"),
        (("compile", "no_such_module:f"), "cannot import"),
        (("compile", "tests.product.factories:no_such"), "has no no_such"),
        (("compile", "tests.product.factories:not_a_pair"), "must return"),
        (("compile", "just_words"), "package.module:factory"),
        (("compile", SRC, "--dynamic", "z.0=b"), "no argument 'z'"),
        (("compile", SRC, "--dynamic", "x.zero=b"), "cannot read --dynamic"),
        (("compile", SRC, "--target", "cpu:pentium"), "pentium"),
        (("compile", SRC, "--target", "abacus"), "abacus"),
        (("compile", SRC, "-o", "/nonexistent/folder/x.effc"), "cannot write"),
        (("run", "nowhere.effc"), "cannot open"),
        (("run", "pyproject.toml"), "not an effc artifact"),
    ],
)
def test_errors_in_words(args: tuple[str, ...], words: str) -> None:
    done = effc(*args, code=1)
    assert done.stderr.startswith(("error: ", "compiling")) and words in done.stderr


def test_onnx_in_and_out(tmp_path: Path) -> None:
    """An ONNX file as source; as result one for each domain, which differ and agree with PyTorch."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model, args = small()
    for domain in ("standard", "ort"):
        effc("compile", SRC, "--target", "onnx", "--onnx-domain", domain, "-o", tmp_path / f"{domain}.onnx")
        made = onnx.load(tmp_path / f"{domain}.onnx")
        assert {n.domain for n in made.graph.node} <= {"", "com.microsoft"}
        assert domain == "ort" or {n.domain for n in made.graph.node} == {""}
        session = runtime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        got = session.run(None, {i.name: a.numpy() for i, a in zip(session.get_inputs(), args, strict=True)})
        with torch.no_grad():
            for g, w in zip(got, model(*args).values(), strict=True):
                np.testing.assert_allclose(g, w.numpy(), rtol=1e-4, atol=1e-5)
    effc("compile", tmp_path / "standard.onnx", "-o", tmp_path / "back.effc")
    said = effc("verify", tmp_path / "back.effc", "--source", tmp_path / "standard.onnx").stdout
    assert "against onnxruntime: max error" in said and "against reference: max error" in said and "ok" in said
    assert "target 'onnx' alone" in effc("compile", SRC, "--onnx-domain", "ort", "-o", tmp_path / "x", code=1).stderr


def test_errors_about_inputs(artifact: Path) -> None:
    assert "no such symbol" in effc("run", artifact, "--size", "q=3", code=1).stderr
    assert "1 to 64" in effc("run", artifact, "--size", "x.0=65", code=1).stderr
    assert "no entry point" in effc("run", artifact, "--entry", "other", code=1).stderr
    assert "cannot read" in effc("run", artifact, "x=nowhere.npy", code=1).stderr


def test_what_is_not_there_says_so() -> None:
    for command in ("report",):
        assert "not available in this version" in effc(command, code=2).stderr
    effc("no-such-command", code=2)


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "effc.cli", "run", "nowhere.effc"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "EFFC_DEBUG": "1"},
    )
    assert done.returncode == 1 and "Traceback" in done.stderr
