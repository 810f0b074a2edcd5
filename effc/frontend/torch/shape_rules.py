"""Shape rules of torch that ask more about sizes than results depend on.

While exporting, torch's rule for a convolution asks which of eager's kernels would run, to know the layout of the
result; its rule for writing into a strided view asks whether elements overlap; its rule for reshaping an expanded
tensor asks whether the result can be a view. With dynamic sizes each answer makes a condition such as "batch > 1",
and the program is then none for a batch of 1. Inside :func:`modest`, a convolution of dynamic sizes has the default
layout, only a stride of 0 is an overlap, and a tensor expanded to a dynamic size is reshaped by copying. What is traced
are the same operators; the rules give sizes and strides alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C import DispatchKey
from torch._subclasses import fake_impls, fake_tensor

COMPOSITE = DispatchKey.CompositeImplicitAutograd
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten._convolution.default)


def _is_dynamic(*values: Any) -> bool:
    return any(isinstance(n, torch.SymInt) for t in values if isinstance(t, torch.Tensor) for n in t.shape)


def _convolution(original: Callable[..., Any]) -> Callable[..., Any]:
    def rule(fake_mode: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_dynamic(*args, *kwargs.values()):
            return original(fake_mode, func, *args, **kwargs)
        device = next(t.fake_device for t in (*args, *kwargs.values()) if isinstance(t, fake_tensor.FakeTensor))
        with fake_tensor.in_kernel_invocation_manager(fake_mode):
            out = func(*args, **kwargs)
        return fake_tensor.FakeTensor(fake_mode, out, device)

    return rule


def _overlap(original: Callable[[torch.Tensor], int]) -> Callable[[torch.Tensor], int]:
    def rule(t: torch.Tensor) -> int:
        """0: elements do not overlap, 1: they do, 2: unknown."""
        still = any(isinstance(s, int) and s == 0 for s in t.stride())
        return original(t) if still or not _is_dynamic(t) else 2

    return rule


def _reshape(x: torch.Tensor, shape: Any) -> torch.Tensor:
    still = (isinstance(s, int) and s == 0 and isinstance(n, torch.SymInt) for n, s in zip(x.shape, x.stride()))
    if any(still):
        return x.clone(memory_format=torch.contiguous_format).view(shape)
    out: torch.Tensor = torch.ops.aten.reshape.default._op_dk(COMPOSITE, x, shape)
    return out


@contextlib.contextmanager
def _rule_for(op: Any, rule: Callable[..., Any]) -> Iterator[None]:
    """A Python rule in place of an operator's own composition of others."""
    if COMPOSITE in op.py_kernels:  # torch has one by now, or this is nested
        yield
        return
    op.py_kernels[COMPOSITE] = rule
    op._dispatch_cache.clear()
    try:
        yield
    finally:
        del op.py_kernels[COMPOSITE]
        op._dispatch_cache.clear()


@contextlib.contextmanager
def modest() -> Iterator[None]:
    """Replaces the rules for as long as it lasts."""
    rules: dict[Any, Callable[..., Any]] = fake_impls.op_implementations_dict
    kept = {op: rules[op] for op in _CONVOLUTIONS if op in rules}
    overlap = torch._debug_has_internal_overlap
    rules.update({op: _convolution(f) for op, f in kept.items()})
    torch._debug_has_internal_overlap = _overlap(overlap)
    try:
        with _rule_for(torch.ops.aten.reshape.default, _reshape):
            yield
    finally:
        rules.update(kept)
        torch._debug_has_internal_overlap = overlap
