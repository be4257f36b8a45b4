"""Identifiers and times of VMDK, VHD and VHDX follow from a name; nothing else of a file changes."""

from __future__ import annotations

import random
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.core.errors import HostileInput, RehydratorError, UsageError
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_vhd, c_vhdx, explain, vhdx
from rehydrator.variants.identity import (
    Identity,
    set_identity,
    set_vhd_identity,
    set_vhdx_identity,
    set_vmdk_identity,
)
from tests import vhd_images, vhdx_images, vmdk_images
from tests.suites.explained import check_explanation
from tests.vmdk_images import Dialect

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCH = 1_700_000_000
IDENTITY = Identity("demo 1.0 x86_64 aws", EPOCH)
OTHER = Identity("demo 1.0 x86_64 azure", EPOCH)
DICE = random.Random(3)
GUEST = DICE.randbytes(5000).ljust(1 << 20, b"\0") + DICE.randbytes(4096).ljust(1 << 20, b"\0")

IMAGES = {
    "vmdk": ("vmdk", vmdk_images.write(GUEST, Dialect())),
    "vmdk-end": ("vmdk", vmdk_images.write(GUEST, Dialect(tables_at_end=True))),
    "vmdk-plain": ("vmdk", vmdk_images.write(GUEST, Dialect(encode=None))),
    "vhd-fixed": ("vpc", vhd_images.fixed(GUEST)),
    "vhd-dynamic": ("vpc", vhd_images.dynamic(GUEST)),
    "vhdx": ("vhdx", vhdx_images.vhdx(GUEST)),
}


def given_identity(path: Path, data: bytes, format_name: str, identity: Identity = IDENTITY) -> bytes:
    """The file after the edit."""
    path.write_bytes(data)
    set_identity(path, format_name, identity)
    return path.read_bytes()


def refused(path: Path, data: bytes, edit: Callable[[Path, Identity], None]) -> str:
    """What is said when an edit is refused; the file must be as before."""
    path.write_bytes(data)
    with pytest.raises(HostileInput) as caught:
        edit(path, IDENTITY)
    assert data == path.read_bytes()
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    at %= len(data)
    return data[:at] + new + data[at + len(new) :]


def test_names_give_numbers() -> None:
    """Identifiers differ by name and by thing, not by time; numbers are none that a VMDK reserves."""
    assert IDENTITY.uuid("a") == Identity(IDENTITY.namespace, 5).uuid("a")
    assert len({IDENTITY.uuid("a"), IDENTITY.uuid("b"), OTHER.uuid("a")}) == 3
    assert IDENTITY.uuid("a").version == 5
    numbers = {IDENTITY.number32(str(k)) for k in range(1000)}
    assert len(numbers) == 1000
    assert 0 < min(numbers) <= max(numbers) < 0xFFFFFFFE


def test_names_are_stable() -> None:
    """Golden values: a change here changes every VMDK, VHD and VHDX that anybody makes again."""
    assert IDENTITY.uuid("vhd unique id") == uuid.UUID("93b5d273-c3f1-54bd-bb74-51aa9e485647")
    assert IDENTITY.number32("vmdk cid") == 0x421003E8


@pytest.mark.parametrize("epoch", [-1, 1 << 32])
def test_times_out_of_range(epoch: int) -> None:
    """gzip, tar and VHD hold no time before 1970 or after 2106."""
    with pytest.raises(UsageError, match=f"SOURCE_DATE_EPOCH={epoch}"):
        Identity("x", epoch)


@pytest.mark.parametrize("name", IMAGES)
def test_still_explained(name: str, tmp_path: Path) -> None:
    """The edited file has the same size and guest, and is explained as before."""
    format_name, data = IMAGES[name]
    made = given_identity(tmp_path / "disk", data, format_name)
    assert len(made) == len(data)
    assert made != data
    file = BytesReader(made)
    check_explanation(explain(file), file, GUEST)


@pytest.mark.parametrize("name", IMAGES)
def test_twice_is_once(name: str, tmp_path: Path) -> None:
    """The edit does not depend on what was there before; another name gives another file."""
    format_name, data = IMAGES[name]
    once = given_identity(tmp_path / "disk", data, format_name)
    other = given_identity(tmp_path / "disk", once, format_name, OTHER)
    assert other != once
    assert given_identity(tmp_path / "disk", other, format_name) == once


@pytest.mark.parametrize("format_name", ["raw", "qcow2"])
def test_formats_without_identifiers(format_name: str, tmp_path: Path) -> None:
    """raw and qcow2 stay as they are."""
    assert given_identity(tmp_path / "disk", b"anything", format_name) == b"anything"


# ---- VMDK


@pytest.mark.parametrize("digits", [b"1", b"f0e0d0c", b"0f0e0d0c", b"FFFFFFFE"])
def test_cid_of_any_length(digits: bytes, tmp_path: Path) -> None:
    """qemu-img writes the CID without leading zeros; with any number of digits the result is one."""
    name, data = IMAGES["vmdk"]
    old = data[512 : 512 * 21].rstrip(b"\0")
    text = old.replace(b"CID=0f0e0d0c", b"CID=" + digits, 1) + b"\0"
    # As qemu-img: over the text with the longer CID, whose end stays.
    given_one = data[:512] + (text + old[len(text) :]).ljust(512 * 20, b"\0") + data[512 * 21 :]
    made = given_identity(tmp_path / "disk", given_one, name)
    assert made == given_identity(tmp_path / "disk", data, name)
    assert b"\nCID=%08x\nparentCID=ffffffff\n" % IDENTITY.number32("vmdk cid") in made


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"CID=0f0e0d0c", b"cid=0f0e0d0c", "0 lines CID"),
        (b"CID=0f0e0d0c", b"CID=0f0e0d0c\nCID=1", "2 lines CID"),
        (b"CID=0f0e0d0c", b"CID=0f0e0d0c11", "0 lines CID"),
        (b"parentCID=ffffffff", b"parentCID=00000001", "a parent disk"),
        (b"streamOptimized", b"twoGbMaxExtentSparse", "create type"),
        (b'"lsilogic"\n', b'"lsilogic"\n\0rubbish', "behind the descriptor's text"),
        (b'"lsilogic"\n', b'"lsilogic"\n\0silogic"\n', "behind the descriptor's text"),
    ],
)
def test_vmdk_refused(old: bytes, new: bytes, why: str, tmp_path: Path) -> None:
    """A descriptor that is not as qemu-img writes it."""
    data = IMAGES["vmdk"][1]
    text = data[512 : 512 * 21].rstrip(b"\0").replace(old, new, 1).ljust(512 * 20, b"\0")
    assert why in refused(tmp_path / "x", data[:512] + text + data[512 * 21 :], set_vmdk_identity)


def test_vmdk_descriptor_without_space(tmp_path: Path) -> None:
    """A descriptor that fills its sectors cannot take a longer CID."""
    data = IMAGES["vmdk"][1]
    text = data[512 : 512 * 21].rstrip(b"\0").replace(b"CID=0f0e0d0c", b"CID=1", 1)
    full = text.ljust(512 * 20, b"#")
    said = refused(tmp_path / "x", data[:512] + full + data[512 * 21 :], set_vmdk_identity)
    assert "without space" in said


# ---- VHD


@pytest.mark.parametrize("name", ["vhd-fixed", "vhd-dynamic"])
def test_vhd_fields(name: str, tmp_path: Path) -> None:
    """Time since 2000, identifier, checksum; in the copy too; nothing else."""
    data = IMAGES[name][1]
    made = given_identity(tmp_path / "disk", data, "vpc")
    footer = c_vhd.Footer._make(c_vhd.FOOTER.unpack(made[-512:]))
    assert footer.timestamp == EPOCH - 946_684_800
    assert footer.unique_id == IDENTITY.uuid("vhd unique id").bytes
    assert footer.checksum == c_vhd.checksum(made[-512:], c_vhd.FOOTER_CHECKSUM)
    before = c_vhd.Footer._make(c_vhd.FOOTER.unpack(data[-512:]))
    same = footer._replace(timestamp=before.timestamp, unique_id=before.unique_id, checksum=before.checksum)
    assert same == before
    if name == "vhd-dynamic":
        assert made[:512] == made[-512:]
        assert made[512:-512] == data[512:-512]
    else:
        assert made[:-512] == data[:-512]


def test_vhd_before_its_epoch(tmp_path: Path) -> None:
    """A time before 2000 becomes the first second of 2000."""
    made = given_identity(tmp_path / "disk", IMAGES["vhd-fixed"][1], "vpc", Identity("x", 5))
    assert c_vhd.Footer._make(c_vhd.FOOTER.unpack(made[-512:])).timestamp == 0


def test_fixed_vhd_with_a_footer_in_the_guest(tmp_path: Path) -> None:
    """Byte 0 of a fixed disk is the guest's, whatever it looks like."""
    guest = IMAGES["vhd-dynamic"][1]
    data = vhd_images.fixed(guest)
    assert given_identity(tmp_path / "disk", data, "vpc")[:-512] == guest


DYNAMIC = IMAGES["vhd-dynamic"][1]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no footer"),
        (DYNAMIC[:100], "no footer"),
        (DYNAMIC[:-512], "no good footer at the end"),
        (patched(DYNAMIC, -512, b"\0"), "no good footer at the end"),
        (patched(DYNAMIC, 27, b"\7"), "differ"),
        (vhd_images.dynamic(GUEST, disk_type=c_vhd.DIFFERENCING), "disk type 4"),
        (GUEST + vhd_images.footer(len(GUEST), c_vhd.FIXED, version=2), "version 0x2"),
    ],
)
def test_vhd_refused(data: bytes, why: str, tmp_path: Path) -> None:
    """A damaged or other VHD is refused and left alone."""
    assert why in refused(tmp_path / "x", data, set_vhd_identity)


# ---- VHDX


def test_vhdx_fields(tmp_path: Path) -> None:
    """Two good headers, the second still the active one; identifiers of the page 83 item."""
    data = IMAGES["vhdx"][1]
    made = given_identity(tmp_path / "disk", data, "vhdx")
    copies = [made[at : at + c_vhdx.HEADER_SIZE] for at in c_vhdx.HEADERS_AT]
    assert [vhdx.is_good(copy, c_vhdx.HEADER_SIGNATURE) for copy in copies] == [True, True]
    one, two = (c_vhdx.Header._make(c_vhdx.HEADER.unpack_from(copy)) for copy in copies)
    assert two.sequence == one.sequence + 1 == IDENTITY.number32("vhdx sequence") + 1
    assert one.file_write_id == two.file_write_id == IDENTITY.uuid("vhdx file write").bytes_le
    assert one.data_write_id != two.data_write_id
    assert made.count(IDENTITY.uuid("vhdx page 83").bytes_le) == 1
    assert bytes(range(16)) not in made


def test_vhdx_log_becomes_zeros(tmp_path: Path) -> None:
    """What lies in an empty log has a random identifier, and goes."""
    data = IMAGES["vhdx"][1]
    used = patched(data, c_vhdx.MIB, b"loge" + DICE.randbytes(8188))
    assert given_identity(tmp_path / "a", used, "vhdx") == given_identity(tmp_path / "b", data, "vhdx")


def test_vhdx_order_of_headers(tmp_path: Path) -> None:
    """The header that was active stays where it was."""
    data = IMAGES["vhdx"][1]
    first, second = (data[at : at + c_vhdx.HEADER_SIZE] for at in c_vhdx.HEADERS_AT)
    swapped = patched(patched(data, c_vhdx.HEADERS_AT[0], second), c_vhdx.HEADERS_AT[1], first)
    made = given_identity(tmp_path / "disk", swapped, "vhdx")
    one, two = (c_vhdx.Header._make(c_vhdx.HEADER.unpack_from(made, at)) for at in c_vhdx.HEADERS_AT)
    assert one.sequence == two.sequence + 1


def header_with(**fields: Any) -> bytes:
    """A VHDX whose two headers say something else."""
    data = IMAGES["vhdx"][1]
    for at in c_vhdx.HEADERS_AT:
        raw = data[at : at + c_vhdx.HEADER_SIZE]
        changed = c_vhdx.Header._make(c_vhdx.HEADER.unpack_from(raw))._replace(**fields)
        sealed = vhdx_images.seal(c_vhdx.HEADER.pack(*changed).ljust(c_vhdx.HEADER_SIZE, b"\0"))
        data = patched(data, at, sealed)
    return data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no VHDX signature"),
        (b"vhdxfile", "a header"),
        (patched(IMAGES["vhdx"][1], c_vhdx.HEADERS_AT[0] + 100, b"\1"), "no good header at byte 65536"),
        (header_with(version=2), "version 2"),
        (header_with(log_id=b"\1" * 16), "a dirty log"),
        (header_with(log_offset=c_vhdx.MIB + 1), "whole MiB"),
        (header_with(log_offset=0), "outside"),
        (header_with(log_offset=1 << 40), "outside"),
        (header_with(log_offset=2 * c_vhdx.MIB), "overlaps"),
        (header_with(log_length=128 << 20), "above the limit"),
    ],
)
def test_vhdx_refused(data: bytes, why: str, tmp_path: Path) -> None:
    """Damaged headers, and a log that is not where a log may be."""
    assert why in refused(tmp_path / "x", data, set_vhdx_identity)


def test_vhdx_without_page_83(tmp_path: Path) -> None:
    """The specification requires the item; it may not lie in the metadata table itself."""
    data = IMAGES["vhdx"][1]
    at = data.index(c_vhdx.PAGE_83_DATA)
    without = patched(patched(data, at, bytes(15) + b"\1"), at + 24, bytes(4))
    assert "no page 83" in refused(tmp_path / "x", without, set_vhdx_identity)
    moved = patched(data, at + 16, (32).to_bytes(4, "little"))
    assert "outside" in refused(tmp_path / "x", moved, set_vhdx_identity)


# ---- anything


def test_no_file(tmp_path: Path) -> None:
    """A missing file and a directory are errors of ours that name them."""
    with pytest.raises(RehydratorError, match="missing"):
        set_vmdk_identity(tmp_path / "missing", IDENTITY)
    with pytest.raises(RehydratorError, match=str(tmp_path)):
        set_vhdx_identity(tmp_path, IDENTITY)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(IMAGES)),
    format_name=st.sampled_from(["vmdk", "vpc", "vhdx"]),
    cut=st.none() | st.integers(0, 1 << 32),
    changes=st.lists(st.tuples(st.integers(0, 1 << 32), st.binary(min_size=1, max_size=9)), max_size=4),
    near=st.sampled_from([512, 4096, 200_000, 1 << 32]),
)
def test_hostile_files(
    name: str, format_name: str, cut: int | None, changes: list[tuple[int, bytes]], near: int
) -> None:
    """Cut and mutated files are edited without a change of size, or refused and left as they were."""
    data = IMAGES[name][1]
    for at, new in changes:
        data = patched(data, at % near, new)[: len(data)]
    if cut is not None:
        data = data[: cut % len(data)]
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "disk"
        path.write_bytes(data)
        try:
            set_identity(path, format_name, IDENTITY)
        except RehydratorError:
            assert path.read_bytes() == data
        assert path.stat().st_size == len(data)
