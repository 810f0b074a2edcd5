"""Reductions of reductions become one, with a scale of a sum moved behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import effc
from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph
from effc.ir.types import TensorType
from effc.passes.reductions import Reductions
from tests.null.passes.pass_helpers import check_pass

SHAPE = (3, 5, 7, 4)
WAYS = [((3,), (2,)), ((2,), (2,)), ((1, 3), (0,)), ((0,), (0, 2)), ((2, 3), (0, 1))]


def _twice(
    kind: str, first: tuple[int, ...], then: tuple[int, ...], keep: tuple[bool, bool], *, dtype: DType = DType.f32,
    scale: tuple[str, float] | None = None, shared: bool = False, other: str = "",
) -> Graph:  # fmt: skip
    b = Builder()
    x = b.input("x", TensorType(dtype, SHAPE))
    r = b.op("reduce", x, kind=kind, dims=first, keepdims=keep[0])
    s = r if scale is None else b.op(scale[0], r, b.constant(np.asarray(scale[1], dtype.np), dtype))
    out = b.op("reduce", s, kind=other or kind, dims=then, keepdims=keep[1])
    return b.graph([out, s] if shared else [out])


@pytest.mark.parametrize("keep", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("first", "then"), WAYS)
@pytest.mark.parametrize("scale", [None, ("div", 7.0), ("mul", 0.25)])
def test_two_sums_are_one(
    first: tuple[int, ...], then: tuple[int, ...], keep: tuple[bool, bool], scale: tuple[str, float] | None
) -> None:
    out, report = check_pass(Reductions(), _twice("sum", first, then, keep, scale=scale), None)
    ops = [n.op for n in out.nodes]
    assert ops.count("reduce") == 1 and report.stats["reductions.merged"] == 1
    assert ("reshape" in ops) == (keep[0] != keep[1]) and (scale is None or scale[0] in ops)


@pytest.mark.parametrize("kind", ["max", "min", "sum"])
@pytest.mark.parametrize("dtype", [DType.f64, DType.f16, DType.i32, DType.i8])
def test_kinds_and_dtypes(kind: str, dtype: DType) -> None:
    """Maxima, minima and sums of integers are equal to the bit; a sum of halves stays, because it is rounded twice."""
    out, report = check_pass(Reductions(), _twice(kind, (3,), (2,), (False, False), dtype=dtype), None)
    stays = kind == "sum" and dtype is DType.f16
    assert [n.op for n in out.nodes].count("reduce") == 1 + stays
    assert report.reasons("merged") == ({"a sum of f16 is rounded before it is summed again"} if stays else set())


DECLINED = {
    "used elsewhere": (
        _twice("sum", (3,), (2,), (False, False), shared=True), "the inner reduction's result is used elsewhere, too",
    ),
    "product": (_twice("prod", (3,), (2,), (False, False)), "prod of prod"),
    "scaled maximum": (
        _twice("max", (3,), (2,), (False, False), scale=("mul", -1.0)),
        "what is between two reductions is no scale of a sum of floats",
    ),
    "division by zero": (
        _twice("sum", (3,), (2,), (False, False), scale=("div", 0.0)), "the scale between two sums is no known number",
    ),
    "other kinds": (_twice("sum", (3,), (2,), (False, False), other="max"), None),
}  # fmt: skip


@pytest.mark.parametrize("case", DECLINED)
def test_what_stays(case: str) -> None:
    g, reason = DECLINED[case]
    out, report = check_pass(Reductions(), g, None)
    assert [n.op for n in out.nodes] == [n.op for n in g.nodes]
    assert report.reasons("merged") == ({reason} if reason else set())


def test_mean_of_mean_is_one_kernel() -> None:
    """The head of MobileNetV2: channels innermost in memory, one kernel, no further from the real mean than torch."""

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(8, 72, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).mean(3).mean(2)

    torch.manual_seed(3)
    head, x = Head().eval(), torch.randn(2, 8, 7, 9)
    m = effc.compile(head, (x,))
    assert (
        len(m.report["entries"]["main"]["kernels"]) == 2 and sum(m.report["entries"]["main"]["kernels"].values()) == 2
    )
    with torch.no_grad():
        real = head.double()(x.double())
        assert (m(x) - real).abs().max() <= 2e-7 * real.abs().max() + 1e-7
