"""The table of ONNX operators.

A mapping is ``f(cx, *inputs, **attributes)``: inputs as IR values (None where an optional one is absent, a list for a
sequence), attributes as Python numbers, strings, tuples and numpy arrays, with the standard's defaults filled in. It
returns a Value, a list (a sequence), None (an empty optional), or a tuple of those for several results. Attributes that
it has no parameter for are refused when a model gives them.

``since`` is the operator set from which this form of the operator is meant, as in the standard's own table: the mapping
with the highest ``since`` that is not above the model's is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..imported import Unsupported

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mapping:
    since: int
    function: Function
    attributes: frozenset[str] | None  # None: takes any


MAPPINGS: dict[tuple[str, str], list[Mapping]] = {}
REFUSED: dict[tuple[str, str], str] = {}  # operators that effc does not take, and why


def onnx_op(*names: str, since: int = 1, domain: str = "") -> Callable[[Function], Function]:
    """Registers a mapping under each operator name of a domain."""

    def register(f: Function) -> Function:
        parameters = inspect.signature(f).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        attributes = None if takes_any else frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        for name in names:
            forms = MAPPINGS.setdefault((domain, name), [])
            if any(m.since == since for m in forms):
                raise ValueError(f"ONNX operator {domain}::{name} since {since} is declared twice")
            forms.append(Mapping(since, f, attributes))
            forms.sort(key=lambda m: m.since)
        return f

    return register


def refuse(reason: str, *names: str, domain: str = "") -> None:
    """Operators that are known and not taken."""
    for name in names:
        REFUSED[domain, name] = reason


def lookup(domain: str, name: str, version: int) -> Mapping | None:
    """The mapping that holds for an operator set's version, or None."""
    forms = [m for m in MAPPINGS.get((domain, name), ()) if m.since <= version]
    return forms[-1] if forms else None


def load() -> None:
    """Imports every file of mappings."""
    import importlib
    import pkgutil

    from . import mappings

    for m in pkgutil.iter_modules(mappings.__path__):
        importlib.import_module(f"{mappings.__name__}.{m.name}")


__all__ = ["MAPPINGS", "Mapping", "REFUSED", "Unsupported", "load", "lookup", "onnx_op", "refuse"]
