"""Loading and running artifacts with numpy alone; torch tensors are understood when the caller brings torch."""

from __future__ import annotations

import ctypes
import json
import math
import os
import struct
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _rt, debug, dtypes, layouts
from .errors import EffcError
from .tree import bind_arguments, count_leaves, unflatten

DTYPES = dtypes.NAMES
_CODE = dtypes.CODE
_ITEM = tuple(t.size for t in dtypes.TABLE)
_TORCH_OF = {t.name: t.torch for t in dtypes.TABLE}
_TORCH_NAMES = {torch: name for name, torch in reversed(_TORCH_OF.items())}  # uint8 is u8 before it is another's bits
# Without ml_dtypes, and for c32 always, numpy has no such type: arrays are then views of the bits.
_BITS: dict[str, np.dtype[Any]] = {t.name: np.dtype(t.numpy) for t in dtypes.TABLE if not t.plain}
_PLAIN: dict[str, np.dtype[Any]] = {t.name: np.dtype(t.numpy) for t in dtypes.TABLE if t.plain}
_ML_NAMES = {t.name: t.ml for t in dtypes.TABLE if t.ml}
_INTS = dtypes.INTS
_ml_dtype = dtypes.ml_dtype


def numpy_dtype(short: str) -> np.dtype[Any]:
    """The numpy dtype of results of this element type. bf16 and types of a byte or less that numpy lacks are
    ml_dtypes' types, or uint16 and uint8 views of the bits where ml_dtypes is not installed; complex of halves is a
    uint32 view."""
    if short in _PLAIN:
        return _PLAIN[short]
    found = _ml_dtype(short) if short in _ML_NAMES else None
    return _BITS[short] if found is None else found


def _torch_empty(shape: Sequence[int], dtype: Any) -> tuple[Any, int]:
    """A new tensor and its address."""
    result = sys.modules["torch"].empty(*shape, dtype=dtype) if shape else sys.modules["torch"].empty((), dtype=dtype)
    return result, result.data_ptr()


def _large_torch_empty(shape: Sequence[int], dtype: Any) -> tuple[Any, int]:
    """As ``_torch_empty``, on huge pages where the system has them, as numpy's large arrays are: malloc maps those anew
    for each run, and 40 MB in small pages are ten thousand faults."""
    result, address = _torch_empty(shape, dtype)
    _rt.lib().effc_prefer_huge_pages(address, result.nbytes)
    return result, address


def _numpy_empty(shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[Any, int]:
    """A new array and its address."""
    result = np.empty(shape, dtype)
    return result, result.__array_interface__["data"][0]


_LARGE = 4 << 20  # bytes
_PACK = [
    struct.Struct(f"<Qii{r}q{8 * (_rt.MAX_RANK - r)}x{r}q{8 * (_rt.MAX_RANK - r)}xQ") for r in range(_rt.MAX_RANK + 1)
]
_HEAD = struct.Struct("<Qii")
_ADDRESS = struct.Struct("<Q")
_SHAPE = [struct.Struct(f"<{r}q") for r in range(_rt.MAX_RANK + 1)]
_numpy_codes: dict[Any, int] = {}
_torch_codes: dict[Any, int] = {}
_plain_arrays: set[Any] = {np.ndarray}  # and torch's Tensor, once one was taken


def _numpy_code(dtype: np.dtype[Any], want: str) -> int | None:
    """The element type's code, or None. Views of bits are taken for the types that numpy lacks."""
    code = _numpy_codes.get(dtype)
    if code is None:
        for short, plain in _PLAIN.items():
            _numpy_codes[plain] = _CODE[short]
        if dtype.kind == "V" or dtype.name in _ML_NAMES.values():
            for short in _ML_NAMES:
                ml = _ml_dtype(short)
                if ml is not None:
                    _numpy_codes[ml] = _CODE[short]
        code = _numpy_codes.get(dtype)
    if code is not None and want in _BITS and dtype == _BITS[want]:
        return _CODE[want]
    return code


@dataclass(frozen=True)
class Io:
    """One input or output: its name, element type, shape (-1 where it varies) and whether a run writes to it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    written: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('?' if d < 0 else str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class ProfileRecord:
    """What one instruction cost while profiling was on. ``depth`` counts the control flow around it."""

    name: str
    kernel: str
    loc: str
    depth: int
    calls: int
    seconds: float
    flops: int
    bytes: int


class Session:
    """The state of one conversation with a model: buffers, caches, random numbers. Callable like the model itself."""

    def __init__(self, model: LoadedModel, handle: int | None) -> None:
        self.model = model
        self._handle = handle
        self._argument = ctypes.c_void_p(handle)
        if handle is not None:
            # The finalizer holds the model, so that sessions go first.
            weakref.finalize(self, _free_session, model._keep, handle)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model._default._call(self, args, kwargs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self.model._default._run_named(self, inputs)

    def entry(self, name: str) -> BoundEntry:
        return BoundEntry(self.model._find(name), self, self.model)

    def seed(self, seed: int) -> None:
        """Restarts the random numbers."""
        _rt.check(_rt.lib().effc_session_seed(self.model._ptr, self._handle, seed & 0xFFFFFFFFFFFFFFFF))

    def reset(self) -> None:
        """Puts the states back to what they were at load."""
        _rt.check(_rt.lib().effc_session_reset(self.model._ptr, self._handle))

    def _state_buffer(self, name: str) -> tuple[np.ndarray[Any, Any], str]:
        info = self.model._states.get(name)
        if info is None:
            raise EffcError(
                f"the model has no state '{name}'", hint=f"it has {', '.join(self.state_names()) or 'none'}"
            )
        return np.empty(info["shape"], numpy_dtype(info["d"])), info["d"]

    def state_names(self) -> list[str]:
        return list(self.model._states)

    def state(self, name: str) -> np.ndarray[Any, Any]:
        """A copy of one state."""
        out, _ = self._state_buffer(name)
        _rt.check(
            _rt.lib().effc_session_state(self.model._ptr, self._handle, name.encode(), out.ctypes.data, out.nbytes, 0)
        )
        return out

    def set_state(self, name: str, value: Any) -> None:
        """Replaces one state; dtype and shape must match."""
        like, _ = self._state_buffer(name)
        array = np.asarray(value)
        if array.dtype != like.dtype or array.shape != like.shape:
            raise EffcError(f"state '{name}' is {like.dtype}{like.shape}, got {array.dtype}{array.shape}")
        array = np.ascontiguousarray(array)
        _rt.check(
            _rt.lib().effc_session_state(
                self.model._ptr, self._handle, name.encode(), array.ctypes.data, array.nbytes, 1
            )
        )


def _free_session(keep: _Handle, handle: int) -> None:
    if keep.ptr:
        _rt.lib().effc_session_free(handle)


class _Handle:
    """Owns the native model; freed when the last user is gone."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr

    def __del__(self) -> None:
        if self.ptr and sys is not None and not sys.is_finalizing():
            _rt.lib().effc_free(self.ptr)
            self.ptr = 0


class BoundEntry:
    """An entry point together with a session."""

    def __init__(self, entry: _Entry, session: Session, model: LoadedModel) -> None:
        self._entry = entry
        self._model = model  # the default session refers to it weakly
        self.session = session
        self.name = entry.name
        self.inputs = entry.inputs
        self.outputs = entry.outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._entry._call(self.session, args, kwargs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self._entry._run_named(self.session, inputs)

    def arena(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As ``LoadedModel.arena``, for this entry point."""
        return self._entry._arena(args, kwargs)


class _Entry:
    """One entry point: its signature, and how a call becomes effc_run."""

    def __init__(self, model: LoadedModel, index: int, name: str, spec: dict[str, Any]) -> None:
        lib, keep = _rt.lib(), model._keep
        self._keep = keep
        self.index = index
        self.name = name
        self.in_tree = spec.get("in_tree")
        self.out_tree = spec.get("out_tree")
        self.inputs = self._signature(lib.effc_input, lib.effc_num_inputs(keep.ptr, index))
        self.outputs = self._signature(lib.effc_output, lib.effc_num_outputs(keep.ptr, index))
        for tree, ios, what in ((self.in_tree, self.inputs, "inputs"), (self.out_tree, self.outputs, "outputs")):
            if tree is not None and count_leaves(tree) != len(ios):
                raise EffcError(f"the artifact is malformed: entry '{name}' has a tree that does not fit its {what}")
        self._numpy = [numpy_dtype(o.dtype) for o in self.outputs]
        self._torch: list[Any] = []  # the outputs' torch dtypes, once torch is seen
        self._static = (
            self._describe([o.shape for o in self.outputs])
            if all(d >= 0 for o in self.outputs for d in o.shape)
            else None
        )
        symbols = spec["program"].get("symbols", [])
        # Integer arguments that decide sizes belong to the key under which inferred shapes are kept.
        self._debug = debug.level()
        if self._debug >= 2:
            lib.effc_profile_enable(keep.ptr, 1)
        # How many arguments there are where each is an array: such calls need no walk through their structure.
        self._arrays = -1
        if self.in_tree is not None:
            positional, keyword = self.in_tree["c"]
            if all(c["t"] == "leaf" for c in positional["c"]) and not keyword.get("keys"):
                self._arrays = len(positional["c"])
        self._sizing = [s["from"]["input"] for s in symbols if s.get("from") and s["from"].get("value")]
        self._shapes: dict[Any, list[tuple[tuple[int, ...], bytes]]] = {}
        self._run, self._place = _rt.untyped("effc_run"), (ctypes.c_void_p(keep.ptr), ctypes.c_int32(index))
        # By the type of the first argument: what tells the layout of a call that may repeat (layouts.py).
        self._readers: dict[type, Any] = {}
        self._layouts: dict[Any, layouts.Layout] = {}
        out = self.out_tree
        self._one = out is not None and out["t"] == "leaf" and "py" not in out

    def _signature(self, query: Any, count: int) -> list[Io]:
        ios = []
        io = _rt.Io()
        for i in range(count):
            _rt.check(query(self._keep.ptr, self.index, i, ctypes.byref(io)))
            ios.append(Io(io.name.decode(), DTYPES[io.dtype], tuple(io.shape[: io.rank]), bool(io.written)))
        return ios

    def _describe(self, shapes: list[tuple[int, ...]]) -> list[tuple[tuple[int, ...], bytes]]:
        """Each output's shape with its packed description, all but the address; nothing where data decide the shape."""
        return [
            (s, b"" if -1 in s else _PACK[len(s)].pack(0, _CODE[o.dtype], len(s), *s, *_row_major(s), 0))
            for o, s in zip(self.outputs, shapes)
        ]

    def _call(self, session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.in_tree is None:
            raise EffcError("this entry point has no call signature", hint="use run({name: array})")
        arrays = len(args) == self._arrays and not kwargs
        results = self._repeat(session, args) if arrays else None
        if results is None:
            plain = arrays and all(type(x) in _plain_arrays for x in args)
            results = self._execute(session, list(args) if plain else bind_arguments(self.in_tree, args, kwargs))
        if self._one:
            return results[0]
        return unflatten(self.out_tree, results) if self.out_tree is not None else results

    def _run_named(self, session: Session, inputs: Mapping[str, Any]) -> dict[str, Any]:
        names = [i.name for i in self.inputs]
        missing = [n for n in names if n not in inputs]
        extra = [n for n in inputs if n not in names]
        if missing or extra:
            text = [f"missing input(s) {', '.join(map(repr, missing))}"] * bool(missing)
            text += [f"unexpected input(s) {', '.join(map(repr, extra))}"] * bool(extra)
            raise EffcError(f"{'; '.join(text)}: the model takes {', '.join(map(repr, names)) or 'none'}")
        leaves = [inputs[n] for n in names]
        results = self._repeat(session, leaves)
        if results is None:
            results = self._execute(session, leaves)
        return {o.name: r for o, r in zip(self.outputs, results)}

    def _pack(
        self, leaves: list[Any], torch: Any, back: list[tuple[Any, Any]]
    ) -> tuple[bytearray, list[Any], list[Any], bool]:
        """The leaves as an effc_array each, with room for the outputs; what the addresses in it point to; the shapes;
        whether any leaf is a torch tensor."""
        size = _rt.ARRAY_BYTES
        arrays = bytearray(size * (len(self.inputs) + len(self.outputs)) or 1)
        tensor_type = torch.Tensor if torch is not None else ()
        # No array among the arguments says which kind the caller wants: torch's, where torch is in use.
        use_torch = torch is not None and all(isinstance(x, (bool, int, float, complex)) for x in leaves)
        alive = []
        shapes = []
        for i, (io, leaf) in enumerate(zip(self.inputs, leaves)):
            if tensor_type and isinstance(leaf, tensor_type):
                use_torch = True
                data, code, shape, strides, held = _from_torch(io, leaf, back)
            else:
                data, code, shape, strides, held = _from_numpy(io, leaf, back)
            if len(shape) > _rt.MAX_RANK:
                raise EffcError(f"input '{io.name}' has rank {len(shape)}; the limit is {_rt.MAX_RANK}")
            _PACK[len(shape)].pack_into(arrays, i * size, data, code, len(shape), *shape, *strides, 0)
            alive.append(held)
            shapes.append(shape)
        return arrays, alive, shapes, use_torch

    def _arena(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
        leaves = bind_arguments(self.in_tree, args, kwargs) if self.in_tree is not None else list(args)
        arrays, alive, _, _ = self._pack(leaves, sys.modules.get("torch"), [])
        view = (ctypes.c_char * len(arrays)).from_buffer(arrays)
        total, bound = ctypes.c_int64(), ctypes.c_int64()
        at, n_in = ctypes.addressof(view), len(self.inputs)
        _rt.check(_rt.lib().effc_arena(self._keep.ptr, self.index, at, n_in, ctypes.byref(total), ctypes.byref(bound)))
        del alive
        return total.value, bound.value

    def _repeat(self, session: Session, leaves: Sequence[Any]) -> list[Any] | None:
        """The results, if arguments lay like these in an earlier call, which checked them; else None."""
        read = self._readers.get(type(leaves[0])) if leaves else None
        found = None if read is None else read(leaves)
        if found is None:
            return None
        layout = self._layouts.get(found[0])
        if layout is None:
            return None
        block = layout.block()
        words, at = block.words, 0
        for address in found[1]:
            words[at] = address
            at += layouts.WORDS
        results: list[Any] = []
        for make, shape, dtype in layout.outputs:
            try:
                result, address = make(shape, dtype)
            except (MemoryError, ValueError, RuntimeError) as e:  # numpy's two, torch's
                raise self._no_room(len(results), shape) from e
            words[at] = address or block.at  # as in _execute
            results.append(result)
            at += layouts.WORDS
        if self._run(*self._place, session._argument, *block.arguments):
            _rt.check(1)
        layout.spare.append(block)
        return results

    def _remember(self, leaves: list[Any], alive: list[Any], arrays: bytearray, outputs: list[Any]) -> None:
        """Keeps the layout of a call that ran, if calls like it need no look at their arguments but at where they lie.
        ``outputs``: for each result, what ``layouts.Layout`` wants; None for one that the runtime made."""
        plain = self._debug < 2 and leaves and not self._sizing and not any(io.written for io in self.inputs)
        if not plain or None in outputs or any(x is not y for x, y in zip(leaves, alive)):
            return
        kind = type(leaves[0])
        if kind not in self._readers:
            if kind is np.ndarray:
                self._readers[kind] = layouts.of_arrays([numpy_dtype(io.dtype) for io in self.inputs])
            elif kind in _plain_arrays:
                torch = sys.modules["torch"]
                want = [getattr(torch, _TORCH_OF[io.dtype]) for io in self.inputs]
                self._readers[kind] = layouts.of_tensors(want, kind, torch.strided)
            else:
                return
        found = self._readers[kind](leaves)
        if found is None:
            return
        if len(self._layouts) >= layouts.MOST:
            self._layouts.clear()
        self._layouts[found[0]] = layouts.Layout(bytes(arrays), len(leaves), outputs)

    def _execute(self, session: Session, leaves: list[Any]) -> list[Any]:
        lib, ptr = _rt.lib(), self._keep.ptr
        n_in, n_out = len(self.inputs), len(self.outputs)
        size = _rt.ARRAY_BYTES
        torch = sys.modules.get("torch")
        back: list[tuple[Any, Any]] = []  # (the caller's array, the copy that was passed) for written inputs
        arrays, alive, shapes, use_torch = self._pack(leaves, torch, back)
        view = ctypes.c_char.from_buffer(arrays)
        at = ctypes.addressof(view)
        out_at = at + size * n_in
        results: list[Any] = []
        made: list[Any] = []
        if use_torch and not self._torch:
            self._torch = [getattr(torch, _TORCH_OF[o.dtype]) for o in self.outputs]
        offset = n_in * size
        for k, (shape, packed) in enumerate(
            self._infer(shapes, alive, arrays, at) if self._static is None else self._static
        ):
            result: Any = None  # without a description: the runtime allocates
            how = None
            if packed:
                how = self._maker(k, shape, use_torch)
                try:
                    result, data = how[0](*how[1:])
                except (MemoryError, ValueError, RuntimeError) as e:  # numpy's two, torch's
                    raise self._no_room(k, shape) from e
                arrays[offset : offset + size] = packed
                # A size-0 result may have no address; NULL would ask the runtime to allocate.
                _ADDRESS.pack_into(arrays, offset, data or at)
            results.append(result)
            made.append(how)
            offset += size
        status = lib.effc_run(ptr, self.index, session._handle, at, n_in, out_at, n_out)
        if status:
            _rt.check(status)
        if self._debug >= 2:
            debug.show(
                f"entry {self.name}, inputs {[tuple(x) for x in shapes]}\n" + debug.profile_table(self._records())
            )
            lib.effc_profile_enable(ptr, 1)
        for k, result in enumerate(results):
            if result is None:
                results[k] = self._adopt(k, arrays, (n_in + k) * size, out_at + k * size, torch if use_torch else None)
        for target, copy in back:
            target[...] = copy
        del view
        self._remember(leaves, alive, arrays, made)
        return results

    def _maker(self, k: int, shape: Sequence[int], use_torch: bool) -> tuple[Any, Sequence[int], Any]:
        """What makes result k of this shape, and what it takes."""
        if not use_torch:
            return _numpy_empty, shape, self._numpy[k]
        large = math.prod(shape) * _ITEM[_CODE[self.outputs[k].dtype]] >= _LARGE
        return _large_torch_empty if large else _torch_empty, shape, self._torch[k]

    def _infer(
        self, shapes: list[Any], alive: list[Any], arrays: bytearray, at: int
    ) -> list[tuple[tuple[int, ...], bytes]]:
        values = tuple(int(alive[i]) for i in self._sizing) if self._sizing else ()
        key = (*map(tuple, shapes), values)
        known = self._shapes.get(key)
        if known is not None:
            return known
        size, n_in, n_out = _rt.ARRAY_BYTES, len(self.inputs), len(self.outputs)
        _rt.check(_rt.lib().effc_infer_shapes(self._keep.ptr, self.index, at, n_in, at + size * n_in, n_out))
        known = self._describe(
            [_SHAPE[len(o.shape)].unpack_from(arrays, (n_in + k) * size + 16) for k, o in enumerate(self.outputs)]
        )
        if len(self._shapes) >= 4096:
            self._shapes.clear()
        self._shapes[key] = known
        for k in range(n_out):  # unset, for those that the runtime allocates
            arrays[(n_in + k) * size : (n_in + k + 1) * size] = bytes(size)
        return known

    def _records(self) -> list[ProfileRecord]:
        lib, p = _rt.lib(), _rt.Profile()
        records = []
        for i in range(lib.effc_profile_count(self._keep.ptr, self.index)):
            _rt.check(lib.effc_profile_get(self._keep.ptr, self.index, i, ctypes.byref(p)))
            records.append(
                ProfileRecord(
                    p.name.decode(), p.kernel.decode(), p.loc.decode(), p.depth, p.calls, p.ns * 1e-9, p.flops, p.bytes
                )
            )
        return records

    def _no_room(self, k: int, shape: Sequence[int]) -> EffcError:
        io = self.outputs[k]
        size = math.prod(shape) * _ITEM[_CODE[io.dtype]]
        return EffcError(
            f"there is no memory for the result {io.name}, {io.dtype}{list(shape)}: {size} bytes",
            hint="give the model smaller inputs, or run it where there is more memory",
        )

    def _adopt(self, k: int, arrays: bytearray, offset: int, address: int, torch: Any) -> Any:
        """A copy of an output that the runtime allocated, which is then freed."""
        io = self.outputs[k]
        data, _, rank = _HEAD.unpack_from(arrays, offset)
        shape = _SHAPE[rank].unpack_from(arrays, offset + 16)
        try:
            how = self._maker(k, shape, torch is not None)
            result, to = how[0](*how[1:])
        except (MemoryError, ValueError, RuntimeError) as e:
            _rt.lib().effc_array_free(address)
            raise self._no_room(k, shape) from e
        nbytes = math.prod(shape) * _ITEM[_CODE[io.dtype]]
        if nbytes:
            ctypes.memmove(to, data, nbytes)
        _rt.lib().effc_array_free(address)
        return result


def _row_major(shape: tuple[int, ...]) -> list[int]:
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    return strides


def _wrong_dtype(io: Io, got: str) -> EffcError:
    known = _ML_NAMES.get(io.dtype) or _TORCH_OF.get(io.dtype, io.dtype)
    return EffcError(
        f"input '{io.name}' has dtype {got}, the model was compiled for {known}", hint=f"convert it to {known}"
    )


_plain_layout: list[Any] = [None]  # torch.strided, once a tensor was taken


def _check_torch(io: Io, t: Any) -> int:
    """The code of the tensor's element type; EffcError if it is none that the input takes."""
    code = _torch_codes.get(t.dtype)
    if code is None:
        short = _TORCH_NAMES.get(str(t.dtype).removeprefix("torch."))
        if short is None:
            raise _wrong_dtype(io, str(t.dtype))
        code = _torch_codes[t.dtype] = _CODE[short]
    if code != _CODE[io.dtype]:
        if str(t.dtype).removeprefix("torch.") != _TORCH_OF[io.dtype]:
            raise _wrong_dtype(io, str(t.dtype))
        code = _CODE[io.dtype]  # a view of the bits of a type that torch lacks
    if t.device.type != "cpu":
        raise EffcError(
            f"input '{io.name}' is on device {t.device}, this artifact runs on the CPU", hint="call .cpu() on it"
        )
    if str(t.layout) != "torch.strided":
        raise EffcError(
            f"input '{io.name}' has layout {t.layout}, only dense tensors are taken", hint="call .to_dense() on it"
        )
    if type(t) is sys.modules["torch"].Tensor:
        _plain_arrays.add(type(t))
        _plain_layout[0] = t.layout
    return code


def _from_torch(io: Io, t: Any, back: list[tuple[Any, Any]]) -> tuple[int, int, Any, Any, Any]:
    code = _torch_codes.get(t.dtype)
    if code != _CODE[io.dtype] or not t.is_cpu or type(t) not in _plain_arrays or t.layout is not _plain_layout[0]:
        code = _check_torch(io, t)
    shape = t.shape
    if t.is_conj() or t.is_neg():
        held = t.detach().resolve_conj().resolve_neg()
        if io.written:
            back.append((t.detach(), held))
    else:
        held = t
    strides = held.stride()
    if io.written:
        _refuse_overlap(io, shape, strides)
    try:
        return held.data_ptr(), code, shape, strides, held
    except RuntimeError as e:  # fake tensors, functorch's wrappers: no memory behind them
        raise EffcError(f"input '{io.name}' is a {type(t).__name__} without data: {e}") from e


def _refuse_overlap(io: Io, shape: Any, strides: Any) -> None:
    if any(n > 1 and s == 0 for n, s in zip(shape, strides)) and 0 not in shape:
        raise EffcError(
            f"the model writes to input '{io.name}', whose elements share memory (an expanded array)",
            hint="pass a copy",
        )


def _from_numpy(io: Io, leaf: Any, back: list[tuple[Any, Any]]) -> tuple[int, int, Any, Any, Any]:
    if not isinstance(leaf, np.ndarray):
        leaf = _scalar(io, leaf)
    code = _numpy_code(leaf.dtype, io.dtype)
    if code != _CODE[io.dtype] or not leaf.dtype.isnative:
        raise _wrong_dtype(io, str(leaf.dtype))
    held = leaf
    item = leaf.dtype.itemsize
    if any(s % item for s in leaf.strides):  # a field of a record: not a whole number of elements apart
        held = leaf.copy()
        if io.written:
            back.append((leaf, held))
    strides = [s // item for s in held.strides]
    if io.written:
        if not leaf.flags.writeable:
            raise EffcError(f"the model writes to input '{io.name}', which is read-only", hint="pass a copy")
        _refuse_overlap(io, held.shape, strides)
    return held.__array_interface__["data"][0], code, held.shape, strides, held


def _scalar(io: Io, value: Any) -> np.ndarray[Any, Any]:
    """A Python or numpy scalar for a 0-d input; other objects through the buffer or DLPack protocols."""
    if isinstance(value, (bool, int, float, complex)):
        if len(io.shape) != 0:
            raise EffcError(f"input '{io.name}' must be an array of rank {len(io.shape)}, got the number {value!r}")
        dtype = numpy_dtype(io.dtype)
        integral = io.dtype in _INTS
        if integral and not isinstance(value, int):
            raise _wrong_dtype(io, type(value).__name__)
        if isinstance(value, complex) and io.dtype not in ("c64", "c128"):
            raise _wrong_dtype(io, "complex")
        if io.dtype == "bool" and not isinstance(value, bool):
            raise _wrong_dtype(io, type(value).__name__)
        if io.dtype in _BITS and dtype == _BITS[io.dtype]:
            raise EffcError(f"input '{io.name}' of type {io.dtype} needs an array here", hint="install ml_dtypes")
        try:
            return np.array(value, dtype)
        except OverflowError:
            raise EffcError(f"input '{io.name}': {value} does not fit {dtype}") from None
    if isinstance(value, np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except Exception as e:
            raise EffcError(f"input '{io.name}': this {type(value).__name__} cannot be read as a CPU array: {e}") from e
    raise EffcError(f"input '{io.name}' must be an array, got {type(value).__name__}")


class LoadedModel:
    """A model in memory. Immutable; may be called from many threads at once.

    ``m(*args, **kwargs)`` runs the first entry point in the default session and returns the model's own output
    structure, torch tensors if any input is one, else numpy arrays. ``m.run({name: array})`` returns ``{name: array}``.
    """

    def __init__(self, path: str | os.PathLike[str], num_threads: int | None = None) -> None:
        if num_threads is not None and (not isinstance(num_threads, int) or num_threads < 1):
            raise EffcError(f"num_threads must be a positive integer, got {num_threads!r}")
        lib = _rt.lib()
        options = _rt.Options(num_threads or 0)
        ptr = ctypes.c_void_p()
        name = os.fspath(path)
        if isinstance(name, str) and "\0" in name:
            raise EffcError("the path holds a NUL character")
        _rt.check(lib.effc_load(os.fsencode(name), ctypes.byref(options), ctypes.byref(ptr)))
        assert ptr.value
        self.path = path
        self._keep = _Handle(ptr.value)
        try:
            manifest = self.manifest
        except ValueError as e:
            raise EffcError(f"the artifact's manifest is not valid JSON: {e}") from e
        self.num_threads: int = lib.effc_num_threads(ptr)
        try:
            specs = manifest["entries"]
            self._entries = [_Entry(self, i, name, specs[name]) for i, name in enumerate(specs)]
            self._states: dict[str, dict[str, Any]] = manifest.get("states", {})
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise EffcError(f"the artifact's signature is malformed: {type(e).__name__}: {e}") from e
        if debug.level() >= 1:
            debug.show(debug.plan_text(manifest))
        self._default = self._entries[0]
        self._session = _DefaultSession(self)

    @property
    def _ptr(self) -> int:
        return self._keep.ptr

    @property
    def manifest(self) -> dict[str, Any]:
        """The artifact's manifest, read anew each time: its programs as Python objects take several times its bytes,
        and a loaded model needs none of them."""
        size = ctypes.c_size_t()
        text = ctypes.string_at(_rt.lib().effc_manifest(self._ptr, ctypes.byref(size)), size.value)
        found: dict[str, Any] = json.loads(text)
        return found

    @property
    def report(self) -> dict[str, Any]:
        """What the compiler decided and why."""
        return dict(self.manifest.get("report", {}))

    @property
    def entry_names(self) -> list[str]:
        return [e.name for e in self._entries]

    @property
    def inputs(self) -> list[Io]:
        return self._default.inputs

    @property
    def outputs(self) -> list[Io]:
        return self._default.outputs

    def _find(self, name: str) -> _Entry:
        for e in self._entries:
            if e.name == name:
                return e
        raise EffcError(f"there is no entry point '{name}'", hint=f"it has {', '.join(self.entry_names)}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._default._call(self._session, args, kwargs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self._default._run_named(self._session, inputs)

    def entry(self, name: str) -> BoundEntry:
        """An entry point by name, in the default session."""
        return BoundEntry(self._find(name), self._session, self)

    def session(self) -> Session:
        """A fresh session: states as at load, its own random numbers."""
        handle = ctypes.c_void_p()
        _rt.check(_rt.lib().effc_session_new(self._ptr, ctypes.byref(handle)))
        return Session(self, handle.value)

    def seed(self, seed: int) -> None:
        """Restarts the default session's random numbers."""
        self._session.seed(seed)

    def reset(self) -> None:
        """Puts the default session's states back to what they were at load."""
        self._session.reset()

    def state(self, name: str) -> np.ndarray[Any, Any]:
        """A copy of one of the default session's states."""
        return self._session.state(name)

    def arena(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Bytes of temporary memory that a call with these arguments takes, and the bound that no plan can beat: the
        most that is alive at one time."""
        return self._default._arena(args, kwargs)

    @property
    def arenas(self) -> tuple[int, int]:
        """Bytes of the arenas that runs have made since the model was loaded, and how many there are. Runs that take
        turns share one, whichever entry points and sessions they are of; runs that overlapped in time had one each."""
        total, count = ctypes.c_int64(), ctypes.c_int32()
        _rt.check(_rt.lib().effc_arenas(self._ptr, ctypes.byref(total), ctypes.byref(count)))
        return total.value, count.value

    @property
    def streaming(self) -> dict[str, int]:
        """What a model compiled with ``memory_budget`` has read while it ran, counted since it was loaded
        (``effc_stream`` of effc.h); all zero for others. Sizes in bytes, times in nanoseconds."""
        stats = _rt.Stream()
        _rt.check(_rt.lib().effc_stream_stats(self._ptr, ctypes.byref(stats)))
        return {name: getattr(stats, name) for name, _ in _rt.Stream._fields_}

    @property
    def spilling(self) -> dict[str, int]:
        """What a model compiled with ``arena_budget`` copied out of its arena and back, counted since it was loaded
        (``effc_spill`` of effc.h); all zero for others. Sizes in bytes, times in nanoseconds."""
        stats = _rt.Spill()
        _rt.check(_rt.lib().effc_spill_stats(self._ptr, ctypes.byref(stats)))
        return {name: getattr(stats, name) for name, _ in _rt.Spill._fields_}

    @contextmanager
    def profile(self, entry: str | None = None) -> Iterator[list[ProfileRecord]]:
        """Counts time per instruction within the block; the list is filled when it ends."""
        records: list[ProfileRecord] = []
        lib = _rt.lib()
        lib.effc_profile_enable(self._ptr, 1)
        try:
            yield records
        finally:
            records += (self._default if entry is None else self._find(entry))._records()
            lib.effc_profile_enable(self._ptr, 0)


class _DefaultSession(Session):
    """The session that the native model owns. Refers to its model weakly: the model holds it."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = weakref.ref(model)
        self._handle = None
        self._argument = ctypes.c_void_p()

    @property
    def model(self) -> LoadedModel:  # type: ignore[override]
        model = self._model()
        assert model is not None
        return model


def load(path: str | os.PathLike[str], num_threads: int | None = None) -> LoadedModel:
    """Loads an artifact. EffcError if it is damaged, of another format version, or not for this machine."""
    return LoadedModel(path, num_threads)
