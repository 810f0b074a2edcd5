"""ai.onnx.ml, suppression of boxes, n-grams and random numbers, against ONNX Runtime or the standard's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_compare import check, evaluator, model_of, ort

import effc
import effc.onnx_backend

RNG = np.random.default_rng(11)
ML = "ai.onnx.ml"
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO")


def f32(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def rows(*sizes: int, features: int = 4) -> list[list[Any]]:
    return [[f32(n, features)] for n in sizes]


def ml(op: str, x: Any, opset: int = 3, outputs: int = 1, shape: Any = None, **attrs: Any) -> Any:
    return model_of(op, [x], [shape or ["n", *x.shape[1:]]], outputs, opset, ML, **attrs)


# Features -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
def test_array_feature_extractor(dtype: Any) -> None:
    sets = [[RNG.integers(0, 99, (n, 5)).astype(dtype), np.array([[3, 0, 3]], np.int64)] for n in (3, 1)]
    check(model_of("ArrayFeatureExtractor", sets[0], [["n", 5], [1, 3]], 1, 1, ML), sets)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_binarizer(dtype: Any) -> None:
    sets = [[RNG.integers(-3, 4, (n, 5)).astype(dtype)] for n in (3, 1)]
    check(ml("Binarizer", sets[0][0], 1, threshold=0.5), sets, evaluator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_scaler(dtype: Any) -> None:
    sets = [[RNG.integers(-9, 9, (n, 4)).astype(dtype)] for n in (3, 1)]
    check(ml("Scaler", sets[0][0], 1, offset=[1.0, 2.0, 3.0, 4.0], scale=[0.5, 1.0, 2.0, 4.0]), sets)
    check(ml("Scaler", sets[0][0], 1, offset=[1.0], scale=[0.5]), sets)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(norm: str) -> None:
    sets = [[np.abs(x)] if norm == "MAX" else [x] for (x,) in (s for s in rows(4, 1))]
    sets[0][0][1] = 0
    check(ml("Normalizer", sets[0][0], 1, norm=norm), sets)


def test_imputer() -> None:
    x = f32(4, 3)
    x[1, 2] = x[3, 0] = np.nan
    check(ml("Imputer", x, 1, imputed_value_floats=[1.0, 2.0, 3.0], replaced_value_float=float("nan")), [[x], [x[:1]]])
    i = np.array([[1, 7, 3], [7, 7, 0]], np.int64)
    model = ml("Imputer", i, 1, imputed_value_int64s=[5], replaced_value_int64=7)
    check(model, [[i], [i[:1]]], lambda m, v: [np.where(v[0] == 7, 5, v[0])])


def test_feature_vectorizer() -> None:
    sets = [[f32(n, 2), f32(n, 3)] for n in (3, 1)]
    model = model_of("FeatureVectorizer", sets[0], [["n", 2], ["n", 3]], 1, 1, ML, inputdimensions=[2, 3])
    check(model, sets, lambda m, x: [np.concatenate(x, 1)])


def test_one_hot() -> None:
    sets = [[np.array(v, np.int64)] for v in ([3, 1, 9, 7], [1])]
    check(ml("OneHotEncoder", sets[0][0], 1, cats_int64s=[1, 3, 7], zeros=1), sets)
    strict = effc.compile(ml("OneHotEncoder", sets[0][0], 1, cats_int64s=[1, 3, 7], zeros=0), target="reference")
    np.testing.assert_array_equal(strict(sets[1][0])[0], [[1, 0, 0]])
    with pytest.raises(effc.EffcError, match="none of the categories"):
        strict(sets[0][0])


@pytest.mark.parametrize(
    ("keys", "values", "attrs"),
    [
        ("keys_int64s", "values_floats", {"default_float": 0.5}),
        ("keys_floats", "values_int64s", {"default_int64": 9}),
        ("keys_int64s", "values_int64s", {}), ("keys_floats", "values_floats", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("opset", [2, 4])
def test_label_encoder(keys: str, values: str, attrs: dict[str, Any], opset: int) -> None:
    number = int if keys == "keys_int64s" else float
    known = [number(v) for v in (5, 1, 8)]
    found = [(int if values == "values_int64s" else float)(v) for v in (10, 20, 30)]
    x = np.array([[1, 5, 4], [8, 8, 0]], np.int64 if number is int else np.float32)
    check(ml("LabelEncoder", x, opset, **{keys: known, values: found}, **attrs), [[x], [x[:1]]])


def test_label_encoder_nan_and_strings() -> None:
    x = np.array([np.nan, 1.0, 2.0], np.float32)
    model = ml("LabelEncoder", x, 2, keys_floats=[1.0, float("nan")], values_int64s=[4, 6])
    check(model, [[x]], lambda m, v: [np.array([6, 4, -1], np.int64)])
    with pytest.raises(effc.EffcError, match="strings"):
        effc.compile(ml("LabelEncoder", x, 2, keys_floats=[1.0], values_strings=["a"]), target="reference")


# Linear models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_linear_regressor(targets: int, dtype: Any) -> None:
    sets = [[(3 * f32(n, 4)).astype(dtype)] for n in (5, 1)]
    attrs = {"coefficients": f32(targets * 4).tolist(), "intercepts": f32(targets).tolist(), "targets": targets}
    peer = ort if dtype is np.float32 else lambda m, x: [
        (x[0] @ np.reshape(attrs["coefficients"], (targets, 4)).T + attrs["intercepts"]).astype(np.float32)
    ]  # fmt: skip
    check(ml("LinearRegressor", sets[0][0], 1, **attrs), sets, peer)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("classes", [1, 3])
def test_linear_classifier(transform: str, classes: int) -> None:
    sets = rows(6, 1)
    model = ml(
        "LinearClassifier", sets[0][0], 1, 2, coefficients=f32(classes * 4).tolist(), intercepts=f32(classes).tolist(),
        classlabels_ints=[7, 3, 5][: max(classes, 2)], post_transform=transform,
    )  # fmt: skip
    check(model, sets, ort if classes > 1 else evaluator)


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF", "POLY", "SIGMOID"])
def test_svm_regressor(kernel: str) -> None:
    sets = rows(6, 1)
    model = ml(
        "SVMRegressor", sets[0][0], 1, kernel_type=kernel, kernel_params=[0.3, 0.2, 3.0], n_supports=5,
        coefficients=f32(5).tolist(), support_vectors=f32(20).tolist(), rho=[0.7],
    )  # fmt: skip
    check(model, sets, evaluator)
    one = ml("SVMRegressor", sets[0][0], 1, coefficients=f32(4).tolist(), rho=[0.1], one_class=1)
    check(one, sets, evaluator)


# Trees ----------------------------------------------------------------------------------------------------------------


def grown(
    trees: int, depth: int, modes: list[str], targets: int, prefix: str, positive: bool = False
) -> dict[str, Any]:
    """Attributes of random complete trees, with some branches cut short."""
    a: dict[str, list[Any]] = {f"nodes_{k}": [] for k in (
        "treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids",
        "missing_value_tracks_true",
    )} | {f"{prefix}_{k}": [] for k in ("treeids", "nodeids", "ids", "weights")}  # fmt: skip
    for t in range(trees):
        count = 1
        todo = [(0, 0)]
        while todo:
            node, level = todo.pop(0)
            leaf = level == depth or (level and RNG.random() < 0.2)
            a["nodes_treeids"].append(t)
            a["nodes_nodeids"].append(node)
            a["nodes_featureids"].append(int(RNG.integers(0, 4)))
            a["nodes_values"].append(float(np.round(RNG.standard_normal(), 1)))
            a["nodes_missing_value_tracks_true"].append(int(RNG.integers(0, 2)))
            a["nodes_modes"].append("LEAF" if leaf else f"BRANCH_{RNG.choice(modes)}")
            a["nodes_truenodeids"].append(0 if leaf else count)
            a["nodes_falsenodeids"].append(0 if leaf else count + 1)
            if leaf:
                for k in range(targets):
                    a[f"{prefix}_treeids"].append(t)
                    a[f"{prefix}_nodeids"].append(node)
                    a[f"{prefix}_ids"].append(k)
                    w = float(RNG.standard_normal())
                    a[f"{prefix}_weights"].append(abs(w) / trees if positive else w)
            else:
                todo += [(count, level + 1), (count + 1, level + 1)]
                count += 2
    return a


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize(("modes", "depth"), [(["LEQ"], 4), (["LT", "GTE", "GT", "LEQ"], 3), (["LEQ"], 14)])
def test_tree_regressor(aggregate: str, modes: list[str], depth: int) -> None:
    sets = [[np.round(x, 1)] for (x,) in rows(9, 1)]
    sets[0][0][2, 1] = np.nan
    if depth == 14:
        attrs = chain(depth)  # deep enough to become a loop
    else:  # ONNX Runtime adds no base to a target that no leaf has reached, so not above
        attrs = grown(5, depth, modes, 2, "target") | {"base_values": [0.5, -1.0]}
    attrs |= {"n_targets": 2, "aggregate_function": aggregate}
    check(ml("TreeEnsembleRegressor", sets[0][0], 3, **attrs), sets, ort)


def chain(depth: int) -> dict[str, Any]:
    n = 2 * depth + 1
    leaf = [k == n - 1 or k % 2 == 1 for k in range(n)]
    leaves = [k for k in range(n) if leaf[k]]
    return {
        "nodes_treeids": [0] * n, "nodes_nodeids": list(range(n)), "nodes_featureids": [k % 4 for k in range(n)],
        "nodes_modes": ["LEAF" if f else "BRANCH_LEQ" for f in leaf], "nodes_values": [-1 + 0.02 * k for k in range(n)],
        "nodes_truenodeids": [0 if f else k + 1 for k, f in enumerate(leaf)],
        "nodes_falsenodeids": [0 if f else k + 2 for k, f in enumerate(leaf)],
        "nodes_missing_value_tracks_true": [0] * n, "target_treeids": [0] * len(leaves), "target_nodeids": leaves,
        "target_ids": [k % 2 for k in range(len(leaves))], "target_weights": [float(k) for k in leaves],
    }  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_tree_classifier(transform: str) -> None:
    sets = rows(9, 1)
    attrs = grown(4, 3, ["LEQ"], 3, "class", positive=True)
    model = ml(
        "TreeEnsembleClassifier", sets[0][0], 3, 2, classlabels_int64s=[4, 2, 9], post_transform=transform, **attrs
    )  # fmt: skip
    check(model, sets, ort)


@pytest.mark.parametrize("base", [[], [0.25]])
@pytest.mark.parametrize(
    ("positive", "transform"), [(True, "NONE"), (True, "LOGISTIC"), (False, "NONE"), (False, "LOGISTIC")]
)
@pytest.mark.parametrize("which", [0, 1])
def test_binary_tree_classifier(positive: bool, transform: str, which: int, base: list[float]) -> None:
    """Only one class has weights."""
    sets = rows(9, 1)
    attrs = grown(4, 3, ["LEQ"], 1, "class", positive=positive)
    attrs["class_ids"] = [which] * len(attrs["class_ids"])
    if base and which:
        pytest.skip("refused")
    attrs |= {"base_values": base} if base else {}
    model = ml(
        "TreeEnsembleClassifier", sets[0][0], 3, 2, classlabels_int64s=[0, 1], post_transform=transform, **attrs
    )  # fmt: skip
    check(model, sets, ort)


def test_two_class_forest() -> None:
    sets = rows(9, 1)
    attrs = grown(4, 3, ["LEQ"], 2, "class", positive=True)
    model = ml("TreeEnsembleClassifier", sets[0][0], 3, 2, classlabels_int64s=[0, 1], **attrs)
    check(model, sets, evaluator)


def test_trees_cpu() -> None:
    sets = rows(9, 1)
    for attrs in (grown(5, 4, ["LEQ", "GT"], 2, "target"), chain(14)):
        check(ml("TreeEnsembleRegressor", sets[0][0], 3, n_targets=2, **attrs), sets, ort, "cpu")


def test_broken_trees_are_refused() -> None:
    attrs = chain(3) | {"n_targets": 2}
    for key, value, reason in (
        ("nodes_truenodeids", [0] * 7, "cycle"), ("nodes_truenodeids", [99] * 7, "not there"),
        ("target_ids", [5] * 4, "target 5"),
    ):  # fmt: skip
        with pytest.raises(effc.EffcError, match=reason):
            effc.compile(ml("TreeEnsembleRegressor", f32(2, 4), 3, **{**attrs, key: value}), target="reference")


# Boxes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_nms(target: str, center: int, threshold: float | None) -> None:
    def inputs(b: int, c: int, n: int) -> list[Any]:
        scores = np.round(RNG.random((b, c, n), np.float32), 1)
        x = [RNG.random((b, n, 4), np.float32), scores, np.array([7], np.int64), np.array([0.3], np.float32)]
        return x + ([] if threshold is None else [np.array([threshold], np.float32)])

    sets = [inputs(2, 3, 60), inputs(1, 1, 1), inputs(1, 2, 33)]
    model = model_of(
        "NonMaxSuppression", sets[0], [["b", "n", 4], ["b", "c", "n"], [1], [1], [1]], opset=11, center_point_box=center
    )  # fmt: skip
    check(model, sets, ort, target)


def test_nms_limits() -> None:
    boxes, scores = RNG.random((1, 9, 4), np.float32), RNG.random((1, 1, 9), np.float32)
    shapes = [["b", "n", 4], ["b", "c", "n"], [1], [1]]
    for limit in (0, -1, 100):
        x = [boxes, scores, np.array([limit], np.int64), np.array([1.0], np.float32)]
        check(model_of("NonMaxSuppression", x, shapes, opset=10), [x], ort)
    none = effc.compile(model_of("NonMaxSuppression", [boxes, scores], shapes, opset=11), target="reference")
    assert none(boxes, scores)[0].shape == (0, 3)
    scores[0, 0, 3] = np.nan
    x = [boxes, scores, np.array([100], np.int64), np.array([1.0], np.float32)]
    made = effc.compile(model_of("NonMaxSuppression", x, shapes, opset=11), target="cpu")
    assert sorted(made(*x)[0][:, 2].tolist()) == [0, 1, 2, 4, 5, 6, 7, 8]


# N-grams and random numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize(("low", "high", "skip"), [(1, 1, 0), (1, 2, 2), (2, 3, 1), (3, 3, 3)])
def test_tfidf(mode: str, low: int, high: int, skip: int) -> None:
    pool = [2, 3, 5, 4, 2, 3, 5, 5, 3, 2, 2, 3, 4, 5, 5, 5]  # 4 unigrams, 3 bigrams, 2 trigrams
    attrs = {
        "mode": mode, "min_gram_length": low, "max_gram_length": high, "max_skip_count": skip,
        "ngram_counts": [0, 4, 10],
        "ngram_indexes": [0, 1, 2, 3, 8, 4, 5, 6, 7], "pool_int64s": pool,
        "weights": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    }  # fmt: skip
    sets = [[RNG.integers(1, 7, (b, n))] for b, n in ((3, 30), (1, 2), (2, 1))]
    check(model_of("TfIdfVectorizer", sets[0], [["b", "n"]], opset=9, **attrs), sets, evaluator)
    line = [[RNG.integers(1, 7, 12).astype(np.int32)], [RNG.integers(1, 7, 3).astype(np.int32)]]
    check(model_of("TfIdfVectorizer", line[0], [["n"]], opset=9, **attrs), line, evaluator)


def drawn(op: str, inputs: list[Any], shapes: Any, target: str, opset: int = 22, **attrs: Any) -> Any:
    return effc.onnx_backend.EffcRep(model_of(op, inputs, shapes, opset=opset, **attrs), target).run(inputs)[0]


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_random(target: str) -> None:
    x = drawn("RandomNormal", [], [], target, shape=[200, 100], mean=3.0, scale=2.0, seed=1.0)
    assert x.dtype == np.float32 and x.shape == (200, 100)
    assert abs(x.mean() - 3) < 0.1 and abs(x.std() - 2) < 0.1
    x = drawn("RandomUniform", [], [], target, shape=[200, 100], low=-1.0, high=3.0, dtype=11)
    assert x.dtype == np.float64 and x.min() >= -1 and x.max() < 3 and abs(x.mean() - 1) < 0.1
    like = np.zeros((300, 70), np.float16)
    x = drawn("RandomNormalLike", [like], [["n", 70]], target)
    assert x.dtype == np.float16 and x.shape == like.shape and abs(x.astype(np.float32).std() - 1) < 0.1
    x = drawn("RandomUniformLike", [like.astype(np.int32)], [["n", 70]], target, dtype=1)
    assert x.dtype == np.float32 and x.shape == like.shape and abs(x.mean() - 0.5) < 0.1


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_bernoulli_and_multinomial(target: str) -> None:
    p = np.repeat(np.array([[0.0], [0.3], [1.0]], np.float32), 5000, 1)
    for code, dtype in ((None, np.float32), (11, np.float64), (9, np.bool_), (6, np.int32)):
        x = drawn("Bernoulli", [p], [["n", 5000]], target, 15, **({} if code is None else {"dtype": code}))
        assert x.dtype == dtype and x.shape == p.shape
        assert not x[0].any() and x[2].all() and abs(x[1].mean() - 0.3) < 0.05
    logits = np.log(np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 1e-30]], np.float32)) + 4
    x = drawn("Multinomial", [logits], [["n", 3]], target, 7, sample_size=4000, dtype=7)
    assert x.dtype == np.int64 and x.shape == (2, 4000)
    assert abs((x[0] == 2).mean() - 0.7) < 0.05 and abs((x[1] == 0).mean() - 0.5) < 0.05 and (x[1] < 2).all()


@pytest.mark.parametrize("op", ["StringConcat", "RegexFullMatch", "ImageDecoder"])
def test_refused(op: str) -> None:
    with pytest.raises(effc.EffcError, match=op):
        effc.compile(model_of(op, [np.zeros(3, np.uint8)] * 2, [[3], [3]], opset=20), target="reference")
