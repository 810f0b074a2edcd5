"""What loading and running do to the process: threads, memory, processes, time, the ISA check, fork, sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_artifacts import DATA, add, call, dim_symbol, program, sanitizer_env, save, scale, tensor
from test_runtime_artifact import damage, run_corpus, small

from effc.runtime import _rt, build_rt
from effc.runtime.artifact import ArtifactWriter
from effc.runtime.errors import EffcError
from effc.runtime.loader import LoadedModel, load

RNG = np.random.default_rng(5)
ROOT = Path(__file__).parents[2]


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **env}
    )


def chain(path: Path) -> LoadedModel:
    """y = 3 * (x + x) + sum over rows, sizes (s0, 64)."""
    values = [
        tensor(["s0", 64], "input", i=0),
        tensor(["s0", 64]),
        tensor(["s0", 64], "output", i=0),
        tensor(["s0"], "output", i=1),
    ]
    code = [add(0, 0, 1), scale(1, 2, 3.0), call("t_sum_last", [1], [3], scratch=64, thread_scratch=64)]
    return load(save(path, program(values, code, [0], [2, 3], symbols=[dim_symbol("s0", 0, 0)])), num_threads=2)


def rss() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def test_a_loaded_model_keeps_no_parsed_manifest(tmp_path: Path) -> None:
    """What a large manifest is parsed into goes back to the system: a model held to a budget has no room for it."""
    report = {"decisions": [{"node": i, "why": "bytes", "costs": [i, i / 3, -1, True]} for i in range(60_000)]}
    values = [tensor([4], "input", i=0), tensor([4], "output", i=0)]
    path = save(tmp_path / "m.effc", program(values, [scale(0, 1, 2.0)], [0], [1]), report=report)
    code = (
        "import sys; from effc.runtime import _rt, loader; _rt.lib()\n"
        "def anonymous():\n"
        "    for line in open('/proc/self/smaps_rollup'):\n"
        "        if line.startswith('Anonymous:'): return int(line.split()[1]) * 1024\n"
        "before = anonymous(); m = loader.load(sys.argv[1]); grown = anonymous() - before\n"
        "print(grown, len(m.report['decisions']), m.report['decisions'][-1]['costs'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    grown, rest = done.stdout.split(maxsplit=1)
    assert rest.strip() == f"60000 {[59999, 59999 / 3, -1, True]}"
    with zipfile.ZipFile(path) as z:
        text = z.getinfo("manifest.json").file_size
    assert text > 3 << 20 and int(grown) < 5 * text, (int(grown), text)  # the text itself, and what heaps keep free


def test_eight_threads_two_hundred_runs(tmp_path: Path) -> None:
    """Same results from every thread, and no growth of memory once each thread has run each size."""
    m = chain(tmp_path / "m.effc")
    inputs = [RNG.standard_normal((n, 64)).astype(np.float32) for n in (1, 7, 300)]
    wanted = [m(x) for x in inputs]
    wrong: list[Any] = []

    def work(runs: int) -> None:
        for i in range(runs):
            k = i % 3
            y, s = m(inputs[k])
            if not (np.array_equal(y, wanted[k][0]) and np.array_equal(s, wanted[k][1])):
                wrong.append(k)

    def burst(runs: int) -> None:
        threads = [threading.Thread(target=work, args=(runs,)) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    burst(100)  # as many contexts as calls are ever under way at once
    before = rss()
    burst(200)
    grown = rss() - before
    assert not wrong
    assert grown < 2 << 20, f"{grown} bytes"
    for x, w in zip(inputs, wanted):
        np.testing.assert_array_equal(w[0], x * 2 * 3)


def test_sizes_that_always_change_do_not_add_up(tmp_path: Path) -> None:
    """The cache of plans is bounded, and so is the memory of data-dependent values."""
    m = chain(tmp_path / "m.effc")
    u = {"name": "u0", "lo": 0, "hi": None, "from": None}
    values = [
        tensor(["s0"], "input", i=0),
        tensor(["u0"], d="i64", dyn=True),
        tensor(["u0"]),
        tensor(["u0"], "output", i=0),
    ]
    code = [call("t_nonzero", [0], [1], attrs=[1], bind=["u0"]), call("t_take", [0, 1], [2]), scale(2, 3, 2.0)]
    d = load(save(tmp_path / "d.effc", program(values, code, [0], [3], symbols=[dim_symbol("s0", 0, 0), u])))

    def work(start: int) -> None:
        for n in range(start, start + 400):
            assert m(np.ones((n % 500 + 1, 64), np.float32))[0].shape == (n % 500 + 1, 64)
            assert len(d(np.ones(n * 37 % 5000, np.float32))) == n * 37 % 5000

    work(0)
    work(400)
    before = rss()
    work(800)
    work(1200)
    assert rss() - before < 2 << 20


def test_pool(tmp_path: Path) -> None:
    """Coverage, chunk borders, worker numbers, nesting, concurrent callers, fork while busy."""
    exe = tmp_path / "pool"
    lib = build_rt.library().parent
    subprocess.run(
        [
            *build_rt.compiler(),
            "-std=c++17",
            "-O1",
            str(DATA / "pool_test.cpp"),
            f"-I{build_rt.include_dir()}",
            "-o",
            str(exe),
            f"-L{lib}",
            "-leffc_rt",
            f"-Wl,-rpath,{lib}",
            "-pthread",
        ],
        check=True,
    )
    done = subprocess.run([exe], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and done.stdout == "fine\n", done.stdout


def test_threads_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain(tmp_path / "m.effc")
    path = repr(str(tmp_path / "m.effc"))
    code = f"from effc.runtime.loader import load; print(load({path}).num_threads, load({path}, 3).num_threads)"
    monkeypatch.delenv("EFFC_NUM_THREADS", raising=False)
    assert python(code, EFFC_NUM_THREADS="5").stdout == "5 3\n"
    everything = int(python(code).stdout.split()[0])
    assert 1 <= everything <= len(os.sched_getaffinity(0))  # less where the control group grants less
    for odd in ("", "0", "-1", "many"):
        assert python(code, EFFC_NUM_THREADS=odd).stdout == f"{everything} 3\n"
    one = f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); {code}"
    assert python(one, EFFC_NUM_THREADS="").stdout == "1 3\n"
    for bad in (0, -1, 1.5, "2"):
        with pytest.raises(EffcError, match="num_threads"):
            load(tmp_path / "m.effc", bad)  # type: ignore[arg-type]


def test_isa_is_refused_in_words(tmp_path: Path) -> None:
    prog = program([tensor([2], "input", i=0)], [], [0], [0])
    path = save(tmp_path / "m.effc", prog, target="cpu:x86-64-v4", isa=["sse4.2", "avx512f", "amx-tile"])
    code = f"""
from effc.runtime.loader import load
from effc.runtime import _rt
from effc import EffcError
try:
    load({str(path)!r})
except EffcError as e:
    print(e)
print(sorted(_rt.cpu_features() & {{"avx512f", "amx_tile", "sse4_2"}}))
"""
    done = python(code, EFFC_CPU_DISABLE="avx512f,AMX-tile")
    assert "compiled for 'cpu:x86-64-v4'" in done.stdout and "lacks avx512f, amx-tile" in done.stdout, done
    assert "target=" in done.stdout and done.stdout.endswith("['sse4_2']\n")
    save(path, prog, isa=["flux_capacitor"])
    with pytest.raises(EffcError, match="lacks flux_capacitor"):
        load(path)


def test_isa_is_checked_before_code_is_mapped(tmp_path: Path) -> None:
    """The code object's constructor would end the process."""
    source = tmp_path / "bomb.cpp"
    source.write_text(
        "#include <unistd.h>\nnamespace { struct Bomb { Bomb() { _exit(77); } } bomb; }\n"
        'extern "C" int nothing() { return 0; }\n'
    )
    subprocess.run([*build_rt.compiler(), "-shared", "-fPIC", str(source), "-o", str(tmp_path / "bomb.so")], check=True)
    w = ArtifactWriter()
    w.add_code((tmp_path / "bomb.so").read_bytes())
    code = f"from effc.runtime.loader import load\nload({str(tmp_path / 'm.effc')!r})"
    entry = {"main": {"inputs": [], "outputs": [], "program": program([], [], [], [])}}
    w.save(tmp_path / "m.effc", {"target": "cpu", "isa": ["nothing_has_this"], "entries": entry})
    done = python(code)
    assert done.returncode == 1 and "lacks nothing_has_this" in done.stderr
    w.save(tmp_path / "m.effc", {"target": "cpu", "isa": [], "entries": entry})
    assert python(code).returncode == 77, "the test's own assumption: mapping runs the constructor"


def test_cpu_features_agree_with_the_kernel() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].replace(":", "").split())
    mine = _rt.cpu_features()
    rename = {
        "lzcnt": "abm",
        "bmi": "bmi1",
        "sse3": "pni",
        "pclmul": "pclmulqdq",
        "avx512vnni": "avx512_vnni",
        "avx512bf16": "avx512_bf16",
        "avx512vbmi2": "avx512_vbmi2",
        "avx512bitalg": "avx512_bitalg",
        "avx512vpopcntdq": "avx512_vpopcntdq",
        "avx512fp16": "avx512_fp16",
        "avxvnni": "avx_vnni",
        "avxifma": "avx_ifma",
        "x87": "fpu",
        "avx512vp2intersect": "avx512_vp2intersect",
        "avxvnniint8": "avx_vnni_int8",
        "avxneconvert": "avx_ne_convert",
    }
    shown_late = {
        "amx_fp16",
        "amx_complex",
        "avx_ifma",
        "avx_vnni_int8",
        "avx_ne_convert",
    }  # older kernels do not list these
    for name in mine:
        flag = rename.get(name, name)
        assert flag in flags or flag in shown_late, name
    for name in (
        "sse3",
        "ssse3",
        "sse4_1",
        "sse4_2",
        "popcnt",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi",
        "bmi2",
        "lzcnt",
        "movbe",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512dq",
        "avx512cd",
        "avx512vnni",
        "avx512bf16",
        "avx512fp16",
    ):
        assert (rename.get(name, name) in flags) == (name in mine), name


NO_PROCESS = r"""
import os, sys
import numpy as np
from effc.runtime.loader import load
from effc.runtime import _rt
_rt.lib()
tmp = os.environ["TMPDIR"]
events = []
def hook(event, args):
    if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "pty.spawn"):
        events.append(event)
sys.addaudithook(hook)
import resource
before = set(os.listdir(tmp)), set(os.listdir("/dev/shm"))
maximum = resource.getrusage(resource.RUSAGE_CHILDREN)
pids = {p for p in os.listdir("/proc") if p.isdigit()}
m = load(sys.argv[1])
x = np.ones((3, 64), np.float32)
y, s = m(x)
assert y[0, 0] == 6 and s[0] == 128
children = []
for p in os.listdir("/proc"):
    if p.isdigit() and p not in pids:
        try:
            if int(open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()[1]) == os.getpid():
                children.append(p)
        except OSError:
            pass
assert not events and not children, (events, children)
now = resource.getrusage(resource.RUSAGE_CHILDREN)
assert (now.ru_utime, now.ru_minflt) == (maximum.ru_utime, maximum.ru_minflt), "a child was waited for"
maps = open("/proc/self/maps").read()
assert "memfd:effc" in maps
assert {*os.listdir(tmp)} == before[0] and {*os.listdir("/dev/shm")} == before[1], "a file was left"
print("fine")
"""


def test_no_process_is_started(tmp_path: Path) -> None:
    """Audit hook, children in /proc, children's resource use. And no file is written: code is mapped from memory."""
    chain(tmp_path / "m.effc")
    done = subprocess.run(
        [sys.executable, "-c", NO_PROCESS, str(tmp_path / "m.effc")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": "",
            "TMPDIR": str(tmp_path),
            "EFFC_NUM_THREADS": "2",
            "EFFC_RT_LIB": str(build_rt.library()),
        },
    )
    assert done.stdout == "fine\n", done.stderr


def test_load_time_of_90_megabytes(tmp_path: Path) -> None:
    """Below 50 ms; the weights are verified at the first run. The best of several, for the machine may be busy."""
    w = ArtifactWriter()
    for _ in range(9):
        w.add_weight(RNG.integers(0, 256, 10 << 20, np.uint8))
    values = [tensor([4], "const", seg=0, offset=0), tensor([4], "output", i=0)]
    path = save(tmp_path / "m.effc", program(values, [scale(0, 1)], [], [1]), writer=w)
    times = []
    for _ in range(15):
        start = time.perf_counter()
        m = load(path)
        times.append(time.perf_counter() - start)
        del m
    print(f"load of 90 MB: best {min(times) * 1e3:.1f} ms, median {sorted(times)[7] * 1e3:.1f} ms")
    assert min(times) < 0.05, times
    data = bytearray(path.read_bytes())
    data[60 << 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(EffcError, match=r"checksum of 'weights/0\.bin'"):
        load(path)()


def test_large_weights_are_verified_at_the_first_run(tmp_path: Path) -> None:
    """Beyond 32 MiB loading does not read the weights; the first run does, and every later one still refuses."""
    w = ArtifactWriter()
    block = RNG.integers(0, 256, 1 << 20, np.uint8)
    w.add_weight(np.concatenate([block] * 40))
    values = [tensor([4], "const", seg=0, offset=0), tensor([4], "output", i=0)]
    path = save(tmp_path / "m.effc", program(values, [scale(0, 1)], [], [1]), writer=w)
    np.testing.assert_array_equal(load(path)(), block[:16].view(np.float32))
    with open(path, "r+b") as f:
        f.seek(30 << 20)
        f.write(b"damage")
    m = load(path)
    for _ in range(2):
        with pytest.raises(EffcError, match=r"checksum of 'weights/0\.bin'"):
            m()


def test_fork_after_running(tmp_path: Path) -> None:
    """A model that has run in the parent runs in the child, with threads."""
    chain(tmp_path / "m.effc")
    code = f"""
import os, numpy as np
from effc.runtime.loader import load
m = load({str(tmp_path / "m.effc")!r}, num_threads=2)
x = np.ones((50, 64), np.float32)
m(x)
pid = os.fork()
ok = bool((m(x)[0] == 6).all())
if pid == 0:
    os._exit(0 if ok else 1)
assert ok and os.waitpid(pid, 0)[1] == 0
print("fine")
"""
    assert python(code).stdout == "fine\n"


def test_results_do_not_depend_on_threads(tmp_path: Path) -> None:
    chain(tmp_path / "m.effc")
    x = RNG.standard_normal((101, 64)).astype(np.float32)
    wanted = load(tmp_path / "m.effc", 1)(x)
    for threads in (2, 3, 8):
        got = load(tmp_path / "m.effc", threads)(x)
        assert all(np.array_equal(a, b) for a, b in zip(got, wanted))


def simulate(blocks: list[tuple[int, int, int]], path: Path) -> tuple[int, int]:
    """Runs values with these sizes and lifetimes; their contents tell whether storage was shared wrongly."""
    steps = max(last for _, _, last in blocks) + 1
    values = [tensor([1], "input", i=0)]
    made: list[list[int]] = [[] for _ in range(steps)]
    ids = {}
    for k, (size, first, _) in enumerate(blocks):
        values.append(tensor([size]))
        ids[k] = len(values) - 1
        made[first].append(k)
    outs, code = [], []
    for step in range(steps):
        for k in made[step]:
            value = ids[k]
            size = blocks[k][0]
            values.append(tensor([size], "view", base=0, offset=0, strides=[0]))
            code.append(scale(len(values) - 1, value, 0.0, k + 1))
        for k, (size, first, last) in enumerate(blocks):
            if last == step and first <= step:
                values.append(tensor([size], "output", i=len(outs)))
                outs.append((len(values) - 1, k))
                code.append(scale(ids[k], len(values) - 1, 1.0))
    m = load(save(path, program(values, code, [0], [o for o, _ in outs])), num_threads=1)
    results = m(np.zeros(1, np.float32))
    for (_, k), r in zip(outs, results if isinstance(results, tuple) else (results,)):
        assert (r == k + 1).all(), f"value {k} was overwritten while alive"
    return m.arena(np.zeros(1, np.float32))


def test_arena_plans_are_valid_and_tight(tmp_path: Path) -> None:
    """Random lifetimes: no value is overwritten while alive, the total is at least the live bound and close to it."""
    gaps = []
    for _ in range(12):
        blocks = []
        for _ in range(int(RNG.integers(2, 40))):
            first = int(RNG.integers(0, 12))
            blocks.append((int(RNG.integers(1, 400)), first, first + int(RNG.integers(0, 6))))
        total, bound = simulate(blocks, tmp_path / "m.effc")
        assert bound <= total
        gaps.append(total / bound)
    assert np.mean(gaps) < 1.15, gaps


def test_static_offsets_are_used_and_checked(tmp_path: Path) -> None:
    values = [tensor([16], "input", i=0), tensor([16], offset=64), tensor([16], offset=0), tensor([16], "output", i=0)]
    code = [scale(0, 1, 2.0), scale(1, 2, 2.0), add(1, 2, 3)]
    x = RNG.standard_normal(16).astype(np.float32)
    m = load(save(tmp_path / "m.effc", program(values, code, [0], [3])))
    np.testing.assert_array_equal(m(x), x * 2 + x * 4)
    values[2]["offset"] = 64
    with pytest.raises(EffcError, match="overlap"):
        load(save(tmp_path / "m.effc", program(values, code, [0], [3])))(x)
    values[2]["offset"] = 7
    with pytest.raises(EffcError, match="arena offset"):
        load(save(tmp_path / "m.effc", program(values, code, [0], [3])))


def test_workspaces_have_their_place_and_threads_count(tmp_path: Path) -> None:
    """Static offsets count on so many threads; on others, and with sequences, blocks are placed anew."""
    values = [tensor([16], "input", i=0), tensor([16], offset=0), tensor([16], "output", i=0)]
    code = [scale(0, 1, 2.0), call("t_sum_last", [1], [2], scratch=65, thread_scratch=1, work_at=64)]
    values[1]["shape"] = [16, 1]
    values += [tensor([16, 1], "view", base=0, offset=0, strides=[1, 1])]
    code[0]["in"] = [3]
    arena = {"static_bytes": 64 + 128 + 2 * 64, "lower_bound": 320, "threads": 2}
    path = save(tmp_path / "m.effc", program(values, code, [0], [2], arena=arena))
    x = RNG.standard_normal(16).astype(np.float32)
    for threads, want in ((2, 320), (1, 256), (4, 448)):
        m = load(path, num_threads=threads)
        np.testing.assert_array_equal(m(x), x * 2)
        assert m.arena(x) == (want, want)
    code[1]["work_at"] = 32
    with pytest.raises(EffcError, match="arena offset"):
        load(save(tmp_path / "m.effc", program(values, code, [0], [2], arena=arena)))
    del code[1]["work_at"]
    for bad in ([[9]], [[-3]], [7], [["a"]]):
        with pytest.raises(EffcError, match="malformed"):
            load(save(tmp_path / "m.effc", program(values, code, [0], [2], arena={**arena, "sequences": bad})))
    del values[1]["offset"]
    apart = {"static_bytes": None, "apart": True, "sequences": [[1, -2]]}
    m = load(save(tmp_path / "m.effc", program(values, code, [0], [2], arena=apart)), num_threads=1)
    assert m.arena(x) == (256, 256)


def test_a_sequence_reproduces_a_plan_that_greedy_orders_miss(tmp_path: Path) -> None:
    """Each block in the lowest gap, in the order given: what a search found is found again, at any size."""
    blocks = [(2, 0, 1), (1, 1, 2), (2, 2, 3), (1, 0, 3), (3, 3, 4)]  # (units, first, last)

    def artifact(sequences: list[list[int]]) -> Path:
        values = [tensor([1], "input", i=0), *(tensor([["*", "s0", 16 * n]]) for n, _, _ in blocks)]
        values += [tensor([1], "output", i=0)]
        code = []
        for step in range(5):
            for k, (_, first, last) in enumerate(blocks):
                if first <= step <= last:
                    values.append(tensor([["*", "s0", 16 * blocks[k][0]]], "view", base=0, offset=0, strides=[0]))
                    code.append(scale(len(values) - 1, k + 1, 0.0, k + 1))
        arena = {"static_bytes": None, "sequences": sequences}
        symbols = [dim_symbol("s0", 1, 0)]
        values.append(tensor(["s0"], "input", i=1))
        last = len(values) - 1
        values.append(tensor([1], "view", base=1, offset=0, strides=[1]))
        code.append(scale(len(values) - 1, 6, 1.0))
        return save(tmp_path / "m.effc", program(values, code, [0, last], [6], arena=arena, symbols=symbols))

    best = load(artifact([[1, 2, 3, 4, 5]]))
    for n in (1, 3, 50):
        x, y = np.zeros(1, np.float32), np.zeros(n, np.float32)
        total, bound = best.arena(x, y)
        assert bound <= total <= load(artifact([])).arena(x, y)[0] and total < 1.2 * bound


def test_poison_shows_what_nobody_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [tensor([16], "input", i=0), tensor([16]), tensor([16]), tensor([16], "output", i=0)]
    path = save(tmp_path / "m.effc", program(values, [scale(0, 1, 0.0), add(1, 2, 3)], [0], [3]))
    x = np.ones(16, np.float32)
    monkeypatch.setenv("EFFC_POISON", "1")
    m = load(path)
    for _ in range(2):
        assert np.isnan(m(x)).all()
    monkeypatch.setenv("EFFC_POISON", "0")
    assert not np.isnan(load(path)(x)).all()


def test_damage_under_sanitizers(tmp_path: Path) -> None:
    good = small(tmp_path / "good.effc")
    size = good.stat().st_size
    corpus = [c for c in damage(size) if c[0] in ("cut", "append") or not (120 < c[1] < 4000) or c[1] % 200 == 0]
    counts = run_corpus(tmp_path, good, corpus, sanitizer_env())
    assert counts["refused"] > 1500 and counts["right"] > 20, counts


def test_runs_under_sanitizers() -> None:
    """This folder's running tests, against the sanitizer build."""
    tests = [str(Path(__file__).parent / f"test_runtime_{name}.py") for name in ("run", "state", "control", "entries")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **sanitizer_env()},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
