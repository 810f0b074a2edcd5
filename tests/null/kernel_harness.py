"""Compile library kernels and call them directly from numpy, without graph, lowering or runtime.

    lib = KernelLibrary(["sort.cpp"], isa="v3")
    values, indices = lib.call("effc_sort", [x], [np.empty_like(x), np.empty(x.shape, np.int64)], attrs=[1, 0])

Arrays may have any strides (that is how views are tested); an output passed as ``Dyn(dtype)`` is allocated by the
kernel. Flags in EFFC_KERNEL_FLAGS are added to every compilation, so that the tests also run under sanitizers:

    EFFC_KERNEL_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g" ASAN_OPTIONS=detect_leaks=0 \
        LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" pytest tests/null

``mode`` chooses how parallel_for runs: "serial", "reverse" (chunks last to first, cycling worker numbers) or
"threads". Scratch is filled with garbage, sized exactly and guarded. A nonzero status raises ``KernelError``.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effc.ir.dtypes import DType

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "effc" / "backends" / "cpu" / "kernels"
INCLUDE = ROOT / "effc" / "runtime" / "include"
FLAGS = (
    "-std=c++17 -O3 -fPIC -fno-math-errno -fno-trapping-math -fopenmp-simd -fno-exceptions -fno-rtti "
    "-fvisibility=hidden -Wall -Wextra"
).split()
ISAS = {
    "v3": ["-march=x86-64-v3", "-DEFFC_VLEN=32"],
    "v4": ["-march=x86-64-v4", "-DEFFC_VLEN=64"],
}
_NEEDS = {"v3": {"avx2", "fma"}, "v4": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}


def available_isas() -> list[str]:
    """The names in ISAS that this machine can run."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ["v3"]
    flags = next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set())
    return [name for name, need in _NEEDS.items() if need <= flags]


_DTYPES: dict[np.dtype[Any], int] = {d.np: d.code for d in DType if d is not DType.c32}
_FROM_CODE = {code: dtype for dtype, code in _DTYPES.items()}


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
    ]


class Call(ctypes.Structure):
    _fields_ = [
        ("api", ctypes.c_void_p),
        ("run", ctypes.c_void_p),
        ("n_in", ctypes.c_int32),
        ("n_own", ctypes.c_int32),
        ("n_out", ctypes.c_int32),
        ("n_attr", ctypes.c_int32),
        ("n_fattr", ctypes.c_int32),
        ("in_", ctypes.POINTER(Tensor)),
        ("out", ctypes.POINTER(Tensor)),
        ("attr", ctypes.POINTER(ctypes.c_int64)),
        ("fattr", ctypes.POINTER(ctypes.c_double)),
        ("scratch", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_int64),
        ("thread_scratch", ctypes.c_void_p),
        ("thread_scratch_bytes", ctypes.c_int64),
        ("epilogue", ctypes.c_void_p),
    ]


class KernelError(Exception):
    """The kernel reported an error (its text), overran scratch, or returned a nonzero status."""


@dataclass(frozen=True)
class Dyn:
    """An output whose shape the kernel decides (api->alloc_out)."""

    dtype: Any


def _tensor(array: np.ndarray[Any, Any] | None, keep: list[Any]) -> Tensor:
    if array is None:
        return Tensor(None, 0, -1, None, None)
    rank, size = array.ndim, array.dtype.itemsize
    if any(s % size for s in array.strides):
        raise ValueError("strides must be whole elements")
    shape = (ctypes.c_int64 * max(rank, 1))(*array.shape)
    strides = (ctypes.c_int64 * max(rank, 1))(*(s // size for s in array.strides))
    keep += [array, shape, strides]
    return Tensor(array.ctypes.data, _DTYPES[array.dtype], rank, shape, strides)


def _build(name: str, sources: Sequence[Path], flags: Sequence[str], depends: Sequence[Path]) -> Path:
    """A shared object of the sources, cached by content of sources, dependencies and flags."""
    compiler = os.environ.get("CXX", "g++")
    digest = hashlib.sha256(repr((compiler, list(flags))).encode())
    for path in [*sources, *depends]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"effc-test-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{name}-{digest.hexdigest()[:24]}.so"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}.part")
        command = [compiler, *flags, f"-I{INCLUDE}", f"-I{KERNELS}", "-shared", "-o", str(part), *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        if done.stderr.strip():
            raise RuntimeError(f"warnings in {name}:\n{done.stderr}")
        os.replace(part, target)
    return target


def _harness() -> ctypes.CDLL:
    global _HARNESS
    if _HARNESS is None:
        source = Path(__file__).with_suffix(".cpp")
        path = _build("harness", [source], ["-std=c++17", "-O2", "-fPIC", "-pthread"], [INCLUDE / "effc_kernel.h"])
        lib = ctypes.CDLL(str(path))
        lib.harness_call.argtypes = [
            ctypes.c_void_p, ctypes.POINTER(Call), ctypes.c_int32, ctypes.c_int32, ctypes.c_uint64, ctypes.c_int64,
            ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_void_p),
        ]  # fmt: skip
        lib.harness_call.restype = ctypes.c_int32
        lib.harness_error.argtypes = [ctypes.c_void_p]
        lib.harness_error.restype = ctypes.c_char_p
        lib.harness_symbol.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        lib.harness_symbol.restype = ctypes.c_int64
        lib.harness_free.argtypes = [ctypes.c_void_p]
        lib.harness_free.restype = None
        _HARNESS = lib
    return _HARNESS


_HARNESS: ctypes.CDLL | None = None
_MODES = {"serial": 0, "reverse": 1, "threads": 2}


class KernelLibrary:
    """Kernel units compiled for one ISA. ``extra`` are further source files (an epilogue for a test, say)."""

    def __init__(self, units: Sequence[str], isa: str = "v3", extra: Sequence[Path] = (), flags: Sequence[str] = ()):
        sources = [KERNELS / unit for unit in units] + list(extra)
        depends = sorted(KERNELS.glob("*.hpp")) + [INCLUDE / "effc_kernel.h"]
        name = "-".join(Path(unit).stem for unit in units) or "extra"
        self.isa = isa
        self.vlen = int(ISAS[isa][1].split("=")[1])
        extra_flags = os.environ.get("EFFC_KERNEL_FLAGS", "").split()
        path = _build(f"{name[:80]}-{isa}", sources, [*FLAGS, *ISAS[isa], *flags, *extra_flags], depends)
        self.lib = ctypes.CDLL(str(path))

    def symbol(self, name: str) -> int:
        """Address of an exported function."""
        address = ctypes.cast(getattr(self.lib, name), ctypes.c_void_p).value
        assert address is not None
        return address

    def call(
        self,
        kernel: str,
        inputs: Sequence[np.ndarray[Any, Any] | None],
        outputs: Sequence[np.ndarray[Any, Any] | Dyn | None],
        attrs: Sequence[int] = (),
        fattrs: Sequence[float] = (),
        scratch: int = 0,
        thread_scratch: int = 0,
        threads: int = 1,
        mode: str = "serial",
        n_own: int | None = None,
        epilogue: str | None = None,
        seed: int = 0,
        repeat: int = 1,
        times: np.ndarray[Any, Any] | None = None,
        symbols: list[int] | None = None,
        n_symbols: int = 0,
    ) -> list[np.ndarray[Any, Any] | None]:
        """Run the kernel and return its outputs (the arrays passed in, or new ones for Dyn).

        ``times``: float64 array of ``repeat`` entries to get the seconds of each call; ``symbols`` gets the first
        ``n_symbols`` values that the kernel bound.
        """
        harness = _harness()
        keep: list[Any] = []
        ins = (Tensor * max(len(inputs), 1))(*(_tensor(a, keep) for a in inputs))
        outs = (Tensor * max(len(outputs), 1))(
            *(
                Tensor(None, _DTYPES[np.dtype(o.dtype)], 0, None, None) if isinstance(o, Dyn) else _tensor(o, keep)
                for o in outputs
            )
        )
        call = Call(
            n_in=len(inputs),
            n_own=len(inputs) if n_own is None else n_own,
            n_out=len(outputs),
            n_attr=len(attrs),
            n_fattr=len(fattrs),
            in_=ins,
            out=outs,
            attr=(ctypes.c_int64 * max(len(attrs), 1))(*attrs),
            fattr=(ctypes.c_double * max(len(fattrs), 1))(*fattrs),
            scratch_bytes=scratch,
            thread_scratch_bytes=thread_scratch,
            epilogue=self.symbol(epilogue) if epilogue else None,
        )
        if times is not None and (times.dtype != np.float64 or times.size < repeat):
            raise ValueError("times must be a float64 array with room for every repeat")
        stamps = None if times is None else times.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        run = ctypes.c_void_p()
        status = harness.harness_call(
            self.symbol(kernel), call, threads, _MODES[mode], seed, repeat, stamps, ctypes.byref(run)
        )
        try:
            if status:
                text = harness.harness_error(run).decode(errors="replace")
                raise KernelError(text or f"{kernel} returned {status}")
            if symbols is not None:
                symbols[:] = [harness.harness_symbol(run, i) for i in range(n_symbols)]
            result: list[np.ndarray[Any, Any] | None] = []
            for given, t in zip(outputs, outs):
                if isinstance(given, Dyn):
                    shape = tuple(t.shape[d] for d in range(t.rank))
                    dtype = _FROM_CODE[t.dtype]
                    count = int(np.prod(shape, dtype=np.int64))
                    data = ctypes.string_at(t.data, count * dtype.itemsize) if count else b""
                    result.append(np.frombuffer(data, dtype=dtype).reshape(shape).copy())
                else:
                    result.append(given)
            return result
        finally:
            harness.harness_free(run)
