"""One function per engine: a module and its inputs become a callable that runs it once on ``threads`` threads.

Every engine computes in float32: OpenVINO and oneDNN would use bfloat16 on CPUs with AMX if they were let. The callable
returns a list of numpy arrays or torch tensors in the order of the model's outputs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], list[Any]]


def _leaves(out: Any) -> list[Any]:
    import torch

    if isinstance(out, torch.Tensor):  # the walk takes 1.5 us, a small product 20
        return [out]
    return [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]


def _tensors(args: tuple[Any, ...]) -> list[Any]:
    import torch

    return [x for x in args if isinstance(x, torch.Tensor)]


def _torch_setup(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.set_grad_enabled(False)


def onnx_file(module: Any) -> Path | None:
    """The file of a model that is one and no torch module, else None."""
    return getattr(module, "onnx_file", None)


def _with_sizes(file: Path, inputs: list[Any], out: Path) -> None:
    """A file's model for these sizes of its inputs alone."""
    import onnx

    model = onnx.load(file)
    for i, t in zip(model.graph.input, inputs, strict=True):
        for d, n in zip(i.type.tensor_type.shape.dim, t.shape, strict=True):
            d.dim_value = n
    onnx.save(model, out)


def eager(module: Any, args: tuple[Any, ...], threads: int, work: Path) -> Run:
    _torch_setup(threads)
    return lambda: _leaves(module(*args))


def torch_compile(module: Any, args: tuple[Any, ...], threads: int, work: Path) -> Run:
    """Inductor with weights frozen into the graph and its autotuner on."""
    import torch
    import torch._inductor.config as config

    if onnx_file(module) is not None:
        raise ValueError("the model is an ONNX file")
    _torch_setup(threads)
    config.freezing = True
    compiled = torch.compile(module, mode="max-autotune", dynamic=False)
    return lambda: _leaves(compiled(*args))


def _onnx(module: Any, args: tuple[Any, ...], work: Path) -> Path:
    """The model as ONNX with the inputs' own sizes. LSTMs go through the older exporter, which keeps them whole."""
    import torch

    path = work / "model.onnx"
    if not path.exists() and (file := onnx_file(module)) is not None:
        _with_sizes(file, _tensors(args), path)
    if not path.exists():
        recurrent = any(isinstance(m, torch.nn.RNNBase) for m in module.modules())
        names = [f"input{i}" for i in range(len(_tensors(args)))]
        part = work / "part.onnx"
        if recurrent:
            torch.onnx.export(module, args, str(part), dynamo=False, input_names=names, opset_version=17)
        else:
            torch.onnx.export(
                module, args, str(part), dynamo=True, input_names=names, external_data=False, verbose=False
            )
        part.replace(path)
    return path


def _onnx_session(path: Path, args: tuple[Any, ...], threads: int) -> Run:
    """The file in onnxruntime at its highest level of optimisation."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    feed = dict(zip(names, [t.numpy() for t in _tensors(args)], strict=True))
    return lambda: session.run(None, feed)


def onnxruntime(module: Any, args: tuple[Any, ...], threads: int, work: Path) -> Run:
    return _onnx_session(_onnx(module, args, work), args, threads)


def _onnx_file(name: str) -> Callable[[Any, tuple[Any, ...], int, Path], Run]:
    """An engine for a file that lies in the work folder already."""
    return lambda module, args, threads, work: _onnx_session(work / f"{name}.onnx", args, threads)


def openvino(module: Any, args: tuple[Any, ...], threads: int, work: Path) -> Run:
    return _openvino_request(_onnx(module, args, work), args, threads)


def _openvino_file(name: str) -> Callable[[Any, tuple[Any, ...], int, Path], Run]:
    return lambda module, args, threads, work: _openvino_request(work / f"{name}.onnx", args, threads)


def _openvino_request(path: Path, args: tuple[Any, ...], threads: int) -> Run:
    import openvino as ov

    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = ov.Core().compile_model(str(path), "CPU", config)
    request = compiled.create_infer_request()
    feed = [t.numpy() for t in _tensors(args)]

    def run() -> list[Any]:
        request.infer(feed, share_inputs=True, share_outputs=True)
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return run


def artifact(module: Any, args: tuple[Any, ...], work: Path) -> Path:
    """The model compiled by effc and saved, with the inputs' own sizes."""
    import effc as _effc

    path = work / "model.effc"
    if not path.exists():
        part = work / "part.effc"
        made = _effc.compile(module, args) if onnx_file(module) is None else _effc.compile(_onnx(module, args, work))
        made.save(part)
        part.replace(path)
    return path


def loaded(path: Path, args: tuple[Any, ...], threads: int, files: bool = False) -> tuple[Any, Run]:
    """An artifact loaded, and a run of it; ``files``: of a model that was a file, which takes arrays."""
    import effc as _effc

    model = _effc.load(path, num_threads=threads)
    if not files:
        return model, lambda: _leaves(model(*args))
    arrays = [t.numpy() for t in _tensors(args)]
    return model, lambda: list(model(*arrays))


def effc(module: Any, args: tuple[Any, ...], threads: int, work: Path) -> Run:
    """Compiled and saved, then loaded from the file, so that what is measured is what a user ships."""
    _torch_setup(threads)
    return loaded(artifact(module, args, work), args, threads, onnx_file(module) is not None)[1]


def tvm(module: Any, args: tuple[Any, ...], threads: int, work: Path) -> Run:
    """TVM's own frontends and its default pipeline for this CPU. Its kernels are not tuned: a search takes hours."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    import tvm as _tvm
    from tvm import relax

    from effc.backends.cpu.target import host

    _torch_setup(threads)
    if onnx_file(module) is None:
        import torch
        from tvm.relax.frontend.torch import from_exported_program

        imported = from_exported_program(torch.export.export(module, args))
    else:
        import onnx
        from tvm.relax.frontend.onnx import from_onnx

        imported = from_onnx(onnx.load(_onnx(module, args, work)))
    cpu = {"kind": "llvm", "mcpu": host().level, "num-cores": threads}  # LLVM's own guess may be more than is enabled
    machine = relax.VirtualMachine(_tvm.compile(imported, target=_tvm.target.Target(cpu)), _tvm.cpu())
    handed = [_tvm.runtime.tensor(t.numpy()) for t in _tensors(args)]

    def run() -> list[Any]:
        out = machine["main"](*handed)
        return [t.numpy() for t in ([out] if hasattr(out, "numpy") else out)]

    return run


def _effc_file(name: str) -> Callable[[Any, tuple[Any, ...], int, Path], Run]:
    """effc on an ONNX file in the work folder."""

    def engine(module: Any, args: tuple[Any, ...], threads: int, work: Path) -> Run:
        import effc as _effc

        _torch_setup(threads)
        model = _effc.compile(work / f"{name}.onnx", num_threads=threads)
        arrays = [t.numpy() for t in _tensors(args)]
        return lambda: list(model(*arrays))

    return engine


ONNX_FILES = ("torch.onnx", "effc.onnx", "effc.onnx.ort")  # which bench.onnx_out writes

ENGINES: dict[str, Callable[[Any, tuple[Any, ...], int, Path], Run]] = {
    "effc": effc,
    "eager": eager,
    "torch.compile": torch_compile,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "tvm": tvm,
    **{name: _onnx_file(name) for name in ONNX_FILES},
    # of bench.int8, which writes int8.onnx and, for most models, f32.onnx
    **{f"onnxruntime.{k}": _onnx_file(k) for k in ("int8", "f32")},
    **{f"openvino.{k}": _openvino_file(k) for k in ("int8", "f32")},
    **{f"effc.{k}": _effc_file(k) for k in ("int8", "f32")},
}


def work_dir() -> Path:
    path = Path(os.environ.get("EFFC_BENCH_DIR") or tempfile.mkdtemp(prefix="effc-bench-"))
    path.mkdir(parents=True, exist_ok=True)
    return path
