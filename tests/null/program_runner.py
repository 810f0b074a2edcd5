"""Runs a lowered program (docs/architecture.md) call by call from Python: a second, independent executor for tests of
lowering.

Storage is fresh for every value (filled with garbage), aliases and views follow the program, kernels come from the
shared object.
"""

from __future__ import annotations

import _ctypes
import ctypes
import tempfile
import weakref
from pathlib import Path
from typing import Any

import kernel_harness as kh
import numpy as np
from numpy.lib.stride_tricks import as_strided

from effc.backends.cpu import build
from effc.backends.cpu.codegen import Generated
from effc.backends.cpu.lower import Constants, Lowering, Options, load_rules
from effc.backends.cpu.target import CpuTarget
from effc.ir import dims
from effc.ir.dtypes import DType
from effc.ir.graph import Graph
from effc.ir.interp import bind_symbols


class Compiled:
    """A graph lowered and compiled for one target."""

    def __init__(self, graph: Graph, target: CpuTarget, inplace: bool = True) -> None:
        load_rules()
        self.graph = graph
        self.generated, self.constants = Generated(), Constants()
        lowering = Lowering(graph, Options(target, memory=inplace), self.constants, self.generated)
        self.program = lowering.run()
        self.kernels = lowering.kernels
        data = build.shared_object(self.kernels, self.generated.kernels, target)
        with tempfile.NamedTemporaryFile(suffix=".so") as f:
            f.write(data)
            f.flush()
            lib = object.__new__(kh.KernelLibrary)
            lib.isa, lib.vlen, lib.lib = "", target.vlen, ctypes.CDLL(f.name)
        self.lib = lib
        # Thousands of programs are loaded by one test process, which may map only so many segments.
        weakref.finalize(self, _ctypes.dlclose, lib.lib._handle)

    def run(
        self, arrays: list[np.ndarray[Any, Any]], threads: int = 1, mode: str = "serial"
    ) -> list[np.ndarray[Any, Any]]:
        env = bind_symbols(self.graph, arrays)
        return self._run(self.program, arrays, env, threads, mode)

    def _run(
        self, program: dict[str, Any], arrays: list[Any], env: dict[str, int], threads: int, mode: str
    ) -> list[Any]:
        values, store = program["values"], {}

        def ev(d: Any) -> int:
            return dims.evaluate(d, env)

        def root(i: int) -> Any:
            v = values[i]
            if i not in store:
                dt = DType(v["d"]).np
                shape = [ev(d) for d in v["shape"]]
                if v["k"] == "input":
                    store[i] = np.ascontiguousarray(arrays[v["i"]]).reshape(-1)
                elif v["k"] == "const":
                    store[i] = self.constants.arrays[v["data"]].reshape(-1)
                elif "alias" in v:
                    store[i] = root(v["alias"])
                else:
                    store[i] = np.frombuffer(
                        np.random.default_rng(i).bytes(int(np.prod(shape)) * dt.itemsize), dt
                    ).copy()
            return store[i]

        def array(i: int) -> Any:
            if i < 0:
                return None
            v = values[i]
            dt = DType(v["d"]).np
            shape = [ev(d) for d in v["shape"]]
            base, offset = root(v["base"] if v["k"] == "view" else i), ev(v.get("offset", 0)) if v["k"] == "view" else 0
            if v["k"] == "view":
                while values[v["base"]]["k"] == "view":  # a result whose storage became the caller's array
                    v = {**v, "base": values[v["base"]]["base"]}
                base = root(v["base"])
            flat = base.view(dt)
            strides = v.get("strides")
            if strides is None:
                return flat[: int(np.prod(shape))].reshape(shape)
            if 0 in shape:
                return np.zeros(shape, dt)
            return as_strided(flat[offset:], shape, [ev(s) * dt.itemsize for s in strides])

        for ins in program["code"]:
            assert ins["op"] == "call", "the test runner has no control flow"
            outs = [kh.Dyn(DType(values[o]["d"]).np) if values[o].get("dyn") else array(o) for o in ins["out"]]
            bound: list[int] = []
            got = self.lib.call(
                ins["kernel"], [array(i) for i in ins["in"]], outs, [ev(a) for a in ins["attrs"]], ins["fattrs"],
                ev(ins["scratch"]), ev(ins["thread_scratch"]), threads, mode, ins["n_own"], ins["epilogue"], 1,
                symbols=bound, n_symbols=len(ins["bind"]),
            )  # fmt: skip
            env.update(zip(ins["bind"], bound, strict=False))
            for o, a in zip(ins["out"], got, strict=True):
                if values[o].get("dyn"):
                    store[o] = a.reshape(-1)
        return [np.array(array(o)) for o in program["outputs"]]


__all__ = ["Compiled", "Path"]
