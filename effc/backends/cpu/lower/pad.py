"""Padding and col2im. A padded result follows the order in memory of its operand."""

from __future__ import annotations

import numpy as np

from ....ir.dims import Dim
from ....ir.graph import Node
from . import Lowering, lowers
from .conv import channels_last

MODES = ("constant", "reflect", "replicate", "circular")  # the kernel's numbers


@lowers("pad")
def lower_pad(cx: Lowering, node: Node) -> None:
    a = node.attrs
    x = cx.strided(node.operands[0])
    last = x.rank >= 3 and x.strides[1] == 1 and x.shape[1] != 1
    out = cx.out(node, order=channels_last(x.rank) if last else None)
    value = np.asarray(a["value"]).astype(x.dtype.np) if a["mode"] == "constant" else np.zeros((), x.dtype.np)
    raw = value.tobytes().ljust(16, b"\0")
    bits = [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in (0, 8)]
    cx.call("effc_pad", [x], [out], [MODES.index(a["mode"]), *bits, *(lo for lo, _ in a["padding"])])


@lowers("col2im")
def lower_col2im(cx: Lowering, node: Node) -> None:
    a = node.attrs
    x, out = cx.strided(node.operands[0]), cx.out(node)
    counts: list[Dim] = []
    for d in range(2):
        room = a["size"][d] + a["padding"][d][0] + a["padding"][d][1] - a["dilation"][d] * (a["kernel"][d] - 1) - 1
        counts.append(room // a["stride"][d] + 1)
    low = [p[0] for p in a["padding"]]
    cx.call("effc_col2im", [x], [out], [*a["kernel"], *a["stride"], *low, *a["dilation"], *counts])
