"""The .effc container: a zip of stored entries, weights aligned to pages. See docs/architecture.md for the manifest.

Writing goes through ArtifactWriter, inspection through ArtifactReader; running an artifact does not pass through here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import _rt
from .errors import EffcError

FORMAT_VERSION = 1
ABI_VERSION = 1
PAGE = 4096
ALIGN = 64  # of a weight inside its segment
CHUNK = 4 << 20  # bytes under one checksum

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<IIQI")
_DOS_DATE = (1980 - 1980) << 9 | 1 << 5 | 1  # a fixed date: equal content gives equal files
_PAD_ID = 0xEFFC  # extra field that only pads
_MAX32 = 0xFFFFFFFF

Buffer = bytes | bytearray | memoryview


def _bytes_view(data: Any) -> memoryview:
    """A flat byte view of a bytes-like object or a C-contiguous numpy array."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        return memoryview(data) if data.size else memoryview(b"")
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


class _ZipStream:
    """Writes stored entries one after the other; every entry's data start at a multiple of its alignment."""

    def __init__(self, f: BinaryIO) -> None:
        self.f = f
        self.at = 0
        self.directory: list[tuple[bytes, int, int, int]] = []  # name, crc, size, offset
        self.sha256: dict[str, str] = {}

    def _write(self, data: Buffer) -> None:
        self.f.write(data)
        self.at += len(data)

    def add(self, path: str, parts: Iterable[Buffer], align: int = 1) -> int:
        """Appends an entry and returns its size."""
        views = [_bytes_view(p) for p in parts]
        crc, size, sha = 0, 0, hashlib.sha256()
        for view in views:
            crc = zlib.crc32(view, crc)
            sha.update(view)
            size += view.nbytes
        name = path.encode()
        offset = self.at
        big = size >= _MAX32
        extra = struct.pack("<HHQQ", 1, 16, size, size) if big else b""
        start = offset + _LOCAL.size + len(name) + len(extra)
        if align > 1 and start % align:
            pad = align - start % align
            pad += align if pad < 4 else 0
            extra += struct.pack("<HH", _PAD_ID, pad - 4) + bytes(pad - 4)
        size32 = _MAX32 if big else size
        self._write(
            _LOCAL.pack(
                0x04034B50, 45 if big else 20, 0x800, 0, 0, _DOS_DATE, crc, size32, size32, len(name), len(extra)
            )
        )
        self._write(name + extra)
        for view in views:
            self._write(view)
        self.directory.append((name, crc, size, offset))
        self.sha256[path] = sha.hexdigest()
        return size

    def finish(self) -> None:
        start = self.at
        for name, crc, size, offset in self.directory:
            wide = [v for v in (size, size, offset) if v >= _MAX32]
            extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
            size32, offset32 = min(size, _MAX32), min(offset, _MAX32)
            version = 45 if wide else 20
            self._write(
                _CENTRAL.pack(
                    0x02014B50,
                    version,
                    version,
                    0x800,
                    0,
                    0,
                    _DOS_DATE,
                    crc,
                    size32,
                    size32,
                    len(name),
                    len(extra),
                    0,
                    0,
                    0,
                    0o644 << 16,
                    offset32,
                )
            )
            self._write(name + extra)
        size, count = self.at - start, len(self.directory)
        if start >= _MAX32 or count >= 0xFFFF:
            end64 = self.at
            self._write(_END64.pack(0x06064B50, _END64.size - 12, 45, 45, 0, 0, count, count, size, start))
            self._write(_LOCATOR64.pack(0x07064B50, 0, end64, 1))
        self._write(
            _END.pack(
                0x06054B50, 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), min(size, _MAX32), min(start, _MAX32), 0
            )
        )


class ArtifactWriter:
    """Collects an artifact's parts and writes them in one go.

    ``add_weight`` returns the (segment, offset) that a constant value names; equal bytes are stored once.
    ``save`` writes under a temporary name, syncs, and renames: the final name never holds a partial file.
    """

    def __init__(self) -> None:
        self._weights: list[list[Buffer]] = []
        self._sizes: list[int] = []
        self._streamed: dict[int, int] = {}  # segment -> bytes under one checksum
        self._known: dict[tuple[int, int], list[tuple[int, int, memoryview]]] = {}
        self._code: list[tuple[str, Buffer]] = []
        self._files: dict[str, Buffer] = {}

    def add_weight(self, data: Any, *, segment: int = 0) -> tuple[int, int]:
        """Adds a numpy array or bytes; returns its segment and byte offset. It must not change until ``save``."""
        view = _bytes_view(data)
        key = (segment, _rt.xxh3(view) ^ view.nbytes)
        for seg, offset, other in self._known.get(key, ()):
            if other.nbytes == view.nbytes and other == view:
                return seg, offset
        while len(self._weights) <= segment:
            self._weights.append([])
            self._sizes.append(0)
        pad = -self._sizes[segment] % ALIGN
        if pad:
            self._weights[segment].append(bytes(pad))
        offset = self._sizes[segment] + pad
        self._weights[segment].append(view)
        self._sizes[segment] = offset + view.nbytes
        self._known.setdefault(key, []).append((segment, offset, view))
        return segment, offset

    def add_streamed(self, data: Any, chunk: int) -> tuple[int, int]:
        """Adds a weight that is read while a model runs, to a segment of its own, with a checksum of each ``chunk``
        bytes, a multiple of the page. Returns (segment, 0)."""
        segment = max(len(self._weights), 1)  # 0 is for weights that are mapped
        while len(self._weights) <= segment:
            self._weights.append([])
            self._sizes.append(0)
        view = _bytes_view(data)
        self._weights[segment].append(view)
        self._sizes[segment] = view.nbytes
        self._streamed[segment] = chunk
        return segment, 0

    def add_code(self, data: Buffer, name: str = "cpu.so") -> None:
        """Adds a shared object under code/."""
        self._code.append((f"code/{name}", data))

    def add_file(self, path: str, data: Buffer | str) -> None:
        """Adds any other member: sources/, selftest/, graph/."""
        parts = path.split("/")
        if not path or path.startswith("/") or "\\" in path or ":" in path or any(p in ("", ".", "..") for p in parts):
            raise EffcError(f"'{path}' is not a plain relative path")
        if path == "manifest.json" or parts[0] in ("code", "weights") or path in self._files:
            raise EffcError(f"'{path}' is already taken in the artifact")
        self._files[path] = data.encode() if isinstance(data, str) else data

    def write(self, f: BinaryIO, manifest: Mapping[str, Any]) -> None:
        """Writes the artifact to an open binary file. ``manifest`` has at least target, isa, entries; this adds format,
        abi, segments, code and sha256."""
        z = _ZipStream(f)
        segments, code = [], []
        for path, data in self._code:
            z.add(path, [data], ALIGN)
            code.append({"path": path, "xxh3": f"{_rt.xxh3(_bytes_view(data)):016x}", "sha256": z.sha256[path]})
        for i, parts in enumerate(self._weights):
            path = f"weights/{i}.bin"
            nbytes = z.add(path, parts, PAGE)
            chunk = self._streamed.get(i, CHUNK)
            more = {"stream": True} if i in self._streamed else {}
            segments.append({"path": path, "nbytes": nbytes, "chunk": chunk, "xxh3": _chunk_sums(parts, chunk), **more})
        for path, data in self._files.items():
            z.add(path, [data])
        full = {
            "format": FORMAT_VERSION,
            "abi": ABI_VERSION,
            **manifest,
            "segments": segments,
            "code": code,
            "sha256": dict(z.sha256),
        }
        full.setdefault("states", {})
        full.setdefault("report", {})
        try:
            text = json.dumps(full, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as e:
            raise EffcError(f"the manifest cannot be written as JSON: {e}") from e
        z.add("manifest.json", [text.encode()])
        z.finish()

    def save(self, path: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
        """Writes the artifact to ``path``: all of it or nothing. EffcError when the disk is full or not writable."""
        write_file_atomically(path, lambda f: self.write(f, manifest))


def write_file_atomically(path: str | os.PathLike[str], write: Any) -> None:
    """Calls ``write(file)`` on a temporary file beside ``path``, then renames it. Leaves nothing behind on failure."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        raise EffcError(
            f"cannot write '{target}': {e.strerror or e}", hint="free some space or choose another place"
        ) from e
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _chunk_sums(parts: list[Buffer], chunk: int) -> list[str]:
    """XXH3 of each ``chunk`` bytes of the concatenation, as hex."""
    sums: list[str] = []
    pending = bytearray()
    for part in parts:
        view = _bytes_view(part)
        at = 0
        if pending:
            at = min(chunk - len(pending), view.nbytes)
            pending += view[:at]
            if len(pending) == chunk:
                sums.append(f"{_rt.xxh3(pending):016x}")
                pending = bytearray()
        while view.nbytes - at >= chunk:
            sums.append(f"{_rt.xxh3(view[at : at + chunk]):016x}")
            at += chunk
        pending += view[at:]
    if pending:
        sums.append(f"{_rt.xxh3(pending):016x}")
    return sums


# What zipfile raises for damaged or odd archives.
_DAMAGE = (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, struct.error, zlib.error)


class ArtifactReader:
    """Looks into an artifact without loading it: manifest, members, SHA-256."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
            names = self._zip.namelist()
            if len(set(names)) != len(names):
                raise EffcError(f"'{path}' is refused: an entry appears twice")
            for info in self._zip.infolist():
                parts = info.filename.split("/")
                if info.filename.startswith("/") or "\\" in info.filename or any(p in ("", ".", "..") for p in parts):
                    raise EffcError(
                        f"'{path}' is refused: entry path '{info.filename[:80]}' is not a plain relative path"
                    )
                if info.compress_type != zipfile.ZIP_STORED:
                    raise EffcError(f"'{path}' is refused: entry '{info.filename}' is compressed")
            self.manifest: dict[str, Any] = json.loads(self.read("manifest.json"))
        except EffcError:
            raise
        except OSError as e:
            raise EffcError(f"cannot open '{path}': {e.strerror or e}") from e
        except _DAMAGE as e:
            raise EffcError(f"'{path}' is damaged or not an effc artifact: {e}") from e
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT_VERSION:
            found = self.manifest.get("format") if isinstance(self.manifest, dict) else None
            raise EffcError(
                f"'{path}' has format version {found}, this effc reads version {FORMAT_VERSION}",
                hint="compile the model again",
            )

    def __enter__(self) -> ArtifactReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()

    def names(self) -> list[str]:
        return self._zip.namelist()

    def size(self, path: str) -> int:
        return self._zip.getinfo(path).file_size

    def read(self, path: str) -> bytes:
        """One member's bytes; its CRC is checked on the way."""
        try:
            return self._zip.read(path)
        except KeyError:
            raise EffcError(f"'{self.path}' has no member '{path}'") from None
        except (*_DAMAGE, OSError) as e:
            raise EffcError(f"'{self.path}' is damaged: {path}: {e}") from e

    def extract(self, folder: str | os.PathLike[str], prefix: str = "") -> list[Path]:
        """Writes the members under ``prefix`` into ``folder``."""
        written = []
        for name in self.names():
            if name.startswith(prefix):
                to = Path(folder) / name
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(self.read(name))
                written.append(to)
        return written

    def verify(self) -> None:
        """Checks the SHA-256 of every member against the manifest. EffcError names the first that differs, is missing,
        or is not listed."""
        expected = self.manifest.get("sha256")
        if not isinstance(expected, dict):
            raise EffcError(f"'{self.path}' has no list of SHA-256 sums")
        for name in self.names():
            if name != "manifest.json" and name not in expected:
                raise EffcError(f"'{self.path}': member '{name}' is not listed in the manifest")
        for name, digest in expected.items():
            sha = hashlib.sha256()
            try:
                with self._zip.open(name) as f:
                    while block := f.read(1 << 20):
                        sha.update(block)
            except KeyError:
                raise EffcError(f"'{self.path}' lacks '{name}'") from None
            except (*_DAMAGE, OSError) as e:
                raise EffcError(f"'{self.path}' is damaged: {name}: {e}") from e
            if sha.hexdigest() != digest:
                raise EffcError(f"'{self.path}' is damaged: the SHA-256 of '{name}' does not match")
