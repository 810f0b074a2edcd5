"""Byte convolutions by Winograd's algorithm in integers (conv_i8_winograd.cpp): equal to numpy's 64-bit sums for any
data, and refused where that is not proven."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_harness as h
from test_int8 import bytes_of, conv_reference

from effc.backends.cpu.packing import int8_winograd as winograd
from effc.backends.cpu.packing.conv import PackingError
from effc.passes.winograd import Image

Array = np.ndarray[Any, Any]
TILES = sorted(winograd.G)


@pytest.fixture(scope="module", params=h.available_isas())
def lib(request: Any) -> h.KernelLibrary:
    return h.KernelLibrary(["conv_i8_winograd.cpp"], request.param)


def run(
    lib: h.KernelLibrary, x: Array, w: Array, zx: Array, zw: Array, pad: tuple[int, int], tile: int,
    blocks: winograd.Blocks | None = None, **how: Any,
) -> Array:  # fmt: skip
    """x [N, C, H, W] with its channels innermost, ``pad`` before and after each of H and W; [N, O, H', W'] i32."""
    (n, c, *image), o = x.shape, len(w)
    size = [d + 2 * p - 2 for d, p in zip(image, pad, strict=True)]
    blocks = blocks or winograd.rule(c, o, tile, None)
    out = np.full((n, 1, size[0] * size[1], o), 0x5A5A5A5A, np.int32)
    attrs = [1, o, 1, 3, 3, 1, 1, 1, 0, *pad, 1, 1, 1, 1, *size, *blocks.attrs]
    lib.call("effc_qconv_winograd", [x, winograd.pack(w, zw, tile), zx], [out], attrs, scratch=blocks.scratch,
             thread_scratch=blocks.thread_scratch, **how)  # fmt: skip
    return out.reshape(n, *size, o).transpose(0, 3, 1, 2)


def innermost(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def want(x: Array, w: Array, zx: Array, zw: Array, pad: tuple[int, int]) -> Array:
    zw = np.broadcast_to(zw, (len(w),))
    return conv_reference(x, w, int(zx[0]), zw, (1, 1), tuple((p, p) for p in pad), (1, 1), 1)


# batch, channels, filters, height, width, padding
CASES = [
    (1, 16, 16, 4, 4, (1, 1)),
    (2, 33, 17, 9, 7, (1, 1)),
    (3, 64, 40, 5, 14, (0, 1)),
    (1, 1, 1, 3, 3, (0, 0)),
    (2, 8, 70, 6, 11, (2, 0)),  # beyond the image for a whole tile's edge
    (1, 20, 130, 1, 1, (1, 1)),
    (1, 48, 64, 2, 25, (1, 3)),
]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("types", list(itertools.product([np.uint8, np.int8], repeat=2)), ids=str)
def test_equal_to_wide_sums(lib: h.KernelLibrary, tile: int, case: Any, types: Any) -> None:
    n, c, o, height, width, pad = case
    rng = np.random.default_rng(1)
    for kx, kw in (("any", "any"), ("ends", "small"), ("high", "ends")):
        x = innermost(bytes_of(rng, (n, c, height, width), types[0], kx))
        w = bytes_of(rng, (o, c, 3, 3), types[1], kw)
        for zx, zw in ((bytes_of(rng, (1,), types[0]), bytes_of(rng, (o,), types[1])),
                       (bytes_of(rng, (1,), types[0], "ends"), bytes_of(rng, (), types[1], "ends"))):  # fmt: skip
            got = run(lib, x, w, zx, zw, pad, tile)
            np.testing.assert_array_equal(got, want(x, w, zx, zw, pad), f"{kx} {kw}")


@pytest.mark.parametrize("tile", TILES)
def test_the_most_that_is_proven(lib: h.KernelLibrary, tile: int) -> None:
    """Weights all at one end, and x and its zero point apart as far as can be: as many channels as the proof allows
    give the right sums, one more is refused."""
    for dtype, low, high in ((np.uint8, 0, 255), (np.int8, -128, 127)):
        for end in (-128, 127):
            c = ((1 << 31 - winograd.SHIFT[tile]) - 1) // (255 * 9 * abs(end))
            c = min(c, 300)  # F(2x2, 3x3) has room for more than any model's
            w = np.full((16, c, 3, 3), end, np.int8)
            assert winograd.exact(w, np.int8(0), tile)
            for one, zero in ((high, low), (low, high)):
                x, zx = innermost(np.full((1, c, 5, 6), one, dtype)), np.full(1, zero, dtype)
                got = run(lib, x, w, zx, np.int8(0), (1, 1), tile)
                np.testing.assert_array_equal(got, want(x, w, zx, np.int8(0), (1, 1)))
                assert abs(got).max() == 255 * 9 * abs(end) * c
    limit = 1 << 31 - winograd.SHIFT[tile]
    w = np.full((1, limit // (255 * 9 * 127) + 1, 3, 3), 127, np.int8)
    assert not winograd.exact(w, np.int8(0), tile)
    with pytest.raises(PackingError, match="not exact"):
        winograd.pack(w, np.int8(0), tile)


@pytest.mark.parametrize("tile", TILES)
def test_blocks_threads_and_strides(lib: h.KernelLibrary, tile: int) -> None:
    rng = np.random.default_rng(2)
    base = bytes_of(rng, (3, 13, 22, 45), np.uint8)
    x = base.transpose(0, 3, 1, 2)[:, 1:38, ::-1, 1::2]
    w, zw = bytes_of(rng, (100, 37, 3, 3), np.int8), np.int8(0)
    zx = np.array([9], np.uint8)
    expected = want(x, w, zx, zw, (1, 1))
    for tiles, cols, shared in itertools.product((1, 5, 96), (16, 48, 256), (False, True)):
        blocks = winograd.blocks(37, tile, tiles, cols, shared)
        for threads, mode in ((1, "serial"), (3, "reverse"), (2, "threads")):
            got = run(lib, x, w, zx, zw, (1, 1), tile, blocks, threads=threads, mode=mode)
            np.testing.assert_array_equal(got, expected, f"{blocks.label} {threads} {mode}")


def test_empty(lib: h.KernelLibrary) -> None:
    w = np.ones((16, 16, 3, 3), np.int8)
    for shape in ((0, 16, 5, 5), (1, 16, 2, 9)):
        x = innermost(np.zeros(shape, np.uint8))
        assert run(lib, x, w, np.zeros(1, np.uint8), np.int8(0), (0, 0), 4).size == 0


@pytest.mark.parametrize("tile", TILES)
def test_matrices(tile: int) -> None:
    """The identity that all rests on, exactly, and what fits in 16 bits."""
    rng = np.random.default_rng(3)
    a, b, g = winograd.A[tile], winograd.B[tile], winograd.G[tile]
    d, k = rng.integers(-255, 256, (tile + 2, tile + 2)), rng.integers(-255, 256, (3, 3))
    got = a @ ((g @ k @ g.T) * (b @ d @ b.T)) @ a.T
    sums = np.array([[(d[i : i + 3, j : j + 3] * k).sum() for j in range(tile)] for i in range(tile)])
    np.testing.assert_array_equal(got, sums * np.outer(winograd.SCALE[tile], winograd.SCALE[tile]))
    for m in (b, g):
        assert 255 * int(np.abs(m).sum(1).max()) ** 2 < 1 << 15
    scales = [int(s) * int(t) for s in winograd.SCALE[tile] for t in winograd.SCALE[tile]]
    assert max((s & -s).bit_length() - 1 for s in scales) == winograd.SHIFT[tile]


def test_packing_round_trip_and_checks(lib: h.KernelLibrary) -> None:
    rng = np.random.default_rng(4)
    for dtype, tile, (o, c) in itertools.product((np.int8, np.uint8), TILES, ((1, 1), (17, 5), (40, 32))):
        w, zero = bytes_of(rng, (o, c, 3, 3), dtype), bytes_of(rng, (o,), dtype)
        back, found = winograd.unpack(winograd.pack(w, zero, tile))
        assert found == tile
        np.testing.assert_array_equal(back, w.astype(int) - zero.astype(int)[:, None, None, None])
    packed = winograd.pack(bytes_of(rng, (9, 9, 3, 3), np.int8), np.int8(0), 4)
    for at, what in ((0, "version"), (8, "version"), (70, "checksum")):
        broken = packed.copy()
        broken[at] ^= 1
        with pytest.raises(PackingError, match=what):
            winograd.unpack(broken)
    with pytest.raises(PackingError, match="size"):
        winograd.unpack(packed[:-64])
    with pytest.raises(PackingError, match="header"):
        winograd.unpack(packed[:10])
    x, zx, out = innermost(np.zeros((1, 9, 4, 4), np.uint8)), np.zeros(1, np.uint8), np.zeros((1, 1, 16, 9), np.int32)
    blocks = winograd.blocks(9, 4, 4, 16, False)
    attrs = [1, 9, 1, 3, 3, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 4, 4, *blocks.attrs]
    room = {"scratch": blocks.scratch, "thread_scratch": blocks.thread_scratch}
    strided = [*attrs[:5], 1, 1, 2, *attrs[8:]]
    for buffer, given, more, what in (
        (packed[:-64].copy(), attrs, room, "size"),
        (np.zeros(128, np.uint8), attrs, room, "layout"),
        (packed, strided, room, "stride 1"),
        (packed, attrs, {**room, "thread_scratch": 64}, "scratch"),
        (winograd.pack(np.zeros((9, 8, 3, 3), np.int8), np.int8(0), 4), attrs, room, "sizes"),
    ):
        with pytest.raises(h.KernelError, match=what):
            lib.call("effc_qconv_winograd", [x, buffer, zx], [out], given, **more)


def test_the_rule() -> None:
    rng = np.random.default_rng(5)

    def choice(c: int, o: int, side: int, kind: str = "normal", batch: int = 1) -> tuple[int, str]:
        return winograd.choose(bytes_of(rng, (o, c, 3, 3), np.int8, kind), np.int8(0), Image(batch, side, side), 1.0)

    assert choice(64, 64, 56)[0] == choice(128, 128, 28)[0] == choice(256, 256, 14)[0] == 4
    assert choice(8, 64, 56) == (winograd.DIRECT, "fewer than 16 channels")
    tile, why = choice(512, 512, 7)  # its weights would come from memory for four tiles
    assert tile == winograd.DIRECT and "estimated" in why
    tile, why = choice(128, 128, 28, "high")  # sums of 26 bits
    assert tile == 2 and "F(4x4, 3x3) is not exact beyond 25" in why
    tile, why = choice(256, 256, 28, "high", batch=2)
    assert tile == 2 and "sums have up to 27 bits" in why
