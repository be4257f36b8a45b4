"""One window of a target, explained in passes from cheap to dear; each looks only at what the
ones before it have left, the *gaps*:

    1. the displacement that the window before ended with, and the twin's: whole comparison
    2. long runs of zeros
    3. pages at multiples of 4 KiB, then at multiples of 512, found in the index
    4. gaps at the displacements of their neighbours and of the twin
    5. pages at any byte, by rolling checksum
    6. the same as 4 beside what 5 has found; shorter runs of zeros

A displacement, as a `Run` has it, is a space and the distance to the same bytes in it. Every
page found is compared, and extended as far as bytes are equal, both ways.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rehydrator.delta.rolling import BLOCK, PAGE, rolling_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from rehydrator.core.reader import Reader
    from rehydrator.delta.pages import PageIndex

    Bytes = NDArray[np.uint8]
    Find = Callable[[int, int], Iterable[int]]

SECTOR = 512
# Shorter runs stay literal. On siblings of an ext4 disk, 64 gave 3 to 15 times as many ops as
# 512, and recipe and residue together, compressed, were larger by 0.1 to 12 %.
MIN_MATCH = 512
LONG_ZEROS = 64 << 10
# How far a page may reach into what is matched already.
_OVERLAP = PAGE - MIN_MATCH
# Of 32 Ki windows, 30 pass the checksums by chance. With more, the data repeats itself, so that
# any of them will do, or is made to waste time.
_MAX_CANDIDATES = 256
# Gaps that hold less of a page are left to the displacements around them: a quarter of the time.
_MIN_SCAN = PAGE // 2
_STEP_BLOCK = 256 << 10
_STRIDE, _MAX_STRIDE = PAGE, 1 << 20


class Run(NamedTuple):
    """Target bytes [start, end) are those of `space` at `start` + `shift`; no space: zeros."""

    start: int
    end: int
    space: int | None
    shift: int

    def at(self, start: int, end: int) -> Run:
        """The same displacement for other bytes."""
        return Run(start, end, self.space, self.shift)


class Gap(NamedTuple):
    """Unmatched target bytes, and the runs around them."""

    start: int
    end: int
    before: Run | None
    after: Run | None


class Window:
    """Target bytes `data` from `start` on."""

    def __init__(self, index: PageIndex, start: int, data: bytes) -> None:
        self._index, self._start, self._end = index, start, start + len(data)
        self._data = data
        self._bytes = np.frombuffer(data, np.uint8)
        self._runs: list[Run] = []

    def explain(self, twin: Run | None, last: Run | None, rolling: bool, carry: int) -> tuple[list[Run], int]:
        """Runs in order, and where the next window begins: behind all of them, and at most
        `carry` bytes before the end of this one."""
        if last is not None:
            self._continue(last)
        expected = _displacements((twin, last))
        self._pass(PAGE, lambda gap: self._same(gap, expected, PAGE))
        self._pass(LONG_ZEROS, lambda gap: self._zeros(gap, LONG_ZEROS))
        for step in (PAGE, SECTOR):
            find = partial(_multiples, step)
            self._pass(_MIN_SCAN, partial(self._scan, block=_STEP_BLOCK, find=find, expected=expected))
        self._pass(MIN_MATCH, lambda gap: self._around(gap, expected))
        if rolling:
            self._pass(_MIN_SCAN, lambda gap: self._scan(gap, BLOCK, self._rolling, expected))
            self._pass(MIN_MATCH, lambda gap: self._around(gap, expected))
        done = self._cut(carry)
        self._pass(MIN_MATCH, lambda gap: self._zeros(gap, MIN_MATCH), done)
        return self._runs, done

    def _cut(self, carry: int) -> int:
        matched = self._runs[-1].end if self._runs else self._start
        return max(matched, self._end - carry)

    def _gaps(self, end: int) -> Iterator[Gap]:
        here, before = self._start, None
        for run in self._runs:
            yield Gap(here, run.start, before, run)
            here, before = run.end, run
        yield Gap(here, end, before, None)

    def _pass(self, shortest: int, look: Callable[[Gap], Iterable[Run]], end: int | None = None) -> None:
        """Add what `look` finds in each gap of `shortest` bytes or more."""
        gaps = self._gaps(self._end if end is None else end)
        found = [run for gap in gaps if gap.end - gap.start >= shortest for run in look(gap)]
        if found:
            self._runs = sorted(self._runs + found, key=lambda run: run.start)

    def _continue(self, last: Run) -> None:
        """Any number of bytes that go on where the last window ended."""
        run = self._extend(last.at(self._start, self._start), self._start, self._end)
        if run.end - run.start >= (1 if last.end == self._start else MIN_MATCH):
            self._runs.append(run)

    def _zeros(self, gap: Gap, shortest: int) -> Iterator[Run]:
        data = self._slice(gap.start, gap.end)
        for start, end in equal_runs(data, bytes(len(data)), shortest):
            yield Run(gap.start + start, gap.start + end, None, 0)

    def _around(self, gap: Gap, expected: Iterable[Run]) -> Iterator[Run]:
        """Equal bytes at the displacements next to a gap and at those expected."""
        return self._same(gap, _displacements((gap.before, gap.after, *expected)), MIN_MATCH)

    def _same(self, gap: Gap, runs: list[Run], shortest: int) -> Iterator[Run]:
        """Equal bytes at the first of some displacements, and in what is left at the others.

        Runs of nothing but zeros are left alone: they would cut what has really moved.
        """
        if not runs:
            return
        here = gap.start
        for start, end in self._equal(gap, runs[0], shortest):
            yield from self._same(Gap(here, start, None, None), runs[1:], shortest)
            yield runs[0].at(start, end)
            here = end
        if gap.end - here >= shortest:
            yield from self._same(Gap(here, gap.end, None, None), runs[1:], shortest)

    def _equal(self, gap: Gap, run: Run, shortest: int) -> Iterator[tuple[int, int]]:
        assert run.space is not None
        base = self._index.readers[run.space]
        low, high = max(gap.start, -run.shift), min(gap.end, base.size - run.shift)
        if high - low < shortest:
            return
        theirs = base.pread(low + run.shift, high - low)
        for start, end in equal_runs(self._slice(low, high), theirs, shortest):
            if theirs[start:end].strip(b"\0"):
                yield low + start, low + end

    def _scan(self, gap: Gap, block: int, find: Find, expected: Iterable[Run]) -> Iterator[Run]:
        """Pages of the index that lie in a gap at least in part; `find` gives candidates in a
        span, `block` bytes at a time.

        In part, because the run before may have gone on by chance: one time in 256 its next
        byte is equal, and the page there would be lost.
        """
        here, near = gap.start, gap.before
        seek = max(here - _OVERLAP, self._start)
        stop = min(gap.end - MIN_MATCH, self._end - PAGE) + 1
        while seek < stop and gap.end - here >= MIN_MATCH:
            until = min(seek + block, stop)
            for position, space, offset in self._known(find(seek, until)):
                if position < here - _OVERLAP:
                    continue
                hit = Run(position, position + PAGE, space, offset - position)
                run = self._confirm(hit, (near, *expected), here, gap.end)
                if run is not None and run.end - run.start >= MIN_MATCH:
                    yield run
                    near, here = run, run.end
                    if here - _OVERLAP >= until:
                        break
            seek = max(here - _OVERLAP, until)

    def _known(self, positions: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        view = memoryview(self._data)
        for position, space, offset in self._index.find(view, (p - self._start for p in positions)):
            yield position + self._start, space, offset

    def _rolling(self, start: int, end: int) -> Iterable[int]:
        low = start - self._start
        sums = rolling_sums(self._bytes[low : end - self._start + PAGE - 1])
        found = self._index.sums.positions(sums)
        thin = -(-len(found) // _MAX_CANDIDATES) or 1
        candidates: list[int] = (found[::thin] + start).tolist()
        return candidates

    def _confirm(self, hit: Run, near: Iterable[Run | None], low: int, high: int) -> Run | None:
        """The whole run around a page: at a displacement near by, else where the index says."""
        page = self._slice(hit.start, hit.end)
        for run in _displacements((*near, hit)):
            assert run.space is not None
            base, there = self._index.readers[run.space], hit.start + run.shift
            if 0 <= there <= base.size - PAGE and base.pread(there, PAGE) == page:
                return self._extend(run.at(max(hit.start, low), min(hit.end, high)), low, high)
        return None

    def _extend(self, run: Run, low: int, high: int) -> Run:
        """`run`, made longer both ways inside [low, high) as far as bytes are equal."""
        assert run.space is not None
        base = self._index.readers[run.space]
        low, high = max(low, -run.shift), min(high, base.size - run.shift)
        if low > run.start or high < run.end:
            return run
        return run.at(self._back(run, base, low), self._forth(run, base, high))

    def _forth(self, run: Run, base: Reader, high: int) -> int:
        end, stride = run.end, _STRIDE
        while end < high:
            until = min(end + stride, high)
            theirs, ours = base.pread(end + run.shift, until - end), self._slice(end, until)
            if theirs != ours:
                return end + int(_unequal(theirs, ours).argmax())
            end, stride = until, min(stride * 16, _MAX_STRIDE)
        return end

    def _back(self, run: Run, base: Reader, low: int) -> int:
        start, stride = run.start, _STRIDE
        while start > low:
            since = max(start - stride, low)
            theirs, ours = base.pread(since + run.shift, start - since), self._slice(since, start)
            if theirs != ours:
                return start - int(_unequal(theirs, ours)[::-1].argmax())
            start, stride = since, min(stride * 16, _MAX_STRIDE)
        return start

    def _slice(self, start: int, end: int) -> bytes:
        return self._data[start - self._start : end - self._start]


def equal_runs(ours: bytes, theirs: bytes, shortest: int) -> list[tuple[int, int]]:
    """Runs of `shortest` (64 or more) and more equal bytes at equal places, as long as can be."""
    if ours == theirs:
        return [(0, len(ours))] if len(ours) >= shortest else []
    if not _may_have_runs(ours, theirs, shortest):
        return []
    unequal = np.flatnonzero(_unequal(ours, theirs))
    bounds = np.concatenate(([-1], unequal, [len(ours)]))
    long = np.flatnonzero(np.diff(bounds) > shortest)
    return list(zip((bounds[long] + 1).tolist(), bounds[long + 1].tolist(), strict=True))


def _may_have_runs(ours: bytes, theirs: bytes, shortest: int) -> bool:
    """False if there is no such run: of 8 words spread over a run, 7 lie inside of it whole."""
    step = shortest // 64
    mine, other = (np.frombuffer(data, np.uint64, len(data) // 8)[::step] for data in (ours, theirs))
    bounds = np.concatenate(([-1], np.flatnonzero(mine != other), [len(mine)]))
    return bool((np.diff(bounds) > 7).any())


def _unequal(ours: bytes, theirs: bytes) -> NDArray[np.bool_]:
    return np.not_equal(np.frombuffer(ours, np.uint8), np.frombuffer(theirs, np.uint8))


def _multiples(step: int, start: int, end: int) -> Iterable[int]:
    return range(-(-start // step) * step, end, step)


def _displacements(runs: Iterable[Run | None]) -> list[Run]:
    """One run of each displacement, in order of preference."""
    copies = [run for run in runs if run is not None and run.space is not None]
    return list({(run.space, run.shift): run for run in copies}.values())
