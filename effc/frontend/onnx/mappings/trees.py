"""Ensembles of decision trees: every row walks down all trees at once, one level of all of them a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....ir.dtypes import DType
from ....ir.graph import Builder, Value
from ..context import Context
from ..dtypes import Array
from ..registry import Unsupported, onnx_op
from .ml import ML, _no_strings, labelled, transformed, work_type

COMPARE = {"LEQ": "le", "LT": "lt", "GTE": "ge", "GT": "gt", "EQ": "eq", "NEQ": "ne"}
UNROLLED = 12  # levels written out; deeper ensembles loop
LARGEST = 1 << 26  # elements of the table of leaf weights


@dataclass
class Forest:
    """Nodes of all trees in one table. A leaf is its own successor; its weights are one row."""

    targets: int
    dtype: Any
    feature: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    mode: list[str] = field(default_factory=list)
    track: list[bool] = field(default_factory=list)
    yes: list[int] = field(default_factory=list)
    no: list[int] = field(default_factory=list)
    weight: list[dict[int, float]] = field(default_factory=list)
    is_leaf: list[bool] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)

    def leaf(self, weights: dict[int, float]) -> int:
        k = self.node(0, 0.0, "LEQ", False)
        self.yes[k] = self.no[k] = k
        self.weight[k], self.is_leaf[k] = weights, True
        return k

    def node(self, feature: int, value: float, mode: str, track: bool) -> int:
        self.feature.append(feature)
        self.value.append(value)
        self.mode.append(mode)
        self.track.append(track)
        self.yes.append(-1)
        self.no.append(-1)
        self.weight.append({})
        self.is_leaf.append(False)
        return len(self.feature) - 1

    def depth(self) -> int:
        """Steps from a root to the farthest leaf; Unsupported where nodes form a cycle or one is reached twice over."""
        level, now, seen = 0, set(self.roots), set(self.roots)
        while True:
            now = {c for k in now if not self.is_leaf[k] for c in (self.yes[k], self.no[k])}
            if not now:
                return level
            level += 1
            seen |= now
            if level > len(self.feature):
                raise Unsupported("a tree whose nodes form a cycle")

    def leaves(self, cx: Context, x: Value) -> Value:
        """The leaf that each row of x[N, F] reaches in each tree: i64 [N, trees]."""
        w = x.dtype
        shape = (x.shape[0], len(self.roots))
        tables = [
            np.asarray(self.feature, np.int64), np.asarray(self.value, w.np), np.asarray(self.yes, np.int64),
            np.asarray(self.no, np.int64), np.asarray(self.track, np.bool_),
        ]  # fmt: skip
        modes = sorted({m for k, m in enumerate(self.mode) if not self.is_leaf[k]}) or ["LEQ"]
        tables += [np.array([m == mode for m in self.mode]) for mode in modes]
        named = [cx.b.constant(t, DType.from_np(t.dtype)) for t in tables]
        any_track = any(self.track)

        def step(b: Builder, at: Value, x: Value, *table: Value) -> Value:
            def pick(k: int) -> Value:
                return b.op("take", table[k], at, dim=0)  # type: ignore[no-any-return]

            have, limit = b.op("gather", x, pick(0), dim=1), pick(1)
            go: Value | None = None
            for k, mode in enumerate(modes):
                holds = b.op(COMPARE[mode], have, limit)
                if len(modes) > 1:
                    holds = b.op("logical_and", holds, pick(5 + k))
                go = holds if go is None else b.op("logical_or", go, holds)
            if any_track:
                go = b.op("logical_or", go, b.op("logical_and", pick(4), b.op("isnan", have)))
            return b.op("where", go, pick(2), pick(3))  # type: ignore[no-any-return]

        at = cx.broadcast(cx.b.constant(np.asarray(self.roots, np.int64), DType.i64), shape)
        depth = self.depth()
        if depth <= UNROLLED:
            for _ in range(depth):
                at = step(cx.b, at, x, *named)
            return at
        inner = Builder(cx.b.symbols)
        inner.loc = cx.b.loc
        ins = [inner.input(f"x{k}", v.type) for k, v in enumerate((at, x, *named))]
        body = inner.graph([step(inner, *ins)], name="level")
        return cx.op("scan", at, x, *named, carries=1, scanned=0, length=depth, body=body)  # type: ignore[no-any-return]

    def scores(self, cx: Context, x: Value, aggregate: str) -> Value:
        """[N, targets] in the type of x, aggregated over trees."""
        if len(self.feature) * self.targets > LARGEST:
            raise Unsupported(f"{len(self.feature)} nodes with {self.targets} targets")
        extreme = {"MIN": np.finfo(x.dtype.np).max, "MAX": np.finfo(x.dtype.np).min}.get(aggregate, 0.0)
        table = np.full((len(self.feature), self.targets), extreme, x.dtype.np)
        for k, weights in enumerate(self.weight):
            for target, weight in weights.items():
                if not 0 <= target < self.targets:
                    raise Unsupported(f"a leaf of target {target}, of {self.targets}")
                table[k, target] = weight
        found = cx.b.op("take", cx.b.constant(table, x.dtype), self.leaves(cx, x), dim=0)
        if aggregate in ("MIN", "MAX"):
            y = cx.reduce(aggregate.lower(), found, (1,))
            return cx.where(cx.op("eq", y, float(extreme)), 0, y)
        y = cx.reduce("sum", found, (1,))
        if aggregate == "AVERAGE":
            y = cx.div(y, len(self.roots))
        elif aggregate != "SUM":
            raise Unsupported(f"aggregate_function {aggregate}")
        return y


def _operand(cx: Context, x: Value) -> Value:
    v = cx.convert(x, work_type(x))
    return cx.unsqueeze(v, 0) if v.rank == 1 else v


def _either(values: Sequence[float], tensor: Array | None) -> Array:
    return np.asarray(values) if tensor is None else tensor.reshape(-1)


def _forest(
    w: DType, targets: int, leaf_trees: Sequence[int], leaf_nodes: Sequence[int], leaf_targets: Sequence[int],
    leaf_weights: Array, trees: Sequence[int], nodes: Sequence[int], features: Sequence[int], modes: Sequence[str],
    values: Array, yes: Sequence[int], no: Sequence[int], track: Sequence[int],
) -> Forest:  # fmt: skip
    """Trees of the older operators: nodes named by (tree, node), a tree's root its first node."""
    f = Forest(targets, w.np)
    place: dict[tuple[int, int], int] = {}
    for k, key in enumerate(zip(trees, nodes)):
        if key in place:
            raise Unsupported(f"node {key[1]} of tree {key[0]} twice")
        if modes[k] == "LEAF":
            place[key] = f.leaf({})
        else:
            mode = modes[k].removeprefix("BRANCH_")
            if mode not in COMPARE:
                raise Unsupported(f"nodes of mode {modes[k]}")
            place[key] = f.node(features[k], float(values[k]), mode, bool(track[k]) if track else False)
    seen: set[int] = set()
    for k, (tree, _) in enumerate(zip(trees, nodes)):
        if tree not in seen:
            seen.add(tree)
            f.roots.append(k)
        if modes[k] != "LEAF":
            try:
                f.yes[k], f.no[k] = place[tree, yes[k]], place[tree, no[k]]
            except KeyError:
                raise Unsupported(f"a branch to node {yes[k]} or {no[k]} of tree {tree}, which is not there") from None
    for tree, node, target, weight in zip(leaf_trees, leaf_nodes, leaf_targets, leaf_weights):
        at = f.weight[place[tree, node]]
        at[target] = at.get(target, 0.0) + float(weight)
    return f


@onnx_op("TreeEnsembleRegressor", domain=ML)
def _regressor(
    cx: Context, x: Value, *, aggregate_function: str = "SUM", base_values: Sequence[float] = (),
    base_values_as_tensor: Array | None = None, n_targets: int = 1, nodes_falsenodeids: Sequence[int] = (),
    nodes_featureids: Sequence[int] = (), nodes_hitrates: Any = None, nodes_hitrates_as_tensor: Any = None,
    nodes_missing_value_tracks_true: Sequence[int] = (), nodes_modes: Sequence[str] = (),
    nodes_nodeids: Sequence[int] = (), nodes_treeids: Sequence[int] = (), nodes_truenodeids: Sequence[int] = (),
    nodes_values: Sequence[float] = (), nodes_values_as_tensor: Array | None = None, post_transform: str = "NONE",
    target_ids: Sequence[int] = (), target_nodeids: Sequence[int] = (), target_treeids: Sequence[int] = (),
    target_weights: Sequence[float] = (), target_weights_as_tensor: Array | None = None,
) -> Value:  # fmt: skip
    v = _operand(cx, x)
    f = _forest(
        v.dtype, n_targets, target_treeids, target_nodeids, target_ids,
        _either(target_weights, target_weights_as_tensor), nodes_treeids, nodes_nodeids, nodes_featureids, nodes_modes,
        _either(nodes_values, nodes_values_as_tensor), nodes_truenodeids, nodes_falsenodeids,
        nodes_missing_value_tracks_true,
    )  # fmt: skip
    y = f.scores(cx, v, aggregate_function)
    base = _either(base_values, base_values_as_tensor)
    if base.size:
        y = cx.op("add", y, cx.b.constant(base.astype(v.dtype.np), v.dtype))
    return cx.convert(transformed(cx, y, post_transform), DType.f32)


@onnx_op("TreeEnsembleClassifier", domain=ML)
def _classifier(
    cx: Context, x: Value, *, base_values: Sequence[float] = (), base_values_as_tensor: Array | None = None,
    class_ids: Sequence[int] = (), class_nodeids: Sequence[int] = (), class_treeids: Sequence[int] = (),
    class_weights: Sequence[float] = (), class_weights_as_tensor: Array | None = None,
    classlabels_int64s: Sequence[int] = (), classlabels_strings: Sequence[str] = (),
    nodes_falsenodeids: Sequence[int] = (), nodes_featureids: Sequence[int] = (), nodes_hitrates: Any = None,
    nodes_hitrates_as_tensor: Any = None, nodes_missing_value_tracks_true: Sequence[int] = (),
    nodes_modes: Sequence[str] = (), nodes_nodeids: Sequence[int] = (), nodes_treeids: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (), nodes_values: Sequence[float] = (),
    nodes_values_as_tensor: Array | None = None, post_transform: str = "NONE",
) -> Any:  # fmt: skip
    """(label, scores). Of two classes where only one has weights, its score s decides for the second class: against
    0.5 if no weight is negative, against 0 otherwise. If it is the first class that has them, as converters write it,
    the scores are then 1 - s and s, or -s and s; if it is the second, 0 and s. So has ONNX Runtime; the standard says
    nothing.
    """
    _no_strings(classlabels_strings)
    classes = len(classlabels_int64s)
    v = _operand(cx, x)
    weights = _either(class_weights, class_weights_as_tensor)
    binary = classes == 2 and len(set(class_ids)) == 1
    ids = [0] * len(class_ids) if binary else class_ids
    f = _forest(
        v.dtype, 1 if binary else classes, class_treeids, class_nodeids, ids, weights, nodes_treeids, nodes_nodeids,
        nodes_featureids, nodes_modes, _either(nodes_values, nodes_values_as_tensor), nodes_truenodeids,
        nodes_falsenodeids, nodes_missing_value_tracks_true,
    )  # fmt: skip
    y = f.scores(cx, v, "SUM")
    base = _either(base_values, base_values_as_tensor)
    if not binary:
        if classes < 2:
            raise Unsupported(f"{classes} classes")
        if base.size:
            y = cx.op("add", y, cx.b.constant(base.astype(v.dtype.np), v.dtype))
        return labelled(cx, y, classlabels_int64s), cx.convert(transformed(cx, y, post_transform), DType.f32)
    if base.size > 1 or (base.size and set(class_ids) != {0}):
        raise Unsupported("base_values for two classes of which one has weights")
    if base.size:
        y = cx.add(y, float(base[0]))
    if post_transform == "PROBIT":
        raise Unsupported("post_transform PROBIT of one score for two classes")
    likely = bool((weights >= 0).all())
    second = cx.op("gt", cx.squeeze(y, 1), 0.5 if likely else 0)
    label = cx.where(second, cx.const(classlabels_int64s[1], DType.i64), classlabels_int64s[0])
    if set(class_ids) == {1}:
        other = cx.full(0.0, y.shape, y.dtype)
    elif likely and post_transform == "NONE":
        other = cx.sub(1, y)
    else:
        other = cx.op("neg", y)
    return label, cx.convert(transformed(cx, cx.concat([other, y], 1), post_transform), DType.f32)


_MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER")
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


@onnx_op("TreeEnsemble", domain=ML, since=5)
def _ensemble(
    cx: Context, x: Value, *, aggregate_function: int = 1, leaf_targetids: Sequence[int], leaf_weights: Array,
    membership_values: Array | None = None, n_targets: int, nodes_falseleafs: Sequence[int],
    nodes_falsenodeids: Sequence[int], nodes_featureids: Sequence[int], nodes_hitrates: Any = None,
    nodes_missing_value_tracks_true: Sequence[int] = (), nodes_modes: Array, nodes_splits: Array,
    nodes_trueleafs: Sequence[int], nodes_truenodeids: Sequence[int], post_transform: int = 0,
    tree_roots: Sequence[int],
) -> Value:  # fmt: skip
    """A node that asks for membership in a set is a chain of nodes that ask for one member each; the members of the
    next such node, in the order of nodes, follow the NaN that ends a set.
    """
    v = _operand(cx, x)
    f = Forest(n_targets, v.dtype.np)
    members = iter(() if membership_values is None else membership_values.reshape(-1).tolist())
    sets: dict[int, list[float]] = {}
    for k, mode in enumerate(nodes_modes.tolist()):
        if _MODES[mode] == "MEMBER":
            sets[k] = []
            for m in members:
                if np.isnan(m):
                    break
                sets[k].append(m)
    made: dict[int, int] = {}
    leaves: dict[int, int] = {}

    def leaf(k: int) -> int:
        if k not in leaves:
            leaves[k] = f.leaf({leaf_targetids[k]: float(leaf_weights[k])})
        return leaves[k]

    def add(root: int) -> int:
        """The table's entry of a node; its successors are entered first, without recursion."""
        stack = [root]
        while stack:
            k = stack[-1]
            if k in made:
                stack.pop()
                continue
            todo = [
                c for c, is_leaf in (
                    (nodes_truenodeids[k], nodes_trueleafs[k]), (nodes_falsenodeids[k], nodes_falseleafs[k])
                ) if not is_leaf and c not in made
            ]  # fmt: skip
            if todo:
                if len(stack) > 2 * len(nodes_featureids):
                    raise Unsupported("a tree whose nodes form a cycle")
                stack += todo
                continue
            yes = leaf(nodes_truenodeids[k]) if nodes_trueleafs[k] else made[nodes_truenodeids[k]]
            no = leaf(nodes_falsenodeids[k]) if nodes_falseleafs[k] else made[nodes_falsenodeids[k]]
            track = bool(nodes_missing_value_tracks_true[k]) if nodes_missing_value_tracks_true else False
            mode = _MODES[int(nodes_modes[k])]
            asked = sets[k] if mode == "MEMBER" else [float(nodes_splits[k])]
            for value in reversed(asked):
                at = f.node(nodes_featureids[k], value, "EQ" if mode == "MEMBER" else mode, track)
                f.yes[at], f.no[at] = yes, no
                no = at
            made[k] = no
            stack.pop()
        return made[root]

    for r in tree_roots:
        whole = nodes_trueleafs[r] and nodes_falseleafs[r] and nodes_truenodeids[r] == nodes_falsenodeids[r]
        f.roots.append(leaf(nodes_truenodeids[r]) if whole else add(r))
    y = f.scores(cx, v, _AGGREGATES[aggregate_function])
    return cx.convert(transformed(cx, y, _TRANSFORMS[post_transform]), x.dtype)
