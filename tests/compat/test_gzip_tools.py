"""Members that real tools and libraries wrote: their encoder is found, and writes them again."""

from __future__ import annotations

import gzip as writer
import io
import random
import struct
import zipfile
import zlib
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from zlib_ng import gzip_ng, zlib_ng

from rehydrator import host
from rehydrator.codecs import streams
from rehydrator.core.reader import BytesReader
from rehydrator.formats import gzip
from rehydrator.host.filters import run_filter
from tests.compat import sid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
DICE = random.Random(45)
SAMPLES = MIB, 32 * MIB


@cache
def plain() -> bytes:
    """3 MiB: words, records, noise, zeros, and words again."""
    words = [DICE.randbytes(DICE.randrange(2, 9)).hex().encode() for _ in range(3000)]
    text = b" ".join(DICE.choice(words) for _ in range(260_000))[: 2 * MIB]
    records = b"".join(struct.pack("<IHH", k, k * 7 % 65536, DICE.randrange(9)) for k in range(50_000))
    return (text[:MIB] + records + DICE.randbytes(200 * KIB) + bytes(300 * KIB) + text[MIB:])[: 3 * MIB]


def made(*argv: str, given: bytes | None = None) -> bytes:
    result = host.run(argv, 60, stdin=plain() if given is None else given)
    assert result.status == 0, result.said
    return result.stdout


def python_gzip(level: int) -> bytes:
    buffer = io.BytesIO()
    with writer.GzipFile("disk.raw", "wb", level, buffer, mtime=1_700_000_000) as file:
        file.write(plain())
    return buffer.getvalue()


def zlib_member(level: int, memlevel: int) -> bytes:
    deflate = zlib.compressobj(level, zlib.DEFLATED, 31, memlevel)
    return deflate.compress(plain()) + deflate.flush()


def ng_member(level: int, piece: int) -> bytes:
    deflate: Any = zlib_ng.compressobj(level, zlib.DEFLATED, 31, 8)
    pieces = (plain()[at : at + piece] for at in range(0, len(plain()), piece))
    packed: bytes = b"".join(map(deflate.compress, pieces)) + deflate.flush()
    return packed


def only_member(data: bytes) -> tuple[bytes, bytes, dict[str, int]]:
    """The plain bytes of a file's only member, its deflate data, and its hints."""
    plain = bytearray()
    layout = gzip.unpack(BytesReader(data), 64 * MIB, plain.extend)
    (part,) = layout.parts
    assert part.at + part.packed + 8 == len(data)
    return bytes(plain), data[part.at : -8], dict(part.hints)


def recovered(data: bytes) -> tuple[str, dict[str, int]]:
    """The first encoder that a trial on a beginning finds and the whole proves."""
    text, packed, hints = only_member(data)
    for size in SAMPLES:
        whole = size >= len(text)
        begin = packed if whole else packed[:size]
        for hit in streams.find("deflate", text[:size], begin, hints, whole=whole, run=run_filter):
            if proven(text, packed, hit.codec, dict(hit.params)) is None:
                return hit.codec, dict(hit.params)
    return "none", {}


def proven(text: bytes, packed: bytes, codec: str, params: dict[str, int]) -> int | None:
    return streams.prove(streams.encoder(codec, params, run_filter), [text], [packed])


def stream_of(codec: str, **params: int) -> bytes:
    return b"".join(streams.encoder(codec, params, run_filter).encode([plain()]))


@pytest.mark.parametrize("level", [1, 6, 9])
@pytest.mark.parametrize("rsyncable", [0, 1])
def test_gnu_gzip_is_found(level: int, rsyncable: int) -> None:
    """gzip 1.12, from a pipe."""
    data = made("gzip", "-nc", f"-{level}", *["--rsyncable"] * rsyncable)
    assert ("deflate.gzip", {"level": level, "rsyncable": rsyncable}) == recovered(data)


def test_gnu_gzip_with_name_and_time_is_found(tmp_path: Path) -> None:
    """The header of `gzip FILE` has FNAME and MTIME; the deflate data is that of a pipe."""
    (tmp_path / "disk.raw").write_bytes(plain())
    data = made("gzip", "-6c", str(tmp_path / "disk.raw"))
    header = gzip.read_header(BytesReader(data), 0)
    assert b"disk.raw" == header.name  # noqa: SIM300
    assert int((tmp_path / "disk.raw").stat().st_mtime) == header.mtime
    assert ("deflate.gzip", {"level": 6, "rsyncable": 0}) == recovered(data)  # noqa: SIM300


@pytest.mark.parametrize("flag", ["-p1", "-p3", "-i", "-R"])
def test_pigz_is_found_whatever_its_threads(flag: str) -> None:
    """pigz writes the same bytes with one thread and with three."""
    params = {"independent": int(flag == "-i"), "rsyncable": int(flag == "-R"), "level": 6}
    assert ("deflate.pigz", params) == recovered(made("pigz", "-nc", flag))


@pytest.mark.parametrize("level", [1, 6, 9])
def test_python_gzip_is_found(level: int) -> None:
    """GzipFile is zlib with memLevel 8; its pieces do not matter."""
    params = {"level": level, "memlevel": 8}
    assert ("deflate.zlib", params) == recovered(python_gzip(level))
    assert ("deflate.zlib", params) == recovered(writer.compress(plain(), level))


def test_zlib_with_memlevel_9_is_found() -> None:
    """memLevel 9 has longer blocks than 8."""
    params = {"level": 6, "memlevel": 9}
    assert ("deflate.zlib", params) == recovered(zlib_member(6, 9))


@pytest.mark.parametrize(("level", "piece"), [(1, 8 * KIB), (6, 16 * KIB), (6, 64 * KIB), (9, 64 * KIB)])
def test_zlib_ng_is_found_with_its_pieces(level: int, piece: int) -> None:
    """At levels 1, 5 and 6 the size of the writer's pieces is recovered as well."""
    params = {"level": level, "memlevel": 8, "piece": piece}
    assert ("deflate.zlib-ng", params) == recovered(ng_member(level, piece))


def test_zlib_ng_depends_on_its_pieces_and_zlib_does_not() -> None:
    """The reason why `piece` is a parameter of the one and not of the other."""
    for level in range(1, 10):
        params = {"level": level, "memlevel": 8}
        new = {stream_of("deflate.zlib-ng", **params, piece=piece) for piece in (8 * KIB, 64 * KIB)}
        assert len(new) == (2 if level in {1, 5, 6} else 1), level
        deflate = zlib.compressobj(level, zlib.DEFLATED, -15, 8)
        old = b"".join(deflate.compress(plain()[at : at + 999]) for at in range(0, len(plain()), 999))
        assert old + deflate.flush() == stream_of("deflate.zlib", **params), level


def test_gzip_ng_writer_is_found() -> None:
    """The gzip writer of the zlib-ng package, at a level that does not depend on pieces."""
    buffer = io.BytesIO()
    opened: Any = gzip_ng.GzipNGFile
    with opened("x", "wb", 9, buffer) as file:
        file.write(plain())
    assert (recovered(buffer.getvalue())[0], recovered(buffer.getvalue())[1]["level"]) == (
        "deflate.zlib-ng",
        9,
    )


def test_gnu_gzip_is_not_reproduced_by_a_library() -> None:
    """The reason why the program is run: no level of any library gives its bytes."""
    data = made("gzip", "-nc")
    text, packed, _ = only_member(data)
    hits = streams.find("deflate", text[: 320 * KIB], packed, {}, whole=False)
    assert [proven(text, packed, hit.codec, dict(hit.params)) is None for hit in hits] == [False] * len(hits)


def test_a_wrong_encoder_is_refused_at_an_offset() -> None:
    """prove names the first byte that differs."""
    data = made("gzip", "-nc")
    text, packed, _ = only_member(data)
    offset = proven(text, packed, "deflate.gzip", {"level": 9, "rsyncable": 0})
    other = made("gzip", "-nc9")[10:]
    assert offset == next(
        at for at, pair in enumerate(zip(data[10:], other, strict=False)) if len({*pair}) > 1
    )


def test_bgzf_members_are_recovered_one_by_one() -> None:
    """Members of 65,280 plain bytes, as bgzip cuts them, are whole samples each."""
    blocks = []
    for at in range(0, 300_000, 65280):
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        text = plain()[at : at + 65280]
        body = deflate.compress(text) + deflate.flush()
        extra = struct.pack("<H2sHH", 6, b"BC", 2, len(body) + 25)
        blocks.append(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + extra + body)
        blocks.append(struct.pack("<II", zlib.crc32(text), len(text)))
    data = b"".join(blocks)
    layout = gzip.unpack(BytesReader(data), MIB, lambda _: None)
    assert (layout.facts["kind"], len(layout.parts)) == ("BGZF", 5)
    for part in layout.parts:
        text = plain()[part.plain_at : part.plain_at + part.plain]
        packed = data[part.at : part.at + part.packed]
        (hit,) = streams.find("deflate", text, packed, part.hints, whole=True)
        assert ("deflate.zlib", 6) == (hit.codec, dict(hit.params)["level"])  # noqa: SIM300


def test_members_that_tools_append_are_read() -> None:
    """cat of two files, with zeros behind them, is two members."""
    one, two = made("gzip", "-nc9"), made("pigz", "-nc")
    taken = bytearray()
    layout = gzip.unpack(BytesReader(one + two + bytes(512)), 7 * MIB, taken.extend)
    assert plain() * 2 == bytes(taken)
    assert [10, len(one) + 10] == [part.at for part in layout.parts]
    assert layout.facts["trailing bytes"] == "512 (zeros)"


def test_zeros_are_recovered() -> None:
    """20 MiB of zeros: levels agree with each other, the whole decides."""
    data = made("gzip", "-nc9", given=bytes(20 * MIB))
    name, params = recovered(data)
    assert ("deflate.gzip", 0) == (name, params["rsyncable"])  # noqa: SIM300


@pytest.mark.parametrize("level", [1, 6])
def test_the_beginning_of_a_disk_does_not_mislead(level: int) -> None:
    """Where there is little in 3 MiB, zlib has ended a block that agrees with gzip's, and gzip has
    ended none: more is looked at before gzip is refused."""
    disk = DICE.randbytes(200) + bytes(2 * MIB) + DICE.randbytes(6000) + bytes(38 * MIB)
    params = {"level": level, "rsyncable": 0}
    assert ("deflate.gzip", params) == recovered(made("gzip", "-nc", f"-{level}", given=disk))


def test_options_of_the_environment_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """GZIP=--rsyncable changes what gzip writes, and nothing where the variable is emptied."""
    usual = made("gzip", "-nc")
    monkeypatch.setenv("GZIP", "--rsyncable")
    assert usual != made("gzip", "-nc")
    assert usual[10:-8] == stream_of("deflate.gzip", level=6, rsyncable=0)


@pytest.mark.parametrize("level", [1, 2, 6, 9])
def test_zip_writes_the_bytes_of_gzip(level: int, tmp_path: Path) -> None:
    """The member of `zip ARCHIVE FILE` is what zip streams, and what gzip writes: either program
    gives back the other's files."""
    (tmp_path / "disk.raw").write_bytes(plain())
    made("zip", "-q", f"-{level}", "-j", str(tmp_path / "disk.zip"), str(tmp_path / "disk.raw"))
    with zipfile.ZipFile(tmp_path / "disk.zip") as archive:
        (entry,) = archive.infolist()
    data = (tmp_path / "disk.zip").read_bytes()
    begin = 30 + sum(struct.unpack_from("<HH", data, 26))
    packed = data[begin : begin + entry.compress_size]
    assert packed == stream_of("deflate.zip", level=level)
    assert packed == stream_of("deflate.gzip", level=level, rsyncable=0)


@pytest.mark.parametrize("level", [1, 6, 9])
def test_gzip_of_sid_writes_the_same(level: int) -> None:
    """gzip of two Debian releases later writes the same bytes: the program is stable."""
    for flags in ((), ("--rsyncable",)):
        newer = made(*sid.program("gzip"), "-nc", f"-{level}", *flags)
        assert made("gzip", "-nc", f"-{level}", *flags) == newer, flags


def test_gzip_of_sid_is_another_version() -> None:
    """The second program in the test above really is another one."""
    said = made(*sid.program("gzip"), "--version", given=b"").split()[1]
    assert said.decode() != streams.version("deflate.gzip", run_filter).split()[1]


def test_zip_streams_what_is_shorter_than_its_header() -> None:
    """One byte, and nothing at all, through the program: raw deflate."""
    for text in (b"", b"x", b"hello"):
        packed = b"".join(streams.encoder("deflate.zip", {"level": 6}, run_filter).encode([text]))
        assert zlib.decompress(packed, -15) == text


def test_a_program_ends_when_the_comparison_does() -> None:
    """A wrong encoder reads little of its input after the first difference."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(4000):
            taken += 64 * KIB
            yield DICE.randbytes(64 * KIB)

    program = streams.encoder("deflate.gzip", {"level": 6, "rsyncable": 0}, run_filter)
    assert streams.prove(program, endless(), [b"\xff" * 100]) == 0
    assert taken < 32 * MIB


def test_a_stream_that_nobody_wrote_is_not_recovered() -> None:
    """Stored blocks of 1,000 bytes are gzip, and no encoder here writes them."""
    text = plain()[:300_000]
    pieces = [text[at : at + 1000] for at in range(0, len(text), 1000)]
    body = b"".join(struct.pack("<BHH", 0, len(p), len(p) ^ 0xFFFF) + p for p in pieces) + b"\1\0\0\xff\xff"
    data = b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + body + struct.pack("<II", zlib.crc32(text), len(text))
    assert ("none", {}) == recovered(data)  # noqa: SIM300


def test_levels_differ_where_they_should() -> None:
    """The inputs tell the levels of gzip apart, so that the tests above can fail."""
    every = [made("gzip", "-nc", f"-{level}") for level in (1, 6, 9)]
    assert all(one[10:] != two[10:] for one, two in pairwise(every))
