"""An initramfs over what its compressed archives hold."""

from __future__ import annotations

import gzip
import random
import zlib
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Op, Stream, StreamRule
from rehydrator.core.reader import BytesReader, WindowReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace
from rehydrator.formats.explanation import FILE, GUEST, LAYER, Unpacked
from rehydrator.formats.layered import explain_initramfs
from tests import cpio_images as make

if TYPE_CHECKING:
    from rehydrator.core.reader import Reader
    from rehydrator.engine import Space

DICE = random.Random(9)
RULE = StreamRule("deflate.zlib", (("level", 9), ("memlevel", 8)), LAYER)


def archive(size: int) -> bytes:
    content = DICE.randbytes(size // 2) + bytes(size // 2)
    return make.member(b"file", content) + make.member(b"TRAILER!!!")


def unpack(file: Reader) -> Unpacked | None:
    """By zlib at level 9; other levels are other encoders."""
    raw = file.pread(0, file.size)
    if raw[8] != 2:
        raise Unexplained("another level")
    plain = zlib.decompress(raw, 31)
    ops: list[Op] = [Copy(10, FILE, 0), Stream(len(raw) - 18, 0, 0, len(plain)), Copy(8, FILE, len(raw) - 8)]
    return Unpacked("gzip", WindowReader(BytesReader(plain), 0, len(plain)), ops, (RULE,), {"zlib -9": "1"})


def test_archives_are_layers() -> None:
    """Archives by a known encoder are made from what they hold; the rest is kept, in its place."""
    plains = [archive(9000), archive(20_000), archive(5000)]
    parts = [
        plains[0] + bytes(-len(plains[0]) % 512),
        gzip.compress(plains[1], 9, mtime=1),
        gzip.compress(plains[2], 1, mtime=1),
        gzip.compress(plains[2], 9, mtime=1),
    ]
    whole = b"".join(parts)
    found = explain_initramfs(BytesReader(whole), unpack)
    assert [layer.file.size for layer in found.layers] == [len(plains[1]), len(plains[2])]
    assert found.guest.pread(0, found.guest.size) == plains[1] + plains[2]
    assert found.guest.pread(len(plains[1]) - 7, 20) == (plains[1] + plains[2])[len(plains[1]) - 7 :][:20]
    spaces: dict[int, Space] = {GUEST: ReaderSpace(found.guest), FILE: ReaderSpace(BytesReader(whole))}
    for number, layer in enumerate(found.layers):
        spaces[LAYER + number] = OpsSpace(layer.explanation.ops)
    spaces[9] = OpsSpace(found.ops)
    assert Machine(spaces, found.rules).read(9, 0, len(whole)) == whole


def test_what_comes_behind_is_kept() -> None:
    """Bytes behind the last archive, which the kernel does not look at, stay as they are."""
    plain = archive(9000)
    packed = gzip.compress(plain, 9, mtime=1)
    found = explain_initramfs(BytesReader(packed + bytes(512) + b"live 1.0.0\n"), unpack)
    assert [layer.file.size for layer in found.layers] == [len(plain)]
    assert found.ops[-1] == Copy(8 + 512 + 11, FILE, len(packed) - 8)


def test_what_is_not_taken_apart() -> None:
    """No initramfs, and one whose archives no encoder gives, are declined, saying why."""
    for raw, said in (
        (DICE.randbytes(4000), "no initramfs"),
        (gzip.compress(archive(8000), 1), "no archive in it"),
        (gzip.compress(archive(8000), 9)[:-40], "initramfs: "),
    ):
        with pytest.raises(Unexplained, match=said):
            explain_initramfs(BytesReader(raw), unpack)
