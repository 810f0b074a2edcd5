"""torch pytree specs to the artifact's TREE form (docs/architecture.md).

Leaves that are constants (None, strings, Python numbers that were not made dynamic) are part of the tree; a Python
number that the graph takes or gives is ``{"t": "leaf", "py": "int" | "float" | "bool"}``, a 0-d tensor on the graph's
side.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import torch.utils._pytree as pytree

Tree = dict[str, Any]
LEAF: Tree = {"t": "leaf"}


def leaf_of(value: Any) -> Tree:
    """The tree of a constant."""
    if value is None:
        return {"t": "none"}
    if isinstance(value, (bool, int, float, str)):
        return {"t": "const", "value": value}
    return {"t": "const", "value": str(value)}


def class_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _keys(spec: Any) -> list[str]:
    """Field names of a registered class, from its context or its keyed flatten function; positions otherwise."""
    n = spec.num_children
    kind, context = spec.type, spec.context
    if hasattr(kind, "_fields"):
        return list(kind._fields)[:n]
    if n and issubclass(kind, tuple) and len(getattr(kind, "__match_args__", ())) >= n:  # torch.return_types
        return list(kind.__match_args__)[:n]
    for c in context if isinstance(context, (list, tuple)) else [context]:
        if isinstance(c, (list, tuple)) and len(c) == n and all(isinstance(k, str) for k in c):
            return list(c)
    if isinstance(context, (list, tuple)) and len(context) == n and all(isinstance(k, str) for k in context):
        return list(context)
    return [str(i) for i in range(n)]


def to_tree(spec: Any, leaves: Iterator[Tree]) -> Tree:
    """The TREE of a TreeSpec; ``leaves`` gives the tree of each of its leaves in order."""
    if spec.is_leaf():
        return next(leaves)
    children = [to_tree(s, leaves) for s in spec.children()]
    kind = spec.type
    if kind is tuple:
        return {"t": "tuple", "c": children}
    if kind in (list, deque):
        return {"t": "list", "c": children}
    if kind in (dict, OrderedDict, defaultdict):
        keys = spec.context[1] if kind is defaultdict else spec.context
        return {"t": "dict", "keys": list(keys), "c": children}
    if kind is pytree.namedtuple or hasattr(kind, "_fields") or kind.__name__ == "namedtuple":
        real = spec.context if isinstance(spec.context, type) else kind
        return {"t": "class", "name": class_name(real), "keys": list(real._fields), "c": children}
    return {"t": "class", "name": class_name(kind), "keys": _keys(spec), "c": children}
