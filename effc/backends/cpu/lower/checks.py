"""Assertions on data. Kernel: check.cpp."""

from __future__ import annotations

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Node
from . import Lowering, lowers


@lowers("assert")
def lower_assert(cx: Lowering, node: Node) -> None:
    text = node.attrs["message"] or "an assertion of the model does not hold"
    message = cx.const(np.frombuffer(text.encode(), np.uint8), DType.u8)
    cx.call("effc_assert", [cx.strided(node.operands[0]), message], [])
