"""Layout of tar files: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block";
GNU tar 1.34 manual, appendix D "Tar Internals" (old GNU and PAX sparse formats).
"""

from __future__ import annotations

from typing import Final

BLOCK: Final = 512

# Fields of a header block.
SIZE: Final = slice(124, 136)
CHECKSUM: Final = slice(148, 156)
TYPE: Final = slice(156, 157)
MAGIC: Final = slice(257, 262)
USTAR: Final = b"ustar"  # "ustar\0" "00" in POSIX, "ustar " " \0" in old GNU

# Types of members.
REGULAR: Final = (b"0", b"\0", b"7")
WITHOUT_DATA: Final = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories, FIFOs
PAX: Final = b"x"
OLD_GNU_SPARSE: Final = b"S"

# Old GNU sparse header: four (offset, bytes) of 12 digits each; whether an extension block
# follows; the size of the file. An extension block: 21 more, and whether another follows.
SPARSE_AT: Final = 386
SPARSE_COUNT: Final = 4
SPARSE_EXTENDED: Final = 482
SPARSE_REAL_SIZE: Final = slice(483, 495)
EXTENSION_COUNT: Final = 21
EXTENSION_EXTENDED: Final = 504
DIGITS: Final = 12

# PAX records of sparse members: version 0.1 has its map in a record, 1.0 before the data.
PAX_SIZE: Final = b"size"
PAX_MAP: Final = b"GNU.sparse.map"
PAX_MAP_SIZE: Final = b"GNU.sparse.size"
PAX_MAJOR: Final = b"GNU.sparse.major"
PAX_MINOR: Final = b"GNU.sparse.minor"
PAX_REAL_SIZE: Final = b"GNU.sparse.realsize"
PAX_SPARSE: Final = b"GNU.sparse."


def padded(size: int) -> int:
    """The size rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def checksums(block: bytes) -> tuple[int, int]:
    """The sum of a header's bytes, unsigned and signed, its checksum field read as spaces.

    POSIX asks for unsigned bytes; some old writers added signed ones.
    """
    spaced = block[: CHECKSUM.start] + b" " * 8 + block[CHECKSUM.stop :]
    unsigned = sum(spaced)
    return unsigned, unsigned - 256 * sum(byte > 127 for byte in spaced)
