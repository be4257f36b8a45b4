"""Arithmetic runs in tables, and extents cut down to what a sparse file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rehydrator.core.ops import Op, Rules, Series
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace
from rehydrator.formats.explanation import FILE, Extent, OpsBuilder
from rehydrator.formats.runs import add_runs, present

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.core.ops import Endian


def explained(values: list[int], width: int, endian: Endian) -> tuple[bytes, list[Op]]:
    """The bytes of a table, and the ops for it."""
    raw = b"".join(value.to_bytes(width, endian) for value in values)
    ops = OpsBuilder(len(raw))
    add_runs(ops, 0, np.array(values, f"u{width}"), endian)
    return raw, ops.finish()


def series(values: list[int], width: int = 8, endian: Endian = "little") -> list[Op]:
    return [op for op in explained(values, width, endian)[1] if isinstance(op, Series)]


def test_steps_up_down_and_none() -> None:
    """Ascending, descending, constant: one op each; the shared value goes to the first."""
    values = [*range(100, 110), *range(108, 90, -2), *[7] * 20]
    assert series(values) == [
        Series(80, 100, 1, 8, "little"),
        Series(72, 108, -2, 8, "little"),
        Series(160, 7, 0, 8, "little"),
    ]


def test_steps_are_modulo_the_width() -> None:
    """A run may pass over the largest value."""
    values = [(0xFFFFFFF0 + 8 * k) % (1 << 32) for k in range(12)]
    assert series(values, 4, "big") == [Series(48, 0xFFFFFFF0, 8, 4, "big")]


@pytest.mark.parametrize(("width", "count"), [(8, 4), (4, 8), (1, 32)])
def test_short_runs_stay(width: int, count: int) -> None:
    """A run of 32 bytes is worth an op, a shorter one is not."""
    assert len(series([5] * count, width)) == 1
    assert series([5] * (count - 1), width) == []


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(-9, 9), st.integers(1, 40)), min_size=1, max_size=8
    ),
    st.sampled_from([1, 4, 8]),
    st.sampled_from(["little", "big"]),
)
def test_ops_give_the_table_back(parts: list[tuple[int, int, int]], width: int, endian: Endian) -> None:
    """Whatever the table, byte for byte."""
    modulus = 1 << (8 * width)
    values = [(first + k * step) % modulus for first, step, count in parts for k in range(count)]
    raw, ops = explained(values, width, endian)
    machine = Machine({FILE: ReaderSpace(BytesReader(raw)), 3: OpsSpace(ops)}, Rules())
    assert machine.read(3, 0, len(raw)) == raw


class Holey(BytesReader):
    """Data at 10-20 and at 30-40."""

    def data_spans(self) -> Iterator[tuple[int, int]]:
        yield 10, 10
        yield 30, 10


def test_extents_lose_the_holes_of_the_file() -> None:
    """In any order; what lies in a hole throughout is gone."""
    extents = [Extent(100, 20, 15), Extent(0, 5, 31), Extent(50, 9, 21), Extent(200, 50, 0)]
    assert present(Holey(bytes(50)), extents) == [
        Extent(100, 5, 15),
        Extent(115, 5, 30),
        Extent(0, 5, 31),
        Extent(210, 10, 10),
        Extent(230, 10, 30),
    ]
    assert present(BytesReader(bytes(50)), extents) == extents
    assert present(BytesReader(b""), []) == []
