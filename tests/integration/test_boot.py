"""Disks that boot: GRUB, the kernel and the root filesystem come from a rehydrated image, and from a
fresh one, whoever edited it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.corpus.boot import MANIFEST, MARKER, boot
from tests.corpus.small import make_small

if TYPE_CHECKING:
    from pathlib import Path

# Seconds; 5 are usual, a busy machine of two cores takes several times that.
PATIENCE = 180


def rehydrator(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "rehydrator", *arguments], check=True, timeout=PATIENCE)


@pytest.mark.boot
def test_boot(tmp_path: Path) -> None:
    """openstack's qcow2, given back, starts its own kernel and finds its files as they were."""
    release, bundle = tmp_path / "release", f"oci:{tmp_path}/bundle"
    originals = make_small(release, ("qemu", "openstack"), megabytes=8, cloud_mib=256, bootable=True)
    rehydrator("build", release, "-o", bundle, "--runtime", "none", "--level", "3")
    rehydrator("rehydrate", tmp_path / "back", "--disk", "openstack", "--bundle", bundle)
    image = tmp_path / "back" / originals[1].name
    booted, console = boot(image, "qcow2", PATIENCE)
    assert booted, console
    said = next(line for line in console.splitlines() if MARKER in line)
    assert "ignition.platform.id=openstack" in said.split()


@pytest.mark.boot
def test_damage_is_seen(tmp_path: Path) -> None:
    """The marker means what it says: with one digest that does not fit, a disk boots without it."""
    wrong = {f"/{MANIFEST}": f"{'0' * 64}  {MANIFEST}\n"}
    (disk,) = make_small(tmp_path, ("metal",), megabytes=8, bootable=True, live=False, files=wrong)
    booted, console = boot(disk, "raw", PATIENCE)
    assert not booted
    assert f"{MANIFEST}: FAILED" in console


@pytest.mark.boot
@pytest.mark.parametrize("editor", ["mount", "guestfs"])
def test_edited_guests_boot(tmp_path: Path, editor: str) -> None:
    """A disk stamped by a mount or by libguestfs boots, too, and its kernel is told the platform."""
    (disk,) = make_small(
        tmp_path, ("openstack",), megabytes=8, cloud_mib=256, bootable=True, live=False, editor=editor
    )
    booted, console = boot(disk, "qcow2", PATIENCE)
    assert booted, console
    said = next(line for line in console.splitlines() if MARKER in line)
    assert "ignition.platform.id=openstack" in said.split()
