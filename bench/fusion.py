"""What fusion saves: kernels run, and bytes that they read and write, beside the least there could be.

    python -m bench.fusion [--models mobilenet_v2,minilm,...] [--json]

Each model is compiled without the passes that join ops into kernels, without ``fuse_chains`` alone, and with all.
Bytes are those of every kernel's operands and results; the least is inputs, outputs and weights, each once. Nothing
is timed: these are counts of the compiled programs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import effc
from bench.worker import entries

MODELS = ("mobilenet_v2", "efficientnet_lite0", "resnet50", "minilm", "vit_s16")
JOINING = ("attention", "fuse_epilogues", "fuse_regions", "fuse_chains")
VARIANTS = {"apart": JOINING, "no chains": ("fuse_chains",), "fused": ()}
ITEM = {"f64": 8, "i64": 8, "u64": 8, "c64": 8, "f16": 2, "bf16": 2, "i16": 2, "u16": 2, "i8": 1, "u8": 1, "bool": 1}


def counts(model: Any, args: tuple[Any, ...], disabled: tuple[str, ...]) -> dict[str, Any]:
    """{"kernels", "bytes", "least", "formed"} of one way to compile a model with constant sizes."""
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

    weights = {
        (values[i]["seg"], values[i]["offset"]): size(i)
        for c in calls
        for i in c["in"]
        if i >= 0 and "seg" in values[i]
    }
    ends = {*(i for i, v in enumerate(values) if v["k"] == "input"), *program["outputs"]}
    return {
        "kernels": len(calls),
        "bytes": sum(c["bytes"] for c in calls),
        "least": sum(weights.values()) + sum(map(size, ends)),
        "chains": m.report["entries"]["main"]["passes"]["stats"].get("fuse_chains.formed", 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    a = parser.parse_args()
    names, known = a.models.split(","), entries()
    if unknown := [n for n in names if n not in known]:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(known)}")
    results = {}
    for name in names:
        module, args = known[name].load().module, known[name].bench()
        results[name] = {k: counts(module, args, disabled) for k, disabled in VARIANTS.items()}
    if a.json:
        print(json.dumps(results))
        return
    print("| model | kernels: apart | no chains | fused | chains | MB: apart | no chains | fused | least |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, r in results.items():
        kernels = " | ".join(str(r[k]["kernels"]) for k in VARIANTS)
        moved = " | ".join(f"{r[k]['bytes'] / 1e6:.1f}" for k in VARIANTS)
        print(f"| {name} | {kernels} | {r['fused']['chains']} | {moved} | {r['fused']['least'] / 1e6:.1f} |")


if __name__ == "__main__":
    main()
