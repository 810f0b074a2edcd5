"""Copies between all sorts of strides, concatenation, scatters into views, iota, fill and triangles."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernel_harness import KernelError, KernelLibrary, available_isas

DTYPES = [
    np.bool_,
    np.uint8,
    np.int16,
    np.float16,
    ml_dtypes.bfloat16,
    np.float32,
    np.int64,
    np.complex64,
    np.complex128,
]
MODES = [{"mode": "serial"}, {"mode": "reverse", "threads": 3}, {"mode": "threads", "threads": 2}]


@pytest.fixture(scope="module", params=available_isas())
def lib(request: Any) -> KernelLibrary:
    return KernelLibrary(["copy.cpp"], request.param)


def bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Arbitrary bit patterns (0/1 for bool)."""
    dt = np.dtype(dtype)
    if dt == np.bool_:
        return np.asarray(rng.random(shape) < 0.5)
    raw = rng.integers(0, 256, int(np.prod(shape)) * dt.itemsize, dtype=np.uint8)
    return raw.view(dt).reshape(shape)


def same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES, ids=lambda m: m["mode"])
def test_permutations(lib: KernelLibrary, dtype: Any, mode: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    for shape in [
        (),
        (1,),
        (0, 3),
        (37,),
        (65, 33),
        (7, 130),
        (3, 17, 5),
        (2, 9, 3, 70),
        (4, 2, 8, 16),
        (2, 3, 1, 5, 4),
        (129, 4),
    ]:
        x = bits(rng, shape, dtype)
        for _ in range(4):
            dims = rng.permutation(len(shape))
            src = x.transpose(dims)
            dst_order = rng.permutation(len(shape))
            dst = np.empty([src.shape[d] for d in dst_order], x.dtype).transpose(np.argsort(dst_order))
            lib.call("effc_copy", [src], [dst], **mode)
            assert same_bits(src, dst)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.complex128])
def test_steps_flips_and_broadcasts(lib: KernelLibrary, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    x = bits(rng, (12, 31, 40), dtype)
    for src in [
        x[::2, 1::3, ::-1],
        x[::-1, ::-1, ::-1],
        x[:, :, ::2],
        x[3],
        x[:, 4, 5:],
        x[::-3].transpose(2, 0, 1),
        np.broadcast_to(x[:, :1], (12, 9, 40)),
        np.broadcast_to(x[0, 0, 0], (5, 6)),
        np.broadcast_to(x[0, :, :1], (31, 33)),
    ]:
        dst = np.empty(src.shape, dtype)
        lib.call("effc_copy", [src], [dst])
        assert same_bits(src, dst)
        wide = bits(rng, tuple(2 * n + 1 for n in src.shape), dtype)
        expect = wide.copy()
        window = tuple(slice(1, None, 2) for _ in src.shape)
        expect[window] = src
        lib.call("effc_copy", [src], [wide[window]])
        assert same_bits(wide, expect)
        back = np.empty(src.shape, dtype)
        lib.call("effc_copy", [src], [back[tuple(slice(None, None, -1) for _ in src.shape)]])
        assert same_bits(back, src[tuple(slice(None, None, -1) for _ in src.shape)])


def test_random_views(lib: KernelLibrary) -> None:
    rng = np.random.default_rng(3)
    for _ in range(400):
        rank = int(rng.integers(1, 6))
        shape = tuple(int(n) for n in rng.integers(1, 20 if rank < 4 else 7, rank))
        x = bits(rng, shape, rng.choice([np.uint8, np.uint16, np.uint32, np.uint64]))
        cut = tuple(slice(int(rng.integers(0, n)), None, int(rng.choice([1, 1, 2, 3]))) for n in shape)
        src = x[cut].transpose(rng.permutation(rank))
        src = src[tuple(slice(None, None, -1 if rng.random() < 0.2 else 1) for _ in shape)]
        dst = np.empty(src.shape, x.dtype)
        lib.call("effc_copy", [src], [dst], mode="reverse", threads=2)
        assert same_bits(src, dst)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_transpose_with_threads(lib: KernelLibrary, dtype: Any) -> None:
    x = bits(np.random.default_rng(4), (513, 771), dtype)
    dst = np.empty((771, 513), x.dtype)
    lib.call("effc_copy", [x.T], [dst], mode="threads", threads=3)
    assert same_bits(dst, x.T)
    dst3 = np.empty((3, 513, 257), x.dtype)
    lib.call("effc_copy", [x.reshape(513, 257, 3).transpose(2, 0, 1)], [dst3], mode="threads", threads=3)
    assert same_bits(dst3, x.reshape(513, 257, 3).transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_concat(lib: KernelLibrary, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    for shapes, dim in [
        ([(3, 4), (3, 0), (3, 65)], 1),
        ([(2, 5), (7, 5)], 0),
        ([(2, 3, 4), (2, 9, 4)], 1),
        ([(5,)], 0),
        ([(0,), (0,)], 0),
    ]:
        xs = [bits(rng, s, dtype) for s in shapes]
        if len(shapes[0]) == 2:
            xs[0] = np.asfortranarray(xs[0])
        expect = np.concatenate(xs, axis=dim)
        out = np.empty_like(expect, order="C")
        lib.call("effc_concat", xs, [out], attrs=[dim], mode="reverse", threads=2)
        assert same_bits(out, expect)
    with pytest.raises(KernelError, match="operands have 4"):
        lib.call("effc_concat", [np.zeros(4, np.float32)], [np.zeros(5, np.float32)], attrs=[0])


def test_copy_into(lib: KernelLibrary) -> None:
    rng = np.random.default_rng(6)
    for dtype in DTYPES:
        base, src = bits(rng, (6, 9), dtype), bits(rng, (3, 4), dtype)
        expect = base.copy()
        expect[1:6:2, 2:6] = src
        out = np.empty_like(base)
        lib.call("effc_copy_into", [base, np.asfortranarray(src)], [out], attrs=[11, 18, 1])
        assert same_bits(out, expect)
        lib.call("effc_copy_into", [base, src], [base], attrs=[11, 18, 1])
        assert same_bits(base, expect)
    x = np.zeros((4, 4), np.float32)
    with pytest.raises(KernelError, match="outside"):
        lib.call("effc_copy_into", [x, np.ones((4,), np.float32)], [np.empty_like(x)], attrs=[1, 5])


@pytest.mark.parametrize(
    "dtype", [np.int64, np.int32, np.uint8, np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
)
def test_iota_and_fill(lib: KernelLibrary, dtype: Any) -> None:
    for shape, dim in [((100,), 0), ((3, 70), 1), ((70, 3), 0), ((2, 3, 4), 1), ((0,), 0), ((2, 0), 0)]:
        line = (5 - 2 * np.arange(shape[dim])).astype(dtype).reshape([-1 if i == dim else 1 for i in range(len(shape))])
        out = np.empty(shape, dtype)
        lib.call("effc_iota", [], [out], attrs=[dim, 5, -2, 0], mode="reverse", threads=2)
        assert same_bits(out, np.broadcast_to(line, shape))
    if np.dtype(dtype).kind not in "iu":
        out = np.empty(77, dtype)
        lib.call("effc_iota", [], [out], attrs=[0, 0, 0, 1], fattrs=[0.3, 0.01])
        np.testing.assert_array_max_ulp(
            out.astype(np.float64), (0.3 + np.arange(77) * 0.01).astype(dtype).astype(np.float64), 1
        )
    out = np.empty((3, 5), dtype)
    lib.call("effc_fill_int", [], [out], attrs=[7])
    assert same_bits(out, np.full((3, 5), 7, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_triangles(lib: KernelLibrary, dtype: Any) -> None:
    rng = np.random.default_rng(7)
    for shape in [(5, 5), (3, 70), (2, 40, 3), (0, 3), (3, 0), (1, 1)]:
        for k in (-50, -2, 0, 1, 60):
            x = bits(rng, shape, dtype)
            for upper, f in ((0, np.tril), (1, np.triu)):
                out = np.empty_like(x)
                expect = f(x, k) if x.size else x
                lib.call("effc_triangle", [x], [out], attrs=[upper, k], mode="reverse", threads=2)
                assert same_bits(out, expect)
                own = x.copy()
                lib.call("effc_triangle", [own], [own], attrs=[upper, k])
                assert same_bits(own, expect)
