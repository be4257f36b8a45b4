"""Which encoder made a compressed file, part by part: guessed from the beginning of a part,
proven on all of it.

What is equal is proven once: siblings share most of their `.xz` blocks. Parts are proven side by
side, as many as there are threads and as there is memory for their encoders.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from rehydrator.bundle.memory import available_memory
from rehydrator.bundle.proven import Comparison, hasher
from rehydrator.codecs import lzma2, streams
from rehydrator.core.errors import LimitExceeded
from rehydrator.core.ops import Copy, Stream, StreamRule
from rehydrator.formats.explanation import FILE, LAYER, append
from rehydrator.store.files import FileReader
from rehydrator.streaming import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Executor

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

# What the first part of a file says is tried on all of them, before they are looked at themselves.
_MOST_LIKELY = 2

# A trial of an encoder takes at most this.
_MOST_OF_A_TRIAL = 700 << 20

# Parts come in rows of so many. A row that no encoder gave any part of ends the search: the file's
# writer is not known here, and the parts that are left (BGZF has thousands) are not worth seconds each.
_MOST_MISSES = 8

# Seconds that an interrupt may wait.
_MOMENT = 0.1

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


class _Search(NamedTuple):
    """A part of `file` whose encoder is looked for, and the digest of its packed bytes."""

    file: Reader
    part: Part
    plain: Reader
    digest: bytes


class Recovery:
    """Finds the encoders of one build's compressed files.

    What is found of a part follows from the file that it is in and from nothing else: which part
    was looked at first, which varies with threads, makes no difference. Short parts and zeros are
    given by several encoders.
    """

    def __init__(self, pool: Executor, run: Filter | None) -> None:
        """`pool` begins its tasks in the order in which it gets them, so that they may wait for
        earlier ones; `run` runs the programs whose encoders no library has."""
        self._pool, self._run = pool, run
        self._lock = threading.Lock()
        self._first: dict[tuple[bytes, Params], Future[list[Guess]]] = {}
        self._proofs: dict[tuple[bytes, Guess], Future[bool]] = {}
        self._gate = Gate(available_memory() * 3 // 4)
        self.compared: list[Comparison] = []

    def begin(self, file: Reader, layout: Layout, plain: Reader) -> Running:
        """Start to look for the encoders of a file; `plain` is what it holds."""
        found: list[tuple[Part, bytes, Future[Guess | None] | None]] = []
        searches: list[Future[Guess | None]] = []
        likely: Future[list[Guess]] | None = None
        for part in layout.parts:
            search = _Search(file, part, plain, digest_of(file, part))
            future = None
            if part.family and part.plain:
                likely = likely or self._likely(search)
                row = len(searches) // _MOST_MISSES * _MOST_MISSES
                before = searches[max(row - _MOST_MISSES, 0) : row]
                future = self._pool.submit(self._find, search, likely, before)
                searches.append(future)
            found.append((part, search.digest, future))
        return Running(layout, found, self._run)

    def _likely(self, search: _Search) -> Future[list[Guess]]:
        """What a file's first part says of the others; equal ones, of which headers say the same,
        are looked at once."""
        key = search.digest, tuple(sorted(search.part.hints.items()))
        with self._lock:
            if key not in self._first:
                self._first[key] = self._pool.submit(
                    lambda: list(islice(self._guesses(*search[:3]), _MOST_LIKELY))
                )
            return self._first[key]

    def _find(
        self, search: _Search, likely: Future[list[Guess]], before: Sequence[Future[Guess | None]]
    ) -> Guess | None:
        if before and not any(each.result() for each in before):
            return None
        tried: set[Guess] = set()
        # An encoder that is told the size of its input is told this part's.
        size = search.part.plain
        fitting = [(codec, streams.of_sample(codec, dict(found), size)) for codec, found in likely.result()]
        for guesses in (iter(fitting), self._guesses(*search[:3])):
            for guess in guesses:
                if guess not in tried and self._proves(guess, search):
                    return guess
                tried.add(guess)
        return None

    def _proves(self, guess: Guess, search: _Search) -> bool:
        """Whether a guess gives all of a part; equal parts are compared once."""
        key = (search.digest, guess)
        with self._lock:
            is_new = key not in self._proofs
            proof = self._proofs.setdefault(key, Future())
        if is_new:
            try:
                proof.set_result(self._gives(guess, *search[:3]))
            except BaseException as error:  # noqa: BLE001 - it belongs to everybody who waits
                proof.set_exception(error)
        return proof.result()

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

    def _gives(self, guess: Guess, file: Reader, part: Part, plain: Reader) -> bool:
        codec, params = guess
        state = hasher()
        with self._gate.room(streams.memory(codec, dict(params), part.plain)):
            encoder = streams.encoder(codec, dict(params), self._run)
            fed = _hashed(_span(plain, part.plain_at, part.plain), state)
            packed = _span(file, part.at, part.packed)
            if streams.prove(encoder, fed, packed) is not None:
                return False
        if isinstance(file, FileReader):
            place = str(file.path.absolute()), part.at, part.packed
            self.compared.append(Comparison(codec, params, part.plain, state.hexdigest(), *place))
        return True


class Running:
    """The search for the encoders of one file, under way."""

    def __init__(
        self,
        layout: Layout,
        parts: list[tuple[Part, bytes, Future[Guess | None] | None]],
        run: Filter | None,
    ) -> None:
        self._layout, self._parts, self._run = layout, parts, run

    def result(self) -> Recovered:
        """What was found, once every part was looked at."""
        ops: list[Op] = []
        rules: list[StreamRule] = []
        digests: dict[int, bytes] = {}
        here = reproduced = kept = 0
        for part, digest, future in self._parts:
            guess = _awaited(future) if future else None
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


def _awaited(future: Future[Guess | None]) -> Guess | None:
    """A result that may take minutes, and an interrupt meanwhile: one that arrives just before the
    main thread sleeps is not noticed until something wakes it (two of 30, measured)."""
    while not future.done():
        wait((future,), _MOMENT)
    return future.result()


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


def _hashed(pieces: Iterator[bytes], state: hashlib.blake2b) -> Iterator[bytes]:
    for piece in pieces:
        state.update(piece)
        yield piece


def _span(reader: Reader, at: int, length: int) -> Iterator[bytes]:
    end = at + length
    while at < end:
        size = min(_PIECE, end - at)
        yield reader.pread(at, size)
        at += size
