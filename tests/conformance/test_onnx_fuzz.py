"""Damaged ONNX files are refused or right, random valid ones are right: a sample, and with ``-m slow`` the sweep."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from effc.conformance.command import main
from effc.conformance.suite import BAD

pytest.importorskip("onnxruntime")


def test_mutants() -> None:
    """The floors say that refusing everything is no way to pass."""
    from . import onnx_mutants

    with np.errstate(all="ignore"):
        found = {i: onnx_mutants.judge(i, "reference") for i in range(100, 140)}
    counts = Counter(r.status for r in found.values())
    assert not {i: r for i, r in found.items() if r.status in BAD}
    assert counts["right"] >= 6 and counts["refused"] >= 10, counts


def test_random_graphs() -> None:
    from . import onnx_random

    found = {i: onnx_random.judge(i, "reference") for i in range(20)}
    counts = Counter(r.status for r in found.values())
    assert not {i: r for i, r in found.items() if r.status in BAD}
    assert counts["right"] >= 18, counts


def test_a_graph_follows_from_its_number() -> None:
    from . import onnx_random

    model, inputs = onnx_random.generate(7)
    again, others = onnx_random.generate(7)
    assert model.SerializeToString() == again.SerializeToString()
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(inputs, others, strict=True) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize("target, count", [("reference", 2000), ("cpu", 300)])
def test_many_mutants(target: str, count: int) -> None:
    assert main("tests.conformance.onnx_mutants:Mutants", ["--backend", target, "--count", str(count)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "target, first, count", [("reference", 0, 1000), *(("cpu", first, 250) for first in range(0, 1000, 250))]
)
def test_many_random_graphs(target: str, first: int, count: int) -> None:
    which = ["--first", str(first), "--count", str(count)]
    assert main("tests.conformance.onnx_random:Random", ["--backend", target, *which]) == 0
