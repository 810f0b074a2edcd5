"""The container: writing, reading, verifying, and every kind of damage."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_artifacts import LEAF, add, call, dim_symbol, entry, kernels, manifest, program, save, scale, tensor

from effc.runtime import _rt, artifact
from effc.runtime.artifact import ArtifactReader, ArtifactWriter
from effc.runtime.errors import EffcError
from effc.runtime.loader import load

RNG = np.random.default_rng(4)
ROOT = Path(__file__).parents[2]


def small(path: Path) -> Path:
    """A small artifact with every kind of part; without kernels, so that damage can be tried at every byte."""
    w = ArtifactWriter()
    seg, offset = w.add_weight(np.arange(6, dtype=np.float32))
    w.add_file("graph/main.txt", "graph\n")
    values = [
        tensor(["s0", 3], "input", i=0),
        tensor([2, 3], "const", seg=seg, offset=offset),
        tensor(["s0", 3], "view", base=0, offset=0, strides=[3, 1]),
        tensor([6], "state", name="a"),
    ]
    prog = program(
        values,
        [],
        [0],
        [2, 1, 3],
        symbols=[dim_symbol("s0", 0, 0, 0, 9)],
        checks=[{"lhs": "s0", "op": "!=", "rhs": 5, "message": "not 5"}],
    )
    state = {"a": {"d": "f32", "shape": [6], "seg": seg, "offset": offset}}
    w.save(path, manifest({"main": entry(prog)}, states=state))
    return path


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def right(m: Any) -> bool:
    got = m(X)
    return (
        len(got) == 3
        and all(np.array_equal(g.reshape(-1), X.reshape(-1)) for g in got)
        and got[0].shape == (2, 3)
        and got[2].shape == (6,)
    )


def test_small_is_right(tmp_path: Path) -> None:
    assert right(load(small(tmp_path / "m.effc")))


def test_any_zip_tool_reads_it(tmp_path: Path) -> None:
    path = small(tmp_path / "m.effc")
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None
        assert set(z.namelist()) == {"weights/0.bin", "graph/main.txt", "manifest.json"}
        info = z.getinfo("weights/0.bin")
        header = path.read_bytes()[info.header_offset :]
        name_len, extra_len = struct.unpack_from("<HH", header, 26)
        assert (info.header_offset + 30 + name_len + extra_len) % 4096 == 0
    again = small(tmp_path / "again.effc")
    assert again.read_bytes() == path.read_bytes(), "equal content must give equal files"


def test_reader_and_verify(tmp_path: Path) -> None:
    path = small(tmp_path / "m.effc")
    with ArtifactReader(path) as r:
        assert r.manifest["format"] == 1 and list(r.manifest["entries"]) == ["main"]
        assert r.read("graph/main.txt") == b"graph\n" and r.size("weights/0.bin") == 24
        r.verify()
        assert [p.relative_to(tmp_path / "out").as_posix() for p in r.extract(tmp_path / "out", "graph/")] == [
            "graph/main.txt"
        ]
        with pytest.raises(EffcError, match="no member"):
            r.read("nothing")
    data = bytearray(path.read_bytes())
    at = data.index(b"graph\nPK")
    data[at] ^= 1
    crc = zlib.crc32(b"fraph\n")  # a consistent CRC: only the SHA-256 can tell
    for signature in (b"PK\x03\x04", b"PK\x01\x02"):
        where = data.index(b"graph/main.txt") if signature == b"PK\x03\x04" else data.rindex(b"graph/main.txt")
        struct.pack_into("<I", data, where - (16 if signature == b"PK\x03\x04" else 30), crc)
    (tmp_path / "bad.effc").write_bytes(data)
    with ArtifactReader(tmp_path / "bad.effc") as r, pytest.raises(EffcError, match=r"SHA-256 of 'graph/main\.txt'"):
        r.verify()


# A child process tries many damaged files, so that a crash is seen as one, and quickly.
TRY = r"""
import sys, json
import numpy as np
from effc.runtime.loader import load
from effc.runtime.errors import EffcError
from effc.runtime.artifact import ArtifactReader
sys.path.insert(0, {tests!r})
import test_runtime_artifact as t
path, corpus = sys.argv[1], json.load(open(sys.argv[2]))
good = open({good!r}, "rb").read()
counts = {{"refused": 0, "right": 0}}
for kind, at, value in corpus:
    data = bytearray(good)
    if kind == "cut":
        data = data[:at]
    elif kind == "flip":
        data[at] ^= value
    elif kind == "zero":
        data[at:at + value] = bytes(len(data[at:at + value]))
    elif kind == "ones":
        data[at:at + value] = b"\xff" * len(data[at:at + value])
    elif kind == "append":
        data += bytes(at)
    with open(path, "wb") as f:
        f.write(data)
    print(kind, at, value, file=sys.stderr)
    try:
        with ArtifactReader(path) as r:
            r.verify()
    except EffcError:
        pass
    try:
        m = load(path, num_threads=1)
        assert t.right(m), "a wrong answer"
        counts["right"] += 1
    except EffcError as e:
        assert str(e)
        counts["refused"] += 1
print(json.dumps(counts))
"""


def run_corpus(tmp_path: Path, good: Path, corpus: list[Any], env: dict[str, str] | None = None) -> dict[str, int]:
    (tmp_path / "corpus.json").write_text(json.dumps(corpus))
    code = TRY.format(tests=str(Path(__file__).parent), good=str(good))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "damaged.effc"), str(tmp_path / "corpus.json")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


def damage(size: int) -> list[Any]:
    cuts = [["cut", n, 0] for n in sorted({*range(0, size, 97), *range(size - 60, size)})]
    flips = [["flip", i, 1 << (i % 8)] for i in range(size)]
    spans = [[kind, i, n] for kind in ("zero", "ones") for n in (2, 4, 8) for i in range(0, size, 41)]
    return [*cuts, *flips, *spans, ["append", 1, 0], ["append", 5000, 0]]


def test_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Truncation at many places, a bit flipped in every byte, runs of zeros and ones: EffcError or the right answer."""
    good = small(tmp_path / "good.effc")
    data = good.read_bytes()
    # Padding before the weights is where most flips are harmless; leave most of it out.
    corpus = [c for c in damage(len(data)) if c[0] in ("cut", "append") or not (120 < c[1] < 4000) or c[1] % 50 == 0]
    counts = run_corpus(tmp_path, good, corpus)
    assert counts["refused"] > 1500 and counts["right"] > 20, counts
    assert counts["refused"] + counts["right"] == len(corpus)


def rewrite(path: Path, change: Any) -> Path:
    """The artifact with its manifest changed in a consistent way (checksums of the manifest made right again)."""
    with zipfile.ZipFile(path) as z:
        parts = {n: z.read(n) for n in z.namelist()}
    m = json.loads(parts.pop("manifest.json"))
    change(m)
    stream = artifact._ZipStream(f := io.BytesIO())
    for name, data in parts.items():
        stream.add(name, [data], 4096)
    stream.add("manifest.json", [json.dumps(m).encode()])
    stream.finish()
    out = path.with_name("changed.effc")
    out.write_bytes(f.getvalue())
    return out


def main_program(m: dict[str, Any]) -> dict[str, Any]:
    return dict.__getitem__(m["entries"]["main"], "program")


@pytest.mark.parametrize(
    "words, change",
    [
        ("format version 2", lambda m: m.update(format=2)),
        ("ABI version 7", lambda m: m.update(abi=7)),
        ("lacks 'format'", lambda m: m.pop("format")),
        ("lacks 'weights/9.bin'", lambda m: m["segments"][0].update(path="weights/9.bin")),
        ("another size", lambda m: m["segments"][0].update(nbytes=25)),
        ("number of checksums", lambda m: m["segments"][0].update(chunk=1)),
        ("malformed checksum", lambda m: m["segments"][0].update(xxh3=["zz"])),
        ("checksum of 'weights/0.bin'", lambda m: m["segments"][0].update(xxh3=["0" * 16])),
        ("outside its segment", lambda m: main_program(m)["values"][1].update(offset=1 << 40)),
        ("outside its storage", lambda m: main_program(m)["values"][1].update(offset=4)),
        ("outside its storage", lambda m: main_program(m)["values"][2].update(offset=1)),
        ("outside its storage", lambda m: main_program(m)["values"][2].update(strides=[3, -1])),
        ("overflows|outside", lambda m: main_program(m)["values"][2].update(strides=[1 << 62, 1 << 62])),
        ("overflows|another|outside", lambda m: main_program(m)["values"][2].update(shape=["s0", 1 << 62])),
        ("refer to each other|out of range", lambda m: main_program(m)["values"][2].update(base=2)),
        ("out of range", lambda m: main_program(m)["values"][2].update(base=99)),
        ("out of range", lambda m: main_program(m).update(outputs=[2, 1, -5])),
        ("signature does not match", lambda m: main_program(m).update(outputs=[2, 1])),
        ("unknown symbol 'zz'", lambda m: main_program(m)["values"][0].update(shape=["zz", 3])),
        ("malformed dimension", lambda m: main_program(m)["values"][0].update(shape=[["+", 1], 3])),
        ("dimension operator", lambda m: main_program(m)["values"][0].update(shape=[["^", 1, 2], 3])),
        ("rank", lambda m: main_program(m)["values"][0].update(shape=[1] * 13)),
        ("unknown dtype", lambda m: main_program(m)["values"][0].update(d="f99")),
        ("unknown kind", lambda m: main_program(m)["values"][0].update(k="magic")),
        ("unknown state", lambda m: main_program(m)["values"][3].update(name="b")),
        ("lacks the kernel", lambda m: main_program(m)["code"].append(call("nothing", [0], [2]))),
        ("unknown instruction", lambda m: main_program(m)["code"].append({"op": "jump", "out": []})),
        ("state 'a' lies outside", lambda m: m["states"]["a"].update(shape=[7])),
        ("overflows|outside", lambda m: m["states"]["a"].update(shape=[1 << 62, 4])),
        ("shape of state 'a' is malformed", lambda m: m["states"]["a"].update(shape=[-1])),
        ("no entry point", lambda m: m.update(entries={})),
        ("not an object", lambda m: m.update(entries=[])),
        ("unknown state|lacks|malformed", lambda m: main_program(m).update(commits=[{"state": "q", "value": 0}])),
        ("factor is 0", lambda m: main_program(m)["symbols"][0]["from"].update(mul=0)),
        ("input", lambda m: main_program(m)["symbols"][0]["from"].update(input=9)),
        ("dim", lambda m: main_program(m)["symbols"][0]["from"].update(dim=5)),
        ("tree", lambda m: m["entries"]["main"].update(out_tree=LEAF)),
        ("signature is malformed", lambda m: m["entries"]["main"].update(in_tree={"x": 1})),
    ],
)
def test_malformed_manifests_are_refused(tmp_path: Path, words: str, change: Any) -> None:
    path = rewrite(small(tmp_path / "m.effc"), change)
    with pytest.raises(EffcError, match=words):
        load(path)(X)


def test_inputs_and_constants_are_not_written(tmp_path: Path) -> None:
    def artifact_of(prog: dict[str, Any]) -> Path:
        w = ArtifactWriter()
        assert w.add_weight(np.zeros(4, np.float32)) == (0, 0)
        return save(tmp_path / "m.effc", prog, writer=w)

    values = [
        tensor([4], "input", i=0),
        tensor([4], alias=0),
        tensor([2], "view", base=0, offset=0, strides=[1]),
        tensor([4], "const", seg=0, offset=0),
        tensor([4], "view", base=3, offset=0, strides=[1]),
    ]
    for value, words in (
        (0, "writes an input"),
        (1, "writes an input"),
        (2, "writes an input"),
        (3, "writes a constant"),
        (4, "writes a constant"),
    ):
        path = artifact_of(program(values, [scale(0, value)], [0], [0]))
        with pytest.raises(EffcError, match=words):
            load(path)
    values[1]["alias"] = 3
    with pytest.raises(EffcError, match="aliases a constant"):
        load(artifact_of(program(values, [], [0], [0])))
    values[1]["alias"] = 0
    prog = program(values, [scale(0, 1, 3.0)], [0], [1], commits=[{"input": 0, "value": 1}])
    x = np.ones(4, np.float32)
    assert load(artifact_of(prog))(x)[0] == 3 and x[0] == 3


def test_sizes_beyond_memory_are_refused(tmp_path: Path) -> None:
    values = [
        tensor(["s0"], "input", i=0),
        tensor([["*", "s0", 1 << 45]]),
        tensor(["s0"], "view", base=1, offset=0, strides=[1]),
        tensor(["s0"], "output", i=0),
    ]
    m = load(
        save(
            tmp_path / "m.effc", program(values, [scale(0, 2), scale(2, 3)], [0], [3], symbols=[dim_symbol("s0", 0, 0)])
        )
    )
    with pytest.raises(EffcError, match=r"cannot allocate|out of memory"):
        m(np.ones(1000, np.float32))
    np.testing.assert_array_equal(m(np.ones(0, np.float32)), np.ones(0, np.float32))


def raw_zip(entries: list[tuple[str, bytes]], compress: bool = False) -> bytes:
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as z:
        for name, data in entries:
            z.writestr(name, data)
    return f.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "a//b", "./a", "a\\b", "c:evil", "a/"])
def test_paths_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.effc"
    path.write_bytes(raw_zip([("manifest.json", b"{}"), (name, b"data")]))
    with pytest.raises(EffcError, match="plain relative path"):
        load(path)
    if name != "c:evil":
        with pytest.raises(EffcError):
            ArtifactReader(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_odd_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.effc"
    for data, words in [
        (raw_zip([("manifest.json", b"{}"), ("a", b"1"), ("a", b"2")]), "duplicate entry 'a'"),
        (raw_zip([("manifest.json", b"{}" * 100)], compress=True), "compressed"),
        (b"", "too few"),
        (b"PK" * 50, "no end-of-directory"),
        (raw_zip([("other", b"")]), "lacks 'manifest.json'"),
        (raw_zip([("manifest.json", b"[" * 100000)]), "nested too deeply"),
        (raw_zip([("manifest.json", b'{"a": 1, "a": 2}')]), "duplicate key"),
        (raw_zip([("manifest.json", b'{"a": 01}')]), "not valid JSON"),
        (raw_zip([("manifest.json", b'{"a": "\\ud800"}')]), "surrogate"),
        (raw_zip([("manifest.json", b"{} x")]), "trailing"),
        (raw_zip([("manifest.json", b'{"a": NaN}')]), "not valid JSON"),
        (raw_zip([("manifest.json", b"")]), "unexpected end"),
        (raw_zip([("manifest.json", b"[]")]), "not an object"),
    ]:
        path.write_bytes(data)
        with pytest.raises(EffcError, match=words):
            load(path)
    for where in (tmp_path, tmp_path / "nothing.effc", "/dev/null"):
        with pytest.raises(EffcError, match=r"cannot open|regular file"):
            load(where)
        with pytest.raises(EffcError):
            ArtifactReader(where)


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """A directory record that points into another entry's data."""
    inner = raw_zip([("manifest.json", b"{}")])
    local = inner[: inner.index(b"PK\x01\x02")]
    data = bytearray(raw_zip([("outer", local), ("manifest.json", b"{}")]))
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 42, data.index(local))  # the second record now points into the first entry's data
    path = tmp_path / "m.effc"
    path.write_bytes(data)
    with pytest.raises(EffcError, match="overlap"):
        load(path)


def test_zip64(tmp_path: Path) -> None:
    """An entry beyond 4 GiB (a hole in the file), and 64-bit sizes in the directory."""
    path = tmp_path / "big.effc"
    small(path)
    data = path.read_bytes()
    gap = (1 << 32) + 8192
    # The same entries, moved up by a hole in front of the first one; the directory is written anew.
    with zipfile.ZipFile(path) as z:
        infos = [(i.filename.encode(), i.CRC, i.file_size, i.header_offset + gap) for i in z.infolist()]
    start = data.index(b"PK\x01\x02")
    with open(path, "wb") as f:
        f.seek(gap)
        f.write(data[:start])
        stream = artifact._ZipStream(f)
        stream.at = gap + start
        stream.directory = infos
        stream.finish()
    assert right(load(path))
    with ArtifactReader(path) as r:
        r.verify()


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path / "m.effc")
    before = path.read_bytes()
    w = ArtifactWriter()
    w.add_weight(np.zeros(1 << 16, np.float32))
    real = artifact._ZipStream._write

    def full(self: Any, data: Any) -> None:
        if self.at > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    monkeypatch.setattr(artifact._ZipStream, "_write", full)
    with pytest.raises(EffcError, match=r"cannot write.*No space left"):
        w.save(path, manifest({}))
    monkeypatch.setattr(artifact._ZipStream, "_write", lambda self, data: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        w.save(path, manifest({}))
    monkeypatch.undo()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.effc"]
    with pytest.raises(EffcError, match="cannot write"):
        w.save(tmp_path / "no" / "folder" / "m.effc", manifest({}))
    with pytest.raises(EffcError, match="JSON"):
        w.save(path, manifest({"x": object()}))
    assert path.read_bytes() == before


def test_a_full_disk(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises(OSError), open("/dev/full", "wb") as f:
        ArtifactWriter().write(f, manifest({}))
        f.flush()


def test_writer_refuses_odd_members() -> None:
    w = ArtifactWriter()
    w.add_file("sources/a.cpp", "int x;")
    for name in ("sources/a.cpp", "../a", "/a", "a//b", "weights/1.bin", "code/x", "manifest.json", ""):
        with pytest.raises(EffcError):
            w.add_file(name, b"")


def test_xxh3_matches_the_reference_package() -> None:
    xxhash = pytest.importorskip("xxhash")
    data = RNG.integers(0, 256, 1 << 16, np.uint8).tobytes()
    sizes = [
        *range(300),
        511,
        512,
        513,
        1023,
        1024,
        1025,
        1087,
        1088,
        1089,
        2047,
        2048,
        2049,
        4096,
        5000,
        65535,
        65536,
    ]
    for n in sizes:
        for start in (0, 1, 7):
            piece = data[start : start + n]
            assert _rt.xxh3(piece) == xxhash.xxh3_64_intdigest(piece), n


def test_xxh3_known_values() -> None:
    """Computed with the xxhash package 4.1: the empty input, one zero byte, and a digest over all sizes up to 2560."""
    assert _rt.xxh3(b"") == 0x2D06800538D394C2
    assert _rt.xxh3(b"\0") == 0xC44BDFF4074EECDB
    data = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(80))
    total = 0
    for n in range(len(data) + 1):
        total = (total * 1000003 + _rt.xxh3(data[:n])) % 2**64
    assert total == 0xA30FF8347D2F70A3


def test_chunk_sums_span_buffers() -> None:
    data = RNG.integers(0, 256, 1000, np.uint8).tobytes()
    for cuts in ([], [1], [63, 64, 65], [10, 10, 500], [64, 128, 999, 1000]):
        edges = [0, *cuts, len(data)]
        parts = [data[a:b] for a, b in itertools.pairwise(edges)]
        assert artifact._chunk_sums(parts, 64) == [f"{_rt.xxh3(data[i : i + 64]):016x}" for i in range(0, 1000, 64)]


def test_code_is_checked_before_it_is_mapped(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.effc", program([tensor([2], "input", i=0), tensor([2], "output", i=0)], [add(0, 0, 1)], [0], [1])
    )
    data = bytearray(path.read_bytes())
    at = data.index(kernels()[:64])
    data[at + len(kernels()) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(EffcError, match=r"checksum of 'code/cpu\.so'"):
        load(path)
    w = ArtifactWriter()
    w.add_code(b"not an ELF file at all")
    w.save(path, manifest({"main": entry(program([], [], [], []))}))
    with pytest.raises(EffcError, match="cannot load the artifact's code"):
        load(path)


def test_loading_the_same_file_many_times(tmp_path: Path) -> None:
    """Each load maps its own code; the dynamic linker must not take a reused descriptor for an object it knows."""

    def build(factor: float, name: str) -> Path:
        return save(
            tmp_path / name,
            program([tensor([2], "input", i=0), tensor([2], "output", i=0)], [scale(0, 1, factor)], [0], [1]),
        )

    x = np.ones(2, np.float32)
    one, two = build(2.0, "a.effc"), build(3.0, "b.effc")
    kept = []
    for i in range(20):
        a, b = load(one), load(two)
        assert a(x)[0] == 2 and b(x)[0] == 3
        if i % 3 == 0:
            kept.append(a)
    assert all(m(x)[0] == 2 for m in kept)
    assert ctypes.sizeof(ctypes.c_void_p) == 8
