"""Calls and records made up for tests of the cost model."""

from __future__ import annotations

import numpy as np

from effc.backends.cpu.packing import conv as packing
from effc.cost.calls import Call, Tensor, dense_tensor
from effc.cost.machine import Machine
from effc.cost.records import Record
from effc.cost.roofline import Context, floor

MACHINE = Machine("a cpu", 2, 32 << 10, 512 << 10, 32 << 20, 32, ((1, 100.0), (2, 180.0)), ((1, 10.0), (2, 16.0)))


def conv_call(ci: int, co: int, size: int, kernel: int, blocks: list[int], batch: int = 1) -> Call:
    pad = kernel // 2
    attrs = [1, 0, 0, 1, co, 1, kernel, kernel, 1, 1, 1, 0, pad, pad, 1, 1, 1, 1, size, size, *blocks, 0]
    x = Tensor("f32", (batch, ci, size, size), (ci * size * size, 1, ci * size, ci))
    w = dense_tensor("u8", (64 + 4 * ci * kernel * kernel * -(-co // 8) * 8,))
    out = dense_tensor("f32", (batch, 1, size * size, co))
    return Call("effc_conv_f32", (x, w), (out,), tuple(attrs), 2, flops=2 * batch * size * size * ci * co * kernel**2)


def conv_ways(ci: int, co: int, size: int, kernel: int) -> list[Call]:
    shape = packing.Shape(co, ci, 1, kernel * kernel, 4, 32, True, True)
    return [conv_call(ci, co, size, kernel, b.attrs) for b in shape.candidates()]


def map_call(rows: int, cols: int, body: str = "add:1") -> Call:
    t = dense_tensor("f32", (rows, cols))
    return Call("map_0123456789abcdef", (t, t), (t,), (), 2, body=body, flops=rows * cols)


def made_up(groups: int = 60, seed: int = 0) -> list[Record]:
    """Records whose times follow a rule: a convolution is twice as slow with narrow panels, a loop three times its
    floor."""
    rng = np.random.default_rng(seed)
    out = []
    for g in range(groups):
        ci, co, size = (int(x) for x in rng.choice([16, 32, 64, 96, 128], 3))
        kernel = int(rng.choice([1, 3]))
        ways = conv_ways(ci, co, min(size, 64), kernel)
        for i in [0, *rng.choice(np.arange(1, len(ways)), 6, replace=False)]:
            threads = int(rng.integers(1, 3))
            slow = {1: 4.0, 2: 2.0, 3: 1.6, 4: 2.2}[ways[i].attrs[20]]
            between = int(rng.choice([1 << 16, 1 << 20, 1 << 24]))
            seconds = slow * floor(ways[i], Context(MACHINE, 32, threads, between))
            out.append(
                Record(ways[i], "conv", threads, between, seconds, 0.01, 1e-4, 0.0, f"c{g}", int(i), "space",
                       "cpu:x86-64-v3", MACHINE)
            )  # fmt: skip
        c = map_call(int(rng.integers(1, 2000)), 64)
        seconds = 3 * floor(c, Context(MACHINE, 32, 1, c.bytes))
        out.append(
            Record(c, "map", 1, c.bytes, seconds, 0.01, 1e-4, 0.0, f"m{g}", 0, "space", "cpu:x86-64-v3", MACHINE)
        )
    return out
