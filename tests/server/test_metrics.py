"""Metrics as Prometheus reads them: over HTTP, parsed by prometheus-client's own parser."""

import contextlib
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pysocksify.address import Address
from pysocksify.codes import Command
from pysocksify.errors import ConfigError
from pysocksify.server.counting import Counts
from pysocksify.server.metrics import Metrics
from tests.lab.wrapped import missing
from tests.server.running import need_ipv6

LIMIT = 20
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def client_library(request: pytest.FixtureRequest) -> None:
    if find_spec("prometheus_client") is None and request.function is not test_without_the_package:
        missing("prometheus-client isn't installed")


@contextlib.contextmanager
def serving(counts: Counts, host: str = "127.0.0.1") -> Iterator[str]:
    """The URL of the counts' metrics."""
    metrics = Metrics(Address.of(host, 0), counts)
    metrics.start()
    try:
        yield f"http://{metrics.address}/metrics"
    finally:
        metrics.close()


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text: str = answer.read().decode()
    return text


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_numbers(host: str) -> None:
    need_ipv6(host)
    counts = Counts.shared(2, 1024)
    first, second = counts.worker(0), counts.worker(1)
    first.limit(total=1)
    first.enter("192.0.2.1")
    first.enter("192.0.2.2")
    second.enter("192.0.2.3")
    second.ended(Command.CONNECT, "ok", 100, 1 << 40)
    first.ended(Command.UDP_ASSOCIATE, "timed_out", 1, 2)
    first.handshake_failed("login")
    with serving(counts, host) as url:
        found = samples(fetch(url))
        second.leave("192.0.2.3", None)
        later = samples(fetch(url))
    assert found["pysocksify_connections_active", ()] == 2
    assert found["pysocksify_clients_accepted_total", ()] == 3
    assert found["pysocksify_connections_total", ("connect", "ok")] == 1
    assert found["pysocksify_connections_total", ("udp_associate", "timed_out")] == 1
    assert found["pysocksify_handshake_failures_total", ("login",)] == 1
    assert found["pysocksify_handshake_failures_total", ("timeout",)] == 0
    assert found["pysocksify_limit_refusals_total", ("total",)] == 1
    assert found["pysocksify_bytes_total", ("up",)] == 101
    assert found["pysocksify_bytes_total", ("down",)] == (1 << 40) + 2
    assert found["pysocksify_workers_died_total", ()] == 0
    assert later["pysocksify_connections_active", ()] == 1


def test_promtool_would_be_content() -> None:
    """Names: a unit or _total at the end, help for each, counters never named like gauges."""
    with serving(Counts.single()) as url:
        lines = fetch(url).splitlines()
    kinds = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    helped = {line.split()[2] for line in lines if line.startswith("# HELP")}
    assert kinds.keys() == helped
    assert all(name.startswith("pysocksify_") for name in kinds)
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in kinds.items())


def test_a_slow_client_keeps_nobody_waiting() -> None:
    with serving(Counts.single()) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)):
            assert "pysocksify_build_info" in fetch(url)


def test_only_reading() -> None:
    with serving(Counts.single()) as url, pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(url, data=b"x", timeout=LIMIT)


def test_threads_of_one_process() -> None:
    """The thread reads while the reactor's thread counts."""
    counts = Counts.single()
    counter = counts.worker(0)
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            counter.enter("192.0.2.1")
            counter.leave("192.0.2.1", None)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        with serving(counts) as url:
            values = [samples(fetch(url))["pysocksify_clients_accepted_total", ()] for _ in range(10)]
    finally:
        done.set()
        thread.join(LIMIT)
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"^--metrics: .*in use"):
        Metrics(Address("127.0.0.1", taken.getsockname()[1]), Counts.single())


def test_closed_before_it_served() -> None:
    metrics = Metrics(Address("127.0.0.1", 0), Counts.single())
    metrics.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((metrics.address.host, metrics.address.port))


def test_without_the_package() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from pysocksify.address import Address\n"
        "from pysocksify.server.counting import Counts\n"
        "from pysocksify.server.metrics import Metrics\n"
        "Metrics(Address('127.0.0.1', 0), Counts.single())"
    )
    result = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, timeout=LIMIT, check=False, cwd=ROOT
    )
    assert result.stderr.splitlines()[-1].endswith(
        "--metrics: needs the package prometheus-client: pip install 'pysocksify[server]'"
    )
