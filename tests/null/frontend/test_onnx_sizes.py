"""Sizes as numbers: shape arithmetic that leaves the integers, axes that a tensor lacks, sizes that no memory holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as H

import effc


def model(nodes: list[Any], constants: dict[str, Any], shape: list[Any]) -> onnx.ModelProto:
    tensors = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    x = H.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    graph = H.make_graph(nodes, "g", [x], [H.make_empty_tensor_value_info("y")], tensors)
    return H.make_model(graph, opset_imports=[H.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("op, second", [("Abs", False), ("Mod", True)])
def test_a_size_that_became_a_float(op: str, second: bool) -> None:
    """What a size as a float holds is looked at, and given up where no rule has a form for it."""
    f32 = onnx.TensorProto.FLOAT
    nodes = [
        H.make_node("Size", ["x"], ["n"]),
        H.make_node("Cast", ["n"], ["f"], to=f32),
        H.make_node("Div", ["f", "k"], ["q"]),
        H.make_node(op, ["q", "k"] if second else ["q"], ["a"], **({"fmod": 1} if second else {})),
        H.make_node("Slice", ["x", "zero", "two", "zero"], ["s"]),
        H.make_node("Add", ["s", "a"], ["y"]),
    ]
    constants = {"k": np.float32(64), "zero": np.array([0]), "two": np.array([2])}
    made = effc.compile(model(nodes, constants, ["batch", 3]), target="reference", selftest=False)
    for n in (2, 50):
        x = np.ones((n, 3), np.float32)
        want = 1 + (np.fmod(3 * n / 64, 64) if second else 3 * n / 64)
        np.testing.assert_allclose(made(x)[0], np.full((2, 3), want, np.float32))


@pytest.mark.parametrize(
    "node",
    [
        H.make_node("Softmax", ["x"], ["y"], axis=2),
        H.make_node("Unsqueeze", ["x", "five"], ["y"]),
        H.make_node("Unsqueeze", ["x", "twice"], ["y"]),
        H.make_node("Squeeze", ["x", "five"], ["y"]),
        H.make_node("Concat", ["x", "x"], ["y"], axis=-3),
    ],
    ids=lambda n: n.op_type,
)
def test_an_axis_that_is_not_there(node: onnx.NodeProto) -> None:
    broken = model([node], {"five": np.array([5]), "twice": np.array([1, 1])}, ["batch", 3])
    with pytest.raises(effc.EffcError, match=node.op_type):
        effc.compile(broken, target="reference", selftest=False)


@pytest.mark.parametrize("op", ["Expand", "Tile"])
def test_a_size_that_no_memory_holds(op: str) -> None:
    absurd = model([H.make_node(op, ["x", "shape"], ["y"])], {"shape": np.array([1, 1 << 40])}, [2, 1])
    with pytest.raises(effc.EffcError, match=r"needs [0-9]+ bytes"):
        effc.compile(absurd, target="reference", selftest=False)(np.ones((2, 1), np.float32))
