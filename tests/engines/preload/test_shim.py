"""The shim: every call that it stands before, made by programs of both libcs, through a proxy written by hand."""

import errno
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pysocksify.engines.handover import wire
from pysocksify.engines.preload import fit
from tests.engines.preload.conftest import Calls, Programs
from tests.lab.done import Done
from tests.lab.scripted import Script
from tests.lab.ways import Way
from tests.lab.wrapped import Scripted, Wrap, missing

HOST_NOT_FOUND, NO_DATA = 1, 4  # netdb.h
EAI_NONAME = -2
EXECS = (
    *("execve", "execv", "execvp", "execvpe", "execl", "execlp", "execle", "fexecve", "execveat", "syscall"),
    *("posix_spawn", "posix_spawnp", "system", "popen", "search", "folder"),
)


as_both = pytest.mark.parametrize("account_way", ["user", "root"], indirect=True)


@pytest.mark.root
def test_errno_is_left_alone_by_what_succeeds(calls: Calls) -> None:
    done = calls("errno")
    told = {"connect": "0", "peer": "0", "error": "0", "names": "0", "same": "1"}
    again = {"again": errno.EISCONN, "short": errno.EISCONN, "unknown": errno.EBADF, "fault": errno.EFAULT}
    assert done.values.items() >= (told | {name: str(number) for name, number in again.items()}).items(), done


@pytest.mark.root
def test_syscall(calls: Calls) -> None:
    done = calls("raw")
    told = {"connect": "0", "peer": "0", "same": "1", "error": "0", "other": "1"}
    assert done.values == told | {"packet": str(errno.EPERM), "uring": str(errno.ENOSYS)}, done


@pytest.mark.root
@as_both
@pytest.mark.parametrize("without", ["", "enclosure"])
def test_datagrams(calls: Calls, without: str) -> None:
    done = calls("datagrams", env={"PYSOCKSIFY_WITHOUT": without})
    source = "203.0.113.53:53"
    told = {"sendto": source, "sendmsg": source, "sendmmsg": source, "connect": "0", "write": source}
    elsewhere = str(errno.EPERM) if without else "0"
    assert done.values == told | {"nonblocking": "1", "cloexec": "0", "elsewhere": elsewhere}, done
    assert "203.0.113.53:9 can't be carried" in done.err


@pytest.mark.root
def test_resolver(calls: Calls, libc: str) -> None:
    done = calls("resolver")
    told = dict.fromkeys(("query", "search", "querydomain", "send"), "0/1")
    if libc == fit.GLIBC:
        told |= dict.fromkeys(("nquery", "nsearch", "nquerydomain", "nsend", "older"), "0/1")
    other = {"mx": str(NO_DATA), "literal": str(HOST_NOT_FOUND), "id": "1", "small": "20", "family": "0"}
    assert done.values == told | other | {"huge": str(errno.EMSGSIZE)}, done


@pytest.mark.root
@pytest.mark.parametrize("libc", [fit.GLIBC], indirect=True)  # musl has no such call
def test_getaddrinfo_a(calls: Calls) -> None:
    done = calls("asynchronous")
    told = {"wait": "0", "two": str(EAI_NONAME), "nowait": "0", "signal": "42", "thread": "0", "one": "0"}
    assert done.values == told, done


@pytest.mark.root
@pytest.mark.parametrize(
    ("what", "account_way"),
    [("early", "user"), ("closed", "user"), ("elsewhere", "user"), ("elsewhere", "root")],
    indirect=["account_way"],
)
def test_whatever_the_program_does_before(calls: Calls, account_way: Way, what: str) -> None:
    """Connect before the first constructor, close all descriptors, go into another root directory, be another user."""
    done = calls(what)
    allowed = "0" if account_way.account.uid == 0 else str(errno.EPERM)
    told = {
        "early": {"early": "0"},
        "closed": {"connect": "0"},
        "elsewhere": {
            "chroot": allowed,
            "setuid": "0" if account_way.account.name == "nobody" else allowed,
            "connect": "0",
        },
    }
    assert done.values == told[what], done


@pytest.mark.root
def test_a_module_that_is_bound_deeply(calls: Calls, built_for: Programs) -> None:
    assert calls("deep", str(built_for("module"))).values == {"connect": "0"}


@pytest.mark.root
def test_no_descriptor_is_left(calls: Calls) -> None:
    assert calls("full").values == {"connect": "0", "limit": "64", "more": str(errno.EMFILE)}


@pytest.mark.root
def test_a_cancelled_thread_leaks_no_descriptor(calls: Calls) -> None:
    done = calls("cancelled", script=Script(delay=20.0))
    assert done.values == {"cancelled": "1", "error": "-1", "more": "1"}, done


@pytest.mark.root
@pytest.mark.parametrize("how", EXECS)
def test_programs_are_followed(calls: Calls, how: str) -> None:
    """Each with an environment in which nothing of ours is left."""
    done = calls(f"exec:{how}")
    assert done.values == {"connect": "0"}, done


@pytest.mark.root
def test_a_program_that_is_not_there(calls: Calls) -> None:
    assert calls("exec:nowhere").values == {"errno": str(errno.ENOENT)}


@pytest.mark.root
@pytest.mark.parametrize("how", ["static", "crowded"])
def test_a_static_program_is_refused(calls: Calls, built_for: Programs, how: str) -> None:
    """Also by a program that has all the descriptors it may have."""
    path = built_for("static")
    done = calls(f"exec:{how}", str(path))
    assert done.values == {"errno": str(errno.EACCES)}, done
    assert f"{path} isn't run: it is a static program" in done.err


@pytest.mark.root
def test_names_as_libc_has_them(account_way: Way, wrap: Wrap, built_for: Programs, scripted_proxy: Scripted) -> None:
    """What isn't asked of the network is answered as libc does it, to every combination of arguments."""
    argv = [str(built_for("lookups")), "localhost"]
    url = scripted_proxy(Script()).url()
    wrapped = wrap(account_way, argv, via=url, env={"MALLOC_CHECK_": "3"}).out.splitlines()
    plain = wrap(account_way, ["env", f"{wire.VARIABLE}=", *argv], via=url).out.splitlines()
    assert len(plain) > 5000
    assert [once(line) for line in wrapped] == [once(line) for line in plain]


def once(line: str) -> list[str]:
    """The entries of a list, each address once: glibc makes a second 127.0.0.1 of ::1 in /etc/hosts."""
    entries: dict[str, str] = {}
    for entry in line.replace(" 127.0.0.1 127.0.0.1", " 127.0.0.1").split(" | "):
        entries.setdefault(entry.rpartition(" ")[0], entry)
    return list(entries.values())


@pytest.mark.root
def test_names_of_the_network(account_way: Way, wrap: Wrap, built_for: Programs, scripted_proxy: Scripted) -> None:
    out = wrap(account_way, [str(built_for("lookups")), "target.test"], via=scripted_proxy(Script()).url()).out
    lines = dict(line.split(": ", 1) for line in out.splitlines() if line.startswith("getaddrinfo target.test 80 f"))
    answer = lines["getaddrinfo target.test 80 flags=0x2 family=0 type=1 protocol=0"]
    first, second = answer.split(" | ")[1:]
    assert " 198.18." in first
    assert " fd73:6f63:6b73::c612:" in second
    assert first.endswith("80 size=16 target.test")
    assert lines["getaddrinfo target.test 80 flags=0x4 family=0 type=1 protocol=0"] == str(EAI_NONAME)
    assert " fd73:" in lines["getaddrinfo target.test 80 flags=0 family=10 type=1 protocol=0"]
    assert "::ffff:198.18." in lines["getaddrinfo target.test 80 flags=0x18 family=10 type=1 protocol=0"]
    hosts = [line.split() for line in out.splitlines() if line.startswith("gethostbyname") and "target.test" in line]
    assert {words[0] for words in hosts} == {
        *("gethostbyname", "gethostbyname2", "gethostbyname_r", "gethostbyname2_r"),
    }
    assert all(words[1] == "0" for words in hosts)


# without a supervisor


@pytest.mark.parametrize(
    "value",
    [None, "00:" + "00" * 16, "nonsense", ":", "30:" + "zz" * 16],
    ids=["unset", "nobody", "nonsense", "empty", "no-token"],
)
def test_nothing_connects_without_a_supervisor(
    built_for: Programs, alone: Callable[..., Done], libc: str, value: str | None
) -> None:
    env = {wire.PRELOAD: f"{fit.FOLDER}/shim-{libc}.so"} | ({} if value is None else {wire.VARIABLE: value})
    done = alone("calls", "child", "127.0.0.1", "1", "x", env=env)
    assert done.out == f"connect={errno.ECONNREFUSED}\n", done
    # a closed port says the same: so it's the descriptor that shows that the kernel wasn't asked
    done = alone("calls", "errno", "127.0.0.1", "1", "localhost", env=env)
    assert "fault=14" not in done.out, done


def test_it_stands_aside(built_for: Programs, alone: Callable[..., Done], libc: str) -> None:
    """As though it weren't there: the kernel itself says EFAULT, and a program's environment stays as it is."""
    env = {wire.PRELOAD: f"{fit.FOLDER}/shim-{libc}.so", wire.VARIABLE: ""}
    assert alone("calls", "errno", "127.0.0.1", "1", "localhost", env=env).values["fault"] == str(errno.EFAULT)
    assert alone("calls", "exec:static", "127.0.0.1", "1", str(built_for("static")), env=env).out == "ran\n"


HOOKS = """
    connect socket getpeername getsockopt sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg syscall dlopen
    getaddrinfo getnameinfo gethostbyname gethostbyname2 gethostbyname_r gethostbyname2_r gethostbyaddr gethostbyaddr_r
    res_query res_search res_querydomain res_send __res_query __res_search __res_querydomain __res_send
    execve execv execvp execvpe execl execlp execle fexecve execveat posix_spawn posix_spawnp system popen
"""
HOOKS_OF = {
    fit.GLIBC: """
        __connect __recvfrom_chk getaddrinfo_a res_nquery res_nsearch res_nquerydomain res_nsend
        __res_nquery __res_nsearch __res_nquerydomain __res_nsend
    """,
    fit.MUSL: "freeaddrinfo",
}


@pytest.mark.parametrize("name", [fit.GLIBC, fit.MUSL])
def test_every_hook_is_to_be_seen_and_nothing_else(name: str) -> None:
    """A hook that is hidden would let everything past; a function of ours that isn't may meet the program's own."""
    path = Path(fit.FOLDER) / f"shim-{name}.so"
    if not path.exists():
        missing(f"the shim for {name} isn't built")
    command = ["nm", "-D", "--defined-only", str(path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    names = {line.split()[-1] for line in listed.splitlines()} - {"_init", "_fini"}  # the compiler's
    assert names == {*HOOKS.split(), *HOOKS_OF[name].split()}
