"""The image form of one variant: its disk converted, and wrapped where the platform wants that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rehydrator.variants import wrap
from rehydrator.variants.convert import convert

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.variants.identity import Identity
    from rehydrator.variants.plan import Options, Variant

# OCI's names of architectures, where they are not the distributions'.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def make_image(options: Options, variant: Variant, disk: Path, work: Path, timeout: float) -> Path:
    """Convert `disk`, a qcow2 overlay, in `work`, and wrap it; at most `timeout` seconds a program.

    Raises:
        RehydratorError: as convert() and the wrappers do.
    """
    derivation, identity = variant.derivation, options.identity(variant.platform)
    target = work / variant.image
    converted = work / _inner_name(options, variant)
    convert(disk, "qcow2", derivation.format, derivation.arguments, converted, identity, timeout)
    match derivation.wrap:
        case "":
            return converted
        case "gcp-tar":
            wrap.gcp_tar(converted, target, identity)
        case "ociarchive":
            _ociarchive(options, converted, target, identity)
        case _:
            _ova(options, variant, converted, target, identity)
    converted.unlink()
    return target


def _inner_name(options: Options, variant: Variant) -> str:
    """What the disk is called inside its wrapper."""
    return {
        "ova": "disk.vmdk",
        "gcp-tar": "disk.raw",
        "powervs-ova": f"{options.name}-disk.raw",
        "ociarchive": f"{variant.image.removesuffix('.ociarchive')}.qcow2",
    }.get(variant.derivation.wrap, variant.image)


def _ociarchive(options: Options, disk: Path, target: Path, identity: Identity) -> None:
    architecture = _ARCHITECTURES.get(options.arch, options.arch)
    member = f"disk/{disk.name}"
    wrap.ociarchive(
        disk, target, architecture, options.release, member, identity, compressed=options.compress
    )


def _ova(options: Options, variant: Variant, disk: Path, target: Path, identity: Identity) -> None:
    values = {
        "vsphere_image_name": target.stem,
        "vsphere_product_name": options.name,
        "vsphere_product_vendor_name": options.name,
        "vsphere_product_version": options.release,
        **variant.derivation.values,
    }
    assert variant.template
    if variant.derivation.wrap == "powervs-ova":
        wrap.powervs_ova(disk, target, variant.template, values, identity, disk_name=disk.name)
    else:
        wrap.ova(disk, variant.size, target, variant.template, values, identity)
