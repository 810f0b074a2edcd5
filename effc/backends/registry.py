"""The backends that there are: those of this package, and those that other packages register.

A backend is one :class:`Backend`. Another package registers its own by an entry point of the group ``effc.backends``,
whose name is the target's and whose value is the ``Backend`` (``my_package.effc:backend``); within a process
:func:`register` does the same. From then on ``effc.compile(..., target=NAME)``, ``effc targets`` and ``effc conformance
--backend NAME`` know it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from ..runtime.errors import EffcError

GROUP = "effc.backends"
RunGraph = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class CompileOptions:
    """What the caller of ``effc.compile`` asked for; see there."""

    target: str
    num_threads: int | None = None
    onnx_domain: str = "standard"
    disable_passes: tuple[str, ...] = ()
    verify: bool = False
    selftest: bool = True
    memory_budget: int | None = None  # bytes
    arena_budget: int | None = None


def _core_alone() -> Any:
    """The pipeline's own options: all but core ops are decomposed. Imported late: it needs more than loading does."""
    from ..passes.pipeline import Options

    return Options()


@dataclass(frozen=True)
class Backend:
    """What the rest of effc knows of a backend. A target is its ``name``, or that with a part after a colon.

    ``compile(entries, options)`` makes a model of entry points, whose ``imported()`` are graphs with their signatures;
    the model can be called and has ``run``, ``entry``, ``session`` and ``report``. ``run_graph(graph, target)`` is a
    graph's function of arrays, with no pass before but what the backend cannot do without: the conformance suite
    judges ops by it. ``passes()`` are the options of the pipeline that ``compile`` runs. ``needs`` are the packages it
    imports, ``runs_with`` those that running takes besides, ``install`` what to give pip. ``targets()`` lists targets
    for ``effc targets`` (a backend without it has one, its name; one with it says itself what a target may have after
    the colon), ``missing(target)`` what this machine lacks to run one, ``details(target)`` lines for
    ``effc targets TARGET``.
    """

    name: str
    compile: Callable[[Mapping[str, Any], CompileOptions], Any]
    run_graph: Callable[[Any, str], RunGraph]
    passes: Callable[[], Any] = _core_alone
    needs: tuple[str, ...] = ()
    runs_with: tuple[str, ...] = ()
    install: str = ""
    targets: Callable[[], Sequence[str]] | None = None
    missing: Callable[[str], Sequence[str]] | None = None
    details: Callable[[str], Sequence[str]] | None = None

    def require(self, running: bool = False) -> None:
        """EffcError, with what to install, if a package that it needs is missing."""
        lacking = _not_installed((*self.needs, *(self.runs_with if running else ())))
        if lacking:
            what = "running" if running and not _not_installed(self.needs) else "target"
            raise EffcError(
                f"{what} {self.name!r} needs {', '.join(lacking)}, not installed here",
                hint=f"pip install {self.install}" if self.install else None,
            )

    def listed(self) -> list[dict[str, Any]]:
        """Its lines of ``effc.targets()``."""
        out = []
        for target in self.targets() if self.targets else (self.name,):
            lacks = self.lacks(target)
            out.append({"name": target, "runs_here": not lacks, "missing": lacks})
        return out

    def lacks(self, target: str) -> list[str]:
        """What this machine lacks to run a target: packages, or instructions."""
        return [*_not_installed((*self.needs, *self.runs_with)), *(self.missing(target) if self.missing else ())]


def _not_installed(packages: Sequence[str]) -> list[str]:
    return [p for p in packages if importlib.util.find_spec(p) is None]


_known: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Makes a backend known in this process. EffcError if another one has its name."""
    if _known.get(backend.name, backend) != backend:
        raise EffcError(f"there is a backend {backend.name!r} already", hint="choose another name")
    _known[backend.name] = backend
    return backend


def backends() -> dict[str, Backend]:
    """All backends by name. EffcError if another package's cannot be imported."""
    for point in entry_points(group=GROUP):
        _load(point)
    return dict(_known)


def find(target: str) -> Backend:
    """The backend of a target. EffcError if there is none, or if it cannot be imported."""
    kind = target.partition(":")[0]
    if kind not in _known:
        for point in entry_points(group=GROUP, name=kind):
            _load(point)
    if kind not in _known or (target != kind and _known[kind].targets is None):
        raise EffcError(
            f"target {target!r} is not available in this version",
            hint="targets: " + ", ".join(t["name"] for b in backends().values() for t in b.listed()),
        )
    return _known[kind]


def _load(point: Any) -> None:
    if point.name in _known:
        return
    try:
        made = point.load()
    except Exception as e:
        raise EffcError(f"the backend {point.name!r} ({point.value}) cannot be imported: {e}") from e
    if not isinstance(made, Backend) or made.name != point.name:
        raise EffcError(f"{point.value}, registered as backend {point.name!r}, is not a Backend of that name")
    register(made)
