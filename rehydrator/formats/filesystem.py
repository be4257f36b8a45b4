"""Read-only file systems as byte maps: where the bytes of every regular file lie.

Block     stored bytes of the file system that decode to plain bytes
Piece     a span of a file: a span of one block's plain bytes, or zeros
Content   a regular file: its path, its size and the pieces that tile it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rehydrator.codecs import blocks
from rehydrator.formats.explanation import refuse_short, require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rehydrator.core.reader import Reader

MAX_FILES: Final = 1 << 20  # directory entries of any kind
MAX_BLOCKS: Final = 1 << 21  # blocks, and blocks that the files name, holes and repetitions counted
MAX_DEPTH: Final = 512  # directories within each other
MAX_PATH: Final = 4096  # bytes of one path, as Linux' PATH_MAX
MAX_PATHS: Final = 256 << 20  # bytes of all paths
MAX_METADATA: Final = 256 << 20  # plain bytes of all metadata

ZEROS: Final = -1


@dataclass(frozen=True, slots=True)
class Block:
    """`stored` bytes at `offset` of the file system's file, which decode to `plain` bytes.

    `codec` is "" (as it lies), "zlib", "xz", "zstd", "deflate", "lz4" or "lzma1". `params` are
    those of an encoder, where they are known, and `prefix`, 1, where the stored bytes may hold
    more than the plain bytes.
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


def decoder(block: Block) -> tuple[str, tuple[tuple[str, int], ...]]:
    """The codec and the parameters that decode the block, as codecs/blocks.py has them."""
    if block.codec == "zlib":
        return block.codec, block.params
    name = "zstd.frame" if block.codec == "zstd" else block.codec
    return name, tuple(item for item in block.params if item[0] == "prefix")


def decode(file: Reader, block: Block) -> bytes:
    """Exactly `block.plain` bytes.

    Raises:
        HostileInput: the stored bytes lie outside of the file, or decode to another length; of a
            block of which files know the beginning (`prefix`), to fewer bytes.
    """
    stored = refuse_short(file, block.offset, block.stored, "a block")
    if not block.codec:
        require(block.stored == block.plain, f"{block.plain} bytes, of which {block.stored} are there")
        return stored
    name, params = decoder(block)
    return blocks.decode(name, stored, dict(params), block.plain)
