"""Gradient-boosted trees without the library that grew them: numpy arrays, and their evaluation.

All trees of an ensemble lie one after the other. A node has a feature, a threshold (left if the feature is at most
that) and two children, numbers of nodes, or, if negative, of leaves (``~leaf``). The sum of the leaves is the
prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Trees:
    """``roots``: the first node of each tree, or ``~leaf`` of a tree that has no node."""

    feature: Array
    threshold: Array
    children: Array  # (nodes, 2)
    value: Array
    roots: Array

    def __call__(self, x: Array) -> Array:
        """Predictions of rows (n, features)."""
        x = np.ascontiguousarray(x, np.float64)
        rows = np.arange(len(x))[:, None]
        at = np.broadcast_to(self.roots, (len(x), len(self.roots))).astype(np.int64)
        if not len(self.feature):
            return self.value[~at].sum(1)
        while (inner := at >= 0).any():
            node = np.where(inner, at, 0)
            right = x[rows, self.feature[node]] > self.threshold[node]
            at = np.where(inner, self.children[node, right.astype(np.int64)], at)
        return np.asarray(self.value[~at].sum(1))

    def arrays(self, prefix: str) -> dict[str, Array]:
        """For an npz file."""
        return {
            f"{prefix}.feature": self.feature.astype(np.int16), f"{prefix}.threshold": self.threshold,
            f"{prefix}.children": self.children.astype(np.int32), f"{prefix}.value": self.value,
            f"{prefix}.roots": self.roots.astype(np.int32),
        }  # fmt: skip

    @staticmethod
    def from_arrays(data: Mapping[str, Array], prefix: str) -> Trees:
        parts = [data[f"{prefix}.{n}"] for n in ("feature", "threshold", "children", "value", "roots")]
        return Trees(parts[0].astype(np.int64), parts[1], parts[2].astype(np.int64), parts[3], parts[4].astype(np.int64))

    @staticmethod
    def from_dump(trees: Sequence[Mapping[str, Any]]) -> Trees:
        """From LightGBM's ``dump_model()["tree_info"]``. Missing values are not provided for."""
        feature: list[int] = []
        threshold: list[float] = []
        children: list[list[int]] = []
        value: list[float] = []

        def add(n: Mapping[str, Any]) -> int:
            if "leaf_value" in n:
                value.append(n["leaf_value"])
                return ~(len(value) - 1)
            if n["decision_type"] != "<=":
                raise ValueError(f"a split of kind {n['decision_type']}")
            i = len(feature)
            feature.append(n["split_feature"])
            threshold.append(n["threshold"])
            children.append([0, 0])
            children[i] = [add(n["left_child"]), add(n["right_child"])]
            return i

        roots = [add(t["tree_structure"]) for t in trees]
        return Trees(
            np.array(feature, np.int64), np.array(threshold), np.array(children, np.int64).reshape(-1, 2), np.array(value),
            np.array(roots, np.int64),
        )  # fmt: skip
