"""The least time that a call can take: its operations at the machine's peak, its bytes at the machine's bandwidth.

It is the floor of every prediction, what learned models are ratios of, and, times :data:`SLACK`, what is predicted
where no model knows better. (Williams, Waterman, Patterson: "Roofline", 2009.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from ..runtime.dtypes import BY_NAME
from .calls import Call
from .machine import Machine

SLACK = 2.0  # of a call of which nothing else is known
LAUNCH = 1e-7  # seconds that any call takes
WAKE = 1e-6  # and one that wakes threads


@dataclass(frozen=True)
class Context:
    """Where a call runs. ``vlen``: bytes of the target's vectors; ``threads`` that it may use; ``between``: bytes that
    are touched between two runs of it; ``fed``: whether its first operand was written just before, as in a model."""

    machine: Machine
    vlen: int
    threads: int
    between: int
    fed: bool = False


def vlen_of(target: str) -> int:
    """Bytes of a vector, by the target's name (``cpu:x86-64-v3``)."""
    return 64 if "x86-64-v4" in target else 32


@lru_cache(maxsize=4096)  # ways of one call ask again and again
def windows(kernel: int, stride: int, pad: int, dilation: int, out: int, size: int) -> tuple[float, float]:
    """Along one dim: the share of taps that lie inside the image, and of windows that lie inside as a whole."""
    span, taps, whole = dilation * (kernel - 1), 0, 0
    for o in range(out):
        first = o * stride - pad
        taps += max(0, min(kernel, -(-(size - first) // dilation)) - max(0, -(first // dilation)))
        whole += first >= 0 and first + span < size
    return taps / max(1, out * kernel), whole / max(1, out)


@lru_cache(maxsize=4096)
def reached(kernel: int, stride: int, pad: int, dilation: int, out: int, size: int) -> float:
    """Along one dim of a transposed convolution: the share of taps that meet an element of the image; with a stride all
    others fall between its elements."""
    at = (o + pad - dilation * k for o in range(out) for k in range(kernel))
    return sum(x % stride == 0 and 0 <= x // stride < size for x in at) / max(1, out * kernel)


def geometry(call: Call) -> tuple[tuple[int, int, int, int, int, int], ...]:
    """A convolution's dims as :func:`windows` takes them."""
    a, x = call.attrs, call.ins[0]
    assert x is not None
    size = (1,) * (5 - len(x.shape)) + x.shape[2:]
    return tuple((a[5 + d], a[8 + d], a[11 + d], a[14 + d], a[17 + d], size[d]) for d in range(3))


def taps_inside(call: Call) -> float:
    """Of a convolution's multiply-adds, the share that lies inside the image: kernels leave the others out."""
    if len(call.attrs) < 20 or call.ins[0] is None:
        return 1.0
    return prod(reached(*g) if call.attrs[1] else windows(*g)[0] for g in geometry(call))


def operations(call: Call) -> float:
    """Operations that the call cannot leave out."""
    flops = float(call.flops)
    if call.kernel.startswith(("effc_conv_f", "effc_conv_dw_")):
        flops *= taps_inside(call)
    elif call.kernel.startswith("effc_attention") and call.attrs and call.attrs[0] and call.ins[0] is not None:
        q, k = call.ins[0].shape[2], call.ins[1].shape[2] if call.ins[1] is not None else 1
        flops *= (q + 1) / (2 * q) if q == k else 1.0
    return flops


def floor(call: Call, cx: Context) -> float:
    """Seconds. Bytes count as if they lay in the first level, two vectors in a cycle that could do two multiply-adds of
    vectors: what a call before has left in a cache is not told by the call. Peaks are those of all threads, for a small
    call too."""
    peak = cx.machine.peak(cx.threads)
    out = call.outs[0].dtype if call.outs else "f32"
    wide = max(1.0, BY_NAME[out].size / 4) if out[0] in "fc" else 1.0
    near = call.bytes / (2.0 * peak)
    return max(operations(call) * wide / peak, near, 1e-9)


def estimate(call: Call, cx: Context) -> float:
    """Seconds where nothing was learned: the floor with some slack, bytes from the level that they most likely lie in,
    and the cost of starting. A guess, not a bound."""
    levels = ((cx.machine.l1, 2.0), (cx.machine.l2, 0.7), (cx.machine.l3, 0.25))
    rate = next((cx.machine.peak(cx.threads) * f for size, f in levels if cx.between <= size), None)
    moved = call.bytes / (rate or cx.machine.bandwidth(cx.threads))
    return SLACK * max(floor(call, cx), moved) + LAUNCH + (WAKE if cx.threads > 1 else 0.0)


def elements(call: Call) -> int:
    """Elements of the largest operand or result."""
    return max((prod(t.shape) for t in (*call.ins, *call.outs) if t is not None), default=0)
