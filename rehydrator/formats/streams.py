"""Compressed files as a row of encoded streams: where each lies, and which bytes it holds.

A reader of a compressed container (gzip, xz, zstd, bzip2, a zip of one member) gives a `Layout`.
What no part of it covers (headers, checks, indexes, padding, trailing bytes) is kept as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Part:
    """`packed` bytes at `at` of the file decode to the `plain` bytes at `plain_at` of its content.

    `family` names what can decode it: "deflate" (raw), "lzma2" (raw), "zstd" (a frame), "bzip2" (a
    stream). `hints` are what headers say of the encoder: "dict_size", "xfl", "os", "level".
    """

    at: int
    packed: int
    plain_at: int
    plain: int
    family: str
    hints: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """A compressed file of `size` bytes: its parts in order, which tile `plain` bytes."""

    container: str
    size: int
    plain: int
    parts: Sequence[Part]
    facts: Mapping[str, str]
