"""A fingerprint of a model and its example inputs: equal fingerprints mean that compiling would give the same
artifact.

Everything that tracing can see is hashed: classes and functions by their bytecode and the globals they name,
attributes by value, parameters and buffers by content, example tensors by dtype, shape and strides, torch's global
switches. Code of installed packages stands for itself by version and file stamp. Whatever is not understood raises
:class:`Unhashable` with the reason; the model is then compiled without the cache, never with a guess.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import sys
import sysconfig
import types
import weakref
from typing import Any

import numpy as np
import torch

from ..imported import Unhashable

_INSTALLED = tuple(
    {os.path.realpath(sysconfig.get_paths()[k]) + os.sep for k in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_BY_TEXT = (torch.dtype, torch.device, torch.memory_format, torch.layout, range, slice)
_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_BUILTIN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
)


class Fingerprint:
    """Feeds objects into a hash; each object once, later by its number, so that sharing and cycles count."""

    def __init__(self) -> None:
        self.h = hashlib.sha256()
        self.seen: dict[int, int] = {}
        self.keep: list[Any] = []  # ids stay unique while the objects live
        self.storages: dict[int, int] = {}

    def text(self, *parts: object) -> None:
        for p in parts:
            data = p if isinstance(p, bytes) else str(p).encode()
            self.h.update(len(data).to_bytes(8, "little"))
            self.h.update(data)

    def digest(self) -> str:
        return self.h.hexdigest()

    def feed(self, x: Any) -> None:
        """Hashes ``x`` with its type; raises Unhashable for what is not understood."""
        if isinstance(x, _PLAIN) and type(x) in _PLAIN:
            self.text("plain", type(x).__name__, repr(x))
            return
        if id(x) in self.seen:
            self.text("again", self.seen[id(x)])
            return
        self.seen[id(x)] = len(self.seen)
        self.keep.append(x)
        if isinstance(x, _BY_TEXT):
            self.text("text", type(x).__name__, repr(x))
        elif isinstance(x, enum.Enum):
            self.text("enum", type(x).__module__, type(x).__qualname__, x.name)
        elif isinstance(x, torch.Tensor):
            self.tensor(x)
        elif isinstance(x, (np.ndarray, np.generic)):
            a = np.asarray(x)
            if a.dtype.hasobject:
                raise Unhashable("a numpy array of objects")
            self.text("numpy", a.dtype.str, a.shape, np.ascontiguousarray(a).tobytes())
        elif isinstance(x, torch.nn.Module):
            self.module(x)
        elif isinstance(x, (list, tuple)):
            self.text("sequence", len(x))
            self.cls(type(x))
            for item in x:
                self.feed(item)
        elif isinstance(x, (dict, types.MappingProxyType)):
            self.text("dict", len(x))
            self.cls(type(x))
            for k, v in x.items():
                self.feed(k)
                self.feed(v)
        elif isinstance(x, (set, frozenset)):
            self.text("set", *sorted(_digest_of(item) for item in x))
        elif isinstance(x, type):
            self.cls(x)
        elif isinstance(x, types.FunctionType):
            self.function(x)
        elif isinstance(x, types.MethodType):
            self.text("method")
            self.feed(x.__func__)
            self.feed(x.__self__)
        elif isinstance(x, _BUILTIN):
            self.text("builtin", getattr(x, "__module__", ""), x.__qualname__)
        elif isinstance(x, functools.partial):
            self.text("partial")
            for part in (x.func, x.args, x.keywords):
                self.feed(part)
        elif isinstance(x, (staticmethod, classmethod)):
            self.text(type(x).__name__)
            self.feed(x.__func__)
        elif isinstance(x, property):
            self.text("property")
            for part in (x.fget, x.fset):
                self.feed(part)
        elif isinstance(x, types.ModuleType):
            self.text("module", x.__name__, _stamp(x.__name__))
        elif isinstance(x, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            self.text("torch op", str(x))
        elif isinstance(x, weakref.ReferenceType):
            self.text("weak reference")
            self.feed(x())
        elif isinstance(x, torch.finfo | torch.iinfo):
            self.text("limits", repr(x))
        elif type(x).__module__.startswith("torch.export"):
            self.text("export", type(x).__qualname__, repr(x), getattr(x, "min", ""), getattr(x, "max", ""))
        elif hasattr(x, "__dict__") and _is_data(type(x)):
            self.text("object")
            self.cls(type(x))
            for k in sorted(vars(x)):
                self.text(k)
                self.feed(vars(x)[k])
        else:
            raise Unhashable(f"an object of type {type(x).__module__}.{type(x).__qualname__}")

    def tensor(self, t: torch.Tensor) -> None:
        if (
            type(t) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
            or t.layout != torch.strided
            or t.device.type != "cpu"
        ):
            raise Unhashable(f"a tensor of type {type(t).__name__} on {t.device}")
        self.text(
            "tensor",
            type(t).__name__,
            t.dtype,
            tuple(t.shape),
            t.stride(),
            t.storage_offset(),
            t.requires_grad,
            t.is_conj(),
            t.is_neg(),
        )
        storage = t.untyped_storage()
        if storage.data_ptr() in self.storages and storage.nbytes():
            self.text("storage", self.storages[storage.data_ptr()])
            return
        self.storages[storage.data_ptr()] = len(self.storages)
        flat = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        self.text("content", flat.size)
        self.h.update(flat.data if flat.size else b"")

    def module(self, m: torch.nn.Module) -> None:
        self.text("nn.Module")
        self.cls(type(m))
        for name in sorted(vars(m)):
            value = vars(m)[name]
            if name in _HOOKS:
                if value:
                    raise Unhashable(f"{type(m).__name__} has hooks ({name})")
                continue
            self.text(name)
            self.feed(value)

    def cls(self, c: type) -> None:
        self.text("class", c.__module__, c.__qualname__)
        if id(c) in self.seen and self.seen[id(c)] < len(self.seen) - 1:
            return
        self.seen.setdefault(id(c), len(self.seen))
        self.keep.append(c)
        if _installed(c.__module__):
            self.text(_stamp(c.__module__))
            return
        for base in c.__bases__:
            self.cls(base)
        for name in sorted(vars(c)):
            if name in (
                "__dict__",
                "__weakref__",
                "__doc__",
                "__module__",
                "__annotations__",
                "__abstractmethods__",
                "_abc_impl",
            ):
                continue
            self.text(name)
            self.feed(vars(c)[name])

    def function(self, f: types.FunctionType) -> None:
        self.text("function", f.__module__, f.__qualname__)
        if _installed(f.__module__ or ""):
            self.text(_stamp(f.__module__))
        else:
            names: set[str] = set()
            self.code(f.__code__, names)
            for name in sorted(names):
                if name in f.__globals__:
                    self.text("global", name)
                    self.feed(f.__globals__[name])
        self.feed(f.__defaults__)
        self.feed(f.__kwdefaults__)
        for cell in f.__closure__ or ():
            try:
                self.feed(cell.cell_contents)
            except ValueError:  # an empty cell
                self.text("empty cell")

    def code(self, c: types.CodeType, names: set[str]) -> None:
        names.update(c.co_names)
        self.text("code", c.co_code, c.co_names, c.co_varnames, c.co_freevars, c.co_filename, c.co_firstlineno)
        for k in c.co_consts:
            if isinstance(k, types.CodeType):
                self.code(k, names)
            elif isinstance(k, frozenset):
                self.text(*sorted(map(repr, k)))
            else:
                self.text(type(k).__name__, repr(k))

    def example(self, x: Any) -> None:
        """Example inputs: tensors by type, everything else by value."""
        if isinstance(x, torch.Tensor):
            if x.layout != torch.strided:
                raise Unhashable(f"an example tensor of layout {x.layout}")
            self.text("example", type(x).__name__, x.dtype, tuple(x.shape), x.stride(), x.device, x.requires_grad)
        elif isinstance(x, dict):
            self.text("dict", len(x), type(x).__name__)
            for k, v in x.items():
                self.feed(k)
                self.example(v)
        elif isinstance(x, (list, tuple)):
            self.text("sequence", len(x), type(x).__qualname__)
            for item in x:
                self.example(item)
        else:
            self.feed(x)


def _digest_of(x: Any) -> str:
    f = Fingerprint()
    f.feed(x)
    return f.digest()


def _is_data(c: type) -> bool:
    """Objects that are only their attributes, as configurations are: no base is implemented in C (a file, a lock)."""
    heap = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement
    return all(base.__flags__ & heap and "__slots__" not in vars(base) for base in c.__mro__ if base is not object)


@functools.lru_cache(maxsize=4096)
def _installed(module: str) -> bool:
    """Whether a module belongs to the interpreter or to an installed package, whose code changes only with its
    version.
    """
    m = sys.modules.get(module)
    file = getattr(m, "__file__", None)
    if file is None:
        return module in sys.builtin_module_names or module.split(".")[0] in sys.stdlib_module_names
    return os.path.realpath(file).startswith(_INSTALLED)


@functools.lru_cache(maxsize=4096)
def _stamp(module: str) -> str:
    """What identifies a module's code: its package's version, and size and time of its file."""
    m = sys.modules.get(module)
    top = sys.modules.get(module.split(".")[0])
    version = str(getattr(top, "__version__", ""))
    try:
        st = os.stat(getattr(m, "__file__", "") or "")
        return f"{version}/{st.st_size}/{st.st_mtime_ns}"
    except OSError:
        return version


def fingerprint(models: Any, options: Any) -> str:
    """The fingerprint of ``[(name, model, args, kwargs, dynamic_shapes), ...]`` and plain ``options``."""
    f = Fingerprint()
    f.text("effc model cache 1", sys.version, torch.__version__, repr(options))
    f.text(
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )
    f.text(
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.get_float32_matmul_precision(),
    )
    for name, model, args, kwargs, dynamic in models:
        if not isinstance(model, torch.nn.Module):
            raise Unhashable(f"a model given as {type(model).__name__}")
        f.text(name)
        f.feed(model)
        f.example(args)
        f.example(dict(kwargs or {}))
        f.feed(dynamic)
    return f.digest()
