"""`stream rewrite`: a stream document for another place."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from rehydrator.cli import describe
from rehydrator.cli.stream import Source, source_options
from rehydrator.core.errors import LimitExceeded, RehydratorError


@click.command("rewrite", short_help="Let a stream document's locations point elsewhere.")
@click.argument("source", metavar="[SRC]", required=False)
@source_options
@click.option(
    "--base-url",
    required=True,
    metavar="URL",
    help="Where the files are: a http, https or file URL or a relative path ('' for bare names).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    default="-",
    metavar="FILE",
    help="Default: standard output.",
)
def command(base_url: str, output: Path, **where: Any) -> None:
    """Write the stream document SRC with every location and signature below URL, by the names
    that they have. The rest of the text stays as it is, byte for byte.
    """
    from rehydrator.metadata.rewrite import checked_base, rewritten

    checked_base(base_url)
    data = rewritten(Source(**where).parse(), base_url).data
    if str(output) == "-":
        click.echo(data, nl=False)
    else:
        write_whole(output, data)


def write_whole(target: Path, data: bytes) -> None:
    """Write a file at once or not at all; its mode is the old file's, or what the umask gives. A
    symbolic link stays one; a device or a pipe is written to, not replaced.

    Raises:
        LimitExceeded: the disk is full.
        RehydratorError: it cannot be written.
    """
    try:
        place = target.resolve()
        if place.exists() and not place.is_file():
            place.write_bytes(data)
        else:
            _replace(place, data)
    except RuntimeError as error:
        # What Path.resolve raises for links that go round in a circle.
        raise RehydratorError(f"{target}: cannot be written: {error}") from None
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        kind = LimitExceeded if full else RehydratorError
        said = describe(OSError(error.errno, error.strerror))
        raise kind(f"{target}: cannot be written: {said}") from None


def _replace(target: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".rehydrator-", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(descriptor, _mode(target))
            os.fsync(descriptor)
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _mode(target: Path) -> int:
    with suppress(FileNotFoundError):
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
