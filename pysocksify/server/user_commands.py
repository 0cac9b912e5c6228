"""The commands `pysocksify-server user add`, `user remove` and `user list`."""

import os
import sys

import click

from pysocksify.config.files import SYSTEM_DIRECTORY, directories
from pysocksify.errors import ConfigError
from pysocksify.server import users

DEFAULT_FILE = "users"
_HELP = {"help_option_names": ["-h", "--help"]}


def default_file() -> str:
    """Where the users are when no file is named: the machine's for root, else the user's own."""
    directory = SYSTEM_DIRECTORY if os.geteuid() == 0 else directories(os.environ)[0]
    return os.path.join(directory, DEFAULT_FILE)


@click.group("user", context_settings=_HELP)
def group() -> None:
    """Change the file of users whose passwords the server asks for (--users FILE, or users in its file).

    A running server reads the file anew on SIGHUP.
    """


_name = click.argument("name", metavar="NAME")
_file = click.option(
    "--file",
    "path",
    metavar="FILE",
    help=f"The file of users; else {SYSTEM_DIRECTORY}/{DEFAULT_FILE} for root, and "
    f"~/.config/pysocksify/{DEFAULT_FILE} for others.",
)


# Extra arguments are let through to be refused without being shown: one is probably a password.
@group.command("add", context_settings={**_HELP, "allow_extra_args": True})
@_name
@_file
@click.pass_context
def add(context: click.Context, name: str, path: str | None) -> None:
    """Add a user, or give one a new password.

    The password is asked for on the terminal, or is one line of standard input when that is no terminal. Its hash is
    written to the file.
    """
    if context.args:
        raise click.UsageError("a password isn't given on the command line, where everybody sees it; leave it out")
    userid = _userid(name)
    users.need_argon2()
    password = _asked() if sys.stdin.isatty() else _line()
    if path is None:
        path = default_file()
        os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        replaced = users.add(path, userid, password)
    except ValueError as error:
        raise ConfigError(path, users.shown(userid), str(error)) from None
    click.echo(f"{path}: {users.shown(userid)} {'has a new password' if replaced else 'added'}")


@group.command("remove", context_settings=_HELP)
@_name
@_file
def remove(name: str, path: str | None) -> None:
    """Remove a user."""
    path = path or default_file()
    userid = _userid(name)
    if not users.remove(path, userid):
        raise ConfigError(path, users.shown(userid), "there is no such user")
    click.echo(f"{path}: {users.shown(userid)} removed")


@group.command("list", context_settings=_HELP)
@_file
def list_names(path: str | None) -> None:
    """List the users, one a line, as the file writes them."""
    for name in users.names(path or default_file()):
        click.echo(users.shown(name))


def _userid(text: str) -> bytes:
    """The bytes that a client sends for this name. Raises ConfigError."""
    name = os.fsencode(text)
    if not 1 <= len(name) <= users.LOGIN_LIMIT:
        raise ConfigError("NAME", "", f"a name has 1 to {users.LOGIN_LIMIT} bytes, not {len(name)}")
    return name


def _asked() -> bytes:
    password: str = click.prompt("Password", hide_input=True, confirmation_prompt="Once more", err=True)
    return password.encode("utf-8", "surrogateescape")


def _line() -> bytes:
    """The line of standard input, without its end."""
    line = sys.stdin.buffer.readline(users.LOGIN_LIMIT + 3)  # one too long is seen to be
    if not line:
        raise ConfigError("standard input", "", "a line with the password was expected")
    return line.removesuffix(b"\n").removesuffix(b"\r")
