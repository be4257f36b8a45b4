"""Stream metadata: what installers read (stream-metadata-go's structures).

Parsed tolerantly, since the documents of every era differ: missing, empty and null digests
and signatures mean the same. The bytes that were given are what the bundle keeps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DOCUMENT = 32 << 20


# What the manifest can hold (bundle/FORMAT.md, section 4); said here, where the document has a name.
_Text = Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f-\x9f]{0,255}$")]
_Name = Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f-\x9f]{1,255}$")]
_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class _File(_Model):
    location: str
    sha256: str | None = None
    uncompressed_sha256: str | None = Field(None, alias="uncompressed-sha256")


class _Platform(_Model):
    release: _Text = ""
    formats: dict[_Name, dict[_Word, _File]] = {}


class _Arch(_Model):
    artifacts: dict[_Name, _Platform] = {}


class _Stream(_Model):
    stream: _Text
    architectures: dict[_Word, _Arch]


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
    if len(data) > MAX_DOCUMENT:
        raise HostileInput(f"{what}: {len(data)} bytes are no stream document")
    try:
        value = json.loads(data, object_pairs_hook=_unique)
        stream = _Stream.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HostileInput(f"{what}: {where}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise HostileInput(f"{what}: not JSON: {error}") from None
    return StreamDocument(stream.stream, tuple(_files(stream)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("one object names a key twice")
    return found


def _files(stream: _Stream) -> Iterable[Published]:
    for arch, each in stream.architectures.items():
        for platform, artifacts in each.artifacts.items():
            for key, roles in artifacts.formats.items():
                for role, file in roles.items():
                    yield Published(
                        name=unquote(urlsplit(file.location).path).rsplit("/", 1)[-1],
                        arch=arch,
                        platform=platform,
                        format=key,
                        role=role,
                        release=artifacts.release,
                        sha256=(file.sha256 or "").lower(),
                        uncompressed_sha256=(file.uncompressed_sha256 or "").lower(),
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
    architectures: dict[str, Any] = {}
    newest = 0
    for each in files:
        item = each.published
        artifacts = architectures.setdefault(item.arch, {"artifacts": {}})["artifacts"]
        platform = artifacts.setdefault(item.platform, {"release": item.release, "formats": {}})
        platform["formats"].setdefault(item.format, {})[item.role] = _file_json(each)
        newest = max(newest, each.mtime)
    modified = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {"last-modified": modified, "generator": generator}
    document = {"stream": stream, "metadata": metadata, "architectures": architectures}
    return (json.dumps(document, indent=4, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _file_json(each: Described) -> dict[str, Any]:
    item = each.published
    found: dict[str, Any] = {"location": item.name, "sha256": item.sha256, "size": each.size}
    if item.uncompressed_sha256 != item.sha256:
        found["uncompressed-sha256"] = item.uncompressed_sha256
        found["uncompressed-size"] = each.uncompressed_size
    return found
