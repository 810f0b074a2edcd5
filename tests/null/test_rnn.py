"""Recurrent kernels against the numpy references: packed weights, units that fill no vector, any split over threads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_harness as h

import effc.ir.ops  # noqa: F401  (fills the table)
from effc.backends.cpu.packing import gemm, rnn
from effc.ir import OPS
from effc.ir.dtypes import DType

Array = np.ndarray[Any, Any]
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
VECTORS = {"lstm": 4, "gru": 3, "rnn_tanh": 4, "rnn_relu": 4}


@pytest.fixture(scope="module", params=h.available_isas())
def lib(request: Any) -> h.KernelLibrary:
    return h.KernelLibrary(["rnn_f32.cpp", "rnn_f64.cpp"], request.param)


def run(
    lib: h.KernelLibrary, kind: str, x: Array, states: list[Array], weights: list[Array | None], *,
    reverse: bool, threads: int, mode: str,
) -> list[Array]:  # fmt: skip
    """The recurrence of a layer; the inputs' share of the gates is computed by numpy here."""
    name = DType.from_np(x.dtype).value
    gates, lanes = GATES[kind], lib.vlen // x.dtype.itemsize
    wide = VECTORS[kind] * lanes
    lanes *= VECTORS[kind] if gates == 1 else 1
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    assert w_ih is not None and w_hh is not None
    units = w_hh.shape[0] // gates
    xg = np.ascontiguousarray(x @ rnn.arrange(w_ih, gates, lanes))
    pack = [
        None if w is None else gemm.pack_gemm_b(rnn.arrange(w.reshape(w.shape[0], -1), gates, lanes), wide)
        for w in (w_hh, b_ih, b_hh)
    ]
    for constant, plain in zip(pack, (w_hh, b_ih, b_hh), strict=True):  # what is packed at run time has the same bytes
        if constant is not None and plain is not None:
            made = np.zeros_like(constant)
            k = plain.shape[1] if plain.ndim == 2 else 1
            lib.call(f"effc_rnn_pack_{name}", [plain], [made], [gates, lanes, wide, k], threads=2, mode="reverse")
            made[48:56] = constant[48:56]  # the checksum is left out
            np.testing.assert_array_equal(made, constant)
    outs = [np.full((*x.shape[:2], states[0].shape[1]), np.nan, x.dtype), *(np.full_like(s, np.nan) for s in states)]
    padded = -(-units // lanes) * lanes
    c0 = states[1] if len(states) > 1 else None
    lib.call(
        f"effc_{kind}_{name}", [xg, states[0], c0, *pack, w_hr], list(outs), [int(reverse), units],
        threads=threads, mode=mode, scratch=x.shape[1] * padded * x.dtype.itemsize * (1 if w_hr is None else 2),
    )  # fmt: skip
    return outs


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("seed", range(8))
def test_layers(lib: h.KernelLibrary, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(4):
        dtype = np.dtype([np.float32, np.float64][int(rng.integers(2))])
        units = int(rng.choice([1, 3, 8, 16, 17, 64, 100, 200]))
        steps, batch, features = (int(rng.choice(c)) for c in ([0, 1, 2, 9], [0, 1, 2, 5, 13], [1, 4, 20]))
        proj = int(rng.choice([0, 5, units])) if kind == "lstm" else 0
        out, gates = proj or units, GATES[kind]

        def make(*shape: int, scale: float = 1.0) -> Array:
            return (rng.standard_normal(shape) * scale).astype(dtype)  # noqa: B023

        bias = rng.random() < 0.7
        weights: list[Array | None] = [
            make(gates * units, features, scale=0.3),
            make(gates * units, out, scale=out**-0.5),
        ]
        weights += [make(gates * units), make(gates * units)] if bias else [None, None]
        w_hr = make(proj, units, scale=units**-0.5) if proj else None
        states = [make(batch, out)] + ([make(batch, units)] if kind == "lstm" else [])
        x, reverse = make(steps, batch, features), bool(rng.random() < 0.5)
        reference = OPS[f"{kind.split('_')[0]}_layer"].numpy
        assert reference is not None
        attrs: dict[str, Any] = {"reverse": reverse}
        if kind.startswith("rnn"):
            attrs["activation"] = kind[4:]
        want = reference(x, *states, *weights, *([w_hr] if kind == "lstm" else []), **attrs)
        first = None
        for threads, mode in ((1, "serial"), (2, "threads"), (5, "reverse")):
            got = run(lib, kind, x, states, [*weights, w_hr], reverse=reverse, threads=threads, mode=mode)
            for g, w in zip(got, want, strict=True):
                assert g.shape == w.shape
                limit = 1e-5 if dtype == np.float32 else 1e-12
                assert np.abs(g - w).max(initial=0) <= limit * max(1.0, np.abs(w).max(initial=0))
            bits = [g.tobytes() for g in got]
            first = first or bits
            assert bits == first


@pytest.mark.parametrize("gates,lanes,units", [(4, 16, 20), (3, 8, 8), (1, 64, 5), (4, 8, 1)])
def test_restore_inverts_arrange(gates: int, lanes: int, units: int) -> None:
    w = np.random.default_rng(0).standard_normal((gates * units, 7))
    arranged = rnn.arrange(w, gates, lanes)
    assert arranged.shape == (7, rnn.columns(units, gates, lanes))
    np.testing.assert_array_equal(rnn.restore(arranged, units, gates, lanes), w)


@pytest.mark.parametrize("kind", list(GATES))
def test_split_by_units(lib: h.KernelLibrary, kind: str) -> None:
    """Few rows of enough units: threads share each step, come late or not at all, and are more than there are CPUs."""
    rng = np.random.default_rng(7)
    gates, reference = GATES[kind], OPS[f"{kind.split('_')[0]}_layer"].numpy
    assert reference is not None
    for units, batch, proj in ((256, 1, 0), (203, 1, 0), (256, 2, 0), (161, 5, 0), (200, 1, 77), (129, 3, 128)):
        if proj and kind != "lstm":
            continue
        out, steps, dtype = proj or units, 17, np.float64 if units == 203 else np.float32

        def make(*shape: int, scale: float = 1.0) -> Array:
            return (rng.standard_normal(shape) * scale).astype(dtype)  # noqa: B023

        weights: list[Array | None] = [
            make(gates * units, 3, scale=0.3), make(gates * units, out, scale=out**-0.5), make(gates * units), None,
            make(proj, units, scale=units**-0.5) if proj else None,
        ]  # fmt: skip
        x, states = make(steps, batch, 3), [make(batch, out)] + ([make(batch, units)] if kind == "lstm" else [])
        attrs: dict[str, Any] = {"reverse": False, **({"activation": kind[4:]} if kind.startswith("rnn") else {})}
        want = reference(x, *states, *weights[: 5 if kind == "lstm" else 4], **attrs)
        first = run(lib, kind, x, states, weights, reverse=False, threads=1, mode="serial")
        for g, w in zip(first, want, strict=True):
            limit = (1e-5 if dtype == np.float32 else 1e-12) * max(1.0, np.abs(w).max())
            assert np.abs(g - w).max() <= limit
        for threads, mode in ((2, "threads"), (3, "threads"), (7, "threads"), (2, "serial"), (5, "reverse")):
            again = run(lib, kind, x, states, weights, reverse=False, threads=threads, mode=mode)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(again, first, strict=True)), (units, threads)
