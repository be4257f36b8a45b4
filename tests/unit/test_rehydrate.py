"""Files and pipes get exactly the pieces, holes where there were some, and nothing half-done."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rehydrator.bundle import memory, rehydrate
from rehydrator.bundle.making import make_in_order
from rehydrator.bundle.manifest import Artifact, Form, Manifest, Output, PackSpace, RecipeSpace
from rehydrator.bundle.reader import Bundle
from rehydrator.bundle.rehydrate import (
    FileSink,
    Options,
    PipeSink,
    check,
    check_side_by_side,
    encoding,
    explain_os_error,
    to_directory,
    to_pipe,
)
from rehydrator.core.digest import sha256_hex
from rehydrator.core.errors import DigestMismatch, LimitExceeded, RehydratorError
from rehydrator.core.ops import (
    Copy,
    Encode,
    EncodeRule,
    Framing,
    Op,
    Rules,
    SizeTable,
    Stream,
    StreamRule,
    zeros,
)
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Cache, Machine, OpsSpace, ReaderSpace, SpaceReader, Zeros
from tests.conftest import names_in, rehydrated
from tests.memory_bundle import Image, MemoryBundle, boundaries_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.bundle.making import Making
    from rehydrator.engine import Piece, Space

WORDS = bytes(range(256)) * 300
OPS: list[Op] = [
    Copy(70_000, 0, 0),
    zeros(9 << 20),
    Copy(10, 0, 5),
    zeros(3),
    Copy(100, 0, 0),
    zeros(1 << 20),
]
WHOLE = WORDS[:70_000] + bytes(9 << 20) + WORDS[5:15] + bytes(3) + WORDS[:100] + bytes(1 << 20)


class OneImage(Bundle):
    """A bundle that gives one image, without files."""

    def __init__(self) -> None:
        self.machine = Machine({0: ReaderSpace(BytesReader(WORDS)), 1: OpsSpace(OPS)}, Rules())
        spaces = (PackSpace(0, len(WORDS)), RecipeSpace(0, 0, 1, len(WHOLE), (0,)))
        self.manifest = Manifest((), spaces, Rules(), (), ())

    def open_form(self, artifact: Artifact, form: Form) -> SpaceReader:
        return self.machine.reader(1)


BUNDLE = OneImage()
ARTIFACT = Artifact(
    platform="qemu",
    arch="x86_64",
    format="raw",
    role="disk",
    image=Form("disk.raw", len(WHOLE), sha256_hex(WHOLE), 1, 70_000),
    published=None,
    mtime=1_600_000_000,
    mode=0o640,
    sparse=True,
    virtual_size=0,
    canonical=False,
)
IMAGE = Output(ARTIFACT, ARTIFACT.image)
WRONG = replace(IMAGE, form=replace(ARTIFACT.image, sha256="0" * 64))


@pytest.mark.parametrize("jobs", [1, 7])
@pytest.mark.parametrize("sparse", [None, True, False])
def test_to_directory(tmp_path: Path, jobs: int, sparse: bool | None) -> None:
    """Bytes, mode, time; holes as the original had them, or as asked for."""
    done: list[int] = []
    assert rehydrated(BUNDLE, IMAGE, tmp_path, Options(jobs, sparse=sparse), done.append)
    target = tmp_path / "disk.raw"
    assert target.read_bytes() == WHOLE
    status = target.stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o640, 1_600_000_000)
    assert (status.st_blocks * 512 < 1 << 20) is (sparse is not False)
    assert sum(done) == len(WHOLE)
    assert names_in(tmp_path) == ["disk.raw"]
    assert not rehydrated(BUNDLE, IMAGE, tmp_path, Options(jobs))


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_mismatch_leaves_what_was_there(tmp_path: Path, overwrite: bool) -> None:
    """A wrong digest gives no file, and replaces none."""
    (tmp_path / "disk.raw").write_bytes(b"mine")
    with pytest.raises(DigestMismatch if overwrite else RehydratorError, match=r"disk\.raw"):
        rehydrated(BUNDLE, WRONG, tmp_path, Options(overwrite=overwrite))
    assert (tmp_path / "disk.raw").read_bytes() == b"mine"
    assert names_in(tmp_path) == ["disk.raw"]


def test_a_file_that_appears_meanwhile(tmp_path: Path) -> None:
    """Without --overwrite no file is replaced, not one that came while the image was made either."""

    def appear(_: int) -> None:
        (tmp_path / "disk.raw").write_bytes(b"theirs")

    with pytest.raises(RehydratorError, match="appeared"):
        rehydrated(BUNDLE, IMAGE, tmp_path, Options(), appear)
    assert (tmp_path / "disk.raw").read_bytes() == b"theirs"
    assert names_in(tmp_path) == ["disk.raw"]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where link() does not exist (FAT), the file still gets its name."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert rehydrated(BUNDLE, IMAGE, tmp_path, Options())
    assert names_in(tmp_path) == ["disk.raw"]


def test_interrupted(tmp_path: Path) -> None:
    """Whatever ends it, the temporary file goes."""

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rehydrated(BUNDLE, IMAGE, tmp_path, Options(jobs=3), interrupt)
    assert names_in(tmp_path) == []


@pytest.fixture
def endless() -> Iterator[tuple[OneImage, threading.Event]]:
    """A bundle whose image is a stream of which nothing comes, and what tells that it was begun."""
    begun, end = threading.Event(), threading.Event()

    class Waiting:
        size = 4 << 20

        def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]:
            begun.set()
            assert end.wait(30)
            yield Zeros(length)

    rules = Rules(streams=(StreamRule("deflate.zlib", (("level", 1), ("memlevel", 8)), 0),))
    bundle = OneImage()
    spaces: dict[int, Space] = {0: Waiting(), 1: OpsSpace([Stream(len(WHOLE), 0, 0, Waiting.size)])}
    bundle.machine = Machine(spaces, rules)
    yield bundle, begun
    bundle.machine.streams.stop()
    end.set()


def test_an_interrupt_waits_for_no_encoder(endless: tuple[OneImage, threading.Event]) -> None:
    """Blocks that wait for a stream hold nobody up who does not want them any more."""
    bundle, begun = endless

    def interrupt() -> None:
        assert begun.wait(30)
        time.sleep(0.5)  # blocks wait for it by now
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        to_pipe(bundle, [IMAGE], -1, 2)
    assert time.monotonic() - before < 10


@pytest.mark.parametrize("is_checked", [True, False])
def test_one_that_is_wrong_beside_others(is_checked: bool) -> None:
    """The streams of others, who are checked at the same time, go on; where one file is written
    at a time, an error ends them all."""
    bundle = OneImage()
    go_on = threading.Event()

    def encode() -> Iterator[bytes]:
        yield b"a"
        assert go_on.wait(30)
        yield b"b"

    streams = bundle.machine.streams
    assert streams.read("other", 2, encode, 0, 1) == b"a"
    nowhere = os.open(os.devnull, os.O_WRONLY)
    make = partial(check, bundle, WRONG) if is_checked else partial(to_pipe, bundle, [WRONG], nowhere)
    with pytest.raises(DigestMismatch):
        make(1, lambda _: None)
    go_on.set()
    held = streams._streams.get("other")
    assert (held is not None and held.read(1, 1) == b"b") is is_checked


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is LimitExceeded, at the first byte, the last one, or before both."""
    for name in ("pwritev", "ftruncate", "fsync"):

        def fail(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(LimitExceeded, match=r"disk\.raw.*free some"):
                rehydrated(BUNDLE, IMAGE, tmp_path, Options())
        assert names_in(tmp_path) == []
    vast = replace(ARTIFACT.image, data=1 << 60)
    large = Output(replace(ARTIFACT, image=vast), vast)
    with pytest.raises(LimitExceeded, match=f"{1 << 60} bytes"):
        rehydrated(BUNDLE, large, tmp_path, Options())


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, LimitExceeded),
        (errno.EDQUOT, LimitExceeded),
        (errno.EFBIG, LimitExceeded),
        (errno.EIO, RehydratorError),
    ],
)
def test_errors_of_the_system(number: int, kind: type[RehydratorError]) -> None:
    """They name the file; space, quota and size limits are one kind."""
    found = explain_os_error(OSError(number, "why"), Path("x"))
    assert type(found) is kind
    assert "x: why" in str(found)


def read_all(descriptor: int, into: list[bytes]) -> threading.Thread:
    def drain() -> None:
        while part := os.read(descriptor, 70_001):
            into.append(part)

    thread = threading.Thread(target=drain)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "outputs", [[IMAGE], [IMAGE, replace(IMAGE, artifact=replace(ARTIFACT, mode=0o600))]]
)
def test_to_pipe(outputs: list[Output]) -> None:
    """One image is its bytes; several are a tar, padded and ended."""
    found: list[bytes] = []
    reading, writing = os.pipe()
    thread = read_all(reading, found)
    to_pipe(BUNDLE, outputs, writing, 2)
    os.close(writing)
    thread.join()
    os.close(reading)
    data = b"".join(found)
    if len(outputs) == 1:
        assert data == WHOLE
    else:
        assert len(data) % 512 == 0
        assert data[512 : 512 + len(WHOLE)] == WHOLE
        assert data.endswith(bytes(1024))


def test_a_mismatch_on_a_pipe() -> None:
    """It ends in an error; the bad member is cut short, and a tar has no end."""
    found: list[bytes] = []
    reading, writing = os.pipe()
    thread = read_all(reading, found)
    with pytest.raises(DigestMismatch):
        to_pipe(BUNDLE, [WRONG, IMAGE], writing, 1)
    os.close(writing)
    thread.join()
    os.close(reading)
    assert 512 <= len(b"".join(found)) < 512 + len(WHOLE)


def test_a_reader_that_leaves() -> None:
    """A closed pipe is one of our errors."""
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(RehydratorError, match="closed"):
        to_pipe(BUNDLE, [IMAGE], writing, 1)
    os.close(writing)


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """A system that writes less than asked for, and many small pieces, lose nothing."""
    pieces: list[Piece] = []
    for number in range(40):
        pieces += [memoryview(WORDS)[number : number * 2], Zeros(number % 3)]
    expected = b"".join(bytes(p.length) if isinstance(p, Zeros) else bytes(p) for p in pieces)
    pwrite = os.pwrite
    monkeypatch.setattr(rehydrate, "_MAX_IOV", 5)
    monkeypatch.setattr(os, "pwritev", lambda fd, run, at: pwrite(fd, b"".join(run)[:limit], at))
    path = tmp_path / "file"
    for sparse in (True, False):
        with path.open("wb") as file:
            FileSink(file.fileno(), len(expected), sparse).write(0, pieces)
            file.truncate(len(expected))
        assert path.read_bytes() == expected
    monkeypatch.setattr(os, "writev", lambda fd, run: os.write(fd, b"".join(run)[:limit]))
    with path.open("wb") as file:
        PipeSink(file.fileno()).write(pieces)
    assert path.read_bytes() == expected


def test_an_encoder_takes_no_more_than_there_is() -> None:
    """libdeflate takes all plain bytes at once, and there are never more than in their space."""
    bundle = OneImage()
    rules = Rules(streams=(StreamRule("deflate.libdeflate", (("level", 6),), 0),))
    spaces = (PackSpace(0, len(WORDS)), RecipeSpace(0, 0, 1, len(WHOLE), (0,), (0,)))
    bundle.manifest = Manifest((), spaces, rules, (), ())
    assert encoding(bundle, [IMAGE], 2).memory < 32 << 20


# --- several at once, and parts of one

SIZE = 200_000
PARTS = range(20_032, SIZE, 20_032)
DICE = random.Random(6).randbytes(SIZE)


def image(name: str, start: int = 0, **more: Any) -> Image:
    """Random bytes from `start` on, in ten parts."""
    content = DICE[start:]
    places = [place for place in PARTS if place < len(content)]
    return Image(name, [Copy(len(content), 0, start)], content, boundaries_at(content, places), **more)


def dice_bundle(*images: Image) -> MemoryBundle:
    return MemoryBundle([ReaderSpace(BytesReader(DICE))], images)


def ended_as(bundle: Bundle, outputs: list[Output], directory: Path, options: Options) -> dict[str, object]:
    """How each output ended: what is said of it, or the exit code."""
    found: dict[str, object] = {}

    def ended(output: Output, result: str | RehydratorError) -> None:
        assert output.form.name not in found
        found[output.form.name] = result if isinstance(result, str) else result.exit_code

    to_directory(bundle, outputs, directory, options, lambda _: None, ended)
    return found


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("which", [0, 4, 8])
def test_a_wrong_chaining_value(tmp_path: Path, jobs: int, which: int) -> None:
    """It makes an exact file fail as damaged, and leaves nothing."""
    known = list(image("disk.raw").boundaries)
    known[which] = replace(known[which], state=bytes(32))
    bundle = dice_bundle(replace(image("disk.raw"), boundaries=tuple(known)))
    assert ended_as(bundle, bundle.images, tmp_path, Options(jobs)) == {"disk.raw": 5}
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_ends_as_it_should(tmp_path: Path, jobs: int) -> None:
    """In one pass: wrong, in the way, too large, hostile, not there, present, and good ones."""
    hostile = replace(image("hostile"), ops=[Copy(SIZE, 0, 1 << 40)])
    malformed = replace(image("malformed"), boundaries=image("x").boundaries[::-1])
    images = [image("wrong", digest="0" * 64), image("in the way"), image("large"), hostile, malformed]
    images += [image("nowhere"), image("present", 1), image("good", 2), image("better", 3)]
    bundle = dice_bundle(*images)
    outputs = {each.form.name: each for each in bundle.images}
    vast = replace(outputs["large"].form, data=1 << 60)
    outputs["large"] = Output(replace(outputs["large"].artifact, image=vast), vast)
    outputs["nowhere"] = Output(
        outputs["nowhere"].artifact, replace(outputs["nowhere"].form, space=None, chain=None)
    )
    (tmp_path / "in the way").write_bytes(b"mine")
    (tmp_path / "present").write_bytes(DICE[1:])
    assert ended_as(bundle, list(outputs.values()), tmp_path, Options(jobs)) == {
        "wrong": 5,
        "in the way": 1,
        "large": 9,
        "hostile": 8,
        "malformed": 8,
        "nowhere": 4,
        "present": "present",
        "good": "written",
        "better": "written",
    }
    assert names_in(tmp_path) == ["better", "good", "in the way", "present"]
    assert (tmp_path / "in the way").read_bytes() == b"mine"
    assert (tmp_path / "good").read_bytes() == DICE[2:]
    assert (tmp_path / "better").read_bytes() == DICE[3:]


@pytest.mark.parametrize(
    ("cache", "dropped"), [(None, {"large"}), (True, set()), (False, {"large", "small"})]
)
def test_what_leaves_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool | None, dropped: set[str]
) -> None:
    """Large files, unless somebody says otherwise of all."""
    advised: set[str] = set()

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        advised.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(rehydrate, "_LARGE", SIZE // 2)
    bundle = dice_bundle(image("large", 1), image("small", SIZE // 2 + 1))
    found = ended_as(bundle, bundle.images, tmp_path, Options(1, cache=cache))
    assert found == {"large": "written", "small": "written"}
    assert {name for name in ("large", "small") if any(name in each for each in advised)} == dropped


def test_more_than_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much for one pass is made in several."""
    monkeypatch.setattr(rehydrate, "_MOST_OPEN", 3)
    bundle = dice_bundle(*(image(str(number), number) for number in range(8)))
    found = ended_as(bundle, bundle.images, tmp_path, Options(2))
    assert found == {str(number): "written" for number in range(8)}
    assert [(tmp_path / str(number)).read_bytes() == DICE[number:] for number in range(8)] == [True] * 8


@pytest.mark.parametrize(
    ("free", "fitting"),
    [(SIZE - 1, []), (2 * SIZE - 1, ["a"]), (2 * SIZE, ["a", "b"]), (4 * SIZE, ["a", "b", "c"])],
)
def test_room_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fitting: list[str]
) -> None:
    """Files of one pass share what is free; one that cannot be made leaves its room to the others."""
    malformed = replace(image("malformed"), boundaries=image("x").boundaries[::-1])
    bundle = dice_bundle(malformed, image("a"), image("b"), image("c"))
    status = os.statvfs_result((1, 1, free, free, free, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: status)
    expected = {name: "written" if name in fitting else 9 for name in ("a", "b", "c")}
    assert ended_as(bundle, bundle.images, tmp_path, Options(2)) == {"malformed": 8} | expected


class Frames:
    """A space of frames that are decoded when they are not held, and how often they were."""

    EACH = 8192

    def __init__(self) -> None:
        self.size = SIZE
        self.decoded: list[int] = []

    def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]:
        end = offset + length
        while offset < end:
            number = offset // self.EACH
            frame = machine.cache.get(("frame", number), partial(self._decode, number))
            stop = min(end, (number + 1) * self.EACH)
            yield memoryview(frame)[offset - number * self.EACH : stop - number * self.EACH]
            offset = stop

    def _decode(self, number: int) -> bytes:
        self.decoded.append(number)
        return DICE[number * self.EACH : (number + 1) * self.EACH]


@pytest.mark.parametrize("jobs", [1, 2])
def test_frames_are_decoded_once(tmp_path: Path, jobs: int) -> None:
    """Siblings whose bytes lie shifted against each other are made in one pass over the frames, of which
    few can be held; and each for itself decodes them anew."""
    frames = Frames()
    shifted: list[Op] = [zeros(700), Copy(90_000, 0, 0), zeros(9000), Copy(SIZE - 90_000, 0, 90_000)]
    whole = bytes(700) + DICE[:90_000] + bytes(9000) + DICE[90_000:]
    images = [
        image("a"),
        Image("b", shifted, whole, boundaries_at(whole, range(16_000, len(whole), 16_000))),
        image("c", 5),
    ]
    bundle = MemoryBundle([frames], images, cache=Cache(10 * (Frames.EACH + 2048)))
    assert set(ended_as(bundle, bundle.images, tmp_path, Options(jobs)).values()) == {"written"}
    assert sorted(set(frames.decoded)) == list(range(25))
    # Who takes the rest of another's row comes back to frames that are gone.
    assert len(frames.decoded) <= 25 + (jobs - 1) * 10
    bundle.machine.cache = Cache(10 * (Frames.EACH + 2048))
    frames.decoded.clear()
    for number, output in enumerate(bundle.images):
        directory = tmp_path / str(number)
        directory.mkdir()
        ended_as(bundle, [output], directory, Options(1))
    assert len(frames.decoded) == 75


def test_equal_units_of_siblings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What siblings encode of the same bytes runs through an encoder once, in whatever order."""
    unit, level = 4000, (("level", 1), ("memlevel", 8), ("wbits", 15))
    packed = [zlib.compress(DICE[at : at + unit], 1) for at in range(0, SIZE, unit)]
    sizes = b"".join(len(each).to_bytes(2, "little") for each in packed)
    rules = Rules(
        tables=(SizeTable(1, 2, 1),),
        encodes=tuple(EncodeRule("zlib", level, 2, unit, 0, Framing(header)) for header in (b"",) * 2),
    )
    total = b"".join(packed)
    ops: list[list[Op]] = [
        [zeros(head), Encode(len(total), rule, 0, 0, len(packed))] for rule, head in ((0, 64), (1, 512))
    ]
    images = [
        Image(
            str(row[0].length),
            row,
            bytes(row[0].length) + total,
            boundaries_at(bytes(row[0].length) + total, range(64 * 300, SIZE, 64 * 300)),
        )
        for row in ops
    ]
    spaces: list[Space] = [ReaderSpace(BytesReader(each)) for each in (DICE, sizes)]
    spaces.append(OpsSpace([Copy(SIZE, 0, 0)]))
    bundle = MemoryBundle(spaces, images, rules)
    asked: list[int] = []
    encode = Machine._packed

    def counted(machine: Machine, rule: EncodeRule, offset: int, inside: int) -> bytes:
        asked.append(offset)
        return encode(machine, rule, offset, inside)

    monkeypatch.setattr(Machine, "_packed", counted)
    found = ended_as(bundle, bundle.images, tmp_path, Options(3))
    assert found == {"64": "written", "512": "written"}
    assert sorted(asked) == list(range(0, SIZE, unit))


@pytest.mark.parametrize("jobs", [1, 5])
def test_what_has_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    """A large file without chaining values is made from its beginning, among others that are not."""
    monkeypatch.setattr(rehydrate, "_SMALL", 1000)
    alone = [replace(image(name, start), boundaries=()) for name, start in (("x", 1), ("y", 2))]
    bundle = dice_bundle(*alone, image("z", 3), replace(image("bad", digest="0" * 64), boundaries=()))
    in_order: list[str] = []

    def noted(each: Making, *arguments: Any, **more: Any) -> None:
        in_order.append(each.output.form.name)
        make_in_order(each, *arguments, **more)

    monkeypatch.setattr("rehydrator.bundle.rehydrate.make_in_order", noted)
    found = ended_as(bundle, bundle.images, tmp_path, Options(jobs))
    assert found == {"x": "written", "y": "written", "z": "written", "bad": 5}
    assert sorted(in_order) == ["bad", "x", "y"]
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == {
        "x": DICE[1:],
        "y": DICE[2:],
        "z": DICE[3:],
    }


def test_an_interrupt_ends_what_has_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are made from their beginning are not made to their end first."""
    monkeypatch.setattr(rehydrate, "_SMALL", 1000)
    monkeypatch.setattr("rehydrator.bundle.making.BLOCK", 4096)
    bundle = dice_bundle(*(replace(image(name), boundaries=()) for name in ("x", "y")))
    blocks = 2 * -(-SIZE // 4096)
    done, lock = list[int](), threading.Lock()

    def interrupt(length: int) -> None:
        with lock:  # both files are made at the same time
            done.append(length)
            if len(done) == 3:
                os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)

    with pytest.raises(KeyboardInterrupt):
        to_directory(bundle, bundle.images, tmp_path, Options(2), interrupt, lambda *_: None)
    assert len(done) < blocks * 2 // 3
    assert names_in(tmp_path) == []


def test_checked_side_by_side() -> None:
    """Several are checked in one pass; what is wrong with each is told in their order."""
    bundle = dice_bundle(
        image("a"),
        image("wrong", digest="0" * 64),
        replace(image("malformed"), boundaries=image("x").boundaries[::-1]),
        image("b", 7),
    )
    found = check_side_by_side(bundle, bundle.images, Options(2), lambda _: None)
    assert [error and error.exit_code for error in found] == [None, 5, 8, None]


@pytest.mark.parametrize(
    ("jobs", "mib", "workers"),
    [
        (1, 1, 1),
        (16, 1, 1),
        (16, 128, 1),
        (16, 160, 1),
        (2, 300, 2),
        (4, 300, 4),
        (16, 300, 4),
        (64, 4096, 64),
    ],
)
def test_threads_that_memory_is_enough_for(jobs: int, mib: int, workers: int) -> None:
    """At least one; 300 MiB are enough for four."""
    assert Options(jobs, memory=mib << 20).workers == workers


@pytest.mark.parametrize(
    ("jobs", "available", "mib"),
    [(1, 9000, 300), (4, 9000, 300), (16, 9000, 864), (16, 1000, 500), (16, 10, 300)],
)
def test_memory_by_default(monkeypatch: pytest.MonkeyPatch, jobs: int, available: int, mib: int) -> None:
    """300 MiB; more for many threads, of what there is not more than half."""
    monkeypatch.setattr(memory, "available_memory", lambda: available << 20)
    assert memory.default_memory(jobs) == mib << 20
