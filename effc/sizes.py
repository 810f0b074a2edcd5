"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from .runtime.errors import EffcError

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "kb": 1000, "mb": 1000**2, "gb": 1000**3} | {
    f"{u}ib": 1 << s for u, s in (("k", 10), ("m", 20), ("g", 30))
}


def parse_bytes(value: str | int, name: str) -> int:
    """``"180MiB"`` (1024-based, as K, M, G are), ``"48MB"`` (1000-based) or a number of bytes. EffcError, which calls
    it ``name``, for anything else and for what is not positive."""
    size: float = -1
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
        if found and found[2].lower() in _UNITS:
            size = (
                float(found[1]) * _UNITS[found[2].lower()]
                if "." in found[1]
                else int(found[1]) * _UNITS[found[2].lower()]
            )
    if size < 1:
        raise EffcError(
            f"{name} is {value!r}, not a size", hint="give bytes as an int, or a text like '180MiB' or '48MB'"
        )
    return int(size)
