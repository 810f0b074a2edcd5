"""Types that are only stored and converted: their conversions, their way through models and artifacts, the refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.helper
import pytest
from onnx.backend.test.case.node import _NodeTestCases
from onnx.reference.ops.op_cast import cast_to

from effc.backends.reference import ReferenceModel
from effc.ir import Builder, DType, Graph, TensorType, Value
from effc.ir.casts import ROUND, cast
from effc.ir.interp import Interpreter
from effc.ir.op import OPS
from effc.ir.ops.elementwise import conversion_values
from effc.ir.text import parse, to_text
from effc.passes.canonical import lossless
from effc.passes.manager import Pipeline
from effc.passes.pipeline import default
from effc.runtime import build_rt, dtypes, selftest
from effc.runtime.errors import EffcError
from effc.runtime.loader import load

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).resolve().parents[2]
STORAGE = [d for d in DType if d.is_storage]
REAL = [d for d in DType if not d.is_complex]
SHORT = [d for d in REAL if d.is_float and d.bits <= 8]
CODES = {
    DType(name): getattr(onnx.TensorProto, proto)
    for name, proto in {
        "bool": "BOOL", "u8": "UINT8", "i8": "INT8", "u16": "UINT16", "i16": "INT16", "u32": "UINT32", "i32": "INT32",
        "u64": "UINT64", "i64": "INT64", "f16": "FLOAT16", "bf16": "BFLOAT16", "f32": "FLOAT", "f64": "DOUBLE",
        "f8e4m3": "FLOAT8E4M3FN", "f8e5m2": "FLOAT8E5M2", "i4": "INT4", "u4": "UINT4", "i2": "INT2", "u2": "UINT2",
        "f4e2m1": "FLOAT4E2M1", "f8e4m3fnuz": "FLOAT8E4M3FNUZ", "f8e5m2fnuz": "FLOAT8E5M2FNUZ",
        "f8e8m0": "FLOAT8E8M0",
    }.items()
}  # fmt: skip


def model(graph: Graph, folder: Path) -> Callable[..., list[Array]]:
    """The graph compiled for this CPU, saved and loaded, as a function of its inputs in order."""
    from effc.backends import cpu
    from effc.backends.cpu.target import parse as parse_target
    from effc.compiler import write_artifact

    graph = Pipeline(default(), verify=True).run(graph)
    target = parse_target("cpu")
    names = SimpleNamespace(
        input_names=[n.name for n in graph.inputs],
        output_names=[f"y{i}" for i in range(len(graph.outputs))],
        in_tree=None,
        out_tree=None,
    )
    path = folder / "model.effc"
    parts = cpu.compile_graphs({"main": graph}, target, None)
    write_artifact(path, target, {"main": names}, {"main": graph}, parts, {})
    loaded = load(path)

    def run(*arrays: Array) -> list[Array]:
        got = loaded.run(dict(zip(names.input_names, arrays, strict=True)))
        return [np.asarray(got[n]) for n in names.output_names]

    return run


def both(graph: Graph, arrays: list[Array], folder: Path) -> list[list[Array]]:
    """The outputs by the interpreter, and by compiled code."""
    return [Interpreter().run(graph, arrays), model(graph, folder)(*arrays)]


def unequal(got: Array, want: Array) -> str | None:
    """None where the same bits, but for NaN's, else what differs."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype}{got.shape}, expected {want.dtype}{want.shape}"
    bits = f"u{got.itemsize}"
    with np.errstate(invalid="ignore"):
        nan = [np.isnan(a.astype(np.float64)) for a in (got, want)]
    bad = (nan[0] != nan[1]) | (~nan[0] & (got.view(bits) != want.view(bits)))
    return f"{bad.sum()} of {bad.size}: {got[bad][:6]}, expected {want[bad][:6]}" if bad.any() else None


def test_one_numbering() -> None:
    header = (build_rt.include_dir() / "effc_kernel.h").read_text()
    found = re.findall(r'^  X\((\w+), "(\w+)", (\d+)\)', header, re.MULTILINE)
    assert [(text, int(size)) for _, text, size in found] == [(t.name, t.size) for t in dtypes.TABLE]
    assert all(name.lower() == text for name, text, _ in found)
    assert [d.value for d in sorted(DType, key=lambda d: d.code)] == dtypes.NAMES
    assert dtypes.NAMES[:18] == (
        "bool u8 i8 u16 i16 u32 i32 u64 i64 f16 bf16 f32 f64 f8e4m3 f8e5m2 c64 c128 c32".split()
    ), "numbers are part of the artifact format"
    for d in DType:
        assert d is DType.c32 or (DType.from_np(d.np) is d and d.np.itemsize == d.itemsize)


@pytest.mark.parametrize("dst", REAL)
@pytest.mark.parametrize("src", STORAGE)
def test_convert_agrees_with_ml_dtypes(src: DType, dst: DType) -> None:
    """Both ways. What ml_dtypes does otherwise on purpose is left out: f8e4m3 saturates, f8e8m0 takes magnitudes."""
    convert = OPS["convert"].numpy
    assert convert is not None
    for a, b in ((src, dst), (dst, src)):
        x = conversion_values(np.random.default_rng(1), a, b)
        with np.errstate(all="ignore"):
            as_f32 = x.astype(np.float32)
            if b is DType.f8e4m3:
                x = x[~(np.abs(as_f32) > 448)]
            if b is DType.f8e8m0:
                x = x[as_f32 > 0]
            if b.is_int and a.is_float:  # beyond the range it is undefined
                x = x[(np.abs(as_f32) < min(2 ** (b.bits - b.is_signed), 1 << 20)) & (b.is_signed | (as_f32 >= 0))]
            want = x.astype(a.compute.np).astype(b.np)
            problem = unequal(np.asarray(convert(x, dtype=b)), want)
        assert problem is None, (a, b, problem)


# What the interpreter and compiled code make of Cast ------------------------------------------------------------------


def cases(src: DType, dst: DType) -> list[tuple[bool, str]]:
    return [(s, r) for s in (True, False) for r in (ROUND if dst is DType.f8e8m0 else ("up",)) if s or dst in SHORT]


def specified(x: Array, dst: DType, saturate: bool, mode: str) -> Array:
    """A mask of the values for which ONNX's reference implementation does what Cast's text says."""
    with np.errstate(over="ignore"):
        wide = x.astype(np.float32)
    if dst is not DType.f8e8m0:
        return np.ones(x.shape, np.bool_)
    least = np.float32(2.0**-127)  # the text maps what is smaller to it, or to NaN; the implementation rounds its bits
    tiny = np.abs(wide) <= least if saturate or mode == "up" else np.abs(wide) < least
    return ~tiny & ~(np.isinf(wide) & saturate)  # saturating takes infinity to the largest value


@pytest.mark.parametrize("dst", [*STORAGE, DType.f8e4m3, DType.f8e5m2, DType.f16, DType.bf16, DType.i8, DType.u8])
def test_cast_agrees_with_onnx(dst: DType, tmp_path: Path) -> None:
    b, rng = Builder(), np.random.default_rng(2)
    arrays: list[Array] = []
    outs: list[Value] = []
    expected: list[tuple[str, Array, Array]] = []
    for src in REAL:
        if src is dst:
            continue
        x = conversion_values(rng, src, dst)
        v = b.input(f"x{len(arrays)}", TensorType(src, x.shape))
        arrays.append(x)
        for saturate, mode in cases(src, dst):
            outs.append(cast(b, v, dst, saturate=saturate, round_mode=mode))
            # the implementation clips in the operand's type, which not all of numpy's and ml_dtypes' types can hold
            with np.errstate(all="ignore"):
                plain = x.astype(src.compute.np)
                plain = plain if not dst.is_float or src in (DType.f16, DType.f64) else plain.astype(np.float32)
                want = cast_to(plain, CODES[dst], saturate, mode)
            expected.append((f"{src} to {dst}, saturate={saturate} {mode}", want, specified(x, dst, saturate, mode)))
    for kind, got in zip(("interpreter", "cpu"), both(b.graph(outs), arrays, tmp_path), strict=True):
        for (what, want, mask), a in zip(expected, got, strict=True):
            assert (problem := unequal(a[mask], want[mask])) is None, f"{kind}: {what}: {problem}"


def test_cast_to_powers_of_two_at_the_ends(tmp_path: Path) -> None:
    """The rows of the table in Cast's text, and what follows from it for the other modes."""
    least, most = 2.0**-127, 2.0**127
    x = np.array([0, 2.0**-130, least, most, 1.2 * most, 1.5 * most, np.inf, np.nan, 1.1, 1.5, 3], np.float32)
    nan = np.nan
    rows = {
        (True, "up"): [least, least, least, most, most, most, most, nan, 2, 2, 4],
        (True, "down"): [least, least, least, most, most, most, most, nan, 1, 1, 2],
        (True, "nearest"): [least, least, least, most, most, most, most, nan, 1, 2, 4],
        (False, "up"): [least, least, least, most, nan, nan, nan, nan, 2, 2, 4],
        (False, "down"): [nan, nan, least, most, most, most, nan, nan, 1, 1, 2],
        (False, "nearest"): [nan, nan, least, most, most, nan, nan, nan, 1, 2, 4],
    }
    b = Builder()
    v = b.input("x", TensorType(DType.f32, x.shape))
    outs = [cast(b, v, DType.f8e8m0, saturate=s, round_mode=m) for s, m in rows]
    for got in both(b.graph(outs), [x], tmp_path):
        for mode, a in zip(rows, got, strict=True):
            np.testing.assert_array_equal(a.astype(np.float64), np.array(rows[mode]), err_msg=str(mode))
    with pytest.raises(ValueError, match="round_mode is 'even'"):
        cast(b, v, DType.f8e8m0, round_mode="even")


@pytest.fixture(scope="module")
def onnx_cases() -> list[Any]:
    import onnx.backend.test.case.node.cast  # noqa: F401  (registers them)

    by_proto = set(CODES.values())
    return [
        c
        for c in {c.name: c for c in _NodeTestCases if c.model.graph.node[0].op_type == "Cast"}.values()
        if c.model.graph.input[0].type.tensor_type.elem_type in by_proto
        and c.model.graph.output[0].type.tensor_type.elem_type in by_proto
    ]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_onnx_cases(onnx_cases: list[Any], tmp_path: Path) -> None:
    """ONNX's own cases of Cast, their expected outputs included."""
    dtype_of = {code: d for d, code in CODES.items()}
    b = Builder()
    arrays, outs, expected = [], [], []
    for k, c in enumerate(onnx_cases):
        node = c.model.graph.node[0]
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        ((ins, wants),) = c.data_sets
        x, want = (a if isinstance(a, np.ndarray) else onnx.numpy_helper.to_array(a) for a in (ins[0], wants[0]))
        dtype = DType.from_np(x.dtype)
        assert dtype is dtype_of[c.model.graph.input[0].type.tensor_type.elem_type]
        arrays.append(x)
        v = b.input(f"x{k}", TensorType(dtype, x.shape))
        mode = attrs.get("round_mode", b"up").decode()
        outs.append(cast(b, v, dtype_of[attrs["to"]], saturate=bool(attrs.get("saturate", 1)), round_mode=mode))
        expected.append((c.name, want))
    assert len(expected) >= 60
    for kind, got in zip(("interpreter", "cpu"), both(b.graph(outs), arrays, tmp_path), strict=True):
        for (name, want), a in zip(expected, got, strict=True):
            assert (problem := unequal(a, want)) is None, f"{kind}: {name}: {problem}"


# Moving and refusing --------------------------------------------------------------------------------------------------


def every(dtype: DType) -> Array:
    return np.arange(2**dtype.bits).astype(np.uint8).view(dtype.np)


FULL, PADDED = 15, 17  # places in what follows


def moves(b: Builder, dtype: DType, x: Value, y: Value, index: Value, mask: Value) -> list[Value]:
    """Results of the ops that move data: x and y of [4, 6], index i64 [2, 6] below 2, mask bool [4, 6]."""
    row = every(dtype)[[1, 2, 3]]
    line = b.op("slice", index, starts=(0, 0), stops=(1, 2), steps=(1, 1))
    line = b.op("reshape", line, shape=(2,))
    return [
        x,
        b.op("reshape", x, shape=(2, 12)),
        b.op("copy", b.op("permute", x, dims=(1, 0))),
        b.op("slice", x, starts=(1, 1), stops=(3, 6), steps=(1, 2)),
        b.op("flip", x, dims=(1,)),
        b.op("broadcast_to", b.op("reshape", b.constant(row, dtype), shape=(1, 3)), shape=(2, 3)),
        b.op("concat", x, y, dim=1),
        b.op("where", mask, x, y),
        b.op("gather", x, index, dim=0),
        b.op("take", x, line, dim=1),
        b.op("index", x, line, dims=(1,)),
        b.op("index_put", x, b.op("take", y, line, dim=0), line, dims=(0,)),
        b.op("scatter", x, index, b.op("take", y, line, dim=0), dim=0),
        b.op("index_copy", x, b.op("reshape", line, shape=(2,)), b.op("take", y, line, dim=0), dim=0),
        b.op("masked_scatter", x, mask, y),
        b.op("full", value=1, shape=(3, 2), dtype=dtype),
        b.op("full", b.op("reshape", b.op("slice", x, starts=(0, 0), stops=(1, 1), steps=(1, 1)), shape=()),
             shape=(2, 2), dtype=dtype),
        b.op("pad", x, padding=((1, 0), (0, 2)), value=1),
        b.op("pad", x, padding=((1, 0), (0, 2)), mode="reflect"),
        b.op("tril", x, diagonal=0),
        b.op("slice_scatter", x, b.op("slice", y, starts=(0, 0), stops=(4, 2), steps=(1, 1)),
             starts=(0, 1), stops=(4, 4), steps=(1, 2)),
        b.constant(row, dtype),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", STORAGE)
def test_values_flow_through_data_movement(dtype: DType, tmp_path: Path) -> None:
    """Bits arrive where the same ops take bytes."""
    rng = np.random.default_rng(4)
    bits = [rng.integers(0, 2**dtype.bits, (4, 6)).astype(np.uint8) for _ in range(2)]
    rest = [np.tile(np.array([[0], [1]]), (1, 6)), rng.random((4, 6)) < 0.5]
    rest[0][:, 1] = rest[0][::-1, 1]
    one = int(np.asarray(1).astype(dtype.np).view(np.uint8))

    def graph(d: DType) -> Graph:
        b = Builder()
        x, y = (b.input(n, TensorType(d, (4, 6))) for n in "xy")
        v = [b.input("i", TensorType(DType.i64, (2, 6))), b.input("m", TensorType(DType.bool, (4, 6)))]
        return b.graph(moves(b, d, x, y, *v))

    g = graph(dtype)
    arrays: dict[str, Array] = {}
    assert to_text(parse(to_text(g, arrays), arrays), dict(arrays)) == to_text(g, dict(arrays))
    want = Interpreter().run(graph(DType.u8), [*bits, *rest])
    for kind, got in zip(
        ("interpreter", "cpu"), both(g, [*(a.view(dtype.np) for a in bits), *rest], tmp_path), strict=True
    ):
        for k, (a, w) in enumerate(zip(got, want, strict=True)):
            assert a.dtype == dtype.np
            w = np.array(w)
            if k == FULL:  # of the number 1, whose bits are not those of a byte
                w[...] = one
            if k == PADDED:
                w[:1] = w[:, 6:] = one
            np.testing.assert_array_equal(np.asarray(a).view(np.uint8), w, err_msg=f"{kind}: result {k}")


@pytest.mark.parametrize("dtype", STORAGE)
def test_arithmetic_is_refused(dtype: DType) -> None:
    b = Builder()
    x = b.input("x", TensorType(dtype, (3, 3)))
    i = b.input("i", TensorType(DType.i64, (3, 3)))
    for make in (
        lambda: b.op("add", x, x),
        lambda: b.op("eq", x, x),
        lambda: b.op("neg", x),
        lambda: b.op("reduce", x, kind="max", dims=(0,), keepdims=False),
        lambda: b.op("matmul", x, x),
        lambda: b.op("sort", x, dim=0),
        lambda: b.op("cumsum", x, dim=0),
        lambda: b.op("iota", shape=(3,), dtype=dtype),
        lambda: b.op("nonzero", x, size=b.symbol("u0")),
    ):
        with pytest.raises(EffcError, match=f"not defined for {dtype}, which is only stored"):
            make()
    with pytest.raises(EffcError, match=f"sum is not defined for {dtype}"):
        b.op("scatter", x, i, x, dim=0, reduce="sum")
    with pytest.raises(EffcError, match="cannot be added"):
        b.op("index_put", x, x, i, dims=(0,), accumulate=True)


def test_only_conversions_that_keep_all_values_are_merged() -> None:
    wide = {DType.f16, DType.bf16, DType.f32, DType.f64}
    for d in STORAGE:
        assert {w for w in wide if lossless(d, w)} == wide - ({DType.f16} if d is DType.f8e8m0 else set())
        assert not any(lossless(w, d) for w in wide)
    kept = {(a.value, b.value) for a in STORAGE for b in STORAGE if a is not b and lossless(a, b)}
    assert kept == {
        ("i2", "i4"), ("u2", "u4"), ("u2", "i4"), ("i2", "f4e2m1"), ("u2", "f4e2m1"),
        *((i, f) for i in ("i4", "i2", "u2") for f in ("f8e4m3fnuz", "f8e5m2fnuz")), ("u4", "f8e4m3fnuz"),
    }  # fmt: skip
    assert not lossless(DType.bool, DType.f8e8m0), "there is no zero"
    assert not lossless(DType.i4, DType.u8) and lossless(DType.u4, DType.u8)


# Artifacts ------------------------------------------------------------------------------------------------------------


def converts(folder: Path) -> tuple[Callable[..., list[Array]], list[Array]]:
    """x, one input of each type, to f32 and back."""
    b = Builder()
    outs, arrays = [], []
    for k, d in enumerate(STORAGE):
        v = b.input(f"x{k}", TensorType(d, (2**d.bits,)))
        outs += [b.op("convert", v, dtype=DType.f32), b.op("convert", b.op("convert", v, dtype=DType.f32), dtype=d)]
        outs.append(b.op("copy", b.op("flip", v, dims=(0,))))
        arrays.append(every(d))
    return model(b.graph(outs), folder), arrays


def test_an_artifact_runs_without_ml_dtypes(tmp_path: Path) -> None:
    """Inputs and outputs are then the bits, as uint8; with ml_dtypes bits are taken as well."""
    run, arrays = converts(tmp_path)
    want = run(*arrays)
    for k, d in enumerate(STORAGE):
        assert want[3 * k].dtype == np.float32 and want[3 * k + 1].dtype == want[3 * k + 2].dtype == d.np
        np.testing.assert_array_equal(want[3 * k], arrays[k].astype(np.float32))
    for a, w in zip(run(*(x.view(np.uint8) for x in arrays)), want, strict=True):
        assert unequal(a, w) is None
    np.savez(tmp_path / "in.npz", **{f"x{k}": a.view(np.uint8) for k, a in enumerate(arrays)})
    code = (
        "import sys; sys.modules['torch'] = sys.modules['ml_dtypes'] = None\n"
        "import numpy as np\nfrom effc.runtime.loader import load\n"
        "m = load(sys.argv[1]); np.savez(sys.argv[3], **m.run(dict(np.load(sys.argv[2]))))\n"
    )
    args = [str(tmp_path / n) for n in ("model.effc", "in.npz", "out.npz")]
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    got = np.load(tmp_path / "out.npz")
    for i, w in enumerate(want):
        a = got[f"y{i}"]
        assert a.dtype == (np.float32 if i % 3 == 0 else np.uint8)
        assert a.tobytes() == w.tobytes() or (i % 3 == 0 and np.array_equal(a, w, equal_nan=True))


def test_wrong_dtypes_are_named(tmp_path: Path) -> None:
    run, arrays = converts(tmp_path)
    with pytest.raises(EffcError, match="input 'x0' has dtype int8, the model was compiled for int4"):
        run(arrays[0].view(np.int8), *arrays[1:])
    with pytest.raises(EffcError, match="input 'x1' has dtype int4, the model was compiled for uint4"):
        run(arrays[0], arrays[0], *arrays[2:])


@pytest.mark.parametrize("dtype", STORAGE)
def test_selftests_hold_bits(dtype: DType) -> None:
    x = every(dtype)
    raw = np.frombuffer(selftest._npy(x)[-x.size :], np.uint8)
    np.testing.assert_array_equal(raw, x.view(np.uint8))
    assert selftest._compared(x, raw, dtype.value) == (0.0, None)
    assert selftest._compared(x, raw[::-1].copy(), dtype.value)[1] is not None


def test_the_reference_backend_takes_and_gives_them() -> None:
    torch = pytest.importorskip("torch")
    b = Builder()
    x = b.input("x", TensorType(DType.i4, (16,)))
    y = b.input("y", TensorType(DType.f8e4m3fnuz, (256,)))
    leaf = {"t": "leaf"}
    two: dict[str, Any] = {"t": "tuple", "c": [leaf, leaf]}
    tree = {"t": "tuple", "c": [two, {"t": "dict", "keys": [], "c": []}]}
    m = ReferenceModel({"main": SimpleNamespace(graph=b.graph([x, y]), in_tree=tree, out_tree=two)})
    i4, f8 = every(DType.i4), every(DType.f8e4m3fnuz)
    for args in ((i4, f8), (i4.view(np.uint8), f8.view(np.uint8))):
        got = m(*args)
        assert [a.dtype for a in got] == [ml_dtypes.int4, ml_dtypes.float8_e4m3fnuz]
        assert [a.tobytes() for a in got] == [i4.tobytes(), f8.tobytes()]
    bits = [torch.from_numpy(a.view(np.uint8).copy()) for a in (i4, f8)]
    got = m(bits[0], bits[1].view(torch.float8_e4m3fnuz))
    assert [a.dtype for a in got] == [torch.uint8, torch.float8_e4m3fnuz]
    assert all(torch.equal(a.view(torch.uint8), w) for a, w in zip(got, bits, strict=True))
