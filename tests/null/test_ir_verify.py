"""The verifier accepts well-formed graphs and names what is wrong with others."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import pytest

from effc.ir.dims import symbol
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Commit, Graph, Loc, Node, State
from effc.ir.text import parse
from effc.ir.types import TensorType
from effc.ir.verify import verify
from effc.runtime.errors import EffcError

F4 = TensorType(DType.f32, (4,))


def refused(g: Graph, *words: str) -> None:
    with pytest.raises(EffcError) as e:
        verify(g)
    for w in words:
        assert w in str(e.value), str(e.value)


def base() -> tuple[Builder, Any, Any]:
    b = Builder()
    b.loc = Loc("net.py", 7, "y = x.exp()")
    x = b.input("x", F4)
    return b, x, b.op("exp", x, name="y")


def test_wrong_type_names_node_and_line() -> None:
    b, _, y = base()
    bad = dataclasses.replace(y.node, types=(TensorType(DType.f32, (5,)),))
    refused(Graph(tuple(b.inputs), (bad,), (bad[0],)), "exp 'y'", "net.py:7", "is f32[5]", "gives f32[4]")


def test_order_and_scope() -> None:
    b, _, y = base()
    z = b.op("neg", y)
    refused(Graph(tuple(b.inputs), (z.node, y.node), (z,)), "operand 0", "not defined before")
    refused(Graph(tuple(b.inputs), (y.node, y.node), (y,)), "stands twice")
    refused(Graph(tuple(b.inputs), (y.node,), (z,)), "output 0")
    refused(Graph((), (y.node,), (y,)), "not defined before")
    refused(Graph(tuple(b.inputs), (y.node,), (y,), commits=(Commit(z, None, 0),)), "commit 0")
    refused(Graph(tuple(b.inputs), (y.node,), (y,), commits=(Commit(y, None, 3),)), "input 3 of 1")
    refused(Graph(tuple(b.inputs), (y.node,), (y,), commits=(Commit(y, "k"),)), "unknown state")
    other = TensorType(DType.f32, (5,))
    refused(
        Graph(tuple(b.inputs), (y.node,), (y,), commits=(Commit(y, "k"),), states={"k": State(other)}),
        "is committed to",
    )


def test_attributes_are_typed() -> None:
    b, x, _ = base()
    good = b.node("reduce", (x,), {"kind": "sum", "dims": (0,)})
    for key, value, words in [
        ("keepdims", 1, "keepdims is 1"),
        ("kind", None, "kind is None"),
        ("dims", [0], "dims is [0]"),
    ]:
        bad = dataclasses.replace(good, attrs=MappingProxyType({**good.attrs, key: value}))
        refused(Graph(tuple(b.inputs), (bad,), (bad[0],)), words)
    missing = dataclasses.replace(good, attrs=MappingProxyType({"kind": "sum", "dims": (0,)}))
    refused(Graph(tuple(b.inputs), (missing,), (missing[0],)), "has attributes")
    unknown = Node("frobnicate", (x,), MappingProxyType({}), (F4,))
    refused(Graph(tuple(b.inputs), (unknown,), (unknown[0],)), "unknown op 'frobnicate'")
    absent = Node("add", (x, None), MappingProxyType({}), (F4,))
    refused(Graph(tuple(b.inputs), (absent,), (absent[0],)), "operand y is missing")


def test_symbols() -> None:
    b = Builder()
    s0 = b.symbol("s0", 1, 9)
    x = b.input("x", TensorType(DType.f32, (s0, 2)))
    y = b.op("reshape", x, shape=(symbol("s9"),))
    refused(b.graph([y]), "symbol s9 has no bounds")
    b.symbols["s9"] = (5, 2)
    refused(b.graph([y]), "empty bounds")
    b = Builder()
    u0 = b.symbol("u0", 0)
    x = b.input("x", TensorType(DType.f32, (4,)))
    early = b.op("full", None, value=1.0, shape=(u0,), dtype="f32")
    late = Node("binds_u0", (x,), MappingProxyType({}), (F4,))
    refused(b.graph([early, late[0]]).__class__(tuple(b.inputs), (*b.nodes, late), (early,), b.symbols), "unknown op")


def test_equal_sizes_may_be_written_differently() -> None:
    text = """graph f(%x: f32[s0, 4], %y: f32[s1, 4]) {
      symbol s0 in 1..99
      symbol s1 in 1..99
      CHECK
      %0 = add(%x, %y) : f32[s1, 4]
      return %0
    }"""
    verify(parse(text.replace("CHECK", "check s0 == s1")))
    refused(parse(text.replace("CHECK", "")), "is f32[s1, 4]", "gives f32[s0, 4]")


LOOP = """graph f(%n: i64[], %x: f32[3], %w: f32[3]) {
  %0, %1 = while(%n, %x, %w) {carries=2, cond=graph c(%n: i64[], %x: f32[3], %w: f32[3]) {
    %0 = full() {value=0, shape=[], dtype=i64}
    %1 = COND
    return %1
  }, body=graph b(%n: i64[], %x: f32[3]BODYIN) {
    %0 = full() {value=1, shape=[], dtype=i64}
    %1 = sub(%n, %0)
    %2 = mul(%x, %x)
    return %1, %2
  }}
  return %1
}"""


def test_subgraph_signatures() -> None:
    good = LOOP.replace("COND", "gt(%n, %0)").replace("BODYIN", ", %w: f32[3]")
    verify(parse(good))
    refused(parse(LOOP.replace("COND", "gt(%n, %0)").replace("BODYIN", "")), "body takes 2 values, 3 are given")
    refused(parse(LOOP.replace("COND", "gt(%n, %0)").replace("BODYIN", ", %w: i32[3]")), "input 2 of body is i32[3]")
    refused(parse(LOOP.replace("COND", "sub(%n, %0)").replace("BODYIN", ", %w: f32[3]")), "one bool scalar")
    b, x, y = base()
    inner = Builder()
    p = inner.input("p", F4)
    body = dataclasses.replace(inner.graph([p]), outputs=(y,))  # reaches outside
    refused(b.graph([b.op("fused", x, body=body)]), "output 0")
