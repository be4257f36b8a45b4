"""A survey sees the pages that are not zero, and how much two disks share."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle.survey import PAGE, nonzero_pages, survey
from rehydrator.core.reader import BytesReader

if TYPE_CHECKING:
    from collections.abc import Iterator

NOISE = random.Random(6).randbytes(64 * PAGE)


class Sparse(BytesReader):
    """Bytes with data spans."""

    def __init__(self, data: bytes, spans: list[tuple[int, int]]) -> None:
        super().__init__(data)
        self._spans = spans

    def data_spans(self) -> Iterator[tuple[int, int]]:
        yield from self._spans


@pytest.mark.parametrize("size", [0, 1, 100, PAGE, PAGE + 1, (1 << 20) + 5, 2 << 20])
def test_pages(size: int) -> None:
    """Exactly the pages with a byte that is not zero, the last one short."""
    data = bytearray(size)
    for at in range(0, size, 3 * PAGE):
        data[at] = 1
    if size:
        data[-1] = 7
    pages = {page: bytes(view) for page, view in nonzero_pages(BytesReader(bytes(data)))}
    expected = {
        at // PAGE: bytes(data[at : at + PAGE]) for at in range(0, size, PAGE) if any(data[at : at + PAGE])
    }
    assert pages == expected
    assert list(survey(BytesReader(bytes(data))).pages) == sorted(expected)


def test_spans_in_any_shape() -> None:
    """Short, touching and unaligned data spans give every page once, in order."""
    data = NOISE + bytes(3 << 20) + NOISE
    spans = [(5, 1), (6, 4000), (9000, 20), (len(NOISE) - 1, 1), (len(data) - len(NOISE), len(NOISE))]
    pages = [page for page, _ in nonzero_pages(Sparse(data, spans))]
    assert pages == sorted(set(pages))
    assert {0, 2, 63, len(data) // PAGE - 1} <= set(pages)
    assert pages == [page for page, _ in nonzero_pages(BytesReader(data))]


def test_share() -> None:
    """The part of the smaller disk that is equal at the same offsets; nothing shares nothing."""
    whole, half = survey(BytesReader(NOISE)), survey(BytesReader(NOISE[: 32 * PAGE]))
    shifted = survey(BytesReader(NOISE[PAGE:]))
    mixed = survey(BytesReader(NOISE[: 16 * PAGE] + NOISE[: 48 * PAGE][::-1]))
    empty = survey(BytesReader(bytes(8 * PAGE)))
    assert (whole.share(half), half.share(whole), whole.share(shifted)) == (1.0, 1.0, 0.0)
    assert whole.share(mixed) == 16 / 64
    assert (whole.share(empty), empty.share(empty), empty.data) == (0.0, 0.0, 0)


def test_repeated() -> None:
    """A hash counts as repeated from its second page on."""
    found = survey(BytesReader(NOISE[: 3 * PAGE] + NOISE[:PAGE] * 2))
    assert len(found.repeated()) == 1
    assert found.data == 5 * PAGE
