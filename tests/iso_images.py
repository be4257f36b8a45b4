"""Makes ISO 9660 images of any block size, record by record."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

SECTOR = 2048
DIRECTORY, MULTI_EXTENT = 0x02, 0x80
CATALOGUE_SECTOR, FIRST_SECTOR = 22, 24

# A file's bytes, or those of its extents; or a directory.
Node = bytes | list[bytes] | dict[bytes, "Node"]


def both32(value: int) -> bytes:
    return struct.pack("<I", value) + struct.pack(">I", value)


def both16(value: int) -> bytes:
    return struct.pack("<H", value) + struct.pack(">H", value)


def record(name: bytes, block: int, size: int, flags: int = 0, extra: bytes = b"") -> bytes:
    body = b"\0" + both32(block) + both32(size) + bytes(7) + bytes([flags, 0, 0]) + both16(1)
    body += bytes([len(name)]) + name + b"\0" * (1 - len(name) % 2) + extra
    body += b"\0" * ((len(body) + 1) % 2)
    return bytes([len(body) + 1]) + body


def entry(signature: bytes, body: bytes) -> bytes:
    """A system use entry."""
    return signature + bytes([4 + len(body), 1]) + body


SP = entry(b"SP", b"\xbe\xef\0")


def nm(name: bytes, flags: int = 0) -> bytes:
    return entry(b"NM", bytes([flags]) + name)


def px(mode: int) -> bytes:
    return entry(b"PX", both32(mode) + both32(1) + both32(0) + both32(0))


def ce(block: int, offset: int, length: int) -> bytes:
    return entry(b"CE", both32(block) + both32(offset) + both32(length))


@dataclass
class Made:
    """An image, and the byte offsets of directories and files by path."""

    image: bytes
    places: dict[bytes, int] = field(default_factory=dict)


class _Maker:
    def __init__(self, block: int, extras: dict[bytes, bytes]) -> None:
        self.block, self.extras = block, extras
        self.out = bytearray(FIRST_SECTOR * SECTOR)
        self.places: dict[bytes, int] = {}
        self.extents: dict[bytes, list[tuple[int, int]]] = {}

    def reserve(self, size: int, unit: int) -> int:
        at = len(self.out)
        self.out += bytes(-(-size // unit) * unit)
        return at

    def files(self, tree: dict[bytes, Node], path: bytes = b"") -> None:
        for name, node in sorted(tree.items()):
            whole = path + name
            if isinstance(node, dict):
                self.files(node, whole + b"/")
                continue
            self.extents[whole] = []
            for data in node if isinstance(node, list) else [node]:
                at = self.reserve(len(data), self.block)
                self.out[at : at + len(data)] = data
                self.places.setdefault(whole, at)
                self.extents[whole].append((at, len(data)))

    def directory(self, tree: dict[bytes, Node], path: bytes, joliet: bool) -> tuple[int, int]:
        """Writes a directory and those below; its place and size."""
        below = {
            name: self.directory(node, path + name + b"/", joliet)
            for name, node in sorted(tree.items())
            if isinstance(node, dict)
        }
        rows = self._packed(self._rows(tree, path, below, (0, 0), joliet))
        at = self.reserve(len(rows), SECTOR)
        rows = self._packed(self._rows(tree, path, below, (at, len(rows)), joliet))
        self.out[at : at + len(rows)] = rows
        if not joliet:
            self.places[path.rstrip(b"/")] = at
        return at, len(rows)

    def _rows(
        self,
        tree: dict[bytes, Node],
        path: bytes,
        below: dict[bytes, tuple[int, int]],
        own: tuple[int, int],
        joliet: bool,
    ) -> list[bytes]:
        extra = b"" if joliet else self.extras.get(path + b".", b"")
        rows = [record(b"\0", own[0] // self.block, own[1], DIRECTORY, extra)]
        rows.append(record(b"\1", own[0] // self.block, own[1], DIRECTORY))
        for name, node in sorted(tree.items()):
            shown = name.decode().encode("utf-16-be") if joliet else name
            extra = b"" if joliet else self.extras.get(path + name, b"")
            if isinstance(node, dict):
                at, size = below[name]
                rows.append(record(shown, at // self.block, size, DIRECTORY, extra))
                continue
            extents = self.extents[path + name]
            for k, (at, size) in enumerate(extents):
                flags = MULTI_EXTENT if k < len(extents) - 1 else 0
                rows.append(record(shown, at // self.block, size, flags, extra))
        return rows

    @staticmethod
    def _packed(rows: list[bytes]) -> bytes:
        """Records in sectors, of which none is crossed."""
        out = b""
        for row in rows:
            if len(out) % SECTOR + len(row) > SECTOR:
                out += bytes(-len(out) % SECTOR)
            out += row
        return out + bytes(-len(out) % SECTOR)


def descriptor(
    kind: int, root: bytes, size: int, block: int, *, version: int = 1, escapes: bytes = b""
) -> bytes:
    out = bytearray(SECTOR)
    out[0:7] = bytes([kind]) + b"CD001" + bytes([version])
    out[40:72] = b"VOLUME".ljust(32)
    out[80:88] = both32(size // block)
    out[88:120] = escapes.ljust(32, b"\0")
    out[120:128] = both16(1) + both16(1)
    out[128:132] = both16(block)
    out[156:190] = root
    return bytes(out)


def boot_record(sector: int) -> bytes:
    out = b"\0CD001\1" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", sector)
    return out.ljust(SECTOR, b"\0")


def catalogue(*entries: bytes) -> bytes:
    """A boot catalogue: the validation entry, and then these."""
    head = bytearray(b"\1\0\0\0" + b"maker".ljust(24, b"\0") + b"\0\0\x55\xaa")
    head[28:30] = struct.pack("<H", -sum(struct.unpack("<16H", head)) % 65536)
    return (bytes(head) + b"".join(entries)).ljust(SECTOR, b"\0")


def boot_entry(sector: int, units: int, media: int = 0) -> bytes:
    return struct.pack("<BBHBBHI20s", 0x88, media, 0, 0, 0, units, sector, b"")


def section(count: int, platform: int = 0xEF, *, last: bool = True) -> bytes:
    return struct.pack("<BBH28s", 0x91 if last else 0x90, platform, count, b"")


def make(
    tree: dict[bytes, Node],
    *,
    block: int = SECTOR,
    extras: dict[bytes, bytes] | None = None,
    joliet: dict[bytes, Node] | None = None,
    boot: bytes = b"",
    tail: bytes = b"",
) -> Made:
    """An image of the tree. `joliet` is the tree that Joliet lists, whose files are those of
    `tree` by path; `extras` are system use fields by path ("." at a directory's end: its own
    record); `boot` is a catalogue, and `tail` what comes last."""
    maker = _Maker(block, extras or {})
    maker.files(tree)
    if joliet is not None:
        maker.files({name: node for name, node in joliet.items() if name not in tree})
    root = maker.directory(tree, b"", joliet=False)
    second = maker.directory(joliet, b"", joliet=True) if joliet is not None else None
    maker.places[b"[tail]"] = len(maker.out)
    maker.out += tail + bytes(-len(tail) % SECTOR)
    size = len(maker.out)
    rows = [descriptor(1, record(b"\0", root[0] // block, root[1], DIRECTORY), size, block)]
    if boot:
        rows.append(boot_record(CATALOGUE_SECTOR))
        maker.out[CATALOGUE_SECTOR * SECTOR : (CATALOGUE_SECTOR + 1) * SECTOR] = boot
    if second is not None:
        other = record(b"\0", second[0] // block, second[1], DIRECTORY)
        rows.append(descriptor(2, other, size, block, escapes=b"%/E"))
    rows.append(b"\xffCD001\1".ljust(SECTOR, b"\0"))
    whole = b"".join(rows)
    maker.out[16 * SECTOR : 16 * SECTOR + len(whole)] = whole
    return Made(bytes(maker.out), maker.places)
