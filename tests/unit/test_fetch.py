"""Downloads from a server that truncates, stalls, lies and breaks off."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import (
    DigestMismatch,
    HostileInput,
    Interrupted,
    LimitExceeded,
    NetworkError,
    RehydratorError,
    UsageError,
)
from rehydrator.host import fetch
from tests import hostile_server as hostile
from tests.conftest import names_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = random.Random(5).randbytes(300_000)
OTHER = random.Random(6).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
# A second is nothing on a busy machine: only where a server stalls is the timeout one that ends.
QUICK = fetch.Options(timeout=20, retries=3, pause=0.01, longest_pause=0.05, max_size=1 << 20)
IMPATIENT = replace(QUICK, timeout=0.5, retries=9)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the machine that tests says nothing about proxies and certificates."""
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[hostile.Server]:
    with hostile.running() as server:
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's key and its own certificate."""
    return hostile.certificate(tmp_path_factory.mktemp("tls") / "server.pem")


def got(url: str, target: Path, expected: str = SHA256, options: fetch.Options = QUICK) -> list[str]:
    """Download a file, see that it is DATA and lies alone; what was said of retries."""
    said: list[str] = []
    with fetch.opened(options, said.append) as client:
        done = client.download(url, target, expected=expected)
    assert fetch.Downloaded(len(DATA), SHA256) == done
    assert target.read_bytes() == DATA
    assert [target.name] == names_in(target.parent)
    return said


def refused(
    url: str,
    target: Path,
    kind: type[Exception],
    expected: str = SHA256,
    options: fetch.Options = QUICK,
) -> str:
    """A download that fails, with nothing under the final name; the message."""
    with fetch.opened(options) as client, pytest.raises(kind) as failed:
        client.download(url, target, expected=expected)
    assert kind is type(failed.value)
    assert not target.exists()
    return str(failed.value)


def leave_part(server: hostile.Server, path: str, target: Path) -> str:
    """A download that broke off after 1,000 bytes and was given up; its URL."""
    url = server.serve(path, DATA, hostile.truncating(1000))
    once = fetch.Options(timeout=0.5, retries=0, pause=0.01)
    with fetch.opened(once) as client, pytest.raises(NetworkError):
        client.download(url, target, expected=SHA256)
    assert DATA[:1000] == fetch.part_of(url, target).read_bytes()
    server.requests.clear()
    return url


BEHAVIOURS = {
    "good": hostile.good,
    "without ranges": hostile.no_ranges,
    "chunked": hostile.chunked(),
    "chunked, broken off": hostile.chunked(50_000, times=2),
    "slow": hostile.slow(4, 0.2),
    "truncated": hostile.truncating(1000, times=3),
    "truncated at once": hostile.truncating(0, times=2),
    "truncated, then no ranges": hostile.truncating(1000, then=hostile.no_ranges),
    "truncated, no validator": hostile.without_validator(hostile.truncating(1000, times=2)),
    "stalled": hostile.stalling(1000),
    "stalled before the body": hostile.stalling(0),
    "reset": hostile.resetting(1000, times=2),
    "reset before the head": hostile.resetting(0),
    "503, Retry-After in seconds": hostile.status(503, {"Retry-After": "3600"}, times=2),
    "503, Retry-After as a date": hostile.status(503, {"Retry-After": hostile.later(3600)}, times=1),
    "503, Retry-After nonsense": hostile.status(503, {"Retry-After": "soon"}, times=1),
    "429": hostile.status(429, times=1),
    "502, 504 and 500 pass": hostile.status(500, times=1),
    "another range than asked for": hostile.wrong_range,
    "more bytes than announced": hostile.flooding,
    "fewer bytes than asked for": hostile.in_pieces(100_000),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=BEHAVIOURS.keys())
@pytest.mark.parametrize("expected", [SHA256, ""], ids=["digest", "no digest"])
def test_gets_there(
    server: hostile.Server, tmp_path: Path, behaviour: hostile.Behaviour, expected: str
) -> None:
    """Whatever passes ends with the right bytes in place, and nothing beside them."""
    stalls = behaviour in {BEHAVIOURS["stalled"], BEHAVIOURS["stalled before the body"]}
    options = IMPATIENT if stalls else QUICK
    got(server.serve("/file", DATA, behaviour), tmp_path / "file", expected, options)


def test_resumes_within_a_run(server: hostile.Server, tmp_path: Path) -> None:
    """What came is not asked for again, and the server is asked whether its file is still the same."""
    said = got(server.serve("/file", DATA, hostile.truncating(1000, times=2)), tmp_path / "file")
    asked = server.asked("/file")
    assert [each.get("range") for each in asked] == [None, "bytes=1000-", "bytes=2000-"]
    assert [None, *[hostile.etag(DATA)] * 2] == [each.get("if-range") for each in asked]
    assert {"identity"} == {each["accept-encoding"] for each in asked}
    assert len(said) == 2
    assert "1000 of 300000 bytes" in said[0] or "broke off" in said[0]


def test_resumes_an_earlier_run(server: hostile.Server, tmp_path: Path) -> None:
    """A later run goes on after what an earlier one left, by its ETag."""
    url = leave_part(server, "/file", tmp_path / "file")
    server.serve("/file", DATA)
    got(url, tmp_path / "file", "")
    assert [("bytes=1000-", hostile.etag(DATA))] == [
        (each["range"], each["if-range"]) for each in server.asked("/file")
    ]


@pytest.mark.parametrize("state", [None, "", "[]", '{"etag": 5}', '{"etag": "a\\nb"}', "[" * 9000])
def test_unknown_part(server: hostile.Server, tmp_path: Path, state: str | None) -> None:
    """A part of which nobody knows what it is begins anew without a digest; with one it is resumed,
    and the digest decides."""
    url = leave_part(server, "/file", tmp_path / "file")
    server.serve("/file", DATA)
    note = fetch.state_of(fetch.part_of(url, tmp_path / "file"))
    kept = fetch.part_of(url, tmp_path / "file").read_bytes()
    for expected, asked in (("", None), (SHA256, "bytes=1000-")):
        (tmp_path / "file").unlink(missing_ok=True)
        fetch.part_of(url, tmp_path / "file").write_bytes(kept)
        note.write_text(state) if state is not None else note.unlink(missing_ok=True)
        got(url, tmp_path / "file", expected)
        assert asked == server.asked("/file")[-1].get("range")
        assert "if-range" not in server.asked("/file")[-1]


def test_weak_etag_does_not_resume(server: hostile.Server, tmp_path: Path) -> None:
    """A weak ETag cannot tell whether bytes are the same (RFC 9110, 13.1.5)."""
    weak = hostile.truncating(1000, headers={"ETag": 'W/"x"'})
    got(server.serve("/file", DATA, weak), tmp_path / "file", "")
    assert [each.get("range") for each in server.asked("/file")] == [None, None]


def test_last_modified_resumes(server: hostile.Server, tmp_path: Path) -> None:
    """Where there is no ETag, the date serves."""
    date = "Sat, 21 Nov 2026 10:00:00 GMT"
    url = server.serve("/file", DATA, hostile.truncating(1000, headers={"ETag": "", "Last-Modified": date}))
    got(url, tmp_path / "file", "")
    assert date == server.asked("/file")[1]["if-range"]


def put(kind: str, path: Path, elsewhere: Path) -> None:
    """Something that is no regular file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(elsewhere)


@pytest.mark.parametrize("kind", ["pipe", "directory", "link"])
def test_part_that_is_no_file(server: hostile.Server, tmp_path: Path, kind: str) -> None:
    """Where the part belongs lies a pipe (which is not waited for), a directory, or a link (what it
    leads to is not written to): told in words, before any request."""
    url, elsewhere = server.serve("/file", DATA), tmp_path / "elsewhere"
    part = fetch.part_of(url, tmp_path / "file")
    elsewhere.write_bytes(b"of somebody else")
    put(kind, part, elsewhere)
    said = refused(url, tmp_path / "file", RehydratorError)
    assert f"{part}: there is something that is no regular file" in said
    assert server.requests == []
    assert elsewhere.read_bytes() == b"of somebody else"


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_state_that_is_no_file(server: hostile.Server, tmp_path: Path, kind: str) -> None:
    """The note beside a part is written anew, never through what lies there under its name."""
    url, elsewhere = server.serve("/file", DATA, hostile.truncating(1000)), tmp_path / "elsewhere"
    part = fetch.part_of(url, tmp_path / "file")
    part.write_bytes(DATA[:10])
    elsewhere.write_bytes(b"of somebody else")
    put(kind, fetch.state_of(part), elsewhere)
    with fetch.opened(QUICK) as client:
        client.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert names_in(tmp_path) == ["elsewhere", "file"]
    assert elsewhere.read_bytes() == b"of somebody else"


@pytest.mark.parametrize("part", [DATA, DATA + b"more", OTHER, bytes(1000)])
def test_complete_or_wrong_part(server: hostile.Server, tmp_path: Path, part: bytes) -> None:
    """A part that is complete needs no request; one that is longer, or other bytes, is replaced."""
    url = server.serve("/file", DATA)
    fetch.part_of(url, tmp_path / "file").write_bytes(part)
    got(url, tmp_path / "file")
    assert (part == DATA) == (server.requests == [])


def test_wrong_range_is_not_asked_for_again(server: hostile.Server, tmp_path: Path) -> None:
    """Once a server gave another range, the rest of the run asks for the whole file only."""

    def behave(request: hostile.Request, content: bytes) -> None:
        broken = hostile.truncating(1000, times=99)
        (hostile.wrong_range, hostile.wrong_range, broken, hostile.good)[request.turn - 1](request, content)

    got(server.serve("/file", DATA, behave), tmp_path / "file", "")
    assert [each.get("range") for each in server.asked("/file")] == [None, "bytes=1000-", None, None]


def test_wrong_bytes_in_one_piece(server: hostile.Server, tmp_path: Path) -> None:
    """Where a server ignores the range and its file is wrong, asking once more would not help."""
    url = leave_part(server, "/file", tmp_path / "file")
    server.serve("/file", OTHER, hostile.no_ranges)
    refused(url, tmp_path / "file", DigestMismatch)
    assert len(server.requests) == 1


def test_two_urls_never_share_a_part(tmp_path: Path) -> None:
    """Parts of one target from two URLs have two names, each as short as a name must be; a password
    makes no difference."""
    target = tmp_path / ("n" * 255)
    parts = [fetch.part_of(f"https://{host}/x", target).name for host in ("a", "b", "user:pw@a")]
    assert parts[0] == parts[2] != parts[1]
    assert max(len(fetch.state_of(tmp_path / part).name) for part in parts) <= 255


@pytest.mark.parametrize("honest", [True, False], ids=["If-Range honoured", "If-Range ignored"])
def test_file_that_changes_between_parts(server: hostile.Server, tmp_path: Path, honest: bool) -> None:
    """Parts of two files are never put together: the new file comes from its beginning."""
    got(server.serve("/file", OTHER, hostile.changing(DATA, honest=honest)), tmp_path / "file", "")


def test_wrong_bytes(server: hostile.Server, tmp_path: Path) -> None:
    """Other bytes than promised: 5, both digests named, nothing kept, and not asked for twice."""
    said = refused(server.serve("/file", OTHER), tmp_path / "file", DigestMismatch)
    assert SHA256 in said
    assert hashlib.sha256(OTHER).hexdigest() in said
    assert names_in(tmp_path) == []
    assert len(server.requests) == 1


def test_wrong_bytes_after_a_resume(server: hostile.Server, tmp_path: Path) -> None:
    """Parts that do not fit together are fetched once more from the beginning, in one piece."""
    said = got(server.serve("/file", DATA, hostile.spoilt_after_resume(1)), tmp_path / "file")
    assert [each.get("range") for each in server.asked("/file")] == [None, "bytes=1000-", None]
    assert "do not fit" in said[-1]


def test_wrong_bytes_after_a_resume_again(server: hostile.Server, tmp_path: Path) -> None:
    """Once more from the beginning, and wrong again: 5."""
    url = server.serve("/file", OTHER, hostile.truncating(1000))
    refused(url, tmp_path / "file", DigestMismatch)
    assert [each.get("range") for each in server.asked("/file")] == [None, "bytes=1000-", None]
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("code", [403, 404, 410, 400, 401, 418, 206, 204, 304])
def test_refusals_that_do_not_pass(server: hostile.Server, tmp_path: Path, code: int) -> None:
    """What will not change is not asked for again; nothing is left."""
    kind = fetch.NotFound if code in {403, 404, 410} else NetworkError
    said = refused(server.serve("/file", DATA, hostile.status(code)), tmp_path / "file", kind)
    assert f"/file: the server answers {code}" in said
    assert len(server.requests) == 1
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "behaviour",
    [
        hostile.status(503),
        hostile.truncating(0, times=99),
        hostile.stalling(0, times=99),
        hostile.resetting(0, 99),
    ],
    ids=["503", "truncated", "stalled", "reset"],
)
def test_gives_up(server: hostile.Server, tmp_path: Path, behaviour: hostile.Behaviour) -> None:
    """What never passes is given up after the retries, in words."""
    options = replace(QUICK, timeout=0.5)
    said = refused(server.serve("/file", DATA, behaviour), tmp_path / "file", NetworkError, options=options)
    assert said.endswith("; given up after 4 attempts")
    assert len(server.requests) == 4


def test_advance_is_no_failure(server: hostile.Server, tmp_path: Path) -> None:
    """A connection that breaks every MiB is not given up: each attempt brings the file nearer."""
    data = random.Random(8).randbytes(6 << 20)
    url = server.serve("/file", data, hostile.truncating(1 << 20, times=99))
    with fetch.opened(replace(QUICK, retries=1, max_size=len(data))) as client:
        client.download(url, tmp_path / "file", expected=hashlib.sha256(data).hexdigest())
    assert data == (tmp_path / "file").read_bytes()


def test_coming_and_going_is_no_advance(server: hostile.Server, tmp_path: Path) -> None:
    """Where nothing can be resumed, a server that breaks off early and late in turn is given up."""

    def behave(request: hostile.Request, content: bytes) -> None:
        at = (1 << 20) * (1 + 2 * (request.turn % 2))
        hostile.without_validator(hostile.truncating(at, times=99))(request, content)

    url = server.serve("/file", bytes(6 << 20), behave)
    options = fetch.Options(timeout=0.5, retries=3, pause=0.01)
    with fetch.opened(options) as client, pytest.raises(NetworkError):
        client.download(url, tmp_path / "file")
    assert len(server.requests) == 4


def test_no_http(server: hostile.Server, tmp_path: Path) -> None:
    """What is no HTTP, and a head without end, is given up."""

    def behave(request: hostile.Request, content: bytes) -> None:
        request.wfile.write(content)

    for head in (
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000,
        b"HTTP/1.1 abc\r\n\r\n",
    ):
        url = server.serve("/file", head, behave)
        assert "given up" in refused(url, tmp_path / "file", NetworkError)


def test_connections_are_used_again(server: hostile.Server) -> None:
    """A proper server is asked twice over one connection; one that closed it meanwhile, over another."""
    ports: list[int] = []

    def behave(request: hostile.Request, content: bytes) -> None:
        ports.append(request.client_address[1])
        request.close_connection = request.turn == 2
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    url = server.serve("/file", b"content", behave)
    with fetch.opened(QUICK) as client:
        assert [client.read(url, 10) for _ in range(3)] == [b"content"] * 3
    assert ports[0] == ports[1] != ports[2]


def test_no_server(tmp_path: Path) -> None:
    """Nobody listens, or the name is unknown: 12, with what the system says."""
    assert "connection refused" in refused("http://127.0.0.1:1/x", tmp_path / "x", NetworkError)
    assert "name" in refused("http://nobody.invalid/x", tmp_path / "x", NetworkError)


def test_encoded(server: hostile.Server, tmp_path: Path) -> None:
    """Bytes in an encoding that was not asked for are refused: the digest is of others."""
    assert "gzip" in refused(server.serve("/file", DATA, hostile.gzipped), tmp_path / "file", NetworkError)


def test_lies_about_length(server: hostile.Server, tmp_path: Path) -> None:
    """Fewer bytes than there are: the digest tells; more: the end is noticed."""
    refused(server.serve("/short", DATA, hostile.lying(1000)), tmp_path / "short", DigestMismatch)
    refused(server.serve("/long", DATA, hostile.lying(300_001)), tmp_path / "long", NetworkError)


def test_too_large(server: hostile.Server, tmp_path: Path) -> None:
    """Above the limit: 9, before a byte where the length is announced; nothing of it is kept."""
    refused(server.serve("/announced", bytes(2 << 20)), tmp_path / "x", fetch.TooLarge)
    refused(server.serve("/endless", bytes(50_000), hostile.endless), tmp_path / "x", fetch.TooLarge)
    assert names_in(tmp_path) == []


def test_full_disk(server: hostile.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is 9; what came stays, and the next run goes on after it."""
    url, target, real = server.serve("/file", DATA, hostile.slow(3, 0.02)), tmp_path / "file", os.write
    room = [100_000]

    def write(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = real(descriptor, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(fetch.os, "write", write)  # type: ignore[attr-defined]
    said = refused(url, target, LimitExceeded)
    assert "no space left on device; free some space" in said
    monkeypatch.undo()
    kept = fetch.part_of(url, target).read_bytes()
    assert DATA[: len(kept)] == kept
    got(url, target)


# ---- redirects, names and passwords


def test_redirects(server: hostile.Server, tmp_path: Path) -> None:
    """Five redirects, also relative ones, lead to the file."""
    server.serve("/file", DATA)
    for step, target in enumerate(
        ["/file", "/0", server.url("/1"), "2", f"//127.0.0.1:{server.server_port}/3"]
    ):
        server.serve(f"/{step}", b"", hostile.redirecting(target, 301 + step % 3))
    got(server.url("/4"), tmp_path / "file")


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("/file", "more than 5 redirects"),
        ("", "redirected to nowhere"),
        ("file:///etc/passwd", "not on the network"),
        ("ftp://127.0.0.1/x", "no URL"),
        ("http://[/", "no URL"),
    ],
)
def test_redirects_that_are_refused(server: hostile.Server, tmp_path: Path, to: str, said: str) -> None:
    """Loops, and places that are not on the network."""
    url = server.serve("/file", b"", hostile.redirecting(to))
    assert said in refused(url, tmp_path / "x", NetworkError)


def test_password_stays_with_its_host(server: hostile.Server, tmp_path: Path) -> None:
    """User name and password of a URL go to its own host, also after a redirect there, and to no other."""
    server.serve("/here", b"", hostile.redirecting("/there"))
    server.serve("/there", b"", hostile.redirecting(server.url("/file", host="localhost")))
    server.serve("/file", DATA)
    got(server.url("/here", host="me:s%40cret@127.0.0.1"), tmp_path / "file")
    sent = {path: headers.get("authorization") for path, headers in server.requests}
    assert sent == {"/here": "Basic bWU6c0BjcmV0", "/there": "Basic bWU6c0BjcmV0", "/file": None}


def test_secrets_are_not_shown(server: hostile.Server, tmp_path: Path) -> None:
    """No message has a URL's password, or its query."""
    for path, behaviour in (("/a", hostile.status(404)), ("/b", hostile.status(503)), ("/c", hostile.good)):
        server.serve(f"{path}?token=s3cret", OTHER, behaviour)
        url = server.url(f"{path}?token=s3cret", host="me:s3cret@127.0.0.1")
        kind = {"/a": fetch.NotFound, "/b": NetworkError, "/c": DigestMismatch}[path]
        said = refused(url, tmp_path / "x", kind)
        assert "s3cret" not in said
        assert f"127.0.0.1:{server.server_port}{path}" in said


@pytest.mark.parametrize(
    "url",
    ["ftp://x/y", "http://", "http:///x", "https://h:port/", "http://[x/", "http://h/a b", "file://host/x"],
)
def test_no_url(tmp_path: Path, url: str) -> None:
    """What is no http, https or file URL is refused (8)."""
    assert "URL" in refused(url, tmp_path / "x", HostileInput)


# ---- certificates and proxies


def test_certificates_are_checked(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that nobody vouches for is refused at once; SSL_CERT_FILE or REQUESTS_CA_BUNDLE
    vouches, for the names that it has."""
    with hostile.running(certificate) as server:
        url = server.serve("/file", DATA)
        said = refused(url, tmp_path / "x", NetworkError)
        assert "certificate is refused: self-signed certificate" in said
        for number, name in enumerate(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")):
            monkeypatch.setenv(name, str(certificate))
            (tmp_path / str(number)).mkdir()
            got(url, tmp_path / str(number) / "file")
            said = refused(server.url("/file", host="localhost"), tmp_path / "x", NetworkError)
            assert "mismatch" in said
            monkeypatch.delenv(name)


def test_no_tls(server: hostile.Server, tmp_path: Path) -> None:
    """https where a server speaks http is told in words, not in OpenSSL's."""
    server.serve("/file", DATA)
    url = server.url("/file").replace("http:", "https:")
    said = refused(url, tmp_path / "x", NetworkError)
    # OpenSSL's reason differs between its versions.
    assert re.fullmatch(rf"{re.escape(url)}: TLS failed: [a-z ]+; given up after 4 attempts", said)


def test_certificate_bundle_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUESTS_CA_BUNDLE names something that has no certificates: 2."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    assert "none.pem" in refused("https://127.0.0.1:1/x", tmp_path / "x", UsageError)


def test_never_from_https_to_http(
    server: hostile.Server, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect that gives up encryption is refused, and the http URL never asked."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with hostile.running(certificate) as secure:
        url = secure.serve("/file", b"", hostile.redirecting(server.serve("/file", DATA)))
        assert "from https to http" in refused(url, tmp_path / "x", NetworkError)
    assert server.requests == []


def test_proxy(server: hostile.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """http_proxy is asked for everything but what no_proxy names, with its own password, which no
    message shows."""
    proxy = server.url("", host="me:s3cret@127.0.0.1")
    monkeypatch.setenv("http_proxy", proxy)
    server.serve("http://example.invalid/file", DATA)
    got("http://example.invalid/file", tmp_path / "file")
    assert server.requests[0][1]["proxy-authorization"] == "Basic bWU6czNjcmV0"
    said = refused("http://example.invalid/none", tmp_path / "x", fetch.NotFound)
    assert "s3cret" not in said
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with fetch.opened(QUICK) as client:
        server.serve("/direct", b"direct")
        assert client.read(server.url("/direct"), 10) == b"direct"


def test_proxy_for_https(
    server: hostile.Server, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https goes through a tunnel (CONNECT): the proxy gets its own password and no other, the server
    the URL's, and its certificate is checked all the same."""
    monkeypatch.setenv("https_proxy", server.url("", host="me:proxys@127.0.0.1"))
    with hostile.running(certificate) as secure:
        secure.serve("/file", DATA)
        place = secure.url("").removeprefix("https://")
        server.serve(place, b"", hostile.tunnelling)
        url = secure.url("/file", host="me:servers@127.0.0.1")
        assert "certificate is refused" in refused(url, tmp_path / "x", NetworkError)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        got(url, tmp_path / "file")
        assert [path for path, _ in server.requests] == [place, place]
        sent = server.requests[1][1]
        assert (sent["proxy-authorization"], "authorization" in sent) == ("Basic bWU6cHJveHlz", False)
        [(_, sent)] = secure.requests
        assert (sent["authorization"], "proxy-authorization" in sent) == ("Basic bWU6c2VydmVycw==", False)


def test_proxy_that_refuses(server: hostile.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that wants a password is asked once; the message says so, and whom to tell."""
    monkeypatch.setenv("https_proxy", server.url("", host="me:s3cret@127.0.0.1"))
    monkeypatch.setenv("http_proxy", server.url("", host="me:s3cret@127.0.0.1"))
    server.serve("files.invalid:443", b"", hostile.status(407))
    server.serve("http://files.invalid/x", b"", hostile.status(407))
    for url in ("https://files.invalid/x", "http://files.invalid/x"):
        server.requests.clear()
        said = refused(url, tmp_path / "x", NetworkError)
        assert "407" in said
        assert "s3cret" not in said
        assert len(server.requests) == 1


def test_proxy_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not speak HTTP is 2, one that is not there 12; neither shows its password."""
    monkeypatch.setenv("http_proxy", "socks5://me:s3cret@127.0.0.1:1")
    said = refused("http://example.invalid/x", tmp_path / "x", UsageError)
    monkeypatch.setenv("http_proxy", "http://me:s3cret@127.0.0.1:1")
    said += refused("http://example.invalid/x", tmp_path / "x", NetworkError)
    assert "s3cret" not in said


# ---- small documents, and files of this machine


def test_read(server: hostile.Server, tmp_path: Path) -> None:
    """Documents come whole from http, file: URLs and paths, up to a limit."""
    (tmp_path / "a file").write_bytes(b"local")
    assert fetch.read(str(tmp_path / "a file"), 5) == b"local"
    assert fetch.read(f"file://{tmp_path}/a%20file", 5) == b"local"
    with fetch.opened(QUICK) as client:
        assert client.read(server.serve("/x", DATA, hostile.truncating(9, times=2)), len(DATA)) == DATA
        for source in (server.url("/x"), str(tmp_path / "a file")):
            with pytest.raises(LimitExceeded):
                client.read(source, 4)


@pytest.mark.parametrize("name", ["none", "pipe", "directory", "nul\0"])
def test_no_local_file(tmp_path: Path, name: str) -> None:
    """What is not there is 4, as a file that a release does not have; what is no regular file is 1,
    and a pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    with pytest.raises(RehydratorError, match=f"{tmp_path}/{name}: ") as failed:
        fetch.read(str(tmp_path / name), 10)
    assert {"pipe": 1, "directory": 1}.get(name, 4) == failed.value.exit_code
    assert isinstance(failed.value, fetch.MISSING) == (failed.value.exit_code == 4)


def test_local_file_is_copied(tmp_path: Path) -> None:
    """A file of this machine is a source as any other."""
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from" / "x").write_bytes(DATA)
    got(f"file://{tmp_path}/from/x", tmp_path / "to" / "x")


# ---- what callers rely on


def test_progress_adds_up(server: hostile.Server, tmp_path: Path) -> None:
    """What is thrown away is taken back: the sum of what progress hears is the file's size."""
    heard: list[int] = []
    url = server.serve("/file", DATA, hostile.truncating(1000, then=hostile.no_ranges))
    with fetch.opened(QUICK) as client:
        client.download(url, tmp_path / "file", expected=SHA256, progress=heard.append)
    assert len(DATA) == sum(heard)
    assert -1000 in heard


@pytest.mark.parametrize("expected", [SHA256, ""])
def test_check_that_refuses(server: hostile.Server, tmp_path: Path, expected: str) -> None:
    """A file that its check refuses has no name; it stays for the next run if its digest is right."""
    url, target = server.serve("/file", DATA), tmp_path / "file"

    def check(path: Path) -> None:
        assert path.read_bytes() == DATA
        raise UsageError("no")

    with fetch.opened(QUICK) as client, pytest.raises(UsageError):
        client.download(url, target, expected=expected, check=check)
    assert not target.exists()
    assert bool(expected) == fetch.part_of(url, target).exists()
    server.requests.clear()
    got(url, target, expected)
    assert bool(expected) == (server.requests == [])


def test_stop(server: hostile.Server, tmp_path: Path) -> None:
    """stop() ends a download at its next byte and a wait at once; what came is kept."""
    url, target = server.serve("/file", DATA, hostile.slow(100, 0.05)), tmp_path / "file"
    with fetch.opened(fetch.Options()) as client:
        with pytest.raises(Interrupted):
            client.download(url, target, progress=lambda _: client.stop())
        with pytest.raises(Interrupted):
            client.read(url, 10)
    assert 0 < fetch.part_of(url, target).stat().st_size < len(DATA)
    server.serve("/busy", b"", hostile.status(503, {"Retry-After": "50"}))
    with fetch.opened(fetch.Options()) as client:
        threading.Timer(0.1, client.stop).start()
        with pytest.raises(Interrupted):
            client.read(server.url("/busy"), 10)


def test_state_file(server: hostile.Server, tmp_path: Path) -> None:
    """Beside a part lies by what its server tells a change, and nothing secret."""
    url = leave_part(server, "/file", tmp_path / "file")
    note = fetch.state_of(fetch.part_of(url, tmp_path / "file"))
    assert {"etag": hostile.etag(DATA)} == json.loads(note.read_text())
