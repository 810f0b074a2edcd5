"""One engine in one process, driven over stdin: ``go SECONDS`` runs a block and prints the times of its runs as JSON.

    python -m bench.worker MODEL ENGINE THREADS WORK_DIR [EXPECTED.npz]

MODEL is a name in tests/models/zoo.py or bench/spectral.py. Prints one JSON line when ready: preparation time, first
outputs compared with EXPECTED.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def error(got: list[Any], want: list[np.ndarray]) -> float:
    """max|a-b| / max|b| over the outputs, infinity if they differ in number or shape."""
    if len(got) != len(want):
        return float("inf")
    worst = 0.0
    for a, b in zip(got, want):
        a = np.asarray(a)
        if a.shape != b.shape:
            return float("inf")
        if b.size:
            scale = float(np.abs(b).max()) or 1.0
            worst = max(worst, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) / scale)
    return worst


def flops_of(module: Any, args: tuple[Any, ...]) -> float:
    """Operations of contractions, convolutions and attention, from torch's own counter; LSTMs by their formula."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    extra = 0.0

    def lstm(layer: Any, inputs: tuple[Any, ...], _: Any) -> None:
        nonlocal extra
        x = inputs[0]
        steps = x.numel() // x.shape[-1]
        for name, w in layer.named_parameters():
            if name.startswith("weight"):
                extra += 2.0 * steps * w.numel()

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return 2 * q[0] * q[1] * q[2] * k[2] * (k[3] + v[3])

    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}  # it does not know this one
    hooks = [m.register_forward_hook(lstm) for m in module.modules() if isinstance(m, torch.nn.LSTM)]
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        module(*args)
    for h in hooks:
        h.remove()
    return float(counter.get_total_flops()) + extra


def counted(path: Path, args: tuple[Any, ...]) -> float:
    """Operations of an artifact's calls as effc counts them, for a model that torch cannot count."""
    import effc

    model = effc.load(path)
    with model.profile() as records:
        model(*(a.numpy() for a in args))
    return float(sum(r.flops for r in records))


def entries() -> dict[str, Any]:
    """All models by name: the zoo, the dense ones at the sizes that are compared, spectral and quantized ones."""
    from bench.dense import DENSE
    from bench.int8 import QUANTIZED
    from bench.products import PRODUCTS
    from bench.spectral import SPECTRAL
    from tests.models import zoo

    return {**DENSE, **zoo.ZOO, **SPECTRAL, **QUANTIZED, **PRODUCTS}


def entry(name: str) -> Any:
    """A model by name; SystemExit for a name that there is not."""
    all_of_them = entries()
    if name not in all_of_them:
        raise SystemExit(f"no model {name!r}; there are {', '.join(all_of_them)}")
    return all_of_them[name]


def main() -> None:
    name, engine, threads, work = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    expected = Path(sys.argv[5])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, the protocol has the old stdout to itself

    def say(message: Any) -> None:
        answer.write(json.dumps(message) + "\n")
        answer.flush()

    import torch

    from bench.engines import ENGINES, onnx_file

    try:
        chosen = entry(name)
        module, args = chosen.load().module, chosen.bench()
        start = time.perf_counter()
        run = ENGINES[engine](module, args, threads, work)
        out = run()
        prepared = time.perf_counter() - start
        info: dict[str, Any] = {"engine": engine, "prepare_s": prepared}
        if engine == "eager" and onnx_file(module) is not None:
            np.savez(expected, *out)
            say({"engine": engine, "failed": "the model is a file: its results are those of onnxruntime, unoptimized"})
            return
        if engine == "effc" and (file := onnx_file(module)) is not None:
            touched = file.stat().st_size + sum(a.nbytes for a in [*args, *out])
            info.update(flops=counted(work / "model.effc", args), bytes=touched)
        if engine == "eager":
            np.savez(expected, *[np.asarray(x) for x in out])
            weights = sum(
                t.numel() * t.element_size() for t in {id(t): t for t in module.state_dict().values()}.values()
            )
            io = sum(t.numel() * t.element_size() for t in [*args, *out] if isinstance(t, torch.Tensor))
            info.update(flops=flops_of(module, args), bytes=weights + io)
        with np.load(expected) as data:
            info["error"] = error(out, [data[k] for k in data.files])
        warm = time.perf_counter() + 10  # seconds, enough for three runs of any engine but those that nobody tuned
        for _ in range(3):
            if time.perf_counter() < warm:
                run()
        say(info)
    except Exception as e:
        say({"engine": engine, "failed": f"{type(e).__name__}: {e}"[:2000]})
        return
    for line in sys.stdin:
        word, _, value = line.partition(" ")
        if word != "go":
            break
        times = []
        end = time.perf_counter() + float(value)
        run()  # back from being stopped: the first run fills caches
        while True:
            t0 = time.perf_counter()
            run()
            t1 = time.perf_counter()
            times.append(t1 - t0)
            if t1 > end:
                break
        say(times)


if __name__ == "__main__":
    main()
