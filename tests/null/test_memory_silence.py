"""Lines that a solver prints with no option to stop it: dropped, and nothing else."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

from effc.passes.memory.silence import LINE, without_solver_lines

PROGRAM = """
import ctypes, os
from effc.passes.memory.silence import LINE, without_solver_lines
libc = ctypes.CDLL(None)
print("before")
with without_solver_lines():
    libc.puts(b"first")
    with without_solver_lines():
        libc.puts(LINE)
        print("second")
    libc.puts(LINE)
    libc.puts(b"not " + LINE)
print("after")
"""


def test_only_these_lines_are_dropped() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert sorted(lines) == sorted(["before", "first", "second", "not " + LINE.decode(), "after"])
    assert lines[0] == "before" and lines[-1] == "after"


def test_blocks_of_several_threads(capfd: object) -> None:
    """The descriptor is what it was after the last of them, and no file is left open."""
    before, held = os.fstat(1).st_ino, len(os.listdir("/proc/self/fd"))
    gate = threading.Barrier(4)

    def block() -> None:
        for _ in range(20):
            gate.wait()
            with without_solver_lines():
                ctypes.CDLL(None).puts(LINE)

    threads = [threading.Thread(target=block) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert os.fstat(1).st_ino == before and len(os.listdir("/proc/self/fd")) == held
    out, _ = capfd.readouterr()  # type: ignore[attr-defined]
    assert LINE.decode() not in out
