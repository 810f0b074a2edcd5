"""Random graphs through ``schedule``: every plan verified and played on bytes, none worse than the order given.

pytest tests/null/test_memory_fuzz.py -m slow -n 2      10,000 graphs

Each plan is run on an arena of real bytes, poisoned before: what every node reads has to be what it reads where each
tensor has bytes of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib

import numpy as np
import pytest
from memory_cases import random_graph

from effc.passes.memory import locality, order
from effc.passes.memory.problem import Plan, Problem
from effc.passes.memory.schedule import lay_out, schedule
from effc.passes.memory.verify import MemoryPlanError, verify


def results(p: Problem, node: int, operands: list[bytes]) -> list[bytes]:
    """A function of all bytes of the operands, as long as the node's results; concatenations are what they say."""
    n = p.node()[node]
    if n.op == "cat":
        return [b"".join(operands)]
    key = hashlib.blake2b(b"".join([node.to_bytes(4, "little"), *operands])).digest()
    return [hashlib.shake_128(key + bytes([k])).digest(p.tensors[t].raw) for k, t in enumerate(n.outs)]


def source(p: Problem, t: int) -> bytes:
    return hashlib.shake_128(b"input").digest(p.tensors[t].raw)


def apart(p: Problem) -> dict[int, int]:
    """Checksums of what each node reads, and of each output (by -1 - tensor), with bytes of its own for each tensor."""
    held = {t: source(p, t) for t, x in p.tensors.items() if x.kind == "input"}
    seen = {}
    for n in p.nodes:
        operands = [held[t] for t in n.ins]
        seen[n.id] = zlib.crc32(b"".join(operands))
        held.update(zip(n.outs, results(p, n.id, operands)))
    return seen | {-1 - t: zlib.crc32(held[t]) for t, x in p.tensors.items() if x.kind == "output"}


def played(p: Problem, plan: Plan, poison: int) -> dict[int, int]:
    """The same in one arena, full of ``poison`` before: workspaces and padding are written too, parts of concatenations
    are where they were made, and what is overwritten is."""
    assert plan.offsets is not None
    node, at = p.node(), plan.offsets
    room = [at[t] + p.tensors[t].bytes for t in at] + [plan.workspaces[n] + node[n].workspace for n in plan.workspaces]
    arena = bytearray([poison]) * max(room, default=0)
    parts = {t for ts in plan.choices.concat.values() for t in ts}

    def read(t: int) -> bytes:
        return source(p, t) if p.tensors[t].kind == "input" else bytes(arena[at[t] : at[t] + p.tensors[t].raw])

    def fill(begin: int, size: int) -> None:
        arena[begin : begin + size] = bytes([poison ^ 0x55]) * size

    seen = {}
    for step in plan.order:
        n = node[step]
        if n.workspace:
            fill(plan.workspaces[step], n.workspace)
        operands = [read(t) for t in n.ins]
        seen[step] = zlib.crc32(b"".join(operands))
        inside = plan.choices.concat.get(step, ())
        if n.op == "cat":
            begin = at[n.outs[0]]
            for t, data in zip(n.ins, operands):
                if t not in inside:
                    arena[begin : begin + len(data)] = data
                begin += len(data)
        for t, data in zip(n.outs, results(p, step, operands) if n.op != "cat" else [read(n.outs[0])]):
            arena[at[t] : at[t] + len(data)] = data
            if t not in parts:
                fill(at[t] + len(data), p.tensors[t].bytes - len(data))
        if n.workspace:
            fill(plan.workspaces[step], n.workspace)
    return seen | {-1 - t: zlib.crc32(read(t)) for t, x in p.tensors.items() if x.kind == "output"}


def case(seed: int) -> tuple[int, int, int]:
    """Bytes as given and as scheduled, and how many rewrites."""
    rng = np.random.default_rng(seed)
    p = random_graph(
        seed,
        int(rng.integers(1, 36)),
        inplace=float(rng.choice([0.0, 0.5, 1.0])),
        concat=float(rng.choice([0.0, 0.3])),
        workspace=float(rng.choice([0.0, 0.3])),
        after=float(rng.choice([0.0, 0.2])),
        wide=float(rng.choice([0.1, 0.5, 0.9])),
        align=int(rng.choice([1, 64])),
    )
    made = schedule(p, rewrite=True, states=1500, work=100_000, seconds=20.0)
    seen = verify(p, made.layout.plan)
    assert seen == made.layout.seen
    assert verify(p, made.given.plan).arena == made.given.seen.arena
    want = apart(p)
    for plan in (made.layout.plan, made.given.plan):
        assert played(p, plan, 0xFF) == played(p, plan, 0x00) == want, f"seed {seed}: bytes are lost"
    assert made.layout.arena <= made.given.arena, f"seed {seed}: worse than given"
    assert made.layout.live <= made.layout.arena or made.layout.plan.choices.concat  # parts are held without padding
    assert made.order.bound <= made.order.peak
    near = locality.improve(p, made.layout.plan.order)
    moved = lay_out(p, near, budget=300_000)  # verified: an order of the graph
    before = order.steps(p, made.layout.plan.order)
    assert max(order.steps(p, near), default=0) <= max(before, default=0)
    assert locality.far_bytes(p, near) <= locality.far_bytes(p, made.layout.plan.order)
    assert moved.live == max(order.steps(p, near), default=0)
    choices = made.layout.plan.choices
    return made.given.arena, made.layout.arena, len(choices.inplace) + len(choices.concat)


def check(seeds: range) -> None:
    results = [case(s) for s in seeds]
    assert sum(after < before for before, after, _ in results) > len(seeds) // 10, "nothing to gain: not a test"
    assert sum(n > 0 for *_, n in results) > len(seeds) // 10, "nothing rewritten: not a test"


def test_some_random_graphs() -> None:
    check(range(150))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(100))
def test_many_random_graphs(block: int) -> None:
    check(range(1000 + 100 * block, 1100 + 100 * block))


def test_bytes_of_wrong_plans_are_lost() -> None:
    """Plans with one tensor moved onto others: nearly all that the checker refuses lose bytes, none that it allows."""
    refused = lost = 0
    for seed in range(60):
        p = random_graph(seed, 12, inplace=0.5, workspace=0.3)
        plan = schedule(p, states=1500, work=100_000, seconds=20.0).layout.plan
        assert plan.offsets is not None
        for t in plan.offsets:
            wrong = dataclasses.replace(plan, offsets={**plan.offsets, t: 0})
            differs = played(p, wrong, 0xFF) != apart(p)
            try:
                verify(p, wrong)
            except MemoryPlanError:
                refused, lost = refused + 1, lost + differs
            else:
                assert not differs
    assert refused > 100 and lost > 0.8 * refused, (refused, lost)
