"""Damaged ONNX files are refused or right, random valid ones are right: a sample, and with ``-m slow`` the sweep."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

HERE = Path(__file__).parent
DEFECTS = ("wrong", "crash", "hang")


def test_mutants() -> None:
    """The floors say that refusing everything is no way to pass."""
    from . import onnx_mutants

    with np.errstate(all="ignore"):
        found = {i: onnx_mutants.judge(i, "reference") for i in range(100, 140)}
    counts = Counter(status for status, _ in found.values())
    assert not {i: f for i, f in found.items() if f[0] in DEFECTS}
    assert counts["right"] >= 6 and counts["refused"] >= 10, counts


def test_random_graphs() -> None:
    from . import onnx_random

    found = {i: onnx_random.judge(i, "reference") for i in range(20)}
    counts = Counter(status for status, _ in found.values())
    assert not {i: f for i, f in found.items() if f[0] in DEFECTS}
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
    script = str(HERE / "onnx_mutants.py")
    subprocess.run([sys.executable, script, "--target", target, "--count", str(count)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("target, count", [("reference", 1000), ("cpu", 1000)])
def test_many_random_graphs(target: str, count: int) -> None:
    script = str(HERE / "onnx_random.py")
    subprocess.run([sys.executable, script, "--target", target, "--count", str(count)], check=True)
