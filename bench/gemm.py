"""float32 matrix multiplication beside torch (MKL/oneDNN), and the share of this machine's FMA peak.

    python bench/gemm.py [--isa v3|v4] [--threads 2] [--rounds 15] [--mkn 128x384x1536 ...]

Both engines use the same number of threads and run in alternating blocks in one process; medians are reported.
``packed`` is a constant right-hand side (a Linear layer), ``plain`` a right-hand side known only at run time; ``bf16``
and ``f16`` are packed ones of those types, with operands and results of theirs too.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "null")]

import kernel_harness as h  # noqa: E402

from effc.backends.cpu.microkernels import choose  # noqa: E402
from effc.backends.cpu.packing.gemm import pack_gemm_b, panel_width, thread_scratch  # noqa: E402
from effc.backends.cpu.target import CpuTarget  # noqa: E402
from effc.ir.dtypes import DType  # noqa: E402

PEAK = r"""
#include "effc_kernel.h"
#include "simd.hpp"
EFFC_EXPORT int32_t effc_peak(const effc_call* call) {
  /* attr: loops. 12 independent chains of FMAs on each thread. */
  const int64_t loops = call->attr[0];
  auto body = [](void* arg, int64_t, int64_t, int32_t worker) {
    const effc_call* c = (const effc_call*)arg;
    effc::Vec<float> acc[12], x = effc::splat(0.999f), y = effc::splat(0.001f);
    for (int i = 0; i < 12; ++i) acc[i] = effc::splat((float)i);
    for (int64_t l = 0; l < c->attr[0]; ++l) {
      EFFC_UNROLL_ALL
      for (int i = 0; i < 12; ++i) acc[i] = acc[i] * x + y;
    }
    float sum = 0;
    for (int i = 0; i < 12; ++i) sum += effc::sum_lanes<float>(acc[i]);
    ((float*)c->out[0].data)[worker * 16] = sum;
  };
  call->api->parallel_for(call->run, call->api->num_threads(call->run), 1, body, (void*)call);
  return loops < 0;
}
"""
SHAPES = (
    "128x384x384 128x384x1152 128x384x1536 128x1536x384 1x384x1536 8x384x1536 31x384x384 512x576x1536 2048x2048x2048"
)


def scratch(vlen: int) -> dict[str, int]:
    """Scratch of effc_matmul_f32; see gemm.hpp."""
    return {"thread_scratch": thread_scratch(DType.f32, vlen), "scratch": 64 << 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=list(h.ISAS), default=h.available_isas()[-1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mkn", nargs="*", default=SHAPES.split())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peak_source = Path(h.tempfile.gettempdir()) / f"effc-bench-peak-{h.os.getuid()}.cpp"
    peak_source.write_text(PEAK)
    lib = h.KernelLibrary(["gemm_f32.cpp", "gemm_half.cpp"], args.isa, [peak_source])
    lanes = lib.vlen // 4
    rng = np.random.default_rng(0)

    def effc_seconds(kernel: str, ins: list[np.ndarray], out: np.ndarray, attrs: list[int], loops: int) -> list[float]:
        times = np.zeros(loops)
        mode = "threads" if args.threads > 1 else "serial"
        lib.call(
            kernel, ins, [out], attrs, threads=args.threads, mode=mode, repeat=loops, times=times, **scratch(lib.vlen)
        )
        return list(times)

    def peak() -> float:
        loops = 200_000
        t = np.zeros(5)
        sums = np.zeros(16 * args.threads, np.float32)
        lib.call("effc_peak", [], [sums], [loops], threads=args.threads, mode="threads", repeat=5, times=t)
        return 2.0 * 12 * lanes * loops * args.threads / float(t.min()) / 1e9

    print(f"isa {args.isa}, {args.threads} threads; GFLOP/s, medians of {args.rounds} alternating blocks")
    heads = ("torch", "packed", "plain", "bf16", "f16")
    print(
        f"{'M x K x N':>18} "
        + " ".join(f"{x:>8}" for x in heads)
        + f" {'ratio':>6} {'ratio':>6} {'peak':>8} {'share':>6}"
    )
    for text in args.mkn:
        m, k, n = map(int, text.split("x"))
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        packed, out = pack_gemm_b(b, panel_width(DType.f32, lib.vlen)), np.empty((1, 1, m, n), np.float32)
        short = {}
        for name, dtype in (("bf16", DType.bf16), ("f16", DType.f16)):
            kr = choose(CpuTarget("x86-64-v4" if lib.vlen == 64 else "x86-64-v3"), "matmul", dtype).kr
            right = pack_gemm_b(b.astype(dtype.np), panel_width(dtype, lib.vlen), kr)
            short[name] = (a.astype(dtype.np)[None, None], right, np.empty((1, 1, m, n), dtype.np))
        ta, tw = torch.from_numpy(a), torch.from_numpy(np.ascontiguousarray(b.T))
        flops = 2.0 * m * k * n
        loops = max(3, int(2e8 / flops))
        seconds: dict[str, list[float]] = {"torch": [], "packed": [], "plain": [], "bf16": [], "f16": []}
        peaks = []
        with torch.inference_mode():
            for _ in range(args.rounds):
                peaks.append(peak())
                times = []
                for _ in range(loops):
                    start = time.perf_counter()
                    torch.nn.functional.linear(ta, tw)
                    times.append(time.perf_counter() - start)
                seconds["torch"].append(float(np.median(times)))
                seconds["packed"].append(
                    float(
                        np.median(
                            effc_seconds(
                                "effc_matmul_packed_f32", [a[None, None], packed], out, [1, k, n, 0, 0, 0], loops
                            )
                        )
                    )
                )
                seconds["plain"].append(
                    float(
                        np.median(
                            effc_seconds("effc_matmul_f32", [a[None, None], b[None, None]], out, [0, 0, 0], loops)
                        )
                    )
                )
                for name, (left, right, result) in short.items():
                    found = effc_seconds(f"effc_matmul_packed_{name}", [left, right], result, [1, k, n, 0, 0, 0], loops)
                    seconds[name].append(float(np.median(found)))
        rate = {name: flops / float(np.median(t)) / 1e9 for name, t in seconds.items()}
        top = float(np.median(peaks))
        print(
            f"{text:>18} {rate['torch']:8.1f} {rate['packed']:8.1f} {rate['plain']:8.1f} "
            f"{rate['bf16']:8.1f} {rate['f16']:8.1f} "
            f"{rate['packed'] / rate['torch']:6.2f} {rate['plain'] / rate['torch']:6.2f} {top:8.1f} "
            f"{rate['packed'] / top:6.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
