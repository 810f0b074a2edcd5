"""Random kernels: Philox itself, distributions (Kolmogorov-Smirnov or chi-square), independence of threads, bad
parameters."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernel_harness import KernelError, KernelLibrary, available_isas
from program_runner import Compiled

from effc.backends.cpu.target import parse
from effc.ir import dims, interp
from effc.ir.dtypes import DType
from effc.ir.graph import Builder
from effc.ir.types import TensorType

stats = pytest.importorskip("scipy.stats")
N = 60_000


@pytest.fixture(scope="module", params=available_isas())
def lib(request: Any) -> KernelLibrary:
    return KernelLibrary(["random.cpp"], request.param)


def test_philox_known_answer(lib: KernelLibrary) -> None:
    """The published vector: counter 0, key 0."""
    out = np.empty(4, np.float32)
    lib.call("effc_rand_uniform", [], [out], fattrs=[0, 1], seed=0)
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert out.tolist() == [(w >> 8) / 2**24 for w in words]


def fits(sample: Any, cdf: Any) -> None:
    assert stats.kstest(sample.astype(np.float64).reshape(-1), cdf).pvalue > 1e-3


CONTINUOUS = {
    "effc_rand_uniform": ([-2.0, 3.0], stats.uniform(-2, 5).cdf),
    "effc_rand_normal": ([1.0, 2.0], stats.norm(1, 2).cdf),
    "effc_log_normal": ([0.3, 0.5], stats.lognorm(0.5, scale=np.exp(0.3)).cdf),
    "effc_exponential": ([2.5], stats.expon(scale=0.4).cdf),
    "effc_cauchy": ([0.5, 2.0], stats.cauchy(0.5, 2).cdf),
}


@pytest.mark.parametrize("kernel", CONTINUOUS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_continuous(lib: KernelLibrary, kernel: str, dtype: Any) -> None:
    params, cdf = CONTINUOUS[kernel]
    runs = []
    for mode in ({}, {"mode": "reverse", "threads": 3}, {"mode": "threads", "threads": 2}):
        out = np.empty((N // 3 + 1, 3), dtype)
        lib.call(kernel, [], [out], fattrs=params, seed=7, **mode)
        runs.append(out)
    assert all(np.array_equal(r, runs[0]) for r in runs)
    fits(runs[0], cdf)
    other = np.empty_like(runs[0])
    lib.call(kernel, [], [other], fattrs=params, seed=8)
    assert not np.array_equal(other, runs[0])
    assert abs(np.corrcoef(stats.rankdata(other), stats.rankdata(runs[0]))[0, 1]) < 0.02
    flat = stats.rankdata(runs[0].reshape(-1))
    assert abs(np.corrcoef(flat[1:], flat[:-1])[0, 1]) < 0.02
    lib.call(kernel, [], [np.empty((0, 3), dtype)], fattrs=params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_short_floats_stay_in_range(lib: KernelLibrary, dtype: Any) -> None:
    out = np.empty(N, dtype)
    lib.call("effc_rand_uniform", [], [out], fattrs=[0, 1], seed=1)
    x = out.astype(np.float64)
    assert x.min() >= 0 and x.max() < 1 and abs(x.mean() - 0.5) < 0.01
    lib.call("effc_rand_normal", [], [out], fattrs=[0, 1], seed=1)
    x = out.astype(np.float64)
    assert abs(x.mean()) < 0.03 and abs(x.std() - 1) < 0.03


def chi_square(sample: Any, pmf: Any) -> None:
    """Counts against a probability mass function on 0 .. max."""
    top = int(sample.max()) + 1
    seen = np.bincount(sample.astype(np.int64).reshape(-1), minlength=top)
    expected = pmf(np.arange(top)) * sample.size
    keep = expected > 10
    rest = sample.size - expected[keep].sum()
    if rest > 5:
        seen, expected = np.append(seen[keep], seen[~keep].sum()), np.append(expected[keep], rest)
    else:
        seen, expected = seen[keep], expected[keep]
    assert ((seen - expected) ** 2 / expected).sum() < stats.chi2(len(expected) - 1 + (len(expected) == 1)).ppf(0.999)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float32])
def test_integers(lib: KernelLibrary, dtype: Any) -> None:
    out = np.empty(N, dtype)
    lib.call("effc_rand_int", [], [out], attrs=[3, 20], seed=3, mode="reverse", threads=2)
    assert out.min() == 3 and out.max() == 19
    chi_square(out - 3, lambda k: np.full(len(k), 1 / 17))
    lib.call("effc_geometric", [], [out], fattrs=[0.3], seed=3)
    chi_square(out, stats.geom(0.3).pmf)


def test_wide_integers_and_bad_ranges(lib: KernelLibrary) -> None:
    out = np.empty(1000, np.int64)
    low, high = -(2**63), 2**63 - 1
    lib.call("effc_rand_int", [], [out], attrs=[low, high], seed=3)
    assert (out < 0).any() and (out > 0).any() and len(set(out.tolist())) == 1000
    with pytest.raises(KernelError, match="empty"):
        lib.call("effc_rand_int", [], [out], attrs=[5, 5])


def test_bernoulli(lib: KernelLibrary) -> None:
    p = np.linspace(0, 1, N).astype(np.float32)
    for dtype in (np.float32, np.bool_, np.int64):
        out = np.empty(N, dtype)
        lib.call("effc_bernoulli", [p], [out], seed=5)
        x = out.astype(np.float64)
        assert set(np.unique(x)) <= {0.0, 1.0}
        for k in range(0, N, N // 5):
            part = slice(k, k + N // 5)
            assert abs(x[part].mean() - p[part].mean()) < 0.02
    lib.call("effc_bernoulli", [np.array([0.0, 1.0], np.float32)], [out := np.empty(2, np.float32)])
    assert out.tolist() == [0, 1]
    with pytest.raises(KernelError, match="not in"):
        lib.call("effc_bernoulli", [np.array([1.5], np.float32)], [np.empty(1, np.float32)])


@pytest.mark.parametrize("rate", [0.0, 0.4, 9.0, 12.0, 300.0])
def test_poisson(lib: KernelLibrary, rate: float) -> None:
    out = np.empty(N, np.float64)
    lib.call("effc_poisson", [np.full(N, rate)], [out], seed=11, mode="reverse", threads=2)
    if rate == 0:
        assert not out.any()
    else:
        chi_square(out, stats.poisson(rate).pmf)


@pytest.mark.parametrize("alpha", [0.2, 0.9, 1.0, 2.5, 40.0])
def test_gamma(lib: KernelLibrary, alpha: float) -> None:
    out = np.empty(N, np.float64)
    lib.call("effc_gamma", [np.full(N, alpha)], [out], seed=12)
    fits(out, stats.gamma(alpha).cdf)


@pytest.mark.parametrize(
    "n,p", [(1, 0.3), (10, 0.5), (40, 0.9), (100, 0.02), (1000, 0.4), (500, 0.97), (20, 0.0), (20, 1.0)]
)
def test_binomial(lib: KernelLibrary, n: int, p: float) -> None:
    out = np.empty(N, np.float64)
    lib.call("effc_binomial", [np.full(N, float(n)), np.full(N, p)], [out], seed=13)
    if p in (0.0, 1.0):
        assert (out == n * p).all()
    else:
        chi_square(out, stats.binom(n, p).pmf)


def test_multinomial(lib: KernelLibrary) -> None:
    weights = np.array([[1.0, 0, 3, 6], [0, 5, 5, 0]], np.float32)
    out = np.empty((2, N), np.int64)
    lib.call("effc_multinomial", [weights], [out], attrs=[1], thread_scratch=64, seed=1)
    for row, w in zip(out, weights, strict=True):
        assert np.abs(np.bincount(row, minlength=4) / N - w / w.sum()).max() < 0.01
        assert not np.isin(row, np.flatnonzero(w == 0)).any()
    first = np.empty((N, 2), np.int64)
    many = np.repeat(weights[:1], N, 0)
    lib.call("effc_multinomial", [many], [first], attrs=[0], thread_scratch=64, seed=1, mode="reverse", threads=2)
    assert (first[:, 0] != first[:, 1]).all() and not (first == 1).any()
    assert np.abs(np.bincount(first[:, 0], minlength=4) / N - many[0] / 10).max() < 0.01
    after3 = first[first[:, 0] == 3, 1]
    assert np.abs(np.bincount(after3, minlength=4) / len(after3) - np.array([0.25, 0, 0.75, 0])).max() < 0.02
    for bad, match in (([[0.0, 0]], "not all 0"), ([[-1.0, 2]], ">= 0"), ([[np.nan, 1]], "finite")):
        with pytest.raises(KernelError, match=match):
            lib.call(
                "effc_multinomial",
                [np.array(bad, np.float32)],
                [np.empty((1, 2), np.int64)],
                attrs=[1],
                thread_scratch=32,
            )


def test_randperm(lib: KernelLibrary) -> None:
    for n in (0, 1, 2, 1000):
        out = np.empty(n, np.int64)
        lib.call("effc_randperm", [], [out], scratch=8 * n, seed=2)
        assert sorted(out.tolist()) == list(range(n))
    firsts = []
    for seed in range(600):
        lib.call("effc_randperm", [], [out := np.empty(3, np.int32)], scratch=24, seed=seed)
        firsts.append(tuple(out.tolist()))
    counts = [firsts.count(p) for p in set(firsts)]
    assert len(counts) == 6 and min(counts) > 60


CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("rand_uniform", (), {"lo": -1.0, "hi": 1.0}),
    ("rand_normal", (), {}),
    ("rand_int", (), {"hi": 9, "dtype": DType.i64}),
    ("exponential", (), {}),
    ("geometric", (), {"p": 0.4}),
    ("cauchy", (), {}),
    ("log_normal", (), {"dtype": DType.f64}),
    ("bernoulli", (np.full((3, 5), 0.5, np.float32),), {"dtype": DType.bool}),
    ("poisson", (np.full((3, 5), 2.0, np.float32),), {}),
    ("gamma", (np.full((3, 5), 2.0, np.float32),), {}),
    ("binomial", (np.full((4,), 9.0, np.float64), np.full((4,), 0.5)), {}),
    ("multinomial", (np.ones((2, 7), np.float32),), {"samples": 4}),
    ("randperm", (), {"n": 11}),
]


@pytest.mark.parametrize("name,inputs,attrs", CASES, ids=lambda c: c if isinstance(c, str) else "")
def test_lowering_and_reference_agree_on_types(name: str, inputs: Any, attrs: dict[str, Any]) -> None:
    b = Builder()
    args = [b.input(f"x{i}", TensorType(DType.from_np(x.dtype), x.shape)) for i, x in enumerate(inputs)]
    shape = {} if inputs or name == "randperm" else {"shape": (3, 5)}
    g = b.graph([b.op(name, *args, **attrs, **shape)])
    got = Compiled(g, parse(f"cpu:x86-64-{available_isas()[0]}")).run(list(inputs))[0]
    want = interp.run(g, list(inputs), seed=0)[0]
    assert got.dtype == want.dtype and got.shape == want.shape and np.isfinite(got.astype(np.float64)).all()
    assert dims.product(g.outputs[0].shape) == got.size
