"""Running hand-made programs: kinds of values, sizes, signatures, states."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_artifacts import add, call, dim_symbol, program, save, scale, tensor

from effc.runtime import layouts
from effc.runtime.artifact import ArtifactWriter
from effc.runtime.errors import EffcError
from effc.runtime.loader import load

RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_static_add(tmp_path: Path) -> None:
    w = ArtifactWriter()
    weight = f32(3, 5)
    seg, offset = w.add_weight(weight)
    values = [
        tensor([3, 5], "input", i=0),
        tensor([3, 5], "const", seg=seg, offset=offset),
        tensor([3, 5]),
        tensor([3, 5], "output", i=0),
    ]
    m = load(save(tmp_path / "m.effc", program(values, [add(0, 1, 2), scale(2, 3, 2.0, 1)], [0], [3]), writer=w))
    x = f32(3, 5)
    np.testing.assert_array_equal(m(x), (x + weight) * 2 + 1)
    y = m.run({"x0": x})
    assert list(y) == ["y0"] and y["y0"].dtype == np.float32 and y["y0"].shape == (3, 5)


def test_an_empty_view_needs_no_room_in_a_static_plan(tmp_path: Path) -> None:
    """A view of no elements may start beyond its storage (the slices of an unfolded empty batch do)."""
    values = [
        tensor([0, 40], "input", i=0),
        tensor([0, 40], offset=0),
        tensor([0, 20], "view", base=1, offset=20, strides=[40, 1]),
        tensor([0, 20], offset=64),
        tensor([0, 20], "output", i=0),
    ]
    code = [scale(0, 1), add(2, 2, 3), add(2, 3, 4)]
    arena = {"static_bytes": 128, "lower_bound": 128}
    m = load(save(tmp_path / "m.effc", program(values, code, [0], [4], arena=arena)))
    assert m(f32(0, 40)).shape == (0, 20)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 129])
def test_dynamic_shape(tmp_path: Path, n: int) -> None:
    values = [
        tensor(["s0", 3], "input", i=0),
        tensor(["s0", 3], "input", i=1),
        tensor(["s0", 3]),
        tensor([3, "s0"], "view", base=2, offset=0, strides=[1, 3]),
        tensor([["+", "s0", 1], 3], "output", i=0),
        tensor(["s0", 3], "view", base=4, offset=3, strides=[3, 1]),
        tensor([1, 3], "view", base=4, offset=0, strides=[3, 1]),
        tensor([1, 3], "const", seg=0, offset=0),
        tensor([3], "output", i=1),
    ]
    code = [
        add(0, 1, 2),
        scale(2, 5, 3.0),
        scale(7, 6),
        call("t_sum_last", [3], [8], scratch=["*", "s0", 4], thread_scratch=8),
    ]
    code[3]["scratch"] = ["max", 64, ["*", "s0", 4]]
    w = ArtifactWriter()
    w.add_weight(np.arange(3, dtype=np.float32))
    m = load(
        save(
            tmp_path / "m.effc",
            program(values, code, [0, 1], [4, 8], symbols=[dim_symbol("s0", 0, 0, 0, 512)]),
            writer=w,
        )
    )
    a, b = f32(n, 3), f32(n, 3)
    for _ in range(2):
        y, s = m(a, b)
        np.testing.assert_array_equal(y, np.concatenate([np.arange(3, dtype=np.float32)[None], (a + b) * 3]))
        np.testing.assert_allclose(s, (a + b).sum(0), rtol=1e-5, atol=1e-6)
    y, _ = m(np.asfortranarray(a), np.repeat(b, 2, axis=1)[:, ::2])
    np.testing.assert_array_equal(y[1:], (a + b) * 3)


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    values = [tensor(["s0", 4], "input", i=0), tensor(["s0", 4], "input", i=1), tensor(["s0", 4], "output", i=0)]
    m = load(
        save(tmp_path / "m.effc", program(values, [add(0, 1, 2)], [0, 1], [2], symbols=[dim_symbol("s0", 0, 0, 2, 8)]))
    )
    ok = f32(3, 4)
    assert m(ok, ok).shape == (3, 4)
    for bad, words in [
        (f32(3, 4, 1), ["x0", "rank 3", "rank 2"]),
        (f32(9, 4), ["x0", "9", "2 to 8"]),
        (f32(1, 4), ["x0", "2 to 8"]),
        (f32(3, 5), ["x0", "(3, 5)", "(s0, 4)"]),
        (ok.astype(np.float64), ["x0", "float64", "float32"]),
        ("text", ["must be an array", "str"]),
        (None, ["must be an array"]),
        (ok.astype(">f4"), ["x0", "dtype"]),
        (ok.astype(object), ["x0", "object"]),
    ]:
        with pytest.raises(EffcError) as e:
            m(bad, ok)
        assert all(w in str(e.value) for w in words), str(e.value)
    with pytest.raises(EffcError, match=r"x1.*\(4, 4\)"):
        m(ok, f32(4, 4))
    with pytest.raises(EffcError, match="missing argument 1"):
        m(ok)
    with pytest.raises(EffcError, match="unexpected positional"):
        m(ok, ok, ok)
    with pytest.raises(EffcError, match=r"unexpected keyword.*'foo'"):
        m(ok, ok, foo=1)
    with pytest.raises(EffcError, match=r"missing input.*'x1'"):
        m.run({"x0": ok})
    with pytest.raises(EffcError, match="no entry point"):
        m.entry("nothing")


def adder(path: Path) -> Any:
    values = [tensor(["s0", 4], "input", i=0), tensor(["s0", 4], "input", i=1), tensor(["s0", 4], "output", i=0)]
    symbols = [dim_symbol("s0", 0, 0, 0, 64)]
    return load(save(path, program(values, [add(0, 1, 2)], [0, 1], [2], symbols=symbols)))


def test_layouts_of_calls_that_repeat(tmp_path: Path) -> None:
    """The second call of a layout takes what the first one left; any other is looked at anew."""
    m = adder(tmp_path / "m.effc")
    entry = m._default
    arrays = [f32(3, 4), f32(4, 3).T, f32(6, 8)[::2, ::2], f32(0, 4), f32(1, 4), np.broadcast_to(f32(4), (3, 4))]
    kept = []
    for _ in range(3):
        for x in arrays:
            y = np.asarray(f32(*x.shape))
            kept.append((m(x, y), x + y))
            np.testing.assert_array_equal(m.run({"x0": y, "x1": x})["y0"], x + y)
    assert len(entry._layouts) == 9  # (x, y) and (y, x) are one where both are row-major
    for got, want in kept:  # results are new arrays
        np.testing.assert_array_equal(got, want)
    assert all(len(layout.spare) == 1 for layout in entry._layouts.values())
    ok = f32(3, 4)
    for bad, words in [
        (f32(3, 5), "4"),
        (ok.astype(np.float64), "float64"),
        (ok.astype(">f4"), "dtype"),
        ([ok], "array"),
    ]:
        for args in ((bad, ok), (ok, bad)):
            with pytest.raises(EffcError, match=words):
                m(*args)
    fields = np.zeros((3, 4), np.dtype({"names": ["x"], "formats": ["f4"], "offsets": [0], "itemsize": 6}))["x"]
    fields[...] = ok
    for _ in range(2):  # no whole elements apart: copied at each call
        np.testing.assert_array_equal(m(fields, ok), ok + ok)
    assert len(entry._layouts) == 9


def test_layouts_of_tensors_that_repeat(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    m = adder(tmp_path / "m.effc")
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    for a, b in [(x, y), (y, x), (torch.randn(4, 3).t(), y), (x, torch.randn(4).expand(3, 4)), (x, y)]:
        for _ in range(2):
            got = m(a, b)
            assert type(got) is torch.Tensor and torch.equal(got, a + b)
    assert len(m._default._layouts) == 3
    assert isinstance(m(x.numpy(), y.numpy()), np.ndarray)
    assert isinstance(m(x.numpy(), y), torch.Tensor)
    z = torch.randn(3, 4, dtype=torch.complex64)
    assert torch.equal(m(z.conj().imag.clone(), x), x - z.imag)
    assert torch.equal(m(z.conj().imag, x), x - z.imag)  # negative by a bit
    for bad, words in [(x.double(), "float64"), (x.to_sparse(), "layout"), (torch.zeros(3, 4, device="meta"), "meta")]:
        with pytest.raises(EffcError, match=words):
            m(x, bad)


def test_layouts_are_bounded_and_shared_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = adder(tmp_path / "m.effc")
    monkeypatch.setattr(layouts, "MOST", 5)
    for n in range(20):
        x = f32(n, 4)
        np.testing.assert_array_equal(m(x, x), x + x)
    assert 1 <= len(m._default._layouts) <= 5
    x = f32(60, 4)
    m(x, x)
    wrong = []

    def many(k: int) -> None:
        a, session = np.full((60, 4), k, np.float32), m.session()
        for _ in range(200):
            if not (session(a, x) == a + x).all():
                wrong.append(k)

    threads = [threading.Thread(target=many, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    (layout,) = (v for k, v in m._default._layouts.items() if k[1] == (60, 4))
    assert 1 <= len(layout.spare) <= 4


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages in this kernel")
def test_large_torch_results_ask_for_huge_pages(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    n = 3 << 20  # 12 MiB
    values = [tensor([n], "input", i=0), tensor([n], "output", i=0)]
    m = load(save(tmp_path / "m.effc", program(values, [scale(0, 1, 2.0, 1)], [0], [1])))
    x = torch.randn(n)
    y = m(x)
    torch.testing.assert_close(y, x * 2 + 1)
    assert "hg" in flags_at(y.data_ptr() + (6 << 20))


def flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds ``address`` (proc(5), VmFlags of smaps)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0]:
            low, high = (int(part, 16) for part in head[0].split("-"))
            inside = low <= address < high
        elif inside and head[0] == "VmFlags:":
            return head[1:]
    raise AssertionError(f"nothing is mapped at {address:#x}")
