"""How effc's time depends on threads, and on a neighbour that takes a core away.

    python -m bench.scaling [--models minilm,resnet50] [--engines effc] [--rounds 12] [--block 0.4] [--json]

For each model and engine: one process with one thread, one with two, alternating blocks of runs, the other stopped.
Then the process with two threads once more, while another process spins on the first of the CPUs. Reported: medians,
two threads over one, the median beside the neighbour over the quiet one. An even share of one and a half cores would be
1.33; work that is split evenly and joined at a barrier waits for the slower half, and threads that spin while they wait
take the rest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.models import ENGINES, Worker
from bench.worker import entries

MODELS = ("minilm", "resnet50", "vit_s16", "unet", "whisper_tiny_encoder", "minilm_8x128")


def _spin(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    while True:
        pass


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that spins on the first CPU that this one may use."""
    p = multiprocessing.Process(target=_spin, args=(min(os.sched_getaffinity(0)),), daemon=True)
    p.start()
    try:
        yield
    finally:
        p.kill()
        p.join()


def measure(model: str, engine: str, rounds: int, block: float) -> dict[str, Any]:
    """{"one_ms", "two_ms", "scaling", "beside_ms", "slowdown"}, or {"failed"}."""
    work = Path(tempfile.mkdtemp(prefix=f"effc-bench-{model}-"))
    workers: list[Worker] = []
    try:
        print(f"  {model}: preparing {engine}", file=sys.stderr, flush=True)
        workers.append(Worker.start(model, "eager", 1, work))  # writes the expected results
        for threads in (1, 2):
            workers.append(Worker.start(model, engine, threads, work))
        if bad := [w for w in workers if not w.alive]:
            return {"model": model, "engine": engine, "failed": bad[0].info["failed"]}
        one, two = workers[1:]
        for r in range(rounds):
            for w in (one, two) if r % 2 else (two, one):
                w.block(block)
        quiet = float(np.median(two.times))
        two.times.clear()
        with neighbour():
            for _ in range(rounds):
                two.block(block)
        beside, alone = float(np.median(two.times)), float(np.median(one.times))
        return {
            "model": model, "engine": engine, "one_ms": alone * 1e3, "two_ms": quiet * 1e3, "scaling": alone / quiet,
            "beside_ms": beside * 1e3, "slowdown": beside / quiet,
        }  # fmt: skip
    finally:
        for w in workers:
            w.close()
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--engines", default="effc", help=", ".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--block", type=float, default=0.4, help="seconds of a block")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    a = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two CPUs are needed")
    names, known = a.models.split(","), entries()
    if unknown := [n for n in names if n not in known]:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(known)}")
    peaks = [machine.measure(n) for n in (1, 2)]
    results = [measure(m, e, a.rounds, a.block) for m in names for e in a.engines.split(",")]
    if a.json:
        print(json.dumps({"peaks": peaks, "results": results}))
        return
    one, two = (p["gflops"] for p in peaks)
    print(f"{machine.cpu_name()}, {datetime.date.today()}: FMA peak {one:.0f} and {two:.0f} GFLOP/s\n")
    print("| model | engine | 1 thread ms | 2 threads ms | scaling | beside a neighbour ms | slower |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        if "failed" in r:
            print(f"| {r['model']} | {r['engine']} | failed: {r['failed'].splitlines()[0][:80]} | | | | |")
            continue
        print(
            f"| {r['model']} | {r['engine']} | {r['one_ms']:.2f} | {r['two_ms']:.2f} | {r['scaling']:.2f} | "
            f"{r['beside_ms']:.2f} | {r['slowdown']:.2f} |"
        )


if __name__ == "__main__":
    main()
