"""Convolution kernels side by side with PyTorch (oneDNN) and ONNX Runtime on layers of real networks.

    python bench/conv.py [--isa v3|v4] [--threads 2] [--only mobilenet] [--blocks 15]

Each row alternates short blocks of calls of every engine, so that load on the machine hits all of them alike, and
prints
the median over blocks: milliseconds, GFLOP/s and share of the multiply-add peak that a register-only loop reaches
on the
same threads in the same minute. No bias and no activation on any side. ``effc`` is the direct kernel; ``F2`` and ``F4``
are Winograd's, by tile size, where they apply, and the one that the rule takes, if any, has a star. GFLOP/s count the
direct sum's operations for all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests" / "null")]

from conv_cases import aligned, channels_last, run_conv, run_winograd  # noqa: E402
from kernel_harness import KernelLibrary, available_isas  # noqa: E402

from effc.backends.cpu.packing import winograd as packing  # noqa: E402
from effc.passes import winograd  # noqa: E402

# name, batch, input channels, output channels, input size, kernel, stride, padding, groups
LAYERS = [
    ("mobilenetv2 first 3x3 s2", 1, 3, 32, (224, 224), (3, 3), (2, 2), (1, 1), 1),
    ("mobilenetv2 dw 3x3 32@112", 1, 32, 32, (112, 112), (3, 3), (1, 1), (1, 1), 32),
    ("mobilenetv2 pw 32-16@112", 1, 32, 16, (112, 112), (1, 1), (1, 1), (0, 0), 1),
    ("mobilenetv2 pw 16-96@112", 1, 16, 96, (112, 112), (1, 1), (1, 1), (0, 0), 1),
    ("mobilenetv2 dw 3x3 s2 96@112", 1, 96, 96, (112, 112), (3, 3), (2, 2), (1, 1), 96),
    ("mobilenetv2 pw 96-24@56", 1, 96, 24, (56, 56), (1, 1), (1, 1), (0, 0), 1),
    ("mobilenetv2 pw 24-144@56", 1, 24, 144, (56, 56), (1, 1), (1, 1), (0, 0), 1),
    ("mobilenetv2 dw 3x3 144@56", 1, 144, 144, (56, 56), (3, 3), (1, 1), (1, 1), 144),
    ("mobilenetv2 pw 192-32@28", 1, 192, 32, (28, 28), (1, 1), (1, 1), (0, 0), 1),
    ("mobilenetv2 pw 64-384@14", 1, 64, 384, (14, 14), (1, 1), (1, 1), (0, 0), 1),
    ("mobilenetv2 pw 576-96@14", 1, 576, 96, (14, 14), (1, 1), (1, 1), (0, 0), 1),
    ("mobilenetv2 dw 3x3 576@14", 1, 576, 576, (14, 14), (3, 3), (1, 1), (1, 1), 576),
    ("mobilenetv2 pw 160-960@7", 1, 160, 960, (7, 7), (1, 1), (1, 1), (0, 0), 1),
    ("mobilenetv2 pw 320-1280@7", 1, 320, 1280, (7, 7), (1, 1), (1, 1), (0, 0), 1),
    ("efficientnet dw 5x5 s2 144@56", 1, 144, 144, (56, 56), (5, 5), (2, 2), (2, 2), 144),
    ("efficientnet dw 5x5 240@28", 1, 240, 240, (28, 28), (5, 5), (1, 1), (2, 2), 240),
    ("efficientnet dw 5x5 672@14", 1, 672, 672, (14, 14), (5, 5), (1, 1), (2, 2), 672),
    ("efficientnet dw 5x5 1152@7", 1, 1152, 1152, (7, 7), (5, 5), (1, 1), (2, 2), 1152),
    ("efficientnet pw 672-112@14", 1, 672, 112, (14, 14), (1, 1), (1, 1), (0, 0), 1),
    ("efficientnet pw 1152-192@7", 1, 1152, 192, (7, 7), (1, 1), (1, 1), (0, 0), 1),
    ("crepe 512/4 1-1024", 1, 1, 1024, (1024, 1), (512, 1), (4, 1), (254, 0), 1),
    ("crepe 64 1024-128@128", 1, 1024, 128, (128, 1), (64, 1), (1, 1), (32, 0), 1),
    ("crepe 64 128-128@64", 1, 128, 128, (64, 1), (64, 1), (1, 1), (32, 0), 1),
    ("crepe 64 128-256@16", 1, 128, 256, (16, 1), (64, 1), (1, 1), (32, 0), 1),
    ("crepe 64 256-512@8", 1, 256, 512, (8, 1), (64, 1), (1, 1), (32, 0), 1),
    ("crepe 64 256-512@8 batch 16", 16, 256, 512, (8, 1), (64, 1), (1, 1), (32, 0), 1),
    ("resnet50 first 7x7 s2", 1, 3, 64, (224, 224), (7, 7), (2, 2), (3, 3), 1),
    ("resnet50 3x3 64@56", 1, 64, 64, (56, 56), (3, 3), (1, 1), (1, 1), 1),
    ("resnet50 1x1 64-256@56", 1, 64, 256, (56, 56), (1, 1), (1, 1), (0, 0), 1),
    ("resnet50 3x3 s2 128@56", 1, 128, 128, (56, 56), (3, 3), (2, 2), (1, 1), 1),
    ("resnet50 3x3 s2 256@28", 1, 256, 256, (28, 28), (3, 3), (2, 2), (1, 1), 1),
    ("resnet50 3x3 s2 512@14", 1, 512, 512, (14, 14), (3, 3), (2, 2), (1, 1), 1),
    ("resnet18 3x3 s2 64-128@56", 1, 64, 128, (56, 56), (3, 3), (2, 2), (1, 1), 1),
    ("resnet18 3x3 s2 128-256@28", 1, 128, 256, (28, 28), (3, 3), (2, 2), (1, 1), 1),
    ("resnet18 3x3 s2 256-512@14", 1, 256, 512, (14, 14), (3, 3), (2, 2), (1, 1), 1),
    ("3x3 s2 16-32@160", 1, 16, 32, (160, 160), (3, 3), (2, 2), (1, 1), 1),
    ("3x3 s2 32-64@160", 1, 32, 64, (160, 160), (3, 3), (2, 2), (1, 1), 1),
    ("3x3 s2 64-128@80", 1, 64, 128, (80, 80), (3, 3), (2, 2), (1, 1), 1),
    ("3x3 s2 128-256@40", 1, 128, 256, (40, 40), (3, 3), (2, 2), (1, 1), 1),
    ("3x3 s2 256-512@40", 1, 256, 512, (40, 40), (3, 3), (2, 2), (1, 1), 1),
    ("3x3 s2 256@56", 1, 256, 256, (56, 56), (3, 3), (2, 2), (1, 1), 1),
    ("3x3 s2 512@30", 1, 512, 512, (30, 30), (3, 3), (2, 2), (1, 1), 1),
    ("3x3 s2 32@28", 1, 32, 32, (28, 28), (3, 3), (2, 2), (1, 1), 1),
    ("resnet50 3x3 128@28", 1, 128, 128, (28, 28), (3, 3), (1, 1), (1, 1), 1),
    ("resnet50 1x1 512-128@28", 1, 512, 128, (28, 28), (1, 1), (1, 1), (0, 0), 1),
    ("resnet50 3x3 256@14", 1, 256, 256, (14, 14), (3, 3), (1, 1), (1, 1), 1),
    ("resnet50 3x3 512@7", 1, 512, 512, (7, 7), (3, 3), (1, 1), (1, 1), 1),
    ("resnet50 1x1 512-2048@7", 1, 512, 2048, (7, 7), (1, 1), (1, 1), (0, 0), 1),
    ("unet 3x3 32@256", 1, 32, 32, (256, 256), (3, 3), (1, 1), (1, 1), 1),
    ("unet 3x3 64@128", 1, 64, 64, (128, 128), (3, 3), (1, 1), (1, 1), 1),
    ("unet 3x3 128@64", 1, 128, 128, (64, 64), (3, 3), (1, 1), (1, 1), 1),
    ("unet 3x3 256@32", 1, 256, 256, (32, 32), (3, 3), (1, 1), (1, 1), 1),
    ("unet 3x3 512@16", 1, 512, 512, (16, 16), (3, 3), (1, 1), (1, 1), 1),
    ("3x3 16@112", 1, 16, 16, (112, 112), (3, 3), (1, 1), (1, 1), 1),
    ("3x3 16@14", 1, 16, 16, (14, 14), (3, 3), (1, 1), (1, 1), 1),
    ("3x3 8@56", 1, 8, 8, (56, 56), (3, 3), (1, 1), (1, 1), 1),
    ("3x3 32@14", 1, 32, 32, (14, 14), (3, 3), (1, 1), (1, 1), 1),
    ("3x3 64@14", 1, 64, 64, (14, 14), (3, 3), (1, 1), (1, 1), 1),
    ("3x3 128@7", 1, 128, 128, (7, 7), (3, 3), (1, 1), (1, 1), 1),
    ("3x3 256@7", 1, 256, 256, (7, 7), (3, 3), (1, 1), (1, 1), 1),
    ("3x3 512@14", 1, 512, 512, (14, 14), (3, 3), (1, 1), (1, 1), 1),
    ("mtcnn onet 3x3 32-64@23", 8, 32, 64, (23, 23), (3, 3), (1, 1), (0, 0), 1),
]
PEAK_SOURCE = """
#include "effc_kernel.h"
typedef float V __attribute__((vector_size(EFFC_VLEN)));
static void work(void* arg, int64_t, int64_t, int32_t worker) {
  V acc[12], a = {}, b = {};
  for (auto& v : acc) v = V{};
  a[0] = 1.0f, b[0] = 1e-9f;
  for (int i = 0; i < 200000; ++i) {
    asm volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) acc[j] += a * b;
  }
  V s = {};
  for (auto& v : acc) s += v;
  ((V*)arg)[worker * 8] = s;
}
extern "C" __attribute__((visibility("default"))) int32_t peak(const effc_call* c) {
  c->api->parallel_for(c->run, c->api->num_threads(c->run), 1, work, c->scratch);
  return 0;
}
"""


def peak_gflops(isa: str, threads: int) -> Callable[[], float]:
    """A function that measures the multiply-add peak: 12 independent chains per thread, no memory."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "peak.cpp"
        source.write_text(PEAK_SOURCE)
        lib = KernelLibrary([], isa, extra=[source])

    def measure() -> float:
        times = np.zeros(5)
        lib.call("peak", [], [], scratch=threads * 1024, threads=threads, mode="threads", repeat=5, times=times)
        return 200000 * 12 * 2 * (lib.vlen // 4) * threads / float(times.min()) / 1e9

    return measure


def peers(layer: tuple[Any, ...], x: np.ndarray, w: np.ndarray, threads: int) -> dict[str, Callable[[int], float]]:
    """name -> function that runs n calls and returns seconds per call, for the peers that are installed."""
    _, _, _, _, _, _, stride, pad, groups = layer
    found: dict[str, Callable[[int], float]] = {}

    def timed(f: Callable[[], Any]) -> Callable[[int], float]:
        def run(count: int) -> float:
            start = time.perf_counter()
            for _ in range(count):
                f()
            return (time.perf_counter() - start) / count

        return run

    try:
        import torch

        torch.set_num_threads(threads)
        tx = torch.from_numpy(np.ascontiguousarray(x)).to(memory_format=torch.channels_last)
        tw = torch.from_numpy(w).to(memory_format=torch.channels_last)

        def eager() -> Any:
            with torch.inference_mode():
                return torch.nn.functional.conv2d(tx, tw, None, stride, pad, 1, groups)

        found["torch"] = timed(eager)
    except ImportError:
        pass
    try:
        import onnx
        import onnxruntime as ort

        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=stride, pads=[*pad, *pad], group=groups)],
            "conv",
            [onnx.helper.make_tensor_value_info("x", 1, x.shape)],
            [onnx.helper.make_tensor_value_info("y", 1, None)],
            [onnx.numpy_helper.from_array(w, "w")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)))
        binding.bind_output("y")
        found["onnxruntime"] = timed(lambda: session.run_with_iobinding(binding))
    except ImportError:
        pass
    return found


def by_winograd(
    lib: KernelLibrary, x: np.ndarray, w: np.ndarray, pad: Any, stride: int, threads: int
) -> dict[str, Any]:
    """name -> function that runs n calls and returns seconds per call, by tile size."""
    found = {}
    out = [(s + 2 * p - 3) // stride + 1 for s, p in zip(x.shape[2:], pad)]
    taken = winograd.choose(w.shape[1], w.shape[0], winograd.Image(x.shape[0], *out), stride)
    for tile in winograd.TILES:
        tiles = x.shape[0] * int(np.prod([-(-s // tile) for s in out]))
        blocks = packing.rule(w.shape[1], w.shape[0], tile, lib.vlen, tiles, stride)
        packed = aligned(packing.pack(w, tile, lib.vlen, blocks.nv, stride))

        def run(count: int, tile: int = tile, blocks: Any = blocks, packed: Any = packed) -> float:
            times = np.zeros(count)
            run_winograd(
                lib, x, w, pad, tile, stride=stride, blocking=blocks, packed=packed, threads=threads, repeat=count,
                times=times,
            )  # fmt: skip
            return float(times.mean())

        found[f"F{tile}{'*' * (tile == taken)}"] = run
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=available_isas()[-1], choices=available_isas())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--alone", action="store_true", help="no peers")
    parser.add_argument("--stat", choices=("median", "min"), default="median", help="min: on a machine with other load")
    args = parser.parse_args()
    stat = np.min if args.stat == "min" else np.median
    top = np.max if args.stat == "min" else np.median
    lib = KernelLibrary(["conv_f32.cpp", "conv_dw.cpp", "conv_winograd.cpp"], args.isa)
    peak = peak_gflops(args.isa, args.threads)
    rng = np.random.default_rng(0)
    print(
        f"{args.isa}, {args.threads} threads; ms (GFLOP/s) per engine; "
        "share: of the multiply-add peak; best/effc: > 1 is a win"
    )
    for layer in LAYERS:
        name, n, ci, co, size, kernel, stride, pad, groups = layer
        if args.only not in name:
            continue
        x = rng.standard_normal((n, ci, *size)).astype(np.float32)
        nhwc = channels_last(x) if ci > 3 else aligned(x)
        w = rng.standard_normal((co, ci // groups, *kernel)).astype(np.float32)
        engines: dict[str, Callable[[int], float]] = {}

        def ours(count: int, nhwc: Any = nhwc, w: Any = w, geometry: Any = (stride, pad, groups)) -> float:
            times = np.zeros(count)
            run_conv(lib, nhwc, w, *geometry[:2], (1, 1), geometry[2], threads=args.threads, repeat=count, times=times)
            return float(times.mean())

        engines["effc"] = ours
        if (kernel, groups) == ((3, 3), 1) and stride in ((1, 1), (2, 2)) and ci >= 8:
            engines |= by_winograd(lib, nhwc, w, pad, stride[0], args.threads)
        own = tuple(engines)
        if not args.alone:
            engines |= peers(layer, x, w, args.threads)
        flops = (
            2
            * n
            * co
            * (ci // groups)
            * np.prod(kernel)
            * np.prod([(s + 2 * p - k) // t + 1 for s, p, k, t in zip(size, pad, kernel, stride)])
        )
        once = {e: min(f(2), f(2)) for e, f in engines.items()}
        count = max(1, int(0.01 / max(once.values())))
        samples: dict[str, list[float]] = {e: [] for e in engines}
        peaks = []
        for _ in range(args.blocks):
            for e, f in engines.items():
                samples[e].append(f(count))
            peaks.append(peak())
        med = {e: float(stat(s)) for e, s in samples.items()}
        best = min((t for e, t in med.items() if e not in own), default=float("nan"))
        cells = "  ".join(f"{e} {t * 1e3:7.3f} ({flops / t / 1e9:6.1f})" for e, t in med.items())
        taken = next((t for e, t in med.items() if e.endswith("*")), med["effc"])
        share = flops / med["effc"] / 1e9 / top(peaks)
        print(
            f"{name:32s} {cells}  share {share:4.2f}  best/effc {best / taken:5.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
