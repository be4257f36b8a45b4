"""An NBD server of images: read-only, several at once, straight from their recipes.

    listener ──> a thread for each client: negotiation, then transmission (which has more threads)

What clients can take of this machine is bounded: their number, the threads of each, the bytes that
each thread holds, and the decoders that run at once for all of them.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import HostileInput
from rehydrator.serve.admission import Client, Clients, origin
from rehydrator.serve.link import Link
from rehydrator.serve.negotiation import negotiate
from rehydrator.serve.transmission import Slots, Transmission

if TYPE_CHECKING:
    from collections.abc import Callable

    from rehydrator.serve.negotiation import Exports

# Seconds that a client has for choosing, and that threads have for ending.
PATIENCE: Final = 60.0
_ENDING: Final = 3.0

# Seconds without a word after which the kernel asks whether a client still exists.
_QUIET: Final = 120

# Different complaints that are passed on: a damaged bundle may have one for each of its frames.
_COMPLAINTS: Final = 100


class Server:
    """Serves whoever connects to `listener`, from start() to stop(). `jobs` is how many threads make
    bytes at once; `say` is told, once each, what goes wrong."""

    def __init__(
        self, listener: socket.socket, exports: Exports, jobs: int, say: Callable[[str], None]
    ) -> None:
        self._listener, self._exports, self._say = listener, exports, say
        self._slots = Slots(jobs)
        self._lock = threading.Lock()
        self._clients = Clients()
        self._said: set[str] = set()
        self._stopped = False
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._accepting.start()

    def stop(self) -> None:
        """Take no more clients, and leave those that there are."""
        with self._lock:
            self._stopped = True
        clients = self._clients.close()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        for client in clients:
            client.link.close()
        deadline = time.monotonic() + _ENDING
        for thread in (self._accepting, *(client.thread for client in clients)):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped:
            try:
                connection, address = self._listener.accept()
            except OSError as error:
                if not self._stopped:
                    self._complain(f"a client was not let in: {error.strerror or error}")
                    time.sleep(0.1)  # out of descriptors, say: that passes
                continue
            self._admit(connection, origin(address))

    def _admit(self, connection: socket.socket, where: str) -> None:
        client = Client(Link(connection), where)
        client.thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
        admitted, message = self._clients.admit(client)
        if message:
            self._complain(message)
        if not admitted:
            client.link.dispose()
            return
        try:
            _tune(connection)
            client.thread.start()
        except RuntimeError as error:
            self._complain(f"a client was sent away: {error}")
            self._forget(client)

    def _serve(self, client: Client) -> None:
        link = client.link
        try:
            link.within(PATIENCE)
            chosen = negotiate(link, self._exports)
            if chosen is not None:
                link.within(None)
                slot = self._slots.of_client()
                client.transmission = Transmission(link, chosen, slot, self._complain)
                client.transmission.run()
        except (OSError, HostileInput):
            pass  # gone, too slow, or no NBD client: nobody else is concerned
        except Exception as error:  # noqa: BLE001 - a defect of ours is this connection's end alone
            self._complain(f"{type(error).__name__}: {error}")
        finally:
            self._forget(client)

    def _forget(self, client: Client) -> None:
        self._clients.remove(client)
        client.link.dispose()

    def _complain(self, message: str) -> None:
        with self._lock:
            if self._stopped or message in self._said or len(self._said) >= _COMPLAINTS:
                return
            self._said.add(message)
        self._say(message)


def _tune(connection: socket.socket) -> None:
    """Replies at once, and a look every now and then whether a quiet client still exists."""
    if connection.family != socket.AF_UNIX:
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _QUIET)
