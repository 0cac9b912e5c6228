"""The command `pysocksify-server`."""

import contextlib
import os
import sys
from typing import Any

import click

from pysocksify import __version__
from pysocksify.errors import ConfigError, PysocksifyError
from pysocksify.server import serving
from pysocksify.server.journal import FORMATS

NAME = "pysocksify-server"
COUNT = click.IntRange(min=1)
WORKERS_LIMIT = 256


class Seconds(click.FloatRange):
    """A time of a day at most. `nan`, which is within any range, is no number here."""

    name = "number of seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or click's own refusal."""
        if str(value).strip().lower().lstrip("+-") == "nan":
            self.fail(f"{value!r} is not a valid {self.name}.", param, ctx)
        return super().convert(value, param, ctx)


SECONDS = Seconds(min=0, min_open=True, max=86400)


def main() -> None:
    """Run the command with the process's arguments, and exit."""
    try:
        if sys.argv[1:2] == ["user"]:
            from pysocksify.server.user_commands import group

            group.main(args=sys.argv[2:], prog_name=f"{NAME} user", standalone_mode=False)
        else:
            command.main(prog_name=NAME, standalone_mode=False)
    except click.ClickException as error:
        fail(error.format_message())
    except click.Abort:
        fail("given up")
    except PysocksifyError as error:
        fail(str(error))
    except OSError as error:  # standard output or error is full, or no descriptor is left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what waits to be written would fail again at exit
        fail(error.strerror or str(error))


def fail(reason: str) -> None:
    """Say in one line why nothing is served, and exit as a command that couldn't start does."""
    line = " ".join(reason.split())
    with contextlib.suppress(OSError):  # standard error may be what fails
        print(f"{NAME}: {line}", file=sys.stderr, flush=True)
    sys.exit(PysocksifyError.exit_status)


# Extra arguments are let through to be refused below: click would print them, and a password with a space is one.
@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "allow_extra_args": True},
    epilog=f"`{NAME} user add NAME` and `user remove`, `user list` change the file of users.",
)
@click.option(
    "--listen",
    "listen",
    metavar="ADDRESS:PORT",
    multiple=True,
    help=f"Where to listen ({serving.DEFAULT_LISTEN}); repeatable. IPv6 stands in brackets: [::1]:1080. Port 0 takes "
    "any free one. tls:ADDRESS:PORT listens in TLS, unix:PATH on a Unix socket.",
)
@click.option(
    "-c",
    "--config",
    "config",
    metavar="FILE",
    help="Read this TOML file: listeners, users, access, limits, chains. What is said beside it comes before it.",
)
@click.option(
    "-p",
    "--proxy",
    "proxies",
    metavar="URL",
    multiple=True,
    help="Reach destinations through this proxy: socks5://, socks4://, socks4a:// or http://[USER:PASSWORD@]HOST"
    "[:PORT]. Repeat it for a chain, in this order.",
)
@click.option(
    "--user",
    "passwords",
    metavar="NAME:PASSWORD",
    multiple=True,
    help="Let in who knows this; repeatable. Without users everybody is let in. SOCKS4 has no password: with users it "
    "is refused.",
)
@click.option("--users", "users_file", metavar="FILE", help="Let in the users of this file (pysocksify-server user).")
@click.option("--identd", is_flag=True, help="Ask a SOCKS4 client's identd whether its user id is right.")
@click.option(
    "--open",
    "is_open",
    is_flag=True,
    help="Listen on an address that others can reach although there are no users.",
)
@click.option("--tls-cert", "certificate", metavar="FILE", help="The certificate (PEM, with its chain) for tls:.")
@click.option("--tls-key", "key", metavar="FILE", help="The certificate's private key (PEM).")
@click.option("--unix-mode", metavar="MODE", help="Permissions of Unix sockets, in octal (600).")
@click.option(
    "--resolve",
    "resolve",
    metavar="NAME=ADDRESS[,ADDRESS...]",
    multiple=True,
    help="Take these addresses for a name instead of asking a resolver; repeatable.",
)
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="How long to try to reach a destination (30).")
@click.option("--idle", type=SECONDS, metavar="SECONDS", help="End connections on which nothing came for so long.")
@click.option("--max-connections", "total", type=COUNT, metavar="N", help="Serve no more clients at once.")
@click.option("--max-per-user", "per_user", type=COUNT, metavar="N", help="Serve no more clients of one user at once.")
@click.option(
    "--max-per-source",
    "per_source",
    type=COUNT,
    metavar="N",
    help="Serve no more clients of one address at once; of IPv6, of one /64.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=WORKERS_LIMIT),
    metavar="N",
    help="Serve by so many processes (1). Limits hold for all of them together.",
)
@click.option(
    "--drain",
    type=Seconds(min=0, max=86400),
    metavar="SECONDS",
    help="After SIGTERM or SIGINT accept nobody, and let connections end for so long (0). A second signal ends them.",
)
@click.option("--metrics", metavar="ADDRESS:PORT", help="Serve counts to Prometheus there, on a loopback address.")
@click.option("-v", "--verbose", count=True, help="One line for each connection; twice: also how it came about.")
@click.option("-q", "--quiet", is_flag=True, help="Say only where it listens and why it can't.")
@click.option("--log-file", metavar="FILE", help="Append messages to FILE instead of writing them to standard error.")
@click.option("--log-format", type=click.Choice(FORMATS), help="Write messages as lines of text (default) or JSON.")
@click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s")
@click.pass_context
def command(context: click.Context, /, config: str | None, passwords: tuple[str, ...], **values: Any) -> None:
    """A proxy server: SOCKS4, SOCKS4a, SOCKS5 and HTTP CONNECT on one port.

    For each listener it writes a line `listening on ADDRESS:PORT` to standard error. SIGTERM and SIGINT end it. SIGHUP
    reads users, access, limits, chains and certificates anew and opens the log file again; connections stay.
    """
    if context.args:
        raise click.UsageError("there are only options, no arguments")
    certificate, key = values["certificate"] or "", values["key"] or ""
    if bool(certificate) != bool(key):
        raise ConfigError("--tls-cert" if certificate else "--tls-key", "", "--tls-cert and --tls-key belong together")
    options = serving.Options(
        name=NAME,
        config=config,
        given=serving.given(values),
        passwords=dict(serving.parse_user(text) for text in passwords),
        certificate=certificate,
        key=key,
        unix_mode=serving.parse_mode(values["unix_mode"]),
    )
    serving.run(options, lambda name: print(f"listening on {name}", file=sys.stderr, flush=True))


if __name__ == "__main__":
    main()
