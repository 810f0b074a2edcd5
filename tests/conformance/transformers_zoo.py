"""Architectures of ``transformers`` with tiny random configs through effc: the figures of docs/transformers.md.

    python tests/conformance/transformers_zoo.py --target cpu --json build/zoo.json \\
        --resume --table docs/transformers.md
    python tests/conformance/transformers_zoo.py --dynamic --limit 40 --json build/zoo_dynamic.json \\
        --resume --table docs/transformers.md

One architecture per modeling file, in alphabetical order. Config fields are shrunk by name; weights are drawn again
so that the output depends on the input, which is verified by changing the input. What eager and ``torch.export`` can
do is the denominator. With ``--dynamic`` batch and sequence length are dynamic, and the one artifact is checked at
several sizes, batch 1 among them.

Statuses are those of torch_opdb.py; ``skip`` is an architecture that could not be built or run in eager this way.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(os.path.dirname(HERE))]

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
    from compare import difference

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


def _model(program: Any, target: str, inputs: dict[str, Any]) -> Callable[[dict[str, Any]], list[Any]]:
    """effc's function of the inputs."""
    if target == "reference":
        from torch_opdb import _leaves

        from effc.frontend.torch import import_model
        from effc.frontend.torch.dtypes import to_numpy
        from effc.ir.interp import run

        g = import_model(program)

        def call(x: dict[str, Any]) -> list[Any]:
            results = run(g.graph, [to_numpy(t).copy() for t in x.values()])
            return list(_leaves(g.out_tree, iter(results)))

        return call
    import effc

    m = effc.compile(program, (), inputs, target=target)
    return lambda x: _outputs(m(**x))


def run_architecture(module: str, name: str, target: str, dynamic: bool, clock: dict[str, float]) -> dict[str, Any]:
    import torch

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
            return {"status": "skip", "reason": "no known inputs"}
        wants = [_outputs(model(**c)) for c in cases]
        if not _depends(model, inputs, make_inputs(model, *sizes[0], 99), wants[0]):
            return {"status": "skip", "reason": "the output does not depend on the input"}
    except Exception as e:
        return {"status": "skip", "reason": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"}
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
    clock["export"] += time.perf_counter() - t
    if program is None:
        return {"status": "export", "reason": reason}
    flags = {"dims": "batch, length" if lengths else "batch"} if dynamic else {}
    t = time.perf_counter()
    try:
        call = _model(program, target, inputs)
        clock["compile"] += time.perf_counter() - t
        t = time.perf_counter()
        for size, c, want in zip(sizes, cases, wants, strict=True):
            why = _difference(call(c), want)
            if why:
                return {"status": "wrong", "reason": f"at {size}: {why}", **flags}
        clock["run"] += time.perf_counter() - t
    except EffcError as e:
        return {"status": "refused" if "internal" not in str(e) else "crash", "reason": str(e)[:800], **flags}
    except Exception as e:
        return {"status": "crash", "reason": f"{type(e).__name__}: {str(e)[:400]}", **flags}
    return {"status": "right", **flags}


def worker(target: str, dynamic: bool) -> None:
    import logging

    import torch
    from worker_pool import serve

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)

    def run(request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        if request["start"] > 0:
            return
        say({"begin": 0})
        clock: dict[str, float] = Counter()  # type: ignore[assignment]
        t = time.perf_counter()
        result = run_architecture(request["module"], request["name"], target, dynamic, clock)
        clock["all"] = time.perf_counter() - t
        say({"case": 0, **result, "seconds": {k: round(v, 2) for k, v in clock.items()}})

    serve(run)


PAGE = """# Architectures of transformers

Tiny random configs, one architecture per modeling file in alphabetical order, weights scaled so that the output depends
on the input. `tests/conformance/transformers_zoo.py` writes both sections, each with the command it names.
Architectures that cannot be built or run this way in eager are not counted; those that `torch.export` does not take, or
does not reproduce, are listed below each table.
"""
SECTIONS = {False: "## Fixed sizes", True: "## Dynamic batch and length"}


def section(results: dict[str, Any], target: str, dynamic: bool, limit: int) -> str:
    """The part of the page that one kind of sweep owns, from its heading on."""
    import transformers

    counts = Counter(r["status"] for r in results.values())
    total = sum(n for s, n in counts.items() if s not in ("skip", "export"))
    file = "build/zoo_dynamic.json" if dynamic else "build/zoo.json"
    command = f"python tests/conformance/transformers_zoo.py --target {target} --limit {limit} --json {file} --resume"
    command += f"{' --dynamic' if dynamic else ''} --table docs/transformers.md"
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
            reason = " ".join(r.get("reason", r.get("dims", "")).split())[:160].replace("|", "\\|")
            lines.append(f"| {key} | {r['status']} | {reason} |")
    gone = sorted(k for k, r in results.items() if r["status"] == "export")
    return "\n".join([*lines, "", f"Not taken or not reproduced by `torch.export`: {', '.join(gone) or 'none'}.", ""])


def write_table(results: dict[str, Any], path: str, target: str, dynamic: bool, limit: int) -> None:
    """Writes the sweep's own section of the page and keeps the other."""
    kept = ""
    if os.path.exists(path):
        with open(path) as f:
            kept = f.read()
    mine = section(results, target, dynamic, limit)
    starts = {d: kept.find(f"\n{h}\n") for d, h in SECTIONS.items()}
    parts = [PAGE]
    for d in SECTIONS:
        if d == dynamic:
            parts.append(mine)
        elif starts[d] >= 0:
            end = next((at for at in sorted(starts.values()) if at > starts[d]), len(kept))
            parts.append(kept[starts[d] + 1 : end].rstrip("\n") + "\n")
    with open(path, "w") as f:
        f.write("\n".join(parts))


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", default="cpu")
    p.add_argument("--only", default="", help="comma-separated class names or modeling modules (their last part)")
    p.add_argument("--dynamic", action="store_true")
    p.add_argument("--limit", type=int, default=150, help="stop after this many architectures that count")
    p.add_argument("--shard", default="1/1")
    p.add_argument("--json", default="")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--retry", default="")
    p.add_argument("--table", default="")
    p.add_argument("--timeout", type=float, default=240)
    p.add_argument("--worker", action="store_true")
    a = p.parse_args(argv)
    if a.worker:
        worker(a.target, a.dynamic)
        return 0
    from worker_pool import sweep

    wanted = [w for w in a.only.split(",") if w]
    results: dict[str, Any] = {}
    retried: set[str] = set()
    if a.resume and a.json and os.path.exists(a.json):
        with open(a.json) as f:
            results = json.load(f)["results"]
        retried = {k for k, v in results.items() if v["status"] in a.retry.split(",")}
    i, n = (int(x) for x in a.shard.split("/"))
    requests = []
    for module, path in itertools.islice(modeling_files(), i - 1, None, n):
        name = architecture(path)
        short = module.rpartition(".")[2].removeprefix("modeling_")
        if name and (not wanted or name in wanted or short in wanted) and (name not in results or name in retried):
            requests.append({"module": module, "name": name})

    def on_case(request: dict[str, Any], said: dict[str, Any]) -> None:
        if request["name"] in retried:
            retried.discard(request["name"])
            del results[request["name"]]
        results.setdefault(request["name"], {k: v for k, v in said.items() if k != "case"})

    def counted() -> int:
        return sum(r["status"] not in ("skip", "export") for r in results.values())

    def save() -> None:
        if a.json:
            os.makedirs(os.path.dirname(os.path.abspath(a.json)), exist_ok=True)
            with open(a.json + ".part", "w") as f:
                json.dump({"target": a.target, "dynamic": a.dynamic, "results": results}, f, indent=1)
            os.replace(a.json + ".part", a.json)

    if counted() >= a.limit:
        requests = [r for r in requests if r["name"] in retried]
    me = [os.path.abspath(__file__), "--target", a.target, *(["--dynamic"] if a.dynamic else [])]
    for request in sweep(me, requests, on_case, a.timeout, restart_every=40):
        r = results.get(request["name"], {"status": "skip", "reason": "no answer"})
        print(
            f"{r['status']:8} {request['name']}:",
            " ".join(r.get("reason", r.get("dims", "")).split())[:260],
            r.get("seconds", ""),
            flush=True,
        )
        save()
        if counted() >= a.limit and not retried:
            break
    counts = Counter(r["status"] for r in results.values())
    print(dict(counts), f"counted {counted()}")
    if a.table:
        write_table(results, a.table, a.target, a.dynamic, a.limit)
    return 0 if not any(counts[b] for b in ("wrong", "crash", "hang")) else 1


if __name__ == "__main__":
    sys.exit(main())
