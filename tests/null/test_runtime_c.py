"""The C API: the example program, shared with nothing of Python; and allocations counted by interposing malloc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runtime_artifacts import add, call, dim_symbol, program, save, scale, tensor

from effc.runtime import build_rt
from effc.runtime.artifact import ArtifactWriter
from effc.runtime.loader import load

EXAMPLE = build_rt.ROOT / "examples" / "run.c"


def c_compiler() -> list[str]:
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    return build_rt.compiler()


def build(tmp_path: Path, source: Path, out: str, *flags: str) -> Path:
    lib = build_rt.library().parent
    command = [
        *c_compiler(),
        "-std=c11",
        "-D_GNU_SOURCE",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O1",
        str(source),
        f"-I{build_rt.include_dir()}",
        *flags,
        "-o",
        str(tmp_path / out),
        f"-L{lib}",
        "-leffc_rt",
        f"-Wl,-rpath,{lib}",
        "-lm",
        "-ldl",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tmp_path / out


def model(path: Path) -> Path:
    w = ArtifactWriter()
    seg, offset = w.add_weight(np.arange(12, dtype=np.float32).reshape(3, 4))
    values = [
        tensor(["s0", 3, 4], "input", i=0),
        tensor(["s0", 3, 4], "view", base=5, offset=0, strides=[0, 4, 1]),
        tensor(["s0", 3, 4]),
        tensor(["s0", 3], "output", i=0),
        tensor(["u0"], "output", d="i64", i=1, dyn=True),
        tensor([3, 4], "const", seg=seg, offset=offset),
        tensor([["*", "s0", 12]], "view", base=2, offset=0, strides=[1]),
    ]
    code = [
        add(0, 1, 2),
        call("t_sum_last", [2], [3], scratch=64, thread_scratch=64),
        call("t_nonzero", [6], [4], attrs=[1], bind=["u0"]),
    ]
    symbols = [dim_symbol("s0", 0, 0), {"name": "u0", "lo": 0, "hi": None, "from": None}]
    return save(path, program(values, code, [0], [3, 4], symbols=symbols), writer=w)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_example_prints_the_same_numbers(tmp_path: Path, size: int) -> None:
    artifact = model(tmp_path / "m.effc")
    exe = build(tmp_path, EXAMPLE, "run")
    done = subprocess.run([exe, artifact, str(size)], capture_output=True, text=True, check=True, env={})
    x = np.sin(np.arange(size * 12, dtype=np.float64)).astype(np.float32).reshape(size, 3, 4)
    y, i = load(artifact)(x)
    want = [
        f"output 0: dtype 11, shape {size} 3",
        *(f"{v:.9g}" for v in y.ravel().tolist()),
        f"output 1: dtype 8, shape {len(i)}",
        *map(str, i.tolist()),
    ]
    assert done.stdout.split("\n")[:-1] == want
    missing = subprocess.run([exe, tmp_path / "nothing.effc"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1 and "cannot open" in missing.stderr


STEADY = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include "effc.h"

static long count;
extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) { __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED); return __libc_malloc(n); }
void* calloc(size_t a, size_t b) { __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED); return __libc_calloc(a, b); }
void* realloc(void* p, size_t n) { __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED); return __libc_realloc(p, n); }
static void* aligned(size_t a, size_t n) {
  __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
  return __libc_memalign(a, n);
}
int posix_memalign(void** p, size_t a, size_t n) { *p = aligned(a, n); return !*p; }
void* aligned_alloc(size_t a, size_t n) { return aligned(a, n); }

int main(int argc, char** argv) {
  effc_model* model;
  if (argc < 2 || effc_load(argv[1], NULL, &model)) { puts(effc_last_error()); return 1; }
  static float x[40 * 3], y[40 * 3];
  for (int run = 0; run < 20; ++run) {
    int64_t shape[] = {run % 2 ? 40 : 7, 3}, turned[] = {3, shape[0]};
    effc_array in, out;
    effc_array_init(&in, x, EFFC_F32, 2, shape);
    in.strides[0] = 1;  /* column-major: the runtime has to copy */
    in.strides[1] = shape[0];
    effc_array_init(&out, y, EFFC_F32, 2, turned);
    long before = count;
    uint64_t counted = effc_alloc_count();
    if (effc_run(model, 0, NULL, &in, 1, &out, 1)) { puts(effc_last_error()); return 1; }
    printf("%ld %ld\n", count - before, (long)(effc_alloc_count() - counted));
  }
  effc_free(model);
  return 0;
}
"""


def test_a_warm_run_allocates_nothing(tmp_path: Path) -> None:
    """Two sizes in turn, a non-contiguous input, a state, a staged write-back: after the first of each, no malloc."""
    values = [
        tensor(["s0", 3], "input", i=0),
        tensor(["s0", 3]),
        tensor([3, "s0"], "view", base=1, offset=0, strides=[1, 3]),
        tensor([3, "s0"], "output", i=0),
        tensor([4], "state", name="a"),
        tensor([4], "view", base=4, offset=3, strides=[-1]),
    ]
    code = [add(0, 0, 1), scale(2, 3, 2.0)]
    prog = program(values, code, [0], [3], symbols=[dim_symbol("s0", 0, 0)], commits=[{"state": "a", "value": 5}])
    artifact = save(tmp_path / "m.effc", prog, states={"a": {"d": "f32", "shape": [4]}})
    source = tmp_path / "steady.c"
    source.write_text(STEADY)
    exe = build(tmp_path, source, "steady", "-rdynamic", "-Wno-builtin-declaration-mismatch")
    done = subprocess.run([exe, artifact], capture_output=True, text=True, check=False, env={"EFFC_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stdout
    counts = [tuple(map(int, line.split())) for line in done.stdout.split("\n") if line]
    assert len(counts) == 20 and counts[0][0] > 0 and counts[0][1] > 0
    assert counts[4:] == [(0, 0)] * 16, counts


def test_header_is_plain_c_and_cpp(tmp_path: Path) -> None:
    source = tmp_path / "h.c"
    source.write_text('#include "effc.h"\nint main(void) { return effc_version() == 0; }\n')
    build(tmp_path, source, "h", "-pedantic")
    cpp = tmp_path / "h.cpp"
    cpp.write_text(source.read_text())
    subprocess.run(
        [
            *build_rt.compiler(),
            "-std=c++17",
            "-fsyntax-only",
            "-Wall",
            "-Werror",
            "-pedantic",
            f"-I{build_rt.include_dir()}",
            str(cpp),
        ],
        check=True,
    )


def test_library_needs_only_libc_libstdcpp_and_pthreads() -> None:
    readelf = shutil.which("readelf")
    if not readelf:
        pytest.skip("readelf is not installed")
    out = subprocess.run([readelf, "-dW", build_rt.library()], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*?)\]", out))
    assert needed <= {
        "libc.so.6",
        "libstdc++.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libpthread.so.0",
        "libdl.so.2",
        "ld-linux-x86-64.so.2",
    }, needed
    symbols = subprocess.run(
        [readelf, "--dyn-syms", "-W", build_rt.library()], capture_output=True, text=True, check=True
    ).stdout
    exported = {
        parts[7].split("@")[0]
        for line in symbols.splitlines()
        if len(parts := line.split()) == 8 and parts[6].isdigit() and parts[4] == "GLOBAL"
    }
    assert exported and all(name.startswith("effc_") for name in exported), exported


def test_build_is_used_by_the_wheel(tmp_path: Path) -> None:
    """build(out_dir) leaves the library and the hash of its sources, and a broken compiler is an EffcError."""
    from effc.runtime.errors import EffcError

    os.environ["CXX"], before = "false", os.environ.get("CXX")
    try:
        with pytest.raises(EffcError, match="building effc_rt failed"):
            build_rt.build(tmp_path)
    finally:
        del os.environ["CXX"]
        if before is not None:
            os.environ["CXX"] = before
    assert list(tmp_path.iterdir()) == []
