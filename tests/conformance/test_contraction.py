"""Products and recurrent layers with constant (packed) weights, and epilogues: what the op samples do not reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import effc.ir.ops  # noqa: F401  (fills the table)
from effc.conformance.compare import TOLERANCE
from effc.conformance.ops import Runner
from effc.ir import Builder, DType, Graph, TensorType
from effc.ir.interp import Interpreter

Array = np.ndarray[Any, Any]
TARGETS = ["cpu", pytest.param("cpu:x86-64-v3", marks=pytest.mark.isa("x86-64-v4"))]


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType = DType.f32) -> Array:
    return rng.standard_normal(shape).astype(dtype.np)


def check(graph: Graph, arrays: list[Array], target: str, passes: bool = False, scale: float = 1) -> Runner:
    """Runs the graph on the target and compares with the interpreter."""
    runner = Runner(graph, target, passes)
    for got, want in zip(runner.run(arrays), Interpreter().run(graph, arrays), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        close(got, want, scale)
    return runner


def close(got: Array, want: Array, scale: float = 1) -> None:
    a, b = got.astype(np.complex128), want.astype(np.complex128)
    limit = TOLERANCE.get(want.dtype.name, 0) * scale
    assert np.abs(a - b).max(initial=0) <= limit * np.abs(b).max(initial=0)


def kernels(runner: Runner) -> list[str]:
    program = runner.model.manifest["entries"]["main"]["program"]
    return [i["kernel"] for i in program["code"] if i["op"] == "call"]


@pytest.mark.parametrize("target", TARGETS)
def test_constant_right_sides(target: str) -> None:
    """Every dtype, plain, transposed and batched constants, and sizes that come in at run time."""
    rng = np.random.default_rng(0)
    b = Builder()
    rows = b.symbol("s0", 0, 400)
    outs, arrays = [], []
    for dtype in (DType.f32, DType.f64, DType.f16, DType.bf16, DType.i32, DType.c64):
        for k, n in ((33, 70), (64, 64), (1, 5), (0, 3)):
            w = random(rng, (k, n), dtype) if not dtype.is_int else rng.integers(-99, 99, (k, n)).astype(dtype.np)
            wt = np.ascontiguousarray(w.T)
            x = b.input(f"x{len(arrays)}", TensorType(dtype, (2, rows, k)))
            arrays.append((rng.standard_normal((2, 37, k)) * 9).astype(dtype.np))
            outs.append(b.op("matmul", x, b.constant(w)))
            outs.append(b.op("matmul", x, b.op("permute", b.constant(wt), dims=(1, 0))))
            outs.append(b.op("matmul", x, b.constant(np.stack([w, w[::-1]]))))
    graph = b.graph(outs)
    runner = check(graph, arrays, target)
    for size in (0, 1, 300):  # from one artifact
        small = [np.resize(a, (2, size, a.shape[2])) for a in arrays]
        for got, want in zip(runner.run(small), Interpreter().run(graph, small), strict=True):
            assert got.shape == want.shape
            close(got, want)
    packed = [k for k in kernels(runner) if "packed" in k]
    assert len(packed) == 4 * 4 * 3  # four dtypes have packed kernels


def test_weights_read_by_others_stay_unpacked() -> None:
    rng = np.random.default_rng(0)
    table = random(rng, (90, 32))
    b = Builder()
    ids = b.input("ids", TensorType(DType.i64, (5,)))
    w = b.constant(table)
    x = b.op("take", w, ids, dim=0)
    graph = b.graph([b.op("matmul", x, b.op("permute", w, dims=(1, 0)))])
    runner = check(graph, [np.array([3, 89, 0, 7, 7])], "cpu")
    assert not any("packed" in k for k in kernels(runner))
    program = runner.model.manifest["entries"]["main"]["program"]
    held = [v for v in program["values"] if v["k"] == "const" and v["d"] == "f32"]
    assert len({(v["seg"], v["offset"]) for v in held}) == 1


@pytest.mark.parametrize("dtype", [DType.f32, DType.f64, DType.f16, DType.bf16])
@pytest.mark.parametrize("target", TARGETS)
def test_epilogues(target: str, dtype: DType) -> None:
    """Bias, residual, activation, a broadcast row; constant and run-time right sides; batches that cannot fold."""
    rng = np.random.default_rng(1)
    b = Builder()
    s = b.symbol("s0", 1, 300)
    x = b.input("x", TensorType(dtype, (2, s, 48)))
    y = b.input("y", TensorType(dtype, (2, 48, s)))
    row = b.input("row", TensorType(dtype, (1, s, 1)))
    residual = b.input("residual", TensorType(dtype, (2, s, 70)))
    w, bias = b.constant(random(rng, (48, 70), dtype)), b.constant(random(rng, (70,), dtype))
    one = b.op("add", b.op("tanh", b.op("add", b.op("matmul", x, w), bias)), residual)
    other = b.constant(random(rng, (48, 70), dtype))
    two = b.op("mul", b.op("add", b.op("matmul", x, other), residual), row)
    three = b.op("maximum", b.op("matmul", x, y), row)
    graph = b.graph([one, two, three])
    size = 19
    shapes = ((2, size, 48), (2, 48, size), (1, size, 1), (2, size, 70))
    runner = check(graph, [random(rng, sh, dtype) for sh in shapes], target, passes=True, scale=2)
    assert len(kernels(runner)) == 3, kernels(runner)


def layer_graph(
    kind: str,
    rng: np.random.Generator,
    features: int,
    units: int,
    bias: bool,
    dtype: DType,
    constant: bool,
    **attrs: Any,
) -> tuple[Graph, Any]:
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[kind]
    b = Builder()
    t, n = b.symbol("t", 0, 100), b.symbol("n", 0, 40)
    shapes: list[Any] = [(gates * units, features), (gates * units, units)] + [(gates * units,) if bias else None] * 2
    weights = [None if s is None else (rng.standard_normal(s) * units**-0.5).astype(dtype.np) for s in shapes]
    x = b.input("x", TensorType(dtype, (t, n, features)))
    states = [b.input(f"s{i}", TensorType(dtype, (n, units))) for i in range(2 if kind == "lstm" else 1)]
    values = [
        None if w is None else b.constant(w) if constant else b.input(f"w{i}", TensorType(dtype, w.shape))
        for i, w in enumerate(weights)
    ]
    graph = b.graph(b.op(f"{kind}_layer", x, *states, *values, **attrs))

    def arrays(steps: int, batch: int) -> list[Array]:
        given = [
            (rng.standard_normal(s)).astype(dtype.np)
            for s in [(steps, batch, features), *[(batch, units)] * len(states)]
        ]
        return given + ([] if constant else [w for w in weights if w is not None])

    return graph, arrays


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_recurrent_layers(target: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    for units, bias, dtype, constant, attrs in (
        (48, True, DType.f32, True, {}),
        (33, True, DType.f32, True, {"reverse": True}),
        (256, False, DType.f32, True, {}),
        (20, True, DType.f64, True, {"activation": "relu"} if kind == "rnn" else {}),
        (20, True, DType.f32, False, {}),
    ):
        graph, arrays = layer_graph(kind, rng, 24, units, bias, dtype, constant, **attrs)
        runner = check(graph, arrays(9, 3), target)
        assert any(k.startswith(f"effc_{kind}") for k in kernels(runner))
        for steps, batch in ((1, 1), (40, 1), (5, 14), (0, 2), (3, 0)):  # one batch: split by units; from one artifact
            given = arrays(steps, batch)
            for got, want in zip(runner.run(given), Interpreter().run(graph, given), strict=True):
                assert got.shape == want.shape
                assert np.abs(got - want).max(initial=0) <= TOLERANCE[np.dtype(dtype.np).name] * max(
                    1, np.abs(want).max(initial=0)
                )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_against_torch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = getattr(torch.nn, kind)(40, 64)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    b = Builder()
    x = b.input("x", TensorType(DType.f32, (30, 4, 40)))
    zero = b.constant(np.zeros((4, 64), np.float32))
    weights = [b.constant(getattr(module, n).detach().numpy()) for n in names]
    graph = b.graph(b.op(f"{kind.lower()}_layer", x, *[zero] * (2 if kind == "LSTM" else 1), *weights))
    data = torch.randn(30, 4, 40)
    with torch.inference_mode():
        y, state = module(data)
    want = [y, *(s[0] for s in state)] if kind == "LSTM" else [y, state[0]]
    for got, w in zip(Runner(graph, "cpu").run([data.numpy()]), want, strict=True):
        assert np.abs(got - w.numpy()).max() <= 1e-5 * w.abs().max().item()
