"""Calls that repeat. What the C API is told of a call's arrays is the same for all calls whose arguments have the same
shapes and strides, but for the addresses: it is described once for each such layout, and kept."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _rt

WORDS = _rt.ARRAY_BYTES // 8  # of an effc_array, whose first word is its address
MOST = 256  # layouts that an entry point keeps
Found = tuple[tuple[Any, ...], list[int]]


class Block:
    """One call's arrays. ``arguments`` are effc_run's, but for its first three."""

    __slots__ = ("arguments", "at", "words")

    def __init__(self, arrays: bytes, n_in: int, n_out: int) -> None:
        self.words = (ctypes.c_uint64 * (len(arrays) // 8)).from_buffer_copy(arrays)
        self.at = ctypes.addressof(self.words)
        p, i = ctypes.c_void_p, ctypes.c_int32
        self.arguments = (p(self.at), i(n_in), p(self.at + n_in * _rt.ARRAY_BYTES), i(n_out))


class Layout:
    """The arrays of calls whose arguments lie alike: ``arrays`` as effc_array, inputs before outputs, whatever their
    addresses are. ``outputs``: a function that makes each result and returns its address too, what it takes."""

    __slots__ = ("_arrays", "_n_in", "outputs", "spare")

    def __init__(self, arrays: bytes, n_in: int, outputs: Sequence[tuple[Callable[..., Any], Any, Any]]) -> None:
        self._arrays, self._n_in, self.outputs = arrays, n_in, tuple(outputs)
        self.spare: list[Block] = []  # which no call uses now: as many as calls were under way at once

    def block(self) -> Block:
        try:
            return self.spare.pop()
        except IndexError:
            return Block(self._arrays, self._n_in, len(self.outputs))


def of_tensors(want: Sequence[Any], tensor: Any, strided: Any) -> Callable[[Sequence[Any]], Found | None]:
    """A function from torch tensors to the layout's key and their addresses; None for a tensor that is not plain or not
    of the element type that its input ``want``s."""

    def read(leaves: Sequence[Any]) -> Found | None:
        key, addresses = [tensor], []
        try:
            for dtype, x in zip(want, leaves):
                if type(x) is not tensor or x.dtype is not dtype or x.layout is not strided or not x.is_cpu:
                    return None
                if x.is_neg() or x.is_conj():
                    return None
                key += (x.shape, x.stride())
                addresses.append(x.data_ptr())
        except RuntimeError:  # functorch's wrappers have no data
            return None
        return tuple(key), addresses

    return read


def of_arrays(want: Sequence[Any]) -> Callable[[Sequence[Any]], Found | None]:
    """As ``of_tensors``, for numpy arrays."""

    def read(leaves: Sequence[Any]) -> Found | None:
        key: list[Any] = [np.ndarray]
        addresses = []
        for dtype, x in zip(want, leaves):
            if type(x) is not np.ndarray or x.dtype is not dtype:
                return None
            key += (x.shape, x.strides)
            addresses.append(x.__array_interface__["data"][0])
        return tuple(key), addresses

    return read
