"""Any disk, any dialect, any order of the grains: the file and the guest come back."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.core.reader import BytesReader
from rehydrator.formats import vmdk
from tests.suites.explained import check_explanation
from tests.vmdk_images import Dialect, disk, stored_grains, write, zlib_level

ENCODERS = [zlib_level(6), zlib_level(1), None]


@st.composite
def dialects(draw: st.DrawFn) -> Dialect:
    encode = draw(st.sampled_from(ENCODERS))
    at_end = draw(st.booleans())
    return Dialect(
        encode=encode,
        grain=draw(st.sampled_from([1, 8, 16, 128])),
        entries=draw(st.sampled_from([1, 16, 500, 512])),
        tables_at_end=at_end,
        redundant=not at_end and draw(st.booleans()),
        short_last=draw(st.booleans()),
        zeroed=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(
    dialect=dialects(),
    sectors=st.integers(1, 600),
    seed=st.integers(0, 1 << 16),
    swaps=st.integers(0, 400),
)
def test_shuffled_grains_come_back(dialect: Dialect, sectors: int, seed: int, swaps: int) -> None:
    """Odd sizes, tables of odd sizes, from no disorder to complete disorder."""
    guest = disk(sectors * 512, seed, 4096)
    order = stored_grains(guest, dialect)
    dice = random.Random(seed)
    for _ in range(min(swaps, 2 * len(order))):
        one, other = dice.randrange(len(order)), dice.randrange(len(order))
        order[one], order[other] = order[other], order[one]
    file = BytesReader(write(guest, dialect, order))
    check_explanation(vmdk.explain(file), file, guest)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 16), encode=st.sampled_from(ENCODERS), sectors=st.integers(1, 200))
def test_fragments_of_grains_are_few_rows(seed: int, encode: object, sectors: int) -> None:
    """Grains written in a few ascending rows that interleave, as several writers do."""
    dialect = Dialect(encode=encode, grain=2, tables_at_end=bool(seed % 2), redundant=not seed % 2)  # type: ignore[arg-type]
    guest = disk(sectors * 512, seed, 1024)
    stored = stored_grains(guest, dialect)
    rows = random.Random(seed).randrange(1, 5)
    order = [number for row in range(rows) for number in stored if number * 7 % rows == row]
    file = BytesReader(write(guest, dialect, order))
    check_explanation(vmdk.explain(file), file, guest)
