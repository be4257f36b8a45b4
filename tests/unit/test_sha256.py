"""SHA-256 that goes on from any chaining value, against hashlib and against FIPS 180-4 written out
(tests/fips180.py)."""

from __future__ import annotations

import ctypes
import hashlib
import random
import ssl
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import isqrt
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.codecs import sha256
from rehydrator.codecs.sha256 import INITIAL, Sha256
from tests.fips180 import WORD, chaining_value, compress, fips, primes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = random.Random(256).randbytes(1 << 16)


def state_at(length: int) -> bytes:
    """The chaining value of the first `length` bytes of DATA."""
    hasher = Sha256()
    hasher.update(DATA[:length])
    return hasher.state()


# --- the facts


def test_there_is_a_library() -> None:
    """Where these tests run, chaining values can be had, and what is said tells so."""
    assert sha256.is_available()
    assert sha256.library() == f"{ssl.OPENSSL_VERSION} (chaining values)"


def test_the_initial_value() -> None:
    """It is that of FIPS 180-4, section 5.3.3: the fractions of the square roots of eight primes."""
    assert struct.pack(">8I", *(isqrt(prime << 64) & WORD for prime in primes(8))) == INITIAL
    assert fips(INITIAL, 0, DATA[:200]) == hashlib.sha256(DATA[:200]).hexdigest()
    assert Sha256().state() == INITIAL
    assert state_at(1024) == chaining_value(DATA[:1024])


@settings(deadline=None)
@given(length=st.integers(0, len(DATA)), data=st.data())
def test_any_split(length: int, data: st.DataObject) -> None:
    """Parts between multiples of 64, each from the value before it, in pieces of any size: each comes
    to the value behind it, and the last one to the digest of all."""
    places = data.draw(st.sets(st.integers(0, length // 64), max_size=5).map(sorted))
    steps = data.draw(st.lists(st.integers(0, 5000), min_size=1, max_size=6).filter(any))
    ends = [0, *(place * 64 for place in places), length]
    state = INITIAL
    for low, high in pairwise(ends):
        hasher = Sha256(state, low)
        for piece in pieces(low, high, steps):
            hasher.update(piece)
        if high < length or not high % 64:
            assert hasher.state() == state_at(high)
            state = hasher.state()
    assert hasher.hexdigest() == hashlib.sha256(DATA[:length]).hexdigest()


def pieces(low: int, high: int, steps: list[int]) -> Iterator[memoryview]:
    """A span of DATA, in pieces of the given sizes in turn."""
    number = 0
    while low < high:
        size = steps[number % len(steps)]
        yield memoryview(DATA)[low : min(low + size, high)]
        low, number = low + size, number + 1


def words(data: bytes) -> memoryview:
    """A view whose length counts items of four bytes."""
    return memoryview(data).cast("I")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, words])
def test_kinds_of_bytes(kind: Callable[[bytes], bytes | bytearray | memoryview]) -> None:
    """Bytes, arrays and views, also of larger items, and empty ones."""
    hasher = Sha256()
    for part in (b"", DATA[:100], b"", DATA[100:5000]):
        hasher.update(kind(part))
    assert hasher.hexdigest() == hashlib.sha256(DATA[:5000]).hexdigest()


def test_an_array_is_free_afterwards() -> None:
    """What was hashed is not held on to: an array can be made longer."""
    data = bytearray(b"x" * 100)
    Sha256().update(data)
    data += b"y"
    assert len(data) == 101


@pytest.mark.parametrize("wrong", ["a text", 5, None, memoryview(DATA)[::2]])
def test_what_is_no_bytes(wrong: bytes) -> None:
    """Anything but bytes in a row is an error of Python's, and no crash."""
    with pytest.raises((TypeError, BufferError)):
        Sha256().update(wrong)


@pytest.mark.parametrize("done", [(1 << 29) - 64, 1 << 29, (1 << 29) + 64, 5 << 32, (1 << 60) - 64])
def test_more_than_fits_32_bits(done: int) -> None:
    """The count of bits goes on beyond 32 bits, from `done` and while bytes are hashed."""
    state = state_at(128)
    for length in (0, 1, 55, 56, 64, 1000):
        hasher = Sha256(state, done)
        hasher.update(DATA[:length])
        assert hasher.hexdigest() == fips(state, done, DATA[:length])


def test_a_value_between_blocks_only() -> None:
    """Within a block of 64 bytes there is no chaining value."""
    hasher = Sha256()
    hasher.update(b"x" * 65)
    with pytest.raises(ValueError, match="whole blocks"):
        hasher.state()
    hasher.update(b"x" * 63)
    assert hasher.state() == compress(compress(INITIAL, b"x" * 64), b"x" * 64)


def test_several_threads() -> None:
    """Hashes of several threads do not get into each other's way."""

    def hashed(number: int) -> bool:
        hasher = Sha256()
        for at in range(0, len(DATA), 1000 + number):
            hasher.update(DATA[at : at + 1000 + number])
        return hasher.hexdigest() == hashlib.sha256(DATA).hexdigest()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(hashed, range(64)))


# --- libraries that are other than expected


@pytest.fixture
def anew() -> Iterator[None]:
    """The library is looked for anew, in the test and after it."""
    sha256._library.cache_clear()
    yield
    sha256._library.cache_clear()


class Shifted(ctypes.Structure):
    """Another library's context: the counts stand before H."""

    _fields_ = (
        ("low", ctypes.c_uint32),
        ("high", ctypes.c_uint32),
        ("h", ctypes.c_uint32 * 8),
        ("data", ctypes.c_uint32 * 16),
        ("num", ctypes.c_uint),
        ("md_len", ctypes.c_uint),
        ("reserve", ctypes.c_uint8 * 64),
    )


@pytest.mark.parametrize("of", ["beginning", "count", "elsewhere", "end"])
def test_another_structure_is_refused(of: str) -> None:
    """A library is not used whose H, count or hash is not where ours is."""
    found = sha256._library()
    assert found is not None
    init, update, final = found

    def shifted(context: ctypes.c_void_p) -> None:
        """H and the counts, the other way round."""
        init(context)
        ours = ctypes.cast(context, ctypes.POINTER(sha256._Context)).contents
        theirs = ctypes.cast(context, ctypes.POINTER(Shifted)).contents
        h = list(ours.h)
        theirs.low = theirs.high = 0
        theirs.h[:] = h

    def counts_bytes(context: ctypes.c_void_p, data: bytes, length: int) -> None:
        update(context, data, length)
        ctypes.cast(context, ctypes.POINTER(sha256._Context)).contents.low //= 8

    total = [0]

    def counts_elsewhere(context: ctypes.c_void_p, data: bytes, length: int) -> None:
        update(context, data, length)
        total[0] += length
        ctypes.cast(context, ctypes.POINTER(sha256._Context)).contents.low = 0

    def knows(made: ctypes.Array[ctypes.c_char], context: ctypes.c_void_p) -> None:
        """The hash is right, but not by the count in the structure."""
        ctypes.cast(context, ctypes.POINTER(sha256._Context)).contents.low = 8 * total[0]
        final(made, context)

    def forgets(made: ctypes.Array[ctypes.c_char], context: ctypes.c_void_p) -> None:
        """Goes by a count of its own, not by the one in the structure."""
        ctypes.cast(context, ctypes.POINTER(sha256._Context)).contents.low += 512
        final(made, context)

    other: dict[str, sha256._Library] = {
        "beginning": (shifted, update, final),
        "count": (init, counts_bytes, final),
        "elsewhere": (init, counts_elsewhere, knows),
        "end": (init, update, forgets),
    }
    assert sha256._is_right(found)
    assert not sha256._is_right(other[of])


def test_no_library(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no library has the functions, that is known, and said."""
    monkeypatch.setattr(sha256, "_NAMES", ("libnothing.so.0", "libc.so.6"))
    monkeypatch.setattr(sha256, "_of_hashlib", lambda: "")
    assert not sha256.is_available()
    assert sha256.library() == f"{ssl.OPENSSL_VERSION} (hashlib alone, in sequence)"
    with pytest.raises(RuntimeError, match="no libcrypto"):
        Sha256()


def test_the_next_library(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind one that gives wrong answers the next one is tried."""
    seen: list[object] = []
    is_right = sha256._is_right

    def refuse_the_first(found: sha256._Library) -> bool:
        seen.append(found)
        return len(seen) > 1 and is_right(found)

    monkeypatch.setattr(sha256, "_is_right", refuse_the_first)
    assert sha256.is_available()
    assert len(seen) == 2


@pytest.mark.parametrize("missing", ["_hashlib", "_ssl"])
def test_a_python_without_openssl(anew: None, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """A Python whose hashlib is its own looks for libcrypto itself, and says what hashes."""
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "ssl", raising=False)
    assert sha256.is_available()
    assert sha256.library().endswith("(chaining values)")
