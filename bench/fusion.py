"""What fusion saves: kernels run, and bytes that they read and write, beside the least there could be.

    python -m bench.fusion [--models mobilenet_v2,minilm,...] [--json]

Each model is compiled without the passes that join ops into kernels, without those that join kernels (``fuse_chains``,
``fuse_rows``), and with all. Bytes are those of every kernel's operands and results, of a table those of the rows that
are looked up; the least is inputs, outputs and
weights, each once. A layer is what runs from one attention to the next. Nothing is timed: these are counts of the
compiled programs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import effc
from bench.dense import DENSE
from bench.worker import entries

MODELS = (
    "mobilenet_v2", "efficientnet_lite0", "resnet50", "minilm", "minilm_8x128", "vit_s16", "whisper_tiny_encoder",
    "smollm2",
)  # fmt: skip
CHAINS = ("fuse_chains", "fuse_rows")
JOINING = ("attention", "fuse_epilogues", "fuse_regions", *CHAINS)
VARIANTS = {"apart": JOINING, "no chains": CHAINS, "fused": ()}
ITEM = {"f64": 8, "i64": 8, "u64": 8, "c64": 8, "f16": 2, "bf16": 2, "i16": 2, "u16": 2, "i8": 1, "u8": 1, "bool": 1}


def counts(model: Any, args: tuple[Any, ...], disabled: tuple[str, ...]) -> dict[str, Any]:
    """{"kernels", "layer", "bytes", "least", "chains"} of one way to compile a model with constant sizes. "layer":
    kernels from one attention to the next, 0 without attention."""
    m = effc.compile(model, args, disable_passes=disabled, selftest=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.effc"
        m.save(path)
        with zipfile.ZipFile(path) as z:
            program = json.loads(z.read("manifest.json"))["entries"]["main"]["program"]
    calls = [c for c in program["code"] if c["op"] == "call"]
    values = program["values"]

    def size(i: int) -> int:
        n = ITEM.get(values[i]["d"], 4)
        for d in values[i]["shape"]:
            n *= d
        return n

    weights: dict[tuple[int, int], int] = {}
    for c in calls:
        for i in c["in"]:
            base = values[i].get("base", i) if i >= 0 else i
            if base >= 0 and "seg" in (v := values[base]):  # of a table no more than the rows that are looked up
                key, read = (v["seg"], v["offset"]), min(size(base), c["bytes"])
                weights[key] = max(read, weights.get(key, 0))
    ends = {*(i for i, v in enumerate(values) if v["k"] == "input"), *program["outputs"]}
    starts = [i for i, c in enumerate(calls) if c["kernel"].startswith("effc_attention")]
    stats = m.report["entries"]["main"]["passes"]["stats"]
    return {
        "kernels": len(calls),
        "layer": int(median(b - a for a, b in pairwise(starts))) if len(starts) > 1 else 0,
        "bytes": sum(c["bytes"] for c in calls),
        "least": sum(weights.values()) + sum(map(size, ends)),
        "chains": sum(stats.get(f"{p}.formed", 0) for p in CHAINS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    a = parser.parse_args()
    names, known = a.models.split(","), {**entries(), **DENSE}
    if unknown := [n for n in names if n not in known]:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(known)}")
    results = {}
    for name in names:
        module, args = known[name].load().module, known[name].bench()
        results[name] = {k: counts(module, args, disabled) for k, disabled in VARIANTS.items()}
    if a.json:
        print(json.dumps(results))
        return
    print("| model | kernels: apart | no chains | fused | a layer: no chains | fused | chains | MB: apart | no chains "
          "| fused | least |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, r in results.items():
        kernels = " | ".join(str(r[k]["kernels"]) for k in VARIANTS)
        layer = " | ".join(str(r[k]["layer"] or "") for k in ("no chains", "fused"))
        moved = " | ".join(f"{r[k]['bytes'] / 1e6:.1f}" for k in VARIANTS)
        least = r["fused"]["least"] / 1e6
        print(f"| {name} | {kernels} | {layer} | {r['fused']['chains']} | {moved} | {least:.1f} |")


if __name__ == "__main__":
    main()
