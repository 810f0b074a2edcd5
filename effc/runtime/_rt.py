"""ctypes binding of libeffc_rt.so (include/effc.h)."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

from .errors import EffcError

MAX_RANK = 12
ARRAY_BYTES = 16 + 8 * MAX_RANK * 2 + 8  # sizeof(effc_array)

_P = ctypes.c_void_p
_I = ctypes.c_int32


class Options(ctypes.Structure):
    _fields_ = [("num_threads", _I)]


class Io(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", _I),
        ("rank", _I),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("written", _I),
    ]


class Profile(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("loc", ctypes.c_char_p),
        ("depth", _I),
        ("calls", ctypes.c_uint64),
        ("ns", ctypes.c_uint64),
        ("flops", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
    ]


class Block(ctypes.Structure):
    _fields_ = [
        ("value", _I),
        ("first", _I),
        ("last", _I),
        ("bytes", ctypes.c_int64),
        ("offset", ctypes.c_int64),
    ]


class Stream(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in ("budget", "arena", "window", "resident")),
        *((n, ctypes.c_uint64) for n in ("runs", "pieces", "bytes", "rows", "row_bytes")),
        *((n, ctypes.c_uint64) for n in ("waits", "wait_ns", "run_ns", "chunks_checked")),
        ("direct", _I),
        ("prefetch", _I),
    ]


class Spill(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_uint64) for n in ("spills", "spill_bytes", "refills", "refill_bytes", "ns", "files")),
        ("file_bytes", ctypes.c_int64),
        ("in_memory", _I),
        ("ahead_bytes", ctypes.c_uint64),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "effc_version": (ctypes.c_char_p, []),
    "effc_cpu_features": (ctypes.c_char_p, []),
    "effc_last_error": (ctypes.c_char_p, []),
    "effc_load": (_I, [ctypes.c_char_p, ctypes.POINTER(Options), ctypes.POINTER(_P)]),
    "effc_free": (None, [_P]),
    "effc_manifest": (_P, [_P, ctypes.POINTER(ctypes.c_size_t)]),
    "effc_num_threads": (_I, [_P]),
    "effc_num_entries": (_I, [_P]),
    "effc_entry_name": (ctypes.c_char_p, [_P, _I]),
    "effc_find_entry": (_I, [_P, ctypes.c_char_p]),
    "effc_num_inputs": (_I, [_P, _I]),
    "effc_num_outputs": (_I, [_P, _I]),
    "effc_input": (_I, [_P, _I, _I, ctypes.POINTER(Io)]),
    "effc_output": (_I, [_P, _I, _I, ctypes.POINTER(Io)]),
    "effc_session_new": (_I, [_P, ctypes.POINTER(_P)]),
    "effc_session_free": (None, [_P]),
    "effc_session_seed": (_I, [_P, _P, ctypes.c_uint64]),
    "effc_session_reset": (_I, [_P, _P]),
    "effc_session_state": (_I, [_P, _P, ctypes.c_char_p, _P, ctypes.c_size_t, _I]),
    "effc_infer_shapes": (_I, [_P, _I, _P, _I, _P, _I]),
    "effc_run": (_I, [_P, _I, _P, _P, _I, _P, _I]),
    "effc_array_free": (None, [_P]),
    "effc_profile_enable": (None, [_P, _I]),
    "effc_profile_count": (_I, [_P, _I]),
    "effc_profile_get": (_I, [_P, _I, _I, ctypes.POINTER(Profile)]),
    "effc_arena": (_I, [_P, _I, _P, _I, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_int64)]),
    "effc_arenas": (_I, [_P, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(_I)]),
    "effc_arena_blocks": (_I, [_P, _I, _P, _I, _P, _I, ctypes.POINTER(_I)]),
    "effc_stream_stats": (_I, [_P, ctypes.POINTER(Stream)]),
    "effc_spill_stats": (_I, [_P, ctypes.POINTER(Spill)]),
    "effc_alloc_count": (ctypes.c_uint64, []),
    "effc_prefer_huge_pages": (None, [_P, ctypes.c_size_t]),
    "effc_xxh3": (ctypes.c_uint64, [_P, ctypes.c_size_t]),
    "effc_parallel_for": (None, [_I, ctypes.c_int64, ctypes.c_int64, _P, _P]),
}


@functools.cache
def lib() -> ctypes.CDLL:
    """The runtime library, one per process. EffcError if it cannot be built or loaded."""
    from . import build_rt

    path = build_rt.library()
    try:
        handle = ctypes.CDLL(os.fspath(path))
    except OSError as e:
        raise EffcError(f"cannot load the effc runtime library: {e}") from e
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(handle, name)
        function.restype = result
        function.argtypes = arguments
    return handle


def untyped(name: str) -> Any:
    """A function of the library that takes ctypes' own objects alone, made ahead: converting numbers at each call takes
    longer than the call. It returns an int."""
    return lib()[name]


def last_error() -> str:
    return str(lib().effc_last_error().decode("utf-8", "replace"))


def check(status: int) -> None:
    """Raises the runtime's last error as an EffcError unless ``status`` is 0."""
    if status:
        raise EffcError(last_error())


def cpu_features() -> frozenset[str]:
    """What this CPU has and the operating system enables, less what EFFC_CPU_DISABLE names."""
    return frozenset(lib().effc_cpu_features().decode().split())


def xxh3(data: bytes | bytearray | memoryview) -> int:
    """XXH3-64 of a bytes-like object."""
    import numpy as np

    array = np.frombuffer(data, dtype=np.uint8)
    return int(lib().effc_xxh3(array.ctypes.data, array.nbytes))
