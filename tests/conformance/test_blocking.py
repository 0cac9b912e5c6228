"""Blocking connects: signals, time limits, fast open, sockets used again, children and what a program does wrong."""

import errno

import pytest

from tests.lab import town
from tests.lab.done import Done
from tests.lab.scripted import Script
from tests.lab.targets import Target
from tests.lab.wrapped import Behaviour, Run, Scripted, Servers

DELAY = 0.75  # seconds for each of the scripted proxy's two replies; behaviour.c's alarm comes after 0.2
ONE = 2 * DELAY
BEFORE = 0.9 * ONE  # the chain doesn't stand yet


@pytest.mark.parametrize("how", ["sendto", "sendmsg", "sendmmsg", "connect"])
def test_fast_open(how: str, behaviour: Behaviour, servers: Servers) -> None:
    done = behaviour(f"fastopen-{how}", via=servers("bundled").url("socks5"))
    assert done.status == 0, done
    assert town.EXIT in done.out, done


def test_a_time_limit_by_so_sndtimeo(behaviour: Behaviour, scripted_proxy: Scripted) -> None:
    proxy = scripted_proxy(Script(delay=DELAY))
    done = behaviour("sndtimeo", "300", via=proxy.url())
    assert int(done.values["connect"]) == errno.EINPROGRESS, done
    assert 0.29 < float(done.values["took"]) < BEFORE, done
    assert town.EXIT in done.out, done
    enough = behaviour("sndtimeo", "5000", via=proxy.url())
    assert enough.values["connect"] == "0", enough
    assert town.EXIT in enough.out, enough


@pytest.mark.promise("held")
@pytest.mark.everywhere
def test_a_signal(behaviour: Behaviour, scripted_proxy: Scripted) -> None:
    _check_alarm(behaviour("alarm", via=scripted_proxy(Script(delay=DELAY)).url()))


@pytest.mark.promise("held")
def test_a_signal_while_the_supervisor_starts(behaviour: Behaviour, scripted_proxy: Scripted) -> None:
    _check_alarm(behaviour("alarm", "8", via=scripted_proxy(Script(delay=DELAY)).url()))


def _check_alarm(done: Done) -> None:
    assert int(done.values["connect"]) == errno.EINTR, done
    assert float(done.values["took"]) < BEFORE, done
    assert done.values["alarms"] == "1", done
    assert done.values["so_error"] == "0", done
    assert float(done.values["up"]) >= BEFORE, done
    assert town.EXIT in done.out, done


def test_a_signal_whose_handler_restarts(behaviour: Behaviour, scripted_proxy: Scripted) -> None:
    done = behaviour("alarm-restart", via=scripted_proxy(Script(delay=DELAY)).url())
    assert done.values["connect"] == "0", done
    assert done.values["alarms"] == "1", done
    assert town.EXIT in done.out, done


def test_a_signal_that_ends_the_program(behaviour: Behaviour, scripted_proxy: Scripted) -> None:
    done = behaviour("alarm-kills", via=scripted_proxy(Script(silent=True)).url())
    assert done.status == -14, done


@pytest.mark.foreign
def test_wget_gives_up_in_time(run: Run, scripted_proxy: Scripted) -> None:
    proxy = scripted_proxy(Script(silent=True))
    words = ["wget", "-q", "-T1", "-t1", "-O-", f"http://{town.TARGET}/"]
    done = run(words, via=proxy.url(), timeout=12.0)  # our own limit is 15
    assert done.status == 4, done


@pytest.mark.everywhere
@pytest.mark.parametrize("what", ["plain", "vfork", "spawn"])
def test_children(what: str, behaviour: Behaviour, servers: Servers) -> None:
    done = behaviour(what, via=servers("bundled").url("socks5"))
    assert done.status == 0, done
    assert town.EXIT in done.out, done


def test_a_socket_can_be_used_again(behaviour: Behaviour, target: Target, servers: Servers) -> None:
    done = behaviour("again", str(target.refused), via=servers("bundled").url("socks5"))
    assert int(done.values["refused"]) == errno.ECONNREFUSED, done
    assert done.values["connect"] == "0", done
    assert town.EXIT in done.out, done


def test_memory_that_cant_be_written(behaviour: Behaviour, servers: Servers) -> None:
    """The program's mistake is its own: EFAULT, and the supervisor goes on."""
    done = behaviour("unwritable", via=servers("bundled").url("socks5"))
    assert done.values == {"send": str(errno.EFAULT), "connect": "0"}, done


def test_a_stop_while_another_thread_connects(behaviour: Behaviour, scripted_proxy: Scripted) -> None:
    """Ctrl-Z gives the prompt back at once, not when the chain stands; and the connection goes on after `fg`."""
    done = behaviour("stopped", via=scripted_proxy(Script(delay=1.0)).url())
    assert done.values["stopped"] == "1"
    assert float(done.values["after"]) < 1.6
    assert done.values["connect"] == "0", done


def test_a_socket_bound_to_loopback_stays_here(run: Run, servers: Servers) -> None:
    done = run.python("ownaddress.py", town.CLOSED, via=servers("bundled").url("socks5"))
    assert done.out.split() == ["itself", "itself"], done
