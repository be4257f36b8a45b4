"""gzip files are read member by member, in bounded memory, or declined with a reason."""

from __future__ import annotations

import random
import struct
import zlib
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import HostileInput, LimitExceeded, Unexplained
from rehydrator.core.reader import BytesReader
from rehydrator.formats import gzip

if TYPE_CHECKING:
    from rehydrator.formats.streams import Layout

DICE = random.Random(44)
MIB = 1 << 20
FHCRC, FEXTRA, FNAME, FCOMMENT = 2, 4, 8, 16
TEXT = b" ".join(str(DICE.randrange(4000)).encode() for _ in range(60_000))


def member(plain: bytes, flags: int = 0, fields: bytes = b"", mtime: int = 0) -> bytes:
    """A member made by hand; `fields` are those that the flags announce, without FHCRC."""
    header = struct.pack("<2sBBIBB", b"\x1f\x8b", 8, flags, mtime, 0, 3) + fields
    if flags & FHCRC:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = deflate.compress(plain) + deflate.flush()
    return header + body + struct.pack("<II", zlib.crc32(plain), len(plain) % 2**32)


def bgzf(plain: bytes) -> bytes:
    """A BGZF block: its BC field holds its size less one."""
    empty = member(plain, FEXTRA, struct.pack("<H2sHH", 6, b"BC", 2, 0))
    return member(plain, FEXTRA, struct.pack("<H2sHH", 6, b"BC", 2, len(empty) - 1))


def read(data: bytes, limit: int = MIB) -> tuple[Layout, bytes]:
    plain = bytearray()
    layout = gzip.unpack(BytesReader(data), limit, plain.extend)
    return layout, bytes(plain)


def refused(data: bytes, limit: int = MIB) -> str:
    with pytest.raises(Unexplained) as caught:
        read(data, limit)
    return str(caught.value)


def test_a_header_with_every_field_is_read_and_kept() -> None:
    """FEXTRA, FNAME, FCOMMENT and FHCRC are told apart, and the header's bytes are all there."""
    fields = struct.pack("<H", 3) + b"xyz" + b"disk.raw\0" + b"a note\0"
    data = member(b"plain", FHCRC | FEXTRA | FNAME | FCOMMENT, fields, mtime=1_700_000_000)
    header = gzip.read_header(BytesReader(data), 0)
    expected = (b"disk.raw", 1_700_000_000, 3, None)
    assert expected == (header.name, header.mtime, header.os, header.bgzf)
    assert data[: 10 + len(fields) + 2] == header.raw


def test_bgzf_is_found_as_such() -> None:
    """Every member of BGZF says its size; one that does not, or lies, makes it plain gzip."""
    blocks = [bgzf(TEXT[at : at + 65280]) for at in range(0, 200_000, 65280)] + [bgzf(b"")]
    layout, plain = read(b"".join(blocks))
    assert TEXT[: 4 * 65280] == plain
    assert [len(block) for block in blocks] == [
        gzip.read_header(BytesReader(block), 0).bgzf for block in blocks
    ]
    assert layout.facts["kind"] == "BGZF"
    assert "kind" not in read(blocks[0] + member(b"x"))[0].facts
    lying = bytearray(blocks[0])
    lying[16] ^= 1
    assert "kind" not in read(bytes(lying))[0].facts


def test_the_limit_is_over_all_members_and_may_be_reached() -> None:
    """Exactly the limit is read, one byte less is refused."""
    data = member(b"x" * 600) + member(b"y" * 400) + member(b"")
    assert 1000 == read(data, limit=1000)[0].plain  # noqa: SIM300
    with pytest.raises(LimitExceeded, match="more than 999 plain bytes"):
        read(data, limit=999)


def test_output_that_fills_a_piece_exactly_ends_well() -> None:
    """Streams that end at a multiple of the piece size are whole."""
    for size in (256 << 10, 512 << 10):
        assert bytes(size) == read(member(bytes(size)))[1]


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty members cost 20 bytes each: their number is limited, not only their plain bytes."""
    monkeypatch.setattr(gzip, "MAX_MEMBERS", 5)
    assert len(read(member(b"") * 5)[0].parts) == 5
    assert "more than 5 gzip members" in refused(member(b"") * 6)


def test_too_many_header_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers are held in memory: their bytes are limited as well."""
    monkeypatch.setattr(gzip, "MAX_HEADERS", 50)
    assert len(read(member(b"") * 5)[0].parts) == 5
    assert "headers of more than 50 bytes" in refused(member(b"") * 6)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "has no end within 0 bytes"),
        (b"PK\x03\x04" + bytes(20), "no magic number"),
        (b"\x1f\x8b\x07" + bytes(20), "compression method 7"),
        (b"\x1f\x8b\x08\xe0" + bytes(20), "reserved gzip flags"),
        (member(b"x", FNAME, b"n\0")[:11], "has no end"),
        (member(b"x", FNAME, b"n" * 100_000 + b"\0"), "has no end within 81920 bytes"),
        (member(b"x", FEXTRA, b"\xff\xff"), "has no end"),
        (member(TEXT)[:-5000], "is cut short"),
        (member(TEXT)[:-3], "CRC-32 and ISIZE"),
        (member(b"x")[:-1] + b"\1", "not of the size"),
        (member(b"x")[:-8] + bytes(4) + b"\1\0\0\0", "another CRC-32"),
        (member(b"x") + b"\x1f\x8b\x08", "has no end within 3 bytes"),
        (member(b"x", FHCRC)[:10] + b"\0\0" + member(b"x")[10:], "CRC-16"),
        (member(b"x")[:10] + b"\xff" * 20, "deflate stream at byte 10 is damaged"),
    ],
)
def test_what_is_malformed_is_declined_in_words(data: bytes, why: str) -> None:
    """The reason says what is wrong and where."""
    assert why in refused(data)


def test_a_long_extra_field_is_read() -> None:
    """FEXTRA of its largest size, with a name of some size behind it."""
    fields = struct.pack("<H", 65535) + bytes(65535) + b"n" * 1000 + b"\0"
    assert "n" * 1000 == read(member(b"x", FEXTRA | FNAME, fields))[0].facts["name"]  # noqa: SIM300


def test_mutations_and_truncations_only_ever_decline() -> None:
    """Any byte changed and any length cut gives a layout or Unexplained, within the limit."""
    good = bgzf(TEXT[:300]) + member(TEXT[:200], FHCRC | FNAME | FCOMMENT, b"a\0b\0") + b"end"
    broken = [good[:size] for size in range(len(good))]
    for at in range(len(good)):
        broken.append(good[:at] + bytes([good[at] ^ 1 << DICE.randrange(8)]) + good[at + 1 :])
        broken.append(good[:at] + DICE.randbytes(1) + good[at + 1 :])
    declined = 0
    for data in broken:
        try:
            _, plain = read(data, limit=2000)
        except (HostileInput, LimitExceeded):
            declined += 1
        else:
            assert len(plain) <= 2000
    assert declined > len(broken) // 2
