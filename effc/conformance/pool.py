"""Runs cases in worker processes, so that a crash or a hang costs one sample.

A worker is ``python -m effc.conformance.worker``: it reads one JSON request a line from stdin (``cases``, ``start``,
``single``) and answers with JSON lines on the descriptor ``EFFC_WORKER_FD``: ``{"begin": [case, sample]}`` before each
sample (sample -1: before it makes the case's samples; null: before all at once), ``{"at": [case, sample], "result":
...}`` after it, ``{"done": true}``, or ``{"error": message, "hint": hint}`` where it cannot work at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..runtime.errors import EffcError

STARTUP = 120.0  # seconds in which a new worker may import what it works with
TOGETHER = 3  # samples that run all at once get this many times the seconds of one
OnResult = Callable[[str, int, dict[str, Any]], None]


class Worker:
    """One worker process and its answer pipe."""

    def __init__(self, arguments: Sequence[str]) -> None:
        r, w = os.pipe()
        env = {**os.environ, "EFFC_WORKER_FD": str(w), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "effc.conformance.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            pass_fds=(w,),
            env=env,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the worker and the compilers that it runs
        )
        os.close(w)
        self.pipe = r
        self.buffer = b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(r, selectors.EVENT_READ)

    def ask(self, request: dict[str, Any]) -> None:
        """Sends a request. BrokenPipeError if the worker died."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self, timeout: float) -> dict[str, Any] | None:
        """The next line; None when the worker died; TimeoutError."""
        end = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not self.selector.select(left):
                raise TimeoutError
            chunk = os.read(self.pipe, 1 << 16)
            if not chunk:
                return None
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        result: dict[str, Any] = json.loads(line)
        return result

    def stop(self, died: bool = False) -> str:
        """Ends the worker and what it started; how it ended, with the last line that it wrote if it ``died``."""
        if died:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.selector.close()
        os.close(self.pipe)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - 4096))
        lines = self.errors.read().decode(errors="replace").split("\n")
        self.errors.close()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        name = signal.Signals(-code).name if code < 0 else str(code)
        return f"the process ended with {name}" + (f": {last[:300]}" if last else "")


def sweep(
    arguments: Sequence[str],
    batches: Iterable[Sequence[str]],
    on_result: OnResult,
    timeout: float = 120,
    restart_every: int = 2000,
) -> Iterator[Sequence[str]]:
    """Runs batches of cases one after another, with ``on_result(case, sample, result)`` for each sample, and yields
    each batch when it is done. A sample that kills or hangs its worker is a ``crash`` or ``hang``, and the batch goes
    on with the next one in a new worker. EffcError where no worker can work.
    """
    worker: Worker | None = None
    served = 0
    try:
        for cases in batches:
            start, single, finished = (0, 0), False, False
            while not finished:
                fresh = worker is None
                worker = worker or Worker(arguments)
                served = 0 if fresh else served
                current: tuple[int, int] | None = (start[0], -1)
                died = ""
                try:
                    with contextlib.suppress(BrokenPipeError):  # it died: its last answer says why
                        worker.ask({"cases": list(cases), "start": start, "single": single})
                    while not died and not finished:
                        # until a new worker begins, it imports what it works with, which no sample is to blame for
                        limit = timeout * (TOGETHER if current is None else 1) + (STARTUP if fresh else 0)
                        said = worker.answer(limit)
                        fresh = False
                        if said is None:
                            died = "crash"
                        elif "error" in said:
                            raise EffcError(said["error"], hint=said.get("hint"))
                        elif "begin" in said:
                            current = None if said["begin"] is None else (said["begin"][0], said["begin"][1])
                        elif "at" in said:
                            i, k = said["at"]
                            on_result(cases[i], k, said["result"])
                            start = (i, k + 1)
                        elif said.get("done"):
                            finished = True
                except TimeoutError:
                    died = "hang"
                if died:
                    how = worker.stop(died == "crash")
                    worker = None
                    if current is None:  # nobody knows which one it was, so each gets a turn of its own
                        single = True
                        continue
                    reason = f"no answer in {timeout:.0f} s" if died == "hang" else how
                    i, k = current
                    making = k < 0
                    k = max(k, start[1] if i == start[0] else 0)
                    on_result(cases[i], k, {"status": died, "reason": reason})
                    start = (i + 1, 0) if making else (i, k + 1)
                    single = True
                    finished = start[0] >= len(cases)
            served += len(cases)
            if worker is not None and served >= restart_every:
                worker.stop()
                worker = None
            yield cases
    finally:
        if worker is not None:
            worker.stop()
