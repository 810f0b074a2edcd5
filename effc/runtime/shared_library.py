"""How effc's own C++ libraries are built: by the wheel build into the package, or on demand from a source checkout into
a cache.

An installed wheel carries ``lib/lib<name>.so`` beside the sources' folder and no compiler is ever looked for; a source
checkout compiles once per content of its sources, headers and flags.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .errors import EffcError

# The baseline ISA: what runs here is bookkeeping. -O3 is for loops such as the checksum's, which it vectorises.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=x86-64",
    "-mtune=generic",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-Wall",
    "-Wextra",
)


def compiler() -> list[str]:
    """The C++ compiler's command: $CXX, else g++, clang++, else zig's; EffcError when there is none."""
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("g++", "clang++"):
        if shutil.which(name):
            return [name]
    with contextlib.suppress(ImportError):
        import ziglang

        return [str(Path(ziglang.__file__).parent / "zig"), "c++"]
    raise EffcError("no C++ compiler was found", hint="install g++ or clang++, set CXX, or pip install ziglang")


def cache_dir() -> Path:
    """$EFFC_CACHE_DIR, else ~/.cache/effc."""
    named = os.environ.get("EFFC_CACHE_DIR")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "effc"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class SharedLibrary:
    """``name`` (effc_rt: libeffc_rt.so) from ``folder/*.cpp``; ``parts`` translation units are compiled side by side,
    since most of the time goes into the standard headers. ``cache`` is its folder in the cache."""

    name: str
    folder: Path
    includes: tuple[Path, ...]
    cache: str
    flags: tuple[str, ...] = ()
    parts: int = 2

    @property
    def file(self) -> str:
        return f"lib{self.name}.so"

    @property
    def stamp(self) -> str:
        return f"lib{self.name}.hash"

    def sources(self) -> list[Path]:
        """The translation units; empty in a wheel that does not carry them."""
        return sorted(self.folder.glob("*.cpp"))

    def content_hash(self, extra: Sequence[str] = ()) -> str:
        """A hash of what decides the library: sources, headers, flags. Not of the compiler's name, which may differ
        between the machine that built a wheel and the one that runs it."""
        h = hashlib.sha256()
        headers = [*self.folder.glob("*.hpp"), *(p for i in self.includes for p in i.glob("*.h"))]
        for path in sorted((*self.sources(), *headers)):
            h.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        h.update("\0".join((*FLAGS, *self.flags, *extra)).encode())
        return h.hexdigest()[:20]

    def build(self, out_dir: str | os.PathLike[str], extra_flags: Sequence[str] = ()) -> Path:
        """Compiles the library into ``out_dir`` (atomically) and returns its path. EffcError with the compiler's
        output when it fails. A file ``lib<name>.hash`` beside it says which sources it came from."""
        units = self.sources()
        if not units:
            raise EffcError(f"the sources of {self.name} are not installed", hint="reinstall effc")
        out = Path(out_dir)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir=out) as name:
            folder = Path(name)
            include = [f"-I{i}" for i in (*self.includes, self.folder)]
            common = [*compiler(), *FLAGS, *self.flags, *extra_flags, *include]
            objects = []
            for i in range(self.parts):
                source = folder / f"part{i}.cpp"
                source.write_text("".join(f'#include "{u.name}"\n' for u in units[i :: self.parts]))
                objects.append(source.with_suffix(".o"))
            with ThreadPoolExecutor(self.parts) as pool:
                list(pool.map(lambda o: self._run([*common, "-c", str(o.with_suffix(".cpp")), "-o", str(o)]), objects))
            self._run([*common, "-shared", *map(str, objects), "-o", str(folder / self.file), "-ldl"])
            os.chmod(folder / self.file, 0o755)
            os.replace(folder / self.file, out / self.file)
        (out / self.stamp).write_text(self.content_hash(extra_flags))
        return out / self.file

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EffcError(f"building {self.name} failed:\n{shlex.join(command)}\n{done.stderr[-4000:]}")

    def find(self) -> Path:
        """The one in the package (``lib`` beside the sources' folder) unless its sources have changed since, else one
        compiled into the cache."""
        packaged = self.folder.parent / "lib" / self.file
        if packaged.exists():
            stamp = packaged.with_name(self.stamp)
            if not self.sources() or not stamp.exists() or stamp.read_text().strip() == self.content_hash():
                return packaged
        target = cache_dir() / self.cache / self.content_hash()
        if not (target / self.file).exists():
            with _locked(target.parent / "lock"):
                if not (target / self.file).exists():
                    self.build(target)
        return target / self.file
