"""A web server on this machine that behaves as badly as those on the network: each path has a
behaviour, a function that answers one request. Really over TCP; ports are the system's choice."""

from __future__ import annotations

import email.utils
import hashlib
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Behaviour = Callable[["Request", bytes], None]


class Request(BaseHTTPRequestHandler):
    """One request; `turn` counts those to its path, from 1."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.close_connection = True
        self.turn = self.server.noted(self)
        content, behaviour = self.server.paths.get(self.path, (b"", status(404)))
        with suppress(OSError):
            behaviour(self, content)

    def do_CONNECT(self) -> None:
        self.do_GET()

    def head(self, code: int, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def offset(self, content: bytes, tag: str) -> int:
        """Where the answer begins: what is asked for, if If-Range allows it."""
        asked = self.headers.get("Range", "")
        if not asked or self.headers.get("If-Range", tag) != tag:
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def answer(self, content: bytes, tag: str = "", more: Mapping[str, str] | None = None) -> bytes:
        """Send the head that a proper server sends; the body that should follow."""
        tag = tag or etag(content)
        start = self.offset(content, tag)
        if start >= len(content) > 0:
            self.head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return b""
        body = content[start:]
        headers = {"ETag": tag, "Content-Length": str(len(body)), "Accept-Ranges": "bytes", **(more or {})}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.head(206 if start else 200, headers)
        return body

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Paths and their behaviours, and the requests that came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.paths: dict[str, tuple[bytes, Behaviour]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        self.scheme = "http"
        self._lock = threading.Lock()

    def noted(self, request: Request) -> int:
        with self._lock:
            self.requests.append(
                (request.path, {key.lower(): value for key, value in request.headers.items()})
            )
            return sum(path == request.path for path, _ in self.requests)

    def serve(self, path: str, content: bytes, behaviour: Behaviour | None = None) -> str:
        """Answer a path from now on; its URL."""
        self.paths[path] = content, behaviour or good
        return self.url(path)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.server_port}{path}"

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of the requests for a path."""
        return [headers for each, headers in self.requests if each == path]

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def running(certificate: Path | None = None) -> Iterator[Server]:
    """A server in a thread; https with a PEM file that holds key and certificate."""
    server = Server()
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(pem: Path) -> Path:
    """Write a key and its own certificate, for 127.0.0.1 and no other name."""
    with pem.open("wb") as file:
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                ),
                *("-keyout", "-", "-out", "-", "-days", "2", "-subj", "/CN=test"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
            ],
            check=True,
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    return pem


def etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:16]}"'


# ---- behaviours


def good(request: Request, content: bytes) -> None:
    """As it should be: ranges, and an ETag."""
    request.wfile.write(request.answer(content))


def no_ranges(request: Request, content: bytes) -> None:
    """The whole file, whatever is asked."""
    request.head(200, {"Content-Length": str(len(content)), "ETag": etag(content)})
    request.wfile.write(content)


def status(code: int, headers: Mapping[str, str] | None = None, times: int = 99) -> Behaviour:
    """So many times a status and no file."""

    def behave(request: Request, content: bytes) -> None:
        if request.turn > times:
            good(request, content)
        else:
            request.head(code, {"Content-Length": "0", **(headers or {})})

    return behave


def truncating(
    at: int, times: int = 1, then: Behaviour = good, headers: Mapping[str, str] | None = None
) -> Behaviour:
    """So many times only the first bytes of what was announced."""

    def behave(request: Request, content: bytes) -> None:
        if request.turn > times:
            then(request, content)
        else:
            request.wfile.write(request.answer(content, more=headers)[:at])

    return behave


def without_validator(behaviour: Behaviour) -> Behaviour:
    """As another behaviour, but no answer says by what to tell a change."""

    def behave(request: Request, content: bytes) -> None:
        sent = request.send_header
        request.send_header = lambda name, value: name != "ETag" and sent(name, value)  # type: ignore[method-assign,assignment]
        behaviour(request, content)

    return behave


def chunked(stop_at: int = -1, times: int = 1) -> Behaviour:
    """In chunks; so many times broken off within one."""

    def behave(request: Request, content: bytes) -> None:
        request.head(200, {"Transfer-Encoding": "chunked", "ETag": etag(content)})
        body = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part)
            for part in (content[start : start + 1000] for start in range(0, len(content), 1000))
        )
        cut = stop_at >= 0 and request.turn <= times
        request.wfile.write(body[:stop_at] if cut else body + b"0\r\n\r\n")

    return behave


def stalling(at: int, times: int = 1) -> Behaviour:
    """So many times some bytes, and then nothing more, while the connection stays."""

    def behave(request: Request, content: bytes) -> None:
        if request.turn > times:
            good(request, content)
            return
        request.wfile.write(request.answer(content)[:at])
        request.server.closing.wait(30)

    return behave


def slow(pieces: int, pause: float) -> Behaviour:
    """Alive, but slow."""

    def behave(request: Request, content: bytes) -> None:
        body = request.answer(content)
        step = -(-len(body) // pieces)
        for start in range(0, len(body), step):
            request.wfile.write(body[start : start + step])
            request.server.closing.wait(pause)

    return behave


def resetting(at: int, times: int = 1) -> Behaviour:
    """So many times some bytes, then RST."""

    def behave(request: Request, content: bytes) -> None:
        if request.turn > times:
            good(request, content)
            return
        if at:
            request.wfile.write(request.answer(content)[:at])
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()

    return behave


def redirecting(to: str, code: int = 302) -> Behaviour:
    """To somewhere else."""
    return status(code, {"Location": to})


def tunnelling(request: Request, content: bytes) -> None:
    """As a proxy answers CONNECT (RFC 9110, 9.3.6): bytes to and fro, until both ends are done."""
    host, _, port = request.path.rpartition(":")
    with socket.create_connection((host, int(port))) as other:
        request.send_response(200)
        request.end_headers()
        back = threading.Thread(target=_pass_on, args=(other, request.connection), daemon=True)
        back.start()
        _pass_on(request.connection, other)
        back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def wrong_range(request: Request, content: bytes) -> None:
    """206 with as many bytes as were asked for, but from 500 on (after a truncated beginning)."""
    if not request.headers.get("Range"):
        truncating(1000)(request, content)
        return
    start = request.offset(content, etag(content))
    body = content[500 : 500 + len(content) - start]
    span = f"bytes 500-{499 + len(body)}/{len(content)}"
    request.head(206, {"ETag": etag(content), "Content-Range": span, "Content-Length": str(len(body))})
    request.wfile.write(body)


def in_pieces(size: int) -> Behaviour:
    """Ranges of so many bytes at most, as a server may give (after a truncated beginning)."""

    def behave(request: Request, content: bytes) -> None:
        if not request.headers.get("Range"):
            truncating(size)(request, content)
            return
        start = request.offset(content, etag(content))
        body = content[start : start + size]
        span = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        request.head(206, {"ETag": etag(content), "Content-Range": span, "Content-Length": str(len(body))})
        request.wfile.write(body)

    return behave


def flooding(request: Request, content: bytes) -> None:
    """The range that was asked for (after a truncated beginning), and then more bytes."""
    if not request.headers.get("Range"):
        truncating(1000, times=1)(request, content)
        return
    start = request.offset(content, etag(content))
    request.head(206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})
    request.wfile.write(content[start:] + b"more")


def gzipped(request: Request, content: bytes) -> None:
    """Encoded, though identity was asked for."""
    request.head(200, {"Content-Encoding": "gzip", "Content-Length": str(len(content))})
    request.wfile.write(content)


def lying(length: int) -> Behaviour:
    """A Content-Length that is not that of the body."""

    def behave(request: Request, content: bytes) -> None:
        request.head(200, {"Content-Length": str(length)})
        request.wfile.write(content)

    return behave


def endless(request: Request, content: bytes) -> None:
    """A body without length and end."""
    request.head(200, {})
    while not request.server.closing.is_set():
        request.wfile.write(content)


def spoilt_after_resume(times: int) -> Behaviour:
    """Right from the beginning, wrong in what is resumed; so many times broken off."""

    def behave(request: Request, content: bytes) -> None:
        body = request.answer(content)
        if request.headers.get("Range"):
            request.wfile.write(bytes(len(body)))
        else:
            request.wfile.write(body[:1000] if request.turn <= times else body)

    return behave


def changing(new: bytes, *, honest: bool) -> Behaviour:
    """Another file after the first, truncated answer; one that is not honest resumes it as if it
    were the same, under its new ETag."""

    def behave(request: Request, content: bytes) -> None:
        if request.turn == 1:
            request.wfile.write(request.answer(content)[:1000])
            return
        if not honest and "If-Range" in request.headers:
            request.headers.replace_header("If-Range", etag(new))
        request.wfile.write(request.answer(new))

    return behave


def later(seconds: int) -> str:
    """An HTTP-date so many seconds from now."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)
