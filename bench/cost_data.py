"""Makes the shipped records and the shipped cost model of records.

    python -m bench.cost_data RECORDS.jsonl ... [--stale FAMILY,...] [--drop FAMILY,...]
                              [--data effc/cost/data/x86-64-v3] [--base OTHER.jsonl.xz] [--families FAMILY,...]

The records are appended to DATA.jsonl.xz and a model is trained on all of them into DATA.npz. ``--stale``: families
whose kernel has become another since the records there were made: they stay, and teach what the present ones are
compared with (effc/cost/train.py). ``--drop``: families whose records there say nothing of the present kernel: these
leave the file first. Either takes a sampler's name, too, for the records of its cases alone (``upsampling``: the
transposed convolutions). Without records the model is trained anew on those that are there, as where features have
become others; ``--families``: of these families alone, the others stay as they are. ``--base``: records of another
ISA, of which the newest with a yardstick (:data:`NEWEST` of a family) teach times as well.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from effc.cost import records, train
from effc.cost.model import CostModel

DATA = Path(__file__).resolve().parents[1] / "effc" / "cost" / "data" / "x86-64-v3"
NEWEST = 8000


def newest(found: list[records.Record]) -> list[records.Record]:
    """The last records with a yardstick of each family, all as good as any other."""
    kept: dict[str, list[records.Record]] = {}
    for r in found:
        if r.yard:
            kept.setdefault(r.family, []).append(r)
    return [replace(r, stale=False) for of in kept.values() for r in of[-NEWEST:]]


def names_of(line: dict[str, Any]) -> set[str]:
    """What a record may be meant by: its family, and the sampler of its group."""
    return {line.get("family", ""), line.get("group", "").removeprefix("a-").removeprefix("b-").partition("-")[0]}


def write(packed: Path, more: Sequence[Path], stale: set[str], dropped: set[str]) -> None:
    """Appends the records of ``more`` to a file; of those that are there some become stale, and some are dropped."""
    part = packed.with_suffix(".part")
    kept = left_out = 0
    with lzma.open(part, "wt", encoding="utf-8", preset=9) as out:
        for path in (packed, *more):
            for line in records.lines(path):
                if path == packed and names_of(line) & dropped:
                    left_out += 1
                    continue
                if path == packed and names_of(line) & stale:
                    line["stale"] = True
                kept += "group" in line
                out.write(json.dumps(line, separators=(",", ":")) + "\n")
    part.replace(packed)
    print(f"{packed}: {kept} records, {packed.stat().st_size:,} bytes; {left_out} dropped")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("records", nargs="*", type=Path)
    p.add_argument("--stale", default="")
    p.add_argument("--drop", default="")
    p.add_argument("--data", type=Path, default=DATA)
    p.add_argument("--base", type=Path)
    p.add_argument("--families", default="")
    a = p.parse_args()
    packed = Path(f"{a.data}.jsonl.xz")
    dropped, stale = (set(filter(None, text.split(","))) for text in (a.drop, a.stale))
    if a.records or dropped or stale:
        write(packed, a.records, stale, dropped)
    found = [*(newest(records.read([a.base])) if a.base else ()), *records.read([packed])]
    chosen = set(filter(None, a.families.split(",")))
    model = train.fit(found, report=lambda text: print(f"training on {text}", flush=True), only=chosen)
    if chosen:
        before = CostModel.load(f"{a.data}.npz")
        model.families = {n: model.families.get(n) or before.families[n] for n in {**before.families, **model.families}}
    model.save(f"{a.data}.npz")
    for name, m in model.families.items():
        print(f"{name}: error {m.error:.1%}" + (f", margin {m.rank_error:g}" if m.rankers else ""))
    print(f"{a.data}.npz: {Path(f'{a.data}.npz').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
