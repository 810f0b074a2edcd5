"""What a suite is, and the suites that there are.

A suite has *cases*, each with a name and one or more *samples*; every sample is judged on its own in a worker process.
Its options are the fields of its dataclass, so that a worker can make the same suite again.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ..runtime.errors import EffcError

SUITES = {
    "ops": "effc.conformance.ops:Ops",
    "onnx": "effc.conformance.onnx_nodes:Nodes",
    "onnx-models": "effc.conformance.onnx_nodes:Models",
    "torch": "effc.conformance.torch_samples:Samples",
}
STATUSES = ("right", "random", "refused", "wrong", "crash", "hang", "skip", "export")
BAD = ("crash", "hang", "wrong")
NOT_COUNTED = ("skip", "export")  # the sample cannot be judged, or torch.export does not take it


@dataclass(frozen=True)
class Result:
    """What became of a sample.

    ``status``: ``right``; ``random`` (numbers are drawn: dtypes and shapes are right); ``refused`` (an EffcError);
    ``wrong``; ``crash`` (any other exception, or the process ended); ``hang``; ``skip`` (it cannot be judged) and
    ``export`` (torch.export does not take or reproduce it), which do not count. ``random`` and ``constant`` mark
    samples of a suite that judges some of a case's samples by dtype and shape only, or whose expectation is one value
    throughout; ``float64`` says by how much a right result differs from eager's own rounding. ``operator`` and
    ``part`` are what tables count a sample under, where the case's name does not say it.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0
    random: bool = False
    constant: bool = False
    float64: str = ""
    operator: str = ""
    part: str = ""

    def as_json(self) -> dict[str, Any]:
        """Its fields but for those that say nothing."""
        return {k: v for k, v in asdict(self).items() if v}


Judge = Callable[[], Result]


@dataclass(frozen=True)
class Suite:
    """Base of all suites: a subclass is a frozen dataclass with ``cases`` and ``judgements``."""

    timeout: ClassVar[float] = 120.0  # seconds for a sample
    restart_every: ClassVar[int] = 2000  # cases after which a worker makes place for a fresh one
    needs: ClassVar[Mapping[str, str]] = {}  # packages, and what to give pip for each
    peers: ClassVar[tuple[str, ...]] = ()  # engines beside effc's backends that the suite can run on
    page: ClassVar[Callable[..., str] | None] = None  # page(runs, command, kept): a page of its own, see report.py

    def check(self, backend: str) -> None:
        """EffcError, in words, if the suite cannot run on a backend here."""
        for package, install in self.needs.items():
            if importlib.util.find_spec(package) is None:
                raise EffcError(f"this suite needs {package}, which is not installed", hint=f"pip install {install}")
        if backend in self.peers:
            return
        from ..compiler import find

        try:
            made = find(backend)
        except EffcError as e:
            hint = f"{e.hint}; for this suite also {', '.join(self.peers)}" if self.peers else e.hint
            raise EffcError(e.message, hint=hint) from None
        made.require(running=True)
        if lacks := made.lacks(backend):
            raise EffcError(f"this machine cannot run {backend!r}: it lacks {', '.join(lacks)}")

    def identity(self) -> dict[str, Any]:
        """Options that change results: a results file is resumed only with the same ones."""
        return {}

    def cases(self) -> Sequence[str]:
        """The names of all cases, in the order in which they run."""
        raise NotImplementedError

    def batches(self, cases: Sequence[str]) -> Iterable[Sequence[str]]:
        """Cases that a worker gets at once, for :meth:`together`."""
        return [[c] for c in cases]

    # in a worker ------------------------------------------------------------------------------------------------------

    def prepare(self, backend: str) -> None:
        """Called once in a worker before its first case."""

    def together(self, backend: str, cases: Sequence[str]) -> dict[tuple[int, int], Result] | None:
        """All samples of some cases at once, by (index of the case, index of the sample), where one by one costs more;
        None if the suite has no such way, or it does not work for these.
        """
        return None

    def judgements(self, backend: str, case: str) -> Iterable[Judge]:
        """A function for each sample of a case, which judges it."""
        raise NotImplementedError

    def run(self, backend: str, turn: Turn) -> None:
        """Judges what a request asks for, and says each result."""
        if not turn.single:
            turn.begin(None)
            started = time.perf_counter()
            results = self.together(backend, turn.cases)
            if results is not None:
                share = (time.perf_counter() - started) / max(len(results), 1)
                for (i, k), r in sorted(results.items()):
                    turn.say(i, k, r, share)
                return
        for i, case in enumerate(turn.cases):
            if i < turn.start[0]:
                continue
            turn.begin((i, -1))
            for k, judge in enumerate(list(self.judgements(backend, case))):
                if (i, k) < turn.start:
                    continue
                turn.begin((i, k))
                started = time.perf_counter()
                result = judge()
                turn.say(i, k, result, time.perf_counter() - started)


class Turn:
    """A worker's side of one request: which samples to judge, and where to say what became of them."""

    def __init__(self, request: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        self.cases: list[str] = request["cases"]
        self.start = tuple(request.get("start", (0, 0)))
        self.single: bool = bool(request.get("single")) or self.start > (0, 0)
        self._tell = tell

    def begin(self, at: tuple[int, int] | None) -> None:
        """Says which sample comes next; sample -1: making the case's samples; None: all samples at once."""
        self._tell({"begin": at})

    def say(self, case: int, sample: int, result: Result, seconds: float = 0.0) -> None:
        """Says a sample's result."""
        self._tell({"at": (case, sample), "result": {**result.as_json(), "seconds": round(seconds, 4)}})


def resolve(spec: str) -> type[Suite]:
    """The class of a suite: a name of ``SUITES``, or ``module:Class`` of another one. EffcError if there is none, or if
    it needs a package that is not installed.
    """
    if ":" not in SUITES.get(spec, spec):
        raise EffcError(f"there is no suite {spec!r}", hint=f"one of {', '.join(SUITES)}, or module:Class")
    module, _, name = SUITES.get(spec, spec).partition(":")
    sys.path.insert(0, os.getcwd())  # as for a model that is given as module:factory
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise EffcError(f"the suite {spec!r} cannot be imported: {e}") from e
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(made, type) or not issubclass(made, Suite):
        raise EffcError(f"{spec} is no suite")
    return made


def operator(case: str, result: Mapping[str, Any]) -> str:
    """What a sample is about: its result says it, or the case's name up to an ``@``."""
    return str(result.get("operator") or case.partition("@")[0])


def part(case: str, result: Mapping[str, Any]) -> str:
    """The part of the suite that a sample is counted in; may be empty."""
    return str(result.get("part") or case.partition("@")[2])


def classify(samples: Mapping[str, Mapping[str, Any]]) -> str:
    """Status of a case, from its samples: the worst that counts."""
    states = {r["status"] for r in samples.values()}
    for status in ("crash", "hang", "wrong", "refused", "right", "random", "export"):
        if status in states:
            return status
    return "skip"


def error_text(e: BaseException) -> str:
    """An exception on one line."""
    return " ".join(f"{type(e).__name__}: {e}".split())
