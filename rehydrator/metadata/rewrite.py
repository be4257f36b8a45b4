"""A stream document for another place: every file below one URL, by its own name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from rehydrator.core.errors import HostileInput, UsageError
from rehydrator.metadata.document import file_name, quoted

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from rehydrator.metadata.document import Document, File

_SCHEMES = ("", "file", "http", "https")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BARE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
# What may stand between the slashes before a path and those behind it (RFC 3986, section 3.2).
_AUTHORITY = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:@\[\]-]*")
# What a path may hold beside letters and digits (RFC 3986, section 3.3), slashes and what is
# percent-encoded already.
_PATH = "/%:@!$&'()*+,;=~"


def rewritten(document: Document, base_url: str) -> Document:
    """With every location, and every signature that there is, below `base_url`.

    Raises:
        UsageError: `base_url` is none.
        HostileInput: two different files have one name; says which.
    """
    base = checked_base(base_url)
    check_names(document)
    moved = {}
    for file in document.files:
        signature = base + quoted(_signature_name(file)) if file.signature else None
        moved[file.key] = (base + quoted(file.name), signature)
    return document.relocated(moved)


def checked_base(url: str) -> str:
    """A URL (http, https, file) or relative path, quoted, with a slash at its end where it is
    not empty, so that a name can follow.

    Raises:
        UsageError: it is something else.
    """
    parts = _split(url)
    remote = parts.scheme in {"http", "https"}
    if parts.scheme not in _SCHEMES or "?" in url or "#" in url:
        raise UsageError(f"{url!r:.200}: give a http, https or file URL or a relative path, and no query")
    if remote and not parts.hostname:
        raise UsageError(f"{url!r:.200} has no host")
    if parts.netloc and not parts.scheme:
        raise UsageError(f"{url!r:.200}: before a host stands http: or https:")
    if parts.scheme == "file" and not parts.path.startswith("/"):
        raise UsageError(f"{url!r:.200}: a file URL has an absolute path, file:///…")
    if not _AUTHORITY.fullmatch(parts.netloc):
        raise UsageError(f"{url!r:.200}: a host's name is ASCII letters, digits, dots and dashes")
    path = quote(_BARE_PERCENT.sub("%25", parts.path), safe=_PATH, errors="surrogateescape")
    if path or remote:
        path = path.rstrip("/") + "/"
    return (f"{parts.scheme}://{parts.netloc}" if parts.scheme else "") + path


def _split(url: str) -> SplitResult:
    if _CONTROL.search(url):
        raise UsageError(f"{url!r:.200} has control characters")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r:.200} is no URL: {error}") from None
    return parts


def check_names(document: Document) -> None:
    """Raise HostileInput where one name in one directory would have to be two files, be they
    published ones or signatures; files of one name and one digest are the same."""
    claims: dict[str, tuple[object, str]] = {}
    for file in document.files:
        content = file.sha256 or file.location
        claimed: list[tuple[str, object, str]] = [(file.name, content, f"{file.key}.location")]
        if file.signature:
            claimed.append((_signature_name(file), ("signature of", content), f"{file.key}.signature"))
        for name, identity, place in claimed:
            other, where = claims.setdefault(name, (identity, place))
            if other != identity:
                raise HostileInput(
                    f"{where} and {place} are different files of one name, {name!r}; "
                    "they cannot lie in one directory"
                )


def _signature_name(file: File) -> str:
    try:
        return file_name(file.signature)
    except ValueError as error:
        raise HostileInput(f"{file.key}.signature: {error}") from None
