"""This machine as the cost model sees it: its CPU, its caches, and what it can do at most.

The multiply-add peak and the read bandwidth are measured by a small C++ program (``probe.cpp``), once for each number
of threads; the result is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..runtime.errors import EffcError

SOURCE = Path(__file__).with_name("probe.cpp")
MEGABYTES = 512  # read by the probe: more than any cache


def cache_folder() -> Path:
    """Where the probe and its results are kept."""
    base = os.environ.get("EFFC_CACHE_DIR")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "effc"


def cpu_name() -> str:
    """The CPU's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def caches() -> dict[str, int]:
    """Bytes of the data caches: l1 and l2 of a core, l3 as shared. What the system does not say is a usual size."""
    found = {"l1": 32 << 10, "l2": 512 << 10, "l3": 16 << 20}
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / n).read_text().strip() for n in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and f"l{level}" in found:
            found[f"l{level}"] = int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)
    return found


def built(source: Path) -> Path:
    """The program made from one C++ file, kept in the cache folder. Raises EffcError without a compiler."""
    key = hashlib.sha256(source.read_bytes() + cpu_name().encode()).hexdigest()[:16]
    exe = cache_folder() / f"{source.stem}-{key}"
    if not exe.exists():
        cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if cxx is None:
            raise EffcError("measuring the machine needs a C++ compiler", hint="install g++ or clang++, or set $CXX")
        exe.parent.mkdir(parents=True, exist_ok=True)
        part = exe.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++17", "-O3", "-march=native", "-ffast-math", "-pthread"]
        done = subprocess.run([*cxx.split(), *flags, str(source), "-o", str(part)], capture_output=True, text=True)
        if done.returncode:
            raise EffcError(f"compiling {source.name} failed: {done.stderr[-500:]}", hint="set $CXX")
        part.replace(exe)
    return exe


def measure(threads: int) -> dict[str, Any]:
    """{"threads", "vector_bytes", "gflops", "gbytes"}: the best of five short runs (about two seconds)."""
    done = subprocess.run([str(built(SOURCE)), str(threads), str(MEGABYTES)], capture_output=True, text=True)
    if done.returncode:
        raise EffcError(f"the machine's probe failed with exit code {done.returncode}", hint="is there memory left?")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@dataclass(frozen=True)
class Machine:
    """What predictions depend on. ``gflops`` (f32 multiply-adds, GFLOP/s) and ``gbytes`` (reads from memory, GB/s) by
    number of threads; caches in bytes."""

    cpu: str
    cores: int
    l1: int
    l2: int
    l3: int
    vector_bytes: int
    gflops: tuple[tuple[int, float], ...]
    gbytes: tuple[tuple[int, float], ...]

    def peak(self, threads: int) -> float:
        """Operations per second of f32, with this many threads."""
        return _at(self.gflops, threads) * 1e9

    def bandwidth(self, threads: int) -> float:
        """Bytes per second from memory, with this many threads."""
        return _at(self.gbytes, threads) * 1e9

    @property
    def id(self) -> str:
        """A short name for records."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(j: Mapping[str, Any]) -> Machine:
        pairs = {k: tuple((int(t), float(x)) for t, x in j[k]) for k in ("gflops", "gbytes")}
        return Machine(**{**j, **pairs})


def _at(table: tuple[tuple[int, float], ...], threads: int) -> float:
    """The value for this many threads; between measured numbers a straight line, beyond them the last one's."""
    for (t0, x0), (t1, x1) in pairwise(table):
        if t0 <= threads <= t1:
            return x0 + (x1 - x0) * (threads - t0) / (t1 - t0)
    return table[0][1] if threads < table[0][0] else table[-1][1]


class Others:
    """What others use of this machine's CPUs from now on: where the system does not say, nothing."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), self._busy(), time.process_time())

    @staticmethod
    def _busy() -> float:
        """Seconds that all CPUs together were at work, time stolen by other virtual machines included."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return 0.0
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")

    def share(self) -> float:
        """CPU seconds that others used since then, for each second that passed, less a tick of the system's clock: what
        its count may be off by."""
        wall, busy, own = self._start
        passed, tick = time.perf_counter() - wall, 1 / os.sysconf("SC_CLK_TCK")
        return max(0.0, self._busy() - busy - (time.process_time() - own) - tick) / max(passed, 1e-6)


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """This machine, measured once and then read from the cache folder. EffcError if it cannot be measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes = caches()
    key = hashlib.sha256(json.dumps([cpu_name(), cores, sizes]).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    file = cache_folder() / f"machine-{key}.json"
    try:
        return Machine.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    counts = sorted({1, *(1 << i for i in range(1, cores.bit_length())), cores})
    results: dict[int, dict[str, Any]] = {}
    for _ in range(3):  # what others run meanwhile only ever makes it less
        for t in counts:
            r, best = measure(t), results.get(t)
            less = results.get(max((c for c in counts if c < t), default=0), r)
            for k in ("gflops", "gbytes"):
                r[k] = max(r[k], r[k] if best is None else best[k], less[k])
            results[t] = r
    found = Machine(
        cpu_name(), cores, sizes["l1"], sizes["l2"], sizes["l3"], results[1]["vector_bytes"],
        tuple((t, r["gflops"]) for t, r in results.items()), tuple((t, r["gbytes"]) for t, r in results.items()),
    )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(found.as_json()))
    part.replace(file)
    return found
