"""`stream get`: one value of a stream document, for scripts."""

from __future__ import annotations

import json
from typing import Any

import click

from rehydrator.cli.common import host_arch, json_option
from rehydrator.cli.stream import Source, source_options
from rehydrator.core.errors import UsageError

FIELDS = (
    "location",
    "name",
    "sha256",
    "uncompressed-sha256",
    "signature",
    "release",
    "size",
    "uncompressed-size",
)


@click.command("get", short_help="Print one value of a stream document.")
@click.argument("arguments", metavar="[SRC] [FIELD]", nargs=-1)
@source_options
@click.option("--arch", help="Default: the only architecture, else this machine's.")
@click.option("--platform", metavar="P", help="Which platform's file.")
@click.option(
    "--format", "format_key", metavar="F", help="Default: the only one, else the 512-byte raw disk."
)
@click.option("--role", help="disk (the default), kernel, initramfs or rootfs.")
@click.option("--image", metavar="CLOUD", help="A cloud's image instead of a file: aws, gcp, …")
@click.option("--region", help="The image's region. Default: the only one.")
@json_option
def command(
    arguments: tuple[str, ...],
    arch: str | None,
    platform: str | None,
    format_key: str | None,
    role: str | None,
    image: str | None,
    region: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Print one FIELD of a file that the stream document SRC names, and a newline.

    FIELD is location (the default), name, sha256, uncompressed-sha256, signature, release, size,
    uncompressed-size, or any other member. Exit 4 and a list of what there is, where it is
    missing or empty. A SRC that is called as a field is spelt ./sha256.
    """
    source, name = _sorted_out(arguments, where["bundle_reference"])
    if (platform is None) == (image is None):
        raise UsageError("name a file with --platform, or a cloud's image with --image")
    document = Source(source, **where).parse()
    from rehydrator.metadata import query

    if image:
        if format_key or role:
            raise UsageError("--format and --role go with --platform")
        arch, members = query.choose_image(document, arch, image, region, host_arch)
        usual = next((each for each in query.IMAGE_FIELDS if members.get(each)), "image")
        what = f"the {image} image for {arch}"
    else:
        assert platform is not None
        if region:
            raise UsageError("--region goes with --image")
        file = query.choose_file(document, arch, platform, format_key, role, host_arch)
        members = document.members(file.key)
        named = {"name": file.name, "release": file.release, **members}
        members, usual, what = (members if as_json else named), "location", str(file.key)
    if as_json:
        click.echo(json.dumps(members, indent=2))
    else:
        # UTF-8 whatever the locale: it is the document's value.
        click.echo(query.field(members, usual if name is None else name, what).encode())


def _sorted_out(arguments: tuple[str, ...], bundle: str | None) -> tuple[str | None, str | None]:
    """SRC and FIELD. One argument is the field where a bundle is named, or where it is one."""
    if len(arguments) > 2:
        raise UsageError("more than SRC and FIELD")
    if len(arguments) == 2:
        return arguments[0], arguments[1]
    [only] = arguments or [None]
    return (None, only) if bundle or only in FIELDS else (only, None)
