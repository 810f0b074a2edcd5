"""Every sample of the movement, indexing, sorting and cumulative ops: lowered for the CPU and run, against the
interpreter.

Each sample runs as it is, with operands that are transposed views, and with symbolic sizes.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from kernel_harness import available_isas
from program_runner import Compiled

from effc.backends.cpu.target import parse
from effc.ir import interp, ops  # noqa: F401  (ops: fills the table)
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph
from effc.ir.op import OPS, Sample
from effc.ir.types import TensorType

CATEGORIES = ("view", "movement", "indexing", "sort", "cumulative")
NAMES = [n for n, d in OPS.items() if d.category in CATEGORIES and d.samples is not None]
TARGETS = [f"cpu:x86-64-{isa}" for isa in available_isas()]
TOLERANCE = {"f": {2: 4e-3, 4: 1e-5, 8: 1e-10}, "c": {8: 1e-5, 16: 1e-10}}


def graph_of(name: str, sample: Sample, transposed: bool, symbolic: bool) -> tuple[Graph, list[Any]]:
    """The op alone; with ``transposed`` its inputs come with reversed dims, with ``symbolic`` equal sizes share a
    symbol."""
    b = Builder()
    arrays: list[Any] = []
    operands: list[Any] = []
    for i, x in enumerate(sample.inputs):
        if x is None:
            operands.append(None)
            continue
        back = tuple(range(x.ndim))[::-1]
        data = np.ascontiguousarray(x.transpose(back)) if transposed and x.ndim > 1 else x
        shape = [b.symbol(f"s{n}") if symbolic and n > 1 else n for n in data.shape]
        v = b.input(f"x{i}", TensorType(DType.from_np(x.dtype), tuple(shape)))
        operands.append(b.op("permute", v, dims=back) if transposed and x.ndim > 1 else v)
        arrays.append(data)
    b.symbol("u0")
    out = b.op(name, *operands, **sample.attrs)
    return b.graph(out if isinstance(out, tuple) else [out]), arrays


def check(got: Any, want: Any, where: str) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape, where
    kind = got.dtype.kind
    if kind == "V":  # ml_dtypes' short types: the same bits, NaN's included
        assert got.tobytes() == want.tobytes(), where
        return
    if kind not in "fc":
        assert np.array_equal(got, want), where
        return
    wide: Any = np.complex128 if kind == "c" else np.float64
    a, b = got.astype(wide), want.astype(wide)
    assert np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(np.isinf(a), np.isinf(b)), where
    finite = np.isfinite(b)
    assert np.array_equal(a[~finite & ~np.isnan(b)], b[~finite & ~np.isnan(b)]), where
    scale = np.abs(b[finite]).max(initial=0)
    assert np.abs(a[finite] - b[finite]).max(initial=0) <= TOLERANCE[kind][got.dtype.itemsize] * scale, where


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cpu", TARGETS)
@pytest.mark.parametrize("variant", ["plain", "transposed", "symbolic"])
def test_samples(name: str, cpu: str, variant: str) -> None:
    definition = OPS[name]
    assert definition.samples is not None
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for k, sample in enumerate(definition.samples(rng)):
        if variant != "plain" and (k % 3 or not sample.inputs):
            continue
        if variant == "symbolic" and not symbolic_ok(sample):
            continue
        g, arrays = graph_of(name, sample, variant == "transposed", variant == "symbolic")
        want = interp.run(g, arrays)
        mode: dict[str, Any] = [{}, {"threads": 3, "mode": "reverse"}, {"threads": 2, "mode": "threads"}][
            k % 3 if variant == "plain" else 0
        ]
        got = Compiled(g, parse(cpu)).run(arrays, **mode)
        shapes = [None if a is None else (a.dtype, a.shape) for a in sample.inputs]
        where = f"{name} {dict(sample.attrs)} {shapes} {variant}"
        for a, b in zip(got, want, strict=True):
            check(a, b, where)


def symbolic_ok(sample: Sample) -> bool:
    """Do the attributes leave the sizes open?"""
    return not {"shape", "starts", "size"} & set(sample.attrs)
