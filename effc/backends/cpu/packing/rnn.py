"""Weights of recurrent layers, rearranged so that the gates of a block of units lie side by side (kernels/rnn.hpp).

Rows of w [gates * units, k] are ordered [gate][unit]; here they become columns ordered [block][gate][lane], units
padded with zeros to whole blocks of ``lanes`` units. The matrix [k, columns] is then packed in panels like any
right-hand side (packing/gemm.py): of the GEMM's width for the inputs' weights, of ``gates * lanes`` columns for the
recurrent ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def columns(units: int, gates: int, lanes: int) -> int:
    """Columns of a rearranged matrix."""
    return -(-units // lanes) * gates * lanes


def arrange(w: Array, gates: int, lanes: int) -> Array:
    """w (gates * units, k) as (k, columns)."""
    units, k = w.shape[0] // gates, w.shape[1]
    blocks = -(-units // lanes)
    padded = np.zeros((gates, blocks * lanes, k), w.dtype)
    padded[:, :units] = w.reshape(gates, units, k)
    return np.ascontiguousarray(padded.reshape(gates, blocks, lanes, k).transpose(3, 1, 0, 2).reshape(k, -1))


def restore(m: Array, units: int, gates: int, lanes: int) -> Array:
    """The inverse of :func:`arrange`."""
    k = m.shape[0]
    wide = m.reshape(k, -1, gates, lanes).transpose(2, 1, 3, 0).reshape(gates, -1, k)
    return np.ascontiguousarray(wide[:, :units].reshape(gates * units, k))
