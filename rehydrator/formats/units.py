"""What formats with encoded units share: VMDK grains, compressed qcow2 clusters.

Two jobs. `reproduce` finds the encoders that made a file's units, by trial on samples, and
then checks every unit. `UnitRows` turns units and their sizes into a size table, `Encode`
ops, and `Offsets` ops for the tables that say where the units lie.

A *row* is a longest chain of units that follow each other in the file and ascend in the
guest. Small holes in between (units that are all zero and therefore not stored) are entries
of no bytes in the size table, so that one op spans them: a disk of 3,000 fragments is one
row, not 3,000.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from rehydrator.codecs import Params, find, gives
from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Encode, Offsets, SizeTable, zeros
from rehydrator.formats.explanation import SIZES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rehydrator.core.ops import OffsetRule, Op
    from rehydrator.formats.explanation import Each, Packed

T = TypeVar("T")
Integers = np.ndarray[Any, np.dtype[np.int64]]
Unsigned = np.ndarray[Any, np.dtype[np.uint64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

MAX_UNITS = 4 << 20

_SAMPLES = 16
_ROUNDS = 3
_BATCH = 32  # units in one piece of work
_WINDOW = 128  # pieces of work queued at a time
_MAX_STEPS = (4096, 256, 16, 1)  # from one unit of a row to the next; a larger step starts another row
_FREE_ENTRIES = 1 << 20  # entries that a size table may have whatever the number of units
_MIN_PREDICTED = 8  # table entries below which an op costs more than the bytes it saves
_MIN_ZEROS = 32


class Reproduced(NamedTuple):
    """`encoders` are (codec id, params) in order of first use; `chosen[k]` is the encoder of
    unit k, or -1 where none gives its bytes."""

    encoders: list[tuple[str, Params]]
    chosen: list[int]


def reproduce(
    family: str,
    units: Sequence[Packed],
    plain: Callable[[Packed], bytes],
    packed: Callable[[Packed], bytes],
    each: Each,
) -> Reproduced:
    """Which encoders of a family ("zlib", "deflate12", "zstd") give back which units.

    `plain` gives what a unit's encoder was fed, exactly as the `Encode` op will feed it (a
    last unit continued by zeros); `packed` gives the encoded bytes without header or padding.
    Both are called from the threads of `each`, `plain` at least once for every unit: what it
    raises for a damaged one comes out here. Units that several encoders give are given to the
    one that most units have, so that runs stay whole.
    """
    encoders: list[tuple[str, Params]] = []
    chosen = [-1] * len(units)
    left = list(range(len(units)))
    for _ in range(_ROUNDS):
        samples = [(plain(units[k]), packed(units[k])) for k in _spread(left)]
        more = [found for found in find(family, samples) if found not in encoders]
        if not more and encoders:
            break
        missed = []
        for k, hit in _hits(units, left, _trial(more, plain, packed), each):
            if hit < 0:
                missed.append(k)
            else:
                chosen[k] = len(encoders) + hit
        encoders += more
        left = missed
        if not left or not more:
            break
    if len(encoders) > 1:
        favourite = max(range(len(encoders)), key=chosen.count)
        others = [k for k, choice in enumerate(chosen) if choice not in (favourite, -1)]
        for k, hit in _hits(units, others, _trial([encoders[favourite]], plain, packed), each):
            chosen[k] = favourite if hit == 0 else chosen[k]
    return _in_order_of_use(encoders, chosen)


def _spread(numbers: Sequence[int]) -> list[int]:
    """At most 16 of them, the first and the last included."""
    if len(numbers) <= _SAMPLES:
        return list(numbers)
    return [numbers[k * (len(numbers) - 1) // (_SAMPLES - 1)] for k in range(_SAMPLES)]


def _trial(
    encoders: Sequence[tuple[str, Params]],
    plain: Callable[[Packed], bytes],
    packed: Callable[[Packed], bytes],
) -> Callable[[Sequence[Packed]], list[int]]:
    """Work for `each`: the first of the encoders that gives each unit of a batch, or -1."""

    def one(unit: Packed) -> int:
        source = plain(unit)
        stored = packed(unit) if encoders else b""
        hits = (k for k, (name, params) in enumerate(encoders) if gives(name, params, source, stored))
        return next(hits, -1)

    return lambda batch: [one(unit) for unit in batch]


def _hits(
    units: Sequence[Packed],
    left: Sequence[int],
    trial: Callable[[Sequence[Packed]], list[int]],
    each: Each,
) -> Iterator[tuple[int, int]]:
    """(number of the unit, its hit or -1) for the units numbered `left`.

    An executor's map queues everything at once, so work is handed to it in windows."""
    batches = (left[k : k + _BATCH] for k in range(0, len(left), _BATCH))
    while window := list(islice(batches, _WINDOW)):
        results = each(trial, [[units[k] for k in batch] for batch in window])
        for batch, hits in zip(window, results, strict=True):
            yield from zip(batch, hits, strict=True)


def _in_order_of_use(encoders: Sequence[tuple[str, Params]], chosen: Sequence[int]) -> Reproduced:
    order = {k: number for number, k in enumerate(dict.fromkeys(k for k in chosen if k >= 0))}
    return Reproduced([encoders[k] for k in order], [order.get(k, -1) for k in chosen])


class UnitRows:
    """Units of one size in the order of the file, as rows.

    `guests`, `starts` and `sizes` describe each unit: its first guest byte, its first file
    byte with its header, and its size with header and padding. `unit` is the guest size of
    one, `scale` divides all sizes.

    `table` and `table_bytes` are the size table and the content of the SIZES space.

    Raises:
        Unexplained: too many units, sizes that are no multiples of `scale`, or units that
            are not in file order.
    """

    def __init__(
        self, guests: Iterable[int], starts: Iterable[int], sizes: Iterable[int], unit: int, scale: int
    ) -> None:
        self._guests, self._starts, self._sizes = _integers(guests), _integers(starts), _integers(sizes)
        self._unit = unit
        if len(self._guests) > MAX_UNITS:
            raise Unexplained(f"more than {MAX_UNITS} encoded units")
        if (self._sizes <= 0).any() or (self._sizes % scale).any():
            raise Unexplained(f"an encoded unit whose size is no multiple of {scale}")
        ends = self._starts + self._sizes
        if (self._starts[1:] < ends[:-1]).any():
            raise Unexplained("two encoded units share bytes of the file")
        # Entries of the size table from unit k to unit k+1: 1, or more where a hole lies between.
        steps = (self._guests[1:] - self._guests[:-1]) // unit
        self._same_row = (self._starts[1:] == ends[:-1]) & (steps >= 1) & (steps <= _largest_step(steps))
        steps = np.where(self._same_row, steps, 1)
        self._entries = np.concatenate(([0], np.cumsum(steps))).astype(np.int64)[: len(self._guests)]
        self._joined = np.append(self._same_row, False)
        self._rows = np.concatenate(([0], np.cumsum(~self._same_row))).astype(np.int64)
        self._order = np.argsort(self._guests, kind="stable")
        self._by_guest = self._guests[self._order] // unit
        self.table_bytes, self.table = self._table(scale)

    def _table(self, scale: int) -> tuple[bytes, SizeTable]:
        scaled = self._sizes // scale
        largest = int(scaled.max(initial=0))
        width = next(width for width in (1, 2, 4, 8) if largest < 1 << (8 * width))
        entries = np.zeros(int(self._entries[-1]) + 1 if len(self._entries) else 0, f"<u{width}")
        entries[self._entries] = scaled
        return entries.tobytes(), SizeTable(SIZES, width, scale)

    def encodes(self, chosen: Sequence[int], first_rule: int = 0) -> Iterator[tuple[int, Op]]:
        """(file offset, Encode) for each stretch of a row with one encoder; `chosen[k]` + `first_rule`
        is the encode rule of unit k, and a negative choice leaves the unit out."""
        picks = _integers(chosen)
        together = self._same_row & (picks[1:] == picks[:-1])
        for low, high in _stretches(len(picks), together):
            if picks[low] < 0:
                continue
            length = int(self._starts[high] + self._sizes[high] - self._starts[low])
            index, last = int(self._entries[low]), int(self._entries[high])
            op = Encode(length, int(picks[low]) + first_rule, int(self._guests[low]), index, last - index + 1)
            yield int(self._starts[low]), op

    def offsets(
        self, rule: OffsetRule, number: int, at: int, guest: int, raw: bytes
    ) -> Iterator[tuple[int, Op]]:
        """Ops for a table of positions: `raw` are its bytes, which lie at file offset `at`, and
        its first entry is for guest byte `guest` (a multiple of the unit).

        Yields (file offset, op), in order, for the stretches that `rule`, whose number is
        `number`, predicts to the byte, and for stretches of zero entries. What is not yielded
        is left to the caller; stretches too short to be worth an op are.
        """
        real = np.frombuffer(raw, f"{'<' if rule.endian == 'little' else '>'}u{rule.width}")
        entries, firsts, predicted = self._predict(rule, guest // self._unit, len(real))
        known = (entries >= 0) & (predicted == real.astype(np.uint64))
        # Where a unit `first` bytes into the file has entry `index`, row and base are one number.
        together = known[1:] & known[:-1] & (np.diff(entries) == 1) & (np.diff(self._row_of(entries)) == 0)
        placed: list[tuple[int, Op]] = []
        taken = np.zeros(len(real), bool)
        for low, high in _stretches(len(real), together):
            if known[low] and high - low + 1 >= _MIN_PREDICTED:
                length = (high - low + 1) * rule.width
                placed.append(
                    (at + low * rule.width, Offsets(length, number, int(entries[low]), int(firsts[low])))
                )
                taken[low : high + 1] = True
        empty = (real == 0) & ~taken
        for low, high in _stretches(len(real), empty[1:] & empty[:-1]):
            if empty[low] and high - low + 1 >= _MIN_ZEROS:
                placed.append((at + low * rule.width, zeros((high - low + 1) * rule.width)))
        return iter(sorted(placed, key=lambda item: item[0]))

    def _predict(self, rule: OffsetRule, base: int, count: int) -> tuple[Integers, Integers, Unsigned]:
        """For guest units [base, base+count): entry in the size table (-1: none), where that
        entry starts in the file, and the integer that the rule writes for it."""
        if not len(self._guests):
            none = np.full(count, -1, np.int64)
            return none, none, np.zeros(count, np.uint64)
        wanted = np.arange(base, base + count, dtype=np.int64)
        place = np.searchsorted(self._by_guest, wanted, "right") - 1
        before = self._order[np.maximum(place, 0)]
        distance = wanted - self._guests[before] // self._unit
        stored = (place >= 0) & (distance == 0)
        after = self._order[np.minimum(place + 1, len(self._order) - 1)]
        hole = (place >= 0) & ~stored & (after == before + 1) & self._joined[before]
        entries = np.where(stored | hole, self._entries[before] + distance, -1)
        starts = self._starts[np.where(hole, after, before)]
        values = _values(rule, self._starts[before], self._sizes[before])
        return entries, starts, np.where(stored, values, 0).astype(np.uint64)

    def _row_of(self, entries: Integers) -> Integers:
        unit = np.searchsorted(self._entries, entries, "right") - 1
        return self._rows[np.maximum(unit, 0)]


def _largest_step(steps: Integers) -> int:
    """The largest step within a row that leaves the size table below four entries for a unit:
    readers hold the table in memory."""
    limit = max(_FREE_ENTRIES, 4 * len(steps))
    return next(
        most for most in _MAX_STEPS if most == 1 or int(steps[(steps >= 1) & (steps <= most)].sum()) <= limit
    )


def _values(rule: OffsetRule, starts: Integers, sizes: Integers) -> Unsigned:
    """The integers that an offset rule writes, as the engine computes them; modulo 2^64,
    which is what uint64 arithmetic does, and then modulo the rule's width."""
    of = {"start": starts, "last": starts + sizes - 1, "size": sizes}
    total = np.full(len(starts), rule.constant % (1 << 64), np.uint64)
    for term in rule.terms:
        shifted = (of[term.quantity].astype(np.uint64) >> np.uint64(term.right)) << np.uint64(term.left)
        total = total - shifted if term.negative else total + shifted
    return total & np.uint64((1 << (8 * rule.width)) - 1)


def _stretches(count: int, together: Flags) -> Iterator[tuple[int, int]]:
    """(first, last) of the longest stretches of `count` items in which each item is together
    with the next."""
    if not count:
        return iter(())
    cuts = np.flatnonzero(~together)
    firsts = np.concatenate(([0], cuts + 1))
    lasts = np.concatenate((cuts, [len(together)]))
    return zip(firsts.tolist(), lasts.tolist(), strict=True)


def _integers(values: Iterable[int]) -> Integers:
    return np.fromiter(values, np.int64)
