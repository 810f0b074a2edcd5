"""Solvers that print where nobody asked: HiGHS 1.12 (in SciPy 1.17) has a ``printf`` that no option turns off."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

LINE = b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();"
_lock = threading.Lock()
_inside = 0
_real = -1
_kept = -1


@contextlib.contextmanager
def without_solver_lines() -> Iterator[None]:
    """Keeps what is written to file descriptor 1 meanwhile, by whatever thread, and writes it at the end of the
    outermost or last of these blocks, but for the lines that HiGHS leaves there."""
    global _inside
    with _lock:
        if _inside == 0:
            _begin()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _end()


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).fflush(None)


def _begin() -> None:
    global _real, _kept
    if not hasattr(os, "memfd_create"):
        return
    _flush()
    try:
        _real = os.dup(1)
    except OSError:  # closed: nothing to be kept clean
        return
    _kept = os.memfd_create("stdout")
    os.dup2(_kept, 1)


def _end() -> None:
    global _real, _kept
    if _real < 0:
        return
    _flush()
    os.dup2(_real, 1)
    os.close(_real)
    _real = -1
    with open(_kept, "rb") as f:
        f.seek(0)
        rest = b"".join(line for line in f if line.rstrip(b"\n") != LINE)
    _kept = -1
    while rest:
        rest = rest[os.write(1, rest) :]


__all__ = ["without_solver_lines"]
