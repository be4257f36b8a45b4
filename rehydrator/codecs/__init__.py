"""Deterministic encoders by id. Adding one is a module and a line in `CODECS`.

A codec turns plain bytes into the same packed bytes every time, for one library version and
one set of parameters. Which library made a file is found by trial (`find`); whether the
library at hand is still the same is shown by a known-answer test before anything is encoded.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from rehydrator.codecs import deflate, zstandard
from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Params = tuple[tuple[str, int], ...]


class Codec(Protocol):
    """One encoder library."""

    id: str

    def version(self) -> str:
        """Name and version of the library, for messages and for the bundle."""
        ...

    def encode(self, plain: bytes, params: Mapping[str, int]) -> bytes:
        """The packed bytes. Raises HostileInput for parameters that the codec does not have."""
        ...

    def decode(self, packed: bytes, params: Mapping[str, int], size: int) -> bytes:
        """Exactly `size` plain bytes; raises HostileInput otherwise, and never makes more."""
        ...

    def unpack(self, packed: bytes, params: Mapping[str, int], limit: int) -> tuple[bytes, int]:
        """The plain bytes of the stream that `packed` begins with, and how many bytes of
        `packed` it takes; HostileInput where it is broken, cut short, or above `limit`."""
        ...

    def candidates(self, family: str) -> Sequence[Params]:
        """Parameters worth trying for a family of streams ("zlib", "deflate12", "zstd")."""
        ...


CODECS: dict[str, Codec] = {codec.id: codec for codec in (deflate.ZLIB, deflate.ZLIB_NG, zstandard.ZSTD)}


def codec(name: str) -> Codec:
    """The codec called `name`.

    Raises:
        HostileInput: there is none of that name.
    """
    if name not in CODECS:
        raise HostileInput(f"unknown codec {name!r:.40}; this version has {', '.join(CODECS)}")
    return CODECS[name]


class _Given:
    """What encoders gave, as digests: siblings share almost all of their units, and each is
    encoded once for all of them. The last 2^17 are kept, some 30 MB."""

    def __init__(self, most: int = 1 << 17) -> None:
        self._most = most
        self._held: dict[tuple[str, Params, bytes], bytes] = {}

    def digest(self, name: str, params: Params, plain: bytes) -> bytes:
        """The digest of what an encoder gives for `plain`."""
        key = (name, params, _digest(plain))
        known = self._held.get(key)
        if known is None:
            known = _digest(CODECS[name].encode(plain, dict(params)))
            if len(self._held) >= self._most:
                self._held.pop(next(iter(self._held)), None)
            self._held[key] = known
        return known


_GIVEN = _Given()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def gives(name: str, params: Params, plain: bytes, packed: bytes) -> bool:
    """Whether an encoder turns `plain` into exactly `packed`."""
    return _GIVEN.digest(name, params, plain) == _digest(packed)


def candidates(family: str) -> list[tuple[str, Params]]:
    """(codec id, params) worth trying for a family, likeliest first."""
    ranked = [
        (rank, number, name, params)
        for number, (name, each) in enumerate(CODECS.items())
        for rank, params in enumerate(each.candidates(family))
    ]
    return [(name, params) for _, _, name, params in sorted(ranked)]


def find(family: str, samples: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, Params]]:
    """The encoders that reproduce the (plain, packed) samples; most samples first, and none
    whose samples are all reproduced by those before it.

    Samples that an earlier hit explains are not tried again with later candidates, so that
    a file made by one encoder costs one encoding per sample and candidate until the hit.
    Trivial samples look alike from many encoders: hence the ranking over all samples.
    """
    every = list(samples)
    left, found = every, []
    for name, params in candidates(family):
        missed = [sample for sample in left if not _gives(name, params, sample)]
        if len(missed) < len(left):
            found.append((name, params))
        left = missed
        if not left:
            break
    return found if len(found) < 2 else _fewest(found, every)


def _gives(name: str, params: Params, sample: tuple[bytes, bytes]) -> bool:
    plain, packed = sample
    return CODECS[name].encode(plain, dict(params)) == packed


def _fewest(found: list[tuple[str, Params]], samples: list[tuple[bytes, bytes]]) -> list[tuple[str, Params]]:
    hits = {encoder: {k for k, sample in enumerate(samples) if _gives(*encoder, sample)} for encoder in found}
    kept: list[tuple[str, Params]] = []
    explained: set[int] = set()
    for encoder in sorted(found, key=lambda encoder: -len(hits[encoder])):
        if hits[encoder] - explained:
            kept.append(encoder)
            explained |= hits[encoder]
    return kept
