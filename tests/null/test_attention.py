"""Attention kernels against torch's scaled_dot_product_attention and a float64 reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_harness as h

import effc.ir.ops  # noqa: F401  (fills the table)
from effc.backends.cpu.packing.gemm import panel_width
from effc.ir import OPS
from effc.ir.dtypes import DType

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
UNITS = ["attention_f32.cpp", "attention_f64.cpp", "attention_half.cpp"]
NAMES = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64", np.dtype(np.float16): "f16", BF16: "bf16"}
LIMITS = {"f32": 1e-5, "f64": 1e-12, "f16": 1e-3, "bf16": 8e-3}


@pytest.fixture(scope="module", params=h.available_isas())
def lib(request: Any) -> h.KernelLibrary:
    return h.KernelLibrary(UNITS, request.param)


def run(
    lib: h.KernelLibrary, q: Array, k: Array, v: Array, mask: Array | None = None, *, out: Array | None = None,
    scale: float | None = None, causal: bool = False, causal_offset: int = 0, softcap: float = 0.0,
    empty_nan: bool = False, threads: int = 1, mode: str = "serial",
) -> Array:  # fmt: skip
    acc = DType.from_np(q.dtype).compute
    nr, e, ev, lk = panel_width(acc, lib.vlen), q.shape[3], v.shape[3], k.shape[2]
    thread = acc.itemsize * (e * 512 + 2 * 300 * nr + ev * 512 + 300 * (e + ev) + 6 * 512 + 16)
    parts = min(16, lk // 256)
    scratch = 16 * parts * (ev + 2) * 64 * acc.itemsize if parts > 1 else 0
    full = (*q.shape[:3], k.shape[2])
    if out is None:
        out = np.full((*q.shape[:3], ev), 77).astype(q.dtype)
    lib.call(
        f"effc_attention_{NAMES[q.dtype]}", [q, k, v, None if mask is None else np.broadcast_to(mask, full)], [out],
        [int(causal), causal_offset, int(empty_nan), int(scale is None)], [scale or 0.0, softcap],
        scratch=scratch, thread_scratch=thread, threads=threads, mode=mode,
    )  # fmt: skip
    return out


def reference(q: Array, k: Array, v: Array, mask: Array | None = None, **attrs: Any) -> Array:
    defaults = {"scale": None, "causal": False, "causal_offset": 0, "softcap": 0.0, "empty_nan": False}
    f = OPS["attention"].numpy
    assert f is not None
    m = mask if mask is None or mask.dtype == bool else mask.astype(np.float64)
    x: Array = f(*(t.astype(np.float64) for t in (q, k, v)), m, **{**defaults, **attrs})
    return x


def check(got: Array, want: Array) -> None:
    np.testing.assert_array_equal(np.isnan(got.astype(np.float64)), np.isnan(want))
    if want.size:
        error = np.nanmax(np.abs(got.astype(np.float64) - want), initial=0)
        assert error <= LIMITS[NAMES[got.dtype]] * max(float(np.nanmax(np.abs(want), initial=0)), 1e-30)


def qkv(
    rng: np.random.Generator, b: int, hq: int, hk: int, lq: int, lk: int, e: int, ev: int, dtype: Any
) -> list[Array]:
    shapes = (b, hq, lq, e), (b, hk, lk, e), (b, hk, lk, ev)
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def strange(rng: np.random.Generator, x: Array) -> Array:
    choice = rng.integers(4)
    if choice == 1:
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    if choice == 2:
        return np.ascontiguousarray(x.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    if choice == 3:
        return np.repeat(x[:, :, ::-1], 2, axis=3)[:, :, ::-1, ::2]
    return x


@pytest.mark.parametrize("seed", range(48))
def test_random(lib: h.KernelLibrary, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = [np.float32, np.float32, np.float64, np.float16, BF16][seed % 5]
    for _ in range(4):
        lq, lk = (int(rng.choice([1, 2, 3, 15, 16, 17, 33, 64, 65, 97, 130, 200])) for _ in range(2))
        e, ev = (int(rng.choice([1, 3, 8, 16, 32, 40, 64, 80])) for _ in range(2))
        b, hk, group = int(rng.integers(1, 3)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
        q, k, v = (strange(rng, x) for x in qkv(rng, b, hk * group, hk, lq, lk, e, ev, dtype))
        attrs: dict[str, Any] = {}
        if rng.random() < 0.5:
            attrs |= {"causal": True, "causal_offset": int(rng.integers(-3, lk))}
        if rng.random() < 0.3:
            attrs["scale"] = 0.3
        if rng.random() < 0.2:
            attrs["softcap"] = 2.5
        mask = None
        shape = tuple(d if rng.random() < 0.6 else 1 for d in (b, hk * group, lq, lk))
        if rng.random() < 0.3:
            mask = rng.random(shape) < 0.7
        elif rng.random() < 0.3:
            mask = rng.standard_normal(shape).astype(dtype)
        attrs["empty_nan"] = bool(rng.random() < 0.3)
        out = strange(rng, np.full((b, hk * group, lq, ev), 5).astype(dtype))
        if not out.flags.writeable or 0 in out.strides:
            out = np.ascontiguousarray(out)
        got = run(
            lib,
            q,
            k,
            v,
            mask,
            out=out,
            threads=int(rng.integers(1, 4)),
            mode=str(rng.choice(["reverse", "threads"])),
            **attrs,
        )
        check(got, reference(q, k, v, mask, **attrs))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_against_torch(lib: h.KernelLibrary, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    q, k, v = (x.astype(np.float32) for x in qkv(rng, 2, 4, 2, 70, 110, 32, 32, np.float64))
    blocked = rng.random((2, 1, 70, 110)) < 0.5
    blocked[0, 0, 9] = True
    for attrs in (
        {},
        {"is_causal": True},
        {"attn_mask": ~blocked},
        {"attn_mask": np.where(blocked, -np.inf, 0.5).astype(np.float32)},
    ):
        t = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in (q, k, v)]
        masks = {n: torch.from_numpy(m) if isinstance(m, np.ndarray) else m for n, m in attrs.items()}
        if isinstance(attrs.get("attn_mask"), np.ndarray) and attrs["attn_mask"].dtype != bool:  # type: ignore[union-attr]
            masks["attn_mask"] = masks["attn_mask"].to(getattr(torch, dtype))
        want = torch.nn.functional.scaled_dot_product_attention(*t, **masks, enable_gqa=True).double().numpy()
        np_dtype = BF16 if dtype == "bfloat16" else np.dtype(dtype)
        m = attrs.get("attn_mask")
        m = m if m is None or m.dtype == bool else m.astype(np_dtype)  # type: ignore[union-attr]
        got = run(lib, *(x.astype(np_dtype) for x in (q, k, v)), m, causal="is_causal" in attrs)  # type: ignore[arg-type]
        limit = {"float32": 1e-5, "float64": 1e-10, "float16": 4e-3, "bfloat16": 2e-2}[dtype]
        assert np.isfinite(want).all() and np.abs(got.astype(np.float64) - want).max() <= limit * np.abs(want).max()


@pytest.mark.parametrize("lq,group,lk", [(1, 1, 1000), (1, 3, 4200), (4, 2, 513), (1, 1, 512), (70, 1, 900)])
def test_decode_splits_keys_the_same_for_any_number_of_threads(
    lib: h.KernelLibrary, lq: int, group: int, lk: int
) -> None:
    rng = np.random.default_rng(lk)
    q, k, v = qkv(rng, 1, 2 * group, 2, lq, lk, 64, 48, np.float32)
    attrs = {"causal": True, "causal_offset": lk - lq - 3}
    results = [
        run(lib, q, k, v, threads=t, mode=m, **attrs) for t, m in [(1, "serial"), (2, "threads"), (7, "reverse")]
    ]
    check(results[0], reference(q, k, v, **attrs))
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_lowest_number_as_mask_is_not_minus_infinity(lib: h.KernelLibrary) -> None:
    """A row masked everywhere with the lowest finite number attends evenly, as a softmax of equal scores does."""
    rng = np.random.default_rng(0)
    q, k, v = qkv(rng, 1, 1, 1, 5, 40, 16, 16, np.float32)
    mask = np.full((1, 1, 5, 40), np.finfo(np.float32).min, np.float32)
    check(run(lib, q, k, v, mask), np.broadcast_to(v.astype(np.float64).mean(2, keepdims=True), (1, 1, 5, 16)))


def test_large_scores_do_not_overflow(lib: h.KernelLibrary) -> None:
    rng = np.random.default_rng(0)
    q, k, v = qkv(rng, 1, 2, 2, 40, 300, 32, 32, np.float32)
    check(run(lib, q * 200, k, v, scale=10.0), reference(q * 200, k, v, scale=10.0))


def test_nan_stays_in_its_row(lib: h.KernelLibrary) -> None:
    rng = np.random.default_rng(0)
    q, k, v = qkv(rng, 1, 1, 1, 70, 130, 16, 16, np.float32)
    q[0, 0, 66, 3] = np.nan
    want = reference(q, k, v)
    assert np.isnan(want[0, 0, 66]).all()
    check(run(lib, q, k, v), want)


@pytest.mark.parametrize(
    "shape",
    [
        (0, 1, 1, 3, 3, 4, 4),
        (1, 2, 2, 0, 3, 4, 4),
        (1, 2, 2, 3, 0, 4, 4),
        (1, 2, 2, 3, 4, 0, 4),
        (1, 2, 2, 3, 4, 4, 0),
        (1, 0, 0, 3, 4, 4, 4),
    ],
)
def test_empty(lib: h.KernelLibrary, shape: tuple[int, ...]) -> None:
    q, k, v = qkv(np.random.default_rng(0), *shape, np.float32)
    check(run(lib, q, k, v), reference(q, k, v))


def test_scores_are_never_formed(lib: h.KernelLibrary) -> None:
    """Scratch does not grow with the length: the harness guards it and this length's scores would not fit."""
    rng = np.random.default_rng(0)
    q, k, v = qkv(rng, 1, 1, 1, 1024, 1024, 8, 8, np.float32)
    assert 4 * (8 * 512 + 2 * 300 * 64 + 8 * 512 + 300 * 16 + 6 * 512 + 16) < 4 * 1024 * 1024
    check(run(lib, q, k, v, causal=True), reference(q, k, v, causal=True))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True])
def test_long(lib: h.KernelLibrary, dtype: str, causal: bool) -> None:
    """Several blocks of queries and keys, rows that lie apart, scores that grow beyond any slack."""
    rng = np.random.default_rng(9)
    kind = BF16 if dtype == "bfloat16" else np.dtype(dtype)
    b, heads, length, e = 1, 2, 613, 40
    x = rng.standard_normal((b, length, 3 * heads, e))
    x[:, :, heads : 2 * heads] *= np.linspace(0.1, 6, length)[None, :, None, None]
    x = x.astype(kind)
    q, k, v = (x[:, :, i * heads : (i + 1) * heads].transpose(0, 2, 1, 3) for i in range(3))
    got = run(lib, q, k, v, causal=causal, threads=3, mode="threads")
    check(got, reference(q, k, v, causal=causal))
    assert np.array_equal(got, run(lib, q, k, v, causal=causal, mode="reverse", threads=2))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads,kv_heads,length", [(6, 6, 197), (6, 3, 289), (4, 1, 540), (2, 1, 66)])
def test_tasks_of_the_same_keys(
    lib: h.KernelLibrary, dtype: str, causal: bool, heads: int, kv_heads: int, length: int
) -> None:
    """Tasks with the copies of K and V that the task before left, or with more keys than it had, or with fewer queries:
    the same to the bit as a head alone, whatever the order of the tasks and whoever runs them."""
    rng = np.random.default_rng(12)
    x = rng.standard_normal((2, length, heads + 2 * kv_heads, 24)).astype(dtype)
    q, k, v = (y.transpose(0, 2, 1, 3) for y in np.split(x, [heads, heads + kv_heads], 2))
    got = run(lib, q, k, v, causal=causal)
    check(got, reference(q, k, v, causal=causal))
    for threads, mode in [(2, "threads"), (3, "threads"), (2, "reverse"), (5, "reverse")]:
        assert np.array_equal(got, run(lib, q, k, v, causal=causal, threads=threads, mode=mode))
    if length < 300 and not causal:  # one block of keys
        for i in range(heads):
            j = i * kv_heads // heads
            assert np.array_equal(got[1:, i : i + 1], run(lib, q[1:, i : i + 1], k[1:, j : j + 1], v[1:, j : j + 1]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_least_number_as_mask(lib: h.KernelLibrary, dtype: str) -> None:
    """The least finite number hides keys; where it hides all keys of a row, all of them count alike, as in torch."""
    rng = np.random.default_rng(10)
    q, k, v = qkv(rng, 2, 3, 3, 70, 400, 32, 32, dtype)
    mask = np.zeros((2, 1, 70, 400), dtype)
    mask[0, :, :, 250:] = np.finfo(dtype).min
    mask[1, :, 5] = np.finfo(dtype).min
    mask[1, :, 6] = np.finfo(dtype).max
    mask[1, :, 7] = -np.inf
    got = run(lib, q, k, v, mask)
    check(got, reference(q, k, v, mask))
    np.testing.assert_allclose(got[1, :, 5], v[1].mean(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FC00001, 0xFFC001FF])
def test_nan_of_any_payload(lib: h.KernelLibrary, payload: int) -> None:
    """A NaN stays one whatever its low bits are, and stays in its row."""
    rng = np.random.default_rng(11)
    q, k, v = qkv(rng, 1, 1, 1, 40, 300, 16, 16, np.float32)
    q[0, 0, 3, 2] = np.array([payload], np.uint32).view(np.float32)[0]
    got = run(lib, q, k, v)
    assert np.isnan(got[0, 0, 3]).all() and np.isfinite(np.delete(got[0, 0], 3, 0)).all()
