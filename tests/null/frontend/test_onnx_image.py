"""Resize, Upsample, GridSample, AffineGrid, CenterCropPad, DepthToSpace and SpaceToDepth."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_nn import close, compare, evaluator, floats, ort, run_node

import effc.onnx_backend
from effc import EffcError

RNG = np.random.default_rng(16)
F32 = np.float32


def resize(x: Any, scales: Any = None, sizes: Any = None, roi: Any = None) -> list[Any]:
    return [x, None if roi is None else np.asarray(roi, F32), None if scales is None else np.asarray(scales, F32),
            *([] if sizes is None else [np.asarray(sizes, np.int64)])]  # fmt: skip


COORDS = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coords", COORDS)
def test_modes(mode: str, coords: str) -> None:
    """Fixed sizes, scales that give no whole sizes among them; next to the standard's own functions."""
    x = floats(RNG, 2, 3, 5, 6)
    for scales in ([1, 1, 2, 3], [1, 1, 1.7, 0.55]):
        for extra in ({}, {"exclude_outside": 1} if mode == "cubic" else {"nearest_mode": "floor"}):
            compare("Resize", resize(x, scales), constant=(2,), mode=mode, coordinate_transformation_mode=coords,
                    peer=evaluator, **extra)  # fmt: skip
    compare("Resize", resize(x, sizes=[2, 3, 7, 4]), constant=(3,), mode=mode, coordinate_transformation_mode=coords,
            peer=evaluator)  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scale", [2.0, 1.5, 0.5, 1.3])
def test_open_sizes(mode: str, scale: float) -> None:
    sets = [resize(floats(RNG, b, 3, 6 + b, 8), [1, 1, scale, scale]) for b in (2, 1)]
    compare("Resize", *sets, constant=(2,), mode=mode, opset=13)


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_modes(nearest: str) -> None:
    for coords in ("half_pixel", "asymmetric"):
        x = resize(floats(RNG, 1, 2, 5, 4), [1, 1, 2, 2.5])
        compare("Resize", x, constant=(2,), nearest_mode=nearest, coordinate_transformation_mode=coords, peer=evaluator)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("exclude", [0, 1])
@pytest.mark.parametrize("coords", COORDS)
def test_antialias(mode: str, exclude: int, coords: str) -> None:
    attrs: Any = {"mode": mode, "antialias": 1, "coordinate_transformation_mode": coords, "exclude_outside": exclude}
    x = floats(RNG, 1, 2, 9, 7)
    for operands in (resize(x, [1, 1, 0.4, 0.7]), resize(x, sizes=[1, 2, 4, 10])):
        compare("Resize", operands, constant=(2, 3), opset=18, peer=evaluator, **attrs)


def test_antialias_of_open_sizes() -> None:
    for operands in ({"scales": [1, 1, 0.5, 0.3]}, {"sizes": [4, 5]}):
        extra = {"axes": [2, 3]} if "sizes" in operands else {}
        sets = [resize(floats(RNG, b, 2, 9 + b, 8), **operands) for b in (2, 1)]
        compare("Resize", *sets, constant=(2, 3), opset=18, mode="linear", antialias=1, peer=evaluator, **extra)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_kept_aspect_ratio(policy: str) -> None:
    for sizes in ([7, 9], [3, 9], [13, 2]):
        compare("Resize", resize(floats(RNG, 1, 2, 5, 8), sizes=sizes), constant=(3,), opset=18, axes=[2, 3],
                mode="linear", keep_aspect_ratio_policy=policy)  # fmt: skip


def test_axes_in_any_order() -> None:
    x = floats(RNG, 4, 5, 3)
    operands = resize(x, sizes=[7, 6])
    ((want,),) = compare("Resize", operands, constant=(3,), opset=18, axes=[1, 0], mode="linear", peer=evaluator)
    close(run_node("Resize", operands, constant=(3,), opset=18, axes=[-2, 0], mode="linear")[0][0], want)
    compare("Resize", resize(x, [1.5, 2, 2]), constant=(2,), opset=18, mode="linear", peer=evaluator)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_crop(mode: str) -> None:
    roi = [0, 0, 0.4, -0.2, 1, 1, 0.8, 1.1]
    for s in (resize(floats(RNG, 2, 3, 6, 5), sizes=[2, 3, 4, 8], roi=roi),):
        compare("Resize", s, constant=(1, 3), mode=mode, coordinate_transformation_mode="tf_crop_and_resize",
                extrapolation_value=-2.5, peer=evaluator)  # fmt: skip


def test_sizes_and_rois_that_are_inputs() -> None:
    x = floats(RNG, 2, 3, 6, 5)
    compare("Resize", *(resize(x, sizes=s) for s in ([2, 3, 4, 8], [2, 3, 9, 3])), mode="linear")
    roi = [0, 0, 0.4, 0.2, 1, 1, 0.8, 0.9]
    compare("Resize", resize(x, sizes=[2, 3, 4, 8], roi=roi), mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip


def test_first_forms() -> None:
    sets = [[floats(RNG, b, 2, 4 + b, 3), np.array([1, 1, 2, 3], F32)] for b in (2, 1)]
    for mode in ("nearest", "linear"):
        compare("Resize", *sets, opset=10, constant=(1,), mode=mode)
        compare("Upsample", *sets, opset=9, constant=(1,), mode=mode)
        compare("Upsample", *(s[:1] for s in sets), opset=7, mode=mode, scales=[1.0, 1.0, 2.0, 3.0])


def test_upsample_of_the_first_set() -> None:
    x = floats(RNG, 2, 3, 4, 5)
    ((y,),) = run_node("Upsample", [x], opset=6, height_scale=2.0, width_scale=3.0)
    np.testing.assert_array_equal(y, x.repeat(2, 2).repeat(3, 3))


def test_whole_numbers() -> None:
    x = RNG.integers(0, 255, (1, 2, 5, 6)).astype(np.uint8)
    compare("Resize", resize(x, [1, 1, 2, 2]), constant=(2,), mode="nearest")
    ((y,),) = run_node("Resize", resize(x, [1, 1, 2, 2]), constant=(2,), mode="linear")
    ((want,),) = run_node("Resize", resize(x.astype(F32), [1, 1, 2, 2]), constant=(2,), mode="linear")
    assert y.dtype == np.uint8 and np.abs(y - want).max() < 1


def test_scales_that_are_quotients_of_sizes() -> None:
    """One image brought to the size of another, by the arithmetic of exporters."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sx"], start=2), helper.make_node("Shape", ["like"], ["sl"], start=2),
        helper.make_node("Cast", ["sx"], ["fx"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["sl"], ["fl"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["fl", "fx"], ["q"]), helper.make_node("Concat", ["ones", "q"], ["scales"], axis=0),
        helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear"),
        helper.make_node("Add", ["y", "like"], ["z"]),
    ]  # fmt: skip
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, "h", "w"]),
        helper.make_tensor_value_info("like", TensorProto.FLOAT, ["n", 2, "H", "W"]),
    ]
    ones = onnx.numpy_helper.from_array(np.ones(2, F32), "ones")
    graph = helper.make_graph(nodes, "g", infos, [helper.make_empty_tensor_value_info("z")], [ones])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    rep, peer = effc.onnx_backend.EffcRep(model, "reference"), ort(model)
    for n, small, large in ((2, (4, 5), (9, 7)), (1, (6, 3), (6, 8))):
        feeds = {"x": floats(RNG, n, 2, *small), "like": floats(RNG, n, 2, *large)}
        close(rep.run(feeds)[0], peer(feeds)[0])


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(mode: str, padding: str, align: int) -> None:
    sets = [[floats(RNG, b, 3, 5 + b, 6), RNG.uniform(-1.4, 1.4, (b, 4, 3, 2)).astype(F32)] for b in (2, 1)]
    compare("GridSample", *sets, opset=20, mode=mode, padding_mode=padding, align_corners=align, tolerance=5e-5)
    old = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    compare("GridSample", *sets, opset=16, mode=old, padding_mode=padding, align_corners=align, tolerance=5e-5)
    if mode != "cubic":
        deep = [[floats(RNG, b, 2, 4, 5, 3), RNG.uniform(-1.4, 1.4, (b, 2, 4, 3, 3)).astype(F32)] for b in (2, 1)]
        compare("GridSample", *deep, opset=20, mode=mode, padding_mode=padding, align_corners=align, tolerance=5e-5)


def test_cubic_sampling_of_volumes_is_refused() -> None:
    with pytest.raises(EffcError, match="3 spatial dims"):
        run_node("GridSample", [floats(RNG, 1, 1, 3, 3, 3), floats(RNG, 1, 2, 2, 2, 3)], opset=20, mode="cubic")


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("n", [2, 3])
def test_affine_grid(align: int, n: int) -> None:
    sets = [
        [floats(RNG, b, n, n + 1), np.array([b, 3, *(4 + b, 1, 6)[:n]], np.int64)] for b in (2, 1)
    ]  # fmt: skip
    found = run_node("AffineGrid", *sets, opset=20, align_corners=align)
    for (theta, size), (grid,) in zip(sets, found):
        places = []
        for s in size[2:]:
            i = np.arange(s)
            places.append((2 * i / (s - 1) - 1 if s > 1 else i * 0.0) if align else (2 * i + 1) / s - 1)
        mesh = np.stack([*reversed(np.meshgrid(*places, indexing="ij")), np.ones(size[2:])], -1)
        close(grid, np.einsum("...k,njk->n...j", mesh, theta.astype(np.float64)).astype(F32))


def test_center_crop_pad_of_open_sizes() -> None:
    """Crops in one call what it pads in another."""
    for wanted in ([4, 7], [5, 5]):
        sets = [[floats(RNG, n, 2, m), np.array(wanted, np.int64)] for n, m in ((9, 3), (2, 8), (4, 5))]
        compare("CenterCropPad", *sets, opset=18, axes=[0, -1], peer=evaluator)
        compare("CenterCropPad", *sets, opset=18, axes=[0, -1], constant=(1,), peer=evaluator)


def test_blocks() -> None:
    sets = [[floats(RNG, b, 12, 3 + b, 4)] for b in (2, 1)]
    for mode in ("DCR", "CRD"):
        compare("DepthToSpace", *sets, opset=13, blocksize=2, mode=mode)
    compare("SpaceToDepth", *([floats(RNG, b, 3, 2 * b, 4)] for b in (2, 3)), opset=13, blocksize=2)


def test_pictures_are_refused() -> None:
    with pytest.raises(EffcError, match="ImageDecoder"):
        run_node("ImageDecoder", [np.zeros(9, np.uint8)], opset=20)


def test_compiled() -> None:
    sets = [resize(floats(RNG, b, 3, 6 + b, 8), [1, 1, 1.5, 2]) for b in (2, 1)]
    compare("Resize", *sets, constant=(2,), mode="linear", opset=13, target="cpu")
    sets = [resize(floats(RNG, b, 2, 9 + b, 8), [1, 1, 0.5, 0.3]) for b in (2, 1)]
    compare("Resize", *sets, constant=(2,), opset=18, mode="cubic", antialias=1, peer=evaluator, target="cpu")
    sets = [[floats(RNG, n, 2, m), np.array([4, 7], np.int64)] for n, m in ((9, 3), (2, 8))]
    compare("CenterCropPad", *sets, opset=18, axes=[0, 2], peer=evaluator, target="cpu")
