"""Which operators torch decomposes for us: everything that has no mapping and that torch has a decomposition for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from . import registry

ALWAYS = frozenset({"batch_norm"})  # has a mapping, but in training only its decomposition updates the statistics
KEEP_WHOLE = frozenset({"detach", "alias", "lift", "lift_fresh", "clone"})  # functionalisation takes care of them


@functools.cache
def table() -> dict[Any, Callable[..., Any]]:
    """The decomposition table. A mapping of ours wins over torch's decomposition of the same operator."""
    import torch._refs
    import torch._refs.linalg
    import torch._refs.nn.functional
    import torch._refs.special
    from torch._decomp import global_decomposition_table

    registry.load()
    core = torch.export.default_decompositions()
    out: dict[Any, Callable[..., Any]] = {
        op: f
        for op, f in global_decomposition_table["post_autograd"].items()
        if isinstance(op, torch._ops.OpOverload) and op.namespace in ("aten", "prims") and _wanted(op)
    }
    out.update(core.items())
    for op in list(out):
        if (
            isinstance(op, torch._ops.OpOverload)
            and registry.lookup(op) is not None
            and registry.keys_of(op)[1] not in ALWAYS
        ):
            del out[op]
    return out


def _wanted(op: torch._ops.OpOverload) -> bool:
    name = registry.keys_of(op)[1]
    return name not in KEEP_WHOLE and not op._schema.is_mutable and op.namespace == "aten"
