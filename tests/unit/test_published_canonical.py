"""Compressed files as canonical disks: which can be one, and the recipes over them."""

from __future__ import annotations

import random

import pytest

from rehydrator.bundle.packing import Ledger
from rehydrator.bundle.published_canonical import check, guest_ops, image_ops
from rehydrator.codecs import lzma2
from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Encode, Op, Rules, Series, zeros
from rehydrator.core.pack import MAX_FRAME
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace, Space
from rehydrator.formats.explanation import FILE, GUEST, Explanation, Extent, GuestReader
from rehydrator.formats.streams import Layout, Part

DICE = random.Random(2)
DISK = DICE.randbytes(5000) + bytes(3000) + DICE.randbytes(2000) + bytes(700)
EXTENTS = [Extent(8000, 2000, 100), Extent(0, 5000, 2100)]
FILE_BYTES = b"h" * 100 + DISK[8000:10000] + DISK[:5000] + b"t" * 9
OPS: list[Op] = [Copy(100, FILE, 0), Copy(2000, GUEST, 8000), Copy(5000, GUEST, 0), Copy(9, FILE, 7100)]
EXPLAINED = Explanation("odd", GuestReader(BytesReader(FILE_BYTES), len(DISK), EXTENTS), OPS)


def packed(*pieces: bytes) -> tuple[bytes, Layout]:
    """The pieces as LZMA2 data, with a few bytes around each."""
    made, parts, plain = b"", [], 0
    for piece in pieces:
        data = lzma2.encode(piece, dict(lzma2.preset(0, 1 << 20)))
        made += b"head"
        parts.append(Part(len(made), len(data), plain, len(piece), "lzma2", {"dict_size": 1 << 20}))
        made, plain = made + data, plain + len(piece)
    return made, Layout("xz", len(made), plain, tuple(parts), {})


def test_the_disk_out_of_the_compressed_file() -> None:
    """Two recipes give the file and the disk, from nothing but the compressed bytes."""
    made, layout = packed(FILE_BYTES[:3000], FILE_BYTES[3000:])
    ledger = Ledger()
    check(layout, EXPLAINED)
    image = OpsSpace(image_ops(layout, 0, ledger))
    spaces: dict[int, Space] = {
        0: ReaderSpace(BytesReader(made)),
        1: image,
        2: OpsSpace(guest_ops(EXPLAINED, 1)),
    }
    machine = Machine(spaces, ledger.rules())
    assert machine.read(1, 0, image.size) == FILE_BYTES
    assert machine.read(2, 0, len(DISK)) == DISK


def test_what_cannot_be_one() -> None:
    """Parts too large to be decoded for a page, parts that nobody decodes, disks that are encoded."""
    _, layout = packed(FILE_BYTES)
    large = Part(4, 100, 0, MAX_FRAME + 1, "lzma2", {"dict_size": 1 << 20})
    odd = Part(4, 100, 0, 100, "", {})
    encoded = Explanation("odd", EXPLAINED.guest, [*OPS[:2], Encode(5000, 0, 0, 0, 1), OPS[3]])
    for bad, explanation, said in (
        (Layout("xz", 104, large.plain, (large,), {}), EXPLAINED, f"part of {MAX_FRAME + 1} bytes"),
        (Layout("xz", 104, 100, (odd,), {}), EXPLAINED, "not decoded alone"),
        (layout, encoded, "has some of its disk encoded"),
    ):
        with pytest.raises(Unexplained, match=said):
            check(bad, explanation)


def test_clusters_that_stand_twice() -> None:
    """A file that has some of the disk twice gives each byte once, in the disk's order."""
    guest = GuestReader(BytesReader(DISK), len(DISK), [Extent(0, len(DISK), 0)])
    ops: list[Op] = [
        Copy(6000, GUEST, 0),
        Copy(5700, GUEST, 5000),
        Series(10, 1, 1, 1, "little"),
        Copy(100, GUEST, 7),
    ]
    spaces: dict[int, Space] = {
        0: ReaderSpace(BytesReader(DISK)),
        1: OpsSpace([Copy(6000, 0, 0), Copy(5700, 0, 5000), zeros(110)]),
    }
    made = OpsSpace(guest_ops(Explanation("odd", guest, ops), 1))
    machine = Machine({**spaces, 2: made}, Rules())
    assert (made.size, machine.read(2, 0, made.size)) == (len(DISK), DISK)
