"""Runs a suite on a backend: which cases, in worker processes, with results that can be kept and taken up again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.artifact import write_file_atomically
from ..runtime.errors import EffcError
from . import pool
from .report import Run
from .suite import NOT_COUNTED, classify


@dataclass(frozen=True)
class Selection:
    """Which of a suite's cases run."""

    only: str = ""  # a regular expression that a case's name must match
    shard: tuple[int, int] = (1, 1)  # (i, n): every n-th case from the i-th
    limit: int | None = None  # at most so many cases that count, those taken from a file included
    retry: tuple[str, ...] = ()  # statuses of cases in a file that run again

    def of(self, cases: Sequence[str]) -> list[str]:
        """The cases that are selected by name and shard."""
        try:
            pattern = re.compile(self.only)
        except re.error as e:
            raise EffcError(f"{self.only!r} is no regular expression: {e}") from e
        return [c for c in cases if pattern.search(c)][self.shard[0] - 1 :: self.shard[1]]


def execute(
    run: Run,
    selection: Selection,
    on_case: Callable[[str, dict[str, dict[str, Any]]], None],
    todo: Sequence[str],
    timeout: float | None = None,
) -> None:
    """Judges the cases ``todo`` into ``run.results``, each case as a whole: what is in a file was finished. EffcError
    if no worker can work.
    """
    going: dict[str, dict[str, dict[str, Any]]] = {}

    def on_result(case: str, sample: int, result: dict[str, Any]) -> None:
        going.setdefault(case, {})[str(sample)] = result

    def batches() -> Iterator[list[str]]:
        for batch in run.suite.batches(todo):
            left = len(batch) if selection.limit is None else selection.limit - counted(run)
            if left <= 0:
                return
            yield list(batch[:left])

    arguments = [run.name, run.backend, json.dumps(asdict(run.suite))]
    suite = run.suite
    for batch in pool.sweep(arguments, batches(), on_result, timeout or suite.timeout, suite.restart_every):
        for case in batch:
            run.results[case] = going.pop(case, {})
            on_case(case, run.results[case])


def counted(run: Run) -> int:
    """How many of a run's cases count."""
    return sum(classify(samples) not in NOT_COUNTED for samples in run.results.values())


def take_up(run: Run, held: list[dict[str, Any]], selection: Selection) -> None:
    """Takes a run's results out of what a file holds, but for those to run again. EffcError if they were made with
    other options.
    """
    for k, made in enumerate(held):
        if (made.get("suite"), made.get("target")) != (run.name, run.backend):
            continue
        for option, value in run.suite.identity().items():
            if made.get(option) != value:
                raise EffcError(
                    f"results of {run.name} on {run.backend} were made with {option} {made.get(option)}, not {value}",
                    hint=f"give the same {option}, or another file",
                )
        run.results = {c: r for c, r in made["results"].items() if classify(r) not in selection.retry}
        del held[k]
        return


def read(path: str, suites: Sequence[str]) -> list[dict[str, Any]]:
    """The runs that a file holds. EffcError if it holds none."""
    try:
        data: Any = json.loads(Path(path).read_text())
        runs = data["runs"] if "runs" in data else [data]
        for run in runs:
            if len(suites) == 1:
                run.setdefault("suite", suites[0])
            if not isinstance(run["suite"], str) or not isinstance(run["target"], str):
                raise TypeError
            for samples in run["results"].values():
                classify(samples)
    except OSError as e:
        raise EffcError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise EffcError(f"{path} holds no results of effc conformance", hint="give a file that --json wrote") from e
    return list(runs)


def read_all(paths: Sequence[str], suites: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of several files, such as those of shards. Runs of one suite on one backend with the same options become
    one, in which a later file's results replace an earlier one's. EffcError for a file that holds none.
    """
    merged: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for path in paths:
        for run in read(path, suites):
            key = tuple(sorted((k, repr(v)) for k, v in run.items() if k != "results"))
            merged.setdefault(key, {**run, "results": {}})["results"].update(run["results"])
    return list(merged.values())


class Keeper:
    """Writes results to a file: now and then, and at the end."""

    def __init__(self, path: str, runs: Sequence[Run], others: Sequence[Mapping[str, Any]]) -> None:
        self.path, self.runs, self.others = path, runs, others
        self.last = time.monotonic()

    def tick(self) -> None:
        """Writes if it was some time ago that it did."""
        if self.path and time.monotonic() - self.last > 20:
            self.write()

    def write(self) -> None:
        """Writes the results of all runs, and what the file held of others. One run is written as itself, several as a
        list.
        """
        made = [r.as_json() for r in self.runs if r.results] + list(self.others)
        data = made[0] if len(made) == 1 else {"runs": made}
        save(self.path, json.dumps(data, indent=1))
        self.last = time.monotonic()


def save(path: str, text: str) -> None:
    """Writes a text file, all of it or nothing, and the folders above it. EffcError if that cannot be."""
    try:
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise EffcError(f"cannot write {path}: {e.strerror or e}") from e
    write_file_atomically(path, lambda f: f.write(text.encode()))
