"""Losses of class scores, next to the standard's own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nn import compare, evaluator, floats, ort

RNG = np.random.default_rng(14)


def scores(rest: tuple[int, ...], weighted: bool, dtype: Any = np.float32, ignored: int | None = None) -> list[Any]:
    sets = []
    for b in (3, 1):
        target = RNG.integers(0, 5, (b, *rest))
        if ignored is not None:
            target.reshape(-1)[::2] = ignored
            target.reshape(-1)[-1] = 1  # the mean of nothing is no number
        w = [RNG.uniform(0.1, 2, 5).astype(dtype)] if weighted else []
        sets.append([floats(RNG, b, 5, *rest, dtype=dtype), target, *w])
    return sets


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [None, 2, -7])
def test_losses(reduction: str, weighted: bool, ignored: int | None) -> None:
    attrs: Any = {"reduction": reduction, **({} if ignored is None else {"ignore_index": ignored})}
    for rest in ((), (4,), (2, 3)):
        sets = scores(rest, weighted, ignored=ignored)
        compare("NegativeLogLikelihoodLoss", *sets, opset=13, peer=evaluator, **attrs)
        for results in (("loss",), ("loss", "logs")):
            compare("SoftmaxCrossEntropyLoss", *sets, opset=13, results=results, peer=evaluator, **attrs)


def test_first_forms_and_doubles() -> None:
    compare("SoftmaxCrossEntropyLoss", *scores((3,), True), opset=12, results=("loss", "logs"), peer=ort)
    compare("SoftmaxCrossEntropyLoss", *scores((3,), True, np.float64), results=("loss", "logs"), peer=evaluator)


def test_compiled() -> None:
    compare("SoftmaxCrossEntropyLoss", *scores((3,), True, ignored=-7), results=("loss", "logs"), ignore_index=-7,
            target="cpu", peer=evaluator)  # fmt: skip
