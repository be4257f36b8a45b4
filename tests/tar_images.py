"""Makes tar files: members, pax headers, and sparse members of the three kinds that are explained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rehydrator.formats import c_tar as c

if TYPE_CHECKING:
    from collections.abc import Sequence

END = bytes(1024)
GNU = b"ustar  \0"
POSIX = b"ustar\x0000"


def header(
    size: int,
    kind: bytes = b"0",
    *,
    magic: bytes = POSIX,
    name: bytes = b"disk.raw",
    binary: bool = False,
    sparse: bytes = b"",
    signed: bool = False,
) -> bytes:
    """A header block with a good checksum; `sparse` goes where old GNU has its map."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:124] = b"0000644\x000000000\x000000000\0"
    block[124:136] = b"\x80" + size.to_bytes(11, "big") if binary else b"%011o\0" % size
    block[136:148] = b"14700000000\0"
    block[c.TYPE] = kind
    block[257:265] = magic
    block[c.SPARSE_AT : c.SPARSE_AT + len(sparse)] = sparse
    return seal(bytes(block), signed=signed)


def seal(block: bytes, *, signed: bool = False) -> bytes:
    """The header with its checksum made good."""
    return block[:148] + b"%06o\0 " % c.checksums(block)[signed] + block[156:]


def padded(data: bytes) -> bytes:
    """The data, padded with zeros to whole blocks."""
    return data + bytes(-len(data) % 512)


def member(data: bytes, kind: bytes = b"0", **options: object) -> bytes:
    """A header and its data."""
    return header(len(data), kind, **options) + padded(data)  # type: ignore[arg-type]


def pax(records: dict[str, str]) -> bytes:
    """A pax header with these records."""
    data = b""
    for key, value in records.items():
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        data += str(length).encode() + body
    return member(data, b"x")


def extents_of(data: bytes, step: int = 512) -> list[tuple[int, int]]:
    """(offset, length) of what is not zero, by steps; ended by an empty extent as GNU tar does."""
    found: list[tuple[int, int]] = []
    for start in range(0, len(data), step):
        if any(data[start : start + step]):
            length = len(data[start : start + step])
            if found and sum(found[-1]) == start:
                found[-1] = found[-1][0], found[-1][1] + length
            else:
                found.append((start, length))
    return [*found, (len(data), 0)]


def packed(data: bytes, extents: Sequence[tuple[int, int]]) -> bytes:
    """The extents' bytes, one after the other."""
    return b"".join(data[offset : offset + length] for offset, length in extents)


def old_gnu(data: bytes, extents: Sequence[tuple[int, int]] | None = None, *, binary: bool = False) -> bytes:
    """An old GNU sparse member, with as many extension blocks as the map needs."""
    extents = extents_of(data) if extents is None else extents

    def number(value: int) -> bytes:
        return b"\x80" + value.to_bytes(11, "big") if binary else b"%011o\0" % value

    def entries(some: Sequence[tuple[int, int]], count: int) -> bytes:
        text = b"".join(number(offset) + number(length) for offset, length in some)
        return text.ljust(24 * count, b"\0")

    first, rest = extents[:4], extents[4:]
    body = packed(data, extents)
    more = b"\1" if rest else b"\0"
    made = header(
        len(body), b"S", magic=GNU, binary=binary, sparse=entries(first, 4) + more + number(len(data))
    )
    while rest:
        some, rest = rest[:21], rest[21:]
        made += (entries(some, 21) + (b"\1" if rest else b"\0")).ljust(512, b"\0")
    return made + padded(body)


def pax_01(data: bytes) -> bytes:
    """A PAX 0.1 sparse member: the map in a record."""
    extents = extents_of(data)
    text = ",".join(f"{offset},{length}" for offset, length in extents)
    records = {"GNU.sparse.size": str(len(data)), "GNU.sparse.numblocks": str(len(extents))}
    return pax(records | {"GNU.sparse.map": text}) + member(packed(data, extents))


def pax_10(data: bytes) -> bytes:
    """A PAX 1.0 sparse member: the map before the data."""
    extents = extents_of(data)
    lines = "".join(f"{offset}\n{length}\n" for offset, length in extents)
    text = padded(f"{len(extents)}\n{lines}".encode())
    records = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(len(data)),
    }
    return pax(records) + member(text + packed(data, extents))
