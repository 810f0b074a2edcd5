"""Tensors that reach an exported program under two names: a registered buffer that other objects (a cache, say) hold
too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.export.graph_signature import ExportGraphSignature, InputKind


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        and a.storage_offset() == b.storage_offset()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
    )


def _pairs(ep: torch.export.ExportedProgram) -> dict[str, str]:
    """Names of lifted-constant placeholders that are a buffer under another name -> that buffer's placeholder."""
    constants: Mapping[str, Any] = {**ep.state_dict, **ep.constants}
    buffers: dict[int, list[tuple[str, torch.Tensor]]] = {}
    out: dict[str, str] = {}
    for s in ep.graph_signature.input_specs:
        t = constants.get(s.target or "")
        if s.kind is InputKind.BUFFER and isinstance(t, torch.Tensor) and t.numel():
            buffers.setdefault(t.untyped_storage().data_ptr(), []).append((s.arg.name, t))
    for s in ep.graph_signature.input_specs:
        t = constants.get(s.target or "")
        if s.kind is InputKind.CONSTANT_TENSOR and isinstance(t, torch.Tensor) and t.numel():
            for name, b in buffers.get(t.untyped_storage().data_ptr(), ()):
                if _same_memory(t, b):
                    out[s.arg.name] = name
                    break
    return out


def merge_aliased_constants(ep: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``ep`` with every lifted constant that is a buffer's memory replaced by that buffer.

    A write to one must be seen through the other; torch's own functionalisation refuses programs whose inputs alias
    so.
    """
    pairs = _pairs(ep)
    if not pairs:
        return ep
    gm = copy.deepcopy(ep.graph_module)
    nodes = {n.name: n for n in gm.graph.nodes if n.op == "placeholder"}
    for constant, buffer in pairs.items():
        if constant in nodes and buffer in nodes:
            nodes[constant].replace_all_uses_with(nodes[buffer])
            gm.graph.erase_node(nodes[constant])
    gm.recompile()
    old = ep.graph_signature
    signature = ExportGraphSignature(
        input_specs=[s for s in old.input_specs if s.arg.name not in pairs], output_specs=list(old.output_specs)
    )
    dropped = {s.target for s in old.input_specs if s.arg.name in pairs}
    return torch.export.ExportedProgram(
        root=gm,
        graph=gm.graph,
        graph_signature=signature,
        state_dict=ep.state_dict,
        range_constraints=ep.range_constraints,
        module_call_graph=copy.deepcopy(ep.module_call_graph),
        example_inputs=ep.example_inputs,
        constants={k: v for k, v in ep.constants.items() if k not in dropped},
        verifiers=ep.verifiers,
    )
