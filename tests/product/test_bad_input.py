"""What goes wrong before and around a run: each must end in an EffcError in words, with nothing half-written."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import effc
from effc import EffcError

from .factories import Small, small

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model() -> Any:
    module, args = small()
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=3, max=100)
    return effc.compile(module, args, dynamic_shapes={"x": {0: batch, 2: length}, "bias": None})


def refused(call: Any, *words: str) -> str:
    with pytest.raises(EffcError) as e:
        call()
    text = str(e.value)
    for w in words:
        assert w in text, text
    return text


X, BIAS = torch.randn(2, 8, 10), torch.randn(4)


def test_wrong_arguments_are_named(model: Any) -> None:
    refused(lambda: model(X[0], BIAS), "'x'", "rank")
    refused(lambda: model(torch.randn(65, 8, 10), BIAS), "65")
    refused(lambda: model(torch.randn(2, 8, 2), BIAS), "2")
    refused(lambda: model(torch.randn(2, 7, 10), BIAS), "'x'", "7")
    refused(lambda: model(X.double(), BIAS), "'x'", "float64", "float32")
    refused(lambda: model(X.to("meta"), BIAS), "'x'", "meta")
    refused(lambda: model(X.to_sparse(), BIAS), "'x'")
    refused(lambda: model(X), "bias")
    refused(lambda: model(X, BIAS, BIAS))
    refused(lambda: model(X, BIAS, mask=BIAS), "mask")
    refused(lambda: model(X, "text"), "'bias'")
    refused(lambda: model(None, BIAS))
    refused(lambda: model.run({"x": X.numpy()}), "bias")


def test_what_is_odd_but_fine(model: Any) -> None:
    module, _ = small()
    wide = torch.randn(2, 10, 16)[:, :, ::2].transpose(1, 2)  # not contiguous
    with torch.no_grad():
        for x in (wide, X.flip(2), X[:1].expand(3, 8, 10), X.clone().requires_grad_()):
            want, got = module(x, BIAS), model(x, BIAS)
            torch.testing.assert_close(got["p"], want["p"], rtol=1e-4, atol=1e-5)
        odd = X.clone()
        odd[0, 0, 0], odd[1, 2, 9] = float("nan"), float("inf")
        want, got = module(odd, BIAS), model(odd, BIAS)
        assert (
            torch.equal(got["p"].isnan(), want["p"].isnan())
            and bool(want["p"].isnan().any())
            and not bool(want["p"].isnan().all())
        )
    assert model(x=X, bias=BIAS)["p"].shape == (2, 4, 8)


def test_no_elements() -> None:
    """A batch of none is a batch."""
    module, args = small()
    dynamic = {"x": {0: torch.export.Dim("batch", min=0, max=64)}, "bias": None}
    m = effc.compile(module, args, dynamic_shapes=dynamic)
    out = m(torch.zeros(0, 8, 12), BIAS)
    assert out["p"].shape == (0, 4, 10) and float(out["total"]) == 0.0


@torch.library.custom_op("effc_tests::unheard_of", mutates_args=())
def unheard_of(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@unheard_of.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("effc_tests::unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@unknown.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Strange(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = unheard_of(x)
        return unknown(y) + unheard_of(x * 2)


def test_unknown_operators_all_at_once() -> None:
    text = refused(
        lambda: effc.compile(Strange(), (torch.randn(3),)), "effc_tests.unheard_of", "effc_tests.unknown", "2 uses"
    )
    assert "test_bad_input.py" in text, "the user's line is missing"


def test_wrong_compile_arguments() -> None:
    module, args = small()
    refused(lambda: effc.compile(module, (args[0],)))
    refused(lambda: effc.compile(3, args), "int")
    refused(lambda: effc.compile("model.xyz"), ".xyz")
    refused(lambda: effc.compile("nowhere.pt2"), "nowhere.pt2")
    refused(lambda: effc.compile(module, args, target="abacus"), "abacus")
    refused(lambda: effc.compile(module, args, target="cpu:x86-64-v4+telepathy"), "telepathy")
    refused(lambda: effc.compile(module, args, disable_passes=["no_such_pass"]), "no_such_pass")
    refused(lambda: effc.compile_entries({}))


def test_data_dependent_python_is_refused_with_torchs_reason() -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

    refused(lambda: effc.compile(Branch(), (torch.randn(3),)), "torch.export")


def test_saving_where_one_cannot(model: Any, tmp_path: Path) -> None:
    refused(lambda: model.save(tmp_path / "no" / "such" / "folder.effc"), "cannot write")
    refused(lambda: model.save(tmp_path), str(tmp_path))
    (tmp_path / "old.effc").write_bytes(b"what was there")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        refused(lambda: model.save(tmp_path / "old.effc"), "cannot write")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / "old.effc").read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == ["old.effc"]


# Compilations that end early -----------------------------------------------------------------------------------------


def start(tmp_path: Path, **env: str) -> subprocess.Popen[str]:
    """`effc compile` of a model with many loops, with an empty cache, in a process group of its own."""
    command = [
        sys.executable,
        "-m",
        "effc.cli",
        "compile",
        "tests.product.factories:deep",
        "-o",
        str(tmp_path / "deep.effc"),
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "EFFC_CACHE_DIR": str(tmp_path / "cache"), "EFFC_RT_LIB": _runtime(), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_default_interrupt,
    )


def _default_interrupt() -> None:
    """What a terminal gives its processes; a background job of a shell ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _group(pgid: int) -> list[str]:
    """Commands of the living processes of a process group."""
    out = []
    for p in Path("/proc").iterdir():
        if p.name.isdigit():
            try:
                fields = (p / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == pgid and fields[0] != "Z":
                    out.append((p / "cmdline").read_text().replace("\0", " "))
            except (OSError, IndexError):
                continue
    return out


def wait_for_compiler(p: subprocess.Popen[str]) -> None:
    """Until a C++ compiler runs on generated code (the runtime library has been built by then)."""
    deadline = time.time() + 120
    while time.time() < deadline:
        if p.poll() is not None:
            raise AssertionError(f"it ended before a compiler ran: {p.communicate()}")
        if any("cc1plus" in c and "loop.hpp" not in c and "effc_rt" not in c for c in _group(p.pid)):
            return
        time.sleep(0.02)
    raise AssertionError("no compiler ever ran")


def finish(p: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    try:
        _, err = p.communicate(timeout=seconds)
    finally:
        for _ in range(50):
            if not _group(p.pid):
                break
            time.sleep(0.1)
        left = _group(p.pid)
        if left:
            os.killpg(p.pid, signal.SIGKILL)
    assert not left, f"processes left behind: {left}"
    return p.returncode, err


@pytest.mark.parametrize("when", ["killed", "interrupted"])
def test_compile_that_ends_half_way(tmp_path: Path, when: str) -> None:
    p = start(tmp_path)
    wait_for_compiler(p)
    if when == "killed":
        os.killpg(p.pid, signal.SIGKILL)
        code, _ = finish(p)
        assert code == -signal.SIGKILL
    else:
        os.killpg(p.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        code, err = finish(p)
        assert code == 130 and "interrupted" in err and "Traceback" not in err
    assert not list(tmp_path.glob("*.effc")) and not list(tmp_path.glob(".*.tmp"))
    again = start(tmp_path)  # the same cache: whatever is in it is whole
    code, err = finish(again, 300)
    assert code == 0, err
    got = effc.load(tmp_path / "deep.effc")
    from .factories import deep

    module, args = deep()
    torch.testing.assert_close(got(*args), module(*args), rtol=1e-4, atol=1e-5)


def test_interrupt_that_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt that falls into a finalizer or a callback is printed and forgotten by Python."""
    from effc import compiler

    def swallows(*_: Any) -> Any:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        raise EffcError("what follows from that")

    monkeypatch.setattr(compiler, "import_entry", swallows)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests themselves may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            effc.compile(torch.nn.ReLU(), (torch.zeros(2),), target="reference")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_full_disk_while_compiling(tmp_path: Path) -> None:
    """The compiler's own output does not fit: an error in words, and no artifact."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from effc.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "compile", "tests.product.factories:small", "-o", str(tmp_path / "x.effc")]
    env = {**os.environ, "EFFC_CACHE_DIR": str(tmp_path / "cache"), "EFFC_RT_LIB": _runtime()}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.glob("*.effc"))


def _runtime() -> str:
    from effc.runtime import build_rt

    return str(build_rt.library())


def test_no_compiler(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "effc.cli",
        "compile",
        "tests.product.factories:small",
        "-o",
        str(tmp_path / "x.effc"),
    ]
    env = {k: v for k, v in os.environ.items() if k != "CXX"}
    env |= {"PATH": str(tmp_path), "EFFC_CACHE_DIR": str(tmp_path / "cache"), "EFFC_RT_LIB": _runtime()}
    try:
        import ziglang  # noqa: F401

        pytest.skip("zig is installed: there is a compiler without PATH")
    except ImportError:
        pass
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "no C++ compiler" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_broken_compiler(tmp_path: Path) -> None:
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\necho 'cxx: error: out of ideas' >&2\nexit 1\n")
    broken.chmod(0o755)
    command = [
        sys.executable,
        "-m",
        "effc.cli",
        "compile",
        "tests.product.factories:small",
        "-o",
        str(tmp_path / "x.effc"),
    ]
    env = {**os.environ, "CXX": str(broken), "EFFC_CACHE_DIR": str(tmp_path / "cache"), "EFFC_RT_LIB": _runtime()}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "out of ideas" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_results_for_nan_and_infinity_only() -> None:
    module = Small().eval()
    m = effc.compile(module, (X, BIAS))
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.full_like(X, value)
        with torch.no_grad():
            want = module(x, BIAS)
        got = m(x, BIAS)
        for k in want:
            np.testing.assert_array_equal(np.isnan(got[k].numpy()), np.isnan(want[k].numpy()))


class Huge(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(1 << 16, 1 << 16, 1 << 10).contiguous()


@pytest.mark.parametrize("x", [torch.zeros(1), np.zeros(1, np.float32)], ids=["torch", "numpy"])
def test_a_result_larger_than_memory(x: Any) -> None:
    model = effc.compile(Huge(), (torch.zeros(1),), selftest=False)
    refused(lambda: model(x), "no memory for the result", "[65536, 65536, 1024]", "17592186044416 bytes", "try:")
