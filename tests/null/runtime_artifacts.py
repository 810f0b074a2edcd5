"""Artifacts written by hand for the runtime's tests: kernels from data/runtime_kernels.cpp, programs as plain dicts."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from effc.runtime import build_rt
from effc.runtime.artifact import ArtifactWriter

DATA = Path(__file__).parent / "data"
LEAF = {"t": "leaf"}


@functools.cache
def kernels() -> bytes:
    """The kernels' shared object; compiled once per content."""
    source = DATA / "runtime_kernels.cpp"
    key = hashlib.sha256(source.read_bytes() + (build_rt.include_dir() / "effc_kernel.h").read_bytes()).hexdigest()[:16]
    out = Path(tempfile.gettempdir()) / f"effc-runtime-kernels-{key}.so"
    if not out.exists():
        part = out.with_suffix(".part")
        subprocess.run(
            [
                *build_rt.compiler(),
                "-std=c++17",
                "-O1",
                "-fPIC",
                "-shared",
                "-fvisibility=hidden",
                f"-I{build_rt.include_dir()}",
                str(source),
                "-o",
                str(part),
            ],
            check=True,
        )
        part.replace(out)
    return out.read_bytes()


def tensor(shape: list[Any], k: str = "temp", d: str = "f32", **more: Any) -> dict[str, Any]:
    return {"d": d, "shape": shape, "k": k, **more}


def call(kernel: str, ins: list[int], outs: list[int], **more: Any) -> dict[str, Any]:
    return {"op": "call", "kernel": kernel, "in": ins, "out": outs, "name": kernel, "loc": "model.py:12", **more}


def add(a: int, b: int, out: int) -> dict[str, Any]:
    return call("t_add", [a, b], [out])


def scale(a: int, out: int, factor: Any = 1.0, offset: Any = 0) -> dict[str, Any]:
    return call("t_scale", [a], [out], attrs=[offset], fattrs=[factor])


def program(
    values: list[dict[str, Any]], code: list[dict[str, Any]], inputs: list[int], outputs: list[int], **more: Any
) -> dict[str, Any]:
    return {"symbols": [], "values": values, "code": code, "inputs": inputs, "outputs": outputs, **more}


def dim_symbol(
    name: str, input: int, dim: int, lo: int = 0, hi: int | None = None, mul: int = 1, add: int = 0
) -> dict[str, Any]:
    return {"name": name, "lo": lo, "hi": hi, "from": {"input": input, "dim": dim, "mul": mul, "add": add}}


def args_tree(n: int) -> dict[str, Any]:
    return {"t": "tuple", "c": [{"t": "tuple", "c": [LEAF] * n}, {"t": "dict", "keys": [], "c": []}]}


def entry(prog: dict[str, Any], in_tree: Any = None, out_tree: Any = None) -> dict[str, Any]:
    """An entry point around a program: inputs x0, x1, ..., outputs y0, y1, ..., positional arguments."""
    values = prog["values"]

    def io(ids: list[int], prefix: str) -> list[dict[str, Any]]:
        return [
            {"name": f"{prefix}{i}", "dtype": values[v]["d"], "shape": [str(d) for d in values[v]["shape"]]}
            for i, v in enumerate(ids)
        ]

    n_out = len(prog["outputs"])
    return {
        "inputs": io(prog["inputs"], "x"),
        "outputs": io(prog["outputs"], "y"),
        "program": prog,
        "in_tree": in_tree or args_tree(len(prog["inputs"])),
        "out_tree": out_tree or (LEAF if n_out == 1 else {"t": "tuple", "c": [LEAF] * n_out}),
    }


def manifest(entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"effc": "0", "target": "cpu:x86-64", "isa": [], "entries": entries, **more}


def save(
    path: Path,
    prog: dict[str, Any] | None = None,
    *,
    entries: dict[str, Any] | None = None,
    writer: ArtifactWriter | None = None,
    states: Any = None,
    in_tree: Any = None,
    out_tree: Any = None,
    **more: Any,
) -> Path:
    """Writes an artifact with the test kernels and one program (or several entries)."""
    w = writer or ArtifactWriter()
    w.add_code(kernels())
    if entries is None:
        assert prog is not None
        entries = {"forward": entry(prog, in_tree, out_tree)}
    w.save(path, manifest(entries, states=states or {}, **more))
    return path


@functools.cache
def sanitizer_env() -> dict[str, str]:
    """effc_rt built with the address and undefined-behaviour sanitizers: the environment to run Python with it."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]

    def find(name: str) -> str:
        command = [*build_rt.compiler(), f"-print-file-name={name}"]
        return os.path.realpath(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())

    libraries = [find("libasan.so"), find("libstdc++.so.6")]
    if not all(map(os.path.isfile, libraries)):
        pytest.skip("the compiler has no libasan.so")
    folder = build_rt.cache_dir() / "rt" / ("sanitizers-" + build_rt.content_hash(flags))
    if not (folder / build_rt.NAME).exists():
        build_rt.build(folder, flags)
    return {
        "EFFC_RT_LIB": str(folder / build_rt.NAME),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
