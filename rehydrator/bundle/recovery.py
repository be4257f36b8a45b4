"""Which encoder made a compressed file, part by part: guessed from the beginning of a part,
proven on all of it.

What is equal is proven once: siblings share most of their `.xz` blocks. Parts are proven side by
side, as many as there are threads and as there is memory for their encoders.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rehydrator.bundle.rehydrate import available_memory
from rehydrator.codecs import lzma2, streams
from rehydrator.core.errors import LimitExceeded
from rehydrator.core.ops import Copy, Stream, StreamRule
from rehydrator.formats.explanation import FILE, LAYER, append

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Executor, Future

    from rehydrator.codecs import Params
    from rehydrator.codecs.streams import Filter
    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader
    from rehydrator.formats.streams import Layout, Part

# Plain bytes at the beginning of a part that a guess is made from; where they decide nothing
# (zeros are encoded in blocks of many MiB), more.
_SAMPLES = (4 << 20, 32 << 20)
_PIECE = 1 << 20

# Guesses that are worth a proof; a wrong one ends at its first difference.
_MOST_GUESSES = 12

# A trial of an encoder takes at most this; parts that none gave in a row end the search.
_MOST_OF_A_TRIAL = 700 << 20
_MOST_MISSES = 8

Guess = tuple[str, "Params"]


@dataclass(frozen=True, slots=True)
class Recovered:
    """A compressed file over FILE and LAYER, which is what it holds. Of its packed bytes
    `reproduced` are made by an encoder and `kept` are not; `encoders` and `tried` are for `info`."""

    ops: Sequence[Op]
    streams: tuple[StreamRule, ...]
    digests: Mapping[int, bytes]
    reproduced: int
    kept: int
    encoders: Mapping[str, str]


class _Proven(NamedTuple):
    """A part's digest, and the encoder that makes it, if one does."""

    digest: bytes
    guess: Guess | None


@dataclass
class _Known:
    """What was found so far: by digest of the packed bytes, and the last guesses of a family."""

    proofs: dict[bytes, Future[Guess | None]] = field(default_factory=dict)
    recent: dict[str, list[Guess]] = field(default_factory=dict)


@dataclass
class _Misses:
    """Parts of one file that no encoder gave in a row: its writer is not known here, and the
    parts that are left (BGZF has thousands) are not worth seconds each."""

    row: int = 0


class Recovery:
    """Finds the encoders of one build's compressed files."""

    def __init__(self, pool: Executor, run: Filter | None) -> None:
        """`run` runs the programs whose encoders no library has."""
        self._pool, self._run = pool, run
        self._known = _Known()
        self._lock = threading.Lock()
        self._gate = _Gate(available_memory() * 3 // 4)

    def begin(self, file: Reader, layout: Layout, plain: Reader) -> Running:
        """Start to look for the encoders of a file; `plain` is what it holds."""
        misses = _Misses()
        parts = [(part, self._start(file, part, plain, misses)) for part in layout.parts]
        return Running(layout, parts, self._run)

    def _start(
        self, file: Reader, part: Part, plain: Reader, misses: _Misses
    ) -> tuple[bytes, Future[Guess | None]]:
        digest = digest_of(file, part)
        with self._lock:
            future = self._known.proofs.get(digest)
            if future is None:
                future = self._pool.submit(self._find, file, part, plain, misses)
                self._known.proofs[digest] = future
        return digest, future

    def _find(self, file: Reader, part: Part, plain: Reader, misses: _Misses) -> Guess | None:
        if not part.family or not part.plain or misses.row >= _MOST_MISSES:
            return None
        with self._lock:
            recent = list(self._known.recent.get(part.family, ()))
        tried: set[Guess] = set()
        for guesses in (iter(recent[:2]), self._guesses(file, part, plain)):
            for guess in guesses:
                if guess not in tried and self._proves(guess, file, part, plain):
                    with self._lock:
                        known = self._known.recent.setdefault(part.family, [])
                        known[:] = [guess, *(each for each in known if each != guess)]
                    misses.row = 0
                    return guess
                tried.add(guess)
        misses.row += 1
        return None

    def _guesses(self, file: Reader, part: Part, plain: Reader) -> Iterator[Guess]:
        for size in _SAMPLES:
            length = min(size, part.plain)
            whole = length == part.plain
            sample = plain.pread(part.plain_at, length)
            packed = file.pread(part.at, part.packed if whole else min(size, part.packed))
            with self._gate.room(_MOST_OF_A_TRIAL):
                try:
                    hits = streams.find(part.family, sample, packed, part.hints, whole=whole, run=self._run)
                except LimitExceeded:
                    return
            guesses = [(hit.codec, hit.params) for hit in hits[:_MOST_GUESSES]]
            yield from guesses
            if whole:
                return
            yield from (each for guess in guesses for each in _other_dictionaries(guess))

    def _proves(self, guess: Guess, file: Reader, part: Part, plain: Reader) -> bool:
        codec, params = guess
        with self._gate.room(streams.memory(codec, dict(params), part.plain)):
            encoder = streams.encoder(codec, dict(params), self._run)
            fed, packed = _span(plain, part.plain_at, part.plain), _span(file, part.at, part.packed)
            return streams.prove(encoder, fed, packed) is None


class Running:
    """The search for the encoders of one file, under way."""

    def __init__(
        self,
        layout: Layout,
        parts: list[tuple[Part, tuple[bytes, Future[Guess | None]]]],
        run: Filter | None,
    ) -> None:
        self._layout, self._parts, self._run = layout, parts, run

    def result(self) -> Recovered:
        """What was found, once every part was looked at."""
        ops: list[Op] = []
        rules: list[StreamRule] = []
        digests: dict[int, bytes] = {}
        here = reproduced = kept = 0
        for part, (digest, future) in self._parts:
            guess = future.result()
            append(ops, Copy(part.at - here, FILE, here))
            here = part.at + part.packed
            if guess is None:
                append(ops, Copy(part.packed, FILE, part.at))
                kept += part.packed
                continue
            rule = StreamRule(*guess, LAYER)
            if rule not in rules:
                rules.append(rule)
            digests[len(ops)] = digest
            ops.append(Stream(part.packed, rules.index(rule), part.plain_at, part.plain))
            reproduced += part.packed
        append(ops, Copy(self._layout.size - here, FILE, here))
        encoders = {
            streams.described(rule.codec, dict(rule.params)): streams.version(rule.codec, self._run)
            for rule in rules
        }
        return Recovered(ops, tuple(rules), digests, reproduced, kept, encoders)


class _Gate:
    """Room for encoders' memory, in bytes; one that needs more than there is runs alone."""

    def __init__(self, room: int) -> None:
        self._room, self._taken = room, 0
        self._changed = threading.Condition()

    @contextmanager
    def room(self, memory: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + memory <= self._room)
            self._taken += memory
        try:
            yield
        finally:
            with self._changed:
                self._taken -= memory
                self._changed.notify_all()


def digest_of(file: Reader, part: Part) -> bytes:
    """The digest of a part's packed bytes: parts of one digest are one."""
    state = hashlib.blake2b(part.family.encode(), digest_size=32)
    for piece in _span(file, part.at, part.packed):
        state.update(piece)
    return state.digest()


def _other_dictionaries(guess: Guess) -> Iterator[Guess]:
    """The same with the other dictionaries that an .xz block header may stand for: xz makes them
    smaller where it is given little memory, which a beginning does not show."""
    codec, params = guess
    stated = dict(params).get("dict_size")
    for size in lzma2.dict_sizes(stated)[1:] if codec == "lzma2" and stated else ():
        yield codec, tuple(sorted({**dict(params), "dict_size": size}.items()))


def _span(reader: Reader, at: int, length: int) -> Iterator[bytes]:
    end = at + length
    while at < end:
        size = min(_PIECE, end - at)
        yield reader.pread(at, size)
        at += size
