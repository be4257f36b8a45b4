"""The method of coreos-diskimage-rehydrator (2021), reproduced with the programs that it ran.

Everything is decompressed. One qcow2 is kept (zstd -10); every other disk is an rsync batch against
it (zstd -7), a streamOptimized VMDK and the one inside an OVA after conversion to qcow2; kernel,
initramfs and root file system are kept as they are, and the ISO is a batch against the root file
system. What comes back is never compressed again, and a VMDK is another conversion.

Rows are shell text, as in peers.py, with {base}, {plain} and {source} for the qcow2, the file and
what its batch is against, all decompressed, and {name} for the file's name.

Two changes, both in its favour: disks that it dropped or did not know (metal, Hyper-V, KubeVirt) are
batches, too; and rsync is told not to take files of equal size and time for equal (-I).
"""

from __future__ import annotations

from dataclasses import dataclass

from rehydrator.metadata.names import parse_name

HOME = "stored/2021"
START = f"zstd -q -10 -T0 {{base}} -o {HOME}/base.zst"
BASE = f"zstd -dq {HOME}/base.zst -o scratch/base"

_VMDK = "adapter_type=lsilogic,subformat=streamOptimized,compat6"
_BATCH = """mkdir scratch/old scratch/new
ln {{source}} scratch/old/{{name}}
{put} {target} scratch/new/{{name}}
rsync -rlI --only-write-batch=scratch/batch scratch/new/ scratch/old/
zstd -q -7 scratch/batch -o {home}/{{name}}.rdelta
rm -r scratch/old scratch/new scratch/batch scratch/batch.sh"""
_APPLY = """mkdir scratch/new
ln {source} scratch/new/{{name}}
zstd -dcq {home}/{{name}}.rdelta > scratch/batch
rsync -rlI --read-batch=scratch/batch scratch/new/
mv scratch/new/{{name}} {target}
rm -r scratch/new scratch/batch"""


@dataclass(frozen=True)
class Row:
    """How a file is added to the container, and how it comes out of it as scratch/back."""

    add: str
    out: str

    @property
    def back(self) -> str:
        """The same, hashed."""
        return f"{self.out}\nsha256sum scratch/back"


def _batch(target: str = "{plain}", put: str = "ln") -> str:
    return _BATCH.format(home=HOME, target=target, put=put)


def _apply(source: str = "scratch/base", target: str = "scratch/back") -> str:
    return _APPLY.format(home=HOME, source=source, target=target)


def _to_vmdk(target: str) -> str:
    return f"qemu-img convert -q -f qcow2 -O vmdk -o {_VMDK} scratch/disk {target}"


WHOLE = Row(f"cp {{plain}} {HOME}/{{name}}", f"cp {HOME}/{{name}} scratch/back")
BATCH = Row(_batch(), _apply())
VMDK = Row(
    f"qemu-img convert -q -f vmdk -O qcow2 {{plain}} scratch/disk\n{_batch('scratch/disk', 'mv')}",
    f"{_apply(target='scratch/disk')}\n{_to_vmdk('scratch/back')}",
)
OVA = Row(
    "mkdir scratch/ova\n"
    f"tar -xf {{plain}} -C scratch/ova\ntar -tf {{plain}} > {HOME}/{{name}}.members\n"
    f"cp scratch/ova/*.ovf {HOME}/{{name}}.ovf\n"
    "qemu-img convert -q -f vmdk -O qcow2 scratch/ova/*.vmdk scratch/disk\n"
    f"rm -r scratch/ova\n{_batch('scratch/disk', 'mv')}",
    f"{_apply(target='scratch/disk')}\nmkdir scratch/ova\n"
    f"{{{{ read -r ovf; read -r vmdk; }}}} < {HOME}/{{name}}.members\n"
    f'cp {HOME}/{{name}}.ovf "scratch/ova/$ovf"\n'
    f"{_to_vmdk('scratch/inner')}\n"
    'mv scratch/inner "scratch/ova/$vmdk"\n'
    f'tar --format=ustar -C scratch/ova -cf scratch/back "$ovf" "$vmdk"',
)


def row(name: str, rootfs: str = "") -> Row:
    """The row of a file by its name; `rootfs` is the (quoted) name of the root file system, if one is
    stored."""
    named = parse_name(name)
    if named.format == "pxe":
        return WHOLE
    if named.format == "iso" and rootfs:
        return iso(rootfs)
    kinds = {".vmdk": VMDK, ".ova": OVA}
    return next((each for end, each in kinds.items() if name.endswith(end)), BATCH)


def iso(rootfs: str) -> Row:
    """An ISO beside the root file system, which is stored under this (quoted) name."""
    return Row(_batch(), _apply(f"{HOME}/{rootfs}"))
