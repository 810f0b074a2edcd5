"""The ``mlir`` target: a graph, after this project's passes, as a module of MLIR's torch dialect.

``emit/`` holds one emitter for each op of the IR, ``context.py`` what emitters write with, ``build.py`` the module,
``model.py`` saving it, ``eager.py`` running it with PyTorch's operators, which are what the dialect's mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...passes.manager import PassReport, Pipeline
from ...passes.pipeline import Options, default
from .build import Built, build, why_not
from .emit import native
from .model import MlirModel


def compile_graphs(imported: Mapping[str, Any], disable: Sequence[str] = (), verify: bool = False) -> MlirModel:
    """The entry points as functions of one module. EffcError for ops and types that have no form in the torch dialect,
    all ops listed."""
    reports, graphs = {}, {}
    for name, im in imported.items():
        reports[name] = PassReport()
        pipeline = Pipeline(
            default(Options(native=native, kernels=False)), disabled=tuple(disable),
            verify=verify or bool(os.environ.get("EFFC_VERIFY")),
        )  # fmt: skip
        graphs[name] = pipeline.run(im.graph, reports[name])
    built = build(graphs)
    news = {
        "target": "mlir",
        "entries": {n: {"passes": reports[n].as_json()} for n in imported},
        **built.report,
    }
    return MlirModel(built, imported, news)


__all__ = ["Built", "MlirModel", "build", "compile_graphs", "native", "why_not"]
