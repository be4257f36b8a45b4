"""metal4k: the disk for sectors of 4,096 bytes, which `rehydrator variants` makes from a base of its own."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.conftest import User, names_in, sha256
from tests.corpus.disk import BIG_SECTOR, Disk
from tests.guest_disks import CONSOLE, ENTRY, GuestDisk, Part, boot_tree, run
from tests.variant_runs import Base, make_base, variants

NAME = "demo-1.0.0-metal4k.x86_64.raw"
STAMPED = b"title Demo\noptions root=x ignition.platform.id=metal4k\n"


@pytest.fixture(name="base", scope="module")
def fixture_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(name="large", scope="module")
def fixture_large(tmp_path_factory: pytest.TempPathFactory) -> GuestDisk:
    """The same files on a disk for large sectors."""
    folder = tmp_path_factory.mktemp("large")
    disk = Disk(folder / "demo-large.raw", {"EFI-SYSTEM": 1, "boot": 12, "root": 8}, sector=BIG_SECTOR)
    tree = folder / "root"
    for each in ("etc", "usr", "boot"):
        (tree / each).mkdir(parents=True)
    disk.make_ext4("boot", boot_tree(folder / "boot"))
    disk.make_ext4("root", tree)
    boot, root = (
        Part(each.offset, each.length) for each in map(disk.partitions.get, ("boot", "root")) if each
    )
    return GuestDisk(disk.path, boot, root)


def test_metal4k(base: Base, large: GuestDisk, user: User) -> None:
    """It is made with the others, named and compressed as CoreOS does, belongs to metal, is stamped, and
    its file systems are clean; every byte outside of /boot is the base's."""
    variants(user, base, "--base-4k", large.base, "--level", 1, platforms="metal metal4k")
    release = user.home / "release"
    metal = "demo-1.0.0-metal.x86_64.raw.xz"
    assert names_in(release) == sorted([metal, f"{NAME}.xz", "stream.json"])
    document = json.loads((release / "stream.json").read_bytes())
    formats = document["architectures"]["x86_64"]["artifacts"]["metal"]["formats"]
    assert {key: formats[key]["disk"]["location"] for key in formats} == {
        "raw.xz": metal,
        "4k.raw.xz": f"{NAME}.xz",
    }
    raw = user.home / "disk.raw"
    raw.write_bytes(
        subprocess.run(["xz", "-dc", release / f"{NAME}.xz"], capture_output=True, check=True).stdout
    )
    assert large.content(raw, ENTRY) == STAMPED
    large.check(raw, large.boot)
    old, new, end = large.base.read_bytes(), raw.read_bytes(), large.boot.offset + large.boot.size
    assert (old[: large.boot.offset], old[end:]) == (new[: large.boot.offset], new[end:])


@pytest.mark.parametrize("editor", ["offline", "mount", "guestfs"])
def test_editors(base: Base, large: GuestDisk, user: User, editor: str) -> None:
    """Every editor finds the partitions of large sectors."""
    more = ["--base-4k", large.base, "--compress", "none", "--editor", editor]
    # The appliance is kept where libguestfs keeps it, and is not made anew.
    env = {"LIBGUESTFS_CACHEDIR": "/var/tmp"}
    variants(user, base, *more, platforms="metal4k", env=env)
    made = user.home / "release" / NAME
    assert large.content(made, ENTRY) == STAMPED
    assert large.content(made, CONSOLE) == b""
    large.check(made, large.boot)


def test_twice_the_same(base: Base, large: GuestDisk, user: User) -> None:
    """From a qcow2 or from a raw base, with other platforms or alone: the same bytes."""
    qcow2 = user.home / "large.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", large.base, qcow2)
    more = ["--compress", "none", "--base-4k"]
    variants(user, base, *more, large.base, platforms="metal4k", output="one")
    variants(user, base, *more, qcow2, platforms="qemu metal4k metal", output="two")
    assert sha256(user.home / "one" / NAME) == sha256(user.home / "two" / NAME)


def test_left_out_without_a_base(base: Base, user: User) -> None:
    """Without --base-4k it is left out, and the note says what would help."""
    ran = variants(user, base, "--dry-run", "--json")
    assert "metal4k" not in [each["platform"] for each in json.loads(ran.out)]
    assert (
        "metal4k: left out, needs a base of its own, with sectors of 4,096 bytes: give it with --base-4k"
        in ran.err
    )


def test_the_wrong_base(base: Base, large: GuestDisk, user: User) -> None:
    """A disk for small sectors as --base-4k, and one for large ones as BASE: exit 8, and it says which."""
    ran = variants(user, base, "--base-4k", base.qcow2, platforms="metal4k", code=8)
    assert f"{base.qcow2}: its disk is for sectors of 512 bytes, not 4,096" in ran.err
    ran = variants(user, base, platforms="metal", source=large.base, code=8)
    assert f"{large.base}: its disk is for sectors of 4,096 bytes, not 512" in ran.err
    assert not (user.home / "release").exists()


def test_it_is_not_written_over(base: Base, large: GuestDisk, user: User) -> None:
    """A base that is itself the file to make is refused."""
    target = user.home / "release" / NAME
    target.parent.mkdir()
    target.write_bytes(large.base.read_bytes())
    ran = variants(user, base, "--base-4k", target, "--compress", "none", platforms="metal4k", code=2)
    assert "is itself the file of metal4k" in ran.err


@pytest.mark.parametrize("level", [1, 3])
def test_level(base: Base, user: User, level: int) -> None:
    """--level is the compressors' own: what xz and gzip give for the image."""
    variants(user, base, "--level", level, "--jobs", 2, platforms="qemu digitalocean")
    variants(user, base, "--compress", "none", platforms="qemu digitalocean", output="plain")
    for platform, argv in (("qemu", ["xz", "-T2"]), ("digitalocean", ["gzip"])):
        image = user.home / "plain" / f"demo-1.0.0-{platform}.x86_64.qcow2"
        packed = subprocess.run([*argv, f"-{level}", "-c", image], capture_output=True, check=True).stdout
        suffix = {"xz": ".xz", "gzip": ".gz"}[argv[0]]
        assert (user.home / "release" / f"{image.name}{suffix}").read_bytes() == packed
