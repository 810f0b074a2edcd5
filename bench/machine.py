"""What the machine can do: FMA peak and read bandwidth, measured by a small C++ program."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("EFFC_CACHE_DIR") or HERE.parent / ".cache" / "effc")


def _probe() -> Path:
    source = HERE / "probe.cpp"
    key = hashlib.sha256(source.read_bytes() + cpu_name().encode()).hexdigest()[:16]
    exe = CACHE / f"probe-{key}"
    if not exe.exists():
        cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if cxx is None:
            raise RuntimeError("measuring the machine needs g++ or clang++ on PATH, or $CXX")
        CACHE.mkdir(parents=True, exist_ok=True)
        part = exe.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [cxx, "-std=c++17", "-O3", "-march=native", "-ffast-math", "-pthread", str(source), "-o", str(part)],
            check=True,
        )
        part.replace(exe)
    return exe


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def measure(threads: int) -> dict[str, Any]:
    """{"threads", "vector_bytes", "gflops", "gbytes"}: the best of five short runs."""
    out = subprocess.run([str(_probe()), str(threads), "512"], check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(out)
    return result


if __name__ == "__main__":
    print(cpu_name())
    for n in (1, 2):
        print(measure(n))
