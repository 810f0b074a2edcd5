"""``EFFC_DUMP=dir``: every compilation leaves a folder there from which it can be run again, also when it fails or
crashes.

options.json          target, passes and the like; entry points with the files of each
NAME.inputs.pt        example inputs, (args, kwargs): tensors and plain Python values, read without running code
NAME.pt2              the exported program, where torch.export takes the model
NAME.module.pt        else the pickled model with its dynamic shapes, where it can be pickled
repro.py              compiles again and compares with torch: exit 0 equal, 1 not compiled, 2 different
report.json           what the compilation reported, if it got there
error.txt             the traceback, if it failed
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .runtime import debug
from .runtime.errors import EffcError

REPRO = '''"""Compiles again what lies in this folder and compares with torch: python repro.py [TARGET]

Exit code 0: results are equal within tolerance; 1: the compilation fails; 2: results differ.
"""

import json
import os
import sys
from pathlib import Path

os.environ["EFFC_MODEL_CACHE"] = "0"
os.environ.pop("EFFC_DUMP", None)

import torch  # noqa: E402
import torch.utils._pytree as pytree  # noqa: E402

import effc  # noqa: E402
import effc.frontend.torch.recurrent  # noqa: E402, F401  (operators that exported programs may hold)
from effc.frontend.torch.dtypes import to_numpy  # noqa: E402
from effc.runtime.selftest import difference  # noqa: E402

HERE = Path(__file__).parent
options = json.loads((HERE / "options.json").read_text())
if len(sys.argv) > 1:
    options["target"] = sys.argv[1]
entries, runs = {}, {}
for name, files in options.pop("entries").items():
    args, kwargs = torch.load(HERE / files["inputs"], weights_only=True) if files["inputs"] else ((), {})
    if "program" in files:
        try:
            model, dynamic = torch.export.load(HERE / files["program"]), None
        except Exception as e:
            hint = "If it holds operators of your own, import them here first."
            sys.exit(f"{files['program']} cannot be loaded: {e}\\n{hint}")
        if not args and not kwargs and model.example_inputs is not None:
            args, kwargs = model.example_inputs
    elif "module" in files:  # a pickle: only from people you trust
        model, dynamic = torch.load(HERE / files["module"], weights_only=False)
    else:
        sys.exit(f"entry {name}: torch.export refuses the model and it cannot be pickled; see error.txt")
    entries[name] = effc.Entry(model, args, kwargs, dynamic)
    runs[name] = model.module() if hasattr(model, "module_call_graph") else model
try:
    compiled = effc.compile_entries(entries, **options)
except effc.EffcError as e:
    print(f"not compiled: {e}")
    sys.exit(1)


def copies(e):
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, (tuple(e.args), dict(e.kwargs)))


def arrays(x):
    leaves = [torch.as_tensor(t) for t in pytree.tree_leaves(x) if isinstance(t, (torch.Tensor, bool, int, float))]
    return [to_numpy(t) for t in leaves]


different = False
for name, e in entries.items():
    args, kwargs = copies(e)
    with torch.no_grad():
        want = arrays(runs[name](*args, **kwargs))
    args, kwargs = copies(e)
    got = arrays(compiled.session().entry(name)(*args, **kwargs))
    if len(got) != len(want):
        print(f"{name}: {len(got)} results, torch gives {len(want)}")
        different = True
    for i, (a, b) in enumerate(zip(got, want)):
        error, problem = difference(a, b)
        print(f"{name}: result {i}: " + (problem or f"equal, error {error:.2e}"))
        different = different or problem is not None
sys.exit(2 if different else 0)
'''


class Dump:
    """One compilation's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def begin(entries: Mapping[str, Any], options: Mapping[str, Any]) -> Dump | None:
        """The folder with everything that is known before compiling; None without EFFC_DUMP. EffcError if it cannot be
        written.
        """
        base = os.environ.get("EFFC_DUMP")
        if not base:
            return None
        name = type(next(iter(entries.values())).model).__name__ if entries else "empty"
        try:
            for i in itertools.count():
                folder = Path(base) / f"{name}-{i}"
                try:
                    folder.mkdir(parents=True)
                    break
                except FileExistsError:
                    continue
            dump = Dump(folder)
            dump._write(entries, dict(options))
        except OSError as e:
            raise EffcError(
                f"EFFC_DUMP: cannot write to {base}: {e.strerror or e}", hint="choose another folder"
            ) from e
        return dump

    def _write(self, entries: Mapping[str, Any], options: dict[str, Any]) -> None:
        (self.folder / "repro.py").write_text(REPRO)
        files: dict[str, dict[str, Any]] = {n: {"inputs": None} for n in entries}
        self._json("options.json", {**options, "entries": files})  # already now: what follows may crash
        for n, e in entries.items():
            stem = "entry-" + quote(n, safe="") if n != "main" else "main"
            files[n]["inputs"] = self._inputs(f"{stem}.inputs.pt", e)
            files[n].update(self._model(stem, e))
            self._json("options.json", {**options, "entries": files})

    def _json(self, file: str, content: Any) -> None:
        (self.folder / file).write_text(json.dumps(content, indent=1, default=str) + "\n")

    def _inputs(self, file: str, e: Any) -> str | None:
        import torch

        from .frontend.torch.export import _tensor

        args = tuple(e.args) if isinstance(e.args, (list, tuple)) else (e.args,)
        try:
            torch.save(torch.utils._pytree.tree_map(_tensor, (args, dict(e.kwargs or {}))), self.folder / file)
            torch.load(self.folder / file, weights_only=True)
        except OSError:
            raise
        except Exception as why:
            self._note(f"the example inputs cannot be kept: {type(why).__name__}: {why}")
            (self.folder / file).unlink(missing_ok=True)
            return None
        return file

    def _model(self, stem: str, e: Any) -> dict[str, str]:
        import torch

        from .frontend.torch.export import export

        model, program = e.model, self.folder / f"{stem}.pt2"
        if isinstance(model, (str, os.PathLike)):
            if Path(model).suffix == ".pt2" and Path(model).exists():
                shutil.copyfile(model, program)
                return {"program": program.name}
            return {}
        try:
            if not isinstance(model, torch.export.ExportedProgram):
                model = export(model, e.args, e.kwargs, e.dynamic_shapes)
            torch.export.save(model, program)
            return {"program": program.name}
        except OSError:
            raise
        except Exception as why:
            program.unlink(missing_ok=True)
            self._note(f"there is no {program.name}: {type(why).__name__}: {why}")
        module = self.folder / f"{stem}.module.pt"
        try:
            torch.save((e.model, e.dynamic_shapes), module)
            return {"module": module.name}
        except OSError:
            raise
        except Exception as why:
            module.unlink(missing_ok=True)
            self._note(f"the model cannot be pickled: {type(why).__name__}: {why}")
        return {}

    def _note(self, text: str) -> None:
        with (self.folder / "notes.txt").open("a") as f:
            f.write(text + "\n")

    def failed(self) -> None:
        """Keeps the traceback of the exception that is being handled."""
        (self.folder / "error.txt").write_text(traceback.format_exc())
        debug.show(f"effc: the compilation that failed is kept in {self.folder}: run its repro.py")

    def done(self, report: Mapping[str, Any]) -> None:
        self._json("report.json", report)
