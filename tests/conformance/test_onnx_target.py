"""The target ``onnx``: the op table's samples, and models, run by onnxruntime, against numpy and torch."""

from __future__ import annotations

import collections
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim

import effc
from effc.backends.onnx import build, native, why_not
from effc.backends.onnx.context import ONNX_TYPE
from effc.backends.onnx.emit import EMITTERS, load
from effc.conformance.compare import difference
from effc.conformance.ops import Runner, failures, groups, samples
from effc.conformance.ops import build as build_cases
from effc.ir import OPS, Builder, DType, TensorType
from effc.ir.op import Sample
from effc.passes.legalise import Legalise

onnxruntime = pytest.importorskip("onnxruntime")
GROUPS = dict(groups())
NONE = "ONNX has no counterpart"

# What the target does not write, by op: how many of its samples, and why. Nothing else may be refused.
REFUSED: dict[str, tuple[int | None, str]] = {  # None: all samples
    **dict.fromkeys(
        (
            "airy_ai bessel_j0 bessel_j1 bessel_y0 bessel_y1 modified_bessel_k0 modified_bessel_k1 "
            "scaled_modified_bessel_k0 scaled_modified_bessel_k1 igamma igammac ndtri linalg_lu_factor linalg_lu_solve "
            "linalg_lu_det linalg_lu_unpack linalg_solve_triangular linalg_cholesky linalg_cholesky_solve linalg_geqrf "
            "linalg_householder_product linalg_ormqr linalg_qr linalg_eigh linalg_svd linalg_eig linalg_ldl_factor "
            "linalg_ldl_solve linalg_matrix_exp"
        ).split(),
        (None, NONE),
    ),
    "scatter": (8, "a product of complex numbers"),
}


def refusal(op: Any, sample: Sample) -> str | None:
    graph = Legalise(native).run(build_cases([(op, sample)]).graph)
    return next((r for n in graph.nodes if (r := why_not(n)) is not None), None)


def stored_only(op: str, sample: Any) -> bool:
    """Whether a sample has a type that onnxruntime takes in no kernel, or not in that of BitCast."""
    no_bits = (DType.f8e4m3, DType.f8e5m2) if op == "bitcast" else ()
    types = [DType.from_np(x.dtype) for x in sample.inputs if x is not None] + [sample.attrs.get("dtype")]
    return any(isinstance(t, DType) and (t not in ONNX_TYPE or t in no_bits) and not t.is_complex for t in types)


@pytest.mark.parametrize("name", GROUPS)
def test_op_table(name: str) -> None:
    cases = []
    for op in (OPS[o] for o in GROUPS[name]):
        refused: collections.Counter[str] = collections.Counter()
        mine = samples(op)
        for s in mine:
            reason = refusal(op, s)
            if stored_only(op.name, s):
                assert reason is not None and "onnxruntime has no kernels for" in reason, op.name
            elif reason is None:
                cases.append((op, s))
            else:
                refused[reason] += 1
        count, reason = REFUSED.get(op.name, (0, ""))
        want = {reason: len(mine) if count is None else count} if reason else {}
        assert dict(refused) == want, op.name
    if cases:
        group = build_cases(cases)
        problems = failures(group, Runner(group.graph, "onnx").run(group.arrays), group.expected())
        assert not problems, f"{len(problems)} samples:\n" + "\n".join(problems[:40])


def test_every_op_is_written_decomposed_or_listed() -> None:
    """No op falls between the table of emitters and the list of refusals."""
    load()
    random = {"poisson", "gamma", "binomial", "multinomial"}  # not made of uniform or normal numbers here
    missing = {o.name for o in OPS.values() if o.name not in EMITTERS and o.decompose is None and o.name not in REFUSED}
    assert missing == random
    assert not {n for n, (count, _) in REFUSED.items() if count is None} & set(EMITTERS)


# Whole models ---------------------------------------------------------------------------------------------------------


def compiled(model: Any, args: tuple[Any, ...], **options: Any) -> Any:
    m = effc.compile(model, args, target="onnx", **options)
    onnx.checker.check_model(m.model, full_check=True)
    return m


def leaves(x: Any) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(x) if isinstance(t, torch.Tensor)]


def assert_same(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    a, b = leaves(got), leaves(want)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        problem = difference(x.detach().numpy(), y.detach().numpy(), tolerance)
        assert not problem, problem


def check(model: nn.Module, cases: list[tuple[Any, ...]], tolerance: float = 1e-4, **options: Any) -> Any:
    """Compiles for the first case, compares with eager on all."""
    model = model.eval()
    m = compiled(model, cases[0], **options)
    with torch.no_grad():
        for args in cases:
            assert_same(m(*args), model(*args), tolerance)
    return m


class LongConvolution(nn.Module):
    """A gated long convolution through the spectrum, as in Hyena."""

    def __init__(self, dims: int, length: int) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        self.taps = nn.Parameter(torch.randn(dims, length, generator=gen) / math.sqrt(length))
        self.skip = nn.Parameter(torch.randn(dims, generator=gen))
        self.into, self.out = nn.Linear(dims, 2 * dims), nn.Linear(dims, dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, gate = self.into(x).transpose(1, 2).chunk(2, 1)
        n = u.shape[-1]
        spectrum = torch.fft.rfft(u, n=2 * n) * torch.fft.rfft(self.taps, n=2 * n)
        y = torch.fft.irfft(spectrum, n=2 * n)[..., :n] + u * self.skip[:, None]
        return self.out((y * nn.functional.silu(gate)).transpose(1, 2))


@pytest.mark.parametrize("length,dims", [(8192, 64), (1000, 3), (509, 2)])
def test_fft_convolution(length: int, dims: int) -> None:
    """A power of two, a length with odd factors, and twice a prime."""
    gen = torch.Generator().manual_seed(1)
    batch = Dim("batch", min=0, max=64)
    cases = [(torch.randn(n, length, dims, generator=gen),) for n in (2, 1, 3)]
    m = check(LongConvolution(dims, length), cases, dynamic_shapes={"x": {0: batch}})
    assert "DFT" not in m.report["ops"] and "MatMul" in m.report["ops"]


@pytest.mark.parametrize("n", [1, 7, 97, 360, 1021, 1031, 2048, 2062, 4096, 30030])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_fft_lengths(n: int, dtype: str) -> None:
    """Every way to split a length, forward and back: dense, two factors and more, a prime factor, a large prime."""
    rng = np.random.default_rng(n)
    real = DType(dtype)
    b = Builder()
    x = b.input("x", TensorType(real, (2, n)))
    z = b.op("rfft", x, dims=(1,), scale=1.0)
    c = b.input("c", TensorType(DType.c64 if dtype == "f32" else DType.c128, (2, n)))
    h = b.input("h", TensorType(c.dtype, (2, n // 2 + 1)))
    outs = [z, b.op("fft", c, dims=(1,), inverse=False, scale=1.0), b.op("fft", c, dims=(1,), inverse=True, scale=1.0)]
    outs.append(b.op("irfft", h, dims=(1,), last_size=n, scale=1.0))
    xs = rng.standard_normal((2, n)).astype(real.np)
    cs = (rng.standard_normal((2, n)) + 1j * rng.standard_normal((2, n))).astype(c.dtype.np)
    hs = cs[:, : n // 2 + 1].copy()
    got = Runner(b.graph(outs), "onnx").run([xs, cs, hs])
    wide = cs.astype(np.complex128)
    want = [np.fft.rfft(xs.astype(np.float64)), np.fft.fft(wide), np.fft.ifft(wide) * n,
            np.fft.irfft(wide[:, : n // 2 + 1], n) * n]  # fmt: skip
    for g, w in zip(got, want, strict=True):
        problem = difference(g, w.astype(g.dtype), 1e-5 if dtype == "f32" else 1e-12)
        assert not problem, problem


def test_irfft2() -> None:
    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(15, 11, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * self.w, s=x.shape[-2:], norm="ortho")

    for seed, shape in enumerate([(2, 3, 15, 21), (1, 1, 15, 21)]):
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        check(Low(), [(x,)])


def test_stft_front_end() -> None:
    class LogMel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("window", torch.hann_window(400))
            self.register_buffer("mel", torch.rand(40, 201, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            s = torch.stft(x, 400, 160, window=self.window, return_complex=True)
            power = torch.view_as_real(s).pow(2).sum(-1)
            return torch.log(torch.clamp(self.mel @ power, min=1e-6))

    gen = torch.Generator().manual_seed(2)
    cases = [(torch.randn(n, 3999, generator=gen),) for n in (2, 1)]
    check(LogMel(), cases, dynamic_shapes={"x": {0: Dim("batch", min=1, max=8)}})


def test_complex_inputs_and_outputs() -> None:
    class Turn(nn.Module):
        def forward(self, z: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return z * w.conj() + torch.exp(z * 1j), torch.fft.fft(z, dim=0).abs()

    gen = torch.Generator().manual_seed(3)
    z, w = (torch.randn(5, 7, dtype=torch.complex64, generator=gen) for _ in range(2))
    m = check(Turn(), [(z, w)])
    assert [d.dim_value for d in m.model.graph.input[0].type.tensor_type.shape.dim] == [5, 7, 2]


def test_sizes_are_computed_in_the_graph() -> None:
    class Shapes(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            b, n, d = x.shape
            y = x.reshape(b * n, d)
            half = y[: (b * n) // 2]
            ramp = torch.arange(n, dtype=torch.float32)[:, None] / n
            return half.sum(0), (x + ramp).transpose(0, 1).reshape(n, -1), x.new_full((n, b), 0.5), x[:, n // 3 :, ::2]

    dynamic = {"x": {0: Dim("b", min=0, max=40), 1: Dim("n", min=1, max=99)}}
    gen = torch.Generator().manual_seed(4)
    cases = [(torch.randn(*s, 6, generator=gen),) for s in ((4, 9), (1, 1), (3, 7), (0, 5), (2, 1))]
    m = check(Shapes(), cases, dynamic_shapes=dynamic)
    names = [d.dim_param for d in m.model.graph.input[0].type.tensor_type.shape.dim]
    bounds = json.loads({p.key: p.value for p in m.model.metadata_props}["effc.symbols"])
    assert bounds[names[0]] == [0, 40] and bounds[names[1]] == [1, 99]
    with pytest.raises(effc.EffcError, match="outside its bounds"):
        m(torch.randn(41, 3, 6))


def test_control_flow() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda v: v * 2 + 1, lambda v: v.cumsum(0), (x,))

    x = torch.arange(1.0, 8.0)
    check(Branch(), [(x,), (-x,)])

    class Collatz(nn.Module):
        def forward(self, n: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            def body(n: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return torch.where(n % 2 == 0, n // 2, 3 * n + 1), steps + 1

            return torch._higher_order_ops.while_loop(lambda n, s: n != 1, body, (n, steps))

    check(Collatz(), [(torch.tensor(k), torch.tensor(0)) for k in (27, 1, 6)])


def test_loops_over_time() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True)
            self.gru = nn.GRU(14, 4)
            self.cell = nn.LSTM(4, 6, proj_size=3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y, (h, _) = self.lstm(x)
            z, g = self.gru(y)
            return self.cell(z)[0], h, g

    gen = torch.Generator().manual_seed(5)
    cases = [(torch.randn(*s, 5, generator=gen),) for s in ((3, 9), (1, 4), (2, 1))]
    m = check(Layers(), cases, dynamic_shapes={"x": {0: Dim("b", max=9), 1: Dim("t", max=99)}})
    assert {"LSTM", "GRU", "Loop"} <= set(m.report["ops"])


def test_state_enters_and_leaves() -> None:
    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.mul_(0.5).add_(x)
            self.calls += 1
            return self.seen * self.calls

    x = torch.tensor([1.0, -2.0, 3.5])
    eager = Cache()
    m = compiled(Cache(), (x,))
    want = [eager(x * k) for k in (1, 2, 3)]
    for k, w in zip((1, 2, 3), want, strict=True):
        assert_same(m(x * k), w)
    assert_same(m.session()(x), want[0])
    ins, outs = ({v.name for v in side} for side in (m.model.graph.input, m.model.graph.output))
    assert {"state.seen", "state.calls"} <= ins and {"state.seen.next", "state.calls.next"} <= outs


def test_written_inputs() -> None:
    class Fill(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            x.add_(y)
            return x * 2

    gen = torch.Generator().manual_seed(6)
    x, y = torch.randn(4, 5, generator=gen), torch.randn(5, generator=gen)
    m = compiled(Fill(), (x.clone(), y))
    a, b = x.clone(), x.clone()
    assert_same(m(a, y), Fill()(b, y))
    assert_same(a, b)


def test_half_types_are_cast_where_kernels_are_missing() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.out = nn.Conv1d(4, 8, 3, padding=1), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(nn.functional.gelu(self.norm(self.conv(x).transpose(1, 2))))

    for dtype, tolerance in ((torch.float16, 4e-3), (torch.bfloat16, 2e-2)):
        torch.manual_seed(7)
        model, x = Block().to(dtype).eval(), torch.randn(2, 4, 11).to(dtype)
        m = compiled(model, (x,))
        assert m.report["casts"]
        with torch.no_grad():
            got, want = m(x), model(x)
        assert got.dtype == dtype
        assert_same(got.float(), want.float(), tolerance)


def test_random_numbers() -> None:
    class Draw(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.rand_like(x), torch.randn_like(x), torch.randint(3, 9, (5000,)), torch.bernoulli(x * 0 + 0.3)

    m = compiled(Draw(), (torch.zeros(20000),))
    u, g, i, b = m(torch.zeros(20000))
    assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.02 and u.unique().numel() > 10000
    assert abs(g.mean()) < 0.05 and abs(g.std() - 1) < 0.05
    assert i.dtype == torch.int64 and set(i.tolist()) == set(range(3, 9))
    assert abs(b.mean() - 0.3) < 0.03


# The model as a file --------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 300)

    def forward(self, features: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        y = self.dense(features)
        return {"score": y if scale is None else y * scale, "best": y.argmax(-1)}


def test_names_numpy_and_keywords(tmp_path: Path) -> None:
    torch.manual_seed(8)
    model, x = Small().eval(), torch.randn(3, 6)
    m = compiled(model, (x,))
    assert m.input_names == ["features"]
    assert {i.name for i in m.model.graph.initializer} >= {"dense.bias"}
    with torch.no_grad():
        want = model(x)
    assert_same(m(x), want)
    assert_same(m(features=x), want)
    got = m(x.numpy())
    assert isinstance(got["score"], np.ndarray) and got.keys() == want.keys()
    named = m.run({"features": x.numpy()})
    assert list(named) == m.output_names and np.array_equal(named[m.output_names[1]], want["best"].numpy())
    m.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    alone = session.run(None, {"features": x.numpy()})
    assert np.allclose(alone[0], want["score"].numpy(), atol=1e-5)
    assert [o.name for o in session.get_outputs()] == m.output_names
    with pytest.raises(effc.EffcError, match="missing input"):
        m.run({})


def test_external_data(tmp_path: Path) -> None:
    torch.manual_seed(9)
    model, x = Small().eval(), torch.randn(2, 6)
    m = compiled(model, (x,))
    path = tmp_path / "big.onnx"
    m.save(path, external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert path.stat().st_size < 5000 < (tmp_path / "big.onnx.data").stat().st_size
    onnx.checker.check_model(str(path), full_check=True)
    alone = onnxruntime.InferenceSession(str(path)).run(None, {"features": x.numpy()})
    with torch.no_grad():
        assert np.allclose(alone[0], model(x)["score"].numpy(), atol=1e-5)


def test_refusals_are_listed_together() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.cholesky(x @ x.T + torch.eye(3)) + torch.special.bessel_j0(x)

    with pytest.raises(effc.EffcError) as e:
        effc.compile(Odd(), (torch.randn(3, 3),), target="onnx")
    text = str(e.value)
    assert "linalg_cholesky" in text and "bessel_j0" in text and NONE in text and "test_onnx_target.py" in text


def test_minilm() -> None:
    """Dynamic batch and length, with the ops that onnxruntime has kernels for."""
    zoo = pytest.importorskip("tests.models.zoo")
    module, args, dynamic_shapes, sizes = zoo.load("minilm")
    m = check(module, [args, *sizes], dynamic_shapes=dynamic_shapes)
    ops = m.report["ops"]
    assert ops["LayerNormalization"] == 13 and ops["Softmax"] == 6 and ops["Gelu"] == 6


def test_contributed_ops() -> None:
    """With onnx_domain="ort" the model has onnxruntime's own ops, and the same results."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.norm, self.up = nn.Linear(24, 72), nn.LayerNorm(24), nn.Linear(24, 50)
            self.down = nn.Linear(50, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, n, d = x.shape
            q, k, v = (t.reshape(b, n, 3, 8).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, d)
            y = self.norm(x + y)
            return self.down(nn.functional.silu(self.up(y)))

    gen = torch.Generator().manual_seed(10)
    torch.manual_seed(10)
    cases = [(torch.randn(*s, 24, generator=gen),) for s in ((2, 9), (1, 1), (3, 5))]
    dynamic = {"x": {0: Dim("b", max=9), 1: Dim("n", max=99)}}
    m = check(Block(), cases, dynamic_shapes=dynamic, onnx_domain="ort")
    assert {"SkipLayerNormalization", "QuickGelu", "FusedMatMul"} <= set(m.report["ops"])
    assert {o.domain for o in m.model.opset_import} == {"", "com.microsoft"}
    plain = check(Block(), cases, dynamic_shapes=dynamic)
    assert {o.domain for o in plain.model.opset_import} == {""}


def test_groups_of_ops_are_one_node() -> None:
    """What convolutional networks are made of, each in one node, also for NaN and infinity."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2, stride=2)
            self.prelu, self.norm = nn.PReLU(8), nn.BatchNorm2d(8)
            self.head = nn.Linear(6, 5)
            with torch.no_grad():
                self.prelu.weight.copy_(torch.linspace(-0.9, 1.0, 8))
                self.norm.running_mean.uniform_(-1, 1), self.norm.running_var.uniform_(0.5, 2)
                self.norm.weight.uniform_(0.5, 2), self.norm.bias.uniform_(-1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = nn.functional.relu6(self.up(self.norm(self.prelu(self.conv(x)))))
            a, b = nn.functional.leaky_relu(y - 1, 0.3).split([2, 4], 1)
            y = torch.cat([b, a], 1).mean((2, 3))
            return self.head(y / torch.linalg.vector_norm(y, dim=1, keepdim=True))

    torch.manual_seed(11)
    gen = torch.Generator().manual_seed(11)
    cases = [(torch.randn(n, 3, h, h + 3, generator=gen),) for n, h in ((2, 7), (1, 5))]
    odd = torch.randn(3, 3, 6, 9, generator=gen)
    odd[0, 1, 2, 3], odd[1, 0, 4, 4], odd[1, 2, 1, 7] = math.nan, math.inf, -math.inf
    dynamic = {"x": {0: Dim("n", max=9), 2: Dim("h", min=4, max=99), 3: Dim("w", min=4, max=99)}}
    plain = check(Net().eval(), [*cases, (odd,)], dynamic_shapes=dynamic)
    want = "BatchNormalization Clip Concat Conv ConvTranspose Div Gemm LeakyRelu PRelu ReduceL2 ReduceMean Split Sub"
    assert plain.report["ops"] == dict.fromkeys(want.split(), 1)
    fast = check(Net().eval(), [*cases, (odd,)], dynamic_shapes=dynamic, onnx_domain="ort")
    assert "PRelu" not in fast.report["ops"]


def test_images_one_pixel_wide() -> None:
    """Their convolutions are written in one dimension, and what is permuted before a constant weight in no node."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 8, (9, 1), stride=(2, 1), padding=(4, 0)), nn.Conv2d(8, 4, (3, 1))
            self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(4 * 7, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.one(x[:, None, :, None]).relu())
            y = nn.functional.max_pool2d(y, (2, 1), (2, 1))
            y = nn.functional.avg_pool2d(self.two(y), (2, 1), (1, 1))
            return self.head(y.permute(0, 2, 1, 3).flatten(1))

    torch.manual_seed(12)
    gen = torch.Generator().manual_seed(12)
    cases = [(torch.randn(n, 40, generator=gen),) for n in (3, 1, 0)]
    m = check(Net().eval(), cases, dynamic_shapes={"x": {0: Dim("n", max=9)}})
    shapes = {i.name: len(i.dims) for i in m.model.graph.initializer}
    convs = [n for n in m.model.graph.node if n.op_type == "Conv"]
    assert [shapes[n.input[1]] for n in convs] == [3, 3] and "Transpose" not in m.report["ops"]


def test_constants_are_moved_here() -> None:
    """Weights whose gates are sorted are initializers, and a first state of zeros is none."""
    torch.manual_seed(13)
    m = check(nn.LSTM(4, 6, batch_first=True), [(torch.randn(2, 5, 4),), (torch.randn(1, 5, 4),)],
              dynamic_shapes={"input": {0: Dim("n", max=9)}})  # fmt: skip
    assert not {"Gather", "Concat", "Expand"} & set(m.report["ops"])
    lstm = next(n for n in m.model.graph.node if n.op_type == "LSTM")
    assert len(lstm.input) == 4
    assert [o.name for o in m.model.graph.output] == m.output_names and "Identity" not in m.report["ops"]


def test_options() -> None:
    x = torch.randn(2, 6)
    assert {"name": "onnx", "runs_here": True, "missing": []} in effc.targets()
    with pytest.raises(effc.EffcError, match="onnx_domain"):
        effc.compile(Small(), (x,), target="cpu", onnx_domain="ort")
    with pytest.raises(effc.EffcError, match="onnx_domain"):
        effc.compile(Small(), (x,), target="onnx", onnx_domain="elsewhere")
    with pytest.raises(effc.EffcError, match="one entry point"):
        effc.compile_entries({"a": effc.Entry(Small(), (x,)), "b": effc.Entry(Small(), (x,))}, target="onnx")


def test_equal_nodes_are_written_once() -> None:
    b = Builder()
    x = b.input("x", TensorType(DType.f32, (b.symbol("n", 1, 50), 4)))
    y = b.op("add", b.op("exp", x), b.op("exp", x))
    model = build(b.graph([y])).model()
    assert [n.op_type for n in model.graph.node].count("Exp") == 1
    buffer = io.BytesIO(model.SerializeToString())
    assert onnx.load_model(buffer).opset_import[0].version == 26


def test_any_and_all_of_nothing() -> None:
    """onnxruntime has no maximum of an empty set of bools."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (x > 0).any(0), (x > 0).all(0)

    gen = torch.Generator().manual_seed(13)
    check(Net(), [(torch.randn(n, 5, generator=gen),) for n in (3, 1, 0)], dynamic_shapes={"x": {0: Dim("n", max=9)}})


def test_pooled_heads_with_computed_biases() -> None:
    """A mean over an image is a pooling, a softmax may sum over more dims of size 1, a bias need not be a constant."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            y = nn.functional.conv2d(x, w, b * 2, padding=1).relu().mean((2, 3), keepdim=True)
            e = torch.exp(y - y.amax((1, 2, 3), keepdim=True))
            return e / e.sum((1, 2, 3), keepdim=True)

    gen = torch.Generator().manual_seed(13)
    cases = [tuple(torch.randn(*s, generator=gen) for s in ((n, 3, 9, 7), (11, 3, 3, 3), (11,))) for n in (2, 1, 5)]
    m = check(Net(), cases, dynamic_shapes={"x": {0: Dim("n", min=1, max=9)}, "w": None, "b": None})
    assert {k: v for k, v in m.report["ops"].items() if k != "Mul"} == dict.fromkeys(
        ["Conv", "Relu", "GlobalAveragePool", "Softmax"], 1
    )
