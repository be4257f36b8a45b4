"""`list`: what a bundle holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import (
    bundle_option,
    human,
    json_option,
    key_option,
    opened,
    reference_argument,
    table,
    tmpdir_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.bundle.manifest import Artifact


@click.command("list")
@reference_argument
@bundle_option
@key_option
@tmpdir_option
@json_option
def command(
    reference: str | None, bundle_reference: str | None, key: Path | None, tmpdir: Path | None, as_json: bool
) -> None:
    """List the files that a bundle gives back."""
    with opened(bundle_reference, reference, key, tmpdir) as bundle:
        artifacts = bundle.manifest.artifacts()
    if as_json:
        click.echo(json.dumps([listed(artifact) for artifact in artifacts], indent=2))
        return
    rows = [["FILE", "PLATFORM", "ARCH", "FORMAT", "ROLE", "SIZE"]]
    rows += [
        [each.image.name, each.platform, each.arch, each.format, each.role, human(each.image.size)]
        for each in artifacts
    ]
    click.echo(printable(table(rows, {5})))


def listed(artifact: Artifact) -> dict[str, Any]:
    """An artifact in JSON."""
    return {
        "file": artifact.image.name,
        "platform": artifact.platform,
        "arch": artifact.arch,
        "format": artifact.format,
        "role": artifact.role,
        "size": artifact.image.size,
        "sha256": artifact.image.sha256,
        "virtual_size": artifact.virtual_size,
        "canonical": artifact.canonical,
        "published": artifact.published
        and {
            "file": artifact.published.name,
            "size": artifact.published.size,
            "sha256": artifact.published.sha256,
        },
    }
