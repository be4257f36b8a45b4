"""EROFS as mkfs.erofs writes it, that of Debian 12 and that of sid: every file, rebuilt from its
pieces, is the original; and no damage does more than be refused."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.reader import BytesReader
from rehydrator.formats import erofs, filesystem
from tests.compat import sid

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.formats.filesystem import Content, FileSystem

DEBIAN_12 = [
    "",
    "-Eforce-inode-extended",
    "--chunksize=4096",
    "--chunksize=65536",
    "--chunksize=4096 -Eforce-chunk-indexes",
    "-zlz4",
    "-zlz4hc -C65536",
    "-zlz4hc -C1048576",
    "-zlz4 -Eztailpacking",
    "-zlz4 -Elegacy-compress",
    "-zlz4 -Enoinline_data",
]
SID = [
    "",
    "-b512",
    "-b1024 -zlz4",
    "-zlz4hc -C65536",
    "-zlz4 -Efragments",
    "-zlz4hc -Eztailpacking,fragments",
    "-zlz4 -Ededupe",
    "-zlzma",
    "-zlzma,6 -Efragments -C1048576",
    "-zlzma -Eall-fragments -C65536",
    "-zlzma -Ededupe -C65536",
    "-zlzma -Ededupe,all-fragments -C65536",
    "-zlzma -Eztailpacking -C65536",
    "-zdeflate -Efragments,dedupe",
    "-zzstd -C65536",
    "-zzstd -Ededupe,fragments -C1048576",
    "--chunksize=8192",
]


def text(source: random.Random, length: int) -> bytes:
    """Bytes that compress about as text does."""
    words = [source.randbytes(source.randint(3, 12)) for _ in range(300)]
    return b"".join(source.choices(words, k=length // 3 + 1))[:length]


def make_tree(root: Path, small: bool = False) -> dict[bytes, bytes]:
    """Empty, tiny, large, equal and partly equal files, hard links, deep and wide directories."""
    source = random.Random(7)
    big = text(source, 60_000 if small else 900_000)
    noise = source.randbytes(4097)
    files = {f"text{size}": text(source, size) for size in (0, 1, 4095, 4096, 4097, 8192, 20_000)}
    files |= {"zeros": bytes(300_000), "big": big, "same": big, "shorter": big[: len(big) * 3 // 4]}
    files |= {"shifted": big[777:], "noise": source.randbytes(30_003)}
    files |= {"mixed": big[:50_000] + noise * 3 + big[7:40_000] + noise + b"end"}
    files |= {"/".join(f"directory{i}" for i in range(30)) + "/deep": text(source, 777)}
    files |= {
        f"many/a-file-with-a-long-name-{i:05}": text(source, i * 7) for i in range(20 if small else 300)
    }
    for name, plain in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plain)
    os.link(root / "mixed", root / "linked")
    (root / "symlink").symlink_to("mixed")
    os.mkfifo(root / "fifo")
    return {name.encode(): plain for name, plain in files.items()}


def make(mkfs: list[str], options: str, tree: Path, image: Path) -> bytes:
    words = [*mkfs, "-T1", *options.split(), str(image), str(tree)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return image.read_bytes()


def rebuild(file: BytesReader, system: FileSystem, plains: dict[int, bytes], content: Content) -> bytes:
    """A file from its pieces, which must tile it."""
    parts, at = [], 0
    for piece in content.pieces:
        assert piece.at == at
        if piece.block >= 0 and piece.block not in plains:
            plains[piece.block] = filesystem.decode(file, system.blocks[piece.block])
        plain = plains[piece.block] if piece.block >= 0 else bytes(piece.length)
        parts.append(plain[piece.start : piece.start + piece.length])
        at += len(parts[-1])
    assert at == content.size
    return b"".join(parts)


def rebuilt(raw: bytes) -> dict[bytes, bytes]:
    file, plains = BytesReader(raw), dict[int, bytes]()
    system = erofs.read(file)
    return {item.path: rebuild(file, system, plains, item) for item in system.contents}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, bytes]]:
    root = tmp_path_factory.mktemp("erofs") / "tree"
    return root, make_tree(root)


@pytest.mark.parametrize(
    ("sids", "options"), [*((False, one) for one in DEBIAN_12), *((True, one) for one in SID)]
)
def test_every_file_is_rebuilt(
    tree: tuple[Path, dict[bytes, bytes]], tmp_path: Path, sids: bool, options: str
) -> None:
    """Byte for byte, a file of two names once."""
    mkfs = sid.program("mkfs.erofs") if sids else ["mkfs.erofs"]
    files = rebuilt(make(mkfs, options, tree[0], tmp_path / "image"))
    if b"linked" in files:
        files[b"mixed"] = files.pop(b"linked")
    assert files == tree[1]


def test_fsck_extracts_the_same(tree: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    """What the reader says of an image as Fedora CoreOS makes it, fsck.erofs says too."""
    options = "-zlzma,6 -Efragments -C1048576"
    raw = make(sid.program("mkfs.erofs"), options, tree[0], tmp_path / "image")
    sid.run("fsck.erofs", f"--extract={tmp_path / 'out'}", tmp_path / "image")
    files = rebuilt(raw)
    assert files == {path: (tmp_path / "out" / path.decode()).read_bytes() for path in files}


def test_addresses_of_48_bits_are_declined(tree: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> None:
    """The feature is named."""
    raw = make(sid.program("mkfs.erofs"), "-zlz4 -E48bit", tree[0], tmp_path / "image")
    with pytest.raises(Unexplained, match="48-bit"):
        erofs.read(BytesReader(raw))


MUTANTS = ["--chunksize=4096", "-zlz4 -C65536", "-zlzma -Eall-fragments -C65536", "-zdeflate -Ededupe"]


@pytest.mark.parametrize("options", MUTANTS)
def test_damage_is_refused_or_read_but_never_crashes(tmp_path: Path, options: str) -> None:
    """Single bytes changed (the superblock's checksum put right) and files cut short: only the
    HostileInput family, and no block has more bytes than it says."""
    make_tree(tmp_path / "tree", small=True)
    raw = make(sid.program("mkfs.erofs"), options, tmp_path / "tree", tmp_path / "image")
    source, outcomes = random.Random(options), {"read": 0, "refused": 0}
    for _ in range(120):
        outcomes[outcome(damaged(source, raw))] += 1
    for _ in range(20):
        outcomes[outcome(raw[: source.randrange(len(raw))])] += 1
    assert outcomes["refused"] >= 20
    assert sum(outcomes.values()) == 140


def damaged(source: random.Random, raw: bytes) -> bytes:
    """One byte changed, in the superblock or where metadata are as a rule."""
    changed = bytearray(raw)
    where = source.choice([range(1024, 1152), range(1152, min(len(raw), 60_000)), range(len(raw))])
    at = source.choice(where)
    changed[at] ^= source.randrange(1, 256)
    changed[1032] &= ~1  # no checksum
    return bytes(changed)


def outcome(raw: bytes) -> str:
    file = BytesReader(raw)
    try:
        system = erofs.read(file)
        for block in system.blocks:
            assert len(filesystem.decode(file, block)) == block.plain
    except HostileInput:
        return "refused"
    return "read"
