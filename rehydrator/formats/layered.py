"""A file that is no disk, with compressed parts in it: an initramfs of several archives.

Each part that an encoder gives again is a layer; what they hold, one after the other, is the
`guest`, to be found elsewhere. All else stays FILE.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import Copy, Rules, Stream, StreamRule
from rehydrator.core.reader import WindowReader, check_span, data_spans
from rehydrator.formats import initramfs
from rehydrator.formats.explanation import FILE, GUEST, LAYER, Explanation, Layer, OpsBuilder, require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rehydrator.core.reader import Reader, SparseReader
    from rehydrator.formats.explanation import Unpack, Unpacked

_STREAMS = frozenset({"gzip", "xz", "zstd", "bzip2"})


def explain_initramfs(file: Reader, unpack: Unpack) -> Explanation:
    """An initramfs over what its compressed archives hold; what comes behind the last of them that is
    one is kept as it is, as the kernel does not look at it either.

    Raises:
        Unexplained: it is none, or none of its archives is compressed by a known encoder.
    """
    found: list[tuple[int, Unpacked]] = []
    require(bool(initramfs.recognise(file)), "no initramfs")
    why = "no archive in it is compressed by an encoder that is known here"
    try:
        for segment in initramfs.segments(file):
            if segment.kind in _STREAMS:
                unpacked = _unpacked(WindowReader(file, segment.offset, segment.length, "archive"), unpack)
                found += [(segment.offset, unpacked)] if unpacked else []
    except HostileInput as error:
        why = f"initramfs: {error}"
    require(bool(found), why)
    return _explanation(file, found)


def _unpacked(archive: Reader, unpack: Unpack) -> Unpacked | None:
    try:
        return unpack(archive)
    except HostileInput:
        return None


def _explanation(file: Reader, found: Sequence[tuple[int, Unpacked]]) -> Explanation:
    guest = _Joined([unpacked.plain for _, unpacked in found])
    ops = OpsBuilder(file.size)
    rules: list[StreamRule] = []
    facts: dict[str, str] = {}
    layers: list[Layer] = []
    for number, (at, unpacked) in enumerate(found):
        here = at
        for op in unpacked.ops:
            if isinstance(op, Stream):
                rule = unpacked.streams[op.rule]
                rules.append(StreamRule(rule.codec, rule.params, LAYER + number))
                ops.add(here, Stream(op.length, len(rules) - 1, op.offset, op.plain))
            elif isinstance(op, Copy) and op.space == FILE:
                ops.add(here, Copy(op.length, FILE, here))
            here += op.length
        size = unpacked.plain.size
        inner = [Copy(size, GUEST, guest.starts[number])] if size else []
        layers.append(Layer(unpacked.plain, Explanation("archive", guest, inner)))
        facts |= unpacked.encoders
    return Explanation(
        "initramfs", guest, ops.finish(), Rules(streams=tuple(rules)), b"", facts, tuple(layers)
    )


class _Joined:
    """Readers one after the other, as one; `starts` are where they begin."""

    def __init__(self, readers: Sequence[SparseReader]) -> None:
        self._readers = readers
        self.starts = list(accumulate((reader.size for reader in readers), initial=0))
        self.size = self.starts.pop()

    def pread(self, offset: int, length: int) -> bytes:
        check_span(offset, length, self.size, "archives")
        parts, end = [], offset + length
        index = max(bisect_right(self.starts, offset) - 1, 0)
        while offset < end:
            reader, start = self._readers[index], self.starts[index]
            stop = min(end, start + reader.size)
            parts.append(reader.pread(offset - start, stop - offset))
            offset, index = stop, index + 1
        return b"".join(parts)

    def data_spans(self) -> Iterator[tuple[int, int]]:
        for reader, start in zip(self._readers, self.starts, strict=True):
            for offset, length in data_spans(reader):
                yield start + offset, length
