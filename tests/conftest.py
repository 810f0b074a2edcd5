"""What every test shares: a cache inside the checkout, quiet libraries, skips where an ISA is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("EFFC_CACHE_DIR", str(ROOT / ".cache" / "effc"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker, so that workers do not fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

NEEDS = {
    "x86-64-v3": {"avx2", "fma", "bmi2"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "amx": {"amx_tile", "amx_int8", "amx_bf16"},
}


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    flags = _cpu_flags()
    for item in items:
        for mark in item.iter_markers("isa"):
            missing = sorted(NEEDS[mark.args[0]] - flags)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"this CPU lacks {', '.join(missing)} ({mark.args[0]})"))
