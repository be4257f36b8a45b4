"""zip with one member (PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5), as its deflate data.

    local header | name | extra | data | [data descriptor]
    central header | name | extra | comment
    [zip64 end record | zip64 locator] | end record | comment

What `zip -9j` makes of one disk, zip64 included. A file with more to it is declined and not
guessed at: other members, encryption, bytes that belong to nothing.
"""

from __future__ import annotations

import stat
import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from rehydrator.formats.decoding import Inflate, Meter, Parts, Stream
from rehydrator.formats.explanation import refuse_short, require
from rehydrator.formats.streams import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rehydrator.core.reader import Reader

# Sections 4.3.7, 4.3.12, 4.3.14, 4.3.15 and 4.3.16.
_LOCAL: Final = struct.Struct("<L5H3L2H")
_CENTRAL: Final = struct.Struct("<L6H3L5H2L")
_END64: Final = struct.Struct("<LQ2H2L4Q")
_LOCATOR: Final = struct.Struct("<LLQL")
_END: Final = struct.Struct("<L4H2LH")
_IS_LOCAL, _IS_CENTRAL, _IS_END64, _IS_END = b"PK\3\4", b"PK\1\2", b"PK\6\6", b"PK\5\6"
_IS_LOCATOR: Final = b"PK\6\7"
_LONGEST_COMMENT: Final = 0xFFFF

_STORED, _DEFLATED = 0, 8
# Section 4.4.4: bits 0, 6 and 13 encrypt; 1 and 2 tell the effort, 3 a data descriptor, 11 UTF-8.
_ENCRYPTED, _DESCRIPTOR, _KNOWN_FLAGS = 0x2041, 0x0008, 0x080E
_DESCRIPTORS: Final = (12, 16, 20, 24)  # section 4.3.9: with a signature, with zip64 sizes
_IS_DESCRIPTOR: Final = b"PK\7\x08"
_UNIX: Final = 3  # section 4.4.2: the attributes' upper half is a mode
_ZIP64: Final = 1  # section 4.5.3: the extra field that has the sizes
_ALL_ONES: Final = 0xFFFFFFFF
# The effort in gzip's terms (RFC 1952, 2.3.1, XFL): 2 for the slowest, 4 for the fastest.
_XFL: Final = {1: 2, 3: 4}
_NAMES_SHOWN: Final = 3
_STEP: Final = 256 << 10


class _Directory(NamedTuple):
    """Where the central headers lie, how many there are, and the length of the comment."""

    entries: int
    offset: int
    length: int
    zip64: bool
    comment: int


class _Entry(NamedTuple):
    """A central header; sizes and offset in bytes."""

    name: bytes
    made_by: int
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int
    mode: int
    length: int


def recognise(file: Reader) -> bool:
    """The signature of a local header at byte 0."""
    return file.size >= 4 and file.pread(0, 4) == _IS_LOCAL


def unpack(file: Reader, limit: int, take: Callable[[bytes], object], wanted: str = "") -> Layout:
    """The layout of a file whose only member has at most `limit` bytes, which `take` gets in
    order. A member that is stored as it is is a part that nothing encodes.

    `wanted` is the name that the member has to have, if given.

    Raises:
        Unexplained: it is another kind of zip file, or damaged; says what it has.
        LimitExceeded: above the limit.
    """
    require(recognise(file), "no zip file: another signature")
    directory = _directory(file)
    entry = _only_entry(file, directory, wanted)
    begin = _data_offset(file, entry, directory)
    meter, parts = Meter(limit, take), Parts()
    meter.expect(entry.size)
    crc = 0
    for chunk in _chunks(file, begin, entry):
        crc = zlib.crc32(chunk, crc)
        meter.take(chunk)
    same = (meter.total, crc) == (entry.size, entry.crc)
    require(same, "its member's length or CRC is not what its header says: damaged")
    family, hints = ("deflate", _hints(entry)) if entry.method == _DEFLATED else ("", {})
    parts.add(begin, entry.stored, 0, entry.size, family, hints)
    return Layout("zip", file.size, entry.size, parts, _facts(entry, directory))


def _chunks(file: Reader, begin: int, entry: _Entry) -> Iterator[bytes]:
    end = begin + entry.stored
    if entry.method == _STORED:
        yield from (file.pread(at, min(_STEP, end - at)) for at in range(begin, end, _STEP))
        return
    stream = Stream(file, begin, end, Inflate(), "deflate stream")
    made = 0
    for chunk in stream.chunks():
        made += len(chunk)
        require(made <= entry.size, "its member's length or CRC is not what its header says: damaged")
        yield chunk
    require(stream.packed == entry.stored, "its member's data end before its header says: damaged")


def _hints(entry: _Entry) -> Mapping[str, int]:
    effort = entry.flags >> 1 & 3
    return {"xfl": _XFL.get(effort, 0), "os": entry.made_by >> 8, "zip": 1}


def _facts(entry: _Entry, directory: _Directory) -> dict[str, str]:
    facts = {"name": entry.name.decode(errors="replace")}
    facts["method"] = "deflated" if entry.method == _DEFLATED else "stored"
    facts["zip64"] = "yes" if directory.zip64 else "no"
    if entry.flags & _DESCRIPTOR:
        facts["data descriptor"] = "yes"
    if directory.comment:
        facts["comment"] = f"{directory.comment} bytes"
    return facts


def _directory(file: Reader) -> _Directory:
    end = _end_record(file)
    fields = _END.unpack(_read(file, end, _END.size))
    _, disk, first, here, entries, length, offset, comment = fields
    zip64 = end >= _LOCATOR.size and _read(file, end - _LOCATOR.size, 4) == _IS_LOCATOR
    if zip64:
        _, disk, place, _ = _LOCATOR.unpack(_read(file, end - _LOCATOR.size, _LOCATOR.size))
        raw = _read(file, place, _END64.size)
        _, _, _, _, disk, first, here, entries, length, offset = _END64.unpack(raw)
        whole = raw[:4] == _IS_END64 and place + _END64.size == end - _LOCATOR.size
        require(whole, "its zip64 end record is damaged")
        end = place
    require(not disk and not first and here == entries, "it is one of several parts; join them first")
    require(
        offset + length == end,
        "its central directory is not where its end record says: damaged, or bytes around it",
    )
    return _Directory(entries, offset, length, zip64, comment)


def _end_record(file: Reader) -> int:
    """Where the end record lies: the only one whose comment ends with the file."""
    begin = max(file.size - _END.size - _LONGEST_COMMENT, 0)
    tail = file.pread(begin, file.size - begin)
    found, at = [], tail.find(_IS_END)
    while at >= 0:
        comment = int.from_bytes(tail[at + 20 : at + 22], "little")
        if at + _END.size + comment == len(tail):
            found.append(begin + at)
        at = tail.find(_IS_END, at + 1)
    require(bool(found), "no end record at its end: cut short, or other bytes are behind it")
    require(len(found) == 1, f"{len(found)} end records, and no telling which is meant")
    return found[0]


def _only_entry(file: Reader, directory: _Directory, wanted: str) -> _Entry:
    end = directory.offset + directory.length
    entry = _entry(file, directory.offset, end)
    known = directory.entries == 1 and (not wanted or entry.name == wanted.encode())
    if not known:
        names = _names(file, directory)
        what = f"one file called {wanted!r}" if wanted else "one file"
        require(condition=False, why=f"it holds {names}, not {what}; unpack it, or leave it out")
    require(entry.length == directory.length, "its central directory has bytes behind the last entry")
    _check_entry(entry)
    return entry


def _entry(file: Reader, at: int, end: int) -> _Entry:
    require(at != end, "it has no files")
    require(at + _CENTRAL.size <= end, "its central directory is cut short")
    raw = _read(file, at, _CENTRAL.size)
    fields = _CENTRAL.unpack(raw)
    _, made, _, flags, method, _, _, crc, stored, size, name, extra, comment, _, _, mode, header = fields
    length = _CENTRAL.size + name + extra + comment
    require(raw[:4] == _IS_CENTRAL and at + length <= end, "its central directory is damaged")
    text = _read(file, at + _CENTRAL.size, name + extra)
    size, stored, header = _large(text[name:], (size, stored, header))
    unix = mode >> 16 if made >> 8 == _UNIX else 0
    return _Entry(text[:name], made, flags, method, crc, stored, size, header, unix, length)


def _large(extra: bytes, values: tuple[int, int, int]) -> tuple[int, ...]:
    """Each value that is all ones stands in the zip64 extra field, one after the other."""
    at, large = 0, b""
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64:
            large = extra[at + 4 : at + 4 + length]
        at += 4 + length
    wanted = values.count(_ALL_ONES)
    require(len(large) >= 8 * wanted, "a size is missing from its zip64 extra field")
    given = iter(struct.unpack_from(f"<{wanted}Q", large))
    return tuple(next(given) if value == _ALL_ONES else value for value in values)


def _check_entry(entry: _Entry) -> None:
    require(not entry.flags & _ENCRYPTED, "its member is encrypted; unpack it first")
    require(
        entry.method in {_STORED, _DEFLATED} and not entry.flags & ~_KNOWN_FLAGS,
        f"its member has compression method {entry.method}, flags {entry.flags:#x}; "
        "only deflate is read: unpack it first",
    )
    regular = not entry.mode or stat.S_IFMT(entry.mode) in {0, stat.S_IFREG}
    require(regular, f"its member is no regular file (mode {entry.mode:o})")
    whole = entry.method != _STORED or entry.stored == entry.size
    require(whole, "its member is stored as it is, in another size than its own")


def _data_offset(file: Reader, entry: _Entry, directory: _Directory) -> int:
    """Where the data begin: the member begins the file, says the same of itself, and reaches
    the directory."""
    raw = _read(file, 0, _LOCAL.size)
    _, _, flags, method, *_, name, extra = _LOCAL.unpack(raw)
    begin: int = _LOCAL.size + name + extra
    alike = not entry.header and raw[:4] == _IS_LOCAL and (flags, method) == (entry.flags, entry.method)
    require(
        alike and _read(file, _LOCAL.size, name) == entry.name,
        "its member's two headers differ, or bytes stand before it",
    )
    behind = directory.offset - begin - entry.stored
    wanted = _DESCRIPTORS if entry.flags & _DESCRIPTOR else (0,)
    require(behind in wanted, f"{behind} bytes between its member and its central directory")
    return begin


def _names(file: Reader, directory: _Directory) -> str:
    at, end, names = directory.offset, directory.offset + directory.length, []
    for _ in range(min(directory.entries, _NAMES_SHOWN)):
        entry = _entry(file, at, end)
        names.append(repr(entry.name.decode(errors="replace")))
        at += entry.length
    more = directory.entries - len(names)
    return (", ".join(names) or "no file") + (f" and {more} more" if more else "")


def _read(file: Reader, at: int, length: int) -> bytes:
    inside = 0 <= at <= file.size - length
    require(inside, f"damaged or cut short: {length} bytes at {at} are outside of it")
    return refuse_short(file, at, length, "a record")
