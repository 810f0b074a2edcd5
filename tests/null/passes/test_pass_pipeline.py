"""The whole pipeline on blocks of real architectures: how many kernels are left, and that any pass can be left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pass_helpers import same_values

from effc.ir.dtypes import DType
from effc.ir.graph import Builder, Graph, Value
from effc.ir.types import TensorType
from effc.passes.manager import PassReport, Pipeline
from effc.passes.pipeline import Options, default

F32 = DType.f32
ALL = Options(native=lambda op: op != "logaddexp")
FREE = ("constant", "reshape", "permute", "slice", "flip", "broadcast_to", "full")


class Model(Builder):
    """Layers as a frontend writes them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def weight(self, *shape: int, low: float = -0.5) -> Value:
        return self.constant(self.rng.uniform(low, 0.5, shape).astype(np.float32))

    def number(self, x: float) -> Value:
        return self.constant(np.float32(x))

    def linear(self, x: Value, n: int) -> Value:
        k = x.shape[-1]
        assert isinstance(k, int)
        y = self.op("matmul", x, self.op("permute", self.weight(n, k), dims=(1, 0)))
        return self.op("add", y, self.weight(n))

    def mean(self, x: Value) -> Value:
        d = x.rank - 1
        total = self.op("reduce", x, kind="sum", dims=(d,), keepdims=True)
        return self.op("div", total, self.number(float(x.shape[d])))  # type: ignore[arg-type]

    def layer_norm(self, x: Value) -> Value:
        d = self.op("sub", x, self.mean(x))
        var = self.mean(self.op("mul", d, d))
        z = self.op("mul", d, self.op("rsqrt", self.op("add", var, self.number(1e-5))))
        n = x.shape[-1]
        assert isinstance(n, int)
        return self.op("add", self.op("mul", z, self.weight(n)), self.weight(n))

    def gelu(self, x: Value) -> Value:
        e = self.op("erf", self.op("mul", x, self.number(1 / math.sqrt(2))))
        return self.op("mul", self.op("mul", x, self.number(0.5)), self.op("add", e, self.number(1.0)))

    def encoder_layer(self, x: Value, mask: Value, heads: int = 3) -> Value:
        b, n, e = x.shape
        assert isinstance(e, int)

        def split(t: Value) -> Value:
            return self.op("permute", self.op("reshape", t, shape=(b, n, heads, e // heads)), dims=(0, 2, 1, 3))

        q, k, v = (split(self.linear(x, e)) for _ in range(3))
        s = self.op("matmul", q, self.op("permute", k, dims=(0, 1, 3, 2)))
        s = self.op("add", self.op("div", s, self.number(math.sqrt(e // heads))), mask)
        p = self.op("exp", self.op("sub", s, self.op("reduce", s, kind="max", dims=(3,), keepdims=True)))
        p = self.op("div", p, self.op("reduce", p, kind="sum", dims=(3,), keepdims=True))
        y = self.op("reshape", self.op("permute", self.op("matmul", p, v), dims=(0, 2, 1, 3)), shape=(b, n, e))
        x = self.layer_norm(self.op("add", self.linear(y, e), x))
        return self.layer_norm(self.op("add", self.linear(self.gelu(self.linear(x, 2 * e)), e), x))

    def conv(self, x: Value, out: int, size: int, groups: int = 1) -> Value:
        """Convolution and batch norm."""
        c = x.shape[1]
        assert isinstance(c, int)
        pad = ((size // 2, size // 2),) * 2
        attrs: dict[str, Any] = {"stride": (1, 1), "padding": pad, "dilation": (1, 1), "groups": groups}
        y = self.op("conv", x, self.weight(out, c // groups, size, size), **attrs)
        inv = self.op("rsqrt", self.op("add", self.weight(out, low=0.1), self.number(1e-3)))
        per = [
            self.op("reshape", t, shape=(out, 1, 1))
            for t in (self.weight(out), inv, self.weight(out), self.weight(out))
        ]
        return self.op("add", self.op("mul", self.op("mul", self.op("sub", y, per[0]), per[1]), per[2]), per[3])

    def inverted_bottleneck(self, x: Value) -> Value:
        c = x.shape[1]
        assert isinstance(c, int)

        def relu6(t: Value) -> Value:
            return self.op("minimum", self.op("maximum", t, self.number(0.0)), self.number(6.0))

        y = relu6(self.conv(relu6(self.conv(x, 4 * c, 1)), 4 * c, 3, groups=4 * c))
        return self.op("add", x, self.conv(y, c, 1))


def encoder(layers: int = 2) -> Graph:
    b = Model()
    n = b.symbol("n", 1, 8)
    s = b.symbol("s", 1, 64)
    x, keep = b.input("x", TensorType(F32, (n, s, 12))), b.input("mask", TensorType(DType.bool, (n, s)))
    gone = b.op("sub", b.number(1.0), b.op("convert", b.op("reshape", keep, shape=(n, 1, 1, s)), dtype=F32))
    mask = b.op("mul", gone, b.number(float(np.finfo(np.float32).min)))
    for _ in range(layers):
        x = b.encoder_layer(x, mask)
    return b.graph([x])


def kernels(g: Graph) -> list[str]:
    return [n.op for n in g.nodes if n.op not in FREE]


def test_encoder_layer_is_seven_kernels() -> None:
    g = encoder()
    report = PassReport()
    out = Pipeline(default(ALL), verify=True, disabled=("fuse_rows",)).run(g, report)
    for sizes in ({"n": 1, "s": 1}, {"n": 2, "s": 5}):
        same_values(g, out, 0, sizes, factor=10)
    assert sorted(kernels(out)) == sorted(["fused"] + (["matmul_fused"] * 4 + ["attention"] + ["fused"] * 2) * 2)
    assert report.stats["attention.formed"] == 2 and report.stats["merge_matmuls.products"] == 6


def test_encoder_layer_is_attention_and_what_is_between() -> None:
    g = encoder(3)
    report = PassReport()
    out = Pipeline(default(replace(ALL, sizes=False)), verify=True).run(g, report)
    for sizes in ({"n": 1, "s": 1}, {"n": 2, "s": 5}):
        same_values(g, out, 0, sizes, factor=10)
    assert sorted(kernels(out)) == sorted(["fused", "matmul_fused"] + ["attention", "row_chain"] * 3)
    formed = {k: n for k, n in report.stats.items() if k.startswith("fuse_rows")}
    assert formed == {"fuse_rows.formed": 3, "fuse_rows.products": 11, "fuse_rows.regions": 6}
    both = Pipeline(default(ALL), verify=True).run(g, report)  # few rows by the chain's nodes
    for sizes in ({"n": 1, "s": 1}, {"n": 2, "s": 5}):
        same_values(g, both, 0, sizes, factor=10)
    assert report.stats["fuse_rows.split"] == 3 == kernels(both).count("row_chain")
    assert kernels(both).count("matmul_fused") + kernels(both).count("matmul") == 1 + 11


def test_inverted_bottleneck_is_three_kernels() -> None:
    b = Model()
    x = b.input("x", TensorType(F32, (2, 4, 7, 7)))
    g = b.graph([b.inverted_bottleneck(b.inverted_bottleneck(x))])
    out = Pipeline(default(ALL), verify=True).run(g)
    same_values(g, out, factor=10)
    assert kernels(out) == ["conv_fused"] * 6


NAMES = list(dict.fromkeys(p.name for p in default(ALL)))


@pytest.mark.parametrize("name", NAMES)
def test_any_pass_can_be_left_out_or_be_the_last(name: str) -> None:
    g = encoder(1)
    for options in ({"disabled": (name,)}, {"stop_after": name}):
        out = Pipeline(default(ALL), verify=True, **options).run(g)  # type: ignore[arg-type]
        same_values(g, out, factor=10)


def test_the_report_is_plain_data() -> None:
    import json

    report = PassReport()
    Pipeline(default(ALL)).run(encoder(1), report)
    data = json.loads(json.dumps(report.as_json()))
    assert data["stats"]["attention.formed"] == 1 and set(data["seconds"]) == set(NAMES)
    assert any(d["rule"] == "fuse" and d["reason"] == "matmul_fused is not elementwise" for d in data["declined"])
