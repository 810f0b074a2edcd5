"""The pipeline: the compiler's table of contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .canonical import Canonicalise
from .cleanup import Cse, Dce, Fold
from .legalise import Legalise, everything_core
from .manager import Pass


@dataclass(frozen=True)
class Options:
    """Options of the default pipeline."""

    native: Callable[[str], bool] = everything_core  # ops that the backend runs itself; the others are decomposed

    fold_limit: int = 1 << 28  # largest result, in bytes, that constant folding may create


def default(options: Options | None = None) -> tuple[Pass, ...]:
    """The passes that every graph goes through, in order."""
    o = options or Options()
    return (
        Legalise(o.native),
        Canonicalise(),
        Fold(o.fold_limit),
        Cse(),
        Dce(),
    )
