"""EFFC_DEBUG=3 and 4, EFFC_DUMP: what a compilation tells and leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import effc
from effc.backends.cpu import build

from .factories import Undecided, deep, small

ROOT = Path(__file__).resolve().parents[2]


def told(level: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, factory: Any = small) -> str:
    monkeypatch.setenv("EFFC_DEBUG", level)
    model, args = factory()
    m = effc.compile(model, args)
    if int(level) >= 3:
        assert m.report["model_cache"].startswith("off")  # from the cache there would be nothing to tell
    text: str = capsys.readouterr().err
    return text


def test_choices(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """What each pass made, removed and declined, and the kernel of each node, with the user's lines."""
    lines = told("3", monkeypatch, capsys).splitlines()
    at = next(i for i, s in enumerate(lines) if s.startswith("pass fuse_epilogues: "))
    until = next(i for i, s in enumerate(lines[at + 1 :], at + 1) if s.startswith("pass "))
    section = lines[at:until]
    assert any(s.startswith("  - conv f32[3, 4, 10]  [") and "factories.py:" in s for s in section), section
    assert any(s.startswith("  + conv_fused f32[3, 4, 10]") for s in section) and "  fuse_epilogues.conv: 1" in section
    assert any(s.startswith("  declined fuse on ") and "conv_fused is not elementwise" in s for s in lines)
    kernels = lines[lines.index("kernels of entry main") :]
    assert any("conv" in s and ": effc_conv" in s and " with epi_" in s and "factories.py:" in s for s in kernels), (
        kernels
    )
    assert not any("extern" in s for s in lines) and not any(s.startswith("# after ") for s in lines)
    assert "pass " not in told("2", monkeypatch, capsys)


def test_control_flow_and_what_was_missed() -> None:
    from effc.runtime.debug import kernels_text

    inner = {"code": [{"op": "call", "kernel": "k", "name": "inner", "loc": "m.py:2: y"}]}
    program = {"code": [{"op": "while", "name": "", "loc": "", "cond": inner, "body": inner}]}
    note = {"op": "matmul", "name": "mm", "reason": "the dims vary", "loc": "m.py:1: x"}
    text = kernels_text({"main": program}, [note])
    assert text.count("    inner: k  [m.py:2: y]") == 2 and "  while: while" in text
    assert "missed: matmul mm: the dims vary  [m.py:1: x]" in text


def test_sources(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = told("4", monkeypatch, capsys)
    assert 'extern "C" EFFC_EXPORT' in text and "op::at_least" in text
    assert "//   max_sub_exp_sum_div  [" in text and "pass fuse_regions" in text


def test_sources_that_do_not_compile(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "PREAMBLE", "#error broken on purpose\n")
    monkeypatch.setenv("EFFC_DEBUG", "4")
    model, args = deep()
    with pytest.raises(effc.EffcError, match="broken on purpose"):
        effc.compile(model, args)
    assert 'extern "C" EFFC_EXPORT' in capsys.readouterr().err


# Repros ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFC_DUMP", str(tmp_path / "dump"))
    return tmp_path / "dump"


def repro(folder: Path, code: int, *args: str, **env: str) -> str:
    """Runs a repro from elsewhere; its output."""
    done = subprocess.run(
        [sys.executable, folder / "repro.py", *args],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_repro_of_a_compilation(dumps: Path) -> None:
    model, args = small()
    effc.compile(model, args, dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=9)}, "bias": None})
    effc.compile(model, args, target="reference")
    first, second = dumps / "Small-0", dumps / "Small-1"
    want = {"main.inputs.pt", "main.pt2", "options.json", "report.json", "repro.py"}
    assert {p.name for p in first.iterdir()} == {p.name for p in second.iterdir()} == want
    assert "main: result 1: equal" in repro(first, 0)
    assert repro(second, 0).count("equal") == 2
    assert "not compiled" in repro(first, 1, "abacus")
    assert list(dumps.iterdir()) == [first, second] or len(list(dumps.iterdir())) == 2  # a repro leaves none itself


class Cache(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))
        self.lstm = torch.nn.LSTM(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total += x.sum(0)
        return self.lstm(x)[0] + self.total


def test_repro_of_entry_points_with_state(dumps: Path) -> None:
    model, args = small()
    cache = Cache().eval()
    entries = {"a/b": effc.Entry(model, args), "cache": effc.Entry(cache, (torch.randn(4, 3),))}
    effc.compile_entries(entries, disable_passes=("fuse_regions",))
    assert json.loads((dumps / "Small-0" / "options.json").read_text())["disable_passes"] == ["fuse_regions"]
    text = repro(dumps / "Small-0", 0)
    assert "a/b: result 1: equal" in text and "cache: result 0: equal" in text


def test_repro_of_a_failure(dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler fails: the folder shows how, and the repro fails in the same way until the cause is gone."""
    monkeypatch.setenv("EFFC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "PREAMBLE", "#error broken on purpose\n")
    with pytest.raises(effc.EffcError, match="broken on purpose"):
        effc.compile(*small())
    folder = dumps / "Small-0"
    assert "broken on purpose" in (folder / "error.txt").read_text() and not (folder / "report.json").exists()
    assert "not compiled: compiling" in repro(folder, 1, CXX="g++ --no-such-option")
    monkeypatch.undo()
    assert "equal" in repro(folder, 0)


def test_repro_of_what_cannot_be_exported(dumps: Path, capsys: Any) -> None:
    with pytest.raises(effc.EffcError, match="refuses the model"):
        effc.compile(Undecided(), (torch.ones(3),))
    folder = dumps / "Undecided-0"
    assert (folder / "main.module.pt").exists() and "no main.pt2" in (folder / "notes.txt").read_text()
    assert str(folder) in capsys.readouterr().err
    assert "torch.export refuses" in repro(folder, 1)
    with pytest.raises(effc.EffcError, match="refuses the model"):
        effc.compile(lambda x: x + 1 if x.sum() > 0 else x, (torch.ones(3),))
    assert "cannot be pickled" in (dumps / "function-0" / "notes.txt").read_text()
    assert "torch.export refuses the model and it cannot be pickled" in repro(dumps / "function-0", 1)


def test_repro_sees_a_difference(dumps: Path) -> None:
    effc.compile(lambda x: x + torch.rand(3), (torch.ones(3),))
    assert "allowed" in repro(dumps / "function-0", 2)


def test_unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFC_DUMP", "/proc/nowhere")
    with pytest.raises(effc.EffcError, match="EFFC_DUMP: cannot write to /proc/nowhere"):
        effc.compile(*small())
