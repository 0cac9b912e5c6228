"""Places to listen: what is opened, for how many workers, who may connect, and what is left behind."""

import contextlib
import os
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysocksify.address import Address
from pysocksify.errors import ConfigError
from pysocksify.server.files import Listen
from pysocksify.server.listening import Listeners, parse
from pysocksify.server.ports import is_public
from pysocksify.server.settings import ServerSettings
from pysocksify.server.systemd import Inherited
from pysocksify.server.users import Users
from tests.lab.wrapped import need
from tests.server.running import need_ipv6


def context(certificate: str, key: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        made.load_cert_chain(certificate, key)
    except OSError as error:
        raise ConfigError(certificate, "", str(error)) from None
    return made


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate's file and its key's."""
    return signed(tmp_path, "first")


def signed(folder: Path, name: str) -> tuple[str, str]:
    need("openssl")
    files = str(folder / "cert.pem"), str(folder / "key.pem")
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    subprocess.run(
        (*new, "-subj", f"/CN={name}", "-out", files[0], "-keyout", files[1]), check=True, capture_output=True
    )
    return files


@pytest.fixture
def listeners(request: pytest.FixtureRequest) -> Iterator[Listeners]:
    made = Listeners(getattr(request, "param", 1), context)
    yield made
    made.close()


class TestOption:
    @pytest.mark.parametrize(
        ("text", "listen"),
        [
            ("127.0.0.1:1080", Listen(address=Address("127.0.0.1", 1080))),
            ("tls:[::1]:1080", Listen(address=Address("::1", 1080), certificate="cert", key="key")),
            ("tls:unix:/run/a", Listen(path="/run/a", certificate="cert", key="key")),
            ("unix:/run/a:b", Listen(path="/run/a:b")),
        ],
    )
    def test_good(self, text: str, listen: Listen) -> None:
        assert parse(text, "cert", "key") == listen

    @pytest.mark.parametrize("text", ["", "1080", "unix:", "tls:", "tls:tls:127.0.0.1:1"])
    def test_bad(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"^--listen: "):
            parse(text, "cert", "key")

    def test_no_certificate(self) -> None:
        with pytest.raises(ConfigError, match=r"^--listen: tls:127.0.0.1:1: needs --tls-cert and --tls-key"):
            parse("tls:127.0.0.1:1", "", "")


class TestInternet:
    @pytest.mark.parametrize("listeners", [3], indirect=True)
    def test_workers_share_a_port(self, listeners: Listeners) -> None:
        listeners.open(Listen(address=Address("127.0.0.1", 0)))
        socks = [listeners.of(worker)[0][0] for worker in range(3)]
        (name,) = {sock.getsockname() for sock in socks}
        assert len({sock.fileno() for sock in socks}) == 3
        assert listeners.names == [f"127.0.0.1:{name[1]}"]
        found = set()
        for _ in range(64):  # one in 3 ** 62 that a socket is left out
            with socket.create_connection(name):
                for sock in socks:
                    try:
                        sock.accept()[0].close()
                        found.add(sock.fileno())
                    except BlockingIOError:
                        continue
        assert len(found) == 3

    def test_ipv6_is_ipv6_only(self, listeners: Listeners) -> None:
        need_ipv6()
        listeners.open(Listen(address=Address("::", 0)))
        ((sock, tls),) = listeners.of(0)
        assert tls is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", sock.getsockname()[1]))

    def test_taken(self, listeners: Listeners) -> None:
        listeners.open(Listen(address=Address("127.0.0.1", 0)))
        address = Address.parse(listeners.names[0])
        with pytest.raises(ConfigError, match=f"^--listen: {address}: Address already in use"):
            listeners.open(Listen(address=address))

    def test_closed(self, listeners: Listeners) -> None:
        listeners.open(Listen(address=Address("127.0.0.1", 0)))
        name = listeners.of(0)[0][0].getsockname()
        listeners.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(name)


class TestPublic:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
    def test_public(self, host: str) -> None:
        assert is_public(Address(host, 1))

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
    def test_not(self, host: str) -> None:
        assert not is_public(Address(host, 1))

    def test_only_for_users_or_when_meant(self, listeners: Listeners, tmp_path: Path) -> None:
        listeners.open(Listen(address=Address("127.0.0.1", 0)))
        listeners.open(Listen(path=str(tmp_path / "s")))
        listeners.check(ServerSettings())
        listeners.open(Listen(address=Address("0.0.0.0", 0)))
        with pytest.raises(ConfigError, match="--open"):
            listeners.check(ServerSettings())
        listeners.check(ServerSettings(open=True))
        listeners.check(ServerSettings(users=Users.plain({b"a": b"b"})))


class TestUnix:
    @pytest.mark.parametrize("mode", [0o600, 0o666])
    def test_mode(self, listeners: Listeners, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "s"
        listeners.open(Listen(path=str(path)), mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert os.listdir(tmp_path) == ["s"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        listeners.close()
        assert not path.exists()

    def test_replaces_a_dead_ones(self, listeners: Listeners, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        listeners.open(Listen(path=str(path)))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))

    def test_leaves_a_living_ones(self, listeners: Listeners, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as living:
            living.bind(str(path))
            living.listen()
            with pytest.raises(ConfigError, match=f"^--listen: unix:{path}: somebody listens there already"):
                listeners.open(Listen(path=str(path)))
        assert path.exists()

    def test_leaves_other_files(self, listeners: Listeners, tmp_path: Path) -> None:
        path = tmp_path / "s"
        path.write_text("precious")
        with pytest.raises(ConfigError, match="is no socket"):
            listeners.open(Listen(path=str(path)))
        assert path.read_text() == "precious"
        with pytest.raises(ConfigError, match="No such file"):
            listeners.open(Listen(path=str(tmp_path / "none" / "s")))
        with pytest.raises(ConfigError, match="too long"):
            listeners.open(Listen(path=str(tmp_path / ("s" * 120))))
        assert os.listdir(tmp_path) == ["s"]

    def test_leaves_its_successors(self, listeners: Listeners, tmp_path: Path) -> None:
        path = tmp_path / "s"
        listeners.open(Listen(path=str(path)))
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            listeners.close()
            assert path.exists()


def shown_with(tls: ssl.SSLContext | None) -> bytes:
    """The certificate that a client is shown with this context."""
    assert tls is not None
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    server, client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = tls.wrap_bio(client, server, server_side=True)
    theirs = trusting.wrap_bio(server, client)
    for end in (theirs, ours) * 4:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return theirs.getpeercert(True) or b""


class TestTls:
    def test_a_renewed_certificate(self, listeners: Listeners, tmp_path: Path, certificate: tuple[str, str]) -> None:
        """A reload takes it, and leaves all as it was when it can't be used."""
        listeners.open(Listen(address=Address("127.0.0.1", 0), certificate=certificate[0], key=certificate[1]))
        listeners.open(Listen(path=str(tmp_path / "s"), certificate=certificate[0], key=certificate[1]))
        (internet, unix) = listeners.of(0)
        assert internet[1] is unix[1]
        assert [name.partition(":")[0] for name in listeners.names] == ["tls", "tls"]
        first = shown_with(internet[1])
        signed(tmp_path, "second")
        assert shown_with(internet[1]) == first
        listeners.reload()
        second = shown_with(internet[1])
        assert second != first
        Path(certificate[1]).write_text("broken")
        with pytest.raises(ConfigError):
            listeners.reload()
        assert shown_with(internet[1]) == second


@pytest.mark.parametrize("listeners", [2], indirect=True)
def test_inherited(listeners: Listeners, tmp_path: Path, certificate: tuple[str, str]) -> None:
    one, two = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    two.bind(str(tmp_path / "s"))
    two.listen()
    with pytest.raises(ConfigError, match=r"^LISTEN_FDNAMES: tls-clients: needs --tls-cert"):
        listeners.take(Inherited(sock=one, name="tls-clients"), "", "")
    listeners.take(Inherited(sock=one, name="tls-clients"), *certificate)
    listeners.take(Inherited(sock=two, name="x"), *certificate)
    assert listeners.names == [f"tls:127.0.0.1:{one.getsockname()[1]}", f"unix:{tmp_path / 's'}"]
    assert listeners.of(0) == listeners.of(1)
    assert [sock for sock, _ in listeners.of(0)] == [one, two]
    assert [tls is not None for _, tls in listeners.of(0)] == [True, False]
    listeners.close()
    assert (tmp_path / "s").exists()
