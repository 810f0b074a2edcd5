"""Sorting and selection against PyTorch, ties and NaN included: values and indices must be PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
from torch_compare import CPUS, SIZE, run, same

torch = pytest.importorskip("torch")

DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}


def tied(seed: int, shape: tuple[int, ...], dtype: str, nan: bool = False) -> Any:
    """Few distinct values; NaN, infinities and negative zeros on demand."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-9, 10, shape, generator=g)
    if dtype == "u8":
        x = x.abs()
    y = x.to(DTYPES[dtype]) if dtype != "bool" else x > 0
    if nan and y.dtype.is_floating_point:
        for value, share in ((float("nan"), 0.08), (float("inf"), 0.05), (-0.0, 0.05)):
            y = torch.where(torch.rand(shape, generator=g) < share, torch.tensor(value, dtype=y.dtype), y)
    return y


SHAPES = [((7,), 0), ((16, 3), 0), ((17, 4), 0), ((3, 40), 1), ((2, 300, 2), 1), ((1500,), 0), ((5, 1), 1)]


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sort(cpu: str, dtype: str) -> None:
    for k, (shape, dim) in enumerate(SHAPES):
        for descending in (False, True):
            for stable in (False, True):
                x = tied(k, shape, dtype, nan=True)
                want = torch.sort(x, dim=dim, descending=descending, stable=stable)
                same(run(cpu, "sort", [x], reference=stable, dim=dim, descending=descending, stable=stable), want)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "bool"])
def test_selection(cpu: str, dtype: str) -> None:
    for seed, (shape, dim) in enumerate(SHAPES):
        n = shape[dim]
        x = tied(seed, shape, dtype, nan=True)
        for k in {1, 2, n // 2, n} - {0}:
            if k > n:
                continue
            for largest in (False, True):
                want = torch.topk(x, k, dim, largest=largest)
                same(run(cpu, "topk", [x], reference=False, k=k, dim=dim, largest=largest), want)
            want = torch.topk(x, k, dim, sorted=False)
            same(run(cpu, "topk", [x], reference=False, k=k, dim=dim, sorted=False), want)
            want = torch.kthvalue(x, k, dim)
            same(run(cpu, "kthvalue", [x], reference=False, k=k, dim=dim), want)
        for keep in (False, True):
            same(run(cpu, "median", [x], dim=dim, keepdim=keep), torch.median(x, dim, keep))
            same(run(cpu, "median", [x], dim=dim, keepdim=keep, ignore_nan=True), torch.nanmedian(x, dim, keep))


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mode_and_unique(cpu: str, dtype: str) -> None:
    for seed, (shape, dim) in enumerate(SHAPES):
        x = tied(seed, shape, dtype)
        same(run(cpu, "mode", [x], reference=False, dim=dim), torch.mode(x, dim))
        for name, want in (
            ("unique", torch.unique(x, return_inverse=True, return_counts=True)),
            ("unique_consecutive", torch.unique_consecutive(x, return_inverse=True, return_counts=True)),
        ):
            same(run(cpu, name, [x], size=SIZE), want)
        for consecutive, f in ((False, torch.unique), (True, torch.unique_consecutive)):
            want = f(x, return_inverse=True, return_counts=True, dim=dim)
            same(run(cpu, "unique_dim", [x], dim=dim, consecutive=consecutive, size=SIZE), want)
    if DTYPES[dtype].is_floating_point:
        x = tied(5, (60,), dtype, nan=True)
        got = run(cpu, "unique", [x], reference=False, size=SIZE)
        want = torch.unique(x, return_inverse=True, return_counts=True)
        assert got[0].shape == tuple(want[0].shape) and got[2].tolist() == want[2].tolist()


@pytest.mark.parametrize("cpu", CPUS)
def test_few_of_many_without_ties(cpu: str) -> None:
    for n in (1, 3, 64, 129, 700):
        x = torch.randperm(3 * n, generator=torch.Generator().manual_seed(n)).reshape(3, n).float()
        for k in {1, 2, 8, 9} & set(range(n + 1)):
            for largest in (False, True):
                want = torch.topk(x, k, 1, largest=largest)
                same(run(cpu, "topk", [x], k=k, dim=1, largest=largest), want)
