"""Measuring: one kernel call in every way it can be made, or a region in every way a pass can treat it, side by side;
and all calls of a model, where it makes them.

Times are the runtime's own, per instruction (its profile). Ways of one call are entry points of one artifact and run in
short blocks in turn, so that a change of the machine's speed meets all of them; a block's time is its mean, a record's
the lower quartile over blocks: what others run on the machine only ever makes a block longer, and seldom by a little.
What a kernel finds in the caches is controlled: ``between`` bytes of another array are read
before every run of it (0: nothing, it finds its own operands). A yardstick, always the same small product, runs in turn
with the ways: it tells how fast the machine was at that time, which on a shared one changes from minute to minute.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..ir.dtypes import DType
from ..ir.graph import Builder, Graph
from ..ir.types import TensorType
from ..runtime.errors import EffcError
from . import alternatives
from .alternatives import Ask
from .calls import Call, calls
from .decide import Decision
from .features import family_of
from .machine import Machine, Others
from .records import Record
from .space import Case

BLOCKS = (6, 16)  # of each way: the more, the shorter they are
BLOCK_SECONDS, WAY_SECONDS = 0.4e-3, 30e-3
SWEEP_ROW = 4104  # wider than any row that a sampler draws: what tells the sweep from a call that is measured
YARD = "yard"
Rng = np.random.Generator
Array = np.ndarray[Any, Any]


class Forced:
    """A decider that takes way ``index`` and remembers the calls it was asked about."""

    def __init__(self, index: int = 0) -> None:
        self.index, self.calls = index, []  # type: tuple[int, Sequence[Call]]

    def __call__(self, ways: Sequence[Call]) -> Decision:
        self.calls = ways
        return Decision(min(self.index, len(ways) - 1), why="forced")


def graph_of(case: Case, forced: Ask | None = None) -> Graph:
    """The case's graph after the passes of the CPU backend. ``forced`` answers what passes ask. A case of a
    kernel is of that one: there a convolution's algorithm is not chosen."""
    from .. import builtin_backends  # noqa: F401  (registers them)
    from ..backends.registry import find
    from ..passes.manager import PassReport, Pipeline
    from ..passes.pipeline import default
    from ..passes.winograd import SETS, FormWinograd

    b = Builder()
    g = b.graph([case.build(b)])
    off = () if case.family in SETS.values() else (FormWinograd.name,)
    return Pipeline(default(replace(find("cpu").passes(), ask=forced)), disabled=off).run(g, PassReport())


def _wrapped(g: Graph, sweep: int) -> Graph:
    """The graph with one element of its result as the output, so that the result itself lies in the arena as it would
    in a model; and, if ``sweep``, with the sum of an array of that many bytes."""
    b = Builder()
    y = g.inline(b, [b.input(n.name, n.types[0]) for n in g.inputs])[0]
    outs = [b.op("slice", y, starts=(0,) * y.type.rank, stops=(1,) * y.type.rank, steps=(1,) * y.type.rank)]
    if sweep:
        x = b.input("sweep", TensorType(DType.f32, (max(1, sweep // 4 // SWEEP_ROW), SWEEP_ROW)))
        outs.append(b.op("reduce", x, kind="sum", dims=(1,), keepdims=False))
    return b.graph(outs)


def yardstick() -> Graph:
    """12.6 million multiply-adds on 400 KB."""
    b = Builder()
    w = b.constant(np.full((256, 256), 0.01, np.float32))
    y = b.op("matmul", b.input("yard", TensorType(DType.f32, (96, 256))), w)
    return _wrapped(b.graph([y]), 0)


def _signature(g: Graph) -> Any:
    names = [f"y{i}" for i in range(len(g.outputs))]
    return SimpleNamespace(input_names=[n.name for n in g.inputs], output_names=names, in_tree=None, out_tree=None)


class Bench:
    """The ways of one call or region, compiled and loaded. ``ways``: their indices; ``target``: a CpuTarget. ``calls``:
    by way's name what is measured; of a region, ``parts`` are the kernel calls that it is made of."""

    def __init__(self, case: Case, ways: Sequence[int], sweep: int, threads: int, target: Any, folder: Path) -> None:
        from ..backends import cpu
        from ..backends.cpu.lower import memory
        from ..compiler import write_artifact
        from ..runtime.loader import load

        self.ways = {f"w{w}": w for w in ways}
        asked = {n: alternatives.Forced(case.family, w) for n, w in self.ways.items()}
        region = case.family in alternatives.SETS
        plain = None if region else _wrapped(graph_of(case), sweep)
        graphs = {n: plain or _wrapped(graph_of(case, asked[n]), sweep) for n in self.ways}
        g = graphs[next(iter(graphs))]
        graphs[YARD] = yardstick()
        deciders = {} if region else {n: Forced(w) for n, w in self.ways.items()}
        parts = cpu.compile_graphs(graphs, target, threads, lambda n: deciders.get(n))
        self.calls: dict[str, Call] = {}
        self.parts: dict[str, list[Call]] = {}
        self._at: dict[str, list[int]] = {}
        self._each = dict.fromkeys(graphs, 1)  # calls that make up one
        for n, program in parts.programs.items():
            made = list(enumerate(calls(program, {})))
            if n == YARD:
                self._at[n] = [i for i, c in made if c.kernel.startswith("effc_matmul")]
                continue
            if region:
                found = [(i, c) for i, c in made if not _of_bench(c, sweep)]
                if len(asked[n].regions) != 1:
                    raise EffcError(f"{case.spec} has {len(asked[n].regions)} regions of {case.family}, not one")
                self.calls[n], self.parts[n] = asked[n].regions[0][self.ways[n]], [c for _, c in found]
            else:
                found = [(i, c) for i, c in made if c.kernel.startswith(case.kernels) and not _of_bench(c, sweep)]
                found = sorted(found, key=lambda f: f[1].bytes)[-1:]
                self.calls[n] = found[0][1] if found else Call("", (), ())
            if not found:
                raise EffcError(f"{case.spec} makes no call of {case.kernels}")
            self._each[n] = len(found)
            size = sum(c.flops for _, c in found) / 30e9 + sum(c.bytes for _, c in found) / 10e9
            repeat = 1 if sweep else max(1, min(16, int(100e-6 / (size + 1e-6))))
            each = len(program["code"])
            program["code"] = [dict(ins) for _ in range(repeat) for ins in program["code"]]
            memory.place(program, threads)
            self._at[n] = [at + each * i for i in range(repeat) for at, _ in found]
        path = folder / "case.effc"
        write_artifact(path, target, {n: _signature(x) for n, x in graphs.items()}, graphs, parts, {})
        self.model = load(path, num_threads=threads)
        path.unlink()
        rng = np.random.default_rng(0)
        self.inputs = {n.name: rng.standard_normal(n.types[0].shape, np.float32) for n in g.inputs}  # type: ignore[arg-type]
        yard = graphs[YARD].inputs[0]
        self.yard = {yard.name: np.ones(yard.types[0].shape, np.float32)}  # type: ignore[arg-type]
        self._index = {n: i for i, n in enumerate(self.model.entry_names)}

    def _spent(self, name: str) -> tuple[Array, int]:
        """Nanoseconds so far of each call that makes up one, and how often it ran."""
        from ..runtime import _rt

        lib, p, each = _rt.lib(), _rt.Profile(), self._each[name]
        ns, count = np.zeros(each), 0
        for k, i in enumerate(self._at[name]):
            _rt.check(lib.effc_profile_get(self.model._ptr, self._index[name], i, ctypes.byref(p)))
            ns[k % each] += p.ns
            count += p.calls if k % each == 0 else 0
        return ns, count

    def block(self, name: str, runs: int) -> Array:
        """Seconds of each call that makes up one, over this many runs."""
        ns, count = self._spent(name)
        run = self.model.entry(name).run
        inputs = self.yard if name == YARD else self.inputs
        for _ in range(runs):
            run(inputs)
        ns2, count2 = self._spent(name)
        return np.asarray((ns2 - ns) * 1e-9 / max(1, count2 - count))

    def times(self, blocks: tuple[int, int] = BLOCKS) -> dict[str, Array]:
        """Seconds (block, call) of each way, and of the yardstick, blocks in turn: at least and at most so many. Only a
        region is made up of more than one call."""
        from ..runtime import _rt

        _rt.lib().effc_profile_enable(self.model._ptr, 1)
        runs, longest, order = {}, 0.0, [*self.ways, YARD]
        for n in order:
            self.block(n, 1)
            start = time.perf_counter()
            self.block(n, 1)
            once = time.perf_counter() - start
            runs[n] = max(1, min(64, int(BLOCK_SECONDS / once)))
            longest = max(longest, once * runs[n])
        found: dict[str, list[Array]] = {n: [] for n in order}
        for i in range(max(blocks[0], min(blocks[1], int(WAY_SECONDS / longest)))):
            for n in order[:: 1 if i % 2 else -1]:
                found[n].append(self.block(n, runs[n]))
        return {n: np.stack(times) for n, times in found.items()}


def yard_bench(threads: int, target: Any, folder: Path) -> Bench:
    """A bench of which only the yardstick is wanted."""
    from .space import SAMPLERS

    case = SAMPLERS["map"](np.random.default_rng(0))
    assert case is not None
    return Bench(case, [0], 0, threads, target, folder)


def _of_bench(c: Call, sweep: int) -> bool:
    """Whether a call is one that :func:`_wrapped` has added."""
    if all(t.numel == 1 for t in c.outs):
        return True
    return bool(sweep and c.ins and c.ins[0] is not None and c.ins[0].shape[-1] == SWEEP_ROW and c.kernel[:4] == "red_")


def typical(blocks: Sequence[float] | Array) -> float:
    """The lower quartile of blocks' times, seconds."""
    return float(np.percentile(blocks, 25))


def repeat_error(blocks: Sequence[float] | Array) -> float:
    """|ln| of the ratio of what every other block says: how far two measurements, each half as long, differ."""
    return abs(float(np.log(typical(blocks[::2]) / typical(blocks[1::2]))))


@lru_cache(maxsize=1)
def kernels_digest() -> str:
    """Names the kernel library's sources: records that were made with others may tell of slower kernels."""
    from ..backends.cpu.build import digest, source_key
    from ..backends.cpu.library import KERNELS

    return digest(*(source_key(p) for p in sorted(KERNELS.glob("*.[ch]pp"))))[:8]


def ways_of(graph: Graph, target: Any) -> int:
    """In how many ways the backend could make the call of a case's graph."""
    from ..backends.cpu.codegen import Generated
    from ..backends.cpu.lower import Constants, Lowering, Options, load_rules

    load_rules()
    spy = Forced()
    Lowering(graph, Options(target, decide=spy), Constants(), Generated()).run()
    return max(1, len(spy.calls))


def measure(
    case: Case,
    rng: Rng,
    group: str,
    threads: int,
    sweep: int,
    target: Any,
    machine: Machine,
    folder: Path,
    most: int = 7,
    source: str = "space",
    blocks: tuple[int, int] = BLOCKS,
) -> list[Record]:
    """Records of a case: the rule's own way, and up to ``most - 1`` others drawn at random. Of alternatives all ways,
    and the kernel calls that they are made of, each a group of its own."""
    if case.family in alternatives.SETS:
        ways = list(range(len(alternatives.SETS[case.family].ways)))
    else:
        n = ways_of(graph_of(case), target)
        ways = [0, *(int(i) + 1 for i in rng.permutation(n - 1)[: most - 1])]
    bench = Bench(case, ways, sweep, threads, target, folder)
    out, others = [], Others()
    found = bench.times(blocks)
    busy, yard = others.share(), typical(found.pop(YARD).sum(1))

    def record(call: Call, family: str, times: Array, between: int, group: str, way: int) -> None:
        measured = (typical(times), repeat_error(times), yard, busy)
        out.append(
            Record(
                call, family, threads, between, *measured, group, way, source, target.name, machine, kernels_digest()
            )
        )  # fmt: skip

    for name, times in found.items():
        call, way = bench.calls[name], bench.ways[name]
        record(call, case.family, times.sum(1), max(sweep, call.bytes), group, way)
        parts = bench.parts.get(name, [])
        touched = max(sweep, sum(c.bytes for c in parts))
        for i, part in enumerate(parts):
            record(part, family_of(part), times[:, i], touched, f"{group}/{way}/{i}", 0)
    return out


def measure_model(
    model: Any,
    manifest: Mapping[str, Any],
    entry: str,
    env: Mapping[str, int],
    inputs: Mapping[str, Any],
    name: str,
    machine: Machine,
    family_of: Callable[[Call], str],
    yard: Bench,
    seconds: float = 2.0,
) -> tuple[list[Record], list[float]]:
    """Records of every call of a loaded model's entry point outside control flow, and the times of its runs without
    profiling (seconds; the profile's own cost is not in them). ``yard``: a Bench with as many threads, for its
    yardstick."""
    from ..runtime import _rt
    from .calls import footprint

    program = manifest["entries"][entry]["program"]
    bound, lib, p = model.entry(entry), _rt.lib(), _rt.Profile()
    index = model.entry_names.index(entry)
    for _ in range(3):
        bound.run(inputs)
    plain = [c for ins, c in zip(program["code"], calls_of_top(program, env), strict=True) if ins["op"] == "call"]
    slots = _slots(program)
    whole: list[float] = []
    yards: list[float] = []
    lib.effc_profile_enable(yard.model._ptr, 1)
    others = Others()
    blocks: list[list[float]] = [[] for _ in plain]
    for _ in range(10):
        end = time.perf_counter() + seconds / 20
        while True:
            start = time.perf_counter()
            bound.run(inputs)
            now = time.perf_counter()
            whole.append(now - start)
            if now > end:
                break
        lib.effc_profile_enable(model._ptr, 1)
        end = time.perf_counter() + seconds / 20
        while True:
            bound.run(inputs)
            if time.perf_counter() > end:
                break
        for b, slot in zip(blocks, slots, strict=True):
            _rt.check(lib.effc_profile_get(model._ptr, index, slot, ctypes.byref(p)))
            b.append(p.ns * 1e-9 / max(1, p.calls))
        lib.effc_profile_enable(model._ptr, 0)
        yards += [float(yard.block(YARD, 2).sum()) for _ in range(4)]
    between, busy = footprint(program, env), others.share()
    records = [
        Record(
            c,
            family_of(c),
            model.num_threads,
            max(between, c.bytes),
            typical(b),
            repeat_error(b),
            typical(yards),
            busy,
            f"{name}-{i}-t{model.num_threads}",
            0,
            name,
            manifest["target"],
            machine,
            kernels_digest(),
        )
        for i, (c, b) in enumerate(zip(plain, blocks, strict=True))
    ]
    return records, whole


def calls_of_top(program: Mapping[str, Any], env: Mapping[str, int]) -> list[Call | None]:
    """The calls of a program's own instructions; None for control flow."""
    out: list[Call | None] = []
    for ins in program["code"]:
        one = {**program, "code": [ins]}
        out.append(next(calls(one, env)) if ins["op"] == "call" else None)
    return out


def _slots(program: Mapping[str, Any]) -> list[int]:
    """The numbers under which the runtime's profile has the calls outside control flow."""
    from ..runtime.debug import instructions

    return [i for i, (depth, ins) in enumerate(instructions(program)) if depth == 0 and ins["op"] == "call"]


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder for the artifacts that are measured, gone afterwards."""
    return tempfile.TemporaryDirectory(prefix="effc-tune-")
