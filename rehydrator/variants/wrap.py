"""What goes around a disk: OVA, Google's tar, PowerVS's OVA, KubeVirt's container disk.

GNU tar writes the archives, with the options of coreos-assembler; owners are given by name and
number and times by number, so that neither the user nor the file system shows. Disks are
linked, not copied, into the directory that is archived.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Final
from xml.parsers import expat
from xml.sax.saxutils import escape

from rehydrator import host
from rehydrator.core.errors import LimitExceeded, UsageError
from rehydrator.oci.documents import CONFIG, INDEX, LAYER, LAYER_GZIP, MANIFEST, Descriptor, Platform, encode
from rehydrator.oci.layout import BLOBS
from rehydrator.variants import tools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rehydrator.core.canonical_json import Json
    from rehydrator.variants.identity import Identity

# Bytes of the volume that coreos-assembler asks of Power Virtual Server.
POWERVS_CAPACITY: Final = 120 << 30

_TIMEOUT: Final = 24 * 3600.0
_MAX_TEMPLATE: Final = 1 << 20
_USTAR_LIMIT: Final = 8 << 30  # POSIX.1-2017, pax, "ustar Interchange Format": 11 octal digits
_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_REQUIRED: Final = ("vmdk_size", "vmdk_capacity")

_ROOT: Final = ("--owner=root:0", "--group=root:0")
# The user that KubeVirt runs qemu as, to whom the disk of a container disk must belong.
_KUBEVIRT: Final = ("--owner=107", "--group=107", "--numeric-owner")
# Without the time of the last access, and without the process id that tar puts into the names
# of extended headers (GNU tar manual, 8.3.7.1).
_POSIX: Final = ("--sort=name", "--format=posix")
_PAX: Final = "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"


# The programs that each wrapper takes.
PROGRAMS: Final = {
    "ova": ("tar",),
    "powervs-ova": ("fallocate", "tar"),
    "gcp-tar": ("fallocate", "tar"),
    "ociarchive": ("gzip", "tar"),
}


@dataclass(frozen=True, slots=True)
class Template:
    """An OVF descriptor with placeholders such as {vmdk_size}; `name` is for messages."""

    name: str
    text: str


def load_template(name: str, beside: Path | None = None) -> Template:
    """A template by name: a file in the directory `beside` (where a path may lead to another),
    or one that comes with this program.

    Raises:
        UsageError: there is none, or it is no text.
    """
    own = beside / name if beside else None
    try:
        if own is not None and own.is_file():
            return Template(str(own), _text(own.read_bytes(), str(own)))
        shipped = resources.files(__package__).joinpath("templates")
        found = {each.name: each for each in shipped.iterdir()}
        if name in found:
            return Template(name, _text(found[name].read_bytes(), name))
    except OSError as error:
        raise UsageError(f"template {name}: {error.strerror}") from None
    where = f" in {beside}" if beside else ""
    known = ", ".join(sorted(found))
    raise UsageError(f"template {name}: no such file{where}; those that come with rehydrator: {known}")


def check_template(template: Template, values: Mapping[str, str]) -> None:
    """Raise UsageError now where ova() would with these values, before hours of work."""
    _descriptor(template, values, 0, 0, "disk")


def ova(
    disk: Path,
    capacity: int,
    target: Path,
    template: Template,
    values: Mapping[str, str],
    identity: Identity,
    *,
    disk_name: str = "disk.vmdk",
    ovf_name: str = "coreos.ovf",
) -> None:
    """An OVA: the descriptor, then the VMDK, in a ustar archive. `capacity` is the disk's
    virtual size in bytes; {vmdk_size}, {vmdk_capacity} and {disk_name} are filled in here.
    Source: DMTF DSP0243, Open Virtualization Format, "OVF package".

    Raises:
        UsageError: the template has a placeholder without a value, lacks a needed one, or is
            no well-formed XML when filled.
        LimitExceeded: a disk of 8 GiB or more, which ustar cannot hold, or the disk is full.
        RehydratorError: tar failed.
    """
    size = _size(disk)
    if size >= _USTAR_LIMIT:
        raise LimitExceeded(
            f"{target.name}: an OVA is a ustar archive, which holds files below {_USTAR_LIMIT} bytes; "
            f"{disk.name} has {size}; make the disk smaller, or publish the VMDK by itself"
        )
    text = _descriptor(template, values, size, capacity, disk_name)
    _pack_ova(("--format=ustar",), disk, target, text, identity, disk_name, ovf_name)


def powervs_ova(
    disk: Path,
    target: Path,
    template: Template,
    values: Mapping[str, str],
    identity: Identity,
    *,
    disk_name: str,
    ovf_name: str = "coreos.ovf",
    capacity: int = POWERVS_CAPACITY,
) -> None:
    """As ova(), around a raw disk, in a sparse archive of GNU tar, which holds any size. The
    volume that is made of it has `capacity` bytes.

    Raises:
        UsageError: as ova(); a disk that is larger than the volume.
        LimitExceeded: the disk is full.
        RehydratorError: tar failed.
    """
    size = _size(disk)
    if size > capacity:
        raise UsageError(f"{target.name}: {size} bytes do not fit a volume of {capacity}")
    _dig(disk)
    text = _descriptor(template, values, size, capacity, disk_name)
    _pack_ova(("--format=gnu", "--sparse"), disk, target, text, identity, disk_name, ovf_name)


def gcp_tar(disk: Path, target: Path, identity: Identity) -> None:
    """Google's archive before compression: disk.raw, sparse, in the old format of GNU tar.

    Which bytes are in it follows from the disk's holes, and so from its content: its blocks of
    zeros, those of the file system, become holes first.

    Raises:
        LimitExceeded: the disk is full.
        RehydratorError: tar failed.
    """
    _dig(disk)
    with tools.workplace(target) as place, tools.new_file(target) as path:
        (place / "disk.raw").symlink_to(tools.absolute(disk))
        _tar((*_ROOT, "--format=oldgnu", "--sparse"), place, ["disk.raw"], path, identity)


def ociarchive(
    disk: Path,
    target: Path,
    architecture: str,
    version: str,
    member: str,
    identity: Identity,
    *,
    compressed: bool = True,
) -> None:
    """A container disk for KubeVirt: an OCI image of one layer, which has the qcow2 in /disk,
    as an archive of its layout. `architecture` is Go's name (amd64), `member` the disk's path
    in the layer (disk/NAME.qcow2). Source: OCI image specification 1.1; osbuild's
    org.osbuild.oci-archive for the layer's options.

    Raises:
        UsageError: a path that is not below one directory.
        LimitExceeded: the disk is full.
        RehydratorError: tar or gzip failed.
    """
    directory, _, name = member.rpartition("/")
    if not directory or not name or "/" in directory or {directory, name} & {".", ".."}:
        raise UsageError(f"{member!r:.200}: the disk's path in a container is DIRECTORY/FILE")
    with tools.workplace(target) as place, tools.new_file(target) as path:
        tree, layout = place / "tree", place / "layout"
        (tree / directory).mkdir(parents=True)
        (tree / directory / name).symlink_to(tools.absolute(disk))
        (layout / BLOBS).mkdir(parents=True)
        _write_layout(tree, layout, _Image(architecture, version, identity, directory, compressed))
        members = ["blobs", "index.json", "oci-layout"]
        _tar((*_ROOT, *_POSIX, _PAX), layout, members, path, identity)


@dataclass(frozen=True, slots=True)
class _Image:
    architecture: str
    version: str
    identity: Identity
    directory: str
    compressed: bool


def _write_layout(tree: Path, layout: Path, image: _Image) -> None:
    layer, diff_id = _write_layer(tree, layout, image)
    created = datetime.fromtimestamp(image.identity.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    platform = Platform(image.architecture, "linux")
    document: dict[str, Json] = {
        **platform.to_json(),
        "created": created,
        "config": {"Labels": {"version": image.version}},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "rehydrator variants"}],
    }
    config = _write_document(layout, CONFIG, document)
    manifest: dict[str, Json] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.to_json(),
        "layers": [layer.to_json()],
    }
    made = _write_document(layout, MANIFEST, manifest)
    entry = Descriptor(made.media_type, made.digest, made.size, (), platform).to_json()
    index: dict[str, Json] = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    (layout / "index.json").write_bytes(encode(index, "index.json"))
    (layout / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}, "oci-layout"))


def _write_layer(tree: Path, layout: Path, image: _Image) -> tuple[Descriptor, str]:
    """The layer's blob and the digest of its archive before compression."""
    plain = layout.with_name("layer.tar")
    _tar((*_KUBEVIRT, *_POSIX, _PAX), tree, [image.directory], plain, image.identity)
    measured = tools.measure(plain)
    diff_id = f"sha256:{measured.sha256}"
    if not image.compressed:
        return _take_blob(layout, plain, LAYER, measured), diff_id
    packed = layout.with_name("layer.tar.gz")
    with packed.open("wb") as out:
        tools.run(["gzip", "--no-name", "-c", str(plain)], _TIMEOUT, packed, stdout=out)
    plain.unlink()
    return _take_blob(layout, packed, LAYER_GZIP, tools.measure(packed)), diff_id


def _write_document(layout: Path, media_type: str, document: dict[str, Json]) -> Descriptor:
    path = layout.with_name("document.json")
    path.write_bytes(encode(document, media_type))
    return _take_blob(layout, path, media_type, tools.measure(path))


def _take_blob(layout: Path, path: Path, media_type: str, measured: tools.Measured) -> Descriptor:
    path.replace(layout / BLOBS / measured.sha256)
    return Descriptor(media_type, f"sha256:{measured.sha256}", measured.size)


def _pack_ova(
    options: Sequence[str],
    disk: Path,
    target: Path,
    text: str,
    identity: Identity,
    disk_name: str,
    ovf_name: str,
) -> None:
    with tools.workplace(target) as place, tools.new_file(target) as path:
        (place / ovf_name).write_text(text, encoding="utf-8")
        (place / disk_name).symlink_to(tools.absolute(disk))
        _tar((*_ROOT, *options), place, [ovf_name, disk_name], path, identity)


def _descriptor(template: Template, values: Mapping[str, str], size: int, capacity: int, disk: str) -> str:
    """The template, filled."""
    own = {"vmdk_size": str(size), "vmdk_capacity": str(capacity), "disk_name": disk}
    filling = {**values, **own}
    asked = _PLACEHOLDER.findall(template.text)
    for name in _REQUIRED:
        if name not in asked:
            raise UsageError(f"template {template.name}: {{{name}}} is missing, which every OVF needs")
    for name in asked:
        if name not in filling:
            raise UsageError(
                f"template {template.name}: no value for {{{name}}}; give it under `values` of the platform"
            )
    spelt = {name: escape(value, {'"': "&quot;", "'": "&apos;"}) for name, value in filling.items()}
    text = _PLACEHOLDER.sub(lambda found: spelt[found[1]], template.text)
    try:
        expat.ParserCreate().Parse(text.encode(), True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise UsageError(f"template {template.name}: not well-formed XML when filled: {error}") from None
    return text


def _text(data: bytes, name: str) -> str:
    try:
        if len(data) <= _MAX_TEMPLATE:
            return data.decode()
    except UnicodeDecodeError:
        pass
    raise UsageError(f"template {name}: not a text in UTF-8 of at most {_MAX_TEMPLATE} bytes")


def _size(path: Path) -> int:
    return tools.absolute(path).stat().st_size


def _dig(disk: Path) -> None:
    """Holes for blocks of zeros. File systems without holes keep the disk as it is."""
    host.run(["fallocate", "--dig-holes", str(tools.absolute(disk))], _TIMEOUT)


def _tar(
    options: Sequence[str], root: Path, members: Sequence[str], target: Path, identity: Identity
) -> None:
    """An archive of members below `root`, links followed: files of mode 0644, directories 0755."""
    argv = ["tar", *options, f"--mtime=@{identity.epoch}", "--mode=a-x,u=rwX,go=rX", "--force-local"]
    argv += ["-C", str(root), "-c", "-h", "-f", str(target), "--", *members]
    tools.run(argv, _TIMEOUT, target)
