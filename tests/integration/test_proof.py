"""Nothing is published that a fresh process did not regenerate exactly."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle import manifest
from rehydrator.bundle.builder import Builder, BuildOptions
from rehydrator.bundle.seal import _layers as layers
from rehydrator.bundle.seal import seal
from rehydrator.core.errors import DigestMismatch, LimitExceeded
from rehydrator.oci.reference import parse

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.bundle.builder import Built


class Silent:
    """A reporter that keeps to itself."""

    def note(self, text: str) -> None: ...
    def phase(self, title: str, total: int) -> None: ...
    def advance(self, steps: int, detail: str = "") -> None: ...


def built(tmp_path: Path) -> Built:
    """A tree of two raw siblings."""
    release, work = tmp_path / "release", tmp_path / "work"
    release.mkdir()
    work.mkdir()
    disk = bytearray(random.Random(4).randbytes(1 << 20))
    disk[510:512] = b"\x55\xaa"
    (release / "demo-1-qemu.x86_64.raw").write_bytes(disk)
    disk[700_000:700_010] = b"0123456789"
    (release / "demo-1-aws.x86_64.raw").write_bytes(disk)
    return Builder(BuildOptions(release, work, level=1), Silent()).build()


def test_published(tmp_path: Path) -> None:
    """What regenerates exactly is published, and the report names every image."""
    target = parse(f"oci:{tmp_path}/oci:v1")
    sealed = seal(built(tmp_path), target, None, None, 2, tmp_path)
    checked = {finding["file"]: finding["ok"] for finding in sealed.proof["checked"]}
    assert (tmp_path / "oci" / "index.json").exists()
    assert checked["demo-1-aws.x86_64.raw"]
    assert checked["demo-1-qemu.x86_64.raw"]


def test_layers_are_few(tmp_path: Path) -> None:
    """However many artifacts and runtime layers there are, an image stays below 100, metadata
    keeps its own layer, and a runtime that leaves no room is refused."""
    made = built(tmp_path)
    files = [file for group in made.groups for file in group]
    alone = [[file] for file in files]
    assert len(layers(made, alone, 0)) == len(files)
    assert len(layers(made, alone, 90 - len(files) + 1)) == len(files) - 1
    merged = layers(made, alone, 87)
    assert [len(layer) for layer in merged] == [len(files) - 2, 1, 1]
    assert [file.name for layer in merged for file in layer] == [f"bundle/{file}" for file in files]
    with pytest.raises(LimitExceeded, match="88 layers"):
        layers(made, alone, 88)


@pytest.mark.parametrize("broken", ["an image's digest", "a pack"])
def test_mismatch_stops_the_build(tmp_path: Path, broken: str) -> None:
    """One image that comes out differently, and nothing is published, nothing left behind."""
    made = built(tmp_path)
    if broken == "a pack":
        pack = made.root / made.manifest.packs[0].stored.file
        data = bytearray(pack.read_bytes())
        data[1000] ^= 1
        pack.write_bytes(data)
    else:
        release = made.manifest.releases[0]
        first = release.artifacts[0]
        lying = replace(first, image=replace(first.image, sha256="0" * 64))
        changed = replace(
            made.manifest, releases=(replace(release, artifacts=(lying, *release.artifacts[1:])),)
        )
        (made.root / manifest.MANIFEST).write_bytes(manifest.encode(changed))
    with pytest.raises(DigestMismatch, match="nothing was published"):
        seal(made, parse(f"oci:{tmp_path}/oci:v1"), None, None, 2, tmp_path)
    assert not (tmp_path / "oci").exists()
