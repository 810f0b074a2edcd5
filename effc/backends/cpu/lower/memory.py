"""The memory of a lowered program: the order of its instructions, results written over operands, the arena.

``passes/memory`` chooses; here its choices are put into the program. Sizes that vary are planned at samples within
their bounds: one order and one set of rewrites for all, and for each sample the sequence in which its blocks were
placed, which the runtime repeats for the sizes of a call (``runtime/src/plan.cpp``).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ....passes.memory import locality
from ....passes.memory.problem import Choices, Problem, boxes, lifetimes
from ....passes.memory.program import Reading, Sizes, from_program, operands, overwritable, size, storage
from ....passes.memory.schedule import Layout, Schedule, lay_out, schedule
from . import concat

if TYPE_CHECKING:
    from . import Lowering

STATES = 200_000  # of a search for an order
WORK = 20_000_000  # of a search for offsets
SECONDS = 3.0  # for all of a program
CONCAT_TRIALS = 24  # concatenations that are chosen one by one
CONCAT_WORTH = 0.95  # of the arena: where it gets that small, another part may stay a copy
CONCAT_SECONDS = 3.0  # for all of them: an outer guard
ONE_LOW = (0.5, 0.75, 1.0)  # of the way to their upper bounds: the other symbols where one is near its lower one
PROBED = 4  # symbols that are each near their lower bound in a sample of their own
SMALL = 128 << 10  # bytes of an arena at one sample of several that do not count
LARGEST_SAMPLE = 1 << 14  # of a symbol without a bound, or with a far one
TYPICAL = 512


def samples(symbols: Iterable[Mapping[str, Any]]) -> list[Sizes]:
    """Sizes at which a dynamic program is planned: the upper bounds where they are given and not out of reach, in
    between, and near the lower bounds. One, empty, for a program without symbols."""
    known = [s for s in symbols if s.get("from") is not None]
    return _distinct({s["name"]: _size(s, where) for s in known} for where in (1.0, 0.5, 0.0))


def _probes(symbols: Iterable[Mapping[str, Any]]) -> list[Sizes]:
    """The samples, and those where one size alone is near its lower bound and the others are large or between: of a few
    large images, say, where scratch is another part of the arena than for many."""
    known = [s for s in symbols if s.get("from") is not None]
    one_low = (
        {s["name"]: _size(s, where * (s is not low)) for s in known} for low in known[:PROBED] for where in ONE_LOW
    )
    return _distinct([*samples(known), *one_low])


def _size(symbol: Mapping[str, Any], where: float) -> int:
    """A size within a symbol's bounds: 0 near the lower one, 1 the upper one, uniform in the logarithm."""
    low = max(1, symbol["lo"])
    high = max(low, TYPICAL if symbol["hi"] is None else min(symbol["hi"], LARGEST_SAMPLE))
    low = min(max(low, 2), high)
    return round(low ** (1 - where) * high**where)


def _distinct(envs: Iterable[Mapping[str, int]]) -> list[Sizes]:
    return [Sizes(e) for e in dict.fromkeys(tuple(e.items()) for e in envs)]


@dataclass
class _Choice:
    order: Sequence[int]
    choices: Choices
    arenas: list[int]


@dataclass
class _Way:
    """One way to write the program, and what planning makes of it."""

    values: list[dict[str, Any]]
    code: list[dict[str, Any]]
    placed: int  # operands of concatenations that are made in place
    problems: list[Problem] = field(default_factory=list)
    made: list[Schedule] = field(default_factory=list)
    best: _Choice = field(default_factory=lambda: _Choice((), Choices(), []))


def arrange(cx: Lowering, outputs: Sequence[int], commits: Sequence[Mapping[str, Any]], symbols: Any) -> dict[str, Any]:
    """Orders ``cx.code`` anew, lets results take the place of operands, and plans the arena: the program's ``arena``.

    ``symbols``: of the outermost program.
    """
    threads = cx.options.num_threads or len(os.sched_getaffinity(0))
    program: dict[str, Any] = {"values": cx.values, "code": cx.code, "outputs": outputs, "commits": commits}
    envs = samples(symbols)
    static = not any(s.get("from") is not None for s in symbols)
    if not cx.options.memory:
        cx.memory = {"planning": "off"}
        _put_apart(program, threads, static)
        return program["arena"]
    began = time.perf_counter()
    for k, ins in enumerate(cx.code):
        ins["was"] = k
    unplanned = [_as_given(p) for p in _problems(program, envs, threads)]
    ways = [_Way(cx.values, cx.code, 0), *_concat_in_place(cx, program, _probes(symbols), threads)]
    for way in ways:
        read = {**program, "values": way.values, "code": way.code}
        _overwrite_first(read)
        way.problems = _problems(read, envs, threads)
        way.made = [_schedule(p) for p in way.problems]
        way.best = _choose(way.problems, way.made, from_program(read, sizes=envs[0], threads=threads))
    way = ways[0]
    for other in ways[1:]:  # what is not copied is worth having where the arena is no larger
        if _no_larger(other.best.arenas, way.best.arenas):
            way = other
    if cx.options.others and cx.parent is None and concat.candidates(cx.code):
        _other_ways(cx, ways[0], concat.kept_storages(cx.values, outputs, commits))
    cx.values[:], cx.code[:] = way.values, way.code
    if way.placed:
        cx.kernels.add("effc_copy")
    cx.memory["concat"]["in_place"] = way.placed
    problems, made, best = way.problems, way.made, way.best
    _apply(cx, best, problems[0])
    layouts, arena = _laid_out(program, envs, threads, static)
    _report(cx, envs, unplanned, problems, made, layouts, best, time.perf_counter() - began)
    return arena


def _problems(program: Mapping[str, Any], envs: Sequence[Mapping[str, int]], threads: int) -> list[Problem]:
    """A program at each of these sizes."""
    reading = Reading(program, envs[0])
    return [reading.at(e, threads, these=True) for e in envs]


def _laid_out(
    program: Mapping[str, Any], envs: Sequence[Mapping[str, int]], threads: int, static: bool
) -> tuple[list[Layout], dict[str, Any]]:
    """The blocks of a program in its order, at each sample, and what the program says of its arena."""
    problems = _problems(program, envs, threads)
    layouts = [lay_out(p, p.given, budget=WORK) for p in problems]
    arena: dict[str, Any] = {"static_bytes": None, "lower_bound": None, "threads": threads}
    arena["sequences"] = [list(x) for x in dict.fromkeys(tuple(_sequence(p, x)) for p, x in zip(problems, layouts))]
    if static:
        _put_offsets(program, layouts[0])
        arena.update(static_bytes=layouts[0].arena, lower_bound=layouts[0].live)
    return layouts, arena


def place(program: dict[str, Any], threads: int) -> None:
    """Plans the arena of a program whose instructions were changed after it was arranged: in its order, with what it
    overwrites."""
    static = not any(s.get("from") is not None for s in program["symbols"])
    if program["arena"].get("apart"):
        _put_apart(program, threads, static)
    else:
        program["arena"] = _laid_out(program, samples(program["symbols"]), threads, static)[1]


def _no_larger(arenas: Sequence[int], others: Sequence[int]) -> bool:
    """At no sample of sizes, the largest first; but what is small at the others counts as nothing, so that a few pixels
    do not decide for large images."""
    floors = (0, *(SMALL for _ in arenas[1:]))
    return all(x <= max(y, floor) for x, y, floor in zip(arenas, others, floors, strict=True))


def _schedule(p: Problem) -> Schedule:
    return schedule(p, rewrite=True, states=STATES, work=WORK, seconds=SECONDS)


def _choose(problems: Sequence[Problem], made: Sequence[Schedule], whole: Problem) -> _Choice:
    """The order and rewrites that are best at the sample where they are worst; of equal ones, those that write most
    over operands, and the order that has producers and consumers nearest. ``whole``: the problem where everything is
    seen, in which an operand must be dead that is overwritten."""
    least = [s.layout.arena for s in made]
    best: tuple[float, _Choice] | None = None

    def offer(order: Sequence[int], choices: Choices, first: bool) -> None:
        nonlocal best
        arenas = []
        for p, bound in zip(problems, least):
            try:
                arenas.append(lay_out(p, order, choices, budget=WORK).arena)
            except ValueError:
                return
            if best is not None and arenas[-1] > best[0] * max(bound, 1):
                return
        worst = max(a / max(bound, 1) for a, bound in zip(arenas, least))
        if best is None or worst < best[0] or (not first and worst <= best[0]):
            best = (worst, _Choice(order, choices, arenas))

    for s in made:
        offer(s.layout.plan.order, _where_dead(whole, s.layout.plan.order, s.layout.plan.choices), True)
    assert best is not None
    offer(best[1].order, _wherever(whole, best[1].order), False)
    if len(made[0].layout.plan.order) <= locality.LARGEST:
        near = locality.improve(problems[0], best[1].order)
        if list(near) != list(best[1].order):
            offer(near, _wherever(whole, near), False)
    return best[1]


def _as_given(p: Problem) -> int:
    return lay_out(p, p.given, budget=WORK).arena


def _wherever(p: Problem, order: Sequence[int]) -> Choices:
    """Every result over an operand that dies there: what is not moved through the caches is free."""
    at = {n: k for k, n in enumerate(order)}
    life = lifetimes(p, order)
    over: dict[int, int] = {}
    for n in p.nodes:
        dying = [t for t in n.inplace_ok if p.tensors[t].kind == "intermediate" and life[t][1] == at[n.id]]
        if dying:
            over[n.id] = max(dying, key=lambda t: p.tensors[t].bytes)
    return Choices(over)


def _where_dead(p: Problem, order: Sequence[int], choices: Choices) -> Choices:
    """Of results over operands, those whose operand dies there in this problem too."""
    at = {n: k for k, n in enumerate(order)}
    life = lifetimes(p, order)
    return Choices({n: t for n, t in choices.inplace.items() if life[t][1] == at[n]})


def _apply(cx: Lowering, best: _Choice, p: Problem) -> None:
    node = p.node()
    for k in best.order:
        if k in best.choices.inplace:
            cx.values[node[k].outs[0]]["alias"] = storage(cx.values, best.choices.inplace[k])
    cx.code[:] = [cx.code[k] for k in best.order]
    new = {ins.pop("was"): k for k, ins in enumerate(cx.code)}
    for _, code in cx.others.values():
        for ins in code:
            ins["was"] = new.get(ins["was"])  # the same call in the program as it is written
    if cx.parent is None:
        for d in cx.decisions:
            if "at" in d:
                d["at"] = new[d["at"]]  # a call that the cost model decides on is not removed


@dataclass
class _Tried:
    """A program at one sample, in its order."""

    problem: Problem
    over: Choices
    arena: int

    def besides(self, tensor: int) -> int:
        """The most bytes live at a time at which this tensor is not; 0 where it is no part of the arena."""
        placed, where = boxes(self.problem, self.problem.given, self.over)
        if tensor not in where:
            return 0
        of = next(i for i in placed if i.id == where[tensor][0])
        live = [0] * (len(self.problem.nodes) + 2)
        for i in placed:
            for start, stop, low, high in i.boxes:
                if start <= stop:
                    live[start] += high - low
                    live[stop + 1] -= high - low
        at = list(itertools.accumulate(live))
        return max((n for k, n in enumerate(at) if not of.start <= k <= of.stop), default=0)


def _concat_in_place(
    cx: Lowering, program: dict[str, Any], envs: Sequence[Mapping[str, int]], threads: int
) -> list[_Way]:
    """The program with operands of concatenations made inside the result, as many as there is room for without a larger
    arena at any sample, in the order given: all of them, then one concatenation after the other, the largest first. A
    result lives from its first part on; where that costs room, parts that are made early stay copies."""
    which = concat.candidates(cx.code)
    operands_of = sum(len(cx.code[k]["in"]) for k in which)
    cx.memory["concat"] = {"instructions": len(which), "operands": operands_of, "in_place": 0}
    if not which:
        return []
    kept = concat.kept_storages(cx.values, program["outputs"], program["commits"])
    until = time.perf_counter() + CONCAT_SECONDS

    def tried(values: Any, code: Any, limits: Sequence[int] | None = None) -> list[_Tried] | None:
        """The program at each sample; None as soon as an arena is larger than its limit."""
        reading = Reading({**program, "values": values, "code": code}, envs[0])
        whole = reading.at(envs[0], threads)
        over = _wherever(whole, whole.given)
        out: list[_Tried] = []
        for e in envs:
            p = reading.at(e, threads, these=True)
            out.append(_Tried(p, over, lay_out(p, p.given, over, budget=WORK // 20).arena))
            if limits is not None and not _no_larger([x.arena for x in out], limits[: len(out)]):
                return None
        return out

    now = tried(cx.values, cx.code)
    assert now is not None
    chosen: dict[int, tuple[int, ...]] = {}
    taken = _Way(cx.values, cx.code, 0)
    choices = {k: concat.choices_of(cx.values, cx.code, k) for k in which}
    by_bytes = sorted(which, key=lambda k: -_largest(cx.code[k], envs[0]))[:CONCAT_TRIALS]
    trials = [{k: choices[k][0] for k in which}, *({k: parts} for k in by_bytes for parts in choices[k])]
    for trial in trials:
        wanted = {**chosen, **trial}
        if wanted == chosen or time.perf_counter() > until:
            continue
        k, parts = next(iter(trial.items()))
        if set(parts) < set(chosen.get(k, ())):
            # With more copies of one concatenation, nothing changes but while its result or a part of it lives: no use
            # where as much is live at other times.
            of = storage(taken.values, cx.code[k]["out"][0])
            if all(x.besides(of) > CONCAT_WORTH * x.arena for x in now):
                continue
        made = _Way(*concat.rewrite(cx.values, cx.code, wanted, kept))
        if made.placed == 0:
            continue
        least = [x.arena for x in now]
        reached = tried(made.values, made.code, least)
        if reached is None:
            continue
        # A copy more has to be worth it at one sample at least.
        worth = any(x.arena <= CONCAT_WORTH * y for x, y in zip(reached, least, strict=True))
        if made.placed > taken.placed or worth:
            chosen, taken, now = wanted, made, reached
    return [taken] if taken.placed else []


def _other_ways(cx: Lowering, plain: _Way, kept: set[int]) -> None:
    """What a budget may prefer: nothing in place, or of each concatenation only the operand that is made last. The
    result then begins with that one, and the others need not lie in it until they are copied there."""
    last = {k: concat.choices_of(plain.values, plain.code, k)[-1] for k in concat.candidates(plain.code)}
    late = concat.rewrite(plain.values, plain.code, last, kept)
    cx.others["copied"] = [dict(v) for v in plain.values], [dict(ins) for ins in plain.code]
    if late[2]:
        cx.others["late"] = late[0], late[1]
        cx.kernels.add("effc_copy")


def _largest(ins: Mapping[str, Any], env: Mapping[str, int]) -> int:
    try:
        return size(ins["bytes"], env)
    except KeyError:
        return 0


def _last_uses(program: Mapping[str, Any]) -> dict[int, int]:
    values, code = program["values"], program["code"]
    last: dict[int, int] = {}
    for k, ins in enumerate(code):
        for i in [*operands(ins), *ins["out"]]:
            last[storage(values, i)] = k
    for i in [*program["outputs"], *(c["value"] for c in program["commits"])]:
        last[storage(values, i)] = len(code)
    return last


def _overwrite_first(program: Mapping[str, Any]) -> None:
    """What the planner does not choose: results that are a state's next contents take its place, and those of a call
    with several results an operand's that dies there, in the order given."""
    values, commits = program["values"], program["commits"]
    last = _last_uses(program)
    committed = {storage(values, c["value"]) for c in commits}
    to_state = {storage(values, c["value"]): c["state"] for c in commits if "state" in c}
    for k, ins in enumerate(program["code"]):
        pairs = ins.get("inplace", ())
        if not pairs:
            continue
        several = len({storage(values, o) for o in ins["out"] if values[storage(values, o)]["k"] == "temp"}) > 1
        for o, i in pairs:
            root = overwritable(values, ins, o, i)
            if root is None or last.get(root, -1) != k or root in committed:
                continue
            out = ins["out"][o]
            is_state = values[root]["k"] == "state"
            if (is_state and to_state.get(out) == values[root]["name"]) or (not is_state and several):
                values[out]["alias"] = root
                last[root] = max(k, last.get(out, k))


def _put_offsets(program: Mapping[str, Any], x: Layout) -> None:
    assert x.plan.offsets is not None
    for t, offset in x.plan.offsets.items():
        program["values"][t]["offset"] = offset
    for k, offset in x.plan.workspaces.items():
        program["code"][k]["work_at"] = offset


def _sequence(p: Problem, x: Layout) -> list[int]:
    """The blocks from the bottom of the arena up: placed in this order, each in the lowest gap, none comes higher."""
    assert x.plan.offsets is not None
    at = {**x.plan.offsets, **{-1 - k: o for k, o in x.plan.workspaces.items()}}
    held = {t.id: t.bytes for t in p.tensors.values()}
    return sorted(at, key=lambda i: (at[i], -held.get(i, 0), i))


def _put_apart(program: dict[str, Any], threads: int, static: bool) -> None:
    """No planning: to compare with."""
    arena: dict[str, Any] = {"static_bytes": None, "lower_bound": None, "threads": threads, "apart": True}
    if static:
        p = from_program(program, sizes={}, threads=threads)
        end = 0
        for t in p.tensors.values():
            program["values"][t.id]["offset"] = end
            end += t.bytes
        for n in p.nodes:
            if n.workspace:
                program["code"][n.id]["work_at"] = end
                end += -(-n.workspace // p.align) * p.align
        arena.update(static_bytes=end, lower_bound=lay_out(p, p.given, budget=WORK).live)
    program["arena"] = arena


def _report(
    cx: Lowering,
    envs: Sequence[Mapping[str, int]],
    unplanned: Sequence[int],
    problems: Sequence[Problem],
    made: Sequence[Schedule],
    layouts: Sequence[Layout],
    best: _Choice,
    seconds: float,
) -> None:
    def line(env: Mapping[str, int], given: int, p: Problem, s: Schedule, x: Layout) -> dict[str, Any]:
        by_order = s.given.arena - lay_out(p, best.order, budget=WORK).arena
        bound = min(s.order.bound, x.arena)
        return {
            **({"sizes": dict(env)} if env else {}),
            "arena": x.arena,
            "peak": x.live,
            "bound": bound,
            "proven": x.arena == bound,
            "gap": round(x.arena / bound - 1, 6) if bound else 0.0,
            "ended": s.order.ended if x.live > bound else x.ended,
            "given": given,
            "saved_by_order": by_order,
            "saved_by_rewriting": given - x.arena - by_order,
        }

    cx.memory = {
        "planning": "on",
        "concat": cx.memory["concat"],
        "seconds": round(seconds, 4),
        "moved": sum(k != i for i, k in enumerate(best.order)),
        "inplace": len(best.choices.inplace),
        "plans": [line(*x) for x in zip(envs, unplanned, problems, made, layouts)],
    }
