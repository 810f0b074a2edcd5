"""Size 1 of a dynamic dim: kept where the model is the same program there, refused where it is another."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from effc.frontend.torch import import_model
from effc.frontend.torch.ones import only_excludes_one, specialise
from effc.ir import dims
from effc.ir.graph import Check


class Needless(torch.nn.Module):
    """Asks about sizes, and does the same either way."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        causal = x.shape[1] > 1 and y is None
        assert not causal
        return (x + y).softmax(-1).sum(0)


class Real(torch.nn.Module):
    """Is another function at batch 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 1 else x + x.mean(0, keepdim=True)


def sizes_allowed(model: torch.nn.Module, args: tuple[torch.Tensor, ...], dynamic: object) -> dict[str, bool]:
    """For each symbol, whether the imported graph takes it as 1."""
    graph = import_model(model, args, None, dynamic).graph
    return {s: not any(only_excludes_one(c, graph.symbols) == s for c in graph.checks) for s in graph.symbols}


def test_a_needless_question_is_dropped() -> None:
    d = {0: Dim("batch", min=1, max=9), 1: Dim("length", min=1, max=9)}
    allowed = sizes_allowed(Needless().eval(), (torch.randn(3, 4), torch.randn(3, 4)), {"x": d, "y": d})
    assert len(allowed) == 2 and all(allowed.values())


def test_a_real_branch_stays_refused() -> None:
    allowed = sizes_allowed(Real(), (torch.randn(3, 4),), {"x": {0: Dim("batch", min=1, max=9)}})
    assert list(allowed.values()) == [False]


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (Check(dims.symbol("s"), "!=", 1), "s"),
        (Check(dims.symbol("s"), ">", 1), "s"),
        (Check(dims.symbol("s"), ">=", 2), "s"),
        (Check(dims.symbol("s"), "!=", 0), None),
        (Check(dims.symbol("s"), ">=", 3), None),
        (Check(dims.symbol("s"), "<=", 5), None),
        (Check(dims.mod(dims.symbol("s"), 2), "==", 0), None),
        (Check(dims.symbol("s"), "!=", dims.symbol("t")), None),
    ],
)
def test_which_checks_are_of_the_kind(check: Check, expected: str | None) -> None:
    assert only_excludes_one(check, {"s": (1, 64), "t": (1, 64)}) == expected
    assert only_excludes_one(check, {"s": (2, 64), "t": (1, 64)}) is None


def test_specialise_infers_again() -> None:
    graph = import_model(
        Needless().eval(),
        (torch.randn(3, 4), torch.randn(3, 4)),
        None,
        {"x": {0: Dim("b", min=1, max=9)}, "y": {0: Dim("b", min=1, max=9)}},
    ).graph
    (name,) = graph.symbols
    fixed = specialise(graph, {name: 5})
    assert not fixed.symbols and fixed.inputs[0].types[0].shape == (5, 4)
