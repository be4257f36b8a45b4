"""An initramfs that is encoded again from the files that the disks have too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conftest import NAME, User, sha256
from tests.corpus.small import make_small

if TYPE_CHECKING:
    from pathlib import Path

INITRAMFS, OPENSTACK = NAME.format("live-initramfs", "img"), NAME.format("openstack", "qcow2")


@dataclass(frozen=True)
class Bundles:
    """A release, and its bundles both ways."""

    release: Path
    stored: str
    encoded: str


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    base = tmp_path_factory.mktemp("initramfs")
    make_small(base / "release", ["metal", "openstack", "aws"], megabytes=16)
    user = User(base)
    for way in ("stored", "encoded"):
        options = ["--runtime", "none", "--level", 3, "--initramfs", way]
        user.run("build", base / "release", "-o", f"oci:{way}:x", *options)
    return Bundles(base / "release", f"oci:{base / 'stored'}:x", f"oci:{base / 'encoded'}:x")


def test_everything_comes_back(user: User, bundles: Bundles) -> None:
    """Disks, whose /boot has it, and the initramfs itself, bit for bit; to a pipe as well."""
    user.run("rehydrate", "back", "--all", "--bundle", bundles.encoded)
    expected = {path.name: sha256(path) for path in bundles.release.iterdir()}
    assert expected == {path.name: sha256(path) for path in (user.home / "back").iterdir()}
    ran = user.run("rehydrate", "-", "--disk", "openstack", "--bundle", bundles.encoded)
    assert ran.out == (bundles.release / OPENSTACK).read_bytes()


def test_what_it_saves(user: User, bundles: Bundles) -> None:
    """Most of its bytes are not stored any more; info says by whom it is made."""
    size = (bundles.release / INITRAMFS).stat().st_size
    saved = stored(user, bundles.stored) - stored(user, bundles.encoded)
    assert size // 2 < saved < size
    shown = json.loads(user.run("info", "--json", "--file", INITRAMFS, bundles.encoded).out)
    [artifact] = shown["artifacts"]
    assert artifact["how"]["format"] == "initramfs"
    assert [each["encoder"] for each in artifact["forms"]["image"]["encoders"]] == ["gzip -9"]


def test_without_its_program(user: User, bundles: Bundles) -> None:
    """Where gzip is missing, no image can be made: exit 10, and what to install."""
    hidden = ["unshare", "-m", "sh", "-c", 'mount --bind /dev/null "$(command -v gzip)" && exec "$@"', "sh"]
    asked = ["rehydrate", "back", "--disk", "metal", "--bundle", bundles.encoded]
    ran = user.run(*asked, code=10, wrapper=hidden)
    assert "gzip" in ran.err


def stored(user: User, reference: str) -> int:
    """Bytes of all packs."""
    return int(json.loads(user.run("info", "--json", reference).out)["bundle"]["bytes stored"])
