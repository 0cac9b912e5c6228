"""The command `pysocksify`: arguments to Config to run. What it has to say before the program runs is said here.

The plain way loads no click. It is loaded for --help, --version, shell completion and whatever `options.parse` can't
take, and its command is built from the same table.
"""

import os
import sys

from pysocksify import config, kernel
from pysocksify.errors import ConfigError, PysocksifyError
from pysocksify.options import COUNT, FLAG, LIST, NUMBER, OPTIONS, TALLY, Option, Options, options, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    import click
    from click.shell_completion import CompletionItem

PROGRAM_NAME = "pysocksify"
COMPLETE_VARIABLE = "_PYSOCKSIFY_COMPLETE"  # click's
USAGE_STATUS = 125  # as env(1), timeout(1) and nohup(1) have it: none of the program's own

HELP = """Run PROGRAM with its network connections going through a SOCKS or HTTP proxy, or a chain of them.

What comes after PROGRAM is PROGRAM's own. Without -p, -c or --embedded the proxy is looked for in PYSOCKSIFY_PROXY,
PYSOCKSIFY_CONFIG, ~/.config/pysocksify/config.toml, /etc/pysocksify/config.toml and ALL_PROXY. Without any, PROGRAM is
not run.
"""
EPILOG = """\b
Examples:
  pysocksify -p socks5://127.0.0.1:1080 curl https://example.com
  pysocksify -p socks5://alice:p%40ss@a.example -p http://b.example:3128 git fetch
  pysocksify -c work ssh host
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status. `arguments` default to the process's."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        given = None if COMPLETE_VARIABLE in os.environ else parse(words)
        if given is None:
            answer = _ask_click(words)
            if isinstance(answer, int):
                return answer
            given = answer
        if given.engines:
            return _show_engines(given)
        _run(config.load(given, os.environ), list(given.command))
    except PysocksifyError as error:
        _say(str(error))
        return error.exit_status
    except BrokenPipeError:  # whoever reads --help has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return USAGE_STATUS
    except OSError as error:  # standard output is full, or there is no process, descriptor or memory left to be had
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _say(error.strerror or str(error))
        return USAGE_STATUS


def _run(settings: config.Config, command: list[str]) -> "NoReturn":
    """Run the program under the engine, and exit as it did: at once, nothing is left to be cleaned up."""
    from pysocksify import front
    from pysocksify.engines import choice

    fd = _log(settings.log_file)

    def write_line(text: str) -> None:
        os.write(fd, _line(text))

    features = kernel.of(os.environ)
    name, why = choice.decide(settings.engine, features, command)
    if settings.verbosity > 0:
        _say(why, fd, dated=settings.log_file is not None)
    engine = choice.engine(name, settings, features)
    os._exit(front.run(command, engine, write_line=write_line, write_fd=fd, say=_say, unset=settings.unset))


def _log(path: str | None) -> int:
    """The descriptor that lines go to while the program runs."""
    if path is None:
        return 2
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)  # says who talks to whom
    except OSError as error:
        raise ConfigError("the log file", path, error.strerror or str(error)) from None


def _line(text: str) -> bytes:
    """A line of the wrapper's; what a terminal would act on is spelled out."""
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return f"{PROGRAM_NAME}: {text.removeprefix(f'{PROGRAM_NAME}: ')}\n".encode("utf-8", "backslashreplace")


def _say(text: str, fd: int = 2, *, dated: bool = False) -> None:
    """Tell the person why the program isn't run, or not any more, or how it is."""
    if dated:
        import time

        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
    try:
        os.write(fd, _line(text))
    except OSError:  # standard error is closed
        return


def _show_engines(given: Options) -> int:
    """--engines, which runs nothing: so no option beside it would mean anything. ConfigError."""
    if given != Options(command=given.command, engines=True):
        raise ConfigError("--engines", "", "runs nothing; leave the other options out")
    import signal

    from pysocksify.engines.overview import overview

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take away the statuses of children
    print(overview(kernel.of(os.environ), list(given.command)))
    sys.stdout.flush()  # here, not at exit: it may fail
    return 0


def _ask_click(words: list[str]) -> Options | int:
    """The Options as click reads them, or the exit status of help, version, completion or a mistake."""
    import click

    try:
        answer = _command().main(words, PROGRAM_NAME, complete_var=COMPLETE_VARIABLE, standalone_mode=False)
    except click.UsageError as error:
        message = error.format_message().rstrip(".")
        _say(f"{message[:1].lower()}{message[1:]} (pysocksify --help shows the options)")
        return USAGE_STATUS
    if isinstance(answer, Options):
        return answer
    if sys.stdout is not None:
        sys.stdout.flush()  # here, not at exit: it may fail
    return answer if isinstance(answer, int) else 0


def _command() -> "click.Command":
    """The command that the table of options describes; called, it returns Options."""
    import click

    def collect(command: tuple[str, ...], **values: "Any") -> Options:
        if not command and not values["engines"]:
            raise click.MissingParameter(param=program)
        return options({field: value for field, value in values.items() if value is not None}, command)

    program = click.Argument(
        ["command"], nargs=-1, metavar="PROGRAM [ARGS]...", type=click.UNPROCESSED, shell_complete=_complete
    )
    return click.Command(
        PROGRAM_NAME,
        callback=collect,
        params=[
            *(_parameter(option) for option in OPTIONS),
            click.Option(
                ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
                help="Show the version and exit.",
            ),
            program,
        ],
        help=HELP,
        epilog=EPILOG,
        context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
    )  # fmt: skip


def _parameter(option: Option) -> "click.Option":
    """One option of the table, as click has it."""
    import click

    names = [option.field, *option.names]
    kind = option.kind
    if kind == FLAG:
        return click.Option(names, is_flag=True, default=None, help=option.help)
    if kind == TALLY:
        return click.Option(names, count=True, help=option.help)
    types: dict[object, Any] = {COUNT: click.INT, NUMBER: click.FLOAT}
    return click.Option(
        names,
        multiple=kind == LIST,
        metavar=option.metavar or None,
        type=click.Choice(kind) if isinstance(kind, tuple) else types.get(kind, click.STRING),
        help=option.help,
    )


def _show_version(context: "click.Context", _parameter: "click.Parameter", wanted: bool) -> None:
    from pysocksify import __version__

    if wanted and not context.resilient_parsing:
        print(PROGRAM_NAME, __version__)
        context.exit()


def _complete(context: "click.Context", _parameter: "click.Parameter", incomplete: str) -> "list[CompletionItem]":
    """PROGRAM: what is on PATH and begins so. After it: files, which the shell knows best."""
    from click.shell_completion import CompletionItem

    if context.params.get("command") or os.sep in incomplete:
        return [CompletionItem(incomplete, type="file")]
    found = set()
    for directory in os.get_exec_path():
        try:
            entries = os.listdir(directory)
        except OSError:  # PATH names directories that aren't there
            continue
        found |= {name for name in entries if name.startswith(incomplete)}
    return [CompletionItem(name) for name in sorted(found)]
