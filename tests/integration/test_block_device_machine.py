"""Disks that loop devices cannot play: under device mapper, broken in the middle, unplugged. A machine
without KVM boots our code and nothing else, is done with its disks in seconds, and the tests look at
what it said and at what is on the disks."""

from __future__ import annotations

import gzip
import json
import os
import re
import select
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.corpus.boot import _with_dependencies, newest_kernel
from tests.corpus.content import newc
from tests.guest_disks import run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
MIB = 1 << 20
SIZE = 32 * MIB
PATIENCE = 240
TABLE = "label: gpt\nstart=2048, size=8192\nstart=10240\n"
EXECUTABLE, REGULAR, FOLDER = stat.S_IFREG | 0o755, stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755

_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
echo "the firmware's last line has no end"
/bin/busybox mkdir -p /proc /sys /tmp /run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
echo 1 >/proc/sys/kernel/printk
# Disks are looked for while we go on.
until [ -b /dev/vda ] && [ -b /dev/sda ]; do /bin/busybox sleep 0.1; done
PYTHONHOME=@HOME@ @PYTHON@ /guest.py
/bin/busybox poweroff -f
"""

# Runs in the machine; here it only says what it imports.
_GUEST = '''
import json, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from rehydrator.core.errors import RehydratorError
from rehydrator.host.block_device import inspect, open_for_writing

MIB, SIZE = 1 << 20, 32 << 20
BLOCK = memoryview(bytes(range(256)) * 4096)

def say(name, **facts):
    print(json.dumps({"name": name, **facts}), flush=True)

def dmsetup(*words, given=""):
    subprocess.run(["/sbin/dmsetup", *words], input=given, text=True, check=True)

def failure(name, node, before=None):
    """Write to a device that fails; `before` is called with the byte that comes next."""
    try:
        with open_for_writing(inspect(Path(node)), SIZE // 2) as sink:
            for offset in range(0, SIZE // 2, MIB):
                if before:
                    before(offset)
                sink.write(offset, [BLOCK])
            if before:
                before(SIZE // 2)
            sink.commit()
        say(name)
    except RehydratorError as error:
        say(name, code=error.exit_code, said=str(error))

def main():
    failure("whole disk", "/dev/vda")
    image = Path("/table").read_bytes()
    with open_for_writing(inspect(Path("/dev/vda")), SIZE) as sink:
        sink.write(0, [memoryview(image)])
        sink.commit()
    say("partitions", found=inspect(Path("/dev/vda")).partitions)
    failure("partition", "/dev/vda1")
    dmsetup("create", "volume", "--table", "0 4096 linear /dev/vda1 0")
    failure("held", "/dev/vda")
    dmsetup("remove", "volume")
    # A hole of 128 sectors behind 8 MiB and 512 bytes.
    table = "0 16385 linear /dev/vda 0\\n16385 128 error\\n16513 49023 linear /dev/vda 16513\\n"
    dmsetup("create", "broken", given=table)
    failure("broken", "/dev/dm-0")
    dmsetup("remove", "broken")
    say("left by broken", zeros=not any(Path("/dev/vda").open("rb").read(MIB)))
    dmsetup("create", "forgets", "--table", "0 65536 linear /dev/vda 0")
    failure("forgets", "/dev/dm-0", forget)
    dmsetup("remove", "forgets")
    failure("unplugged", "/dev/sda", unplug)
    say("end")

def forget(offset):
    """From commit() on, writes are lost."""
    if offset == SIZE // 2:
        dmsetup("suspend", "forgets")
        dmsetup("load", "forgets", "--table", "0 65536 flakey /dev/vda 0 0 60 1 drop_writes")
        dmsetup("resume", "forgets")

def unplug(offset):
    if offset == 4 * MIB:
        say("unplug me")
        while Path("/sys/block/sda").exists():
            time.sleep(0.05)

if __name__ == "__main__":
    main()
'''


def imported(folder: Path) -> list[Path]:
    """The files of Python that the guest needs: all that is imported at its beginning, and what is
    looked up by name later."""
    (folder / "guest.py").write_text(_GUEST)
    script = (
        "import guest, concurrent.futures.thread, encodings, sys, unicodedata; "
        "[print(m.__file__) for m in list(sys.modules.values()) if getattr(m, '__file__', None)]"
    )
    known = run(
        sys.executable, "-c", script, cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{folder}", "PATH": "/bin"}
    )
    files = [Path(line) for line in known.splitlines()]
    encodings = next(file.parent for file in files if file.match("encodings/__init__.py"))
    return [each for each in (*files, *encodings.glob("*.py")) if each.name != "guest.py"]


def libraries(program: Path) -> list[Path]:
    """The shared libraries of a program or a module."""
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", run("ldd", program))]


def machine_disk(folder: Path, modules: Path) -> bytes:
    """An initramfs of busybox, dmsetup, Python, our code, drivers and a partition table."""
    python = Path(os.path.realpath(sys.executable))
    programs = {
        "/bin/busybox": Path("/bin/busybox"),
        "/sbin/dmsetup": Path("/sbin/dmsetup"),
        str(python): python,
    }
    sources = imported(folder)
    binaries = [*list(programs.values())[1:], *(each for each in sources if ".so" in each.suffixes)]
    shared = {str(library): library for binary in binaries for library in libraries(binary)}
    members = {name: (EXECUTABLE, file.read_bytes()) for name, file in {**programs, **shared}.items()}
    for file in sources:
        place = Path("/", file.relative_to(ROOT)) if file.is_relative_to(ROOT) else file
        members[str(place)] = (REGULAR, file.read_bytes())
    wanted = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "dm-mod", "dm-flakey")
    drivers = list(dict.fromkeys(_with_dependencies(modules, wanted)))
    for driver in drivers:
        members[f"/modules/{driver.name}"] = (REGULAR, driver.read_bytes())
    members["/modules/order"] = (REGULAR, "".join(f"{driver.name}\n" for driver in drivers).encode())
    init = _INIT.replace("@HOME@", sys.base_prefix).replace("@PYTHON@", str(python))
    members["/init"] = (EXECUTABLE, init.encode())
    members["/guest.py"] = (REGULAR, _GUEST.encode())
    members["/table"] = (REGULAR, (folder / "table").read_bytes())
    return gzip.compress(newc(with_directories(members)), 1, mtime=0)


def with_directories(members: dict[str, tuple[int, bytes]]) -> dict[str, tuple[int, bytes]]:
    """Members by relative name, their directories before them."""
    folders = {str(parent)[1:] for name in members for parent in Path(name).parents} - {""}
    made = dict.fromkeys(sorted(folders | {"dev", "bin", "sbin"}), (FOLDER, b""))
    return {**made, **{name[1:]: member for name, member in members.items()}}


def unplug(place: Path) -> None:
    """Take the disk out of the machine (QEMU Machine Protocol, device_del)."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(str(place))
        with monitor.makefile("rw") as talk:
            talk.readline()
            for command in (
                {"execute": "qmp_capabilities"},
                {"execute": "device_del", "arguments": {"id": "stick"}},
            ):
                talk.write(json.dumps(command) + "\n")
                talk.flush()
                assert "return" in json.loads(talk.readline())


def started(folder: Path) -> subprocess.Popen[bytes]:
    """The machine with its two disks: vda stays, sda can be unplugged."""
    kernel, modules = newest_kernel()
    (folder / "initramfs").write_bytes(machine_disk(folder, modules))
    for name in ("vda", "sda"):
        (folder / name).write_bytes(b"\xee" * SIZE)
    drives = [f"file={folder / name},format=raw,if=none,id={name}" for name in ("vda", "sda")]
    # /dev/kvm may exist and hang, so acceleration is never left to QEMU's choice.
    options = (
        "-accel tcg -m 768 -nographic -no-reboot -net none -device virtio-scsi-pci "
        "-device virtio-blk-pci,drive=vda -device scsi-hd,drive=sda,id=stick"
    )
    files: list[str | Path] = [
        "-kernel",
        kernel,
        "-initrd",
        folder / "initramfs",
        "-drive",
        drives[0],
        "-drive",
        drives[1],
    ]
    files += ["-append", "console=ttyS0 quiet"]
    monitor = ["-qmp", f"unix:{folder / 'monitor'},server=on,wait=off"]
    return subprocess.Popen(
        ["qemu-system-x86_64", *options.split(), *files, *monitor],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def lines(machine: subprocess.Popen[bytes]) -> Iterator[str]:
    """What the machine prints, until it ends or takes too long."""
    assert machine.stdout is not None
    deadline, held = time.monotonic() + PATIENCE, b""
    while select.select([machine.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
        said = machine.stdout.read1(65536)  # type: ignore[attr-defined]
        if not said:
            return
        *whole, held = (held + said).split(b"\n")
        yield from (line.decode(errors="replace").strip() for line in whole)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the machine said of each thing that it tried."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "table").write_bytes(bytes(SIZE))
    run("sfdisk", "-q", folder / "table", input=TABLE.encode())
    machine, console, found = started(folder), [], {}
    try:
        for line in lines(machine):
            console.append(line)
            if line.startswith('{"name"'):
                fact = json.loads(line)
                found[fact.pop("name")] = fact
                if "unplug me" in line:
                    unplug(folder / "monitor")
    finally:
        machine.kill()
        machine.wait()
    assert "end" in found, "\n".join(console)
    assert (folder / "vda").read_bytes()[:MIB] == bytes(MIB)
    assert (folder / "sda").read_bytes()[: 2 * MIB] == bytes(MIB) + bytes(range(256)) * 4096
    return found


@pytest.mark.boot
def test_a_disk_of_a_machine(told: dict[str, dict[str, Any]]) -> None:
    """A disk is written to, and the kernel reads the partition table that is on it then."""
    assert told["whole disk"] == {}
    assert told["partitions"] == {"found": ["vda1", "vda2"]}


@pytest.mark.boot
def test_a_held_disk(told: dict[str, dict[str, Any]]) -> None:
    """A partition is refused, and a disk under device mapper; the volume is named."""
    assert told["partition"] == {
        "code": 2,
        "said": "/dev/vda1: nothing was written: it is partition 1 of /dev/vda; name the whole disk",
    }
    assert told["held"] == {
        "code": 2,
        "said": "/dev/vda: nothing was written: vda1 is held by volume; dmsetup remove it first",
    }


@pytest.mark.boot
def test_a_disk_that_is_broken_in_the_middle(told: dict[str, dict[str, Any]]) -> None:
    """A disk with bad sectors (device mapper's error target) fails at their place, with exit code 1,
    and its beginning is zeros."""
    way = "it is broken or badly plugged in; the kernel's log (dmesg) has more"
    assert told["broken"] == {
        "code": 1,
        "said": f"/dev/dm-0: writing at byte {8 * MIB}: Input/output error; {way}",
    }
    assert told["left by broken"] == {"zeros": True}


@pytest.mark.boot
def test_a_disk_that_loses_the_end(told: dict[str, dict[str, Any]]) -> None:
    """A disk that takes the last writes and drops them (dm-flakey) is not called finished."""
    assert told["forgets"] == {
        "code": 1,
        "said": "/dev/dm-0: other bytes than were written are at byte 0; it is broken",
    }


@pytest.mark.boot
def test_a_disk_that_is_unplugged(told: dict[str, dict[str, Any]]) -> None:
    """A disk that is unplugged in the middle is said to be gone, with exit code 1; it has no
    beginning (the fixture looks at it)."""
    assert told["unplugged"]["code"] == 1
    place, _, way = told["unplugged"]["said"].partition(f": writing at byte {4 * MIB}: ")
    assert (place, way.partition("; ")[2]) == ("/dev/sda", "it is gone; plug it in again, and start anew")
