"""Plans within budgets against eviction, and scratchpads.

    python -m bench.budget [GRAPH.json ...] [--made] [--scratchpad] [--no-recompute] [--no-rewrite] [--out FOLDER]

Budgets: 75, 50 and 25 % of the way from the largest single node's own bytes to the least peak of any order; the rows
say what is moved and computed again against Belady's eviction on the order of that peak (``bench/paging.py``, which
counts bytes; plans here have offsets). ``cost`` is bytes moved and repeated operations at the exchange rate of
``effc/passes/memory/budget.py``. ``--scratchpad``: 1, 1.25, 1.5 and 2 times the largest node; bytes moved beyond the
compulsory against least recently used and Belady on the order given, with nothing rewritten or repeated.
``--cosma``: its three sizes, the largest node, the least peak of any order and half way between, against its
baselines, Belady's eviction with a linear allocator on the order given and on that of the least peak. ``bound``: no
plan costs less (``effc/passes/memory/bound.py``, with ``--prove`` seconds). ``--made`` adds those that
``bench/graphs`` builds; ``--only NAME`` picks. ``--out`` writes the plans as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from bench import graphs
from bench.memory import MIB, table
from bench.paging import page
from effc.passes.memory import order, problem
from effc.passes.memory.budget import BudgetError, Rules, minimum, own_bytes, within
from effc.passes.memory.problem import Problem
from effc.passes.memory.scratchpad import largest_node, of, scratchpad

FLOOR = 0.01  # a ratio of nothing to something counts as this in a geomean


def proven(cost: int, bound: int) -> dict[str, Any]:
    gap = "optimal" if cost <= bound else f"{100 * (cost - bound) / bound:.1f} %" if bound else "no bound"
    return {"bound MiB": bound / MIB, "gap": gap}


def budgets(p: Problem, rules: Rules, out: Path | None, prove: float) -> list[dict[str, Any]]:
    o = order.order(p, seconds=10.0)
    low = max(own_bytes(p, n, rewrite=False) for n in p.nodes)
    rows = []
    for part in (75, 50, 25) if low < o.peak else ():
        capacity = low + (o.peak - low) * part // 100
        base = page(p, o.order, capacity, "belady")
        row: dict[str, Any] = {"graph": p.name, "budget": f"{part} %", "MiB": capacity / MIB}
        row["Belady MiB"] = None if base is None else base / MIB
        try:
            b = within(p, capacity, rules=rules, prove=prove)
        except BudgetError as e:
            rows.append(
                row
                | {"moved MiB": f"needs {e.minimum}", "Mflop": None, "cost MiB": None, "ratio": None}
                | {"bound MiB": None, "gap": None, "s": None}
            )
            continue
        if out:
            (out / f"{p.name}.{part}.json").write_text(json.dumps(problem.steps_to_dict(b.steps)))
        row |= {"moved MiB": b.moved / MIB, "Mflop": b.flops / 1e6, "cost MiB": b.cost / MIB}
        row |= {"ratio": b.cost / base if base else None, **proven(b.cost, b.bound)}
        rows.append(row | {"s": b.seconds})
    return rows


def pads(p: Problem, out: Path | None, inputs: bool, prove: float, cosma: bool) -> list[dict[str, Any]]:
    rows = []
    node = largest_node(p, inputs=inputs)
    best = order.order(p, seconds=10.0)
    sizes = {f"{x} x": int(node * x) for x in (1.0, 1.25, 1.5, 2.0)}
    if cosma:
        q, _ = of(p, inputs=inputs)  # outputs leave, so its peak may be less
        best = order.order(q, seconds=10.0)
        sizes = {"node": node, "half": (node + best.peak) // 2 // p.align * p.align, "peak": best.peak}
    for name, capacity in sizes.items():
        s = scratchpad(p, capacity, inputs=inputs, prove=prove)
        q = s.problem
        # Loading is a node of its own: page replacement has inputs clean from the start.
        options: dict[str, Any] = {"outputs_far": True, "inputs": inputs}
        if cosma:
            # The order given, and that of the least peak without the loads that are nodes there.
            found = [n for n in best.order if n in p.node()]
            old = {
                "given": page(p, p.given, capacity, "belady", placed=True, **options),
                "least peak": page(p, found, capacity, "belady", placed=True, **options),
            }
        else:
            old = {"LRU": page(p, p.given, capacity, "lru", **options)}
            old |= {"Belady": page(p, p.given, capacity, "belady", **options)}
        assert all(x is not None for x in old.values()), "the largest node fits"
        if out:
            (out / f"{p.name}.pad.{name.replace(' ', '')}.json").write_text(
                json.dumps(problem.steps_to_dict(s.plan.steps))
            )
        row: dict[str, Any] = {"graph": p.name, "nodes": len(q.nodes), "pad": name, "MiB": capacity / MIB}
        row["compulsory MiB"] = s.compulsory / MIB
        row |= {f"{k} MiB": (x or 0) / MIB for k, x in old.items()} | {"ours MiB": s.extra / MIB}
        row |= {f"to {k}": s.extra / x if x else None for k, x in old.items()}
        row |= proven(s.extra, s.bound)
        rows.append(
            row
            | {"of the least to " + k: s.bound / x if x else None for k, x in list(old.items())[:1]}
            | {"s": s.plan.seconds}
        )
    return rows


def geomean(rows: list[dict[str, Any]], key: str = "ratio") -> str:
    logs = [math.log(max(FLOOR, r[key])) for r in rows if r[key] is not None]
    none = sum(r[key] == 0 for r in rows)
    if not logs:
        return "no rows to compare"
    return f"{key}: geomean {math.exp(sum(logs) / len(logs)):.3f} of {len(logs)} rows, {none} of them 0 (as {FLOOR})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.budget", description="plans within budgets against eviction")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--made", action="store_true", help="the graphs that bench/graphs builds too")
    parser.add_argument("--only", default="", help="graphs whose name has this")
    parser.add_argument("--scratchpad", action="store_true")
    parser.add_argument(
        "--cosma", action="store_true", help="scratchpads in COSMA's three sizes, against its baselines"
    )
    parser.add_argument("--prove", type=float, default=12.0, help="seconds for the bound of a row")
    parser.add_argument("--inputs", action="store_true", help="scratchpads: inputs take space and are read from afar")
    parser.add_argument("--no-recompute", action="store_true")
    parser.add_argument("--no-rewrite", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for the plans")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    problems = [problem.from_json(f) for f in args.files]
    if args.made:
        problems += [make() for make in graphs.BUILT.values()]
    problems = [p for p in problems if args.only in p.name]
    rules = dataclasses.replace(Rules(), recompute=not args.no_recompute, rewrite=not args.no_rewrite)
    rows = []
    pad = args.scratchpad or args.cosma
    for p in problems:
        rows += (
            pads(p, args.out, args.inputs, args.prove, args.cosma) if pad else budgets(p, rules, args.out, args.prove)
        )
    if rows:
        print(table(rows), end="\n\n")
        for key in [k for k in rows[0] if k == "ratio" or k.startswith(("to ", "of the least"))]:
            print(geomean(rows, key))
        print(sum(r["gap"] == "optimal" for r in rows), "of", len(rows), "proven optimal")
        if pad:
            total = {k: sum(r[k] for r in rows) for k in rows[0] if k.endswith(" MiB") and k != "compulsory MiB"}
            print(", ".join(f"{k} {v:.2f}" for k, v in total.items()), "in all")
    same = [p.name for p in problems if minimum(p, rewrite=False).bytes >= order.order(p, seconds=10.0).peak]
    if same and not pad:
        print("the largest node needs as much as the best order:", ", ".join(same))


if __name__ == "__main__":
    main()
