"""`info`: how each artifact is stored, and what it costs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import (
    all_cores,
    bundle_option,
    host_arch,
    human,
    json_option,
    key_option,
    opened,
    reference_argument,
    selection_options,
    table,
    tmpdir_option,
)
from rehydrator.cli.listing import listed

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.bundle.estimate import Estimator
    from rehydrator.bundle.manifest import Artifact
    from rehydrator.bundle.reader import Bundle

SHORTEST = 0.1


@click.command("info", short_help="Show how files are stored and what they cost.")
@reference_argument
@bundle_option
@key_option
@tmpdir_option
@selection_options
@json_option
def command(
    reference: str | None,
    bundle_reference: str | None,
    key: Path | None,
    tmpdir: Path | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Show how files are stored: the rung that each took and why, its bytes by origin, its cost.

    Without --disk, --file, --iso or --pxe, every file and the bundle as a whole.
    """
    from rehydrator.bundle.estimate import Estimator
    from rehydrator.bundle.selection import select

    with opened(bundle_reference, reference, key, tmpdir) as bundle:
        asked = any(wanted[name] for name in ("disks", "names", "iso", "pxe"))
        known = bundle.manifest.artifacts()
        outputs = select(known, **{**wanted, "every": not asked}, host_arch=host_arch)
        artifacts = list({id(each.artifact): each.artifact for each in outputs}.values())
        whole = summary(bundle)
        costs = Estimator(bundle, all_cores())
        forms = {id(each): forms_of(bundle, each, costs) for each in artifacts} if asked or as_json else {}
    if as_json:
        shown = [{**listed(each), "forms": forms[id(each)], "how": each.how} for each in artifacts]
        click.echo(json.dumps({"bundle": whole, "artifacts": shown}, indent=2))
        return
    if asked:
        click.echo("\n\n".join(described(each, forms[id(each)]) for each in artifacts))
        return
    for key_, value in whole.items():
        click.echo(printable(f"{key_}: {value}"))
    rows = [["FILE", "SIZE", "ADDS", "RUNG", "CANONICAL", "AS PUBLISHED"]]
    rows += [
        [
            each.image.name,
            human(each.image.size),
            human(each.how.get("cost") or 0),
            rung(each),
            "*" if each.canonical else "",
            published_by(each),
        ]
        for each in artifacts
    ]
    click.echo(printable(table(rows, {1, 2})))


def summary(bundle: Bundle) -> dict[str, Any]:
    """The bundle as a whole."""
    manifest = bundle.manifest
    stored = sum(file.size for file in manifest.stored_files()) + len(bundle.signed_bytes)
    added = sum(artifact.how.get("cost") or 0 for artifact in manifest.artifacts())
    return {
        "releases": ", ".join(f"{r.name} {r.release} ({r.stream})" for r in manifest.releases),
        "files": len(manifest.artifacts()),
        "bytes of files": sum(artifact.image.size for artifact in manifest.artifacts()),
        "bytes stored": stored,
        "of these shared": stored - added,
        "signed by": ", ".join(bundle.signatures()) or "nobody",
    }


def rung(artifact: Artifact) -> str:
    """The rung in a word or two."""
    how = artifact.how
    return f"{how.get('rung')} ({how['format']})" if how.get("format") else str(how.get("rung"))


def published_by(artifact: Artifact) -> str:
    """What gives the compressed file around an image: its encoders, or its own bytes."""
    if artifact.published is None:
        return ""
    if artifact.published.space is None:
        return "digest only"
    encoders = (artifact.how.get("published") or {}).get("encoders") or {}
    return ", ".join(encoders) or "kept"


def forms_of(bundle: Bundle, artifact: Artifact, costs: Estimator) -> dict[str, dict[str, Any]]:
    """Every form of an artifact, and what it takes to make it."""
    from rehydrator.bundle.estimate import encoders
    from rehydrator.bundle.manifest import Output

    kinds = {"image": artifact.image, "published": artifact.published, "signature": artifact.signature}
    found = {}
    for kind, form in kinds.items():
        if form is not None:
            needed = costs.estimate(Output(artifact, form))
            found[kind] = {
                "name": form.name,
                "size": form.size,
                "sha256": form.sha256,
                "available": form.space is not None,
                "encoders": encoders(bundle, form),
                "memory": needed.memory,
                "seconds": needed.seconds,
            }
    return found


def described(artifact: Artifact, forms: dict[str, dict[str, Any]]) -> str:
    """One artifact for people."""
    how = artifact.how
    lines = [
        artifact.image.name,
        f"  platform       {artifact.platform} {artifact.arch}, format {artifact.format}"
        + (f", a disk of {artifact.virtual_size} bytes" if artifact.virtual_size else ""),
        f"  stored as      {rung(artifact)}" + (", its disk is canonical" if artifact.canonical else ""),
        f"  adds           {how.get('cost') or 0} bytes to the bundle",
    ]
    lines += [f"  {origin:14} {count} bytes" for origin, count in sorted((how.get("bytes") or {}).items())]
    lines += [f"  encoder        {version}" for version in (how.get("encoders") or {}).values()]
    lines += [f"  {name:14} {value}" for name, value in (how.get("facts") or {}).items()]
    lines += [f"  not {each['rung']:10} {each['why']}" for each in how.get("tried") or ()]
    for kind, form in forms.items():
        lines += _form_lines(kind, form)
    return printable("\n".join(lines))


def _form_lines(kind: str, form: dict[str, Any]) -> list[str]:
    lines = [f"  {kind:14} {form['name']}, {form['size']} bytes", f"    sha256       {form['sha256']}"]
    if not form["available"]:
        return [*lines, "    not given back: no encoder gives its bytes; its digest is known"]
    for each in form["encoders"]:
        here = each["here"] or "not installed"
        beside = "" if each["here"] == each["made_by"] else f"; here: {here}"
        lines.append(f"    encoded by   {each['encoder']} ({each['made_by']}{beside})")
    if form["encoders"]:
        memory = human(form["memory"])
        lines.append(f"    takes        {about_seconds(form['seconds'])} and {memory} of memory")
    return lines


def about_seconds(seconds: float) -> str:
    """An estimate in words; shorter ones are not told apart."""
    return f"about {seconds:.1f} s" if seconds >= SHORTEST else f"less than {SHORTEST} s"
