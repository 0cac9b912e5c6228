"""Event-driven programs: connect() answers at once, the socket becomes writable when the chain stands, not before."""

import errno
import json
import os
import select
from typing import Any

import pytest

from tests.lab import town
from tests.lab.accounts import Account
from tests.lab.scripted import Script
from tests.lab.targets import Target
from tests.lab.wrapped import Done, PlaceOf, Scripted, Servers, Wrap

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces"),
]

DELAY = 0.5  # seconds for each of the scripted proxy's two replies
ONE = 2 * DELAY  # so a connection takes that long
REFUSED = {"ECONNREFUSED"}
UNREACHABLE = {"EHOSTUNREACH", "ENETUNREACH"}


def connects(wrap: Wrap, place: PlaceOf, account: Account, destinations: list[str], **how: Any) -> dict[str, Any]:
    """Runs connects.py and returns what it saw."""
    done = wrap(account, place(account, town.TARGET).python("connects.py", *destinations), **how)
    assert done.status == 0, done
    result: dict[str, Any] = json.loads(done.out)
    return result


def behaviour(wrap: Wrap, place: PlaceOf, account: Account, what: str, *extra: str, **how: Any) -> Done:
    """Runs one of the ways of connecting of behaviour.c."""
    at = place(account, town.TARGET)
    return wrap(account, [f"{at.built}/behaviour", what, town.TARGET, at.port, *extra], **how)


def test_two_hundred_at_once(
    account: Account, wrap: Wrap, place: PlaceOf, target: Target, scripted_proxy: Scripted
) -> None:
    proxy = scripted_proxy(Script(delay=DELAY))
    destination = f"{town.TARGET}:{target.ports['echo']}"
    seen = connects(wrap, place, account, [destination] * 200, via=proxy.url())
    assert {name for _, name in seen["started"]} == {"EINPROGRESS"}
    took = sorted(seconds for seconds, _ in seen["started"])
    # scripts/bench measures how long it takes; here it must not wait for the proxy
    assert took[len(took) // 2] < DELAY / 10
    assert {name for _, name in seen["up"]} == {"0"}
    assert max(seconds for seconds, _ in seen["up"]) < 1.5 * ONE
    assert min(seen["writable_at"]) >= min(one.answered for one in proxy.asked if one.answered)
    assert len(proxy.asked) == 200
    assert all(peer == [town.TARGET, target.ports["echo"]] for peer in seen["peers"])


def test_the_program_keeps_its_socket_as_it_was(
    account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    destination = f"{town.TARGET}:{target.ports['echo']}"
    via = servers("bundled").url("socks5")
    seen = connects(wrap, place, account, [destination], via=via, env={"BIND": town.CLOSED})
    assert seen["up"][0][1] == "0"
    assert seen["before"] == seen["after"]
    assert seen["after"]["cloexec"] is True
    assert seen["after"]["nonblock"] is True
    assert seen["after"]["bound"][0] == town.CLOSED


@pytest.mark.parametrize("how", ["lt,before", "lt,after", "et,before", "et,after"])
def test_epoll(
    how: str, account: Account, wrap: Wrap, place: PlaceOf, target: Target, scripted_proxy: Scripted
) -> None:
    proxy = scripted_proxy(Script(delay=DELAY))
    done = behaviour(wrap, place, account, "epoll", how, via=proxy.url())
    assert done.status == 0, done
    values = done.values
    assert int(values["connect"]) == errno.EINPROGRESS, done
    assert float(values["took"]) < DELAY / 10, done
    assert values["early"] == "0", done
    assert int(values["events"]) == select.EPOLLOUT, done
    assert values["same"] == "1", done
    assert values["so_error"] == "0", done
    assert float(values["waited"]) < 1.5 * ONE, done
    answered = proxy.asked[0].answered
    assert answered is not None
    assert float(values["at"]) >= answered - 0.0001, done
    assert town.EXIT in done.out


def test_connect_again_and_again(
    user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, scripted_proxy: Scripted
) -> None:
    proxy = scripted_proxy(Script(delay=0.1))
    done = behaviour(wrap, place, user_account, "twice", via=proxy.url())
    assert done.status == 0, done
    numbers = [word for word in done.out.split("\n")[0].split() if not word.startswith("events")]
    assert numbers == [
        f"first={errno.EINPROGRESS}",
        f"second={errno.EALREADY}",
        "third=0",
        f"fourth={errno.EISCONN}",
        "so_error=0",
        "so_error=0",
    ]


@pytest.mark.parametrize("server", ["danted", "microsocks", "bundled"])
def test_errors_of_real_servers(
    server: str, account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    via = servers(server).url("socks5")
    at = place(account, town.TARGET)
    wanted = [(town.TARGET, target.refused, REFUSED), (town.UNREACHABLE, 80, UNREACHABLE)]
    if server == "danted":
        wanted.append((town.DENIED, 80, {"EACCES"}))
    seen = connects(wrap, place, account, [f"{host}:{port}" for host, port, _ in wanted], via=via)
    for (host, _, names), (_, name) in zip(wanted, seen["up"], strict=True):
        assert name in names, f"{host} by SO_ERROR"
    words = [word for host, port, _ in wanted for word in (host, str(port))]
    done = wrap(account, at.python("errors.py", *words), via=via)
    for (host, _, names), name in zip(wanted, done.out.split(), strict=True):
        assert name in names, f"{host} by connect()"


REPLIES = {1: "ECONNREFUSED", 2: "EACCES", 3: "ENETUNREACH", 4: "EHOSTUNREACH", 5: "ECONNREFUSED", 6: "ETIMEDOUT"}


def test_errors_of_every_reply(
    user_account: Account, wrap: Wrap, place: PlaceOf, lab_town: town.Town, scripted_proxy: Scripted
) -> None:
    proxy = scripted_proxy(Script(answers={f"198.51.100.{100 + rep}": rep for rep in REPLIES}))
    hosts = [f"198.51.100.{100 + rep}" for rep in REPLIES]
    seen = connects(wrap, place, user_account, [f"{host}:80" for host in hosts], via=proxy.url())
    assert [name for _, name in seen["up"]] == list(REPLIES.values())
    words = [word for host in hosts for word in (host, "80")]
    at = place(user_account, town.TARGET)
    done = wrap(user_account, at.python("errors.py", *words), via=proxy.url())
    assert done.out.split() == list(REPLIES.values()), done


BROKEN = {
    "cut after the failure code": (Script(cut=2, answers={town.TARGET: 5}), "ECONNREFUSED"),
    "cut after the version": (Script(cut=1), "ECONNRESET"),
    "reset": (Script(reset=True), "ECONNRESET"),
    "nonsense": (Script(garbage=b"SSH-2.0-OpenSSH\r\n"), "ECONNABORTED"),
    "silence": (Script(silent=True), "ETIMEDOUT"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_proxy(
    case: str, user_account: Account, wrap: Wrap, place: PlaceOf, lab_town: town.Town, scripted_proxy: Scripted
) -> None:
    script, wanted = BROKEN[case]
    proxy = scripted_proxy(script)
    seen = connects(wrap, place, user_account, [f"{town.TARGET}:80"], via=proxy.url(), options=["--timeout", "1"])
    assert seen["up"][0][1] == wanted
    words = place(user_account, town.TARGET).python("errors.py", town.TARGET, "80")
    done = wrap(user_account, words, via=proxy.url(), options=["--timeout", "1"])
    assert done.out.strip() == wanted, done
    assert len(done.err.strip().splitlines()) == 1, done
    assert str(proxy.port) in done.err, "the line names the hop"


@pytest.mark.parametrize("how", ["sendto", "sendmsg", "sendmmsg", "connect"])
def test_fast_open(
    how: str, user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    what = "fastopen-connect" if how == "connect" else f"fastopen-{how}"
    done = behaviour(wrap, place, user_account, what, via=servers("bundled").url("socks5"))
    assert done.status == 0, done
    assert town.EXIT in done.out, done


def test_a_time_limit_by_so_sndtimeo(
    user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, scripted_proxy: Scripted
) -> None:
    proxy = scripted_proxy(Script(delay=DELAY))
    done = behaviour(wrap, place, user_account, "sndtimeo", "300", via=proxy.url())
    assert int(done.values["connect"]) == errno.EINPROGRESS, done
    assert 0.29 < float(done.values["took"]) < 0.45, done
    assert town.EXIT in done.out, done
    enough = behaviour(wrap, place, user_account, "sndtimeo", "5000", via=proxy.url())
    assert enough.values["connect"] == "0", enough
    assert town.EXIT in enough.out, enough


def test_a_signal_in_a_blocking_connect(
    account: Account, wrap: Wrap, place: PlaceOf, target: Target, scripted_proxy: Scripted
) -> None:
    via = scripted_proxy(Script(delay=DELAY)).url()
    done = behaviour(wrap, place, account, "alarm", via=via)
    assert int(done.values["connect"]) == errno.EINTR, done
    assert float(done.values["took"]) < 0.3, done
    assert done.values["alarms"] == "1", done
    assert done.values["so_error"] == "0", done
    assert float(done.values["up"]) >= 0.9 * ONE, done
    assert town.EXIT in done.out, done
    restarted = behaviour(wrap, place, account, "alarm-restart", via=via)
    assert restarted.values["connect"] == "0", restarted
    assert restarted.values["alarms"] == "1", restarted
    assert town.EXIT in restarted.out, restarted
    killed = behaviour(wrap, place, account, "alarm-kills", via=scripted_proxy(Script(silent=True)).url())
    assert killed.status == -14, killed


def test_wget_gives_up_in_time(
    user_account: Account, wrap: Wrap, place: PlaceOf, lab_town: town.Town, scripted_proxy: Scripted
) -> None:
    proxy = scripted_proxy(Script(silent=True))
    words = ["wget", "-q", "-T1", "-t1", "-O-", f"http://{town.TARGET}/"]
    done = wrap(user_account, words, via=proxy.url(), timeout=4.0)
    assert done.status == 4, done


@pytest.mark.parametrize("what", ["plain", "vfork", "spawn"])
def test_children(what: str, account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers) -> None:
    done = behaviour(wrap, place, account, what, via=servers("bundled").url("socks5"))
    assert done.status == 0, done
    assert town.EXIT in done.out, done


def test_a_socket_can_be_used_again(
    user_account: Account, wrap: Wrap, place: PlaceOf, target: Target, servers: Servers
) -> None:
    done = behaviour(wrap, place, user_account, "again", str(target.refused), via=servers("bundled").url("socks5"))
    assert int(done.values["refused"]) == errno.ECONNREFUSED, done
    assert done.values["connect"] == "0", done
    assert town.EXIT in done.out, done


def test_memory_that_cant_be_written(user_account: Account, wrap: Wrap, place: PlaceOf, servers: Servers) -> None:
    """The program's mistake is its own: EFAULT, and the supervisor goes on."""
    done = behaviour(wrap, place, user_account, "unwritable", via=servers("bundled").url("socks5"))
    assert done.values == {"send": str(errno.EFAULT), "connect": "0"}, done


def test_a_stop_while_another_thread_connects(
    user_account: Account, wrap: Wrap, place: PlaceOf, scripted_proxy: Scripted
) -> None:
    """Ctrl-Z gives the prompt back at once, not when the chain stands; and the connection goes on after `fg`."""
    proxy = scripted_proxy(Script(delay=2.0))
    done = behaviour(wrap, place, user_account, "stopped", via=proxy.url())
    assert done.values["stopped"] == "1"
    assert float(done.values["after"]) < 1.0
    assert done.values["connect"] == "0", done


def test_a_program_that_nobody_may_look_into(
    user_account: Account, wrap: Wrap, place: PlaceOf, servers: Servers
) -> None:
    """PR_SET_DUMPABLE: what only asks is the kernel's to answer, what connects is refused."""
    done = behaviour(wrap, place, user_account, "closed", via=servers("bundled").url("socks5"))
    assert done.values == {"connect": "0", "peer": "0", "error": "0", "again": str(errno.EACCES)}, done
