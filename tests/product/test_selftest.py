"""The selftest that an artifact carries: what it holds, that it catches what it should, and where it is left out."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import effc
from effc.cli import main
from effc.runtime import selftest
from effc.runtime.artifact import ArtifactReader

from .factories import small
from .repack import repack

ROOT = Path(__file__).resolve().parents[2]


def saved(path: Path, model: Any, args: Any, **options: Any) -> Path:
    effc.compile(model, args, **options).save(path)
    return path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, args = small()
    return saved(tmp_path_factory.mktemp("selftest") / "small.effc", model, args)


def check(path: Path) -> list[selftest.Result]:
    with ArtifactReader(path) as r:
        r.verify()
        return selftest.check(r, effc.load(path))


def read(path: Path, member: str) -> np.ndarray[Any, Any]:
    with ArtifactReader(path) as r:
        return np.load(io.BytesIO(r.read(member)), allow_pickle=False)


def npy(a: np.ndarray[Any, Any]) -> bytes:
    f = io.BytesIO()
    np.save(f, a, allow_pickle=False)
    return f.getvalue()


def test_holds_what_eager_makes_of_the_example(artifact: Path) -> None:
    model, args = small()
    with torch.no_grad():
        want = list(model(*args).values())
    for i, a in enumerate(args):
        np.testing.assert_array_equal(read(artifact, f"selftest/main.in{i}.npy"), a.numpy())
    for i, w in enumerate(want):
        np.testing.assert_allclose(read(artifact, f"selftest/main.out{i}.npy").reshape(w.shape), w.numpy(), rtol=1e-6)
    (result,) = check(artifact)
    assert result.compared == 2 and 0 <= result.error < 1e-5 and not result.problems
    assert effc.load(artifact).report["selftest"]["main"]["results"] == 2


def test_verify_runs_it_without_torch(artifact: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['ml_dtypes'] = sys.modules['scipy'] = None\n"
        "from effc.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", artifact], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "selftest of main: 2 results, max error" in done.stdout


def test_inspect_lists_it(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(artifact)]) == 0
    out = capsys.readouterr().out
    assert "selftest: 2 inputs" in out and "expected output" in out and "[3, 4, 10]" in out
    assert "selftest/main.out0.npy" in out


def test_catches_a_changed_expectation(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One element off by a thousandth, under checksums that fit."""
    want = read(artifact, "selftest/main.out0.npy")
    want[7] += 1e-3
    bad = repack(artifact, tmp_path / "bad.effc", {"selftest/main.out0.npy": npy(want)})
    (result,) = check(bad)
    assert len(result.problems) == 1 and "allowed 1e-04" in result.problems[0]
    assert main(["verify", str(bad)]) == 1
    assert "selftest of main" in capsys.readouterr().err
    good = repack(artifact, tmp_path / "good.effc", {})
    assert not check(good)[0].problems


def test_catches_changed_weights(artifact: Path, tmp_path: Path) -> None:
    with ArtifactReader(artifact) as r:
        weights = np.frombuffer(r.read("weights/0.bin"), np.float32).copy()
    weights[np.flatnonzero(weights)[0]] += 0.5
    assert check(repack(artifact, tmp_path / "bad.effc", {"weights/0.bin": weights.tobytes()}))[0].problems


def test_damage_is_caught_before(artifact: Path, tmp_path: Path) -> None:
    data = bytearray(artifact.read_bytes())
    data[data.index(b"\x93NUMPY") + 130] ^= 1
    (tmp_path / "bad.effc").write_bytes(data)
    with pytest.raises(effc.EffcError, match="selftest"):
        check(tmp_path / "bad.effc")


@pytest.mark.parametrize(
    "member", [{"selftest/index.json": b"[]"}, {"selftest/index.json": b"{"}, {"selftest/main.in0.npy": b"no"},
               {"selftest/index.json": b'{"main": {"inputs": [], "expected": []}}'},
               {"selftest/index.json": b'{"other": {"inputs": [], "expected": []}}'}],
)  # fmt: skip
def test_malformed_is_refused_in_words(artifact: Path, tmp_path: Path, member: dict[str, bytes]) -> None:
    with pytest.raises(effc.EffcError):
        check(repack(artifact, tmp_path / "bad.effc", member))


class Counting(torch.nn.Module):
    """Writes a buffer, its statistics and an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.ones(2, dtype=torch.int64))

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        self.seen += x.shape[0]
        x.mul_(scale)
        return self.norm(x) * self.seen.sum()


def test_state_and_written_inputs(tmp_path: Path) -> None:
    """What a run leaves is expected too; neither the model's buffers nor the example change by compiling."""
    torch.manual_seed(0)
    model, args = Counting(), (torch.randn(5, 3), torch.tensor(2.0))
    before = {k: v.clone() for k, v in model.named_buffers()}
    x = args[0].clone()
    path = saved(tmp_path / "m.effc", model, args)
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers()) and torch.equal(args[0], x)
    with ArtifactReader(path) as r:
        index = selftest.read_index(r)["main"]
    assert {e.get("name", e.get("index")) for e in index["expected"]} >= {0, "seen", "norm.running_mean"}
    (result,) = check(path)
    assert result.compared == 6 and not result.problems, result
    number = next(e["file"] for e in index["expected"] if e.get("name") == "seen")
    bad = repack(path, tmp_path / "bad.effc", {number: npy(read(path, number) + 1)})
    assert "state seen" in check(bad)[0].problems[0]


class Halves(torch.nn.Module):
    def forward(self, x: torch.Tensor, n: int) -> tuple[Any, ...]:
        return x.to(torch.bfloat16).exp(), x.half() * n, x.argsort(), x > 0, torch.fft.rfft(x), x.shape[0] + n


def test_types_and_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.effc", Halves(), (torch.linspace(-2, 2, 12).flip(0), 3))
    assert read(path, "selftest/main.out0.npy").dtype == np.uint16
    (result,) = check(path)
    assert result.compared >= 5 and not result.problems


def test_entries_and_programs(tmp_path: Path) -> None:
    model, args = small()
    program = torch.export.export(model, args)
    torch.export.save(program, tmp_path / "m.pt2")
    entries = {
        "a/b": effc.Entry(model, args),
        "..": effc.Entry(program),
        "file": effc.Entry(str(tmp_path / "m.pt2")),
    }
    effc.compile_entries(entries).save(tmp_path / "m.effc")
    results = check(tmp_path / "m.effc")
    assert [r.entry for r in results] == list(entries) and not any(r.problems for r in results)


def test_size_is_bounded(tmp_path: Path) -> None:
    """A large result is kept in part, a large example not at all."""
    path = saved(tmp_path / "m.effc", lambda x: (x[:, None] * x, x.sum()), (torch.randn(1000),))
    said = effc.load(path).report["selftest"]["main"]
    assert said["in_part"] == 1 and said["bytes"] <= selftest.LIMIT
    (result,) = check(path)
    assert result.compared == 2 and not result.problems
    out = read(path, "selftest/main.out0.npy")
    out[-1] += 100
    assert check(repack(path, tmp_path / "bad.effc", {"selftest/main.out0.npy": npy(out)}))[0].problems
    large = effc.compile(lambda x: x + 1, (torch.randn(600, 600),))
    assert "bytes" in large.report["selftest"]["main"]["left_out"]


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        (lambda x: x + torch.rand(3), {}, "random"),
        (lambda x: x * 2, {"selftest": False}, "not asked for"),
    ],
)
def test_left_out_with_a_reason(model: Any, options: Any, why: str, tmp_path: Path, capsys: Any) -> None:
    path = saved(tmp_path / "m.effc", model, (torch.randn(3),), **options)
    assert why in effc.load(path).report["selftest"]["main"]["left_out"]
    assert check(path) == []
    assert main(["verify", str(path)]) == 0 and main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"selftest of main: none, {effc.load(path).report['selftest']['main']['left_out']}" in out
    assert "no selftest" in out
