"""What a guest disk consists of: the hash of every page that is not zero. From it follow the
groups of siblings, their canonical disks, and which pages stand more than once."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from rehydrator.core.reader import data_spans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rehydrator.core.reader import Reader

PAGE = 4096
_BLOCK = 1 << 20

# Siblings share at least this much of the smaller disk's pages at the same offsets.
SIBLING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Survey:
    """Page numbers (ascending) and xxh3_64 hashes of the pages that are not zero."""

    pages: NDArray[np.uint64]
    hashes: NDArray[np.uint64]

    @property
    def data(self) -> int:
        """Bytes in pages that are not zero."""
        return len(self.pages) * PAGE

    def share(self, other: Survey) -> float:
        """The part of the smaller disk's pages that are equal at the same offsets."""
        smaller = min(len(self.pages), len(other.pages))
        if not smaller:
            return 0.0
        _, mine, theirs = np.intersect1d(self.pages, other.pages, assume_unique=True, return_indices=True)
        return int(np.count_nonzero(self.hashes[mine] == other.hashes[theirs])) / smaller

    def repeated(self) -> set[int]:
        """Hashes that stand more than once."""
        hashes, counts = np.unique(self.hashes, return_counts=True)
        return {int(each) for each in hashes[counts > 1]}


def survey(reader: Reader) -> Survey:
    """Survey a disk; only its data spans are read."""
    # A list of Python's integers would take five times as much; a disk has millions of pages.
    pages, hashes = array("Q"), array("Q")
    for page, data in nonzero_pages(reader):
        pages.append(page)
        hashes.append(xxhash.xxh3_64_intdigest(data))
    return Survey(np.frombuffer(pages, np.uint64), np.frombuffer(hashes, np.uint64))


def nonzero_pages(reader: Reader) -> Iterator[tuple[int, memoryview]]:
    """(page number, bytes) of the pages that are not zero, ascending; the last may be short."""
    for start in page_blocks(reader):
        data = reader.pread(start, min(_BLOCK, reader.size - start))
        whole = len(data) // PAGE
        view = memoryview(data)
        words = np.frombuffer(data, dtype=np.uint64, count=whole * PAGE // 8).reshape(whole, PAGE // 8)
        for page in np.flatnonzero(words.any(axis=1)):
            at = int(page) * PAGE
            yield start // PAGE + int(page), view[at : at + PAGE]
        if any(view[whole * PAGE :]):
            yield start // PAGE + whole, view[whole * PAGE :]


def page_blocks(reader: Reader) -> Iterator[int]:
    """Where the aligned 1 MiB blocks begin that touch a data span, each once."""
    done = 0
    for offset, length in data_spans(reader):
        first = max(done, offset // _BLOCK * _BLOCK)
        for start in range(first, offset + length, _BLOCK):
            yield start
            done = start + _BLOCK
