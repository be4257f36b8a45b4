"""A rolling checksum at every byte, a block at a time, and the set of checksums to look for.

The checksum of a page t is sum(t[k] * BASE^k) mod 2^32. Over prefix sums s of t[k] * BASE^k,
the page that begins at i has (s[i+PAGE] - s[i]) * BASE^-i, which is four array operations a
block (0.7 ns a byte). It only finds candidates: whoever uses one compares bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Sums = NDArray[np.uint32]

PAGE = 4096
# Windows looked at in one go: 128 KiB arrays stay in the second-level cache.
BLOCK = 32 << 10

# Any odd number has powers and an inverse; this one is 2^32 over the golden ratio.
_BASE = 0x9E3779B1
_SPREAD = np.uint32(0x85EBCA6B)
_SLOTS_PER_SUM = 32
_MIN_BITS, _MAX_BITS = 10, 32


def _powers(base: int, count: int) -> Sums:
    factors = np.full(count, base, np.uint32)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint32)


_POWERS = _powers(_BASE, BLOCK + PAGE)
_INVERSES = _powers(pow(_BASE, -1, 1 << 32), BLOCK)


def page_sums(pages: Bytes) -> Sums:
    """The checksum of each row of an array of pages."""
    sums: Sums = np.einsum("ij,j->i", pages.astype(np.uint32), _POWERS[:PAGE])
    return sums


def rolling_sums(data: Bytes) -> Sums:
    """The checksum of every window of PAGE bytes; at most BLOCK windows."""
    prefix = np.zeros(len(data) + 1, np.uint32)
    np.cumsum(data * _POWERS[: len(data)], dtype=np.uint32, out=prefix[1:])
    return (prefix[PAGE:] - prefix[:-PAGE]) * _INVERSES[: len(data) + 1 - PAGE]


class SumSet:
    """A set of checksums that may contain a few others too: a Bloom filter of two probes.

    32 bits a checksum: the first probe leaves 3 % of all windows, the second 0.1 %.
    """

    def __init__(self, sums: Sums) -> None:
        bits = (len(sums) * _SLOTS_PER_SUM).bit_length()
        bits = min(max(bits, _MIN_BITS), _MAX_BITS)
        self._shift = np.uint32(32 - bits)
        self._bits = np.zeros(1 << (bits - 3), np.uint8)
        for probe in (sums, sums * _SPREAD):
            slot = probe >> self._shift
            np.bitwise_or.at(self._bits, slot >> np.uint32(3), _bit(slot))

    def positions(self, sums: Sums) -> NDArray[np.intp]:
        """Where in `sums` members of the set stand (and a few that are none)."""
        first = np.flatnonzero(self._probe(sums))
        return first[np.flatnonzero(self._probe(sums[first] * _SPREAD))]

    def _probe(self, sums: Sums) -> NDArray[np.bool_]:
        slot = sums >> self._shift
        held: Bytes = self._bits.take((slot >> np.uint32(3)).astype(np.intp)) & _bit(slot)
        return held.astype(np.bool_)


def _bit(slot: Sums) -> Bytes:
    return np.left_shift(np.uint8(1), (slot & np.uint32(7)).astype(np.uint8))
