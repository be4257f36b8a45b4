"""A live root file system made again from the files that it holds, where its encoder is at hand.

    contents   the files' bytes, each file from a multiple of 4 KiB on, with zeros behind it
    blocks     the plain bytes of the file system's blocks, one after the other, made of those
    rootfs     every block encoded again; what lies between them (superblock, tables) is FILE

Guest disks hold the same files in pages of 4 KiB, the last of each filled up with zeros: page for
page, `contents` is found there. Of blocks alone it would not be: a quarter of them hold the ends of
many files, at odd places, and those of less than 4 KiB are found nowhere (measured, a Debian root
of 652 MiB on XFS: of the blocks, 11 MB are not found in the disk, which are 5 MB compressed; of
the contents, 5 KB).

Holes of files are left out. Bytes that several files share (mksquashfs finds equal ones) are
those of the first.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from rehydrator.codecs import blocks as block_codecs
from rehydrator.codecs import streams
from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Rules, Stream, StreamRule
from rehydrator.formats import squashfs
from rehydrator.formats.explanation import (
    FILE,
    LAYER,
    Explanation,
    Extent,
    GuestReader,
    Layer,
    OpsBuilder,
    Packed,
    require,
)
from rehydrator.formats.filesystem import ZEROS, decode, decoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Each
    from rehydrator.formats.filesystem import Block, Content, FileSystem

PAGE: Final = 4096

# Plain bytes for one of the file system; a Debian root has 3 (measured). A few bytes may hold 1 MiB
# of zeros, and all of it would be encoded.
MAX_RATIO: Final = 64
_FREE = 64 << 20  # whatever the size

_SAMPLES = 32
_ROUNDS = 3
_BATCH = 8  # blocks in one piece of work
_WINDOW = 64  # pieces of work queued at a time

# Options of the file system, beside those that its blocks have as parameters.
_HINTS = ("strategies",)

Encoder = tuple[str, streams.Params]


def explain_squashfs(file: Reader, each: Each = map) -> Explanation:
    """The squashfs at the beginning of `file`: blocks that an encoder at hand gives are streams
    of the blocks' space, and those that lie as they are copies of it; all else stays FILE.

    Its first layer is `blocks`, whose own first layer is `contents`; that one is the `guest`.
    Every block is decoded and encoded again, side by side by `each`.

    Raises:
        Unexplained: no squashfs that can be read, no encoder at hand gives its blocks, or they hold
            more than a live root file system does.
        HostileInput: a block is damaged.
    """
    system = squashfs.read(file)
    order = sorted(range(len(system.blocks)), key=lambda number: system.blocks[number].offset)
    laid = [system.blocks[number] for number in order]
    held = sum(block.plain for block in laid)
    require(held <= MAX_RATIO * system.size + _FREE, f"{held} plain bytes in {system.size}")
    hints = {name: int(system.facts[name]) for name in _HINTS if name in system.facts}
    chosen, encoders = _reproduce(file, [block for block in laid if block.codec], hints, each)
    plain = _Plain(file, laid)
    contents, inner = _contents(system, {number: plain.starts[k] for k, number in enumerate(order)}, plain)
    ops = OpsBuilder(file.size)
    for block, start in zip(laid, plain.starts, strict=True):
        if not block.codec:
            ops.add(block.offset, Copy(block.plain, LAYER, start))
        elif (number := chosen.get(block.offset)) is not None:
            ops.add(block.offset, Stream(block.stored, number, start, block.plain))
    return Explanation(
        system.kind,
        contents,
        ops.finish(),
        Rules(streams=tuple(StreamRule(codec, params, LAYER) for codec, params in encoders)),
        facts={**system.facts, **_facts(encoders, chosen, laid)},
        layers=(Layer(plain.reader, inner),),
    )


def _facts(encoders: Sequence[Encoder], chosen: dict[int, int], blocks: Sequence[Block]) -> dict[str, str]:
    packed = sum(bool(block.codec) for block in blocks)
    described = ", ".join(streams.described(codec, dict(params)) for codec, params in encoders)
    return {"encoder": described or "none needed", "encoded again": f"{len(chosen)} of {packed} blocks"}


class _Plain:
    """The space of blocks: they begin at `starts`, in the order given."""

    def __init__(self, file: Reader, blocks: Sequence[Block]) -> None:
        self._blocks = {block.offset: block for block in blocks}
        self.starts: list[int] = []
        extents: list[Extent | Packed] = []
        at = 0
        for block in blocks:
            self.starts.append(at)
            if block.codec:
                extents.append(Packed(at, block.plain, block.offset, block.stored))
            else:
                extents.append(Extent(at, block.plain, block.offset))
            at += block.plain
        self.reader = GuestReader(file, at, extents, self._decode)

    def _decode(self, packed: Packed, stored: bytes) -> bytes:
        name, params = decoder(self._blocks[packed.file])
        return block_codecs.decode(name, stored, dict(params), packed.length)


# --- contents ---


class _Span(NamedTuple):
    """Bytes [start, start+length) of a block, which are those of file `owner` from `at` on."""

    block: int
    start: int
    length: int
    owner: int
    at: int


def _contents(system: FileSystem, starts: dict[int, int], plain: _Plain) -> tuple[GuestReader, Explanation]:
    """The space of contents, and the space of blocks explained by it; `starts` are the places of
    the blocks there, by number."""
    ops = OpsBuilder(plain.reader.size)
    extents: list[Extent] = []
    here, owner = 0, -1
    for span in sorted(_spans(system.contents, starts), key=lambda span: (span.owner, span.at)):
        if span.owner != owner:
            here, owner = -(-here // PAGE) * PAGE, span.owner
        place = starts[span.block] + span.start
        extents.append(Extent(here, span.length, place))
        ops.add(place, Copy(span.length, LAYER, here))
        here += span.length
    contents = GuestReader(plain.reader, -(-here // PAGE) * PAGE, extents)
    alone = Explanation("contents", contents, [Copy(contents.size, FILE, 0)] if here else [])
    return contents, Explanation("blocks", contents, ops.finish(), layers=(Layer(contents, alone),))


def _spans(contents: Iterable[Content], starts: dict[int, int]) -> Iterator[_Span]:
    """Spans that share no bytes; `owner` numbers the files in the order of their first bytes."""
    files = [[piece for piece in content.pieces if piece.block != ZEROS] for content in contents]
    files = [pieces for pieces in files if pieces]
    files.sort(key=lambda pieces: starts[pieces[0].block] + pieces[0].start)
    spans = [
        _Span(piece.block, piece.start, piece.length, owner, piece.at)
        for owner, pieces in enumerate(files)
        for piece in pieces
    ]
    # Of those that begin at one byte the longest is the best; of equal ones, the first.
    spans.sort(key=lambda span: (span.block, span.start, -span.length, span.owner, span.at))
    block, end = -1, 0
    for span in spans:
        if span.block != block:
            block, end = span.block, 0
        if span.start >= end:
            end = span.start + span.length
            yield span


# --- encoders ---


def _reproduce(
    file: Reader, blocks: Sequence[Block], hints: Mapping[str, int], each: Each
) -> tuple[dict[int, int], list[Encoder]]:
    """Which encoder gives which block, by the block's offset; and the encoders, by number.

    Encoders are found on samples, and then tried on every block, the one that gave most samples
    first; blocks that none gave are sampled again.
    """
    encoders: list[Encoder] = []
    chosen: dict[int, int] = {}
    left = list(blocks)
    for _ in range(_ROUNDS if blocks else 0):
        more = [encoder for encoder in _find(file, _spread(left), hints, each) if encoder not in encoders]
        for block, hit in _hits(file, left, more, each) if more else ():
            if hit is not None:
                chosen[block.offset] = len(encoders) + hit
        encoders += more
        left = [block for block in left if block.offset not in chosen]
        if not left or not more:
            break
    if blocks and not chosen:
        raise Unexplained(f"no encoder at hand gives its {blocks[0].codec} blocks")
    return _fewer(file, blocks, chosen, encoders, each)


def _fewer(
    file: Reader, blocks: Sequence[Block], chosen: dict[int, int], encoders: list[Encoder], each: Each
) -> tuple[dict[int, int], list[Encoder]]:
    """All blocks by the encoder that was found last, if it gives the others' too: two versions of
    zstd give most blocks alike, and the wrong one of them may be found first."""
    last = len(encoders) - 1
    others = [block for block in blocks if chosen.get(block.offset, last) != last]
    sole = encoders[last:]
    for tried in (_spread(others), others):
        if not others or any(hit is None for _, hit in _hits(file, tried, sole, each)):
            return chosen, encoders
    return dict.fromkeys(chosen, 0), sole


def _spread(blocks: Sequence[Block]) -> list[Block]:
    """At most 32 of them, the first and the last included."""
    if len(blocks) <= _SAMPLES:
        return list(blocks)
    return [blocks[k * (len(blocks) - 1) // (_SAMPLES - 1)] for k in range(_SAMPLES)]


def _find(file: Reader, samples: Sequence[Block], hints: Mapping[str, int], each: Each) -> list[Encoder]:
    """The fewest encoders that give all samples that can be given, best first."""
    hits = [set(found) for found in each(partial(_encoders_of, file, hints), samples)]
    found: list[Encoder] = []
    while votes := Counter(encoder for hit in hits for encoder in hit):
        best = min(votes, key=lambda encoder: (-votes[encoder], encoder))
        found.append(best)
        hits = [hit for hit in hits if best not in hit]
    return found


def _encoders_of(file: Reader, hints: Mapping[str, int], block: Block) -> list[Encoder]:
    plain, packed = decode(file, block), file.pread(block.offset, block.stored)
    hits = streams.find(f"unit.{block.codec}", plain, packed, {**dict(block.params), **hints}, whole=True)
    return [(hit.codec, hit.params) for hit in hits]


def _hits(
    file: Reader, blocks: Sequence[Block], encoders: Sequence[Encoder], each: Each
) -> Iterator[tuple[Block, int | None]]:
    """Each block with the first of the encoders that gives it.

    An executor's map queues everything at once, so work is handed to it in windows."""
    batches = (blocks[k : k + _BATCH] for k in range(0, len(blocks), _BATCH))
    while window := list(islice(batches, _WINDOW)):
        for batch, found in zip(window, each(partial(_tried, file, encoders), window), strict=True):
            yield from zip(batch, found, strict=True)


def _tried(file: Reader, encoders: Sequence[Encoder], blocks: Sequence[Block]) -> list[int | None]:
    made = [streams.encoder(codec, dict(params)) for codec, params in encoders]
    found: list[int | None] = []
    for block in blocks:
        plain, packed = decode(file, block), file.pread(block.offset, block.stored)
        hits = (k for k, encoder in enumerate(made) if streams.prove(encoder, [plain], [packed]) is None)
        found.append(next(hits, None))
    return found
