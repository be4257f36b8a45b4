"""Writing an image: the runtime's layers first, then ours, then config and manifest.

All bytes are decided here: layers are ustar in stored gzip, documents are canonical JSON,
times are the caller's. The same inputs give the same manifest digest on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from rehydrator.core.errors import HostileInput, LimitExceeded, UsageError
from rehydrator.oci import tarball
from rehydrator.oci.documents import (
    CONFIG,
    LAYER_GZIP,
    MANIFEST,
    OCI_LAYER,
    Config,
    Descriptor,
    Object,
    Platform,
    check_size,
    encode,
)
from rehydrator.oci.stored_gzip import StoredGzipWriter
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rehydrator.core.canonical_json import Json
    from rehydrator.core.reader import Reader

MAX_LAYERS: Final = 100
MAX_PAYLOAD: Final = 1 << 30
CREATED_BY: Final = "rehydrator build"  # marks our layers in the history, which every tool keeps

_BLOCK = 4 << 20


class Blob(Protocol):
    """A blob being written. Digest and size are known once it is complete."""

    def write(self, data: bytes, /) -> object: ...

    def descriptor(self, media_type: str) -> Descriptor: ...


class BlobSink(Protocol):
    """Where blobs go."""

    def blob(self) -> AbstractContextManager[Blob]:
        """A new blob; complete when the context ends without an error."""
        ...


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A file of this machine, and its name in the container, such as "bundle/bundle.json"."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be read: `open` gives the bytes of a layer, whose size is checked."""

    what: str
    config: Config
    layers: tuple[Descriptor, ...]
    documents: tuple[Descriptor, ...]
    open: Callable[[Descriptor], Reader]


@dataclass(frozen=True, slots=True)
class Options:
    """What an image says of itself. `created` is in seconds since 1970; `platform` is the
    runtime's by default.
    """

    created: int = 0
    platform: Platform | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


def write_image(
    sink: BlobSink, runtime: Image | None, groups: Sequence[Sequence[LayerFile]], options: Options
) -> Descriptor:
    """Write all blobs of an image and return its manifest's descriptor.

    Each group becomes a layer, or several where it holds more than 1 GiB.

    Raises:
        LimitExceeded: a file above 1 GiB, or more than 100 layers.
        UsageError: the runtime is for another platform, or two files claim one name.
        HostileInput: a blob of the runtime is missing or of another size.
    """
    parts = [part for group in groups for part in _split(group)]
    _check_names(parts)
    layers = [] if runtime is None else list(runtime.layers)
    if len(layers) + len(parts) > MAX_LAYERS:
        raise LimitExceeded(f"{len(layers) + len(parts)} layers, above the limit of {MAX_LAYERS}")
    platform = _choose_platform(runtime, options.platform)
    written = [_copy_layer(sink, runtime, layer) for layer in layers] if runtime else []
    diff_ids = list(runtime.config.diff_ids) if runtime else []
    for part in parts:
        descriptor, diff_id = _write_layer(sink, part)
        written.append(descriptor)
        diff_ids.append(diff_id)
    config = _write_json(sink, CONFIG, _config(runtime, platform, diff_ids, len(parts), options))
    manifest: Object = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in written],
    }
    if options.annotations:
        manifest["annotations"] = dict(options.annotations)
    made = _write_json(sink, MANIFEST, manifest)
    return Descriptor(made.media_type, made.digest, made.size, (), platform)


def _split(group: Sequence[LayerFile]) -> Iterator[list[LayerFile]]:
    part: list[LayerFile] = []
    held = 0
    for item in sorted(group, key=lambda item: item.name):
        size = item.path.stat().st_size
        if size > MAX_PAYLOAD:
            raise LimitExceeded(f"{item.path}: {size} bytes do not fit into a layer of {MAX_PAYLOAD}")
        if held + size > MAX_PAYLOAD:
            yield part
            part, held = [], 0
        part.append(item)
        held += size
    if part:
        yield part


def _check_names(parts: Sequence[Sequence[LayerFile]]) -> None:
    names = [item.name for part in parts for item in part]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two files claim the name {twice} in the image")


def _choose_platform(runtime: Image | None, asked: Platform | None) -> Platform:
    if runtime is None:
        return asked or Platform("amd64", "linux")
    own = runtime.config.platform
    if asked and (asked.architecture, asked.os) != (own.architecture, own.os):
        raise UsageError(
            f"{runtime.what} is for {own.os}/{own.architecture}, not {asked.os}/{asked.architecture}"
        )
    return own


def _copy_layer(sink: BlobSink, runtime: Image, layer: Descriptor) -> Descriptor:
    media_type = OCI_LAYER.get(layer.media_type)
    if media_type is None:
        raise UsageError(f"{runtime.what}: a layer of type {layer.media_type!r:.80} cannot be built upon")
    reader = runtime.open(layer)
    check_size(reader, layer, f"{runtime.what}: {layer.digest}")
    with sink.blob() as blob:
        for piece in pieces(reader, 0, reader.size):
            blob.write(piece)
    copied = blob.descriptor(media_type)
    if copied.digest != layer.digest:
        raise HostileInput(f"{runtime.what}: {layer.digest}: damaged (its SHA-256 differs)")
    return copied


def _write_layer(sink: BlobSink, files: Sequence[LayerFile]) -> tuple[Descriptor, str]:
    with sink.blob() as blob:
        packer = StoredGzipWriter(blob.write)
        for directory in tarball.parents(item.name for item in files):
            packer.write(tarball.directory_header(directory))
        for item in files:
            _write_file(packer, item)
        packer.write(tarball.END)
        packer.close()
    return blob.descriptor(LAYER_GZIP), f"sha256:{packer.plain_sha256}"


def _write_file(packer: StoredGzipWriter, item: LayerFile) -> None:
    reader = FileReader(item.path)
    try:
        packer.write(tarball.file_header(item.name, reader.size))
        for piece in pieces(reader, 0, reader.size):
            packer.write(piece)
        packer.write(tarball.padding(reader.size))
    finally:
        reader.close()


def _config(
    runtime: Image | None, platform: Platform, diff_ids: list[str], ours: int, options: Options
) -> Object:
    created = datetime.fromtimestamp(options.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    base = runtime.config.document.get("config") if runtime else None
    container: Object = dict(base) if isinstance(base, dict) else {}
    labels = container.get("Labels")
    merged: Object = (dict(labels) if isinstance(labels, dict) else {}) | dict(options.labels)
    if merged:
        container["Labels"] = merged
    mark: Json = {"created": created, "created_by": CREATED_BY}
    return {
        **platform.to_json(),
        "created": created,
        "config": container,
        "rootfs": {"type": "layers", "diff_ids": [*diff_ids]},
        "history": [*_history(runtime), *([mark] * ours)],
    }


def _history(runtime: Image | None) -> list[Json]:
    if runtime is None:
        return []
    if runtime.config.created_by():
        return list(runtime.config.history)
    return [{"created_by": "runtime"} for _ in runtime.layers]


def _write_json(sink: BlobSink, media_type: str, value: Object) -> Descriptor:
    with sink.blob() as blob:
        blob.write(encode(value, media_type))
    return blob.descriptor(media_type)


def pieces(reader: Reader, offset: int, size: int) -> Iterator[bytes]:
    """`size` bytes of a reader in blocks of at most 4 MiB."""
    end = offset + size
    while offset < end:
        yield reader.pread(offset, min(_BLOCK, end - offset))
        offset += _BLOCK
