"""Eviction as page replacement: what planners are measured against.

The order is fixed. A step's operands and results are resident at once, with its workspace; dead tensors are dropped for
nothing; a tensor without a valid copy is written when it is evicted, a clean one is not; it is read again for its next
use. Outputs are read back at the end, or (``outputs_far``) written once, which is not counted. Only bytes count: no
fragmentation, which favours what is measured here against plans with real offsets.

- ``belady``: evicts what is used last (Belady, 1966; tensors have sizes, so it is not optimal).
- ``lru``: evicts what was used least recently.
"""

from __future__ import annotations

from collections.abc import Sequence

from effc.passes.memory.problem import ARENA, Problem


def page(
    p: Problem, order: Sequence[int], capacity: int, policy: str, *, outputs_far: bool = False, inputs: bool = False
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
        while used > room:
            victims = [t for t in resident if t not in want]
            if not victims:
                return None
            if policy == "lru":
                v = min(victims, key=lambda t: (resident[t], t))
            else:
                v = max(victims, key=lambda t: (uses[t][-1], size[t], t))
            if v not in copies:
                copies.add(v)
                moved += p.tensors[v].raw
            used -= size[v]
            del resident[v]
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
    return moved
