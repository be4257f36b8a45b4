"""The container, run for real: a bundle on the runtime image, as its users run it.

scripts/podman-run is `podman run --rm --network=none --log-driver=none`, also where podman alone
fails; what it is given stands here as in the README.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.corpus.small import make_small

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.podman

PODMAN_RUN = Path(__file__).resolve().parents[2] / "scripts/podman-run"
MIB = 1 << 20
PLATFORMS = ("qemu", "openstack", "aws", "vmware", "azure", "ibmcloud", "gcp")
# As the image's own label says it is meant to be run; without network it always is here.
CONFINED = ("--read-only", "--cap-drop=all", "--user=1000:1000")


class Made(NamedTuple):
    """A bundle in an OCI layout, and what went into it. `key` is a prefix: KEY.key, KEY.pub."""

    image: str
    files: dict[str, Path]
    document: bytes
    key: Path


def on_host(*arguments: object) -> bytes:
    """The program on this machine; its standard output."""
    command = [sys.executable, "-m", "rehydrator", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300).stdout


def container(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    """What follows `podman run`, run to its end."""
    command = [str(PODMAN_RUN), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, timeout=300)


def same(one: Path, other: Path) -> bool:
    """Whether cmp finds two files the same."""
    return subprocess.run(["cmp", "--", one, other], check=False).returncode == 0


def stream_document(files: dict[str, Path]) -> bytes:
    """A document of a layout that no program of ours writes, about all the files."""
    artifacts = {
        platform: {
            "release": "1.0.0",
            "formats": {
                path.suffix[1:]: {
                    "disk": {
                        "location": f"https://releases.invalid/{path.name}",
                        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    }
                }
            },
        }
        for platform, path in files.items()
    }
    document = {"stream": "stable", "note": "größer", "architectures": {"x86_64": {"artifacts": artifacts}}}
    return (json.dumps(document, indent=3, separators=(" ,", " :")) + "\n\n").encode()


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A signed bundle of seven siblings on the runtime that `make image` built."""
    work = tmp_path_factory.mktemp("container")
    paths = make_small(work / "release", PLATFORMS, megabytes=4, cloud_mib=96, live=False)
    files = dict(zip(PLATFORMS, paths, strict=True))
    document, key, image = work / "stable.json", work / "release-key", f"oci:{work}/bundle:v1"
    document.write_bytes(stream_document(files))
    on_host("keygen", key, "--no-password")
    signing = ("--key", f"{key}.key", "--stream-json", document, "--level", "3")
    on_host("build", work / "release", "-o", image, *signing)
    return Made(image, files, document.read_bytes(), key)


def test_one_disk_to_standard_output(made: Made, tmp_path: Path) -> None:
    """`podman run --rm -i --log-driver=none IMAGE rehydrate - --disk openstack > openstack.qcow2`"""
    target = tmp_path / "openstack.qcow2"
    command = [str(PODMAN_RUN), "-i", made.image, "rehydrate", "-", "--disk", "openstack"]
    with target.open("wb") as out:
        subprocess.run(command, check=True, stdout=out)
    assert same(target, made.files["openstack"])


def test_two_disks_to_a_mounted_directory(made: Made, tmp_path: Path) -> None:
    """`podman run --rm -v OUT:/out:Z IMAGE rehydrate /out --disk aws --disk vmware`"""
    done = container(
        "-v", f"{tmp_path}:/out:Z", made.image, "rehydrate", "/out", "--disk", "aws", "--disk", "vmware"
    )
    assert (done.returncode, done.stdout) == (0, b"")
    originals = [made.files["aws"], made.files["vmware"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in originals)
    assert all(same(tmp_path / original.name, original) for original in originals)


def test_every_file_confined(made: Made, tmp_path: Path) -> None:
    """Another user than root, without capabilities and with nothing writable but the directory, gets
    all; a second time all are there already."""
    tmp_path.chmod(0o777)
    command = [*CONFINED, "-v", f"{tmp_path}:/out:Z", made.image, "rehydrate", "/out", "--all", "--json"]
    reports = []
    for _ in range(2):
        done = container(*command)
        assert (done.returncode, done.stderr) == (0, b"")
        reports.append({each["file"]: each["status"] for each in json.loads(done.stdout)})
    originals = made.files.values()
    assert reports[0] == {path.name: "written" for path in originals}
    assert reports[1] == {path.name: "present" for path in originals}
    assert all(same(tmp_path / path.name, path) for path in originals)
    assert {path.stat().st_uid for path in tmp_path.iterdir()} == {1000}


def test_several_files_are_a_tar_stream(made: Made) -> None:
    """Names, times and bytes of two images come through standard output."""
    done = container(*CONFINED, "-i", made.image, "rehydrate", "-", "--disk", "gcp", "--disk", "aws")
    assert done.returncode == 0
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        members = archive.getmembers()
        found = {each.name: (int(each.mtime), extracted(archive, each)) for each in members}
    originals = [made.files["gcp"], made.files["aws"]]
    expected = {path.name: (int(path.stat().st_mtime), path.read_bytes()) for path in originals}
    assert found == expected


def extracted(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file
    return file.read()


def test_it_tells_what_the_host_tells(made: Made) -> None:
    """`list` and `info` inside say what they say outside; the stream document is what was given."""
    for verb in (("list",), ("list", "--json"), ("info", "--json")):
        done = container(*CONFINED, made.image, *verb)
        assert (done.returncode, done.stdout) == (0, on_host(*verb, "--bundle", made.image))
    assert container(*CONFINED, made.image, "print-stream-json").stdout == made.document


def test_it_verifies_itself(made: Made) -> None:
    """Every file, every image and the signature, with a read-only root."""
    mounted = ("-v", f"{made.key}.pub:/key.pub:ro,Z")
    done = container(*CONFINED, *mounted, made.image, "verify", "--all", "--key", "/key.pub", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["signature"]) == (0, "verified")
    checked = {each["file"]: each["ok"] for each in report["checked"]}
    assert set(checked.values()) == {True}
    assert {path.name for path in made.files.values()} <= set(checked)


def test_exit_codes_are_the_programs(made: Made, tmp_path: Path) -> None:
    """A platform that is not there is 4, a wrong key 7, a build 10, no verb the help and 2; nothing
    is on stdout."""
    on_host("keygen", tmp_path / "other", "--no-password")
    done = container("-i", made.image, "rehydrate", "-", "--disk", "hyperv")
    assert (done.returncode, done.stdout) == (4, b"")
    assert ", ".join(sorted(PLATFORMS)).encode() in done.stderr
    mounted = ("-v", f"{tmp_path}/other.pub:/key.pub:ro,Z")
    done = container("-i", *mounted, made.image, "rehydrate", "-", "--key", "/key.pub", "--disk", "aws")
    assert (done.returncode, done.stdout) == (7, b"")
    done = container(made.image, "build", "/bundle", "-o", "oci:/tmp/x")
    assert (done.returncode, done.stdout) == (10, b"")
    assert b"full installation" in done.stderr
    done = container(made.image)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Usage: rehydrator [OPTIONS] COMMAND" in done.stderr


def test_memory_does_not_grow_with_the_disk(made: Made) -> None:
    """A disk of 100 GiB and a fixed VHD, as bytes, with less than 128 MiB resident at any time."""
    code = """
import sys, rehydrator.cli
code = rehydrator.cli.main()
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")], file=sys.stderr)
sys.exit(code)"""
    inside = (*CONFINED, "-i", "--entrypoint=python3", made.image, "-c", code)
    for platform in ("ibmcloud", "azure"):
        done = container(*inside, "rehydrate", "-", "--disk", platform)
        assert (done.returncode, done.stdout) == (0, made.files[platform].read_bytes())
        peak = re.search(rb"VmHWM:\\t *(\d+) kB", done.stderr)
        assert peak
        assert int(peak[1]) < 128 << 10


@pytest.fixture(name="loaded")
def _loaded(made: Made, tmp_path: Path) -> Iterator[str]:
    """The bundle as an oci-archive, in podman's storage; its name."""
    name = f"localhost/rehydrator-run:test-{made.key.parent.name.lower()}"
    archive = tmp_path / "bundle.tar"
    subprocess.run(["skopeo", "copy", "--quiet", made.image, f"oci-archive:{archive}:{name}"], check=True)
    subprocess.run(["podman", "load", "--quiet", "--input", archive], check=True, capture_output=True)
    yield name
    subprocess.run(["podman", "rmi", name], check=False, capture_output=True)  # or forgotten already


def test_it_goes_through_podmans_hands(made: Made, loaded: str, tmp_path: Path) -> None:
    """An oci-archive runs after `podman load`; the docker-archive that `podman save` writes is a bundle
    for the host, signed as before."""
    done = container("-i", loaded, "rehydrate", "-", "--disk", "vmware")
    assert (done.returncode, done.stdout) == (0, made.files["vmware"].read_bytes())
    saved, back = tmp_path / "saved.tar", tmp_path / "back"
    subprocess.run(["podman", "save", "--quiet", "--output", saved, loaded], check=True)
    reference = ("--bundle", f"docker-archive:{saved}", "--key", f"{made.key}.pub")
    on_host("rehydrate", back, "--disk", "qemu", "--disk", "gcp", *reference)
    assert all(same(back / made.files[name].name, made.files[name]) for name in ("qemu", "gcp"))
