"""The two commands from their first line on; `python -m pysocksify` is `pysocksify`. All else is in their `cli`.

Ctrl-C just ends them until they ask for it themselves: modules take tens of milliseconds, and in them Python would show
a traceback.
"""

import _signal  # type: ignore[import-not-found]  # `signal` takes 4 of those milliseconds
import sys


def main() -> int:
    """`pysocksify` with the process's arguments; its exit status."""
    _end_at_ctrl_c()
    from pysocksify import cli

    return cli.main()


def server() -> None:
    """`pysocksify-server` with the process's arguments."""
    _end_at_ctrl_c()
    from pysocksify.server import cli

    cli.main()


def _end_at_ctrl_c() -> None:
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
