"""Models in arenas of less than they would take: what is spilled and repeated, and what a run costs then.

    python -m bench.arena_budget [unet training training_large] [--threads 1] [--blocks 8]

One row a budget: a share of the way from the least arena that the instructions run in to the arena as planned. ``ms``
are medians of blocks of runs that alternate with runs without a budget (``free ms``); ``copies ms`` is what spills and
refills took of a run. ``cold ms`` and ``cold copies ms`` are of runs in whose midst all that was spilled is put out of
the page cache, once, as a kernel short of memory does; ``ahead MiB`` is what such a run asked for ahead of refills.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

MIB = float(1 << 20)
SHARES = (0.75, 0.5, 0.25, 0.0)


def unet() -> tuple[Any, tuple[Any, ...]]:
    from .dense import DENSE

    entry = DENSE["unet"]
    return entry.load().module, tuple(entry.bench())


def step_of(width: int, rows: int, count: int) -> tuple[Any, tuple[Any, ...]]:
    """The gradients of a stack of residual layers, as a graph: loss, and sums of gradients of six weights."""
    import torch
    from torch import nn
    from torch._decomp import core_aten_decompositions
    from torch.func import functional_call, grad_and_value
    from torch.fx.experimental.proxy_tensor import make_fx

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
            self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for linear, norm in zip(self.linear, self.norm, strict=True):
                x = x + torch.tanh(linear(norm(x)))
            return x

    torch.manual_seed(0)
    net = Layers()
    given = {k: v.detach() for k, v in net.named_parameters()}

    def step(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        def loss(p: Any) -> torch.Tensor:
            return ((functional_call(net, p, (x,)) - y) ** 2).mean()

        grads, value = grad_and_value(loss)(given)
        return value, *(g.sum(0) for g in list(grads.values())[:6])

    args = torch.randn(rows, width), torch.randn(rows, width)
    with torch.enable_grad():
        return make_fx(step, decomposition_table=core_aten_decompositions())(*args), args


MODELS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "unet": unet,
    "training": lambda: step_of(32, 16000, 4),
    "training_large": lambda: step_of(256, 16384, 8),
}


def evict() -> None:
    """Writes files without names to their disk and has the page cache drop them."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{fd}")
            if link.startswith("/") and link.endswith("(deleted)") and "memfd" not in link:
                os.fdatasync(int(fd))
                os.posix_fadvise(int(fd), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(m: Any, args: tuple[Any, ...], seconds: float, runs: int) -> dict[str, float]:
    """Medians of runs of about so many seconds in the midst of which the page cache loses what was spilled."""
    took, copies, ahead = [], [], []
    for _ in range(runs):
        thread = threading.Timer(seconds / 2, evict)
        before = m.spilling
        began = time.perf_counter()
        thread.start()
        m(*args)
        took.append(time.perf_counter() - began)
        thread.join()
        after = m.spilling
        copies.append(after["ns"] - before["ns"])
        ahead.append(after.get("ahead_bytes", 0) - before.get("ahead_bytes", 0))
    return {
        "cold ms": 1e3 * statistics.median(took), "cold copies ms": statistics.median(copies) / 1e6,
        "ahead MiB": statistics.median(ahead) / MIB,
    }  # fmt: skip


def rows_of(name: str, threads: int, blocks: int) -> list[dict[str, Any]]:
    import torch

    import effc

    out = []
    with torch.no_grad():
        model, args = MODELS[name]()

        def compiled(budget: int | None) -> Any:
            return effc.compile(model, args, num_threads=threads, arena_budget=budget, selftest=False)

        free = compiled(None)
        best = free.arena(*args)[0]
        try:
            compiled(64)
        except effc.EffcError as e:
            found = re.search(r"run in is (\d+)", str(e))
            assert found, e
            least = int(found[1])
        want = list(torch.utils._pytree.tree_leaves(free(*args)))
        for share in SHARES:
            budget = round(least + share * (best - least))
            m = compiled(budget)
            r = m.report["entries"]["main"]["memory"]["arena_budget"]
            same = all(torch.equal(a, b) for a, b in zip(want, torch.utils._pytree.tree_leaves(m(*args)), strict=True))
            assert same, (name, share)
            times: dict[Any, list[float]] = {free: [], m: []}
            before = m.spilling
            runs = 0
            for _ in range(blocks):
                for which, taken in times.items():
                    for _ in range(3):
                        began = time.perf_counter()
                        which(*args)
                        taken.append(time.perf_counter() - began)
                runs += 3
            copies = (m.spilling["ns"] - before["ns"]) / runs
            out.append(
                {
                    "model": name, "budget": f"{share:.0%}", "MiB": budget / MIB, "arena MiB": m.arena(*args)[0] / MIB,
                    "free MiB": best / MIB, "spilled MiB": r.get("spilled_bytes", 0) / MIB,
                    "refilled MiB": r.get("refilled_bytes", 0) / MIB, "repeated": r.get("repeated", 0),
                    "Mflop": r.get("repeated_flops", 0) / 1e6, "planning s": r["seconds"],
                    "free ms": 1e3 * statistics.median(times[free]), "ms": 1e3 * statistics.median(times[m]),
                    "copies ms": copies / 1e6, **cold(m, args, statistics.median(times[m]), 3 * blocks),
                    "tmpfs": bool(m.spilling["in_memory"]),
                }
            )  # fmt: skip
            print(json.dumps(out[-1]), flush=True)
    return out


def main() -> None:
    from .memory import table

    parser = argparse.ArgumentParser(prog="bench.arena_budget", description="runs within less memory")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=8)
    a = parser.parse_args()
    print(table([row for name in a.models for row in rows_of(name, a.threads, a.blocks)]))


if __name__ == "__main__":
    main()
