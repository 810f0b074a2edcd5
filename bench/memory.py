"""Memory planning on graphs and placement instances: order and arena against their bounds.

    python -m bench.memory [GRAPH.json | INSTANCE.csv ...] [--out FOLDER] [--seconds 60] [--rewrite]

A graph (format in ``effc/passes/memory/problem.py``) gets a row with the peak of live bytes of the order given and of
the one found, the proven bound, and the arena over the live peak for both, in MiB. With ``--rewrite`` a second row has
operands overwritten and concatenations made in place where that helps. An instance (id, lower, upper, size) gets a row
with its arena over the live lower bound. ``--out`` writes every plan as JSON: NAME.given.json, NAME.found.json,
NAME.rewritten.json, or NAME.json with the offsets of an instance.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from effc.passes.memory import order, problem, schedule
from effc.passes.memory.plan import plan

MIB = float(1 << 20)


def graph(path: Path, out: Path | None, seconds: float, rewrite: bool) -> list[dict[str, Any]]:
    p = problem.from_json(path)
    name = path.name.removesuffix(".json")
    o = order.order(p, seconds=seconds)
    given, found = schedule.lay_out(p, p.given), schedule.lay_out_found(p, o)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "nodes": len(p.nodes),
            "given": o.given_peak / MIB,
            "found": o.peak / MIB,
            "bound": o.bound / MIB,
            "order": o.ended,
            "order s": o.seconds,
            "arena/live given": given.arena / given.live if given.live else 1.0,
            "arena/live found": found.arena / found.live if found.live else 1.0,
            "placement": found.ended,
            "placement s": given.seconds + found.seconds,
            "arena bytes": found.arena,
        }
    ]
    plans = {"given": given, "found": found}
    if rewrite:
        began = time.perf_counter()
        r = schedule.schedule(p, rewrite=True, seconds=seconds)
        plans["rewritten"] = r.layout
        choices = r.layout.plan.choices
        rows.append(
            {
                "name": f"{name}, rewritten",
                "nodes": len(p.nodes),
                "given": o.given_peak / MIB,
                "found": r.layout.live / MIB,
                "bound": None,
                "order": f"{len(choices.inplace)} in place, {len(choices.concat)} cat",
                "order s": time.perf_counter() - began,
                "arena/live given": None,
                "arena/live found": r.layout.arena / r.layout.live if r.layout.live else 1.0,
                "placement": r.layout.ended,
                "placement s": None,
                "arena bytes": r.layout.arena,
            }
        )
    if out:
        for kind, layout in plans.items():
            (out / f"{name}.{kind}.json").write_text(json.dumps(problem.plan_to_dict(layout.plan)))
    return rows


def instance(path: Path, out: Path | None, seconds: float) -> dict[str, Any]:
    intervals = problem.intervals_from_csv(path)
    began = time.perf_counter()
    p = plan(intervals, budget=30_000_000_000, seconds=seconds)
    took = time.perf_counter() - began
    if out:
        (out / f"{path.stem}.json").write_text(json.dumps({"total": p.total, "offsets": p.offsets}))
    return {
        "name": path.stem,
        "buffers": len(intervals),
        "bound": p.lower_bound,
        "arena": p.total,
        "arena/bound": p.total / p.lower_bound if p.lower_bound else 1.0,
        "how": p.strategy,
        "ended": p.ended,
        "nodes": p.nodes,
        "s": took,
    }


def table(rows: list[dict[str, Any]]) -> str:
    def text(x: Any) -> str:
        return "" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x)

    head = list(rows[0])
    cells = [head, ["---"] * len(head), *([text(r[h]) for h in head] for r in rows)]
    return "\n".join("| " + " | ".join(c) + " |" for c in cells)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.memory", description="memory planning against its bounds")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the plans")
    parser.add_argument("--seconds", type=float, default=60.0, help="outer guard for each search")
    parser.add_argument("--rewrite", action="store_true", help="also in place")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    graphs = [r for f in args.files if f.suffix == ".json" for r in graph(f, args.out, args.seconds, args.rewrite)]
    instances = [instance(f, args.out, args.seconds) for f in args.files if f.suffix == ".csv"]
    for rows in (graphs, instances):
        if rows:
            print(table(rows), end="\n\n")


if __name__ == "__main__":
    main()
