"""OCI image layouts in a directory or a tar archive, read and written.

    DIR/
      oci-layout                  {"imageLayoutVersion":"1.0.0"}
      index.json                  the last thing written, replaced by rename
      blobs/sha256/<64 digits>
      .rehydrator-stage-XXXXXXXX/ staging: blobs, and staged.json in place of an index

Writing has two phases: everything is staged, where the builder reads it back and proves it;
then publish() renames it in. What was not published is removed and never has an index.
Source: OCI image specification 1.1, "Image Layout".
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rehydrator.core import canonical_json
from rehydrator.core.errors import HostileInput, LimitExceeded, NotInBundle, RehydratorError, UsageError
from rehydrator.core.reader import WindowReader
from rehydrator.oci import tarball
from rehydrator.oci.documents import (
    INDEX,
    MAX_DOCUMENT,
    REF_NAME,
    Descriptor,
    Object,
    encode,
    is_index,
    parse_config,
    parse_descriptor,
    parse_index,
    parse_manifest,
    read_document,
)
from rehydrator.oci.image import Image
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import BinaryIO

    from rehydrator.core.canonical_json import Json
    from rehydrator.core.reader import Reader

BLOBS: Final = "blobs/sha256"
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_STAGED: Final = "staged.json"
_PREFIX: Final = ".rehydrator-stage-"
_MAX_ARCHIVED = 8 << 30
_MAX_INDEXES = 3


# ---- reading


class DirectoryBlobs:
    """Files below a directory, each opened once."""

    def __init__(self, root: Path) -> None:
        self.root, self.what = root, str(root)
        self._opened: dict[str, FileReader] = {}

    def open(self, name: str) -> Reader:
        """Raises HostileInput where there is no such regular file."""
        if name not in self._opened:
            try:
                self._opened[name] = FileReader(self.root / name)
            except (FileNotFoundError, NotADirectoryError):
                raise HostileInput(f"{self.what}: {name} is missing") from None
            except IsADirectoryError:
                raise HostileInput(f"{self.what}: {name} is not a regular file") from None
        return self._opened[name]

    def close(self) -> None:
        for reader in self._opened.values():
            reader.close()
        self._opened.clear()


class ArchiveBlobs:
    """Files inside a tar archive, read where they lie."""

    def __init__(self, path: Path, members: dict[str, tuple[int, int]] | None = None) -> None:
        """`members` may be given where they are known.

        Raises:
            HostileInput: not a tar archive of regular files.
        """
        self.what = str(path)
        self._file = FileReader(path)
        try:
            self.members = tarball.regular_files(self._file, self.what) if members is None else members
        except BaseException:
            self._file.close()
            raise

    def open(self, name: str) -> Reader:
        """Raises HostileInput where there is no such member."""
        if name not in self.members:
            raise HostileInput(f"{self.what}: {name} is missing")
        return WindowReader(self._file, *self.members[name], f"{self.what}: {name}")

    def close(self) -> None:
        self._file.close()


Blobs = DirectoryBlobs | ArchiveBlobs


def open_layout(blobs: Blobs, tag: str | None, architecture: str | None, host: str) -> Image:
    """The image `tag` of a layout (None: the only one), for `architecture` (None: the host's,
    or the only one). Architectures are in Go's words.

    Raises:
        NotInBundle: no such tag; the message lists those that exist.
        UsageError: several images or platforms, and none was chosen.
        HostileInput, DigestMismatch: an index, manifest or configuration is not sound.
    """
    index = blobs.open("index.json")
    if index.size > MAX_DOCUMENT:
        raise HostileInput(
            f"{blobs.what}: index.json of {index.size} bytes, above the limit of {MAX_DOCUMENT}"
        )
    entries = parse_index(index.pread(0, index.size), "", f"{blobs.what}: index.json")
    chosen = _choose_tag(entries, tag, blobs.what)
    return open_image(blobs, chosen, architecture, host)


def open_image(
    blobs: Blobs, chosen: Descriptor, architecture: str | None, host: str, name: str = BLOBS + "/{}"
) -> Image:
    """The image of a descriptor, through at most two nested indexes; `name` is where a blob
    lies by its digest.
    """
    documents = [chosen]
    for _ in range(_MAX_INDEXES):
        where = f"{blobs.what}: {documents[-1].digest}"
        data = read_document(blobs.open(name.format(documents[-1].hex)), documents[-1], where)
        if not is_index(documents[-1]):
            break
        found = parse_index(data, documents[-1].media_type, where)
        documents.append(choose_platform(found, architecture, host, blobs.what))
    return open_manifest(blobs, data, documents, name)


def open_manifest(
    blobs: Blobs, data: bytes, documents: Sequence[Descriptor], name: str = BLOBS + "/{}"
) -> Image:
    """The image of the manifest in `data`, whose descriptor, where it has one, is the last of
    `documents`.
    """
    digest, media_type = (documents[-1].digest, documents[-1].media_type) if documents else ("manifest", "")
    manifest = parse_manifest(data, media_type, f"{blobs.what}: {digest}")

    def opened(descriptor: Descriptor) -> Reader:
        return blobs.open(name.format(descriptor.hex))

    return image_of(blobs.what, manifest.config, manifest.layers, tuple(documents), opened)


def image_of(
    what: str,
    config: Descriptor,
    layers: tuple[Descriptor, ...],
    documents: tuple[Descriptor, ...],
    opened: Callable[[Descriptor], Reader],
) -> Image:
    """An image whose configuration is read and agrees with its layers."""
    where = f"{what}: {config.digest}"
    parsed = parse_config(read_document(opened(config), config, where), where)
    if len(parsed.diff_ids) != len(layers):
        raise HostileInput(f"{where}: names {len(parsed.diff_ids)} layers, the manifest {len(layers)}")
    return Image(what, parsed, layers, (*documents, config), opened)


def choose_platform(
    found: tuple[Descriptor, ...], architecture: str | None, host: str, what: str
) -> Descriptor:
    """One image of an index. Entries without a platform are attestations and the like.

    Raises:
        NotInBundle: none for `architecture`.
        UsageError: several, none of them the host's.
    """
    known = {item.platform.architecture: item for item in reversed(found) if item.platform}
    if architecture in known:
        return known[architecture]
    names = ", ".join(sorted(known)) or "none"
    if architecture is not None:
        raise NotInBundle(f"{what}: no image for {architecture}; there is {names}")
    if host in known:
        return known[host]
    if len(known or found) != 1:
        raise UsageError(f"{what}: images for several platforms, choose one with --runtime-arch: {names}")
    return next(iter(known.values()), found[0])


def _choose_tag(entries: tuple[Descriptor, ...], tag: str | None, what: str) -> Descriptor:
    named = [entry for entry in entries if tag is None or entry.tag == tag]
    names = ", ".join(sorted({entry.tag or "(no tag)" for entry in entries})) or "none"
    if not named:
        raise NotInBundle(f"{what}: no image {tag or ''}; there is {names}".replace("  ", " "))
    if len({entry.digest for entry in named}) > 1:
        raise UsageError(f"{what}: several images, choose one by its tag: {names}")
    return named[0]


# ---- writing


class StagedBlob:
    """A blob being written into staging."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> None:
        self._digest.update(data)
        self.size += len(data)
        self._file.write(data)

    @property
    def hex(self) -> str:
        return self._digest.hexdigest()

    def descriptor(self, media_type: str) -> Descriptor:
        return Descriptor(media_type, f"sha256:{self.hex}", self.size)


class Staging:
    """An image on its way to a target. As a context it is discarded unless published."""

    def __init__(self, target: Path, inside: Path, tag: str | None) -> None:
        """Stages for `target` in a new private directory in `inside`."""
        self.target, self.tag = target, tag
        _remove_stale(inside)
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=inside))
        self._lock = _open_directory(self.directory)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def blob(self) -> AbstractContextManager[StagedBlob]:
        raise NotImplementedError

    def seal(self, image: Descriptor) -> None:
        """All blobs of `image` are written: make them durable, and readable by open_staged()."""
        raise NotImplementedError

    def publish(self) -> None:
        """Make the sealed image visible under its name, at once."""
        raise NotImplementedError

    def discard(self) -> None:
        """Remove everything that was staged; no error if it is gone already."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _entry(self, image: Descriptor) -> Descriptor:
        annotations = ((REF_NAME, self.tag),) if self.tag else ()
        return Descriptor(image.media_type, image.digest, image.size, annotations, image.platform)

    def _write_staged(self, image: Descriptor, members: dict[str, tuple[int, int]] | None) -> None:
        document: Object = {"image": self._entry(image).to_json()}
        if members is not None:
            document["members"] = {name: [offset, size] for name, (offset, size) in members.items()}
        _write_durably(self.directory / _STAGED, canonical_json.dumps(document))


class DirectoryStaging(Staging):
    """Stages inside of the layout's directory, so that a rename never crosses filesystems."""

    def __init__(self, target: Path, tag: str | None) -> None:
        """Raises HostileInput where an index is there that cannot be kept, OSError as mkdir."""
        self._made = not target.exists()
        if self._made:
            target.mkdir()
        elif any(target.iterdir()) and not (target / "oci-layout").is_file() and not _only_staging(target):
            raise UsageError(f"{target}: is not empty, and not an OCI layout")
        super().__init__(target, target, tag)
        self._image: Descriptor | None = None
        try:
            _kept_entries(target, tag)
            (self.directory / BLOBS).mkdir(parents=True)
        except BaseException:
            self.discard()
            raise

    @contextmanager
    def blob(self) -> Iterator[StagedBlob]:
        path = self.directory / "blob"
        with path.open("wb") as file:
            blob = StagedBlob(file)
            yield blob
            _make_durable(file)
        path.rename(self.directory / BLOBS / blob.hex)

    def seal(self, image: Descriptor) -> None:
        self._write_staged(image, None)
        self._image = image

    def publish(self) -> None:
        assert self._image is not None, "seal() comes first"
        blobs = self.target / BLOBS
        blobs.mkdir(parents=True, exist_ok=True)
        for path in sorted((self.directory / BLOBS).iterdir()):
            path.rename(blobs / path.name)
        _sync_directory(blobs)
        with _locked(self.target):
            if not (self.target / "oci-layout").exists():
                self._place("oci-layout", _LAYOUT)
            entries = [*_kept_entries(self.target, self.tag), self._entry(self._image).to_json()]
            index: Object = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*entries]}
            self._place("index.json", canonical_json.dumps(index))
        _sync_directory(self.target.parent)
        self.discard()

    def discard(self) -> None:
        super().discard()
        # Half of a publication is no image. Who else stages in here, or has published, keeps it.
        if (
            self._made
            and not any(self.target.glob(f"{_PREFIX}*"))
            and not (self.target / "index.json").exists()
        ):
            shutil.rmtree(self.target, ignore_errors=True)

    def _place(self, name: str, data: bytes) -> None:
        _write_durably(self.directory / name, data)
        (self.directory / name).rename(self.target / name)
        _sync_directory(self.target)


class ArchiveStaging(Staging):
    """Writes the archive itself, beside the target, in one pass: the header of a blob is
    written when its digest is known. Its index and its end come with publish().
    """

    def __init__(self, target: Path, tag: str | None) -> None:
        """Raises OSError as mkdtemp."""
        if target.is_dir():
            raise UsageError(f"{target}: is a directory, not an archive")
        super().__init__(target, target.parent, tag)
        self._path = self.directory / "image.tar"
        self._file = self._path.open("xb")
        self._members: dict[str, tuple[int, int]] = {}
        self._image: Descriptor | None = None
        for directory in ("blobs", BLOBS):
            self._file.write(tarball.directory_header(directory))

    @contextmanager
    def blob(self) -> Iterator[StagedBlob]:
        start = self._file.tell()
        self._file.write(bytes(tarball.BLOCK))
        blob = StagedBlob(self._file)
        yield blob
        name = f"{BLOBS}/{blob.hex}"
        if blob.size >= _MAX_ARCHIVED:
            raise LimitExceeded(f"{self.target}: a layer of {blob.size} bytes")
        if name in self._members:
            self._file.seek(start)
            self._file.truncate()
            return
        self._file.write(tarball.padding(blob.size))
        self._file.seek(start)
        self._file.write(tarball.file_header(name, blob.size))
        self._file.seek(0, os.SEEK_END)
        self._members[name] = start + tarball.BLOCK, blob.size

    def seal(self, image: Descriptor) -> None:
        _make_durable(self._file)
        self._write_staged(image, self._members)
        self._image = image

    def publish(self) -> None:
        assert self._image is not None, "seal() comes first"
        entries: list[Json] = [self._entry(self._image).to_json()]
        index: Object = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        for name, data in (("index.json", canonical_json.dumps(index)), ("oci-layout", _LAYOUT)):
            self._file.write(tarball.file_header(name, len(data)) + data + tarball.padding(len(data)))
        self._file.write(tarball.END)
        _make_durable(self._file)
        self._path.rename(self.target)
        _sync_directory(self.target.parent)
        self.discard()

    def discard(self) -> None:
        self._file.close()
        super().discard()


def open_staged(directory: Path) -> tuple[Blobs, Image]:
    """A sealed image that is not published yet, by its staging directory.

    Raises:
        RehydratorError: it was not sealed.
    """
    try:
        data = (directory / _STAGED).read_bytes()
    except FileNotFoundError:
        raise RehydratorError(f"{directory}: no image is staged here") from None
    fields = canonical_json.loads(data, str(directory / _STAGED), MAX_DOCUMENT)
    assert isinstance(fields, dict)
    image = parse_descriptor(fields["image"], str(directory))
    members = fields.get("members")
    blobs: Blobs = DirectoryBlobs(directory)
    if isinstance(members, dict):
        blobs = ArchiveBlobs(directory / "image.tar", {name: _span(span) for name, span in members.items()})
    return blobs, open_image(blobs, image, None, "")


def _span(value: Json) -> tuple[int, int]:
    assert isinstance(value, list)
    offset, size = value
    assert isinstance(offset, int)
    assert isinstance(size, int)
    return offset, size


def _kept_entries(target: Path, tag: str | None) -> list[Json]:
    """The entries of an existing index that a new image of this tag leaves alone, as they are."""
    path = target / "index.json"
    if not path.exists():
        return []
    reader = FileReader(path)
    try:
        if reader.size > MAX_DOCUMENT:
            raise HostileInput(f"{path}: {reader.size} bytes, above the limit of {MAX_DOCUMENT}")
        data = reader.pread(0, reader.size)
    finally:
        reader.close()
    parsed = parse_index(data, "", str(path))
    fields = canonical_json.loads(data, str(path), MAX_DOCUMENT)
    assert isinstance(fields, dict)
    entries = fields["manifests"]
    assert isinstance(entries, list)
    encode(entries, str(path))  # what cannot be written back is found before anything is staged
    return [entry for entry, item in zip(entries, parsed, strict=True) if item.tag != tag]


def _only_staging(target: Path) -> bool:
    return all(path.name.startswith(_PREFIX) for path in target.iterdir())


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _make_durable(file)


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two builds into one layout must not lose each other's tag."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(inside: Path) -> None:
    """Remove what killed builds of this user left; a living one holds its lock."""
    for path in inside.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = _open_directory(path)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
