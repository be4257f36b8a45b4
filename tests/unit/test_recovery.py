"""Which encoder made a compressed file: guessed, proven, and shared among equal parts."""

from __future__ import annotations

import gzip
import lzma
import random
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from backports import zstd

from rehydrator.bundle import recovery
from rehydrator.bundle.recovery import Recovery
from rehydrator.codecs import streams
from rehydrator.core.ops import Copy, Stream
from rehydrator.core.reader import BytesReader
from rehydrator.formats import containers
from rehydrator.formats.explanation import FILE
from rehydrator.streaming import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.bundle.recovery import Recovered

DICE = random.Random(4)
WORDS = [DICE.randbytes(DICE.randrange(2, 9)) for _ in range(900)]


def text(length: int) -> bytes:
    return b"".join(DICE.choices(WORDS, k=length // 4))[:length]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def recover(pool: ThreadPoolExecutor, *files: bytes) -> list[Recovered]:
    """What is found of some files, in one build."""
    search = Recovery(pool, None)
    running = []
    for packed in files:
        plain = bytearray()
        layout = containers.read(BytesReader(packed), "file", 1 << 30, plain.extend)
        running.append(search.begin(BytesReader(packed), layout, BytesReader(bytes(plain))))
    return [each.result() for each in running]


def made_of(recovered: Recovered, packed: bytes, plain: bytes) -> bytes:
    """The file again, as the ops say."""
    made = b""
    for op in recovered.ops:
        if isinstance(op, Stream):
            rule = recovered.streams[op.rule]
            span = plain[op.offset : op.offset + op.plain]
            made += b"".join(streams.encoder(rule.codec, dict(rule.params)).encode([span]))
        else:
            assert isinstance(op, Copy)
            assert op.space == FILE
            made += packed[op.offset : op.offset + op.length]
    return made


@pytest.mark.parametrize("preset", [0, 6, 9 | lzma.PRESET_EXTREME])
def test_xz(pool: ThreadPoolExecutor, preset: int) -> None:
    """A stream of .xz is one encoded stream between headers, check and index."""
    plain = text(300_000)
    packed = lzma.compress(plain, preset=preset)
    [found] = recover(pool, packed)
    assert (found.kept, len(found.streams)) == (0, 1)
    assert made_of(found, packed, plain) == packed


def test_members_of_several_encoders(pool: ThreadPoolExecutor) -> None:
    """Every member has the encoder that gives it; what no encoder gives is kept as it is."""
    plains = [text(90_000) for _ in range(3)]
    odd = zlib.compressobj(9, wbits=31, strategy=zlib.Z_HUFFMAN_ONLY)
    members = [
        gzip.compress(plains[0], 9),
        odd.compress(plains[1]) + odd.flush(),
        gzip.compress(plains[2], 1),
    ]
    packed = b"".join(members)
    [found] = recover(pool, packed)
    assert len(found.streams) == 2
    assert found.kept == len(members[1]) - 18
    assert made_of(found, packed, b"".join(plains)) == packed


def test_frames_that_state_their_sizes(pool: ThreadPoolExecutor) -> None:
    """What is found of one frame fits the others, each with its own size."""
    plains = [text(size) for size in (1000, 90_000, 50_000)]
    packed = b"".join(zstd.compress(plain, 5) for plain in plains)
    [found] = recover(pool, packed)
    assert [dict(rule.params)["size_rest"] for rule in found.streams] == [1000, 90_000, 50_000]
    assert (found.kept, made_of(found, packed, b"".join(plains))) == (0, packed)


def test_equal_parts_are_proven_once(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one digest, in one file or two, are encoded once and have that digest."""
    proven = []
    prove = streams.prove

    def counted(*arguments: object) -> int | None:
        proven.append(1)
        return prove(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(streams, "prove", counted)
    one, two = gzip.compress(text(80_000), mtime=1), gzip.compress(text(80_000), mtime=2)
    first, second = recover(pool, one + two + one, two + one)
    digests = [list(each.digests.values()) for each in (first, second)]
    assert len(proven) == 2
    assert digests == [[digests[0][0], digests[0][1], digests[0][0]], [digests[0][1], digests[0][0]]]


def test_other_files_make_no_difference(pool: ThreadPoolExecutor) -> None:
    """What several encoders give is the same one's, whatever was found before in other files."""
    plain = bytes(200_000)
    files = [lzma.compress(plain, preset=1), lzma.compress(text(50_000), preset=3), gzip.compress(plain, 1)]
    files += [lzma.compress(text(50_000) + plain, preset=6), gzip.compress(text(90_000), 9)]
    alone = [recover(pool, packed)[0].streams for packed in files]
    together = [found.streams for found in recover(pool, *files)]
    behind = [found.streams for found in recover(pool, *files[::-1])][::-1]
    assert alone == together
    assert alone == behind


def test_an_unknown_writer_is_given_up(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few members that no encoder gives, the rest of the file is not searched."""
    asked = []
    find = streams.find

    def counted(*arguments: object, **named: object) -> list[streams.Hit]:
        asked.append(1)
        return find(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(streams, "find", counted)
    members = []
    for _ in range(40):
        odd = zlib.compressobj(9, wbits=31, strategy=zlib.Z_HUFFMAN_ONLY)
        members.append(odd.compress(text(3000)) + odd.flush())
    [found] = recover(pool, b"".join(members))
    assert (len(found.ops), found.reproduced) == (1, 0)
    assert len(asked) == recovery._MOST_MISSES + 1


def test_a_dictionary_that_the_header_rounds_up(pool: ThreadPoolExecutor) -> None:
    """A dictionary of 5 MiB is stated as 6: content that reaches further back tells them apart,
    and the encoder is found nevertheless."""
    once = DICE.randbytes((5 << 20) + 4096)
    plain = once + once[:100_000]
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 5 << 20}]
    packed = lzma.compress(plain, filters=chain)
    [found] = recover(pool, packed)
    assert [dict(rule.params)["dict_size"] for rule in found.streams] == [5 << 20]
    assert made_of(found, packed, plain) == packed


def test_room_for_encoders() -> None:
    """What does not fit waits; what is larger than all there is runs alone."""
    gate, order = Gate(10), []

    def work(name: str, memory: int) -> None:
        with gate.room(memory):
            order.append(name)

    with gate.room(8):
        waiting = threading.Thread(target=work, args=("large", 99))
        waiting.start()
        work("small", 2)
        assert order == ["small"]
    waiting.join(30)
    assert order == ["small", "large"]


def test_headers_that_differ(pool: ThreadPoolExecutor) -> None:
    """Of two files with the same deflate data each gets what its own header makes likely, whichever
    is looked at first: that varies with threads."""
    best = gzip.compress(text(3000), 9, mtime=0)
    unsaid = best[:8] + bytes(1) + best[9:]
    found = recover(pool, best, unsaid)
    assert [each.streams for each in reversed(recover(pool, unsaid, best))] == [
        each.streams for each in found
    ]
    assert [dict(rule.params)["level"] for each in found for rule in each.streams] == [9, 6]
