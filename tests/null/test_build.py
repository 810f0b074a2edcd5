"""When library units are compiled: some before they are asked for, each once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from effc.backends.cpu import build, prebuilt
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
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "lib")
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


def test_units_that_effc_came_with_are_taken_while_they_fit(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names, _, _ = compiled
    full = parse("cpu:x86-64-v4+avx512vnni+avx512bf16+amx")
    plain = parse("cpu:x86-64-v4")
    prebuilt.make(prebuilt.FOLDER, [plain, full])
    assert names.count("copy.cpp") == 1, "it asks for no extra feature"
    assert names.count("gemm_i8.cpp") == 2 and names.count("gemm_half.cpp") == 2
    made = len(names)
    prebuilt.make(prebuilt.FOLDER, [plain, full])
    assert len(names) == made, "what is there is kept"
    for unit in ("copy.cpp", "gemm_i8.cpp", "gemm_half.cpp"):
        assert build.unit_object(unit, full) is None and build.unit_path(unit, full).parent == prebuilt.FOLDER
    assert build.unit_path("copy.cpp", plain) == build.unit_path("copy.cpp", full)
    assert build.unit_path("gemm_i8.cpp", plain) != build.unit_path("gemm_i8.cpp", full)
    assert build.unit_path("copy.cpp", parse("cpu:x86-64-v3")).parent != prebuilt.FOLDER
    with monkeypatch.context() as m:  # a text that has changed since
        m.setattr(build, "source_key", lambda path: "another text")
        assert build.unit_path("copy.cpp", full).parent != prebuilt.FOLDER
    monkeypatch.setenv("CXX", "g++")
    assert build.unit_path("copy.cpp", full).parent != prebuilt.FOLDER
    monkeypatch.delenv("CXX")
    copied = prebuilt.FOLDER.parent / "package"
    prebuilt.make(copied, [plain])
    assert len(names) == made and len(list(copied.iterdir())) == len(list(build.KERNELS.glob("*.cpp")))
    prebuilt.make(prebuilt.FOLDER, [plain])
    assert {p.name for p in prebuilt.FOLDER.iterdir()} == {p.name for p in copied.iterdir()}, "others are removed"


def test_what_a_wheel_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {t.level for t in prebuilt.targets()} == {"x86-64-v3", "x86-64-v4"}
    monkeypatch.setenv("EFFC_PREBUILT", "cpu:x86-64-v4+avx512vnni")
    assert prebuilt.targets() == [parse("cpu:x86-64-v4+avx512vnni")]
