"""`rehydrate`: give images back."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import (
    Progress,
    bundle_option,
    engine_options,
    host_arch,
    human,
    jobs_option,
    json_option,
    key_option,
    memory_option,
    opened,
    reference_of,
    say_how,
    selection_options,
    tmpdir_option,
    verbose_option,
)
from rehydrator.cli.rehydrate_checks import check_no_disk, check_options, check_place, either, the_place
from rehydrator.core.errors import DigestMismatch, RehydratorError, UsageError, worst_exit_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.bundle.rehydrate import Options
    from rehydrator.bundle.seeds import Seeds
    from rehydrator.oci.reference import Reference

# Encoders that take less are nobody's concern.
_WORTH_SAYING = 256 << 20

# Transports of bundles that are copied whole before they are read.
_FETCHED = {"docker", "containers-storage"}


@click.command("rehydrate", short_help="Give images back.")
@click.argument("places", metavar="DEST|-|DEVICE", nargs=-1, required=True)
@bundle_option
@key_option
@tmpdir_option
@selection_options
@click.option(
    "--form",
    type=click.Choice(["image", "published"]),
    default=None,
    help="As an image (default), or byte for byte as published, compression and signature included.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace existing files that are something else; with --in-place, also where nothing of FILE is "
    "of the image.",
)
@click.option(
    "--in-place",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Turn FILE, an older image, into the one asked for; it is called *.bad until it is verified.",
)
@click.option(
    "--seed",
    "seeds",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Take what it has from an image or a disk at hand, this release's or an older one's, instead of "
    "the bundle.",
)
@click.option("--yes", is_flag=True, help="Write to a block device without asking.")
@click.option("--sparse/--no-sparse", default=None, help="Holes for zeros. Default: as the original was.")
@click.option(
    "--cache/--no-cache",
    default=None,
    help="Keep what is written in the page cache, or not, as dd does. Default: files below 64 MiB.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written where, and write nothing.")
@jobs_option
@memory_option
@verbose_option
@json_option
def command(
    places: Sequence[str],
    bundle_reference: str | None,
    key: Path | None,
    tmpdir: Path | None,
    form: str | None,
    overwrite: bool,
    in_place: Path | None,
    seeds: Sequence[Path],
    yes: bool,
    sparse: bool | None,
    cache: bool | None,
    dry_run: bool,
    jobs: int,
    memory: int | None,
    verbose: bool,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Write images into the directory DEST, to standard output (-), or one onto a whole disk (DEVICE).

    A file in DEST gets its name when its digest was verified, not before. Several images on
    standard output are a tar archive. Signatures go into DEST beside the published form. A disk gets
    its first and last bytes when the digest was verified.
    """
    from rehydrator import host
    from rehydrator.bundle.selection import select

    dest = the_place(places)
    if not any(wanted[name] for name in ("disks", "names", "every", "iso", "pxe")):
        raise UsageError("name what to rehydrate: --disk PLATFORM, --file NAME, --iso, --pxe or --all")
    check_place(dest, yes=yes)
    given = {"--json": as_json, "--overwrite": overwrite}
    check_options(dest, given | either("sparse", sparse) | either("cache", cache))
    if in_place and (dest == "-" or Path(dest).is_block_device()):
        raise UsageError(f"--in-place needs a directory as DEST, not {dest}")
    if dest == "-" and sys.stdout is None:
        raise UsageError("standard output is closed; redirect it to a file or a pipe")
    if dest == "-" and sys.stdout.isatty():
        raise UsageError("standard output is a terminal; redirect it to a file or a pipe")
    host.one_arena()
    options = engine_options(jobs, memory, overwrite=overwrite, sparse=sparse, cache=cache)
    with opened(bundle_reference, None, key, tmpdir, options.memory) as bundle:
        known = bundle.manifest.artifacts()
        outputs = select(known, **wanted, host_arch=host_arch, form=form or "")
        if verbose:
            say_how(bundle, outputs, options, in_order=dest == "-")
        with _seeded(bundle, seeds, reference_of(bundle_reference)):
            return _give(
                bundle,
                outputs,
                dest,
                in_place,
                options,
                wanted["names"],
                yes=yes,
                dry_run=dry_run,
                as_json=as_json,
            )


def _give(
    bundle: Bundle,
    outputs: list[Output],
    dest: str,
    in_place: Path | None,
    options: Options,
    names: Sequence[str],
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    from rehydrator.cli import rehydrate_dry as dry

    if dest == "-":
        wanted = without_signatures(outputs, names)
        return dry.to_pipe(bundle, wanted) if dry_run else _to_pipe(bundle, wanted, options)
    if Path(dest).is_block_device():
        from rehydrator.cli.rehydrate_device import to_device

        return to_device(bundle, outputs, Path(dest), options, yes=yes, dry_run=dry_run, as_json=as_json)
    if in_place:
        wanted = without_signatures(outputs, names)
        return _in_place(bundle, wanted, in_place, Path(dest), options, as_json, dry_run=dry_run)
    if dry_run:
        return dry.to_directory(bundle, outputs, Path(dest), options, as_json=as_json)
    return _to_directory(bundle, outputs, make_directory(Path(dest)), options, as_json)


@contextmanager
def _seeded(bundle: Bundle, files: Sequence[Path], reference: Reference) -> Iterator[None]:
    """Images at hand, and what came of them: reading less is no gain where all was fetched before."""
    if not files:
        yield
        return
    from rehydrator.bundle.seeds import Seeds

    seeds = Seeds(bundle)
    for path in files:
        artifact = seeds.add(path)
        if path.name != artifact.image.name:
            click.echo(f"--seed {printable(str(path))}: taken for {printable(artifact.image.name)}", err=True)
    try:
        yield
    finally:
        if seeds.asked.frames and reference.transport not in _FETCHED:
            _tell_taken(seeds)


def _tell_taken(seeds: Seeds) -> None:
    taken, asked = seeds.taken, seeds.asked
    click.echo(
        f"{taken.frames} of {asked.frames} frames, {human(taken.stored)} of {human(asked.stored)}, "
        "came from --seed, the rest from the bundle",
        err=True,
    )


def without_signatures(outputs: list[Output], names: Sequence[str]) -> list[Output]:
    """For a pipe, and in place, which are for one file: the signatures alone that were named."""
    return [each for each in outputs if each.form is not each.artifact.signature or each.form.name in names]


def make_directory(directory: Path, *, dry_run: bool = False) -> Path:
    """DEST, made if its parent exists; with `dry_run` not even then."""
    if dry_run and directory.parent.is_dir():
        return directory
    try:
        directory.mkdir(exist_ok=True)
    except FileNotFoundError:
        raise UsageError(f"{directory.parent}: no such directory; make it first") from None
    except FileExistsError:
        raise UsageError(f"{directory} is not a directory") from None
    return directory


def _announce(bundle: Bundle, outputs: Sequence[Output], jobs: int) -> None:
    """Say what encoders will take before they take it."""
    from rehydrator.bundle.rehydrate import encoding

    needed = encoding(bundle, outputs, jobs)
    if needed.memory >= _WORTH_SAYING:
        names = ", ".join(needed.names)
        total = needed.at_once * needed.memory
        click.echo(
            f"encoding by {names}: {needed.at_once} at a time, up to {human(total)} of memory", err=True
        )


def _to_pipe(bundle: Bundle, outputs: list[Output], options: Options) -> int:
    from rehydrator.bundle.rehydrate import to_pipe

    _announce(bundle, outputs, options.jobs)
    progress = Progress("rehydrating", sum(each.form.size for each in outputs))
    try:
        to_pipe(bundle, outputs, sys.stdout.fileno(), options.jobs, progress.advance, options.memory)
    except DigestMismatch as error:
        raise DigestMismatch(f"{error}. The output is BAD: throw it away") from None
    finally:
        progress.clear()
    return 0


def _to_directory(
    bundle: Bundle, outputs: list[Output], directory: Path, options: Options, as_json: bool
) -> int:
    from rehydrator.bundle.rehydrate import to_directory

    _announce(bundle, outputs, options.jobs)
    outcomes: dict[str, dict[str, Any]] = {}
    started, lock = time.monotonic(), threading.Lock()
    progress = Progress("rehydrating", sum(each.form.size for each in outputs))

    def ended(output: Output, result: str | RehydratorError) -> None:
        outcome = outcome_of(output, result) | {"seconds": round(time.monotonic() - started, 3)}
        with lock:
            outcomes[output.form.name] = outcome
            if not as_json:
                progress.clear()
                _tell(outcome)

    try:
        to_directory(bundle, outputs, directory, options, progress.advance, ended)
    finally:
        progress.clear()
    listed = [outcomes[output.form.name] for output in outputs]
    if as_json:
        click.echo(json.dumps(listed, indent=2))
    return worst_exit_code([outcome["exit_code"] for outcome in listed])


def _in_place(
    bundle: Bundle,
    outputs: list[Output],
    old: Path,
    directory: Path,
    options: Options,
    as_json: bool,
    *,
    dry_run: bool,
) -> int:
    from rehydrator.bundle.in_place import update

    if len(outputs) != 1:
        raise UsageError(f"--in-place makes one image, and {len(outputs)} are asked for")
    [output] = outputs
    if not old.exists():
        raise UsageError(f"--in-place {old}: no such file")
    check_no_disk(old)
    directory = make_directory(directory, dry_run=dry_run)
    _announce(bundle, outputs, options.jobs)
    started, progress = time.monotonic(), Progress(output.form.name, output.form.size)
    try:
        done = update(bundle, output, old, directory, options, progress.advance, dry_run=dry_run)
    finally:
        progress.clear()
    seconds = round(time.monotonic() - started, 3)
    would = dry_run and done.status == "updated"
    outcome = outcome_of(output, "would be updated" if would else done.status)
    outcome |= {"right_before": done.right, "seconds": seconds}
    if as_json:
        click.echo(json.dumps([outcome], indent=2))
        return 0
    after = f"{human(done.right)} of {human(output.form.size)} {'are' if would else 'were'} right already"
    if done.status == "present":
        after = f"{printable(str(old))} stays as it is"
    how = f"would be made of {printable(str(old))}" if would else f"{done.status}, sha256 verified"
    click.echo(f"{printable(output.form.name)}: {how}; {after}", err=True)
    return 0


def report(outcomes: list[dict[str, Any]], *, as_json: bool) -> int:
    """Say what came, or would come, of all outputs; the exit code of them."""
    if as_json:
        click.echo(json.dumps(outcomes, indent=2))
    else:
        for outcome in outcomes:
            _tell(outcome)
    return worst_exit_code([outcome["exit_code"] for outcome in outcomes])


def outcome_of(output: Output, result: str | RehydratorError) -> dict[str, Any]:
    """What is said of an output to programs."""
    form = output.form
    outcome: dict[str, Any] = {"file": form.name, "size": form.size, "sha256": form.sha256, "exit_code": 0}
    if isinstance(result, str):
        return outcome | {"status": result}
    return outcome | {"status": "failed", "error": str(result), "exit_code": result.exit_code}


def _tell(outcome: dict[str, Any]) -> None:
    name = printable(outcome["file"])
    if outcome["status"] == "failed":
        click.echo(f"rehydrator: {printable(outcome['error'])}", err=True)
    elif "to" in outcome:
        size = f"{human(outcome['size'])} ({outcome['size']} bytes)"
        place = printable(outcome["to"])
        click.echo(f"{name}: would be written to {place}, {size}, sha256 {outcome['sha256']}", err=True)
    else:
        click.echo(f"{name}: {outcome['status']}, sha256 verified", err=True)
