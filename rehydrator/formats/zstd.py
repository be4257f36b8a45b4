"""zstd (RFC 8878, 3.1): frames one after another, some of them to be skipped.

    frame        28 b5 2f fd | descriptor | window? | dictionary id? | content size? | block …
                 | checksum?                                                         (3.1.1)
    skippable    50 … 5f, 2a 4d 18 | length (4) | bytes                              (3.1.2)

The library checks the checksum and the content size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from backports import zstd

from rehydrator.core.errors import LimitExceeded
from rehydrator.formats.decoding import MAX_DICTIONARY, Meter, Parts, Stream
from rehydrator.formats.explanation import refuse_short, require
from rehydrator.formats.streams import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rehydrator.core.reader import Reader

MAGIC: Final = bytes.fromhex("28b52ffd")
_SKIPPABLE: Final = bytes.fromhex("2a4d18")  # behind a byte 50 to 5f
MAX_SKIPPABLE: Final = 1 << 20
"""Skippable frames of one file; pzstd writes one for each frame."""

# 3.1.1.1.1: bytes of the content size and of the dictionary id, by their flags.
_CONTENT_SIZES: Final = (0, 2, 4, 8)
_DICTIONARY_IDS: Final = (0, 1, 2, 4)
_EMPTY_LAST_BLOCK: Final = bytes((1, 0, 0))


class Header(NamedTuple):
    """A frame's header (3.1.1.1). `window` is what a decoder looks back, in bytes; `exponent`
    is its log2, 0 where the whole content is the window ("single segment"); `content` is the
    size of the plain bytes, None where it is not said."""

    size: int
    window: int
    exponent: int
    content: int | None
    checksum: bool
    dictionary: int

    def hints(self, *, empty_end: bool) -> Mapping[str, int]:
        """`empty_end`: the last block is an empty one, as where the encoder was told of the
        end only after all bytes (a pipe), and those were whole blocks."""
        return {
            "checksum": int(self.checksum),
            "content_size": int(self.content is not None),
            "empty_end": int(empty_end),
            "single_segment": int(not self.exponent),
            "window_log": self.exponent,
        }


def recognise(file: Reader) -> bool:
    """The magic number of a frame, or of one to be skipped, at byte 0."""
    raw = file.pread(0, min(4, file.size))
    return raw == MAGIC or _is_skippable(raw)


def unpack(file: Reader, limit: int, take: Callable[[bytes], object]) -> Layout:
    """The layout of a file of at most `limit` plain bytes, which `take` gets in order. As for
    the program zstd, there is nothing but frames.

    Raises:
        Unexplained: malformed, cut short, or it needs a dictionary.
        LimitExceeded: above the limit, too many frames, or a window of more than 512 MiB.
    """
    require(recognise(file), "no zstd file: another magic number")
    meter, parts, at, skipped = Meter(limit, take), Parts(), 0, 0
    header = None
    while at < file.size:
        raw = refuse_short(file, at, 4, "the magic number of a zstd frame")
        if _is_skippable(raw):
            skipped += 1
            require(skipped <= MAX_SKIPPABLE, f"more than {MAX_SKIPPABLE} skippable zstd frames")
            at = _behind_skippable(file, at)
            continue
        header = read_header(file, at)
        before = meter.total
        packed = _unpack_frame(file, at, header, meter)
        hints = header.hints(empty_end=_ends_empty(file, at + packed, header))
        parts.add(at, packed, before, meter.total - before, "zstd", hints)
        at += packed
    return Layout("zstd", file.size, meter.total, parts, _facts(parts, skipped, header))


def read_header(file: Reader, at: int) -> Header:
    """The header of the frame at `at`.

    Raises:
        Unexplained: malformed or cut short.
    """
    what = f"the zstd frame at byte {at}"
    raw = file.pread(at, min(18, file.size - at))
    require(raw[:4] == MAGIC, f"no zstd frame at byte {at}, but bytes {raw[:4].hex()}")
    require(len(raw) > 4, f"{what} is cut short")
    flags = raw[4]
    single = bool(flags & 0x20)
    require(not flags & 0x08, f"{what} has a reserved bit set")
    names, numbers = _DICTIONARY_IDS[flags & 3], _CONTENT_SIZES[flags >> 6] or int(single)
    size = 5 + (not single) + names + numbers
    require(len(raw) >= size, f"{what} is cut short")
    identity = int.from_bytes(raw[size - numbers - names : size - numbers], "little")
    content = int.from_bytes(raw[size - numbers : size], "little") if numbers else None
    if content is not None and numbers == 2:
        content += 256
    if single:
        assert content is not None
        return Header(size, content, 0, content, bool(flags & 4), identity)
    exponent, mantissa = 10 + (raw[5] >> 3), raw[5] & 7
    window = (1 << exponent) + (1 << exponent) // 8 * mantissa
    return Header(size, window, exponent, content, bool(flags & 4), identity)


def _unpack_frame(file: Reader, at: int, header: Header, meter: Meter) -> int:
    """The length of the frame, its plain bytes handed on."""
    require(not header.dictionary, f"the zstd frame at byte {at} needs dictionary {header.dictionary}")
    meter.expect(header.content or 0)
    if header.window > MAX_DICTIONARY:
        raise LimitExceeded(
            f"the zstd frame at byte {at} needs a window of {header.window} bytes; "
            f"{MAX_DICTIONARY} are the most that is decoded"
        )
    longest: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_DICTIONARY.bit_length() - 1}
    stream = Stream(file, at, file.size, zstd.ZstdDecompressor(options=longest), "zstd frame")
    plain = meter.take_all(stream.chunks())
    require(header.content in {None, plain}, f"the zstd frame at byte {at} is not of the size it says")
    return stream.packed


def _ends_empty(file: Reader, end: int, header: Header) -> bool:
    """Whether the last block is raw and of no bytes (3.1.1.2), by its header."""
    return file.pread(end - 3 - 4 * header.checksum, 3) == _EMPTY_LAST_BLOCK


def _is_skippable(raw: bytes) -> bool:
    return len(raw) == 4 and raw[0] & 0xF0 == 0x50 and raw[1:] == _SKIPPABLE


def _behind_skippable(file: Reader, at: int) -> int:
    length = int.from_bytes(refuse_short(file, at + 4, 4, "the length of a skippable zstd frame"), "little")
    end = at + 8 + length
    require(end <= file.size, f"the skippable zstd frame at byte {at} is cut short")
    return end


def _facts(parts: Parts, skipped: int, last: Header | None) -> dict[str, str]:
    facts = {"frames": str(len(parts))}
    if skipped:
        facts["skippable frames"] = str(skipped)
    if last is not None:
        facts["window"] = str(last.window)
        facts["checksum"] = "xxh64" if last.checksum else "none"
        facts["content size"] = "no" if last.content is None else "yes"
    return facts
