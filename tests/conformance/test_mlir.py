"""The target ``mlir``: modules of the torch dialect. torch-mlir parses and verifies them; they are judged by PyTorch's
own operators, by MLIR (lowered and compiled by torch-mlir, ``mlir_engine.py``) and by reading them back.

torch-mlir is not among the packages of the ``test`` extra: without it these tests are skipped.
"""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import effc
from effc.conformance.compare import difference
from effc.conformance.ops import Case, Group, Runner, check, failures, groups, samples
from effc.conformance.ops import build as build_cases
from effc.ir import OPS
from effc.ir.interp import Interpreter
from effc.ir.op import Sample
from effc.passes.legalise import Legalise
from tests.models import zoo

pytest.importorskip("torch_mlir", reason="torch-mlir is not installed: pip install 'effc[mlir]'")
GROUPS = dict(groups())
NO_TYPE = "the torch dialect has no tensors of "  # a refusal that the samples' element types explain

# What the target does not write, with the reason: how many samples of which op.
NO_ATEN = "no ATen operator computes this"
REFUSED: dict[str, dict[str, int]] = {
    "histogram": {NO_ATEN: 20},
    "linalg_lu_det": {NO_ATEN: 20},
    "nms": {NO_ATEN: 9},
    "avg_pool": {"ATen has no means of i64": 14},
    "conv": {"ATen has no convolution of i32": 1, "ATen has no convolution of i64": 2},
    "conv_transpose": {"ATen has no convolution of i64": 1},
    "qconv": {"ATen has no convolution of i32": 16},
    "grid_sample": {"coordinates in pixels": 18},
    "resize": {
        "ATen resizes no c64": 1, "ATen resizes no i64": 1, "a resize as ONNX alone has it": 3,
        "coordinates half_pixel_symmetric": 12, "coordinates pytorch_half_pixel": 12,
        "nearest neighbours that ATen rounds in another way": 4,
    },
    "scatter": {"a prod of c64": 8},
}  # fmt: skip
# Functions that PyTorch computes less exactly than the references do in f64.
ACCURACY = {
    "airy_ai": 1e-5, "bessel_j0": 1e-5, "bessel_j1": 1e-5, "bessel_y0": 1e-5, "bessel_y1": 1e-5, "igamma": 1e-8,
    "igammac": 1e-8,
}  # fmt: skip


def refusal(op: Any, sample: Sample) -> str | None:
    from effc.backends.mlir import native, why_not

    graph = Legalise(native).run(build_cases([(op, sample)]).graph)
    return next((r for n in graph.nodes if (r := why_not(n)) is not None), None)


def written(names: list[str]) -> tuple[list[Any], dict[str, dict[str, int]]]:
    """The samples that the target writes, and the reasons for the others."""
    cases, reasons = [], {}
    for op in (OPS[n] for n in names):
        refused: collections.Counter[str] = collections.Counter()
        for s in samples(op):
            reason = refusal(op, s)
            if reason is None:
                # LU without pivoting has an operator, of which PyTorch's CPU has no kernel.
                if not (op.name == "linalg_lu_factor" and not s.attrs.get("pivot", True)):
                    cases.append((op, s))
            elif not reason.startswith(NO_TYPE):
                refused[reason] += 1
        if refused:
            reasons[op.name] = dict(refused)
    return cases, reasons


def text_of(group: Group) -> str:
    """The module of a group of samples."""
    from effc.backends.mlir import build, native

    return str(build({"main": Legalise(native).run(group.graph)}).module)


def problem_of(case: Case, got: Any, want: Any) -> str:
    if case.op.name not in ACCURACY or want[0].dtype != np.float64:
        return check(case, got, want)
    return difference(got[0], want[0], ACCURACY[case.op.name])


QUICK = ["conv", "where", "concat", "irfft", "bincount", "unique", "complex", "rnn_layer"]


@pytest.mark.parametrize("name", QUICK)
def test_op(name: str) -> None:
    check_ops([name])


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_op_table(name: str) -> None:
    check_ops(GROUPS[name])


def check_ops(names: list[str]) -> None:
    """Refusals are those expected, PyTorch's operators give the references' results, and so does the module read back
    and run by the numpy interpreter."""
    cases, reasons = written(names)
    assert reasons == {n: REFUSED[n] for n in names if n in REFUSED}
    if not cases:
        return
    group = build_cases(cases)
    want = group.expected()
    got = Runner(group.graph, "mlir").run(group.arrays)
    wrong = [(c, p) for c in group.cases if (p := problem_of(c, got[c.outputs], want[c.outputs]))]
    assert not wrong, f"{len(wrong)} samples:\n" + "\n".join(f"{c}: {p}" for c, p in wrong[:40])
    back = Interpreter().run(read(text_of(group)).graph, group.arrays)
    problems = failures(group, back, want)
    assert not problems, f"{len(problems)} samples, read back:\n" + "\n".join(problems[:40])


def read(text: str) -> Any:
    from torch_mlir import ir

    from effc.backends.mlir.build import new_context
    from effc.frontend.mlir import ModuleImporter
    from effc.frontend.torch import registry

    registry.load()
    with new_context():
        return ModuleImporter(ir.Module.parse(text), text).run()


LOWERED = "add mul exp where matmul concat slice permute reduce gather index rsqrt broadcast_to".split()


def test_mlir_itself_gives_the_same() -> None:
    from .mlir_engine import run

    cases = []
    for op in (OPS[n] for n in LOWERED):
        full = [s for s in samples(op) if all(np.asarray(a).size for a in s.inputs)]
        cases += [(op, s) for s in full if np.asarray(s.inputs[0]).dtype == np.float32][:2]
    group = build_cases(cases)
    (got,) = run(text_of(group), [group.arrays])
    problems = failures(group, got, group.expected())
    assert not problems, "\n".join(problems)


class Small(nn.Module):
    """A linear layer, a softmax and a reduction over a dynamic batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.softmax(self.inner(x), -1), x.sum(0) * x.shape[0]


BATCH = {"x": {0: Dim("n", min=1, max=64)}}


def same(got: Any, want: Any) -> None:
    got, want = torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want)
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        problem = difference(np.asarray(a), b.detach().numpy(), 1e-4)
        assert not problem, problem


def test_dynamic_sizes_by_every_judge(tmp_path: Path) -> None:
    from .mlir_engine import run

    model = Small()
    m = effc.compile(model, (torch.randn(5, 4),), target="mlir", dynamic_shapes=BATCH)
    path = tmp_path / "model.mlir"
    m.save(path)
    assert path.read_text() == m.text and "torch.aten.mm" in m.text and "vtensor<[?,4],f32>" in m.text
    readers = [effc.compile(path, target=t) for t in ("reference", "cpu")]
    m.save(tmp_path / "plain.mlir", symbols=False)
    plain = (tmp_path / "plain.mlir").read_text()
    given = [torch.randn(n, 4) for n in (1, 2, 7)]
    for x, lowered in zip(given, run(plain, [[x.numpy()] for x in given]), strict=True):
        same(m(x), model(x))
        same(lowered, model(x))
        for r in readers:
            same(r(x), model(x))
    with pytest.raises(effc.EffcError, match="outside its bounds"):
        m(torch.randn(65, 4))


class Spectrum(nn.Module):
    """Sizes that are computed, transforms, and a result whose size the data decide."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.fft.irfft(torch.fft.rfft(x) * 2, n=8)
        return y, torch.arange(x.shape[0]), x.repeat(2, 1), x.nonzero(), x[x > 0] * 2


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear")


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.reshape(-1, 1, 8))[0]


@pytest.mark.parametrize(
    "model,shape", [(Spectrum(), (8,)), (Image(), (3, 17, 18)), (Recurrent(), (8,))], ids=["spectrum", "image", "gru"]
)
def test_dynamic_sizes_read_back(model: nn.Module, shape: tuple[int, ...]) -> None:
    m = effc.compile(model.eval(), (torch.randn(4, *shape),), target="mlir", dynamic_shapes=BATCH)
    back = effc.compile(m.module, target="reference")
    for n in (1, 4, 6):
        x = torch.randn(n, *shape)
        with torch.no_grad():
            want = model(x)
        same(m(x), want)
        same(back(x), want)


def test_bytecode(tmp_path: Path) -> None:
    from torch_mlir import ir

    from effc.backends.mlir.build import new_context

    m = effc.compile(Small(), (torch.randn(5, 4),), target="mlir")
    m.save(tmp_path / "model.mlirbc")
    with new_context():
        assert str(ir.Module.parse((tmp_path / "model.mlirbc").read_bytes())) == m.text


class Counts(nn.Module):
    """A buffer that each call advances."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(x.sum(0))
        return self.count * 2


def test_state_is_kept() -> None:
    x = torch.randn(4, 3)
    m, want = effc.compile(Counts(), (x,), target="mlir"), Counts()
    assert m.report["functions"]["main"] == {"arguments": ["x", "state.count"], "results": ["y0", "state.count.next"]}
    for _ in range(3):
        same(m(x), want(x))
    same(m.session()(x), x.sum(0) * 2)


class Steps(nn.Module):
    """A loop whose end the data decide, and a branch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def go(i: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (y.sum() < 100) & (i < 50)

        def step(i: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return i + 1, y * 2

        _, y = torch._higher_order_ops.while_loop(go, step, (torch.tensor(0), x))
        return torch.cond(y.sum() > 200, lambda y: y - 1, lambda y: y + 1, (y,))


def test_control_flow() -> None:
    model, x = Steps(), torch.rand(3, 2) + 0.1
    m = effc.compile(model, (x,), target="mlir")
    assert {"prim.Loop", "prim.If"} <= set(m.report["ops"])
    back = effc.compile(m.module, target="reference")
    for given in (x, x * 40):
        same(m(given), model(given))
        same(back(given), model(given))


def test_entry_points_are_functions() -> None:
    a, b = nn.Linear(4, 3), nn.ReLU()
    x = torch.randn(2, 4)
    m = effc.compile_entries({"first": effc.Entry(a, (x,)), "second": effc.Entry(b, (x,))}, target="mlir")
    assert "func.func @first" in m.text and "func.func @second" in m.text
    same(m.entry("first")(x), a(x))
    same(m.entry("second")(x), b(x))


def test_what_torch_mlir_lacks_is_reported() -> None:
    class Sorts(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.fft.rfft(x), x.sort(stable=True)[0]

    x = torch.randn(8)
    m = effc.compile(Sorts(), (x,), target="mlir")
    assert m.report["opaque"] == {"aten.sort.stable": 1} and m.report["ops"]["aten.fft_rfft"] == 1
    same(m(x), Sorts()(x))


def test_refusals_are_listed_at_once() -> None:
    class Refused(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            y = torch.nn.functional.conv1d(x.to(torch.int64), torch.ones(1, 1, 3, dtype=torch.int64))
            return y, torch.histogramdd(x.reshape(-1, 2), [3, 3])[0]

    with pytest.raises(effc.EffcError, match=r"(?s)cannot be written in the torch dialect.*conv \(.*histogram \("):
        effc.compile(Refused(), (torch.randn(1, 1, 8),), target="mlir")
    with pytest.raises(effc.EffcError, match="not available"):
        effc.compile(nn.ReLU(), (torch.randn(8),), target="mlir:nosuch")


def test_target_is_listed() -> None:
    assert {"name": "mlir", "runs_here": True, "missing": []} in effc.targets()


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_minilm(dynamic: bool, tmp_path: Path) -> None:
    loaded = zoo.load("minilm")
    shapes = loaded.dynamic_shapes if dynamic else None
    m = effc.compile(loaded.module, loaded.args, target="mlir", dynamic_shapes=shapes)
    assert not m.report["opaque"]
    path = tmp_path / "minilm.mlir"
    m.save(path)
    back = effc.compile(path)
    for args in [loaded.args, *(loaded.sizes[1:] if dynamic else [])]:
        with torch.no_grad():
            want = loaded.module(*args)
        same(list(m(*args).values()), list(want.values()))
        same(back(*args), list(want.values()))


@pytest.mark.slow
def test_minilm_by_mlir_itself() -> None:
    from .mlir_engine import run

    loaded = zoo.load("minilm")
    m = effc.compile(loaded.module, loaded.args, target="mlir")
    with torch.no_grad():
        want = loaded.module(*loaded.args)
    same(run(m.text, [[a.numpy() for a in loaded.args]])[0], list(want.values()))
