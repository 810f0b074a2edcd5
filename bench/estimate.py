"""``effc estimate`` beside the clock: what the cost model predicts for whole models, and how long they take.

    python -m bench.estimate [--models minilm,... | dense] [--threads 1,2] [--rounds 9] [--block 0.4] [--out FOLDER]
                             [--artifacts FOLDER] [--families] [--records FILE.jsonl]

Blocks of runs alternate between the numbers of threads. The prediction is for a calm machine, so its error is given
against the median of the blocks' medians and against the fastest block; ``learned`` is the part of the prediction that
a model made, the rest is the roofline's. EFFC_COST_MODEL names another model than the shipped one.

``--artifacts``: compiled models are kept there and found again. ``--families``: each call is measured where its model
makes it, and a second table sums up predicted over measured by family; ``--records`` keeps what was measured, and, with
``--rounds 0``, is read instead of measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import machine
from bench.dense import DENSE
from bench.engines import artifact, loaded, onnx_file
from bench.worker import entry

if TYPE_CHECKING:
    from effc.cost.records import Record

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def folder_of(name: str, artifacts: Path | None) -> Iterator[Path]:
    """Where the artifact of a model lies: gone afterwards, unless a folder for all of them is given."""
    if artifacts is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        folder = artifacts / name
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def measure(
    name: str, threads: list[int], rounds: int, block: float, artifacts: Path | None = None
) -> list[dict[str, Any]]:
    """One row for each number of threads."""
    import torch

    from effc.cost.estimating import of_program

    torch.set_num_threads(1)
    e = entry(name)
    args = e.bench()
    with folder_of(name, artifacts) as folder:
        module = e.load().module
        path = artifact(module, args, folder)
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


def calls_of(name: str, threads: list[int], artifacts: Path, seconds: float) -> list[Record]:
    """Records of every call of a model's artifact, where the model makes it."""
    from effc.backends.cpu.target import parse
    from effc.cli import _manifest, random_inputs
    from effc.cost.estimating import machine_for
    from effc.cost.features import family_of
    from effc.cost.measure import measure_model, temporary, yard_bench
    from effc.cost.model import shipped
    from effc.runtime.loader import load

    path = artifacts / name / "model.effc"
    manifest = _manifest(str(path))
    key, e = next(iter(manifest["entries"].items()))
    found: list[Record] = []
    here, _ = machine_for(shipped(manifest["target"]))
    with temporary() as folder:
        for n in threads:
            yard = yard_bench(n, parse(manifest["target"]), Path(folder))
            model = load(path, num_threads=n)
            inputs = random_inputs(e, {}, 0, 1)
            found += measure_model(model, manifest, key, {}, inputs, name, here, family_of, yard, seconds)[0]
    return found


def by_family(records: Sequence[Record]) -> list[str]:
    """Lines of a table. ``share``: the mean over models and threads of the family's part of the run; errors are of each
    call's own, weighted by its part of its model's run."""
    from effc.cost.model import shipped
    from effc.cost.train import context_of

    whole: dict[Any, float] = {}
    for r in records:
        whole[r.source, r.threads] = whole.get((r.source, r.threads), 0.0) + r.seconds
    found: dict[tuple[str, int], list[tuple[float, float, bool]]] = {}
    for r in records:
        model = shipped(r.target)
        assert model is not None
        p = model.predict(r.call, context_of(r))
        part = r.seconds / whole[r.source, r.threads]
        found.setdefault((r.family, r.threads), []).append((part, np.log(p.seconds / r.seconds), p.source == "model"))
    cells = {t: sum(n == t for _, n in whole) for t in {n for _, n in whole}}
    lines = ["| family | threads | calls | share of a run | predicted over measured | mean error | learned |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (family, t), each in sorted(found.items(), key=lambda kv: -sum(x[0] for x in kv[1]) / cells[kv[0][1]]):
        part, off, learned = (np.array(v) for v in zip(*each))
        over = float((part * np.exp(off)).sum() / part.sum())
        error = float((part * np.abs(np.expm1(off))).sum() / part.sum())
        lines.append(
            f"| {family} | {t} | {len(each)} | {part.sum() / cells[t]:.1%} | {over:.2f} | {error:.0%} | "
            f"{part[learned].sum() / part.sum():.0%} |"
        )
    return lines


def families(names: Sequence[str], threads: list[int], a: argparse.Namespace) -> None:
    """What ``--families`` prints."""
    from effc.cost import records

    found = records.read([a.records]) if a.records and not a.rounds else []
    if a.rounds:
        writer = records.Writer(a.records) if a.records else None
        for name in names:
            found += calls_of(name, threads, a.artifacts, a.block)
            if writer is not None:
                writer.add(found[-sum(r.source == name for r in found) :])
        if writer is not None:
            writer.close()
    print("\n".join(by_family([r for r in found if r.source in names and r.threads in threads])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="dense")
    parser.add_argument("--threads", default=",".join(str(n) for n in sorted({1, min(2, os.cpu_count() or 1)})))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", type=float, default=0.4, help="seconds of a block")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--artifacts", type=Path, help="compiled models are kept here")
    parser.add_argument("--families", action="store_true", help="measure each call; a table by family")
    parser.add_argument("--records", type=Path, help="where --families keeps what it measured")
    a = parser.parse_args()
    names = [n for m in a.models.split(",") for n in (DENSE if m == "dense" else [m])]
    threads = [int(n) for n in a.threads.split(",")]
    print(f"{machine.cpu_name()}\n")
    if a.families:
        families(names, threads, a)
        return
    print("| model | threads | estimate ms | +- | learned | median ms | off | fastest block ms | off |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in names:
        for r in measure(name, threads, a.rounds, a.block, a.artifacts):
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
