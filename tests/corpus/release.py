"""The files of a release, made from one raw disk by `rehydrator variants`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

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
    """Where the files of one release go and how they are called; sizes in bytes. `level` is that of
    the outer compression, 0 for upstream's."""

    directory: Path
    cloud_size: int = 10 << 30
    name: str = "demo"
    version: str = "1.0.0"
    arch: str = "x86_64"
    compress: bool = False
    level: int = 0
    editor: str = "auto"

    def path(self, role: str, extension: str) -> Path:
        """`<name>-<release>-<role>.<arch>[.<extension>]`."""
        suffix = f".{extension}" if extension else ""
        return self.directory / f"{self.name}-{self.version}-{role}.{self.arch}{suffix}"


def make_variants(
    base: Path,
    release: Release,
    platforms: Sequence[str],
    files: Mapping[str, str] | None = None,
    base_4k: Path | None = None,
    tools: Path | None = None,
) -> list[Path]:
    """The published files, in the order of `platforms`; `files` of the guest change on all disks. metal4k
    is made from `base_4k`. Programs in the folder `tools` are preferred."""
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
    command += ["--base-4k", base_4k] if base_4k else []
    command += ["--level", str(release.level)] if release.level else []
    for platform in platforms:
        command += ["--platform", platform]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONPATH": str(ROOT)}
    if tools:
        environment["PATH"] = f"{tools.absolute()}{os.pathsep}{os.environ['PATH']}"
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
