"""The one member of a zip file, as a stream (PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5).

    local header | name | extra | data | [data descriptor]
    central header | name | extra | comment
    [zip64 end record | zip64 locator] | end record

What `zip -9j` makes of one disk, zip64 included. A file with more to it is refused and not
guessed at: other members, encryption, bytes that belong to nothing, a comment behind the end.
"""

from __future__ import annotations

import io
import stat
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, NoReturn

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Sections 4.3.7, 4.3.12, 4.3.14, 4.3.15 and 4.3.16.
_LOCAL: Final = struct.Struct("<L5H3L2H")
_CENTRAL: Final = struct.Struct("<L6H3L5H2L")
_END64: Final = struct.Struct("<LQ2H2L4Q")
_LOCATOR: Final = struct.Struct("<LLQL")
_END: Final = struct.Struct("<L4H2LH")
_IS_LOCAL, _IS_CENTRAL, _IS_END64, _IS_END = 0x04034B50, 0x02014B50, 0x06064B50, 0x06054B50

_STORED, _DEFLATED = 0, 8
# Section 4.4.4: bits 0, 6 and 13 encrypt; 1 and 2 tell the effort, 3 a data descriptor, 11 UTF-8.
_ENCRYPTED, _DESCRIPTOR, _KNOWN_FLAGS = 0x2041, 0x0008, 0x080E
_DESCRIPTORS: Final = (12, 16, 20, 24)  # section 4.3.9: with a signature, with zip64 sizes
_UNIX: Final = 3  # section 4.4.2: the attributes' upper half is a mode
_ZIP64: Final = 1  # section 4.5.3: the extra field that has the sizes
_ALL_ONES: Final = 0xFFFFFFFF
_NAMES_SHOWN: Final = 3
_PACKED = 1 << 20
_BUFFER = 4 << 20


class _Directory(NamedTuple):
    """Where the central headers lie, and how many there are."""

    entries: int
    offset: int
    length: int


class _Entry(NamedTuple):
    """A central header; sizes and offset in bytes."""

    name: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int
    mode: int
    length: int


def open_member(packed: BinaryIO, what: str) -> BinaryIO:
    """The plain bytes of the only member of the zip file `what`, whose name is the zip file's
    without `.zip`; its length and CRC are checked when its end is read.

    Raises:
        HostileInput: it is another kind of zip file, or damaged; says what it has.
    """
    packed.seek(0, io.SEEK_END)
    zipped = _Zipped(packed, packed.tell(), what)
    return io.BufferedReader(_Member(zipped, zipped.only_member()), _BUFFER)


class _Zipped:
    """A zip file and the checks of its structure."""

    def __init__(self, packed: BinaryIO, size: int, what: str) -> None:
        self.packed, self._size, self._what = packed, size, what

    def refuse(self, why: str) -> NoReturn:
        raise HostileInput(f"{self._what}: {why}")

    def only_member(self) -> _Entry:
        """The member, checked; the file stands where its data begin."""
        directory = self._directory()
        entry = self._entry(directory.offset, directory.offset + directory.length)
        wanted = self._what.removesuffix(".zip")
        if directory.entries != 1 or entry.name != wanted.encode():
            self.refuse(
                f"it holds {self._names(directory)}, not one file called {wanted!r}; "
                "unpack it, or leave it out of the directory"
            )
        if entry.length != directory.length:
            self.refuse("its central directory has bytes behind the last entry")
        self._check_entry(entry)
        self._check_place(entry, directory)
        return entry

    def _directory(self) -> _Directory:
        end = self._size - _END.size
        magic, disk, first, here, entries, length, offset, comment = self._unpack(_END, end)
        if magic != _IS_END or comment:
            self.refuse("no end record at its end: cut short, or a comment or other bytes are behind it")
        if end >= _LOCATOR.size and self._read(end - _LOCATOR.size, 4) == b"PK\6\7":
            _, disk, place, _ = self._unpack(_LOCATOR, end - _LOCATOR.size)
            magic, _, _, _, disk, first, here, entries, length, offset = self._unpack(_END64, place)
            if magic != _IS_END64 or place + _END64.size != end - _LOCATOR.size:
                self.refuse("its zip64 end record is damaged")
            end = place
        if disk or first or here != entries:
            self.refuse("it is one of several parts; join them first")
        if offset + length != end:
            self.refuse("its central directory is not where its end record says: damaged, or bytes around it")
        return _Directory(entries, offset, length)

    def _entry(self, at: int, end: int) -> _Entry:
        if at + _CENTRAL.size > end:
            self.refuse("it has no files" if at == end else "its central directory is cut short")
        fields = self._unpack(_CENTRAL, at)
        magic, made, _, flags, method, _, _, crc, stored, size, name, extra, comment, _, _, mode, header = (
            fields
        )
        text = self._read(at + _CENTRAL.size, name + extra)
        length = _CENTRAL.size + name + extra + comment
        if magic != _IS_CENTRAL or at + length > end:
            self.refuse("its central directory is damaged")
        size, stored, header = self._large(text[name:], (size, stored, header))
        unix = mode >> 16 if made >> 8 == _UNIX else 0
        return _Entry(text[:name], flags, method, crc, stored, size, header, unix, length)

    def _large(self, extra: bytes, values: tuple[int, int, int]) -> tuple[int, ...]:
        """Each value that is all ones stands in the zip64 extra field, one after the other."""
        at, large = 0, b""
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == _ZIP64:
                large = extra[at + 4 : at + 4 + length]
            at += 4 + length
        wanted = values.count(_ALL_ONES)
        if len(large) < 8 * wanted:
            self.refuse("a size is missing from its zip64 extra field")
        given = iter(struct.unpack_from(f"<{wanted}Q", large))
        return tuple(next(given) if value == _ALL_ONES else value for value in values)

    def _check_entry(self, entry: _Entry) -> None:
        if entry.flags & _ENCRYPTED:
            self.refuse("its member is encrypted; unpack it first")
        if entry.method not in {_STORED, _DEFLATED} or entry.flags & ~_KNOWN_FLAGS:
            self.refuse(
                f"its member has compression method {entry.method}, flags {entry.flags:#x}; "
                "only deflate is read: unpack it first"
            )
        if entry.mode and stat.S_IFMT(entry.mode) not in {0, stat.S_IFREG}:
            self.refuse(f"its member is no regular file (mode {entry.mode:o})")
        if entry.method == _STORED and entry.stored != entry.size:
            self.refuse("its member is stored as it is, in another size than its own")

    def _check_place(self, entry: _Entry, directory: _Directory) -> None:
        """The member begins the file, says the same of itself, and reaches the directory."""
        magic, _, flags, method, *_, name, extra = self._unpack(_LOCAL, 0)
        begin = _LOCAL.size + name + extra
        same = (flags, method) == (entry.flags, entry.method)
        if entry.header or magic != _IS_LOCAL or not same or self._read(_LOCAL.size, name) != entry.name:
            self.refuse("its member's two headers differ, or bytes stand before it")
        behind = directory.offset - begin - entry.stored
        if behind not in (_DESCRIPTORS if entry.flags & _DESCRIPTOR else (0,)):
            self.refuse(f"{behind} bytes between its member and its central directory")
        self.packed.seek(begin)

    def _names(self, directory: _Directory) -> str:
        at, end, names = directory.offset, directory.offset + directory.length, []
        for _ in range(min(directory.entries, _NAMES_SHOWN)):
            entry = self._entry(at, end)
            names.append(repr(entry.name.decode(errors="replace")))
            at += entry.length
        more = directory.entries - len(names)
        return (", ".join(names) or "no file") + (f" and {more} more" if more else "")

    def _unpack(self, layout: struct.Struct, at: int) -> tuple[int, ...]:
        return layout.unpack(self._read(at, layout.size))

    def _read(self, at: int, length: int) -> bytes:
        if not 0 <= at <= self._size - length:
            self.refuse(f"damaged or cut short: {length} bytes at {at} are outside of it")
        self.packed.seek(at)
        data = self.packed.read(length)
        if len(data) != length:
            self.refuse("it shrank while it was read")
        return data


class _Member(io.RawIOBase):
    """The plain bytes of a member that the file stands at."""

    def __init__(self, zipped: _Zipped, entry: _Entry) -> None:
        self._zipped, self._entry = zipped, entry
        self._left, self._made, self._crc = entry.stored, 0, 0
        self._decoder = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == _DEFLATED else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        made = self._inflate(len(view)) if self._decoder else self._input(len(view))
        self._made += len(made)
        self._crc = zlib.crc32(made, self._crc)
        if self._made > self._entry.size or (not made and self._wrong_end()):
            self._zipped.refuse("its member's length or CRC is not what its header says: damaged")
        view[: len(made)] = made
        return len(made)

    def _inflate(self, length: int) -> bytes:
        """At most `length` bytes, at least one but for the end."""
        decoder, made = self._decoder, b""
        assert decoder is not None
        while not made and not decoder.eof:
            data = decoder.unconsumed_tail or self._input(_PACKED)
            made = decoder.decompress(data, length)
            if not made and not data and not decoder.eof:
                raise EOFError("its member ends within the compressed data")
        return made

    def _input(self, length: int) -> bytes:
        data = self._zipped.packed.read(min(length, self._left))
        self._left -= len(data)
        return data

    def _wrong_end(self) -> bool:
        behind = self._left or (self._decoder and self._decoder.unused_data)
        return bool(behind) or (self._made, self._crc) != (self._entry.size, self._entry.crc)
