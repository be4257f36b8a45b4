"""The .xz container (The .xz File Format 1.2): where its parts lie.

    stream header | block … block | index | stream footer         one or more, each followed by
    block: header | LZMA2 data | padding to 4 | check             zeros to a multiple of 4

Read from the end, as the footer says how long the index is and the index how long each block
is. The encoder of the data is rehydrator/codecs/lzma2.py.
"""

from __future__ import annotations

import lzma
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rehydrator.core.errors import LimitExceeded
from rehydrator.formats.decoding import MAX_DICTIONARY, Meter, Parts
from rehydrator.formats.decoding import Stream as Encoded
from rehydrator.formats.explanation import refuse_short, require
from rehydrator.formats.streams import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rehydrator.core.reader import Reader

MAGIC, FOOTER_MAGIC = b"\xfd7zXZ\0", b"YZ"  # 2.1.1.1, 2.1.2.4
HEADER_SIZE = FOOTER_SIZE = 12
MAX_HEADER = 1024
MAX_VLI = (1 << 63) - 1  # 1.2

# Enough for 64 GiB in blocks of 1 MiB; a parsed block takes some 200 bytes.
MAX_BLOCKS = 1 << 16
MAX_STREAMS = 1 << 10
MAX_PADDING = 1 << 20

# Bytes: a decoder's dictionary, and some for the rest of it.
_DECODER_MEMORY = MAX_DICTIONARY + (64 << 20)

# 2.1.1.2: bytes of the check field by check id, and the ids that have a name.
CHECK_SIZES = (0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64)
CHECKS = {0: "none", 1: "crc32", 4: "crc64", 10: "sha256"}

# 5.3
FILTERS = {
    0x03: "delta",
    0x04: "x86",
    0x05: "powerpc",
    0x06: "ia64",
    0x07: "arm",
    0x08: "armthumb",
    0x09: "sparc",
    0x0A: "arm64",
    0x0B: "riscv",
    0x21: "lzma2",
}
LZMA2 = 0x21


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of a block's chain: its id and its properties as stored."""

    id: int
    properties: bytes

    @property
    def name(self) -> str:
        return FILTERS[self.id]


@dataclass(frozen=True, slots=True)
class Shape:
    """What block headers of one encoder have in common: the header's size in bytes, whether it
    states the sizes of the data and of the plain bytes, and the filter chain (LZMA2 last)."""

    header_size: int
    has_data_size: bool
    has_plain_size: bool
    filters: tuple[Filter, ...]

    @property
    def dict_size(self) -> int:
        """Bytes of the LZMA2 dictionary (5.3.1)."""
        bits = self.filters[-1].properties[0]
        return (1 << 32) - 1 if bits == 40 else (2 | bits & 1) << bits // 2 + 11

    @property
    def is_plain_lzma2(self) -> bool:
        """No filter but LZMA2: what rehydrator/codecs/lzma2.py encodes."""
        return len(self.filters) == 1


@dataclass(frozen=True, slots=True)
class Block:
    """A block at byte `at` of the file: `data_size` bytes of LZMA2 data that hold `plain_size`
    bytes, and a check of `check_size` bytes."""

    at: int
    shape: Shape
    data_size: int
    plain_size: int
    check_size: int

    @property
    def data_at(self) -> int:
        return self.at + self.shape.header_size

    @property
    def padding(self) -> int:
        return -self.data_size % 4

    @property
    def check_at(self) -> int:
        return self.data_at + self.data_size + self.padding

    @property
    def end(self) -> int:
        return self.check_at + self.check_size


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream at byte `at` of the file, and the zero bytes that follow it."""

    at: int
    check: int
    blocks: tuple[Block, ...]
    padding: int

    @property
    def check_name(self) -> str:
        return CHECKS.get(self.check, f"check {self.check}")


@dataclass(frozen=True, slots=True)
class Container:
    """A whole .xz file."""

    size: int
    streams: tuple[Stream, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for stream in self.streams for block in stream.blocks)

    @property
    def plain_size(self) -> int:
        return sum(block.plain_size for block in self.blocks)


def recognise(file: Reader) -> bool:
    """The header magic at byte 0."""
    return file.size >= len(MAGIC) and file.pread(0, len(MAGIC)) == MAGIC


def read(file: Reader) -> Container:
    """The structure of a .xz file; every CRC32 of it is verified, no data is decoded.

    Raises:
        Unexplained: malformed, cut short, trailing bytes, or more blocks than MAX_BLOCKS,
            streams than MAX_STREAMS or zero bytes between them than MAX_PADDING.
    """
    require(recognise(file), "no .xz file: another magic")
    streams: list[Stream] = []
    end, room, padding = file.size, MAX_BLOCKS, 0
    while end:
        require(len(streams) < MAX_STREAMS, f"more than {MAX_STREAMS} streams")
        stream = _read_stream(file, end, room)
        padding += stream.padding
        require(padding <= MAX_PADDING, f"more than {MAX_PADDING} zero bytes behind streams")
        room -= len(stream.blocks)
        end = stream.at
        streams.append(stream)
    streams.reverse()
    container = Container(file.size, tuple(streams))
    require(container.plain_size <= MAX_VLI, "more than 2^63 plain bytes")
    return container


def unpack(file: Reader, limit: int, take: Callable[[bytes], object]) -> Layout:
    """The layout of a file of at most `limit` plain bytes, which `take` gets in order. Blocks
    with filters before LZMA2 are parts that nothing encodes.

    liblzma decodes whole streams, so that it verifies checks (CRC64 too, which the standard
    library does not have by itself), block headers and the index against what came out.

    Raises:
        Unexplained: as `read`, and data that are damaged.
        LimitExceeded: above the limit, or a dictionary of more than 512 MiB.
    """
    container = read(file)
    meter, parts = Meter(limit, take), Parts()
    meter.expect(container.plain_size)
    for block in container.blocks:
        _check_dictionary(block)
    starts = [*(stream.at for stream in container.streams), file.size]
    for stream, (at, behind) in zip(container.streams, pairwise(starts), strict=True):
        plain_at = meter.total
        end = behind - stream.padding
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_MEMORY)
        encoded = Encoded(file, at, end, decoder, "xz stream")
        meter.take_all(encoded.chunks())
        require(encoded.packed == end - at, f"the xz stream at byte {at} ends before its footer")
        _add_parts(parts, stream, plain_at)
    return Layout("xz", file.size, meter.total, parts, _facts(container))


class _Fields:
    """A structure that is read from the front; all of it is in memory."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._raw, self._at, self._what = raw, 0, what

    def take(self, length: int) -> bytes:
        require(self._at + length <= len(self._raw), f"{self._what} is too short for its fields")
        self._at += length
        return self._raw[self._at - length : self._at]

    def vli(self) -> int:
        """At most nine bytes, and none too many (1.2)."""
        number = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if not byte & 0x80:
                require(byte > 0 or not shift, f"{self._what}: an integer with leading zeros")
                return number
        require(condition=False, why=f"{self._what}: an integer of more than 63 bits")
        raise AssertionError

    def rest(self) -> bytes:
        return self._raw[self._at :]


def _check_dictionary(block: Block) -> None:
    size = block.shape.dict_size
    if size > MAX_DICTIONARY:
        raise LimitExceeded(
            f"the xz block at byte {block.at} needs a dictionary of {size} bytes; "
            f"{MAX_DICTIONARY} are the most that is decoded"
        )


def _add_parts(parts: Parts, stream: Stream, plain_at: int) -> None:
    for block in stream.blocks:
        shape = block.shape
        family, hints = ("lzma2", {"dict_size": shape.dict_size}) if shape.is_plain_lzma2 else ("", {})
        parts.add(block.data_at, block.data_size, plain_at, block.plain_size, family, hints)
        plain_at += block.plain_size


def _facts(container: Container) -> dict[str, str]:
    blocks = container.blocks
    checks = {stream.check_name for stream in container.streams}
    facts = {"streams": str(len(container.streams)), "check": ", ".join(sorted(checks))}
    facts["blocks"] = str(len(blocks))
    if blocks:
        shapes = {block.shape for block in blocks}
        chains = {"+".join(each.name for each in shape.filters) for shape in shapes}
        facts["block size"] = str(max(block.plain_size for block in blocks))
        facts["dictionary"] = str(max(shape.dict_size for shape in shapes))
        facts["filters"] = ", ".join(sorted(chains))
    return facts


def _read_stream(file: Reader, end: int, room: int) -> Stream:
    """The stream, and the padding behind it, that end at `end`."""
    padding = _padding(file, end)
    footer_at = end - padding - FOOTER_SIZE
    footer = refuse_short(file, footer_at, FOOTER_SIZE, "the stream footer")
    what = f"the stream footer at {footer_at}"
    require(footer.endswith(FOOTER_MAGIC), f"{what} has another magic: cut short, or trailing bytes")
    require(_crc(footer[4:10]) == footer[:4], f"{what} has a wrong CRC32")
    flags = footer[8:10]
    require(not flags[0] and flags[1] < len(CHECK_SIZES), f"{what} has unknown flags {flags.hex()}")
    index_size = 4 * (int.from_bytes(footer[4:8], "little") + 1)
    records = _read_index(file, footer_at - index_size, index_size, room)
    at = footer_at - index_size - HEADER_SIZE - sum(size + -size % 4 for size, _ in records)
    require(at >= 0, f"{what}: its blocks begin before the file does")
    header = refuse_short(file, at, HEADER_SIZE, "the stream header")
    require(header == _stream_header(flags[1]), f"the stream header at {at} is not that of its footer")
    return Stream(at, flags[1], tuple(_read_blocks(file, at + HEADER_SIZE, records, flags[1])), padding)


def _padding(file: Reader, end: int) -> int:
    """Zero bytes before `end`; a multiple of four (2.2)."""
    count, step = 0, 4096
    while end - count > 0:
        length = min(step, end - count)
        piece = file.pread(end - count - length, length)
        zeros = length - len(piece.rstrip(b"\0"))
        count += zeros
        require(count <= MAX_PADDING, f"more than {MAX_PADDING} zero bytes before {end}")
        if zeros < length:
            break
    require(count % 4 == 0, f"{count} zero bytes before {end}, which is no multiple of 4")
    return count


def _read_index(file: Reader, at: int, size: int, room: int) -> list[tuple[int, int]]:
    """(unpadded size, plain size) of every block (4)."""
    what = f"the index at {at}"
    # Two integers of nine bytes for each block, one for their number.
    require(size <= 18 * room + 32, f"{what} is too large: {size} bytes")
    raw = refuse_short(file, at, size, "the index")
    require(_crc(raw[:-4]) == raw[-4:], f"{what} has a wrong CRC32")
    fields = _Fields(raw[:-4], what)
    require(fields.take(1) == b"\0", f"{what} does not begin with a zero byte")
    count = fields.vli()
    require(count <= room, f"{what} has {count} blocks; at most {MAX_BLOCKS} in a file are read")
    records = [(fields.vli(), fields.vli()) for _ in range(count)]
    padding = fields.rest()
    require(len(padding) < 4 and not any(padding), f"{what} has bytes behind its blocks")
    return records


def _read_blocks(file: Reader, at: int, records: list[tuple[int, int]], check: int) -> Iterator[Block]:
    shapes: dict[Shape, Shape] = {}
    for unpadded, plain in records:
        block = _read_block(file, at, unpadded, plain, CHECK_SIZES[check])
        shape = shapes.setdefault(block.shape, block.shape)
        yield Block(at, shape, block.data_size, plain, block.check_size)
        at = block.end


def _read_block(file: Reader, at: int, unpadded: int, plain: int, check_size: int) -> Block:
    what = f"the block header at {at}"
    size = 4 * (refuse_short(file, at, 1, what)[0] + 1)
    require(size > 4, f"{what} is an index")
    require(size + check_size < unpadded, f"{what} and its check leave no data in {unpadded} bytes")
    raw = refuse_short(file, at, size, what)
    require(_crc(raw[:-4]) == raw[-4:], f"{what} has a wrong CRC32")
    fields = _Fields(raw[1:-4], what)
    flags = fields.take(1)[0]
    require(not flags & 0x3C, f"{what} has unknown flags {flags:#x}")
    data_size = unpadded - size - check_size
    for bit, number, name in ((0x40, data_size, "data"), (0x80, plain, "plain bytes")):
        require(not flags & bit or fields.vli() == number, f"{what}: not as many {name} as in the index")
    filters = tuple(_read_filter(fields, what) for _ in range((flags & 3) + 1))
    _check_chain(filters, what)
    require(not any(fields.rest()), f"{what} has unknown fields")
    block = Block(
        at, Shape(size, bool(flags & 0x40), bool(flags & 0x80), filters), data_size, plain, check_size
    )
    padding = refuse_short(file, block.check_at - block.padding, block.padding, "block padding")
    require(not any(padding), f"block padding before {block.check_at} is not zero")
    return block


def _read_filter(fields: _Fields, what: str) -> Filter:
    number, length = fields.vli(), fields.vli()
    require(number in FILTERS, f"{what} has an unknown filter {number:#x}")
    require(length <= MAX_HEADER, f"{what} has {length} bytes of filter properties")
    return Filter(number, fields.take(length))


def _check_chain(filters: tuple[Filter, ...], what: str) -> None:
    """LZMA2 is the last filter and no other (5.3.1), with a known dictionary size."""
    chain = [each.name for each in filters]
    last = "lzma2" in chain and chain.index("lzma2") == len(chain) - 1
    require(last, f"{what} has the filter chain {', '.join(chain)}")
    properties = filters[-1].properties
    known = len(properties) == 1 and properties[0] <= 40
    require(known, f"{what} has the LZMA2 properties {properties.hex()}")


def _stream_header(check: int) -> bytes:
    """2.1.1"""
    flags = bytes((0, check))
    return MAGIC + flags + _crc(flags)


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
