"""`build`: a release directory into one bundle."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import (
    Progress,
    all_cores,
    host_arch,
    human,
    json_option,
    run_filter,
    table,
    tmpdir_option,
    work_directory,
)
from rehydrator.cli.info import published_by
from rehydrator.cli.keygen import ask_password, password_from
from rehydrator.core.errors import ToolMissing, UsageError
from rehydrator.host import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rehydrator.bundle.builder import Built
    from rehydrator.bundle.seal import Sealed
    from rehydrator.oci.reference import Reference


# A frame of 16 MiB at level 19 takes 90 MiB (measured), and two more wait: a build that is not
# told otherwise stays below 2 GiB, however many cores there are.
MOST_JOBS = 12


def default_jobs() -> int:
    """Threads of a build that is not told otherwise."""
    return min(all_cores(), MOST_JOBS)


class _FileOrNone(click.Path):
    """A file, or the word "none" as it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "none" else super().convert(value, param, ctx)


@click.command("build", short_help="Pack a release into one bundle.")
@click.argument("release_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", metavar="REF", help="oci:DIR[:TAG] or oci-archive:FILE[:TAG].")
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="KEY",
    help="Sign with this private key. Without it the bundle is unsigned.",
)
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The key's password. Default: REHYDRATOR_PASSWORD, else the terminal.",
)
@click.option(
    "--runtime",
    metavar="REF|none",
    help="The image whose layers come first. Default: what `make image` built; none: data only.",
)
@click.option(
    "--stream-json",
    type=_FileOrNone(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE|none",
    help="The release's stream document: it names the files and their digests. "
    "Default: RELEASE_DIR/stream.json, else one is written.",
)
@click.option("--allow-missing", is_flag=True, help="Go on without files that the stream document names.")
@click.option("--name", default="", help="The release's name; default: from the file names.")
@click.option("--stream", default="", help="The stream's name; default: from --stream-json.")
@click.option("--release", default="", help="The release's version; default: from the file names.")
@click.option(
    "--arch",
    default="",
    help="Architecture of files whose name has none; default: that of the other files, else this machine's.",
)
@click.option(
    "--canonical",
    "canonicals",
    multiple=True,
    metavar="FILE",
    help="Store this file's disk whole. Default: of each group of siblings, the one with most data.",
)
@click.option(
    "--keep-published",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Compressed files that no encoder here gives back: keep their bytes too (always), only the "
    "image inside (never: looks for no encoder), or keep them where few bytes are missing.",
)
@click.option(
    "--live",
    type=click.Choice(["auto", "stored", "encoded"]),
    default="auto",
    show_default=True,
    help="The live root file system, which holds the disks' files once more: stored as it is, and the "
    "disks made from it; or encoded again from the disks. auto: what is smaller.",
)
@click.option(
    "--canonical-form",
    type=click.Choice(["image", "published"]),
    default="image",
    show_default=True,
    help="Store the canonical disk in frames of zstd, or as the compressed file that it was published "
    "in, if that can be read in pieces (.xz with blocks of at most 64 MiB).",
)
@click.option(
    "--initramfs",
    type=click.Choice(["stored", "encoded"]),
    default="stored",
    show_default=True,
    help="An initramfs, which stands in the disks' /boot as well: stored as it is; or encoded again, from "
    "the files that the disks have too, whenever one of them is given back. That is smaller, and slower.",
)
@click.option("--level", type=click.IntRange(1, 19), default=19, show_default=True, help="zstd level.")
@click.option(
    "--max-image-size",
    type=click.IntRange(1),
    default=256 << 30,
    show_default=True,
    help="Refuse larger images, bytes.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=default_jobs,
    show_default=f"all cores, at most {MOST_JOBS}",
    help="Threads; each may take 130 MiB.",
)
@tmpdir_option
@click.option("--dry-run", is_flag=True, help="Only show what each file would be stored as.")
@json_option
def command(
    release_dir: Path,
    output: str | None,
    key: Path | None,
    password_file: Path | None,
    runtime: str | None,
    stream_json: Path | str | None,
    tmpdir: Path | None,
    dry_run: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Pack the disk images in RELEASE_DIR into one bundle, prove it, and write it to -o.

    RELEASE_DIR is what `rehydrator variants` and `rehydrator stream mirror` make: files as
    published, detached signatures (FILE.sig) and stream.json. Around an image .xz, .gz, .zst,
    .bz2 and .zip are taken off, and the encoder that gives them back is looked for; .tar.gz,
    .ova and .ociarchive are images themselves. Unfinished downloads (.part) are left out.

    Every image is regenerated from the finished bundle in a fresh process and compared with
    its digest before anything is published.
    """
    try:
        from rehydrator.bundle.builder import Builder, BuildOptions
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"a build needs the Python package {error.name}, which is not here: bundles' containers "
            "only read; build with a full installation (`make install`)"
        ) from None
    from rehydrator.bundle.seal import creation_time, seal

    started = time.monotonic()
    target = None if dry_run else _target(output)
    base = None if dry_run else _runtime(runtime)
    created = creation_time()
    sign = _signer(key, password_file) if key and not dry_run else None
    beside = target.path.absolute().parent if target else None
    place = tmpdir or beside or Path(tempfile.gettempdir())
    with work_directory(place, "build") as work:
        options = BuildOptions(
            release_dir,
            work,
            host_arch=host_arch(),
            target=beside,
            stream_json=stream_json if isinstance(stream_json, Path) else None,
            ignore_stream_json=stream_json == "none",
            run=run_filter,
            **rest,
        )
        reporter = _Reporter()
        try:
            if target is None:
                _show_plan(Builder(options, reporter).plan(), as_json)
                return
            built = Builder(options, reporter).build()
            reporter.phase("proving", 0)
            sealed = seal(built, target, base, sign, options.jobs, work, created)
        finally:
            reporter.close()
        _show(built, sealed, target, time.monotonic() - started, as_json)


def _target(output: str | None) -> Reference:
    from rehydrator.oci.reference import parse, stage

    if not output:
        raise UsageError("say where the bundle goes: -o oci:DIR[:TAG] or -o oci-archive:FILE")
    target = parse(output)
    if target.transport not in {"oci", "oci-archive"}:
        raise UsageError(
            f"{output}: a build writes oci:DIR[:TAG] or oci-archive:FILE; copy it on with skopeo"
        )
    if not target.path.absolute().parent.is_dir():
        raise UsageError(f"{target.path.absolute().parent}: no such directory; make it first")
    with uninterrupted(), stage(target):
        pass  # what cannot be written there is said now, not after hours
    return target


def default_runtime() -> Path:
    """Where `make image` puts the runtime image."""
    return Path(sys.prefix) / "share" / "rehydrator" / "runtime"


def _runtime(runtime: str | None) -> Reference | None:
    from rehydrator.oci.reference import parse

    if runtime == "none":
        return None
    if runtime:
        return parse(runtime)
    if not (default_runtime() / "index.json").exists():
        raise ToolMissing(
            f"there is no runtime image in {default_runtime()}; make it with `make image`, "
            "name one with --runtime REF, or say --runtime none for data only"
        )
    return parse(f"oci:{default_runtime()}:latest")


def _signer(key: Path, password_file: Path | None) -> Callable[[bytes], tuple[str, bytes]]:
    from rehydrator.oci.signature import key_id, load_private_key, sign

    def ask() -> bytes:
        given = password_from(password_file)
        return given if given is not None else ask_password(confirm=False)

    private = load_private_key(key, ask)
    return lambda data: (key_id(private.public_key()), sign(data, private))


def _show_plan(plan: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(plan, indent=2))
        return
    rows = [["FILE", "SIZE", "WOULD BE", "AGAINST"]]
    for each in plan:
        against = "canonical" if each["canonical"] else each["against"]
        rows.append([each["file"], human(each["size"]), _with_reason(each["rung"], each["tried"]), against])
    click.echo(printable(table(rows, {1})))


def _show(built: Built, sealed: Sealed, target: Reference, seconds: float, as_json: bool) -> None:
    artifacts = built.manifest.artifacts()
    if as_json:
        report = {
            "reference": str(target),
            "digest": sealed.digest,
            "signed_by": sealed.key_id or None,
            "bytes_stored": sealed.stored,
            "seconds": round(seconds, 1),
            "artifacts": [
                {
                    "file": each.image.name,
                    "size": each.image.size,
                    "sha256": each.image.sha256,
                    "how": each.how,
                }
                for each in artifacts
            ],
        }
        click.echo(json.dumps(report, indent=2))
        return
    rows = [["FILE", "SIZE", "ADDS", "STORED AS", "AS PUBLISHED"]]
    for each in artifacts:
        how = each.how
        row = [each.image.name, human(each.image.size), human(how["cost"]), _stored_as(how)]
        rows.append([*row, published_by(each)])
    click.echo(printable(table(rows, {1, 2})), err=True)
    total = sum(each.image.size for each in artifacts)
    click.echo(f"{len(artifacts)} files of {human(total)} in {human(sealed.stored)}, proven", err=True)
    signed = f"signed by {sealed.key_id}" if sealed.key_id else "UNSIGNED: no --key was given"
    click.echo(signed, err=True)
    click.echo(f"{target}@{sealed.digest}")


def _stored_as(how: dict[str, Any]) -> str:
    return f"{how['rung']} ({how['format']})" if how["format"] else _with_reason(how["rung"], how["tried"])


def _with_reason(rung: str, tried: list[dict[str, str]]) -> str:
    """The rung, and why it is not a better one."""
    return f"{rung} ({tried[0]['why']})" if tried else rung


class _Reporter:
    """A build's words on stderr, and its progress on a terminal."""

    def __init__(self) -> None:
        self._progress = Progress("", 0)

    def note(self, text: str) -> None:
        self._progress.clear()
        click.echo(printable(text), err=True)

    def phase(self, title: str, total: int) -> None:
        self._progress.clear()
        self._progress = Progress(title, total)
        self._progress.advance(0)

    def advance(self, steps: int, detail: str = "") -> None:
        self._progress.advance(steps, detail)

    def close(self) -> None:
        self._progress.clear()
