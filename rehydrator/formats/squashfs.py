"""squashfs 4.0: where every regular file's bytes lie.

Inodes and directories are streams of compressed metadata blocks, addressed by a block's place
and an offset in its plain bytes. A file is a run of data blocks, of which any may be a hole;
its last bytes may share a fragment block with those of other files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rehydrator.codecs import codec as codec_of
from rehydrator.codecs.blocks import unpack
from rehydrator.formats import c_squashfs as c
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
)

if TYPE_CHECKING:
    import struct
    from collections.abc import Iterator

    from rehydrator.core.reader import Reader


def recognise(file: Reader) -> bool:
    """The magic number at byte 0."""
    return file.size >= c.SUPERBLOCK.size and file.pread(0, len(c.MAGIC)) == c.MAGIC


def read(file: Reader) -> FileSystem:
    """The byte map of the file system in `file`; nothing but its metadata is read.

    A compressed fragment block's `plain` is as far as files use it, which is all of it as
    mksquashfs writes them; its decoder refuses where it is not.

    Raises:
        Unexplained: not squashfs 4.0, an unknown compressor, beyond a limit, or malformed.
        HostileInput: metadata that does not decode.
    """
    superblock = read_superblock(file)
    metadata = _Metadata(file, superblock)
    facts, metadata.params = _read_options(metadata)
    blocks = _Blocks(superblock, metadata)
    contents = tuple(_contents(superblock, metadata, blocks))
    facts |= {"block size": str(superblock.block), "inodes": str(superblock.inodes)}
    facts |= {"fragments": str(superblock.fragments)}
    return FileSystem("squashfs", superblock.size, blocks.finish(), contents, facts)


def read_superblock(file: Reader) -> c.Superblock:
    """The superblock, checked but for the tables that it names."""
    raw = refuse_short(file, 0, c.SUPERBLOCK.size, "a superblock")
    found = c.Superblock._make(c.SUPERBLOCK.unpack(raw))
    require(found.magic == c.MAGIC, "no squashfs magic number")
    require((found.major, found.minor) == c.VERSION, f"squashfs {found.major}.{found.minor}")
    name = c.COMPRESSORS.get(found.compressor, str(found.compressor))
    require(name in c.CODECS, f"squashfs compressed by {name}, which this version cannot read")
    in_range = c.MIN_BLOCK <= found.block <= c.MAX_BLOCK
    require(in_range and found.block == 1 << min(found.block_log, 63), f"blocks of {found.block} bytes")
    require(found.size <= file.size, f"{found.size} bytes of squashfs, of which {file.size} are there")
    ordered = c.SUPERBLOCK.size <= found.inodes_at < found.directories_at <= found.size
    require(ordered, "tables of inodes and directories out of order")
    require(found.inodes <= MAX_FILES, f"{found.inodes} inodes")
    require(found.fragments <= MAX_BLOCKS, f"{found.fragments} fragments")
    return found


class _Metadata:
    """Metadata blocks, decoded once; what is decoded and read is limited in sum."""

    def __init__(self, file: Reader, superblock: c.Superblock) -> None:
        self._file, self._end = file, superblock.size
        self.superblock = superblock
        name = c.COMPRESSORS[superblock.compressor]
        self.codec, self.params = c.CODECS[name], _params(name, {})
        self._blocks: dict[int, tuple[bytes, int]] = {}
        self._left = MAX_METADATA

    def block(self, at: int) -> tuple[bytes, int]:
        """The plain bytes of the block at byte `at` of the file, and where the next begins."""
        if at not in self._blocks:
            self._blocks[at] = self._decode(at)
        return self._blocks[at]

    def read(self, at: int, offset: int, length: int) -> bytes:
        """`length` plain bytes from `offset` of the block at `at`, and on in those behind it."""
        self._charge(length)
        plain, at = self.block(at)
        require(offset < len(plain), f"byte {offset} of a metadata block of {len(plain)}")
        parts = [plain[offset : offset + length]]
        missing = length - len(parts[0])
        while missing:
            plain, at = self.block(at)
            parts.append(plain[:missing])
            missing -= len(parts[-1])
        return b"".join(parts)

    def table(self, at: int, count: int, layout: struct.Struct, what: str) -> list[tuple[Any, ...]]:
        """A table of `count` entries, whose blocks' places lie at byte `at` of the file."""
        size = count * layout.size
        places = -(-size // c.METADATA_SIZE)
        require(at + places * c.POINTER.size <= self._end, f"the {what} lies outside of the file system")
        raw = refuse_short(self._file, at, places * c.POINTER.size, what)
        whole = b"".join(self.block(place)[0] for (place,) in c.POINTER.iter_unpack(raw))
        require(len(whole) == size, f"the {what} holds {len(whole)} bytes, not {size}")
        return list(layout.iter_unpack(whole))

    def _decode(self, at: int) -> tuple[bytes, int]:
        inside = c.SUPERBLOCK.size <= at <= self._end - c.METADATA_HEADER
        require(inside, f"a metadata block at {at}, outside of the file system")
        word = int.from_bytes(self._file.pread(at, c.METADATA_HEADER), "little")
        stored, start = word & ~c.METADATA_PLAIN, at + c.METADATA_HEADER
        fits = 0 < stored <= min(c.METADATA_SIZE, self._end - start)
        require(fits, f"a metadata block of {stored} bytes at {at}")
        codec = "" if word & c.METADATA_PLAIN else self.codec
        plain = _unpack(codec, self._file.pread(start, stored), self.params, c.METADATA_SIZE)
        require(bool(plain), f"an empty metadata block at {at}")
        self._charge(len(plain))
        return plain, start + stored

    def _charge(self, length: int) -> None:
        self._left -= length
        require(self._left >= 0, f"more than {MAX_METADATA} bytes of metadata")


def _unpack(codec: str, packed: bytes, params: tuple[tuple[str, int], ...], limit: int) -> bytes:
    """The plain bytes, `limit` at most, of one stream that is all of `packed`."""
    if not codec:
        return packed
    if codec != "zlib":
        return unpack("zstd.frame" if codec == "zstd" else codec, packed, limit)
    plain, used = codec_of(codec).unpack(packed, dict(params), limit)
    require(used == len(packed), "a zlib block with bytes behind it")
    return plain


def _read_options(metadata: _Metadata) -> tuple[dict[str, str], tuple[tuple[str, int], ...]]:
    """The facts that the compressor's options give, and the codec's parameters.

    mksquashfs stores options that are not its defaults (gzip: level 9, window 15; zstd: level
    15), as they lie; its memLevel is 8, and its xz streams say themselves how to decode them.
    """
    name = c.COMPRESSORS[metadata.superblock.compressor]
    layout, keys = c.OPTIONS[name]
    options: dict[str, int] = {}
    if metadata.superblock.flags & c.OPTIONS_FLAG:
        raw, _ = metadata.block(c.SUPERBLOCK.size)
        require(len(raw) == layout.size, f"{name} options of {len(raw)} bytes")
        options = dict(zip(keys, layout.unpack(raw), strict=True))
    facts = {"compressor": name} | {key: str(value) for key, value in options.items()}
    return facts, _params(name, options)


def _params(name: str, options: dict[str, int]) -> tuple[tuple[str, int], ...]:
    if name == "gzip":
        level, window = options.get("level", 9), options.get("window", 15)
        require(1 <= level <= 9 and 8 <= window <= 15, f"gzip of level {level} and window {window}")
        # zlib makes a window of 8 one of 9.
        return (("level", level), ("memlevel", 8), ("wbits", max(window, 9)))
    if name == "zstd":
        level = options.get("level", 15)
        require(1 <= level <= 22, f"zstd of level {level}")
        return (("level", level),)
    return ()


class _Blocks:
    """The blocks that files use, each once; and how files are made of them."""

    def __init__(self, superblock: c.Superblock, metadata: _Metadata) -> None:
        self._superblock, self._metadata = superblock, metadata
        self._fragments = metadata.table(
            superblock.fragments_at if superblock.fragments else 0,
            superblock.fragments,
            c.FRAGMENT,
            "fragment table",
        )
        self._numbers: dict[tuple[int, int, bool], int] = {}
        self._blocks: list[Block] = []
        self._left = MAX_BLOCKS
        # Blocks lie apart: together they are no longer than their place.
        self._room = superblock.inodes_at - c.SUPERBLOCK.size

    def pieces(self, file: c.File, words: Iterator[int]) -> Iterator[Piece]:
        """The file's pieces; `words` are the stored lengths of its blocks."""
        at, place, hole = 0, file.start, 0
        for word in words:
            length = min(self._superblock.block, file.size - at)
            if word and hole < at:
                yield Piece(hole, at - hole, ZEROS, 0)
            if word:
                yield Piece(at, length, self._data(place, word, length), 0)
                hole = at + length
            at, place = at + length, place + (word & (c.DATA_PLAIN - 1))
        if hole < at:
            yield Piece(hole, at - hole, ZEROS, 0)
        if at < file.size:
            yield Piece(at, file.size - at, self._fragment(file, file.size - at), file.offset)

    def charge(self, count: int) -> None:
        self._left -= count
        require(self._left >= 0, f"files of more than {MAX_BLOCKS} blocks")

    def finish(self) -> tuple[Block, ...]:
        """All blocks, by number; refused where two overlap."""
        end = c.SUPERBLOCK.size
        for block in sorted(self._blocks, key=lambda block: block.offset):
            require(block.offset >= end, f"the block at {block.offset} overlaps another")
            end = block.offset + block.stored
        return tuple(self._blocks)

    def _data(self, at: int, word: int, length: int) -> int:
        number = self._number(at, word, length, shared=False)
        found = self._blocks[number]
        require(found.plain == length, f"the block at {at} is {found.plain} bytes and {length}")
        return number

    def _fragment(self, file: c.File, length: int) -> int:
        require(file.fragment < len(self._fragments), f"fragment {file.fragment} of {len(self._fragments)}")
        at, word, _ = self._fragments[file.fragment]
        end = file.offset + length
        require(end <= self._superblock.block, f"a fragment that ends at byte {end} of its block")
        number = self._number(at, word, end, shared=True)
        found = self._blocks[number]
        require(bool(found.codec) or end <= found.stored, f"byte {end} of a fragment block of {found.stored}")
        if found.plain < end:
            self._blocks[number] = Block(found.offset, found.stored, end, found.codec, found.params)
        return number

    def _number(self, at: int, word: int, plain: int, shared: bool) -> int:
        """The number of the block at `at`, a new one if need be."""
        if (at, word, shared) not in self._numbers:
            stored = word & (c.DATA_PLAIN - 1)
            known = word < 2 * c.DATA_PLAIN and 0 < stored <= self._superblock.block
            require(known, f"a block of {word:#x} bytes at {at}")
            self._room -= stored
            inside = c.SUPERBLOCK.size <= at <= self._superblock.inodes_at - stored
            require(inside and self._room >= 0, f"the block at {at} overlaps another or the metadata")
            self._numbers[at, word, shared] = len(self._blocks)
            as_is = bool(word & c.DATA_PLAIN)
            packed = Block(at, stored, plain, self._metadata.codec, self._metadata.params)
            self._blocks.append(Block(at, stored, stored) if as_is else packed)
        return self._numbers[at, word, shared]


def _contents(superblock: c.Superblock, metadata: _Metadata, blocks: _Blocks) -> Iterator[Content]:
    """Every regular file once: a directory's own, then those of the directories in it."""
    inodes = _Inodes(superblock, metadata)
    root = c.Entry(b"", superblock.root >> 16, superblock.root & 0xFFFF, c.DIRECTORY, 0)
    seen = {root[1:3]}
    stack = [(root, b"", 0)]
    paths = 0
    while stack:
        directory, path, depth = stack.pop()
        require(depth <= MAX_DEPTH, f"directories deeper than {MAX_DEPTH}")
        below = []
        for entry in inodes.entries(directory):
            name = path + entry.name
            paths += len(name)
            require(len(name) <= MAX_PATH, f"a path of {len(name)} bytes")
            require(paths <= MAX_PATHS, f"more than {MAX_PATHS} bytes of paths")
            again = entry[1:3] in seen
            seen.add(entry[1:3])
            if entry.kind == c.DIRECTORY:
                require(not again, f"the directory {name!r:.80} lies in two places")
                below.append((entry, name + b"/", depth + 1))
            elif entry.kind == c.FILE and not again:
                file, words = inodes.file(entry, blocks)
                yield Content(name, file.size, tuple(blocks.pieces(file, words)))
        stack.extend(reversed(below))


class _Inodes:
    """Inodes and directories."""

    def __init__(self, superblock: c.Superblock, metadata: _Metadata) -> None:
        self._superblock, self._metadata = superblock, metadata
        self._ids = len(metadata.table(superblock.ids_at, superblock.ids, c.ID, "id table"))
        self._entries = MAX_FILES

    def entries(self, directory: c.Entry) -> Iterator[c.Entry]:
        """A directory's entries, each checked against its inode."""
        names = set()
        for entry in self._listed(self._listing(directory)):
            self._entries -= 1
            require(self._entries >= 0, f"more than {MAX_FILES} directory entries")
            fair = entry.name not in (b".", b"..") and not {0, ord("/")} & set(entry.name)
            require(fair and entry.name not in names, f"a directory entry {entry.name!r:.80}")
            names.add(entry.name)
            inode = self._inode(entry)
            alike = (self._kind(inode), inode.number) == (entry.kind, entry.number)
            require(alike, f"{entry.name!r:.80} is not as its inode says")
            yield entry

    def file(self, entry: c.Entry, blocks: _Blocks) -> tuple[c.File, Iterator[int]]:
        """A regular file, and the stored lengths of its blocks."""
        long = self._inode(entry).kind > c.EXTENDED
        if long:
            start, size, _, _, fragment, offset, _ = self._body(entry, c.LONG_FILE_BODY)
        else:
            start, fragment, offset, size = self._body(entry, c.FILE_BODY)
        whole, rest = divmod(size, self._superblock.block)
        count = whole + (rest > 0 and fragment == c.NO_FRAGMENT)
        blocks.charge(count + 1)
        before = c.INODE.size + (c.LONG_FILE_BODY if long else c.FILE_BODY).size
        raw = self._read(entry, before + 4 * count)[before:]
        return c.File(start, size, fragment, offset), (word for (word,) in c.WORD.iter_unpack(raw))

    def _listing(self, directory: c.Entry) -> c.Listing:
        inode = self._inode(directory)
        require(self._kind(inode) == c.DIRECTORY, "the root is not a directory")
        if inode.kind > c.EXTENDED:
            _, size, block, _, _, offset, _ = self._body(directory, c.LONG_DIRECTORY_BODY)
        else:
            block, _, size, offset, _ = self._body(directory, c.DIRECTORY_BODY)
        return c.Listing(block, offset, size)

    def _listed(self, listing: c.Listing) -> Iterator[c.Entry]:
        if listing.size <= c.DOTS:
            return
        start = self._superblock.directories_at + listing.block
        raw = self._metadata.read(start, listing.offset, listing.size - c.DOTS)
        at = 0
        while at < len(raw):
            count, block, first = _fields(c.RUN, raw, at)
            require(count < c.MAX_RUN, f"a run of {count + 1} directory entries")
            at += c.RUN.size
            for _ in range(count + 1):
                offset, delta, kind, length = _fields(c.ENTRY, raw, at)
                at += c.ENTRY.size + length + 1
                require(length < c.MAX_NAME and at <= len(raw), f"a name of {length + 1} bytes")
                name = raw[at - length - 1 : at]
                yield c.Entry(name, block, offset, kind, (first + delta) & 0xFFFFFFFF)

    def _inode(self, entry: c.Entry) -> c.Inode:
        inode = c.Inode._make(c.INODE.unpack(self._read(entry, c.INODE.size)))
        require(0 < inode.kind <= c.SOCKET + c.EXTENDED, f"an inode of kind {inode.kind}")
        require(max(inode.uid, inode.gid) < self._ids, "an inode whose owner is not in the id table")
        return inode

    def _body(self, entry: c.Entry, layout: struct.Struct) -> tuple[Any, ...]:
        """The fields behind those that all inodes have."""
        return layout.unpack(self._read(entry, c.INODE.size + layout.size)[c.INODE.size :])

    def _read(self, entry: c.Entry, length: int) -> bytes:
        at = self._superblock.inodes_at + entry.block
        require(at < self._superblock.directories_at, f"an inode at {at}, behind the inodes")
        return self._metadata.read(at, entry.offset, length)

    @staticmethod
    def _kind(inode: c.Inode) -> int:
        return inode.kind - c.EXTENDED if inode.kind > c.EXTENDED else inode.kind


def _fields(layout: struct.Struct, raw: bytes, at: int) -> tuple[Any, ...]:
    require(at + layout.size <= len(raw), "a directory is cut short")
    return layout.unpack_from(raw, at)
