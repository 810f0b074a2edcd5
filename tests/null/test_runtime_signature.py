"""Arguments and results: pytrees, torch and numpy, dtypes, scalars."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from runtime_artifacts import LEAF, add, call, dim_symbol, entry, program, save, scale, tensor

from effc.runtime import loader
from effc.runtime.errors import EffcError
from effc.runtime.loader import Io, load, numpy_dtype
from effc.runtime.tree import Record, bind_arguments, unflatten

RNG = np.random.default_rng(3)
Pair = namedtuple("Pair", "a b")


@dataclass
class Output:
    logits: Any
    extra: Any


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def sig(args: list[Any], kwargs: dict[str, Any] | None = None, names: list[str] | None = None) -> dict[str, Any]:
    kwargs = kwargs or {}
    positional: dict[str, Any] = {"t": "tuple", "c": args}
    if names:
        positional["names"] = names
    return {"t": "tuple", "c": [positional, {"t": "dict", "keys": list(kwargs), "c": list(kwargs.values())}]}


def test_nested_arguments() -> None:
    tree = sig(
        [
            {"t": "list", "c": [LEAF, {"t": "none"}]},
            {"t": "dict", "keys": ["x", "y"], "c": [LEAF, LEAF]},
            {"t": "const", "value": 3},
        ],
        {"k": LEAF},
    )
    assert bind_arguments(tree, ([1, None], {"y": 3, "x": 2}, 3), {"k": 4}) == [1, 2, 3, 4]
    good: list[Any] = [[1, None], {"x": 2, "y": 3}, 3]
    for args, kwargs, words in [
        ([[1], good[1], 3], {"k": 4}, "argument 0 must have 2 items, got 1"),
        ([5, good[1], 3], {"k": 4}, "argument 0 must be a list of 2, got int"),
        ([[1, 2], good[1], 3], {"k": 4}, r"argument 0\[1\] must be None"),
        ([good[0], {"x": 1}, 3], {"k": 4}, "argument 1 lacks 'y'"),
        ([good[0], {"x": 1, "y": 2, "z": 3}, 3], {"k": 4}, "argument 1 has unexpected 'z'"),
        ([good[0], good[1], 4], {"k": 4}, "argument 2 was the constant 3 .* got 4"),
        ([good[0], good[1], "3"], {"k": 4}, "argument 2 was the constant 3"),
        ([good[0], good[1], 3], {}, "missing keyword argument.*'k'"),
        ([good[0], good[1], 3], {"k": 4, "l": 5}, "unexpected keyword argument.*'l'.*'k'"),
        ([good[0], good[1], 3, 4], {}, "1 unexpected positional argument"),
        ([good[0], good[1]], {"k": 4}, "missing argument 2"),
        ([good[0], good[1], 3], {"k": [4]}, "argument 'k' must be an array, got list"),
    ]:
        with pytest.raises(EffcError, match=words):
            bind_arguments(tree, tuple(args), kwargs)


def test_positional_arguments_by_keyword() -> None:
    tree = sig([LEAF, LEAF], {"mask": LEAF}, ["ids", "types"])
    for args, kwargs in [
        ((1, 2), {"mask": 3}),
        ((1,), {"types": 2, "mask": 3}),
        ((), {"mask": 3, "types": 2, "ids": 1}),
    ]:
        assert bind_arguments(tree, args, kwargs) == [1, 2, 3]
    with pytest.raises(EffcError, match="'types' is given twice"):
        bind_arguments(tree, (1, 2), {"types": 2, "mask": 3})
    with pytest.raises(EffcError, match="missing argument 1 'types'"):
        bind_arguments(tree, (1,), {"mask": 3})


def test_constants_compare_by_type() -> None:
    for want, same, other in [
        (True, True, 1),
        ("a", "a", "b"),
        (2, 2, 3),
        (0.5, 0.5, 0.25),
        ([1, 2], (1, 2), (1, 3)),
        (False, False, None),
    ]:
        tree = sig([{"t": "const", "value": want}])
        assert bind_arguments(tree, (same,), {}) == []
        with pytest.raises(EffcError, match="constant"):
            bind_arguments(tree, (other,), {})


def test_classes_in_and_out() -> None:
    here = __name__
    tree = {"t": "class", "name": f"{here}:Pair", "keys": ["a", "b"], "c": [LEAF, LEAF]}
    assert bind_arguments(sig([tree]), (Pair(1, 2),), {}) == [1, 2]
    assert bind_arguments(sig([tree]), ({"a": 1, "b": 2},), {}) == [1, 2]
    with pytest.raises(EffcError, match="with 'a'"):
        bind_arguments(sig([tree]), (3.0,), {})
    assert unflatten(tree, [1, 2]) == Pair(1, 2)
    out = unflatten(
        {"t": "class", "name": f"{here}:Output", "keys": ["logits", "extra"], "c": [LEAF, {"t": "none"}]}, [5]
    )
    assert isinstance(out, Output) and out.logits == 5 and out.extra is None
    lost = unflatten({"t": "class", "name": "no.such.module:Output", "keys": ["logits"], "c": [LEAF]}, [5])
    assert isinstance(lost, Record) and lost.logits == lost["logits"] == 5
    with pytest.raises(AttributeError):
        _ = lost.other
    nested = {
        "t": "dict",
        "keys": ["p"],
        "c": [{"t": "list", "c": [LEAF, {"t": "const", "value": 7}, {"t": "leaf", "py": "int"}]}],
    }
    assert unflatten(nested, [1, np.array(9)]) == {"p": [1, 7, 9]}


def test_run_by_name_and_structured_result(tmp_path: Path) -> None:
    prog = program(
        [tensor([2], "input", i=0), tensor([2], "input", i=1), tensor([2], "output", i=0), tensor([2], "output", i=1)],
        [add(0, 1, 2), scale(0, 3, 2.0)],
        [0, 1],
        [2, 3],
    )
    out_tree = {
        "t": "class",
        "name": f"{__name__}:Output",
        "keys": ["logits", "extra"],
        "c": [LEAF, {"t": "list", "c": [LEAF]}],
    }
    m = load(save(tmp_path / "m.effc", prog, in_tree=sig([LEAF], {"b": LEAF}), out_tree=out_tree))
    a, b = f32(2), f32(2)
    out = m(a, b=b)
    assert isinstance(out, Output)
    np.testing.assert_array_equal(out.logits, a + b)
    np.testing.assert_array_equal(out.extra[0], a * 2)
    named = m.run({"x1": b, "x0": a})
    np.testing.assert_array_equal(named["y1"], a * 2)
    with pytest.raises(EffcError, match=r"unexpected input.*'z'"):
        m.run({"x1": b, "x0": a, "z": a})
    assert [str(i) for i in m.inputs] == ["x0: f32[2]", "x1: f32[2]"]


def passthrough(path: Path, dtype: str) -> loader.LoadedModel:
    return load(
        save(path, program([tensor(["s0", 2], "input", d=dtype, i=0)], [], [0], [0], symbols=[dim_symbol("s0", 0, 0)]))
    )


@pytest.mark.parametrize("dtype", loader.DTYPES)
def test_every_dtype_from_numpy(tmp_path: Path, dtype: str) -> None:
    m = passthrough(tmp_path / "m.effc", dtype)
    d = numpy_dtype(dtype)
    raw = RNG.integers(0, 2, (6, d.itemsize * 2), np.uint8)
    x = raw.view(d).reshape(6, 2)
    for a in (x, x[::2], x[::-1], x[:0], np.asfortranarray(x)):
        y = m(a)
        assert y.dtype == d and y.shape == a.shape
        assert y.tobytes() == a.tobytes()
    wrong = np.zeros((6, 2), np.int8 if dtype != "i8" else np.int16)
    with pytest.raises(EffcError, match=r"x0.*dtype"):
        m(wrong)


@pytest.mark.parametrize("dtype", loader.DTYPES)
def test_every_dtype_from_torch(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    m = passthrough(tmp_path / "m.effc", dtype)
    kind = getattr(torch, loader._TORCH_OF[dtype])
    size = torch.empty((), dtype=kind).element_size()
    x = torch.from_numpy(RNG.integers(0, 2, (6, size * 2), np.uint8)).view(kind)
    for a in (x, x[::2], x[:0], x.t().contiguous().t()):
        y = m(a)
        assert y.dtype == kind and y.shape == a.shape and y.is_contiguous()
        assert torch.equal(y.contiguous().view(torch.uint8), a.contiguous().view(torch.uint8))


def test_bits_stand_in_where_ml_dtypes_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = passthrough(tmp_path / "m.effc", "bf16")
    x = f32(3, 2).astype(ml_dtypes.bfloat16)
    assert m(x.view(np.uint16)).dtype == ml_dtypes.bfloat16
    monkeypatch.setattr(loader, "_ml_dtype", lambda short: None)
    y = passthrough(tmp_path / "m.effc", "bf16")(x.view(np.uint16))
    assert y.dtype == np.uint16
    np.testing.assert_array_equal(y, x.view(np.uint16))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_torch_details(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    m = passthrough(tmp_path / "m.effc", "c64")
    x = torch.randn(3, 2, dtype=torch.complex64)
    assert torch.equal(m(x.conj()), x.conj().resolve_conj())
    assert torch.equal(m(torch.nn.Parameter(x)), x)
    n = passthrough(tmp_path / "n.effc", "f32")
    assert torch.equal(n(x.conj().imag), -x.imag)
    for bad, words in [
        (torch.zeros(2, 2, device="meta"), "device meta"),
        (torch.zeros(2, 2).to_sparse(), "layout torch.sparse_coo"),
        (torch.zeros(2, 2).double(), "dtype torch.float64"),
        (torch.zeros(2), "rank 1"),
    ]:
        with pytest.raises(EffcError, match=words):
            n(bad)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(2, 2)
    with pytest.raises(EffcError, match=r"without data|has no data"):
        n(fake)
    y = torch.randn(5, 1).expand(5, 2)
    assert torch.equal(n(y), y)
    assert isinstance(n(np.zeros((1, 2), np.float32)), np.ndarray)


def test_torch_inputs_are_written_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    prog = program(
        [tensor(["s0", 3], "input", i=0), tensor(["s0", 3])],
        [add(0, 0, 1)],
        [0],
        [1],
        commits=[{"input": 0, "value": 1}],
        symbols=[dim_symbol("s0", 0, 0)],
    )
    m = load(save(tmp_path / "m.effc", prog))
    for x in (torch.randn(4, 3), torch.randn(3, 4).t(), torch.randn(8, 6)[::2, ::2]):
        want = x.clone() * 2
        assert torch.equal(m(x), want)
        assert torch.equal(x, want)
    with pytest.raises(EffcError, match="share memory"):
        m(torch.randn(1, 3).expand(4, 3))
    z = torch.randn(3, 3, dtype=torch.complex64)
    view = z.conj().imag
    want = view.clone() * 2
    m(view)
    assert torch.equal(view, want)


def test_scalars(tmp_path: Path) -> None:
    values = [tensor([], "input", i=0), tensor([], "input", d="i64", i=1), tensor([], "input", d="bool", i=2)]
    m = load(save(tmp_path / "m.effc", program(values, [], [0, 1, 2], [0, 1, 2])))
    assert [v.item() for v in m(1.5, -3, True)] == [1.5, -3, True]
    assert [v.item() for v in m(2, np.int64(4), np.bool_(False))] == [2.0, 4, False]
    for args, words in [
        ((1j, 1, True), "complex"),
        ((1.0, 1.5, True), "float"),
        ((1.0, 1, 1), "bool|int"),
        ((1.0, 2**70, True), "does not fit"),
        ((np.float16(1), 1, True), "float16"),
    ]:
        with pytest.raises(EffcError, match=words):
            m(*args)
    n = passthrough(tmp_path / "n.effc", "f32")
    with pytest.raises(EffcError, match="rank 2, got the number 3"):
        n(3)


def test_other_arrays_come_through_dlpack(tmp_path: Path) -> None:
    class Foreign:
        def __init__(self, a: np.ndarray) -> None:
            self.a = a

        def __dlpack__(self, **kwargs: Any) -> Any:
            return self.a.__dlpack__(**kwargs)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.a.__dlpack_device__()

    x = f32(3, 2)
    np.testing.assert_array_equal(passthrough(tmp_path / "m.effc", "f32")(Foreign(x)), x)


def test_loading_imports_neither_torch_nor_ml_dtypes(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.effc", program([tensor([2], "input", i=0), tensor([2], "output", i=0)], [add(0, 0, 1)], [0], [1])
    )
    code = f"""
import sys
import numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ml_dtypes", "scipy", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from effc.runtime.loader import load
m = load({str(path)!r})
assert m(np.ones(2, np.float32)).tolist() == [2, 2]
assert "torch" not in sys.modules
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "fine\n", done.stderr


def test_several_entries_share_weights(tmp_path: Path) -> None:
    from effc.runtime.artifact import ArtifactWriter

    w = ArtifactWriter()
    weight = f32(4)
    at = w.add_weight(weight)
    assert w.add_weight(weight.copy()) == at and w.add_weight(f32(4)) != at
    plus = program(
        [tensor([4], "input", i=0), tensor([4], "const", seg=at[0], offset=at[1]), tensor([4], "output", i=0)],
        [add(0, 1, 2)],
        [0],
        [2],
    )
    twice = program(
        [tensor([4], "const", seg=at[0], offset=at[1]), tensor([4], "output", i=0)], [scale(0, 1, 2.0)], [], [1]
    )
    m = load(save(tmp_path / "m.effc", entries={"plus": entry(plus), "twice": entry(twice)}, writer=w))
    x = f32(4)
    assert m.entry_names == ["plus", "twice"]
    np.testing.assert_array_equal(m(x), x + weight)
    np.testing.assert_array_equal(m.entry("twice")(), weight * 2)
    assert Io("x0", "f32", (4,)) == m.entry("plus").inputs[0]


def test_profile(tmp_path: Path) -> None:
    values = [tensor(["s0"], "input", i=0), tensor(["s0"]), tensor(["s0"], "output", i=0)]
    code = [
        add(0, 0, 1),
        call("t_scale", [1], [2], attrs=[0], fattrs=[1.0], flops=["*", "s0", 2], bytes=["*", "s0", 8]),
    ]
    m = load(save(tmp_path / "m.effc", program(values, code, [0], [2], symbols=[dim_symbol("s0", 0, 0)])))
    with m.profile() as records:
        for n in (3, 5):
            m(f32(n))
    assert [(r.name, r.loc, r.calls, r.flops, r.bytes) for r in records] == [
        ("t_add", "model.py:12", 2, 0, 0),
        ("t_scale", "model.py:12", 2, 16, 64),
    ]
    assert all(r.seconds > 0 for r in records)
    m(f32(3))
    with m.profile() as records:
        pass
    assert [r.calls for r in records] == [0, 0]


def test_debug_prints_plan_and_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(
        tmp_path / "m.effc", program([tensor([2], "input", i=0), tensor([2], "output", i=0)], [add(0, 0, 1)], [0], [1])
    )
    load(path)(f32(2))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("EFFC_DEBUG", "2")
    m = load(path)
    assert "entry forward: 1 instructions" in capsys.readouterr().err
    for _ in range(2):
        m(f32(2))
        text = capsys.readouterr().err
        assert "t_add" in text and "[model.py:12]" in text and "100.0%" in text and "     1 " in text
