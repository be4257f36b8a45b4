"""Matches of several disks with what is stored, side by side, ahead of their turn.

Disks are stored one after the other, so that a bundle does not depend on the number of threads,
and nearly always one is found in what was stored before the first of them. Its match is begun
while others are still in the works; where more was stored since, it is begun anew.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor, Future

    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader, SparseReader
    from rehydrator.delta import PageIndex


class Wanted(NamedTuple):
    """A disk, and the space whose bytes it is expected to have at the same offsets."""

    guest: SparseReader
    twin: int | None


class Matches:
    """Matches with an index; at most `ahead` of them are held or made by the pool."""

    def __init__(self, index: PageIndex, unmatched: int, pool: Executor, ahead: int) -> None:
        self._index, self._unmatched, self._pool, self._ahead = index, unmatched, pool, ahead
        self._planned: deque[Wanted] = deque()
        self._begun: deque[tuple[Wanted, Future[list[Op]]]] = deque()

    def plan(self, wanted: Iterable[Wanted]) -> None:
        """The matches that will be asked for, in this order; others may be asked for in between."""
        self._planned = deque(wanted)
        self._begin()

    def match(self, wanted: Wanted) -> list[Op]:
        """What makes the disk."""
        if not self._begun or self._begun[0][0] != wanted:
            return self._ops(wanted)
        ops = self._begun.popleft()[1].result()
        self._begin()
        return ops

    def add(self, space: int, reader: Reader) -> None:
        """Let the index learn a space: nothing may be matched meanwhile, and what was is void."""
        begun = list(self._begun)
        self._begun.clear()
        for wanted, future in reversed(begun):
            self._planned.appendleft(wanted)
            if not future.cancel():
                future.result()
        self._index.add(space, reader)
        self._begin()

    def _begin(self) -> None:
        while self._planned and len(self._begun) < self._ahead:
            wanted = self._planned.popleft()
            self._begun.append((wanted, self._pool.submit(self._ops, wanted)))

    def _ops(self, wanted: Wanted) -> list[Op]:
        return list(self._index.match(wanted.guest, self._unmatched, twin=wanted.twin))
