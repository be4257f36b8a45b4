"""References, spelt as skopeo spells them, and what they lead to.

oci:DIR[:TAG]  oci-archive:FILE[:TAG]     OCI layouts, read where they lie; builds go there
dir:DIR                                   what `skopeo copy … dir:` writes, or a bare bundle
docker-archive:FILE[:NAME]                what `podman save` writes, read where it lies
docker://HOST/REPO[:TAG|@DIGEST]          fetched by skopeo, with its credentials and policy
containers-storage:NAME                   podman's own images, likewise
"""

from __future__ import annotations

import hashlib
import platform
import re
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from typing import Literal as OneOf

from rehydrator import host
from rehydrator.core import canonical_json
from rehydrator.core.errors import DigestMismatch, HostileInput, NotInBundle, RegistryError, UsageError
from rehydrator.oci import layers, tarball
from rehydrator.oci.documents import (
    CONFIG,
    LAYER,
    MAX_DOCUMENT,
    Descriptor,
    check_size,
    is_index,
    parse_config,
    parse_index,
    read_document,
)
from rehydrator.oci.image import Image, pieces
from rehydrator.oci.layout import (
    ArchiveBlobs,
    ArchiveStaging,
    DirectoryBlobs,
    DirectoryStaging,
    Staging,
    choose_platform,
    image_of,
    open_layout,
    open_manifest,
)
from rehydrator.oci.layout import open_staged as open_staged_image
from rehydrator.store.files import DirectoryFiles, FileReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.core.canonical_json import Json
    from rehydrator.core.reader import Reader
    from rehydrator.store.files import Files

Transport = OneOf["oci", "oci-archive", "dir", "docker-archive", "docker", "containers-storage"]

_WITH_TAG: Final[dict[str, Transport]] = {
    "oci": "oci",
    "oci-archive": "oci-archive",
    "docker-archive": "docker-archive",
}
_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,254}\Z")
_NAME: Final = re.compile(r"[\x21-\x7e]{1,1024}\Z")
_OCI_BLOB: Final = re.compile(r"blobs/sha256/([0-9a-f]{64})\Z")
_FETCH_SECONDS: Final = 6 * 3600.0
_SPELLINGS: Final = (
    "oci:DIR[:TAG], oci-archive:FILE[:TAG], dir:DIR, docker-archive:FILE, "
    "docker://HOST/REPO[:TAG] or containers-storage:NAME"
)

# Go's name of an architecture, where the kernel's differs.
GO_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


class NotAnImage(UsageError):
    """The reference leads to a bare bundle, where an image is needed."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference: `place` is a path, or a name for skopeo; `tag` where one was given."""

    transport: Transport
    place: str
    tag: str | None = None

    @property
    def path(self) -> Path:
        return Path(self.place)

    def __str__(self) -> str:
        slashes = "//" if self.transport == "docker" else ""
        return f"{self.transport}:{slashes}{self.place}" + (f":{self.tag}" if self.tag else "")


def parse(text: str) -> Reference:
    """The reference in `text`.

    Raises:
        UsageError: it is spelt in no known way.
    """
    transport, colon, rest = text.partition(":")
    if not colon or not rest or any(ord(c) < 0x20 for c in text):
        raise UsageError(f"{text!r:.200} is not a reference; spell it {_SPELLINGS}")
    if transport == "dir":
        return Reference("dir", rest)
    if transport in _WITH_TAG:
        return _parse_path(_WITH_TAG[transport], rest, text)
    if transport == "docker" and rest.startswith("//") and _NAME.match(rest[2:]):
        return Reference("docker", rest[2:])
    if transport == "containers-storage" and _NAME.match(rest):
        return Reference("containers-storage", rest)
    raise UsageError(f"{text!r:.200} is not a reference; spell it {_SPELLINGS}")


def _parse_path(transport: Transport, rest: str, text: str) -> Reference:
    """A path ends at the first colon, as it does for skopeo."""
    place, colon, tag = rest.partition(":")
    if not place or (colon and not _TAG.match(tag)):
        raise UsageError(f"{text!r:.200}: after {transport}: comes a path, then perhaps a colon and a tag")
    return Reference(transport, place, tag or None)


def host_architecture() -> str:
    """This machine's architecture in Go's words."""
    machine = platform.machine()
    return GO_ARCHITECTURES.get(machine, machine)


def stage(reference: Reference) -> Staging:
    """Begin to write an image that will be `reference`.

    Raises:
        UsageError: nothing can be written there.
        HostileInput: an index is there already, and is malformed.
    """
    if reference.transport not in {"oci", "oci-archive"}:
        raise UsageError(f"{reference}: builds are written to oci:DIR[:TAG] or oci-archive:FILE[:TAG]")
    path = reference.path.absolute()
    if not path.parent.is_dir():
        raise UsageError(f"{reference}: there is no directory {path.parent}")
    kind = DirectoryStaging if reference.transport == "oci" else ArchiveStaging
    return kind(path, reference.tag)


@contextmanager
def open_staged(directory: Path, tmpdir: Path) -> Iterator[Files]:
    """The bundle of a staged and sealed image, by `Staging.directory`, in any process."""
    with ExitStack() as stack:
        blobs, image = open_staged_image(directory)
        stack.callback(blobs.close)
        yield _layer_files(stack, image, tmpdir)


@contextmanager
def open_bundle(reference: Reference, tmpdir: Path, architecture: str | None = None) -> Iterator[Files]:
    """The files of the bundle that `reference` holds, by their names below /bundle.

    `tmpdir` takes what must be fetched or decompressed, until the end. `architecture` is the
    container's own, in Go's words, where an index has several.

    Raises:
        NotInBundle: no such image, tag or architecture, or the image holds no bundle.
        HostileInput, DigestMismatch: an image that is missing parts, cut short or altered.
        ToolMissing, RegistryError: skopeo is needed and missing, or failed.
    """
    if _is_bare(reference):
        yield DirectoryFiles(reference.path)
        return
    with ExitStack() as stack:
        image = stack.enter_context(open_image(reference, tmpdir, architecture))
        yield _layer_files(stack, image, tmpdir)


@contextmanager
def open_image(reference: Reference, tmpdir: Path, architecture: str | None = None) -> Iterator[Image]:
    """The image that `reference` leads to, as open_bundle() does.

    Raises:
        NotAnImage: a bare bundle.
        Others as open_bundle().
    """
    if _is_bare(reference):
        raise NotAnImage(f"{reference}: is a bare bundle, not an image")
    with ExitStack() as stack:
        if reference.transport in {"docker", "containers-storage"}:
            scratch = stack.enter_context(_scratch(tmpdir))
            reference = _fetch(reference, scratch, architecture)
        elif not reference.path.exists():
            raise NotInBundle(f"{reference}: there is no {reference.place}")
        blobs = _blobs(reference)
        stack.callback(blobs.close)
        yield _open(blobs, reference, architecture)


def verify_blobs(reference: Reference, tmpdir: Path, architecture: str | None = None) -> list[Descriptor]:
    """Read every blob of an image and compare it with its descriptor; returns what was
    checked. A bare bundle has none.

    Raises:
        DigestMismatch: a blob is altered.
        Others as open_bundle().
    """
    if _is_bare(reference):
        return []
    with open_image(reference, tmpdir, architecture) as image:
        for layer in image.layers:
            check_blob(image.open(layer), layer, f"{image.what}: {layer.digest}")
        return [*image.documents, *image.layers]


def check_blob(reader: Reader, descriptor: Descriptor, where: str) -> None:
    """Compare a blob with its descriptor.

    Raises:
        HostileInput: it is of another size.
        DigestMismatch: it is altered.
    """
    check_size(reader, descriptor, where)
    state = hashlib.sha256()
    for piece in pieces(reader, 0, reader.size):
        state.update(piece)
    if state.hexdigest() != descriptor.hex:
        raise DigestMismatch(f"{where}: damaged (its SHA-256 differs)")


def _is_bare(reference: Reference) -> bool:
    return reference.transport == "dir" and (reference.path / "bundle.json").is_file()


def _layer_files(stack: ExitStack, image: Image, tmpdir: Path) -> layers.LayerFiles:
    # Our own layers are read where they lie, also where nothing can be written.
    files = layers.LayerFiles(image, cache(lambda: stack.enter_context(_scratch(tmpdir))))
    stack.callback(files.close)
    return files


@contextmanager
def _scratch(tmpdir: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rehydrator-", dir=tmpdir) as name:
        yield Path(name)


def _fetch(reference: Reference, scratch: Path, architecture: str | None) -> Reference:
    """Copy an image into a layout of our own with skopeo.

    Raises:
        ToolMissing: skopeo is not installed.
        RegistryError: it failed; in its own words.
    """
    override = ["--override-arch", architecture] if architecture else []
    target = Reference("oci", str(scratch / "image"), "fetched")
    argv = ["skopeo", "--tmpdir", str(scratch), *override, "copy", "--quiet", str(reference), str(target)]
    done = host.run(argv, _FETCH_SECONDS)
    if done.status:
        raise RegistryError(f"{reference}: skopeo could not copy it: {done.said}")
    return target


def _blobs(reference: Reference) -> DirectoryBlobs | ArchiveBlobs:
    path = reference.path
    if reference.transport in {"oci", "dir"}:
        if not path.is_dir():
            raise HostileInput(f"{reference}: {path} is not a directory")
        return DirectoryBlobs(path)
    if reference.transport == "docker-archive":
        return ArchiveBlobs(path, _docker_members(path))
    return ArchiveBlobs(path)


def _open(blobs: DirectoryBlobs | ArchiveBlobs, reference: Reference, architecture: str | None) -> Image:
    if reference.transport == "dir":
        if not (reference.path / "manifest.json").exists():
            raise NotInBundle(f"{reference}: holds neither bundle.json nor an image's manifest.json")
        return _open_dir(blobs, architecture)
    if reference.transport == "docker-archive":
        return _open_docker_archive(blobs, reference.tag)
    return open_layout(blobs, reference.tag, architecture, host_architecture())


def _open_dir(blobs: DirectoryBlobs | ArchiveBlobs, architecture: str | None) -> Image:
    """A dir: of skopeo has blobs by their bare digest, and manifest.json, which nothing pins."""
    data, what = _small(blobs, "manifest.json"), f"{blobs.what}: manifest.json"
    fields = canonical_json.loads(data, what, MAX_DOCUMENT)
    documents: list[Descriptor] = []
    if isinstance(fields, dict) and "manifests" in fields:
        found = choose_platform(parse_index(data, "", what), architecture, host_architecture(), blobs.what)
        if is_index(found):
            raise HostileInput(f"{what}: an index within an index")
        # Children of an index are kept as HEX.manifest.json.
        child = blobs.open(f"{found.hex}.manifest.json")
        data = read_document(child, found, f"{blobs.what}: {found.digest}")
        documents.append(found)
    return open_manifest(blobs, data, documents, "{}")


def _docker_members(path: Path) -> dict[str, tuple[int, int]]:
    """The regular files of a docker-archive; its links are for readers of 2014."""
    reader = FileReader(path)
    try:
        found = [entry for entry in tarball.entries(reader, str(path)) if entry.kind == "file"]
    finally:
        reader.close()
    members = {entry.name: (entry.offset, entry.size) for entry in found}
    if len(members) != len(found):
        raise HostileInput(f"{path}: a name stands twice")
    return members


def _open_docker_archive(blobs: DirectoryBlobs | ArchiveBlobs, name: str | None) -> Image:
    """manifest.json names files; a layer's digest is in its name, or is its diff id."""
    what = f"{blobs.what}: manifest.json"
    listed = canonical_json.loads(_small(blobs, "manifest.json"), what, MAX_DOCUMENT)
    item = _choose_docker_image(listed, name, what)
    config_name, names = item.get("Config"), item.get("Layers")
    if not isinstance(config_name, str) or not isinstance(names, list):
        raise HostileInput(f"{what}: has no configuration or no layers")
    data = _small(blobs, config_name)
    diff_ids = parse_config(data, f"{blobs.what}: {config_name}").diff_ids
    config = Descriptor(CONFIG, _digest_in(config_name, hashlib.sha256(data).hexdigest()), len(data))
    if len(diff_ids) != len(names):
        raise HostileInput(f"{what}: {len(names)} layers, the configuration names {len(diff_ids)}")
    places = {config.digest: config_name}
    found = []
    for layer, diff_id in zip(names, diff_ids, strict=True):
        layer_name = str(layer)
        digest = _digest_in(layer_name, diff_id.removeprefix("sha256:"))
        places[digest] = layer_name
        found.append(Descriptor(LAYER, digest, blobs.open(layer_name).size))
    return image_of(blobs.what, config, tuple(found), (), lambda layer: blobs.open(places[layer.digest]))


def _choose_docker_image(listed: Json, name: str | None, what: str) -> dict[str, Json]:
    items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    if name is not None:
        items = [item for item in items if name in _tags(item) or f"docker.io/library/{name}" in _tags(item)]
    if not items:
        raise NotInBundle(f"{what}: names no image {name or ''}".rstrip())
    if len(items) > 1:
        known = ", ".join(tag for item in items for tag in _tags(item))
        raise UsageError(f"{what}: several images, choose one by its name: {known}")
    return items[0]


def _tags(item: dict[str, Json]) -> list[str]:
    tags = item.get("RepoTags")
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def _digest_in(name: str, otherwise: str) -> str:
    match = _OCI_BLOB.match(name)
    return f"sha256:{match[1] if match else otherwise}"


def _small(blobs: DirectoryBlobs | ArchiveBlobs, name: str) -> bytes:
    reader = blobs.open(name)
    if reader.size > MAX_DOCUMENT:
        raise HostileInput(f"{blobs.what}: {name} of {reader.size} bytes, above the limit of {MAX_DOCUMENT}")
    return reader.pread(0, reader.size)
