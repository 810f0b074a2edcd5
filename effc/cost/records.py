"""Measured runs: JSON lines, appended to as they are made, never rewritten.

A file holds two kinds of lines. ``{"machine": ID, ...}`` describes a machine (:class:`effc.cost.machine.Machine`) and
comes before the records that were measured on it. Any other line is a record::

    call       the kernel, its operands and attributes (Call.as_json)
    threads    that the kernel could use
    between    bytes that were touched between two runs of it: what it finds in the caches
    seconds    lower quartile over blocks of runs
    repeat     its own repeat error: |ln(that of odd blocks / that of even blocks)|
    yard       seconds of the yardstick (a small matrix product) measured in turn with it: how fast the machine was then
    busy       CPU seconds that others used of the machine meanwhile, for each second
    group      records of one group are ways to make one call, measured side by side; way 0 is the backend's own rule
    way        the number of this one in its group
    source     what the shape came from: "space" (sampled), or a model's name (measured where the model makes the call)
    kernels    names the sources of the kernel library that ran; "" for records from before this was kept
    stale      whether the family's kernels have become others since (bench/cost_data.py, --stale); left out if not
    family, target, machine

A last line that was cut off (a full disk, a killed process) is skipped.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..runtime.errors import EffcError
from .calls import Call
from .machine import Machine


@dataclass(frozen=True)
class Record:
    call: Call
    family: str
    threads: int
    between: int
    seconds: float
    repeat: float
    yard: float
    busy: float
    group: str
    way: int
    source: str
    target: str
    machine: Machine
    kernels: str = ""
    stale: bool = False

    def as_json(self) -> dict[str, Any]:
        more = {"stale": True} if self.stale else {}
        return {
            "family": self.family,
            "threads": self.threads,
            "between": self.between,
            "seconds": float(f"{self.seconds:.5g}"),
            "repeat": float(f"{self.repeat:.3g}"),
            "yard": float(f"{self.yard:.4g}"),
            "busy": round(self.busy, 3),
            "group": self.group,
            "way": self.way,
            "source": self.source,
            "target": self.target,
            "machine": self.machine.id,
            "kernels": self.kernels,
            **more,
            "call": self.call.as_json(),
        }


class Writer:
    """Appends records to a file; each is on disk when :meth:`add` returns."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._known: set[str] = set()
        self.groups: set[str] = set()
        cut = False
        if self.path.exists():
            for line in lines(self.path):
                if "group" in line:
                    self.groups.add(line["group"])
                else:
                    self._known.add(line["machine"])
            with open(self.path, "rb") as f:
                f.seek(0, os.SEEK_END)
                if f.tell():
                    f.seek(-1, os.SEEK_END)
                    cut = f.read(1) != b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = open(self.path, "a", encoding="utf-8")
        except OSError as e:
            raise EffcError(f"cannot write {path}: {e}", hint="give another file with --out") from e
        if cut:
            self._file.write("\n")

    def add(self, records: Sequence[Record]) -> None:
        """Writes the records of one group."""
        text = ""
        for r in records:
            if r.machine.id not in self._known:
                self._known.add(r.machine.id)
                text += json.dumps({"machine": r.machine.id, **r.machine.as_json()}, separators=(",", ":")) + "\n"
            text += json.dumps(r.as_json(), separators=(",", ":")) + "\n"
            self.groups.add(r.group)
        self._file.write(text)
        self._file.flush()

    def add_text(self, text: str) -> int:
        """Appends what another writer wrote on another machine; how many records that were."""
        count = 0
        for line in text.splitlines():
            j = json.loads(line)
            if "group" in j:
                self.groups.add(j["group"])
                count += 1
            elif j["machine"] in self._known:
                continue
            else:
                self._known.add(j["machine"])
            self._file.write(line + "\n")
        self._file.flush()
        return count

    def close(self) -> None:
        self._file.close()


def _open(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def lines(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The lines of a file, also of one that ends in .xz or .gz; EffcError if it cannot be read."""
    try:
        with _open(Path(path)) as f:
            for line in f:
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError:  # cut off
                        continue
    except (OSError, lzma.LZMAError, EOFError) as e:
        raise EffcError(f"cannot read the records {path}: {e}") from e


def read(paths: Sequence[str | os.PathLike[str]]) -> list[Record]:
    """The records of these files in order. EffcError for a record of a machine that the file does not describe."""
    out: list[Record] = []
    for path in paths:
        machines: dict[str, Machine] = {}
        for j in lines(path):
            if "group" not in j:
                fields: Mapping[str, Any] = {k: v for k, v in j.items() if k != "machine"}
                machines[j["machine"]] = Machine.from_json(fields)
                continue
            if j["machine"] not in machines:
                raise EffcError(f"{path}: a record of machine {j['machine']}, which the file does not describe")
            out.append(
                Record(
                    Call.from_json(j["call"]),
                    j["family"],
                    j["threads"],
                    j["between"],
                    j["seconds"],
                    j["repeat"],
                    j.get("yard", 0.0),
                    j["busy"],
                    j["group"],
                    j["way"],
                    j["source"],
                    j["target"],
                    machines[j["machine"]],
                    j.get("kernels", ""),
                    j.get("stale", False),
                )
            )
    return out
