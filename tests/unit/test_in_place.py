"""An image at hand becomes another one where it lies; what it has right is neither read nor written, and
until all is verified its name says that it is bad."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.bundle import in_place, rehydrate
from rehydrator.bundle.in_place import Update, update
from rehydrator.bundle.rehydrate import Options
from rehydrator.core.errors import DigestMismatch, Interrupted, LimitExceeded, RehydratorError, UsageError
from rehydrator.core.ops import Copy, Op, zeros
from rehydrator.core.reader import BytesReader
from rehydrator.engine import ReaderSpace
from rehydrator.store.holes import punch
from tests.conftest import names_in
from tests.memory_bundle import Image, MemoryBundle, boundaries_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PART = 64 << 10
WORDS = random.Random(6).randbytes(6 * PART)
# Two parts of data, two of zeros, one that is both, and a short one.
OPS: list[Op] = [Copy(2 * PART, 0, 100), zeros(2 * PART), Copy(999, 0, 0), zeros(PART - 999), Copy(777, 0, 5)]
NEW = WORDS[100 : 100 + 2 * PART] + bytes(2 * PART) + WORDS[:999] + bytes(PART - 999) + WORDS[5:782]
PLACES = range(PART, len(NEW), PART)
PARTS = [range(at, min(at + PART, len(NEW))) for at in range(0, len(NEW), PART)]


class Watched(BytesReader):
    """Bytes of a bundle: what was read of them, and what happens before they are."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.spans: list[tuple[int, int]] = []
        self.before: Callable[[int, int], None] = lambda _, __: None

    def pread(self, offset: int, length: int) -> bytes:
        self.before(offset, length)
        self.spans.append((offset, length))
        return super().pread(offset, length)


@dataclass
class World:
    """A bundle of one image, and a directory with what is to become it."""

    directory: Path
    source: Watched
    bundle: MemoryBundle
    written: list[tuple[int, int]] = field(default_factory=list)

    @property
    def target(self) -> Path:
        return self.directory / "new.raw"

    @property
    def bad(self) -> Path:
        return self.directory / "new.raw.bad"

    def old(self, data: bytes, name: str = "old.raw") -> Path:
        path = self.directory / name
        path.write_bytes(data)
        return path

    def update(self, old: Path, **options: object) -> int:
        """The bytes that were right."""
        made = Options(**{"jobs": 3, **options})  # type: ignore[arg-type]
        return self.run(old, made).right

    def run(self, old: Path, options: Options, *, dry_run: bool = False) -> Update:
        """What came of it."""
        output = self.bundle.images[0]
        return update(self.bundle, output, old, self.directory, options, lambda _: None, dry_run=dry_run)

    def read(self) -> int:
        """Bytes that were read from the bundle."""
        return sum(length for _, length in self.source.spans)


def world_of(directory: Path, places: Sequence[int] = PLACES, digest: str = "") -> World:
    source = Watched(WORDS)
    image = Image("new.raw", OPS, NEW, boundaries_at(NEW, places), digest)
    return World(directory, source, MemoryBundle([ReaderSpace(source)], [image]))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = world_of(tmp_path)
    pwritev = os.pwritev

    def counted(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        done = pwritev(descriptor, views, offset)
        made.written.append((offset, done))
        return done

    def punched(descriptor: int, offset: int, length: int) -> bool:
        made.written.append((offset, length))
        return punch(descriptor, offset, length)

    monkeypatch.setattr(os, "pwritev", counted)
    monkeypatch.setattr(in_place, "punch", punched)
    return made


def with_byte(data: bytes, place: int) -> bytes:
    """`data` with one byte that is another."""
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def right_of(old: bytes) -> int:
    """The bytes of parts that are right in `old` already."""
    there = old[: len(NEW)].ljust(len(NEW), b"\0")
    same = [part for part in PARTS if there[part.start : part.stop] == NEW[part.start : part.stop]]
    return sum(map(len, same))


# --- what is right stays


@pytest.mark.parametrize(
    ("old", "right"),
    [
        (NEW, len(NEW)),
        (NEW + b"more than there is to be" * 9000, len(NEW)),
        (NEW[: 2 * PART], 4 * PART),  # zeros behind it are right, too
        (NEW[:-1], 5 * PART),
        (b"", 2 * PART),
        (b"x" * len(NEW), 0),
        (b"x" * PART, 2 * PART),
    ],
    ids=["equal", "larger", "smaller", "a byte less", "empty", "all wrong", "a small one, wrong"],
)
def test_any_size(world: World, old: bytes, right: int) -> None:
    """A larger file loses its end, a smaller one is zeros behind it; there is one file at the end, with mode
    and time as recorded, and what is printed as right was right."""
    assert right_of(old) == right
    assert world.update(world.old(old), overwrite=True) == right
    assert names_in(world.directory) == ["new.raw"]
    assert world.target.read_bytes() == NEW
    status = world.target.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o640, 1_600_000_000)


def test_an_equal_file_costs_nothing(world: World) -> None:
    """It is neither read from the bundle nor written; it is the same inode."""
    old = world.old(NEW)
    inode = old.stat().st_ino
    assert world.update(old) == len(NEW)
    assert (world.source.spans, world.written) == ([], [])
    assert world.target.stat().st_ino == inode


@pytest.mark.parametrize("part", range(len(PARTS)))
@pytest.mark.parametrize("last", [False, True])
def test_one_byte(world: World, part: int, last: bool) -> None:
    """The first or the last byte of a part is wrong: that part is made and written, and no other."""
    wrong = PARTS[part]
    assert world.update(world.old(with_byte(NEW, wrong[-1 if last else 0]))) == len(NEW) - len(wrong)
    assert world.target.read_bytes() == NEW
    assert world.read() == [PART, PART, 0, 0, 999, 777][part]
    assert sum(length for _, length in world.written) == len(wrong)
    assert {offset for offset, _ in world.written} <= set(wrong)


@given(data=st.data(), jobs=st.integers(1, 6), sparse=st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_old_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, jobs: int, sparse: bool
) -> None:
    """Whatever is changed, cut or added: the image comes out, and what was right is counted exactly."""
    world = world_of(tmp_path_factory.mktemp("any"))
    old = bytearray(NEW)
    for at in data.draw(st.lists(st.integers(0, len(NEW) - 1), max_size=5)):
        old[at : at + data.draw(st.integers(1, PART))] = data.draw(st.binary(max_size=9))
    made = bytes(old[: data.draw(st.integers(0, len(old)))])
    options = Options(jobs=jobs, sparse=sparse, overwrite=True)
    path, steps = world.old(made), list[int]()
    output = world.bundle.images[0]
    done = update(world.bundle, output, path, world.directory, options, steps.append)
    assert done == ("updated", right_of(made))
    assert world.target.read_bytes() == NEW
    assert sum(steps) == len(NEW)


@pytest.mark.parametrize("small", [0, 1 << 30], ids=["in order", "side by side"])
def test_without_chaining_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """A file that can be checked as a whole only is right or wrong as a whole."""
    monkeypatch.setattr(rehydrate, "_SMALL", small)
    world = world_of(tmp_path, ())
    assert world.update(world.old(with_byte(NEW, 7)), overwrite=True) == 0
    assert world.target.read_bytes() == NEW
    spent = world.read()
    assert world.update(world.target) == len(NEW)
    assert world.read() == spent


def test_an_image_of_no_bytes(tmp_path: Path) -> None:
    """Nothing becomes of anything, where that is wanted."""
    bundle = MemoryBundle([], [Image("new.raw", [], b"")])
    world = World(tmp_path, Watched(b""), bundle)
    refused(world, world.old(b"something"), "is of new.raw")
    assert world.update(world.old(b"something"), overwrite=True) == 0
    assert world.target.read_bytes() == b""


# --- zeros


def on_disk(path: Path) -> int:
    """Bytes that a file takes on its disk."""
    return path.stat().st_blocks * 512


def test_zeros_become_holes(world: World) -> None:
    """Where the old file had something else."""
    world.update(world.old(b"x" * len(NEW)), overwrite=True)
    assert on_disk(world.target) <= 3 * PART + 8192


@pytest.mark.parametrize("old", [b"x" * len(NEW), NEW, b""], ids=["other", "equal", "empty"])
def test_no_holes(world: World, old: bytes) -> None:
    """With --no-sparse there are none, neither new ones nor those that the old file had."""
    path = world.old(old)
    if old == NEW:
        with path.open("r+b") as file:
            assert punch(file.fileno(), 2 * PART, 2 * PART)
    world.update(path, sparse=False, overwrite=True)
    assert world.target.read_bytes() == NEW
    assert on_disk(world.target) >= len(NEW)


@pytest.mark.parametrize("sparse", [False, True])
def test_out_of_the_page_cache(world: World, monkeypatch: pytest.MonkeyPatch, sparse: bool) -> None:
    """--no-cache holds in place, too."""
    dropped: list[int] = []
    real = os.posix_fadvise

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        dropped.append(advice)
        real(descriptor, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    world.update(world.old(with_byte(NEW, 0)), cache=False, sparse=sparse)
    assert os.POSIX_FADV_DONTNEED in dropped
    assert world.target.read_bytes() == NEW


def test_a_file_system_without_holes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros are written where holes cannot be made."""
    monkeypatch.setattr(in_place, "punch", lambda *_: False)
    world.update(world.old(b"x" * len(NEW)), overwrite=True)
    assert world.target.read_bytes() == NEW
    assert sum(length for _, length in world.written) == len(NEW)


# --- refused, and nothing is touched


def refused(world: World, old: Path, words: str, **options: object) -> None:
    before = {path: path.lstat() for path in world.directory.iterdir()}
    with pytest.raises(UsageError) as error:
        world.update(old, **options)
    assert words in str(error.value)
    after = {path: path.lstat() for path in world.directory.iterdir()}
    assert {path: (each.st_ino, each.st_mtime_ns, each.st_size) for path, each in before.items()} == {
        path: (each.st_ino, each.st_mtime_ns, each.st_size) for path, each in after.items()
    }
    assert (world.source.spans, world.written) == ([], [])


def test_what_is_no_file(world: World) -> None:
    """A directory, a link to a file, a pipe, a socket, a device."""
    real, link, fifo = world.old(NEW), world.directory / "link", world.directory / "fifo"
    link.symlink_to(real)
    os.mkfifo(fifo)
    (world.directory / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(world.directory / "socket"))
    for name in ("folder", "link", "fifo", "socket"):
        refused(world, world.directory / name, "not a regular file", overwrite=True)
    refused(world, Path("/dev/null"), "not a regular file", overwrite=True)
    assert real.read_bytes() == NEW


def test_a_hard_link(world: World) -> None:
    """The other name would change with it."""
    old = world.old(b"x" * len(NEW))
    (world.directory / "backup.raw").hardlink_to(old)
    refused(world, old, "has another name, too (a hard link)")


def test_on_another_file_system(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It could not take its name at once."""
    with pytest.MonkeyPatch.context() as patch:
        old = world.old(b"x")
        real = Path.lstat

        def elsewhere(path: Path) -> os.stat_result:
            found = real(path)
            return os.stat_result((*found[:2], found.st_dev + 1, *found[3:])) if path == old else found

        patch.setattr(Path, "lstat", elsewhere)
        with pytest.raises(UsageError, match="lies on another file system than"):
            world.update(old)
    assert old.read_bytes() == b"x"


def test_not_there(world: World) -> None:
    """Said as the system says it."""
    with pytest.raises(FileNotFoundError):
        world.update(world.directory / "nothing")
    assert names_in(world.directory) == []


@pytest.mark.parametrize("name", ["new.raw", "new.raw.bad"])
def test_another_file_in_the_way(world: World, name: str) -> None:
    """It stays, unless --overwrite says otherwise."""
    there = world.old(b"somebody's", name)
    old = world.old(with_byte(NEW, 9))
    refused(world, old, f"{there} exists and is another file; --overwrite replaces it")
    assert world.update(old, overwrite=True) == len(NEW) - PART
    assert names_in(world.directory) == ["new.raw"]
    assert world.target.read_bytes() == NEW


@pytest.mark.parametrize("name", ["new.raw", "new.raw.bad"])
def test_a_dangling_link_in_the_way(world: World, name: str) -> None:
    """It is another file, too, and what it points to is not made."""
    (world.directory / name).symlink_to(world.directory / "nowhere")
    old = world.old(with_byte(NEW, 0))
    refused(world, old, "exists and is another file")
    world.update(old, overwrite=True)
    assert names_in(world.directory) == ["new.raw"]
    assert not world.target.is_symlink()


def test_a_link_to_the_old_file_in_the_way(world: World) -> None:
    """It is not the old file, and would dangle meanwhile."""
    old = world.old(NEW)
    world.target.symlink_to(old)
    refused(world, old, "exists and is another file")


@pytest.mark.parametrize("name", ["new.raw", "new.raw.bad"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_in_the_way(world: World, name: str, overwrite: bool) -> None:
    """No directory is ever replaced; it is said before anything is done."""
    (world.directory / name).mkdir()
    refused(world, world.old(b"x"), "is a directory; move it away", overwrite=overwrite)


@pytest.mark.parametrize("name", ["new.raw", "new.raw.bad"])
def test_the_target_itself_by_another_path(world: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nor does it matter how it is spelt, and whether anything has to change."""
    monkeypatch.chdir(world.directory)
    for data in (NEW, with_byte(NEW, 0)):
        world.target.unlink(missing_ok=True)
        world.old(data, name)
        world.update(Path(name))
        assert names_in(world.directory) == ["new.raw"]
        assert world.target.read_bytes() == NEW


@pytest.mark.parametrize("name", ["new.raw", "new.raw.bad"])
def test_the_target_itself(world: World, name: str) -> None:
    """A file may be updated under its own name, and under the one of an update that failed."""
    assert world.update(world.old(with_byte(NEW, 0), name)) == len(NEW) - PART
    assert names_in(world.directory) == ["new.raw"]
    assert world.target.read_bytes() == NEW


HOLDER = """import fcntl, sys
how = {"shared": ("rb", fcntl.LOCK_SH), "exclusive": ("r+b", fcntl.LOCK_EX)}[sys.argv[2]]
file = open(sys.argv[1], how[0])
fcntl.lockf(file, how[1], 1, 100)
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["shared", "exclusive"])
def test_in_use(world: World, how: str) -> None:
    """A file on which another program has a lock, as qemu has on a machine's disk, is left alone."""
    old = world.old(b"x" * len(NEW))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, old, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin
    assert holder.stdout
    try:
        assert holder.stdout.readline() == b"\n"
        refused(world, old, "another program uses it")
    finally:
        holder.communicate(timeout=30)
    world.update(old, overwrite=True)
    assert world.target.read_bytes() == NEW


# --- it fails in the middle


def fail_at(world: World, offset: int, error: BaseException) -> None:
    """From now on, bytes from `offset` on cannot be read from the bundle."""

    def before(at: int, length: int) -> None:
        if at <= offset < at + length:
            raise error

    world.source.before = before


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (DigestMismatch("packs/0.pack: frame at 0 is damaged"), DigestMismatch, "frame at 0 is damaged; "),
        (OSError(errno.EIO, "Input/output error", "layer.tar"), RehydratorError, "layer.tar: Input/output"),
        (KeyboardInterrupt(), Interrupted, "interrupted; "),
    ],
    ids=["damaged", "unreadable", "interrupted"],
)
def test_the_bundle_fails(
    world: World, error: BaseException, kind: type[RehydratorError], words: str
) -> None:
    """The file is called .bad, in one line is said why and what to do; given again, it goes on where it
    was, and is another file no longer."""
    old = world.old(b"x" * len(NEW))
    fail_at(world, 100 + PART + 5, error)
    with pytest.raises(kind) as raised:
        world.update(old, overwrite=True, jobs=1)
    said = str(raised.value)
    assert words in said
    assert said.endswith(f"{world.bad} is neither the old image nor the new one: give it to --in-place again")
    assert "\n" not in said
    assert type(raised.value) is kind
    assert names_in(world.directory) == ["new.raw.bad"]
    world.source.before = lambda _, __: None
    done = right_of(world.bad.read_bytes())
    assert world.update(world.bad) == done
    assert names_in(world.directory) == ["new.raw"]
    assert world.target.read_bytes() == NEW


def test_no_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is exit code 9, and the file is called .bad."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(
        LimitExceeded,
        match=r"new\.raw\.bad: No space left on device; free some space; .* give it to --in-place again",
    ):
        world.update(world.old(b""))
    assert names_in(world.directory) == ["new.raw.bad"]


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A file system with so many free bytes."""
    real = os.fstatvfs

    def fstatvfs(descriptor: int) -> os.statvfs_result:
        fields = list(real(descriptor))
        fields[0] = fields[1] = 1
        fields[4] = free
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("size", [PART, len(NEW), len(NEW) + PART])
def test_room_is_looked_for(
    world: World, monkeypatch: pytest.MonkeyPatch, size: int, sparse: bool, dry_run: bool
) -> None:
    """Before a byte changes, and for what the file has not: it is not touched where that is not free."""
    data = with_byte(NEW, 2 * PART - 1)[:size].ljust(size, b"x")
    old = world.old(data)
    new = world.bundle.images[0].form
    at_most = len(NEW) - right_of(data) if sparse else len(NEW)
    needed = max(min((new.data if sparse else new.size) - on_disk(old), at_most), 0)
    options = Options(sparse=sparse)
    if needed:
        with_free(monkeypatch, needed - 1)
        with pytest.raises(LimitExceeded) as raised:
            world.run(old, options, dry_run=dry_run)
        assert str(raised.value) == (
            f"--in-place {old}: new.raw needs {needed} bytes more than it has, and {needed - 1} are free; "
            f"free some space; {old} is as it was"
        )
        assert (names_in(world.directory), old.read_bytes()) == (["old.raw"], data)
    with_free(monkeypatch, needed)
    assert world.run(old, options, dry_run=dry_run).status == "updated"


def test_no_room_for_all_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without holes has its room before the first byte is written."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LimitExceeded):
        world.update(world.old(b""), sparse=False)
    assert world.written == []


def test_it_cannot_lose_its_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is the old image still, and nobody says otherwise."""

    def replace(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", replace)
    old = world.old(b"x" * len(NEW))
    with pytest.raises(RehydratorError) as raised:
        world.update(old, overwrite=True)
    assert str(raised.value) == f"{old}: Permission denied; {old} is as it was"
    assert old.read_bytes() == b"x" * len(NEW)


def test_another_file_appears(world: World) -> None:
    """A file that takes the name meanwhile keeps it."""
    old = world.old(with_byte(NEW, 0))

    def appear(_: int, __: int) -> None:
        world.target.write_bytes(b"somebody's")

    world.source.before = appear
    with pytest.raises(RehydratorError, match="appeared while it was made; --overwrite replaces it"):
        world.update(old)
    assert world.target.read_bytes() == b"somebody's"
    assert world.bad.read_bytes() == NEW
    assert world.update(world.bad, overwrite=True) == len(NEW)
    assert world.target.read_bytes() == NEW


@pytest.mark.parametrize("old", [with_byte(NEW, 1), with_byte(NEW, 3 * PART), NEW[:-9], NEW + b"more"])
@pytest.mark.parametrize("sparse", [True, False])
def test_its_name_is_bad_when_a_byte_changes(
    world: World, monkeypatch: pytest.MonkeyPatch, old: bytes, sparse: bool
) -> None:
    """Whoever looks at any moment sees the old file whole under its old name, or none; and it keeps that
    until it is known what has to change."""
    path, seen = world.old(old), list[tuple[str, list[str]]]()

    def watch(place: object, name: str) -> None:
        real = getattr(place, name)

        def watched(*arguments: object) -> object:
            seen.append((name, names_in(world.directory)))
            return real(*arguments)

        monkeypatch.setattr(place, name, watched)

    for name in ("pread", "pwritev", "ftruncate", "posix_fallocate"):
        watch(os, name)
    watch(in_place, "punch")
    world.update(path, sparse=sparse)
    assert {tuple(names) for name, names in seen if name == "pread"} == {("old.raw",)}
    assert {tuple(names) for name, names in seen if name != "pread"} == {("new.raw.bad",)}


@pytest.mark.parametrize("jobs", [1, 3])
def test_it_fails_before_a_byte_changes(world: World, jobs: int) -> None:
    """The file is as it was, and is not called bad."""
    data = with_byte(NEW, 1)
    old = world.old(data)
    fail_at(world, 100, DigestMismatch("packs/0.pack: frame at 0 is damaged"))
    with pytest.raises(DigestMismatch) as raised:
        world.update(old, jobs=jobs)
    assert str(raised.value) == f"packs/0.pack: frame at 0 is damaged; {old} is as it was"
    assert (names_in(world.directory), old.read_bytes()) == (["old.raw"], data)


# --- what is not of the image


@pytest.mark.parametrize(
    "data",
    [
        random.Random(8).randbytes(2 * PART),
        random.Random(8).randbytes(9 * PART),
        bytes(len(NEW) - 1) + b"x",
        b"\0",
        bytes(PART) + NEW,
    ],
    ids=["shorter", "longer", "zeros, but for the end", "a zero", "all of it, elsewhere"],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_nothing_is_right(world: World, data: bytes, dry_run: bool) -> None:
    """A file that was named by mistake stays as it is; zeros, which any file may have, are no reason."""
    old = world.old(data, "thesis.pdf")
    words = f"nothing in {old} is of new.raw; rehydrate into a directory, or say --overwrite"
    before = old.stat()
    with pytest.raises(UsageError) as raised:
        world.run(old, Options(jobs=2), dry_run=dry_run)
    assert str(raised.value) == words
    assert old.read_bytes() == data
    assert (old.stat().st_ino, old.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert names_in(world.directory) == ["thesis.pdf"]


def test_nothing_is_right_and_that_is_known(world: World) -> None:
    """--overwrite agrees; a file that an earlier run left needs no more than its name; and where there is
    nothing to lose, nobody objects."""
    data = random.Random(8).randbytes(len(NEW))
    assert world.update(world.old(data), overwrite=True) == 0
    world.target.unlink()
    assert world.update(world.old(data, "new.raw.bad")) == 0
    world.target.unlink()
    assert world.update(world.old(b"")) == 2 * PART
    assert world.target.read_bytes() == NEW


# --- what is there already


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_new_file_is_there(world: World, overwrite: bool) -> None:
    """It is said so, and the old one stays as it is."""
    old = world.old(with_byte(NEW, 5))
    world.target.write_bytes(NEW)
    before = old.stat(), world.target.stat()
    assert world.run(old, Options(overwrite=overwrite)) == ("present", 0)
    assert [each.st_mtime_ns for each in before] == [old.stat().st_mtime_ns, world.target.stat().st_mtime_ns]
    assert old.read_bytes() == with_byte(NEW, 5)


@pytest.mark.parametrize("there", [NEW[:-1], NEW + b"x", with_byte(NEW, 0)])
def test_another_file_is_there(world: World, there: bytes) -> None:
    """What is not that file is in the way."""
    old = world.old(NEW)
    world.target.write_bytes(there)
    refused(world, old, "exists and is another file")


def test_a_dry_run(world: World) -> None:
    """It says what a run would, and changes nothing."""
    old = world.old(with_byte(NEW, 5))
    before = old.stat()
    assert world.run(old, Options(), dry_run=True) == ("updated", len(NEW) - PART)
    assert (names_in(world.directory), old.read_bytes()) == (["old.raw"], with_byte(NEW, 5))
    assert old.stat().st_mtime_ns == before.st_mtime_ns
    assert (world.source.spans, world.written) == ([], [])


def test_wrong_chaining_values(tmp_path: Path) -> None:
    """They make no wrong file: it is refused, or comes out right."""
    world = world_of(tmp_path)
    bundle = MemoryBundle(
        [ReaderSpace(world.source)],
        [Image("new.raw", OPS, NEW, boundaries_at(with_byte(NEW, 3), PLACES))],
    )
    with pytest.raises(DigestMismatch, match="give it to --in-place again"):
        World(tmp_path, world.source, bundle).update(world.old(NEW))
    assert names_in(tmp_path) == ["new.raw.bad"]


def test_a_wrong_digest(tmp_path: Path) -> None:
    """Even where all of the old file fits to what the recipe makes."""
    world = world_of(tmp_path, digest="0" * 64)
    with pytest.raises(DigestMismatch):
        world.update(world.old(NEW))
    assert names_in(tmp_path) == ["new.raw.bad"]
