"""Eviction as page replacement: what planners are measured against.

The order is fixed. A step's operands and results are resident at once, with its workspace; dead tensors are dropped for
nothing; a tensor without a valid copy is written when it is evicted, a clean one is not; it is read again for its next
use. Outputs are read back at the end, or (``outputs_far``) written once, which is not counted. Only bytes count: no
fragmentation, which favours what is measured here against plans with real offsets. With ``placed`` offsets count too:
what is made or read again gets the smallest gap that it fits into, as TensorFlow Lite's linear allocator does, and
things leave until there is one; where operands that a step needs are in the way themselves, they go and come back.
Belady's rule with that is what COSMA is measured against (Li et al., 2023).

- ``belady``: evicts what is used last (Belady, 1966; tensors have sizes, so it is not optimal).
- ``lru``: evicts what was used least recently.
"""

from __future__ import annotations

from collections.abc import Sequence

from effc.passes.memory.problem import ARENA, Problem


def page(
    p: Problem,
    order: Sequence[int],
    capacity: int,
    policy: str,
    *,
    outputs_far: bool = False,
    inputs: bool = False,
    placed: bool = False,
) -> int | None:
    """Bytes moved, None if a step does not fit. ``inputs`` take space and lie in the far memory; their first reading is
    not counted."""
    node = p.node()
    mine = {t.id for t in p.tensors.values() if (inputs or t.kind != "input") and t.space == ARENA}
    size = {t: -(-p.tensors[t].bytes // p.align) * p.align for t in mine}
    outputs = {t for t in mine if p.tensors[t].kind == "output"}
    end = len(order)
    uses: dict[int, list[int]] = {t: [] for t in mine}
    for i, n in enumerate(order):
        for t in {*node[n].ins, *node[n].outs} & mine:
            uses[t].append(i)
    if not outputs_far:
        for t in outputs:
            uses[t].append(end)
    for x in uses.values():
        x.reverse()
    resident: dict[int, int] = {}  # -> last use
    at: dict[int, tuple[int, int]] = {}  # -> offset and size
    copies = {t for t in mine if p.tensors[t].kind == "input"}
    unread = set(copies)
    moved = used = 0
    steps: list[tuple[set[int], set[int], int]] = [
        ({*node[n].ins} & mine, {*node[n].outs} & mine, node[n].workspace) for n in order
    ]
    if not outputs_far:
        steps.append((outputs, set(), 0))
    for i, (ins, outs, workspace) in enumerate(steps):
        want = ins | outs
        new = sorted(want - resident.keys())
        room = capacity - workspace - sum(size[t] for t in new)
        if placed and sum(size[t] for t in want) + workspace > capacity:
            return None
        while used > room or (placed and not _place(at, [(t, size[t]) for t in new], workspace, capacity)):
            victims = [t for t in resident if t not in want]
            if not victims and not placed:
                return None
            if not victims:  # all of it in a row, so it fits
                back = [t for t in want if t in resident]
                moved += sum(p.tensors[t].raw * (1 if t in copies else 2) for t in back)
                copies.update(back)
                at.clear()
                for t in back:
                    at[t] = sum(size[u] for u in at), size[t]
                continue
            if policy == "lru":
                v = min(victims, key=lambda t: (resident[t], t))
            else:
                v = max(victims, key=lambda t: (uses[t][-1], size[t], t))
            if v not in copies:
                copies.add(v)
                moved += p.tensors[v].raw
            used -= size[v]
            del resident[v]
            at.pop(v, None)
        for t in new:
            if t in unread:
                unread.discard(t)
            elif t in ins:
                moved += p.tensors[t].raw
            used += size[t]
        if i < end:
            for t in node[order[i]].writes:
                copies.discard(t)
        for t in sorted(want):
            resident[t] = i
            while uses[t] and uses[t][-1] <= i:
                uses[t].pop()
            if outputs_far and t in outs and t in outputs:
                copies.add(t)
            if not uses[t]:
                used -= size[t]
                del resident[t]
                at.pop(t, None)
    return moved


def _place(at: dict[int, tuple[int, int]], new: list[tuple[int, int]], workspace: int, capacity: int) -> bool:
    """Offset and size of what is new, each in the smallest gap it fits into; nothing is changed if one does not."""
    trial = dict(at)
    for t, size in [*new, (-1, workspace)]:
        taken = sorted(trial.values())
        ends = [0, *(a + b for a, b in taken)]
        gaps = [(start - end, end) for end, start in zip(ends, [*(a for a, _ in taken), capacity], strict=True)]
        fit = min((g for g in gaps if g[0] >= size), default=None)
        if fit is None:
            return False
        if size:
            trial[t] = fit[1], size
    trial.pop(-1, None)
    at.update(trial)
    return True
