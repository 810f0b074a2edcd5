"""torch dtypes to IR dtypes, and PyTorch's promotion rules on IR dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...ir.dtypes import DType
from ...runtime.errors import EffcError

_TABLE: dict[torch.dtype, DType] = {
    torch.bool: DType.bool,
    torch.uint8: DType.u8,
    torch.int8: DType.i8,
    torch.uint16: DType.u16,
    torch.int16: DType.i16,
    torch.uint32: DType.u32,
    torch.int32: DType.i32,
    torch.uint64: DType.u64,
    torch.int64: DType.i64,
    torch.float16: DType.f16,
    torch.bfloat16: DType.bf16,
    torch.float32: DType.f32,
    torch.float64: DType.f64,
    torch.float8_e4m3fn: DType.f8e4m3,
    torch.float8_e5m2: DType.f8e5m2,
    torch.complex64: DType.c64,
    torch.complex128: DType.c128,
    torch.complex32: DType.c32,
}
_BACK = {v: k for k, v in _TABLE.items()}
_BITS = {1: torch.int8, 2: torch.int16}


def dtype_of(dtype: torch.dtype) -> DType:
    """The IR dtype; EffcError for quantized and other storage types."""
    if dtype not in _TABLE:
        raise EffcError(
            f"tensors of {dtype} are not supported", hint="convert them to a float, integer, bool or complex type"
        )
    return _TABLE[dtype]


def torch_dtype(dtype: DType) -> torch.dtype:
    return _BACK[dtype]


def to_numpy(t: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's data as a contiguous array, sharing memory where it can."""
    t = t.detach()
    if t.device.type != "cpu":
        t = t.cpu()
    if t.layout is not torch.strided:
        raise EffcError(f"tensors of layout {t.layout} are not supported", hint="call .to_dense() on it")
    t = t.resolve_conj().resolve_neg().contiguous()
    want = dtype_of(t.dtype)
    if t.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        raw = t.reshape(-1).view(_BITS[t.element_size()] if t.element_size() > 1 else torch.uint8).numpy()
        return raw.view(want.np).reshape(tuple(t.shape))
    if t.dtype is torch.complex32:
        return t.to(torch.complex64).numpy()
    return t.numpy()


def from_numpy(a: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
    """A torch tensor over the array's data (copied when it is not writable or contiguous)."""
    a = np.array(a, order="C", copy=None if a.flags.writeable else True)
    if dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        raw = a.reshape(-1).view(np.int16 if a.itemsize == 2 else np.uint8)
        return torch.from_numpy(raw).view(dtype).reshape(a.shape)
    return torch.from_numpy(a).to(dtype)


def category(x: Any) -> int:
    """bool 0, integer 1, float 2, complex 3; for a DType, a Python number, or a SymNumber (has ``kind``)."""
    if isinstance(x, DType):
        return 0 if x.is_bool else 1 if x.is_int else 2 if x.is_float else 3
    kind = getattr(x, "kind", None) or type(x)
    return {bool: 0, float: 2, complex: 3}.get(kind, 1)


def join(a: DType, b: DType) -> DType:
    """torch.promote_types."""
    return a if a is b else dtype_of(torch.promote_types(_BACK[a], _BACK[b]))


def result_type(tensors: list[tuple[DType, int]], scalars: list[Any]) -> DType:
    """torch.result_type over tensors, given as (dtype, rank), and wrapped numbers."""
    out: DType | None = None
    zero: DType | None = None
    for dt, rank in tensors:
        if rank:
            out = dt if out is None else join(out, dt)
        else:
            zero = dt if zero is None else join(zero, dt)
    if zero is not None and (out is None or category(zero) > category(out)):
        out = zero if out is None else join(out, zero)
    if scalars:
        top = max(category(s) for s in scalars)
        if out is None:
            return (DType.bool, DType.i64, DType.f32, DType.c64)[top]
        if top > category(out):
            if top == 3:
                return {DType.f64: DType.c128, DType.f16: DType.c32}.get(out, DType.c64)
            return (DType.bool, DType.i64, dtype_of(torch.get_default_dtype()))[top]
    assert out is not None
    return out
