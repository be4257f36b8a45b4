"""Which pages of a disk its frames should stand behind.

A frame can refer to what stands in itself, and in the frame in front of its pack. There belongs
what most other frames have once more: bits of code, tables and texts, at any place of a page.
Such places are sampled by their content (one in 256, by the first 8 of 24 bytes), so that equal
bytes are sampled wherever they stand; a page is worth the number of other frames that have what
stands in it first.

Measured on the os release, its pages in frames of 16 MiB: 178.6 MB at level 19; 167.7 behind such a
frame of 16 MiB (docs/decisions/017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rehydrator.bundle.survey import PAGE, page_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from rehydrator.bundle.survey import Survey
    from rehydrator.core.reader import Reader

    Numbers = NDArray[np.uint64]

_BLOCK = 1 << 20
_MOST_SAMPLES = 4 << 20  # each takes 50 bytes of memory for a moment
_FEWEST_FRAMES = 4

_ONE = np.uint64(1)
# Odd numbers without a pattern: what they multiply is spread over the upper bits.
_SPREAD = tuple(np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


def common_pages(
    guest: Reader, found: Survey, frame_size: int, each: Callable[..., Iterable[Any]]
) -> list[int]:
    """Numbers of the pages, ascending, that the first frame of a disk's pack should hold: at most
    `frame_size` bytes, none where the disk has too few frames. `each` maps, in threads or not."""
    if found.data < _FEWEST_FRAMES * frame_size:
        return []
    bits = 8
    while found.data >> bits > _MOST_SAMPLES:
        bits += 1
    parts = list(each(lambda start: _samples(guest, start, bits), page_blocks(guest)))
    prints, pages = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    worth = _worth(prints, np.searchsorted(found.pages, pages), frame_size // PAGE, len(found.pages))
    best = np.argsort(-worth, kind="stable")[: frame_size // PAGE]
    return [int(page) for page in np.sort(found.pages[best[worth[best] > 0]])]


def _samples(guest: Reader, start: int, bits: int) -> tuple[Numbers, Numbers]:
    """Fingerprints of sampled places in the block from `start` on, in order, and the pages that they
    are in."""
    data = guest.pread(start, min(_BLOCK, guest.size - start))
    found = list(_sampled(data, bits))
    prints = np.concatenate([each for each, _ in found]) if found else np.empty(0, np.uint64)
    places = np.concatenate([each for _, each in found]) if found else np.empty(0, np.int64)
    order = np.argsort(places)
    return prints[order], (start + places[order]).astype(np.uint64) // np.uint64(PAGE)


def _sampled(data: bytes, bits: int) -> Iterator[tuple[Numbers, NDArray[np.int64]]]:
    limit = np.uint64((1 << (64 - bits)) - 1)
    for shift in range(8):
        count = (len(data) - shift) // 8 - 2
        if count < 1:
            return
        words = np.frombuffer(data, "<u8", count + 2, shift)
        spread = words[:count] * _SPREAD[0]
        at = np.flatnonzero(spread - _ONE < limit)  # not zeros: their number is large
        at = at[words[at] != words[at + 1]]  # nor other runs
        yield spread[at] ^ words[at + 1] * _SPREAD[1] ^ words[at + 2] * _SPREAD[2], at * 8 + shift


def _worth(prints: Numbers, pages: NDArray[np.int64], per_frame: int, count: int) -> NDArray[np.float64]:
    """For each of `count` pages: of the places that stand in it first, the other frames that have
    them, added up."""
    frames = count // per_frame + 1
    _, first, number = np.unique(prints, return_index=True, return_inverse=True)
    pairs = np.unique(number * frames + pages // per_frame)
    others = np.bincount(pairs // frames, minlength=len(first)) - 1
    worth: NDArray[np.float64] = np.zeros(count)
    np.add.at(worth, pages[first], others)
    return worth
