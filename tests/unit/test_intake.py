"""Taking files in: which, how large, which digests, what is inside."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import lzma
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from backports import zstd

from rehydrator.bundle import intake
from rehydrator.core.errors import DigestMismatch, HostileInput, LimitExceeded, NotInBundle, UsageError
from rehydrator.metadata.stream import Published, StreamDocument
from rehydrator.store.files import FileReader

if TYPE_CHECKING:
    from pathlib import Path

DATA = random.Random(8).randbytes(100_000)
LIMIT = 1 << 30


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def published(name: str, sha256: str = "", inner: str = "") -> Published:
    return Published(name, "x86_64", "qemu", "raw", "disk", "1", sha256, inner)


def take(path: Path, item: Published | None = None, limit: int = LIMIT) -> intake.Source:
    work = path.parent / "work"
    work.mkdir(exist_ok=True)
    return intake.take_in(path, item, ("", ""), "x86_64", work, limit)


def zipped(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("holes", [True, False])
def test_measure(tmp_path: Path, holes: bool) -> None:
    """Holes are hashed as zeros and count as no data, and neither do written zeros."""
    path = tmp_path / "file"
    whole = bytes(70_000) + DATA + bytes(9_000_000) + b"end"
    with path.open("wb") as file:
        if holes:
            file.seek(70_000)
            file.write(DATA)
            file.seek(9_000_000, io.SEEK_CUR)
            file.write(b"end")
        else:
            file.write(whole)
    found = intake.measure(FileReader(path))
    assert (found.size, found.sha256) == (len(whole), digest(whole))
    pages = {at // 4096 for at in range(70_000, 170_000)} | {(len(whole) - 1) // 4096}
    assert found.data <= len(pages) * 4096
    assert found.data > len(DATA)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 12_288])
def test_nonzero_bytes(size: int) -> None:
    """Whole pages by 4 KiB, a short last page by its length."""
    assert intake.nonzero_bytes(bytes(size)) == 0
    assert intake.nonzero_bytes(b"x" * size) == size


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        (".xz", lzma.compress(DATA[:50_000]) + bytes(12) + lzma.compress(DATA[50_000:]) + bytes(4)),
        (".gz", gzip.compress(DATA[:50_000]) + gzip.compress(DATA[50_000:]) + bytes(100)),
        (".zst", zstd.compress(DATA[:50_000]) + zstd.compress(DATA[50_000:])),
        (".zip", zipped("image.raw", DATA)),
    ],
)
def test_unpack(tmp_path: Path, suffix: str, packed: bytes) -> None:
    """Streams in a row, with the padding that each format allows, give all of their bytes."""
    path = tmp_path / f"image.raw{suffix}"
    path.write_bytes(packed)
    source = take(path)
    assert source.image.read_bytes() == DATA
    assert (source.name, source.measured.sha256) == ("image.raw", digest(DATA))
    assert source.published is not None
    assert source.published.sha256 == digest(packed)


def test_unpacked_zeros_are_holes(tmp_path: Path) -> None:
    """An image that was compressed is written sparse."""
    path = tmp_path / "image.raw.gz"
    path.write_bytes(gzip.compress(DATA + bytes(20 << 20) + DATA))
    source = take(path)
    assert source.image.stat().st_blocks * 512 < 1 << 20
    assert source.image.read_bytes() == DATA + bytes(20 << 20) + DATA


@pytest.mark.parametrize(
    "packed",
    [
        lzma.compress(DATA) + bytes(3),
        lzma.compress(DATA) + bytes(4) + b"garbage",
        lzma.compress(DATA) + lzma.compress(DATA)[:-9],
        lzma.compress(DATA)[:-1],
        lzma.compress(DATA) + b"\xfd7zXZ\0",
        lzma.compress(DATA, check=lzma.CHECK_CRC32)[:5000] + b"!!!" + lzma.compress(DATA)[5003:],
    ],
)
def test_xz_that_is_not_whole(tmp_path: Path, packed: bytes) -> None:
    """Whatever stands behind the first stream is a stream or padding of whole words, or damage."""
    path = tmp_path / "image.raw.xz"
    path.write_bytes(packed)
    with pytest.raises(HostileInput, match=r"image.raw.xz: .*damaged or cut short"):
        take(path)


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (zipped("image.raw", DATA)[:-1], "cut short"),
        (zipped("other.raw", DATA), "'other.raw'"),
        (zipped("image.raw", DATA)[:-200] + zipped("image.raw", DATA)[-100:], "cut short|damaged"),
        (DATA, "its content is not what .zip says"),
    ],
)
def test_zip_that_is_not_one_image(tmp_path: Path, packed: bytes, said: str) -> None:
    """The message has the file's name and what is in it."""
    path = tmp_path / "image.raw.zip"
    path.write_bytes(packed)
    with pytest.raises(HostileInput, match=rf"image\.raw\.zip: .*({said})"):
        take(path)


def test_zip_damaged_inside(tmp_path: Path) -> None:
    """A deflate stream that breaks off or turns into another is damage of the file."""
    whole = zipped("image.raw", bytes(100_000) + DATA)
    for at in range(60, len(whole) - 200, 9001):
        path = tmp_path / "image.raw.zip"
        path.write_bytes(whole[:at] + b"\0\xff\0\xff" + whole[at + 4 :])
        with pytest.raises(HostileInput, match=r"image\.raw\.zip: .*damaged"):
            take(path)
        (tmp_path / "work" / "image.raw").unlink()


def test_companions(tmp_path: Path) -> None:
    """Signatures belong to their files, others are named; unfinished downloads are left."""
    given = ["a.raw", "a.raw.sig", "b.xz", "b.xz.sig", "b.sig", "c.part", "c.part.json", "d.part.sig"]
    for name in (*given, ".rehydrator-e"):
        (tmp_path / name).write_bytes(b"x")
    notes: list[str] = []
    assert [path.name for path in intake.list_files(tmp_path, notes.append)] == ["a.raw", "b.xz"]
    assert sorted(notes) == [
        ".rehydrator-e: of a run that was broken off, left out",
        "b.sig: a signature of a file that is not here, left out",
        "c.part.json: of an unfinished download, left out",
        "c.part: of an unfinished download, left out",
        "d.part.sig: a signature of a file that is not here, left out",
    ]
    for name in ("a.raw", "b.xz"):
        (tmp_path / name).unlink()
    with pytest.raises(HostileInput, match="no files"):
        intake.list_files(tmp_path, notes.append)


@pytest.mark.parametrize("other", ["a.raw", "a.raw.gz", "a.raw.xz.gz", "a.raw.xz.sig.gz"])
def test_names_that_two_files_claim(tmp_path: Path, other: str) -> None:
    """A file's own name, that of the image in it, and that of its signature are its alone: what
    else was to come out under one of them is refused at the beginning."""
    for name in ("a.raw.xz", other):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(HostileInput, match="both claim the name"):
        intake.list_files(tmp_path, print)


def test_signatures(tmp_path: Path) -> None:
    """The signature beside a file is taken with it; what is too large for one is refused, and a
    link to somewhere is none."""
    path, beside = tmp_path / "a.raw", tmp_path / "a.raw.sig"
    path.write_bytes(DATA)
    assert take(path).signature == b""
    beside.write_bytes(b"signed")
    assert take(path).signature == b"signed"
    beside.write_bytes(bytes(70_000))
    with pytest.raises(HostileInput, match=r"a\.raw\.sig: 70000 bytes are no signature"):
        take(path)
    beside.unlink()
    beside.symlink_to(path)
    assert take(path).signature == b""


def test_limit(tmp_path: Path) -> None:
    """Exactly --max-image-size is taken, one byte more is not, packed or not."""
    plain, packed, archive = tmp_path / "a.raw", tmp_path / "b.raw.gz", tmp_path / "c.raw.zip"
    plain.write_bytes(DATA)
    packed.write_bytes(gzip.compress(DATA))
    archive.write_bytes(zipped("c.raw", DATA))
    for path in (plain, packed, archive):
        with pytest.raises(LimitExceeded, match="--max-image-size"):
            take(path, limit=len(DATA) - 1)
    (tmp_path / "work" / "b.raw").unlink()
    (tmp_path / "work" / "c.raw").unlink()
    for path in (plain, packed, archive):
        assert take(path, limit=len(DATA)).measured.size == len(DATA)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space, no quota and a file size limit are LimitExceeded with the remedy."""
    path = tmp_path / "image.raw.gz"
    path.write_bytes(gzip.compress(DATA))
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):

        def fail(*_: Any, number: int = number) -> None:
            raise OSError(number, "no more")

        monkeypatch.setattr(intake, "_write_sparse", fail)
        with pytest.raises(LimitExceeded, match=r"image.raw.gz: no more.*--tmpdir"):
            take(path)
        (tmp_path / "work" / "image.raw").unlink()


def test_digests(tmp_path: Path) -> None:
    """Each digest that the document has is checked: of the file, and of what is inside."""
    plain, packed = tmp_path / "a.raw", tmp_path / "b.raw.gz"
    plain.write_bytes(DATA)
    data = gzip.compress(DATA, mtime=0)
    packed.write_bytes(data)
    good = [
        (plain, published("a.raw", digest(DATA))),
        (plain, published("a.raw")),
        (plain, published("a.raw.xz", "0" * 64, digest(DATA))),
        (packed, published("b.raw.gz", digest(data), digest(DATA))),
    ]
    for path, item in good:
        assert take(path, item).measured.sha256 == digest(DATA)
        (tmp_path / "work" / "b.raw").unlink(missing_ok=True)
    bad: list[tuple[Path, Published, type[Exception]]] = [
        (plain, published("a.raw", "0" * 64), DigestMismatch),
        (plain, published("a.raw.xz", digest(DATA), "0" * 64), DigestMismatch),
        (plain, published("a.raw.xz", digest(DATA)), UsageError),
        (packed, published("b.raw.gz", digest(data), "0" * 64), DigestMismatch),
        (packed, published("b.raw.gz", "0" * 64), DigestMismatch),
    ]
    for path, item, error in bad:
        with pytest.raises(error, match=path.name):
            take(path, item)
        (tmp_path / "work" / "b.raw").unlink(missing_ok=True)


def test_select(tmp_path: Path) -> None:
    """By the location's basename, else by the name inside; missing ones are listed together, once."""
    files = [tmp_path / name for name in ("a.raw", "b.raw.xz", "c")]
    items = tuple(published(name) for name in ("a.raw.xz", "b.raw.xz", "y", "x", "y"))
    notes: list[str] = []
    found = intake.select_files(files, StreamDocument("s", items), True, notes.append)
    assert {path.name: item.name for path, item in found.items()} == {
        "a.raw": "a.raw.xz",
        "b.raw.xz": "b.raw.xz",
    }
    assert [note.partition(":")[0] for note in notes] == ["c", "x", "y"]
    with pytest.raises(NotInBundle, match=r": x, y; .*--allow-missing"):
        intake.select_files(files, StreamDocument("s", items), False, notes.append)


def test_free_space(tmp_path: Path) -> None:
    """Needs on one file system add up; the message has both numbers."""
    intake.check_free_space([(tmp_path, 1), (tmp_path, 1)])
    half = 1 << 59
    with pytest.raises(LimitExceeded, match=f"about {2 * half} bytes"):
        intake.check_free_space([(tmp_path, half), (tmp_path, half)])


def test_order(tmp_path: Path) -> None:
    """Side by side and largest first, but in the order of the files."""
    files = [tmp_path / name for name in "abc"]
    for size, path in enumerate(files):
        path.write_bytes(bytes(size))
    with ThreadPoolExecutor(2) as pool:
        sources = intake.measure_in_parallel(pool, take, files)
    assert [source.name for source in sources] == ["a", "b", "c"]


def test_estimated_need(tmp_path: Path) -> None:
    """Siblings are stored once: the need grows with the largest file, not with their number."""
    files = [tmp_path / name for name in ("a.raw", "b.raw", "c.raw", "d.qcow2.xz")]
    for path in files[:3]:
        path.write_bytes(b"x" * (1 << 20))
    files[3].write_bytes(b"x" * (1 << 18))
    assert intake.estimated_need(files[:3]) == (1 << 20, 1 << 20)
    assert intake.estimated_need(files) == (2 << 20, 1 << 20)
    assert intake.estimated_need(files[3:]) == (2 << 20, 1 << 20)
