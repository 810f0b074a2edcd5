"""Pytrees of a signature: flattening a caller's arguments, rebuilding a model's output structure.

A TREE is JSON (docs/architecture.md). ``in_tree`` is a pair: the tuple of positional arguments and the dict of keyword
arguments. The tuple may carry "names", the parameters' names: its arguments can then also be given by keyword.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .errors import EffcError

Tree = dict[str, Any]


class Record(dict[str, Any]):
    """Stands in for an output class that is not importable here: a dict whose items are also attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def count_leaves(tree: Tree) -> int:
    """How many leaves a tree has."""
    return 1 if tree["t"] == "leaf" else sum(count_leaves(c) for c in tree.get("c", ()))


def bind_arguments(tree: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The leaves of a call's arguments in order. EffcError names a missing, extra or misshapen argument."""
    positional, keyword = tree["c"]
    names: list[str] = positional.get("names") or []
    want = positional["c"]
    given = list(args)
    kwargs = dict(kwargs)
    while len(given) < len(want) and len(given) < len(names) and names[len(given)] in kwargs:
        given.append(kwargs.pop(names[len(given)]))
    if len(given) < len(want):
        label = f" '{names[len(given)]}'" if len(given) < len(names) else ""
        raise EffcError(
            f"missing argument {len(given)}{label}: the model takes {_count(len(want), 'positional argument')}, "
            f"{len(given)} given"
        )
    if len(given) > len(want):
        # A keyword argument given by position is taken in the order of the keywords.
        extra = given[len(want) :]
        raise EffcError(
            f"{_count(len(extra), 'unexpected positional argument')}: the model was compiled for {len(want)}"
            + (f" and the keyword(s) {', '.join(keyword['keys'])}" if keyword.get("keys") else "")
        )
    leaves: list[Any] = []
    for i, (child, value) in enumerate(zip(want, given)):
        _flatten(child, value, f"argument '{names[i]}'" if i < len(names) else f"argument {i}", leaves)
    keys = keyword.get("keys", [])
    missing = [k for k in keys if k not in kwargs]
    unexpected = [k for k in kwargs if k not in keys]
    if unexpected:
        twice = [k for k in unexpected if k in names]
        if twice:
            raise EffcError(f"argument '{twice[0]}' is given twice")
        raise EffcError(
            f"unexpected keyword argument(s) {', '.join(map(repr, unexpected))}: the model was compiled for "
            f"{', '.join(map(repr, keys)) or 'none'}"
        )
    if missing:
        raise EffcError(f"missing keyword argument(s) {', '.join(map(repr, missing))}")
    for key, child in zip(keys, keyword.get("c", ())):
        _flatten(child, kwargs[key], f"argument '{key}'", leaves)
    return leaves


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _flatten(tree: Tree, value: Any, path: str, leaves: list[Any]) -> None:
    kind = tree["t"]
    if kind == "leaf":
        if value is None or isinstance(value, (list, tuple, dict, str)):
            raise EffcError(f"{path} must be an array, got {type(value).__name__}")
        leaves.append(value)
    elif kind == "none":
        if value is not None:
            raise EffcError(
                f"{path} must be None, as when the model was compiled, got {type(value).__name__}",
                hint="compile the model with an example of that argument",
            )
    elif kind == "const":
        if not _same_constant(tree["value"], value):
            raise EffcError(
                f"{path} was the constant {tree['value']!r} when the model was compiled, got {_brief(value)}",
                hint="compile again with the value you need, or make it an array",
            )
    elif kind in ("tuple", "list"):
        if not isinstance(value, (list, tuple)):
            raise EffcError(f"{path} must be a {kind} of {len(tree['c'])}, got {type(value).__name__}")
        if len(value) != len(tree["c"]):
            raise EffcError(f"{path} must have {len(tree['c'])} items, got {len(value)}")
        for i, (child, item) in enumerate(zip(tree["c"], value)):
            _flatten(child, item, f"{path}[{i}]", leaves)
    elif kind == "dict":
        if not hasattr(value, "keys"):
            raise EffcError(f"{path} must be a dict, got {type(value).__name__}")
        have = set(value.keys())
        missing = [k for k in tree["keys"] if k not in have]
        extra = [k for k in have if k not in tree["keys"]]
        if missing or extra:
            text = [f"lacks {', '.join(map(repr, missing))}"] * bool(missing)
            text += [f"has unexpected {', '.join(map(repr, sorted(extra, key=str)))}"] * bool(extra)
            raise EffcError(f"{path} {' and '.join(text)}")
        for key, child in zip(tree["keys"], tree["c"]):
            _flatten(child, value[key], f"{path}[{key!r}]", leaves)
    elif kind == "class":
        for i, (key, child) in enumerate(zip(tree["keys"], tree["c"])):
            if isinstance(value, dict):
                found, item = key in value, value.get(key)
            elif isinstance(value, tuple) and not hasattr(value, str(key)):
                found, item = i < len(value), value[i] if i < len(value) else None
            else:
                found, item = hasattr(value, str(key)), getattr(value, str(key), None)
            if not found:
                raise EffcError(f"{path} must be a {tree['name']} with '{key}', got {type(value).__name__}")
            _flatten(child, item, f"{path}.{key}", leaves)
    else:
        raise EffcError(f"the manifest's signature has an unknown kind of node '{kind}'")


def _same_constant(want: Any, value: Any) -> bool:
    if isinstance(want, list):
        return isinstance(value, (list, tuple)) and len(want) == len(value) and all(map(_same_constant, want, value))
    if isinstance(want, bool) or isinstance(value, bool) or want is None or isinstance(want, str):
        return (
            type(value) is type(want) and bool(value == want)
            if isinstance(want, (bool, str))
            else str(value) == str(want)
        )
    try:
        return bool(value == want)
    except Exception:  # a foreign type's comparison may raise anything
        return False


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def flatten(tree: Tree, value: Any, what: str) -> list[Any]:
    """The leaves of a value that has the structure of ``tree``; EffcError, which calls it ``what``, if it has not."""
    leaves: list[Any] = []
    _flatten(tree, value, what, leaves)
    return leaves


def unflatten(tree: Tree, leaves: list[Any]) -> Any:
    """Rebuilds the structure of ``tree`` from its leaves."""
    iterator = iter(leaves)
    return _build(tree, iterator)


def _build(tree: Tree, leaves: Any) -> Any:
    kind = tree["t"]
    if kind == "leaf":
        value = next(leaves)
        return value.item() if "py" in tree else value  # a Python number in the model's own output
    if kind == "none":
        return None
    if kind == "const":
        return tree["value"]
    items = [_build(c, leaves) for c in tree.get("c", ())]
    if kind == "tuple":
        return tuple(items)
    if kind == "list":
        return items
    if kind == "dict":
        return dict(zip(tree["keys"], items))
    if kind == "class":
        return _instance(tree["name"], [str(k) for k in tree["keys"]], items)
    raise EffcError(f"the manifest's signature has an unknown kind of node '{kind}'")


def _instance(name: str, keys: list[str], items: list[Any]) -> Any:
    """An object of the model's own output class if its package is imported already (loading a model must not import a
    framework), else a Record."""
    module, _, qualified = name.partition(":")
    fields = dict(zip(keys, items))
    if module.split(".")[0] in sys.modules:
        try:
            found: Any = importlib.import_module(module)
            for part in qualified.split("."):
                found = getattr(found, part)
            if issubclass(found, tuple) and not hasattr(found, "_fields"):  # a struct sequence, made from one iterable
                return found(items)
            return found(**fields)
        except Exception:  # the class has moved or takes other arguments: the data are what matters
            pass
    return Record(fields)
