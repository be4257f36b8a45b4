"""Disks out of a live root file system: what a disk costs, and what reading it takes.

    python benchmarks/live_rootfs.py ROOTFS DISK

ROOTFS is squashfs or EROFS, DISK a disk with the same files, in any format that is explained.
Its guest pages are matched against the rootfs' contents; then it is read in order, as
rehydrating does, and so are all files in random order, which is the worst that an installer can
have done. Seconds are those of the processor, so that a busy machine does not change them.
"""

from __future__ import annotations

import random
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from backports import zstd

from rehydrator import engine
from rehydrator.bundle import contents
from rehydrator.bundle.contents import ContentsReader
from rehydrator.core.digest import frame_digest
from rehydrator.core.ops import MAX_OPS_PER_CHUNK, Copy, Decode, Rules, is_zeros
from rehydrator.core.reader import BytesReader
from rehydrator.core.recipe import encode_chunk
from rehydrator.delta import PageIndex
from rehydrator.engine import Cache, Machine, OpsSpace, ReaderSpace
from rehydrator.formats import explain
from rehydrator.store.files import FileReader
from rehydrator.store.spool import Spool
from rehydrator.streaming import Streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader
    from rehydrator.engine import Piece, Space
    from rehydrator.formats.filesystem import FileSystem

ROOTFS, BLOCKS, CONTENTS, REST, DISK = range(5)
MIB = 1 << 20
LEVEL = 19
# Frames that the rootfs is stored in, and whether blocks that were decoded twice are kept.
WAYS = ((256 << 10, False), (256 << 10, True), (16 << 20, True))


class Framed:
    """A file in frames of one size, each checked when it is read, as a pack has them."""

    def __init__(self, file: Reader, frame: int) -> None:
        self._file, self._frame, self.size = file, frame, file.size

    def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]:
        end = offset + length
        while offset < end:
            start = offset // self._frame * self._frame
            plain = machine.cache.get(("frame", start), lambda start=start: self._load(start))  # type: ignore[misc]
            stop = min(end, start + len(plain))
            yield engine.view(plain, offset - start, stop - start)
            offset = stop

    def _load(self, start: int) -> bytes:
        data = self._file.pread(start, min(self._frame, self.size - start))
        frame_digest(data)
        return data


class Counted(Cache):
    """A cache that knows how many bytes were decoded for it."""

    decoded = 0

    def get(self, key: object, make: object) -> bytes:
        assert callable(make)

        def counted() -> bytes:
            made: bytes = make()
            if isinstance(key, tuple) and key[0] == "decode":
                self.decoded += len(made)
            return made

        return super().get(key, counted)


def packed(ops: Sequence[Op]) -> int:
    """Bytes of a recipe in a bundle."""
    parts = (ops[at : at + MAX_OPS_PER_CHUNK] for at in range(0, len(ops), MAX_OPS_PER_CHUNK))
    return sum(len(zstd.compress(encode_chunk(part), LEVEL)) for part in parts)


class Measured:
    """One rootfs and one disk."""

    def __init__(self, rootfs: Path, disk: Path) -> None:
        self.file = FileReader(rootfs)
        self.system: FileSystem = contents.read(self.file)
        rules = contents.decode_rules(self.system, ROOTFS)
        self.rules = Rules(decodes=tuple(rules))
        numbers = {rule: number for number, rule in enumerate(rules)}
        self.blocks = contents.block_ops(self.system, ROOTFS, numbers)
        self.contents = contents.content_ops(self.system, BLOCKS)
        self.guest = explain(FileReader(disk)).guest
        self.rest = b""

    def match(self) -> list[Op]:
        """The disk's ops; what is not found goes into `rest`."""
        spool = Spool(None)
        for pieces in ContentsReader(self.file, self.system).in_order(2):
            spool.append(engine.join(iter(pieces)))
        index = PageIndex()
        index.add(CONTENTS, contents.SpoolReader(spool))
        ops: list[Op] = []
        rest = bytearray()
        for op in index.match(self.guest, REST):
            if isinstance(op, Copy) and op.space == REST:
                ops.append(Copy(op.length, REST, len(rest)))
                rest += self.guest.pread(op.offset, op.length)
            else:
                ops.append(op)
        self.rest = bytes(rest)
        return ops

    def scattered(self) -> list[Op]:
        """All files, in random order."""
        starts = [0]
        for op in self.contents:
            starts.append(starts[-1] + op.length)
        pages = sorted({at // contents.PAGE * contents.PAGE for at in starts})
        files: list[Op] = [Copy(end - at, CONTENTS, at) for at, end in pairwise(pages)]
        random.Random(1).shuffle(files)
        return files

    def read(self, what: str, ops: Sequence[Op], frame: int, *, spooled: bool) -> None:
        """Read a space in order, and say what it took."""
        spaces: dict[int, Space] = {
            ROOTFS: Framed(self.file, frame),
            BLOCKS: OpsSpace(self.blocks),
            CONTENTS: OpsSpace(self.contents),
            REST: ReaderSpace(BytesReader(self.rest)),
            DISK: OpsSpace(ops),
        }
        cache = Counted(engine.DEFAULT_CACHE)
        made = Streams(lambda: Spool(None)) if spooled else None
        machine = Machine(spaces, self.rules, cache, made=made)
        began = time.process_time()
        for _ in engine.blocks(machine, DISK, 0, spaces[DISK].size, 1):
            pass
        seconds = time.process_time() - began
        print(
            f"{what}, rootfs in frames of {frame >> 10} KiB, {'spooled' if spooled else 'not spooled'}: "
            f"{seconds:.1f} s, {cache.decoded // MIB} MiB decoded"
        )


def main() -> None:
    measured = Measured(Path(sys.argv[1]), Path(sys.argv[2]))
    plain = sum(op.length for op in measured.blocks)
    decodes = sum(isinstance(op, Decode) for op in measured.blocks)
    print(f"rootfs: {measured.file.size} bytes; {plain // MIB} MiB plain in {decodes} encoded blocks")
    print(f"recipes: blocks {packed(measured.blocks)}, contents {packed(measured.contents)} bytes")
    ops = measured.match()
    found = sum(op.length for op in ops if isinstance(op, Copy) and op.space == CONTENTS)
    empty = sum(op.length for op in ops if is_zeros(op))
    rest = len(zstd.compress(measured.rest, LEVEL))
    print(
        f"disk: {found} bytes found, {empty} zero, {len(measured.rest)} left, {rest} compressed; "
        f"recipe {packed(ops)}"
    )
    for what, order in (("disk", ops), ("random", measured.scattered())):
        for frame, spooled in WAYS:
            measured.read(what, order, frame, spooled=spooled)


if __name__ == "__main__":
    main()
