"""Make the sample documents beside this file: constructed ones, with hosts, digests and
identifiers of our own, each with what documents of its era have and leave out.

    python stream-metadata/samples/make.py [DIRECTORY]
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HOST = "https://builds.example.com/prod/streams"
METAL = {"raw.xz": "", "4k.raw.xz": "", "iso": "", "pxe": ""}
CLOUDS_2020 = {
    "aliyun": "qcow2.xz",
    "aws": "vmdk.xz",
    "azure": "vhd.xz",
    "digitalocean": "qcow2.gz",
    "exoscale": "qcow2.xz",
    "gcp": "tar.gz",
    "openstack": "qcow2.xz",
    "qemu": "qcow2.xz",
    "vmware": "ova",
}
CLOUDS_2021 = CLOUDS_2020 | {"ibmcloud": "qcow2.xz", "vultr": "raw.xz"}
CLOUDS_2026 = CLOUDS_2021 | {
    "applehv": "raw.gz",
    "azurestack": "vhd.xz",
    "hetzner": "raw.xz",
    "hyperv": "vhdx.zip",
    "kubevirt": "ociarchive",
    "nutanix": "qcow2",
    "oraclecloud": "qcow2.xz",
    "proxmoxve": "qcow2.xz",
    "virtualbox": "ova",
}
ARM_2026 = ("applehv", "aws", "azure", "gcp", "hetzner", "hyperv", "openstack", "oraclecloud", "qemu")
RHCOS = {
    "aws": "vmdk.gz",
    "azure": "vhd.gz",
    "gcp": "tar.gz",
    "ibmcloud": "qcow2.gz",
    "openstack": "qcow2.gz",
    "qemu": "qcow2.gz",
    "vmware": "ova",
}
RHCOS_METAL = {"raw.gz": "", "4k.raw.gz": "", "iso": "", "pxe": ""}
# Published as they are: no outer compression that a second digest could be about. The tar.gz of
# today's pipeline has none either.
AS_IS = ("ova", "iso", "ociarchive", "qcow2", "tar.gz")


def digest(text: str) -> str:
    """A digest of nothing but its own name."""
    return hashlib.sha256(text.encode()).hexdigest()


class Era:
    """How the documents of one time and distribution are made."""

    def __init__(
        self,
        name: str,
        stream: str,
        *,
        signed: bool,
        live: str,
        second_gcp: bool = False,
        second: bool = True,
    ) -> None:
        self.name, self.stream, self.signed, self.live = name, stream, signed, live
        # A second digest, of what is inside: of gcp's tar.gz, of any file.
        self.second_gcp, self.second = second_gcp, second

    def file(self, release: str, arch: str, file: str, outer: bool) -> dict[str, Any]:
        location = f"{HOST}/{self.stream}/builds/{release}/{arch}/{file}"
        found: dict[str, Any] = {"location": location}
        if self.signed:
            found["signature"] = f"{location}.sig"
        found["sha256"] = digest(file)
        if outer:
            found["uncompressed-sha256"] = digest(f"inside {file}")
        return found

    def platform(self, release: str, arch: str, platform: str, formats: dict[str, str]) -> dict[str, Any]:
        made = {key: self.roles(release, arch, platform, key) for key in formats}
        return {"release": release, "formats": made}

    def roles(self, release: str, arch: str, platform: str, key: str) -> dict[str, Any]:
        start = f"{self.name}-{release}"
        if key == "pxe":
            names = {
                role: f"{start}-{self.live_name(role, arch)}" for role in ("kernel", "initramfs", "rootfs")
            }
            return {role: self.file(release, arch, name, outer=False) for role, name in names.items()}
        name = f"{start}-{platform}.{arch}.{key}"
        if key == "iso":
            name = f"{start}-{self.live}.{arch}.iso"
        if key.startswith("4k."):
            name = f"{start}-metal4k.{arch}.{key.removeprefix('4k.')}"
        outer = key not in AS_IS or (key == "tar.gz" and self.second_gcp)
        return {"disk": self.file(release, arch, name, outer and self.second)}

    def live_name(self, role: str, arch: str) -> str:
        if role == "kernel":
            return f"live-kernel-{arch}" if self.live == "live" else f"live-kernel.{arch}"
        return f"live-{role}.{arch}.img"

    def architecture(
        self, release: str, arch: str, clouds: dict[str, str], metal: dict[str, str], images: dict[str, Any]
    ) -> dict[str, Any]:
        platforms = {name: {key: ""} for name, key in clouds.items()} | {"metal": metal}
        made = {name: self.platform(release, arch, name, platforms[name]) for name in sorted(platforms)}
        return {"artifacts": made} | ({"images": images} if images else {})

    def document(self, metadata: dict[str, str], architectures: dict[str, Any]) -> dict[str, Any]:
        return {"stream": self.stream, "metadata": metadata, "architectures": architectures}


def regions(release: str, arch: str, *names: str) -> dict[str, Any]:
    """Machine images by region."""
    return {
        "regions": {name: {"release": release, "image": f"ami-{digest(arch + name)[:17]}"} for name in names}
    }


def objects(release: str, arch: str, *names: str) -> dict[str, Any]:
    """Storage objects by region."""
    found = {}
    for name in names:
        bucket, key = f"images-{name}", f"os-{release.replace('.', '-')}-{arch}.ova.gz"
        url = f"https://s3.{name}.example.com/{bucket}/{key}"
        found[name] = {"release": release, "object": key, "bucket": bucket, "url": url}
    return {"regions": found}


def gcp(arch: str, **more: str) -> dict[str, str]:
    """An image of Google Compute Engine."""
    return {**more, "project": "example-cloud", "family": f"example-{arch}", "name": f"example-1-{arch}"}


def subset(clouds: dict[str, str], *names: str) -> dict[str, str]:
    """Some of the platforms."""
    return {name: clouds[name] for name in names}


def fcos_2020() -> dict[str, Any]:
    """One architecture, one digest a file, no generator, GCP's image without a release, the old
    live names."""
    era = Era("example-coreos", "stable", signed=True, live="live", second=False)
    release, arch = "32.20200601.3.0", "x86_64"
    images = {"aws": regions(release, arch, "eu-north-1", "us-east-1"), "gcp": gcp(arch)}
    made = era.architecture(release, arch, CLOUDS_2020, METAL, images)
    return era.document({"last-modified": "2020-06-16T12:00:00Z"}, {arch: made})


def fcos_2021() -> dict[str, Any]:
    """12 platforms and 13 disks; a second digest for what is compressed."""
    era = Era("example-coreos", "stable", signed=True, live="live", second_gcp=True)
    release, arch = "34.20210518.3.0", "x86_64"
    images = {"aws": regions(release, arch, "us-east-1"), "gcp": gcp(arch)}
    made = era.architecture(release, arch, CLOUDS_2021, METAL, images)
    return era.document({"last-modified": "2021-06-01T12:00:00Z"}, {arch: made})


def fcos_2026() -> dict[str, Any]:
    """60 files: 26 of x86_64, 15 of aarch64, 10 of s390x, 9 of ppc64le."""
    era = Era("example-coreos", "stable", signed=True, live="live-iso")
    release = "44.20260707.3.1"
    clouds = {
        "x86_64": CLOUDS_2026,
        "aarch64": subset(CLOUDS_2026, *ARM_2026),
        "s390x": subset(CLOUDS_2026, "ibmcloud", "openstack", "qemu") | {"qemu-secex": "qcow2.xz"},
        "ppc64le": subset(CLOUDS_2026, "openstack", "qemu") | {"powervs": "ova.gz"},
    }
    reference = f"registry.example.com/kubevirt@sha256:{digest('kubevirt')}"
    kubevirt = {"release": release, "image": "registry.example.com/kubevirt:stable", "digest-ref": reference}
    images: dict[str, dict[str, Any]] = {
        "x86_64": {
            "aws": regions(release, "x86_64", "af-south-1", "eu-north-1", "us-east-1"),
            "gcp": gcp("x86_64", release=release),
            "kubevirt": kubevirt,
        },
        "aarch64": {"aws": regions(release, "aarch64", "eu-north-1", "us-east-1")},
        "s390x": {"kubevirt": kubevirt},
    }
    made = {
        arch: era.architecture(release, arch, clouds[arch], METAL, images.get(arch, {})) for arch in clouds
    }
    metadata = {"last-modified": "2026-07-21T14:00:00Z", "generator": "example-generator v0.2.19"}
    return era.document(metadata, made)


def rhcos_4_8() -> dict[str, Any]:
    """gzip, signatures that are named and never were served, releases that differ between
    architectures."""
    era = Era("example-rhcos", "rhcos-4.8", signed=True, live="live", second_gcp=True)
    releases = {"x86_64": "48.84.202206140145-0", "ppc64le": "48.84.202206132151-0"}
    clouds = {"x86_64": RHCOS, "ppc64le": subset(RHCOS, "openstack", "qemu")}
    images = {"x86_64": {"aws": regions(releases["x86_64"], "x86_64", "us-east-1")}}
    made = {
        arch: era.architecture(release, arch, clouds[arch], RHCOS_METAL, images.get(arch, {}))
        for arch, release in releases.items()
    }
    metadata = {"last-modified": "2022-06-15T12:00:00Z", "generator": "plume example"}
    return era.document(metadata, made)


def rhcos_4_11() -> dict[str, Any]:
    """No signatures, four architectures, clouds that keep objects, and a disk to copy into Azure."""
    era = Era("example-rhcos", "rhcos-4.11", signed=False, live="live", second_gcp=True)
    release = "411.86.202206131434-0"
    clouds = {
        "x86_64": RHCOS | {"aliyun": "qcow2.gz", "nutanix": "qcow2"},
        "aarch64": subset(RHCOS, "aws", "azure", "openstack", "qemu"),
        "ppc64le": subset(RHCOS, "openstack", "qemu") | {"powervs": "ova.gz"},
        "s390x": subset(RHCOS, "ibmcloud", "openstack", "qemu"),
    }
    images: dict[str, dict[str, Any]] = {
        "x86_64": {
            "aliyun": {"regions": {"eu-central-1": {"release": release, "image": "m-example0001"}}},
            "aws": regions(release, "x86_64", "eu-north-1", "us-east-1"),
            "gcp": gcp("x86_64", release=release),
            "ibmcloud": objects(release, "x86_64", "eu-de"),
        },
        "ppc64le": {"powervs": objects(release, "ppc64le", "eu-de", "us-south")},
    }
    del images["x86_64"]["gcp"]["family"]
    made = {
        arch: era.architecture(release, arch, clouds[arch], RHCOS_METAL, images.get(arch, {}))
        for arch in clouds
    }
    for arch in ("x86_64", "aarch64"):
        disk = {"release": release, "url": f"https://disks.example.com/{release}-azure.{arch}.vhd"}
        made[arch]["rhel-coreos-extensions"] = {"azure-disk": disk}
    metadata = {"last-modified": "2022-06-21T12:00:00Z", "generator": "plume example"}
    return era.document(metadata, made)


def rhel_9_6() -> dict[str, Any]:
    """All extensions; one platform that is of another release than the others."""
    era = Era("example-rhcos", "rhel-9.6", signed=False, live="live-iso")
    release, older, arch = "9.6.20260512-0", "9.6.20260401-0", "x86_64"
    made = era.architecture(release, arch, RHCOS, RHCOS_METAL, {"aws": regions(release, arch, "us-east-1")})
    made["artifacts"]["azure"] = era.platform(older, arch, "azure", {"vhd.gz": ""})
    offers = {
        plan: {
            f"hyperVGen{number}": {
                "publisher": "example",
                "offer": f"example-{plan}",
                "sku": f"example-{plan}-gen{number}",
                "version": "9.6.2026051200",
            }
            for number in (1, 2)
        }
        for plan in ("no-purchase-plan", "ocp", "opp", "oke", "ocp-emea", "opp-emea", "oke-emea")
    }
    made["rhel-coreos-extensions"] = {
        "aws-winli": regions(release, "winli", "us-east-1"),
        "azure-disk": {"release": older, "url": "https://disks.example.com/azure.x86_64.vhd"},
        "marketplace": {"azure": offers},
    }
    return era.document({"last-modified": "2026-05-20T12:00:00Z", "generator": "plume example"}, {arch: made})


# Everything that some generator writes where it has nothing to say, unknown members everywhere,
# and a spelling that no rewriting may touch: order, spaces, escapes, numbers, no last newline.
NULLS_AND_EMPTIES = """{ "architectures" : {
 "x86_64":{"images":null, "artifacts":{
   "qemu"  :{"formats":{"qcow2":{"disk":{"sha256":"","signature":"","uncompressed-sha256":null,
      "location":"https:\\/\\/h\\u006fst.example.com\\/a%20b-qemu.x86_64.qcow2","x-more":[1.50,1e3,{"a":-0}]}}},
      "release":null,"x-notes":"\\u00fcber"},
   "metal":{"release":"", "formats":null},
   "aws":{"formats":{}},
   "gcp":{"release":"7","formats":{"tar.gz":{},
      "raw":{"disk":{"location":"plain.raw","signature":null,"sha256":null,"size":12}}}}},
  "x-arch":true},
 "aarch64":{"artifacts":null},
 "s390x":{}
}, "metadata":{"last-modified":"2021-01-01T00:00:00Z"}, "x-top":{},\t"stream":"nulls-and-empties"}"""

MINIMAL = '{"stream":"minimal","architectures":{}}\n'

FILE = '"location":"https://h.example/a.raw"'


def around(file: str) -> str:
    """A document of one file."""
    disk = f'{{"raw":{{"disk":{{{file}}}}}}}'
    return f'{{"stream":"s","architectures":{{"x86_64":{{"artifacts":{{"qemu":{{"formats":{disk}}}}}}}}}}}'


# A broken document, and how `stream validate` begins to speak of it.
BROKEN = {
    "byte-order-mark": ("\ufeff" + MINIMAL, "not JSON: begins with a byte order mark"),
    "cut-short": (around(FILE)[:-3], "not JSON: line 1, column 130: no , or }"),
    "bytes-behind": (MINIMAL + "{}", "not JSON: line 2, column 1: something stands behind the end"),
    "duplicate-key": (
        '{"stream":"a",\n "stream":"b","architectures":{}}',
        "not JSON: line 2, column 2: key 'stream' stands twice in one object",
    ),
    "nan": (around(FILE + ',"x":NaN'), "not JSON: line 1, column 130: no value"),
    "number-beyond-double": (around(FILE + ',"x":1e999'), "not JSON: line 1, column 130: a number beyond"),
    "half-a-surrogate-pair": (around('"location":"\\ud800"'), "not JSON: line 1, column 100: half of"),
    "deep": ('{"x":' + "[" * 64 + "]" * 64 + "}", "not JSON: line 1, column 69: nested deeper than 64"),
    "array": ("[]", "the document: is not an object"),
    "no-stream": ('{"architectures":{}}', "stream: is missing"),
    "stream-with-slash": ('{"stream":"a/b","architectures":{}}', "stream: has characters, or a length"),
    "no-architectures": ('{"stream":"a"}', "architectures: is missing"),
    "architecture-with-space": ('{"stream":"a","architectures":{"a b":{}}}', "a b: the key has characters"),
    "formats-is-a-list": (
        '{"stream":"a","architectures":{"s390x":{"artifacts":{"qemu":{"formats":[]}}}}}',
        "s390x.artifacts.qemu.formats: is not an object",
    ),
    "no-location": (around('"sha256":""'), "x86_64.artifacts.qemu.formats.raw.disk.location: is missing"),
    "location-number": (
        around('"location":5'),
        "x86_64.artifacts.qemu.formats.raw.disk.location: is not a str",
    ),
    "location-of-a-directory": (
        around('"location":"https://h.example/a/"'),
        "x86_64.artifacts.qemu.formats.raw.disk.location: 'https://h.example/a/' ends in no file name",
    ),
    "location-dot-dot": (
        around('"location":"https://h.example/%2e%2e"'),
        "x86_64.artifacts.qemu.formats.raw.disk.location: 'https://h.example/%2e%2e' ends in no file name",
    ),
    "size-negative": (
        around(FILE + ',"size":-1'),
        "x86_64.artifacts.qemu.formats.raw.disk.size: is not a number of bytes",
    ),
    "region-without-image": (
        '{"stream":"a","architectures":{"s390x":{"images":{"aws":{"regions":{"r":{"release":"1"}}}}}}}',
        "s390x.images.aws.regions.r.image: is missing",
    ),
}

SAMPLES = {
    "fcos-2020": (fcos_2020, 4),
    "fcos-2021": (fcos_2021, 4),
    "fcos-2026": (fcos_2026, 4),
    "rhcos-4.8": (rhcos_4_8, 2),
    "rhcos-4.11": (rhcos_4_11, 2),
    "rhel-9.6": (rhel_9_6, 2),
}


def made() -> dict[str, bytes]:
    """Every file of this folder that is made here, by name."""
    files = {
        f"{name}.json": json.dumps(make(), indent=indent) + "\n" for name, (make, indent) in SAMPLES.items()
    }
    files |= {"nulls-and-empties.json": NULLS_AND_EMPTIES, "minimal.json": MINIMAL}
    files |= {f"broken/{name}.json": text for name, (text, _) in BROKEN.items()}
    said = {name: said for name, (_, said) in sorted(BROKEN.items())}
    found = {name: text.encode() for name, text in files.items()}
    found["broken/utf-16.json"] = MINIMAL.encode("utf-16")
    found["broken/latin-1.json"] = around('"location":"\xe9"').encode("latin-1")
    said["utf-16"] = "not JSON: begins with a byte order mark"
    said["latin-1"] = "not JSON: byte 100 is not UTF-8"
    found["broken.json"] = (json.dumps(said, indent=2, sort_keys=True) + "\n").encode()
    return found


def main() -> None:
    """Write them."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    (directory / "broken").mkdir(parents=True, exist_ok=True)
    for name, data in made().items():
        (directory / name).write_bytes(data)


if __name__ == "__main__":
    main()
