"""SHA-256 chaining values at some places of a file, so that its parts can be checked side by side.

A part is hashed from the value before it, and must come to the value behind it; the first value is
the standard's, and the last is the published digest. So a wrong value makes the check fail, and
never makes it pass: the values need no trust (bundle/FORMAT.md, section 4.5).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from rehydrator.bundle.manifest import CHAIN_RECORD, MAX_BOUNDARIES
from rehydrator.codecs import sha256
from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Sequence

# Values are recorded at its multiples: a part below it is not worth a thread.
STEP: Final = 4 << 20

# What a byte that is not zero costs, to one that is: measured, decoding, hashing and writing
# against hashing alone.
_DATA_COST = 4

_OFFSET = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place in a file, a multiple of 64 bytes, and the chaining value of all before it."""

    offset: int
    state: bytes


class Recorder:
    """The SHA-256 of a file that is read once, with chaining values on the way where they can be had
    (codecs/sha256)."""

    def __init__(self) -> None:
        self._chained = sha256.Sha256() if sha256.is_available() else None
        self._plain = hashlib.sha256()
        self._size = self._cost = 0
        self._recorded: list[tuple[int, Boundary]] = []

    def update(self, block: bytes | memoryview, data: int) -> None:
        """Go on with a block, `data` bytes of which are not zero."""
        if self._chained is None:
            self._plain.update(block)
            return
        left = memoryview(block)
        while left:
            part = left[: STEP - self._size % STEP]
            self._chained.update(part)
            self._size += len(part)
            self._cost += len(part) + (_DATA_COST - 1) * data * len(part) // len(block)
            if not self._size % STEP:
                self._recorded.append((self._cost, Boundary(self._size, self._chained.state())))
            left = left[len(part) :]

    def hexdigest(self) -> str:
        """The digest, after the last block."""
        return self._plain.hexdigest() if self._chained is None else self._chained.hexdigest()

    def boundaries(self) -> tuple[Boundary, ...]:
        """At most 128 places, with about as much work between each two."""
        least = max(-(-self._cost // MAX_BOUNDARIES), STEP * _DATA_COST)
        chosen, last = [], 0
        for cost, boundary in self._recorded:
            if cost - last >= least and boundary.offset < self._size:
                chosen.append(boundary)
                last = cost
        return tuple(chosen[:MAX_BOUNDARIES])


def encode(boundaries: Sequence[Boundary]) -> bytes:
    """Their stored form: for each the offset (u64, little endian) and the 32 bytes of the value."""
    return b"".join(_OFFSET.pack(each.offset) + each.state for each in boundaries)


def decode(data: bytes, size: int, what: str) -> tuple[Boundary, ...]:
    """The boundaries within a file of `size` bytes.

    Raises:
        HostileInput: they are not in order, or not at whole blocks inside of it.
    """
    parts = (data[at : at + CHAIN_RECORD] for at in range(0, len(data), CHAIN_RECORD))
    boundaries = tuple(Boundary(_OFFSET.unpack_from(part)[0], part[_OFFSET.size :]) for part in parts)
    ends = [0, *(each.offset for each in boundaries), size]
    if any(low >= high for low, high in pairwise(ends)) or any(end % sha256.BLOCK for end in ends[:-1]):
        raise HostileInput(f"{what}: its chaining values are out of order")
    return boundaries


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a file: `length` bytes from `offset`, the chaining value before it, and that behind
    it ("": it is the last, and comes to the digest)."""

    offset: int
    length: int
    before: bytes
    behind: bytes


def segments(boundaries: Sequence[Boundary], size: int) -> list[Segment]:
    """The parts between the boundaries, in order; one where there are none."""
    all_of = [Boundary(0, sha256.INITIAL), *boundaries, Boundary(size, b"")]
    return [
        Segment(low.offset, high.offset - low.offset, low.state, high.state) for low, high in pairwise(all_of)
    ]


class SegmentHash:
    """The check of one segment; its bytes come in order."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        # Without a chaining value before it, hashlib will do, wherever we are.
        self._state = sha256.Sha256(segment.before, segment.offset) if sha256.is_available() else None
        self._plain = hashlib.sha256()
        assert self._state or (not segment.offset and not segment.behind)

    def update(self, data: bytes | memoryview) -> None:
        """Hash more of it."""
        (self._state or self._plain).update(data)

    def finish(self, digest: str) -> str:
        """Compare; "" where it is right, else what came out. `digest` is that of the file, in hex."""
        if not self._segment.behind:
            made = (self._state or self._plain).hexdigest()
            return "" if made == digest else made
        assert self._state
        state = self._state.state()
        return "" if state == self._segment.behind else state.hex()
