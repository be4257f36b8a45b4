"""`stream`: verbs about stream documents, each imported when it is called; and how all of them
read theirs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import Verbs
from rehydrator.cli.common import bundle_option, key_option, opened, reference_of, tmpdir_option
from rehydrator.cli.stream_json import document_of
from rehydrator.core.errors import HostileInput, LimitExceeded, RehydratorError, ToolMissing, UsageError
from rehydrator.metadata import json_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from rehydrator.metadata.document import Document

VERBS = {
    "get": "stream_get",
    "mirror": "stream_mirror",
    "rewrite": "stream_rewrite",
    "show": "stream_show",
    "validate": "stream_validate",
}

# The most bytes that are read for a stream document; tens of kilobytes are usual.
LIMIT = json_text.MAX_BYTES


@click.group("stream", cls=Verbs, modules=VERBS)
def command() -> None:
    """Check, query, rewrite and mirror stream documents.

    SRC is a file, an http(s) URL, or - for standard input; with --bundle REF, or in a bundle's
    container, it is the bundle's own document.
    """


def source_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name a bundle as the source."""
    for option in (
        tmpdir_option,
        key_option,
        click.option("--release", help="Which release, where the bundle has several."),
        bundle_option,
    ):
        verb = option(verb)
    return verb


@dataclass(frozen=True, slots=True)
class Source:
    """Where a document comes from: a file, URL or "-", else a bundle."""

    source: str | None
    bundle_reference: str | None
    key: Path | None
    tmpdir: Path | None
    release: str | None

    @property
    def name(self) -> str:
        """What messages call it."""
        from rehydrator.host import fetch

        if self.source is None:
            return "the bundle's stream document"
        return "standard input" if self.source == "-" else fetch.shown(self.source)

    def read(self) -> bytes:
        """The document's bytes.

        Raises:
            UsageError: both a file and a bundle, or none, or options that do not go together.
            RehydratorError: it cannot be read.
        """
        if self.source is not None and self.bundle_reference:
            raise UsageError("both SRC and --bundle name a document; give one")
        if self.source is not None:
            if self.key or self.release:
                raise UsageError("--key and --release go with a bundle; give --bundle REF")
            return read_document(self.source)
        try:
            reference_of(self.bundle_reference)
        except UsageError as error:
            raise UsageError(f"SRC is a file, a URL or -; or {error}") from None
        with opened(self.bundle_reference, None, self.key, self.tmpdir) as bundle:
            return document_of(bundle, self.release)

    def parse(self) -> Document:
        """The document, read and parsed."""
        from rehydrator.metadata.document import Document

        return Document.parse(self.read(), self.name)


def read_document(source: str) -> bytes:
    """The bytes of a stream document; `source` is a file, an http or https URL, or "-".

    Raises:
        HostileInput: more bytes than any stream document has.
        NetworkError: the server does not give it.
        ToolMissing: no HTTP client here.
        UsageError: `source` is nothing that could be read.
        RehydratorError: it cannot be read.
    """
    from rehydrator.host import fetch

    if not source:
        raise UsageError("SRC is empty; name a file, a URL or -")
    try:
        if fetch.is_remote(source):
            return fetch.read(source, LIMIT)
        if source == "-":
            if sys.stdin is None:
                raise RehydratorError("standard input is closed")
            return _limited(sys.stdin.buffer, "standard input", LIMIT)
        with Path(source).open("rb") as file:
            return _limited(file, source, LIMIT)
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"URLs need the Python package {error.name}, which is not here: bundles' containers only "
            "read; fetch the document with another tool and give it as -"
        ) from None
    except LimitExceeded as error:
        raise HostileInput(f"{error}; that is no stream document") from None
    except OSError as error:
        raise RehydratorError(f"{source}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{source!r:.200}: {error}") from None


def _limited(file: BinaryIO, what: str, limit: int) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise HostileInput(f"{what}: more than {limit} bytes; that is no stream document")
    return data
