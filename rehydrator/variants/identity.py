"""Identifiers and times inside of disk formats, from a release's name instead of chance.

qemu-img writes random identifiers and the time of day into VMDK, VHD and VHDX. Here they are
replaced by what follows from a name, so that a second run gives the same bytes. Measured with
qemu-img 7.2, the same disk converted twice, these bytes differ, and all of them are set:

    VMDK   the CID of the descriptor; it is written without leading zeros, and so one digit
           less, one time in sixteen, moves the rest of the text
    VHD    time, identifier and checksum of the footer, and of its copy at byte 0
    VHDX   of both headers the sequence number, two identifiers, the checksum; the page 83
           identifier; identifier and checksum of the entry that lies in the log, which is
           empty by its header: the log becomes zeros

Everything is checked before the first byte is written, in place.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import HostileInput, UsageError
from rehydrator.formats import c_vhd, c_vhdx, c_vmdk, vhd, vhdx, vmdk
from rehydrator.formats.explanation import refuse_short, require
from rehydrator.store.files import FileReader
from rehydrator.variants.tools import from_system

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rehydrator.core.reader import Reader

Edit = tuple[int, bytes]  # file offset, new bytes

_NAMES: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "variants.rehydrator")
_MAX_EPOCH: Final = 1 << 32  # gzip's and VHD's times are of 32 bits
_VHD_EPOCH: Final = 946_684_800  # 2000-01-01 00:00:00 UTC ("Hard Disk Footer Format", Time Stamp)
_CID_DIGITS: Final = 8
_NO_CID: Final = 0xFFFFFFFE  # qemu's "changing"; one above it is "no parent"
_CID: Final = re.compile(rb"^CID=[0-9A-Fa-f]{1,8}(?=\r?$)", re.MULTILINE)
_LOG_PIECE: Final = 1 << 20
_MAX_LOG: Final = 64 << 20  # qemu-img makes logs of 1 MiB unless told otherwise


@dataclass(frozen=True)
class Identity:
    """What identifiers follow from: a name such as "fedora-coreos 44.20260707.3.1 x86_64 aws",
    and a time in seconds since 1970 (SOURCE_DATE_EPOCH).

    Raises:
        UsageError: a time before 1970 or after 2106, which the formats cannot hold.
    """

    namespace: str
    epoch: int

    def __post_init__(self) -> None:
        if not 0 <= self.epoch < _MAX_EPOCH:
            raise UsageError(
                f"SOURCE_DATE_EPOCH={self.epoch}: give seconds since 1970, below {_MAX_EPOCH}: "
                "disk formats and archives hold no other time"
            )

    def uuid(self, what: str) -> uuid.UUID:
        """The identifier of one thing (RFC 9562, version 5)."""
        return uuid.uuid5(_NAMES, f"{self.namespace}\n{what}")

    def number32(self, what: str) -> int:
        """A number of 32 bits that a VMDK may have as its content identifier: none of those
        that mean something else, 0, 0xfffffffe and 0xffffffff."""
        return self.uuid(what).int % (_NO_CID - 1) + 1


def set_identity(path: Path, format_name: str, identity: Identity) -> None:
    """Give a disk that qemu-img made its identifiers and time, in place. `format_name` is
    qemu-img's; formats without such fields are left as they are.

    Raises:
        HostileInput: the file is not a whole and sound one of its format.
        RehydratorError: it cannot be read or written.
    """
    if format_name in _SETTERS:
        _SETTERS[format_name](path, identity)


def set_vmdk_identity(path: Path, identity: Identity) -> None:
    """The content identifier of a streamOptimized or monolithicSparse VMDK; as set_identity."""
    _edit(path, lambda file: _vmdk(file, identity))


def set_vhd_identity(path: Path, identity: Identity) -> None:
    """Time and identifier of a fixed or dynamic VHD; as set_identity. Times before 2000, which
    the format has not, become its first second."""
    _edit(path, lambda file: _vhd(file, identity))


def set_vhdx_identity(path: Path, identity: Identity) -> None:
    """Sequence numbers and identifiers of a VHDX; as set_identity."""
    _edit(path, lambda file: _vhdx(file, identity))


_SETTERS: Final = {"vmdk": set_vmdk_identity, "vpc": set_vhd_identity, "vhdx": set_vhdx_identity}


def _edit(path: Path, edits: Callable[[Reader], Iterator[Edit]]) -> None:
    try:
        file = FileReader(path)
        try:
            found = list(edits(file))
        finally:
            file.close()
        with path.open("r+b") as out:
            for offset, data in found:
                out.seek(offset)
                out.write(data)
    except HostileInput as error:
        raise HostileInput(f"{path}: {error}; its identifiers cannot be set") from None
    except OSError as error:
        raise from_system(error, path) from None


def _vmdk(file: Reader, identity: Identity) -> Iterator[Edit]:
    """The descriptor, its CID of eight digits whatever it had ("The Header" of Virtual Disk
    Format 1.1 has it in hexadecimal), and zeros up to its end as before."""
    header = vmdk.read_header(file)
    vmdk.read_create_type(file, header)
    offset, size = header.descriptor_offset * c_vmdk.SECTOR, header.descriptor_size * c_vmdk.SECTOR
    text, _, rest = refuse_short(file, offset, size, "descriptor").partition(b"\0")
    # qemu-img writes the text again with another CID, which may have fewer digits: behind its end
    # is then the end of the longer one (measured with 7.2: 11 disks of 1,500).
    stale = rest.rstrip(b"\0")
    require(len(stale) < _CID_DIGITS and text.endswith(stale), "more than zeros behind the descriptor's text")
    new, count = _CID.subn(b"CID=%08x" % identity.number32("vmdk cid"), text)
    require(count == 1, f"{count} lines CID=… in the descriptor")
    require(len(new) <= size, "a descriptor without space for its CID")
    yield offset, new.ljust(size, b"\0")


def _vhd(file: Reader, identity: Identity) -> Iterator[Edit]:
    """The footer and, of a dynamic disk, its copy at byte 0."""
    found = vhd.find_footer(file)
    require(found is not None, "no footer with a good checksum")
    end = file.size - c_vhd.FOOTER.size
    old = file.pread(end, c_vhd.FOOTER.size)
    footer = c_vhd.Footer._make(c_vhd.FOOTER.unpack(old))
    require(footer == found, "no good footer at the end")
    require(footer.version == c_vhd.VERSION, f"version {footer.version:#x}")
    require(footer.disk_type in {c_vhd.FIXED, c_vhd.DYNAMIC}, f"disk type {footer.disk_type}")
    new = _vhd_footer(footer, identity)
    yield end, new
    if footer.disk_type == c_vhd.DYNAMIC:
        require(file.pread(0, len(old)) == old, "the footer and its copy differ")
        yield 0, new


def _vhd_footer(footer: c_vhd.Footer, identity: Identity) -> bytes:
    changed = footer._replace(
        timestamp=max(0, identity.epoch - _VHD_EPOCH),
        unique_id=identity.uuid("vhd unique id").bytes,
        checksum=0,
    )
    blank = c_vhd.FOOTER.pack(*changed)
    sealed = changed._replace(checksum=c_vhd.checksum(blank, c_vhd.FOOTER_CHECKSUM))
    return c_vhd.FOOTER.pack(*sealed)


def _vhdx(file: Reader, identity: Identity) -> Iterator[Edit]:
    require(vhdx.recognise(file), "no VHDX signature")
    active = vhdx.read_active_header(file)
    require(active.version == c_vhdx.VERSION, f"version {active.version}")
    require(active.log_id == c_vhdx.NO_LOG, "a dirty log, which must be replayed first")
    regions = vhdx.read_regions(file)
    yield from _vhdx_headers(file, active, identity)
    yield from _vhdx_log(file, active, list(regions.values()))
    yield _vhdx_page_83(file, regions[c_vhdx.METADATA], identity)


def _vhdx_headers(file: Reader, active: c_vhdx.Header, identity: Identity) -> Iterator[Edit]:
    """Both headers ([MS-VHDX] 2.2.2): the active one keeps the higher sequence number. The
    identifier of the last write of guest data is each header's own, as with qemu."""
    for at in c_vhdx.HEADERS_AT:
        raw = refuse_short(file, at, c_vhdx.HEADER_SIZE, "a header")
        require(vhdx.is_good(raw, c_vhdx.HEADER_SIGNATURE), f"no good header at byte {at}")
        header = c_vhdx.Header._make(c_vhdx.HEADER.unpack_from(raw))
        is_active = header.sequence == active.sequence
        changed = header._replace(
            checksum=0,
            sequence=identity.number32("vhdx sequence") + is_active,
            file_write_id=identity.uuid("vhdx file write").bytes_le,
            data_write_id=identity.uuid(f"vhdx data write {int(is_active)}").bytes_le,
        )
        blank = c_vhdx.HEADER.pack(*changed) + raw[c_vhdx.HEADER.size :]
        sealed = changed._replace(checksum=c_vhdx.checksum(blank))
        yield at, c_vhdx.HEADER.pack(*sealed)


def _vhdx_log(file: Reader, active: c_vhdx.Header, regions: list[c_vhdx.Region]) -> Iterator[Edit]:
    """Zeros for what is left in the log, which the header's log identifier of zero calls empty
    ([MS-VHDX] 2.3)."""
    start, end = active.log_offset, active.log_offset + active.log_length
    require(not start % c_vhdx.MIB and not end % c_vhdx.MIB, "the log is not at whole MiB")
    require(active.log_length <= _MAX_LOG, f"a log of {active.log_length} bytes, above the limit")
    require(start >= c_vhdx.MIB and end <= file.size, "the log lies outside of the file")
    apart = all(end <= other.offset or other.offset + other.length <= start for other in regions)
    require(apart, "the log overlaps another region")
    for at in range(start, end, _LOG_PIECE):
        used = len(file.pread(at, min(_LOG_PIECE, end - at)).rstrip(b"\0"))
        if used:
            yield at, bytes(used)


def _vhdx_page_83(file: Reader, region: c_vhdx.Region, identity: Identity) -> Edit:
    """The disk's SCSI identifier ([MS-VHDX] 2.6.2.6)."""
    item = vhdx.read_items(file, region).get(c_vhdx.PAGE_83_DATA)
    require(item is not None, "no page 83 data")
    assert item is not None
    new = identity.uuid("vhdx page 83").bytes_le
    inside = c_vhdx.ITEMS_SIZE <= item.offset <= region.length - len(new)
    require(inside and item.length == len(new), "the page 83 data lies outside of its region")
    return region.offset + item.offset, new
