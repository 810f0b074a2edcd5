"""Convolution kernels against PyTorch in f64, packing round trips, epilogues, and independence of threads."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conv_cases import channels_last, run_conv, transposed_size
from kernel_harness import KernelError, KernelLibrary, available_isas

from effc.backends.cpu.packing import conv as packing
from effc.ir import dims

torch = pytest.importorskip("torch")
F = torch.nn.functional
UNITS = ["conv_f32.cpp", "conv_f64.cpp", "conv_dw.cpp", "conv_plain.cpp"]
TOLERANCE = {
    "float32": 1e-5,
    "float64": 1e-10,
    "float16": 4e-3,
    "bfloat16": 2e-2,
    "complex64": 1e-5,
    "complex128": 1e-10,
}
MODES = ["serial", "reverse", "threads"]

EPILOGUE = """
#include "effc_kernel.h"
/* out[0] = max(acc + e0, 0) + e1, the operands after the kernel's own */
extern "C" __attribute__((visibility("default"))) void test_epilogue(
    const effc_call* c, int64_t b0, int64_t b1, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
    const void* acc, int64_t ld) {
  auto at = [&](const effc_tensor& t, int64_t m, int64_t n) -> float& {
    return ((float*)t.data)[b0 * t.strides[0] + b1 * t.strides[1] + m * t.strides[2] + n * t.strides[3]];
  };
  for (int64_t m = m0; m < m1; ++m)
    for (int64_t n = n0; n < n1; ++n) {
      float v = ((const float*)acc)[(m - m0) * ld + n - n0], s = v + at(c->in[c->n_own], m, n);
      at(c->out[0], m, n) = (s > 0 ? s : 0) + at(c->in[c->n_own + 1], m, n);
    }
}
/* leaves the result as the kernel itself left it */
extern "C" __attribute__((visibility("default"))) void test_nothing(
    const effc_call*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const void*, int64_t) {}
"""


@pytest.fixture(scope="module", params=available_isas())
def lib(request: Any, tmp_path_factory: Any) -> KernelLibrary:
    source = tmp_path_factory.mktemp("epilogue") / "epilogue.cpp"
    source.write_text(EPILOGUE)
    return KernelLibrary(UNITS, request.param, extra=[source])


def as_torch(a: np.ndarray, wide: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(a.astype(wide)))


def reference(
    x: np.ndarray, w: np.ndarray, stride: Any, pad: Any, dilation: Any, groups: int, extra: Any = None
) -> np.ndarray:
    """PyTorch's result in f64, c128, or exact integers."""
    wide = {"c": np.complex128, "i": np.int64, "u": np.int64}.get(x.dtype.kind, np.float64)
    nd = x.ndim - 2
    kw = {"stride": list(stride), "padding": list(pad), "dilation": list(dilation), "groups": groups}
    if extra is not None:
        f = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[nd - 1]
        kw["output_padding"] = list(extra)
    else:
        f = (F.conv1d, F.conv2d, F.conv3d)[nd - 1]
    return f(as_torch(x, wide), as_torch(w, wide), **kw).numpy()


def check(got: np.ndarray, want: np.ndarray, note: Any) -> None:
    assert got.shape == want.shape, note
    if got.dtype.kind in "iu":
        assert np.array_equal(got, want.astype(got.dtype)), note
    elif got.size:
        scale = np.abs(want).max()  # 0 where every window lies in the padding
        error = np.abs(got.astype(want.dtype) - want).max()
        assert error <= TOLERANCE[got.dtype.name] * scale, (note, error, scale)


def data(rng: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray:
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def physical(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """x in some order in memory: channels last, channels first, or every second element of a larger array."""
    choice = rng.integers(0, 3)
    if choice == 0:
        return channels_last(x)
    return np.repeat(x, 2, axis=-1)[..., ::2] if choice == 1 else x


def geometry(rng: np.random.Generator, nd: int) -> tuple[list[int], ...]:
    kernel = rng.integers(1, 6 if nd < 3 else 4, nd).tolist()
    stride, dilation = rng.integers(1, 4, nd).tolist(), rng.integers(1, 3, nd).tolist()
    pad = rng.integers(0, 4, nd).tolist()
    size = rng.integers(1, 20 if nd < 3 else 8, nd).tolist()
    size = [max(s, d * (k - 1) + 1 - 2 * p) for s, d, k, p in zip(size, dilation, kernel, pad)]
    return kernel, stride, dilation, pad, size


@pytest.mark.parametrize("seed", range(12))
def test_conv(lib: KernelLibrary, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(12):
        nd = int(rng.integers(1, 4))
        groups, n = int(rng.choice([1, 1, 2, 3, 5])), int(rng.choice([0, 1, 1, 2, 3]))
        cg, og = int(rng.choice([1, 2, 3, 7, 8, 16, 33])), int(rng.choice([1, 5, 16, 17, 24, 40, 70, 100]))
        kernel, stride, dilation, pad, size = geometry(rng, nd)
        x = physical(rng, data(rng, (n, cg * groups, *size), np.float32))
        w = data(rng, (og * groups, cg, *kernel), np.float32)
        options = {
            "packed": bool(rng.integers(0, 2)), "copy": bool(rng.integers(0, 2)), "threads": int(rng.integers(1, 4)),
            "mode": str(rng.choice(MODES)), "depthwise": False,
        }  # fmt: skip
        got = run_conv(lib, x, w, stride, pad, dilation, groups, **options)
        check(
            got,
            reference(x, w, stride, pad, dilation, groups),
            (x.shape, w.shape, x.strides, stride, pad, dilation, groups, options),
        )


@pytest.mark.parametrize("seed", range(6))
def test_transposed(lib: KernelLibrary, seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    for _ in range(12):
        nd = int(rng.integers(1, 4))
        groups, n = int(rng.choice([1, 1, 2, 3])), int(rng.choice([1, 2, 3]))
        cg, og = int(rng.choice([1, 3, 8, 17])), int(rng.choice([1, 5, 16, 40, 70]))
        kernel, stride, dilation, pad, size = geometry(rng, nd)
        extra = [int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation)]
        if any(transposed_size(*a) <= 0 for a in zip(size, kernel, stride, pad, dilation, extra)):
            continue
        x = physical(rng, data(rng, (n, cg * groups, *size), np.float32))
        w = data(rng, (cg * groups, og, *kernel), np.float32)
        packed = bool(rng.integers(0, 2))
        got = run_conv(lib, x, w, stride, pad, dilation, groups, transposed=True, output_padding=extra, packed=packed)
        note = (x.shape, w.shape, stride, pad, dilation, groups, extra, packed)
        check(got, reference(x, w, stride, pad, dilation, groups, extra), note)


LONG = [((2, 2), (2, 2), (0, 0)), ((2, 3), (3, 3), (1, 0)), ((4, 4), (2, 2), (1, 1))]


@pytest.mark.parametrize("case", LONG, ids=str)
def test_transposed_with_long_rows(lib: KernelLibrary, case: Any) -> None:
    """Rows whose pixels of a class are taken as a line: with a tap each, none, or several; with every step."""
    kernel, stride, pad = case
    rng = np.random.default_rng(7)
    for n, groups, cg, og, (h, width) in ((1, 1, 24, 40, (3, 130)), (2, 2, 9, 21, (2, 101)), (1, 1, 300, 16, (1, 97))):
        x = channels_last(data(rng, (n, cg * groups, h, width), np.float32))
        w = data(rng, (cg * groups, og, *kernel), np.float32) / np.float32(np.sqrt(cg))
        want = reference(x, w, stride, pad, (1, 1), groups, (1, 1))
        o, pixels = og * groups, want.shape[2] * want.shape[3]
        bias, residual = data(rng, (o,), np.float32), data(rng, (n, 1, pixels, o), np.float32)
        rest = np.moveaxis(residual.reshape(n, *want.shape[2:], o), -1, 1)
        more = {"transposed": True, "output_padding": (1, 1)}
        args = (lib, x, w, stride, pad, (1, 1), groups)
        got = run_conv(*args, **more, bias=bias, residual=residual, clamp=(-1.0, 2.0))
        check(got, np.clip(want + bias.reshape(o, 1, 1) + rest, -1, 2), (case, x.shape))
        for threads, mode in ((1, "serial"), (3, "threads"), (5, "reverse")):
            other = run_conv(*args, **more, bias=bias, residual=residual, clamp=(-1.0, 2.0), threads=threads, mode=mode)
            assert np.array_equal(got, other), (case, threads, mode)
        rows = np.broadcast_to(bias, (n, 1, pixels, o))
        got = run_conv(*args, **more, extras=[rows, residual], epilogue="test_epilogue")
        check(got, np.maximum(want + bias.reshape(o, 1, 1), 0) + rest, (case, x.shape, "epilogue"))


@pytest.mark.parametrize("seed", range(8))
def test_depthwise(lib: KernelLibrary, seed: int) -> None:
    rng = np.random.default_rng(200 + seed)
    for _ in range(12):
        nd = int(rng.integers(1, 4))
        channels, filters = int(rng.choice([2, 3, 5, 8, 17, 33, 40, 70, 130])), int(rng.choice([1, 1, 1, 2, 3]))
        kernel, stride, dilation, pad, size = geometry(rng, nd)
        dtype = rng.choice([np.float32, np.float32, np.float64])
        x = physical(rng, data(rng, (int(rng.choice([0, 1, 2])), channels, *size), dtype))
        w = data(rng, (channels * filters, 1, *kernel), dtype)
        packed = bool(rng.integers(0, 2))
        got = run_conv(lib, x, w, stride, pad, dilation, channels, packed=packed, threads=int(rng.integers(1, 4)))
        check(got, reference(x, w, stride, pad, dilation, channels), (x.shape, w.shape, stride, pad, dilation, packed))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_sliding_windows(lib: KernelLibrary, kernel: int, stride: int) -> None:
    """Every number of columns that blocks of 8, 7, 4 and fewer can leave over; whole vectors of channels or not;
    padding by none, half of the window (which blocks know) and any other number of columns."""
    rng = np.random.default_rng(10 * kernel + stride)
    for width in range(1, 31):
        pad = width % kernel
        if width + 2 * pad < kernel:
            continue
        for channels in (8, 20, 64):
            x = physical(rng, data(rng, (1, channels, kernel + 1, width), np.float32))
            w = data(rng, (channels, 1, kernel, kernel), np.float32)
            size = ((stride, stride), (pad, pad), (1, 1))
            got = run_conv(lib, x, w, *size, channels, packed=True, threads=2)
            check(got, reference(x, w, *size, channels), (x.shape, kernel, stride, pad))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_sums_do_not_depend_on_blocks(lib: KernelLibrary, kernel: int, stride: int) -> None:
    """A column's sum is the same, bit for bit, wherever it lies in its block, whatever number of rows is made."""
    rng = np.random.default_rng(kernel + stride)
    channels, pad = 40, kernel // 2
    x, w = data(rng, (1, channels, 20, 61), np.float32), data(rng, (channels, 1, kernel, kernel), np.float32)
    size = ((stride, stride), (pad, pad), (1, 1))
    want = run_conv(lib, channels_last(x), w, *size, channels, packed=True)
    for width in range(kernel, 34):
        got = run_conv(lib, channels_last(x[:, :, :, :width]), w, *size, channels, packed=True, threads=width % 3 + 1)
        inner = (width - 1 - pad) // stride + 1 - pad  # columns whose windows end before the cut
        assert np.array_equal(got[..., : max(inner, 0)], want[..., : max(inner, 0)]), width
    rows = run_conv(lib, channels_last(x[:, :, : 9 + pad]), w, *size, channels, packed=True)
    assert np.array_equal(rows[:, :, : 9 // stride], want[:, :, : 9 // stride])


@pytest.mark.parametrize("channels", [40, 600])
def test_depthwise_lines_are_shared_by_any_threads(lib: KernelLibrary, channels: int) -> None:
    """However many groups the lines are dealt in, none is left out or made twice with another result."""
    rng = np.random.default_rng(channels)
    x, w = data(rng, (2, channels, 25, 9), np.float32), data(rng, (channels, 1, 3, 3), np.float32)
    size = ((1, 1), (1, 1), (1, 1))
    for lines in (1, 3, 4, 5, 8, 9, 12, 17, 25):
        image = channels_last(x[:, :, :lines])
        want = run_conv(lib, image, w, *size, channels, packed=True)
        check(want, reference(image, w, *size, channels), (lines, channels))
        for threads in (2, 3, 4):
            for mode in MODES:
                again = run_conv(lib, image, w, *size, channels, packed=True, threads=threads, mode=mode)
                assert np.array_equal(want, again), (lines, threads, mode)


CASES = [  # input, weights, stride, padding, dilation, groups: other dtypes
    ((2, 6, 9, 8), (9, 2, 3, 3), (2, 1), (1, 0), (1, 2), 3),
    ((1, 20, 13), (33, 20, 5), (1,), (2,), (1,), 1),
    ((1, 8, 7, 6), (8, 1, 3, 3), (1, 1), (1, 1), (1, 1), 8),
    ((1, 2, 4, 5, 3), (5, 2, 2, 2, 2), (1, 1, 2), (1, 0, 1), (1, 1, 1), 1),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize(
    "dtype", ["float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "complex64", "complex128"]
)
def test_dtypes(lib: KernelLibrary, case: int, dtype: str) -> None:
    rng = np.random.default_rng(case)
    dt = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    xs, ws, stride, pad, dilation, groups = CASES[case]
    x, w = physical(rng, data(rng, xs, dt)), data(rng, ws, dt)
    if dt.kind in "iuc":
        kernel, packed = "effc_conv_plain", False
        size = {
            "kernel": kernel,
            "packed": packed,
            "depthwise": False,
            "scratch_override": (w.size * dt.itemsize, ws[0] * dt.itemsize),
        }
        got = run_conv(lib, x, w, stride, pad, dilation, groups, **size)
    else:
        got = run_conv(lib, x, w, stride, pad, dilation, groups)
    check(got, reference(x, w, stride, pad, dilation, groups), (case, dtype))


LARGE = [  # shapes that split the reduction, span several images in a block, skip taps, and have whole-vector borders
    ((1, 40, 128, 1), (70, 40, 64, 1), (1, 1), (31, 0), 1, "reduction longer than a block, 1-d as 2-d"),
    ((5, 24, 8, 1), (48, 24, 64, 1), (1, 1), (32, 0), 1, "most taps outside, several images in a tile"),
    ((3, 1, 200), (64, 1, 50), (4,), (25,), 1, "one channel, large window"),
    ((1, 1536, 7, 7), (130, 1536, 1, 1), (1, 1), (0, 0), 1, "pointwise, long reduction"),
    ((1, 3, 33, 35), (32, 3, 7, 7), (2, 2), (3, 3), 1, "first layer"),
    ((2, 512, 3, 3), (96, 512, 3, 3), (1, 1), (1, 1), 1, "many channels, tiny image"),
]


@pytest.mark.parametrize("case", LARGE, ids=[c[-1] for c in LARGE])
def test_large(lib: KernelLibrary, case: Any) -> None:
    xs, ws, stride, pad, groups, _ = case
    rng = np.random.default_rng(5)
    x, w = data(rng, xs, np.float32), data(rng, ws, np.float32)
    dilation = (1,) * len(stride)
    want = reference(x, w, stride, pad, dilation, groups)
    for layout in (x, channels_last(x)):
        check(run_conv(lib, layout, w, stride, pad, dilation, groups), want, "packed")
        check(run_conv(lib, layout, w, stride, pad, dilation, groups, packed=False), want, "weights not constant")


@pytest.mark.parametrize("depthwise", [False, True])
def test_epilogue(lib: KernelLibrary, depthwise: bool) -> None:
    rng = np.random.default_rng(7)
    for n, c, o, size, kernel in [
        (2, 5, 37, (9, 11), (3, 3)),
        (1, 16, 300, (14, 13), (1, 1)),
        (3, 40, 20, (3, 2), (3, 1)),
    ]:
        out = c if depthwise else o
        x = channels_last(data(rng, (n, c, *size), np.float32))
        w = data(rng, (out, 1 if depthwise else c, *kernel), np.float32)
        pad = tuple(k // 2 for k in kernel)
        pixels = size[0] * size[1]
        bias = np.broadcast_to(data(rng, (out,), np.float32), (n, 1, pixels, out))
        residual = data(rng, (n, 1, pixels, out), np.float32)
        acc = reference(x, w, (1, 1), pad, (1, 1), c if depthwise else 1)
        rows = np.moveaxis(acc, 1, -1).reshape(n, 1, pixels, out)
        want = np.moveaxis((np.maximum(rows + bias, 0) + residual).reshape(n, *size, out), -1, 1)
        for mode in MODES:
            got = run_conv(
                lib,
                x,
                w,
                (1, 1),
                pad,
                (1, 1),
                c if depthwise else 1,
                extras=[bias, residual],
                epilogue="test_epilogue",
                mode=mode,
            )
            check(got, want, mode)


@pytest.mark.parametrize("seed", range(4))
def test_steps(lib: KernelLibrary, seed: int) -> None:
    """Bias, residual and clamp in the kernel itself."""
    rng = np.random.default_rng(300 + seed)
    cases: list[Any] = [
        ((2, 5, 9, 11), (37, 5, 3, 3), 1),
        ((1, 16, 14, 13), (100, 16, 1, 1), 1),
        ((2, 33, 7, 8), (33, 1, 3, 3), 33),
    ]
    cases += [((1, 4, 6, 1), (9, 2, 3, 1), 1), ((1, 70, 64, 1), (20, 70, 40, 1), 1), ((3, 6, 4, 4), (1, 6, 3, 3), 1)]
    for xs, ws, groups in cases:
        if xs[1] != ws[1] * groups:
            groups = xs[1] // ws[1]
            ws = (ws[0] // groups * groups + groups, *ws[1:])
        dtype = np.float64 if seed == 3 else np.float32
        x, w = physical(rng, data(rng, xs, dtype)), data(rng, ws, dtype)
        x[(0,) * x.ndim] = np.nan
        pad, one = tuple(k // 2 for k in ws[2:]), (1,) * (len(xs) - 2)
        acc = reference(x, w, one, pad, one, groups)
        depthwise = groups == xs[1] and groups > 1
        bias = data(rng, (ws[0],), dtype) if rng.integers(0, 4) else None
        rows = np.ascontiguousarray(np.moveaxis(data(rng, acc.shape, dtype), 1, -1))
        residual = None if depthwise or not rng.integers(0, 2) else rows.reshape(xs[0], 1, -1, ws[0])
        clamp = [None, (0.0, 6.0), (0.0, np.inf), (-np.inf, 1.0)][rng.integers(0, 4)]
        want = acc if bias is None else acc + bias.reshape(-1, *one)
        want = want if residual is None else want + np.moveaxis(rows, -1, 1)
        want = want if clamp is None else np.minimum(np.maximum(want, clamp[0]), clamp[1])
        got = run_conv(lib, x, w, one, pad, one, groups, bias=bias, residual=residual, clamp=clamp)
        assert np.isnan(want).any() and np.array_equal(np.isnan(got), np.isnan(want))
        check(np.nan_to_num(got), np.nan_to_num(want), (xs, ws, clamp))


GROUPED = [  # groups, channels of one in and out, image, window, stride, padding, dilation
    (8, 4, 4, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    (12, 2, 2, (7, 30), (3, 5), (2, 1), (1, 2), (1, 2)),
    (6, 8, 8, (13, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    (26, 8, 8, (7, 7), (3, 3), (2, 2), (1, 1), (1, 1)),
    (5, 16, 16, (6, 9), (3, 3), (1, 1), (2, 0), (1, 1)),
    (3, 4, 12, (8, 8), (3, 3), (1, 1), (1, 1), (2, 2)),
    (3, 12, 20, (5, 6), (2, 3), (1, 1), (1, 1), (1, 1)),
    (16, 4, 4, (6, 5), (1, 1), (1, 1), (0, 0), (1, 1)),
    (8, 8, 8, (6, 5), (1, 1), (2, 2), (0, 0), (1, 1)),
    (4, 4, 4, (4, 5, 6), (3, 3, 3), (1, 2, 1), (1, 1, 0), (1, 1, 1)),
    (2, 40, 33, (90,), (5,), (1,), (2,), (1,)),
    (7, 4, 4, (10, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_groups(lib: KernelLibrary, case: Any) -> None:
    """Lists that groups share, and groups that share vectors: for any threads, with steps and an epilogue, and with NaN
    in one group's channels, which no other's results show."""
    groups, cg, og, size, *window = case
    kernel, stride, pad, dilation = window
    rng = np.random.default_rng(groups)
    for n in (1, 3):
        x = channels_last(data(rng, (n, groups * cg, *size), np.float32))
        w = data(rng, (groups * og, cg, *kernel), np.float32)
        want = reference(x, w, stride, pad, dilation, groups)
        args = (lib, x, w, stride, pad, dilation, groups)
        first = run_conv(*args, threads=1, mode="serial")
        check(first, want, case)
        for threads, mode in ((2, "threads"), (3, "threads"), (5, "reverse")):
            assert np.array_equal(run_conv(*args, threads=threads, mode=mode), first), (threads, mode)
        check(run_conv(*args, packed=False), want, "not packed")
        pixels, o = int(np.prod(want.shape[2:])), groups * og
        bias, residual = data(rng, (o,), np.float32), data(rng, (n, 1, pixels, o), np.float32)
        added = np.moveaxis(residual.reshape(n, *want.shape[2:], o), -1, 1)
        biased = want + bias.reshape(o, *[1] * len(size))
        got = run_conv(*args, bias=bias, residual=residual, clamp=(-1.0, 2.0))
        check(got, np.clip(biased + added, -1, 2), "steps")
        extras = [np.broadcast_to(bias, residual.shape), residual]
        check(run_conv(*args, extras=extras, epilogue="test_epilogue"), np.maximum(biased, 0) + added, "epilogue")
        g = int(rng.integers(groups))
        x[:, g * cg + cg // 2] = np.nan
        got = run_conv(*args)
        mine = np.zeros(o, bool)
        mine[g * og : (g + 1) * og] = True
        assert np.array_equal(got[:, ~mine], first[:, ~mine]) and np.isnan(got[:, mine]).any()


def test_groups_share_vectors() -> None:
    assert [packing.sharing(*a, 8) for a in ((32, 4, 4, 9), (32, 2, 2, 9), (33, 4, 4, 9), (32, 4, 8, 9))] == [
        2,
        4,
        1,
        1,
    ]
    assert [packing.sharing(32, c, c, taps, 16) for c, taps in ((8, 9), (8, 49), (16, 9))] == [2, 1, 1]


def test_result_does_not_depend_on_threads(lib: KernelLibrary) -> None:
    rng = np.random.default_rng(8)
    for groups, cg in ((1, 24), (24, 1)):
        x = channels_last(data(rng, (2, 24, 17, 19), np.float32))
        w = data(rng, (24, cg, 3, 3), np.float32)
        first = run_conv(lib, x, w, (1, 1), (1, 1), (1, 1), groups, threads=1, mode="serial")
        for threads in (2, 3, 7):
            for mode in MODES:
                again = run_conv(lib, x, w, (1, 1), (1, 1), (1, 1), groups, threads=threads, mode=mode)
                assert np.array_equal(first, again)


def test_nan_and_inf_stay_where_they_are(lib: KernelLibrary) -> None:
    rng = np.random.default_rng(9)
    x, w = data(rng, (1, 9, 8, 8), np.float32), data(rng, (20, 9, 3, 3), np.float32)
    x[0, 3, 2, 5], x[0, 1, 7, 0] = np.nan, np.inf
    got = run_conv(lib, channels_last(x), w, (1, 1), (1, 1), (1, 1), 1)
    want = reference(x, w, (1, 1), (1, 1), (1, 1), 1)
    assert np.isnan(want).any() and np.isinf(want).any()
    assert np.array_equal(np.isnan(got), np.isnan(want)) and np.array_equal(np.isposinf(got), np.isposinf(want))


def test_wrong_calls_are_refused(lib: KernelLibrary) -> None:
    x = np.zeros((1, 1, 1, 1), np.float32)
    for kernel in ("effc_conv_f32", "effc_conv_dw_f32", "effc_conv_plain"):
        with pytest.raises(KernelError, match="conv"):
            lib.call(kernel, [x, x], [x.copy()], attrs=[1])


@pytest.mark.parametrize("vlen", [32, 64])
def test_packing_round_trip(vlen: int) -> None:
    rng = np.random.default_rng(10)
    for _ in range(40):
        nd, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        cg, og = int(rng.integers(1, 20)), int(rng.integers(1, 150))
        kernel = rng.integers(1, 4, nd).tolist()
        dtype = np.dtype(rng.choice([np.float32, np.float64]))
        transposed = bool(rng.integers(0, 2))
        w = data(rng, (cg * groups, og, *kernel) if transposed else (og * groups, cg, *kernel), dtype)
        packed = packing.pack_conv(w, groups, vlen, transposed=transposed)
        assert np.array_equal(packing.unpack(packed).reshape(w.shape), w)
        d = data(rng, (og, 1, *kernel), dtype)
        assert np.array_equal(packing.unpack(packing.pack_depthwise(d)).reshape(d.shape), d)
    half = data(rng, (4, 3, 2), ml_dtypes.bfloat16)
    assert np.array_equal(packing.unpack(packing.pack_conv(half, 1, vlen)).reshape(half.shape), half.astype(np.float32))


def test_damaged_packing_is_refused() -> None:
    packed = packing.pack_conv(np.ones((4, 3, 2), np.float32), 1, 32)
    for damage in (
        packed[:40],
        packed[:-4],
        np.concatenate([packed[:70], packed[70:71] ^ 1, packed[71:]]),
        packed ^ 255,
    ):
        with pytest.raises(packing.PackingError):
            packing.unpack(damage)


def test_panel_widths() -> None:
    for vlen, lanes in ((32, 8), (64, 16)):
        for og in range(1, 700):
            nv = packing.choose_nv(og, lanes, vlen)
            assert 1 <= nv <= 4 and (nv == 1 or (nv - 1) * lanes < og)


@pytest.mark.parametrize("nv", [1, 2, 3, 4])
@pytest.mark.parametrize("case", range(4))
def test_any_blocking(lib: KernelLibrary, nv: int, case: int) -> None:
    """Blockings that the cost model may choose, and odd ones: the same sums, whatever the threads."""
    rng = np.random.default_rng(case)
    ci, co, groups, kernel, size = [(20, 50, 1, 3, 9), (12, 36, 2, 3, 7), (3, 70, 1, 5, 13), (70, 33, 1, 1, 11)][case]
    x = channels_last(rng.standard_normal((2, ci, size, size)).astype(np.float32))
    w = rng.standard_normal((co, ci // groups, kernel, kernel)).astype(np.float32)
    pad = (kernel // 2,) * 2
    want = run_conv(lib, x, w, (1, 1), pad, (1, 1), groups)
    mr, wide = packing.max_rows(nv, lib.vlen), nv * lib.vlen // 4
    for rows, cols, k in ((mr, wide, 1), (3 * mr, 2 * wide, 17), (20 * mr, 5 * wide, 4096)):
        blocking = (nv, rows, cols, k)
        results = {
            run_conv(lib, x, w, (1, 1), pad, (1, 1), groups, blocking=blocking, threads=t, mode=m).tobytes()
            for t, m in ((1, "serial"), (3, "reverse"), (2, "threads"))
        }
        got = run_conv(lib, x, w, (1, 1), pad, (1, 1), groups, blocking=blocking)
        assert len(results) == 1
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("epilogue", [False, True])
def test_pointwise_lines_and_lists(lib: KernelLibrary, epilogue: bool) -> None:
    """A pointwise convolution takes its pixels as they lie, or from a list where the scratch has room for one: the same
    bits, for images, rows and parts of rows that do not follow each other."""
    rng = np.random.default_rng(12)
    for n, c, o, h, width in ((2, 24, 20, 5, 7), (3, 9, 50, 1, 4), (1, 40, 33, 9, 41), (2, 130, 8, 3, 1)):
        w = data(rng, (o, c, 1, 1), np.float32)
        whole = channels_last(data(rng, (n, c, h, width), np.float32))
        apart = channels_last(data(rng, (2 * n, c + 3, h + 2, 2 * width), np.float32))[::2, 3:, 1:-1, width:]
        apart[...] = whole
        rows = channels_last(data(rng, (n, c, 2 * h, width), np.float32))[:, :, h:]
        rows[...] = whole
        pixels, more = h * width, {}
        if epilogue:
            extras = [data(rng, (n, 1, pixels, o), np.float32) for _ in range(2)]
            more = {"extras": extras, "epilogue": "test_epilogue"}
        shape = packing.Shape(o, c, 1, 1, 4, lib.vlen, True, True, pixels=n * pixels, direct=not epilogue)
        full, least = shape.rule(), dataclasses.replace(shape, lines=True).rule()
        assert least.thread_scratch < full.thread_scratch and (epilogue or least.thread_scratch == 0)
        found = []
        for x in (whole, apart, rows):
            for room in (full, least):
                scratch = (room.scratch, int(room.thread_scratch))
                got = run_conv(lib, x, w, (1, 1), (0, 0), (1, 1), 1, scratch_override=scratch, **more)
                found.append(got.tobytes())
        assert len(set(found)) == 1
        if not epilogue:
            check(np.ascontiguousarray(got), reference(whole, w, (1, 1), (0, 0), (1, 1), 1), (n, c, o, h, width))


@pytest.mark.parametrize("channels", [8, 20, 33, 100])
def test_results_are_claimed_where_threads_share_them(lib: KernelLibrary, channels: int) -> None:
    """With several threads, a pointwise convolution with an epilogue writes to one element of each line of its result
    beforehand, and to nothing else; not where an operand lies in the same memory."""
    rng = np.random.default_rng(17)
    x, w = channels_last(data(rng, (2, 24, 5, 13), np.float32)), data(rng, (channels, 24, 1, 1), np.float32)
    shape = packing.Shape(channels, 24, 1, 1, 4, lib.vlen, True, True, pixels=130, lines=True)
    wide = shape.rule().nv * lib.vlen // 4
    first = [n for p in range(0, channels, wide) for n in range(p, min(channels, p + wide), 16)]
    room = np.empty((2, 1, 65, channels + 5), np.float32)
    for threads in (1, 2, 3):
        room[...] = 77
        left = room[..., 2:-3]
        run_conv(lib, x, w, (1, 1), (0, 0), (1, 1), 1, epilogue="test_nothing", result=left, threads=threads)
        expected = np.full(room.shape, 77, np.float32)
        if threads > 1:
            expected[..., [2 + n for n in first]] = 0
        assert np.array_equal(room, expected)
    bias = np.broadcast_to(data(rng, (channels,), np.float32), left.shape)
    acc = np.moveaxis(reference(x, w, (1, 1), (0, 0), (1, 1), 1), 1, -1).reshape(left.shape)
    residual = data(rng, left.shape, np.float32)
    want = np.maximum(acc + bias, 0) + residual
    for mode in MODES:
        left[...] = residual
        more = {"extras": [bias, left], "epilogue": "test_epilogue", "result": left, "mode": mode}
        got = run_conv(lib, x, w, (1, 1), (0, 0), (1, 1), 1, **more)
        check(np.ascontiguousarray(np.moveaxis(got, 1, -1)).reshape(left.shape), want, mode)


@pytest.mark.parametrize("epilogue", [False, True])
def test_scaled_channels(lib: KernelLibrary, epilogue: bool) -> None:
    """A scale for each channel of x, of each image or of all, whatever is a block: parts of images, several images,
    ranges of k; the same bits for any number of threads. Where pixels are no lines it is refused."""
    rng = np.random.default_rng(3)
    for n, c, o, h, width in ((2, 24, 20, 5, 7), (3, 9, 50, 1, 4), (1, 700, 33, 9, 11), (2, 130, 8, 13, 21)):
        w, pixels = data(rng, (o, c, 1, 1), np.float32), h * width
        image = channels_last(data(rng, (n, c, h, width), np.float32))
        rows = channels_last(data(rng, (n, c, 2 * h, width), np.float32))[:, :, h:]
        for x, images in ((image, n), (image, 1), (rows, n)):
            scale = data(rng, (images, c), np.float32)
            steps: dict[str, Any] = {"scale": scale}
            want = reference(x * scale[:, :, None, None], w, (1, 1), (0, 0), (1, 1), 1)
            if epilogue:
                extras = [data(rng, (n, 1, pixels, o), np.float32) for _ in range(2)]
                steps |= {"extras": extras, "epilogue": "test_epilogue"}
            else:
                steps["residual"] = data(rng, (n, 1, pixels, o), np.float32)
                want = want + np.moveaxis(steps["residual"].reshape(n, h, width, o), -1, 1)
            mr, wide = packing.max_rows(2, lib.vlen), 2 * lib.vlen // 4
            for blocking in (None, (2, mr, wide, 17), (2, 4 * mr, 2 * wide, 300)):
                made = [
                    run_conv(lib, x, w, (1, 1), (0, 0), (1, 1), 1, blocking=blocking, threads=t, **steps)
                    for t in (1, 3)
                ]
                assert made[0].tobytes() == made[1].tobytes()
                if epilogue:
                    scaled = np.ascontiguousarray(np.moveaxis(x * scale[:, :, None, None], 1, -1))
                    plain = {k: v for k, v in steps.items() if k != "scale"}
                    want = run_conv(lib, np.moveaxis(scaled, -1, 1), w, (1, 1), (0, 0), (1, 1), 1, **plain)
                check(np.ascontiguousarray(made[0]), np.asarray(want, np.float64), (n, c, o, x.strides, blocking))
    with pytest.raises(KernelError, match="scale"):
        run_conv(lib, image, w, (2, 1), (0, 0), (1, 1), 1, scale=scale)


def test_scratch_is_bounded_by_the_image_and_checked(lib: KernelLibrary) -> None:
    """A thread's scratch grows with the image up to a block's; less than the kernel needs is refused."""
    rng = np.random.default_rng(13)
    base = packing.Shape(16, 24, 1, 9, 4, lib.vlen, True, True)
    sizes = [dataclasses.replace(base, pixels=p).rule().thread_scratch for p in (1, 20, 100, 10**6)]
    assert sizes == sorted(set(sizes)) and sizes[-1] == base.rule().thread_scratch and sizes[0] < 0.1 * sizes[-1]
    n = dims.symbol("n")
    bound = dataclasses.replace(base, pixels=25 * n, direct=True).rule().thread_scratch
    for images in (1, 2, 40):
        fixed = dataclasses.replace(base, pixels=25 * images, direct=True).rule().thread_scratch
        assert dims.evaluate(bound, {"n": images}) == fixed
    x, w = channels_last(data(rng, (1, 24, 5, 5), np.float32)), data(rng, (16, 24, 3, 3), np.float32)
    one, pad = (1, 1), (1, 1)
    room = dataclasses.replace(base, pixels=25, direct=True).rule()
    run_conv(lib, x, w, one, pad, one, 1, scratch_override=(room.scratch, int(room.thread_scratch)))
    with pytest.raises(KernelError, match="scratch"):
        run_conv(lib, x, w, one, pad, one, 1, scratch_override=(room.scratch, int(room.thread_scratch) - 64))
    deep = data(rng, (24, 1, 3, 3), np.float32)
    extras = [data(rng, (1, 1, 25, 24), np.float32)] * 2
    with pytest.raises(KernelError, match="scratch"):
        more = {"extras": extras, "epilogue": "test_epilogue"}
        run_conv(lib, x, deep, one, pad, one, 24, scratch_override=(0, 64), **more)


def test_candidates_begin_with_the_rule_and_are_whole_tiles() -> None:
    for og, cg, taps, vlen in ((64, 64, 9, 32), (1000, 3, 49, 32), (7, 2000, 1, 64), (1, 1, 1, 32)):
        shape = packing.Shape(og, cg, 1, taps, 4, vlen, True, True)
        ways = shape.candidates()
        assert ways[0] == shape.rule() and len({tuple(w.attrs) for w in ways}) == len(ways)
        for w in ways:
            wide = w.nv * vlen // 4
            assert w.rows % packing.max_rows(w.nv, vlen) == 0 and w.cols % wide == 0 and 1 <= w.k <= max(1, cg * taps)
            assert w.cols <= -(-og // wide) * wide and w.rows * w.cols * 4 <= 256 * 1024
