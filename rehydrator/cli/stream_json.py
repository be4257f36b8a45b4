"""`print-stream-json`: the stream metadata, as it was given to the build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rehydrator.cli.common import bundle_option, key_option, opened, reference_argument, tmpdir_option
from rehydrator.core.errors import NotInBundle, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.bundle.reader import Bundle


@click.command("print-stream-json")
@reference_argument
@bundle_option
@key_option
@tmpdir_option
@click.option("--release", help="Which release, where the bundle has several.")
def command(
    reference: str | None,
    bundle_reference: str | None,
    key: Path | None,
    tmpdir: Path | None,
    release: str | None,
) -> None:
    """Print the stream metadata document."""
    with opened(bundle_reference, reference, key, tmpdir) as bundle:
        document = document_of(bundle, release)
    click.echo(document, nl=False)


def document_of(bundle: Bundle, release: str | None) -> bytes:
    """The stream document of a bundle's release, of its only one where none is named.

    Raises:
        NotInBundle: no such release; lists those that there are.
        UsageError: several, and none named.
    """
    releases = bundle.manifest.releases
    found = [each for each in releases if release in {None, each.release}]
    known = ", ".join(each.release for each in releases)
    if not found:
        raise NotInBundle(f"no release {release!r} in this bundle; it has {known}")
    if len(found) > 1:
        raise UsageError(f"name a release with --release: {known}")
    return bundle.document(found[0])
