"""When library units are compiled: some before they are asked for, each once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from effc.backends.cpu import build
from effc.backends.cpu.target import parse
from effc.runtime.errors import EffcError


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The names of units in the order of their compilations; one named in ``held`` waits for its event, one in
    ``broken`` fails."""
    names: list[str] = []
    held: dict[str, threading.Event] = {}
    broken: set[str] = set()

    def compile_one(src: Path, out: Path, *_: Any) -> None:
        names.append(src.name)
        if src.name in held:
            assert held[src.name].wait(30)
        if src.name in broken:
            broken.remove(src.name)
            raise EffcError("it does not compile")
        out.write_bytes(b"")

    monkeypatch.setenv("EFFC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "_compile", compile_one)
    with ThreadPoolExecutor(1) as early, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(build, "_early_pool", lambda: early)
        monkeypatch.setattr(build, "_pool", lambda: pool)
        yield names, held, broken
        for e in held.values():
            e.set()


def test_a_foreseen_unit_that_is_asked_for_does_not_queue(compiled: Any) -> None:
    names, held, _ = compiled
    t = parse("cpu:x86-64-v3")
    held["copy.cpp"] = threading.Event()
    build.warm(t)
    build.foresee(["add", "take", "index", "attention"], t)
    queued = build.unit_object("index.cpp", t)
    assert queued is not None
    queued.result(30)  # while copy.cpp holds the early pool
    assert names == ["copy.cpp", "index.cpp"] and build.unit_path("index.cpp", t).exists()
    running = build.unit_object("copy.cpp", t)
    assert running is not None and running is build.unit_object("copy.cpp", t) and not running.done()
    held["copy.cpp"].set()
    running.result(30)
    for unit in ("gemm_f32.cpp", "attention_f32.cpp", "index.cpp", "copy.cpp"):
        if (f := build.unit_object(unit, t)) is not None:
            f.result(30)
    assert sorted(names) == ["attention_f32.cpp", "copy.cpp", "gemm_f32.cpp", "index.cpp"]


def test_a_foreseen_unit_that_fails_is_told_when_it_is_asked_for(compiled: Any) -> None:
    _, _, broken = compiled
    t = parse("cpu:x86-64-v3")
    broken.add("index.cpp")
    build.foresee(["take"], t)
    build._early_pool().submit(lambda: None).result(30)  # it has failed by then
    broken.add("index.cpp")
    f = build.unit_object("index.cpp", t)
    assert f is not None
    with pytest.raises(EffcError, match="does not compile"):
        f.result(30)


def test_shares_of_generated_kernels_have_about_one_length() -> None:
    kernels = {f"k{i:02}": "x" * (100 * i + 1) for i in range(40)}
    shares = build._shares(sorted(kernels), kernels)
    lengths = [sum(len(kernels[n]) for n in s) for s in shares]
    assert sorted(n for s in shares for n in s) == sorted(kernels)
    assert max(lengths) - min(lengths) <= max(map(len, kernels.values()))
    assert all(len(s) <= build.PER_UNIT for s in shares) and build._shares([], kernels) == []
