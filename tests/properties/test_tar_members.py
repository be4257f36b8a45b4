"""Tar files with any members and any sparse map give their file and their disk back."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.core.reader import BytesReader
from rehydrator.formats import tar
from tests import tar_images as make
from tests import vhd_images
from tests.suites.explained import check_explanation

BOOT = bytes(510) + b"\x55\xaa"

small = st.binary(max_size=600).map(make.member)
others = st.lists(
    small
    | st.just(make.header(0, b"5", name=b"dir/"))
    | st.just(make.member(b"n" * 300, b"L"))
    | st.just(make.pax({"mtime": "1.5", "comment": "ü" * 50})),
    max_size=4,
).map(b"".join)
ends = st.sampled_from([b"", make.END, make.END + bytes(9216)])


@st.composite
def raw_disks(draw: st.DrawFn) -> bytes:
    """A raw disk of 2 KiB and more with holes; larger than the other members."""
    sectors = draw(st.lists(st.booleans(), min_size=3, max_size=400))
    dice = random.Random(draw(st.integers(0, 1 << 32)))
    return BOOT + b"".join(dice.randbytes(512) if full else bytes(512) for full in sectors)


@settings(max_examples=60, deadline=None)
@given(before=others, guest=raw_disks(), after=small, end=ends, dynamic=st.booleans(), binary=st.booleans())
def test_plain_members(
    before: bytes, guest: bytes, after: bytes, end: bytes, dynamic: bool, binary: bool
) -> None:
    """A raw or VHD member anywhere."""
    disk = vhd_images.dynamic(guest, 1024, seed=3) if dynamic else guest
    file = BytesReader(before + make.member(disk, binary=binary) + after + end)
    explained = tar.explain(file)
    check_explanation(explained, file, guest)
    assert explained.format == ("tar+vhd" if dynamic else "tar+raw")


@settings(max_examples=60, deadline=None)
@given(
    before=others,
    guest=raw_disks(),
    end=ends,
    pack=st.sampled_from([make.old_gnu, make.pax_01, make.pax_10]),
)
def test_sparse_members(before: bytes, guest: bytes, end: bytes, pack: object) -> None:
    """Any map, in all kinds."""
    assert callable(pack)
    file = BytesReader(before + pack(guest) + end)
    explained = tar.explain(file)
    check_explanation(explained, file, guest)
    assert explained.format == "tar (sparse)+raw"


@settings(max_examples=40, deadline=None)
@given(guest=raw_disks(), cuts=st.lists(st.integers(0, 1 << 16), max_size=30), binary=st.booleans())
def test_sparse_maps_that_cut_the_data_anywhere(guest: bytes, cuts: list[int], binary: bool) -> None:
    """Extents may touch and may be empty; the last one need not be whole blocks."""
    guest = guest[:-512] + b"tail".ljust(512, b"\0")
    points = sorted({0, *(cut % len(guest) // 512 * 512 for cut in cuts), len(guest) - 500})
    extents = [(a, b - a) for a, b in pairwise(points)]
    extents += [(points[-1], 0), (len(guest), 0)]
    file = BytesReader(make.old_gnu(guest, extents, binary=binary) + make.END)
    explained = tar.explain(file)
    check_explanation(explained, file, guest[:-500] + bytes(500))
