"""Images at hand, as a user has them: turned into others where they lie (--in-place), and taken as seeds
(--seed). Whatever they are, and whenever it is broken off: what has an image's name is that image."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import NOBODY, User, leftovers, names_in, sha256
from tests.vectors.siblings import disk_bytes, make_published, make_siblings

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
# Images whose bytes lie open.
OPEN = ["metal.raw", "qemu.qcow2", "azure.vhd", "hyperv.vhdx", "box.tar"]
COMPRESSED = ["nutanix.qcow2", "aws.vmdk", "vmware.ova"]


@dataclass(frozen=True)
class World:
    """A release, what it has by name (as images), and its bundle."""

    release: Path
    images: dict[str, Path]
    reference: str
    digests: dict[str, str]

    @property
    def layout(self) -> Path:
        return Path(self.reference.split(":")[1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A disk of 72 MiB, three frames, in every format, in a tar, and two small published files."""
    work = tmp_path_factory.mktemp("at-hand")
    release, images = work / "release", work / "images"
    make_siblings(release, 72)
    subprocess.run(
        ["tar", "--format=ustar", "--mtime=@1", "-C", release, "-cf", release / "box.tar", "metal.raw"],
        check=True,
    )
    make_published(release, disk_bytes(5, 7))
    _tar_gz(release)
    (work / "home").mkdir()
    reference = f"oci:{work}/bundle:at-hand"
    user = User(work / "home")
    built = user.run("build", release, "-o", reference, "--runtime", "none", "--level", 1)
    assert not re.search(r"gce\.tar\.gz.* whole", built.err + built.out.decode())
    user.run("rehydrate", images, "--all", "--form", "image", "--bundle", reference)
    paths = {path.name: path for path in images.iterdir()}
    return World(release, paths, reference, {name: sha256(path) for name, path in paths.items()})


def _tar_gz(release: Path) -> None:
    """A tar, compressed by gzip, of a small disk: an image that an encoder makes."""
    (work := release.parent / "work").mkdir()
    (work / "disk.raw").write_bytes(disk_bytes(5, 7)[:510].ljust(510, b"\0") + b"\x55\xaa" + disk_bytes(4, 7))
    tar, target = ["tar", "--format=gnu", "--mtime=@1", "-I", "gzip -6 -n"], release / "gce.tar.gz"
    subprocess.run([*tar, "-C", work, "-cf", target, "disk.raw"], check=True)


def older(image: Path, target: Path, seed: int = 1) -> Path:
    """An image as it may have been a release before: a stamp, a MiB and the end are others."""
    dice = random.Random(seed)
    data = bytearray(image.read_bytes())
    data[4096:4100] = b"1.9\n"
    data[len(data) // 2 : len(data) // 2 + MIB] = dice.randbytes(MIB)
    data[-5:] = b"other"
    target.write_bytes(data)
    return target


def in_place(old: object, world: World, *more: object) -> list[object]:
    return ["rehydrate", "out", "--bundle", world.reference, "--in-place", old, *more]


@pytest.fixture
def out(user: User) -> Path:
    path = user.home / "out"
    path.mkdir()
    return path


# --- in place


@pytest.mark.parametrize("name", [*OPEN, *COMPRESSED])
def test_an_older_image(user: User, world: World, out: Path, name: str) -> None:
    """Of every format: it becomes the new one, and what is said to have been right was right."""
    old = older(world.images[name], out / "old")
    report = json.loads(user.run(*in_place(old, world, "--file", name, "--json")).out)
    assert names_in(out) == [name]
    assert sha256(out / name) == world.digests[name]
    [outcome] = report
    expected = {"file": name, "sha256": world.digests[name], "status": "updated", "exit_code": 0}
    assert {key: outcome[key] for key in expected} == expected
    assert 0 <= outcome["right_before"] < outcome["size"] == world.images[name].stat().st_size
    again = user.run(*in_place(out / name, world, "--file", name))
    size = f"{outcome['size'] / MIB:.1f} MiB"
    assert again.err == f"{name}: updated, sha256 verified; {size} of {size} were right already\n"
    assert again.out == b""


@pytest.mark.parametrize("name", OPEN)
def test_another_format(user: User, world: World, out: Path, name: str) -> None:
    """Whatever the old file is, it becomes the image if that is wanted: nothing about it needs to be
    like it."""
    old = out / "old"
    shutil.copyfile(world.images["hyperv.vhdx" if name != "hyperv.vhdx" else "box.tar"], old)
    user.run(*in_place(old, world, "--file", name, "--overwrite"))
    assert (names_in(out), sha256(out / name)) == ([name], world.digests[name])


@pytest.mark.parametrize("form", ["published", "image"])
@pytest.mark.parametrize("wrong", [0, 7])
def test_what_encoders_make(user: User, world: World, out: Path, form: str, wrong: int) -> None:
    """A file that an encoder makes is right or wrong as a whole."""
    name = "packet.raw.xz" if form == "published" else "packet.raw"
    source = world.release / name if form == "published" else world.images[name]
    data = bytearray(source.read_bytes())
    data[100] ^= wrong
    (out / "old").write_bytes(data)
    ask = in_place("out/old", world, "--file", name, "--form", form, "--json", "--overwrite")
    [outcome] = json.loads(user.run(*ask).out)
    assert (out / name).read_bytes() == source.read_bytes()
    if form == "published":
        assert outcome["right_before"] == (0 if wrong else len(data))


def test_a_tar_gz(user: User, world: World, out: Path) -> None:
    """An image that is compressed as a whole is right or wrong as a whole, too."""
    data = world.images["gce.tar.gz"].read_bytes()
    for old, right in ((data[:-9], 0), (data + b"more", len(data))):
        (out / "gce.tar.gz").write_bytes(old)
        ask = in_place("out/gce.tar.gz", world, "--disk", "gce", "--json", "--overwrite")
        [outcome] = json.loads(user.run(*ask).out)
        assert outcome["right_before"] == right
        assert (names_in(out), (out / "gce.tar.gz").read_bytes()) == (["gce.tar.gz"], data)


def test_a_file_system_without_holes(user: User, world: World, out: Path) -> None:
    """There zeros are written (a ramfs refuses holes)."""
    digest = world.digests["metal.raw"]
    script = (
        "mount -t ramfs none out && head -c 90000000 /dev/urandom >out/old && "
        f'"$@" && ls out && echo "{digest}  out/metal.raw" | sha256sum -c --quiet'
    )
    wrapper = ["unshare", "-m", "sh", "-c", script, "sh"]
    ask = in_place("out/old", world, "--file", "metal.raw", "--sparse", "--overwrite")
    ran = user.run(*ask, wrapper=wrapper)
    assert ran.out == b"metal.raw\n"


def test_no_holes(user: User, world: World, out: Path) -> None:
    """--no-sparse: all of it is on the disk, although the old file was nothing but a hole."""
    old = out / "old"
    old.touch()
    os.truncate(old, 72 * MIB)
    user.run(*in_place(old, world, "--file", "metal.raw", "--no-sparse"))
    assert (out / "metal.raw").stat().st_blocks * 512 >= 72 * MIB
    assert sha256(out / "metal.raw") == world.digests["metal.raw"]


# --- in place, refused


def test_refused(user: User, world: World, out: Path) -> None:
    """What makes no sense is exit code 2 and changes nothing; the message says what to do."""
    old = older(world.images["metal.raw"], user.home / "old.raw")
    before = sha256(old)
    file = ["--file", "metal.raw"]
    (user.home / "link").symlink_to(old)
    device = user.home / "device"
    os.mknod(device, 0o600 | stat.S_IFBLK, os.makedev(240, 77))
    asked: list[tuple[Sequence[object], str]] = [
        (
            in_place(old, world, "--file", "metal.raw", "--file", "azure.vhd"),
            "makes one image, and 2 are asked",
        ),
        (in_place(old, world, "--all"), "--in-place makes one image, and"),
        (in_place("nothing", world, *file), "--in-place nothing: no such file"),
        (in_place("", world, *file), "not a regular file"),
        (in_place("link", world, *file), "--in-place link: not a regular file"),
        (in_place("tmp", world, *file), "--in-place tmp: not a regular file"),
        (in_place("/dev/null", world, *file), "not a regular file"),
        (["rehydrate", "-", *in_place(old, world, *file)[2:]], "needs a directory as DEST, not -"),
        (["rehydrate", device, *in_place(old, world, *file)[2:]], f"needs a directory as DEST, not {device}"),
    ]
    for ask, words in asked:
        ran = user.run(*ask, code=2)
        assert words in ran.err
        assert len(ran.err.splitlines()) == 1
        assert json.loads(user.run(*ask, "--json", code=2).err)["code"] == 2
    assert (sha256(old), names_in(out)) == (before, [])


def test_another_file_system(user: User, world: World, out: Path) -> None:
    """A file that cannot take the new name at once is not touched."""
    there = Path("/dev/shm") / f"rehydrator-test-{os.getpid()}"
    assert there.parent.stat().st_dev != out.stat().st_dev
    there.write_bytes(b"x")
    try:
        ran = user.run(*in_place(there, world, "--file", "metal.raw"), code=2)
        assert "lies on another file system than out" in ran.err
        assert there.read_bytes() == b"x"
    finally:
        there.unlink()


def test_read_only(user: User, world: World, out: Path) -> None:
    """A file, or a directory, that may not be written to keeps its name and is not called bad."""
    for folder in (user.home, *user.home.parents, *world.layout.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    user.tmp.chmod(0o777)
    out.chmod(0o777)
    nobody = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    old = out / "old.raw"
    old.write_bytes(b"x")
    old.chmod(0o444)
    ask = in_place("out/old.raw", world, "--file", "metal.raw", "--overwrite")
    said = "rehydrator: out/old.raw: Permission denied"
    assert user.run(*ask, code=1, wrapper=nobody).err == f"{said}\n"
    old.chmod(0o666)
    out.chmod(0o755)
    assert user.run(*ask, code=1, wrapper=nobody).err == f"{said}; out/old.raw is as it was\n"
    assert (names_in(out), old.read_bytes()) == (["old.raw"], b"x")


def test_a_machine_runs_from_it(user: User, world: World, out: Path) -> None:
    """What qemu has open is not touched."""
    old = older(world.images["qemu.qcow2"], out / "old.qcow2")
    shutil.copyfile(world.images["qemu.qcow2"], old)
    os.truncate(old, old.stat().st_size + 512)
    running = subprocess.Popen(["qemu-io", "-f", "qcow2", old], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin
    assert running.stdout
    try:
        running.stdin.write(b"length\n")
        running.stdin.flush()
        assert b"MiB" in running.stdout.readline()
        ran = user.run(*in_place(old, world, "--file", "qemu.qcow2"), code=2)
        assert "another program uses it; end that first" in ran.err
    finally:
        running.communicate(b"quit\n", timeout=30)
    user.run(*in_place(old, world, "--file", "qemu.qcow2"))
    assert sha256(out / "qemu.qcow2") == world.digests["qemu.qcow2"]


def test_in_the_way(user: User, world: World, out: Path) -> None:
    """Another file keeps its name; with --overwrite it does not."""
    for name in ("azure.vhd", "azure.vhd.bad"):
        old = older(world.images["azure.vhd"], user.home / "old.vhd")
        (out / name).write_bytes(b"mine")
        ran = user.run(*in_place(old, world, "--file", "azure.vhd"), code=2)
        assert ran.err == f"rehydrator: out/{name} exists and is another file; --overwrite replaces it\n"
        assert (out / name).read_bytes() == b"mine"
        user.run(*in_place(old, world, "--file", "azure.vhd", "--overwrite"))
        assert (names_in(out), sha256(out / "azure.vhd")) == (["azure.vhd"], world.digests["azure.vhd"])
        (out / "azure.vhd").unlink()


def test_a_full_disk(user: User, world: World, out: Path) -> None:
    """Room for what has to be added is looked for first: 9, and the old file is as it was."""
    old = out / "old.raw"
    shutil.copyfile(world.images["metal.raw"], old)
    script = (
        "cp --sparse=always out/old.raw new && mount -t tmpfs -o size=60m none out && "
        'cp --sparse=always new out/old.raw && before="$(sha256sum out/old.raw)"; "$@"; code=$?; '
        '[ "$(sha256sum out/old.raw)" = "$before" ] && ls out && exit $code'
    )
    wrapper = ["unshare", "-m", "sh", "-c", script, "sh"]
    ask = in_place("out/old.raw", world, "--file", "metal.raw", "--no-sparse")
    ran = user.run(*ask, wrapper=wrapper, code=9)
    assert re.fullmatch(
        r"rehydrator: --in-place out/old\.raw: metal\.raw needs \d+ bytes more than it has, "
        r"and \d+ are free; free some space; out/old\.raw is as it was\n",
        ran.err,
    )
    assert ran.out == b"old.raw\n"


@pytest.mark.parametrize("form", ["image", "published"])
def test_a_mistyped_name(user: User, world: World, out: Path, form: str) -> None:
    """A file that has nothing of the image stays what it is, whatever is asked for: somebody's thesis,
    and a good image of another form."""
    thesis = random.Random(3).randbytes(3 * MIB)
    for data in (thesis, world.images["packet.raw"].read_bytes()):
        (out / "thesis.pdf").write_bytes(data)
        name = "packet.raw.xz" if form == "published" else "qemu.qcow2"
        ask = in_place("out/thesis.pdf", world, "--file", name, *(["--form", form] * (form == "published")))
        ran = user.run(*ask, code=2)
        assert ran.err == (
            f"rehydrator: nothing in out/thesis.pdf is of {name}; rehydrate into a directory, "
            "or say --overwrite\n"
        )
        assert (names_in(out), (out / "thesis.pdf").read_bytes()) == (["thesis.pdf"], data)


def test_the_new_image_is_there(user: User, world: World, out: Path) -> None:
    """As without --in-place it is "present", and the old file stays as it is."""
    old = older(world.images["metal.raw"], out / "old.raw")
    shutil.copyfile(world.images["metal.raw"], out / "metal.raw")
    before = sha256(old)
    ran = user.run(*in_place("out/old.raw", world, "--file", "metal.raw"))
    assert ran.err == "metal.raw: present, sha256 verified; out/old.raw stays as it is\n"
    assert (names_in(out), sha256(old)) == (["metal.raw", "old.raw"], before)


# --- in place, broken off


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(user: User, world: World, out: Path, number: signal.Signals) -> None:
    """At any moment: the old file is there untouched, or there is one that is called .bad, or the new one
    is complete. What is there is then given once more, and becomes the image."""
    dice, codes, seen = random.Random(int(number)), list[int](), set[str]()
    before = older(world.images["metal.raw"], user.home / "before")
    known = {"old": sha256(before), "metal.raw": world.digests["metal.raw"]}
    for _ in range(6):
        shutil.rmtree(out)
        out.mkdir()
        shutil.copyfile(before, out / "old")
        code, said = interrupt(user, number, dice, in_place("out/old", world, "--file", "metal.raw"), out)
        [name] = names_in(out)
        seen.add(name)
        codes.append(code)
        if name in known:
            assert sha256(out / name) == known[name]
        elif code == 130:
            assert said == (
                "rehydrator: interrupted; out/metal.raw.bad is neither the old image nor the new one: "
                "give it to --in-place again\n"
            )
        user.run(*in_place(f"out/{name}", world, "--file", "metal.raw"))
        assert (names_in(out), sha256(out / "metal.raw")) == (["metal.raw"], world.digests["metal.raw"])
    assert set(codes) <= {0, -9 if number == signal.SIGKILL else 130}
    assert "metal.raw.bad" in seen


def interrupt(
    user: User, number: int, dice: random.Random, ask: Sequence[object], out: Path
) -> tuple[int, str]:
    """Send a signal a moment after the file is called bad; how it ended, and what it said."""
    ran = subprocess.Popen(
        user.command(*ask, "--jobs", 1), cwd=user.home, env=user.environment(), stderr=subprocess.PIPE
    )
    while ran.poll() is None and "old" in names_in(out):
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.1))
    ran.send_signal(number)
    _, said = ran.communicate(timeout=60)
    assert b"Traceback" not in said
    assert leftovers(user.home) == [] or number == signal.SIGKILL
    shutil.rmtree(user.tmp)
    user.tmp.mkdir()
    return ran.returncode, said.decode()


def damaged(world: World, target: Path) -> str:
    """A copy of the bundle with one wrong byte in the second frame of its largest pack."""
    shutil.copytree(world.layout, target)
    layer = max((target / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    with layer.open("r+b") as file:
        file.seek(layer.stat().st_size * 5 // 8)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    return f"oci:{target}:at-hand"


def test_a_damaged_bundle(user: User, world: World, out: Path) -> None:
    """A frame of it is wrong: 5, one line, and the file is called bad. With a good bundle it goes on."""
    reference = damaged(world, user.home / "damaged")
    (out / "old").write_bytes(b"")
    ask = ["rehydrate", "out", "--file", "metal.raw", "--bundle", reference]
    ran = user.run(*ask, "--in-place", "out/old", code=5)
    assert re.fullmatch(
        r"rehydrator: packs/\d+\.pack: frame at \d+ is damaged \(its digest differs\); "
        r"out/metal\.raw\.bad is neither the old image nor the new one: give it to --in-place again\n",
        ran.err,
    )
    assert names_in(out) == ["metal.raw.bad"]
    report = json.loads(user.run(*ask, "--in-place", "out/metal.raw.bad", "--json", code=5).err)
    assert report["code"] == 5
    assert names_in(out) == ["metal.raw.bad"]
    user.run(*in_place("out/metal.raw.bad", world, "--file", "metal.raw"))
    assert (names_in(out), sha256(out / "metal.raw")) == (["metal.raw"], world.digests["metal.raw"])


def test_a_damaged_bundle_that_is_not_needed(user: User, world: World, out: Path) -> None:
    """Where the old file has what is damaged there, the bundle will do; and a seed can give it, too."""
    reference = damaged(world, user.home / "damaged")
    ask = ["rehydrate", "out", "--file", "metal.raw", "--bundle", reference]
    shutil.copyfile(world.images["metal.raw"], out / "old")
    os.truncate(out / "old", 73 * MIB)
    user.run(*ask, "--in-place", "out/old")
    assert sha256(out / "metal.raw") == world.digests["metal.raw"]
    (out / "metal.raw").unlink()
    user.run(*ask, code=5)
    user.run(*ask, "--seed", world.images["azure.vhd"])
    assert sha256(out / "metal.raw") == world.digests["metal.raw"]


# --- seeds

SIZE = r"[\d.]+ (?:[KM]i)?B"
COUNTED = re.compile(rf"(\d+) of (\d+) frames, {SIZE} of {SIZE}, came from --seed, the rest from the bundle")


def counted(said: str) -> tuple[int, int]:
    """Frames from seeds, and all that were needed."""
    [line] = [line for line in said.splitlines() if "--seed, the rest" in line]
    found = COUNTED.fullmatch(line)
    assert found
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("name", OPEN)
def test_a_seed_for_everything(user: User, world: World, out: Path, name: str) -> None:
    """Every format whose bytes lie open gives the disk's frames to every other, in one run; and what is
    damaged, cut and grown gives what it still has. What comes out is always the same."""
    seed = user.home / name
    ask = ["rehydrate", "out", "--all", "--form", "image", "--bundle", world.reference, "--seed", seed]
    shutil.copyfile(world.images[name], seed)
    ran = user.run(*ask)
    assert {each: sha256(out / each) for each in names_in(out)} == world.digests
    taken, asked = counted(ran.err)
    assert 2 <= taken < asked
    shutil.rmtree(out)
    older(world.images[name], seed)
    os.truncate(seed, 60 * MIB if name != "qemu.qcow2" else 30 * MIB)
    fewer, same = counted(user.run(*ask).err)
    assert (fewer < taken, same) == (True, asked)
    assert {each: sha256(out / each) for each in names_in(out)} == world.digests


def test_a_disk_as_seed(user: User, world: World, out: Path) -> None:
    """One that has an image, or had it once, gives its frames; what it is taken for is said."""
    file = user.home / "disk"
    shutil.copyfile(world.images["metal.raw"], file)
    os.truncate(file, 80 * MIB)
    made = subprocess.run(["losetup", "-f", "--show", file], check=True, capture_output=True, text=True)
    node = made.stdout.strip()
    try:
        ask = ["rehydrate", "out", "--file", "azure.vhd", "--bundle", world.reference, "--seed"]
        ran = user.run(*ask, node)
    finally:
        subprocess.run(["losetup", "-d", node], check=True)
    # The fixture has several raw images of this disk, as a release has.
    assert re.match(rf"--seed {node}: taken for [a-z0-9]+\.raw\n", ran.err)
    assert counted(ran.err)[0] > 0
    assert sha256(out / "azure.vhd") == world.digests["azure.vhd"]
    assert "neither a file nor a disk" in user.run(*ask, "/dev/null", code=2).err


@pytest.mark.parametrize("name", COMPRESSED)
def test_no_seed(user: User, world: World, out: Path, name: str) -> None:
    """What is compressed is refused (2), and it is said what would do."""
    ask = ["rehydrate", "out", "--file", "metal.raw", "--bundle", world.reference]
    ran = user.run(*ask, "--seed", world.images[name], code=2)
    assert f"nothing can be taken from a file like {name}" in ran.err
    assert "give a raw disk, a VHD, a VHDX, a tar, or a qcow2 that is not compressed" in ran.err
    assert names_in(out) == []


def test_no_file(user: User, world: World, out: Path) -> None:
    """A directory, nothing, and an image like none: 2."""
    ask = ["rehydrate", "out", "--file", "metal.raw", "--bundle", world.reference, "--seed"]
    (user.home / "thing").write_bytes(b"x")
    for name, words in (("tmp", "is a directory"), ("nothing", "does not exist"), ("thing", "like none of")):
        assert words in user.run(*ask, name, code=2).err


def test_another_name(user: User, world: World, out: Path) -> None:
    """What an image is taken for is said where its name does not say it."""
    seed = user.home / "disk-of-1.9.vhdx"
    shutil.copyfile(world.images["hyperv.vhdx"], seed)
    ask = ["rehydrate", "out", "--file", "metal.raw", "--bundle", world.reference]
    ran = user.run(*ask, "--seed", seed)
    assert ran.err.splitlines()[0] == f"--seed {seed}: taken for hyperv.vhdx"
    assert counted(ran.err)[0] > 0
    (out / "metal.raw").unlink()
    assert "--seed" not in user.run(*ask).err


def test_into_a_pipe(user: User, world: World) -> None:
    """One image and several."""
    ask = ["rehydrate", "-", "--bundle", world.reference, "--seed", world.images["qemu.qcow2"]]
    ran = user.run(*ask, "--file", "azure.vhd")
    assert ran.out == world.images["azure.vhd"].read_bytes()
    assert counted(ran.err)[0] > 0
    ran = user.run(*ask, "--file", "metal.raw", "--file", "hyperv.vhdx")
    assert (len(ran.out) % 512, counted(ran.err)[0] > 0) == (0, True)


def test_several(user: User, world: World, out: Path) -> None:
    """What one lacks another has: together they give more than each."""
    data = world.images["metal.raw"].read_bytes()
    ask = ["rehydrate", "out", "--file", "metal.raw", "--bundle", world.reference, "--overwrite"]
    seeds = [user.home / "a" / "metal.raw", user.home / "b" / "metal.raw"]
    for seed, part in zip(seeds, (data[: 64 * MIB], bytes(48 * MIB) + data[48 * MIB :]), strict=True):
        seed.parent.mkdir()
        seed.write_bytes(part)
    found = []
    for given in (seeds[:1], seeds[1:], seeds):
        (out / "metal.raw").unlink(missing_ok=True)
        ran = user.run(*ask, *(word for seed in given for word in ("--seed", seed)))
        found.append(counted(ran.err)[0])
    assert found[2] == found[0] + found[1] > max(found[:2])


@pytest.mark.parametrize("itself", [True, False])
def test_a_seed_for_what_is_made_in_place(user: User, world: World, out: Path, itself: bool) -> None:
    """What the old file has not right may come from a seed, also from that file, which changes meanwhile."""
    old = out / "metal.raw"
    older(world.images["metal.raw"], old)
    with old.open("ab") as file:
        file.write(b"more than there is to be" * 99_000)
    seed = old if itself else world.images["qemu.qcow2"]
    ran = user.run(*in_place(old, world, "--file", "metal.raw", "--seed", seed))
    assert (names_in(out), sha256(old)) == (["metal.raw"], world.digests["metal.raw"])
    taken, asked = counted(ran.err)
    assert asked > 0
    assert itself or taken > 0


def test_it_is_cut_meanwhile(user: User, world: World, out: Path) -> None:
    """A seed that becomes shorter while it is read: the bundle has the rest."""
    seed = user.home / "metal.raw"
    shutil.copyfile(world.images["metal.raw"], seed)
    ask = ["rehydrate", "out", "--all", "--form", "image", "--bundle", world.reference, "--seed", seed]
    ran = subprocess.Popen(user.command(*ask), cwd=user.home, env=user.environment(), stderr=subprocess.PIPE)
    while ran.poll() is None and not names_in(out):
        time.sleep(0.001)
    os.truncate(seed, MIB)
    _, said = ran.communicate(timeout=120)
    assert (ran.returncode, b"Traceback" in said) == (0, False)
    assert {each: sha256(out / each) for each in names_in(out)} == world.digests


MEASURE = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stderr=subprocess.DEVNULL)
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.parametrize("name", ["metal.raw", "qemu.qcow2"])
@pytest.mark.parametrize("how", ["seed", "in place"])
def test_memory(user: User, world: World, out: Path, name: str, how: str) -> None:
    """No more is taken than --memory says."""
    old = older(world.images[name], user.home / name)
    more = ["--in-place", old, "--overwrite"] if how == "in place" else ["--seed", old]
    ask = ["rehydrate", "out", "--file", "azure.vhd", "--bundle", world.reference, "--memory", "300m", *more]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *user.command(*ask, "--jobs", 4)],
        cwd=user.home,
        env=user.environment(),
        capture_output=True,
        check=True,
    )
    code, kibibytes = map(int, done.stdout.split())
    assert code == 0
    assert kibibytes < 300 << 10
