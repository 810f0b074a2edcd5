"""Arenas of the planners people have, for the same buffers, beside ours.

    python -m bench.memory_peers GRAPH.json... [--made] [--executorch WHEEL_OR_FOLDER] [--ort [MODEL...]]

Each GRAPH is one row (``bench.lowered`` writes those of real models), ``--made`` adds those that ``bench/graphs``
traces. Peers plan the order given, with nothing rewritten; so does "ours, given"; "ours" chooses the order too, and
"rewritten" also what is overwritten and made in
place. All are bytes of the arena, inputs and parameters not counted, a buffer live from its maker to its last reader.

- ExecuTorch: the code of ``greedy`` in ``exir/memory_planning.py``, read from a wheel (``pip download --no-deps
  executorch``) or a folder that it was unpacked into. What that module imports from its package, and none of which
  ``greedy`` calls, is replaced by placeholders. Buffers of equal size come in the order in which they are made.
- TVM: the pass ``StaticPlanBlockMemory`` of the installed package on a Relax function with these allocations and
  opaque calls. It does not plan results, which are counted in full. A call's workspace is an allocation that it alone
  takes.
- by size: largest first, each in the lowest gap that is free all its life.

``--ort``: for models of the project (tests/models/zoo.py and bench/dense.py; all of them if none is named), how long
compiling took and what of that was planning, effc's arena and by how much onnxruntime's CPU arena grows
during three runs of a session in a process of its own, on one thread, as its log has it ("Extended allocation by"). It
grows by powers of two by default; "as asked" is ``arena_extend_strategy`` kSameAsRequested. "before": its growth while
the session is made, room that runs may use again; weights are reserved beside it and in neither. Each engine has its
own graph, after its own fusions, so this compares engines and not planners.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.memory import MIB, table
from effc.passes.memory import order, problem, schedule
from effc.passes.memory.plan import Interval, place
from effc.passes.memory.problem import Choices, Problem, boxes
from effc.passes.memory.verify import verify_placement

MODULE = "executorch/exir/memory_planning.py"


class _Hollow(type):
    """Classes whose attributes are such classes again."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Hollow(name, (), {})


class _Anything(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Hollow(name, (), {})


class _Spec:
    """What ``greedy`` reads of a TensorSpec."""

    mem_id = None
    storage_base = None

    def __init__(self, i: Interval) -> None:
        self.id, self.allocated_memory, self.lifetime = i.id, i.bytes, [i.start, i.stop]

    def realign(self, alignment: int) -> int:
        self.allocated_memory = -(-self.allocated_memory // alignment) * alignment
        return self.allocated_memory


def executorch(where: Path) -> Callable[[list[Interval], int], int]:
    if where.is_dir():
        source = (where / MODULE).read_text()
    else:
        with zipfile.ZipFile(where) as wheel:
            source = wheel.read(MODULE).decode()
    before = dict(sys.modules)
    lines = [x.split()[1] for x in source.splitlines() if x.startswith("from executorch")]
    for name in {".".join(x.split(".")[:k]) for x in lines for k in range(1, x.count(".") + 2)}:
        sys.modules[name] = _Anything(name)
    module = types.ModuleType("executorch_memory_planning")
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, MODULE, "exec"), module.__dict__)
    finally:
        for name in [x for x in sys.modules if x.split(".")[0] == "executorch" and x not in before]:
            del sys.modules[name]

    def plan(intervals: list[Interval], align: int) -> int:
        specs = [_Spec(i) for i in intervals]
        result = module.greedy(align, specs, types.SimpleNamespace(), None)
        offsets = {s.id: result.spec_dict[s].mem_offset for s in specs}
        verify_placement(intervals, offsets)
        return int(sum(result.bufsizes))

    return plan


def tvm(p: Problem) -> int:
    """The bytes of the storages that the pass makes, and of the results that it leaves alone."""
    from tvm import relax

    builder = relax.BlockBuilder()
    inputs = {
        t: relax.Var(f"x{t}", relax.TensorType([x.bytes], "uint8")) for t, x in p.tensors.items() if x.kind == "input"
    }
    made: dict[int, Any] = dict(inputs)
    with builder.function("main", list(inputs.values())):
        for n in p.nodes:
            for t in n.outs:
                shape = relax.ShapeExpr([p.tensors[t].bytes])
                made[t] = builder.emit(relax.op.builtin.alloc_tensor(shape, "uint8", 0))
            args = [made[t] for t in (*dict.fromkeys(n.ins), *n.outs)]
            if n.workspace:
                shape = relax.ShapeExpr([n.workspace])
                args.append(builder.emit(relax.op.builtin.alloc_tensor(shape, "uint8", 0)))
            builder.emit(relax.Call(relax.ExternFunc("f"), args, ty_args=[relax.TupleType([])]))
        results = [made[t] for n in p.nodes for t in n.outs if p.tensors[t].kind == "output"]
        builder.emit_func_output(relax.Tuple(results))
    planned = relax.transform.StaticPlanBlockMemory()(builder.get())
    total = 0
    for block in planned["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            name = getattr(getattr(call, "op", None), "name", "")
            if name in ("relax.memory.alloc_storage", "relax.builtin.alloc_tensor"):
                total += math.prod(int(d) for d in call.args[0].values)
    return total


def row(name: str, p: Problem, greedy: Callable[[list[Interval], int], int] | None) -> dict[str, Any]:
    began = time.perf_counter()
    intervals, _ = boxes(p, p.given, Choices())
    sized = place(sorted(intervals, key=lambda i: (-i.bytes, i.start, i.id)))
    given = schedule.lay_out(p, p.given)
    found = order.order(p)
    ours = schedule.lay_out_found(p, found) if found.peak < given.arena else given
    rewritten = schedule.schedule(p, rewrite=True).layout
    return {
        "graph": name,
        "nodes": len(p.nodes),
        "ExecuTorch": greedy(intervals, p.align) if greedy else None,
        "TVM": tvm(p),
        "by size": verify_placement(intervals, sized),
        "ours, given": given.arena,
        "ours": min(ours.arena, given.arena),
        "live bound": found.bound,
        "rewritten": rewritten.arena,
        "s": time.perf_counter() - began,
    }


PEERS = ("ExecuTorch", "TVM", "by size")


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours over each peer's, 1 where nobody gains, with geometric means and how often both are equal."""
    out = []
    for r in rows:
        line = {"graph": r["graph"]}
        for peer in PEERS:
            if r[peer] is not None:
                line[peer] = "tie" if r["ours"] == r[peer] else f"{r['ours'] / r[peer]:.3f}"
        out.append(line)
    for label, key in (
        ("geomean, order and offsets", "ours"),
        ("geomean, offsets alone", "ours, given"),
        ("geomean, with rewriting", "rewritten"),
    ):
        line = {"graph": label}
        for peer in PEERS:
            logs = [math.log(r[key] / r[peer]) for r in rows if r[peer] is not None]
            if logs:
                ties = sum(x == 0 for x in logs)
                line[peer] = f"{math.exp(sum(logs) / len(logs)):.3f} ({ties} ties)"
        out.append(line)
    return out


ORT = """
import sys, numpy as np, onnxruntime as ort
path, feed, asked = sys.argv[1:4]
ort.set_default_logger_severity(0)
ort.set_default_logger_verbosity(1)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
if asked == "1":
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(0, 1, -1, -1))
    options.add_session_config_entry("session.use_env_allocators", "1")
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
arrays = np.load(feed)
given = {i.name: arrays[f"a{k}"] for k, i in enumerate(session.get_inputs())}
for k in range(3):
    print("RUN", file=sys.stderr, flush=True)
    session.run(None, given)
"""


def onnxruntime(name: str) -> dict[str, Any]:
    """effc's arena and onnxruntime's, for the benchmark's input of a model."""
    import re
    import subprocess

    import numpy as np

    import effc
    from bench.engines import _onnx, _tensors
    from bench.worker import entry

    given = entry(name)
    module, args = given.load().module, given.bench()
    line: dict[str, Any] = {"model": name}
    began = time.perf_counter()
    made = effc.compile(getattr(module, "onnx_file", module), args)
    line["compile s"] = time.perf_counter() - began
    line["planning s"] = made.report["entries"]["main"]["memory"]["seconds"]
    line["share %"] = 100 * line["planning s"] / line["compile s"]
    line["effc"] = made.arena(*args)[0]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = _onnx(module, args, work)
        np.savez(work / "feed.npz", **{f"a{k}": t.numpy() for k, t in enumerate(_tensors(args))})
        for label, asked in (("onnxruntime", "0"), ("onnxruntime, as asked", "1")):
            command = [sys.executable, "-c", ORT, str(path), str(work / "feed.npz"), asked]
            log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
            before, _, during = log.partition("RUN")
            grown = [
                sum(int(x) for x in re.findall(r"Extended allocation by (\d+) bytes", s)) for s in (before, during)
            ]
            line[label], line[label + ", before"] = grown[1], grown[0]
    return line


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.memory_peers", description="memory planners side by side")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--made", action="store_true", help="also the graphs that bench/graphs traces")
    parser.add_argument("--executorch", type=Path, help="its wheel, or a folder with it")
    parser.add_argument("--ort", nargs="*", help="models to compare with onnxruntime's arena; none: all")
    args = parser.parse_args()
    if args.ort is not None:
        from bench.dense import DENSE
        from tests.models.zoo import ZOO

        os.environ["EFFC_MODEL_CACHE"] = "0"
        lines = []
        for m in args.ort or dict.fromkeys((*ZOO, *DENSE)):
            lines.append(onnxruntime(m))
            print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
        print(table([{k: v / MIB if isinstance(v, int) else v for k, v in x.items()} for x in lines]), end="\n\n")
    if not args.files and not args.made:
        return
    greedy = executorch(args.executorch) if args.executorch else None
    graphs = [(f.name.split(".")[0], lambda f=f: problem.from_json(f)) for f in args.files]
    if args.made:
        from bench.graphs import from_torch

        graphs += list(from_torch().items())
    rows = [row(name, make(), greedy) for name, make in graphs]
    shown = [{k: v / MIB if isinstance(v, int) and k != "nodes" else v for k, v in r.items()} for r in rows]
    print("MiB:\n" + table(shown), end="\n\n")
    print("ours / theirs:\n" + table(ratios(rows)))


if __name__ == "__main__":
    main()
