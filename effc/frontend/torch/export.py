"""From what the user gave to a functional exported program with the operators we have mappings or decompositions for."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config as symbolic_config
import torch.utils._pytree as pytree

from ...runtime.errors import EffcError
from . import dtypes as T
from .decompositions import table


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Sizes 0 and 1 of dynamic dims are not specialised, and nothing is recorded for gradients."""
    with symbolic_config.patch(backed_size_oblivious=True), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Wrapped(torch.nn.Module):
    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(*args, **kwargs)


def to_program(
    model: Any, args: Any = (), kwargs: Any = None, dynamic_shapes: Any = None
) -> tuple[torch.export.ExportedProgram, Sequence[str]]:
    """The decomposed, functional program and torch's conditions on the inputs' sizes; EffcError with torch's reason."""
    if isinstance(model, (str, os.PathLike)):
        try:
            model = torch.export.load(os.fspath(model))
        except Exception as e:
            raise EffcError(f"{os.fspath(model)} is not an exported program: {e}", hint="write it with torch.export.save") from e
    if not isinstance(model, torch.export.ExportedProgram):
        model = export(model, args, kwargs, dynamic_shapes)
    guards = list(getattr(model, "_guards_code", None) or [])
    return decompose(model), guards


def _tensor(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return T.from_numpy(x, T.torch_dtype(T.DType.from_np(x.dtype)))
    if isinstance(x, np.generic):
        return x.item()
    return x


def export(model: Any, args: Any, kwargs: Any, dynamic_shapes: Any) -> torch.export.ExportedProgram:
    """torch.export, without Dynamo first, with it where that fails."""
    if not isinstance(model, torch.nn.Module):
        if not callable(model):
            raise EffcError(f"cannot compile a {type(model).__name__}", hint="give an nn.Module, an ExportedProgram or a file")
        model = _Wrapped(model)
    if isinstance(args, (torch.Tensor, np.ndarray)):
        args = (args,)
    args, kwargs = pytree.tree_map(_tensor, (tuple(args), dict(kwargs or {})))
    reasons: list[str] = []
    quiet = logging.getLogger("torch")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        for strict in (False, True):
            try:
                with tracing():
                    return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=strict)
            except Exception as e:
                reasons.append(f"{type(e).__name__}: {_first(str(e))}")
                first = e if not strict else first
    finally:
        quiet.setLevel(level)
    raise EffcError(
        f"torch.export refuses the model: {reasons[0]}" + (f"\n  with strict=True: {reasons[1]}" if reasons[1] != reasons[0] else ""),
        hint="make torch.export.export(model, args, kwargs, dynamic_shapes=...) work first",
    ) from first


def _first(text: str) -> str:
    """The part of torch's message that a user needs: up to the first blank paragraph that only advertises settings."""
    lines = []
    for line in text.splitlines():
        if line.startswith(("The error above occurred", "For C++ stack trace", "For more information, run with")):
            break
        lines.append(line)
    return "\n".join(lines[:30]).strip()


def decompose(ep: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Functionalises and decomposes all that has no mapping of its own."""
    try:
        with tracing():
            return ep.run_decompositions(table())
    except Exception as e:
        raise EffcError(
            f"torch could not make the exported program functional: {type(e).__name__}: {_first(str(e))}",
            hint="ep.run_decompositions() fails on this program too",
        ) from e
