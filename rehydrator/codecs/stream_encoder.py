"""What a stream encoder is, how two streams are compared, and how parameters are checked.

The rooms above use these through rehydrator/codecs/streams.py; families of codecs
(`deflate_streams`, `lzma2_streams`, ...) are written with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rehydrator.core.errors import HostileInput, ToolMissing

Params = tuple[tuple[str, int], ...]

Filter = Callable[[Sequence[str], Iterable[bytes]], Iterator[bytes]]
"""Runs a program: feeds it the bytes while it yields what the program writes, ends it when it is
closed, and raises where it fails: run_filter in rehydrator/host/filters.py."""

PIECE = 64 << 10


class Encoder(Protocol):
    """One way to write a stream."""

    @property
    def codec(self) -> str: ...

    @property
    def params(self) -> Params: ...

    def encode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The stream of the plain `chunks`, which may be of any size and are taken as they are
        needed. Closing the iterator ends the work.

        Raises:
            HostileInput: a program's output is not what it was run for.
            LimitExceeded: more memory, or a longer stream, than the encoder has.
            ToolMissing: a program or library that is not installed.
        """
        ...


class Hit(NamedTuple):
    """An encoder whose stream is the same for the first `agreed` bytes of the sample."""

    codec: str
    params: Params
    agreed: int


class Codec(Protocol):
    """A library or program, and what there is to know of it."""

    @property
    def id(self) -> str: ...

    def checked(self, params: Mapping[str, int]) -> Params:
        """The parameters in the order of their names.

        Raises:
            HostileInput: parameters that the codec does not have.
        """
        ...

    def encode(
        self, params: Mapping[str, int], chunks: Iterable[bytes], run: Filter | None
    ) -> Iterator[bytes]:
        """As `Encoder.encode`, for parameters that were checked."""
        ...

    def described(self, params: Mapping[str, int]) -> str:
        """As `streams.described`."""
        ...

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        """As `streams.memory`."""
        ...

    def version(self, run: Filter | None) -> str:
        """As `streams.version`."""
        ...


class Family(Protocol):
    """The codecs of one kind of stream, and how to tell which of them wrote one."""

    @property
    def name(self) -> str: ...

    @property
    def codecs(self) -> Sequence[Codec]: ...

    def find(
        self, plain: bytes, packed: bytes, hints: Mapping[str, int], *, whole: bool, run: Filter | None
    ) -> list[Hit]:
        """As `streams.find`."""
        ...


@dataclass(frozen=True, slots=True)
class Encoding:
    """A codec with parameters that were checked, and what runs programs."""

    of: Codec
    params: Params
    run: Filter | None

    @property
    def codec(self) -> str:
        return self.of.id

    def encode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        return self.of.encode(dict(self.params), chunks, self.run)


def checked(codec: str, params: Mapping[str, int], ranges: Mapping[str, range]) -> Params:
    """The parameters in the order of their names, each a number within its range.

    Raises:
        HostileInput: one too many, one too few, or one out of range.
    """
    fits = params.keys() == ranges.keys() and all(
        type(value) is int and value in ranges[name] for name, value in params.items()
    )
    if not fits:
        raise HostileInput(f"parameters that {codec} does not have: {dict(params)!s:.200}")
    return tuple(sorted(params.items()))


def runner(run: Filter | None, program: str) -> Filter:
    """What runs programs.

    Raises:
        ToolMissing: nothing does.
    """
    if run is None:
        raise ToolMissing(f"{program} is needed to encode a stream, and programs are not run here")
    return run


def version_of(program: str, run: Filter | None) -> str:
    """Name and version of a program: `gzip 1.12`. One that writes for ever is ended.

    Raises:
        ToolMissing: it is not installed, or programs are not run here.
    """
    said, output = b"", runner(run, program)((program, "--version"), ())
    try:
        while len(said) < PIECE and (piece := next(output, b"")):
            said += piece
    finally:
        close(output)
    number = re.search(r"\d+(\.\d+)+", said.decode(errors="replace"))
    return f"{program} {number[0] if number else 'of no known version'}"


def no_package(name: str) -> ToolMissing:
    """The error for an optional package that is not installed."""
    return ToolMissing(f"the Python package {name} is not installed (pip install 'rehydrator[codecs]')")


def first_difference(ours: Iterator[bytes], theirs: Iterable[bytes]) -> int | None:
    """The first offset at which two streams differ or one of them ends; None if they are equal.
    `ours` is closed, so that a program behind it ends there."""
    offset = 0
    left = memoryview(b"")
    try:
        for piece in filter(None, theirs):
            right = memoryview(piece)
            while right:
                left = left or memoryview(_next(ours))
                length = min(len(left), len(right))
                if not length or left[:length] != right[:length]:
                    return offset + _common(left[:length], right[:length])
                offset, left, right = offset + length, left[length:], right[length:]
        return offset if left or _next(ours) else None
    finally:
        close(ours)


def close(stream: Iterator[bytes]) -> None:
    """End what makes a stream, where it can be told so."""
    if (end := getattr(stream, "close", None)) is not None:
        end()


def agreed(made: Iterator[bytes], packed: bytes) -> int:
    """How many of the `packed` bytes a stream begins with; not all of them where it is longer."""
    differs = first_difference(made, [packed])
    if differs is None:
        return len(packed)
    return differs if differs < len(packed) else len(packed) - 1


def cut(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of at most `size`."""
    for chunk in chunks:
        if len(chunk) <= size:
            yield chunk
        else:
            yield from (chunk[at : at + size] for at in range(0, len(chunk), size))


def pieces(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of exactly `size`, but for the last."""
    held = bytearray()
    for chunk in cut(chunks, size):
        if not held and len(chunk) == size:
            yield chunk
            continue
        held += chunk
        if len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _next(stream: Iterator[bytes]) -> bytes:
    """The next bytes of a stream; none at its end."""
    return next(filter(None, stream), b"")


def _common(left: memoryview, right: memoryview) -> int:
    pairs = enumerate(zip(left, right, strict=True))
    return next((at for at, (one, two) in pairs if one != two), len(left))
