"""The checker finds every kind of fault, seeded into valid plans; reading and writing problems and plans."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from effc.passes.memory import problem, schedule
from effc.passes.memory.problem import Choices, Node, Plan, Problem, Tensor
from effc.passes.memory.program import from_program
from effc.passes.memory.verify import MemoryPlanError, verify
from tests.null.memory_cases import random_graph
from tests.null.test_memory_order import skip_connection


def layered() -> tuple[Problem, Plan]:
    """One of everything: overwriting, a concatenation in place, a workspace, a pin, two spaces, an order between nodes
    that pass no tensor."""
    tensors = {
        0: Tensor(0, 64, "input"),
        1: Tensor(1, 128),
        2: Tensor(2, 128),
        3: Tensor(3, 128),
        4: Tensor(4, 256),
        5: Tensor(5, 64, "output", pinned=512),
        6: Tensor(6, 64, space="far"),
    }
    nodes = (
        Node(0, (0,), (1,), workspace=64),
        Node(1, (1,), (2,), inplace_ok=(1,)),
        Node(2, (0,), (3,)),
        Node(3, (2, 3), (4,), "cat", concat=((2, 0), (3, 128))),
        Node(4, (4,), (5,)),
        Node(5, (4,), (6,), after=(4,)),
    )
    p = Problem(nodes, tensors, spaces={"arena": 576, "far": 64})
    offsets = {1: 0, 2: 0, 3: 128, 4: 0, 5: 512, 6: 0}
    return p, Plan((0, 1, 2, 3, 4, 5), offsets, Choices({1: 1}, {3: (2, 3)}), {0: 256})


def test_the_good_plan() -> None:
    p, plan = layered()
    seen = verify(p, plan)
    assert seen.arena == {"arena": 576, "far": 64} and (seen.peak, seen.at) == (384, 5)
    assert schedule.lay_out(p, plan.order, plan.choices).seen.arena == {"arena": 576, "far": 64}


def with_tensor(p: Problem, t: int, **changes: object) -> Problem:
    return dataclasses.replace(p, tensors={**p.tensors, t: dataclasses.replace(p.tensors[t], **changes)})  # type: ignore[arg-type]


def with_node(p: Problem, n: int, **changes: object) -> Problem:
    nodes = tuple(dataclasses.replace(x, **changes) if x.id == n else x for x in p.nodes)  # type: ignore[arg-type]
    return dataclasses.replace(p, nodes=nodes)


P, GOOD = layered()
FAULTS = {
    "a node is missing": (P, {"order": (0, 1, 2, 3, 4)}, "permutation"),
    "a node runs twice": (P, {"order": (0, 1, 2, 3, 4, 4)}, "permutation"),
    "an operand does not exist yet": (P, {"order": (1, 0, 2, 3, 4, 5)}, "before its operand"),
    "a node runs before one it must follow": (P, {"order": (0, 1, 2, 3, 5, 4)}, "must follow"),
    "no offset": (P, {"offsets": {1: 0, 2: 0, 3: 128, 4: 0, 6: 0}}, "no offset"),
    "negative": (P, {"offsets": {**(GOOD.offsets or {}), 6: -64}}, "negative"),
    "misaligned": (P, {"offsets": {**(GOOD.offsets or {}), 1: 8, 2: 8, 3: 136, 4: 8}}, "not aligned"),
    "not where it is pinned": (P, {"offsets": {**(GOOD.offsets or {}), 5: 448}}, "pinned"),
    "bytes in two tensors": (
        with_tensor(P, 5, pinned=192),
        {"offsets": {**(GOOD.offsets or {}), 5: 192}},
        "share bytes",
    ),
    "bytes in a tensor and a workspace": (P, {"workspaces": {0: 64}}, "share bytes"),
    "workspace without an offset": (P, {"workspaces": {}}, "workspace"),
    "workspace misaligned": (P, {"workspaces": {0: 260}}, "workspace"),
    "overwrites what it may not": (with_node(P, 1, inplace_ok=()), {}, "may not overwrite"),
    "overwrites with two results": (
        with_node(dataclasses.replace(P, tensors={**P.tensors, 7: Tensor(7, 64)}), 1, outs=(2, 7)),
        {},
        "may not overwrite",
    ),
    "overwrites what is read later": (with_node(P, 2, ins=(0, 1)), {}, "read after"),
    "overwrites an output": (with_tensor(P, 1, kind="output"), {}, "not to be overwritten"),
    "overwrites at another place": (P, {"offsets": {**(GOOD.offsets or {}), 1: 320}}, "lies elsewhere"),
    "overwrites in another space": (with_tensor(P, 1, space="far"), {}, "lies elsewhere"),
    "overwrites a part": (
        with_node(P, 4, inplace_ok=(3,)),
        {"choices": Choices({4: 3}, {3: (2, 3)})},
        "part of a concatenation",
    ),
    "not a concatenation": (with_node(P, 3, op="add"), {}, "does not concatenate"),
    "not an operand": (P, {"choices": Choices({1: 1}, {3: (2, 3, 1)})}, "not one of the operands"),
    "an output as part": (with_tensor(P, 3, kind="output"), {}, "cannot be made inside"),
    "a part at another place": (P, {"offsets": {**(GOOD.offsets or {}), 3: 320}}, "not at its place"),
    "a part twice": (P, {"choices": Choices({1: 1}, {3: (2, 3, 3)})}, "two tensors"),
    "a space that is not there": (with_tensor(P, 6, space="nowhere"), {}, "which there is not"),
    "more than the space has": (dataclasses.replace(P, spaces={"arena": 512, "far": 64}), {}, "which has"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str) -> None:
    p, changes, message = FAULTS[name]
    with pytest.raises(MemoryPlanError, match=message):
        verify(p, dataclasses.replace(GOOD, **changes))


def test_a_part_read_after_its_holder_is_dead() -> None:
    p = skip_connection()
    late = dataclasses.replace(
        p, nodes=(*p.nodes, Node(5, (1, 5), (6,))), tensors={**p.tensors, 6: Tensor(6, 64, "output")}
    )
    plan = Plan(tuple(range(6)), None, Choices({}, {3: (1,)}))
    with pytest.raises(MemoryPlanError, match="is dead"):
        verify(late, plan)
    with pytest.raises(ValueError, match="is dead"):
        schedule.lay_out(late, plan.order, plan.choices)
    assert schedule.schedule(late, rewrite=True).layout.arena <= schedule.schedule(late).layout.arena


def test_moved_offsets_are_found() -> None:
    """Any tensor of a tight plan moved by one alignment collides, leaves the arena's end, or stays unproblematic only
    where there is room."""
    found = 0
    for seed in range(20):
        p = random_graph(seed, 12)
        layout = schedule.lay_out(p, p.given)
        offsets = dict(layout.plan.offsets or {})
        for t in offsets:
            moved = dataclasses.replace(layout.plan, offsets={**offsets, t: offsets[t] + 64})
            try:
                grown = verify(p, moved)
            except MemoryPlanError:
                found += 1
                continue
            assert sum(grown.arena.values()) <= layout.arena + 64
    assert found > 50


@pytest.mark.parametrize("seed", range(20))
def test_problems_and_plans_survive_json(seed: int, tmp_path: Path) -> None:
    p = random_graph(seed, 15, inplace=0.5, concat=0.5)
    text = json.dumps(problem.to_dict(p))
    (tmp_path / "g.json").write_text(text)
    assert problem.to_dict(problem.from_json(tmp_path / "g.json")) == json.loads(text)
    again = problem.from_json(tmp_path / "g.json")
    assert again.tensors == p.tensors and again.given == p.given
    assert [n.concat for n in again.nodes] == [n.concat for n in p.nodes]
    plan = schedule.schedule(p, rewrite=True, states=2000, work=300_000).layout.plan
    assert problem.plan_from_dict(json.loads(json.dumps(problem.plan_to_dict(plan)))) == plan


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="effc-memory-graph-1"):
        problem.from_dict({"format": "other", "tensors": [], "nodes": []})


def test_from_a_lowered_program() -> None:
    """Views and aliases are their storage; one that is written twice keeps its writers and readers in order; what the
    program hands on stays; states are touched in order."""
    f = {"d": "f32", "shape": [20]}
    values = [
        {**f, "k": "input", "i": 0},
        {**f, "k": "temp"},  # 1
        {**f, "k": "view", "base": 1, "offset": 0, "strides": [1]},
        {**f, "k": "temp", "alias": 1},  # 3
        {**f, "k": "temp"},  # 4
        {**f, "k": "output", "i": 0},
        {**f, "k": "state", "name": "s"},  # 6
        {**f, "k": "temp"},  # 7, committed
    ]

    def call(ins: list[int], out: list[int]) -> dict[str, object]:
        return {"op": "call", "kernel": "k", "in": ins, "out": out, "flops": 8}

    code = [call([0], [1]), call([2, 6, -1], [4]), call([1], [3]), call([3, 4], [5]), call([4], [6]), call([4], [7])]
    p = from_program({"values": values, "code": code, "outputs": [5], "commits": [{"state": "s", "value": 7}]})
    assert {t: (x.bytes, x.raw_bytes, x.kind) for t, x in p.tensors.items()} == {
        1: (128, 80, "intermediate"),
        4: (128, 80, "intermediate"),
        7: (128, 80, "output"),
    }
    assert [(n.ins, n.outs) for n in p.nodes] == [
        ((), (1,)),
        ((1,), (4,)),
        ((1,), ()),
        ((1, 4), ()),
        ((4,), ()),
        ((4,), (7,)),
    ]
    assert set(p.nodes[2].after) == {0, 1} and 2 in p.nodes[3].after and 1 in p.nodes[4].after
    assert p.nodes[0].flops == 8
    assert schedule.lay_out(p, p.given).arena == 256


def test_padding_must_not_reach_into_the_next_part() -> None:
    """A result that is part of a concatenation cannot take over a buffer that, padded, is larger than the part."""
    sizes = [(1, 512, 475), (2, 512, 504), (3, 448, 448), (4, 960, 952)]
    tensors = {i: Tensor(i, b, "output" if i == 4 else "intermediate", raw_bytes=r) for i, b, r in sizes}
    nodes = (
        Node(0, (), (1,)),
        Node(1, (), (3,)),
        Node(2, (1,), (2,), inplace_ok=(1,)),
        Node(3, (2, 3), (4,), op="cat", concat=((2, 0), (3, 504))),
    )
    p = Problem(nodes, tensors)
    with pytest.raises(ValueError, match="is smaller"):
        schedule.lay_out(p, p.given, Choices({2: 1}, {3: (2, 3)}))
    made = schedule.schedule(p, rewrite=True)
    assert made.layout.arena <= made.given.arena
