"""effc beside the engines people use, on models with their real weights.

    python -m bench.models [--models minilm,crepe | dense] [--engines effc,eager,...] [--threads 2] [--rounds 12]
                           [--block 0.4] [--limit 3600] [--out bench/results] [--json]

One process per engine. Blocks of runs alternate round by round, all other engines' processes being stopped meanwhile,
so that no thread pool spins beside another and a change of the machine's speed meets all engines. Reported are medians,
p10 and p90, the ratio to the fastest peer, and the share of the machine's measured FMA peak and read bandwidth. The
table goes to standard output, and as Markdown and JSON to ``--out``. An engine that raises, crashes, or is not ready
within ``--limit`` seconds gets a row that says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.dense import DENSE
from bench.worker import entries

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("eager", "torch.compile", "onnxruntime", "openvino", "effc")
OTHERS = ("tvm",)  # that take long where nobody has tuned them: by name only
MODELS = ("minilm", "efficientnet_lite0", "mobilenet_v2", "crepe", "resemblyzer", "mtcnn_pnet", "smollm2")


@dataclass
class Worker:
    engine: str
    process: subprocess.Popen[str]
    info: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)  # the median of each block

    @classmethod
    def start(cls, model: str, engine: str, threads: int, work: Path, limit: float = 3600.0) -> Worker:
        """A process with the model ready to run, or one whose ``info`` says why it is not: the engine's error, its
        death, or that it was not ready within ``limit`` seconds."""
        env = dict(
            os.environ,
            OMP_NUM_THREADS=str(threads),
            EFFC_NUM_THREADS=str(threads),
            HF_HUB_OFFLINE="1",
            PYTHONPATH=str(ROOT),
            TOKENIZERS_PARALLELISM="false",
        )
        log = (work / f"{engine}.log").open("w")
        command = [
            sys.executable,
            "-m",
            "bench.worker",
            model,
            engine,
            str(threads),
            str(work),
            str(work / "expected.npz"),
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
            cwd=ROOT,
            start_new_session=True,
        )
        worker = cls(engine, process)
        assert process.stdout is not None
        if select.select([process.stdout], [], [], limit)[0]:
            worker.info = worker._read() or {"failed": f"does not compile: {worker._death()}"}
        else:
            worker.info = {"failed": f"does not compile: not ready within {limit:.0f} s"}
            worker.close()
        if "failed" not in worker.info:
            worker.stop()
        return worker

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def _death(self) -> str:
        """How the process ended."""
        code = self.process.wait()
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    @property
    def alive(self) -> bool:
        return "failed" not in self.info

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def block(self, seconds: float) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(f"go {seconds}\n")
        self.process.stdin.flush()
        times = self._read()
        if times is None:
            self.info["failed"] = f"while running: {self._death()}"
            return
        self.stop()
        self.times += times
        self.blocks.append(float(np.median(times)))

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def measure(
    model: str, engines: list[str], threads: int, rounds: int, block: float, peak: dict[str, Any],
    prepared: Path | None = None, limit: float = 3600.0,
) -> dict[str, Any]:  # fmt: skip
    """One model on all engines; {"model", "flops", "bytes", "engines": {name: figures}}. ``peak``: what bench.machine
    measured, or nothing; ``prepared``: the work folder, with files that engines need, which the caller removes;
    ``limit``: seconds for an engine to get ready."""
    work = prepared or Path(tempfile.mkdtemp(prefix=f"effc-bench-{model}-"))
    workers: list[Worker] = []
    result: dict[str, Any] = {"model": model, "threads": threads, "engines": {}}
    try:
        for engine in ["eager", *[e for e in engines if e != "eager"]]:
            print(f"  {model}: preparing {engine}", file=sys.stderr, flush=True)
            workers.append(Worker.start(model, engine, threads, work, limit))
            if workers[-1].info.get("failed"):
                print(f"  {model}: {engine} failed: {workers[-1].info['failed'].splitlines()[0]}", file=sys.stderr)
        told = next((w.info for w in workers if "flops" in w.info), {})
        result["flops"], result["bytes"] = told.get("flops"), told.get("bytes")
        trips = []
        for r in range(rounds):
            if threads > 1:
                trips.append(machine.round_trip())
            order = workers[r % len(workers) :] + workers[: r % len(workers)]
            for w in order:
                if w.alive:
                    w.block(block)
        result["round_trips_ns"] = trips
        peers = [float(np.median(w.times)) for w in workers if w.alive and w.engine != "effc"]
        best = min(peers) if peers else None
        for w in workers:
            if not w.alive:
                result["engines"][w.engine] = {"failed": w.info["failed"]}
                continue
            p10, median, p90 = (float(x) for x in np.percentile(w.times, [10, 50, 90]))
            figures = {
                "median_ms": median * 1e3,
                "p10_ms": p10 * 1e3,
                "p90_ms": p90 * 1e3,
                "least_ms": min(w.times) * 1e3,
                "runs": len(w.times),
                "prepare_s": w.info["prepare_s"],
                "error": w.info["error"],
            }
            if result["flops"] and peak:
                figures["gflops"] = result["flops"] / median / 1e9
                figures["share_of_peak"] = figures["gflops"] / peak["gflops"]
                figures["share_of_bandwidth"] = result["bytes"] / median / 1e9 / peak["gbytes"]
            if best is not None and w.engine == "effc":
                figures["speedup_over_best_peer"] = best / median
            result["engines"][w.engine] = figures
    finally:
        for w in workers:
            w.close()
        if prepared is None:
            shutil.rmtree(work, ignore_errors=True)
    return result


def table(results: list[dict[str, Any]], peaks: dict[int, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [f"{machine.cpu_name()}, {os.cpu_count()} CPUs, {datetime.date.today()}", ""]
    for n, p in peaks.items():
        lines.append(
            f"- {n} thread{'s' * (n > 1)}: FMA peak {p['gflops']:.0f} GFLOP/s "
            f"(float32, {p['vector_bytes']}-byte vectors), "
            f"read bandwidth {p['gbytes']:.1f} GB/s"
        )
    lines += [
        "",
        "| model | engine | median ms | p10 | p90 | time / fastest peer | GFLOP/s | of FMA peak | "
        "of read bandwidth | max error | "
        "ready after s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        peers = [f["median_ms"] for e, f in r["engines"].items() if "failed" not in f and e != "effc"]
        for engine, f in r["engines"].items():
            if "failed" in f:
                lines.append(
                    f"| {r['model']} | {engine} | failed: {f['failed'].splitlines()[0][:80]} | | | | | | | | |"
                )
                continue
            ratio = f"{f['median_ms'] / min(peers):.2f}" if peers else ""
            rate = (
                [f"{f['gflops']:.1f}", f"{f['share_of_peak']:.0%}", f"{f['share_of_bandwidth']:.0%}"]
                if "gflops" in f
                else [""] * 3
            )
            cells = [
                r["model"],
                engine,
                f"{f['median_ms']:.2f}",
                f"{f['p10_ms']:.2f}",
                f"{f['p90_ms']:.2f}",
                ratio,
                *rate,
                f"{f['error']:.1e}",
                f"{f['prepare_s']:.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    if trips := [(r["model"], [t for t in r.get("round_trips_ns", []) if t is not None]) for r in results]:
        told = [f"{m} {' '.join(f'{t:.0f}' for t in ts)}" for m, ts in trips if ts]
        if told:
            lines += ["", "Round trip of a line between two CPUs before each round, ns: " + "; ".join(told) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated; dense: those of bench/dense.py")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--block", type=float, default=0.4, help="seconds of a block")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for an engine to get ready")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    a = parser.parse_args()
    known = entries()
    names = [n for m in a.models.split(",") for n in (DENSE if m == "dense" else [m])]
    if unknown := [n for n in names if n not in known]:
        parser.error(f"no model {', '.join(unknown)}; there are dense, {', '.join(known)}")
    if unknown := [e for e in a.engines.split(",") if e not in (*ENGINES, *OTHERS)]:
        parser.error(f"no engine {', '.join(unknown)}; there are {', '.join((*ENGINES, *OTHERS))}")
    peaks = {n: machine.measure(n) for n in sorted({1, a.threads})}
    results = [
        measure(m, a.engines.split(","), a.threads, a.rounds, a.block, peaks[a.threads], limit=a.limit) for m in names
    ]
    text = table(results, peaks)
    data = {
        "cpu": machine.cpu_name(),
        "python": platform.python_version(),
        "peaks": list(peaks.values()),
        "results": results,
    }
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "models.md").write_text(text)
    (a.out / "models.json").write_text(json.dumps(data, indent=1) + "\n")
    print(json.dumps(data) if a.json else text)


if __name__ == "__main__":
    main()
