"""What lies embedded in a file and is worth a look: file systems, archives, compressed archives.

Looked into are containers whose bytes lie as they are: an ISO's files, a cpio archive's members,
the archives of an initramfs. A compressed stream is found where what it holds begins as a cpio
archive, a file system or a disk does: a kernel module's is not. What is damaged is left out, as
nothing depends on finding it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import HostileInput, LimitExceeded
from rehydrator.core.reader import BytesReader, WindowReader
from rehydrator.formats import cpio, erofs, initramfs, iso9660, squashfs
from rehydrator.formats.decoding import Meter

if TYPE_CHECKING:
    from rehydrator.core.reader import Reader
    from rehydrator.formats.filesystem import FileSystem

MAX_FOUND: Final = 1 << 12
MAX_LOOKS: Final = 1 << 16
"""Files and members that are looked at, the largest of a container first."""
MAX_DEPTH: Final = 4
MAX_PLAIN: Final = 8 << 30
"""Bytes that are decoded, of all streams, to find where they end."""

STREAMS: Final = frozenset({"gzip", "xz", "zstd"})
# Enough for the superblock of EROFS, at byte 1024, and the signature of a boot sector.
_BEGINNING: Final = 2048
_BOOT_SIGNATURE: Final = (510, b"\x55\xaa")


@dataclass(frozen=True, slots=True)
class Embedded:
    """`length` bytes at `offset` of the file are of `kind`: "squashfs", "erofs", "cpio", or a
    stream "gzip" (a member), "xz" (a stream), "zstd" (a frame). `path` is the way there, a
    container's own files behind it: b"images/pxeboot/rootfs.img/root.squashfs"; empty where the
    file itself is meant."""

    offset: int
    length: int
    kind: str
    path: bytes


def embedded(file: Reader, limit: int = MAX_PLAIN) -> list[Embedded]:
    """All that is found in the file, by offset; the container before what lies in it. Streams are
    looked for until `limit` bytes were decoded. Nothing is raised for what is malformed."""
    search = _Search(file, limit)
    search.look(0, file.size, b"", 0)
    return sorted(search.found, key=lambda one: (one.offset, -one.length))


class _Search:
    """The search, and what it may yet decode; every place is looked at once."""

    def __init__(self, file: Reader, limit: int) -> None:
        self._file, self._meter = file, Meter(limit, len)
        self.found: list[Embedded] = []
        self._looked: set[tuple[int, int]] = set()

    def look(self, offset: int, length: int, path: bytes, depth: int) -> None:
        """What the bytes [offset, offset+length) begin as, and what lies in them."""
        if (offset, length) in self._looked or len(self._looked) == MAX_LOOKS or depth > MAX_DEPTH:
            return
        self._looked.add((offset, length))
        window = WindowReader(self._file, offset, length)
        with suppress(HostileInput, LimitExceeded):
            if squashfs.recognise(window):
                self._add(offset, squashfs.read_superblock(window).size, "squashfs", path)
            elif erofs.recognise(window):
                head = erofs.read_super(window)
                self._add(offset, head.blocks * head.block, "erofs", path)
            elif iso9660.recognise(window):
                self._look_into(iso9660.read(window), offset, path, depth)
            elif _is_initramfs(window):
                self._look_through(window, offset, path, depth)

    def _look_through(self, window: Reader, offset: int, path: bytes, depth: int) -> None:
        """The archives of an initramfs, as far as they are good."""
        for segment in initramfs.segments(window, self._meter):
            at = offset + segment.offset
            if segment.kind == "cpio" or segment.kind in STREAMS:
                self._add(at, segment.length, segment.kind, path)
            if segment.kind == "cpio":
                with suppress(HostileInput):
                    self._look_into(cpio.read_files(window, segment.offset), offset, path, depth)

    def _look_into(self, system: FileSystem, offset: int, path: bytes, depth: int) -> None:
        """Every file that lies in one piece; the largest first."""
        whole = [content for content in system.contents if len(content.pieces) == 1]
        for content in sorted(whole, key=lambda content: content.size, reverse=True):
            at = system.blocks[content.pieces[0].block].offset
            inside = path + b"/" * bool(path) + content.path
            self.look(offset + at, content.size, inside, depth + 1)

    def _add(self, offset: int, length: int, kind: str, path: bytes) -> None:
        if len(self.found) < MAX_FOUND:
            self.found.append(Embedded(offset, length, kind, path))


def _is_initramfs(file: Reader) -> bool:
    """A cpio archive, or a stream of what is worth a look."""
    kind = initramfs.recognise(file)
    if kind in STREAMS:
        return _is_worth_it(initramfs.beginning(file, 0, _BEGINNING))
    return kind == "cpio"


def _is_worth_it(plain: bytes) -> bool:
    reader = BytesReader(plain)
    at, signature = _BOOT_SIGNATURE
    return (
        cpio.recognise(reader)
        or squashfs.recognise(reader)
        or erofs.recognise(reader)
        or plain[at : at + len(signature)] == signature
    )
