"""LZMA2: the data of one .xz block, byte for byte as liblzma's presets write it.

Facts (measured with liblzma 5.4.1 and 5.8.4, tests/compat/test_xz_tools.py): a raw encoder with
a preset and the block header's dictionary size gives the bytes of `xz -N` and `xz -Ne`, whether
xz ran with one thread or several and however the input was cut into pieces. The multi-threaded
encoder alone replaces a block that would outgrow its bound by stored chunks and a dictionary
of 4 KiB ("stored" here).

A block may be the whole file, so that the work is done in pieces; `encode` and `decode` are for
blocks that fit into memory.
"""

from __future__ import annotations

import hashlib
import lzma
from typing import TYPE_CHECKING

from rehydrator.core.errors import HostileInput, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Params = tuple[tuple[str, int], ...]

KIB, MIB = 1 << 10, 1 << 20

MIN_DICT = 4 * KIB
# liblzma's encoder takes no more (lzma12.h, dict_size).
MAX_DICT = 1536 * MIB
# What a block header can ask of a decoder (xz format 1.2, 5.3.1).
_MAX_DECODER_DICT = (1 << 32) - 1

# Most memory for trials: -9 and -9e take 674 MiB.
TRIAL_MEMORY = 1024 * MIB

STORED: Params = (("stored", 1),)

# xz(1), the presets: the dictionary of each level.
PRESET_DICT = tuple(size << 10 for size in (256, 1024, 2048, 4096, 4096, 8192, 8192, 16384, 32768, 65536))

# A stored chunk (xz format 1.2 names LZMA2; liblzma's lzma2_encoder.c lays it out): control byte,
# size minus one in 16 bits, the bytes. 1 resets the dictionary, 2 does not; 0 ends the data.
_STORED_CHUNK = 64 * KIB
_RESET, _NO_RESET, _END = b"\1", b"\2", b"\0"

_PIECE = MIB
_TRIAL = 64 * KIB


def preset(level: int, dict_size: int, *, extreme: bool = False) -> Params:
    """`xz -N`, or `xz -Ne`, with a dictionary of `dict_size` bytes."""
    return (("dict_size", dict_size), ("extreme", int(extreme)), ("preset", level))


def encode(plain: bytes, params: Mapping[str, int]) -> bytes:
    """The LZMA2 data of a block that holds `plain`, its end marker included.

    Raises:
        HostileInput: parameters that there are not.
        LimitExceeded: no memory for the encoder (see `memory`).
    """
    return b"".join(encode_pieces([plain], params))


def encode_pieces(pieces: Iterable[bytes], params: Mapping[str, int]) -> Iterator[bytes]:
    """As `encode`; the bytes do not depend on how `plain` is cut into pieces."""
    if dict(params) == dict(STORED):
        yield from _stored(pieces)
        return
    compressor = _compressor(params)
    for piece in pieces:
        for part in _cut(piece, _PIECE):
            yield compressor.compress(part)
    yield compressor.flush()


def decode(data: bytes, dict_size: int, size: int) -> bytes:
    """The `size` plain bytes of a block.

    Raises:
        HostileInput: broken or cut short, other than `size` bytes, or bytes behind the end.
        LimitExceeded: no memory for the dictionary.
    """
    return b"".join(decode_pieces([data], dict_size, size))


def decode_pieces(pieces: Iterable[bytes], dict_size: int, size: int) -> Iterator[bytes]:
    """As `decode`, in pieces of at most 1 MiB; what was yielded before an error is not proven.

    Takes memory for the smaller of the dictionary and the plain bytes: no match reaches
    back further than either.
    """
    _check_dict(dict_size, _MAX_DECODER_DICT)
    if size < 0:
        raise HostileInput(f"an LZMA2 block of {size} bytes")
    decompressor = _decompressor(max(min(dict_size, size), MIN_DICT))
    left = size
    for piece in pieces:
        for plain in _decompressed(decompressor, piece):
            left -= len(plain)
            if left < 0:
                raise HostileInput(f"LZMA2 data of more than {size} bytes")
            yield plain
    if not decompressor.eof:
        raise HostileInput("LZMA2 data that are cut short")
    if left:
        raise HostileInput(f"LZMA2 data of {size - left} bytes, not of {size}")


def find(
    plain: bytes, data: bytes, dict_size: int, *, whole: bool = False, most: int = TRIAL_MEMORY
) -> list[Params]:
    """The parameters that give LZMA2 data beginning with `data`, for a block beginning with
    `plain`; likeliest first, and all levels that cannot be told apart.

    Only what the encoder writes before it is told of an end is compared, so that no end of a
    prefix is mistaken for a difference. That lags behind the input by up to one chunk of 2 MiB
    and some KiB of look-ahead (measured: 2 MiB + 17 KiB for zeros, 80 KiB for noise, fed in
    16 KiB): give at least 4 MiB of `plain`, or the `whole` block; where nothing could be
    compared, nothing is found.

    Args:
        plain: the first bytes of the block, or all.
        data: the first bytes of its LZMA2 data, or all.
        dict_size: as the block header says, in bytes.
        whole: `plain` and `data` are the whole block, which is then proven.
        most: bytes of memory that a trial may take; trials run one after the other.

    Raises:
        HostileInput: a dictionary that the encoder does not have.
        LimitExceeded: one that takes more memory than `most`.
    """
    needed = memory(dict(preset(9, dict_size)))
    if needed > most:
        raise LimitExceeded(
            f"an LZMA2 dictionary of {dict_size} bytes: its encoder takes {needed // MIB} MiB of memory,"
            f" and {most // MIB} MiB are allowed"
        )
    found: list[Params] = []
    if dict_size == MIN_DICT and _begins(_stored(_cut(plain, _TRIAL), end=whole), data, whole=whole):
        found.append(STORED)
    for levels in _alike(dict_size):
        if _begins(_trial(plain, levels[0], end=whole), data, whole=whole):
            found.extend(levels)
    return found


def dict_sizes(stated: int) -> list[int]:
    """Dictionaries that a block header states as `stated` bytes: that size itself, then the
    whole MiB that are rounded up to it (5.3.1 has 2^n and 2^n + 2^(n-1) only), largest first.

    xz takes a dictionary of whole MiB where a memory limit makes it smaller (measured: -7
    within 66 MiB has 5 MiB, stated as 6). A prefix shorter than the dictionary does not tell
    them apart: where the proof fails for the stated size, it may be made with the others.

    Raises:
        HostileInput: a dictionary that the encoder does not have.
    """
    _check_dict(stated)
    power = 1 << stated.bit_length() - 1
    below = power if stated > power else power // 4 * 3
    return [stated, *range((stated - 1) // MIB * MIB, below, -MIB)]


def prove(plain: Iterable[bytes], data: Iterable[bytes], params: Mapping[str, int]) -> bool:
    """True where the block of `plain` is encoded to exactly `data`; both in pieces of any size."""
    made = encode_pieces(plain, params)
    ahead = b""
    for piece in data:
        while len(ahead) < len(piece):
            more = next(made, None)
            if more is None:
                return False
            ahead += more
        if not ahead.startswith(piece):
            return False
        ahead = ahead[len(piece) :]
    return not ahead and not any(made)


def memory(params: Mapping[str, int]) -> int:
    """Bytes that the encoder takes besides its input and output, about (xz(1), under mf=)."""
    if dict(params) == dict(STORED):
        return 0
    level, extreme, size = _checked(params)
    large = size > 32 * MIB
    if extreme or level > 3:
        return (size * 21 if large else size * 23) // 2 + 2 * MIB
    if level:
        return (size * 13 if large else size * 15) // 2 + 2 * MIB
    return (size * 15 // 2 if size <= 16 * MIB else size * 11 // 2 + 64 * MIB) + 2 * MIB


def known_answer(params: Mapping[str, int]) -> str:
    """SHA-256 of 256 KiB of text-like bytes, always the same, encoded with `params`: two
    libraries that agree here write one another's blocks, as far as a test can say."""
    return hashlib.sha256(encode(sample(), params)).hexdigest()


def sample() -> bytes:
    """The plain bytes of the known-answer test: 128 KiB of words, some near and some far
    repeats of them, and noise."""
    noise = b"".join(hashlib.sha256(b"rehydrator %d" % k).digest() for k in range(2048))
    words = [noise[k : k + 3 + noise[k] % 9] for k in range(0, 8192, 8)]
    order = (noise[k] | noise[k + 1] << 8 for k in range(8192, 65536, 2))
    text = b"".join(words[number % len(words)] for number in order)[: 128 * KIB]
    return (text + noise + text[::-1] + text)[: 256 * KIB]


def version() -> str:
    """The liblzma at hand, as itself says (lzma/version.h); where it cannot be asked, because it
    is a part of the interpreter, by its answer for the default preset."""
    import _lzma
    import ctypes

    try:
        said = ctypes.CDLL(_lzma.__file__).lzma_version_string
    except (AttributeError, OSError):
        return f"liblzma with the known answer {known_answer(dict(preset(6, MIB)))[:12]}"
    said.restype = ctypes.c_char_p
    return f"liblzma {said().decode()}"


def _compressor(params: Mapping[str, int]) -> lzma.LZMACompressor:
    level, extreme, size = _checked(params)
    flags = level | (lzma.PRESET_EXTREME if extreme else 0)
    chain = [{"id": lzma.FILTER_LZMA2, "preset": flags, "dict_size": size}]
    try:
        return lzma.LZMACompressor(lzma.FORMAT_RAW, filters=chain)
    except MemoryError:
        raise LimitExceeded(f"no memory for an LZMA2 encoder: it takes {memory(params) // MIB} MiB") from None


def _decompressor(dict_size: int) -> lzma.LZMADecompressor:
    chain = [{"id": lzma.FILTER_LZMA2, "dict_size": dict_size}]
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain)
    except MemoryError:
        raise LimitExceeded(f"no memory for an LZMA2 decoder: it takes {dict_size // MIB} MiB") from None


def _checked(params: Mapping[str, int]) -> tuple[int, int, int]:
    level, extreme, size = params.get("preset"), params.get("extreme"), params.get("dict_size")
    if len(params) != 3 or level not in range(10) or extreme not in (0, 1) or size is None:
        raise HostileInput(f"LZMA2 parameters out of range: {dict(params)}")
    assert level is not None
    assert extreme is not None
    _check_dict(size)
    return level, extreme, size


def _check_dict(size: int, most: int = MAX_DICT) -> None:
    if not MIN_DICT <= size <= most:
        raise HostileInput(f"an LZMA2 dictionary of {size} bytes, not of {MIN_DICT} to {most}")


def _stored(pieces: Iterable[bytes], *, end: bool = True) -> Iterator[bytes]:
    control, held = _RESET, b""
    for piece in pieces:
        for part in _cut(piece, _STORED_CHUNK):
            held += part
            if len(held) >= _STORED_CHUNK:
                yield control + _stored_chunk(held[:_STORED_CHUNK])
                control, held = _NO_RESET, held[_STORED_CHUNK:]
    if end:
        yield (control + _stored_chunk(held) if held else b"") + _END


def _stored_chunk(plain: bytes) -> bytes:
    return (len(plain) - 1).to_bytes(2, "big") + plain


def _decompressed(decompressor: lzma.LZMADecompressor, piece: bytes) -> Iterator[bytes]:
    """What `piece` decodes to, at most 1 MiB at a time."""
    while piece or not (decompressor.eof or decompressor.needs_input):
        if decompressor.eof:
            raise HostileInput("bytes behind the end of LZMA2 data")
        try:
            plain = decompressor.decompress(piece, _PIECE)
        except lzma.LZMAError as error:
            raise HostileInput(f"not LZMA2 data: {error}") from None
        piece = decompressor.unused_data
        if plain:
            yield plain
        elif not piece:
            return


def _alike(dict_size: int) -> list[list[Params]]:
    """Every level with `dict_size`, those of one encoder setting together; likeliest first:
    levels whose own dictionary it is, then the higher ones, each plain before extreme."""
    every = [(level, extreme) for level in range(10) for extreme in (False, True)]
    every.sort(key=lambda one: (PRESET_DICT[one[0]] != dict_size, one[1], -one[0]))
    settings: dict[str, list[Params]] = {}
    for level, extreme in every:
        name = _setting(level, extreme=extreme)
        settings.setdefault(name, []).append(preset(level, dict_size, extreme=extreme))
    return list(settings.values())


def _setting(level: int, *, extreme: bool) -> str:
    """What a level sets besides the dictionary (xz(1), lzma_encoder_presets.c): levels 6 to 9
    agree, 3e and 5e do, and all other extreme ones."""
    if extreme:
        return "extreme 192" if level in (3, 5) else "extreme 273"
    return str(min(level, 6))


def _cut(plain: bytes, size: int) -> Iterator[bytes]:
    return (plain[at : at + size] for at in range(0, len(plain), size))


def _trial(plain: bytes, params: Params, *, end: bool) -> Iterator[bytes]:
    compressor = _compressor(dict(params))
    for piece in _cut(plain, _TRIAL):
        yield compressor.compress(piece)
    if end:
        yield compressor.flush()


def _begins(made: Iterator[bytes], data: bytes, *, whole: bool) -> bool:
    """True where something was made and agrees with `data` as far as both go (`whole`: to
    the end of both)."""
    at = 0
    for piece in made:
        expected = data[at : at + len(piece)]
        if not piece.startswith(expected) or (whole and len(expected) < len(piece)):
            return False
        at += len(piece)
        if at >= len(data) and not whole:
            break
    return at == len(data) if whole else min(at, len(data)) > 0
