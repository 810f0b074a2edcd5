"""Matrix products of the sizes that models have, with constant right-hand sides: effc beside torch (MKL or oneDNN) and
onnxruntime.

    python -m bench.products [--threads 2] [--rounds 5] [--block 0.15] [--only 128x384x1536,...] [--out bench/results]

As bench.models, one process per engine and blocks that alternate. A shape is M x K x N: M rows times a weight of K x N.
The share of the FMA peak is given of effc's median and of its fastest run: the peak is the best of many short runs, and
medians on a shared machine are not.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import machine
from bench.spectral import seeded

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "MiniLM": "128x384x384 128x384x1536 128x1536x384 1024x384x384 1024x384x1536 1024x1536x384",
    "SmolLM2": "200x576x576 200x576x192 200x576x1536 200x1536x576 1x576x1536 1x1536x576 1x576x49152",
    "ViT-S/16": "196x768x384 197x384x384 197x384x1536 197x1536x384 1x384x1000",
    "Whisper-tiny": "1500x384x384 1500x384x1536 1500x1536x384",
    "ResNet-50": "3136x64x64 3136x64x256 3136x256x64 784x512x128 784x128x512 196x1024x256 196x256x1024 "
    "49x2048x512 49x512x2048 1x2048x1000",
    "EfficientNet, MobileNetV2": "12544x16x96 3136x24x144 784x240x40 196x80x480 196x112x672 49x1152x192 49x320x1280",
    "resemblyzer": "160x40x1024 160x256x1024",
}  # fmt: skip
PEERS = ("eager", "onnxruntime")


def _entry(shape: str) -> Any:
    m, k, n = map(int, shape.split("x"))
    return seeded(f"product_{shape}", lambda: torch.nn.Linear(k, n, bias=False), m, k)


PRODUCTS = {f"product_{s}": _entry(s) for group in (*SHAPES.values(), "1024x1024x1024") for s in group.split()}


def main() -> None:
    from bench.models import measure

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=float, default=0.15, help="seconds of a block")
    parser.add_argument("--only", help="comma-separated shapes, of this list or others")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    a = parser.parse_args()
    names = a.only.split(",") if a.only else [s.removeprefix("product_") for s in PRODUCTS]
    peak = machine.measure(a.threads)
    print(
        f"{machine.cpu_name()}, {a.threads} threads: FMA peak {peak['gflops']:.0f} GFLOP/s, {peak['gbytes']:.1f} GB/s\n"
    )
    print("| M x K x N | torch us | onnxruntime us | effc us | best peer / effc | GFLOP/s | of peak | fastest |")
    print("|---|---|---|---|---|---|---|---|")
    results = []
    for shape in names:
        r = measure(f"product_{shape}", [*PEERS, "effc"], a.threads, a.rounds, a.block, peak)
        results.append(r)
        engines = r["engines"]
        if failed := [f"{e}: {f['failed'].splitlines()[0]}" for e, f in engines.items() if "failed" in f]:
            print(f"| {shape} | {'; '.join(failed)} |")
            continue
        us = [f"{engines[e]['median_ms'] * 1e3:.1f}" for e in (*PEERS, "effc")]
        mine = engines["effc"]
        fastest = r["flops"] / mine["least_ms"] / 1e6 / peak["gflops"]
        print(
            f"| {shape} | {' | '.join(us)} | {mine['speedup_over_best_peer']:.2f} | {mine['gflops']:.1f} | "
            f"{mine['share_of_peak']:.0%} | {fastest:.0%} |",
            flush=True,
        )
    ratios = [x for r in results if (x := r["engines"].get("effc", {}).get("speedup_over_best_peer"))]
    ahead = sum(x >= 1 for x in ratios)
    print(f"\n{ahead} of {len(ratios)} ahead, geometric mean {float(np.exp(np.mean(np.log(ratios)))):.2f}")
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "products.json").write_text(json.dumps({"peak": peak, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
