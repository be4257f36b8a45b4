"""Edits guests in a process of its own: `python3 guest_worker.py guestfs|mount`.

It imports nothing of rehydrator, because the Python that has guestfs is often another one (3.9 or
later). Requests and replies are lines of JSON on stdin and stdout, bytes in them base64:

    {"op": "open", "drives": [...], "epoch": N}                       guestfs only: one launch
    {"op": "entries" | "target" | "read", "source": S, "kind": K, "path": P}
    {"op": "write", "source": S, "kind": K, "files": {P: bytes}, "epoch": N}
    {"op": "close"}
    -> {"value": V}  or  {"error": WORDS, "why": "full" | "failed"}

`source` is a device of the appliance or a file with a filesystem, `kind` ext, xfs or btrfs. Paths
have no symlinks in them: our parent has resolved them. When stdin ends, our parent is gone, and
so are we at once, with the appliance (which we kill) or the mounts (which die with our namespace).
"""

# A guest's paths are strings, and Python 3.9 does not know zip(strict=).
# ruff: noqa: PTH100, PTH101, PTH102, PTH103, PTH104, PTH108, PTH115, PTH123, PTH208, B905
from __future__ import annotations

import base64
import errno
import json
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

TIMEOUT = 120
LABEL = "security.selinux"
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
# A filesystem that looks damaged must not stop the machine; inode tables are left as they are.
OPTIONS = {
    "ext": "noatime,errors=remount-ro,noinit_itable",
    "xfs": "noatime,nouuid",
    "btrfs": "noatime",
}
QUIET = {"ext": ",noload", "xfs": ",norecovery", "btrfs": ""}


class FullError(Exception):
    """There is no room in a filesystem."""


class Appliance:
    """Filesystems inside libguestfs's appliance."""

    def __init__(self, drives: list[dict[str, Any]], epoch: int) -> None:
        import guestfs

        self.guest = guestfs.GuestFS(python_return_dict=True)
        for drive in drives:
            self.guest.add_drive_opts(drive.pop("path"), **drive)
        if epoch >= 0:
            base = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch))
            self.guest.config("-rtc", f"base={base}")
        self.guest.launch()

    def mount(self, source: str, kind: str, writable: bool) -> None:
        options = OPTIONS[kind] if writable else f"ro,{OPTIONS[kind]}{QUIET[kind]}"
        self.guest.mount_options(options, source, "/")

    def umount(self) -> None:
        self.guest.umount_all()

    def check(self, source: str, kind: str) -> None:
        if kind == "ext":
            self.guest.e2fsck(source, correct=True)
        self.guest.sync()

    def names(self, path: str) -> list[str]:
        return [name for name in self.guest.ls(path) if name not in {".", ".."}]

    def stats(self, folder: str, names: list[str]) -> list[tuple[int, int] | None]:
        """Mode and size of each name, None where there is nothing."""
        found = self.guest.lstatnslist(folder, names)
        return [(each["st_mode"], each["st_size"]) if each["st_ino"] != -1 else None for each in found]

    def target(self, path: str) -> str:
        return str(self.guest.readlink(path))

    def read(self, path: str) -> bytes:
        return bytes(self.guest.read_file(path))

    def free(self) -> tuple[int, int]:
        """Bytes that are free, and the size of a block."""
        found = self.guest.statvfs("/")
        return found["bfree"] * found["frsize"], found["frsize"]

    def write(self, path: str, data: bytes) -> None:
        self.guest.rm_f(path)
        with open("upload", "wb") as file:
            file.write(data)
        self.guest.upload("upload", path)
        os.unlink("upload")

    def mkdir(self, path: str) -> None:
        self.guest.mkdir_mode(path, 0o755)
        self.own(path, 0o755)

    def own(self, path: str, mode: int) -> None:
        self.guest.chmod(mode, path)
        self.guest.chown(0, 0, path)

    def like(self, old: str, new: str) -> None:
        self.guest.copy_attributes(old, new, all=True)

    def label(self, folder: str, path: str) -> None:
        for each in self.guest.lgetxattrs(folder):
            if each["attrname"] == LABEL:
                value = each["attrval"]
                words = value.decode() if isinstance(value, bytes) else value
                # The call takes a C string, which ends with the zero byte that labels have.
                self.guest.lsetxattr(LABEL, words.rstrip("\0"), len(words), path)

    def date(self, path: str, epoch: int) -> None:
        self.guest.utimens(path, epoch, 0, epoch, 0)

    def rename(self, old: str, new: str) -> None:
        self.guest.rename(old, new)

    def close(self) -> None:
        self.guest.shutdown()
        self.guest.close()


class Mounts:
    """Filesystems in files, mounted in this process's own mount namespace."""

    def __init__(self) -> None:
        self.point = os.path.abspath("mounted")
        os.makedirs(self.point, exist_ok=True)
        self.mounted = False

    def mount(self, source: str, kind: str, writable: bool) -> None:
        options = f"loop,nodev,nosuid,noexec,{OPTIONS[kind]}"
        if not writable:
            options += f",ro{QUIET[kind]}"
        self._run("mount", "-n", "-t", "ext4" if kind == "ext" else kind, "-o", options, source, self.point)
        self.mounted = True

    def umount(self) -> None:
        if self.mounted:
            self._run("umount", "-n", self.point)
            self.mounted = False

    def check(self, source: str, kind: str) -> None:
        """Our parent checks the file."""

    def names(self, path: str) -> list[str]:
        return os.listdir(self.point + path)

    def stats(self, folder: str, names: list[str]) -> list[tuple[int, int] | None]:
        return [self._stat(f"{folder}/{name}") for name in names]

    def target(self, path: str) -> str:
        return os.readlink(self.point + path)

    def read(self, path: str) -> bytes:
        with open(self._opened(path, os.O_RDONLY), "rb") as file:
            return file.read()

    def free(self) -> tuple[int, int]:
        found = os.statvfs(self.point)
        return found.f_bfree * found.f_frsize, found.f_frsize

    def write(self, path: str, data: bytes) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.point + path)
        with open(self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data)

    def mkdir(self, path: str) -> None:
        os.mkdir(self.point + path)
        self.own(path, 0o755)

    def own(self, path: str, mode: int) -> None:
        os.chown(self.point + path, 0, 0)
        os.chmod(self.point + path, mode)

    def like(self, old: str, new: str) -> None:
        found = os.lstat(self.point + old)
        os.chown(self.point + new, found.st_uid, found.st_gid)
        os.chmod(self.point + new, stat.S_IMODE(found.st_mode))
        for name in os.listxattr(self.point + old):
            os.setxattr(self.point + new, name, os.getxattr(self.point + old, name))

    def label(self, folder: str, path: str) -> None:
        if LABEL in os.listxattr(self.point + folder):
            os.setxattr(self.point + path, LABEL, os.getxattr(self.point + folder, LABEL))

    def date(self, path: str, epoch: int) -> None:
        os.utime(self.point + path, (epoch, epoch))

    def rename(self, old: str, new: str) -> None:
        os.rename(self.point + old, self.point + new)

    def close(self) -> None:
        self.umount()

    def _opened(self, path: str, flags: int) -> int:
        return os.open(self.point + path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def _stat(self, path: str) -> tuple[int, int] | None:
        try:
            found = os.lstat(self.point + path)
        except FileNotFoundError:
            return None
        return found.st_mode, found.st_size

    def _run(self, *argv: str) -> None:
        done = subprocess.run(argv, capture_output=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace").strip() or f"{argv[0]} failed")


class Server:
    """Answers requests, one after the other."""

    def __init__(self, mode: str) -> None:
        self.tree: Any = Mounts() if mode == "mount" else None
        self.reading = ("", "")

    def answer(self, request: dict[str, Any]) -> Any:
        op = request["op"]
        if op == "open":
            self.tree = Appliance(request["drives"], request["epoch"])
            return None
        if op == "close":
            self.tree.close()
            return None
        if op == "write":
            return self._write(request)
        self._read_from(request["source"], request["kind"])
        path = request["path"]
        if op == "entries":
            return self._entries(path)
        if op == "target":
            return self.tree.target(path)
        return base64.b64encode(self.tree.read(path)).decode()

    def _read_from(self, source: str, kind: str) -> None:
        if self.reading != (source, kind):
            self._leave()
            self.tree.mount(source, kind, writable=False)
            self.reading = (source, kind)

    def _leave(self) -> None:
        self.reading = ("", "")
        self.tree.umount()

    def _entries(self, folder: str) -> dict[str, list[Any]]:
        names = self.tree.names(folder)
        stats = zip(names, self.tree.stats(folder, names))
        return {name: [_kind(found[0]), found[1]] for name, found in stats if found}

    def _write(self, request: dict[str, Any]) -> None:
        source, kind = request["source"], request["kind"]
        files = {path: base64.b64decode(data) for path, data in request["files"].items()}
        self._leave()
        self.tree.mount(source, kind, writable=True)
        try:
            self._room(files)
            for path, data in files.items():
                self._replace(path, data, request["epoch"])
            for path, data in files.items():
                if self.tree.read(path) != data:
                    raise RuntimeError(f"{path} does not read back as it was written")
        finally:
            self._leave()
        self.tree.check(source, kind)

    def _room(self, files: dict[str, bytes]) -> None:
        free, block = self.tree.free()
        needed = sum(-(-len(data) // block) + 1 for data in files.values()) * block
        if needed > free:
            raise FullError(f"the new files need {needed} bytes, {free} are free")

    def _replace(self, path: str, data: bytes, epoch: int) -> None:
        """A new file beside the old one, renamed over it, as osbuild does it."""
        folder = path.rpartition("/")[0]
        self._make(folder)
        new = f"{path}.tmp"
        old = self._kind_of(path)
        if old not in {"file", ""}:
            raise RuntimeError(f"{path} is a {old}, not a file that could be replaced")
        self.tree.write(new, data)
        if old:
            self.tree.like(path, new)
        else:
            self.tree.own(new, 0o644)
            self.tree.label(folder or "/", new)
        self.tree.date(new, epoch)
        self.tree.rename(new, path)

    def _make(self, folder: str) -> None:
        above = folder.rpartition("/")[0]
        if folder and not self._kind_of(folder):
            self._make(above)
            self.tree.mkdir(folder)
            self.tree.label(above or "/", folder)

    def _kind_of(self, path: str) -> str:
        folder, _, name = path.rpartition("/")
        if folder and not self._kind_of(folder):
            return ""
        (found,) = self.tree.stats(folder or "/", [name])
        return _kind(found[0]) if found else ""


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "other")


def _reply(server: Server, line: bytes) -> dict[str, Any]:
    try:
        return {"value": server.answer(json.loads(line))}
    except FullError as error:
        return {"error": str(error), "why": "full"}
    except OSError as error:
        return {"error": str(error), "why": "full" if error.errno == errno.ENOSPC else "failed"}
    except Exception as error:  # noqa: BLE001 - whatever it is, our parent must hear of it
        full = "No space left" in str(error)
        return {"error": str(error) or type(error).__name__, "why": "full" if full else "failed"}


def _read_requests(requests: queue.Queue[bytes]) -> None:
    """Runs beside the work, so that the end of our parent is noticed in the middle of it."""
    for line in sys.stdin.buffer:
        requests.put(line)
    for _ in range(2):
        for child in _children():
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
    os._exit(1)


def _children() -> list[int]:
    """Our child processes: the appliance, or mount."""
    found = []
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError), open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            found += [int(pid) for pid in file.read().split()]
    return found


def main(mode: str) -> None:
    """Serve until stdin ends or we are told to close."""
    server = Server(mode)
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    while True:
        line = requests.get()
        sys.stdout.write(json.dumps(_reply(server, line)) + "\n")
        sys.stdout.flush()
        if json.loads(line)["op"] == "close":
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
