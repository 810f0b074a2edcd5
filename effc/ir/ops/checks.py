"""Assertions on data."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runtime.errors import EffcError
from ..op import op, require
from ..types import TensorType


def _assert_infer(condition: TensorType, *, message: str) -> tuple[TensorType, ...]:
    require(condition.dtype.is_bool and condition.rank == 0, f"the condition must be a 0-d bool, not {condition}")
    return ()


def _assert(condition: np.ndarray[Any, Any], *, message: str) -> tuple[Any, ...]:
    if not bool(condition):
        raise EffcError(message, op="assert")
    return ()


op(
    "assert",
    "condition",
    {"message": str},
    infer=_assert_infer,
    numpy=_assert,
    category="control",
    effects="effect",
    doc="Fails the run with the message unless the 0-d bool operand is true. It has no results and is never removed.",
)
