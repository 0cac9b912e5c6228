"""A connection that fails: the errno says why, by connect() and by SO_ERROR, and one line tells the person."""

import pytest

from tests.lab import town
from tests.lab.scripted import Script
from tests.lab.targets import Target
from tests.lab.ways import about_sockets
from tests.lab.wrapped import Run, Scripted, Servers

REFUSED = {"ECONNREFUSED"}
UNREACHABLE = {"EHOSTUNREACH", "ENETUNREACH"}
REPLIES = {1: "ECONNREFUSED", 2: "EACCES", 3: "ENETUNREACH", 4: "EHOSTUNREACH", 5: "ECONNREFUSED", 6: "ETIMEDOUT"}
BROKEN = {
    "cut after the failure code": (Script(cut=2, answers={town.TARGET: 5}), "ECONNREFUSED"),
    "cut after the version": (Script(cut=1), "ECONNRESET"),
    "reset": (Script(reset=True), "ECONNRESET"),
    "nonsense": (Script(garbage=b"SSH-2.0-OpenSSH\r\n"), "ECONNABORTED"),
    "silence": (Script(silent=True), "ETIMEDOUT"),
}


@pytest.mark.promise("held")
@pytest.mark.parametrize("server", ["danted", "microsocks", "bundled"])
def test_of_real_servers(server: str, run: Run, target: Target, servers: Servers) -> None:
    via = servers(server).url("socks5")
    wanted = [(town.TARGET, target.refused, REFUSED), (town.UNREACHABLE, 80, UNREACHABLE)]
    if server == "danted":
        wanted.append((town.DENIED, 80, {"EACCES"}))
    done = run.python("errors.py", *(word for host, port, _ in wanted for word in (host, port)), via=via)
    for (host, _, names), name in zip(wanted, done.out.split(), strict=True):
        assert name in names, f"{host} by connect()"
    seen = run.connects(*(f"{host}:{port}" for host, port, _ in wanted), via=via)
    for (host, _, names), (_, name) in zip(wanted, seen["up"], strict=True):
        assert name in names, f"{host} by SO_ERROR"


HOSTS = [f"198.51.100.{100 + rep}" for rep in REPLIES]


@pytest.fixture
def refusing(scripted_proxy: Scripted) -> str:
    """The URL of a proxy that answers with another reply for each of HOSTS."""
    return str(scripted_proxy(Script(answers=dict(zip(HOSTS, REPLIES, strict=True)))).url())


@pytest.mark.everywhere(only=about_sockets)
def test_of_every_reply(run: Run, refusing: str) -> None:
    done = run.python("errors.py", *(word for host in HOSTS for word in (host, 80)), via=refusing)
    assert done.out.split() == list(REPLIES.values()), done


@pytest.mark.everywhere(only=about_sockets)
@pytest.mark.promise("held")
def test_of_every_reply_by_so_error(run: Run, refusing: str) -> None:
    seen = run.connects(*(f"{host}:80" for host in HOSTS), via=refusing)
    assert [name for _, name in seen["up"]] == list(REPLIES.values())


@pytest.mark.promise("held")
@pytest.mark.parametrize("case", BROKEN)
def test_of_a_broken_proxy(case: str, run: Run, scripted_proxy: Scripted) -> None:
    script, wanted = BROKEN[case]
    proxy = scripted_proxy(script)
    done = run.python("errors.py", town.TARGET, 80, via=proxy.url(), options=["--timeout", "1"])
    assert done.out.strip() == wanted, done
    assert len(done.err.strip().splitlines()) == 1, done
    assert str(proxy.port) in done.err, "the line names the hop"
    seen = run.connects(f"{town.TARGET}:80", via=proxy.url(), options=["--timeout", "1"])
    assert seen["up"][0][1] == wanted
