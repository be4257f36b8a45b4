"""Whatever a file is made of, the delta gives it back, and finds what must be found."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.delta.window import equal_runs
from tests.unit.test_delta import BASE, OTHER, PAGE, Sparse, explained, index, literal, noise

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 96 << 10
FIRST = noise(SIZE // 2) + bytes(9000) + b"ab" * 5000 + noise(SIZE // 2 - 3, 2)
SECOND = noise(SIZE, 3)
# A file of several windows, so that edges fall everywhere.
LONG = noise((2 << 20) + 12_345, 4)

Edit = tuple[str, int, int, int]
edits = st.lists(
    st.tuples(
        st.sampled_from(["change", "insert", "delete", "move", "repeat", "reverse", "zero", "other"]),
        st.integers(0, 1 << 30),
        st.integers(1, 20_000),
        st.integers(0, 1 << 30),
    ),
    max_size=8,
)


def edited(data: bytes, edit: Edit) -> bytes:
    """One edit; numbers are taken modulo the size."""
    kind, at, length, other = edit
    at %= len(data) + 1
    head, middle, tail = data[:at], data[at : at + length], data[at + length :]
    there = other % (len(data) + 1)
    made: dict[str, Callable[[], bytes]] = {
        "change": lambda: head + noise(len(middle), other) + tail,
        "insert": lambda: head + noise(length, other) + middle + tail,
        "delete": lambda: head + tail,
        "move": lambda: (head + tail)[:there] + middle + (head + tail)[there:],
        "repeat": lambda: head + middle * 2 + tail,
        "reverse": lambda: head + middle[::-1] + tail,
        "zero": lambda: head + bytes(len(middle)) + tail,
        "other": lambda: head + SECOND[there : there + length] + tail,
    }
    return made[kind]()


def all_edits(data: bytes, steps: list[Edit]) -> bytes:
    for step in steps:
        data = edited(data, step)
    return data


@settings(max_examples=150, deadline=None)
@given(edits, st.sampled_from([None, BASE, OTHER]), st.booleans())
def test_edited_files_come_back(steps: list[Edit], twin: int | None, rolling: bool) -> None:
    """Any edits, any twin (a wrong one as well), with and without rolling: exact."""
    explained(index(FIRST, SECOND), all_edits(FIRST, steps), twin, rolling=rolling)


@settings(max_examples=15, deadline=None)
@given(edits)
def test_edited_long_files_come_back_and_cost_their_edits(steps: list[Edit]) -> None:
    """A copy ends at most two pages from an edit: each costs its own bytes and three seams."""
    ops = explained(index(LONG, SECOND), all_edits(LONG, steps))
    assert literal(ops) <= sum(length + 3 * 2 * PAGE for _, _, length, _ in steps)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3000), st.sets(st.integers(0, 3000), max_size=30), st.sampled_from([64, 128, 512]))
def test_equal_runs_are_those_that_counting_finds(size: int, places: set[int], shortest: int) -> None:
    """The quick look before comparing every byte never hides a run."""
    differ = sorted(at for at in places if at < size)
    ours = noise(size)
    theirs = bytearray(ours)
    for at in differ:
        theirs[at] ^= 1
    runs = [(low + 1, high) for low, high in pairwise([-1, *differ, size]) if high - low > shortest]
    assert equal_runs(ours, bytes(theirs), shortest) == runs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 9000)), max_size=6), st.integers(0, 999))
def test_sparse_readers_with_odd_spans_come_back(places: list[tuple[int, int]], seed: int) -> None:
    """Holes at any byte in base and target; pieces of the base at other places."""
    size = 220_000
    base, target = bytearray(size), bytearray(size)
    spans: list[tuple[int, int]] = []
    here = 0
    for at, length in sorted(places):
        if at >= here:
            base[at : at + length] = noise(length, seed)
            spans.append((at, length))
            here = at + length
    dice = random.Random(seed)
    for at, length in spans:
        move = dice.choice([0, 0, 512, 1]) if at + length + 512 <= size else 0
        target[at + move : at + move + length] = base[at : at + length]
    odd = [(at, min(length + 512, size - at)) for at, length in spans]
    disjoint = all(a + n <= b for (a, n), (b, _) in pairwise(odd))
    file = Sparse(bytes(target), odd if disjoint else [(0, size)])
    explained(index(Sparse(bytes(base), spans)), file)
