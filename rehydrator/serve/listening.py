"""Where a server listens, and how clients name that (NBD URI,
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md)."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from rehydrator.core.errors import RehydratorError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Clients that may wait to be let in.
_WAITING: Final = 64
_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Place:
    """A unix socket's path, or a TCP address."""

    path: Path | None = None
    host: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket that clients may connect to; `authority` is its TCP address as the user named it, "" for
    a unix socket."""

    socket: socket.socket
    path: str = ""
    authority: str = ""

    def uri(self, name: str = "", *, here: bool = False) -> str:
        """What clients take for an image; "" is the default one. Where all addresses are listened on,
        it names this machine; with `here`, for a client on this machine alone, its loopback address."""
        export = quote(name, safe="")
        if self.path:
            return f"nbd+unix:///{export}?socket={quote(self.path)}"
        if not ipaddress.ip_address(self._address()).is_unspecified:
            return f"nbd://{self.authority}/{export}"
        loopback = "[::1]" if ":" in self._address() else "127.0.0.1"
        return f"nbd://{loopback if here else quote(socket.gethostname())}:{self.port}/{export}"

    @property
    def public(self) -> bool:
        """Whether others than this machine may reach it."""
        return bool(self.authority) and not ipaddress.ip_address(self._address()).is_loopback

    @property
    def port(self) -> int:
        """The TCP port, 0 for a unix socket."""
        return int(self.socket.getsockname()[1]) if self.authority else 0

    def _address(self) -> str:
        return str(self.socket.getsockname()[0]).partition("%")[0]


def place_of(path: Path | None, listen: str | None) -> Place | None:
    """What the user named, if he did.

    Raises:
        UsageError: `listen` is not HOST:PORT.
    """
    if path is not None:
        return Place(path=path.absolute())
    if listen is None:
        return None
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise UsageError(f"--listen {listen}: name HOST:PORT, as in 127.0.0.1:10809 (0.0.0.0 is everybody)")
    return Place(host=host, port=int(port))


@contextmanager
def listening(place: Place) -> Iterator[Listening]:
    """Listen there; a unix socket's file is gone afterwards.

    Raises:
        UsageError: there is a file already, or no such directory or address.
        RehydratorError: the system refuses.
    """
    with _unix(place.path) if place.path else _tcp(place.host, place.port) as found:
        yield found


@contextmanager
def _tcp(host: str, port: int) -> Iterator[Listening]:
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"{host}: {error.strerror or error}; name an address of this machine") from None
    with socket.socket(family, kind) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            made.bind(address)
            made.listen(_WAITING)
        except OSError as error:
            what = f"{host} port {port}: {error.strerror}"
            raise RehydratorError(f"{what}; name another with --listen (port 0: any that is free)") from None
        shown = f"[{host}]" if ":" in host else host
        yield Listening(made, authority=f"{shown}:{made.getsockname()[1]}")


@contextmanager
def _unix(path: Path) -> Iterator[Listening]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        _bind(made, path)
        mine = _identity(path)
        try:
            made.listen(_WAITING)
            yield Listening(made, path=str(path))
        finally:
            if mine and mine == _identity(path):
                path.unlink(missing_ok=True)


def _bind(made: socket.socket, path: Path) -> None:
    """A new file, for its owner alone from the beginning."""
    _remove_abandoned(path)
    mask = os.umask(0o777 & ~_MODE)
    try:
        made.bind(str(path))
    except OSError as error:
        raise UsageError(_why_not(path, error)) from None
    finally:
        os.umask(mask)


def _why_not(path: Path, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{path}: is there already; remove it, or name another with --socket"
    if error.errno is None:
        return f"{path}: too long for a unix socket (107 bytes at most); name another with --socket"
    return f"{path}: {error.strerror}; name another place with --socket"


def _remove_abandoned(path: Path) -> None:
    """Remove a socket that nobody listens on: a server that was killed left it. Anything else stays."""
    with suppress(OSError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            asked.settimeout(1)
            try:
                asked.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
