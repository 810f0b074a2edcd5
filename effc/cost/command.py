"""The commands ``effc tune``, ``effc estimate`` and the choices in ``effc explain``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import EffcError
from .calls import Call, calls, kernel_class

Sizes = Callable[[Mapping[str, Any], Sequence[str]], dict[str, int]]


def default_records() -> Path:
    """Where ``effc tune`` keeps records if it is not told."""
    from .machine import cache_folder

    return cache_folder() / "tune.jsonl"


# tune -----------------------------------------------------------------------------------------------------------------


def tune_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seconds", type=float, default=600.0, help="time to measure (default 600); 0: only train")
    p.add_argument(
        "--kernels",
        default="",
        help="comma-separated samplers, NAME:TURNS for how often one comes; default: all of effc/cost/space.py",
    )
    p.add_argument("--out", metavar="FILE.jsonl", help="records are appended here; default: in the cache folder")
    p.add_argument(
        "--resume", action="store_true", help="go on where the file ends, instead of refusing one that exists"
    )
    p.add_argument("--seed", type=int, default=0, help="of the sequence of shapes")
    p.add_argument(
        "--calm",
        type=float,
        default=None,
        metavar="SHARE",
        help="measure a case again while others use more of a CPU than this (default 0.1)",
    )
    p.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="MODEL.effc",
        help="also measure the calls of this artifact, where it makes them; may be repeated",
    )
    p.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="measure on all nodes of a Ray cluster (auto, an address, or local) instead of on this machine",
    )
    p.add_argument("--train", metavar="MODEL.npz", help="train a cost model on the records and write it here")
    p.add_argument("--data", action="append", default=[], metavar="FILE", help="further records to train on")


def tune(a: argparse.Namespace, sizes: Sizes) -> None:
    """Measures, then trains if asked to."""
    from ..backends.cpu.target import host
    from . import records
    from . import tune as loop

    out = Path(a.out) if a.out else default_records()
    if a.seconds > 0 or a.model:
        if out.exists() and not a.resume and a.out:
            raise EffcError(f"{out} exists", hint="--resume goes on where it ends")
        kernels = [k for k in a.kernels.split(",") if k]
        loop.turns(kernels)
        show = Bar()
        try:
            for path in a.model:
                add_model(path, out, sizes)
            if a.seconds > 0:
                calm = loop.CALM if a.calm is None else a.calm
            if a.seconds > 0 and a.ray:
                from .cluster import collect

                collect(a.ray, out, seconds=a.seconds, kernels=kernels, seed=a.seed, calm=calm)
            elif a.seconds > 0:
                loop.tune(out, host(), seconds=a.seconds, kernels=kernels, seed=a.seed, calm=calm, report=show)
        except KeyboardInterrupt:
            show.end()
            kept = sum("group" in j for j in records.lines(out)) if out.exists() else 0
            print(f"interrupted; {out} holds {kept} records, and --resume goes on from there", file=sys.stderr)
            raise
        show.end()
        print(f"{out}: {sum('group' in j for j in records.lines(out))} records")
    if a.train:
        from .train import fit

        files = [*([out] if out.exists() else []), *map(Path, a.data)]
        if not files:
            raise EffcError("there are no records to train on", hint="measure first, or name a file with --data")
        model = fit(records.read(files), report=lambda text: print(f"training on {text}", file=sys.stderr))
        model.save(a.train)
        print(f"{a.train}: {Path(a.train).stat().st_size:,} bytes; use it with EFFC_COST_MODEL={a.train}")
        for name, m in model.families.items():
            rank = f", of two ways compared {m.rank_error:.1%}" if m.rankers else ""
            print(f"  {name}: error on records that a member had not seen {m.error:.1%}{rank}")


class Bar:
    """Progress on stderr: a line that is written over on a terminal, else a line every half minute."""

    def __init__(self) -> None:
        self._tty, self._last, self._open = sys.stderr.isatty(), 0.0, False

    def __call__(self, d: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        if now - self._last < (0.2 if self._tty else 30):
            return
        self._last = now
        share = min(1.0, d["spent"] / d["of"])
        filled = round(24 * share)
        again = f", {d['disturbed']} measured again" if d["disturbed"] else ""
        text = (
            f"[{'#' * filled}{'.' * (24 - filled)}] {d['spent']:.0f} of {d['of']:.0f} s, {d['records']} records{again}"
        )
        if self._tty:
            print(f"\r{text}  {d['spec'][:48]:48}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._open:
            print(file=sys.stderr)
            self._open = False


def add_model(path: str, out: Path, sizes: Sizes) -> None:
    """Appends records of the calls of an artifact, where it makes them, and of the ways of those that can be made in
    several, one by one; its file's name is their source. What is there already is not measured again."""
    import zlib

    import numpy as np

    from ..backends.cpu.target import parse
    from ..cli import _entry, _manifest, random_inputs
    from ..runtime.loader import load
    from .calls import footprint
    from .estimating import machine_for
    from .features import family_of
    from .measure import measure, measure_model, temporary, yard_bench
    from .model import shipped
    from .records import Writer
    from .space import like

    manifest, source = _manifest(path), Path(path).stem
    name, entry = _entry(manifest, None)
    env, writer = sizes(entry, []), Writer(out)
    between = footprint(entry["program"], env)
    here, _ = machine_for(shipped(manifest["target"]))
    cases = {}
    for c in calls(entry["program"], env):
        case = like(c)
        if case is not None and (key := f"{source}-{case.spec}") not in cases:
            cases[key] = case
    try:
        with temporary() as folder:
            for threads in sorted({1, len(os.sched_getaffinity(0))}):
                if f"{source}-0-t{threads}" in writer.groups:
                    continue
                yard = yard_bench(threads, parse(manifest["target"]), Path(folder))
                model = load(path, num_threads=threads)
                inputs = random_inputs(entry, env, 0, 1)
                found, whole = measure_model(model, manifest, name, env, inputs, source, here, family_of, yard)
                writer.add(found)
                whole.sort()
                print(f"{path}, {threads} threads: {len(found)} calls, {whole[len(whole) // 2] * 1e3:.3f} ms a run")
                del model
            for i, (key, case) in enumerate(cases.items()):
                if key in writer.groups:
                    continue
                rng = np.random.default_rng(zlib.crc32(key.encode()))
                threads = 1 + i % len(os.sched_getaffinity(0))
                sweep = int(rng.choice([0, min(between, 16 << 20)]))
                writer.add(
                    measure(
                        case,
                        rng,
                        key,
                        threads,
                        sweep,
                        parse(manifest["target"]),
                        here,
                        Path(folder),
                        source=source,
                    )
                )
    finally:
        writer.close()


# estimate -------------------------------------------------------------------------------------------------------------


def estimate_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", metavar="MODEL.effc|SRC", help="an artifact, or what effc compile takes")
    p.add_argument("--entry", help="an entry point; default: the first")
    p.add_argument("--size", action="append", default=[], metavar="SYMBOL=N", help="a size (s0=16 or x.0=16)")
    p.add_argument("--threads", type=int)
    p.add_argument("--target", default="cpu", help="of a source that is compiled")
    p.add_argument("--top", type=int, default=20, help="calls to show")
    p.add_argument("--json", action="store_true")


def estimate(a: argparse.Namespace, sizes: Sizes) -> None:
    """Prints the predicted latency of a model and of its calls."""
    from ..cli import _entry, _manifest
    from .estimating import of_program

    with tempfile.TemporaryDirectory() as folder:
        path = a.source
        if not path.endswith(".effc"):
            import effc

            from ..cli import progress, resolve

            model, args, kwargs = resolve(path)
            path = str(Path(folder) / "model.effc")
            with progress(f"compiling {a.source}"):
                effc.compile(model, args, kwargs, target=a.target, num_threads=a.threads, selftest=False).save(path)
        manifest = _manifest(path)
    name, entry = _entry(manifest, a.entry)
    env = sizes(entry, a.size)
    threads = a.threads or int(os.environ.get("EFFC_NUM_THREADS") or 0) or len(os.sched_getaffinity(0))
    e = of_program(entry["program"], env, manifest["target"], threads)
    lines = sorted(e.lines, key=lambda x: -x.prediction.seconds * x.call.times)
    if a.json:
        print(
            json.dumps(
                {
                    "model": a.source,
                    "entry": name,
                    "sizes": env,
                    "threads": threads,
                    "ms": e.seconds * 1e3,
                    "uncertainty": e.uncertainty,
                    "learned": e.learned,
                    "machine": e.machine.as_json(),
                    "notes": e.notes,
                    "calls": [
                        {
                            "name": x.call.name,
                            "kernel": x.call.kernel,
                            "loc": x.call.loc,
                            "times": x.call.times,
                            "us": x.prediction.seconds * 1e6,
                            "uncertainty": x.prediction.uncertainty,
                            "floor_us": x.floor * 1e6,
                            "source": x.prediction.source,
                            "why": x.prediction.why,
                        }
                        for x in e.lines
                    ],
                }
            )
        )
        return
    print(f"{a.source}, entry {name}{f' at {env}' if env else ''}, {threads} threads on {e.machine.cpu}")
    print(
        f"predicted {e.seconds * 1e3:.3f} ms, give or take {e.uncertainty:.0%}; "
        f"{e.learned:.0%} of it by learned models, the rest by the roofline"
    )
    for note in e.notes:
        print(f"note: {note}")
    print(f"{'share':>6} {'us':>10} {'floor us':>10}  {'by':8} kernel")
    for x in lines[: a.top]:
        total = x.prediction.seconds * x.call.times
        often = f" x {x.call.times:g}" if x.call.times != 1 else ""
        why = f" ({x.prediction.why})" if x.prediction.why else ""
        print(
            f"{total / e.seconds:6.1%} {x.prediction.seconds * 1e6:10.1f} {x.floor * 1e6:10.1f}  "
            f"{x.prediction.source:8} "
            f"{kernel_class(x.call.kernel)} {x.call.name}{often}{why}"
        )
    if len(lines) > a.top:
        rest = sum(x.prediction.seconds * x.call.times for x in lines[a.top :])
        print(f"{rest / e.seconds:6.1%} {rest * 1e6:10.1f} {'':10}  in {len(lines) - a.top} other calls")


# explain --------------------------------------------------------------------------------------------------------------


def explain_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--measure", action="store_true", help="measure the ways of each choice on this machine")
    p.add_argument("--threads", type=int, help="of --measure; default: all")


def with_measurements(report: dict[str, Any], manifest: Mapping[str, Any], threads: int | None) -> None:
    """Adds ``measured_us`` to the ways of each decision of the report, and the rule's own way where it is missing.
    Equal calls are measured once."""
    from ..backends.cpu.target import parse
    from .measure import Bench, temporary, typical
    from .space import like

    target = parse(manifest["target"])
    count = threads or len(os.sched_getaffinity(0))
    known: dict[str, dict[int, float]] = {}
    with temporary() as folder:
        for name, e in report.get("entries", {}).items():
            program = manifest["entries"][name]["program"]
            for d in e.get("decisions", []):
                if "predicted" not in d or not ("at" in d or "region" in d):
                    continue
                if "region" in d:
                    call = Call.from_json(d["region"])
                else:
                    call = next(calls({**program, "code": [program["code"][d["at"]]]}, {}))
                case = like(call)
                if case is None:
                    d["not_measured"] = "no case is made of such a call"
                    continue
                ways = [d["predicted"], *d["losers"]]
                if case.spec not in known:
                    index = sorted({w["index"] for w in ways})
                    bench = Bench(case, index, 0, count, target, Path(folder))
                    known[case.spec] = {bench.ways[n]: typical(t) for n, t in bench.times().items() if n in bench.ways}
                for w in ways:
                    w["measured_us"] = round(known[case.spec][w["index"]] * 1e6, 3)


def decisions_text(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines for ``effc explain``: each node's ways, the one taken first."""
    lines = []
    for d in decisions:
        lines.append(f"  {d['name']} {d['kernel']}: {d['chosen']}; {d['why']}  {d.get('loc', '')}")
        if "predicted" not in d:
            continue
        for w in [d["predicted"], *d["losers"]]:
            measured = f"  measured {w['measured_us']:.1f} us" if "measured_us" in w else ""
            role = "taken" if w is d["predicted"] else "rule's" if w["index"] == d.get("rule", 0) else ""
            lines.append(f"    {role:7} predicted {w['us']:10.1f} us{measured}  {w['way']}")
        if d["ways"] > len(d["losers"]) + 1:
            lines.append(f"    and {d['ways'] - len(d['losers']) - 1} more ways, predicted to be slower")
        if "not_measured" in d:
            lines.append(f"    not measured: {d['not_measured']}")
    return lines
