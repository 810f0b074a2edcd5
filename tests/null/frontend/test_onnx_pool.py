"""Pooling over windows and over regions of interest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nn import close, compare, evaluator, floats, run_node

RNG = np.random.default_rng(12)


def images(n: int, dtype: Any = np.float32) -> list[list[Any]]:
    sizes = (9, 8, 7)[:n]
    return [[floats(RNG, b, 3, *(s + b for s in sizes), dtype=dtype)] for b in (2, 1)]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_windows_of_open_sizes(n: int, auto_pad: str, ceil_mode: int) -> None:
    attrs: Any = {"kernel_shape": [3, 2, 3][:n], "strides": [2, 3, 1][:n], "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        attrs["pads"] = [1, 0, 1][:n] + [0, 1, 1][:n]
    compare("MaxPool", *images(n), ceil_mode=ceil_mode, results=("y", "at"), **attrs)
    for include in (0, 1):
        compare("AveragePool", *images(n), ceil_mode=ceil_mode, count_include_pad=include, **attrs)
    if not ceil_mode:
        for p in (1, 2, 3):
            compare("LpPool", *images(n), p=p, opset=11, **attrs)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float64])
def test_maxima_of_other_types(dtype: Any) -> None:
    sets = [[RNG.integers(0, 100, (b, 2, 6 + b, 5)).astype(dtype)] for b in (1, 2)]
    compare("MaxPool", *sets, opset=12, kernel_shape=[2, 3], strides=[1, 2], pads=[1, 1, 0, 1])


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_places_of_maxima(order: int, n: int) -> None:
    compare(
        "MaxPool", *images(n), results=("y", "at"), storage_order=order, kernel_shape=[2, 3, 2][:n],
        dilations=[2, 1, 3][:n], pads=[1] * 2 * n,
    )  # fmt: skip


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_dilated_means(include: int, ceil_mode: int) -> None:
    attrs: Any = {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [2, 1], "pads": [2, 1, 1, 2]}
    compare("AveragePool", *images(2), count_include_pad=include, ceil_mode=ceil_mode, peer=evaluator, **attrs)


def test_dilated_norms() -> None:
    x = images(2)
    for (y,), (image,) in zip(run_node("LpPool", *x, kernel_shape=[2, 2], dilations=[2, 3], p=2, opset=18), x):
        h, w = image.shape[2] - 2, image.shape[3] - 3
        taps = [image[:, :, i : i + h, j : j + w].astype(np.float64) ** 2 for i in (0, 2) for j in (0, 3)]
        close(y, np.sqrt(sum(taps)).astype(np.float32))


def test_global_norms() -> None:
    for p in (1, 2, 3):
        compare("GlobalLpPool", *images(2), p=p)


def test_unpool_undoes_pool() -> None:
    (image,), (_,) = images(2)[:2]
    image = image[:, :, :8, :8]
    y, at = run_node("MaxPool", [image], kernel_shape=[2, 2], strides=[2, 2], results=("y", "at"))[0]
    compare("MaxUnpool", [y, at], [y[:1], at[:1]], kernel_shape=[2, 2], strides=[2, 2])
    shape = np.array([*image.shape[:2], 9, 10], np.int64)
    compare("MaxUnpool", [y, at, shape], constant=(2,), kernel_shape=[2, 2], strides=[2, 2], peer=evaluator)


def regions(count: int, batch: int) -> list[Any]:
    corner = RNG.uniform(-3, 12, (count, 2))
    extent = RNG.uniform(0.3, 14, (count, 2))
    boxes = np.concatenate([corner, corner + extent], 1).astype(np.float32)
    return [boxes, RNG.integers(0, batch, count)]


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel"])
def test_roi_align(ratio: int, mode: str, coordinates: str) -> None:
    sets = [[floats(RNG, b, 3, 10 + b, 9), *regions(r, b)] for b, r in ((2, 5), (3, 1))]
    compare(
        "RoiAlign", *sets, coordinate_transformation_mode=coordinates, mode=mode, output_height=3, output_width=2,
        sampling_ratio=ratio, spatial_scale=0.7, peer=evaluator,
    )  # fmt: skip


def test_roi_align_first_form() -> None:
    sets = [[floats(RNG, b, 2, 10, 9), *regions(4, b)] for b in (2, 3)]
    compare("RoiAlign", *sets, opset=10, output_height=2, output_width=3, sampling_ratio=2)


def test_roi_align_of_no_regions() -> None:
    sets = [[floats(RNG, 2, 2, 5, 5), *regions(r, 2)] for r in (3, 0)]
    found = run_node("RoiAlign", *sets, output_height=2, output_width=2)
    assert found[1][0].shape == (0, 2, 2, 2)


def test_max_roi_pool() -> None:
    sets = []
    for b, r in ((2, 6), (1, 3)):
        boxes, image = regions(r, b)
        sets.append([floats(RNG, b, 3, 10 + b, 12), np.concatenate([image[:, None], boxes.clip(0, 20)], 1, dtype="f4")])
    compare("MaxRoiPool", *sets, pooled_shape=[3, 2], spatial_scale=0.6)


def test_compiled() -> None:
    compare("MaxPool", *images(2), results=("y", "at"), kernel_shape=[3, 3], auto_pad="SAME_LOWER", strides=[2, 2],
            target="cpu")  # fmt: skip
    compare("AveragePool", *images(2), kernel_shape=[2, 2], dilations=[2, 2], ceil_mode=1, strides=[2, 2], pads=[1] * 4,
            target="cpu", peer=evaluator)  # fmt: skip
    sets = [[floats(RNG, b, 3, 10, 9), *regions(r, b)] for b, r in ((2, 5), (3, 1))]
    compare("RoiAlign", *sets, output_height=2, output_width=2, target="cpu")
