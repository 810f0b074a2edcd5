"""Gradient-boosted trees without the library that grew them: numpy arrays, and their evaluation.

All trees of an ensemble lie one after the other. A node has a feature, a threshold (left if the feature is at most
that) and two children, numbers of nodes, or, if negative, of leaves (``~leaf``). The sum of the leaves is the
prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FEW = 8  # rows, up to which trees are not first cut down to what differs between them


@dataclass(frozen=True)
class Trees:
    """``roots``: the first node of each tree, or ``~leaf`` of a tree that has no node. ``rest``: added to the sum.
    Thresholds have the precision of f32 and leaves that of f16: a file is half as large."""

    feature: Array
    threshold: Array
    children: Array  # (nodes, 2)
    value: Array
    roots: Array
    rest: float = 0.0

    def given(self, x: Array, known: Array) -> Trees:
        """The trees that are left where the ``known`` features (a mask) have the values that row ``x`` has: splits on
        them are gone. They predict the same, and rows that differ in few features in a fraction of the time."""
        nodes = np.arange(len(self.feature))
        right = (x[self.feature] > self.threshold).astype(np.int64)
        to = np.where(known[self.feature], self.children[nodes, right], nodes)
        while True:  # each round doubles how far a node looks
            inner = to >= 0
            further = np.where(inner, to[np.where(inner, to, 0)], to) if len(to) else to
            if (further == to).all():
                break
            to = further
        if not len(to):
            return self
        children = np.where(self.children >= 0, to[np.maximum(self.children, 0)], self.children)
        roots = np.where(self.roots >= 0, to[np.maximum(self.roots, 0)], self.roots)
        rest = self.rest + float(self.value[~roots[roots < 0]].sum())
        return replace(self, children=children, roots=roots[roots >= 0], rest=rest)

    def and_also(self, more: Trees) -> Trees:
        """The trees of both, whose predictions add up."""
        nodes, leaves = len(self.feature), len(self.value)

        def moved(at: Array) -> Array:
            return np.where(at >= 0, at + nodes, at - leaves)

        return Trees(
            np.concatenate([self.feature, more.feature]), np.concatenate([self.threshold, more.threshold]),
            np.concatenate([self.children, moved(more.children)]), np.concatenate([self.value, more.value]),
            np.concatenate([self.roots, moved(more.roots)]), self.rest + more.rest,
        )  # fmt: skip

    def __call__(self, x: Array) -> Array:
        """Predictions of rows (n, features)."""
        x = np.ascontiguousarray(x, np.float64)
        if len(x) > FEW:
            same = (x == x[0]).all(0)
            left = self.given(x[0], same)
            return left._sum(x)
        return self._sum(x)

    def _sum(self, x: Array) -> Array:
        rows = np.arange(len(x))[:, None]
        at = np.broadcast_to(self.roots, (len(x), len(self.roots))).astype(np.int64)
        if not len(self.feature):
            return np.asarray(self.value[~at].sum(1) + self.rest)
        while (inner := at >= 0).any():
            node = np.where(inner, at, 0)
            right = x[rows, self.feature[node]] > self.threshold[node]
            at = np.where(inner, self.children[node, right.astype(np.int64)], at)
        return np.asarray(self.value[~at].sum(1) + self.rest)

    def arrays(self, prefix: str) -> dict[str, Array]:
        """For an npz file. Children lie near their nodes: how far is packed better than where."""
        at = np.arange(len(self.feature))[:, None]
        steps = np.where(self.children >= 0, self.children - at, self.children + at)
        return {
            f"{prefix}.feature": self.feature.astype(np.int16),
            f"{prefix}.threshold": self.threshold.astype(np.float32),
            f"{prefix}.steps": steps.astype(np.int32), f"{prefix}.leaf": self.children < 0,
            f"{prefix}.value": self.value.astype(np.float16),
            f"{prefix}.roots": self.roots.astype(np.int32),
        }  # fmt: skip

    @staticmethod
    def from_arrays(data: Mapping[str, Array], prefix: str) -> Trees:
        feature, threshold, value, roots = (data[f"{prefix}.{n}"] for n in ("feature", "threshold", "value", "roots"))
        if f"{prefix}.steps" in data:
            at, steps = np.arange(len(feature))[:, None], data[f"{prefix}.steps"].astype(np.int64)
            children = np.where(data[f"{prefix}.leaf"], steps - at, steps + at)
        else:  # a file from before
            children = data[f"{prefix}.children"].astype(np.int64)
        return Trees(
            feature.astype(np.int64), threshold.astype(np.float64), children, value.astype(np.float64),
            roots.astype(np.int64),
        )  # fmt: skip

    @staticmethod
    def from_text(text: str) -> Trees:
        """From LightGBM's ``model_to_string()``. Missing values and categories are not provided for."""
        parts: list[list[Array]] = [[], [], [], [], []]
        nodes = leaves = 0
        for block in text.split("\nTree=")[1:]:
            f = dict(line.split("=", 1) for line in block.split("\n\n", 1)[0].splitlines() if "=" in line)
            value = np.array(f["leaf_value"].split(), np.float64).astype(np.float16).astype(np.float64)
            if int(f["num_leaves"]) == 1:
                parts[4].append(np.array([~leaves]))
            else:
                if any(int(d) & 13 for d in f["decision_type"].split()):
                    raise ValueError("a split by category or of missing values")
                pairs = np.array([f["left_child"].split(), f["right_child"].split()], np.int64).T
                parts[0].append(np.array(f["split_feature"].split(), np.int64))
                at_most = np.array(f["threshold"].split(), np.float64)
                short = at_most.astype(np.float32)
                parts[1].append(
                    np.where(short > at_most, np.nextafter(short, np.float32(-np.inf)), short).astype(float)
                )
                parts[2].append(np.where(pairs >= 0, pairs + nodes, ~(~pairs + leaves)))
                parts[4].append(np.array([nodes]))
                nodes += len(pairs)
            parts[3].append(value)
            leaves += len(value)
        feature, threshold, children, values, roots = (np.concatenate(p) if p else np.zeros(0, np.int64) for p in parts)
        return Trees(feature, threshold, children.reshape(-1, 2), values, roots)


def _at_most(x: Array) -> Array:
    """The largest values of f32 that are not more: what is at most one of them is at most ``x``, too."""
    short = x.astype(np.float32)
    return np.where(short > x, np.nextafter(short, np.float32(-np.inf)), short).astype(np.float64)
