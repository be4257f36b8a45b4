"""A canonical disk that is kept as a compressed file, as it was published.

    published   the compressed file, stored as it is
    image       the file inside: one Decode for each of its parts
    guest       the disk, copied from where the image has its clusters

It costs no encoder to give that file back, and nothing that zstd would have to beat. Every other
file then reads the disk by decoding whole parts, so that they have to be of a bounded size, and
are best about as large as frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Decode, DecodeRule, zeros
from rehydrator.core.pack import MAX_FRAME
from rehydrator.core.reader import data_spans
from rehydrator.formats.explanation import GUEST, append, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rehydrator.bundle.packing import Ledger
    from rehydrator.core.ops import Op
    from rehydrator.formats.explanation import Explanation
    from rehydrator.formats.streams import Layout, Part

# The decoder of a part's family, and the hints that it takes.
_DECODERS = {"lzma2": ("lzma2", ("dict_size",)), "zstd": ("zstd.frame", ()), "deflate": ("deflate", ())}


def check(layout: Layout, explanation: Explanation) -> None:
    """Raise Unexplained, saying why, unless the compressed file can be a canonical disk."""
    guest_ops(explanation, 0)
    for part in layout.parts:
        require_decodable(part)


def image_ops(layout: Layout, published: int, ledger: Ledger) -> list[Op]:
    """The recipe of what a compressed file holds, where that file is space `published`."""
    return [
        Decode(part.plain, ledger.decode_rule(_rule(part, published)), part.at, part.packed)
        for part in layout.parts
        if part.plain
    ]


def require_decodable(part: Part) -> None:
    """Raise Unexplained unless a reader can decode the part alone."""
    require(part.family in _DECODERS, "it has parts that are not decoded alone")
    largest = max(part.plain, part.packed)
    require(
        largest <= MAX_FRAME,
        f"it has a part of {largest} bytes; at most {MAX_FRAME} are decoded to read some of them "
        "(xz: --block-size=16MiB)",
    )


def guest_ops(explanation: Explanation, image: int) -> list[Op]:
    """The recipe of the disk, where the file that holds it is space `image`.

    Raises:
        Unexplained: the file has some of the disk in another form than as it is.
    """
    placed: list[tuple[int, Copy]] = []
    here = 0
    for op in explanation.ops:
        if isinstance(op, Copy) and op.space == GUEST:
            placed.append((op.offset, Copy(op.length, image, here)))
        here += op.length
    placed.sort(key=lambda item: item[0])
    _check_coverage(explanation, placed)
    ops: list[Op] = []
    at = 0
    for start, op in placed:
        skipped = min(max(at - start, 0), op.length)
        append(ops, zeros(max(start - at, 0)))
        append(ops, Copy(op.length - skipped, image, op.offset + skipped))
        at = max(at, start + op.length)
    append(ops, zeros(explanation.guest.size - at))
    return ops


def _check_coverage(explanation: Explanation, placed: Sequence[tuple[int, Copy]]) -> None:
    """Everything of the disk that may not be zero lies in the file as it is."""
    ends = iter(placed)
    start = end = 0
    for offset, length in data_spans(explanation.guest):
        while end < offset + length:
            following = next(ends, None)
            if following is None or following[0] > max(end, offset):
                raise Unexplained(f"{explanation.format} has some of its disk encoded, not as it is")
            start = following[0]
            end = max(end, start + following[1].length)


def _rule(part: Part, published: int) -> DecodeRule:
    codec, hints = _DECODERS[part.family]
    return DecodeRule(codec, tuple((name, part.hints[name]) for name in hints), published)
