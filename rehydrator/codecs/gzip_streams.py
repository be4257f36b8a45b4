"""Which encoder wrote a gzip member's deflate data, and the same data once more, as a stream.

An encoder makes raw deflate data; what is around it (header, CRC-32, ISIZE) is for the caller
to keep. The trial needs a prefix of a member only, because deflate is written in blocks: what an
encoder wrote before the end of a block does not depend on what came later.

Facts (measured; zlib 1.2.13, zlib-ng 2.3.3, gzip 1.12, pigz 2.6):

- zlib's bytes do not depend on how its input is cut into pieces. zlib-ng's do, at levels 1, 5
  and 6: the size of the pieces is a parameter there.
- pigz's bytes do not depend on the number of threads, not even on there being one. Its first
  128 KiB are as zlib writes them, so a hit on a prefix must reach beyond those.
- GNU gzip ends some blocks where zlib does not, so that only its program gives its bytes. Until
  then they may be those of zlib with memLevel 9: 226 KB were, on text at level 9.
- Of a prefix of the input, all but the last one or two blocks are determined: 54 of 101 KB packed
  (256 KiB of text to `gzip -6`), 341 of 394 KB (1 MiB), nothing at 128 KiB; of zeros, which have
  the longest blocks, 8 KiB packed (9 MiB). Wrong encoders agree for a whole number of blocks too
  (neighbouring levels often), otherwise for at most 21 bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from rehydrator.codecs import Params

Filter = Callable[[Sequence[str], Iterable[bytes]], Iterator[bytes]]
"""Runs a program: feeds it the bytes while it yields what the program writes; ends the program
when it is closed, and raises where that fails. GZIP and PIGZ, which hold options of gzip and
pigz, are empty in its environment."""

LEVELS: Final = (6, 9, 1, 5, 4, 3, 7, 8, 2)
"""Likeliest first: the default of gzip and zlib, the best, the fastest."""

NG_PIECES: Final = (64 << 10, 16 << 10, 32 << 10, 8 << 10, 128 << 10, 256 << 10, 1 << 20)
"""Bytes: buffer sizes of copying loops (shutil, zlib's gzwrite, Python's GzipFile, ...)."""

MIN_AGREED: Final = 64
"""Bytes: fewer in common are no hit, unless they are the whole stream: chance gives 21 (measured)."""

_PIECE = 64 << 10
_FIXED_HEADER, _TRAILER = 10, 8
_NG_PIECED = (1, 5, 6)


class Encoder(Protocol):
    """One way to write deflate data."""

    @property
    def name(self) -> str: ...

    @property
    def params(self) -> Params: ...

    def encode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The raw deflate data of the plain `chunks`, which are taken as they are needed.

        Raises:
            HostileInput: a program's output is not what it was run for.
        """
        ...


@dataclass(frozen=True, slots=True)
class Library:
    """zlib or zlib-ng, with pieces of `piece` bytes handed to it."""

    name: str
    level: int
    memlevel: int = 8
    piece: int = _PIECE

    @property
    def params(self) -> Params:
        return (("level", self.level), ("memlevel", self.memlevel), ("piece", self.piece))

    def encode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        deflate = self._module().compressobj(self.level, zlib.DEFLATED, -zlib.MAX_WBITS, self.memlevel)
        for piece in _pieces(chunks, self.piece):
            packed: bytes = deflate.compress(piece)
            if packed:
                yield packed
        yield deflate.flush()

    def _module(self) -> Any:
        if self.name == "zlib":
            return zlib
        # Imported late: a stream that zlib-ng did not write never needs it.
        from zlib_ng import zlib_ng

        return zlib_ng


@dataclass(frozen=True, slots=True)
class Program:
    """A program that reads plain bytes and writes one gzip member; `run` is handed in."""

    name: str
    flags: tuple[str, ...]
    params: Params
    run: Filter

    def encode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        return _body(self.run((self.name, "-c", "-n", *self.flags), chunks), self.name)


class Hit(NamedTuple):
    """An encoder whose data is the same for the first `agreed` bytes."""

    encoder: Encoder
    agreed: int


def libraries() -> list[Encoder]:
    """The libraries zlib and zlib-ng, likeliest first."""
    old: list[Encoder] = [Library("zlib", level, mem) for mem in (8, 9) for level in LEVELS]
    new: list[Encoder] = [
        Library("zlib-ng", level, mem, piece)
        for mem in (8, 9)
        for level in LEVELS
        for piece in (NG_PIECES if level in _NG_PIECED else NG_PIECES[:1])
    ]
    return old + new


def gnu_gzip(run: Filter) -> list[Encoder]:
    """GNU gzip, plain and with --rsyncable, likeliest first."""
    return [
        Program("gzip", (f"-{level}", *extra), (("level", level), ("rsyncable", len(extra))), run)
        for extra in ((), ("--rsyncable",))
        for level in LEVELS
    ]


def pigz(run: Filter) -> list[Encoder]:
    """The program pigz: blocks of 128 KiB, plain, or independent (-i), or --rsyncable (-R)."""
    return [
        # One thread: the bytes are the same, and the memory is bounded whatever the machine.
        Program("pigz", ("-p", "1", f"-{level}", *extra), (*params, ("level", level)), run)
        for extra, params in (
            ((), (("independent", 0), ("rsyncable", 0))),
            (("-i",), (("independent", 1), ("rsyncable", 0))),
            (("-R",), (("independent", 0), ("rsyncable", 1))),
        )
        for level in LEVELS
    ]


def likeliest(encoders: Iterable[Encoder], xfl: int, system: int) -> list[Encoder]:
    """The encoders in the order in which a member's header makes them likely.

    XFL is 2 for the slowest level and 4 for the fastest (RFC 1952, 2.3.1), which gzip, pigz,
    zlib and Python write so; OS is 3 (Unix) for those, and 255 (unknown) for Python's GzipFile,
    which is zlib.
    """
    by_flag = {2: (9,), 4: (1,)}
    levels = by_flag.get(xfl, (6, 5, 4, 3, 7, 8, 2))
    first = ("zlib", "zlib-ng") if system == 255 else ("gzip",)

    def unlikely(encoder: Encoder) -> tuple[bool, bool]:
        return dict(encoder.params)["level"] not in levels, encoder.name not in first

    return sorted(encoders, key=unlikely)


def find(plain: bytes, packed: bytes, encoders: Iterable[Encoder], *, whole: bool) -> list[Hit]:
    """The encoders that may have written the stream that begins with `plain` and `packed`, those
    that agree longest first, and in the given order among those that agree as long.

    With `whole`, the samples are the stream, and a hit reproduces it. Otherwise a hit agrees for
    64 bytes and half as long as the longest: the right encoder agrees up to the end of its last
    complete block, but a hit is a guess, which `prove` decides.
    """
    tried = [Hit(encoder, _agreed(encoder, plain, packed)) for encoder in encoders]
    if whole:
        return [hit for hit in tried if hit.agreed == len(packed)]
    longest = max((hit.agreed for hit in tried), default=0)
    hits = [hit for hit in tried if hit.agreed >= max(MIN_AGREED, longest // 2)]
    return sorted(hits, key=lambda hit: -hit.agreed)


def prove(encoder: Encoder, plain: Iterable[bytes], packed: Iterable[bytes]) -> int | None:
    """None where the encoder turns the plain bytes into exactly the packed ones; otherwise the
    first offset at which they differ, or at which the shorter ends."""
    return first_difference(encoder.encode(plain), packed)


def first_difference(ours: Iterator[bytes], theirs: Iterable[bytes]) -> int | None:
    """The first offset at which two streams differ or one of them ends; None if they are equal.
    `ours` is closed, so that a program behind it ends there."""
    offset = 0
    left = b""
    try:
        for right in filter(None, theirs):
            at = 0
            while at < len(right):
                left = left or next(filter(None, ours), b"")
                length = min(len(left), len(right) - at)
                if not length or left[:length] != right[at : at + length]:
                    return offset + _common(left, right[at:])
                offset, at, left = offset + length, at + length, left[length:]
        return offset if left or next(filter(None, ours), b"") else None
    finally:
        close = getattr(ours, "close", None)
        if close is not None:
            close()


def _agreed(encoder: Encoder, plain: bytes, packed: bytes) -> int:
    """How many bytes are the same; short of all of them where the encoder writes more."""
    differs = prove(encoder, _cut(plain), [packed])
    if differs is None:
        return len(packed)
    return differs if differs < len(packed) else len(packed) - 1


def _cut(plain: bytes) -> Iterator[bytes]:
    for at in range(0, len(plain), _PIECE):
        yield plain[at : at + _PIECE]


def _common(left: bytes, right: bytes) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(left), len(right)))


def _pieces(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of exactly `size`, but for the last."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        whole = len(held) - len(held) % size
        for at in range(0, whole, size):
            yield bytes(held[at : at + size])
        del held[:whole]
    if held:
        yield bytes(held)


def _body(member: Iterator[bytes], name: str) -> Iterator[bytes]:
    """A member without its header, which has no optional fields, and its trailer."""
    held = b""
    inside = False
    try:
        for chunk in member:
            held += chunk
            if not inside and len(held) >= _FIXED_HEADER:
                _check_header(held, name)
                held, inside = held[_FIXED_HEADER:], True
            if inside and len(held) > _TRAILER:
                yield held[:-_TRAILER]
                held = held[-_TRAILER:]
    finally:
        close = getattr(member, "close", None)
        if close is not None:
            close()
    if not inside or len(held) < _TRAILER:
        raise HostileInput(f"{name} wrote no gzip member")


def _check_header(raw: bytes, name: str) -> None:
    if raw[:4] != b"\x1f\x8b\x08\x00":
        raise HostileInput(f"{name} wrote no gzip header of 10 bytes: {raw[:4].hex()}")
