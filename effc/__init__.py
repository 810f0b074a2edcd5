"""effc: an ahead-of-time graph compiler for efficient models.

import effc
m = effc.compile(model, args)        # needs torch and a C++ compiler
m.save("model.effc")
effc.load("model.effc")(*args)       # needs numpy alone
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .runtime.errors import EffcError

__version__ = "0.1.0"
__all__ = ["CompiledModel", "EffcError", "Entry", "compile", "compile_entries", "load", "targets"]

if TYPE_CHECKING:
    from .compiler import CompiledModel, Entry, compile, compile_entries, targets
    from .runtime.loader import load

_LAZY = {
    "CompiledModel": "compiler", "Entry": "compiler", "compile": "compiler", "compile_entries": "compiler",
    "targets": "compiler", "load": "runtime.loader",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports the parts on first use, so that loading an artifact imports no compiler."""
    if name in _LAZY:
        import importlib

        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'effc' has no attribute {name!r}")
