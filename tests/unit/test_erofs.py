"""EROFS: structures made by hand, exact and malformed. What tools write is read in tests/compat."""

from __future__ import annotations

import lzma
import struct
from typing import NamedTuple

import pytest

from rehydrator.core.digest import crc32c
from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_erofs as c
from rehydrator.formats import erofs, filesystem
from rehydrator.formats.filesystem import Block, FileSystem, Piece

BLOCK = 4096
DATA = 16  # the first block of data
ROOT = BLOCK // 32
LZMA = {"id": lzma.FILTER_LZMA1, "preset": 6, "lc": 3, "lp": 0, "pb": 2}


class File(NamedTuple):
    """An inode, and what lies behind it."""

    layout: int
    size: int
    start: int = 0
    behind: bytes = b""
    mode: int = c.REGULAR
    attributes: int = 0


def inode(file: File) -> bytes:
    return struct.pack(
        "<HHHHIIIIHHI", file.layout << 1, file.attributes, file.mode, 1, file.size, 0, file.start, 0, 0, 0, 0
    )


def names(entries: dict[bytes, int]) -> bytes:
    """A directory block."""
    at, fixed = 12 * len(entries), b""
    for name, nid in entries.items():
        fixed += struct.pack("<QHBx", nid, at, 0)
        at += len(name)
    return fixed + b"".join(entries)


def image(
    *files: File, data: bytes = b"", incompat: int = 0x23, extra: dict[bytes, int] | None = None
) -> bytes:
    """A file system of files "0", "1" and so on; the last is also the packed inode."""
    root = names({str(i).encode(): (2 + i) * ROOT for i in range(len(files))} | (extra or {}))
    raw = bytearray(DATA * BLOCK) + data + bytes(-len(data) % BLOCK)
    inodes = [File(c.INLINE, len(root), 0, root, c.DIRECTORY), *files]
    for number, file in enumerate(inodes):
        whole = inode(file) + file.behind
        raw[(1 + number) * BLOCK : (1 + number) * BLOCK + len(whole)] = whole
    values = (c.MAGIC, 0, 1, 12, 0, ROOT, 9, 0, 0, len(raw) // BLOCK, 0, 0, bytes(16), bytes(16))
    packed = (1 + len(files)) * ROOT
    raw[1024:1152] = c.SUPER.pack(*values, incompat, 0xF, 0, 0, 0, 0, 0, packed).ljust(128, b"\0")
    raw[1028:1032] = (crc32c(bytes(raw[1024:BLOCK])) ^ 0xFFFFFFFF).to_bytes(4, "little")
    return bytes(raw)


def header(word: int = 0, advice: int = 0, algorithms: int = 0) -> bytes:
    return c.MAP.pack(word, advice, algorithms, 0)


def full(*entries: tuple[int, int, int]) -> bytes:
    """A full index: (kind, skip, word) each."""
    return bytes(8) + b"".join(c.ENTRY.pack(*entry) for entry in entries)


def run_lz4(length: int) -> bytes:
    """`length` bytes "a" as LZ4: one literal, a match that repeats it, five literals."""
    more = length - 6 - 4 - 15
    return b"\x1fa\x01\x00" + b"\xff" * (more // 255) + bytes([more % 255]) + b"\x50aaaaa"


def padded(packed: bytes) -> bytes:
    return packed.rjust(BLOCK, b"\0")


def read(raw: bytes) -> FileSystem:
    return erofs.read(BytesReader(raw))


def content(raw: bytes, number: int = 0) -> bytes:
    """A file, rebuilt from its pieces."""
    reader, system = BytesReader(raw), read(raw)
    (found,) = (item for item in system.contents if item.path == str(number).encode())
    plains = [b"" if p.block < 0 else filesystem.decode(reader, system.blocks[p.block]) for p in found.pieces]
    parts = zip(found.pieces, plains, strict=True)
    return b"".join(bytes(p.length) if p.block < 0 else b[p.start : p.start + p.length] for p, b in parts)


def test_flat_and_inline_files_lie_where_their_inodes_say() -> None:
    """A flat file is its blocks; an inline one has its tail behind the inode; an empty one nothing."""
    files = File(c.FLAT, 5000, DATA), File(c.INLINE, 4100, DATA + 1, b"tail"), File(c.FLAT, 0)
    system = read(image(*files, data=bytes(2 * BLOCK)))
    pieces = {item.path: item.pieces for item in system.contents}
    assert pieces == {
        b"0": (Piece(0, 5000, 0, 0),),
        b"1": (Piece(0, 4096, 1, 0), Piece(4096, 4, 2, 0)),
        b"2": (),
    }
    assert system.blocks[2] == Block(3 * BLOCK + 32, 4, 4)


def test_extended_attributes_lie_between_an_inode_and_its_data() -> None:
    """n of them, as an inode counts, are 12 bytes and n - 1 words."""
    file = File(c.INLINE, 4, 0, bytes(12 + 4 * 2) + b"data", attributes=3)
    assert content(image(file)) == b"data"


def test_a_chunk_without_an_address_is_a_hole() -> None:
    """Chunks are block addresses; all ones is zeros."""
    chunks = struct.pack("<III", DATA, c.HOLE, DATA)
    system = read(image(File(c.CHUNKS, 2 * BLOCK + 9, 0, chunks), data=bytes(BLOCK)))
    assert system.contents[0].pieces == (
        Piece(0, BLOCK, 0, 0),
        Piece(BLOCK, BLOCK, -1, 0),
        Piece(2 * BLOCK, 9, 1, 0),
    )


def test_a_full_index_of_lz4_and_plain_clusters() -> None:
    """An extent goes on up to the next head, which may lie within a logical cluster."""
    index = full((c.HEAD1, 0, DATA), (c.NONHEAD, 0, 1), (c.PLAIN, 100, DATA + 1))
    file = File(c.FULL, 3 * BLOCK, 0, header() + index)
    raw = image(file, data=padded(run_lz4(2 * BLOCK + 100)) + b"b" * BLOCK)
    assert content(raw) == b"a" * (2 * BLOCK + 100) + b"b" * (BLOCK - 100)


def test_interlaced_bytes_go_on_at_the_beginning_of_their_block() -> None:
    """An interlaced extent's bytes have the place in a block that they have in the file."""
    index = full((c.HEAD1, 0, DATA), (c.PLAIN, 100, DATA + 1), (c.NONHEAD, 0, 1))
    file = File(c.FULL, 2 * BLOCK + 50, 0, header(advice=c.INTERLACED) + index)
    raw = image(file, data=padded(run_lz4(BLOCK + 100)) + b"c" * 100 + b"b" * (BLOCK - 100))
    assert content(raw) == b"a" * (BLOCK + 100) + b"b" * (BLOCK - 100) + b"c" * 50


@pytest.mark.parametrize(("kind", "algorithms"), [(c.HEAD1, 0x01), (c.HEAD2, 0x10)])
def test_micro_lzma_is_raw_lzma_with_its_properties_first(kind: int, algorithms: int) -> None:
    """The first byte, zero in LZMA1, is the inverted properties; a file may have two algorithms."""
    plain = bytes(range(256)) * 16
    stream = lzma.compress(plain, lzma.FORMAT_RAW, filters=[LZMA])
    packed = bytes([~((2 * 5 + 0) * 9 + 3) & 0xFF]) + stream[1:]
    index = header(algorithms=algorithms) + full((kind, 0, DATA))
    raw = image(File(c.FULL, len(plain), 0, index), data=padded(packed))
    assert content(raw) == plain
    assert read(raw).blocks[0].codec == "lzma1"


def test_a_fragment_is_a_span_of_the_packed_inode() -> None:
    """A file that is a fragment as a whole shares the packed inode's block."""
    whole = (c.ALL_FRAGMENT | 7).to_bytes(8, "little")
    files = File(c.FULL, 5, 0, whole), File(c.INLINE, 20, 0, b"0123456789abcdefghij")
    assert content(image(*files)) == b"789ab"


def test_a_block_that_decodes_to_more_than_it_says_is_stopped() -> None:
    """More bytes than the extent has are an error, unless the entry says that there are more."""
    for flag, expected in ((0, None), (c.PREFIX, b"a" * 1000)):
        index = header() + full((c.HEAD1 | flag, 0, DATA))
        raw = image(File(c.FULL, 1000, 0, index), data=padded(run_lz4(100_000)))
        if expected is None:
            with pytest.raises(HostileInput, match="1000 bytes"):
                content(raw)
        else:
            assert content(raw) == expected


@pytest.mark.parametrize("codec", ["lz4", "lzma1", "deflate", "zstd"])
def test_bytes_that_are_no_stream_are_refused(codec: str) -> None:
    """Every codec answers nonsense with HostileInput."""
    for stored in (b"", bytes(9), b"\xff" * 100, b"\x01nonsense"):
        with pytest.raises(HostileInput):
            filesystem.decode(BytesReader(stored), Block(0, len(stored), 5000, codec))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (image(incompat=0x83), "0x80 .48-bit addresses."),
        (image(incompat=0x400), "0x400 .unknown."),
        (image()[:-1], "outside of the file"),
        (image()[:1100], "the superblock"),
        (image()[:2000] + b"x" + image()[2001:], "checksum is wrong"),
        (image(extra={b"a/b": ROOT}), "a name"),
        (image(File(c.FLAT, 1, DATA), extra={b"link": 2 * ROOT}, data=b"x"), None),
        (image(extra={b"up": ROOT}), "has two names"),
        (image(extra={b"far": 1 << 60}), "an inode at .* outside"),
        (image(File(5, 1)), "format"),
        (image(File(c.FLAT, BLOCK + 1, DATA), data=b"x"), "a block at .* outside"),
        (image(File(c.INLINE, 4090, 0)), "crosses a block"),
        (image(File(c.CHUNKS, 1, 0x40)), "chunks of format"),
        (image(File(c.CHUNKS, 1, c.CHUNK_INDEXES, struct.pack("<HHI", 0, 1, 0) * 2)), "another device"),
        (image(File(c.FULL, 9, 0, header(advice=1))), "encoded extents"),
        (image(File(c.FULL, 9, 0, header(advice=0x40))), "the advice 0x40"),
        (image(File(c.FULL, 9, 0, header() + full((c.NONHEAD, 0, 1)))), "without extents"),
        (image(File(c.FULL, 9, 0, header() + full((c.HEAD1, 1, DATA)))), "in order from 0"),
        (image(File(c.FULL, 9, 0, header(algorithms=7) + full((c.HEAD1, 0, DATA)))), "algorithm 7"),
        (image(File(c.FULL, 9, 0, header(advice=2) + full((c.HEAD1, 0, DATA))), data=b"x"), None),
        (image(File(c.FULL, 9, 0, header(advice=c.FRAGMENT) + full((c.HEAD1, 0, 0)))), "within the packed"),
    ],
)
def test_what_is_malformed_or_not_known_is_declined_in_words(raw: bytes, why: str | None) -> None:
    """Each with its reason; two cases that look odd and are right are read."""
    if why is None:
        assert len(read(raw + bytes(BLOCK)).contents) == 1
    else:
        with pytest.raises(Unexplained, match=why):
            read(raw)


def test_work_that_a_small_file_asks_for_many_times_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fragments that name all pieces of the packed inode again and again end at a limit."""
    whole = File(c.FULL, 3 * BLOCK, 0, c.ALL_FRAGMENT.to_bytes(8, "little"))
    chunks = File(c.CHUNKS, 3 * BLOCK, 0, struct.pack("<III", DATA, DATA, DATA))
    raw = image(*[whole] * 5, chunks, data=bytes(BLOCK))
    assert sum(len(item.pieces) for item in read(raw).contents) == 18
    monkeypatch.setattr(erofs, "MAX_BLOCKS", 20)
    with pytest.raises(Unexplained, match="too many pieces"):
        read(raw)
