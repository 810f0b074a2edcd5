"""Random graphs through ``schedule``: every plan verified, none worse than the order given.

pytest tests/null/test_memory_fuzz.py -m slow      10,000 graphs
"""

from __future__ import annotations

import numpy as np
import pytest
from memory_cases import random_graph

from effc.passes.memory import locality, order
from effc.passes.memory.schedule import lay_out, schedule
from effc.passes.memory.verify import verify


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
@pytest.mark.parametrize("block", range(20))
def test_many_random_graphs(block: int) -> None:
    check(range(1000 + 500 * block, 1500 + 500 * block))
