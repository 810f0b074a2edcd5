"""Matrix products, Einstein sums, attention and transforms of ONNX against ONNX Runtime, at dynamic sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx_compare import check, evaluator, model_of, ort

import effc
from effc.frontend.onnx.convert import import_model

RNG = np.random.default_rng(5)


def f32(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("n 5", "5 4"),
        ("2 n 5", "5 4"),
        ("2 3 n 5", "3 5 2"),
        ("5", "n 5 3"),
        ("n 5", "5"),
        ("5", "5"),
        ("n 3 1 5", "3 5 4"),
    ],
)
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_matmul(a: str, b: str, target: str) -> None:
    shapes = [[x if x == "n" else int(x) for x in s.split()] for s in (a, b)]
    sets = [[f32(*(n if d == "n" else d for d in s)) for s in shapes] for n in (3, 1, 0)]
    if target == "cpu" and a not in ("2 3 n 5", "5"):
        pytest.skip("on the interpreter")
    check(model_of("MatMul", sets[0], shapes, opset=13), sets, lambda m, x: [np.matmul(*x)], target)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64, np.float64])
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_matmul_dtypes(dtype: Any, target: str) -> None:
    sets = [[(RNG.integers(0, 1 << 20, s)).astype(dtype) for s in ((n, 7), (7, 3))] for n in (4, 2)]
    check(model_of("MatMul", sets[0], [["n", 7], [7, 3]], opset=9), sets, target=target)


def test_matmul_inner_sizes_differ() -> None:
    model = model_of("MatMul", [f32(2, 3), f32(4, 2)], [["n", "k"], ["m", 2]], opset=13)
    with pytest.raises(effc.EffcError, match="inner sizes"):
        effc.compile(model, target="reference")(f32(2, 3), f32(4, 2))


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
@pytest.mark.parametrize("c", [(4,), (1, 4), (1, 1), (), ("n", 1), ("n", 4)])
def test_gemm_c(opset: int, c: tuple[Any, ...]) -> None:
    sets = [[f32(n, 5), f32(4, 5), f32(*(n if d == "n" else d for d in c))] for n in (3, 1)]
    check(model_of("Gemm", sets[0], [["n", 5], [4, 5], list(c)], opset=opset, transB=1, alpha=0.5, beta=2.0), sets)


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("ta", [0, 1])
def test_gemm_transposed(ta: int, target: str) -> None:
    sets = [[f32(6, n) if ta else f32(n, 6), f32(6, 4)] for n in (5, 2)]
    check(model_of("Gemm", sets[0], [[6, "n"] if ta else ["n", 6], [6, 4]], opset=13, transA=ta), sets, target=target)


def test_gemm_integers() -> None:
    sets = [[RNG.integers(-9, 9, s).astype(np.int32) for s in ((n, 5), (5, 3), (3,))] for n in (4, 2)]
    model = model_of("Gemm", sets[0], [["n", 5], [5, 3], [3]], opset=13, alpha=3.0, beta=2.0)
    check(model, sets, lambda m, x: [3 * (x[0] @ x[1]) + 2 * x[2]])


def test_gemm_is_one_product_with_an_epilogue() -> None:
    """The bias goes into the kernel of the product."""
    w, b = f32(8, 16), f32(8)
    model = model_of("Gemm", [f32(3, 16), w, b], [["n", 16], None, None], opset=13, constants=(1, 2), transB=1)
    compiled = effc.compile(model, target="cpu")
    kernels = compiled.report["entries"]["main"]["kernels"]
    assert sum(kernels.values()) == 1 and "matmul" in next(iter(kernels))
    x = f32(5, 16)
    np.testing.assert_allclose(compiled(x)[0], x @ w.T + b, rtol=1e-4, atol=1e-5)


EQUATIONS = [
    ("ij,jk->ik", ["n 3", "3 4"]),
    ("bij,bjk->bik", ["n 3 4", "n 4 2"]),
    ("ij->ji", ["n 3"]),
    ("ij->", ["n 3"]),
    ("ii->i", ["3 3"]),
    ("ii", ["3 3"]),
    ("ij,ij->ij", ["n 3", "n 3"]),
    ("i,j->ij", ["n", "4"]),
    ("ij,ij", ["n 3", "n 3"]),
    ("...ij,...jk->...ik", ["2 n 3 4", "n 4 5"]),
    ("...ii->...i", ["n 3 3"]),
    ("bhid,bhjd->bhij", ["n 2 3 4", "n 2 5 4"]),
    ("ij,jk,kl->il", ["n 3", "3 4", "4 2"]),
    ("ab,bc,cd,de->ae", ["n 2", "2 3", "3 2", "2 4"]),
    ("bij,kl->bk", ["n 3 4", "2 5"]),
    ("iij,jk->ik", ["3 3 4", "4 n"]),
    ("Ab,bA", ["n 3", "3 n"]),
    ("ij, jk -> ki", ["n 3", "3 4"]),
    ("i...->...", ["n 3 4"]),
    ("ij...,jk...->ik...", ["2 n 3", "n 4 3"]),
    ("abc,cd->abd", ["n 3 4", "4 1"]),
    ("i,i,i->i", ["n", "n", "n"]),
]


@pytest.mark.parametrize(("equation", "operands"), EQUATIONS)
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_einsum(equation: str, operands: list[str], target: str) -> None:
    if target == "cpu" and EQUATIONS.index((equation, operands)) % 5:
        pytest.skip("on the interpreter")
    shapes = [[x if x == "n" else int(x) for x in s.split()] for s in operands]
    sets = [[f32(*(n if d == "n" else d for d in s)) for s in shapes] for n in (5, 1, 2)]
    model = model_of("Einsum", sets[0], shapes, opset=12, equation=equation)
    check(model, sets, lambda m, x: [np.asarray(np.einsum(equation, *x), np.float32)], target=target)


def test_einsum_broadcasts_and_rounds_once() -> None:
    check(
        model_of("Einsum", [f32(3, 4), f32(1, 4)], [["n", 4], [1, 4]], opset=12, equation="ij,ij->ij"),
        [[f32(n, 4), f32(1, 4)] for n in (3, 2)], lambda m, x: [x[0] * x[1]],
    )  # fmt: skip
    half = [f32(3, 40).astype(np.float16), f32(40, 50).astype(np.float16), f32(50, 2).astype(np.float16)]
    exact = np.einsum("ij,jk,kl->il", *(x.astype(np.float64) for x in half)).astype(np.float16)
    model = model_of("Einsum", half, [x.shape for x in half], opset=12, equation="ij,jk,kl->il")
    check(model, [half], lambda m, x: [exact], tolerance=1e-3)


@pytest.mark.parametrize("equation", ["ij,jk->iz", "ij->ijk", "ij,jk", "i->i"])
def test_einsum_refused(equation: str) -> None:
    with pytest.raises(effc.EffcError):
        effc.compile(model_of("Einsum", [f32(2, 3)], [[2, 3]], opset=12, equation=equation), target="reference")


def test_det() -> None:
    sets = [[f32(n, 4, 4)] for n in (3, 1, 0)]
    check(model_of("Det", sets[0], [["n", 4, 4]], opset=11), sets, lambda m, x: [np.linalg.det(x[0])])


# Attention ------------------------------------------------------------------------------------------------------------

ATTENTION = [
    {},
    {"is_causal": 1},
    {"is_causal": 1, "past": 3},
    {"mask": "bool", "softcap": 5.0},
    {"mask": "float", "is_causal": 1, "scale": 0.3},
    {"mask": "float", "past": 2},
    {"mask": "short"},
    {"mask": "bool", "outputs": 4, "qk_matmul_output_mode": 2},
    {"outputs": 4, "qk_matmul_output_mode": 1, "softcap": 2.0, "past": 2},
    {"outputs": 4, "qk_matmul_output_mode": 3, "is_causal": 1, "past": 1},
    {"outputs": 4},
    {"softmax_precision": 11},
    {"valid": True, "opset": 24},
    {"valid": True, "opset": 24, "is_causal": 1, "mask": "float"},
    {"opset": 25, "left_window_size": 1, "past": 2},
    {"opset": 25, "left_window_size": 2, "right_window_size": 1, "mask": "bool"},
    {"opset": 25, "right_window_size": 0, "past": 3},
    {"opset": 25, "valid": True, "left_window_size": 1, "right_window_size": 1},
]


def attention_case(options: dict[str, Any], packed: bool) -> tuple[onnx.ModelProto, list[Any], int]:
    o = dict(options)
    outputs = o.pop("outputs", 1)
    past, kind, valid, opset = o.pop("past", 0), o.pop("mask", ""), o.pop("valid", False), o.pop("opset", 23)
    outputs = max(outputs, 3 if past else 1)
    h, hk, e, ev = 4, 2, 6, 5
    if packed:
        o |= {"q_num_heads": h, "kv_num_heads": hk}

    def inputs(b: int, lq: int) -> list[Any]:
        lk = lq + 2

        def one(heads: int, length: int, size: int) -> Any:
            x = f32(b, heads, length, size)
            return np.ascontiguousarray(x.transpose(0, 2, 1, 3).reshape(b, length, -1)) if packed else x

        total = lk + past
        mask = {
            "bool": RNG.random((b, 1, lq, total)) < 0.6, "float": f32(lq, total),
            "short": RNG.random((lq, total - 1)) < 0.7,
        }.get(kind)  # fmt: skip
        return [
            one(h, lq, e), one(hk, lk, e), one(hk, lk, ev), mask, f32(b, hk, past, e) if past else None,
            f32(b, hk, past, ev) if past else None, RNG.integers(0, lk + 1, b) if valid else None,
        ]  # fmt: skip

    sets = [inputs(2, 3), inputs(1, 5)]
    names = {"bool": ["b", 1, "l", "t"], "float": ["l", "t"], "short": ["l", "s"]}
    if packed:
        shapes: list[Any] = [["b", "l", h * e], ["b", "k", hk * e], ["b", "k", hk * ev]]
    else:
        shapes = [["b", h, "l", e], ["b", hk, "k", e], ["b", hk, "k", ev]]
    shapes += [names.get(kind), ["b", hk, "p", e], ["b", hk, "p", ev], ["b"]]
    count = max(k for k, x in enumerate(sets[0]) if x is not None) + 1
    model = model_of("Attention", sets[0][:count], shapes, outputs, opset, **o)
    return model, [[x for x in s if x is not None] for s in sets], outputs


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", ATTENTION, ids=str)
def test_attention(options: dict[str, Any], packed: bool) -> None:
    model, sets, _ = attention_case(options, packed)
    check(model, sets, evaluator)


@pytest.mark.parametrize("k", [2, 4, 13, 14])
def test_attention_cpu(k: int) -> None:
    model, sets, _ = attention_case(ATTENTION[k], k % 2 == 0)
    check(model, sets, evaluator, "cpu", 2e-5)


def test_attention_is_one_op() -> None:
    for options in ({"is_causal": 1, "past": 3}, {"mask": "bool"}, {"opset": 25, "right_window_size": 1}):
        graph = import_model(attention_case(options, True)[0]).graph
        ops = [n.op for n in graph.nodes]
        assert ops.count("attention") == 1 and "matmul" not in ops


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_attention_dtypes(dtype: str) -> None:
    sets = [[f32(b, 2, n, 8).astype(dtype) for n in (4, 6, 6)] for b in (2, 1)]
    model = model_of("Attention", sets[0], [["b", 2, n, 8] for n in (4, 6, 6)], opset=23, is_causal=1)
    check(model, sets, evaluator, tolerance=4e-3 if dtype == "float16" else 1e-10)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("packed", "dim", "positions"), [(False, 0, True), (True, 4, True), (False, 4, False), (True, 0, False)]
)
def test_rotary(interleaved: int, packed: bool, dim: int, positions: bool) -> None:
    n = (dim or 8) // 2
    sets, shapes = [], [["b", "l", 24] if packed else ["b", 3, "l", 8]]
    shapes += [["m", n], ["m", n], ["b", "l"]] if positions else [["b", "l", n], ["b", "l", n]]
    for b, length in ((2, 3), (1, 1)):
        x = [f32(b, length, 24) if packed else f32(b, 3, length, 8)]
        x += [f32(9, n), f32(9, n)] if positions else [f32(b, length, n), f32(b, length, n)]
        sets.append(x + ([RNG.integers(0, 9, (b, length))] if positions else []))
    attrs = {"interleaved": interleaved, "rotary_embedding_dim": dim} | ({"num_heads": 3} if packed else {})
    check(model_of("RotaryEmbedding", sets[0], shapes, opset=23, **attrs), sets, evaluator)


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_linear_attention(rule: str, target: str) -> None:
    gated, delta = "gated" in rule, "delta" in rule

    def inputs(b: int, t: int) -> list[Any]:
        return [
            f32(b, t, 4 * 6), f32(b, t, 2 * 6) / 3, f32(b, t, 2 * 5), f32(b, 2, 6, 5),
            -np.abs(f32(b, t, 12)) if gated else None, RNG.random((b, t, 2), np.float32) if delta else None,
        ]  # fmt: skip

    sets = [inputs(2, 5), inputs(1, 1)]
    shapes = [["b", "t", 24], ["b", "t", 12], ["b", "t", 10], ["b", 2, 6, 5], ["b", "t", 12], ["b", "t", 2]]
    while sets[0][-1] is None:
        sets = [s[:-1] for s in sets]
    model = model_of(
        "LinearAttention", sets[0], shapes, 2, 27, q_num_heads=4, kv_num_heads=2, update_rule=rule
    )  # fmt: skip
    check(model, [[x for x in s if x is not None] for s in sets], evaluator, target, 2e-5)


@pytest.mark.parametrize("past", [False, True])
def test_causal_conv(past: bool) -> None:
    sets = [[f32(b, 3, n), f32(3, 1, 4), f32(3)] + ([f32(b, 3, 3)] if past else []) for b, n in ((2, 7), (1, 1))]
    model = model_of(
        "CausalConvWithState", sets[0], [["b", 3, "n"], [3, 1, 4], [3], ["b", 3, 3]], 2, 27, activation="silu"
    )  # fmt: skip
    check(model, sets, evaluator)


# Transforms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize(
    "attrs", [{}, {"inverse": 1}, {"onesided": 1}, {"length": 5}, {"length": 13, "inverse": 1}], ids=str
)
def test_dft(parts: int, opset: int, attrs: dict[str, int]) -> None:
    if parts == 2 and "onesided" in attrs:
        attrs = {"onesided": 1, "inverse": 1, "length": 10}
    a = dict(attrs)
    length = a.pop("length", None)
    n = 6 if parts == 2 and "onesided" in a else 9
    sets = [[f32(b, n, 3, parts)] for b in (3, 1)]
    extra = [None if length is None else np.array(length, np.int64)]
    if opset == 20:
        extra.append(np.array(-3, np.int64))
    else:
        a["axis"] = 1
    while extra and extra[-1] is None:
        extra.pop()
    model = model_of("DFT", [sets[0][0], *extra], [["b", n, 3, parts]], opset=opset, constants=(1, 2), **a)
    check(model, sets, lambda m, x: evaluator(m, x))


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_dft_of_a_dynamic_length(target: str) -> None:
    sets = [[f32(2, n, 1)] for n in (8, 7, 1)]
    for attrs in ({"onesided": 1}, {}):
        check(model_of("DFT", sets[0], [[2, "n", 1]], opset=17, axis=1, **attrs), sets, evaluator, target)
    sets = [[f32(2, n, 2)] for n in (8, 7, 1)]
    check(model_of("DFT", sets[0], [[2, "n", 2]], opset=20, inverse=1), sets, evaluator, target)


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(window: bool, onesided: int) -> None:
    sets = [[f32(b, n, 1)] for b, n in ((2, 40), (1, 17))]
    w = np.hanning(8).astype(np.float32) if window else None
    extra = [np.array(3, np.int64), w, np.array(8, np.int64)]
    model = model_of("STFT", [sets[0][0], *extra], [["b", "n", 1]], opset=17, constants=(1, 2, 3), onesided=onesided)
    check(model, sets, ort)


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(op: str, periodic: int) -> None:
    sets = [[np.array(n, np.int64)] for n in (7, 3, 10)]
    check(model_of(op, sets[0], [[]], opset=17, periodic=periodic), sets, ort)
    double = model_of(op, sets[0], [[]], opset=17, periodic=periodic, output_datatype=11)
    assert effc.compile(double, target="reference")(np.array(4, np.int64))[0].dtype == np.float64


def test_mel_weights() -> None:
    for bins, length, rate, low, high in ((8, 16, 8192, 0.0, 4096.0), (20, 512, 16000, 20.0, 7600.0)):
        x = [np.array(v, np.int64) for v in (bins, length, rate)] + [np.array(v, np.float32) for v in (low, high)]
        check(model_of("MelWeightMatrix", x, [], opset=17, constants=range(5)), [[]], evaluator)


def test_swiglu() -> None:
    sets = [[f32(n, 5), f32(n, 5)] for n in (3, 1)]
    model = model_of("SwiGLU", sets[0], [["n", 5], ["n", 5]], opset=28, alpha=1.5)
    check(model, sets, lambda m, x: [x[0] / (1 + np.exp(-1.5 * x[0])) * x[1]])
