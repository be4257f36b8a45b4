"""Blocks of file systems decode to exactly their bytes, or are refused."""

from __future__ import annotations

import lzma
import random
import sys
import zlib

import pytest
from backports import zstd

from rehydrator.codecs import blocks
from rehydrator.core.errors import HostileInput

PLAIN = random.Random(5).randbytes(900) * 10
LZ4 = {
    b"\x50hello": b"hello",
    b"\x11a\1\0\x50vwxyz": b"aaaaaavwxyz",
    b"\xf0\x03" + b"q" * 18: b"q" * 18,
    b"\x2fab\2\0\x01\x50vwxyz": b"ab" + b"ab" * 10 + b"vwxyz",
}
BROKEN_LZ4 = [b"", b"\x50hell", b"\xf0", b"\x11a\0\0\0", b"\x11a\2\0\0", b"\x11a\1", b"\x1fa\1\0"]


def micro_lzma(plain: bytes) -> bytes:
    """As lzma_microlzma_encoder writes it, but for an end mark, which its decoders do not look at."""
    chain = [{"id": lzma.FILTER_LZMA1, "preset": 6, "lc": 3, "lp": 0, "pb": 2}]
    raw = lzma.compress(plain, lzma.FORMAT_RAW, filters=chain)
    return bytes([~((2 * 5 + 0) * 9 + 3) & 0xFF]) + raw[1:]


def deflate(plain: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return encoder.compress(plain) + encoder.flush()


def unsized(plain: bytes) -> bytes:
    """A zstd frame that does not state its size."""
    encoder = zstd.ZstdCompressor()
    return encoder.compress(plain) + encoder.flush()


# The LZ4 block is one literal run of 9,000 bytes: 15 + 35 * 255 + 60.
PACKED = {
    "xz": lzma.compress(PLAIN),
    "zstd.frame": unsized(PLAIN),
    "deflate": deflate(PLAIN),
    "lz4": b"\xf0" + b"\xff" * 35 + bytes([60]) + PLAIN,
    "lzma1": micro_lzma(PLAIN),
}
ENDED = sorted(PACKED.keys() - {"lzma1"})
PADDED = sorted(PACKED.keys() - {"xz"})


@pytest.fixture(params=["the lz4 package", "Python"])
def lz4(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both decoders of LZ4."""
    if request.param == "Python":
        monkeypatch.setitem(sys.modules, "lz4", None)


@pytest.mark.parametrize("name", PACKED)
def test_a_block_is_exactly_as_long_as_it_says(name: str, lz4: None) -> None:
    """Neither more nor fewer bytes: MicroLZMA, which has no end mark, can say fewer."""
    assert blocks.decode(name, PACKED[name], {}, len(PLAIN)) == PLAIN
    for size in [len(PLAIN) + 1] + [len(PLAIN) - 1, 1] * (name != "lzma1"):
        with pytest.raises(HostileInput):
            blocks.decode(name, PACKED[name], {}, size)


@pytest.mark.parametrize("name", PACKED)
def test_a_prefix_is_as_long_as_is_asked_for(name: str) -> None:
    """What comes behind it is not looked at; a block that holds less is refused."""
    for size in (1, 900, len(PLAIN) - 1, len(PLAIN)):
        assert blocks.decode(name, PACKED[name] + b"tail", {"prefix": 1}, size) == PLAIN[:size]
    with pytest.raises(HostileInput):
        blocks.decode(name, PACKED[name], {"prefix": 1}, len(PLAIN) + 1)


@pytest.mark.parametrize("name", PADDED)
def test_zeros_before_a_stream_are_padding(name: str) -> None:
    """EROFS fills physical clusters up from the front."""
    assert blocks.decode(name, bytes(4000) + PACKED[name], {}, len(PLAIN)) == PLAIN


@pytest.mark.parametrize("name", ENDED)
def test_bytes_behind_a_stream_are_refused(name: str, lz4: None) -> None:
    """And streams that are cut short."""
    for wrong in (PACKED[name] + b"\x10", PACKED[name][:-1]):
        with pytest.raises(HostileInput):
            blocks.decode(name, wrong, {}, len(PLAIN))


@pytest.mark.parametrize("name", PACKED)
def test_noise_and_nothing_are_refused(name: str, lz4: None) -> None:
    """Whatever the library behind it raises becomes one error."""
    source = random.Random(name)
    for packed in [b"", bytes(9), b"\xff" * 50, *(source.randbytes(60) for _ in range(50))]:
        with pytest.raises(HostileInput):
            blocks.decode(name, packed, {}, len(PLAIN))


def test_a_bomb_makes_no_more_than_its_size() -> None:
    """64 MiB in a few KiB: refused, and never made."""
    zeros = bytes(64 << 20)
    bombs = {"xz": lzma.compress(zeros), "zstd.frame": zstd.compress(zeros), "deflate": deflate(zeros)}
    for name, packed in bombs.items():
        with pytest.raises(HostileInput, match="more than 4096"):
            blocks.decode(name, packed, {}, 4096)


def test_a_window_beyond_any_block_is_refused() -> None:
    """A zstd frame asks for its window before it gives a byte."""
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 26}
    encoder = zstd.ZstdCompressor(options=options)
    with pytest.raises(HostileInput, match="not a stream of zstd"):
        blocks.decode("zstd.frame", encoder.compress(PLAIN) + encoder.flush(), {}, len(PLAIN))


def test_parameters_and_names_are_known_ones() -> None:
    """Others are refused, as are those of encoders that cannot be."""
    for params in ({"prefix": 2}, {"level": 3}):
        with pytest.raises(HostileInput, match="parameters"):
            blocks.decode("xz", PACKED["xz"], params, len(PLAIN))
    with pytest.raises(HostileInput, match="unknown codec"):
        blocks.decode("lzo", b"", {}, 1)
    with pytest.raises(HostileInput, match="a block of 0 bytes"):
        blocks.decode("xz", PACKED["xz"], {}, 0)


def test_an_encoder_decodes_too() -> None:
    """zlib, as squashfs has it; nothing may stand behind it."""
    params = {"level": 9, "memlevel": 8, "wbits": 15}
    packed = zlib.compress(PLAIN, 9)
    assert blocks.decode("zlib", packed, params, len(PLAIN)) == PLAIN
    for wrong, size in ((packed + b"x", len(PLAIN)), (packed, len(PLAIN) + 1)):
        with pytest.raises(HostileInput):
            blocks.decode("zlib", wrong, params, size)


@pytest.mark.parametrize("block", LZ4)
def test_lz4(block: bytes, lz4: None) -> None:
    """Literals, matches that overlap themselves, and long lengths; any prefix can be had,
    whatever sequence it ends in."""
    assert blocks.unpack("lz4", block, 4096) == LZ4[block]
    assert blocks.decode("lz4", block, {}, len(LZ4[block])) == LZ4[block]
    for size in range(1, len(LZ4[block]) + 1):
        assert blocks.decode("lz4", block, {"prefix": 1}, size) == LZ4[block][:size]


@pytest.mark.parametrize("block", BROKEN_LZ4)
def test_lz4_broken(block: bytes, lz4: None) -> None:
    """Cut short, and matches that begin before the beginning."""
    with pytest.raises(HostileInput):
        blocks.unpack("lz4", block, 4096)
