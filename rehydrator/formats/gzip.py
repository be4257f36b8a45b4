"""gzip (RFC 1952): members one after another, then perhaps bytes that belong to none.

    member    header | raw deflate stream (RFC 1951) | CRC-32 | ISIZE
    header    1f 8b 08 | FLG | MTIME (4) | XFL | OS | FEXTRA? | FNAME? | FCOMMENT? | FHCRC?

Nothing in a member says where it ends: only inflating it does. That is done in small steps, and
the plain bytes are handed on as they come, so that no stream is ever in memory as a whole.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from rehydrator.core.errors import Unexplained
from rehydrator.formats.decoding import MAX_PARTS, Inflate, Meter, Parts, Stream
from rehydrator.formats.explanation import refuse_short, require
from rehydrator.formats.streams import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rehydrator.core.reader import Reader

MAGIC: Final = b"\x1f\x8b"
MAX_MEMBERS: Final = MAX_PARTS
MAX_HEADER: Final = 80 << 10
"""Bytes: FEXTRA takes 64 KiB at most (its length has 16 bits); names have no limit of their own."""
MAX_HEADERS: Final = 32 << 20
"""Bytes of all headers, which a recipe holds; those of 1,048,576 BGZF members take 18 MiB."""

# FLG (RFC 1952, 2.3.1).
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT, _RESERVED = 2, 4, 8, 16, 0xE0
_FIXED: Final = struct.Struct("<2sBBIBB")
_TRAILER: Final = struct.Struct("<II")
_LIKELY_HEADER = 512
_STEP = 64 << 10


class Header(NamedTuple):
    """A member's header; `raw` is all of it, exactly. `mtime` is in seconds since 1970, 0 where
    there is none; `bgzf` is what the BC field says of the member's size in bytes (SAM/BAM format
    specification, 4.1), None where there is no such field."""

    raw: bytes
    mtime: int
    xfl: int
    os: int
    name: bytes | None
    bgzf: int | None


class _Member(NamedTuple):
    """`packed` bytes of deflate data at `packed_at` of the file, behind the header; behind them
    CRC-32 and ISIZE, and there the member ends."""

    header: Header
    packed_at: int
    packed: int
    plain_at: int
    plain: int

    @property
    def end(self) -> int:
        return self.packed_at + self.packed + _TRAILER.size

    @property
    def says_its_size(self) -> bool:
        """As every member of BGZF does."""
        return self.header.bgzf == len(self.header.raw) + self.packed + _TRAILER.size


def recognise(file: Reader) -> bool:
    """The magic number and the only compression method at byte 0."""
    return file.size >= 3 and file.pread(0, 3) == MAGIC + b"\x08"


def unpack(file: Reader, limit: int, take: Callable[[bytes], object]) -> Layout:
    """The layout of a file of at most `limit` plain bytes, which `take` gets in order, in pieces
    of at most 256 KiB. A piece comes before its member's CRC-32 is known to be right.

    What follows a member is another if it begins with the magic number, as in GNU gzip.

    Raises:
        Unexplained: malformed, cut short, or too many members.
        LimitExceeded: above the limit.
    """
    meter, parts, bgzf = Meter(limit, take), Parts(), True
    first = None
    end = 0
    for member in _members(file, meter):
        first, end = first or member, member.end
        bgzf = bgzf and member.says_its_size
        hints = {"xfl": member.header.xfl, "os": member.header.os}
        parts.add(member.packed_at, member.packed, member.plain_at, member.plain, "deflate", hints)
    assert first is not None
    facts = {"members": str(len(parts)), **_facts(first.header, bgzf=bgzf)}
    if end < file.size:
        facts["trailing bytes"] = f"{file.size - end}{' (zeros)' if _zeros(file, end) else ''}"
    return Layout("gzip", file.size, meter.total, parts, facts)


def read_header(file: Reader, offset: int) -> Header:
    """The header at `offset` (RFC 1952, 2.3).

    Raises:
        Unexplained: it is malformed, cut short, or larger than 80 KiB.
    """
    for length in (_LIKELY_HEADER, MAX_HEADER):
        raw = file.pread(offset, min(length, file.size - offset))
        header = _parse_header(raw)
        if header is not None:
            return header
    raise Unexplained(f"the gzip header at byte {offset} has no end within {len(raw)} bytes")


def _more(file: Reader, offset: int) -> bool:
    return file.size - offset >= len(MAGIC) and file.pread(offset, len(MAGIC)) == MAGIC


def _zeros(file: Reader, offset: int) -> bool:
    return all(not any(file.pread(at, min(_STEP, file.size - at))) for at in range(offset, file.size, _STEP))


def _members(file: Reader, meter: Meter) -> Iterator[_Member]:
    """The members as they come, each when its plain bytes were handed on and checked."""
    count = offset = headers = 0
    while not count or _more(file, offset):
        require(count < MAX_MEMBERS, f"more than {MAX_MEMBERS} gzip members")
        member = _read_member(file, offset, meter)
        count, offset = count + 1, member.end
        headers += len(member.header.raw)
        require(headers <= MAX_HEADERS, f"gzip headers of more than {MAX_HEADERS} bytes")
        yield member


def _read_member(file: Reader, offset: int, meter: Meter) -> _Member:
    header = read_header(file, offset)
    begin, before = offset + len(header.raw), meter.total
    stream = Stream(file, begin, file.size, Inflate(), "deflate stream")
    crc = 0
    for chunk in stream.chunks():
        crc = zlib.crc32(chunk, crc)
        meter.take(chunk)
    plain = meter.total - before
    trailer = refuse_short(file, begin + stream.packed, _TRAILER.size, "CRC-32 and ISIZE")
    said_crc, said_size = _TRAILER.unpack(trailer)
    require(said_crc == crc, f"the gzip member at byte {offset} has another CRC-32 than it says")
    require(said_size == plain % 2**32, f"the gzip member at byte {offset} is not of the size it says")
    return _Member(header, begin, stream.packed, before, plain)


def _facts(header: Header, *, bgzf: bool) -> dict[str, str]:
    facts = {"xfl": str(header.xfl), "os": str(header.os)}
    if header.name is not None:
        facts["name"] = header.name.decode("latin-1")  # RFC 1952, 2.3.1
    if header.mtime:
        facts["mtime"] = str(header.mtime)
    if bgzf:
        facts["kind"] = "BGZF"
    return facts


def _parse_header(raw: bytes) -> Header | None:
    """The header that `raw` begins with; None where `raw` ends before it."""
    if len(raw) < _FIXED.size:
        return None
    magic, method, flags, mtime, xfl, system = _FIXED.unpack_from(raw)
    require(magic == MAGIC, "not gzip: no magic number")
    require(method == 8, f"gzip compression method {method}")
    require(not flags & _RESERVED, f"reserved gzip flags {flags:#x}")
    at = _FIXED.size
    extra = name = None
    if flags & _FEXTRA:
        size = int.from_bytes(raw[at : at + 2], "little")
        extra = raw[at + 2 : at + 2 + size]
        at += 2 + size
    if flags & _FNAME:
        name, at = _text(raw, at)
    if flags & _FCOMMENT:
        _, at = _text(raw, at)
    end = at + 2 if flags & _FHCRC else at
    if end > len(raw):
        return None
    said = int.from_bytes(raw[at:end], "little")
    require(end == at or said == zlib.crc32(raw[:at]) & 0xFFFF, "the gzip header's CRC-16 is wrong")
    return Header(raw[:end], mtime, xfl, system, name, _bgzf(extra))


def _text(raw: bytes, at: int) -> tuple[bytes, int]:
    """The zero-terminated text at `at`, and where it ends: beyond `raw` where there is no zero."""
    end = raw.find(0, at)
    return (raw[at:end], end + 1) if end >= 0 else (b"", len(raw) + 1)


def _bgzf(extra: bytes | None) -> int | None:
    """The size in the BC subfield: SI1 SI2 LEN (2), and BSIZE, the member's size less one."""
    at = 0
    while extra is not None and at + 4 <= len(extra):
        size = int.from_bytes(extra[at + 2 : at + 4], "little")
        if extra[at : at + 2] == b"BC" and size == 2 and at + 6 <= len(extra):
            return int.from_bytes(extra[at + 4 : at + 6], "little") + 1
        at += 4 + size
    return None
