"""Actions within a capacity that move and recompute least."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from ....runtime.errors import EffcError
from .. import solver as solving
from ..problem import Action, Problem, Steps, with_drops
from ..schedule import place_steps
from ..solver import Solution
from ..verify import verify_steps
from .outcome import BYTE_FLOPS, Outcome, cost
from .pieces import Border, carried, cut, needed_later
from .program import Actions, Program


def furthest(p: Problem, order: Sequence[int], capacity: int) -> Steps | None:
    """Belady's rule for an order: what is read again furthest ahead leaves. Spills and refills, no recomputation, no
    rewrites, one memory space; None where a node does not fit."""
    node = p.node()
    changed = {t for n in p.nodes for t in n.writes}
    uses: dict[int, list[int]] = {}
    for k, n in enumerate(order):
        for t in node[n].ins:
            uses.setdefault(t, []).append(k)
    for t, x in p.tensors.items():
        if x.kind == "output":
            uses.setdefault(t, []).append(len(order))

    def following(t: int, k: int) -> int:
        return next((u for u in uses.get(t, ()) if u > k), -1)

    actions: list[Action] = []
    resident: set[int] = set()
    copied: set[int] = set()
    outputs = {t for n in p.nodes for t in n.outs if p.tensors[t].kind == "output"}
    for k, n in enumerate([*order, -1]):
        if k == len(order):
            ins, outs, workspace = outputs, set(), 0
        else:
            ins = {t for t in node[n].ins if p.tensors[t].kind != "input"}
            outs, workspace = set(node[n].outs), node[n].workspace
        held = ins | outs
        total = sum(p.tensors[t].bytes for t in resident | held) + workspace
        for t in sorted(resident - held, key=lambda t: (-following(t, k), -p.tensors[t].bytes, t)):
            if total <= capacity or t in changed:
                continue
            total -= p.tensors[t].bytes
            resident.discard(t)
            if t not in copied:
                actions.append(("spill", t))
                copied.add(t)
        if total > capacity:
            return None
        actions += [("refill", t) for t in sorted(ins - resident)]
        if k < len(order):
            actions.append(("run", n))
        resident = {t for t in resident | held if following(t, k) >= 0}
    return Steps(with_drops(p, actions))


def within(
    p: Problem,
    capacity: int,
    start: Steps | None = None,
    *,
    reorder: bool = True,
    rewrite: bool = False,
    spill: bool = True,
    recompute: bool = False,
    extra: int | None = None,
    byte_flops: int = BYTE_FLOPS,
    most: int = 48,
    solver: str = "cp-sat",
    seconds: float = 60.0,
    workers: int = 2,
    seed: int = 1,
) -> Outcome:
    """Actions that keep the arena within ``capacity`` bytes and cost least: bytes moved times ``byte_flops``, and the
    FLOPs of what is run again, at most ``extra`` runs (as many as there are nodes, 8 at most).

    ``start``: a plan to begin with; by default Belady's on the order given, where spilling is allowed. Graphs of more
    than ``most`` nodes are cut. The program keeps the live bytes within the capacity; where the search for offsets then
    needs more, it is run again with that much less room, and the bound stays that of the first. ``ended`` is
    ``infeasible`` where there is no plan (with these means: an order may be fixed, a recomputation not counted on).
    """
    began = time.perf_counter()
    until = began + seconds
    best, best_cost = None, None
    missing = solving.why_not(solver)
    if missing:
        raise EffcError(f"the integer program for memory plans cannot run: {missing}")
    if start is None and spill:
        start = furthest(p, p.given, capacity)
    if start is not None:
        placed = _fits(p, start, capacity)
        if placed is not None:
            best, best_cost = placed, cost(p, placed, byte_flops)
    opened = best_cost
    pieces = cut(p, most) if len(p.nodes) > most else [p]
    spare = min(8, len(p.nodes)) if extra is None else extra
    options = {
        "rewrite": rewrite,
        "spill": spill,
        "recompute": recompute,
        "byte_flops": byte_flops,
        "offsets": False,
    }
    sizes = [0, 0]

    def one(piece: Problem, room: int, border: Border, left: float) -> tuple[Program, Solution]:
        reruns = spare if recompute else 0
        if start is not None and len(pieces) == 1 and recompute:
            reruns = max(reruns, sum(a == "run" for a, _ in start.actions) - len(p.nodes))
        x = Program(
            piece,
            steps=len(piece.nodes) + reruns,
            capacity=dict.fromkeys(p.spaces, room),
            fixed=None if reorder else piece.given,
            ceiling=room,
            border=border,
            **options,  # type: ignore[arg-type]
        )
        sizes[0], sizes[1] = sizes[0] + len(x.m.lower), sizes[1] + len(x.m.rows)
        if len(pieces) == 1 and best is not None and (reorder or _order_of(best) == p.given):
            _begin_with_steps(x, best)
        return x, x.solve(solver, left, workers, seed)

    bound, ended, room = 0, "proven", capacity
    if len(pieces) > 1 and not recompute and not rewrite:  # what every plan must pay in each piece
        for k, piece in enumerate(pieces):
            later = needed_later(p, pieces, k)
            share = (until - time.perf_counter()) / (2 * (len(pieces) - k) + len(pieces))
            x, got = one(piece, capacity, Border(later=later, free=True), share)
            if got.ended == "infeasible":
                return Outcome(0, 0, None, "infeasible", time.perf_counter() - began, pieces=len(pieces))
            bound += max(0, x.value(got.bound))
    elif len(pieces) > 1:
        ended = "time"
    for attempt in range(4):
        done = Actions()
        solved = True
        for k, piece in enumerate(pieces):
            later = needed_later(p, pieces, k)
            border = Border(done.resident & carried(p, pieces, k), done.copied & carried(p, pieces, k), later)
            left = (until - time.perf_counter()) / (len(pieces) - k)
            x, got = one(piece, room, border, left)
            if len(pieces) == 1 and not attempt:
                bound, ended = max(0, x.value(got.bound)), got.ended
                if got.ended == "infeasible" and best is None:
                    return Outcome(0, 0, None, "infeasible", time.perf_counter() - began)
            elif got.ended != "proven":
                ended = "time"
            if got.values is None:
                solved = False
                break
            x.actions(got.values, done)
        if not solved:
            ended = "time" if best is None or ended == "infeasible" else ended
            break
        steps = done.steps(p)
        if best_cost is not None and cost(p, steps, byte_flops) >= best_cost:
            break
        placed, needs = _placed(p, steps)
        if needs <= capacity:
            best, best_cost = placed, cost(p, placed, byte_flops)
            break
        ended = "time"
        room -= needs - capacity
        if time.perf_counter() > until:
            break
    took = time.perf_counter() - began
    if best is None or best_cost is None:
        return Outcome(0, bound, None, "time", took, variables=sizes[0], rows=sizes[1], pieces=len(pieces))
    bound = min(bound, best_cost)
    if len(pieces) > 1:
        ended = "proven" if bound == best_cost else "time"
    elif ended == "proven" and bound < best_cost:
        ended = "time"  # proven of live bytes, not of offsets
    return Outcome(best_cost, bound, opened, ended, took, None, best, None, sizes[0], sizes[1], len(pieces))


def _placed(p: Problem, steps: Steps) -> tuple[Steps, int]:
    free = dataclasses.replace(p, spaces=dict.fromkeys(p.spaces))
    placed, _ = place_steps(p, steps, budget=200_000_000)
    return placed, sum(verify_steps(free, placed).arena.values())


def _fits(p: Problem, steps: Steps, capacity: int) -> Steps | None:
    placed, needs = _placed(p, steps) if steps.offsets is None else (steps, 0)
    return placed if needs <= capacity else None


def _order_of(steps: Steps) -> list[int]:
    return list(dict.fromkeys(x for action, x in steps.actions if action == "run"))


def _begin_with_steps(x: Program, steps: Steps) -> None:
    runs: list[int] = []
    near: list[set[int]] = []
    state: set[int] = set()
    refill: set[tuple[int, int]] = set()
    over: set[tuple[int, int, int]] = set()
    part: set[tuple[int, int, int]] = set()
    copied: set[int] = set()
    gone: set[int] = set()
    for k, (action, t) in enumerate(steps.actions):
        if action == "run":
            state |= set(x.node[t].outs)
            near.append(set(state))
            runs.append(t)
            if k in steps.inplace:
                over.add((t, steps.inplace[k], len(runs) - 1))
                state.discard(steps.inplace[k])
            for u in steps.concat.get(k, ()):
                part.add((u, t, len(runs) - 1))
                state.discard(u)
        elif action == "refill":
            state.add(t)
            if len(runs) == x.count:  # behind the last run: there all the while
                gone.add(t)
            refill.add((t, len(runs)))
        elif action == "spill":
            copied.add(t)
        else:
            state.discard(t)
    if len(runs) > x.count or gone:
        return
    near += [set(state) for _ in range(x.count - len(runs))]
    x.begin_with(runs, near, {"refill": refill, "over": over, "part": part, "copied": copied})
