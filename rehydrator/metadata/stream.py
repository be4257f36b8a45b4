"""Stream metadata: what installers read (stream-metadata-go's structures).

Parsed tolerantly, since the documents of every era differ: missing, empty and null digests
and signatures mean the same. The bytes that were given are what the bundle keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rehydrator.metadata.document import Document, FileKey, NewFile, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rehydrator.metadata.document import File


@dataclass(frozen=True, slots=True)
class Published:
    """One file that a stream document names; digests are empty where it has none."""

    name: str
    arch: str
    platform: str
    format: str
    role: str
    release: str
    sha256: str
    uncompressed_sha256: str


@dataclass(frozen=True, slots=True)
class StreamDocument:
    """A parsed stream document."""

    stream: str
    files: tuple[Published, ...]


def parse(data: bytes, what: str) -> StreamDocument:
    """The files that a stream document names.

    Raises:
        HostileInput: it is no stream document; says where.
    """
    document = Document.parse(data, what)
    return StreamDocument(document.stream, tuple(_published(file) for file in document.files))


def _published(file: File) -> Published:
    return Published(
        name=file.name,
        arch=file.key.arch,
        platform=file.key.platform,
        format=file.key.format,
        role=file.key.role,
        release=file.release,
        sha256=file.sha256,
        uncompressed_sha256=file.uncompressed_sha256,
    )


@dataclass(frozen=True, slots=True)
class Described:
    """A file as the written document describes it; sizes in bytes."""

    published: Published
    size: int
    uncompressed_size: int
    mtime: int


def write(stream: str, generator: str, files: Iterable[Described]) -> bytes:
    """A stream document for files that came without one; `size` is an extension of ours."""
    described = list(files)
    newest = max((each.mtime for each in described), default=0)
    modified = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    new = [_new_file(each) for each in described]
    return Document.new(stream).updated(new, last_modified=modified, generator=generator).data


def _new_file(each: Described) -> NewFile:
    item = each.published
    members: dict[str, str | int] = {"location": quoted(item.name), "sha256": item.sha256, "size": each.size}
    if item.uncompressed_sha256 != item.sha256:
        members["uncompressed-sha256"] = item.uncompressed_sha256
        members["uncompressed-size"] = each.uncompressed_size
    return NewFile(FileKey(item.arch, item.platform, item.format, item.role), item.release, members)
