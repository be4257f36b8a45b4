"""The bundle's files, found in the layers of an image.

Our own layers are read where they lie. What other tools made of them (podman save,
a copy with other compression) is decompressed once into a private directory, and only the
files of the bundle. Later layers win, and whiteouts are obeyed, as when an image is mounted.
Source: OCI image specification 1.1, "Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from backports import zstd

from rehydrator.core.errors import HostileInput, LimitExceeded, NotInBundle
from rehydrator.core.reader import WindowReader
from rehydrator.oci import tarball
from rehydrator.oci.documents import check_size
from rehydrator.oci.image import CREATED_BY, pieces
from rehydrator.oci.stored_gzip import StoredGzipReader, is_stored
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rehydrator.core.reader import Reader
    from rehydrator.oci.image import Image
    from rehydrator.oci.tarball import Entry

ROOT: Final = "bundle"
MAX_FILES: Final = 1 << 14
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"

# A layer decompresses to at most this much, so that a bomb ends early. Packs are compressed
# already and a root filesystem shrinks to a third; 16 times is far above both.
_SLACK: Final = 256 << 20
_RATIO: Final = 16
_STEP: Final = 1 << 20
_MAX_WINDOW_LOG: Final = 27


class LayerFiles:
    """The files below bundle/ of an image. Close it when done."""

    def __init__(self, image: Image, scratch: Callable[[], Path]) -> None:
        """`scratch` gives a private directory, should anything have to be decompressed.

        Raises:
            NotInBundle: the image holds no bundle.
            HostileInput: a layer is missing, short, damaged or not what it must be.
            LimitExceeded: a layer decompresses to too much.
        """
        self._what = image.what
        self._scratch = scratch
        self._unpacked: list[FileReader] = []
        self._files: dict[str, Reader] = {}
        try:
            for number in range(_first_layer(image), len(image.layers)):
                self._apply(image, number)
        except BaseException:
            self.close()
            raise
        if f"{ROOT}/bundle.json" not in self._files:
            raise NotInBundle(f"{image.what}: holds no bundle (there is no /{ROOT}/bundle.json)")

    def open(self, name: str) -> Reader:
        """Raises NotInBundle where there is no such file."""
        if f"{ROOT}/{name}" not in self._files:
            raise NotInBundle(f"{self._what}: no file {name} in the bundle")
        return self._files[f"{ROOT}/{name}"]

    def names(self) -> list[str]:
        return sorted(name.removeprefix(f"{ROOT}/") for name in self._files)

    def close(self) -> None:
        for reader in self._unpacked:
            reader.close()
        self._unpacked.clear()

    def _apply(self, image: Image, number: int) -> None:
        layer = image.layers[number]
        what = f"{image.what}: layer {layer.digest}"
        blob = image.open(layer)
        check_size(blob, layer, what)
        if is_stored(blob):
            added = self._list(StoredGzipReader(blob, what), what)
        elif (stream := _decompressor(blob)) is not None:
            added = self._unpack(ForwardReader(stream(blob, what), what, blob.size), number, what)
        else:
            added = self._list(blob, what)
        self._files.update(added)
        if len(self._files) > MAX_FILES:
            raise LimitExceeded(f"{what}: more than {MAX_FILES} files in the bundle")

    def _list(self, plain: Reader, what: str) -> dict[str, Reader]:
        return {
            entry.name: WindowReader(plain, entry.offset, entry.size, f"{what}: {entry.name}")
            for entry in self._bundle_files(tarball.entries(plain, what), what)
        }

    def _unpack(self, plain: ForwardReader, number: int, what: str) -> dict[str, Reader]:
        """All files of one layer go, one behind the other, into one file."""
        path = self._scratch() / f"layer-{number}"
        places = []
        at = 0
        with path.open("xb") as file:
            for entry in self._bundle_files(tarball.entries(plain, what), what):
                for piece in pieces(plain, entry.offset, entry.size):
                    file.write(piece)
                places.append((entry.name, at, entry.size))
                at += entry.size
        plain.drain()
        reader = FileReader(path)
        self._unpacked.append(reader)
        path.unlink()
        return {name: WindowReader(reader, at, size, f"{what}: {name}") for name, at, size in places}

    def _bundle_files(self, found: Iterator[Entry], what: str) -> Iterator[Entry]:
        """The bundle's files in one layer; what the layer hides of those below is dropped."""
        seen: set[str] = set()
        for entry in found:
            folder, _, base = entry.name.rpartition("/")
            if base.startswith(_WHITEOUT):
                hidden = folder if base == _OPAQUE else f"{folder}/{base[len(_WHITEOUT) :]}".lstrip("/")
                self._hide(hidden, itself=base != _OPAQUE)
            elif entry.name == ROOT or entry.name.startswith(f"{ROOT}/"):
                if entry.kind == "directory":
                    continue
                if entry.kind != "file" or entry.name == ROOT or entry.name in seen:
                    raise HostileInput(f"{what}: {entry.name!r:.200} is a {entry.kind}, or stands twice")
                seen.add(entry.name)
                self._hide(entry.name, itself=True)
                yield entry

    def _hide(self, name: str, *, itself: bool) -> None:
        above = f"{name}/" if name else ""
        gone = [held for held in self._files if held.startswith(above) or (itself and held == name)]
        for held in gone:
            del self._files[held]


def _first_layer(image: Image) -> int:
    """The first layer that may hold the bundle.

    The history, which even podman save keeps, marks our layers; those of the runtime below
    them need not be read. Without a mark, all are. A false mark hides files, never changes one.
    """
    makers = image.config.created_by()
    return makers.index(CREATED_BY) if CREATED_BY in makers else 0


class ForwardReader:
    """Plain bytes that come as a stream, read forwards only, and bounded."""

    def __init__(self, stream: Iterator[bytes], what: str, stored: int) -> None:
        self._stream, self._what = stream, what
        self.size = _SLACK + _RATIO * stored
        self._held = b""
        self._start = 0

    def pread(self, offset: int, length: int) -> bytes:
        """Raises HostileInput where the stream ends before."""
        self._skip_to(offset)
        parts = [self._held[:length]]
        self._held = self._held[length:]
        missing = length - len(parts[0])
        while missing:
            piece = next(self._stream, b"")
            if not piece:
                raise HostileInput(f"{self._what}: ends in the middle of an archive")
            parts.append(piece[:missing])
            self._held = piece[missing:]
            missing -= len(parts[-1])
        self._start += length
        return self._check(b"".join(parts))

    def drain(self) -> None:
        """Read what is left, so that a check at the stream's end is made."""
        for piece in self._stream:
            self._start += len(piece)
            self._check(b"")

    def _skip_to(self, offset: int) -> None:
        assert offset >= self._start, "read forwards only"
        while offset > self._start:
            self.pread(self._start, min(offset - self._start, _STEP))

    def _check(self, data: bytes) -> bytes:
        if self._start > self.size:
            raise LimitExceeded(f"{self._what}: decompresses to more than {self.size} bytes")
        return data


def _decompressor(blob: Reader) -> Callable[[Reader, str], Iterator[bytes]] | None:
    """By the first bytes, because media types are what the last tool happened to write."""
    magic = blob.pread(0, min(4, blob.size))
    if magic[:3] == b"\x1f\x8b\x08":
        return _gunzip
    if magic == b"\x28\xb5\x2f\xfd":
        return _unzstd
    return None


def _gunzip(blob: Reader, what: str) -> Iterator[bytes]:
    """RFC 1952: members in a row."""
    decoder = zlib.decompressobj(31)
    try:
        for packed in pieces(blob, 0, blob.size):
            left = packed
            while left:
                if decoder.eof:
                    decoder = zlib.decompressobj(31)
                yield from _nonempty(decoder.decompress(left, _STEP))
                left = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
        # Output may wait inside the decoder when all input is taken.
        while not decoder.eof and (made := decoder.decompress(b"", _STEP)):
            yield made
    except zlib.error as error:
        raise HostileInput(f"{what}: damaged gzip: {error}") from None
    if not decoder.eof:
        raise HostileInput(f"{what}: cut short in the middle of gzip")


def _unzstd(blob: Reader, what: str) -> Iterator[bytes]:
    """RFC 8878: frames in a row, windows up to 128 MiB."""
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG}
    decoder = zstd.ZstdDecompressor(options=options)
    try:
        for packed in pieces(blob, 0, blob.size):
            left = packed
            while left or not (decoder.needs_input or decoder.eof):
                if decoder.eof:
                    decoder = zstd.ZstdDecompressor(options=options)
                yield from _nonempty(decoder.decompress(left, _STEP))
                left = decoder.unused_data if decoder.eof else b""
    except zstd.ZstdError as error:
        raise HostileInput(f"{what}: damaged zstd: {error}") from None
    if not decoder.eof:
        raise HostileInput(f"{what}: cut short in the middle of zstd")


def _nonempty(piece: bytes) -> Iterator[bytes]:
    """An empty piece would look like the end."""
    if piece:
        yield piece
