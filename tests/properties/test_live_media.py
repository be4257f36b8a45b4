"""Any tree in an ISO, and any row of archives, gives its files back."""

from __future__ import annotations

import bz2
import gzip
import lzma
from itertools import pairwise
from typing import TYPE_CHECKING

from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.core.reader import BytesReader
from rehydrator.formats import cpio, initramfs, iso9660
from tests import iso_images
from tests.cpio_images import TRAILER, member
from tests.iso_images import SP, Node, nm, px

if TYPE_CHECKING:
    from rehydrator.formats.filesystem import FileSystem

names = st.text("ABCDEFGH_019", min_size=1, max_size=30).map(str.encode)
data = st.binary(max_size=5000)
trees = st.recursive(
    data | st.lists(data, min_size=2, max_size=3),
    lambda below: st.dictionaries(names, below, max_size=5),
    max_leaves=12,
)


def flat(tree: dict[bytes, Node], path: bytes = b"") -> dict[bytes, bytes]:
    files: dict[bytes, bytes] = {}
    for name, node in tree.items():
        if isinstance(node, dict):
            files |= flat(node, path + name + b"/")
        else:
            files[path + name] = node if isinstance(node, bytes) else b"".join(node)
    return files


def rebuilt(raw: bytes, found: FileSystem) -> dict[bytes, bytes]:
    files: dict[bytes, bytes] = {}
    for content in found.contents:
        blocks = [found.blocks[piece.block] for piece in content.pieces]
        files[content.path] = b"".join(raw[block.offset : block.offset + block.stored] for block in blocks)
        assert sum(piece.length for piece in content.pieces) == content.size == len(files[content.path])
    return files


@settings(max_examples=60, deadline=None)
@given(
    tree=st.dictionaries(names, trees, max_size=8),
    block=st.sampled_from([512, 1024, 2048]),
    joliet=st.booleans(),
    tail=st.binary(max_size=3000),
)
def test_trees(tree: dict[bytes, Node], block: int, joliet: bool, tail: bytes) -> None:
    """In any size of blocks, files of several extents as well; Joliet adds nothing."""
    made = iso_images.make(tree, block=block, joliet=tree if joliet else None, tail=tail)
    found = iso9660.read(BytesReader(made.image))
    assert rebuilt(made.image, found) == flat(tree)
    assert found.size == len(made.image)


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(st.binary(min_size=1, max_size=150), data, max_size=6),
    cuts=st.lists(st.integers(1, 149), max_size=4),
)
def test_rock_ridge_names(files: dict[bytes, bytes], cuts: list[int]) -> None:
    """Any name that a file may have, in any parts."""
    files = {
        name: plain for name, plain in files.items() if not {0, 47} & set(name) and name not in (b".", b"..")
    }
    tree: dict[bytes, Node] = {}
    extras = {b".": SP}
    for k, (name, plain) in enumerate(files.items()):
        ends = sorted({0, len(name), *(cut for cut in cuts if cut < len(name))})
        parts = [name[a:b] for a, b in pairwise(ends)]
        more = [1] * (len(parts) - 1) + [0]
        tree[b"F%d" % k] = plain
        extras[b"F%d" % k] = px(0o100600) + b"".join(
            nm(part, flag) for part, flag in zip(parts, more, strict=True)
        )
    image = iso_images.make(tree, extras=extras).image
    assert rebuilt(image, iso9660.read(BytesReader(image))) == files


archives = st.dictionaries(
    st.binary(min_size=1, max_size=40).filter(lambda name: 0 not in name and name != b"TRAILER!!!"),
    data,
    max_size=5,
)
packers = st.sampled_from(
    [
        ("cpio", bytes),
        ("gzip", lambda raw: gzip.compress(raw, 6, mtime=0)),
        ("xz", lambda raw: lzma.compress(raw, preset=0)),
        ("zstd", zstd.compress),
        ("bzip2", lambda raw: bz2.compress(raw, 1)),
        ("lzma", lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE, preset=0)),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(archives, packers, st.integers(0, 700)), max_size=6), front=st.integers(0, 600)
)
def test_rows_of_archives(rows: list[tuple[dict[bytes, bytes], tuple[str, object], int]], front: int) -> None:
    """Any archives, compressed or not, with any zero bytes between them."""
    raw, expected = bytes(front), []
    for files, (kind, pack), gap in rows:
        body = b"".join(member(name, plain) for name, plain in files.items()) + TRAILER
        assert callable(pack)
        packed = pack(body)
        expected.append((len(raw), len(packed), kind))
        raw += packed + bytes(gap)
        assert dict(in_order(body)) == {plain_path(name): p for name, p in files.items()}
    found = initramfs.segments(BytesReader(raw))
    assert [(one.offset, one.length, one.kind) for one in found] == expected


def in_order(body: bytes) -> list[tuple[bytes, bytes]]:
    found = cpio.read_files(BytesReader(body))
    starts = [found.blocks[one.pieces[0].block].offset if one.pieces else 0 for one in found.contents]
    return [(one.path, body[at : at + one.size]) for one, at in zip(found.contents, starts, strict=True)]


def plain_path(name: bytes) -> bytes:
    while name.startswith((b"./", b"/")):
        name = name[name.index(b"/") + 1 :]
    return name
