"""The driver: model -> graph -> passes -> backend -> artifact -> loaded model."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import builtin_backends  # noqa: F401  (registers them)
from .backends.registry import CompileOptions, backends, find
from .runtime import debug
from .runtime.errors import EffcError
from .sizes import parse_bytes


@dataclass(frozen=True)
class Entry:
    """One entry point: a model with example inputs, as for :func:`compile`."""

    model: Any
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    dynamic_shapes: Any = None

    def imported(self, foreseen: Callable[[Any], object] | None = None) -> Any:
        """The model as a graph with its signature. EffcError names what no frontend takes. ``foreseen`` may be called
        with the graph nearly as it will be, while it is still made."""
        return import_entry(self, foreseen)


def compile(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str = "cpu",
    dynamic_shapes: Any = None,
    num_threads: int | None = None,
    memory_budget: str | int | None = None,
    arena_budget: str | int | None = None,
    onnx_domain: str = "standard",
    disable_passes: Sequence[str] = (),
    verify: bool = False,
    selftest: bool = True,
) -> Any:
    """Compiles a model for ``target`` and returns a :class:`CompiledModel`.

    model: ``torch.nn.Module``, ``torch.export.ExportedProgram``, ``onnx.ModelProto``, a torch-dialect module of MLIR,
    or a path to a ``.pt2``, ``.onnx`` or ``.mlir`` file. ``args``, ``kwargs`` and ``dynamic_shapes`` mean what they
    mean in ``torch.export.export``; for ONNX, whose files name their dynamic dims,
    ``effc.frontend.onnx.import_model`` says what they are for. A module of MLIR has its types and needs none.
    ``num_threads``: default number of threads at run time.
    ``memory_budget`` (target cpu): bytes, or a text like ``"180MiB"``, for arena, scratch, states and weights together;
    weights that do not fit are read from the artifact while it runs (docs/memory-streaming.md). ``arena_budget``: for
    the arena alone, of each entry point: where it is larger, calls are repeated and tensors spilled to a temporary
    file, with the same bits (docs/memory-budget.md). EffcError with the least that would do where one is too small.
    ``disable_passes``: names of passes to leave out; ``memory`` leaves out memory planning: instructions run as they
    come, nothing is done in place, every buffer has bytes of its own. ``verify``: run the IR verifier after every pass.
    ``selftest``: run the model once with torch on the example inputs and keep both, within 1 MiB, for ``effc verify``.
    Raises EffcError naming op, source line, shapes and pass for whatever cannot be compiled.
    """
    entry = Entry(model, args, kwargs, dynamic_shapes)
    return compile_entries(
        {"main": entry}, target=target, num_threads=num_threads, memory_budget=memory_budget, arena_budget=arena_budget,
        onnx_domain=onnx_domain, disable_passes=disable_passes, verify=verify, selftest=selftest,
    )  # fmt: skip


def compile_entries(
    entries: Mapping[str, Entry],
    *,
    target: str = "cpu",
    num_threads: int | None = None,
    memory_budget: str | int | None = None,
    arena_budget: str | int | None = None,
    onnx_domain: str = "standard",
    disable_passes: Sequence[str] = (),
    verify: bool = False,
    selftest: bool = True,
) -> Any:
    """Compiles several entry points into one artifact; they share weights and session state. See :func:`compile`."""
    require_extras()
    backend = find(target)
    backend.require()
    budgets = {
        name: parse_bytes(value, name)
        for name, value in (("memory_budget", memory_budget), ("arena_budget", arena_budget))
        if value is not None
    }
    if budgets and backend.name != "cpu":
        raise EffcError(f"{' and '.join(budgets)}: target {backend.name} plans no memory", hint="use target='cpu'")
    if onnx_domain != "standard" and backend.name != "onnx":
        raise EffcError("onnx_domain applies to target 'onnx' alone")
    if not entries:
        raise EffcError("there is no entry point to compile")
    dump = None
    if os.environ.get("EFFC_DUMP"):
        from .dump import Dump

        options = {
            "target": target,
            "num_threads": num_threads,
            "onnx_domain": onnx_domain,
            "disable_passes": list(disable_passes),
            "verify": verify,
            "selftest": selftest,
            **budgets,
        }
        dump = Dump.begin(entries, options)
    try:
        with interruptible():
            made = backend.compile(
                entries,
                CompileOptions(target, num_threads, onnx_domain, tuple(disable_passes), verify, selftest, **budgets),
            )
    except Exception:
        if dump is not None:
            dump.failed()
        raise
    if dump is not None:
        dump.done(made.report)
    return made


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends what is inside, also where the KeyboardInterrupt falls into code that swallows it (a finalizer, a
    callback of torch's tracing), or meets a C++ compiler first, which then fails.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield  # the handler is somebody else's
        return
    pressed = False

    def press(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, press)
    try:
        yield
    except Exception:
        if pressed:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def import_entry(e: Entry, foreseen: Callable[[Any], object] | None = None) -> Any:
    """The imported graph of an entry's model."""
    model = e.model
    kind = model_kind(model)
    try:
        if kind == "onnx":
            from .frontend.onnx import import_model
        elif kind == "mlir":
            from .frontend.mlir import import_model
        else:
            from .frontend.torch import import_model
    except ImportError as e2:
        name = {"onnx": "onnx", "torch": "PyTorch", "mlir": "torch-mlir"}[kind]
        raise EffcError(f"compiling this model needs {name}: {e2}", hint=f"pip install 'effc[{kind}]'") from e2
    args = tuple(e.args) if isinstance(e.args, (list, tuple)) else (e.args,)
    more = {"foreseen": foreseen} if kind == "torch" else {}  # the others read a model once
    return import_model(model, args, dict(e.kwargs or {}), e.dynamic_shapes, **more)


def model_kind(model: Any) -> str:
    """The frontend that takes a model, by its type or its file's suffix; EffcError for a file of another kind."""
    if not isinstance(model, (str, os.PathLike)):
        if type(model).__name__ == "Module" and "mlir" in type(model).__module__:
            return "mlir"
        return "onnx" if type(model).__name__ == "ModelProto" else "torch"
    suffix = Path(model).suffix
    kind = {".onnx": "onnx", ".pt2": "torch", ".mlir": "mlir"}.get(suffix)
    if kind is None:
        raise EffcError(
            f"cannot read a model from {f'a {suffix} file' if suffix else repr(os.fspath(model))}",
            hint="pass an nn.Module, an ExportedProgram, an onnx.ModelProto, or a .pt2, .onnx or .mlir file",
        )
    if not Path(model).exists():
        raise EffcError(f"there is no file {model}")
    return kind


def compile_cpu(entries: Mapping[str, Entry], options: CompileOptions) -> Any:
    """An artifact for the target ``cpu``, loaded, or one for another machine, ready to be saved; from the model cache
    if it was made before. EffcError for what cannot be lowered."""
    from .backends import cpu
    from .backends.cpu import budgets, build
    from .backends.cpu.target import parse
    from .cost.alternatives import asker
    from .passes.manager import PassReport, Pipeline
    from .passes.pipeline import default
    from .passes.winograd import FormWinograd

    started = time.perf_counter()
    t = parse(options.target)
    cache, uncached = ModelCache.lookup(
        entries,
        t,
        (
            *options.disable_passes,
            "" if options.selftest else "no selftest",
            decided_by(options.num_threads),
            f"memory {options.memory_budget} arena {options.arena_budget}",
        ),
    )
    if cache is not None and (hit := cache.get()) is not None:
        path, folder = hit
        return _runnable(
            path,
            folder,
            t,
            options.num_threads,
            {"model_cache": "hit", "seconds": {"cache": round(time.perf_counter() - started, 3)}},
        )
    build.warm(t)
    seconds: dict[str, float] = {}
    imported = {n: e.imported(lambda g: build.foresee((x.op for x in g.nodes), t)) for n, e in entries.items()}
    seconds["frontend"] = time.perf_counter() - started
    reports: dict[str, PassReport] = {}
    graphs = {}
    for n, im in imported.items():
        reports[n] = PassReport()
        pipeline = Pipeline(
            default(
                replace(
                    find("cpu").passes(),
                    ask=asker(t.name, constant_bytes(im.graph)),
                    lookups=options.memory_budget is None,
                    sizes=options.memory_budget is None and options.arena_budget is None,
                )
            ),
            disabled=[x for x in options.disable_passes if x != MEMORY],
            verify=options.verify or bool(os.environ.get("EFFC_VERIFY")),
        )
        graphs[n] = pipeline.run(im.graph, reports[n])
    mark = time.perf_counter()
    seconds["passes"] = mark - started - seconds["frontend"]
    made = budgets.fit(
        lambda given, regions: cpu.compile_graphs(
            given,
            t,
            options.num_threads,
            lambda n: chooser(t.name, options.num_threads, given[n]),
            MEMORY not in options.disable_passes,
            options.arena_budget is not None,
            FormWinograd.name not in options.disable_passes,
            regions,
        ),
        graphs,
        t,
        budgets.Budgets(options.arena_budget, options.memory_budget, threads_of(options.num_threads)),
    )
    graphs, parts, memory = made.graphs, made.parts, made.memory
    parts.build()
    seconds["backend"] = time.perf_counter() - mark
    if debug.level() >= 3:
        debug.show(debug.kernels_text(parts.programs, parts.notes))
        debug.show(debug.decisions_text({n: [*r.decisions, *parts.decisions[n]] for n, r in reports.items()}))
    mark = time.perf_counter()
    cases, left_out = (
        selftests(entries, imported, graphs) if options.selftest else ({}, dict.fromkeys(entries, "not asked for"))
    )
    seconds["selftest"] = time.perf_counter() - mark
    folder = tempfile.TemporaryDirectory(prefix="effc-")
    path = Path(folder.name) / "model.effc"
    report = {
        "target": t.name,
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
        "entries": {
            n: {
                "passes": reports[n].as_json(),
                "kernels": kernel_counts(parts.programs[n]),
                "arena": {k: parts.programs[n]["arena"][k] for k in ("static_bytes", "lower_bound", "threads")},
                "memory": parts.memory[n],
                "decisions": [*reports[n].decisions, *parts.decisions[n]],
            }
            for n in graphs
        },
        "arena": shared_arena(parts),
        "notes": parts.notes,
        "model_cache": uncached or "stored",
        **({"memory": memory.report} if memory is not None else {}),
        "selftest": {n: {"left_out": why} for n, why in left_out.items()},
    }
    write_artifact(path, t, imported, graphs, parts, report, cases, memory)
    if cache is not None:
        cache.put(path)
    return _runnable(path, folder, t, options.num_threads)


def shared_arena(parts: Any) -> dict[str, Any]:
    """What runs that take turns hold: one arena, as large as the largest entry point's. Bytes at its largest planned
    sizes, None where planning was off and sizes vary."""
    need = {}
    for name, program in parts.programs.items():
        planned = [p["arena"] for p in parts.memory[name].get("plans", ())]
        static = program["arena"]["static_bytes"]
        need[name] = static if static is not None else max(planned, default=None)
    known = [n for n in need.values() if n is not None]
    return {"bytes": max(known) if len(known) == len(need) else None, "entries": need}


MEMORY = "memory"  # in ``disable_passes``: the planning of memory, which follows lowering


def threads_of(num_threads: int | None) -> int:
    """How many threads a model runs on at most that is compiled for so many, or for this machine."""
    named = os.environ.get("EFFC_NUM_THREADS", "")
    return num_threads or (int(named) if named.isdigit() and int(named) else len(os.sched_getaffinity(0)))


def constant_bytes(graph: Any) -> int:
    """Bytes of a graph's constants: what a run of it touches at least."""
    return sum(n.attrs["data"].nbytes for n in graph.nodes if n.op == "constant")


def chooser(target: str, num_threads: int | None, graph: Any) -> Any:
    """The cost model's choice for a graph, or None without a model for the target."""
    from .cost.model import chooser as of_model

    return of_model(target, num_threads, constant_bytes(graph))


def decided_by(num_threads: int | None) -> str:
    """What the choices of a compilation depend on besides effc and the target: threads, and a cost model of one's
    own."""
    named = os.environ.get("EFFC_COST_MODEL", "")
    stamp = os.stat(named).st_mtime_ns if named and os.path.exists(named) else 0
    return f"threads {num_threads or 0} cost model {named} {stamp}"


def selftests(
    entries: Mapping[str, Entry], imported: Mapping[str, Any], graphs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What torch makes of each entry point's example inputs, and for those where it says nothing, why."""
    from .runtime.selftest import Case

    cases, left_out = {}, {}
    for n, e in entries.items():
        if model_kind(e.model) != "torch":
            left_out[n] = "nothing here runs an ONNX or MLIR model but effc itself"
            continue
        from .frontend.torch import eager

        args = tuple(e.args) if isinstance(e.args, (list, tuple)) else (e.args,)
        try:
            cases[n] = Case(*eager.run(e.model, args, dict(e.kwargs or {}), imported[n], graphs[n]))
        except EffcError as err:
            left_out[n] = err.message
    return cases, left_out


def _runnable(
    path: Path, folder: Any, target: Any, num_threads: int | None, news: Mapping[str, Any] | None = None
) -> Any:
    """The artifact loaded, or for another machine's target, ready to be saved. ``news`` replaces entries of its
    report."""
    from .backends.cpu.target import host_features
    from .runtime.artifact import ArtifactReader
    from .runtime.loader import load

    if not set(target.isa) <= host_features():
        with ArtifactReader(path) as r:
            report = r.manifest["report"]
        return SavedModel(path, folder, {**report, **(news or {})})
    return CompiledModel(load(path, num_threads=num_threads), path, folder, news)


class ModelCache:
    """Artifacts of models compiled before, in the cache folder, by the fingerprint of model, inputs, options and effc
    itself.

    ``EFFC_MODEL_CACHE=0`` turns it off; ``EFFC_MODEL_CACHE_BYTES`` bounds it (4 GiB), the least recently used go first.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.file = folder, folder / f"{key}.effc"

    @staticmethod
    def lookup(entries: Mapping[str, Entry], target: Any, disable: Sequence[str]) -> tuple[ModelCache | None, str]:
        """The cache slot of these entry points, or None and the reason why they have none."""
        if os.environ.get("EFFC_MODEL_CACHE", "1") == "0" or os.environ.get("EFFC_SANITIZE"):
            return None, "off"
        if os.environ.get("EFFC_DUMP") or debug.level() >= 3:
            return None, "off: EFFC_DUMP and EFFC_DEBUG=3..5 show a compilation"
        from .backends.cpu.build import cache_dir, compiler_version
        from .frontend.imported import Unhashable

        if any(model_kind(e.model) == "mlir" for e in entries.values()):
            return None, "not cached: modules of MLIR have no fingerprint"
        of_torch = {n: e for n, e in entries.items() if model_kind(e.model) == "torch"}
        files: list[str] = []
        if len(of_torch) < len(entries):
            from .frontend.onnx.fingerprint import digest

            files = [
                n + digest(e.model, e.args, e.kwargs, e.dynamic_shapes) for n, e in entries.items() if n not in of_torch
            ]
        try:
            own = [
                f"{p.relative_to(PACKAGE)}/{p.stat().st_size}/{p.stat().st_mtime_ns}"
                for p in sorted(PACKAGE.rglob("*"))
                if p.suffix in (".py", ".hpp", ".cpp", ".h", ".npz")
            ]
            options = (target.name, tuple(disable), compiler_version(), own, *files)
            if of_torch:
                from .frontend.torch.fingerprint import fingerprint

                key = fingerprint(
                    [(n, e.model, tuple(e.args), e.kwargs, e.dynamic_shapes) for n, e in of_torch.items()], options
                )
            else:
                key = hashlib.sha256(repr(options).encode()).hexdigest()
        except Unhashable as e:
            return None, f"not cached: {e}"
        return ModelCache(cache_dir() / "models", key), ""

    def get(self) -> tuple[Path, Any] | None:
        """A private link to the cached artifact, or None."""
        folder = tempfile.TemporaryDirectory(prefix="effc-", dir=self.folder if self.folder.exists() else None)
        path = Path(folder.name) / "model.effc"
        try:
            os.link(self.file, path)
            os.utime(self.file)
            return path, folder
        except OSError:
            folder.cleanup()
            return None

    def put(self, path: Path) -> None:
        """Keeps a copy; a full disk or an unwritable folder only means that there is none."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _copy(path, self.file)
            self.trim(int(os.environ.get("EFFC_MODEL_CACHE_BYTES", 4 << 30)))
        except (OSError, EffcError):
            return

    def trim(self, limit: int) -> None:
        files = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in self.folder.glob("*.effc")), reverse=True)
        total = 0
        for _, size, f in files:
            total += size
            if total > limit:
                f.unlink(missing_ok=True)


PACKAGE = Path(__file__).parent


def kernel_counts(program: Mapping[str, Any]) -> dict[str, int]:
    """How many instructions run each kernel; generated ones count by what they are."""
    out: dict[str, int] = {}
    for ins in program["code"]:
        name = ins["kernel"] if ins["op"] == "call" else ins["op"]
        prefix, _, rest = name.rpartition("_")
        key = prefix if prefix in ("map", "red") and len(rest) == 16 else name
        out[key] = out.get(key, 0) + 1
        for sub in ("then", "else", "body"):
            if isinstance(ins.get(sub), dict):
                for k, v in kernel_counts(ins[sub]).items():
                    out[k] = out.get(k, 0) + v
    return out


def write_artifact(
    path: Path,
    target: Any,
    imported: Mapping[str, Any],
    graphs: Mapping[str, Any],
    parts: Any,
    report: Mapping[str, Any],
    cases: Mapping[str, Any] | None = None,
    memory: Any = None,
) -> None:
    """Writes program, weights, code, sources and selftests to ``path``."""
    from . import __version__
    from .backends.cpu.lower.finish import to_json
    from .runtime import selftest
    from .runtime.artifact import ArtifactWriter

    w = ArtifactWriter()
    w.add_code(parts.code)
    placed: dict[int, tuple[int, int]] = {}
    if memory is not None:
        for index, chunk in memory.segments.items():
            placed[index] = w.add_streamed(parts.constants[index], chunk)

    def place(index: int) -> tuple[int, int]:
        if index not in placed:
            placed[index] = w.add_weight(parts.constants[index])
        return placed[index]

    def finish(program: dict[str, Any]) -> None:
        for v in program["values"]:
            if v["k"] == "const":
                v["seg"], v["offset"] = place(v.pop("data"))
        for ins in program["code"]:
            for sub in ("then", "else", "cond", "body"):
                if isinstance(ins.get(sub), dict):
                    finish(ins[sub])
            ins.pop("inplace", None)
            ins.pop("effect", None)

    states: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    for name, program in parts.programs.items():
        finish(program)
        g, im = graphs[name], imported[name]
        for s, state in g.states.items():
            record: dict[str, Any] = {"d": state.type.dtype.value, "shape": list(state.type.shape)}
            if state.init is not None and state.init.any():
                record["seg"], record["offset"] = w.add_weight(state.init)
            if s in states and (states[s]["d"], states[s]["shape"]) != (record["d"], record["shape"]):
                raise EffcError(f"entry points disagree about the type of state {s}")
            states.setdefault(s, record)

        def signature(names: Sequence[str], types: Sequence[Any]) -> list[dict[str, Any]]:
            return [
                {"name": n, "dtype": t.dtype.value, "shape": list(t.shape)} for n, t in zip(names, types, strict=True)
            ]

        entries[name] = {
            "inputs": signature(im.input_names, [n.types[0] for n in g.inputs]),
            "outputs": signature(im.output_names, [v.type for v in g.outputs]),
            "in_tree": im.in_tree,
            "out_tree": im.out_tree,
            "program": program,
        }
    for file, text in parts.sources.items():
        w.add_file(f"sources/{file}", text)
    for name, g in graphs.items():
        w.add_file(f"graph/{quote(name, safe='')}.txt", str(g))  # a name may hold any character
    report = {**report, "selftest": {**report.get("selftest", {}), **selftest.add(w, cases or {})}}
    manifest = {
        "effc": __version__,
        "target": target.name,
        "isa": list(target.isa),
        "states": states,
        "entries": entries,
        "report": report,
        **({"memory": memory.manifest} if memory is not None and memory.manifest else {}),
    }
    w.save(path, to_json(portable(manifest)))


def portable(x: Any) -> Any:
    """A copy in which source lines name files without this machine's folders: relative to the package or working
    directory they lie in, else by the last two parts of their path."""
    if isinstance(x, dict):
        return {k: _short(v) if k == "loc" and isinstance(v, str) else portable(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [portable(v) for v in x]
    return x


def _short(loc: str) -> str:
    file, colon, rest = loc.partition(":")
    if not file.startswith("/"):
        return loc
    for folder in sorted(
        [*(os.path.join(p, "") for p in sys.path if p), os.path.join(os.getcwd(), "")], key=len, reverse=True
    ):
        if file.startswith(folder):
            return file[len(folder) :] + colon + rest
    return "/".join(file.split("/")[-2:]) + colon + rest


class SavedModel:
    """An artifact for another machine: it can be saved and inspected, not run here."""

    def __init__(self, path: Path, folder: Any, report: Mapping[str, Any]) -> None:
        self._path, self._folder, self.report = path, folder, dict(report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact to ``path``: all of it or nothing."""
        _copy(self._path, path)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise EffcError(
            f"this machine cannot run {self.report['target']}: it lacks instructions that the target needs",
            hint="save the artifact and load it on such a machine, or compile with target='cpu'",
        )


class CompiledModel:
    """A compiled model: call it as the model itself. The artifact behind it is what :meth:`save` writes and
    ``effc.load`` reads."""

    def __init__(self, loaded: Any, path: Path, folder: Any, news: Mapping[str, Any] | None = None) -> None:
        self._loaded, self._path, self._folder, self._news = loaded, path, folder, dict(news or {})
        self._finalizer = weakref.finalize(self, folder.cleanup)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output structure; torch tensors for torch inputs, numpy for numpy."""
        return self._loaded(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_loaded":
            raise AttributeError(name)
        return getattr(self._loaded, name)

    @property
    def report(self) -> Any:
        """What was decided and why; ``model_cache`` says whether the artifact came from the cache."""
        return {**self._loaded.report, **self._news}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact to ``path``: all of it or nothing."""
        _copy(self._path, path)


def _copy(source: Path, path: str | os.PathLike[str]) -> None:
    import shutil

    from .runtime.artifact import write_file_atomically

    def write(f: Any) -> None:
        with open(source, "rb") as src:
            shutil.copyfileobj(src, f, 1 << 22)

    write_file_atomically(path, write)


def require_extras() -> None:
    """Compiling needs what loading does not; EffcError says how to get it."""
    for name in ("ml_dtypes", "scipy"):
        if importlib.util.find_spec(name) is None:
            raise EffcError(
                f"compiling needs {name}, which is not installed",
                hint="pip install 'effc[torch]'; loading an artifact needs numpy alone",
            )


def targets() -> list[dict[str, Any]]:
    """The targets of this version: name, whether this machine can run it, and what is missing if not."""
    require_extras()
    return [line for backend in backends().values() for line in backend.listed()]


__all__ = ["CompiledModel", "Entry", "compile", "compile_entries", "targets"]
