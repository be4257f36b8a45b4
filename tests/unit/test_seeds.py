"""Images at hand give frames instead of the bundle, and can never change what comes out."""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.bundle import packing, seeds
from rehydrator.bundle.manifest import (
    MANIFEST,
    PLAIN_DIGEST,
    Artifact,
    Form,
    Manifest,
    Release,
    StoredFile,
    encode,
)
from rehydrator.bundle.packing import Ledger, PackWriter
from rehydrator.bundle.reader import Bundle
from rehydrator.bundle.rehydrate import Options
from rehydrator.bundle.seeds import Seeds
from rehydrator.cli.rehydrate import _seeded
from rehydrator.core.digest import frame_digest
from rehydrator.core.errors import DigestMismatch, HostileInput, UsageError
from rehydrator.core.ops import Copy, zeros
from rehydrator.core.pack import DATA
from rehydrator.oci.reference import parse
from rehydrator.store.files import DirectoryFiles, FileReader
from tests.conftest import names_in, rehydrated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rehydrator.core.ops import Op
    from rehydrator.core.reader import Reader

FRAME = 4096
CLUSTER = 1024
HOLE = 5000
DATA_BYTES = random.Random(31).randbytes(10 * FRAME + 1500)
FIRST, SECOND = DATA_BYTES[: 4 * FRAME], DATA_BYTES[4 * FRAME :]
DISK = FIRST + bytes(HOLE) + SECOND
HEADER, FOOTER = b"QFI\xfb, and tables" * 20, b"conectix" * 64
ORDER = random.Random(4).sample(range(-(-len(DISK) // CLUSTER)), -(-len(DISK) // CLUSTER))
FRAMES = 11  # of the disk

NAME = "demo-2.0-{}.x86_64.{}"
METAL, QCOW2 = NAME.format("metal", "raw"), NAME.format("openstack", "qcow2")
VHD, TAR, VMDK = NAME.format("azure", "vhd"), NAME.format("gcp", "tar"), NAME.format("vmware", "vmdk")

CLUSTERS = [DISK[at * CLUSTER : (at + 1) * CLUSTER] for at in ORDER]
CONTENT = {
    METAL: DISK,
    QCOW2: HEADER + b"".join(CLUSTERS),
    VHD: DISK + FOOTER,
    TAR: FOOTER[:512] + DISK + bytes(1024),
    VMDK: bytes(3000),
}
OPEN = [METAL, QCOW2, VHD, TAR]


class Counted(DirectoryFiles):
    """The files of a bundle, and the spans of packs that were read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.spans: Counter[tuple[str, int]] = Counter()

    def open(self, name: str) -> Reader:
        reader = super().open(name)
        return _Counted(reader, name, self.spans) if name.startswith("packs/") else reader


class _Counted:
    def __init__(self, reader: Reader, name: str, spans: Counter[tuple[str, int]]) -> None:
        self._reader, self._name, self._spans, self.size = reader, name, spans, reader.size

    def pread(self, offset: int, length: int) -> bytes:
        self._spans[self._name, offset] += 1
        return self._reader.pread(offset, length)


@dataclass
class World:
    """A bundle of several images of one disk, and a place for images at hand."""

    root: Path

    def open(self, cache: int = 1 << 24) -> Bundle:
        return Bundle(Counted(self.root), cache)

    def seed(self, data: bytes, name: str) -> Path:
        (self.root / "at-hand").mkdir(exist_ok=True)
        path = self.root / "at-hand" / name
        path.write_bytes(data)
        return path

    def change(self, change: Callable[[Manifest], Manifest]) -> None:
        """Another bundle.json."""
        file = self.root / MANIFEST
        file.write_bytes(encode(change(Bundle(DirectoryFiles(self.root)).manifest)))


def make(bundle: Bundle, name: str) -> bytes:
    """An image, without a check of its digest."""
    form = artifact(bundle, name).image
    assert form.space is not None
    return bundle.machine.read(form.space, 0, form.size)


def artifact(bundle: Bundle, name: str) -> Artifact:
    return next(each for each in bundle.manifest.artifacts() if each.image.name == name)


def data_read(bundle: Bundle) -> list[int]:
    """Data frames that were read from the bundle, by looking at its files: their bytes there."""
    assert isinstance(bundle.files, Counted)
    data = [(pack.name, each) for pack in bundle.packs() for each in pack.frames() if each.kind == DATA]
    return [each.stored for name, each in data if (name, each.offset) in bundle.files.spans]


def frames_read(bundle: Bundle) -> int:
    return len(data_read(bundle))


def bytes_read(bundle: Bundle) -> int:
    return sum(data_read(bundle))


def recipes(raw: int, parts: dict[bytes, list[Op]]) -> dict[str, list[Op]]:
    """What each image is made of: of the raw disk, space `raw`, and of bytes of its own."""
    clusters: list[Op] = [
        Copy(len(data), raw, at * CLUSTER) for at, data in zip(ORDER, CLUSTERS, strict=True)
    ]
    [footer] = parts[FOOTER]
    assert isinstance(footer, Copy)
    return {
        QCOW2: [*parts[HEADER], *clusters],
        VHD: [Copy(len(DISK), raw, 0), footer],
        TAR: [replace(footer, length=512), Copy(len(DISK), raw, 0), zeros(1024)],
        VMDK: [zeros(3000)],
    }


def build(
    root: Path,
    content: dict[str, bytes] = CONTENT,
    more: Callable[[PackWriter, int], dict[str, int]] = lambda _, __: {},
) -> World:
    (root / "packs").mkdir(parents=True)
    ledger = Ledger()
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_WORTH_A_SEED", 4 * FRAME)
        disk, own = (PackWriter(root, ledger, 1, pool, 2, FRAME) for _ in range(2))

        def append(writer: PackWriter, data: bytes) -> list[Op]:
            return [Copy(length, space, offset) for space, offset, length in writer.append(data)]

        raw = disk.add_recipe([*append(disk, FIRST), zeros(HOLE), *append(disk, SECOND)])
        parts = {data: append(own, data) for data in (HEADER, FOOTER)}
        spaces = {METAL: raw} | {name: own.add_recipe(ops) for name, ops in recipes(raw, parts).items()}
        spaces |= more(own, raw)
        for writer in (disk, own):
            writer.finish()
            writer.close()
    packs = tuple(pack for pack in ledger.packs if pack)
    images = tuple(
        _artifact(name, content.get(name, b""), space, ledger.size(space)) for name, space in spaces.items()
    )
    document = StoredFile("streams/demo.json", 0, sha256(b"").hexdigest())
    release = Release("demo", "stable", "2.0", document, images)
    found = tuple(space for space in ledger.spaces if space)
    (root / MANIFEST).write_bytes(encode(Manifest(packs, found, ledger.rules(), (), (release,))))
    return World(root)


def _artifact(name: str, content: bytes, space: int, size: int) -> Artifact:
    form = Form(name, size, sha256(content).hexdigest(), space, size)
    _, _, rest = name.split("-")
    platform, _, format_ = rest.split(".")
    return Artifact(platform, "x86_64", format_, "disk", form, None, 1_600_000_000, 0o644, False, 0, False)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return build(tmp_path)


def seeded(bundle: Bundle, *paths: Path) -> Seeds:
    made = Seeds(bundle)
    for path in paths:
        made.add(path)
    return made


# --- frames come from the seed


@pytest.mark.parametrize("wanted", OPEN)
@pytest.mark.parametrize("given_", OPEN)
def test_every_format_for_every_other(world: World, wanted: str, given_: str) -> None:
    """All of the disk comes from the image at hand, in whatever order its format has it; its own bytes, of
    which the bundle has no digests, come from the bundle. What is counted is what was read."""
    bundle = world.open()
    taken = seeded(bundle, world.seed(CONTENT[given_], given_))
    assert make(bundle, wanted) == CONTENT[wanted]
    assert taken.taken.frames == FRAMES
    assert taken.asked.frames == FRAMES + (wanted != METAL)
    assert frames_read(bundle) == taken.asked.frames - taken.taken.frames
    assert bytes_read(bundle) == taken.asked.stored - taken.taken.stored


def test_frames_are_counted_once(world: World) -> None:
    """One that falls out of the cache is made twice, and is one frame."""
    bundle = world.open(cache=0)
    taken = seeded(bundle, world.seed(DISK, METAL))
    assert make(bundle, QCOW2) == CONTENT[QCOW2]
    assert make(bundle, QCOW2) == CONTENT[QCOW2]
    assert (taken.taken.frames, taken.asked.frames) == (FRAMES, FRAMES + 1)


def test_counted_by_several_threads(world: World) -> None:
    """As by one."""
    bundle = world.open(cache=0)
    taken = seeded(bundle, world.seed(DISK, METAL))
    threads = [threading.Thread(target=make, args=(bundle, name)) for name in OPEN]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (taken.taken.frames, taken.asked.frames) == (FRAMES, FRAMES + 1)


def test_several_seeds(world: World) -> None:
    """What one has not, another one may have."""
    cut = 5 * FRAME
    head, tail = DISK[:cut], bytes(cut) + DISK[cut:]
    counts = []
    for data in ((head,), (tail,), (head, tail), (tail, head)):
        bundle = world.open()
        paths = [world.seed(part, f"demo-1.{number}-metal.x86_64.raw") for number, part in enumerate(data)]
        taken = seeded(bundle, *paths)
        assert make(bundle, VHD) == CONTENT[VHD]
        counts.append(taken.taken.frames)
    assert counts[0] + counts[1] in {FRAMES - 1, FRAMES}
    assert counts[2:] == [counts[0] + counts[1]] * 2
    assert 0 < counts[0] < counts[2]


def test_only_frames(world: World) -> None:
    """Recipes and indexes always come from the bundle."""
    bundle = world.open()
    seeded(bundle, world.seed(DISK, METAL))
    make(bundle, METAL)
    assert isinstance(bundle.files, Counted)
    read = {offset for name, offset in bundle.files.spans if name == bundle.packs()[0].name}
    index = bundle.manifest.packs[0].index_offset
    chunks = {frame.offset for frame in bundle.packs()[0].frames() if frame.kind != DATA}
    assert read == {index} | chunks


# --- wrong bytes never come out


def whole_frames(data: bytes) -> int:
    """Frames of the disk that a raw file has."""
    place = [at * FRAME + (HOLE if at >= 4 else 0) for at in range(FRAMES)]
    ends = [at + FRAME for at in place[:-1]] + [len(DISK)]
    return sum(data[at:end] == DISK[at:end] for at, end in zip(place, ends, strict=True))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("shared") / "bundle")


@given(data=st.data(), wanted=st.sampled_from(OPEN), name=st.sampled_from([*OPEN, "demo-1-metal.raw"]))
@settings(max_examples=60, deadline=None)
def test_any_damage(shared: World, data: st.DataObject, wanted: str, name: str) -> None:
    """Whatever an image at hand has, wherever it is wrong, cut or longer: what comes out is the same."""
    content = bytearray(CONTENT.get(name, DISK))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[at : at + data.draw(st.integers(1, 2 * FRAME))] = data.draw(st.binary(max_size=9))
    made = bytes(content[: data.draw(st.integers(0, len(content)))])
    bundle = shared.open()
    taken = seeded(bundle, shared.seed(made, name))
    assert make(bundle, wanted) == CONTENT[wanted]
    assert frames_read(bundle) == taken.asked.frames - taken.taken.frames
    if name == METAL:
        assert taken.taken.frames == whole_frames(made)


@pytest.mark.parametrize("at", range(FRAMES))
@pytest.mark.parametrize("last", [False, True])
def test_wrong_in_one_place(world: World, at: int, last: bool) -> None:
    """The first or last byte of one frame: that frame, and no other, comes from the bundle."""
    place = at * FRAME + (HOLE if at >= 4 else 0)
    place += (min(FRAME, len(DISK) - place) - 1) if last else 0
    wrong = bytearray(DISK)
    wrong[place] ^= 1
    bundle = world.open()
    taken = seeded(bundle, world.seed(bytes(wrong), METAL))
    assert make(bundle, METAL) == DISK
    assert (taken.taken.frames, taken.asked.frames, frames_read(bundle)) == (FRAMES - 1, FRAMES, 1)


@pytest.mark.parametrize("size", [0, 1, FRAME, len(DISK) - 1])
def test_it_shrinks(world: World, size: int) -> None:
    """An image that is cut while it is in use is as good as what is left of it."""
    path, bundle = world.seed(DISK, METAL), world.open()
    taken = seeded(bundle, path)
    os.truncate(path, size)
    assert make(bundle, QCOW2) == CONTENT[QCOW2]
    assert taken.taken.frames == whole_frames(DISK[:size])


def test_it_changes(world: World) -> None:
    """One that is written while it is in use is as good as what is right of it."""
    path, bundle = world.seed(DISK, METAL), world.open()
    taken = seeded(bundle, path)
    with path.open("r+b") as file:
        file.write(b"changed")
    assert make(bundle, METAL) == DISK
    assert taken.taken.frames == FRAMES - 1


def test_it_cannot_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is broken under it hurts nobody."""
    path, bundle = world.seed(DISK, METAL), world.open()
    taken = seeded(bundle, path)
    pread = FileReader.pread

    def broken(self: FileReader, offset: int, length: int) -> bytes:
        if self.path == path and offset <= FRAME < offset + length:
            raise OSError(errno.EIO, "Input/output error")
        return pread(self, offset, length)

    monkeypatch.setattr(FileReader, "pread", broken)
    assert make(bundle, METAL) == DISK
    assert taken.taken.frames == FRAMES - 1


# --- what an image is taken for


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        (QCOW2, 5, QCOW2),
        (VHD, len(CONTENT[TAR]), VHD),
        ("disk.img", len(CONTENT[QCOW2]), QCOW2),
        ("anything", len(DISK), METAL),
        ("demo-1.9-azure.x86_64.vhd", 77, VHD),
        ("demo-1.9.20240101-openstack.x86_64.qcow2", 77, QCOW2),
        ("old.qcow2", 77, QCOW2),
        ("gcp", 77, TAR),
        (NAME.format("azure", "vhd.xz"), 77, VHD),
    ],
)
def test_what_it_is_taken_for(world: World, name: str, size: int, expected: str) -> None:
    """The image of its name; else the one of its size; else that with which it has most words in common."""
    assert Seeds(world.open()).add(world.seed(bytes(size), name)).image.name == expected


def test_several_of_one_size(tmp_path: Path) -> None:
    """Words decide among them."""
    others = [NAME.format("qemu", "raw"), NAME.format("baremetal", "raw")]
    world = build(tmp_path, more=lambda _, raw: dict.fromkeys(others, raw))
    bundle = world.open()
    for name, expected in (
        ("qemu.raw", others[0]),
        ("demo-1-baremetal.img", others[1]),
        ("x.bin", METAL),
    ):
        assert Seeds(bundle).add(world.seed(DISK, name)).image.name == expected


def test_an_older_release(world: World) -> None:
    """Of another size, with its own version: the frames that are the same are taken."""
    older = DISK[: 6 * FRAME] + random.Random(1).randbytes(9 * FRAME)
    bundle = world.open()
    taken = seeded(bundle, world.seed(older, "demo-1.9-metal.x86_64.raw"))
    assert make(bundle, VHD) == CONTENT[VHD]
    assert taken.taken.frames == whole_frames(older) == 4


@pytest.mark.parametrize("wanted", [METAL, QCOW2])
def test_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    """A disk has no name that says anything, and is larger than its image: what it is taken for is the raw
    image that has most of its frames."""
    other = NAME.format("baremetal", "raw")

    def more(writer: PackWriter, raw: int) -> dict[str, int]:
        return {other: writer.add_recipe([zeros(3), Copy(len(DISK), raw, 0)])}

    world = build(tmp_path, more=more)
    monkeypatch.setattr(seeds, "_opened", seeds._Disk)
    for start, expected in ((b"", METAL), (bytes(3), other)):
        bundle = world.open()
        path = world.seed(start + DISK + bytes(9 * FRAME), "sdb")
        taken = Seeds(bundle)
        assert taken.add(path).image.name == expected
        assert make(bundle, wanted) == CONTENT[wanted]
        assert taken.taken.frames == FRAMES


def test_a_disk_of_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends early, or has something else, gives nothing."""
    monkeypatch.setattr(seeds, "_opened", seeds._Disk)
    for data in (b"", bytes(FRAME), random.Random(2).randbytes(len(DISK))):
        bundle = world.open()
        taken = seeded(bundle, world.seed(data, "sdb"))
        assert make(bundle, QCOW2) == CONTENT[QCOW2]
        assert taken.taken.frames == 0


@pytest.mark.parametrize(
    ("reference", "said"), [("dir:x", True), ("docker://host/x", False), ("containers-storage:x", False)]
)
def test_what_was_saved(world: World, capsys: pytest.CaptureFixture[str], reference: str, said: bool) -> None:
    """It is said where less was read, and not where a bundle was fetched whole before."""
    bundle = world.open()
    with _seeded(bundle, [world.seed(DISK, METAL)], parse(reference)):
        make(bundle, METAL)
    assert ("came from --seed, the rest from the bundle" in capsys.readouterr().err) == said


# --- refused


def test_like_nothing(world: World) -> None:
    """A name without a word in common, of no image's size."""
    with pytest.raises(UsageError, match=r"--seed thing\.bin: like none of .* name it as the one"):
        Seeds(world.open()).add(world.seed(b"abc", "thing.bin"))


def test_what_is_compressed(world: World) -> None:
    """An image that has no byte of the bundle's as it is; what to give is said."""
    path = world.seed(CONTENT[VMDK], VMDK)
    with pytest.raises(UsageError) as raised:
        Seeds(world.open()).add(path)
    assert str(raised.value) == (
        f"--seed {path}: nothing can be taken from a file like {VMDK}, whose bytes are compressed or too "
        "few; give a raw disk, a VHD, a VHDX, a tar, or a qcow2 that is not compressed"
    )


def without_digests(manifest: Manifest) -> Manifest:
    return replace(manifest, packs=tuple(replace(pack, plain=()) for pack in manifest.packs))


def test_a_bundle_without_digests(world: World) -> None:
    """It is said that it is the bundle, not the image."""
    world.change(without_digests)
    with pytest.raises(UsageError, match="of no use: this bundle is small, or older than seeds are"):
        Seeds(world.open()).add(world.seed(DISK, METAL))


@pytest.mark.parametrize("name", ["/dev/null", "pipe", "/"])
def test_what_is_no_image(world: World, name: str) -> None:
    """Other devices, pipes (which are not waited for) and directories are the user's mistake."""
    os.mkfifo(world.root / "pipe")
    with pytest.raises(UsageError, match="neither a file nor a disk; name an image"):
        Seeds(world.open()).add(world.root / name)


# --- hostile bundles


def with_digests(world: World, change: Callable[[list[bytes]], list[bytes]]) -> None:
    def changed(manifest: Manifest) -> Manifest:
        first, *rest = manifest.packs
        return replace(manifest, packs=(replace(first, plain=tuple(change(list(first.plain)))), *rest))

    world.change(changed)


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        (lambda digests: digests[:3], 3),
        (lambda digests: digests + [bytes(PLAIN_DIGEST)] * 50, FRAMES),
        (lambda digests: digests[::-1], 1),
        (lambda digests: [bytes(PLAIN_DIGEST)] * len(digests), 0),
        (lambda digests: [digests[0]] * len(digests), 1),
    ],
    ids=["too few", "too many", "another order", "zeros", "one for all"],
)
def test_wrong_digests(world: World, change: Callable[[list[bytes]], list[bytes]], taken: int) -> None:
    """Frames whose digest is missing or wrong come from the bundle."""
    with_digests(world, change)
    bundle = world.open()
    found = seeded(bundle, world.seed(DISK, METAL))
    assert make(bundle, METAL) == DISK
    assert (found.taken.frames, found.asked.frames, frames_read(bundle)) == (taken, FRAMES, FRAMES - taken)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 32 * 65536 + 32])
def test_malformed_digests(world: World, length: int) -> None:
    """No digests, parts of one, and more than there may be frames make the bundle malformed."""
    file = world.root / MANIFEST
    [digits] = re.findall(rb'"plain":"([0-9a-f]+)"', file.read_bytes())
    file.write_bytes(file.read_bytes().replace(digits, b"0" * length))
    with pytest.raises(HostileInput, match="plain"):
        world.open()


def test_digests_of_wrong_bytes(world: World) -> None:
    """A digest that is made for a damaged image lets its bytes in, and the published digest throws them
    out: there is no file."""
    wrong = b"\0" * FRAME + DISK[FRAME:]
    with_digests(world, lambda digests: [frame_digest(wrong[:FRAME])[:PLAIN_DIGEST], *digests[1:]])
    bundle = world.open()
    seeded(bundle, world.seed(wrong, METAL))
    [output] = [each for each in bundle.manifest.outputs() if each.form.name == METAL]
    target = world.root / "out"
    target.mkdir()
    with pytest.raises(DigestMismatch):
        rehydrated(bundle, output, target, Options())
    assert names_in(target) == []


def test_a_damaged_index_elsewhere(world: World) -> None:
    """A pack that is not needed for what is asked is not looked at."""

    def damaged(manifest: Manifest) -> Manifest:
        first, second = manifest.packs
        return replace(manifest, packs=(first, replace(second, index_digest="0" * 64)))

    world.change(damaged)
    bundle = world.open()
    taken = seeded(bundle, world.seed(DISK, METAL))
    assert make(bundle, METAL) == DISK
    assert taken.taken.frames == FRAMES


@pytest.mark.parametrize("outside", [len(DISK), 1 << 50])
def test_copies_from_outside(tmp_path: Path, outside: int) -> None:
    """A recipe that copies bytes where there are none is malformed."""
    bad = NAME.format("bad", "raw")
    world = build(tmp_path, more=lambda own, raw: {bad: own.add_recipe([Copy(10, raw, outside)])})
    with pytest.raises(HostileInput, match="lie outside of its"):
        Seeds(world.open()).add(world.seed(b"x", bad))


def test_copies_of_copies(tmp_path: Path) -> None:
    """Recipes that copy each other a hundred times, four deep, take neither minutes nor memory."""
    bomb = NAME.format("bomb", "raw")

    def more(own: PackWriter, raw: int) -> dict[str, int]:
        space, size = raw, len(DISK)
        for _ in range(4):
            space, size = own.add_recipe([Copy(size, space, 0)] * 100), size * 100
        return {bomb: space}

    world = build(tmp_path, more=more)
    bundle, started = world.open(), time.monotonic()
    taken = seeded(bundle, world.seed(DISK, bomb))
    assert time.monotonic() - started < 60
    assert make(bundle, METAL) == DISK
    assert taken.taken.frames == FRAMES


def test_copies_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more copies than are looked at, the others are not used."""
    monkeypatch.setattr(seeds, "_MOST_RUNS", 3)
    world = build(tmp_path)
    bundle = world.open()
    taken = seeded(bundle, world.seed(DISK, METAL))
    assert make(bundle, METAL) == DISK
    assert taken.taken.frames == 3


# --- where bytes lie


RUN = st.tuples(st.integers(0, 300), st.integers(1, 120))


@given(runs=st.lists(RUN, max_size=12), start=st.integers(0, 400), length=st.integers(0, 200))
@settings(max_examples=300, deadline=None)
def test_runs(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]], start: int, length: int
) -> None:
    """Of runs that overlap, stand in one another, or are there twice: a span is there if each of its bytes
    is, and then it is right."""
    space, content, placed = bytes(k * 7 % 251 for k in range(500)), b"", []
    for low, size in runs:
        placed.append((low, size, len(content)))
        content += space[low : low + size]
    path = tmp_path_factory.getbasetemp() / "runs"
    path.write_bytes(content)
    covered = {at for low, size in runs for at in range(low, low + size)}
    expected = space[start : start + length] if covered >= set(range(start, start + length)) else None
    assert seeds._Runs(FileReader(path), placed).read(start, length) == expected


def test_a_frame_is_held_once(tmp_path: Path) -> None:
    """A large frame that lies in one piece is not copied."""
    size = 16 << 20
    path = tmp_path / "frame"
    path.write_bytes(bytes(size))
    runs = seeds._Runs(FileReader(path), [(0, size, 0)])
    tracemalloc.start()
    try:
        found = runs.read(0, size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert len(found) == size
    assert peak < size * 5 // 4


def test_nothing_is_read_for_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a frame is not all there is known before anything of it is read."""
    path = tmp_path / "gap"
    path.write_bytes(bytes(100))
    runs = seeds._Runs(FileReader(path), [(0, 50, 0), (51, 49, 50)])
    monkeypatch.setattr(FileReader, "pread", _fails)
    assert [runs.read(0, 100), runs.read(50, 1), runs.read(99, 5)] == [None, None, None]


def _fails(*_: object) -> Iterator[bytes]:
    raise AssertionError
