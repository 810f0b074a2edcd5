"""The integer program against the searches, one kind of problem after another.

    python -m bench.memory_program KIND FILE... [--seconds 60] [--workers 2] [--solver cp-sat] [--share 0.5]

KIND: ``order`` (peak of live bytes), ``placement`` (FILE: instances, id, lower, upper, size), ``coupled`` (order and
offsets), ``rewrites`` (in place, concatenations and views, chosen with the order; ``rewrites-coupled`` with offsets
too; the searches know no views), ``spill``, ``recompute``, ``both`` (within a capacity ``--share`` of the way from the
largest node's own bytes to the searches' peak), ``spaces`` (a fast space of ``--share`` of the peak). ``--cold`` starts
the program from the order given instead of the searches' plan. A FILE may also be the name of a graph that
``bench/graphs`` builds.

Objectives are bytes, for ``spill`` and ``spaces`` bytes moved, for ``recompute`` and ``both`` FLOPs with 16 to a byte
moved. A row has what the searches reach and in what time, what the program makes of it, the bound that it proves and
the time it takes (its start's is not in it).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bench import graphs
from bench.memory import table
from effc.passes.memory import integer_program as program
from effc.passes.memory import order, problem, schedule
from effc.passes.memory.plan import plan as search_offsets
from effc.passes.memory.verify import verify_steps

KINDS = ("order", "placement", "coupled", "rewrites", "rewrites-coupled", "spill", "recompute", "both", "spaces")


def own(p: problem.Problem) -> int:
    """The largest node's own bytes: no order needs less."""
    inputs = {t.id for t in p.tensors.values() if t.kind == "input"}
    touched = [(n, {*n.ins, *n.outs} - inputs) for n in p.nodes]
    return max((n.workspace + sum(p.tensors[t].bytes for t in ts) for n, ts in touched), default=0)


def row(name: str, size: int, searched: int | None, seconds: float, o: program.Outcome, **more: Any) -> dict[str, Any]:
    if o.ended == "infeasible":
        what = "proven impossible"
    elif o.layout is o.steps is o.placement is None:
        what = "no plan found"
    elif searched is None or o.objective < searched:
        what = "better" if searched is not None else "a plan"
    else:
        what = "nothing added"
    return {
        "name": name,
        "nodes or buffers": size,
        "searches": searched,
        "searches s": round(seconds, 3),
        "program": None if o.ended == "infeasible" or (o.layout is o.steps is o.placement is None) else o.objective,
        "bound": o.bound,
        "gap": "" if o.ended == "infeasible" else f"{100 * o.gap:.1f} %" if o.gap < 100 else "no bound",
        "ended": o.ended,
        "s": round(o.seconds, 1),
        "variables": o.variables,
        "rows": o.rows,
        "pieces": o.pieces,
        "": what,
        **more,
    }


def graph(kind: str, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    p = graphs.BUILT[path.name]() if path.name in graphs.BUILT else problem.from_json(path)
    options: dict[str, Any] = {"seconds": args.seconds, "workers": args.workers, "solver": args.solver}
    name, nodes = path.name.split(".")[0], len(p.nodes)
    began = time.perf_counter()
    if kind in ("order", "coupled", "rewrites", "rewrites-coupled"):
        rewrite, offsets = kind.startswith("rewrites"), kind.endswith("coupled")
        if rewrite:
            start = schedule.schedule(p, rewrite=True).layout
        else:
            found = order.order(p)
            start = schedule.lay_out_found(p, found) if offsets or not args.cold else schedule.lay_out(p, p.given)
            if not offsets and args.cold:
                took = time.perf_counter() - began
                o = program.least_arena(p, start, **options)
                return row(name, nodes, found.peak, took, o)
        took = time.perf_counter() - began
        begin = schedule.lay_out(p, p.given) if args.cold else start
        o = program.least_arena(p, begin, rewrite=rewrite, offsets=offsets, **options)
        return row(name, nodes, start.arena if offsets else start.live, took, o)
    found = order.order(p)
    if kind == "spaces":
        capacity = int(args.share * schedule.lay_out(p, p.given).live) // p.align * p.align
        o, _ = program.two_spaces(p, capacity, **options)
        return row(name, nodes, o.start, 0.0, o, capacity=capacity)
    capacity = int(own(p) + args.share * (found.peak - own(p))) // p.align * p.align
    start_steps = None
    for candidate in (found.order, p.given):
        trial = program.furthest(p, candidate, capacity)
        if trial is not None and (start_steps is None or program.cost(p, trial) < program.cost(p, start_steps)):
            start_steps = trial
    if start_steps is not None:
        start_steps, placements = schedule.place_steps(p, start_steps)
        if max(x.total for x in placements.values()) > capacity:
            start_steps = None
    took = time.perf_counter() - began
    spill, recompute = kind in ("spill", "both"), kind in ("recompute", "both")
    searched = None
    if start_steps is not None and spill:
        verify_steps(p, start_steps)
        searched = program.cost(p, start_steps)
    o = program.within(
        p, capacity, start_steps if spill else None, spill=spill, recompute=recompute, most=args.most, **options
    )
    if kind == "spill":  # bytes
        flops = program.BYTE_FLOPS
        got = row(name, nodes, searched, took, o, capacity=capacity)
        for key in ("searches", "program", "bound"):
            got[key] = got[key] // flops if got[key] is not None else None
        return got
    return row(name, nodes, searched, took, o, capacity=capacity)


def instance(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    intervals = problem.intervals_from_csv(path)
    began = time.perf_counter()
    found = search_offsets(intervals, budget=30_000_000_000, seconds=args.seconds)
    took = time.perf_counter() - began
    o = program.place(intervals, solver=args.solver, seconds=args.seconds, workers=args.workers)
    return row(path.stem, len(intervals), found.total, took, o, start=o.start)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.memory_program", description="the integer program and the searches")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--solver", default="cp-sat")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--most", type=int, default=48, help="nodes in a piece")
    parser.add_argument("--cold", action="store_true", help="start from the order given")
    args = parser.parse_args()
    print(f"{args.kind}, {args.solver}, {args.seconds:g} s, {args.workers} workers, share {args.share:g}")
    run = instance if args.kind == "placement" else lambda f, a: graph(a.kind, f, a)
    print(table([run(f, args) for f in args.files]), flush=True)


if __name__ == "__main__":
    main()
