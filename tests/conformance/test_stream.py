"""What goes through a connection once it stands: whole, in order, with its ends, its resets and its urgent bytes."""

import hashlib

import pytest

from tests.lab import targets
from tests.lab.done import Done
from tests.lab.scripted import Script
from tests.lab.targets import Event, Target
from tests.lab.ways import adopts, even_auto
from tests.lab.wrapped import Run, Scripted, Servers

GIGABYTE = 1 << 30
QUARTER = GIGABYTE // 4  # for the other engines, whose streams go the same ways
MODES = ("blocking", "held")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """A blocking connect (the program talks to the proxy itself) and a non-blocking one (through the relay)."""
    return str(request.param)


@pytest.fixture
def talk(mode: str, run: Run, target: Target, servers: Servers) -> "Talk":
    """Runs one conversation of talk.py with a service of the target, through the bundled server."""
    return Talk(mode, run, target, servers("bundled").url("socks5"))


class Talk:
    """`talk("early", "early")`: what to say, to which service."""

    def __init__(self, mode: str, run: Run, target: Target, via: str) -> None:
        self.mode, self.run, self.target, self.via = mode, run, target, via
        self.mark = target.log.mark()

    def __call__(self, what: str, service: str, *extra: str, via: str | None = None, port: int = 0) -> Done:
        number = port or self.target.ports[service]
        done = self.run.python("talk.py", what, "target.test", number, self.mode, *extra, via=via or self.via)
        assert done.status == 0, done
        return done

    def saw(self, what: str) -> Event:
        """Waits until a service has noted this."""
        return self.target.log.wait(self.mark, lambda event: event.what == what)


# A blocking program is the proxy's client itself: nothing of ours is between them, nor different elsewhere, except
# where the program's socket is the supervisor's too.
blocking = pytest.mark.parametrize("mode", ["blocking"], indirect=True)
held = pytest.mark.parametrize("mode", ["held"], indirect=True)


@held
@pytest.mark.everywhere(only=even_auto)
def test_the_server_speaks_first(talk: Talk) -> None:
    assert talk("banner", "banner").out.strip() == targets.BANNER.decode().strip()


@blocking
@pytest.mark.everywhere(only=adopts)
def test_the_server_speaks_first_to_a_blocking_program(talk: Talk) -> None:
    assert talk("banner", "banner").out.strip() == targets.BANNER.decode().strip()


def test_the_banner_comes_in_the_replys_segment(talk: Talk, scripted_proxy: Scripted) -> None:
    proxy = scripted_proxy(Script(banner=b"220 in one segment\r\n"))
    assert talk("banner", "", via=proxy.url(), port=25).out.strip() == "220 in one segment"


def test_half_close_by_the_target_host(talk: Talk) -> None:
    assert talk("early", "early").out.strip() == targets.FAREWELL.decode().strip()
    assert talk.saw("end of file").data == b"after your end"


@held
@pytest.mark.everywhere
def test_half_close_by_the_program(talk: Talk) -> None:
    _half_close(talk)


@blocking
@pytest.mark.everywhere(only=adopts)
def test_half_close_by_a_blocking_program(talk: Talk) -> None:
    _half_close(talk)


def _half_close(talk: Talk) -> None:
    digest = hashlib.sha256(b"x" * 100_000).hexdigest()
    assert talk("half-close", "sink").out.strip() == f"100000 {digest}"


def test_reset_by_the_target_host(talk: Talk) -> None:
    assert talk("reset-in", "reset").out.strip() == "ECONNRESET"


def test_reset_by_the_program(talk: Talk) -> None:
    talk("reset-out", "echo", "wait")
    talk.saw("reset")


def test_urgent_bytes_do_not_disturb(talk: Talk) -> None:
    """SOCKS has no urgent data; a proxy passes the byte on somehow or drops it, and the others must arrive."""
    talk("urgent-out", "watch")
    assert talk.saw("end of file").data in (b"efgh", b"ef?gh")


def test_five_hundred_connections(talk: Talk) -> None:
    assert talk("many", "echo").out.strip() == "500"


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("direction", ["get", "put"])
def test_a_gigabyte(direction: str, mode: str, run: Run, target: Target, servers: Servers) -> None:
    service = {"get": "source", "put": "sink"}[direction]
    size = GIGABYTE if run.way.engine == "seccomp" else QUARTER
    words = [direction, "target.test", target.ports[service], size, *(["held"] if mode == "held" else [])]
    done = run.python("stream.py", *words, via=servers("bundled").url("socks5"), timeout=100.0)
    assert done.status == 0, done
    lines = done.out.strip().splitlines()
    if direction == "get":
        assert lines == [f"{size} {targets.source_digest(size)}"]
    else:
        assert lines[0] == lines[1], done
