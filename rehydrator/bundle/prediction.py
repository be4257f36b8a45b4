"""Proving an explanation before it is taken: what it predicts is compared with the file.

Encoded units and streams were compared when their encoder was found; everything else is
compared here, so that a file that fools a format module costs a rung and not the build. What
the bundle really gives back is proven later, from the finished image, in a fresh process.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Encode, Stream, is_zeros
from rehydrator.core.reader import BytesReader, data_spans
from rehydrator.engine import Machine, ReaderSpace, join
from rehydrator.formats.explanation import FILE, GUEST, LAYER, SIZES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Explanation

_BLOCK = 1 << 20


def check_prediction(explanation: Explanation, file: Reader) -> None:
    """Compare an explanation with its file, wherever either of them has data.

    Raises:
        Unexplained: they differ; says where.
    """
    for layer in explanation.layers:
        check_prediction(layer.explanation, layer.file)
    check = _Check(explanation, file)
    here = 0
    for op in explanation.ops:
        if not (isinstance(op, Encode | Stream) or (isinstance(op, Copy) and op.space == FILE)):
            check.op(op, here)
        here += op.length
    if here != file.size:
        raise Unexplained(f"what was explained is not the file's {file.size} bytes")


class _Check:
    def __init__(self, explanation: Explanation, file: Reader) -> None:
        spaces = {
            GUEST: ReaderSpace(explanation.guest),
            SIZES: ReaderSpace(BytesReader(explanation.sizes)),
        }
        for number, layer in enumerate(explanation.layers):
            spaces[LAYER + number] = ReaderSpace(layer.file)
        self._machine = Machine(spaces, explanation.rules)
        self._file = file
        self._in_file, self._in_guest = _Spans(file), _Spans(explanation.guest)

    def op(self, op: Op, here: int) -> None:
        """Compare one op's bytes with those of the file from `here` on."""
        if here + op.length > self._file.size:
            raise Unexplained(f"an op at {here} leaves the file")
        for at in self._blocks(op, here):
            length = min(_BLOCK, op.length - at)
            if join(self._machine.run(op, at, length)) != self._file.pread(here + at, length):
                raise Unexplained(f"the bytes at {here + at} are not what was computed")

    def _blocks(self, op: Op, here: int) -> Iterable[int]:
        """Where the op's blocks begin that may not be zero on both sides."""
        every = range(0, op.length, _BLOCK)
        if len(every) == 1 or not (is_zeros(op) or (isinstance(op, Copy) and op.space == GUEST)):
            return every
        wanted = self._in_file.blocks(here, op.length)
        if isinstance(op, Copy):
            wanted |= self._in_guest.blocks(op.offset, op.length)
        return sorted(wanted)


class _Spans:
    """A reader's data spans."""

    def __init__(self, reader: Reader) -> None:
        self._spans = list(data_spans(reader))
        self._starts = [start for start, _ in self._spans]

    def blocks(self, offset: int, length: int) -> set[int]:
        """The beginnings, counted from `offset`, of its blocks that touch a span."""
        found: set[int] = set()
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while index < len(self._spans) and self._starts[index] < offset + length:
            start, size = self._spans[index]
            low, high = max(start - offset, 0), min(start + size - offset, length)
            found.update(range(low // _BLOCK * _BLOCK, high, _BLOCK))
            index += 1
        return found
