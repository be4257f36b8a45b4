"""`stream validate`: is this a stream document, and one that installers can use?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import json_option
from rehydrator.cli.stream import Source, source_options
from rehydrator.core.errors import HostileInput, ToolMissing

if TYPE_CHECKING:
    from rehydrator.metadata.models import Finding


@click.command("validate", short_help="Say what is wrong with a stream document.")
@click.argument("source", metavar="[SRC]", required=False)
@source_options
@click.option("--strict", is_flag=True, help="What installers need and the document lacks is wrong, too.")
@json_option
def command(strict: bool, as_json: bool, **where: Any) -> int:
    """Check the stream document SRC: one line for each problem, with its place. Exit 0 when
    there is none, 8 when there are some.

    What installers need (signatures, digests of 64 hexadecimal digits, https locations) is a
    notice on stderr where it is missing; with --strict, a problem.
    """
    source = Source(**where)
    problems, notices = findings(source.read(), source.name)
    if strict:
        problems, notices = problems + notices, []
    if as_json:
        report = {
            "valid": not problems,
            "problems": [asdict(each) for each in problems],
            "notices": [asdict(each) for each in notices],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        for each in notices:
            click.echo(printable(f"notice: {_line(each)}"), err=True)
        for each in problems:
            click.echo(printable(_line(each)))
    return HostileInput.exit_code if problems else 0


def findings(data: bytes, what: str) -> tuple[list[Finding], list[Finding]]:
    """What is wrong with the document in `data`, and what installers will miss.

    Raises:
        ToolMissing: without pydantic there is no validation.
    """
    try:
        from rehydrator.metadata import models
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"validating needs the Python package {error.name}, which is not here: bundles' containers "
            "only read; validate with a full installation (`make install`)"
        ) from None
    from rehydrator.metadata import json_text
    from rehydrator.metadata.document import Document

    try:
        top = json_text.scan(data, what)[1]
        problems = models.problems(top.plain)
        return (problems, []) if problems else ([], models.notices(Document.parse(data, what)))
    except HostileInput as error:
        return [models.Finding(what, str(error).removeprefix(f"{what}: "))], []


def _line(each: Finding) -> str:
    return f"{each.place}: {each.message}"
