"""Runs a module of the torch dialect by MLIR itself: torch-mlir lowers it to linalg on tensors, MLIR's passes to LLVM,
and its ExecutionEngine compiles and calls it. Shares nothing with effc but the module.

``run`` does so in a process of its own, since torch-mlir's passes end the process on what they were not made for.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from torch_mlir import ir
from torch_mlir.dialects import torch as torch_dialect
from torch_mlir.execution_engine import ExecutionEngine
from torch_mlir.passmanager import PassManager

Array = np.ndarray[Any, Any]
TORCH = "torchdynamo-export-to-torch-backend-pipeline"
LINALG = "torch-backend-to-linalg-on-tensors-backend-pipeline"
BUFFERIZE = (
    "one-shot-bufferize{copy-before-write bufferize-function-boundaries "
    "function-boundary-type-conversion=identity-layout-map}"
)
LLVM = (
    "func.func(linalg-generalize-named-ops)",
    "func.func(linalg-fuse-elementwise-ops)",
    "convert-shape-to-std",
    "func.func(refback-generalize-tensor-pad)",
    "func.func(refback-generalize-tensor-concat)",
    "func.func(tm-tensor-bufferize)",
    BUFFERIZE,
    "refback-mlprogram-bufferize",
    "buffer-deallocation-pipeline",
    "convert-bufferization-to-memref",
    "func.func(tm-tensor-to-loops)",
    "func.func(refback-munge-memref-copy)",
    "func.func(convert-linalg-to-loops)",
    "func.func(lower-affine)",
    "convert-scf-to-cf",
    "func.func(refback-expand-ops-for-llvm)",
    "func.func(arith-expand)",
    "func.func(convert-math-to-llvm)",
    "convert-complex-to-standard",
    "func.func(convert-math-to-llvm)",
    "convert-math-to-libm",
    "expand-strided-metadata",
    "finalize-memref-to-llvm",
    "lower-affine",
    "finalize-memref-to-llvm",
    "func.func(convert-arith-to-llvm)",
    "convert-func-to-llvm",
    "convert-cf-to-llvm",
    "convert-complex-to-llvm",
    "reconcile-unrealized-casts",
)
NUMPY = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64, "i1": np.bool_,
    "si8": np.int8, "ui8": np.uint8, "si16": np.int16, "si32": np.int32, "si64": np.int64,
    "complex<f32>": np.complex64, "complex<f64>": np.complex128,
}  # fmt: skip


class NotLowered(Exception):
    """torch-mlir has no lowering for what the module holds."""


def descriptor(rank: int) -> Any:
    """The C struct of a ranked memref."""
    fields: list[Any] = [("allocated", ctypes.c_void_p), ("aligned", ctypes.c_void_p), ("offset", ctypes.c_int64)]
    if rank:
        fields += [("shape", ctypes.c_int64 * rank), ("strides", ctypes.c_int64 * rank)]
    return type("Memref", (ctypes.Structure,), {"_fields_": fields})


class Engine:
    """The function ``main`` of a module's text (saved without symbols), compiled; NotLowered where torch-mlir has no
    lowering."""

    def __init__(self, text: str) -> None:
        self.context = ir.Context()
        with self.context, ir.Location.unknown():
            torch_dialect.register_dialect(self.context)
            module = ir.Module.parse(text)
            (f,) = (o.operation for o in module.body.operations)
            f.attributes["llvm.emit_c_interface"] = ir.UnitAttr.get()
            kind = ir.FunctionType(ir.TypeAttr(f.attributes["function_type"]).value)
            self.results = [self._array_type(str(t)) for t in kind.results]
            for stage in (TORCH, LINALG):
                try:
                    PassManager.parse(f"builtin.module({stage})").run(module.operation)
                except Exception as e:
                    raise NotLowered(str(e)) from e
            PassManager.parse(f"builtin.module({','.join(LLVM)})").run(module.operation)
            self.engine = ExecutionEngine(module, opt_level=1)

    @staticmethod
    def _array_type(kind: str) -> tuple[int, Any]:
        shape, _, element = kind.removeprefix("!torch.vtensor<[").removesuffix(">").partition("],")
        return len(shape.split(",")) if shape else 0, NUMPY[element]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        given = []
        for a in arrays:
            a = np.ascontiguousarray(a).reshape(a.shape)
            d = descriptor(a.ndim)()
            d.allocated = d.aligned = a.ctypes.data
            if a.ndim:
                d.shape, d.strides = type(d.shape)(*a.shape), type(d.strides)(*(s // a.itemsize for s in a.strides))
            given.append((a, d))
        out = type("Results", (ctypes.Structure,), {"_fields_": [
            (f"r{i}", descriptor(rank)) for i, (rank, _) in enumerate(self.results)
        ]})()  # fmt: skip
        pointers = [ctypes.pointer(ctypes.pointer(d)) for _, d in given]
        self.engine.invoke("main", ctypes.pointer(ctypes.pointer(out)), *pointers)
        free = ctypes.CDLL(None).free
        made, owned = [], set()
        for i, (rank, dtype) in enumerate(self.results):
            d = getattr(out, f"r{i}")
            shape, strides = (tuple(d.shape), tuple(d.strides)) if rank else ((), ())
            made.append(_copy(d, shape, strides, np.dtype(dtype)))
            owned.add(d.allocated)
        for pointer in owned - {a.ctypes.data for a, _ in given}:
            free(ctypes.c_void_p(pointer))
        return made


def _copy(d: Any, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if 0 in shape:
        return np.zeros(shape, dtype)
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    start = d.aligned + d.offset * dtype.itemsize
    raw = np.frombuffer((ctypes.c_uint8 * ((last + 1) * dtype.itemsize)).from_address(start), np.uint8)
    flat = raw.view(dtype)
    view = np.lib.stride_tricks.as_strided(flat, shape, tuple(s * dtype.itemsize for s in strides))
    return np.array(view)


def run(text: str, calls: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """The results of ``main`` for each list of arguments; NotLowered with what torch-mlir says, or that it crashed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.mlir").write_text(text)
        for i, arrays in enumerate(calls):
            np.savez(folder / f"in{i}.npz", *arrays)
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True)
        if done.returncode:
            raise NotLowered(done.stderr[-2000:] or f"torch-mlir crashed ({done.returncode})")
        return [_load(folder / f"out{i}.npz") for i in range(len(calls))]


def _load(path: Path) -> list[Array]:
    with np.load(path) as f:
        return [f[f"arr_{i}"] for i in range(len(f.files))]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    engine = Engine((place / "model.mlir").read_text())
    for i in range(len(list(place.glob("in*.npz")))):
        np.savez(place / f"out{i}.npz", *engine(_load(place / f"in{i}.npz")))
