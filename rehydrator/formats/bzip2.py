"""bzip2: streams one after another, then perhaps bytes that belong to none.

    stream    "BZh" | level 1 … 9 | block … | 17 72 45 38 50 90 | CRC of all    (bits, not bytes)
    block     31 41 59 26 53 59 | CRC | Huffman-coded data

The format has no specification; bzip2's manual (section 2) has the level, its decompress.c the
magic numbers. A stream ends in the middle of a byte: only decoding it tells which. The library
checks every CRC.
"""

from __future__ import annotations

import bz2
from typing import TYPE_CHECKING, Final

from rehydrator.formats.decoding import Meter, Parts, Stream
from rehydrator.formats.explanation import require
from rehydrator.formats.streams import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from rehydrator.core.reader import Reader

_MAGIC: Final = b"BZh"
_LEVELS: Final = b"123456789"
_BEHIND: Final = (bytes.fromhex("314159265359"), bytes.fromhex("177245385090"))
_HEADER: Final = 10


def recognise(file: Reader) -> bool:
    """A level and the magic number of a block, or of the end, behind the first."""
    return _is_stream(file, 0)


def unpack(file: Reader, limit: int, take: Callable[[bytes], object]) -> Layout:
    """The layout of a file of at most `limit` plain bytes, which `take` gets in order.

    What follows a stream is another if it begins as one; bzip2 ignores anything else.

    Raises:
        Unexplained: malformed or cut short.
        LimitExceeded: above the limit, or too many streams.
    """
    require(recognise(file), "no bzip2 file: another magic number")
    meter, parts, at = Meter(limit, take), Parts(), 0
    levels = set()
    while _is_stream(file, at):
        level = file.pread(at + 3, 1)[0] - ord("0")
        stream = Stream(file, at, file.size, bz2.BZ2Decompressor(), "bzip2 stream")
        before = meter.total
        plain = meter.take_all(stream.chunks())
        parts.add(at, stream.packed, before, plain, "bzip2", {"level": level})
        at += stream.packed
        levels.add(level)
    facts = {"streams": str(len(parts)), "level": ", ".join(map(str, sorted(levels)))}
    if at < file.size:
        facts["trailing bytes"] = str(file.size - at)
    return Layout("bzip2", file.size, meter.total, parts, facts)


def _is_stream(file: Reader, at: int) -> bool:
    if file.size - at < _HEADER:
        return False
    raw = file.pread(at, _HEADER)
    return raw[:3] == _MAGIC and raw[3] in _LEVELS and raw[4:] in _BEHIND
