"""A command line that makes no sense is refused before anything is opened, made or asked."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rehydrator.cli.rehydrate_checks import check_options, check_place, the_place
from rehydrator.core.errors import UsageError


def refusal(dest: str, *, yes: bool = False) -> str:
    with pytest.raises(UsageError) as refused:
        check_place(dest, yes=yes)
    return str(refused.value)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "dest", ["/dev/nosuch", "/dev/disk/by-id/nosuch", "/dev/../dev/nosuch", "/dev//sdz9"]
)
@pytest.mark.parametrize("yes", [False, True])
def test_a_device_that_is_not_there(dest: str, yes: bool) -> None:
    """A mistyped name below /dev is no directory to be made there."""
    expected = f"{dest}: there is no such device; lsblk lists the disks that are there"
    assert refusal(dest, yes=yes) == expected


def test_a_link_to_a_device_that_is_not_there() -> None:
    """Nor are names that lead there."""
    Path("usb").symlink_to("/dev/nosuch")
    Path("devices").symlink_to("/dev")
    assert "there is no such device" in refusal("usb")
    assert "there is no such device" in refusal("devices/nosuch")


def test_yes_and_nothing_there() -> None:
    """--yes says that a device is meant, wherever it is."""
    assert "sdb: there is no such device" in refusal("sdb", yes=True)


def test_memory_below_dev() -> None:
    """/dev/shm is for files."""
    check_place("/dev/shm/rehydrator-test-nothing-there", yes=False)


@pytest.mark.parametrize(
    "dest",
    [
        f"o/x{suffix}"
        for suffix in [".raw", ".qcow2", ".vmdk", ".vhd", ".vhdx", ".ova", ".iso", ".tar", ".img"]
    ]
    + ["x.raw.xz", "x.tar.gz", "x.img.zst", "x.vhd.zip", "X.QCOW2"],
)
def test_an_image_as_directory(dest: str) -> None:
    """Whoever names a file is told what DEST is, and gets no directory of that name."""
    assert refusal(dest).startswith(f"{dest}: DEST is the directory that files go into")
    assert "standard output (- as DEST)" in refusal(dest)


@pytest.mark.parametrize("dest", ["out", "release-1.0", "x.raw/", "raw", "images.d", "x.xz"])
def test_a_directory_to_be_made(dest: str) -> None:
    """Any other name is one; so is one that says so with a slash."""
    check_place(dest, yes=False)


def test_a_directory_that_looks_like_an_image() -> None:
    """One that is there already is meant."""
    Path("x.raw").mkdir()
    check_place("x.raw", yes=False)


@pytest.mark.parametrize(
    ("dest", "kind"),
    [
        ("/dev/null", "neither a disk nor a directory"),
        ("/dev/full", "neither a disk nor a directory"),
        (__file__, "a regular file"),
    ],
)
@pytest.mark.parametrize("yes", [False, True])
def test_what_takes_no_image(dest: str, kind: str, yes: bool) -> None:
    """Other devices and files say what would do."""
    assert refusal(dest, yes=yes) == (
        f"{dest} is {kind}: name the directory that files go into, a whole disk (lsblk lists the disks "
        "that are there), or - for standard output"
    )


@pytest.mark.parametrize(("dest", "what"), [("-", "DEST is standard output"), (".", ". is a directory")])
def test_yes_where_nothing_is_asked(dest: str, what: str) -> None:
    """--yes agrees to nothing there."""
    check_place(dest, yes=False)
    assert refusal(dest, yes=True) == f"--yes is for block devices, and {what}; leave it out"


def test_no_name() -> None:
    """An empty DEST is a variable that was not set."""
    assert "DEST is empty" in refusal("")


# --- options


SPARSE, CACHE = ["--sparse", "--no-sparse"], ["--cache", "--no-cache"]


@pytest.mark.parametrize(
    ("dest", "what", "useless", "useful"),
    [
        ("-", "standard output", ["--json", *CACHE, "--overwrite", *SPARSE], []),
        ("disk", "a disk", [*CACHE, "--overwrite"], ["--json", *SPARSE]),
        ("out", "", [], ["--json", *CACHE, "--overwrite", *SPARSE]),
    ],
)
def test_options_that_are_of_no_use(dest: str, what: str, useless: list[str], useful: list[str]) -> None:
    """They are refused instead of being ignored."""
    os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(240, 77))
    check_options(dest, dict.fromkeys(useful, True) | dict.fromkeys(useless, False))
    for name in useless:
        with pytest.raises(UsageError) as refused:
            check_options(dest, {name: True})
        assert str(refused.value) == f"{name}: of no use where DEST is {what}; leave it out"


# --- bundles


@pytest.mark.parametrize(
    "reference", ["oci:/srv/x:tag", "docker://host/x:1", "dir:x", "oci-archive:x.tar", "containers-storage:x"]
)
@pytest.mark.parametrize("more", [[], ["out"]])
def test_a_bundle_as_dest(reference: str, more: list[str]) -> None:
    """With DEST behind it, or forgotten: how a bundle is named is said."""
    with pytest.raises(UsageError) as refused:
        the_place([reference, *more])
    assert str(refused.value) == (
        f"{reference} is a bundle, not DEST: name it with --bundle {reference}, or in REHYDRATOR_BUNDLE"
    )


def test_a_directory_that_is_called_like_a_bundle() -> None:
    """One that is there is meant."""
    Path("dir:x").mkdir()
    assert the_place(["dir:x"]) == "dir:x"


@pytest.mark.parametrize("dest", ["-", "out", "/srv/a:b", "C:out"])
def test_one_dest(dest: str) -> None:
    """A colon makes no reference."""
    assert the_place([dest]) == dest


def test_several_dests() -> None:
    """All of them are named, so that a forgotten --file is seen."""
    with pytest.raises(UsageError, match="one DEST can be named, and 2 are: out more"):
        the_place(["out", "more"])
