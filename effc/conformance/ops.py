"""The suite ``ops``: the samples of every op of the table, on a backend, against the op's numpy reference.

Many samples go into one graph, because a graph is what a backend compiles: a group of samples costs one compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import effc.ir.ops  # noqa: F401  (fills the table)

from ..compiler import find
from ..ir import OPS, Builder, DType, Graph, OpDef, TensorType
from ..ir import dims as D
from ..ir.interp import Interpreter
from ..ir.op import Sample
from ..passes.manager import Pipeline
from ..passes.pipeline import default
from ..runtime.errors import EffcError
from .compare import difference
from .suite import Judge, Result, Suite, error_text

Array = np.ndarray[Any, Any]


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


@functools.cache
def _samples(name: str, seed: int) -> tuple[Sample, ...]:
    make = OPS[name].samples
    return tuple(make(np.random.default_rng(seed))) if make else ()


def samples(op: OpDef, seed: int = 0) -> list[Sample]:
    """An op's samples, the same ones each time."""
    return list(_samples(op.name, seed))


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


def check(case: Case, got: Sequence[Array], want: Sequence[Array]) -> str:
    """Why a case's results are not right; empty if they are. Where ties are open, the chosen indices must lead to the
    right values.
    """
    ties = "ties are open" in case.sample.why
    problems = []
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        if ties and i == 1:
            x, dim = np.asarray(case.sample.inputs[0]), case.sample.attrs.get("dim", -1)
            keep = case.sample.attrs.get("keepdim", True)
            index = np.asarray(g) if keep or x.ndim == 0 else np.expand_dims(g, dim)
            chosen = np.take_along_axis(x, index, dim) if x.ndim else x
            chosen = chosen if keep or x.ndim == 0 else np.squeeze(chosen, dim)
            problem = difference(chosen, want[0]) or ("" if np.asarray(g).dtype == w.dtype else f"dtype {g.dtype}")
        else:
            problem = difference(g, w)
        if problem:
            problems.append(f"result {i}: {problem}")
    return "; ".join(problems)


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
    """A graph compiled by a backend, after the backend's passes if ``passes``; ``run(arrays)`` gives its outputs in
    order; ``model`` is what the backend made, where it says so.
    """

    def __init__(self, graph: Graph, target: str, passes: bool = False, disabled: tuple[str, ...] = ()) -> None:
        backend = find(target)
        if passes:
            graph = Pipeline(default(backend.passes()), disabled=disabled, verify=True).run(graph)
        self.graph = graph
        self._run = backend.run_graph(graph, target)
        self.model: Any = getattr(self._run, "model", None)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        return [np.asarray(x) for x in self._run(arrays)]


def judged(cases: Sequence[tuple[OpDef, Sample]], backend: str) -> list[Result]:
    """Results of samples in one graph; where that does not compile or run, of either half of them, and so on."""
    try:
        group = build(cases)
        want = group.expected()
        got = Runner(group.graph, backend).run(group.arrays)
        if len(got) != len(want):
            raise ValueError(f"the backend gave {len(got)} results, not {len(want)}")
    except Exception as e:
        if len(cases) > 1:
            half = len(cases) // 2
            return [*judged(cases[:half], backend), *judged(cases[half:], backend)]
        refused = isinstance(e, EffcError) and not e.message.startswith("internal")
        return [Result("refused", " ".join(e.message.split())) if refused else Result("crash", error_text(e))]
    out = []
    for case in group.cases:
        why = check(case, got[case.outputs], want[case.outputs])
        out.append(Result("wrong", f"{case}: {why}") if why else Result("right"))
    return out


def run_op(op: OpDef, chosen: list[Sample], backend: str) -> list[str]:
    """What is not right of one op's samples."""
    return [f"{op.name}: {r.reason}" for r in judged([(op, s) for s in chosen], backend) if r.status != "right"]


@dataclass(frozen=True)
class Ops(Suite):
    """Every op that has samples."""

    def cases(self) -> list[str]:
        return [name for _, part in groups() for name in part]

    def batches(self, cases: Sequence[str]) -> Iterator[list[str]]:
        wanted = set(cases)
        for _, part in groups():
            if mine := [c for c in part if c in wanted]:
                yield mine

    def together(self, backend: str, cases: Sequence[str]) -> dict[tuple[int, int], Result]:
        places = [(i, k) for i, c in enumerate(cases) for k in range(len(samples(OPS[c])))]
        results = judged([(OPS[cases[i]], samples(OPS[cases[i]])[k]) for i, k in places], backend)
        return dict(zip(places, results, strict=True))

    def judgements(self, backend: str, case: str) -> Iterator[Judge]:
        for sample in samples(OPS[case]):
            yield lambda sample=sample: judged([(OPS[case], sample)], backend)[0]
