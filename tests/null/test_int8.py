"""Products of bytes (gemm_i8.cpp, conv_i8.cpp), exact against numpy's 64-bit sums, in every variant: AVX2 as it is,
VNNI and AMX through their software twins (twin_x86.hpp)."""

from __future__ import annotations

import itertools
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_harness as h

from effc.backends.cpu.packing import int8 as packing
from effc.backends.cpu.packing.conv import PackingError

Array = np.ndarray[Any, Any]
UNITS = ["gemm_i8.cpp", "conv_i8.cpp"]
TWIN = Path(__file__).parent / "twin_x86.hpp"
VARIANTS = ["avx2", "vnni256", "vnni512", "amx"]


class Variant:
    def __init__(self, name: str) -> None:
        self.name, self.split = name, name == "avx2"
        flags = [] if name == "avx2" else ["-include", str(TWIN), f"-DEFFC_TWIN_{name.upper()}", "-Wno-psabi"]
        if name == "vnni512":  # the library's vectors of 64 bytes, which the compiler makes of two
            flags += ["-UEFFC_VLEN", "-DEFFC_VLEN=64"]
        flags += ["-O1", f"-DTWIN_VERSION={zlib.crc32(TWIN.read_bytes())}"] if flags else []
        self.lib = h.KernelLibrary(UNITS, "v3", flags=flags)

    def matmul(self, a: Array, b: Array, za: Array, zb: Array, mode: str = "serial", threads: int = 1) -> Array:
        """a [b0, b1, M, K], b [K, N], za broadcasts to [b0, b1, M, 1], zb to [N]."""
        k, n = b.shape
        packed = packing.pack(b[None], np.broadcast_to(zb, (1, n)), split=self.split)
        out = np.full((*a.shape[:3], n), 0x5A5A5A5A, np.int32)
        z = np.broadcast_to(np.asarray(za, a.dtype), (*a.shape[:3], 1))
        self.lib.call("effc_qmatmul", [a, packed, z], [out], [k, n], thread_scratch=packing.THREAD_SCRATCH, mode=mode,
                      threads=threads)  # fmt: skip
        return out


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: Any) -> Variant:
    return Variant(request.param)


SIGMA = {"normal": 18, "tiny": 6}  # of ordered panels: some of their groups fit together by fours, or all


def bytes_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, kind: str = "any") -> Array:
    info = np.iinfo(dtype)
    if kind == "low":
        return np.full(shape, info.min, dtype)
    if kind == "high":
        return np.full(shape, info.max, dtype)
    if kind == "ends":
        return rng.choice(np.array([info.min, info.max], dtype), shape)
    if kind == "mixed":  # magnitudes of depth two in the first columns, of depth one in the last
        wide = bytes_of(rng, shape, dtype).reshape(-1, shape[-1])
        first = bytes_of(rng, shape, dtype, "small").reshape(-1, shape[-1])
        return np.where(np.arange(shape[-1]) < 20, first, wide).reshape(shape)
    if kind == "edge":  # just within and just beyond what 16 bits hold of 4 or 8 weights
        return (rng.choice([-17, -16, 16, 17, 32, -32], shape) + (0 if info.min else 128)).astype(dtype)
    if kind in SIGMA:
        return np.clip(rng.standard_normal(shape) * SIGMA[kind] + (0 if info.min else 128), info.min, info.max).astype(
            dtype
        )
    if kind == "small":
        return np.clip(rng.standard_normal(shape) * 30 + (0 if info.min else 128), info.min, info.max).astype(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def expected(a: Array, b: Array, za: Any, zb: Any) -> Array:
    x = a.astype(np.int64) - np.asarray(za).astype(np.int64)
    y = b.astype(np.int64) - np.asarray(zb).astype(np.int64)
    return np.matmul(x, y)


def test_every_tile_remainder(variant: Variant) -> None:
    """Rows 1 to 33, columns around multiples of 16, steps around multiples of 4 and 64."""
    rng = np.random.default_rng(1)
    for m, (n, k) in itertools.product(
        [*range(1, 34), 95, 96, 97], [(1, 1), (15, 3), (16, 64), (17, 65), (31, 63), (33, 130), (48, 5)]
    ):
        a, b = bytes_of(rng, (1, 1, m, k), np.uint8), bytes_of(rng, (k, n), np.int8)
        np.testing.assert_array_equal(
            variant.matmul(a, b, np.uint8(3), np.int8(0)), expected(a, b, 3, 0), f"{m} {n} {k}"
        )


@pytest.mark.parametrize("types", list(itertools.product([np.uint8, np.int8], repeat=2)), ids=str)
def test_types_zeros_and_extremes(variant: Variant, types: Any) -> None:
    rng = np.random.default_rng(2)
    ta, tb = types
    m, n, k = 21, 43, 1500  # two blocks of steps
    kinds = ["any", "low", "high", "ends", "small", "mixed"]
    for ka, kb in itertools.product(kinds, [*kinds, "normal", "tiny", "edge"]):
        a, b = bytes_of(rng, (1, 1, m, k), ta, ka), bytes_of(rng, (k, n), tb, kb)
        for za, zb in (
            (bytes_of(rng, (), ta, "ends"), np.zeros((), tb)),
            (bytes_of(rng, (), ta), bytes_of(rng, (n,), tb)),
            (bytes_of(rng, (1, 1, m, 1), ta, "ends"), bytes_of(rng, (n,), tb, "ends")),
        ):
            np.testing.assert_array_equal(variant.matmul(a, b, za, zb), expected(a, b, za, zb), f"{ka} {kb}")


def test_strides_batches_and_threads(variant: Variant) -> None:
    rng = np.random.default_rng(3)
    base = bytes_of(rng, (2, 130, 3, 70), np.int8)
    b = bytes_of(rng, (70, 300), np.int8)
    zb = bytes_of(rng, (300,), np.int8)
    for a in (
        base.transpose(0, 2, 1, 3),
        base.transpose(2, 0, 1, 3)[:, :, ::-1],
        base[:, :, :, ::-1].transpose(0, 2, 1, 3),
    ):
        za = bytes_of(rng, (*a.shape[:2], 1, 1), np.int8)
        want = expected(a, b, za, zb)
        for mode, threads in (("serial", 1), ("reverse", 5), ("threads", 4)):
            np.testing.assert_array_equal(variant.matmul(a, b, za, zb, mode, threads), want)
    a = bytes_of(rng, (1, 1, 70, 20), np.uint8).transpose(0, 1, 3, 2)  # columns of A in place
    np.testing.assert_array_equal(variant.matmul(a, b, np.uint8(255), zb), expected(a, b, 255, zb))


def test_empty(variant: Variant) -> None:
    for m, k, n in ((0, 4, 3), (3, 0, 4), (3, 4, 0)):
        a, b = np.zeros((1, 1, m, k), np.uint8), np.zeros((k, n), np.int8)
        for zb in (3, 0):
            np.testing.assert_array_equal(variant.matmul(a, b, np.uint8(7), np.int8(zb)), np.zeros((1, 1, m, n)))


@pytest.mark.parametrize("types", list(itertools.product([np.uint8, np.int8], repeat=2)), ids=str)
def test_computed_right_sides(variant: Variant, types: Any) -> None:
    """Packed by the kernel: columns or rows side by side, other strides, batches that repeat, extremes."""
    rng = np.random.default_rng(7)
    ta, tb = types
    for m, k, n, kind in (
        (5, 64, 16, "any"),
        (33, 70, 37, "ends"),
        (3, 1100, 20, "small"),
        (7, 130, 40, "mixed"),
        (4, 3, 1, "low"),
        (2, 0, 5, "any"),
    ):
        a = bytes_of(rng, (2, 3, m, k), ta)
        rows, columns = bytes_of(rng, (2, 3, k, n), tb, kind), bytes_of(rng, (2, 3, n, k), tb, kind).swapaxes(2, 3)
        wide = bytes_of(rng, (2, 3, k, 2 * n), tb, kind)[..., ::2]
        once = np.broadcast_to(bytes_of(rng, (2, 1, k, n), tb, kind), (2, 3, k, n))
        for b, mode in itertools.product((rows, columns, wide, once), ("serial", "threads")):
            za, zb = bytes_of(rng, (), ta), bytes_of(rng, (1,), tb)
            z = np.broadcast_to(za, (2, 3, m, 1))
            out = np.zeros((2, 3, m, n), np.int32)
            variant.lib.call("effc_qmatmul_any", [a, b, z, zb], [out], n_own=4, scratch=packing.scratch(6, k, n),
                             thread_scratch=packing.THREAD_SCRATCH, threads=3, mode=mode)  # fmt: skip
            np.testing.assert_array_equal(out, expected(a, b, za, zb))


def conv_reference(
    x: Array, w: Array, zx: int, zw: Array, stride: Any, padding: Any, dilation: Any, groups: int
) -> Array:
    nd = x.ndim - 2
    full = np.pad(x.astype(np.int64) - zx, [(0, 0), (0, 0), *padding])
    wide = w.astype(np.int64) - zw.astype(np.int64).reshape(-1, *[1] * (nd + 1))
    size = [(full.shape[2 + d] - (w.shape[2 + d] - 1) * dilation[d] - 1) // stride[d] + 1 for d in range(nd)]
    out = np.zeros((x.shape[0], w.shape[0], *size), np.int64)
    og, cg = w.shape[0] // groups, w.shape[1]
    for tap in itertools.product(*(range(k) for k in w.shape[2:])):
        view = full[
            (
                slice(None),
                slice(None),
                *(slice(t * d, t * d + (s - 1) * st + 1, st) for t, d, s, st in zip(tap, dilation, size, stride)),
            )
        ]
        for g in range(groups):
            out[:, g * og : (g + 1) * og] += np.einsum(
                "nc...,oc->no...",
                view[:, g * cg : (g + 1) * cg],
                wide[(slice(g * og, (g + 1) * og), slice(None), *tap)],
            )
    return out


CONVS = [
    # channels, filters, image, kernel, stride, padding, dilation, groups
    (3, 20, (17, 19), (7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    (16, 33, (9, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    (64, 40, (7, 7), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    (12, 18, (9, 11), (3, 2), (1, 2), ((0, 2), (3, 1)), (2, 3), 1),
    (12, 24, (8, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3),
    (5, 9, (30,), (3,), (1,), ((1, 1),), (1,), 1),
    (130, 9, (30,), (9,), (2,), ((8, 8),), (1,), 1),  # steps beyond a block, padding beyond the image
    (4, 7, (4, 5, 6), (2, 3, 2), (1, 2, 1), ((1, 0), (1, 1), (0, 1)), (1, 1, 2), 1),
]


@pytest.mark.parametrize("case", CONVS, ids=lambda c: f"{c[0]}x{c[2]}-{c[3]}-g{c[7]}")
@pytest.mark.parametrize("types", list(itertools.product([np.uint8, np.int8], repeat=2)), ids=str)
def test_conv(variant: Variant, case: Any, types: Any) -> None:
    c, o, image, kernel, stride, padding, dilation, groups = case
    rng = np.random.default_rng(4)
    nd = len(image)
    x = np.ascontiguousarray(bytes_of(rng, (2, c, *image), types[0])).transpose(0, *range(2, nd + 2), 1)
    x = np.ascontiguousarray(x).transpose(0, nd + 1, *range(1, nd + 1))  # channels innermost
    w = bytes_of(rng, (o, c // groups, *kernel), types[1])
    zx, zw = bytes_of(rng, (1,), types[0]), bytes_of(rng, (o,), types[1])
    want = conv_reference(x, w, int(zx[0]), zw, stride, padding, dilation, groups)
    packed = packing.pack(packing.filters(w, groups), zw.reshape(groups, -1), split=variant.split)
    pixels = int(np.prod(want.shape[2:]))
    out = np.zeros((2, 1, pixels, o), np.int32)

    def three(v: Any, fill: int) -> list[int]:
        return [fill] * (3 - nd) + [int(i) for i in v]

    attrs = [groups, o, *three(kernel, 1), *three(stride, 1), *three([p[0] for p in padding], 0), *three(dilation, 1),
             *three(want.shape[2:], 1)]  # fmt: skip
    variant.lib.call("effc_qconv", [x, packed, zx], [out], attrs, thread_scratch=packing.THREAD_SCRATCH, mode="threads",
                     threads=3)  # fmt: skip
    got = out.reshape(2, *want.shape[2:], o).transpose(0, nd + 1, *range(1, nd + 1))
    np.testing.assert_array_equal(got, want)


# Packing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_packing_round_trip(split: bool) -> None:
    rng = np.random.default_rng(5)
    for dtype, kind in itertools.product(
        [np.int8, np.uint8], ["any", "low", "high", "ends", "small", "normal", "tiny", "edge"]
    ):
        for groups, k, n in ((1, 64, 16), (3, 1, 1), (2, 67, 35), (1, 5, 0), (1, 0, 5), (1, 1100, 17)):
            b, zero = bytes_of(rng, (groups, k, n), dtype, kind), bytes_of(rng, (groups, n), dtype)
            back = packing.unpack(packing.pack(b, zero, split=split))
            difference = b.astype(int) - zero[:, None].astype(int)
            np.testing.assert_array_equal(back.values.astype(int) - back.zeros[:, None], difference)
            np.testing.assert_array_equal(back.sums, difference.sum(1))
            assert 0 <= back.extra_share
            assert split or back.extra_share == back.magnitude_share == back.quad_share == 0 == back.shifts.any()
            if split and k > 1 and n and kind != "small":
                assert (back.magnitude_share == 1) == (kind in ("any", "low", "high", "ends")), kind
                assert kind in ("normal", "tiny", "edge") or back.quad_share == 0, kind
                assert k < 64 or kind != "tiny" or back.quad_share > 0.9
                assert k < 1000 or kind != "normal" or 0.8 < back.quad_share < 1


def test_sums_never_saturate() -> None:
    """What a panel adds in 16 bits fits at the worst activations, every form is chosen, and blocks keep their steps."""
    rng = np.random.default_rng(8)
    forms = set()
    kinds = {"normal": 610, "tiny": 640, "edge": 640, "small": 640, "any": 640, "ends": 70, "low": 640}
    for kind, k in kinds.items():
        data = packing._layout(bytes_of(rng, (2, k, 48), np.int8, kind))
        chosen = packing._choose(data, k)
        total, used = data.shape[2], -(-k // 16) * 4
        assert packing.blocks(total * 4)[-1][1] == total * 4
        for at in np.ndindex(*chosen.form.shape):
            form, main, extras, order = (x[at] for x in (chosen.form, chosen.main, chosen.extras, chosen.order))
            forms.add(int(form))
            whole = np.zeros_like(main)
            whole[order] = main
            np.testing.assert_array_equal(whole.astype(int) + extras, data[at])
            assert not (main.astype(bool) & extras.astype(bool)).any()  # shifts count each weight's sign once
            np.testing.assert_array_equal(order[used:], np.arange(used, total))
            assert form == packing.ORDERED or (order == np.arange(total)).all()
            lanes = main.reshape(-1, packing.PANEL, 2, 2).astype(int)
            spans = packing.blocks(total * 4)
            for (start, stop), (quads, pairs) in zip(spans, chosen.counts[at].tolist(), strict=True):
                lo, hi = start // 4, min(stop // 4, used)
                np.testing.assert_array_equal(np.sort(order[lo:hi]), np.arange(lo, hi))
                sets = [lanes[lo + 4 * i : lo + 4 * i + 4] for i in range(quads)]
                first = lo + 4 * quads
                sets += [lanes[first + 2 * i : first + 2 * i + 2] for i in range(pairs)]
                assert first + 2 * pairs <= hi
                if form == packing.ORDERED:
                    for part in [*sets, *(lanes[i : i + 1] for i in range(first + 2 * pairs, hi))]:
                        assert 255 * np.maximum(part, 0).sum((0, 3)).max() <= 32767
                        assert 255 * np.minimum(part, 0).sum((0, 3)).min() >= -32768
                else:
                    assert not sets
            if form != packing.ORDERED:
                depth = int(form) - packing.BY_MAGNITUDE
                for part, groups in ((main, depth), (extras, 1)):  # extras are added pair by pair
                    sizes = np.abs(part.astype(int).reshape(-1, groups, packing.PANEL, 2, 2)).sum((1, 4)).max()
                    assert sizes * 127 <= 32767 and sizes * -128 >= -32768
    assert forms == {packing.ORDERED, packing.BY_MAGNITUDE + 1, packing.BY_MAGNITUDE + 2}


def test_groups_that_fit_are_found() -> None:
    """Weights of which neighbours do not fit together: every second pair of groups is large in the same columns."""
    large, small = np.full((4, 16, 4), 40, np.int8), np.full((4, 16, 4), 20, np.int8)
    data = np.concatenate([large, small] * 8)[None]  # two large ones come to 160, one with two small ones to 160 too
    order, counts = packing.arrange(data, data.shape[1] * 4)
    quads, pairs = counts[0, 0]
    sets = data[0, order[0]][4 * quads : 4 * quads + 2 * pairs].astype(int).reshape(-1, 2, 16, 2, 2).sum((1, 4))
    assert quads == 0 and pairs == 32 and sets.max() == 120, "one of each"


def test_packed_buffers_are_checked() -> None:
    rng = np.random.default_rng(6)
    packed = packing.pack(bytes_of(rng, (1, 9, 9), np.int8), np.zeros((1, 9), np.int8), split=True)
    for at, what in ((0, "version"), (8, "version"), (70, "checksum")):
        broken = packed.copy()
        broken[at] ^= 1
        with pytest.raises(PackingError, match=what):
            packing.unpack(broken)
    with pytest.raises(PackingError, match="size"):
        packing.unpack(packed[:-64])
    with pytest.raises(PackingError, match="header"):
        packing.unpack(packed[:10])
    v = Variant("avx2")
    a, out, z = np.zeros((1, 1, 2, 9), np.uint8), np.zeros((1, 1, 2, 9), np.int32), np.zeros((1, 1, 2, 1), np.uint8)
    whole = packing.pack(np.zeros((1, 9, 9), np.int8), np.zeros((1, 9), np.int8), split=False)
    for buffer, what in ((whole, "VNNI"), (packed[:-64].copy(), "size"), (np.zeros(128, np.uint8), "layout")):
        with pytest.raises(h.KernelError, match=what):
            v.lib.call("effc_qmatmul", [a, buffer, z], [out], [9, 9], thread_scratch=packing.THREAD_SCRATCH)
