"""The ``effc`` command. Needs no more than loading does, except where a command compiles.

Exit codes: 0 done, 1 an EffcError (printed without a traceback unless EFFC_DEBUG is set) or a conformance suite that is
not right, 2 wrong usage or a command that this version does not have, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from .conformance import command as conformance
from .cost import command as cost
from .runtime.errors import EffcError

NOT_YET = {
    "report": "one HTML page of graph, memory and kernels",
}


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Says on stderr that ``what`` is running once it has taken longer than a second, with a clock on a terminal."""
    done = threading.Event()
    started = time.perf_counter()
    tty = sys.stderr.isatty()

    def tick() -> None:
        if done.wait(1.0):
            return
        if not tty:
            print(f"{what} ...", file=sys.stderr, flush=True)
            return
        while not done.wait(0.2):
            print(f"\r{what} ... {time.perf_counter() - started:.0f} s ", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        elapsed = time.perf_counter() - started
        if elapsed > 1:
            print(f"{chr(13) if tty else ''}{what}: {elapsed:.1f} s   ", file=sys.stderr, flush=True)


# Sources --------------------------------------------------------------------------------------------------------------


def resolve(source: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A model and its example inputs from a file or from ``package.module:factory``; EffcError if there is none."""
    if Path(source).suffix in (".pt2", ".onnx", ".mlir"):
        if not Path(source).exists():
            raise EffcError(f"there is no file {source}")
        return source, (), {}
    module, colon, name = source.partition(":")
    if not colon:
        raise EffcError(
            f"{source!r} is neither a model file nor package.module:factory",
            hint="give a .pt2, .onnx or .mlir file, or a callable that returns (model, args)",
        )
    sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
    except ImportError as e:
        raise EffcError(f"cannot import {module}: {e}") from e
    except AttributeError:
        raise EffcError(f"{module} has no {name}") from None
    finally:
        sys.path.remove(os.getcwd())
    made = target()
    if not isinstance(made, tuple) or not 2 <= len(made) <= 3:
        raise EffcError(
            f"{source} must return (model, args) or (model, args, kwargs), it returned a {type(made).__name__}"
        )
    args = made[1] if isinstance(made[1], (tuple, list)) else (made[1],)
    return made[0], tuple(args), dict(made[2]) if len(made) == 3 else {}


def dynamic_shapes(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], specs: Sequence[str]) -> Any:
    """``NAME.DIM=SYMBOL[:MIN[:MAX]]`` as what torch.export takes; NAME is an argument's name or position."""
    if not specs:
        return None
    import inspect

    from torch.export import Dim

    names = list(inspect.signature(model.forward).parameters)[: len(args)] + list(kwargs)
    out: dict[str, Any] = dict.fromkeys(names)
    symbols: dict[str, Any] = {}
    for spec in specs:
        left, _, right = spec.partition("=")
        name, _, dim = left.rpartition(".")
        symbol, *bounds = right.split(":")
        if name.isdigit() and int(name) < len(args):
            name = names[int(name)]
        if not dim.isdigit() or not symbol.isidentifier() or not all(b.isdigit() for b in bounds) or len(bounds) > 2:
            raise EffcError(f"cannot read --dynamic {spec!r}", hint="write it as input_ids.1=length:1:512")
        if name not in out:
            raise EffcError(f"--dynamic {spec}: the model has no argument {name!r}", hint=f"it has {', '.join(names)}")
        limits = dict(zip(("min", "max"), map(int, bounds), strict=False))
        if symbol not in symbols:
            symbols[symbol] = Dim(symbol, **limits)
        out[name] = {**(out[name] or {}), int(dim): symbols[symbol]}
    return out


# Inputs ---------------------------------------------------------------------------------------------------------------


def _dim(d: Any, env: Mapping[str, int]) -> int:
    """A DIM of the manifest (docs/architecture.md) as an int."""
    if isinstance(d, int):
        return d
    if isinstance(d, str):
        return env[d]
    op, a, b = d[0], _dim(d[1], env), _dim(d[2], env)
    return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "//": lambda: a // b, "%": lambda: a % b,
            "max": lambda: max(a, b), "min": lambda: min(a, b)}[op]()  # fmt: skip


def _shape_text(shape: Sequence[Any]) -> str:
    def text(d: Any) -> str:
        return str(d) if not isinstance(d, list) else f"({text(d[1])} {d[0]} {text(d[2])})"

    return "[" + ", ".join(text(d) for d in shape) + "]"


def sizes(entry: Mapping[str, Any], given: Sequence[str]) -> dict[str, int]:
    """A value for every symbol of an entry: ``SYMBOL=N`` or ``INPUT.DIM=N`` if given, else 8 within its bounds."""
    symbols = {s["name"]: s for s in entry["program"]["symbols"] if s.get("from") is not None}
    env: dict[str, int] = {}
    for item in given:
        left, _, right = item.partition("=")
        if not right.isdigit():
            raise EffcError(f"cannot read --size {item!r}", hint="write it as s0=16, or input_ids.1=16")
        if left not in symbols:
            name, _, dim = left.rpartition(".")
            shape = next((i["shape"] for i in entry["inputs"] if i["name"] == name), None)
            if shape is None or not dim.isdigit() or int(dim) >= len(shape) or shape[int(dim)] not in symbols:
                raise EffcError(
                    f"--size {item}: no such symbol or dim", hint=f"symbols: {', '.join(symbols) or 'none'}"
                )
            left = shape[int(dim)]
        env[left] = int(right)
    for name, s in symbols.items():
        env.setdefault(name, max(s["lo"], min(8, 8 if s["hi"] is None else s["hi"])))
    return env


def random_inputs(entry: Mapping[str, Any], env: Mapping[str, int], seed: int, int_max: int) -> dict[str, Any]:
    """Seeded inputs that fit the signature: normal floats, integers in [0, int_max], scalar sizes as in ``env``."""
    from .runtime.dtypes import BY_NAME
    from .runtime.loader import numpy_dtype

    rng = np.random.default_rng(seed)
    values = {
        s["from"]["input"]: env[s["name"]]
        for s in entry["program"]["symbols"]
        if s.get("from") and s["from"].get("value")
    }
    out: dict[str, Any] = {}
    for i, spec in enumerate(entry["inputs"]):
        shape = tuple(_dim(d, env) for d in spec["shape"])
        name = spec["dtype"]
        if i in values:
            out[spec["name"]] = np.asarray(values[i], numpy_dtype(name))
        elif name == "bool":
            out[spec["name"]] = rng.random(shape) < 0.5
        elif name[0] in "iu":
            top = min(int_max, 2 ** (BY_NAME[name].bits - (name[0] == "i")) - 1)
            out[spec["name"]] = rng.integers(0, top + 1, shape).astype(numpy_dtype(name))
        elif name[0] == "c":
            out[spec["name"]] = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(numpy_dtype(name))
        elif name in ("f32", "f64", "f16"):
            out[spec["name"]] = rng.standard_normal(shape).astype(numpy_dtype(name))
        else:
            import ml_dtypes

            x = rng.standard_normal(shape)
            out[spec["name"]] = (abs(x) if name == "f8e8m0" else x).astype(getattr(ml_dtypes, BY_NAME[name].ml))
    return out


def read_inputs(items: Sequence[str]) -> dict[str, Any]:
    """Arrays from ``file.npz`` or ``name=file.npy`` arguments."""
    out: dict[str, Any] = {}
    for item in items:
        name, eq, file = item.partition("=")
        path = Path(file if eq else item)
        try:
            data = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as e:
            raise EffcError(f"cannot read {path}: {e}") from e
        if isinstance(data, np.lib.npyio.NpzFile):
            out.update({k: data[k] for k in data.files})
        elif eq:
            out[name] = data
        else:
            raise EffcError(f"{path} holds one array", hint=f"say which input it is: NAME={path}")
    return out


def _manifest(path: str) -> dict[str, Any]:
    from .runtime.artifact import ArtifactReader

    with ArtifactReader(path) as reader:
        return reader.manifest


def _entry(manifest: Mapping[str, Any], name: str | None) -> tuple[str, dict[str, Any]]:
    entries = manifest["entries"]
    chosen = name or next(iter(entries))
    if chosen not in entries:
        raise EffcError(f"there is no entry point {chosen!r}", hint=f"it has {', '.join(entries)}")
    return chosen, entries[chosen]


def _prepare(a: argparse.Namespace) -> tuple[Any, str, dict[str, Any], dict[str, Any]]:
    """(loaded model, entry name, the entry's manifest, inputs by name) for run, bench and verify."""
    from .runtime.loader import load

    manifest = _manifest(a.model)
    name, entry = _entry(manifest, a.entry)
    model = load(a.model, num_threads=a.threads)
    inputs = random_inputs(entry, sizes(entry, a.size), a.seed, a.int_max)
    given = read_inputs(a.inputs)
    unknown = sorted(given.keys() - inputs.keys())
    if unknown:
        raise EffcError(
            f"unexpected input(s) {', '.join(unknown)}", hint=f"the model takes {', '.join(inputs) or 'none'}"
        )
    inputs.update(given)
    return model, name, entry, inputs


# Commands -------------------------------------------------------------------------------------------------------------


def cmd_compile(a: argparse.Namespace) -> None:
    import effc

    model, args, kwargs = resolve(a.source)
    shapes = dynamic_shapes(model, args, kwargs, a.dynamic) if not isinstance(model, str) else None
    if a.dynamic and isinstance(model, str):
        raise EffcError("--dynamic needs a module; a model file already carries its dynamic dims")
    out = Path(a.source).stem if isinstance(model, str) else a.source.rpartition(":")[2]
    out = a.out or out + {"onnx": ".onnx", "mlir": ".mlir"}.get(a.target, ".effc")
    with progress(f"compiling {a.source} for {a.target}"):
        compiled = effc.compile(
            model,
            args,
            kwargs,
            target=a.target,
            dynamic_shapes=shapes,
            num_threads=a.threads,
            memory_budget=a.memory_budget,
            arena_budget=a.arena_budget,
            onnx_domain=a.onnx_domain,
            disable_passes=a.disable_pass,
            verify=a.verify,
            selftest=not a.no_selftest,
        )
    if not hasattr(compiled, "save"):
        raise EffcError(f"target {a.target} makes no artifact")
    compiled.save(out)
    print(f"{out}: {Path(out).stat().st_size:,} bytes, {compiled.report.get('target', a.target)}")


def cmd_run(a: argparse.Namespace) -> None:
    model, name, _, inputs = _prepare(a)
    outputs = model.entry(name).run(inputs)
    for key, value in outputs.items():
        value = np.asarray(value)
        head = np.array2string(value.reshape(-1)[:6], precision=6, separator=", ")
        print(f"{key}: {value.dtype}{list(value.shape)} {head}{' ...' if value.size > 6 else ''}")
    if a.out:
        np.savez(a.out, **{k: np.asarray(v) for k, v in outputs.items()})


def _block(run: Any, seconds: float) -> list[float]:
    times = []
    end = time.perf_counter() + seconds
    while True:
        t0 = time.perf_counter()
        run()
        t1 = time.perf_counter()
        times.append(t1 - t0)
        if t1 >= end:
            return times


def _figures(times: Sequence[float]) -> dict[str, Any]:
    p10, median, p90 = (float(x) * 1e3 for x in np.percentile(times, [10, 50, 90]))
    return {"median_ms": median, "p10_ms": p10, "p90_ms": p90, "runs": len(times)}


def cmd_bench(a: argparse.Namespace) -> None:
    model, name, entry, inputs = _prepare(a)
    bound = model.entry(name)
    runs = {"effc": lambda: bound.run(inputs)}
    if a.against:
        import torch

        module, _, _ = resolve(a.against)
        torch.set_num_threads(model.num_threads)
        tensors = _as_call(entry, inputs)
        runs["eager"] = lambda: _no_grad(module, tensors)
    blocks: dict[str, list[float]] = {k: [] for k in runs}
    with progress(f"measuring {a.model}"):
        for run in runs.values():
            for _ in range(3):
                run()
        for _ in range(a.rounds):
            for k, run in runs.items():
                run()
                blocks[k] += _block(run, a.seconds / a.rounds)
    result = {k: _figures(t) for k, t in blocks.items()}
    shapes = {k: list(np.shape(v)) for k, v in inputs.items()}
    kernels = []
    if a.profile:
        with model.profile(name) as records:
            for _ in range(10):
                bound.run(inputs)
        kernels = sorted(records, key=lambda r: -r.seconds)
    if a.json:
        out: dict[str, Any] = {
            "model": a.model,
            "entry": name,
            "threads": model.num_threads,
            "inputs": shapes,
            **result,
        }
        if a.profile:
            out["kernels"] = [vars(r) for r in kernels]
        print(json.dumps(out))
        return
    print(f"{a.model}, entry {name}, {model.num_threads} threads, inputs {shapes}")
    for k, f in result.items():
        print(
            f"{k:8} median {f['median_ms']:.3f} ms   p10 {f['p10_ms']:.3f}   p90 {f['p90_ms']:.3f}   {f['runs']} runs"
        )
    if "eager" in result:
        print(f"eager / effc: {result['eager']['median_ms'] / result['effc']['median_ms']:.2f}")
    total = sum(r.seconds for r in kernels if not r.depth) or 1.0
    for r in kernels[: a.top]:
        per = r.seconds / max(r.calls, 1)
        rate = f"{r.flops / r.seconds / 1e9:8.1f} GFLOP/s {r.bytes / r.seconds / 1e9:7.1f} GB/s" if r.seconds else ""
        print(
            f"{r.seconds / total:6.1%} {per * 1e6:10.1f} us x {r.calls // 10:<4} {rate}"
            f"  {r.name or r.kernel}  {r.kernel}  {r.loc[:60]}"
        )


def _as_call(entry: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of torch tensors in the structure that the entry's in_tree describes."""
    import torch

    from .runtime.tree import unflatten

    leaves = []
    for spec in entry["inputs"]:
        value = inputs[spec["name"]]
        array = np.asarray(value)
        if array.dtype.kind == "V" or array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            leaves.append(torch.from_numpy(array.astype(np.float32)).to(getattr(torch, array.dtype.name)))
        else:
            leaves.append(torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape))
    args, kwargs = unflatten(entry["in_tree"], leaves)
    return tuple(args), dict(kwargs)


def _no_grad(module: Any, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    import torch

    with torch.no_grad():
        return module(*call[0], **call[1])


def cmd_verify(a: argparse.Namespace) -> None:
    from .runtime import selftest
    from .runtime.artifact import ArtifactReader

    problems: list[str] = []
    with ArtifactReader(a.model) as reader:
        reader.verify()
        print(f"SHA-256: {len(reader.manifest['sha256'])} members match the manifest")
        graph = [n for n in reader.names() if n.startswith("graph/")]
        model, name, entry, inputs = _prepare(a)
        for r in selftest.check(reader, model):
            print(f"selftest of {r.entry}: {r.compared} results, max error {r.error:.2e}")
            problems += r.problems
        for missing, why in _without_selftest(reader).items():
            print(f"selftest of {missing}: none, {why}")
    copies = [{k: np.array(v) for k, v in inputs.items()} for _ in range(2)]
    first = model.session().entry(name).run(copies[0])
    again = model.session().entry(name).run(copies[1])
    random = any("rand" in i.get("kernel", "") for i in entry["program"]["code"])
    if not random:
        for key in first:
            if not np.array_equal(
                np.asarray(first[key]), np.asarray(again[key]), equal_nan=np.asarray(first[key]).dtype.kind in "fc"
            ):
                problems.append(f"{key}: two runs from the same state give different results")
        print(f"repeatable: {'no' if problems else 'yes'}")
    if a.source:
        problems += _against(a, name, entry, inputs, first)
    else:
        print("not compared with the model itself: give --source package.module:factory or a model file")
    if not graph:
        print("the artifact carries no graph")
    if problems:
        raise EffcError("verification failed:\n" + "\n".join(f"  {p}" for p in problems))
    print("ok")


def _without_selftest(reader: Any) -> dict[str, str]:
    """Entry points that have no selftest, and why the compiler left it out."""
    from .runtime.selftest import read_index

    said = reader.manifest.get("report", {}).get("selftest", {})
    missing = [e for e in reader.manifest["entries"] if e not in read_index(reader)]
    return {e: said.get(e, {}).get("left_out", "the artifact does not say why") for e in missing}


def _against(
    a: argparse.Namespace, name: str, entry: Mapping[str, Any], inputs: Mapping[str, Any], got: Mapping[str, Any]
) -> list[str]:
    """Compares with the engine that the model is of, where it is installed, and with the reference interpreter."""
    from .runtime.selftest import difference

    problems = []
    if Path(a.source).suffix in (".onnx", ".mlir"):
        results = _of_file(a, inputs)
    else:
        results = _of_torch(a, entry, inputs)
    for who, values in results.items():
        if len(values) != len(got):
            problems.append(f"{who}: {len(values)} outputs, the artifact has {len(got)}")
            continue
        worst = 0.0
        for (key, mine), theirs in zip(got.items(), values, strict=True):
            error, problem = difference(mine, theirs)
            worst = max(worst, error)
            if problem:
                problems.append(f"{key} against {who}: {problem}")
        print(f"against {who}: max error {worst:.2e}")
    return problems


def _of_torch(a: argparse.Namespace, entry: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
    import torch

    import effc

    model, _args, _kwargs = resolve(a.source)
    module = torch.export.load(model).module() if isinstance(model, str) else model
    call = _as_call(entry, {k: np.array(v) for k, v in inputs.items()})
    with progress("running torch"):
        want = [x for x in torch.utils._pytree.tree_leaves(_no_grad(module, call)) if x is not None]
    results = {"torch": [_numpy(x) for x in want]}
    if not a.no_reference:
        with progress("running the reference interpreter"):
            reference = effc.compile(
                model,
                () if isinstance(model, str) else call[0],
                {} if isinstance(model, str) else call[1],
                target="reference",
            )
            again = _as_call(entry, {k: np.array(v) for k, v in inputs.items()})
            leaves = torch.utils._pytree.tree_leaves(reference(*again[0], **again[1]))
            results["reference"] = [_numpy(x) for x in leaves if x is not None]
    return results


def _of_file(a: argparse.Namespace, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
    import effc

    source, _, _ = resolve(a.source)
    results: dict[str, list[Any]] = {}
    if Path(a.source).suffix == ".onnx":
        if importlib.util.find_spec("onnxruntime") is None:
            print("not compared with onnxruntime: it is not installed")
        else:
            import onnxruntime

            with progress("running onnxruntime"):
                session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
                results["onnxruntime"] = list(session.run(None, dict(inputs)))
    if not a.no_reference:
        with progress("running the reference interpreter"):
            copies = {k: np.array(v) for k, v in inputs.items()}
            results["reference"] = [
                np.asarray(v) for v in effc.compile(source, target="reference").run(copies).values()
            ]
    return results


def _numpy(x: Any) -> Any:
    import torch

    if isinstance(x, torch.Tensor):
        x = x.detach()
        if x.dtype is torch.bfloat16:
            import ml_dtypes

            return x.to(torch.float32).numpy().astype(ml_dtypes.bfloat16)
        return x.resolve_conj().resolve_neg().numpy()
    return np.asarray(x)


def cmd_inspect(a: argparse.Namespace) -> None:
    from .runtime.artifact import ArtifactReader
    from .runtime.selftest import read_index

    with ArtifactReader(a.model) as reader:
        m = reader.manifest
        if a.json:
            print(json.dumps(m))
            return
        if a.graph:
            name, _ = _entry(m, a.entry)
            print(reader.read(f"graph/{quote(name, safe='')}.txt").decode())
            return
        print(f"{a.model}: effc {m['effc']}, format {m['format']}, target {m['target']}")
        print(f"needs {' '.join(m['isa'])}")
        for n in reader.names():
            print(f"  {reader.size(n):>14,}  {n}")
        tests, untested = read_index(reader), _without_selftest(reader)
    for state, s in m.get("states", {}).items():
        print(f"state {state}: {s['d']}{_shape_text(s['shape'])}")
    for name, e in m["entries"].items():
        p = e["program"]
        print(f"entry {name}")
        for s in p["symbols"]:
            where = s.get("from")
            source = "while running" if where is None else f"from input {e['inputs'][where['input']]['name']}"
            print(f"  size {s['name']} in {s['lo']}..{'' if s['hi'] is None else s['hi']} {source}")
        for i in e["inputs"]:
            print(f"  in   {i['name']}: {i['dtype']}{_shape_text(i['shape'])}")
        for o in e["outputs"]:
            print(f"  out  {o['name']}: {o['dtype']}{_shape_text(o['shape'])}")
        if name in untested:
            print(f"  no selftest: {untested[name]}")
        else:
            print(f"  selftest: {len(tests[name]['inputs'])} inputs")
            for t in tests[name]["expected"]:
                what = (
                    f"state {t['name']}" if t["of"] == "state" else f"{t['of']} {e[t['of'] + 's'][t['index']]['name']}"
                )
                part = f", every {t['step']}th element" if t["step"] > 1 else ""
                print(f"    expected {what}: {_shape_text(t['shape'])}{part}")
        arena = p.get("arena", {})
        static, low = arena.get("static_bytes"), arena.get("lower_bound")
        if static is None:
            print("  arena planned for each set of sizes; `--memory` shows it for given ones")
        else:
            gap = f", lower bound {low:,}, gap {static - low:,}" if low is not None else ""
            print(f"  arena {static:,} bytes{gap}")
        print(
            f"  {len(p['code'])} instructions: "
            + ", ".join(f"{n} {k}" for k, n in m["report"].get("entries", {}).get(name, {}).get("kernels", {}).items())
        )
        if a.plan:
            for k, ins in enumerate(p["code"]):
                print(
                    f"  {k:4} {ins.get('kernel', ins['op'])} {ins.get('in', [])} -> {ins.get('out', [])}"
                    f"  {ins.get('name', '')}  {ins.get('loc', '')}"
                )
    for line in _shared(m):
        print(line)
    if a.memory or a.picture:
        _memory(a, m)


def _memory(a: argparse.Namespace, manifest: Mapping[str, Any]) -> None:
    """What lies in the arena for one set of sizes, as the runtime lays it out."""
    from .runtime import memory
    from .runtime.loader import load

    name, entry = _entry(manifest, a.entry)
    m = memory.read(load(a.model), manifest, name, sizes(entry, a.size))
    if a.memory:
        print(memory.text(m))
        for line in _planned(manifest, name):
            print(line)
    if a.picture:
        Path(a.picture).write_text(memory.svg(m))
        print(f"{a.picture}: tensors over time and address")


def _shared(manifest: Mapping[str, Any]) -> Iterator[str]:
    """That entry points have one arena, and how much of it each takes."""
    arena = manifest.get("report", {}).get("arena", {})
    each = arena.get("entries", {})
    if len(each) < 2:
        return
    parts = ", ".join(f"{n} {'any size' if b is None else f'{b:,}'}" for n, b in each.items())
    total = "as large as the run that needs most" if arena["bytes"] is None else f"{arena['bytes']:,} bytes"
    yield f"one arena for entry points that take turns, {total} ({parts}; at the largest sizes planned)"


def _planned(manifest: Mapping[str, Any], name: str) -> Iterator[str]:
    """What the planner said when the artifact was made."""
    report = manifest.get("report", {}).get("entries", {}).get(name, {}).get("memory", {})
    for p in report.get("plans", ()):
        at = ", ".join(f"{k}={v}" for k, v in p.get("sizes", {}).items())
        proof = "proven" if p["proven"] else f"gap {p['gap']:.1%}, search ended by {p['ended']}"
        yield (
            f"planned{' at ' + at if at else ''}: {p['arena']:,} bytes, bound {p['bound']:,} ({proof}); as given "
            f"{p['given']:,}: order saved {p['saved_by_order']:,}, rewriting {p['saved_by_rewriting']:,}"
        )
    b = report.get("arena_budget")
    if b is None:
        return
    least = f", the least is {b['minimum']:,} (proven)" if "minimum" in b else ""
    yield from _taken_apart("arena_budget", b.get("apart", ()))
    if not b["changed"]:
        yield f"arena_budget: {b['budget']:,} bytes, which that keeps{least}"
        return
    yield (
        f"arena_budget: {b['budget']:,} bytes{least}; planned anew within it: {b['arena']:,} instead of "
        f"{b['unlimited']:,} bytes; a run spills {b['spilled_bytes']:,} bytes in {b['spills']} copies and refills "
        f"{b['refilled_bytes']:,} in {b['refills']}; {b['repeated']} calls are repeated, {b['repeated_flops']:,} "
        f"operations; most is needed by {b['largest']['name']}"
        f"{' at ' + b['largest']['loc'] if b['largest']['loc'] else ''}, {b['largest']['bytes']:,} bytes"
    )


def _taken_apart(budget: str, regions: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Fused regions that a budget has no room for, by the pass that formed them."""
    by: dict[str, list[str]] = {}
    for r in regions:
        by.setdefault(r["pass"], []).append(f"{r['name']} at {r['loc']}" if r["loc"] else r["name"])
    for name, which in by.items():
        count = f"{len(which)} of what {name} joined" if len(which) > 1 else f"one of what {name} joined"
        yield f"{budget}: taken apart as it needs less so: {count} ({', '.join(which)})"


def cmd_tune(a: argparse.Namespace) -> None:
    cost.tune(a, sizes)


def cmd_estimate(a: argparse.Namespace) -> None:
    cost.estimate(a, sizes)


def cmd_explain(a: argparse.Namespace) -> None:
    manifest = _manifest(a.model)
    report = manifest.get("report", {})
    if a.measure:
        with progress(f"measuring the choices of {a.model}"):
            cost.with_measurements(report, manifest, a.threads)
    if a.json:
        print(json.dumps(report))
        return
    print(
        f"target {report.get('target')}; seconds: "
        + ", ".join(f"{k} {v}" for k, v in report.get("seconds", {}).items())
    )
    for name, e in report.get("entries", {}).items():
        print(f"entry {name}")
        passes = e.get("passes", {})
        for k, v in passes.get("stats", {}).items():
            print(f"  {k}: {v}")
        print("  kernels: " + ", ".join(f"{n} {k}" for k, n in e.get("kernels", {}).items()))
        for d in passes.get("declined", []):
            print(f"  declined {d['rule']} on {d['op']} x{d['times']}: {d['reason']}  {d['loc']}")
        for line in cost.decisions_text(e.get("decisions", [])):
            print(line)
    for note in report.get("notes", []):
        print(f"note: {note}")


def cmd_targets(a: argparse.Namespace) -> None:
    import effc

    if a.target:
        from .compiler import find

        backend = find(a.target)
        lines = list(backend.details(a.target)) if backend.details else []
        print(json.dumps(lines) if a.json else "\n".join(lines or [f"{a.target}: nothing to tell"]))
        return
    found = effc.targets()
    if a.json:
        print(json.dumps(found))
        return
    for t in found:
        print(f"{t['name']:28} {'runs here' if t['runs_here'] else 'this machine lacks ' + ', '.join(t['missing'])}")


def cmd_conformance(a: argparse.Namespace) -> int:
    from .conformance.command import run

    return run(a, shlex.join(["effc", *sys.argv[1:]]))


def cmd_not_yet(a: argparse.Namespace) -> None:
    print(f"effc {a.command}: not available in this version ({NOT_YET[a.command]})", file=sys.stderr)
    raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    from . import __version__

    top = argparse.ArgumentParser(prog="effc", description="Ahead-of-time compiler for efficient models.")
    top.add_argument("--version", action="version", version=f"effc {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=text, description=text)
        p.set_defaults(run=run)
        return p

    p = add("compile", cmd_compile, "compile a model to an artifact")
    p.add_argument(
        "source",
        metavar="SRC",
        help="a .pt2, .onnx or .mlir file, or package.module:factory returning (model, args[, kwargs])",
    )
    p.add_argument("-o", "--out", metavar="OUT.effc")
    p.add_argument("--target", default="cpu", help="see `effc targets`; default: this machine's CPU")
    p.add_argument(
        "--dynamic",
        action="append",
        default=[],
        metavar="NAME.DIM=SYMBOL[:MIN[:MAX]]",
        help="a dim that may vary; may be repeated",
    )
    p.add_argument("--threads", type=int, help="default number of threads at run time")
    p.add_argument(
        "--memory-budget",
        metavar="SIZE",
        help="bytes, or e.g. 180MiB, for arena and weights: what does not fit streams",
    )
    p.add_argument(
        "--arena-budget",
        metavar="SIZE",
        help="bytes for the arena: where it is larger, calls are repeated and tensors spilled to a file",
    )
    p.add_argument(
        "--onnx-domain",
        choices=("standard", "ort"),
        default="standard",
        help="target onnx: standard operators alone, or also those that ONNX Runtime contributes",
    )
    p.add_argument("--disable-pass", action="append", default=[], metavar="PASS")
    p.add_argument("--verify", action="store_true", help="run the IR verifier after every pass")
    p.add_argument("--no-selftest", action="store_true", help="keep no inputs and results for `effc verify`")

    def inputs(p: argparse.ArgumentParser) -> None:
        p.add_argument("model", metavar="MODEL.effc")
        p.add_argument(
            "inputs",
            nargs="*",
            metavar="INPUT",
            help="file.npz or name=file.npy; what is missing is made up from --seed",
        )
        p.add_argument("--entry", help="an entry point; default: the first")
        p.add_argument("--seed", type=int, default=0)
        p.add_argument(
            "--size",
            action="append",
            default=[],
            metavar="SYMBOL=N",
            help="a size for made-up inputs (s0=16 or x.0=16)",
        )
        p.add_argument("--int-max", type=int, default=1, help="largest made-up integer (default 1)")
        p.add_argument("--threads", type=int)

    p = add("run", cmd_run, "run an artifact and print its outputs")
    inputs(p)
    p.add_argument("-o", "--out", metavar="OUT.npz")
    p = add("bench", cmd_bench, "time an artifact")
    inputs(p)
    p.add_argument(
        "--against", metavar="SRC", help="package.module:factory of the same model, run eagerly in alternating blocks"
    )
    p.add_argument("--seconds", type=float, default=2.0, help="measuring time of each engine")
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--profile", action="store_true", help="time of each kernel")
    p.add_argument("--top", type=int, default=20)
    p.add_argument("--json", action="store_true")
    p = add("verify", cmd_verify, "check an artifact's files, and its results against the model it came from")
    inputs(p)
    p.add_argument(
        "--source", metavar="SRC", help="what it was compiled from: compares with torch and the reference interpreter"
    )
    p.add_argument("--no-reference", action="store_true", help="leave out the interpreter, which is slow")
    p = add("inspect", cmd_inspect, "show an artifact's signature, members, plan and memory")
    p.add_argument("model", metavar="MODEL.effc")
    p.add_argument("--entry")
    p.add_argument("--graph", action="store_true", help="print the graph after all passes")
    p.add_argument("--plan", action="store_true", help="print every instruction")
    p.add_argument("--memory", action="store_true", help="the arena at given sizes: its peak, and what lies in it")
    p.add_argument("--picture", metavar="OUT.svg", help="draw the arena: tensors over time and address")
    p.add_argument("--size", action="append", default=[], metavar="SYMBOL=N")
    p.add_argument("--json", action="store_true", help="the whole manifest")
    p = add("explain", cmd_explain, "show what the compiler decided, and what it declined and why")
    p.add_argument("model", metavar="MODEL.effc")
    p.add_argument("--json", action="store_true")
    cost.explain_arguments(p)
    p = add("estimate", cmd_estimate, "predict a model's latency without running it")
    cost.estimate_arguments(p)
    p = add("tune", cmd_tune, "measure kernels on this machine, and train a cost model on what was measured")
    cost.tune_arguments(p)
    p = add("targets", cmd_targets, "list targets and what this machine can run")
    p.add_argument("target", nargs="?", metavar="TARGET", help="tell about this one: the micro-kernels that it takes")
    p.add_argument("--json", action="store_true")
    p = add("conformance", cmd_conformance, "run the conformance suites on backends and print one table")
    conformance.add_arguments(p)
    p.add_argument("--dtypes", help="of the suite torch, comma-separated; default float32")
    p.add_argument("--samples", type=int, metavar="N", help="of the suite torch: of each operator; default 20")
    for name, text in NOT_YET.items():
        p = add(name, cmd_not_yet, f"{text} (not available in this version)")
        p.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    a = parser().parse_args(argv)
    try:
        code: int | None = a.run(a)
    except EffcError as e:
        if os.environ.get("EFFC_DEBUG"):
            raise
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
