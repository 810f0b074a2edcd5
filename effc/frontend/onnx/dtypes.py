"""ONNX element types and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from ...ir.dtypes import DType
from ..imported import Unsupported

Array = np.ndarray[Any, Any]
_T = onnx.TensorProto
_NAMES = {
    "FLOAT": "f32", "UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "INT32": "i32", "INT64": "i64",
    "BOOL": "bool", "FLOAT16": "f16", "DOUBLE": "f64", "UINT32": "u32", "UINT64": "u64", "COMPLEX64": "c64",
    "COMPLEX128": "c128", "BFLOAT16": "bf16", "FLOAT8E4M3FN": "f8e4m3", "FLOAT8E5M2": "f8e5m2",
    "FLOAT8E4M3FNUZ": "f8e4m3fnuz", "FLOAT8E5M2FNUZ": "f8e5m2fnuz", "FLOAT8E8M0": "f8e8m0", "UINT4": "u4", "INT4": "i4",
    "FLOAT4E2M1": "f4e2m1", "UINT2": "u2", "INT2": "i2",
}  # fmt: skip
_KNOWN = {d.value for d in DType}
_TO_IR = {_T.DataType.Value(k): DType(v) for k, v in _NAMES.items() if k in _T.DataType.keys() and v in _KNOWN}
_TO_ONNX = {d: code for code, d in _TO_IR.items()}


def dtype_of(code: int) -> DType:
    """The IR's dtype of a TensorProto.DataType; Unsupported names one that there is none for."""
    if code not in _TO_IR:
        name = _T.DataType.Name(code) if code in _T.DataType.values() else str(code)
        raise Unsupported(f"the element type {name}")
    return _TO_IR[code]


def code_of(dtype: DType) -> int:
    """The TensorProto.DataType of an IR dtype."""
    if dtype not in _TO_ONNX:
        raise Unsupported(f"ONNX has no element type for {dtype}")
    return _TO_ONNX[dtype]


def to_numpy(tensor: onnx.TensorProto) -> Array:
    """The content of a tensor that carries its data; Unsupported for one of strings."""
    dtype_of(tensor.data_type)
    return np.asarray(onnx.numpy_helper.to_array(tensor))
