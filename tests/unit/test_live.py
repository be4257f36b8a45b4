"""A live root file system is made again from the contents of its files."""

from __future__ import annotations

import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rehydrator.codecs import units
from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import Copy, Stream
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace
from rehydrator.formats import live, squashfs
from rehydrator.formats.explanation import FILE, LAYER
from rehydrator.formats.filesystem import Block, Content, FileSystem, Piece, decode

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Explanation

KIB = 1 << 10
DICE = random.Random(3)
WORDS = [DICE.randbytes(DICE.randint(2, 9)) for _ in range(400)]
COMPRESSORS = {
    "zlib": "-comp gzip",
    "zlib, strategies": "-comp gzip -Xcompression-level 6 -Xwindow-size 12 -Xstrategy filtered,huffman_only",
    "xz": "-comp xz",
    "xz, filters": "-comp xz -Xbcj x86,arm -Xdict-size 100%",
    "zstd": "-comp zstd",
    "zstd, level": "-comp zstd -Xcompression-level 5 -b 256K",
    "lz4": "-comp lz4",
    "lz4hc": "-comp lz4 -Xhc -b 1M",
}


def text(length: int) -> bytes:
    return b"".join(DICE.choices(WORDS, k=length // 4 + 1))[:length]


FILES = {
    "empty": b"",
    "tiny": b"x",
    "page": text(4096),
    "block": text(128 * KIB),
    "large": text(700_001),
    "noise": DICE.randbytes(200_000),
    "holes": text(128 * KIB) + bytes(512 * KIB) + text(5000),
    "zeros": bytes(300_000),
    "program": b"".join(b"\xe8" + DICE.randbytes(2) + b"\0\0\x89\xc3" + text(9) for _ in range(9000)),
} | {f"many/{k}": text(k * 37) for k in range(300)}
FILES["many/again"] = FILES["large"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name, data in FILES.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return root


def made(root: Path, folder: Path, options: str) -> bytes:
    image = folder / "root.squashfs"
    command = ["mksquashfs", str(root), str(image), "-quiet", "-no-progress", "-processors", "1"]
    subprocess.run([*command, *options.split()], check=True, stdout=subprocess.DEVNULL)
    return image.read_bytes()


@pytest.fixture(scope="module")
def gzip(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tree, tmp_path_factory.mktemp("gzip"), "-comp gzip")


def read(reader: Reader) -> bytes:
    return b"".join(reader.pread(at, min(50_000, reader.size - at)) for at in range(0, reader.size, 50_000))


def pages(data: bytes) -> set[bytes]:
    return {data[at : at + 4096].ljust(4096, b"\0") for at in range(0, len(data), 4096)}


def evaluated(explanation: Explanation, file: bytes, layer: bytes) -> bytes:
    """What the ops make of the layer and, where they say so, of the file itself."""
    spaces = {LAYER: ReaderSpace(BytesReader(layer)), FILE: ReaderSpace(BytesReader(file))}
    machine = Machine({**spaces, 9: OpsSpace(explanation.ops)}, explanation.rules)
    return read(machine.reader(9))


def rebuilt(image: bytes, explanation: Explanation) -> bytes:
    """The image, from the contents of its files and what is FILE."""
    (blocks,) = explanation.layers
    (contents,) = blocks.explanation.layers
    assert contents.explanation.ops == [Copy(contents.file.size, FILE, 0)]
    return evaluated(explanation, image, evaluated(blocks.explanation, b"", read(contents.file)))


def kept(explanation: Explanation) -> int:
    """Bytes that stay FILE."""
    return sum(op.length for op in explanation.ops if isinstance(op, Copy) and op.space == FILE)


@pytest.mark.parametrize("options", COMPRESSORS.values(), ids=COMPRESSORS)
def test_every_block_is_encoded_again(tree: Path, tmp_path: Path, options: str) -> None:
    """What is no block is all that is kept, and the image comes back from the files' contents."""
    image = made(tree, tmp_path, options)
    explanation = live.explain_squashfs(BytesReader(image))
    blocks = squashfs.read(BytesReader(image)).blocks
    assert kept(explanation) == len(image) - sum(block.stored for block in blocks)
    packed = sum(bool(block.codec) for block in blocks)
    assert explanation.facts["encoded again"] == f"{packed} of {packed} blocks"
    assert rebuilt(image, explanation) == image


def test_files_begin_at_pages_of_the_contents(gzip: bytes) -> None:
    """As they do on a guest disk: zeros fill each up to 4 KiB; holes and repetitions are left out."""
    explanation = live.explain_squashfs(BytesReader(gzip))
    contents = read(explanation.guest)
    held = pages(contents)
    missing = [name for name, data in FILES.items() if not pages(data) <= held]
    assert missing == ["holes", "zeros"]
    assert contents.count(FILES["large"][-8192:]) == 1
    assert len(contents) < sum(len(data) + 4096 for data in FILES.values()) - len(FILES["large"]) - 512 * KIB


def test_threads_change_nothing(gzip: bytes) -> None:
    """Work that is done side by side gives the same ops and rules."""
    alone = live.explain_squashfs(BytesReader(gzip))
    with ThreadPoolExecutor(3) as pool:
        together = live.explain_squashfs(BytesReader(gzip), pool.map)
    assert (alone.ops, alone.rules) == (together.ops, together.rules)


def test_a_block_of_another_encoder_is_kept(gzip: bytes) -> None:
    """A zlib header that states another level decodes to the same bytes, and is encoded otherwise."""
    victim = next(block for block in squashfs.read(BytesReader(gzip)).blocks if block.codec)
    assert gzip[victim.offset : victim.offset + 2] == b"\x78\xda"
    image = gzip[: victim.offset] + b"\x78\x9c" + gzip[victim.offset + 2 :]
    before, after = (live.explain_squashfs(BytesReader(each)) for each in (gzip, image))
    assert kept(after) == kept(before) + victim.stored
    assert rebuilt(image, after) == image


def test_blocks_of_an_encoder_that_is_not_here_are_declined(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rung then stores the file system."""
    image = made(tree, tmp_path, "-comp zstd")
    monkeypatch.setattr(units, "zstd_libraries", dict)
    with pytest.raises(Unexplained, match="no encoder at hand gives its zstd blocks"):
        live.explain_squashfs(BytesReader(image))


@pytest.mark.parametrize("samples", [2, 32])
def test_the_fewest_libraries_are_chosen(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    """A library that gives some blocks is not asked for where another one gives them all, whether the
    samples tell them apart or not."""
    image = made(tree, tmp_path, "-comp zstd")
    (rule,) = live.explain_squashfs(BytesReader(image)).rules.streams
    right = units.zstd_libraries()[number := dict(rule.params)["library"]]
    blocks = [block for block in squashfs.read(BytesReader(image)).blocks if block.codec]
    middle = sorted(blocks, key=lambda block: block.offset)[len(blocks) // 2]
    other = decode(BytesReader(image), middle)
    libraries = {10400: lambda plain, level: right(plain, 1 if plain == other else level), number: right}
    monkeypatch.setattr(units, "zstd_libraries", lambda: libraries)
    monkeypatch.setattr(live, "_SAMPLES", samples)
    assert live.explain_squashfs(BytesReader(image)).rules.streams == (rule,)


def test_blocks_that_lie_as_they_are_need_no_encoder(tree: Path, tmp_path: Path) -> None:
    """Nothing is kept of them either."""
    image = made(tree, tmp_path, "-noD -noF")
    explanation = live.explain_squashfs(BytesReader(image))
    assert not [op for op in explanation.ops if isinstance(op, Stream)]
    assert explanation.facts["encoder"] == "none needed"
    assert kept(explanation) < 64 * KIB
    assert rebuilt(image, explanation) == image


def test_a_file_system_without_files_is_kept(tmp_path: Path) -> None:
    """There is nothing to encode."""
    (tmp_path / "root").mkdir()
    image = made(tmp_path / "root", tmp_path, "")
    explanation = live.explain_squashfs(BytesReader(image))
    assert explanation.ops == [Copy(len(image), FILE, 0)]
    assert explanation.guest.size == 0


def test_damaged_blocks_are_refused(gzip: bytes) -> None:
    """Wherever the damage is, explaining ends with an error that is ours."""
    blocks = squashfs.read(BytesReader(gzip)).blocks
    for block in blocks[:: max(len(blocks) // 8, 1)]:
        if block.codec:
            at = block.offset + block.stored // 2
            damaged = gzip[:at] + bytes([gzip[at] ^ 0xFF]) + gzip[at + 1 :]
            with pytest.raises(HostileInput):
                live.explain_squashfs(BytesReader(damaged))


def test_blocks_that_hold_too_much_are_declined(gzip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any of them is encoded."""
    monkeypatch.setattr(live, "MAX_RATIO", 0)
    monkeypatch.setattr(live, "_FREE", 1 << 20)
    with pytest.raises(Unexplained, match=r"\d+ plain bytes in \d+"):
        live.explain_squashfs(BytesReader(gzip))


def test_files_that_share_bytes_of_a_block_are_untangled() -> None:
    """Of spans that overlap, which mksquashfs never writes, some are chosen that do not; what they
    leave of the blocks stays FILE."""
    block = Block(96, 1000, 1000)
    pieces = [(0, 100), (50, 100), (0, 300), (300, 100), (350, 500), (990, 10)]
    contents = tuple(
        Content(b"%d" % k, length, (Piece(0, length, 0, start),)) for k, (start, length) in enumerate(pieces)
    )
    plain = live._Plain(file := BytesReader(random.Random(1).randbytes(2000)), [block])
    system = FileSystem("squashfs", 2000, (block,), contents, {})
    found, explained = live._contents(system, {0: 0}, plain)
    assert [op.length for op in explained.ops] == [300, 100, 590, 10]
    assert [op.space for op in explained.ops if isinstance(op, Copy)] == [LAYER, LAYER, FILE, LAYER]
    data = file.pread(96, 1000)
    assert evaluated(explained, data, read(found)) == data
