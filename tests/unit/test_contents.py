"""A file system's files are found page by page, and come back from its published bytes."""

from __future__ import annotations

import lzma
import random
import subprocess
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from backports import zstd

from rehydrator.bundle import contents
from rehydrator.bundle.contents import ContentsReader, block_ops, content_ops, decode_rules
from rehydrator.bundle.packing import Ledger, PackWriter
from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import Copy, Decode, is_zeros
from rehydrator.core.reader import BytesReader
from rehydrator.delta import PageIndex
from rehydrator.formats.filesystem import ZEROS, Block, Content, FileSystem, Piece
from rehydrator.streaming import MemorySpool
from tests.unit.test_packing import opened

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rehydrator.core.ops import Op

DICE = random.Random(11)
PAGE = 4096
UNMATCHED = -1


def noise(length: int) -> bytes:
    """Bytes that compress by a quarter."""
    return bytes(DICE.choices(range(64), k=length))


PLAIN = {name: noise(length) for name, length in {"zstd": 20_000, "xz": 9000, "": 5000, "zlib": 8192}.items()}
ZLIB = (("level", 9), ("memlevel", 8), ("wbits", 15))


def rootfs() -> tuple[bytes, FileSystem]:
    """Four blocks, not numbered as they lie, with other bytes between; files of all kinds."""
    stored = {
        "zstd": zstd.compress(PLAIN["zstd"]),
        "xz": lzma.compress(PLAIN["xz"]),
        "": PLAIN[""],
        "zlib": zlib.compress(PLAIN["zlib"], 9),
    }
    raw, places = b"head", {}
    for name, data in stored.items():
        places[name] = len(raw)
        raw += data + b"-"
    params = {"zlib": ZLIB, "zstd": (("level", 15),)}
    blocks = tuple(
        Block(places[name], len(stored[name]), len(PLAIN[name]), name, params.get(name, ()))
        for name in ("xz", "zlib", "", "zstd")
    )
    files = (
        Content(b"last", 3000, (Piece(0, 3000, 1, 100),)),
        Content(b"whole", 28_192, (Piece(0, 20_000, 3, 0), Piece(20_000, 8192, 1, 0))),
        Content(b"hole", 12_000, (Piece(0, 10_000, ZEROS, 0), Piece(10_000, 2000, 0, 7))),
        Content(b"again", 3000, (Piece(0, 3000, 1, 100),)),
        Content(b"only zeros", 9000, (Piece(0, 9000, ZEROS, 0),)),
        Content(b"empty", 0, ()),
        Content(b"plain", 4096, (Piece(0, 4096, 2, 904),)),
    )
    return raw, FileSystem("squashfs", len(raw), blocks, files, {})


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % PAGE)


# By the files' first bytes as they lie: "whole" in zstd, "hole" in xz, "plain", "last" in zlib.
EXPECTED = (
    padded(PLAIN["zstd"] + PLAIN["zlib"])
    + padded(bytes(10_000) + PLAIN["xz"][7:2007])
    + PLAIN[""][904:]
    + padded(PLAIN["zlib"][100:3100])
)


def test_files_begin_at_pages_in_the_order_of_their_bytes() -> None:
    """Files of the same pieces come once, and those that hold nothing not at all."""
    raw, system = rootfs()
    reader = ContentsReader(BytesReader(raw), system)
    assert reader.pread(0, reader.size) == EXPECTED
    for _ in range(50):
        at = DICE.randrange(len(EXPECTED))
        length = DICE.randrange(len(EXPECTED) - at)
        assert reader.pread(at, length) == EXPECTED[at : at + length]


def test_recipes_name_each_block_once_and_as_it_lies() -> None:
    """One rule for each codec, and plain bytes as a copy; a base moves all of them."""
    _, system = rootfs()
    rules = decode_rules(system, 5)
    assert [(rule.codec, rule.params, rule.input) for rule in rules] == [
        ("xz", (), 5),
        ("zlib", ZLIB, 5),
        ("zstd.frame", (), 5),
    ]
    numbers = {number: rule.codec for number, rule in enumerate(rules)}
    xz, packed, plain, first = system.blocks
    ops = block_ops(system, 5, {rule: number for number, rule in enumerate(rules)}, base=1000)
    named = [numbers[op.rule] if isinstance(op, Decode) else "" for op in ops]
    assert named == ["zstd.frame", "xz", "", "zlib"]
    assert [(op.length, op.offset) for op in ops if isinstance(op, Decode | Copy)] == [
        (block.plain, 1000 + block.offset) for block in (first, xz, plain, packed)
    ]


def test_a_file_system_beyond_the_limit_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may name the same bytes any number of times."""
    _, system = rootfs()
    monkeypatch.setattr(contents, "MAX_CONTENTS", len(EXPECTED))
    assert sum(op.length for op in content_ops(system, 0)) == len(EXPECTED)
    monkeypatch.setattr(contents, "MAX_CONTENTS", len(EXPECTED) - 1)
    with pytest.raises(Unexplained, match="too much room"):
        content_ops(system, 0)
    monkeypatch.undo()
    monkeypatch.setattr(contents, "MAX_RATIO", 1)
    with pytest.raises(Unexplained, match="too much room"):
        content_ops(system, 0)


def test_files_scattered_over_blocks_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page may ask for another block: what is decoded is limited."""
    plain = [noise(1 << 20) for _ in range(3)]
    packed = [zstd.compress(each) for each in plain]
    starts = [sum(map(len, packed[:number])) for number in range(3)]
    blocks = tuple(Block(at, len(data), 1 << 20, "zstd") for at, data in zip(starts, packed, strict=True))
    pieces = tuple(Piece(at * PAGE, PAGE, at % 3, at * PAGE) for at in range(200))
    system = FileSystem("erofs", sum(map(len, packed)), blocks, (Content(b"f", 200 * PAGE, pieces),), {})
    raw = BytesReader(b"".join(packed))
    expected = b"".join(plain[piece.block][piece.start :][:PAGE] for piece in pieces)
    assert ContentsReader(raw, system).pread(0, 200 * PAGE) == expected
    with pytest.raises(Unexplained, match="scattered"):
        ContentsReader(raw, system, cache=2 << 20).pread(0, 200 * PAGE)
    monkeypatch.setattr(contents, "MAX_WORK", 256)
    assert ContentsReader(raw, system, cache=2 << 20).pread(0, 200 * PAGE) == expected


def test_a_block_that_lies_is_refused(tmp_path: Path) -> None:
    """What a map promises is not believed: the bytes are decoded to exactly their length, and
    before anything is stored."""
    raw, system = rootfs()
    wrong = Block(system.blocks[0].offset, system.blocks[0].stored, 8999, "xz")
    lying = FileSystem("squashfs", len(raw), (wrong, *system.blocks[1:]), system.contents, {})
    with pytest.raises(HostileInput, match="xz"):
        ContentsReader(BytesReader(raw), lying).pread(0, len(EXPECTED))
    with pytest.raises(Unexplained, match=r"squashfs: .* xz"):
        bundled(tmp_path, raw, lying, 0)


def test_unknown_bytes_are_declined() -> None:
    """Every reader of a file system is asked, and named when what it knows is malformed."""
    with pytest.raises(Unexplained, match="no known read-only file system"):
        contents.read(BytesReader(bytes(5000)))
    with pytest.raises(Unexplained, match=r"squashfs: squashfs 0\.0"):
        contents.read(BytesReader(b"hsqs" + bytes(5000)))


def bundled(root: Path, raw: bytes, system: FileSystem, base: int) -> tuple[bytes, bytes]:
    """The contents from a bundle that holds the rootfs behind `base` bytes; and from the reader."""
    (root / "packs").mkdir()
    ledger = Ledger()
    with ThreadPoolExecutor(1) as pool:
        writer = PackWriter(root, ledger, 1, pool, 2)
        [(space, at, length)] = writer.append(bytes(base) + raw)
        published = writer.add_recipe([Copy(length, space, at)])
        reader = ContentsReader(BytesReader(raw), system)
        number, spooled = contents.store(reader, MemorySpool(), published, ledger, writer, base)
        writer.finish()
        writer.close()
    bundle = opened(root, ledger)
    return bundle.machine.read(number, 0, bundle.machine.space(number).size), spooled.pread(0, spooled.size)


@pytest.mark.parametrize("base", [0, 777])
def test_a_bundle_gives_the_contents_back(tmp_path: Path, base: int) -> None:
    """From the published bytes, wherever in their space the file system begins."""
    assert bundled(tmp_path, *rootfs(), base) == (EXPECTED, EXPECTED)


def test_a_file_system_without_bytes_is_declined() -> None:
    """There is nothing that a disk could have in common with it."""
    system = FileSystem("squashfs", 9, (), (Content(b"empty", 0, ()),), {})
    with pytest.raises(Unexplained, match="hold nothing"):
        ContentsReader(BytesReader(bytes(9)), system)


def make_tree(root: Path) -> int:
    """Files of many sizes, small ones most of them; how many bytes their pages have."""
    sizes = [*range(1, 4000, 61), 4095, 4096, 4097, 131_072, 131_073, 400_000, 700_001]
    for number, size in enumerate(sizes):
        path = root / f"directory{number % 7}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(size))
    return sum(len(padded(bytes(size))) for size in sizes)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    root = tmp_path_factory.mktemp("contents") / "tree"
    return root, make_tree(root)


MAKERS = {
    **{
        f"squashfs {name}": ["mksquashfs", "TREE", "IMAGE", "-comp", name]
        for name in ("gzip", "xz", "zstd", "lz4")
    },
    "erofs plain": ["mkfs.erofs", "IMAGE", "TREE"],
    "erofs lz4": ["mkfs.erofs", "-zlz4hc", "-C65536", "IMAGE", "TREE"],
}


def run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_disk_costs_what_is_not_in_the_rootfs(tree: tuple[Path, int], tmp_path: Path, kind: str) -> None:
    """Of an ext4 disk with the same files, every page of theirs is found; what is left are the
    file system's own structures."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    words = {"TREE": str(tree[0]), "IMAGE": str(image)}
    run([words.get(word, word) for word in MAKERS[kind]])
    run(["mkfs.ext4", "-q", "-F", "-b4096", "-O", "^has_journal", "-d", str(tree[0]), str(disk), "16M"])
    file, target = BytesReader(image.read_bytes()), BytesReader(disk.read_bytes())
    reader = ContentsReader(file, contents.read(file))
    index = PageIndex()
    index.add(0, reader)
    ops = list(index.match(target, UNMATCHED))
    assert rebuilt(ops, reader, target) == target.pread(0, target.size)
    found = sum(op.length for op in ops if isinstance(op, Copy) and op.space == 0)
    left = sum(op.length for op in ops if isinstance(op, Copy) and op.space == UNMATCHED)
    assert found // PAGE == tree[1] // PAGE  # a run may go on by chance, into metadata
    assert left <= 64 << 10


def rebuilt(ops: Sequence[Op], reader: ContentsReader, target: BytesReader) -> bytes:
    """The disk by its ops."""
    parts = []
    for op in ops:
        if isinstance(op, Copy):
            parts.append((reader if op.space == 0 else target).pread(op.offset, op.length))
        else:
            assert is_zeros(op)
            parts.append(bytes(op.length))
    return b"".join(parts)
