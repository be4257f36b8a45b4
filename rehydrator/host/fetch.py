"""The only door to outgoing HTTP: small documents into memory, large files into place.

What a download leaves, where `target` is `x.qcow2.xz`:

    x.qcow2.xz                      complete, its digest (if one was given) right, on the disk
    x.qcow2.xz.<url>.part           the first bytes of it, as long as it is not complete
    x.qcow2.xz.<url>.part.json      by what the server can tell whether they are still its own

`<url>` is a digest of the URL, so that two URLs never continue one another's bytes. Files are
flushed to the disk before they get their name: a name that survives a power cut has its bytes.

A request asks for no encoding and refuses one that it gets (the digest would be of other bytes),
follows five redirects, none from https to http, and sends a URL's user name and password to
that URL's own host only; no message shows them. Certificates are always checked. Proxies and
certificate bundles come from the environment, as curl takes them.

RFC 9110: 13.1.5 If-Range, 14 ranges, 10.2.3 Retry-After, 15.4 redirects.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import ssl
import stat
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Self, TypeVar
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from rehydrator import __version__
from rehydrator.core.errors import (
    DigestMismatch,
    HostileInput,
    Interrupted,
    LimitExceeded,
    NetworkError,
    NotInBundle,
    RehydratorError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from urllib3 import BaseHTTPResponse, PoolManager

_Result = TypeVar("_Result")

_CHUNK: Final = 256 << 10
_REDIRECTS: Final = 5
# An attempt that brought this many bytes counts as a beginning, not as a failure more.
_ADVANCE: Final = 1 << 20
_STATE_LIMIT: Final = 16 << 10
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_ABSENT: Final = frozenset({403, 404, 410})
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# The end of a file's name in the directory; what is longer does not fit beside ".part.json".
_NAME_BYTES: Final = 200


_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e\xa0-\xff](?:[\x20-\x7e\xa0-\xff]{0,500}[\x21-\x7e\xa0-\xff])?")


class NotFound(NetworkError):
    """The server does not have it, or does not give it to us."""


class NoSuchFile(NotInBundle):
    """A file of this machine is not there."""


# What there is none of, wherever it was looked for.
MISSING: Final = (NotFound, NoSuchFile)


class TooLarge(LimitExceeded):
    """More bytes than are allowed; none of them is worth keeping."""


class _Passing(Exception):
    """An attempt failed in a way that may pass; `wait` is the server's wish, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Options:
    """How patient a client is. `timeout`: seconds without a byte. `retries`: further attempts after
    one that failed in a way that may pass; one that brought 1 MiB is not counted. `pause`: seconds
    before the first of them, doubled each time up to `longest_pause`, which also bounds what a
    server's Retry-After may ask for. `max_size`: bytes of one file.
    """

    timeout: float = 30.0
    retries: int = 5
    pause: float = 1.0
    longest_pause: float = 60.0
    max_size: int = 256 << 30


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A complete file: bytes, and SHA-256 in hexadecimal."""

    size: int
    sha256: str


def _silent(_: object) -> None:
    pass


def is_remote(source: str) -> bool:
    """Is this an http or https URL, and not a file of this machine?"""
    return source.lower().startswith(("http://", "https://"))


def shown(source: str) -> str:
    """A URL as messages show it: without user name, password and query, which may be secret."""
    if not is_remote(source):
        return source
    scheme, _, rest = source.partition("://")
    plain, query, _ = rest.partition("?")
    authority, slash, path = plain.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}{'?…' if query else ''}"


def is_full(error: OSError) -> bool:
    """Did the disk, or a quota, run out?"""
    return error.errno in _FULL


def joined(document: str, location: str) -> str:
    """The URL of what a document at `document` (a URL or a path) calls `location`, which may be
    relative. The document's user name and password go with what lies on its own server.

    Raises:
        HostileInput: it is no URL; or a document from the network names a file of this machine.
    """
    if not is_remote(document):
        if "://" in location:
            return location
        local = document.startswith("file://")
        return urljoin(document if local else Path(document).absolute().as_uri(), location)
    base = _parsed(document)
    try:
        url = _parsed(urljoin(document, location))
    except ValueError:
        raise HostileInput(f"{shown(location)!r}: not a URL") from None
    if not is_remote(url.geturl()):
        raise HostileInput(f"{location!r}: a document from the network must not name files of this machine")
    if _origin(url) == _origin(base) and "@" in base.netloc and "@" not in url.netloc:
        url = url._replace(netloc=base.netloc)
    return url.geturl()


def read(source: str, limit: int) -> bytes:
    """What a URL (http, https, file) or a path holds, at most `limit` bytes; tried three times.

    Raises:
        NotFound, NoSuchFile: there is no such thing.
        NetworkError: it could not be had.
        LimitExceeded: it is larger.
        HostileInput: this is no URL.
        RehydratorError: a file of this machine cannot be read.
    """
    with opened(Options(retries=2)) as client:
        return client.read(source, limit)


@contextmanager
def opened(options: Options | None = None, tell: Callable[[str], object] = _silent) -> Iterator[Client]:
    """A client, its connections closed at the end of the block; `tell` hears of what is tried
    again, in a sentence.
    """
    client = Client(options or Options(), tell)
    try:
        yield client
    finally:
        client.stop()


class Client:
    """Fetches; one for all threads, which share its connections."""

    def __init__(self, options: Options, tell: Callable[[str], object] = _silent) -> None:
        self.options = options
        self._tell = tell
        self._stopped = threading.Event()
        self._pools: dict[str, PoolManager] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Start nothing from now on; threads that are fetching get Interrupted at their next byte."""
        self._stopped.set()
        with self._lock:
            for pool in self._pools.values():
                pool.clear()

    def refuse_when_stopped(self) -> None:
        """Raises Interrupted after stop()."""
        if self._stopped.is_set():
            raise Interrupted("interrupted")

    def read(self, source: str, limit: int) -> bytes:
        """As the function read of this module, and raising what that raises."""

        def attempt() -> bytes:
            with self._answer(source, {}) as answer:
                answer.refuse_above(limit)
                return b"".join(answer.chunks(limit))

        return self._until_it_passes(source, attempt, lambda: 0)

    def download(
        self,
        source: str,
        target: Path,
        *,
        expected: str = "",
        progress: Callable[[int], object] = _silent,
        check: Callable[[Path], object] = _silent,
    ) -> Downloaded:
        """Fetch a file into place, going on from what an earlier run left. `expected` is its SHA-256
        in hexadecimal, if known. `progress` hears of every number of bytes (a negative one where
        they are thrown away). `check` gets the complete file before it has its name and may
        refuse it by raising; then it is kept as .part if its digest is the expected one.

        Raises:
            DigestMismatch: the bytes are not those of `expected`; none of them is kept.
            NotFound, NoSuchFile: there is no such thing.
            NetworkError: it could not be had; what came is kept for the next run.
            LimitExceeded: it is larger than allowed, or the disk is full.
            HostileInput: this is no URL.
            RehydratorError: a file of this machine cannot be read, or what lies where its part
                belongs is no file.
        """
        _parsed(source)
        with _Part(source, target, progress) as part:
            if not (expected and part.sha256 == expected):
                self._complete(source, part, expected)
            done = Downloaded(part.size, part.sha256)
            try:
                check(part.path)
            except RehydratorError:
                if not expected:
                    part.remove()
                raise
            part.publish()
        return done

    def _complete(self, source: str, part: _Part, expected: str) -> None:
        self._fill(source, part, expected)
        if expected and part.sha256 != expected and part.pieced:
            self._tell(f"{shown(source)}: the parts do not fit together; once more from the beginning")
            part.restart()
            part.resumable = False
            self._fill(source, part, expected)
        if expected and part.sha256 != expected:
            found = part.sha256
            part.remove()
            raise DigestMismatch(
                f"{part.target}: sha256 of what {shown(source)} gives is {found}, expected {expected}; "
                "it was not kept"
            )

    def _fill(self, source: str, part: _Part, expected: str) -> None:
        self._until_it_passes(source, lambda: self._attempt(source, part, expected), lambda: part.size)

    def _attempt(self, source: str, part: _Part, expected: str) -> None:
        if part.size and not (part.resumable and (part.validator or expected)):
            part.restart()
        headers = part.range_headers()
        with self._answer(source, headers) as answer:
            if headers and answer.status == 416:
                part.restart()
                raise _Passing("the server has fewer bytes than came before")
            if headers and answer.status == 206:
                part.go_on(answer, self.options.max_size)
            else:
                answer.refuse_above(self.options.max_size)
                part.begin(answer)
            try:
                for chunk in answer.chunks(self.options.max_size - part.size):
                    part.write(chunk)
            except TooLarge:
                part.restart()
                raise
        if part.total is not None and part.size > part.total:
            part.anew("more bytes came than the server announced")
        if part.total is not None and part.size < part.total:
            raise _Passing(f"the body ended after {part.size} of {part.total} bytes")

    def _until_it_passes(
        self, source: str, attempt: Callable[[], _Result], size: Callable[[], int]
    ) -> _Result:
        failures, most = 0, size()
        while True:
            try:
                return attempt()
            except _Passing as trouble:
                # What was thrown away and came again is no advance.
                failures = 1 if size() - most >= _ADVANCE else failures + 1
                most = max(most, size())
                if failures > self.options.retries:
                    raise NetworkError(
                        f"{shown(source)}: {trouble}; given up after {failures} "
                        f"{'attempt' if failures == 1 else 'attempts'}"
                    ) from None
                pause = min(
                    self.options.longest_pause,
                    max(trouble.wait, self.options.pause * 2 ** min(failures - 1, 16)),
                )
                self._tell(f"{shown(source)}: {trouble}; trying again in {pause:.0f} s")
                if self._stopped.wait(pause):
                    raise Interrupted("interrupted") from None

    @contextmanager
    def _answer(self, source: str, headers: Mapping[str, str]) -> Iterator[_Answer]:
        self.refuse_when_stopped()
        url = _parsed(source)
        if url.scheme in {"", "file"}:
            with _local(source, url, self) as answer:
                yield answer
            return
        response = self._follow(source, url, headers)
        try:
            yield _Answer(source, response.status, response.headers, response.read1, self)
        finally:
            # A connection with bytes left is not used again.
            response.close()

    def _follow(self, source: str, url: SplitResult, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """The first answer that is no redirect, its status one that has a body for us."""
        home = _origin(url)
        secret = _credentials(url)
        for _ in range(_REDIRECTS + 1):
            own = secret if _origin(url) == home else _credentials(url)
            response = self._request(url, {**headers, **own})
            if response.status not in _MOVED:
                _judge(source, response, asked_range="Range" in headers)
                return response
            response.close()
            url = _redirected(source, url, response.headers.get("Location", ""))
        raise NetworkError(f"{shown(source)}: more than {_REDIRECTS} redirects")

    def _request(self, url: SplitResult, headers: Mapping[str, str]) -> BaseHTTPResponse:
        import urllib3

        self.refuse_when_stopped()
        plain = urlunsplit((url.scheme, _host(url), url.path or "/", url.query, ""))
        always = {"User-Agent": f"rehydrator/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"}
        try:
            return self._pool(url).request(
                "GET",
                plain,
                headers={**always, **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=self.options.timeout, read=self.options.timeout),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._failure(urlunsplit((url.scheme, url.netloc, url.path, "", "")), error) from None

    def _failure(self, url: str, error: Exception) -> Exception:
        import urllib3

        if isinstance(error, urllib3.exceptions.LocationValueError):
            return HostileInput(f"{shown(url)}: not a URL that can be fetched")
        untrusted = _cause(error, ssl.SSLCertVerificationError)
        if untrusted:
            said = getattr(untrusted, "verify_message", "") or "not trusted"
            return NetworkError(
                f"{shown(url)}: the server's certificate is refused: {said} (a certificate authority of "
                "your own is named with SSL_CERT_FILE or REQUESTS_CA_BUNDLE)"
            )
        refused = _tunnel_status(error)
        if refused and refused not in _PASSING:
            return NetworkError(f"{shown(url)}: the proxy answers {refused}")
        unknown = _cause(error, socket.gaierror)
        if isinstance(unknown, socket.gaierror) and unknown.errno == socket.EAI_NONAME:
            return NetworkError(f"{shown(url)}: {_reason(error, self.options.timeout)}")
        return _Passing(_reason(error, self.options.timeout))

    def _pool(self, url: SplitResult) -> PoolManager:
        proxy = _proxy_for(url)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = _new_pool(proxy)
            return self._pools[proxy]


# ---- URLs


def _parsed(source: str) -> SplitResult:
    """The parts of a URL; of a path, a URL without a scheme.

    Raises:
        HostileInput: it is neither.
    """
    if "://" not in source:
        return SplitResult("", "", source, "", "")
    try:
        url = urlsplit(source)
        _ = url.port
    except ValueError as error:
        raise HostileInput(f"{shown(source)!r}: not a URL: {error}") from None
    remote = url.scheme in {"http", "https"} and url.hostname
    local = url.scheme == "file" and url.netloc in {"", "localhost"}
    if not (remote or local) or any(ord(letter) < 33 or ord(letter) == 127 for letter in source):
        raise HostileInput(f"{shown(source)!r}: not an http, https or file URL")
    return url


def _redirected(source: str, url: SplitResult, location: str) -> SplitResult:
    if not location:
        raise NetworkError(f"{shown(source)}: redirected to nowhere")
    try:
        new = _parsed(urljoin(url.geturl(), location))
    except (HostileInput, ValueError):
        raise NetworkError(f"{shown(source)}: redirected to what is no URL") from None
    if new.scheme not in {"http", "https"}:
        raise NetworkError(f"{shown(source)}: redirected to what is not on the network")
    if url.scheme == "https" and new.scheme == "http":
        raise NetworkError(f"{shown(source)}: redirected from https to http ({shown(new.geturl())}), refused")
    return new


def _host(url: SplitResult) -> str:
    """Host and port, without user name and password."""
    return url.netloc.rpartition("@")[2]


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _credentials(url: SplitResult) -> dict[str, str]:
    from urllib3.util import make_headers

    if not (url.username or url.password):
        return {}
    both = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    try:
        return {"Authorization": make_headers(basic_auth=both)["authorization"]}
    except UnicodeEncodeError:
        raise HostileInput(f"{shown(url.geturl())}: user name and password must be Latin-1") from None


# ---- proxies and certificates, as the environment says


def _proxy_for(url: SplitResult) -> str:
    """The proxy's URL for a URL; empty where there is none. As curl: http_proxy, https_proxy,
    all_proxy, no_proxy (upper case too).
    """
    from urllib.request import getproxies, proxy_bypass

    if proxy_bypass(_host(url)):
        return ""
    proxies = getproxies()
    found = proxies.get(url.scheme) or proxies.get("all") or ""
    return found if "://" in found or not found else f"http://{found}"


def _new_pool(proxy: str) -> PoolManager:
    import urllib3

    context = _tls()
    if not proxy:
        return urllib3.PoolManager(ssl_context=context, maxsize=16)
    try:
        url = urlsplit(proxy)
        known = url.scheme in {"http", "https"} and url.hostname and (url.port or True)
    except ValueError:
        known = False
    if not known:
        raise UsageError(f"proxy {shown(proxy) if is_remote(proxy) else '(of the environment)'}: only http")
    secret = _credentials(url)
    return urllib3.ProxyManager(
        urlunsplit((url.scheme, _host(url), "", "", "")),
        proxy_headers={"Proxy-Authorization": secret["Authorization"]} if secret else None,
        ssl_context=context,
        proxy_ssl_context=context,
        maxsize=16,
    )


def _tls() -> ssl.SSLContext:
    """Certificates always checked. OpenSSL itself honours SSL_CERT_FILE and SSL_CERT_DIR."""
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    try:
        if named and Path(named).is_dir():
            return ssl.create_default_context(capath=named)
        return ssl.create_default_context(cafile=named or None)
    except (OSError, ssl.SSLError):
        raise UsageError(
            f"{named}: no certificates there (REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names it)"
        ) from None


# ---- answers


def _judge(source: str, response: BaseHTTPResponse, *, asked_range: bool) -> None:
    """Let pass an answer whose body is what was asked for.

    Raises:
        NotFound, NetworkError: it is not, and will not be.
        _Passing: it may be in a moment.
    """
    refusal = _refusal(source, response, asked_range=asked_range)
    if refusal:
        response.close()
        raise refusal


def _refusal(source: str, response: BaseHTTPResponse, *, asked_range: bool) -> Exception | None:
    said = f"{shown(source)}: the server answers {response.status} {response.reason or ''}".rstrip()
    if response.status in _ABSENT:
        return NotFound(said)
    if response.status in _PASSING:
        return _Passing(f"the server answers {response.status}", _retry_after(response))
    if response.status not in ({200, 206, 416} if asked_range else {200}):
        return NetworkError(said)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    transfer = response.headers.get("Transfer-Encoding", "").strip().lower()
    if transfer not in {"", "chunked"}:
        encoding = transfer
    if response.status != 416 and encoding not in {"", "identity"}:
        return NetworkError(f"{shown(source)}: the server encodes it ({encoding}), which was not asked for")
    return None


def _retry_after(response: BaseHTTPResponse) -> float:
    """Seconds; 0 where the server names none that can be understood."""
    from email.utils import parsedate_to_datetime

    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """The first error of a kind among an error, its arguments and what caused it."""
    for _ in range(10):
        if error is None or isinstance(error, kind):
            return error
        inner = next((each for each in error.args if isinstance(each, BaseException)), None)
        error = inner or error.__cause__ or error.__context__
    return None


def _tunnel_status(error: Exception) -> int:
    """What a proxy answered to CONNECT, which http.client has in its message only; else 0."""
    found = re.search(r"Tunnel connection failed: ([0-9]{3})\b", str(_cause(error, OSError)))
    return int(found[1]) if found else 0


def _reason(error: Exception, timeout: float) -> str:
    """An error of urllib3's in words; its own name addresses of Python objects."""
    from urllib3 import exceptions

    if isinstance(error, exceptions.NameResolutionError):
        return "the host's name is not known"
    if _cause(error, TimeoutError):
        return f"not a byte for {timeout:g} s"
    system = _cause(error, OSError)
    if isinstance(system, ssl.SSLError) and system.reason:  # WRONG_VERSION_NUMBER: no TLS at all
        return f"TLS failed: {system.reason.replace('_', ' ').lower()}"
    if isinstance(system, OSError) and system.strerror:
        return system.strerror.lower()
    if isinstance(error, exceptions.TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, exceptions.ProxyError):
        answered = _tunnel_status(error)
        return f"the proxy answers {answered}" if answered else "the proxy refuses"
    if _cause(error, exceptions.IncompleteRead) or isinstance(error, exceptions.ProtocolError):
        return "the connection broke off"
    return f"no HTTP ({type(error).__name__})"


class _Answer:
    """One answer: its facts, and its body chunk by chunk."""

    def __init__(
        self,
        source: str,
        status: int,
        headers: Mapping[str, str],
        read: Callable[[int], bytes],
        client: Client,
    ) -> None:
        self.source, self.status, self.headers = source, status, headers
        self._read, self._client = read, client

    @property
    def length(self) -> int | None:
        """Bytes of the body, as the server announces them."""
        if self.headers.get("Transfer-Encoding"):
            return None
        value = self.headers.get("Content-Length", "")
        return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None

    @property
    def validators(self) -> dict[str, str]:
        """By what the server can tell whether its file changed (a weak ETag cannot)."""
        etag = self.headers.get("ETag", "")
        modified = self.headers.get("Last-Modified", "")
        return _fit({"etag": "" if etag.startswith("W/") else etag, "modified": modified})

    @property
    def range(self) -> tuple[int, int, int | None] | None:
        """First byte, the byte after the last, and the file's size, if the server knows it."""
        found = _CONTENT_RANGE.fullmatch(self.headers.get("Content-Range", "").strip())
        if not found:
            return None
        first, end = int(found[1]), int(found[2]) + 1
        size = None if found[3] == "*" else int(found[3])
        return (first, end, size) if first < end and (size is None or end <= size) else None

    def refuse_above(self, limit: int) -> None:
        if self.length is not None and self.length > limit:
            raise TooLarge(f"{shown(self.source)}: {self.length} bytes, at most {limit} are allowed")

    def chunks(self, limit: int) -> Iterator[bytes]:
        """The body, what there is of it as soon as it comes; at most `limit` bytes."""
        while chunk := self._chunk():
            limit -= len(chunk)
            if limit < 0:
                raise TooLarge(f"{shown(self.source)}: larger than is allowed")
            yield chunk

    def _chunk(self) -> bytes:
        from urllib3.exceptions import HTTPError

        self._client.refuse_when_stopped()
        try:
            return self._read(_CHUNK)
        except (HTTPError, OSError, ValueError) as error:
            raise _Passing(_reason(error, self._client.options.timeout)) from None


@contextmanager
def _local(source: str, url: SplitResult, client: Client) -> Iterator[_Answer]:
    """A file of this machine as an answer; it is always given whole."""
    path = unquote(url.path) if url.scheme else source
    try:
        # A pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise NoSuchFile(f"{source}: no such file") from None
    except OSError as error:
        raise RehydratorError(f"{source}: {os.strerror(error.errno or 0).lower()}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise RehydratorError(f"{source}: not a regular file")
        headers = {"Content-Length": str(found.st_size)}
        yield _Answer(source, 200, headers, lambda count: os.read(descriptor, count), client)
    finally:
        os.close(descriptor)


# ---- what came so far


def part_of(source: str, target: Path) -> Path:
    """Where the first bytes of `target` lie until it is complete."""
    url = _parsed(source)
    plain = urlunsplit((url.scheme, _host(url), url.path, url.query, ""))
    digest = hashlib.sha256(plain.encode(errors="surrogatepass")).hexdigest()[:12]
    name = os.fsdecode(os.fsencode(target.name)[:_NAME_BYTES])
    return target.with_name(f"{name}.{digest}.part")


def state_of(part: Path) -> Path:
    """Where it says by what the server can tell whether a part is still of its file."""
    return part.with_name(f"{part.name}.json")


def _fit(validators: dict[str, str]) -> dict[str, str]:
    """Those that can be sent as a header's value."""
    return {key: value for key, value in validators.items() if _HEADER_VALUE.fullmatch(value)}


class _Part:
    """The first bytes of a file, on the disk and in its digest."""

    def __init__(self, source: str, target: Path, progress: Callable[[int], object]) -> None:
        self.target, self.path = target, part_of(source, target)
        self._state, self._progress = state_of(self.path), progress
        self.size, self._hash = 0, hashlib.sha256()
        self.total: int | None = None
        self._validators: dict[str, str] = {}
        # Does the content come from several answers? May it?
        self.pieced, self.resumable = False, True

    def __enter__(self) -> Self:
        self._descriptor = _own_file(self.path)
        try:
            while chunk := os.read(self._descriptor, 1 << 20):
                self._count(chunk)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._validators = _saved(self._state) if self.size else {}
        self.pieced = self.size > 0
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        if not self.size:
            self.remove()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def validator(self) -> str:
        """What If-Range is given; empty where the server named nothing."""
        return self._validators.get("etag") or self._validators.get("modified", "")

    def range_headers(self) -> dict[str, str]:
        """The request's headers for what is missing; none where everything is."""
        if not self.size:
            return {}
        asked = {"Range": f"bytes={self.size}-"}
        return {**asked, "If-Range": self.validator} if self.validator else asked

    def begin(self, answer: _Answer) -> None:
        """The answer is the whole file."""
        if self.size:
            self.restart()
        self.total, self._validators = answer.length, answer.validators
        with suppress(OSError):  # without it, a later run starts over
            # Anew: what else may lie there under that name is not written to.
            self._state.unlink(missing_ok=True)
            with self._state.open("x") as file:
                json.dump(self._validators, file)

    def go_on(self, answer: _Answer, limit: int) -> None:
        """The answer is what was missing; else nothing of it is used, and it is all fetched anew."""
        span = answer.range
        if span is None or span[0] != self.size:
            self.anew("the server answers with a range that was not asked for")
        _, end, size = span
        changed = any(answer.validators.get(key, old) != old for key, old in self._validators.items())
        if changed or (size is not None and self.total is not None and size != self.total):
            self.anew("the file changed on the server")
        self.pieced, self.total = True, size if size is not None else end
        if self.total > limit:
            raise TooLarge(f"{shown(answer.source)}: {self.total} bytes, at most {limit} are allowed")

    def anew(self, reason: str) -> NoReturn:
        """Nothing of it can be used: what follows comes in one piece."""
        self.restart()
        self.resumable = False
        raise _Passing(f"{reason}; once more from the beginning")

    def write(self, chunk: bytes) -> None:
        """More bytes; written before they count."""
        view = memoryview(chunk)
        try:
            while view:
                done = os.write(self._descriptor, view)
                self._count(view[:done])
                view = view[done:]
        except OSError as error:
            if not is_full(error):
                raise
            raise LimitExceeded(
                f"{self.path}: {os.strerror(error.errno or 0).lower()}; free some space and run it again: "
                f"it goes on after the {self.size} bytes that came"
            ) from None

    def _count(self, chunk: bytes | memoryview) -> None:
        self._hash.update(chunk)
        self.size += len(chunk)
        self._progress(len(chunk))

    def restart(self) -> None:
        """Throw away what came."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._progress(-self.size)
        self.size, self.total, self._hash = 0, None, hashlib.sha256()
        self._validators, self.pieced = {}, False

    def publish(self) -> None:
        """It is complete: give it its name."""
        os.fsync(self._descriptor)
        self.path.rename(self.target)
        self._state.unlink(missing_ok=True)

    def remove(self) -> None:
        """Nothing of it is worth keeping."""
        self.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)


def _own_file(path: Path) -> int:
    """A descriptor of the file, made if need be; of no other file through a link, and of no pipe,
    which would wait for its other end.

    Raises:
        RehydratorError: there is something else.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise
    raise RehydratorError(f"{path}: there is something that is no regular file; move it away")


def _saved(state: Path) -> dict[str, str]:
    """The validators that an earlier run wrote down; none where that cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        if state.is_file() and state.stat().st_size <= _STATE_LIMIT:
            found = json.loads(state.read_text())
            if isinstance(found, dict):
                kept = {key: found.get(key) for key in ("etag", "modified")}
                return _fit({key: value for key, value in kept.items() if isinstance(value, str)})
    return {}
