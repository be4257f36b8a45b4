"""A GPT disk in a file, for sectors of 512 or 4,096 bytes: BIOS boot partition, EFI system partition,
ext4 /boot, root.

Everything but the loop mounts of the os release works without root: filesystems are written at
their offset by their own tools.
"""

from __future__ import annotations

import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from tests.corpus.programs import run

MIB = 1 << 20
SECTOR = 512
BIG_SECTOR = 4096
GRUB = Path("/usr/lib/grub")
# What reading grub.cfg from an ext4 partition and starting Linux takes; nothing is loaded from the disk.
_GRUB_MODULES = (
    "biosdisk",
    "part_gpt",
    "ext2",
    "normal",
    "configfile",
    "linux",
    "serial",
    "terminal",
    "test",
)
_NAMESPACE = UUID("00000000-0000-4000-a000-000000000001")
_TYPES = {
    "BIOS-BOOT": "21686148-6449-6E6F-744E-656564454649",
    "EFI-SYSTEM": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    "boot": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    "root": "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
}


_ENTRIES = 128  # of a GPT


@dataclass(frozen=True)
class Partition:
    """Offset and length in bytes."""

    offset: int
    length: int


class Disk:
    """A raw disk file and its four partitions."""

    def __init__(self, path: Path, sizes: dict[str, int], seed: int = 0, sector: int = SECTOR) -> None:
        """Write the partition table; `sizes` gives MiB for EFI-SYSTEM, boot and root.

        The identifiers come from `seed`, so that every sibling has the same, as CoreOS's have. The file
        systems, too, are made for sectors of `sector` bytes.
        """
        self.path, self.seed, self.sector = path, seed, sector
        self.partitions: dict[str, Partition] = {}
        at = MIB
        for label, size in {"BIOS-BOOT": 1, **sizes}.items():
            self.partitions[label] = Partition(at, size * MIB)
            at += size * MIB
        with path.open("wb") as file:
            file.truncate(at + MIB)
        if sector == SECTOR:
            self._write_table()
        else:
            self._write_big_table(at + MIB)

    def uuid(self, what: str) -> str:
        """The identifier of a filesystem or partition."""
        return str(uuid5(_NAMESPACE, f"{what} {self.seed}"))

    def _write_table(self) -> None:
        lines = ["label: gpt", f"label-id: {self.uuid('disk')}"]
        lines += [
            f"start={part.offset // SECTOR}, size={part.length // SECTOR}, type={_TYPES[label]}, "
            f'uuid={self.uuid("partition " + label)}, name="{label}"'
            for label, part in self.partitions.items()
        ]
        subprocess.run(["sfdisk", "--quiet", self.path], input="\n".join(lines), text=True, check=True)

    def _write_big_table(self, size: int) -> None:
        """A GPT for sectors of 4,096 bytes, of which sfdisk 2.38 does not know (UEFI 2.10, section 5.3)."""
        last = size // BIG_SECTOR - 1
        entries = b"".join(
            struct.pack(
                "<16s16sQQQ72s",
                UUID(_TYPES[label]).bytes_le,
                UUID(self.uuid("partition " + label)).bytes_le,
                part.offset // BIG_SECTOR,
                (part.offset + part.length) // BIG_SECTOR - 1,
                0,
                label.encode("utf-16-le"),
            )
            for label, part in self.partitions.items()
        ).ljust(_ENTRIES * 128, b"\0")
        blocks = len(entries) // BIG_SECTOR
        first, end = 2 + blocks, last - blocks - 1
        protective = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, last)
        with self.path.open("r+b") as file:
            file.write(bytes(446) + protective + bytes(48) + b"\x55\xaa")
            for here, other, table in ((1, last, 2), (last, 1, end + 1)):
                fields = (here, other, first, end, UUID(self.uuid("disk")).bytes_le, table)
                header = _gpt_header(fields, entries, 0)
                file.seek(here * BIG_SECTOR)
                file.write(_gpt_header(fields, entries, zlib.crc32(header)))
                file.seek(table * BIG_SECTOR)
                file.write(entries)

    def make_efi(self, files: dict[str, Path]) -> None:
        """A FAT filesystem; `files` maps paths inside it to files of the host."""
        part = self.partitions["EFI-SYSTEM"]
        image = f"{self.path}@@{part.offset}"
        volume = self.uuid("EFI-SYSTEM")[:8]
        # mformat's size code: sectors of 2 ^ (code + 7) bytes.
        geometry = ["-S", str(self.sector.bit_length() - 8), "-T", str(part.length // self.sector)]
        run("mformat", "-i", image, *geometry, "-v", "EFI-SYSTEM", "-N", volume, "::")
        made: set[str] = set()
        for inside, source in files.items():
            folders = [str(parent) for parent in reversed(Path(inside).parents)][1:]
            for folder in folders:
                if folder not in made:
                    run("mmd", "-i", image, f"::{folder}")
                    made.add(folder)
            run("mcopy", "-m", "-i", image, source, f"::{inside}")

    def make_ext4(self, label: str, tree: Path) -> None:
        """An ext4 filesystem filled from a directory; the root's blocks have 4 KiB, as XFS's have, and
        so has every block on large sectors."""
        part = self.partitions[label]
        uuid = self.uuid(label)
        extended = f"offset={part.offset},hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,nodiscard"
        size = f"{part.length // 1024}k"
        block = ["-b", "4096"] if label == "root" or self.sector == BIG_SECTOR else []
        run(
            "mkfs.ext4",
            "-q",
            "-F",
            *block,
            "-U",
            uuid,
            "-L",
            label,
            "-E",
            extended,
            "-d",
            tree,
            self.path,
            size,
        )

    def make_xfs(self, label: str, tree: Path) -> None:
        """An XFS filesystem filled from a directory through a protofile; at least 300 MiB."""
        image, proto = self.path.with_suffix(".xfs"), self.path.with_suffix(".proto")
        proto.write_text("/\n0 0\nd--755 0 0\n" + "".join(_proto_lines(tree)) + "$\n")
        self.format_xfs(label, image, "-p", str(proto))
        self.place(label, image)
        proto.unlink()

    def format_xfs(self, label: str, image: Path, *options: str) -> None:
        """Write the partition's XFS filesystem into a file of its own."""
        with image.open("wb") as file:
            file.truncate(self.partitions[label].length)
        sector = f"size={self.sector}"
        run(
            "mkfs.xfs",
            "-q",
            "-f",
            "-s",
            sector,
            "-L",
            label,
            "-m",
            f"uuid={self.uuid(label)}",
            *options,
            image,
        )

    def place(self, label: str, image: Path) -> None:
        """Move a filesystem's file into its partition; zeros stay holes."""
        seek = f"seek={self.partitions[label].offset // MIB}"
        run("dd", f"if={image}", f"of={self.path}", seek, "bs=1M", "conv=notrunc,sparse")
        image.unlink()

    def embed_grub(self) -> None:
        """Make the disk start GRUB on a BIOS machine, without a device: what grub-bios-setup writes.

        boot.img (512 bytes) goes around the protective partition table of sector 0; the sector of
        core.img is the 64-bit number at 0x5c. The last 12 bytes of core.img's first sector say where
        the rest lies: sector (64 bits), count, segment (GRUB 2.06, include/grub/i386/pc/boot.h).
        """
        core_file = self.path.with_suffix(".core")
        prefix = "(hd0,gpt3)/grub2"
        run("grub-mkimage", "-O", "i386-pc", "-p", prefix, "-o", core_file, *_GRUB_MODULES)
        core = bytearray(core_file.read_bytes())
        core_file.unlink()
        sector = self.partitions["BIOS-BOOT"].offset // SECTOR
        struct.pack_into("<QHH", core, SECTOR - 12, sector + 1, -(-len(core) // SECTOR) - 1, 0x820)
        boot = bytearray((GRUB / "i386-pc/boot.img").read_bytes())
        struct.pack_into("<Q", boot, 0x5C, sector)
        with self.path.open("r+b") as file:
            old = file.read(SECTOR)
            file.seek(0)
            file.write(boot[:0x1B8] + old[0x1B8:])
            file.seek(sector * SECTOR)
            file.write(core)


def _gpt_header(fields: tuple[object, ...], entries: bytes, crc: int) -> bytes:
    """UEFI 2.10, table 5.5: the CRC-32 is that of the header with zeros in its place."""
    start = struct.pack("<8sIIII", b"EFI PART", 0x10000, 92, crc, 0)
    return start + struct.pack("<QQQQ16sQ", *fields) + struct.pack("<III", _ENTRIES, 128, zlib.crc32(entries))


def _proto_lines(folder: Path) -> list[str]:
    """The entries of one directory in mkfs.xfs's protofile language."""
    lines = []
    for entry in sorted(folder.iterdir()):
        mode = f"{entry.stat().st_mode & 0o777:03o}"
        if entry.is_dir():
            lines += [f"{entry.name} d--{mode} 0 0\n", *_proto_lines(entry), "$\n"]
        else:
            lines.append(f"{entry.name} ---{mode} 0 0 {entry}\n")
    return lines
