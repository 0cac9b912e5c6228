"""The server's counts for Prometheus: its text format over HTTP, on a port of its own that only this machine reaches.

The numbers are in shared memory (counting.py), so any thread or process can serve them. In a server of one process a
thread does; a master forks, which threads don't survive well, so with workers it's one child more (workers.py).
"""

import os
import socket
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from pysocksify import __version__
from pysocksify.address import Address
from pysocksify.errors import ConfigError
from pysocksify.server.counting import Counts

if TYPE_CHECKING:
    from prometheus_client import Metric

OPTION = "--metrics"
MISSING = "needs the package prometheus-client: pip install 'pysocksify[server]'"
REQUEST_LIMIT = 10.0  # s, for whoever connects and asks nothing; Prometheus' own scrape_timeout is 10


class Metrics:
    """Listens on `address` (port 0: any), which only this machine should reach, from its construction on. start() has
    it answer.

    Raises ConfigError: the address can't be had, or prometheus-client isn't installed.
    """

    def __init__(self, address: Address, counts: Counts) -> None:
        try:
            from prometheus_client import CollectorRegistry, make_wsgi_app
        except ImportError:
            raise ConfigError(OPTION, "", MISSING) from None

        registry = CollectorRegistry()
        registry.register(Collector(counts))
        try:
            self._server = _Server((address.host, address.port), _Handler)
        except OSError as error:
            raise ConfigError(OPTION, str(address), os.strerror(error.errno or 0)) from None
        self._server.set_app(make_wsgi_app(registry))
        self._started = False
        self.address = Address.of(address.host, self._server.server_port)

    def start(self) -> None:
        """Answer in a thread, which doesn't keep the process from ending."""
        Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        self._started = True

    def close(self) -> None:
        """Close the port, or this process's share of one that another process serves."""
        if self._started:  # shutdown() waits for the thread's end, also where there's none
            self._server.shutdown()
        self._server.server_close()


class Collector:
    """The metrics of some counts, read when they're asked for. Names are by Prometheus' conventions."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> "Iterator[Metric]":
        """All metrics now (what prometheus-client calls)."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        sums = self._counts.sums()
        yield GaugeMetricFamily("pysocksify_connections_active", "Clients that are connected now.", sums.active)
        yield CounterMetricFamily("pysocksify_clients_accepted", "Clients that came.", sums.accepted)
        connections = CounterMetricFamily(
            "pysocksify_connections", "Requests that came to their end.", labels=("command", "outcome")
        )
        for (command, outcome), count in sums.ended.items():
            if count or (command, outcome) == ("connect", "ok"):  # a series for each pair that never was is a burden
                connections.add_metric((command, outcome), count)
        yield connections
        failures = CounterMetricFamily(
            "pysocksify_handshake_failures", "Clients that came to no request.", labels=("reason",)
        )
        for reason, count in sums.failed.items():
            failures.add_metric((reason,), count)
        yield failures
        refused = CounterMetricFamily(
            "pysocksify_limit_refusals", "Clients that were refused because a limit was reached.", labels=("limit",)
        )
        for limit, count in sums.refused.items():
            refused.add_metric((limit,), count)
        yield refused
        relayed = CounterMetricFamily(
            "pysocksify_bytes",
            "Bytes relayed to destinations (up) and to clients (down), of connections that have ended.",
            labels=("direction",),
        )
        relayed.add_metric(("up",), sums.bytes_up)
        relayed.add_metric(("down",), sums.bytes_down)
        yield relayed
        yield CounterMetricFamily("pysocksify_workers_died", "Workers that ended unexpectedly.", sums.died)
        build = GaugeMetricFamily("pysocksify_build_info", "1, for the version that runs.", labels=("version",))
        build.add_metric((__version__,), 1)
        yield build


class _Server(ThreadingMixIn, WSGIServer):
    """One thread for each scrape."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind, without HTTPServer's look for the host's name, which may ask a resolver."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no event."""


class _Handler(WSGIRequestHandler):
    """Says nothing of requests, and doesn't wait for ever."""

    timeout = REQUEST_LIMIT

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: these aren't the server's connections."""

    def address_string(self) -> str:
        """The client's address, never its name."""
        return str(self.client_address[0])
