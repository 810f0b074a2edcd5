"""Turns the op table's samples into graphs and compares a backend with the numpy references.

Many samples go into one graph, because a graph is what a backend compiles: a group of samples costs one compilation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import effc.ir.ops  # noqa: F401  (fills the table)
from effc.ir import OPS, Builder, DType, Graph, OpDef, TensorType
from effc.ir import dims as D
from effc.ir.interp import Interpreter
from effc.ir.op import Sample

Array = np.ndarray[Any, Any]

# What "equal" means for one op, by the dtype of the result: max|a-b| / max|b|.
TOLERANCE = {
    "f8e4m3": 0.13,
    "f8e5m2": 0.26,
    **{d.value: 0.0 for d in DType if d.is_storage and d.is_float},
    "f16": 4e-3,
    "bf16": 2e-2,
    "f32": 1e-5,
    "f64": 1e-10,
    "c64": 1e-5,
    "c128": 1e-10,
    "c32": 4e-3,
}


@dataclass
class Case:
    """One sample: where its operands and results are in the group's graph."""

    op: OpDef
    sample: Sample
    inputs: list[int] = field(default_factory=list)  # index into the graph's inputs, -1 for an absent operand
    outputs: slice = field(default_factory=lambda: slice(0, 0))

    def __str__(self) -> str:
        shapes = ", ".join(
            "none" if a is None else f"{np.asarray(a).dtype}{list(np.asarray(a).shape)}" for a in self.sample.inputs
        )
        attrs = ", ".join(f"{k}={v}" for k, v in self.sample.attrs.items())
        return f"{self.op.name}({shapes}; {attrs})"


@dataclass
class Group:
    graph: Graph
    arrays: list[Array]
    cases: list[Case]

    def expected(self) -> list[Array]:
        return Interpreter().run(self.graph, self.arrays)


def samples(op: OpDef, seed: int = 0) -> list[Sample]:
    return list(op.samples(np.random.default_rng(seed))) if op.samples else []


def _rename(value: Any, suffix: int, b: Builder, lo: int) -> Any:
    """A sample's data-dependent symbol (u0) made the group's own."""
    if isinstance(value, D.SymExpr) and str(value).isidentifier():
        return b.symbol(f"{value}_{suffix}", lo, None)
    return value


def build(cases: Sequence[tuple[OpDef, Sample]], dynamic: bool = False) -> Group:
    """One graph with every sample's operands as inputs and every result as an output.

    With ``dynamic`` each operand's dims become symbols of their own; only for ops whose operands need not agree in
    size.
    """
    b = Builder()
    arrays: list[Array] = []
    out_values: list[Any] = []
    done: list[Case] = []
    for k, (op, sample) in enumerate(cases):
        case = Case(op, sample)
        operands: list[Any] = []
        for a in sample.inputs:
            if a is None:
                operands.append(None)
                case.inputs.append(-1)
                continue
            a = np.asarray(a)
            shape: tuple[Any, ...] = a.shape
            if dynamic:
                shape = tuple(b.symbol(f"s{k}_{i}", 0, None) for i in range(a.ndim))
            operands.append(b.input(f"x{k}_{len(case.inputs)}", TensorType(DType.from_np(a.dtype), shape)))
            case.inputs.append(len(arrays))
            arrays.append(a)
        attrs = {name: _rename(v, k, b, -(1 << 62) if op.name == "item" else 0) for name, v in sample.attrs.items()}
        node = b.node(op.name, operands, attrs)
        start = len(out_values)
        out_values += node.values
        case.outputs = slice(start, len(out_values))
        done.append(case)
    return Group(b.graph(out_values), arrays, done)


def compare(got: Array, want: Array, tolerance: float | None = None) -> str | None:
    """None if equal in the sense of the op tests, else a sentence about the difference."""
    got = np.asarray(got)
    if got.dtype != want.dtype:
        return f"dtype {got.dtype}, expected {want.dtype}"
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if want.size == 0:
        return None
    dtype = DType.from_np(want.dtype)
    if not (dtype.is_float or dtype.is_complex):
        bad = np.flatnonzero(got.reshape(-1) != want.reshape(-1))
        if bad.size:
            i = int(bad[0])
            return (
                f"{bad.size} of {want.size} differ; first at {i}: {got.reshape(-1)[i]}, expected {want.reshape(-1)[i]}"
            )
        return None
    wide = np.complex128 if dtype.is_complex else np.float64
    a, b = got.astype(wide).reshape(-1), want.astype(wide).reshape(-1)
    parts = ((a.real, b.real), (a.imag, b.imag)) if dtype.is_complex else ((a, b),)
    for x, y in parts:
        if not np.array_equal(np.isnan(x), np.isnan(y)):
            return f"NaN in other places: {int(np.isnan(x).sum())} of them, expected {int(np.isnan(y).sum())}"
        if not np.array_equal(np.where(np.isinf(x), np.sign(x), 0), np.where(np.isinf(y), np.sign(y), 0)):
            return f"infinities in other places: {int(np.isinf(x).sum())} of them, expected {int(np.isinf(y).sum())}"
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.any():
        return None
    a, b = a[finite], b[finite]
    scale = float(np.abs(b).max())
    worst = float(np.abs(a - b).max())
    limit = TOLERANCE[dtype.value] if tolerance is None else tolerance
    if worst > limit * scale:
        i = int(np.abs(a - b).argmax())
        relative = worst / scale if scale else worst
        return f"error {relative:.2e} of the largest value, allowed {limit:.0e}; {a[i]}, expected {b[i]}"
    return None


def check(case: Case, got: Sequence[Array], want: Sequence[Array]) -> str | None:
    """Compares one case's results; where ties are open, the chosen indices must lead to the right values."""
    ties = "ties are open" in case.sample.why
    problems = []
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        if ties and i == 1:
            x, dim = np.asarray(case.sample.inputs[0]), case.sample.attrs.get("dim", -1)
            keep = case.sample.attrs.get("keepdim", True)
            index = np.asarray(g) if keep or x.ndim == 0 else np.expand_dims(g, dim)
            chosen = np.take_along_axis(x, index, dim) if x.ndim else x
            chosen = chosen if keep or x.ndim == 0 else np.squeeze(chosen, dim)
            problem = compare(np.asarray(chosen), np.asarray(want[0])) or (
                None if g.dtype == w.dtype else f"dtype {g.dtype}"
            )
        else:
            problem = compare(g, w)
        if problem:
            problems.append(f"result {i}: {problem}")
    return "; ".join(problems) or None


def groups(limit: int = 120, levels: tuple[str, ...] = ("core", "macro")) -> Iterator[tuple[str, list[str]]]:
    """(name, ops) such that the ops' samples make graphs of about ``limit`` samples, one category in each."""
    by_category: dict[str, list[OpDef]] = {}
    for op in OPS.values():
        if op.samples is not None and op.level in levels:
            by_category.setdefault(op.category, []).append(op)
    for category, ops in sorted(by_category.items()):
        part: list[str] = []
        count = 0
        number = 0
        for op in sorted(ops, key=lambda o: o.name):
            n = len(samples(op))
            if part and count + n > limit:
                yield f"{category}-{number}", part
                part, count, number = [], 0, number + 1
            part.append(op.name)
            count += n
        if part:
            yield f"{category}-{number}", part


def failures(group: Group, got: Sequence[Array], want: Sequence[Array]) -> list[str]:
    out = []
    for case in group.cases:
        problem = check(case, got[case.outputs], want[case.outputs])
        if problem:
            out.append(f"{case}: {problem}")
    return out


# Backends -------------------------------------------------------------------------------------------------------------


class Runner:
    """A graph compiled by a backend; ``run(arrays)`` gives its outputs in order."""

    def __init__(self, graph: Graph, backend: str, passes: bool = False, disabled: tuple[str, ...] = ()) -> None:
        if passes:
            from effc.passes.manager import Pipeline
            from effc.passes.pipeline import Options, default

            options = Options()
            if backend == "onnx":
                from effc.backends.onnx import native

                options = Options(native=native, kernels=False)
            elif backend == "mlir":
                from effc.backends.mlir import native

                options = Options(native=native, kernels=False)
            elif backend == "tvm":
                from effc.backends.tvm import native

                options = Options(native=native, kernels=False)
            graph = Pipeline(default(options), disabled=disabled, verify=True).run(graph)
        self.graph = graph
        self.backend = backend
        if backend == "onnx":
            self._export(graph)
        elif backend == "tvm":
            self._relax(graph)
        elif backend == "mlir":
            self._torch_dialect(graph)
        elif backend != "reference":
            self._compile(graph, backend)

    def _export(self, graph: Graph) -> None:
        import onnx

        from effc.backends.onnx import OnnxModel, build, native
        from effc.passes.legalise import Legalise

        graph = Legalise(native).run(graph)
        built = build(graph)
        onnx.checker.check_model(built.model(), full_check=True)
        self.outputs = built.outputs
        self.model = OnnxModel(built, graph, None, built.report)

    def _relax(self, graph: Graph) -> None:
        from effc.backends.tvm import TvmModel, build, native
        from effc.passes.legalise import Legalise

        built = build(Legalise(native).run(graph))
        self.outputs = [f"y{i}" for i in range(len(graph.outputs))]
        self.model = TvmModel({"main": built}, None, built.report, "tvm")

    def _torch_dialect(self, graph: Graph) -> None:
        from effc.backends.mlir import MlirModel, build, native
        from effc.passes.legalise import Legalise

        built = build({"main": Legalise(native).run(graph)})
        self.outputs = [f"y{i}" for i in range(len(graph.outputs))]
        self.model = MlirModel(built, None, built.report)

    def _compile(self, graph: Graph, backend: str) -> None:
        from effc.backends import cpu
        from effc.backends.cpu.target import parse
        from effc.compiler import write_artifact
        from effc.runtime.loader import load

        target = parse(backend)
        parts = cpu.compile_graphs({"main": graph}, target, None)
        self.outputs = [f"y{i}" for i in range(len(graph.outputs))]
        names = SimpleNamespace(
            input_names=[n.name for n in graph.inputs], output_names=self.outputs, in_tree=None, out_tree=None
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.effc"
            write_artifact(path, target, {"main": names}, {"main": graph}, parts, {})
            self.model = load(path)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        if self.backend == "reference":
            return Interpreter().run(self.graph, arrays)
        named = self.model.run({n.name: a for n, a in zip(self.graph.inputs, arrays, strict=True)})
        return [np.asarray(named[n]) for n in self.outputs]


def run_op(op: OpDef, chosen: list[Sample], backend: str, dynamic: bool = False) -> list[str]:
    """Failures of one op's samples, compiled on their own; used to find the culprit when a group does not compile."""
    group = build([(op, s) for s in chosen], dynamic)
    try:
        return failures(group, Runner(group.graph, backend).run(group.arrays), group.expected())
    except Exception as e:
        return [f"{op.name}: {type(e).__name__}: {str(e)[:800]}"]
