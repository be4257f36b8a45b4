"""`keygen`: a key pair for signing bundles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from rehydrator.cli.common import json_option
from rehydrator.core.errors import UsageError


def password_from(file: Path | None) -> bytes | None:
    """The password from a file or REHYDRATOR_PASSWORD; None where it must be asked for."""
    if file:
        return file.read_bytes().rstrip(b"\r\n")
    value = os.environ.get("REHYDRATOR_PASSWORD")
    return os.fsencode(value) if value is not None else None


def ask_password(*, confirm: bool) -> bytes:
    """The password that the user types.

    Raises:
        UsageError: there is nobody to ask.
    """
    try:
        typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True)
    except click.Abort as error:
        # Click tells an end of input and Ctrl-C apart by nothing but the context.
        if not isinstance(error.__context__, EOFError):
            raise
        raise UsageError(
            "no terminal to ask for the password; give --password-file or REHYDRATOR_PASSWORD"
            + (", or say --no-password" if confirm else "")
        ) from None
    return os.fsencode(typed)


@click.command("keygen", short_help="Make a key pair for signing.")
@click.argument("prefix", type=click.Path(path_type=Path))
@click.option("--no-password", is_flag=True, help="Leave the private key unencrypted.")
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The password is its content.",
)
@json_option
def command(prefix: Path, no_password: bool, password_file: Path | None, as_json: bool) -> None:
    """Write PREFIX.key and PREFIX.pub: a P-256 key pair in PEM.

    The private key is encrypted with a password: from --password-file, from the environment
    (REHYDRATOR_PASSWORD), or asked for on the terminal.
    """
    from rehydrator.oci.signature import keygen

    if no_password and password_file:
        raise UsageError("--no-password and --password-file contradict each other")
    password = None if no_password else password_from(password_file)
    if password is None and not no_password:
        password = ask_password(confirm=True)
    if password == b"":
        raise UsageError("an empty password protects nothing; say --no-password if that is meant")
    key_id = keygen(str(prefix), password)
    if as_json:
        click.echo(json.dumps({"key": f"{prefix}.key", "public": f"{prefix}.pub", "key_id": key_id}))
    else:
        click.echo(f"{prefix}.key, {prefix}.pub: key {key_id}", err=True)
