"""``torch.compile(model, backend="effc")``: the entry point that Dynamo looks up, on models with real weights and odd
code.

What ran is read off ``counters["effc"]``: a graph that Dynamo kept for itself would agree with eager to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from effc import EffcError

from ..models import zoo
from ..models.test_models import assert_same


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def ran() -> dict[str, int]:
    return dict(counters["effc"])


def check(model: Any, calls: list[tuple[Any, ...]], **options: Any) -> Any:
    """The compiled model, having agreed with eager on every call."""
    compiled = torch.compile(model, backend="effc", **options)
    for args in calls:
        assert_same(compiled(*args), model(*args), str([getattr(a, "shape", a) for a in args]))
    return compiled


def test_transformer_encoder() -> None:
    """One graph for the first sizes, one with dynamic sizes for all later ones."""
    module, *_ = zoo.load("minilm")
    check(module, [zoo.minilm_inputs(2, 24), zoo.minilm_inputs(3, 37), zoo.minilm_inputs(5, 19)], fullgraph=True)
    assert ran() == {"graphs": 2, "compilations": 2, "calls": 3}


def test_convolutions_with_batch_norm() -> None:
    module, _, _, sizes = zoo.load("mobilenet_v2")
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules())
    check(module, [sizes[2], sizes[2]], fullgraph=True)
    assert ran() == {"graphs": 1, "compilations": 1, "calls": 2}


def test_lstm() -> None:
    """Dynamo takes recurrent layers where it is told to; batch and length then vary in one graph."""
    module, args, _, sizes = zoo.load("resemblyzer")
    with torch._dynamo.config.patch(allow_rnn=True):
        check(module, [args, *sizes[:2]])
    assert ran()["calls"] == 3 and ran()["compilations"] <= 3


def test_recurrent_length_varies() -> None:
    """Dynamo makes a graph for each length (it traces the layer step by step); effc runs each as one layer."""
    torch.manual_seed(0)
    gru = torch.nn.GRU(5, 7, num_layers=2, bidirectional=True).eval()
    with torch._dynamo.config.patch(allow_rnn=True):
        check(gru, [(torch.randn(t, b, 5),) for t, b in ((4, 2), (6, 3), (9, 5), (2, 4))], fullgraph=True)
    assert ran()["calls"] == 4


def test_graph_break() -> None:
    """A branch on data: what comes before it and what comes after it are graphs of their own."""

    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.softmax(x @ x.mT, -1)
        y = y + 1 if x.sum() > 0 else y.cumsum(-1)
        return torch.tanh(y).mean(0)

    check(f, [(torch.rand(3, 4),), (-torch.rand(3, 4),), (torch.rand(5, 6),)])
    assert ran()["graphs"] >= 3 and ran()["calls"] == 6


def test_numbers_vary() -> None:
    """Integers that Dynamo makes symbols are arguments of the graph, sizes or not."""
    calls = [(torch.randn(9), n, s) for n, s in ((2, 1.5), (3, 1.5), (7, -2.5), (9, 0.5))]
    check(lambda x, n, s: (x[:n] * n + s, n + 1), calls, fullgraph=True)
    assert ran()["calls"] == 4 and ran()["compilations"] <= 3


class Notes(torch.nn.Module):
    """Writes its buffer and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("kept", torch.zeros(4, 3))

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.linear(x))
        self.kept.index_add_(0, at, y)
        x.mul_(2)
        return self.kept.abs().sum(0)


def test_what_a_model_writes() -> None:
    """Buffers, statistics in training mode and inputs are the caller's own; a changed weight is noticed."""
    torch.manual_seed(0)
    one = Notes()
    two = copy.deepcopy(one)
    compiled = torch.compile(two, backend="effc", fullgraph=True)
    for n in (4, 3, 2, 4):
        x, at = torch.randn(n, 3), torch.arange(n)
        y = x.clone()
        assert_same(compiled(y, at), one(x, at), f"call of {n}")
        assert_same(dict(two.named_buffers()), dict(one.named_buffers()), f"buffers after a call of {n}")
        assert torch.equal(x, y)
    assert two.norm.num_batches_tracked == 4
    before = ran()
    for m in (one, two):
        m.linear.weight.mul_(-3)
    x = torch.randn(4, 3)
    assert_same(compiled(x.clone(), torch.arange(4)), one(x, torch.arange(4)), "a changed weight")
    after = ran()
    assert after["compilations"] == before["compilations"] + 1 and after["graphs"] == before["graphs"]


@torch.library.custom_op("effc_tests::dynamo_unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@unknown.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def refused(call: Any, *words: str) -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as e:
        call()
    assert isinstance(e.value.inner_exception, EffcError)
    for w in words:
        assert w in str(e.value), str(e.value)


def test_refusals_in_words() -> None:
    def compiled(f: Any, **options: Any) -> Any:
        return torch.compile(f, backend="effc", fullgraph=True, **options)

    refused(lambda: compiled(lambda x: unknown(x) + 1)(torch.randn(3)), "effc_tests.dynamo_unknown", "test_dynamo.py")
    with torch.enable_grad():
        x = torch.randn(3, requires_grad=True)
        refused(lambda: compiled(lambda x: x * 2)(x), "require gradients", "torch.no_grad")
    refused(lambda: compiled(lambda x: x + 2, options={"target": "abacus"})(torch.randn(3)), "abacus", "targets:")
    refused(lambda: compiled(lambda x: x + 3, options={"no_such": 1})(torch.randn(3)), "no_such")
    assert not ran().get("calls")


def test_options_reach_the_compiler() -> None:
    options = {"target": "cpu:x86-64-v3", "disable_passes": ("fuse_regions",)}
    check(lambda x: torch.tanh(x) * x.sin(), [(torch.randn(7, 5),)], options=options)
    assert ran()["calls"] == 1
