"""Indexing, scattering, search and cumulative ops against PyTorch, and their errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_harness import KernelError
from program_runner import Compiled
from torch_compare import CPUS, SIZE, run, same

from effc.backends.cpu.target import parse
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Commit, State
from effc.ir.types import TensorType

torch = pytest.importorskip("torch")
ALL = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.int8,
    torch.bool,
    torch.complex64,
]
ids = {"ids": str}
every_cpu = pytest.mark.parametrize("cpu", CPUS)


def data(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.complex64 if dtype.is_complex else torch.float32) * 3
    return x > 0 if dtype == torch.bool else x.abs().to(dtype) if dtype == torch.uint8 else x.to(dtype)


def index(shape: tuple[int, ...], size: int, seed: int = 1, low: int = 0) -> Any:
    return torch.randint(low, size, shape, generator=torch.Generator().manual_seed(seed))


@every_cpu
@pytest.mark.parametrize("dtype", ALL, **ids)
def test_gather_and_take(cpu: str, dtype: Any) -> None:
    x = data((5, 6, 33), dtype)
    for dim in range(3):
        shape = tuple(n if i == dim else n - 1 for i, n in enumerate((5, 6, 33)))
        i = index(shape, x.shape[dim])
        same(run(cpu, "gather", [x, i], dim=dim), torch.gather(x, dim, i))
        j = index((40,), x.shape[dim])
        same(run(cpu, "take", [x, j], dim=dim), torch.index_select(x, dim, j))
    same(run(cpu, "take", [x[0], index((2, 7), 6)], dim=0), x[0][index((2, 7), 6)])


@every_cpu
@pytest.mark.parametrize("dtype", ALL, **ids)
def test_advanced_indexing(cpu: str, dtype: Any) -> None:
    x = data((4, 5, 6, 7), dtype)
    a, b = index((3, 1), 5, low=-4), index((2,), 4, 2, low=-4)
    for dims, keys in [
        ((1,), (a,)),
        ((0, 1), (b, a)),
        ((1, 2), (a, b)),
        ((0, 2), (b, a)),
        ((0, 1, 3), (b, b, a)),
        ((1, 3), (b, b)),
        ((0, 1, 2, 3), (b, b, b, b)),
    ]:
        key = [slice(None)] * 4
        for d, k in zip(dims, keys, strict=True):
            key[d] = k
        want = x[tuple(key)]
        same(run(cpu, "index", [x, *keys], dims=dims), want)
        values = data(tuple(want.shape), dtype, 3)
        if dtype == torch.bool:
            continue
        total = torch.ops.aten.index_put(x, [k if isinstance(k, torch.Tensor) else None for k in key], values, True)
        same(run(cpu, "index_put", [x, values, *keys], dims=dims, accumulate=True), total)


@every_cpu
@pytest.mark.parametrize("dtype", ALL, **ids)
@pytest.mark.parametrize("reduce", ["none", "sum", "prod", "amax", "amin", "mean"])
def test_scatter(cpu: str, dtype: Any, reduce: str) -> None:
    if (dtype.is_complex and reduce not in ("none", "sum")) or (dtype == torch.bool and reduce == "mean"):
        pytest.skip("torch has no such scatter")
    for shape, dim in [((6, 40), 0), ((6, 40), 1), ((3, 5, 4), 1), ((9,), 0), ((2, 3, 300), 0), ((70, 2, 3), 0)]:
        x = data(shape, dtype)
        if reduce == "none":  # without duplicates the order of writes is no matter
            line = torch.randperm(shape[dim], generator=torch.Generator().manual_seed(2))[: max(shape[dim] // 2, 1)]
            where = tuple(len(line) if i == dim else n for i, n in enumerate(shape))
            i = line.reshape([-1 if k == dim else 1 for k in range(len(shape))]).expand(where)
            src = data(where, dtype, 5)
            same(run(cpu, "scatter", [x, i, src], dim=dim), torch.scatter(x, dim, i, src))
            continue
        where = tuple(n + 3 if i == dim else max(n - 1, 1) for i, n in enumerate(shape))
        i, src = index(where, shape[dim]), data(where, dtype, 5)
        for self in (True, False):
            if dtype.is_complex:
                if not self:
                    continue
                want = torch.scatter_add(x, dim, i, src)
            else:
                want = torch.scatter_reduce(x, dim, i, src, reduce, include_self=self)
            same(run(cpu, "scatter", [x, i, src], dim=dim, reduce=reduce, include_self=self), want)


@every_cpu
def test_scatter_extrema_take_nan(cpu: str) -> None:
    x, src = data((5, 8), torch.float32), data((7, 8), torch.float32, 2)
    x[1, 2] = src[3, 4] = src[0, 0] = float("nan")
    i = index((7, 8), 5)
    for reduce in ("amax", "amin"):
        for self in (True, False):
            want = torch.scatter_reduce(x, 0, i, src, reduce, include_self=self)
            same(run(cpu, "scatter", [x, i, src], dim=0, reduce=reduce, include_self=self), want)


@every_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.float16], **ids)
def test_slices_by_index(cpu: str, dtype: Any) -> None:
    for shape, dim in [((6, 40), 0), ((6, 40), 1), ((3, 5, 4), 1)]:
        x, n = data(shape, dtype), shape[dim] + 2
        where = tuple(n if i == dim else s for i, s in enumerate(shape))
        i, src = index((n,), shape[dim]), data(where, dtype, 4)
        same(run(cpu, "index_add", [x, i, src], dim=dim), torch.index_add(x, dim, i, src))
        fill = torch.tensor(3, dtype=dtype)
        same(run(cpu, "index_fill", [x, i, fill], dim=dim), torch.index_fill(x, dim, i, fill))
        few = torch.randperm(shape[dim])[:2]
        part = data(tuple(2 if k == dim else s for k, s in enumerate(shape)), dtype, 6)
        same(run(cpu, "index_copy", [x, few, part], dim=dim), torch.index_copy(x, dim, few, part))
        if dtype == torch.float32:
            for reduce in ("prod", "mean", "amax", "amin"):
                for self in (True, False):
                    want = torch.index_reduce(x, dim, i, src, reduce, include_self=self)
                    same(run(cpu, "index_reduce", [x, i, src], dim=dim, reduce=reduce, include_self=self), want)


@every_cpu
@pytest.mark.parametrize("dtype", ALL, **ids)
def test_masks(cpu: str, dtype: Any) -> None:
    for shape in [(7, 9), (), (0, 4), (70_001,)]:
        x = data(shape, dtype)
        mask = data(shape, torch.float32, 8) > 1
        same(run(cpu, "masked_select", [x, mask], size=SIZE), torch.masked_select(x, mask))
        source = data((x.numel() + 1,), dtype, 9)
        same(run(cpu, "masked_scatter", [x, mask, source]), torch.masked_scatter(x, mask, source))
        zeros = torch.where(mask, x, torch.zeros((), dtype=dtype))
        same(run(cpu, "nonzero", [zeros], size=SIZE), torch.nonzero(zeros))


@every_cpu
def test_nonzero_of_special_values(cpu: str) -> None:
    x = torch.tensor([0.0, -0.0, float("nan"), 1e-45, float("-inf")])
    for y in (x, x.double(), x.to(torch.bfloat16), torch.complex(x, torch.zeros(5)), torch.complex(-torch.zeros(5), x)):
        same(run(cpu, "nonzero", [y], size=SIZE), torch.nonzero(y))


@every_cpu
def test_search_and_counts(cpu: str) -> None:
    for dtype in (torch.float32, torch.int32, torch.int64, torch.float16):
        seq, values = torch.sort(data((4, 30), dtype))[0], data((4, 17), dtype, 2)
        for right in (False, True):
            same(
                run(cpu, "searchsorted", [seq, values, None], right=right), torch.searchsorted(seq, values, right=right)
            )
            same(
                run(cpu, "searchsorted", [seq[0], values, None], right=right),
                torch.bucketize(values, seq[0], right=right),
            )
    nan = torch.tensor([float("nan"), 1.0])
    same(
        run(cpu, "searchsorted", [torch.arange(3.0), nan, None], reference=False),
        torch.searchsorted(torch.arange(3.0), nan),
    )
    i, w = index((300,), 40), data((300,), torch.float64)
    same(run(cpu, "bincount", [i, None], size=SIZE), torch.bincount(i))
    same(run(cpu, "bincount", [i, w], minlength=99, size=SIZE), torch.bincount(i, w, 99))
    x = data((500,), torch.float64)
    for bins, lo, hi in [(10, 0.0, 0.0), (7, -2.0, 2.0)]:
        same(run(cpu, "histc", [x], bins=bins, lo=lo, hi=hi), torch.histc(x, bins, lo, hi))
    edges = torch.linspace(-3, 3, 12, dtype=torch.float64)
    for weights in (None, data((500,), torch.float64, 4)):
        same(run(cpu, "histogram", [x[:, None], weights, edges]), torch.histogram(x, edges, weight=weights)[0])
    points = data((200, 2), torch.float64)
    same(run(cpu, "histogram", [points, None, edges, edges[:5]]), torch.histogramdd(points, [edges, edges[:5]])[0])
    same(run(cpu, "repeat_interleave", [index((50,), 4)], size=SIZE), torch.repeat_interleave(index((50,), 4)))


@every_cpu
def test_sizes_that_are_known(cpu: str) -> None:
    """A size given as a number is checked against the data."""
    x = torch.tensor([3.0, 0, 1, 3, 0])
    mask = x > 0
    for name, inputs, attrs, n, want in [
        ("nonzero", [x], {}, 3, torch.nonzero(x)),
        ("masked_select", [x, mask], {}, 3, x[mask]),
        ("repeat_interleave", [x.long()], {}, 7, torch.repeat_interleave(x.long())),
        ("bincount", [x.long(), None], {}, 4, torch.bincount(x.long())),
        ("unique", [x], {}, 3, torch.unique(x, return_inverse=True, return_counts=True)),
        ("unique_dim", [x], {"dim": 0}, 3, torch.unique(x, return_inverse=True, return_counts=True)),
    ]:
        same(run(cpu, name, inputs, size=n, **attrs), want)
        with pytest.raises(KernelError, match=f"a size of {n} where {n + 1}"):
            run(cpu, name, inputs, reference=False, size=n + 1, **attrs)
    empty = torch.zeros(0, 3)
    same(run(cpu, "nonzero", [empty], size=0), torch.nonzero(empty))


@every_cpu
def test_embedding_bag(cpu: str) -> None:
    table, i = data((20, 300), torch.float32), index((50,), 20)
    offsets = torch.tensor([0, 10, 10, 45])
    f = torch.nn.functional.embedding_bag
    for mode in ("sum", "mean", "max"):
        for pad in (None, 3):
            got = run(
                cpu, "embedding_bag", [table, i, offsets, None], mode=mode, padding_idx=-1 if pad is None else pad
            )
            same(got, f(i, table, offsets, mode=mode, padding_idx=pad))
    w = data((50,), torch.float32, 3)
    same(
        run(cpu, "embedding_bag", [table, i, offsets, w], mode="sum"),
        f(i, table, offsets, mode="sum", per_sample_weights=w),
    )


@every_cpu
@pytest.mark.parametrize("dtype", [d for d in ALL if d != torch.bool], **ids)
def test_cumulative(cpu: str, dtype: Any) -> None:
    for shape, dim in [
        ((5, 200), 1),
        ((200, 5), 0),
        ((3, 50, 70), 1),
        ((90_000,), 0),
        ((2, 70_000), 1),
        ((0, 3), 0),
        ((1,), 0),
    ]:
        x = data(shape, dtype)
        if x.numel() < 50_000 or not dtype.is_floating_point or dtype in (torch.float32, torch.float64):
            same(run(cpu, "cumsum", [x], dim=dim), torch.cumsum(x, dim, dtype=dtype))
        near = 1 + data(shape, dtype) / 1000 if dtype.is_floating_point or dtype.is_complex else x
        if x.numel() < 50_000:
            same(run(cpu, "cumprod", [near], dim=dim), torch.cumprod(near, dim, dtype=dtype))
        if not dtype.is_complex and x.numel() < 50_000:
            if dtype.is_floating_point and x.numel() > 50:
                x.view(-1)[::37] = float("nan")
            same(run(cpu, "cummax", [x], dim=dim), torch.cummax(x, dim))
            same(run(cpu, "cummin", [x], dim=dim), torch.cummin(x, dim))
        if (dtype.is_floating_point or dtype.is_complex) and x.numel() < 5_000:
            y = data(shape, dtype, 3) * 10
            same(run(cpu, "logcumsumexp", [y], dim=dim), torch.logcumsumexp(y, dim))


@every_cpu
def test_logcumsumexp_of_infinities(cpu: str) -> None:
    inf = float("inf")
    for line in ([-inf, -inf, 1.0, inf, 2.0, inf], [inf, -inf, 0.0], [1.0, float("nan"), 2.0, inf]):
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor(line, dtype=dtype)
            same(run(cpu, "logcumsumexp", [x], reference=False, dim=0), torch.logcumsumexp(x, 0))


@every_cpu
def test_data_errors(cpu: str) -> None:
    x, bad = data((4, 5), torch.float32), torch.tensor([1, 7])
    for name, inputs, attrs in [
        ("take", [x, bad], {"dim": 0}),
        ("take", [x[:, :0], bad], {"dim": 0}),
        ("take", [x[:0], bad], {"dim": 0}),
        ("gather", [x, bad[None].expand(1, 2)], {"dim": 1}),
        ("gather", [x[:0], bad[:, None]], {"dim": 0}),
        ("index", [x, -bad], {"dims": (1,)}),
        ("index_put", [x, data((2, 5), torch.float32), bad], {"dims": (0,)}),
        ("scatter", [x, bad[:, None], x[:2, :1]], {"dim": 0}),
        ("embedding_bag", [x, bad, torch.tensor([0]), None], {}),
    ]:
        with pytest.raises(KernelError, match=r"[17] is out of range"):
            run(cpu, name, inputs, reference=False, **attrs)
    with pytest.raises(KernelError, match="selects"):
        run(cpu, "masked_scatter", [x, x > -100, x[0]], reference=False)
    with pytest.raises(KernelError, match="negative"):
        run(cpu, "repeat_interleave", [torch.tensor([1, -2])], reference=False, size=SIZE)
    with pytest.raises(KernelError, match="negative"):
        run(cpu, "bincount", [torch.tensor([1, -2]), None], reference=False, size=SIZE)
    with pytest.raises(KernelError, match="offset"):
        run(cpu, "embedding_bag", [x, torch.tensor([0]), torch.tensor([0, 2]), None], reference=False)


@every_cpu
def test_last_write_wins_at_any_thread_count(cpu: str) -> None:
    x, values, i = torch.zeros(10, 40), data((500, 40), torch.float32), index((500,), 10)
    want = x.clone()
    for k in range(500):
        want[i[k]] = values[k]
    same(run(cpu, "index_put", [x, values, i], dims=(0,)), want)
    same(run(cpu, "index_copy", [x, i, values], dim=0), want)


@pytest.mark.parametrize("op", ["index_put", "scatter", "slice_scatter", "select_scatter"])
def test_a_cache_is_written_in_place(op: str) -> None:
    """A state that is scattered into and committed shares its storage with the result: only the new rows are
    written."""
    b = Builder()
    cache = TensorType(DType.f32, (2, 64, 8))
    k = b.node("state", (), {"name": "k", "type": cache})[0]
    if op in ("slice_scatter", "select_scatter"):
        new = b.input("new", TensorType(DType.f32, (2, 3, 8) if op == "slice_scatter" else (2, 8)))
        attrs: dict[str, Any] = (
            {"starts": (0, 5, 0), "stops": (2, 8, 8), "steps": (1, 1, 1)}
            if op == "slice_scatter"
            else {"dim": 1, "index": 9}
        )
        out = b.op(op, k, new, **attrs)
    elif op == "index_put":
        new, at = b.input("new", TensorType(DType.f32, (2, 3, 8))), b.input("at", TensorType(DType.i64, (3,)))
        out = b.op("index_put", k, new, at, dims=(1,))
    else:
        new, at = b.input("new", TensorType(DType.f32, (2, 3, 8))), b.input("at", TensorType(DType.i64, (2, 3, 8)))
        out = b.op("scatter", k, at, new, dim=1)
    total = b.op("reduce", out, kind="sum", dims=(0, 1, 2))
    g = b.graph(
        [total], commits=(Commit(out, state="k"),), states={"k": State(cache, np.zeros((2, 64, 8), np.float32))}
    )
    program = Compiled(g, parse(CPUS[0])).program
    call = next(c for c in program["code"] if c["kernel"] in ("effc_index_put", "effc_scatter", "effc_copy_into"))
    result = program["values"][call["out"][0]]
    assert "alias" in result and program["values"][result["alias"]]["k"] == "state"


@every_cpu
def test_assert(cpu: str) -> None:
    b = Builder()
    x = b.input("x", TensorType(DType.i64, (3,)))
    b.op(
        "assert",
        b.op("reduce", b.op("gt", x, b.constant(0, DType.i64)), kind="all", dims=(0,)),
        message="größer als 0: %s",
    )
    compiled = Compiled(b.graph([b.op("add", x, x)]), parse(cpu))
    assert compiled.run([np.array([1, 2, 3])])[0].tolist() == [2, 4, 6]
    with pytest.raises(KernelError, match="größer als 0: %s"):
        compiled.run([np.array([1, 0, 3])])
