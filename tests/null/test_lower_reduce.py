"""Lowering of reductions: scratch for partial sums where the kernel cuts a reduction into pieces, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from program_runner import Compiled

from effc.backends.cpu import codegen
from effc.backends.cpu.target import CpuTarget
from effc.ir.dims import evaluate, symbol
from effc.ir.dtypes import DType
from effc.ir.graph import Builder
from effc.ir.types import TensorType

ROWS, COLUMNS = codegen.SPLIT_LEAST - 1, codegen.SPLIT_LEAST // 64  # the least that are cut


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("shape", "dim", "cut"),
    [((8 * ROWS,), 0, True), ((ROWS - 1,), 0, False), ((3, 5 * ROWS), 1, True), ((3, 700), 1, False),
     ((COLUMNS, 70), 0, True), ((COLUMNS - 1, 70), 0, False), ((COLUMNS + 9, 33), 0, True)],
)  # fmt: skip
def test_scratch_where_a_reduction_is_cut(shape: tuple[int, ...], dim: int, cut: bool, symbolic: bool) -> None:
    """With more scratch than is given nothing changes; without any, sums of pieces of columns are no longer what they
    were (those of rows are added in double precision, and round to the same)."""
    b = Builder()
    named = tuple(symbol("n") if symbolic and d == dim else s for d, s in enumerate(shape))
    x = b.input("x", TensorType(DType.f32, named))
    compiled = Compiled(b.graph([b.op("reduce", x, kind="sum", dims=(dim,), keepdims=False)]), CpuTarget("x86-64-v3"))
    (call,) = compiled.program["code"]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32)]
    got = compiled.run(arrays)[0]
    want = arrays[0].astype(np.float64).sum(dim)
    assert np.abs(got - want).max() <= 2e-6 * np.abs(arrays[0]).sum(dim).max()
    given = evaluate(call["scratch"], {"n": shape[dim]})
    assert (given > 0) == cut
    assert np.array_equal(compiled.run(arrays, 3, "reverse")[0], got)
    call["scratch"] = 1 << 20
    assert np.array_equal(compiled.run(arrays)[0], got)
    call["scratch"] = 0
    assert np.array_equal(compiled.run(arrays)[0], got) == (not cut or dim == len(shape) - 1)
