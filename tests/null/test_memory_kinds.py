"""Graphs of known kinds, drawn at random: orders proven, arenas of the live bound for the given and the found order."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.graphs.drawn import KINDS, shuffled
from effc.passes.memory import library, order, problem, schedule
from effc.passes.memory.plan import Interval, plan
from effc.passes.memory.verify import verify

needs_search = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
NETWORKS = [k for k in KINDS if k not in ("layered", "series_parallel", "windowed", "apart")]


def reaches_its_bounds(p: problem.Problem, given: bool = True) -> None:
    o = order.order(p)
    assert o.proven and o.peak <= o.given_peak
    assert sorted(o.order) == sorted(o.loose) == sorted(p.given)
    assert max(order.steps(p, o.loose)) == max(order.steps(p, o.order)) == o.peak
    found = schedule.lay_out_found(p, o)
    assert found.arena == found.live == o.peak
    assert verify(p, found.plan).peak == o.peak
    if given:
        first = schedule.lay_out(p, p.given)
        assert first.arena == first.live == o.given_peak


@needs_search
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("seed", [9000, 9001, 9100])
def test_networks_reach_their_bounds(kind: str, seed: int) -> None:
    p = KINDS[kind](seed, 160)
    assert len(p.nodes) >= 100
    assert problem.from_dict(json.loads(json.dumps(problem.to_dict(p)))).nodes == p.nodes
    reaches_its_bounds(p)


@needs_search
@pytest.mark.parametrize("kind", ["layered", "series_parallel", "windowed"])
@pytest.mark.parametrize("seed", [9100, 9101])
def test_random_graphs_reach_their_bounds(kind: str, seed: int) -> None:
    reaches_its_bounds(KINDS[kind](seed, 120))
    reaches_its_bounds(shuffled(KINDS[kind](seed, 80), seed))


@needs_search
def test_a_looser_order_is_placed_where_the_nearest_is_not() -> None:
    """A training step of a transformer: with its nodes as near the given order as the peak allows, every other step is
    full, and offsets within the peak are hard to find."""
    p = KINDS["train_transformer"](9122, 220)
    o = order.order(p)
    assert schedule.lay_out(p, o.order, budget=20_000_000).arena > o.peak
    assert schedule.lay_out(p, o.loose, budget=20_000_000).arena == o.peak
    assert schedule.lay_out_found(p, o).arena == schedule.schedule(p).layout.arena == o.peak == o.bound


@needs_search
@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("nodes", [200, 600, 2000])
def test_networks_of_all_sizes_reach_their_bounds(kind: str, nodes: int) -> None:
    for seed in range(9200, 9208 if nodes < 1000 else 9201):
        reaches_its_bounds(KINDS[kind](seed, nodes))


GRAPH: dict[str, Any] = {
    "name": "g",
    "format": problem.FORMAT,
    "align": 64,
    "tensors": [
        {"id": 0, "name": "x", "bytes": 64, "raw_bytes": 64, "kind": "input"},
        {"id": 1, "name": "y", "bytes": 128, "raw_bytes": 128, "kind": "intermediate"},
        {"id": 2, "name": "z", "bytes": 64, "raw_bytes": 64, "kind": "output"},
    ],
    "nodes": [
        {"id": 0, "name": "a", "op": "a", "ins": [0], "outs": [1], "inplace_ok": []},
        {"id": 1, "name": "b", "op": "b", "ins": [1], "outs": [2], "inplace_ok": [1]},
    ],
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.pop("tensors"), "graph's tensors must be a list"),
        (lambda g: g["tensors"][1].pop("bytes"), "tensor 1 has no bytes"),
        (
            lambda g: g["tensors"][1].update(bytes="12"),
            "tensor 1: its bytes must be an integer of at least 0, not '12'",
        ),
        (lambda g: g["tensors"][1].update(bytes=-64), "tensor 1: its bytes"),
        (lambda g: g["tensors"][1].update(bytes=1.5), "tensor 1: its bytes"),
        (lambda g: g["tensors"][1].update(raw_bytes=129), "tensor 1: its raw_bytes, 129, are more than its bytes, 128"),
        (lambda g: g["tensors"][1].update(kind="weight"), "tensor 1: its kind is 'weight'"),
        (lambda g: g["tensors"][1].update(pinned=10), "tensor 1: it is pinned at 10"),
        (
            lambda g: g["tensors"][1].update(space="fast") or g.update(spaces={"arena": None}),
            "tensor 1: its space, 'fast'",
        ),
        (lambda g: g["tensors"].append(g["tensors"][1]), "tensor 1 is there twice"),
        (lambda g: g["nodes"].append(g["nodes"][1]), "node 1 is there twice"),
        (lambda g: g["nodes"][1].pop("ins"), "node 1 has no ins"),
        (lambda g: g["nodes"][1].update(id="b"), "a node: its id must be an integer, not 'b'"),
        (lambda g: g["nodes"][1].update(ins=[9]), "node 1: 9 in its ins is no tensor"),
        (lambda g: g["nodes"][1].update(outs=[9]), "node 1: 9 in its outs is no tensor"),
        (lambda g: g["nodes"][1].update(outs=[1]), "node 1: tensor 1 in its outs is made by node 0 already"),
        (lambda g: g["nodes"][1].update(outs=[0]), "node 1: tensor 0 in its outs is an input"),
        (lambda g: g["nodes"][0].update(outs=[]), "node 1: tensor 1 in its ins is made by no node"),
        (lambda g: g["nodes"][1].update(inplace_ok=[2]), "node 1: tensor 2 in its inplace_ok is not in its ins"),
        (lambda g: g["nodes"][1].update(after=[7]), "node 1: 7 in its after is no node"),
        (lambda g: g["nodes"][1].update(workspace=-1), "node 1: its workspace"),
        (lambda g: g["nodes"][0].update(ins=[2]), "wait for each other, in a cycle: 0 -> 1 -> 0"),
        (lambda g: g["nodes"][0].update(after=[1]), "wait for each other, in a cycle"),
        (lambda g: g["nodes"].reverse(), "node 1 stands before node 0, which it needs"),
        (lambda g: g.update(align=0), "the graph: its align must be an integer of at least 1"),
    ],
)
def test_what_is_no_graph_is_refused_by_its_field(
    change: Callable[[dict[str, Any]], object], words: str, tmp_path: Path
) -> None:
    g = copy.deepcopy(GRAPH)
    problem.from_dict(g)
    change(g)
    (tmp_path / "g.json").write_text(json.dumps(g))
    with pytest.raises(ValueError, match=r"g\.json: ") as e:
        problem.from_json(tmp_path / "g.json")
    assert words in str(e.value)


@pytest.mark.parametrize("text", ["{", "[1]", '{"format": "other"}'])
def test_what_is_no_json_of_a_graph_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(ValueError, match=r"g\.json: "):
        problem.from_json(tmp_path / "g.json")


@pytest.mark.parametrize(
    ("rows", "line"), [("0,0,3,x", 2), ("0,0,3,8\n1,3,3,8", 3), ("0,0,3,-8", 2), ("0,0,3", 2), ("0,0,,8", 2)]
)
def test_what_is_no_instance_is_refused_by_its_line(rows: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("id,lower,upper,size\n" + rows + "\n")
    with pytest.raises(ValueError, match=rf"i\.csv, line {line}: "):
        problem.intervals_from_csv(tmp_path / "i.csv")


def test_degenerate_graphs() -> None:
    """Nothing at all, no bytes, operands read twice, nodes that share nothing."""
    empty = problem.from_dict({"format": problem.FORMAT, "tensors": [], "nodes": []})
    assert schedule.schedule(empty, rewrite=True).layout.arena == 0
    g = copy.deepcopy(GRAPH)
    for t in g["tensors"]:
        t.update(bytes=0, raw_bytes=0)
    assert schedule.schedule(problem.from_dict(g), rewrite=True).layout.arena == 0
    g = copy.deepcopy(GRAPH)
    g["nodes"][1].update(ins=[1, 1, 0, 0])
    assert schedule.schedule(problem.from_dict(g)).layout.arena == 192
    g = copy.deepcopy(GRAPH)
    g["nodes"][1].update(ins=[], inplace_ok=[])
    assert schedule.schedule(problem.from_dict(g)).layout.arena == 128


@needs_search
@pytest.mark.parametrize("align", [64, 4096])
def test_many_buffers_of_any_size(align: int) -> None:
    """Two thousand, sizes no multiple of the alignment, some pinned at the bottom."""
    import numpy as np

    rng = np.random.default_rng(7)
    start = rng.integers(0, 3000, 2000)
    stop = start + rng.integers(0, 30, 2000)
    size = rng.integers(0, 100_000, 2000)
    items = [
        Interval(i, int(a), int(b), int(c), align) for i, (a, b, c) in enumerate(zip(start, stop, size, strict=True))
    ]
    at = 0
    for k in range(3):  # live throughout
        items.append(Interval(2000 + k, 0, 3030, 5000, align, at))
        at += -(-5000 // align) * align
    got = plan(items, budget=200_000_000)
    assert got.total == got.lower_bound and got.ended == "proven"
    assert [got.offsets[2000 + k] for k in range(3)] == [0, at // 3, 2 * at // 3]
