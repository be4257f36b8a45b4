"""The runtime image that `make image` built, and the container that it makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rehydrator.codecs import streams

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = Path(sys.prefix) / "share/rehydrator/runtime"
# As the image's own label says it is meant to be run.
CONFINED = ["--read-only", "--cap-drop=all", "--user=1000:1000", "--entrypoint=python3"]


def blob(digest: str) -> bytes:
    return (LAYOUT / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()


def manifest() -> dict[str, list[dict[str, int]]]:
    index = json.loads((LAYOUT / "index.json").read_bytes())
    document: dict[str, list[dict[str, int]]] = json.loads(blob(index["manifests"][0]["digest"]))
    return document


def run_python(code: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    image = f"oci:{LAYOUT}:latest"
    command = [str(ROOT / "scripts/podman-run"), "-i", *CONFINED, image, "-c", code]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def test_at_most_40_mib_are_fetched_for_it() -> None:
    """All layers of the runtime together are at most 40 MiB as they are stored and fetched."""
    assert sum(layer["size"] for layer in manifest()["layers"]) <= 40 << 20


@pytest.mark.podman
def test_the_reader_runs_confined() -> None:
    """Another user than root, a read-only root and no capabilities are enough for all that reading
    imports."""
    code = "import rehydrator.bundle.reader, rehydrator.engine, rehydrator.cli, os; print(os.getuid())"
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1000\n", b"")


@pytest.mark.podman
def test_what_builds_is_not_in_it() -> None:
    """The image holds no shell and none of the packages that only building needs."""
    code = """
import importlib.util, os
print([n for n in ("numpy", "pydantic", "rich", "xxhash", "pip") if importlib.util.find_spec(n)])
print([n for n in ("sh", "bash", "dpkg", "apt", "qemu-img") for d in os.get_exec_path()
       if os.path.exists(f"{d}/{n}")])
"""
    assert run_python(code).stdout == b"[]\n[]\n"


@pytest.mark.podman
def test_it_encodes_what_this_machine_does() -> None:
    """Every stream codec is there, in this machine's versions, and writes this machine's bytes as a
    confined user: what a build on Debian 12 proved is given back from the container."""
    code = """
import hashlib, sys
from rehydrator.codecs import lzma2, streams, units, zstd_streams
from rehydrator.codecs.deflate_streams import likeliest
from rehydrator.host.filters import run_filter
plain = sys.stdin.buffer.read()
frame = zstd_streams.params(19, size=len(plain))
cases = [(codec.id, params) for codec, params in likeliest({})]
cases += [(codec, frame) for codec in streams.codecs("zstd")]
cases += [
    ("bzip2", {"level": 9}),
    ("lzma2", lzma2.preset(6, 8 << 20)),
    ("unit.lz4", {"level": 0}),
    ("unit.lz4", {"level": 12}),
    ("unit.xz", {"bcj": 0, "dict_size": 128 << 10, "lc": 3, "lp": 0, "pb": 2}),
    ("unit.zlib", {"level": 9, "ng": 0, "strategy": 0, "wbits": 15}),
    ("unit.zlib", {"level": 9, "ng": 1, "strategy": 0, "wbits": 15}),
    *(("unit.zstd", {"level": 15, "library": number}) for number in units.zstd_libraries()),
]
for name, params in sorted((name, sorted(dict(params).items())) for name, params in cases):
    made = b"".join(streams.encoder(name, dict(params), run_filter).encode([plain]))
    print(name, streams.version(name, run_filter), hashlib.sha256(made).hexdigest(), params, sep="; ")
"""
    plain = b"".join(b"line %d of many\n" % k for k in range(20_000))
    here = subprocess.run([sys.executable, "-c", code], input=plain, capture_output=True, check=True)
    there = run_python(code, plain)
    assert there.stderr == b""
    assert there.stdout.decode().splitlines() == here.stdout.decode().splitlines()
    lines = [line.split("; ") for line in there.stdout.decode().splitlines()]
    assert {codec.id for family in streams.FAMILIES for codec in family.codecs} == {line[0] for line in lines}
    assert {
        "deflate.gzip": "gzip 1.12",
        "deflate.pigz": "pigz 2.6",
        "deflate.zip": "zip 3.0",
        "deflate.zlib": "zlib 1.2.13",
        "lzma2": "liblzma 5.4.1",
        "unit.zstd": "zstd 1.5.7, 1.5.4",
        "zstd.program": "zstd 1.5.4 (program)",
    }.items() <= {line[0]: line[1] for line in lines}.items()


@pytest.mark.podman
def test_streams_and_the_exit_code_are_the_containers() -> None:
    """podman-run adds nothing to standard output and gives back the container's own exit code."""
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1]); sys.exit(5)"
    done = run_python(code, bytes(range(256)) * 1000)
    assert (done.returncode, done.stdout) == (5, bytes(range(256))[::-1] * 1000)


def test_built_again_it_has_the_same_digest(tmp_path: Path) -> None:
    """The same packages and sources give the same image, to the byte."""
    subprocess.run([ROOT / "scripts/make-image", tmp_path / "again"], check=True, capture_output=True)
    assert (tmp_path / "again/index.json").read_bytes() == (LAYOUT / "index.json").read_bytes()
