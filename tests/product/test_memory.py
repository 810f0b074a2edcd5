"""Memory of compiled models: planned as promised, allocated as planned, and without effect on any result."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import effc
from bench.dynamic import cases, compiled, fixed
from bench.lowered import lowered
from effc.backends import cpu
from effc.backends.cpu.lower import concat
from effc.backends.cpu.lower import memory as lowering
from effc.conformance.ops import Runner
from effc.passes.memory.program import arena as arena_of
from effc.passes.memory.program import from_program, size
from effc.passes.memory.schedule import lay_out
from effc.runtime import build_rt, memory
from effc.runtime.artifact import ArtifactReader

from ..conformance.random_graphs import Plan, inputs, plans
from ..models import zoo
from .memory_models import MODELS, deep, encoder, large_unet, mobile, strided
from .test_cli import effc as tool

SOURCE = Path(__file__).parent / "steady.c"
LIGHT = ["crepe", "mtcnn_onet", "mtcnn_pnet", "mobilenet_v2", "resemblyzer"]
SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in ("minilm", "efficientnet_lite0", "mtcnn_rnet", "smollm2")]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with torch.no_grad():
        yield


def leaves(x: Any) -> list[torch.Tensor]:
    return list(torch.utils._pytree.tree_leaves(x))


def made(model: Any, args: Any, dynamic: Any = None, **more: Any) -> Any:
    return effc.compile(copy.deepcopy(model), args, dynamic_shapes=dynamic, selftest=False, **more)


def saved(path: Path, *args: Any, **more: Any) -> tuple[Path, dict[str, Any]]:
    made(*args, **more).save(path)
    with ArtifactReader(path) as r:
        return path, r.manifest


def poisoned(monkeypatch: pytest.MonkeyPatch, path: Path) -> Any:
    """A load whose runs find NaN wherever they have not written."""
    monkeypatch.setenv("EFFC_POISON", "1")
    return effc.load(path)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_planning_changes_no_bit(name: str, dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned and poisoned against every buffer apart: equal to the bit, and right."""
    model, args, shapes = MODELS[name]()
    shapes = shapes if dynamic else None
    apart = made(model, args, shapes, disable_passes=["memory"])
    planned, _ = saved(tmp_path / "m.effc", model, args, shapes)
    loaded = poisoned(monkeypatch, planned)
    eager = copy.deepcopy(model)
    for _ in range(3):
        want, a, b = leaves(eager(*args)), leaves(apart(*args)), leaves(loaded(*args))
        for w, x, y in zip(want, a, b, strict=True):
            assert torch.equal(x, y)
            assert float((y - w).abs().max()) <= 1e-4 * float(w.abs().max())
    assert apart.report["entries"]["main"]["memory"] == {"planning": "off"}
    assert loaded.arena(*args)[0] < apart.arena(*args)[0]
    assert loaded.arena(*args)[1] <= loaded.arena(*args)[0] <= 1.05 * loaded.arena(*args)[1]


@pytest.mark.parametrize("name", [*LIGHT, *SLOW])
def test_real_models_poisoned_and_unplanned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real weights, all sizes of the zoo: the same bits planned, poisoned, and with each buffer apart."""
    model, args, dynamic, sizes = zoo.load(name)
    path, _ = saved(tmp_path / "m.effc", model, args, dynamic)
    plain, apart = effc.load(path), made(model, args, dynamic, disable_passes=["memory"])
    bad = poisoned(monkeypatch, path)
    for x in [*sizes[:2], args]:
        want = leaves(plain(*x))
        assert all(torch.equal(a, b) for a, b in zip(want, leaves(bad(*x)), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(want, leaves(apart(*x)), strict=True))


def test_concatenations_are_gone(tmp_path: Path) -> None:
    """DenseNet's joins and half of a U-Net's cost neither a copy nor room."""
    for name, least in (("dense", 10), ("unet", 2), ("inception", 4)):
        model, args, _ = MODELS[name]()
        m = made(model, args, num_threads=2)
        concat = m.report["entries"]["main"]["memory"]["concat"]
        assert least <= concat["in_place"] <= concat["operands"], (name, concat)
        if name == "dense":
            assert "effc_concat" not in m.report["entries"]["main"]["kernels"]


def test_copies_that_are_not_tried_gain_nothing() -> None:
    """More copies of a concatenation are not tried where as much is live beside it: with each of them tried, arenas are
    the same. A chain of layers alike skips most of them."""
    skipped = 0
    for make in (MODELS["unet"], MODELS["dense"], MODELS["inception"], lambda: tuple(zoo.load("minilm")[:3])):
        model, args, shapes = make()
        found, tried = [], []
        for besides in (lowering._Tried.besides, lambda *_: 0):
            rewrite = mock.Mock(wraps=concat.rewrite)
            with mock.patch.object(lowering._Tried, "besides", besides), mock.patch.object(concat, "rewrite", rewrite):
                found.append(compiled(model, args, shapes).manifest["report"]["entries"]["main"]["memory"])
            tried.append(rewrite.call_count)
        few, every = ([p["arena"] for p in m["plans"]] for m in found)
        assert few == every and found[0]["concat"] == found[1]["concat"]
        skipped += tried[1] - tried[0]
    assert skipped >= 10


@pytest.mark.parametrize(("name", "sizes"), [("mtcnn_rnet", [(1,), (3,)]), ("nudenet", [(1, 320, 320)])])
def test_real_models_of_any_size_take_no_more_than_their_own_compilation(name: str, sizes: Any) -> None:
    """Few tiles of Winograd's algorithm need the room of few, and at a size that the planner did not sample the runtime
    finds an order of its own."""
    case = cases()[name]
    model, args, shapes = case.load()
    anysize = compiled(model, args, shapes)
    for n in sizes:
        x = case.at(*n)
        a, b = anysize.at(x), compiled(model, x, fixed(model, x)).at(x)
        assert a.arena <= 1.05 * b.arena and a.arena <= 1.02 * a.bound, (n, a.arena, a.bound, b.arena)


def test_parts_that_are_made_early_stay_copies() -> None:
    """A skip made inside its join would keep the whole of it alive from the encoder on: the other half is made in
    place, and the arena is smaller than with both or none."""
    model, args, shapes = MODELS["unet"]()
    memory = made(model, args, shapes).report["entries"]["main"]["memory"]
    assert memory["concat"]["in_place"] == 3, memory["concat"]
    largest = memory["plans"][0]
    assert largest["proven"] and largest["arena"] < 0.9 * (2 << 30), (
        "of 2 GiB with the outer join's two parts as copies"
    )


def test_order_is_chosen(tmp_path: Path) -> None:
    model, args, shapes = MODELS["wide"]()
    for dynamic in (None, shapes):
        for k, p in enumerate(made(model, args, dynamic).report["entries"]["main"]["memory"]["plans"]):
            assert p["proven"] and p["arena"] == p["bound"] == p["peak"]
            assert p["saved_by_order"] > 0.25 * p["given"] or k > 0, "the first is the largest size"
            assert p["given"] - p["saved_by_order"] - p["saved_by_rewriting"] == p["arena"]


def test_planning_takes_little_of_a_compilation() -> None:
    """The share itself is measured in bench.memory; here, that the report says it and that it is no second."""
    model, args, dynamic, _ = zoo.load("resemblyzer")
    report = made(model, args, dynamic).report
    assert 0 < report["entries"]["main"]["memory"]["seconds"] < 5


def sweep(bounds: dict[str, tuple[int, int]], count: int, limit: Callable[[dict[str, int]], bool]) -> Any:
    rng = np.random.default_rng(0)
    for _ in range(count):
        env = {k: int(np.exp(rng.uniform(np.log(a), np.log(b + 1)))) for k, (a, b) in bounds.items()}
        env = {k: min(max(v, bounds[k][0]), bounds[k][1]) for k, v in env.items()}
        if limit(env):
            yield env


HEAVY = [pytest.param(n, marks=pytest.mark.slow) for n in ("minilm", "mobilenet_v2")]


@pytest.mark.parametrize("name", [*MODELS, "mtcnn_pnet", "resemblyzer", *HEAVY])
def test_any_size_is_laid_out_as_if_it_had_been_planned(name: str, tmp_path: Path) -> None:
    """The runtime's arena against the planner's for the same program at that size, and its own bound."""
    model, args, dynamic, *_ = MODELS[name]() if name in MODELS else zoo.load(name)
    path, manifest = saved(tmp_path / "m.effc", model, args, dynamic)
    program = manifest["entries"]["main"]["program"]
    threads = program["arena"]["threads"]
    loaded = effc.load(path, num_threads=threads)
    bounds = {s["name"]: (max(s["lo"], 1), min(s["hi"] or 512, 512)) for s in program["symbols"] if s["from"]}
    seen = 0
    worst = 1.0
    for env in itertools.islice(sweep(bounds, 60, lambda e: bool(np.prod(list(e.values())) < 1 << 24)), 40):
        try:
            m = memory.read(loaded, manifest, "main", env)
        except effc.EffcError:
            continue  # sizes that do not go together
        p = from_program(program, sizes=env, threads=threads, these=True)
        best = lay_out(p, p.given).arena
        assert m.arena >= best >= m.bound or m.arena == best, env
        assert arena_of(program, env, threads) >= best
        worst = max(worst, m.arena / max(best, 1))
        assert m.arena <= 1.05 * best, env
        seen += 1
        live = sorted(m.blocks, key=lambda b: b.first)
        for a, b in itertools.combinations(live, 2):
            apart = a.last < b.first or b.last < a.first
            assert apart or a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset
    assert seen >= 10


@pytest.mark.parametrize("name", ["unet", "wide", "inception"])
def test_any_size_takes_no_more_than_its_own_compilation(name: str, tmp_path: Path) -> None:
    """Against artifacts compiled for one size each, which may choose another order and other rewrites."""
    model, args, dynamic = MODELS[name]()
    anysize = made(model, args, dynamic, num_threads=2)
    shape = args[0].shape
    for scale in ((1, 1), (2, 1), (1, 2)):
        x = torch.randn(shape[0] * scale[0], *shape[1:-2], shape[-2] * scale[1], shape[-1])
        if name == "wide":
            x = torch.randn(shape[0] // scale[0], shape[1] // scale[1])
        own = made(model, (x,), num_threads=2)
        a, b = anysize.arena(x)[0], own.report["entries"]["main"]["arena"]["static_bytes"]
        assert own.arena(x)[0] == b
        assert a <= 1.05 * b, (tuple(x.shape), a, b)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_any_number_take_no_more_than_their_own_compilation(threads: int) -> None:
    """Few rows go through a chain's nodes and many through the chain; where one of the two has none, what they would
    have in common is no reason to copy results. As lowered, no kernel compiled."""
    model, args, dynamic = encoder()
    program = lowered(copy.deepcopy(model), args, dynamic, threads)
    kernels = [ins.get("kernel", "") for ins in program["code"]]
    assert sum(k.startswith("chain_") for k in kernels) == 3, "the chains that many rows take"
    assert sum(k.startswith("effc_matmul") for k in kernels) > 4 * 2, "the products of few"
    assert "effc_concat" not in kernels and "effc_copy" not in kernels
    names = [s["name"] for s in program["symbols"] if s["from"]]
    for sizes in ((64, 512), (3, 37), (1, 1)):
        own = lowered(copy.deepcopy(model), (torch.empty(*sizes, 32),), None, threads)["arena"]["static_bytes"]
        any_size = arena_of(program, dict(zip(names, sizes, strict=True)), threads)
        assert any_size <= 1.05 * own, (sizes, any_size, own)


@pytest.mark.parametrize("threads", [1, 2])
def test_images_of_any_size_take_no_more_than_their_own_compilation(threads: int) -> None:
    """Chains of convolutions whose buffers follow from the sizes of a run."""
    model, args, dynamic = mobile()
    m = made(model, args, dynamic, num_threads=threads)
    assert m.report["entries"]["main"]["kernels"]["effc_conv_chain_f32"] == 4
    for n, h, w in ((1, 33, 47), (2, 224, 224), (3, 65, 96), (1, 224, 224), (6, 401, 210)):
        x = torch.empty(n, 3, h, w)
        own = lowered(copy.deepcopy(model), (x,), None, threads)["arena"]["static_bytes"]
        assert m.arena(x)[0] <= 1.05 * own, (n, h, w, m.arena(x), own)


def test_many_rows_and_few_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poisoned runs on both sides of the border between them: right, and the bits of each buffer apart."""
    model, args, dynamic = encoder()
    apart = made(model, args, dynamic, disable_passes=["memory"])
    loaded = poisoned(monkeypatch, saved(tmp_path / "m.effc", model, args, dynamic)[0])
    for b, n in ((1, 3), (40, 512), (2, 100)):
        x = torch.randn(b, n, 32)
        want, got = model(x), loaded(x)
        assert torch.equal(got, apart(x))
        assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())


def test_few_pixels_are_summed_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions that Winograd's algorithm takes for images of any size. On both sides of the border poisoned runs
    are right, and where a program compiled for the size takes as many by that algorithm, arenas are at most 1.05 times
    its own."""
    model, args, dynamic = strided()
    path, manifest = saved(tmp_path / "m.effc", model, args, dynamic)
    program = manifest["entries"]["main"]["program"]
    loaded = poisoned(monkeypatch, path)
    wino = [k for k, i in enumerate(program["code"]) if i.get("kernel") == "effc_conv_winograd_f32"]
    assert len(wino) == 3 and "effc_concat" not in {i.get("kernel") for i in program["code"]}
    names = sorted((s for s in program["symbols"] if s["from"]), key=lambda s: s["from"]["dim"])
    ran, alike = set(), 0
    for n, h, w in ((1, 2, 2), (1, 3, 5), (5, 4, 4), (1, 9, 7), (1, 17, 30), (2, 65, 31), (3, 128, 96)):
        x = torch.randn(n, 3, h, w)
        env = dict(zip((s["name"] for s in names), (n, h, w), strict=True))
        works = tuple(size(program["code"][k]["thread_scratch"], env) > 0 for k in wino)
        ran.add(works)
        fixed = lowered(copy.deepcopy(model), (x,), None, 2)
        own = fixed["arena"]["static_bytes"]
        same = sum(i.get("kernel") == "effc_conv_winograd_f32" for i in fixed["code"]) == sum(works)
        alike += same
        arena = memory.read(effc.load(path, num_threads=2), manifest, "main", env).arena
        if same:
            assert arena <= max(1.05 * own, own + (4 << 10)), (n, h, w, works)  # few kB: tables of another blocking
        want = model(x)
        assert float((loaded(x) - want).abs().max()) <= 1e-4 * float(want.abs().max()), (n, h, w, works)
    assert alike >= 5 and {(False,) * 3, (True,) * 3} < ran, "none, all, and some of them by Winograd's algorithm"


def test_shared_scratch_is_bounded_by_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Winograd's algorithm with an input that is transformed once for all threads: one tile takes the scratch of
    one, and images with fewer tiles than a block come out right."""
    model, args, dynamic = deep()
    path, manifest = saved(tmp_path / "m.effc", model, args, dynamic)
    program = manifest["entries"]["main"]["program"]
    shared = [ins for ins in program["code"] if ins.get("kernel") == "effc_conv_winograd_f32" and ins["attrs"][26]]
    assert len(shared) == 2
    names = [s["name"] for s in program["symbols"] if s["from"]]
    for ins in shared:
        for key in ("scratch", "thread_scratch"):
            one, many, more = (
                size(ins[key], dict(zip(names, sizes, strict=True)))
                for sizes in ((1, 16, 16), (3, 96, 96), (3, 500, 500))
            )
            # Tiles are divided evenly among as few blocks of at most 96 as do.
            assert 30 * one < many < more <= 96 * one and 60 * one < more, key
    loaded = poisoned(monkeypatch, path)
    for shape in ((1, 3, 16, 16), (1, 3, 9, 13), (3, 3, 65, 140)):
        x = torch.randn(shape)
        want = model(x)
        assert float((loaded(x) - want).abs().max()) <= 1e-4 * float(want.abs().max())


def test_other_numbers_of_threads_are_laid_out_anew(tmp_path: Path) -> None:
    model, args, _ = MODELS["unet"]()
    want = model(*args)
    path, _ = saved(tmp_path / "m.effc", model, args, num_threads=2)
    arenas = []
    for threads in (1, 2, 5):
        m = effc.load(path, num_threads=threads)
        torch.testing.assert_close(m(*args), want, rtol=1e-4, atol=1e-5)
        total, bound = m.arena(*args)
        assert total <= 1.05 * bound
        arenas.append(total)
    assert arenas[0] <= arenas[1] <= arenas[2]


def test_decisions_point_at_their_calls(tmp_path: Path) -> None:
    """The planner moves instructions; what the cost model said of them moves along."""
    model, args, _ = MODELS["inception"]()
    _, manifest = saved(tmp_path / "m.effc", model, args)
    code = manifest["entries"]["main"]["program"]["code"]
    decisions = [d for d in manifest["report"]["entries"]["main"]["decisions"] if "at" in d]
    assert manifest["report"]["entries"]["main"]["memory"]["moved"] > 0
    for d in decisions:
        assert code[d["at"]]["kernel"] == d["kernel"] and code[d["at"]]["name"] == d["name"]


# Random graphs --------------------------------------------------------------------------------------------------------

COMMON: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def both_ways(plan: Plan) -> None:
    """Planned and poisoned, and each buffer apart: the same bits."""
    real = cpu.compile_graphs

    def apart(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **{**kwargs, "memory": False})

    os.environ["EFFC_POISON"] = "1"
    try:
        planned = Runner(plan.graph, "cpu", passes=True)
        cpu.compile_graphs = apart
        try:
            unplanned = Runner(plan.graph, "cpu", passes=True)
        finally:
            cpu.compile_graphs = real
        for k, env in enumerate(plan.sizes):
            arrays = inputs(plan.graph, env, k)
            a = planned.run([x.copy() for x in arrays])
            b = unplanned.run([x.copy() for x in arrays])
            for x, y in zip(a, b, strict=True):
                assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
    finally:
        del os.environ["EFFC_POISON"]


@settings(max_examples=6, derandomize=True, **COMMON)
@given(plans(steps=20))
def test_random_graphs(plan: Plan) -> None:
    both_ways(plan)


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, **COMMON)
@given(plans(steps=24))
def test_many_random_graphs(plan: Plan) -> None:
    both_ways(plan)


# What the process allocates -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[list[int]], list[int]]]:
    """Runs an artifact in a C program: per run (mallocs, mmaps, the runtime's count, KiB grown); arenas per set, and
    the bytes of those that were made."""
    exe, lib = tmp_path_factory.mktemp("steady") / "steady", build_rt.library().parent
    flags = ["-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{build_rt.include_dir()}"]
    link = ["-o", str(exe), f"-L{lib}", "-leffc_rt", f"-Wl,-rpath,{lib}", "-ldl"]
    compiler = [c for c in build_rt.compiler() if c]
    done = subprocess.run(
        [*compiler, "-x", "c", *flags, str(SOURCE), "-x", "none", *link], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    def run(artifact: Path, runs: int, *shapes: str) -> tuple[list[list[int]], list[int]]:
        done = subprocess.run(
            [exe, artifact, str(runs), *shapes], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        return (
            [[int(x) for x in rest] for what, *rest in lines if what == "run"],
            [int(rest[0]) for what, *rest in lines if what in ("arena", "arenas")],
        )

    return run


SHAPES = {
    "unet": ("2x3x24x32", "/", "1x3x40x8"),
    "dense": ("2x3x17x16", "/", "1x3x30x16"),
    "looping": ("7x9", "/", "30x9"),
    "wide": ("40x60", "/", "100x7"),
    "state": ("6x11", "/", "6x5"),
    "minilm": ("8x128", "8x128", "/", "2x17", "2x17"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_warm_run_allocates_nothing(name: str, steady: Any, tmp_path: Path) -> None:
    """Two sizes in turn: after the first run of each no malloc, no operator new, no mmap."""
    model, args, dynamic, *_ = MODELS[name]() if name in MODELS else zoo.load(name)
    path, _ = saved(tmp_path / "m.effc", model, args, dynamic)
    runs, _ = steady(path, 8, *SHAPES[name])
    assert len(runs) == 8
    for mallocs, mmaps, counted, _ in runs[4:]:
        assert (mallocs, mmaps, counted) == (0, 0, 0), runs


def anonymous(steady: Any, path: Path, *shapes: str) -> None:
    """The first run makes the process's anonymous memory grow by the plan, within 5 %, and no later one does."""
    runs, (arena, held) = steady(path, 3, *shapes)
    assert held == arena
    assert arena >= 64 << 20, f"a plan of {arena} bytes shows nothing"
    grown = runs[0][3] * 1024
    assert abs(grown - arena) <= 0.05 * arena, f"planned {arena:,}, grown by {grown:,}"
    assert all(kib < 0.01 * arena / 1024 for *_, kib in runs[1:])


def test_the_process_grows_by_the_plan(steady: Any, tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "m.effc", *large_unet())
    anonymous(steady, path, "1x3x256x640")


@pytest.mark.slow
def test_minilm_grows_by_the_plan(steady: Any, tmp_path: Path) -> None:
    model, args, dynamic, _ = zoo.load("minilm")
    path, _ = saved(tmp_path / "m.effc", model, args, dynamic)
    anonymous(steady, path, "16x512", "16x512")


@pytest.mark.slow
def test_resnet_grows_by_the_plan(steady: Any, tmp_path: Path) -> None:
    from bench.dense import resnet50

    path, _ = saved(tmp_path / "m.effc", resnet50(), (torch.randn(16, 3, 224, 224),))
    anonymous(steady, path, "16x3x224x224")


class Grows(torch.nn.Module):
    """Several large temporaries."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.cumsum(0), x.cumsum(1)
        return (a.softmax(1) @ b.T).sum(1)


def test_entry_points_have_one_arena(steady: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alternating runs of two entry points give, poisoned, the bits that artifacts of their own give, and make the
    process grow by the larger of their plans, not by both."""
    torch.manual_seed(0)
    inputs = {"large": torch.randn(512, 24_000), "small": torch.randn(384, 22_000)}
    entries = {n: effc.Entry(Grows(), (x,)) for n, x in inputs.items()}
    compiled = effc.compile_entries(entries, selftest=False)
    compiled.save(tmp_path / "m.effc")
    own = {n: made(Grows(), (x,)) for n, x in inputs.items()}
    need = {n: m.arena(inputs[n])[0] for n, m in own.items()}
    assert compiled.report["arena"] == {"bytes": max(need.values()), "entries": need}
    loaded = poisoned(monkeypatch, tmp_path / "m.effc")
    for name in ("small", "large", "small", "large", "large"):
        assert torch.equal(loaded.entry(name)(inputs[name]), own[name](inputs[name]))
    assert loaded.arenas == (max(need.values()), 1)
    monkeypatch.delenv("EFFC_POISON")
    shapes = [x for n in ("small", "large") for x in ("/", f"@{n}", "x".join(map(str, inputs[n].shape)))][1:]
    runs, (small, large, held) = steady(tmp_path / "m.effc", 6, *shapes)
    assert (small, large, held) == (need["small"], need["large"], need["large"])
    assert small > 64 << 20 and small + large > 1.5 * large
    grown = 1024 * sum(kib for *_, kib in runs)
    assert abs(grown - large) <= 0.05 * large, f"planned {small:,} and {large:,}, grown by {grown:,}"
    assert all(run[:3] == [0, 0, 0] for run in runs[2:]), runs
    out = tool("inspect", tmp_path / "m.effc", "--memory", "--entry", "small").stdout
    assert f"one arena for entry points that take turns, {large:,} bytes (large {large:,}, small {small:,}" in out


# Seen -----------------------------------------------------------------------------------------------------------------


def test_inspect_shows_the_peak_and_draws_it(tmp_path: Path) -> None:
    model, args, dynamic = MODELS["unet"]()
    path, manifest = saved(tmp_path / "m.effc", model, args, dynamic)
    symbol = manifest["entries"]["main"]["program"]["symbols"]
    by_name = [f"{s['name']}={4 if i else 2}" for i, s in enumerate(symbol)]
    out = tool("inspect", path, "--memory", *[x for n in by_name for x in ("--size", n)]).stdout
    m = memory.read(effc.load(path), manifest, "main", {n.split("=")[0]: int(n.split("=")[1]) for n in by_name})
    assert f"arena {m.arena:,} bytes" in out and f"peak {max(m.live()):,} bytes at instruction {m.peak()}" in out
    worst = m.culprits()[0]
    assert worst.label() in out and "memory_models.py" in worst.loc
    assert "planned at" in out and "order saved" in out and "proven" in out
    tool("inspect", path, "--picture", tmp_path / "m.svg", *[x for n in by_name for x in ("--size", n)])
    root = ET.parse(tmp_path / "m.svg").getroot()
    ns = "{http://www.w3.org/2000/svg}"
    boxes = [r for r in root.iter(f"{ns}rect") if r.find(f"{ns}title") is not None]
    assert len(boxes) == len(m.blocks)
    text = " ".join(t.text or "" for t in root.iter(f"{ns}text"))
    assert f"peak {max(m.live()):,} bytes" in text and worst.label() in text
    tops = [float(r.get("y", 0)) for r in boxes]
    assert min(tops) >= memory.TOP - 0.01, "all of it inside the frame"
    assert max(float(r.get("y", 0)) + float(r.get("height", 0)) for r in boxes) <= memory.TOP + memory.HEIGHT + 0.01


def test_a_model_without_an_arena(tmp_path: Path) -> None:
    path, manifest = saved(tmp_path / "m.effc", torch.nn.Identity(), (torch.ones(3),))
    m = memory.read(effc.load(path), manifest, "main", {})
    assert m.arena == 0 and "arena 0 bytes" in memory.text(m) and ET.fromstring(memory.svg(m)) is not None
