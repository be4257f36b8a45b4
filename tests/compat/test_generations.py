"""A release whose files were converted and compressed by tools of three generations (Debian 12, 13 and sid)
is one release: the disks inside are siblings, and its bundle gives every file back."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.compat import sid
from tests.conftest import names_in
from tests.corpus.small import make_small
from tests.corpus.tools import make_tools

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import User

BUILD = sid.ROOT.parent
# In turn: this machine's, Debian 13's, sid's.
CLOUD_MIB = 52
UNPACK = {".xz": ["xz", "-dc"], ".gz": ["gzip", "-dc"], ".zip": ["unzip", "-p"]}
FORMATS = {".vhd": "vpc", ".vhdx": "vhdx", ".vmdk": "vmdk", ".qcow2": "qcow2", ".raw": "raw"}
PLATFORMS = ("hyperv", "azure", "aws", "qemu", "openstack", "nutanix", "applehv", "hetzner", "digitalocean")


@pytest.fixture(name="tools", scope="module")
def fixture_tools(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The programs of Debian 13 and of sid, which `make test` unpacks."""
    folder = tmp_path_factory.mktemp("tools")
    for suite in ("trixie", "sid"):
        make_tools(folder / suite, BUILD / suite)
    return [folder / "trixie", folder / "sid"]


@pytest.fixture(name="release", scope="module")
def fixture_release(tmp_path_factory: pytest.TempPathFactory, tools: list[Path]) -> Path:
    directory = tmp_path_factory.mktemp("release")
    make_small(
        directory,
        PLATFORMS,
        megabytes=3,
        cloud_mib=CLOUD_MIB,
        live=False,
        compressed=True,
        level=1,
        document=True,
        tools=tools,
    )
    return directory


def first_version(argv: list[str | Path]) -> tuple[int, ...]:
    """The first number with dots that a program says of itself."""
    said = subprocess.run([*argv, "--version"], check=True, capture_output=True, text=True).stdout
    word = next(word for word in said.replace("-", " ").split() if word[0].isdigit() and "." in word)
    return tuple(int(part) for part in word.split(".")[:2])


@pytest.mark.parametrize(
    ("name", "versions"), [("qemu-img", [7, 10, 11]), ("xz", [5, 5, 5]), ("gzip", [1, 1, 1])]
)
def test_generations(tools: list[Path], name: str, versions: list[int]) -> None:
    """Three generations are three: each version is newer than the one before, or as new."""
    found = [first_version([name]), *(first_version([folder / name]) for folder in tools)]
    assert [version[0] for version in found] == versions
    assert found == sorted(found)
    assert found[0] < found[1]


def pages(file: Path, work: Path) -> list[bytes]:
    """The pages of the disk inside of a published file."""
    image = file
    if file.suffix in UNPACK:
        image = work / file.stem
        unpacked = subprocess.run([*UNPACK[file.suffix], file], check=True, capture_output=True).stdout
        image.write_bytes(unpacked)
    raw = work / f"{file.name}.disk"
    given = ["-f", FORMATS[image.suffix]]
    subprocess.run(["qemu-img", "convert", *given, "-O", "raw", image, raw], check=True)
    data = raw.read_bytes()
    return [data[at : at + 4096] for at in range(0, len(data), 4096)]


def test_the_disks_are_siblings(release: Path, tmp_path: Path) -> None:
    """Whoever made them, at most 16 pages of 4 KiB differ between any disk and the first."""
    files = [name for name in names_in(release) if name != "stream.json"]
    assert len(files) == len(PLATFORMS)
    disks = {name: pages(release / name, tmp_path) for name in files}
    assert {len(disk) for disk in disks.values()} == {CLOUD_MIB * 256}
    first = disks.pop(files[0])
    for disk in disks.values():
        assert sum(a != b for a, b in zip(first, disk, strict=True)) in range(1, 17)


def test_the_bundle(release: Path, user: User) -> None:
    """It is built, which proves every file, and verified."""
    key = user.home / "demo"
    user.run("keygen", key, "--no-password")
    reference = f"oci:{user.home / 'bundle'}:demo"
    ran = user.run(
        "build", release, "-o", reference, "--runtime", "none", "--level", 1, "--key", f"{key}.key"
    )
    assert f"{len(PLATFORMS)} files" in ran.err + ran.out.decode()
    user.run("verify", reference, "--key", f"{key}.pub")
