"""Every op of the table, on every backend, against its numpy reference: the samples come with the op's declaration."""

from __future__ import annotations

import pytest

from effc.conformance.ops import groups, judged, samples
from effc.ir import OPS

GROUPS = dict(groups())


def outcome(ops: list[str], backend: str) -> list[str]:
    results = judged([(OPS[o], s) for o in ops for s in samples(OPS[o])], backend)
    return [f"{r.status}: {r.reason}" for r in results if r.status != "right"]


@pytest.mark.parametrize("name", GROUPS)
def test_cpu(name: str) -> None:
    problems = outcome(GROUPS[name], "cpu")
    assert not problems, f"{len(problems)} samples:\n" + "\n".join(problems[:40])


@pytest.mark.isa("x86-64-v4")
@pytest.mark.parametrize(
    "name", [n for n in GROUPS if n.rpartition("-")[0] in ("elementwise", "reduction", "cumulative", "pool")]
)
def test_cpu_avx2(name: str) -> None:
    """On a machine with AVX-512 the plain target is that, so the narrower one is compiled for too."""
    problems = outcome(GROUPS[name], "cpu:x86-64-v3")
    assert not problems, f"{len(problems)} samples:\n" + "\n".join(problems[:40])


def test_every_op_has_samples() -> None:
    """An op without samples takes subgraphs, holds data or draws random numbers; those have tests of their own."""
    without = {o.name for o in OPS.values() if o.samples is None and o.effects != "random"}
    carriers = {o.name for o in OPS.values() if any(getattr(t[0], "__name__", "") == "Graph" for t in o.attrs.values())}
    assert without - carriers <= {"constant", "state", "dim_value", "assert", "bitcast"}, sorted(without - carriers)
