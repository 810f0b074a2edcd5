"""ai.onnx.ml: classical models on numbers. What needs strings or maps is refused by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..dtypes import Array
from ..registry import Unsupported, onnx_op, refuse

ML = "ai.onnx.ml"

refuse("its values are strings", "CategoryMapper", domain=ML)
refuse("its operand is a map", "CastMap", "DictVectorizer", domain=ML)
refuse("its result is a sequence of maps", "ZipMap", domain=ML)
refuse("votes and coupled probabilities of support vectors", "SVMClassifier", domain=ML)


def work_type(x: Value) -> DType:
    """The float type in which these operators compute."""
    return DType.f64 if x.dtype is DType.f64 else DType.f32


def _row(cx: Context, values: Sequence[float], dtype: DType) -> Value:
    return cx.b.constant(np.asarray(values, dtype.np), dtype)


def _no_strings(*given: Any) -> None:
    if any(given):
        raise Unsupported("labels that are strings")


# Features -------------------------------------------------------------------------------------------------------------


@onnx_op("ArrayFeatureExtractor", domain=ML)
def _array_feature(cx: Context, x: Value, index: Value) -> Value:
    """Columns of the last dim; a vector gives one row."""
    at = cx.reshape(cx.convert(index, DType.i64), (index.type.numel,))
    y = cx.b.op("take", x, at, dim=x.rank - 1)
    return cx.unsqueeze(y, 0) if x.rank == 1 else y


@onnx_op("Binarizer", domain=ML)
def _binarizer(cx: Context, x: Value, *, threshold: float = 0.0) -> Value:
    limit = threshold if x.dtype.is_float else math.floor(threshold)
    return cx.convert(cx.op("gt", x, limit), x.dtype)


@onnx_op("Scaler", domain=ML)
def _scaler(cx: Context, x: Value, *, offset: Sequence[float] = (), scale: Sequence[float] = ()) -> Value:
    w = work_type(x)
    v = cx.convert(x, w)
    if offset:
        v = cx.op("sub", v, _row(cx, offset, w))
    if scale:
        v = cx.op("mul", v, _row(cx, scale, w))
    return cx.convert(v, DType.f32)


@onnx_op("Normalizer", domain=ML)
def _normalizer(cx: Context, x: Value, *, norm: str = "MAX") -> Value:
    """Rows by their largest element, or by the sum of absolute values, or the root of the sum of squares; a row whose
    divisor is 0 stays.
    """
    v = cx.convert(x, work_type(x))
    d = (x.rank - 1,)
    if norm == "MAX":
        size = cx.reduce("max", v, d, True)
    elif norm == "L1":
        size = cx.reduce("sum", cx.op("abs", v), d, True)
    elif norm == "L2":
        size = cx.op("sqrt", cx.reduce("sum", cx.mul(v, v), d, True))
    else:
        raise Unsupported(f"norm {norm}")
    return cx.convert(cx.op("div", v, cx.where(cx.op("eq", size, 0), 1, size)), DType.f32)


@onnx_op("Imputer", domain=ML)
def _imputer(
    cx: Context, x: Value, *, imputed_value_floats: Sequence[float] = (), imputed_value_int64s: Sequence[int] = (),
    replaced_value_float: float = 0.0, replaced_value_int64: int = 0,
) -> Value:  # fmt: skip
    floats = x.dtype.is_float
    values: Sequence[float] = imputed_value_floats if floats else imputed_value_int64s
    if not values:
        raise Unsupported(f"an operand of {x.dtype} without imputed values of its kind")
    old = replaced_value_float if floats else replaced_value_int64
    hit = cx.op("isnan", x) if isinstance(old, float) and math.isnan(old) else cx.op("eq", x, old)
    return cx.b.op("where", hit, _row(cx, values, x.dtype), x)  # type: ignore[no-any-return]


@onnx_op("FeatureVectorizer", domain=ML)
def _feature_vectorizer(cx: Context, *xs: Value, inputdimensions: Sequence[int] = ()) -> Value:
    """Columns side by side, each operand cut to its number of them or continued with zeros."""
    parts = []
    for k, x in enumerate(xs):
        v = cx.convert(x, DType.f32)
        v = cx.reshape(v, (v.shape[0], 1)) if v.rank == 1 else v
        want = inputdimensions[k] if k < len(inputdimensions) else v.shape[1]
        if v.shape[1] != want:
            v = cx.b.op("pad", v, padding=((0, 0), (0, want - v.shape[1])))
        parts.append(v)
    return cx.concat(parts, 1)


@onnx_op("OneHotEncoder", domain=ML)
def _one_hot(
    cx: Context, x: Value, *, cats_int64s: Sequence[int] = (), cats_strings: Sequence[str] = (), zeros: int = 1
) -> Value:
    """A new last dim with 1 at the value's category; all zeros, or an error, for a value that is none."""
    _no_strings(cats_strings)
    cats = cx.b.constant(np.asarray(cats_int64s, np.int64), DType.i64)
    hit = cx.op("eq", cx.unsqueeze(cx.convert(x, DType.i64), -1), cats)
    if not zeros:
        known = cx.reduce("all", cx.reduce("any", hit, (x.rank,)), range(x.rank))
        cx.b.op("assert", known, message="a value is none of the categories")
    return cx.convert(hit, DType.f32)


def lookup(cx: Context, x: Value, keys: Array, values: Array, default: Any) -> Value:
    """values[k] where x equals keys[k], the first one if there are several, else default. NaN equals NaN."""
    out = DType.from_np(values.dtype)
    missing = cx.const(default, out)
    nan = np.isnan(keys) if keys.dtype.kind == "f" else np.zeros(len(keys), bool)
    at_nan = values[nan][:1]
    keys, values = keys[~nan], values[~nan]
    order = np.argsort(keys, kind="stable")
    y = cx.broadcast(missing, x.shape)
    if len(keys):
        sorted_keys = cx.b.constant(keys[order], DType.from_np(keys.dtype))
        at = cx.op("minimum", cx.b.op("searchsorted", sorted_keys, x), len(keys) - 1)
        hit = cx.op("eq", cx.b.op("take", sorted_keys, at, dim=0), x)
        y = cx.where(hit, cx.b.op("take", cx.b.constant(values[order], out), at, dim=0), missing)
    if len(at_nan):
        y = cx.where(cx.op("isnan", x), at_nan[0].item(), y)
    return y


@onnx_op("LabelEncoder", domain=ML, since=2)
def _label_encoder(
    cx: Context, x: Value, *, keys_floats: Sequence[float] = (), keys_int64s: Sequence[int] = (),
    keys_strings: Sequence[str] = (), keys_tensor: Array | None = None, values_floats: Sequence[float] = (),
    values_int64s: Sequence[int] = (), values_strings: Sequence[str] = (), values_tensor: Array | None = None,
    default_float: float = -0.0, default_int64: int = -1, default_string: str = "", default_tensor: Array | None = None,
) -> Value:  # fmt: skip
    _no_strings(keys_strings, values_strings)
    keys = np.asarray(keys_floats if keys_floats else keys_int64s) if keys_tensor is None else keys_tensor
    keys = keys.reshape(-1).astype(x.dtype.np)
    if values_tensor is not None:
        values, default = values_tensor.reshape(-1), -1 if values_tensor.dtype.kind in "iu" else -0.0
    elif values_floats:
        values, default = np.asarray(values_floats, np.float32), default_float
    else:
        values, default = np.asarray(values_int64s, np.int64), default_int64
    if default_tensor is not None:
        default = default_tensor.reshape(-1)[0].item()
    if len(keys) != len(values):
        raise Unsupported(f"{len(keys)} keys for {len(values)} values")
    return lookup(cx, x, keys, values, default)


@onnx_op("LabelEncoder", domain=ML)
def _label_encoder_strings(cx: Context, x: Value, *, classes_strings: Sequence[str] = (), **_: Any) -> Value:
    raise Unsupported("labels that are strings")


# Scores ---------------------------------------------------------------------------------------------------------------


def transformed(cx: Context, scores: Value, kind: str) -> Value:
    """The post-transforms of scores [N, classes]."""
    d = (1,)
    if kind == "NONE":
        return scores
    if kind == "LOGISTIC":
        return cx.op("sigmoid", scores)  # type: ignore[no-any-return]
    if kind == "PROBIT":
        return cx.scale(cx.op("erfinv", cx.sub(cx.scale(scores, 2), 1)), math.sqrt(2))
    if kind not in ("SOFTMAX", "SOFTMAX_ZERO"):
        raise Unsupported(f"post_transform {kind}")
    top = cx.reduce("max", scores, d, True)
    e = cx.op("exp", cx.op("sub", scores, top))
    if kind == "SOFTMAX_ZERO":  # what is zero stays (nearly) zero
        small = cx.op("le", cx.op("abs", scores), 1e-7)
        e = cx.where(small, cx.op("mul", scores, cx.op("exp", cx.op("neg", top))), e)
        total = cx.reduce("sum", e, d, True)
        none = cx.op("eq", total, 0)
        return cx.where(none, 0.5, cx.op("div", e, cx.where(none, 1, total)))
    return cx.op("div", e, cx.reduce("sum", e, d, True))  # type: ignore[no-any-return]


def labelled(cx: Context, scores: Value, labels: Sequence[int]) -> Value:
    """The label of each row's largest score, the first one if there are several."""
    best = cx.reduce("argmax", scores, (1,))
    if list(labels) == list(range(len(labels))):
        return best
    return cx.b.op("take", cx.b.constant(np.asarray(labels, np.int64), DType.i64), best, dim=0)  # type: ignore[no-any-return]


def _linear(
    cx: Context, x: Value, rows: int, coefficients: Sequence[float], intercepts: Sequence[float], w: DType
) -> Value:
    v = cx.convert(x, w)
    v = cx.unsqueeze(v, 0) if v.rank == 1 else v
    weights = np.asarray(coefficients, w.np).reshape(rows, -1)
    y = cx.op("matmul", v, cx.b.constant(np.ascontiguousarray(weights.T), w))
    return cx.op("add", y, _row(cx, intercepts, w)) if len(intercepts) else y


@onnx_op("LinearRegressor", domain=ML)
def _linear_regressor(
    cx: Context, x: Value, *, coefficients: Sequence[float] = (), intercepts: Sequence[float] = (), targets: int = 1,
    post_transform: str = "NONE",
) -> Value:  # fmt: skip
    y = _linear(cx, x, targets, coefficients, intercepts, work_type(x))
    return cx.convert(transformed(cx, y, post_transform), DType.f32)


@onnx_op("LinearClassifier", domain=ML)
def _linear_classifier(
    cx: Context, x: Value, *, coefficients: Sequence[float], intercepts: Sequence[float] = (),
    classlabels_ints: Sequence[int] = (), classlabels_strings: Sequence[str] = (), multi_class: int = 0,
    post_transform: str = "NONE",
) -> Any:  # fmt: skip
    """(label, scores). One score for two classes is that of the second; the first has its negative."""
    _no_strings(classlabels_strings)
    width = x.shape[-1]
    if not isinstance(width, int) or not width or len(coefficients) % width:
        raise Unsupported(f"{len(coefficients)} coefficients for {width} features")
    rows = len(coefficients) // width
    labels = classlabels_ints or range(max(rows, 2))
    scores = _linear(cx, x, rows, coefficients, intercepts, work_type(x))
    if rows == 1:
        if len(labels) != 2:
            raise Unsupported(f"one score for {len(labels)} classes")
        scores = cx.concat([cx.op("neg", scores), scores], 1)
    label = labelled(cx, scores, labels)
    return label, cx.convert(transformed(cx, scores, post_transform), DType.f32)


@onnx_op("SVMRegressor", domain=ML)
def _svm_regressor(
    cx: Context, x: Value, *, coefficients: Sequence[float] = (), kernel_params: Sequence[float] = (),
    kernel_type: str = "LINEAR", n_supports: int = 0, one_class: int = 0, post_transform: str = "NONE",
    rho: Sequence[float] = (), support_vectors: Sequence[float] = (),
) -> Value:  # fmt: skip
    """sum of c[j] K(x, s[j]), plus rho; K from inner products with the support vectors."""
    w = work_type(x)
    v = cx.convert(x, w)
    gamma, coef0, degree = (*kernel_params, 0.0, 0.0, 0.0)[:3]
    if n_supports:
        s = np.asarray(support_vectors, w.np).reshape(n_supports, -1)
        k = cx.op("matmul", v, cx.b.constant(np.ascontiguousarray(s.T), w))
        if kernel_type == "RBF":
            norms = cx.add(cx.reduce("sum", cx.mul(v, v), (1,), True), cx.b.constant((s * s).sum(1).astype(w.np), w))
            k = cx.op("exp", cx.scale(cx.op("maximum", cx.op("sub", norms, cx.scale(k, 2)), 0), -gamma))
        elif kernel_type in ("POLY", "SIGMOID"):
            k = cx.add(cx.scale(k, gamma), coef0)
            k = cx.op("tanh", k) if kernel_type == "SIGMOID" else cx.op("pow", k, float(int(degree)))
        elif kernel_type != "LINEAR":
            raise Unsupported(f"kernel_type {kernel_type}")
    else:
        k = v
    y = cx.op("matmul", k, cx.b.constant(np.asarray(coefficients, w.np).reshape(-1, 1), w))
    y = cx.add(y, rho[0] if rho else 0.0)
    if one_class:
        y = cx.where(cx.op("gt", y, 0), cx.full(1, (), w), -1)
    return cx.convert(transformed(cx, y, post_transform), DType.f32)
