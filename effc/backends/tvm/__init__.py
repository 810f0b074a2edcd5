"""The ``tvm`` target: a graph, after this project's passes, as a Relax module that TVM compiles and runs.

``emit/`` holds one emitter for each op of the IR, ``context.py`` what emitters write with, ``build.py`` the module,
``model.py`` compiling and running it. It is a door to TVM's own schedulers and targets: nothing is tuned here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...passes.manager import PassReport, Pipeline
from ...passes.pipeline import Options, default
from .build import Built, build, why_not
from .emit import native
from .model import TvmModel


def compile_graphs(
    imported: Mapping[str, Any], target: str = "tvm", disable: Sequence[str] = (), verify: bool = False
) -> TvmModel:
    """The compiled entry points; ``target`` "tvm" or "tvm:llvm". EffcError for another TVM target, for symbols that no
    input's shape gives alone, and for ops that have no form here, all of them listed."""
    reports, built = {}, {}
    for name, im in imported.items():
        reports[name] = PassReport()
        pipeline = Pipeline(
            default(Options(native=native, kernels=False)), disabled=tuple(disable),
            verify=verify or bool(os.environ.get("EFFC_VERIFY")),
        )  # fmt: skip
        built[name] = build(pipeline.run(im.graph, reports[name]))
    news = {
        "target": target,
        "entries": {n: {"passes": reports[n].as_json(), "tvm": built[n].report} for n in imported},
    }
    return TvmModel(built, imported, news, target)


__all__ = ["Built", "TvmModel", "build", "compile_graphs", "native", "why_not"]
