"""Selection among boxes."""

from __future__ import annotations

from ....ir.dtypes import DType
from ....ir.graph import Value
from ..context import Context
from ..registry import onnx_op


@onnx_op("NonMaxSuppression", since=10)
def _nms(
    cx: Context, boxes: Value, scores: Value, limit: Value | None = None, iou: Value | None = None,
    threshold: Value | None = None, *, center_point_box: int = 0,
) -> Value:  # fmt: skip
    """Without a limit nothing is selected, as the standard has it."""
    cx.require(boxes.shape[0], "==", scores.shape[0], "boxes and scores must have the same batch size")
    cx.require(boxes.shape[1], "==", scores.shape[2], "every box must have a score")

    def scalar(v: Value | None, dtype: DType) -> Value:
        return cx.const(0, dtype) if v is None else cx.convert(cx.reshape(v, ()), dtype)

    return cx.b.op(  # type: ignore[no-any-return]
        "nms", boxes, scores, scalar(limit, DType.i64), scalar(iou, DType.f32),
        None if threshold is None else scalar(threshold, DType.f32), center=bool(center_point_box),
        size=cx.new_symbol(),
    )  # fmt: skip
