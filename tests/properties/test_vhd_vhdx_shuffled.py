"""VHD and VHDX with any order of blocks, block size, holes and bitmaps give their file and guest back."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_vhdx, vhd, vhdx
from tests import vhd_images, vhdx_images
from tests.suites.explained import check_explanation

SECTOR = 512


@st.composite
def disks(draw: st.DrawFn, block: int, most: int, piece: int) -> bytes:
    """A guest disk of up to `most` blocks, some of zeros, the last one perhaps cut."""
    kinds = draw(st.lists(st.sampled_from(["zero", "full", "head", "tail"]), min_size=1, max_size=most))
    dice = random.Random(draw(st.integers(0, 1 << 32)))
    made = b""
    for kind in kinds:
        data = dice.randbytes(block if kind == "full" else piece)
        made += {
            "zero": bytes(block),
            "full": data,
            "head": data.ljust(block, b"\0"),
            "tail": data.rjust(block, b"\0"),
        }[kind]
    cut = draw(st.integers(0, block // SECTOR - 1)) * SECTOR
    return made[: len(made) - cut]


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    block=st.sampled_from([512, 1024, 4096, 32768, 65536]),
    seed=st.none() | st.integers(0, 1000),
    fill=st.sampled_from([b"\xff", b"\0", b"\xf0\x0f"]),
    spare=st.integers(0, 300),
    gap=st.sampled_from([0, 512, 1536]),
)
def test_dynamic_vhd(
    data: st.DataObject, block: int, seed: int | None, fill: bytes, spare: int, gap: int
) -> None:
    """Shuffled blocks, spare table entries, rubbish between blocks, any bitmap."""
    guest = data.draw(disks(block, 12, 500))
    image = vhd_images.dynamic(
        guest,
        block,
        seed=seed,
        bitmap=lambda size: (fill * size)[:size],
        spare=spare,
        gap=gap,
    )
    file = BytesReader(image)
    check_explanation(vhd.explain(file), file, guest)


@settings(max_examples=15, deadline=None)
@given(guest=disks(SECTOR, 40, 100))
def test_fixed_vhd(guest: bytes) -> None:
    """Any guest and its footer."""
    file = BytesReader(vhd_images.fixed(guest))
    check_explanation(vhd.explain(file), file, guest)


@settings(max_examples=15, deadline=None)
@given(
    guest=disks(c_vhdx.MIB, 5, 9000),
    seed=st.none() | st.integers(0, 1000),
    empty=st.sampled_from(c_vhdx.READ_AS_ZERO),
    every=st.booleans(),
)
def test_vhdx(guest: bytes, seed: int | None, empty: int, every: bool) -> None:
    """Shuffled blocks, all kinds of absent ones, or none absent."""
    file = BytesReader(vhdx_images.vhdx(guest, seed=seed, empty=empty, every=every))
    check_explanation(vhdx.explain(file), file, guest)


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.sets(st.integers(0, 3 * 4096 + 5), max_size=6),
    seed=st.none() | st.integers(0, 1000),
    sector=st.sampled_from([512, 4096]),
)
def test_vhdx_beyond_a_chunk(numbers: set[int], seed: int | None, sector: int) -> None:
    """Sector bitmap entries between the chunks do not shift the blocks behind them."""
    total = 3 * 4096 + 6
    contents = {number: b"%d" % number for number in numbers}
    bat, body = vhdx_images.blocks(contents, total, c_vhdx.MIB, sector=sector, seed=seed)
    items = vhdx_images.default_items(total * c_vhdx.MIB, c_vhdx.MIB, sector)
    guest = vhdx.explain(BytesReader(vhdx_images.assemble(items, bat, body))).guest
    assert sum(length for _, length in guest.data_spans()) == len(numbers) * c_vhdx.MIB
    for number, content in contents.items():
        assert guest.pread(number * c_vhdx.MIB, len(content)) == content
