"""NBD servers of one image, side by side: ours, nbdkit's Python plugin over the same reader, and
qemu-nbd over the file, which has to be written first.

    python benchmarks/nbd.py REF PLATFORM [ROUNDS]

Needs nbdkit, nbdkit-plugin-python, libnbd-bin and qemu-utils. Prints medians of seconds, the
servers' processor seconds, and their peak memory; everything a client gets goes nowhere.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

PLUGIN = """
import sys
import nbdkit
API_VERSION = 2
asked = {}
def config(key, value): asked[key] = value
def thread_model(): return nbdkit.THREAD_MODEL_PARALLEL
def after_fork():
    global image, opening
    sys.path[:0] = asked["path"].split(":")
    from rehydrator import host
    from rehydrator.cli.common import opened
    from rehydrator.serve.images import SpaceImage, ZeroRuns
    host.one_arena()
    opening = opened(asked["bundle"], None, None, None)
    bundle = opening.__enter__()
    chosen = next(each for each in bundle.manifest.artifacts() if each.platform == asked["disk"])
    image = SpaceImage(bundle.machine, bundle.reader(chosen).space, ZeroRuns(bundle.machine))
def open(readonly): return 1
def get_size(handle): return image.size
def can_write(handle): return False
def can_multi_conn(handle): return True
def can_extents(handle): return True
def pread(handle, target, offset, flags):
    here = 0
    for piece in image.pieces(offset, len(target)):
        data = piece if isinstance(piece, memoryview) else bytes(piece.length)
        target[here:here + len(data)] = data
        here += len(data)
def extents(handle, count, offset, flags):
    found, here = [], offset
    for start, end in image.zero_runs(offset, count):
        found += [(here, start - here, 0)] if here < start else []
        found.append((start, end - start, 3))
        here = end
    return found + ([(here, offset + count - here, 0)] if here < offset + count else [])
"""

HOT, COLD = 5000, 100


class Ran(NamedTuple):
    """One task: seconds by the clock, and the server's processor seconds."""

    wall: float
    server: float


def processor(process: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak(process: int) -> int:
    """Its peak memory in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def read_exactly(connection: socket.socket, length: int) -> None:
    while length:
        length -= len(connection.recv(length))


def random_reads(path: Path, count: int, span: int) -> None:
    """4 KiB at random places of the first `span` bytes (0: all), one after the other."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        read_exactly(connection, 18)
        connection.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, 0))
        (size,) = struct.unpack(">Q2x", connection.recv(10, socket.MSG_WAITALL))
        dice = random.Random(1)
        for cookie in range(count):
            at = dice.randrange((span or size) // 4096) * 4096
            connection.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, cookie, at, 4096))
            read_exactly(connection, 16 + 4096)


def tasks(path: Path) -> dict[str, object]:
    """What clients do, by name: commands and calls."""
    uri = f"nbd+unix:///?socket={path}"
    return {
        "nbdcopy": ["nbdcopy", uri, "null:"],
        "nbdcopy, one connection": ["nbdcopy", "--connections=1", uri, "null:"],
        "qemu-img convert": ["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(path.parent / "copy")],
        f"{HOT} x 4 KiB within 16 MiB": lambda: random_reads(path, HOT, 16 << 20),
        f"{COLD} x 4 KiB anywhere": lambda: random_reads(path, COLD, 0),
    }


def measure(command: list[str], path: Path) -> tuple[dict[str, Ran], int]:
    """Start a server and do everything once; its peak memory."""
    path.unlink(missing_ok=True)
    found = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        while not path.exists():
            time.sleep(0.05)
        for name, task in tasks(path).items():
            used, begin = processor(server.pid), time.monotonic()
            if isinstance(task, list):
                subprocess.run(task, check=True)
            elif callable(task):
                task()
            found[name] = Ran(time.monotonic() - begin, processor(server.pid) - used)
        memory = peak(server.pid)
        server.terminate()
    return found, memory


def main(reference: str, platform: str, rounds: str = "3") -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        path, plugin = home / "socket", home / "plugin.py"
        plugin.write_text(PLUGIN)
        ours = [sys.executable, "-m", "rehydrator"]
        ask = ["--bundle", reference, "--disk", platform]
        subprocess.run([*ours, "rehydrate", home / "files", *ask], check=True)
        [file] = (home / "files").iterdir()
        facts = [f"bundle={reference}", f"disk={platform}", f"path={':'.join([str(Path.cwd()), *sys.path])}"]
        servers = {
            "rehydrator nbd": [*ours, "nbd", *ask, "--socket", str(path)],
            "nbdkit python": ["nbdkit", "-f", "-r", "-U", str(path), "python", str(plugin), *facts],
            "qemu-nbd, the file": [
                "qemu-nbd",
                "-r",
                "-t",
                "-f",
                "raw",
                "-e",
                "8",
                "-k",
                str(path),
                str(file),
            ],
        }
        runs = [(who, *measure(server, path)) for _ in range(int(rounds)) for who, server in servers.items()]
    for who in servers:
        mine = [(found, memory) for each, found, memory in runs if each == who]
        print(f"{who}: {max(memory for _, memory in mine)} MiB")
        for task in mine[0][0]:
            wall = median(found[task].wall for found, _ in mine)
            server = median(found[task].server for found, _ in mine)
            print(f"  {task:28} {wall:7.2f} s  {server:6.2f} CPU s")


if __name__ == "__main__":
    main(*sys.argv[1:])
