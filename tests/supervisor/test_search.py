"""The search list: resolv.conf as libc reads it, and which queries are only steps of a search."""

import os
from pathlib import Path

import pytest

from pysocksify.supervisor.search import Search, SearchList

KUBERNETES = """\
search default.svc.cluster.local svc.cluster.local cluster.local corp.example
nameserver 10.96.0.10
options ndots:5
"""

FILES = [
    ("", (), 1),
    ("nameserver 192.0.2.1\n", (), 1),
    ("search a.example b.example\n", ("a.example", "b.example"), 1),
    ("domain A.Example.\n", ("a.example",), 1),
    ("domain a.example\nsearch b.example\n", ("b.example",), 1),
    ("search b.example\ndomain a.example\n", ("a.example",), 1),
    ("search .\n", (), 1),
    ("search\n", (), 1),
    ("# search x.example\n; search x.example\n", (), 1),
    ("options rotate ndots:3 timeout:1\n", (), 3),
    ("options ndots:99\n", (), 15),
    ("options ndots:\n", (), 1),
    ("options ndots:-1\n", (), 1),
    ("options\n\x00\xff\n", (), 1),
]


@pytest.mark.parametrize(("text", "domains", "ndots"), FILES)
def test_resolv_conf(text: str, domains: tuple[str, ...], ndots: int) -> None:
    assert SearchList.parse(text) == SearchList(domains=domains, ndots=ndots)


STEPS = [
    ("example.com.default.svc.cluster.local", "example.com"),  # the longest domain that fits, not `cluster.local`
    ("example.com.svc.cluster.local", "example.com"),
    ("example.com.corp.example", "example.com"),
    ("a.b.c.d.example.com.corp.example", None),  # five dots are ndots: libc asks for that name as it is
    ("a.b.c.d.e.corp.example", "a.b.c.d.e"),
    ("redis.default.svc.cluster.local", None),  # a single label
    ("www.corp.example", None),
    ("corp.example", None),
    ("xcorp.example", None),
    ("www.xcorp.example", None),
    ("example.com", None),
]


@pytest.mark.parametrize(("name", "meant"), STEPS)
def test_what_is_meant(name: str, meant: str | None) -> None:
    assert SearchList.parse(KUBERNETES).meant(name) == meant


def test_without_ndots_nothing_is_a_step() -> None:
    search = Search(lambda: "search corp.example\n")
    assert not search.is_step("example.com.corp.example")


def test_a_name_that_is_searched_for_is_no_step() -> None:
    """`web.prod.svc.cluster.local` looks like the search for `web.prod`, but comes after a search for itself."""
    search = Search(lambda: KUBERNETES)
    wanted = "web.prod.svc.cluster.local"
    for domain in ("default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"):
        assert search.is_step(f"{wanted}.{domain}")
    assert not search.is_step(wanted)
    assert search.is_step("other.prod.svc.cluster.local")


def test_what_is_remembered_has_a_limit() -> None:
    search = Search(lambda: KUBERNETES)
    first = "first.prod.svc.cluster.local"
    assert search.is_step(f"{first}.corp.example")
    for number in range(5000):
        assert search.is_step(f"n{number}.test.corp.example")
    assert search.is_step(first)


def test_it_is_read_once_and_late() -> None:
    reads = []

    def read() -> str:
        reads.append(1)
        return KUBERNETES

    search = Search(read)
    assert not reads
    search.is_step("a.example")
    search.is_step("b.example")
    assert reads == [1]


def test_no_file_means_no_search() -> None:
    def read() -> str:
        raise FileNotFoundError

    assert not Search(read).is_step("example.com.corp.example")


def test_of_a_process() -> None:
    there = Path("/etc/resolv.conf").exists()
    search = Search.of_process(os.getpid())
    assert not search.is_step("example")
    assert there or not search.is_step("example.com.corp.example")
    assert not Search.of_process(0).is_step("example.com.corp.example")
