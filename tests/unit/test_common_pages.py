"""The frame that others stand behind: which pages it holds, and that packs with one read back."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator.bundle import packing, reader
from rehydrator.bundle.common_pages import common_pages
from rehydrator.bundle.packing import Ledger, PackWriter
from rehydrator.bundle.reader import PackFile
from rehydrator.bundle.survey import PAGE, survey
from rehydrator.core.errors import HostileInput
from rehydrator.core.pack import (
    DATA,
    STORED,
    ZSTD,
    ZSTD_BEHIND,
    decode_frame,
    decode_index,
    prefix_of,
)
from rehydrator.core.reader import BytesReader
from rehydrator.core.zstd_decoder import Prefix
from rehydrator.store.files import DirectoryFiles

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.bundle.manifest import Pack
    from rehydrator.core.pack import Frame

FRAME = 64 * PAGE


def disk(seed: int, frames: int) -> tuple[bytes, bytes]:
    """Random pages, and bytes that stand once in each frame, at any place."""
    dice = random.Random(seed)
    snippet = dice.randbytes(PAGE)
    made = bytearray(dice.randbytes(frames * FRAME))
    for frame in range(frames):
        at = frame * FRAME + dice.randrange(FRAME - 2 * PAGE)
        made[at : at + PAGE] = snippet
    return bytes(made), snippet


@pytest.mark.parametrize("seed", range(5))
def test_what_frames_have_in_common_is_found(seed: int) -> None:
    """Where the snippet stands first, and no page that no other frame has anything of; threads make
    no difference."""
    data, snippet = disk(seed, 6)
    guest = BytesReader(data)
    first = data.index(snippet)
    expected = {first // PAGE, (first + PAGE - 1) // PAGE}
    found = common_pages(guest, survey(guest), FRAME, map)
    assert found
    assert set(found) <= expected
    with ThreadPoolExecutor(3) as pool:
        assert common_pages(guest, survey(guest), FRAME, pool.map) == found


def test_no_more_than_a_frame() -> None:
    """Of more pages than fit, those that most frames have; in the order of the disk."""
    dice = random.Random(7)
    rare, common = dice.randbytes(40 * PAGE), dice.randbytes(64 * PAGE)
    parts = [rare + dice.randbytes(24 * PAGE), common, rare + dice.randbytes(24 * PAGE), common, common]
    guest = BytesReader(b"".join(parts))
    found = common_pages(guest, survey(guest), FRAME, map)
    assert len(found) <= 64
    assert len([page for page in found if 64 <= page < 128]) > 50
    assert found == sorted(found)


@pytest.mark.parametrize(
    "data",
    [
        disk(1, 3)[0],
        bytes(9 * FRAME),
        b"A" * (9 * FRAME),
        random.Random(3).randbytes(9 * FRAME),
        b"",
        b"end",
    ],
    ids=["too small", "zeros", "a run", "nothing in common", "empty", "tiny"],
)
def test_none(data: bytes) -> None:
    """Disks of less than four frames, and those without anything in common, have no such frame."""
    guest = BytesReader(data)
    assert common_pages(guest, survey(guest), FRAME, map) == []


# --- packs


def words(seed: int, size: int) -> bytes:
    """Text that compresses, of words of its own."""
    dice = random.Random(seed)
    vocabulary = [dice.randbytes(9) for _ in range(400)]
    return b"".join(dice.choice(vocabulary) for _ in range(size // 9 + 1))[:size]


def written(root: Path, prefix: bytes, content: bytes) -> list[Pack]:
    """The packs of a prefix and what comes behind it, in frames of 64 KiB."""
    (root / "packs").mkdir()
    with ThreadPoolExecutor(2) as pool:
        writer = PackWriter(root, Ledger(), 3, pool, 4, 1 << 16)
        writer.append_prefix(prefix)
        placed = writer.append(content)
        assert sum(length for _, _, length in placed) == len(content)
        return writer.finish()


def read(root: Path, pack: Pack) -> tuple[list[int], bytes]:
    """A pack's codecs, and its plain bytes."""
    raw = (root / pack.stored.file).read_bytes()
    frames = decode_index(raw[pack.index_offset :], "pack")
    stored = [raw[frame.offset : frame.offset + frame.stored] for frame in frames]
    first = prefix_of(frames)
    assert first is frames[0]
    prefix = Prefix(decode_frame(first, stored[0], "pack"))
    plain = [decode_frame(*pair, "pack", lambda: prefix) for pair in zip(frames, stored, strict=True)]
    return [frame.codec for frame in frames if frame.kind == DATA], b"".join(plain)


def test_frames_stand_behind_the_first(tmp_path: Path) -> None:
    """All but the first refer to it, and are half as large."""
    prefix, content = words(1, 50_000), words(1, 200_000)
    [pack] = written(tmp_path, prefix, content)
    assert read(tmp_path, pack) == ([ZSTD] + 7 * [ZSTD_BEHIND], prefix + content)


def test_what_does_not_shrink_is_stored(tmp_path: Path) -> None:
    """Behind a prefix as without one."""
    noise = random.Random(1).randbytes(100_000)
    [pack] = written(tmp_path, noise[:1000], noise[1000:])
    assert read(tmp_path, pack) == (5 * [STORED], noise)


def test_every_pack_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further pack begins with the same frame, and can be read alone."""
    monkeypatch.setattr(packing, "MAX_PACK", 1 << 18)
    prefix, content = words(1, 50_000), words(1, 600_000)
    packs = written(tmp_path, prefix, content)
    plains = [read(tmp_path, pack)[1] for pack in packs]
    assert len(packs) == 3
    assert all(plain.startswith(prefix) for plain in plains)
    assert b"".join(plain[len(prefix) :] for plain in plains) == content


def test_what_would_be_taken_for_a_dictionary(tmp_path: Path) -> None:
    """Bytes that begin as zstd's dictionaries do are stored, and nothing stands behind them."""
    prefix, content = bytes.fromhex("37a430ec") + words(1, 50_000), words(1, 100_000)
    [pack] = written(tmp_path, prefix, content)
    assert read(tmp_path, pack) == ([ZSTD] * 3, prefix + content)


def test_a_prefix_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For whoever reads its pages, and for the frames behind it, which are decoded by threads."""
    prefix, content = words(1, 50_000), words(1, 200_000)
    [pack] = written(tmp_path, prefix, content)
    decoded: list[int] = []

    def decode(frame: Frame, *more: Any) -> bytes:
        decoded.append(frame.start)
        return decode_frame(frame, *more)

    monkeypatch.setattr(reader, "decode_frame", decode)
    file = PackFile(DirectoryFiles(tmp_path), pack)
    frames = [frame for frame in file.frames() if frame.kind == DATA]
    with ThreadPoolExecutor(4) as pool:
        assert b"".join(pool.map(file.plain, [*frames, *frames])) == 2 * (prefix + content)
    assert decoded.count(0) == 1
    assert len(decoded) == 1 + 2 * (len(frames) - 1)


def test_a_prefix_that_the_manifest_does_not_name(tmp_path: Path) -> None:
    """It is refused before anything is decoded."""
    [pack] = written(tmp_path, words(1, 50_000), words(1, 200_000))
    assert pack.prefix
    with pytest.raises(HostileInput, match="behind a prefix"):
        PackFile(DirectoryFiles(tmp_path), replace(pack, prefix=False)).frames()
