"""Lowered programs as memory problems: what keeps its order, what may share bytes, what takes part in the arena."""

from __future__ import annotations

from typing import Any

import pytest

from effc.backends.cpu.lower import concat
from effc.ir import dims
from effc.passes.memory.problem import Problem
from effc.passes.memory.program import arena, from_program, overwritable, size, workspace

F = {"d": "f32", "k": "temp"}


def call(ins: list[int], out: list[int], kernel: str = "k", **more: Any) -> dict[str, Any]:
    return {"op": "call", "kernel": kernel, "in": ins, "out": out, "attrs": [], **more}


def problem(values: list[dict[str, Any]], code: list[dict[str, Any]], outputs: Any = (), **more: Any) -> Problem:
    return from_program(
        {"values": values, "code": code, "outputs": outputs, "commits": more.pop("commits", [])}, **more
    )


def must_follow(p: Problem) -> set[tuple[int, int]]:
    """All (earlier, later) pairs of instructions that no order may swap."""
    maker = {t: n.id for n in p.nodes for t in n.outs}
    before: dict[int, set[int]] = {}
    for n in p.nodes:
        own = {*n.after, *(maker[t] for t in n.ins if t in maker)}
        before[n.id] = own.union(*(before[u] for u in own))
    return {(u, n) for n, us in before.items() for u in us}


def test_readers_of_a_state_may_swap_and_writers_not() -> None:
    values = [{**F, "shape": [8]} for _ in range(4)] + [{"d": "f32", "shape": [8], "k": "state", "name": "s"}] * 2
    code = [call([4], [0]), call([5], [1]), call([0], [4]), call([5], [2]), call([4], [3])]
    pairs = must_follow(problem(values, code))
    assert pairs == {(0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4)}


def test_an_input_that_is_only_read_orders_nothing() -> None:
    values = [{"d": "f32", "shape": [8], "k": "input", "i": 0}, {**F, "shape": [8]}, {**F, "shape": [8]}]
    assert must_follow(problem(values, [call([0], [1]), call([0], [2])])) == set()


def test_random_numbers_keep_their_order_and_assertions_come_first() -> None:
    values = [{**F, "shape": [8]} for _ in range(5)]
    draw = {"effect": "random"}
    inside = {"values": [], "code": [call([], [], **draw)], "symbols": [], "inputs": [], "outputs": [], "commits": []}
    inside["arena"] = {"static_bytes": 0, "threads": 1}
    branch = {"op": "if", "cond": 2, "in": [], "out": [3], "then": inside, "else": inside}
    code = [call([], [0], **draw), call([], [1]), call([], [2], **draw), branch, call([], [], effect="effect")]
    code += [call([], [4])]
    assert must_follow(problem(values, code)) == {(0, 2), (0, 3), (2, 3), (4, 5)}


def test_what_defines_a_size_comes_before_its_users() -> None:
    values: list[dict[str, Any]] = [
        {"d": "i64", "k": "temp", "shape": ["u0"], "dyn": True},
        {**F, "shape": ["u1"]},
        {**F, "shape": [4]},
        {**F, "shape": [4]},
    ]
    code = [call([], [0]), call([], [3], bind=["u1"]), call([], [1]), call([], [2], attrs=["u0"])]
    p = problem(values, code)
    assert must_follow(p) == {(1, 2), (0, 3)}
    assert set(p.tensors) == {2, 3}, "what data size lies on the heap"


def test_states_inside_control_flow_count_as_written() -> None:
    state = {"d": "f32", "shape": [8], "k": "state", "name": "s"}
    values = [{**F, "shape": [8]}, {**F, "shape": []}, state, {**F, "shape": [8]}]
    inside = {"values": [state], "code": [], "symbols": [], "inputs": [], "outputs": [], "commits": []}
    inside["arena"] = {"static_bytes": 0, "threads": 1}
    code = [call([2], [0]), {"op": "if", "cond": 1, "in": [], "out": [], "then": inside, "else": inside}]
    assert must_follow(problem(values, [*code, call([2], [3])])) == {(0, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize("threads", [1, 3])
def test_workspaces(threads: int) -> None:
    """Scratch, each thread's, and for a loop the larger nested arena with the second copies of carries."""
    values = [{**F, "shape": [10]}, {**F, "shape": [10]}]
    inside = {"values": [], "code": [], "symbols": [], "inputs": [], "outputs": [], "commits": []}
    body, test = ({**inside, "arena": {"static_bytes": n, "threads": threads}} for n in (640, 130))
    assert workspace(values, call([], [], scratch=65, thread_scratch=1), {}, threads) == 128 + 64 * threads
    loop = {"op": "while", "in": [0], "out": [1], "cond": test, "body": body, "consts": []}
    assert workspace(values, loop, {}, threads) == 640 + 64
    assert workspace(values, {**loop, "op": "if", "cond": 0, "then": body, "else": test, "body": 0}, {}, threads) == 640


def test_an_arena_at_other_sizes_follows_the_sequence() -> None:
    n = dims.symbol("n")
    values = [{**F, "shape": [n]}, {**F, "shape": [n * 2]}, {**F, "shape": [16]}]
    code = [call([], [0]), call([0], [1]), call([1], [2])]
    program = {"values": values, "code": code, "outputs": [], "commits": []}
    said = {"static_bytes": None, "threads": 1, "sequences": [[1, 0, 2]]}
    for k in (1, 16, 100):
        need = [-(-4 * x // 64) * 64 for x in (k, 2 * k, 16)]
        assert arena({**program, "arena": said}, {"n": k}, 1) == max(need[0] + need[1], need[1] + need[2])
        assert arena({**program, "arena": {**said, "apart": True}}, {"n": k}, 1) == sum(need)
    assert size(["//", ["+", "n", 7], 8], {"n": 9}) == 2 and size(["%", "n", 0], {"n": 9}) == 0


def test_what_may_be_overwritten() -> None:
    view = {"k": "view", "base": 0, "d": "f32", "strides": [1]}
    values = [
        {**F, "shape": [8]},
        {**F, "shape": [8]},
        {**view, "shape": [8], "offset": 0},
        {**view, "shape": [4], "offset": 0},
        {**view, "shape": [8], "offset": 1},
        {**F, "d": "i32", "shape": [8]},
        {**F, "shape": [2, 4], "strides": [1, 2]},
        {**F, "shape": [2, 4]},
        {"d": "f32", "shape": [8], "k": "input", "i": 0},
    ]

    def asked(out: int, *ins: int) -> int | None:
        return overwritable(values, call(list(ins), [out]), 0, 0)

    assert asked(1, 0) == 0 and asked(1, 2) == 0 and asked(1, 0, 0) == 0
    assert asked(1, 3) is None, "part of it"
    assert asked(1, 4) is None, "shifted"
    assert asked(5, 0) is None, "another type"
    assert asked(7, 6) is None, "another order"
    assert asked(1, 0, 4) is None, "another operand shows it shifted"
    assert asked(1, 8) is None, "the caller's"


def joined(kernel: str = "map_x", **part: Any) -> tuple[Any, Any]:
    """Two parts of two and three channels, joined with their channels innermost."""
    values: list[dict[str, Any]] = [
        {"d": "f32", "shape": [1, 3, 4, 5], "k": "input", "i": 0},
        {**F, "shape": [1, 2, 4, 5], "strides": [40, 1, 10, 2], **part},
        {**F, "shape": [1, 3, 4, 5], "strides": [60, 1, 15, 3]},
        {**F, "shape": [1, 5, 4, 5], "strides": [100, 1, 25, 5]},
        {"d": "f32", "k": "view", "base": 1, "shape": [1, 1, 20, 2], "offset": 0, "strides": [40, 40, 2, 1]},
        {"d": "f32", "shape": [1], "k": "output", "i": 0},
    ]
    code = [
        call([0], [4], kernel),
        call([0], [2], "map_y"),
        call([1, 2], [3], concat.KERNEL, n_own=2, bytes=800),
        call([1, 3], [5]),
    ]
    code[2]["attrs"] = [1]
    return values, code


def test_parts_of_a_concatenation_move_into_it() -> None:
    values, code = joined()
    code[3] = call([3], [5])
    new, rest, placed = concat.rewrite(values, code, {2: (0, 1)}, {5})
    assert placed == 2 and [ins["kernel"] for ins in rest] == ["map_x", "map_y", "k"]
    assert (new[1]["k"], new[1]["base"], new[1]["offset"], new[1]["strides"]) == ("view", 3, 0, (100, 1, 25, 5))
    assert (new[2]["base"], new[2]["offset"], new[2]["strides"]) == (3, 2, (100, 1, 25, 5))
    assert (new[4]["base"], new[4]["strides"]) == (3, (100, 100, 5, 1)), "rows of channels, through the whole"
    assert values[1]["k"] == "temp", "the program given is left as it was"


def test_parts_that_cannot_move_are_copied() -> None:
    values, code = joined("gemm")
    new, rest, placed = concat.rewrite(values, code, {2: (0, 1)}, {5})
    assert placed == 1 and [ins["kernel"] for ins in rest] == ["gemm", "map_y", "effc_copy", "k"]
    copy = rest[2]
    assert copy["in"] == [1] and new[copy["out"][0]] == {
        "d": "f32", "k": "view", "base": 3, "shape": [1, 2, 4, 5], "offset": 0, "strides": (100, 1, 25, 5),
    }  # fmt: skip
    assert concat.rewrite(values, code, {2: (0, 1)}, {1, 2, 5})[2] == 0, "what outlives the program stays"
    values, code = joined()
    code[2]["in"] = [1, 1]
    assert concat.rewrite(values, code, {2: (0, 1)}, set())[2] == 0, "the same part twice"


def test_a_view_that_would_leave_its_run_stays() -> None:
    assert concat._scaled(0, (4, 6), (6, 1), 6, 10) == (0, (10, 1))
    assert concat._scaled(7, (4, 5), (6, 1), 6, 10) == (11, (10, 1))
    assert concat._scaled(7, (3, 6), (6, 1), 6, 10) is None, "crosses from one run to the next"
    assert concat._scaled(0, (4, 3), (6, 2), 6, 10) == (0, (10, 2))
    assert concat._scaled(0, (3, 2), (6, -1), 6, 10) is None
    assert concat._scaled(0, (3, 2), (6, 8), 6, 20) is None, "neither within a run nor of whole runs"
    n = dims.symbol("n")
    assert concat._scaled(n * 12, (n, 6), (6, 1), 6, 10) == (n * 20, (10, 1))
