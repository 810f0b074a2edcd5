"""Runs cases in worker processes so that a crash or a hang costs one case. Used by the conformance sweeps.

A worker is this interpreter running a script with ``--worker``: it reads one JSON request a line from stdin and
answers with JSON lines on the descriptor given by ``EFFC_WORKER_FD``; ``{"begin": i}`` before each case (-1: before a
batch of all), ``{"case": i, ...}`` after it, ``{"done": true}``.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

STARTUP = 120.0  # seconds


class Worker:
    """One worker process and its answer pipe."""

    def __init__(self, argv: list[str]) -> None:
        r, w = os.pipe()
        env = {**os.environ, "EFFC_WORKER_FD": str(w), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        self.process = subprocess.Popen(
            [sys.executable, *argv, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(w,),
            env=env,
            text=True,
        )
        os.close(w)
        self.pipe = r
        self.buffer = b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(r, selectors.EVENT_READ)

    def ask(self, request: dict[str, Any]) -> None:
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

    def stop(self) -> int:
        self.process.kill()
        code = self.process.wait()
        self.selector.close()
        os.close(self.pipe)
        return code


def sweep(
    argv: list[str],
    requests: list[dict[str, Any]],
    on_case: Callable[[dict[str, Any], dict[str, Any]], None],
    timeout: float = 120,
    restart_every: int = 200,
) -> Iterator[dict[str, Any]]:
    """Runs the requests one after another; yields each when it is done. A case that kills or hangs its worker is a
    ``crash`` or ``hang``, and the request goes on with the next case in a new worker (``start``).
    """
    worker: Worker | None = None
    served = 0
    for request in requests:
        start, finished = 0, False
        while not finished:
            if worker is None:
                worker, served = Worker(argv), 0
            current = start
            began = served > 0
            died = ""
            try:
                worker.ask({**request, "start": start})
                while True:
                    # until a new worker begins, it imports what it works with, which no case is to blame for
                    said = worker.answer(timeout * (3 if current < 0 else 1) + (0 if began else STARTUP))
                    began = True
                    if said is None:
                        died = "crash"
                        break
                    if "begin" in said:
                        current = said["begin"]
                    elif "case" in said:
                        on_case(request, said)
                        start = said["case"] + 1
                    elif said.get("done"):
                        finished = True
                        break
            except TimeoutError:
                died = "hang"
            except BrokenPipeError:
                died = "crash"
            if died:
                code = worker.stop()
                worker = None
                if current < 0:  # in a batch: nobody knows which case it was, so each gets a turn of its own
                    request = {**request, "single": True}
                    continue
                reason = f"no answer in {timeout:.0f} s" if died == "hang" else f"the process ended with {code}"
                on_case(request, {"case": current, "status": died, "reason": reason})
                start = current + 1
                if start > 4000:
                    finished = True
        request.pop("single", None)
        served += 1
        if worker is not None and served >= restart_every:
            worker.stop()
            worker = None
        yield request
    if worker is not None:
        worker.stop()


def serve(run: Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None]) -> None:
    """The worker's side: calls ``run(request, say)`` for each request."""
    out = os.fdopen(int(os.environ["EFFC_WORKER_FD"]), "w", buffering=1)

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    for line in sys.stdin:
        run(json.loads(line), say)
        say({"done": True})
