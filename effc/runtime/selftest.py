"""An artifact's own test: inputs, and what the model it came from made of them. Checking it needs numpy alone.

``selftest/index.json`` is ``{entry: {"inputs": [file...], "expected": [{"of": "output"|"input", "index": i} or
{"of": "state", "name": name}, with "file", "shape" and "step"...]}}``. The files are npy arrays without pickle; types
that numpy lacks are stored as their bits. ``step`` > 1 means that only every step-th element of the flattened array is
kept, so that a large result costs no more than its share. ``input`` and ``state`` are what a run leaves in an input or
a state that it writes, from the states at load.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from . import dtypes
from .errors import EffcError

if TYPE_CHECKING:
    from .artifact import ArtifactReader, ArtifactWriter

Array = np.ndarray[Any, Any]
LIMIT = 1 << 20  # bytes of one artifact's selftest, all entry points together
INDEX = "selftest/index.json"
BITS = {t.name: np.dtype(t.numpy) for t in dtypes.TABLE if not t.plain}

TOLERANCE = {
    "float64": 1e-10,
    "float32": 1e-4,
    "float16": 4e-3,
    "bfloat16": 2e-2,
    "complex64": 1e-4,
    "complex128": 1e-10,
}


def difference(got: Any, want: Any, limit: float | None = None) -> tuple[float, str | None]:
    """(max|a-b| / max|b|, None or what is wrong) of one output; ``limit`` is the dtype's if not given."""
    a, b = np.asarray(got), np.asarray(want)
    if a.dtype != b.dtype or a.shape != b.shape:
        return float("inf"), f"{a.dtype}{list(a.shape)}, expected {b.dtype}{list(b.shape)}"
    if b.size == 0:
        return 0.0, None
    limit = TOLERANCE.get(b.dtype.name) if limit is None else limit
    if limit is None:
        return float((a != b).mean()), None if (a == b).all() else f"{int((a != b).sum())} of {b.size} differ"
    wide = np.complex128 if b.dtype.kind == "c" else np.float64
    a, b = a.astype(wide), b.astype(wide)
    finite = np.isfinite(b)
    if not np.array_equal(np.isnan(a), np.isnan(b)) or not np.array_equal(np.isinf(a), np.isinf(b)):
        return float("inf"), "NaN or infinity in other places"
    if not finite.any():
        return 0.0, None
    scale = float(np.abs(b[finite]).max())
    error = float(np.abs(a[finite] - b[finite]).max()) / (scale or 1.0)
    return error, None if error <= limit else f"error {error:.2e}, allowed {limit:.0e}"


# Writing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One entry point's inputs, and the arrays that a run is to leave, each with its place as in the index."""

    inputs: Sequence[Array]
    expected: Sequence[tuple[Mapping[str, Any], Array]]


def add(w: ArtifactWriter, cases: Mapping[str, Case]) -> dict[str, dict[str, Any]]:
    """Adds the cases to an artifact within LIMIT. Returns for each what the report says: its bytes and how many results
    are kept in part, or why it is left out.
    """
    index: dict[str, Any] = {}
    said: dict[str, dict[str, Any]] = {}
    share = LIMIT // max(1, len(cases))
    for entry, case in cases.items():
        size = sum(a.nbytes for a in case.inputs)
        if size > share * 3 // 4:
            said[entry] = {"left_out": f"the example inputs have {size:,} bytes, the limit is {share * 3 // 4:,}"}
            continue
        name = f"selftest/{quote(entry, safe='')}"
        room = (share - size) // max(1, len(case.expected))
        files, expected, sampled = [], [], 0
        for i, a in enumerate(case.inputs):
            w.add_file(f"{name}.in{i}.npy", _npy(a))
            files.append(f"{name}.in{i}.npy")
        for i, (place, a) in enumerate(case.expected):
            step = max(1, -(-a.nbytes // max(room, a.itemsize)))
            sampled += step > 1
            kept = a.reshape(-1)[::step]
            size += kept.nbytes
            w.add_file(f"{name}.out{i}.npy", _npy(kept))
            expected.append({**place, "file": f"{name}.out{i}.npy", "shape": list(a.shape), "step": step})
        index[entry] = {"inputs": files, "expected": expected}
        said[entry] = {"bytes": size, "results": len(expected), "in_part": sampled}
    if index:
        w.add_file(INDEX, json.dumps(index, separators=(",", ":")))
    return said


def _npy(a: Array) -> bytes:
    if a.dtype.kind == "V" or a.dtype.name in {t.ml for t in dtypes.TABLE if t.ml}:
        a = a.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[a.itemsize])
    f = io.BytesIO()
    np.lib.format.write_array(f, np.asarray(a), allow_pickle=False)
    return f.getvalue()


# Checking -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One entry point's check: the largest error, how many arrays were compared, and what is wrong with which."""

    entry: str
    error: float
    compared: int
    problems: tuple[str, ...]


def read_index(reader: ArtifactReader) -> dict[str, Any]:
    """The index of an artifact's selftest; empty where it has none."""
    if INDEX not in reader.names():
        return {}
    try:
        found = json.loads(reader.read(INDEX))
    except ValueError as e:
        raise EffcError(f"'{reader.path}': {INDEX} is not valid JSON: {e}") from e
    if not isinstance(found, dict):
        raise EffcError(f"'{reader.path}': {INDEX} is malformed")
    return found


def _load(reader: ArtifactReader, file: str) -> Array:
    try:
        a: Array = np.lib.format.read_array(io.BytesIO(reader.read(file)), allow_pickle=False)
    except ValueError as e:
        raise EffcError(f"'{reader.path}': {file} is not an array: {e}") from e
    return a


def check(reader: ArtifactReader, model: Any) -> list[Result]:
    """Runs every entry point that has a selftest, from the states at load, and compares. EffcError for a malformed
    one."""
    results = []
    for entry, case in read_index(reader).items():
        try:
            results.append(_check(reader, model, entry, case))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
            raise EffcError(f"'{reader.path}': the selftest of {entry} is malformed: {type(e).__name__}: {e}") from e
    return results


def _check(reader: ArtifactReader, model: Any, entry: str, case: Mapping[str, Any]) -> Result:
    spec = reader.manifest["entries"][entry]
    session = model.session()
    inputs = {s["name"]: _load(reader, f) for s, f in zip(spec["inputs"], case["inputs"], strict=True)}
    outputs = session.entry(entry).run(inputs)
    worst, problems = 0.0, []
    for e in case["expected"]:
        if e["of"] == "state":
            label, got, dtype = (
                f"state {e['name']}",
                session.state(e["name"]),
                reader.manifest["states"][e["name"]]["d"],
            )
        else:
            s = spec[e["of"] + "s"][e["index"]]
            label, got, dtype = s["name"], (outputs if e["of"] == "output" else inputs)[s["name"]], s["dtype"]
            label = label if e["of"] == "output" else f"input {label} after the run"
        got, want = np.asarray(got), _load(reader, e["file"])
        if got.shape != tuple(e["shape"]):
            problems.append(f"{label}: shape {list(got.shape)}, expected {e['shape']}")
            continue
        error, problem = _compared(got.reshape(-1)[:: e["step"]], want, dtype)
        worst = max(worst, error)
        if problem:
            problems.append(f"{label}: {problem}")
    return Result(entry, worst, len(case["expected"]), tuple(f"selftest of {entry}: {p}" for p in problems))


def _compared(got: Array, want: Array, dtype: str) -> tuple[float, str | None]:
    """As :func:`difference`. Where elements are stored as bits, bf16 is widened and the other types compared as
    bits."""
    if dtype not in BITS:
        return difference(got, want)
    a, b = got.view(BITS[dtype]), want.view(BITS[dtype])
    if dtype != "bf16":
        return difference(a, b)
    wide = [(x.astype(np.uint32) << 16).view(np.float32) for x in (a, b)]
    return difference(wide[0], wide[1], TOLERANCE["bfloat16"])
