"""The files of a release, made from one raw disk by `rehydrator variants`, and its live media."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests.corpus.programs import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
PLATFORMS = Path(__file__).with_name("platforms.yaml")
DERIVATIONS = Path(__file__).with_name("derivations.yaml")
DEFAULT = [
    "metal",
    "qemu",
    "openstack",
    "ibmcloud",
    "nutanix",
    "aws",
    "vmware",
    "virtualbox",
    "azure",
    "hyperv",
    "gcp",
]
MIB = 1 << 20
# The time that SOURCE_DATE_EPOCH gives to everything that variants write.
EPOCH = 1_750_000_000


@dataclass(frozen=True)
class Release:
    """Where the files of one release go and how they are called; sizes in bytes."""

    directory: Path
    cloud_size: int = 10 << 30
    name: str = "demo"
    version: str = "1.0.0"
    arch: str = "x86_64"
    compress: bool = False
    editor: str = "auto"

    def path(self, role: str, extension: str) -> Path:
        """`<name>-<release>-<role>.<arch>[.<extension>]`."""
        suffix = f".{extension}" if extension else ""
        return self.directory / f"{self.name}-{self.version}-{role}.{self.arch}{suffix}"


def make_variants(
    base: Path, release: Release, platforms: Sequence[str], files: Mapping[str, str] | None = None
) -> list[Path]:
    """The published files, in the order of `platforms`; `files` of the guest change on all disks."""
    derivations = base.with_name("derivations.json")
    derivations.write_text(json.dumps(_derivations(release, platforms, files or {})))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "rehydrator",
        "variants",
        base,
        "-o",
        release.directory,
    ]
    command += ["--platforms", PLATFORMS, "--derivations", derivations, "--editor", release.editor]
    command += ["--name", release.name, "--stream", "demo", "--release", release.version]
    command += ["--arch", release.arch, "--compress", "published" if release.compress else "none", "--json"]
    for platform in platforms:
        command += ["--platform", platform]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    made = {each["platform"]: each["file"] for each in json.loads(done.stdout)["platforms"]}
    return [release.directory / made[platform] for platform in platforms]


def _derivations(release: Release, platforms: Sequence[str], files: Mapping[str, str]) -> dict[str, object]:
    table = yaml.safe_load(DERIVATIONS.read_text())
    table["defaults"]["files"].update(files)
    return {
        **table,
        "cloud-size": release.cloud_size,
        "platforms": {platform: {"arches": [release.arch], "needs": {}} for platform in platforms},
    }


def live_files(release: Release, kernel: Path, initramfs: Path, *, iso: bool) -> list[Path]:
    """The kernel, the initramfs with a stamp appended, and the ISO that holds both."""
    image, memory = release.path("live-kernel", ""), release.path("live-initramfs", "img")
    shutil.copyfile(kernel, image)
    memory.write_bytes(initramfs.read_bytes() + bytes(512) + f"live {release.version}\n".encode())
    return [image, memory, _iso(release, image, memory)] if iso else [image, memory]


def _iso(release: Release, kernel: Path, initramfs: Path) -> Path:
    target = release.path("live-iso", "iso")
    inside = ["/images/pxeboot/vmlinuz", str(kernel), "/images/pxeboot/initrd.img", str(initramfs)]
    graft = [f"{name}={file}" for name, file in zip(inside[::2], inside[1::2], strict=True)]
    run(
        "xorriso", "-as", "mkisofs", "-quiet", "-V", "demo", "-R", "-J", "-graft-points", "-o", target, *graft
    )
    return target
