"""Encoded streams read from a file in small steps, and what they decode to handed on as it comes.

Nothing in a deflate, bzip2 or zstd stream says where it ends: only decoding it does. `Stream`
does that with any decoder of the standard library's kind, `Meter` counts what comes out of it,
and `Parts` holds where a million such streams lie.
"""

from __future__ import annotations

import lzma
import zlib
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol, overload

from backports import zstd

from rehydrator.core.errors import LimitExceeded, Unexplained
from rehydrator.formats.explanation import require
from rehydrator.formats.streams import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rehydrator.core.reader import Reader

MAX_PARTS: Final = 1 << 20
"""Encoded streams of one file: 64 GiB of BGZF."""

MAX_DICTIONARY: Final = 512 << 20
"""Bytes: the most that a decoder may look back. `xz -9` has 64 MiB, `zstd --ultra -22` 128."""

# A stream may be 20 bytes long, or many GB: what is read of it at once grows from 4 KiB.
_FIRST_STEP: Final = 4 << 10
_LAST_STEP: Final = 256 << 10
_PLAIN_STEP: Final = 256 << 10

# What the decoders raise for damage; bz2 has no error of its own.
_DAMAGE: Final = (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, ValueError)


class Decoder(Protocol):
    """What bz2, lzma and zstd have: `bz2.BZ2Decompressor` documents it."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


class Inflate:
    """Raw deflate data (RFC 1951), decoded through the interface of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not (self._full or self._zlib.unconsumed_tail)

    @property
    def unused_data(self) -> bytes:
        # At the end of a stream CPython may leave the same bytes in both.
        return self._zlib.unused_data if self.eof else self._zlib.unconsumed_tail

    def decompress(self, data: bytes, /, max_length: int) -> bytes:
        plain = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self._full = len(plain) == max_length
        return plain


class Stream:
    """The encoded stream at byte `at` of a file, which reaches `end` at most. `packed` is how
    many bytes of it were read so far; when `chunks` has ended, it is the stream's length."""

    def __init__(self, file: Reader, at: int, end: int, decoder: Decoder, what: str) -> None:
        self._file, self._at, self._end, self._decoder, self._what = file, at, end, decoder, what
        self._read, self._step = 0, _FIRST_STEP

    @property
    def packed(self) -> int:
        return self._read - len(self._decoder.unused_data)

    def chunks(self) -> Iterator[bytes]:
        """The plain bytes, in pieces of at most 256 KiB.

        Raises:
            Unexplained: the stream is broken or cut short.
        """
        decoder = self._decoder
        while not decoder.eof:
            piece = self._next() if decoder.needs_input else b""
            try:
                plain = decoder.decompress(piece, max_length=_PLAIN_STEP)
            except MemoryError:
                raise LimitExceeded(f"no memory to decode the {self._what} at byte {self._at}") from None
            except _DAMAGE as error:
                raise Unexplained(f"the {self._what} at byte {self._at} is damaged: {error}") from None
            if plain:
                yield plain

    def _next(self) -> bytes:
        at = self._at + self._read
        length = min(self._step, self._end - at)
        require(length > 0, f"the {self._what} at byte {self._at} is cut short")
        self._read, self._step = self._read + length, min(self._step * 2, _LAST_STEP)
        return self._file.pread(at, length)


class Meter:
    """Counts plain bytes and hands them on, `limit` at most."""

    def __init__(self, limit: int, take: Callable[[bytes], object]) -> None:
        self._limit, self._take = limit, take
        self.total = 0

    def take(self, chunk: bytes) -> None:
        """Raises LimitExceeded where it would be too many; that chunk is not handed on."""
        self.expect(len(chunk))
        self.total += len(chunk)
        self._take(chunk)

    def take_all(self, chunks: Iterator[bytes]) -> int:
        """How many bytes they were."""
        before = self.total
        for chunk in chunks:
            self.take(chunk)
        return self.total - before

    def expect(self, plain: int) -> None:
        """Raises LimitExceeded where so many bytes more are too many."""
        if self.total + plain > self._limit:
            raise LimitExceeded(f"it holds more than {self._limit} plain bytes, the limit for it")


class Parts(Sequence[Part]):
    """Parts in order, 40 bytes for each; there are few kinds of hints."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._kinds = array("L")
        self._kind_of: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
        self._hints: list[tuple[str, Mapping[str, int]]] = []

    def add(
        self, at: int, packed: int, plain_at: int, plain: int, family: str, hints: Mapping[str, int]
    ) -> None:
        """One more part.

        Raises:
            LimitExceeded: they are more than 2^20.
        """
        if len(self) >= MAX_PARTS:
            raise LimitExceeded(f"it has more than {MAX_PARTS} encoded streams")
        key = family, tuple(sorted(hints.items()))
        kind = self._kind_of.setdefault(key, len(self._hints))
        if kind == len(self._hints):
            self._hints.append((family, dict(hints)))
        self._numbers.extend((at, packed, plain_at, plain))
        self._kinds.append(kind)

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, index: int) -> Part: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Part]: ...

    def __getitem__(self, index: int | slice) -> Part | Sequence[Part]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        family, hints = self._hints[self._kinds[place]]
        at, packed, plain_at, plain = self._numbers[place * 4 : place * 4 + 4]
        return Part(at, packed, plain_at, plain, family, hints)
