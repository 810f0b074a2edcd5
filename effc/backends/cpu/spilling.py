"""Budgets of the arena (``arena_budget``): a program made to run in so many bytes, or refused with the least that it
takes.

Where the arena of a lowered program is too large, ``passes/memory/budget.py`` plans it anew: another order, results
over operands, calls repeated instead of results kept, and storages copied to a far memory (``spill``) and back
(``refill``). Here the program is read as its problem and written as its plan: each stay of a storage in the arena
becomes a value of its own with its own offset, and whoever reads the storage meanwhile reads that value. All calls are
those of the program without a budget, on the same data, so results have the same bits. Control flow runs once, as do
calls that draw random numbers, touch what changes, or assert.

What a repeated call costs is what the roofline says: its operations, or its bytes at the speed of memory where those
take longer. Sizes that vary are planned at their bounds, for which each block's bytes are worked out by interval
arithmetic: offsets then hold for all smaller sizes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...cost.calls import calls
from ...cost.roofline import operations
from ...ir import dims
from ...ir.dims import SymExpr
from ...ir.dtypes import DType
from ...passes.memory import budget as planner
from ...passes.memory.plan import aligned, lower_bound
from ...passes.memory.problem import Problem, Steps
from ...passes.memory.program import blocks, fixed_offsets, from_program, nbytes, nested, storage, workspace
from ...passes.memory.verify import verify_placement
from ...runtime.errors import EffcError
from .lower.finish import compact
from .streaming import arena_bytes, sizes_to_try

Program = dict[str, Any]
Ranges = Mapping[str, tuple[int, int]]

NEAR = 8  # operations in the time that a byte takes to memory and back, a quarter of what the far one takes
WORK = 12_000_000  # of a search for a plan
SECONDS = 9.0  # its outer guard


class Refused(EffcError):
    """A budget that a program cannot keep. ``least``: bytes that would do, or none less; ``room``: what the budget
    leaves the arena."""

    least = 0
    room = 0

    def but(self, message: str) -> Refused:
        """The same in other words."""
        made = Refused(message, op=self.op, loc=self.loc, pass_name=self.pass_name, hint=self.hint)
        made.least, made.room = self.least, self.room
        return made


def least(program: Program, threads: int, ranges: Ranges) -> int:
    """Bytes of the least arena that the instructions of a program run in, whatever is spilled and repeated."""
    ways = (program, *program.get("others", {}).values())
    return min(_Way.of(p, threads, ranges).least.bytes for p in ways)


def shrunk(
    name: str, program: Program, threads: int, ranges: Ranges, budget: int, option: str
) -> tuple[Program, dict[str, Any]]:
    """One entry point's program within ``budget`` bytes on at most ``threads`` threads, and its report; ``at`` in it
    has the new places of instructions. ``option`` is what errors call the budget.

    A program may hold ``others``, further ways to write it, with less of its concatenations in place. The cheapest is
    taken. :class:`Refused` names the least arena, the instruction that needs it, and what to try.
    """
    began = time.perf_counter()
    total, _ = arena_bytes(program, threads, ranges)
    others = program.get("others", {})
    program = {k: v for k, v in program.items() if k != "others"}
    apart = bool(program["arena"].get("apart"))
    ways = {"in place": _Way.of(program, threads, ranges)} if not apart else {}
    ways |= {key: _Way.of(other, threads, ranges) for key, other in others.items()}
    report: dict[str, Any] = {"budget": budget, "unlimited": total, "arena": total, "changed": False}
    if ways:
        report["minimum"], report["minimum_proven"] = min(w.least.bytes for w in ways.values()), True
    if total <= budget:
        program["arena"] = {**program["arena"], "limit": budget, "threads": threads}
        return program, {**report, "seconds": round(time.perf_counter() - began, 4)}
    if apart:
        raise EffcError(
            f"{option} is {budget} bytes, but entry point {name} needs an arena of {total} bytes without memory "
            "planning", pass_name="memory budget", hint="leave 'memory' out of disable_passes",
        )  # fmt: skip
    key = min(ways, key=lambda k: ways[k].least.bytes)
    if ways[key].least.bytes > budget // 64 * 64:
        raise _refusal(name, ways[key], budget, ways[key].least.bytes, True, option)
    chosen, made = _choose(name, ways, budget, option)
    way = ways[chosen]
    done, moved = rewrite(way.program, way.problem, made.steps)
    envs = sizes_to_try(ranges)
    arena = _checked(done, threads, envs, budget)
    bound = max(lower_bound(blocks(done, e, threads)) for e in envs)
    done["arena"] = {
        "static_bytes": None if ranges else arena, "lower_bound": None if ranges else bound, "threads": threads,
        "limit": budget, "fixed": True, "sequences": [],
    }  # fmt: skip
    compact(done)
    again = [ins for ins in done["code"] if ins.pop("again", False)]
    env = envs[-1]
    report.update(
        arena=arena, changed=True, way=chosen, order=made.how, gaps_optimal=made.gaps_optimal, cost=made.cost,
        spills=sum(i["op"] == "spill" for i in done["code"]), refills=sum(i["op"] == "refill" for i in done["code"]),
        spilled_bytes=_moved(done, "spill", env), refilled_bytes=_moved(done, "refill", env),
        repeated=len(again), repeated_flops=sum(_flops(ins, env) for ins in again),
        largest={"name": way.who[0], "loc": way.who[2], "bytes": way.least.bytes},
        seconds=round(time.perf_counter() - began, 4),
    )  # fmt: skip
    if chosen in others:  # instructions are numbered as in the other way to write the program
        moved = {ins["was"]: moved[k] for k, ins in enumerate(way.program["code"]) if ins["was"] is not None}
    for ins in done["code"]:
        ins.pop("was", None)
    return done, {**report, "at": moved}


def _moved(program: Program, op: str, env: Mapping[str, int]) -> int:
    values = program["values"]
    return sum(nbytes(values[(ins["in"] or ins["out"])[0]], env) for ins in program["code"] if ins["op"] == op)


def _flops(ins: Mapping[str, Any], env: Mapping[str, int]) -> int:
    flops = ins.get("flops", 0)
    return int(dims.evaluate(flops, env)) if isinstance(flops, SymExpr) else int(flops)


# A program as a problem -----------------------------------------------------------------------------------------------


@dataclass
class _Way:
    """One way to write a program, with its problem at the largest sizes."""

    program: Program
    problem: Problem
    least: planner.Minimum
    threads: int

    @staticmethod
    def of(program: Program, threads: int, ranges: Ranges) -> _Way:
        free = unplanned(program)
        p = problem(free, threads, ranges)
        return _Way(free, p, planner.minimum(p), threads)

    @property
    def who(self) -> tuple[str, str, str]:
        """Name, kernel and source line of what needs the least arena."""
        if self.least.node is None:
            return "the results that stay", "", ""
        ins = self.program["code"][self.least.node]
        return ins.get("name") or ins["op"], ins.get("kernel", ins["op"]), ins.get("loc", "")


def unplanned(program: Program) -> Program:
    """A copy without the arena's offsets, and without results over temporary operands: the planner chooses those anew.
    A call with several results keeps the operands that it overwrites."""
    values, code = [dict(v) for v in program["values"]], [dict(ins) for ins in program["code"]]
    several = {i for ins in code for i in ins["out"] if len(ins["out"]) > 1}
    for i, v in enumerate(values):
        if v["k"] != "temp":
            continue
        v.pop("offset", None)
        if "alias" in v and i not in several and values[storage(values, i)]["k"] == "temp":
            del v["alias"]
    for ins in code:
        ins.pop("work_at", None)
    return {**program, "values": values, "code": code}


def problem(program: Program, threads: int, ranges: Ranges) -> Problem:
    """The memory problem of a program, with the most bytes that each block takes at any size, and operations from the
    roofline."""
    env = {s: hi for s, (_, hi) in ranges.items()}
    p = from_program(program, sizes=env, threads=threads)
    work = {k: _operations(program, k, env) for k, ins in enumerate(program["code"]) if ins["op"] == "call"}
    nodes = [dataclasses.replace(n, flops=work.get(n.id, n.flops)) for n in p.nodes]
    if not ranges:
        return dataclasses.replace(p, nodes=tuple(nodes))
    tensors = {}
    for t in p.tensors.values():
        most = max(t.raw, _most_bytes(program["values"][t.id], ranges))
        tensors[t.id] = dataclasses.replace(t, bytes=aligned(most), raw_bytes=most)
    nodes = [dataclasses.replace(n, workspace=_most_workspace(program, n.id, threads, ranges)) for n in nodes]
    return dataclasses.replace(p, nodes=tuple(nodes), tensors=tensors)


def _operations(program: Program, k: int, env: Mapping[str, int]) -> int:
    one = {"values": program["values"], "code": [program["code"][k]]}
    (call,) = calls(one, env)
    return max(1, int(max(operations(call), NEAR * call.bytes)))


def _most(d: Any, ranges: Ranges) -> int:
    """The largest value of a dim, or what it can be shown not to exceed."""
    if isinstance(d, int):
        return d
    high = dims.bounds(d, ranges)[1]
    if math.isinf(high):
        raise EffcError(
            f"arena_budget cannot be kept: nothing bounds the size {d}", pass_name="memory budget",
            hint="give every dynamic dim a bound: torch.export.Dim(name, max=...)",
        )  # fmt: skip
    return int(high)


def _most_bytes(v: Mapping[str, Any], ranges: Ranges) -> int:
    each = math.prod(max(0, _most(d, ranges)) for d in v["shape"])
    together = max(0, _most(dims.product(v["shape"]), ranges))
    return max(min(each, together) * DType(v["d"]).itemsize, _most(v.get("bytes", 0), ranges))


def _most_workspace(program: Program, k: int, threads: int, ranges: Ranges) -> int:
    ins = program["code"][k]
    tried = max(workspace(program["values"], ins, env, threads) for env in sizes_to_try(ranges))
    if nested(ins):
        return tried  # of nested programs, the sizes tried; the runtime refuses those that need more
    most = aligned(_most(ins.get("scratch", 0), ranges)) + threads * aligned(
        _most(ins.get("thread_scratch", 0), ranges)
    )
    return max(tried, most)


# The plan -------------------------------------------------------------------------------------------------------------


def _choose(name: str, ways: Mapping[str, _Way], budget: int, option: str) -> tuple[str, planner.Budgeted]:
    """The cheapest plan. EffcError if none was found."""
    best: tuple[str, planner.Budgeted] | None = None
    failed: tuple[_Way, planner.BudgetError] | None = None
    for key, way in ways.items():
        if way.least.bytes > budget // 64 * 64:
            continue
        try:
            made = planner.within(way.problem, budget, work=WORK, seconds=SECONDS, prove=0.0)
        except planner.BudgetError as e:
            failed = failed or (way, e)
            continue
        if best is None or made.cost < best[1].cost:
            best = key, made
    if best is None:
        assert failed is not None
        raise _refusal(name, failed[0], budget, failed[1].minimum, failed[1].proven, option) from failed[1]
    return best


def _refusal(name: str, way: _Way, budget: int, least: int, proven: bool, option: str) -> Refused:
    what, kernel, loc = way.who
    ins = way.program["code"][way.least.node] if way.least.node is not None else {}
    if proven:
        said = f"the least arena that its instructions run in is {least} bytes (proven): {what} needs them together"
    else:
        said = f"no plan was found; none is below {least} bytes, which {what} needs (a bound)"
    if kernel and way.least.node is not None:
        work = way.problem.node()[way.least.node].workspace
        said += f", for its operands, its results and {work} bytes of scratch" if work else ", for operands and results"
    more = least if proven else budget + budget // 8
    try_this = f"give {option}={more}" if option == "arena_budget" else "give memory_budget some more"
    scratch = ins.get("thread_scratch", 0)
    if way.threads > 1 and (isinstance(scratch, SymExpr) or scratch):
        try_this += ", or fewer threads (each has scratch of its own)"
    else:
        try_this += ", or the model smaller inputs"
    made = Refused(
        f"{option} is {budget} bytes, into which entry point {name} does not fit: {said}", op=kernel or None,
        loc=loc or None, pass_name="memory budget", hint=try_this,
    )  # fmt: skip
    made.least, made.room = least, budget
    return made


def _checked(program: Program, threads: int, envs: Sequence[Mapping[str, int]], budget: int) -> int:
    """The most that the arena takes at these sizes, once more and from the program as it is now: no two blocks that
    live together overlap."""
    at = fixed_offsets(program)
    most = max(verify_placement(blocks(program, env, threads), at) for env in envs)
    if most > budget:
        raise AssertionError(f"an arena of {most} bytes for a budget of {budget}")
    return most


# A plan as a program --------------------------------------------------------------------------------------------------


def rewrite(program: Program, p: Problem, steps: Steps) -> tuple[Program, dict[int, int]]:
    """The program as the plan's actions, with their offsets; and where each instruction runs first."""
    return _Writer(program, p, steps).run()


@dataclass
class _Writer:
    program: Program
    problem: Problem
    steps: Steps
    near: dict[int, int] = field(default_factory=dict)  # tensor -> the value that it is now
    begun: set[int] = field(default_factory=set)

    def run(self) -> tuple[Program, dict[int, int]]:
        self.given = self.program["values"]
        self.values = [dict(v) for v in self.given]
        self.root = [storage(self.given, i) for i in range(len(self.given))]
        self.views: dict[tuple[int, int], int] = {}
        slots = _slots(self.problem, self.steps)
        first = 1 + max((ins["slot"] for ins in self.program["code"] if "slot" in ins), default=-1)
        by = {t: n.id for n in self.problem.nodes for t in n.outs}
        nodes, at = self.problem.node(), {}
        code: list[dict[str, Any]] = []
        for k, (action, x) in enumerate(self.steps.actions):
            if action == "drop":
                self.near.pop(x, None)
            elif action == "run":
                ins = self._operands(self.program["code"][x])
                over = self.steps.inplace.get(k)
                taken = self.near.pop(over) if over is not None else None
                for t in nodes[x].outs:
                    if t not in self.near:
                        self._begin(t, k, taken)
                ins["out"] = [self._now(i) for i in ins["out"]]
                if k in self.steps.workspaces:
                    ins["work_at"] = self.steps.workspaces[k]
                if x in at:
                    ins["again"] = True
                at.setdefault(x, len(code))
                code.append(ins)
            else:
                if action == "refill":
                    self._begin(x, k, None)
                made = self.program["code"][by[x]]
                copy = {"op": action, "kernel": action, "in": [], "out": [], "slot": first + slots[k]}
                copy["in" if action == "spill" else "out"] = [self.near[x]]
                copy |= {"name": made.get("name", ""), "loc": made.get("loc", ""), "flops": 0}
                copy["bytes"] = dims.product(self.given[x]["shape"]) * DType(self.given[x]["d"]).itemsize
                code.append(copy)
        out = {**self.program, "values": self.values, "code": code}
        out["outputs"] = [self._now(i) for i in self.program["outputs"]]
        out["commits"] = [{**c, "value": self._now(c["value"])} for c in self.program["commits"]]
        return out, at

    def _begin(self, t: int, k: int, over: int | None) -> None:
        """Tensor ``t`` comes into the arena, at the first time as the value that it was, then as further ones."""
        assert self.steps.offsets is not None
        value = t
        if t in self.begun:
            value = len(self.values)
            self.values.append(dict(self.given[t]))
        self.begun.add(t)
        if over is None:
            self.values[value]["offset"] = self.steps.offsets[k, t]
        else:
            self.values[value]["alias"] = over
        self.near[t] = value

    def _now(self, i: int) -> int:
        """The value that shows now what value ``i`` of the program shows."""
        if i < 0 or self.root[i] not in self.problem.tensors:
            return i
        value = self.near[self.root[i]]
        return i if value == self.root[i] else self._shown(i, value)

    def _shown(self, i: int, value: int) -> int:
        if i == self.root[i]:
            return value
        if (i, value) not in self.views:
            copy = dict(self.given[i])
            key = "base" if copy["k"] == "view" else "alias"
            copy[key] = self._shown(copy[key], value)
            self.values.append(copy)
            self.views[i, value] = len(self.values) - 1
        return self.views[i, value]

    def _operands(self, ins: Mapping[str, Any]) -> dict[str, Any]:
        new = dict(ins)
        for key in ("in", "carry", "xs", "consts"):
            if key in new:
                new[key] = [self._now(i) for i in new[key]]
        if isinstance(new.get("cond"), int):
            new["cond"] = self._now(new["cond"])
        return new


def _slots(p: Problem, steps: Steps) -> dict[int, int]:
    """A place in the far memory for each spill and refill, by action: one that is free, of the nearest size, from the
    spill to the last refill of that copy."""
    last: dict[int, int] = {}  # spill -> the last action that needs its copy
    current: dict[int, int] = {}
    for k, (action, t) in enumerate(steps.actions):
        if action == "spill":
            current[t] = k
        if action in ("spill", "refill"):
            last[current[t]] = k
    sizes: list[int] = []
    until: list[int] = []
    held: dict[int, int] = {}  # tensor -> slot
    out: dict[int, int] = {}
    for k, (action, t) in enumerate(steps.actions):
        if action == "spill":
            free = [s for s in range(len(sizes)) if until[s] < k]
            need = p.tensors[t].raw
            slot = min(free, key=lambda s: (abs(sizes[s] - need), s), default=len(sizes))
            if slot == len(sizes):
                sizes.append(0)
                until.append(0)
            sizes[slot], until[slot], held[t] = max(sizes[slot], need), last[k], slot
        if action in ("spill", "refill"):
            out[k] = held[t]
    return out


__all__ = ["Refused", "least", "problem", "rewrite", "shrunk", "unplanned"]
