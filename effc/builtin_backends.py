"""This package's own backends, in the form in which every backend is registered.

Each is imported when it is used: ``effc`` itself needs none of what they need.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .backends.registry import Backend, CompileOptions, RunGraph, register


def _imported(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {n: e.imported() for n, e in entries.items()}


class ByPosition:
    """A function of arrays from a ``model`` that takes and gives them by name."""

    def __init__(self, model: Any, graph: Any, outputs: Sequence[str]) -> None:
        self.model, self._outputs = model, outputs
        self._inputs = [n.name for n in graph.inputs]

    def __call__(self, arrays: Sequence[Any]) -> Sequence[Any]:
        named = self.model.run(dict(zip(self._inputs, arrays, strict=True)))
        return [named[n] for n in self._outputs]


def _positions(graph: Any) -> list[str]:
    return [f"y{i}" for i in range(len(graph.outputs))]


# cpu ------------------------------------------------------------------------------------------------------------------


def _cpu_compile(entries: Mapping[str, Any], options: CompileOptions) -> Any:
    from .compiler import compile_cpu

    return compile_cpu(entries, options)


def _cpu_graph(graph: Any, target: str) -> RunGraph:
    from .backends import cpu
    from .backends.cpu.target import parse
    from .compiler import write_artifact
    from .runtime.loader import load

    t = parse(target)
    parts = cpu.compile_graphs({"main": graph}, t, None)
    outputs = _positions(graph)
    names = SimpleNamespace(
        input_names=[n.name for n in graph.inputs], output_names=outputs, in_tree=None, out_tree=None
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.effc"
        write_artifact(path, t, {"main": names}, {"main": graph}, parts, {})
        return ByPosition(load(path), graph, outputs)


def _cpu_passes() -> Any:
    from .backends.cpu.lower import native
    from .passes.pipeline import Options

    return Options(native=native)


def _cpu_targets() -> list[str]:
    from .backends.cpu.target import EXTRA, LEVELS

    return [*(f"cpu:{level}" for level in LEVELS), *(f"cpu:x86-64-v4+{f}" for f in EXTRA)]


def _cpu_missing(target: str) -> list[str]:
    from .backends.cpu.target import host_features, parse

    return sorted(set(parse(target).isa) - host_features())


def _cpu_details(target: str) -> list[str]:
    from .backends.cpu.microkernels import ranked
    from .backends.cpu.target import host_features, parse

    return [f"micro-kernels of {parse(target).name}, best first", *ranked(parse(target), host_features())]


# reference ------------------------------------------------------------------------------------------------------------


def _reference_compile(entries: Mapping[str, Any], options: CompileOptions) -> Any:
    from .backends.reference import ReferenceModel

    return ReferenceModel(_imported(entries))


def _reference_graph(graph: Any, target: str) -> RunGraph:
    """Macro ops are decomposed first: what is judged is that a decomposition means what its op's reference does."""
    from .ir.interp import Interpreter
    from .passes.legalise import Legalise

    core = Legalise().run(graph)
    return lambda arrays: Interpreter().run(core, arrays)


# onnx -----------------------------------------------------------------------------------------------------------------


def _onnx_compile(entries: Mapping[str, Any], o: CompileOptions) -> Any:
    from .backends import onnx
    from .compiler import model_kind

    strict_nan = any(model_kind(e.model) != "onnx" for e in entries.values())
    return onnx.compile_graphs(_imported(entries), o.num_threads, o.onnx_domain, o.disable_passes, o.verify, strict_nan)


def _onnx_graph(graph: Any, target: str) -> RunGraph:
    import onnx

    from .backends.onnx import OnnxModel, build, native
    from .passes.legalise import Legalise

    legal = Legalise(native).run(graph)
    built = build(legal)
    onnx.checker.check_model(built.model(), full_check=True)
    return ByPosition(OnnxModel(built, legal, None, built.report), graph, built.outputs)


def _onnx_passes() -> Any:
    from .backends.onnx import native
    from .passes.pipeline import Options

    return Options(native=native, kernels=False)


# tvm ------------------------------------------------------------------------------------------------------------------


def _tvm_compile(entries: Mapping[str, Any], o: CompileOptions) -> Any:
    from .backends import tvm

    return tvm.compile_graphs(_imported(entries), o.target, o.disable_passes, o.verify)


def _tvm_graph(graph: Any, target: str) -> RunGraph:
    from .backends.tvm import TvmModel, build, native
    from .passes.legalise import Legalise

    built = build(Legalise(native).run(graph))
    return ByPosition(TvmModel({"main": built}, None, built.report, target), graph, _positions(graph))


def _tvm_passes() -> Any:
    from .backends.tvm import native
    from .passes.pipeline import Options

    return Options(native=native, kernels=False)


# mlir -----------------------------------------------------------------------------------------------------------------


def _mlir_compile(entries: Mapping[str, Any], o: CompileOptions) -> Any:
    from .backends import mlir

    return mlir.compile_graphs(_imported(entries), o.disable_passes, o.verify)


def _mlir_graph(graph: Any, target: str) -> RunGraph:
    from .backends.mlir import MlirModel, build, native
    from .passes.legalise import Legalise

    built = build({"main": Legalise(native).run(graph)})
    return ByPosition(MlirModel(built, None, built.report), graph, _positions(graph))


def _mlir_passes() -> Any:
    from .backends.mlir import native
    from .passes.pipeline import Options

    return Options(native=native, kernels=False)


register(
    Backend(
        "cpu", _cpu_compile, _cpu_graph, _cpu_passes, targets=_cpu_targets, missing=_cpu_missing, details=_cpu_details
    )
)
register(
    Backend(
        "onnx", _onnx_compile, _onnx_graph, _onnx_passes,
        needs=("onnx",), runs_with=("onnxruntime",), install="'effc[torch,onnx]' onnxruntime",
    )
)  # fmt: skip
register(
    Backend(
        "tvm", _tvm_compile, _tvm_graph, _tvm_passes,
        needs=("tvm",), install="'effc[torch,tvm]'", targets=lambda: ("tvm",),
    )
)  # fmt: skip
register(
    Backend(
        "mlir", _mlir_compile, _mlir_graph, _mlir_passes, needs=("torch_mlir", "torch"), install="'effc[torch,mlir]'"
    )
)
register(Backend("reference", _reference_compile, _reference_graph))
