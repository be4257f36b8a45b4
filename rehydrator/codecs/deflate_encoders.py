"""Three ways to write a raw deflate stream (RFC 1951): a library like zlib, libdeflate, a program.

Programs write a container around the stream, which is taken off again: of gzip (RFC 1952) its
header without optional fields and its trailer, of zip (APPNOTE 4.3) all but the data of the only
member. Which codecs there are stands in rehydrator/codecs/deflate_streams.py.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rehydrator.codecs.stream_encoder import (
    Filter,
    Params,
    checked,
    close,
    cut,
    no_package,
    pieces,
    runner,
    version_of,
)
from rehydrator.core.errors import HostileInput, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

MIB: Final = 1 << 20

MAX_WHOLE: Final = 2 << 30
"""Bytes that libdeflate is given at most: it takes all of its input at once."""

_LARGE = MIB

_GZIP_HEADER, _GZIP_TRAILER = 10, 8

# APPNOTE 4.3.7, and 4.3.9.2 for a member whose length is not known when its header is written.
_ZIP_HEADER: Final = struct.Struct("<4sHHH16xHH")
_ZIP_DESCRIPTOR: Final = struct.Struct("<4s4xQQ")
_STREAMED, _DEFLATED = 8, 8
# More than there is behind the data: descriptor, directory of one entry, its zip64 end and its end.
_ZIP_TAIL = 1024


@dataclass(frozen=True)
class Library:
    """A library with the interface of the zlib module, which `module` imports; `memory` without
    the pieces, where it has the parameter "piece"."""

    id: str
    name: str
    ranges: Mapping[str, range]
    module: Callable[[], Any]
    says: Callable[[], str]
    takes: int

    def checked(self, params: Mapping[str, int]) -> Params:
        return checked(self.id, params, self.ranges)

    def encode(
        self, params: Mapping[str, int], chunks: Iterable[bytes], run: Filter | None
    ) -> Iterator[bytes]:
        deflate = self.module().compressobj(
            params["level"], zlib.DEFLATED, -zlib.MAX_WBITS, params["memlevel"]
        )
        for piece in pieces(chunks, params["piece"]) if "piece" in params else cut(chunks, _LARGE):
            if packed := deflate.compress(piece):
                yield packed
        yield deflate.flush()

    def described(self, params: Mapping[str, int]) -> str:
        return f"{self.name} " + ", ".join(f"{name} {value}" for name, value in params.items())

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        piece = params.get("piece", _LARGE)
        return self.takes + 3 * (piece if plain is None else min(piece, plain))

    def version(self, run: Filter | None) -> str:
        return self.says()


@dataclass(frozen=True)
class Libdeflate:
    """libdeflate, which takes the whole input at once, and so much memory."""

    id: str
    ranges: Mapping[str, range]

    def checked(self, params: Mapping[str, int]) -> Params:
        return checked(self.id, params, self.ranges)

    def encode(
        self, params: Mapping[str, int], chunks: Iterable[bytes], run: Filter | None
    ) -> Iterator[bytes]:
        compress = _libdeflate().deflate_compress
        plain = bytearray()
        for chunk in chunks:
            plain += chunk
            if len(plain) > MAX_WHOLE:
                raise LimitExceeded(f"libdeflate would need all at once of more than {MAX_WHOLE} bytes")
        packed = compress(plain, params["level"])
        plain.clear()
        yield from cut([packed], _LARGE)

    def described(self, params: Mapping[str, int]) -> str:
        return f"libdeflate level {params['level']}"

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        # The input, growing by an eighth at a time, and room for an output that did not shrink.
        return 16 * MIB + 9 * (MAX_WHOLE if plain is None else min(plain, MAX_WHOLE)) // 4

    def version(self, run: Filter | None) -> str:
        return f"libdeflate of deflate {_libdeflate().__version__}"


@dataclass(frozen=True)
class Program:
    """A program that reads plain bytes and writes a container, which `body` takes off.

    Its arguments are `before`, the level, the flags of those `flags` that are 1, and `behind`.
    """

    id: str
    name: str
    ranges: Mapping[str, range]
    before: tuple[str, ...]
    flags: Mapping[str, str]
    behind: tuple[str, ...]
    body: Callable[[Iterator[bytes], str], Iterator[bytes]]
    takes: int

    def checked(self, params: Mapping[str, int]) -> Params:
        return checked(self.id, params, self.ranges)

    def encode(
        self, params: Mapping[str, int], chunks: Iterable[bytes], run: Filter | None
    ) -> Iterator[bytes]:
        argv = (self.name, *self.before, *self._options(params), *self.behind)
        return self.body(runner(run, self.name)(argv, chunks), self.name)

    def described(self, params: Mapping[str, int]) -> str:
        return " ".join((self.name, *self._options(params)))

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        return self.takes

    def version(self, run: Filter | None) -> str:
        return version_of(self.name, run)

    def _options(self, params: Mapping[str, int]) -> list[str]:
        return [f"-{params['level']}", *(flag for name, flag in self.flags.items() if params[name])]


def gzip_body(member: Iterator[bytes], name: str) -> Iterator[bytes]:
    """A gzip member without its header, which has no optional fields, and its trailer."""
    held = b""
    inside = False
    try:
        for chunk in member:
            held += chunk
            if not inside and len(held) >= _GZIP_HEADER:
                _check_gzip(held, name)
                held, inside = held[_GZIP_HEADER:], True
            if inside and len(held) > _GZIP_TRAILER:
                yield held[:-_GZIP_TRAILER]
                held = held[-_GZIP_TRAILER:]
    finally:
        close(member)
    if not inside or len(held) < _GZIP_TRAILER:
        raise HostileInput(f"{name} wrote no gzip member")


def zip_body(archive: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The deflate data of a streamed zip archive of one member. Where they end is said behind
    them, in the data descriptor."""
    held = b""
    inside = False
    given = 0
    try:
        for chunk in archive:
            held += chunk
            if not inside and len(held) >= _ZIP_TAIL:
                held, inside = held[_zip_header(held, name) :], True
            if inside and len(held) > _ZIP_TAIL:
                yield held[:-_ZIP_TAIL]
                given += len(held) - _ZIP_TAIL
                held = held[-_ZIP_TAIL:]
    finally:
        close(archive)
    if not inside:
        held = held[_zip_header(held, name) :]
    yield held[: _zip_end(held, given, name)]


def _check_gzip(raw: bytes, name: str) -> None:
    if raw[:4] != b"\x1f\x8b\x08\x00":
        raise HostileInput(f"{name} wrote no gzip header of 10 bytes: {raw[:4].hex()}")


def _zip_header(raw: bytes, name: str) -> int:
    """The length of the local file header that `raw` begins with."""
    if len(raw) >= _ZIP_HEADER.size:
        magic, _, flags, method, named, extra = _ZIP_HEADER.unpack_from(raw)
        size = _ZIP_HEADER.size + int(named) + int(extra)
        if (magic, flags & _STREAMED, method) == (b"PK\3\4", _STREAMED, _DEFLATED) and size < _ZIP_TAIL:
            return size
    raise HostileInput(f"{name} wrote no zip header of a streamed member: {raw[:10].hex()}")


def _zip_end(tail: bytes, given: int, name: str) -> int:
    """Where the data end in `tail`, `given` bytes of them being before it: at the data descriptor,
    which says their length."""
    at = tail.rfind(b"PK\7\x08")
    while at >= 0:
        if at + _ZIP_DESCRIPTOR.size <= len(tail) and _ZIP_DESCRIPTOR.unpack_from(tail, at)[1] == given + at:
            return at
        at = tail.rfind(b"PK\7\x08", 0, at)
    raise HostileInput(f"{name} wrote no zip archive of one streamed member")


def _libdeflate() -> Any:
    try:
        import deflate
    except ImportError:
        raise no_package("deflate") from None
    return deflate
