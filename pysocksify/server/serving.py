"""From what the command line and the file say to a server that runs: its files, listeners, counts and processes."""

import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from pysocksify.address import Address
from pysocksify.config.urls import parse_proxy
from pysocksify.errors import ConfigError
from pysocksify.reactor import Reactor
from pysocksify.report import VERBOSE, Report
from pysocksify.server import files, listening, ports, systemd, tls
from pysocksify.server.core import Server
from pysocksify.server.counting import Counter, Counts
from pysocksify.server.handshake import prepare
from pysocksify.server.journal import Journal
from pysocksify.server.listening import Listeners
from pysocksify.server.metrics import Metrics
from pysocksify.server.process import Alone, Job
from pysocksify.server.settings import ServerSettings
from pysocksify.server.users import LOGIN_LIMIT
from pysocksify.server.workers import Master

DEFAULT_LISTEN = "127.0.0.1:1080"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line. `given` has what stands in place of the file's keys, as `files.load` takes it; `passwords` are
    not shown."""

    name: str
    config: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    passwords: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)
    certificate: str = ""
    key: str = ""
    unix_mode: int = listening.UNIX_MODE


def run(options: Options, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `say` is called with where it listens, once for each listener.

    Raises ConfigError for what can't be used, PysocksifyError when a library is missing or workers die at their start.
    """
    notifier = systemd.Notifier(os.environ)
    inherited = systemd.inherited(os.environ)
    file = _read(options)
    raise_descriptor_limit()
    log = Log(file.log_file)
    journal = Journal(log.write, file.log_format)
    report = Report(journal.message, file.verbosity, options.name)
    listeners = Listeners(file.workers, tls.context)
    try:
        for given in inherited:
            listeners.take(given, options.certificate, options.key)
        for place in file.listen or (() if inherited else (files.Listen.parse(DEFAULT_LISTEN),)):
            listeners.open(place, options.unix_mode)
        listeners.check(file.settings)
        counts = Counts.single() if file.workers == 1 else Counts.shared(file.workers)
        metrics = None if file.metrics is None else Metrics(file.metrics, counts)
    except BaseException:
        listeners.close()
        raise
    for warning in file.warnings:
        report.problem(warning, warning)

    def load() -> ServerSettings:
        settings = _read(options).settings
        listeners.check(settings)
        log.reopen()
        listeners.reload()
        return settings

    def server(reactor: Reactor, settings: ServerSettings, counter: Counter) -> Server:
        prepare(reactor)
        entries = journal if file.verbosity >= VERBOSE else None
        return Server(reactor, settings, report, counter=counter, journal=entries)

    job = Job(
        settings=file.settings,
        server=server,
        load=load,
        listeners=listeners,
        counts=counts,
        report=report,
        notifier=notifier,
        metrics=metrics,
        drain=file.drain,
    )
    names = listeners.names

    def up() -> None:
        for name in names:
            say(name)
        if metrics is not None:
            report.connection(f"metrics on http://{metrics.address}/metrics")

    if file.workers == 1:
        Alone(job).run(up)
    else:
        Master(job, file.workers).run(up)


def _read(options: Options) -> files.ServerFile:
    return files.load(options.config, options.given, options.passwords)


class Log:
    """The log file, or standard error. A line that can't be written is lost."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else os.path.abspath(path)
        self._out: TextIO = sys.stderr if path is None else _opened(path)

    def write(self, line: str) -> None:
        """Write a line, at once and in one write(2), so that workers' lines aren't mixed."""
        try:
            self._out.write(f"{line}\n")
            self._out.flush()
        except (OSError, AttributeError):  # standard error is closed: then it is None
            return

    def reopen(self) -> None:
        """Go on in the file of that name, as logrotate(8) needs it once it has renamed the old one. Raises
        ConfigError, and goes on in the old one."""
        if self._path is not None:
            out = _opened(self._path)
            self._out.close()
            self._out = out


def _opened(path: str) -> TextIO:
    try:
        return open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError as error:
        raise ConfigError("--log-file", path, error.strerror or str(error)) from None


def raise_descriptor_limit() -> None:
    """A relay takes two descriptors, up to six while something is in it; 1024 is soon too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# what options mean


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The command line's values under the names of the file's keys, as `files.load` takes them; without those that
    weren't given (None, False, nothing in it; 0 is given). Raises ConfigError."""
    certificate, key = values["certificate"] or "", values["key"] or ""
    limits = {"total": "total", "per_user": "per_user", "per_source": "per_source", "idle": "idle", "timeout": "dial"}
    known = {
        "hops": tuple(parse_proxy(url, "-p") for url in values["proxies"]),
        "listen": tuple(listening.parse(text, certificate, key) for text in values["listen"]),
        "users": values["users_file"],
        "hosts": dict(parse_resolve(text) for text in values["resolve"]),
        "open": values["is_open"],
        "identd": values["identd"],
        "limits": {limit: values[name] for name, limit in limits.items() if values[name] is not None},
        "workers": values["workers"],
        "drain": values["drain"],
        "metrics": parse_metrics(values["metrics"]),
        "log_format": values["log_format"],
        "log_file": values["log_file"],
        "verbosity": -1 if values["quiet"] else min(values["verbose"], 2) or None,
    }
    return {name: value for name, value in known.items() if value not in (None, (), {}) and value is not False}


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
        return files.host(name, hosts.split(","))
    except ValueError as error:
        raise ConfigError("--resolve", text, str(error)) from None


def parse_metrics(text: str | None) -> Address | None:
    """Where metrics are served. Raises ConfigError."""
    if text is None:
        return None
    try:
        return ports.private(text)
    except ValueError as error:
        raise ConfigError("--metrics", "", str(error)) from None


def parse_mode(text: str | None) -> int:
    """The permissions of a Unix socket's file, in octal digits. Raises ConfigError."""
    if text is None:
        return listening.UNIX_MODE
    if len(text) > 4 or not text or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise ConfigError("--unix-mode", "", f"{text!a} is no mode such as 600 or 0660")
    return int(text, 8)
