"""Makes cpio archives member by member."""

from __future__ import annotations


def member(name: bytes, data: bytes = b"", mode: int = 0o100644, /, **fields: int) -> bytes:
    """A member with its padding; `fields` are numbers of the header by name."""
    magic = b"070702" if "check" in fields else b"070701"
    names = (
        "ino",
        "mode",
        "uid",
        "gid",
        "nlink",
        "mtime",
        "filesize",
        "maj",
        "min",
        "rmaj",
        "rmin",
        "namesize",
    )
    values = {"nlink": 1, "mode": mode, "filesize": len(data), "namesize": len(name) + 1, **fields}
    header = magic + b"".join(b"%08X" % values.get(key, 0) for key in (*names, "check"))
    return padded(padded(header + name + b"\0") + data)


def padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)


TRAILER = member(b"TRAILER!!!", b"", 0)
