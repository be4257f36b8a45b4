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
from rehydrator.core.reader import check_span
from rehydrator.engine import DEFAULT_CACHE, Cache, Machine, OpsSpace, ReaderSpace, blocks, join
from rehydrator.formats import erofs, squashfs
from rehydrator.formats.explanation import append, require
from rehydrator.formats.filesystem import ZEROS, decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from rehydrator.bundle.packing import Ledger, PackWriter
    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader
    from rehydrator.engine import Piece, Space
    from rehydrator.formats import filesystem
    from rehydrator.formats.filesystem import Block, Content, FileSystem
    from rehydrator.streaming import Spool

PAGE: Final = 4096

# A page of the contents costs 20 bytes and more of memory when disks are matched.
MAX_CONTENTS: Final = 64 << 30
# Bytes of contents for one of the file system; a Debian root has 4 to 5 (measured).
MAX_RATIO: Final = 64
# Bytes decoded for one of contents.
MAX_WORK: Final = 64


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


def block_ops(system: FileSystem, rootfs: int, numbers: Mapping[DecodeRule, int], base: int = 0) -> list[Op]:
    """The recipe of `blocks`, by the `numbers` of decode_rules; the file system begins at byte
    `base` of space `rootfs`."""
    ops: list[Op] = []
    for index in _order(system):
        block = system.blocks[index]
        if not block.codec:
            append(ops, Copy(block.plain, rootfs, base + block.offset))
        else:
            rule = numbers[_rule(block, rootfs)]
            append(ops, Decode(block.plain, rule, base + block.offset, block.stored))
    return ops


def content_ops(system: FileSystem, space: int) -> list[Op]:
    """The recipe of `contents`, where `blocks` is space `space`.

    Files come in the order of their first bytes in `blocks`, so that whoever reads all of them
    decodes almost every block once. Files of the same bytes come once.

    Raises:
        Unexplained: they hold nothing, or more than a live root file system does.
    """
    starts = _starts(system)
    ops: list[Op] = []
    most = min(MAX_CONTENTS, MAX_RATIO * system.size)
    for content in _distinct(system, starts):
        most -= -(-content.size // PAGE) * PAGE
        require(most >= 0, f"files that take too much room for a file system of {system.size} bytes")
        for piece in content.pieces:
            if piece.block == ZEROS:
                append(ops, zeros(piece.length))
            else:
                append(ops, Copy(piece.length, space, starts[piece.block] + piece.start))
        append(ops, zeros(-content.size % PAGE))
    require(bool(ops), "a file system whose files hold nothing")
    return ops


def store(
    contents: ContentsReader,
    spool: Spool,
    rootfs: int,
    ledger: Ledger,
    writer: PackWriter,
    base: int = 0,
    workers: int = 1,
) -> tuple[int, Reader]:
    """Store the recipes of `blocks` and `contents` of a file system that begins at byte `base` of
    space `rootfs`. All of it is decoded, by so many threads, before anything is stored.

    Returns:
        The number of the space of contents, and a reader of it for those who match disks against
        it: disks have the files in another order, in which blocks would be decoded many times, so
        that it reads what was spooled.

    Raises:
        Unexplained: a block does not decode to what the file system says.
    """
    reader = _spooled(contents, spool, workers)
    numbers = {rule: ledger.decode_rule(rule) for rule in decode_rules(contents.system, rootfs)}
    below = writer.add_recipe(block_ops(contents.system, rootfs, numbers, base))
    return writer.add_recipe(content_ops(contents.system, below)), reader


def _spooled(contents: ContentsReader, spool: Spool, workers: int) -> Reader:
    try:
        for pieces in contents.in_order(workers):
            spool.append(join(iter(pieces)))
    except HostileInput as error:
        raise Unexplained(f"{contents.system.kind}: {error}") from None
    return SpoolReader(spool)


class SpoolReader:
    """A Reader over a spool that is complete."""

    def __init__(self, spool: Spool) -> None:
        self._spool, self.size = spool, spool.size

    def pread(self, offset: int, length: int) -> bytes:
        check_span(offset, length, self.size, "the spooled contents of a file system")
        return self._spool.read(offset, length)


class ContentsReader:
    """A Reader over `contents`, by the same recipes that a bundle holds."""

    def __init__(self, file: Reader, system: FileSystem, cache: int = DEFAULT_CACHE) -> None:
        """`file` is what holds the file system; `cache` the bytes of decoded blocks that are held.

        Raises:
            Unexplained: as content_ops.
        """
        self.system = system
        rules = decode_rules(system, _ROOTFS)
        numbers = {rule: number for number, rule in enumerate(rules)}
        spaces: dict[int, Space] = {
            _ROOTFS: ReaderSpace(file),
            _BLOCKS: OpsSpace(block_ops(system, _ROOTFS, numbers)),
            _CONTENTS: OpsSpace(content_ops(system, _BLOCKS)),
        }
        self.size = spaces[_CONTENTS].size
        counted = _CountedCache(cache, MAX_WORK * self.size)
        self._machine = Machine(spaces, Rules(decodes=tuple(rules)), counted)

    def pread(self, offset: int, length: int) -> bytes:
        return self._machine.read(_CONTENTS, offset, length)

    def in_order(self, workers: int) -> Iterator[list[Piece]]:
        """All of it, piece by piece, decoded by so many threads."""
        return blocks(self._machine, _CONTENTS, 0, self.size, workers)


class _CountedCache(Cache):
    """Makes so many bytes and no more: files may be scattered over blocks such that the cache
    does not help."""

    def __init__(self, limit: int, most: int) -> None:
        super().__init__(limit)
        self._left = most

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        def counted() -> bytes:
            require(self._left >= 0, "files that are scattered over blocks")
            value = make()
            self._left -= len(value)
            return value

        return super().get(key, counted)


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
    found: dict[tuple[filesystem.Piece, ...], tuple[int, Content]] = {}
    for content in system.contents:
        first = next((piece for piece in content.pieces if piece.block != ZEROS), None)
        if first is not None:
            found.setdefault(content.pieces, (starts[first.block] + first.start, content))
    for _, content in sorted(found.values(), key=lambda item: (item[0], item[1].path)):
        yield content
