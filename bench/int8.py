"""Quantized models: effc beside onnxruntime and OpenVINO on the same QDQ files, and each beside the float model.

    python -m bench.int8 [--models minilm.int8,resnet50.int8,smart_turn.int8] [--threads 2] [--rounds 12] [--block 0.4]
                         [--full-range] [--out bench/results] [--json]

The float model is exported by torch.onnx and quantized by onnxruntime.quantization: static, u8 activations, i8 weights
with a scale for each channel, calibrated on random data. smart-turn comes quantized. onnxruntime and OpenVINO multiply
u8 by i8 with an instruction that saturates where a CPU has neither AVX512-VNNI nor AVX-VNNI nor AMX, so for those
onnxruntime's documentation asks for weights of 7 bits (``reduce_range``); ``--full-range`` gives all engines 8 bits, at
which peers may be wrong there. One process for each engine, alternating blocks, as in bench.models. ``off`` is the mean
difference from the QDQ arithmetic as it is written (onnxruntime without optimisations), relative to the mean of that:
quantized models round often, and each rounding that falls differently moves what follows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import machine

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("onnxruntime.int8", "openvino.int8", "effc.int8", "onnxruntime.f32", "openvino.f32", "effc.f32")
SMART_TURN = "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"


def _smart_turn() -> Any:
    import torch

    from tests.models.fetch import fetch
    from tests.models.zoo import Loaded

    class Plain(torch.nn.Module):
        def forward(self, features: Any) -> Any:
            return torch.from_numpy(written(fetch("smart_turn") / SMART_TURN, (features,))[0])

    args = (torch.randn(1, 80, 800, generator=torch.Generator().manual_seed(0)),)
    return Loaded(Plain(), args, None, [args])


def _entries() -> dict[str, Any]:
    from tests.models import zoo

    from .dense import DENSE

    return {
        "minilm.int8": replace(zoo.ZOO["minilm"], name="minilm.int8"),
        "resnet50.int8": replace(DENSE["resnet50"], name="resnet50.int8"),
        "smart_turn.int8": zoo.Entry("smart_turn.int8", _smart_turn, lambda: _smart_turn().args),
    }


QUANTIZED = _entries()


def written(path: Path, args: tuple[Any, ...]) -> list[Any]:
    """The file's results without any optimisation: the arithmetic as it is written."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), args, strict=True)}
    return list(session.run(None, feed))


def quantize(source: Path, out: Path, args: tuple[Any, ...], *, reduce_range: bool) -> None:
    """QDQ with a scale for each channel of the weights; ranges of activations from three random inputs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = source.with_suffix(".ready.onnx")
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    names = input_names(ready)
    rng = np.random.default_rng(0)

    class Random(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = 3

        def get_next(self) -> Any:
            if not self.left:
                return None
            self.left -= 1
            feed = [a.numpy() for a in args]
            if self.left:  # the benchmark's own inputs are the last ones
                feed = [
                    rng.standard_normal(a.shape).astype(a.dtype) if a.dtype.kind == "f" else rng.permuted(a, axis=-1)
                    for a in feed
                ]
            return dict(zip(names, feed, strict=True))

    quantize_static(
        str(ready), str(out), Random(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=reduce_range,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def input_names(path: Path) -> list[str]:
    import onnx

    return [i.name for i in onnx.load(path).graph.input]


def saturates() -> bool:
    """Whether this machine lacks products of bytes that do not saturate."""
    from effc.backends.cpu.target import host_features

    return not host_features() & {"avx512vnni", "avxvnni", "amx_int8"}


def prepare(name: str, folder: Path, full_range: bool) -> list[str]:
    """Writes int8.onnx, and f32.onnx where there is a float model; the engines that have a file."""
    import torch

    entry = QUANTIZED[name]
    args = entry.bench()
    if name == "smart_turn.int8":
        from tests.models.fetch import fetch

        shutil.copyfile(fetch("smart_turn") / SMART_TURN, folder / "int8.onnx")
        return [e for e in ENGINES if e.endswith("int8")]
    torch.onnx.export(
        entry.load().module, args, folder / "f32.onnx", dynamo=True, external_data=False, verbose=False
    )  # fmt: skip
    quantize(folder / "f32.onnx", folder / "int8.onnx", args, reduce_range=saturates() and not full_range)
    return list(ENGINES)


def differences(folder: Path, args: tuple[Any, ...], threads: int) -> dict[str, float]:
    """How far each engine's int8 results are from the arithmetic as written."""
    from .engines import ENGINES as TABLE

    want = written(folder / "int8.onnx", args)
    out = {}
    for engine in (e for e in ENGINES if e.endswith("int8")):
        try:
            got = [np.array(a) for a in TABLE[engine](None, args, threads, folder)()]
        except Exception as e:
            print(f"  {engine}: {type(e).__name__}: {str(e)[:200]}", file=sys.stderr)
            continue
        out[engine] = max(
            float(np.abs(g - w).mean() / max(1e-30, np.abs(w).mean())) for g, w in zip(got, want, strict=True)
        )
    return out


def one(name: str, a: argparse.Namespace) -> dict[str, Any]:
    """Figures of one model."""
    from .models import measure

    folder = Path(tempfile.mkdtemp(prefix=f"effc-{name}-"))
    try:
        print(f"  {name}: exporting and quantizing", file=sys.stderr, flush=True)
        engines = prepare(name, folder, a.full_range)
        off = differences(folder, QUANTIZED[name].bench(), a.threads)
        result = measure(name, engines, a.threads, a.rounds, a.block, {}, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    times = {k: f["median_ms"] for k, f in result["engines"].items() if "failed" not in f}
    peers = [times[k] for k in ("onnxruntime.int8", "openvino.int8") if k in times]
    mine = times.get("effc.int8")
    result["off"] = off
    if mine and peers:
        result["faster_than_best_peer"] = min(peers) / mine
    if mine and "effc.f32" in times:
        result["faster_than_effc_f32"] = times["effc.f32"] / mine
    return result


def table(results: list[dict[str, Any]], a: argparse.Namespace) -> str:
    """The figures as Markdown."""
    bits = "8" if a.full_range or not saturates() else "7"
    lines = [
        f"{machine.cpu_name()}, {os.cpu_count()} CPUs, {a.threads} threads, {datetime.date.today()}; "
        f"weights of {bits} bits (smart-turn: its own)",
        "", "| model | engine | median ms | p10 | p90 | off |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in results:
        for engine, f in r["engines"].items():
            if engine == "eager":
                continue
            if "failed" in f:
                lines.append(f"| {r['model']} | {engine} | failed: {f['failed'].splitlines()[0][:80]} | | | |")
                continue
            off = f"{r['off'][engine]:.1e}" if engine in r["off"] else ""
            cells = [r["model"], engine, *(f"{f[k]:.2f}" for k in ("median_ms", "p10_ms", "p90_ms")), off]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| model | times faster than the best int8 peer | than effc f32 |", "|---|---|---|"]
    for r in results:
        ratios = [f"{r[k]:.2f}" if k in r else "" for k in ("faster_than_best_peer", "faster_than_effc_f32")]
        lines.append(f"| {' | '.join([r['model'], *ratios])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(QUANTIZED))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--block", type=float, default=0.4, help="seconds of a block")
    parser.add_argument("--full-range", action="store_true", help="weights of 8 bits on any machine")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    a = parser.parse_args()
    results = [one(m, a) for m in a.models.split(",")]
    text = table(results, a)
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "int8.md").write_text(text)
    (a.out / "int8.json").write_text(json.dumps({"cpu": machine.cpu_name(), "results": results}, indent=1) + "\n")
    print(json.dumps(results) if a.json else text)


if __name__ == "__main__":
    main()
