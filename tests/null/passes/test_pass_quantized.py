"""Products of quantized operands become products of bytes, or the report says why not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pass_helpers import check_pass

from effc.passes.quantized import FormQuantized

W = np.random.default_rng(0).integers(-128, 128, (5, 3), np.int8)
WU = np.random.default_rng(1).integers(0, 256, (3, 5), np.uint8)
SCALES = np.array([0.5, 0.25, 2], np.float32)
ARRAYS = {"w": W, "wu": WU, "s": SCALES, "blocks": np.arange(1, 16, dtype=np.float32).reshape(5, 3)}

DEQUANTIZED = """graph main(%x: u8[n, 5]) {
  symbol n in 1..9
  %zero = constant() {data=array(u8[], [3]), dtype=u8} : u8[]
  %scale = constant() {data=array(f32[], [0.125]), dtype=f32} : f32[]
  %a = convert(%x) {dtype=i32} : i32[n, 5]
  %z = convert(%zero) {dtype=i32} : i32[]
  %b = sub(%a, %z) : i32[n, 5]
  %c = convert(%b) {dtype=f32} : f32[n, 5]
  %d = mul(%c, %scale) : f32[n, 5]
  %w = constant() {data=array(i8[5, 3], @w), dtype=i8} : i8[5, 3]
  %s = constant() {data=array(f32[3], @s), dtype=f32} : f32[3]
  %wi = convert(%w) {dtype=i32} : i32[5, 3]
  %wf = convert(%wi) {dtype=f32} : f32[5, 3]
  %wd = mul(%wf, %s) : f32[5, 3]
  %y = matmul(%d, %wd) : f32[n, 3]
  return %y
}"""
FORMED = """graph main(%x: u8[n, 5]) {
  symbol n in 1..9
  %zero = constant() {data=array(u8[], [3]), dtype=u8} : u8[]
  %w = constant() {data=array(i8[5, 3], @w), dtype=i8} : i8[5, 3]
  %wz = constant() {data=array(i8[3], [0, 0, 0]), dtype=i8} : i8[3]
  %acc = qmatmul(%x, %w, %zero, %wz) : i32[n, 3]
  %s = constant() {data=array(f32[3], [0.0625, 0.03125, 0.25]), dtype=f32} : f32[3]
  %f = convert(%acc) {dtype=f32} : f32[n, 3]
  %y = mul(%f, %s) : f32[n, 3]
  return %y
}"""


def ops(graph: Any) -> list[str]:
    return [n.op for n in graph.nodes if n.op != "constant"]


def test_dequantized() -> None:
    out, report = check_pass(FormQuantized(), DEQUANTIZED, arrays=ARRAYS)
    assert report.stats == {"form_quantized.matmul": 1}
    assert ops(out) == ["qmatmul", "convert", "mul"]
    check_pass(FormQuantized(), DEQUANTIZED, FORMED, arrays=ARRAYS)


def test_permuted_weights_and_views_of_data() -> None:
    """Gemm's transposed weights, u8 with a zero point for each filter; data that was flattened."""
    text = """graph main(%x: i8[4, 5, 1]) {
      %scale = constant() {data=array(f32[1], [0.125]), dtype=f32} : f32[1]
      %c = convert(%x) {dtype=f32} : f32[4, 5, 1]
      %d = mul(%c, %scale) : f32[4, 5, 1]
      %flat = reshape(%d) {shape=[4, 5]} : f32[4, 5]
      %w = constant() {data=array(u8[3, 5], @wu), dtype=u8} : u8[3, 5]
      %s = constant() {data=array(f32[3], @s), dtype=f32} : f32[3]
      %st = reshape(%s) {shape=[3, 1]} : f32[3, 1]
      %wz = constant() {data=array(u8[3, 1], [0, 128, 255]), dtype=u8} : u8[3, 1]
      %wi = convert(%w) {dtype=i32} : i32[3, 5]
      %zi = convert(%wz) {dtype=i32} : i32[3, 1]
      %wc = sub(%wi, %zi) : i32[3, 5]
      %wf = convert(%wc) {dtype=f32} : f32[3, 5]
      %wd = mul(%st, %wf) : f32[3, 5]
      %wt = permute(%wd) {dims=[1, 0]} : f32[5, 3]
      %y = matmul(%flat, %wt) : f32[4, 3]
      return %y
    }"""
    out, report = check_pass(FormQuantized(), text, arrays=ARRAYS)
    assert report.stats == {"form_quantized.matmul": 1}
    assert sorted(ops(out)) == ["convert", "mul", "mul", "qmatmul", "reshape", "reshape"]


def test_integer_products_with_computed_zero_points() -> None:
    text = """graph main(%x: u8[2, n, 5], %z: u8[], %s: f32[]) {
      symbol n in 1..9
      %a = convert(%x) {dtype=i32} : i32[2, n, 5]
      %zi = convert(%z) {dtype=i32} : i32[]
      %b = sub(%a, %zi) : i32[2, n, 5]
      %w = constant() {data=array(i8[5, 3], @w), dtype=i8} : i8[5, 3]
      %wi = convert(%w) {dtype=i32} : i32[5, 3]
      %y = matmul(%b, %wi) : i32[2, n, 3]
      %f = convert(%y) {dtype=f32} : f32[2, n, 3]
      %r = mul(%f, %s) : f32[2, n, 3]
      return %r
    }"""
    out, report = check_pass(FormQuantized(), text, arrays=ARRAYS)
    assert report.stats == {"form_quantized.matmul": 1}
    assert ops(out) == ["qmatmul", "convert", "mul"]


CONV = """graph main(%x: u8[2, 4, 6, 7]) {
  %zero = constant() {data=array(u8[], [9]), dtype=u8} : u8[]
  %scale = constant() {data=array(f32[], [0.5]), dtype=f32} : f32[]
  %a = convert(%x) {dtype=i32} : i32[2, 4, 6, 7]
  %z = convert(%zero) {dtype=i32} : i32[]
  %b = sub(%a, %z) : i32[2, 4, 6, 7]
  %c = convert(%b) {dtype=f32} : f32[2, 4, 6, 7]
  %d = mul(%c, %scale) : f32[2, 4, 6, 7]
  %w = constant() {data=array(i8[4, CG, 3, 3], @cw), dtype=i8} : i8[4, CG, 3, 3]
  %s = constant() {data=array(f32[4, 1, 1, 1], [1.0, 0.5, 0.25, 2.0]), dtype=f32} : f32[4, 1, 1, 1]
  %wf = convert(%w) {dtype=f32} : f32[4, CG, 3, 3]
  %wd = mul(%wf, %s) : f32[4, CG, 3, 3]
  %y = conv(%d, %wd) {stride=[2, 1], padding=[[1, 1], [0, 2]], dilation=[1, 1], groups=GROUPS} : f32[2, 4, 3, 7]
  return %y
}"""


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups: int) -> None:
    """Padding stands for the zero point."""
    w = np.random.default_rng(2).integers(-128, 128, (4, 4 // groups, 3, 3), np.int8)
    text = CONV.replace("CG", str(4 // groups)).replace("GROUPS", str(groups))
    out, report = check_pass(FormQuantized(), text, arrays={"cw": w})
    assert report.stats == {"form_quantized.conv": 1}
    assert ops(out) == ["qconv", "convert", "mul"]


def test_depthwise() -> None:
    """Dequantized: left to the float kernel, with a reason. Integer: float sums that are exact."""
    w = np.random.default_rng(3).integers(-128, 128, (4, 1, 3, 3), np.int8)
    text = CONV.replace("CG", "1").replace("GROUPS", "4")
    out, report = check_pass(FormQuantized(), text, arrays={"cw": w})
    assert report.reasons("form_quantized") == {"a depthwise convolution: it has no product of bytes"}
    integer = """graph main(%x: u8[2, 4, 6, 7], %z: u8[]) {
      %a = convert(%x) {dtype=i32} : i32[2, 4, 6, 7]
      %zi = convert(%z) {dtype=i32} : i32[]
      %b = sub(%a, %zi) : i32[2, 4, 6, 7]
      %w = constant() {data=array(i8[4, 1, 3, 3], @cw), dtype=i8} : i8[4, 1, 3, 3]
      %wi = convert(%w) {dtype=i32} : i32[4, 1, 3, 3]
      %y = conv(%b, %wi) {stride=[1, 1], padding=[[1, 1], [1, 1]], dilation=[1, 1], groups=4} : i32[2, 4, 6, 7]
      return %y
    }"""
    out, report = check_pass(FormQuantized(), integer, arrays={"cw": w})
    assert report.stats == {"form_quantized.depthwise_in_floats": 1}
    assert ops(out)[-2:] == ["conv", "convert"]


def test_rows_of_a_table() -> None:
    text = """graph main(%i: i64[n]) {
      symbol n in 1..9
      %w = constant() {data=array(i8[5, 3], @w), dtype=i8} : i8[5, 3]
      %wz = constant() {data=array(i8[], [-7]), dtype=i8} : i8[]
      %s = constant() {data=array(f32[], [0.5]), dtype=f32} : f32[]
      %wi = convert(%w) {dtype=i32} : i32[5, 3]
      %zi = convert(%wz) {dtype=i32} : i32[]
      %wc = sub(%wi, %zi) : i32[5, 3]
      %wf = convert(%wc) {dtype=f32} : f32[5, 3]
      %wd = mul(%wf, %s) : f32[5, 3]
      %five = constant() {data=array(i64[], [5]), dtype=i64} : i64[]
      %j = remainder(%i, %five) : i64[n]
      %y = take(%wd, %j) {dim=0} : f32[n, 3]
      return %y
    }"""
    out, report = check_pass(FormQuantized(), text, arrays=ARRAYS)
    assert report.stats == {"form_quantized.take": 1}
    assert ops(out)[:2] == ["remainder", "take"] and out.nodes[-1].op == "mul"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "%wd = mul(%wf, %s) : f32[5, 3]",
            "%bs = constant() {data=array(f32[5, 3], @blocks), dtype=f32} : f32[5, 3]\n"
            "  %wd = mul(%wf, %bs) : f32[5, 3]",
            "the weights have a scale for each block of the reduction",
        ),
        ("%y = matmul(%d, %wd)", "%y = matmul(%c, %wd)", "only the weights are quantized"),
        ("%y = matmul(%d, %wd)", "%y = matmul(%d, %wf)", "only the data is quantized"),
        (
            "array(f32[], [0.125]), dtype=f32} : f32[]",
            "array(f32[5], [1.0, 2.0, 1.0, 1.0, 1.0]), dtype=f32} : f32[5]",
            "a scale or zero point along the reduction",
        ),
    ],
)
def test_declines(old: str, new: str, reason: str) -> None:
    text = DEQUANTIZED.replace(old, new)
    assert text != DEQUANTIZED
    out, report = check_pass(FormQuantized(), text, arrays=ARRAYS)
    assert report.reasons("form_quantized") == {reason}
    assert "qmatmul" not in ops(out)


def test_two_computed_operands() -> None:
    text = """graph main(%x: u8[4, 5], %w: u8[5, 3]) {
      %s = constant() {data=array(f32[], [0.5]), dtype=f32} : f32[]
      %xf = convert(%x) {dtype=f32} : f32[4, 5]
      %xd = mul(%xf, %s) : f32[4, 5]
      %wf = convert(%w) {dtype=f32} : f32[5, 3]
      %wd = mul(%wf, %s) : f32[5, 3]
      %y = matmul(%xd, %wd) : f32[4, 3]
      return %y
    }"""
    out, report = check_pass(FormQuantized(), text)
    assert report.stats == {"form_quantized.computed": 1}
    assert sorted(ops(out)) == ["convert", "mul", "mul", "qmatmul"]
