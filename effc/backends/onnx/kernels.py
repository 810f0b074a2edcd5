"""What ONNX Runtime's CPU provider runs: for each ONNX op of the opset in use, the element types with a kernel.

Source: the kernel registry of onnxruntime 1.31 (docs/OperatorKernels.md there; ``get_all_opkernel_def`` of its Python
module). An op on another type is computed in a wider one that holds every value of it, between two casts.
"""

from __future__ import annotations

from ...ir.dtypes import DType

OPSET = 26  # the newest that onnxruntime 1.31 takes; it has BitCast and CumProd
OPSET_WITH_RANDOM = 21  # the newest for which onnxruntime has generators of random numbers
SINCE = {"BitCast": 26, "CumProd": 26, "RMSNormalization": 23}  # ops that the older opset lacks
IR_VERSION = 11  # the newest that onnxruntime 1.31 reads with this opset

_ALL = "bool i8 i16 i32 i64 u8 u16 u32 u64 f16 bf16 f32 f64"
_INTS = "i8 i16 i32 i64 u8 u16 u32 u64"
_ARITHMETIC = f"{_INTS} f32 f64"
_REAL = "f32 f64"
_REDUCED = "bool i8 i32 i64 u8 f32 f64"
_TABLE: dict[str, str] = {
    "Abs Add Sub Mul Div Less LessOrEqual Greater GreaterOrEqual": _ARITHMETIC,
    "Equal Tile": f"bool {_ARITHMETIC}",
    "Neg": "i8 i16 i32 i64 f32 f64",
    "Sign": f"{_INTS} f16 bf16 f32 f64",
    "Ceil Floor Exp Log Sqrt Reciprocal Sigmoid Tanh Sin Cos Softmax LogSoftmax Gemm GridSample DFT LSTM GRU": _REAL,
    "BatchNormalization": _REAL,
    "Round": "f16 f32 f64",
    "Tan Sinh Cosh Asin Acos Atan Asinh Acosh Atanh Erf Softplus Gelu": "f32",
    "Conv ConvTranspose AveragePool Col2Im RNN PRelu LeakyRelu": "f32",
    "Relu": "i8 i32 f32 f64",
    "Mod": f"{_INTS} f16 f32 f64",
    "Pow ReduceSum ReduceMean ReduceL2 ReduceProd CumSum Einsum": "i32 i64 f32 f64",
    "Max Min Clip": "i8 i32 i64 u8 u32 u64 f16 f32 f64",
    "And Or Xor Not": "bool",
    "BitwiseAnd BitwiseOr BitwiseXor BitwiseNot": _INTS,
    "BitShift": "u8 u32 u64",
    "IsNaN IsInf": "f16 bf16 f32 f64",
    "Where": "i8 i32 i64 u8 u32 f32 f64",
    "ReduceMax ReduceMin": _REDUCED,
    "ArgMax ArgMin": "i8 i32 i64 u8 f32 f64",
    "MatMul": "i32 i64 u32 u64 f32 f64",
    "MaxPool": "i8 u8 f32 f64",
    "LayerNormalization": "f16 bf16 f32 f64",
    "Reshape Transpose Slice Concat Split Gather GatherElements GatherND Compress Identity Squeeze Unsqueeze": _ALL,
    "ScatterElements ScatterND Shape": _ALL,
    "Expand": _ALL.replace("bf16 ", ""),
    "BitCast": _ALL.replace("bool ", ""),
    "NonZero": "bool i32 i64 u8 f32",
    "Pad": "bool i8 i32 i64 u8 u32 u64 f32 f64",
    "Trilu": "bool i32 i64 f32 f64",
    "CumProd": "i32 i64 u32 u64 f32 f64",
    "TopK": "i8 i16 i32 i64 u8 f32 f64",
    "Unique": "i8 i64 f32 f64",
    "Resize": "i8 i32 u8 f32",
    "Range": "i16 i32 i64 f32 f64",
}
KERNELS: dict[str, frozenset[DType]] = {
    op: frozenset(DType(t) for t in types.split()) for ops, types in _TABLE.items() for op in ops.split()
}

# Types to compute in instead, the cheapest first. Integers of 32 bits and more wrap through i64, which is right for
# arithmetic modulo 2^bits and for moving data, not for order.
WIDER: dict[DType, tuple[DType, ...]] = {
    DType.bool: (DType.u8, DType.i32, DType.i64, DType.f32),
    DType.i8: (DType.i32, DType.i64, DType.f32),
    DType.u8: (DType.i32, DType.i64, DType.f32),
    DType.i16: (DType.i32, DType.i64, DType.f32),
    DType.u16: (DType.i32, DType.i64, DType.f32),
    DType.i32: (DType.i64, DType.f64),
    DType.u32: (DType.i64, DType.f64),
    DType.u64: (DType.i64,),
    DType.f16: (DType.f32,),
    DType.bf16: (DType.f32,),
    DType.f8e4m3: (DType.f32,),
    DType.f8e5m2: (DType.f32,),
}
ORDERED = frozenset({"Max", "Min", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK", "Unique", "MaxPool", "Relu"})

# Operands that share the op's type, where that is not all of them.
TYPED: dict[str, tuple[int, ...]] = {
    "Where": (1, 2),
    "Pad": (0, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    **dict.fromkeys(
        (
            "ReduceSum ReduceMean ReduceL2 ReduceProd ReduceMax ReduceMin Reshape Expand Slice Split Gather "
            "GatherElements GatherND Compress Squeeze Unsqueeze Tile CumSum CumProd TopK Resize Col2Im DFT Shape Trilu"
        ).split(),
        (0,),
    ),
}
# Results of another type than the operands'; None: the operands'.
RESULTS: dict[str, tuple[DType | None, ...]] = {
    **dict.fromkeys("Equal Less LessOrEqual Greater GreaterOrEqual IsNaN IsInf".split(), (DType.bool,)),
    **dict.fromkeys("ArgMax ArgMin NonZero Shape".split(), (DType.i64,)),
    "TopK": (None, DType.i64),
    "MaxPool": (None, DType.i64),
    "Unique": (None, DType.i64, DType.i64, DType.i64),
}


def compute_type(op: str, dtype: DType) -> DType | None:
    """The type in which ``op`` on ``dtype`` is to run: itself, a wider one, or None if there is no exact way."""
    have = KERNELS.get(op)
    if have is None or dtype in have:
        return dtype
    for wider in WIDER.get(dtype, ()):
        if wider in have and not (dtype is DType.u64 and op in ORDERED):
            return wider
    return None
