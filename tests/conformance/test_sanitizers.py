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


def run_sanitized(select: str, timeout: int) -> None:
    env = {
        **os.environ,
        "EFFC_SANITIZE": "1",
        "LD_PRELOAD": f"{library('libasan.so')}:{library('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
               "--timeout", str(timeout),
               "tests/conformance/test_ops.py", "-k", select]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    text = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, text
    assert "runtime error" not in done.stderr and "AddressSanitizer" not in done.stderr, text
    assert " passed" in done.stdout and " failed" not in done.stdout, text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_few_are_clean() -> None:
    run_sanitized("test_cpu and (reduction-0 or movement-0) and not avx2", 1800)


def test_the_sanitizer_is_on() -> None:
    """The flag reaches the compiler: the same kernel gives another object."""
    code = "from effc.backends.cpu import build, target; print(build.flags_for(target.parse('cpu'), sanitize=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "-fsanitize=address,undefined" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_all_are_clean() -> None:
    run_sanitized("test_cpu and not avx2", 5400)
