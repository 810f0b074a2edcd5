"""``effc estimate`` beside the clock: what the cost model predicts for whole models, and how long they take.

    python -m bench.estimate [--models minilm,... | dense] [--threads 1,2] [--rounds 9] [--block 0.4] [--out FOLDER]

Blocks of runs alternate between the numbers of threads. The prediction is for a calm machine, so its error is given
against the median of the blocks' medians and against the fastest block; ``learned`` is the part of the prediction that
a model made, the rest is the roofline's. EFFC_COST_MODEL names another model than the shipped one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.dense import DENSE
from bench.engines import artifact, loaded, onnx_file
from bench.worker import entry

ROOT = Path(__file__).resolve().parents[1]


def measure(name: str, threads: list[int], rounds: int, block: float) -> list[dict[str, Any]]:
    """One row for each number of threads."""
    import torch

    from effc.cost.estimating import of_program

    torch.set_num_threads(1)
    e = entry(name)
    args = e.bench()
    with tempfile.TemporaryDirectory() as folder:
        module = e.load().module
        path = artifact(module, args, Path(folder))
        models = {n: loaded(path, args, n, onnx_file(module) is not None) for n in threads}
    manifest = next(iter(models.values()))[0].manifest
    program = next(iter(manifest["entries"].values()))["program"]
    blocks: dict[int, list[float]] = {n: [] for n in threads}
    for _, run in models.values():
        run()
    for _ in range(rounds):
        for n, (_, run) in models.items():
            times, end = [], time.perf_counter() + block
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            blocks[n].append(float(np.median(times)))
    rows = []
    for n in threads:
        guess = of_program(program, {}, manifest["target"], n)
        median, least = float(np.median(blocks[n])), min(blocks[n])
        rows.append(
            {
                "model": name,
                "threads": n,
                "estimate_ms": guess.seconds * 1e3,
                "uncertainty": guess.uncertainty,
                "learned": guess.learned,
                "median_ms": median * 1e3,
                "least_ms": least * 1e3,
                "off_median": guess.seconds / median - 1,
                "off_least": guess.seconds / least - 1,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="dense")
    parser.add_argument("--threads", default=",".join(str(n) for n in sorted({1, min(2, os.cpu_count() or 1)})))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", type=float, default=0.4, help="seconds of a block")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    a = parser.parse_args()
    names = [n for m in a.models.split(",") for n in (DENSE if m == "dense" else [m])]
    threads = [int(n) for n in a.threads.split(",")]
    print(f"{machine.cpu_name()}\n")
    print("| model | threads | estimate ms | +- | learned | median ms | off | fastest block ms | off |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in names:
        for r in measure(name, threads, a.rounds, a.block):
            rows.append(r)
            print(
                f"| {r['model']} | {r['threads']} | {r['estimate_ms']:.2f} | {r['uncertainty']:.0%} | "
                f"{r['learned']:.0%} | {r['median_ms']:.2f} | {r['off_median']:+.0%} | {r['least_ms']:.2f} | "
                f"{r['off_least']:+.0%} |",
                flush=True,
            )
    for key, what in (("off_median", "medians"), ("off_least", "fastest blocks")):
        off = [abs(r[key]) for r in rows]
        print(f"\n{sum(x <= 0.15 for x in off)} of {len(off)} within 15 % of the {what}, mean {np.mean(off):.1%}")
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "estimate.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
