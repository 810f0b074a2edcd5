"""Conv, ConvTranspose, DeformConv and Col2Im."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nn import close, compare, evaluator, floats, ort, run_node

from effc import EffcError

RNG = np.random.default_rng(11)
SIZES = {1: (9,), 2: (7, 10), 3: (5, 6, 4)}


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_conv_auto_pad_of_open_sizes(n: int, auto_pad: str, stride: int) -> None:
    kernel = (3, 2, 3)[:n]
    w = floats(RNG, 4, 3, *kernel)
    images = [floats(RNG, b, 3, *(s + grow for s in SIZES[n])) for b, grow in ((2, 0), (1, 3))]
    compare("Conv", *([x, w, floats(RNG, 4)] for x in images), constant=(1,), auto_pad=auto_pad, strides=[stride] * n)


def test_conv_window_shorter_than_the_stride() -> None:
    """By the letter of the standard SAME would crop here. As in its evaluator nothing is cropped; peers differ."""
    for kernel, size in ((1, 7), (2, 6), (2, 7)):
        sets = [[floats(RNG, b, 2, size + b), floats(RNG, 3, 2, kernel)] for b in (1, 2)]
        compare("Conv", *sets, constant=(1,), auto_pad="SAME_UPPER", strides=[4], peer=evaluator)


@pytest.mark.parametrize("opset", [7, 11, 21])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_conv_groups_and_dilations(opset: int, dtype: Any) -> None:
    sets = [
        [floats(RNG, b, 6, 9 + b, 8, dtype=dtype), floats(RNG, 4, 3, 3, 2, dtype=dtype), floats(RNG, 4, dtype=dtype)]
        for b in (1, 3)
    ]
    peer = ort if dtype == np.float32 else evaluator
    compare("Conv", *sets, opset=opset, group=2, dilations=[2, 3], pads=[1, 0, 2, 3], strides=[1, 2], peer=peer)


def test_weights_that_do_not_fit_kernel_shape() -> None:
    with pytest.raises(EffcError, match="kernel_shape"):
        run_node("Conv", [floats(RNG, 1, 2, 5, 5), floats(RNG, 2, 2, 3, 3)], kernel_shape=[2, 2])


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(n: int, group: int) -> None:
    sizes = tuple(s - 2 for s in SIZES[n])
    sets = [[floats(RNG, b, 4, *(s + b for s in sizes)), floats(RNG, 4, 3, *(3, 2, 3)[:n])] for b in (2, 1)]
    compare(
        "ConvTranspose", *([*s, floats(RNG, 3 * group)] for s in sets), group=group, strides=[2, 3, 2][:n],
        dilations=[1, 2, 2][:n], pads=[1, 0, 1][:n] + [0, 1, 2][:n], output_padding=[1, 0, 1][:n], constant=(1,),
    )  # fmt: skip


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "NOTSET"])
def test_conv_transpose_of_a_wanted_size(auto_pad: str) -> None:
    x, w = floats(RNG, 2, 3, 4, 5), floats(RNG, 3, 2, 3, 4)
    for wanted in ([8, 13], [9, 14]):
        compare("ConvTranspose", [x, w], auto_pad=auto_pad, output_shape=wanted, strides=[2, 3])
    if auto_pad != "NOTSET":
        sets = [[floats(RNG, b, 3, 4 + b, 5), w] for b in (1, 2)]
        compare("ConvTranspose", *sets, auto_pad=auto_pad, strides=[2, 3], constant=(1,))


def deformed(x: Any, w: Any, offset: Any, mask: Any, pads: int, dilation: int, groups: int, offset_groups: int) -> Any:
    """DeformConv by its definition, one result at a time."""
    batch, _, *size = x.shape
    out = offset.shape[2:]
    kernel = w.shape[2:]
    y = np.zeros((batch, w.shape[0], *out))
    per_group, per_offset = w.shape[0] // groups, x.shape[1] // offset_groups
    off = offset.reshape(batch, offset_groups, int(np.prod(kernel)), len(size), *out)
    m = mask.reshape(batch, offset_groups, int(np.prod(kernel)), *out)
    for at in np.ndindex(batch, w.shape[0], *out):
        b, o, *place = at
        for c in range(w.shape[1]):
            channel = o // per_group * w.shape[1] + c
            g = channel // per_offset
            for t, tap in enumerate(np.ndindex(*kernel)):
                p = [i - pads + k * dilation + off[(b, g, t, d, *place)] for d, (i, k) in enumerate(zip(place, tap))]
                total = 0.0
                for corner in np.ndindex(*[2] * len(size)):
                    q = [int(np.floor(v)) + e for v, e in zip(p, corner)]
                    if all(0 <= i < n for i, n in zip(q, size)):
                        total += x[(b, channel, *q)] * np.prod([1 - abs(v - i) for v, i in zip(p, q)])
                y[at] += w[(o, c, *tap)] * total * m[(b, g, t, *place)]
    return y.astype(x.dtype)


@pytest.mark.parametrize("n", [1, 2])
def test_deform_conv(n: int) -> None:
    kernel, size = (3, 2)[:n], (6, 5)[:n]
    w = floats(RNG, 4, 2, *kernel)
    sets = []
    for b in (1, 2):
        out = [s + 2 - (k - 1) * 2 for s, k in zip(size, kernel)]
        taps = int(np.prod(kernel))
        sets.append([floats(RNG, b, 4, *size), w, floats(RNG, b, 2 * taps * n, *out), None,
                     floats(RNG, b, 2 * taps, *out)])  # fmt: skip
    attrs: Any = {"group": 2, "offset_group": 2, "pads": [1] * 2 * n, "dilations": [2] * n}
    for s, (y,) in zip(sets, run_node("DeformConv", *sets, opset=19, **attrs)):
        close(y, deformed(s[0], w, s[2], s[4], 1, 2, 2, 2))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_col2im(n: int) -> None:
    size, block = (5, 6, 4, 3)[:n], (2, 3, 2, 1)[:n]
    attrs = {"pads": [1, 0, 1, 0][:n] + [0, 1, 1, 1][:n], "strides": [2, 1, 1, 2][:n], "dilations": [1, 2, 1, 1][:n]}
    pads = attrs["pads"]
    counts = [
        (s + pads[i] + pads[n + i] - (k - 1) * attrs["dilations"][i] - 1) // attrs["strides"][i] + 1
        for i, (s, k) in enumerate(zip(size, block))
    ]
    columns = int(np.prod(counts))
    sets = [
        [floats(RNG, b, 3 * int(np.prod(block)), columns), np.array(size, np.int64), np.array(block, np.int64)]
        for b in (1, 2)
    ]
    compare("Col2Im", *sets, constant=(1, 2), peer=evaluator, **attrs)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_compiled(op: str) -> None:
    sets = [[floats(RNG, b, 4, 6 + b, 7), floats(RNG, 4, 4, 3, 2), floats(RNG, 4)] for b in (1, 2)]
    compare(op, *sets, constant=(1, 2), auto_pad="SAME_UPPER", strides=[2, 2], target="cpu")
