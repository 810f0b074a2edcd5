"""Random numbers. References get ``rng``, a numpy Generator; backends draw from the session's Philox counter.

Only dtype, shape and distribution are defined, not the bits. Nodes are never merged or folded (``effects="random"``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..dims import Dim
from ..dtypes import DType
from ..op import DimAttr, DimsAttr, op, require
from ..types import TensorType
from .movement import Array

Rng = np.random.Generator
_SHAPED = {"shape": DimsAttr, "dtype": (DType, DType.f32)}


def _shaped(*, shape: tuple[Dim, ...], dtype: DType, **attrs: Any) -> TensorType:
    require(not dtype.is_complex, f"not defined for {dtype}: draw the two parts")
    return TensorType(dtype, shape)


def _floating(*, shape: tuple[Dim, ...], dtype: DType, **attrs: Any) -> TensorType:
    require(dtype.is_float, f"not defined for {dtype}")
    return TensorType(dtype, shape)


def _declare(
    name: str, attrs: dict[str, Any], draw: Callable[..., Any], infer: Callable[..., TensorType], doc: str
) -> None:
    def run(*, rng: Rng, shape: tuple[int, ...], dtype: DType, **rest: Any) -> Array:
        return np.asarray(draw(rng, shape, **rest)).astype(dtype.np)

    op(name, "", {**attrs, **_SHAPED}, infer=infer, numpy=run, category="random", effects="random", doc=doc)


_declare(
    "rand_uniform",
    {"lo": (float, 0.0), "hi": (float, 1.0)},
    lambda g, s, lo, hi: g.uniform(lo, hi, s),
    _floating,
    "Uniform in [lo, hi).",
)
_declare(
    "rand_normal",
    {"mean": (float, 0.0), "std": (float, 1.0)},
    lambda g, s, mean, std: g.normal(mean, std, s),
    _floating,
    "Normal.",
)
_declare(
    "rand_int",
    {"lo": (DimAttr, 0), "hi": DimAttr},
    lambda g, s, lo, hi: g.integers(lo, hi, s),
    _shaped,
    "Uniform integers in [lo, hi).",
)
_declare(
    "exponential",
    {"rate": (float, 1.0)},
    lambda g, s, rate: g.exponential(1 / rate, s),
    _floating,
    "Exponential, mean 1/rate.",
)
_declare(
    "geometric", {"p": float}, lambda g, s, p: g.geometric(p, s), _shaped, "Trials up to the first success: 1, 2, ..."
)
_declare(
    "cauchy",
    {"median": (float, 0.0), "scale": (float, 1.0)},
    lambda g, s, median, scale: median + scale * g.standard_cauchy(s),
    _floating,
    "Cauchy.",
)
_declare(
    "log_normal",
    {"mean": (float, 1.0), "std": (float, 2.0)},
    lambda g, s, mean, std: g.lognormal(mean, std, s),
    _floating,
    "exp of a normal.",
)


# Distributions whose parameters are tensors: one draw per element
# ------------------------------------------------------


def _per_element(x: TensorType) -> TensorType:
    require(x.dtype.is_float, f"the parameter must be a float tensor, not {x.dtype}")
    return x


def _bernoulli(p: TensorType, *, dtype: DType) -> TensorType:
    require(p.dtype.is_float, f"the probability must be a float tensor, not {p.dtype}")
    require(not dtype.is_complex, f"not defined for {dtype}")
    return p.with_dtype(dtype)


op(
    "bernoulli",
    "p",
    {"dtype": (DType, DType.f32)},
    infer=_bernoulli,
    category="random",
    effects="random",
    numpy=lambda p, *, dtype, rng: (rng.random(p.shape) < p.astype(np.float64)).astype(dtype.np),
    doc="1 with probability p, else 0.",
)
op(
    "poisson",
    "rate",
    infer=_per_element,
    category="random",
    effects="random",
    numpy=lambda rate, *, rng: np.asarray(rng.poisson(rate.astype(np.float64))).astype(rate.dtype),
    doc="Poisson counts of the given rates.",
)
op(
    "gamma",
    "alpha",
    infer=_per_element,
    category="random",
    effects="random",
    numpy=lambda alpha, *, rng: np.asarray(rng.standard_gamma(alpha.astype(np.float64))).astype(alpha.dtype),
    doc="Gamma with shape alpha and scale 1. Dirichlet is this, divided by its sum.",
)


def _binomial(count: TensorType, prob: TensorType) -> TensorType:
    require(
        count.dtype is prob.dtype and count.dtype.is_float,
        f"needs two float tensors of one dtype, not {count.dtype}, {prob.dtype}",
    )
    require(count.rank == prob.rank, f"ranks {count.rank} and {prob.rank} differ")
    return count


op(
    "binomial",
    "count prob",
    infer=_binomial,
    category="random",
    effects="random",
    numpy=lambda count, prob, *, rng: np.asarray(rng.binomial(count.astype(np.int64), prob.astype(np.float64))).astype(
        count.dtype
    ),
    doc="Successes among count trials of probability prob.",
)


def _multinomial(weights: TensorType, *, samples: Dim, replacement: bool) -> TensorType:
    require(weights.dtype.is_float, f"weights must be a float tensor, not {weights.dtype}")
    require(weights.rank in (1, 2), f"weights must have rank 1 or 2, not {weights.rank}")
    return TensorType(DType.i64, (*weights.shape[:-1], samples))


def _multinomial_np(weights: Array, *, samples: int, replacement: bool, rng: Rng) -> Array:
    rows = weights.reshape(-1, weights.shape[-1]).astype(np.float64)
    out = [rng.choice(rows.shape[1], samples, replace=replacement, p=r / r.sum()) for r in rows]
    return np.asarray(out, np.int64).reshape(*weights.shape[:-1], samples)


op(
    "multinomial",
    "weights",
    {"samples": DimAttr, "replacement": (bool, False)},
    infer=_multinomial,
    numpy=_multinomial_np,
    category="random",
    effects="random",
    doc="Indices of the last dim drawn with probability proportional to the weights.",
)
op(
    "randperm",
    "",
    {"n": DimAttr, "dtype": (DType, DType.i64)},
    category="random",
    effects="random",
    infer=lambda *, n, dtype: TensorType(dtype, (n,)),
    numpy=lambda *, n, dtype, rng: rng.permutation(n).astype(dtype.np),
    doc="A random permutation of 0 .. n-1.",
)
