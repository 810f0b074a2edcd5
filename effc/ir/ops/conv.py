"""Convolutions. Shapes are channels-first, as in PyTorch and ONNX; the order in memory is the backend's business.

``padding`` has one (low, high) pair per spatial dim; its entries and ``output_padding``'s may be symbolic. Bias is
a separate add.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import dims
from ..dims import Dim
from ..dtypes import DType
from ..graph import Builder, Graph
from ..op import Cost, Sample, op, require, same_dim
from ..types import TensorType
from .contraction import region
from .elementwise import random_array

Array = np.ndarray[Any, Any]

_ATTRS: dict[str, Any] = {"stride": tuple, "padding": tuple, "dilation": tuple, "groups": (int, 1)}


def trailing(*index: Any) -> Any:
    """An index into the last dims."""
    return (Ellipsis, *index)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which the reference sums."""
    if dtype.kind == "c":
        return np.dtype(np.complex128)
    return dtype if dtype.kind in "iu" else np.dtype(np.float64)


def _check(
    x: TensorType, w: TensorType, stride: Sequence[int], padding: Sequence[Any], dilation: Sequence[int], groups: int
) -> int:
    nd = x.rank - 2
    require(1 <= nd <= 3 and w.rank == x.rank, f"x and w must have the same rank, 3 to 5, not {x.rank} and {w.rank}")
    require(
        x.dtype is w.dtype and not x.dtype.is_bool,
        f"x and w must have the same numeric dtype, not {x.dtype} and {w.dtype}",
    )
    require(len(stride) == len(dilation) == len(padding) == nd, f"stride, padding and dilation need {nd} entries")
    require(all(s > 0 for s in stride) and all(d > 0 for d in dilation), "stride and dilation must be positive")
    require(groups > 0, "groups must be positive")
    return nd


def conv_size(size: Dim, kernel: Dim, stride: int, pad: Any, dilation: int) -> Dim:
    """Output size of a convolution along one dim."""
    return dims.floordiv(size + pad[0] + pad[1] - (kernel - 1) * dilation - 1, stride) + 1


def _conv(x: TensorType, w: TensorType, *, stride: Any, padding: Any, dilation: Any, groups: int) -> TensorType:
    nd = _check(x, w, stride, padding, dilation, groups)
    channels, out = w.shape[1] * groups, w.shape[0]
    require(same_dim(x.shape[1], channels), f"x has {x.shape[1]} channels, the weights take {channels}")
    require(not isinstance(out, int) or out % groups == 0, f"{out} output channels do not divide into {groups} groups")
    shape: list[Dim] = []
    for d in range(nd):
        size = conv_size(x.shape[2 + d], w.shape[2 + d], stride[d], padding[d], dilation[d])
        require(
            not isinstance(size, int) or size > 0, f"the window is larger than the padded input along spatial dim {d}"
        )
        shape.append(size)
    return x.with_shape((x.shape[0], out, *shape))


def _conv_np(x: Array, w: Array, *, stride: Any, padding: Any, dilation: Any, groups: int) -> Array:
    nd = x.ndim - 2
    wide = _wide(x.dtype)
    padded = np.pad(x, [(0, 0), (0, 0), *padding]).astype(wide)
    reach = [dilation[d] * (w.shape[2 + d] - 1) + 1 for d in range(nd)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + nd)))
    windows = windows[trailing(*(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))]
    n, cg, og = x.shape[0], w.shape[1], w.shape[0] // groups
    out = windows.shape[2 : 2 + nd]
    # [N, G, cg, *out, *K] -> [N, G, pixels, cg * K]
    split = windows.reshape(n, groups, cg, *windows.shape[2:])
    rows = split.transpose(0, 1, *range(3, 3 + nd), 2, *range(3 + nd, 3 + 2 * nd)).reshape(
        n, groups, int(np.prod(out)), cg * int(np.prod(w.shape[2:]))
    )
    matrix = w.astype(wide).reshape(groups, og, cg * int(np.prod(w.shape[2:]))).transpose(0, 2, 1)
    y = np.matmul(rows, matrix)  # [N, G, pixels, og]
    result: Array = y.transpose(0, 1, 3, 2).reshape(n, groups * og, *out).astype(x.dtype)
    return result


def _conv_cost(inputs: Sequence[TensorType | None], outputs: Sequence[TensorType], attrs: Any) -> Cost:
    x, w = inputs[0], inputs[1]
    assert x is not None and w is not None
    moved: Dim = 0
    for t in [*inputs, *outputs]:
        moved = moved + (0 if t is None else t.nbytes)
    y = outputs[0]
    return Cost(dims.product(w.shape) * y.shape[0] * dims.product(y.shape[2:]) * 2, moved)


def _transpose_cost(inputs: Sequence[TensorType | None], outputs: Sequence[TensorType], attrs: Any) -> Cost:
    x, w = inputs[0], inputs[1]
    assert x is not None and w is not None
    moved: Dim = x.nbytes + w.nbytes + outputs[0].nbytes
    return Cost(dims.product(w.shape) * x.shape[0] * dims.product(x.shape[2:]) * 2, moved)


def _pairs(*values: int) -> tuple[tuple[int, int], ...]:
    return tuple((v, v) for v in values)


def _conv_samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases: list[tuple[Any, ...]] = [
        ((1, 3, 9, 8), (4, 3, 3, 3), (1, 1), _pairs(1, 1), (1, 1), 1, "odd image"),
        ((2, 8, 7, 7), (24, 8, 1, 1), (1, 1), _pairs(0, 0), (1, 1), 1, "pointwise"),
        ((2, 6, 8, 5), (6, 1, 3, 3), (2, 1), _pairs(1, 1), (1, 1), 6, "depthwise"),
        ((1, 4, 6, 6), (8, 1, 3, 2), (1, 1), _pairs(1, 0), (1, 2), 4, "two filters per channel, dilated"),
        ((2, 6, 9, 9), (9, 2, 3, 3), (2, 2), ((1, 0), (2, 1)), (1, 1), 3, "groups, uneven padding"),
        ((1, 10, 33), (17, 10, 8), (1,), _pairs(4), (1,), 1, "1-d"),
        ((1, 1, 120), (20, 1, 31), (4,), _pairs(15), (1,), 1, "1-d, one channel, large window"),
        ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), (1, 2, 1), _pairs(1, 0, 1), (1, 1, 2), 1, "3-d"),
        ((0, 3, 5, 5), (4, 3, 3, 3), (1, 1), _pairs(1, 1), (1, 1), 1, "empty batch"),
        ((1, 16, 1, 1), (5, 16, 3, 3), (1, 1), _pairs(1, 1), (1, 1), 1, "image smaller than the window"),
    ]
    for xs, ws, stride, padding, dilation, groups, why in cases:
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        yield Sample((random_array(rng, xs, np.float32), random_array(rng, ws, np.float32)), attrs, why)
    xs, ws, stride, padding, dilation, groups, _ = cases[4]
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for dt in (np.float64, DType.f16.np, DType.bf16.np, np.int64, np.int32, np.complex64):
        yield Sample((random_array(rng, xs, dt), random_array(rng, ws, dt)), attrs, "other dtypes")
    attrs = {"stride": (1, 1), "padding": _pairs(1, 1), "dilation": (1, 1), "groups": 6}
    for dt in (np.float64, DType.f16.np, DType.bf16.np, np.int64):
        yield Sample(
            (random_array(rng, (1, 6, 5, 7), dt), random_array(rng, (6, 1, 3, 3), dt)), attrs, "depthwise, other dtypes"
        )


op(
    "conv",
    "x w",
    _ATTRS,
    infer=_conv,
    numpy=_conv_np,
    category="contraction",
    cost=_conv_cost,
    samples=_conv_samples,
    doc="x[N, C, *S], w[O, C/groups, *K] -> [N, O, *S']: cross-correlation, 1 to 3 spatial dims. Short floats "
    "accumulate in f32, "
    "integers modulo 2^bits.",
)


def transposed_size(size: Dim, kernel: Dim, stride: int, pad: Any, dilation: int, extra: Dim) -> Dim:
    """Output size of a transposed convolution along one dim."""
    result: Dim = (size - 1) * stride - pad[0] - pad[1] + (kernel - 1) * dilation + extra + 1
    return result


def _conv_transpose(
    x: TensorType, w: TensorType, *, stride: Any, padding: Any, dilation: Any, groups: int, output_padding: Any
) -> TensorType:
    nd = _check(x, w, stride, padding, dilation, groups)
    require(same_dim(x.shape[1], w.shape[0]), f"x has {x.shape[1]} channels, the weights take {w.shape[0]}")
    require(
        not isinstance(w.shape[0], int) or w.shape[0] % groups == 0,
        f"{w.shape[0]} channels do not divide into {groups} groups",
    )
    require(len(output_padding) == nd, f"output_padding needs {nd} entries")
    shape: list[Dim] = []
    for d in range(nd):
        size = transposed_size(x.shape[2 + d], w.shape[2 + d], stride[d], padding[d], dilation[d], output_padding[d])
        require(not isinstance(size, int) or size > 0, f"the result would be empty along spatial dim {d}")
        shape.append(size)
    return x.with_shape((x.shape[0], w.shape[1] * groups, *shape))


def _conv_transpose_np(
    x: Array, w: Array, *, stride: Any, padding: Any, dilation: Any, groups: int, output_padding: Any
) -> Array:
    nd = x.ndim - 2
    wide = _wide(x.dtype)
    n, cg, og = x.shape[0], x.shape[1] // groups, w.shape[1]
    rows = x.astype(wide).reshape(n, groups, cg, int(np.prod(x.shape[2:])))
    taps = w.astype(wide).reshape(groups, cg, og, *w.shape[2:])
    sizes = [
        transposed_size(x.shape[2 + d], w.shape[2 + d], stride[d], padding[d], dilation[d], output_padding[d])
        for d in range(nd)
    ]
    # Scattered into a canvas that holds the cropped borders too.
    reach = [
        max((x.shape[2 + d] - 1) * stride[d] + dilation[d] * (w.shape[2 + d] - 1) + 1, padding[d][0] + sizes[d])
        for d in range(nd)
    ]
    canvas = np.zeros((n, groups, og, *reach), wide)
    for tap in np.ndindex(*w.shape[2:]):
        part = np.einsum("ngcp,gco->ngop", rows, taps[trailing(*tap)]).reshape(n, groups, og, *x.shape[2:])
        at = tuple(
            slice(t * dl, t * dl + (s - 1) * st + 1, st)
            for t, dl, s, st in zip(tap, dilation, x.shape[2:], stride, strict=True)
        )
        canvas[trailing(*at)] += part
    crop = tuple(slice(padding[d][0], padding[d][0] + sizes[d]) for d in range(nd))
    result: Array = canvas[trailing(*crop)].reshape(n, groups * og, *sizes).astype(x.dtype)
    return result


def _conv_transpose_samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases: list[tuple[Any, ...]] = [
        ((1, 5, 4, 5), (5, 7, 3, 3), (2, 2), _pairs(1, 1), (1, 1), 1, (1, 1), "doubling, as in decoders"),
        ((2, 6, 5, 4), (6, 4, 4, 2), (3, 1), _pairs(1, 0), (1, 2), 2, (0, 1), "groups"),
        ((1, 8, 9), (8, 3, 5), (3,), _pairs(2), (1,), 1, (2,), "1-d"),
        ((1, 4, 3, 2, 3), (4, 2, 2, 3, 2), (2, 1, 2), _pairs(0, 1, 0), (1, 1, 1), 1, (1, 0, 0), "3-d"),
        ((1, 3, 4, 4), (3, 2, 1, 1), (3, 3), _pairs(0, 0), (1, 1), 1, (2, 2), "window smaller than the stride"),
    ]
    for xs, ws, stride, padding, dilation, groups, extra, why in cases:
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "output_padding": extra}
        yield Sample((random_array(rng, xs, np.float32), random_array(rng, ws, np.float32)), attrs, why)
    xs, ws, stride, padding, dilation, groups, extra, _ = cases[1]
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "output_padding": extra}
    for dt in (np.float64, DType.f16.np, DType.bf16.np, np.int64, np.complex64):
        yield Sample((random_array(rng, xs, dt), random_array(rng, ws, dt)), attrs, "other dtypes")


op(
    "conv_transpose",
    "x w",
    {**_ATTRS, "output_padding": tuple},
    infer=_conv_transpose,
    numpy=_conv_transpose_np,
    category="contraction",
    cost=_transpose_cost,
    samples=_conv_transpose_samples,
    doc="x[N, C, *S], w[C, O/groups, *K] -> [N, O, *S']: the gradient of conv with respect to its input. "
    "Padding crops the result.",
)


def _fused_acc(x: TensorType, w: TensorType, attrs: dict[str, Any]) -> TensorType:
    if attrs.get("output_padding") is None:
        return _conv(x, w, **{k: v for k, v in attrs.items() if k != "output_padding"})
    return _conv_transpose(x, w, **attrs)


def _conv_fused(x: TensorType, w: TensorType, *extras: TensorType, body: Graph, **attrs: Any) -> tuple[TensorType, ...]:
    acc = _fused_acc(x, w, attrs)
    require(
        len(body.inputs) == 1 + len(extras), f"the body takes {len(body.inputs)} values, there are {1 + len(extras)}"
    )
    require(
        body.inputs[0].types[0].dtype is acc.dtype,
        f"the body's accumulator is {body.inputs[0].types[0].dtype}, not {acc.dtype}",
    )
    return tuple(v.type for v in body.outputs)


def _conv_fused_decompose(b: Any, x: Any, w: Any, *extras: Any, body: Graph, output_padding: Any, **attrs: Any) -> Any:
    if output_padding is None:
        acc = b.op("conv", x, w, **attrs)
    else:
        acc = b.op("conv_transpose", x, w, output_padding=output_padding, **attrs)
    return body.inline(b, [acc, *extras])


op(
    "conv_fused",
    "x w extras*",
    {**_ATTRS, "output_padding": (object, None), "body": Graph},
    infer=_conv_fused,
    category="contraction",
    level="macro",
    decompose=_conv_fused_decompose,
    cost=_conv_cost,
    doc="conv (conv_transpose where output_padding is given) followed by ``body``: elementwise ops on the "
    "result, body's first "
    "input, and on the extra operands, which broadcast to it.",
)


region(
    "conv_chain",
    "[A convolution,] a depthwise and a pointwise one, with epilogues, as one kernel; ``body`` holds them.",
)


region(
    "conv_pair",
    "A pointwise convolution and a depthwise one of its result, with epilogues, as one kernel; ``body`` has both.",
)


region(
    "conv_scaled",
    "A pointwise convolution, with its epilogue, of an image x whose channels are scaled, as in squeeze and excite. "
    "Operands: x, the scale [N or 1, C, 1, 1] and the others of the convolution; ``body`` has the product of x and "
    "the scale, and the convolution.",
)


def winograd_side(tile: int, stride: int) -> int:
    """Values of a row of the transformed input, and pixels that a row of ``tile`` results of a window of 3 takes."""
    return tile + 2 if stride == 1 else 2 * tile + 1


def winograd_positions(n: Dim, tile: int, stride: int) -> Dim:
    """Values of the transformed input along a dim of ``n`` results, for one channel: ceil(n / tile) tiles, of which as
    many are one result narrower, and take ``stride`` values less, as is possible (kernels/conv_winograd.hpp)."""
    tiles = dims.ceildiv(n, tile)
    return tiles * winograd_side(tile, stride) - dims.minimum(tiles, tiles * tile - n) * stride


def winograd_name(tile: int, stride: int) -> str:
    """The algorithm's name in reports."""
    return f"F({tile}x{tile}, 3x3)" + (f" of stride {stride}" if stride != 1 else "")


def _winograd(x: TensorType, w: TensorType, *extras: TensorType, **attrs: Any) -> tuple[TensorType, ...]:
    tile, stride, along, few = (attrs.pop(k) for k in ("tile", "stride", "depth_stride", "few"))
    require(few >= 0, f"few must not be negative, and is {few}")
    require(not few or w.rank == 4, "few pixels are summed directly in two dims alone")
    require(tile > 0, f"tile must be positive, not {tile}")
    require(stride in (1, 2), f"the stride must be 1 or 2, not {stride}")
    require(
        w.rank in (4, 5) and w.shape[-2:] == (3, 3), f"the window must be 3x3 in the last two dims, not {w.shape[2:]}"
    )
    depth = w.shape[2] if w.rank == 5 else 1
    require(isinstance(depth, int) and 0 < along <= depth, f"a stride of {along} along a window's depth of {depth}")
    return _conv_fused(x, w, *extras, **winograd_window(w.rank - 2, stride, along), **attrs)


def winograd_window(nd: int, stride: int, depth_stride: int) -> dict[str, Any]:
    """Attributes of the convolution besides its padding, in ``nd`` spatial dims."""
    strides = (depth_stride, stride, stride) if nd == 3 else (stride, stride)
    return {"stride": strides, "dilation": (1,) * nd, "groups": 1}


def _winograd_decompose(
    b: Any, x: Any, w: Any, *extras: Any, body: Graph, padding: Any, tile: int, stride: int, depth_stride: int, few: int
) -> Any:
    plain = winograd_window(len(padding), stride, depth_stride)
    return body.inline(b, [b.op("conv", x, w, padding=padding, **plain), *extras])


def _winograd_cost(inputs: Sequence[TensorType | None], outputs: Sequence[TensorType], attrs: Any) -> Cost:
    """What the transformed products take, not the direct sum: so that no peak seems to be passed."""
    w, y, tile, stride = inputs[1], outputs[0], attrs["tile"], attrs["stride"]
    assert w is not None
    products = dims.product(winograd_positions(d, tile, stride) for d in y.shape[-2:])
    depth = dims.product([*y.shape[2:-2], *w.shape[2:-2]])
    moved = _conv_cost(inputs, outputs, attrs).bytes
    return Cost(y.shape[0] * products * depth * 2 * w.shape[0] * w.shape[1], moved)


def _winograd_samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases: list[tuple[Any, ...]] = [  # with a depth: the window's, and its stride
        ((1, 8, 9, 8), 16, _pairs(1, 1), 4, 1, "tiles that end outside of the image"),
        ((2, 5, 7, 6), 3, _pairs(1, 1), 2, 1, "channels that are no vectors, two images"),
        ((1, 70, 12, 13), 20, ((0, 2), (1, 0)), 4, 1, "uneven padding, more channels than are transformed at a time"),
        ((2, 16, 3, 4), 9, _pairs(0, 0), 4, 1, "one tile an image"),
        ((1, 130, 5, 11), 70, _pairs(2, 3), 2, 1, "wide padding"),
        ((1, 1, 1, 1), 1, _pairs(1, 1), 2, 1, "one pixel"),
        ((2, 9, 18, 15), 12, _pairs(1, 1), 2, 2, "stride 2"),
        ((1, 70, 13, 22), 20, ((0, 2), (1, 0)), 4, 2, "stride 2, uneven padding"),
        ((2, 9, 5, 7, 6), 12, _pairs(1, 1, 1), 4, 1, "3-d", 3, 1),
        ((1, 70, 7, 9, 8), 20, ((0, 2), (1, 0), (1, 1)), 2, 1, "3-d, stride 2 along the depth", 3, 2),
        ((1, 6, 9, 9, 8), 10, _pairs(2, 1, 1), 4, 2, "3-d, stride 2", 5, 2),
        ((1, 8, 3, 9, 8), 10, _pairs(0, 1, 1), 4, 1, "3-d, a window of one slice", 1, 1),
    ]
    for shape, out, padding, tile, stride, note, *deep in cases:
        window, along = ((deep[0], 3, 3), deep[1]) if deep else ((3, 3), 1)
        x, w = random_array(rng, shape, np.float32), random_array(rng, (out, shape[1], *window), np.float32)
        plain = winograd_window(len(window), stride, along)
        acc = _conv(TensorType(DType.f32, shape), TensorType(DType.f32, w.shape), padding=padding, **plain)
        b = Builder()
        y = b.input("acc", acc)
        attrs = {"padding": padding, "tile": tile, "stride": stride, "depth_stride": along, "body": b.graph([y])}
        yield Sample((x, w), attrs, note)


op(
    "conv_winograd",
    "x w extras*",
    {"padding": tuple, "tile": int, "stride": (int, 1), "depth_stride": (int, 1), "few": (int, 0), "body": Graph},
    infer=_winograd,
    category="contraction",
    level="macro",
    decompose=_winograd_decompose,
    cost=_winograd_cost,
    samples=_winograd_samples,
    doc="conv_fused of f32 with a window of 3x3 and stride 1 or 2 in the last two dims, by Winograd's algorithm with "
    "tiles of tile x tile; of three dims, the first one's windows are sums over it. Where sizes of two dims are "
    "dynamic, results of up to ``few`` pixels of all images are summed directly.",
)
