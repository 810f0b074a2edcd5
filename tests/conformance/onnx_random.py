"""Random valid ONNX graphs: effc compiles each once and must be right at two batch sizes.

    python -m tests.conformance.onnx_random --count 1000 --backend cpu --json build/random.json

A graph has 3 to 25 nodes of operator sets 13 to 22 over a batch size with a name, and follows from its number alone. It
grows step by step (an operator or a small idiom of several); a step stays only where onnx's evaluator and onnxruntime,
without optimisations, both run it and agree at both sizes, so that what is left is a model on which two engines agree.
No rounded float decides a comparison, a rounding or an index (``exact`` values do), and large values are squashed, so
that a difference is a defect and no amplified rounding. Status: ``right``, ``refused`` (an EffcError), the defects
``wrong``, ``crash`` and ``hang``, and ``skip``, where the engines disagree on the whole or the checker refuses it.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass

import numpy as np
import onnx

from effc.conformance.command import main
from effc.conformance.suite import Result

from .numbered import Numbered
from .onnx_graphs.compute import Compute
from .onnx_graphs.maker import Array, agreed, difference
from .onnx_graphs.shapes import Shapes

TOLERANCE = 1e-4


class Graphs(Compute, Shapes):
    """All steps."""


def generate(index: int) -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """A model by its number, and its inputs at two batch sizes."""
    m = Graphs(index)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        m.grow()
    return m.model(), [{v.name: v.arrays[k] for v in m.inputs} for k in range(2)]


def judge(index: int, target: str) -> Result:
    """What becomes of one graph."""
    import effc

    model, inputs = generate(index)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as e:
        # its shape inference counts the windows of ceil_mode otherwise than both engines do
        return Result("skip", " ".join(str(e).split())[:300])
    want = agreed(model, inputs, TOLERANCE)
    if want is None:
        return Result("skip", "the engines do not agree on it")
    try:
        made = effc.compile(model, target=target, selftest=False)
        for k, (feed, expected) in enumerate(zip(inputs, want, strict=True)):
            got = made(**feed)
            if len(got) != len(expected):
                return Result("wrong", f"{len(got)} results, not {len(expected)}")
            for o, g, w in zip(model.graph.output, got, expected, strict=True):
                if why := difference(g, w, TOLERANCE):
                    return Result("wrong", f"{o.name} at the {('first', 'second')[k]} size: {why}")
    except effc.EffcError as e:
        return Result("crash" if e.message.startswith("internal") else "refused", " ".join(str(e).split())[:300])
    except Exception as e:
        return Result("crash", f"{type(e).__name__}: {e}"[:300])
    return Result("right")


@dataclass(frozen=True)
class Random(Numbered):
    """The graphs by their numbers."""

    def judge(self, index: int, backend: str) -> Result:
        return judge(index, backend)


if __name__ == "__main__":
    sys.exit(main("tests.conformance.onnx_random:Random"))
