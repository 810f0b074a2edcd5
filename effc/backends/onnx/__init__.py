"""The ``onnx`` target: a graph, after this project's passes, as an ONNX model that onnxruntime runs well.

``emit/`` holds one emitter for each op of the IR, ``kernels.py`` what onnxruntime has kernels for, ``context.py`` what
emitters write with, ``build.py`` the model, ``model.py`` saving and running it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...passes.canonical import Canonicalise
from ...passes.cleanup import Cse, Dce
from ...passes.manager import PassReport, Pipeline
from ...passes.pipeline import Options, default
from ...runtime.errors import EffcError
from .build import build, why_not
from .emit import native
from .model import OnnxModel
from .shapes import DropUnitDims, FoldPermutes

DOMAINS = ("standard", "ort")


def compile_graphs(
    imported: Mapping[str, Any], num_threads: int | None = None, domain: str = "standard", disable: Sequence[str] = (),
    verify: bool = False, strict_nan: bool = True,
) -> OnnxModel:  # fmt: skip
    """The ONNX model of one entry point; ``domain`` "ort": with onnxruntime's contributed ops too; ``strict_nan``:
    maxima over NaN and means of nothing are NaN, which onnxruntime's own are not (a model that came as ONNX is held to
    onnxruntime's).
    EffcError for several entry points (an ONNX file has one), an unknown domain, or ops that have no ONNX form, all of
    them listed.
    """
    if domain not in DOMAINS:
        raise EffcError(f"onnx_domain {domain!r} is not available in this version", hint="one of " + ", ".join(DOMAINS))
    if len(imported) != 1:
        raise EffcError(
            f"an ONNX model has one entry point, there are {len(imported)}", hint="compile each of them on its own"
        )
    ((name, im),) = imported.items()
    report = PassReport()
    pipeline = Pipeline(
        (*default(Options(native=native, kernels=False)), DropUnitDims(), Canonicalise(), FoldPermutes(), Cse(), Dce()),
        disabled=tuple(disable),
        verify=verify or bool(os.environ.get("EFFC_VERIFY")),
    )  # fmt: skip
    graph = pipeline.run(im.graph, report)
    built = build(graph, im.input_names, im.output_names, name, domain == "ort", strict_nan)
    news = {
        "target": "onnx",
        "onnx_domain": domain,
        "entries": {name: {"passes": report.as_json(), "onnx": built.report}},
        **built.report,
    }
    return OnnxModel(built, graph, im, news, num_threads)


__all__ = ["DOMAINS", "OnnxModel", "build", "compile_graphs", "native", "why_not"]
