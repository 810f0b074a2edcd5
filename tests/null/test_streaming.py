"""memory_budget: weights stream through a window, with the bits of the resident artifact."""

from __future__ import annotations

import functools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import effc
from effc.backends.cpu import streaming
from effc.sizes import parse_bytes


class Tied(nn.Module):
    """A table read by rows and as a product's right-hand side, layers, and one layer used twice."""

    def __init__(self, words: int = 1500, width: int = 96, layers: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(words, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for layer in [*self.layers, self.layers[0]]:
            x = torch.relu(layer(x)) + x
        return self.head(x)


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-1500, 1500, shape, generator=torch.Generator().manual_seed(seed)) % 1500


def least_of(build: Callable[[int], Any]) -> tuple[int, effc.EffcError]:
    """The budget that a refusal names, and the refusal."""
    with pytest.raises(effc.EffcError) as refused:
        build(1)
    found = re.search(r"runs in is (\d+)", str(refused.value))
    assert found
    return int(found[1]), refused.value


def same(a: Any, b: Any) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.array_equal(a.numpy().view(np.uint8), b.numpy().view(np.uint8))


def tied(budget: int | str | None = None, **more: Any) -> Any:
    return effc.compile(Tied().eval(), (ids(2, 9),), memory_budget=budget, selftest=False, **more)


@functools.cache
def least_tied() -> int:
    return least_of(tied)[0]


def test_sizes() -> None:
    assert [parse_bytes(x, "b") for x in (7, "7", "3k", "1.5 MiB", "2MB", "1GiB")] == [
        7, 7, 3072, 3 << 19, 2_000_000, 1 << 30,
    ]  # fmt: skip
    for bad in ("", "MiB", "-3", "3 TB", 0, -1, True, 1.5):
        with pytest.raises(effc.EffcError, match="budget is"):
            parse_bytes(bad, "budget")  # type: ignore[arg-type]


def test_every_budget_gives_the_same_bits() -> None:
    """From the least that is allowed, which leaves nothing in memory, to all of it."""
    least, refused = least_of(tied)
    assert "matmul" in str(refused) and refused.loc and "arena" in refused.message
    with pytest.raises(effc.EffcError, match=f"runs in is {least}"):
        tied(least - 1)
    x = ids(2, 9, seed=3)
    want = tied()(x)
    total = sum(p.numel() * 4 for p in Tied().parameters())
    streamed = []
    for budget in (least, least + 70_000, least + 200_000, least + 2 * total):
        m = tied(budget)
        report = m.report["memory"]
        for _ in range(2):
            same(m(x), want)
        assert budget == report["budget"]
        stats = m.streaming
        streamed.append(stats["bytes"])
        if report["streamed"]:
            parts = ("arena", "states", "constants", "row_buffer", "window", "resident")
            assert sum(report[p] for p in parts) <= budget
            assert stats["pieces"] == 2 * report["entries"]["main"]["loads"]
            assert stats["rows"] == 2 * x.numel() and stats["runs"] == 2
            assert 0 < stats["waits"] <= stats["pieces"] and stats["wait_ns"] < stats["run_ns"]
    assert streamed == sorted(streamed, reverse=True) and streamed[-1] == 0 < streamed[-2]


def test_a_large_weight_is_cut_and_its_rows_are_read() -> None:
    least = least_tied()
    report = tied(least).report["memory"]
    (cut,) = report["cut"]
    assert cut == {"bytes": 1500 * 96 * 4, "pieces": cut["pieces"], "rows": 1} and cut["pieces"] > 5
    kernels = tied(least).report["memory"]["entries"]["main"]
    assert kernels["instructions"] > cut["pieces"]
    # Nothing is kept twice: what streams and what stays is the model, once.
    weights = sum(p.numel() * 4 for p in Tied().parameters())
    assert abs(report["weights"] + report["constants"] - weights) < 3000


class Normed(nn.Module):
    """An embedding before a norm, which would be looked up within the norm's loop; it is the last weight, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.words, self.norm = nn.Embedding(1500, 96), nn.LayerNorm(96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.words(x)) @ self.words.weight.T


def test_rows_of_a_table_are_read_one_by_one_before_a_norm() -> None:
    x = ids(2, 9)
    want = effc.compile(Normed().eval(), (x,), num_threads=2)
    got = effc.compile(Normed().eval(), (x,), num_threads=2, memory_budget=400_000)
    same(got(x), want(x))
    assert got.report["memory"]["cut"][0]["rows"] == 1 and got.streaming["rows"] == 18


def test_checksums_are_checked_once_and_nothing_is_allocated() -> None:
    from effc.runtime import _rt

    m = tied(least_tied())
    x = ids(2, 9, seed=4)
    out = m(x)
    m(x)
    checked, allocated = m.streaming["chunks_checked"], _rt.lib().effc_alloc_count()
    for _ in range(3):
        same(m(x), out)
    assert m.streaming["chunks_checked"] == checked > 0
    assert _rt.lib().effc_alloc_count() == allocated


@pytest.mark.parametrize("env", [{"EFFC_STREAM_PREFETCH": "0"}, {"EFFC_STREAM_DIRECT": "0"}])
def test_ways_to_read(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    m = tied(least_tied())
    x = ids(2, 9)
    same(m(x), tied()(x))
    assert m.streaming["pieces"] and not m.streaming["prefetch" if "EFFC_STREAM_PREFETCH" in env else "direct"]


def test_dynamic_sizes() -> None:
    """The budget holds for the largest sizes; smaller ones run in the same memory."""
    dynamic = {"ids": {0: torch.export.Dim("b", max=4), 1: torch.export.Dim("n", max=40)}}

    def build(budget: int | None) -> Any:
        return tied(budget, dynamic_shapes=dynamic)

    least, _ = least_of(build)
    plain, m = build(None), build(least)
    for shape in ((1, 1), (4, 40), (2, 7), (0, 3), (3, 33)):
        x = ids(*shape, seed=sum(shape))
        same(m(x), plain(x))
    assert m.arena(ids(4, 40))[0] <= m.streaming["arena"]
    with pytest.raises(effc.EffcError, match="out of range"):
        m(torch.tensor([[1500]]))
    same(m(torch.tensor([[-1500]])), plain(torch.tensor([[-1500]])))
    with pytest.raises(effc.EffcError, match="no upper bound"):
        tied(least, dynamic_shapes={"ids": {1: torch.export.Dim("n")}})


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b = nn.Linear(64, 256), nn.Linear(256, 64)
        self.register_buffer("seen", torch.zeros(64))
        self.register_buffer("start", torch.arange(64.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x.sum(0))
        self.start.mul_(0.5)
        return self.b(torch.tanh(self.a(x))) + self.seen + self.start


def test_state_of_sessions() -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))

    def build(budget: int | None) -> Any:
        return effc.compile(Counter(), (x,), memory_budget=budget, selftest=False)

    least, _ = least_of(build)
    m, plain = build(least), build(None)
    assert m.report["memory"]["states"] == 3 * 256
    a, b, want = m.session(), m.session(), plain.session()
    for k in range(3):
        y = want(x + k)
        same(a(x + k), y)
        if k == 1:
            same(b(x), plain.session()(x))
    assert np.array_equal(a.state("seen"), want.state("seen"))


def test_entry_points_share_weights_and_window() -> None:
    module = Tied().eval()
    entries = {
        "many": effc.Entry(module, (ids(2, 9),), None, {"ids": {1: torch.export.Dim("n", max=64)}}),
        "one": effc.Entry(module, (ids(1, 1),)),
    }

    def build(budget: int | None) -> Any:
        return effc.compile_entries(entries, memory_budget=budget, selftest=False)

    least, _ = least_of(build)
    m, plain = build(least + 50_000), build(None)
    assert m.report["memory"]["weights"] < 2 * sum(p.numel() * 4 for p in module.parameters())
    for seed in range(3):
        x, y = ids(2, 20 + seed, seed=seed), ids(1, 1, seed=seed)
        same(m.entry("many")(x), plain.entry("many")(x))
        same(m.entry("one")(y), plain.entry("one")(y))


def test_packed_weights_are_cut_by_columns() -> None:
    """A right-hand side that only a product reads is packed; its panels are cut, with an epilogue on every part."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(100, 1030), nn.GELU(), nn.Linear(1030, 7)).eval()
    x = torch.randn(11, 100)

    def build(budget: int | None) -> Any:
        return effc.compile(net, (x,), memory_budget=budget, selftest=False)

    least, _ = least_of(build)
    m = build(least)
    assert any(c["bytes"] > 100 * 1030 * 4 and c["rows"] == 0 for c in m.report["memory"]["cut"])
    same(m(x), build(None)(x))


def test_long_reductions_are_added_in_the_same_order() -> None:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(4500, 1100, bias=False)).eval()
    x = torch.randn(2, 4500)

    def build(budget: int | None) -> Any:
        return effc.compile(net, (x,), memory_budget=budget, selftest=False)

    same(build(least_of(build)[0])(x), build(None)(x))


def test_runs_of_several_threads_take_turns() -> None:
    m, plain = tied(least_tied()), tied()
    xs = [ids(2, 9, seed=k) for k in range(4)]
    want = [plain(x) for x in xs]
    bad: list[int] = []

    def work(k: int) -> None:
        for _ in range(5):
            if not torch.equal(m(xs[k]), want[k]):
                bad.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not bad and m.streaming["runs"] == 20
    assert m.streaming["pieces"] == 20 * m.report["memory"]["entries"]["main"]["loads"]


def test_a_child_of_fork_reads_for_itself() -> None:
    """The threads that read stay with the parent, whatever they were doing."""
    m = tied(least_tied())
    x = ids(2, 9)
    want = m(x)
    child = os.fork()
    if child == 0:
        ok = torch.equal(m(x), want) and torch.equal(m(x), want) and not m.streaming["prefetch"]
        os._exit(0 if ok else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert ended[1] == 0
    same(m(x), want)


def test_the_command_line_shows_a_streamed_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from effc import cli

    path, manifest = saved(tmp_path)
    assert cli.main(["inspect", str(path), "--plan"]) in (0, None)
    shown = capsys.readouterr().out
    assert "rows" in shown and "matmul [1/" in shown
    assert cli.main(["verify", str(path)]) in (0, None)
    assert manifest["segments"][1]["stream"]


def saved(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    m = tied(least_tied())
    m.save(tmp_path / "m.effc")
    return tmp_path / "m.effc", m.manifest


def test_damage_is_found_when_it_is_read(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    x = ids(2, 9)
    want = effc.load(path)(x)
    data = bytearray(path.read_bytes())
    needle = Tied().layers[2].weight.detach().T.contiguous().numpy().tobytes()[:64]  # packed: its first panel's start
    at = data.find(needle)
    assert at > 0
    data[at + 5] ^= 1
    path.write_bytes(data)
    m = effc.load(path)
    for _ in range(2):  # every run says so
        with pytest.raises(effc.EffcError, match=r"checksum of 'weights/\d+.bin'"):
            m(x)
    data[at + 5] ^= 1
    path.write_bytes(data)
    same(effc.load(path)(x), want)


def test_a_file_that_is_cut_short_or_removed_while_in_use(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    x = ids(2, 9)
    m = effc.load(path)
    want = m(x)
    whole = path.read_bytes()
    with path.open("r+b") as f:
        f.truncate(len(whole) // 10 // 4096 * 4096)
    for _ in range(2):
        with pytest.raises(effc.EffcError, match="file ends too early"):
            m(x)
    path.write_bytes(whole)
    same(m(x), want)  # and goes on where the file is whole again
    path.unlink()
    same(m(x), want)  # the model holds the file open


def test_a_truncated_artifact_is_not_loaded(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(effc.EffcError, match="damaged"):
        effc.load(path)


def test_what_has_no_bound_is_refused() -> None:
    def loop(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    class Cond(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return loop(x)

    class Select(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0]

    for module, why in ((Cond(), "control flow"), (Select(), "known only when it has run")):
        with pytest.raises(effc.EffcError, match=why):
            effc.compile(module, (torch.randn(8),), memory_budget="1MiB", selftest=False)
    with pytest.raises(effc.EffcError, match="plans no memory"):
        effc.compile(nn.Linear(3, 3), (torch.randn(2, 3),), target="reference", memory_budget=10)


def test_arena_budget_where_one_instruction_needs_it_all() -> None:
    net, x = nn.Sequential(nn.Linear(300, 500), nn.Softmax(-1), nn.Linear(500, 10)).eval(), torch.randn(64, 300)
    one = {"num_threads": 1, "selftest": False, "disable_passes": ["fuse_rows"]}  # else it may take a chain apart
    need = effc.compile(net, (x,), **one).arena(x)[0]
    effc.compile(net, (x,), arena_budget=need, **one)
    with pytest.raises(effc.EffcError, match=f"the least arena .* run in is {need} bytes \\(proven\\)"):
        effc.compile(net, (x,), arena_budget=need - 1, **one)


def test_loads_reuse_places_only_when_they_are_free() -> None:
    """Random schedules: whatever an instruction reads is where it was put, whole, whenever the reader is at its
    fastest."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = (rng.integers(1, 6, 12) * streaming.PAGE).tolist()
        steps = [rng.choice(12, int(rng.integers(0, 4)), replace=False).tolist() for _ in range(30)]
        least = max(sum(sizes[i] for i in s) for s in steps)
        window = least + int(rng.integers(0, 3)) * 3 * streaming.PAGE
        loads = streaming._loads(steps, sizes.__getitem__, window)
        memory = np.full(window // streaming.PAGE, -1)
        done = 0
        for k, step in enumerate(steps):
            while done < len(loads) and loads[done]["after"] <= k:  # as early as allowed
                at = loads[done]["at"] // streaming.PAGE
                memory[at : at + sizes[loads[done]["seg"]] // streaming.PAGE] = done
                done += 1
            for i in step:
                (mine,) = [n for n, load in enumerate(loads) if load["seg"] == i and k in load["steps"]]
                at = loads[mine]["at"] // streaming.PAGE
                assert mine < done and (memory[at : at + sizes[i] // streaming.PAGE] == mine).all()
        assert done == len(loads)
