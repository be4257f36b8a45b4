"""The ops of a recipe, and the rules that they refer to.

A recipe makes the bytes of one *space* by running its ops in order; each op yields `length`
bytes. Operands are spans of other spaces, and a space may name only spaces with a lower
number, so that a recipe has no cycles by construction. The bytes stored in a pack are a
space too: a literal is a `Copy` from it (docs/decisions/002-five-ops.md).

    Copy      bytes of another space
    Series    first, first+step, first+2*step, … as fixed-width integers (zeros: step 0)
    Offsets   positions derived from the sums of a size table: grain tables, compressed L2
    Encode    units of a space through a deterministic encoder, in a row, each one framed
    Decode    the decoded bytes of something stored encoded
    Stream    what an encoder makes of a long run of bytes: `.xz` blocks, gzip members

Nothing here knows a disk format. bundle/FORMAT.md is the normative text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal as OneOf

Endian = OneOf["little", "big"]

MAX_OPS_PER_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Copy:
    """`length` bytes of space `space` from `offset`."""

    length: int
    space: int
    offset: int


@dataclass(frozen=True, slots=True)
class Series:
    """length/width integers of `width` bytes; the k-th is (first + k*step) mod 2^(8*width)."""

    length: int
    first: int
    step: int
    width: int
    endian: Endian


@dataclass(frozen=True, slots=True)
class Offsets:
    """Positions of units in a row, by offset rule `rule`.

    length/rule.width integers; the k-th describes unit `index`+k of the rule's size table,
    where unit `index` starts at `first` and each later one where the one before it ends.
    """

    length: int
    rule: int
    index: int
    first: int


@dataclass(frozen=True, slots=True)
class Encode:
    """`count` units in a row by encode rule `rule`.

    Unit k is the rule's `unit` bytes of its input space from `offset` + k*unit (continued by
    zeros past the end of the space), encoded and framed to exactly the size that the rule's
    size table gives for entry `index`+k. `length` is the sum of those sizes.
    """

    length: int
    rule: int
    offset: int
    index: int
    count: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Decoded bytes, by decode rule `rule`: `stored` bytes of the rule's input space from
    `offset` decode to exactly `length` bytes, with `prefix_length` bytes of the rule's prefix
    space from `prefix_offset` as the decoder's prefix (none: 0).
    """

    length: int
    rule: int
    offset: int
    stored: int
    prefix_offset: int = 0
    prefix_length: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """Encoded bytes that can only be made from their beginning, by stream rule `rule`: the
    rule's encoder turns the `plain` bytes of its input space from `offset` into exactly
    `length` bytes.
    """

    length: int
    rule: int
    offset: int
    plain: int


Op = Copy | Series | Offsets | Encode | Decode | Stream


def zeros(length: int) -> Series:
    """`length` zero bytes."""
    return Series(length, 0, 0, 1, "little")


def is_zeros(op: Op) -> bool:
    """True for a series that is zero throughout."""
    return isinstance(op, Series) and not op.first and not op.step


@dataclass(frozen=True, slots=True)
class SizeTable:
    """Sizes of units: entry k is the k-th little-endian integer of `width` bytes of space
    `space`, times `scale` bytes. A size of 0 is a unit that is not stored: `Encode` makes
    nothing for it, and `Offsets` writes 0.
    """

    space: int
    width: int
    scale: int


Quantity = OneOf["start", "last", "size"]


@dataclass(frozen=True, slots=True)
class Term:
    """(quantity >> right) << left, added, or subtracted where `negative`.

    `start` is a unit's first byte, `last` its last byte, `size` their distance plus one.
    """

    quantity: Quantity
    right: int
    left: int
    negative: bool = False


@dataclass(frozen=True, slots=True)
class OffsetRule:
    """How a unit's position is written: (constant + terms) mod 2^(8*width), `width` bytes."""

    table: int
    width: int
    endian: Endian
    constant: int
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class FrameField:
    """An integer written into a unit's header at byte `at`: the unit's offset in the input
    space >> `shift` ("source"), or the length of the encoded bytes ("length").
    """

    at: int
    width: int
    endian: Endian
    quantity: OneOf["source", "length"]
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Framing:
    """What stands around the encoded bytes of a unit: a header template with fields written
    into it, before; zero bytes up to a multiple of `align`, behind.
    """

    header: bytes = b""
    fields: tuple[FrameField, ...] = ()
    align: int = 1


@dataclass(frozen=True, slots=True)
class EncodeRule:
    """`codec` with `params`, over units of `unit` bytes of space `input`, sizes in `table`."""

    codec: str
    params: tuple[tuple[str, int], ...]
    input: int
    unit: int
    table: int
    framing: Framing = field(default_factory=Framing)


@dataclass(frozen=True, slots=True)
class DecodeRule:
    """`codec` with `params`, over bytes of space `input`; `prefix` is the space of prefixes."""

    codec: str
    params: tuple[tuple[str, int], ...]
    input: int
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class StreamRule:
    """The stream encoder `codec` with `params`, over bytes of space `input`."""

    codec: str
    params: tuple[tuple[str, int], ...]
    input: int


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that ops refer to by number."""

    tables: tuple[SizeTable, ...] = ()
    offsets: tuple[OffsetRule, ...] = ()
    encodes: tuple[EncodeRule, ...] = ()
    decodes: tuple[DecodeRule, ...] = ()
    streams: tuple[StreamRule, ...] = ()
