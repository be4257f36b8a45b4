"""What is served: the bytes of an image by offset, and where it is zero.

`Image` is all that a server knows. `SpaceImage` is one of a bundle: its bytes are made when they
are asked for, each through the digest of its frame; its zeros are read off the recipes, so that
nothing is decoded to tell where they are.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Final, Protocol

from rehydrator.core.ops import Copy, is_zeros
from rehydrator.core.reader import check_span
from rehydrator.engine import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.core.ops import Op
    from rehydrator.engine import Machine, Piece

ALIGNMENT: Final = 4096
"""Bytes; shorter runs of zeros are data: a client gains nothing from them."""

# Runs that are known of one space, at 16 bytes each; what comes behind them is data.
_MOST_RUNS: Final = 1 << 20

# Recipes one above the other whose zeros are looked for; real ones have four.
_DEEPEST: Final = 32


class Image(Protocol):
    """A read-only disk, or any file. Everything may be asked from several threads."""

    @property
    def size(self) -> int: ...

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """What [offset, offset+length) consists of, in order; RehydratorError where it is damaged."""
        ...

    def zero_runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Runs (start, end) within [offset, offset+length) that are known to be zero, ascending.

        They begin and end at multiples of ALIGNMENT, or where the range or the image does: qemu-img
        7.2 takes the sector in which a run of zeros ends for zero as a whole.
        """
        ...


class SpaceImage:
    """A space of a machine as an image; `zeros` is what the images of one machine share."""

    def __init__(self, machine: Machine, space: int, zeros: ZeroRuns) -> None:
        self._machine, self._space, self._zeros = machine, space, zeros
        self.size = machine.space(space).size

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        return self._machine.pieces(self._space, offset, length)

    def zero_runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        check_span(offset, length, self.size, "image")
        low, high = _down(offset), min(_up(offset + length), self.size)
        for start, end in self._zeros.of(self._space).within(low, high - low):
            first, last = _up(start), end if end == self.size else _down(end)
            first, last = max(first, offset), min(last, offset + length)
            if first < last:
                yield first, last


def _up(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _down(offset: int) -> int:
    return offset // ALIGNMENT * ALIGNMENT


class Runs:
    """Runs of zeros, ascending and disjoint."""

    def __init__(self) -> None:
        self._starts, self._ends = array("Q"), array("Q")

    def add(self, start: int, end: int) -> bool:
        """Add a run that begins where the last one ended, or later; False where there is no room.
        A last run that stayed short gives way."""
        if self._ends and self._ends[-1] == start:
            self._ends[-1] = end
            return True
        if self._ends and self._ends[-1] - self._starts[-1] < ALIGNMENT:
            self._starts[-1], self._ends[-1] = start, end
            return True
        self._starts.append(start)
        self._ends.append(end)
        return len(self._starts) < _MOST_RUNS

    def within(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The parts of them that lie in [offset, offset+length)."""
        stop = offset + length
        for index in range(max(bisect_right(self._starts, offset) - 1, 0), len(self._starts)):
            start, end = max(self._starts[index], offset), min(self._ends[index], stop)
            if start >= stop:
                return
            if start < end:
                yield start, end


class ZeroRuns:
    """Where the spaces of a machine are zero, as their recipes say. A space's recipe is read once,
    whole (measured: 0.08 s for 44,000 ops), when it is asked for."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self._known: dict[int, Runs] = {}

    def of(self, space: int) -> Runs:
        """The runs of a space.

        Raises:
            RehydratorError: its recipe is damaged.
        """
        with self._lock:
            return self._of(space, 0)

    def _of(self, space: int, depth: int) -> Runs:
        if space not in self._known:
            self._known[space] = self._find(space, depth)
        return self._known[space]

    def _find(self, space: int, depth: int) -> Runs:
        found, here = Runs(), 0
        target = self._machine.space(space)
        if not isinstance(target, Recipe) or depth > _DEEPEST:
            return found
        for op in target.ops():
            for start, end in self._zeros_of(op, depth):
                if not found.add(here + start, here + end):
                    return found
            here += op.length
        return found

    def _zeros_of(self, op: Op, depth: int) -> Iterator[tuple[int, int]]:
        """Zeros in what an op makes, counted from its beginning."""
        if is_zeros(op):
            yield 0, op.length
        elif isinstance(op, Copy):
            for start, end in self._of(op.space, depth + 1).within(op.offset, op.length):
                yield start - op.offset, end - op.offset
