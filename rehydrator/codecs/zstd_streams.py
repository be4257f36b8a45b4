"""Codecs of zstd frames (RFC 8878), and the search for the one that wrote a frame.

Facts (measured; 8 MiB and 40 MiB of programs; the programs zstd 1.5.4 of Debian 12 and 1.5.7 of
sid, and the library 1.5.7 of backports.zstd):

- The library writes the bytes of the program of the same version, at every level (-7 to 22), with
  --long, --rsyncable, --single-thread, from a file and from a pipe.
- 1.5.4 and 1.5.7 differ at every level up to 16 (more were not tried) for 8 MiB; for 1 MiB and
  less they agree at levels up to 2 and at a few others. Otherwise only a program or library of
  the version gives its bytes.
- The program is "multi-threaded" with one thread too, but for --single-thread. Its bytes depend
  on the size of the jobs, which follows from the level, and not on the number of threads.
- The library's bytes do not depend on how its input is cut into pieces, but for the last one:
  pieces of 128 KiB, the program's, give the program's bytes; of 1 MiB they sometimes do not.
- A file's size is known when it is begun, a pipe's is not. That is seen in the frame's header,
  changes what --long does, and what the end looks like: with the size, the encoder is told of the
  end with the last piece; without, after it, so that whole blocks (whole jobs, with
  threads) are followed by an empty one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from backports import zstd

from rehydrator.codecs.stream_encoder import (
    Codec,
    Filter,
    Hit,
    Params,
    agreed,
    checked,
    close,
    cut,
    pieces,
    runner,
    version_of,
)
from rehydrator.core.errors import HostileInput, Interrupted, LimitExceeded, RehydratorError, ToolMissing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

KIB: Final = 1 << 10
MIB: Final = 1 << 20

LEVELS: Final = (3, 19, 10, 9, 1, 22, 6, 15, 12, 2, 4, 5, 7, 8, 11, 13, 14, 16, 17, 18, 20, 21, -1)
"""Likeliest first: the default, the best without --ultra, that of CoreOS, ...; -1 is --fast."""

MIN_AGREED: Final = 64
"""Bytes: fewer in common are no hit, unless they are all; a frame's header has at most 18."""

# zstd's lib/compress/clevels.h, for inputs above 256 KiB: log2 of the window of each level, and
# of the tables (of 4 bytes) that the match finder has; those below 1 are as 1, nearly.
_WINDOW_LOGS = (19, 20, 21, 21, 21, 21, 21, 21, 22, 22, 22, 22, 22, 22, 22, 22, 23, 23, 23, 25, 26, 27)
_CHAIN_LOGS = (13, 15, 16, 18, 18, 18, 19, 19, 20, 21, 21, 22, 22, 22, 23, 22, 23, 23, 24, 25, 26, 27)
_HASH_LOGS = (14, 16, 17, 18, 19, 19, 20, 20, 21, 22, 22, 23, 22, 23, 23, 22, 22, 22, 22, 23, 24, 25)
_LONG_WINDOW_LOG = 27  # zstd(1), --long
_LONG_TABLES = 256 * KIB

# ZSTD_CStreamInSize(): what the program reads, and feeds, at once.
_PIECE: Final = 128 * KIB
_RSYNCABLE: Final = 500  # ZSTD_c_rsyncable, of zstd.h's experimental part; Python has no name for it

_FLAG: Final = range(2)
_RANGES: Final = {
    "checksum": _FLAG,
    "content_size": _FLAG,
    "end": _FLAG,
    "level": range(-(1 << 17), 23),
    "long": _FLAG,
    "rsyncable": _FLAG,
    "size_mib": range(1 << 32),
    "size_rest": range(MIB),
    "window_log": range(32),
    "workers": _FLAG,
}
_HINTS: Final = {"checksum", "content_size", "empty_end", "single_segment", "window_log"}
# Bytes of a first trial, and of later ones: those of a disk's beginning tell little.
# A frame's first block has 128 KiB; with some bytes more, it is not written as the last one.
_FIRST_BLOCK: Final = 132 * KIB
_STEPS: Final = (512 * KIB, 2 * MIB)

_EMPTY_LAST_BLOCK: Final = bytes((1, 0, 0))  # RFC 8878, 3.1.1.2


def params(
    level: int,
    *,
    size: int | None,
    checksum: int = 1,
    workers: int = 1,
    window_log: int = 0,
    long: int = 0,
    rsyncable: int = 0,
    end: int | None = None,
) -> Params:
    """The parameters of a frame: `zstd -LEVEL` by default.

    Args:
        level: -131072 to 22.
        size: of the plain bytes, where the encoder knew it; None for a pipe.
        checksum: 0 for --no-check.
        workers: 0 for --single-thread, 1 for one thread or more.
        window_log: of the window, where it is not the level's.
        long: 1 for --long.
        rsyncable: 1 for --rsyncable.
        end: 1 where the encoder was told of the end with the last bytes, as it is where it
            knows the size.
    """
    known = size is not None
    return checked(
        LIBZSTD.id,
        {
            "checksum": checksum,
            "content_size": int(known),
            "end": int(known) if end is None else end,
            "level": level,
            "long": long,
            "rsyncable": rsyncable,
            "size_mib": (size or 0) // MIB,
            "size_rest": (size or 0) % MIB,
            "window_log": window_log,
            "workers": workers,
        },
        _RANGES,
    )


def of_sample(params: Mapping[str, int], size: int) -> Params:
    """The parameters for another input of `size` bytes: an encoder that is told the size that its
    input will have writes no other."""
    known = {"size_mib": size // MIB, "size_rest": size % MIB} if params["content_size"] else {}
    return checked(LIBZSTD.id, {**params, **known}, _RANGES)


class _Zstd:
    """What the library and the program have in common."""

    id = ""

    def checked(self, params: Mapping[str, int]) -> Params:
        fine = checked(self.id, params, _RANGES)
        sized = params["size_mib"] or params["size_rest"]
        wrong = 0 < params["window_log"] < 10 or (sized and not params["content_size"])
        if wrong or (params["rsyncable"] and not params["workers"]):
            raise HostileInput(f"parameters that {self.id} does not have: {dict(params)!s:.200}")
        return fine

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        level = max(params["level"], 1) - 1
        log = params["window_log"] or _window_log(params["level"])
        tables = (4 << _CHAIN_LOGS[level]) + (4 << _HASH_LOGS[level])
        tables += _LONG_TABLES if params["long"] else 0
        buffers = 1 << log
        if params["workers"]:
            # ZSTDMT: jobs of four windows, with --long of eight chains; it holds four of them.
            log = max(21, _CHAIN_LOGS[level] + 3) if params["long"] else max(20, log + 2)
            buffers = max(buffers, 4 << log) + (1 << log)
        return tables + (buffers if plain is None else min(buffers, 2 * plain)) + 4 * MIB


class Libzstd(_Zstd):
    """The zstd library at hand."""

    id = "zstd.stream"

    def encode(
        self, params: Mapping[str, int], chunks: Iterable[bytes], run: Filter | None
    ) -> Iterator[bytes]:
        compressor = _compressor(params)
        try:
            yield from filter(None, _compressed(compressor, chunks, end=bool(params["end"])))
        except zstd.ZstdError as error:
            raise HostileInput(f"not the bytes that the zstd frame was to hold: {error}") from None
        except MemoryError:
            raise LimitExceeded(
                f"no memory for a zstd encoder: it takes {self.memory(params, None) // MIB} MiB"
            ) from None

    def begin(self, params: Mapping[str, int], prefix: bytes, run: Filter | None) -> Iterator[bytes]:
        """What a frame of more than `prefix` begins with."""
        compressor = _compressor(params)
        yield from map(compressor.compress, cut([prefix], _PIECE))
        yield compressor.flush(zstd.ZstdCompressor.FLUSH_BLOCK)

    def described(self, params: Mapping[str, int]) -> str:
        return f"libzstd, as {' '.join(('zstd', *_options(params)))}"

    def version(self, run: Filter | None) -> str:
        return f"zstd {zstd.zstd_version}"


class Program(_Zstd):
    """The program zstd, which may be of another version than the library."""

    id = "zstd.program"

    def encode(
        self, params: Mapping[str, int], chunks: Iterable[bytes], run: Filter | None
    ) -> Iterator[bytes]:
        argv = ["zstd", "-q", "-c", *_options(params)]
        if params["content_size"]:
            argv.append(f"--stream-size={_size(params)}")
        frame = runner(run, "zstd")(argv, chunks)
        # From a pipe, the program is told of the end after the last piece, with the size as well.
        return _without_empty_end(frame) if params["end"] else frame

    def begin(self, params: Mapping[str, int], prefix: bytes, run: Filter | None) -> Iterator[bytes]:
        """As of Libzstd; but the header says nothing of the size."""
        return runner(run, "zstd")(["zstd", "-q", "-c", *_options(params)], cut([prefix], _PIECE))

    def described(self, params: Mapping[str, int]) -> str:
        return " ".join(("zstd", *_options(params)))

    def version(self, run: Filter | None) -> str:
        return f"{version_of('zstd', run)} (program)"


LIBZSTD: Final = Libzstd()
PROGRAM: Final = Program()


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame that an encoder is looked for: what it begins with, and what its header says."""

    plain: bytes
    packed: bytes
    hints: Mapping[str, int]
    whole: bool
    run: Filter | None

    def hits(self, codec: Libzstd | Program) -> list[Hit]:
        """First the level by the first block, which threads hardly change; then the rest by more."""
        shapes = self._levels()
        # Tables fit a size that is known; the program cannot be told it for a prefix.
        prefixes = codec is LIBZSTD or not self.hints["single_segment"]
        if prefixes and len(self.plain) > _FIRST_BLOCK:
            told = self._agreeing(codec, shapes, _FIRST_BLOCK)
            if not told and self._first_block_tells():
                return []
            shapes = [shape for shape, _ in told] or shapes
        elif not self.whole:
            return []
        shapes = [each for shape in shapes for each in shape.variants()]
        if not prefixes:
            # Many trials on all of the content, which is small: there --rsyncable cuts nothing.
            shapes = [shape for shape in shapes if not shape.rsyncable]
        for size in _STEPS if prefixes else ():
            if size < len(self.plain):
                shapes = [shape for shape, _ in self._agreeing(codec, shapes, size)] or shapes
        found = self._first(codec, shapes) if self.whole else self._agreeing(codec, shapes, len(self.plain))
        return [Hit(codec.id, self._params(shape), same) for shape, same in found]

    def convinces(self, codec: Libzstd | Program, hit: Hit) -> bool:
        """Whether a frame by this encoder would agree no further: all, or half of what it makes."""
        if self.whole:
            return True
        made = sum(map(len, codec.begin(dict(hit.params), self.plain, self.run)))
        return hit.agreed >= min(made, len(self.packed)) // 2

    def _levels(self) -> list[_Shape]:
        """A shape for each level, and for each with --long, that the window allows."""
        log = self.hints["window_log"]
        if log:
            own = [_Shape(level) for level in LEVELS if _window_log(level) == log]
            return own if own and log != _LONG_WINDOW_LOG else own + _with_long(log)
        size = self._size() or 0
        return [_Shape(level) for level in LEVELS if size <= 1 << _window_log(level)] + _with_long(
            _LONG_WINDOW_LOG
        )

    def _first_block_tells(self) -> bool:
        """Whether the first block is compressed, and long enough for a comparison."""
        at = _header_size(self.packed)
        number = int.from_bytes(self.packed[at : at + 3], "little")
        return number >> 1 & 3 == 2 and number >> 3 >= 2 * MIN_AGREED

    def _agreeing(
        self, codec: Libzstd | Program, shapes: list[_Shape], size: int
    ) -> list[tuple[_Shape, int]]:
        """Those that make at least 64 bytes, and half as many as the best, of what the frame
        has for its first `size` plain bytes. Those that make nearly as many as the best come
        first, in the given order: where the prefix is cut says nothing."""
        tried = [(shape, self._agreed(codec, shape, self.plain[:size])) for shape in shapes]
        longest = max((same for _, same in tried), default=0)
        hits = [one for one in tried if one[1] >= max(MIN_AGREED, longest // 2)]
        return sorted(hits, key=lambda one: one[1] < longest - longest // 8)

    def _first(self, codec: Libzstd | Program, shapes: list[_Shape]) -> list[tuple[_Shape, int]]:
        """The first that gives the whole frame: more than one would not be told apart by it."""
        length = len(self.packed)
        made = ((each, codec.encode(dict(self._params(each)), [self.plain], self.run)) for each in shapes)
        same = ((shape, length) for shape, frame in made if _same(frame, self.packed) == length)
        return list(islice(same, 1))

    def _agreed(self, codec: Libzstd | Program, shape: _Shape, plain: bytes) -> int:
        """How many bytes of the frame a prefix makes; the program's says nothing of the size."""
        made = codec.begin(dict(self._params(shape)), plain, self.run)
        if codec is LIBZSTD:
            return _same(made, self.packed)
        header = _header_size(self.packed)
        return header + _same(_body(made), self.packed[header:])

    def _size(self) -> int | None:
        return _content_size(self.packed) if self.hints["content_size"] else None

    def _params(self, shape: _Shape) -> Params:
        size = self._size()
        return params(
            shape.level,
            size=size,
            checksum=self.hints["checksum"],
            workers=shape.workers,
            window_log=shape.long,
            long=int(shape.long > 0),
            rsyncable=shape.rsyncable,
            end=int(size is not None and not self.hints["empty_end"]),
        )


class _Shape(NamedTuple):
    """What a header does not say; `long` is the window's log2 with --long, 0 without."""

    level: int
    long: int = 0
    workers: int = 1
    rsyncable: int = 0

    def variants(self) -> list[_Shape]:
        """With threads, without, and with --rsyncable: likeliest first."""
        return [self._replace(workers=kind[0], rsyncable=kind[1]) for kind in ((1, 0), (0, 0), (1, 1))]


def _same(made: Iterator[bytes], packed: bytes) -> int:
    """How many bytes are the same; none of a program that failed, for want of memory say."""
    try:
        return agreed(made, packed)
    except (ToolMissing, Interrupted):
        raise
    except RehydratorError:
        return 0


def _with_long(log: int) -> list[_Shape]:
    return [_Shape(level, long=log) for level in LEVELS]


def _window_log(level: int) -> int:
    return _WINDOW_LOGS[max(level, 1) - 1]


class Zstd:
    """The family of zstd frames."""

    name = "zstd"
    codecs: tuple[Codec, ...] = (LIBZSTD, PROGRAM)

    def find(
        self, plain: bytes, packed: bytes, hints: Mapping[str, int], *, whole: bool, run: Filter | None
    ) -> list[Hit]:
        """The right encoder agrees up to the last block, which a prefix cuts; wrong levels agree
        where there is little to choose. The program is tried where the library does not agree
        with the frame for as long as it should.
        """
        if not hints.keys() >= _HINTS:
            return []
        frame = _Frame(plain, packed, hints, whole, run)
        for codec in (LIBZSTD, PROGRAM) if run is not None else (LIBZSTD,):
            with suppress(ToolMissing):
                found = frame.hits(codec)
                if found and frame.convinces(codec, found[0]):
                    return found
        return []


ZSTD: Final = Zstd()


def _content_size(packed: bytes) -> int | None:
    try:
        return zstd.get_frame_info(packed[:18]).decompressed_size
    except zstd.ZstdError as error:
        raise HostileInput(f"no zstd frame: {error}") from None


def _compressor(params: Mapping[str, int]) -> zstd.ZstdCompressor:
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: params["level"],
        zstd.CompressionParameter.checksum_flag: params["checksum"],
        zstd.CompressionParameter.enable_long_distance_matching: params["long"],
        zstd.CompressionParameter.nb_workers: params["workers"],
    }
    if params["window_log"]:
        options[zstd.CompressionParameter.window_log] = params["window_log"]
    if params["rsyncable"]:
        options[_RSYNCABLE] = 1
    compressor = zstd.ZstdCompressor(options=options)
    if params["content_size"]:
        compressor.set_pledged_input_size(_size(params))
    return compressor


def _size(params: Mapping[str, int]) -> int:
    return params["size_mib"] * MIB + params["size_rest"]


def _compressed(compressor: zstd.ZstdCompressor, chunks: Iterable[bytes], *, end: bool) -> Iterator[bytes]:
    last = b""
    for piece in pieces(chunks, _PIECE):
        if last:
            yield compressor.compress(last)
        last = piece
    if end:
        yield compressor.compress(last, zstd.ZstdCompressor.FLUSH_FRAME)
    else:
        yield compressor.compress(last)
        yield compressor.flush(zstd.ZstdCompressor.FLUSH_FRAME)


def _options(params: Mapping[str, int]) -> list[str]:
    """As zstd(1) has them."""
    level = params["level"]
    words = [f"-{level}"] if level >= 0 else [f"--fast={-level}"]
    words += ["--ultra"] if level > 19 else []
    words += ["-T1"] if params["workers"] else ["--single-thread"]
    if params["long"]:
        words.append(f"--long={params['window_log']}" if params["window_log"] else "--long")
    elif params["window_log"]:
        words.append(f"--zstd=wlog={params['window_log']}")
    words += ["--rsyncable"] if params["rsyncable"] else []
    words += [] if params["checksum"] else ["--no-check"]
    return words


def _header_size(raw: bytes) -> int:
    """Of a frame's header without a dictionary (RFC 8878, 3.1.1.1)."""
    single = raw[4] >> 5 & 1
    return 5 + (not single) + ((0, 2, 4, 8)[raw[4] >> 6] or single)


class _Feed:
    """A frame that is read from the front."""

    def __init__(self, frame: Iterator[bytes]) -> None:
        self._frame, self._held = frame, bytearray()

    def take(self, length: int) -> bytes:
        while len(self._held) < length:
            more = next(self._frame, None)
            if more is None:
                raise HostileInput("the program zstd wrote a frame that is cut short")
            self._held += more
        taken = bytes(self._held[:length])
        del self._held[:length]
        return taken

    def header(self) -> bytes:
        begin = self.take(5)
        return begin + self.take(_header_size(begin) - len(begin))

    def block(self) -> bytes:
        """3.1.1.2: last (1 bit), type (2), size (21); one byte is stored of a run (type 1)."""
        header = self.take(3)
        number = int.from_bytes(header, "little")
        return header + self.take(1 if number >> 1 & 3 == 1 else number >> 3)

    def rest(self) -> Iterator[bytes]:
        yield bytes(self._held)
        yield from self._frame


def _body(frame: Iterator[bytes]) -> Iterator[bytes]:
    """A frame without its header."""
    feed = _Feed(frame)
    try:
        feed.header()
        yield from feed.rest()
    finally:
        close(frame)


def _without_empty_end(frame: Iterator[bytes]) -> Iterator[bytes]:
    """A frame whose last block is not an empty one, unless it is the only one."""
    feed = _Feed(frame)
    try:
        yield feed.header()
        held, block = b"", feed.block()
        while not block[0] & 1:
            yield held
            held, block = block, feed.block()
        if held and block == _EMPTY_LAST_BLOCK:
            held, block = bytes((held[0] | 1,)) + held[1:], b""
        yield held + block
        yield from feed.rest()
    finally:
        close(frame)
