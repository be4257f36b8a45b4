"""Opening a bundle: every byte that it gives comes from files that the manifest pins.

    bundle.json ──signature──> manifest ──index digest──> pack index ──frame digest──> frame

The manifest is read whole and checked first; pack indexes, recipe chunks and frames are read
when a span needs them, each against the digest above it. Nothing is decoded before that.
"""

from __future__ import annotations

import hashlib
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING

from rehydrator.bundle import manifest as manifests
from rehydrator.bundle.manifest import CHAIN_RECORD, PackSpace, RecipeSpace
from rehydrator.bundle.memory import available_memory
from rehydrator.codecs import CODECS, streams
from rehydrator.core.digest import frame_digest
from rehydrator.core.errors import (
    DigestMismatch,
    HostileInput,
    Interrupted,
    LimitExceeded,
    NotInBundle,
    RehydratorError,
    ToolMissing,
)
from rehydrator.core.ops import Copy, Decode, Encode, Offsets, Stream
from rehydrator.core.pack import CHUNK, DATA, MAX_PREFIX, ZSTD_BEHIND, decode_frame, decode_index, prefix_of
from rehydrator.core.recipe import decode_chunk, output_offsets
from rehydrator.core.zstd_decoder import Prefix
from rehydrator.engine import DEFAULT_CACHE, Cache, Machine, run_ops, view
from rehydrator.store.spool import Spool
from rehydrator.streaming import Room, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rehydrator.bundle.chain import Boundary
    from rehydrator.bundle.manifest import Artifact, Form, Manifest, Pack, Release, StoredFile
    from rehydrator.codecs.streams import Filter
    from rehydrator.core.ops import Op, Rules
    from rehydrator.core.pack import Frame
    from rehydrator.core.reader import Reader
    from rehydrator.engine import Known, Piece, Space, SpaceReader
    from rehydrator.store.files import Files

SIGNATURES = "signatures/"
_SIGNATURE = re.compile(r"signatures/([0-9a-f]{16})\.sig\Z")
_MAX_SIGNATURE = 4096
_MAX_SIGNATURES = 64

# No encoder makes twice as many bytes of some, and so many more.
_MORE = 64 << 10

# Ops of decoded chunks that are held, of all spaces together; each costs 150 to 300 bytes.
_OPS_HELD = 1 << 18

# What frames stand behind, of as many packs as a disk that is read in order can need at once.
_PREFIXES_HELD = 2 * MAX_PREFIX + (64 << 10)


class PackFile:
    """One pack: its index, checked once, and its frames, checked each."""

    def __init__(self, files: Files, pack: Pack, prefixes: Cache | None = None) -> None:
        """`prefixes` are what frames of several packs stand behind, by the digests of their frames."""
        self._files, self._pack, self._prefixes = files, pack, prefixes or Cache(_PREFIXES_HELD)
        self._first: Frame | None = None
        self._lock = threading.Lock()
        self._frames: list[Frame] | None = None
        self._reader: Reader | None = None
        # What may have the plain bytes of frames at hand (bundle/seeds.py).
        self.seed: Callable[[Frame], bytes | None] = lambda _: None

    @property
    def name(self) -> str:
        return self._pack.stored.file

    def frames(self) -> list[Frame]:
        """All frames, in order.

        Raises:
            DigestMismatch: the index is not the one that the manifest pins.
            HostileInput: it is malformed, or its frames do not fill the file.
        """
        with self._lock:
            if self._frames is None:
                self._frames = self._load()
            return self._frames

    def plain(self, frame: Frame) -> bytes:
        """The plain bytes of one frame; what others stand behind is decoded once for both."""
        if frame.kind == DATA and self._pack.prefix and frame is self._first:
            return self._behind().plain
        return self._made(frame)

    def _made(self, frame: Frame) -> bytes:
        found = self.seed(frame)
        if found is not None:
            return found
        stored = self._open().pread(frame.offset, frame.stored)
        return decode_frame(frame, stored, self.name, self._behind)

    def _behind(self) -> Prefix:
        """What its frames stand behind."""
        first = self._first
        assert first is not None  # decode_index has seen to it
        return Prefix(self._prefixes.get(first.digest, lambda: self._made(first)))

    def _open(self) -> Reader:
        if self._reader is None:
            self._reader = open_pinned(self._files, self._pack.stored)
        return self._reader

    def _load(self) -> list[Frame]:
        index = self._open().pread(self._pack.index_offset, self._pack.index_length)
        if frame_digest(index).hex() != self._pack.index_digest:
            raise DigestMismatch(f"{self.name}: its index is damaged (the digest differs)")
        frames = decode_index(index, self.name)
        if sum(frame.stored for frame in frames) != self._pack.index_offset:
            raise HostileInput(f"{self.name}: its frames do not end where its index begins")
        self._first = prefix_of(frames)
        if not self._pack.prefix and any(frame.codec == ZSTD_BEHIND for frame in frames):
            raise HostileInput(f"{self.name}: frames behind a prefix, and the manifest says that it has none")
        return frames


class DataSpace:
    """The plain bytes of a pack's data frames."""

    def __init__(self, number: int, pack: PackFile, size: int) -> None:
        self._number, self._pack, self.size = number, pack, size
        self._frames: list[Frame] | None = None
        self._starts: list[int] = []

    def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]:
        frames = self._frames or self._load()
        index, end = bisect_right(self._starts, offset) - 1, offset + length
        while offset < end:
            frame = frames[index]
            plain = self._plain(machine, index, frame)
            stop = min(end, frame.start + frame.plain)
            yield view(plain, offset - frame.start, stop - frame.start)
            offset, index = stop, index + 1

    def _plain(self, machine: Machine, index: int, frame: Frame) -> bytes:
        return machine.cache.get((self._number, index), lambda: self._pack.plain(frame))

    def _load(self) -> list[Frame]:
        frames = [frame for frame in self._pack.frames() if frame.kind == DATA]
        end = 0
        for frame in frames:
            if frame.start != end:
                raise HostileInput(f"{self._pack.name}: its data frames do not follow each other")
            end = frame.start + frame.plain
        if end != self.size:
            raise HostileInput(f"{self._pack.name}: {end} plain bytes, not {self.size}")
        self._starts = [frame.start for frame in frames]
        self._frames = frames
        return frames


Chunk = tuple["Sequence[Op]", "Sequence[int]"]


class HeldChunks:
    """Decoded chunks of all spaces, the last ones that were used, bounded by their ops."""

    def __init__(self, limit: int = _OPS_HELD) -> None:
        self._limit, self._ops = limit, 0
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[int, int], Chunk] = OrderedDict()

    def get(self, key: tuple[int, int], make: Callable[[], Chunk]) -> Chunk:
        """The chunk `key`, by `make` where it is not held; one caller at a time for a key."""
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
        made = make()
        with self._lock:
            self._chunks[key] = made
            self._ops += len(made[0])
            while self._ops > self._limit:
                self._ops -= len(self._chunks.popitem(last=False)[1][0])
        return made


class ChunkedSpace:
    """What a recipe in chunks makes."""

    def __init__(
        self, number: int, pack: PackFile, space: RecipeSpace, rules: Rules, held: HeldChunks
    ) -> None:
        self._number, self._pack, self._space, self._rules = number, pack, space, rules
        self._inputs, self.streams = frozenset(space.inputs), frozenset(space.streams)
        self.size = space.size
        self._lock = threading.Lock()
        self._held = held
        self._chunks: list[Frame] | None = None
        self._starts: list[int] = []

    def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]:
        chunks = self._chunks or self._load()
        index, end = bisect_right(self._starts, offset) - 1, offset + length
        while offset < end:
            ops, starts = self._ops(index)
            begin = chunks[index].start
            stop = min(end, begin + starts[-1])
            yield from run_ops(machine, ops, starts, offset - begin, stop - offset)
            offset, index = stop, index + 1

    def ops(self) -> Iterator[Op]:
        """All ops, in order."""
        for index in range(len(self._chunks or self._load())):
            yield from self._ops(index)[0]

    def op_at(self, offset: int) -> tuple[Op, int]:
        """The op that makes the byte at `offset`, and where its output begins."""
        chunks = self._chunks or self._load()
        index = bisect_right(self._starts, offset) - 1
        ops, starts = self._ops(index)
        at = bisect_right(starts, offset - chunks[index].start) - 1
        return ops[at], chunks[index].start + starts[at]

    def _load(self) -> list[Frame]:
        frames = self._pack.frames()
        chunks = frames[self._space.first : self._space.first + self._space.count]
        starts = [chunk.start for chunk in chunks]
        wrong = any(chunk.kind != CHUNK for chunk in chunks) or len(chunks) != self._space.count
        if wrong or starts[:1] not in ([], [0]) or bool(self.size) != bool(chunks):
            raise HostileInput(f"{self._pack.name}: space {self._number} names other frames than chunks")
        if any(low >= high for low, high in pairwise(starts)):
            raise HostileInput(f"{self._pack.name}: the chunks of space {self._number} are out of order")
        self._starts = starts
        self._chunks = chunks
        return chunks

    def _ops(self, index: int) -> tuple[Sequence[Op], Sequence[int]]:
        with self._lock:
            return self._held.get((self._number, index), lambda: self._decode(index))

    def _decode(self, index: int) -> tuple[Sequence[Op], Sequence[int]]:
        assert self._chunks is not None
        chunk = self._chunks[index]
        ops = decode_chunk(self._pack.plain(chunk))
        starts = output_offsets(ops)
        following = self._starts[index + 1] if index + 1 < len(self._starts) else self.size
        if chunk.start + starts[-1] != following:
            raise HostileInput(f"{self._pack.name}: a chunk of space {self._number} is of another length")
        if not self._named(ops) <= self._inputs:
            raise HostileInput(f"{self._pack.name}: space {self._number} names a space not among its inputs")
        if not {op.rule for op in ops if isinstance(op, Stream)} <= self.streams:
            raise HostileInput(f"{self._pack.name}: space {self._number} names a stream not among its own")
        return ops, starts

    def _named(self, ops: Sequence[Op]) -> set[int]:
        return {space for op in ops for space in spaces_of(op, self._rules)}


def spaces_of(op: Op, rules: Rules) -> tuple[int, ...]:
    """The spaces that an op reads.

    Raises:
        HostileInput: it names a rule that does not exist.
    """
    try:
        if isinstance(op, Copy):
            return (op.space,)
        if isinstance(op, Offsets):
            return (rules.tables[rules.offsets[op.rule].table].space,)
        if isinstance(op, Encode):
            encode = rules.encodes[op.rule]
            return encode.input, rules.tables[encode.table].space
        if isinstance(op, Decode):
            decode = rules.decodes[op.rule]
            return (decode.input,) if decode.prefix is None else (decode.input, decode.prefix)
        if isinstance(op, Stream):
            return (rules.streams[op.rule].input,)
    except IndexError:
        raise HostileInput(f"an op names a rule that does not exist: {op}") from None
    return ()


class Bundle:
    """An opened bundle."""

    def __init__(
        self,
        files: Files,
        cache: int = DEFAULT_CACHE,
        run: Filter | None = None,
        spools: Path | None = None,
        known: Known | None = None,
    ) -> None:
        """Reads and checks bundle.json. `run` runs the programs that some published forms need,
        `spools` is a directory for what encoders make, `known` has what they made already.

        Raises:
            NotInBundle: there is no bundle.json.
            HostileInput: it is malformed.
        """
        self.files = files
        self.signed_bytes = read_signed(files)
        self.manifest: Manifest = manifests.decode(self.signed_bytes)
        prefixes = Cache(_PREFIXES_HELD)
        self._packs = [PackFile(files, pack, prefixes) for pack in self.manifest.packs]
        self._held = HeldChunks()
        spaces = {number: self._space(number) for number in range(len(self.manifest.spaces))}
        made = Streams(lambda: Spool(spools))
        room = Room(available_memory() * 3 // 4, self.manifest.depths())
        self.run = run
        self.machine = Machine(spaces, self.manifest.rules, Cache(cache), run, made, room, known)
        self._known: set[int] = set()

    def signatures(self) -> dict[str, bytes]:
        """The in-band signatures by key id."""
        return read_signatures(self.files)

    def reader(self, artifact: Artifact) -> SpaceReader:
        """The artifact's image form; its encoders are checked first."""
        return self.open_form(artifact, artifact.image)

    def open_form(self, artifact: Artifact, form: Form) -> SpaceReader:
        """A form of an artifact; its encoders are checked first.

        Raises:
            NotInBundle: the bundle knows its digest, and cannot give it back.
            ToolMissing: an encoder at hand gives other bytes, or there is none.
        """
        if form.space is None:
            raise NotInBundle(
                f"{form.name}: the bundle cannot give back the compressed file, only its digest; "
                f"{artifact.image.name} is there as --form image"
            )
        try:
            self.check_encoders(form.space)
        except ToolMissing as error:
            if form is artifact.image:
                raise
            raise ToolMissing(
                f"{form.name}: {error}; or take {artifact.image.name} by --form image"
            ) from None
        return self.machine.reader(form.space)

    def boundaries(self, form: Form) -> tuple[Boundary, ...]:
        """The chaining values of a form's digest that the bundle has.

        Raises:
            HostileInput: they are malformed.
        """
        if form.chain is None:
            return ()
        from rehydrator.bundle import chain

        data = self.machine.read(form.chain.space, form.chain.offset, form.chain.count * CHAIN_RECORD)
        return chain.decode(data, form.size, form.name)

    def check_encoders(self, space: int) -> None:
        """Run the known-answer test of every encoder that `space` stands on.

        Raises:
            ToolMissing: the library at hand does not give the known answer; names the one that does.
        """
        rules = self.manifest.rules
        reach = self.manifest.reach(space)
        tables = {number for number, table in enumerate(rules.tables) if table.space in reach}
        needed = {(rule.codec, rule.params) for rule in rules.encodes if rule.table in tables}
        used = {number for each in reach for number in self.manifest.streams_of(each)}
        for number in used:
            rule = rules.streams[number]
            streams.memory(rule.codec, dict(rule.params))  # a codec that there is not is malformed
            needed.add((rule.codec, rule.params))
        for number, answer in enumerate(self.manifest.known_answers):
            if (answer.codec, answer.params) in needed and number not in self._known:
                self._check_answer(number)
            needed.discard((answer.codec, answer.params))
        if needed:
            names = ", ".join(sorted(name for name, _ in needed))
            raise HostileInput(f"{manifests.MANIFEST}: no known answer for encoder {names}")

    def document(self, release: Release) -> bytes:
        """The stream document, as it was given to the build."""
        return read_checked(self.files, release.document)

    def packs(self) -> list[PackFile]:
        """The packs, in the manifest's order."""
        return self._packs

    def _space(self, number: int) -> Space:
        space = self.manifest.spaces[number]
        pack = self._packs[space.pack]
        if isinstance(space, PackSpace):
            return DataSpace(number, pack, space.size)
        return ChunkedSpace(number, pack, space, self.manifest.rules, self._held)

    def _check_answer(self, number: int) -> None:
        answer = self.manifest.known_answers[number]
        plain = self.machine.read(answer.space, answer.offset, answer.length)
        made, have = known_answer(answer.codec, dict(answer.params), plain, self.run)
        if made != answer.sha256:
            what = f"{have} here gives other bytes" if made else have
            raise ToolMissing(
                f"this image was encoded with {answer.library}, and {what}; "
                f"use the container that the bundle is in, or install {answer.library}"
            )
        self._known.add(number)


def known_answer(name: str, params: dict[str, int], plain: bytes, run: Filter | None) -> tuple[str, str]:
    """SHA-256 of what an encoder makes of `plain`, and the library or program that made it; "" and
    why not, where there is none here, or one that fails."""
    try:
        if name in CODECS:
            packed = CODECS[name].encode(plain, params)
            return hashlib.sha256(packed).hexdigest(), CODECS[name].version()
        encoder = streams.encoder(name, dict(streams.of_sample(name, params, len(plain))), run)
    except ImportError:
        return "", "there is no such library here"
    try:
        return _digest_of(encoder.encode([plain]), _MORE + 2 * len(plain)), streams.version(name, run)
    except (Interrupted, LimitExceeded):
        raise
    except RehydratorError as error:
        return "", str(error)


def _digest_of(pieces: Iterator[bytes], most: int) -> str:
    """SHA-256 of bytes that a program may write for ever; of its first ones then."""
    state = hashlib.sha256()
    for piece in pieces:
        state.update(piece[:most])
        most -= len(piece)
        if most <= 0:
            break
    return state.hexdigest()


def read_signed(files: Files) -> bytes:
    """The bytes of bundle.json, not looked at yet.

    Raises:
        NotInBundle: there is none.
        HostileInput: it is too large.
    """
    source = files.open(manifests.MANIFEST)
    if source.size > manifests.MAX_MANIFEST:
        raise HostileInput(f"{manifests.MANIFEST}: {source.size} bytes, above the limit")
    return source.pread(0, source.size)


def read_signatures(files: Files) -> dict[str, bytes]:
    """The in-band signatures by key id.

    Raises:
        HostileInput: a file that is no signature, or too many.
    """
    names = [named for name in files.names() if (named := _SIGNATURE.match(name))]
    if len(names) > _MAX_SIGNATURES:
        raise HostileInput(f"{len(names)} signatures, above the limit of {_MAX_SIGNATURES}")
    found = {}
    for name in names:
        reader = files.open(name[0])
        if reader.size > _MAX_SIGNATURE:
            raise HostileInput(f"{name[0]}: {reader.size} bytes are no signature")
        found[name[1]] = reader.pread(0, reader.size)
    return found


def open_pinned(files: Files, stored: StoredFile) -> Reader:
    """A pinned file, of the size that was promised; its bytes are not checked yet.

    Raises:
        DigestMismatch: it is missing, or of another size.
    """
    try:
        reader = files.open(stored.file)
    except NotInBundle:
        raise DigestMismatch(f"{stored.file}: missing, though {manifests.MANIFEST} pins it") from None
    if reader.size != stored.size:
        raise DigestMismatch(f"{stored.file}: {reader.size} bytes, not {stored.size}")
    return reader


def read_checked(files: Files, stored: StoredFile) -> bytes:
    """A pinned file, whole.

    Raises:
        DigestMismatch: it is not what the manifest pins.
    """
    reader = open_pinned(files, stored)
    data = reader.pread(0, stored.size)
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise DigestMismatch(f"{stored.file}: damaged (its SHA-256 differs)")
    return data


def check_file(files: Files, stored: StoredFile, block: int = 4 << 20) -> None:
    """Check a pinned file of any size against its digest, in blocks.

    Raises:
        DigestMismatch: it is not what the manifest pins.
    """
    reader = open_pinned(files, stored)
    state = hashlib.sha256()
    for offset in range(0, stored.size, block):
        state.update(reader.pread(offset, min(block, stored.size - offset)))
    if state.hexdigest() != stored.sha256:
        raise DigestMismatch(f"{stored.file}: damaged (its SHA-256 differs)")
