"""How libeffc_rt.so is built: by the wheel build into the package, or on demand from a source checkout into a cache.

``library()`` is what the loader calls. An installed wheel carries ``effc/runtime/lib/libeffc_rt.so`` and no compiler is
ever looked for; a source checkout compiles once per content of ``src`` and ``include``.
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
from pathlib import Path

from .errors import EffcError

ROOT = Path(__file__).resolve().parent
NAME = "libeffc_rt.so"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=x86-64",
    "-mtune=generic",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-DEFFC_RT_BUILD",
    "-Wall",
    "-Wextra",
    "-pthread",
)
# The baseline ISA: what runs here is bookkeeping. -O3 is for the loop of the checksum, which it vectorises.


PARTS = 2  # compiled side by side, each as one translation unit: most of the time goes into the standard headers


def include_dir() -> Path:
    """Where effc.h and effc_kernel.h are, in a checkout and in an installed wheel."""
    return ROOT / "include"


def sources() -> list[Path]:
    """The translation units of effc_rt; empty in a wheel that does not carry them."""
    return sorted((ROOT / "src").glob("*.cpp"))


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


def content_hash(extra: Sequence[str] = ()) -> str:
    """A hash of what decides the library: sources, headers, flags. Not of the compiler's name, which may differ
    between the machine that built a wheel and the one that runs it."""
    h = hashlib.sha256()
    for path in sorted((*sources(), *(ROOT / "src").glob("*.hpp"), *include_dir().glob("*.h"))):
        h.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    h.update("\0".join((*FLAGS, *extra)).encode())
    return h.hexdigest()[:20]


def build(out_dir: str | os.PathLike[str], extra_flags: Sequence[str] = ()) -> Path:
    """Compiles effc_rt into ``out_dir/libeffc_rt.so`` (atomically) and returns that path. EffcError with the compiler's
    output when it fails. A file ``libeffc_rt.hash`` beside it says which sources it came from."""
    units = sources()
    if not units:
        raise EffcError("the sources of effc_rt are not installed", hint="reinstall effc")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".effc_rt-", dir=out) as name:
        folder = Path(name)
        common = [*compiler(), *FLAGS, *extra_flags, f"-I{include_dir()}", f"-I{ROOT / 'src'}"]
        objects = []
        for i in range(PARTS):
            source = folder / f"part{i}.cpp"
            source.write_text("".join(f'#include "{u.name}"\n' for u in units[i::PARTS]))
            objects.append(source.with_suffix(".o"))
        with ThreadPoolExecutor(PARTS) as pool:
            list(pool.map(lambda o: _run([*common, "-c", str(o.with_suffix(".cpp")), "-o", str(o)]), objects))
        _run([*common, "-shared", *map(str, objects), "-o", str(folder / NAME), "-ldl"])
        os.chmod(folder / NAME, 0o755)
        os.replace(folder / NAME, out / NAME)
    (out / "libeffc_rt.hash").write_text(content_hash(extra_flags))
    return out / NAME


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EffcError(f"building effc_rt failed:\n{shlex.join(command)}\n{done.stderr[-4000:]}")


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


def library() -> Path:
    """The runtime library: $EFFC_RT_LIB, else the one in the package unless its sources have changed since, else one
    compiled into the cache."""
    named = os.environ.get("EFFC_RT_LIB")
    if named:
        return Path(named)
    packaged = ROOT / "lib" / NAME
    if packaged.exists():
        stamp = packaged.with_name("libeffc_rt.hash")
        if not sources() or not stamp.exists() or stamp.read_text().strip() == content_hash():
            return packaged
    target = cache_dir() / "rt" / content_hash()
    if not (target / NAME).exists():
        with _locked(target.parent / "lock"):
            if not (target / NAME).exists():
                build(target)
    return target / NAME


def main() -> None:
    """Prints what a C program needs: the folders of effc.h and of libeffc_rt.so."""
    print(f"include {include_dir()}")
    print(f"lib {library().parent}")


if __name__ == "__main__":
    main()
