"""What formats with tables of integers and whole blocks share: arithmetic runs in a table,
blocks that must not overlap, extents cut down to the parts that a sparse file really holds.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np

from rehydrator.core.ops import Series
from rehydrator.core.reader import data_spans
from rehydrator.formats.explanation import Extent, require

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from rehydrator.core.ops import Endian
    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import OpsBuilder

    Places = NDArray[np.int64]
    Integers = NDArray[np.unsignedinteger[Any]]

# A series splits the literal around it in two: some 20 bytes of recipe before compression.
MIN_RUN = 32


def add_runs(ops: OpsBuilder, at: int, values: Integers, endian: Endian) -> None:
    """Add the arithmetic runs of a table whose bytes begin at `at`; what is irregular, and
    what is shorter than MIN_RUN bytes, stays FILE.
    """
    width = values.itemsize
    for start, count in _runs(values, max(2, MIN_RUN // width)):
        first = int(values[start])
        step = _signed(int(values[start + 1]) - first, width)
        ops.add(at + start * width, Series(count * width, first, step, width, endian))


def present(file: Reader, extents: Iterable[Extent]) -> list[Extent]:
    """The parts of the extents that lie in the file's data spans: a hole of the file is a
    hole of the disk, even where the format calls the block allocated.
    """
    spans = list(data_spans(file))
    starts = [start for start, _ in spans]
    return [part for extent in extents for part in _cut(extent, spans, starts)]


def refuse_overlaps(starts: Places, ends: Places, size: int) -> None:
    """Raise Unexplained unless the blocks [start, end) are disjoint and end within `size`."""
    order = np.argsort(starts)
    require(bool((ends <= size).all()), "a block lies outside of the file")
    require(bool((starts[order][1:] >= ends[order][:-1]).all()), "two blocks overlap")


def _cut(extent: Extent, spans: list[tuple[int, int]], starts: list[int]) -> Iterator[Extent]:
    end = extent.file + extent.length
    for index in range(max(bisect_right(starts, extent.file) - 1, 0), len(spans)):
        start, length = spans[index]
        if start >= end:
            return
        low, high = max(start, extent.file), min(start + length, end)
        if low < high:
            yield Extent(extent.guest + low - extent.file, high - low, low)


def _runs(values: Integers, shortest: int) -> Iterator[tuple[int, int]]:
    """(start, count) of the runs of at least `shortest` values with one step throughout."""
    if len(values) < shortest:
        return
    steps = values[1:] - values[:-1]  # modulo 2^(8*width), as a series counts
    turns = np.flatnonzero(steps[1:] != steps[:-1]) + 1
    starts, ends = np.append(0, turns), np.append(turns, len(steps))
    long = ends - starts + 1 >= shortest
    free = 0
    for start, end in zip(starts[long].tolist(), ends[long].tolist(), strict=True):
        low = max(start, free)  # two neighbouring runs share a value: the first keeps it
        if end + 1 - low >= shortest:
            yield low, end + 1 - low
            free = end + 1


def _signed(step: int, width: int) -> int:
    """The step nearest to zero that is the same modulo 2^(8*width)."""
    half = 1 << (8 * width - 1)
    return (step + half) % (2 * half) - half
