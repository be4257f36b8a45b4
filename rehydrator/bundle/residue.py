"""Storing what no match explains: each unmatched stretch is compressed against its
neighbourhood, the bytes of other spaces that stand where it stands.

For a stamped sibling the neighbourhood is the canonical disk around the changed pages: ten
changed pages of 4 KiB cost 1 to 2 KiB in all (docs/benchmarks.md). Stretches without a neighbour,
or too long for one, go into ordinary frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backports import zstd

from rehydrator.core.ops import Copy, Decode, DecodeRule
from rehydrator.core.pack import frame_options
from rehydrator.core.zstd_decoder import Prefix, referred

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rehydrator.bundle.packing import Ledger, PackWriter
    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader

_MARGIN = 8 << 10
_MAX_NEIGHBOURHOOD = 256 << 10
_MAX_UNIT = 4 << 20
_MAX_PREFIX = 32 << 20
_MAX_GAP = 1 << 20
_LEVEL = 19
_BLOCK = 4 << 20

Neighbour = tuple[int, int, int]


class Residue:
    """Settles the unmatched copies of one artifact's recipes into its packs."""

    def __init__(self, ledger: Ledger, writer: PackWriter, spaces: dict[int, Reader]) -> None:
        """`spaces` are readers of the spaces that neighbourhoods may come from."""
        self._ledger, self._writer, self._spaces = ledger, writer, spaces

    def settle(self, ops: Sequence[Op], reader: Reader, unmatched: int) -> list[Op]:
        """The ops with every copy from `unmatched` (the bytes of `reader`) stored and replaced."""
        places: dict[int, list[Op]] = {}
        for group in self._groups(ops, unmatched):
            self._store_group(group, ops, reader, places)
        settled: list[Op] = []
        for number, op in enumerate(ops):
            if isinstance(op, Copy) and op.space == unmatched and number not in places:
                places[number] = self._literal(op, reader)
            settled += places.get(number, [op])
        return settled

    def _literal(self, op: Copy, reader: Reader) -> list[Op]:
        made: list[Op] = []
        for at in range(op.offset, op.offset + op.length, _BLOCK):
            data = reader.pread(at, min(_BLOCK, op.offset + op.length - at))
            made += [Copy(length, space, offset) for space, offset, length in self._writer.append(data)]
        return made

    def _groups(self, ops: Sequence[Op], unmatched: int) -> Iterator[list[int]]:
        """Numbers of unmatched ops that have neighbours, in groups of a bounded size."""
        group: list[int] = []
        held = 0
        for number, op in enumerate(ops):
            fits = isinstance(op, Copy) and op.space == unmatched and op.length <= _MAX_GAP
            if not fits or not self._neighbours(ops, number):
                continue
            if held + op.length > _MAX_UNIT:
                yield group
                group, held = [], 0
            group.append(number)
            held += op.length
        if group:
            yield group

    def _neighbours(self, ops: Sequence[Op], number: int) -> list[Neighbour]:
        """Spans (space, offset, length) beside which the op stands."""
        length = min(ops[number].length, _MAX_NEIGHBOURHOOD)
        found: list[Neighbour] = []
        before = ops[number - 1] if number else None
        after = ops[number + 1] if number + 1 < len(ops) else None
        if isinstance(before, Copy) and before.space in self._spaces:
            at = before.offset + before.length
            found.append(self._clipped(before.space, at - _MARGIN, at + length + _MARGIN))
        if isinstance(after, Copy) and after.space in self._spaces:
            at = after.offset
            found.append(self._clipped(after.space, at - length - _MARGIN, at + _MARGIN))
        return found

    def _clipped(self, space: int, low: int, high: int) -> Neighbour:
        low, high = max(low, 0), min(high, self._spaces[space].size)
        return space, low, high - low

    def _store_group(
        self, group: list[int], ops: Sequence[Op], reader: Reader, places: dict[int, list[Op]]
    ) -> None:
        gaps = [op for number in group if isinstance(op := ops[number], Copy)]
        residue = b"".join(reader.pread(op.offset, op.length) for op in gaps)
        spans = _merged([each for number in group for each in self._neighbours(ops, number)])
        prefix = b"".join(self._spaces[space].pread(at, length) for space, at, length in spans)
        plain = zstd.compress(residue, options=frame_options(_LEVEL, len(residue)))
        packed = _compress(residue, prefix) if prefix else plain
        if len(packed) + 64 >= len(plain):
            return
        prefixes = self._writer.add_recipe([Copy(length, space, at) for space, at, length in spans])
        space, at = self._writer.append_frame(packed)
        rule = self._ledger.decode_rule(DecodeRule("zstd", (), space, prefixes))
        decode = Decode(len(residue), rule, at, len(packed), 0, len(prefix))
        decoded = self._writer.add_recipe([decode])
        done = 0
        for number, op in zip(group, gaps, strict=True):
            places[number] = [Copy(op.length, decoded, done)]
            done += op.length


def _merged(spans: list[Neighbour]) -> list[Neighbour]:
    """Overlapping spans joined, ascending, at most _MAX_PREFIX bytes in all."""
    merged: list[Neighbour] = []
    total = 0
    for space, at, length in sorted(spans):
        last = merged[-1] if merged else None
        if last and last[0] == space and at <= last[1] + last[2]:
            grown = max(last[1] + last[2], at + length) - last[1]
            total += grown - last[2]
            merged[-1] = (space, last[1], grown)
        elif total + length <= _MAX_PREFIX and length:
            merged.append((space, at, length))
            total += length
    return merged


def _compress(residue: bytes, prefix: bytes) -> bytes:
    options = frame_options(_LEVEL, len(prefix) + len(residue))
    options[zstd.CompressionParameter.enable_long_distance_matching] = 1
    return zstd.compress(residue, options=options, zstd_dict=referred(Prefix(prefix)))
