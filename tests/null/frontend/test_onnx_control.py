"""Control flow, sequences, shape arithmetic and functions of ONNX models, against onnx's own evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import effc
from effc.frontend.onnx import import_model

TARGETS = ("reference", "cpu")


def model(text: str, opset: int = 21) -> onnx.ModelProto:
    """A graph in onnx's text form; ``main`` is its name."""
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def check(m: onnx.ModelProto, *calls: dict[str, Any], target: str, args: Any = (), judge: Any = None) -> Any:
    """Each call's outputs equal the judge's, onnx's own evaluator if none is given: dtype and shape exactly."""
    made = effc.compile(m, args, target=target)
    want_of = ReferenceEvaluator(m) if judge is None else judge
    for feeds in calls:
        got, want = made(*feeds.values()), want_of.run(None, feeds)
        assert len(got) == len(want)
        for g, w in zip(got, want):
            w = np.asarray(w)
            assert (g.dtype, g.shape) == (w.dtype, w.shape)
            np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)
    return made


def f32(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("target", TARGETS)
def test_branches_of_different_sizes(target: str) -> None:
    m = model("""main (bool c, float[n] x) => (float[m] y) {
        y = If (c) <
          then_branch = a () => (float[k] p) { s = Constant<value_ints=[2]>() p = Tile(x, s) },
          else_branch = b () => (float[k] q) { z = Constant<value_ints=[0]>() e = Constant<value_ints=[1]>()
                                               q = Slice(x, z, e) }>
    }""")
    rng = np.random.default_rng(0)
    calls = [{"c": np.asarray(c), "x": f32(rng, n)} for c in (True, False) for n in (5, 1)]
    check(m, *calls, target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_a_known_condition_takes_its_branch(target: str) -> None:
    m = model("""main (float[n, 3] x) => (float[n, 3] y) {
        s = Shape(x) r = Size(s) two = Constant<value_int=2>() c = Equal(r, two)
        y = If (c) <then_branch = a () => (float[k, 3] p) { p = Neg(x) },
                    else_branch = b () => (float[k, 3] q) { q = Exp(x) }>
    }""")
    made = check(m, {"x": f32(np.random.default_rng(1), 4, 3)}, target=target)
    assert "if" not in str(import_model(m).graph).replace("bif", "") and made is not None


@pytest.mark.parametrize("target", TARGETS)
def test_a_loop_becomes_a_scan(target: str) -> None:
    m = model("""main (float[n, 3] x) => (float[3] total, float[n, 3] rows) {
        s = Shape<start=0, end=1>(x) z = Constant<value_ints=[0]>() trip = Squeeze(s, z)
        go = Constant<value=bool {1}>() zero = Constant<value_floats=[0.0, 0.0, 0.0]>()
        total, rows = Loop(trip, go, zero) <body = step (int64 i, bool c, float[3] acc)
          => (bool d, float[3] sum, float[3] row) {
            d = Identity(c) r = Gather(x, i) sum = Add(acc, r) row = Mul(sum, r) }>
    }""")
    rng = np.random.default_rng(2)
    check(m, *({"x": f32(rng, n, 3)} for n in (7, 1, 4)), target=target)
    assert [n.op for n in import_model(m).graph.nodes].count("scan") == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_loop_that_ends_early(target: str) -> None:
    m = model("""main (float[3] x, float limit) => (float[3] y, float[k, 3] rows) {
        trip = Constant<value_int=20>() go = Constant<value=bool {1}>()
        y, rows = Loop(trip, go, x) <body = step (int64 i, bool c, float[3] a) => (bool d, float[3] b, float[3] r) {
          b = Add(a, a) m = ReduceMax<keepdims=0>(b) d = Less(m, limit) r = Identity(b) }>
    }""")
    calls = [{"x": np.array([0.5, 1, -1], np.float32), "limit": np.asarray(v, np.float32)} for v in (9.0, 0.1, 1e9)]
    check(m, *calls, target=target)
    assert [n.op for n in import_model(m).graph.nodes].count("while") == 1


@pytest.mark.parametrize("target", TARGETS)
def test_sizes_that_each_iteration_computes(target: str) -> None:
    """Slices of a size that depends on the iteration's number: its symbols are bound anew each time."""
    m = model("""main (float[6] x) => (float y) {
        trip = Constant<value_int=6>() go = Constant<value=bool {1}>() zero = Constant<value_float=0.0>()
        one = Constant<value_ints=[1]>() first = Constant<value_ints=[0]>()
        y = Loop(trip, go, zero) <body = step (int64 i, bool c, float a) => (bool d, float b) {
          d = Identity(c) e = Unsqueeze(i, first) f = Add(e, one) p = Slice(x, first, f)
          s = ReduceSum<keepdims=0>(p) b = Add(a, s) }>
    }""")
    check(m, {"x": f32(np.random.default_rng(3), 6)}, target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_a_loop_that_grows_is_unrolled(target: str) -> None:
    m = model("""main (float[n] x) => (float[k] y) {
        trip = Constant<value_int=3>() go = Constant<value=bool {1}>()
        y = Loop(trip, go, x) <body = step (int64 i, bool c, float[m] a) => (bool d, float[j] b) {
          d = Identity(c) b = Concat<axis=0>(a, x) }>
    }""")
    rng = np.random.default_rng(4)
    check(m, {"x": f32(rng, 3)}, {"x": f32(rng, 1)}, target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_scan_axes_and_directions(target: str) -> None:
    m = model("""main (float[4] h, float[n, 4] x) => (float[4] last, float[4, n] ys) {
        last, ys = Scan(h, x) <num_scan_inputs=1, scan_input_directions=[1], scan_output_axes=[1],
          body = step (float[4] a, float[4] b) => (float[4] c, float[4] d) { s = Add(a, b) c = Tanh(s) d = Mul(c, b) }>
    }""")
    rng = np.random.default_rng(5)
    judge = onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
    check(m, *({"h": f32(rng, 4), "x": f32(rng, n, 4)} for n in (5, 1)), target=target, judge=judge)


def test_sequences_are_lists() -> None:
    m = model("""main (float[n, 4] x, float[n, 4] y) => (float[n, 8] z, int64 count) {
        s = SequenceConstruct(x, y) two = Constant<value_int=1>() t = SequenceInsert(s, x, two)
        u = SequenceErase(t, two) z = ConcatFromSequence<axis=1>(u) count = SequenceLength(t)
    }""")
    rng = np.random.default_rng(6)
    check(m, {"x": f32(rng, 3, 4), "y": f32(rng, 3, 4)}, target="reference")


@pytest.mark.parametrize("target", TARGETS)
def test_shape_arithmetic_needs_no_example(target: str) -> None:
    """The sizes of the result follow from the input's by the shape subgraph: half the rows, twice the columns."""
    m = model("""main (float[n, 6] x) => (float[a, b] y) {
        s = Shape(x) i0 = Constant<value_int=0>() i1 = Constant<value_int=1>() r = Gather(s, i0) c = Gather(s, i1)
        rf = Cast<to=1>(r) half = Constant<value_float=0.5>() hf = Mul(rf, half) fl = Floor(hf) hi = Cast<to=7>(fl)
        two = Constant<value_int=2>() c2 = Mul(c, two) z = Constant<value_ints=[0]>() hu = Unsqueeze(hi, z)
        cu = Unsqueeze(c2, z) shape = Concat<axis=0>(hu, cu) y = Reshape(x, shape)
    }""")
    graph = import_model(m).graph
    assert [n.op for n in graph.nodes] == ["reshape"] and str(graph.outputs[0].shape[1]) == "12"
    check(m, {"x": f32(np.random.default_rng(7), 8, 6)}, {"x": f32(np.random.default_rng(8), 2, 6)}, target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_shapes_that_are_inputs(target: str) -> None:
    """-1 and 0 are told apart while running."""
    m = model("main (float[n, 6] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }")
    x = f32(np.random.default_rng(9), 4, 6)
    check(m, *({"x": x, "s": np.array(s)} for s in ([8, 3], [-1, 2], [0, 6], [3, -1])), target=target)
    with pytest.raises(effc.EffcError):
        effc.compile(m, target=target)(x, np.array([5, 5]))


def test_an_example_decides_about_axes() -> None:
    m = model("main (float[n, 6] x, int64[1] axes) => (float[k] y) { y = ReduceSum<keepdims=0>(x, axes) }")
    x = f32(np.random.default_rng(10), 4, 6)
    with pytest.raises(effc.EffcError, match="axes that is computed while running"):
        effc.compile(m)
    made = check(m, {"x": x, "axes": np.array([1])}, target="cpu", args=(x, np.array([1])))
    with pytest.raises(effc.EffcError, match=r"axes must be \[1\]"):
        made(x, np.array([0]))


def test_local_functions_and_their_attributes() -> None:
    m = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
        main (float[n] x) => (float[n] y) { y = mine.scaled<by=3.0>(x) }
        <domain: "mine", opset_import: ["" : 21]>
        scaled <by: float> (a) => (b) { k = Constant<value_float: float = @by>() t = Mul(a, k) b = Relu(t) }""")
    check(m, {"x": f32(np.random.default_rng(11), 9)}, target="reference")


def test_everything_that_is_missing_is_named_at_once() -> None:
    m = model("""main (float[n] x) => (float[n] y) {
        a = other.Foo(x) b = other.Bar(a) y = other.Foo(b) }""")
    m.opset_import.append(onnx.helper.make_opsetid("other", 1))
    with pytest.raises(effc.EffcError) as e:
        effc.compile(m)
    assert "other::Foo of operator set 1, 2 uses" in e.value.message and "other::Bar" in e.value.message
