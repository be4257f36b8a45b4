"""Bundles in parts, to be put together again with every digest right, whatever the parts say."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_RECORD = struct.Struct("<BBBBIQQII32s")
_MAGIC = b"RHPKIDX1"


@dataclass
class DraftFrame:
    """A frame; `offset`, `size` and `digest` are computed unless they are given."""

    kind: int
    codec: int
    planes: int
    start: int
    stored: bytes
    plain: int
    zero: int = 0
    offset: int | None = None
    size: int | None = None
    digest: bytes | None = None

    def record(self, here: int) -> bytes:
        """The 64 bytes of the index, for a frame that lies at `here`."""
        digest = self.digest or hashlib.blake2b(self.stored, digest_size=32).digest()
        offset = here if self.offset is None else self.offset
        size = len(self.stored) if self.size is None else self.size
        values = (self.kind, self.codec, self.planes, 0, self.zero, self.start, offset, size, self.plain)
        return _RECORD.pack(*values, digest)


@dataclass
class Draft:
    """`document` is bundle.json as a value; the pins of packs and documents in it are computed.
    `packs` and `documents` go by their names; `others` are files that nothing pins."""

    document: dict[str, Any]
    packs: dict[str, list[DraftFrame]]
    documents: dict[str, bytes]
    others: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: Mapping[str, bytes]) -> Draft:
        """The parts of a good bundle."""
        document = json.loads(tree["bundle.json"])
        packs = {pack["file"]: _frames(tree[pack["file"]], pack["index"]) for pack in document["packs"]}
        names = [release["document"]["file"] for release in document["releases"]]
        others = {name: data for name, data in tree.items() if name.startswith("signatures/")}
        return cls(document, packs, {name: tree[name] for name in names}, others)

    def tree(self) -> dict[str, bytes]:
        """The bundle's files, all digests recomputed."""
        files = {**self.documents, **self.others}
        pinned = {pack["file"]: pack for pack in self.document["packs"]}
        for name, frames in self.packs.items():
            body = b"".join(frame.stored for frame in frames)
            files[name] = body + index_of(frames)
            if name in pinned:
                pin_pack(pinned[name], files[name], len(body))
        for release in self.document["releases"]:
            stored = release["document"]
            if stored.get("file") in files:
                stored.update(pin(files[stored["file"]]))
        files["bundle.json"] = canonical(self.document)
        return files


def index_of(frames: list[DraftFrame]) -> bytes:
    """The index of a pack."""
    records, here = [], 0
    for frame in frames:
        records.append(frame.record(here))
        here += len(frame.stored)
    return _MAGIC + struct.pack("<II", len(frames), 0) + b"".join(records)


def pin(data: bytes) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def pin_pack(stated: dict[str, Any], data: bytes, index_offset: int) -> None:
    """Pin a pack's bytes, whatever its index says."""
    index = data[index_offset:]
    digest = hashlib.blake2b(index, digest_size=32).hexdigest()
    stated.update(pin(data), index={"offset": index_offset, "length": len(index), "digest": digest})


def canonical(value: Any) -> bytes:
    """Canonical JSON (FORMAT.md, section 3) of values without floats."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def read_tree(root: Path) -> dict[str, bytes]:
    """All files below a directory, by their path."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def write_tree(root: Path, tree: Mapping[str, bytes]) -> None:
    """The files of a bundle as a directory."""
    for name, data in tree.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _frames(data: bytes, index: Mapping[str, int]) -> list[DraftFrame]:
    records = data[index["offset"] + 16 : index["offset"] + index["length"]]
    frames = []
    for kind, codec, planes, _, _, start, offset, stored, plain, _ in _RECORD.iter_unpack(records):
        frames.append(DraftFrame(kind, codec, planes, start, data[offset : offset + stored], plain))
    return frames
