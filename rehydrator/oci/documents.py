"""Descriptors, manifests, indexes and image configurations, read strictly.

Source: OCI image specification 1.1 (descriptor, manifest, index, config). Docker's schema 2
is the same structure under other media types. What a document is must agree with what its
descriptor says it is, and nothing is both a manifest and an index (CVE-2021-41190).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rehydrator.core import canonical_json
from rehydrator.core.digest import parse_sha256, sha256_hex
from rehydrator.core.errors import DigestMismatch, HostileInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rehydrator.core.canonical_json import Json
    from rehydrator.core.reader import Reader

MAX_DOCUMENT: Final = 4 << 20
MAX_LAYERS: Final = 500

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
# Docker's layer types under their OCI names; the bytes are the same.
OCI_LAYER: Final = {
    LAYER: LAYER,
    LAYER_GZIP: LAYER_GZIP,
    LAYER_ZSTD: LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
}

REF_NAME: Final = "org.opencontainers.image.ref.name"

Object = dict[str, "Json"]


@dataclass(frozen=True, slots=True)
class Platform:
    """In Go's words: amd64, linux."""

    architecture: str
    os: str
    variant: str = ""

    def to_json(self) -> Object:
        made: Object = {"architecture": self.architecture, "os": self.os}
        return made | ({"variant": self.variant} if self.variant else {})


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob by media type, digest ("sha256:" and 64 digits) and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: tuple[tuple[str, str], ...] = ()
    platform: Platform | None = None

    @property
    def hex(self) -> str:
        return self.digest.removeprefix("sha256:")

    @property
    def tag(self) -> str | None:
        """The name under which an index holds it."""
        return dict(self.annotations).get(REF_NAME)

    def to_json(self) -> Object:
        made: Object = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            made["annotations"] = dict(self.annotations)
        if self.platform:
            made["platform"] = self.platform.to_json()
        return made


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its configuration and its layers, bottom first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """What of a configuration matters here; `document` is all of it."""

    platform: Platform
    diff_ids: tuple[str, ...]
    history: tuple[Object, ...]
    document: Object

    def created_by(self) -> list[str]:
        """Who made each layer, by the history; empty where the history does not fit."""
        made = [item for item in self.history if item.get("empty_layer") is not True]
        if len(made) != len(self.diff_ids):
            return []
        return [str(item.get("created_by", "")) for item in made]


def parse_digest(value: object, where: str) -> str:
    """`value` if it is "sha256:" and 64 hexadecimal digits, so that it is safe in a path."""
    text = str(value)
    parse_sha256(
        text.removeprefix("sha256:") if text.startswith("sha256:") else text[:0], f"{where}: {text:.80}"
    )
    return text


def parse_descriptor(value: Json, where: str) -> Descriptor:
    """One descriptor; `urls` and `data` are ignored, so that nothing is fetched from elsewhere.

    Raises:
        HostileInput: a field is missing or not what it must be.
    """
    fields = _object(value, where)
    size = fields.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise HostileInput(f"{where}: no valid size: {size!r:.80}")
    platform = fields.get("platform")
    return Descriptor(
        _text(fields.get("mediaType", ""), f"{where}: mediaType"),
        parse_digest(fields.get("digest"), where),
        size,
        tuple(sorted(_texts(fields.get("annotations", {}), f"{where}: annotations").items())),
        None if platform is None else _platform(platform, f"{where}: platform"),
    )


def is_index(descriptor: Descriptor) -> bool:
    return descriptor.media_type in {INDEX, DOCKER_INDEX}


def parse_manifest(data: bytes, media_type: str, where: str) -> Manifest:
    """A manifest of the given media type ("" where nobody said).

    Raises:
        HostileInput: malformed, or something else than it is said to be.
    """
    fields = _document(data, media_type, where)
    if "manifests" in fields or not {"config", "layers"} <= fields.keys():
        raise HostileInput(f"{where}: not an image manifest")
    if media_type not in {"", MANIFEST, DOCKER_MANIFEST}:
        raise HostileInput(f"{where}: an image manifest, yet said to be {media_type!r:.80}")
    layers = _list(fields["layers"], f"{where}: layers")
    if len(layers) > MAX_LAYERS:
        raise HostileInput(f"{where}: {len(layers)} layers, above the limit of {MAX_LAYERS}")
    return Manifest(
        parse_descriptor(fields["config"], f"{where}: config"),
        tuple(parse_descriptor(layer, f"{where}: layer {n}") for n, layer in enumerate(layers)),
    )


def parse_index(data: bytes, media_type: str, where: str) -> tuple[Descriptor, ...]:
    """The descriptors in an index of the given media type ("" where nobody said).

    Raises:
        HostileInput: malformed, or something else than it is said to be.
    """
    fields = _document(data, media_type, where)
    if "manifests" not in fields or fields.keys() & {"config", "layers"}:
        raise HostileInput(f"{where}: not an image index")
    if media_type not in {"", INDEX, DOCKER_INDEX}:
        raise HostileInput(f"{where}: an image index, yet said to be {media_type!r:.80}")
    items = _list(fields["manifests"], f"{where}: manifests")
    return tuple(parse_descriptor(item, f"{where}: manifest {n}") for n, item in enumerate(items))


def parse_config(data: bytes, where: str) -> Config:
    """An image configuration.

    Raises:
        HostileInput: malformed.
    """
    fields = _object(canonical_json.loads(data, where, MAX_DOCUMENT), where)
    rootfs = _object(fields.get("rootfs"), f"{where}: rootfs")
    diff_ids = _list(rootfs.get("diff_ids"), f"{where}: diff_ids")
    history = _list(fields.get("history") or [], f"{where}: history")
    return Config(
        _platform(fields, where),
        tuple(parse_digest(value, f"{where}: diff_ids") for value in diff_ids),
        tuple(_object(item, f"{where}: history") for item in history),
        fields,
    )


def encode(value: Json, where: str) -> bytes:
    """The bytes of a document that we write.

    Raises:
        HostileInput: text taken over from elsewhere is not Unicode (a lone surrogate).
    """
    try:
        return canonical_json.dumps(value)
    except ValueError as error:
        raise HostileInput(f"{where}: {error}") from None


def read_document(reader: Reader, descriptor: Descriptor, where: str) -> bytes:
    """A small document, whole, checked against its descriptor.

    Raises:
        HostileInput: above the limit, or cut short.
        DigestMismatch: altered.
    """
    if max(reader.size, descriptor.size) > MAX_DOCUMENT:
        raise HostileInput(
            f"{where}: {max(reader.size, descriptor.size)} bytes, above the limit of {MAX_DOCUMENT}"
        )
    check_size(reader, descriptor, where)
    data = reader.pread(0, reader.size)
    if sha256_hex(data) != descriptor.hex:
        raise DigestMismatch(f"{where}: damaged (its SHA-256 differs)")
    return data


def check_size(reader: Reader, descriptor: Descriptor, where: str) -> None:
    """Raise HostileInput unless a blob is as long as its descriptor says."""
    if reader.size != descriptor.size:
        raise HostileInput(f"{where}: {reader.size} bytes, not {descriptor.size}")


def _document(data: bytes, media_type: str, where: str) -> Object:
    fields = _object(canonical_json.loads(data, where, MAX_DOCUMENT), where)
    if fields.get("schemaVersion") != 2:
        raise HostileInput(f"{where}: schema version {fields.get('schemaVersion')!r:.20}, not 2")
    own = fields.get("mediaType", "")
    if own and media_type and own != media_type:
        raise HostileInput(f"{where}: calls itself {own!r:.80}, yet said to be {media_type!r:.80}")
    return fields


def _platform(value: Json, where: str) -> Platform:
    fields = _object(value, where)
    names = (fields.get("architecture"), fields.get("os"), fields.get("variant", ""))
    architecture, system, variant = (_text(name, where) for name in names)
    return Platform(architecture, system, variant)


def _object(value: Json, where: str) -> Object:
    if not isinstance(value, dict):
        raise HostileInput(f"{where}: not an object")
    return value


def _list(value: Json, where: str) -> list[Json]:
    if not isinstance(value, list):
        raise HostileInput(f"{where}: not a list")
    return value


def _text(value: Json, where: str) -> str:
    if not isinstance(value, str):
        raise HostileInput(f"{where}: not a string: {value!r:.80}")
    return value


def _texts(value: Json, where: str) -> Mapping[str, str]:
    return {
        key: _text(item, where) for key, item in _object(value if value is not None else {}, where).items()
    }
