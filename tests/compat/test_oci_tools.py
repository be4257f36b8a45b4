"""Our images in the hands of other people's tools: skopeo, podman, a registry, gzip, tar, openssl."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rehydrator import host
from rehydrator.core.errors import RegistryError, RehydratorError
from rehydrator.oci import signature
from rehydrator.oci.image import LayerFile, Options, write_image
from rehydrator.oci.reference import open_bundle, open_image, open_staged, parse, stage, verify_blobs

if TYPE_CHECKING:
    from collections.abc import Iterator

PACK = bytes(range(256)) * 1000
CONTENT = {"bundle.json": b'{"a":1}\n', "packs/0.pack": PACK}


def tool(*argv: object) -> bytes:
    """Run a program that must succeed; its stdout."""
    done = host.run([str(arg) for arg in argv], 120)
    assert (done.status, argv) == (0, argv), done.said
    return done.stdout


def skopeo(source: str, target: str, *more: str) -> None:
    tool("skopeo", "copy", "--quiet", *more, source, target)


def digest_of(reference: str, tmp_path: Path) -> str:
    """The manifest digest of a layout's image."""
    with open_image(parse(reference), tmp_path) as image:
        return image.documents[0].digest


def read_all(reference: str, tmp_path: Path) -> dict[str, bytes]:
    with open_bundle(parse(reference), tmp_path) as files:
        readers = {name: files.open(name) for name in files.names()}
        return {name: reader.pread(0, reader.size) for name, reader in readers.items()}


@pytest.fixture(name="built")
def fixture_built(tmp_path: Path) -> str:
    """A data-only image in a layout."""
    groups = []
    for name, data in CONTENT.items():
        path = tmp_path / name.replace("/", "-")
        path.write_bytes(data)
        groups.append([LayerFile(f"bundle/{name}", path)])
    reference = f"oci:{tmp_path}/built:localhost/bundle:v1"
    with stage(parse(reference)) as staging:
        staging.seal(write_image(staging, None, groups, Options(labels={"l": "1"})))
        staging.publish()
    return reference


@contextmanager
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\n"
    )
    with subprocess.Popen(
        [host.find("docker-registry"), "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"docker://127.0.0.1:{port}/r/bundle:v1"
        finally:
            process.terminate()


@pytest.fixture(name="storage")
def fixture_storage() -> Iterator[Path]:
    """A directory for podman's storage; it takes no path above 50 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def podman(storage: Path, *argv: object) -> bytes:
    """Podman with a storage of its own."""
    store = ["--root", storage / "root", "--runroot", storage / "run", "--storage-driver", "vfs"]
    return tool("podman", *store, *argv)


def storage_name(storage: Path) -> str:
    return f"containers-storage:[vfs@{storage}/root+{storage}/run]localhost/bundle:v1"


@pytest.mark.parametrize("target", ["oci:{}/copy:v1", "oci-archive:{}/copy.tar:v1"])
def test_skopeo_keeps_the_digest(built: str, tmp_path: Path, target: str) -> None:
    """A copy to another layout or an archive has the same manifest digest and the same files."""
    copy = target.format(tmp_path)
    skopeo(built, copy)
    assert digest_of(copy, tmp_path) == digest_of(built, tmp_path)
    assert read_all(copy, tmp_path) == CONTENT


def test_skopeo_reads_our_archive(tmp_path: Path, built: str) -> None:
    """An oci-archive written by us is copied with its digest kept."""
    with stage(parse(f"oci-archive:{tmp_path}/ours.tar:v1")) as staging:
        path = tmp_path / "bundle.json"
        made = write_image(staging, None, [[LayerFile("bundle/bundle.json", path)]], Options())
        staging.seal(made)
        staging.publish()
    skopeo(f"oci-archive:{tmp_path}/ours.tar:v1", f"oci:{tmp_path}/back:v1")
    assert digest_of(f"oci:{tmp_path}/back:v1", tmp_path) == made.digest


@pytest.mark.parametrize(
    "compression", [(), ("--dest-compress-format", "zstd", "--dest-compress"), ("--dest-decompress",)]
)
def test_skopeo_dir(built: str, tmp_path: Path, compression: tuple[str, ...]) -> None:
    """A dir: is read and verified, as it is, recompressed with zstd, or decompressed."""
    skopeo(built, f"dir:{tmp_path}/copy", *compression)
    assert read_all(f"dir:{tmp_path}/copy", tmp_path) == CONTENT
    assert len(verify_blobs(parse(f"dir:{tmp_path}/copy"), tmp_path)) == 3


def test_a_registry_keeps_the_digest(built: str, tmp_path: Path) -> None:
    """Through a registry and back the manifest digest is the same."""
    with registry(tmp_path) as remote:
        skopeo(built, remote, "--dest-tls-verify=false")
        skopeo(remote, f"oci:{tmp_path}/back:v1", "--src-tls-verify=false")
    assert digest_of(f"oci:{tmp_path}/back:v1", tmp_path) == digest_of(built, tmp_path)


def test_a_registry_that_does_not_answer(tmp_path: Path) -> None:
    """The error is a registry's, in skopeo's own words; nothing is left."""
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9.*connection refused"):
        read_all("docker://127.0.0.1:9/r:v1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_podman_load_and_save(built: str, tmp_path: Path, storage: Path) -> None:
    """After podman load, the image is read from podman's storage, from what podman save writes,
    in both its formats, and as it is mounted.
    """
    skopeo(built, f"oci-archive:{tmp_path}/built.tar:localhost/bundle:v1")
    podman(storage, "load", "-q", "-i", tmp_path / "built.tar")
    podman(storage, "save", "-q", "-o", tmp_path / "docker.tar", "localhost/bundle:v1")
    podman(
        storage, "save", "-q", "--format", "oci-archive", "-o", tmp_path / "oci.tar", "localhost/bundle:v1"
    )
    for reference in (
        f"docker-archive:{tmp_path}/docker.tar",
        f"docker-archive:{tmp_path}/docker.tar:localhost/bundle:v1",
        f"oci-archive:{tmp_path}/oci.tar",
        storage_name(storage),
    ):
        assert (reference, read_all(reference, tmp_path)) == (reference, CONTENT)
    assert len(verify_blobs(parse(f"docker-archive:{tmp_path}/docker.tar"), tmp_path)) == 3
    mounted = podman(storage, "image", "mount", "localhost/bundle:v1").decode().strip()
    try:
        pack = host.run(["cat", f"{mounted}/bundle/packs/0.pack"], 60).stdout
        modes = host.run(["stat", "-c", "%a %u %Y", f"{mounted}/bundle", f"{mounted}/bundle/bundle.json"], 60)
    finally:
        podman(storage, "image", "umount", "localhost/bundle:v1")
    assert pack == PACK
    assert modes.stdout == b"755 0 0\n644 0 0\n"


def test_gzip_and_tar_accept_the_layers(built: str, tmp_path: Path) -> None:
    """Each layer is a gzip file and a tar archive to the system's own tools."""
    with open_image(parse(built), tmp_path) as image:
        layers = [tmp_path / "built/blobs/sha256" / layer.hex for layer in image.layers]
    found = []
    for path in layers:
        tool("sh", "-c", f"gzip -t < '{path}'")
        found.append(tool("tar", "--numeric-owner", "--utc", "-tzvf", path).decode().split())
    assert [words[-1] for words in found] == ["bundle/bundle.json", "bundle/packs/0.pack"]
    assert found[0][:6] == ["drwxr-xr-x", "0/0", "0", "1970-01-01", "00:00", "bundle/"]


def test_skopeo_inspects(built: str) -> None:
    """Labels and layers are where skopeo shows them."""
    shown = json.loads(tool("skopeo", "inspect", built))
    assert (shown["Labels"], len(shown["Layers"]), shown["Os"]) == ({"l": "1"}, 2, "linux")


def test_openssl_accepts_the_signature(tmp_path: Path) -> None:
    """`openssl dgst -sha256 -verify` accepts it, and refuses it over other bytes."""
    signature.keygen(str(tmp_path / "me"), b"secret")
    key = signature.load_private_key(tmp_path / "me.key", lambda: b"secret")
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "sig").write_bytes(signature.sign(b"text", key))
    argv = ["openssl", "dgst", "-sha256", "-verify", tmp_path / "me.pub", "-signature", tmp_path / "sig"]
    assert tool(*argv, tmp_path / "file") == b"Verified OK\n"
    (tmp_path / "file").write_bytes(b"texT")
    assert host.run([str(arg) for arg in [*argv, tmp_path / "file"]], 60).status == 1


def test_we_accept_a_signature_by_openssl(tmp_path: Path) -> None:
    """Keys and signatures that openssl makes are as good."""
    tool(
        "openssl",
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        tmp_path / "k",
    )
    tool("openssl", "pkey", "-in", tmp_path / "k", "-pubout", "-out", tmp_path / "p")
    (tmp_path / "file").write_bytes(b"text")
    tool("openssl", "dgst", "-sha256", "-sign", tmp_path / "k", "-out", tmp_path / "sig", tmp_path / "file")
    signature.verify(b"text", [(tmp_path / "sig").read_bytes()], signature.load_public_key(tmp_path / "p"))
    key = signature.load_private_key(tmp_path / "k", lambda: b"")
    assert signature.key_id(key.public_key()) == signature.key_id(signature.load_public_key(tmp_path / "p"))


def test_cryptography_is_imported_late() -> None:
    """Importing the references and the signatures does not import cryptography (50 ms)."""
    code = (
        "import sys, rehydrator.oci.signature, rehydrator.oci.reference; print('cryptography' in sys.modules)"
    )
    assert tool(sys.executable, "-c", code) == b"False\n"


def test_a_program_that_hangs_is_ended() -> None:
    """After the timeout the program is killed, and the error names it."""
    with pytest.raises(RehydratorError, match=r"sleep: did not end within 0\.2 seconds"):
        host.run(["sleep", "60"], 0.2)


def test_what_a_program_says_is_printable() -> None:
    """Control characters in a program's words do not reach the terminal."""
    done = host.run(["sh", "-c", r"printf 'a\033[31mb\n' >&2; exit 3"], 60)
    assert (done.status, done.said) == (3, "a\N{REPLACEMENT CHARACTER}[31mb")


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_a_killed_build_leaves_no_image(tmp_path: Path, transport: str) -> None:
    """SIGKILL between seal() and publish(): another process can read what is staged, nothing
    looks like an image, and the next build removes it.
    """
    reference = parse(f"{transport}:{tmp_path}/image:v1")
    (tmp_path / "bundle.json").write_bytes(b"{}\n")
    code = (
        "import sys; from pathlib import Path\n"
        "from rehydrator.oci.image import LayerFile, Options, write_image\n"
        "from rehydrator.oci.reference import parse, stage\n"
        "staging = stage(parse(sys.argv[1]))\n"
        "groups = [[LayerFile('bundle/bundle.json', Path(sys.argv[2]))]]\n"
        "staging.seal(write_image(staging, None, groups, Options()))\n"
        "print(staging.directory, flush=True); sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", code, str(reference), str(tmp_path / "bundle.json")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        staged = Path(child.stdout.readline().strip())
        with open_staged(staged, tmp_path) as files:
            assert files.open("bundle.json").pread(0, 3) == b"{}\n"
        child.kill()
    assert not list(tmp_path.rglob("index.json"))
    assert not (tmp_path / "image").is_file()
    stage(reference).discard()
    assert not staged.exists()
