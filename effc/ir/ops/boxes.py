"""Selection among boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..dims import Dim, product, symbol
from ..dtypes import DType
from ..op import Cost, DimAttr, Sample, op, require, same_dim
from ..types import TensorType

Array = np.ndarray[Any, Any]


def _infer(
    boxes: TensorType, scores: TensorType, limit: TensorType, iou: TensorType, threshold: TensorType | None = None, *,
    center: bool, size: Dim,
) -> TensorType:  # fmt: skip
    require(boxes.dtype is DType.f32 and scores.dtype is DType.f32, f"needs f32, not {boxes.dtype} and {scores.dtype}")
    require(boxes.rank == 3 and scores.rank == 3, f"boxes and scores must have rank 3, not {boxes.rank}, {scores.rank}")
    require(same_dim(boxes.shape[2], 4), f"a box is 4 numbers, not {boxes.shape[2]}")
    require(same_dim(boxes.shape[0], scores.shape[0]), "boxes and scores differ in batch size")
    require(same_dim(boxes.shape[1], scores.shape[2]), f"{boxes.shape[1]} boxes have {scores.shape[2]} scores")
    require(limit.dtype is DType.i64 and limit.rank == 0, f"the limit must be an i64 scalar, not {limit}")
    for t in (iou, threshold):
        require(t is None or (t.dtype is DType.f32 and t.rank == 0), f"a threshold must be an f32 scalar, not {t}")
    return TensorType(DType.i64, (size, 3))


def corners(boxes: Array, center: bool) -> tuple[Array, Array, Array, Array]:
    """(low, high) of both axes, from two opposite corners in any order or from centre and size."""
    a, b, c, d = (boxes[..., k] for k in range(4))
    if center:
        half_w, half_h = c / np.float32(2), d / np.float32(2)
        return a - half_w, a + half_w, b - half_h, b + half_h
    return np.minimum(a, c), np.maximum(a, c), np.minimum(b, d), np.maximum(b, d)


def _numpy(
    boxes: Array, scores: Array, limit: Array, iou: Array, threshold: Array | None = None, *, center: bool
) -> Array:
    out: list[tuple[int, int, int]] = []
    with np.errstate(all="ignore"):
        for b in range(scores.shape[0]):
            x0, x1, y0, y1 = corners(boxes[b], center)
            area = (x1 - x0) * (y1 - y0)
            for c in range(scores.shape[1]):
                s = scores[b, c]
                order = np.argsort(-s, kind="stable")
                order = order[~np.isnan(s[order])]
                if threshold is not None:
                    order = order[s[order] > threshold]
                taken: list[int] = []
                for i in order.tolist():
                    if len(taken) >= int(limit):
                        break
                    t = np.array(taken, np.int64)
                    w = np.minimum(x1[i], x1[t]) - np.maximum(x0[i], x0[t])
                    h = np.minimum(y1[i], y1[t]) - np.maximum(y0[i], y0[t])
                    common = np.maximum(w, np.float32(0)) * np.maximum(h, np.float32(0))
                    union = area[i] + area[t] - common
                    valid = (common > 0) & (area[i] > 0) & (area[t] > 0) & (union > 0)
                    if not (valid & (common / union > iou)).any():
                        taken.append(i)
                out += [(b, c, i) for i in taken]
    return np.array(out, np.int64).reshape(-1, 3)


def _cost(ins: Sequence[TensorType | None], outs: Sequence[TensorType], attrs: Mapping[str, Any]) -> Cost:
    boxes, scores = ins[0], ins[1]
    assert boxes is not None and scores is not None
    return Cost(product(scores.shape) * 100, boxes.nbytes + scores.nbytes)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    size = symbol("u0")
    for b, c, n, limit, iou, threshold, center in (
        (2, 3, 40, 5, 0.3, 0.2, False), (1, 1, 17, 100, 0.5, None, True), (1, 2, 300, 20, 0.1, 0.9, False),
        (1, 1, 1, 1, 0.5, None, False), (2, 2, 9, 0, 0.5, None, False), (1, 2, 0, 3, 0.5, 0.1, False),
        (0, 1, 5, 3, 0.5, 0.1, True), (1, 1, 12, 12, 0.0, None, False), (1, 1, 12, 12, 1.0, None, True),
    ):  # fmt: skip
        boxes = rng.random((b, n, 4), np.float32)
        scores = np.round(rng.random((b, c, n), np.float32), 1)  # equal ones: the first is taken
        inputs = [boxes, scores, np.array(limit, np.int64), np.array(iou, np.float32)]
        inputs.append(None if threshold is None else np.array(threshold, np.float32))
        yield Sample(tuple(inputs), {"center": center, "size": size})


op(
    "nms",
    "boxes scores limit iou threshold?",
    {"center": (bool, False), "size": DimAttr},
    infer=_infer,
    numpy=_numpy,
    category="indexing",
    binds=("size",),
    cost=_cost,
    samples=_samples,
    doc="Non-maximum suppression: for each batch and class of scores[B, C, N], boxes[B, N, 4] by falling score (of "
    "equal ones the first; NaN never), each taken unless its intersection over union with one taken before is more "
    "than iou, "
    "until there are limit of them. Only scores above threshold count. A box is two opposite corners (y, x, y, x) or, "
    "with center, (x, y, width, height). Result: (batch, class, box) in the order of selection.",
)
