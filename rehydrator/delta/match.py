"""Explains a file by bytes that are known: window after window, in constant memory.

The file is read once, in windows of 1 MiB. What is still unmatched at the end of a window is
looked at again with the next one, as far as a match from there could reach back.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from rehydrator.core.ops import Copy, is_zeros, zeros
from rehydrator.core.reader import data_spans
from rehydrator.delta.rolling import PAGE
from rehydrator.delta.window import Run, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader
    from rehydrator.delta.pages import PageIndex

WINDOW = 1 << 20
# A page found in the next window starts at most one byte less than a page before it, and what
# it extends back over holds no whole page.
CARRY = 2 * PAGE
# Smaller holes of a reader are read as zeros, so that they do not cut copies.
_ROUND = 64 << 10


class Matcher:
    """One target, matched against an index (see PageIndex.match)."""

    def __init__(
        self, index: PageIndex, target: Reader, unmatched: int, twin: int | None, rolling: bool
    ) -> None:
        self._index, self._target, self._unmatched = index, target, unmatched
        self._twin = None if twin is None else Run(0, 0, twin, 0)
        self._rolling = rolling
        self._last: Run | None = None

    def ops(self) -> Iterator[Op]:
        """The ops that cover [0, size) of the target."""
        return joined(self._ops())

    def _ops(self) -> Iterator[Op]:
        here = 0
        for start, end in covered(self._target):
            yield zeros(start - here)
            yield from self._run(start, end)
            here = end
        yield zeros(self._target.size - here)

    def _run(self, start: int, end: int) -> Iterator[Op]:
        reached = start
        while reached < end:
            reached = min((reached // WINDOW + 1) * WINDOW, end)
            window = Window(self._index, start, self._target.pread(start, reached - start))
            runs, done = window.explain(self._twin, self._last, self._rolling, 0 if reached == end else CARRY)
            self._last = next((run for run in reversed(runs) if run.space is not None), self._last)
            yield from self._emit(start, done, runs)
            start = done

    def _emit(self, start: int, end: int, runs: Iterable[Run]) -> Iterator[Op]:
        for run in runs:
            yield Copy(run.start - start, self._unmatched, start)
            length = run.end - run.start
            yield zeros(length) if run.space is None else Copy(length, run.space, run.start + run.shift)
            start = run.end
        yield Copy(end - start, self._unmatched, start)


def joined(ops: Iterable[Op]) -> Iterator[Op]:
    """The same without empty ops, and neighbours that continue each other made one."""
    held: Op | None = None
    for op in ops:
        if not op.length:
            continue
        both = held and _join(held, op)
        if held is not None and both is None:
            yield held
        held = both or op
    if held is not None:
        yield held


def _join(first: Op, second: Op) -> Op | None:
    length = first.length + second.length
    if isinstance(first, Copy) and isinstance(second, Copy):
        follows = first.space == second.space and first.offset + first.length == second.offset
        return Copy(length, first.space, first.offset) if follows else None
    return zeros(length) if is_zeros(first) and is_zeros(second) else None


def covered(reader: Reader, unit: int = _ROUND) -> Iterator[tuple[int, int]]:
    """(start, end) of runs that hold all data of a reader, rounded outwards to `unit` bytes."""
    start = end = 0
    for offset, length in chain(data_spans(reader), [(reader.size, 0)]):
        low = offset // unit * unit
        high = min(-(-(offset + length) // unit) * unit, reader.size)
        if low > end or not length:
            if end > start:
                yield start, end
            start = max(low, end)
        end = max(end, high)
