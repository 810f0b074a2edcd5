"""Element types of the IR, their text names, artifact codes and numpy counterparts."""

from __future__ import annotations

import builtins
import enum
from typing import Any

import ml_dtypes
import numpy as np


class DType(enum.Enum):
    """An element type. ``value`` is the name used in text and manifests, ``code`` the number in effc_kernel.h."""

    bool = "bool"
    u8 = "u8"
    i8 = "i8"
    u16 = "u16"
    i16 = "i16"
    u32 = "u32"
    i32 = "i32"
    u64 = "u64"
    i64 = "i64"
    f16 = "f16"
    bf16 = "bf16"
    f32 = "f32"
    f64 = "f64"
    f8e4m3 = "f8e4m3"
    f8e5m2 = "f8e5m2"
    c64 = "c64"
    c128 = "c128"
    c32 = "c32"

    @property
    def code(self) -> int:
        return _CODES[self]

    @property
    def np(self) -> np.dtype[Any]:
        """The numpy dtype; c32 has none and is computed as complex64 by the interpreter."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int:
        return 4 if self is DType.c32 else self.np.itemsize

    @property
    def is_float(self) -> builtins.bool:
        return self in _FLOATS

    @property
    def is_complex(self) -> builtins.bool:
        return self in (DType.c32, DType.c64, DType.c128)

    @property
    def is_bool(self) -> builtins.bool:
        return self is DType.bool

    @property
    def is_int(self) -> builtins.bool:
        """Signed or unsigned integer, not bool."""
        return not (self.is_float or self.is_complex or self.is_bool)

    @property
    def is_signed(self) -> builtins.bool:
        return self.value[0] in "ifbc" and not self.is_bool

    @property
    def real(self) -> DType:
        """The component type of a complex type; itself otherwise."""
        return {DType.c32: DType.f16, DType.c64: DType.f32, DType.c128: DType.f64}.get(self, self)

    @property
    def compute(self) -> DType:
        """The type in which arithmetic on this storage type is carried out (f32 for the half and fp8 families)."""
        if self in (DType.f16, DType.bf16, DType.f8e4m3, DType.f8e5m2):
            return DType.f32
        return DType.c64 if self is DType.c32 else self

    @staticmethod
    def from_np(dtype: Any) -> DType:
        """The DType of a numpy dtype; KeyError when there is none."""
        return _FROM_NUMPY[np.dtype(dtype)]

    def __repr__(self) -> str:
        return self.value

    def __str__(self) -> str:
        return self.value


_ORDER = "bool u8 i8 u16 i16 u32 i32 u64 i64 f16 bf16 f32 f64 f8e4m3 f8e5m2 c64 c128 c32".split()
_CODES = {DType(name): code for code, name in enumerate(_ORDER)}
_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.bool: np.dtype(np.bool_),
    DType.u8: np.dtype(np.uint8),
    DType.i8: np.dtype(np.int8),
    DType.u16: np.dtype(np.uint16),
    DType.i16: np.dtype(np.int16),
    DType.u32: np.dtype(np.uint32),
    DType.i32: np.dtype(np.int32),
    DType.u64: np.dtype(np.uint64),
    DType.i64: np.dtype(np.int64),
    DType.f16: np.dtype(np.float16),
    DType.bf16: np.dtype(ml_dtypes.bfloat16),
    DType.f32: np.dtype(np.float32),
    DType.f64: np.dtype(np.float64),
    DType.f8e4m3: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.f8e5m2: np.dtype(ml_dtypes.float8_e5m2),
    DType.c64: np.dtype(np.complex64),
    DType.c128: np.dtype(np.complex128),
    DType.c32: np.dtype(np.complex64),
}
_FROM_NUMPY = {dtype: key for key, dtype in _NUMPY.items() if key is not DType.c32}
_FLOATS = {DType.f16, DType.bf16, DType.f32, DType.f64, DType.f8e4m3, DType.f8e5m2}
