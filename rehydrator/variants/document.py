"""The stream document of the files that were made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rehydrator import __version__
from rehydrator.core.errors import RehydratorError, UsageError
from rehydrator.metadata import json_text
from rehydrator.metadata.document import Document, FileKey, NewFile, quoted
from rehydrator.metadata.names import STREAM_DOCUMENT, parse_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rehydrator.variants.maker import Written
    from rehydrator.variants.plan import Options


def open_document(directory: Path, stream: str) -> Document:
    """The stream document that lies in a release directory, else an empty one.

    Raises:
        UsageError: the one that is there belongs to another stream.
        HostileInput: it is damaged.
    """
    path = directory / STREAM_DOCUMENT
    try:
        with path.open("rb") as file:
            data = file.read(json_text.MAX_BYTES + 1)
    except FileNotFoundError:
        return Document.new(stream)
    except OSError as error:
        raise RehydratorError(f"{path}: cannot be read: {error.strerror}") from None
    document = Document.parse(data, str(path))
    if document.stream != stream:
        raise UsageError(
            f"{path} is the document of stream {document.stream!r}; give --stream {document.stream}, "
            "or another directory"
        )
    return document


def add_files(document: Document, options: Options, files: Sequence[Written]) -> Document:
    """The document with what was written; locations are the bare names of the files beside it."""
    made = [_new_file(file, options) for file in files]
    modified = datetime.fromtimestamp(options.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return document.updated(made, last_modified=modified, generator=f"rehydrator {__version__}")


def write_document(document: Document, directory: Path, staging: Path) -> Path:
    """Write it, at once or not at all; `staging` is on the file system of `directory`."""
    new = staging / STREAM_DOCUMENT
    new.write_bytes(document.data)
    return new.replace(directory / STREAM_DOCUMENT)


def _new_file(written: Written, options: Options) -> NewFile:
    named = parse_name(written.file, options.name, options.release)
    members: dict[str, str | int] = {
        "location": quoted(written.file),
        "sha256": written.packed.sha256,
        "size": written.packed.size,
    }
    if written.signed:
        members["signature"] = f"{quoted(written.file)}.sig"
    if written.plain:
        members["uncompressed-sha256"] = written.plain.sha256
        members["uncompressed-size"] = written.plain.size
    key = FileKey(options.arch, named.platform, named.format, named.role)
    return NewFile(key, options.release, members)
