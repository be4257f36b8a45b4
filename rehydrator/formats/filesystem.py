"""Read-only file systems as byte maps: where the bytes of every regular file lie.

Block     stored bytes of the file system that decode to plain bytes
Piece     a span of a file: a span of one block's plain bytes, or zeros
Content   a regular file: its path, its size and the pieces that tile it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FILES: Final = 1 << 20  # directory entries of any kind
MAX_BLOCKS: Final = 1 << 21  # blocks, and blocks that the files name, holes and repetitions counted
MAX_DEPTH: Final = 512  # directories within each other
MAX_PATH: Final = 4096  # bytes of one path, as Linux' PATH_MAX
MAX_PATHS: Final = 256 << 20  # bytes of all paths
MAX_METADATA: Final = 256 << 20  # plain bytes of all metadata

ZEROS: Final = -1

LZ4_MORE: Final = 15
LZ4_MIN_MATCH: Final = 4


@dataclass(frozen=True, slots=True)
class Block:
    """`stored` bytes at `offset` of the file system's file, which decode to `plain` bytes.

    `codec` is "" (as it lies), "zlib", "xz", "zstd", "lz4" or "lzma1".
    """

    offset: int
    stored: int
    plain: int
    codec: str = ""
    params: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes at `at` of a file: plain bytes of a block from `start` on, or ZEROS."""

    at: int
    length: int
    block: int
    start: int


@dataclass(frozen=True, slots=True)
class Content:
    """A regular file: the path from the root, without a slash before it; pieces in order and
    without gaps, which together are `size` bytes. Of hard links, the first that is found."""

    path: bytes
    size: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system of `size` bytes (padding behind it not counted)."""

    kind: str
    size: int
    blocks: tuple[Block, ...]
    contents: tuple[Content, ...]
    facts: Mapping[str, str]


def decode_lz4(packed: bytes, size: int) -> bytes:
    """Exactly `size` plain bytes of an LZ4 block; HostileInput otherwise."""
    plain = unpack_lz4(packed, size)
    _refuse_lz4(len(plain) != size, size)
    return plain


def unpack_lz4(packed: bytes, limit: int, prefix: bool = False) -> bytes:
    """The plain bytes, `limit` at most, of the LZ4 block that `packed` is (LZ4 Block Format
    Description: token, literal length, literals, offset, match length). Of a `prefix` only the
    first `limit` bytes are wanted, and what comes behind them is not looked at.

    Raises:
        HostileInput: it is cut short, points before its beginning, or holds more.
    """
    plain, at = bytearray(), 0
    while at < len(packed):
        token, at = packed[at], at + 1
        length = token >> 4
        if length == LZ4_MORE:
            length, at = _lz4_length(packed, at)
        if prefix:
            length = min(length, limit - len(plain))
        _refuse_lz4(at + length > len(packed) or len(plain) + length > limit, limit)
        plain += packed[at : at + length]
        at += length
        if at == len(packed) or (prefix and len(plain) == limit):
            return bytes(plain)
        distance, at = int.from_bytes(packed[at : at + 2], "little"), at + 2
        length = (token & LZ4_MORE) + LZ4_MIN_MATCH
        if length == LZ4_MORE + LZ4_MIN_MATCH:
            more, at = _lz4_length(packed, at)
            length = more + LZ4_MIN_MATCH
        if prefix:
            length = min(length, limit - len(plain))
        start = len(plain) - distance
        _refuse_lz4(not 0 <= start < len(plain) or len(plain) + length > limit, limit)
        match = plain[start : start + length]
        # A match may reach into itself: then it repeats.
        plain += match if len(match) == length else (match * -(-length // distance))[:length]
    raise HostileInput("an LZ4 block is cut short")


def _refuse_lz4(wrong: bool, size: int) -> None:
    if wrong:
        raise HostileInput(f"an LZ4 block does not decode to its {size} bytes")


def _lz4_length(packed: bytes, at: int) -> tuple[int, int]:
    """A length of 15 and more, which goes on in bytes until one is not 255; and what follows."""
    length = LZ4_MORE
    while at < len(packed):
        length, at = length + packed[at], at + 1
        if packed[at - 1] != 255:
            return length, at
    raise HostileInput("an LZ4 block is cut short")
