"""SHA-256 whose chaining value can be taken and set between blocks of 64 bytes (FIPS 180-4, section
6.2: the intermediate hash value H). hashlib has no way to do that; libcrypto's low-level interface
has. So parts of a file can be hashed side by side, each from the value before it.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK: Final = 64
STATE: Final = 32

# FIPS 180-4, section 5.3.3.
INITIAL: Final = bytes.fromhex("6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19")

_WORDS = struct.Struct(">8I")
_NAMES = ("libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so")


class _Context(ctypes.Structure):
    """OpenSSL's SHA256_CTX (include/openssl/sha.h): H, the count of bits, what is no whole block."""

    _fields_ = (
        ("h", ctypes.c_uint32 * 8),
        ("low", ctypes.c_uint32),
        ("high", ctypes.c_uint32),
        ("data", ctypes.c_uint32 * 16),
        ("num", ctypes.c_uint),
        ("md_len", ctypes.c_uint),
        # Should another library's structure be larger.
        ("reserve", ctypes.c_uint8 * 64),
    )


class _Buffer(ctypes.Structure):
    """CPython's Py_buffer, which begins with the address, its owner and the bytes (C API, buffer
    protocol)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("rest", ctypes.c_void_p * 13),
    )


class Sha256:
    """The hash of a run of bytes, begun at any chaining value. One thread at a time; other threads
    run while it hashes."""

    def __init__(self, state: bytes = INITIAL, done: int = 0) -> None:
        """Go on from the chaining value `state` after `done` bytes, a multiple of 64.

        Raises:
            RuntimeError: no library for that here; is_available() tells.
        """
        found = _library()
        if found is None:
            raise RuntimeError("no libcrypto with SHA256_Init, SHA256_Update and SHA256_Final")
        self._update, self._final = found[1:]
        self._context = _Context()
        found[0](ctypes.byref(self._context))
        self._context.h[:] = _WORDS.unpack(state)
        bits = done * 8
        self._context.low, self._context.high = bits & 0xFFFFFFFF, bits >> 32 & 0xFFFFFFFF

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Hash more bytes."""
        view = _Buffer()
        _get_buffer(data, ctypes.byref(view), 0)
        try:
            self._update(ctypes.byref(self._context), view.buf, view.len)
        finally:
            _release_buffer(ctypes.byref(view))

    def state(self) -> bytes:
        """The chaining value; only after a multiple of 64 bytes."""
        if self._context.num:
            raise ValueError("a chaining value is there after whole blocks only")
        return _WORDS.pack(*self._context.h)

    def hexdigest(self) -> str:
        """The hash of all that was hashed; nothing can be hashed after it."""
        made = ctypes.create_string_buffer(32)
        self._final(made, ctypes.byref(self._context))
        return made.raw.hex()


def is_available() -> bool:
    """Whether Sha256 works here."""
    return _library() is not None


def library() -> str:
    """What hashes here, in words."""
    try:
        import ssl

        linked = ssl.OPENSSL_VERSION
    except ImportError:
        linked = "Python without OpenSSL"
    how = "chaining values" if is_available() else "hashlib alone, in sequence"
    return f"{linked} ({how})"


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.c_void_p,)
_release_buffer.restype = None

_Library = tuple["Callable[..., Any]", "Callable[..., Any]", "Callable[..., Any]"]


@cache
def _library() -> _Library | None:
    """SHA256_Init, SHA256_Update and SHA256_Final of the first library that gives right answers."""
    for name in (_of_hashlib(), *_NAMES):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(name)
            found = (library.SHA256_Init, library.SHA256_Update, library.SHA256_Final)
            found[0].argtypes = (ctypes.c_void_p,)
            found[1].argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
            found[2].argtypes = (ctypes.c_void_p, ctypes.c_void_p)
            if _is_right(found):
                return found
    return None


def _of_hashlib() -> str:
    """The module behind hashlib: symbols of the libcrypto that it is linked with are found through it."""
    try:
        import _hashlib
    except ImportError:
        return ""
    return str(getattr(_hashlib, "__file__", "") or "")


def _is_right(found: _Library) -> bool:
    """Whether a structure of ours is one of the library's: H after a block, the count, and the end."""
    init, update, final = found
    plain = bytes(range(200))
    context, made = _Context(), ctypes.create_string_buffer(32)
    init(ctypes.byref(context))
    if _WORDS.pack(*context.h) != INITIAL or context.low or context.high or context.num:
        return False
    update(ctypes.byref(context), plain, 2 * BLOCK)
    counted = (context.low, context.high, context.num) == (16 * BLOCK, 0, 0)
    other = _Context()
    init(ctypes.byref(other))
    other.h[:], other.low = context.h[:], context.low
    update(ctypes.byref(other), plain[2 * BLOCK :], len(plain) - 2 * BLOCK)
    final(made, ctypes.byref(other))
    return counted and made.raw == hashlib.sha256(plain).digest()
