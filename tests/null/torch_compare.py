"""Runs one op through lowering and kernels on torch tensors, for comparison with torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from kernel_harness import available_isas
from program_runner import Compiled

from effc.backends.cpu.target import parse
from effc.ir import dims, interp
from effc.ir.dtypes import DType
from effc.ir.graph import Builder
from effc.ir.types import TensorType

CPUS = [f"cpu:x86-64-{isa}" for isa in available_isas()]
SIZE = dims.symbol("u0")
TOLERANCE = {"f16": 4e-3, "bf16": 2e-2, "f32": 1e-5, "f64": 1e-10, "c64": 1e-5, "c128": 1e-10}


def to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """A torch tensor's data as numpy, bfloat16 as ml_dtypes'."""
    import torch

    x = x.detach().contiguous()
    return x.view(torch.int16).numpy().view(DType.bf16.np) if x.dtype == torch.bfloat16 else x.numpy()


def run(
    cpu: str, name: str, inputs: Sequence[Any], /, *, reference: bool = True, **attrs: Any
) -> list[np.ndarray[Any, Any]]:
    """The op's results from the CPU backend; with ``reference`` the interpreter's must agree with them."""
    b = Builder()
    b.symbol("u0")
    arrays = [None if x is None else to_numpy(x) for x in inputs]
    args = [
        None if a is None else b.input(f"x{i}", TensorType(DType.from_np(a.dtype), a.shape))
        for i, a in enumerate(arrays)
    ]
    out = b.op(name, *args, **attrs)
    g = b.graph(out if isinstance(out, tuple) else [out])
    given = [a for a in arrays if a is not None]
    got = Compiled(g, parse(cpu)).run(given, threads=2, mode="reverse")
    if reference:
        for a, w in zip(got, interp.run(g, given), strict=True):
            close(a, w)
    return got


def close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    """Same dtype, shape, NaN and infinities; integers equal; floats within the dtype's tolerance of the largest
    value."""
    assert a.dtype == b.dtype and a.shape == b.shape, (a.dtype, a.shape, b.dtype, b.shape)
    dt = DType.from_np(a.dtype)
    if not (dt.is_float or dt.is_complex):
        assert np.array_equal(a, b)
        return
    if dt.is_complex:
        parts = [(a.real, b.real), (a.imag, b.imag)]
    else:
        parts = [(a.astype(np.float64), b.astype(np.float64))]
    scale = max(np.abs(q[np.isfinite(q)]).max(initial=0) for _, q in parts)
    for p, q in parts:
        assert np.array_equal(np.isnan(p), np.isnan(q)), "NaN in other places"
        infinite = np.isinf(q)
        assert np.array_equal(np.isinf(p), infinite) and np.array_equal(p[infinite], q[infinite]), "infinities differ"
        finite = np.isfinite(q)
        assert np.abs(p[finite] - q[finite]).max(initial=0) <= TOLERANCE[dt.value] * scale


def same(got: Sequence[Any], want: Any) -> None:
    """Results against one torch tensor or a tuple of them."""
    import torch

    wants = (want,) if isinstance(want, torch.Tensor) else tuple(want)
    for a, w in zip(got, wants, strict=True):
        close(a, to_numpy(w))
