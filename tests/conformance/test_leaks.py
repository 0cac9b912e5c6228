"""Nothing goes out beside the proxy: where there is no other way out, and where every way is open.

The fixture `wrap` looks after each test whether a packet was dropped by the closed client's firewall, or has come to
the target host from the open client's own address.
"""

import pytest

from tests.lab import town
from tests.lab.clients import BY_NAME
from tests.lab.targets import Target
from tests.lab.ways import NESTED, Way, about_sockets
from tests.lab.wrapped import Run, Servers, need

# In a container another filter has answered EPERM already.
REFUSED_WITH = {
    "raw icmp": {"EPERM"},
    "raw icmp6": {"EPERM"},
    "packet": {"EPERM"},
    "io_uring": {"ENOSYS", "EPERM"},
    "sctp": {"EPROTONOSUPPORT"},
    "mptcp": {"EPROTONOSUPPORT"},
}

# leak.py sets io_uring up through ctypes, past the python engine: who is around it answers, or the kernel does it
IO_URING_PAST_PYTHON = {"docker": "EPERM", NESTED: "ENOSYS"}


@pytest.mark.everywhere(only=about_sockets)
@pytest.mark.parametrize("world", ["closed", "open"])
def test_other_ways_out(world: str, way: Way, run: Run, lab_town: town.Town, target: Target, servers: Servers) -> None:
    port = servers("bundled").port
    via = f"socks5://{town.PROXY if world == 'closed' else town.PROXY_FROM_OPEN}:{port}"
    mark = target.log.mark()
    words = [town.TARGET, town.TARGET6, target.ports["http"]]
    done = run.python("leak.py", *words, via=via, namespace=getattr(lab_town, world))
    assert done.status == 0, done
    answers = dict(line.split(": ", 1) for line in done.out.splitlines())
    past = {"io_uring": {IO_URING_PAST_PYTHON.get(way.around, "sent")}} if way.engine == "python" else {}
    for name, wanted in {**REFUSED_WITH, **past}.items():
        assert answers[name] in wanted, name
    assert {event.peer for event in target.log.since(mark)} <= {town.EXIT, town.EXIT6}


FOREIGN = ["curl", "go-http", "node-fetch", "java-socket", "static-musl", "c-threads", "raw-calls"]


@pytest.mark.foreign
@pytest.mark.parametrize("name", FOREIGN)
def test_where_everything_is_open(name: str, run: Run, lab_town: town.Town, target: Target, servers: Servers) -> None:
    """The target's log shows only the proxy's address, for its name and for its address."""
    everything_open(name, run, lab_town, target, servers)


def test_python_where_everything_is_open(run: Run, lab_town: town.Town, target: Target, servers: Servers) -> None:
    everything_open("python-asyncio", run, lab_town, target, servers)


def everything_open(name: str, run: Run, lab_town: town.Town, target: Target, servers: Servers) -> None:
    """A client goes to the target by its name and by its address."""
    client = BY_NAME[name]
    need(client.tool)
    mark = target.log.mark()
    via = servers("bundled").url("socks5", town.PROXY_FROM_OPEN)
    for host in ["target.test", town.TARGET] if client.takes_names else [town.TARGET]:
        done = run(client.command(run.at(host)), via=via, namespace=lab_town.open, stdin=client.stdin)
        if run.way.refuses(client.kind):
            assert done.refused, done
        else:
            assert done.status == 0, done
    peers = {event.peer for event in target.log.since(mark)}
    assert peers == (set() if run.way.refuses(client.kind) else {town.EXIT})


@pytest.mark.everywhere(only=about_sockets)
@pytest.mark.foreign
@pytest.mark.parametrize("tool", ["dig", "getent"])
def test_questions_for_names_stay_here(tool: str, run: Run, servers: Servers) -> None:
    need(tool)
    ask = {
        "dig": ["dig", "+short", "+tries=1", "+time=3", "target.test"],
        "getent": ["getent", "ahosts", "target.test"],
    }
    done = run(ask[tool], via=servers("bundled").url("socks5"))
    assert done.status == 0, done
    assert done.out.startswith(("198.18.", "198.19.")), done


@pytest.mark.everywhere(only=about_sockets)
def test_a_proxy_that_is_gone(run: Run, lab_town: town.Town, target: Target) -> None:
    """Where the target could be reached directly, it isn't."""
    gone = town.free_port(lab_town.proxy, town.PROXY_FROM_OPEN)
    mark = target.log.mark()
    via = f"socks5://{town.PROXY_FROM_OPEN}:{gone}"
    done = run.python("errors.py", town.TARGET, target.ports["http"], via=via, namespace=lab_town.open)
    assert done.out.strip() == "ECONNREFUSED", done
    assert str(gone) in done.err, "the line for the person names the hop"
    assert not target.log.since(mark)
