"""Which artifacts a request names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rehydrator.bundle.manifest import Artifact, Form
from rehydrator.bundle.selection import select
from rehydrator.core.errors import NotInBundle, UsageError


def artifact(name: str, platform: str, key: str, arch: str = "x86_64", role: str = "disk") -> Artifact:
    image = Form(name, 1, "0" * 64, 0)
    published = Form(f"{name}.xz", 1, "1" * 64)
    return Artifact(platform, arch, key, role, image, published, 0, 0o644, False, 0, False)


def with_signature(name: str, platform: str, key: str, published: Form | None) -> Artifact:
    """An artifact that the bundle gives back as published, with the signature of that file."""
    signature = Form(f"{published.name if published else name}.sig", 1, "2" * 64, 0)
    return replace(artifact(name, platform, key, "ppc64le"), published=published, signature=signature)


ALL = [
    artifact("q", "qemu", "qcow2.xz"),
    artifact("q-arm", "qemu", "qcow2.xz", "aarch64"),
    artifact("m", "metal", "raw.xz"),
    artifact("m4k", "metal", "4k.raw.xz"),
    artifact("iso", "metal", "iso"),
    artifact("k", "metal", "pxe", role="kernel"),
    artifact("i", "metal", "pxe", role="initramfs"),
    artifact("z", "ibm", "qcow2", "s390x"),
    artifact("v1", "vm", "ova"),
    artifact("v2", "vm", "vmdk"),
    artifact("h1", "hyperv", "vhdx.zip"),
    artifact("h2", "hyperv", "tar.gz"),
    with_signature("b", "both", "raw.gz", Form("b.gz", 1, "1" * 64, 0)),
    with_signature("a", "alone", "ova", None),
]


def names(host: str = "x86_64", **wanted: Any) -> list[str]:
    """The names that a request gives."""
    empty: dict[str, Any] = {"disks": (), "names": (), "iso": False, "pxe": False, "every": False}
    request = {**empty, "arch": None, "formats": (), **wanted}
    return [each.form.name for each in select(ALL, **request, host_arch=lambda: host)]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"disks": ["qemu"]}, ["q"]),
        ({"disks": ["qemu"], "host": "aarch64"}, ["q-arm"]),
        ({"disks": ["qemu"], "arch": "aarch64"}, ["q-arm"]),
        ({"disks": ["ibm"]}, ["z"]),
        ({"disks": ["metal"]}, ["m"]),
        ({"disks": ["metal"], "formats": ["raw"]}, ["m"]),
        ({"disks": ["metal"], "formats": ["raw.xz"]}, ["m"]),
        ({"disks": ["metal"], "formats": ["4k.raw"]}, ["m4k"]),
        ({"disks": ["metal"], "formats": ["4k.raw.xz"]}, ["m4k"]),
        ({"disks": ["metal"], "formats": ["iso"]}, ["iso"]),
        ({"disks": ["vm"], "formats": ["vmdk"]}, ["v2"]),
        ({"disks": ["vm"], "formats": ["ova", "vmdk"]}, ["v1", "v2"]),
        ({"disks": ["hyperv"], "formats": ["vhdx"]}, ["h1"]),
        ({"disks": ["hyperv"], "formats": ["tar.gz"]}, ["h2"]),
        ({"disks": ["qemu", "vm"], "formats": ["vmdk"]}, ["q", "v2"]),
        ({"disks": ["vm", "qemu"], "formats": ["vmdk", "4k.raw"]}, ["v2", "q"]),
        ({"iso": True}, ["iso"]),
        ({"pxe": True}, ["k", "i"]),
        ({"disks": ["metal"], "iso": True, "pxe": True}, ["m", "iso", "k", "i"]),
        ({"names": ["k", "q-arm"]}, ["k", "q-arm"]),
        ({"disks": ["qemu"], "names": ["q"]}, ["q"]),
        ({"disks": ["qemu"], "form": "published"}, ["q.xz"]),
        ({"disks": ["both"]}, ["b"]),
        ({"disks": ["both"], "form": "image"}, ["b"]),
        ({"disks": ["both"], "form": "published"}, ["b.gz", "b.gz.sig"]),
        ({"disks": ["alone"], "form": "published"}, ["a", "a.sig"]),
        ({"names": ["b.gz"]}, ["b.gz"]),
        ({"names": ["b.gz"], "form": "image"}, ["b"]),
        ({"names": ["b"], "form": "published"}, ["b.gz", "b.gz.sig"]),
        ({"names": ["b.gz.sig", "b"]}, ["b.gz.sig", "b"]),
        ({"every": True, "arch": "s390x"}, ["z"]),
        ({"every": True}, [each.image.name for each in ALL]),
    ],
)
def test_named(wanted: dict[str, Any], expected: list[str]) -> None:
    """In the order of the request, each once; the host's architecture, the 512-byte raw disk."""
    assert names(**wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        ({"disks": ["nowhere"]}, NotInBundle, "ibm, metal, qemu, vm"),
        ({"disks": ["qemu"], "host": "riscv64"}, UsageError, "aarch64, x86_64"),
        ({"disks": ["qemu"], "arch": "s390x"}, NotInBundle, "aarch64, x86_64"),
        ({"disks": ["qemu"], "arch": "z80"}, NotInBundle, "aarch64, ppc64le, s390x, x86_64"),
        ({"disks": ["vm"]}, UsageError, "--format: ova, vmdk"),
        ({"disks": ["vm"], "formats": ["raw"]}, NotInBundle, "ova, vmdk"),
        ({"disks": ["qemu"], "formats": ["raw"]}, NotInBundle, "qcow2.xz"),
        ({"disks": ["metal"], "formats": ["pxe"]}, NotInBundle, "4k.raw.xz, iso, raw.xz"),
        ({"disks": ["hyperv"], "formats": ["tar"]}, NotInBundle, "tar.gz, vhdx.zip"),
        ({"iso": True, "arch": "s390x"}, NotInBundle, "no iso for s390x"),
        ({"pxe": True, "arch": "aarch64"}, NotInBundle, "no pxe for aarch64"),
        ({"names": ["nothing"]}, NotInBundle, "q-arm"),
        ({"names": ["q.xz"]}, NotInBundle, "only its digest; q is there"),
        ({"names": ["q"], "arch": "aarch64"}, NotInBundle, "q-arm"),
    ],
)
def test_refused(wanted: dict[str, Any], error: type[Exception], said: str) -> None:
    """Unknown is NotInBundle, ambiguous is UsageError; both list what exists."""
    with pytest.raises(error, match=said):
        names(**wanted)


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst", ".zip"])
@pytest.mark.parametrize("backwards", [False, True])
def test_metal_is_the_raw_disk(suffix: str, backwards: bool) -> None:
    """--disk metal alone is the raw disk of 512-byte sectors, whatever else metal publishes, in
    whatever order and compression; --format names another with or without that."""
    keys = [f"4k.raw{suffix}", "iso", f"raw{suffix}", "pxe"]
    all_ = [artifact(key, "metal", key, role="kernel" if key == "pxe" else "disk") for key in keys]
    request: dict[str, Any] = {"disks": ["metal"], "names": (), "iso": False, "pxe": False, "every": False}
    for formats, expected in (
        ((), f"raw{suffix}"),
        (("raw",), f"raw{suffix}"),
        (("4k.raw",), f"4k.raw{suffix}"),
        ((f"4k.raw{suffix}",), f"4k.raw{suffix}"),
        (("iso",), "iso"),
    ):
        [found] = select(
            all_[::-1] if backwards else all_, **request, arch=None, formats=formats, host_arch=lambda: "x"
        )
        assert found.artifact.format == expected
