"""The table of micro-kernels: the library is compiled as it says, each entry's instruction is in its code, and those
that this machine runs are right over all remainders of tiles (those it does not: test_bf16.py, test_int8.py)."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_harness as h

import effc
from effc import cli
from effc.backends.cpu import build, microkernels, target
from effc.backends.cpu.lower import Lowering
from effc.backends.cpu.packing.gemm import HEADER, PACKABLE, pack_gemm_b, thread_scratch
from effc.backends.cpu.target import CpuTarget, parse
from effc.ir.dtypes import DType

Array = np.ndarray[Any, Any]
TARGETS = [
    "cpu:x86-64-v3", "cpu:x86-64-v3+avxvnni", "cpu:x86-64-v4", "cpu:x86-64-v4+avxvnni", "cpu:x86-64-v4+avx512vnni",
    "cpu:x86-64-v4+avx512bf16", "cpu:x86-64-v4+amx", "cpu:x86-64-v4+avx512vnni+avx512bf16+amx",
]  # fmt: skip


def chosen_for(m: microkernels.MicroKernel) -> CpuTarget:
    """The least target that takes it."""
    return CpuTarget("x86-64-v4" if m.vlen == 64 or m.needs[:1] == ("amx_tile",) else "x86-64-v3", m.needs)


def ids(m: microkernels.MicroKernel) -> str:
    return f"{m.product}-{m.operands[0]}-{m.name}"


@pytest.mark.parametrize("name", TARGETS)
def test_the_compiler_sees_what_the_table_says(tmp_path: Path, name: str) -> None:
    """Rows, columns and steps of the variants that the target's flags compile, as static assertions."""
    t = parse(name)
    lines = ['#include "dot_bf16.hpp"', '#include "dot_i8.hpp"', "using namespace effc;"]
    for dtype, c in ((DType.f32, "float"), (DType.f64, "double"), (DType.f16, "float"), (DType.bf16, "float")):
        m = microkernels.choose(t, "matmul", dtype)
        lines.append(f'static_assert(gemm::kNR<{c}> == {m.nr(dtype, t.vlen)}, "nr of {dtype}");')
        if m.step == 1:
            lines.append(f'static_assert(gemm::kMR == {m.mr}, "mr of {dtype}");')
    m = microkernels.choose(t, "matmul", DType.bf16)
    if m.step == 2:
        lines.append(f'static_assert(EFFC_BF16_DOT && gemm::kDotMR == {m.mr}, "bf16");')
    else:
        lines += ["#ifdef EFFC_BF16_DOT", "#error bf16 is multiplied in pairs", "#endif"]
        lines.append(f'static_assert(gemm::steps_of<gemm::bf16_pair> == {m.kr}, "kr of bf16");')
    m = microkernels.choose(t, "qmatmul", DType.u8)
    lines.append(f'static_assert(i8::kRows == {m.mr} && i8::kNR == {m.panel} && i8::kGroup == {m.kr}, "bytes");')
    lines.append(f'static_assert(i8::kSplit == {str(m.saturates).lower()}, "split");')
    source = tmp_path / "probe.cpp"
    source.write_text("\n".join(lines))
    command = [*build.compiler(), *build.flags_for(t), "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    source.write_text("\n".join([*lines, f"static_assert(i8::kRows == {m.mr + 1});"]))  # it would not pass with another
    assert subprocess.run(command, capture_output=True).returncode


@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump is not installed")
@pytest.mark.parametrize("m", microkernels.TABLE, ids=ids)
def test_instructions(m: microkernels.MicroKernel) -> None:
    """The unit as artifacts link it has the instruction that the entry names, and for tiles those around it."""
    t = chosen_for(m)
    assert microkernels.choose(t, m.product, m.operands[0]) is m
    for unit in (m.unit, "conv_i8.cpp") if m.product == "qmatmul" else (m.unit,):
        pending = build.unit_object(unit, t)
        if pending is not None:
            pending.result()
        text = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", str(build.unit_path(unit, t))], capture_output=True, text=True
        ).stdout
        around = ["tileloadd", "tilestored", "ldtilecfg", "tilerelease"] if "amx_tile" in m.needs else []
        for instruction in (m.instruction, *around):
            assert re.search(instruction, text), f"no {instruction} in {unit} for {t.name}"
    if m.needs:  # and not for the target without it
        less = CpuTarget(t.level, ())
        assert microkernels.choose(less, m.product, m.operands[0]) is not m


def innermost_loops(text: str, function: str) -> dict[str, list[list[str]]]:
    """Instructions of the innermost loops with multiply-adds of each function whose demangled name begins so."""
    found: dict[str, list[list[str]]] = {}
    for part in text.split("\n\n"):
        head = re.match(r"[0-9a-f]+ <(.*)>:", part)
        if head is None or not head[1].startswith(function):
            continue
        lines = re.findall(r"^\s*([0-9a-f]+):\s+(.*)$", part, re.M)
        index = {at: i for i, (at, _) in enumerate(lines)}
        spans = []
        for i, (_, what) in enumerate(lines):
            jump = re.match(r"j\w+\s+([0-9a-f]+)", what)
            if jump and index.get(jump[1], i + 1) <= i:
                spans.append((index[jump[1]], i))
        inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
        loops = [[what for _, what in lines[first : last + 1]] for first, last in inner]
        found[head[1]] = [x for x in loops if any("vfmadd" in y or "vpmaddubsw" in y for y in x)]
    return found


@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump is not installed")
@pytest.mark.parametrize(
    ("unit", "function", "least"),
    [
        ("gemm_f32.cpp", "void effc::gemm::micro<float, float", 12),
        ("attention_f32.cpp", "void effc::gemm::micro<float, float", 24),
        ("conv_f32.cpp", "void effc::conv::micro_rows<float", 20),
        ("conv_f32.cpp", "void effc::conv::micro_lines<float", 20),
        ("gemm_i8.cpp", "void effc::i8::micro", 4),
    ],
)
def test_accumulators_stay_in_registers(unit: str, function: str, least: int) -> None:
    """No loop over k loads accumulators from the stack and stores them there, whatever the tile. (What it stores first
    and loads later is an element for which a wide tile leaves no register.)"""
    t = CpuTarget("x86-64-v3")
    pending = build.unit_object(unit, t)
    if pending is not None:
        pending.result()
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(build.unit_path(unit, t))]
    loops = innermost_loops(subprocess.run(command, capture_output=True, text=True).stdout, function)
    assert sum(map(len, loops.values())) >= least
    for name, bodies in loops.items():
        for body in bodies:
            for i, what in enumerate(body):
                store = re.match(r"vmov\w+\s+%[xyz]mm\d+,(\S*\(%r[sb]p\))", what)
                assert store is None or not any(store[1] in x for x in body[:i]), f"{name}: {what}"


HERE = [m for m in microkernels.TABLE if not m.needs and m.product == "matmul"]


@pytest.mark.parametrize("isa", h.available_isas())
@pytest.mark.parametrize("m", HERE, ids=ids)
def test_every_tile_remainder(m: microkernels.MicroKernel, isa: str) -> None:
    """All rows of up to two tiles by all columns of up to two panels, a few steps; packed and computed right sides."""
    lib = h.KernelLibrary([m.unit], isa)
    rng = np.random.default_rng(1)
    for dtype in m.operands if len(m.operands) < 8 else (DType.i8, DType.u16, DType.i32, DType.u64):
        acc, nr, kind = m.accumulator(dtype), m.nr(dtype, lib.vlen), np.dtype(dtype.np).kind
        name = "int" if dtype.is_int else str(dtype)
        for k in (1, 2, 3, 4, 5, 9, 66):
            rows, cols = 2 * m.mr + 1, 2 * nr + 1
            if kind in "iu":
                info = np.iinfo(dtype.np)
                a, b = (rng.integers(info.min, info.max, s, dtype.np, endpoint=True) for s in ((rows, k), (k, cols)))
            else:
                a, b = (rng.standard_normal(s) for s in ((rows, k), (k, cols)))
                if kind == "c":
                    a, b = a + 1j * a[::-1], b - 1j * b[:, ::-1]
                a, b = a.astype(dtype.np), b.astype(dtype.np)
            want = microkernels.reference(a, b)
            scale = microkernels.reference(np.abs(a), np.abs(b)) if kind not in "iu" else want
            rounding = {DType.bf16: 2.0**-8, DType.f16: 2.0**-11}.get(dtype, 0.0)
            step = 2.0**-51 if acc is DType.f64 or dtype in (DType.f64, DType.c128) else 2.0**-22
            for i, n in itertools.product(range(1, rows + 1), range(1, cols + 1) if k == 3 else (1, nr - 1, nr + 1)):
                x, y = a[None, None, :i], b[None, None, :, :n]
                outs = [np.zeros((1, 1, i, n), dtype.np)]
                lib.call(f"effc_matmul_{name}", [x, y], outs, [0, 0, 0], thread_scratch=thread_scratch(acc, lib.vlen))
                if dtype in PACKABLE:
                    packed = pack_gemm_b(np.ascontiguousarray(y[0, 0]), nr, m.kr)
                    outs.append(np.zeros_like(outs[0]))
                    lib.call(f"effc_matmul_packed_{name}", [x, packed], outs[1:], [1, k, n, 0, 0, 0],
                             thread_scratch=thread_scratch(acc, lib.vlen))  # fmt: skip
                for out in outs:
                    if kind in "iu":
                        np.testing.assert_array_equal(out[0, 0], want[:i, :n].astype(dtype.np))
                    else:
                        off = np.abs(out[0, 0].astype(want.dtype) - want[:i, :n])
                        limit = rounding * np.abs(want[:i, :n]) + 2 * step * scale[:i, :n].real
                        assert (off <= limit).all(), (dtype, i, k, n)


@pytest.mark.parametrize("name", ["cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:x86-64-v4+avx512bf16", "cpu:x86-64-v4+amx"])
def test_lowering_packs_for_the_target(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The header of a packed weight has the sizes of the micro-kernel that the target takes."""
    import torch

    packed: list[Array] = []
    const = Lowering.const

    def seen(self: Lowering, array: Array, *more: Any, **kw: Any) -> Any:
        packed.append(array)
        return const(self, array, *more, **kw)

    monkeypatch.setattr(Lowering, "const", seen)
    monkeypatch.setenv("EFFC_MODEL_CACHE", "0")
    t = parse(name)
    for dtype, torch_dtype in ((DType.bf16, torch.bfloat16), (DType.f16, torch.float16)):
        packed.clear()
        layer = torch.nn.Linear(37, 29, bias=False).to(torch_dtype)
        m = effc.compile(layer, (torch.zeros(3, 37, dtype=torch_dtype),), target=name)
        assert m.report["entries"]["main"]["kernels"] == {f"effc_matmul_packed_{dtype}": 1}
        heads = [
            HEADER.unpack(p[:64].tobytes()) for p in packed if p.dtype == np.uint8 and p[:8].tobytes() == b"EFFCPACK"
        ]
        micro = microkernels.choose(t, "matmul", dtype)
        assert [(h[4], h[9]) for h in heads] == [(micro.nr(dtype, t.vlen), micro.kr)]


# What this machine has ------------------------------------------------------------------------------------------------

SAPPHIRE_RAPIDS = (
    "fpu pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c abm bmi1 avx2 bmi2 avx512f avx512dq avx512cd avx512bw "
    "avx512vl avx_vnni avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8"
)


def with_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, granted: set[str]) -> CpuTarget:
    path = tmp_path / "cpuinfo"
    path.write_text(
        f"processor\t: 0\nmodel name\t: a\nflags\t\t: {flags}\nbugs\t\t:\n\nprocessor\t: 1\nflags\t\t: {flags}\n"
    )
    monkeypatch.setattr(target, "CPUINFO", path)
    monkeypatch.setattr(target, "cpu_features", lambda: frozenset(granted))
    target.host_features.cache_clear()
    return target.host()


@pytest.fixture(autouse=True)
def _forget_features() -> Any:
    yield
    target.host_features.cache_clear()


def test_cpu_is_all_that_the_machine_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    every = set(target.EXTRA)
    t = with_cpuinfo(monkeypatch, tmp_path, SAPPHIRE_RAPIDS, every)
    assert t.level == "x86-64-v4" and set(t.extra) == every and parse("cpu") == t and parse(t.name) == t
    assert microkernels.choose(t, "matmul", DType.bf16).name == "amx-bf16"
    assert microkernels.choose(t, "qmatmul", DType.u8).name == "amx-int8"
    # Tiles that the OS does not grant, vectors that it does not save
    t = with_cpuinfo(monkeypatch, tmp_path, SAPPHIRE_RAPIDS, {"avx512vnni", "avx512bf16", "avxvnni"})
    assert t.extra == ("avx512vnni", "avx512bf16", "avxvnni")
    assert microkernels.choose(t, "matmul", DType.bf16).name == "avx512-bf16"
    # A machine with AVX-VNNI and no AVX-512
    flags = " ".join(f for f in SAPPHIRE_RAPIDS.split() if "avx512" not in f and "amx" not in f)
    t = with_cpuinfo(monkeypatch, tmp_path, flags, every)
    assert t.name == "cpu:x86-64-v3+avxvnni" and microkernels.choose(t, "qmatmul", DType.i8).name == "avx-vnni"
    t = with_cpuinfo(monkeypatch, tmp_path, flags.replace("avx_vnni", ""), every)
    assert t.name == "cpu:x86-64-v3" and microkernels.choose(t, "qmatmul", DType.i8).saturates
    with pytest.raises(effc.EffcError, match="lacks avx2"):
        with_cpuinfo(monkeypatch, tmp_path, flags.replace("avx2 ", ""), every)


def test_targets_tells_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["targets", "cpu:x86-64-v4+amx", "--json"])
    lines = json.loads(capsys.readouterr().out)
    assert lines[0] == "micro-kernels of cpu:x86-64-v4+amx_tile+amx_int8+amx_bf16, best first"
    of = [line.split() for line in lines if line.startswith("matmul bf16")]
    assert [(w[2], w[8]) for w in of] == [("amx-bf16", "taken"), ("avx512-bf16", "target"), ("fma", "slower")]
    assert "target lacks avx512bf16" in next(line for line in lines if "avx512-bf16" in line)
    cli.main(["targets", "onnx"])
    assert "nothing to tell" in capsys.readouterr().out
