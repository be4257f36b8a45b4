"""What file names say."""

from __future__ import annotations

import pytest

from rehydrator.metadata.names import Named, image_format, image_name, parse_name


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("demo-1.0.0-qemu.x86_64.qcow2.xz", Named("qemu", "qcow2.xz", "disk", "x86_64", "demo", "1.0.0")),
        (
            "fedora-coreos-43.20251024.3.0-openstack.aarch64.qcow2.xz",
            Named("openstack", "qcow2.xz", "disk", "aarch64", "fedora-coreos", "43.20251024.3.0"),
        ),
        (
            "rhcos-412.86.202301311551-0-azurestack.x86_64.vhd.gz",
            Named("azurestack", "vhd.gz", "disk", "x86_64", "rhcos", "412.86.202301311551-0"),
        ),
        ("d-1-metal4k.s390x.raw", Named("metal", "4k.raw", "disk", "s390x", "d", "1")),
        ("d-1-live.x86_64.iso", Named("metal", "iso", "disk", "x86_64", "d", "1")),
        ("d-1-live-iso.x86_64.iso", Named("metal", "iso", "disk", "x86_64", "d", "1")),
        ("d-1-live-kernel-x86_64", Named("metal", "pxe", "kernel", "x86_64", "d", "1")),
        ("d-1-live-kernel.x86_64", Named("metal", "pxe", "kernel", "x86_64", "d", "1")),
        ("d-1-live-initramfs.x86_64.img", Named("metal", "pxe", "initramfs", "x86_64", "d", "1")),
        ("d-1-live-rootfs.x86_64.img", Named("metal", "pxe", "rootfs", "x86_64", "d", "1")),
        ("box.old.qcow2", Named("box", "old.qcow2")),
        ("SHA256SUMS", Named("SHA256SUMS", "file")),
        (".hidden", Named(".hidden", "hidden")),
        ("trailing.", Named("trailing", "file")),
        ("d-1-qemu.z80.raw", Named("d-1-qemu", "z80.raw")),
    ],
)
def test_parse(file: str, expected: Named) -> None:
    """The convention of both generations of the assembler; else the name up to the first dot."""
    assert parse_name(file) == expected


def test_known_name_and_release_settle_dashes() -> None:
    """Where name and release are known, a release with dashes is read right."""
    found = parse_name("my-os-2024-01-15-beta-qemu.x86_64.raw", "my-os", "2024-01-15-beta")
    assert found == Named("qemu", "raw", "disk", "x86_64", "my-os", "2024-01-15-beta")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("a.qcow2.xz", "a.qcow2"),
        ("a.raw.zst", "a.raw"),
        ("a.img.gz", "a.img"),
        ("a.vhdx.zip", "a.vhdx"),
        ("a.ova.gz", "a.ova"),
        ("a.ociarchive", "a.ociarchive"),
        ("a.tar.gz", "a.tar.gz"),
        ("a.tar.xz", "a.tar"),
        ("a.tar.gz.xz", "a.tar.gz"),
        (".xz", ".xz"),
        (".zip", ".zip"),
        ("a", "a"),
    ],
)
def test_image_name(file: str, expected: str) -> None:
    """One outer compression is taken off; .tar.gz is an image itself."""
    assert image_name(file) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("qcow2.xz", "qcow2"),
        ("4k.raw.xz", "4k.raw"),
        ("vhdx.zip", "vhdx"),
        ("ova.gz", "ova"),
        ("raw.zst", "raw"),
        ("tar.gz", "tar.gz"),
        ("ociarchive", "ociarchive"),
        ("iso", "iso"),
        ("xz", "xz"),
        (".xz", ".xz"),
    ],
)
def test_image_format(key: str, expected: str) -> None:
    """The format of the image inside; tar.gz and ociarchive are their own."""
    assert image_format(key) == expected
