"""The platforms of a release and how the image of each is derived from its raw disk.

The options are those of the CoreOS assembler (reference: predecessor-and-artefacts.md, section 3.3);
only the outer compression of hyperv differs: CoreOS zips it, podman's machine images use zstd.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GIB = 1 << 30

_QCOW2 = ("-O", "qcow2", "-o", "compat=1.1")
_VMDK = ("-O", "vmdk", "-o", "adapter_type=lsilogic,subformat=streamOptimized,compat6")
_VMDK_PLAIN = ("-O", "vmdk", "-o", "subformat=streamOptimized")
_VHD = ("-O", "vpc", "-o", "subformat=fixed,force_size")
_BOTH_CONSOLES = ("console=tty0", "console=ttyS0,115200n8")
_SERIAL_FIRST = ("console=ttyS0,115200n8", "console=tty0")


@dataclass(frozen=True)
class Platform:
    """One platform: the arguments of `qemu-img convert`, what is wrapped around, what is published."""

    extension: str
    convert: tuple[str, ...] = ()
    outer: str = ""
    container: str = ""
    kernel_arguments: tuple[str, ...] = ()
    size: int | None = None
    """Virtual size in bytes; None: the release's cloud size; 0: not enlarged."""


PLATFORMS = {
    "metal": Platform("raw", outer="xz", size=0),
    "qemu": Platform("qcow2", _QCOW2, "xz", kernel_arguments=_BOTH_CONSOLES),
    "openstack": Platform("qcow2", _QCOW2, "xz", kernel_arguments=_SERIAL_FIRST),
    "digitalocean": Platform("qcow2", _QCOW2, "gz"),
    "ibmcloud": Platform("qcow2", _QCOW2, "xz", kernel_arguments=_BOTH_CONSOLES, size=100 * GIB),
    "nutanix": Platform("qcow2", ("-c", *_QCOW2)),
    "aws": Platform("vmdk", ("-c", *_VMDK), "xz", kernel_arguments=_BOTH_CONSOLES),
    "vmware": Platform("ova", _VMDK, container="ova", kernel_arguments=_SERIAL_FIRST),
    "virtualbox": Platform("ova", _VMDK_PLAIN, container="ova", kernel_arguments=_SERIAL_FIRST),
    "azure": Platform("vhd", _VHD, "xz", kernel_arguments=_BOTH_CONSOLES),
    "hyperv": Platform("vhdx", ("-O", "vhdx"), "zst"),
    "gcp": Platform("tar", outer="gz", container="tar", kernel_arguments=_BOTH_CONSOLES),
}
DEFAULT = tuple(name for name in PLATFORMS if name != "digitalocean")

# Fast levels: whoever reads the files only decompresses them.
COMPRESSORS = {
    "xz": ("xz", "-1", "-T2"),
    "gz": ("gzip", "-6", "--no-name"),
    "zst": ("zstd", "-3", "-q", "--rm"),
}

_OVF = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>
    <File ovf:href="disk.vmdk" ovf:id="file1" ovf:size="{size}"/>
  </References>
  <DiskSection>
    <Info>Virtual disks</Info>
    <Disk ovf:capacity="{capacity}" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk1"
          ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <VirtualSystem ovf:id="{name}">
    <Info>A virtual machine for {platform}</Info>
    <Name>{name}</Name>
  </VirtualSystem>
</Envelope>
"""


@dataclass(frozen=True)
class Release:
    """Where the files of one release go and how they are called."""

    directory: Path
    cloud_size: int
    name: str = "demo"
    version: str = "1.0.0"
    arch: str = "x86_64"
    compress: bool = False

    def path(self, role: str, extension: str) -> Path:
        """`<name>-<release>-<role>.<arch>[.<extension>]`."""
        suffix = f".{extension}" if extension else ""
        return self.directory / f"{self.name}-{self.version}-{role}.{self.arch}{suffix}"


def run(*command: str | Path) -> str:
    """Run a program and give its output; a failure carries what the program said."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {done.returncode}: {' '.join(map(str, command))}\n{done.stdout}"
        )
    return done.stdout


def virtual_size(platform: Platform, release: Release, base: int) -> int:
    """Bytes of the disk that the virtual machine sees."""
    return platform.size or (base if platform.size == 0 else release.cloud_size)


def publish(disk: Path, name: str, release: Release) -> Path:
    """Derive the published file of platform `name` from its stamped raw disk, which is used up."""
    platform = PLATFORMS[name]
    target = release.path(name, platform.extension)
    match platform.container:
        case "ova":
            _write_ova(disk, name, target)
        case "tar":
            _tar(target, ["-S", "--format=oldgnu"], disk.rename(disk.with_name("disk.raw")))
        case _ if platform.convert:
            run("qemu-img", "convert", "-f", "raw", *platform.convert, disk, target)
        case _:
            disk.rename(target)
    return compress(target, platform.outer) if release.compress and platform.outer else target


def compress(file: Path, extension: str) -> Path:
    """Replace a file by its compressed form."""
    run(*COMPRESSORS[extension], file)
    return file.with_name(f"{file.name}.{extension}")


def _write_ova(disk: Path, name: str, target: Path) -> None:
    vmdk, ovf = disk.with_name("disk.vmdk"), disk.with_name("coreos.ovf")
    run("qemu-img", "convert", "-f", "raw", *PLATFORMS[name].convert, disk, vmdk)
    capacity = disk.stat().st_size
    ovf.write_text(_OVF.format(size=vmdk.stat().st_size, capacity=capacity, name=target.stem, platform=name))
    _tar(target, ["--format=ustar"], ovf, vmdk)


def _tar(target: Path, options: Sequence[str], *members: Path) -> None:
    names = [member.name for member in members]
    run("tar", "--owner=0", "--group=0", "-C", members[0].parent, "-c", "-h", *options, "-f", target, *names)
