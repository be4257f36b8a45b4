"""Live media beside the disks: the operating system is stored once, whichever way round."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import NAME, User, names_in, sha256
from tests.corpus.small import make_small

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1 << 10
ISO = NAME.format("live-iso", "iso")
PXE = [
    NAME.format("live-initramfs", "img"),
    NAME.format("live-kernel", "").rstrip("."),
    NAME.format("live-rootfs", "img"),
]
METAL, METAL4K = NAME.format("metal", "raw"), NAME.format("metal4k", "raw")

WAYS = [("squashfs", "stored"), ("squashfs", "encoded"), ("erofs", "stored")]
SAID = {
    "stored": f"{PXE[2]}: stored as it is; the disks are derived from the files of its",
    "encoded": f"{PXE[2]}: made from the files of {METAL}, each block encoded again",
}


@dataclass(frozen=True)
class Media:
    """A release with live media, and its bundle."""

    release: Path
    reference: str
    direction: str

    def size(self) -> int:
        """Bytes of what ISO and PXE hold: root file system, kernel, initramfs."""
        return sum((self.release / name).stat().st_size for name in PXE)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two disks, one of them with sectors of 4 KiB, PXE files and an ISO; signatures of two files."""
    base = tmp_path_factory.mktemp("live")
    for kind in ("squashfs", "erofs"):
        made = make_small(base / kind, ["metal"], megabytes=16, rootfs=kind, iso=True, four_k=True)
        for path in made:
            if path.name in {ISO, PXE[2]}:
                path.with_name(f"{path.name}.sig").write_bytes(f"signature of {path.name}".encode())
    return {kind: base / kind for kind in ("squashfs", "erofs")}


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def media(
    request: pytest.FixtureRequest, releases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Media:
    kind, direction = request.param
    base = tmp_path_factory.mktemp("bundle")
    options = ["--runtime", "none", "--level", 3, "--jobs", 2, "--live", direction]
    ran = User(base).run("build", releases[kind], "-o", "oci:out:x", *options)
    assert SAID[direction] in ran.err
    return Media(releases[kind], f"oci:{base / 'out'}:x", direction)


def by_name(user: User, reference: str) -> dict[str, Any]:
    """What info says of each file."""
    shown = json.loads(user.run("info", "--json", reference).out)
    return {each["file"]: each for each in shown["artifacts"]}


def test_everything_comes_back(user: User, media: Media) -> None:
    """Disks and live media, bit for bit; signatures beside the published form."""
    user.run("rehydrate", "back", "--all", "--form", "published", "--bundle", media.reference)
    expected = {path.name: sha256(path) for path in media.release.iterdir()}
    assert expected == {path.name: sha256(path) for path in (user.home / "back").iterdir()}
    user.run("verify", "--all", media.reference)


def test_iso_and_pxe(user: User, media: Media) -> None:
    """--iso and --pxe are the ISO and the three files, alone or together, also on a pipe."""
    bundle = ["--bundle", media.reference]
    user.run("rehydrate", "back", "--iso", "--pxe", *bundle)
    assert names_in(user.home / "back") == sorted([ISO, *PXE])
    user.run("rehydrate", "iso", "--iso", "--form", "published", *bundle)
    assert names_in(user.home / "iso") == [ISO, f"{ISO}.sig"]
    assert user.run("rehydrate", "-", "--iso", *bundle).out == (media.release / ISO).read_bytes()


def test_what_live_media_cost(user: User, media: Media) -> None:
    """ISO and PXE cost at most 256 KiB more than the files that both hold; the disks are nearly
    free, or the live media are."""
    found = by_name(user, media.reference)
    cost = {name: each["how"]["cost"] for name, each in found.items()}
    assert cost[ISO] + sum(cost[name] for name in PXE) <= media.size() + 256 * KIB
    assert cost[ISO] <= 256 * KIB
    if media.direction == "encoded":
        assert [name for name in PXE if cost[name] > 256 * KIB] == []


def test_one_copy_of_the_system(user: User, media: Media) -> None:
    """The bundle has at most 1.2 times the bytes of root file system, kernel and initramfs."""
    stored = json.loads(user.run("info", "--json", media.reference).out)["bundle"]["bytes stored"]
    assert stored <= 1.2 * media.size()


def test_sectors_of_four_kib(user: User, media: Media) -> None:
    """metal4k, with the same files on another partition table, finds their pages."""
    found = by_name(user, media.reference)[METAL4K]
    assert found["how"]["rung"] == "explained"
    assert found["how"]["cost"] <= 64 * KIB
    assert found["how"]["bytes"]["stored"] <= 1024 * KIB


def test_build_says_which_way_it_went(user: User, releases: dict[str, Path]) -> None:
    """Without --live, one of the two: here the root file system is smaller than the disk."""
    ran = user.run("build", releases["squashfs"], "--runtime", "none", "--level", 1, "-o", "oci:out")
    assert [way for way, said in SAID.items() if said in ran.err] == ["stored"]


def test_encoders_that_there_are_not(user: User, releases: dict[str, Path]) -> None:
    """EROFS cannot be encoded again: build says so, and stores it."""
    ran = user.run(
        "build", releases["erofs"], "--runtime", "none", "--level", 1, "--live", "encoded", "-o", "oci:out"
    )
    assert f"{PXE[2]}: cannot be made from the disks: blocks of erofs are not encoded again" in ran.err
    assert SAID["stored"] in ran.err
