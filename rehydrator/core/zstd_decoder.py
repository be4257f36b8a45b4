"""Zstd frames, each in one call, into memory of exactly its size.

backports.zstd decodes through a window of its own into blocks that grow, and joins them at the end;
the library inside of it does it at once, and is called here where its functions are to be had.
Measured, frames of 16 MiB: 11 ms instead of 22. `zstandard` does the same, and would take 12 MB of a
container.
"""

from __future__ import annotations

import ctypes
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

from backports import zstd

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Callable

    _Decode = Callable[[bytes, int, "Prefix | None"], bytes]

# Of the largest prefix and frame.
_WINDOW_BITS: Final = 27

# libzstd, lib/zstd.h: name, result, arguments. A size may be an error (ZSTD_isError).
_SIZE, _POINTER = ctypes.c_size_t, ctypes.c_void_p
_FUNCTIONS: Final = (
    ("ZSTD_createDCtx", _POINTER, ()),
    ("ZSTD_freeDCtx", _SIZE, (_POINTER,)),
    ("ZSTD_DCtx_refPrefix", _SIZE, (_POINTER, _POINTER, _SIZE)),
    ("ZSTD_decompressDCtx", _SIZE, (_POINTER, _POINTER, _SIZE, _POINTER, _SIZE)),
    ("ZSTD_isError", ctypes.c_uint, (_SIZE,)),
    ("ZSTD_getErrorName", ctypes.c_char_p, (_SIZE,)),
)

# CPython's C API: bytes whose content is filled in before anyone else sees them.
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, (_POINTER, ctypes.c_ssize_t)
_address = ctypes.pythonapi.PyBytes_AsString
_address.restype, _address.argtypes = _POINTER, (ctypes.py_object,)


class Prefix:
    """Plain bytes that frames can refer to as if they stood in front of them."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain

    def __len__(self) -> int:
        return len(self.plain)

    @cached_property
    def dictionary(self) -> zstd.ZstdDict:
        """The same for backports.zstd, which takes a copy."""
        return zstd.ZstdDict(self.plain, is_raw=True)


def decompress(stored: bytes, size: int, what: str, prefix: Prefix | None = None) -> bytes:
    """Decode exactly one zstd frame of exactly `size` bytes; more is never made.

    Raises:
        HostileInput: malformed, of another size, or with bytes behind it.
    """
    try:
        declared = zstd.get_frame_info(stored).decompressed_size
        if declared != size or zstd.get_frame_size(stored) != len(stored):
            raise HostileInput(f"{what}: a zstd frame that does not hold exactly {size} bytes")
        plain = (_in_one_call() or in_blocks)(stored, size, prefix)
    except (zstd.ZstdError, ValueError) as error:
        raise HostileInput(f"{what}: not a zstd frame: {error}") from None
    if len(plain) != size:
        raise HostileInput(f"{what}: a zstd frame that does not hold exactly {size} bytes")
    return plain


def in_blocks(stored: bytes, size: int, prefix: Prefix | None) -> bytes:
    """By backports.zstd alone."""
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_BITS}
    decoder = zstd.ZstdDecompressor(zstd_dict=_referred(prefix), options=options)
    plain = decoder.decompress(stored, size + 1)
    return plain if decoder.eof else b""


def _referred(prefix: Prefix | None) -> Any:
    return prefix.dictionary.as_prefix if prefix else None


@cache
def _in_one_call() -> _Decode | None:
    """By the library's own functions, if they are to be had and give right answers."""
    try:
        functions = _functions()
    except (OSError, AttributeError, ImportError):
        return None

    def decode(stored: bytes, size: int, prefix: Prefix | None) -> bytes:
        return _decode(functions, stored, size, prefix)

    plain = bytes(range(256)) * 16
    for prefix in (None, Prefix(plain[::-1])):
        packed = zstd.compress(plain, zstd_dict=_referred(prefix))
        if decode(packed, len(plain), prefix) != plain:
            return None
    return decode


def _functions() -> dict[str, Any]:
    from backports.zstd import _zstd

    library = ctypes.CDLL(_zstd.__file__)
    found = {}
    for name, result, arguments in _FUNCTIONS:
        found[name] = getattr(library, name)
        found[name].restype, found[name].argtypes = result, arguments
    return found


def _decode(functions: dict[str, Any], stored: bytes, size: int, prefix: Prefix | None) -> bytes:
    context = functions["ZSTD_createDCtx"]()
    if not context:
        raise MemoryError("no memory for a zstd decoder")
    try:
        if prefix:
            functions["ZSTD_DCtx_refPrefix"](context, prefix.plain, len(prefix))
        plain: bytes = _new_bytes(None, size)
        made = functions["ZSTD_decompressDCtx"](context, _address(plain), size, stored, len(stored))
    finally:
        functions["ZSTD_freeDCtx"](context)
    if functions["ZSTD_isError"](made):
        raise zstd.ZstdError(functions["ZSTD_getErrorName"](made).decode())
    return plain if made == size else b""
