"""A memory limit that the kernel enforces on one process, and a page cache without a file."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

V2, V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True)
class Limited:
    """What a command printed, how it ended, and the most memory it took at one time (bytes; 0: not known)."""

    stdout: str
    stderr: str
    status: int
    peak: int
    how: str


@contextlib.contextmanager
def _group(limit: int) -> Iterator[tuple[Path, str, str] | None]:
    """A control group with this limit, as (folder, file with the peak, name), or None where none may be made."""
    for base, file, peak, name in (
        (V2, "memory.max", "memory.peak", "cgroup v2 memory.max"),
        (V1, "memory.limit_in_bytes", "memory.max_usage_in_bytes", "cgroup v1 memory.limit_in_bytes"),
    ):
        folder = base / f"effc-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if not (folder / file).exists():  # no control group, or one without memory
                raise OSError("no memory controller")
            (folder / file).write_text(str(limit))
            with contextlib.suppress(OSError):  # no swap, where there is any
                (folder / ("memory.swap.max" if base == V2 else "memory.memsw.limit_in_bytes")).write_text(
                    "0" if base == V2 else str(limit)
                )
        except OSError:
            folder.rmdir()
            continue
        try:
            yield folder, peak, name
        finally:
            for _ in range(50):  # the kernel may still be tidying up after the process
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.05)
        return
    yield None


def run_limited(
    command: Sequence[str], limit: int | None, timeout: float, env: Mapping[str, str] | None = None
) -> Limited:
    """Runs a command in at most ``limit`` bytes of memory: all of it, page cache included, by a control group; where
    none can be made, its data (RLIMIT_DATA, which the page cache does not count for). None: no limit."""
    full = {**os.environ, **(env or {})}
    if limit is None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=full, check=False)
        return Limited(done.stdout, done.stderr, done.returncode, 0, "no limit")
    with _group(limit) as group:

        def enter() -> None:
            if group is not None:
                (group[0] / "cgroup.procs").write_text(str(os.getpid()))
            else:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=full, check=False, preexec_fn=enter
        )
        peak = 0
        if group is not None:
            with contextlib.suppress(OSError, ValueError):
                peak = int((group[0] / group[1]).read_text())
        return Limited(done.stdout, done.stderr, done.returncode, peak, "RLIMIT_DATA" if group is None else group[2])


def cached_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a file that the page cache holds (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = os.path.getsize(path)
    with open(path, "rb") as f, mmap.mmap(f.fileno(), size, access=mmap.ACCESS_COPY) as m:
        pages = -(-size // mmap.PAGESIZE)
        seen = (ctypes.c_ubyte * pages)()
        at = ctypes.c_char.from_buffer(m)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(at)), ctypes.c_size_t(size), seen)
        del at
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(x & 1 for x in seen) * mmap.PAGESIZE


def forget(path: str | os.PathLike[str]) -> int:
    """Asks the kernel to drop a file from the page cache; returns the bytes that it keeps all the same."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        for _ in range(20):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            left = cached_bytes(path)
            if left < 1 << 20:
                break
            time.sleep(0.1)
        return left
    finally:
        os.close(fd)
