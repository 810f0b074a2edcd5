"""Parameters, buffers and constants of an exported program as IR constants and states."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...ir.graph import Builder, State, Value
from ...ir.types import TensorType
from . import dtypes as T


class Weights:
    """Makes one constant node per stored tensor, so that tied weights stay one."""

    def __init__(self, builder: Builder) -> None:
        self.b = builder
        self.seen: dict[tuple[Any, ...], Value] = {}
        self.states: dict[str, State] = {}
        self.keep: list[torch.Tensor] = []  # pins storages whose addresses are keys

    def constant(self, name: str, t: torch.Tensor) -> Value:
        """The constant of a tensor. A permuted view of a stored tensor is a permute of the stored order."""
        t = t.detach()
        if t.layout is torch.strided and t.numel() and t.device.type == "cpu":
            order = sorted(range(t.dim()), key=lambda d: (-t.stride(d), d))
            base = t.permute(order)
            if base.is_contiguous() and order != sorted(order):
                back = tuple(order.index(d) for d in range(t.dim()))
                return self.b.op("permute", self._stored(name, base), dims=back)  # type: ignore[no-any-return]
        return self._stored(name, t)

    def _stored(self, name: str, t: torch.Tensor) -> Value:
        key: tuple[Any, ...] = (id(t),)
        if t.layout is torch.strided and t.numel():
            key = (t.data_ptr(), t.dtype, tuple(t.shape), t.stride())
        if key not in self.seen:
            self.keep.append(t)
            self.seen[key] = self.b.constant(T.to_numpy(t), T.dtype_of(t.dtype), name=name)
        return self.seen[key]

    def state(self, name: str, t: torch.Tensor) -> Value:
        """A session buffer that starts as a copy of ``t``."""
        kind = TensorType(T.dtype_of(t.dtype), tuple(t.shape))
        init = np.array(T.to_numpy(t), order="C", copy=True)
        self.states[name] = State(kind, init)
        return self.b.node("state", (), {"name": name, "type": kind}, name=name)[0]
