"""Generated loops and library kernels under AddressSanitizer and UndefinedBehaviorSanitizer, over the op table's own
samples.

``EFFC_SANITIZE=1`` compiles kernels with both; their runtime must be loaded first, so the samples run in a child
process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def library(name: str) -> str:
    compiler = os.environ.get("CXX", "g++")
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip(f"{compiler} has no {name}")
    return found


def environment(log: Path) -> dict[str, str]:
    """A process that finds something writes it to ``log.<pid>`` (addresses) or its stderr (undefined) and dies."""
    return {
        **os.environ,
        "EFFC_SANITIZE": "1",
        "LD_PRELOAD": f"{library('libasan.so')}:{library('libubsan.so')}",
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=1:log_path={log}",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def reports(log: Path) -> str:
    return "\n".join(p.read_text()[:3000] for p in sorted(log.parent.glob(f"{log.name}.*")))


def run_sanitized(select: str, timeout: int, tmp_path: Path, path: str = "tests/conformance/test_ops.py") -> None:
    log = tmp_path / "report"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--capture=no",
               "--timeout", str(timeout), path, "-k", select]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment(log), capture_output=True, text=True, timeout=timeout, check=False
    )
    text = reports(log) + done.stdout[-3000:] + done.stderr[-3000:]
    assert not reports(log), text
    assert done.returncode == 0, text
    assert "runtime error" not in done.stderr and "AddressSanitizer" not in done.stderr, text
    assert " passed" in done.stdout and " failed" not in done.stdout, text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_few_are_clean(tmp_path: Path) -> None:
    run_sanitized("test_cpu and (reduction-0 or movement-0) and not avx2", 1800, tmp_path)


FAULTS = """
#include <cstdint>
extern "C" __attribute__((visibility("default"))) float past_the_end(const float* x, int64_t n) { return x[n]; }
extern "C" __attribute__((visibility("default"))) int32_t overflow(int32_t a) { return a + 1; }
"""

CALL = """
import ctypes, sys
from pathlib import Path
import numpy as np
from effc.backends.cpu import build, target
source, out = Path(sys.argv[1]), Path(sys.argv[2])
build._run([*build.compiler(), *build.flags_for(target.parse("cpu"), sanitize=True), "-shared", str(source),
            "-o", str(out)], "faults")
lib = ctypes.CDLL(str(out))
x = np.zeros(1000, np.float32)
lib.past_the_end.argtypes = [ctypes.c_void_p, ctypes.c_int64]
lib.past_the_end(x.ctypes.data, 999)
print("before", flush=True)
lib.past_the_end(x.ctypes.data, 1000) if sys.argv[3] == "address" else lib.overflow(2**31 - 1)
print("after")
"""


@pytest.mark.parametrize("kind,words", [("address", "heap-buffer-overflow"), ("undefined", "signed integer overflow")])
def test_faults_are_found(kind: str, words: str, tmp_path: Path) -> None:
    """The same flags and environment, with a fault put in."""
    source, log = tmp_path / "faults.cpp", tmp_path / "report"
    source.write_text(FAULTS)
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(source), str(tmp_path / "faults.so"), kind],
        cwd=ROOT, env=environment(log), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "before" in done.stdout and "after" not in done.stdout, done.stderr
    assert words in reports(log) + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_all_are_clean(tmp_path: Path) -> None:
    run_sanitized("test_cpu and not avx2", 5400, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("path", "select"),
    [
        ("tests/conformance/test_conv_chain.py", "equal or batch"),
        ("tests/conformance/test_conv_pair.py", "equal or batch"),
        ("tests/conformance/test_row_chain.py", "equal or dynamic or no_rows"),
        ("tests/null/test_int8_models.py", ""),
        ("tests/conformance/test_winograd.py", "right or dynamic or not_finite"),
    ],
)
def test_kernels_that_passes_form(path: str, select: str, tmp_path: Path) -> None:
    """The op table has no samples of them."""
    run_sanitized(select, 3600, tmp_path, path)
