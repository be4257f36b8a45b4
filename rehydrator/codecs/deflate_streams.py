"""Codecs of raw deflate streams (RFC 1951), as gzip, zip and their like hold them, and the search
for the one that wrote a stream.

The trial needs a prefix of a stream only, because deflate is written in blocks: what an encoder
wrote before the end of a block does not depend on what came later.

Facts (measured; zlib 1.2.13, zlib-ng 2.3.3, gzip 1.12, pigz 2.6, zip 3.0, libdeflate of deflate
0.9.0, ISA-L 2.32.1 where nothing else is said):

- zlib's bytes do not depend on how its input is cut into pieces. zlib-ng's do, at levels 1, 5
  and 6, and ISA-L's at every level: the size of the pieces is a parameter there. libdeflate takes
  the whole input at once.
- pigz's bytes do not depend on the number of threads, not even on there being one. Its first
  128 KiB are as zlib writes them, so a hit on a prefix must reach beyond those.
- GNU gzip ends some blocks where zlib does not, so that only its program gives its bytes. Until
  then they may be those of zlib with memLevel 9: 226 KB were, on text at level 9.
- Info-ZIP's zip writes the bytes of GNU gzip, at every level, and gzip 1.12, 1.13 and 1.14 agree,
  also with --rsyncable, as do pigz 2.6 and 2.8 (tests/compat/test_gzip_tools.py).
- libdeflate 1.14 agrees at levels 1, 6 and 9, not at 12; igzip 2.30 is ISA-L with memory level 8
  at levels 0 to 2, and other bytes at level 3.
- Go's compress/gzip 1.19 and klauspost's gzip 1.15.12 and pgzip 1.2.5 are none of these, at any
  level. `skopeo copy` 1.9.3 of Debian 12 writes pgzip's bytes at level -1, 1.22.0 others.
- Of a prefix of the input, all but the last one or two blocks are determined: 54 of 101 KB packed
  (256 KiB of text to `gzip -6`), 341 of 394 KB (1 MiB), nothing at 128 KiB; of zeros, which have
  the longest blocks, 8 KiB packed (9 MiB). Wrong encoders agree for a whole number of blocks too
  (neighbouring levels often), otherwise for at most 21 bytes, so that most are refused at once.
- ISA-L writes the same with memory levels 2 and 3, 4 to 6, 7 and 8, and at level 0 with all.
"""

from __future__ import annotations

import zlib
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from rehydrator.codecs.deflate import ZLIB, ZLIB_NG
from rehydrator.codecs.deflate_encoders import (
    MIB,
    Libdeflate,
    Library,
    Program,
    gzip_body,
    zip_body,
)
from rehydrator.codecs.stream_encoder import PIECE, Codec, Filter, Hit, Params, agreed, cut, no_package
from rehydrator.core.errors import ToolMissing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

KIB: Final = 1 << 10

LEVELS: Final = (6, 9, 1, 5, 4, 3, 7, 8, 2)
"""Likeliest first: the default of gzip and zlib, the best, the fastest."""

PIECES: Final = (64 * KIB, 16 * KIB, 32 * KIB, 8 * KIB, 128 * KIB, 256 * KIB, MIB)
"""Bytes: buffer sizes of copying loops (shutil, zlib's gzwrite, Python's GzipFile, ...)."""

MAX_PIECE: Final = 64 * MIB

MIN_AGREED: Final = 64
"""Bytes: fewer in common are no hit, unless they are the whole stream: chance gives 21 (measured)."""

# Plain bytes of a first trial, where blocks of text are complete, and of others, for a disk's beginning.
# They refuse an encoder only where its first block is complete, too: gzip's and zlib's have at most
# 32,768 symbols, taken to have 24 bits each, and of 258 bytes at most (RFC 1951, 3.2.5).
_STEPS = (320 * KIB, 3 * MIB, 9 * MIB)
_BLOCK_PACKED, _BLOCK_PLAIN = 96 * KIB, 9 * MIB
# Bytes: more than the longest block, which is libdeflate's of some 300,000 plain bytes.
_MAX_BLOCK = 512 * KIB
_NG_PIECED = (1, 5, 6)
_FLAG = range(2)
_LEVEL, _MEMLEVEL, _PIECE = range(10), range(1, 10), range(1, MAX_PIECE + 1)


def _zlib_ng() -> Any:
    # Imported late, as all but zlib: a stream that another library wrote never needs it.
    from zlib_ng import zlib_ng

    return zlib_ng


def _isal() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        raise no_package("isal") from None
    return isal_zlib


def _isal_version() -> str:
    _isal()
    import isal

    return f"ISA-L {isal.ISAL_VERSION}"


GZIP: Final = Program(
    "deflate.gzip",
    "gzip",
    {"level": range(1, 10), "rsyncable": _FLAG},
    ("-c", "-n"),
    {"rsyncable": "--rsyncable"},
    (),
    gzip_body,
    4 * MIB,
)
# One thread: the bytes are the same, and the memory is bounded whatever the machine.
PIGZ: Final = Program(
    "deflate.pigz",
    "pigz",
    {"level": _LEVEL, "independent": _FLAG, "rsyncable": _FLAG},
    ("-c", "-n", "-p", "1"),
    {"independent": "-i", "rsyncable": "-R"},
    (),
    gzip_body,
    8 * MIB,
)
ZIP: Final = Program(
    "deflate.zip", "zip", {"level": range(1, 10)}, ("-q", "-X"), {}, ("-", "-"), zip_body, 4 * MIB
)
OLD_ZLIB: Final = Library(
    "deflate.zlib", "zlib", {"level": _LEVEL, "memlevel": _MEMLEVEL}, lambda: zlib, ZLIB.version, MIB
)
NEW_ZLIB: Final = Library(
    "deflate.zlib-ng",
    "zlib-ng",
    {"level": _LEVEL, "memlevel": _MEMLEVEL, "piece": _PIECE},
    _zlib_ng,
    ZLIB_NG.version,
    2 * MIB,
)
ISAL: Final = Library(
    "deflate.isal",
    "ISA-L",
    {"level": range(4), "memlevel": _MEMLEVEL, "piece": _PIECE},
    _isal,
    _isal_version,
    2 * MIB,
)
LIBDEFLATE: Final = Libdeflate("deflate.libdeflate", {"level": range(13)})


class Deflate:
    """The family of raw deflate streams."""

    name = "deflate"
    codecs: tuple[Codec, ...] = (GZIP, OLD_ZLIB, PIGZ, NEW_ZLIB, LIBDEFLATE, ISAL, ZIP)

    def find(
        self, plain: bytes, packed: bytes, hints: Mapping[str, int], *, whole: bool, run: Filter | None
    ) -> list[Hit]:
        """The right encoder agrees up to the end of its last complete block, neighbours for some
        blocks: a hit on a prefix agrees for 64 bytes and half as long as the longest. Most are
        refused by the first 320 KiB, and are not tried with more once others are left; all are
        where a prefix is larger than any block, and none where one may be longer than the prefix.
        """
        left = likeliest(hints)
        for size in _STEPS:
            made = len(zlib.compress(plain[:size], 1)) if size < len(plain) else 0
            if made and (made >= _BLOCK_PACKED or size >= _BLOCK_PLAIN):
                some = [one for one in left if _agreed(one, plain[:size], packed, run) >= MIN_AGREED]
                if not some and made >= _MAX_BLOCK:
                    return []
                left = some or left
        if whole:
            return _first_whole(left, plain, packed, run)
        hits = [Hit(one[0].id, one[1], _agreed(one, plain, packed, run)) for one in left]
        longest = max((hit.agreed for hit in hits), default=0)
        enough = max(MIN_AGREED, longest // 2)
        return sorted((hit for hit in hits if hit.agreed >= enough), key=lambda hit: -hit.agreed)


def _first_whole(
    left: list[tuple[Codec, Params]], plain: bytes, packed: bytes, run: Filter | None
) -> list[Hit]:
    """The first that gives the whole stream: more than one would not be told apart by it."""
    found = (
        Hit(one[0].id, one[1], len(packed)) for one in left if _agreed(one, plain, packed, run) == len(packed)
    )
    return list(islice(found, 1))


def _agreed(one: tuple[Codec, Params], plain: bytes, packed: bytes, run: Filter | None) -> int:
    """How many of the packed bytes a codec gives; none where it is not installed."""
    codec, params = one
    try:
        return agreed(codec.encode(dict(params), cut([plain], PIECE), run), packed)
    except ToolMissing:
        return -1


def likeliest(hints: Mapping[str, int]) -> list[tuple[Codec, Params]]:
    """All that is worth a trial, in the order in which a header makes it likely.

    XFL is 2 for the slowest level and 4 for the fastest (RFC 1952, 2.3.1), which gzip, pigz, zlib
    and Python write so, and the flags of a zip member say the same; OS is 3 (Unix) for those, and
    255 (unknown) for Python's GzipFile, which is zlib.
    """
    levels = {2: (9,), 4: (1,)}.get(hints.get("xfl", 0), (6, 5, 4, 3, 7, 8, 2))
    first = OLD_ZLIB if hints.get("os") == 255 else GZIP
    return sorted(_candidates(), key=lambda one: (dict(one[1])["level"] not in levels, one[0] is not first))


def _candidates() -> Iterator[tuple[Codec, Params]]:
    yield from _with(GZIP, LEVELS, rsyncable=(0, 1))
    yield from _with(OLD_ZLIB, LEVELS, memlevel=(8, 9))
    yield from _with(PIGZ, LEVELS, independent=(0,), rsyncable=(0, 1))
    yield from _with(PIGZ, LEVELS, independent=(1,), rsyncable=(0,))
    for level in LEVELS:
        known = PIECES if level in _NG_PIECED else PIECES[:1]
        yield from _with(NEW_ZLIB, (level,), memlevel=(8, 9), piece=known)
    yield from _with(LIBDEFLATE, (6, 12, 9, 1, 7, 8, 10, 11, 5, 4, 3, 2))
    yield from _with(ISAL, (2, 1, 3), memlevel=(8, 9, 1, 2, 5), piece=(*PIECES, MAX_PIECE))
    yield from _with(ISAL, (0,), memlevel=(8,), piece=(*PIECES, MAX_PIECE))
    yield from _with(ZIP, LEVELS)


def _with(codec: Codec, levels: Iterable[int], **others: Iterable[int]) -> Iterator[tuple[Codec, Params]]:
    """The codec with every combination of these parameters; levels change last."""
    every: list[dict[str, int]] = [{"level": level} for level in levels]
    for name, values in others.items():
        every = [{**params, name: value} for value in values for params in every]
    return ((codec, codec.checked(params)) for params in every)


DEFLATE: Final = Deflate()
