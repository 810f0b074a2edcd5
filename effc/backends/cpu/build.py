"""Compiling kernels: library units and generated code to objects, objects to one shared object; all cached by content.

Library units come with effc as objects (``prebuilt.py``). What is compiled here lives in ``$EFFC_CACHE_DIR`` (else
``~/.cache/effc``) under the hash of what it was made from: source text, headers, flags, compiler version. Nothing in
the cache is needed to run an artifact, and removing it is always safe.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from ...runtime.errors import EffcError
from .library import INCLUDE, KERNELS, MOVEMENT, ROUNDED, unit_of
from .target import EXTRA, GROUPS, CpuTarget, macro

FLAGS = (
    "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fno-exceptions", "-fno-rtti",
    "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections", "-w",
)  # fmt: skip
LIBRARY = ("-O3",)
# What data movement needs of -O3 is its vectoriser, and generated loops need its loop peeling, too; the rest is half of
# the time to compile them and makes none of them faster.
MOVING = ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic")
GENERATED = (*MOVING, "-fpeel-loops")
# Two objects may hold the same generated kernel (made by two compilations at the same time): either will do.
LINK = ("-Wl,--gc-sections", "-Wl,-z,muldefs", "-Wl,--build-id=none", "-Wl,-s", "-Wl,-O1", "-lm")
GENERATED_HEADERS = ("loop.hpp", "row_chain.hpp")
PREAMBLE = "".join(f'#include "{h}"\n' for h in GENERATED_HEADERS)
PER_UNIT = 24  # generated kernels compiled together
COMMON = ("copy.cpp", "gemm_f32.cpp")  # units that nearly every artifact links
# Ops whose presence in a graph as imported tells a unit that its artifact will most likely link.
LIKELY = {
    "attention": "attention_f32.cpp", "conv": "conv_f32.cpp", "gather": "index.cpp", "gru_layer": "rnn_f32.cpp",
    "index": "index.cpp", "lstm_layer": "rnn_f32.cpp", "take": "index.cpp",
}  # fmt: skip


def cache_dir() -> Path:
    """Where compiled objects are kept."""
    base = os.environ.get("EFFC_CACHE_DIR")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "effc"


@lru_cache(maxsize=1)
def compiler() -> tuple[str, ...]:
    """The C++ compiler's command: $CXX, g++, clang++, or zig's; EffcError when there is none."""
    named = os.environ.get("CXX")
    for c in ([named] if named else []) + ["g++", "clang++"]:
        if shutil.which(c.split()[0]):
            return tuple(c.split())
    try:
        import ziglang  # noqa: F401

        return (sys.executable, "-m", "ziglang", "c++")
    except ImportError:
        raise EffcError(
            "no C++ compiler found: target cpu compiles its kernels once",
            hint="install g++ or clang++, or pip install ziglang, or set $CXX",
        ) from None


@lru_cache(maxsize=1)
def compiler_version() -> str:
    return subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]


def digest(*parts: str | bytes) -> str:
    h = hashlib.blake2b(digest_size=16)
    for p in parts:
        h.update(p.encode() if isinstance(p, str) else p)
        h.update(b"\0")
    return h.hexdigest()


@lru_cache(maxsize=256)
def _file_digest(path: Path, stamp: tuple[int, int]) -> str:
    return digest(path.read_bytes())


_reads: dict[Path, tuple[tuple[int, int], set[str]]] = {}


def _includes(path: Path, seen: set[Path] | None = None) -> set[Path]:
    """The headers of this project that a source includes, directly or not."""
    seen = set() if seen is None else seen
    st = path.stat()
    stamp = (st.st_mtime_ns, st.st_size)
    if path not in _reads or _reads[path][0] != stamp:
        names = {
            line.split('"')[1]
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.startswith('#include "')
        }
        _reads[path] = (stamp, names)
    for name in _reads[path][1]:
        for folder in (KERNELS, INCLUDE):
            p = folder / name
            if p.exists() and p not in seen:
                seen.add(p)
                _includes(p, seen)
    return seen


def headers(path: Path) -> set[Path]:
    """The headers of this project that a source needs."""
    return _includes(path)


def source_key(path: Path) -> str:
    """A hash of a source and of this project's headers that it includes."""
    parts = []
    for p in sorted({path, *_includes(path)}):
        st = p.stat()
        parts.append(p.name + _file_digest(p, (st.st_mtime_ns, st.st_size)))
    return digest(*parts)


def level_of(source: str) -> tuple[str, ...]:
    """The optimisation level of a library unit."""
    level = MOVING if source in MOVEMENT else LIBRARY
    return (*level, "-ffp-contract=off") if source in ROUNDED else level


def flags_for(target: CpuTarget, level: Sequence[str] = LIBRARY, sanitize: bool = False) -> tuple[str, ...]:
    """The compiler's flags for library units, or with ``GENERATED`` for generated code."""
    extra = ("-fsanitize=address,undefined", "-g1", "-O1") if sanitize else ()
    return (*level, *FLAGS, *target.flags, f"-I{KERNELS}", f"-I{INCLUDE}", *extra)


def _flag_key(target: CpuTarget, level: Sequence[str] = LIBRARY) -> str:
    """Flags that change the code, without this machine's include paths."""
    return digest(compiler_version(), *level, *FLAGS, *target.flags, os.environ.get("EFFC_SANITIZE", ""))


def _run(command: Sequence[str], what: str) -> None:
    # What is preloaded into this process (a sanitizer's runtime, an allocator) is not for the compiler.
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        errors = "\n".join(line for line in done.stderr.splitlines() if "error" in line)[:2000] or done.stderr[-2000:]
        raise EffcError(
            f"compiling {what} failed:\n{errors}", hint="EFFC_DEBUG=4 shows the sources; please report this as a bug"
        )


def _compile(source: Path, out: Path, target: CpuTarget, what: str, level: Sequence[str] = LIBRARY) -> None:
    """Compiles to ``out`` by way of a temporary name, so that a half-written object never lies under the final one."""
    fd, tmp = tempfile.mkstemp(suffix=".o", dir=out.parent)
    os.close(fd)
    try:
        sanitize = bool(os.environ.get("EFFC_SANITIZE"))
        _run([*compiler(), *flags_for(target, level, sanitize), "-c", str(source), "-o", tmp], what)
        os.replace(tmp, out)
    finally:
        if os.path.exists(tmp):
            os.unlink(tmp)


def unit_target(source: str, target: CpuTarget) -> CpuTarget:
    """What a library unit needs of a target: its level, and of the extra features those whose macros the unit or its
    headers ask for, those of a group together. Others do not change its code."""
    texts = [p.read_text(encoding="utf-8") for p in (KERNELS / source, *headers(KERNELS / source))]
    asked = {f for f in EXTRA if any(macro(f) in t for t in texts)}
    asked.update(f for group in GROUPS.values() if asked & set(group) for f in group)
    return CpuTarget(target.level, tuple(f for f in EXTRA if f in asked & set(target.extra)))


def unit_path(source: str, target: CpuTarget) -> Path:
    """Where the object of a library unit for a target is, or will be."""
    from . import prebuilt

    path, target = KERNELS / source, unit_target(source, target)
    if (found := prebuilt.find(source, target)) is not None:
        return found
    folder = cache_dir() / "units"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{path.stem}-{digest(source_key(path), _flag_key(target, level_of(source)))}.o"


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1), thread_name_prefix="effc-cxx")


@lru_cache(maxsize=1)
def _early_pool() -> ThreadPoolExecutor:
    """For what is compiled while the frontend works: that one is waited for, so a core is left to it."""
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="effc-cxx-early")


def submit(source: str, out: Path, target: CpuTarget, pool: ThreadPoolExecutor | None = None) -> Future[None]:
    """Compiles a library unit for just this target to ``out``, when the pool comes to it."""
    work = pool or _pool()
    return work.submit(_compile, KERNELS / source, out, target, f"kernel unit {source}", level_of(source))


_running: dict[Path, Future[None]] = {}
_early: dict[Path, Future[None]] = {}  # nobody waits for these
_running_lock = threading.Lock()


def unit_object(source: str, target: CpuTarget, early: bool = False) -> Future[None] | None:
    """Compiles a library unit for a target, unless that has been done; the compilation that is under way, or None.
    ``early``: with the cores that are left, until the unit is asked for without."""
    out = unit_path(source, target)
    with _running_lock:
        begun = _early.get(out) if early else _early.pop(out, None)
        if begun is not None and not begun.done() and not (not early and begun.cancel()):
            if not early:
                _running[out] = begun
            return begun
        if out in _running and not _running[out].done():
            return _running[out]
        if out.exists():
            return None
        pool, table = (_early_pool(), _early) if early else (_pool(), _running)
        table[out] = submit(source, out, unit_target(source, target), pool)
        return table[out]


def warm(target: CpuTarget) -> None:
    """Starts compiling what nearly every artifact needs, if it isn't there yet, while the frontend is still at work.
    Whoever needs it later waits for it, and is told what went wrong with it."""
    from ...runtime import build_rt

    compiler_version()
    for source in COMMON:
        unit_object(source, target, early=True)
    _pool().submit(build_rt.library)


def foresee(ops: Iterable[str], target: CpuTarget) -> None:
    """Starts compiling units that these ops will most likely need, while the frontend traces the model once more. What
    was guessed wrong is kept for another model."""
    for source in dict.fromkeys(LIKELY[op] for op in ops if op in LIKELY):
        unit_object(source, target, early=True)


def generated_objects(kernels: Mapping[str, str], target: CpuTarget) -> tuple[list[Path], list[Callable[[], None]]]:
    """Objects for generated kernels, and the compilations still to be run to make them."""
    folder = cache_dir() / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    key = digest(_flag_key(target, GENERATED), *(source_key(KERNELS / h) for h in GENERATED_HEADERS))
    found: dict[Path, None] = {}
    missing: list[str] = []
    for name in sorted(kernels):
        mark = folder / f"{key[:12]}-{name}.at"  # names the object that has this kernel
        try:
            obj = folder / mark.read_text()
            if obj.exists():
                found[obj] = None
                continue
        except OSError:
            pass
        missing.append(name)
    jobs: list[Callable[[], None]] = []
    for part in _shares(missing, kernels):
        text = PREAMBLE + "\n".join(kernels[n] for n in part)
        out = folder / f"{digest(key, text)}.o"
        found[out] = None
        jobs.append(_job(text, out, part, folder, key, target))
    return list(found), jobs


def _shares(names: Sequence[str], kernels: Mapping[str, str]) -> list[list[str]]:
    """Kernels divided among translation units of about the same length, two for each core: the last one to be compiled
    is waited for by all."""
    units = max(min(len(names), 2 * (os.cpu_count() or 1)), -(-len(names) // PER_UNIT))
    shares: list[list[str]] = [[] for _ in range(units)]
    lengths = [0] * units
    for n in sorted(names, key=lambda n: (-len(kernels[n]), n)):
        k = lengths.index(min(lengths))
        shares[k].append(n)
        lengths[k] += len(kernels[n])
    return shares


def _job(text: str, out: Path, names: Sequence[str], folder: Path, key: str, target: CpuTarget) -> Callable[[], None]:
    def run() -> None:
        if not out.exists():
            fd, src = tempfile.mkstemp(suffix=".cpp", dir=folder)
            try:
                with os.fdopen(fd, "w") as f:
                    f.write(text)
                _compile(Path(src), out, target, f"{len(names)} generated kernels", GENERATED)
            finally:
                os.unlink(src)
        for n in names:
            fd, tmp = tempfile.mkstemp(dir=folder)
            with os.fdopen(fd, "w") as f:
                f.write(out.name)
            os.replace(tmp, folder / f"{key[:12]}-{n}.at")

    return run


def shared_object(kernels: Iterable[str], generated: Mapping[str, str], target: CpuTarget) -> bytes:
    """One shared object that exports these kernels: what an artifact carries as code/cpu.so."""
    names = sorted(set(kernels))
    units = sorted({unit_of(k) for k in names if k not in generated})
    objects, jobs = generated_objects({k: generated[k] for k in names if k in generated}, target)
    # Whole library units first: one of them takes longer than one share of the generated code.
    started = [f for u in units if (f := unit_object(u, target)) is not None] + [_pool().submit(j) for j in jobs]
    for f in started:
        f.result()
    objects = [*sorted(objects), *(unit_path(u, target) for u in units)]
    folder = cache_dir() / "linked"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{digest(*(o.name for o in objects), *names, os.environ.get('EFFC_SANITIZE', ''))}.so"
    if not out.exists():
        _link(objects, names, out)
    return out.read_bytes()


def exports_map(names: Sequence[str]) -> str:
    """The linker's version script that leaves these names visible; a graph may need no kernel at all."""
    shown = "global: " + " ".join(f"{n};" for n in names) if names else ""
    return "{ " + shown + " local: *; };\n"


def _link(objects: Sequence[Path], exports: Sequence[str], out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as tmp:
        script = Path(tmp) / "exports.map"
        script.write_text(exports_map(exports))
        inputs = [str(o) for o in objects] or ["-x", "c++", "/dev/null"]
        so = Path(tmp) / "out.so"
        sanitize = ["-fsanitize=address,undefined"] if os.environ.get("EFFC_SANITIZE") else []
        _run(
            [*compiler(), "-shared", "-o", str(so), *inputs, *sanitize, f"-Wl,--version-script={script}", *LINK],
            "the shared object",
        )
        os.replace(so, out)
