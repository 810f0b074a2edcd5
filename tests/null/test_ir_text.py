# ruff: noqa: E501  (IR text is not broken into lines)
"""The text form round-trips, and refuses malformed text with a line."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from effc.ir import dims
from effc.ir.dims import symbol
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Check, Commit, Graph, Loc, State
from effc.ir.interp import Interpreter
from effc.ir.op import OPS, get
from effc.ir.text import parse, to_text
from effc.ir.types import Encoding, TensorType
from effc.ir.verify import attr_symbols, verify
from effc.runtime.errors import EffcError

get("add")  # fills the table


def round_trip(g: Graph) -> Graph:
    arrays: dict[str, Any] = {}
    text = to_text(g, arrays, locs=True)
    back = parse(text, arrays)
    assert to_text(back, dict(arrays), locs=True) == text
    return back


def same_attr(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, Graph):
        return isinstance(b, Graph) and to_text(a) == to_text(b)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same_attr, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b)) and str(a) == str(b)


def same_graph(a: Graph, b: Graph) -> None:
    assert len(a.nodes) == len(b.nodes) and dict(a.symbols) == dict(b.symbols)
    assert a.checks == b.checks and a.name == b.name and a.output_names == b.output_names
    for x, y in zip((*a.inputs, *a.nodes), (*b.inputs, *b.nodes), strict=True):
        assert (x.op, x.types, x.loc, x.name) == (y.op, y.types, y.loc, y.name)
        assert x.attrs.keys() == y.attrs.keys()
        for k in x.attrs:
            assert same_attr(x.attrs[k], y.attrs[k]), (x.op, k, x.attrs[k], y.attrs[k])


SAMPLED = sorted(name for name, d in OPS.items() if d.samples is not None)


@pytest.mark.parametrize("name", SAMPLED)
def test_every_op_round_trips_and_verifies(name: str) -> None:
    samples = list(itertools.islice(OPS[name].samples(np.random.default_rng(0)), 40))  # type: ignore[misc]
    for s in samples:
        b = Builder()
        ins = []
        for i, a in enumerate(s.inputs):
            ins.append(None if a is None else b.input(f"x{i}", TensorType(DType.from_np(a.dtype), a.shape)))
        for attr in OPS[name].binds:
            for symbol_name in attr_symbols(s.attrs.get(attr)):
                b.symbol(symbol_name)
        out = b.op(name, *ins, **s.attrs)
        g = b.graph(out if isinstance(out, tuple) else [out])
        verify(g)
        same_graph(g, round_trip(g))


def build_everything() -> Graph:
    b = Builder()
    b.loc = Loc("model.py", 12, 'x = y["a"] + 1', "net.layer.0")
    s0 = b.symbol("s0", 1, 512)
    s1 = b.symbol("s1", 0)
    x = b.input("x", TensorType(DType.f32, (s0, 4)))
    strange = b.input("a name with spaces", TensorType(DType.i64, (s1 * s0 + 3, dims.maximum(s0, 2))))
    packed = b.input("x", TensorType(DType.u8, (8, 8), Encoding("int4", (32, 1))))
    b.input("", TensorType(DType.bf16, ()))
    big = b.constant(np.arange(100, dtype=np.float32), name="layer.weight")
    b.constant(np.arange(100, dtype=np.int64), name="layer.weight")
    again = b.node("constant", (), {"data": big.node.attrs["data"], "dtype": DType.f32})[0]
    for dtype in DType:
        raw = np.array([0.0, 1.0, -1.0, 0.1] if dtype.is_signed else [0, 1, 2, 3])
        b.constant(raw.astype(dtype.np), dtype)
    b.constant(np.array([np.inf, -np.inf, np.nan, -0.0, 1e-45, 3.4e38], np.float32))
    b.constant(np.array([complex(np.inf, -2.5)], np.complex64))
    b.constant(np.zeros((0, 3)))
    st = b.node("state", (), {"name": "cache", "type": TensorType(DType.f32, (2, 3))})[0]
    inner = Builder(b.symbols)
    p = inner.input("p", TensorType(DType.f32, (s0, 4)))
    then = inner.graph([inner.op("mul", p, p)], name="then")
    inner = Builder(b.symbols)
    q = inner.input("p", TensorType(DType.f32, (s0, 4)))
    deep = Builder(b.symbols)
    d = deep.input("d", TensorType(DType.f32, (s0, 4)))
    fused = inner.op("fused", q, body=deep.graph([deep.op("exp", d)]))
    orelse = inner.graph([fused], name="or else")
    cond = b.constant(True)
    y = b.op("if", cond, x, then=then, orelse=orelse)
    z = b.op("reshape", y, shape=(s0 * 2, 2), name="the reshape")
    b.op("full", None, value=float("-inf"), shape=(s0, 2), dtype="f32")
    return b.graph(
        [z, strange, packed, again],
        commits=(Commit(st, "cache"), Commit(x, None, 0)),
        states={
            "cache": State(TensorType(DType.f32, (2, 3))),
            "k v": State(TensorType(DType.f32, (50,)), np.arange(50, dtype=np.float32)),
        },
        checks=(Check(s0, "<=", s1 * 2 + 7, 'too "long"'), Check(s0 % 2, "==", 0)),
        name="entry 1",
        output_names=("z", "", "p", "big"),
    )


def test_everything_round_trips() -> None:
    g = build_everything()
    verify(g)
    back = round_trip(g)
    same_graph(g, back)
    verify(back)
    assert [c.state for c in back.commits] == ["cache", None] and back.commits[1].input == 0
    assert back.states["cache"].init is None and back.states["k v"].init is not None
    np.testing.assert_array_equal(back.states["k v"].init, g.states["k v"].init)


def test_shared_arrays_are_referenced_once() -> None:
    arrays: dict[str, Any] = {}
    text = to_text(build_everything(), arrays)
    assert set(arrays) == {"layer.weight", "layer.weight_1", "k_v"}
    assert text.count("@layer.weight)") == 2


def test_types_may_be_left_out() -> None:
    g = parse(
        'graph f(%x: f32[s0, 3]) {\n symbol s0 in 0..\n %a = exp(%x) # note\n %b = reduce(%a) {kind="max", dims=[1]}\n return %b }'
    )
    assert str(g.outputs[0].type) == "f32[s0]" and g.symbols["s0"] == (0, None)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(Interpreter().run(g, [x])[0], np.exp(x).max(1), rtol=1e-6)


def test_nodes_without_results_and_missing_operands() -> None:
    g = parse("graph f() {\n %0 = full(_) {value=2.0, shape=[3], dtype=f32}\n return %0\n}")
    assert g.nodes[0].inputs == (None,)
    assert parse(to_text(g)).nodes[0].inputs == (None,)
    empty = parse("graph g() {\n  return\n}\n")
    assert to_text(empty) == "graph g() {\n  return\n}\n"


def test_symbols_in_attributes() -> None:
    g = parse(
        "graph f(%x: f32[s0, 4]) {\n symbol s0 in 1..9\n %0 = slice(%x) {starts=[0, 1], stops=[<s0//2>, 4], steps=[1, 1]}\n return %0\n}"
    )
    assert g.nodes[0].attrs["stops"] == (symbol("s0") // 2, 4)
    assert str(g.outputs[0].type) == "f32[(s0)//(2), 3]"
    assert to_text(parse(to_text(g))) == to_text(g)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("graph f(%x: f32[3]) {\n %y = exp(%z)\n return %y }", "%z is used before"),
        ("graph f(%x: f32[3]) {\n %y = nosuch(%x)\n return %y }", "unknown op"),
        ("graph f(%x: f32[3]) {\n %y = exp(%x)\n %y = exp(%x)\n return %y }", "defined twice"),
        ("graph f(%x: f32[3]) {\n return %x", "expected '}'"),
        ("graph f(%x: f99[3]) { return %x }", "unknown dtype"),
        ("graph f(%x: f32[3+]) { return %x }", "not a dim"),
        ("graph f(%x: f32[3]) {\n %c = constant() {data=array(f32[99], @w)}\n return %c }", "no array @w"),
        ("graph f(%x: f32[3]) {\n %c = constant() {data=array(f32[2], [1.0])}\n return %c }", "1 elements"),
        ("graph f(%x: f32[3]) {\n %a, %b = exp(%x)\n return %b }", "1 results, 2 are named"),
        ("graph f(%x: f32[3]) {\n %a = exp(%x) {axis=1}\n return %a }", "no attribute"),
        ("graph f(%x: f32[3]) { return %x } graph", "text after"),
        ("graph f(%x: f32[3]) { ? }", "unexpected text"),
    ],
)
def test_malformed_text_is_refused(text: str, words: str) -> None:
    with pytest.raises(EffcError) as e:
        parse(text)
    assert words in str(e.value)
