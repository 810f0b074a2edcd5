"""How libeffc_rt.so is built (``shared_library.py``). ``library()`` is what the loader calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .shared_library import FLAGS as FLAGS
from .shared_library import SharedLibrary
from .shared_library import cache_dir as cache_dir
from .shared_library import compiler as compiler

ROOT = Path(__file__).resolve().parent
LIBRARY = SharedLibrary("effc_rt", ROOT / "src", (ROOT / "include",), "rt", ("-DEFFC_RT_BUILD", "-pthread"))
NAME = LIBRARY.file


def include_dir() -> Path:
    """Where effc.h and effc_kernel.h are, in a checkout and in an installed wheel."""
    return ROOT / "include"


def sources() -> list[Path]:
    """The translation units of effc_rt; empty in a wheel that does not carry them."""
    return LIBRARY.sources()


def content_hash(extra: Sequence[str] = ()) -> str:
    """A hash of what decides the library."""
    return LIBRARY.content_hash(extra)


def build(out_dir: str | os.PathLike[str], extra_flags: Sequence[str] = ()) -> Path:
    """Compiles effc_rt into ``out_dir/libeffc_rt.so`` (atomically) and returns that path."""
    return LIBRARY.build(out_dir, extra_flags)


def library() -> Path:
    """The runtime library: $EFFC_RT_LIB, else the one in the package unless its sources have changed since, else one
    compiled into the cache."""
    named = os.environ.get("EFFC_RT_LIB")
    return Path(named) if named else LIBRARY.find()


def main() -> None:
    """Prints what a C program needs: the folders of effc.h and of libeffc_rt.so."""
    print(f"include {include_dir()}")
    print(f"lib {library().parent}")


if __name__ == "__main__":
    main()
