"""`variants`: one canonical image into every platform's published files."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import (
    StatusLine,
    all_cores,
    host_arch,
    human,
    json_option,
    table,
    tmpdir_option,
    work_directory,
)
from rehydrator.core.errors import ToolMissing, UsageError, worst_exit_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rehydrator.variants.maker import Outcome
    from rehydrator.variants.plan import Variant


@click.command("variants", short_help="Make every platform's images from one canonical image.")
@click.argument("base", metavar="BASE.qcow2", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="RELEASE_DIR",
    help="Where the files and stream.json go; `rehydrator build` takes it.",
)
@click.option(
    "--platforms",
    "platforms_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    metavar="platforms.yaml",
    help="Kernel arguments and GRUB commands of each platform (fedora-coreos-config's format).",
)
@click.option("--name", required=True, help="The name that file names begin with: fedora-coreos.")
@click.option("--stream", required=True, help="The stream's name: stable.")
@click.option("--release", required=True, help="The release's version: 44.20260707.3.1.")
@click.option("--arch", help="Architecture of the disk. Default: what BASE's name says, else this machine's.")
@click.option(
    "--platform", "platforms", multiple=True, metavar="P", help="Only this platform; may be repeated."
)
@click.option(
    "--compress",
    type=click.Choice(["published", "none"]),
    default="published",
    show_default=True,
    help="Compress as upstream publishes, or leave the images as they are.",
)
@click.option(
    "--level",
    type=click.IntRange(1, 9),
    default=None,
    metavar="1..9",
    help="Level of every outer compression, instead of upstream's (xz 9, gzip 6 or 9, zip 9, zstd 10).",
)
@click.option(
    "--base-4k",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The canonical image for disks with sectors of 4,096 bytes; without it, metal4k is left out.",
)
@click.option(
    "--derivations",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="YAML laid over the shipped table: new platforms, sizes, converters, files of the guest.",
)
@click.option(
    "--add",
    "added",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Publish this file, too: live media, named as the release's files are; may be repeated.",
)
@click.option(
    "--gpg-key", default="", metavar="ID", help="Sign every file (detached, FILE.sig) with this key."
)
@click.option(
    "--editor",
    type=click.Choice(["auto", "offline", "guestfs", "mount"]),
    default="auto",
    show_default=True,
    help="How guests are edited: debugfs without mounting, libguestfs, or loop mounts (root).",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=all_cores,
    show_default="all cores",
    help="Threads in all.",
)
@tmpdir_option
@click.option("--dry-run", is_flag=True, help="Only show what would be made.")
@json_option
def command(
    base: Path,
    directory: Path,
    arch: str | None,
    compress: str,
    level: int | None,
    added: tuple[Path, ...],
    tmpdir: Path | None,
    dry_run: bool,
    as_json: bool,
    **rest: Any,
) -> int:
    """Make every platform's images, as CoreOS names, formats and compresses them, and stream.json.

    BASE is copied, grown to the platform's size, told its platform (boot loader entries, console,
    files), converted, wrapped, compressed and signed. A platform that fails does not stop the
    others. Identifiers and times come from SOURCE_DATE_EPOCH (default: the time of BASE) and the
    release's name.
    """
    try:
        from rehydrator.variants.document import add_files, open_document, write_document
        from rehydrator.variants.maker import Maker
        from rehydrator.variants.plan import Options, check_added, make_plan
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"variants need the Python package {error.name}, which is not here: bundles' containers "
            "only read; use a full installation (`make install`)"
        ) from None
    started = time.monotonic()
    options = Options(
        base=base,
        directory=directory,
        arch=arch or _arch_of(base),
        compress=compress == "published",
        level=level or 0,
        epoch=_epoch(base),
        **rest,
    )
    open_document(directory, options.stream)
    with ExitStack() as stack:
        reporter = _Reporter()
        stack.callback(reporter.close)
        plan = make_plan(options, reporter.note)
        reporter.total = len(plan.variants)
        check_added(options, added, plan.variants)
        if dry_run:
            _show_plan(plan.variants, as_json)
            return 0
        stack.enter_context(_directory(directory))
        staging = stack.enter_context(work_directory(directory, "variants"))
        scratch = stack.enter_context(work_directory(tmpdir or directory, "variants"))
        maker = Maker(options, plan, reporter, scratch.absolute(), staging.absolute())
        outcomes = maker.make()
        files, written = [outcome.written for outcome in outcomes if outcome.written], None
        try:
            files.extend(map(maker.add, added))
        finally:
            if files:
                # Once more: another run may have added its platforms meanwhile.
                document = open_document(directory, options.stream)
                written = write_document(add_files(document, options, files), directory, staging)
    _show(outcomes, written, time.monotonic() - started, as_json)
    return worst_exit_code([outcome.error.exit_code if outcome.error else 0 for outcome in outcomes])


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Make the release directory; it goes again when nothing came into it."""
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if new:
            with suppress(OSError):
                path.rmdir()


def _arch_of(base: Path) -> str:
    """A base is often not named by the convention, but its architecture stands between dots."""
    from rehydrator.metadata.names import ARCHES

    return next((part for part in base.name.split(".") if part in ARCHES), host_arch())


def _epoch(base: Path) -> int:
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not given:
        return int(base.stat().st_mtime)
    if not re.fullmatch("[0-9]{1,10}", given) or int(given) >= 1 << 32:
        raise UsageError(f"SOURCE_DATE_EPOCH={given:.40}: seconds since 1970 are expected, below 2^32")
    return int(given)


def _show_plan(variants: Sequence[Variant], as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "platform": each.platform,
            "file": each.file,
            "virtual_size": each.size,
            "format": each.derivation.format,
            "arguments": list(each.derivation.arguments),
            "wrap": each.derivation.wrap or None,
            "compress": each.method,
        }
        for each in variants
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    cells = [["PLATFORM", "SIZE", "MADE BY", "FILE"]]
    for row in rows:
        made = " ".join([row["format"], *row["arguments"], row["wrap"] or "", row["compress"]])
        cells.append([row["platform"], human(row["virtual_size"]), " ".join(made.split()), row["file"]])
    click.echo(printable(table(cells, {1})))


def _show(outcomes: Sequence[Outcome], written: Path | None, seconds: float, as_json: bool) -> None:
    good = [outcome for outcome in outcomes if outcome.written]
    if as_json:
        report = {
            "stream_json": str(written) if written else None,
            "seconds": round(seconds, 1),
            "platforms": [_as_json(outcome) for outcome in outcomes],
        }
        click.echo(json.dumps(report, indent=2))
        return
    rows = [["PLATFORM", "BYTES", "SECONDS", "FILE"]]
    for outcome in good:
        assert outcome.written
        spent = sum(spent for _, spent in outcome.seconds)
        size = f"{outcome.written.packed.size:,}"
        rows.append([outcome.variant.platform, size, f"{spent:.1f}", outcome.variant.file])
    click.echo(printable(table(rows, {1, 2})), err=True)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        click.echo(printable(f"{outcome.variant.platform}: FAILED: {outcome.error}"), err=True)
    click.echo(f"{len(good)} of {len(outcomes)} platforms in {seconds:.0f} seconds", err=True)
    if written:
        click.echo(str(written))


def _as_json(outcome: Outcome) -> dict[str, Any]:
    written, error = outcome.written, outcome.error
    found: dict[str, Any] = {
        "platform": outcome.variant.platform,
        "file": outcome.variant.file,
        "virtual_size": outcome.variant.size,
        "seconds": {step: round(spent, 2) for step, spent in outcome.seconds},
    }
    if written:
        found |= {"sha256": written.packed.sha256, "size": written.packed.size, "signed": written.signed}
        if written.plain:
            found |= {"uncompressed_sha256": written.plain.sha256, "uncompressed_size": written.plain.size}
    if error:
        found["error"] = {"code": error.exit_code, "message": str(error)}
    return found


class _Reporter:
    """A line for each platform that is through; on a terminal, what is being done as well."""

    def __init__(self) -> None:
        self._line, self._doing = StatusLine(), dict[str, str]()
        self.total = self._through = 0
        self._lock = threading.Lock()

    def note(self, text: str) -> None:
        self._line.clear()
        click.echo(printable(text), err=True)

    def step(self, platform: str, what: str) -> None:
        with self._lock:
            self._doing[platform] = what
            if platform:
                self._doing.pop("", None)
            doing = "  ".join(f"{name} {step}".strip() for name, step in self._doing.items())
            self._line.show(printable(f"{self._through}/{self.total}  {doing}"))

    def done(self, outcome: Outcome) -> None:
        with self._lock:
            self._doing.pop(outcome.variant.platform, None)
            self._through += 1
        if outcome.error:
            self.note(f"{outcome.variant.platform}: failed")
        elif outcome.written:
            steps = ", ".join(f"{step} {spent:.1f} s" for step, spent in outcome.seconds)
            self.note(f"{outcome.variant.file}: {human(outcome.written.packed.size)} ({steps})")

    def close(self) -> None:
        self._line.clear()
