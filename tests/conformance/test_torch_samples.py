"""A sample of the op_db and transformers sweeps for every run of the tests; the sweeps in full are scripts of their
own.

The operators stand for the families of mappings. The whole list goes through the interpreter; on the CPU target all
samples are entry points of one artifact, so that the compiler is called once.
"""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from effc.conformance import torch_samples  # noqa: E402
from effc.conformance.suite import Result  # noqa: E402

OPERATORS = (
    "add",
    "sub",
    "true_divide",
    "floor_divide",
    "remainder",
    "pow",
    "clamp",
    "where",
    "nan_to_num",
    "sign",
    "logit",
    "atan2",
    "isclose",
    "lerp",
    "sum",
    "mean",
    "var",
    "std_mean",
    "amax",
    "argmin",
    "logsumexp",
    "prod",
    "all",
    "softmax",
    "linalg.vector_norm",
    "cumsum",
    "cummax",
    "view_as_real",
    "slice",
    "narrow",
    "roll",
    "repeat",
    "unfold",
    "diagonal_scatter",
    "select_scatter",
    "as_strided",
    "stack",
    "tensor_split",
    "gather",
    "scatter_add",
    "scatter_reduce.amax",
    "index_put",
    "index_add",
    "index_select",
    "masked_scatter",
    "nonzero",
    "take_along_dim",
    "sort",
    "topk",
    "unique",
    "searchsorted",
    "mm",
    "baddbmm",
    "einsum",
    "nn.functional.linear",
    "nn.functional.conv2d",
    "nn.functional.conv_transpose1d",
    "nn.functional.max_pool2d",
    "nn.functional.adaptive_avg_pool2d",
    "nn.functional.interpolate.bilinear",
    "nn.functional.grid_sample",
    "nn.functional.pad.reflect",
    "nn.functional.layer_norm",
    "nn.functional.group_norm",
    "nn.functional.batch_norm",
    "nn.functional.gelu",
    "nn.functional.hardswish",
    "nn.functional.cross_entropy",
    "nn.functional.scaled_dot_product_attention",
    "nn.functional.embedding",
    "fft.rfft",
    "fft.ifft2",
    "special.i0e",
    "polygamma.polygamma_n_0",
    "cholesky",
    "linalg.solve",
    "linalg.det",
)


def samples(name: str, dtype: torch.dtype, limit: int) -> tuple[object, list[object]]:
    op = torch_samples.operators()[name]
    torch.manual_seed(torch_samples.SEED)
    return op, list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=False), limit))


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_on_the_interpreter(name: str) -> None:
    known = torch_samples.operators()
    assert name in known
    ties = name in ("sort", "topk")  # which of equal elements comes first is not defined
    for dtype in (torch.float32,) if ties else (torch.float32, torch.int64, torch.bfloat16, torch.complex64):
        if dtype not in known[name].supported_dtypes("cpu"):
            continue
        op, cases = samples(name, dtype, 3 if dtype is torch.float32 else 1)
        for sample in cases:
            result = torch_samples.run_case(op, sample, "reference")
            assert result.status in ("right", "skip", "export"), result


def test_operators_on_the_cpu() -> None:
    import effc

    prepared = {}
    for name in OPERATORS:
        op, cases = samples(name, torch.float32, 2)
        for k, sample in enumerate(cases):
            p = torch_samples.prepare(op, sample)
            if isinstance(p, torch_samples.Prepared):
                prepared[f"{name}:{k}"] = p
    assert len(prepared) >= len(OPERATORS)
    m = effc.compile_entries({k: effc.Entry(p.program, p.case.inputs) for k, p in prepared.items()}, target="cpu")
    wrong = {}
    for key, p in prepared.items():
        result = torch_samples.judge(p, lambda inputs, key=key: torch_samples._arrays(m.entry(key)(*inputs)))
        if result.status != "right":
            wrong[key] = result
    assert not wrong


OTHER_DTYPES = (
    "sort",
    "topk",
    "kthvalue",
    "median",
    "mode",
    "sum",
    "cumprod",
    "linalg.eigh",
    "linalg.svd",
    "linalg.qr",
)


def test_other_dtypes_on_the_cpu() -> None:
    """Ties of integers, bools and bfloat16 come in torch's order; so do the phases of complex vectors."""
    import effc

    prepared = {}
    for name in OTHER_DTYPES:
        for dtype in (torch.int64, torch.bool, torch.bfloat16, torch.complex64):
            if dtype not in torch_samples.operators()[name].supported_dtypes("cpu"):
                continue
            op, cases = samples(name, dtype, 4)
            for k, sample in enumerate(cases):
                p = torch_samples.prepare(op, sample)
                if isinstance(p, torch_samples.Prepared):
                    prepared[f"{name}:{k}@{dtype}"] = p
    assert len(prepared) >= 80
    m = effc.compile_entries({k: effc.Entry(p.program, p.case.inputs) for k, p in prepared.items()}, target="cpu")
    wrong = {}
    for key, p in prepared.items():
        assert not p.random, key
        result = torch_samples.judge(p, lambda inputs, key=key: torch_samples._arrays(m.entry(key)(*inputs)))
        if result.status != "right":
            wrong[key] = result
    assert not wrong


def test_only_random_values_go_unread() -> None:
    """An operator with the tag of random ones is compared by value where no seed changes the values."""
    op, cases = samples("nn.functional.dropout", torch.float32, 20)
    seen = set()
    for sample in cases:
        p = torch_samples.prepare(op, sample)
        assert isinstance(p, torch_samples.Prepared)
        draws = sample.kwargs.get("training", True) and 0 < sample.kwargs.get("p", 0.5) < 1
        assert p.random == draws, sample
        result = torch_samples.judge(p, lambda _inputs, p=p: [p.want[0] + 1])
        assert result.status == ("right" if draws else "wrong")
        seen.add(draws)
    assert seen == {False, True}


def test_rounding_noise_is_no_expectation() -> None:
    """The layer norm of one element is 0, which bfloat16 eager misses: 0 is right, and marked; all else is wrong."""
    op, cases = samples("native_layer_norm", torch.bfloat16, 12)
    p = torch_samples.prepare(op, cases[11])
    assert isinstance(p, torch_samples.Prepared)
    y, *stats = p.want
    assert y != 0
    assert torch_samples.judge(p, lambda _inputs: [y, *stats]) == Result("right")
    assert torch_samples.judge(p, lambda _inputs: [y * 0, *stats]).float64
    assert torch_samples.judge(p, lambda _inputs: [-y, *stats]).status == "wrong"
    assert torch_samples.judge(p, lambda _inputs: [y * 0, stats[0] * 2, stats[1]]).status == "wrong"


def test_the_page_says_what_was_run() -> None:
    right, refused = {"status": "right"}, {"status": "refused", "reason": "no such | kernel"}
    results = {
        "add@int64": {"0": right, "1": {"status": "right", "constant": True}},
        "abs@float32": {"0": right, "1": refused},
        "allclose@float32": {"0": {"status": "export", "reason": "data-dependent"}},
        "bernoulli@float32": {"0": {"status": "right", "random": True}},
    }
    text = torch_samples.page(results, "cpu", 20, "effc conformance --suite torch")
    assert "first 20 of each" in text and "    effc conformance --suite torch\n" in text
    assert "| float32 | 3 of " in text
    assert " | 2 | 1 | 1 | 0 | 0 |" in text  # counted, right, refused, wrong, crash or hang
    assert "| abs | refused | 1 of 2 | no such \\| kernel |" in text
    assert "| int64 | 2 | 2 | 0 | 1 |" in text
    assert "Every sample compared by dtype and shape only: bernoulli." in text
    assert "by `torch.export`: allclose." in text
    assert "Not yet run: " in text


def test_a_difference_is_seen() -> None:
    """The judge is no rubber stamp: a wrong value, dtype, shape, NaN and a missing output are each reported."""
    import numpy as np

    from effc.conformance.compare import difference

    x = np.array([1.0, -2.0, np.nan], np.float32)
    assert difference(x, x) == ""
    assert "of the largest value" in difference(np.array([1.0, -2.001, np.nan], np.float32), x)
    assert "NaN" in difference(np.array([1.0, -2.0, 0.0], np.float32), x)
    assert "dtype" in difference(x.astype(np.float64), x)
    assert "shape" in difference(x[:2], x)
    assert "differ" in difference(np.array([1, 2]), np.array([1, 3]))
    op, (sample, *_) = samples("add", torch.float32, 1)
    p = torch_samples.prepare(op, sample)
    assert isinstance(p, torch_samples.Prepared)
    assert torch_samples.judge(p, lambda _inputs: [p.want[0] + 1]).status == "wrong"
    assert torch_samples.judge(p, lambda _inputs: []).status == "wrong"


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "mobilenet_v2", "whisper"])
def test_tiny_transformers_on_the_interpreter(name: str) -> None:
    pytest.importorskip("transformers")
    from . import transformers_zoo as zoo

    module, path = next((m, p) for m, p in zoo.modeling_files() if m.endswith(f".modeling_{name}"))
    with torch.no_grad():
        result = zoo.run_architecture(module, zoo.architecture(path), "reference", False)
    assert result.status == "right", result
