"""File names by the CoreOS convention, `<name>-<release>-<platform>.<arch>.<ext>`.

Live media and 4k disks have names of their own and belong to the platform `metal`
(coreos-assembler's rules, both generations: `live.x86_64.iso`, `live-iso.x86_64.iso`,
`live-kernel-x86_64`, `live-kernel.x86_64`). For other names the platform is the name up to
the first dot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ARCHES = ("x86_64", "aarch64", "ppc64le", "s390x", "riscv64")

# Compression around an image; `rehydrator.bundle.intake` can take off each of them.
OUTER_SUFFIXES = (".xz", ".gz", ".zst", ".bz2", ".zip")

# The stream document in a release directory.
STREAM_DOCUMENT = "stream.json"

# What a mirror or a variant run leaves beside the files: detached GPG signatures, downloads that
# are not finished and what is known of them, and what a run that was killed was writing.
SIGNATURE_SUFFIX = ".sig"
PARTIAL_SUFFIXES = (".part", ".part.json")
TEMPORARY_PREFIX = ".rehydrator-"

_CONVENTION = re.compile(
    r"(?P<name>.+?)-(?P<release>[0-9][^-]*(?:-[0-9]+)?)-(?P<platform>[a-z][a-z0-9_-]*?)"
    rf"[.-](?P<arch>{'|'.join(ARCHES)})(?:\.(?P<ext>.+))?\Z"
)
_LIVE = {
    "live": ("iso", "disk"),
    "live-iso": ("iso", "disk"),
    "live-kernel": ("pxe", "kernel"),
    "live-initramfs": ("pxe", "initramfs"),
    "live-rootfs": ("pxe", "rootfs"),
}


@dataclass(frozen=True, slots=True)
class Named:
    """What a file's name says. `format` is the stream-metadata format key, `role` the role;
    `name`, `release` and `arch` are empty where the name does not follow the convention."""

    platform: str
    format: str
    role: str = "disk"
    arch: str = ""
    name: str = ""
    release: str = ""


def parse_name(file: str, name: str = "", release: str = "") -> Named:
    """What `file` says; `name` and `release`, where known, settle where dashes are ambiguous."""
    found = _CONVENTION.match(file)
    if name and release and file.startswith(f"{name}-{release}-"):
        rest = _CONVENTION.match("n-0-" + file.removeprefix(f"{name}-{release}-"))
        if rest:
            return _named(rest["platform"], rest["ext"] or "", rest["arch"], name, release)
    if found is None:
        platform, _, ext = file.partition(".")
        return Named(platform or file, ext or "file")
    return _named(found["platform"], found["ext"] or "", found["arch"], found["name"], found["release"])


def _named(platform: str, ext: str, arch: str, name: str, release: str) -> Named:
    if platform in _LIVE:
        key, role = _LIVE[platform]
        return Named("metal", key, role, arch, name, release)
    if platform == "metal4k":
        return Named("metal", f"4k.{ext}", "disk", arch, name, release)
    return Named(platform, ext or "file", "disk", arch, name, release)


def image_name(file: str) -> str:
    """The name of the image form: without the outer compression (`x.tar.gz` is an image)."""
    return file.removesuffix(outer_suffix(file))


def image_format(key: str) -> str:
    """A format key without its outer compression: `raw` for `raw.xz`, `tar.gz` for itself."""
    return key if key == "tar.gz" else image_name(key)


def outer_suffix(file: str) -> str:
    """The outer compression that a file's name says, or ""; what is left is never empty."""
    if file.endswith(".tar.gz"):
        return ""
    return next((s for s in OUTER_SUFFIXES if file.endswith(s) and len(file) > len(s)), "")
