"""Programs of real models as they are lowered, without compiling a kernel: for the planners, and for what sizes do.

    python -m bench.lowered MODEL... --out FOLDER      # the problem as given: calls as they come, nothing in place
    python -m bench.lowered MODEL... --dynamic [--sizes 6]

``--out`` writes MODEL.json, which ``bench.memory``, ``bench.memory_peers`` and ``bench.memory_program`` take. MODEL is
a name of tests/models/zoo.py or bench/dense.py, at its bench size.

``--dynamic`` compares, at the lower bounds, the upper bounds and random sizes between (uniform in the logarithm), the
arena of the program that was compiled for any size with that of a program compiled for these alone. Where the two
programs differ, so may what they need: a row has the live bound of each program, the number of its calls, the largest
workspace, and how many of the calls are of other kernels.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import effc
from bench.memory import MIB, table
from bench.worker import entry
from effc.passes.memory.program import arena, blocks, from_program, workspace

THREADS = 2


class _Lowered(BaseException):
    def __init__(self, parts: Any) -> None:
        super().__init__()
        self.parts = parts


def lowered(
    module: Any, args: tuple[Any, ...], dynamic: Any = None, threads: int = THREADS, **more: Any
) -> dict[str, Any]:
    """The program that ``effc.compile`` would put into the artifact."""
    from effc.backends import cpu
    from effc.backends.cpu import build, sources

    real = cpu.compile_graphs

    def stop(*a: Any, **k: Any) -> Any:
        raise _Lowered(real(*a, **k))

    with (
        mock.patch.object(cpu, "compile_graphs", stop),
        mock.patch.object(build, "shared_object", lambda *a: b""),
        mock.patch.object(build, "warm", lambda *a: None),
        mock.patch.object(build, "foresee", lambda *a: None),
        mock.patch.object(sources, "bundle", lambda *a: {}),
        mock.patch.dict(os.environ, {"EFFC_MODEL_CACHE": "0"}),
        torch.no_grad(),
    ):
        try:
            effc.compile(module, args, dynamic_shapes=dynamic, num_threads=threads, **more)
        except _Lowered as done:
            program: dict[str, Any] = done.parts.programs["main"]
            return program
    raise AssertionError("nothing was lowered")


def given(name: str) -> Any:
    """The problem of a model at its bench size, as it is before any planning."""
    e = entry(name)
    module = e.load().module
    program = lowered(getattr(module, "onnx_file", module), tuple(e.bench()), disable_passes=["memory"])
    return from_program(program, name, sizes={}, threads=THREADS)


def _with_sizes(args: tuple[Any, ...], symbols: list[Mapping[str, Any]], env: Mapping[str, int]) -> tuple[Any, ...]:
    """Arguments of these sizes. A symbol is read from one input's dim; others have it in the same dim."""
    dims = {s["from"]["dim"]: env[s["name"]] * s["from"].get("mul", 1) + s["from"].get("add", 0) for s in symbols}
    out: list[Any] = []
    for a in args:
        if not isinstance(a, torch.Tensor):
            out.append(a)
            continue
        shape = [dims.get(k, n) for k, n in enumerate(a.shape)]
        out.append(torch.zeros(shape, dtype=a.dtype))
    return tuple(out)


def _envs(symbols: list[Mapping[str, Any]], count: int) -> Iterator[tuple[str, dict[str, int]]]:
    low = {s["name"]: max(s["lo"], 1) for s in symbols}
    high = {s["name"]: s["hi"] or 512 for s in symbols}
    rng = np.random.default_rng(0)
    yield "lower", low
    for _ in range(count):
        yield "random", {n: int(np.exp(rng.uniform(np.log(low[n]), np.log(high[n] + 1)))) for n in low}
    yield "upper", high


def dynamic(name: str, count: int) -> Iterator[dict[str, Any]]:
    from tests.models import zoo

    module, args, shapes, _ = zoo.load(name)
    anysize = lowered(copy.deepcopy(module), args, shapes)
    symbols = [s for s in anysize["symbols"] if s.get("from")]
    for kind, env in _envs(symbols, count):
        own = lowered(copy.deepcopy(module), _with_sizes(args, symbols, env))
        planned = arena(anysize, env, THREADS)
        bound = _live(anysize, env)
        kernels = [Counter(i.get("kernel", i["op"]) for i in p["code"]) for p in (anysize, own)]
        yield {
            "model": name,
            "sizes": f"{kind}: {', '.join(map(str, env.values()))}",
            "any size": planned / MIB,
            "its bound": bound / MIB,
            "own": own["arena"]["static_bytes"] / MIB,
            "ratio": planned / max(own["arena"]["static_bytes"], 1),
            "calls": len(anysize["code"]),
            "own calls": len(own["code"]),
            "workspace": max(workspace(anysize["values"], i, env, THREADS) for i in anysize["code"]) / MIB,
            "own workspace": max(workspace(own["values"], i, {}, THREADS) for i in own["code"]) / MIB,
            "other kernels": sum(((kernels[0] - kernels[1]) + (kernels[1] - kernels[0])).values()),
        }


def _live(program: Mapping[str, Any], env: Mapping[str, int]) -> int:
    from effc.passes.memory.plan import lower_bound

    return lower_bound(blocks(program, env, THREADS))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.lowered", description="programs of real models, without kernels")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dynamic", action="store_true")
    parser.add_argument("--sizes", type=int, default=6)
    a = parser.parse_args()
    if a.out:
        from effc.passes.memory.problem import to_dict

        a.out.mkdir(parents=True, exist_ok=True)
        for name in a.models:
            p = given(name)
            (a.out / f"{name}.json").write_text(json.dumps(to_dict(p)))
            print(f"{name}: {len(p.nodes)} nodes, {len(p.tensors)} tensors", flush=True)
    if a.dynamic:
        print(table([row for name in a.models for row in dynamic(name, a.sizes)]))


if __name__ == "__main__":
    main()
