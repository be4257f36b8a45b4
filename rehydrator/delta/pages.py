"""The index: where in the known spaces each 4 KiB page of bytes stands first.

A page costs 20 bytes (XXH3-64 without a seed, place, rolling checksum) and 4 to 8 bytes in
the checksum set. Hashes only propose; bytes are compared before anything is believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest

from rehydrator.delta.match import Matcher, covered
from rehydrator.delta.rolling import PAGE, SumSet, page_sums

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader

_READ = 1 << 20
_SPACE_SHIFT = 40
_MAX_SPACES = 1 << 23
# Disks may claim any size; what lies behind 4 PiB is not indexed.
_MAX_PAGES = 1 << _SPACE_SHIFT


class PageIndex:
    """Pages of any number of spaces, and matches of other files against them.

    When all spaces are added, several threads may match at once.
    """

    def __init__(self) -> None:
        self.readers: dict[int, Reader] = {}
        self._hashes = np.empty(0, np.uint64)
        self._places = np.empty(0, np.int64)
        self._sums = np.empty(0, np.uint32)
        self._pending: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32]]] = []
        self._set: SumSet | None = None

    def __len__(self) -> int:
        """Different pages held."""
        self._consolidate()
        return len(self._hashes)

    def add(self, space: int, reader: Reader) -> None:
        """Index the aligned pages of a space that are not zero; the first place of a page wins.

        Raises:
            ValueError: the space was added before, or its number is above 2^23.
        """
        if space in self.readers or not 0 <= space < _MAX_SPACES:
            raise ValueError(f"space {space} cannot be added")
        self.readers[space] = reader
        whole = min(reader.size // PAGE, _MAX_PAGES) * PAGE
        for start, end in covered(reader, PAGE):
            for offset in range(start, min(end, whole), _READ):
                data = reader.pread(offset, min(_READ, min(end, whole) - offset))
                self._add_pages(np.frombuffer(data, np.uint8).reshape(-1, PAGE), space, offset)
        self._consolidate()

    def match(
        self, target: Reader, unmatched: int, twin: int | None = None, rolling: bool = True
    ) -> Iterator[Op]:
        """Ops that make `target`, in order: copies from the spaces of this index, zeros, and
        copies from space `unmatched` at the same offset for what is found nowhere.

        `twin` is a space expected to hold the same bytes at the same offsets; `rolling` looks
        at every byte for data that has moved by other than multiples of 512.

        Raises:
            ValueError: the twin is not in the index.
        """
        if twin is not None and twin not in self.readers:
            raise ValueError(f"space {twin} is not in the index")
        return Matcher(self, target, unmatched, twin, rolling).ops()

    def find(self, data: memoryview, positions: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        """(position, space, offset) for each of the positions in `data` where a page begins
        whose hash is known."""
        at = np.fromiter(positions, np.int64)
        if not len(at) or not len(self._hashes):
            return
        hashes = np.fromiter((xxh3_64_intdigest(data[p : p + PAGE]) for p in at.tolist()), np.uint64)
        slots = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        known = np.flatnonzero(self._hashes[slots] == hashes)
        for position, place in zip(at[known].tolist(), self._places[slots[known]].tolist(), strict=True):
            yield position, place >> _SPACE_SHIFT, (place & ((1 << _SPACE_SHIFT) - 1)) * PAGE

    @property
    def sums(self) -> SumSet:
        """The rolling checksums of all pages."""
        if self._set is None:
            self._set = SumSet(self._sums)
        return self._set

    def _add_pages(self, pages: NDArray[np.uint8], space: int, offset: int) -> None:
        held = np.flatnonzero(pages.view(np.uint64).any(axis=1))
        pages = pages[held]
        hashes = np.fromiter((xxh3_64_intdigest(page) for page in pages), np.uint64, len(pages))
        places = (held + offset // PAGE) + (space << _SPACE_SHIFT)
        self._pending.append((hashes, places.astype(np.int64), page_sums(pages)))

    def _consolidate(self) -> None:
        """Merge what was added: sorted by hash; the first of equals stays."""
        if not self._pending:
            return
        parts = list(zip((self._hashes, self._places, self._sums), *self._pending, strict=True))
        self._pending = []
        hashes = np.concatenate(parts[0])
        self._hashes, first = np.unique(hashes, return_index=True)
        self._places = np.concatenate(parts[1])[first]
        self._sums = np.concatenate(parts[2])[first]
        self._set = None
