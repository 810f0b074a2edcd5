"""The op table. An op is declared once: operands, attributes, type rule, numpy reference, cost, decomposition, samples.

    op("sort", "x", {"dim": int, "descending": (bool, False)}, category="sort",
       infer=lambda x, *, dim, descending: (x, x.with_dtype(DType.i64)),
       numpy=_sort, samples=_sort_samples)

Operand names end in ``?`` when optional and in ``*`` for a variadic tail. ``infer`` gets the operands' TensorTypes
positionally (None for an absent one) and the attributes by keyword; it returns a TensorType or a tuple of them, or
raises
``TypeRuleError`` with a sentence about what does not fit. ``numpy`` gets arrays in the same way, with every Dim in the
attributes already an int.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.errors import EffcError
from . import dims
from .dims import Dim, SymExpr
from .dtypes import DType
from .types import TensorType

if TYPE_CHECKING:
    from .graph import Loc, Value


class TypeRuleError(ValueError):
    """Raised by a type rule; the builder turns it into an EffcError with op, shapes and source line."""


class DimAttr:
    """Attribute type: one Dim."""


class DimsAttr:
    """Attribute type: a tuple of Dims."""


@dataclass(frozen=True)
class Cost:
    """Arithmetic operations and bytes moved by a node if it ran alone."""

    flops: Dim
    bytes: Dim


_REQUIRED = object()


@dataclass(frozen=True)
class OpDef:
    """A declared op; see the module's docstring for the conventions."""

    name: str
    operands: tuple[str, ...]
    attrs: Mapping[str, tuple[Any, Any]]  # name -> (type, default or _REQUIRED)
    infer: Callable[..., Any]
    numpy: Callable[..., Any] | None
    category: str
    decompose: Callable[..., Any] | None = None
    level: str = "core"
    effects: str = ""  # "random": never merged, folded or reordered away from its siblings; "effect": kept alive
    binds: tuple[str, ...] = ()  # attributes whose symbol this node defines at run time
    cost: Callable[..., Cost] | None = None
    samples: Callable[[np.random.Generator], Iterable[Any]] | None = None
    doc: str = ""
    moves: bool = False  # takes dtypes that are only held and moved (DType.is_storage)

    @property
    def variadic(self) -> bool:
        return bool(self.operands) and self.operands[-1].endswith("*")

    def complete(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes with defaults filled in, checked by name; EffcError for unknown or missing ones."""
        unknown = set(attrs) - set(self.attrs)
        if unknown:
            raise EffcError(
                f"op {self.name} has no attribute {sorted(unknown)}; it has {sorted(self.attrs)}", op=self.name
            )
        out: dict[str, Any] = {}
        for key, (kind, default) in self.attrs.items():
            value = attrs.get(key, default)
            if value is _REQUIRED:
                raise EffcError(f"op {self.name} needs attribute {key}", op=self.name)
            out[key] = _normalise(value, kind)
        return out

    def infer_types(
        self, inputs: Sequence[Value | None], attrs: Mapping[str, Any], loc: Loc | None
    ) -> tuple[TensorType, ...]:
        low = sum(not o.endswith(("?", "*")) for o in self.operands)
        if len(inputs) < low or (not self.variadic and len(inputs) > len(self.operands)):
            raise EffcError(
                f"op {self.name} takes operands {' '.join(self.operands)}, got {len(inputs)}", op=self.name, loc=loc
            )
        types = [None if v is None else v.type for v in inputs]
        if not self.variadic:
            types += [None] * (len(self.operands) - len(types))
        try:
            for t in types:
                self._require_moves(t)
            out = self.infer(*types, **attrs)
            for t in (out,) if isinstance(out, TensorType) else out:
                self._require_moves(t)
        except TypeRuleError as e:
            shapes = ", ".join("none" if t is None else str(t) for t in types)
            raise EffcError(
                f"{self.name}: {e}", op=self.name, loc=None if loc is None else str(loc), shapes=shapes
            ) from None
        return (out,) if isinstance(out, TensorType) else tuple(out)

    def _require_moves(self, t: TensorType | None) -> None:
        if t is not None and t.dtype.is_storage and not self.moves:
            raise TypeRuleError(f"not defined for {t.dtype}, which is only stored and converted: convert it first")

    def cost_of(
        self, inputs: Sequence[TensorType | None], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
    ) -> Cost:
        """The declared cost, else one operation per output element and every operand read, every result written
        once."""
        if self.cost is not None:
            return self.cost(inputs, outputs, attrs)
        total: Dim = 0
        for t in [*inputs, *outputs]:
            if t is not None:
                total = total + t.nbytes
        flops: Dim = 0
        for t in outputs:
            flops = flops + t.numel
        return Cost(flops, total)


def _normalise(value: Any, kind: Any) -> Any:
    if kind in (tuple, DimsAttr) and value is not None and not isinstance(value, tuple):
        return tuple(value)
    if kind is DType and isinstance(value, str):
        return DType(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


OPS: dict[str, OpDef] = {}
MOVING = frozenset({"view", "movement", "constant", "state", "control", "fused"})  # categories that take any dtype


def op(
    name: str,
    operands: str,
    attrs: Mapping[str, Any] | None = None,
    *,
    infer: Callable[..., Any],
    numpy: Callable[..., Any] | None = None,
    category: str,
    decompose: Callable[..., Any] | None = None,
    level: str = "core",
    effects: str = "",
    binds: tuple[str, ...] = (),
    cost: Callable[..., Cost] | None = None,
    samples: Callable[[np.random.Generator], Iterable[Any]] | None = None,
    doc: str = "",
    moves: bool | None = None,
) -> OpDef:
    """Declares an op. An attribute is ``type`` (required) or ``(type, default)``; types: int float bool str tuple DType
    DimAttr DimsAttr, Graph classes, object. A decomposition is ``decompose(b, *values, **attrs)`` and returns
    values. ``moves``: whether types that are only stored are taken too; by default in the categories MOVING."""
    if name in OPS:
        raise ValueError(f"op {name} is declared twice")
    table = {k: (v if isinstance(v, tuple) else (v, _REQUIRED)) for k, v in (attrs or {}).items()}
    OPS[name] = definition = OpDef(
        name,
        tuple(operands.split()),
        table,
        infer,
        numpy,
        category,
        decompose,
        level,
        effects,
        binds,
        cost,
        samples,
        doc,
        category in MOVING if moves is None else moves,
    )
    return definition


def get(name: str) -> OpDef:
    """The declaration of an op; EffcError for an unknown one."""
    if name not in OPS:
        from . import ops  # noqa: F401  (fills the table)

        if name not in OPS:
            raise EffcError(f"unknown op {name!r}", op=name, hint="`effc.ir.OPS` lists the declared ops")
    return OPS[name]


@dataclass(frozen=True)
class Sample:
    """One conformance case: operands (arrays or None), attributes, and a note on why the case was chosen."""

    inputs: tuple[Any, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


# Helpers for type rules -----------------------------------------------------------------------------------------------


def require(condition: bool, message: str) -> None:
    if not condition:
        raise TypeRuleError(message)


def same_dim(a: Dim, b: Dim) -> bool:
    """True unless the two are known to differ: symbolic dims that are not provably different are checked at run
    time."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return True


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """numpy's rule for one dim. A symbolic dim against another keeps the first; against a constant other than 1, the
    constant."""
    if a == b:
        return a
    if isinstance(a, int) and isinstance(b, int):
        require(a == 1 or b == 1, f"sizes {a} and {b} do not broadcast")
        return b if a == 1 else a
    if isinstance(a, int):
        return b if a == 1 else a
    if isinstance(b, int):
        return a if b == 1 else b
    return a


def broadcast_shapes(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = [1] * rank
    for s in shapes:
        for i, d in enumerate(s):
            j = rank - len(s) + i
            out[j] = broadcast_dim(out[j], d)
    return tuple(out)


def normalise_dim(dim: int, rank: int) -> int:
    require(-max(rank, 1) <= dim < max(rank, 1), f"dim {dim} is out of range for rank {rank}")
    return dim + rank if dim < 0 else dim


def eval_attrs(attrs: Mapping[str, Any], env: Mapping[str, int]) -> dict[str, Any]:
    """Attributes with every SymExpr replaced by its value."""

    def ev(v: Any) -> Any:
        if isinstance(v, SymExpr):
            return dims.evaluate(v, env)
        if isinstance(v, tuple):
            return tuple(ev(x) for x in v)
        return v

    return {k: ev(v) for k, v in attrs.items()}
