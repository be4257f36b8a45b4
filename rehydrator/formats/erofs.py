"""EROFS: where the bytes of every regular file lie, and how its blocks decode.

    superblock                        at byte 1024
    inodes, indexes, inline tails     the metadata area
    data: blocks as they lie, chunks, physical clusters; the packed inode holds tails of files

Read: flat, inline, chunk-based and compressed files (LZ4, MicroLZMA, deflate, zstd) with full and
compact indexes, large physical clusters, inline tails, fragments and shared physical clusters.
Declined, by name: several devices, 48-bit addresses, encoded extents, the metadata box.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING

from rehydrator.core.digest import crc32c
from rehydrator.formats import c_erofs as c
from rehydrator.formats.explanation import refuse_short, require
from rehydrator.formats.filesystem import (
    MAX_BLOCKS,
    MAX_DEPTH,
    MAX_FILES,
    MAX_METADATA,
    MAX_PATH,
    MAX_PATHS,
    ZEROS,
    Block,
    Content,
    FileSystem,
    Piece,
    decode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rehydrator.core.reader import Reader

MAX_CLUSTERS = 16 << 20  # index entries of all files: 64 GiB of content in clusters of 4 KiB
PREFIX = (("prefix", 1),)


def recognise(file: Reader) -> bool:
    """The magic number of the superblock."""
    magic = c.MAGIC.to_bytes(4, "little")
    return file.size >= c.SUPER_AT + c.SUPER.size and file.pread(c.SUPER_AT, len(magic)) == magic


def read(file: Reader) -> FileSystem:
    """The regular files of the file system that begins at byte 0.

    Raises:
        Unexplained: a feature that is not known, something malformed, or beyond a limit.
        HostileInput: a directory whose blocks do not decode.
    """
    head = read_super(file)
    contents = tuple((tree := _Tree(file, head)).contents())
    blocks = tree.blocks.finish()
    codecs = sorted({block.codec for block in blocks if block.codec})
    facts = {"block size": str(head.block), "codecs": ", ".join(codecs) or "none"}
    return FileSystem("erofs", head.blocks * head.block, blocks, contents, facts)


def read_super(file: Reader) -> c.Super:
    """The superblock, checked: its checksum, the features and the file system's size."""
    head = c.Super._make(c.SUPER.unpack(refuse_short(file, c.SUPER_AT, c.SUPER.size, "the superblock")))
    require(head.magic == c.MAGIC, "no superblock of EROFS")
    require(c.MIN_BLOCK_BITS <= head.block_bits <= c.MAX_BLOCK_BITS, f"blocks of 2^{head.block_bits} bytes")
    unknown = head.incompat & ~c.KNOWN_FEATURES
    named = c.FEATURE_NAMES.get(unknown & -unknown, "unknown")
    require(not unknown, f"the feature {unknown & -unknown:#x} ({named})")
    require(not head.directory_bits, "directory blocks of another size")
    require(not head.devices, f"{head.devices} more devices")
    require(head.blocks * head.block <= file.size, f"{head.blocks} blocks lie outside of the file")
    _check_super(file, head)
    return head


def _check_super(file: Reader, head: c.Super) -> None:
    """CRC-32C, not inverted at the end, up to the block's end, its own field taken as zero."""
    if not head.compat & c.SUPER_CHECKSUM:
        return
    length = head.block - c.SUPER_AT if head.block > c.SUPER_AT else head.block
    raw = refuse_short(file, c.SUPER_AT, length, "the superblock")
    at = c.CHECKSUM_AT
    found = crc32c(raw[:at] + bytes(4) + raw[at + 4 :]) ^ 0xFFFFFFFF
    require(found == head.checksum, "the superblock's checksum is wrong")


class _Budget:
    """So much and no more: work that a hostile file can ask for many times over."""

    def __init__(self, left: int, what: str) -> None:
        self._left, self._what = left, what

    def spend(self, amount: int) -> None:
        self._left -= amount
        require(self._left >= 0, f"too many {self._what}")


class _Blocks:
    """Blocks, each once. Files may know different lengths of one physical cluster's plain bytes:
    the block has the longest."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._numbers: dict[tuple[int, int, str], int] = {}
        self._keys: list[tuple[int, int, str]] = []
        self._plain: list[int] = []
        self._prefix: list[bool] = []

    def add(self, offset: int, stored: int, plain: int = 0, codec: str = "", prefix: bool = False) -> int:
        """The block's number."""
        require(offset + stored <= self._size, f"a block at {offset} lies outside of the file system")
        number = self._numbers.setdefault((offset, stored, codec), len(self._keys))
        if number == len(self._keys):
            self._keys.append((offset, stored, codec))
            self._plain.append(0)
            self._prefix.append(False)
        self._plain[number] = max(self._plain[number], plain or stored)
        self._prefix[number] |= prefix
        return number

    def get(self, number: int) -> Block:
        offset, stored, codec = self._keys[number]
        params = PREFIX if self._prefix[number] else ()
        return Block(offset, stored, self._plain[number], codec, params)

    def finish(self) -> tuple[Block, ...]:
        return tuple(self.get(number) for number in range(len(self._keys)))


class _Tree:
    """One walk over a file system."""

    def __init__(self, file: Reader, head: c.Super) -> None:
        self.file, self.head, self.block = file, head, head.block
        self.blocks = _Blocks(head.blocks * head.block)
        self._pieces = _Budget(MAX_BLOCKS, "pieces of files")
        self.clusters = _Budget(MAX_CLUSTERS, "logical clusters")
        self._entries = _Budget(MAX_FILES, "directory entries")
        self._names = _Budget(MAX_PATHS, "bytes of paths")
        self._metadata = _Budget(MAX_METADATA, "bytes of directories")
        self._tails: tuple[Sequence[Piece], list[int], int] | None = None
        self._in_packed = False

    def contents(self) -> Iterator[Content]:
        """Every regular file, hard links once."""
        directories, files = {self.head.root}, set()
        stack = [(self.head.root, b"", 0)]
        while stack:
            nid, parent, depth = stack.pop()
            require(depth <= MAX_DEPTH, f"more than {MAX_DEPTH} directories within each other")
            for name, child in self._directory(nid):
                path, inode = self._path(parent, name), self._inode(child)
                if inode.mode & c.TYPE_MASK == c.DIRECTORY:
                    require(child not in directories, f"the directory {path!r} has two names")
                    directories.add(child)
                    stack.append((child, path, depth + 1))
                elif inode.mode & c.TYPE_MASK == c.REGULAR and child not in files:
                    files.add(child)
                    yield Content(path, inode.size, self._map(inode, self.blocks))

    def _path(self, parent: bytes, name: bytes) -> bytes:
        path = parent + b"/" + name if parent else name
        require(len(path) <= MAX_PATH, f"a path of {len(path)} bytes")
        self._names.spend(len(path))
        return path

    def _inode(self, nid: int) -> c.Inode:
        at = self.head.meta * self.block + nid * c.NID_UNIT
        raw = refuse_short(self.file, at, c.COMPACT.size, "an inode")
        form, attributes, mode, _, size, _, start = c.COMPACT.unpack(raw)
        length = c.COMPACT.size
        if form & 1:
            _, _, _, _, size, start = c.EXTENDED.unpack_from(raw)
            length = c.EXTENDED_SIZE
        require(not form >> 4 and form >> 1 <= c.CHUNKS, f"an inode of format {form:#x}")
        extra = c.XATTR_HEADER + 4 * (attributes - 1) if attributes else 0
        return c.Inode(form >> 1, mode, size, start, at + length + extra)

    def _directory(self, nid: int) -> Iterator[tuple[bytes, int]]:
        """Names and inode numbers, without "." and ".."."""
        inode = self._inode(nid)
        require(inode.mode & c.TYPE_MASK == c.DIRECTORY, f"inode {nid} is no directory")
        self._metadata.spend(inode.size)
        blocks = _Blocks(self.head.blocks * self.block)
        raw = b"".join(self._read(piece, blocks) for piece in self._map(inode, blocks))
        seen = {b".", b".."}
        for at in range(0, len(raw), self.block):
            for name, child in self._names_of(raw[at : at + self.block]):
                require(name not in seen or name in (b".", b".."), f"two entries {name!r}")
                if name not in seen:
                    yield name, child
                seen.add(name)

    def _read(self, piece: Piece, blocks: _Blocks) -> bytes:
        if piece.block == ZEROS:
            return bytes(piece.length)
        block = blocks.get(piece.block)
        if not block.codec:
            return self.file.pread(block.offset + piece.start, piece.length)
        self._metadata.spend(block.plain)  # many small pieces may be of one large block
        return decode(self.file, block)[piece.start : piece.start + piece.length]

    def _names_of(self, raw: bytes) -> Iterator[tuple[bytes, int]]:
        """The entries of a directory block: fixed parts first, then the names."""
        size = c.DIRENT.size
        require(len(raw) >= size, "a directory block without entries")
        first = c.DIRENT.unpack_from(raw)[1]
        require(first and not first % size and first <= len(raw), "a malformed directory block")
        self._entries.spend(first // size)
        entries = [c.DIRENT.unpack_from(raw, at) for at in range(0, first, size)]
        ends = [entry[1] for entry in entries[1:]] + [len(raw)]
        for (nid, start, _), end in zip(entries, ends, strict=True):
            require(first <= start < end <= len(raw), "a name lies outside of its directory block")
            name = raw[start:end] if end < len(raw) else raw[start:end].split(b"\0")[0]
            require(0 < len(name) <= 255 and b"/" not in name and b"\0" not in name, f"a name {name!r}")
            yield name, nid

    def _map(self, inode: c.Inode, blocks: _Blocks) -> tuple[Piece, ...]:
        """The pieces that tile a file."""
        if not inode.size:
            return ()
        if inode.layout in (c.FLAT, c.INLINE):
            pieces = self._flat(inode, blocks)
        elif inode.layout == c.CHUNKS:
            pieces = self._chunks(inode, blocks)
        else:
            pieces = self._compressed(inode, blocks)
        return tuple(self._counted(pieces))

    def _counted(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._pieces.spend(1)
            yield piece

    def _flat(self, inode: c.Inode, blocks: _Blocks) -> Iterator[Piece]:
        """Whole blocks in a row; the last, if inline, behind the inode."""
        tail = (inode.size - 1) % self.block + 1 if inode.layout == c.INLINE else 0
        whole = inode.size - tail
        if whole:
            yield Piece(0, whole, blocks.add(inode.start * self.block, whole), 0)
        if tail:
            require(inode.end % self.block + tail <= self.block, "an inline tail crosses a block")
            yield Piece(whole, tail, blocks.add(inode.end, tail), 0)

    def _chunks(self, inode: c.Inode, blocks: _Blocks) -> Iterator[Piece]:
        """Chunks of one size, each a block address, or an index of 8 bytes."""
        form = inode.start & 0xFFFF
        require(not form & ~(c.CHUNK_BITS | c.CHUNK_INDEXES), f"chunks of format {form:#x}")
        chunk = self.block << (form & c.CHUNK_BITS)
        count, unit = -(-inode.size // chunk), 8 if form & c.CHUNK_INDEXES else 4
        self.clusters.spend(count)
        raw = refuse_short(self.file, -(-inode.end // unit) * unit, count * unit, "the chunks of a file")
        for number in range(count):
            at, entry = number * chunk, raw[number * unit : (number + 1) * unit]
            device = c.CHUNK_INDEX.unpack(entry)[1] if unit == 8 else 0
            require(not device, "a chunk on another device")
            address, length = int.from_bytes(entry[-4:], "little"), min(chunk, inode.size - at)
            hole = address == c.HOLE
            yield Piece(at, length, ZEROS if hole else blocks.add(address * self.block, length), 0)

    def _compressed(self, inode: c.Inode, blocks: _Blocks) -> Iterator[Piece]:
        at = -(-inode.end // 8) * 8
        raw = refuse_short(self.file, at, c.MAP.size, "the map of a compressed file")
        word = int.from_bytes(raw, "little")
        if word & c.ALL_FRAGMENT:
            return self.fragment(0, inode.size, word ^ c.ALL_FRAGMENT)
        return _Compressed(self, inode, raw, at).pieces(blocks)

    def fragment(self, at: int, length: int, offset: int) -> Iterator[Piece]:
        """`length` bytes at `at` of a file are those at `offset` of the packed inode."""
        pieces, starts, size = self._packed()
        require(offset + length <= size, "a fragment lies outside of the packed inode")
        end, shift = offset + length, at - offset
        index = bisect_right(starts, offset) - 1
        while offset < end:
            piece = pieces[index]
            skip = offset - piece.at
            span = min(end - offset, piece.length - skip)
            start = 0 if piece.block == ZEROS else piece.start + skip
            yield Piece(offset + shift, span, piece.block, start)
            offset, index = offset + span, index + 1

    def _packed(self) -> tuple[Sequence[Piece], list[int], int]:
        """The pieces of the packed inode, where they begin, and its size."""
        if self._tails is None:
            require(bool(self.head.incompat & c.FRAGMENTS), "a fragment without the feature")
            require(not self._in_packed, "a fragment within the packed inode")
            self._in_packed = True
            inode = self._inode(self.head.packed)
            require(inode.mode & c.TYPE_MASK == c.REGULAR, "the packed inode is no file")
            pieces = self._map(inode, self.blocks)
            self._tails = pieces, [piece.at for piece in pieces], inode.size
        return self._tails


class _Compressed:
    """One compressed file: its map header, and the index behind it."""

    def __init__(self, tree: _Tree, inode: c.Inode, raw: bytes, at: int) -> None:
        self._tree, self._inode, self._at = tree, inode, at
        self._block, self._head = tree.block, tree.head
        self._word, self._advice, algorithms, bits = c.MAP.unpack(raw)
        self._algorithms = {c.HEAD1: algorithms & 15, c.HEAD2: algorithms >> 4}
        self._bits: int = self._head.block_bits + (bits & 15)
        self._cluster: int = 1 << self._bits
        self._big = {c.HEAD1: bool(self._advice & c.BIG_1), c.HEAD2: bool(self._advice & c.BIG_2)}
        self._tail = self._word >> 16 if self._advice & c.TAIL_INLINE else 0
        self._check(bits)

    def _check(self, bits: int) -> None:
        advice, full = self._advice, self._inode.layout == c.FULL
        require(not advice & ~c.KNOWN_ADVICE, f"a compressed file with the advice {advice:#x}")
        require(not (full and advice & c.TWO_BYTES), "a compressed file with encoded extents")
        require(not bits >> 4 and self._bits <= 20, f"logical clusters of 2^{self._bits} bytes")
        both = advice & c.TAIL_INLINE and advice & c.FRAGMENT
        require(not both, "a tail that is both inline and a fragment")
        same = self._big[c.HEAD1] == self._big[c.HEAD2]
        require(full or same, "a compact index of physical clusters of two kinds")

    def pieces(self, blocks: _Blocks) -> Iterator[Piece]:
        clusters, behind = self._index()
        first = True
        for extent, after in pairwise(chain(self._heads(clusters), [None])):
            assert extent is not None
            at, cluster, counted = extent
            end = after[0] if after else self._inode.size
            require(at < end and (at == 0 or not first), "extents that are not in order from 0 on")
            first = False
            if not after and self._advice & c.FRAGMENT:
                high = cluster.block << 32 if self._inode.layout == c.FULL else 0
                yield from self._tree.fragment(at, end - at, self._word | high)
                continue
            if not after and self._tail:
                there = self._inline(behind)
            else:
                there = cluster.block * self._block, self._stored(cluster, counted)
            yield from self._extent(blocks, cluster, (at, end - at), there)
        require(not first, "a compressed file without extents")

    def _inline(self, behind: int) -> tuple[int, int]:
        """Where the bytes of the last extent lie: behind the index."""
        require(behind % self._block + self._tail <= self._block, "an inline tail crosses a block")
        return behind, self._tail

    def _index(self) -> tuple[Iterator[c.Cluster], int]:
        """The index entries of all logical clusters, and where the index ends."""
        count = -(-self._inode.size // self._cluster)
        self._tree.clusters.spend(count)
        if self._inode.layout == c.FULL:
            at = self._at + c.MAP.size + 8
            raw = refuse_short(self._tree.file, at, 8 * count, "the index of a compressed file")
            return c.full_index(raw), at + len(raw)
        return self._compact_index(self._at + c.MAP.size, count)

    def _compact_index(self, at: int, count: int) -> tuple[Iterator[c.Cluster], int]:
        two = bool(self._advice & c.TWO_BYTES)
        require(self._bits <= (12 if two else 14), f"a compact index of clusters of 2^{self._bits} bytes")
        parts: list[tuple[bytes, int]] = []
        for packs, entries in c.compact_packs(at, count, two):
            size = packs * c.pack_size(entries)
            parts.append((refuse_short(self._tree.file, at, size, "the index of a compressed file"), entries))
            at += size
        return islice(self._unpacked(parts), count), at

    def _unpacked(self, parts: list[tuple[bytes, int]]) -> Iterator[c.Cluster]:
        for raw, entries in parts:
            size = c.pack_size(entries)
            for start in range(0, len(raw), size):
                pack = raw[start : start + size]
                yield from c.compact_pack(pack, entries, self._bits, self._big[c.HEAD1])

    def _heads(self, clusters: Iterator[c.Cluster]) -> Iterator[tuple[int, c.Cluster, int | None]]:
        """Where extents begin, their entry, and the count of blocks that the next one holds, if
        it is none. A last one may mark the end of the file."""
        for number, (cluster, after) in enumerate(pairwise(chain(clusters, [None]))):
            assert cluster is not None
            if cluster.kind == c.NONHEAD:
                continue
            require(cluster.skip < self._cluster, "an extent begins behind its logical cluster")
            at = number * self._cluster + cluster.skip
            if at < self._inode.size:
                yield at, cluster, after.blocks if after and after.kind == c.NONHEAD else None

    def _stored(self, cluster: c.Cluster, counted: int | None) -> int:
        """Bytes of the physical cluster: one logical cluster's, unless the next entry counts."""
        if not self._big.get(cluster.kind) or counted is None:
            return self._cluster
        require(counted > 0, "a physical cluster without a count of blocks")
        require(counted * self._block <= c.MAX_STORED, f"a physical cluster of {counted} blocks")
        return counted * self._block

    def _extent(
        self, blocks: _Blocks, cluster: c.Cluster, here: tuple[int, int], there: tuple[int, int]
    ) -> Iterator[Piece]:
        """The pieces of an extent `here` (address, length) that is stored `there`."""
        (at, length), (offset, stored) = here, there
        if cluster.kind == c.PLAIN:
            yield from self._plain(blocks, here, there)
            return
        algorithm = self._algorithms[cluster.kind]
        configured = self._head.incompat & c.COMPRESSION_CONFIGS
        available = self._head.algorithms if configured else 1
        known = algorithm < len(c.CODECS) and bool(available >> algorithm & 1)
        require(known, f"the compression algorithm {algorithm}")
        require(length <= c.MAX_PLAIN, f"a physical cluster that decodes to {length} bytes")
        prefix = cluster.prefix or not self._head.incompat & c.ZERO_PADDING
        yield Piece(at, length, blocks.add(offset, stored, length, c.CODECS[algorithm], prefix), 0)

    def _plain(self, blocks: _Blocks, here: tuple[int, int], there: tuple[int, int]) -> Iterator[Piece]:
        """Bytes as they lie; interlaced, those of a block at the place that they have in a block
        of the file, so that they go on at its beginning."""
        (at, length), (offset, stored) = here, there
        require(length <= stored, "an extent is longer than its bytes")
        turn = at % self._block if self._advice & c.INTERLACED else 0
        if not turn:
            yield Piece(at, length, blocks.add(offset, length), 0)
            return
        require(stored == self._block, "interlaced bytes that are not one block")
        number, first = blocks.add(offset, stored), min(length, stored - turn)
        yield Piece(at, first, number, turn)
        if first < length:
            yield Piece(at + first, length - first, number, 0)
