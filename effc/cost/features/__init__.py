"""What the cost model sees of a call: numbers, computed from the call, the machine and the threads alone.

A :class:`Family` is a set of kernels that one model predicts. To teach the cost model another kernel, declare its
family in a module here, with :func:`family`, and a sampler in ``space.py``; nothing else needs to know. Features are
logarithms where sizes span decades (trees split them the same, but ranges are checked on that scale), shares where a
remainder costs, and sizes of blocks over sizes of caches. Where a kernel derives something from its attributes (how
many blocks, how even), the features mirror it.
"""

from __future__ import annotations

from . import chains, conv, loops, products  # noqa: F401  (they register their families)
from .base import FAMILIES, Family, amounts, family, family_of, shares, vector

__all__ = ["FAMILIES", "Family", "amounts", "family", "family_of", "shares", "vector"]
