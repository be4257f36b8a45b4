"""`stream mirror`: the files that a stream document names, here."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import Progress, human, json_option, table
from rehydrator.core.errors import HostileInput, LimitExceeded, ToolMissing, UsageError, worst_exit_code
from rehydrator.metadata.names import STREAM_DOCUMENT

# How many files one message names.
_NAMED = 3

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rehydrator.host.fetch import Client
    from rehydrator.metadata.document import Document
    from rehydrator.mirror import Outcome, Wanted


@click.command("mirror", short_help="Download the files, checked, and resume.")
@click.argument("source", metavar="SRC")
@click.argument("directory", metavar="DEST", type=click.Path(file_okay=False, path_type=Path))
@click.option("--arch", "arches", multiple=True, help="Only this architecture (again for more).")
@click.option("--platform", "platforms", multiple=True, help="Only this platform (again for more).")
@click.option(
    "--keyring",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="F",
    help="Check signatures with these public keys (gpg --export, with or without --armor).",
)
@click.option("--require-signatures", is_flag=True, help="Refuse files without a signature.")
@click.option("--base-url", default="", metavar="URL", help="Where DEST will be served. Default: beside it.")
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Downloads at the same time."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 86400),
    default=30.0,
    show_default=True,
    help="Seconds without a byte after which a download is tried again.",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 1000),
    default=5,
    show_default=True,
    help="Further attempts in a row; those that bring 1 MiB do not count.",
)
@click.option(
    "--max-size",
    type=click.IntRange(1),
    default=256 << 30,
    show_default=True,
    help="Refuse larger files, bytes.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be downloaded and what is there.")
@json_option
def command(
    source: str,
    directory: Path,
    arches: tuple[str, ...],
    platforms: tuple[str, ...],
    keyring: Path | None,
    require_signatures: bool,
    base_url: str,
    jobs: int,
    timeout: float,
    retries: int,
    max_size: int,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Download what the stream document SRC (a file, a URL or -) names into DEST, and write the document
    there, its locations rewritten. DEST is what `rehydrator build` takes. The document there names
    what this run was asked for: give all of --arch and --platform at once.

    Files that are there and right are kept, and a download that was broken off goes on where it
    stopped. Every sha256 is checked; with --keyring every signature, too. A file whose sha256 the
    document does not have needs a good signature.
    """
    if require_signatures and not keyring:
        raise UsageError("--require-signatures needs --keyring: a signature counts when it was checked")
    try:
        import urllib3  # noqa: F401 - asked for here, so that its absence is said in words

        from rehydrator import mirror
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"mirroring needs the Python package {error.name}, which is not here: bundles' containers "
            "only read; mirror with a full installation (`make install`)"
        ) from None
    from rehydrator.host import fetch, gpg

    base = mirror.checked_base_url(base_url)
    reporter = _Reporter()
    options = fetch.Options(timeout=timeout, retries=retries, max_size=max_size)
    with ExitStack() as stack:
        stack.callback(reporter.close)
        keys = stack.enter_context(gpg.keyring(keyring)) if keyring else None
        client = stack.enter_context(fetch.opened(options, reporter.note))
        document = _document(source, client)
        found = mirror.selected(document, arches, platforms)
        if len(found) < len(document.files):
            _keep_source(source, directory / STREAM_DOCUMENT)
        files = mirror.planned(found, source)
        maker = mirror.Mirror(directory, client, reporter, keys, require_signatures)
        reporter.expect(len(files), {each.name: each.size for each in found})
        if dry_run:
            return _show_plan(files, mirror.look_at_all(maker, files, jobs), as_json)
        stack.enter_context(mirror.locked(directory))
        if not keyring and any(each.signature for each in files):
            reporter.note("signatures are downloaded, not checked: no --keyring was given")
        outcomes = mirror.have_all(maker, files, jobs)
        reporter.close()
        return _finish(directory, document, outcomes, base, as_json)


def _keep_source(source: str, written: Path) -> None:
    """A document that lies in DEST may be replaced by itself, but not by a part of itself.

    Raises:
        UsageError: it would be.
    """
    if written.exists() and Path(source).exists() and written.samefile(source):
        raise UsageError(
            f"{source} is in DEST, and what --arch and --platform leave of it would be written over it; "
            "name another DEST"
        )


def _document(source: str, client: Client) -> Document:
    from rehydrator.cli.stream import read_document
    from rehydrator.host import fetch
    from rehydrator.metadata.document import Document
    from rehydrator.metadata.json_text import MAX_BYTES

    if "://" not in source:
        if source != "-" and not Path(source).exists():
            raise UsageError(f"{source}: no such file; SRC is a stream document: a file, a URL or -")
        return Document.parse(read_document(source), source)
    try:
        return Document.parse(client.read(source, MAX_BYTES), fetch.shown(source))
    except LimitExceeded as error:
        raise HostileInput(f"{error}; that is no stream document") from None


def _finish(directory: Path, document: Document, outcomes: list[Outcome], base: str, as_json: bool) -> int:
    from rehydrator import mirror

    code = worst_exit_code([each.exit_code for each in outcomes])
    written, left_out = None, []
    _tell(outcomes, directory / STREAM_DOCUMENT, code)
    if not code:
        new = mirror.rewritten(document, outcomes, base)
        left_out = mirror.left_out(directory, new)
        _tell_left_out(left_out)
        written = mirror.write_document(directory, new)
    if as_json:
        report = {
            "stream": document.stream,
            "stream_json": str(written) if written else None,
            "exit_code": code,
            "files": [_as_json(each) for each in outcomes],
            "left_out": left_out,
        }
        click.echo(json.dumps(report, indent=2))
    elif written:
        click.echo(written)
    return code


def _tell(outcomes: list[Outcome], document: Path, code: int) -> None:
    from rehydrator import mirror

    for each in outcomes:
        if each.error:
            click.echo(f"rehydrator: {printable(str(each.error))}", err=True)
    parts = []
    for state in (mirror.DOWNLOADED, mirror.THERE, mirror.FAILED):
        found = [each for each in outcomes if each.state == state]
        if found:
            size = sum(each.size for each in found)
            parts.append(f"{len(found)} {state}{f' ({human(size)})' if size else ''}")
    good = sum(each.signature == mirror.GOOD for each in outcomes)
    signed = f"; {good} signatures good" if good else ""
    click.echo(
        f"{len(outcomes)} {'file' if len(outcomes) == 1 else 'files'}: {', '.join(parts)}{signed}", err=True
    )
    if code:
        old = "; the old one stays" if document.exists() else ""
        click.echo(
            f"{document} was not written, as the mirror is not complete{old}; run it again to go on", err=True
        )


def _tell_left_out(names: list[str]) -> None:
    """Two runs with different --arch or --platform do not add up: said before somebody misses it."""
    if names:
        some = printable(", ".join(names[:_NAMED]))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        click.echo(
            f"{STREAM_DOCUMENT} does not name {some}{more} any more; the files stay: "
            "remove them, or mirror all in one run, with every --arch and --platform",
            err=True,
        )


def _as_json(outcome: Outcome) -> dict[str, Any]:
    wanted = outcome.wanted
    found = {
        **_planned_json(wanted, outcome.state),
        "size": outcome.size,
        "sha256": outcome.sha256,
        "signature": outcome.signature,
        "signed_by": outcome.signer or None,
        "exit_code": outcome.exit_code,
    }
    return {**found, "error": str(outcome.error)} if outcome.error else found


def _planned_json(wanted: Wanted, state: str) -> dict[str, Any]:
    from rehydrator.host import fetch

    places = [each._asdict() for each in wanted.keys]
    return {"file": wanted.name, "location": fetch.shown(wanted.source), "state": state, "is": places}


def _show_plan(files: list[Wanted], there: list[bool], as_json: bool) -> int:
    from rehydrator import mirror
    from rehydrator.host import fetch

    states = [mirror.THERE if each else "to download" for each in there]
    if as_json:
        found = [_planned_json(each, state) for each, state in zip(files, states, strict=True)]
        click.echo(json.dumps(found, indent=2))
        return 0
    rows = [["FILE", "STATE", "FROM"]]
    rows += [[each.name, state, fetch.shown(each.source)] for each, state in zip(files, states, strict=True)]
    click.echo(printable(table(rows, set())))
    return 0


class _Reporter:
    """What a mirror says on stderr, and its progress on a terminal: how far it is, where the
    document has sizes (an extension of ours), else how many bytes came.
    """

    def __init__(self) -> None:
        self._progress = Progress("mirroring", 0)
        self._bytes, self._sized = 0, False

    def expect(self, files: int, sizes: Mapping[str, int | None]) -> None:
        known = [size for size in sizes.values() if size is not None]
        self._sized = len(known) == len(sizes)
        self._progress = Progress(f"mirroring {files} files", sum(known) if self._sized else 0)

    def note(self, text: str) -> None:
        self._progress.clear()
        click.echo(printable(text), err=True)

    def advance(self, steps: int, detail: str = "") -> None:
        self._bytes += steps
        came = "" if self._sized else f"{human(max(0, self._bytes))}  "
        self._progress.advance(steps, came + detail)

    def close(self) -> None:
        self._progress.clear()
