"""Unrolled loops: recurrences and steps that are computed alike become ops on whole tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
from pass_helpers import graph_of, same_values
from torch import nn

import effc
from effc.frontend.torch import import_model
from effc.ir.graph import Graph
from effc.ir.verify import verify
from effc.passes.canonical import Canonicalise
from effc.passes.cleanup import Cse, Fold
from effc.passes.manager import PassReport
from effc.passes.roll import RollLoops

STEPS = 9


def rolled(before: Graph) -> tuple[Graph, PassReport]:
    report = PassReport()
    for p in (Canonicalise(), Fold(), Cse()):
        before = p.run(before, report)
    after = RollLoops().run(before, report)
    verify(after)
    same_values(before, after)
    return after, report


def traced(module: nn.Module, *args: torch.Tensor) -> tuple[Graph, PassReport]:
    return rolled(import_model(module, args).graph)


class Scan(nn.Module):
    """Mamba's selective scan as its authors' reference writes it (Gu and Dao, 2023)."""

    def __init__(self, stacked: bool = True, last: bool = False, backwards: bool = False) -> None:
        super().__init__()
        self.stacked, self.last, self.backwards = stacked, last, backwards

    def forward(self, a: torch.Tensor, x: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = torch.zeros_like(x[:, :, 0])
        out = []
        for t in reversed(range(a.shape[2])) if self.backwards else range(a.shape[2]):
            h = a[:, :, t] * h + x[:, :, t]
            out.append(torch.matmul(h, c[:, t, :].unsqueeze(-1))[:, :, 0])
        y = torch.stack(out, dim=-1) if self.stacked else torch.cat([o.unsqueeze(1) for o in out], 1)
        return (y, h) if self.last else (y,)


def scan_inputs(batch: int = 2, width: int = 5, state: int = 3) -> tuple[torch.Tensor, ...]:
    shape = (batch, width, STEPS, state)
    return torch.rand(shape), torch.randn(shape), torch.randn(batch, STEPS, state)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
def test_scan(stacked: bool, last: bool, backwards: bool) -> None:
    after, report = traced(Scan(stacked, last, backwards), *scan_inputs())
    assert report.stats["roll.recurrences"] == 1 and report.stats["roll.concats"] == 1
    assert report.stats["roll.steps"] in (STEPS, STEPS - 1)  # the first one may be its term alone
    ops = [n.op for n in after.nodes]
    assert ops.count("linear_recurrence") == 1 and ops.count("matmul") == 1 and "add" not in ops


class Gated(nn.Module):
    """A gated recurrence of one product with all inputs (SRU, minGRU), its gates computed step by step."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.gate, self.new = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        out = []
        for t in range(x.shape[1]):
            f = torch.sigmoid(self.gate(x[:, t]))
            h = f * h + (1 - f) * torch.tanh(self.new(x[:, t]))
            out.append(h)
        return torch.stack(out, 1)


def test_gates_are_computed_once() -> None:
    after, report = traced(Gated(), torch.randn(3, STEPS, 6), torch.randn(3, 6))
    assert report.stats["roll.recurrences"] == 1 and report.stats["roll.steps"] == STEPS
    ops = [n.op for n in after.nodes]
    assert ops.count("matmul") == 2 and ops.count("sigmoid") == 1 and ops.count("linear_recurrence") == 1


class Decay(nn.Module):
    """Linear attention with a decay per head (RetNet): the factor is smaller than the state, the term an outer
    product."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        gamma = torch.tensor([0.9, 0.8]).reshape(1, 2, 1, 1)
        h = torch.zeros(q.shape[0], q.shape[1], q.shape[3], v.shape[3])
        out = []
        for t in range(q.shape[2]):
            h = gamma * h + k[:, :, t, :, None] * v[:, :, t, None, :]
            out.append((q[:, :, t, None, :] @ h).squeeze(2))
        return torch.stack(out, 2)


def test_a_factor_that_broadcasts() -> None:
    after, report = traced(Decay(), *(torch.randn(2, 2, STEPS, 4) for _ in range(3)))
    assert report.stats["roll.recurrences"] == 1 and report.stats["roll.concats"] == 1
    assert sum(n.op == "matmul" for n in after.nodes) == 2  # the first step's is its own


class Alike(nn.Module):
    """Steps without a state."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.relu(self.w(x[:, 2 * t : 2 * t + 2].amax(1, keepdim=True))) for t in range(STEPS)], 1)


def test_steps_without_a_state() -> None:
    after, report = traced(Alike(), torch.randn(2, 2 * STEPS, 4))
    assert report.stats["roll.concats"] == 1
    assert sum(n.op == "matmul" for n in after.nodes) == 1 and not any(n.op == "concat" for n in after.nodes)


class Uneven(Scan):
    """A state that is used in the middle as well."""

    def forward(self, a: torch.Tensor, x: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = torch.zeros_like(x[:, :, 0])
        out, middle = [], h
        for t in range(a.shape[2]):
            h = a[:, :, t] * h + x[:, :, t]
            middle = h if t == 4 else middle
            out.append(h)
        return torch.stack(out, 2), middle


class Nonlinear(Scan):
    def forward(self, a: torch.Tensor, x: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = torch.zeros_like(x[:, :, 0])
        out = []
        for t in range(a.shape[2]):
            h = a[:, :, t] * h + torch.tanh(h) * x[:, :, t]
            out.append(h)
        return (torch.stack(out, 2),)


def test_what_is_no_loop_over_slices_stays() -> None:
    after, report = traced(Uneven(), *scan_inputs())
    assert not any(n.op == "linear_recurrence" for n in after.nodes) and "roll.recurrences" not in report.stats
    assert report.reasons("roll") >= {"a state within a recurrence is used in another way than by all steps alike"}
    after, report = traced(Nonlinear(), *scan_inputs())
    assert not any(n.op == "linear_recurrence" for n in after.nodes)
    assert report.reasons("roll") == {"the steps of a recurrence are not slices of whole tensors"}


BEFORE = """graph main(%x: f32[7, 3]) {{
{parts}
  %y = concat({names}) {{dim=0}}
  return %y
}}"""


ORDERS = [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [0, 1, 3, 4, 5, 6, 2]]


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_steps(order: list[int]) -> None:
    parts = "\n".join(
        f"  %s{k} = slice(%x) {{starts=[{k}, 0], stops=[{k + 1}, 3], steps=[1, 1]}}\n  %e{k} = exp(%s{k})"
        for k in order
    )
    after, report = rolled(graph_of(BEFORE.format(parts=parts, names=", ".join(f"%e{k}" for k in order))))
    even = len({b - a for a, b in itertools.pairwise(order)}) == 1
    assert sum(n.op == "exp" for n in after.nodes) == (1 if even else len(order))
    assert report.stats.get("roll.concats", 0) == even


def test_compiled() -> None:
    for module, args in (
        (Scan(last=True), scan_inputs(1, 33, 16)),
        (Gated(), (torch.randn(3, STEPS, 6), torch.randn(3, 6))),
    ):
        want = module(*args)
        m = effc.compile(module, args)
        assert m.report["entries"]["main"]["passes"]["stats"]["roll.recurrences"] == 1
        got = m(*args)
        for a, b in zip(got if isinstance(got, tuple) else (got,), want if isinstance(want, tuple) else (want,)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
