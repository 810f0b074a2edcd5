"""What a family of kernels is, what all families see, and the amounts of work that their times are a sum of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np

from ..calls import Call
from ..roofline import Context, floor, operations

Array = np.ndarray[Any, Any]
Extract = Callable[[Call, Context], dict[str, float]]
SLOW = frozenset(
    "exp exp2 expm1 log log2 log10 log1p tanh sin cos tan erf erfc erfinv sigmoid pow softplus gelu silu sinh cosh "
    "asin acos atan atan2 lgamma digamma".split()
)
COLD = 1000.0  # operations: what a call that finds nothing in a cache is counted as, whatever its size
# Work of families whose bytes count: what comes from each level, and a start without what it needs.
LEVELS = "from_l2 from_l3 to_l3 cold cold_far"
FAR = 1.5  # times the last cache: what lies further back has left it, however far
MEDIUM = frozenset("div sqrt rsqrt reciprocal mod remainder floor_divide floordiv".split())


@dataclass(frozen=True)
class Family:
    """``kernels``: prefixes of kernel names. ``extract``: features. ``work``: what the kernel does many of, each a
    product of sizes (features that are logarithms): its time is nearly a sum of them (:func:`amounts`). ``depth``: the
    features in whose measured range a call must lie for the model to be trusted."""

    name: str
    kernels: tuple[str, ...]
    extract: Extract
    work: tuple[tuple[str, ...], ...] = ()
    depth: tuple[str, ...] = ("flops", "bytes", "between")

    @property
    def parts(self) -> int:
        """How many amounts there are."""
        return 4 + len(self.work) + 5

    def features(self, call: Call, cx: Context) -> dict[str, float]:
        """All features by name, in an order that depends on the family alone."""
        return {**common(call, cx), **self.extract(call, cx)}


FAMILIES: dict[str, Family] = {}


def family(name: str, *kernels: str, work: str = "") -> Callable[[Extract], Extract]:
    """Declares a family by its features. ``work``: amounts, as in ``"rows*k rows"``."""

    def register(f: Extract) -> Extract:
        FAMILIES[name] = Family(name, kernels, f, tuple(tuple(t.split("*")) for t in work.split()))
        return f

    return register


def family_of(call: Call) -> str:
    """The family that a call belongs to; ``other`` for a kernel that none has."""
    best = max(
        ((len(p), f.name) for f in FAMILIES.values() for p in f.kernels if call.kernel.startswith(p)),
        default=(0, "other"),
    )
    return best[1]


def amounts(family: Family, names: Sequence[str], x: Array) -> Array:
    """(rows, amounts) of rows of features: of operations and bytes, of bytes that do not come from the second or the
    last cache, of the family's own work, in seconds at the machine's peak and bandwidth; of calls, and of calls that
    wake threads, in nanoseconds. What threads share counts as the busiest has it; the bandwidth is all threads'."""
    at = {n: x[:, i] for i, n in enumerate(names)}
    busiest, peak = np.maximum(1.0, at.get("even", np.ones(len(x)))), 2.0 ** at["speed"]
    near, far = busiest / peak, 2.0 ** at["balance"] / peak
    moved = 2.0 ** at["bytes"]
    work = [
        2.0 ** sum(at[n] for n in names) for names in (*((n,) for n in ("flops", "out", "in0", "in1")), *family.work)
    ]
    return np.stack(
        [
            *(w * near for w in work), moved * near, moved * near * (at["between"] > at["own_cache"]),
            moved * far * (at["l3"] > 1), np.full(len(x), 1e-9), 1e-9 * (at.get("used", at["threads"]) > 1),
        ],
        1,
    )  # fmt: skip


def lg(x: float) -> float:
    """log2, of 0 as of 1."""
    return log2(x) if x > 0 else 0.0


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def ops_of(body: str) -> dict[str, int]:
    """The op counts of a generated body."""
    return {op: int(n) for op, _, n in (item.partition(":") for item in body.split())}


def common(call: Call, cx: Context) -> dict[str, float]:
    """Features that every family has."""
    m, size, ops = cx.machine, call.bytes, ops_of(call.body)
    slow, medium = sum(n for o, n in ops.items() if o in SLOW), sum(n for o, n in ops.items() if o in MEDIUM)
    between = min(max(cx.between, size), FAR * m.l3)
    held, beyond = touched(call, cx), levels(call, cx)
    x = call.ins[0].nbytes if call.ins and call.ins[0] is not None else 0
    moved = size - x if cx.fed and x <= m.l2 else size  # what was just written is still there
    return {
        "floor": lg(floor(call, cx) * 1e9),
        "flops": lg(operations(call)),
        "bytes": lg(size),
        "between": lg(between),
        "intensity": lg(operations(call) / max(1, size)),
        "out": lg(sum(t.nbytes for t in call.outs)),
        "in0": lg(call.ins[0].nbytes) if call.ins and call.ins[0] is not None else 0.0,
        "in1": lg(call.ins[1].nbytes) if len(call.ins) > 1 and call.ins[1] is not None else 0.0,
        "extras": float(len(call.ins) - call.n_own),
        "threads": float(cx.threads),
        "l1": size / m.l1,
        "l2": size / m.l2,
        "l3": between / m.l3,
        "held_l1": lg(held / m.l1),
        "held_l2": lg(held / m.l2),
        "from_l2": lg(size * beyond["l1"]),
        "from_l3": lg(moved * beyond["l2"]),
        "to_l3": lg(sum(t.nbytes for t in call.outs) * beyond["l2"]),
        "fed": float(cx.fed),
        "cold": lg(COLD * beyond["l2"]),
        "cold_far": lg(COLD * beyond["far"]),
        "own_cache": lg(m.l2),
        "speed": lg(m.peak(cx.threads)),
        "balance": lg(m.peak(cx.threads) / m.bandwidth(cx.threads)),
        "epilogue": float(call.epilogue),
        "slow": float(slow),
        "medium": float(medium),
        "quick": float(sum(ops.values()) - slow - medium),
    }


def touched(call: Call, cx: Context) -> float:
    """Bytes that a core touches between two runs of a call: of one that runs again and again its own share."""
    size = call.bytes
    return min(max(cx.between, size), FAR * cx.machine.l3) if cx.between > 1.02 * size else size / cx.threads


def levels(call: Call, cx: Context) -> dict[str, float]:
    """The share of a call's operands that lies beyond each level of cache."""
    m, held = cx.machine, touched(call, cx)
    far = min(max(2 * min(max(cx.between, call.bytes), FAR * m.l3) / m.l3 - 1, 0.0), 1.0)
    return {"l1": float(held > m.l1), "l2": float(held > m.l2), "far": far}


def image_of(call: Call) -> tuple[int, int, tuple[int, ...]]:
    """Batch, channels and size (depth, height, width) of a convolution's image."""
    x = call.ins[0]
    assert x is not None
    return x.shape[0], x.shape[1], (1,) * (5 - len(x.shape)) + x.shape[2:]


def even_share(threads: int, n: int) -> float:
    """The busiest thread's part of n equal blocks, over an equal part."""
    return ceil_div(n, threads) * threads / max(1, n)


def shares(items: int, grain: int, cx: Context) -> tuple[int, float]:
    """How many threads work when so many items are handed out by ``grain``, and the busiest one's part over an equal
    one: parallel_for of the runtime."""
    chunks = ceil_div(items, max(1, grain))
    used = max(1, min(cx.threads, chunks))
    return used, min(items, ceil_div(chunks, used) * max(1, grain)) * cx.threads / max(1, items)


def vector(f: Mapping[str, float], names: tuple[str, ...]) -> list[float]:
    """Features in a given order; one that this version does not have is 0."""
    return [f.get(n, 0.0) for n in names]
