"""The ONNX that effc writes beside the ONNX that torch.onnx writes, both run by onnxruntime, and eager torch.

    python -m bench.onnx_out [--models longconv,stft,irfft2,minilm] [--threads 2] [--rounds 15]

The engines take turns run by run, so that a change of the machine's speed meets all of them. Reported are medians and
minima in milliseconds, the largest error against eager relative to the largest value, and the size of the weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import effc


class LongConvolution(nn.Module):
    """A gated convolution as long as its input, through the spectrum (as in Hyena)."""

    def __init__(self, dims: int = 64, length: int = 8192) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(dims, length) / length**0.5)
        self.skip = nn.Parameter(torch.randn(dims))
        self.into, self.out = nn.Linear(dims, 2 * dims), nn.Linear(dims, dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, gate = self.into(x).transpose(1, 2).chunk(2, 1)
        n = u.shape[-1]
        spectrum = torch.fft.rfft(u, n=2 * n) * torch.fft.rfft(self.taps, n=2 * n)
        y = torch.fft.irfft(spectrum, n=2 * n)[..., :n] + u * self.skip[:, None]
        return self.out((y * nn.functional.silu(gate)).transpose(1, 2))


class LogMel(nn.Module):
    """A speech recogniser's front end."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(400))
        self.register_buffer("mel", torch.rand(80, 201))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = torch.view_as_real(torch.stft(x, 400, 160, window=self.window, return_complex=True))
        return torch.log(torch.clamp(self.mel @ s.pow(2).sum(-1), min=1e-10))


class SpectralFilter(nn.Module):
    """A two-dimensional filter in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 33, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * self.w, s=x.shape[-2:], norm="ortho")


def minilm() -> tuple[nn.Module, tuple[Any, ...]]:
    from tests.models import zoo

    loaded = zoo.load("minilm")
    return loaded.module, loaded.args


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "longconv": lambda: (LongConvolution(), (torch.randn(1, 8192, 64),)),
    "stft": lambda: (LogMel(), (torch.randn(1, 160000),)),
    "irfft2": lambda: (SpectralFilter(), (torch.randn(8, 16, 64, 64),)),
    "minilm": minilm,
}


def session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(name: str, threads: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, args = MODELS[name]()
    model.eval()
    runs: dict[str, Callable[[], Any]] = {"eager": lambda: model(*args)}
    sizes: dict[str, float] = {}
    why = ""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for kind in ("effc", "torch.onnx"):
            path = Path(folder) / f"{kind}.onnx"
            try:
                if kind == "effc":
                    effc.compile(model, args, target="onnx").save(path)
                else:
                    torch.onnx.export(model, args, path, dynamo=True, verbose=False)
            except Exception as e:  # what the peer cannot export is a result too
                if kind == "effc":
                    raise
                why = f"torch.onnx: {type(e).__name__}"
                continue
            sizes[kind] = sum(p.stat().st_size for p in Path(folder).glob(f"{kind}.onnx*")) / 1e6
            s = session(path, threads)
            feeds = {i.name: a.numpy() for i, a in zip(s.get_inputs(), args)}
            runs[kind] = lambda s=s, feeds=feeds: s.run(None, feeds)  # type: ignore[misc]
        leaves = [t.numpy() for t in torch.utils._pytree.tree_leaves(runs["eager"]()) if isinstance(t, torch.Tensor)]
        out: dict[str, Any] = {"model": name, "note": why}
        times: dict[str, list[float]] = {k: [] for k in runs}
        for kind in runs.keys() - {"eager"}:
            got = runs[kind]()
            out[f"{kind} error"] = max(
                float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, leaves, strict=False)
            )
        for f in runs.values():
            f()
        for _ in range(rounds):
            for kind, f in runs.items():
                start = time.perf_counter()
                f()
                times[kind].append((time.perf_counter() - start) * 1e3)
    for kind, ts in times.items():
        out[f"{kind} ms"] = (float(np.median(ts)), min(ts))
    out["MB"] = sizes
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default=",".join(MODELS))
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=15)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    print("| model | eager | torch.onnx | effc | effc / torch.onnx | error of torch.onnx | error of effc | MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in a.models.split(","):
        r = measure(name, a.threads, a.rounds)
        ms = {k: r.get(f"{k} ms") for k in ("eager", "torch.onnx", "effc")}
        cells = [f"{v[0]:.1f} ({v[1]:.1f})" if v else r["note"] for v in ms.values()]
        ratio = f"{ms['torch.onnx'][0] / ms['effc'][0]:.2f}x faster" if ms["torch.onnx"] and ms["effc"] else "-"
        errors = [f"{r[k]:.1e}" if k in r else "-" for k in ("torch.onnx error", "effc error")]
        size = " / ".join(f"{r['MB'].get(k, 0):.1f}" for k in ("torch.onnx", "effc"))
        print(f"| {name} | {' | '.join(cells)} | {ratio} | {' | '.join(errors)} | {size} |", flush=True)


if __name__ == "__main__":
    main()
