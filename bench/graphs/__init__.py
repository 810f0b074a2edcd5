"""Memory graphs of known kinds. ``built``: by hand from layers, with their operations, needs nothing; ``traced``: from
PyTorch, fused as a compiler would, without operations."""

from __future__ import annotations

from collections.abc import Callable

from effc.passes.memory.problem import Problem

from .built import (
    cells,
    hrnet,
    nested_unet,
    randwire,
    shufflenet,
    train_resnet,
    train_transformer,
    train_unet,
    unet,
)

BUILT: dict[str, Callable[[], Problem]] = {
    "cells": cells,
    "cells_wide": lambda: cells(9, 108, 42, "cells_wide"),
    "randwire1": randwire,
    "randwire2": lambda: randwire(32, 109, 28, 2, 1),
    "randwire3": lambda: randwire(16, 64, 28, 3, 3),
    "hrnet": hrnet,
    "unet": unet,
    "nested_unet": nested_unet,
    "shufflenet": shufflenet,
    "train_unet": train_unet,
    "train_resnet": train_resnet,
    "train_transformer": train_transformer,
}


def from_torch() -> dict[str, Callable[[], Problem]]:
    """Loads PyTorch."""
    from .traced import GRAPHS

    return GRAPHS


__all__ = [
    "BUILT",
    "cells",
    "from_torch",
    "hrnet",
    "nested_unet",
    "randwire",
    "shufflenet",
    "train_resnet",
    "train_transformer",
]
__all__ += ["train_unet", "unet"]
