"""Arenas of programs for any size beside those of programs compiled for one size.

    python -m bench.dynamic [MODEL ...] [--threads 2] [--peaks] [--above 1.05] [--json FILE]

Each model is compiled once for any size and once for each of its sizes here, small, odd and large, and both are loaded:
what is compared is the runtime's arena, with all orders that it tries. No kernel is compiled, as none is run: the code
of these artifacts is empty functions. ``--peaks`` prints what is live at the peak of both programs where the ratio is
above ``--above``. A row has the arena and the live bound of each program, and how many calls are of other kernels.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import effc
from bench.memory import MIB, table
from effc.runtime import memory
from effc.runtime.artifact import ArtifactReader


@dataclass(frozen=True)
class Case:
    """``load`` gives (module or ONNX file, example arguments, dynamic shapes); ``at`` arguments of given sizes."""

    load: Callable[[], tuple[Any, tuple[Any, ...], Any]]
    at: Callable[..., tuple[Any, ...]]
    sizes: Sequence[tuple[int, ...]]
    more: Mapping[str, Any] = field(default_factory=dict)


def _empty_code(names: Sequence[str], *_: Any) -> bytes:
    """A shared object that exports these names, as functions that do nothing."""
    from effc.backends.cpu.build import compiler

    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "empty.cpp", Path(folder) / "empty.so"
        source.write_text("".join(f'extern "C" void {n}() {{}}\n' for n in sorted(set(names))))
        subprocess.run([*compiler(), "-shared", "-fPIC", "-o", str(out), str(source)], check=True)
        return out.read_bytes()


def compiled(model: Any, args: tuple[Any, ...], dynamic: Any = None, threads: int = 2, **more: Any) -> Arenas:
    """A model's arenas, of an artifact whose kernels are empty."""
    from effc.backends.cpu import build, sources

    with (
        mock.patch.object(build, "shared_object", _empty_code),
        mock.patch.object(build, "warm", lambda *a: None),
        mock.patch.object(build, "foresee", lambda *a: None),
        mock.patch.object(sources, "bundle", lambda *a: {}),
        mock.patch.dict(os.environ, {"EFFC_MODEL_CACHE": "0"}),
        torch.no_grad(),
        tempfile.TemporaryDirectory() as folder,
    ):
        made = effc.compile(
            model if isinstance(model, Path) else copy.deepcopy(model), args, dynamic_shapes=dynamic,
            num_threads=threads, selftest=False, **more,
        )  # fmt: skip
        path = Path(folder) / "m.effc"
        made.save(path)
        with ArtifactReader(path) as r:
            return Arenas(effc.load(path, num_threads=threads), r.manifest)


@dataclass
class Arenas:
    loaded: Any
    manifest: Mapping[str, Any]

    @property
    def program(self) -> dict[str, Any]:
        found: dict[str, Any] = self.manifest["entries"]["main"]["program"]
        return found

    def sizes(self, args: Sequence[Any]) -> dict[str, int]:
        """What the symbols are for these arguments."""
        given = list(torch.utils._pytree.tree_leaves(args))
        env = {}
        for s in self.program["symbols"]:
            if where := s.get("from"):
                read = given[where["input"]].shape[where["dim"]]
                env[s["name"]] = (read - where.get("add", 0)) // where.get("mul", 1)
        return env

    def at(self, args: Sequence[Any]) -> memory.Map:
        """The runtime's arena for arguments of these sizes."""
        return memory.read(self.loaded, self.manifest, "main", self.sizes(args))

    def kernels(self) -> Counter[str]:
        return Counter(i.get("kernel", i["op"]) for i in self.program["code"])


def fixed(model: Any, args: Sequence[Any]) -> Any:
    """What makes the dims that an ONNX file leaves open those of ``args``; other models need nothing."""
    if not isinstance(model, Path):
        return None
    import onnx

    proto = onnx.load(model, load_external_data=False).graph
    weights = {w.name for w in proto.initializer}
    names = [i.name for i in proto.input if i.name not in weights]
    return {n: dict(enumerate(a.shape)) for n, a in zip(names, args, strict=True)}


def rows(name: str, case: Case, threads: int, peaks: float | None, sizes: Sequence[tuple[int, ...]]) -> Iterator[Any]:
    model, args, dynamic = case.load()
    began = time.perf_counter()
    anysize = compiled(model, args, dynamic, threads, **case.more)
    took = time.perf_counter() - began
    for size in sizes or case.sizes:
        given = case.at(*size)
        own = compiled(model, given, fixed(model, given), threads, **case.more)
        a, b = anysize.at(given), own.at(given)
        other = anysize.kernels(), own.kernels()
        ratio = a.arena / max(b.arena, 1)
        yield {
            "model": name,
            "sizes": "x".join(map(str, size)),
            "any size, MiB": a.arena / MIB,
            "its bound": a.bound / MIB,
            "own, MiB": b.arena / MIB,
            "own bound": b.bound / MIB,
            "ratio": round(ratio, 3),
            "calls": f"{len(a.steps)}, {len(b.steps)}",
            "other kernels": sum(((other[0] - other[1]) + (other[1] - other[0])).values()),
            "compile s": round(took, 1),
        }
        if peaks is not None and ratio > peaks:
            for what, m in (("any size", a), ("own", b)):
                print(f"\n{name} {size} {what}")
                print(memory.text(m, rows=200, blocks=14), flush=True)


def cases() -> dict[str, Case]:
    from bench.dense import DENSE
    from tests.models import zoo
    from tests.models.fetch import fetch

    def entry(name: str) -> Callable[[], Any]:
        return lambda: tuple(zoo.load(name)[:3])

    def image(low: int, high: int = 1024, by: int = 1, batch: int = 64) -> dict[int, Any]:
        sides = [torch.export.Dim(n, min=-(-low // by), max=high // by) for n in ("height", "width")]
        return {0: torch.export.Dim("batch", min=1, max=batch), 2: by * sides[0], 3: by * sides[1]}

    def dense(name: str, example: tuple[Any, ...], dynamic: Any) -> Callable[[], Any]:
        return lambda: (DENSE[name].load().module, example, dynamic)

    def file(package: str, path: str) -> Callable[[], Any]:
        return lambda: (fetch(package) / path, (), None)

    def floats(*shape: int) -> tuple[Any, ...]:
        return (torch.zeros(*shape),)

    def pictures(n: int, h: int, w: int) -> tuple[Any, ...]:
        return floats(n, 3, h, w)

    def tokens(n: int, length: int) -> tuple[Any, ...]:
        return (torch.ones(n, length, dtype=torch.int64),)

    images = [(1, 32, 32), (1, 33, 47), (3, 65, 96), (2, 97, 333), (1, 224, 224), (16, 224, 224)]
    batch = torch.export.Dim("batch", min=1, max=64)
    ocr = "rapidocr_onnxruntime/models/"
    return {
        "minilm": Case(
            entry("minilm"), lambda n, k: tokens(n, k) * 2,
            [(1, 1), (1, 12), (3, 37), (14, 5), (1, 128), (8, 128), (64, 512)],
        ),
        "smollm2": Case(entry("smollm2"), tokens, [(1, 1), (1, 12), (6, 7), (2, 37), (1, 128), (1, 200), (4, 512)]),
        "efficientnet_lite0": Case(entry("efficientnet_lite0"), pictures, [*images, (16, 320, 320)]),
        "mobilenet_v2": Case(entry("mobilenet_v2"), pictures, [*images, (4, 224, 224), (12, 401, 210)]),
        "resnet50": Case(
            dense("resnet50", pictures(2, 64, 96), {"x": image(32)}), pictures, [*images, (5, 32, 32), (1, 64, 64)]
        ),
        "unet": Case(
            dense("unet", pictures(2, 32, 48), {"x": image(16, by=16)}), pictures,
            [(1, 32, 32), (1, 32, 48), (3, 112, 208), (1, 256, 256), (2, 512, 1024)],
        ),
        "mtcnn_pnet": Case(
            entry("mtcnn_pnet"), pictures, [(1, 12, 12), (1, 17, 31), (2, 61, 47), (1, 240, 320), (16, 1024, 1024)]
        ),
        "mtcnn_rnet": Case(entry("mtcnn_rnet"), lambda n: pictures(n, 24, 24), [(1,), (3,), (32,), (1024,)]),
        "mtcnn_onet": Case(entry("mtcnn_onet"), lambda n: pictures(n, 48, 48), [(1,), (3,), (16,), (1024,)]),
        "crepe": Case(entry("crepe"), lambda n: (torch.zeros(n, 1024), False), [(1,), (3,), (8,), (256,)]),
        "resemblyzer": Case(
            entry("resemblyzer"), lambda n, k: floats(n, k, 40), [(1, 1), (2, 7), (1, 160), (3, 97), (64, 2000)]
        ),
        "vit_s16": Case(
            dense("vit_s16", pictures(2, 224, 224), {"x": {0: batch}}), lambda n: pictures(n, 224, 224),
            [(1,), (3,), (5,), (64,)],
        ),
        "whisper_tiny_encoder": Case(
            dense("whisper_tiny_encoder", floats(2, 80, 3000), {"x": {0: batch}}), lambda n: floats(n, 80, 3000),
            [(1,), (3,), (32,)],
        ),
        "rapidocr_det": Case(
            file("rapidocr", ocr + "ch_PP-OCRv4_det_infer.onnx"), pictures,
            [(1, 32, 32), (2, 64, 64), (1, 96, 160), (1, 736, 1280), (4, 640, 640)],
        ),
        "rapidocr_rec": Case(
            file("rapidocr", ocr + "ch_PP-OCRv4_rec_infer.onnx"), lambda n, w: pictures(n, 48, w),
            [(1, 16), (3, 100), (1, 320), (6, 320), (1, 1200)],
        ),
        "rapidocr_cls": Case(
            file("rapidocr", ocr + "ch_ppocr_mobile_v2.0_cls_infer.onnx"), lambda n: pictures(n, 48, 192),
            [(1,), (3,), (6,), (32,)],
        ),
        "magika": Case(
            file("magika", "magika/models/standard_v3_3/model.onnx"),
            lambda n: (torch.zeros(n, 2048, dtype=torch.int32),), [(1,), (5,), (64,)],
        ),
        "basic_pitch": Case(
            file("basic_pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx"), lambda n: floats(n, 43844, 1),
            [(1,), (3,), (16,)],
        ),
        "nudenet": Case(
            file("nudenet", "nudenet/320n.onnx"), pictures,
            [(1, 32, 32), (1, 96, 160), (2, 160, 224), (1, 320, 320), (1, 640, 640), (8, 320, 320)],
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.dynamic", description="arenas of programs for any size")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peaks", action="store_true", help="what is live at the peaks where the ratio is large")
    parser.add_argument("--above", type=float, default=1.05)
    parser.add_argument("--sizes", nargs="*", default=(), help="such as 1x32x32, instead of the model's")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    known = cases()
    if unknown := [m for m in a.models if m not in known]:
        raise SystemExit(f"no model {unknown[0]!r}; there are {', '.join(known)}")
    sizes = [tuple(map(int, s.split("x"))) for s in a.sizes]
    found = []
    for name in a.models or known:
        for row in rows(name, known[name], a.threads, a.above if a.peaks else None, sizes):
            found.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    print(table(found))
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
