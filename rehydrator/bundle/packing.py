"""Writing packs and recipes, and keeping the numbers of packs, spaces and rules.

    Ledger      what the manifest will list: packs, spaces, rules
    PackWriter  one group's pack files: data frames and recipe chunks, compressed side by side,
                written in order

Frames are cut by plain size alone, so that the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rehydrator.bundle.manifest import PLAIN_DIGEST, Pack, PackSpace, RecipeSpace, StoredFile
from rehydrator.bundle.reader import spaces_of
from rehydrator.core.digest import frame_digest
from rehydrator.core.ops import (
    MAX_OPS_PER_CHUNK,
    DecodeRule,
    EncodeRule,
    OffsetRule,
    Rules,
    SizeTable,
    Stream,
    StreamRule,
)
from rehydrator.core.pack import (
    CHUNK,
    DATA,
    ZSTD_BEHIND,
    Frame,
    can_be_prefix,
    encode_frame,
    encode_index,
)
from rehydrator.core.recipe import encode_chunk, output_offsets
from rehydrator.core.zstd_decoder import Prefix

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor, Future
    from pathlib import Path
    from typing import BinaryIO

    from typing_extensions import Buffer

    from rehydrator.core.ops import Op

# Ratio against the latency of a random read, measured on the os release (docs/decisions/006).
FRAME_SIZE = 16 << 20

# No layer above 1 GiB, even when nothing compresses.
MAX_PACK = 960 << 20

# Recipes and tables are small: they always get the best level.
_RECIPE_LEVEL = 19


# What somebody may have at hand, and need not read here.
_WORTH_A_SEED = 4 << 20

# Codec and bytes of a frame, and the digest of what it decodes to.
_Made = tuple[int, bytes, bytes]


@dataclass
class Ledger:
    """Packs, spaces and rules, in the order of their numbers."""

    packs: list[Pack | None] = field(default_factory=list)
    spaces: list[PackSpace | RecipeSpace | None] = field(default_factory=list)
    tables: list[SizeTable] = field(default_factory=list)
    offsets: list[OffsetRule] = field(default_factory=list)
    encodes: list[EncodeRule] = field(default_factory=list)
    decodes: list[DecodeRule] = field(default_factory=list)
    streams: list[StreamRule] = field(default_factory=list)

    def rules(self) -> Rules:
        """The rules so far."""
        kinds = (self.tables, self.offsets, self.encodes, self.decodes, self.streams)
        return Rules(*map(tuple, kinds))  # type: ignore[arg-type]

    def decode_rule(self, rule: DecodeRule) -> int:
        """The number of a decode rule, new or known."""
        if rule not in self.decodes:
            self.decodes.append(rule)
        return self.decodes.index(rule)

    def stream_rule(self, rule: StreamRule) -> int:
        """The number of a stream rule, new or known."""
        if rule not in self.streams:
            self.streams.append(rule)
        return self.streams.index(rule)

    def open_pack(self) -> tuple[int, int]:
        """Numbers for a new pack and its space."""
        self.packs.append(None)
        self.spaces.append(None)
        return len(self.packs) - 1, len(self.spaces) - 1

    def needs_streams(self, space: int) -> bool:
        """Whether a space stands on bytes that are made in order (Stream)."""
        found = self.spaces[space]
        if not isinstance(found, RecipeSpace):
            return False
        return bool(found.streams) or any(map(self.needs_streams, found.inputs))

    def size(self, space: int) -> int:
        """The size of a finished space in bytes."""
        found = self.spaces[space]
        assert found is not None
        return found.size


class _PackFile:
    """One pack on its way to the disk."""

    def __init__(self, path: Path, number: int, space: int) -> None:
        self.path, self.number, self.space = path, number, space
        self.plain = 0
        self.frames: list[Frame] = []
        self._digests: list[bytes] = []
        self._file: BinaryIO = path.open("xb")
        self._offset = 0
        self._hash = hashlib.sha256()

    def write(self, frame: tuple[int, int, int, int], made: _Made) -> None:
        kind, planes, start, plain = frame
        codec, stored, plain_digest = made
        digest = frame_digest(stored)
        if kind == DATA:
            self._digests.append(plain_digest)
        self.frames.append(Frame(kind, codec, planes, start, self._offset, len(stored), plain, digest))
        self._put(stored)

    def finish(self, name: str) -> Pack:
        index, offset = encode_index(self.frames), self._offset
        self._put(index)
        self._file.close()
        stored = StoredFile(name, self._offset, self._hash.hexdigest())
        digests = tuple(self._digests) if self.plain >= _WORTH_A_SEED else ()
        behind = any(frame.codec == ZSTD_BEHIND for frame in self.frames)
        return Pack(stored, offset, len(index), frame_digest(index).hex(), digests, behind)

    def close(self) -> None:
        self._file.close()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)


class PackWriter:
    """The packs of one group of spaces (a canonical disk, an artifact)."""

    def __init__(
        self, root: Path, ledger: Ledger, level: int, pool: Executor, ahead: int, frame_size: int = FRAME_SIZE
    ) -> None:
        self._root, self._ledger, self._level = root, ledger, level
        self._pool, self._ahead, self._frame_size = pool, ahead, frame_size
        self._size_behind = frame_size // 2
        self._waiting: deque[tuple[_PackFile, tuple[int, int, int, int], Future[_Made]]] = deque()
        self._buffer = bytearray()
        self._open: list[_PackFile] = []
        self._frames = 0
        self._prefix: Prefix | None = None
        self._begin()

    @property
    def space(self) -> int:
        """The space of the pack that is written now."""
        return self._current.space

    def append(self, data: Buffer) -> list[tuple[int, int, int]]:
        """Store bytes; where they lie: (space, offset, length), more than one at a pack's end."""
        view = memoryview(data).cast("B")
        placed = []
        while view:
            if self._current.plain + len(self._buffer) >= MAX_PACK:
                self._next_pack()
            at = self._current.plain + len(self._buffer)
            part = view[: min(self._frame_size - len(self._buffer), MAX_PACK - at)]
            self._buffer += part
            placed.append((self.space, at, len(part)))
            view = view[len(part) :]
            if len(self._buffer) >= self._frame_size:
                self.flush()
        return placed

    def append_frame(self, plain: bytes, planes: int = 1) -> tuple[int, int]:
        """Store bytes as a frame of their own; (space, offset)."""
        self.flush()
        if self._current.plain + len(plain) > MAX_PACK:
            self._next_pack()
        at = self._current.plain
        self._submit(DATA, planes, at, plain, self._level)
        self._current.plain += len(plain)
        return self.space, at

    def append_prefix(self, plain: bytes) -> tuple[int, int]:
        """Store bytes as the first frame, which all data frames behind it are encoded behind; (space,
        offset). Call it before anything else is stored.

        A further pack begins with the same frame, so that each can be read alone. Frames behind it are
        half as large: a random read decodes half as much, for 1.1 % more room (measured: a quarter of
        the os release's disk, level 18, 36,274,441 bytes instead of 35,871,307).
        """
        placed = self.append_frame(plain)
        if can_be_prefix(plain):
            self._prefix, self._frame_size = Prefix(plain), self._size_behind
        return placed

    def add_recipe(self, ops: Sequence[Op]) -> int:
        """Store a recipe; the number of the space that it makes."""
        self.flush()
        first, start, rules = self._frames, 0, self._ledger.rules()
        inputs: set[int] = set()
        streams = {op.rule for op in ops if isinstance(op, Stream)}
        for at in range(0, len(ops), MAX_OPS_PER_CHUNK):
            part = ops[at : at + MAX_OPS_PER_CHUNK]
            inputs.update(space for op in part for space in spaces_of(op, rules))
            self._submit(CHUNK, 1, start, encode_chunk(part), _RECIPE_LEVEL)
            start += output_offsets(part)[-1]
        count = self._frames - first
        named = tuple(sorted(inputs)), tuple(sorted(streams))
        space = RecipeSpace(self._current.number, first, count, start, *named)
        self._ledger.spaces.append(space)
        return len(self._ledger.spaces) - 1

    def flush(self) -> None:
        """Close the frame that collects small pieces."""
        if self._buffer:
            plain = bytes(self._buffer)
            self._buffer.clear()
            self._submit(DATA, 1, self._current.plain, plain, self._level)
            self._current.plain += len(plain)

    def finish(self) -> list[Pack]:
        """Write what waits, close the packs, and enter them in the ledger."""
        self.flush()
        self._drain(0)
        packs = []
        for file in self._open:
            pack = file.finish(f"packs/{file.number}.pack")
            self._ledger.packs[file.number] = pack
            self._ledger.spaces[file.space] = PackSpace(file.number, file.plain)
            packs.append(pack)
        return packs

    def close(self) -> None:
        """Close the files, whatever happened."""
        for _, _, future in self._waiting:
            future.cancel()
        for file in self._open:
            file.close()

    def _begin(self) -> None:
        number, space = self._ledger.open_pack()
        self._current = _PackFile(self._root / "packs" / f"{number}.pack", number, space)
        self._open.append(self._current)
        self._frames = 0

    def _next_pack(self) -> None:
        self.flush()
        self._begin()
        if self._prefix is not None:
            plain, self._prefix = self._prefix.plain, None
            self.append_prefix(plain)

    def _submit(self, kind: int, planes: int, start: int, plain: bytes, level: int) -> None:
        prefix = self._prefix if kind == DATA and planes == 1 else None
        future = self._pool.submit(_encoded, plain, level, planes, prefix)
        self._waiting.append((self._current, (kind, planes, start, len(plain)), future))
        self._frames += 1
        self._drain(self._ahead)

    def _drain(self, leave: int) -> None:
        while len(self._waiting) > leave:
            file, frame, future = self._waiting.popleft()
            file.write(frame, future.result())


def _encoded(plain: bytes, level: int, planes: int, prefix: Prefix | None) -> _Made:
    return *encode_frame(plain, level, planes, prefix), frame_digest(plain)[:PLAIN_DIGEST]
