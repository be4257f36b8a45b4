"""`verify`: is this bundle whole, signed, and does it give everything back?"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import (
    Progress,
    bundle_option,
    engine_options,
    jobs_option,
    json_option,
    key_option,
    memory_option,
    reference_argument,
    reference_of,
    say_how,
    scratch,
    tmpdir_option,
    trusted,
    verbose_option,
)
from rehydrator.core.errors import HostileInput, RehydratorError, worst_exit_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.bundle.rehydrate import Options


@click.command("verify", short_help="Check digests and signature.")
@reference_argument
@bundle_option
@key_option
@tmpdir_option
@click.option("--all", "every", is_flag=True, help="Also regenerate every image and compare its digest.")
@click.option(
    "--export",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the signed bytes (bundle.json) and the signatures, for openssl.",
)
@click.option("--staged", type=click.Path(exists=True, path_type=Path), hidden=True)
@click.option("--proven", type=click.Path(exists=True, path_type=Path), hidden=True)
@jobs_option
@memory_option
@verbose_option
@json_option
def command(
    reference: str | None,
    bundle_reference: str | None,
    key: Path | None,
    tmpdir: Path | None,
    every: bool,
    export: Path | None,
    staged: Path | None,
    proven: Path | None,
    jobs: int,
    memory: int | None,
    verbose: bool,
    as_json: bool,
) -> int:
    """Check every digest of a bundle, and with --key its signature."""
    from rehydrator import host
    from rehydrator.bundle.proven import Proven
    from rehydrator.oci.reference import open_bundle, open_staged, verify_blobs

    host.one_arena()
    # The build's proof passes on what the build was told, or the machine has.
    options = engine_options(jobs, memory, silent=staged is not None)
    findings = []
    if staged:
        opening = open_staged(staged, scratch(tmpdir))
    else:
        named = reference_of(bundle_reference, reference)
        findings.append(_finding("image", lambda: verify_blobs(named, scratch(tmpdir))))
        opening = open_bundle(named, scratch(tmpdir))
    with opening as files:
        known = Proven(proven) if proven else None
        bundle = trusted(files, key, scratch(tmpdir), known, options.memory)
        if verbose:
            say_how(bundle, bundle.manifest.outputs() if every else [], options)
        findings += check_files(bundle, jobs)
        if every:
            findings += check_artifacts(bundle, options)
        if export:
            export_signed(bundle, export)
    code = worst_exit_code([finding["exit_code"] for finding in findings])
    report = {
        "signature": "verified" if key else "not checked",
        "exit_code": code,
        "checked": findings,
    }
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _tell(report, every)
    return code


def check_files(bundle: Bundle, jobs: int) -> list[dict[str, Any]]:
    """Every pinned file against its digest."""
    from rehydrator.bundle.reader import check_file

    stored = bundle.manifest.stored_files()
    work = [(each.file, lambda each=each: check_file(bundle.files, each)) for each in stored]
    return _side_by_side(work, jobs)


def check_artifacts(bundle: Bundle, options: Options) -> list[dict[str, Any]]:
    """Everything that can be given back, regenerated and compared with its digest."""
    from rehydrator.bundle.rehydrate import check, check_side_by_side, has_streams

    outputs = bundle.manifest.outputs()
    progress = Progress("regenerating", sum(each.form.size for each in outputs))
    try:
        encoded = [each for each in outputs if has_streams(bundle, each)]
        rest = [each for each in outputs if each not in encoded]
        wrong = check_side_by_side(bundle, rest, options, progress.advance)
        found = [_found(each.form.name, error) for each, error in zip(rest, wrong, strict=True)]
        # Encoders take memory of their own: as many at once as there is room for.
        at_once = _at_once(bundle, encoded, options.jobs)
        checked = partial(check, bundle, jobs=1, others=at_once - 1, memory=options.memory)
        work = [
            (
                each.form.name,
                partial(checked, each, progress=partial(progress.advance, detail=each.form.name)),
            )
            for each in encoded
        ]
        return found + _side_by_side(work, at_once)
    finally:
        progress.clear()


def _at_once(bundle: Bundle, outputs: Sequence[Output], jobs: int) -> int:
    """How many encoders there is room for; a codec that there is not is its output's own error."""
    from rehydrator.bundle.rehydrate import encoding

    try:
        return encoding(bundle, outputs, jobs).at_once
    except HostileInput:
        return 1


def export_signed(bundle: Bundle, directory: Path) -> None:
    """bundle.json and its signatures as files."""
    directory.mkdir(exist_ok=True)
    (directory / "bundle.json").write_bytes(bundle.signed_bytes)
    for key_id, signature in bundle.signatures().items():
        (directory / f"bundle.json.{key_id}.sig").write_bytes(signature)


def _side_by_side(work: Iterable[tuple[str, Callable[[], object]]], jobs: int) -> list[dict[str, Any]]:
    pool = ThreadPoolExecutor(jobs)
    try:
        found = list(pool.map(lambda each: _finding(*each), work))
    except BaseException:
        # Nobody waits for images of many GiB after Ctrl-C.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return found


def _finding(name: str, check: Callable[[], object]) -> dict[str, Any]:
    try:
        check()
    except RehydratorError as error:
        return _found(name, error)
    return _found(name, None)


def _found(name: str, error: RehydratorError | None) -> dict[str, Any]:
    if error is None:
        return {"file": name, "ok": True, "exit_code": 0}
    return {"file": name, "ok": False, "error": str(error), "exit_code": error.exit_code}


def _tell(report: dict[str, Any], every: bool) -> None:
    bad = [finding for finding in report["checked"] if not finding["ok"]]
    for finding in bad:
        click.echo(f"rehydrator: {printable(finding['error'])}", err=True)
    scope = "every file and every image, in every form" if every else "every file"
    if not bad:
        click.echo(f"{scope}: digests verified ({len(report['checked'])} checks)")
    verified = report["signature"] == "verified"
    click.echo("signature: verified" if verified else "signature: not checked; give --key PUB to check it")
