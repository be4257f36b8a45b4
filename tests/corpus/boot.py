"""A disk that boots: the smallest initramfs that proves the disk, and QEMU to see it say so."""

from __future__ import annotations

import gzip
import select
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.corpus.content import newc

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER = "REHYDRATOR-BOOT-OK"
MANIFEST = "etc/rehydrator.sha256"
_BUSYBOX = Path("/bin/busybox")
# The initramfs mounts the root filesystem and checks its files against the manifest in it.
_INIT = f"""#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
busybox mkdir -p /proc /sysroot
busybox mount -t proc proc /proc
while read -r module; do busybox insmod "/modules/$module"; done </modules/order
busybox mount -o ro -t FILESYSTEM /dev/vda4 /sysroot && cd /sysroot &&
busybox sha256sum -c {MANIFEST} >/summary 2>&1 &&
echo "{MARKER} files=$(busybox wc -l </summary) $(busybox cat /proc/cmdline)"
busybox tail -n 3 /summary
busybox poweroff -f
"""


def newest_kernel() -> tuple[Path, Path]:
    """The newest kernel of this machine that has its modules here: image and module directory."""
    for image in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        modules = Path("/lib/modules", image.name.removeprefix("vmlinuz-"))
        if modules.is_dir():
            return image, modules
    raise RuntimeError("no kernel in /boot has modules: install linux-image-cloud-amd64")


def boot_initramfs(modules: Path, filesystem: str) -> bytes:
    """busybox, the drivers of a virtio disk and of the root filesystem, and init."""
    directory, executable, regular = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    members = dict.fromkeys(("bin", "dev", "modules"), (directory, b""))
    members["bin/busybox"] = (executable, _BUSYBOX.read_bytes())
    members["init"] = (executable, _INIT.replace("FILESYSTEM", filesystem).encode())
    drivers = list(dict.fromkeys(_with_dependencies(modules, ("virtio_pci", "virtio_blk", filesystem))))
    for driver in drivers:
        members[f"modules/{driver.name}"] = (regular, driver.read_bytes())
    members["modules/order"] = (regular, "".join(f"{driver.name}\n" for driver in drivers).encode())
    return gzip.compress(newc(members), 6, mtime=0)


def _with_dependencies(modules: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """The files to load, in order; a driver that is built in has none."""
    table = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, needs = line.split(":")
        table[Path(file).name.split(".")[0]] = [*reversed(needs.split()), file]
    for name in names:
        yield from (modules / file for file in table.get(name, []))


def boot(image: Path | str, image_format: str, timeout: float, marker: str = MARKER) -> tuple[bool, str]:
    """Start a machine from the disk, emulated; whether the serial console showed `marker` within
    `timeout` seconds, and all that it showed. The image is not written."""
    drive = f"file={image},format={image_format},if=virtio,snapshot=on"
    # /dev/kvm may exist and hang, so acceleration is never left to QEMU's choice.
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-m",
        "1024",
        "-nographic",
        "-no-reboot",
        "-net",
        "none",
    ]
    machine = subprocess.Popen(
        [*command, "-drive", drive],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        shown = _read_until(machine, marker.encode(), time.monotonic() + timeout)
    finally:
        machine.kill()
        machine.wait()
    return marker.encode() in shown, shown.decode(errors="replace")


def _read_until(machine: subprocess.Popen[bytes], marker: bytes, deadline: float) -> bytes:
    """What the machine says, up to the end of the line with the marker."""
    assert machine.stdout is not None
    shown = b""
    while b"\n" not in shown.partition(marker)[2]:
        if not select.select([machine.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
            break
        said = machine.stdout.read1(65536)  # type: ignore[attr-defined]
        if not said:
            break
        shown += said
    return shown
