"""Numpy references of convolution, pooling, padding, resize and sampling against PyTorch, over random odd
geometries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from effc.ir.op import get

torch = pytest.importorskip("torch")
F = torch.nn.functional


def run(op: str, *arrays: np.ndarray, **attrs: Any) -> Any:
    d = get(op)
    assert d.numpy is not None
    return d.numpy(*arrays, **d.complete(attrs))


def close(got: np.ndarray, want: Any, tolerance: float = 1e-5) -> None:
    want = want.numpy()
    assert got.shape == want.shape and got.dtype == want.dtype
    assert np.array_equal(np.isnan(got), np.isnan(want))
    scale = np.abs(np.nan_to_num(want)).max(initial=0)
    assert np.abs(np.nan_to_num(got.astype(np.float64)) - np.nan_to_num(want)).max(initial=0) <= tolerance * scale


def pairs(pad: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(p), int(p)) for p in pad)


@pytest.mark.parametrize("seed", range(4))
def test_convolutions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(15):
        nd, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        kernel, stride = rng.integers(1, 4, nd).tolist(), rng.integers(1, 4, nd).tolist()
        dilation, pad = rng.integers(1, 3, nd).tolist(), rng.integers(0, 3, nd).tolist()
        size = [max(int(rng.integers(1, 8)), d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, pad)]
        cg, og, n = int(rng.integers(1, 5)), int(rng.integers(1, 5)), int(rng.integers(0, 3))
        x = rng.standard_normal((n, cg * groups, *size)).astype(np.float32)
        w = rng.standard_normal((og * groups, cg, *kernel)).astype(np.float32)
        attrs = {"stride": tuple(stride), "padding": pairs(pad), "dilation": tuple(dilation), "groups": groups}
        conv = (F.conv1d, F.conv2d, F.conv3d)[nd - 1]
        t = {"stride": stride, "padding": pad, "dilation": dilation, "groups": groups}
        close(run("conv", x, w, **attrs), conv(torch.from_numpy(x), torch.from_numpy(w), **t))
        extra = [int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation)]
        shape = [
            (s - 1) * st - 2 * p + d * (k - 1) + e + 1
            for s, st, p, d, k, e in zip(size, stride, pad, dilation, kernel, extra)
        ]
        if n and min(shape) > 0:
            w = rng.standard_normal((cg * groups, og, *kernel)).astype(np.float32)
            conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[nd - 1]
            want = conv(torch.from_numpy(x), torch.from_numpy(w), output_padding=extra, **t)
            close(run("conv_transpose", x, w, output_padding=tuple(extra), **attrs), want)


@pytest.mark.parametrize("seed", range(4))
def test_pools(seed: int) -> None:
    rng = np.random.default_rng(10 + seed)
    for _ in range(25):
        nd = int(rng.integers(1, 4))
        kernel, stride = rng.integers(1, 5, nd).tolist(), rng.integers(1, 4, nd).tolist()
        pad = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
        dilation = rng.integers(1, 3, nd).tolist()
        size = [max(int(rng.integers(1, 10)), d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, pad, dilation)]
        ceil = bool(rng.integers(0, 2))
        x = rng.integers(-4, 5, (2, 3, *size)).astype(np.float32)  # with ties
        if rng.integers(0, 2):
            x.reshape(-1)[rng.integers(0, x.size, 3)] = [np.nan, -np.inf, np.inf]
        window = {"kernel": tuple(kernel), "stride": tuple(stride), "padding": pairs(pad), "ceil_mode": ceil}
        best = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[nd - 1]
        want = best(torch.from_numpy(x), kernel, stride, pad, dilation, ceil_mode=ceil, return_indices=True)
        got = run("max_pool", x, dilation=tuple(dilation), indices=True, **window)
        assert np.array_equal(got[0], want[0].numpy(), equal_nan=True) and np.array_equal(got[1], want[1].numpy())
        y = np.nan_to_num(x, nan=0.5, posinf=1, neginf=-1)
        mean = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[nd - 1]
        size = [max(s + 1, k) for s, k in zip(size, kernel)]
        y = rng.standard_normal((2, 3, *size)).astype(np.float32)
        include = bool(rng.integers(0, 2))
        more = {} if nd == 1 else {"divisor_override": [None, 3][int(rng.integers(0, 2))]}
        want = mean(torch.from_numpy(y), kernel, stride, pad, ceil_mode=ceil, count_include_pad=include, **more)
        close(run("avg_pool", y, count_include_pad=include, divisor=more.get("divisor_override") or 0, **window), want)
        out = rng.integers(1, 8, nd).tolist()
        adaptive = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[nd - 1]
        close(run("adaptive_avg_pool", y, size=tuple(out)), adaptive(torch.from_numpy(y), out))
        adaptive = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[nd - 1]
        want = adaptive(torch.from_numpy(y), out, return_indices=True)
        got = run("adaptive_max_pool", y, size=tuple(out), indices=True)
        assert np.array_equal(got[0], want[0].numpy()) and np.array_equal(got[1], want[1].numpy())


@pytest.mark.parametrize("seed", range(4))
def test_resize(seed: int) -> None:
    rng = np.random.default_rng(20 + seed)
    for _ in range(25):
        nd = int(rng.integers(1, 4))
        size, out = rng.integers(1, 12, nd).tolist(), rng.integers(1, 20, nd).tolist()
        x = rng.standard_normal((1, 2, *size)).astype(np.float32)
        t = torch.from_numpy(x)
        linear = ("linear", "bilinear", "trilinear")[nd - 1]
        for align in (False, True):
            coords = "align_corners" if align else "half_pixel"
            want = F.interpolate(t, size=out, mode=linear, align_corners=align)
            close(run("resize", x, size=tuple(out), mode="linear", coords=coords), want)
            if nd == 2:
                want = F.interpolate(t, size=out, mode="bicubic", align_corners=align)
                close(run("resize", x, size=tuple(out), mode="cubic", coords=coords), want)
                for mode, name in (("linear", "bilinear"), ("cubic", "bicubic")):
                    if out[1] == 1:  # PyTorch 2.13 repeats one row here
                        continue
                    want = F.interpolate(t, size=out, mode=name, align_corners=align, antialias=True)
                    close(run("resize", x, size=tuple(out), mode=mode, coords=coords, antialias=True), want)
        want = F.interpolate(t, size=out, mode="nearest")
        assert np.array_equal(
            run("resize", x, size=tuple(out), mode="nearest", nearest="floor", coords="asymmetric"), want.numpy()
        )
        want = F.interpolate(t, size=out, mode="nearest-exact")
        assert np.array_equal(run("resize", x, size=tuple(out), mode="nearest", nearest="exact"), want.numpy())
        scale = tuple(float(s) for s in rng.uniform(0.6, 2.7, nd))
        out = [int(np.floor(s * f)) for s, f in zip(size, scale)]
        # PyTorch leaves the scale aside where the size stays or doubles, in some of its kernels but not in others.
        if min(out) > 1 and not any(o in (s, 2 * s) for o, s in zip(out, size)):
            want = F.interpolate(t, scale_factor=scale, mode=linear, align_corners=False)
            close(run("resize", x, size=tuple(out), mode="linear", scales=scale), want)
            got = run("resize", x, size=tuple(out), mode="nearest", nearest="floor", coords="asymmetric", scales=scale)
            assert np.array_equal(got, F.interpolate(t, scale_factor=scale, mode="nearest").numpy())
            if nd == 2:
                want = F.interpolate(t, scale_factor=scale, mode="bilinear", antialias=True)
                close(run("resize", x, size=tuple(out), mode="linear", antialias=True, scales=scale), want)


def test_resize_coordinates_of_onnx() -> None:
    """Positions written out by hand."""
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 4)

    def at(**attrs: Any) -> list[float]:
        return [float(v) for v in run("resize", x, **attrs)[0, 0]]

    assert at(size=(2,), mode="linear", coords="asymmetric") == [0, 2]
    assert at(size=(1,), mode="linear", coords="pytorch_half_pixel") == [0]
    assert at(size=(1,), mode="linear", coords="half_pixel") == [1.5]
    assert at(size=(3,), mode="linear", coords="align_corners") == [0, 1.5, 3]
    crop = at(size=(3,), mode="linear", coords="tf_crop_and_resize", roi=((0.5, 1.5),), extrapolation=-7.0)
    assert crop == [1.5, 3, -7]
    # 4 * 0.6 = 2.4, size 2: the two samples lie symmetrically around the middle 1.5
    low, high = at(size=(2,), mode="linear", coords="half_pixel_symmetric", scales=(0.6,))
    assert abs(low + high - 3) < 1e-5 and abs(high - low - 1 / 0.6) < 1e-5
    # position 0.5 and 2.5 at ratio 2: ties
    for nearest, want in (
        ("floor", [0, 2]),
        ("ceil", [1, 3]),
        ("round_prefer_floor", [0, 2]),
        ("round_prefer_ceil", [1, 3]),
    ):
        assert at(size=(2,), mode="nearest", coords="half_pixel", nearest=nearest) == want


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
def test_grid_sample(mode: str, border: str) -> None:
    rng = np.random.default_rng(30)
    for _ in range(12):
        nd = 2 if mode == "bicubic" else int(rng.integers(2, 4))
        size, out = rng.integers(1, 9, nd).tolist(), rng.integers(1, 9, nd).tolist()
        x, grid = rng.standard_normal((2, 3, *size)), rng.uniform(-2, 2, (2, *out, nd))
        for align in (False, True):
            want = F.grid_sample(
                torch.from_numpy(x), torch.from_numpy(grid), mode=mode, padding_mode=border, align_corners=align
            )
            got = run("grid_sample", x, grid, mode=mode, border=border, align_corners=align)
            close(got, want, 1e-9)


def test_pad_and_fold() -> None:
    rng = np.random.default_rng(40)
    x = rng.standard_normal((2, 3, 5, 6))
    for mode in ("constant", "reflect", "replicate", "circular"):
        for pads in ((1, 2, 3, 0), (4, 4, 0, 2), (0, 0, 0, 0)):
            flat = [*pads[2:], *pads[:2]]
            want = F.pad(torch.from_numpy(x), flat, mode=mode, **({"value": 1.5} if mode == "constant" else {}))
            got = run("pad", x, padding=((0, 0), (0, 0), pads[:2], pads[2:]), mode=mode, value=1.5)
            assert np.array_equal(got, want.numpy())
    want = F.pad(torch.from_numpy(x), (-1, 2, 3, -2), value=-2)
    assert np.array_equal(run("pad", x, padding=((0, 0), (0, 0), (3, -2), (-1, 2)), value=-2), want.numpy())
    for size, kernel, stride, pad, dilation in (
        ((9, 8), (3, 3), (2, 3), (1, 2), (2, 1)),
        ((6, 7), (2, 2), (1, 1), (0, 0), (1, 1)),
    ):
        columns = F.unfold(torch.from_numpy(rng.standard_normal((2, 3, *size))), kernel, dilation, pad, stride)
        want = F.fold(columns, size, kernel, dilation, pad, stride)
        got = run(
            "col2im", columns.numpy(), size=size, kernel=kernel, stride=stride, padding=pairs(pad), dilation=dilation
        )
        close(got, want, 1e-12)
