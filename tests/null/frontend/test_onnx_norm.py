"""Normalizations and Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nn import BF16, close, compare, evaluator, floats, run_node

from effc import EffcError

RNG = np.random.default_rng(13)
F16, F32, F64 = np.float16, np.float32, np.float64


def positive(*shape: int, dtype: Any = F32) -> Any:
    return RNG.uniform(0.2, 2, shape).astype(dtype)


def batch_norm(c: int, *sizes: int, dtype: Any = F32, stats: Any = None) -> list[list[Any]]:
    stats = dtype if stats is None else stats
    shared = [floats(RNG, c, dtype=dtype), floats(RNG, c, dtype=dtype), floats(RNG, c, dtype=stats),
              positive(c, dtype=stats)]  # fmt: skip
    return [[floats(RNG, b, c, *(s + b for s in sizes), dtype=dtype), *shared] for b in (3, 1)]


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("sizes", [(), (5,), (4, 3), (2, 3, 2)])
def test_batch_inference(opset: int, sizes: tuple[int, ...]) -> None:
    compare("BatchNormalization", *batch_norm(3, *sizes), opset=opset, constant=(1, 2, 3, 4), epsilon=1e-3)


def test_batch_with_wider_statistics() -> None:
    sets = batch_norm(3, 4, dtype=F16, stats=F32)
    for s, (y,) in zip(sets, run_node("BatchNormalization", *sets, opset=15)):
        x, scale, bias, mean, var = (v.astype(F64)[None, :, None] if v.ndim == 1 else v.astype(F64) for v in s)
        close(y, ((x - mean) / np.sqrt(var + 1e-5) * scale + bias).astype(F16), 1e-3)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_batch_training(dtype: Any) -> None:
    sets = batch_norm(3, 4, 3, dtype=dtype)
    compare("BatchNormalization", *sets, opset=15, results=("y", "mean", "var"), training_mode=1, momentum=0.7,
            peer=evaluator)  # fmt: skip


def test_batch_training_before_14() -> None:
    sets = batch_norm(3, 4)
    found = run_node("BatchNormalization", *sets, opset=9, results=("y", "m", "v", "sm", "sv"), momentum=0.7)
    for (x, scale, bias, mean, var), (y, m, v, sm, sv) in zip(sets, found):
        mu, s = x.mean((0, 2)), x.var((0, 2))
        z = (x - mu[:, None]) / np.sqrt(s[:, None] + 1e-5) * scale[:, None] + bias[:, None]
        for a, b in ((y, z), (m, mean * 0.7 + mu * 0.3), (v, var * 0.7 + s * 0.3), (sm, mu), (sv, s)):
            close(a, b.astype(F32))


def test_batch_per_element() -> None:
    per = [floats(RNG, 3, 4) for _ in range(3)] + [positive(3, 4)]
    sets = [[floats(RNG, b, 3, 4), *per] for b in (2, 1)]
    for s, (y,) in zip(sets, run_node("BatchNormalization", *sets, opset=7, spatial=0)):
        close(y, (s[0] - s[3]) / np.sqrt(s[4] + 1e-5) * s[1] + s[2])


def test_batch_statistics_need_training_mode() -> None:
    with pytest.raises(EffcError, match="training_mode"):
        run_node("BatchNormalization", batch_norm(3, 4)[0], opset=15, results=("y", "m", "v"))


@pytest.mark.parametrize("sizes", [(7,), (5, 4)])
def test_instance(sizes: tuple[int, ...]) -> None:
    sets = [[floats(RNG, b, 3, *(s + b for s in sizes)), floats(RNG, 3), floats(RNG, 3)] for b in (2, 1)]
    compare("InstanceNormalization", *sets, epsilon=1e-3)


@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize("axis", [-1, 1, -2])
def test_layer(dtype: Any, axis: int) -> None:
    tail = (4, 5) if axis != -1 else (5,)
    sets = [[floats(RNG, b, 4, 5, dtype=dtype), floats(RNG, *tail, dtype=dtype), floats(RNG, *tail, dtype=dtype)]
            for b in (3, 1)]  # fmt: skip
    compare("LayerNormalization", *sets, results=("y", "mean", "rstd") if dtype == F32 else ("y",), opset=17, axis=axis)
    for found in run_node("LayerNormalization", *sets, results=("y", "mean", "rstd"), opset=17, axis=axis):
        assert [v.dtype for v in found] == [dtype, F32, F32]


def test_layer_of_doubles_is_not_computed_in_floats() -> None:
    x = floats(RNG, 2, 3, 6, dtype=F64)
    ((y,),) = run_node("LayerNormalization", [x, np.ones(6)], opset=17)
    close(y, (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5))


@pytest.mark.parametrize("dtype", [F32, F16])
def test_rms(dtype: Any) -> None:
    sets = [[floats(RNG, b, 4, 5, dtype=dtype), floats(RNG, 4, 5, dtype=dtype)] for b in (3, 1)]
    compare("RMSNormalization", *sets, opset=23, axis=-2, epsilon=1e-4, peer=evaluator)


def test_group_forms() -> None:
    """One scale for a group becomes one for a channel in operator set 21."""
    x = [floats(RNG, b, 6, 4 + b, 3) for b in (2, 1)]
    scale, bias = floats(RNG, 3), floats(RNG, 3)
    wide = [np.repeat(scale, 2), np.repeat(bias, 2)]
    first = run_node("GroupNormalization", *([v, scale, bias] for v in x), opset=18, num_groups=3)
    second = run_node("GroupNormalization", *([v, *wide] for v in x), opset=21, num_groups=3)
    for v, (a,), (b,) in zip(x, first, second):
        g = v.reshape(v.shape[0], 3, -1).astype(F64)
        z = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + 1e-5)
        want = z.reshape(v.shape) * wide[0][:, None, None] + wide[1][:, None, None]
        close(a, want.astype(F32))
        close(b, want.astype(F32))


@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_local_response(size: int) -> None:
    sets = [[floats(RNG, b, 6, 3 + b, 4)] for b in (2, 1)]
    attrs = {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5}
    if size % 2:
        compare("LRN", *sets, **attrs)
    for (x,), (y,) in zip(sets, run_node("LRN", *sets, **attrs)):
        squares = np.stack([
            (x[:, max(c - (size - 1) // 2, 0) : c + size // 2 + 1].astype(F64) ** 2).sum(1) for c in range(6)
        ], 1)  # fmt: skip
        close(y, (x / (1.5 + 0.3 / size * squares) ** 0.6).astype(F32))


@pytest.mark.parametrize("opset", [7, 10, 13])
def test_dropout_of_inference(opset: int) -> None:
    sets = [[floats(RNG, b, 4)] for b in (2, 1)]
    for (x,), (y, mask) in zip(sets, run_node("Dropout", *sets, opset=opset, results=("y", "mask"))):
        np.testing.assert_array_equal(y, x)
        assert mask.dtype == (F32 if opset == 7 else np.bool_) and mask.all()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_dropout_of_training(known: bool, dtype: Any) -> None:
    """What is kept, how much of it, and that the flag may come with the data."""
    x = np.ones((100, 80), dtype)
    flags = [[x, np.float32(0.25), np.bool_(t)] for t in ((True,) if known else (True, False))]
    found = run_node("Dropout", *flags, opset=13, constant=(1, 2) if known else (), results=("y", "mask"))
    y, mask = found[0]
    assert y.dtype == x.dtype and abs(mask.mean() - 0.75) < 0.03
    np.testing.assert_array_equal(y, np.where(mask, F32(1 / 0.75), 0).astype(dtype))
    if not known:
        np.testing.assert_array_equal(found[1][0], x)
        assert found[1][1].all()


def test_dropout_of_the_first_sets() -> None:
    """They drop unless is_test is given."""
    x = np.ones((100, 80), F32)
    y, mask = run_node("Dropout", [x], opset=6, results=("y", "mask"), ratio=0.25)[0]
    assert mask.dtype == F32 and abs(mask.mean() - 0.75) < 0.03
    np.testing.assert_array_equal(y, mask * F32(1 / 0.75))
    np.testing.assert_array_equal(run_node("Dropout", [x], opset=6, is_test=1)[0][0], x)


def test_dropout_of_nothing() -> None:
    x = floats(RNG, 3, 4)
    y, mask = run_node("Dropout", [x, np.float32(0), np.bool_(True)], opset=13, results=("y", "mask"))[0]
    np.testing.assert_array_equal(y, x)
    assert mask.all()


def test_compiled() -> None:
    compare("BatchNormalization", *batch_norm(3, 4, 3), constant=(1, 2, 3, 4), opset=15, target="cpu")
    sets = [[floats(RNG, b, 4, 5), floats(RNG, 5), floats(RNG, 5)] for b in (3, 1)]
    compare("LayerNormalization", *sets, results=("y", "mean", "rstd"), opset=17, target="cpu")
    compare("LRN", *([floats(RNG, b, 6, 3, 4)] for b in (2, 1)), size=3, target="cpu")
