"""Tuning on the nodes of a Ray cluster: here one node, this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from effc.cost import cluster, records
from effc.runtime.errors import EffcError


def test_records_come_from_every_node(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out, said = tmp_path / "records.jsonl", []
    arguments = {"kernels": ["copy"], "seed": 3, "calm": 9.0, "slice_seconds": 2.0, "report": said.append}
    made = cluster.collect("local", out, seconds=4.0, **arguments)
    found = records.read([out])
    assert len(made) == 1 and sum(made.values()) == len(found) > 0
    host = next(iter(made))
    assert [s.split(":")[0] for s in said] == [host] * 2  # two slices
    assert {r.group.split("-")[1] for r in found} == {str(cluster.node_seed(3, host))}
    assert sum("group" not in j for j in records.lines(out)) == 1  # the machine is described once
    cluster.collect("local", out, seconds=1.0, **arguments)
    groups = [r.group for r in records.read([out]) if r.way == 0]
    assert len(groups) > len({r.group for r in found}) and len(groups) == len(set(groups))  # went on, nothing twice


def test_a_node_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    said: list[str] = []
    monkeypatch.setattr("effc.__version__", "0.0.0")
    made = cluster.collect("local", tmp_path / "r.jsonl", seconds=1.0, kernels=["copy"], seed=0, calm=9.0,
                           report=said.append)  # fmt: skip
    assert made == {} and len(said) == 1 and "0.0.0" in said[0], said


def test_no_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(EffcError, match="no Ray cluster"):
        cluster.collect("auto", tmp_path / "r.jsonl", seconds=1.0, kernels=["copy"], seed=0, calm=9.0)


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(EffcError, match="needs Ray"):
        cluster.collect("local", tmp_path / "r.jsonl", seconds=1.0, kernels=["copy"], seed=0, calm=9.0)
