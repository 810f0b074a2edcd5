"""Weights larger than memory: SmolLM2-135M in float32 within a third of its weights, from a cold page cache.

    python -m bench.streaming [--limit BYTES] [--budget SIZE] [--tokens 16] [--rounds 3] [--only NAME,...] [--json]

Prefill of a prompt of 16 tokens, then greedy decoding, in processes without torch that the kernel holds to a limit
(``bench/cgroup.py`` says by what). Rows: everything in memory and no limit; the same artifact, whose weights are
mapped, under the limit; the artifact compiled with ``memory_budget`` under the limit, with and without reading ahead,
and through the page cache. Each process starts with the artifact out of the page cache. The logits of every step must
have the same bits in all rows. ``load`` and ``first`` (prefill from cold) are seconds, ``peak`` what the control group
counted. Rows are called ``in memory``, ``mapped``, ``streamed``, ``not ahead`` and ``page cache``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cgroup

WEIGHTS = 538_071_944  # bytes of the artifact's weights without a budget
LIMIT = WEIGHTS // 3
BUDGET = "140MiB"


@dataclass(frozen=True)
class Way:
    """One row: which artifact, under the limit or not, with which environment."""

    name: str
    streamed: bool
    limited: bool
    env: dict[str, str] = field(default_factory=dict)


WAYS = (
    Way("in memory", False, False),
    Way("mapped", False, True),
    Way("streamed", True, True),
    Way("not ahead", True, True, {"EFFC_STREAM_PREFETCH": "0"}),
    Way("page cache", True, True, {"EFFC_STREAM_DIRECT": "0"}),
)


def build(folder: Path, budget: str) -> tuple[Path, Path]:
    """The artifact without and with a budget, made once per folder and budget."""
    paths = folder / "smollm2.effc", folder / f"smollm2-{budget}.effc"
    for path, size in zip(paths, (None, budget), strict=True):
        if not path.exists():
            code = (
                "import effc, sys; from tests.models import zoo; d = zoo.smollm2_decoding(); "
                "e = {'prefill': effc.Entry(d.module, d.prefill, None, d.prefill_dynamic), "
                "'decode': effc.Entry(d.module, d.decode)}; "
                "effc.compile_entries(e, selftest=False, memory_budget=sys.argv[2] or None).save(sys.argv[1])"
            )
            subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(path), size or ""], check=True)
    return paths


def worker(path: str, tokens: int, prompt: list[int]) -> dict[str, Any]:
    """Prefill and greedy decoding; what a process of :func:`measure` prints."""
    import numpy as np

    from effc.runtime import loader

    began = time.perf_counter()
    m = loader.load(path)
    times = {"load": time.perf_counter() - began}
    prefill, decode = m.entry("prefill"), m.entry("decode")
    bits = hashlib.sha256()
    ids: list[int] = []
    steps: list[float] = []
    before = m.streaming
    began = time.perf_counter()
    logits = prefill(np.array([prompt]), np.array([0]))
    times["first"] = time.perf_counter() - began
    after_first = m.streaming
    bits.update(logits)
    ids.append(int(logits[0, -1].argmax()))
    for k in range(tokens):
        began = time.perf_counter()
        logits = decode(np.array([[ids[-1]]]), np.array([len(prompt) + k]))
        steps.append(time.perf_counter() - began)
        bits.update(logits)
        ids.append(int(logits[0, -1].argmax()))
    after = m.streaming
    done = {k: after[k] - after_first[k] for k in ("pieces", "bytes", "waits", "wait_ns", "run_ns", "row_bytes")}
    return {
        **times, "steps": steps, "ids": ids, "bits": bits.hexdigest(), "decode": done,
        "prefill": {k: after_first[k] - before[k] for k in done},
        "sizes": {k: after[k] for k in ("arena", "window", "resident")},
        "direct": after["direct"], "prefetch": after["prefetch"],
    }  # fmt: skip


def measure(
    way: Way, paths: tuple[Path, Path], limit: int, tokens: int, prompt: list[int], timeout: float
) -> dict[str, Any]:
    """One process, from a cold page cache."""
    path = paths[way.streamed]
    kept = cgroup.forget(path)
    command = [sys.executable, "-m", "bench.streaming", "--worker", str(path), str(tokens), json.dumps(prompt)]
    run = cgroup.run_limited(command, limit if way.limited else None, timeout, way.env)
    if run.status:
        return {"failed": run.stderr.strip().splitlines()[-1:] or f"ended with {run.status}", "how": run.how}
    return {**json.loads(run.stdout.splitlines()[-1]), "peak": run.peak, "how": run.how, "cached": kept}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        print(json.dumps(worker(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))))
        return
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--limit", type=int, default=LIMIT, help="bytes the kernel allows a process")
    p.add_argument(
        "--budget", default=BUDGET, help="memory_budget of the artifact; the process needs some memory besides"
    )
    p.add_argument("--tokens", type=int, default=16)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--folder", type=Path, default=Path(".cache") / "streaming", help="where artifacts are kept")
    p.add_argument("--only", default="", help="rows, comma-separated")
    p.add_argument("--build", action="store_true", help="only make the artifacts")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    paths = build(a.folder, a.budget)
    if a.build:
        return
    from tests.models.zoo import SMOLLM2_PROMPT

    prompt, tokens = list(SMOLLM2_PROMPT), max(1, a.tokens)
    ways = [w for w in WAYS if not a.only or w.name in a.only.split(",")]
    rows: dict[str, list[dict[str, Any]]] = {w.name: [] for w in ways}
    for _ in range(a.rounds):  # in turn, so that a disturbance meets all of them
        for w in ways:
            rows[w.name].append(measure(w, paths, a.limit, tokens, prompt, 300))
    if a.json:
        print(json.dumps({"limit": a.limit, "budget": a.budget, "rows": rows}))
    else:
        print(table(rows, a.limit, a.budget, tokens, len(prompt)))
    bits = {r["bits"] for results in rows.values() for r in results if "bits" in r}
    if len(bits) > 1:
        raise SystemExit("results differ in their bits")


def table(rows: dict[str, list[dict[str, Any]]], limit: int, budget: str, tokens: int, prompt: int) -> str:
    """Medians over the rounds."""
    hows = sorted({r["how"] for results in rows.values() for r in results} - {"no limit"})
    head = (
        f"limit {limit:,} bytes ({', '.join(hows)}), memory_budget {budget}, prompt {prompt}, {tokens} tokens decoded"
    )
    lines = [
        head,
        "",
        "| | load s | first s | later s | tokens/s | waiting | read MB a run | peak MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, results in rows.items():
        good = [r for r in results if "bits" in r]
        if not good:
            lines.append(f"| {name} | {results[0]['failed']} |")
            continue

        def median(of: Any) -> float:
            return statistics.median(of(r) for r in good)  # noqa: B023

        step = median(lambda r: statistics.median(r["steps"]))
        waiting = median(lambda r: r["decode"]["wait_ns"] / max(1, r["decode"]["run_ns"]))
        lines.append(
            f"| {name} | {median(lambda r: r['load']):.2f} | {median(lambda r: r['first']):.2f} | {step:.3f} | "
            f"{1 / step:.2f} | {waiting:.0%} | "
            f"{median(lambda r: r['decode']['bytes'] + r['decode']['row_bytes']) / tokens / 1e6:.1f} | "
            f"{median(lambda r: r['peak']) / 1e6:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
