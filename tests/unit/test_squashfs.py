"""squashfs is mapped exactly, or declined: against mksquashfs and unsquashfs."""

from __future__ import annotations

import lzma
import os
import random
import subprocess
import zlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from backports import zstd

from rehydrator.codecs import blocks
from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_squashfs as c
from rehydrator.formats import filesystem, squashfs
from rehydrator.formats.filesystem import ZEROS, Block, FileSystem, Piece

if TYPE_CHECKING:
    from pathlib import Path

TEXT = b"All happy families are alike; each unhappy family is unhappy in its own way. "
KIB = 1 << 10


def tree(root: Path) -> dict[bytes, bytes]:
    """A tree of every kind of file; the regular ones by path, of hard links all."""
    dice = random.Random(4)
    noise = dice.randbytes(300 * KIB)
    files = {
        "empty": b"",
        "tiny": b"x",
        "small": TEXT * 3,
        "one block": (TEXT * 2000)[: 128 * KIB],
        "noise": noise,
        "again/noise": noise,
        "again/noise and more": noise + TEXT,
        "text": b"".join(TEXT + str(k).encode() for k in range(6000)),
        "hole first": bytes(260 * KIB) + TEXT,
        "hole last": TEXT + bytes(700 * KIB),
        "hole between": noise[:128] + bytes(512 * KIB) + noise[: 140 * KIB],
        "only a hole": bytes(512 * KIB),
        "\u00e9t\u00e9/\u20ac": "\u20ac".encode(),
        "/".join(f"d{k}" for k in range(60)) + "/deep": b"deep",
    }
    files |= {f"many/{'n' * 80}{k}": bytes([k % 256]) * k for k in range(600)}
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "many" / "link").hardlink_to(root / "small")
    (root / "again" / "link").hardlink_to(root / "noise")
    (root / "symlink").symlink_to("/etc/passwd")
    (root / "no files").mkdir()
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    files |= {"many/link": files["small"], "again/link": noise}
    return {os.fsencode(name): data for name, data in files.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, bytes]]:
    root = tmp_path_factory.mktemp("tree")
    return root, tree(root)


def packed(root: Path, folder: Path, *options: str) -> bytes:
    image = folder / "image.squashfs"
    image.unlink(missing_ok=True)
    command = ["mksquashfs", str(root), str(image), "-quiet", "-no-progress", "-processors", "1", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return image.read_bytes()


def rebuilt(image: bytes, found: FileSystem) -> dict[bytes, bytes]:
    """Every file's bytes by its pieces, which must tile it."""
    file = BytesReader(image)
    plain = [filesystem.decode(file, block) for block in found.blocks]
    files = {}
    for content in found.contents:
        data = b""
        for piece in content.pieces:
            assert piece.at == len(data)
            hole = piece.block == ZEROS
            data += (
                bytes(piece.length) if hole else plain[piece.block][piece.start : piece.start + piece.length]
            )
            assert piece.at + piece.length == len(data)
        assert len(data) == content.size
        files[content.path] = data
    return files


def without_links(files: dict[bytes, bytes], found: FileSystem) -> dict[bytes, bytes]:
    """The expected files, of the two pairs of hard links those that were found."""
    there = {content.path for content in found.contents}
    for pair in ((b"small", b"many/link"), (b"noise", b"again/link")):
        assert len(there & set(pair)) == 1
    linked = {b"small", b"many/link", b"noise", b"again/link"}
    return {path: data for path, data in files.items() if path in there or path not in linked}


COMPRESSORS = ("gzip", "xz", "zstd", "lz4")
VARIANTS = [
    *(("-comp", name) for name in COMPRESSORS),
    *(("-comp", name, "-b", "4K") for name in COMPRESSORS),
    *(("-comp", name, "-b", "1M") for name in COMPRESSORS),
    ("-no-fragments",),
    ("-always-use-fragments",),
    ("-always-use-fragments", "-comp", "zstd", "-b", "1M"),
    ("-noI", "-noD", "-noF"),
    ("-noF",),
    ("-noD", "-comp", "lz4"),
    ("-no-duplicates",),
    ("-no-sparse",),
    ("-no-exports", "-no-xattrs", "-nopad"),
    ("-all-root",),
    ("-comp", "xz", "-Xbcj", "x86"),
    ("-comp", "xz", "-Xdict-size", "8K"),
    ("-comp", "gzip", "-Xcompression-level", "3", "-Xwindow-size", "8"),
    ("-comp", "zstd", "-Xcompression-level", "3"),
    ("-comp", "lz4", "-Xhc"),
]


@pytest.mark.parametrize("options", VARIANTS, ids=" ".join)
def test_every_file_is_rebuilt(
    options: tuple[str, ...], source: tuple[Path, dict[bytes, bytes]], tmp_path: Path
) -> None:
    """Pieces tile every file exactly once, and blocks decode to what they say."""
    root, files = source
    image = packed(root, tmp_path, *options)
    found = squashfs.read(BytesReader(image))
    assert rebuilt(image, found) == without_links(files, found)
    assert len(found.contents) == len(files) - 2
    assert all(block.codec or block.stored == block.plain for block in found.blocks)
    used = {piece.block for content in found.contents for piece in content.pieces} - {ZEROS}
    assert used == set(range(len(found.blocks)))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_as_unsquashfs_reads_it(name: str, source: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    """unsquashfs -cat gives the same bytes."""
    image = packed(source[0], tmp_path, "-comp", name)
    files = rebuilt(image, squashfs.read(BytesReader(image)))
    for path in (b"hole between", b"text", b"again/noise and more", b"many/" + b"n" * 80 + b"599"):
        command = [b"unsquashfs", b"-cat", os.fsencode(tmp_path / "image.squashfs"), path]
        assert subprocess.run(command, check=True, capture_output=True).stdout == files[path]


def test_holes_cost_no_block(source: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    """A file of zeros is one piece of zeros; equal files share their blocks."""
    found = squashfs.read(BytesReader(packed(source[0], tmp_path)))
    by_path = {content.path: content for content in found.contents}
    hole = by_path[b"only a hole"].pieces
    assert [(piece.at, piece.length, piece.block) for piece in hole] == [(0, 512 * KIB, ZEROS)]
    noise = next(by_path[path] for path in (b"noise", b"again/link") if path in by_path)
    assert by_path[b"again/noise"].pieces == noise.pieces


def test_facts_and_parameters(source: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    """The options of the compressor are told, and are the parameters of the codec."""
    options = ("-comp", "gzip", "-Xcompression-level", "3", "-Xwindow-size", "10", "-b", "64K")
    found = squashfs.read(BytesReader(packed(source[0], tmp_path, *options)))
    facts = {key: found.facts[key] for key in ("compressor", "level", "window", "block size")}
    assert facts == {"compressor": "gzip", "level": "3", "window": "10", "block size": "65536"}
    codecs = {(block.codec, block.params) for block in found.blocks}
    assert codecs == {("", ()), ("zlib", (("level", 3), ("memlevel", 8), ("wbits", 10)))}


def test_size_is_without_padding(source: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    """mksquashfs pads to 4 KiB; the file system ends before."""
    bare = packed(source[0], tmp_path, "-nopad")
    assert squashfs.read(BytesReader(bare)).size == len(bare)
    assert squashfs.read(BytesReader(bare + bytes(9000))).size == len(bare)


def test_empty_file_system(tmp_path: Path) -> None:
    """A root without entries has no contents and no blocks."""
    (tmp_path / "root").mkdir()
    found = squashfs.read(BytesReader(packed(tmp_path / "root", tmp_path)))
    assert (found.kind, found.blocks, found.contents) == ("squashfs", (), ())


@pytest.mark.parametrize("name", ["lzo", "lzma"])
def test_unknown_compressor_is_named(name: str, tmp_path: Path) -> None:
    """What cannot be decoded is declined, by name."""
    (tmp_path / "root").mkdir()
    image = packed(tmp_path / "root", tmp_path, "-comp", name)
    with pytest.raises(Unexplained, match=f"compressed by {name}"):
        squashfs.read(BytesReader(image))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small image for each compressor."""
    folder = tmp_path_factory.mktemp("small")
    for path, data in {"a": TEXT * 900, "b/c": TEXT, "b/d/e": bytes(9000) + TEXT, "b/f": b""}.items():
        (folder / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "root" / path).write_bytes(data)
    return {
        name: packed(folder / "root", folder, "-b", "4K", "-nopad", "-comp", name) for name in COMPRESSORS
    }


def outcome(image: bytes) -> str:
    """Read and decode everything: "good", or "refused". Anything else is a failure."""
    file = BytesReader(image)
    try:
        found = squashfs.read(file)
        assert all(len(filesystem.decode(file, block)) == block.plain for block in found.blocks)
        rebuilt(image, found)
    except HostileInput:
        return "refused"
    return "good"


@pytest.mark.parametrize("name", COMPRESSORS)
def test_mutations(name: str, small: dict[str, bytes]) -> None:
    """One byte changed anywhere: read, or refused by HostileInput; nothing else."""
    image, dice = small[name], random.Random(name)
    outcomes: Counter[str] = Counter()
    for _ in range(500):
        at = dice.randrange(len(image))
        outcomes[outcome(image[:at] + bytes([image[at] ^ dice.randrange(1, 256)]) + image[at + 1 :])] += 1
    assert outcomes["refused"] > 100


@pytest.mark.parametrize("options", [("-noI",), ("-noI", "-noD", "-noF", "-no-fragments")], ids=" ".join)
def test_mutations_of_plain_metadata(options: tuple[str, ...], tmp_path: Path) -> None:
    """Where metadata lies as it is, no checksum stands before the checks of each field."""
    for k in range(6):
        (tmp_path / "root" / f"d{k}").mkdir(parents=True)
        (tmp_path / "root" / f"d{k}" / "f").write_bytes(TEXT * 60 * k)
    image, dice = packed(tmp_path / "root", tmp_path, "-b", "4K", "-nopad", *options), random.Random(7)
    superblock = squashfs.read_superblock(BytesReader(image))
    outcomes: Counter[str] = Counter()
    for _ in range(1000):
        at = dice.choice((dice.randrange(96), dice.randrange(superblock.inodes_at, len(image))))
        outcomes[outcome(image[:at] + bytes([dice.randrange(256)]) + image[at + 1 :])] += 1
    assert outcomes["refused"] > 300


@pytest.mark.parametrize("name", COMPRESSORS)
def test_truncations(name: str, small: dict[str, bytes]) -> None:
    """No file system that is cut short is read."""
    image = small[name]
    outcomes = {outcome(image[:length]) for length in range(0, len(image), 7)}
    assert outcomes == {"refused"}


BOMBS = {
    "zlib": zlib.compress(bytes(64 << 20), 9),
    "xz": lzma.compress(bytes(64 << 20)),
    "zstd": zstd.compress(bytes(64 << 20)),
    "lz4": b"\x1f\0\1\0" + b"\xff" * 200_000 + b"\0\0",
}


@pytest.mark.parametrize("codec", BOMBS)
def test_bomb_stops_at_its_size(codec: str) -> None:
    """A block that decodes to more than it says is refused."""
    params = squashfs._params({"zlib": "gzip"}.get(codec, codec), {})
    block = Block(0, len(BOMBS[codec]), 4096, codec, params)
    with pytest.raises(HostileInput):
        filesystem.decode(BytesReader(BOMBS[codec]), block)


def test_dictionary_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that asks for more memory than its block is worth is refused, before it is taken."""
    greedy = lzma.compress(TEXT, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 8 << 20}])
    block = Block(0, len(greedy), len(TEXT), "xz")
    assert filesystem.decode(BytesReader(greedy), block) == TEXT
    monkeypatch.setattr(blocks, "XZ_MEMORY", 4 << 20)
    with pytest.raises(HostileInput, match="not a stream of xz"):
        filesystem.decode(BytesReader(greedy), block)


@pytest.mark.parametrize("codec", ["", "zlib", "xz", "zstd", "lz4"])
def test_bytes_behind_the_stream(codec: str) -> None:
    """A block is one stream and nothing else; and it is as long as it says."""
    stored = {
        "": TEXT,
        "zlib": zlib.compress(TEXT),
        "xz": lzma.compress(TEXT),
        "zstd": zstd.compress(TEXT),
        "lz4": b"\xf0" + bytes([len(TEXT) - 15]) + TEXT,
    }[codec]
    params = squashfs._params({"zlib": "gzip"}.get(codec, codec), {})
    good = Block(0, len(stored), len(TEXT), codec, params)
    assert filesystem.decode(BytesReader(stored), good) == TEXT
    for data, plain in ((stored + b"\x10", 0), (stored, -1), (stored, 1)):
        with pytest.raises(HostileInput):
            filesystem.decode(BytesReader(data), Block(0, len(data), len(TEXT) + plain, codec, params))


def patched(image: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert image.count(old) == 1
    return image.replace(old, new)


def refused(image: bytes) -> str:
    with pytest.raises(HostileInput) as caught:
        squashfs.read(BytesReader(image))
    return str(caught.value)


@pytest.fixture
def bare(tmp_path: Path) -> bytes:
    """Metadata as it lies: /sub (inode 2), which holds /sub/file (inode 1)."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "file").write_bytes(TEXT)
    return packed(tmp_path / "root", tmp_path, "-noI", "-nopad", "-no-fragments", "-b", "4K")


def entry(name: bytes, offset: int, delta: int, kind: int) -> bytes:
    return c.ENTRY.pack(offset, delta, kind, len(name) - 1) + name


def test_cycle_is_refused(bare: bytes) -> None:
    """A directory that holds its own root, by an entry that agrees with the root's inode."""
    superblock = squashfs.read_superblock(BytesReader(bare))
    place = superblock.root & 0xFFFF
    inode = c.Inode._make(c.INODE.unpack_from(bare, superblock.inodes_at + c.METADATA_HEADER + place))
    found = bare.index(b"sub") - c.ENTRY.size
    offset, delta, kind, _ = c.ENTRY.unpack_from(bare, found)
    first = c.RUN.unpack_from(bare, found - c.RUN.size)[2]
    lie = entry(b"sub", place, inode.number - first, kind)
    assert "two places" in refused(patched(bare, entry(b"sub", offset, delta, kind), lie))


@pytest.mark.parametrize("name", [b"su/", b"s\0b", b"../"])
def test_names_that_are_none(name: bytes, bare: bytes) -> None:
    """Names that are no file's name are refused."""
    assert "a directory entry" in refused(patched(bare, b"sub", name))


@pytest.fixture
def twins(tmp_path: Path) -> bytes:
    """Metadata as it lies, the fragment table too: two files of one block and a fragment."""
    for name in ("a", "b"):
        (tmp_path / "root").mkdir(exist_ok=True)
        (tmp_path / "root" / name).write_bytes(random.Random(name).randbytes(4096) + TEXT)
    return packed(tmp_path / "root", tmp_path, "-noI", "-noF", "-nopad", "-always-use-fragments", "-b", "4K")


def file_fields(image: bytes, at: int) -> bytes:
    """The body of the inode of the file whose first block lies at `at`."""
    superblock = squashfs.read_superblock(BytesReader(image))
    found = image.index(c.WORD.pack(at), superblock.inodes_at)
    return image[found : found + c.FILE_BODY.size]


def test_overlapping_blocks_are_refused(twins: bytes) -> None:
    """Two files share a block as a whole, or not at all."""
    first = min(block.offset for block in squashfs.read(BytesReader(twins)).blocks)
    start, *rest = c.FILE_BODY.unpack(old := file_fields(twins, first))
    assert "overlaps" in refused(patched(twins, old, c.FILE_BODY.pack(start + 1, *rest)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (1, 1, "fragment 1 of 1"),
        (1, 0xFFFFFFFE, "fragment 4294967294 of 1"),
        (2, 78, "of a fragment block of 77"),
        (2, 4096, "ends at byte 4173"),
        (3, 0xFFFFFFF0, "metadata"),
    ],
)
def test_fragments_beyond(field: int, value: int, message: str, twins: bytes) -> None:
    """Fragments beyond the table, tails beyond their block, and blocks that are not listed."""
    first = min(block.offset for block in squashfs.read(BytesReader(twins)).blocks)
    fields = list(c.FILE_BODY.unpack(old := file_fields(twins, first)))
    fields[field] = value
    assert message in refused(patched(twins, old, c.FILE_BODY.pack(*fields)))


@pytest.mark.parametrize("at", [0, 95, 1 << 20, 0xFFFFFFFF])
def test_blocks_outside_are_refused(at: int, twins: bytes) -> None:
    """Blocks lie behind the superblock, and before the inodes."""
    first = min(block.offset for block in squashfs.read(BytesReader(twins)).blocks)
    _, *rest = c.FILE_BODY.unpack(old := file_fields(twins, first))
    expected = f"the block at {at} overlaps another or the metadata"
    assert refused(patched(twins, old, c.FILE_BODY.pack(at, *rest))) == expected


def listing_bomb(count: int, word: int) -> bytes:
    """A few KiB of inodes: one file, whose list of `count` blocks is all alike."""
    entry_of_file = c.RUN.pack(0, 0, 1) + entry(b"f", 32, 0, c.FILE)
    root = c.INODE.pack(c.DIRECTORY, 0, 0, 0, 0, 1) + c.DIRECTORY_BODY.pack(
        0, 2, len(entry_of_file) + c.DOTS, 0, 0
    )
    fields = (96, count * 4096, 0, 1, c.NO_FRAGMENT, 0, 0xFFFFFFFF)
    file = c.INODE.pack(c.FILE + c.EXTENDED, 0, 0, 0, 0, 1) + c.LONG_FILE_BODY.pack(*fields)
    inodes, directories = metadata(root + file + c.WORD.pack(word) * count), metadata(entry_of_file)
    blocks, ids = bytes(64), metadata(c.ID.pack(0))
    inodes_at = c.SUPERBLOCK.size + len(blocks)
    directories_at = inodes_at + len(inodes)
    ids_at = directories_at + len(directories)
    body = blocks + inodes + directories + ids + c.POINTER.pack(ids_at)
    places = (ids_at + len(ids), 0, inodes_at, directories_at, 0, 0)
    size = c.SUPERBLOCK.size + len(body)
    return c.SUPERBLOCK.pack(c.MAGIC, 2, 0, 4096, 0, 1, 12, 0, 1, *c.VERSION, 0, size, *places) + body


def metadata(plain: bytes) -> bytes:
    parts = (zlib.compress(plain[at : at + c.METADATA_SIZE]) for at in range(0, len(plain), c.METADATA_SIZE))
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)


def test_lists_that_cost_little() -> None:
    """A long list of blocks is stopped where the blocks no longer fit the file, or at the limit;
    of holes it is one piece."""
    assert len(listing_bomb(1 << 20, 1)) < 32 * KIB
    assert "overlaps" in refused(listing_bomb(1 << 20, 1))
    assert "files of more than" in refused(listing_bomb(filesystem.MAX_BLOCKS, 0))
    found = squashfs.read(BytesReader(listing_bomb(1 << 20, 0)))
    assert [content.pieces for content in found.contents] == [(Piece(0, 4 << 30, ZEROS, 0),)]


def test_appended_file_system(tmp_path: Path) -> None:
    """mksquashfs appends to an image: old and new files are there."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(TEXT * 3000 + name.encode())
    packed(tmp_path / "old", tmp_path)
    command = [
        "mksquashfs",
        str(tmp_path / "new"),
        str(tmp_path / "image.squashfs"),
        "-quiet",
        "-no-progress",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    image = (tmp_path / "image.squashfs").read_bytes()
    expected = {name: TEXT * 3000 + name for name in (b"old", b"new")}
    assert rebuilt(image, squashfs.read(BytesReader(image))) == expected


def test_size_without_its_blocks(bare: bytes) -> None:
    """A file of 4 GiB whose list of blocks is not there."""
    stored = squashfs.read(BytesReader(bare)).blocks[0].stored
    fields = c.WORD.pack(len(TEXT)) + c.WORD.pack(stored)
    lie = patched(bare, fields, c.WORD.pack(0xFFFFFFFF) + c.WORD.pack(stored))
    assert refused(lie)


def test_limits(bare: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each limit stops the work, by a message that names it."""
    limits = {
        "MAX_FILES": (1, "inodes"),
        "MAX_BLOCKS": (1, "blocks"),
        "MAX_DEPTH": (0, "deeper"),
        "MAX_PATH": (5, "path"),
        "MAX_PATHS": (5, "paths"),
        "MAX_METADATA": (60, "metadata"),
    }
    for name, (limit, message) in limits.items():
        with monkeypatch.context() as patch:
            patch.setattr(squashfs, name, limit)
            assert message in refused(bare)
