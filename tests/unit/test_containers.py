"""Compressed containers are recognised by content and read once, in bounded memory, or refused."""

from __future__ import annotations

import bz2
import gzip as gzip_writer
import io
import lzma
import random
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest
from backports import zstd as zstd_writer

from rehydrator.core.errors import HostileInput, LimitExceeded, Unexplained
from rehydrator.core.reader import BytesReader
from rehydrator.formats import containers, decoding, gzip

if TYPE_CHECKING:
    from collections.abc import Callable

    from rehydrator.formats.streams import Layout

MIB = 1 << 20
DICE = random.Random(46)
TEXT = b" ".join(str(DICE.randrange(4000)).encode() for _ in range(60_000)) + bytes(300_000) + b"end"
MEMBER = "disk.raw"


def zipped(plain: bytes, name: str = MEMBER, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo(name), plain, compress_type=method)
    return out.getvalue()


def zstd_frame(plain: bytes, **flags: int) -> bytes:
    wanted = {"checksum_flag": 1, **flags}
    options: dict[int, int] = {
        zstd_writer.CompressionParameter[name]: value for name, value in wanted.items()
    }
    return zstd_writer.compress(plain, options=options)


WRITERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "gzip": lambda plain: gzip_writer.compress(plain, mtime=0),
    "zstd": zstd_frame,
    "bzip2": bz2.compress,
    "zip": zipped,
}
SUFFIXES = {"xz": ".xz", "gzip": ".gz", "zstd": ".zst", "bzip2": ".bz2", "zip": ".zip"}
IN_A_ROW = ["xz", "gzip", "zstd", "bzip2"]


def decoded(family: str, packed: bytes, hints: dict[str, int]) -> bytes:
    """A part by itself, by the standard library."""
    if family == "lzma2":
        chain = [{"id": lzma.FILTER_LZMA2, "dict_size": hints["dict_size"]}]
        return lzma.decompress(packed, lzma.FORMAT_RAW, filters=chain)
    if family == "deflate":
        return zlib.decompress(packed, -15)
    if family == "zstd":
        return zstd_writer.decompress(packed)
    return bz2.decompress(packed) if family == "bzip2" else packed


def read(data: bytes, limit: int = 8 * MIB, name: str = "a file") -> tuple[Layout, bytes]:
    """The layout, checked: its parts tile the plain bytes, do not overlap, and decode to them."""
    plain = bytearray()
    layout = containers.read(BytesReader(data), name, limit, plain.extend)
    at = plain_at = 0
    for part in layout.parts:
        assert at <= part.at
        assert part.plain_at == plain_at
        at, plain_at = part.at + part.packed, part.plain_at + part.plain
        if part.family or layout.container == "zip":
            again = decoded(part.family, data[part.at : at], dict(part.hints))
            assert again == plain[part.plain_at : plain_at]
    assert at <= layout.size == len(data)
    assert plain_at == layout.plain == len(plain)
    return layout, bytes(plain)


def refused(data: bytes, limit: int = 8 * MIB, name: str = "a file") -> str:
    with pytest.raises((HostileInput, LimitExceeded)) as caught:
        read(data, limit, name)
    assert str(caught.value).startswith(f"{name}: ")
    return str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("plain", [b"", b"x", TEXT, bytes(3 * MIB)], ids=["0", "1", "text", "zeros"])
def test_what_the_standard_library_writes_is_read(name: str, plain: bytes) -> None:
    """The container is told by content, its plain bytes come out, and its parts decode to them."""
    data = WRITERS[name](plain)
    layout, out = read(data)
    assert (name, plain) == (layout.container, out)
    assert name == containers.recognise(BytesReader(data))
    assert name == containers.CONTAINERS[SUFFIXES[name]].name


@pytest.mark.parametrize("name", IN_A_ROW)
def test_streams_in_a_row(name: str) -> None:
    """Several are several parts; an empty one has none in .xz, and an empty one elsewhere."""
    layout, out = read(WRITERS[name](TEXT) + WRITERS[name](b"") + WRITERS[name](b"more"))
    assert out == TEXT + b"more"
    expected = [len(TEXT), 4] if name == "xz" else [len(TEXT), 0, 4]
    assert expected == [part.plain for part in layout.parts]


def test_what_is_no_container() -> None:
    """Other content, and none, is recognised as nothing and declined by name."""
    for data in (b"", b"\x1f", b"plain text", b"QFI\xfb", b"BZh9 is text", b"PK\5\6" + bytes(18)):
        assert containers.recognise(BytesReader(data)) == ""
        assert "x.xz: its content is none of xz, gzip" in refused(data, name="x.xz")


@pytest.mark.parametrize("name", WRITERS)
def test_cut_short_anywhere(name: str) -> None:
    """No beginning of a file is the file."""
    data = WRITERS[name](TEXT[:200])
    for length in range(len(data)):
        assert refused(data[:length])


@pytest.mark.parametrize("name", WRITERS)
def test_a_bomb_stops_at_the_limit(name: str) -> None:
    """64 MiB of zeros: what is taken never exceeds the limit, and comes in small pieces. A file
    that says its size is refused at once."""
    data = WRITERS[name](bytes(64 * MIB))
    taken: list[int] = []
    with pytest.raises(LimitExceeded, match=f"bomb: it holds more than {MIB} plain bytes"):
        containers.read(BytesReader(data), "bomb", MIB, lambda chunk: taken.append(len(chunk)))
    assert sum(taken) == (0 if name in {"xz", "zstd", "zip"} else MIB)
    assert max(taken, default=0) <= 256 << 10


@pytest.mark.parametrize("name", WRITERS)
def test_the_limit_may_be_reached(name: str) -> None:
    """Exactly the limit is read, one byte less is refused; many streams share one limit."""
    data = WRITERS[name](TEXT)
    assert read(data, limit=len(TEXT))[1] == TEXT
    assert "plain bytes" in refused(data, limit=len(TEXT) - 1)
    if name in IN_A_ROW:
        assert "plain bytes" in refused(data + data, limit=2 * len(TEXT) - 1)


@pytest.mark.parametrize("name", WRITERS)
def test_damage_anywhere(name: str) -> None:
    """Every bit flipped: refused, or the very same bytes (a time, a name, a spare bit)."""
    plain = TEXT[:40]
    data = WRITERS[name](plain)
    outcomes = set()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert read(bytes(damaged), limit=MIB)[1] == plain
            outcomes.add("same")
        except (HostileInput, LimitExceeded):
            outcomes.add("refused")
    assert "refused" in outcomes
    assert name in {"xz", "zstd"} or "same" in outcomes


def test_what_take_raises_comes_out() -> None:
    """A full disk under `take` ends the reading, as what it is."""

    def full(_chunk: bytes) -> None:
        raise LimitExceeded("no space left")

    with pytest.raises(LimitExceeded, match="no space left"):
        containers.read(BytesReader(lzma.compress(TEXT)), "x", MIB, full)


@pytest.mark.parametrize("check", [lzma.CHECK_NONE, lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256])
def test_xz_checks_are_checked(check: int) -> None:
    """Plain bytes that are not those of the check are refused: each of its bits counts."""
    data = lzma.compress(b"x" * 50, check=check)
    layout, _ = read(data)
    (part,) = layout.parts
    (size,) = {0: [0], 1: [4], 4: [8], 10: [32]}[check]
    at = part.at + part.packed + -part.packed % 4
    for byte in range(at, at + size):
        assert "damaged" in refused(data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :])


@pytest.mark.parametrize(
    "filters",
    [
        [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}],
        [{"id": lzma.FILTER_DELTA, "dist": 4}, {"id": lzma.FILTER_LZMA2, "preset": 1}],
    ],
)
def test_xz_filters_are_decoded(filters: list[dict[str, int]]) -> None:
    """A chain with BCJ or delta is decoded and checked; its block is a part that nothing encodes."""
    layout, out = read(lzma.compress(TEXT, filters=filters))
    assert out == TEXT
    assert [part.family for part in layout.parts] == [""]
    assert layout.facts["filters"] in {"x86+lzma2", "delta+lzma2"}


def test_xz_hints_and_facts() -> None:
    """The dictionary is a hint; check, blocks and dictionary are facts."""
    layout, _ = read(lzma.compress(TEXT, preset=3) + bytes(8))
    assert dict(layout.parts[0].hints) == {"dict_size": 4 * MIB}
    expected = {"streams": "1", "check": "crc64", "blocks": "1", "dictionary": str(4 * MIB)}
    assert expected.items() <= layout.facts.items()


def test_a_dictionary_beyond_reason_is_refused() -> None:
    """Headers may ask for 4 GiB (xz) and 2 GiB windows (zstd): neither is allocated."""
    data = bytearray(lzma.compress(TEXT))
    properties = data.index(b"\x21\x01", 12) + 2
    data[properties] = 40
    data[20:24] = zlib.crc32(bytes(data[12:20])).to_bytes(4, "little")
    assert f"dictionary of {2**32 - 1} bytes" in refused(bytes(data))
    frame = bytearray(zstd_frame(TEXT, window_log=20, content_size_flag=0))
    frame[5] = 21 << 3
    assert f"window of {2**31} bytes" in refused(bytes(frame))


def test_gzip_members_of_every_kind() -> None:
    """FEXTRA, FNAME, FCOMMENT and FHCRC, BGZF, and trailing bytes; hints are XFL and OS."""
    fields = struct.pack("<H", 3) + b"xyz" + b"disk.raw\0" + b"a note\0"
    header = struct.pack("<2sBBIBB", b"\x1f\x8b", 8, 2 | 4 | 8 | 16, 7, 2, 3) + fields
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflate.compress(TEXT) + deflate.flush()
    data = header + body + struct.pack("<II", zlib.crc32(TEXT), len(TEXT)) + b"trailing"
    layout, out = read(data)
    assert out == TEXT
    (part,) = layout.parts
    assert (len(header), len(body), {"xfl": 2, "os": 3}) == (part.at, part.packed, dict(part.hints))
    expected = {"members": "1", "xfl": "2", "os": "3", "name": "disk.raw", "mtime": "7"}
    assert {**expected, "trailing bytes": "8"} == dict(layout.facts)
    zeros = read(data[: -len(b"trailing")] + bytes(512))[0]
    assert zeros.facts["trailing bytes"] == "512 (zeros)"


def bgzf_block(plain: bytes) -> bytes:
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = deflate.compress(plain) + deflate.flush()
    header = struct.pack("<2sBBIBBHBBHH", b"\x1f\x8b", 8, 4, 0, 0, 255, 6, 66, 67, 2, len(body) + 25)
    return header + body + struct.pack("<II", zlib.crc32(plain), len(plain))


def test_many_small_members() -> None:
    """BGZF: a part for each of 20,000 members, none merged, each in 40 bytes of memory."""
    layout, out = read(bgzf_block(b"some text") * 20_000)
    assert out == b"some text" * 20_000
    assert (len(layout.parts), layout.facts["kind"]) == (20_000, "BGZF")
    parts = layout.parts
    assert isinstance(parts, decoding.Parts)
    assert parts._numbers.itemsize * 4 + parts._kinds.itemsize == 40
    assert parts[-1] == list(parts)[-1] == parts[19_999]
    assert [parts[0], parts[2]] == parts[0:3:2]
    with pytest.raises(IndexError):
        parts[20_000]


def test_the_number_of_parts_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of empty streams holds no plain bytes at all, and still has an end."""
    monkeypatch.setattr(decoding, "MAX_PARTS", 5)
    monkeypatch.setattr(gzip, "MAX_MEMBERS", 5)
    for name in ("gzip", "zstd", "bzip2"):
        assert len(read(WRITERS[name](b"") * 5)[0].parts) == 5
        assert "more than 5" in refused(WRITERS[name](b"") * 6)


def test_bzip2_levels_and_trailing_bytes() -> None:
    """The level is the hint; bzip2 ignores what follows and is no stream, and so is it here."""
    data = bz2.compress(TEXT, 1) + bz2.compress(TEXT, 9)
    layout, out = read(data + b"BZh9 is no stream")
    assert out == TEXT + TEXT
    assert [dict(part.hints) for part in layout.parts] == [{"level": 1}, {"level": 9}]
    assert dict(layout.facts) == {"streams": "2", "level": "1, 9", "trailing bytes": "17"}


SKIPPABLE = bytes.fromhex("5a2a4d18") + struct.pack("<I", 5) + b"hello"


@pytest.mark.parametrize("checksum", [0, 1])
@pytest.mark.parametrize("said", [0, 1])
@pytest.mark.parametrize("size", [0, 255, 256, 70_000, len(TEXT)])
def test_zstd_headers(size: int, said: int, checksum: int) -> None:
    """Every width of the content size, with and without a checksum: hints are what is said."""
    window = 17
    data = zstd_frame(TEXT[:size], checksum_flag=checksum, content_size_flag=said, window_log=window)
    layout, out = read(data)
    assert out == TEXT[:size]
    (part,) = layout.parts
    assert (checksum, said) == (part.hints["checksum"], part.hints["content_size"])
    single = bool(said) and size <= 1 << window
    assert (int(single), not single) == (part.hints["single_segment"], part.hints["window_log"] > 0)


def test_zstd_skippable_frames() -> None:
    """They hold nothing, wherever they are, and are no parts."""
    layout, out = read(SKIPPABLE + zstd_frame(b"one") + SKIPPABLE * 2 + zstd_frame(b"two") + SKIPPABLE)
    assert out == b"onetwo"
    assert (layout.facts["frames"], layout.facts["skippable frames"]) == ("2", "4")
    assert read(SKIPPABLE)[1] == b""
    assert "skippable zstd frame at byte 0 is cut short" in refused(SKIPPABLE[:-1])


def test_zstd_that_is_refused() -> None:
    """Trailing bytes, a reserved bit, a dictionary, a content size that is not true."""
    good = zstd_frame(TEXT)
    assert "no zstd frame at byte" in refused(good + b"trailing")
    assert "reserved bit" in refused(good[:4] + bytes([good[4] | 8]) + good[5:])
    book = zstd_writer.train_dict([TEXT[at : at + 500] for at in range(0, 100_000, 500)], 4096)
    assert f"needs dictionary {book.dict_id}" in refused(zstd_writer.compress(TEXT, zstd_dict=book))
    at = good.index(struct.pack("<I", len(TEXT)))
    for lie in (len(TEXT) - 1, len(TEXT) + 1):
        assert "damaged" in refused(good[:at] + struct.pack("<I", lie) + good[at + 4 :])
    huge = good[:at] + struct.pack("<I", 2**31) + good[at + 4 :]
    assert "more than 8388608 plain bytes" in refused(huge)


def test_zip_members_that_are_read() -> None:
    """Deflated, and stored as it is: then nothing encodes it, and both lengths are the same."""
    layout, _ = read(zipped(TEXT), name=f"{MEMBER}.zip")
    (part,) = layout.parts
    assert (part.family, dict(part.hints)) == ("deflate", {"xfl": 0, "os": 3, "zip": 1})
    layout, out = read(zipped(TEXT, method=zipfile.ZIP_STORED))
    (part,) = layout.parts
    assert ("", len(TEXT), "stored") == (part.family, part.packed, layout.facts["method"])
    assert out == TEXT


def test_a_zip_comment_is_kept() -> None:
    """Behind the end record; one that looks as if it were another end record is no guess."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"a note"
        archive.writestr(MEMBER, TEXT)
    layout, plain = read(out.getvalue())
    assert plain == TEXT
    assert layout.facts["comment"] == "6 bytes"
    data = zipped(TEXT)
    two = data[:-2] + struct.pack("<H", 22) + b"PK\5\6" + bytes(18)
    assert "2 end records" in refused(two)


def test_zip_with_a_data_descriptor_and_zip64() -> None:
    """As Python writes it to a pipe, with sizes that could be large."""

    class Pipe(io.BytesIO):
        def seek(self, _offset: int, _whence: int = 0, /) -> int:
            raise io.UnsupportedOperation

    out = Pipe()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(MEMBER, "w", force_zip64=True) as member,
    ):
        member.write(TEXT)
    layout, plain = read(out.getvalue())
    assert plain == TEXT
    assert layout.facts["data descriptor"] == "yes"


def many(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"x")
    return out.getvalue()


def test_zip_files_of_other_contents() -> None:
    """Several members, duplicates, another name, a link, encryption: it says what it has."""
    assert "it holds 'a', 'b', not one file;" in refused(many("a", "b"))
    assert "it holds 'a', 'a', not one file;" in refused(with_duplicate())
    ten = refused(many(*map(str, range(10))))
    assert "'0', '1', '2' and 7 more" in ten
    assert "not one file called 'disk.raw'" in refused(many("other"), name="disk.raw.zip")
    assert "no regular file (mode 120777)" in refused(
        patched(many("a"), 38, struct.pack("<L", 0o120777 << 16))
    )
    for flags in (0x0001, 0x0040, 0x2000):
        assert "encrypted" in refused(patched(many("a"), 8, struct.pack("<H", flags)))
    assert "compression method 12" in refused(patched(many("a"), 10, struct.pack("<H", 12)))


def with_duplicate() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate"):
        return many("a", "a")


def patched(data: bytes, field: int, value: bytes) -> bytes:
    """The field at `field` of the only central header is `value`."""
    at = struct.unpack_from("<L", data, len(data) - 6)[0] + field
    return data[:at] + value + data[at + len(value) :]


def test_zip_headers_that_lie() -> None:
    """Sizes, CRC, place and the two headers are held against each other and the data."""
    data = zipped(TEXT)
    packed = struct.unpack_from("<L", data, 18)[0]
    assert "length or CRC" in refused(patched(data, 16, bytes(4)))
    assert "length or CRC" in refused(patched(data, 24, struct.pack("<L", len(TEXT) - 1)))
    assert "length or CRC" in refused(patched(data, 24, struct.pack("<L", len(TEXT) + 1)))
    assert "bytes between its member and" in refused(patched(data, 20, struct.pack("<L", packed - 1)))
    assert "zip64 extra field" in refused(patched(data, 24, b"\xff" * 4))
    assert "two headers differ" in refused(patched(data, 42, b"\1"))
    assert "two headers differ" in refused(data[:30] + b"D" + data[31:])
    assert "several parts" in refused(data[:-18] + b"\1" + data[-17:])
    assert "end record says" in refused(data[:-10] + b"\xff" * 8 + data[-2:])
    assert "or other bytes are behind it" in refused(data + b"x")


def test_zip_members_larger_than_they_say() -> None:
    """What is inflated beyond the size in the header is not handed on."""
    data = patched(zipped(bytes(64 * MIB)), 24, struct.pack("<L", MIB))
    taken: list[int] = []
    with pytest.raises(Unexplained, match="length or CRC"):
        containers.read(BytesReader(data), "bomb", 8 * MIB, lambda chunk: taken.append(len(chunk)))
    assert sum(taken) == MIB


def test_errors_keep_their_kind() -> None:
    """What is declined is Unexplained (exit 8), what is too large LimitExceeded (exit 9)."""
    with pytest.raises(Unexplained):
        read(lzma.compress(TEXT)[:-1])
    with pytest.raises(LimitExceeded):
        read(lzma.compress(TEXT), limit=5)
