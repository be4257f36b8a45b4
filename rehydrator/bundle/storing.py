"""Storing disks and files into packs: canonical disks as frames, everything else as recipes
over what is stored already and a little residue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from xxhash import xxh3_64_intdigest

from rehydrator.bundle import contents
from rehydrator.bundle.chain import encode as encode_chain
from rehydrator.bundle.common_pages import common_pages
from rehydrator.bundle.manifest import Chain, KnownAnswer
from rehydrator.bundle.matching import Matches, Wanted
from rehydrator.bundle.packing import Ledger, PackWriter
from rehydrator.bundle.published_canonical import guest_ops, image_ops
from rehydrator.bundle.reader import known_answer
from rehydrator.bundle.recovery import digest_of
from rehydrator.bundle.residue import Residue
from rehydrator.bundle.survey import PAGE, nonzero_pages
from rehydrator.codecs import codec
from rehydrator.core.errors import ToolMissing
from rehydrator.core.ops import Copy, Encode, Offsets, Rules, Stream, is_zeros, zeros
from rehydrator.core.pack import MAX_PREFIX
from rehydrator.core.reader import WindowReader
from rehydrator.delta import PageIndex
from rehydrator.formats.explanation import FILE, GUEST, LAYER, SIZES, append
from rehydrator.store.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from rehydrator.bundle.chain import Boundary
    from rehydrator.bundle.live import Live
    from rehydrator.bundle.recovery import Recovered
    from rehydrator.bundle.survey import Survey
    from rehydrator.codecs import Params
    from rehydrator.codecs.streams import Filter
    from rehydrator.core.ops import Op, StreamRule
    from rehydrator.core.reader import Reader, SparseReader
    from rehydrator.formats.explanation import Explanation
    from rehydrator.formats.streams import Layout

# The symbolic space of bytes that nothing explains yet.
UNMATCHED = -1

_SMALL = 4096  # FILE spans below this are only searched for zeros
_ROLLING = 64 << 10
_WORTH_INDEXING = 1 << 20  # bytes that an artifact had to store, for later ones to find them
_MAX_REPEATED = 64 << 20
_SAMPLE_PAGES = 4
_LITERAL = 4 << 20
_STREAM_SAMPLE = 256 << 10  # a known answer for a stream's encoder
_PLACES = 64

# Frames of a live root file system: each of its blocks that a disk asks for costs the frames it
# lies in. Measured on a Debian root in zstd (197 MB), read in random order: 2.2 s of processor
# time with these, 20.6 with 16 MiB, and 0.1 % more bytes.
_SCATTERED = 256 << 10

# Frames that are compressed or wait for it: at level 19 one takes 90 MiB and its 16 MiB
# of plain bytes. Measured: the os release with --jobs 64 takes 1,936 MiB.
_MAX_AHEAD = 15


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored file: the spaces that give its forms back, and how, for `info`."""

    space: int
    how: dict[str, Any]
    published: int | None = None
    signature: int | None = None
    chain: Chain | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """What else is known of an image: the compressed file around it with what was found of it, the
    bytes of a detached signature, and chaining values of the image's digest."""

    file: SparseReader | None = None
    recovered: Recovered | None = None
    plain: Reader | None = None
    signature: bytes = b""
    boundaries: tuple[Boundary, ...] = ()


@dataclass(frozen=True, slots=True)
class _Sample:
    """Real bytes for a known answer: where they are, and the bytes."""

    space: int
    offset: int
    plain: bytes


class Storage:
    """What a build has stored so far."""

    def __init__(
        self, root: Path, level: int, frame_size: int, jobs: int, pool: Executor, run: Filter | None = None
    ) -> None:
        self._root, self._level, self._frame_size = root, level, frame_size
        self._pool, self._ahead = pool, min(2 * jobs, _MAX_AHEAD)
        self.ledger = Ledger()
        self.groups: list[list[str]] = []
        self._index = PageIndex()
        self.matches = Matches(self._index, UNMATCHED, pool, jobs)
        self._spaces: dict[int, Reader] = {}
        self._sample: _Sample | None = None
        self._run = run
        self._stream_samples: dict[tuple[str, Params], _Sample] = {}
        self._made: dict[bytes, Stream] = {}
        self._kept: dict[bytes, Copy] = {}

    def contents(self, live: Live, rootfs: int) -> None:
        """Let disks be made from the files of a live root file system, whose file is space `rootfs`."""
        writer = self._writer()
        try:
            reader = contents.ContentsReader(live.window(), live.system)
            spool = Spool(self._root)
            placed = (spool, rootfs, self.ledger, writer, live.offset)
            space, spooled = contents.store(reader, *placed, workers=self._ahead)
            self._finish_group(writer)
        finally:
            writer.close()
        self._remember(space, spooled)

    def known(self, file: SparseReader) -> int:
        """Bytes of a file that another one has, or that are zero."""
        matched = self._index.match(file, UNMATCHED)
        return sum(op.length for op in matched if not (isinstance(op, Copy) and op.space == UNMATCHED))

    def canonical(self, guest: SparseReader, found: Survey, advance: Callable[[int], object]) -> int:
        """Store a disk whole, but for what another space has; the number of its space."""
        writer = self._writer()
        try:
            make = self._derived_ops if len(self._index) else self._canonical_ops
            ops = make(guest, found, writer, advance)
            if self._sample is None and found.data:
                self._store_sample(guest, found.pages.tolist(), writer)
            space = writer.add_recipe(ops)
            self._finish_group(writer)
        finally:
            writer.close()
        self._remember(space, guest)
        return space

    def canonical_published(
        self, file: SparseReader, image: Reader, explanation: Explanation, layout: Layout, beside: Beside
    ) -> tuple[int, Stored]:
        """Store a disk as the compressed file that it was published in, which can be one
        (published_canonical.check); the number of its space, and what is stored."""
        writer = self._writer()
        try:
            if self._sample is None:
                self._store_sample(explanation.guest, _data_pages(explanation.guest), writer)
            published = writer.add_recipe(self._residue(writer).settle([_whole(file)], file, UNMATCHED))
            for part in layout.parts:
                self._kept[digest_of(file, part)] = Copy(part.packed, published, part.at)
            inner = writer.add_recipe(image_ops(layout, published, self.ledger))
            guest = writer.add_recipe(guest_ops(explanation, inner))
            how = {
                "rung": "published",
                "format": explanation.format,
                "facts": {"parts": str(len(layout.parts))},
                "tried": [],
                "encoders": {},
                "bytes": {"stored": file.size},
            }
            stored = replace(self._stored(inner, how, beside, writer), published=published)
        finally:
            writer.close()
        self._remember(guest, explanation.guest)
        return guest, stored

    def explained(
        self,
        file: SparseReader,
        explanation: Explanation,
        canonical: int | None,
        beside: Beside,
        *,
        is_canonical: bool,
    ) -> Stored:
        """Store a file that a format module explained, whose disk is like space `canonical`, if it
        is like any."""
        writer = self._writer()
        try:
            space, how = self._store_explained(file, explanation, canonical, is_canonical, writer)
            return self._stored(space, how, beside, writer)
        finally:
            writer.close()

    def unexplained(
        self, file: SparseReader, tried: list[dict[str, str]], beside: Beside, *, scattered: bool = False
    ) -> Stored:
        """Store a file by matches with what is stored already, or whole. `scattered`: others will
        read it in small pieces and in another order than it has."""
        writer = self._writer(_SCATTERED if scattered else None)
        try:
            ops = list(self._index.match(file, UNMATCHED))
            counts = _counts(ops)
            if counts["stored"] == file.size:
                tried = [*tried, {"rung": "delta", "why": "nothing of it is stored already"}]
            space = writer.add_recipe(self._residue(writer).settle(ops, file, UNMATCHED))
            rung = "whole" if counts["stored"] == file.size else "delta"
            how = {"rung": rung, "format": "", "facts": {}, "tried": tried, "encoders": {}, "bytes": counts}
            stored = self._stored(space, how, beside, writer)
        finally:
            writer.close()
        if counts["stored"] > _WORTH_INDEXING:
            self._remember(space, file)
        return stored

    def _stored(self, space: int, how: dict[str, Any], beside: Beside, writer: PackWriter) -> Stored:
        """Store what is published with an image, and close its group."""
        published = signature = None
        if beside.recovered is not None:
            published = self._store_published(beside, space, writer)
            how = {**how, "published": _published(beside.recovered)}
        if beside.signature:
            [(at_space, at, length)] = writer.append(beside.signature)
            signature = writer.add_recipe([Copy(length, at_space, at)])
        chain = self._chain(space, beside.boundaries, writer)
        return Stored(space, {**how, "cost": self._finish_group(writer)}, published, signature, chain)

    def _chain(self, space: int, boundaries: Sequence[Boundary], writer: PackWriter) -> Chain | None:
        """Store chaining values; of no use where streams, made in order, are in the way."""
        if not boundaries or self.ledger.needs_streams(space):
            return None
        return Chain(*writer.append_frame(encode_chain(boundaries)), len(boundaries))

    def _store_published(self, beside: Beside, image: int, writer: PackWriter) -> int:
        """The space of a compressed file around the image in space `image`."""
        recovered, file, plain = beside.recovered, beside.file, beside.plain
        assert recovered is not None
        assert file is not None
        assert plain is not None
        ops: list[Op] = []
        for number, op in enumerate(recovered.ops):
            if isinstance(op, Stream) and recovered.digests[number] in self._kept:
                append(ops, self._kept[recovered.digests[number]])
            elif isinstance(op, Stream):
                ops.append(self._stream(op, recovered, number, image, plain))
            else:
                append(ops, replace(op, space=UNMATCHED) if isinstance(op, Copy) else op)
        return writer.add_recipe(self._residue(writer).settle(ops, file, UNMATCHED))

    def _stream(self, op: Stream, recovered: Recovered, number: int, image: int, plain: Reader) -> Stream:
        """The op with the number of its rule. One that makes what another made is that one, and
        is encoded once: siblings share most of their blocks."""
        digest = recovered.digests[number]
        if digest not in self._made:
            rule = replace(recovered.streams[op.rule], input=image)
            self._made[digest] = replace(op, rule=self._stream_rule(rule, op, plain))
        return self._made[digest]

    def _stream_rule(self, rule: StreamRule, op: Stream, plain: Reader) -> int:
        encoder = (rule.codec, rule.params)
        if encoder not in self._stream_samples:
            at, sample = _sample_of(plain, op)
            self._stream_samples[encoder] = _Sample(rule.input, at, sample)
        return self.ledger.stream_rule(rule)

    def known_answers(self) -> tuple[KnownAnswer, ...]:
        """A known answer for every encoder that the recipes use."""
        used = sorted({(rule.codec, rule.params) for rule in self.ledger.encodes})
        streamed = sorted({(rule.codec, rule.params) for rule in self.ledger.streams})
        assert self._sample is not None or not used
        answers = [self._known_answer(each, self._sample) for each in used if self._sample]
        answers += [self._known_answer(each, self._stream_samples[each]) for each in streamed]
        return tuple(answers)

    def _known_answer(self, encoder: tuple[str, Params], sample: _Sample) -> KnownAnswer:
        name, params = encoder
        digest, library = known_answer(name, dict(params), sample.plain, self._run)
        if not digest:
            raise ToolMissing(f"an encoder that gave a file's bytes before gives none now: {library}")
        return KnownAnswer(name, params, library, sample.space, sample.offset, len(sample.plain), digest)

    def _writer(self, frame_size: int | None = None) -> PackWriter:
        size = min(frame_size or self._frame_size, self._frame_size)
        return PackWriter(self._root, self.ledger, self._level, self._pool, self._ahead, size)

    def _canonical_ops(
        self, guest: SparseReader, found: Survey, writer: PackWriter, advance: Callable[[int], object]
    ) -> list[Op]:
        """The disk's pages, zeros left out. In front and together those that other frames stand
        behind, and repeated pages, once: a reader keeps the few frames that hold them, and the rest
        it passes once, in order."""
        held_in_front = self._store_common(guest, found, writer)
        self._store_repeated(guest, found, writer, held_in_front)
        ops: list[Op] = []
        here = 0
        for page, data in nonzero_pages(guest):
            append(ops, zeros(page * PAGE - here))
            held = held_in_front.get(xxh3_64_intdigest(data)) if held_in_front else None
            if held and held[1] == data:
                append(ops, held[0])
            else:
                for space, at, length in writer.append(data):
                    append(ops, Copy(length, space, at))
                advance(len(data))
            here = page * PAGE + len(data)
        append(ops, zeros(guest.size - here))
        return ops

    def _derived_ops(
        self, guest: SparseReader, found: Survey, writer: PackWriter, advance: Callable[[int], object]
    ) -> list[Op]:
        """The disk from the spaces that there are; pages that stand nowhere are stored."""
        ops: list[Op] = []
        for op in self._index.match(guest, UNMATCHED):
            if isinstance(op, Copy) and op.space == UNMATCHED:
                for at in range(op.offset, op.offset + op.length, _LITERAL):
                    data = guest.pread(at, min(_LITERAL, op.offset + op.length - at))
                    for space, place, length in writer.append(data):
                        append(ops, Copy(length, space, place))
            else:
                append(ops, op)
            advance(0 if is_zeros(op) else op.length)
        return ops

    def _store_common(
        self, guest: SparseReader, found: Survey, writer: PackWriter
    ) -> dict[int, tuple[Copy, bytes]]:
        """Store the frame that the others stand behind; its pages, by their hashes."""
        numbers = common_pages(guest, found, min(self._frame_size, MAX_PREFIX), self._pool.map)
        pages = [guest.pread(number * PAGE, PAGE) for number in numbers]
        if not pages:
            return {}
        space, start = writer.append_prefix(b"".join(pages))
        return {
            xxh3_64_intdigest(data): (Copy(PAGE, space, start + number * PAGE), data)
            for number, data in enumerate(pages)
        }

    def _store_repeated(
        self, guest: SparseReader, found: Survey, writer: PackWriter, held: dict[int, tuple[Copy, bytes]]
    ) -> None:
        """Store the pages that stand more than once, and are not held yet."""
        wanted, most = found.repeated(), len(held) + _MAX_REPEATED // PAGE
        for number in np.flatnonzero(np.isin(found.hashes, np.fromiter(wanted, np.uint64, len(wanted)))):
            page, digest = int(found.pages[number]), int(found.hashes[number])
            if digest not in held and len(held) < most:
                data = guest.pread(page * PAGE, min(PAGE, guest.size - page * PAGE))
                if len(data) == PAGE:
                    [(space, at, length)] = writer.append(data)
                    held[digest] = (Copy(length, space, at), data)
        writer.flush()

    def _store_sample(self, guest: SparseReader, pages: Sequence[int], writer: PackWriter) -> None:
        """Real bytes for the known-answer tests of encoders, in a small frame of their own."""
        count = len(pages)
        picked = [pages[count * n // _SAMPLE_PAGES] for n in range(min(count, _SAMPLE_PAGES))]
        plain = b"".join(guest.pread(page * PAGE, min(PAGE, guest.size - page * PAGE)) for page in picked)
        self._sample = _Sample(*writer.append_frame(plain), plain)

    def _store_explained(
        self,
        file: SparseReader,
        explanation: Explanation,
        canonical: int | None,
        is_canonical: bool,
        writer: PackWriter,
    ) -> tuple[int, dict[str, Any]]:
        if self._sample is None and explanation.sizes:  # every disk is zeros, encoded nevertheless
            self._store_sample(explanation.guest, [0], writer)
        residue = self._residue(writer)
        stored = 0
        if is_canonical and canonical is not None:
            guest = canonical
        else:
            guest, stored = self._store_guest(explanation.guest, canonical, writer, residue)
        ops = self._explained_ops(file, explanation, guest, writer)
        counts = _counts(ops)
        settled = residue.settle(ops, file, UNMATCHED)
        space = guest if settled == [Copy(file.size, guest, 0)] else writer.add_recipe(settled)
        if counts["stored"] > _WORTH_INDEXING or canonical is None:  # an ISO holds the rootfs too
            self._remember(space, file)
        counts["stored"] += stored
        return space, {
            "rung": "explained",
            "format": explanation.format,
            "facts": dict(explanation.facts),
            "tried": [],
            "encoders": {rule.codec: codec(rule.codec).version() for rule in explanation.rules.encodes},
            "bytes": counts,
        }

    def _explained_ops(
        self, file: SparseReader, explanation: Explanation, guest: int, writer: PackWriter
    ) -> list[Op]:
        """An explanation's ops over real spaces, those of its layers stored first."""
        spaces = {GUEST: guest, SIZES: self._store_sizes(explanation, writer)}
        for number, layer in enumerate(explanation.layers):
            ops = self._explained_ops(layer.file, layer.explanation, guest, writer)
            spaces[LAYER + number] = writer.add_recipe(
                self._residue(writer).settle(ops, layer.file, UNMATCHED)
            )
        return list(self._place(explanation, file, spaces))

    def _store_guest(
        self, guest: SparseReader, canonical: int | None, writer: PackWriter, residue: Residue
    ) -> tuple[int, int]:
        """The space of a sibling's disk, and how many of its bytes had to be stored."""
        ops = self.matches.match(Wanted(guest, canonical))
        stored = _counts(ops)["stored"]
        if canonical is not None and ops == [Copy(self.ledger.size(canonical), canonical, 0)]:
            return canonical, stored
        space = writer.add_recipe(residue.settle(ops, guest, UNMATCHED))
        if stored > _WORTH_INDEXING:
            self._remember(space, guest)
        return space, stored

    def _store_sizes(self, explanation: Explanation, writer: PackWriter) -> int:
        """The space of the table of unit sizes; its integers are stored as byte planes."""
        if not explanation.sizes:
            return UNMATCHED
        width = explanation.rules.tables[0].width
        space, at = writer.append_frame(explanation.sizes, width)
        return writer.add_recipe([Copy(len(explanation.sizes), space, at)])

    def _place(self, explanation: Explanation, file: SparseReader, spaces: dict[int, int]) -> Iterator[Op]:
        """The explanation's ops with real numbers, its FILE spans matched against everything."""
        # A disk of zeros alone has no units: nothing names its rules, and no table is stored.
        rules = explanation.rules
        base = self._add_rules(rules if explanation.sizes else Rules(), spaces)
        for op in explanation.ops:
            if isinstance(op, Copy) and op.space == FILE:
                yield from self._match_span(file, op)
            elif isinstance(op, Copy):
                yield replace(op, space=spaces[op.space])
            elif isinstance(op, Offsets):
                yield replace(op, rule=op.rule + base[0])
            elif isinstance(op, Encode):
                yield replace(op, rule=op.rule + base[1])
            elif isinstance(op, Stream):
                layer = explanation.layers[rules.streams[op.rule].input - LAYER]
                rule = replace(rules.streams[op.rule], input=spaces[rules.streams[op.rule].input])
                yield replace(op, rule=self._stream_rule(rule, op, layer.file))
            else:
                yield op

    def _add_rules(self, rules: Rules, spaces: dict[int, int]) -> tuple[int, int]:
        ledger = self.ledger
        tables, base = len(ledger.tables), (len(ledger.offsets), len(ledger.encodes))
        ledger.tables += [replace(table, space=spaces[table.space]) for table in rules.tables]
        ledger.offsets += [replace(rule, table=rule.table + tables) for rule in rules.offsets]
        ledger.encodes += [
            replace(rule, table=rule.table + tables, input=spaces[rule.input]) for rule in rules.encodes
        ]
        return base

    def _match_span(self, file: SparseReader, span: Copy) -> Iterator[Op]:
        if span.length < _SMALL:
            yield from _split_zeros(file.pread(span.offset, span.length), span.offset)
            return
        window = WindowReader(file, span.offset, span.length)
        for op in self._index.match(window, UNMATCHED, rolling=span.length >= _ROLLING):
            if isinstance(op, Copy) and op.space == UNMATCHED:
                yield Copy(op.length, UNMATCHED, op.offset + span.offset)
            else:
                yield op

    def _finish_group(self, writer: PackWriter) -> int:
        packs = writer.finish()
        self.groups.append([pack.stored.file for pack in packs])
        return sum(pack.stored.size for pack in packs)

    def _residue(self, writer: PackWriter) -> Residue:
        return Residue(self.ledger, writer, self._spaces)

    def _remember(self, space: int, reader: Reader) -> None:
        """Let later files find these bytes."""
        self._spaces[space] = reader
        self.matches.add(space, reader)


def _whole(file: Reader) -> Copy:
    return Copy(file.size, UNMATCHED, 0)


def _data_pages(guest: SparseReader) -> list[int]:
    """Numbers of pages that hold data."""
    return [page for page, _ in islice(nonzero_pages(guest), _SAMPLE_PAGES)] or [0]


def _published(recovered: Recovered) -> dict[str, Any]:
    """What `info` shows of a compressed file."""
    return {
        "encoders": dict(recovered.encoders),
        "bytes": {"encoded": recovered.reproduced, "kept": recovered.kept},
    }


def _sample_of(plain: Reader, op: Stream) -> tuple[int, bytes]:
    """Where a stream's first bytes are that are not zero throughout, and those bytes."""
    size = min(_STREAM_SAMPLE, op.plain)
    tried = range(op.offset, op.offset + op.plain - size + 1, max(size, (op.plain - size) // _PLACES or 1))
    for at in tried:
        sample = plain.pread(at, size)
        if any(sample):
            return at, sample
    return op.offset, plain.pread(op.offset, size)


def _split_zeros(data: bytes, offset: int) -> Iterator[Op]:
    """Unmatched bytes with their longer runs of zeros taken out."""
    at = 0
    while at < len(data):
        start = data.find(bytes(64), at)
        if start < 0:
            break
        end = start + 64
        while end < len(data) and not data[end]:
            end += 1
        if start > at:
            yield Copy(start - at, UNMATCHED, offset + at)
        yield zeros(end - start)
        at = end
    if at < len(data):
        yield Copy(len(data) - at, UNMATCHED, offset + at)


def _counts(ops: Sequence[Op]) -> dict[str, int]:
    """Output bytes by where they come from; "stored" is what nothing gives."""
    counts = {"stored": 0}
    for op in ops:
        kind = _origin(op)
        counts[kind] = counts.get(kind, 0) + op.length
    return counts


def _origin(op: Op) -> str:
    if isinstance(op, Copy):
        return "stored" if op.space == UNMATCHED else "copied"
    if is_zeros(op):
        return "zeros"
    return "encoded" if isinstance(op, Encode | Stream) else "tables"
