"""`rehydrate /dev/sdX`: an image onto a whole disk."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from rehydrator.cli import printable
from rehydrator.cli.common import Progress
from rehydrator.core.errors import RehydratorError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.bundle.rehydrate import Options
    from rehydrator.host.block_device import Device, Written

# Formats whose bytes are a disk's.
_FOR_DISKS = (".raw", ".img", ".iso")


def to_device(
    bundle: Bundle,
    outputs: Sequence[Output],
    path: Path,
    options: Options,
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Write one raw disk or ISO onto a block device, once the user agreed; with `dry_run` only say
    what there is to agree to."""
    from rehydrator.host.block_device import BEGINNING, check, confirmation, inspect, misfit

    if len(outputs) != 1:
        raise UsageError(f"{path} takes one image, and {len(outputs)} are asked for")
    [output] = outputs
    _check_format(output, path)
    device = inspect(path)
    check(device, output.form.size)
    reader = bundle.open_form(output.artifact, output.form)
    warning = misfit(device, reader.pread(0, min(BEGINNING, reader.size)))
    question = confirmation(device, [warning] if warning else [])
    _ask(question, yes=yes or dry_run)
    if dry_run:
        from rehydrator.cli.rehydrate import report
        from rehydrator.cli.rehydrate_dry import would_be

        return report([would_be(output, str(device.path))], as_json=as_json)
    started, progress = time.monotonic(), Progress(output.form.name, output.form.size)
    try:
        written = _write(bundle, output, device, options, progress.advance)
    finally:
        progress.clear()
    seconds = round(time.monotonic() - started, 3)
    form = output.form
    if as_json:
        outcome = {
            "file": form.name,
            "size": form.size,
            "sha256": form.sha256,
            "exit_code": 0,
            "status": "written",
            "device": str(device.path),
            "seconds": seconds,
        }
        click.echo(json.dumps([outcome], indent=2))
    else:
        click.echo(f"{printable(form.name)}: written to {device.path}, sha256 verified", err=True)
    for note in written.notes(device):
        click.echo(note, err=True)
    return 0


def _check_format(output: Output, path: Path) -> None:
    """A qcow2 on a disk is of use to nobody."""
    form, artifact = output.form, output.artifact
    if form is not artifact.image or not form.name.endswith(_FOR_DISKS):
        raise UsageError(
            f"{path}: {form.name} is not what a machine boots from; write a raw disk or an ISO "
            "(--disk metal, --iso)"
        )


def _ask(lines: list[str], *, yes: bool) -> None:
    for line in lines[:-1]:
        click.echo(printable(line), err=True)
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("nothing was written: nobody is there to ask; --yes agrees")
    click.echo(lines[-1] + " ", nl=False, err=True)
    if sys.stdin.readline().strip() != "yes":
        raise RehydratorError("nothing was written: the answer was not yes")


def _write(
    bundle: Bundle, output: Output, device: Device, options: Options, advance: Callable[[int], object]
) -> Written:
    from rehydrator.bundle.making import make_side_by_side, making
    from rehydrator.bundle.rehydrate import is_made_in_order, make_ordered
    from rehydrator.host.block_device import open_for_writing

    each = making(bundle, output)
    with open_for_writing(device, output.form.size, discard=options.sparse is not False) as sink:
        if is_made_in_order(bundle, each):
            make_ordered(bundle, each, sink.write, options.jobs, advance, memory=options.memory)
            return sink.commit()
        each = replace(each, sink=sink)
        make_side_by_side([each], options.workers, advance)
        if each.error is not None:
            raise each.error
        return sink.commit()
