"""From what the user gave to a functional exported program of operators with mappings or decompositions."""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config as symbolic_config
import torch.utils._pytree as pytree
from torch.fx.proxy import TracerBase

from ...runtime.errors import EffcError
from . import dtypes as T
from . import registry
from .aliases import merge_aliased_constants
from .decompositions import table
from .recurrent import whole_layers
from .shape_rules import modest


@contextlib.contextmanager
def tracing(oblivious: bool = True) -> Iterator[None]:
    """Sizes 0 and 1 of dynamic dims are not specialised, and nothing is recorded for gradients."""
    patch = symbolic_config.patch(backed_size_oblivious=oblivious)
    with patch, modest(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_TORCH = os.path.dirname(torch.__file__) + os.sep
_PYTHON = os.path.dirname(os.__file__) + os.sep
_OURS = os.path.dirname(__file__) + os.sep


@contextlib.contextmanager
def user_lines() -> Iterator[None]:
    """Lets the tracer keep the innermost lines of the user's code; by default it keeps those of ``forward`` methods
    alone.
    """
    kept = TracerBase._filter_traceback_frames

    def filtered(self: Any, summary: traceback.StackSummary) -> traceback.StackSummary:
        below = max((i for i, f in enumerate(summary) if f.filename.startswith(_OURS)), default=-1)
        user = [f for f in summary[below + 1 :] if _is_user_file(f.filename)]
        return traceback.StackSummary.from_list(user[-3:]) if user else kept(self, summary)

    TracerBase._filter_traceback_frames = filtered  # type: ignore[method-assign]
    try:
        yield
    finally:
        TracerBase._filter_traceback_frames = kept  # type: ignore[method-assign]


@functools.cache
def _is_user_file(name: str) -> bool:
    if name.startswith((_TORCH, "<")):
        return False
    return not name.startswith(_PYTHON) or "site-packages" in name


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
            raise EffcError(
                f"{os.fspath(model)} is not an exported program: {e}", hint="write it with torch.export.save"
            ) from e
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
    """torch.export, without Dynamo first, with it where that fails.

    Between the two, conditions on sizes are deferred to run time: torch refuses, for one, pooling with ceil_mode at
    any odd and even size, though the operators' own shape rules (which the IR has too) cover both. Then sizes 0 and 1
    are allowed to be special: some slices by sizes cannot be traced without, and what that costs is in the bounds of
    the program's symbols.
    """
    if not isinstance(model, torch.nn.Module):
        if not callable(model):
            raise EffcError(
                f"cannot compile a {type(model).__name__}", hint="give an nn.Module, an ExportedProgram or a file"
            )
        model = _Wrapped(model)
    if isinstance(args, (torch.Tensor, np.ndarray)):
        args = (args,)
    args, kwargs = pytree.tree_map(_tensor, (tuple(args), dict(kwargs or {})))
    reasons: list[str] = []
    causes: list[Exception] = []
    quiet = logging.getLogger("torch")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        for strict, defer, oblivious in (
            (False, False, True),
            (False, True, True),
            (False, False, False),
            (True, False, True),
        ):
            try:
                with tracing(oblivious), whole_layers(), user_lines():
                    program = torch.export.export(
                        model,
                        args,
                        kwargs,
                        dynamic_shapes=dynamic_shapes,
                        strict=strict,
                        prefer_deferred_runtime_asserts_over_guards=defer,
                    )
                program._effc_oblivious = oblivious  # type: ignore[attr-defined]  # decomposed under the same rule
                return program
            except Exception as e:
                reasons.append(f"{type(e).__name__}: {_first(str(e))}")
                causes.append(e)
    finally:
        quiet.setLevel(level)
    raise EffcError(
        f"torch.export refuses the model: {reasons[0]}"
        + (f"\n  with strict=True: {reasons[-1]}" if reasons[-1] != reasons[0] else ""),
        hint="make torch.export.export(model, args, kwargs, dynamic_shapes=...) work first",
    ) from causes[0]


def _first(text: str) -> str:
    """The part of torch's message that a user needs: up to the first blank paragraph that only advertises settings."""
    lines = []
    for line in text.splitlines():
        if line.startswith(("The error above occurred", "For C++ stack trace", "For more information, run with")):
            break
        lines.append(line)
    return "\n".join(lines[:30]).strip()


def is_functional(gm: torch.fx.GraphModule) -> bool:
    """Whether every operator, in submodules too, has a mapping and none writes to its operands: nothing to decompose
    then.
    """
    for module in gm.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for n in module.graph.nodes:
            target = n.target
            if n.op in ("placeholder", "output", "get_attr") or (n.op == "call_function" and _is_arithmetic(n)):
                continue
            if n.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
                return False
            if registry.keys_of(target)[0].startswith(("_assert", "sym_", "_local_scalar_dense")):
                continue
            if target._schema.is_mutable or registry.lookup(target) is None or _updates_statistics(n):
                return False
    return True


def _is_arithmetic(n: torch.fx.Node) -> bool:
    """getitem, and Python functions of numbers."""
    if n.target is operator.getitem:
        return True
    number = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
    return not isinstance(n.target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)) and isinstance(
        n.meta.get("val"), number
    )


def _updates_statistics(n: torch.fx.Node) -> bool:
    """Batch norm in training writes its running statistics, if it has any, though its schema does not say so."""
    return "batch_norm" in str(n.target) and any(a is True for a in n.args[5:6]) and n.args[3] is not None


def decompose(ep: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Functionalises and decomposes all that has no mapping of its own. Programs that need neither are taken as they
    are.
    """
    registry.load()
    if is_functional(ep.graph_module):
        return ep
    try:
        with tracing(getattr(ep, "_effc_oblivious", True)):
            return merge_aliased_constants(ep).run_decompositions(table())
    except Exception as e:
        raise EffcError(
            f"torch could not make the exported program functional: {type(e).__name__}: {_first(str(e))}",
            hint="ep.run_decompositions() fails on this program too",
        ) from e
