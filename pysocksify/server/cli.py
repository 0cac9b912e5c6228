"""The command `pysocksify-server`."""

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import TextIO

import click

from pysocksify import __version__
from pysocksify.address import Address
from pysocksify.errors import ConfigError, PysocksifyError
from pysocksify.reactor import READ, Reactor
from pysocksify.report import DEBUG, QUIET, Report
from pysocksify.server.core import Server
from pysocksify.server.journal import Journal
from pysocksify.server.settings import Limits, ServerSettings
from pysocksify.server.users import Users

NAME = "pysocksify-server"
DEFAULT_LISTEN = "127.0.0.1:1080"
LOGIN_LIMIT = 255  # bytes; RFC 1929 section 2 gives each length in one byte


def main() -> None:
    """Run the command with the process's arguments, and exit."""
    try:
        command.main(prog_name=NAME, standalone_mode=False)
    except click.ClickException as error:
        fail(error.format_message())
    except PysocksifyError as error:
        fail(str(error))
    except OSError as error:  # standard output or error is full, or no descriptor is left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what waits to be written would fail again at exit
        fail(error.strerror or str(error))


def fail(reason: str) -> None:
    """Say in one line why nothing is served, and exit as a command that couldn't start does."""
    line = " ".join(reason.split())
    print(f"{NAME}: {line}", file=sys.stderr, flush=True)
    sys.exit(PysocksifyError.exit_status)


# Extra arguments are let through to be refused below: click would print them, and a password with a space is one.
@click.command(context_settings={"help_option_names": ["-h", "--help"], "allow_extra_args": True})
@click.option(
    "--listen",
    "listen",
    metavar="ADDRESS:PORT",
    multiple=True,
    default=(DEFAULT_LISTEN,),
    show_default=True,
    help="Where to listen; repeatable. IPv6 stands in brackets: [::1]:1080. Port 0 takes any free one.",
)
@click.option(
    "--user",
    "users",
    metavar="NAME:PASSWORD",
    multiple=True,
    help="Let in who knows this; repeatable. Without users everybody is let in. SOCKS4 has no password: with users it "
    "is refused.",
)
@click.option(
    "--open",
    "is_open",
    is_flag=True,
    help="Listen on an address that others can reach although there is no --user.",
)
@click.option(
    "--resolve",
    "resolve",
    metavar="NAME=ADDRESS[,ADDRESS...]",
    multiple=True,
    help="Take these addresses for a name instead of asking a resolver; repeatable.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=86400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to try to reach a destination.",
)
@click.option("-v", "--verbose", count=True, help="One line for each connection; twice: also how it ended.")
@click.option("-q", "--quiet", is_flag=True, help="Say only where it listens and why it can't.")
@click.option("--log-file", metavar="FILE", help="Append messages to FILE instead of writing them to standard error.")
@click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s")
@click.pass_context
def command(
    context: click.Context,
    listen: tuple[str, ...],
    users: tuple[str, ...],
    is_open: bool,
    resolve: tuple[str, ...],
    timeout: float,
    verbose: int,
    quiet: bool,
    log_file: str | None,
) -> None:
    """A proxy server: SOCKS4, SOCKS4a, SOCKS5 and HTTP CONNECT on one port.

    For each listener it writes a line `listening on ADDRESS:PORT` to standard error. SIGTERM and SIGINT end it.
    """
    if context.args:
        raise click.UsageError("there are only options, no arguments")
    settings = ServerSettings(
        users=Users.plain(dict(parse_user(text) for text in users)),
        hosts=dict(parse_resolve(text) for text in resolve),
        open=is_open,
        limits=Limits(dial=timeout),
    )
    addresses = [parse_listen(text) for text in listen]
    write = line_writer(log_file)
    report = Report(write, QUIET if quiet else min(verbose, DEBUG), NAME)
    run(addresses, settings, report, Journal(write) if report.verbosity > 0 else None)


def run(addresses: list[Address], settings: ServerSettings, report: Report, journal: Journal | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    raise_descriptor_limit()
    reactor = Reactor()
    server = Server(reactor, settings, report, journal=journal)
    try:
        stop_at_signals(reactor)
        for address in addresses:
            print(f"listening on {server.listen(address)}", file=sys.stderr, flush=True)
        reactor.run()
    finally:
        server.close()
        reactor.close()


def stop_at_signals(reactor: Reactor) -> None:
    """Let SIGTERM and SIGINT stop the reactor. Python restarts epoll_wait after a signal, so it comes as a byte."""
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)

    def stop(events: int) -> None:
        signal.set_wakeup_fd(-1)
        woken.close()
        reactor.unwatch(wake.fileno())
        wake.close()
        reactor.stop()

    reactor.watch(wake.fileno(), READ, stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell does for what it starts in the background
            signal.signal(number, lambda *_: None)


def raise_descriptor_limit() -> None:
    """A relay takes two descriptors, up to six while something is in it; 1024 is soon too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def line_writer(log_file: str | None) -> Callable[[str], None]:
    """What writes a line to the log file, or to standard error. A line that can't be written is lost."""
    out: TextIO = sys.stderr
    if log_file is not None:
        try:
            out = open(log_file, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  open as long as the process is
        except OSError as error:
            raise ConfigError("--log-file", log_file, error.strerror or str(error)) from None

    def write(line: str) -> None:
        try:
            print(line, file=out, flush=True)
        except OSError:
            return

    return write


def parse_listen(text: str) -> Address:
    """An address to listen on. Raises ConfigError."""
    try:
        return Address.parse(text)
    except ValueError as error:
        raise ConfigError("--listen", "", str(error)) from None


def parse_user(text: str) -> tuple[bytes, bytes]:
    """Name and password. Raises ConfigError, which doesn't show what was given."""
    name, colon, password = text.encode("utf-8", "surrogateescape").partition(b":")
    if not colon or not name or not password:
        raise ConfigError("--user", "", "NAME:PASSWORD is needed")
    if max(len(name), len(password)) > LOGIN_LIMIT:
        raise ConfigError("--user", "", f"name and password have {LOGIN_LIMIT} bytes at most")
    return name, password


def parse_resolve(text: str) -> tuple[str, tuple[str, ...]]:
    """A name, as it is looked up, and its addresses. Raises ConfigError."""
    name, equals, hosts = text.partition("=")
    if not equals:
        raise ConfigError("--resolve", text, "NAME=ADDRESS is needed")
    try:
        known = Address.of(name, 0)
        addresses = [Address.of(host, 0) for host in hosts.split(",")]
    except ValueError as error:
        raise ConfigError("--resolve", text, str(error)) from None
    if not known.is_name:
        raise ConfigError("--resolve", text, f"{name} is an address already")
    for address in addresses:
        if address.is_name:
            raise ConfigError("--resolve", text, f"{address.host} is not an address")
    return known.host, tuple(address.host for address in addresses)


if __name__ == "__main__":
    main()
