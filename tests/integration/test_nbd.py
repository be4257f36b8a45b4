"""`rehydrator nbd` as QEMU and the NBD tools see it."""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.conftest import NAME, leftovers, sha256
from tests.corpus.boot import MARKER, boot
from tests.corpus.small import make_small
from tests.nbd_client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Made, User

OPENSTACK = NAME.format("openstack", "qcow2")
AZURE = NAME.format("azure", "vhd")
AWS = NAME.format("aws", "vmdk")
METAL = NAME.format("metal", "raw")

# Seconds for a program of this machine's; a busy machine takes a multiple of what is usual.
PATIENCE = 120

# What the verb loads before it knows what to serve.
HEAVY = ("backports.zstd", "numpy", "pydantic", "socket", "urllib3", "yaml")


def program(*arguments: object, code: int = 0) -> bytes:
    """What a program says; fails unless it ends with `code`."""
    done = subprocess.run(
        [*map(str, arguments)], capture_output=True, check=False, timeout=PATIENCE, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, (arguments, done.returncode, done.stderr)
    return done.stdout


@contextmanager
def serving(user: User, *arguments: object) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server, when it is ready: its URI, or line of JSON, and its process. What it says on stderr
    is in the file "said"."""
    with (
        (user.home / "said").open("wb") as said,
        subprocess.Popen(
            user.command("nbd", *arguments),
            cwd=user.home,
            env=user.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip(), process
        finally:
            process.terminate()
            process.wait(PATIENCE)
    text = (user.home / "said").read_text()
    assert "Traceback" not in text, text
    assert leftovers(user.home) == []


def run(user: User, made: Made, command: str, *more: object, code: int = 0) -> str:
    """What COMMAND of --run says, with the disk of openstack unless `more` says otherwise."""
    arguments = ["nbd", made.reference, "--run", command, *(more or ("--disk", "openstack"))]
    return user.run(*arguments, code=code).out.decode()


def test_a_long_place_for_temporary_files(user: User, made: Made) -> None:
    """A socket's path must be short: where the place is not, another is taken."""
    deep = user.home / ("d" * 100)
    deep.mkdir()
    asked = ["nbd", made.reference, "--disk", "openstack", "--run", 'nbdinfo --size "$uri"']
    size = made.images[OPENSTACK].stat().st_size
    assert user.run(*asked, env={"TMPDIR": str(deep)}).out.split() == [str(size).encode()]
    assert list(deep.iterdir()) == []


def test_nbdinfo(user: User, made: Made) -> None:
    """What is offered: read-only, several connections, structured replies, any size of block."""
    [found] = json.loads(run(user, made, 'nbdinfo --json "$uri"'))["exports"]
    image = made.images[OPENSTACK]
    expected = {
        "export-name": OPENSTACK,
        "description": "openstack x86_64 qcow2.xz",
        "contexts": ["base:allocation"],
        "export-size": image.stat().st_size,
        "is_read_only": True,
        "can_multi_conn": True,
        "can_df": True,
        "can_trim": False,
        "can_zero": False,
        "can_flush": False,
        "block_size_minimum": 1,
        "block_size_preferred": 4096,
        "block_size_maximum": 32 << 20,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert "QEMU QCOW Image (v3)" in found["content"]


def test_every_image_at_once(user: User, made: Made) -> None:
    """nbdcopy gets each file of the release, bit for bit, by its name, from one server."""
    with serving(user, made.reference, "--all", "--json") as (line, _):
        report = json.loads(line)
        uris = {each["name"]: each["uri"] for each in report["exports"]}
        listed = json.loads(program("nbdinfo", "--json", "--list", report["uri"]))["exports"]
        copied = {
            name: hashlib.sha256(program("nbdcopy", uri, "-")).hexdigest() for name, uri in uris.items()
        }
    assert [each["export-name"] for each in listed] == list(uris)
    assert copied == {name: sha256(path) for name, path in made.images.items()}
    assert len(copied) > 9


def test_images_are_named_by_platform(user: User, made: Made) -> None:
    """The first one is the default, a platform's name will do, and people are told all names."""
    ask = ["--disk", "azure", "--disk", "openstack", "--socket", "s"]
    with serving(user, made.reference, *ask) as (uri, _):
        by_platform = uri.replace("///?", "///openstack?")
        sizes = [int(program("nbdinfo", "--size", each)) for each in (uri, by_platform)]
    assert sizes == [made.images[name].stat().st_size for name in (AZURE, OPENSTACK)]
    said = (user.home / "said").read_text()
    assert f"{OPENSTACK}: nbd+unix:///{OPENSTACK}?socket={user.home}/s" in said


@pytest.mark.parametrize(
    ("platform", "name", "image_format"),
    [
        ("openstack", OPENSTACK, "qcow2"),
        ("azure", AZURE, "vpc"),
        ("aws", AWS, "vmdk"),
        ("metal", METAL, "raw"),
    ],
)
def test_qemu_img(user: User, made: Made, platform: str, name: str, image_format: str) -> None:
    """The disk in the image is the one in the original file; and the file is, to the last byte."""
    original, copy = shlex.quote(str(made.images[name])), f"{user.home}/copy"
    command = (
        f"qemu-img compare -f {image_format} -F {image_format} $uri {original} &&"
        f"qemu-img convert -f raw -O raw $uri {copy} && qemu-img compare -f raw -F raw $uri {original}"
    )
    said = run(user, made, command, "--disk", platform)
    assert said == "Images are identical.\n" * 2
    # qemu-img writes whole sectors.
    expected = made.images[name].read_bytes()
    assert (user.home / "copy").read_bytes() == expected.ljust(-(-len(expected) // 512) * 512, b"\0")


def test_maps_show_zeros(user: User, made: Made) -> None:
    """qemu-img map and nbdinfo --map agree, tell zeros, and every zero that they tell is one."""
    both = run(
        user, made, "qemu-img map --output json -f raw $uri; nbdinfo --map --json $uri", "--disk", "azure"
    )
    decoder = json.JSONDecoder()
    qemu, end = decoder.raw_decode(both)
    libnbd = decoder.decode(both[end:])
    zeros = [(each["start"], each["length"]) for each in qemu if each["zero"]]
    assert zeros == [(each["offset"], each["length"]) for each in libnbd if each["type"] == 3]
    data = made.images[AZURE].read_bytes()
    assert not any(any(data[start : start + length]) for start, length in zeros)
    assert sum(length for _, length in zeros) > len(data) // 2


def test_qemu_io(user: User, made: Made) -> None:
    """Reads of any place and length; who wants to write cannot even open it."""
    data = made.images[METAL].read_bytes()
    at = next(at for at in range(0, len(data), 4096) if data[at] and data[at + 1])
    reads = f"-c 'read -v {at + 1} 1' -c 'read -P 0 {len(data) - 8192} 4096'"
    said = run(user, made, f"qemu-io -r -f raw {reads} $uri", "--disk", "metal")
    assert f"{at + 1:08x}:  {data[at + 1]:02x}" in said
    assert "verification failed" not in said
    refused = run(user, made, "qemu-io -f raw -c 'write 0 512' $uri 2>&1", "--disk", "metal", code=1)
    assert "Permission denied" in refused


def test_damage_is_an_error(user: User, made: Made) -> None:
    """A frame that is not what the bundle promises is no byte for anybody, and is named here."""
    reference = made.copy(user.home / "bundle")
    pack = max((user.home / "bundle" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 0x20
    pack.write_bytes(data)
    with serving(user, reference, "--disk", "qemu") as (uri, _):
        program("nbdcopy", uri, "null:", code=1)
        assert program("nbdinfo", "--size", uri).strip().isdigit()
    said = (user.home / "said").read_text().splitlines()
    assert len([line for line in said if "damaged (its digest differs)" in line]) == 1, said


def test_run(user: User, made: Made) -> None:
    """The command's variables are nbdkit's, and its exit code is ours."""
    said = run(user, made, 'echo "$uri|$unixsocket|$port|$exportname"; exit 7', code=7)
    uri, path, port, name = said.strip().split("|")
    assert uri == f"nbd+unix:///?socket={path}"
    assert (port, name) == ("", OPENSTACK)
    assert path.startswith(str(user.tmp))
    run(user, made, "kill -9 $$", code=137)
    assert run(user, made, "exit 0") == ""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 130), (signal.SIGTERM, 0)]
)
def test_the_end(user: User, made: Made, number: int, code: int) -> None:
    """A signal ends it within seconds, with a client in the middle of something, and no socket is left.
    SIGTERM is how service managers end a server, and no failure."""
    ask = ["--disk", "azure", "--socket", "s"]
    with (
        serving(user, made.reference, *ask) as (_, process),
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.connect(str(user.home / "s"))
        client = Client(connection)
        client.go()
        for _ in range(20):
            client.request(0, 0, 32 << 20)
        process.send_signal(number)
        sent = time.monotonic()
        assert process.wait(PATIENCE) == code
        assert time.monotonic() - sent < 5
        assert not (user.home / "s").exists()
    assert ("interrupted" in (user.home / "said").read_text()) == bool(code)


def test_the_end_of_a_command(user: User, made: Made) -> None:
    """A signal ends the command of --run, too; its end did not come, so that is a failure."""
    with serving(user, made.reference, "--disk", "qemu", "--run", "echo $$; exec sleep 99") as (
        line,
        process,
    ):
        process.terminate()
        assert process.wait(PATIENCE) == 130
        with pytest.raises(ProcessLookupError):
            signal_to(int(line))


def signal_to(process: int) -> None:
    import os

    os.kill(process, 0)


def test_a_client_that_is_killed(user: User, made: Made) -> None:
    """Others get all their bytes."""
    with serving(user, made.reference, "--disk", "openstack") as (uri, _):
        for _ in range(5):
            with subprocess.Popen(["nbdcopy", uri, "-"], stdout=subprocess.PIPE) as victim:
                assert victim.stdout is not None
                victim.stdout.read(100_000)
                victim.kill()
        assert hashlib.sha256(program("nbdcopy", uri, "-")).hexdigest() == sha256(made.images[OPENSTACK])


def test_over_tcp(user: User, made: Made) -> None:
    """On a port of this machine alone; nothing is said of who could come."""
    with serving(user, made.reference, "--disk", "openstack", "--listen", "127.0.0.1:0") as (uri, _):
        assert uri.startswith("nbd://127.0.0.1:")
        assert hashlib.sha256(program("nbdcopy", uri, "-")).hexdigest() == sha256(made.images[OPENSTACK])
    assert "no TLS" not in (user.home / "said").read_text()
    with serving(user, made.reference, "--disk", "openstack", "--listen", "0.0.0.0:0") as (uri, _):
        assert uri.startswith(f"nbd://{socket.gethostname()}:")
    assert "can read these images; there is no TLS" in (user.home / "said").read_text()


def test_what_is_compressed_is_refused(user: User, made: Made) -> None:
    """It has no random access, and the message says what has; with --all it is passed over."""
    published = OPENSTACK + ".xz"
    ask = ["nbd", made.reference, "--form", "published", "--run", "nbdinfo --list $uri"]
    refused = user.run(*ask, "--disk", "openstack", code=2)
    expected = f"{published} is compressed from its beginning to its end, so it cannot be read anywhere"
    assert expected in refused.err
    assert f"serve {OPENSTACK} with --form image, or write it" in refused.err
    served = user.run(*ask, "--all")
    assert f"not served: {published}" in served.err
    assert f'export="{published}"' not in served.out.decode()
    assert f'export="{AZURE}"' in served.out.decode()


def test_usage(user: User, made: Made) -> None:
    """Each with what to do; a file that is there stays as it is, and nobody else's bundle is served."""
    (user.home / "file").write_bytes(b"mine")
    disk = ["nbd", made.reference, "--disk", "openstack"]
    assert "name what to serve" in user.run("nbd", made.reference, code=2).err
    assert "two places" in user.run(*disk, "--socket", "s", "--listen", "127.0.0.1:0", code=2).err
    assert "HOST:PORT" in user.run(*disk, "--listen", "10809", code=2).err
    assert "is there already" in user.run(*disk, "--socket", "file", code=2).err
    assert (user.home / "file").read_bytes() == b"mine"
    assert "no disk for platform 'moon'" in user.run("nbd", made.reference, "--disk", "moon", code=4).err
    user.run("keygen", "other", "--no-password")
    assert user.run(*disk, "--key", "other.pub", "--run", "echo served", code=7).out == b""


def test_starting_is_light() -> None:
    """The verb's module loads nothing that is only needed to serve."""
    text = "import sys, rehydrator.cli.nbd; print(*sys.modules)"
    loaded = program(sys.executable, "-c", text).decode().split()
    assert [name for name in loaded if name in HEAVY or name.startswith("rehydrator.serve")] == []


@pytest.mark.boot
def test_boot(user: User) -> None:
    """A machine starts from openstack's qcow2, which was never written anywhere."""
    release = user.home / "release"
    make_small(release, ("qemu", "openstack"), megabytes=8, cloud_mib=256, bootable=True)
    user.run("build", release, "-o", "oci:bundle", "--runtime", "none", "--level", "3")
    with serving(user, "oci:bundle", "--disk", "openstack") as (uri, _):
        booted, console = boot(uri, "qcow2", PATIENCE)
    assert booted, console
    said = next(line for line in console.splitlines() if MARKER in line)
    assert "ignition.platform.id=openstack" in said.split()
