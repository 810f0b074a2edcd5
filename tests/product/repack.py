"""An artifact written anew with other members: what a careful forger could do, checksums and all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from effc.runtime.artifact import ArtifactReader, ArtifactWriter


def repack(source: Path, to: Path, members: Mapping[str, bytes]) -> Path:
    """``source`` with these members replaced, everything else as it was. Returns ``to``."""
    with ArtifactReader(source) as r:
        assert set(members) <= set(r.names())
        w = ArtifactWriter()
        data = {n: members.get(n) or r.read(n) for n in r.names() if n != "manifest.json"}
        for name, content in data.items():
            kind, _, rest = name.partition("/")
            if kind == "code":
                w.add_code(content, rest)
            elif kind != "weights":
                w.add_file(name, content)
        for i, segment in enumerate(r.manifest["segments"]):
            assert w.add_weight(data[segment["path"]], segment=i) == (i, 0)
        made = ("format", "abi", "segments", "code", "sha256")
        w.save(to, {k: v for k, v in r.manifest.items() if k not in made})
    return to
