"""Tar files that carry a disk, explained in place: OVA, and what GCP takes.

    tar = (header | member's bytes | padding)* | two blocks of zeros | padding

A member that another format explains keeps its explanation, moved to its place; so does a tar
in the tar, a few levels deep (KubeVirt's ociarchive: an OCI layout with the layer that holds
the disk). A sparse member is a raw disk whose data extents lie packed, one after the other:

    header | (extension block)* | extent | extent | …        old GNU, type "S"
    header | map as decimal lines, padded | extent | …       PAX 1.0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import Copy
from rehydrator.core.reader import WindowReader
from rehydrator.formats import c_tar as c
from rehydrator.formats import raw
from rehydrator.formats.explanation import (
    GUEST,
    MAX_EXTENTS,
    Explanation,
    Extent,
    GuestReader,
    NoDiskError,
    OpsBuilder,
    moved,
    refuse_short,
    require,
)
from rehydrator.formats.runs import present

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Each


Records = dict[bytes, bytes]
Inside = Callable[["Reader"], Explanation]

# A release's tar has a handful of members; one with more is a file tree, not a disk.
MAX_MEMBERS = 1 << 14
MAX_RECORDS = 4 << 20
MAX_DISK = 64 << 40
_MAX_DIGITS = 20

# A tar around an OCI layer around an OVA is three; each level reads the headers below it once.
MAX_DEPTH = 4


def no_disk(member: Reader) -> Explanation:
    """What is made of members that no format knows, unless somebody else can."""
    raise NoDiskError


@dataclass(frozen=True, slots=True)
class Member:
    """A regular member: `stored` bytes of the tar from `data` on are a file of `size` bytes.

    `extents` is the map of a sparse member, None where the bytes lie as they are.
    """

    data: int
    stored: int
    size: int
    extents: tuple[Extent, ...] | None = None


class _Header(NamedTuple):
    at: int
    block: bytes
    records: Records

    @property
    def type(self) -> bytes:
        return self.block[c.TYPE]


def recognise(file: Reader) -> bool:
    """A first header with the ustar magic, of POSIX or of old GNU, and a good checksum."""
    return file.size >= c.BLOCK and _is_header(file.pread(0, c.BLOCK))


def explain(file: Reader, each: Each = map, packed: Inside = no_disk) -> Explanation:
    """The largest member that is a disk, or a tar with one, is the guest; all else stays FILE.
    `packed` explains members of no known format: what is compressed.

    Raises:
        Unexplained: no member is a disk that can be explained, or the tar is malformed.
    """
    return _explain(file, each, packed, MAX_DEPTH)


def _explain(file: Reader, each: Each, packed: Inside, depth: int) -> Explanation:
    members = sorted(_members(file), key=lambda member: member.size, reverse=True)
    declined = []
    for member in members:
        try:
            return _explain_member(file, member, each, packed, depth)
        except NoDiskError:
            continue
        except HostileInput as error:
            declined.append(str(error))
    if declined:
        raise Unexplained(declined[0])
    raise NoDiskError("no member is a disk")


def _explain_member(file: Reader, member: Member, each: Each, packed: Inside, depth: int) -> Explanation:
    if member.extents is not None:
        return _explain_sparse(file, member, member.extents)
    from rehydrator.formats import FORMATS  # late: that table has this module in it

    window = WindowReader(file, member.data, member.stored, "member")
    found = next((f for f in FORMATS if f.recognise(window)), None)
    if found is None:
        inner = packed(window)
    elif found.explain is explain:
        require(depth > 1, f"a tar in a tar, more than {MAX_DEPTH} deep")
        inner = _explain(window, each, packed, depth - 1)
    else:
        inner = found.explain(window, each)
    return replace(moved(inner, member.data, file.size), format=f"tar+{inner.format}")


def _explain_sparse(file: Reader, member: Member, extents: tuple[Extent, ...]) -> Explanation:
    guest = GuestReader(file, member.size, present(file, extents))
    if not raw.recognise(guest):
        raise NoDiskError
    ops = OpsBuilder(file.size)
    for extent in extents:
        ops.add(extent.file, Copy(extent.length, GUEST, extent.guest))
    return Explanation("tar (sparse)+raw", guest, ops.finish(), facts={"extents": str(len(extents))})


def _members(file: Reader) -> Iterator[Member]:
    """The regular members, in order."""
    at, records = 0, Records()
    for _ in range(MAX_MEMBERS):
        block = _header_block(file, at)
        if block is None:
            return
        header = _Header(at, block, records)
        stored = _stored_size(header)
        data, member = _member(file, header, stored)
        require(data + stored <= file.size, f"the member at {at} ends behind the end of the file")
        if member is not None:
            yield member
        if header.type == c.PAX:
            records = _pax_records(file, data, stored)
        elif header.type in c.REGULAR + c.WITHOUT_DATA + (c.OLD_GNU_SPARSE,):
            records = Records()  # they describe the next member alone
        at = data + c.padded(stored)
    raise Unexplained(f"more than {MAX_MEMBERS} members")


def _header_block(file: Reader, at: int) -> bytes | None:
    """The header at `at`; None at the end of the archive."""
    if at >= file.size:
        return None
    block = refuse_short(file, at, c.BLOCK, "a header")
    if not any(block):
        return None
    require(_is_header(block), f"no header at {at}, where a member should begin")
    return block


def _is_header(block: bytes) -> bool:
    try:
        return block[c.MAGIC] == c.USTAR and _number(block[c.CHECKSUM]) in c.checksums(block)
    except Unexplained:
        return False


def _stored_size(header: _Header) -> int:
    if header.type in c.WITHOUT_DATA:
        return 0
    if header.type in c.REGULAR and c.PAX_SIZE in header.records:
        return _decimal(header.records[c.PAX_SIZE])
    return _number(header.block[c.SIZE])


def _member(file: Reader, header: _Header, stored: int) -> tuple[int, Member | None]:
    """Where the stored bytes begin, and the member if it is one that can hold a disk."""
    data = header.at + c.BLOCK
    if header.type == c.OLD_GNU_SPARSE:
        numbers, data = _old_gnu_map(file, header)
        return data, _sparse(data, stored, _number(header.block[c.SPARSE_REAL_SIZE]), numbers)
    if header.type not in c.REGULAR:
        return data, None
    records = header.records
    if c.PAX_MAP in records:
        numbers = [_decimal(number) for number in records[c.PAX_MAP].split(b",")]
        return data, _sparse(data, stored, _decimal(records.get(c.PAX_MAP_SIZE, b"")), numbers)
    if (records.get(c.PAX_MAJOR), records.get(c.PAX_MINOR)) == (b"1", b"0"):
        numbers, length = _pax_map(file, data, stored)
        size = _decimal(records.get(c.PAX_REAL_SIZE, b""))
        return data, _sparse(data + length, stored - length, size, numbers)
    if any(key.startswith(c.PAX_SPARSE) for key in records):
        return data, None  # PAX 0.0, which GNU tar has not written since 2004
    return data, Member(data, stored, stored)


def _sparse(data: int, stored: int, size: int, numbers: list[int]) -> Member:
    """A sparse member from its map: offset, length, offset, length, …

    Every extent begins on a block of the tar; one that does not fill its last block must
    therefore be the last (GNU tar's own reader skips to the next block).
    """
    require(len(numbers) % 2 == 0 and len(numbers) <= 2 * MAX_EXTENTS, "a sparse map of odd length")
    require(0 < size <= MAX_DISK, f"a sparse member of {size} bytes")
    extents = []
    place = data
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        require(offset + length <= size, "a sparse extent ends behind the end of its member")
        if length:
            extents.append(Extent(offset, length, place))
            place += length
    require(place == data + stored, "a sparse map that does not add up to the member's size")
    for one, two in pairwise(extents):
        require(one.guest + one.length <= two.guest, "sparse extents overlap or go backwards")
        require(one.length % c.BLOCK == 0, "a sparse extent that is not whole blocks")
    return Member(data, stored, size, tuple(extents))


def _old_gnu_map(file: Reader, header: _Header) -> tuple[list[int], int]:
    """The numbers of the map, and where the extension blocks end. They lie in a row, so the
    file's end bounds them."""
    numbers = _old_gnu_entries(header.block, c.SPARSE_AT, c.SPARSE_COUNT)
    more = header.block[c.SPARSE_EXTENDED]
    at = header.at + c.BLOCK
    while more:
        block = refuse_short(file, at, c.BLOCK, "a sparse extension block")
        numbers += _old_gnu_entries(block, 0, c.EXTENSION_COUNT)
        require(len(numbers) <= 2 * MAX_EXTENTS, f"more than {MAX_EXTENTS} sparse extents")
        more = block[c.EXTENSION_EXTENDED]
        at += c.BLOCK
    return numbers, at


def _old_gnu_entries(block: bytes, at: int, count: int) -> list[int]:
    numbers = []
    for entry in range(at, at + count * 2 * c.DIGITS, 2 * c.DIGITS):
        offset, length = (
            block[entry : entry + c.DIGITS],
            block[entry + c.DIGITS : entry + 2 * c.DIGITS],
        )
        if not length[0]:
            break  # an unused entry
        numbers += [_number(offset), _number(length)]
    return numbers


def _pax_map(file: Reader, data: int, stored: int) -> tuple[list[int], int]:
    """The map of a PAX 1.0 sparse member, and the bytes it takes, padding included."""
    text = bytearray()
    wanted = 1
    while text.count(b"\n") < wanted:
        length = min(1 << 16, stored - len(text))
        require(length > 0 and len(text) < MAX_RECORDS, "a sparse map without an end")
        text += refuse_short(file, data + len(text), length, "a sparse map")
        if wanted == 1 and b"\n" in text:
            wanted += 2 * _decimal(bytes(text[: text.index(b"\n")]))
    lines = bytes(text).split(b"\n", wanted)[:wanted]
    used = c.padded(sum(len(line) + 1 for line in lines))
    require(used <= stored, "a sparse map longer than its member")
    return [_decimal(line) for line in lines[1:]], used


def _pax_records(file: Reader, at: int, length: int) -> Records:
    """The "length key=value" lines of a pax header; the last of a key counts."""
    require(length <= MAX_RECORDS, f"a pax header of {length} bytes")
    text = refuse_short(file, at, length, "a pax header")
    records = Records()
    start = 0
    while start < len(text):
        digits, space, _ = text[start : start + _MAX_DIGITS].partition(b" ")
        end = start + _decimal(digits)
        record = text[start + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        require(bool(space and equals) and end <= len(text), "a malformed pax header")
        require(record.endswith(b"\n"), "a malformed pax header")
        records[key] = value[:-1]
        start = end
    return records


def _number(text: bytes) -> int:
    """A number of a header: octal digits, or base 256 where the first bit is set."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.split(b"\0", 1)[0].strip(b" ")
    require(all(digit in b"01234567" for digit in digits), f"the number {text!r}")
    return int(digits or b"0", 8)


def _decimal(text: bytes) -> int:
    require(text.isdigit() and len(text) <= _MAX_DIGITS, f"the number {text[:40]!r}")
    return int(text)
