"""Element types of the IR, their text names, artifact codes and numpy counterparts."""

from __future__ import annotations

import builtins
import enum
from typing import Any

import ml_dtypes
import numpy as np

from ..runtime import dtypes as table


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
    i4 = "i4"
    u4 = "u4"
    i2 = "i2"
    u2 = "u2"
    f4e2m1 = "f4e2m1"
    f8e4m3fnuz = "f8e4m3fnuz"
    f8e5m2fnuz = "f8e5m2fnuz"
    f8e8m0 = "f8e8m0"

    @property
    def code(self) -> int:
        return table.CODE[self.value]

    @property
    def np(self) -> np.dtype[Any]:
        """The numpy dtype; c32 has none and is computed as complex64 by the interpreter."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int:
        """Bytes of an element in memory; 1 for types of less than a byte, whose packing would be an encoding."""
        return table.BY_NAME[self.value].size

    @property
    def bits(self) -> int:
        """Bits that carry the value: 1 for bool, 4 for i4."""
        return table.BY_NAME[self.value].bits

    @property
    def is_storage(self) -> builtins.bool:
        """Held, moved and converted only: no op computes on it."""
        return self in _STORAGE

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
        """The type of a value in registers, and of arithmetic on it: f32 for floats of 16 bits and less, 8 bits for
        shorter integers."""
        if self.is_float and self.bits < 32:
            return DType.f32
        if self.is_int and self.bits < 8:
            return DType.i8 if self.is_signed else DType.u8
        return DType.c64 if self is DType.c32 else self

    @staticmethod
    def from_np(dtype: Any) -> DType:
        """The DType of a numpy dtype; KeyError when there is none."""
        return _FROM_NUMPY[np.dtype(dtype)]

    def __repr__(self) -> str:
        return self.value

    def __str__(self) -> str:
        return self.value


def _numpy(name: str) -> np.dtype[Any]:
    t = table.BY_NAME[name]
    return np.dtype(np.complex64 if name == "c32" else getattr(ml_dtypes, t.ml) if t.ml else t.numpy)


_NUMPY: dict[DType, np.dtype[Any]] = {DType(name): _numpy(name) for name in table.NAMES}
_FROM_NUMPY = {dtype: key for key, dtype in _NUMPY.items() if key is not DType.c32}
_FLOATS = {DType(name) for name in table.NAMES if name[0] == "f" or name == "bf16"}
_STORAGE = {DType(n) for n in "i4 u4 i2 u2 f4e2m1 f8e4m3fnuz f8e5m2fnuz f8e8m0".split()}
