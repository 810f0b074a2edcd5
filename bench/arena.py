"""Memory of whole models: what planning takes and gives, how fast a new size is laid out, and onnxruntime beside it.

    python -m bench.arena [MODEL ...] [--sizes 64] [--no-onnxruntime]

One row a model, compiled for its bench size and for any: seconds of compilation and of planning, the arena as given (no
order, no rewrite), as planned, and the proven bound; microseconds to lay out a size that was not seen before, median
and largest over random sizes, and that arena over the planner's own for the size, at worst. Then, in processes of their
own, by how much anonymous memory grows with the runs of effc and of onnxruntime (its arena told to take only what is
asked for), weights and results included on neither side as far as they exist before the first run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

MIB = float(1 << 20)
MODELS = ("minilm", "mobilenet_v2", "resemblyzer", "mtcnn_pnet", "minilm_8x128", "resnet50", "vit_s16", "unet")


def model(name: str) -> tuple[Any, tuple[Any, ...], Any]:
    """(module, arguments at the bench size, dynamic shapes or None)."""
    from tests.models import zoo

    from . import dense

    if name in zoo.ZOO:
        module, _, dynamic, _ = zoo.load(name)
        return module, tuple(zoo.ZOO[name].bench()), dynamic
    entry = dense.DENSE[name]
    return entry.load().module, tuple(entry.bench()), None


def compiled(name: str, folder: Path, sizes: int) -> dict[str, Any]:
    """Planning figures of one model; leaves NAME.effc for the bench size in ``folder``."""
    import torch

    import effc
    from effc.passes.memory.program import from_program
    from effc.passes.memory.schedule import lay_out
    from effc.runtime import memory
    from effc.runtime.artifact import ArtifactReader

    row: dict[str, Any] = {"model": name}
    module, args, dynamic = model(name)
    with torch.no_grad():
        for kind, shapes in (("static", None), ("dynamic", dynamic)):
            if kind == "dynamic" and shapes is None:
                continue
            began = time.perf_counter()
            m = effc.compile(module, args, dynamic_shapes=shapes)
            took = time.perf_counter() - began
            said = m.report["entries"]["main"]["memory"]
            row[f"{kind} compile s"], row[f"{kind} planning s"] = took, said["seconds"]
            row[f"{kind} share %"] = 100 * said["seconds"] / took
            path = folder / f"{name}{'' if kind == 'static' else '.any'}.effc"
            m.save(path)
            if kind == "static":
                p = said["plans"][0]
                row |= {"given MiB": p["given"] / MIB, "planned MiB": p["arena"] / MIB, "bound MiB": p["bound"] / MIB}
                row |= {"concat in place": said["concat"]["in_place"], "proven": p["proven"]}
                continue
            with ArtifactReader(path) as r:
                manifest = r.manifest
            program = manifest["entries"]["main"]["program"]
            loaded = effc.load(path)
            rng, times, worst = np.random.default_rng(0), [], 1.0
            for _ in range(sizes):
                env = {
                    s["name"]: int(rng.integers(max(s["lo"], 1), min(s["hi"] or 512, 512) + 1))
                    for s in program["symbols"]
                    if s["from"]
                }
                block, _keep = memory.arrays(manifest["entries"]["main"], env)
                try:
                    first = _timed(loaded, block)
                except effc.EffcError:
                    continue
                times.append(1e6 * (first - _timed(loaded, block)))
                p = from_program(program, sizes=env, threads=program["arena"]["threads"])
                best = lay_out(p, p.given).arena
                worst = max(worst, memory.read(loaded, manifest, "main", env).arena / max(best, 1))
            row |= {"new size us": statistics.median(times), "largest us": max(times), "worst / planned": worst}
    return row


def _timed(loaded: Any, block: bytearray) -> float:
    """Seconds to bind sizes: the first time with laying out the arena, which at most grows the address space."""
    import ctypes

    from effc.runtime import _rt

    view = (ctypes.c_char * len(block)).from_buffer(block)
    nbytes, bound = ctypes.c_int64(), ctypes.c_int64()
    at = ctypes.addressof(view)
    call = _rt.lib().effc_arena
    began = time.perf_counter()
    status = call(loaded._ptr, 0, at, len(loaded.inputs), ctypes.byref(nbytes), ctypes.byref(bound))
    took = time.perf_counter() - began
    _rt.check(status)
    return took


def anonymous() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    return 0


def grown(engine: str, inputs: str, path: str) -> None:
    """In a process of its own: prints the bytes by which five runs make anonymous memory grow."""
    with np.load(inputs) as data:  # nothing here has loaded torch, whose freed memory would be used again
        args = [data[k] for k in data.files]
    if engine == "effc":
        import effc

        loaded = effc.load(path, num_threads=2)
        run = lambda: loaded(*args)  # noqa: E731
    else:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        ort.create_and_register_allocator(
            ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT),
            ort.OrtArenaCfg({"arena_extend_strategy": 1}),
        )
        options.add_session_config_entry("session.use_env_allocators", "1")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {i.name: a for i, a in zip(session.get_inputs(), args, strict=True)}
        run = lambda: session.run(None, feeds)  # noqa: E731
    before = anonymous()
    for _ in range(5):
        out = run()
    after = anonymous()
    del out
    print(json.dumps(after - before))


def beside(name: str, folder: Path) -> dict[str, Any]:
    import torch

    from . import engines

    module, args, _ = model(name)
    with torch.no_grad():
        onnx = engines._onnx(module, args, folder)
    inputs = folder / f"{name}.npz"
    np.savez(inputs, *[a.numpy() for a in args])
    out = {}
    for engine, path in (("effc", folder / f"{name}.effc"), ("onnxruntime", onnx)):
        command = [sys.executable, "-m", "bench.arena", "--grown", engine, str(inputs), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
        out[f"{engine} grown MiB"] = json.loads(done.stdout) / MIB if done.returncode == 0 else done.stderr[-200:]
    return out


def main() -> None:
    from .memory import table

    parser = argparse.ArgumentParser(prog="bench.arena", description="memory of whole models")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--sizes", type=int, default=64, help="random sizes to lay out")
    parser.add_argument("--no-onnxruntime", action="store_true")
    parser.add_argument("--grown", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.grown:
        return grown(*a.grown)
    os.environ["EFFC_MODEL_CACHE"] = "0"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in a.models or MODELS:
            row = compiled(name, Path(folder), a.sizes)
            if not a.no_onnxruntime:
                row |= beside(name, Path(folder))
            rows.append(row)
            print(json.dumps(row), flush=True)
    keys = list(dict.fromkeys(k for r in rows for k in r))
    print(table([{k: r.get(k) for k in keys} for r in rows]))
    return None


if __name__ == "__main__":
    main()
