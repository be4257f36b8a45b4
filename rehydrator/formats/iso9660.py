"""ISO 9660: where every regular file's bytes lie.

A file is one extent, or a chain of them (a file above 4 GiB is one). Directory records decide
what there is; path tables say the same again and are not read. Names are those of Rock Ridge
where it is there. Joliet and enhanced trees list the same extents again: of them only files
count whose bytes no other tree has. What is no file's bytes (descriptors, directories, tables
of partitions, padding) is not in the map.

Declined: interleaved files, sparse files of Rock Ridge, volumes of a set that lie elsewhere.
Associated files (Apple's resource forks) and symbolic links are no regular files.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from rehydrator.core.errors import Unexplained
from rehydrator.formats import c_iso9660 as c
from rehydrator.formats.explanation import refuse_short, require
from rehydrator.formats.filesystem import (
    MAX_BLOCKS,
    MAX_DEPTH,
    MAX_FILES,
    MAX_METADATA,
    MAX_PATH,
    MAX_PATHS,
    Block,
    Content,
    FileSystem,
    Piece,
)

if TYPE_CHECKING:
    import struct
    from collections.abc import Iterator, Sequence

    from rehydrator.core.reader import Reader

MAX_DESCRIPTORS: Final = 64
MAX_AREAS: Final = 1024  # continuation areas of one record
MAX_USES: Final = 4 << 20  # system use entries: Rock Ridge has five or so for a file
# What a continuation area costs of MAX_METADATA at least, so that tiny ones are bounded as well.
AREA_COST: Final = 256
MAX_CATALOGUE: Final = 32 << 10
MAX_PARTITIONS: Final = 256

Span = tuple[int, int]  # offset and length in bytes


def recognise(file: Reader) -> bool:
    """The standard identifier of the first volume descriptor."""
    at = c.SYSTEM_AREA + 1
    return file.size >= c.SYSTEM_AREA + c.SECTOR and file.pread(at, len(c.IDENTIFIER)) == c.IDENTIFIER


def read(file: Reader) -> FileSystem:
    """The byte map of the volume that begins at byte 0; nothing but its metadata is read.

    Boot images that are no file of a tree are contents by the name of "[El Torito]/1" and so
    on, in the catalogue's order; files that only another tree lists are below "[Joliet]/",
    "[Enhanced]/" or "[Supplementary]/".

    Raises:
        Unexplained: no such volume, a feature that is declined, beyond a limit, or malformed.
    """
    descriptors, catalogue = _descriptors(file)
    volume = _Volume(file)
    blocks, contents, trees = _Blocks(file), list[Content](), list[_Tree]()
    for descriptor in descriptors:
        trees.append(tree := _Tree(volume, descriptor))
        contents += _new(tree, blocks, {content.pieces for content in contents})
    partitions = _partitions(file)
    images = _images(file, catalogue)
    contents += _boot_contents(file, images, partitions, blocks)
    require(len({content.path for content in contents}) == len(contents), "two files of one path")
    facts = _facts(file, descriptors[0], trees) | _boot_facts(images, partitions)
    return FileSystem("iso9660", descriptors[0].space, blocks.finish(), tuple(contents), facts)


def _descriptors(file: Reader) -> tuple[list[c.Descriptor], int | None]:
    """The primary descriptor and the supplementary ones, each tree once; and the place of the
    boot catalogue. A second primary descriptor is a copy (ECMA-119, 8.4)."""
    found: dict[bytes, c.Descriptor] = {}
    catalogue = None
    for at, kind, raw in _raw_descriptors(file):
        if kind == c.BOOT_RECORD and raw[c.BOOT_SYSTEM].rstrip(b" \0") == c.EL_TORITO:
            catalogue = int.from_bytes(raw[c.CATALOGUE_AT : c.CATALOGUE_AT + 4], "little") * c.SECTOR
        if kind == c.SUPPLEMENTARY:
            require(bool(found), "no primary volume descriptor before the supplementary ones")
        if kind == (c.SUPPLEMENTARY if found else c.PRIMARY):
            found.setdefault(raw[c.ROOT], _descriptor(raw, at))
    require(bool(found), "no primary volume descriptor")
    descriptors = list(found.values())
    space = descriptors[0].space
    require(space <= file.size, f"a volume of {space} bytes, of which {file.size} are there")
    return descriptors, catalogue


def _raw_descriptors(file: Reader) -> Iterator[tuple[int, int, bytes]]:
    """Place, type and bytes of every volume descriptor before the terminator."""
    for number in range(MAX_DESCRIPTORS):
        at = c.SYSTEM_AREA + number * c.SECTOR
        raw = refuse_short(file, at, c.SECTOR, "a volume descriptor")
        kind, identifier, _ = c.DESCRIPTOR.unpack_from(raw)
        require(identifier == c.IDENTIFIER, f"no volume descriptor at {at}, where one should be")
        if kind == c.TERMINATOR:
            return
        yield at, kind, raw
    raise Unexplained(f"more than {MAX_DESCRIPTORS} volume descriptors")


def _descriptor(raw: bytes, at: int) -> c.Descriptor:
    kind, _, version = c.DESCRIPTOR.unpack_from(raw)
    block = _both(raw, c.BLOCK_SIZE, c.BOTH_SHORT, at)
    require(block in c.BLOCK_SIZES, f"blocks of {block} bytes, by the volume descriptor at {at}")
    tree = "" if kind == c.PRIMARY else "Supplementary"
    if tree and version == c.ENHANCED_VERSION:
        tree = "Enhanced"
    elif tree and raw[c.ESCAPES].rstrip(b"\0") in c.JOLIET_ESCAPES:
        tree = "Joliet"
    space = _both(raw, c.SPACE_SIZE, c.BOTH_LONG, at) * block
    set_size = _both(raw, c.SET_SIZE, c.BOTH_SHORT, at)
    sequence = _both(raw, c.SEQUENCE_NUMBER, c.BOTH_SHORT, at)
    return c.Descriptor(tree, space, block, set_size, sequence, raw)


def _both(raw: bytes, at: int, layouts: tuple[struct.Struct, struct.Struct], place: int) -> int:
    """A both-endian number at `at` of what lies at `place` of the file."""
    little, big = layouts
    value: int = little.unpack_from(raw, at)[0]
    other = big.unpack_from(raw, at + little.size)[0]
    require(
        value == other, f"the number at {place + at} is {value} in one byte order and {other} in the other"
    )
    return value


class _Volume:
    """The file, and what may yet be read of it: all trees count together."""

    def __init__(self, file: Reader) -> None:
        self._file = file
        self._metadata, self._entries, self._paths = MAX_METADATA, MAX_FILES, MAX_PATHS
        self._uses = MAX_USES

    def read(self, offset: int, length: int, what: str, cost: int = 0) -> bytes:
        self._metadata -= max(length, cost)
        require(self._metadata >= 0, f"more than {MAX_METADATA} bytes of metadata")
        return refuse_short(self._file, offset, length, what)

    def count_entry(self) -> None:
        self._entries -= 1
        require(self._entries >= 0, f"more than {MAX_FILES} directory entries")

    def count_use(self) -> None:
        self._uses -= 1
        require(self._uses >= 0, f"more than {MAX_USES} system use entries")

    def count_path(self, path: bytes) -> None:
        require(len(path) <= MAX_PATH, f"a path of {len(path)} bytes")
        self._paths -= len(path)
        require(self._paths >= 0, f"more than {MAX_PATHS} bytes of paths")


class _Rock(NamedTuple):
    """What Rock Ridge says of a record; `child` is the block of a relocated directory."""

    name: bytes = b""
    mode: int | None = None
    child: int | None = None
    relocated: bool = False
    special: bool = False
    zisofs: bool = False

    @property
    def is_regular(self) -> bool:
        kind = (self.mode or 0) & c.MODE_KIND
        return kind == c.MODE_REGULAR or not (kind or self.special)


class _Tree:
    """The directories below one descriptor's root."""

    def __init__(self, volume: _Volume, descriptor: c.Descriptor) -> None:
        self._volume, self._descriptor = volume, descriptor
        self.name = descriptor.tree
        self.root = self._record(descriptor.raw[c.ROOT], 0, 0)
        require(bool(self.root.flags & c.DIRECTORY_FLAG), "the root is not a directory")
        self.skip: int | None = None
        self.extension = ""
        self.zisofs = 0
        if descriptor.tree != "Joliet":
            self._find_rock_ridge()

    def files(self) -> Iterator[tuple[bytes, list[Span]]]:
        """Every regular file: its path, and where its bytes lie."""
        stack = [((self.root.offset, self.root.size), b"", 0)]
        seen = {self.root.offset}
        while stack:
            directory, path, depth = stack.pop()
            require(depth <= MAX_DEPTH, f"directories deeper than {MAX_DEPTH}, at {directory[0]}")
            below = []
            for name, record, sections in self._entries(directory):
                self._volume.count_path(whole := path + name)
                if sections is not None:
                    yield whole, sections
                    continue
                require(record.offset not in seen, f"the directory {whole!r:.80} lies in two places")
                seen.add(record.offset)
                below.append(((record.offset, record.size), whole + b"/", depth + 1))
            stack.extend(reversed(below))

    def _entries(self, directory: Span) -> Iterator[tuple[bytes, c.Record, list[Span] | None]]:
        """Name, record and sections; of a directory (where it lies) instead of sections None."""
        for chain in self._chains(directory):
            record = chain[0]
            rock = self._rock(record)
            if rock.relocated or record.flags & c.ASSOCIATED_FLAG:
                continue
            name = self._name(record, rock)
            if rock.child is not None:
                record = self._self_record(rock.child * self._descriptor.block)
            if record.flags & c.DIRECTORY_FLAG:
                require(len(chain) == 1, f"the directory {name!r:.80} has several extents, at {record.at}")
                yield name, record, None
            elif rock.is_regular:
                self.zisofs += rock.zisofs
                yield name, record, [(each.offset, each.size) for each in chain if each.size]

    def _chains(self, directory: Span) -> Iterator[list[c.Record]]:
        """Records, those of one file together (ECMA-119, 9.1.6: bit 7 says that more follow)."""
        chain: list[c.Record] = []
        for record in self._records(*directory):
            if record.name in (c.SELF, c.PARENT):
                continue
            alike = not chain or (record.name, record.flags | c.MULTI_EXTENT_FLAG) == (
                chain[0].name,
                chain[0].flags,
            )
            require(alike, f"the record at {record.at} does not go on with the file before it")
            chain.append(record)
            if not record.flags & c.MULTI_EXTENT_FLAG:
                yield chain
                chain = []
        require(not chain, f"the directory at {directory[0]} ends within a file's extents")

    def _records(self, offset: int, size: int) -> Iterator[c.Record]:
        """A directory's records. None crosses a sector; where one begins with a zero byte, the
        rest of the sector is unused (ECMA-119, 6.8.1.1)."""
        for at in range(offset, offset + size, c.SECTOR):
            length = min(c.SECTOR, offset + size - at)
            raw = self._volume.read(at, length, "a directory", c.SECTOR)
            start = 0
            while start < length and raw[start]:
                self._volume.count_entry()
                yield self._record(raw, start, at)
                start += raw[start]

    def _record(self, raw: bytes, start: int, place: int) -> c.Record:
        """The record at `start` of the bytes that lie at `place` of the file."""
        at, length = place + start, raw[start]
        require(
            c.RECORD_MIN < length <= len(raw) - start,
            f"the record at {at}, {length} bytes, crosses its sector",
        )
        name_end = c.NAME + raw[start + c.NAME_LENGTH]
        require(c.NAME < name_end <= length, f"the record at {at} has a name of {name_end - c.NAME} bytes")
        contiguous = not raw[start + c.UNIT_SIZE] and not raw[start + c.GAP_SIZE]
        require(contiguous, f"an interleaved file, by the record at {at}")
        volume = _both(raw, start + c.VOLUME, c.BOTH_SHORT, place)
        here = self._descriptor.set_size <= 1 or volume == self._descriptor.sequence
        require(here, f"the record at {at} is of volume {volume} of the set")
        block = _both(raw, start + c.EXTENT, c.BOTH_LONG, place) + raw[start + c.ATTRIBUTE_LENGTH]
        size = _both(raw, start + c.DATA_LENGTH, c.BOTH_LONG, place)
        name = raw[start + c.NAME : start + name_end]
        extra = raw[start + name_end + (name_end - c.NAME + 1) % 2 : start + length]
        return c.Record(at, block * self._descriptor.block, size, raw[start + c.FLAGS], name, extra)

    def _self_record(self, offset: int) -> c.Record:
        """A directory by its own first record."""
        record = next(self._records(offset, c.SECTOR), None)
        alike = record is not None and (record.name, record.offset) == (c.SELF, offset)
        require(alike, f"no directory at {offset}, where one is said to be")
        assert record is not None
        return record

    def _name(self, record: c.Record, rock: _Rock) -> bytes:
        name = rock.name
        if not name and self.name == "Joliet":
            require(len(record.name) % 2 == 0, f"the record at {record.at} has half a character")
            name = record.name.decode("utf-16-be", "replace").encode()
        name = (name or record.name).removesuffix(b";1") if not rock.name else name
        if not rock.name and not self.name:
            name = name.removesuffix(b".")
        fair = name not in (b"", b".", b"..") and not {0, ord("/")} & set(name)
        require(fair, f"the record at {record.at} has the name {name!r:.80}")
        return name

    def _find_rock_ridge(self) -> None:
        """SUSP 5.3: the entry SP in the root's first record, at its very beginning."""
        first = next(self._records(self.root.offset, self.root.size), None)
        if first is None or first.name != c.SELF or first.extra[:2] != c.INDICATOR:
            return
        entry = first.extra[: c.INDICATOR_SIZE]
        if len(entry) < c.INDICATOR_SIZE or entry[4:6] != c.INDICATOR_CHECK:
            return
        self.skip = entry[6]
        for signature, entry in self._system_use(first.extra, first.at):
            if signature == c.EXTENSION and len(entry) >= c.EXTENSION_SIZE:
                end = c.EXTENSION_SIZE + entry[4]
                self.extension = self.extension or _text(entry[c.EXTENSION_SIZE : end])

    def _rock(self, record: c.Record) -> _Rock:
        if self.skip is None:
            return _Rock()
        found, name = _Rock(), b""
        for signature, entry in self._system_use(record.extra[self.skip :], record.at):
            require(signature != c.SPARSE, f"a sparse file of Rock Ridge, by the record at {record.at}")
            if signature == c.ALTERNATE_NAME and len(entry) >= c.ALTERNATE_NAME_SIZE:
                if not entry[4] & (c.NAME_CURRENT | c.NAME_PARENT):
                    name += entry[c.ALTERNATE_NAME_SIZE :]
                require(len(name) <= MAX_PATH, f"a name of {len(name)} bytes, by the record at {record.at}")
            elif signature == c.POSIX and len(entry) >= c.POSIX_SIZE:
                found = found._replace(mode=_both(entry, 4, c.BOTH_LONG, record.at))
            elif signature == c.CHILD_LINK and len(entry) >= c.CHILD_LINK_SIZE:
                found = found._replace(child=_both(entry, 4, c.BOTH_LONG, record.at))
            elif signature == c.RELOCATED:
                found = found._replace(relocated=True)
            elif signature == c.DEVICE:
                found = found._replace(special=True)
            elif signature == c.SYMLINK:
                # What follows does not matter, and genisoimage 1.1.11 writes the rest of a long
                # target wrongly.
                return _Rock(name, special=True)
            elif signature == c.ZISOFS:
                found = found._replace(zisofs=True)
        return found._replace(name=name)

    def _system_use(self, area: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
        """The entries of a record's system use field, and of the areas that continue it."""
        for _ in range(MAX_AREAS):
            following = b""
            for entry in _area_entries(area, at):
                self._volume.count_use()
                signature = entry[:2]
                if signature == c.CONTINUATION:
                    following = self._continuation(entry, at)
                else:
                    yield signature, entry
            if not following:
                return
            area = following
        raise Unexplained(f"the record at {at} has more than {MAX_AREAS} continuation areas")

    def _continuation(self, entry: bytes, at: int) -> bytes:
        require(
            len(entry) >= c.CONTINUATION_SIZE, f"a continuation of {len(entry)} bytes, by the record at {at}"
        )
        block, offset, length = (_both(entry, k, c.BOTH_LONG, at) for k in (4, 12, 20))
        place = block * self._descriptor.block + offset
        return self._volume.read(place, length, "a continuation area", AREA_COST)


def _area_entries(area: bytes, at: int) -> Iterator[bytes]:
    """The entries of one area, until ST or padding (SUSP 4 and 5.4)."""
    start = 0
    while len(area) - start >= c.ENTRY_HEADER and area[start] and area[start : start + 2] != c.STOP:
        length = area[start + 2]
        fits = c.ENTRY_HEADER <= length <= len(area) - start
        require(fits, f"a system use entry of {length} bytes, by the record at {at}")
        yield area[start : start + length]
        start += length


class _Blocks:
    """Extents that files use, each once."""

    def __init__(self, file: Reader) -> None:
        self._file = file
        self._numbers: dict[Span, int] = {}
        self._left = MAX_BLOCKS

    def pieces(self, sections: Sequence[Span]) -> tuple[Piece, ...]:
        """The pieces of a file; extents that lie in a row are one block."""
        at, pieces = 0, []
        for offset, size in _joined(sections):
            pieces.append(Piece(at, size, self._number(offset, size), 0))
            at += size
        return tuple(pieces)

    def finish(self) -> tuple[Block, ...]:
        """All blocks, by number; refused where two overlap."""
        end = 0
        for offset, size in sorted(self._numbers):
            require(offset >= end, f"the extent at {offset} overlaps another")
            end = offset + size
        return tuple(Block(offset, size, size) for offset, size in self._numbers)

    def spans(self) -> list[Span]:
        return sorted(self._numbers)

    def _number(self, offset: int, size: int) -> int:
        self._left -= 1
        require(self._left >= 0, f"files of more than {MAX_BLOCKS} extents")
        inside = offset + size <= self._file.size
        require(inside, f"an extent of {size} bytes at {offset}, outside of the file")
        return self._numbers.setdefault((offset, size), len(self._numbers))


def _joined(sections: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for offset, size in sections:
        if joined and sum(joined[-1]) == offset:
            joined[-1] = joined[-1][0], joined[-1][1] + size
        else:
            joined.append((offset, size))
    return joined


def _new(tree: _Tree, blocks: _Blocks, known: set[tuple[Piece, ...]]) -> Iterator[Content]:
    """The tree's files; of a tree that is not the primary one, those that no other has."""
    prefix = f"[{tree.name}]/".encode() if tree.name else b""
    for path, sections in tree.files():
        pieces = blocks.pieces(sections)
        if not prefix or (pieces and pieces not in known):
            yield Content(prefix + path, sum(piece.length for piece in pieces), pieces)


def _images(file: Reader, catalogue: int | None) -> list[c.Image]:
    """The images that the boot catalogue lists (El Torito 1.0, 2.0 to 2.4)."""
    if catalogue is None:
        return []
    raw = refuse_short(file, catalogue, min(MAX_CATALOGUE, file.size - catalogue), "the boot catalogue")
    entries = (
        raw[at : at + c.BOOT_ENTRY] for at in range(0, len(raw) // c.BOOT_ENTRY * c.BOOT_ENTRY, c.BOOT_ENTRY)
    )
    first = next(entries, b"")
    require(len(first) == c.BOOT_ENTRY, f"the boot catalogue at {catalogue} is cut short")
    header, platform, _, _, _, *key = c.VALIDATION.unpack(first)
    words = sum(int.from_bytes(first[k : k + 2], "little") for k in range(0, c.BOOT_ENTRY, 2))
    valid = header == c.VALIDATION_ID and tuple(key) == c.VALIDATION_KEY and not words % (1 << 16)
    require(valid, f"the boot catalogue at {catalogue} does not begin as one")
    images = [_image(1, platform, one) for one in islice(entries, 1)]
    for header_entry in entries:
        indicator, platform, count, _ = c.SECTION.unpack(header_entry)
        if indicator not in (c.MORE_SECTIONS, c.LAST_SECTION):
            break
        images += _section(entries, len(images), platform, count)
        if indicator == c.LAST_SECTION:
            break
    return [image for image in images if image.offset]


def _section(entries: Iterator[bytes], before: int, platform: int, count: int) -> Iterator[c.Image]:
    for number in range(before + 1, before + count + 1):
        entry = next(entries, b"")
        require(bool(entry), f"a boot catalogue without its image {number}")
        yield _image(number, platform, entry)
        more = entry[1] & c.EXTENSION_FOLLOWS
        while more:
            extension = next(entries, b"")
            require(
                extension[:1] == bytes([c.EXTENSION_ID]),
                f"image {number} of a boot catalogue goes on nowhere",
            )
            more = extension[1] & c.EXTENSION_FOLLOWS


def _image(number: int, platform: int, entry: bytes) -> c.Image:
    indicator, media, _, _, _, sectors, place, _ = c.IMAGE.unpack(entry)
    require(indicator in (c.BOOTABLE, c.NOT_BOOTABLE), f"image {number} of a boot catalogue: {indicator:#x}")
    name = c.PLATFORMS.get(platform, f"platform {platform:#x}")
    return c.Image(number, name, media & 15, place * c.SECTOR, sectors * c.UNIT)


def _boot_contents(
    file: Reader, images: Sequence[c.Image], partitions: Sequence[Span], blocks: _Blocks
) -> Iterator[Content]:
    """Images that share no byte with a file, or with an image before them."""
    spans = blocks.spans()
    for image in images:
        size = _image_size(file, image, partitions)
        index = bisect_right(spans, (image.offset, file.size))
        before, after = spans[max(index - 1, 0) : index], spans[index : index + 1]
        apart = all(sum(span) <= image.offset for span in before) and all(
            span[0] >= image.offset + size for span in after
        )
        if size and apart:
            pieces = blocks.pieces([(image.offset, size)])
            insort(spans, (image.offset, size))
            yield Content(b"[El Torito]/%d" % image.number, size, pieces)


def _image_size(file: Reader, image: c.Image, partitions: Sequence[Span]) -> int:
    """Bytes of a boot image. The catalogue says how many of them are loaded, which without
    emulation may be fewer or more; a partition that begins with the image has its size."""
    if image.media in c.FLOPPIES:
        return c.FLOPPIES[image.media]
    if image.media == c.HARD_DISK:
        sector = refuse_short(file, image.offset, c.UNIT, f"boot image {image.number}")
        return max((sum(span) for span in _mbr(sector)), default=image.size)
    return max([image.size, *(size for offset, size in partitions if offset == image.offset)])


def _partitions(file: Reader) -> list[Span]:
    """What the partition tables of a hybrid image list; they are facts and decide nothing."""
    head = refuse_short(file, 0, 2 * c.UNIT, "a system area")
    return _mbr(head[: c.UNIT]) + _gpt(file, head[c.UNIT :])


def _mbr(sector: bytes) -> list[Span]:
    if sector[-2:] != c.MBR_SIGNATURE:
        return []
    entries = [c.MBR_ENTRY.unpack_from(sector, at) for at in c.MBR_ENTRIES]
    return [(start * c.UNIT, size * c.UNIT) for _, _, kind, _, start, size in entries if kind and size]


def _gpt(file: Reader, header: bytes) -> list[Span]:
    if not header.startswith(c.GPT_SIGNATURE):
        return []
    place, count, size = c.GPT_TABLE.unpack_from(header, c.GPT_TABLE_AT)
    length = min(count, MAX_PARTITIONS) * size
    if size != c.GPT_ENTRY.size or place * c.UNIT + length > file.size:
        return []
    entries = c.GPT_ENTRY.iter_unpack(file.pread(place * c.UNIT, length))
    used = [entry for entry in entries if any(entry[0])]
    return [
        (first * c.UNIT, (last - first + 1) * c.UNIT) for _, _, first, last, _, _ in used if first <= last
    ]


def _text(raw: bytes) -> str:
    return raw.rstrip(b" \0").decode("ascii", "replace")


def _facts(file: Reader, primary: c.Descriptor, trees: Sequence[_Tree]) -> dict[str, str]:
    names = "ISO 9660" if trees[0].skip is None else f"Rock Ridge ({trees[0].extension or 'unnamed'})"
    facts = {"volume": _text(primary.raw[c.VOLUME_ID]), "names": names}
    facts["block size"] = str(primary.block)
    facts["trees"] = ", ".join(tree.name or "primary" for tree in trees)
    facts |= {"preparer": _text(primary.raw[c.PREPARER])}
    facts |= {"application": _text(primary.raw[c.APPLICATION])}
    if trees[0].zisofs:
        facts["zisofs"] = f"{trees[0].zisofs} files, mapped as they lie"
    signed = {"MBR": (510, c.MBR_SIGNATURE), "GPT": (512, c.GPT_SIGNATURE)}
    found = [name for name, (at, magic) in signed.items() if file.pread(at, len(magic)) == magic]
    found += ["APM"] * any(file.pread(at, 2) == c.APM_SIGNATURE for at in (512, c.SECTOR))
    facts["partition tables"] = ", ".join(found) or "none"
    return facts


def _boot_facts(images: Sequence[c.Image], partitions: Sequence[Span]) -> dict[str, str]:
    facts = {f"boot image {image.number}": f"{image.platform}, at {image.offset}" for image in images}
    return facts | {f"partition {k}": f"{size} bytes at {at}" for k, (at, size) in enumerate(partitions, 1)}
