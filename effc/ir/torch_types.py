"""Names of element types in MLIR's torch dialect, and PyTorch's numbers for them (``c10::ScalarType``): what reading
and writing modules of that dialect share."""

from __future__ import annotations

from .dtypes import DType

ELEMENTS: dict[str, DType] = {
    "f16": DType.f16, "bf16": DType.bf16, "f32": DType.f32, "f64": DType.f64, "i1": DType.bool, "si8": DType.i8,
    "ui8": DType.u8, "si16": DType.i16, "ui16": DType.u16, "si32": DType.i32, "ui32": DType.u32, "si64": DType.i64,
    "ui64": DType.u64, "complex<f32>": DType.c64, "complex<f64>": DType.c128, "f8E4M3FN": DType.f8e4m3,
    "f8E5M2": DType.f8e5m2,
}  # fmt: skip
ELEMENT_NAME: dict[DType, str] = {d: name for name, d in ELEMENTS.items()}
SCALAR_CODE: dict[DType, int] = {
    DType.u8: 0, DType.i8: 1, DType.i16: 2, DType.i32: 3, DType.i64: 4, DType.f16: 5, DType.f32: 6, DType.f64: 7,
    DType.c64: 9, DType.c128: 10, DType.bool: 11, DType.bf16: 15, DType.f8e5m2: 23, DType.f8e4m3: 24, DType.u16: 27,
    DType.u32: 28, DType.u64: 29,
}  # fmt: skip
