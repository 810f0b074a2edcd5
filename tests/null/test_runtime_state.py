"""State in sessions, write-backs, aliasing, random counters."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from runtime_artifacts import add, args_tree, call, dim_symbol, entry, program, save, scale, tensor

from effc.runtime.artifact import ArtifactWriter
from effc.runtime.errors import EffcError
from effc.runtime.loader import LoadedModel, load

RNG = np.random.default_rng(1)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def accumulator(path: Path, in_place: bool, initial: np.ndarray | None = None) -> LoadedModel:
    """y = acc + x, and acc becomes y; a second entry point reads acc."""
    w = ArtifactWriter()
    state = {"d": "f32", "shape": [2, 3]}
    if initial is not None:
        state["seg"], state["offset"] = w.add_weight(initial)
    alias = {"alias": 1} if in_place else {}
    step = program(
        [
            tensor([2, 3], "input", i=0),
            tensor([2, 3], "state", name="acc"),
            tensor([2, 3], **alias),
            tensor([2, 3], "output", i=0),
        ],
        [add(1, 0, 2), scale(2, 3)],
        [0],
        [3],
        commits=[{"state": "acc", "value": 2}],
    )
    peek = program([tensor([2, 3], "state", name="acc")], [], [], [0])
    return load(save(path, entries={"step": entry(step), "peek": entry(peek)}, writer=w, states={"acc": state}))


@pytest.mark.parametrize("in_place", [False, True])
def test_state_lives_in_sessions(tmp_path: Path, in_place: bool) -> None:
    initial = f32(2, 3)
    m = accumulator(tmp_path / "m.effc", in_place, initial)
    a, b = m.session(), m.session()
    x = f32(2, 3)
    one = initial + x
    np.testing.assert_array_equal(m(x), one)
    np.testing.assert_array_equal(m(x), one + x)
    np.testing.assert_array_equal(a(x), one)
    np.testing.assert_array_equal(b.entry("peek")(), initial)
    np.testing.assert_array_equal(a.entry("peek")(), one)
    np.testing.assert_array_equal(m.entry("peek")(), one + x)
    np.testing.assert_array_equal(a.state("acc"), one)
    a.set_state("acc", np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(a(x), x)
    a.reset()
    np.testing.assert_array_equal(a.entry("peek")(), initial)
    with pytest.raises(EffcError, match="no state 'nothing'"):
        a.state("nothing")
    with pytest.raises(EffcError, match="float64"):
        a.set_state("acc", np.zeros((2, 3)))


def test_state_starts_at_zero_and_runs_take_turns(tmp_path: Path) -> None:
    m = accumulator(tmp_path / "m.effc", True)
    x = np.ones((2, 3), np.float32)

    def work() -> None:
        for _ in range(100):
            m(x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    np.testing.assert_array_equal(m.state("acc"), np.full((2, 3), 400, np.float32))


def test_session_of_another_model_is_refused(tmp_path: Path) -> None:
    m, other = accumulator(tmp_path / "a.effc", False), accumulator(tmp_path / "b.effc", False)
    stranger = other.session()
    with pytest.raises(EffcError, match="another model"):
        m._default._call(stranger, (f32(2, 3),), {})


def test_swapped_states(tmp_path: Path) -> None:
    """a, b = b, reversed(a): every source is another write-back's target."""
    w = ArtifactWriter()
    a, b = f32(4), f32(4)
    states = {}
    for name, data in (("a", a), ("b", b)):
        seg, offset = w.add_weight(data)
        states[name] = {"d": "f32", "shape": [4], "seg": seg, "offset": offset}
    values = [
        tensor([4], "state", name="a"),
        tensor([4], "state", name="b"),
        tensor([4], "view", base=0, offset=3, strides=[-1]),
    ]
    prog = program(values, [], [], [0, 1], commits=[{"state": "a", "value": 1}, {"state": "b", "value": 2}])
    m = load(save(tmp_path / "m.effc", prog, writer=w, states=states))
    for _ in range(3):
        got_a, got_b = m()
        np.testing.assert_array_equal(got_a, a)
        np.testing.assert_array_equal(got_b, b)
        a, b = b, a[::-1].copy()


def test_a_state_cannot_change_shape(tmp_path: Path) -> None:
    values = [tensor(["s0"], "input", i=0), tensor([4], "state", name="a")]
    prog = program(values, [], [0], [1], commits=[{"state": "a", "value": 0}], symbols=[dim_symbol("s0", 0, 0)])
    m = load(save(tmp_path / "m.effc", prog, states={"a": {"d": "f32", "shape": [4]}}))
    m(f32(4))
    with pytest.raises(EffcError, match=r"state 'a' from \(4,\) to \(5,\)"):
        m(f32(5))


def mutating(path: Path) -> LoadedModel:
    """x0 += x1; returns 2 * x0."""
    values = [
        tensor(["s0", 3], "input", i=0),
        tensor(["s0", 3], "input", i=1),
        tensor(["s0", 3]),
        tensor(["s0", 3], "output", i=0),
    ]
    prog = program(
        values,
        [add(0, 1, 2), scale(2, 3, 2.0)],
        [0, 1],
        [3],
        commits=[{"input": 0, "value": 2}],
        symbols=[dim_symbol("s0", 0, 0)],
    )
    return load(save(path, prog))


@pytest.mark.parametrize("layout", ["dense", "transposed", "strided", "reversed", "empty", "record", "misaligned"])
def test_mutated_inputs_are_written_back(tmp_path: Path, layout: str) -> None:
    m = mutating(tmp_path / "m.effc")
    b = f32(4, 3)
    if layout == "dense":
        x = f32(4, 3)
    elif layout == "transposed":
        x = f32(3, 4).T
    elif layout == "strided":
        x = f32(8, 9)[::2, ::3]
    elif layout == "reversed":
        x = f32(4, 3)[::-1, ::-1]
    elif layout == "empty":
        x, b = f32(0, 3), f32(0, 3)
    elif layout == "record":
        x = np.zeros((4, 3), np.dtype([("a", "u1"), ("f", "f4")]))["f"]
        x[...] = f32(4, 3)
    else:
        x = np.zeros(4 * 12 + 1, np.uint8)[1:].view(np.float32).reshape(4, 3)
        x[...] = f32(4, 3)
    want = x + b
    y = m(x, b)
    np.testing.assert_array_equal(x, want)
    np.testing.assert_array_equal(y, want * 2)


def test_inputs_that_cannot_be_written(tmp_path: Path) -> None:
    m = mutating(tmp_path / "m.effc")
    x = f32(4, 3)
    x.flags.writeable = False
    with pytest.raises(EffcError, match="'x0', which is read-only"):
        m(x, f32(4, 3))
    shared = np.lib.stride_tricks.as_strided(f32(3), (4, 3), (0, 4))
    with pytest.raises(EffcError, match="share memory"):
        m(shared, f32(4, 3))
    m(f32(4, 3), x)


def test_random_counters_belong_to_sessions(tmp_path: Path) -> None:
    prog = program([tensor([3], "output", d="u64", i=0)], [call("t_random", [], [0])], [], [0])
    m = load(save(tmp_path / "m.effc", prog))
    s = m.session()
    np.testing.assert_array_equal(m()[1:], [0, 10])
    np.testing.assert_array_equal(m()[1:], [20, 30])
    np.testing.assert_array_equal(s()[1:], [0, 10])
    m.seed(7)
    np.testing.assert_array_equal(m(), [7, 0, 10])
    s.seed(-1)
    np.testing.assert_array_equal(s(), [2**64 - 1, 0, 10])
    assert m()[0] == 7


def test_sessions_outlive_nothing_they_need(tmp_path: Path) -> None:
    m = accumulator(tmp_path / "m.effc", False)
    s, peek = m.session(), m.entry("peek")
    del m
    x = f32(2, 3)
    np.testing.assert_array_equal(s(x), x)
    np.testing.assert_array_equal(peek(), np.zeros((2, 3), np.float32))


def test_alias_takes_the_same_storage(tmp_path: Path) -> None:
    """t2 = t1 + x in place of t1, seen through a view of t1."""
    values = [
        tensor([6], "input", i=0),
        tensor([6]),
        tensor([6], alias=1),
        tensor([2, 3], "view", base=2, offset=0, strides=[1, 2]),
        tensor([2, 3], "output", i=0),
    ]
    m = load(save(tmp_path / "m.effc", program(values, [scale(0, 1, 3.0), add(1, 0, 2), scale(3, 4)], [0], [4])))
    x = f32(6)
    np.testing.assert_array_equal(m(x), (x * 3 + x).reshape(3, 2).T)


def test_in_tree_has_one_argument_per_input() -> None:
    assert len(args_tree(3)["c"][0]["c"]) == 3
