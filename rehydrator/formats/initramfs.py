"""An initramfs: cpio archives in a row, each as it is or compressed, zero bytes between them.

    initramfs    (zeros | cpio archive | compressed cpio archive)*

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst, and the magic numbers
of lib/decompress.c. Microcode comes first and uncompressed; what is appended later (Fedora
CoreOS: the root filesystem, Ignition configs) is another archive. Nothing in a compressed stream
says where it ends, except in LZ4's legacy frame: so they are decoded, and nothing is kept.
"""

from __future__ import annotations

import bz2
import lzma
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from backports import zstd

from rehydrator.core.errors import Unexplained
from rehydrator.formats import cpio, gzip
from rehydrator.formats.decoding import MAX_DICTIONARY, Inflate, Meter, Stream
from rehydrator.formats.explanation import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rehydrator.core.reader import Reader
    from rehydrator.formats.decoding import Decoder

MAX_SEGMENTS: Final = 1 << 14
MAX_PLAIN: Final = 8 << 30
"""Bytes of all streams: the kernel holds them in memory."""

_STEP: Final = 1 << 20
_GZIP_TRAILER: Final = 8  # RFC 1952, 2.3.1: CRC-32 and ISIZE
# LZ4 frame format description, "Legacy frame": blocks of 8 MiB, each behind its length; a length
# beyond what such a block can take is the next thing's magic number.
_LZ4_MAGIC: Final = bytes.fromhex("02214c18")
_LZ4_BLOCK: Final = 8 << 20
_LZ4_BOUND: Final = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16
_MAX_LZ4_BLOCKS: Final = 1 << 16
_LZ4_WORD: Final = 4


class _Kind(NamedTuple):
    """A compression that the kernel knows: `begin` gives where the stream itself begins, and its
    decoder; `tail` bytes come behind the stream."""

    name: str
    magic: bytes
    begin: Callable[[Reader, int], tuple[int, Decoder]]
    tail: int = 0


def _begin_gzip(file: Reader, at: int) -> tuple[int, Decoder]:
    return at + len(gzip.read_header(file, at).raw), Inflate()


def _begin_zstd(file: Reader, at: int) -> tuple[int, Decoder]:
    most: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_DICTIONARY.bit_length() - 1}
    return at, zstd.ZstdDecompressor(options=most)


def _begin_xz(file: Reader, at: int) -> tuple[int, Decoder]:
    return at, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY)


def _begin_lzma(file: Reader, at: int) -> tuple[int, Decoder]:
    return at, lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_DICTIONARY)


def _begin_bzip2(file: Reader, at: int) -> tuple[int, Decoder]:
    return at, bz2.BZ2Decompressor()


_KINDS: Final = (
    _Kind("gzip", gzip.MAGIC + b"\x08", _begin_gzip, _GZIP_TRAILER),
    _Kind("xz", b"\xfd7zXZ\0", _begin_xz),
    _Kind("zstd", bytes.fromhex("28b52ffd"), _begin_zstd),
    _Kind("bzip2", b"BZh", _begin_bzip2),
    _Kind("lzma", bytes.fromhex("5d0000"), _begin_lzma),
)


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` bytes at `offset` of the file. `kind` is "cpio" for an archive as it is, else how it
    is compressed: "gzip" (one member), "xz" (one stream), "zstd" (one frame), "bzip2", "lzma",
    "lz4"."""

    offset: int
    length: int
    kind: str


def recognise(file: Reader, at: int = 0) -> str:
    """The kind of segment that begins at `at`, by its magic number; empty for none."""
    if cpio.recognise(file, at):
        return "cpio"
    raw = file.pread(at, max(0, min(6, file.size - at)))
    if raw.startswith(_LZ4_MAGIC):
        return "lz4"
    return next((kind.name for kind in _KINDS if raw.startswith(kind.magic)), "")


def segments(file: Reader, meter: Meter | None = None) -> Iterator[Segment]:
    """The segments in order, each as it is found; all bytes that are in none are zero. `meter`
    counts what the streams decode to, MAX_PLAIN bytes at most if there is none.

    Raises:
        Unexplained: what comes next is no segment, cut short, or damaged; or too many of them.
        LimitExceeded: together they decode to more than the limit.
    """
    meter = meter or Meter(MAX_PLAIN, len)
    at = _behind_zeros(file, 0)
    for _ in range(MAX_SEGMENTS):
        if at == file.size:
            return
        kind = recognise(file, at)
        require(bool(kind), f"neither a cpio archive nor a compressed one at {at}")
        length = _length(file, at, kind, meter)
        yield Segment(at, length, kind)
        at = _behind_zeros(file, at + length)
    require(at == file.size, f"more than {MAX_SEGMENTS} archives")


def beginning(file: Reader, at: int, length: int) -> bytes:
    """The first plain bytes, `length` at most, of the compressed archive that begins at `at`; none
    of what is no stream, or is one of LZ4.

    Raises:
        Unexplained: damaged or cut short.
        LimitExceeded: it takes too much memory to decode.
    """
    kind = next((each for each in _KINDS if each.name == recognise(file, at)), None)
    plain = b""
    if kind is not None:
        for chunk in _stream(file, at, kind)[1].chunks():
            plain += chunk
            if len(plain) >= length:
                break
    return plain[:length]


def _length(file: Reader, at: int, kind: str, meter: Meter) -> int:
    if kind == "cpio":
        return cpio.read(file, at).end - at
    if kind == "lz4":
        return _lz4_length(file, at)
    found = next(each for each in _KINDS if each.name == kind)
    start, stream = _stream(file, at, found)
    meter.take_all(stream.chunks())
    end = start + stream.packed + found.tail
    require(end <= file.size, f"the {kind} stream at {at} is cut short")
    return end - at


def _stream(file: Reader, at: int, kind: _Kind) -> tuple[int, Stream]:
    start, decoder = kind.begin(file, at)
    return start, Stream(file, start, file.size, decoder, f"{kind.name} stream")


def _lz4_length(file: Reader, at: int) -> int:
    here = at + len(_LZ4_MAGIC)
    for _ in range(_MAX_LZ4_BLOCKS):
        word = file.pread(here, min(_LZ4_WORD, file.size - here))
        size = int.from_bytes(word, "little")
        # A gzip header is the one magic number that could be a length: of 559,903 bytes, exactly.
        if len(word) < _LZ4_WORD or not 0 < size <= _LZ4_BOUND or word.startswith(_KINDS[0].magic):
            return here - at
        here += _LZ4_WORD + size
        require(here <= file.size, f"the lz4 stream at {at} is cut short")
    raise Unexplained(f"the lz4 stream at {at} has more than {_MAX_LZ4_BLOCKS} blocks")


def _behind_zeros(file: Reader, at: int) -> int:
    """The place of the first byte from `at` on that is not zero."""
    while at < file.size:
        chunk = file.pread(at, min(_STEP, file.size - at))
        rest = chunk.lstrip(b"\0")
        at += len(chunk) - len(rest)
        if rest:
            return at
    return at
