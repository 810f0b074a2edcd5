"""ONNX's gathering and scattering operators: negative indices, indices of 32 bits, indices that are out of range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_one_node import compare, model_of

import effc

RNG = np.random.default_rng(3)
X = RNG.standard_normal((5, 4)).astype(np.float32)
UPDATES = RNG.standard_normal((3, 4)).astype(np.float32)


def operands(op: str, index: list[int], dtype: type) -> list[np.ndarray[Any, Any]]:
    at = np.array(index, dtype)
    if op == "Gather":
        return [X, at]
    if op == "GatherElements":
        return [X, np.repeat(at[:, None], 4, 1)]
    if op == "ScatterElements":
        return [X, np.repeat(at[:, None], 4, 1), UPDATES]
    return [X, at[:, None], UPDATES] if op == "ScatterND" else [X, at[:, None]]


OPS = ["Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"]


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("op", OPS)
def test_negative_indices(op: str, target: str) -> None:
    compare(op, operands(op, [-5, 4, -2], np.int64), target=target)
    if op not in ("GatherND", "ScatterND"):  # theirs are int64 alone
        compare(op, operands(op, [-5, 4, -2], np.int32), target=target)


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("bad", [-6, 5])
@pytest.mark.parametrize("op", OPS)
def test_an_index_out_of_range(op: str, bad: int, target: str) -> None:
    inputs = operands(op, [1, bad, 2], np.int64)
    with pytest.raises(effc.EffcError, match=f"{bad} is out of range"):
        effc.compile(model_of(op, inputs), target=target)(*inputs)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_scatter_nd_with_a_reduction(target: str) -> None:
    at = np.array([[-1, -4], [0, 3], [4, 0]], np.int64)
    for how in ("none", "add", "mul", "max", "min"):
        compare("ScatterND", [X, at, UPDATES[:, 0]], target=target, reduction=how)
