"""Suites for the tests of the runner: samples that crash, hang and take their time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from effc.conformance.suite import Judge, Result, Suite

CASES = ("right", "drawn", "refused", "wrong", "exit", "segfault", "hang", "unmakeable", "skipped", "last")


@dataclass(frozen=True)
class Odd(Suite):
    """One case for each way in which a case can end, of three samples; the second one is odd."""

    timeout: ClassVar[float] = 1.0

    def cases(self) -> Sequence[str]:
        return CASES

    def judgements(self, backend: str, case: str) -> Iterator[Judge]:
        if case == "unmakeable":
            os._exit(4)
        for k in range(3):
            yield lambda k=k: odd(case) if k == 1 else Result("right")


def odd(case: str) -> Result:
    if case == "exit":
        print("a last word", file=sys.stderr, flush=True)
        os._exit(3)
    if case == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if case == "hang":
        time.sleep(60)
    known = {"drawn": "random", "refused": "refused", "wrong": "wrong", "skipped": "skip"}
    return Result(known.get(case, "right"), f"because it is {case}" if case in known else "")


@dataclass(frozen=True)
class Together(Odd):
    """The same; whole batches at once, which the crash of one sample ends."""

    def batches(self, cases: Sequence[str]) -> Iterator[Sequence[str]]:
        yield [c for c in cases if c not in ("hang", "unmakeable")]

    def together(self, backend: str, cases: Sequence[str]) -> dict[tuple[int, int], Result]:
        return {(i, k): f() for i, c in enumerate(cases) for k, f in enumerate(self.judgements(backend, c))}


@dataclass(frozen=True)
class Slow(Suite):
    """A hundred cases of a fifth of a second."""

    def cases(self) -> Sequence[str]:
        return [f"c{i:02}" for i in range(100)]

    def judgements(self, backend: str, case: str) -> Iterator[Judge]:
        def wait() -> Result:
            time.sleep(0.2)
            return Result("right")

        yield wait


@dataclass(frozen=True)
class NeedsMore(Odd):
    """A suite whose package is not there."""

    needs: ClassVar[dict[str, str]] = {"no_such_package": "'effc[everything]'"}
