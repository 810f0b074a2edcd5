"""Quantized ONNX graphs, compiled: the kernels of bytes run, with all up to the next rounding in their epilogues;
integers are exact, results of QDQ within one step of the output's scale against the written-out arithmetic in f64."""

from __future__ import annotations

import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

import effc
from effc.backends.cpu import microkernels, tables
from effc.backends.cpu.bytes import reciprocal
from effc.backends.cpu.target import parse
from effc.ir.dtypes import DType

Array = np.ndarray[Any, Any]


def model_of(
    nodes: list[Any], inputs: dict[str, tuple[int, list[Any]]], output: tuple[str, int], arrays: dict[str, Any]
) -> Any:
    infos = [h.make_tensor_value_info(k, t, s) for k, (t, s) in inputs.items()]
    out = h.make_tensor_value_info(output[0], output[1], None)
    graph = h.make_graph(nodes, "g", infos, [out], [nh.from_array(np.asarray(a), k) for k, a in arrays.items()])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    return model


def stats(m: Any) -> dict[str, int]:
    return m.report["entries"]["main"]["passes"]["stats"]  # type: ignore[no-any-return]

    return [c["kernel"] for c in m.report["entries"]["main"].get("code", [])]


def quantized(x: Array, scale: Any, zero: int, dtype: Any) -> Array:
    info = np.iinfo(dtype)
    return np.clip(np.round(x / scale) + zero, info.min, info.max).astype(np.int64)


@pytest.mark.parametrize("weights", [np.int8, np.uint8])
@pytest.mark.parametrize("data", [np.int8, np.uint8])
@pytest.mark.parametrize("sizes", [(1, 5, 3), (7, 96, 130), (130, 1030, 47)])
def test_qdq_product(sizes: tuple[int, int, int], data: Any, weights: Any) -> None:
    """QuantizeLinear, MatMul of dequantized operands, bias in i32, Relu, QuantizeLinear: one kernel for all but the
    first."""
    rows, k, n = sizes
    rng = np.random.default_rng(sum(sizes))
    info = np.iinfo(weights)
    w = rng.integers(info.min, info.max, (k, n), weights, endpoint=True)
    wz = rng.integers(info.min, info.max, n, weights, endpoint=True) if weights == np.uint8 else np.zeros(n, weights)
    ws = rng.uniform(0.001, 0.02, n).astype(np.float32)
    xs, xz, ys, yz = np.float32(0.02), data(11), np.float32(0.02 * np.sqrt(k)), data(-9 if data == np.int8 else 5)
    bias = rng.integers(-2000, 2000, n).astype(np.int32)
    arrays = {
        "w": w, "ws": ws, "wz": wz, "xs": xs, "xz": xz, "ys": ys, "yz": yz, "b": bias, "bs": ws * xs,
        "bz": np.zeros(n, np.int32),
    }  # fmt: skip
    nodes = [
        h.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        h.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        h.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        h.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0),
        h.make_node("MatMul", ["xd", "wd"], ["m"]),
        h.make_node("Add", ["m", "bd"], ["a"]),
        h.make_node("Relu", ["a"], ["r"]),
        h.make_node("QuantizeLinear", ["r", "ys", "yz"], ["y"]),
    ]
    tensor = {np.int8: T.INT8, np.uint8: T.UINT8}[data]
    m = effc.compile(model_of(nodes, {"x": (T.FLOAT, ["n", k])}, ("y", tensor), arrays))
    assert stats(m)["form_quantized.matmul"] == 1 and stats(m)["fuse_epilogues.qmatmul"] == 1
    x = (rng.standard_normal((rows, k)) * 3).astype(np.float32)
    got = m(x)[0]
    xq = quantized(x, xs, int(xz), data)
    acc = (xq - int(xz)) @ (w.astype(np.int64) - wz.astype(np.int64))
    real = np.maximum(acc * (ws.astype(np.float64) * xs) + bias * (ws * xs), 0)
    want = quantized(real, ys, int(yz), data)
    assert got.dtype == data and np.ptp(want) > 50
    off = np.abs(got.astype(np.int64) - want)
    assert off.max() <= 1 and (off > 0).mean() < 0.01


@pytest.mark.parametrize("dynamic", [False, True])
def test_integer_product(dynamic: bool) -> None:
    """MatMulInteger is exact at the extremes, with a zero point that is known or comes with each call."""
    rng = np.random.default_rng(3)
    k, n = 700, 50
    w = rng.choice(np.array([-128, 127], np.int8), (k, n))
    wz = rng.integers(-128, 128, n).astype(np.int8)
    arrays = {"w": w, "wz": wz} | ({} if dynamic else {"z": np.uint8(200)})
    inputs = {"x": (T.UINT8, ["b", "n", k])} | ({"z": (T.UINT8, [])} if dynamic else {})
    m = effc.compile(
        model_of([h.make_node("MatMulInteger", ["x", "w", "z", "wz"], ["y"])], inputs, ("y", T.INT32), arrays)
    )
    assert stats(m)["form_quantized.matmul"] == 1
    for rows, z in ((1, 200), (13, 255), (40, 0)):
        z = z if dynamic else 200
        x = rng.choice(np.array([0, 255], np.uint8), (2, rows, k))
        got = m(x, np.uint8(z))[0] if dynamic else m(x)[0]
        want = np.matmul(x.astype(np.int64) - z, w.astype(np.int64) - wz)
        np.testing.assert_array_equal(got, want)
    strided = rng.integers(0, 256, (k, 2, 9), np.uint8, endpoint=False).transpose(1, 2, 0)
    got = m(strided, np.uint8(7))[0] if dynamic else m(strided)[0]
    want = np.matmul(strided.astype(np.int64) - (7 if dynamic else 200), w.astype(np.int64) - wz)
    np.testing.assert_array_equal(got, want)


def test_dynamic_quantization() -> None:
    """DynamicQuantizeLinear, MatMulInteger, scales, bias."""
    rng = np.random.default_rng(4)
    k, n = 130, 70
    w = rng.integers(-127, 128, (k, n)).astype(np.int8)
    ws, bias = np.float32(0.01), rng.standard_normal(n).astype(np.float32)
    nodes = [
        h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        h.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        h.make_node("Cast", ["i"], ["f"], to=T.FLOAT),
        h.make_node("Mul", ["s", "ws"], ["t"]),
        h.make_node("Mul", ["f", "t"], ["g"]),
        h.make_node("Add", ["g", "b"], ["y"]),
    ]
    m = effc.compile(model_of(nodes, {"x": (T.FLOAT, ["n", k])}, ("y", T.FLOAT), {"w": w, "ws": ws, "b": bias}))
    assert stats(m)["form_quantized.matmul"] == 1 and stats(m)["fuse_epilogues.qmatmul"] == 1
    x = rng.standard_normal((33, k)).astype(np.float32)
    scale = np.float32((x.max() - x.min()) / np.float32(255))
    zero = int(np.round(-x.min() / scale))
    acc = (quantized(x, scale, zero, np.uint8) - zero) @ w.astype(np.int64)
    want = acc * np.float64(scale * ws) + bias
    np.testing.assert_allclose(m(x)[0], want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("groups", "o"), [(1, 24), (2, 24), (1, 64)])
def test_qdq_convolution_with_residual(groups: int, o: int, tmp_path: Path) -> None:
    """The zero point pads; a residual that is dequantized joins in the epilogue, whose loop takes two pairs of vectors
    at a time: one pair of bytes fills half a vector."""
    rng = np.random.default_rng(5)
    c = 12
    w = rng.integers(-128, 128, (o, c // groups, 3, 3)).astype(np.int8)
    ws = rng.uniform(0.002, 0.01, o).astype(np.float32)
    arrays = {
        "w": w, "ws": ws, "wz": np.zeros(o, np.int8), "xs": np.float32(0.03), "xz": np.uint8(120),
        "ys": np.float32(0.1), "yz": np.uint8(100), "bias": rng.standard_normal(o).astype(np.float32),
    }  # fmt: skip
    nodes = [
        h.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"]),
        h.make_node("DequantizeLinear", ["r", "xs", "xz"], ["rd"]),
        h.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        h.make_node("Conv", ["xd", "wd", "bias"], ["c"], pads=[1, 1, 1, 1], strides=[1, 2], group=groups),
        h.make_node("Add", ["c", "rd"], ["a"]),
        h.make_node("Relu", ["a"], ["p"]),
        h.make_node("QuantizeLinear", ["p", "ys", "yz"], ["y"]),
    ]
    inputs = {"x": (T.UINT8, ["n", c, "h", 9]), "r": (T.UINT8, ["n", o, "h", 5])}
    m = effc.compile(model_of(nodes, inputs, ("y", T.UINT8), arrays))
    assert stats(m)["form_quantized.conv"] == 1 and stats(m)["fuse_epilogues.qconv"] == 1
    assert stats(m)["fuse_epilogues.from_bytes"] == 1
    text = sources(m, tmp_path)
    assert "n % (2 * PAIR) == 0" in text and "n % PAIR == 0" not in text
    import torch

    for n, height in ((1, 8), (3, 5)):
        x = rng.choice(np.array([0, 120, 255], np.uint8), (n, c, height, 9))
        r = rng.integers(0, 256, (n, o, height, 5)).astype(np.uint8)
        xt, wt = torch.tensor(x.astype(np.float64) - 120), torch.tensor(w.astype(np.float64))
        acc = torch.nn.functional.conv2d(xt, wt, stride=(1, 2), padding=1, groups=groups).numpy()
        scaled = acc * (ws.astype(np.float64) * np.float32(0.03)).reshape(-1, 1, 1) + arrays["bias"].reshape(-1, 1, 1)
        real = np.maximum(scaled + (r.astype(np.float64) - 120) * np.float32(0.03), 0)
        off = np.abs(m(x, r)[0].astype(np.int64) - quantized(real, np.float32(0.1), 100, np.uint8))
        assert off.max() <= 1 and (off > 0).mean() < 0.01


def convolution(w: Array, data: Any, zero: Any, fused: bool, size: Any) -> Any:
    """ConvInteger, or with ``fused`` a convolution of dequantized bytes, Relu and the next rounding."""
    o = len(w)
    kind = {np.int8: T.INT8, np.uint8: T.UINT8}[data]
    arrays = {
        "w": w, "z": data(zero), "ws": np.linspace(0.001, 0.002, o, dtype=np.float32), "wz": np.zeros(o, w.dtype),
        "s": np.float32(0.03), "ys": np.float32(3), "yz": data(10),
    }  # fmt: skip
    qdq = [
        h.make_node("DequantizeLinear", ["x", "s", "z"], ["xd"]),
        h.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        h.make_node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        h.make_node("Relu", ["c"], ["p"]),
        h.make_node("QuantizeLinear", ["p", "ys", "yz"], ["y"]),
    ]
    plain = [h.make_node("ConvInteger", ["x", "w", "z"], ["y"], pads=[0, 1, 0, 1])]
    inputs = {"x": (kind, ["n", w.shape[1], *size])}
    return model_of(qdq if fused else plain, inputs, ("y", kind if fused else T.INT32), arrays)


def algorithms(m: Any) -> list[tuple[str, str]]:
    """What was decided for each byte convolution, and why."""
    return [
        (d["chosen"], d["why"])
        for d in m.report["entries"]["main"]["decisions"]
        if d["kernel"].startswith("effc_qconv")
    ]


@pytest.mark.parametrize("data", [np.uint8, np.int8])
@pytest.mark.parametrize("fused", [False, True])
def test_convolution_by_winograd(data: Any, fused: bool) -> None:
    """3x3 windows with dynamic sizes: exact sums, with one thread and two, and those of the direct kernel."""
    import torch

    rng = np.random.default_rng(14)
    info = np.iinfo(data)
    zero = int(rng.integers(info.min, info.max + 1))
    w = rng.choice(np.array([-128, -3, 5, 127], np.int8), (40, 35, 3, 3))
    m = effc.compile(convolution(w, data, zero, fused, ["h", "w"]), target="cpu:x86-64-v3", num_threads=2)
    ((chosen, why),) = algorithms(m)
    assert chosen.startswith("F(4x4, 3x3) in integers") and "estimated us" in why and "sums have up to" in why
    for n, height, width in ((1, 32, 32), (2, 13, 7), (3, 3, 1), (0, 9, 9)):
        x = rng.integers(info.min, info.max, (n, 35, height, width), data, endpoint=True)
        x[:, :, ::2] = info.max if zero < (info.max + info.min) / 2 else info.min
        xt = torch.tensor(x.astype(np.float64) - zero)
        acc = torch.nn.functional.conv2d(xt, torch.tensor(w.astype(np.float64)), padding=(int(fused), 1)).numpy()
        got = m(x)[0]
        if not fused:
            np.testing.assert_array_equal(got, acc)
            continue
        scale = np.linspace(0.001, 0.002, 40, dtype=np.float32).astype(np.float64).reshape(-1, 1, 1) * np.float32(0.03)
        off = np.abs(got.astype(np.int64) - quantized(np.maximum(acc * scale, 0), np.float32(3), 10, data))
        assert off.max(initial=0) <= 1 and (off > 0).mean() < 0.01 if n else got.shape == (0, 40, height, width)


def test_why_a_convolution_is_direct() -> None:
    """Where sums may be too large, where few channels or a stride leave no gain, and where VNNI multiplies bytes."""
    rng = np.random.default_rng(15)
    small = rng.integers(-9, 10, (32, 32, 3, 3)).astype(np.int8)
    large = np.full((160, 160, 3, 3), 127, np.int8)
    for w, target, chosen, words in (
        (small, "cpu:x86-64-v3", "F(4x4, 3x3)", "estimated us"),
        (large, "cpu:x86-64-v3", "F(2x2, 3x3)", "F(4x4, 3x3) is not exact beyond 25"),
        (small[:, :8], "cpu:x86-64-v3", "direct", "fewer than 16 channels"),
        (small, "cpu:x86-64-v4", "F(4x4, 3x3)", "estimated us"),
        (small, "cpu:x86-64-v4+avx512vnni", "direct", "avx512-vnni multiplies bytes at once"),
    ):
        m = effc.compile(convolution(w, np.uint8, 7, False, [32, 32]), target=target)
        ((way, why),) = algorithms(m)
        assert way.startswith(chosen) and words in why, (target, way, why)


def test_byte_convolutions_stay_direct_on_request() -> None:
    """disable_passes reaches what lowering chooses: the artifact is smaller, the sums are the same."""
    rng = np.random.default_rng(16)
    w = rng.integers(-9, 10, (32, 32, 3, 3)).astype(np.int8)
    model, x = convolution(w, np.uint8, 7, False, [32, 32]), rng.integers(0, 256, (1, 32, 32, 32), np.uint8)
    fast, direct = (effc.compile(model, target="cpu:x86-64-v3", disable_passes=d) for d in ((), ("form_winograd",)))
    ((way, _),), ((way_direct, why),) = algorithms(fast), algorithms(direct)
    assert way.startswith("F(4x4, 3x3)") and (way_direct, why) == ("direct", "form_winograd is left out")
    np.testing.assert_array_equal(fast(x)[0], direct(x)[0])


def looked_up(m: Any) -> int:
    return sum(d["kernel"] == "table" for d in m.report["entries"]["main"]["decisions"])


def activation(op: str, data: Any, product: bool, bias: Any = None) -> Any:
    """bytes (of an integer product, or x itself), dequantized, [+ bias], an activation, a rounding (without a
    product two, with a Relu between)."""
    arrays = {
        "s": np.float32(0.05), "z": data(11), "ys": np.float32(0.03), "yz": data(-9 if data == np.int8 else 5),
        "w": np.eye(70, dtype=np.int8), "ws": np.linspace(0.9, 1.1, 70).astype(np.float32), "wz": np.zeros(70, np.int8),
    }  # fmt: skip
    kind = T.INT8 if data == np.int8 else T.UINT8
    nodes = [h.make_node("DequantizeLinear", ["x", "s", "z"], ["a"])]
    if product:
        nodes += [
            h.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
            h.make_node("MatMul", ["a", "wd"], ["p"]),
            h.make_node("QuantizeLinear", ["p", "s", "z"], ["q"]),
            h.make_node("DequantizeLinear", ["q", "s", "z"], ["a2"]),
        ]
    before = "a2" if product else "a"
    if bias is not None:
        arrays["b"] = bias
        nodes.append(h.make_node("Add", [before, "b"], ["c"]))
        before = "c"
    nodes += [
        h.make_node(op, [before], ["g"]),
        h.make_node("QuantizeLinear", ["g", "ys", "yz"], ["y" if product else "r"]),
    ]
    if not product:
        nodes += [
            h.make_node("DequantizeLinear", ["r", "ys", "yz"], ["d"]),
            h.make_node("Relu", ["d"], ["e"]),
            h.make_node("QuantizeLinear", ["e", "ys", "yz"], ["y"]),
        ]
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info("x", kind, ["n", 70])], [h.make_tensor_value_info("y", kind, None)],
        [nh.from_array(np.asarray(a), k) for k, a in arrays.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize(("op", "data"), [("Gelu", np.uint8), ("Gelu", np.int8), ("Tanh", np.uint8)])
def test_a_function_of_a_byte_is_a_table(op: str, data: Any, product: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 256 bytes, rows of all remainders and strided ones, equal to the arithmetic that the table stands for, as
    compiled and as the references have it."""
    model, info = activation(op, data, product), np.iinfo(data)
    every = np.arange(info.min, info.max + 1).astype(data)
    x = np.stack([np.roll(np.resize(every, 70 * 11), 13 * k).reshape(11, 70) for k in range(5)]).reshape(-1, 70)
    m = effc.compile(model)
    assert looked_up(m) == 1
    monkeypatch.setenv("EFFC_MODEL_CACHE", "0")
    monkeypatch.setattr(tables, "split", lambda *_: None)
    plain = effc.compile(model)
    reference = effc.compile(model, target="reference")
    assert looked_up(plain) == 0
    monkeypatch.undo()
    wide = np.repeat(x, 2, axis=1)
    for given in (x, x[:1], x[::2], wide[:, ::2], x[:0]):
        got = m(given)[0]
        assert got.dtype == data
        np.testing.assert_array_equal(got, plain(given)[0])
        if not product:
            np.testing.assert_array_equal(got, reference(given)[0])


def test_what_is_no_table() -> None:
    """Two roundings around what vectors do quickly; a bias by channel between them, which is a note. The target does
    not matter."""
    assert looked_up(effc.compile(activation("Gelu", np.uint8, True), target="cpu:x86-64-v4")) == 1
    for op, bias, notes in (("Relu", None, 0), ("Gelu", np.linspace(-1, 1, 70).astype(np.float32), 1)):
        m = effc.compile(activation(op, np.uint8, True, bias))
        assert looked_up(m) == 0
        assert sum("depends on a byte and the channel" in n["reason"] for n in m.report["notes"]) == notes


def test_split_weights_are_reported() -> None:
    """Panels of magnitudes are a note, and so are blocks that 16 bits do not hold, and several groups that they do."""
    twos = np.full((64, 32), 30, np.int8)  # groups fit together by twos, which is no note
    few = twos.copy()
    few[4:6, 3] = 127
    high = np.full((64, 32), 127, np.int8)
    split = microkernels.choose(parse("cpu"), "qmatmul", DType.u8).saturates
    for w, words in (
        (high, ["100% of the weights' panels are of magnitudes"]),
        (few, ["multiplied apart", "50% of the weights' panels are of magnitudes"]),
        (twos, []),
        (high // 8, ["added in 16 bits"]),
    ):
        model = model_of(
            [h.make_node("MatMulInteger", ["x", "w"], ["y"])], {"x": (T.UINT8, ["n", 64])}, ("y", T.INT32), {"w": w}
        )
        m = effc.compile(model)
        found = [n["reason"] for n in m.report["notes"] if "weights'" in n["reason"]]
        assert len(found) == len(words) * split, found
        assert all(word in f for word, f in zip(words, found)), found
        x = np.full((3, 64), 255, np.uint8)
        np.testing.assert_array_equal(m(x)[0], 255 * np.broadcast_to(w.sum(0, dtype=np.int32), (3, 32)))


ROWS = """graph main(%x: i8[2, n, 70], %z: i8[2, n, 1]) {
  symbol n in 0..
  %w = constant() {data=array(u8[70, 33], @w), dtype=u8} : u8[70, 33]
  %wz = constant() {data=array(u8[33], @wz), dtype=u8} : u8[33]
  %y = qmatmul(%x, %w, %z, %wz) : i32[2, n, 33]
  return %y
}"""


def test_zero_points_of_rows() -> None:
    """The graph as it is: a zero point for each row, one for each column, strides that only batches can follow."""
    from effc.builtin_backends import _cpu_graph
    from effc.ir.text import parse

    rng = np.random.default_rng(6)
    w, wz = rng.integers(0, 256, (70, 33)).astype(np.uint8), rng.integers(0, 256, 33).astype(np.uint8)
    run = _cpu_graph(parse(ROWS, {"w": w, "wz": wz}), "cpu")
    for n in (1, 9, 0):
        x = rng.integers(-128, 128, (n, 2, 70)).astype(np.int8).transpose(1, 0, 2)
        z = rng.integers(-128, 128, (2, n, 1)).astype(np.int8)
        (got,) = run([x, z])
        want = np.matmul(x.astype(np.int64) - z, w.astype(np.int64) - wz)
        np.testing.assert_array_equal(got, want)


def test_computed_weights() -> None:
    """With a zero point for each column the sums are taken in i32; test_two_computed_operands has the kernel's case."""
    from effc.builtin_backends import _cpu_graph
    from effc.ir.text import parse

    text = """graph main(%x: i8[3, 5], %w: u8[5, 4], %z: i8[], %wz: u8[4]) {
      %y = qmatmul(%x, %w, %z, %wz) : i32[3, 4]
      return %y
    }"""
    rng = np.random.default_rng(7)
    x, w = rng.integers(-128, 128, (3, 5)).astype(np.int8), rng.integers(0, 256, (5, 4)).astype(np.uint8)
    z, wz = np.array(-128, np.int8), rng.integers(0, 256, 4).astype(np.uint8)
    (got,) = _cpu_graph(parse(text), "cpu")([x, w, z, wz])
    np.testing.assert_array_equal(got, (x.astype(np.int64) + 128) @ (w.astype(np.int64) - wz))


def test_two_computed_operands() -> None:
    """Scores of attention: both sides quantized, one transposed; one kernel for all but the first roundings."""
    nodes = []
    for k in "qk":
        nodes += [
            h.make_node("QuantizeLinear", [k, "s", "z"], [k + "q"]),
            h.make_node("DequantizeLinear", [k + "q", "s", "z"], [k + "d"]),
        ]
    nodes += [
        h.make_node("Transpose", ["kd"], ["kt"], perm=[0, 1, 3, 2]),
        h.make_node("MatMul", ["qd", "kt"], ["m"]),
        h.make_node("QuantizeLinear", ["m", "ys", "yz"], ["y"]),
    ]
    arrays = {"s": np.float32(0.02), "z": np.uint8(117), "ys": np.float32(0.15), "yz": np.uint8(128)}
    shape = ["b", 2, "n", 40]
    m = effc.compile(model_of(nodes, {"q": (T.FLOAT, shape), "k": (T.FLOAT, shape)}, ("y", T.UINT8), arrays))
    assert stats(m)["form_quantized.computed"] == 1 and stats(m)["fuse_epilogues.qmatmul"] == 1
    rng = np.random.default_rng(8)
    for b, n in ((1, 5), (3, 50)):
        q, k = (rng.standard_normal((b, 2, n, 40)).astype(np.float32) for _ in range(2))
        xq, xk = (quantized(v, np.float32(0.02), 117, np.uint8) - 117 for v in (q, k))
        want = quantized(
            np.matmul(xq, xk.swapaxes(2, 3)) * np.float64(np.float32(0.02)) ** 2, np.float32(0.15), 128, np.uint8
        )
        off = np.abs(m(q, k)[0].astype(np.int64) - want)
        assert off.max() <= 1 and (off > 0).mean() < 0.01


def sources(m: Any, tmp_path: Path) -> str:
    """The generated code of an artifact."""
    m.save(tmp_path / "m.effc")
    with zipfile.ZipFile(tmp_path / "m.effc") as z:
        return "".join(z.read(n).decode() for n in z.namelist() if n.startswith("sources/") and n.endswith(".cpp"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_rounding_to_bytes_is_that_of_a_division(dtype: Any, tmp_path: Path) -> None:
    """Around every border between two bytes, beyond the ends, and for what is no number: bit for bit, and so are the
    floats made of the bytes."""
    rng = np.random.default_rng(11)
    info = np.iinfo(dtype)
    for scale in (np.float32(0.1), np.float32(2.0**-7), *rng.lognormal(-3, 3, 6).astype(np.float32)):
        zero = int(rng.integers(info.min, info.max + 1))
        arrays = {"s": scale, "z": dtype(zero)}
        nodes = [
            h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            h.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        kind = T.UINT8 if dtype is np.uint8 else T.INT8
        bytes_, floats = (
            effc.compile(model_of(nodes[:n], {"x": (T.FLOAT, ["n"])}, out, arrays))
            for n, out in ((1, ("q", kind)), (2, ("y", T.FLOAT)))
        )
        assert "op::Bytes" in sources(bytes_, tmp_path) and "steps(" in sources(floats, tmp_path)
        borders = (np.arange(-300, 300) + 0.5) * np.float64(scale)
        near = borders.astype(np.float32).view(np.int32)[:, None] + np.arange(-6, 7, dtype=np.int32)
        odd = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, -1e-45])
        some = rng.standard_normal(999).astype(np.float32) * scale * 99
        x = np.concatenate([near.view(np.float32).ravel(), odd, some])
        steps = np.rint(x / scale) + np.float32(zero)
        want = np.where(np.isnan(x), 0, np.clip(steps, info.min, info.max)).astype(dtype)
        np.testing.assert_array_equal(bytes_(x)[0], want)
        again = (want.astype(np.int32) - zero).astype(np.float32) * scale
        np.testing.assert_array_equal(floats(x)[0].view(np.int32), again.view(np.int32))


def test_reciprocals() -> None:
    """Against exact arithmetic: for floats around borders, the sum of products has the whole number of the quotient."""
    rng = np.random.default_rng(12)
    for scale in rng.lognormal(-3, 3, 5).astype(np.float32):
        found = reciprocal(float(scale), -100, 155)
        assert found is not None
        r, rest = found
        for k in rng.integers(-100, 155, 20):
            x = np.float32((k + 0.5) * np.float64(scale))
            for step in range(-3, 4):
                y = (x.view(np.int32) + np.int32(step)).view(np.float32)
                exact = Fraction(float(y)) * Fraction(float(r)) + Fraction(float(y * rest))
                assert round(Fraction(float(nearest(exact)))) == np.rint(y / scale)
    assert reciprocal(2.0**-100, 0, 255) is None and reciprocal(-1.0, 0, 255) is None and reciprocal(1.0, 3, 3) is None


def nearest(x: Fraction) -> np.float32:
    """The float next to ``x``; of two, the even one."""
    guess = np.float32(float(x))
    around = [np.nextafter(guess, np.float32(s) * np.float32(np.inf), dtype=np.float32) for s in (-1, 1)]
    return min([guess, *around], key=lambda f: (abs(Fraction(float(f)) - x), int(f.view(np.int32)) & 1))


def test_bytes_between_layers() -> None:
    """A sum of two products' results, both quantized first: neither kernel writes floats, and the sum reads bytes."""
    rng = np.random.default_rng(13)
    k, n = 48, 40
    arrays: dict[str, Any] = {
        "xs": np.float32(0.03), "xz": np.uint8(128), "ys": np.float32(0.21), "yz": np.uint8(117), "wz": np.int8(0),
        "ws": np.float32(0.01), "zero": np.uint8(0),
    }  # fmt: skip
    nodes = [h.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"])]
    for i in "ab":
        arrays[f"w{i}"] = rng.integers(-64, 64, (k, n)).astype(np.int8)
        nodes += [
            h.make_node("DequantizeLinear", [f"w{i}", "ws", "wz"], [f"wd{i}"]),
            h.make_node("MatMul", ["xd", f"wd{i}"], [f"m{i}"]),
            h.make_node("QuantizeLinear", [f"m{i}", "ys", "yz"], [f"q{i}"]),
            h.make_node("DequantizeLinear", [f"q{i}", "ys", "yz"], [f"d{i}"]),
        ]
    nodes += [
        h.make_node("Add", ["da", "db"], ["s"]),
        h.make_node("Relu", ["s"], ["p"]),
        h.make_node("QuantizeLinear", ["p", "ys", "zero"], ["y"]),
    ]
    m = effc.compile(model_of(nodes, {"x": (T.UINT8, ["m", k])}, ("y", T.UINT8), arrays))
    assert stats(m)["form_quantized.matmul"] == 2 and stats(m)["fuse_epilogues.from_bytes"] == 1
    x = rng.integers(0, 256, (67, k)).astype(np.uint8)
    scale = np.float32(0.03) * np.float32(0.01)
    parts = []
    for i in "ab":
        acc = (x.astype(np.int64) - 128) @ arrays[f"w{i}"].astype(np.int64)
        q = quantized(acc.astype(np.float32) * scale, np.float32(0.21), 117, np.uint8)
        parts.append((q.astype(np.int64) - 117).astype(np.float32) * np.float32(0.21))
    want = quantized(np.maximum(parts[0] + parts[1], 0), np.float32(0.21), 0, np.uint8)
    np.testing.assert_array_equal(m(x)[0], want)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_pooled_bytes(dtype: Any) -> None:
    """A maximum of floats that are made of bytes is taken of the bytes; not where a window may hold none."""
    rng = np.random.default_rng(14)
    arrays = {"s": np.float32(0.3), "z": dtype(5), "t": np.float32(0.17), "u": dtype(-9 if dtype is np.int8 else 9)}
    kind = T.UINT8 if dtype is np.uint8 else T.INT8
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max + 1, (2, 5, 9, 11)).astype(dtype)
    for pads, formed in (([1, 0, 1, 1], 1), ([3, 0, 0, 0], 0)):
        nodes = [
            h.make_node("DequantizeLinear", ["x", "s", "z"], ["xd"]),
            h.make_node("MaxPool", ["xd"], ["p"], kernel_shape=[3, 2], strides=[2, 1], pads=pads),
            h.make_node("QuantizeLinear", ["p", "t", "u"], ["y"]),
        ]
        m = effc.compile(model_of(nodes, {"x": (kind, ["n", 5, "h", "w"])}, ("y", kind), arrays))
        assert stats(m).get("form_quantized.max_pool", 0) == formed
        wide = np.full((2, 5, 9 + pads[0] + pads[2], 11 + pads[1] + pads[3]), -np.inf, np.float32)
        wide[:, :, pads[0] : pads[0] + 9, pads[1] : pads[1] + 11] = (x.astype(np.float32) - 5) * np.float32(0.3)
        windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 2), (2, 3))[:, :, ::2]
        want = quantized(windows.max((-1, -2)), np.float32(0.17), int(arrays["u"]), dtype)
        np.testing.assert_array_equal(m(x)[0], want)
