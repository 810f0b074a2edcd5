"""The table of ATen mappings.

A mapping is ``f(cx, *args, **kwargs)``: the operator's arguments with tensors as IR values, sizes as dims, Python
numbers as they are, and absent optionals as None. It returns a Value, a tuple of Values (None where nothing is
returned), or a list. Keys are ``packet`` or ``packet.overload`` in the ``aten`` namespace, or ``namespace::packet``;
the overload wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..imported import Unsupported

Mapping = Callable[..., Any]
MAPPINGS: dict[str, Mapping] = {}


def aten(*names: str) -> Callable[[Mapping], Mapping]:
    """Registers a mapping under each name."""

    def register(f: Mapping) -> Mapping:
        for name in names:
            if name in MAPPINGS:
                raise ValueError(f"aten mapping {name} is declared twice")
            MAPPINGS[name] = f
        return f

    return register


def keys_of(target: Any) -> tuple[str, str]:
    """The two table keys of an OpOverload: with overload name, then without."""
    space, _, packet = str(target._schema.name).partition("::")
    base = packet if space == "aten" else f"{space}::{packet}"
    return f"{base}.{target._overloadname}", base


def lookup(target: Any) -> Mapping | None:
    """The mapping of an OpOverload, or None."""
    full, base = keys_of(target)
    return MAPPINGS.get(full) or MAPPINGS.get(base)


def load() -> None:
    """Imports every file of mappings."""
    import importlib
    import pkgutil

    from . import mappings

    for m in pkgutil.iter_modules(mappings.__path__):
        importlib.import_module(f"{mappings.__name__}.{m.name}")


__all__ = ["MAPPINGS", "Mapping", "Unsupported", "aten", "keys_of", "load", "lookup"]
