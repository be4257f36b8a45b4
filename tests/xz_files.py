"""Writes the .xz container (The .xz File Format 1.2): all that is neither data nor check is a
function of the few numbers that the reader gives."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from rehydrator.formats import xz

if TYPE_CHECKING:
    from collections.abc import Iterator


def render(container: xz.Container) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of all that is neither data nor check: headers, padding, index, footers.
    Neighbours come as one, offsets ascend."""
    at, held = 0, b""
    for start, part in _parts(container):
        if start != at + len(held):
            yield at, held
            at, held = start, b""
        held += part
    yield at, held


def data_and_checks(container: xz.Container) -> Iterator[tuple[int, int]]:
    """(offset, length) of every block's data, and of its check where it has one."""
    for block in container.blocks:
        yield block.data_at, block.data_size
        if block.check_size:
            yield block.check_at, block.check_size


def encode_vli(number: int) -> bytes:
    """A variable-length integer (1.2)."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def _parts(container: xz.Container) -> Iterator[tuple[int, bytes]]:
    for stream in container.streams:
        yield stream.at, _stream_header(stream.check)
        for block in stream.blocks:
            yield block.at, _block_header(block)
            if block.padding:
                yield block.check_at - block.padding, bytes(block.padding)
        index = _index(stream.blocks)
        yield index_at(stream), index + _footer(stream.check, len(index)) + bytes(stream.padding)


def index_at(stream: xz.Stream) -> int:
    return stream.blocks[-1].end if stream.blocks else stream.at + xz.HEADER_SIZE


def unpadded_size(block: xz.Block) -> int:
    """As the index has it (4.3): header, data and check without the padding."""
    return block.shape.header_size + block.data_size + block.check_size


def _stream_header(check: int) -> bytes:
    """2.1.1"""
    flags = bytes((0, check))
    return xz.MAGIC + flags + _crc(flags)


def _footer(check: int, index_size: int) -> bytes:
    """2.1.2"""
    fields = (index_size // 4 - 1).to_bytes(4, "little") + bytes((0, check))
    return _crc(fields) + fields + xz.FOOTER_MAGIC


def _block_header(block: xz.Block) -> bytes:
    """3.1"""
    shape = block.shape
    flags = len(shape.filters) - 1 | 0x40 * shape.has_data_size | 0x80 * shape.has_plain_size
    fields = bytes((shape.header_size // 4 - 1, flags))
    fields += encode_vli(block.data_size) if shape.has_data_size else b""
    fields += encode_vli(block.plain_size) if shape.has_plain_size else b""
    for each in shape.filters:
        fields += encode_vli(each.id) + encode_vli(len(each.properties)) + each.properties
    fields = fields.ljust(shape.header_size - 4, b"\0")
    return fields + _crc(fields)


def _index(blocks: tuple[xz.Block, ...]) -> bytes:
    """4"""
    records = (encode_vli(unpadded_size(block)) + encode_vli(block.plain_size) for block in blocks)
    fields = b"\0" + encode_vli(len(blocks)) + b"".join(records)
    fields += bytes(-len(fields) % 4)
    return fields + _crc(fields)


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
