"""Results of runs as tables."""

from __future__ import annotations

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .suite import BAD, NOT_COUNTED, Suite, operator, part

Results = dict[str, dict[str, dict[str, Any]]]  # by case and number of the sample
BETWEEN = re.compile(r"(<!-- table of effc conformance -->\n).*(<!-- end of table -->)", re.S)


@dataclass
class Run:
    """A suite on a backend, and what became of its cases so far."""

    name: str  # of the suite, as given to ``resolve``
    suite: Suite
    backend: str
    results: Results = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"suite": self.name, "target": self.backend, **self.suite.identity(), "results": self.results}

    @property
    def bad(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(case, sample, result) of what is wrong, crashed or hung."""
        return [(c, k, r) for c, of in sorted(self.results.items()) for k, r in of.items() if r["status"] in BAD]


def status(result: Mapping[str, Any]) -> str:
    """A sample's status as tables count it."""
    return "random" if result["status"] == "right" and result.get("random") else str(result["status"])


def counts(results: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many samples there are of each status."""
    return Counter(map(status, results))


def cell(text: str, width: int = 160) -> str:
    """A text that fits into a cell of a Markdown table."""
    return textwrap.shorten(text, width, placeholder=" ...").replace("|", "\\|")


def table_of(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def summary(runs: Sequence[Run]) -> list[str]:
    """A row for each suite, each of its parts, and backend. ``samples`` are those that count."""
    rows = []
    for run in runs:
        parts: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        for case, samples in run.results.items():
            for r in samples.values():
                parts[part(case, r)].append((case, r))
        for name, found in parts.items():
            of = counts(r for _, r in found)
            apart = sum(of[s] for s in NOT_COUNTED)
            rows.append(
                [f"{run.name} {name}".strip(), run.backend, len({c for c, _ in found}), len(found) - apart, of["right"],
                 of["random"], of["refused"], of["wrong"], of["crash"] + of["hang"], apart]
            )  # fmt: skip
    heads = ["suite", "backend", "cases", "samples", "right", "random", "refused", "wrong", "crash or hang"]
    return table_of([*heads, "not counted"], rows)


def table(runs: Sequence[Run]) -> str:
    """What ``effc conformance`` prints: the counts, what was refused, by operator, and each sample that is wrong."""
    lines = summary(runs)
    refused: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for run in runs:
        for case, samples in sorted(run.results.items()):
            for r in samples.values():
                if r["status"] == "refused":
                    refused[run.name, run.backend, operator(case, r)].append(r.get("reason", ""))
    if refused:
        rows = [[*key, len(why), cell(why[0])] for key, why in refused.items()]
        lines += ["", "Refused:", ""]
        lines += table_of(["suite", "backend", "operator", "samples", "reason of the first"], rows)
    bad = [(run, *found) for run in runs for found in run.bad]
    if bad:
        lines += ["", "Wrong, crashed or hung:", ""]
    for run, case, k, r in bad:
        where = case + (f" sample {k}" if len(run.results[case]) > 1 else "")
        reason = textwrap.shorten(r.get("reason", ""), 400, placeholder=" ...")
        lines.append(f"- {run.name}, {run.backend}: {where}: {r['status']}: {reason}")
    return "\n".join(lines) + "\n"


def placed(text: str, kept: str) -> str:
    """A table in a page that marks its place with comments; alone, if there is no such page."""
    if not BETWEEN.search(kept):
        return text
    return BETWEEN.sub(lambda m: f"{m[1]}\n{text}\n{m[2]}", kept)
