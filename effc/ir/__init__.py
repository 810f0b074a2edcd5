"""The dataflow IR: types, dims, graph, the op table, its text form, verifier and numpy interpreter."""

from . import dims
from .dims import Dim, Symbol, SymExpr
from .dtypes import DType
from .graph import Builder, Graph, Loc, Node, Value
from .op import OPS, OpDef, op
from .types import TensorType

__all__ = [
    "OPS",
    "Builder",
    "DType",
    "Dim",
    "Graph",
    "Loc",
    "Node",
    "OpDef",
    "SymExpr",
    "Symbol",
    "TensorType",
    "Value",
    "dims",
    "op",
]
