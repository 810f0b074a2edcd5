"""The searches in C++ (``native/``, interface ``native/memory.h``), through ctypes: order and placement.

The library is built as the runtime's is (``effc/runtime/shared_library.py``). Where it can neither be found nor built
(no compiler), ``why_not()`` says so and callers keep to what Python does.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from ...runtime.errors import EffcError
from ...runtime.shared_library import SharedLibrary

ROOT = Path(__file__).resolve().parent
LIBRARY = SharedLibrary("effc_memory", ROOT / "native", (ROOT / "native",), "memory", parts=2)

# Why a search ended: as in memory.h.
ENDED = ("proven", "budget", "time")

_i64 = ctypes.c_int64
_Array = ctypes.POINTER(_i64)


class PlacementIn(ctypes.Structure):
    _fields_ = [
        ("buffers", _i64),
        ("align", _Array),
        ("pinned", _Array),
        ("part_first", _Array),
        ("part_start", _Array),
        ("part_stop", _Array),
        ("part_lo", _Array),
        ("part_hi", _Array),
        ("bound", _i64),
        ("budget", _i64),
        ("seconds", ctypes.c_double),
    ]


class PlacementOut(ctypes.Structure):
    _fields_ = [
        ("offset", _Array),
        ("total", _i64),
        ("bound", _i64),
        ("nodes", _i64),
        ("ended", ctypes.c_int32),
        ("how", ctypes.c_int32),
    ]


class OrderIn(ctypes.Structure):
    _fields_ = [
        ("nodes", _i64),
        ("tensors", _i64),
        ("bytes", _Array),
        ("producer", _Array),
        ("stays", ctypes.POINTER(ctypes.c_uint8)),
        ("use_first", _Array),
        ("use", _Array),
        ("after_first", _Array),
        ("after", _Array),
        ("workspace", _Array),
        ("over_first", _Array),
        ("over", _Array),
        ("absorbed", _Array),
        ("given", _Array),
        ("budget", _i64),
        ("seconds", ctypes.c_double),
    ]


class OrderOut(ctypes.Structure):
    _fields_ = [
        ("order", _Array),
        ("loose", _Array),
        ("peak", _i64),
        ("bound", _i64),
        ("cut_bound", _i64),
        ("states", _i64),
        ("ended", ctypes.c_int32),
    ]


class LimitedIn(ctypes.Structure):
    _fields_ = [
        ("nodes", _i64),
        ("tensors", _i64),
        ("in_first", _Array),
        ("in_", _Array),
        ("out_first", _Array),
        ("out", _Array),
        ("after_first", _Array),
        ("after", _Array),
        ("over_first", _Array),
        ("over", _Array),
        ("part_first", _Array),
        ("part", _Array),
        ("write_first", _Array),
        ("write", _Array),
        ("bytes", _Array),
        ("move", _Array),
        ("copy", _Array),
        ("workspace", _Array),
        ("rerun", _Array),
        ("stays", ctypes.POINTER(ctypes.c_uint8)),
        ("capacity", _i64),
        ("length", _i64),
        ("start", _Array),
        ("recompute", _i64),
        ("seed", _i64),
        ("budget", _i64),
        ("seconds", ctypes.c_double),
        ("heat", ctypes.c_double),
    ]


class SequenceOut(ctypes.Structure):
    _fields_ = [
        ("sequence", _Array),
        ("room", _i64),
        ("length", _i64),
        ("cost", _i64),
        ("start_cost", _i64),
        ("evaluations", _i64),
        ("ended", ctypes.c_int32),
    ]


class GapsOut(ctypes.Structure):
    _fields_ = [
        ("tensor", _Array),
        ("from_", _Array),
        ("to", _Array),
        ("group", _Array),
        ("out", ctypes.POINTER(ctypes.c_uint8)),
        ("room", _i64),
        ("count", _i64),
        ("cost", _i64),
    ]


def build(out_dir: str | os.PathLike[str]) -> Path:
    """Compiles the library into ``out_dir``: what the wheel build calls."""
    return LIBRARY.build(out_dir)


def array(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (_i64 * max(1, len(values)))(*values)


def ragged(rows: Sequence[Sequence[int]]) -> tuple[ctypes.Array[ctypes.c_int64], ctypes.Array[ctypes.c_int64]]:
    """Starts (one more than rows) and entries."""
    first = [0]
    flat: list[int] = []
    for row in rows:
        flat.extend(row)
        first.append(len(flat))
    return array(first), array(flat)


@functools.cache
def _load() -> ctypes.CDLL | str:
    try:
        handle = ctypes.CDLL(os.fspath(LIBRARY.find()))
    except (EffcError, OSError) as e:
        return str(e).splitlines()[0]
    handle.effc_mem_place.restype = handle.effc_mem_order.restype = ctypes.c_int
    handle.effc_mem_limit.restype = handle.effc_mem_evict.restype = ctypes.c_int
    handle.effc_mem_limit.argtypes = [ctypes.POINTER(LimitedIn), ctypes.POINTER(SequenceOut)]
    handle.effc_mem_evict.argtypes = [
        ctypes.POINTER(LimitedIn),
        _Array,
        ctypes.POINTER(ctypes.c_uint8),
        ctypes.POINTER(GapsOut),
    ]
    handle.effc_mem_place.argtypes = [ctypes.POINTER(PlacementIn), ctypes.POINTER(PlacementOut)]
    handle.effc_mem_order.argtypes = [ctypes.POINTER(OrderIn), ctypes.POINTER(OrderOut)]
    return handle


def why_not() -> str | None:
    """None where the searches can run, else the reason."""
    found = _load()
    return found if isinstance(found, str) else None


def handle() -> ctypes.CDLL:
    found = _load()
    if isinstance(found, str):
        raise EffcError(f"the memory planner's searches cannot run: {found}")
    return found
