"""Runs a function of the torch dialect with PyTorch's own operators, one by one: the operators are what defines the
dialect. A value tensor has no strides and nothing writes to it, so each result is made dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...ir.torch_types import ELEMENTS, SCALAR_CODE
from ...runtime import dtypes as table
from ...runtime.errors import EffcError

Step = Callable[[dict[Any, Any]], None]
TORCH = {d: getattr(torch, table.BY_NAME[d.value].torch) for d in SCALAR_CODE}
BY_CODE = {code: TORCH[d] for d, code in SCALAR_CODE.items()}
NOTHING = ("torch.symbolic_int", "torch.bind_symbolic_shape", "torch.constant.none", "torch.constant.device")
SAME = ("torch.tensor_static_info_cast",)


class Function:
    """A function made callable: torch tensors in, a list of torch tensors out. ``literals`` gives the tensor of a
    ``torch.vtensor.literal``. EffcError where PyTorch cannot run an operator, and for assertions that do not hold."""

    def __init__(self, op: Any, literals: Callable[[Any], torch.Tensor]) -> None:
        self._literals = literals
        block = op.regions[0].blocks[0]
        self._arguments = list(block.arguments)
        self._run = self._block(block)

    def __call__(self, arguments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        env = dict(zip(self._arguments, map(dense, arguments), strict=True))
        with torch.no_grad():
            return list(self._run(env))

    def _block(self, block: Any) -> Callable[[dict[Any, Any]], list[Any]]:
        """The block's steps; gives the operands of its terminator."""
        operations = [o.operation for o in block.operations]
        steps = [s for o in operations[:-1] if (s := self._step(o)) is not None]
        last = list(operations[-1].operands)

        def run(env: dict[Any, Any]) -> list[Any]:
            for s in steps:
                s(env)
            return [env[v] for v in last]

        return run

    def _step(self, op: Any) -> Step | None:
        name, operands, results = op.name, list(op.operands), list(op.results)
        if name in NOTHING:
            return lambda env: env.update((r, None) for r in results)
        if name.startswith("torch.constant."):
            value = op.attributes["value"].value
            return lambda env: env.update({results[0]: value})
        if name == "torch.vtensor.literal":
            data = self._literals(op)
            return lambda env: env.update({results[0]: data})
        if name in SAME:
            return lambda env: env.update({results[0]: env[operands[0]]})
        if name == "torch.prim.ListConstruct":
            return lambda env: env.update({results[0]: [env[v] for v in operands]})
        if name == "torch.runtime.assert":
            message = op.attributes["message"].value

            def check(env: dict[Any, Any]) -> None:
                if not env[operands[0]]:
                    raise EffcError(message)

            return check
        if name == "torch.prim.If":
            return self._if(op, operands, results)
        if name == "torch.prim.Loop":
            return self._loop(op, operands, results)
        return self._operator(op, operands, results)

    def _if(self, op: Any, operands: list[Any], results: list[Any]) -> Step:
        then, orelse = (self._block(r.blocks[0]) for r in op.regions)

        def run(env: dict[Any, Any]) -> None:
            env.update(zip(results, (then if env[operands[0]] else orelse)(env), strict=True))

        return run

    def _loop(self, op: Any, operands: list[Any], results: list[Any]) -> Step:
        block = op.regions[0].blocks[0]
        body, arguments = self._block(block), list(block.arguments)

        def run(env: dict[Any, Any]) -> None:
            trips, go, *carries = (env[v] for v in operands)
            i = 0
            while go and i < trips:
                env.update(zip(arguments, [i, *carries], strict=True))
                go, *carries = body(env)
                i += 1
            env.update(zip(results, carries, strict=True))

        return run

    def _operator(self, op: Any, operands: list[Any], results: list[Any]) -> Step:
        name = op.attributes["name"].value if op.name == "torch.operator" else op.name
        namespace, _, rest = name.removeprefix("torch.").partition(".")
        packet, _, overload = rest.partition(".")
        f = getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
        arguments = f._schema.arguments
        kinds = [str(r.type) for r in results]

        def run(env: dict[Any, Any]) -> None:
            positional, keywords = [], {}
            for a, v in zip(arguments, operands, strict=True):
                x = env[v]
                if a.name == "dtype" and isinstance(x, int):
                    x = BY_CODE[x]
                elif a.name == "memory_format" and isinstance(x, int):
                    x = torch.contiguous_format
                if a.kwarg_only:
                    keywords[a.name] = x
                else:
                    positional.append(x)
            try:
                out = f(*positional, **keywords)
            except (RuntimeError, NotImplementedError) as e:
                raise EffcError(f"PyTorch cannot run {name}: {e}", hint="lower the module with torch-mlir") from e
            outs = tuple(out) if isinstance(out, (tuple, list)) else (out,)
            for r, k, x in zip(results, kinds, outs, strict=True):
                env[r] = _checked(name, k, x)

        return run


def _checked(name: str, kind: str, x: Any) -> Any:
    """A result, dense, if it is of the type that the module gives it."""
    if not isinstance(x, torch.Tensor):
        return x
    shape, _, element = kind.removeprefix("!torch.vtensor<[").removesuffix(">").partition("],")
    sizes = shape.split(",") if shape else []
    fits = x.dtype is TORCH[ELEMENTS[element]] and len(sizes) == x.dim()
    if not fits or any(s not in ("?", str(n)) for s, n in zip(sizes, x.shape, strict=True)):
        raise EffcError(f"internal: {name} gives {x.dtype}{list(x.shape)}, the module says {kind}")
    return dense(x)


def dense(x: torch.Tensor) -> torch.Tensor:
    """x, row-major; an empty tensor too has the strides of one."""
    return x.resolve_conj().resolve_neg().contiguous() if x.numel() else torch.empty(x.shape, dtype=x.dtype)
