"""ONNX files that people ship, on target cpu, against onnxruntime without its optimisations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import effc

from .fetch import fetch

RNG = np.random.default_rng


def f32(seed: int, *shape: int) -> Any:
    return RNG(seed).standard_normal(shape).astype(np.float32)


def image(seed: int, n: int, h: int, w: int) -> Any:
    return RNG(seed).random((n, 3, h, w)).astype(np.float32)


def page(seed: int, n: int, h: int, w: int) -> Any:
    """Dark strokes in lines on a light ground, so that a detector of text finds some."""
    rng = RNG(seed)
    x = np.ones((n, 3, h, w), np.float32)
    for i in range(n):
        for y in range(12, h - 12, 24):
            for c in range(8, w - 8, 6):
                if rng.random() < 0.8:
                    x[i, :, y : y + int(rng.integers(6, 13)), c : c + int(rng.integers(2, 5))] = rng.random() * 0.2 - 1
    return x


def vad(seed: int, batch: int, rate: int) -> dict[str, Any]:
    return {
        "input": f32(seed, batch, 576 if rate == 16000 else 288) * 0.3,
        "state": f32(seed + 1, 2, batch, 128) * 0.3,
        "sr": np.asarray(rate, np.int64),
    }


@dataclass(frozen=True)
class File:
    package: str
    path: str
    calls: tuple[dict[str, Any], ...]  # each a set of inputs, of other sizes where the file's dims are open
    tolerance: float = 1e-4


OCR = "rapidocr_onnxruntime/models/"
FILES = {
    "rapidocr_det": File("rapidocr", OCR + "ch_PP-OCRv4_det_infer.onnx", (
        {"x": page(1, 1, 96, 160)}, {"x": page(2, 2, 64, 64)})),
    "rapidocr_rec": File("rapidocr", OCR + "ch_PP-OCRv4_rec_infer.onnx", (
        {"x": image(3, 1, 48, 192)}, {"x": image(4, 3, 48, 100)})),
    "rapidocr_cls": File("rapidocr", OCR + "ch_ppocr_mobile_v2.0_cls_infer.onnx", (
        {"x": image(5, 1, 48, 192)}, {"x": image(6, 4, 48, 192)})),
    "silero_vad": File("silero_vad", "silero_vad/data/silero_vad.onnx", (
        vad(7, 1, 16000), vad(8, 3, 16000), vad(9, 2, 8000))),
    "magika": File("magika", "magika/models/standard_v3_3/model.onnx", tuple(
        {"bytes": RNG(n).integers(0, 257, (n, 2048)).astype(np.int32)} for n in (1, 5))),
    "basic_pitch": File("basic_pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx", tuple(
        {"serving_default_input_2:0": f32(n, n, 43844, 1) * 0.2} for n in (1, 2))),
    "nudenet": File("nudenet", "nudenet/320n.onnx", (
        {"images": image(10, 1, 320, 320)}, {"images": image(11, 2, 160, 224)})),
}  # fmt: skip


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


@pytest.mark.parametrize("name", FILES)
def test_files(name: str) -> None:
    """One artifact for all sizes; outputs within 1e-4 of the largest value."""
    case = FILES[name]
    path = fetch(case.package) / case.path
    made = effc.compile(path)
    judge = session(path)
    for feeds in case.calls:
        want = judge.run(None, feeds)
        got = made.run(feeds)
        assert list(got) == [o.name for o in judge.get_outputs()]
        for g, w in zip(got.values(), want):
            assert (g.dtype, g.shape) == (w.dtype, w.shape)
            if w.dtype.kind == "f":
                assert np.abs(w).max() > 0 and (w.size == 1 or np.ptp(w) > 0), "a constant says nothing"
                assert np.abs(g - w).max() <= case.tolerance * np.abs(w).max()
            else:
                assert np.array_equal(g, w)


def test_static_int8() -> None:
    """smart-turn, a Whisper encoder with QDQ: within a step of the last scale, and the same decision on 100 inputs."""
    path = fetch("smart_turn") / "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"
    made, judge = effc.compile(path), session(path)
    rng = RNG(12)
    same = 0
    worst = 0.0
    for k in range(100):
        x = (rng.standard_normal((1 + (k % 2), 80, 800)) * rng.uniform(0.2, 1.5) + rng.uniform(-1, 1)).astype(
            np.float32
        )
        want, got = judge.run(None, {"input_features": x})[0], made(x)[0]
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        worst = max(worst, float(np.abs(got - want).max()))
        same += int(np.array_equal(got > 0.5, want > 0.5))
    assert same == 100
    assert worst <= STEP


STEP = 1 / 255  # the result is a probability; the scale of the last quantized value is below this


def test_state_of_voice_detection_is_carried() -> None:
    """Ten chunks in a row, each with the state that the last one gave."""
    path = fetch("silero_vad") / "silero_vad/data/silero_vad.onnx"
    made, judge = effc.compile(path), session(path)
    a = b = np.zeros((2, 1, 128), np.float32)
    for k in range(10):
        x, sr = f32(k, 1, 576) * 0.2, np.asarray(16000, np.int64)
        want, a = judge.run(None, {"input": x, "state": a, "sr": sr})
        got, b = made(x, b, sr)
        np.testing.assert_allclose(got, want, atol=1e-4)
        np.testing.assert_allclose(b, a, atol=1e-4)
