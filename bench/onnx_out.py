"""The ONNX that effc writes beside the ONNX that torch.onnx writes, both run by onnxruntime, and eager torch.

    python -m bench.onnx_out [--models minilm,crepe,...] [--static] [--threads 2] [--rounds 8] [--block 0.25]
                             [--out bench/results] [--json]

Models of the zoo are exported by torch.onnx, with dynamic sizes unless --static is given, and that file is compiled, in
the standard domain and with onnxruntime's own operators; spectral models, which torch.onnx cannot always export, are
compiled from torch. Each file runs in a process of its own at onnxruntime's highest level of optimisation; blocks of
runs alternate as in bench.models. Reported: nodes, with local functions inlined (of the input, of onnxslim's output for
it, of effc's), medians in milliseconds, times faster than the input file, and the largest error against eager.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

import effc

from . import machine
from .engines import ONNX_FILES
from .models import ROOT, measure
from .spectral import SPECTRAL
from .worker import entry

INPUT, STANDARD, ORT = ONNX_FILES
ZOO = ("minilm", "efficientnet_lite0", "mobilenet_v2", "crepe", "resemblyzer", "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet")


def node_count(model: onnx.ModelProto) -> int:
    """Nodes of a model, those inside control flow too, local functions inlined."""
    import onnx.inliner

    def count(g: onnx.GraphProto) -> int:
        inner = (a.g for n in g.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH)
        return len(g.node) + sum(map(count, inner))

    return count(onnx.inliner.inline_local_functions(model).graph if model.functions else model.graph)


def prepare(name: str, folder: Path, static: bool) -> dict[str, int]:
    """Writes the model's ONNX files into ``folder``, checked by onnx.checker; {file or "onnxslim": nodes}."""
    e = entry(name)
    loaded = e.load()
    source = folder / f"{INPUT}.onnx"
    dynamic = None if static else loaded.dynamic_shapes
    nodes: dict[str, int] = {}
    try:
        args = e.bench() if dynamic is None else loaded.args
        torch.onnx.export(
            loaded.module, args, source, dynamo=True, external_data=False, verbose=False, dynamic_shapes=dynamic
        )
    except Exception:
        if name not in SPECTRAL:
            raise
        source.unlink(missing_ok=True)
        print(f"  {name}: torch.onnx: {traceback.format_exc(limit=0).strip().splitlines()[-1][:200]}", file=sys.stderr)
    else:
        nodes[INPUT] = node_count(onnx.load(source))
        try:
            import onnxslim
        except ImportError:
            print("  onnxslim is not installed: its count is left out", file=sys.stderr)
        else:
            nodes["onnxslim"] = node_count(onnxslim.slim(str(source)))
    for kind, domain in ((STANDARD, "standard"), (ORT, "ort")):
        if name in SPECTRAL:
            made = effc.compile(loaded.module, e.bench(), target="onnx", onnx_domain=domain)
        else:
            made = effc.compile(source, target="onnx", onnx_domain=domain)
        onnx.checker.check_model(made.model, full_check=True)
        made.save(folder / f"{kind}.onnx")
        nodes[kind] = node_count(made.model)
    return nodes


def one(name: str, a: argparse.Namespace) -> dict[str, Any]:
    """Nodes and figures of one model."""
    print(f"  {name}: exporting and compiling", file=sys.stderr, flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"effc-onnx-{name}-"))
    try:
        nodes = prepare(name, folder, a.static)
        engines = ["eager", *(k for k in ONNX_FILES if (folder / f"{k}.onnx").exists())]
        result = measure(name, engines, a.threads, a.rounds, a.block, {}, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result["nodes"] = nodes
    times = {k: f["median_ms"] for k, f in result["engines"].items() if "failed" not in f}
    if INPUT in times:
        result["faster"] = {k: times[INPUT] / times[k] for k in (STANDARD, ORT) if k in times}
    return result


def table(results: list[dict[str, Any]], a: argparse.Namespace) -> str:
    """The figures as Markdown."""
    sizes = "the benchmark's own sizes" if a.static else "dynamic sizes"
    head = (
        "model", "nodes: torch.onnx", "onnxslim", "effc", "effc, ort", "ms: eager", "torch.onnx", "effc", "effc, ort",
        "times faster: effc", "effc, ort", "error: torch.onnx", "effc", "effc, ort",
    )  # fmt: skip
    lines = [
        f"{machine.cpu_name()}, {os.cpu_count()} CPUs, {a.threads} threads, {datetime.date.today()}; {sizes}", "",
        f"| {' | '.join(head)} |", "|---" * len(head) + "|",
    ]  # fmt: skip
    for r in results:
        figures = {k: f for k, f in r["engines"].items() if "failed" not in f}
        cells = [r["model"], *(str(r["nodes"].get(k, "-")) for k in (INPUT, "onnxslim", STANDARD, ORT))]
        cells += [f"{figures[k]['median_ms']:.2f}" if k in figures else "-" for k in ("eager", *ONNX_FILES)]
        cells += [f"{r['faster'][k]:.2f}" if k in r.get("faster", {}) else "-" for k in (STANDARD, ORT)]
        cells += [f"{figures[k]['error']:.1e}" if k in figures else "-" for k in ONNX_FILES]
        lines.append(f"| {' | '.join(cells)} |")
    zoo = [r for r in results if r["model"] not in SPECTRAL and "faster" in r]
    for kind in (STANDARD, ORT):
        gains = [r["faster"][kind] for r in zoo if kind in r["faster"]]
        if gains:
            mean = math.exp(sum(map(math.log, gains)) / len(gains))
            within = sum(r["nodes"][kind] <= r["nodes"].get("onnxslim", math.inf) for r in zoo)
            lines.append(
                f"\n{kind}: {len(gains)} models of the zoo, geometric mean {mean:.3f} times faster than the input, "
                f"least {min(gains):.3f}; nodes not above onnxslim's in {within} of {len(zoo)}."
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default=",".join((*ZOO, *SPECTRAL)))
    p.add_argument("--static", action="store_true", help="export with the benchmark's sizes instead of dynamic ones")
    p.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--block", type=float, default=0.25, help="seconds of a block")
    p.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    p.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own
        results = [one(m, a) for m in a.models.split(",")]
    text = table(results, a)
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "onnx_out.md").write_text(text)
    (a.out / "onnx_out.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results) if a.json else text)


if __name__ == "__main__":
    main()
