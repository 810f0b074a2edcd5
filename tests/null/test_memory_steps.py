"""Plans of actions: what the checker accepts and counts, and every fault that it finds, seeded into a valid plan."""

from __future__ import annotations

import dataclasses
import json

import pytest

from effc.passes.memory import problem, schedule
from effc.passes.memory.problem import Action, Node, Problem, Steps, Tensor, steps_of, with_drops
from effc.passes.memory.verify import MemoryPlanError, SeenSteps, verify, verify_steps
from tests.null.memory_cases import random_graph


@pytest.mark.parametrize("seed", range(40))
def test_an_ordinary_plan_as_actions(seed: int) -> None:
    """The same peak and arena as the plan that it came from, nothing moved, nothing run again."""
    p = random_graph(seed, 5 + seed % 16, inplace=0.5, concat=0.5)
    plan = schedule.schedule(p, rewrite=True, states=2000, work=300_000).layout.plan
    one, two = verify(p, plan), verify_steps(p, steps_of(p, plan))
    assert (two.peak, two.arena) == (one.peak, one.arena)
    assert (two.moved, two.reruns, two.flops) == (0, 0, 0)
    steps = steps_of(p, plan)
    assert problem.steps_from_dict(json.loads(json.dumps(problem.steps_to_dict(steps)))) == steps


def chain() -> Problem:
    """0 makes a and b; 1 grows c from a; 2 shrinks c; 3 reads what 2 made, a and b."""
    tensors = {
        0: Tensor(0, 64, "input"),
        1: Tensor(1, 128, raw_bytes=100),  # a
        2: Tensor(2, 64),  # b
        3: Tensor(3, 512),  # c
        4: Tensor(4, 64),
        5: Tensor(5, 64, "output"),
    }
    nodes = (
        Node(0, (0,), (1, 2), flops=7),
        Node(1, (1,), (3,), flops=11),
        Node(2, (3,), (4,), inplace_ok=(3,), workspace=64),
        Node(3, (4, 1, 2), (5,)),
    )
    return Problem(nodes, tensors, spaces={"arena": 640})


SPILLING: tuple[Action, ...] = (
    ("run", 0),
    ("spill", 2),
    ("drop", 2),
    ("run", 1),
    ("drop", 1),
    ("run", 2),
    ("drop", 3),
    ("refill", 2),
    ("run", 0),
    ("run", 3),
    ("drop", 1),
    ("drop", 2),
    ("drop", 4),
)
PLACED = {(0, 1): 0, (0, 2): 128, (3, 3): 128, (5, 4): 0, (7, 2): 64, (8, 1): 128, (9, 5): 256}
GOOD = Steps(SPILLING, PLACED, {5: 64})


def test_what_is_counted() -> None:
    """b goes out and comes back, a is made again; 192 bytes less than with both kept."""
    seen = verify_steps(chain(), GOOD)
    assert seen == SeenSteps(640, 3, {"arena": 640}, {"arena": 640}, 64, 64, 1, 7)
    bare = dataclasses.replace(GOOD, offsets=None, workspaces={})
    assert verify_steps(chain(), bare).arena == {"arena": 0} and verify_steps(chain(), bare).peak == 640
    kept = with_drops(chain(), [("run", n) for n in range(4)])
    with pytest.raises(MemoryPlanError, match="832 bytes of arena, which has 640"):
        verify_steps(chain(), Steps(kept))
    undropped = [x for x in SPILLING if x[0] != "drop"]
    early = list(SPILLING)
    early.insert(8, ("drop", 2))  # node 0, run again, makes it anyway
    early.remove(("drop", 3))
    early.insert(6, ("drop", 3))
    assert with_drops(chain(), undropped) == tuple(early)
    assert verify_steps(chain(), Steps(tuple(early))).peak == 640


def changed(**more: object) -> Steps:
    return dataclasses.replace(GOOD, **more)  # type: ignore[arg-type]


def without(k: int) -> Steps:
    """Without action ``k``, and without offsets."""
    return Steps(SPILLING[:k] + SPILLING[k + 1 :])


def instead(k: int, action: Action) -> Steps:
    return Steps(SPILLING[:k] + (action,) + SPILLING[k + 1 :])


def node(n: int, **changes: object) -> Problem:
    p = chain()
    return dataclasses.replace(
        p,
        nodes=tuple(dataclasses.replace(x, **changes) if x.id == n else x for x in p.nodes),  # type: ignore[arg-type]
    )


FAULTS = {
    "no copy": (chain(), without(1), "without a copy"),
    "evicted and read": (chain(), Steps(SPILLING[:7] + SPILLING[9:]), "without its operand"),
    "still resident": (chain(), without(2), "refilled at action 6 but resident"),
    "dropped twice": (chain(), instead(6, ("drop", 1)), "would drop tensor 1"),
    "spilled when gone": (chain(), instead(6, ("spill", 1)), "would spill tensor 1"),
    "a node does not run": (chain(), Steps(SPILLING[:9]), "node 3 does not run"),
    "the output is dropped": (chain(), Steps((*SPILLING, ("drop", 5))), "an output, is not resident"),
    "an input is spilled": (chain(), instead(1, ("spill", 0)), "which no node makes"),
    "no such node": (chain(), instead(0, ("run", 9)), "which there is not"),
    "no such action": (chain(), instead(1, ("move", 2)), "'move'"),
    "against an order": (node(1, after=(2,)), GOOD, "which it must follow"),
    "may not run again": (node(0, once=True), GOOD, "runs twice"),
    "its operand has changed": (node(2, ins=(3, 1), writes=(1,)), Steps(without(4).actions), "were changed meanwhile"),
    "the copy is old": (
        node(2, ins=(3, 2), writes=(2,)),
        Steps((*SPILLING[:2], *SPILLING[3:6], ("drop", 2), *SPILLING[6:])),
        "without a copy of its present value",
    ),
    "negative": (chain(), changed(offsets={**PLACED, (9, 5): -64}), "negative"),
    "no offset for a residency": (
        chain(),
        changed(offsets={k: o for k, o in PLACED.items() if k != (7, 2)}),
        "no offset at action 7",
    ),
    "misaligned": (chain(), changed(offsets={**PLACED, (9, 5): 257}), "not aligned"),
    "bytes shared": (chain(), changed(offsets={**PLACED, (7, 2): 0}), "share bytes at action 7"),
    "bytes shared with a workspace": (chain(), changed(workspaces={5: 128}), "share bytes at action 5"),
    "no workspace": (chain(), changed(workspaces={}), "workspace of node 2"),
    "rewrites without a run": (chain(), changed(inplace={4: 3}), "runs nothing"),
    "overwrites what it may not": (chain(), changed(inplace={3: 1}), "may not overwrite"),
    "overwrites elsewhere": (chain(), changed(inplace={5: 3}), "not at its place"),
    "not a concatenation": (chain(), changed(concat={5: (3,)}), "does not concatenate"),
    "too much": (dataclasses.replace(chain(), spaces={"arena": 576}), GOOD, "which has 576"),
    "nowhere": (dataclasses.replace(chain(), spaces={"far": None}), GOOD, "which there is not"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str) -> None:
    p, steps, message = FAULTS[name]
    with pytest.raises(MemoryPlanError, match=message):
        verify_steps(p, steps)


def test_overwriting_ends_a_residency() -> None:
    """A copy in the far memory outlives it."""
    p = chain()
    acts: tuple[Action, ...] = (("run", 0), ("run", 1), ("spill", 3), ("run", 2), ("refill", 3), ("run", 3))
    p = dataclasses.replace(p, nodes=(*p.nodes, Node(4, (3,), ())), spaces={"arena": None})
    seen = verify_steps(p, Steps((*acts, ("run", 4)), inplace={3: 3}))
    assert (seen.spilled, seen.refilled) == (512, 512)
    with pytest.raises(MemoryPlanError, match="without its operand 3"):
        verify_steps(p, Steps((*(a for a in acts if a[1] != 3 or a[0] == "run"), ("run", 4)), inplace={2: 3}))


def test_parts_are_read_from_what_holds_them() -> None:
    tensors = {1: Tensor(1, 64), 2: Tensor(2, 64), 3: Tensor(3, 128), 4: Tensor(4, 64, "output")}
    nodes = (
        Node(0, (), (1,)),
        Node(1, (), (2,)),
        Node(2, (1, 2), (3,), "cat", concat=((1, 0), (2, 64))),
        Node(3, (1, 3), (4,)),
    )
    p = Problem(nodes, tensors)
    runs: list[Action] = [("run", n) for n in range(4)]
    one = with_drops(p, runs, problem.Choices({}, {2: (1, 2)}))
    assert one == (*runs, ("drop", 3))
    seen = verify_steps(p, Steps(one, {(0, 1): 0, (1, 2): 64, (2, 3): 0, (3, 4): 128}, concat={2: (1, 2)}))
    assert seen.arena == {"arena": 192} and seen.peak == 192
    with pytest.raises(MemoryPlanError, match="not at its place in tensor 3"):
        verify_steps(p, Steps(one, {(0, 1): 64, (1, 2): 0, (2, 3): 0, (3, 4): 128}, concat={2: (1, 2)}))
    # Spilled and refilled, the whole still holds them.
    two = (*runs[:3], ("spill", 3), ("drop", 3), ("refill", 3), runs[3])
    assert verify_steps(p, Steps(two, concat={2: (1, 2)})).moved == 256
    with pytest.raises(MemoryPlanError, match="without its operand 1"):
        verify_steps(p, Steps((*runs[:3], ("spill", 3), ("drop", 3), runs[3]), concat={2: (1, 2)}))
