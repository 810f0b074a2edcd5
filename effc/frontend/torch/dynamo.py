"""``torch.compile(model, backend="effc")``: Dynamo's graphs compiled by effc, for inference.

Dynamo hands over an FX graph with example inputs. Parameters and buffers that the graph only reads become constants
of the artifact, so that they can be folded and packed; when one of them has changed at a later call (its version
counter says so), the graph is compiled again. Sizes and integers that Dynamo made dynamic stay dynamic. What effc
does not take is an ``EffcError`` that names it: nothing falls back to another backend. What Dynamo itself leaves out of
its graphs (frames with recurrent layers unless ``torch._dynamo.config.allow_rnn`` is set, code after graph breaks)
never gets here; ``torch._dynamo.utils.counters["effc"]`` counts ``graphs`` taken, ``compilations`` and ``calls``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch._dynamo.utils import counters

from ...runtime.errors import EffcError
from .export import decompose, export
from .recurrent import keep_layers


def effc_backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Any:
    """The callable that Dynamo runs instead of ``gm``. Options are those of :func:`effc.compile`."""
    import effc

    options = dict(options.pop("options", None) or options)
    known = [p.name for p in inspect.signature(effc.compile).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known.remove("dynamic_shapes")  # these are Dynamo's
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise EffcError(f"backend effc has no option {', '.join(unknown)}", hint=f"options: {', '.join(known)}")
    # No one saves these artifacts, and the graph's own run would cost time at every recompilation.
    return _Compiled(gm, list(example_inputs), {"selftest": False, **options})


class _Compiled:
    """A graph of Dynamo's and its artifact, compiled again when a constant has changed."""

    def __init__(self, gm: torch.fx.GraphModule, inputs: list[Any], options: dict[str, Any]) -> None:
        counters["effc"]["graphs"] += 1
        keep_layers(gm)
        self.gm, self.options = gm, options
        nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
        self.fakes = [n.meta.get("example_value", x) for n, x in zip(nodes, inputs, strict=True)]
        self.fixed = [i for i, (n, x) in enumerate(zip(nodes, inputs, strict=True)) if _is_static(n, x)]
        tensors = [i for i, f in enumerate(self.fakes) if isinstance(f, torch.Tensor) and i not in self.fixed]
        self.sizes: dict[int, tuple[int, int]] = {}  # an input that is a size: the tensor and its dim that have it
        for i, f in enumerate(self.fakes):
            if isinstance(f, torch.SymInt) and (place := _place(str(f.node.expr), self.fakes, tensors)) is not None:
                self.sizes[i] = place
            elif isinstance(f, (torch.SymFloat, torch.SymBool)):
                raise EffcError(
                    f"input {i} of a torch.compile graph is a {type(f).__name__}", hint="pass it as a tensor"
                )
        numbers = [i for i, f in enumerate(self.fakes) if isinstance(f, torch.SymInt) and i not in self.sizes]
        self.kept = sorted([*tensors, *numbers])
        grad = [i for i in self.kept if isinstance(inputs[i], torch.Tensor) and inputs[i].requires_grad]
        if grad and torch.is_grad_enabled():
            raise EffcError(
                f"{len(grad)} inputs of the compiled function require gradients; effc compiles for inference",
                hint="call it under torch.no_grad(), or detach the inputs",
            )
        self.versions: list[tuple[int, int]] = []
        self._compile(inputs)

    def _compile(self, inputs: list[Any]) -> None:
        with torch._guards.tracing(None):  # not as a part of the trace that Dynamo is in
            self._compile_apart(inputs)

    def _compile_apart(self, inputs: list[Any]) -> None:
        import effc

        counters["effc"]["compilations"] += 1
        while True:
            flat = _Flat(self.gm, inputs, self.fakes, self.fixed, self.kept, self.sizes)
            examples = tuple(_example(self.fakes[i]) for i in self.kept)
            shapes = tuple(_dynamic_dims(self.fakes[i]) for i in self.kept)
            try:
                program = decompose(export(flat, examples, None, (shapes,) if any(shapes) else None))
            except EffcError:
                raise
            except Exception as e:
                raise EffcError(f"a graph of torch.compile cannot be exported: {type(e).__name__}: {e}") from e
            written = {
                s.target
                for s in program.graph_signature.output_specs
                if s.target and s.kind.name.endswith("BUFFER_MUTATION")
            }
            again = [i for i in self.fixed if f"fixed{i}" in written]
            if not again:
                break
            self.fixed = [i for i in self.fixed if i not in again]  # it is written: it must stay the caller's
            self.kept = sorted([*self.kept, *again])
        self.model = effc.compile(program, examples, **self.options)
        self.versions = self._state(inputs)

    def _state(self, inputs: Sequence[Any]) -> list[tuple[int, int]]:
        return [(inputs[i]._version, inputs[i].data_ptr()) for i in self.fixed]

    def __call__(self, *args: Any) -> Any:
        if self._state(args) != self.versions:
            self._compile(list(args))
        counters["effc"]["calls"] += 1
        with torch.no_grad():
            return self.model(*(_detached(args[i]) for i in self.kept))


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) and x.requires_grad else x


def _is_static(n: torch.fx.Node, x: Any) -> bool:
    """A parameter or buffer of the module, as Dynamo marks it."""
    if not isinstance(x, torch.Tensor) or isinstance(x, torch._subclasses.FakeTensor):
        return False
    marked = (n.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type")
    return marked is not None or isinstance(x, torch.nn.Parameter)


class _Flat(torch.nn.Module):
    """Dynamo's graph as a function of its variable tensors: its size inputs are read off their shapes, its constants
    are buffers.
    """

    def __init__(
        self,
        gm: torch.fx.GraphModule,
        inputs: Sequence[Any],
        fakes: Sequence[Any],
        fixed: Sequence[int],
        kept: Sequence[int],
        sizes: Mapping[int, tuple[int, int]],
    ) -> None:
        super().__init__()
        self.gm = gm
        self.args: list[Any] = [f if not isinstance(f, torch.Tensor) else None for f in fakes]
        self.fixed, self.kept = tuple(fixed), tuple(kept)
        for i in fixed:
            self.register_buffer(f"fixed{i}", inputs[i].detach())
        self.sizes = dict(sizes)

    def forward(self, *variable: Any) -> Any:
        args = list(self.args)
        for i in self.fixed:
            args[i] = getattr(self, f"fixed{i}")
        for i, t in zip(self.kept, variable, strict=True):
            args[i] = t
        for i, (source, dim) in self.sizes.items():
            args[i] = args[source].shape[dim]
        with fx_traceback.preserve_node_meta():  # node by node, so that the export's nodes keep the user's lines
            return torch.fx.Interpreter(self.gm).run(*args)


def _place(symbol: str, fakes: Sequence[Any], tensors: Sequence[int]) -> tuple[int, int] | None:
    """(input, dim) whose size is the symbol."""
    for i in tensors:
        for d, s in enumerate(fakes[i].shape):
            if isinstance(s, torch.SymInt) and str(s.node.expr) == symbol:
                return i, d
    return None


def _dynamic_dims(fake: Any) -> Any:
    """What torch.export's ``dynamic_shapes`` says about one argument."""
    if isinstance(fake, torch.SymInt):
        return torch.export.Dim.DYNAMIC
    return {d: torch.export.Dim.DYNAMIC for d, s in enumerate(fake.shape) if isinstance(s, torch.SymInt)} or None


def _example(fake: Any) -> Any:
    """A real tensor of the fake one's type, dynamic sizes by their hint; a number's hint."""
    if isinstance(fake, torch.SymInt):
        return int(fake.node.hint)
    shape = [int(s.node.hint) if isinstance(s, torch.SymInt) else int(s) for s in fake.shape]
    return torch.zeros(shape, dtype=fake.dtype)


__all__ = ["effc_backend"]
