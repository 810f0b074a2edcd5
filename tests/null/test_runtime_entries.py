"""Entry points of one model share the memory of their runs: one arena, as large as the largest of them needs."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_artifacts import add, call, dim_symbol, entry, program, save, scale, tensor

from effc.runtime import _rt
from effc.runtime.artifact import ArtifactWriter
from effc.runtime.errors import EffcError
from effc.runtime.loader import load

RNG = np.random.default_rng(0)


def chain(*factors: float, width: int = 64) -> dict[str, Any]:
    """(n, width) -> x times each factor, added up; an arena of as many temporaries."""
    values = [tensor(["s0", width], "input", i=0)]
    code = []
    for k, f in enumerate(factors):
        values.append(tensor(["s0", width]))
        code.append(scale(0, k + 1, f))
    total = 1
    for k in range(2, len(factors) + 1):
        values.append(tensor(["s0", width]))
        code.append(add(total, k, len(values) - 1))
        total = len(values) - 1
    values.append(tensor(["s0", width], "output", i=0))
    code.append(scale(total, len(values) - 1, 1.0))
    return program(values, code, [0], [len(values) - 1], symbols=[dim_symbol("s0", 0, 0)])


def found() -> dict[str, Any]:
    """x -> the positions of what is not zero, doubled: sizes that only data decide."""
    values = [
        tensor(["s0"], "input", i=0),
        tensor(["u0"], d="i64", dyn=True),
        tensor(["u0"]),
        tensor(["u0"], "output", i=0),
    ]
    code = [call("t_nonzero", [0], [1], attrs=[1], bind=["u0"]), call("t_take", [0, 1], [2]), scale(2, 3, 2.0)]
    late = {"name": "u0", "lo": 0, "hi": None, "from": None}
    return program(values, code, [0], [3], symbols=[dim_symbol("s0", 0, 0), late])


ENTRIES = {"wide": chain(1.0, 2.0, 4.0), "narrow": chain(3.0, 5.0)}


def artifact(path: Path, *names: str) -> Path:
    return save(path, entries={n: entry(ENTRIES[n]) for n in names or ENTRIES})


def want(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    factors = (1, 2, 4) if name == "wide" else (3, 5)
    total = x * np.float32(factors[0])
    for f in factors[1:]:
        total = total + x * np.float32(f)
    return total


def test_entry_points_take_turns_in_one_arena(tmp_path: Path) -> None:
    """Two entry points alternate at sizes that grow: what is held is the most that one run needed, never the sum; and
    results are those of artifacts of their own, to the bit."""
    m = load(artifact(tmp_path / "m.effc"))
    own = {n: load(artifact(tmp_path / f"{n}.effc", n)) for n in ENTRIES}
    assert m.arenas == (0, 0)
    most, held = 0, []
    for n in (1, 7, 300, 7, 300, 1):
        x = RNG.standard_normal((n, 64)).astype(np.float32)
        for name in ENTRIES:
            need = m.entry(name).arena(x)
            assert need == own[name].arena(x)
            assert (m.arenas[0], m.arenas[1]) == (most, 1 if most else 0), "asking takes no memory"
            y = m.entry(name)(x)
            most = max(most, need[0])
            assert m.arenas == (most, 1)
            assert y.tobytes() == own[name](x).tobytes()
            np.testing.assert_array_equal(y, want(name, x))
            held.append((y, want(name, x)))
    for y, w in held:  # results are the caller's: later runs do not touch them
        np.testing.assert_array_equal(y, w)
    assert own["narrow"].arenas[0] < own["wide"].arenas[0] == most


def test_alternating_runs_allocate_nothing(tmp_path: Path) -> None:
    entries = {n: entry(p) for n, p in {**ENTRIES, "found": found()}.items()}
    m = load(save(tmp_path / "m.effc", entries=entries))
    x, v = RNG.standard_normal((40, 64)).astype(np.float32), np.ones(500, np.float32)
    count = _rt.lib().effc_alloc_count
    steady = []
    for _ in range(6):
        before = count()
        for name in ENTRIES:
            np.testing.assert_array_equal(m.entry(name)(x), want(name, x))
        np.testing.assert_array_equal(m.entry("found")(v), v * 2)
        steady.append(count() - before)
    assert steady[2:] == [1] * 4, "the result whose size data decide, and nothing else"
    assert m.arenas[1] == 1


def test_poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of one entry point's run reaches another's: each starts with NaN everywhere."""
    monkeypatch.setenv("EFFC_POISON", "1")
    m = load(artifact(tmp_path / "m.effc"))
    for n in (300, 1, 7):
        x = RNG.standard_normal((n, 64)).astype(np.float32)
        for name in ("narrow", "wide", "narrow"):
            np.testing.assert_array_equal(m.entry(name)(x), want(name, x))


def test_threads(tmp_path: Path) -> None:
    """Runs that overlap have arenas of their own: at most one a thread, each no larger than the largest run needs."""
    m = load(artifact(tmp_path / "m.effc"), num_threads=1)
    inputs = [RNG.standard_normal((n, 64)).astype(np.float32) for n in (1, 7, 300)]
    most = max(m.entry(n).arena(x)[0] for n in ENTRIES for x in inputs)
    wrong: list[Any] = []

    def work(k: int) -> None:
        for (name, x), _ in zip(itertools.cycle(itertools.product(ENTRIES, inputs[k % 3 :])), range(120)):
            if not np.array_equal(m.entry(name)(x), want(name, x)):
                wrong.append((name, len(x)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    held, count = m.arenas
    assert 1 <= count <= 8 and held <= count * most


def test_runs_that_wait_for_a_session_hold_no_arena(tmp_path: Path) -> None:
    """Entry points with one state take turns in a session, and eight threads need one arena."""

    def step(factor: float) -> dict[str, Any]:
        values = [
            tensor([4096], "input", i=0),
            tensor([4096], "state", name="acc"),
            tensor([4096]),
            tensor([4096]),
            tensor([4096], "output", i=0),
        ]
        code = [scale(0, 2, factor), add(1, 2, 3), scale(3, 4, 1.0)]
        return program(values, code, [0], [4], commits=[{"value": 3, "state": "acc"}])

    w = ArtifactWriter()
    entries = {"one": entry(step(1.0)), "ten": entry(step(10.0))}
    m = load(save(tmp_path / "m.effc", entries=entries, writer=w, states={"acc": {"d": "f32", "shape": [4096]}}))
    x = np.ones(4096, np.float32)

    def work() -> None:
        for _ in range(20):
            m.entry("one")(x)
            m.entry("ten")(x)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    np.testing.assert_array_equal(m.state("acc"), np.full(4096, 8 * 20 * 11, np.float32))
    assert m.arenas == (m.entry("one").arena(x)[0], 1)


def test_an_arena_that_cannot_grow(tmp_path: Path) -> None:
    """A size beyond memory is an error, and the next run of any entry point has an arena again."""
    values = [tensor(["s0"], "input", i=0), tensor(["s0"], "output", i=0)]
    hungry = program(
        values, [{**scale(0, 1, 2.0), "scratch": ["*", "s0", 1 << 40]}], [0], [1], symbols=[dim_symbol("s0", 0, 0)]
    )
    entries = {n: entry(p) for n, p in {**ENTRIES, "hungry": hungry}.items()}
    m = load(save(tmp_path / "m.effc", entries=entries))
    x = np.ones((2, 64), np.float32)
    for _ in range(2):
        for name in ("narrow", "wide"):
            np.testing.assert_array_equal(m.entry(name)(x), want(name, x))
        with pytest.raises(EffcError, match="cannot allocate"):
            m.entry("hungry")(np.ones(100, np.float32))
    assert m.arenas == (0, 1)
