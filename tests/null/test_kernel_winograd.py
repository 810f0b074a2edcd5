"""Winograd's convolution: the kernel against PyTorch in f64, its weights, its error, and values that are not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conv_cases import aligned, channels_last, depth_of, out_size, run_conv, run_winograd
from kernel_harness import KernelError, KernelLibrary, available_isas
from test_kernel_conv import EPILOGUE, check, reference

from effc.backends.cpu.packing import conv as panels
from effc.backends.cpu.packing import winograd
from effc.ir import OPS, dims
from effc.ir.dtypes import DType
from effc.ir.ops.conv import winograd_positions, winograd_side
from effc.ir.types import TensorType

pytest.importorskip("torch")
WAYS = sorted(winograd.POINTS)  # tile and stride


@pytest.fixture(scope="module", params=available_isas())
def lib(request: Any, tmp_path_factory: Any) -> KernelLibrary:
    source = tmp_path_factory.mktemp("epilogue") / "epilogue.cpp"
    source.write_text(EPILOGUE)
    return KernelLibrary(["conv_f32.cpp", "conv_winograd.cpp"], request.param, extra=[source])


def direct(x: np.ndarray, w: np.ndarray, pad: Any, stride: int = 1) -> np.ndarray:
    return reference(x, w, (stride, stride), pad, (1, 1), 1)


def arrays(rng: np.random.Generator, n: int, c: int, o: int, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    x = channels_last(rng.standard_normal((n, c, h, w)).astype(np.float32))
    return x, (rng.standard_normal((o, c, 3, 3)) / np.sqrt(9 * c)).astype(np.float32)


CASES = [
    (1, 64, 64, 14, 14, (1, 1)),
    (2, 13, 19, 9, 7, (1, 1)),
    (1, 16, 24, 5, 17, (0, 2)),
    (3, 70, 100, 12, 13, (1, 0)),
    (1, 130, 33, 7, 7, (1, 1)),
    (1, 1, 1, 3, 3, (0, 0)),
    (5, 8, 8, 1, 1, (1, 1)),
    (1, 9, 40, 30, 2, (3, 4)),
]


@pytest.mark.parametrize("tile, stride", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_and_independent_of_threads_and_blocks(lib: KernelLibrary, case: Any, tile: int, stride: int) -> None:
    *sizes, pad = case
    rng = np.random.default_rng(sum(sizes))
    x, w = arrays(rng, *sizes)
    want = direct(x, w, pad, stride)
    first = run_winograd(lib, x, w, pad, tile, stride=stride, threads=1, mode="serial")
    check(first, want, case)
    for threads, mode in ((2, "threads"), (3, "threads"), (7, "reverse")):
        assert np.array_equal(run_winograd(lib, x, w, pad, tile, stride=stride, threads=threads, mode=mode), first), (
            threads,
            mode,
        )
    c, o = sizes[1], sizes[2]
    lanes = lib.vlen // 4
    rule = winograd.rule(c, o, tile, lib.vlen, None, stride)
    for shared in (False, True):
        for tiles, cols in ((1, rule.nv * lanes), (5, 3 * rule.nv * lanes), (40, rule.nv * lanes)):
            b = winograd.blocks(c, o, tile, lib.vlen, rule.nv, tiles, cols, rule.k, shared, stride)
            assert np.array_equal(run_winograd(lib, x, w, pad, tile, stride=stride, blocking=b, threads=3), first), (
                b.label
            )
    for nv in range(1, 5):  # another width of the panels, sums in several parts
        b = winograd.blocks(c, o, tile, lib.vlen, nv, 13, 2 * nv * lanes, max(1, c // 3), nv % 2 == 0, stride)
        check(run_winograd(lib, x, w, pad, tile, stride=stride, blocking=b), want, b.label)


@pytest.mark.parametrize("tile, stride", WAYS)
def test_images_of_any_size(lib: KernelLibrary, tile: int, stride: int) -> None:
    """Whole and narrow tiles in all mixtures: 1 to 20 results, in either dim, blocks that end anywhere."""
    rng = np.random.default_rng(tile + stride)
    for height in range(1, 21):
        width, pad = int(rng.integers(1, 21)), (int(rng.integers(0, 2)), 1)
        n, c, o = 1 + height % 3, int(rng.integers(1, 20)), int(rng.integers(1, 40))
        size = [max(1, (s - 1) * stride + 3 - 2 * p - int(rng.integers(stride))) for s, p in zip((height, width), pad)]
        x, w = arrays(rng, n, c, o, *size)
        wide = channels_last(np.pad(x, ((0, 0), (0, 3), (1, 2), (2, 1)), constant_values=np.nan))
        view = wide[:, :c, 1:-2, 2:-1]  # neither rows nor pixels are next to each other
        want = direct(x, w, pad, stride)
        got = run_winograd(lib, view, w, pad, tile, stride=stride)
        check(got, want, (height, width, pad))
        tiles, shared = int(rng.integers(1, 30)), bool(rng.integers(2))
        b = winograd.blocks(c, o, tile, lib.vlen, 2, tiles, 2 * lib.vlen // 4, 128, shared, stride)
        for threads in (1, 3):
            again = run_winograd(lib, view, w, pad, tile, stride=stride, blocking=b, threads=threads)
            assert np.array_equal(again, got), (height, width, b.label)


def tiled(n: int, tile: int) -> list[int]:
    """The tiles of a row of n results: as few as possible, whole ones first, none longer than needed."""
    count = -(-n // tile)
    narrow = min(count, count * tile - n)
    return [tile] * (count - narrow) + [tile - 1] * narrow


DEEP = [  # batch, channels, of the result, window's depth and its stride, image, padding
    (1, 16, 24, 3, 1, (5, 9, 8), (1, 1, 1)),
    (2, 13, 9, 3, 2, (7, 6, 11), (1, 0, 2)),
    (1, 70, 20, 2, 1, (4, 5, 6), (0, 1, 1)),
    (2, 9, 40, 5, 3, (9, 4, 5), (2, 1, 0)),
    (1, 8, 17, 1, 1, (3, 10, 7), (0, 1, 1)),
    (1, 64, 64, 3, 1, (1, 7, 7), (1, 1, 1)),
    (1, 130, 10, 3, 1, (2, 5, 4), (2, 1, 1)),
    (1, 8, 8, 4, 4, (30, 3, 2), (0, 1, 1)),
]


@pytest.mark.parametrize("tile, stride", WAYS)
@pytest.mark.parametrize("case", DEEP, ids=str)
def test_three_dims(lib: KernelLibrary, case: Any, tile: int, stride: int) -> None:
    """Sums over a window's depth, for any division into blocks and number of threads; what lies around x is NaN."""
    n, c, o, taps, along, size, pad = case
    rng = np.random.default_rng(c + o)
    wide = rng.standard_normal((n, c, *size)).astype(np.float32)
    wide = channels_last(np.pad(wide, ((0, 0), (0, 5), (1, 1), (2, 1), (1, 2)), constant_values=np.nan))
    x = wide[:, :c, 1:-1, 2:-1, 1:-2]
    w = (rng.standard_normal((o, c, taps, 3, 3)) / np.sqrt(9 * taps * c)).astype(np.float32)
    want = reference(x, w, (along, stride, stride), pad, (1, 1, 1), 1)
    more: Any = {"stride": stride, "depth_stride": along}
    first = run_winograd(lib, x, w, pad, tile, **more, threads=1, mode="serial")
    check(first, want, case)
    depth, lanes = depth_of(w, want.shape[2:], along), lib.vlen // 4
    rule = winograd.rule(c, o, tile, lib.vlen, None, stride, depth)
    for tiles in (1, 2, 5, 24, 96):
        for shared in (False, True):
            sizes = (rule.nv, tiles, rule.nv * lanes, rule.k, shared, stride, depth)
            b = winograd.blocks(c, o, tile, lib.vlen, *sizes)
            for threads, mode in ((1, "serial"), (3, "threads")):
                got = run_winograd(lib, x, w, pad, tile, **more, blocking=b, threads=threads, mode=mode)
                assert np.array_equal(got, first), (b.label, threads)
    for nv, k in ((1, 5), (2, c + 3), (4, 2 * c)):  # sums in parts that end anywhere
        b = winograd.blocks(c, o, tile, lib.vlen, nv, 7, nv * lanes, k, nv == 2, stride, depth)
        check(run_winograd(lib, x, w, pad, tile, **more, blocking=b), want, b.label)


@pytest.mark.parametrize("tile, stride", WAYS)
def test_three_dims_steps_and_values_that_are_not_finite(lib: KernelLibrary, tile: int, stride: int) -> None:
    rng = np.random.default_rng(7)
    x = channels_last(rng.standard_normal((2, 12, 6, 9, 10)).astype(np.float32))
    w = (rng.standard_normal((21, 12, 3, 3, 3)) / 18).astype(np.float32)
    strides, pad = (1, stride, stride), (1, 1, 1)
    want = reference(x, w, strides, pad, (1, 1, 1), 1)
    pixels = int(np.prod(want.shape[2:]))
    bias = aligned(rng.standard_normal(21).astype(np.float32))
    residual = aligned(rng.standard_normal((2, 1, pixels, 21)).astype(np.float32))
    added = want + np.moveaxis(residual.reshape(2, *want.shape[2:], 21), -1, 1)
    steps: Any = {"bias": bias, "residual": residual, "clamp": (-0.5, 2.0)}
    got = run_winograd(lib, x, w, pad, tile, stride=stride, **steps)
    check(got, np.clip(added + bias.reshape(21, 1, 1, 1), -0.5, 2.0), "bias, residual, clamp")
    extras = [np.broadcast_to(bias, residual.shape), residual]
    got = run_winograd(lib, x, w, pad, tile, stride=stride, extras=extras, epilogue="test_epilogue")
    plain = np.moveaxis(residual.reshape(2, *want.shape[2:], 21), -1, 1)
    check(got, np.maximum(want + bias.reshape(21, 1, 1, 1), 0) + plain, "epilogue")
    w[rng.random(w.shape) < 0.2] = 0
    for at, value in (((0, 3, 0, 4, 5), np.nan), ((1, 2, 5, 0, 9), np.inf), ((0, 7, 3, 8, 0), -3e38)):
        x[at] = value
    want = run_conv(lib, x, w, strides, pad, (1, 1, 1), 1)
    got = run_winograd(lib, x, w, pad, tile, stride=stride)
    assert np.isnan(want).any()
    assert np.array_equal(np.isnan(got), np.isnan(want)) and np.array_equal(np.isposinf(got), np.isposinf(want))
    fine = np.isfinite(want)
    assert np.abs(got[fine] - want[fine]).max() <= 1e-5 * np.abs(want[fine]).max()


@pytest.mark.parametrize("tile, stride", WAYS)
@pytest.mark.parametrize("c", [16, 256])
def test_error_in_three_dims(lib: KernelLibrary, tile: int, stride: int, c: int) -> None:
    rng = np.random.default_rng(c)
    x = channels_last(np.maximum(rng.standard_normal((1, c, 4, 13, 11)), 0).astype(np.float32))
    w = (rng.standard_normal((24, c, 3, 3, 3)) / np.sqrt(27 * c)).astype(np.float32)
    want = reference(x, w, (1, stride, stride), (1, 1, 1), (1, 1, 1), 1)
    got = np.abs(run_winograd(lib, x, w, (1, 1, 1), tile, stride=stride) - want).max() / np.abs(want).max()
    assert got < {2: 1e-6, 4: 2.5e-6}[tile]


@pytest.mark.parametrize("tile, stride", WAYS)
def test_narrow_tiles_leave_out_positions(lib: KernelLibrary, tile: int, stride: int) -> None:
    """With NaN in a position's weights, and in those that outputs are summed anew from, all outputs of a tile are NaN
    if, and only if, the tile takes that position."""
    rng = np.random.default_rng(8)
    side = winograd_side(tile, stride)
    last = {side - 1, tile} if stride == 2 else {side - 1}
    for height, width in ((7, 7), (tile - 1, 13), (2 * tile, 9)):
        x, w = arrays(rng, 2, 8, 10, (height - 1) * stride + 1, (width - 1) * stride + 1)
        b = winograd.blocks(8, 10, tile, lib.vlen, 1, 3, lib.vlen // 4, 128, False, stride)
        packed = winograd.pack(w, tile, lib.vlen, b.nv, stride)
        want, products = direct(x, w, (1, 1), stride), 0
        for position in range(side * side):
            poisoned = aligned(packed)
            plain = winograd.plain_at(8, 10, tile, lib.vlen, stride)
            size = 8 * -(-10 * 4 // lib.vlen) * lib.vlen  # bytes of a position
            poisoned[panels.HEADER.size + position * size :][:size].view(np.float32)[:] = np.nan
            poisoned[plain + panels.HEADER.size :].view(np.float32)[:] = np.nan
            got = run_winograd(lib, x, w, (1, 1), tile, stride=stride, blocking=b, packed=poisoned)
            taken = [
                [t == tile or i not in last for t in tiled(n, tile)]
                for n, i in ((height, position // side), (width, position % side))
            ]
            products += 2 * sum(taken[0]) * sum(taken[1])
            rows, cols = (np.repeat(t, tiled(n, tile)) for t, n in zip(taken, (height, width)))
            assert np.array_equal(np.isnan(got), np.broadcast_to(np.outer(rows, cols), got.shape)), position
            check(np.where(np.isnan(got), want, got).astype(np.float32), want, position)
        *types, y = (TensorType(DType.f32, a.shape) for a in (x, w, want))
        cost = OPS["conv_winograd"].cost_of(types, [y], {"tile": tile, "stride": stride})
        assert cost.flops == 2 * 8 * 10 * products


@pytest.mark.parametrize("tile, stride", WAYS)
def test_positions(tile: int, stride: int) -> None:
    """Products by size: what the tiles take, and no more than any other division into whole and narrow ones."""
    side = winograd_side(tile, stride)
    for n in range(1, 41):
        taken = sum(side - stride * (t < tile) for t in tiled(n, tile))
        assert winograd_positions(n, tile, stride) == taken <= -(-n // tile) * side
        least = min(
            whole * side + narrow * (side - stride)
            for whole in range(n + 2)
            for narrow in range(n + 2)
            if whole * tile + narrow * (tile - 1) >= n
        )
        assert taken == least
        assert dims.evaluate(winograd_positions(dims.symbol("n"), tile, stride), {"n": n}) == taken


@pytest.mark.parametrize("tile, stride", WAYS)
@pytest.mark.parametrize("c", [16, 64, 256, 1024])
@pytest.mark.parametrize("kind", ["normal", "positive"])
def test_error_keeps_well_within_the_contract(lib: KernelLibrary, tile: int, stride: int, c: int, kind: str) -> None:
    """A fourth of 1e-5 for tiles of 4 x 4, a tenth for 2 x 2."""
    rng = np.random.default_rng(c)
    x, w = arrays(rng, 1, c, 24, 18, 15)
    if kind == "positive":
        x = channels_last(np.maximum(x, 0))
    want = direct(x, w, (1, 1), stride)

    got = np.abs(run_winograd(lib, x, w, (1, 1), tile, stride=stride) - want).max() / np.abs(want).max()
    assert got < {2: 1e-6, 4: 2.5e-6}[tile]


@pytest.mark.parametrize("tile, stride", WAYS)
def test_steps_and_epilogue(lib: KernelLibrary, tile: int, stride: int) -> None:
    rng = np.random.default_rng(3)
    for n, c, o, h, w_ in ((2, 12, 21, 9, 10), (1, 40, 150, 6, 5)):
        x, w = arrays(rng, n, c, o, h, w_)
        bias = aligned(rng.standard_normal(o).astype(np.float32))
        h2, w2 = (out_size(s, 3, stride, 1, 1) for s in (h, w_))
        residual = aligned(rng.standard_normal((n, 1, h2 * w2, o)).astype(np.float32))
        want = direct(x, w, (1, 1), stride) + bias.reshape(o, 1, 1)
        added = want + np.moveaxis(residual.reshape(n, h2, w2, o), -1, 1)
        check(run_winograd(lib, x, w, (1, 1), tile, stride=stride, bias=bias), want, "bias")
        got = run_winograd(lib, x, w, (1, 1), tile, stride=stride, bias=bias, residual=residual, clamp=(-0.5, 2.0))
        check(got, np.clip(added, -0.5, 2.0), "bias, residual, clamp")
        rows = np.broadcast_to(bias, (n, 1, h2 * w2, o))
        y = run_winograd(lib, x, w, (1, 1), tile, stride=stride, extras=[rows, residual], epilogue="test_epilogue")
        check(y, np.maximum(want, 0) + np.moveaxis(residual.reshape(n, h2, w2, o), -1, 1), "epilogue")


@pytest.mark.parametrize("tile, stride", WAYS)
def test_not_finite_where_the_direct_sum_is_not(lib: KernelLibrary, tile: int, stride: int) -> None:
    """Infinity and NaN in the input, and values whose transform overflows, for any division into blocks."""
    rng = np.random.default_rng(5)
    nasty = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e37]
    for trial in range(12):
        n, c, o, h, width = int(rng.integers(1, 3)), int(rng.integers(1, 40)), int(rng.integers(1, 50)), 13, 11
        x, w = arrays(rng, n, c, o, h, width)
        w[rng.random(w.shape) < 0.2] = 0  # 0 times infinity is NaN
        for _ in range(4):
            at = int(rng.integers(n)), int(rng.integers(c)), int(rng.integers(h)), int(rng.integers(width))
            x[at] = nasty[int(rng.integers(len(nasty)))]
        want = run_conv(lib, x, w, (stride, stride), (1, 1), (1, 1), 1)  # in f32: sums of huge values overflow in both
        got = run_winograd(lib, x, w, (1, 1), tile, stride=stride)
        assert not np.isfinite(want).all() or trial > 0
        assert np.array_equal(np.isnan(got), np.isnan(want)), trial
        assert np.array_equal(np.isposinf(got), np.isposinf(want)), trial
        assert np.array_equal(np.isneginf(got), np.isneginf(want)), trial
        fine = np.isfinite(want)
        assert np.abs(got[fine] - want[fine]).max(initial=0) <= 1e-5 * np.abs(want[fine]).max(initial=1), trial
        for threads, shared in ((1, True), (3, False)):
            b = winograd.blocks(c, o, tile, lib.vlen, 1, 3, lib.vlen // 4, 128, shared, stride)
            other = run_winograd(lib, x, w, (1, 1), tile, stride=stride, blocking=b, threads=threads)
            again = run_winograd(lib, x, w, (1, 1), tile, stride=stride, blocking=b, threads=5, mode="reverse")
            assert np.array_equal(other, again, equal_nan=True), trial


def test_bias_and_clamp_after_values_that_are_not_finite(lib: KernelLibrary) -> None:
    rng = np.random.default_rng(6)
    x, w = arrays(rng, 1, 8, 20, 9, 9)
    x[0, 2, 4, 4], x[0, 1, 0, 8] = np.inf, np.nan
    bias, residual = rng.standard_normal(20).astype(np.float32), rng.standard_normal((1, 1, 81, 20)).astype(np.float32)
    steps = {"bias": aligned(bias), "residual": aligned(residual), "clamp": (-1.0, 6.0)}
    want = run_conv(lib, x, w, (1, 1), (1, 1), (1, 1), 1, **steps)  # type: ignore[arg-type]
    assert np.isnan(want).any() and (want == 6).any()
    got = run_winograd(lib, x, w, (1, 1), 4, **steps)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-6)  # sums are up to 3.4


@pytest.mark.parametrize("tile, stride", WAYS)
def test_transforms_are_exact_identities(tile: int, stride: int) -> None:
    rng = np.random.default_rng(tile)
    a, b, g = winograd.matrices(tile, stride)
    side = winograd_side(tile, stride)
    d, w = rng.standard_normal((side, side)), rng.standard_normal((3, 3))
    got = a @ ((g @ w @ g.T) * (b @ d @ b.T)) @ a.T
    reach = stride * (tile - 1) + 1
    want = sum(w[i, j] * d[i : i + reach : stride, j : j + reach : stride] for i in range(3) for j in range(3))
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("tile, stride", WAYS)
def test_packed_weights(tile: int, stride: int) -> None:
    rng = np.random.default_rng(tile)
    for vlen in (32, 64):
        for o, c, nv in ((1, 1, 1), (19, 7, 2), (64, 33, 3), (100, 5, 4)):
            w = rng.standard_normal((o, c, 3, 3)).astype(np.float32)
            packed = winograd.pack(w, tile, vlen, nv, stride)
            assert np.array_equal(winograd.unpack(packed)[:, :, 0], w)
            own = packed[winograd.plain_at(c, o, tile, vlen, stride) :]
            assert np.array_equal(own, panels.pack_conv(w, 1, vlen, nv=nv))  # what effc_conv_f32 takes
            transformed = winograd.unpack_transformed(packed)
            np.testing.assert_allclose(transformed, winograd.transform(w, tile, stride), rtol=1e-6, atol=1e-7)
            with pytest.raises(panels.PackingError):
                panels.unpack(packed)
            packed[-1 if o % 2 else 100] ^= 1
            with pytest.raises(panels.PackingError, match="checksum"):
                winograd.unpack(packed)
    huge = np.full((4, 4, 3, 3), 3e38, np.float32)
    if (tile, stride) == (4, 2):  # no weight grows
        assert np.isfinite(winograd.unpack_transformed(winograd.pack(huge, tile, 32, 1, stride))).all()
    else:
        with pytest.raises(OverflowError):
            winograd.pack(huge, tile, 32, 1, stride)


def test_refuses_other_convolutions(lib: KernelLibrary) -> None:
    rng = np.random.default_rng(1)
    x, w = arrays(rng, 1, 8, 8, 6, 6)
    with pytest.raises(KernelError, match="channels innermost"):
        run_winograd(lib, aligned(x), w, (1, 1), 4)
    with pytest.raises(KernelError, match="stride 1"):
        b = winograd.rule(8, 8, 4, lib.vlen, 4)
        run_winograd(lib, x, w, (1, 1), 4, blocking=winograd.Blocks(**{**vars(b), "tile": 3}))
    with pytest.raises(KernelError, match="stride 1 or 2"):
        run_winograd(lib, x, w, (1, 1), 4, stride=3, blocking=b, packed=aligned(winograd.pack(w, 4, lib.vlen, b.nv)))
