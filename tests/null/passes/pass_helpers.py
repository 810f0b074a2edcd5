"""Helpers for tests of passes: text before and after, and the interpreter as oracle."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from effc.ir import dims
from effc.ir.dtypes import DType
from effc.ir.graph import Graph
from effc.ir.interp import Interpreter
from effc.ir.text import parse, to_text
from effc.ir.verify import verify
from effc.passes.manager import Pass, PassReport

TOLERANCE = {DType.f64: 1e-10, DType.c128: 1e-10, DType.f32: 1e-5, DType.c64: 1e-5, DType.f16: 4e-3, DType.bf16: 2e-2}


def graph_of(text: str, arrays: Any = None) -> Graph:
    g = parse(textwrap.dedent(text), arrays)
    verify(g)
    return g


def random_inputs(
    g: Graph, rng: np.random.Generator, sizes: dict[str, int] | None = None, scale: float = 2.0
) -> list[np.ndarray[Any, Any]]:
    """Random arrays that fit the graph's inputs; symbols are small and odd unless ``sizes`` says otherwise."""
    env = {s: min(max(lo, 3 + 2 * i), hi or 10**9) for i, (s, (lo, hi)) in enumerate(g.symbols.items())}
    env.update(sizes or {})
    out = []
    for n in g.inputs:
        t = n.types[0]
        shape = tuple(dims.evaluate(d, env) for d in t.shape)
        if t.dtype.is_bool:
            a: Any = rng.random(shape) < 0.5
        elif t.dtype.is_complex:
            a = rng.uniform(-scale, scale, shape) + 1j * rng.uniform(-scale, scale, shape)
        elif t.dtype.is_float:
            a = rng.uniform(-scale, scale, shape)
        else:
            a = rng.integers(0 if not t.dtype.is_signed else -5, 6, shape)
        out.append(np.asarray(a).astype(t.dtype.np))
    return out


def close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], dtype: DType, factor: float = 1.0) -> None:
    """``a`` agrees with the reference ``b``: dtype and shape exactly, NaN and Inf in the same places, floats within the
    tolerance."""
    assert a.dtype == b.dtype and a.shape == b.shape, (a.dtype, a.shape, b.dtype, b.shape)
    if not (dtype.is_float or dtype.is_complex):
        np.testing.assert_array_equal(a, b)
        return
    wide = np.complex128 if dtype.is_complex else np.float64
    x, y = a.astype(wide), b.astype(wide)
    finite = np.isfinite(y)
    np.testing.assert_array_equal(np.isfinite(x), finite)
    np.testing.assert_array_equal(x[~finite], y[~finite])
    if finite.any():
        peak = np.abs(y[finite]).max()
        assert np.abs(x[finite] - y[finite]).max() <= factor * TOLERANCE[dtype] * peak, (
            np.abs(x - y)[finite].max(),
            peak,
        )


def same_values(
    before: Graph, after: Graph, seed: int = 0, sizes: dict[str, int] | None = None, factor: float = 1.0
) -> None:
    """Both graphs give the same results, commits included, on random inputs."""
    rng = np.random.default_rng(seed)
    inputs = random_inputs(before, rng, sizes)
    runs = []
    for g in (before, after):
        states: dict[str, Any] = {}
        mine = [a.copy() for a in inputs]
        outs = Interpreter(states, seed).run(g, mine)
        runs.append((outs, states, mine))
    for v, a, b in zip(before.outputs, runs[1][0], runs[0][0], strict=True):
        close(a, b, v.dtype, factor)
    for name, b in runs[0][1].items():
        close(runs[1][1][name], b, before.states[name].type.dtype, factor)
    for n, a, b in zip(before.inputs, runs[1][2], runs[0][2], strict=True):
        close(a, b, n.types[0].dtype, factor)


def check_pass(
    p: Pass, before: Graph | str, after: str | None = None, *, arrays: Any = None, factor: float = 1.0, seeds: int = 2
) -> tuple[Graph, PassReport]:
    """Runs a pass; the result is well formed, gives the same values, and reads as ``after`` when that is given."""
    g = graph_of(before, arrays) if isinstance(before, str) else before
    text = to_text(g)
    report = PassReport()
    out = p.run(g, report)
    assert to_text(g) == text, "the pass changed its input"
    verify(out)
    for seed in range(seeds):
        same_values(g, out, seed, factor=factor)
    if after is not None:
        assert to_text(out) == to_text(graph_of(after, arrays)), to_text(out)
    return out, report
