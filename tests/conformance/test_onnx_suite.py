"""ONNX's own backend test suite: all node cases on the interpreter, every tenth on cpu; the command runs all."""

from __future__ import annotations

from collections import Counter

import pytest

from effc.conformance import onnx_nodes
from effc.conformance.suite import BAD

PARTS = 4
# The case whose expected values are the roundings of the engine that wrote them: softmax in halves.
ROUNDING = ("reference", "test_attention_4d_causal_fp16_expanded")


def run(target: str, kind: str, names: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name in names:
        r = onnx_nodes.judge(target, onnx_nodes.cases(kind)[name])
        assert r.status not in BAD or (target, name) == ROUNDING, f"{name}: {r.status}: {r.reason}"
        counts[r.status] += 1
    return counts


@pytest.mark.parametrize("part", range(PARTS))
def test_nodes_on_the_interpreter(part: int) -> None:
    names = sorted(onnx_nodes.cases("node"))[part::PARTS]
    counts = run("reference", "node", names)
    assert counts["right"] >= 0.96 * len(names), counts


@pytest.mark.parametrize("part", range(PARTS))
def test_nodes_on_cpu(part: int) -> None:
    names = sorted(onnx_nodes.cases("node"))[10 * part + 3 :: 10 * PARTS]
    counts = run("cpu", "node", names)
    assert counts["right"] >= 0.93 * len(names), counts


@pytest.mark.parametrize("kind", ["simple", "pytorch-converted", "pytorch-operator"])
def test_models_on_cpu(kind: str) -> None:
    names = sorted(onnx_nodes.cases(kind))[:: 1 if kind == "simple" else 4]
    counts = run("cpu", kind, names)
    assert counts["right"] >= 0.6 * len(names), counts


@pytest.mark.parametrize("target", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["test_dft_inverse", "test_dft_inverse_opset19"])
def test_a_transform_that_is_judged_by_its_roundings(target: str, name: str) -> None:
    """The expectation holds 1.9e-7 of numpy's noise at a tolerance of 1e-7: products and sums must be rounded alike."""
    assert run(target, "node", [name])["right"] == 1
