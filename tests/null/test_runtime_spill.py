"""Copies out of the arena and back: what the runtime checks at load and at each binding, and what it does."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_artifacts import add, call, dim_symbol, program, save, scale, tensor

from effc.passes.memory.program import blocks, from_program
from effc.passes.memory.verify import verify_placement
from effc.runtime.errors import EffcError
from effc.runtime.loader import load


def spill(value: int, slot: int = 0) -> dict[str, Any]:
    return {"op": "spill", "in": [value], "out": [], "slot": slot, "name": "s", "loc": "model.py:7"}


def refill(value: int, slot: int = 0) -> dict[str, Any]:
    return {"op": "refill", "in": [], "out": [value], "slot": slot, "name": "r"}


def seed() -> dict[str, Any]:
    """y = 6 x + 8: 2 x is out while 4 x + 8 takes its place. Two blocks of 64 bytes for each 16 elements."""
    n = "s0"
    values = [
        tensor([n], "input", i=0),
        tensor([n], offset=0),  # 2 x
        tensor([n], offset=8192),  # 4 x
        tensor([n], offset=0),  # 4 x + 8, where 2 x was
        tensor([n], offset=8192),  # 2 x again
        tensor([n], "output", i=0),
    ]
    eight = tensor([n], "input", i=1)
    code = [
        scale(0, 1, 2.0),
        spill(1),
        scale(1, 2, 2.0),
        add(2, 6, 3),
        refill(4),
        add(3, 4, 5),
    ]
    return program(
        [*values, eight], code, [0, 6], [5], symbols=[dim_symbol("s0", 0, 0, 0, 2048)],
        arena={"static_bytes": None, "lower_bound": None, "threads": 1, "limit": 16384, "fixed": True, "sequences": []},
    )  # fmt: skip


def changed(**at: Any) -> dict[str, Any]:
    """The seed with instruction or value fields replaced: ``code1={"slot": 3}``, ``code={...}`` appends."""
    p = copy.deepcopy(seed())
    for key, fields in at.items():
        where = p[key[:4]][int(key[4:])] if key.startswith("code") else p["values"][int(key[5:])]
        where.update(fields)
    return p


def test_a_value_goes_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFC_POISON", "1")
    m = load(save(tmp_path / "m.effc", seed()), num_threads=4)
    assert m.num_threads == 1, "a limited arena has room for the scratch of so many threads"
    spilled = files = 0
    for n in (5, 2048, 0, 1000, 5):
        x, eight = np.arange(n, dtype=np.float32), np.full(n, 8, np.float32)
        np.testing.assert_array_equal(m(x, eight), 6 * x + 8)
        assert m.arena(x, eight)[0] <= 16384
        spilled += 4 * n
        s = m.spilling
        assert s["spill_bytes"] == s["refill_bytes"] == spilled and s["spills"] == s["refills"]
        assert s["files"] >= files
        files = s["files"]
    assert m.spilling["file_bytes"] == 8192 and files <= 3
    for _ in range(3):
        m(x, eight)
    assert m.spilling["files"] == files, "a warm run opens none"


def long_way(n: int, calls: int, last: str) -> dict[str, Any]:
    """y = 2 x + x, where 2 x is out for ``calls`` calls and ``last`` before them, which copies x."""
    block = 4 * n
    values = [tensor([n], "input", i=0), tensor([n], offset=0)]  # x, 2 x
    code = [scale(0, 1, 2.0), spill(1)]
    for k in range(calls + 1):
        values.append(tensor([n], offset=block * (k % 2)))
        before = len(values) - 2 if k else 0
        code.append(
            scale(before, len(values) - 1) if k else call(last, [before], [len(values) - 1], attrs=[0], fattrs=[1])
        )
    chain = len(values) - 1
    values += [tensor([n], offset=block * ((calls + 1) % 2)), tensor([n], "output", i=0)]
    code += [refill(len(values) - 2), add(chain, len(values) - 2, len(values) - 1)]
    arena = {"static_bytes": 2 * block, "lower_bound": 2 * block, "threads": 1, "limit": 2 * block, "fixed": True}
    return program(values, code, [0], [len(values) - 1], arena=arena | {"sequences": []})


def test_reading_begins_ahead_where_the_page_cache_lost_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for once it is out of the page cache, not while it is there, and not where there is nothing to do until
    then; the same numbers always."""
    (tmp_path / "far").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "far"))
    n = (5 << 20) // 4 + 16  # 6 pieces, the last of 64 bytes
    with tempfile.TemporaryFile(dir=tmp_path / "far") as f:
        f.write(bytes(1))
        f.flush()
        try:
            os.preadv(f.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as e:
            pytest.skip(f"a file system that does not say what it holds in memory: {e}")
    x = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    for calls, last, share in ((12, "t_evict", 1), (12, "t_scale", 0), (2, "t_evict", 0)):
        m = load(save(tmp_path / f"{calls}{last}.effc", long_way(n, calls, last)), num_threads=1)
        if m.spilling["in_memory"]:
            pytest.skip("temporary files lie in memory")
        for run in range(1, 4):
            np.testing.assert_array_equal(m(x), 2 * x + x)
            s = m.spilling
            assert s["refill_bytes"] == run * 4 * n and s["ahead_bytes"] == share * run * 4 * n, (calls, last, s)


def test_a_reader_of_programs_sees_it() -> None:
    """The planner's own view of such a program: order between the copies is kept, and nobody overlaps."""
    p = seed()
    p["commits"] = []
    q = from_program(p, sizes={"s0": 2048})
    assert [n.op for n in q.nodes] == ["t_scale", "spill", "t_scale", "t_add", "refill", "t_add"]
    assert q.node()[4].after == (1,) and not q.node()[1].repeatable and not q.node()[4].repeatable
    offsets = {i: v["offset"] for i, v in enumerate(p["values"]) if "offset" in v}
    assert verify_placement(blocks(p, {"s0": 2048}), offsets) == 16384


MALFORMED = {
    "no slot": (changed(code1={"slot": None}), "slot of the far memory"),
    "a slot below 0": (changed(code1={"slot": -1}), "slot of the far memory out of range"),
    "a slot beyond all": (changed(code1={"slot": 1 << 40}), "slot of the far memory out of range"),
    "a slot that nobody wrote": (changed(code4={"slot": 1}), "a refill of what was not spilled"),
    "two operands": (changed(code1={"in": [1, 2]}), "a copy to or from the far memory"),
    "no operand": (changed(code1={"in": []}), "a copy to or from the far memory"),
    "a result of a spill": (changed(code1={"out": [2]}), "a copy to or from the far memory"),
    "an operand of a refill": (changed(code4={"in": [2]}), "a copy to or from the far memory"),
    "no value": (changed(code1={"in": [99]}), "in out of range"),
    "an absent value": (changed(code1={"in": [-1]}), "in out of range"),
    "an input": (changed(code1={"in": [0]}), "what is not in the arena"),
    "into the result": (changed(code4={"out": [5]}), "what is not in the arena"),
    "a view": (
        changed(value2={"k": "view", "base": 1, "offset": 0, "strides": [1], "shape": ["s0"]}, code1={"in": [2]}),
        "what is not in the arena",
    ),
    "an alias of the caller's": (changed(value1={"alias": 5}), "what is not in the arena"),
    "other bytes than were spilled": (changed(value4={"shape": [["+", "s0", 1]]}), "another number of bytes"),
    "another type": (changed(value4={"d": "f64"}), "another number of bytes"),
    "a limit of nothing": ({**seed(), "arena": {"limit": 0}}, "the limit of its arena"),
    "a limit that is no number": ({**seed(), "arena": {"limit": "1"}}, "the limit of its arena"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_copies_are_refused(what: str, tmp_path: Path) -> None:
    made, why = MALFORMED[what]
    with pytest.raises(EffcError, match=why):
        m = load(save(tmp_path / "m.effc", made))
        m(np.ones(4, np.float32), np.ones(4, np.float32))


def test_within_control_flow_is_refused(tmp_path: Path) -> None:
    inner = program([tensor([3], "input", i=0), tensor([3])], [scale(0, 1), spill(1)], [0], [1])
    values = [tensor([], "input", d="bool", i=0), tensor([3], "input", i=1), tensor([3], "output", i=0)]
    code = [{"op": "if", "cond": 0, "in": [1], "out": [2], "then": inner, "else": inner}]
    with pytest.raises(EffcError, match="a nested program that spills"):
        load(save(tmp_path / "m.effc", program(values, code, [0, 1], [2])))


def test_sizes_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    """Offsets that do not hold for a size are left; what then needs more than the limit is an error of that call."""
    p = changed(value2={"offset": 4096}, value4={"offset": 4096})
    m = load(save(tmp_path / "m.effc", {**p, "arena": {**p["arena"], "limit": 9000}}))
    x = np.ones(1024, np.float32)
    np.testing.assert_array_equal(m(x, x), 7 * x)
    y = np.ones(1100, np.float32)  # 4,416 bytes each: the offsets collide, and side by side they fit
    np.testing.assert_array_equal(m(y, y), 7 * y)
    z = np.ones(1200, np.float32)
    with pytest.raises(EffcError, match=r"need 9600 bytes .* arena_budget leaves 9000"):
        m(z, z)
    np.testing.assert_array_equal(m(x, x), 7 * x)


def test_the_seed_is_plain_json() -> None:
    assert json.loads(json.dumps(seed())) == seed()
