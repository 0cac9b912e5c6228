"""The server in the lab's town, used by programs and libraries that know nothing of it.

The closed client reaches nothing but the server, and only the server's host knows the names: whoever gets an answer got
it through the server.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import certificates, proxies, town
from tests.lab.accounts import Account
from tests.lab.children import PATIENCE, Child, within
from tests.lab.done import Done
from tests.lab.proxies import Server
from tests.lab.targets import Target
from tests.lab.wrapped import Servers, finish, need

Runs = Callable[..., Done]
Certificate = tuple[Path, Path]

CONTENT = "what was asked for"
ANSWER = "203.0.113.77"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this is in the town."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces"))


@pytest.fixture(scope="session")
def server(servers: Servers) -> Server:
    """The server, open to everybody."""
    return servers("bundled")


@pytest.fixture(scope="session")
def login_server(servers: Servers) -> Server:
    """The server with one user."""
    return servers("bundled-login")


@pytest.fixture(scope="session")
def certificate(folder: Path) -> Certificate:
    """A certificate for target.test and for the proxy host, and its key."""
    return certificates.certificate(folder, "DNS:target.test", f"IP:{town.PROXY}")


@pytest.fixture(scope="session")
def tls_server(lab_town: town.Town, user_account: Account, certificate: Certificate) -> Iterator[Server]:
    """The server with TLS on its port."""
    port = town.free_port(lab_town.proxy, town.PROXY)
    files = ("--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]))
    command = user_account.command(*user_account.server, "--listen", f"tls:0.0.0.0:{port}", *files, "--open")
    child = Child(*command, namespace=lab_town.proxy, env=user_account.environment)
    made = proxies.ready(lab_town, child, name="tls", port=port, schemes=("http",), login=False)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def https(lab_town: town.Town, certificate: Certificate) -> Iterator[int]:
    """The port of OpenSSL's test server on the target: it answers with a page about the connection."""
    port = town.free_port(lab_town.target, town.TARGET)
    files = ("-cert", certificate[0], "-key", certificate[1])
    child = Child(
        *("openssl", "s_server", "-accept", f"{town.TARGET}:{port}", *files, "-www", "-quiet"),
        namespace=lab_town.target,
    )
    child.wait_listening(port)
    yield port
    child.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ftp:
    """An FTP server on the target, and its port. It connects only to who talks to it."""

    child: Child
    port: int


@pytest.fixture
def ftp(lab_town: town.Town, folder: Path) -> Iterator[Ftp]:
    """pyftpdlib's server, with one file."""
    files = folder / "ftp"
    files.mkdir(exist_ok=True)
    (files / "file").write_text(CONTENT, encoding="ascii")
    port = town.free_port(lab_town.target, town.TARGET)
    words = ("-m", "pyftpdlib", "-i", town.TARGET, "-p", str(port), "-d", files, "-D")
    child = Child(sys.executable, "-W", "ignore", *words, namespace=lab_town.target)
    child.wait_listening(port)
    yield Ftp(child=child, port=port)
    child.stop()


@pytest.fixture(scope="session")
def dns(lab_town: town.Town) -> Iterator[int]:
    """The port of dnslib's name server on the target, that has one answer to everything."""
    port = town.free_port(lab_town.target, town.TARGET)
    words = ("-m", "dnslib.fixedresolver", "-a", town.TARGET, "-p", str(port), "--tcp", "-r", f". 60 IN A {ANSWER}")
    child = Child(sys.executable, *words, namespace=lab_town.target)
    child.wait_listening(port)
    yield port
    child.stop()


@pytest.fixture(scope="session")
def echo(lab_town: town.Town) -> Iterator[int]:
    """The port on the target that sends datagrams back to where they came from."""
    with town.inside(lab_town.target):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((town.TARGET, 0))

    def serve() -> None:
        while True:
            data, sender = sock.recvfrom(65535)
            if not data:
                return
            sock.sendto(data, sender)

    thread = threading.Thread(target=serve)
    thread.start()
    yield sock.getsockname()[1]
    with sock, town.inside(lab_town.target), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(b"", sock.getsockname())
        thread.join(PATIENCE)


@pytest.fixture
def runs(lab_town: town.Town, user_account: Account) -> Iterator[Runs]:
    """Runs a client to its end as an ordinary user in the closed client, or where else it is told (`datagrams`).

    Afterwards no packet may have left past the server.
    """
    before = lab_town.leaks(), lab_town.direct()

    def run(*argv: object, stdin: str = "", datagrams: bool = False, **environment: str) -> Done:
        words = [str(word) for word in argv]
        need(words[0])
        line = within(lab_town.open if datagrams else lab_town.closed, user_account.command(*words))
        return finish(line, environment={**user_account.environment, **environment}, stdin=stdin, timeout=30.0)

    yield run
    left = lab_town.settle(lab_town.closed) + lab_town.settle(lab_town.open)
    assert not left, f"left running: {left}"
    assert (lab_town.leaks(), lab_town.direct()) == before, "packets left past the server"


@pytest.fixture
def page(target: Target) -> Callable[[str], str]:
    """The URL of a page on a host of the target's; it tells the address that it was asked from, the server's."""
    return lambda host: f"http://{host}:{target.ports['http']}/peer"


def got(done: Done, exit_address: str = town.EXIT) -> bool:
    """Whether the client has shown the page, as asked for by the server."""
    return f'"peer": "{exit_address}"' in done.out
