"""How large a disk is when it is stored, about."""

from __future__ import annotations

import random

from rehydrator.bundle.live import compressed_size
from rehydrator.bundle.survey import PAGE, survey
from rehydrator.core.reader import BytesReader

NOISE = random.Random(1).randbytes(40 * PAGE)


def test_pages_that_repeat_count_once() -> None:
    """A disk that holds the same pages four times is as large as one that holds them once."""
    once, often = BytesReader(NOISE + bytes(40 * PAGE)), BytesReader(NOISE * 4)
    assert abs(compressed_size(once, survey(once), 1, map) - len(NOISE)) < PAGE
    assert abs(compressed_size(often, survey(often), 1, map) - len(NOISE)) < PAGE


def test_a_disk_of_zeros_is_nothing() -> None:
    """No pages, no bytes."""
    empty = BytesReader(bytes(8 * PAGE))
    assert compressed_size(empty, survey(empty), 1, map) == 0
