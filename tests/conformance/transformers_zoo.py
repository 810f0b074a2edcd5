"""Architectures of ``transformers`` with tiny random configs through effc: the figures of docs/transformers.md.

    python -m tests.conformance.transformers_zoo --limit 150 --json build/zoo.json --page docs/transformers.md
    python -m tests.conformance.transformers_zoo --dynamic --limit 43 --json build/zoo_dynamic.json \\
        --page docs/transformers.md

One architecture per modeling file, in alphabetical order. Config fields are shrunk by name; weights are drawn again
so that the output depends on the input, which is verified by changing the input. What eager and ``torch.export`` can
do is the denominator. With ``--dynamic`` batch and sequence length are dynamic, and the one artifact is checked at
several sizes, batch 1 among them.

Statuses are those of ``effc.conformance.suite.Result``; ``skip`` is an architecture that could not be
built or run in eager this way.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from effc.conformance.command import main
from effc.conformance.compare import difference
from effc.conformance.report import Run, cell
from effc.conformance.suite import Judge, Result, Suite

TOLERANCE = 1e-4
SIZES = [(2, 7), (1, 11), (3, 4)]  # (batch, length): of the example, and of further calls where dims are dynamic
EXPORT_SECONDS = 100  # once torch.export has taken this long, it is not asked again in another way
DYNAMIC_SIZES = "One artifact for each, checked at (batch, length) " + ", ".join(map(str, SIZES)) + "."
VOCAB = 128
IMAGE = 32
PREFERENCE = (
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
)


# Which architectures -------------------------------------------------------------------------------------------------


def modeling_files() -> list[tuple[str, str]]:
    """(module name, source path) of every PyTorch modeling file, alphabetical."""
    import transformers

    root = os.path.join(os.path.dirname(transformers.__file__), "models")
    out = []
    for folder in sorted(os.listdir(root)):
        where = os.path.join(root, folder)
        for file in sorted(os.listdir(where)) if os.path.isdir(where) else []:
            if re.fullmatch(r"modeling_(?!flax|tf_)\w+\.py", file):
                out.append((f"transformers.models.{folder}.{file[:-3]}", os.path.join(where, file)))
    return [(m, p) for m, p in out if ".auto." not in m]


def architecture(path: str) -> str | None:
    """The class of a modeling file to try: the base model if the file has one."""
    from transformers.models.auto import modeling_auto as auto

    with open(path) as f:
        names = re.findall(r"^class (\w+)\(", f.read(), re.M)
    for mapping in [*PREFERENCE, *(n for n in dir(auto) if n.endswith("MAPPING_NAMES"))]:
        known: set[str] = set()
        for v in getattr(auto, mapping).values():
            known |= {v} if isinstance(v, str) else set(v)
        for n in names:
            if n in known:
                return n
    return next((n for n in names if n.endswith("Model") and "PreTrained" not in n), None)


# Shrinking a config --------------------------------------------------------------------------------------------------

RULES: list[tuple[str, Any]] = [
    (r".*(num_key_value_heads|num_kv_heads|n_kv_heads|multi_query_group_num)", 2),
    (r".*(attention_heads|num_heads|n_heads?|num_attn_heads|n_query_heads|num_head)", 4),
    (r".*(linear_num_value_heads|linear_num_key_heads|mamba_n_heads|mamba_num_heads)", 4),
    (
        r"num_hidden_layers|num_layers|n_layers?|.*(encoder|decoder)_layers|.*_num_hidden_layers|num_.*_layers|n_.*layers?",
        2,
    ),
    (r"num_hidden_groups|num_blocks|num_stages_.*", 1),
    (
        r".*(intermediate_size|ffn_dim|d_ff|n_inner|dim_feedforward|ff_dim|feed_forward.*size|inner_dim|mlp_dim|feedforward_size|moe_.*size)",
        48,
    ),
    (
        r"head_dim|d_kv|attention_head_dim|.*_head_dim|head_size|attention_key_size|kv_channels|d_head|linear_.*_head_dim",
        8,
    ),
    (r"(q|kv|o)_lora_rank|.*lora_rank.*", 16),
    (
        r".*(hidden_size|d_model|n_embd|embed_dim|hidden_dim|embedding_size|embedding_dim|projection_dim|d_embed|encoder_dim|hidden_channels|width|model_dim)"
        r"|dim|channels|classifier_proj_size|out_hidden_size|fpn_feature_size|mask_feature_size|decoder_hidden_size",
        32,
    ),
    (r"vocab_size|.*_vocab_size|vocab_size_.*|num_embeddings|codebook_size", VOCAB),
    (r".*(num_experts|n_routed_experts|num_local_experts|moe_num_experts)", 4),
    (r".*(num_experts_per_tok|experts_per_token|moe_topk|moe_k|num_selected_experts|moe_top_k|top_k_experts)", 2),
    (r"(n_group|topk_group|n_groups?_experts)", 1),
    (r"image_size|img_size|input_size", IMAGE),
    (r".*(mamba_expand|expand)", 2),
    (r".*(state_size|mamba_d_state|ssm_state_size)", 8),
    (r"num_mel_bins|input_feat_per_channel|feature_size", 16),
    (r"num_queries|num_object_queries", 10),
    (r"n_mels|num_mels", 16),
]
LISTS: list[tuple[str, Callable[[int], list[Any]]]] = [
    (r"depths|layers|encoder_depths|depth|num_blocks|stage_depths", lambda n: [1] * n),
    (
        r"hidden_sizes|embed_dims|encoder_hidden_sizes|dims|embedding_sizes|encoder_embed_dims|neck_hidden_sizes|hidden_channels|stage_.*channels",
        lambda n: [16 * 2**i for i in range(n)],
    ),
    (r"conv_dim|tdnn_dim", lambda n: [32] * n),
    (r"num_attention_heads|num_heads|encoder_num_heads", lambda n: [(1, 2, 4, 4)[min(i, 3)] for i in range(n)]),
]


def shrunk(config: Any, depth: int = 0) -> dict[str, Any]:
    """Constructor arguments that make a config of this kind tiny; sub-configs as dicts of theirs."""
    from transformers import PretrainedConfig

    out: dict[str, Any] = {}
    token = 3
    for key, value in list(vars(config).items()):
        if key.startswith("_"):
            continue
        if isinstance(value, PretrainedConfig):
            if depth < 3:
                out[key] = {**shrunk(value, depth + 1), "model_type": value.model_type}
            continue
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            if key.endswith(("_token_id", "_token_index", "_idx")) and value >= VOCAB:
                out[key] = token
                token += 1
                continue
            if re.search(r"max_.*position|n_positions|n_ctx|max_seq", key) and value > 256:
                out[key] = 256
                continue
            for pattern, new in RULES:
                if re.fullmatch(pattern, key) and value > new:
                    out[key] = new
                    break
            else:
                if key == "patch_size" and value >= 8:
                    out[key] = 8
        elif (
            isinstance(value, (list, tuple))
            and value
            and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        ):
            if key in ("image_size", "patch_size"):
                out[key] = type(value)([IMAGE if key == "image_size" else 8] * len(value))
                continue
            for pattern, make in LISTS:
                if re.fullmatch(pattern, key):
                    out[key] = type(value)(make(len(value)))
                    break
    heads, kv = out.get("num_attention_heads"), getattr(config, "num_key_value_heads", None)
    if heads and kv is not None and kv == getattr(config, "num_attention_heads", None):
        out["num_key_value_heads"] = heads
    if "head_dim" in out and getattr(config, "rope_scaling", None):
        out.setdefault("rope_scaling", None)
    return out


def tiny(cls: Any) -> Any:
    """A tiny model of this class; the first way of shrinking that works."""
    import torch

    config_class = cls.config_class
    base = config_class()
    changes = shrunk(base)
    reasons = []
    for drop in ((), ("head_dim", "rope_scaling"), ("num_key_value_heads",), None):
        if drop is None:
            args: dict[str, Any] = {
                k: v for k, v in changes.items() if re.fullmatch(r".*(layers|n_layer|vocab_size)", k)
            }
        else:
            args = {k: v for k, v in changes.items() if k not in drop}
        try:
            config = config_class(**args)
            for c in [config, *(v for v in vars(config).values() if hasattr(v, "to_dict"))]:
                c.use_cache = False
            with torch.device("meta"):
                count = sum(p.numel() for p in cls(config).parameters())
            if count > 60_000_000:
                reasons.append(f"{count / 1e6:.0f}M parameters after shrinking")
                continue
            torch.manual_seed(0)
            return cls(config).eval()
        except Exception as e:
            reasons.append(f"{type(e).__name__}: {str(e)[:120]}")
    raise ValueError(reasons[0])


def redraw(model: Any) -> None:
    """Weights with unit gain, so that a signal goes through."""
    import torch

    g = torch.Generator().manual_seed(7)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            noise = torch.randn(p.shape, generator=g)
            if id(p) in tables:
                p.copy_(noise)
            elif p.dim() >= 2:
                p.copy_(noise / max(p[0].numel(), 1) ** 0.5)
            elif "norm" in name.lower() and name.endswith("weight"):
                p.copy_(1 + 0.1 * noise)
            elif not re.search(r"A_log|dt_bias|\.D$|decay|scale|gamma|logit", name):
                p.copy_(0.1 * noise)


# Inputs --------------------------------------------------------------------------------------------------------------


def _field(config: Any, *names: str, default: Any = None) -> Any:
    for c in [config, *(v for v in vars(config).values() if hasattr(v, "to_dict"))]:
        for n in names:
            v = getattr(c, n, None)
            if v is not None:
                return v
    return default


def make_inputs(model: Any, batch: int, length: int, seed: int) -> dict[str, Any]:
    """Keyword arguments for forward, by its parameter names."""
    import inspect

    import torch

    g = torch.Generator().manual_seed(seed)
    config = model.config
    names = list(inspect.signature(model.forward).parameters)
    vocab = min(int(_field(config, "vocab_size", default=VOCAB) or VOCAB), VOCAB)
    out: dict[str, Any] = {}

    def ids(n: int) -> Any:
        return torch.randint(20, vocab, (batch, n), generator=g)

    if ("input_ids" in names and model.main_input_name == "input_ids") or (
        "input_ids" in names and "pixel_values" not in names
    ):
        out["input_ids"] = ids(length)
    elif "input_ids" in names:
        out["input_ids"] = ids(length)
    if "attention_mask" in names and "input_ids" in out:
        mask = torch.ones(batch, length, dtype=torch.int64)
        if batch > 1 and length > 3:
            mask[1, -2:] = 0
        out["attention_mask"] = mask
    if "bbox" in names:
        corner = torch.randint(0, 50, (batch, length, 2), generator=g)
        out["bbox"] = torch.cat([corner, corner + torch.randint(1, 50, (batch, length, 2), generator=g)], -1)
    if "pixel_values" in names:
        size = _field(config, "image_size", default=IMAGE)
        h, w = size[:2] if isinstance(size, (list, tuple)) else (size, size)
        c = int(_field(config, "num_channels", "in_channels", "in_chans", default=3))
        frames = (
            _field(config, "num_frames")
            if "Video" in type(model).__name__ or "imesformer" in type(model).__name__
            else None
        )
        shape = (batch, frames, c, h, w) if frames else (batch, c, h, w)
        out["pixel_values"] = torch.randn(shape, generator=g)
    if "input_values" in names:
        bins = _field(config, "num_mel_bins")
        shape = (
            (batch, _field(config, "max_length", default=64), bins)
            if bins and "AST" in type(model).__name__
            else (batch, 2000 + length)
        )
        out["input_values"] = torch.randn(shape, generator=g)
    if "input_features" in names:
        bins = int(_field(config, "num_mel_bins", "input_feat_per_channel", "feature_size", default=16))
        source = _field(config, "max_source_positions")
        whisper = source is not None and "2Text" not in type(model).__name__
        out["input_features"] = torch.randn((batch, bins, 2 * source) if whisper else (batch, 40, bins), generator=g)
    if "decoder_input_ids" in names:
        out["decoder_input_ids"] = ids(max(length - 2, 1))
    return out


LONG = ("input_ids", "attention_mask", "bbox", "decoder_input_ids")  # inputs whose dim 1 is the sequence


def dynamic_shapes(inputs: dict[str, Any], lengths: bool) -> dict[str, Any]:
    import torch

    d = torch.export.Dim.DYNAMIC
    return {k: {0: d, **({1: d} if lengths and k in LONG else {})} for k in inputs}


# One architecture ----------------------------------------------------------------------------------------------------


def _outputs(out: Any) -> list[Any]:
    import torch
    import torch.utils._pytree as pytree

    from effc.frontend.torch.dtypes import to_numpy

    leaves = pytree.tree_leaves(dict(out) if isinstance(out, dict) else out)
    return [
        to_numpy(x) if isinstance(x, torch.Tensor) else x
        for x in leaves
        if isinstance(x, (torch.Tensor, bool, int, float))
    ]


def _difference(got: list[Any], want: list[Any]) -> str:
    import numpy as np

    if len(got) != len(want):
        return f"{len(got)} outputs, expected {len(want)}"
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        floating = isinstance(b, np.ndarray) and b.dtype == np.float32
        why = (
            difference(a, b, TOLERANCE if floating else None)
            if isinstance(b, np.ndarray)
            else ""
            if a == b
            else f"{a} for {b}"
        )
        if why:
            return f"output {k}: {why}"
    return ""


def _depends(model: Any, inputs: dict[str, Any], other: dict[str, Any], want: list[Any]) -> bool:
    import numpy as np

    moved = _outputs(model(**{**inputs, **{k: v for k, v in other.items() if k != "attention_mask"}}))
    for a, b in zip(want, moved, strict=False):
        if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.shape == b.shape and a.size:
            if np.abs(a - b).max() > 1e-3 * max(float(np.abs(a).max()), 1e-30):
                return True
    return False


def run_architecture(module: str, name: str, target: str, dynamic: bool) -> Result:
    """What becomes of one architecture; the reason of a right one says which of its dims are dynamic."""
    import torch

    import effc
    from effc.frontend.torch.export import tracing
    from effc.runtime.errors import EffcError

    sizes = SIZES if dynamic else SIZES[:1]
    try:
        cls = getattr(importlib.import_module(module), name)
        model = tiny(cls)
        redraw(model)
        torch.set_grad_enabled(False)
        cases = [make_inputs(model, b, n, 11 + i) for i, (b, n) in enumerate(sizes)]
        inputs = cases[0]
        if not inputs:
            return Result("skip", "no known inputs")
        wants = [_outputs(model(**c)) for c in cases]
        if not _depends(model, inputs, make_inputs(model, *sizes[0], 99), wants[0]):
            return Result("skip", "the output does not depend on the input")
    except Exception as e:
        return Result("skip", f"{type(e).__name__}: {' '.join(str(e).split())[:200]}")
    t = time.perf_counter()
    program, reason, lengths = None, "", True
    # Conditions on sizes that hold at the example's sizes alone may be deferred to run time: as effc.compile has it.
    long = [True, False] if any(k in LONG for k in inputs) else [False]
    for lengths, defer in itertools.product(long, (False, True)) if dynamic else ((False, False),):
        try:
            with tracing():
                shapes = dynamic_shapes(inputs, lengths) if dynamic else None
                candidate = torch.export.export(
                    model,
                    (),
                    dict(inputs),
                    dynamic_shapes=shapes,
                    strict=False,
                    prefer_deferred_runtime_asserts_over_guards=defer,
                )
                if not lengths and dynamic:
                    cases = [make_inputs(model, b, sizes[0][1], 11 + i) for i, (b, _) in enumerate(sizes)]
                    wants = [_outputs(model(**c)) for c in cases]
                said = next(
                    filter(
                        None,
                        (_difference(_outputs(candidate.module()(**c)), w) for c, w in zip(cases, wants, strict=True)),
                    ),
                    "",
                )
            if not said:
                program = candidate
                break
            reason = f"not reproduced: {said}"
        except Exception as e:
            reason = reason or f"{type(e).__name__}: {' '.join(str(e).split())[:240]}"
        if time.perf_counter() - t > EXPORT_SECONDS:
            break
    if program is None:
        return Result("export", reason)
    dims = ("batch, length" if lengths else "batch") if dynamic else ""
    try:
        m = effc.compile(program, (), inputs, target=target)
        for size, c, want in zip(sizes, cases, wants, strict=True):
            why = _difference(_outputs(m(**c)), want)
            if why:
                return Result("wrong", f"at {size}: {why}")
    except EffcError as e:
        return Result("refused" if "internal" not in str(e) else "crash", str(e)[:800])
    except Exception as e:
        return Result("crash", f"{type(e).__name__}: {str(e)[:400]}")
    return Result("right", dims)


PAGE = """# Architectures of transformers

Tiny random configs, one architecture per modeling file in alphabetical order, weights scaled so that the output depends
on the input. `tests/conformance/transformers_zoo.py` writes both sections, each with the command it names.
Architectures that cannot be built or run this way in eager are not counted; those that `torch.export` does not take, or
does not reproduce, are listed below each table.
"""
SECTIONS = {False: "## Fixed sizes", True: "## Dynamic batch and length"}


def section(found: Mapping[str, Any], target: str, dynamic: bool, command: str) -> str:
    """The part of the page that one kind of sweep owns, from its heading on."""
    import transformers

    results = {name: samples["0"] for name, samples in found.items() if samples}
    counts = Counter(r["status"] for r in results.values())
    total = sum(n for s, n in counts.items() if s not in ("skip", "export"))
    lines = [
        SECTIONS[dynamic],
        "",
        "```sh",
        command,
        "```",
        "",
        f"transformers {transformers.__version__}, target `{target}`. Of {total} that eager and `torch.export` can do: "
        f"{counts['right']} right, {counts['refused']} refused, {counts['wrong']} wrong, "
        f"{counts['crash'] + counts['hang']} crashes or hangs." + (f" {DYNAMIC_SIZES}" if dynamic else ""),
        "",
        f"| architecture | status | {'dynamic dims, or ' if dynamic else ''}reason |",
        "|---|---|---|",
    ]
    for key, r in sorted(results.items()):
        if r["status"] not in ("skip", "export"):
            lines.append(f"| {key} | {r['status']} | {cell(r.get('reason', ''))} |")
    gone = sorted(k for k, r in results.items() if r["status"] == "export")
    return "\n".join([*lines, "", f"Not taken or not reproduced by `torch.export`: {', '.join(gone) or 'none'}.", ""])


def page(results: Mapping[str, Any], target: str, dynamic: bool, command: str, kept: str) -> str:
    """The page with the sweep's own section written anew, the other one as it was ``kept``."""
    mine = section(results, target, dynamic, command)
    starts = {d: kept.find(f"\n{h}\n") for d, h in SECTIONS.items()}
    parts = [PAGE]
    for d in SECTIONS:
        if d == dynamic:
            parts.append(mine)
        elif starts[d] >= 0:
            end = next((at for at in sorted(starts.values()) if at > starts[d]), len(kept))
            parts.append(kept[starts[d] + 1 : end].rstrip("\n") + "\n")
    return "\n".join(parts)


@functools.cache
def architectures() -> dict[str, str]:
    """The module of each class to try, in the order of the modeling files."""
    return {name: module for module, path in modeling_files() if (name := architecture(path))}


@dataclass(frozen=True)
class Zoo(Suite):
    """One architecture per modeling file."""

    timeout: ClassVar[float] = 240.0
    restart_every: ClassVar[int] = 40
    needs: ClassVar[Mapping[str, str]] = {"torch": "'effc[torch]'", "transformers": "'effc[models]'"}

    dynamic: bool = field(default=False, metadata={"help": "batch and sequence length are dynamic"})

    def identity(self) -> dict[str, Any]:
        return {"dynamic": self.dynamic}

    def cases(self) -> Sequence[str]:
        return list(architectures())

    def prepare(self, backend: str) -> None:
        import torch

        torch.set_num_threads(1)

    def judgements(self, backend: str, case: str) -> Iterator[Judge]:
        yield lambda: run_architecture(architectures()[case], case, backend, self.dynamic)

    @staticmethod
    def page(runs: Sequence[Run], command: str, kept: str) -> str:
        """docs/transformers.md."""
        (run,) = runs
        return page(run.results, run.backend, run.suite.identity()["dynamic"], command, kept)


if __name__ == "__main__":
    sys.exit(main("tests.conformance.transformers_zoo:Zoo"))
