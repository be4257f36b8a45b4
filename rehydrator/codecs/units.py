"""Encoders of the blocks of read-only file systems: families of one codec each, found by trial.
A unit is at most 1 MiB and is made whole, in one call, so that units come in any order and side
by side.

    unit.zlib   a zlib stream (RFC 1950)          zlib; zlib-ng where a distribution has it instead
    unit.xz     an .xz container of one block     liblzma, written as lzma_stream_buffer_encode does
    unit.zstd   a zstd frame (RFC 8878)           one call of ZSTD_compressCCtx, by a stated version
    unit.lz4    an LZ4 block                      LZ4_compress_default, LZ4_compress_HC

Facts (measured; mksquashfs 4.5.1 of Debian 12, 4.6.1 of 13 and 4.7.5 of sid; 79 MiB of programs,
Python and documentation in blocks of 128 KiB by default options, 2 MiB and 17 MiB by others and in
blocks of 1 MiB; tests/compat/test_squashfs_encoders.py measures the 2 MiB again):

- zlib 1.2.13, liblzma 5.4.1 and liblz4 1.9.4 give every block that zlib 1.2.13 to 1.3.2, liblzma
  5.4.1 to 5.8.4 and liblz4 1.9.4 and 1.10.0 wrote.
- libzstd gives every block of its own version. Of others, in 16 blocks of 128 KiB (10 of 1 MiB):

      levels               1.5.4 = 1.5.5     1.5.5 = 1.5.6       1.5.6 = 1.5.7
      1, 2                 all               all                 all (none)
      3, 4                 all               all                 none
      5, 6, 8, 9, 10       none              all                 all (none)
      12                   all (none)        all                 all (none)
      13, 15               all               75 to 95 % (all)    all (none)
      16 to 20, 22         all               30 % (0 to 10 %)    all (none)

- The distributions of PyPI that bundle libzstd can stand side by side with different versions of
  it; and ZSTD_compressStream2, told of the end at once, gives the bytes of ZSTD_compressCCtx.
- The lz4 package's block compressor gives other bytes than LZ4_compress_default below 64 KiB (8 %
  of all blocks); an independent block of its frame compressor gives the same.
"""

from __future__ import annotations

import importlib
import lzma
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from rehydrator.codecs import lzma2
from rehydrator.codecs.stream_encoder import Codec, Family, Filter, Hit, Params, checked, no_package
from rehydrator.core.errors import HostileInput, LimitExceeded, ToolMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

KIB: Final = 1 << 10

MAX_UNIT: Final = 1 << 20
"""Plain bytes: the largest block of squashfs."""


def _most(plain: int | None) -> int:
    """The plain bytes of the largest unit, where a stream has `plain` at most (None: any number)."""
    return MAX_UNIT if plain is None else min(plain, MAX_UNIT)


class _Unit:
    """What the codecs have in common: a unit is collected, and encoded in one call."""

    id = ""
    ranges: ClassVar[Mapping[str, range]]

    def checked(self, params: Mapping[str, int]) -> Params:
        return checked(self.id, params, self.ranges)

    def encode(
        self, params: Mapping[str, int], chunks: Iterable[bytes], run: Filter | None
    ) -> Iterator[bytes]:
        plain = bytearray()
        for chunk in chunks:
            plain += chunk
            if len(plain) > MAX_UNIT:
                raise LimitExceeded(f"a unit of more than {MAX_UNIT} bytes for {self.id}")
        yield self.whole(bytes(plain), params)

    def whole(self, plain: bytes, params: Mapping[str, int]) -> bytes:
        """The unit of these plain bytes; the parameters were checked."""
        raise NotImplementedError


class _Zlib(_Unit):
    """deflateInit2 with memLevel 8, and deflate with Z_FINISH; "ng" is the library."""

    id = "unit.zlib"
    ranges: ClassVar[Mapping[str, range]] = {
        "level": range(1, 10),
        "ng": range(2),
        "strategy": range(5),  # Z_DEFAULT_STRATEGY to Z_FIXED
        "wbits": range(9, 16),
    }

    def whole(self, plain: bytes, params: Mapping[str, int]) -> bytes:
        deflate = self._module(params["ng"]).compressobj(
            params["level"], zlib.DEFLATED, params["wbits"], zlib.DEF_MEM_LEVEL, params["strategy"]
        )
        made: bytes = deflate.compress(plain) + deflate.flush()
        return made

    def described(self, params: Mapping[str, int]) -> str:
        library = "zlib-ng" if params["ng"] else "zlib"
        strategy = f", strategy {params['strategy']}" if params["strategy"] else ""
        return f"{library} -{params['level']}, window {params['wbits']}{strategy}"

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        # zconf.h; and its small structures.
        return (4 << params["wbits"]) + (512 << zlib.DEF_MEM_LEVEL) + 8 * KIB

    def version(self, run: Filter | None) -> str:
        return f"zlib {zlib.ZLIB_RUNTIME_VERSION}"

    def candidates(self, packed: bytes, hints: Mapping[str, int]) -> Iterator[Params]:
        """`hints` has the level, the window, and a bit for each strategy that mksquashfs tried;
        libraries are tried."""
        level, wbits = hints.get("level", 9), hints.get("wbits", 15)
        for ng in range(2):
            for strategy in self.ranges["strategy"]:
                if strategy and not hints.get("strategies", 0) >> strategy & 1:
                    continue
                yield self.checked({"level": level, "ng": ng, "strategy": strategy, "wbits": wbits})

    @staticmethod
    def _module(ng: int) -> Any:
        if not ng:
            return zlib
        # Imported late: only file systems made with zlib-ng need it.
        try:
            return importlib.import_module("zlib_ng.zlib_ng")
        except ImportError:
            raise no_package("zlib-ng") from None


class _Xz(_Unit):
    """lzma_stream_buffer_encode with LZMA_CHECK_CRC32: the default preset with another dictionary;
    "bcj" is the id of a filter before LZMA2, 0 for none."""

    id = "unit.xz"
    ranges: ClassVar[Mapping[str, range]] = {
        "bcj": range(10),
        "dict_size": range(4 * KIB, MAX_UNIT + 1),
        "lc": range(5),
        "lp": range(5),
        "pb": range(5),
    }

    def checked(self, params: Mapping[str, int]) -> Params:
        fine = super().checked(params)
        if params["bcj"] not in (0, *_BCJ) or params["lc"] + params["lp"] > 4:
            raise HostileInput(f"parameters that {self.id} does not have: {dict(params)!s:.200}")
        _dictionary_byte(params["dict_size"])
        return fine

    def whole(self, plain: bytes, params: Mapping[str, int]) -> bytes:
        bcj: list[dict[str, int]] = [{"id": params["bcj"]}] if params["bcj"] else []
        chosen = {name: params[name] for name in ("dict_size", "lc", "lp", "pb")}
        chain = [*bcj, {"id": lzma.FILTER_LZMA2, "preset": lzma.PRESET_DEFAULT, **chosen}]
        try:
            encoder = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=chain)
            data = encoder.compress(plain) + encoder.flush()
        except MemoryError:
            raise LimitExceeded("no memory for an xz encoder") from None
        return _xz_container(plain, data, params["bcj"], params["dict_size"])

    def described(self, params: Mapping[str, int]) -> str:
        bcj = f" with {_BCJ[params['bcj']]}" if params["bcj"] else ""
        return f"xz{bcj}, dictionary of {params['dict_size']} bytes"

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        return lzma2.memory(dict(lzma2.preset(lzma.PRESET_DEFAULT, params["dict_size"])))

    def version(self, run: Filter | None) -> str:
        return lzma2.version()

    def candidates(self, packed: bytes, hints: Mapping[str, int]) -> Iterator[Params]:
        """A unit's own headers state all parameters but the preset."""
        stated = _stated_by_xz(packed)
        if stated is not None:
            with suppress(HostileInput):
                yield self.checked(stated)


class _Zstd(_Unit):
    """ZSTD_compressCCtx of one version of libzstd; "library" is its ZSTD_VERSION_NUMBER."""

    id = "unit.zstd"
    ranges: ClassVar[Mapping[str, range]] = {"level": range(1, 23), "library": range(10000, 1000000)}

    def whole(self, plain: bytes, params: Mapping[str, int]) -> bytes:
        libraries, wanted = zstd_libraries(), params["library"]
        if wanted not in libraries:
            source = _ZSTD_WHEELS.get(wanted)
            install = f"; {source} from PyPI has it" if source else ""
            here = ", ".join(map(_zstd_name, libraries))
            raise ToolMissing(f"zstd {_zstd_name(wanted)} is needed, and {here} is here{install}")
        return libraries[wanted](plain, params["level"])

    def described(self, params: Mapping[str, int]) -> str:
        return f"zstd {_zstd_name(params['library'])} -{params['level']}"

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        # Measured (ZSTD_sizeof_CCtx, 1.5.4): 22 times the plain bytes at 128 KiB, 17 at 1 MiB,
        # for levels above 14, and 270 KiB at 4 KiB; less for others.
        return 24 * _most(plain) + 512 * KIB

    def version(self, run: Filter | None) -> str:
        return f"zstd {', '.join(map(_zstd_name, zstd_libraries()))}"

    def candidates(self, packed: bytes, hints: Mapping[str, int]) -> Iterator[Params]:
        """`hints` has the level; all libraries at hand are tried."""
        levels = (hints["level"],) if "level" in hints else (15, 19, 3, 22)
        for level in levels:
            for library in zstd_libraries():
                yield self.checked({"level": level, "library": library})


class _Lz4(_Unit):
    """Level 0 is LZ4_compress_default, 1 to 12 are those of LZ4_compress_HC."""

    id = "unit.lz4"
    ranges: ClassVar[Mapping[str, range]] = {"level": range(13)}

    def whole(self, plain: bytes, params: Mapping[str, int]) -> bytes:
        block, frame = _lz4()
        if params["level"]:
            made: bytes = block.compress(
                plain, mode="high_compression", compression=params["level"], store_size=False
            )
            return made
        framed = frame.compress(
            plain,
            compression_level=0,
            block_size=frame.BLOCKSIZE_MAX4MB,
            block_linked=False,
            store_size=False,
        )
        # LZ4 Frame Format: a header of 7 bytes, the length of the block, the block. One that would
        # not shrink lies there as it is; in file systems too, so that any encoder will do.
        length = int.from_bytes(framed[_LZ4_HEADER : _LZ4_HEADER + 4], "little")
        if length & _LZ4_AS_IS:
            return bytes(block.compress(plain, store_size=False))
        return bytes(framed[_LZ4_HEADER + 4 : _LZ4_HEADER + 4 + length])

    def described(self, params: Mapping[str, int]) -> str:
        return f"lz4hc -{params['level']}" if params["level"] else "lz4"

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        # lz4hc.h: LZ4_STREAMHC_MINSIZE, and 64 KiB of prices; and the frame.
        return 512 * KIB + 2 * _most(plain)

    def version(self, run: Filter | None) -> str:
        _lz4()
        return f"lz4 {importlib.import_module('lz4').library_version_string()}"

    def candidates(self, packed: bytes, hints: Mapping[str, int]) -> Iterator[Params]:
        return (self.checked({"level": level}) for level in (0, 12))


@dataclass(frozen=True)
class _Alone:
    """A family of one codec, whose streams are units: nothing is found from a prefix of one."""

    codec: _Zlib | _Xz | _Zstd | _Lz4

    @property
    def name(self) -> str:
        return self.codec.id

    @property
    def codecs(self) -> Sequence[Codec]:
        return (self.codec,)

    def find(
        self, plain: bytes, packed: bytes, hints: Mapping[str, int], *, whole: bool, run: Filter | None
    ) -> list[Hit]:
        if not whole or len(plain) > MAX_UNIT:
            return []
        tried = self.codec.candidates(packed, hints)
        return [
            Hit(self.codec.id, params, len(packed)) for params in tried if self._gives(params, plain, packed)
        ]

    def _gives(self, params: Params, plain: bytes, packed: bytes) -> bool:
        try:
            return self.codec.whole(plain, dict(params)) == packed
        except ToolMissing:
            return False


UNITS: Final[tuple[Family, ...]] = tuple(_Alone(codec) for codec in (_Zlib(), _Xz(), _Zstd(), _Lz4()))


_LZ4_HEADER, _LZ4_AS_IS = 7, 1 << 31


def _lz4() -> tuple[Any, Any]:
    try:
        return importlib.import_module("lz4.block"), importlib.import_module("lz4.frame")
    except ImportError:
        raise no_package("lz4") from None


# --- xz (The .xz File Format 1.2; the sections are named) ---

_XZ_HEADER, _XZ_FOOTER = b"\xfd7zXZ\0", b"YZ"  # 2.1.1.1, 2.1.2.4
_XZ_FLAGS: Final = b"\0\x01"  # 2.1.1.2: CRC32
_XZ_BLOCK: Final = 12  # behind the stream's header
_XZ_SIZES: Final = 0xC0  # 3.1.2: both sizes are stated
_LZMA2, _LZMA2_CHUNK = 0x21, 64 * KIB
# 5.3.2, but for those that Python's lzma does not have (ARM64, RISC-V).
_BCJ: Final = {4: "x86", 5: "powerpc", 6: "ia64", 7: "arm", 8: "armthumb", 9: "sparc"}
_DEFAULT_LC, _DEFAULT_LP, _DEFAULT_PB = 3, 0, 2
# An LZMA chunk that resets all states: lc, lp and pb are in the sixth byte (liblzma's lzma2_encoder.c).
_LZMA2_ALL_RESET, _LZMA2_PROPERTIES = 0xE0, 5


def _xz_container(plain: bytes, data: bytes, bcj: int, dict_size: int) -> bytes:
    """A stream of one block, with the LZMA2 `data` of `plain`."""
    filters = (bytes((bcj, 0)) if bcj else b"") + bytes((_LZMA2, 1, _dictionary_byte(dict_size)))
    header = _block_header(len(plain), len(data), filters, count=2 if bcj else 1)
    block = header + data
    check = _crc(plain)
    index = b"\0\x01" + _vli(len(block) + len(check)) + _vli(len(plain))
    index += bytes(-len(index) % 4)
    back = (len(index) // 4).to_bytes(4, "little") + _XZ_FLAGS
    return b"".join(
        (
            _XZ_HEADER + _XZ_FLAGS + _crc(_XZ_FLAGS),
            block + bytes(-len(block) % 4) + check,
            index + _crc(index),
            _crc(back) + back + _XZ_FOOTER,
        )
    )


def _block_header(plain: int, packed: int, filters: bytes, count: int) -> bytes:
    """3.1. liblzma leaves room for the most that LZMA2 makes of the plain bytes, before it knows
    how many they are (block_buffer_encoder.c)."""
    most = plain + 3 * -(-plain // _LZMA2_CHUNK) + 1
    room = 2 + len(_vli(most)) + len(_vli(plain)) + len(filters)
    room += -room % 4
    flags = _XZ_SIZES | (count - 1)
    header = (bytes((room // 4, flags)) + _vli(packed) + _vli(plain) + filters).ljust(room, b"\0")
    return header + _crc(header)


def _stated_by_xz(packed: bytes) -> dict[str, int] | None:
    """The parameters that a container's headers state; None where they are not as ours."""
    room = packed[_XZ_BLOCK] * 4 if len(packed) > _XZ_BLOCK else 0
    header = packed[_XZ_BLOCK : _XZ_BLOCK + room]
    data = packed[_XZ_BLOCK + room + 4 :]
    if len(header) < 8 or len(data) <= _LZMA2_PROPERTIES or header[1] & ~1 != _XZ_SIZES:
        return None
    at = 2
    for _ in range(2):  # two sizes
        while at < len(header) and header[at] >= 0x80:
            at += 1
        at += 1
    chain = header[at:]
    bcj = chain[0] if header[1] & 1 and chain[:1] else 0
    own = chain[2:5] if bcj else chain[:3]
    if len(own) < 3 or own[:2] != bytes((_LZMA2, 1)) or (bcj and chain[1]) or bcj not in (0, *_BCJ):
        return None
    dict_size = (2 | own[2] & 1) << (own[2] // 2 + 11)
    if dict_size > MAX_UNIT:
        return None
    return {"bcj": bcj, "dict_size": dict_size, **_stated_by_lzma(data)}


def _stated_by_lzma(data: bytes) -> dict[str, int]:
    lc, lp, pb = _DEFAULT_LC, _DEFAULT_LP, _DEFAULT_PB
    if data[0] >= _LZMA2_ALL_RESET and data[_LZMA2_PROPERTIES] < 9 * 5 * 5:
        rest, lc = divmod(data[_LZMA2_PROPERTIES], 9)
        pb, lp = divmod(rest, 5)
    return {"lc": lc, "lp": lp, "pb": pb}


def _dictionary_byte(size: int) -> int:
    """5.3.1: 2^n and 2^n + 2^(n-1) bytes."""
    for byte in range(40):
        if (2 | byte & 1) << (byte // 2 + 11) == size:
            return byte
    raise HostileInput(f"an LZMA2 dictionary of {size} bytes")


def _vli(number: int) -> bytes:
    """1.2: seven bits a byte, the lowest first."""
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*made, number))


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


# --- zstd ---


class _Wheel(NamedTuple):
    """A module that bundles libzstd: its version, and a frame in one call."""

    module: str
    version: Callable[[Any], tuple[int, int, int]]
    compress: Callable[[Any, bytes, int], bytes]


_WHEELS: Final = (
    _Wheel("backports.zstd", lambda m: m.zstd_version_info, lambda m, plain, level: m.compress(plain, level)),
    _Wheel(
        "zstandard",
        lambda m: m.ZSTD_VERSION,
        lambda m, plain, level: m.ZstdCompressor(level=level).compress(plain),
    ),
    _Wheel("pyzstd", lambda m: m.zstd_version_info, lambda m, plain, level: m.compress(plain, level)),
)
_SYSTEM: Final = "libzstd.so.1"
# The distributions of PyPI that bundle each (measured).
_ZSTD_WHEELS: Final = {
    10504: "zstandard==0.20.0",
    10505: "zstandard==0.22.0",
    10506: "pyzstd==0.16.2",
    10507: "backports.zstd==1.8.0",
}


@cache
def zstd_libraries() -> Mapping[int, Callable[[bytes, int], bytes]]:
    """The libraries at hand by ZSTD_VERSION_NUMBER: those of Python packages, and the system's."""
    found: dict[int, Callable[[bytes, int], bytes]] = {}
    for wheel in _WHEELS:
        try:
            module = importlib.import_module(wheel.module)
        except ImportError:
            continue
        major, minor, release = wheel.version(module)
        found.setdefault(major * 10000 + minor * 100 + release, partial(wheel.compress, module))
    return found | {number: made for number, made in _system_zstd() if number not in found}


def _system_zstd() -> Iterator[tuple[int, Callable[[bytes, int], bytes]]]:
    """The library that this machine's own mksquashfs uses."""
    # Late, as the rest: only zstd units need it.
    import ctypes

    try:
        library = ctypes.CDLL(_SYSTEM)
    except OSError:
        return
    size, text = ctypes.c_size_t, ctypes.c_char_p
    library.ZSTD_compressBound.argtypes, library.ZSTD_compressBound.restype = [size], size
    library.ZSTD_compress.argtypes = [text, size, text, size, ctypes.c_int]
    library.ZSTD_compress.restype = size

    def compress(plain: bytes, level: int) -> bytes:
        room = library.ZSTD_compressBound(len(plain))
        target = ctypes.create_string_buffer(room)
        length = library.ZSTD_compress(target, room, plain, len(plain), level)
        if library.ZSTD_isError(size(length)):
            raise LimitExceeded(f"no memory for zstd -{level}")
        return target.raw[:length]

    yield int(library.ZSTD_versionNumber()), compress


def _zstd_name(number: int) -> str:
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
