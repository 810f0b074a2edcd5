"""Manifests changed at random, checksums made right again: refused or run, never a crash.

The programs have no kernels (a kernel trusts its operands, as any compiled code does): every kind of value, control
flow, copies out of the arena and back, states, write-backs, checks, data-dependent symbols.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from runtime_artifacts import dim_symbol, entry, manifest, program, sanitizer_env, tensor

from effc.runtime._rt import lib as load_library
from effc.runtime.artifact import ArtifactWriter
from effc.runtime.errors import EffcError
from effc.runtime.loader import load

ROOT = Path(__file__).parents[2]


def seed_program() -> dict[str, Any]:
    """scan, while and if over passed-through values, with views, states, commits and checks."""
    swap = program([tensor([3], "input", i=0), tensor([3], "input", i=1)], [], [0, 1], [1, 0])
    first = program([tensor(["s0", 3], "input", i=0), tensor([], "input", d="bool", i=1)], [], [0, 1], [0])
    stop = program([tensor([], "input", d="bool", i=0), tensor(["s0", 3], "input", i=1)], [], [0, 1], [0])
    clear = program(
        [
            tensor([], "input", d="bool", i=0),
            tensor(["s0", 3], "input", i=1),
            tensor([], "const", d="bool", seg=0, offset=0),
        ],
        [],
        [0, 1],
        [2, 1],
    )
    values = [
        tensor(["s0", 3], "input", i=0),
        tensor([], "input", d="bool", i=1),
        tensor([3], "state", name="a"),
        tensor([2, 3], "const", seg=0, offset=64),
        tensor(["s0", 3], "view", base=0, offset=["-", ["*", "s0", 3], 1], strides=[-3, -1]),
        tensor(["s0", 3]),
        tensor([3]),
        tensor(["s0", 3], "output", i=0),
        tensor([], d="bool", bytes=64),
        tensor(["s0", 3], alias=5),
        tensor([3, ["//", "s0", 2]], "view", base=5, offset=0, strides=[1, 3]),
        tensor([["max", "s0", 1], 3]),
        tensor(["s0", 3]),
    ]
    code = [
        {"op": "if", "cond": 1, "in": [4, 1], "out": [5], "then": first, "else": first},
        {"op": "spill", "in": [5], "out": [], "slot": 0},
        {
            "op": "scan",
            "length": "s0",
            "reverse": False,
            "carry": [2],
            "xs": [5],
            "consts": [],
            "out": [6, 7],
            "body": swap,
        },
        {"op": "refill", "in": [], "out": [12], "slot": 0},
        {"op": "if", "cond": 1, "in": [12, 1], "out": [5], "then": first, "else": first},
        {"op": "while", "in": [1, 7], "consts": [], "out": [8, 9], "cond": stop, "body": clear},
    ]
    symbols = [dim_symbol("s0", 0, 0, 0, 50), {"name": "u0", "lo": 0, "hi": None, "from": None}]
    return program(
        values,
        code,
        [0, 1],
        [7, 10, 3, 8],
        symbols=symbols,
        commits=[{"state": "a", "value": 6}, {"input": 0, "value": 9}],
        checks=[{"lhs": ["%", "s0", 7], "op": "<=", "rhs": 6, "message": "m"}],
    )


def mutate(node: Any, rng: np.random.Generator, depth: int = 0) -> Any:
    """A copy of a JSON tree with one node changed."""
    paths: list[tuple[Any, ...]] = []

    def walk(x: Any, path: tuple[Any, ...]) -> None:
        paths.append(path)
        for key, child in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
            walk(child, (*path, key))

    node = json.loads(json.dumps(node))
    walk(node, ())
    path = paths[1 + int(rng.integers(len(paths) - 1))]
    parent = node
    for key in path[:-1]:
        parent = parent[key]
    old = parent[path[-1]]
    numbers = [0, 1, -1, 2, 3, 7, 12, 1 << 20, 1 << 31, 1 << 62, -(1 << 63), (1 << 63) - 1]
    words = [
        "s0",
        "u0",
        "a",
        "==",
        "!=",
        "input",
        "temp",
        "view",
        "const",
        "state",
        "output",
        "f32",
        "f64",
        "bool",
        "c128",
        "",
    ]
    kind = int(rng.integers(6))
    if kind == 0:
        value: Any = numbers[int(rng.integers(len(numbers)))]
    elif kind == 1:
        value = words[int(rng.integers(len(words)))]
    elif kind == 2 and isinstance(old, int) and not isinstance(old, bool):
        value = old + int(rng.integers(-3, 4))
    elif kind == 3 and isinstance(old, list):
        value = old[:-1] if rng.integers(2) else [*old, *old[:1]]
    elif kind == 4:
        other = paths[int(rng.integers(len(paths)))]  # a piece of the same tree, where it does not belong
        value = node
        for key in other:
            value = value[key]
        value = json.loads(json.dumps(value))
        if len(json.dumps(value)) > 3000:
            value = None
    elif isinstance(parent, dict):
        del parent[path[-1]]
        return node
    else:
        value = [None, True, {}, [], ["+", "s0", "u0"], ["//", 1, 0]][int(rng.integers(6))]
    parent[path[-1]] = value
    return node


def attempt(path: str, seed: int, count: int) -> dict[str, int]:
    """Runs ``count`` mutants, each in a fork: one that crashes shows, one whose loop never ends is stopped."""
    rng = np.random.default_rng(seed)
    base = seed_program()
    counts = {"refused": 0, "ran": 0, "endless": 0}
    load_library()
    for k in range(count + 1):
        prog = base
        for _ in range(0 if k == 0 else int(rng.integers(1, 4))):
            prog = mutate(prog, rng)
        try:
            made = entry(prog)
        except (KeyError, TypeError, IndexError, AttributeError):
            continue  # this test's own helper cannot describe it
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_VIRTUAL, 3)
            os._exit(one(path, made))
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGVTALRM:
            counts["endless"] += 1
        else:
            assert os.WIFEXITED(status) and os.WEXITSTATUS(status) in (RAN, REFUSED), (k, status, prog)
            counts["ran" if os.WEXITSTATUS(status) == RAN else "refused"] += 1
        assert k > 0 or counts["ran"] == 1, "the unchanged program must run"
    return counts


RAN, REFUSED = 0, 3


def one(path: str, made: dict[str, Any]) -> int:
    w = ArtifactWriter()
    w.add_weight(np.zeros(64, np.uint8))
    w.add_weight(np.arange(6, dtype=np.float32))
    try:
        w.save(path, manifest({"main": made}, states={"a": {"d": "f32", "shape": [3]}}))
        m = load(path, num_threads=1)
        for n in (4, 0, 1):
            x = np.ones((n, 3), np.float32)
            m(x, True)
            m(x[:, ::-1], False)
        return RAN
    except EffcError as e:
        return REFUSED if str(e) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def run(tmp_path: Path, seed: int, count: int, env: dict[str, str]) -> dict[str, int]:
    code = f"""
import sys, json
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_runtime_fuzz
print(json.dumps(test_runtime_fuzz.attempt({str(tmp_path / "fuzz.effc")!r}, {seed}, {count})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_mutated_programs(tmp_path: Path) -> None:
    counts = run(tmp_path, 0, 600, {})
    assert counts["refused"] > 300 and counts["ran"] > 15, counts


def test_mutated_programs_under_sanitizers(tmp_path: Path) -> None:
    counts = run(tmp_path, 12, 600, sanitizer_env())
    assert counts["refused"] > 300 and counts["ran"] > 15, counts
