"""The command line of conformance: ``effc conformance``, and the same for a suite that is a script of its own."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..runtime.errors import EffcError
from .suite import BAD, SUITES, Suite, classify, resolve

PARTIAL = "conformance-partial.json"


def add_arguments(p: argparse.ArgumentParser, suites: str = "ops,onnx,torch") -> None:
    """What every suite's command line has; ``suites`` are the default."""
    p.add_argument("--backend", default="cpu", help="targets (`effc targets`), or peers of a suite; comma-separated")
    p.add_argument(
        "--suite", default=suites, help=f"comma-separated: {', '.join(SUITES)}, module:Class; default {suites}"
    )
    p.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    p.add_argument("--shard", default="1/1", metavar="I/N", help="every n-th case from the i-th")
    p.add_argument("--limit", type=int, metavar="N", help="stop a suite after so many cases that count")
    p.add_argument("--timeout", type=float, metavar="SECONDS", help="for one sample; default: the suite's own")
    p.add_argument("--json", default="", metavar="FILE", help="keep the results here, while it runs, too")
    p.add_argument(
        "--resume",
        nargs="+",
        default=[],
        metavar="FILE",
        help="take results from here, as of shards; run the rest",
    )
    p.add_argument("--retry", default="", metavar="STATUS", help="with --resume: statuses to run again (refused,crash)")
    p.add_argument(
        "--table", default="", metavar="FILE", help="write the table here too, between its marks if it has any"
    )
    p.add_argument("--page", default="", metavar="FILE", help="write the suite's own page of docs here")


def add_options(p: argparse.ArgumentParser, suite: type[Suite]) -> None:
    """Options of a suite: its fields."""
    for f in fields(suite):
        flag = f"--{f.name.replace('_', '-')}"
        if isinstance(f.default, bool):
            p.add_argument(flag, action="store_true", help=f.metadata.get("help"))
        else:
            p.add_argument(flag, type=type(f.default), default=f.default, help=f.metadata.get("help"))


def run(a: argparse.Namespace, command: str) -> int:
    """Runs suites on backends; ``command`` is what was typed, for pages to name. 0 if nothing is wrong, crashed or
    hung, else 1. EffcError, before anything runs, for a suite or backend that there is not, a missing package, a file
    that holds no results.
    """
    from ..compiler import require_extras
    from . import report
    from .report import Run
    from .runner import Keeper, Selection, execute, read_all, save, take_up

    require_extras()
    if a.limit is not None and a.limit < 1:
        raise EffcError(f"--limit {a.limit}: it must be 1 or more")
    names, backends = ([x for x in text.split(",") if x] for text in (a.suite, a.backend))
    selection = Selection(a.only, _shard(a.shard), a.limit, tuple(filter(None, a.retry.split(","))))
    held = read_all(a.resume, names)
    if len(a.resume) > 1 and not a.json:
        raise EffcError("--resume takes several files only to write another", hint="name it with --json")
    runs: list[Run] = []
    for name in names:
        cls = resolve(name)
        suite = cls(**{f.name: getattr(a, f.name) for f in fields(cls) if getattr(a, f.name, None) is not None})
        for backend in backends:
            suite.check(backend)
            made = Run(name, suite, backend)
            take_up(made, held, selection)
            runs.append(made)
    pages = {type(r.suite).page for r in runs}
    if a.page and (len(pages) != 1 or None in pages):
        raise EffcError("--page: these suites have no page in common", hint="run one suite at a time")
    keeper = Keeper(a.json or "".join(a.resume), runs, held)
    shown = [*runs, *(Run(h["suite"], Suite(), h["target"], h["results"]) for h in held)]
    try:
        for r in runs:
            cases = selection.of(r.suite.cases())
            todo = [c for c in cases if c not in r.results]
            with progress(f"{r.name} on {r.backend}", len(todo)) as bar:

                def on_case(case: str, samples: dict[str, dict[str, Any]]) -> None:
                    bar.step(case, samples)
                    keeper.tick()

                execute(r, selection, on_case, todo, a.timeout)
    except KeyboardInterrupt:
        keeper.path = keeper.path or PARTIAL
        keeper.write()
        print(report.table(shown), end="")
        print(
            f"what was done is in {keeper.path}; to go on, give the same command with --resume {keeper.path}",
            file=sys.stderr,
        )
        raise
    if keeper.path:
        keeper.write()
    text = report.table(shown)
    print(text, end="")
    if a.table:
        save(a.table, report.placed(text, _kept(a.table)))
    if a.page:
        save(a.page, next(iter(pages))(runs, command, _kept(a.page)))  # type: ignore[misc]
    return int(any(r.bad for r in runs))


def main(spec: str, argv: Sequence[str] | None = None) -> int:
    """The command line of one suite, ``module:Class``, with its options as flags: for ``python -m module``."""
    suite = resolve(spec)
    p = argparse.ArgumentParser(
        prog=f"python -m {spec.partition(':')[0]}",
        description=sys.modules[suite.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(p, spec)
    add_options(p, suite)
    argv = sys.argv[1:] if argv is None else argv
    a = p.parse_args(argv)
    try:
        return run(a, f"{p.prog} {shlex.join(argv)}")
    except EffcError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _shard(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise EffcError(f"cannot read --shard {text!r}", hint="write it as 1/4, 2/4, 3/4, 4/4")
    return int(i), int(n)


def _kept(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""


class Bar:
    """Progress on stderr: one line that is written over on a terminal, else a line every half minute."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.bad = what, total, 0, 0
        self.started = self.shown = time.monotonic()
        self.tty = sys.stderr.isatty()

    def step(self, case: str, samples: dict[str, dict[str, Any]]) -> None:
        """A case is done; one that is wrong gets a line."""
        self.done += 1
        if (status := classify(samples)) in BAD:
            self.bad += 1
            why = next(r.get("reason", "") for r in samples.values() if r["status"] == status)
            self.clear()
            print(f"{case}: {status}: {' '.join(why.split())[:300]}", file=sys.stderr, flush=True)
        now = time.monotonic()
        if now - self.shown > (0.2 if self.tty else 30):
            self.shown = now
            self.show()

    def show(self) -> None:
        seconds = time.monotonic() - self.started
        bad = f", {self.bad} wrong" if self.bad else ""
        text = f"{self.what}: {self.done} of {self.total} cases{bad}, {seconds:.0f} s"
        print(f"\r\033[K{text}" if self.tty else text, end="" if self.tty else "\n", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.tty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Bar]:
    """A bar that shows its last state when it is done."""
    bar = Bar(what, total)
    try:
        yield bar
    finally:
        bar.show()
        if bar.tty:
            print(file=sys.stderr)
