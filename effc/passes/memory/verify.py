"""Checks plans. Shares no code with the planners: it plays an order step by step and looks at the bytes in use.

``verify`` raises ``MemoryPlanError`` with the first fault it finds, else says what it saw. The planners call it on all
that they return.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .plan import Interval
from .problem import Plan, Problem


class MemoryPlanError(AssertionError):
    """A plan that would compute something else than its graph."""


@dataclass(frozen=True)
class Seen:
    """``peak``: the most bytes live at once (of any space), first at step ``at``; ``arena``: by space, the end of the
    highest byte in use, where the plan has offsets."""

    peak: int
    at: int
    arena: Mapping[str, int]


def verify(p: Problem, plan: Plan) -> Seen:
    """The order, lifetimes, rewrites and offsets of a plan."""
    _order(p, plan.order)
    nodes = {n.id: n for n in p.nodes}
    readers: dict[int, list[int]] = {t: [] for t in p.tensors}
    for step, n in enumerate(plan.order):
        for t in nodes[n].ins:
            readers[t].append(step)
    made = {t: step for step, n in enumerate(plan.order) for t in nodes[n].outs}
    end = {}
    for t, step in made.items():
        end[t] = max([step, *readers[t]])
        if p.tensors[t].kind == "output":
            end[t] = len(plan.order) - 1
    step_of = {n: step for step, n in enumerate(plan.order)}

    inside: dict[int, tuple[int, int]] = {}
    gone: dict[int, int] = {}  # the step from which a tensor's bytes are another's
    for n, parts in plan.choices.concat.items():
        if n not in nodes or nodes[n].op != "cat" or len(nodes[n].outs) != 1:
            raise MemoryPlanError(f"node {n} does not concatenate")
        whole = nodes[n].outs[0]
        behind = 0
        offsets: dict[int, int] = {}
        for t in nodes[n].ins:
            offsets[t] = behind
            behind += p.tensors[t].raw_bytes if p.tensors[t].raw_bytes >= 0 else p.tensors[t].bytes
        for t in parts:
            if list(nodes[n].ins).count(t) != 1:
                raise MemoryPlanError(f"tensor {t} is not one of the operands of node {n}, once")
            if p.tensors[t].kind != "intermediate":
                raise MemoryPlanError(f"tensor {t}, an {p.tensors[t].kind}, cannot be made inside another")
            if t in inside:
                raise MemoryPlanError(f"tensor {t} is made inside two tensors")
            if end[t] > end[whole]:
                raise MemoryPlanError(f"tensor {t} is read after tensor {whole}, which holds it, is dead")
            inside[t] = (whole, offsets[t])
            gone[t] = step_of[n]
    for n, t in plan.choices.inplace.items():
        if n not in nodes or t not in nodes[n].inplace_ok or len(nodes[n].outs) != 1:
            raise MemoryPlanError(f"node {n} may not overwrite tensor {t}")
        if p.tensors[t].kind != "intermediate":
            raise MemoryPlanError(f"tensor {t}, an {p.tensors[t].kind}, is not to be overwritten")
        if t in inside:
            raise MemoryPlanError(f"tensor {t} is part of a concatenation and overwritten")
        if t in gone:
            raise MemoryPlanError(f"tensor {t} is overwritten twice")
        if end[t] > step_of[n]:
            raise MemoryPlanError(f"tensor {t} is read after node {n} has overwritten it")
        gone[t] = step_of[n]

    peak = at = 0
    arena = dict.fromkeys(p.spaces, 0)
    offsets_given = plan.offsets
    if offsets_given is not None:
        _bound_places(p, plan, made, inside)
    live: set[int] = set()
    for step, n in enumerate(plan.order):
        live.update(nodes[n].outs)
        now = [t for t in live if t not in gone or step < gone[t]]
        used = sum(p.tensors[t].bytes for t in now) + nodes[n].workspace
        if used > peak:
            peak, at = used, step
        if offsets_given is not None:
            taken = []
            for t in now:
                size = p.tensors[t].bytes
                if t in inside and p.tensors[t].raw_bytes >= 0:
                    size = p.tensors[t].raw_bytes
                taken.append((p.tensors[t].space, offsets_given[t], offsets_given[t] + size, f"tensor {t}"))
            if nodes[n].workspace:
                where = plan.workspaces[n]
                taken.append(("arena", where, where + nodes[n].workspace, f"the workspace of node {n}"))
            taken = sorted(x for x in taken if x[1] < x[2])
            for low, high in itertools.pairwise(taken):
                if low[0] == high[0] and high[1] < low[2]:
                    raise MemoryPlanError(f"{low[3]} and {high[3]} share bytes at step {step}, both live")
            for space, _, stop, _ in taken:
                arena[space] = max(arena[space], stop)
        live = {t for t in live if end[t] > step}
    for space, limit in p.spaces.items():
        if limit is not None and arena[space] > limit:
            raise MemoryPlanError(f"{arena[space]} bytes of {space}, which has {limit}")
    return Seen(peak, at, arena)


def _order(p: Problem, order: Sequence[int]) -> None:
    if sorted(order) != sorted(n.id for n in p.nodes):
        raise MemoryPlanError("the order is not a permutation of the nodes")
    nodes = {n.id: n for n in p.nodes}
    exists = {t.id for t in p.tensors.values() if t.kind == "input"}
    ran: set[int] = set()
    for n in order:
        for t in nodes[n].ins:
            if t not in exists:
                raise MemoryPlanError(f"node {n} runs before its operand {t} exists")
        for u in nodes[n].after:
            if u not in ran:
                raise MemoryPlanError(f"node {n} runs before node {u}, which it must follow")
        exists.update(nodes[n].outs)
        ran.add(n)


def _bound_places(p: Problem, plan: Plan, made: Mapping[int, int], inside: Mapping[int, tuple[int, int]]) -> None:
    """Alignment, pinned offsets, the places of parts and of results that overwrite."""
    offsets = plan.offsets
    assert offsets is not None
    outs = {n.id: n.outs for n in p.nodes}
    for t in made:
        if t not in offsets:
            raise MemoryPlanError(f"tensor {t} has no offset")
        if p.tensors[t].space not in p.spaces:
            raise MemoryPlanError(f"tensor {t} lies in {p.tensors[t].space}, which there is not")
        if offsets[t] < 0:
            raise MemoryPlanError(f"tensor {t} has a negative offset")
        pinned = p.tensors[t].pinned
        if pinned is not None and offsets[t] != pinned:
            raise MemoryPlanError(f"tensor {t} is pinned to {pinned} but lies at {offsets[t]}")
        if t in inside:
            whole, at = inside[t]
            if offsets[t] != offsets.get(whole, -1) + at or p.tensors[t].space != p.tensors[whole].space:
                raise MemoryPlanError(f"tensor {t} is not at its place in tensor {whole}")
        elif offsets[t] % p.align:
            raise MemoryPlanError(f"tensor {t} at {offsets[t]} is not aligned to {p.align}")
    for n, t in plan.choices.inplace.items():
        out = outs[n][0]
        if offsets[out] != offsets[t] or p.tensors[out].space != p.tensors[t].space:
            raise MemoryPlanError(f"node {n} overwrites tensor {t} but its result lies elsewhere")
    for node in p.nodes:
        if node.workspace:
            where = plan.workspaces.get(node.id)
            if where is None or where < 0 or where % p.align:
                raise MemoryPlanError(f"the workspace of node {node.id} has no aligned offset")


def verify_placement(intervals: Sequence[Interval], offsets: Mapping[int, int]) -> int:
    """Buffers alone: at every step at which one begins, no two live ones share a byte. The arena's size."""
    total = 0
    pieces: list[tuple[int, int, int, int, int]] = []
    for i in intervals:
        if i.id not in offsets:
            raise MemoryPlanError(f"buffer {i.id} has no offset")
        at = offsets[i.id]
        if at < 0 or at % i.align:
            raise MemoryPlanError(f"buffer {i.id} at {at} is not aligned to {i.align}")
        if i.offset is not None and at != i.offset:
            raise MemoryPlanError(f"buffer {i.id} is pinned to {i.offset} but lies at {at}")
        for start, stop, low, high in i.parts or ((i.start, i.stop, 0, i.bytes),):
            if start <= stop and low < high:
                pieces.append((start, stop, at + low, at + high, i.id))
                total = max(total, at + high)
    begins: dict[int, list[tuple[int, int, int, int, int]]] = {}
    for x in pieces:
        begins.setdefault(x[0], []).append(x)
    live: list[tuple[int, int, int, int, int]] = []
    for now in sorted(begins):
        live = [x for x in live if x[1] >= now] + begins[now]
        live.sort(key=lambda x: (x[2], x[3]))
        for a, b in itertools.pairwise(live):
            if b[2] < a[3]:
                raise MemoryPlanError(f"buffers {a[4]} and {b[4]} overlap in the arena while both are live")
    return total
