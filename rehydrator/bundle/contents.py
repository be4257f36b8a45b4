"""A read-only file system as two spaces over the bytes that it is published as.

    rootfs     squashfs or EROFS: itself a file, or a span of an ISO or an initramfs
    blocks     the plain bytes of all its blocks, one after the other, as they lie in the rootfs
    contents   every regular file, each from a multiple of 4 KiB on, with zeros behind it

Guest disks hold the same files in pages of 4 KiB, the last of each filled up with zeros: page
for page they are found in `contents`, and a disk costs what of it is not files of the rootfs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import Copy, Decode, DecodeRule, Rules, zeros
from rehydrator.engine import DEFAULT_CACHE, Cache, Machine, OpsSpace, ReaderSpace
from rehydrator.formats import erofs, squashfs
from rehydrator.formats.explanation import append, require
from rehydrator.formats.filesystem import ZEROS, decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rehydrator.bundle.packing import Ledger, PackWriter
    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader
    from rehydrator.engine import Space
    from rehydrator.formats.filesystem import Block, Content, FileSystem, Piece

PAGE: Final = 4096

# A page of the contents costs 20 bytes and more of memory when disks are matched.
MAX_CONTENTS: Final = 64 << 30


class _Format(NamedTuple):
    name: str
    recognise: Callable[[Reader], bool]
    read: Callable[[Reader], FileSystem]


# Adding one is a reader in formats and a line here.
FILE_SYSTEMS: Final = (
    _Format("squashfs", squashfs.recognise, squashfs.read),
    _Format("erofs", erofs.recognise, erofs.read),
)

_ROOTFS, _BLOCKS, _CONTENTS = range(3)


def read(file: Reader) -> FileSystem:
    """The file system that `file` is.

    Raises:
        Unexplained: it is none that is known, declined, or malformed; says why.
    """
    for each in FILE_SYSTEMS:
        if each.recognise(file):
            try:
                return each.read(file)
            except HostileInput as error:
                raise Unexplained(f"{each.name}: {error}") from None
    raise Unexplained("no known read-only file system")


def decode_rules(system: FileSystem, rootfs: int) -> list[DecodeRule]:
    """The rules that `block_ops` needs, where the file system's bytes are space `rootfs`."""
    return sorted({_rule(block, rootfs) for block in system.blocks if block.codec}, key=repr)


def block_ops(
    system: FileSystem, rootfs: int, number: Callable[[DecodeRule], int], base: int = 0
) -> list[Op]:
    """The recipe of `blocks`. `number` gives a rule's number; the file system begins at byte
    `base` of space `rootfs`."""
    ops: list[Op] = []
    for index in _order(system):
        block = system.blocks[index]
        if not block.codec:
            append(ops, Copy(block.plain, rootfs, base + block.offset))
        else:
            rule = number(_rule(block, rootfs))
            append(ops, Decode(block.plain, rule, base + block.offset, block.stored))
    return ops


def content_ops(system: FileSystem, blocks: int) -> list[Op]:
    """The recipe of `contents`, where `blocks` is space `blocks`.

    Files come in the order of their first bytes in `blocks`, so that whoever reads all of them
    decodes almost every block once. Files of the same bytes come once.

    Raises:
        Unexplained: they are more than 64 GiB.
    """
    starts = _starts(system)
    ops: list[Op] = []
    total = 0
    for content in _distinct(system, starts):
        total += -(-content.size // PAGE) * PAGE
        require(total <= MAX_CONTENTS, f"files of more than {MAX_CONTENTS} bytes")
        for piece in content.pieces:
            if piece.block == ZEROS:
                append(ops, zeros(piece.length))
            else:
                append(ops, Copy(piece.length, blocks, starts[piece.block] + piece.start))
        append(ops, zeros(-content.size % PAGE))
    return ops


def store(
    file: Reader, system: FileSystem, rootfs: int, ledger: Ledger, writer: PackWriter, base: int = 0
) -> tuple[int, ContentsReader]:
    """Store the recipes of `blocks` and `contents` of the file system that begins at byte `base`
    of space `rootfs`, and whose bytes are `file`; the number of the contents' space, and a
    reader of it for those who match disks against it.

    Raises:
        Unexplained: its files hold nothing, or are more than 64 GiB.
    """
    require(bool(content_ops(system, 0)), "a file system whose files hold nothing")
    blocks = writer.add_recipe(block_ops(system, rootfs, ledger.decode_rule, base))
    contents = writer.add_recipe(content_ops(system, blocks))
    return contents, ContentsReader(file, system)


class ContentsReader:
    """A Reader over `contents`, by the same recipes that a bundle holds."""

    def __init__(self, file: Reader, system: FileSystem, cache: int = DEFAULT_CACHE) -> None:
        """`cache` is the number of bytes of decoded blocks that are held."""
        rules = decode_rules(system, _ROOTFS)
        spaces: dict[int, Space] = {
            _ROOTFS: ReaderSpace(file),
            _BLOCKS: OpsSpace(block_ops(system, _ROOTFS, rules.index)),
            _CONTENTS: OpsSpace(content_ops(system, _BLOCKS)),
        }
        self._reader = Machine(spaces, Rules(decodes=tuple(rules)), Cache(cache)).reader(_CONTENTS)
        self.size = self._reader.size

    def pread(self, offset: int, length: int) -> bytes:
        return self._reader.pread(offset, length)


def _rule(block: Block, rootfs: int) -> DecodeRule:
    return DecodeRule(*decoder(block), rootfs)


def _order(system: FileSystem) -> list[int]:
    """The numbers of the blocks, as they lie in the rootfs."""
    key = [(block.offset, block.stored, block.codec) for block in system.blocks]
    return sorted(range(len(key)), key=key.__getitem__)


def _starts(system: FileSystem) -> list[int]:
    """Where each block begins in `blocks`."""
    starts, here = [0] * len(system.blocks), 0
    for index in _order(system):
        starts[index] = here
        here += system.blocks[index].plain
    return starts


def _distinct(system: FileSystem, starts: Sequence[int]) -> Iterator[Content]:
    """The files that hold anything but zeros, each once, by their first bytes in `blocks`."""
    found: dict[tuple[Piece, ...], tuple[int, Content]] = {}
    for content in system.contents:
        first = next((piece for piece in content.pieces if piece.block != ZEROS), None)
        if first is not None:
            found.setdefault(content.pieces, (starts[first.block] + first.start, content))
    for _, content in sorted(found.values(), key=lambda item: (item[0], item[1].path)):
        yield content
