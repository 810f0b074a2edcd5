"""The target ``tvm``: the op table's samples, and models, run by Relax's virtual machine, against numpy and torch.

TVM is not among the packages of the ``test`` extra: without it these tests are skipped.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

import effc
from effc.conformance.compare import difference
from effc.conformance.ops import Runner, failures, groups, samples
from effc.conformance.ops import build as build_cases
from effc.ir import OPS
from effc.ir.op import Sample
from effc.passes.legalise import Legalise
from tests.models import zoo

pytest.importorskip("tvm")
GROUPS = dict(groups())
NONE = "TVM has no counterpart here"
BY_TYPE = ("TVM has no complex numbers", "not written for ")  # refusals that the samples' element types explain

# What the target does not write: ops of which no sample is ...
REFUSED = frozenset(
    (
        "cummax cummin linear_recurrence logcumsumexp airy_ai angle cabs chebyshev_polynomial_t chebyshev_polynomial_u "
        "chebyshev_polynomial_v chebyshev_polynomial_w complex conj digamma erfcx erfinv gcd hermite_polynomial_h "
        "hermite_polynomial_he i0 i0e i1 i1e igamma igammac laguerre_polynomial_l lcm legendre_polynomial_p log_ndtr "
        "modified_bessel_i0 modified_bessel_i1 modified_bessel_k0 modified_bessel_k1 ndtri polygamma "
        "scaled_modified_bessel_k0 scaled_modified_bessel_k1 sgn shifted_chebyshev_polynomial_t "
        "shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v shifted_chebyshev_polynomial_w "
        "spherical_bessel_j0 zeta bincount embedding_bag histc histogram index_put item masked_scatter masked_select "
        "nms nonzero repeat_interleave searchsorted unique unique_consecutive unique_dim cdist linalg_cholesky "
        "linalg_cholesky_solve linalg_eig linalg_eigh linalg_geqrf linalg_householder_product linalg_ldl_factor "
        "linalg_ldl_solve linalg_lu_det linalg_lu_factor linalg_lu_solve linalg_lu_unpack linalg_matrix_exp "
        "linalg_ormqr linalg_qr linalg_solve_triangular linalg_svd pdist as_strided_scatter col2im diagonal_scatter "
        "adaptive_avg_pool adaptive_max_pool gru_layer lstm_layer rnn_layer grid_sample resize kthvalue median mode "
        "sort topk fft irfft rfft imag real view_as_complex view_as_real"
    ).split()
)
# ... and how many samples of others, with the reason.
IN_PART: dict[str, dict[str, int]] = {
    "grouped_matmul": {NONE: 1},
    "pow": {"powers of integers": 18},
    "index_reduce": {"means, or sums without what was there": 8},
    "scatter": {"means, or sums without what was there": 160, "a reduction of u8": 16, "a reduction of bool": 16},
    "avg_pool": {"means of i64": 14},
    "max_pool": {"the places of the maxima": 42},
}


def refusal(op: Any, sample: Sample) -> str | None:
    from effc.backends.tvm import native, why_not

    graph = Legalise(native).run(build_cases([(op, sample)]).graph)
    return next((r for n in graph.nodes if n.op != "input" and (r := why_not(n)) is not None), None)


@pytest.mark.parametrize("name", GROUPS)
def test_op_table(name: str) -> None:
    cases = []
    for op in (OPS[o] for o in GROUPS[name]):
        refused: collections.Counter[str] = collections.Counter()
        mine = samples(op)
        for s in mine:
            reason = refusal(op, s)
            if reason is None:
                cases.append((op, s))
            elif not reason.startswith(BY_TYPE):
                refused[reason] += 1
        if op.name not in REFUSED:
            assert dict(refused) == IN_PART.get(op.name, {}), op.name
        else:
            assert dict(refused) == {NONE: len(mine)}, op.name
    if cases:
        group = build_cases(cases)
        problems = failures(group, Runner(group.graph, "tvm").run(group.arrays), group.expected())
        assert not problems, f"{len(problems)} samples:\n" + "\n".join(problems[:40])


class Counter(nn.Module):
    """A buffer that each call advances."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(x.sum(0))
        return self.count * 2


def test_state_is_kept() -> None:
    x = torch.randn(4, 3)
    m, want = effc.compile(Counter(), (x,), target="tvm"), Counter()
    for _ in range(3):
        np.testing.assert_allclose(m(x), want(x), rtol=1e-5, atol=1e-6)


def test_refusals_are_listed_at_once() -> None:
    class Sorts(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x.sort()[0], torch.fft.rfft(x).abs()

    with pytest.raises(effc.EffcError, match=r"(?s)cannot be written for TVM.*sort \(.*rfft \("):
        effc.compile(Sorts(), (torch.randn(8),), target="tvm")
    with pytest.raises(effc.EffcError, match="not available"):
        effc.compile(nn.ReLU(), (torch.randn(8),), target="tvm:nosuch")


def test_a_reduction_over_nothing_is_refused() -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(0)

    shapes = {"x": {0: Dim("n", min=0, max=9)}}
    m = effc.compile(Sum(), (torch.randn(4, 3),), target="tvm", dynamic_shapes=shapes)
    x = torch.randn(7, 3)
    np.testing.assert_allclose(m(x), x.sum(0), rtol=1e-5, atol=1e-5)
    with pytest.raises(effc.EffcError, match="reduce over nothing"):
        m(torch.randn(0, 3))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_minilm(dynamic: bool) -> None:
    loaded = zoo.load("minilm")
    shapes = loaded.dynamic_shapes if dynamic else None
    m = effc.compile(loaded.module, loaded.args, target="tvm", dynamic_shapes=shapes)
    for args in [loaded.args, *(loaded.sizes[1:] if dynamic else [])]:
        with torch.no_grad():
            want = loaded.module(*args)
        for k, v in m(*args).items():
            problem = difference(v.numpy(), want[k].numpy(), 1e-4)
            assert not problem, problem
