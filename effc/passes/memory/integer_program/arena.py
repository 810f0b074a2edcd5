"""The order of least peak or arena."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..problem import Choices, Plan, Problem, lifetimes
from ..schedule import Layout, lay_out
from ..verify import MemoryPlanError, verify
from .outcome import Outcome
from .program import Program


def least_arena(
    p: Problem,
    start: Layout | None = None,
    *,
    reorder: bool = True,
    rewrite: bool = False,
    offsets: bool = False,
    solver: str = "cp-sat",
    seconds: float = 60.0,
    workers: int = 2,
    seed: int = 1,
) -> Outcome:
    """The order of least peak, with ``offsets`` of least arena; ``rewrite`` chooses what is overwritten and made in
    place with it, ``reorder=False`` keeps the order given.

    ``start`` is a plan to begin with, by default the order given as it is; it is returned where nothing better is
    found. Without ``offsets`` the objective is the peak of live bytes, and offsets are searched for afterwards.
    EffcError where the solver is not installed.
    """
    began = time.perf_counter()
    start = start or lay_out(p, p.given)
    least = start.arena if offsets else start.live
    x = Program(
        p,
        steps=len(p.nodes),
        capacity=None,
        fixed=None if reorder else p.given,
        rewrite=rewrite,
        offsets=offsets,
        spill=False,
        recompute=False,
        byte_flops=0,
        ceiling=least,
    )
    if reorder or list(start.plan.order) == p.given:
        _begin_with_plan(x, start, offsets)
    got = x.solve(solver, seconds - (time.perf_counter() - began), workers, seed)
    bound, ended, layout = x.value(got.bound), got.ended, start
    if got.values is not None and x.value(got.objective) < least:
        layout = _layout(p, x, got.values, offsets)
        if (layout.arena if offsets else layout.live) > x.value(got.objective):
            raise MemoryPlanError("the integer program and the checker do not agree")
    found = layout.arena if offsets else layout.live
    if ended == "infeasible":  # no plan within the ceiling, which the start's is
        raise MemoryPlanError("the integer program has no plan, but there is one")
    took = time.perf_counter() - began
    sizes = len(x.m.lower), len(x.m.rows)
    return Outcome(found, min(bound, found), least, ended, took, layout, variables=sizes[0], rows=sizes[1])


def _layout(p: Problem, x: Program, values: Sequence[int], offsets: bool) -> Layout:
    order = x.order(values)
    inplace = {n: t for (n, t, _), v in x.over.items() if values[v]}
    parts: dict[int, set[int]] = {}
    for (t, n, _), v in x.part.items():
        if values[v]:
            parts.setdefault(n, set()).add(t)
    seen = {n.id: tuple(t for t in n.outs if t in x.view and values[x.view[t]]) for n in p.nodes}
    joined = {n: tuple(t for t in x.node[n].ins if t in ts) for n, ts in parts.items()}
    choices = Choices(inplace, joined, {n: ts for n, ts in seen.items() if ts})
    if not offsets:
        return lay_out(p, order, choices)
    at = {t: values[v] * p.align for t, v in x.offset.items()}
    for t, v in x.rest.items():
        at[t] += values[v] * x.unit
    for giver in p.nodes:  # makers come before the readers that see into what they made
        for t, u, by in giver.views:
            if t in choices.views.get(giver.id, ()):
                at[t] = at[u] + by
    made = Plan(
        tuple(order),
        {t: o for t, o in at.items() if t >= 0},
        choices,
        {-1 - t: o for t, o in at.items() if t < 0},
    )
    return Layout(made, {}, verify(p, made))


def _begin_with_plan(x: Program, start: Layout, offsets: bool) -> None:
    p, plan = x.p, start.plan
    at = {n: k for k, n in enumerate(plan.order)}
    if not x.rewrite and (plan.choices.inplace or plan.choices.concat or plan.choices.views):
        return
    life = dict(lifetimes(p, plan.order))
    over = {(n, t, at[n]) for n, t in plan.choices.inplace.items()}
    part = {(t, n, at[n]) for n, ts in plan.choices.concat.items() for t in ts}
    for n, ts in plan.choices.concat.items():
        for t in ts:
            life[t] = life[t][0], at[n]
    seen = {t for ts in plan.choices.views.values() for t in ts}
    for n in reversed(plan.order):  # what is seen through a view stays for its readers
        for t in plan.choices.views.get(n, ()):
            u = next(u for v, u, _ in x.node[n].views if v == t)
            life[u] = life[u][0], max(life[u][1], life[t][1])
    near: list[set[int]] = [set() for _ in plan.order]
    through: set[tuple[int, int]] = set()
    for t, (first, last) in life.items():
        for k in range(first, last + 1):
            if t in seen:
                through.add((t, k))
            else:
                near[k].add(t)
    more: dict[str, Any] = {"over": over, "part": part, "view": seen, "through": through}
    if plan.offsets is not None and offsets:
        more["offsets"] = {**plan.offsets, **{-1 - n: o for n, o in plan.workspaces.items()}}
    if len(p.spaces) == 1:
        more["peak"] = dict.fromkeys(p.spaces, start.arena if offsets else start.live)
    x.begin_with(plan.order, near, more)
