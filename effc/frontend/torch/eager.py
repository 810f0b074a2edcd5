"""What a model makes of its example inputs when torch runs it: the expectations of an artifact's selftest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree

from ...ir.dtypes import DType
from ...ir.graph import Graph
from ...ir.op import get
from ...runtime import tree
from ...runtime.errors import EffcError
from . import dtypes as T
from .convert import ImportedGraph
from .export import _tensor

Array = np.ndarray[Any, Any]
Expected = list[tuple[dict[str, Any], Array]]


def is_random(graph: Graph) -> bool:
    """Whether a run draws random numbers."""
    inner = (a for n in graph.nodes for a in n.attrs.values() if isinstance(a, Graph))
    return any(get(n.op).effects == "random" for n in graph.nodes) or any(map(is_random, inner))


def run(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], imported: ImportedGraph, graph: Graph
) -> tuple[list[Array], Expected]:
    """The inputs as arrays, and what the model's own run leaves: outputs, inputs and states that ``graph`` writes.

    The model's buffers, the caller's tensors and torch's random numbers stay as they are. EffcError says why there is
    nothing to expect: random numbers, state that lies outside a module, a model that fails in eager mode.
    """
    if is_random(graph):
        raise EffcError("the model draws random numbers, which are not torch's")
    if isinstance(model, (str, os.PathLike)):
        model = torch.export.load(os.fspath(model))
    if isinstance(model, torch.export.ExportedProgram):
        if not args and not kwargs:
            if model.example_inputs is None:
                raise EffcError("the exported program carries no example inputs")
            args, kwargs = model.example_inputs
        model = model.module()
    states = {c.state for c in graph.commits if c.state is not None}
    if states and not isinstance(model, torch.nn.Module):
        raise EffcError("the model's state lies outside a module")
    given = pytree.tree_map(_tensor, (tuple(args), dict(kwargs)))
    args, kwargs = pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, given)
    types = [n.types[0].dtype for n in graph.inputs]
    leaves = tree.bind_arguments(imported.in_tree, args, kwargs)
    inputs = [_array(x, t) for x, t in zip(leaves, types, strict=True)]
    buffers: dict[str, torch.Tensor] = {}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if states:  # written ones must not be the user's; torch keeps buffers and parameters in two tables
                named = [*model.named_buffers(), *model.named_parameters()]
                buffers = {k: v.detach().clone() for k, v in named if k in states}
                result = torch.func.functional_call(model, buffers, args, kwargs)
            else:
                result = model(*args, **kwargs)
    except Exception as e:
        text = str(e).strip().split("\n")[0][:200]
        raise EffcError(f"the model's own run fails: {type(e).__name__}: {text}") from e
    outputs = tree.flatten(imported.out_tree, result, "the result of the model's own run")
    expected: Expected = [
        ({"of": "output", "index": i}, _array(x, v.type.dtype))
        for i, (x, v) in enumerate(zip(outputs, graph.outputs, strict=True))
    ]
    written = {c.input for c in graph.commits if c.input is not None}
    expected += [({"of": "input", "index": i}, _array(leaves[i], types[i])) for i in sorted(written)]
    kept = sorted(states & buffers.keys())
    expected += [({"of": "state", "name": k}, _array(buffers[k], graph.states[k].type.dtype)) for k in kept]
    return inputs, expected


def _array(x: Any, dtype: DType) -> Array:
    """A private array of a tensor or number of this type."""
    if dtype is DType.c32:
        raise EffcError("numpy has no complex numbers of halves")
    t = x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=T.torch_dtype(dtype))
    if T.dtype_of(t.dtype) is not dtype:
        raise EffcError(f"the model's own run gives {t.dtype} where the graph has {dtype}")
    return np.array(T.to_numpy(t))
