"""Control flow and data-dependent sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_artifacts import add, call, dim_symbol, program, save, scale, tensor

from effc.runtime.artifact import ArtifactWriter
from effc.runtime.errors import EffcError
from effc.runtime.loader import load

RNG = np.random.default_rng(2)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def nested(values: list[dict[str, Any]], code: list[dict[str, Any]], n_in: int, outputs: list[int]) -> dict[str, Any]:
    return program(values, code, list(range(n_in)), outputs)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_if(tmp_path: Path, n: int) -> None:
    """y = 2 x if c else x (passed through) of a transposed operand."""
    then = nested([tensor(["s0", 3], "input", i=0), tensor(["s0", 3], "output", i=0)], [scale(0, 1, 2.0)], 1, [1])
    other = nested([tensor(["s0", 3], "input", i=0)], [], 1, [0])
    values = [
        tensor([3, "s0"], "input", i=0),
        tensor([], "input", d="bool", i=1),
        tensor(["s0", 3], "view", base=0, offset=0, strides=[1, "s0"]),
        tensor(["s0", 3]),
        tensor(["s0", 3], "output", i=0),
    ]
    code = [{"op": "if", "cond": 1, "in": [2], "out": [3], "then": then, "else": other}, scale(3, 4, 1.0, 1)]
    m = load(save(tmp_path / "m.effc", program(values, code, [0, 1], [4], symbols=[dim_symbol("s0", 0, 1)])))
    x = f32(3, n)
    np.testing.assert_array_equal(m(x, True), x.T * 2 + 1)
    np.testing.assert_array_equal(m(x, np.array(False)), x.T + 1)


def while_program(n: Any) -> dict[str, Any]:
    """while sum-like scalar i < limit: v = v + step (a constant operand); i = i + 1."""
    cond = nested(
        [
            tensor([], "input", i=0),
            tensor([n], "input", i=1),
            tensor([n], "input", i=2),
            tensor([], "input", i=3),
            tensor([], "output", d="bool", i=0),
        ],
        [call("t_less", [0, 3], [4])],
        4,
        [4],
    )
    body = nested(
        [
            tensor([], "input", i=0),
            tensor([n], "input", i=1),
            tensor([n], "input", i=2),
            tensor([], "input", i=3),
            tensor([], "output", i=0),
            tensor([n], "output", i=1),
        ],
        [scale(0, 4, 1.0, 1), add(1, 2, 5)],
        4,
        [4, 5],
    )
    values = [
        tensor([], "input", i=0),
        tensor([n], "input", i=1),
        tensor([n], "input", i=2),
        tensor([], "input", i=3),
        tensor([], "output", i=0),
        tensor([n], "output", i=1),
    ]
    code = [{"op": "while", "in": [0, 1], "consts": [2, 3], "out": [4, 5], "cond": cond, "body": body}]
    return program(values, code, [0, 1, 2, 3], [4, 5], symbols=[dim_symbol("s0", 1, 0)] if n == "s0" else [])


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("n", [0, 1, 33])
def test_while(tmp_path: Path, steps: int, n: int) -> None:
    m = load(save(tmp_path / "m.effc", while_program("s0")))
    v, step = f32(2 * n)[::2], f32(n)
    i, got = m(0.0, v, step, float(steps))
    want = v.copy()
    for _ in range(steps):
        want = want + step
    assert i == steps
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 6])
def test_scan(tmp_path: Path, reverse: bool, length: int) -> None:
    """c' = c + x; y = 2 c' + k, over a transposed xs."""
    body = nested(
        [
            tensor([3], "input", i=0),
            tensor([3], "input", i=1),
            tensor([3], "input", i=2),
            tensor([3], "output", i=0),
            tensor([3]),
            tensor([3], "output", i=1),
        ],
        [add(0, 1, 3), scale(3, 4, 2.0), add(4, 2, 5)],
        3,
        [3, 5],
    )
    values = [
        tensor([3], "input", i=0),
        tensor([3, "s0"], "input", i=1),
        tensor([3], "input", i=2),
        tensor(["s0", 3], "view", base=1, offset=0, strides=[1, "s0"]),
        tensor([3], "output", i=0),
        tensor(["s0", 3], "output", i=1),
    ]
    code = [
        {
            "op": "scan",
            "length": "s0",
            "reverse": reverse,
            "carry": [0],
            "xs": [3],
            "consts": [2],
            "out": [4, 5],
            "body": body,
        }
    ]
    m = load(save(tmp_path / "m.effc", program(values, code, [0, 1, 2], [4, 5], symbols=[dim_symbol("s0", 1, 1)])))
    c, x, k = f32(3), f32(3, length), f32(3)
    got_c, got_y = m(c, x, k)
    want_c, want_y = c, np.zeros((length, 3), np.float32)
    for t in reversed(range(length)) if reverse else range(length):
        want_c = want_c + x[:, t]
        want_y[t] = want_c * 2 + k
    np.testing.assert_array_equal(got_c, want_c)
    np.testing.assert_array_equal(got_y, want_y)


def nonzero_program(bind: int) -> dict[str, Any]:
    """i = nonzero(x); y = x[i] * 2 + len(i); also a view of y, reversed."""
    values = [
        tensor(["s0"], "input", i=0),
        tensor(["u0"], d="i64", dyn=True),
        tensor(["u0"]),
        tensor(["u0"], "output", i=0),
        tensor(["u0"], "view", base=2, offset=["-", "u0", 1], strides=[-1]),
        tensor(["u0"], "output", i=1),
        tensor([2], "output", i=2),
        tensor([1], "view", base=6, offset=1, strides=[1]),
        tensor([1], "view", base=6, offset=0, strides=[1]),
        tensor([1], "view", base=0, offset=0, strides=[1]),
    ]
    code = [
        call("t_nonzero", [0], [1], attrs=[bind], bind=["u0"]),
        call("t_take", [0, 1], [2]),
        scale(2, 3, 2.0, "u0"),
        scale(4, 5),
        scale(9, 7, 0.0, ["*", "u0", 2]),
        scale(9, 8, 1.0),
    ]
    symbols = [dim_symbol("s0", 0, 0, 1), {"name": "u0", "lo": 0, "hi": None, "from": None}]
    return program(
        values,
        code,
        [0],
        [3, 5, 6],
        symbols=symbols,
        checks=[{"lhs": "u0", "op": "<=", "rhs": 5, "message": "too many"}],
    )


@pytest.mark.parametrize("bind", [0, 1])
def test_data_dependent_sizes(tmp_path: Path, bind: int) -> None:
    """The size is bound by the kernel, or, where it does not say, by the shape that it allocates."""
    m = load(save(tmp_path / "m.effc", nonzero_program(bind)))
    assert [o.shape for o in m.outputs] == [(-1,), (-1,), (2,)]
    for mask in ([1, 0, 1, 1], [0, 0, 0], [1], [0, 1, 1, 0, 1, 1, 1]):
        x = f32(len(mask)) * np.array(mask, np.float32)
        y, r, e = m(x)
        want = x[x != 0]
        np.testing.assert_array_equal(y, want * 2 + len(want))
        np.testing.assert_array_equal(r, want[::-1])
        np.testing.assert_array_equal(e, np.array([x[0], 2 * len(want)], np.float32))
    with pytest.raises(EffcError, match="too many"):
        m(np.ones(6, np.float32))
    assert len(m(np.ones(5, np.float32))[0]) == 5


def test_dyn_output_is_allocated_by_the_kernel(tmp_path: Path) -> None:
    values = [tensor([6], "input", i=0), tensor(["u0"], "output", d="i64", i=0, dyn=True)]
    prog = program(
        values,
        [call("t_nonzero", [0], [1], attrs=[0])],
        [0],
        [1],
        symbols=[{"name": "u0", "lo": 0, "hi": 6, "from": None}],
    )
    m = load(save(tmp_path / "m.effc", prog))
    x = np.array([0, 1, 0, 2, 3, 0], np.float32)
    got = m(x)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, [1, 3, 4])
    assert m(np.zeros(6, np.float32)).shape == (0,)


def test_control_flow_over_a_data_dependent_size(tmp_path: Path) -> None:
    """A branch that works on u0 elements, inside a program that learns u0 while running."""
    body = nested([tensor(["u0"], "input", i=0), tensor(["u0"], "output", i=0)], [scale(0, 1, 5.0)], 1, [1])
    same = nested([tensor(["u0"], "input", i=0)], [], 1, [0])
    values = [
        tensor(["s0"], "input", i=0),
        tensor(["u0"], d="i64", dyn=True),
        tensor(["u0"]),
        tensor([], "input", d="bool", i=1),
        tensor(["u0"], "output", i=0),
    ]
    code = [
        call("t_nonzero", [0], [1], attrs=[1], bind=["u0"]),
        call("t_take", [0, 1], [2]),
        {"op": "if", "cond": 3, "in": [2], "out": [4], "then": body, "else": same},
    ]
    symbols = [dim_symbol("s0", 0, 0), {"name": "u0", "lo": 0, "hi": None, "from": None}]
    m = load(save(tmp_path / "m.effc", program(values, code, [0, 3], [4], symbols=symbols)))
    for x in (np.array([0, 1, 2, 0], np.float32), np.array([3], np.float32), np.zeros(0, np.float32)):
        np.testing.assert_array_equal(m(x, True), x[x != 0] * 5)
        np.testing.assert_array_equal(m(x, False), x[x != 0])


def test_a_branch_with_a_data_dependent_result(tmp_path: Path) -> None:
    """then: nonzero(x); else: nothing found. The result's size becomes known when the branch returns."""
    w = ArtifactWriter()
    w.add_weight(np.zeros(1, np.int64))
    u = {"name": "u1", "lo": 0, "hi": None, "from": None}
    then = program(
        [tensor([4], "input", i=0), tensor(["u1"], "output", d="i64", i=0, dyn=True)],
        [call("t_nonzero", [0], [1], attrs=[0])],
        [0],
        [1],
        symbols=[u],
    )
    none = program([tensor([4], "input", i=0), tensor([0], "const", d="i64", seg=0, offset=0)], [], [0], [1])
    values = [
        tensor([4], "input", i=0),
        tensor([], "input", d="bool", i=1),
        tensor(["u0"], d="i64", dyn=True),
        tensor(["u0"]),
        tensor(["u0"], "output", i=0),
    ]
    code = [
        {"op": "if", "cond": 1, "in": [0], "out": [2], "then": then, "else": none},
        call("t_take", [0, 2], [3]),
        scale(3, 4, 1.0, "u0"),
    ]
    m = load(
        save(
            tmp_path / "m.effc",
            program(values, code, [0, 1], [4], symbols=[{"name": "u0", "lo": 0, "hi": None, "from": None}]),
            writer=w,
        )
    )
    x = np.array([0, 7, 0, 8], np.float32)
    np.testing.assert_array_equal(m(x, True), [9, 10])
    assert m(x, False).shape == (0,)


def test_integer_argument_as_a_size(tmp_path: Path) -> None:
    """y = x[:n] * 2 with n an argument."""
    values = [
        tensor(["s0"], "input", i=0),
        tensor([], "input", d="i64", i=1),
        tensor(["n"], "view", base=0, offset=0, strides=[1]),
        tensor(["n"], "output", i=0),
    ]
    symbols = [dim_symbol("s0", 0, 0), {"name": "n", "lo": 0, "hi": 100, "from": {"input": 1, "value": True}}]
    checks = [{"lhs": "n", "op": "<=", "rhs": "s0", "message": "n must not exceed the length"}]
    m = load(
        save(tmp_path / "m.effc", program(values, [scale(2, 3, 2.0)], [0, 1], [3], symbols=symbols, checks=checks))
    )
    x = f32(8)
    for n in (0, 1, 5, 8, 5):
        np.testing.assert_array_equal(m(x, n), x[:n] * 2)
    np.testing.assert_array_equal(m(x, np.array(3)), x[:3] * 2)
    with pytest.raises(EffcError, match=r"value is 101.*n = 0 to 100"):
        m(x, 101)
    with pytest.raises(EffcError, match=r"reaches outside|n must not exceed"):
        m(x, 9)
    with pytest.raises(EffcError, match="float"):
        m(x, 1.5)


def test_symbols_with_factor_and_offset(tmp_path: Path) -> None:
    values = [
        tensor([["+", ["*", "s0", 3], 2]], "input", i=0),
        tensor(["s0", 3], "view", base=0, offset=2, strides=[3, 1]),
        tensor(["s0", 3], "output", i=0),
    ]
    m = load(
        save(
            tmp_path / "m.effc",
            program(values, [scale(1, 2)], [0], [2], symbols=[dim_symbol("s0", 0, 0, mul=3, add=2)]),
        )
    )
    for n in (0, 1, 4):
        x = f32(3 * n + 2)
        np.testing.assert_array_equal(m(x), x[2:].reshape(n, 3))
    with pytest.raises(EffcError, match=r"not of the form.*s0"):
        m(f32(6))


def test_kernel_errors_name_the_line(tmp_path: Path) -> None:
    values = [tensor([4], "input", i=0), tensor([2], "input", d="i64", i=1), tensor([2], "output", i=0)]
    m = load(save(tmp_path / "m.effc", program(values, [call("t_take", [0, 1], [2])], [0, 1], [2])))
    x = f32(4)
    with pytest.raises(EffcError, match=r"index 9 is out of range for size 4.*model.py:12"):
        m(x, np.array([1, 9]))
    np.testing.assert_array_equal(m(x, np.array([3, 0])), x[[3, 0]])
    prog = program([tensor([], "output", i=0)], [call("t_status", [], [0], attrs=[5])], [], [0])
    with pytest.raises(EffcError, match="t_status failed with status 5"):
        load(save(tmp_path / "s.effc", prog))()


def test_epilogues_and_absent_operands(tmp_path: Path) -> None:
    values = [tensor([], "input", i=0), tensor([], "output", i=0), tensor([], "output", i=1)]
    code = [call("t_tile", [0, 0], [1], n_own=1, epilogue="t_epilogue"), call("t_optional", [0, -1], [2])]
    m = load(save(tmp_path / "m.effc", program(values, code, [0], [1, 2])))
    y, absent = m(3.0)
    assert y == 21 and absent == 1


def test_float_attributes(tmp_path: Path) -> None:
    for word, value in (("inf", np.inf), ("-inf", -np.inf), ("nan", np.nan), (1e-3, 1e-3), (-2, -2.0)):
        prog = program([tensor([1], "input", i=0), tensor([1], "output", i=0)], [scale(0, 1, word)], [0], [1])
        got = load(save(tmp_path / "m.effc", prog))(np.ones(1, np.float32))
        np.testing.assert_array_equal(got, np.float32([value]))
