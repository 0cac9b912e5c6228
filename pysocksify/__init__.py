"""Run any program with its connections going through SOCKS and HTTP proxies.

The package in the order to read it; each part imports only from those before it:

1. `codes`, `record`, `linux`, `address`: numbers of the specifications, plain records, system calls; what a connection
   goes to.
2. `errors`: every exception, and the one table from causes to errno, SOCKS and HTTP codes.
3. `protocol`: SOCKS4, SOCKS4a, SOCKS5 and HTTP CONNECT for client and server, without any I/O.
4. `route`: chains of proxies, rules that choose one, fake addresses that stand for names.
5. `config`, `options`: files, proxy URLs, environment and command line become one frozen Config.
6. `reactor`, `threads`, `report`, `dial`, `flow`, `relay`: the event loop, the one loop over hops, the pump between two
   sockets.
7. `server`: the reference server.
8. `supervisor`: the target's requests and what is answered to them.
9. `engines`: how the target's calls reach the supervisor.
10. `program`, `front`, `cli`: the program that is run, the process that stands for it, the commands.
11. `library`: the same for a Python program that asks for it itself:

    with pysocksify.socksify("socks5://127.0.0.1:1080", "http://b:3128"):
        urllib.request.urlopen("https://example.com/")  # whatever goes through the `socket` module
    sock = pysocksify.create_connection(("example.com", 443), chain=["socks5://127.0.0.1:1080"])
    reader, writer = await pysocksify.open_connection("example.com", 443, chain=["socks5://127.0.0.1:1080"])
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pysocksify.config import Config
    from pysocksify.config.arguments import configuration
    from pysocksify.dial.failures import ProxyError
    from pysocksify.engines.python.block import socksify
    from pysocksify.errors import ConfigError, PysocksifyError
    from pysocksify.library import create_connection, open_connection

__all__ = [
    "Config",
    "ConfigError",
    "ProxyError",
    "PysocksifyError",
    "configuration",
    "create_connection",
    "open_connection",
    "socksify",
]

_HOME = {
    "Config": "pysocksify.config",
    "ConfigError": "pysocksify.errors",
    "ProxyError": "pysocksify.dial.failures",
    "PysocksifyError": "pysocksify.errors",
    "configuration": "pysocksify.config.arguments",
    "create_connection": "pysocksify.library",
    "open_connection": "pysocksify.library",
    "socksify": "pysocksify.engines.python.block",
}


def __getattr__(name: str) -> object:
    """The public names, loaded when they are first used: the command has no time for them."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
