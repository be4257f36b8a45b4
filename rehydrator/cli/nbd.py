"""`nbd`: serve images to QEMU and others, without writing them anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import (
    bundle_option,
    engine_options,
    host_arch,
    jobs_option,
    json_option,
    key_option,
    memory_option,
    opened,
    reference_argument,
    scratch,
    selection_options,
    tmpdir_option,
    work_directory,
)
from rehydrator.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.serve.listening import Listening, Place
    from rehydrator.serve.negotiation import Export


@click.command("nbd", short_help="Serve images over NBD, read-only.")
@reference_argument
@bundle_option
@key_option
@tmpdir_option
@selection_options
@click.option(
    "--form",
    type=click.Choice(["image", "published"]),
    default=None,
    help="As an image (default), or as published where that can be read anywhere.",
)
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The unix socket to make, for this user alone. Default: one in a temporary directory.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Serve over TCP on this address, to everybody who reaches it (there is no TLS; port 0: any).",
)
@click.option(
    "--run",
    "program",
    metavar="COMMAND",
    help="Serve while a shell runs COMMAND, which has $uri, $unixsocket, $port and $exportname.",
)
@jobs_option
@memory_option
@json_option
def command(
    reference: str | None,
    bundle_reference: str | None,
    key: Path | None,
    tmpdir: Path | None,
    form: str | None,
    path: Path | None,
    listen: str | None,
    program: str | None,
    jobs: int,
    memory: int | None,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Serve images over NBD, read-only, straight from the bundle.

    The URI goes to standard output when clients may come: qemu-img, qemu-system-x86_64, nbdcopy,
    nbdinfo and others take it where they take a file. An image is asked for by its file name, by its
    platform, or as the default, which is the first one. Every byte is checked before it is sent;
    what fails its check is an I/O error for the client, and is said here.
    """
    from rehydrator import host
    from rehydrator.bundle.selection import select
    from rehydrator.serve.listening import Place, place_of

    if not any(wanted[name] for name in ("disks", "names", "every", "iso", "pxe")):
        raise UsageError("name what to serve: --disk PLATFORM, --file NAME, --iso, --pxe or --all")
    if path and listen:
        raise UsageError("--socket and --listen are two places to serve at; give one")
    place = place_of(path, listen)
    host.one_arena()
    options = engine_options(jobs, memory)
    with _ended_by(signal.SIGTERM, usually=program is None), ExitStack() as stack:
        bundle = stack.enter_context(opened(bundle_reference, reference, key, tmpdir, options.memory))
        outputs = select(bundle.manifest.artifacts(), **wanted, host_arch=host_arch, form=form or "")
        exports = _exports(bundle, outputs, every=wanted["every"])
        place = place or Place(stack.enter_context(_private_directory(tmpdir)) / "socket")
        return _serve(exports, place, options.workers, program, as_json=as_json)
    return 0


@contextmanager
def _ended_by(number: signal.Signals, *, usually: bool) -> Iterator[None]:
    """Leave the block when this signal comes: a service manager's is no failure of a server. With one
    that comes in place of its command's end, it is an interrupt, as others are."""
    interrupt, noted = signal.getsignal(number), list[int]()

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if callable(interrupt):
            interrupt(number, frame)

    if usually:
        signal.signal(number, note)
    try:
        yield
    except KeyboardInterrupt:
        if not noted:
            raise


# The path of a unix socket has at most 107 bytes (unix(7)); our directory in it and the name have 32.
_LONGEST = 107 - 32
_SHORT = Path("/tmp")  # noqa: S108 - the directory in it is private


@contextmanager
def _private_directory(tmpdir: Path | None) -> Iterator[Path]:
    """A directory for the socket that nobody named; it is gone at the end."""
    place = scratch(tmpdir).absolute()
    if len(os.fsencode(place)) > _LONGEST:
        place = _SHORT
    with ExitStack() as stack:
        try:
            private = stack.enter_context(work_directory(place, "nbd"))
        except OSError as error:
            raise UsageError(f"{place}: {error.strerror}; name a place with --socket or --listen") from None
        yield private


def _exports(bundle: Bundle, outputs: Sequence[Output], *, every: bool) -> list[Export]:
    """What can be served of some outputs; with `every`, what cannot is passed over."""
    from rehydrator.serve.images import SpaceImage, ZeroRuns
    from rehydrator.serve.negotiation import Export

    zeros, exports = ZeroRuns(bundle.machine), []
    for output in outputs:
        artifact, form = output.artifact, output.form
        if form is artifact.signature:
            continue
        reader = bundle.open_form(artifact, form)
        if _is_sequential(bundle, reader.space, form.size):
            message = _no_random_access(output)
            if not every:
                raise UsageError(message)
            click.echo(f"rehydrator: not served: {printable(message)}", err=True)
            continue
        image = SpaceImage(bundle.machine, reader.space, zeros)
        described = f"{artifact.platform} {artifact.arch} {artifact.format}"
        exports.append(Export(form.name, image, described, (artifact.platform,)))
    if not exports:
        raise UsageError("nothing is left to serve; name an image with --disk")
    return exports


def _is_sequential(bundle: Bundle, space: int, size: int) -> bool:
    """Whether most of a file is encoded as streams that can only be made from their beginning."""
    from rehydrator.codecs.units import UNITS

    manifest = bundle.manifest
    anywhere = {codec.id for family in UNITS for codec in family.codecs}
    used = {number for each in manifest.reach(space) for number in manifest.streams_of(each)}
    slow = {number for number in used if manifest.rules.streams[number].codec not in anywhere}
    if not slow:
        return False
    return sum(op.length for op in bundle.machine.streams_of(space) if op.rule in slow) * 2 > size


def _no_random_access(output: Output) -> str:
    name, image = output.form.name, output.artifact.image
    instead = "write it into a directory with `rehydrator rehydrate`"
    if output.form is not image:
        instead = f"serve {image.name} with --form image, or {instead}"
    return f"{name} is compressed from its beginning to its end, so it cannot be read anywhere; {instead}"


def _serve(exports: Sequence[Export], place: Place, jobs: int, program: str | None, *, as_json: bool) -> int:
    from rehydrator.serve.listening import listening
    from rehydrator.serve.nbd import Server
    from rehydrator.serve.negotiation import Exports

    with listening(place) as at:
        server = Server(at.socket, Exports(exports), jobs, _say)
        server.start()
        try:
            if at.public:
                _say(f"whoever reaches {at.authority} can read these images; there is no TLS")
            if program is not None:
                return _run(program, at, exports[0].name)
            _announce(exports, at, as_json=as_json)
            while True:  # until a signal; one that arrives just before a sleep is noticed behind it
                time.sleep(1)
        finally:
            server.stop()


def _announce(exports: Sequence[Export], at: Listening, *, as_json: bool) -> None:
    """One line for programs, and one for each image for people."""
    uris = {each.name: at.uri(each.name) for each in exports}
    report = {"uri": at.uri(), "exports": [{"name": name, "uri": uri} for name, uri in uris.items()]}
    click.echo(json.dumps(report) if as_json else at.uri())
    if len(exports) > 1 and not as_json:
        for name, uri in uris.items():
            click.echo(printable(f"{name}: {uri}"), err=True)


def _run(program: str, at: Listening, name: str) -> int:
    """Run a shell's command to its end; its exit code, 128 and the signal's number where one ended it."""
    from rehydrator import host

    variables = {
        "uri": at.uri(here=True),
        "unixsocket": at.path,
        "port": str(at.port or ""),
        "exportname": name,
        "LC_ALL": os.environ.get("LC_ALL", ""),  # the user's own, not what our programs get
    }
    with host.started(["sh", "-c", program], env=variables) as running:
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = running.wait(1)
                return code if code >= 0 else 128 - code


def _say(message: str) -> None:
    with suppress(OSError):  # nobody reads it, and clients are to be served all the same
        click.echo(f"rehydrator: {printable(message)}", err=True)
