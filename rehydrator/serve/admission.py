"""Who is let in, and who has to make room.

Places are few, and holding one costs a client nothing. So who only holds it loses it when it is
wanted: first whoever has not chosen an image for long, then whoever has been idle longest. A client
that asks and reads keeps its place. One TCP address has a part of the places: it makes room among
its own.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    from rehydrator.serve.link import Link
    from rehydrator.serve.transmission import Transmission

MAX_CLIENTS: Final = 64

# A copying client has 4 connections (nbdcopy), a machine's disk one.
MAX_OF_ADDRESS: Final = 16

# Seconds that are enough for a negotiation where places are wanted, and without a request or a
# reply: a guest that works does not reach that.
HURRY: Final = 10.0
IDLE: Final = 30.0

# Who has an IPv6 address has all of its network's.
_NETWORK: Final = 64


@dataclass(eq=False)
class Client:
    """A connection: where it comes from ("" for a unix socket), since when, and what it does once it
    has chosen."""

    link: Link
    origin: str
    since: float = field(default_factory=time.monotonic)
    thread: threading.Thread = field(init=False)
    transmission: Transmission | None = None


class Clients:
    """Those that are in; may be asked from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: set[Client] = set()
        self._closed = False

    def admit(self, client: Client) -> tuple[bool, str]:
        """Let a client in, if there is room or somebody can make room; and what is to be said of it."""
        with self._lock:
            if self._closed:
                return False, ""
            rivals, why = self._rivals(client)
            if not why:
                self._all.add(client)
                return True, ""
            found = _idlest(rivals)
            if found is None:
                return False, f"a client was sent away: {why}, none of them idle"
            leaving, what = found
            self._all.remove(leaving)
            self._all.add(client)
        leaving.link.close()
        return True, f"a client that {what} made room for another one: {why}"

    def remove(self, client: Client) -> None:
        """It is gone."""
        with self._lock:
            self._all.discard(client)

    def close(self) -> list[Client]:
        """Let nobody in any more; those that are in."""
        with self._lock:
            self._closed = True
            return list(self._all)

    def _rivals(self, client: Client) -> tuple[Collection[Client], str]:
        """Among whom somebody has to make room for this client, and why; "" if nobody has to."""
        own = [each for each in self._all if each.origin == client.origin]
        if client.origin and len(own) >= MAX_OF_ADDRESS:
            return own, f"there are {MAX_OF_ADDRESS} of its address"
        if len(self._all) >= MAX_CLIENTS:
            return self._all, f"there are {MAX_CLIENTS}"
        return (), ""


def _idlest(clients: Collection[Client]) -> tuple[Client, str] | None:
    """Who goes first, and why; None where nobody has to."""
    now = time.monotonic()
    silent = [each for each in clients if each.transmission is None and now - each.since >= HURRY]
    if silent:
        return min(silent, key=lambda each: each.since), f"chose nothing for {HURRY:g} s"
    idle = {each: each.transmission.idle_since for each in clients if each.transmission}
    longest = min(idle, key=lambda each: idle[each], default=None)
    if longest is None or now - idle[longest] < IDLE:
        return None
    return longest, f"asked for nothing for {IDLE:g} s"


def origin(address: object) -> str:
    """Whom a socket's address belongs to, as accept() gives it: a host, or a network of IPv6."""
    if not isinstance(address, tuple):
        return ""
    host = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if host.version == 4:
        return str(host)
    return str(ipaddress.ip_network((host, _NETWORK), strict=False))
