"""OVF templates, and what wrapping refuses before any program is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from rehydrator.core.errors import HostileInput, LimitExceeded, RehydratorError, UsageError
from rehydrator.variants import wrap
from rehydrator.variants.identity import Identity
from tests.conftest import names_in

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY = Identity("demo 1.0 x86_64 vmware", 1_700_000_000)
NAMES = {
    "vsphere_image_name": "demo-1.0-vmware.x86_64",
    "vsphere_product_name": "Demo",
    "vsphere_product_vendor_name": "Us",
    "vsphere_product_version": "1.0",
}
VALUES = {
    **NAMES,
    "vsphere_virtual_system_type": "vmx-17",
    "vsphere_os_type": "fedora64Guest",
    "vsphere_scsi_controller_type": "VirtualSCSI",
    "vsphere_network_controller_type": "VmxNet3",
    "secure_boot": "true",
}
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
VSSD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData}"
STREAM_OPTIMIZED = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
GIB = 1 << 30


def filled(name: str, values: dict[str, str] = VALUES) -> Any:
    """The document that a shipped template becomes."""
    text = wrap._descriptor(wrap.load_template(name), values, 12345, 10 * GIB, "disk.vmdk")
    return ET.fromstring(text)


def hardware(document: Any) -> list[dict[str, str]]:
    """The items of the virtual hardware, by the names of their fields."""
    items = document.findall(f".//{OVF}VirtualHardwareSection/{OVF}Item")
    return [{field.tag.removeprefix(RASD): field.text for field in item} for item in items]


@pytest.mark.parametrize("name", ["vmware.ovf", "virtualbox.ovf"])
def test_files_and_disks(name: str) -> None:
    """One file, one disk that refers to it, sizes in bytes, sections in the schema's order."""
    document = filled(name)
    assert document.tag == f"{OVF}Envelope"
    assert [part.tag.removeprefix(OVF) for part in document] == [
        "References",
        "DiskSection",
        "NetworkSection",
        "VirtualSystem",
    ]
    (file,) = document.findall(f"{OVF}References/{OVF}File")
    assert file.attrib == {f"{OVF}href": "disk.vmdk", f"{OVF}id": "file1", f"{OVF}size": "12345"}
    (disk,) = document.findall(f"{OVF}DiskSection/{OVF}Disk")
    assert disk.attrib == {
        f"{OVF}capacity": str(10 * GIB),
        f"{OVF}capacityAllocationUnits": "byte",
        f"{OVF}diskId": "disk1",
        f"{OVF}fileRef": "file1",
        f"{OVF}format": STREAM_OPTIMIZED,
    }


@pytest.mark.parametrize("name", ["vmware.ovf", "virtualbox.ovf"])
def test_hardware(name: str) -> None:
    """Two processors, 4096 MB, a SCSI controller with the disk, an adapter in a network that exists.
    Fields are in alphabetical order, as the CIM schema has them."""
    document = filled(name)
    items = hardware(document)
    by_type = {item["ResourceType"]: item for item in items}
    assert set(by_type) == {"3", "4", "6", "17", "10"}
    assert by_type["3"]["VirtualQuantity"] == "2"
    memory = by_type["4"]
    assert (memory["VirtualQuantity"], memory["AllocationUnits"]) == ("4096", "byte * 2^20")
    assert by_type["17"]["Parent"] == by_type["6"]["InstanceID"]
    assert by_type["17"]["HostResource"] == "ovf:/disk/disk1"
    networks = [each.get(f"{OVF}name") for each in document.findall(f".//{OVF}Network")]
    assert [by_type["10"]["Connection"]] == networks
    assert len({item["InstanceID"] for item in items}) == len(items)
    assert [list(item) for item in items] == [sorted(item) for item in items]


def test_vmware_values() -> None:
    """What the platform's `values` say stands where vSphere reads it."""
    document = filled("vmware.ovf")
    by_type = {item["ResourceType"]: item for item in hardware(document)}
    assert by_type["6"]["ResourceSubType"] == "VirtualSCSI"
    assert by_type["10"]["ResourceSubType"] == "VmxNet3"
    assert document.find(f".//{VSSD}VirtualSystemType").text == "vmx-17"
    system = document.find(f".//{OVF}OperatingSystemSection")
    assert system.get("{http://www.vmware.com/schema/ovf}osType") == "fedora64Guest"
    config = {
        each.get("{http://www.vmware.com/schema/ovf}key"): each.get("{http://www.vmware.com/schema/ovf}value")
        for each in document.iter("{http://www.vmware.com/schema/ovf}Config")
    }
    assert config == {"firmware": "efi", "bootOptions.efiSecureBootEnabled": "true"}
    product = document.find(f".//{OVF}ProductSection")
    texts = [product.find(OVF + part).text for part in ("Product", "Vendor", "Version")]
    assert texts == ["Demo", "Us", "1.0"]


def test_virtualbox_needs_only_names() -> None:
    """Its template asks for nothing that the command does not know by itself."""
    document = filled("virtualbox.ovf", NAMES)
    assert document.find(f".//{VSSD}VirtualSystemType").text == "virtualbox-2.2"


def test_powervs() -> None:
    """Attributes without a prefix, as Power Virtual Server reads them; the disk boots."""
    document = filled("powervs.ovf", NAMES)
    file, disk = document.find(f".//{OVF}File"), document.find(f".//{OVF}Disk")
    assert file.attrib == {"href": "disk.vmdk", "id": "file1", "size": "12345"}
    assert (disk.get("capacity"), disk.get("fileRef")) == (str(10 * GIB), "file1")
    assert document.find(".//{ibmpvc}boot").text == "True"
    assert document.find(".//{ibmpvc}architecture").text == "ppc64le"


def test_values_are_escaped() -> None:
    """Characters that mean something in XML come out as they were."""
    name = "a<b>&\"c'd]]>\N{GREEK SMALL LETTER ALPHA}"
    document = filled("vmware.ovf", {**VALUES, "vsphere_image_name": name})
    assert document.find(f"{OVF}VirtualSystem/{OVF}Name").text == name
    assert document.find(f"{OVF}VirtualSystem").get(f"{OVF}id") == name


def test_values_are_not_filled_again() -> None:
    """A value that looks like a placeholder stays what it is."""
    document = filled("vmware.ovf", {**VALUES, "vsphere_product_name": "{secure_boot}"})
    assert document.find(f".//{OVF}Product").text == "{secure_boot}"


SMALL = "<a>{vmdk_size} {vmdk_capacity}</a>"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<a>{vmdk_size}</a>", r"\{vmdk_capacity\} is missing"),
        ("<a>{vmdk_capacity}</a>", r"\{vmdk_size\} is missing"),
        (SMALL + "{secure_boot}{colour}", r"no value for \{colour\}; give it under `values`"),
        (SMALL + "<b>", "not well-formed XML"),
        (SMALL.replace("<a>", "<a>{image}"), "not well-formed XML"),
        (SMALL + "\0", "not well-formed XML"),
        ('<?xml version="1.0" encoding="nonsense"?>' + SMALL, "not well-formed XML"),
    ],
)
def test_bad_template(text: str, why: str, tmp_path: Path) -> None:
    """The message names the template and the field; nothing is written."""
    (tmp_path / "disk.vmdk").write_bytes(b"disk")
    template = wrap.Template("mine.ovf", text)
    values = {**VALUES, "image": "\x01"}
    with pytest.raises(UsageError, match=f"^template mine.ovf: {why}"):
        wrap.ova(tmp_path / "disk.vmdk", GIB, tmp_path / "x.ova", template, values, IDENTITY)
    with pytest.raises(UsageError, match=f"^template mine.ovf: {why}"):
        wrap.check_template(template, values)
    assert names_in(tmp_path) == ["disk.vmdk"]


@pytest.mark.parametrize("name", ["vmware.ovf", "virtualbox.ovf", "powervs.ovf"])
def test_shipped_templates_pass(name: str) -> None:
    """With the values of the table of derivations they can be filled."""
    wrap.check_template(wrap.load_template(name), VALUES if name == "vmware.ovf" else NAMES)


def test_find_template(tmp_path: Path) -> None:
    """A file beside the derivations comes before a shipped one of that name."""
    shipped = wrap.load_template("vmware.ovf")
    assert wrap.load_template("vmware.ovf", tmp_path) == shipped
    (tmp_path / "vmware.ovf").write_text("<mine/>")
    assert wrap.load_template("vmware.ovf", tmp_path) == wrap.Template(
        str(tmp_path / "vmware.ovf"), "<mine/>"
    )
    assert wrap.load_template(str(tmp_path / "vmware.ovf"), tmp_path / "elsewhere").text == "<mine/>"


@pytest.mark.parametrize("data", [b"\xff\xfe<", bytes(2 << 20)])
def test_template_that_is_no_text(data: bytes, tmp_path: Path) -> None:
    """A disk given as a template, say."""
    (tmp_path / "x.ovf").write_bytes(data)
    with pytest.raises(UsageError, match=r"x\.ovf: not a text in UTF-8"):
        wrap.load_template("x.ovf", tmp_path)


def test_no_template(tmp_path: Path) -> None:
    """The message says where was looked and what there is."""
    with pytest.raises(UsageError, match=f"nope: no such file in {tmp_path}; .* powervs.ovf, virtualbox.ovf"):
        wrap.load_template("nope", tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        wrap.load_template("../wrap.py")


def test_disk_too_large_for_an_ova(tmp_path: Path) -> None:
    """ustar holds 8 GiB less a byte."""
    disk = tmp_path / "disk.vmdk"
    with disk.open("wb") as out:
        out.truncate(8 * GIB)
    with pytest.raises(LimitExceeded, match=f"x.ova: an OVA is a ustar archive.*disk.vmdk has {8 * GIB}"):
        wrap.ova(disk, GIB, tmp_path / "x.ova", wrap.load_template("vmware.ovf"), VALUES, IDENTITY)
    assert names_in(tmp_path) == ["disk.vmdk"]


def test_disk_too_large_for_powervs(tmp_path: Path) -> None:
    """The volume is of the size that the descriptor says."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4096))
    template = wrap.load_template("powervs.ovf")
    with pytest.raises(UsageError, match=r"x\.ova: 4096 bytes do not fit a volume of 4095"):
        wrap.powervs_ova(
            disk, tmp_path / "x.ova", template, NAMES, IDENTITY, disk_name="disk.raw", capacity=4095
        )


@pytest.mark.parametrize("member", ["x.qcow2", "/x.qcow2", "disk/", "../x", "disk/..", "a/b/x", "./x", ""])
def test_bad_member(member: str, tmp_path: Path) -> None:
    """A container disk has its file in one directory."""
    (tmp_path / "x.qcow2").write_bytes(b"disk")
    with pytest.raises(UsageError, match="DIRECTORY/FILE"):
        wrap.ociarchive(tmp_path / "x.qcow2", tmp_path / "x.oci", "amd64", "1", member, IDENTITY)


def test_no_disk(tmp_path: Path) -> None:
    """A missing disk and a directory in its place are named."""
    for name, error in (("missing", RehydratorError), (".", HostileInput)):
        with pytest.raises(error, match=str(tmp_path)):
            wrap.gcp_tar(tmp_path / name, tmp_path / "x.tar", IDENTITY)
        with pytest.raises(error, match=str(tmp_path)):
            wrap.ociarchive(tmp_path / name, tmp_path / "x", "amd64", "1", "disk/x", IDENTITY)
    assert names_in(tmp_path) == []
